"""Motion: where every nucleus of a video is in every frame, and its orientation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from bvdm_data.synth.cell_cycle import PRE_MITOTIC, CellCycleModel
from bvdm_data.synth.cells import (
    Cell,
    LineageSimulator,
    TemplateLineageSimulator,
    sample_sister_quantile,
)
from bvdm_data.synth.contours import (
    Array,
    ShapeModel,
    compute_mean_radius,
    interpolate_outline,
    interpolate_quantile,
)
from bvdm_data.synth.occupancy import CONTACT, InitialCell, Occupancy, list_covered_pixels

MARGIN = 64
"""Width of the band around the image, in pixels, from which nuclei come and go."""

TRIES = 400
"""Places that are tried before a nucleus is given up."""

CLOSER, RESTARTS = 0.8, 12
"""Nuclei that do not fit are placed anew, so much closer to each other, at most so often."""

SISTER_FRACTION = 0.8
"""Share of the founders that come with a sister (our choice: some sisters divided or left)."""

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
    if families:
        grow = grow or _make_family_sampler(LineageSimulator(shapes, lives, frames, generator))
        colony = _ColonySimulation(motion, frames, size, generator, grow, travel, contact)
        return colony.run(nuclei, at_least)
    lineages = TemplateLineageSimulator(shapes, lives, frames, generator)
    single: FamilySampler = lambda identity, _: lineages.run(identity)  # noqa: E731
    return _Simulation(motion, frames, size, generator, single, travel).run(nuclei, at_least)


def _make_family_sampler(lineages: LineageSimulator) -> FamilySampler:
    rng = lineages.rng
    quantile, noise = float(rng.random()), np.zeros(lineages.frames)

    def sample(identity: int, sister: InitialCell | None) -> list[Cell]:
        nonlocal quantile, noise
        if sister is not None:
            age = sister.family[0].age
            other = sample_sister_quantile(lineages.model, quantile, age, rng)
            return lineages.run(identity, quantile=other, age=age, shared_noise=noise)
        # Evenly spread, so that a video of few nuclei shows dim and bright ones, too.
        quantile = (quantile + (math.sqrt(5) - 1) / 2) % 1
        noise = rng.standard_normal(lineages.frames)
        return lineages.run(identity, quantile=quantile, shared_noise=noise)

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
    travel: Array | float = 0.0  # of the image up and down, left and right, [2, 2] px

    def __post_init__(self) -> None:
        self.low, high = np.broadcast_to(self.travel + MARGIN, (2, 2)) * [[-1], [1]]
        self.high = self.size + high
        self.clear()
        self.room = 1.0  # factor on the distance that nuclei keep
        self.spacing: dict[int, float] = {}  # of each cell, as in InitialCell
        self.drifts = np.zeros((self.frames, 2))  # of the whole field into each frame, px

    def clear(self) -> None:
        """Take all founders away."""
        self.occupancy = Occupancy(self.size)
        self.founders: list[InitialCell] = []
        self.identity = 1

    def run(self, nuclei: int | None, at_least: int = 0) -> list[Trajectory]:
        """Place the founders, then move all cells frame by frame."""
        self.place_founders(nuclei, at_least)
        cells = {cell.identity: cell for founder in self.founders for cell in founder.family}
        centres = {founder.family[0].identity: [founder.centre] for founder in self.founders}
        angles = {founder.family[0].identity: [founder.angle] for founder in self.founders}
        self.start(cells)
        for frame in range(1, self.frames):
            for cell in cells.values():
                if cell.first < frame <= cell.last:
                    centre, angle = centres[cell.identity], angles[cell.identity]
                    centre.append(centre[-1] + self._draw_step(cell, frame) + self.drifts[frame])
                    angle.append(angle[-1] + self.motion.rotation * self.rng.standard_normal())
            self.place_daughters(cells, centres, angles, frame)
            here = [cell for cell in cells.values() if cell.first <= frame <= cell.last]
            _resolve_overlaps(here, centres, frame, self.spacing)
            self._shorten_steps(here, centres, frame)
        return [Trajectory(c, np.array(centres[i]), np.array(angles[i])) for i, c in cells.items()]

    def _draw_step(self, cell: Cell, frame: int) -> Array:
        """Draw a nucleus' own step; the tail beyond the video's longest is spread over the rest."""
        step, longest = self.sample_step(cell, frame), self.motion.longest_step
        length = math.hypot(*step)
        return step if length <= longest else step * (longest * self.rng.random() / length)

    def _shorten_steps(
        self, cells: list[Cell], centres: dict[int, list[Array]], frame: int
    ) -> None:
        """Keep all that moves nuclei, newborn from their mothers, within the longest step."""
        for cell in cells:
            own = centres[cell.identity]
            before = own[-2] if cell.first < frame else centres[cell.parent][-1]
            step = own[-1] - before
            length = math.hypot(*step)
            if length > self.motion.longest_step:
                own[-1] = before + step * (self.motion.longest_step / length)

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
        visible = self.occupancy.count_visible(np.zeros(0, np.int64))

        def is_short() -> bool:
            return (visible if in_view else len(self.founders)) < wanted

        def add(founder: InitialCell) -> bool:
            nonlocal visible
            pixels = list_covered_pixels(founder, self.size)
            if in_view:
                shown = visible + (len(pixels) > 0)
                if self.occupancy.count_visible(pixels) < shown:
                    return False
                visible = shown
            self.occupancy.add(founder, pixels)
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

    def start(self, cells: dict[int, Cell]) -> None:
        """Draw what lasts from frame to frame."""
        self.spacing = dict.fromkeys(cells, CONTACT * self.room)

    def sample_step(self, cell: Cell, frame: int) -> Array:
        """Draw a nucleus' own step, px."""
        scale, freedom = self.motion.step
        return np.asarray(scale * self.rng.standard_t(freedom, 2))

    def sample_division_offset(self) -> Array:
        """Draw a mother's own step to the middle between her newborn, px."""
        return np.zeros(2)

    def place_daughters(
        self,
        cells: dict[int, Cell],
        centres: dict[int, list[Array]],
        angles: dict[int, list[float]],
        frame: int,
    ) -> None:
        """Put daughters on both sides of the mother's major axis, where the plate splits."""
        pairs: dict[int, list[int]] = {}
        for cell in cells.values():
            if cell.parent and cell.first == frame:
                pairs.setdefault(cell.parent, []).append(cell.identity)
        mean, spread = self.motion.separation
        for mother, daughters in pairs.items():
            middle, angle = centres[mother][-1], angles[mother][-1]
            distance = math.exp(mean + spread * self.rng.normal())
            across = np.array([-math.sin(angle), math.cos(angle)]) * distance / 2
            for daughter, side in zip(daughters, (1, -1), strict=True):
                centres[daughter], angles[daughter] = [middle + side * across], [angle]
        for daughters in pairs.values():
            offset = self.drifts[frame] + self.sample_division_offset()
            for daughter in daughters:
                centres[daughter][-1] = centres[daughter][-1] + offset


