"""Motion: measures steps, turns, separations and density from the tracks of the video."""

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.pace import (
    LEAST_STEPS,
    births_of,
    field_drift,
    fit_pace,
    fit_pace_of_age,
    fit_shift,
)
from bvdm_data.fitting.shapes import orientation
from bvdm_data.fitting.stages import INTERPHASE, appearance, daughters_of
from bvdm_data.fitting.video import Video
from bvdm_data.synth.motion import MotionModel
from bvdm_data.synth.placing import CONTACT

ELONGATED = 1.4
"""Ratio of axes from which the direction of a nucleus' major axis can be told (our choice)."""

_LARGEST_TURN = math.pi / 4
_OLDEST = 40  # frames
_LEVELS = 33

Array = npt.NDArray[np.float64]


def fit_motion(
    video: Video, crops: Crops, stages: npt.NDArray[np.int8], *, border: int
) -> MotionModel:
    """Measure how nuclei move.

    Args:
        video: The annotated video.
        crops: Nuclei cut out of it.
        stages: Their stages.
        border: Width in pixels of the band at the frame's edge without complete truth.

    Returns:
        The model.

    Raises:
        ValueError: If too few nuclei can be followed.
    """
    here = np.flatnonzero(stages == INTERPHASE)
    place = {(int(crops.track[i]), int(crops.frame[i])): i for i in here}
    pairs = [(i, place[t, f + 1]) for (t, f), i in place.items() if (t, f + 1) in place]
    if len(pairs) < 10:
        raise ValueError(
            "the video must show nuclei in consecutive frames to fit motion, got "
            f"{len(pairs)} such pairs"
        )
    first, second = np.array(pairs).T
    steps = (crops.centre[second] - crops.centre[first]).astype(float).ravel()
    drift = field_drift(crops)
    births = births_of(crops, video.tracks)
    curve = fit_pace_of_age(crops, stages, drift, births)
    freedom, _, scale = stats.t.fit(steps[np.isfinite(steps)], floc=0)
    return MotionModel(
        step=np.array([scale, max(freedom, 1.5)]),
        turn=_turn(crops, first, second),
        separation=_separation(crops, video.tracks),
        density=fit_density(video, border),
        pace=fit_pace(crops, stages, drift, births, curve),
        pace_of_age=curve,
        shift=fit_shift(crops, video.tracks, drift),
        drift=drift,
        sisters=_sisters(crops, video.tracks),
        closest=_closest(crops),
    )


def _turn(crops: Crops, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Robust deviation of the turn of elongated nuclei from frame to frame, radians."""
    long = appearance(crops).aspect >= ELONGATED
    chosen = [(a, b) for a, b in zip(first, second, strict=True) if long[a] and long[b]]
    if not chosen:
        return 0.0
    turns = np.array([orientation(crops.masks[b]) - orientation(crops.masks[a]) for a, b in chosen])
    turns = (turns + math.pi / 2) % math.pi - math.pi / 2
    turns = turns[np.abs(turns) < _LARGEST_TURN]
    return float(1.4826 * np.median(np.abs(turns)))


def _separation(crops: Crops, tracks: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Mean and deviation of the log distance of daughters in their first frame."""
    birth = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    distances = []
    for daughters in daughters_of(tracks).values():
        rows = [
            np.flatnonzero((crops.track == d) & (crops.frame == birth[d])) for d in daughters[:2]
        ]
        if all(len(row) == 1 for row in rows):
            apart = crops.centre[rows[0][0]] - crops.centre[rows[1][0]]
            distances.append(math.log(max(float(np.hypot(*apart)), 1.0)))
    if not distances:
        return np.array([math.log(15.0), 0.2])
    return np.array([np.mean(distances), np.std(distances)])


def fit_density(video: Video, border: int) -> npt.NDArray[np.float64]:
    """Count the nuclei for each pixel of the field of interest, in every frame.

    Args:
        video: The annotated video.
        border: Width in pixels of the band at the frame's edge without complete truth.

    Returns:
        ``[F]``.
    """
    found = []
    for frame in video.frames:
        height, width = frame.masks.shape
        labels = np.unique(frame.masks)
        centres = ndimage.center_of_mass(frame.masks > 0, frame.masks, labels[labels > 0])
        y, x = np.array(centres).T
        inside = (y >= border) & (y < height - border) & (x >= border) & (x < width - border)
        found.append(inside.sum() / ((height - 2 * border) * (width - 2 * border)))
    return np.array(found)


def _sisters(crops: Crops, tracks: npt.NDArray[np.int32]) -> Array:
    """Mean and deviation of the log distance of sisters by age: straight lines, ``[A, 2]``."""
    birth = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    place = {
        key: row
        for row, key in enumerate(zip(crops.track.tolist(), crops.frame.tolist(), strict=True))
    }
    ages, logs = [], []
    for daughters in daughters_of(tracks).values():
        one, other = daughters[:2]
        for age in range(_OLDEST):
            rows = [place.get((d, birth[d] + age)) for d in (one, other)]
            if None not in rows:
                apart = crops.centre[rows[0]] - crops.centre[rows[1]]
                ages.append(age)
                logs.append(math.log(max(float(np.hypot(*apart)), 1.0)))
    if len(ages) < LEAST_STEPS:
        return np.array([[math.log(30.0), 0.3]])
    age, log = np.sqrt(np.array(ages, float)), np.array(logs)
    mean = np.polynomial.Polynomial.fit(age, log, 1)
    rest = np.polynomial.Polynomial.fit(age, np.abs(log - mean(age)) * math.sqrt(math.pi / 2), 1)
    grid = np.sqrt(np.arange(max(ages) + 1))
    return np.stack([mean(grid), np.maximum(rest(grid), 0.05)], 1)


def _closest(crops: Crops) -> Array:
    """Distance of nearest neighbours over the sum of their mean radii: quantiles, ``[Q]``."""
    radius = np.sqrt(crops.masks.sum((1, 2)) / math.pi)
    found: list[float] = []
    for frame in np.unique(crops.frame):
        rows = np.flatnonzero(crops.frame == frame)
        if len(rows) < 2:
            continue
        apart = crops.centre[rows][:, None] - crops.centre[rows][None]
        ratio = np.hypot(apart[..., 0], apart[..., 1]) / (radius[rows][:, None] + radius[rows])
        np.fill_diagonal(ratio, np.inf)
        found += ratio.min(1).tolist()
    levels = np.linspace(0, 1, _LEVELS)
    return np.maximum(np.quantile(found, levels), 0.5) if found else np.full(_LEVELS, CONTACT)
