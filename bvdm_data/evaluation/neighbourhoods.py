"""Neighbourhoods: one nucleus with what is around it, and what is measured on it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

RINGS = (-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5)
"""Signed distances of the middles of the rings of the edge profile, pixels; below 0 is inside.
A pixel beside the outline is half a pixel off it."""

REACH = 6.0
"""How far outside its outline a nucleus is looked for, pixels."""

MARGIN = 8
"""Pixels around the box of a nucleus that belong to its neighbourhood."""

CONTACT = 2.0
"""Greatest distance of a neighbour's pixel that counts as contact, pixels."""

BANDS = (1 / 8, 1 / 4)
"""Spatial frequencies between coarse, middle and fine texture, cycles a pixel."""

_INTERIOR = 2.0  # texture is measured on pixels more than this off the outline, px
_LEAST_INTERIOR = 30  # px
_SIDE = 64  # side of the square that spectra are taken in, px

Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """A nucleus that does not touch the edge of the frame, cut out with 8 px around its box.

    Attributes:
        own: Its mask, ``[h, w]``.
        others: Masks of all other nuclei, ``[h, w]``.
        light: Grey values above the local background, ``[h, w]`` float32.
        depth: Distance of a pixel of the nucleus to the nearest pixel outside, px, ``[h, w]``.
        distance: Distance of a pixel outside to the nearest one of the nucleus, px, ``[h, w]``.
    """

    own: Bools
    others: Bools
    light: npt.NDArray[np.float32]
    depth: Array
    distance: Array


def cut_out(
    masks: npt.NDArray[np.integer],
    light: npt.NDArray[np.float32],
    identity: int,
    box: tuple[int, int, int, int],
) -> Neighbourhood:
    """Cut a nucleus out of its frame.

    Args:
        masks: The frame's nuclei, ``[H, W]``.
        light: Its light above the local background, ``[H, W]``.
        identity: The nucleus.
        box: First row, first column, last row + 1, last column + 1 of the nucleus.

    Returns:
        The neighbourhood.
    """
    top, left, bottom, right = box
    place = (
        slice(max(top - MARGIN, 0), bottom + MARGIN),
        slice(max(left - MARGIN, 0), right + MARGIN),
    )
    near = masks[place]
    own = near == identity
    return Neighbourhood(
        own=own,
        others=(near > 0) & ~own,
        light=light[place],
        depth=ndimage.distance_transform_edt(own),
        distance=ndimage.distance_transform_edt(~own),
    )


def label_agreement(around: Neighbourhood) -> float:
    """Compare the label with what a fixed threshold finds in the picture.

    The rule: of all pixels up to 6 px outside the label or in it that belong to no other label,
    those are found whose light above the local background is at least half of the median light
    of the label's own pixels (half maximum); the largest connected part of them (4 neighbours)
    is the nucleus. The rule sees no label but that of the neighbours and knows no shape.

    Args:
        around: The nucleus.

    Returns:
        Intersection over union of the label and the part found, 0 where the label is no brighter
        than the background.
    """
    level = float(np.median(around.light[around.own])) / 2
    if not level > 0:
        return 0.0
    bright = (around.distance <= REACH) & ~around.others & (around.light >= level)
    parts, count = ndimage.label(bright)
    if count == 0:
        return 0.0
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    found = parts == sizes.argmax()
    return float((found & around.own).sum() / (found | around.own).sum())


def touches_neighbour(around: Neighbourhood) -> bool:
    """Tell whether another nucleus has a pixel within 2 px.

    Args:
        around: The nucleus.

    Returns:
        True in contact.
    """
    return bool((around.others & (around.distance <= CONTACT)).any())


def edge_profile(around: Neighbourhood) -> Array:
    """Return the mean light of rings along the outline, over the mean light of the interior.

    The interior is what lies more than 4 px off the outline. Pixels within 4 px of another
    nucleus are left out, since its glow adds to them.

    Args:
        around: The nucleus.

    Returns:
        At the signed distances ``RINGS``, ``[8]``; NaN where a ring has no pixel, and all NaN
        where there is no interior or it is no brighter than the background.
    """
    half = len(RINGS) // 2
    middle = around.light[around.depth > half]
    if not middle.size or not middle.mean() > 0:
        return np.full(len(RINGS), np.nan)
    ring = np.where(around.own, -np.ceil(around.depth), np.ceil(around.distance) - 1).astype(int)
    used = np.abs(ring + 0.5) < half
    if around.others.any():
        used &= ndimage.distance_transform_edt(~around.others) > half
    place = ring[used] + half
    count = np.bincount(place, minlength=len(RINGS))
    total = np.bincount(place, weights=around.light[used], minlength=len(RINGS))
    mean: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan) / float(middle.mean())
    return mean


def texture(around: Neighbourhood) -> Array:
    """Measure how uneven the light of the interior is, and how fine its structure.

    The interior is what lies more than 2 px off the outline. Its light, less its mean and 0
    outside, is Fourier-transformed; the power of all waves is shared out by their wavelength.
    The camera's noise is part of what is measured.

    Args:
        around: The nucleus.

    Returns:
        Standard deviation over mean, and the shares of the power at wavelengths above 8 px, of
        4 to 8 px and below 4 px, ``[4]``; NaN where the interior has fewer than 30 px or is no
        brighter than the background.
    """
    inside = around.depth > _INTERIOR
    values = around.light[inside].astype(float)
    if values.size < _LEAST_INTERIOR or not values.mean() > 0:
        return np.full(len(BANDS) + 2, np.nan)
    rest = np.zeros(inside.shape)
    rest[inside] = values - values.mean()
    side = max(_SIDE, *inside.shape)
    power = np.abs(np.fft.fft2(rest, (side, side))) ** 2
    shares = np.bincount(_band_of(side), weights=power.ravel(), minlength=len(BANDS) + 1)
    total = float(shares.sum())
    contrast = float(values.std() / values.mean())
    # A flat interior has no structure at all.
    known = shares / total if total > 0 else np.full(len(shares), np.nan)
    return np.array([contrast, *known])


@lru_cache(maxsize=64)
def _band_of(side: int) -> npt.NDArray[np.int64]:
    """Return the band of every wave of a square picture, flattened."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    bands: npt.NDArray[np.int64] = np.digitize(frequency, BANDS).ravel().astype(np.int64)
    return bands
