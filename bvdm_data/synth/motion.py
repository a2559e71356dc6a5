"""Film: where every nucleus of a clip is in every frame, and how it is turned."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bvdm_data.synth.life_model import LifeModel
from bvdm_data.synth.lives import Life, grow_family
from bvdm_data.synth.placing import (
    CONTACT,
    MARGIN,
    TRIES,
    Crowd,
    Founder,
    covered,
    free_place,
    mean_radius,
    no_room,
)
from bvdm_data.synth.shapes import Array, ShapeModel


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
        pace: Scale of a nucleus' step along each axis in interphase, px a frame; standard
            deviation of the logarithm of its own lasting pace; memory of that from frame to
            frame; pace of a dividing nucleus, from prophase on, over that in interphase; and
            degrees of freedom of the Student t law of what is left, ``[5]``.
        pace_of_age: Pace at 0, 1, ... frames after birth over that of all nuclei in interphase,
            ``[A]``; it stays at the last value. That at 0 is not used.
        shift: Standard deviation along each axis of the step from the mother to the middle
            between her two newborn, px.
        drift: Step of the whole field, such as that of the microscope's stage, from each frame of
            the video to the next, px, ``[F - 1, 2]``.
        sisters: Mean and standard deviation of the logarithm of the distance between two sisters
            0, 1, ... frames after birth, px, ``[A, 2]``.
        closest: Distance of a nucleus to its nearest neighbour over the sum of their mean radii,
            at equally spaced quantiles from 0 to 1, ``[Q]``.
    """

    step: Array
    turn: float
    separation: Array
    density: Array
    pace: Array
    pace_of_age: Array
    shift: float
    drift: Array
    sisters: Array
    closest: Array


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


def _place(
    shapes: ShapeModel,
    lives: LifeModel,
    motion: MotionModel,
    frames: int,
    size: tuple[int, int],
    nuclei: int | None,
    generator: np.random.Generator,
    jitter: float,
) -> list[Founder]:
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
    crowd = Crowd([], [], [], np.zeros(height * width, np.int64))
    founders: list[Founder] = []
    seen, identity, tries = 0, 1, 0
    while (seen if nuclei is not None else len(founders)) < wanted:
        family = grow_family(shapes, lives, frames, generator, identity, jitter=jitter)
        centre = free_place(
            crowd, CONTACT * float(mean_radius(family[0].radii[0])), size, generator
        )
        if centre is None or tries == TRIES:
            raise ValueError(no_room(nuclei, wanted, size, seen, len(founders)))
        turn = generator.uniform(0, 2 * math.pi)
        founder = Founder(family, centre, turn)
        pixels = covered(founder, size)
        if nuclei is not None and not crowd.stays_in_view(pixels):
            tries += 1
            continue
        crowd.add(founder, pixels)
        founders.append(founder)
        seen += len(pixels) > 0
        identity += len(family)
    return founders


def _move(
    founders: list[Founder], motion: MotionModel, frames: int, generator: np.random.Generator
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
        divide(lives, centres, turns, frame, motion, generator)
        push_apart(lives, centres, frame)
    order = generator.permutation(len(lives))
    return [
        Trajectory(life, np.array(centres[i]), np.array(turns[i]), float(depth))
        for depth, (i, life) in zip(order, lives.items(), strict=True)
    ]


def divide(
    lives: dict[int, Life],
    centres: dict[int, list[Array]],
    turns: dict[int, list[float]],
    frame: int,
    motion: MotionModel,
    generator: np.random.Generator,
) -> None:
    """Put daughters on both sides of the mother's major axis: that is where the plate splits.

    Args:
        lives: All nuclei.
        centres: Way of each so far; those of the newborn are added.
        turns: Angle of each so far; those of the newborn are added.
        frame: The frame that is made.
        motion: Distance of the newborn.
        generator: Where the random numbers come from.
    """
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


def push_apart(
    lives: dict[int, Life],
    centres: dict[int, list[Array]],
    frame: int,
    *,
    spaces: Mapping[int, float] | None = None,
    rounds: int = 5,
) -> None:
    """Move nuclei that overlap too far apart, each by half of what is missing.

    Args:
        lives: All nuclei.
        centres: Way of each so far; the last place may change.
        frame: The frame that is made.
        spaces: Radius of the disc that others keep off each nucleus, over its mean radius; None:
            ``CONTACT`` for all.
        rounds: How often all are moved.
    """
    here = [life for life in lives.values() if life.first <= frame <= life.last]
    if len(here) < 2:
        return
    place = np.array([centres[life.identity][-1] for life in here])
    known = spaces or {}
    space = np.array([known.get(life.identity, CONTACT) for life in here])
    radius = space * mean_radius(np.stack([life.radii[frame - life.first] for life in here]))
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
