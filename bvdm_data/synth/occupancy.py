"""Occupancy: the nuclei that are placed in and around an image already, and what they cover."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bvdm_data.clip import LEAST_PIXELS
from bvdm_data.synth.cells import Cell
from bvdm_data.synth.contours import Array, Ints, compute_mean_radius, interpolate_outline

CONTACT = 0.85
"""Two nuclei are pushed apart until their distance is this share of the sum of their mean radii."""

HIDDEN = 0.05
"""A nucleus of which others leave a smaller share is hidden (our choice)."""


@dataclass
class InitialCell:
    """A nucleus of the first frame, with its offspring."""

    family: list[Cell]  # the cell, and its offspring
    centre: Array  # centroid (y, x), px
    angle: float  # of its major axis, radians
    spacing: float = CONTACT  # radius of the disc that others keep off, over its mean radius

    @property
    def exclusion_radius(self) -> float:
        """Radius of the disc that others keep off in the first frame, px."""
        return self.spacing * float(compute_mean_radius(self.family[0].radii[0]))


class Occupancy:
    """Nuclei that are placed already: a new one must keep away from them, and not hide them."""

    def __init__(self, size: tuple[int, int]) -> None:
        """Begin with an empty image."""
        self.centres: Array = np.zeros((0, 2))
        self.radii: Array = np.zeros(0)  # of the discs that others keep off
        # Pixels that each nucleus covers, and those that it alone covers.
        self.covered, self.own = np.zeros((2, 0), np.int64)
        # How many nuclei cover each pixel of the image, and the sum of their numbers.
        self.layers, self.numbers = np.zeros((2, math.prod(size)), np.int64)

    def is_free(self, centre: Array, radius: float) -> bool:
        """Return whether a nucleus would be far enough from all others."""
        distance = np.hypot(*(self.centres - centre).T)
        return bool((distance >= self.radii + radius).all())

    def find_free(self, sample: Callable[[], Array], radius: float, tries: int) -> Array | None:
        """Return the first of some random centres that is free; None: there is none."""
        centres = (sample() for _ in range(tries))
        return next((centre for centre in centres if self.is_free(centre, radius)), None)

    def count_visible(self, own: Ints, pixels: int) -> int:
        """Return how many nuclei show, whichever are on top, with a new one on so many pixels."""
        covered = np.append(self.covered, pixels)
        least = np.minimum(covered, np.maximum(LEAST_PIXELS, HIDDEN * covered))
        return int(((covered > 0) & (own >= least)).sum())

    def count_own(self, pixels: Ints) -> Ints:
        """Count the pixels that each alone covers, with a new one on some pixels."""
        if not len(pixels):
            return np.append(self.own, 0)
        layers, count = self.layers[pixels], len(self.own)
        lost = np.bincount(self.numbers[pixels][layers == 1], minlength=count)
        return np.append(self.own - lost, (layers == 0).sum())

    def add(self, founder: InitialCell, pixels: Ints, own: Ints) -> None:
        """Add a nucleus that was placed on some pixels; ``own`` as counted with it."""
        self.centres = np.vstack([self.centres, founder.centre])
        self.radii = np.append(self.radii, founder.exclusion_radius)
        self.own, number = own, len(self.own)
        self.covered = np.append(self.covered, len(pixels))
        self.layers[pixels] += 1
        self.numbers[pixels] += number


def list_covered_pixels(founder: InitialCell, size: tuple[int, int]) -> Ints:
    """Return the pixels under a founder in its first frame, counted row by row, ``[n]``."""
    radii = founder.family[0].radii[0]
    first = np.ceil(np.maximum(founder.centre - radii.max(), 0)).astype(np.int64)
    last = np.minimum(np.floor(founder.centre + radii.max()).astype(np.int64), np.subtract(size, 1))
    y, x = (np.arange(low, high + 1) for low, high in zip(first, last, strict=True))
    dy, dx = y[:, None] - founder.centre[0], x - founder.centre[1]
    outline = interpolate_outline(radii, np.arctan2(dx, dy) - founder.angle)
    return np.asarray((y[:, None] * size[1] + x)[np.hypot(dy, dx) <= outline])
