"""Pasting: what a copy-paste scene is made of: empty background, and isolated nuclei."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from bvdm_data.fitting.video import empty_places

ISOLATION = 6
"""A nucleus is used where no other label is nearer than this, px (our choice)."""

HALO = 3
"""Width of the rim of light that is pasted with a nucleus, px (our choice)."""

BRIGHTNESS = (0.7, 1.4)
"""Factors between which the light of a nucleus is changed, evenly in the logarithm (our choice)."""

MOST_COVERED = 0.2
"""Largest part of a nucleus that may lie over, or under, others (our choice)."""

LEAST_VISIBLE = 30
"""A nucleus that would show fewer pixels than this, and more than none, is put elsewhere."""

MARGIN = 32
"""How far outside of the tile nuclei may have their centre, px."""

TRIES = 20
"""How often a place for a nucleus, or a patch for a hole, is looked for."""

# Our choices: grid of the background light and width of its mean, px (the width is that of
# fitting.video.background_light).
_GRID, _WIDTH = 4, 32.0

Grey = npt.NDArray[np.float32]
"""Grey values, or differences of them."""

Half = npt.NDArray[np.float16]
"""The same, kept in half the memory."""

Bool = npt.NDArray[np.bool_]
"""One of two answers a pixel."""


class Background(NamedTuple):
    """What a frame shows between its nuclei, within the border.

    Attributes:
        light: Smooth background light on a grid of 4 px, ``[h, w]`` float32.
        rest: The frame less that light; NaN where a nucleus is near, ``[H, W]`` float16.
    """

    light: Grey
    rest: Half


@dataclass(frozen=True, eq=False)
class Nucleus:
    """One isolated nucleus, cut out with 6 px around its box.

    Attributes:
        light: Grey values less the background light, ``[h, w]`` float16.
        mask: Its pixels, ``[h, w]`` bool.
    """

    light: Half
    mask: Bool


def split_background(grey: Grey, masks: npt.NDArray[np.int32]) -> tuple[Grey, Grey, Grey]:
    """Return the background light on its grid and in full, and what empty places have beside it.

    The light is that of ``fitting.video.background_light``, on a grid of 4 px, which is 20 times
    as fast. What is bright once noise is smoothed away (above 5 standard deviations of the frame
    after a Gaussian of 2 px; our choice) is a nucleus, labelled or not, and so is a rim of 4 px.

    Args:
        grey: A frame, ``[H, W]``.
        masks: Its nuclei, ``[H, W]``; 0 in the background.

    Returns:
        The light on its grid, ``[ceil(H / 4), ceil(W / 4)]``; the light in full, ``[H, W]``; and
        the frame less that light, ``[H, W]``, NaN where a nucleus is near. All are grey values,
        float32.
    """
    free = empty_places(grey, masks)
    if not free.any():
        free = masks == 0
    total, count = (
        ndimage.gaussian_filter(_reduced(a.astype(np.float32)), _WIDTH / _GRID, truncate=3)
        for a in (np.where(free, grey, 0), free)
    )
    least = 1e-3 * _GRID**2
    grid = np.where(count > least, total / np.maximum(count, least), np.median(grey[free]))
    light = enlarged(grid.astype(np.float32))[: grey.shape[0], : grey.shape[1]]
    smooth = ndimage.gaussian_filter(grey - light, 2)
    spread = 1.4826 * float(np.median(np.abs(smooth[free])))
    seen = ndimage.binary_dilation(smooth > 5 * max(spread, 1e-6), iterations=4)
    rest = np.where(free & ~seen, grey - light, np.float32(np.nan))
    return grid.astype(np.float32), light, rest


def _reduced(image: Grey) -> Grey:
    for axis in (0, 1):
        image = np.add.reduceat(image, np.arange(0, image.shape[axis], _GRID), axis=axis)
    return image


def enlarged(grid: Grey) -> Grey:
    """Enlarge the background light from its grid of 4 px, linearly.

    Args:
        grid: Grey values, ``[h, w]``.

    Returns:
        Grey values, ``[4 * h, 4 * w]``: up to 3 px more a side than the frame has.
    """
    found = interpolate(torch.from_numpy(grid)[None, None], scale_factor=_GRID, mode="bilinear")
    return cast(Grey, found[0, 0].numpy())


def fill_holes(
    rest: Half, place: tuple[int, int], size: tuple[int, int], random: np.random.Generator
) -> Grey:
    """Fill the holes of a window of rest with whole patches of other places of the frame.

    The window is laid over random places of the frame, which goes on at the opposite side, up to
    ``TRIES`` times; each fills what holes are left. What still is a hole becomes 0.

    Args:
        rest: Grey values less the background light, ``[H, W]``; NaN in the holes.
        place: Top row and left column of the window, px.
        size: Height and width of the window, px.
        random: Decides where patches come from.

    Returns:
        The window without holes, ``size``, float32.
    """
    rows, columns = (np.arange(p, p + s) for p, s in zip(place, size, strict=True))
    tile = rest[np.ix_(rows, columns)].astype(np.float32)
    for _ in range(TRIES):
        holes = np.isnan(tile)
        if not holes.any():
            return tile
        down, right = random.integers(rest.shape[0]), random.integers(rest.shape[1])
        y, x = (rows + down) % rest.shape[0], (columns + right) % rest.shape[1]
        tile[holes] = rest[np.ix_(y, x)][holes]
    return np.nan_to_num(tile, nan=0.0)


def isolated_nuclei(light: Grey, masks: npt.NDArray[np.int32], border: int) -> Iterator[Nucleus]:
    """Cut out the nuclei in one piece that are off all others and off the border.

    Args:
        light: Grey values less the background light, ``[H, W]``.
        masks: The nuclei of the frame, ``[H, W]``; 0 in the background.
        border: Width of the band at the edge of the frame that no nucleus may touch, px; at least
            ``ISOLATION`` is taken.

    Yields:
        The nuclei of which no other label is within ``ISOLATION``, in the order of their ids.
    """
    height, width = masks.shape
    around = max(border, ISOLATION)
    for number, box in enumerate(ndimage.find_objects(masks), start=1):
        if box is None or any(
            s.start < around or s.stop > side - around
            for s, side in zip(box, (height, width), strict=True)
        ):
            continue
        wide = tuple(slice(s.start - ISOLATION, s.stop + ISOLATION) for s in box)
        labels = masks[wide]
        mask = labels == number
        near = ndimage.distance_transform_edt(~mask) <= ISOLATION
        if not np.any(near & ~mask & (labels > 0)) and ndimage.label(mask)[1] == 1:
            yield Nucleus(light[wide].astype(np.float16), mask)


def changed(one: Nucleus, random: np.random.Generator) -> tuple[Grey, Bool]:
    """Turn, perhaps mirror, and brighten a nucleus; its light ends 3 px off its mask.

    Args:
        one: The nucleus.
        random: Decides the angle, the mirroring and the gain.

    Returns:
        Its light, grey values float32, and its mask, bool; both ``[d, d]``, where d is the
        diagonal of the nucleus' cut-out, rounded up, in pixels.
    """
    angle, mirrored = random.uniform(0, 2 * math.pi), random.random() < 0.5
    gain = math.exp(random.uniform(*np.log(BRIGHTNESS)))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if mirrored:
        turn[:, 1] *= -1
    side = math.ceil(math.hypot(*one.mask.shape))
    offset = (np.array(one.mask.shape) - 1) / 2 - turn @ np.full(2, (side - 1) / 2)
    shape = {"offset": offset, "output_shape": (side, side)}
    light = ndimage.affine_transform(one.light.astype(np.float32), turn, order=3, **shape)
    mask = ndimage.affine_transform(one.mask.astype(np.float32), turn, order=1, **shape) > 0.5
    near = ndimage.distance_transform_edt(~mask) <= HALO
    return np.where(near, gain * light, 0).astype(np.float32), mask


def overlap(
    place: tuple[int, ...], shape: tuple[int, ...], wide: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return what a patch centred at place covers of the canvas, and which part of it that is.

    Args:
        place: Row and column of the patch's centre on the canvas, px.
        shape: Height and width of the patch, px.
        wide: Height and width of the canvas, px.

    Returns:
        Rows and columns of the canvas, and those of the patch, of the same lengths.
    """
    starts = [p - s // 2 for p, s in zip(place, shape, strict=True)]
    spans = [(max(a, 0), min(a + s, w)) for a, s, w in zip(starts, shape, wide, strict=True)]
    here = tuple(slice(*span) for span in spans)
    part = tuple(slice(b - a, e - a) for a, (b, e) in zip(starts, spans, strict=True))
    return here, part


def has_room(
    labels: npt.NDArray[np.int32], here: tuple[slice, ...], mask: Bool, areas: list[int]
) -> bool:
    """Say whether neither the new mask nor one below it is hidden too far.

    Args:
        labels: Nuclei pasted so far, counted from 1, ``[H, W]``, with ``MARGIN`` around the tile.
        here: Rows and columns of the canvas that the new mask lies on.
        mask: The new mask, as far as it lies on the canvas, ``[h, w]``.
        areas: Area of each nucleus pasted so far, px; that of the background comes first.

    Returns:
        True where at most ``MOST_COVERED`` of the new mask and of each one below would lie over,
        or under, others, and each either shows ``LEAST_VISIBLE`` pixels in the tile or none.
    """
    covered = labels[here][mask]
    if np.count_nonzero(covered) > MOST_COVERED * mask.sum():
        return False
    after = labels.copy()
    after[here][mask] = len(areas)
    inner = after[MARGIN:-MARGIN, MARGIN:-MARGIN]
    for number in {len(areas), *np.unique(covered).tolist()} - {0}:
        if 0 < np.count_nonzero(inner == number) < LEAST_VISIBLE:
            return False
        if number < len(areas):
            left = np.count_nonzero(after == number)
            if left < (1 - MOST_COVERED) * areas[number]:
                return False
    return True
