"""Training of the denoiser, which renders nuclei from outline, brightness and stage."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor, nn

from bvdm_data.background import mask_background
from bvdm_data.fitting.contours import LEAST_OVERLAP, Contours
from bvdm_data.fitting.nuclei import Nuclei
from bvdm_data.fitting.progress import open_bar
from bvdm_data.fitting.training import (
    SAVE_SECONDS,
    Losses,
    Run,
    TrainingLog,
    TrainingSettings,
    average_parts,
    compute_fingerprint,
    draw_rows,
    group_rows,
    read_state,
    split_tracks,
    train_network,
    write_state,
)
from bvdm_data.fitting.video import Frame, Video
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.cell_cycle import CellCycleModel
from bvdm_data.synth.cells import LineageSimulator
from bvdm_data.synth.contours import Array, ShapeModel
from bvdm_data.synth.denoiser import (
    Denoiser,
    DenoiserConfig,
    Student,
    StudentConfig,
    compute_signed_distance_map,
    fit_to_patch_scale,
    group_by_patch_size,
    run_dpm_solver,
)
from bvdm_data.synth.model import BRIGHTNESS, SIZE
from bvdm_data.synth.textures import BATCH, STUDENT_STEPS, cut_centre, fade_halo
from bvdm_data.system import run_mixed

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
        settings = replace(start.settings, patch=patch, pooling=1)
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
    draw_batch, check, check_noise, generator = split_crops("painter", crops, network, training)
    check_level = torch.rand(_CHECKED, generator=generator)

    def train_loss(model: nn.Module, step: int) -> Tensor:
        generator = torch_rng(training.seed, "painter", step)
        batch = draw_batch(generator)
        noise = torch.randn(batch.light.shape, generator=generator)
        # Evenly spread levels make the loss of a batch quieter.
        offset = torch.rand((), generator=generator)
        level = (torch.arange(training.batch) + offset) / training.batch
        order = torch.randperm(training.batch, generator=generator)
        return _compute_loss(model, batch, noise, level[order])

    def val_loss(model: nn.Module) -> float:
        parts = (*vars(check).values(), check_noise, check_level)
        return average_parts(lambda *p: _compute_loss(model, AlignedCrops(*p[:-2]), *p[-2:]), parts)

    return train_loss, val_loss


def split_crops(
    name: str, crops: AlignedCrops, network: Denoiser | Student, training: TrainingSettings
) -> tuple[Callable[[torch.Generator], AlignedCrops], AlignedCrops, Tensor, torch.Generator]:
    """Return what draws batches on the scale of a network, and held-out crops with their noise.

    Also the generator that drew the noise.
    """
    image = network.normalize(crops.light[:, 0].float(), crops.brightness).half()
    samples = replace(crops, light=image)
    learn, held = split_tracks(samples.track, training.seed)
    generator = torch_rng(training.seed, name, "held out")
    check = samples.at(held[torch.randint(len(held), (_CHECKED,), generator=generator)])
    noise = torch.randn(check.light.shape, generator=generator)
    return _make_batches(samples, learn, training.batch), check, noise, generator


def _make_batches(
    samples: AlignedCrops, rows: Tensor, size: int
) -> Callable[[torch.Generator], AlignedCrops]:
    """Return what draws batches: all tracks alike, stages of mitosis more often, mirrored."""
    common = list(group_rows(rows, samples.track).values())
    rare = [rows for stage, rows in group_rows(rows, samples.stage).items() if stage > 0]
    few = round(MITOSIS_FRACTION * size) if rare else 0

    def draw(generator: torch.Generator) -> AlignedCrops:
        drawn = draw_rows(common, size - few, generator) + draw_rows(rare, few, generator)
        return _mirror(samples.at(torch.tensor(drawn)), generator)

    return draw


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
    with run_mixed(device):
        velocity = model(noisy, level, edge, brightness, stage)
    target = angle.cos() * noise - angle.sin() * image
    weight = samples.known.to(device) * torch.where(edge < 1, 1.0, BACKGROUND_WEIGHT)
    error = (velocity - target).square() * weight
    loss: Tensor = error.sum() / weight.sum().clamp(min=1)
    return loss


# Our recipe; ``bvdm-data info`` prints the losses that it came to.
STUDENT_TRAINING = TrainingSettings(steps=8000, batch=64, rate=1e-3)
# Images that the denoiser renders for the student to learn from (our choice: with half as many the
# held-out loss is the same within 2 %).
PAIRS = 16_384
# Share of the images that is drawn from the stages of mitosis, which are rare.
STUDENT_MITOSIS_FRACTION = 0.25
_FRAMES = 8  # of the lives that outlines are drawn from
_HELD_OUT = 512


@dataclass(frozen=True)
class _DistillationPairs:
    """Noise, the conditions of each nucleus, and what the denoiser makes of them."""

    noise: Tensor  # [n, 1, P, P] bfloat16
    picture: Tensor  # [n, 1, P, P] bfloat16, on the scale of the network
    radii: Tensor  # outlines that fit into the patch, px, [n, K] float32
    brightness: Tensor  # [n] float32
    stage: Tensor  # [n] int64


def sample_teacher_pairs(
    teacher: Denoiser,
    shapes: ShapeModel,
    lives: CellCycleModel,
    run: Run,
    *,
    count: int = PAIRS,
    seed: int = 0,
) -> _DistillationPairs:
    """Let the denoiser render nuclei of all ages, as large and as bright as clips may vary them."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    radii, brightness, stage = _draw_conditions(shapes, lives, count, seed)
    patch = teacher.settings.patch
    radii = radii * fit_to_patch_scale(radii, patch)[:, None]
    generator = torch_rng(seed, "distilled", "noise")
    noise = torch.empty(count, 1, patch, patch, dtype=torch.bfloat16)
    picture = torch.empty_like(noise)
    path, device = run.checkpoint.with_suffix(".pairs"), run.device
    weights = teacher.cpu().state_dict().values()
    purpose = compute_fingerprint(teacher.settings, seed, radii, brightness, stage, *weights)
    kept = read_state(path)
    done = len(kept["picture"]) if kept.get("purpose") == purpose else 0
    picture[:done] = kept["picture"] if done else 0
    teacher, saved = teacher.to(device), time.monotonic()
    bar = open_bar(run.progress, "pairs", count, done)
    parts = torch.arange(count).split(BATCH)  # type: ignore[no-untyped-call]
    with torch.no_grad(), run_mixed(device):
        for part in parts:
            noise[part] = torch.randn(len(part), 1, patch, patch, generator=generator).bfloat16()
            end = int(part[-1]) + 1
            if end <= done:
                continue
            edge = compute_signed_distance_map(radii[part], patch)
            start, *conditions = (
                x.to(device) for x in (noise[part].float(), edge, brightness[part], stage[part])
            )
            rendered = run_dpm_solver(teacher, start, STUDENT_STEPS, *conditions)
            picture[part] = rendered.bfloat16().cpu()
            bar.update(len(part))
            if end == count or time.monotonic() > saved + SAVE_SECONDS:
                write_state(path, {"purpose": purpose, "picture": picture[:end].clone()})
                saved = time.monotonic()
    bar.close()
    return _DistillationPairs(noise, picture, radii, brightness, stage)


