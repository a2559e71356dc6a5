"""Timeline: how long a nucleus stays in each stage of its cycle."""

import functools
import math

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import STAGES

BEFORE_INTERPHASE = (STAGES.index("anaphase"), STAGES.index("telophase"))
"""Stages from birth to interphase, in order."""

AFTER_INTERPHASE = tuple(STAGES.index(name) for name in ("prophase", "prometaphase", "metaphase"))
"""Stages from interphase to division, in order."""

INTERPHASE = STAGES.index("interphase")

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ORDER = np.array([*BEFORE_INTERPHASE, INTERPHASE, *AFTER_INTERPHASE])


def lay_out(lengths: Ints, cycle: int) -> Ints:
    """Lay out the stage of every frame from birth to division.

    Args:
        lengths: Frames of each stage, ``[S]``; interphase fills the rest of the cycle.
        cycle: Frames from birth to division.

    Returns:
        Stage of each frame, ``[n]``; at least one frame is interphase.
    """
    short = int(lengths[list(BEFORE_INTERPHASE + AFTER_INTERPHASE)].sum())
    runs = lengths.copy()
    runs[INTERPHASE] = max(1, cycle - short)
    return np.repeat(_ORDER, runs[_ORDER])


def draw_each_length(durations: Array, generator: np.random.Generator) -> Ints:
    """Draw how long each stage lasts, one by one.

    Args:
        durations: Probability of a stage lasting 0, 1, ... frames, ``[S, D]``.
        generator: Where the random numbers come from.

    Returns:
        Frames, ``[S]``.
    """
    return np.array([_draw(row, generator) for row in durations])


def take_lengths(
    mitoses: Array, births: Array, generator: np.random.Generator, birth: float | None = None
) -> Ints:
    """Take the short stages of one mitosis of the video, and of one of its newborns.

    Args:
        mitoses: Frames of pro-, prometa- and metaphase, ``[n, 3]``.
        births: Frames of ana- and telophase, ``[m, 2]``.
        generator: Where the random numbers come from.
        birth: Which newborn, from 0 to below 1; None: drawn.

    Returns:
        Frames, ``[S]``; 0 for interphase.
    """
    lengths = np.zeros(len(STAGES), np.int64)
    lengths[list(AFTER_INTERPHASE)] = mitoses[generator.integers(len(mitoses))]
    chosen = generator.integers(len(births)) if birth is None else int(birth * len(births))
    lengths[list(BEFORE_INTERPHASE)] = births[chosen]
    return lengths


def draw_cycle_and_age(
    law: Array, generator: np.random.Generator, *, founder: bool
) -> tuple[int, int]:
    """Draw the length of a cycle; for a founder also its age.

    In a population that grows at rate k, ages ``a`` of cycles of length ``L`` are met in
    proportion to ``f(L) exp(-k a)``, ``0 <= a < L`` (Euler-Lotka).

    Args:
        law: Mean and standard deviation of the logarithm of the cycle in frames, ``[2]``.
        generator: Where the random numbers come from.
        founder: Whether its age is drawn, too; else it is 0.

    Returns:
        Frames of the cycle, and the age in frames.
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


def template_weights(
    stages: npt.NDArray[np.int64],
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Weigh the templates of a life in each of its frames.

    A template stands at the first frame of every stage and at the last frame; its weight is a
    Gaussian around that frame, as wide as the stage is long, and weights add up to 1
    (Bähr et al. 2021, as in the authors' code).

    Args:
        stages: Stage of every frame, ``[n]``.

    Returns:
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
