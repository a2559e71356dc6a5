"""Distillation: a small network learns to render in one call what the denoiser does in several."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from bvdm_data.fitting.training import Losses, Run, TrainingLog, TrainingSettings, train_network
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.cell_cycle import CellCycleModel
from bvdm_data.synth.cells import LineageSimulator
from bvdm_data.synth.contours import Array, ShapeModel
from bvdm_data.synth.denoiser import (
    PATCH_MARGIN,
    Denoiser,
    Student,
    StudentConfig,
    compute_signed_distance_map,
    fit_to_patch_scale,
    run_dpm_solver,
)
from bvdm_data.synth.model import BRIGHTNESS, SIZE
from bvdm_data.synth.textures import BATCH, STUDENT_STEPS, fade_halo

# Our recipe; ``bvdm-data info`` prints the losses that it came to.
STUDENT_TRAINING = TrainingSettings(steps=8000, batch=64, rate=1e-3)
# Images that the denoiser renders for the student to learn from (our choice: with half as many the
# held-out loss is the same within 2 %).
PAIRS = 16_384
# Share of the images that is drawn from the stages of mitosis, which are rare.
MITOSIS_FRACTION = 0.25
# Each batch of this number has the patch that fewer nuclei need, and is half as large.
LARGE_PATCH_EVERY = 8
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
    device = run.device
    teacher = teacher.to(device)
    parts = torch.arange(count).split(BATCH)  # type: ignore[no-untyped-call]
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for part in tqdm(parts, desc="pairs", disable=not run.progress):
            noise[part] = torch.randn(len(part), 1, patch, patch, generator=generator).bfloat16()
            edge = compute_signed_distance_map(radii[part], patch)
            start, *conditions = (
                x.to(device) for x in (noise[part].float(), edge, brightness[part], stage[part])
            )
            rendered = run_dpm_solver(teacher, start, STUDENT_STEPS, *conditions)
            picture[part] = rendered.bfloat16().cpu()
    return _DistillationPairs(noise, picture, radii, brightness, stage)


def _draw_conditions(
    shapes: ShapeModel, lives: CellCycleModel, count: int, seed: int
) -> tuple[Float[Tensor, "n K"], Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Draw outlines, brightness and stages out of lives, with more of the rare stages."""
    rng = numpy_rng(seed, "distilled", "lives")
    calm: list[tuple[Array, float, int]] = []
    mitotic: list[tuple[Array, float, int]] = []
    rare = int(MITOSIS_FRACTION * count)
    for _ in range(4 * count):
        if len(calm) >= count - rare and len(mitotic) >= rare:
            break
        size, light = np.exp(np.array([SIZE, BRIGHTNESS]) * rng.standard_normal(2))
        for life in LineageSimulator(shapes, lives, _FRAMES, rng).run(1):
            t = int(rng.integers(len(life.stages)))
            stage = int(life.stages[t])
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
        settings = StudentConfig(patch=patch, small_patch=_choose_small_patch(patch), floor=floor)
    else:
        # The weights do not depend on the sides of the patches.
        small = min(start.settings.small_patch, patch)
        settings = replace(start.settings, patch=patch, small_patch=small, floor=floor)
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


def _choose_small_patch(patch: int) -> int:
    """Return the side of small patches: three quarters of the whole, a multiple of 8 from 16 on.

    Our choice: the most common nuclei fit, at little more than half of the cost.
    """
    return max(16, 3 * patch // 32 * 8)


def _make_student_losses(
    pairs: _DistillationPairs, settings: StudentConfig, training: TrainingSettings
) -> Losses:
    """Return the training loss, and the share of held-out textures that the student misses."""
    rows = torch.arange(len(pairs.radii))
    is_held = rows < min(_HELD_OUT, len(rows) // 4)
    fits = pairs.radii.amax(1) <= settings.small_patch / 2 - PATCH_MARGIN
    sides = {settings.small_patch: fits, settings.patch: ~fits}
    if settings.small_patch == settings.patch:
        sides = {settings.patch: torch.ones_like(fits)}
    check = [(side, rows[own & is_held]) for side, own in sides.items()]
    learn = [(side, rows[own & ~is_held]) for side, own in sides.items()]
    usual, *others = sorted(learn, key=lambda group: len(group[1]), reverse=True)
    rare = [group for group in others if len(group[1])]

    def train_loss(model: nn.Module, step: int) -> Tensor:
        generator = torch_rng(training.seed, "distilled", step)
        (side, group), size = usual, training.batch
        if rare and step % LARGE_PATCH_EVERY == LARGE_PATCH_EVERY - 1:
            (side, group), size = rare[0], max(1, training.batch // 2)
        drawn = group[torch.randint(len(group), (size,), generator=generator)]
        error, _, edge = _render(model, pairs, drawn, side)
        weight = fade_halo(edge)[:, None]  # what lies farther out is not used
        loss: Tensor = (error * weight).sum() / weight.sum().clamp(min=1)
        return loss

    def val_loss(model: nn.Module) -> float:
        missed, spread = 0.0, 0.0
        for side, group in check:
            for part in group.split(BATCH) if len(group) else ():  # type: ignore[no-untyped-call]
                error, target, edge = _render(model, pairs, part, side)
                inside = edge <= 0
                missed += float(error[inside].sum())
                mean = (target * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)
                spread += float(((target - mean.view(-1, 1, 1, 1)).square() * inside).sum())
        return missed / spread if spread else math.nan

    return train_loss, val_loss


def _render(
    model: nn.Module, pairs: _DistillationPairs, rows: Tensor, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return squared errors, targets and signed distances of rows in patches of a side."""
    device = next(model.parameters()).device
    rim = (pairs.noise.shape[-1] - side) // 2
    inner = slice(rim, rim + side)
    noise, target = (
        images[rows, :, inner, inner].float().to(device) for images in (pairs.noise, pairs.picture)
    )
    edge = compute_signed_distance_map(pairs.radii[rows], side).to(device)
    brightness, stage = pairs.brightness[rows].to(device), pairs.stage[rows].to(device)
    with torch.autocast(device.type, torch.bfloat16):
        rendered = model(noise, edge, brightness, stage)
    return (rendered - target).square(), target, edge
