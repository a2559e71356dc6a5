"""Film: where every nucleus of a clip is in every frame, and how it is turned."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bvdm_data.synth.cell_cycle import PRE_MITOTIC, CellCycleModel
from bvdm_data.synth.cells import Cell, sample_sister_quantile, simulate_lineage
from bvdm_data.synth.contours import Array, ShapeModel, make_quantile_levels
from bvdm_data.synth.placement import (
    CONTACT,
    MARGIN,
    TRIES,
    InitialCell,
    Occupancy,
    Pixels,
    compute_mean_radius,
    explain_no_space,
    list_covered_pixels,
    sample_free_position,
)


@dataclass(frozen=True)
class MotionModel:
    """How nuclei move and how densely they lie; measured from the video."""

    # scale and degrees of freedom of the Student t law of a nucleus' step along each axis, px a
    # frame, [2]
    step: Array
    turn: float  # standard deviation of the turn in a frame, radians
    # mean and standard deviation of the logarithm of the distance between two daughters in their
    # first frame, px, [2]
    separation: Array
    density: Array  # nuclei for each pixel of the field in every frame of the video, [F]
    # scale of a nucleus' step along each axis in interphase, px a frame; standard deviation of the
    # logarithm of its own lasting pace; memory of that from frame to frame; pace of a dividing
    # nucleus, from prophase on, over that in interphase; and degrees of freedom of the Student t
    # law of what is left, [5]
    pace: Array
    # pace at 0, 1, ... frames after birth over that of all nuclei in interphase, [A]; it stays at
    # the last value. That at 0 is not used
    pace_of_age: Array
    # standard deviation along each axis of the step from the mother to the middle between her two
    # newborn, px
    shift: float
    # step of the whole field, such as that of the microscope's stage, from each frame of the video
    # to the next, px, [F - 1, 2]
    drift: Array
    # mean and standard deviation of the logarithm of the distance between two sisters 0, 1, ...
    # frames after birth, px, [A, 2]
    sisters: Array
    # distance of a nucleus to its nearest neighbour over the sum of their mean radii, at equally
    # spaced quantiles from 0 to 1, [Q]
    closest: Array


@dataclass(frozen=True)
class Trajectory:
    """One nucleus' life with its way through the picture."""

    life: Cell  # outlines, stages, brightness
    centres: Array  # centroid (y, x) in pixels of the picture, [n, 2]; may lie outside
    turns: Array  # angle from the picture's y axis to the nucleus' major axis, [n] radians
    depth: float  # the nucleus of the larger depth covers the other where two overlap


def simulate_motion(
    shapes: ShapeModel,
    lives: CellCycleModel,
    motion: MotionModel,
    *,
    frames: int,
    size: tuple[int, int],
    nuclei: int | None,
    generator: np.random.Generator,
    jitter: float,
) -> list[Trajectory]:
    """Place founders, let them and their offspring live and move."""
    founders = _place(shapes, lives, motion, frames, size, nuclei, generator, jitter)
    return _move(founders, motion, frames, generator)


def _place(
    shapes: ShapeModel,
    lives: CellCycleModel,
    motion: MotionModel,
    frames: int,
    size: tuple[int, int],
    nuclei: int | None,
    generator: np.random.Generator,
    jitter: float,
) -> list[InitialCell]:
    """Put founders at random places that are free.

    Where a number is asked for, places are drawn until so many nuclei show in the picture; none
    of them is hidden, whichever lies on top.
    """
    height, width = size
    canvas = (height + 2 * MARGIN) * (width + 2 * MARGIN)
    if nuclei is None:
        start = generator.integers(max(1, len(motion.density) - frames + 1))
        wanted = int(generator.poisson(motion.density[start] * canvas))
    else:
        wanted = nuclei
    crowd = Occupancy([], [], [], np.zeros(height * width, np.int64))
    founders: list[InitialCell] = []
    seen, identity, tries = 0, 1, 0
    while (seen if nuclei is not None else len(founders)) < wanted:
        family = simulate_lineage(shapes, lives, frames, generator, identity, jitter=jitter)
        centre = sample_free_position(
            crowd, CONTACT * float(compute_mean_radius(family[0].radii[0])), size, generator
        )
        if centre is None or tries == TRIES:
            raise ValueError(explain_no_space(nuclei, wanted, size, seen, len(founders)))
        turn = generator.uniform(0, 2 * math.pi)
        founder = InitialCell(family, centre, turn)
        pixels = list_covered_pixels(founder, size)
        if nuclei is not None and not crowd.stays_in_view(pixels):
            tries += 1
            continue
        crowd.add(founder, pixels)
        founders.append(founder)
        seen += len(pixels) > 0
        identity += len(family)
    return founders


