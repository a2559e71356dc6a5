"""How nuclei live: durations, brightness and growth, measured from the tracks of the video."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from bvdm_data.clip import PHASES
from bvdm_data.fitting.nuclei import (
    INTERPHASE,
    Lineage,
    Nuclei,
    advise,
    measure_spread,
)
from bvdm_data.fitting.video import VideoTooShortError, correlate
from bvdm_data.rng import numpy_rng
from bvdm_data.synth.cell_cycle import (
    POST_MITOTIC,
    PRE_MITOTIC,
    CellCycleModel,
    compute_area_curve,
    make_stages,
    resample_durations,
    sample_cycles_and_ages,
)
from bvdm_data.synth.contours import Array, Ints, interpolate_quantile, tabulate_quantiles

QUANTILES = 33  # points of a distribution of areas that are kept
# Points of the distribution of brightness that are kept: it has a long tail.
INTENSITY_QUANTILES = 129
LEAST_AT_AGE = 20  # nuclei of an age, or pairs of them, that a figure must rest on
# Autocorrelation of the rank of brightness where a video is too short to measure it: as in the HeLa
# video, at its 30 minutes a frame.
DEFAULT_AUTOCORRELATION = 0.998
# What sisters share of its drift where a video shows too few of them: as in the HeLa video.
SHARED = 0.56
DIMMEST = 1e-4  # least brightness, in grey values; lower ones are raised to it
# Frames before, or after, a division in which a nucleus must be whole for its stages to count.
WHOLE = 3
LONGEST = 4  # longest duration of a short stage in the table, frames
SHRUNKEN = 0.6  # most area of a nucleus at its death, over the median in interphase
_LATER = 8  # frames between the two sizes, or brightnesses, whose correlation is taken
# Frames over which the drift of the brightness of sisters is taken, from an age when telophase is
# over.
_DRIFT, _SETTLED = 16, 6
_DRAWN = 20_000  # nuclei whose areas are compared with the video's


def fit_cell_cycle(nuclei: Nuclei, *, minutes: float) -> CellCycleModel:
    """Measure how nuclei live."""
    if len(nuclei.references) < 2:
        raise VideoTooShortError(
            "the video must show at least 2 divisions whose mothers are seen whole for some frames "
            f"before, got {len(nuclei.references)} of {len(nuclei.lineage.daughters)} divisions; "
            f"{advise(nuclei.crops, 'give a longer video, or lives of a model (--lives hela)')}"
        )
    pairs = [nuclei.lineage.rows_at(d) for d in nuclei.lineage.daughters.values() if len(d) == 2]
    born = np.array([pair for pair in pairs if pair], int).reshape(-1, 2)
    share = nuclei.area[born[:, 0]] / nuclei.area[born].sum(1) - 0.5
    light = np.log(np.maximum(nuclei.brightness[born], DIMMEST))
    model = CellCycleModel(
        cycle=_fit_cycle_length(nuclei.lineage),
        sister_spread=measure_spread(light[:, 0] - light[:, 1]) / math.sqrt(2),
        division_asymmetry=math.sqrt((share**2).mean()) if len(share) else 0.0,
        division_asymmetry_robust=measure_spread(share),
        **_fit_intensities(nuclei),
        **_fit_areas(nuclei),
        **_count_short_stages(nuclei),
        minutes=minutes,
        death_rate=_measure_death_rate(nuclei),
    )
    usual = float(np.median(nuclei.area[nuclei.stage == INTERPHASE]))
    return replace(model, adult_area=model.adult_area * usual / _compute_median_area(model))


def _fit_cycle_length(lineage: Lineage) -> Array:
    """Fit a log-normal law to the time from birth to division.

    Most cycles are cut by the ends of the video: they are right-censored. Returns mean and standard
    deviation of the logarithm of the cycle in frames, ``[2]``.
    """
    divided = lineage.mothers.keys() & lineage.daughters.keys()
    cut = [last - first + 1 for i, (first, last) in lineage.spans.items() if i not in divided]
    whole = lineage.whole_cycles
    if len(whole) < 2:
        # Too short a video for whole cycles: from the rate of divisions, with a usual spread.
        rate = max(len(lineage.daughters), 1) / sum(whole + cut)
        return np.array([math.log(math.log(2) / rate), 0.2])
    data = stats.CensoredData(uncensored=np.array(whole), right=np.array(cut))
    deviation, _, median = stats.lognorm.fit(data, floc=0)
    return np.array([math.log(median), deviation])


def _measure_death_rate(nuclei: Nuclei) -> float:
    """Return deaths a frame of interphase: tracks that end in full view, shrunken and bright.

    Those of nuclei that drift out of focus end dim, and those that are lost end as large as ever.
    """
    lineage, calm = nuclei.lineage, nuclei.stage == INTERPHASE
    area, light = np.median(nuclei.area[calm]), np.median(nuclei.brightness[calm])
    centre, off = nuclei.crops.centre, 2 * math.sqrt(area / math.pi)
    inside = (centre > centre.min(0) + off) & (centre < centre.max(0) - off)
    dead = inside.all(1) & (nuclei.area <= SHRUNKEN * area) & (nuclei.brightness >= light)
    parents, end = set(lineage.parents.values()), max(last for _, last in lineage.spans.values())
    ends = [(i, last) for i, (_, last) in lineage.spans.items() if i not in parents and last < end]
    deaths = sum(bool(dead[lineage.row_of[key]]) for key in ends if key in lineage.row_of)
    return deaths / max(int(calm.sum()), 1)


def _count_short_stages(nuclei: Nuclei) -> dict[str, Any]:
    """Count the frames of the short stages of every mitosis and newborn, and tabulate them."""
    lineage = nuclei.lineage

    def count(tracks: list[int], stages: tuple[int, ...]) -> Ints:
        own = [nuclei.stage[nuclei.crops.track == track] for track in tracks]
        counts = np.array([[(o == stage).sum() for stage in stages] for o in own], int)
        return counts.clip(max=LONGEST)

    def find_whole(tracks: list[int], starts: list[int]) -> list[bool]:
        """Mark the tracks that are seen in all frames from a start on; all, where none is."""
        seen = [
            all((track, start + frame) in lineage.row_of for frame in range(WHOLE))
            for track, start in zip(tracks, starts, strict=True)
        ]
        return seen if any(seen) else [True] * len(tracks)

    mothers = list(nuclei.references)
    born = [d for mother in mothers for d in lineage.daughters[mother]]
    mitoses, births = count(mothers, PRE_MITOTIC), count(born, POST_MITOTIC)
    durations = np.zeros((len(PHASES), LONGEST + 1))
    for stages, counts in ((PRE_MITOTIC, mitoses), (POST_MITOTIC, births)):
        for stage, column in zip(stages, counts.T, strict=True):
            durations[stage] = np.bincount(column, minlength=LONGEST + 1) / len(counts)
    ends = [lineage.spans[mother][1] - WHOLE + 1 for mother in mothers]
    starts = [lineage.spans[daughter][0] for daughter in born]
    return {
        "durations": durations,
        "pro_metaphase_frames": mitoses[find_whole(mothers, ends)].astype(float),
        "ana_telophase_frames": births[find_whole(born, starts)].astype(float),
    }


# Areas


def _fit_areas(nuclei: Nuclei) -> dict[str, Any]:
    """Measure the areas of :class:`bvdm_data.synth.cell_cycle.CellCycleModel`."""
    references = [area for area, _ in nuclei.references.values()]
    body = tabulate_quantiles(references, QUANTILES)
    ratios = _measure_mitotic_areas(nuclei)
    newborn = nuclei.lineage.ages == 0
    spread = np.zeros(len(PHASES))
    for stage, ratio in ratios.items():
        own = ratio[np.isfinite(ratio)]
        if len(own) >= 2:
            spread[stage] = stats.median_abs_deviation(np.log(own), scale="normal")
    return {
        "mother_area": body,
        "adult_area": body,
        "area_of_age": _measure_area_of_age(nuclei),
        "area_in_interphase": _measure_area_of_age(nuclei, nuclei.stage == INTERPHASE),
        "area_of_stage": _take_medians(ratios),
        "area_at_birth": _take_medians(
            {stage: np.where(newborn, ratio, np.nan) for stage, ratio in ratios.items()}
        ),
        "stage_spread": spread,
        "size": _fit_size_drift(nuclei, body),
    }


def _measure_mitotic_areas(nuclei: Nuclei) -> dict[int, Array]:
    """Return areas in each stage of mitosis over the mother's before, ``[n]``, or NaN."""
    lineage, references = nuclei.lineage, nuclei.references
    nothing = (math.nan, 0.0)
    tracks = nuclei.crops.track.tolist()
    own = np.array([references.get(t, nothing)[0] for t in tracks])
    hers = np.array([references.get(lineage.mothers.get(t, 0), nothing)[0] for t in tracks])
    return {
        stage: np.where(nuclei.stage == stage, nuclei.area / body, np.nan)
        for stages, body in ((PRE_MITOTIC, own), (POST_MITOTIC, hers))
        for stage in stages
    }


