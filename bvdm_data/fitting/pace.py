"""Pace: measures how fast nuclei are, by age, in mitosis, and where their newborn lie."""

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.growth import LEAST_AT_AGE
from bvdm_data.fitting.stages import daughters_of
from bvdm_data.randomness import numpy_stream
from bvdm_data.synth.timeline import AFTER_INTERPHASE

LEAST_STEPS = 5
"""Steps, or pairs of them, that a figure must rest on; with fewer it stays neutral."""

_SHORT = 0.3  # px, added to the length of a step: masks have errors, too
_LATER = 8  # frames: lag at which only the lasting pace is left
_SIMULATED = 20_000
_FREEDOMS = (2.5, 3.0, 4.0, 6.0, 10.0, 30.0)

Array = npt.NDArray[np.float64]


def field_drift(crops: Crops) -> Array:
    """Return the median step of all nuclei from each frame to the next, ``[F - 1, 2]`` px.

    Args:
        crops: Nuclei cut out of the video.
    """
    last = int(crops.frame.max(initial=0))
    steps = _steps(crops)
    found = np.zeros((last, 2))
    for frame in range(last):
        here = [step for (_, moment), step in steps.items() if moment == frame]
        if len(here) >= LEAST_STEPS:
            found[frame] = np.median(here, axis=0)
    return found


def births_of(crops: Crops, tracks: npt.NDArray[np.int32]) -> dict[int, int]:
    """Return the frame in which each nucleus was born whose birth the video shows, by track.

    Args:
        crops: Nuclei cut out of the video.
        tracks: The lineage.
    """
    seen = set(crops.track.tolist())
    return {i: first for i, first, _, parent in tracks.tolist() if parent and i in seen}


def fit_pace_of_age(
    crops: Crops, stages: npt.NDArray[np.int8], drift: Array, births: dict[int, int]
) -> Array:
    """Fit how much faster the young are: a median for each age, never rising.

    In a short video no nucleus whose birth is seen grows old; where those whose birth is not seen
    are slower than the oldest of them, they say what comes after.

    Args:
        crops: Nuclei cut out of the video.
        stages: Their stages.
        drift: From :func:`field_drift`.
        births: From :func:`births_of`.

    Returns:
        :attr:`bvdm_data.synth.motion.MotionModel.pace_of_age`; ``[1.]`` where the video shows too
        few births.
    """
    stage_of = _stage_of(crops, stages)
    lengths: dict[int, list[float]] = {}
    others: list[float] = []
    for (track, frame), step in _steps(crops).items():
        if stage_of[track, frame + 1] not in AFTER_INTERPHASE:
            born = births.get(track)
            known = others if born is None else lengths.setdefault(frame + 1 - born, [])
            known.append(float(np.hypot(*(step - drift[frame]))))
    ages = [age for age in sorted(lengths) if len(lengths[age]) >= LEAST_AT_AGE]
    if not ages:
        return np.ones(1)
    medians = np.array([np.median(lengths[age]) for age in ages])
    weights = np.array([len(lengths[age]) for age in ages], float)
    falling = isotonic_regression(medians, weights=weights, increasing=False).x
    usual = np.median(np.concatenate([lengths[age] for age in ages]))
    curve = np.interp(np.arange(ages[-1] + 1), ages, falling)
    if len(others) >= LEAST_AT_AGE and np.median(others) < curve[-1]:
        curve = np.append(curve, np.median(others))
    return np.asarray(curve / max(usual, 1e-6))


