"""Lives: measures durations, brightness and growth from the tracks of the video."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from bvdm_data.clip import STAGES
from bvdm_data.fitting.nuclei import Crops
from bvdm_data.fitting.stages import (
    INTERPHASE,
    Array,
    NucleusFeatures,
    StageRules,
    assign_stages,
    find_daughters,
    measure_features,
    measure_interphase,
    measure_stage_durations,
)
from bvdm_data.fitting.video import VideoTooShortError
from bvdm_data.rng import numpy_rng
from bvdm_data.synth.cell_cycle import (
    POST_MITOTIC,
    PRE_MITOTIC,
    CellCycleModel,
    compute_area_curve,
    make_stage_sequence,
    resample_durations,
    sample_cycle_and_age,
)

QUANTILES = 33
"""Points of a distribution of areas that are kept."""

LEAST_AT_AGE = 20
"""Nuclei of an age, or pairs of them, that a figure must rest on."""

_LATER = 8  # frames between the two sizes whose correlation is taken
_DRAWN = 2000
_TRIES = 10 * _DRAWN  # nearly all are in interphase, unless cycles are shorter than mitoses

References = dict[int, tuple[float, float]]
"""Area and brightness of each mother before her division, by her track."""


def fit_areas(
    crops: Crops,
    looks: NucleusFeatures,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: References,
) -> dict[str, Array]:
    """Measure areas."""
    body = np.quantile([area for area, _ in references.values()], np.linspace(0, 1, QUANTILES))
    shares = _of_stages(crops, looks, stages, tracks, references)
    return {
        "mother_area": body,
        "adult_area": body,
        "area_of_age": _area_of_age(crops, looks, tracks, references),
        "area_in_interphase": _area_of_age(
            crops, looks, tracks, references, rows=stages == INTERPHASE
        ),
        "area_of_stage": _area_of_stage(shares),
        "area_at_birth": _area_of_stage(
            _of_stages(crops, looks, stages, tracks, references, newborn=True)
        ),
        "stage_spread": _stage_spread(shares),
        "size": _size(crops, looks, stages, tracks, body),
    }


def simulate_median_area(model: CellCycleModel) -> float:
    """Return the median area in interphase of nuclei of all ages, drawn from a model, px^2."""
    draws = numpy_rng(0, "fit", "lives")
    found: list[float] = []
    for _ in range(_TRIES):
        if len(found) == _DRAWN:
            break
        lengths = resample_durations(model, draws)
        cycle, age = sample_cycle_and_age(model.cycle, draws, founder=True)
        stages = make_stage_sequence(lengths, cycle)
        age = min(age, len(stages) - 1)
        if stages[age] == INTERPHASE:
            spread = math.exp(model.size[0] * draws.standard_normal())
            body = np.interp(draws.random(), np.linspace(0, 1, QUANTILES), model.adult_area)
            found.append(body * compute_area_curve(model, stages)[age] * spread)
    return float(np.median(found or model.adult_area))


def _size(
    crops: Crops,
    looks: NucleusFeatures,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    body: Array,
) -> Array:
    """Spread of log areas of nuclei of one age beyond that of bodies, and its memory, ``[2]``."""
    born = {i: first for i, first, _, parent in tracks.tolist() if parent}
    by_age: dict[int, list[int]] = {}
    for row in np.flatnonzero(stages == INTERPHASE).tolist():
        track = int(crops.track[row])
        if track in born:
            by_age.setdefault(int(crops.frame[row]) - born[track], []).append(row)
    rest: dict[tuple[int, int], float] = {}
    for age, some in by_age.items():
        if len(some) < LEAST_AT_AGE:
            continue
        logs = np.log(np.maximum(looks.area[some], 1.0))
        middle = float(np.median(logs))
        for index, log in zip(some, logs.tolist(), strict=True):
            rest[int(crops.track[index]), age] = log - middle
    pairs = [
        (now, rest[i, age + _LATER]) for (i, age), now in rest.items() if (i, age + _LATER) in rest
    ]
    if len(pairs) < LEAST_AT_AGE:
        return np.array([0.0, 0.9])
    total = stats.median_abs_deviation(list(rest.values()), scale="normal")
    bodies = stats.median_abs_deviation(np.log(body), scale="normal")
    later = float(np.corrcoef(np.array(pairs).T)[0, 1])
    memory = float(np.clip(later, 0.0, 0.98**_LATER)) ** (1 / _LATER)
    return np.array([math.sqrt(max(total**2 - bodies**2, 0.0)), memory])


def _area_of_age(
    crops: Crops,
    looks: NucleusFeatures,
    tracks: npt.NDArray[np.int32],
    references: References,
    rows: npt.NDArray[np.bool_] | None = None,
) -> Array:
    """Median area of daughters at each age over their grown mother's, never falling, ``[A]``.

    Ages that fewer than a quarter of the daughters are seen at are left out, as are crops that
    ``rows`` leaves out; before the first age that is seen the curve is flat.
    """
    first = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    children = find_daughters(tracks)
    ratios: dict[int, list[float]] = {}
    for mother, (body, _) in references.items():
        for daughter in children[mother]:
            own = crops.track == daughter
            seen = np.flatnonzero(own if rows is None else own & rows)
            for age, size in zip(
                crops.frame[seen] - first[daughter], looks.area[seen], strict=True
            ):
                ratios.setdefault(int(age), []).append(float(size) / body)
    least = max(2, len(ratios.get(0, [])) / 4)
    youngest = min((age for age, seen in ratios.items() if len(seen) >= least), default=0)
    curve = list(
        itertools.takewhile(
            lambda seen: len(seen) >= least,
            (ratios.get(age, []) for age in itertools.count(youngest)),
        )
    )
    # Where no newborn is seen whole, half of the mother is the best guess.
    medians = [float(np.median(seen)) for seen in curve] or [0.5]
    return np.maximum.accumulate([medians[0]] * youngest + medians)


def _of_stages(
    crops: Crops,
    looks: NucleusFeatures,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: References,
    *,
    newborn: bool = False,
) -> dict[int, Array]:
    """Return the areas in each stage of mitosis over that of the same mother before, or of hers.

    Of newborn: only in their first frame.
    """
    first = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    begun = np.array([first.get(int(track), -1) for track in crops.track])
    wanted = crops.frame == begun if newborn else np.ones(len(begun), bool)
    mother_of = {d: m for m, daughters in find_daughters(tracks).items() for d in daughters}
    of_mother = {d: references[m] for d, m in mother_of.items() if m in references}
    found: dict[int, Array] = {}
    for some, known in ((PRE_MITOTIC, references), (POST_MITOTIC, of_mother)):
        ratio = _relative_areas(crops, looks, known)
        known_rows = wanted & np.isfinite(ratio)
        found |= {stage: ratio[(stages == stage) & known_rows] for stage in some}
    return found


def _relative_areas(crops: Crops, looks: NucleusFeatures, references: References) -> Array:
    """Area of every crop over that of the same mother before; NaN where she has no reference."""
    body = np.array([references.get(int(t), (np.nan, 0.0))[0] for t in crops.track])
    return np.asarray(looks.area / body)


def _area_of_stage(shares: dict[int, Array]) -> Array:
    """Median area in each stage over the grown mother's, ``[S]``; 1 where none is seen."""
    found = np.ones(len(STAGES))
    for stage, ratio in shares.items():
        if len(ratio):
            found[stage] = np.median(ratio)
    return found


