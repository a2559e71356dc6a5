"""Cell cycle: how long a nucleus stays in each stage, and how large and bright it is there."""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import PHASES, STAGES
from bvdm_data.synth.contours import Array

Ints = npt.NDArray[np.int64]

POST_MITOTIC = (STAGES.index("anaphase"), STAGES.index("telophase"))
"""Stages from birth to interphase, in order."""

PRE_MITOTIC = tuple(STAGES.index(name) for name in ("prophase", "prometaphase", "metaphase"))
"""Stages from interphase to division, in order."""

INTERPHASE = STAGES.index("interphase")

APOPTOSIS = STAGES.index("apoptosis")
"""Stage of a nucleus that dies, from interphase to the end of its track."""

DYING_HOURS = (1.0, 3.0)
"""Least and most hours from the first shrinkage of a nucleus to its end (our choice, as in films
of apoptosis)."""

GROWN = 10
"""Frames before the end of a cycle at which a mother's adult area is measured."""

_LONGEST = math.log(100_000)  # of the longest cycle, frames
_ORDER = np.array([*POST_MITOTIC, INTERPHASE, *PRE_MITOTIC])


@dataclass(frozen=True)
class CellCycleModel:
    """How long nuclei stay in each stage, how bright they are, how they grow; from the video."""

    # probability of a stage lasting 0, 1, ... frames, [S, D]; that of interphase is not used
    durations: Array
    # mean and standard deviation of the log time from birth to division in frames, [2]
    cycle: Array
    # brightness of the video's nuclei in interphase at equally spaced quantiles from 0 to 1, in
    # grey values above the background, [B]
    brightness: Array
    # AR(1) coefficient of the normal score of a nucleus' rank among these, from frame to frame
    brightness_autocorrelation: float
    brightness_sister_correlation: float  # between sisters, of this score's innovations
    # median and robust standard deviation of each stage's log brightness over interphase, [S, 2]
    stage_brightness: Array
    # standard deviation of a newborn's log brightness around the mean of both daughters
    sister_spread: float
    mother_area: Array  # of adult nuclei that divide, at equally spaced quantiles, [Q] px^2
    area_of_age: Array  # area 0, 1, ... frames after birth over the adult mother's, [A]
    # area in each stage over the adult area of the same nucleus, or of a newborn's mother, [S]
    area_of_stage: Array
    # as area_of_stage, of newborn in their first frame, [S]: in telophase they grow fast
    area_at_birth: Array
    # standard deviation of a daughter's share of the mother's area, around one half
    division_asymmetry: float
    division_asymmetry_robust: float  # the same without outliers, which are flaws of the masks
    stage_spread: Array  # robust standard deviation of the log area in each stage, [S]
    # as mother_area, but of all nuclei: mothers are larger than others, [Q] px^2
    adult_area: Array
    area_in_interphase: Array  # as area_of_age, of nuclei in interphase, [A]
    # standard deviation and AR(1) coefficient of a nucleus' log area around that expected, [2]
    size: Array
    pro_metaphase_frames: Array  # of pro-, prometa- and metaphase in each mitosis, [n, 3]
    ana_telophase_frames: Array  # of ana- and telophase of each newborn, [m, 2]
    minutes: float  # time between two frames
    death_rate: float = 0.0  # chance that a nucleus in interphase dies, a frame
    # between how bright a mitosis is for its stage and how bright the mother is in interphase
    mitosis_correlation: float = 0.0

    def with_death_rate(self, rate: float | None) -> "CellCycleModel":
        """Return the model with another rate; None: as it is."""
        return self if rate is None else replace(self, death_rate=rate)


def make_stage_sequence(durations: Ints, cycle: int) -> Ints:
    """Return the stage of every frame from birth to division, ``[n]``; interphase has a frame."""
    short = int(durations[list(POST_MITOTIC + PRE_MITOTIC)].sum())
    runs = durations.copy()
    runs[INTERPHASE] = max(1, cycle - short)
    return np.repeat(_ORDER, runs[_ORDER])


def sample_durations(probabilities: Array, generator: np.random.Generator) -> Ints:
    """Draw the frames that each stage lasts independently, ``[S]``."""
    return np.array([_sample_index(row, generator) for row in probabilities])


def resample_durations(
    model: CellCycleModel, generator: np.random.Generator, birth: float | None = None
) -> Ints:
    """Take the short stages of one mitosis of the video, and of one of its newborns.

    Frames, ``[S]``; 0 for interphase. ``birth`` chooses the newborn, from 0 to 1; None: at random.
    """
    mitoses, births = model.pro_metaphase_frames, model.ana_telophase_frames
    durations = np.zeros(len(PHASES), np.int64)
    durations[list(PRE_MITOTIC)] = mitoses[generator.integers(len(mitoses))]
    row = generator.integers(len(births)) if birth is None else int(birth * len(births))
    durations[list(POST_MITOTIC)] = births[row]
    return durations


