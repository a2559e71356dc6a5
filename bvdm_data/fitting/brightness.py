"""Brightness: measures how bright nuclei are, how this drifts, and what mitosis adds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from bvdm_data.clip import STAGES
from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.growth import LEAST_AT_AGE, References
from bvdm_data.fitting.stages import INTERPHASE, Appearance, Array, daughters_of

BRIGHTNESSES = 129
"""Points of the distribution of brightness that are kept: it has a long tail."""

MEMORY = 0.998
"""Memory of the rank of brightness where a video is too short to tell it: as in the HeLa video, at
its 30 minutes a frame."""

SHARED = 0.56
"""What sisters share of its drift where a video shows too few of them: as in the HeLa video."""

DIMMEST = 1e-4
"""Brightness, in grey values, that is the least that is believed."""

_LATER = 8  # frames between two scores whose correlation is taken
_DRIFT = 16  # frames over which the drift of sisters is taken
_SETTLED = 6  # age from which it is: telophase is over


@dataclass(frozen=True)
class Brightness:
    """How bright nuclei are; see :class:`bvdm_data.synth.life_model.LifeModel`.

    Attributes:
        table: Its ``brightness``.
        memory: Its ``brightness_memory``.
        shared: Its ``brightness_shared``.
        of_stage: Its ``stage_brightness``.
    """

    table: Array
    memory: float
    shared: float
    of_stage: Array


def brightness_table(brightness: Array) -> Array:
    """Return the distribution of brightness, ``[BRIGHTNESSES]`` grey values.

    Args:
        brightness: Of nuclei in interphase, grey values.
    """
    return np.quantile(np.maximum(brightness, DIMMEST), np.linspace(0, 1, BRIGHTNESSES))


def fit_brightness(
    crops: Crops,
    looks: Appearance,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: References,
) -> Brightness:
    """Measure brightness.

    Args:
        crops: Nuclei cut out of the video.
        looks: Their appearance.
        stages: Their stages.
        tracks: The lineage.
        references: From :func:`bvdm_data.fitting.stages.interphase_references`.

    Returns:
        How bright nuclei are.
    """
    scores = _normal_scores(crops, looks, stages)
    memory = _memory(scores)
    return Brightness(
        table=brightness_table(looks.brightness[stages == INTERPHASE]),
        memory=memory,
        shared=_shared(scores, tracks, memory),
        of_stage=_stage_brightness(crops, looks, stages, tracks, references),
    )


Scores = dict[tuple[int, int], float]
"""Normal score of the brightness of a track in a frame."""


def _normal_scores(crops: Crops, looks: Appearance, stages: npt.NDArray[np.int8]) -> Scores:
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
        scores[track, frame + _LATER] - now
        for (track, frame), now in scores.items()
        if (track, frame + _LATER) in scores
    ]
    if len(changes) < LEAST_AT_AGE:
        return MEMORY
    kept = 1 - stats.median_abs_deviation(changes, scale="normal") ** 2 / 2
    return MEMORY if kept in (0, 1) or kept < 0 else float(kept) ** (1 / _LATER)


def _shared(scores: Scores, tracks: npt.NDArray[np.int32], memory: float) -> float:
    """Correlation between sisters of what is new in their scores."""
    first = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    pairs = []
    for daughters in daughters_of(tracks).values():
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
    looks: Appearance,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    references: References,
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


def _within_interphase(crops: Crops, looks: Appearance, stages: npt.NDArray[np.int8]) -> float:
    """Typical deviation of a nucleus' log brightness from its own median in interphase."""
    light = np.log(np.maximum(looks.brightness, DIMMEST))
    spreads = []
    for track in np.unique(crops.track):
        rows = (crops.track == track) & (stages == INTERPHASE)
        if rows.sum() >= 5:
            spreads.append(float(light[rows].std()))
    return float(np.median(spreads)) if spreads else 0.0
