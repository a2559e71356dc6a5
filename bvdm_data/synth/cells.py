"""Life: one nucleus' stages, outlines and brightness, frame by frame, and its daughters'."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from bvdm_data.clip import STAGES
from bvdm_data.synth.cell_cycle import (
    INTERPHASE,
    POST_MITOTIC,
    PRE_MITOTIC,
    CellCycleModel,
    compute_area_curve,
    make_stage_sequence,
    resample_durations,
    sample_cycle_and_age,
    sample_durations,
    weigh_templates,
)
from bvdm_data.synth.contours import (
    Array,
    ShapeModel,
    compute_polygon_area,
    draw_ar1,
    make_quantile_levels,
)

COARSE = 33
"""Quantiles of the table of brightness that scenes of the paper's method are drawn from: their
figures were measured with so many."""

FARTHEST = 4.0
"""Largest normal score of the brightness of a founder, up or down (our choice: one in 15,000 is
beyond)."""

_DIVIDING, _NEWBORN = (
    np.isin(np.arange(len(STAGES)), stages) for stages in (PRE_MITOTIC, POST_MITOTIC)
)


@dataclass(frozen=True)
class Inherited:
    """What a nucleus has from its mother."""

    body: float  # area of the grown nucleus, px^2
    quantile: float  # of the brightness among the video's nuclei
    mitosis: float  # how bright its mother's mitosis was, in standard deviations
    size: float = 0.0  # how large it is, in standard deviations
    birth: float | None = None  # whose ana- and telophase it has, from 0 to 1; None: drawn
    # what is new, frame by frame, in its brightness and in its sister's alike; None: all is its
    # own
    drift: Array | None = None
    founder: bool = False  # it has no mother in the film, so its age is drawn
    age: int | None = None  # of a founder, where it is known, in frames


class CellAppearance:
    """Draws the outlines and the brightness of a life.

    ``mitosis``: How bright its mitosis is, in standard deviations; ``quantile``: Of its
    brightness among the video's nuclei, in the end; ``size``: How large it is, in standard
    deviations, in the end
    """

    def __init__(
        self,
        shapes: ShapeModel,
        model: CellCycleModel,
        ancestry: Inherited,
        stages: npt.NDArray[np.int64],
        shown: npt.NDArray[np.int64],
        generator: np.random.Generator,
    ) -> None:
        """Keep what the nucleus is made from."""
        self.shapes, self.model, self.ancestry = shapes, model, ancestry
        self.stages, self.shown, self.generator = stages, shown, generator
        weights, self.anchors = weigh_templates(stages)
        self.all_weights, self.weights = weights, weights[shown]
        self.quantile, self.size = ancestry.quantile, ancestry.size

    def templated(self, jitter: float) -> tuple[Array, Array]:
        """One template a stage, and fresh noise in every frame; ``[n, K]`` px and ``[n]``."""
        shapes, generator = self.shapes, self.generator
        anchored = self.stages[self.anchors].tolist()
        templates = np.stack([shapes.sample(stage, generator) for stage in anchored])
        table = interpolate_quantile(self.model.brightness, make_quantile_levels(COARSE))
        usual = float(interpolate_quantile(table, self.quantile))
        brightness = usual * np.exp(self._offsets())
        radii = self.all_weights @ templates
        wanted = self.ancestry.body * _relative_area(self.model.area_of_age, self)
        radii *= np.sqrt(wanted / compute_polygon_area(radii))[:, None]
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
        wanted = self.ancestry.body * compute_area_curve(self.model, self.stages)[self.shown]
        wanted *= np.exp(self._sizes(count))
        brightness = self._drifting_light(count) * np.exp(self._offsets(settled=True))
        return bounded * np.sqrt(wanted / compute_polygon_area(bounded))[:, None], brightness

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
        return interpolate_quantile(model.brightness, special.ndtr(scores))

    def _sizes(self, count: int) -> Array:
        """Log area over that of its body, age and stage, ``[n]``."""
        generator, (deviation, memory) = self.generator, self.model.size
        lasting = draw_ar1(count, np.array([memory]), generator)[:, 0]
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


def _relative_area(area_of_age: Array, course: CellAppearance) -> Array:
    """Area of every frame of a life over that of the grown nucleus, ``[n]``."""
    age = np.minimum(np.arange(len(course.stages)), len(area_of_age) - 1)
    return np.where(
        _DIVIDING[course.stages], course.model.area_of_stage[course.stages], area_of_age[age]
    )


def _brightness_offsets(
    model: CellCycleModel,
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


def sample_sister_quantile(
    model: CellCycleModel, quantile: float, age: int, generator: np.random.Generator
) -> float:
    """Draw how bright the sister of a founder is: they drift apart from birth on."""
    own = (1 - model.brightness_shared) * (1 - model.brightness_memory ** (2 * age + 2))
    score = float(np.clip(special.ndtri(quantile), -FARTHEST, FARTHEST))
    drawn = (1 - own) * score + math.sqrt(own * (2 - own)) * float(generator.standard_normal())
    return float(special.ndtr(drawn))


def interpolate_quantile(table: Array, quantile: float | Array) -> Array:
    """Return what a distribution has at quantiles."""
    return np.asarray(np.interp(quantile, make_quantile_levels(len(table)), table))


@dataclass(frozen=True)
class Cell:
    """The part of one nucleus' life that a film shows."""

    identity: int  # number from 1, unique in its film
    parent: int  # the mother's number; 0 without one in the film
    first: int  # frame of the film in which it appears
    radii: Array  # outline in each frame, [n, K] px
    stages: npt.NDArray[np.int64]  # stage in each frame, [n]
    brightness: Array  # mean light in each frame, grey values above the background, [n]
    divides: bool  # whether two daughters follow in the frame after the last
    age: int = 0  # frames since its birth when it appears

    @property
    def last(self) -> int:
        """Last frame of the film in which it is there."""
        return self.first + len(self.stages) - 1


