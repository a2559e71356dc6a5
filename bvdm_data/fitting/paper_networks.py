"""Texture: trains the DDPM on single nuclei (Yilmaz et al. 2024, section 2)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.fitting.nuclei import DIM_SHARE, MASK_LEVEL, Crops, check_fittable
from bvdm_data.fitting.training import TrainingLog, TrainingSettings, compute_fingerprint, train
from bvdm_data.rng import torch_rng
from bvdm_data.synth.flow import FlowNet, warp
from bvdm_data.synth.unet import UNet, UNetSettings, add_noise, make_cosine_schedule

DDPM_TRAINING = TrainingSettings(steps=10_000, batch=32, rate=5e-4)
"""The paper's recipe: 10,000 iterations, batch 32, learning rate 5e-4 (section 3)."""


@dataclass(frozen=True)
class DdpmCrops:
    """Normalised crops: what the DDPM learns."""

    # relative light, [n, 1, 96, 96] float16: 0 outside the nucleus, a mean of MASK_LEVEL inside
    pictures: Tensor
    track: Tensor  # track id, [n] int64


def normalize_crops(crops: Crops, *, dim_share: float = DIM_SHARE, most: float = 1.5) -> DdpmCrops:
    """Bring every nucleus to the mean at which inference starts.

    The authors scale all crops by one range, so that hardly any real nucleus is as bright as the
    flat mask from which their inference starts. Here every crop is divided by its own mean, so
    that training and inference meet at ``MASK_LEVEL``; brightness comes back in the scene.
    """
    least = check_fittable(crops, dim_share)
    keep = np.flatnonzero(crops.brightness >= least)
    gain = (MASK_LEVEL / crops.brightness[keep])[:, None, None]
    pictures = np.clip(crops.light[keep].astype(np.float32) * gain, 0, most)
    return DdpmCrops(
        torch.from_numpy(pictures.astype(np.float16))[:, None], torch.from_numpy(crops.track[keep])
    )


