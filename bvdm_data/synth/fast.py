"""Fast texture: every frame of every nucleus is drawn at once, from noise that drifts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bvdm_data.synth.lives import Life
from bvdm_data.synth.painter import REACH, Painter, denoise, edge_map, patch_grid, patch_scale
from bvdm_data.synth.shapes import radius_towards
from bvdm_data.synth.texture import Painted

BATCH = 64
"""Pictures that go through the network together."""

DARKEST, BRIGHTEST = -0.5, 4.0
"""Light over brightness at which a picture is clipped; none of the HeLa video's is beyond it."""

_FADE = 3.0
"""Width in pixels of the rim over which the halo fades to nothing at ``REACH``."""


@dataclass(frozen=True, kw_only=True)
class TextureModel:
    """How long a texture lasts; from the video.

    The noise from which a nucleus is painted has a lasting part and a fresh one.

    Attributes:
        memory: Correlation of the lasting part with that of the frame before, from 0 to 1.
        fresh: Share of the variance that is new in every frame, from 0 to 1.
    """

    memory: float
    fresh: float


@dataclass(frozen=True, kw_only=True)
class FastSettings:
    """How nuclei are painted by the library's own method.

    Attributes:
        steps: Calls of the network a picture.
        families: Whether nuclei live and move as those of the video do, see
            :func:`bvdm_data.synth.colony.colony`; False: as in the paper's scenes.
        memory: As in :class:`TextureModel`; None: that of the fitted video.
        fresh: As in :class:`TextureModel`; None: that of the fitted video.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range.
    """

    steps: int = 6
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


def paint_fast(
    lives: Sequence[Life],
    views: Sequence[tuple[int, int]],
    frames: int,
    painter: Painter,
    texture: TextureModel,
    settings: FastSettings,
    generators: Sequence[torch.Generator],
    *,
    keep_flow: bool = True,
    on_frame: Callable[[], object] | None = None,
) -> Painted:
    """Paint nuclei, all frames at once.

    The paper carries a texture from frame to frame by a flow and refreshes it by a few diffusion
    steps. Here what is carried is the noise that a texture grows from: it belongs to the nucleus,
    turns with it and drifts as slowly as the video's textures do, and every frame is painted from
    it anew, for the outline, the brightness and the stage of that frame. Nothing is resampled, so
    nothing blurs or drifts apart from its outline, and no frame waits for the one before.
    Daughters begin with the noise of their mother.

    Args:
        lives: The nuclei; mothers before daughters.
        views: First and last frame in which each is seen.
        frames: Length of the film.
        painter: Draws a nucleus.
        texture: How long a texture lasts.
        settings: Steps; may overrule the texture's memory.
        generators: One for each nucleus, so that its noise does not depend on its neighbours.
        keep_flow: Whether the flow is wanted; it takes twice the memory of the textures.
        on_frame: Called once for each frame of the film.

    Returns:
        Light above the background in grey values, halo included, and the flow of the map between
        outlines; on the CPU.
    """
    patch = painter.settings.patch
    device = next(painter.parameters()).device
    noise = _drifting_noise(lives, patch, texture, settings, generators)
    rows = [(n, f) for n, (first, last) in enumerate(views) for f in range(first, last + 1)]
    light = torch.zeros(len(lives), frames, patch, patch)
    done = 0
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        moments = [(lives[n], f - lives[n].first) for n, f in part]
        light[tuple(zip(*part, strict=True))] = paint_moments(
            painter,
            torch.stack([noise[n][f - lives[n].first] for n, f in part]).to(device),
            torch.stack([torch.from_numpy(life.radii[m]).float() for life, m in moments]),
            torch.tensor([float(life.brightness[m]) for life, m in moments]),
            torch.tensor([int(life.stages[m]) for life, m in moments]),
            steps=settings.steps,
        ).cpu()
        while on_frame is not None and done < frames * (start + len(part)) // len(rows):
            on_frame()
            done += 1
    for _ in range(frames - done if on_frame is not None else 0):
        on_frame()  # type: ignore[misc]
    flow = _flow(lives, frames) if keep_flow else torch.zeros(len(lives), 0, 2, patch, patch)
    return Painted(light, flow)


@torch.no_grad()
def paint_moments(
    painter: Painter,
    noise: Float[Tensor, "N P P"],
    radii: Float[Tensor, "N K"],
    brightness: Float[Tensor, " N"],
    stage: Int[Tensor, " N"],
    *,
    steps: int,
) -> Float[Tensor, "N P P"]:
    """Paint nuclei from noise.

    Args:
        painter: Draws a nucleus; runs where its weights are.
        noise: Standard normal numbers.
        radii: Outlines, px.
        brightness: Mean light inside the outlines, grey values.
        stage: Index into ``STAGES``; -1 where it is not known.
        steps: Calls of the network.

    Returns:
        Light above the background, grey values; its mean inside the outline is the brightness.
        What does not fit into the patch is painted smaller, see
        :func:`bvdm_data.synth.painter.patch_scale`.
    """
    patch = noise.shape[-1]
    radii = radii * patch_scale(radii, patch)[:, None]
    edge = edge_map(radii, patch).to(noise.device)
    brightness, stage = brightness.to(noise.device), stage.to(noise.device)
    with torch.autocast(noise.device.type, torch.bfloat16):
        picture = denoise(painter, noise[:, None], steps, edge, brightness, stage)
    light = painter.to_light(picture, brightness).nan_to_num(0)
    wanted = brightness[:, None, None]
    light = light.clamp(DARKEST * wanted, BRIGHTEST * wanted) * _fade(edge)
    inside = (edge[:, 0] <= 0).float()
    mean = (light * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    # The network meets the brightness that it is given within a few per cent.
    gain = (brightness / mean.clamp(min=1e-6)).clamp(0.5, 2)
    return light * gain[:, None, None]


def _fade(edge: Float[Tensor, "N 1 P P"]) -> Float[Tensor, "N P P"]:
    """Return 1 up to some pixels outside an outline, falling to 0 at ``REACH``."""
    return ((1 - edge[:, 0]) * (REACH / _FADE)).clamp(0, 1)


def _drifting_noise(
    lives: Sequence[Life],
    patch: int,
    texture: TextureModel,
    settings: FastSettings,
    generators: Sequence[torch.Generator],
) -> list[Float[Tensor, "n P P"]]:
    """Draw the noise of every life, frame by frame."""
    memory = texture.memory if settings.memory is None else settings.memory
    fresh = texture.fresh if settings.fresh is None else settings.fresh
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


def _flow(lives: Sequence[Life], frames: int) -> Float[Tensor, "N E 2 Q Q"]:
    """Return the backward flow: a point keeps its share of the way from centroid to outline."""
    patch = 2 * math.ceil(max((life.radii.max() for life in lives), default=0.0)) + 4
    flow = torch.zeros(len(lives), frames - 1, 2, patch, patch)
    pixels = patch_grid(patch)
    for row, life in enumerate(lives):
        y, x = pixels[:, None].expand(2, len(life.radii), -1, -1)
        outline = radius_towards(torch.from_numpy(life.radii).float(), y, x)
        stretch = outline[:-1] / outline[1:]
        flow[row, life.first : life.last] = (stretch - 1)[:, None] * pixels
    return flow
