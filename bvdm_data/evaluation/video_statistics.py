"""Histories: how nuclei move, grow and divide, measured on masks and tracks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from bvdm_data.clip import Clip
from bvdm_data.evaluation.nucleus_features import LEAST_AREA, Detections
from bvdm_data.fitting.texture_noise import (
    AREA_RATIO,
    DEPTH,
    HALF,
    LAGS,
    NucleusPatch,
    correlate_registered,
    measure_angle_between_axes,
)
from bvdm_data.rng import numpy_rng

LEAST_STEP = 1.0
"""Steps shorter than this have no direction, pixels (our choice: masks have errors, too)."""

MITOSIS = 3
"""Last frames of a mother in which mitosis is looked for; what is before is her interphase."""

BEFORE = 5
"""Frames before those that give the area of the mother before mitosis, by their median."""

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MotionStats:
    """Movement and growth from frame to frame, of nuclei that do not touch the frame's edge."""

    step: Array  # distance of the centroids of one nucleus in two consecutive frames, px, [n]
    # angle between two consecutive steps of at least 1 px each, degrees from 0 (straight on) to
    # 180, [m]
    turning: Array
    growth: Array  # area in a frame over area in the frame before, [n]


@dataclass(frozen=True, eq=False)
class DivisionStats:
    """Divisions; a nucleus divides where the table of tracks has two or more daughters of it."""

    # frames from birth to division of the nuclei for which both were seen, [n]; no cycle is longer
    # than its clip, so compare clips of one length only
    cycle: Array
    divisions: int  # number of divisions
    chances: int  # nuclei in all frames that have a next frame: so often one could have divided
    # area of a daughter in its first frame over that of the mother before mitosis, [n]
    daughter: Array
    # area of the smaller sister over that of the larger one in their first frame, [n]
    sisters: Array
    dip: Array  # smallest area of the mother in her last 3 frames over that before mitosis, [n]


def measure_motion(seen: Detections) -> MotionStats:
    """Measure steps, turns and growth."""
    order = np.lexsort((seen.frame, seen.identity, seen.clip))
    clip, frame, identity = (part[order] for part in (seen.clip, seen.frame, seen.identity))
    whole, area, centre = seen.whole[order], seen.area[order], seen.centre[order]
    follows = (np.diff(clip) == 0) & (np.diff(identity) == 0) & (np.diff(frame) == 1)
    used = follows & whole[1:] & whole[:-1]
    way = np.diff(centre, axis=0)
    length = np.hypot(*way.T)
    twice = used[1:] & used[:-1] & (np.minimum(length[1:], length[:-1]) >= LEAST_STEP)
    before, after = way[:-1][twice], way[1:][twice]
    across = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    turning = np.degrees(np.abs(np.arctan2(across, (before * after).sum(1))))
    return MotionStats(length[used], turning, (area[1:] / area[:-1])[used])


def measure_divisions(clips: Sequence[Clip], seen: Detections) -> DivisionStats:
    """Measure cycles and divisions.

    Areas count only where the nucleus does not touch the edge of the frame. The area of a mother
    before mitosis is the median of the 5 frames before her last 3.
    """
    cycle: list[int] = []
    daughter: list[float] = []
    sisters: list[float] = []
    dip: list[float] = []
    divisions = chances = 0
    for number in range(len(clips)):
        clip = clips[number]
        if "tracks" not in clip:
            raise ValueError(
                f"clips must have tracks to be measured, got {sorted(clip)} in clip {number}"
            )
        rows = np.flatnonzero(seen.clip == number)
        chances += int((seen.frame[rows] < len(clip["video"]) - 1).sum())
        areas = _whole_areas(seen, rows)
        table = {i: (a, b, p) for i, a, b, p in clip["tracks"].tolist() if i > 0}
        families = _families(table)
        born = {child for children in families.values() for child in children}
        divisions += len(families)
        cycle += [table[i][1] - table[i][0] + 1 for i in families if i in born]
        for mother, children in families.items():
            last = table[mother][1]
            first = [areas.get((child, table[child][0]), math.nan) for child in children[:2]]
            sisters.append(min(first) / max(first))
            early = range(last - MITOSIS - BEFORE + 1, last - MITOSIS + 1)
            grown = [areas[mother, frame] for frame in early if (mother, frame) in areas]
            late = range(last - MITOSIS + 1, last + 1)
            round_up = [areas[mother, frame] for frame in late if (mother, frame) in areas]
            if len(grown) < 2:
                continue
            before = float(np.median(grown))
            daughter += [area / before for area in first]
            if len(round_up) == MITOSIS:
                dip.append(min(round_up) / before)
    return DivisionStats(
        cycle=np.array(cycle, float),
        divisions=divisions,
        chances=chances,
        daughter=_known(daughter),
        sisters=_known(sisters),
        dip=_known(dip),
    )


def _families(table: dict[int, tuple[int, int, int]]) -> dict[int, list[int]]:
    """Return the daughters of every nucleus of the clip that divides in it."""
    children: dict[int, list[int]] = {}
    for identity, (_, _, parent) in table.items():
        if parent in table:
            children.setdefault(parent, []).append(identity)
    return {mother: some for mother, some in children.items() if len(some) >= 2}


