"""Cell cycle: how long a nucleus stays in each stage, and how large and bright it is there."""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from bvdm_data.clip import PHASES, STAGES
from bvdm_data.synth.contours import Array, Ints

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
_CALM = len(POST_MITOTIC)  # place of interphase in this order


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


@dataclass(frozen=True)
class Stages:
    """The stages of nuclei from birth to division."""

    runs: Ints  # frames that each lasts, in the order of a life, [N, S]; some may last none

    @functools.cached_property
    def ends(self) -> Ints:
        """Frame after the last of each, ``[N, S]``."""
        return self.runs.cumsum(1)

    @property
    def length(self) -> Ints:
        """Frames from birth to division, ``[N]``."""
        return np.asarray(self.ends[:, -1])

    def at(self, frames: Ints) -> Ints:
        """Return the stage in some frames of each nucleus, ``[..., N]``; the last one after it."""
        passed = (frames[..., None] >= self.ends[:, :-1]).sum(-1)
        return np.asarray(_ORDER[np.minimum(passed, self._last)])

    def find_interphase(self) -> tuple[Ints, Ints]:
        """Return the first and the last frame of interphase, ``[N]`` each."""
        last = self.ends[:, _CALM] - 1
        return last - self.runs[:, _CALM] + 1, last

    @functools.cached_property
    def _last(self) -> Ints:
        """Number of the last stage that lasts any frame, ``[N]``."""
        return np.asarray((self.runs > 0).cumsum(1).argmax(1))

    def weigh_templates(self, frames: Ints) -> tuple[Array, Ints]:
        """Weigh the templates of nuclei in some frames, ``[F, N]``.

        A template stands at the first frame of every stage and at the last frame; its weight is a
        Gaussian around that frame, as wide as the stage is long, and weights add up to 1
        (Bähr et al. 2021, as in the authors' code).

        Weights ``[F, N, S + 1]``, 0 for templates that there are not, and the stages of these,
        ``[N, S + 1]``.

        Examples:
            >>> stages = Stages(np.array([[0, 0, 3, 1, 0, 0]]))
            >>> weights, _ = stages.weigh_templates(np.arange(4)[:, None])
            >>> weights.shape, weights.sum(2).round(6).T.tolist()
            ((4, 1, 7), [[1.0, 1.0, 1.0, 1.0]])
        """
        here, last = np.arange(len(self.runs)), self._last
        final = self.runs[here, last]  # frames of the last stage
        anchors = np.c_[self.ends - self.runs, self.length - 1]
        width = np.c_[self.runs, np.where(final > 1, final, 0)]
        there = width > 0
        distance = (frames[..., None] - anchors) / np.where(there, width, 1)
        weights = np.exp(-0.5 * distance**2) / np.where(there, width, 1)
        # Far from every anchor all densities may underflow; the widest one then decides.
        weights = np.where(there, np.maximum(weights, 1e-300), 0)
        of_anchor = np.c_[np.broadcast_to(_ORDER, self.runs.shape), _ORDER[last]]
        return weights / weights.sum(-1, keepdims=True), of_anchor


def make_stages(durations: Ints, cycle: Ints) -> Stages:
    """Return the stages of lives ``[N]``, of durations ``[N, S]``; interphase has a frame."""
    runs = durations[:, _ORDER]
    runs[:, _CALM] = 0
    runs[:, _CALM] = np.maximum(1, cycle - runs.sum(1))
    return Stages(runs)


def sample_durations(probabilities: Array, generator: np.random.Generator, count: int) -> Ints:
    """Draw the frames that each stage lasts independently, ``[count, S]``."""
    return np.stack([_sample_index(row, generator, count) for row in probabilities.cumsum(1)], 1)


