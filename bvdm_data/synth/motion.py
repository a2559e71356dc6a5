"""Motion: where every nucleus of a video is in every frame, and its orientation."""

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.spatial import KDTree

from bvdm_data.synth.cell_cycle import PRE_MITOTIC, CellCycleModel
from bvdm_data.synth.cells import (
    Cell,
    LineageSimulator,
    TemplateLineageSimulator,
    number_cells,
)
from bvdm_data.synth.contours import (
    Array,
    Ints,
    ShapeModel,
    compute_mean_radius,
    interpolate_outline,
    interpolate_quantile,
)
from bvdm_data.synth.occupancy import CONTACT, InitialCell, Occupancy, list_covered_pixels

REACH, WALK, LONGEST_WALK = 1.6, 3.0, 80
"""How far a nucleus reaches, over its mean radius, how far it walks, in standard deviations, and in
how many frames at most (our choice: of the HeLa nuclei that 32 frames show, one in a thousand would
come from farther)."""

TRIES = 400
"""Places that are tried before a nucleus is given up."""

CLOSER, RESTARTS = 0.8, 12
"""Nuclei that do not fit are placed anew, so much closer to each other, at most so often."""

LEAST_PAIRS, MOST_PAIRS = 4, 64
"""Pairs of sisters that are simulated together."""

SISTER_FRACTION = 0.8
"""Share of the founders that come with a sister (our choice: some sisters divided or left)."""

REDRAWS = 8
"""A step longer than the video's longest is drawn anew at most so often, then shortened."""

MAX_SPACING = 1.1
"""Nuclei farther apart than this share of the sum of their mean radii do not push each other."""

CONTACT_RANGE = (0.9, 1.02)
"""Distance of a founder from the one that it is put against; at 1 outlines meet (our choice)."""


class SpeedModel(NamedTuple):
    """How far a nucleus moves in a frame, along each axis."""

    scale: float  # of the Student t law of a step in interphase, px
    spread: float  # standard deviation of the logarithm of a nucleus' own lasting speed
    autocorrelation: float  # AR(1) coefficient of that, from frame to frame
    mitotic_ratio: float  # speed of a dividing nucleus, from prophase on, over interphase
    freedom: float  # degrees of freedom of the Student t law


@dataclass(frozen=True)
class MotionModel:
    """How nuclei move and how densely they lie; measured from the video."""

    step: Array  # scale (px) and degrees of freedom of the Student t law along each axis, [2]
    rotation: float  # standard deviation of the change of angle in a frame, radians
    # mean and standard deviation of the log distance between two newborn daughters, px, [2]
    separation: Array
    density: Array  # nuclei for each pixel of the field in every frame of the video, [F]
    speed: SpeedModel  # of a step that depends on nucleus, age and stage
    # speed 0, 1, ... frames after birth over that of all in interphase, [A]; the first is not used
    speed_by_age: Array
    # standard deviation along each axis of the step from mother to middle of her newborn, px
    division_offset: float
    longest_step: float  # of a nucleus from one frame to the next, px
    # step of the whole field, such as the microscope's stage makes, between frames, px, [F - 1, 2]
    stage_drift: Array
    # mean and deviation of the log distance of sisters 0, 1, ... frames after birth, [A, 2] px
    sister_distance: Array
    # distance of a nucleus to its nearest neighbour over the sum of their mean radii, at equally
    # spaced quantiles from 0 to 1, [Q]
    neighbour_spacing: Array


@dataclass(frozen=True)
class Trajectory:
    """One nucleus and its path through the image."""

    cell: Cell  # outlines, stages, brightness
    centres: Array  # centroid (y, x) in pixels of the image, [n, 2]; may lie outside
    angles: Array  # from the image's y axis to the nucleus' major axis, [n] radians


def compute_margin(diameter: float, motion: MotionModel, frames: int) -> int:
    """Return the width of the band around an image from which nuclei come into a video, px."""
    walk = WALK * float(motion.step[0]) * math.sqrt(min(frames, LONGEST_WALK))
    return math.ceil(REACH * diameter / 2 + walk)


