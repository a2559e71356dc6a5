"""Fast texture: every frame of every nucleus is drawn at once, from noise that drifts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bvdm_data.synth.cells import Cell
from bvdm_data.synth.denoiser import (
    SDF_CLIP,
    Denoiser,
    Student,
    compute_signed_distance_map,
    fit_to_patch_scale,
    run_dpm_solver,
)
from bvdm_data.system import profile_span


@dataclass(frozen=True)
class DenoiserInputs:
    """What the network is told about nuclei of one size of picture; on the CPU."""

    noise: Tensor  # standard normal numbers, [M, P, P]
    radii: Tensor  # outlines, px, [M, K]
    brightness: Tensor  # mean light inside the outlines, grey values, [M]
    stage: Tensor  # index into STAGES, [M]
    rows: Tensor  # as in bvdm_data.synth.textures.RenderedPatches
    moments: Tensor  # as in bvdm_data.synth.textures.RenderedPatches
    zoom: Tensor  # as in bvdm_data.synth.textures.RenderedPatches


def make_denoiser_inputs(
    lives: Sequence[Cell],
    views: Sequence[tuple[int, int]],
    painter: Denoiser | Student,
    memory: float,
    fresh: float,
    generators: Sequence[torch.Generator],
) -> list[DenoiserInputs]:
    """Draw the noise of nuclei, and tell what else the network must know to paint them."""
    patch = painter.settings.patch
    with profile_span("noise"):
        noise = _draw_ar1_noise(lives, patch, memory, fresh, generators)
    seen = [(n, f) for n, (first, last) in enumerate(views) for f in range(first, last + 1)]
    if not seen:
        return []
    rows, moments = torch.tensor(seen).unbind(1)
    shown = [(lives[n], f - lives[n].first) for n, f in seen]
    radii = torch.from_numpy(np.stack([life.radii[m] for life, m in shown])).float()
    brightness = torch.tensor([float(life.brightness[m]) for life, m in shown])
    stage = torch.tensor([int(life.stages[m]) for life, m in shown])
    found = []
    for side, group in _group_by_patch_size(painter, radii):
        rim = (patch - side) // 2
        inner = slice(rim, patch - rim)
        drawn = [
            noise[n][f - lives[n].first, inner, inner] for n, f in (seen[g] for g in group.tolist())
        ]
        found.append(
            DenoiserInputs(
                torch.stack(drawn), radii[group], brightness[group], stage[group],
                rows[group], moments[group], fit_to_patch_scale(radii[group], side),
            )
        )  # fmt: skip
    return found


def _group_by_patch_size(
    painter: Denoiser | Student, radii: Float[Tensor, "N K"]
) -> list[tuple[int, Tensor]]:
    """Group nuclei by the side of the picture that they need."""
    narrow = torch.zeros(len(radii), dtype=torch.bool)
    side = painter.settings.patch
    if isinstance(painter, Student):
        narrow, side = painter.fits_small_patch(radii), painter.settings.small_patch
    groups = [(side, narrow.nonzero()[:, 0]), (painter.settings.patch, (~narrow).nonzero()[:, 0])]
    return [(side, group) for side, group in groups if len(group)]


def _draw_ar1_noise(
    lives: Sequence[Cell],
    patch: int,
    memory: float,
    fresh: float,
    generators: Sequence[torch.Generator],
) -> list[Float[Tensor, "n P P"]]:
    """Draw the noise of every life, frame by frame."""
    renewed = math.sqrt(1 - memory**2)
    ends: dict[int, Tensor] = {}
    found = []
    for life, generator in zip(lives, generators, strict=True):
        count = len(life.stages)
        lasting, passing = torch.randn((2, count, patch, patch), generator=generator)
        before = ends.get(life.parent)
        for now in lasting:
            if before is not None:
                now.mul_(renewed).add_(before, alpha=memory)
            before = now
        ends[life.identity] = lasting[-1]
        found.append(math.sqrt(1 - fresh) * lasting + math.sqrt(fresh) * passing)
    return found


BATCH = 64
"""Pictures that go through the network together."""

STUDENT_STEPS = 6
"""Calls of the painter whose outcome the distilled network learns."""

BRIGHTEST = 4.0
"""Light over brightness at which a picture is clipped; none of the HeLa video's is beyond it."""

_FADE = 3.0
"""Width in pixels of the rim over which the halo fades to nothing at ``REACH``."""


@dataclass(frozen=True, kw_only=True)
class TextureModel:
    """How long a texture lasts; from the video.

    The noise from which a nucleus is painted has a lasting part and a fresh one.
    """

    memory: float  # correlation of the lasting part with that of the frame before, from 0 to 1
    fresh: float  # share of the variance that is new in every frame, from 0 to 1