def resample_durations(model: CellCycleModel, generator: np.random.Generator, birth: Array) -> Ints:
    """Take the short stages of one mitosis of the video, and of one of its newborns.

    Frames, ``[N, S]``; 0 for interphase. ``birth`` chooses the newborn, ``[N]`` from 0 to 1.
    """
    mitoses, births = model.pro_metaphase_frames, model.ana_telophase_frames
    durations = np.zeros((len(birth), len(PHASES)), np.int64)
    durations[:, list(PRE_MITOTIC)] = mitoses[generator.integers(len(mitoses), size=len(birth))]
    durations[:, list(POST_MITOTIC)] = births[(birth * len(births)).astype(int)]
    return durations


def sample_cycles(log_normal: Array, generator: np.random.Generator, count: int) -> Ints:
    """Draw the lengths of the cycles of newborns in frames, ``[count]``."""
    mean, deviation = log_normal
    logarithm = mean + deviation * generator.standard_normal(count)
    cycles = np.exp(np.minimum(logarithm, _LONGEST)).round()
    return np.asarray(np.maximum(1, cycles), np.int64)


def sample_cycles_and_ages(
    log_normal: Array, generator: np.random.Generator, count: int
) -> tuple[Ints, Ints]:
    """Draw the lengths of the cycles of founders, and their ages, ``[count]`` frames each.

    In a population that grows at rate k, ages ``a`` of cycles of length ``L`` are met in
    proportion to ``f(L) exp(-k a)``, ``0 <= a < L`` (Euler-Lotka).
    """
    cycles, ages = _sum_cycles_and_ages(*map(float, log_normal))
    cycle = 1 + _sample_index(cycles, generator, count)
    return cycle, np.searchsorted(ages, generator.random(count) * ages[cycle - 1], side="right")


@functools.lru_cache(maxsize=16)
def _sum_cycles_and_ages(mean: float, deviation: float) -> tuple[Array, Array]:
    """Return how often founders have cycles of 1, 2, ... frames, and ages of 0, 1, ..., or less."""
    lengths, density = _weigh_cycles(mean, deviation)
    rate = math.log(2) / math.exp(mean + deviation**2 / 2)
    cycles, ages = density * (1 - np.exp(-rate * lengths)), np.exp(-rate * np.arange(len(lengths)))
    return cycles.cumsum(), ages.cumsum()


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
    model: CellCycleModel, stages: Stages, ages: Ints, generator: np.random.Generator
) -> tuple[Array, Array]:
    """Draw the last frames of nuclei that are alive at some age, and over how many they die.

    ``[N]`` each; infinite for those that live to divide. They die in interphase, at one rate from
    the age on at which they can have been dying for their time.
    """
    first, last = stages.find_interphase()
    lasting = np.round(60 * generator.uniform(*DYING_HOURS, len(ages)) / model.minutes).clip(2)
    end = np.maximum(ages, first + lasting) + generator.geometric(model.death_rate, len(ages)) - 1
    return np.where(end > last, np.inf, end), lasting


def _sample_index(total: Array, generator: np.random.Generator, count: int) -> Ints:
    """Draw indices, given the sums of all weights up to each, ``[count]``."""
    drawn = np.searchsorted(total, generator.random(count) * total[-1], side="right")
    return np.asarray(drawn, np.int64)


def compute_area_curve(model: CellCycleModel, stages: Stages, frames: Ints) -> Array:
    """Return the areas of nuclei in some frames ``[F, N]`` of their lives over the adult ones.

    The curve of the video compares nuclei with their mothers. Here it is scaled to be 1 when the
    nucleus is adult, however short its cycle is.
    """
    curve = model.area_in_interphase
    adult = stages.length - GROWN
    grown = np.where(adult > 0, curve[np.clip(adult, 0, len(curve) - 1)], 1)
    share = np.clip(frames / np.maximum(adult, 1), 0, 1)
    relative = curve[np.minimum(frames, len(curve) - 1)] / (1 + share * (grown - 1))
    now = stages.at(frames)
    areas = np.where(now == INTERPHASE, relative, model.area_of_stage[now])
    born = (frames == 0) & np.isin(now, POST_MITOTIC)
    return np.where(born, model.area_at_birth[now], areas)