def _stage_spread(shares: dict[int, Array]) -> Array:
    """Robust deviation of log area around the median of its stage, ``[S]``."""
    spread = np.zeros(len(STAGES))
    for stage, ratio in shares.items():
        if len(ratio) >= 2:
            spread[stage] = stats.median_abs_deviation(np.log(ratio), scale="normal")
    return spread


INTENSITY_QUANTILES = 129
"""Points of the distribution of brightness that are kept: it has a long tail."""

DEFAULT_AUTOCORRELATION = 0.998
"""Memory of the rank of brightness where a video is too short to tell it: as in the HeLa video, at
its 30 minutes a frame."""

SHARED = 0.56
"""What sisters share of its drift where a video shows too few of them: as in the HeLa video."""

DIMMEST = 1e-4
"""Brightness, in grey values, that is the least that is believed."""

_BRIGHTNESS_LATER = 8  # frames between two scores whose correlation is taken
_DRIFT = 16  # frames over which the drift of sisters is taken
_SETTLED = 6  # age from which it is: telophase is over


@dataclass(frozen=True)
class IntensityModel:
    """How bright nuclei are; see :class:`bvdm_data.synth.cell_cycle.CellCycleModel`."""

    table: Array  # its brightness
    memory: float  # its brightness_autocorrelation
    shared: float  # its brightness_sister_correlation
    of_stage: Array  # its stage_brightness