FamilySampler = Callable[[int, InitialCell | None], list[Cell]]
"""Returns a founder of a given identity, the sister of another or unrelated, and its offspring."""


def simulate_motion(
    shapes: ShapeModel,
    lives: CellCycleModel,
    motion: MotionModel,
    *,
    families: bool,
    frames: int,
    size: tuple[int, int],
    nuclei: int | None,
    generator: np.random.Generator,
    grow: FamilySampler | None = None,
    contact: float = 0.0,
    at_least: int = 0,
    travel: Array | float = 0.0,
) -> list[Trajectory]:
    """Place founders, and let them and their offspring live and move.

    With ``families`` they do so as in the video: founders come in pairs of sisters, as far apart as
    the video's sisters of their age. Their brightness is spread evenly over that of the video's
    nuclei. The young are fast, and a fast nucleus stays fast for a while. The whole field moves as
    the video's did. Without, independent founders walk at random (the paper). The image may travel
    so far up and down, and to the left and right, [2, 2] px.
    """
    margin = compute_margin(2 * float(compute_mean_radius(shapes.mean[0])), motion, frames)
    band = np.broadcast_to(travel + margin, (2, 2))
    if families:
        if grow is None:
            share = float(motion.density[0]) if nuclei is None else nuclei / math.prod(size)
            wanted = share * math.prod(size + band.sum(0))
            pairs = min(max(round(wanted / (1 + SISTER_FRACTION)), LEAST_PAIRS), MOST_PAIRS)
            grow = _make_family_sampler(LineageSimulator(shapes, lives, frames, generator), pairs)
        colony = _ColonySimulation(motion, frames, size, generator, grow, band, contact)
        return colony.run(nuclei, at_least)
    lineages = TemplateLineageSimulator(shapes, lives, frames, generator)

    def single(identity: int, _: InitialCell | None) -> list[Cell]:
        return number_cells(lineages.grow(generator.random(1))[0], identity)

    return _Simulation(motion, frames, size, generator, single, band).run(nuclei, at_least)


def _make_family_sampler(lineages: LineageSimulator, pairs: int) -> FamilySampler:
    """Return a sampler of families; so many pairs of sisters are drawn at once, to save time."""
    start, numbers = float(lineages.rng.random()), itertools.count(1)
    waiting: deque[tuple[list[Cell], list[Cell]]] = deque()
    pair: tuple[list[Cell], list[Cell]] = [], []

    def sample(identity: int, sister: InitialCell | None) -> list[Cell]:
        nonlocal pair
        if sister is None:
            if not waiting:
                # Evenly spread, so that a video of few nuclei shows dim and bright ones, too.
                steps = np.array(list(itertools.islice(numbers, pairs)))
                waiting.extend(lineages.grow_pairs((start + steps * (math.sqrt(5) - 1) / 2) % 1))
            pair = waiting.popleft()
        return number_cells(pair[sister is not None], identity)

    return sample


