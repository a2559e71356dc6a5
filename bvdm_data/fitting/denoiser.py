"""Painter: trains the network that draws nuclei from outline, brightness and stage."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor, nn

from bvdm_data.fitting.contours import (
    LEAST_OVERLAP,
    measure_contour_iou,
    measure_orientation,
    trace_contour,
)
from bvdm_data.fitting.nuclei import Crops
from bvdm_data.fitting.paper_networks import split_tracks
from bvdm_data.fitting.training import TrainingLog, TrainingSettings, compute_fingerprint, train
from bvdm_data.fitting.video import Frame, Video, mask_background
from bvdm_data.rng import torch_rng
from bvdm_data.synth.denoiser import Denoiser, DenoiserConfig, compute_signed_distance_map

NEIGHBOUR_MARGIN = 4
"""Distance in pixels from another nucleus within which its light would be taken for a halo."""

HALO = 6
"""Width in pixels of the rim around the largest outline that a portrait must hold."""

_EDGE = 8  # px: unlabelled light farther off the outline than this is not the nucleus'


@dataclass(frozen=True)
class AlignedCrops:
    """Nuclei as the video shows them; the major axis lies along y."""

    # light above the background, grey values, 0 where a neighbour is, [n, P, P] float16
    light: npt.NDArray[np.float16]
    # which pixels show this nucleus, its halo or empty background, [n, P, P] bool
    known: npt.NDArray[np.bool_]
    radii: npt.NDArray[np.float32]  # contours, [n, K] px
    brightness: npt.NDArray[np.float32]  # mean light inside the outline, grey values, [n] float32
    stage: npt.NDArray[np.int8]  # index into STAGES, -1 where it is not known, [n] int8
    track: npt.NDArray[np.int64]  # track id, [n]
    frame: npt.NDArray[np.int64]  # frame number, [n]

    @property
    def patch(self) -> int:
        """Side of a portrait in pixels."""
        return int(self.light.shape[-1])


def extract_aligned_crops(video: Video, crops: Crops, stages: npt.NDArray[np.int8]) -> AlignedCrops:
    """Cut the nuclei out again, each turned upright by a cubic spline.

    The side of the portraits holds all but the largest half percent of the nuclei, with a rim of
    ``HALO`` px, and is a multiple of 8. Nuclei that their own contour does not reproduce are left
    out.
    """
    radii = np.stack([trace_contour(mask) for mask in crops.masks])
    turns = np.array([measure_orientation(mask) for mask in crops.masks])
    overlaps = np.array(
        [measure_contour_iou(m, r) for m, r in zip(crops.masks, radii, strict=True)]
    )
    largest = float(np.quantile(radii.max(1), 0.995))
    patch = 8 * math.ceil((largest + HALO) / 4)
    keep = np.flatnonzero((overlaps >= LEAST_OVERLAP) & (radii.max(1) <= patch / 2))
    light = np.zeros((len(keep), patch, patch), np.float16)
    known = np.zeros((len(keep), patch, patch), bool)
    frames = {frame.number: frame for frame in video.frames}
    for number in np.unique(crops.frame[keep]).tolist():
        rows = np.flatnonzero(crops.frame[keep] == number)
        sheet = _FrameSampler(frames[number])
        for row in rows.tolist():
            crop = keep[row]
            light[row], known[row] = sheet.cut(
                int(crops.track[crop]), crops.centre[crop], float(turns[crop]), patch
            )
    return AlignedCrops(
        light=light,
        known=known,
        radii=radii[keep].astype(np.float32),
        brightness=np.maximum(crops.brightness[keep], 1e-4).astype(np.float32),
        stage=stages[keep],
        track=crops.track[keep],
        frame=crops.frame[keep],
    )


class _FrameSampler:
    """One frame, ready to be read at any place."""

    def __init__(self, frame: Frame) -> None:
        above = frame.grey - frame.background
        self.masks = frame.masks
        self.shape = above.shape
        self.spline = ndimage.spline_filter(above, order=3, mode="mirror")
        distance = ndimage.distance_transform_edt(frame.masks == 0)
        # What is bright and far from every outline is a nucleus that the truth leaves out.
        empty = mask_background(frame.grey, frame.masks)
        self.stray = ndimage.binary_dilation((distance > _EDGE) & ~empty, iterations=2)

    def cut(
        self, identity: int, centre: npt.NDArray[np.float32], turn: float, patch: int
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
        along, across = np.meshgrid(*[np.arange(patch) - (patch - 1) / 2] * 2, indexing="ij")
        y = centre[0] + math.cos(turn) * along - math.sin(turn) * across
        x = centre[1] + math.sin(turn) * along + math.cos(turn) * across
        light = ndimage.map_coordinates(self.spline, [y, x], order=3, prefilter=False)
        rows, columns = np.rint(y).astype(int), np.rint(x).astype(int)
        height, width = self.shape
        known = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        place = (rows.clip(0, height - 1), columns.clip(0, width - 1))
        labels = self.masks[place]
        own = labels == identity
        others = ~own & (labels > 0)
        alone = np.ones_like(own)
        if others.any():  # or there would be nothing to measure a distance to
            alone = ndimage.distance_transform_edt(~others) > NEIGHBOUR_MARGIN
        known &= own | (alone & ~self.stray[place])
        return np.where(known, light, 0).astype(np.float16), known


DENOISER_TRAINING = TrainingSettings(steps=10_000, batch=32, rate=1e-3)
"""Our recipe; ``bvdm-data info`` prints the losses that it came to on the HeLa video."""

MITOSIS_FRACTION = 0.3
"""Share of each batch that is drawn evenly from the stages of mitosis, which are rare."""

BACKGROUND_WEIGHT = 0.1
"""Weight in the loss of what lies more than ``REACH`` px off the outline: empty background."""

NOISE_FLOOR_SIGMAS = 6.0
"""Standard deviations of the camera's noise that make :attr:`PainterSettings.floor`."""

