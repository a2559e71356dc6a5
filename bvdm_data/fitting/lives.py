"""Lives: measures durations, brightness and growth from the tracks of the video."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from bvdm_data.fitting.brightness import DIMMEST, fit_brightness
from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.growth import drawn_area, fit_growth
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
from bvdm_data.fitting.video import TooLittleVideoError
from bvdm_data.synth.life_model import LifeModel
from bvdm_data.synth.timeline import (
    AFTER_INTERPHASE,
    BEFORE_INTERPHASE,
)

WHOLE = 3
"""Frames before, or after, a division in which a nucleus must be whole for its stages to count."""

LONGEST = 4
"""Longest duration of a short stage in the table, frames."""


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
        raise TooLittleVideoError(
            "the video must show at least 2 divisions whose mothers are seen whole for some frames "
            f"before, got {len(references)} of {len(daughters_of(tracks))} divisions; give a "
            "longer video"
        )
    born = _newborn_pairs(crops, looks, tracks)
    light = fit_brightness(crops, looks, stages, tracks, references)
    model = LifeModel(
        durations=durations(crops, stages, tracks, references, LONGEST),
        cycle=fit_cycle(tracks),
        sister_spread=_sister_spread(born),
        birth_split=_birth_split(born),
        split=_split(born),
        brightness=light.table,
        brightness_memory=light.memory,
        brightness_shared=light.shared,
        stage_brightness=light.of_stage,
        **fit_growth(crops, looks, stages, tracks, references),
        **_short_stages(crops, stages, tracks, references),
        minutes=minutes,
    )
    usual = float(np.median(looks.area[stages == INTERPHASE]))
    return replace(model, grown=model.grown * usual / drawn_area(model)), stages


def _short_stages(
    crops: Crops,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: dict[int, tuple[float, float]],
) -> dict[str, Array]:
    """Count the frames of the short stages of every mitosis and newborn that is seen whole."""
    children = daughters_of(tracks)
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
        "mitoses": np.array([frames(mother, AFTER_INTERPHASE) for mother in mothers], float),
        "births": np.array([frames(daughter, BEFORE_INTERPHASE) for daughter in seen], float),
    }


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


def _newborn_pairs(crops: Crops, looks: Appearance, tracks: npt.NDArray[np.int32]) -> Array:
    """Area and brightness of both daughters in their first frame, ``[n, 2 daughters, 2]``."""
    first = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    place = _places(crops)
    pairs = []
    for daughters in daughters_of(tracks).values():
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
