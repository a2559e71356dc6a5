"""Course: draws the outlines and the brightness of one nucleus through its life."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from bvdm_data.clip import STAGES
from bvdm_data.synth.life_model import LifeModel, growth
from bvdm_data.synth.shapes import Array, ShapeModel, area, autoregressive, quantiles
from bvdm_data.synth.timeline import (
    AFTER_INTERPHASE,
    BEFORE_INTERPHASE,
    INTERPHASE,
    template_weights,
)

COARSE = 33
"""Quantiles of the table of brightness that scenes of the paper's method are drawn from: their
figures were measured with so many."""

FARTHEST = 4.0
"""Largest normal score of the brightness of a founder, up or down (our choice: one in 15,000 is
beyond)."""

_DIVIDING, _NEWBORN = (
    np.isin(np.arange(len(STAGES)), stages) for stages in (AFTER_INTERPHASE, BEFORE_INTERPHASE)
)


@dataclass(frozen=True)
class Ancestry:
    """What a nucleus has from its mother.

    Attributes:
        body: Area of the grown nucleus, px^2.
        quantile: Of the brightness among the video's nuclei.
        mitosis: How bright its mother's mitosis was, in standard deviations.
        size: How large it is, in standard deviations.
        birth: Whose ana- and telophase it has, from 0 to 1; None: drawn.
        drift: What is new, frame by frame, in its brightness and in its sister's alike; None: all
            is its own.
        founder: It has no mother in the film, so its age is drawn.
        age: Of a founder, where it is known, in frames.
    """

    body: float
    quantile: float
    mitosis: float
    size: float = 0.0
    birth: float | None = None
    drift: Array | None = None
    founder: bool = False
    age: int | None = None


class Course:
    """Draws the outlines and the brightness of a life.

    Args:
        shapes: Outlines of each stage.
        model: Brightness and growth.
        ancestry: What the nucleus has from its mother.
        stages: Stage of every frame from birth to division.
        shown: Which of these frames the film shows.
        generator: Where the random numbers come from.

    Attributes:
        mitosis: How bright its mitosis is, in standard deviations.
        quantile: Of its brightness among the video's nuclei, in the end.
        size: How large it is, in standard deviations, in the end.
    """

    def __init__(
        self,
        shapes: ShapeModel,
        model: LifeModel,
        ancestry: Ancestry,
        stages: npt.NDArray[np.int64],
        shown: npt.NDArray[np.int64],
        generator: np.random.Generator,
    ) -> None:
        """Keep what the nucleus is made from."""
        self.shapes, self.model, self.ancestry = shapes, model, ancestry
        self.stages, self.shown, self.generator = stages, shown, generator
        weights, self.anchors = template_weights(stages)
        self.all_weights, self.weights = weights, weights[shown]
        self.quantile, self.size = ancestry.quantile, ancestry.size

    def templated(self, jitter: float) -> tuple[Array, Array]:
        """One template a stage, and fresh noise in every frame; ``[n, K]`` px and ``[n]``."""
        shapes, generator = self.shapes, self.generator
        anchored = self.stages[self.anchors].tolist()
        templates = np.stack([shapes.sample(stage, generator) for stage in anchored])
        table = at_quantile(self.model.brightness, quantiles(COARSE))
        usual = float(at_quantile(table, self.quantile))
        brightness = usual * np.exp(self._offsets())
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
            radii += weight[:, None] * (shapes.mean[stage] + scores @ shapes.alike(stage))
        bounded = np.maximum(radii, radii.mean(1)[:, None] / 4)
        wanted = self.ancestry.body * growth(self.model, self.stages)[self.shown]
        wanted *= np.exp(self._sizes(count))
        brightness = self._drifting_light(count) * np.exp(self._offsets(settled=True))
        return bounded * np.sqrt(wanted / area(bounded))[:, None], brightness

    def _drifting_light(self, count: int) -> Array:
        """Brightness in interphase: that of a rank among the video's nuclei which drifts, ``[n]``.

        So nuclei are as bright as the video's at all times, and the dim, which differ more from
        each other, change more.
        """
        model, generator = self.model, self.generator
        new, memory = generator.standard_normal(count), model.brightness_memory
        if self.ancestry.drift is not None:
            shared = model.brightness_shared
            new = math.sqrt(shared) * self.ancestry.drift[:count] + math.sqrt(1 - shared) * new
        new *= math.sqrt(1 - memory**2)
        score = float(np.clip(special.ndtri(self.quantile), -FARTHEST, FARTHEST))
        scores = np.zeros(count)
        for moment in range(count):
            # A founder begins where it was put, a newborn one step after its mother's end.
            if moment or not self.ancestry.founder:
                score = memory * score + float(new[moment])
            scores[moment] = score
        self.quantile = float(special.ndtr(score))
        return at_quantile(model.brightness, special.ndtr(scores))

    def _sizes(self, count: int) -> Array:
        """Log area over that of its body, age and stage, ``[n]``."""
        generator, (deviation, memory) = self.generator, self.model.size
        lasting = autoregressive(count, np.array([memory]), generator)[:, 0]
        if not self.ancestry.founder:
            lasting += (self.ancestry.size - lasting[0]) * memory ** np.arange(count)
        self.size = float(lasting[-1])
        stages = self.stages[self.shown]
        spread, newborn = self.model.stage_spread[stages], _NEWBORN[stages]
        flicker = np.hypot(self.shapes.wobble, np.where(newborn, 0, spread))
        sizes = deviation * lasting + flicker * generator.standard_normal(count)
        # What is bright at birth is still condensed, so it is small.
        condensed: Array = np.where(newborn, spread * self.ancestry.mitosis, 0)
        return np.asarray(sizes - condensed)

    def _offsets(self, *, settled: bool = False) -> Array:
        """Log brightness over that in interphase, ``[n]``; settled: none within interphase."""
        self.mitosis = float(self.generator.standard_normal())
        stages = self.stages[self.anchors]
        offsets = _brightness_offsets(
            self.model, stages, self.ancestry.mitosis, self.mitosis, self.generator
        )
        if settled:
            offsets = np.where(stages == INTERPHASE, 0, offsets)
        known: Array = self.weights @ offsets
        return known


def _relative_area(area_of_age: Array, course: Course) -> Array:
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


def sister_quantile(
    model: LifeModel, quantile: float, age: int, generator: np.random.Generator
) -> float:
    """Draw how bright the sister of a founder is: they drift apart from birth on.

    Args:
        model: How brightness drifts.
        quantile: Of the founder's brightness among the video's nuclei.
        age: Frames since their birth.
        generator: Where the random numbers come from.

    Returns:
        The quantile of the sister's.
    """
    own = (1 - model.brightness_shared) * (1 - model.brightness_memory ** (2 * age + 2))
    score = float(np.clip(special.ndtri(quantile), -FARTHEST, FARTHEST))
    drawn = (1 - own) * score + math.sqrt(own * (2 - own)) * float(generator.standard_normal())
    return float(special.ndtr(drawn))


def at_quantile(table: Array, quantile: float | Array) -> Array:
    """Return what a distribution has at quantiles.

    Args:
        table: Its values at equally spaced quantiles from 0 to 1.
        quantile: From 0 to 1, of any shape.
    """
    return np.asarray(np.interp(quantile, quantiles(len(table)), table))
