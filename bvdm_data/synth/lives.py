"""Life: one nucleus' stages, outlines and brightness, frame by frame, and its daughters'."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import STAGES
from bvdm_data.synth.shapes import Array, ShapeModel, area, autoregressive, quantiles
from bvdm_data.synth.timeline import (
    AFTER_INTERPHASE,
    BEFORE_INTERPHASE,
    INTERPHASE,
    draw_cycle_and_age,
    draw_each_length,
    lay_out,
    take_lengths,
    template_weights,
)

BRIGHTNESS_MEMORY = 0.9
"""Correlation of a nucleus' drifting brightness with that of the frame before (our choice)."""


_DIVIDING, _NEWBORN = (
    np.isin(np.arange(len(STAGES)), stages) for stages in (AFTER_INTERPHASE, BEFORE_INTERPHASE)
)


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
        split: The same without the outliers, which are flaws of the masks.
        stage_spread: Robust standard deviation of the logarithm of the area in each stage around
            ``area_of_stage``, ``[S]``; 0 but from prophase to metaphase.
        mitoses: Frames of pro-, prometa- and metaphase in each mitosis of the video, ``[n, 3]``.
        births: Frames of ana- and telophase of each newborn of the video, ``[m, 2]``.
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
    split: float
    stage_spread: Array
    mitoses: Array
    births: Array
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
        age: Frames since its birth when it appears.
    """

    identity: int
    parent: int
    first: int
    radii: Array
    stages: npt.NDArray[np.int64]
    brightness: Array
    divides: bool
    age: int = 0

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
    age: int | None = None  # of a founder, where it is known


def grow_family(
    shapes: ShapeModel,
    model: LifeModel,
    frames: int,
    generator: np.random.Generator,
    first_identity: int,
    *,
    jitter: float | None = 0.1,
    quantile: float | None = None,
    age: int | None = None,
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
        jitter: Amount of fresh shape noise in each frame (authors' code: .1); None: outlines that
            move as the video's do.
        quantile: Where the founder's brightness lies among the video's nuclei; None: drawn.
        age: Frames since the founder's birth; None: drawn.

    Returns:
        The lives, mothers before daughters.
    """
    founder = _Ancestry(
        body=_at_quantile(model.body, generator.random()),
        quantile=generator.random() if quantile is None else quantile,
        mitosis=float(generator.standard_normal()),
        founder=True,
        age=age,
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
    jitter: float | None,
) -> tuple[Life, list[_Ancestry]]:
    lengths = (
        take_lengths(model.mitoses, model.births, generator)
        if jitter is None
        else draw_each_length(model.durations, generator)
    )
    cycle, age = draw_cycle_and_age(model.cycle, generator, founder=ancestry.founder)
    stages = lay_out(lengths, cycle)
    age = min(age if ancestry.age is None else ancestry.age, len(stages) - 1)
    shown = np.arange(age, min(len(stages), age + frames - first))
    course = _Course(shapes, model, ancestry, stages, shown, generator)
    outlines, offsets = course.drifting() if jitter is None else course.templated(jitter)
    split = model.split if jitter is None else model.birth_split
    divides = shown[-1] == len(stages) - 1 and first + len(shown) < frames
    life = Life(
        identity=identity,
        parent=parent,
        first=first,
        radii=outlines,
        stages=stages[shown],
        brightness=_at_quantile(model.brightness, ancestry.quantile) * np.exp(offsets),
        divides=bool(divides),
        age=age,
    )
    return life, _daughters(split, ancestry, course.mitosis, generator) if divides else []