def tabulate_intensities(brightness: Array) -> Array:
    """Return the distribution of brightness, ``[BRIGHTNESSES]`` grey values."""
    return np.quantile(np.maximum(brightness, DIMMEST), np.linspace(0, 1, INTENSITY_QUANTILES))


def fit_intensities(
    crops: Crops,
    looks: NucleusFeatures,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: References,
) -> IntensityModel:
    """Measure brightness."""
    scores = _normal_scores(crops, looks, stages)
    memory = _memory(scores)
    return IntensityModel(
        table=tabulate_intensities(looks.brightness[stages == INTERPHASE]),
        memory=memory,
        shared=_shared(scores, tracks, memory),
        of_stage=_stage_brightness(crops, looks, stages, tracks, references),
    )


Scores = dict[tuple[int, int], float]
"""Normal score of the brightness of a track in a frame."""


def _normal_scores(crops: Crops, looks: NucleusFeatures, stages: npt.NDArray[np.int8]) -> Scores:
    """Rank nuclei in interphase by brightness; ranks as if drawn from a normal law."""
    rows = np.flatnonzero(stages == INTERPHASE)
    ranks = stats.rankdata(looks.brightness[rows])
    scores = stats.norm.ppf((ranks - 0.5) / max(len(rows), 1))
    keys = zip(crops.track[rows].tolist(), crops.frame[rows].tolist(), strict=True)
    return dict(zip(keys, scores.tolist(), strict=True))


def _memory(scores: Scores) -> float:
    """Correlation of a score with that of the frame before, from how much most nuclei change.

    A robust spread: a few masks that jump from one nucleus to its neighbour would decide the
    correlation itself.
    """
    changes = [
        scores[track, frame + _BRIGHTNESS_LATER] - now
        for (track, frame), now in scores.items()
        if (track, frame + _BRIGHTNESS_LATER) in scores
    ]
    if len(changes) < LEAST_AT_AGE:
        return DEFAULT_AUTOCORRELATION
    kept = 1 - stats.median_abs_deviation(changes, scale="normal") ** 2 / 2
    return (
        DEFAULT_AUTOCORRELATION
        if kept in (0, 1) or kept < 0
        else float(kept) ** (1 / _BRIGHTNESS_LATER)
    )


def _shared(scores: Scores, tracks: npt.NDArray[np.int32], memory: float) -> float:
    """Correlation between sisters of what is new in their scores."""
    first = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    pairs = []
    for daughters in find_daughters(tracks).values():
        moments = [
            (daughter, first[daughter] + age)
            for daughter in daughters
            for age in (_SETTLED, _SETTLED + _DRIFT)
        ]
        if len(daughters) == 2 and all(moment in scores for moment in moments):
            one, one_later, other, other_later = (scores[moment] for moment in moments)
            kept = memory**_DRIFT
            pairs.append((one_later - kept * one, other_later - kept * other))
    together = _correlation(pairs)
    return SHARED if together is None else together