def sample_cycle_and_age(
    log_normal: Array, generator: np.random.Generator, *, founder: bool
) -> tuple[int, int]:
    """Draw the length of a cycle; for a founder also its age.

    In a population that grows at rate k, ages ``a`` of cycles of length ``L`` are met in
    proportion to ``f(L) exp(-k a)``, ``0 <= a < L`` (Euler-Lotka).
    """
    mean, deviation = log_normal
    if not founder:
        logarithm = mean + deviation * generator.standard_normal()
        return max(1, round(math.exp(min(logarithm, _LONGEST)))), 0
    cycles, ages = _weigh_cycles_and_ages(float(mean), float(deviation))
    cycle = 1 + _sample_index(cycles, generator)
    return cycle, _sample_index(ages[:cycle], generator)


@functools.lru_cache(maxsize=16)
def _weigh_cycles_and_ages(mean: float, deviation: float) -> tuple[Array, Array]:
    """Return how often founders have cycles of 1, 2, ... frames, and ages of 0, 1, ... frames."""
    lengths, density = _weigh_cycles(mean, deviation)
    rate = math.log(2) / math.exp(mean + deviation**2 / 2)
    return density * (1 - np.exp(-rate * lengths)), np.exp(-rate * np.arange(len(lengths)))


def _weigh_cycles(mean: float, deviation: float) -> tuple[Ints, Array]:
    """Return lengths of cycles in frames, and how often the newborn have them."""
    lengths = np.arange(1, math.ceil(math.exp(min(mean + 4 * deviation, _LONGEST))) + 1)
    return lengths, np.exp(-0.5 * ((np.log(lengths) - mean) / deviation) ** 2) / lengths


def compute_dividing_share(model: CellCycleModel) -> float:
    """Return the share of the newborn that live until they divide."""
    lengths, weights = _weigh_cycles(*map(float, model.cycle))
    mitoses, births = model.pro_metaphase_frames, model.ana_telophase_frames
    calm = np.maximum(lengths - mitoses.sum(1).mean() - births.sum(1).mean(), 1)
    # As in sample_dying: it cannot die before it can have been dying for its time.
    lasting = max(2.0, 60 * sum(DYING_HOURS) / 2 / model.minutes)
    alive = (1 - model.death_rate) ** np.maximum(calm - lasting, 0)
    return float((weights * alive).sum() / weights.sum())


def sample_dying(
    model: CellCycleModel, stages: Ints, age: int, generator: np.random.Generator
) -> Array:
    """Draw how far the death of a nucleus, alive at some age, is in every frame, ``[n]``.

    0: not begun, 1: its last frame, above: gone. It dies in interphase, at one rate from the age
    on at which it can have been dying for its time.
    """
    calm = np.flatnonzero(stages == INTERPHASE)
    lasting = max(2, round(60 * generator.uniform(*DYING_HOURS) / model.minutes))
    last = max(age, int(calm[0]) + lasting) + int(generator.geometric(model.death_rate)) - 1
    if last > calm[-1]:
        return np.zeros(len(stages))
    return np.maximum((np.arange(len(stages)) - last) / lasting + 1, 0)


def _sample_index(weights: Array, generator: np.random.Generator) -> int:
    total = weights.cumsum()
    return int(np.searchsorted(total, generator.random() * total[-1], side="right"))


def weigh_templates(stages: Ints) -> tuple[Array, Ints]:
    """Weigh the templates of a nucleus in each of its frames.

    A template stands at the first frame of every stage and at the last frame; its weight is a
    Gaussian around that frame, as wide as the stage is long, and weights add up to 1
    (Bähr et al. 2021, as in the authors' code).

    Weights ``[n, A]`` and the frames of the templates ``[A]``.

    Examples:
        >>> weights, anchors = weigh_templates(np.array([0, 0, 0, 1]))
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


def compute_area_curve(model: CellCycleModel, stages: Ints) -> Array:
    """Return the area of a nucleus in every frame of its life over its adult area, ``[n]``.

    The curve of the video compares nuclei with their mothers. Here it is scaled to be 1 when the
    nucleus is adult, however short its cycle is.
    """
    curve, frames = model.area_in_interphase, np.arange(len(stages))
    relative = curve[np.minimum(frames, len(curve) - 1)]
    adult = len(stages) - GROWN
    if adult > 0:
        relative = relative / np.interp(frames, [0, adult], [1, relative[adult]])
    areas = np.where(stages == INTERPHASE, relative, model.area_of_stage[stages])
    if stages[0] in POST_MITOTIC:
        areas[0] = model.area_at_birth[stages[0]]
    return areas
