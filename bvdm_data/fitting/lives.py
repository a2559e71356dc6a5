"""Lives: measures durations, brightness and growth from the tracks of the video."""

import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from bvdm_data.clip import STAGES
from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.stages import (
    INTERPHASE,
    Appearance,
    Array,
    StageRules,
    appearance,
    assign_stages,
    daughters_of,
    durations,
    interphase_references,
)
from bvdm_data.synth.lives import LifeModel

QUANTILES = 33
"""Points of the brightness distribution that are kept."""

LONGEST = 4
"""Longest duration of a short stage in the table, frames."""

_GROWN = 20


def fit_lives(
    crops: Crops, tracks: npt.NDArray[np.int32], *, minutes: float
) -> tuple[LifeModel, npt.NDArray[np.int8]]:
    """Measure how nuclei live.

    Args:
        crops: Nuclei cut out of the video.
        tracks: The lineage.
        minutes: Time between two frames.

    Returns:
        The model, and the stage of every crop.

    Raises:
        ValueError: If the video shows fewer than two divisions.
    """
    rules = StageRules()
    looks = appearance(crops)
    stages = assign_stages(crops, tracks, rules)
    references = interphase_references(crops, looks, tracks, rules)
    if len(references) < 2:
        raise ValueError(
            "the video must show at least 2 divisions whose mothers are seen whole for some frames "
            f"before, got {len(references)} of {len(daughters_of(tracks))} divisions; give a "
            "longer video"
        )
    area_share, split = _births(crops, looks, tracks, references)
    model = LifeModel(
        durations=durations(crops, stages, tracks, references, LONGEST),
        cycle=fit_cycle(tracks),
        brightness=np.quantile(
            np.maximum(looks.brightness[stages == INTERPHASE], 1e-4),
            np.linspace(0, 1, QUANTILES),
        ),
        stage_brightness=_stage_brightness(crops, looks, stages, tracks, references),
        birth_area=area_share,
        birth_split=split,
        growth=_growth(crops, looks, tracks),
        minutes=minutes,
    )
    return model, stages


def fit_cycle(tracks: npt.NDArray[np.int32]) -> Array:
    """Fit a log-normal law to the time from birth to division.

    Most cycles are cut by the ends of the video; they count as at least as long as was seen
    (right-censored maximum likelihood, ``scipy.stats.CensoredData``).

    Args:
        tracks: The lineage.

    Returns:
        Mean and standard deviation of the logarithm of the cycle in frames, ``[2]``.
    """
    mothers = daughters_of(tracks)
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


def whole_cycles(tracks: npt.NDArray[np.int32]) -> list[int]:
    """Return the length in frames of every cycle that is seen from birth to division.

    Args:
        tracks: The lineage.

    Returns:
        Frames.
    """
    mothers = daughters_of(tracks)
    born = {d for daughters in mothers.values() for d in daughters}
    return [b - a + 1 for i, a, b, _ in tracks.tolist() if i in born and i in mothers]


def _stage_brightness(
    crops: Crops,
    looks: Appearance,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: dict[int, tuple[float, float]],
) -> Array:
    """Median and robust deviation of log brightness against interphase, ``[S, 2]``."""
    against: dict[int, float] = {}
    children = daughters_of(tracks)
    for mother, (_, brightness) in references.items():
        for identity in (mother, *children[mother]):
            against.setdefault(identity, brightness)
    table = np.zeros((len(STAGES), 2))
    known = np.array([int(t) in against for t in crops.track])
    base = np.array([against.get(int(t), 1.0) for t in crops.track])
    ratio = np.log(np.maximum(looks.brightness, 1e-4) / base)
    for stage in range(1, len(STAGES)):
        rows = known & (stages == stage)
        if rows.sum() >= 2:
            table[stage] = (
                np.median(ratio[rows]),
                stats.median_abs_deviation(ratio[rows], scale="normal"),
            )
    table[INTERPHASE, 1] = _within_interphase(crops, looks, stages)
    return table


def _within_interphase(crops: Crops, looks: Appearance, stages: npt.NDArray[np.int8]) -> float:
    """Typical deviation of a nucleus' log brightness from its own median in interphase."""
    light = np.log(np.maximum(looks.brightness, 1e-4))
    spreads = []
    for track in np.unique(crops.track):
        rows = (crops.track == track) & (stages == INTERPHASE)
        if rows.sum() >= 5:
            spreads.append(float(light[rows].std()))
    return float(np.median(spreads)) if spreads else 0.0


def _births(
    crops: Crops,
    looks: Appearance,
    tracks: npt.NDArray[np.int32],
    references: dict[int, tuple[float, float]],
) -> tuple[float, float]:
    """Median of both daughters' area over the mother's, and deviation of a daughter's share."""
    first = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    sums, shares = [], []
    for mother, daughters in daughters_of(tracks).items():
        if mother not in references or len(daughters) != 2:
            continue
        areas = [looks.area[(crops.track == d) & (crops.frame == first[d])] for d in daughters]
        if all(len(found) == 1 for found in areas):
            both = np.concatenate(areas)
            sums.append(both.sum() / references[mother][0])
            shares.append(both[0] / both.sum())
    if not sums:
        return 1.0, 0.0
    return float(np.median(sums)), float(np.sqrt(np.mean((np.array(shares) - 0.5) ** 2)))


def _growth(crops: Crops, looks: Appearance, tracks: npt.NDArray[np.int32]) -> float:
    """Time constant with which a newborn's log area approaches that of a grown one, frames."""
    first = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    curves = []
    for daughters in daughters_of(tracks).values():
        for daughter in daughters:
            rows = crops.track == daughter
            age = crops.frame[rows] - first[daughter]
            if len(age) > _GROWN and np.array_equal(age[: _GROWN + 1], np.arange(_GROWN + 1)):
                curves.append(np.log(looks.area[rows][: _GROWN + 1]))
    if not curves:
        return 6.0
    mean = np.median(np.array(curves), axis=0)
    age = np.arange(_GROWN + 1.0)

    def curve(age: Array, end: float, start: float, constant: float) -> Array:
        grown: Array = end + start * np.exp(-age / constant)
        return grown

    bounds = ([-np.inf, -5, 0.5], [np.inf, 0, 50])
    found, _ = optimize.curve_fit(curve, age, mean, p0=(mean[-1], -0.5, 6), bounds=bounds)
    return float(found[2])
