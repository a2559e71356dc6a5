"""Placing: where nuclei find room in the first frame of a film."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.synth.cells import Cell
from bvdm_data.synth.contours import Array, compute_polygon_area

MARGIN = 64
"""Width of the band around the picture, in pixels, from which nuclei come and go."""

CONTACT = 0.85
"""Two nuclei are pushed apart until their distance is this share of the sum of their mean radii
(our choice: outlines are not round, so real nuclei that touch lie below 1)."""

TRIES = 400
"""Places that are tried before a nucleus is given up."""


Pixels = npt.NDArray[np.int64]
"""Indices into a flattened picture."""


@dataclass
class Occupancy:
    """Nuclei that are placed already: what a new one must keep away from, and must not hide."""

    centres: list[Array]
    radii: list[float]  # of the disc that others keep off
    pixels: list[Pixels]  # of the picture, under each nucleus
    layers: npt.NDArray[np.int64]  # nuclei over each pixel of the picture

    def fits(self, centre: Array, radius: float) -> bool:
        """Tell whether a nucleus would be far enough from all others."""
        if not self.centres:
            return True
        distance = np.hypot(*(np.array(self.centres) - centre).T)
        return bool((distance >= np.array(self.radii) + radius).all())

    def stays_in_view(self, pixels: Pixels) -> bool:
        """Tell whether all keep a pixel of their own when one more nucleus covers these."""
        layers = self.layers.copy()
        layers[pixels] += 1
        in_view = [covered for covered in (*self.pixels, pixels) if len(covered)]
        return all((layers[covered] == 1).any() for covered in in_view)

    def add(self, founder: "InitialCell", pixels: Pixels) -> None:
        """Remember a nucleus that was placed."""
        self.centres.append(founder.centre)
        self.radii.append(founder.keep_off)
        self.pixels.append(pixels)
        self.layers[pixels] += 1


@dataclass
class InitialCell:
    """A nucleus of the first frame, with its offspring."""

    family: list[Cell]  # its life, and those of its offspring
    centre: Array  # centroid (y, x), px
    turn: float  # angle of its major axis, radians

    space: float = CONTACT  # radius of the disc that others keep off, over its mean radius

    @property
    def keep_off(self) -> float:
        """Radius of the disc that others keep off in the first frame, px."""
        return self.space * float(compute_mean_radius(self.family[0].radii[0]))


def explain_no_space(
    nuclei: int | None, wanted: int, size: tuple[int, int], seen: int, placed: int
) -> str:
    """Say that nuclei do not fit."""
    if nuclei is None:
        return (
            f"the density of the fitted video asks for {wanted} nuclei in and around size={size}, "
            f"but only {placed} found a free place. Give nuclei= a number"
        )
    return (
        f"nuclei={nuclei} do not fit into size={size}: only {seen} found a free place. "
        "Give fewer nuclei or a larger size"
    )


def sample_free_position(
    crowd: Occupancy, radius: float, size: tuple[int, int], generator: np.random.Generator
) -> Array | None:
    """Find a place for a nucleus in and around the picture."""
    height, width = size
    for _ in range(TRIES):
        centre = generator.uniform([-MARGIN, -MARGIN], [height + MARGIN, width + MARGIN])
        if crowd.fits(centre, radius):
            return centre
    return None


def list_covered_pixels(founder: InitialCell, size: tuple[int, int]) -> Pixels:
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
    pixels: Pixels = (y[:, None] * size[1] + x)[inside].astype(np.int64)
    return pixels


def compute_mean_radius(radii: Array) -> Array:
    """Return the radius of the disc of the same area, ``[...]`` px."""
    return np.asarray(np.sqrt(compute_polygon_area(radii) / math.pi))
