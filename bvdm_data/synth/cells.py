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
    Stages,
    compute_area_curve,
    make_stages,
    resample_durations,
    sample_cycles,
    sample_cycles_and_ages,
    sample_durations,
    sample_dying,
)
from bvdm_data.synth.contours import (
    Array,
    Ints,
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


@dataclass(frozen=True, kw_only=True)
class _Newborn:
    """Nuclei that begin together, and what they have from their mothers; ``[N]`` each."""

    adult_area: Array  # px^2
    quantile: Array  # of their brightness among the video's nuclei
    mitosis: Array  # how bright their mothers' mitosis was, in standard deviations
    cycle: Ints  # frames from birth to division
    birth: Array  # whose ana- and telophase they have, from 0 to 1
    first: Ints  # frame of the video in which they appear
    family: Ints  # number of the family
    parent: Ints  # number of the mother in it; 0 for founders
    # innovations of their brightness that they share with their sisters, frame by frame, [F, N];
    # None: they share none
    shared_noise: Array | None = None
    age: Ints | None = None  # of founders, frames
    size: Array | None = None  # how large newborn are, in standard deviations


@dataclass(frozen=True)
class _Appearance:
    """Outlines and brightness of nuclei, and what their daughters inherit of them."""

    radii: Array  # [n, N, K] px
    brightness: Array  # [n, N]
    mitosis: Array  # how bright their mitosis is, in standard deviations, [N]
    ranks: Array  # normal scores of their brightness among the video's nuclei, [n, N]
    sizes: Array  # how large they are, in standard deviations, [n, N]


class LineageSimulator:
    """Draws founders and their offspring: shape, area and brightness are AR(1) processes."""

    def __init__(
        self, shapes: ShapeModel, model: CellCycleModel, frames: int, rng: np.random.Generator
    ) -> None:
        """Keep the models; ``frames`` is the length of the video."""
        self.shapes, self.model, self.frames, self.rng = shapes, model, frames, rng
        self.founder_areas = model.adult_area
        # The jitter of both areas adds to the asymmetry of sisters.
        robust, jitter = model.division_asymmetry_robust, shapes.area_jitter
        self.asymmetry = math.sqrt(max(robust**2 - jitter**2 / 8, 0.0))

    def grow(self, quantiles: Array) -> list[list[Cell]]:
        """Simulate founders of some quantiles of the brightness, each with its offspring."""
        cycles, ages = sample_cycles_and_ages(self.model.cycle, self.rng, len(quantiles))
        return self.grow_founders(quantiles, cycles, ages)

    def grow_pairs(self, quantiles: Array) -> list[tuple[list[Cell], list[Cell]]]:
        """Simulate founders and a sister of each, of the same age, with their offspring."""
        count = len(quantiles)
        cycles, ages = sample_cycles_and_ages(self.model.cycle, self.rng, 2 * count)
        ages[count:] = ages[:count]
        sisters = sample_sister_quantile(self.model, quantiles, ages[:count], self.rng)
        noise = np.tile(self.rng.standard_normal((self.frames, count)), 2)
        families = self.grow_founders(np.r_[quantiles, sisters], cycles, ages, noise)
        return list(zip(families[:count], families[count:], strict=True))

    def grow_founders(
        self, quantiles: Array, cycles: Ints, ages: Ints, shared_noise: Array | None = None
    ) -> list[list[Cell]]:
        """Simulate founders of given cycles and ages; cells are numbered from 1, breadth first."""
        count = len(quantiles)
        newborn = _Newborn(
            adult_area=interpolate_quantile(self.founder_areas, self.rng.random(count)),
            quantile=quantiles,
            mitosis=self.sample_mitosis(_score(quantiles)),
            cycle=cycles,
            birth=self.rng.random(count),
            first=np.zeros(count, np.int64),
            family=np.arange(count),
            parent=np.zeros(count, np.int64),
            shared_noise=shared_noise,
            age=ages,
        )
        families: list[list[Cell]] = [[] for _ in range(count)]
        while len(newborn.family):
            newborn = self._live(newborn, families)
        return families

    def _live(self, nuclei: _Newborn, families: list[list[Cell]]) -> _Newborn:
        """Let nuclei live, add them to their families, and return their daughters."""
        stages = make_stages(self.sample_durations(nuclei.birth), nuclei.cycle)
        age = np.zeros_like(nuclei.first) if nuclei.age is None else nuclei.age
        age = np.minimum(age, stages.length - 1)
        counts = np.minimum(stages.length - age, self.frames - nuclei.first)
        end, lasting = np.full((2, len(age)), np.inf)  # last frame of its life, if it dies
        if self.model.death_rate:
            end, lasting = sample_dying(self.model, stages, age, self.rng)
            counts = np.minimum(counts, end - age + 1).astype(np.int64)
        lived = age + np.arange(counts.max())[:, None]
        look, seen = self.sample_appearance(nuclei, stages, lived), stages.at(lived)
        dies, number = np.isfinite(end), np.zeros_like(age)
        dying = np.where(dies, (lived - np.where(dies, end, 0)) / lasting + 1, 0).clip(0)
        divides = ~dies & (age + counts == stages.length) & (nuclei.first + counts < self.frames)
        for i, count in enumerate(counts.tolist()):
            family, own = families[nuclei.family[i]], seen[:count, i].copy()
            radii, brightness = look.radii[:count, i].copy(), look.brightness[:count, i].copy()
            if (part := dying[:count, i]).any():
                radii, brightness = _condense(radii, brightness, part, self.rng)
                own[part > 0] = APOPTOSIS
            number[i] = len(family) + 1
            family.append(
                Cell(
                    int(number[i]), int(nuclei.parent[i]), int(nuclei.first[i]), radii, own,
                    brightness, bool(divides[i]), age=int(age[i]),
                )
            )  # fmt: skip
        return self._bear(nuclei, look, number, counts, np.flatnonzero(divides))

    def _bear(
        self, nuclei: _Newborn, look: _Appearance, number: Ints, counts: Ints, mothers: Ints
    ) -> _Newborn:
        """Return two daughters of each mother."""
        birth = self.rng.random(len(mothers))
        inherited = self.inherit(nuclei, look, mothers, counts[mothers] - 1)
        known = {
            "birth": birth,
            "first": (nuclei.first + counts)[mothers],
            "family": nuclei.family[mothers],
            "parent": number[mothers],
            **inherited,
        }
        return _Newborn(
            adult_area=self._split_areas(nuclei.adult_area[mothers]),
            cycle=sample_cycles(self.model.cycle, self.rng, 2 * len(mothers)),
            **{key: np.repeat(value, 2, axis=-1) for key, value in known.items()},
        )

    def sample_durations(self, birth: Array) -> Ints:
        """Draw the frames that the short stages last, ``[N, S]``."""
        return resample_durations(self.model, self.rng, birth)

    def sample_mitosis(self, scores: Array) -> Array:
        """Draw how bright mitoses are, given how bright the mothers are; normal scores."""
        shared, own = self.model.mitosis_correlation, self.rng.standard_normal(len(scores))
        return np.asarray(shared * scores + math.sqrt(1 - shared**2) * own)

    def sample_appearance(self, nuclei: _Newborn, stages: Stages, lived: Ints) -> _Appearance:
        """Draw the outlines and the brightness in some frames of their lives, ``[n, N]``."""
        weights, of_template = stages.weigh_templates(lived)
        scores = self.shapes.sample_scores(len(lived), self.rng, lived.shape[1])
        radii = np.zeros((*lived.shape, self.shapes.mean.shape[1]))
        for stage in range(len(PHASES)):
            weight = (weights * (of_template == stage)).sum(-1)
            if weight.max() >= _NOTHING:
                contours = self.shapes.mean[stage] + scores @ self.shapes.aligned_modes[stage]
                radii += weight[..., None] * contours
        radii = np.maximum(radii, radii.mean(-1, keepdims=True) / 4)
        now, last = stages.at(lived), np.minimum(len(lived), stages.length - lived[0]) - 1
        ranks = self._sample_ranks(nuclei, len(lived))
        mitosis = self.sample_mitosis(ranks[last, np.arange(len(last))])
        log_areas, sizes = self._sample_log_areas(nuclei, now, mitosis)
        areas = nuclei.adult_area * compute_area_curve(self.model, stages, lived)
        radii *= np.sqrt(areas * np.exp(log_areas) / compute_polygon_area(radii))[..., None]
        # A mitosis is as sudden as in the video, so stages are not blended, as outlines are.
        phases = np.tile(np.arange(len(PHASES)), (len(last), 1))
        offsets = self._sample_brightness_offsets(nuclei, phases, mitosis)
        offsets[:, INTERPHASE] = 0
        brightness = interpolate_quantile(self.model.brightness, special.ndtr(ranks))
        brightness = brightness * np.exp(offsets[np.arange(len(last)), now])
        return _Appearance(radii, brightness, mitosis, ranks, sizes)

    def inherit(
        self, nuclei: _Newborn, look: _Appearance, mothers: Ints, last: Ints
    ) -> dict[str, Array]:
        """Return what daughters have of mothers: size, brightness, mitosis; then they drift apart.

        They are equally large, bright and condensed at birth.
        """
        return {
            "quantile": special.ndtr(look.ranks[last, mothers]),
            "mitosis": look.mitosis[mothers],
            "size": look.sizes[last, mothers],
            "shared_noise": self.rng.standard_normal((self.frames, len(mothers))),
        }

    def _split_areas(self, areas: Array) -> Array:
        """Share mothers' areas between two daughters each; each may grow to twice its share."""
        share = 0.5 + self.asymmetry * self.rng.standard_normal(len(areas))
        share = share.clip(0.3, 0.7)
        return np.asarray(2 * np.stack([share, 1 - share], 1) * areas[:, None]).ravel()

    def _sample_log_areas(
        self, nuclei: _Newborn, stages: Ints, mitosis: Array
    ) -> tuple[Array, Array]:
        """Return log areas over the expected ones, and lasting scores of size, ``[n, N]``."""
        deviation, autocorrelation = self.model.size
        sizes = draw_ar1(len(stages), np.full(stages.shape[1], autocorrelation), self.rng)
        if nuclei.size is not None:
            kept = autocorrelation ** np.arange(len(stages))
            sizes += kept[:, None] * (nuclei.size - sizes[0])
        spread, condensed = self.model.stage_spread[stages], _CONDENSED[stages]
        flicker = np.hypot(self.shapes.area_jitter, np.where(condensed, 0, spread))
        log_areas = deviation * sizes + flicker * self.rng.standard_normal(stages.shape)
        # A nucleus that is bright for its stage is more condensed, so it is small.
        score = np.where(_NEWBORN[stages], nuclei.mitosis, mitosis)
        return log_areas - np.where(condensed, spread * score, 0), sizes

    def _sample_ranks(self, nuclei: _Newborn, frames: int) -> Array:
        """Draw normal scores of the brightness in interphase, ``[frames, N]``.

        What drifts is the rank among the video's nuclei. So nuclei are as bright as the video's at
        all times, and the dim, which differ more from each other, change more.
        """
        noise = self.rng.standard_normal((frames, len(nuclei.quantile)))
        if nuclei.shared_noise is not None:
            shared = self.model.brightness_sister_correlation
            noise = math.sqrt(1 - shared) * noise
            noise += math.sqrt(shared) * nuclei.shared_noise[:frames]
        start = _score(nuclei.quantile)
        # A founder begins where it was put, a newborn one step after its mother's end.
        if nuclei.age is not None:
            noise[0] = start
        before = None if nuclei.age is not None else start
        return filter_ar1(noise, self.model.brightness_autocorrelation, before)

    def _sample_brightness_offsets(self, nuclei: _Newborn, stages: Ints, mitosis: Array) -> Array:
        """Draw the log brightness of templates over interphase, given their stages, ``[N, A]``."""
        own = self.rng.standard_normal(stages.shape)
        sister = self.model.sister_spread * self.rng.standard_normal((len(stages), 1))
        newborn = _NEWBORN[stages]
        scores = np.where(stages == INTERPHASE, own, mitosis[:, None])
        scores = np.where(newborn, nuclei.mitosis[:, None], scores)
        median, spread = np.moveaxis(self.model.stage_brightness[stages], -1, 0)
        return np.asarray(median + spread * scores + sister * newborn)


def _score(quantile: Array) -> Array:
    return np.asarray(special.ndtri(quantile)).clip(-FARTHEST, FARTHEST)


def _condense(
    radii: Array, brightness: Array, dying: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Let a nucleus shrink, round off and at last fall into lumps; it keeps its light."""
    share = rng.uniform(*DEAD_AREA) ** dying
    areas = share * compute_polygon_area(radii)
    # Round by and by, lumpy from two thirds of the way on.
    mean, lumpy = compute_mean_radius(radii)[:, None], np.clip(3 * dying - 2, 0, 1)[:, None]
    radii = radii + dying[:, None] * (mean - radii)
    radii += lumpy * (mean * _draw_lumps(radii.shape[1], rng) - radii)
    radii *= np.sqrt(areas / compute_polygon_area(radii))[:, None]
    return radii, brightness / share


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
        self.asymmetry = model.division_asymmetry

    def sample_durations(self, birth: Array) -> Ints:
        """Draw the frames that each stage lasts independently, ``[N, S]``."""
        return sample_durations(self.model.durations, self.rng, len(birth))

    def sample_mitosis(self, scores: Array) -> Array:
        """Draw how bright mitoses are, as normal scores, whatever the mothers' are."""
        return self.rng.standard_normal(len(scores))

    def sample_appearance(self, nuclei: _Newborn, stages: Stages, lived: Ints) -> _Appearance:
        """Blend the templates, and add white noise."""
        model, shapes, now = self.model, self.shapes, stages.at(lived)
        weights, of_template = stages.weigh_templates(lived)
        templates = shapes.sample(of_template, self.rng)
        table = interpolate_quantile(model.brightness, make_quantile_levels(COARSE))
        mitosis = self.sample_mitosis(nuclei.quantile)
        offsets = self._sample_brightness_offsets(nuclei, of_template, mitosis)
        brightness = np.exp((weights * offsets).sum(-1))
        brightness *= interpolate_quantile(table, nuclei.quantile)
        radii = np.einsum("fna,nak->fnk", weights, templates)
        of_age = model.area_of_age[np.minimum(lived, len(model.area_of_age) - 1)]
        curve = np.where(_DIVIDING[now], model.area_of_stage[now], of_age)
        radii *= np.sqrt(nuclei.adult_area * curve / compute_polygon_area(radii))[..., None]
        noise = self.jitter * shapes.sample_offsets(now, self.rng)
        radii = np.maximum(radii + noise, radii.mean(-1, keepdims=True) / 4)
        lasting = np.zeros(lived.shape)
        return _Appearance(radii, brightness, mitosis, _score(nuclei.quantile) + lasting, lasting)

    def inherit(
        self, nuclei: _Newborn, look: _Appearance, mothers: Ints, last: Ints
    ) -> dict[str, Array]:
        """Return their mothers' rank and mitosis."""
        return {"quantile": nuclei.quantile[mothers], "mitosis": look.mitosis[mothers]}


def sample_sister_quantile(
    model: CellCycleModel, quantile: Array, age: Ints, rng: np.random.Generator
) -> Array:
    """Draw the brightness quantiles of founders' sisters: they drift apart from birth on."""
    memory = model.brightness_autocorrelation ** (2 * age + 2)
    own = (1 - model.brightness_sister_correlation) * (1 - memory)
    noise = np.sqrt(own * (2 - own)) * rng.standard_normal(len(quantile))
    return np.asarray(special.ndtr((1 - own) * _score(quantile) + noise))


def number_cells(family: list[Cell], first: int) -> list[Cell]:
    """Return the cells of a family, numbered from ``first`` on."""
    shift = first - family[0].identity
    return [
        replace(c, identity=c.identity + shift, parent=c.parent and c.parent + shift)
        for c in family
    ]