@dataclass(frozen=True, kw_only=True)
class FastSettings:
    """How nuclei are painted by the library's own method.

    Attributes:
        steps: Calls of the network a picture. 1: by the distilled network, which learnt to draw
            at once what the painter draws in ``DISTILLED_STEPS``; more: by the painter itself.
        families: Whether nuclei live and move as those of the video do, see
            :func:`bvdm_data.synth.motion.simulate_colony`; False: as in the paper's scenes.
        memory: As in :class:`TextureModel`; None: that of the fitted video.
        fresh: As in :class:`TextureModel`; None: that of the fitted video.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range.
    """

    steps: int = 1
    families: bool = True
    memory: float | None = None
    fresh: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot make a picture."""
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise TypeError(f"steps must be an int, got {self.steps!r}")
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"steps must be from 1 to 1000, got {self.steps}")
        if not isinstance(self.families, bool):
            raise TypeError(f"families must be True or False, got {self.families!r}")
        for name in ("memory", "fresh"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number or None, got {value!r}")
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")

    def drift(self, texture: TextureModel) -> tuple[float, float]:
        """Return memory and fresh share of textures.

        Args:
            texture: Of the fitted video, for what is not overruled.
        """
        return (
            texture.memory if self.memory is None else self.memory,
            texture.fresh if self.fresh is None else self.fresh,
        )


@dataclass(frozen=True)
class RenderedPatches:
    """Painted nuclei of one size of picture."""

    # light above the background in grey values, halo included, each in its own orientation, [M, P,
    # P]; where the network is
    light: Tensor
    rows: Tensor  # which nucleus each shows, [M]; on the CPU
    moments: Tensor  # in which frame of the film, [M]
    # pixels of the picture to a pixel of the film, [M]: 1 but for nuclei that are too large for
    # their picture
    zoom: Tensor


def render_textures(
    lives: Sequence[Cell],
    views: Sequence[tuple[int, int]],
    painter: Denoiser | Student,
    texture: TextureModel,
    settings: FastSettings,
    generators: Sequence[torch.Generator],
    *,
    on_part: Callable[[float], object] | None = None,
) -> list[RenderedPatches]:
    """Paint nuclei, all frames at once.

    The paper carries a texture from frame to frame by a flow and refreshes it by a few diffusion
    steps. Here what is carried is the noise that a texture grows from: it belongs to the nucleus,
    turns with it and drifts as slowly as the video's textures do, and every frame is painted from
    it anew, for the outline, the brightness and the stage of that frame. Nothing is resampled, so
    nothing blurs or drifts apart from its outline, and no frame waits for the one before.
    Daughters begin with the noise of their mother.
    """
    groups = make_denoiser_inputs(lives, views, painter, *settings.drift(texture), generators)
    return run_denoiser_batched(groups, painter, settings, on_part=on_part)


def run_denoiser_batched(
    groups: Sequence[DenoiserInputs],
    painter: Denoiser | Student,
    settings: FastSettings,
    *,
    on_part: Callable[[float], object] | None = None,
) -> list[RenderedPatches]:
    """Paint nuclei whose noise is there."""
    count, found, done = sum(len(group.rows) for group in groups), [], 0
    if not groups and on_part is not None:
        on_part(1.0)
    for group in groups:
        told = (group.noise, group.radii, group.brightness, group.stage)
        calls, light = math.ceil(len(group.rows) / BATCH), []
        for some in zip(*(numbers.tensor_split(calls) for numbers in told), strict=True):
            light.append(denoise_patches(painter, *some, steps=settings.steps))
            done += len(some[0])
            if on_part is not None:
                on_part(done / count)
        found.append(RenderedPatches(torch.cat(light), group.rows, group.moments, group.zoom))
    return found


@torch.no_grad()
def denoise_patches(
    painter: Denoiser | Student,
    noise: Float[Tensor, "N P P"],
    radii: Float[Tensor, "N K"],
    brightness: Float[Tensor, " N"],
    stage: Int[Tensor, " N"],
    *,
    steps: int,
) -> Float[Tensor, "N P P"]:
    """Paint nuclei from noise."""
    patch = noise.shape[-1]
    device = next(painter.parameters()).device
    with profile_span("outlines"):
        radii = radii * fit_to_patch_scale(radii, patch)[:, None]
        edge = compute_signed_distance_map(radii, patch).to(device)
    brightness, stage = brightness.to(device), stage.to(device)
    start = noise[:, None].to(device)
    with profile_span("network"), torch.autocast(device.type, torch.bfloat16):
        if isinstance(painter, Student):
            picture = painter(start, edge, brightness, stage)
        else:
            picture = run_dpm_solver(painter, start, steps, edge, brightness, stage)
    light = painter.denormalize(picture, brightness).nan_to_num(0)
    most = BRIGHTEST * brightness[:, None, None]
    # No nucleus makes its surroundings darker than the noise of the background does.
    light = light.clamp(-most.clamp(max=painter.floor), most) * fade_halo(edge)
    inside = (edge[:, 0] <= 0).float()
    mean = (light * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    # The network meets the brightness that it is given within a few per cent.
    gain = (brightness / mean.clamp(min=1e-6)).clamp(0.5, 2)
    return light * gain[:, None, None]


def fade_halo(edge: Float[Tensor, "N 1 P P"]) -> Float[Tensor, "N P P"]:
    """Return the share of the light that is kept: 1, but falling to 0 towards ``REACH``."""
    return ((1 - edge[:, 0]) * (SDF_CLIP / _FADE)).clamp(0, 1)