def _move(
    founders: list[InitialCell], motion: MotionModel, frames: int, generator: np.random.Generator
) -> list[Trajectory]:
    lives = {life.identity: life for founder in founders for life in founder.family}
    centres: dict[int, list[Array]] = {}
    turns: dict[int, list[float]] = {}
    for founder in founders:
        identity = founder.family[0].identity
        centres[identity], turns[identity] = [founder.centre], [founder.turn]
    for frame in range(1, frames):
        for life in lives.values():
            if life.first < frame <= life.last:
                step = motion.step[0] * generator.standard_t(motion.step[1], 2)
                centres[life.identity].append(centres[life.identity][-1] + step)
                turn = turns[life.identity][-1] + motion.turn * generator.standard_normal()
                turns[life.identity].append(turn)
        place_daughters(lives, centres, turns, frame, motion, generator)
        resolve_overlaps(lives, centres, frame)
    order = generator.permutation(len(lives))
    return [
        Trajectory(life, np.array(centres[i]), np.array(turns[i]), float(depth))
        for depth, (i, life) in zip(order, lives.items(), strict=True)
    ]


def place_daughters(
    lives: dict[int, Cell],
    centres: dict[int, list[Array]],
    turns: dict[int, list[float]],
    frame: int,
    motion: MotionModel,
    generator: np.random.Generator,
) -> None:
    """Put daughters on both sides of the mother's major axis: that is where the plate splits."""
    pairs: dict[int, list[int]] = {}
    for life in lives.values():
        if life.parent and life.first == frame:
            pairs.setdefault(life.parent, []).append(life.identity)
    for mother, daughters in pairs.items():
        turn = turns[mother][-1]
        distance = math.exp(motion.separation[0] + motion.separation[1] * generator.normal())
        across = np.array([-math.sin(turn), math.cos(turn)]) * distance / 2
        for daughter, side in zip(daughters, (1, -1), strict=True):
            centres[daughter] = [centres[mother][-1] + side * across]
            turns[daughter] = [turn]


def resolve_overlaps(
    lives: dict[int, Cell],
    centres: dict[int, list[Array]],
    frame: int,
    *,
    spaces: Mapping[int, float] | None = None,
    rounds: int = 5,
) -> None:
    """Move nuclei that overlap too far apart, each by half of what is missing."""
    here = [life for life in lives.values() if life.first <= frame <= life.last]
    if len(here) < 2:
        return
    place = np.array([centres[life.identity][-1] for life in here])
    known = spaces or {}
    space = np.array([known.get(life.identity, CONTACT) for life in here])
    radius = space * compute_mean_radius(
        np.stack([life.radii[frame - life.first] for life in here])
    )
    least = radius[:, None] + radius[None]
    np.fill_diagonal(least, 0)
    for _ in range(rounds):
        apart = place[:, None] - place[None]
        distance = np.hypot(apart[..., 0], apart[..., 1])
        missing = np.maximum(least - distance, 0)
        if not missing.any():
            break
        away = apart / np.maximum(distance, 1e-6)[..., None]
        place = place + 0.5 * (missing[..., None] * away).sum(1)
    for life, centre in zip(here, place, strict=True):
        centres[life.identity][-1] = centre


FamilySampler = Callable[[int, InitialCell | None], list[Cell]]
"""Gives a family whose founder has a number, the sister of another founder or of nobody."""

SISTER_FRACTION = 0.8
"""Share of the founders that come with a sister (our choice: in a growing population every nucleus
has one, but some have divided, and some of the video's have left)."""


MAX_SPACING = 1.1
"""Nuclei farther apart than this share of the sum of their mean radii do not push each other (our
choice: outlines that touch lie near 1)."""


def simulate_colony(
    shapes: ShapeModel,
    lives: CellCycleModel,
    motion: MotionModel,
    *,
    frames: int,
    size: tuple[int, int],
    nuclei: int | None,
    generator: np.random.Generator,
    grow: FamilySampler | None = None,
    contact: float = 0.0,
) -> list[Trajectory]:
    """Place families, let them live and move.

    Other than in :func:`simulate_motion`, founders come in pairs of sisters, as far
    apart as sisters of their age are in the video; their brightness is spread evenly over that of
    the video's nuclei; the young are fast, and a fast nucleus stays fast for a while; a mother's
    newborn do not lie evenly around her place; and the whole field moves as that of the video did.
    """
    grow = grow or _Growth(shapes, lives, frames, generator)
    founders = _Placing(motion, frames, size, generator, grow, contact).place(nuclei)
    return _colony_move(founders, motion, frames, generator)


