"""Timeline: how long a nucleus stays in each stage of its cycle."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import STAGES

POST_MITOTIC = (STAGES.index("anaphase"), STAGES.index("telophase"))
"""Stages from birth to interphase, in order."""

PRE_MITOTIC = tuple(STAGES.index(name) for name in ("prophase", "prometaphase", "metaphase"))
"""Stages from interphase to division, in order."""

INTERPHASE = STAGES.index("interphase")

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ORDER = np.array([*POST_MITOTIC, INTERPHASE, *PRE_MITOTIC])


def make_stage_sequence(lengths: Ints, cycle: int) -> Ints:
    """Lay out the stage of every frame from birth to division.

    Stage of each frame, ``[n]``; at least one frame is interphase.
    """
    short = int(lengths[list(POST_MITOTIC + PRE_MITOTIC)].sum())
    runs = lengths.copy()
    runs[INTERPHASE] = max(1, cycle - short)
    return np.repeat(_ORDER, runs[_ORDER])


def sample_durations(durations: Array, generator: np.random.Generator) -> Ints:
    """Draw how long each stage lasts, one by one.

    Frames, ``[S]``.
    """
    return np.array([_draw(row, generator) for row in durations])


def resample_durations(
    mitoses: Array, births: Array, generator: np.random.Generator, birth: float | None = None
) -> Ints:
    """Take the short stages of one mitosis of the video, and of one of its newborns.

    Frames, ``[S]``; 0 for interphase.
    """
    lengths = np.zeros(len(STAGES), np.int64)
    lengths[list(PRE_MITOTIC)] = mitoses[generator.integers(len(mitoses))]
    chosen = generator.integers(len(births)) if birth is None else int(birth * len(births))
    lengths[list(POST_MITOTIC)] = births[chosen]
    return lengths


def sample_cycle_and_age(
    law: Array, generator: np.random.Generator, *, founder: bool
) -> tuple[int, int]:
    """Draw the length of a cycle; for a founder also its age.

    In a population that grows at rate k, ages ``a`` of cycles of length ``L`` are met in
    proportion to ``f(L) exp(-k a)``, ``0 <= a < L`` (Euler-Lotka).
    """
    mean, deviation = law
    if not founder:
        return max(1, round(math.exp(mean + deviation * generator.standard_normal()))), 0
    cycles, ages = _of_founders(float(mean), float(deviation))
    cycle = 1 + _draw(cycles, generator)
    return cycle, _draw(ages[:cycle], generator)


@functools.lru_cache(maxsize=16)
def _of_founders(mean: float, deviation: float) -> tuple[Array, Array]:
    """Return how often cycles of 1, 2, ... frames are met, and ages of 0, 1, ... frames."""
    lengths = np.arange(1, math.ceil(math.exp(mean + 4 * deviation)) + 1)
    density = np.exp(-0.5 * ((np.log(lengths) - mean) / deviation) ** 2) / lengths
    rate = math.log(2) / math.exp(mean + deviation**2 / 2)
    return density * (1 - np.exp(-rate * lengths)), np.exp(-rate * np.arange(len(lengths)))


def weigh_templates(
    stages: npt.NDArray[np.int64],
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Weigh the templates of a life in each of its frames.

    A template stands at the first frame of every stage and at the last frame; its weight is a
    Gaussian around that frame, as wide as the stage is long, and weights add up to 1
    (Bähr et al. 2021, as in the authors' code).

    Weights ``[n, A]`` and the frames of the templates ``[A]``.

    Examples:
        >>> weights, anchors = template_weights(np.array([0, 0, 0, 1]))
        >>> anchors.tolist(), weights.sum(1).round(6).tolist()
        ([0, 3], [1.0, 1.0, 1.0, 1.0])
    """
    count = len(stages)
    starts = np.flatnonzero(stages[1:] != stages[:-1]) + 1
    anchors = np.array(sorted({0, *starts.tolist(), count - 1}))
    width = np.bincount(stages)[stages[anchors]].astype(float)
    distance = np.arange(count)[:, None] - anchors[None]
    weights = np.exp(-0.5 * (distance / width) ** 2) / width
    # Far from every anchor all densities may underflow; the widest one then decides.
    weights = np.maximum(weights, 1e-300)
    return weights / weights.sum(1, keepdims=True), anchors


