"""Training of the denoiser, which renders nuclei from outline, brightness and stage."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor, nn

from bvdm_data.fitting.contours import LEAST_OVERLAP, Contours
from bvdm_data.fitting.nuclei import Nuclei
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
from bvdm_data.fitting.video import Frame, Video, mask_background
from bvdm_data.rng import torch_rng
from bvdm_data.synth.denoiser import Denoiser, DenoiserConfig, compute_signed_distance_map

NEIGHBOUR_MARGIN = 4  # px: nearer to another nucleus its light would be taken for a halo
HALO = 6  # width in pixels of the rim around the largest outline that a crop must hold
# Our recipe; ``bvdm-data info`` prints the losses that it came to on the HeLa video.
DENOISER_TRAINING = TrainingSettings(steps=10_000, batch=32, rate=1e-3)
# Share of each batch that is drawn evenly from the stages of mitosis, which are rare.
MITOSIS_FRACTION = 0.3
BACKGROUND_WEIGHT = 0.1  # in the loss, more than ``REACH`` px off the outline
NOISE_FLOOR_SIGMAS = 6.0  # of the camera's noise: :attr:`DenoiserConfig.floor`
_EDGE = 8  # px: unlabelled light farther off the outline than this is not the nucleus'
_CHECKED = 256


@dataclass(frozen=True)
class AlignedCrops:
    """Nuclei as the video shows them, turned so that the major axis lies along y."""

    light: Tensor  # above the background, grey values, 0 where not known, [n, 1, P, P] float16
    known: Tensor  # which pixels show this nucleus, its halo or background only, [n, 1, P, P] bool
    radii: Tensor  # contours, [n, K] px float32
    brightness: Tensor  # mean light inside the outline, grey values, [n] float32
    stage: Tensor  # index into STAGES, -1 where it is not known, [n] int64
    track: Tensor  # track id, [n] int64

    def at(self, rows: Tensor) -> "AlignedCrops":
        """Return some rows."""
        return AlignedCrops(*(values[rows] for values in vars(self).values()))


def extract_aligned_crops(nuclei: Nuclei, contours: Contours, video: Video) -> AlignedCrops:
    """Cut the nuclei out again, each turned upright by a cubic spline.

    The crops hold all but the largest half percent of the nuclei and a rim of ``HALO`` px. Nuclei
    that their own contour does not reproduce are left out.
    """
    crops, reach = nuclei.crops, contours.radii.max(1)
    patch = 8 * math.ceil((float(np.quantile(reach, 0.995)) + HALO) / 4)
    keep = np.flatnonzero((contours.iou >= LEAST_OVERLAP) & (reach <= patch / 2))
    cuts = {}
    for frame in video.frames:
        sampler = _FrameSampler(frame)
        for row in keep[crops.frame[keep] == frame.number].tolist():
            centre, angle = crops.centre[row], float(nuclei.angle[row])
            cuts[row] = sampler.cut(int(crops.track[row]), centre, angle, patch)
    light, known = (np.stack([cuts[row][part] for row in keep.tolist()]) for part in (0, 1))
    return AlignedCrops(
        light=torch.from_numpy(light)[:, None],
        known=torch.from_numpy(known)[:, None],
        radii=torch.from_numpy(contours.radii[keep]).float(),
        brightness=torch.from_numpy(np.maximum(crops.brightness[keep], 1e-4)).float(),
        stage=torch.from_numpy(nuclei.stage[keep]).long(),
        track=torch.from_numpy(crops.track[keep]),
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


def train_denoiser(
    crops: AlignedCrops,
    training: TrainingSettings,
    run: Run,
    *,
    noise: float,
    start: Denoiser | None = None,
) -> tuple[Denoiser, TrainingLog]:
    """Train the denoiser: v-prediction, noise levels drawn evenly, all four mirrorings."""
    if start is None:
        floor = NOISE_FLOOR_SIGMAS * max(noise, 1e-5)
        settings = DenoiserConfig(patch=crops.light.shape[-1], floor=floor)
    else:
        # The weights do not depend on the side of the patch.
        patch = max(start.settings.patch, crops.light.shape[-1])
        settings = replace(start.settings, patch=patch)
    return train_network(
        "painter",
        lambda: Denoiser(settings).to(memory_format=torch.channels_last),
        lambda network: _make_denoiser_losses(crops, network, training),
        training,
        run,
        data=(settings, *vars(crops).values()),
        start=start,
    )


def _make_denoiser_losses(
    crops: AlignedCrops, network: Denoiser, training: TrainingSettings
) -> Losses:
    """Return the training loss of the denoiser, and its loss on held-out tracks."""
    # On the scale of the network from here on.
    image = network.normalize(crops.light[:, 0].float(), crops.brightness).half()
    samples = replace(crops, light=image)
    learn, held = split_tracks(samples.track, training.seed)
    common = list(group_rows(learn, samples.track).values())
    rare = [rows for stage, rows in group_rows(learn, samples.stage).items() if stage > 0]
    few = round(MITOSIS_FRACTION * training.batch) if rare else 0
    generator = torch_rng(training.seed, "painter", "held out")
    check = samples.at(held[torch.randint(len(held), (_CHECKED,), generator=generator)])
    check_noise = torch.randn(check.light.shape, generator=generator)
    check_level = torch.rand(_CHECKED, generator=generator)

    def train_loss(model: nn.Module, step: int) -> Tensor:
        generator = torch_rng(training.seed, "painter", step)
        rows = draw_rows(common, training.batch - few, generator)
        rows += draw_rows(rare, few, generator)
        batch = _mirror(samples.at(torch.tensor(rows)), generator)
        noise = torch.randn(batch.light.shape, generator=generator)
        # Evenly spread levels make the loss of a batch quieter.
        offset = torch.rand((), generator=generator)
        level = (torch.arange(len(rows)) + offset) / len(rows)
        order = torch.randperm(len(rows), generator=generator)
        return _compute_loss(model, batch, noise, level[order])

    def val_loss(model: nn.Module) -> float:
        parts = (*vars(check).values(), check_noise, check_level)
        return average_parts(lambda *p: _compute_loss(model, AlignedCrops(*p[:-2]), *p[-2:]), parts)

    return train_loss, val_loss


def _mirror(samples: AlignedCrops, generator: torch.Generator) -> AlignedCrops:
    """Mirror every sample along its axis, across it, along both or not at all."""
    number = torch.randint(4, (len(samples.light),), generator=generator)[:, None]
    is_along, is_across = number % 2 == 1, number // 2 == 1
    count = samples.radii.shape[1]
    angle = torch.arange(count)
    angle = torch.where(is_along, (count // 2 - angle) % count, angle)
    angle = torch.where(is_across, -angle % count, angle)

    def mirror(plane: Tensor) -> Tensor:
        plane = torch.where(is_along[..., None, None], plane.flip(2), plane)
        return torch.where(is_across[..., None, None], plane.flip(3), plane)

    return replace(
        samples,
        light=mirror(samples.light),
        known=mirror(samples.known),
        radii=samples.radii.gather(1, angle),
    )


def _compute_loss(model: nn.Module, samples: AlignedCrops, noise: Tensor, level: Tensor) -> Tensor:
    # Drawn on the CPU, whatever the device, so that all devices see the same numbers.
    device = next(model.parameters()).device
    image, noise, level = samples.light.float().to(device), noise.to(device), level.to(device)
    edge = compute_signed_distance_map(samples.radii, image.shape[-1]).to(device)
    angle = (level * (math.pi / 2))[:, None, None, None]
    noisy = angle.cos() * image + angle.sin() * noise
    brightness, stage = samples.brightness.to(device), samples.stage.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        velocity = model(noisy, level, edge, brightness, stage)
    target = angle.cos() * noise - angle.sin() * image
    weight = samples.known.to(device) * torch.where(edge < 1, 1.0, BACKGROUND_WEIGHT)
    error = (velocity - target).square() * weight
    loss: Tensor = error.sum() / weight.sum().clamp(min=1)
    return loss
