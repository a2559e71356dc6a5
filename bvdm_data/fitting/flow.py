"""Flow: trains FlowNet on pairs of consecutive masks (Yilmaz et al. 2024, section 2, FPMs)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.texture import split_tracks, symmetry
from bvdm_data.fitting.training import TrainingLog, TrainingSettings, purpose_of, train
from bvdm_data.randomness import stream
from bvdm_data.synth.flow import FlowNet, warp

FLOW_TRAINING = TrainingSettings(steps=2_000, batch=32, rate=1e-4, average=0.99)
"""The paper's recipe: 2,000 iterations, batch 32, learning rate 1e-4 (section 3); RAdam where the
authors have Adam, and a short moving average of the weights, are ours."""

SMOOTHNESS = 0.01
"""Weight of the squared gradient of the flow (authors' code)."""


@dataclass(frozen=True)
class MaskPairs:
    """Masks of the same nuclei in two consecutive frames, each centred in its patch.

    Attributes:
        masks: Source and target, ``[n, 2, P, P]`` bool.
        track: Track id, ``[n]`` int64.
    """

    masks: Tensor
    track: Tensor


@dataclass(frozen=True)
class Overlap:
    """How well masks agree with the next frame's, on average over pairs.

    Attributes:
        before: Intersection over union of the centred masks as they are.
        after: The same after the first was warped by the predicted flow.
        pairs: Number of pairs.
    """

    before: float
    after: float
    pairs: int


def pair_masks(crops: Crops) -> MaskPairs:
    """Pair the masks of every nucleus with those one frame later.

    The patch is cut down to the smallest multiple of 32 px that holds every nucleus with a rim of
    4 px: beyond it both masks are empty, so nothing could be learned there. (Of 32, so that the
    network's grids of 16 px lie as in the whole patch.)

    Args:
        crops: Nuclei cut out of the video.

    Returns:
        The pairs, ordered as the crops.

    Raises:
        ValueError: If no nucleus is there in two consecutive frames.
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


def fit_flow(
    pairs: MaskPairs,
    *,
    checkpoint: Path,
    training: TrainingSettings = FLOW_TRAINING,
    held_out_share: float = 0.15,
    device: torch.device | None = None,
    progress: bool = True,
) -> tuple[FlowNet, TrainingLog, Overlap]:
    """Train FlowNet: mean squared error of the warped mask + .01 x squared gradient of the flow.

    Args:
        pairs: Masks of consecutive frames.
        checkpoint: Where the state is kept; the same call goes on from there.
        training: Steps, batch, rate, seed.
        held_out_share: Share of the tracks that are only looked at.
        device: Where to train; None: on the CPU.
        progress: Show a progress bar.

    Returns:
        The network, on the CPU, the losses, and the overlap on held-out tracks before and after
        warping.
    """
    learn, held = split_tracks(pairs.track, share=held_out_share, seed=training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(training.seed, "flow", "weights").initial_seed())
        network = FlowNet().to(device)
    order = torch.randperm(len(held), generator=stream(training.seed, "flow", "held out"))
    check = pairs.masks[held[order[:512]]]

    def loss_at(model: nn.Module, step: int) -> Tensor:
        generator = stream(training.seed, "flow", step)
        chosen = learn[torch.randint(len(learn), (training.batch,), generator=generator)]
        turn = torch.randint(8, (training.batch,), generator=generator).tolist()
        masks = [symmetry(pairs.masks[i], k) for i, k in zip(chosen.tolist(), turn, strict=True)]
        return flow_loss(model, torch.stack(masks).to(device))

    def held_out(model: nn.Module) -> float:
        parts = check.split(64)  # type: ignore[no-untyped-call]
        return float(torch.stack([flow_loss(model, part.to(device)) for part in parts]).mean())

    purpose = purpose_of(
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
    return network, log, mask_overlap(network, check)


def flow_loss(model: nn.Module, masks: Tensor) -> Tensor:
    """Return what FlowNet learns to make small (authors' code).

    Args:
        model: FlowNet.
        masks: Source and target, ``[n, 2, P, P]`` bool.

    Returns:
        Mean squared error of the warped source + ``SMOOTHNESS`` x mean squared forward
        difference of the flow, a scalar.
    """
    source, target = masks.float().split(1, 1)  # type: ignore[no-untyped-call]
    with torch.autocast(masks.device.type, torch.bfloat16):
        flow = model(source, target)
    return F.mse_loss(warp(source, flow), target) + SMOOTHNESS * _roughness(flow)


def _roughness(flow: Float[Tensor, "N 2 H W"]) -> Tensor:
    down = flow[:, :, 1:] - flow[:, :, :-1]
    right = flow[..., 1:] - flow[..., :-1]
    return (down.square().mean() + right.square().mean()) / 2


@torch.no_grad()
def mask_overlap(network: nn.Module, masks: Tensor) -> Overlap:
    """Measure how well warping brings each mask onto the next.

    Args:
        network: FlowNet.
        masks: Source and target, ``[n, 2, P, P]`` bool.

    Returns:
        Mean intersection over union before and after; a warped mask counts where it is above .5.
    """
    before, after = [], []
    for part in masks.split(64):  # type: ignore[no-untyped-call]
        source, target = part.float().split(1, 1)
        moved = warp(source, network(source, target)) > 0.5
        before.append(_overlap(part[:, :1], part[:, 1:]))
        after.append(_overlap(moved, part[:, 1:]))
    return Overlap(float(torch.cat(before).mean()), float(torch.cat(after).mean()), len(masks))


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    shared, either = (one & other).flatten(1).sum(1), (one | other).flatten(1).sum(1)
    return shared / either.clamp(min=1)