def _correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Return the correlation, from 0 to 1; None where there are too few pairs, or all are alike."""
    table = np.array(pairs).reshape(-1, 2)
    if len(pairs) < LEAST_AT_AGE or not table.std(0).all():
        return None
    return float(np.clip(np.corrcoef(table.T)[0, 1], 0.0, 1.0))


def _stage_brightness(
    crops: Crops,
    looks: NucleusFeatures,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: References,
) -> Array:
    """Median and robust deviation of log brightness against interphase, ``[S, 2]``."""
    against: dict[int, float] = {}
    children = find_daughters(tracks)
    for mother, (_, brightness) in references.items():
        for identity in (mother, *children[mother]):
            against.setdefault(identity, brightness)
    table = np.zeros((len(STAGES), 2))
    known = np.array([int(t) in against for t in crops.track])
    base = np.array([against.get(int(t), 1.0) for t in crops.track])
    ratio = np.log(np.maximum(looks.brightness, DIMMEST) / base)
    for stage in range(1, len(STAGES)):
        rows = known & (stages == stage)
        if rows.sum() >= 2:
            table[stage] = (
                np.median(ratio[rows]),
                stats.median_abs_deviation(ratio[rows], scale="normal"),
            )
    table[INTERPHASE, 1] = _within_interphase(crops, looks, stages)
    return table


def _within_interphase(crops: Crops, looks: NucleusFeatures, stages: npt.NDArray[np.int8]) -> float:
    """Typical deviation of a nucleus' log brightness from its own median in interphase."""
    light = np.log(np.maximum(looks.brightness, DIMMEST))
    spreads = []
    for track in np.unique(crops.track):
        rows = (crops.track == track) & (stages == INTERPHASE)
        if rows.sum() >= 5:
            spreads.append(float(light[rows].std()))
    return float(np.median(spreads)) if spreads else 0.0


WHOLE = 3
"""Frames before, or after, a division in which a nucleus must be whole for its stages to count."""

LONGEST = 4
"""Longest duration of a short stage in the table, frames."""


def fit_cell_cycle(
    crops: Crops, tracks: npt.NDArray[np.int32], *, minutes: float
) -> tuple[CellCycleModel, npt.NDArray[np.int8]]:
    """Measure how nuclei live."""
    rules = StageRules()
    looks = measure_features(crops)
    stages = assign_stages(crops, tracks, rules)
    references = measure_interphase(crops, looks, tracks, rules)
    if len(references) < 2:
        raise VideoTooShortError(
            "the video must show at least 2 divisions whose mothers are seen whole for some frames "
            f"before, got {len(references)} of {len(find_daughters(tracks))} divisions; give a "
            "longer video"
        )
    born = _newborn_pairs(crops, looks, tracks)
    light = fit_intensities(crops, looks, stages, tracks, references)
    model = CellCycleModel(
        durations=measure_stage_durations(crops, stages, tracks, references, LONGEST),
        cycle=fit_cycle_length(tracks),
        sister_spread=_sister_spread(born),
        division_asymmetry=_birth_split(born),
        division_asymmetry_robust=_split(born),
        brightness=light.table,
        brightness_autocorrelation=light.memory,
        brightness_sister_correlation=light.shared,
        stage_brightness=light.of_stage,
        **fit_areas(crops, looks, stages, tracks, references),
        **_short_stages(crops, stages, tracks, references),
        minutes=minutes,
    )
    usual = float(np.median(looks.area[stages == INTERPHASE]))
    return replace(model, adult_area=model.adult_area * usual / simulate_median_area(model)), stages