def _draw_conditions(
    shapes: ShapeModel, lives: CellCycleModel, count: int, seed: int
) -> tuple[Float[Tensor, "n K"], Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Draw outlines, brightness and stages out of lives, with more of the rare stages."""
    rng = numpy_rng(seed, "distilled", "lives")
    calm: list[tuple[Array, float, int]] = []
    mitotic: list[tuple[Array, float, int]] = []
    rare = int(STUDENT_MITOSIS_FRACTION * count)
    for _ in range(4 * count):
        if len(calm) >= count - rare and len(mitotic) >= rare:
            break
        size, light = np.exp(np.array([SIZE, BRIGHTNESS]) * rng.standard_normal(2))
        for life in LineageSimulator(shapes, lives, _FRAMES, rng).grow(rng.random(1))[0]:
            t = int(rng.integers(len(life.stages)))
            stage = int(life.looks[t])
            nucleus = (size * life.radii[t], light * life.brightness[t], stage)
            (mitotic if stage > 0 else calm).append(nucleus)
    chosen = (calm[: count - rare] + mitotic[:rare]) or calm or mitotic
    order = rng.permutation(count)
    outlines, bright, stages = zip(*(chosen[i % len(chosen)] for i in order), strict=True)
    radii = torch.from_numpy(np.stack(outlines)).float()
    return radii, torch.tensor(bright).float(), torch.tensor(stages)


def train_student(
    pairs: _DistillationPairs,
    teacher: Denoiser,
    training: TrainingSettings,
    run: Run,
    start: Student | None = None,
) -> tuple[Student, TrainingLog]:
    """Train the student on pairs (Luhman & Luhman 2021)."""
    patch, floor = teacher.settings.patch, teacher.settings.floor
    if start is None:
        settings = StudentConfig(patch=patch, floor=floor)
    else:
        # The weights do not depend on the side of the patch.
        settings = replace(start.settings, patch=patch, floor=floor)
    images = (values.view(torch.int16) for values in (pairs.noise, pairs.picture))
    return train_network(
        "distilled",
        lambda: Student(settings).to(memory_format=torch.channels_last),
        lambda _: _make_student_losses(pairs, settings, training),
        training,
        run,
        data=(settings, *images, pairs.radii, pairs.brightness, pairs.stage),
        start=start,
    )


def _make_student_losses(
    pairs: _DistillationPairs, settings: StudentConfig, training: TrainingSettings
) -> Losses:
    """Return the training loss, and the share of held-out textures that the student misses."""
    held = min(_HELD_OUT, len(pairs.radii) // 4)
    check = group_by_patch_size(pairs.radii[:held], settings.patch)
    learn = group_by_patch_size(pairs.radii[held:], settings.patch)
    common = torch.tensor([float(len(rows)) for _, rows in learn])

    def train_loss(model: nn.Module, step: int) -> Tensor:
        generator = torch_rng(training.seed, "distilled", step)
        size, group = learn[int(common.multinomial(1, generator=generator))]
        drawn = group[torch.randint(len(group), (training.batch,), generator=generator)]
        error, _, edge = _render(model, pairs, held + drawn, size)
        weight = fade_halo(edge)[:, None]  # what lies farther out is not used
        loss: Tensor = (error * weight).sum() / weight.sum().clamp(min=1)
        return loss

    def val_loss(model: nn.Module) -> float:
        missed, spread = 0.0, 0.0
        for size, group in check:
            for part in group.split(BATCH):  # type: ignore[no-untyped-call]
                error, target, edge = _render(model, pairs, part, size)
                inside = edge <= 0
                missed += float(error[inside].sum())
                mean = (target * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)
                spread += float(((target - mean.view(-1, 1, 1, 1)).square() * inside).sum())
        return missed / spread if spread else math.nan

    return train_loss, val_loss


def _render(
    model: nn.Module, pairs: _DistillationPairs, rows: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return squared errors, targets and signed distances of rows in patches of a size."""
    device = next(model.parameters()).device
    high, wide = cut_centre(pairs.noise.shape[-1], size)
    noise, target = (
        images[rows, :, high, wide].float().to(device) for images in (pairs.noise, pairs.picture)
    )
    edge = compute_signed_distance_map(pairs.radii[rows], *size).to(device)
    brightness, stage = pairs.brightness[rows].to(device), pairs.stage[rows].to(device)
    with run_mixed(device):
        rendered = model(noise, edge, brightness, stage)
    return (rendered - target).square(), target, edge
