"""Film: where every nucleus of a clip is in every frame, and how it is turned."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.synth.lives import Life, LifeModel, grow_family
from bvdm_data.synth.shapes import Array, ShapeModel, area

MARGIN = 64
"""Width of the band around the picture, in pixels, from which nuclei come and go."""

CONTACT = 0.85
"""Two nuclei are pushed apart until their distance is this share of the sum of their mean radii
(our choice: outlines are not round, so real nuclei that touch lie below 1)."""

_TRIES = 400


@dataclass(frozen=True)
class MotionModel:
    """How nuclei move and how densely they lie; measured from the video.

    Attributes:
        step: Scale and degrees of freedom of the Student t law of a nucleus' step along each
            axis, px a frame, ``[2]``.
        turn: Standard deviation of the turn in a frame, radians.
        separation: Mean and standard deviation of the logarithm of the distance between two
            daughters in their first frame, px, ``[2]``.
        density: Nuclei for each pixel of the field in every frame of the video, ``[F]``.
    """

    step: Array
    turn: float
    separation: Array
    density: Array


@dataclass(frozen=True)
class Trajectory:
    """One nucleus' life with its way through the picture.

    Attributes:
        life: Outlines, stages, brightness.
        centres: Centroid ``(y, x)`` in pixels of the picture, ``[n, 2]``; may lie outside.
        turns: Angle from the picture's y axis to the nucleus' major axis, ``[n]`` radians.
        depth: The nucleus of the larger depth covers the other where two overlap.
    """

    life: Life
    centres: Array
    turns: Array
    depth: float


_Pixels = npt.NDArray[np.int64]


@dataclass
class _Crowd:
    """Nuclei that are placed already: what a new one must keep away from, and must not hide."""

    centres: list[Array]
    radii: list[float]
    pixels: list[_Pixels]  # of the picture, under each nucleus
    layers: npt.NDArray[np.int64]  # nuclei over each pixel of the picture

    def fits(self, centre: Array, radius: float) -> bool:
        if not self.centres:
            return True
        distance = np.hypot(*(np.array(self.centres) - centre).T)
        return bool((distance >= CONTACT * (np.array(self.radii) + radius)).all())

    def stays_in_view(self, pixels: _Pixels) -> bool:
        """Tell whether all keep a pixel of their own when one more nucleus covers these."""
        layers = self.layers.copy()
        layers[pixels] += 1
        in_view = [covered for covered in (*self.pixels, pixels) if len(covered)]
        return all((layers[covered] == 1).any() for covered in in_view)

    def add(self, founder: "_Founder", pixels: _Pixels) -> None:
        self.centres.append(founder.centre)
        self.radii.append(founder.radius)
        self.pixels.append(pixels)
        self.layers[pixels] += 1


def film(
    shapes: ShapeModel,
    lives: LifeModel,
    motion: MotionModel,
    *,
    frames: int,
    size: tuple[int, int],
    nuclei: int | None,
    generator: np.random.Generator,
    jitter: float,
) -> list[Trajectory]:
    """Place founders, let them and their offspring live and move.

    Args:
        shapes: Outlines.
        lives: Stages, brightness, growth.
        motion: Steps, turns, density.
        frames: Length of the film.
        size: Height and width of the picture, px.
        nuclei: Nuclei that the first frame shows; None: the video's density at a random time.
        generator: Where the random numbers come from.
        jitter: Amount of fresh shape noise in each frame.

    Returns:
        All nuclei, also those that stay outside the picture.

    Raises:
        ValueError: If so many nuclei do not fit into the picture.
    """
    founders = _place(shapes, lives, motion, frames, size, nuclei, generator, jitter)
    return _move(founders, motion, frames, generator)


def _no_room(nuclei: int | None, wanted: int, size: tuple[int, int], seen: int, placed: int) -> str:
    if nuclei is None:
        return (
            f"the density of the fitted video asks for {wanted} nuclei in and around size={size}, "
            f"but only {placed} found a free place. Give nuclei= a number"
        )
    return (
        f"nuclei={nuclei} do not fit into size={size}: only {seen} found a free place. "
        "Give fewer nuclei or a larger size"
    )


@dataclass
class _Founder:
    family: list[Life]
    centre: Array
    turn: float

    @property
    def radius(self) -> float:
        return float(_mean_radius(self.family[0].radii[0]))


def _place(
    shapes: ShapeModel,
    lives: LifeModel,
    motion: MotionModel,
    frames: int,
    size: tuple[int, int],
    nuclei: int | None,
    generator: np.random.Generator,
    jitter: float,
) -> list[_Founder]:
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
    crowd = _Crowd([], [], [], np.zeros(height * width, np.int64))
    founders: list[_Founder] = []
    seen, identity, tries = 0, 1, 0
    while (seen if nuclei is not None else len(founders)) < wanted:
        family = grow_family(shapes, lives, frames, generator, identity, jitter=jitter)
        centre = _free_place(crowd, float(_mean_radius(family[0].radii[0])), size, generator)
        if centre is None or tries == _TRIES:
            raise ValueError(_no_room(nuclei, wanted, size, seen, len(founders)))
        turn = generator.uniform(0, 2 * math.pi)
        founder = _Founder(family, centre, turn)
        pixels = _covered(founder, size)
        if nuclei is not None and not crowd.stays_in_view(pixels):
            tries += 1
            continue
        crowd.add(founder, pixels)
        founders.append(founder)
        seen += len(pixels) > 0
        identity += len(family)
    return founders


def _free_place(
    crowd: _Crowd, radius: float, size: tuple[int, int], generator: np.random.Generator
) -> Array | None:
    height, width = size
    for _ in range(_TRIES):
        centre = generator.uniform([-MARGIN, -MARGIN], [height + MARGIN, width + MARGIN])
        if crowd.fits(centre, radius):
            return centre
    return None


def _covered(founder: _Founder, size: tuple[int, int]) -> _Pixels:
    """Return the pixels of the picture under a founder in its first frame, ``[n]``."""
    radii = founder.family[0].radii[0]
    reach = math.ceil(radii.max())
    y, x = (np.floor(founder.centre) + np.arange(-reach, reach + 1)[:, None]).T
    y, x = y[(y >= 0) & (y < size[0])], x[(x >= 0) & (x < size[1])]
    dy, dx = np.meshgrid(y - founder.centre[0], x - founder.centre[1], indexing="ij")
    angle = np.arctan2(dx, dy) - founder.turn
    grid = np.linspace(0, 2 * math.pi, len(radii) + 1)
    outline = np.interp(angle % (2 * math.pi), grid, np.append(radii, radii[0]))
    inside = np.hypot(dy, dx) <= outline
    pixels: _Pixels = (y[:, None] * size[1] + x)[inside].astype(np.int64)
    return pixels


def _move(
    founders: list[_Founder], motion: MotionModel, frames: int, generator: np.random.Generator
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
        _divide(lives, centres, turns, frame, motion, generator)
        _push_apart(lives, centres, frame)
    order = generator.permutation(len(lives))
    return [
        Trajectory(life, np.array(centres[i]), np.array(turns[i]), float(depth))
        for depth, (i, life) in zip(order, lives.items(), strict=True)
    ]


def _divide(
    lives: dict[int, Life],
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


def _push_apart(
    lives: dict[int, Life], centres: dict[int, list[Array]], frame: int, rounds: int = 5
) -> None:
    """Move nuclei that overlap too far apart, each by half of what is missing."""
    here = [life for life in lives.values() if life.first <= frame <= life.last]
    if len(here) < 2:
        return
    place = np.array([centres[life.identity][-1] for life in here])
    radius = np.array([_mean_radius(life.radii[frame - life.first]) for life in here])
    least = CONTACT * (radius[:, None] + radius[None])
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


def _mean_radius(radii: Array) -> Array:
    return np.asarray(np.sqrt(area(radii) / math.pi))