@dataclass
class _ColonySimulation(_Simulation):
    """Pairs of sisters, moving as the video's nuclei do."""

    sister_fraction: ClassVar = SISTER_FRACTION

    contact: float = 0.0  # share of the founders that are put against another

    def sample_spacing(self) -> float:
        """Draw the radius of the disc that others keep off a nucleus, over its mean radius."""
        spacing = interpolate_quantile(self.motion.neighbour_spacing, self.rng.random())
        return self.room * min(float(spacing), MAX_SPACING)

    def sample_founder(self, sister: InitialCell | None) -> InitialCell | None:
        """Draw a founder and a place for it: near its sister, against another, or anywhere."""
        family = self.sample_family(self.identity, sister)
        spacing, angle = self.sample_spacing(), self.rng.uniform(0, 2 * math.pi)
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

    def start(self, cells: dict[int, Cell]) -> None:
        """Draw every cell's spacing and lasting speed, and the part of the stage's drift."""
        self.spacing = {founder.family[0].identity: founder.spacing for founder in self.founders}
        self.spacing |= {i: self.sample_spacing() for i in cells if i not in self.spacing}
        self.speeds = {identity: float(self.rng.standard_normal()) for identity in cells}
        drift = self.motion.stage_drift
        first = int(self.rng.integers(max(1, len(drift) - self.frames + 2)))
        # A stage may drift either way.
        steps = np.sign(self.rng.random(2) - 0.5) * drift[first : first + self.frames - 1]
        self.drifts[1 : 1 + len(steps)] = steps  # zero after the video's last

    def sample_step(self, cell: Cell, frame: int) -> Array:
        """Draw a nucleus' own step: the young are fast, the dividing, too, and some always."""
        law, by_age = self.motion.speed, self.motion.speed_by_age
        innovation = math.sqrt(1 - law.autocorrelation**2) * self.rng.standard_normal()
        self.speeds[cell.identity] *= law.autocorrelation
        self.speeds[cell.identity] += innovation
        age = min(cell.age + frame - cell.first, len(by_age) - 1)
        scale = law.scale * math.exp(law.spread * self.speeds[cell.identity]) * by_age[age]
        if cell.stages[frame - cell.first] in PRE_MITOTIC:
            scale *= law.mitotic_ratio
        return np.asarray(scale * self.rng.standard_t(law.freedom, 2))

    def sample_division_offset(self) -> Array:
        """Draw a mother's own step to the middle between her newborn, px."""
        return np.asarray(self.motion.division_offset * self.rng.standard_normal(2))


def _get_direction(angle: float) -> Array:
    return np.array([math.cos(angle), math.sin(angle)])


def _resolve_overlaps(
    cells: list[Cell], centres: dict[int, list[Array]], frame: int, spacing: dict[int, float]
) -> None:
    """Move nuclei that overlap too far apart, each by half of the missing distance."""
    if len(cells) < 2:
        return
    position = np.array([centres[cell.identity][-1] for cell in cells])
    radii = np.stack([cell.radii[frame - cell.first] for cell in cells])
    share = np.array([spacing.get(cell.identity, CONTACT) for cell in cells])
    radius = share * compute_mean_radius(radii)
    least = radius[:, None] + radius[None]
    np.fill_diagonal(least, 0)
    for _ in range(5):
        apart = position[:, None] - position[None]
        distance = np.hypot(apart[..., 0], apart[..., 1])
        missing = np.maximum(least - distance, 0)
        if not missing.any():
            break
        away = apart / np.maximum(distance, 1e-6)[..., None]
        position = position + 0.5 * (missing[..., None] * away).sum(1)
    for cell, centre in zip(cells, position, strict=True):
        centres[cell.identity][-1] = centre