def _whole_areas(seen: Detections, rows: Ints) -> dict[tuple[int, int], float]:
    """Return the areas of the nuclei that do not touch the edge, by id and frame."""
    kept = rows[seen.whole[rows]]
    keys = zip(seen.identity[kept].tolist(), seen.frame[kept].tolist(), strict=True)
    return dict(zip(keys, seen.area[kept].tolist(), strict=True))


def _known(values: list[float]) -> Array:
    found = np.array(values, float)
    known: Array = found[np.isfinite(found)]
    return known


PAIRS = 200
"""Pairs of pictures that are compared at each lag where nothing else is said."""


@dataclass(frozen=True, eq=False)
class TextureAutocorrelation:
    """Correlations of the insides of nuclei."""

    # correlation of a nucleus with itself so many frames later, one number a pair, [n]; empty
    # where the clips are too short
    lags: Mapping[int, Array]
    # correlation of two different nuclei, [n]: what is left when nothing of the texture stays,
    # since all nuclei are brighter in the middle and the best turn is searched for
    unrelated: Array

    def kept(self, lag: int) -> float:
        """Return the share of the texture that is still there: 1 all of it, 0 nothing."""
        if not len(self.lags[lag]) or not len(self.unrelated):
            return math.nan
        chance = float(np.median(self.unrelated))
        return (float(np.median(self.lags[lag])) - chance) / (1 - chance)


def measure_texture_autocorrelation(
    clips: Sequence[Clip], seen: Detections, *, pairs: int = PAIRS, seed: int = 0
) -> TextureAutocorrelation:
    """Correlate pictures of one nucleus some frames apart, and of unrelated nuclei.

    A pair is two pictures of one id, neither touching the edge of the frame, the second .7 to 1.4
    times as large as the first. The second is moved onto the first by a rigid motion: the
    centroids of the masks are laid onto each other, then turns of up to 53 degrees and shifts of
    up to 1.5 px are searched for the largest sum of mask overlap (IoU) and correlation; 8 of 10
    nuclei of video 01 of Fluo-N2DL-HeLa turn by less than 46 degrees in 7 frames, and a wider
    search finds more likeness by chance. What is returned is the correlation (Pearson) of the
    grey values more than 2 px inside both outlines. Unrelated pairs, of two ids of one clip or of
    two clips, go through the same search after their long axes have been laid onto each other.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    chosen = {
        lag: _drawn(find_pairs_at_lag(seen, lag), pairs, numpy_rng(seed, "persistence", lag))
        for lag in LAGS
    }
    others = _unrelated(seen, pairs, numpy_rng(seed, "persistence", "unrelated"))
    used = np.unique(np.concatenate([*(rows.ravel() for rows in chosen.values()), others.ravel()]))
    pictures = _cut(clips, seen, used)

    def compare(rows: Ints, along_axes: bool = False) -> Array:
        found = []
        for one, other in ((pictures[a], pictures[b]) for a, b in rows.tolist()):
            start = measure_angle_between_axes(one, other) if along_axes else 0.0
            found.append(correlate_registered(one, other, start=start))
        values = np.array(found, float)
        known: Array = values[np.isfinite(values)]
        return known

    return TextureAutocorrelation(
        {lag: compare(rows) for lag, rows in chosen.items()}, compare(others, True)
    )


def find_pairs_at_lag(seen: Detections, lag: int) -> Ints:
    """Find the pairs of pictures of one nucleus that may be compared.

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


def cut_patch(
    grey: npt.NDArray[np.float32],
    masks: npt.NDArray[np.integer],
    identity: int,
    centre: npt.NDArray[np.float64],
) -> NucleusPatch:
    """Cut a nucleus out of its frame."""
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
    return NucleusPatch(*(torch.from_numpy(part) for part in (light, inside, rest)))


def _alike(seen: Detections, rows: Ints) -> npt.NDArray[np.bool_]:
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


def _unrelated(seen: Detections, most: int, draws: np.random.Generator) -> Ints:
    """Draw pairs of different nuclei of about the same area."""
    if not len(seen):
        return np.zeros((0, 2), np.int64)
    rows = draws.integers(len(seen), size=(40 * most, 2))
    first, second = rows.T
    same = (seen.clip[first] == seen.clip[second]) & (seen.identity[first] == seen.identity[second])
    chosen: Ints = rows[_alike(seen, rows) & ~same][:most]
    return chosen


def _cut(clips: Sequence[Clip], seen: Detections, rows: Ints) -> dict[int, NucleusPatch]:
    """Cut the pictures of ascending rows out, each clip being asked for once."""
    pictures: dict[int, NucleusPatch] = {}
    for number in np.unique(seen.clip[rows]).tolist():
        clip = clips[number]
        for row in rows[seen.clip[rows] == number].tolist():
            frame = int(seen.frame[row])
            grey, masks = clip["video"][frame, 0].float(), clip["masks"][frame]
            identity = int(seen.identity[row])
            pictures[row] = cut_patch(grey.numpy(), masks.numpy(), identity, seen.centre[row])
    return pictures
