"""Motion: measures steps, turns, separations and density from the tracks of the video."""

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats
from scipy.optimize import isotonic_regression

from bvdm_data.fitting.cell_cycle import LEAST_AT_AGE
from bvdm_data.fitting.contours import measure_orientation
from bvdm_data.fitting.nuclei import Crops
from bvdm_data.fitting.stages import INTERPHASE, find_daughters, measure_features
from bvdm_data.fitting.video import Video
from bvdm_data.rng import numpy_rng
from bvdm_data.synth.cell_cycle import PRE_MITOTIC
from bvdm_data.synth.motion import MotionModel, SpeedModel
from bvdm_data.synth.placement import CONTACT

LEAST_STEPS = 5
"""Steps, or pairs of them, that a figure must rest on; with fewer it stays neutral."""

_SHORT = 0.3  # px, added to the length of a step: masks have errors, too
_LATER = 8  # frames: lag at which only the lasting pace is left
_SIMULATED = 20_000
_FREEDOMS = (2.5, 3.0, 4.0, 6.0, 10.0, 30.0)

Array = npt.NDArray[np.float64]


def estimate_stage_drift(crops: Crops) -> Array:
    """Return the median step of all nuclei from each frame to the next, ``[F - 1, 2]`` px."""
    last = int(crops.frame.max(initial=0))
    steps = _steps(crops)
    found = np.zeros((last, 2))
    for frame in range(last):
        here = [step for (_, moment), step in steps.items() if moment == frame]
        if len(here) >= LEAST_STEPS:
            found[frame] = np.median(here, axis=0)
    return found


def find_births(crops: Crops, tracks: npt.NDArray[np.int32]) -> dict[int, int]:
    """Return the frame in which each nucleus was born whose birth the video shows, by track."""
    seen = set(crops.track.tolist())
    return {i: first for i, first, _, parent in tracks.tolist() if parent and i in seen}


def fit_speed_by_age(
    crops: Crops, stages: npt.NDArray[np.int8], drift: Array, births: dict[int, int]
) -> Array:
    """Fit how much faster the young are: a median for each age, never rising.

    In a short video no nucleus whose birth is seen grows old; where those whose birth is not seen
    are slower than the oldest of them, they say what comes after.

    :attr:`bvdm_data.synth.motion.MotionModel.speed_by_age`; ``[1.]`` where the video shows too
    few births.
    """
    stage_of = _stage_of(crops, stages)
    lengths: dict[int, list[float]] = {}
    others: list[float] = []
    for (track, frame), step in _steps(crops).items():
        if stage_of[track, frame + 1] not in PRE_MITOTIC:
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


def fit_speed(
    crops: Crops,
    stages: npt.NDArray[np.int8],
    drift: Array,
    births: dict[int, int],
    speed_by_age: Array,
) -> SpeedModel:
    """Fit how fast nuclei are beside what their age does, and how long a fast one stays fast.

    The logarithm of the length of a nucleus' step is the sum of its lasting pace, whose
    correlation falls geometrically, and of what is new in every frame; the two are told apart by
    the correlations at lags of 1 and 8 frames.
    """
    stage_of = _stage_of(crops, stages)
    oldest = len(speed_by_age) - 1
    own = {}
    for (track, frame), step in _steps(crops).items():
        if oldest and track not in births:
            continue
        age = min(frame + 1 - births[track], oldest) if oldest else 0
        own[track, frame] = (step - drift[frame]) / speed_by_age[age]
    calm = {
        key: step
        for key, step in own.items()
        if not stage_of[key] and not stage_of[key[0], key[1] + 1]
    }
    excited = [
        np.hypot(*step)
        for (track, frame), step in own.items()
        if stage_of[track, frame + 1] in PRE_MITOTIC
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
    draws = numpy_rng(0, "fit", "pace")
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
    return SpeedModel(pace, spread, memory, ratio, freedom)


def fit_division_offset(crops: Crops, tracks: npt.NDArray[np.int32], drift: Array) -> float:
    """Return the robust deviation of the step from a mother to the middle of her newborn."""
    birth = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    place = {
        key: row
        for row, key in enumerate(zip(crops.track.tolist(), crops.frame.tolist(), strict=True))
    }
    shifts: list[float] = []
    for mother, (one, other, *_) in find_daughters(tracks).items():
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


ELONGATED = 1.4
"""Ratio of axes from which the direction of a nucleus' major axis can be told (our choice)."""

_LARGEST_TURN = math.pi / 4
_OLDEST = 40  # frames
_LEVELS = 33


def fit_motion(
    video: Video, crops: Crops, stages: npt.NDArray[np.int8], *, border: int
) -> MotionModel:
    """Measure how nuclei move."""
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
    drift = estimate_stage_drift(crops)
    births = find_births(crops, video.tracks)
    curve = fit_speed_by_age(crops, stages, drift, births)
    freedom, _, scale = stats.t.fit(steps[np.isfinite(steps)], floc=0)
    return MotionModel(
        step=np.array([scale, max(freedom, 1.5)]),
        rotation=_turn(crops, first, second),
        separation=_separation(crops, video.tracks),
        density=fit_density(video, border),
        speed=fit_speed(crops, stages, drift, births, curve),
        speed_by_age=curve,
        division_offset=fit_division_offset(crops, video.tracks, drift),
        stage_drift=drift,
        sister_distance=_sisters(crops, video.tracks),
        neighbour_spacing=_closest(crops),
    )


def _turn(crops: Crops, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Robust deviation of the turn of elongated nuclei from frame to frame, radians."""
    long = measure_features(crops).aspect >= ELONGATED
    chosen = [(a, b) for a, b in zip(first, second, strict=True) if long[a] and long[b]]
    if not chosen:
        return 0.0
    turns = np.array(
        [
            measure_orientation(crops.masks[b]) - measure_orientation(crops.masks[a])
            for a, b in chosen
        ]
    )
    turns = (turns + math.pi / 2) % math.pi - math.pi / 2
    turns = turns[np.abs(turns) < _LARGEST_TURN]
    return float(1.4826 * np.median(np.abs(turns)))


def _separation(crops: Crops, tracks: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Mean and deviation of the log distance of daughters in their first frame."""
    birth = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    distances = []
    for daughters in find_daughters(tracks).values():
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
    for daughters in find_daughters(tracks).values():
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
