"""How nuclei move: steps, turns, distances and density."""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from scipy import ndimage, stats
from scipy.optimize import isotonic_regression

from bvdm_data.fitting.cell_cycle import LEAST_AT_AGE
from bvdm_data.fitting.nuclei import (
    INTERPHASE,
    Nuclei,
    advise,
    fit_ar1_plus_noise,
    measure_spread,
)
from bvdm_data.fitting.video import Video, correlate
from bvdm_data.rng import numpy_rng
from bvdm_data.synth.cell_cycle import PRE_MITOTIC
from bvdm_data.synth.contours import Array, Ints, tabulate_quantiles
from bvdm_data.synth.motion import MotionModel, SpeedModel
from bvdm_data.synth.occupancy import CONTACT

LEAST_STEPS = 5  # steps, or pairs of them, that a figure must rest on; with fewer it stays neutral
# Ratio of axes from which the direction of a nucleus' major axis can be told (our choice).
ELONGATED = 1.4
_LARGEST_TURN = math.pi / 4
_OLDEST, _LEVELS = 40, 33  # frames; quantiles that are kept
_SHORT = 0.3  # px, added to the length of a step: masks have errors, too
_LATER = 8  # frames: lag at which only the lasting speed is left
_SIMULATED = 20_000
_FREEDOMS = (2.5, 3.0, 4.0, 6.0, 10.0, 30.0)


def fit_motion(nuclei: Nuclei, video: Video, *, border: int) -> MotionModel:
    """Measure how nuclei move."""
    crops, lineage = nuclei.crops, nuclei.lineage
    calm = lineage.find_pairs(1, nuclei.stage == INTERPHASE)
    if len(calm) < 10:
        raise ValueError(
            "the video must show nuclei in consecutive frames to fit motion, got "
            f"{len(calm)} such pairs; {advise(crops, 'give a longer video, or check the ids')}"
        )
    freedom, _, scale = stats.t.fit(_measure_steps(nuclei, calm).ravel(), floc=0)
    pairs = lineage.find_pairs(1)
    drift = _estimate_stage_drift(nuclei, pairs)
    steps = _measure_steps(nuclei, pairs) - drift[crops.frame[pairs[:, 0]]]
    by_age = _fit_speed_by_age(nuclei, pairs, steps)
    return MotionModel(
        step=np.array([scale, max(freedom, 1.5)]),
        rotation=_measure_turn(nuclei, calm),
        separation=_measure_separation(nuclei),
        density=fit_density(video, border),
        speed=_fit_speed(nuclei, pairs, steps, by_age),
        speed_by_age=by_age,
        division_offset=_fit_division_offset(nuclei, drift),
        longest_step=float(np.hypot(*_measure_steps(nuclei, pairs).T).max()),
        stage_drift=drift,
        sister_distance=_fit_sister_distance(nuclei),
        neighbour_spacing=_measure_spacing(nuclei),
    )


def scale_motion(motion: MotionModel, size: float) -> MotionModel:
    """Return the motion of nuclei that are so many times as long."""
    longer = np.array([math.log(size), 0.0])
    return replace(
        motion,
        step=motion.step * [size, 1.0],
        separation=motion.separation + longer,
        speed=motion.speed._replace(scale=motion.speed.scale * size),
        division_offset=motion.division_offset * size,
        longest_step=motion.longest_step * size,
        stage_drift=motion.stage_drift * size,
        sister_distance=motion.sister_distance + longer,
    )


def _measure_steps(nuclei: Nuclei, pairs: Ints) -> Array:
    """Return the step of each pair of rows, ``[n, 2]`` px."""
    centre = nuclei.crops.centre
    return (centre[pairs[:, 1]] - centre[pairs[:, 0]]).astype(float)


def _estimate_stage_drift(nuclei: Nuclei, pairs: Ints) -> Array:
    """Return the median step of all nuclei from each frame to the next, ``[F - 1, 2]`` px."""
    frames, steps = nuclei.crops.frame[pairs[:, 0]], _measure_steps(nuclei, pairs)
    drift = np.zeros((int(nuclei.crops.frame.max(initial=0)), 2))
    for frame in range(len(drift)):
        here = steps[frames == frame]
        if len(here) >= LEAST_STEPS:
            drift[frame] = np.median(here, axis=0)
    return drift


