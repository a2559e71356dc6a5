"""Cells: stages, outlines and brightness of a nucleus and its offspring, frame by frame."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from bvdm_data.clip import PHASES, STAGES
from bvdm_data.synth.cell_cycle import (
    APOPTOSIS,
    INTERPHASE,
    POST_MITOTIC,
    PRE_MITOTIC,
    CellCycleModel,
    Ints,
    compute_area_curve,
    make_stage_sequence,
    resample_durations,
    sample_cycle_and_age,
    sample_durations,
    sample_dying,
    weigh_templates,
)
from bvdm_data.synth.contours import (
    Array,
    ShapeModel,
    compute_mean_radius,
    compute_polygon_area,
    draw_ar1,
    filter_ar1,
    interpolate_quantile,
    make_quantile_levels,
)

COARSE = 33
"""Quantiles of the brightness table that the paper's scenes are drawn from."""

FARTHEST = 4.0
"""Largest absolute normal score of a founder's brightness (our choice: one in 15,000 has more)."""

DEAD_AREA, LUMPS = (0.35, 0.55), (3, 5)
"""Of a nucleus at its end: area over that before it died, and number of lumps (our choice, after
the dying nuclei of the HeLa video)."""

CONDENSED = STAGES.index("prometaphase")
"""Stage of the cell cycle that a dying nucleus looks like."""

_NOTHING = 1e-30  # a weight that changes no digit of an outline

_DIVIDING, _NEWBORN, _CONDENSED = (
    np.isin(np.arange(len(PHASES)), stages)
    for stages in (PRE_MITOTIC, POST_MITOTIC, (*PRE_MITOTIC[1:], *POST_MITOTIC))
)