class _Course:
    """Draws the outlines of a life, and the logarithm of its brightness over that in interphase.

    Attributes:
        mitosis: How bright its mitosis is, in standard deviations.
    """

    def __init__(
        self,
        shapes: ShapeModel,
        model: LifeModel,
        ancestry: _Ancestry,
        stages: npt.NDArray[np.int64],
        shown: npt.NDArray[np.int64],
        generator: np.random.Generator,
    ) -> None:
        self.shapes, self.model, self.ancestry = shapes, model, ancestry
        self.stages, self.shown, self.generator = stages, shown, generator
        weights, self.anchors = template_weights(stages)
        self.all_weights, self.weights = weights, weights[shown]

    def templated(self, jitter: float) -> tuple[Array, Array]:
        """One template a stage, and fresh noise in every frame; ``[n, K]`` px and ``[n]``."""
        shapes, generator = self.shapes, self.generator
        anchored = self.stages[self.anchors].tolist()
        templates = np.stack([shapes.sample(stage, generator) for stage in anchored])
        brightness = self._brightness()
        radii = self.all_weights @ templates
        wanted = self.ancestry.body * _relative_area(self.model.area_of_age, self)
        radii *= np.sqrt(wanted / area(radii))[:, None]
        shown = self.stages[self.shown].tolist()
        noise = np.stack([shapes.deviation(stage, generator) for stage in shown])
        radii = radii[self.shown]
        return np.maximum(radii + jitter * noise, radii.mean(1)[:, None] / 4), brightness

    def drifting(self) -> tuple[Array, Array]:
        """Scores and brightness that drift as the video's do; ``[n, K]`` px and ``[n]``."""
        shapes, generator, count = self.shapes, self.generator, len(self.shown)
        scores = shapes.scores(count, generator)
        radii = np.zeros((count, shapes.mean.shape[1]))
        for weight, stage in zip(self.weights.T, self.stages[self.anchors].tolist(), strict=True):
            radii += weight[:, None] * (shapes.mean[stage] + scores @ shapes.modes[stage])
        bounded = np.maximum(radii, radii.mean(1)[:, None] / 4)
        # The curve of growth ends at 1: a nucleus that divides is as large as one that divides.
        curve = self.model.area_of_age
        curve = curve / np.linspace(1, curve[-1], len(curve))
        wanted = self.ancestry.body * _relative_area(curve, self)[self.shown]
        spread = np.hypot(shapes.wobble, self.model.stage_spread[self.stages[self.shown]])
        wanted *= np.exp(spread * generator.standard_normal(count))
        drift = autoregressive(count, np.array([BRIGHTNESS_MEMORY]), generator)[:, 0]
        brightness = self._brightness() + self.model.stage_brightness[INTERPHASE, 1] * drift
        return bounded * np.sqrt(wanted / area(bounded))[:, None], brightness

    def _brightness(self) -> Array:
        self.mitosis = float(self.generator.standard_normal())
        offsets = _brightness_offsets(
            self.model, self.stages[self.anchors], self.ancestry.mitosis, self.mitosis,
            self.generator,
        )  # fmt: skip
        known: Array = self.weights @ offsets
        return known


def _daughters(
    split: float, mother: _Ancestry, mitosis: float, generator: np.random.Generator
) -> list[_Ancestry]:
    """Share the mother's body between two daughters; each may grow to twice its share."""
    share = float(np.clip(0.5 + split * generator.standard_normal(), 0.3, 0.7))
    return [
        _Ancestry(2 * part * mother.body, mother.quantile, mitosis) for part in (share, 1 - share)
    ]


def _relative_area(area_of_age: Array, course: _Course) -> Array:
    """Area of every frame of a life over that of the grown nucleus, ``[n]``."""
    age = np.minimum(np.arange(len(course.stages)), len(area_of_age) - 1)
    return np.where(
        _DIVIDING[course.stages], course.model.area_of_stage[course.stages], area_of_age[age]
    )


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
    newborn = _NEWBORN[stages]
    drawn = np.where(newborn, born, np.where(stages == INTERPHASE, own, mitosis))
    offsets: Array = (
        model.stage_brightness[stages, 0]
        + model.stage_brightness[stages, 1] * drawn
        + sister * newborn
    )
    return offsets


def _at_quantile(table: Array, quantile: float) -> float:
    return float(np.interp(quantile, quantiles(len(table)), table))