@dataclass
class _Simulation:
    """Founders that are placed independently; all nuclei walk at random."""

    sister_fraction: ClassVar = 0.0

    motion: MotionModel
    frames: int
    size: tuple[int, int]
    rng: np.random.Generator
    sample_family: FamilySampler
    band: Array  # how far nuclei may be above and left of the image, and beyond it, [2, 2] px

    def __post_init__(self) -> None:
        self.low, self.high = -self.band[0], self.size + self.band[1]
        self.clear()
        self.room = 1.0  # factor on the distance that nuclei keep
        self.drifts = np.zeros((self.frames, 2))  # of the whole field into each frame, px

    def clear(self) -> None:
        """Take all founders away."""
        self.occupancy = Occupancy(self.size)
        self.founders: list[InitialCell] = []
        self.identity = 1

    def run(self, nuclei: int | None, at_least: int = 0) -> list[Trajectory]:
        """Place the founders, then move all cells frame by frame."""
        self.place_founders(nuclei, at_least)
        cells = [cell for founder in self.founders for cell in founder.family]
        lives = _LifeTable(cells, self.frames)
        centres, angles = np.zeros((len(cells), self.frames, 2)), np.zeros(lives.radius.shape)
        founders = [lives.row_of[founder.family[0].identity] for founder in self.founders]
        centres[founders, 0] = np.reshape([founder.centre for founder in self.founders], (-1, 2))
        angles[founders, 0] = [founder.angle for founder in self.founders]
        spacing = self.start(lives, founders)
        for frame in range(1, self.frames):
            now, before = centres[:, frame], centres[:, frame - 1]
            old = np.flatnonzero((lives.first < frame) & (frame <= lives.last))
            now[old] = before[old] + self._draw_steps(lives, old, frame)
            turns = self.motion.rotation * self.rng.standard_normal(len(old))
            angles[old, frame] = angles[old, frame - 1] + turns
            born = np.flatnonzero(lives.first == frame)
            if len(born):
                mothers = lives.mother[born[::2]]
                turned = angles[mothers, frame - 1]
                angles[born, frame] = np.repeat(turned, 2)
                now[born] = self._place_daughters(before[mothers], turned).reshape(-1, 2)
                before[born] = np.repeat(before[mothers], 2, axis=0)
            now[old] += self.drifts[frame]
            now[born] += self.drifts[frame]
            here = np.concatenate([old, born])
            now[here] = _resolve_overlaps(now[here], spacing[here] * lives.radius[here, frame])
            # All that moves nuclei, newborn from their mothers, keeps within the longest step.
            step = now[here] - before[here]
            length = np.hypot(*step.T)[:, None]
            longest = self.motion.longest_step
            now[here] = before[here] + step * (longest / np.maximum(length, longest))
        shown = [slice(cell.first, cell.last + 1) for cell in cells]
        return [
            Trajectory(cell, centres[row, part].copy(), angles[row, part].copy())
            for row, (cell, part) in enumerate(zip(cells, shown, strict=True))
        ]

    def _draw_steps(self, lives: "_LifeTable", rows: Ints, frame: int) -> Array:
        """Draw nuclei's own steps, ``[n, 2]`` px; those beyond the video's longest anew."""
        scale, freedom = self.sample_scales(lives, rows, frame)
        steps = scale * self.rng.standard_t(freedom, (len(rows), 2))
        for _ in range(REDRAWS):
            if not (far := np.hypot(*steps.T) > self.motion.longest_step).any():
                break
            steps[far] = scale[far] * self.rng.standard_t(freedom, (far.sum(), 2))
        return np.asarray(steps)

    def _place_daughters(self, mothers: Array, angles: Array) -> Array:
        """Put daughters on both sides of a mother's major axis, where the plate splits."""
        mean, spread = self.motion.separation
        distance = np.exp(mean + spread * self.rng.standard_normal(len(angles)))
        across = np.stack([-np.sin(angles), np.cos(angles)], 1) * distance[:, None] / 2
        middle = mothers + self.sample_division_offsets(len(angles))
        return np.stack([middle + across, middle - across], 1)

    def place_founders(self, nuclei: int | None, at_least: int = 0) -> None:
        """Place founders at random until the wanted number is there.

        If ``nuclei`` is given, it counts the nuclei that show in the image, and none of them is
        hidden, whichever lies on top. Else as many as fit of those that the density asks for, and
        others until ``at_least`` show.
        """
        if nuclei is None:
            density = self.motion.density
            start = self.rng.integers(max(1, len(density) - self.frames + 1))
            canvas = math.prod(self.high - self.low)
            wanted = int(self.rng.poisson(density[start] * canvas))
        in_view = at_least if nuclei is None else nuclei
        for _ in range(RESTARTS):
            if nuclei is None:
                self._place(wanted, in_view=False)
            if self._place(in_view, in_view=True):
                return
            self.clear()
            self.room *= CLOSER
        name = "at_least" if nuclei is None else "nuclei"
        raise ValueError(f"{name}={in_view} do not fit into size={self.size}; give fewer nuclei")

    def _place(self, wanted: int, *, in_view: bool) -> bool:
        """Place founders; return whether so many are there, or in view."""
        hidden = 0
        visible = self.occupancy.count_visible(np.append(self.occupancy.own, 0), 0)

        def is_short() -> bool:
            return (visible if in_view else len(self.founders)) < wanted

        def add(founder: InitialCell) -> bool:
            nonlocal visible
            own = self.occupancy.count_own(pixels := list_covered_pixels(founder, self.size))
            if in_view:
                shown = visible + (len(pixels) > 0)
                if self.occupancy.count_visible(own, len(pixels)) < shown:
                    return False
                visible = shown
            self.occupancy.add(founder, pixels, own)
            self.founders.append(founder)
            self.identity += len(founder.family)
            return True

        while is_short():
            founder = self.sample_founder(None)
            if founder is None or hidden == TRIES:
                return False
            if not add(founder):
                hidden += 1
            elif self.sister_fraction and is_short() and self.rng.random() < self.sister_fraction:
                sister = self.sample_founder(founder)
                if sister is not None:
                    add(sister)
        return True

    def sample_position(self) -> Array:
        """Draw a centre in and around the image."""
        return np.asarray(self.rng.uniform(self.low, self.high))

    def sample_founder(self, sister: InitialCell | None) -> InitialCell | None:
        """Draw a founder and a free place for it; None: there is none."""
        family = self.sample_family(self.identity, sister)
        spacing = CONTACT * self.room
        radius = spacing * float(compute_mean_radius(family[0].radii[0]))
        centre = self.occupancy.find_free(self.sample_position, radius, TRIES)
        if centre is None:
            return None
        return InitialCell(family, centre, self.rng.uniform(0, 2 * math.pi), spacing)

    def start(self, lives: "_LifeTable", founders: list[int]) -> Array:
        """Draw what lasts from frame to frame; return each cell's spacing, as in InitialCell."""
        return np.full(len(lives.first), CONTACT * self.room)

    def sample_scales(self, lives: "_LifeTable", rows: Ints, frame: int) -> tuple[Array, float]:
        """Return scale, ``[n, 1]`` px, and freedom of the t law of nuclei's own steps."""
        scale, freedom = self.motion.step
        return np.full((len(rows), 1), scale), float(freedom)

    def sample_division_offsets(self, count: int) -> Array:
        """Draw mothers' own steps to the middle between their newborn, ``[count, 2]`` px."""
        return np.zeros((count, 2))


