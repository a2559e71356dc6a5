"""Histories: how nuclei move, grow and divide, measured on masks and tracks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import Clip
from bvdm_data.evaluation.measures import Sightings

LEAST_STEP = 1.0
"""Steps shorter than this have no direction, pixels (our choice: masks have errors, too)."""

MITOSIS = 3
"""Last frames of a mother in which mitosis is looked for; what is before is her interphase."""

BEFORE = 5
"""Frames before those that give the area of the mother before mitosis, by their median."""

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Motion:
    """Movement and growth from frame to frame, of nuclei that do not touch the frame's edge.

    Attributes:
        step: Distance of the centroids of one nucleus in two consecutive frames, px, ``[n]``.
        turning: Angle between two consecutive steps of at least 1 px each, degrees from 0
            (straight on) to 180, ``[m]``.
        growth: Area in a frame over area in the frame before, ``[n]``.
    """

    step: Array
    turning: Array
    growth: Array


@dataclass(frozen=True, eq=False)
class Lives:
    """Divisions; a nucleus divides where the table of tracks has two or more daughters of it.

    Attributes:
        cycle: Frames from birth to division of the nuclei for which both were seen, ``[n]``; no
            cycle is longer than its clip, so compare clips of one length only.
        divisions: Number of divisions.
        chances: Nuclei in all frames that have a next frame: so often one could have divided.
        daughter: Area of a daughter in its first frame over that of the mother before mitosis,
            ``[n]``.
        sisters: Area of the smaller sister over that of the larger one in their first frame,
            ``[n]``.
        dip: Smallest area of the mother in her last 3 frames over that before mitosis, ``[n]``.
    """

    cycle: Array
    divisions: int
    chances: int
    daughter: Array
    sisters: Array
    dip: Array


def measure_motion(seen: Sightings) -> Motion:
    """Measure steps, turns and growth.

    Args:
        seen: All nuclei, from :func:`bvdm_data.evaluation.measures.sight`.

    Returns:
        The measures; a pair or triple of frames counts where the nucleus is whole in all of them.
    """
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
    return Motion(length[used], turning, (area[1:] / area[:-1])[used])


def measure_lives(clips: Sequence[Clip], seen: Sightings) -> Lives:
    """Measure cycles and divisions.

    Areas count only where the nucleus does not touch the edge of the frame. The area of a mother
    before mitosis is the median of the 5 frames before her last 3.

    Args:
        clips: Clips with ``tracks``.
        seen: All their nuclei, from :func:`bvdm_data.evaluation.measures.sight`.

    Returns:
        The measures.

    Raises:
        ValueError: If a clip has no tracks.
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
    return Lives(
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


def _whole_areas(seen: Sightings, rows: Ints) -> dict[tuple[int, int], float]:
    """Return the areas of the nuclei that do not touch the edge, by id and frame."""
    kept = rows[seen.whole[rows]]
    keys = zip(seen.identity[kept].tolist(), seen.frame[kept].tolist(), strict=True)
    return dict(zip(keys, seen.area[kept].tolist(), strict=True))


def _known(values: list[float]) -> Array:
    found = np.array(values, float)
    known: Array = found[np.isfinite(found)]
    return known
