"""Contours: the outline of a nucleus as radii, and the model that contours are drawn from."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from scipy import special
from torch import Tensor

CONTOUR_POINTS = 60
"""Angles of a contour (Bähr et al. 2021: 60). They reproduce HeLa masks with an IoU of .998."""

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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
    # AR(1) coefficient of the lasting part of each component's score, from frame to frame, [M]
    autocorrelation: Array
    innovation: Array  # share of white noise in each score's variance, [M]
    area_jitter: float  # standard deviation of the log area around its smooth course
    # median, and standard deviation of the logarithm, of the root mean square of a nucleus' scores
    # without the first two, which are size and elongation, [2]
    roughness: Array
    elongation: Array  # second score of the video's nuclei at equally spaced quantiles, [Q]
    # how far outside of the painted outlines light has the share of the core's that it has at the
    # video's, px; below 0 inside
    label_shift: float = 0.0

    def sample(self, stages: Ints, generator: np.random.Generator) -> Array:
        """Draw contours of stages, ``[..., K]`` px; no radius is below a quarter of the mean."""
        mean = self.mean[stages]
        contours = mean + self.sample_offsets(stages, generator)
        return np.asarray(np.maximum(contours, mean.mean(-1, keepdims=True) / 4))

    def sample_offsets(self, stages: Ints, generator: np.random.Generator) -> Array:
        """Draw the differences of contours of stages from the mean ones, ``[..., K]`` px."""
        modes = self.modes[stages]
        scores = generator.standard_normal((*stages.shape, 1, modes.shape[-2]))
        return np.asarray((scores @ modes)[..., 0, :])

    @functools.cached_property
    def aligned_modes(self) -> Array:
        """The components of each stage, their signs chosen as in interphase, ``[S, M, K]`` px.

        The sign of a component is arbitrary; aligned, a long nucleus is long in all stages.
        """
        opposite = (self.modes * self.modes[0]).sum(2, keepdims=True) < 0
        return np.asarray(np.where(opposite, -self.modes, self.modes))

    def sample_scores(self, frames: int, generator: np.random.Generator, count: int) -> Array:
        """Draw the scores of nuclei in consecutive frames, ``[frames, count, M]``.

        They drift and flicker. Over many nuclei each has about unit variance, and the second is
        distributed as in the video. Most nuclei are smoother, and a few much more irregular, than
        independent scores would be.
        """
        lasting = draw_ar1(frames, np.tile(self.autocorrelation, (count, 1)), generator)
        flicker = generator.standard_normal(lasting.shape)
        scores: Array = np.sqrt(1 - self.innovation) * lasting + np.sqrt(self.innovation) * flicker
        median, spread = self.roughness
        scores[..., 2:] *= median * np.exp(spread * generator.standard_normal((count, 1)))
        scores[..., 1] = interpolate_quantile(self.elongation, special.ndtr(scores[..., 1]))
        return scores


def draw_ar1(frames: int, autocorrelation: Array, generator: np.random.Generator) -> Array:
    """Draw stationary AR(1) processes of unit variance, ``[frames, ...]``."""
    noise = generator.standard_normal((frames, *autocorrelation.shape))
    return filter_ar1(noise, autocorrelation)


def filter_ar1(noise: Array, autocorrelation: Array | float, before: Array | None = None) -> Array:
    """Turn white noise ``[frames, ...]`` into AR(1) processes of unit variance, in place.

    ``before`` is the state ahead of the first frame; None: the first frame is the noise itself.
    """
    scale = np.sqrt(1 - autocorrelation**2)
    for now in noise:
        if before is not None:
            now *= scale
            now += autocorrelation * before
        before = now
    return noise


@functools.lru_cache(maxsize=64)
def make_quantile_levels(count: int) -> Array:
    """Return ``count`` equally spaced numbers from 0 to 1; read-only, since they are cached."""
    levels = np.linspace(0, 1, count)
    levels.setflags(write=False)
    return levels


def interpolate_quantile(table: Array, quantile: float | Array) -> Array:
    """Return the values of a distribution, tabulated at equally spaced quantiles, at others."""
    return np.asarray(np.interp(quantile, make_quantile_levels(len(table)), table))


def tabulate_quantiles(values: Array | list[float], count: int) -> Array:
    """Return a distribution at equally spaced quantiles, for :func:`interpolate_quantile`."""
    return np.quantile(values, make_quantile_levels(count))


def compute_polygon_area(radii: Array) -> Array:
    """Return the area of the polygons that contours ``[..., K]`` make, ``[...]`` px^2.

    Examples:
        >>> round(float(compute_polygon_area(np.full(60, 10.0))))  # a disc of 10 px has 314
        314
    """
    angle = 2 * math.pi / radii.shape[-1]
    shifted = np.concatenate([radii[..., 1:], radii[..., :1]], -1)
    return np.asarray(0.5 * math.sin(angle) * (radii * shifted).sum(-1))


def compute_mean_radius(radii: Array) -> Array:
    """Return the radius of the disc of the same area, ``[...]`` px."""
    return np.asarray(np.sqrt(compute_polygon_area(radii) / math.pi))


def interpolate_outline(radii: Array, angle: Array | float) -> Array:
    """Return the distance to one outline ``[K]`` in directions of its own frame, px."""
    return interpolate_quantile(np.append(radii, radii[0]), angle / (2 * math.pi) % 1)


def interpolate_radius(
    radii: Float[Tensor, "N K"], y: Float[Tensor, "N H W"], x: Float[Tensor, "N H W"]
) -> Float[Tensor, "N H W"]:
    """Return the distance to the outline in the direction of each point."""
    closed = torch.cat([radii, radii[:, :1]], 1)
    vertex, share = find_vertices(y, x, radii.shape[1])
    flat = vertex.flatten(1)
    here = closed.gather(1, flat).view_as(share)
    there = closed.gather(1, flat + 1).view_as(share)
    return here + share * (there - here)


def find_vertices(y: Tensor, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the vertex before the direction of each point, and the share towards the next."""
    # In double precision: in single, the last bit is that of the machine.
    position = x.double().atan2(y.double()).to(x.dtype) * (count / (2 * math.pi))
    low = position.floor()
    vertex = low.long()
    vertex += count * (vertex < 0)
    return vertex, position - low


def is_inside(
    radii: Float[Tensor, "N K"], y: Float[Tensor, "N H W"], x: Float[Tensor, "N H W"]
) -> Bool[Tensor, "N H W"]:
    """Return which points lie inside contours."""
    return x.hypot(y) <= interpolate_radius(radii, y, x)