@dataclass(frozen=True)
class Cell:
    """The part of one nucleus' life that a video shows."""

    identity: int  # number from 1, unique in its video
    parent: int  # the mother's number; 0 without one in the video
    first: int  # frame of the video in which it appears
    radii: Array  # outline in each frame, [n, K] px
    stages: Ints  # stage in each frame, [n]
    brightness: Array  # mean light in each frame, grey values above the background, [n]
    divides: bool  # whether two daughters follow in the frame after the last
    age: int = 0  # frames since its birth when it appears

    @property
    def looks(self) -> Ints:
        """Stage of the cell cycle that it looks like in each frame, ``[n]``."""
        return np.where(self.stages == APOPTOSIS, CONDENSED, self.stages)

    @property
    def last(self) -> int:
        """Last frame of the video in which it is there."""
        return self.first + len(self.stages) - 1

    def thin(self, step: int) -> "Cell":
        """Return what every ``step``-th frame of the video shows, maybe nothing."""
        first, part = -(-self.first // step), slice(-self.first % step, None, step)
        return replace(
            self, first=first, radii=self.radii[part], stages=self.stages[part],
            brightness=self.brightness[part], age=self.age + part.start,
        )  # fmt: skip


@dataclass(frozen=True)
class _Inherited:
    """What a nucleus has from its mother."""

    adult_area: float  # px^2
    quantile: float  # of its brightness among the video's nuclei
    mitosis: float  # how bright its mother's mitosis was, in standard deviations
    size: float = 0.0  # how large it is, in standard deviations
    birth: float | None = None  # whose ana- and telophase it has, from 0 to 1; None: drawn
    # innovations of its brightness that it shares with its sister, frame by frame; None: none
    shared_noise: Array | None = None
    founder: bool = False  # it has no mother in the video, so its age is drawn
    age: int | None = None  # of a founder, where it is known, in frames


@dataclass(frozen=True)
class _Appearance:
    """Outlines and brightness of a nucleus, and what its daughters inherit of them."""

    radii: Array  # [n, K] px
    brightness: Array  # [n]
    mitosis: float  # how bright its mitosis is, in standard deviations
    quantile: float  # of its brightness among the video's nuclei, in the end
    size: float = 0.0  # how large it is, in standard deviations, in the end


class LineageSimulator:
    """Draws founders and their offspring: shape, area and brightness are AR(1) processes."""

    def __init__(
        self, shapes: ShapeModel, model: CellCycleModel, frames: int, rng: np.random.Generator
    ) -> None:
        """Keep the models; ``frames`` is the length of the video."""
        self.shapes, self.model, self.frames, self.rng = shapes, model, frames, rng
        self.founder_areas = model.adult_area

    def run(
        self,
        first_identity: int,
        *,
        quantile: float | None = None,
        age: int | None = None,
        shared_noise: Array | None = None,
    ) -> list[Cell]:
        """Simulate a founder and its offspring, breadth first.

        Quantile of the brightness and age of the founder are drawn where they are not given.
        """
        area = float(interpolate_quantile(self.founder_areas, self.rng.random()))
        quantile = self.rng.random() if quantile is None else quantile
        founder = _Inherited(
            adult_area=area,
            quantile=quantile,
            mitosis=self._sample_mitosis(quantile),
            founder=True,
            age=age,
            shared_noise=shared_noise,
        )
        waiting, cells = [(founder, 0, 0)], list[Cell]()
        while waiting:
            inherited, parent, first = waiting.pop(0)
            stages, shown, dying = self._sample_stages(inherited, self.frames - first)
            look, seen = self.sample_appearance(inherited, stages, shown), stages[shown]
            if dying.any():
                look, seen = _condense(look, dying, self.rng), np.where(dying, APOPTOSIS, seen)
            identity, end = first_identity + len(cells), first + len(shown)
            whole = shown[-1] == len(stages) - 1 and not dying[-1]
            divides = bool(whole and end < self.frames)
            cells.append(
                Cell(
                    identity, parent, first, look.radii, seen, look.brightness, divides,
                    age=int(shown[0]),
                )
            )  # fmt: skip
            if divides:
                daughters = self.sample_daughters(inherited, look, self.frames - end)
                waiting += [(daughter, identity, end) for daughter in daughters]
        return cells

    def _sample_stages(self, inherited: _Inherited, left: int) -> tuple[Ints, Ints, Array]:
        """Return stages from birth to division, which frames are shown, and how it dies in them."""
        durations = self.sample_durations(inherited)
        cycle, age = sample_cycle_and_age(self.model.cycle, self.rng, founder=inherited.founder)
        stages = make_stage_sequence(durations, cycle)
        age = min(age if inherited.age is None else inherited.age, len(stages) - 1)
        shown, dying = np.arange(age, min(len(stages), age + left)), np.zeros(len(stages))
        if self.model.death_rate:
            dying = sample_dying(self.model, stages, age, self.rng)
            shown = shown[dying[shown] <= 1]
        return stages, shown, dying[shown]

    def sample_durations(self, inherited: _Inherited) -> Ints:
        """Draw the frames that the short stages last, ``[S]``."""
        return resample_durations(self.model, self.rng, inherited.birth)

    def sample_appearance(self, inherited: _Inherited, stages: Ints, shown: Ints) -> _Appearance:
        """Draw the outlines and the brightness of the frames that are shown."""
        weights, anchors = weigh_templates(stages)
        weights, anchored, count = weights[shown], stages[anchors], len(shown)
        scores = self.shapes.sample_scores(count, self.rng)
        radii = np.zeros((count, self.shapes.mean.shape[1]))
        for weight, stage in zip(weights.T, anchored.tolist(), strict=True):
            if weight.max() < _NOTHING:
                continue
            contour = self.shapes.mean[stage] + scores @ self.shapes.aligned_modes[stage]
            radii += weight[:, None] * contour
        radii = np.maximum(radii, radii.mean(1)[:, None] / 4)
        brightness, quantile = self._sample_brightness(inherited, count)
        mitosis = self._sample_mitosis(quantile)
        log_areas, size = self._sample_log_areas(inherited, stages[shown], mitosis)
        areas = inherited.adult_area * compute_area_curve(self.model, stages)[shown]
        areas *= np.exp(log_areas)
        offsets = self._sample_brightness_offsets(inherited, anchored, mitosis)
        # A mitosis is as sudden as in the video, so stages are not blended, as outlines are.
        of_stage = np.zeros(len(PHASES))
        of_stage[anchored] = np.where(anchored == INTERPHASE, 0, offsets)
        brightness *= np.exp(of_stage[stages[shown]])
        radii = radii * np.sqrt(areas / compute_polygon_area(radii))[:, None]
        return _Appearance(radii, brightness, mitosis, quantile, size)

    def sample_daughters(
        self, mother: _Inherited, look: _Appearance, left: int
    ) -> list[_Inherited]:
        """Draw two daughters, equally large, bright and condensed at birth; they drift apart."""
        # The jitter of both areas adds to the asymmetry of sisters.
        robust, jitter = self.model.division_asymmetry_robust, self.shapes.area_jitter
        areas = self._split_area(mother, math.sqrt(max(robust**2 - jitter**2 / 8, 0.0)))
        birth, noise = float(self.rng.random()), self.rng.standard_normal(left)
        return [
            _Inherited(area, look.quantile, look.mitosis, look.size, birth, noise) for area in areas
        ]

    def _split_area(self, mother: _Inherited, asymmetry: float) -> list[float]:
        """Share the mother's area between two daughters; each may grow to twice its share."""
        share = float(np.clip(0.5 + asymmetry * self.rng.standard_normal(), 0.3, 0.7))
        return [2 * part * mother.adult_area for part in (share, 1 - share)]

    def _sample_log_areas(
        self, inherited: _Inherited, stages: Ints, mitosis: float
    ) -> tuple[Array, float]:
        """Return log areas over the expected ones, ``[n]``, and the nucleus' size at last."""
        deviation, autocorrelation = self.model.size
        lasting = draw_ar1(len(stages), np.array([autocorrelation]), self.rng)[:, 0]
        if not inherited.founder:
            lasting += (inherited.size - lasting[0]) * autocorrelation ** np.arange(len(stages))
        spread, condensed = self.model.stage_spread[stages], _CONDENSED[stages]
        flicker = np.hypot(self.shapes.area_jitter, np.where(condensed, 0, spread))
        log_areas = deviation * lasting + flicker * self.rng.standard_normal(len(stages))
        # A nucleus that is bright for its stage is more condensed, so it is small.
        score = np.where(_NEWBORN[stages], inherited.mitosis, mitosis)
        return log_areas - np.where(condensed, spread * score, 0), float(lasting[-1])

    def _sample_brightness(self, inherited: _Inherited, count: int) -> tuple[Array, float]:
        """Return the brightness in interphase, ``[n]``, and its quantile at last.

        What drifts is the rank among the video's nuclei. So nuclei are as bright as the video's at
        all times, and the dim, which differ more from each other, change more.
        """
        noise = self.rng.standard_normal(count)
        if inherited.shared_noise is not None:
            shared = self.model.brightness_sister_correlation
            noise = math.sqrt(1 - shared) * noise
            noise = math.sqrt(shared) * inherited.shared_noise[:count] + noise
        start = np.clip(special.ndtri([inherited.quantile]), -FARTHEST, FARTHEST)
        # A founder begins where it was put, a newborn one step after its mother's end.
        if inherited.founder:
            noise[0] = start[0]
        before = None if inherited.founder else start
        ranks = filter_ar1(noise[:, None], self.model.brightness_autocorrelation, before)[:, 0]
        ranks = special.ndtr(ranks)
        return interpolate_quantile(self.model.brightness, ranks), float(ranks[-1])

    def _sample_mitosis(self, quantile: float) -> float:
        """Draw how bright a mitosis is, in standard deviations; mother and daughters share it."""
        shared = self.model.mitosis_correlation
        score = float(np.clip(special.ndtri(quantile), -FARTHEST, FARTHEST))
        return shared * score + math.sqrt(1 - shared**2) * float(self.rng.standard_normal())

    def _sample_brightness_offsets(
        self, inherited: _Inherited, stages: Ints, mitosis: float
    ) -> Array:
        """Draw every template's log brightness over interphase, ``[A]``."""
        own = self.rng.standard_normal(len(stages))
        sister = self.model.sister_spread * float(self.rng.standard_normal())
        newborn = _NEWBORN[stages]
        scores = np.where(stages == INTERPHASE, own, mitosis)
        scores = np.where(newborn, inherited.mitosis, scores)
        median, spread = self.model.stage_brightness[stages].T
        return np.asarray(median + spread * scores + sister * newborn)


def _condense(look: _Appearance, dying: Array, rng: np.random.Generator) -> _Appearance:
    """Let a nucleus shrink, round off and at last fall into lumps; it keeps its light."""
    share = rng.uniform(*DEAD_AREA) ** dying
    areas = share * compute_polygon_area(look.radii)
    # Round by and by, lumpy from two thirds of the way on.
    mean, lumpy = compute_mean_radius(look.radii)[:, None], np.clip(3 * dying - 2, 0, 1)[:, None]
    radii = look.radii + dying[:, None] * (mean - look.radii)
    radii += lumpy * (mean * _draw_lumps(radii.shape[1], rng) - radii)
    radii *= np.sqrt(areas / compute_polygon_area(radii))[:, None]
    return replace(look, radii=radii, brightness=look.brightness / share)


def _draw_lumps(points: int, rng: np.random.Generator) -> Array:
    """Draw the outline of some discs around a smaller one, ``[K]``."""
    count = rng.integers(*LUMPS, endpoint=True)
    away, size = rng.uniform(0.5, 0.9, count), rng.uniform(0.5, 0.8, count)
    turns = np.arange(count) + rng.uniform(-0.2, 0.2, count)
    angle = 2 * math.pi * (np.arange(points)[:, None] / points - turns / count)
    inside = size**2 - (away * np.sin(angle)) ** 2
    ends = away * np.cos(angle) + np.sqrt(np.maximum(inside, 0))
    return np.asarray(np.where(inside > 0, ends, 0).max(1).clip(0.6))


class TemplateLineageSimulator(LineageSimulator):
    """Draws founders and their offspring as the paper does.

    Outlines are the Gaussian-weighted mean of one template a stage, scaled to the area that the
    video's nuclei have at that age, with white noise in every frame.
    """

    def __init__(
        self,
        shapes: ShapeModel,
        model: CellCycleModel,
        frames: int,
        rng: np.random.Generator,
        jitter: float = 0.1,
    ) -> None:
        """Keep the models; ``jitter``: white noise on outlines (authors' code: 0.1)."""
        super().__init__(shapes, model, frames, rng)
        self.founder_areas, self.jitter = model.mother_area, jitter

    def sample_durations(self, inherited: _Inherited) -> Ints:
        """Draw the frames that each stage lasts independently, ``[S]``."""
        return sample_durations(self.model.durations, self.rng)

    def sample_appearance(self, inherited: _Inherited, stages: Ints, shown: Ints) -> _Appearance:
        """Blend the templates, and add white noise."""
        model, shapes = self.model, self.shapes
        weights, anchors = weigh_templates(stages)
        templates = np.stack([shapes.sample(stage, self.rng) for stage in stages[anchors]])
        table = interpolate_quantile(model.brightness, make_quantile_levels(COARSE))
        base = float(interpolate_quantile(table, inherited.quantile))
        mitosis = float(self.rng.standard_normal())
        offsets = self._sample_brightness_offsets(inherited, stages[anchors], mitosis)
        brightness = base * np.exp(weights[shown] @ offsets)
        radii = weights @ templates
        age = np.minimum(np.arange(len(stages)), len(model.area_of_age) - 1)
        dividing = _DIVIDING[stages]
        curve = np.where(dividing, model.area_of_stage[stages], model.area_of_age[age])
        radii *= np.sqrt(inherited.adult_area * curve / compute_polygon_area(radii))[:, None]
        noise = np.stack([shapes.sample_offset(stage, self.rng) for stage in stages[shown]])
        radii = radii[shown]
        radii = np.maximum(radii + self.jitter * noise, radii.mean(1)[:, None] / 4)
        return _Appearance(radii, brightness, mitosis, inherited.quantile)

    def sample_daughters(
        self, mother: _Inherited, look: _Appearance, left: int
    ) -> list[_Inherited]:
        """Draw two daughters that share only their mother's area, rank and mitosis."""
        areas = self._split_area(mother, self.model.division_asymmetry)
        return [_Inherited(area, mother.quantile, look.mitosis) for area in areas]


def sample_sister_quantile(
    model: CellCycleModel, quantile: float, age: int, rng: np.random.Generator
) -> float:
    """Draw the brightness quantile of a founder's sister: they drift apart from birth on."""
    memory = model.brightness_autocorrelation ** (2 * age + 2)
    own = (1 - model.brightness_sister_correlation) * (1 - memory)
    score = float(np.clip(special.ndtri(quantile), -FARTHEST, FARTHEST))
    sister = (1 - own) * score + math.sqrt(own * (2 - own)) * float(rng.standard_normal())
    return float(special.ndtr(sister))
