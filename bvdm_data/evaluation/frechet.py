"""Picture distance: how far the pictures of clips are from real ones, by a network's features."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from bvdm_data.clip import Clip
from bvdm_data.evaluation.features import (
    CROP,
    Clips,
    Features,
    as_clips,
    choose,
    cut,
    find_nuclei,
)
from bvdm_data.randomness import stream

BLUR, NOISE, RIM = 1.0, 0.01, 2
"""Damage of the controls: standard deviation of the Gaussian blur in pixels and of the added
Gaussian noise in grey values, and the width in pixels of the rim that flattening leaves alone (our
choices: each is plainly visible)."""

FLOOR, DAMAGED = "floor", ("blurred", "noisy", "flattened")
"""Names of the rows that :func:`picture_distance` adds."""

Groups = npt.NDArray[np.integer]
Places = npt.NDArray[np.int64]


class Estimate(NamedTuple):
    """A number and how sure it is.

    Attributes:
        value: The number; an unbiased one may be below 0.
        error: Its standard error; NaN where there are too few groups.
    """

    value: float
    error: float


@dataclass(frozen=True)
class PictureDistance:
    """How far one set of pictures is from the reference.

    Attributes:
        name: Name of the set.
        features: Name of the features, for example ``Lite0``.
        count: Pictures of the set, and as many of the reference.
        kernel: Kernel distance x 1000.
        frechet: Frechet distance; falls as count grows, so compare equal counts only.
    """

    name: str
    features: str
    count: int
    kernel: Estimate
    frechet: float

    def row(self) -> dict[str, str | int | float]:
        """Return a row of a table.

        Returns:
            ``set``, ``n``, and ``KID-<features> x 1000``, the same with `` error``, and
            ``FD-<features>``.
        """
        kernel = f"KID-{self.features} x 1000"
        return {
            "set": self.name,
            "n": self.count,
            kernel: self.kernel.value,
            f"{kernel} error": self.kernel.error,
            f"FD-{self.features}": self.frechet,
        }


def picture_distance(
    sets: Mapping[str, Clip | Clips],
    reference: Clip | Clips,
    *,
    count: int,
    features: Features,
    seed: int = 0,
    size: int = CROP,
) -> list[PictureDistance]:
    """Measure how far the nuclei of several sets of clips look from those of real clips.

    The reference gives ``2 * count`` random crops. All rows are distances to its first half:
    ``floor`` is that of the second half, and the three controls are the second half once more, cut
    out of the damaged reference. The halves are random, of the same films and in part of the same
    nuclei at other times, so the floor is what no other film can reach; give another real film as
    one of the sets.

    Args:
        sets: Clips by name; synthetic ones, and another real film.
        reference: Real clips.
        count: Crops of each set and of each half of the reference.
        features: Describes the crops.
        seed: Seed of all choices and of the noise.
        size: Height and width of a crop, pixels.

    Returns:
        ``floor``, then the sets in their order, then ``blurred``, ``noisy`` and ``flattened``.

    Raises:
        ValueError: If a set has fewer than count, or the reference fewer than 2 * count, nuclei
            with their whole crop in the frame, or a set has the name of one of the other rows.
    """
    taken = [name for name in sets if name in (FLOOR, *DAMAGED)]
    if taken:
        raise ValueError(f"sets must not be called {(FLOOR, *DAMAGED)}, got {taken[0]!r}")
    both = choose(find_nuclei(reference, size), 2 * count, seed, "reference")
    chosen: dict[str, tuple[Clip | Clips, Places]] = {FLOOR: (reference, both[count:])}
    for name, clips in sets.items():
        chosen[name] = clips, choose(find_nuclei(clips, size), count, seed, f"sets[{name!r}]")
    for name, clips in damaged(reference, seed=seed).items():
        chosen[name] = clips, both[count:]
    target, groups = features(cut(reference, both[:count], size)), _nuclei(both[:count])
    rows = []
    for name, (clips, places) in chosen.items():
        found = features(cut(clips, places, size))
        kernel = kernel_distance(found, target, groups=(_nuclei(places), groups))
        scaled = Estimate(1000 * kernel.value, 1000 * kernel.error)
        rows.append(
            PictureDistance(name, features.name, count, scaled, frechet_distance(found, target))
        )
    return rows


def frechet_distance(a: Float[Tensor, "n D"], b: Float[Tensor, "m D"]) -> float:
    """Return the squared Frechet distance of two Gaussians fitted to two sets of features.

    Dowson & Landau 1982, as used by Heusel et al. 2017 (eq. 6): the squared distance of the means
    plus the trace of ``A + B - 2 (A B)^(1/2)``, A and B the covariances. Biased upwards, the more
    so the fewer the features: compare equal n only.

    Args:
        a: Features of one set.
        b: Features of the other.

    Returns:
        The distance, 0 or more.

    Raises:
        ValueError: If a or b has fewer than two rows or they differ in D.
    """
    a, b = _checked(a, b)
    roots = [_root(one) for one in (a, b)]
    # A = R'R and B = S'S: the eigenvalues of AB are the squared singular values of RS'.
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(root.square().sum() for root in roots) - 2 * shared
    return max(float((a.mean(0) - b.mean(0)).square().sum() + spread), 0.0)


def kernel_distance(
    a: Float[Tensor, "n D"],
    b: Float[Tensor, "m D"],
    *,
    groups: tuple[Groups, Groups] | None = None,
) -> Estimate:
    """Return the kernel distance (KID) of two sets of features, with its standard error.

    Binkowski et al. 2018: unbiased estimate of the squared maximum mean discrepancy for the
    kernel ``(x.y / D + 1)^3``, of all pairs at once. The error is that of the delete-a-group
    jackknife for groups of unequal size (Busing, Meijer & van der Leeden 1999), of a and b added
    up as if they were independent.

    Args:
        a: Features of one set.
        b: Features of the other.
        groups: For a and for b, the group that each row belongs to: rows of one group, such as
            crops of one nucleus at several times, are not independent. None: all rows are.

    Returns:
        The distance (not times 1000) and its standard error.

    Raises:
        ValueError: If a or b has fewer than two rows, they differ in D, or groups do not fit.
    """
    a, b = _checked(a, b)
    if groups is None:
        groups = np.arange(len(a)), np.arange(len(b))
    if [len(one) for one in groups] != [len(a), len(b)]:
        raise ValueError(
            f"groups must have one number for each of {len(a)} and {len(b)} rows, got "
            f"{len(groups[0])} and {len(groups[1])}"
        )
    within, between = [_kernel(one, one).fill_diagonal_(0) for one in (a, b)], _kernel(a, b)
    means = [float(one.sum()) / (len(one) * (len(one) - 1)) for one in within]
    value = sum(means) - 2 * float(between.mean())
    variance = 0.0
    for one, other, mean, cross in zip(
        within, groups, means[::-1], (between, between.T), strict=True
    ):
        variance += _jackknife(value, one, cross, mean, other)
    return Estimate(value, variance**0.5)


def damaged(clips: Clip | Clips, *, seed: int = 0) -> dict[str, Clips]:
    """Damage clips in three ways that a picture distance has to notice.

    Args:
        clips: One clip or several, with ``masks``.
        seed: Seed of the noise.

    Returns:
        The same clips, annotations and order, the video changed when a clip is asked for:
        ``blurred`` by a Gaussian of 1 px, ``noisy`` with Gaussian noise of 0.01, kept in [0, 1],
        and ``flattened``: the inside of every nucleus, 2 px off its outline, has its mean grey
        value everywhere; the rim and the surroundings with their noise stay.
    """

    def noisy(video: Tensor, _: Tensor, number: int) -> Tensor:
        noise = torch.randn(video.shape, generator=stream(seed, "damage", number))
        return noise.mul_(NOISE).add_(video).clamp_(0, 1)

    several = as_clips(clips)
    ways = (_blurred, noisy, _flattened)
    return {name: _Damaged(several, way) for name, way in zip(DAMAGED, ways, strict=True)}


class _Damaged:
    """Clips whose videos are changed when they are read."""

    def __init__(self, clips: Clips, way: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        self.clips = clips
        self.way = way

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int, /) -> Clip:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        clip = self.clips[index]
        return cast(Clip, {**clip, "video": self.way(clip["video"], clip["masks"], index)})


def _blurred(video: Tensor, _: Tensor, __: int) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(video.numpy(), (0, 0, BLUR, BLUR)))


def _flattened(video: Tensor, masks: Tensor, _: int) -> Tensor:
    flat, side = video.clone(), 2 * RIM + 1
    for picture, labels in zip(flat[:, 0], masks.numpy(), strict=True):
        same = ndimage.minimum_filter(labels, side) == ndimage.maximum_filter(labels, side)
        inner = torch.from_numpy(np.where(same, labels, 0)).long()
        sums = torch.bincount(inner.flatten(), picture.flatten().double())
        means = sums / torch.bincount(inner.flatten()).clamp(min=1)
        picture.copy_(torch.where(inner > 0, means[inner].float(), picture))
    return flat


def _nuclei(places: Places) -> Groups:
    """Number the nuclei, so that crops of one nucleus in several frames share a number."""
    found: Groups = np.unique(places[:, [0, 2]], axis=0, return_inverse=True)[1].reshape(-1)
    return found


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            "a and b must be features [n, D] and [m, D] of at least two rows and the same D, got "
            f"{list(a.shape)} and {list(b.shape)}"
        )
    return a.double(), b.double()


def _root(features: Tensor) -> Tensor:
    """Return R with R'R the covariance, at most D rows."""
    root: Tensor = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    if len(root) > root.shape[1]:
        root = torch.linalg.qr(root)[1]
    return root


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    cubed: Tensor = (x @ y.T / x.shape[1] + 1) ** 3
    return cubed


def _jackknife(
    value: float, within: Tensor, between: Tensor, other_mean: float, groups: Groups
) -> float:
    """Return the variance of the kernel distance that comes from the rows of one set."""
    numbers = torch.from_numpy(np.unique(groups, return_inverse=True)[1].reshape(-1))
    member = torch.nn.functional.one_hot(numbers).double()
    sizes = member.sum(0)
    rest = len(member) - sizes
    if len(sizes) < 2 or rest.min() < 2:
        return float("nan")
    own = (member.T @ within).T
    inside = within.sum() - 2 * own.sum(0) + (own * member).sum(0)
    cross = (between.sum() - member.T @ between.sum(1)) / (rest * between.shape[1])
    without = inside / (rest * (rest - 1)) + other_mean - 2 * cross
    share = sizes / len(member)
    centre = len(sizes) * value - ((1 - share) * without).sum()
    pseudo = value / share - (1 / share - 1) * without
    return float(((pseudo - centre).square() / (1 / share - 1)).mean())