@dataclass
class _ColonySimulation(_Simulation):
    """Pairs of sisters, moving as the video's nuclei do."""

    sister_fraction: ClassVar = SISTER_FRACTION

    contact: float = 0.0  # share of the founders that are put against another

    def sample_spacings(self, count: int) -> Array:
        """Draw the radii of the discs that others keep off nuclei, over their mean radii."""
        spacings = interpolate_quantile(self.motion.neighbour_spacing, self.rng.random(count))
        return np.asarray(self.room * np.minimum(spacings, MAX_SPACING))

    def sample_founder(self, sister: InitialCell | None) -> InitialCell | None:
        """Draw a founder and a place for it: near its sister, against another, or anywhere."""
        family = self.sample_family(self.identity, sister)
        spacing, angle = float(self.sample_spacings(1)[0]), self.rng.uniform(0, 2 * math.pi)
        radius = float(compute_mean_radius(family[0].radii[0]))
        if sister is None and self.contact and self.rng.random() < self.contact:
            founder = self._place_in_contact(family, angle, spacing, radius)
            if founder is not None:
                return founder

        def sample() -> Array:
            if sister is None:
                return self.sample_position()
            known = self.motion.sister_distance
            mean, spread = known[min(sister.family[0].age, len(known) - 1)]
            distance = math.exp(mean + spread * self.rng.standard_normal())
            return sister.centre + distance * _get_direction(self.rng.uniform(0, 2 * math.pi))

        centre = self.occupancy.find_free(sample, spacing * radius, 30 if sister else TRIES)
        return None if centre is None else InitialCell(family, centre, angle, spacing)

    def _place_in_contact(
        self, family: list[Cell], angle: float, spacing: float, radius: float
    ) -> InitialCell | None:
        """Put a founder against one that is there; None: there is no room at any."""
        for _ in range(10 if self.founders else 0):
            other = self.founders[self.rng.integers(len(self.founders))]
            towards = self.rng.uniform(0, 2 * math.pi)
            reach = interpolate_outline(other.family[0].radii[0], towards - other.angle)
            reach = reach + interpolate_outline(family[0].radii[0], towards + math.pi - angle)
            distance = float(reach) * self.rng.uniform(*CONTACT_RANGE)
            centre = other.centre + distance * _get_direction(towards)
            # As close as they lie now they may stay.
            close = min(spacing, (distance - other.exclusion_radius) / radius)
            if close > 0 and self.occupancy.is_free(centre, close * radius - 1e-6):
                return InitialCell(family, centre, angle, close)
        return None

    def start(self, lives: "_LifeTable", founders: list[int]) -> Array:
        """Draw every cell's spacing and lasting speed, and the part of the stage's drift."""
        spacing = self.sample_spacings(len(lives.first))
        spacing[founders] = [founder.spacing for founder in self.founders]
        self.speeds = self.rng.standard_normal(len(spacing))
        drift = self.motion.stage_drift
        first = int(self.rng.integers(max(1, len(drift) - self.frames + 2)))
        # A stage may drift either way.
        steps = np.sign(self.rng.random(2) - 0.5) * drift[first : first + self.frames - 1]
        self.drifts[1 : 1 + len(steps)] = steps  # zero after the video's last
        return spacing

    def sample_scales(self, lives: "_LifeTable", rows: Ints, frame: int) -> tuple[Array, float]:
        """Draw scale and freedom: the young are fast, the dividing, too, and some always."""
        law, by_age = self.motion.speed, self.motion.speed_by_age
        innovation = math.sqrt(1 - law.autocorrelation**2) * self.rng.standard_normal(len(rows))
        speeds = law.autocorrelation * self.speeds[rows] + innovation
        self.speeds[rows] = speeds
        age = np.minimum(lives.age[rows] + frame - lives.first[rows], len(by_age) - 1)
        scale = law.scale * np.exp(law.spread * speeds) * by_age[age]
        scale *= np.where(lives.divides[rows, frame], law.mitotic_ratio, 1)
        return scale[:, None], law.freedom

    def sample_division_offsets(self, count: int) -> Array:
        """Draw mothers' own steps to the middle between their newborn, ``[count, 2]`` px."""
        return np.asarray(self.motion.division_offset * self.rng.standard_normal((count, 2)))