def _short_stages(
    crops: Crops,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: dict[int, tuple[float, float]],
) -> dict[str, Array]:
    """Count the frames of the short stages of every mitosis and newborn that is seen whole."""
    children = find_daughters(tracks)
    span = {identity: (first, last) for identity, first, last, _ in tracks.tolist()}
    place = _places(crops)

    def frames(track: int, wanted: tuple[int, ...]) -> list[int]:
        own = stages[crops.track == track]
        return [min(LONGEST, int((own == stage).sum())) for stage in wanted]

    def whole(track: int, start: int) -> bool:
        return all((track, start + frame) in place for frame in range(WHOLE))

    mothers = [m for m in references if whole(m, span[m][1] - WHOLE + 1)] or list(references)
    born = [d for m in references for d in children[m]]
    seen = [d for d in born if whole(d, span[d][0])] or born
    return {
        "pro_metaphase_frames": np.array(
            [frames(mother, PRE_MITOTIC) for mother in mothers], float
        ),
        "ana_telophase_frames": np.array(
            [frames(daughter, POST_MITOTIC) for daughter in seen], float
        ),
    }


def fit_cycle_length(tracks: npt.NDArray[np.int32]) -> Array:
    """Fit a log-normal law to the time from birth to division.

    Most cycles are cut by the ends of the video; they count as at least as long as was seen
    (right-censored maximum likelihood, ``scipy.stats.CensoredData``).

    Mean and standard deviation of the logarithm of the cycle in frames, ``[2]``.
    """
    mothers = find_daughters(tracks)
    born = {d for daughters in mothers.values() for d in daughters}
    whole: list[int] = []
    cut: list[int] = []
    for identity, first, last, _ in tracks.tolist():
        (whole if identity in born and identity in mothers else cut).append(last - first + 1)
    if len(whole) < 2:
        # Too short a film for whole cycles: from the rate of divisions, with a usual spread.
        rate = max(len(mothers), 1) / sum(whole + cut)
        return np.array([math.log(math.log(2) / rate), 0.2])
    data = stats.CensoredData(uncensored=np.array(whole), right=np.array(cut))
    deviation, _, median = stats.lognorm.fit(data, floc=0)
    return np.array([math.log(median), deviation])


def list_whole_cycles(tracks: npt.NDArray[np.int32]) -> list[int]:
    """Return the length in frames of every cycle that is seen from birth to division."""
    mothers = find_daughters(tracks)
    born = {d for daughters in mothers.values() for d in daughters}
    return [b - a + 1 for i, a, b, _ in tracks.tolist() if i in born and i in mothers]


def _newborn_pairs(crops: Crops, looks: NucleusFeatures, tracks: npt.NDArray[np.int32]) -> Array:
    """Area and brightness of both daughters in their first frame, ``[n, 2 daughters, 2]``."""
    first = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    place = _places(crops)
    pairs = []
    for daughters in find_daughters(tracks).values():
        rows = [place.get((d, first[d])) for d in daughters]
        if len(rows) == 2 and None not in rows:
            pairs.append([(looks.area[row], looks.brightness[row]) for row in rows])
    return np.array(pairs, float).reshape(-1, 2, 2)


def _places(crops: Crops) -> dict[tuple[int, int], int]:
    keys = zip(crops.track.tolist(), crops.frame.tolist(), strict=True)
    return {key: row for row, key in enumerate(keys)}


def _birth_split(born: Array) -> float:
    """Deviation of a daughter's share of both areas from one half."""
    if not len(born):
        return 0.0
    share = born[:, 0, 0] / born[:, :, 0].sum(1)
    return float(np.sqrt(np.mean((share - 0.5) ** 2)))


def _split(born: Array) -> float:
    """Robust deviation of a daughter's share of both areas from one half."""
    if not len(born):
        return 0.0
    share = born[:, 0, 0] / born[:, :, 0].sum(1)
    return float(1.4826 * np.median(np.abs(share - 0.5)))


def _sister_spread(born: Array) -> float:
    """Robust deviation of a newborn's log brightness from the mean of both sisters'."""
    if not len(born):
        return 0.0
    light = np.log(np.maximum(born[:, :, 1], DIMMEST))
    return float(1.4826 * np.median(np.abs(light[:, 0] - light[:, 1])) / math.sqrt(2))
