"""Growth: measures how large nuclei are at each age and in each stage of the cycle."""

import itertools
import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from bvdm_data.clip import STAGES
from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.stages import INTERPHASE, Appearance, Array, daughters_of
from bvdm_data.randomness import numpy_stream
from bvdm_data.synth.life_model import LifeModel, growth
from bvdm_data.synth.timeline import (
    AFTER_INTERPHASE,
    BEFORE_INTERPHASE,
    draw_cycle_and_age,
    lay_out,
    take_lengths,
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


def fit_growth(
    crops: Crops,
    looks: Appearance,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: References,
) -> dict[str, Array]:
    """Measure areas.

    Args:
        crops: Nuclei cut out of the video.
        looks: Their appearance.
        stages: Their stages.
        tracks: The lineage.
        references: From :func:`bvdm_data.fitting.stages.interphase_references`.

    Returns:
        What :class:`bvdm_data.synth.life_model.LifeModel` has of areas, by name; ``grown`` is not
        yet scaled, see :func:`drawn_area`.
    """
    body = np.quantile([area for area, _ in references.values()], np.linspace(0, 1, QUANTILES))
    shares = _of_stages(crops, looks, stages, tracks, references)
    return {
        "body": body,
        "grown": body,
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


def drawn_area(model: LifeModel) -> float:
    """Return the median area in interphase of nuclei of all ages, drawn from a model, px^2.

    Args:
        model: Lives; its ``grown`` is looked at.
    """
    draws = numpy_stream(0, "fit", "lives")
    found: list[float] = []
    for _ in range(_TRIES):
        if len(found) == _DRAWN:
            break
        lengths = take_lengths(model.mitoses, model.births, draws)
        cycle, age = draw_cycle_and_age(model.cycle, draws, founder=True)
        stages = lay_out(lengths, cycle)
        age = min(age, len(stages) - 1)
        if stages[age] == INTERPHASE:
            spread = math.exp(model.size[0] * draws.standard_normal())
            body = np.interp(draws.random(), np.linspace(0, 1, QUANTILES), model.grown)
            found.append(body * growth(model, stages)[age] * spread)
    return float(np.median(found or model.grown))


def _size(
    crops: Crops,
    looks: Appearance,
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
    looks: Appearance,
    tracks: npt.NDArray[np.int32],
    references: References,
    rows: npt.NDArray[np.bool_] | None = None,
) -> Array:
    """Median area of daughters at each age over their grown mother's, never falling, ``[A]``.

    Ages that fewer than a quarter of the daughters are seen at are left out, as are crops that
    ``rows`` leaves out; before the first age that is seen the curve is flat.
    """
    first = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    children = daughters_of(tracks)
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
    looks: Appearance,
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
    mother_of = {d: m for m, daughters in daughters_of(tracks).items() for d in daughters}
    of_mother = {d: references[m] for d, m in mother_of.items() if m in references}
    found: dict[int, Array] = {}
    for some, known in ((AFTER_INTERPHASE, references), (BEFORE_INTERPHASE, of_mother)):
        ratio = _relative_areas(crops, looks, known)
        known_rows = wanted & np.isfinite(ratio)
        found |= {stage: ratio[(stages == stage) & known_rows] for stage in some}
    return found


def _relative_areas(crops: Crops, looks: Appearance, references: References) -> Array:
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