_CHECKED = 256


@dataclass(frozen=True)
class DenoiserSamples:
    """Portraits on the scale of the network, as tensors."""

    picture: Tensor  # [n, 1, P, P] float16
    known: Tensor  # which pixels count, [n, 1, P, P] bool
    radii: Tensor  # contours, [n, K] px float32
    brightness: Tensor  # [n] float32
    stage: Tensor  # [n] int64
    track: Tensor  # [n] int64

    def at(self, rows: Tensor) -> "DenoiserSamples":
        """Return the samples of some rows."""
        return DenoiserSamples(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def make_training_set(portraits: AlignedCrops, painter: Denoiser) -> DenoiserSamples:
    """Bring portraits to the scale of a network."""
    if not len(portraits.track):
        raise ValueError(
            "the video must show whole nuclei that belong to tracks, got none: all masks touch the "
            "border of the frame, are larger than the patch, or are in no track"
        )
    brightness = torch.from_numpy(portraits.brightness)
    picture = painter.normalize(torch.from_numpy(portraits.light).float(), brightness)
    return DenoiserSamples(
        picture=picture.half(),
        known=torch.from_numpy(portraits.known)[:, None],
        radii=torch.from_numpy(portraits.radii),
        brightness=brightness,
        stage=torch.from_numpy(portraits.stage.astype(np.int64)),
        track=torch.from_numpy(portraits.track),
    )


def train_denoiser(
    portraits: AlignedCrops,
    *,
    noise: float,
    checkpoint: Path,
    training: TrainingSettings = DENOISER_TRAINING,
    start: Denoiser | None = None,
    held_out_share: float = 0.15,
    device: torch.device | None = None,
    progress: bool = True,
) -> tuple[Denoiser, TrainingLog]:
    """Train the painter: v-prediction, noise levels drawn evenly, all four mirrorings."""
    if start is None:
        settings = DenoiserConfig(
            patch=portraits.patch, floor=NOISE_FLOOR_SIGMAS * max(noise, 1e-5)
        )
    else:
        # The weights do not depend on the side of the patch.
        patch = max(start.settings.patch, portraits.patch)
        settings = replace(start.settings, patch=patch)
    with torch.random.fork_rng(devices=[]):
        seed = torch_rng(training.seed, "painter", "weights").initial_seed()
        torch.default_generator.manual_seed(seed)
        painter = Denoiser(settings)
    if start is not None:
        painter.load_state_dict(start.state_dict())
    samples = make_training_set(portraits, painter)
    loss_at, held_out = make_denoiser_losses(samples, training, held_out_share=held_out_share)
    painter = painter.to(device).to(memory_format=torch.channels_last)
    begin = () if start is None else tuple(start.state_dict().values())
    purpose = compute_fingerprint(
        "painter", settings, training.batch, training.rate, training.average, training.seed,
        held_out_share, samples.track, samples.picture, samples.radii, samples.stage, *begin,
    )  # fmt: skip
    log = train(
        painter, loss_at, held_out, training,
        checkpoint=checkpoint, purpose=purpose, progress=progress,
    )  # fmt: skip
    return painter.cpu(), log


def make_denoiser_losses(
    samples: DenoiserSamples, training: TrainingSettings, *, held_out_share: float = 0.15
) -> tuple[Callable[[nn.Module, int], Tensor], Callable[[nn.Module], float]]:
    """Return what the painter learns to make small, and the same on tracks it never sees."""
    learn, held = split_tracks(samples.track, share=held_out_share, seed=training.seed)
    common, rare = _groups(samples, learn)
    check = torch_rng(training.seed, "painter", "held out")
    fixed = samples.at(held[torch.randint(len(held), (_CHECKED,), generator=check)])
    noise = torch.randn(fixed.picture.shape, generator=check)
    level = torch.rand(_CHECKED, generator=check)

    def loss_at(model: nn.Module, step: int) -> Tensor:
        generator = torch_rng(training.seed, "painter", step)
        few = round(MITOSIS_FRACTION * training.batch) if rare else 0
        rows = _draw(common, training.batch - few, generator) + _draw(rare, few, generator)
        drawn = _mirrored(samples.at(torch.tensor(rows)), generator)
        drawn_noise = torch.randn(drawn.picture.shape, generator=generator)
        # Evenly spread levels make the loss of a batch quieter.
        offset = torch.rand((), generator=generator)
        drawn_level = (torch.arange(len(rows)) + offset) / len(rows)
        order = torch.randperm(len(rows), generator=generator)
        return _loss(model, drawn, drawn_noise, drawn_level[order])

    def held_out(model: nn.Module) -> float:
        parts = torch.arange(_CHECKED).split(32)  # type: ignore[no-untyped-call]
        return float(
            torch.stack([_loss(model, fixed.at(p), noise[p], level[p]) for p in parts]).mean()
        )

    return loss_at, held_out


def _groups(samples: DenoiserSamples, learn: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the rows of each track, and of each stage of mitosis."""
    track, stage = samples.track[learn], samples.stage[learn]
    tracks = track.unique()  # type: ignore[no-untyped-call]
    common = [learn[track == one] for one in tracks]
    rare = [learn[stage == one] for one in stage.unique() if one > 0]  # type: ignore[no-untyped-call]
    return common, rare


def _draw(groups: list[Tensor], count: int, generator: torch.Generator) -> list[int]:
    """Draw a group, then one of its rows."""
    chosen = torch.randint(max(1, len(groups)), (count,), generator=generator).tolist()
    place = torch.rand(count, generator=generator).tolist()
    return [int(groups[g][int(p * len(groups[g]))]) for g, p in zip(chosen, place, strict=True)]


def _mirrored(samples: DenoiserSamples, generator: torch.Generator) -> DenoiserSamples:
    """Mirror every sample along its axis, across it, along both or not at all."""
    which = torch.randint(4, (len(samples.picture),), generator=generator)
    count = samples.radii.shape[1]
    angle = torch.arange(count)
    along = torch.where((which % 2 == 1)[:, None], (count // 2 - angle) % count, angle)
    across = torch.where((which // 2 == 1)[:, None], -along % count, along)
    planes = []
    for plane in (samples.picture, samples.known):
        turned = torch.where((which % 2 == 1).view(-1, 1, 1, 1), plane.flip(2), plane)
        planes.append(torch.where((which // 2 == 1).view(-1, 1, 1, 1), turned.flip(3), turned))
    return DenoiserSamples(
        planes[0], planes[1], samples.radii.gather(1, across),
        samples.brightness, samples.stage, samples.track,
    )  # fmt: skip


def _loss(model: nn.Module, samples: DenoiserSamples, noise: Tensor, level: Tensor) -> Tensor:
    # Drawn on the CPU, whatever the device, so that all devices see the same numbers.
    device = next(model.parameters()).device
    picture, noise, level = samples.picture.float().to(device), noise.to(device), level.to(device)
    edge = compute_signed_distance_map(samples.radii, picture.shape[-1]).to(device)
    angle = (level * (math.pi / 2))[:, None, None, None]
    noisy = angle.cos() * picture + angle.sin() * noise
    with torch.autocast(device.type, torch.bfloat16):
        velocity = model(
            noisy, level, edge, samples.brightness.to(device), samples.stage.to(device)
        )
    wanted = angle.cos() * noise - angle.sin() * picture
    weight = samples.known.to(device) * torch.where(edge < 1, 1.0, BACKGROUND_WEIGHT)
    error = (velocity - wanted).square() * weight
    loss: Tensor = error.sum() / weight.sum().clamp(min=1)
    return loss