CONTACT_RANGE = (0.9, 1.02)
"""Least and largest distance of a founder from the one that it is put against, over that at which
their outlines meet (our choice)."""

CONTACT_TRIES = 10
"""How often a place against another is looked for."""

_NOTHING: Pixels = np.zeros(0, np.int64)


class _Growth:
    """Draws families from the models."""

    def __init__(
        self, shapes: ShapeModel, lives: CellCycleModel, frames: int, generator: np.random.Generator
    ) -> None:
        self.models = (shapes, lives, frames, generator)
        self.quantile = float(generator.random())
        self.drift = np.zeros(frames)

    def __call__(self, identity: int, sister: InitialCell | None) -> list[Cell]:
        _, lives, frames, generator = self.models
        if sister is None:
            # Evenly spread, so that a film of few nuclei shows dim and bright ones, too.
            self.quantile = (self.quantile + (math.sqrt(5) - 1) / 2) % 1
            self.drift = generator.standard_normal(frames)
            quantile, age = self.quantile, None
        else:
            age = sister.family[0].age
            quantile = sample_sister_quantile(lives, self.quantile, age, generator)
        return simulate_lineage(
            *self.models, identity, jitter=None, quantile=quantile, age=age, drift=self.drift
        )


class _Placing:
    """Puts founders, in pairs of sisters where there is room, at free places."""

    def __init__(
        self,
        motion: MotionModel,
        frames: int,
        size: tuple[int, int],
        generator: np.random.Generator,
        grow: FamilySampler,
        contact: float,
    ) -> None:
        self.grow = grow
        self.contact = contact
        self.motion = motion
        self.frames = frames
        self.size = size
        self.generator = generator
        self.crowd = Occupancy([], [], [], np.zeros(size[0] * size[1], np.int64))
        self.founders: list[InitialCell] = []
        self.identity = 1
        self.seen = 0

    def place(self, nuclei: int | None) -> list[InitialCell]:
        height, width = self.size
        canvas = (height + 2 * MARGIN) * (width + 2 * MARGIN)
        wanted = nuclei
        if wanted is None:
            start = self.generator.integers(max(1, len(self.motion.density) - self.frames + 1))
            wanted = int(self.generator.poisson(self.motion.density[start] * canvas))
        tries = 0
        while (self.seen if nuclei is not None else len(self.founders)) < wanted:
            founder = self._founder(None)
            if founder is None or tries == TRIES:
                raise ValueError(
                    explain_no_space(nuclei, wanted, self.size, self.seen, len(self.founders))
                )
            if not self._take(founder, nuclei):
                tries += 1
                continue
            there = self.seen if nuclei is not None else len(self.founders)
            if there < wanted and self.generator.random() < SISTER_FRACTION:
                sister = self._founder(founder)
                if sister is not None:
                    self._take(sister, nuclei)
        return self.founders

    def _founder(self, sister: InitialCell | None) -> InitialCell | None:
        """Draw a founder and a free place for it; None where there is none."""
        family = self.grow(self.identity, sister)
        space = _space(self.motion, self.generator)
        turn = self.generator.uniform(0, 2 * math.pi)
        if sister is None and self.contact and self.generator.random() < self.contact:
            against = self._against(family, turn, space)
            if against is not None:
                return against
        keep_off = space * float(compute_mean_radius(family[0].radii[0]))
        for _ in range(TRIES if sister is None else 30):
            centre = self._somewhere(sister)
            if self.crowd.fits(centre, keep_off):
                return InitialCell(family, centre, turn, space)
        return None

    def _against(self, family: list[Cell], turn: float, space: float) -> InitialCell | None:
        """Put a founder against one that is there; None where there is no room at any."""
        radii = family[0].radii[0]
        for _ in range(CONTACT_TRIES if self.founders else 0):
            other = self.founders[self.generator.integers(len(self.founders))]
            angle = self.generator.uniform(0, 2 * math.pi)
            reach = _outline(other.family[0].radii[0], angle - other.turn)
            reach += _outline(radii, angle + math.pi - turn)
            distance = reach * self.generator.uniform(*CONTACT_RANGE)
            centre = other.centre + distance * np.array([math.cos(angle), math.sin(angle)])
            # As close as they lie now they may stay.
            narrow = min(space, (distance - other.keep_off) / float(compute_mean_radius(radii)))
            if narrow > 0 and self.crowd.fits(
                centre, narrow * float(compute_mean_radius(radii)) - 1e-6
            ):
                return InitialCell(family, centre, turn, narrow)
        return None

    def _somewhere(self, sister: InitialCell | None) -> Array:
        height, width = self.size
        if sister is None:
            return self.generator.uniform([-MARGIN, -MARGIN], [height + MARGIN, width + MARGIN])
        known = self.motion.sisters[min(sister.family[0].age, len(self.motion.sisters) - 1)]
        distance = math.exp(known[0] + known[1] * self.generator.standard_normal())
        angle = self.generator.uniform(0, 2 * math.pi)
        return sister.centre + distance * np.array([math.cos(angle), math.sin(angle)])

    def _take(self, founder: InitialCell, nuclei: int | None) -> bool:
        # Only where a number in view is asked for does it matter what each one covers.
        pixels = _NOTHING if nuclei is None else list_covered_pixels(founder, self.size)
        if nuclei is not None and not self.crowd.stays_in_view(pixels):
            return False
        self.crowd.add(founder, pixels)
        self.founders.append(founder)
        self.seen += len(pixels) > 0
        self.identity += len(founder.family)
        return True


