"""How nuclei move, grow and divide, and how long their texture lasts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import Clip
from bvdm_data.evaluation.nucleus_features import LEAST_AREA, Detections
from bvdm_data.fitting.nuclei import Lineage, number_rows, pair_rows
from bvdm_data.fitting.texture_noise import (
    AREA_RATIO,
    LAGS,
    NucleusPatch,
    correlate_registered,
    cut_patch,
    measure_angle_between_axes,
)
from bvdm_data.rng import numpy_rng
from bvdm_data.synth.contours import Array, Ints

# Steps shorter than this have no direction, pixels (our choice: masks have errors, too).
LEAST_STEP = 1.0
# Last frames of a mother in which mitosis is looked for; what is before is her interphase.
MITOSIS = 3
BEFORE = 5  # frames before those that give the area of the mother before mitosis, by their median
PAIRS = 200  # default number of pairs of patches that are compared at each lag


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

    # frames from birth to division where both are seen, [n]; compare clips of one length only
    cycle: Array
    divisions: int  # number of divisions
    chances: int  # nuclei in all frames that have a next frame: so often one could have divided
    daughter: Array  # area of a daughter in its first frame over her mother's before mitosis, [n]
    sisters: Array  # area of the smaller sister over the larger one's in their first frame, [n]
    dip: Array  # smallest area of the mother in her last 3 frames over the one before mitosis, [n]


def measure_motion(detections: Detections) -> MotionStats:
    """Measure steps, turning angles and growth."""
    order = np.lexsort((detections.frame, detections.identity, detections.clip))
    whole, area = detections.whole[order], detections.area[order]
    clip, identity, frame = (
        np.diff(column[order])
        for column in (detections.clip, detections.identity, detections.frame)
    )
    used = (clip == 0) & (identity == 0) & (frame == 1) & whole[1:] & whole[:-1]
    steps = np.diff(detections.centre[order], axis=0)
    length = np.hypot(*steps.T)
    twice = used[1:] & used[:-1] & (np.minimum(length[1:], length[:-1]) >= LEAST_STEP)
    before, after = steps[:-1][twice], steps[1:][twice]
    across = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    turning = np.degrees(np.abs(np.arctan2(across, (before * after).sum(1))))
    return MotionStats(length[used], turning, (area[1:] / area[:-1])[used])


def measure_divisions(clips: Sequence[Clip], detections: Detections) -> DivisionStats:
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
        rows = np.flatnonzero(detections.clip == number)
        chances += int((detections.frame[rows] < len(clip["video"]) - 1).sum())
        rows = rows[detections.whole[rows]]
        tracks = clip["tracks"][clip["tracks"][:, 0] > 0].numpy()
        lineage = Lineage(tracks, detections.identity[rows], detections.frame[rows])
        areas = dict(zip(lineage.row_of, detections.area[rows].tolist(), strict=True))
        divisions += len(lineage.daughters)
        cycle += lineage.whole_cycles
        for mother, both in lineage.daughters.items():
            first = [areas.get((one, lineage.spans[one][0]), math.nan) for one in both[:2]]
            sisters.append(min(first) / max(first))
            late = lineage.spans[mother][1] - MITOSIS + 1
            grown = [areas[mother, t] for t in range(late - BEFORE, late) if (mother, t) in areas]
            last = [areas[mother, t] for t in range(late, late + MITOSIS) if (mother, t) in areas]
            if len(grown) >= 2:
                before = float(np.median(grown))
                daughter += [area / before for area in first]
                dip += [min(last) / before] if len(last) == MITOSIS else []
    known = (_keep_finite(values) for values in (daughter, sisters, dip))
    return DivisionStats(np.array(cycle, float), divisions, chances, *known)


def _keep_finite(values: list[float]) -> Array:
    array = np.array(values, float)
    return np.asarray(array[np.isfinite(array)])


@dataclass(frozen=True, eq=False)
class TextureAutocorrelation:
    """Correlations of the insides of nuclei."""

    # by lag: correlation of a nucleus with itself that many frames later, [n]; empty in short clips
    lags: Mapping[int, Array]
    # correlation of two different nuclei, [n]: what is left when nothing of the texture stays
    unrelated: Array

    def kept(self, lag: int) -> float:
        """Return the share of the texture that is still there: 1 all of it, 0 nothing."""
        if not len(self.lags[lag]) or not len(self.unrelated):
            return math.nan
        chance = float(np.median(self.unrelated))
        return (float(np.median(self.lags[lag])) - chance) / (1 - chance)


def measure_texture_autocorrelation(
    clips: Sequence[Clip], detections: Detections, *, pairs: int = PAIRS, seed: int = 0
) -> TextureAutocorrelation:
    """Correlate patches of one nucleus some frames apart, and of unrelated nuclei.

    A pair is two patches of one id, neither touching the edge of the frame, the second .7 to 1.4
    times as large as the first. A rigid motion registers the second with the first: after the
    centroids are aligned, rotations of up to 53 degrees and shifts of up to 1.5 px are searched for
    the largest sum of mask overlap (IoU) and correlation. 8 of 10 nuclei of video 01 of
    Fluo-N2DL-HeLa turn by less than 46 degrees in 7 frames, and a wider search finds more likeness
    by chance. The result is the correlation (Pearson) of the grey values more than 2 px inside both
    outlines. Unrelated pairs, of two ids of one clip or of two clips, go through the same search
    after their long axes have been aligned.
    """
    chosen = {}
    for lag in LAGS:
        rows, rng = find_pairs_at_lag(detections, lag), numpy_rng(seed, "persistence", lag)
        chosen[lag] = rows[np.sort(rng.permutation(len(rows))[:pairs])]
    rng = numpy_rng(seed, "persistence", "unrelated")
    others = _draw_unrelated_pairs(detections, pairs, rng)
    used = np.unique(np.concatenate([*(rows.ravel() for rows in chosen.values()), others.ravel()]))
    patches = _cut_patches(clips, detections, used)

    def correlate(rows: Ints, along_axes: bool = False) -> Array:
        values = []
        for first, second in ((patches[a], patches[b]) for a, b in rows.tolist()):
            start = measure_angle_between_axes(first, second) if along_axes else 0.0
            values.append(correlate_registered(first, second, start=start))
        return _keep_finite(values)

    by_lag = {lag: correlate(rows) for lag, rows in chosen.items()}
    return TextureAutocorrelation(by_lag, correlate(others, along_axes=True))


def find_pairs_at_lag(detections: Detections, lag: int) -> Ints:
    """Find the pairs of patches of one nucleus that may be compared: rows, ``[n, 2]``."""
    columns = (detections.clip, detections.identity, detections.frame)
    rows = pair_rows(number_rows(*columns), lag)
    return rows[_are_comparable(detections, rows)]


def _are_comparable(detections: Detections, rows: Ints) -> npt.NDArray[np.bool_]:
    area, whole = detections.area[rows], detections.whole[rows].all(1)
    ratio = area[:, 1] / area[:, 0]
    is_alike = (ratio >= AREA_RATIO[0]) & (ratio <= AREA_RATIO[1])
    return np.asarray(is_alike & (area.min(1) >= LEAST_AREA) & whole)


def _draw_unrelated_pairs(detections: Detections, count: int, rng: np.random.Generator) -> Ints:
    """Draw pairs of different nuclei of about the same area."""
    if not len(detections):
        return np.zeros((0, 2), np.int64)
    rows = rng.integers(len(detections), size=(40 * count, 2))
    clip, identity = detections.clip[rows], detections.identity[rows]
    is_same = (clip[:, 0] == clip[:, 1]) & (identity[:, 0] == identity[:, 1])
    return np.asarray(rows[_are_comparable(detections, rows) & ~is_same][:count])


def _cut_patches(
    clips: Sequence[Clip], detections: Detections, rows: Ints
) -> dict[int, NucleusPatch]:
    """Cut out the patches of ascending rows; each clip is read once."""
    patches: dict[int, NucleusPatch] = {}
    for number in np.unique(detections.clip[rows]).tolist():
        clip = clips[number]
        for row in rows[detections.clip[rows] == number].tolist():
            t, identity = int(detections.frame[row]), int(detections.identity[row])
            grey, own = clip["video"][t, 0].float().numpy(), clip["masks"][t].numpy() == identity
            patches[row] = cut_patch(grey, own, detections.centre[row])
    return patches