def _draw(weights: Array, generator: np.random.Generator) -> int:
    total = weights.cumsum()
    return int(np.searchsorted(total, generator.random() * total[-1], side="right"))


GROWN = 10
"""Frames before the end of a cycle at which a mother's grown area is measured: the middle of
those that a model is fitted to."""


@dataclass(frozen=True)
class CellCycleModel:
    """How long nuclei stay in each stage, how bright they are, how they grow; from the video."""

    # probability of a stage lasting 0, 1, ... frames, [S, D]; the row of interphase is not used,
    # since it fills the rest of the cycle
    durations: Array
    # mean and standard deviation of the logarithm of the time from birth to division in frames (a
    # log-normal law), [2]
    cycle: Array
    # brightness of the video's nuclei in interphase at equally spaced quantiles from 0 to 1, in
    # grey values above the background, [B]
    brightness: Array
    # A nucleus' rank among these drifts: correlation of its normal score with that of the frame
    # before, of most nuclei
    brightness_memory: float
    brightness_shared: float  # correlation between sisters of what is new in this score
    # median and (robust) standard deviation of the logarithm of the brightness in each stage over
    # that of the same nucleus in interphase, [S, 2]
    stage_brightness: Array
    # standard deviation of a newborn's log brightness around that of both daughters
    sister_spread: float
    # area of the video's grown nuclei, before they divide, at equally spaced quantiles from 0 to
    # 1, px^2, [Q]
    body: Array
    # area 0, 1, ... frames after birth over the grown mother's, whatever the stage, [A]; it stays
    # at the last value
    area_of_age: Array
    # area in each stage over that of the same nucleus, grown, or of a newborn's mother, [S]
    area_of_stage: Array
    # as area_of_stage, of newborn in their first frame, [S]: in telophase they grow fast
    area_at_birth: Array
    # standard deviation of a daughter's share of the mother's body, around one half
    birth_split: float
    split: float  # the same without the outliers, which are flaws of the masks
    # robust standard deviation of the logarithm of the area in each stage around area_of_stage,
    # [S]; 0 in interphase
    stage_spread: Array
    # as body, but of all nuclei: mothers that the video shows dividing are larger than others, [Q]
    # px^2
    grown: Array
    # area in interphase 0, 1, ... frames after birth over the grown mother's, [A]; it stays at the
    # last value
    area_in_interphase: Array
    # standard deviation of the logarithm of a nucleus' area around what its body and its age say,
    # and the correlation of this deviation with that of the frame before, [2]; newborn begin with
    # their mother's
    size: Array
    mitoses: Array  # frames of pro-, prometa- and metaphase in each mitosis of the video, [n, 3]
    births: Array  # frames of ana- and telophase of each newborn of the video, [m, 2]
    minutes: float  # time between two frames


def compute_area_curve(model: CellCycleModel, stages: npt.NDArray[np.int64]) -> Array:
    """Return the area of every frame of a life over that of the grown nucleus.

    The curve of the video is that of all nuclei over their mothers; here it is 1 when the nucleus
    is grown, however short its cycle.

    ``[n]``.
    """
    curve = model.area_in_interphase
    usual = curve[np.minimum(np.arange(len(stages)), len(curve) - 1)]
    grown = len(stages) - GROWN
    if grown > 0:
        usual = usual / np.interp(np.arange(len(stages)), [0, grown], [1, usual[grown]])
    areas = np.where(stages == INTERPHASE, usual, model.area_of_stage[stages])
    if stages[0] in POST_MITOTIC:
        areas[0] = model.area_at_birth[stages[0]]
    return areas