def _colony_move(
    founders: Sequence[InitialCell],
    motion: MotionModel,
    frames: int,
    generator: np.random.Generator,
) -> list[Trajectory]:
    lives = {life.identity: life for founder in founders for life in founder.family}
    centres = {founder.family[0].identity: [founder.centre] for founder in founders}
    turns = {founder.family[0].identity: [founder.turn] for founder in founders}
    spaces = {founder.family[0].identity: founder.space for founder in founders}
    spaces |= {i: _space(motion, generator) for i in lives if i not in spaces}
    paces = {identity: float(generator.standard_normal()) for identity in lives}
    start = int(generator.integers(max(1, len(motion.drift) - frames + 2)))
    way = np.sign(generator.random(2) - 0.5)  # the stage has no side of its own
    for frame in range(1, frames):
        row = start + frame - 1
        drift = way * motion.drift[row] if row < len(motion.drift) else np.zeros(2)
        for life in lives.values():
            if life.first < frame <= life.last:
                moved = _step(life, frame, paces, motion, generator)
                centres[life.identity].append(centres[life.identity][-1] + moved + drift)
                turn = turns[life.identity][-1] + motion.turn * generator.standard_normal()
                turns[life.identity].append(turn)
        place_daughters(lives, centres, turns, frame, motion, generator)
        shifts: dict[int, Array] = {}
        for life in lives.values():
            if life.parent and life.first == frame:
                if life.parent not in shifts:
                    shifts[life.parent] = drift + motion.shift * generator.standard_normal(2)
                centres[life.identity][-1] = centres[life.identity][-1] + shifts[life.parent]
        resolve_overlaps(lives, centres, frame, spaces=spaces)
    order = generator.permutation(len(lives))
    return [
        Trajectory(life, np.array(centres[i]), np.array(turns[i]), float(depth))
        for depth, (i, life) in zip(order, lives.items(), strict=True)
    ]


def _outline(radii: Array, angle: float) -> float:
    """Return how far an outline is in a direction, px."""
    grid = np.linspace(0, 2 * math.pi, len(radii) + 1)
    return float(np.interp(angle % (2 * math.pi), grid, np.append(radii, radii[0])))


def _space(motion: MotionModel, generator: np.random.Generator) -> float:
    """Draw the radius of the disc that others keep off a nucleus, over its mean radius."""
    drawn = np.interp(generator.random(), make_quantile_levels(len(motion.closest)), motion.closest)
    return float(min(drawn, MAX_SPACING))


def _step(
    life: Cell,
    frame: int,
    paces: dict[int, float],
    motion: MotionModel,
    generator: np.random.Generator,
) -> Array:
    """Draw a nucleus' own step: the young are fast, those that divide, too, some always."""
    pace, spread, memory, mitotic, freedom = motion.pace
    renewed = math.sqrt(1 - memory**2) * generator.standard_normal()
    paces[life.identity] = memory * paces[life.identity] + renewed
    age = min(life.age + frame - life.first, len(motion.pace_of_age) - 1)
    scale = pace * math.exp(spread * paces[life.identity]) * motion.pace_of_age[age]
    if life.stages[frame - life.first] in PRE_MITOTIC:
        scale *= mitotic
    drawn: Array = scale * generator.standard_t(freedom, 2)
    return drawn
