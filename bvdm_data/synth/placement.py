"""Placement: where nuclei find room in the first frame of a video."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bvdm_data.synth.cells import Cell
from bvdm_data.synth.contours import Array, compute_mean_radius, interpolate_outline

MARGIN = 64
"""Width of the band around the image, in pixels, from which nuclei come and go."""

CONTACT = 0.85
"""Two nuclei are pushed apart until their distance is this share of the sum of their mean radii
(our choice: outlines are not round, so real nuclei that touch lie below 1)."""

TRIES = 400
"""Places that are tried before a nucleus is given up."""

Pixels = npt.NDArray[np.int64]
"""Indices into a flattened image."""


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


@dataclass
class Occupancy:
    """Nuclei that are placed already: a new one must keep away from them, and not hide them."""

    size: tuple[int, int]  # height and width of the image, px
    centres: list[Array] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)  # of the discs that others keep off
    pixels: list[Pixels] = field(default_factory=list)  # of the image, under each nucleus
    layers: npt.NDArray[np.int64] = field(init=False)  # nuclei over each pixel of the image

    def __post_init__(self) -> None:
        """Begin with an empty image."""
        self.layers = np.zeros(self.size[0] * self.size[1], np.int64)

    def is_free(self, centre: Array, radius: float) -> bool:
        """Return whether a nucleus would be far enough from all others."""
        if not self.centres:
            return True
        distance = np.hypot(*(np.array(self.centres) - centre).T)
        return bool((distance >= np.array(self.radii) + radius).all())

    def find_free(self, sample: Callable[[], Array], radius: float, tries: int) -> Array | None:
        """Return the first of some random centres that is free; None: there is none."""
        centres = (sample() for _ in range(tries))
        return next((centre for centre in centres if self.is_free(centre, radius)), None)

    def keeps_visible(self, pixels: Pixels) -> bool:
        """Return whether each nucleus keeps a pixel of its own when a new one covers these."""
        layers = self.layers.copy()
        layers[pixels] += 1
        in_view = [covered for covered in (*self.pixels, pixels) if len(covered)]
        return all((layers[covered] == 1).any() for covered in in_view)

    def add(self, founder: InitialCell, pixels: Pixels) -> None:
        """Add a nucleus that was placed."""
        self.centres.append(founder.centre)
        self.radii.append(founder.exclusion_radius)
        self.pixels.append(pixels)
        self.layers[pixels] += 1


def list_covered_pixels(founder: InitialCell, size: tuple[int, int]) -> Pixels:
    """Return the pixels of the image under a founder in its first frame, ``[n]``."""
    radii = founder.family[0].radii[0]
    reach = math.ceil(radii.max())
    y, x = (np.floor(founder.centre) + np.arange(-reach, reach + 1)[:, None]).T
    y, x = y[(y >= 0) & (y < size[0])], x[(x >= 0) & (x < size[1])]
    dy, dx = np.meshgrid(y - founder.centre[0], x - founder.centre[1], indexing="ij")
    outline = interpolate_outline(radii, np.arctan2(dx, dy) - founder.angle)
    pixels: Pixels = (y[:, None] * size[1] + x)[np.hypot(dy, dx) <= outline].astype(np.int64)
    return pixels
