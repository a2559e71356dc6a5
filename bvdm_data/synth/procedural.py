"""Procedural texture: filtered noise inside the outline, carried by the map between outlines."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.clip import PHASES
from bvdm_data.synth.cells import Cell
from bvdm_data.synth.contours import interpolate_radius
from bvdm_data.synth.denoiser import make_pixel_grid
from bvdm_data.synth.model import Model
from bvdm_data.synth.networks import FLOW_SIZE
from bvdm_data.synth.scene import (
    Method,
    Progress,
    Scene,
    TexturePatches,
    Textures,
    skip_progress,
)
from bvdm_data.validate import Rule, check_fields

_LENGTH = Rule(float, least=0.5, most=16)
"""Half a pixel is the finest that is sampled, 16 px are a whole nucleus."""

_SHARE = Rule(float, least=0, most=1)

_MOST_NUCLEOLI = 20
_NUCLEOLUS_REACH = 0.7
"""How far from the centroid nucleoli lie at most, as a share of the way to the outline."""

_NUCLEOLUS_SEEN = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 0.0])
"""How much of a nucleolus is there in each stage: it dissolves in prophase."""


@dataclass(frozen=True, kw_only=True)
class ProceduralSettings(Method):
    """How nuclei look that no network renders; in the spirit of MitoGen (Svoboda & Ulman 2017).

    The defaults were measured on video 01 of Fluo-N2DL-HeLa: ``benchmarks/measure_texture.py``
    prints the same tables for that video and for a procedural one. Noise of the camera is not
    among them; the scene adds it.

    Attributes:
        grain: Size of the finest chromatin that is seen: standard deviation of the Gaussian by
            which white noise is smoothed, px.
        clumps: The same of coarser unevenness, px.
        clump_share: Share of the clumps in the variance of the chromatin, from 0 to 1.
        contrast: Standard deviation of the chromatin's light over its mean, in each of the six
            ``PHASES``.
        memory: Correlation of the chromatin with that of the frame before, in the nucleus' own
            coordinates, but for what is fresh; 1: frozen, 0: new in every frame.
        fresh: Share of the grain's variance that is new in every frame, as chromatin comes into
            focus and leaves it; clumps have none.
        nucleoli: Least and most number of dark spots in a nucleus. They stay at their places in
            it; half of their depth is left in prophase, nothing in the later stages.
        nucleolus_size: Standard deviation of the Gaussian profile of a spot, px.
        nucleolus_depth: Share of the light that is missing in the middle of a spot.
        dome: How much thicker a nucleus is in its middle: at a share s of the way to its end the
            light is ``(1 - s^2)^dome``; 0: a flat plate, .5: an ellipsoid.
        blur: Standard deviation of the Gaussian blur that softens the edge, px.
        inset: How far inside the outline the lit body ends before it is blurred, in each of the
            six ``PHASES``, px; negative: outside.
        mask_level: Mean relative light of a nucleus, as in :class:`PaperSettings`.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range.
    """

    grain: float = 1.0
    clumps: float = 5.5
    clump_share: float = 0.5
    contrast: tuple[float, ...] = (0.16, 0.18, 0.28, 0.25, 0.22, 0.14)
    memory: float = 0.93
    fresh: float = 0.35
    nucleoli: tuple[int, int] = (1, 3)
    nucleolus_size: float = 2.0
    nucleolus_depth: float = 0.25
    dome: float = 0.2
    blur: float = 1.5
    inset: tuple[float, ...] = (0.9, 0.9, 2.4, 2.9, 2.6, 1.8)
    mask_level: float = 150 / 255

    def __post_init__(self) -> None:
        """Refuse numbers that make no texture."""
        check_fields(
            self, grain=_LENGTH, clumps=_LENGTH, clump_share=_SHARE, memory=_SHARE, fresh=_SHARE,
            nucleolus_size=_LENGTH, nucleolus_depth=_SHARE, dome=Rule(float, least=0, most=2),
            blur=_LENGTH, mask_level=Rule(float, above=0, most=1),
        )  # fmt: skip
        _check_stages("contrast", self.contrast, Rule(float, least=0, most=0.5))
        _check_stages("inset", self.inset, Rule(float, least=-8, most=8))
        _check_nucleoli(self.nucleoli)

    def render_textures(
        self, scene: Scene, model: Model, progress: Progress = skip_progress
    ) -> Textures:
        """Render without a network."""
        return render_procedural_textures(
            scene.lives, scene.settings.frames,
            replace(self, memory=self.memory**scene.settings.step), scene.make_texture_rngs(),
            keep_flow=scene.settings.flow, progress=progress,
        ).finish(scene, self.mask_level)  # fmt: skip


def _check_stages(name: str, values: object, rule: Rule) -> None:
    if not isinstance(values, tuple) or len(values) != len(PHASES):
        error = ValueError if isinstance(values, tuple) else TypeError
        raise error(f"{name} must be a tuple of {len(PHASES)} numbers, one a stage, got {values!r}")
    for value in values:
        rule.check(name, value)


def _check_nucleoli(nucleoli: object) -> None:
    if not isinstance(nucleoli, tuple) or [type(n) for n in nucleoli] != [int, int]:
        raise TypeError(f"nucleoli must be a pair (least, most) of ints, got {nucleoli!r}")
    if not 0 <= nucleoli[0] <= nucleoli[1] <= _MOST_NUCLEOLI:
        raise ValueError(f"nucleoli must be 0 <= least <= most <= {_MOST_NUCLEOLI}, got {nucleoli}")


def render_procedural_textures(
    cells: Sequence[Cell],
    frames: int,
    settings: ProceduralSettings,
    rngs: Sequence[torch.Generator],
    *,
    keep_flow: bool = True,
    progress: Progress = skip_progress,
) -> TexturePatches:
    """Render nuclei without a network.

    A nucleus has coordinates of its own: a point keeps its direction from the centroid, and its
    share of the way from there to the outline. Chromatin and nucleoli live in them, so they move
    as the outline does, and the flow is known exactly. Every frame is read from them by a single
    interpolation, so nothing blurs as time goes by.
    """
    texture = torch.zeros(len(cells), frames, FLOW_SIZE, FLOW_SIZE)
    flow = torch.zeros(len(cells), frames - 1 if keep_flow else 0, 2, FLOW_SIZE, FLOW_SIZE)
    pixels = make_pixel_grid(FLOW_SIZE)
    for row, (cell, rng) in enumerate(zip(cells, rngs, strict=True)):
        outline = _measure_outlines(torch.from_numpy(cell.radii).float(), pixels)
        stages = torch.from_numpy(cell.looks)
        body = _draw_body(outline, stages, pixels, settings)
        light = body * _draw_chromatin(cell, outline, stages, pixels, settings, rng)
        inside = pixels.square().sum(0).sqrt() <= outline
        mean = (light * inside).sum((1, 2)) / inside.sum((1, 2))
        texture[row, cell.first : cell.last + 1] = (
            light * (settings.mask_level / mean.clamp(min=1e-3))[:, None, None]
        )
        if keep_flow:
            # A point is where it was on the way from the centroid to the outline.
            stretch = outline[:-1] / outline[1:]
            flow[row, cell.first : cell.last] = (stretch - 1)[:, None] * pixels
        progress((row + 1) / len(cells))
    return TexturePatches(texture, flow)


def _measure_outlines(radii: Float[Tensor, "n K"], pixels: Float[Tensor, "2 P P"]) -> Tensor:
    """Return how far each outline is in the direction of every pixel, ``[n, P, P]`` px."""
    return interpolate_radius(radii, *pixels[:, None].expand(2, len(radii), -1, -1))


def _draw_body(
    outline: Float[Tensor, "n P P"],
    stages: Int[Tensor, " n"],
    pixels: Float[Tensor, "2 P P"],
    settings: ProceduralSettings,
) -> Float[Tensor, "n P P"]:
    """Draw the body without its chromatin, as the microscope blurs it."""
    inset = torch.tensor(settings.inset)[stages][:, None, None]
    end = torch.maximum(outline - inset, outline / 4)
    distance = pixels.square().sum(0).sqrt()
    covered = (end - distance + 0.5).clamp(0, 1)
    thickness = (1 - (distance / (end + 0.5)).square()).clamp(min=0) ** settings.dome
    return _filter(covered * thickness, _make_gaussian(settings.blur))


def _draw_chromatin(
    cell: Cell,
    outline: Float[Tensor, "n P P"],
    stages: Int[Tensor, " n"],
    pixels: Float[Tensor, "2 P P"],
    settings: ProceduralSettings,
    rng: torch.Generator,
) -> Float[Tensor, "n P P"]:
    """Draw the relative unevenness of the light, not below 0, about 1 on average."""
    usual = np.exp(np.log(cell.radii).mean(0))
    spots = _draw_nucleoli(usual, pixels, settings, rng)
    grain = _draw_grain(len(stages), settings, rng)
    # In a nucleus of its usual outline, its own coordinates are pixels.
    whole = _measure_outlines(torch.from_numpy(usual).float()[None], pixels)
    own = pixels * (whole / outline)[:, None]
    layers = torch.stack([grain, spots.expand_as(grain)], 1)
    grid = own.flip(1).movedim(1, -1) / (FLOW_SIZE / 2)
    grain, spots = F.grid_sample(
        layers, grid, "bilinear", padding_mode="border", align_corners=False
    ).unbind(1)
    contrast = torch.tensor(settings.contrast)[stages][:, None, None]
    seen = _NUCLEOLUS_SEEN[stages][:, None, None]
    return (1 + contrast * grain).clamp(min=0) * (1 - seen * spots)


def _draw_grain(
    frames: int, settings: ProceduralSettings, rng: torch.Generator
) -> Float[Tensor, "n P P"]:
    """Draw chromatin of unit variance: fine and coarse noise that forgets itself in time."""
    shape = (2, frames, FLOW_SIZE, FLOW_SIZE)
    lasting, new = torch.randn(shape, generator=rng)
    renewed = math.sqrt(1 - settings.memory**2)
    for before, now in itertools.pairwise(lasting):
        now.mul_(renewed).add_(before, alpha=settings.memory)
    fine, coarse = (_make_gaussian(width).square() for width in (settings.grain, settings.clumps))
    fine *= (1 - settings.clump_share) / fine.mean()
    coarse *= settings.clump_share / coarse.mean()
    kept = (coarse + (1 - settings.fresh) * fine).sqrt()
    return _filter(lasting, kept) + _filter(new, (settings.fresh * fine).sqrt())


def _draw_nucleoli(
    usual: npt.NDArray[np.float64],
    pixels: Float[Tensor, "2 P P"],
    settings: ProceduralSettings,
    rng: torch.Generator,
) -> Float[Tensor, "P P"]:
    """Draw the share of the light that dark spots take, in a nucleus of its usual outline."""
    least, most = settings.nucleoli
    count = int(torch.randint(least, most + 1, (), generator=rng))
    angle, radius = torch.rand((2, count, 1, 1), generator=rng).unbind(0)
    angle, radius = 2 * math.pi * angle, _NUCLEOLUS_REACH * radius.sqrt()
    y, x = angle.cos(), angle.sin()
    radius = radius * interpolate_radius(torch.from_numpy(usual).float().expand(count, -1), y, x)
    squared = (pixels[0] - radius * y).square() + (pixels[1] - radius * x).square()
    spots = settings.nucleolus_depth * torch.exp(-0.5 * squared / settings.nucleolus_size**2)
    return 1 - (1 - spots).prod(0)


def _make_gaussian(width: float) -> Float[Tensor, "P P"]:
    """Return the frequencies' gain in a Gaussian blur of a patch."""
    frequency = 2 * math.pi * torch.fft.fftfreq(FLOW_SIZE)
    line = torch.exp(-0.5 * (width * frequency).square())
    return line[:, None] * line


def _filter(patches: Float[Tensor, "n P P"], gain: Float[Tensor, "P P"]) -> Tensor:
    """Multiply the frequencies of patches by a gain."""
    spectrum: Tensor = torch.fft.rfft2(patches) * gain[:, : patches.shape[-1] // 2 + 1]
    filtered: Tensor = torch.fft.irfft2(spectrum, s=patches.shape[-2:])
    return filtered
