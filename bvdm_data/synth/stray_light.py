"""Stray light: what is bright without a label, drawn as spots of light that drift."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bvdm_data.synth.cell_cycle import APOPTOSIS
from bvdm_data.synth.contours import Array, compute_mean_radius, interpolate_quantile
from bvdm_data.synth.model import RandomisedModel, ToneCurve, Variation
from bvdm_data.synth.motion import Trajectory

DIM = 0.15
"""Quantile of the brightness of nuclei that haze may reach (our choice)."""

ASPECT = 0.3
"""Standard deviation of the logarithm of a spot's width along either axis around its cluster's (our
choice)."""

DRIFT = 0.5
"""Standard deviation of a cluster's step over the scale of those of nuclei (our choice)."""


MOST_SPOTS = 5
"""Most spots of a cluster (our choice)."""


@dataclass(frozen=True)
class _Kind:
    """Clusters of spots of one kind (numbers are our choice)."""

    rate: float  # most clusters for each nucleus that the video has on average
    width: tuple[float, float]  # standard deviations of spots over the diameter of nuclei
    spread: float  # standard deviation of the spots' distance from their cluster over their width
    fading: float = 0.0  # the height falls as the width to the power of this


HAZE = _Kind(rate=1.0, width=(0.2, 1.0), spread=0.8)
"""Cells above and below the focus."""

DEBRIS = _Kind(rate=1.5, width=(0.04, 0.12), spread=2.0, fading=1.0)
"""Fragments and precipitates; the wider the dimmer, lest they be nuclei."""

BODIES, BODY, FADING_HOURS = (2, 5), (0.2, 0.4), 4.0
"""What a dead nucleus leaves: number of spots, their standard deviations over its radius, and the
hours in which their light falls to 1/e (our choice, as in the HeLa video)."""


def draw_spots(
    models: RandomisedModel,
    variation: Variation,
    frames: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    path: Array | float = 0.0,
) -> Float[Tensor, "F K 5"]:
    """Draw the spots of a clip.

    The stage carries the field along a ``path``, [F, 2] px. A spot is a Gaussian of light: centre
    (y, x) and standard deviations along both axes in px, and its height in grey values.
    """
    noise = models.camera.noise
    # A part draws the same numbers whether others are there or not.
    rngs = [np.random.default_rng(seed) for seed in rng.integers(2**63, size=2)]
    light = interpolate_quantile(models.lives.brightness, np.array([DIM, 0.5]))
    dim, median = light * models.tone.compute_gain(light)
    parts = [np.zeros((frames, 0, 5))]
    path = np.broadcast_to(path, (frames, 2))
    field = np.array(size) + np.ptp(path, 0)
    kinds = (HAZE, variation.haze, noise / 2, dim), (DEBRIS, variation.debris, noise, median)
    for (kind, amount, low, high), own in zip(kinds, rngs, strict=True):
        if amount:
            spots = _draw_clusters(kind, models, amount, low, high, frames, field, own)
            spots[..., :2] += (path - path.max(0))[:, None]
            parts.append(spots)
    return torch.from_numpy(np.concatenate(parts, 1)).float()


def _draw_clusters(
    kind: _Kind,
    models: RandomisedModel,
    amount: float,
    low: float,
    high: float,
    frames: int,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Array:
    """Draw clusters in and around an image, none to as many as the kind and the amount allow.

    Heights are even in their logarithm, from ``low`` to ``high``. Spots as of :func:`draw_spots`.
    """
    diameter = 2 * float(compute_mean_radius(models.shapes.mean[0]))
    narrow, wide = (share * diameter for share in kind.width)
    area = math.prod(side + 4 * wide for side in size)
    nuclei = float(models.motion.density.mean()) * area
    count = int(rng.poisson(amount * kind.rate * nuclei * rng.random()))
    members = rng.integers(1, MOST_SPOTS + 1, count)
    owner = np.repeat(np.arange(count), members)
    centres = rng.uniform(-2 * wide, np.array(size) + 2 * wide, (count, 2))
    steps = DRIFT * models.motion.speed.scale * rng.standard_normal((frames, count, 2))
    width = narrow * (wide / narrow) ** rng.random((count, 1))
    # A camera may have no noise.
    high = max(high, 1e-6)
    low = min(max(low, high / 100), high)
    heights = low * (high / low) ** rng.random(count) / np.sqrt(members)
    heights *= (narrow / width[:, 0]) ** kind.fading
    spots = np.empty((frames, len(owner), 5))
    spots[..., :2] = (centres + steps.cumsum(0))[:, owner]
    spots[..., :2] += kind.spread * width[owner] * rng.standard_normal((len(owner), 2))
    spots[..., 2:4] = width[owner] * np.exp(ASPECT * rng.standard_normal((len(owner), 2)))
    spots[..., 4] = heights[owner] * rng.uniform(0.5, 1, len(owner))
    return spots


def draw_bodies(
    cells: Sequence[Trajectory],
    tone: ToneCurve,
    frames: int,
    minutes: float,
    rng: np.random.Generator,
) -> Float[Tensor, "F K 5"]:
    """Draw the apoptotic bodies of dead cells, spots as of :func:`draw_spots`.

    They are there from the frame after its last one on, drift apart and fade.
    """
    parts = [np.zeros((frames, 0, 5))]
    for path in cells:
        life, after = path.cell, np.arange(frames)[:, None] - path.cell.last
        if life.stages[-1] != APOPTOSIS or after[-1] <= 0:
            continue
        count, radius = rng.integers(*BODIES, endpoint=True), compute_mean_radius(life.radii[-1])
        width = radius * rng.uniform(*BODY, count)
        away = radius / 2 * rng.standard_normal((count, 2))
        # Each has its share of the light of the nucleus.
        bright = life.brightness[-1] * tone.compute_gain(life.brightness[-1])
        light = bright * radius**2 * rng.dirichlet(np.full(count, 4.0))
        fading = np.exp(-after.clip(0) * minutes / 60 / FADING_HOURS) * (after > 0)
        spots = np.empty((frames, count, 5))
        steps = rng.standard_normal((frames, count, 2)) * (after > 0)[..., None]
        spots[..., :2] = path.centres[-1] + away + steps.cumsum(0)
        spots[..., 2:4] = width[:, None]
        spots[..., 4] = light / (2 * width**2) * fading
        parts.append(spots)
    return torch.from_numpy(np.concatenate(parts, 1)).float()


@torch.no_grad()
def add_spots(light: Float[Tensor, "F H W"], spots: Float[Tensor, "F K 5"]) -> None:
    """Add the light of spots to a video in place; nothing here waits for the device."""
    frames, height, width = light.shape
    if not spots.shape[1]:
        return
    # One frame after the other fits into a CPU's cache.
    chunk = 1 if light.device.type == "cpu" else frames
    for start in range(0, frames, chunk):
        y, x, tall, wide, high = spots[start : start + chunk, :, :, None].unbind(2)
        down = (torch.arange(height, device=light.device) - y) / tall
        right = (torch.arange(width, device=light.device) - x) / wide
        # Far away nothing is left, and numbers too small to be normal would cost much time.
        down, right = (z.square_().mul_(-0.5).clamp_(min=-40).exp_() for z in (down, right))
        light[start : start + chunk].baddbmm_((down * high).mT, right)
