"""Persistence: how much of a nucleus' texture is still there some frames later."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from bvdm_data.alignment import (
    AREA_RATIO,
    DEPTH,
    HALF,
    LAGS,
    Picture,
    aligned_correlation,
    turn_of_axes,
)
from bvdm_data.clip import Clip
from bvdm_data.evaluation.measures import LEAST_AREA, Sightings
from bvdm_data.randomness import numpy_stream

PAIRS = 200
"""Pairs of pictures that are compared at each lag where nothing else is said."""

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Persistence:
    """Correlations of the insides of nuclei.

    Attributes:
        lags: Correlation of a nucleus with itself so many frames later, one number a pair,
            ``[n]``; empty where the clips are too short.
        unrelated: Correlation of two different nuclei, ``[n]``: what is left when nothing of the
            texture stays, since all nuclei are brighter in the middle and the best turn is
            searched for.
    """

    lags: Mapping[int, Array]
    unrelated: Array

    def kept(self, lag: int) -> float:
        """Return the share of the texture that is still there: 1 all of it, 0 nothing.

        Args:
            lag: Frames between the pictures.

        Returns:
            ``(r - u) / (1 - u)`` with the median correlations r at the lag and u of unrelated
            nuclei; NaN where there are no pairs.
        """
        if not len(self.lags[lag]) or not len(self.unrelated):
            return math.nan
        chance = float(np.median(self.unrelated))
        return (float(np.median(self.lags[lag])) - chance) / (1 - chance)


def measure_persistence(
    clips: Sequence[Clip], seen: Sightings, *, pairs: int = PAIRS, seed: int = 0
) -> Persistence:
    """Correlate pictures of one nucleus some frames apart, and of unrelated nuclei.

    A pair is two pictures of one id, neither touching the edge of the frame, the second .7 to 1.4
    times as large as the first. The second is moved onto the first by a rigid motion: the
    centroids of the masks are laid onto each other, then turns of up to 53 degrees and shifts of
    up to 1.5 px are searched for the largest sum of mask overlap (IoU) and correlation; 8 of 10
    nuclei of video 01 of Fluo-N2DL-HeLa turn by less than 46 degrees in 7 frames, and a wider
    search finds more likeness by chance. What is returned is the correlation (Pearson) of the
    grey values more than 2 px inside both outlines. Unrelated pairs, of two ids of one clip or of
    two clips, go through the same search after their long axes have been laid onto each other.

    Args:
        clips: Clips with ``masks``.
        seen: All their nuclei, from :func:`bvdm_data.evaluation.measures.sight`.
        pairs: Most pairs a lag, at least 1.
        seed: Which pairs are drawn.

    Returns:
        The correlations; pairs with fewer than 40 common pixels are left out.

    Raises:
        ValueError: If pairs is below 1.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    chosen = {
        lag: _drawn(pairs_at(seen, lag), pairs, numpy_stream(seed, "persistence", lag))
        for lag in LAGS
    }
    others = _unrelated(seen, pairs, numpy_stream(seed, "persistence", "unrelated"))
    used = np.unique(np.concatenate([*(rows.ravel() for rows in chosen.values()), others.ravel()]))
    pictures = _cut(clips, seen, used)

    def compare(rows: Ints, along_axes: bool = False) -> Array:
        found = []
        for one, other in ((pictures[a], pictures[b]) for a, b in rows.tolist()):
            start = turn_of_axes(one, other) if along_axes else 0.0
            found.append(aligned_correlation(one, other, start=start))
        values = np.array(found, float)
        known: Array = values[np.isfinite(values)]
        return known

    return Persistence({lag: compare(rows) for lag, rows in chosen.items()}, compare(others, True))


def pairs_at(seen: Sightings, lag: int) -> Ints:
    """Find the pairs of pictures of one nucleus that may be compared.

    Args:
        seen: All nuclei.
        lag: Frames from the first to the second picture.

    Returns:
        Rows of seen, ``[n, 2]``.
    """
    place = {
        key: row
        for row, key in enumerate(
            zip(seen.clip.tolist(), seen.frame.tolist(), seen.identity.tolist(), strict=True)
        )
    }
    found = [
        (row, place[clip, frame + lag, identity])
        for (clip, frame, identity), row in place.items()
        if (clip, frame + lag, identity) in place
    ]
    rows = np.array(found, np.int64).reshape(-1, 2)
    return rows[_alike(seen, rows)]


def cut_picture(
    grey: npt.NDArray[np.float32],
    masks: npt.NDArray[np.integer],
    identity: int,
    centre: npt.NDArray[np.float64],
) -> Picture:
    """Cut a nucleus out of its frame.

    Args:
        grey: The frame, ``[H, W]``.
        masks: Its nuclei, ``[H, W]``.
        identity: The nucleus.
        centre: Its centroid ``(y, x)``, px.

    Returns:
        The square of 49 x 49 pixels around it.
    """
    middle = np.rint(centre).astype(int)
    side = 2 * HALF + 1
    low = np.maximum(middle - HALF, 0)
    high = np.minimum(middle + HALF + 1, grey.shape)
    there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    first = low - (middle - HALF)
    here = tuple(slice(a, a + b) for a, b in zip(first, high - low, strict=True))
    own, light = np.zeros((side, side), bool), np.zeros((side, side), np.float32)
    own[here] = masks[there] == identity
    # The mean goes off, so that float32 loses nothing; the correlation does not see it.
    light[here] = grey[there] - grey[there].mean()
    inside = ndimage.distance_transform_edt(own) > DEPTH
    rest = (centre - middle).astype(np.float32)
    return Picture(*(torch.from_numpy(part) for part in (light, inside, rest)))


def _alike(seen: Sightings, rows: Ints) -> npt.NDArray[np.bool_]:
    first, second = rows.T
    ratio = seen.area[second] / seen.area[first]
    large = np.minimum(seen.area[first], seen.area[second]) >= LEAST_AREA
    whole = seen.whole[first] & seen.whole[second]
    alike: npt.NDArray[np.bool_] = (ratio >= AREA_RATIO[0]) & (ratio <= AREA_RATIO[1])
    alike &= large & whole
    return alike


def _drawn(rows: Ints, most: int, draws: np.random.Generator) -> Ints:
    chosen: Ints = rows[np.sort(draws.permutation(len(rows))[:most])]
    return chosen


def _unrelated(seen: Sightings, most: int, draws: np.random.Generator) -> Ints:
    """Draw pairs of different nuclei of about the same area."""
    if not len(seen):
        return np.zeros((0, 2), np.int64)
    rows = draws.integers(len(seen), size=(40 * most, 2))
    first, second = rows.T
    same = (seen.clip[first] == seen.clip[second]) & (seen.identity[first] == seen.identity[second])
    chosen: Ints = rows[_alike(seen, rows) & ~same][:most]
    return chosen


def _cut(clips: Sequence[Clip], seen: Sightings, rows: Ints) -> dict[int, Picture]:
    """Cut the pictures of ascending rows out, each clip being asked for once."""
    pictures: dict[int, Picture] = {}
    for number in np.unique(seen.clip[rows]).tolist():
        clip = clips[number]
        for row in rows[seen.clip[rows] == number].tolist():
            frame = int(seen.frame[row])
            grey, masks = clip["video"][frame, 0].float(), clip["masks"][frame]
            identity = int(seen.identity[row])
            pictures[row] = cut_picture(grey.numpy(), masks.numpy(), identity, seen.centre[row])
    return pictures
