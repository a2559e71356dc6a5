"""Training of the paper's two networks, DDPM and FlowNet (Yilmaz et al. 2024, section 2)."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.fitting.nuclei import MASK_LEVEL, Crops, Lineage, check_fittable
from bvdm_data.fitting.training import (
    Losses,
    Run,
    TrainingLog,
    TrainingSettings,
    average_parts,
    draw_rows,
    group_rows,
    split_tracks,
    train_network,
)
from bvdm_data.rng import torch_rng
from bvdm_data.synth.networks import (
    FlowNet,
    UNet,
    UNetSettings,
    add_noise,
    make_cosine_schedule,
    warp,
)
from bvdm_data.system import run_mixed

# The paper's recipe: 10,000 iterations, batch 32, learning rate 5e-4 (section 3).
DDPM_TRAINING = TrainingSettings(steps=10_000, batch=32, rate=5e-4)
# The paper's recipe: 2,000 iterations, batch 32, learning rate 1e-4 (section 3); RAdam where the
# authors have Adam, and a short moving average of the weights, are ours.
FLOW_TRAINING = TrainingSettings(steps=2_000, batch=32, rate=1e-4, average=0.99)
SMOOTHNESS = 0.01  # weight of the squared gradient of the flow (authors' code)
BRIGHTEST = 1.5  # relative light at which crops are clipped (our choice)
_CHECKED = 256
_SCHEDULE = make_cosine_schedule()


def normalize_crops(crops: Crops) -> tuple[Tensor, Tensor]:
    """Bring every nucleus to the mean at which inference starts.

    Returns relative light, ``[n, 1, 96, 96]`` float16, and the track of each nucleus, ``[n]``.

    The authors scale all crops by one range, so that hardly any real nucleus is as bright as the
    flat mask from which their inference starts. Here every crop is divided by its own mean, so
    that training and inference meet at ``MASK_LEVEL``; brightness comes back in the scene.
    """
    keep = np.flatnonzero(crops.brightness >= check_fittable(crops))
    gain = (MASK_LEVEL / crops.brightness[keep])[:, None, None]
    light = np.clip(crops.light[keep].astype(np.float32) * gain, 0, BRIGHTEST)
    images = torch.from_numpy(light.astype(np.float16))[:, None]
    return images, torch.from_numpy(crops.track[keep])


def train_ddpm(
    crops: tuple[Tensor, Tensor],
    training: TrainingSettings,
    run: Run,
    network: UNetSettings | None = None,
) -> tuple[UNet, TrainingLog]:
    """Train the DDPM; T = 1000, cosine schedule, mean squared error of the noise."""
    losses = make_ddpm_losses(crops, training)
    return train_network(
        "texture",
        lambda: UNet(network).to(memory_format=torch.channels_last),
        lambda _: losses,
        training,
        run,
        data=(network, crops[1], crops[0]),
    )


def make_ddpm_losses(crops: tuple[Tensor, Tensor], training: TrainingSettings) -> Losses:
    """Return the training loss of the DDPM, and its loss on held-out tracks."""
    images, track = crops
    learn, held = split_tracks(track, training.seed)
    tracks = list(group_rows(learn, track).values())
    # The same noise every time, so that losses can be compared.
    generator = torch_rng(training.seed, "texture", "held out")
    rows = held[torch.randint(len(held), (_CHECKED,), generator=generator)]
    check = images[rows].float(), *_draw_noise(images[rows].shape, generator)

    def train_loss(model: nn.Module, step: int) -> Tensor:
        """Draw tracks, one frame of each (as the authors do), and one of eight symmetries."""
        generator = torch_rng(training.seed, "texture", step)
        rows = draw_rows(tracks, training.batch, generator)
        batch = _draw_symmetries(images[rows], generator).float()
        return _compute_ddpm_loss(model, batch, *_draw_noise(batch.shape, generator))

    def val_loss(model: nn.Module) -> float:
        return average_parts(lambda *part: _compute_ddpm_loss(model, *part), check)

    return train_loss, val_loss


def _compute_ddpm_loss(model: nn.Module, images: Tensor, noise: Tensor, step: Tensor) -> Tensor:
    # Drawn on the CPU, whatever the device, so that all devices see the same numbers.
    device = next(model.parameters()).device
    images, noise, step = images.to(device), noise.to(device), step.to(device)
    noisy = add_noise(images, noise, step, _SCHEDULE)
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    with run_mixed(device):
        predicted = model(noisy, step)
    return F.mse_loss(predicted.float(), noise)


def _draw_noise(shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    noise = torch.randn(shape, generator=generator)
    return noise, torch.randint(len(_SCHEDULE.beta), shape[:1], generator=generator)


def _draw_symmetries(images: Tensor, generator: torch.Generator) -> Tensor:
    turns = torch.randint(8, (len(images),), generator=generator).tolist()
    return torch.stack([_apply_symmetry(i, k) for i, k in zip(images, turns, strict=True)])


def _apply_symmetry(image: Tensor, number: int) -> Tensor:
    """Return one of the eight symmetries of a square: four quarter turns, plain or mirrored."""
    turned = image.rot90(number % 4, (-2, -1))
    return turned.flip(-1) if number >= 4 else turned


def make_mask_pairs(crops: Crops, lineage: Lineage) -> tuple[Tensor, Tensor]:
    """Pair the masks of every nucleus with those one frame later, ``[n, 2, P, P]``, and its track.

    The patch is cut down to the smallest multiple of 32 px that holds every nucleus with a rim of
    4 px: beyond it both masks are empty, so nothing could be learned there. (Of 32, so that the
    network's grids of 16 px lie as in the whole patch.)
    """
    pairs = lineage.find_pairs(1)
    if not len(pairs):
        raise ValueError("the video must show a nucleus in two consecutive frames, got none")
    covered = np.flatnonzero(crops.masks.any((0, 1)) | crops.masks.any((0, 2)))
    side = crops.masks.shape[-1]
    reach = max(side / 2 - covered[0], covered[-1] + 1 - side / 2) + 4
    small = min(side, 32 * int(np.ceil(reach / 16)))
    cut = slice((side - small) // 2, (side + small) // 2)
    masks, track = crops.masks[pairs][..., cut, cut], crops.track[pairs[:, 0]]
    return torch.from_numpy(masks), torch.from_numpy(track)


def train_flownet(
    pairs: tuple[Tensor, Tensor], training: TrainingSettings, run: Run
) -> tuple[FlowNet, TrainingLog, dict[str, float]]:
    """Train FlowNet: mean squared error of the warped mask + .01 x squared gradient of the flow."""
    masks, track = pairs
    learn, held = split_tracks(track, training.seed)
    order = torch.randperm(len(held), generator=torch_rng(training.seed, "flow", "held out"))
    check, device = masks[held[order[:512]]], run.device

    def train_loss(model: nn.Module, step: int) -> Tensor:
        generator = torch_rng(training.seed, "flow", step)
        rows = learn[torch.randint(len(learn), (training.batch,), generator=generator)]
        return _compute_flow_loss(model, _draw_symmetries(masks[rows], generator).to(run.device))

    def val_loss(model: nn.Module) -> float:
        return average_parts(lambda part: _compute_flow_loss(model, part.to(device)), (check,), 64)

    losses, data = (train_loss, val_loss), (track, masks)
    network, log = train_network("flow", FlowNet, lambda _: losses, training, run, data=data)
    return network, log, _measure_flow_iou(network, check)


def _compute_flow_loss(model: nn.Module, masks: Tensor) -> Tensor:
    """Return the loss of FlowNet (authors' code)."""
    source, target = masks.float().split(1, 1)  # type: ignore[no-untyped-call]
    with run_mixed(masks.device):
        flow = model(source, target)
    down, right = flow[:, :, 1:] - flow[:, :, :-1], flow[..., 1:] - flow[..., :-1]
    roughness = (down.square().mean() + right.square().mean()) / 2
    loss: Tensor = F.mse_loss(warp(source, flow), target) + SMOOTHNESS * roughness
    return loss


@torch.no_grad()
def _measure_flow_iou(network: nn.Module, masks: Tensor) -> dict[str, float]:
    """Return the mean IoU of masks with the next frame's, before and after warping."""
    before, after = [], []
    for part in masks.split(64):  # type: ignore[no-untyped-call]
        source, target = part.float().split(1, 1)
        warped = warp(source, network(source, target)) > 0.5
        before.append(_compute_iou(part[:, :1], part[:, 1:]))
        after.append(_compute_iou(warped, part[:, 1:]))
    ious = (round(float(torch.cat(parts).mean()), 4) for parts in (before, after))
    names = ("held_out_pairs", "overlap_before", "overlap_after")
    return dict(zip(names, (len(masks), *ious), strict=True))


def _compute_iou(first: Tensor, second: Tensor) -> Tensor:
    shared, either = (first & second).flatten(1).sum(1), (first | second).flatten(1).sum(1)
    return shared / either.clamp(min=1)
