"""Distillation: trains one call of a lean network to draw what several calls of the painter do."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from bvdm_data.fitting.training import TrainingLog, TrainingSettings, compute_fingerprint, train
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.cell_cycle import CellCycleModel
from bvdm_data.synth.cells import LineageSimulator
from bvdm_data.synth.contours import ShapeModel
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

STUDENT_TRAINING = TrainingSettings(steps=8000, batch=64, rate=1e-3)
"""Our recipe; ``bvdm-data info`` prints the losses that it came to."""

PAIRS = 16_384
"""Pictures that the painter draws for the network to learn from (our choice: with half as many
the held-out loss is the same within 2 %)."""

MITOSIS_FRACTION = 0.25
"""Share of the pictures that is drawn from the stages of mitosis, which are rare."""

LARGE_PATCH_EVERY = 8
"""One batch out of so many is of the size of picture that fewer nuclei need, mostly the whole
patch, and half as large."""

_FILM = 8  # frames of the lives whose moments are painted
_HELD_OUT = 512


@dataclass(frozen=True)
class DistillationPairs:
    """Noise, what a nucleus is like, and what the painter draws."""

    noise: Tensor  # [n, 1, P, P] bfloat16
    picture: Tensor  # [n, 1, P, P] bfloat16, on the scale of the network
    radii: Tensor  # outlines that fit into the patch, px, [n, K] float32
    brightness: Tensor  # [n] float32
    stage: Tensor  # [n] int64


def sample_teacher_pairs(
    painter: Denoiser,
    shapes: ShapeModel,
    lives: CellCycleModel,
    *,
    count: int = PAIRS,
    seed: int = 0,
    device: torch.device | None = None,
    progress: bool = True,
) -> DistillationPairs:
    """Let the painter draw moments out of lives, as large and as bright as clips may vary them."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    radii, brightness, stage = _moments(shapes, lives, count, seed)
    patch = painter.settings.patch
    radii = radii * fit_to_patch_scale(radii, patch)[:, None]
    generator = torch_rng(seed, "distilled", "noise")
    noise = torch.empty(count, 1, patch, patch, dtype=torch.bfloat16)
    picture = torch.empty_like(noise)
    painter = painter.to(device)
    place = next(painter.parameters()).device
    parts = torch.arange(count).split(BATCH)  # type: ignore[no-untyped-call]
    with torch.no_grad(), torch.autocast(place.type, torch.bfloat16):
        for part in tqdm(parts, desc="pairs", disable=not progress):
            noise[part] = torch.randn(len(part), 1, patch, patch, generator=generator).bfloat16()
            start = noise[part].float().to(place)
            edge = compute_signed_distance_map(radii[part], patch).to(place)
            known = brightness[part].to(place), stage[part].to(place)
            drawn = run_dpm_solver(painter, start, STUDENT_STEPS, edge, *known)
            picture[part] = drawn.bfloat16().cpu()
    return DistillationPairs(noise, picture, radii, brightness, stage)