def fit_pace(
    crops: Crops,
    stages: npt.NDArray[np.int8],
    drift: Array,
    births: dict[int, int],
    pace_of_age: Array,
) -> Array:
    """Fit how fast nuclei are beside what their age does, and how long a fast one stays fast.

    The logarithm of the length of a nucleus' step is the sum of its lasting pace, whose
    correlation falls geometrically, and of what is new in every frame; the two are told apart by
    the correlations at lags of 1 and 8 frames.

    Args:
        crops: Nuclei cut out of the video.
        stages: Their stages.
        drift: From :func:`field_drift`.
        births: From :func:`births_of`.
        pace_of_age: From :func:`fit_pace_of_age`; where it says something, only nuclei whose
            birth is seen are looked at.

    Returns:
        :attr:`bvdm_data.synth.motion.MotionModel.pace`.
    """
    stage_of = _stage_of(crops, stages)
    oldest = len(pace_of_age) - 1
    own = {}
    for (track, frame), step in _steps(crops).items():
        if oldest and track not in births:
            continue
        age = min(frame + 1 - births[track], oldest) if oldest else 0
        own[track, frame] = (step - drift[frame]) / pace_of_age[age]
    calm = {
        key: step
        for key, step in own.items()
        if not stage_of[key] and not stage_of[key[0], key[1] + 1]
    }
    excited = [
        np.hypot(*step)
        for (track, frame), step in own.items()
        if stage_of[track, frame + 1] in AFTER_INTERPHASE
    ]
    calm = calm or own
    length = {key: math.log(np.hypot(*step) + _SHORT) for key, step in calm.items()}
    near, far = (_lag_correlation(length, lag) for lag in (1, _LATER))
    memory = (
        float(np.clip((far / max(near, 1e-3)) ** (1 / (_LATER - 1)), 0, 0.98)) if far > 0 else 0.0
    )
    spread = math.sqrt(max(near, 0.0) * float(np.var(list(length.values()))))
    along = np.abs(np.array(list(calm.values())).ravel())
    middle, far_end = np.quantile(along, [0.5, 0.95])
    # Quantiles of simulated steps for some degrees of freedom: the nearest ratio wins.
    draws = numpy_stream(0, "fit", "pace")
    factor = np.exp(spread * draws.standard_normal(_SIMULATED))
    found = []
    for freedom in _FREEDOMS:
        tried = np.abs(factor * draws.standard_t(freedom, _SIMULATED))
        half, tail = np.quantile(tried, [0.5, 0.95])
        miss = abs(math.log(max(tail / half, 1e-6) * max(middle, 1e-6) / max(far_end, 1e-6)))
        found.append((miss, freedom, float(middle / half)))
    _, freedom, pace = min(found)
    ratio = 1.0
    if len(excited) >= LEAST_STEPS:
        ratio = float(
            np.median(excited) / max(np.median([np.hypot(*s) for s in calm.values()]), 1e-6)
        )
    return np.array([pace, spread, memory, ratio, freedom])


def fit_shift(crops: Crops, tracks: npt.NDArray[np.int32], drift: Array) -> float:
    """Return the robust deviation of the step from a mother to the middle of her newborn.

    Args:
        crops: Nuclei cut out of the video.
        tracks: The lineage.
        drift: From :func:`field_drift`.

    Returns:
        :attr:`bvdm_data.synth.motion.MotionModel.shift`; 0 where the video shows too few births.
    """
    birth = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    place = {
        key: row
        for row, key in enumerate(zip(crops.track.tolist(), crops.frame.tolist(), strict=True))
    }
    shifts: list[float] = []
    for mother, (one, other, *_) in daughters_of(tracks).items():
        first = birth[one]
        rows = [place.get(key) for key in ((one, first), (other, first), (mother, first - 1))]
        if None not in rows:
            here, there, before = (crops.centre[row].astype(float) for row in rows)
            shifts += ((here + there) / 2 - before - drift[first - 1]).tolist()
    if len(shifts) < 2 * LEAST_STEPS:
        return 0.0
    return float(1.4826 * np.median(np.abs(shifts)))


def _stage_of(crops: Crops, stages: npt.NDArray[np.int8]) -> dict[tuple[int, int], int]:
    """Return the stage of every nucleus by track and frame."""
    keys = zip(crops.track.tolist(), crops.frame.tolist(), strict=True)
    return dict(zip(keys, stages.tolist(), strict=True))


def _steps(crops: Crops) -> dict[tuple[int, int], Array]:
    """Return the step of every nucleus from each frame to the next, by track and frame."""
    place = {
        key: row
        for row, key in enumerate(zip(crops.track.tolist(), crops.frame.tolist(), strict=True))
    }
    return {
        (track, frame): (crops.centre[place[track, frame + 1]] - crops.centre[row]).astype(float)
        for (track, frame), row in place.items()
        if (track, frame + 1) in place
    }


def _lag_correlation(values: dict[tuple[int, int], float], lag: int) -> float:
    pairs = [
        (value, values[track, frame + lag])
        for (track, frame), value in values.items()
        if (track, frame + lag) in values
    ]
    if len(pairs) < LEAST_STEPS:
        return 0.0
    found = float(np.corrcoef(np.array(pairs).T)[0, 1])
    return found if math.isfinite(found) else 0.0