def _take_medians(ratios: Mapping[int, Array]) -> Array:
    """Return the median of each stage, ``[S]``; 1 where none is seen."""
    medians = np.ones(len(PHASES))
    for stage, ratio in ratios.items():
        if np.isfinite(ratio).any():
            medians[stage] = np.nanmedian(ratio)
    return medians


def _measure_area_of_age(nuclei: Nuclei, keep: npt.NDArray[np.bool_] | None = None) -> Array:
    """Return the median area of daughters over their mother's by age, never falling, ``[A]``."""
    ratios: dict[int, list[float]] = {}
    bodies = {
        daughter: body
        for mother, (body, _) in nuclei.references.items()
        for daughter in nuclei.lineage.daughters[mother]
    }
    ages, tracks = nuclei.lineage.ages.tolist(), nuclei.crops.track.tolist()
    for row, (age, track) in enumerate(zip(ages, tracks, strict=True)):
        if track in bodies and (keep is None or keep[row]):
            ratios.setdefault(age, []).append(float(nuclei.area[row]) / bodies[track])
    # Ages at which fewer than a quarter of the daughters are seen are left out.
    least = max(2, len(ratios.get(0, [])) / 4)
    youngest = min((age for age, own in ratios.items() if len(own) >= least), default=0)
    of_age = (ratios.get(age, []) for age in itertools.count(youngest))
    curve = list(itertools.takewhile(lambda own: len(own) >= least, of_age))
    # Where no newborn is seen whole, half of the mother is the best guess.
    medians = [float(np.median(own)) for own in curve] or [0.5]
    return np.maximum.accumulate([medians[0]] * youngest + medians)


