"""Life: one nucleus' stages, outlines and brightness, frame by frame, and its daughters'."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bvdm_data.synth.course import Ancestry, Course, at_quantile
from bvdm_data.synth.life_model import LifeModel
from bvdm_data.synth.shapes import Array, ShapeModel
from bvdm_data.synth.timeline import (
    draw_cycle_and_age,
    draw_each_length,
    lay_out,
    take_lengths,
)


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
    drift: Array | None = None,
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
        drift: What is new in its brightness in each frame of the film, as in a sister's: standard
            normal numbers, ``[frames]``; None: all is its own.

    Returns:
        The lives, mothers before daughters.
    """
    founder = Ancestry(
        body=float(at_quantile(model.grown if jitter is None else model.body, generator.random())),
        quantile=generator.random() if quantile is None else quantile,
        mitosis=float(generator.standard_normal()),
        founder=True,
        age=age,
        drift=drift,
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
    ancestry: Ancestry,
    parent: int,
    first: int,
    frames: int,
    generator: np.random.Generator,
    identity: int,
    jitter: float | None,
) -> tuple[Life, list[Ancestry]]:
    lengths = (
        take_lengths(model.mitoses, model.births, generator, ancestry.birth)
        if jitter is None
        else draw_each_length(model.durations, generator)
    )
    cycle, age = draw_cycle_and_age(model.cycle, generator, founder=ancestry.founder)
    stages = lay_out(lengths, cycle)
    age = min(age if ancestry.age is None else ancestry.age, len(stages) - 1)
    shown = np.arange(age, min(len(stages), age + frames - first))
    course = Course(shapes, model, ancestry, stages, shown, generator)
    outlines, brightness = course.drifting() if jitter is None else course.templated(jitter)
    # Of what sisters differ by, the wobble of both areas comes on top.
    own = math.sqrt(max(model.split**2 - shapes.wobble**2 / 8, 0.0))
    split = own if jitter is None else model.birth_split
    divides = shown[-1] == len(stages) - 1 and first + len(shown) < frames
    life = Life(
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
    heirs = _daughters(split, ancestry, course.mitosis, generator)
    if jitter is None:
        # Sisters are as large, as bright and as condensed as each other, and part from there.
        shared = Ancestry(
            body=0.0,
            quantile=course.quantile,
            mitosis=course.mitosis,
            size=course.size,
            birth=float(generator.random()),
            drift=generator.standard_normal(frames - first - len(shown)),
        )
        heirs = [replace(shared, body=heir.body) for heir in heirs]
    return life, heirs


def _daughters(
    split: float, mother: Ancestry, mitosis: float, generator: np.random.Generator
) -> list[Ancestry]:
    """Share the mother's body between two daughters; each may grow to twice its share."""
    share = float(np.clip(0.5 + split * generator.standard_normal(), 0.3, 0.7))
    return [
        Ancestry(2 * part * mother.body, mother.quantile, mitosis) for part in (share, 1 - share)
    ]