def simulate_lineage(
    shapes: ShapeModel,
    model: CellCycleModel,
    frames: int,
    generator: np.random.Generator,
    first_identity: int,
    *,
    jitter: float | None = 0.1,
    quantile: float | None = None,
    age: int | None = None,
    drift: Array | None = None,
) -> list[Cell]:
    """Live a founder and all its offspring through a film.

    The founder's age is drawn from the ages in an exponentially growing population. Stages follow
    in the order of the cycle with the durations of the video; outlines are the paper's
    Gaussian-weighted mean of one template a stage, scaled to the area that the video's nuclei
    have at that age.
    """
    founder = Inherited(
        body=float(
            interpolate_quantile(model.grown if jitter is None else model.body, generator.random())
        ),
        quantile=generator.random() if quantile is None else quantile,
        mitosis=float(generator.standard_normal()),
        founder=True,
        age=age,
        drift=drift,
    )
    waiting = [(founder, 0, 0)]
    lives: list[Cell] = []
    while waiting:
        ancestry, parent, first = waiting.pop(0)
        life, heirs = _simulate_cell(
            shapes, model, ancestry, parent, first, frames, generator,
            first_identity + len(lives), jitter,
        )  # fmt: skip
        lives.append(life)
        waiting += [(heir, life.identity, life.last + 1) for heir in heirs]
    return lives


def _simulate_cell(
    shapes: ShapeModel,
    model: CellCycleModel,
    ancestry: Inherited,
    parent: int,
    first: int,
    frames: int,
    generator: np.random.Generator,
    identity: int,
    jitter: float | None,
) -> tuple[Cell, list[Inherited]]:
    lengths = (
        resample_durations(model.mitoses, model.births, generator, ancestry.birth)
        if jitter is None
        else sample_durations(model.durations, generator)
    )
    cycle, age = sample_cycle_and_age(model.cycle, generator, founder=ancestry.founder)
    stages = make_stage_sequence(lengths, cycle)
    age = min(age if ancestry.age is None else ancestry.age, len(stages) - 1)
    shown = np.arange(age, min(len(stages), age + frames - first))
    course = CellAppearance(shapes, model, ancestry, stages, shown, generator)
    outlines, brightness = course.drifting() if jitter is None else course.templated(jitter)
    # Of what sisters differ by, the wobble of both areas comes on top.
    own = math.sqrt(max(model.split**2 - shapes.wobble**2 / 8, 0.0))
    split = own if jitter is None else model.birth_split
    divides = shown[-1] == len(stages) - 1 and first + len(shown) < frames
    life = Cell(
        identity=identity,
        parent=parent,
        first=first,
        radii=outlines,
        stages=stages[shown],
        brightness=brightness,
        divides=bool(divides),
        age=age,
    )
    if not divides:
        return life, []
    heirs = _simulate_daughters(split, ancestry, course.mitosis, generator)
    if jitter is None:
        # Sisters are as large, as bright and as condensed as each other, and part from there.
        shared = Inherited(
            body=0.0,
            quantile=course.quantile,
            mitosis=course.mitosis,
            size=course.size,
            birth=float(generator.random()),
            drift=generator.standard_normal(frames - first - len(shown)),
        )
        heirs = [replace(shared, body=heir.body) for heir in heirs]
    return life, heirs


def _simulate_daughters(
    split: float, mother: Inherited, mitosis: float, generator: np.random.Generator
) -> list[Inherited]:
    """Share the mother's body between two daughters; each may grow to twice its share."""
    share = float(np.clip(0.5 + split * generator.standard_normal(), 0.3, 0.7))
    return [
        Inherited(2 * part * mother.body, mother.quantile, mitosis) for part in (share, 1 - share)
    ]