def _fit_size_drift(nuclei: Nuclei, body: Array) -> Array:
    """Fit spread, beyond that of ``body``, and autocorrelation of log areas at one age, ``[2]``."""
    calm, ages = nuclei.stage == INTERPHASE, nuclei.lineage.ages
    deviation = np.full(len(nuclei.area), np.nan)
    for age in range(ages.max(initial=-1) + 1):
        rows = calm & (ages == age)
        if rows.sum() >= LEAST_AT_AGE:
            logs = np.log(np.maximum(nuclei.area[rows], 1.0))
            deviation[rows] = logs - np.median(logs)
    measured = np.isfinite(deviation)
    pairs = nuclei.lineage.find_pairs(_LATER, measured)
    if len(pairs) < LEAST_AT_AGE:
        return np.array([0.0, 0.9])
    total = stats.median_abs_deviation(deviation[measured], scale="normal")
    bodies = stats.median_abs_deviation(np.log(body), scale="normal")
    correlation = correlate(*deviation[pairs].T)
    memory = float(np.clip(correlation, 0.0, 0.98**_LATER)) ** (1 / _LATER)
    return np.array([math.sqrt(max(total**2 - bodies**2, 0.0)), memory])


def _compute_median_area(model: CellCycleModel) -> float:
    """Return the median area in interphase of nuclei of all ages, drawn from a model, px^2."""
    rng = numpy_rng(0, "fit", "lives")
    cycles, ages = sample_cycles_and_ages(model.cycle, rng, _DRAWN)
    stages = make_stages(resample_durations(model, rng, rng.random(_DRAWN)), cycles)
    ages = np.minimum(ages, stages.length - 1)
    spread = np.exp(model.size[0] * rng.standard_normal(_DRAWN))
    bodies = interpolate_quantile(model.adult_area, rng.random(_DRAWN))
    areas = bodies * compute_area_curve(model, stages, ages[None])[0] * spread
    calm = stages.at(ages) == INTERPHASE
    return float(np.median(areas[calm] if calm.any() else model.adult_area))


# Brightness


def tabulate_intensities(brightness: Array) -> Array:
    """Return the distribution of brightness, ``[INTENSITY_QUANTILES]`` grey values."""
    return tabulate_quantiles(np.maximum(brightness, DIMMEST), INTENSITY_QUANTILES)