def _moments(
    shapes: ShapeModel, lives: CellCycleModel, count: int, seed: int
) -> tuple[Float[Tensor, "n K"], Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Draw outlines, brightness and stages out of lives, with more of the rare stages."""
    draws = numpy_rng(seed, "distilled", "lives")
    groups: tuple[list[tuple[np.ndarray, float, int]], ...] = ([], [])
    wanted = (count - int(MITOSIS_FRACTION * count), int(MITOSIS_FRACTION * count))
    tries = 0
    while (len(groups[0]) < wanted[0] or len(groups[1]) < wanted[1]) and tries < 4 * count:
        tries += 1
        size, light = np.exp(np.array([SIZE, BRIGHTNESS]) * draws.standard_normal(2))
        for life in LineageSimulator(shapes, lives, _FILM, draws).run(1):
            moment = int(draws.integers(len(life.stages)))
            stage = int(life.stages[moment])
            drawn = (size * life.radii[moment], light * life.brightness[moment], stage)
            groups[stage > 0].append(drawn)
    chosen = (groups[0][: wanted[0]] + groups[1][: wanted[1]]) or groups[0] or groups[1]
    chosen = [chosen[number % len(chosen)] for number in range(count)]
    order = draws.permutation(count)
    outlines, bright, stages = zip(*(chosen[number] for number in order), strict=True)
    return (
        torch.from_numpy(np.stack(outlines)).float(),
        torch.tensor(bright).float(),
        torch.tensor(stages),
    )


def train_student(
    pairs: DistillationPairs,
    painter: Denoiser,
    *,
    checkpoint: Path,
    training: TrainingSettings = STUDENT_TRAINING,
    start: Student | None = None,
    device: torch.device | None = None,
    progress: bool = True,
) -> tuple[Student, TrainingLog]:
    """Train the distilled network on pairs (Luhman & Luhman 2021)."""
    patch, floor = painter.settings.patch, painter.settings.floor
    if start is None:
        settings = StudentConfig(patch=patch, small_patch=choose_small_patch(patch), floor=floor)
    else:
        # The weights do not depend on the sides of the pictures.
        narrow = min(start.settings.small_patch, patch)
        settings = replace(start.settings, patch=patch, small_patch=narrow, floor=floor)
    with torch.random.fork_rng(devices=[]):
        seed = torch_rng(training.seed, "distilled", "weights").initial_seed()
        torch.default_generator.manual_seed(seed)
        network = Student(settings)
    if start is not None:
        network.load_state_dict(start.state_dict())
    loss_at, held_out = make_student_losses(pairs, settings, training)
    network = network.to(device).to(memory_format=torch.channels_last)
    begin = () if start is None else tuple(start.state_dict().values())
    purpose = compute_fingerprint(
        "distilled", settings, training.batch, training.rate, training.average, training.seed,
        *(part.view(torch.int16) for part in (pairs.noise, pairs.picture)),
        pairs.radii, pairs.brightness, pairs.stage, *begin,
    )  # fmt: skip
    log = train(
        network, loss_at, held_out, training,
        checkpoint=checkpoint, purpose=purpose, progress=progress,
    )  # fmt: skip
    return network.cpu(), log


def choose_small_patch(patch: int) -> int:
    """Return the side of narrow pictures: three quarters of the patch, a multiple of 8 from 16 on.

    Our choice: the most common nuclei fit, and a picture costs little more than half.

    Examples:
        >>> narrow_of(64)
        48
    """
    return max(16, 3 * patch // 32 * 8)


def make_student_losses(
    pairs: DistillationPairs, settings: StudentConfig, training: TrainingSettings
) -> tuple[Callable[[nn.Module, int], Tensor], Callable[[nn.Module], float]]:
    """Return what the network learns to make small, and the same on pairs that it never sees."""
    rows = torch.arange(len(pairs.radii))
    held = min(_HELD_OUT, len(rows) // 4)
    fits = pairs.radii.amax(1) <= settings.small_patch / 2 - PATCH_MARGIN
    sides = {settings.small_patch: fits, settings.patch: ~fits}
    if settings.small_patch == settings.patch:
        sides = {settings.patch: torch.ones_like(fits)}
    checked = [(side, rows[some & (rows < held)]) for side, some in sides.items()]
    learnt = [(side, rows[some & (rows >= held)]) for side, some in sides.items()]
    usual, *others = sorted(learnt, key=lambda group: len(group[1]), reverse=True)
    rare = [group for group in others if len(group[1])]

    def loss_at(model: nn.Module, step: int) -> Tensor:
        generator = torch_rng(training.seed, "distilled", step)
        (side, some), size = usual, training.batch
        if rare and step % LARGE_PATCH_EVERY == LARGE_PATCH_EVERY - 1:
            (side, some), size = rare[0], max(1, training.batch // 2)
        drawn = torch.randint(len(some), (size,), generator=generator)
        error, weight, _ = _miss(model, pairs, some[drawn], side)
        loss: Tensor = error.sum() / weight.sum().clamp(min=1)
        return loss

    def held_out(model: nn.Module) -> float:
        missed, spread = 0.0, 0.0
        for side, some in checked:
            for part in some.split(BATCH) if len(some) else ():  # type: ignore[no-untyped-call]
                error, _, wanted = _miss(model, pairs, part, side)
                inside = _edge(pairs, part, side).to(error.device) <= 0
                missed += float(error[inside].sum())
                mean = (wanted * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)
                spread += float(((wanted - mean.view(-1, 1, 1, 1)).square() * inside).sum())
        return missed / spread if spread else math.nan

    return loss_at, held_out


def _edge(pairs: DistillationPairs, rows: Tensor, side: int) -> Float[Tensor, "N 1 P P"]:
    return compute_signed_distance_map(pairs.radii[rows], side)


def _miss(
    model: nn.Module, pairs: DistillationPairs, rows: Tensor, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted square of what a network misses, the weight, and the pictures."""
    device = next(model.parameters()).device
    rim = (pairs.noise.shape[-1] - side) // 2
    inner = slice(rim, rim + side)
    noise, wanted = (
        part[rows, :, inner, inner].float().to(device) for part in (pairs.noise, pairs.picture)
    )
    edge = _edge(pairs, rows, side).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        drawn = model(noise, edge, pairs.brightness[rows].to(device), pairs.stage[rows].to(device))
    weight = fade_halo(edge)[:, None]  # what lies farther out is not used
    return (drawn - wanted).square() * weight, weight, wanted