def _fit_speed_by_age(nuclei: Nuclei, pairs: Ints, steps: Array) -> Array:
    """Fit how much faster the young are: a median for each age, never rising, ``[A]``.

    Nuclei whose birth is not seen end the curve where they are slower than the oldest others.
    """
    later = pairs[:, 1]
    dividing = np.isin(nuclei.stage[later], PRE_MITOTIC)
    age = nuclei.lineage.ages[later][~dividing]
    length = np.hypot(*steps[~dividing].T)
    lengths = [length[age == now] for now in range(age.max(initial=-1) + 1)]
    ages = [now for now, own in enumerate(lengths) if len(own) >= LEAST_AT_AGE]
    if not ages:
        return np.ones(1)
    medians = np.array([np.median(lengths[now]) for now in ages])
    weights = np.array([len(lengths[now]) for now in ages], float)
    falling = isotonic_regression(medians, weights=weights, increasing=False).x
    curve = np.interp(np.arange(ages[-1] + 1), ages, falling)
    others = length[age < 0]
    if len(others) >= LEAST_AT_AGE and np.median(others) < curve[-1]:
        curve = np.append(curve, np.median(others))
    usual = np.median(np.concatenate([lengths[now] for now in ages]))
    return np.asarray(curve / max(usual, 1e-6))


def _fit_speed(nuclei: Nuclei, pairs: Ints, steps: Array, by_age: Array) -> SpeedModel:
    """Fit the speed apart from age: a log step is a lasting part plus what is new in each frame."""
    if len(by_age) > 1:
        age = nuclei.lineage.ages[pairs[:, 1]]
        pairs, steps = pairs[age >= 0], steps[age >= 0]
        steps = steps / by_age[np.minimum(age[age >= 0], len(by_age) - 1)][:, None]
    calm = (nuclei.stage[pairs] == INTERPHASE).all(1)
    dividing = steps[np.isin(nuclei.stage[pairs[:, 1]], PRE_MITOTIC)]
    if calm.any():
        pairs, steps = pairs[calm], steps[calm]
    speed = np.full(len(nuclei.stage), np.nan)
    speed[pairs[:, 0]] = np.log(np.hypot(*steps.T) + _SHORT)
    near, far = (_correlate_later(nuclei, speed, lag) for lag in (1, _LATER))
    memory = float(fit_ar1_plus_noise(np.array(near), np.array(far), _LATER)[0])
    spread = math.sqrt(max(near, 0.0) * float(np.nanvar(speed)))
    scale, freedom = _fit_student_t(np.abs(steps.ravel()), spread)
    ratio = 1.0
    if len(dividing) >= LEAST_STEPS:
        usual = max(float(np.median(np.hypot(*steps.T))), 1e-6)
        ratio = float(np.median(np.hypot(*dividing.T))) / usual
    return SpeedModel(scale, spread, memory, ratio, freedom)


def _correlate_later(nuclei: Nuclei, values: Array, lag: int) -> float:
    """Correlate the values of rows with those of the same nuclei ``lag`` frames later."""
    pairs = nuclei.lineage.find_pairs(lag, np.isfinite(values))
    if len(pairs) < LEAST_STEPS:
        return 0.0
    return correlate(*values[pairs].T)


def _fit_student_t(lengths: Array, spread: float) -> tuple[float, float]:
    """Return scale and freedom of the t law, with a log-normal scale, whose quantiles fit best."""
    middle, end = np.quantile(lengths, [0.5, 0.95])
    rng = numpy_rng(0, "fit", "pace")
    factor = np.exp(spread * rng.standard_normal(_SIMULATED))
    tries = []
    for freedom in _FREEDOMS:
        drawn = np.abs(factor * rng.standard_t(freedom, _SIMULATED))
        half, tail = np.quantile(drawn, [0.5, 0.95])
        miss = abs(math.log(max(tail / half, 1e-6) * max(middle, 1e-6) / max(end, 1e-6)))
        tries.append((miss, freedom, float(middle / half)))
    _, freedom, scale = min(tries)
    return scale, freedom