def _fit_intensities(nuclei: Nuclei) -> dict[str, Any]:
    """Measure the brightness of :class:`bvdm_data.synth.cell_cycle.CellCycleModel`."""
    calm = nuclei.stage == INTERPHASE
    # Ranks in interphase, as if drawn from a normal law.
    ranks = stats.rankdata(nuclei.brightness[calm])
    score = np.full(len(calm), np.nan)
    score[calm] = stats.norm.ppf((ranks - 0.5) / max(len(ranks), 1))
    memory = _fit_brightness_memory(nuclei, score)
    stage_brightness, correlation = _measure_stage_brightness(nuclei)
    return {
        "brightness": tabulate_intensities(nuclei.brightness[calm]),
        "brightness_autocorrelation": memory,
        "brightness_sister_correlation": _measure_shared_drift(nuclei, score, memory),
        "stage_brightness": stage_brightness,
        "mitosis_correlation": correlation,
    }


def _fit_brightness_memory(nuclei: Nuclei, score: Array) -> float:
    """Return the autocorrelation of a score from frame to frame, from how much most nuclei change.

    The spread is robust: a few masks that jump from one nucleus to its neighbour would decide the
    correlation itself.
    """
    pairs = nuclei.lineage.find_pairs(_LATER, np.isfinite(score))
    if len(pairs) < LEAST_AT_AGE:
        return DEFAULT_AUTOCORRELATION
    changes = score[pairs[:, 1]] - score[pairs[:, 0]]
    kept = float(1 - stats.median_abs_deviation(changes, scale="normal") ** 2 / 2)
    return kept ** (1 / _LATER) if 0 < kept < 1 else DEFAULT_AUTOCORRELATION


def _measure_shared_drift(nuclei: Nuclei, score: Array, memory: float) -> float:
    """Correlate, between sisters, what is new in their scores."""
    drifts = []
    for daughters in nuclei.lineage.daughters.values():
        before = nuclei.lineage.rows_at(daughters, _SETTLED)
        after = nuclei.lineage.rows_at(daughters, _SETTLED + _DRIFT)
        if len(daughters) == 2 and before and after and np.isfinite(score[before + after]).all():
            drifts.append(score[after] - memory**_DRIFT * score[before])
    table = np.array(drifts).reshape(-1, 2)
    if len(table) < LEAST_AT_AGE or not (table.std(axis=0) > 0).all():
        return SHARED
    return min(max(correlate(*table.T), 0.0), 1.0)


def _measure_stage_brightness(nuclei: Nuclei) -> tuple[Array, float]:
    """Return median and robust deviation of log brightness against interphase, ``[S, 2]``.

    A mother is compared with herself before, a newborn with its mother. Also returns how these
    deviations correlate with the mother's brightness in interphase: the bright gain less.
    """
    lineage, tracks = nuclei.lineage, nuclei.crops.track.tolist()
    base = {mother: math.log(max(b, DIMMEST)) for mother, (_, b) in nuclei.references.items()}
    own = np.array([base.get(track, math.nan) for track in tracks])
    hers = np.array([base.get(lineage.mothers.get(track, 0), math.nan) for track in tracks])
    against = np.where(np.isin(nuclei.stage, POST_MITOTIC), hers, own)
    light = np.log(np.maximum(nuclei.brightness, DIMMEST))
    ratio, scores = light - against, np.full(len(light), np.nan)
    table = np.zeros((len(PHASES), 2))
    for stage in range(1, len(PHASES)):
        rows = (nuclei.stage == stage) & np.isfinite(ratio)
        if rows.sum() >= 2:
            median = np.median(ratio[rows])
            spread = measure_spread(ratio[rows] - median)
            table[stage] = median, spread
            scores[rows] = (ratio[rows] - median) / spread if spread else 0.0
    calm = nuclei.stage == INTERPHASE
    tracks = [light[(nuclei.crops.track == t) & calm] for t in np.unique(nuclei.crops.track)]
    spreads = [float(own.std()) for own in tracks if len(own) >= 5]
    table[INTERPHASE, 1] = np.median(spreads) if spreads else 0.0
    known = np.isfinite(scores)
    correlation = correlate(scores[known], against[known]) if known.sum() >= LEAST_AT_AGE else 0.0
    return table, correlation