class _LifeTable:
    """What moves cells: sisters, who follow each other, are rows one after the other."""

    def __init__(self, cells: list[Cell], frames: int) -> None:
        self.row_of = {cell.identity: row for row, cell in enumerate(cells)}
        self.first, self.last, self.age, parents = np.reshape(
            [(cell.first, cell.last, cell.age, cell.parent) for cell in cells], (-1, 4)
        ).T.astype(np.int64)
        self.mother = np.array([self.row_of.get(int(parent), -1) for parent in parents], np.int64)
        self.radius = np.zeros((len(cells), frames))  # mean radius in every frame, px
        self.divides = np.zeros(self.radius.shape, bool)  # from prophase on
        if cells:
            times = np.arange(frames)
            there = (self.first[:, None] <= times) & (times <= self.last[:, None])
            self.radius[there] = compute_mean_radius(np.concatenate([c.radii for c in cells]))
            self.divides[there] = np.isin(np.concatenate([c.stages for c in cells]), PRE_MITOTIC)


def _get_direction(angle: float) -> Array:
    return np.array([math.cos(angle), math.sin(angle)])


def _resolve_overlaps(position: Array, radius: Array) -> Array:
    """Move nuclei that overlap too far apart, each by half of the missing distance."""
    # Others would have to come nearer by a radius to meet.
    near = KDTree(position).query_pairs(3 * radius.max(initial=0), output_type="ndarray").T
    for _ in range(5):
        apart = np.subtract(*position[near])
        distance = np.hypot(*apart.T)
        missing = np.maximum(radius[near].sum(0) - distance, 0)
        if not missing.any():
            break
        push = (0.5 * missing / np.maximum(distance, 1e-6))[:, None] * apart
        position = position.copy()
        np.add.at(position, near, [push, -push])
    return position