def _fit_division_offset(nuclei: Nuclei, drift: Array) -> float:
    """Return the robust deviation of the step from a mother to the middle of her newborn."""
    lineage, centre = nuclei.lineage, nuclei.crops.centre.astype(float)
    offsets: list[float] = []
    for mother, daughters in lineage.daughters.items():
        first, rows = lineage.spans[daughters[0]][0], lineage.rows_at(daughters[:2])
        before = lineage.row_of.get((mother, first - 1))
        if before is not None and rows:
            offsets += (centre[rows].mean(0) - centre[before] - drift[first - 1]).tolist()
    return 0.0 if len(offsets) < 2 * LEAST_STEPS else measure_spread(offsets)


def _measure_turn(nuclei: Nuclei, pairs: Ints) -> float:
    """Measure the robust deviation of the turn of elongated nuclei between frames, radians."""
    pairs = pairs[(nuclei.aspect[pairs] >= ELONGATED).all(1)]
    turns = nuclei.angle[pairs[:, 1]] - nuclei.angle[pairs[:, 0]]
    turns = (turns + math.pi / 2) % math.pi - math.pi / 2
    return measure_spread(turns[np.abs(turns) < _LARGEST_TURN])


def _measure_log_distances(nuclei: Nuclei, ages: Iterable[int]) -> Array:
    """Return age and log distance (px) of all sisters that are seen at these ages, ``[n, 2]``."""
    table = []
    for daughters in nuclei.lineage.daughters.values():
        for age in ages:
            rows = nuclei.lineage.rows_at(daughters[:2], age)
            if rows:
                apart = nuclei.crops.centre[rows[0]] - nuclei.crops.centre[rows[1]]
                table.append((age, math.log(max(float(np.hypot(*apart)), 1.0))))
    return np.array(table, float).reshape(-1, 2)


def _measure_separation(nuclei: Nuclei) -> Array:
    """Measure mean and deviation of the log distance of daughters in their first frame."""
    distances = _measure_log_distances(nuclei, [0])[:, 1]
    if not len(distances):
        return np.array([math.log(15.0), 0.2])
    return np.array([distances.mean(), distances.std()])


def _fit_sister_distance(nuclei: Nuclei) -> Array:
    """Fit mean and deviation of the log distance of sisters: lines over root age, ``[A, 2]``."""
    ages, logs = _measure_log_distances(nuclei, range(_OLDEST)).T
    if len(ages) < LEAST_STEPS:
        return np.array([[math.log(30.0), 0.3]])
    root = np.sqrt(ages)
    mean = np.polynomial.Polynomial.fit(root, logs, 1)
    # The mean absolute deviation of a normal law is sqrt(2 / pi) of its standard deviation.
    error = np.abs(logs - mean(root)) * math.sqrt(math.pi / 2)
    deviation = np.polynomial.Polynomial.fit(root, error, 1)
    grid = np.sqrt(np.arange(ages.max() + 1))
    return np.stack([mean(grid), np.maximum(deviation(grid), 0.05)], 1)


def fit_density(video: Video, border: int) -> Array:
    """Count the nuclei for each pixel of the field of interest, in every frame, ``[F]``."""
    density = []
    for frame in video.frames:
        height, width = frame.masks.shape
        labels = np.unique(frame.masks)
        centres = ndimage.center_of_mass(frame.masks > 0, frame.masks, labels[labels > 0])
        y, x = np.array(centres).T
        inside = (y >= border) & (y < height - border) & (x >= border) & (x < width - border)
        density.append(inside.sum() / ((height - 2 * border) * (width - 2 * border)))
    if not any(density):
        raise ValueError(
            f"border must leave nuclei in the field of interest to measure their density, got "
            f"{border} and none in {len(density)} frames; give a smaller border"
        )
    return np.array(density)


def _measure_spacing(nuclei: Nuclei) -> Array:
    """Return quantiles of the distance of nearest neighbours over the sum of radii, ``[Q]``."""
    crops, radius = nuclei.crops, np.sqrt(nuclei.area / math.pi)
    ratios: list[float] = []
    for frame in np.unique(crops.frame):
        rows = np.flatnonzero(crops.frame == frame)
        apart = crops.centre[rows][:, None] - crops.centre[rows][None]
        ratio = np.hypot(apart[..., 0], apart[..., 1]) / (radius[rows][:, None] + radius[rows])
        np.fill_diagonal(ratio, np.inf)
        ratios += ratio.min(1).tolist() if len(rows) > 1 else []
    if not ratios:
        return np.full(_LEVELS, CONTACT)
    return np.maximum(tabulate_quantiles(ratios, _LEVELS), 0.5)
