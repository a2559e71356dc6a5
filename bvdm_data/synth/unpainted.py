"""Unpainted nuclei: the noise that they grow from, and what the network is told about them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bvdm_data.synth.distilled import DistilledPainter
from bvdm_data.synth.lives import Life
from bvdm_data.synth.painter import Painter, patch_scale
from bvdm_data.synth.parts import part


@dataclass(frozen=True)
class Unpainted:
    """What the network is told about nuclei of one size of picture; on the CPU.

    Attributes:
        noise: Standard normal numbers, ``[M, P, P]``.
        radii: Outlines, px, ``[M, K]``.
        brightness: Mean light inside the outlines, grey values, ``[M]``.
        stage: Index into ``STAGES``, ``[M]``.
        rows: As in :class:`bvdm_data.synth.fast.Pictures`.
        moments: As in :class:`bvdm_data.synth.fast.Pictures`.
        zoom: As in :class:`bvdm_data.synth.fast.Pictures`.
    """

    noise: Tensor
    radii: Tensor
    brightness: Tensor
    stage: Tensor
    rows: Tensor
    moments: Tensor
    zoom: Tensor


def prepare(
    lives: Sequence[Life],
    views: Sequence[tuple[int, int]],
    painter: Painter | DistilledPainter,
    memory: float,
    fresh: float,
    generators: Sequence[torch.Generator],
) -> list[Unpainted]:
    """Draw the noise of nuclei, and tell what else the network must know to paint them.

    Args:
        lives: The nuclei; mothers before daughters.
        views: First and last frame in which each is seen.
        painter: Will draw them.
        memory: As in :class:`bvdm_data.synth.fast.TextureModel`.
        fresh: As in :class:`bvdm_data.synth.fast.TextureModel`.
        generators: One for each nucleus.

    Returns:
        The pictures to be painted, grouped by their side, on the CPU.
    """
    patch = painter.settings.patch
    with part("noise"):
        noise = _drifting_noise(lives, patch, memory, fresh, generators)
    seen = [(n, f) for n, (first, last) in enumerate(views) for f in range(first, last + 1)]
    if not seen:
        return []
    rows, moments = torch.tensor(seen).unbind(1)
    shown = [(lives[n], f - lives[n].first) for n, f in seen]
    radii = torch.from_numpy(np.stack([life.radii[m] for life, m in shown])).float()
    brightness = torch.tensor([float(life.brightness[m]) for life, m in shown])
    stage = torch.tensor([int(life.stages[m]) for life, m in shown])
    found = []
    for side, group in _by_side(painter, radii):
        rim = (patch - side) // 2
        inner = slice(rim, patch - rim)
        drawn = [
            noise[n][f - lives[n].first, inner, inner] for n, f in (seen[g] for g in group.tolist())
        ]
        found.append(
            Unpainted(
                torch.stack(drawn), radii[group], brightness[group], stage[group],
                rows[group], moments[group], patch_scale(radii[group], side),
            )
        )  # fmt: skip
    return found


def _by_side(
    painter: Painter | DistilledPainter, radii: Float[Tensor, "N K"]
) -> list[tuple[int, Tensor]]:
    """Group nuclei by the side of the picture that they need."""
    narrow = torch.zeros(len(radii), dtype=torch.bool)
    side = painter.settings.patch
    if isinstance(painter, DistilledPainter):
        narrow, side = painter.fits_narrow(radii), painter.settings.narrow
    groups = [(side, narrow.nonzero()[:, 0]), (painter.settings.patch, (~narrow).nonzero()[:, 0])]
    return [(side, group) for side, group in groups if len(group)]


def _drifting_noise(
    lives: Sequence[Life],
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