def split_tracks(track: Tensor, *, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split by track: no nucleus is on both sides."""
    tracks = track.unique()  # type: ignore[no-untyped-call]
    if len(tracks) < 2:
        raise ValueError(f"at least 2 tracks are needed to hold some out, got {len(tracks)}")
    order = torch.randperm(len(tracks), generator=torch_rng(seed, "split"))
    held = tracks[order[: max(1, round(share * len(tracks)))]]
    is_held = torch.isin(track, held)
    return (~is_held).nonzero()[:, 0], is_held.nonzero()[:, 0]


def train_ddpm(
    textures: DdpmCrops,
    *,
    checkpoint: Path,
    network: UNetSettings | None = None,
    training: TrainingSettings = DDPM_TRAINING,
    held_out_share: float = 0.15,
    device: torch.device | None = None,
    progress: bool = True,
) -> tuple[UNet, TrainingLog]:
    """Train the DDPM; T = 1000, cosine schedule, mean squared error of the noise."""
    loss_at, held_out = make_ddpm_losses(textures, training, held_out_share=held_out_share)
    with torch.random.fork_rng(devices=[]):
        seed = torch_rng(training.seed, "texture", "weights").initial_seed()
        torch.default_generator.manual_seed(seed)
        unet = UNet(network)
    unet = unet.to(device).to(memory_format=torch.channels_last)
    purpose = compute_fingerprint(
        "texture", unet.settings, training.batch, training.rate, training.average, training.seed,
        held_out_share, textures.track, textures.pictures,
    )  # fmt: skip
    log = train(
        unet, loss_at, held_out, training, checkpoint=checkpoint, purpose=purpose, progress=progress
    )
    return unet.cpu(), log


def make_ddpm_losses(
    textures: DdpmCrops, training: TrainingSettings, *, held_out_share: float = 0.15
) -> tuple[Callable[[nn.Module, int], Tensor], Callable[[nn.Module], float]]:
    """Return what the DDPM learns to make small, and the same on tracks it never sees."""
    learn, held = split_tracks(textures.track, share=held_out_share, seed=training.seed)
    members = _by_track(textures.track, learn)
    check = _held_out_batch(textures.pictures, held, training.seed)

    def loss_at(model: nn.Module, step: int) -> Tensor:
        generator = torch_rng(training.seed, "texture", step)
        pictures = _draw(textures.pictures, members, training.batch, generator)
        return _loss(model, pictures, *_noise_and_step(len(pictures), pictures, generator))

    def held_out(model: nn.Module) -> float:
        parts = zip(*(part.split(32) for part in check), strict=True)  # type: ignore[no-untyped-call]
        return float(torch.stack([_loss(model, *part) for part in parts]).mean())

    return loss_at, held_out


def _loss(model: nn.Module, pictures: Tensor, noise: Tensor, step: Tensor) -> Tensor:
    # Drawn on the CPU, whatever the device, so that all devices see the same numbers.
    device = next(model.parameters()).device
    pictures, noise, step = pictures.to(device), noise.to(device), step.to(device)
    noisy = add_noise(pictures, noise, step, _SCHEDULE)
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16):
        predicted = model(noisy, step)
    return F.mse_loss(predicted.float(), noise)


def _by_track(track: Tensor, learn: Tensor) -> list[Tensor]:
    tracks = track[learn].unique()  # type: ignore[no-untyped-call]
    return [learn[track[learn] == one] for one in tracks]


def _draw(
    pictures: Tensor, members: list[Tensor], batch: int, generator: torch.Generator
) -> Tensor:
    """Draw a track, then one of its frames (as the authors do), then one of eight symmetries."""
    tracks = torch.randint(len(members), (batch,), generator=generator).tolist()
    place = torch.rand(batch, generator=generator).tolist()
    chosen = [members[t][int(p * len(members[t]))] for t, p in zip(tracks, place, strict=True)]
    turn = torch.randint(8, (batch,), generator=generator).tolist()
    return torch.stack(
        [draw_symmetry(pictures[i].float(), k) for i, k in zip(chosen, turn, strict=True)]
    )


def draw_symmetry(picture: Tensor, which: int) -> Tensor:
    """Return one of the eight symmetries of a square: four quarter turns, plain or mirrored."""
    turned = picture.rot90(which % 4, (-2, -1))
    return turned.flip(-1) if which >= 4 else turned


def _noise_and_step(
    count: int, pictures: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    noise = torch.randn(pictures.shape, generator=generator)
    return noise, torch.randint(_SCHEDULE.steps, (count,), generator=generator)


def _held_out_batch(pictures: Tensor, held: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw 256 held-out pictures with fixed noise, so that losses can be compared."""
    generator = torch_rng(seed, "texture", "held out")
    chosen = held[torch.randint(len(held), (256,), generator=generator)]
    images = pictures[chosen].float()
    return images, *_noise_and_step(256, images, generator)


_SCHEDULE = make_cosine_schedule()


FLOW_TRAINING = TrainingSettings(steps=2_000, batch=32, rate=1e-4, average=0.99)
"""The paper's recipe: 2,000 iterations, batch 32, learning rate 1e-4 (section 3); RAdam where the
authors have Adam, and a short moving average of the weights, are ours."""

SMOOTHNESS = 0.01
"""Weight of the squared gradient of the flow (authors' code)."""


@dataclass(frozen=True)
class MaskPairs:
    """Masks of the same nuclei in two consecutive frames, each centred in its patch."""

    masks: Tensor  # source and target, [n, 2, P, P] bool
    track: Tensor  # track id, [n] int64


@dataclass(frozen=True)
class FlowIoU:
    """How well masks agree with the next frame's, on average over pairs."""

    before: float  # intersection over union of the centred masks as they are
    after: float  # the same after the first was warped by the predicted flow
    pairs: int  # number of pairs


def make_mask_pairs(crops: Crops) -> MaskPairs:
    """Pair the masks of every nucleus with those one frame later.

    The patch is cut down to the smallest multiple of 32 px that holds every nucleus with a rim of
    4 px: beyond it both masks are empty, so nothing could be learned there. (Of 32, so that the
    network's grids of 16 px lie as in the whole patch.)
    """
    place = {
        (int(t), int(f)): i for i, (t, f) in enumerate(zip(crops.track, crops.frame, strict=True))
    }
    both = [(i, place[t, f + 1]) for (t, f), i in place.items() if (t, f + 1) in place]
    if not both:
        raise ValueError("the video must show a nucleus in two consecutive frames, got none")
    covered = np.flatnonzero(crops.masks.any((0, 1)) | crops.masks.any((0, 2)))
    side = crops.masks.shape[-1]
    reach = max(side / 2 - covered[0], covered[-1] + 1 - side / 2) + 4
    small = min(side, 32 * int(np.ceil(reach / 16)))
    cut = slice((side - small) // 2, (side + small) // 2)
    first, second = np.array(both).T
    pairs = np.stack([crops.masks[first, cut, cut], crops.masks[second, cut, cut]], 1)
    return MaskPairs(torch.from_numpy(pairs), torch.from_numpy(crops.track[first]))


def train_flownet(
    pairs: MaskPairs,
    *,
    checkpoint: Path,
    training: TrainingSettings = FLOW_TRAINING,
    held_out_share: float = 0.15,
    device: torch.device | None = None,
    progress: bool = True,
) -> tuple[FlowNet, TrainingLog, FlowIoU]:
    """Train FlowNet: mean squared error of the warped mask + .01 x squared gradient of the flow."""
    learn, held = split_tracks(pairs.track, share=held_out_share, seed=training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(
            torch_rng(training.seed, "flow", "weights").initial_seed()
        )
        network = FlowNet().to(device)
    order = torch.randperm(len(held), generator=torch_rng(training.seed, "flow", "held out"))
    check = pairs.masks[held[order[:512]]]

    def loss_at(model: nn.Module, step: int) -> Tensor:
        generator = torch_rng(training.seed, "flow", step)
        chosen = learn[torch.randint(len(learn), (training.batch,), generator=generator)]
        turn = torch.randint(8, (training.batch,), generator=generator).tolist()
        masks = [
            draw_symmetry(pairs.masks[i], k) for i, k in zip(chosen.tolist(), turn, strict=True)
        ]
        return compute_flow_loss(model, torch.stack(masks).to(device))

    def held_out(model: nn.Module) -> float:
        parts = check.split(64)  # type: ignore[no-untyped-call]
        return float(
            torch.stack([compute_flow_loss(model, part.to(device)) for part in parts]).mean()
        )

    purpose = compute_fingerprint(
        "flow", training.batch, training.rate, training.average, training.seed, held_out_share,
        pairs.track, pairs.masks,
    )  # fmt: skip
    log = train(
        network,
        loss_at,
        held_out,
        training,
        checkpoint=checkpoint,
        purpose=purpose,
        progress=progress,
    )
    network = network.cpu()
    return network, log, measure_flow_iou(network, check)


def compute_flow_loss(model: nn.Module, masks: Tensor) -> Tensor:
    """Return what FlowNet learns to make small (authors' code)."""
    source, target = masks.float().split(1, 1)  # type: ignore[no-untyped-call]
    with torch.autocast(masks.device.type, torch.bfloat16):
        flow = model(source, target)
    return F.mse_loss(warp(source, flow), target) + SMOOTHNESS * _penalize_gradient(flow)


def _penalize_gradient(flow: Float[Tensor, "N 2 H W"]) -> Tensor:
    down = flow[:, :, 1:] - flow[:, :, :-1]
    right = flow[..., 1:] - flow[..., :-1]
    return (down.square().mean() + right.square().mean()) / 2


@torch.no_grad()
def measure_flow_iou(network: nn.Module, masks: Tensor) -> FlowIoU:
    """Measure how well warping brings each mask onto the next."""
    before, after = [], []
    for part in masks.split(64):  # type: ignore[no-untyped-call]
        source, target = part.float().split(1, 1)
        moved = warp(source, network(source, target)) > 0.5
        before.append(_overlap(part[:, :1], part[:, 1:]))
        after.append(_overlap(moved, part[:, 1:]))
    return FlowIoU(float(torch.cat(before).mean()), float(torch.cat(after).mean()), len(masks))


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    shared, either = (one & other).flatten(1).sum(1), (one | other).flatten(1).sum(1)
    return shared / either.clamp(min=1)
