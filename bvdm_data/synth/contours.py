"""ShapeModel: how the outlines of nuclei look in each stage of the cell cycle."""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from scipy import special
from torch import Tensor

CONTOUR_POINTS = 60
"""Angles of a contour (Bähr et al. 2021: 60); they reproduce HeLa masks with an IoU of .998."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ShapeModel:
    """One mean contour and one covariance for each stage (principal components).

    A contour is the distance from the centroid to the outline, in pixels, at ``K`` equally spaced
    angles; angle 0 looks along ``+y``, a quarter turn later along ``+x``. The major axis lies
    along y. Nuclei have no head and no tail: the model is symmetric under half turns and mirrors.
    """

    mean: Array  # mean radii of each stage, [S, K] px
    modes: Array  # principal components, each as long as its standard deviation, [S, M, K] px
    counts: Array  # contours that each stage was fitted to, [S]
    # correlation of the lasting part of each component's score with that of the frame before, [M]
    memory: Array
    fresh: Array  # share of each score's variance that is new in every frame, [M]
    wobble: float  # standard deviation of the logarithm of the area around its smooth course
    # median, and standard deviation of the logarithm, of how irregular a nucleus is: the root mean
    # square of its scores but for the first two, which are size and length, [2]
    ragged: Array
    # second score of the video's nuclei at equally spaced quantiles from 0 to 1, [Q]. It is how
    # long they are, where they differ most in size, and not normal, for no nucleus is shorter than
    # round
    length: Array

    def sample(self, stage: int, generator: np.random.Generator, amount: float = 1.0) -> Array:
        """Draw a contour of a stage.

        Radii ``[K]`` px, none below a quarter of the mean one.
        """
        mean = self.mean[stage]
        radii = mean + amount * self.deviation(stage, generator)
        bounded: Array = np.maximum(radii, mean.mean() / 4)
        return bounded

    def deviation(self, stage: int, generator: np.random.Generator) -> Array:
        """Draw how far a contour of a stage is from the mean one, ``[K]`` px."""
        modes = self.modes[stage]
        drawn: Array = generator.standard_normal(len(modes)) @ modes
        return drawn

    def alike(self, stage: int) -> Array:
        """Return the components of a stage, each pointing where that of interphase does.

        A component has no sign of its own; with these, a long nucleus is long in all stages.

        ``[M, K]`` px.
        """
        against = (self.modes[stage] * self.modes[0]).sum(1, keepdims=True) < 0
        found: Array = np.where(against, -self.modes[stage], self.modes[stage])
        return found

    def scores(self, frames: int, generator: np.random.Generator) -> Array:
        """Draw the scores of a nucleus in consecutive frames: they drift, and they flicker.

        Most nuclei are smoother, and a few much more irregular, than independent scores would be.

        ``[frames, M]``, each of about unit variance over many nuclei, the second as the video's
        are.
        """
        lasting = draw_ar1(frames, self.memory, generator)
        passing = generator.standard_normal(lasting.shape)
        drawn: Array = np.sqrt(1 - self.fresh) * lasting + np.sqrt(self.fresh) * passing
        drawn[:, 2:] *= self.ragged[0] * math.exp(self.ragged[1] * generator.standard_normal())
        drawn[:, 1:2] = np.interp(
            special.ndtr(drawn[:, 1:2]), make_quantile_levels(len(self.length)), self.length
        )
        return drawn


def draw_ar1(frames: int, memory: Array, generator: np.random.Generator) -> Array:
    """Draw stationary first-order autoregressive processes of unit variance.

    ``[frames, M]``.
    """
    drawn = generator.standard_normal((frames, len(memory)))
    renewed = np.sqrt(1 - memory**2)
    for before, now in itertools.pairwise(drawn):
        now *= renewed
        now += memory * before
    return drawn


@functools.lru_cache(maxsize=64)
def make_quantile_levels(count: int) -> Array:
    """Return so many numbers from 0 to 1, equally spaced; not to be changed, ``[count]``."""
    places = np.linspace(0, 1, count)
    places.setflags(write=False)
    return places


def compute_polygon_area(radii: Array) -> Array:
    """Return the area of contours.

    ``[...]`` px^2, the area of the polygon.

    Examples:
        >>> round(float(area(np.full(60, 10.0))))  # a disc of 10 px has 314
        314
    """
    angle = 2 * math.pi / radii.shape[-1]
    shifted = np.concatenate([radii[..., 1:], radii[..., :1]], -1)
    return np.asarray(0.5 * math.sin(angle) * (radii * shifted).sum(-1))


def interpolate_radius(
    radii: Float[Tensor, "N K"], y: Float[Tensor, "N H W"], x: Float[Tensor, "N H W"]
) -> Float[Tensor, "N H W"]:
    """Return how far the outline is in the direction of each point."""
    closed = torch.cat([radii, radii[:, :1]], 1)
    corner, share = find_vertices(y, x, radii.shape[1])
    flat = corner.flatten(1)
    here = closed.gather(1, flat).view_as(share)
    there = closed.gather(1, flat + 1).view_as(share)
    return here + share * (there - here)


def find_vertices(y: Tensor, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Tell between which corners of an outline a direction lies."""
    place = x.atan2(y) * (count / (2 * math.pi))
    low = place.floor()
    corner = low.long()
    corner += count * (corner < 0)
    return corner, place - low


def test_inside(
    radii: Float[Tensor, "N K"], y: Float[Tensor, "N H W"], x: Float[Tensor, "N H W"]
) -> Bool[Tensor, "N H W"]:
    """Tell which points lie inside contours."""
    return x.hypot(y) <= interpolate_radius(radii, y, x)
