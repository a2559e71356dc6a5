"""Life: one nucleus' stages, outlines and brightness, frame by frame, and its daughters'."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import STAGES
from bvdm_data.synth.shapes import Array, ShapeModel, area

BEFORE_INTERPHASE = (STAGES.index("anaphase"), STAGES.index("telophase"))
"""Stages from birth to interphase, in order."""

AFTER_INTERPHASE = tuple(STAGES.index(name) for name in ("prophase", "prometaphase", "metaphase"))
"""Stages from interphase to division, in order."""

_INTERPHASE = STAGES.index("interphase")


@dataclass(frozen=True)
class LifeModel:
    """How long nuclei stay in each stage, how bright they are, how they grow; from the video.

    Attributes:
        durations: Probability of a stage lasting 0, 1, ... frames, ``[S, D]``; the row of
            interphase is not used, since it fills the rest of the cycle.
        cycle: Mean and standard deviation of the logarithm of the time from birth to division in
            frames (a log-normal law), ``[2]``.
        brightness: Brightness of the video's nuclei in interphase at equally spaced quantiles
            from 0 to 1, in grey values above the background, ``[Q]``.
        stage_brightness: Median and (robust) standard deviation of the logarithm of the
            brightness in each stage over that of the same nucleus in interphase, ``[S, 2]``.
        sister_spread: Standard deviation of a newborn's log brightness around that of both
            daughters.
        body: Area of the video's grown nuclei, before they divide, at equally spaced quantiles
            from 0 to 1, px^2, ``[Q]``.
        area_of_age: Area 0, 1, ... frames after birth over the grown mother's, ``[A]``; it stays
            at the last value.
        area_of_stage: Area in each stage over that of the same nucleus, grown, ``[S]``; used
            from prophase to metaphase.
        birth_split: Standard deviation of a daughter's share of the mother's body, around one
            half.
        minutes: Time between two frames.
    """

    durations: Array
    cycle: Array
    brightness: Array
    stage_brightness: Array
    sister_spread: float
    body: Array
    area_of_age: Array
    area_of_stage: Array
    birth_split: float
    minutes: float


@dataclass(frozen=True)
class Life:
    """The part of one nucleus' life that a film shows.

    Attributes:
        identity: Number from 1, unique in its film.
        parent: The mother's number; 0 without one in the film.
        first: Frame of the film in which it appears.
        radii: Outline in each frame, ``[n, K]`` px.
        stages: Stage in each frame, ``[n]``.
        brightness: Mean light in each frame, grey values above the background, ``[n]``.
        divides: Whether two daughters follow in the frame after the last.
    """

    identity: int
    parent: int
    first: int
    radii: Array
    stages: npt.NDArray[np.int64]
    brightness: Array
    divides: bool

    @property
    def last(self) -> int:
        """Last frame of the film in which it is there."""
        return self.first + len(self.stages) - 1


@dataclass(frozen=True)
class _Ancestry:
    """What a nucleus has from its mother."""

    body: float  # area of the grown nucleus, px^2
    quantile: float  # of the brightness among the video's nuclei
    mitosis: float  # how bright its mother's mitosis was, in standard deviations
    founder: bool = False  # no mother in the film, so its age is drawn


def grow_family(
    shapes: ShapeModel,
    model: LifeModel,
    frames: int,
    generator: np.random.Generator,
    first_identity: int,
    *,
    jitter: float = 0.1,
) -> list[Life]:
    """Live a founder and all its offspring through a film.

    The founder's age is drawn from the ages in an exponentially growing population. Stages follow
    in the order of the cycle with the durations of the video; outlines are the paper's
    Gaussian-weighted mean of one template a stage, scaled to the area that the video's nuclei
    have at that age.

    Args:
        shapes: Outlines of each stage.
        model: Durations, brightness, growth.
        frames: Length of the film.
        generator: Where the random numbers come from.
        first_identity: Number of the founder; its offspring follow.
        jitter: Amount of fresh shape noise in each frame (authors' code: .1).

    Returns:
        The lives, mothers before daughters.
    """
    founder = _Ancestry(
        body=_at_quantile(model.body, generator.random()),
        quantile=generator.random(),
        mitosis=float(generator.standard_normal()),
        founder=True,
    )
    waiting = [(founder, 0, 0)]
    lives: list[Life] = []
    while waiting:
        ancestry, parent, first = waiting.pop(0)
        life, heirs = _live(
            shapes, model, ancestry, parent, first, frames, generator,
            first_identity + len(lives), jitter,
        )  # fmt: skip
        lives.append(life)
        waiting += [(heir, life.identity, life.last + 1) for heir in heirs]
    return lives


def _live(
    shapes: ShapeModel,
    model: LifeModel,
    ancestry: _Ancestry,
    parent: int,
    first: int,
    frames: int,
    generator: np.random.Generator,
    identity: int,
    jitter: float,
) -> tuple[Life, list[_Ancestry]]:
    stages, age = _timeline(model, generator, founder=ancestry.founder)
    shown = np.arange(age, min(len(stages), age + frames - first))
    weights, anchors = template_weights(stages)
    templates = np.stack([shapes.sample(s, generator) for s in stages[anchors].tolist()])
    mitosis = float(generator.standard_normal())
    offsets = _brightness_offsets(model, stages[anchors], ancestry.mitosis, mitosis, generator)
    radii = weights @ templates
    wanted = ancestry.body * _relative_area(model, stages)
    radii *= np.sqrt(wanted / area(radii))[:, None]
    noise = np.stack([shapes.deviation(s, generator) for s in stages[shown].tolist()])
    outlines = np.maximum(radii[shown] + jitter * noise, radii[shown].mean(1)[:, None] / 4)
    divides = shown[-1] == len(stages) - 1 and first + len(shown) < frames
    life = Life(
        identity=identity,
        parent=parent,
        first=first,
        radii=outlines,
        stages=stages[shown],
        brightness=_at_quantile(model.brightness, ancestry.quantile)
        * np.exp(weights[shown] @ offsets),
        divides=bool(divides),
    )
    return life, _daughters(model, ancestry, mitosis, generator) if divides else []


def _daughters(
    model: LifeModel, mother: _Ancestry, mitosis: float, generator: np.random.Generator
) -> list[_Ancestry]:
    """Share the mother's body between two daughters; each may grow to twice its share."""
    share = float(np.clip(0.5 + model.birth_split * generator.standard_normal(), 0.3, 0.7))
    return [
        _Ancestry(2 * part * mother.body, mother.quantile, mitosis) for part in (share, 1 - share)
    ]


def _relative_area(model: LifeModel, stages: npt.NDArray[np.int64]) -> Array:
    """Area of every frame of a life over that of the grown nucleus, ``[n]``."""
    age = np.minimum(np.arange(len(stages)), len(model.area_of_age) - 1)
    dividing = np.isin(stages, AFTER_INTERPHASE)
    return np.where(dividing, model.area_of_stage[stages], model.area_of_age[age])


def _brightness_offsets(
    model: LifeModel,
    stages: npt.NDArray[np.int64],
    born: float,
    mitosis: float,
    generator: np.random.Generator,
) -> Array:
    """Log brightness of every template: one draw a mitosis, shared by mother and daughters."""
    own = generator.standard_normal(len(stages))
    sister = model.sister_spread * float(generator.standard_normal())
    newborn = np.isin(stages, BEFORE_INTERPHASE)
    drawn = np.where(newborn, born, np.where(stages == _INTERPHASE, own, mitosis))
    offsets: Array = (
        model.stage_brightness[stages, 0]
        + model.stage_brightness[stages, 1] * drawn
        + sister * newborn
    )
    return offsets


def _at_quantile(table: Array, quantile: float) -> float:
    return float(np.interp(quantile, np.linspace(0, 1, len(table)), table))


def _timeline(
    model: LifeModel, generator: np.random.Generator, *, founder: bool
) -> tuple[npt.NDArray[np.int64], int]:
    """Draw the stage of every frame from birth to division, and the age at which it is met."""
    lengths = np.array([_draw(row, generator) for row in model.durations])
    short = int(lengths[list(BEFORE_INTERPHASE + AFTER_INTERPHASE)].sum())
    cycle, age = _cycle_and_age(model, generator, founder=founder)
    interphase = max(1, cycle - short)
    runs = [(s, lengths[s]) for s in BEFORE_INTERPHASE]
    runs += [(_INTERPHASE, interphase), *((s, lengths[s]) for s in AFTER_INTERPHASE)]
    stages = np.concatenate([np.full(n, s, np.int64) for s, n in runs])
    return stages, min(age, len(stages) - 1)


def _cycle_and_age(
    model: LifeModel, generator: np.random.Generator, *, founder: bool
) -> tuple[int, int]:
    """Draw the length of a cycle; for a founder also its age.

    In a population that grows at rate k, ages ``a`` of cycles of length ``L`` are met in
    proportion to ``f(L) exp(-k a)``, ``0 <= a < L`` (Euler-Lotka).
    """
    mean, deviation = model.cycle
    if not founder:
        return max(1, round(math.exp(mean + deviation * generator.standard_normal()))), 0
    lengths = np.arange(1, math.ceil(math.exp(mean + 4 * deviation)) + 1)
    density = np.exp(-0.5 * ((np.log(lengths) - mean) / deviation) ** 2) / lengths
    rate = math.log(2) / math.exp(mean + deviation**2 / 2)
    cycle = int(lengths[_draw(density * (1 - np.exp(-rate * lengths)), generator)])
    return cycle, _draw(np.exp(-rate * np.arange(cycle)), generator)


def _draw(weights: Array, generator: np.random.Generator) -> int:
    total = weights.cumsum()
    return int(np.searchsorted(total, generator.random() * total[-1], side="right"))


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
    changes = np.flatnonzero(np.diff(stages, prepend=stages[0] - 1))
    anchors = np.unique(np.append(changes, count - 1))
    width = np.array([max(1, int((stages == stages[a]).sum())) for a in anchors], float)
    distance = np.arange(count)[:, None] - anchors[None]
    weights = np.exp(-0.5 * (distance / width) ** 2) / width
    # Far from every anchor all densities may underflow; the widest one then decides.
    weights = np.maximum(weights, 1e-300)
    return weights / weights.sum(1, keepdims=True), anchors
