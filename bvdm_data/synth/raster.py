"""Raster: labels, light and displacement of all nuclei of a film, without a loop over nuclei."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.synth.fast import Pictures
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.painter import REACH
from bvdm_data.synth.shapes import corners_towards, radius_towards

WINDOW_PIXELS = 2**21
"""Pixels of all windows that are worked on together; bounds the memory."""

STEP = 5
"""Windows are squares whose half side is a multiple of so many pixels."""


@dataclass(frozen=True)
class Tables:
    """Where all nuclei of a film are, as tables; zeros where a nucleus is not there.

    Attributes:
        there: Which nucleus is there in which frame, ``[N, F]``.
        centres: Centroid ``(y, x)``, px, ``[N, F, 2]``.
        axes: Cosine and sine of the turn of the major axis, ``[N, F, 2]``.
        radii: Outlines, px, ``[N, F, K]``.
        rank: Place of each nucleus in the pile, the lowest is 0, ``[N]``.
    """

    there: Bool[Tensor, "N F"]
    centres: Float[Tensor, "N F 2"]
    axes: Float[Tensor, "N F 2"]
    radii: Float[Tensor, "N F K"]
    rank: Int[Tensor, " N"]


def tabulate(paths: Sequence[Trajectory], frames: int) -> Tables:
    """Lay the ways and outlines of nuclei out as tables.

    Args:
        paths: All nuclei.
        frames: Length of the film.

    Returns:
        float32 tables on the CPU, a row for each path.
    """
    count = len(paths)
    corners = len(paths[0].life.radii[0]) if paths else 1
    there = np.zeros((count, frames), bool)
    centres, axes = np.zeros((2, count, frames, 2), np.float32)
    radii = np.ones((count, frames, corners), np.float32)
    for row, path in enumerate(paths):
        life = path.life
        shown = slice(life.first, min(life.last + 1, frames))
        length = max(0, shown.stop - shown.start)
        there[row, shown] = True
        centres[row, shown] = path.centres[:length]
        axes[row, shown] = np.stack([np.cos(path.turns), np.sin(path.turns)], 1)[:length]
        radii[row, shown] = life.radii[:length]
    rank = np.empty(count, np.int64)
    rank[np.argsort([path.depth for path in paths], kind="stable")] = np.arange(count)
    return Tables(*(torch.from_numpy(table) for table in (there, centres, axes, radii, rank)))


def label_rows(tables: Tables, size: tuple[int, int]) -> Int[Tensor, "F H W"]:
    """Draw which nucleus is seen where.

    Args:
        tables: All nuclei.
        size: Height and width of the picture.

    Returns:
        Row of the nucleus in the tables, from 1; 0 in the background; int32.
    """
    count, frames = tables.there.shape
    device = tables.rank.device
    # One cell more, for the pixels that no nucleus covers or no picture holds.
    seen = torch.zeros(frames * size[0] * size[1] + 1, dtype=torch.int32, device=device)
    moments, rows = tables.there.T.nonzero(as_tuple=True)
    reach = tables.radii[rows, moments].amax(1) + 1
    for part, wide in _blocks(tables, rows, moments, reach, size):
        rows_here, moments_here = rows[part], moments[part]
        windows = _windows(tables, rows_here, moments_here, wide, size)
        radii = tables.radii[rows_here, moments_here]
        inside = windows.x.hypot(windows.y) <= radius_towards(radii, windows.y, windows.x)
        place = windows.pixel.where(inside, len(seen) - 1).flatten()
        value = (tables.rank[rows_here] + 1).int()[:, None, None].expand_as(inside).flatten()
        seen.scatter_reduce_(0, place, value, "amax")
    row_of = torch.zeros(count + 1, dtype=torch.int32, device=device)
    row_of[tables.rank + 1] = torch.arange(1, count + 1, dtype=torch.int32, device=device)
    return row_of.index_select(0, seen[:-1]).view(frames, *size)


def add_up(
    tables: Tables, groups: Sequence[Pictures], size: tuple[int, int]
) -> Float[Tensor, "F H W"]:
    """Put painted nuclei, halo and all, in their places; where they meet, their light adds up.

    Args:
        tables: All nuclei.
        groups: Painted nuclei; their rows are those of the tables.
        size: Height and width of the picture.

    Returns:
        Light above the background, grey values.
    """
    frames, device = tables.there.shape[1], tables.rank.device
    total = torch.zeros(frames * size[0] * size[1] + 1, device=device)
    for group in groups:
        rows, moments, light = group.rows, group.moments, group.light.to(device)
        patch = light.shape[-1]
        radii, zoom = tables.radii[rows, moments], group.zoom.to(device)
        # Light ends at REACH; a spline reaches two pixels farther.
        reach = torch.minimum(radii.amax(1) + (REACH + 2) / zoom, (patch / 2 + 2) / zoom)
        for part, wide in _blocks(tables, rows, moments, reach, size):
            windows = _windows(tables, rows[part], moments[part], wide, size)
            shrink = (zoom[part] * 2 / patch)[:, None, None]
            grid = torch.stack([windows.x * shrink, windows.y * shrink], -1)
            read = F.grid_sample(light[part, None], grid, "bicubic", "zeros", align_corners=False)
            # Added in a fixed order, on a GPU, too.
            total.index_put_((windows.pixel.flatten(),), read.flatten(), accumulate=True)
    return total[:-1].view(frames, *size)


def displace_radially(tables: Tables, seen: Int[Tensor, "F H W"]) -> Float[Tensor, "E 2 H W"]:
    """Follow every pixel of a nucleus into the next frame.

    A point keeps its share of the way from the centroid to the outline; the nucleus' turn and step
    are added.

    Args:
        tables: All nuclei.
        seen: Row of the nucleus that is seen at each pixel, from 1; 0 in the background.

    Returns:
        Displacement ``(dy, dx)`` in pixels; 0 in the background and where the nucleus is not seen
        in the next frame.
    """
    frames, height, width = seen.shape
    count, _, corners = tables.radii.shape
    moved = torch.zeros(frames - 1, 2, height * width, device=seen.device)
    again = torch.zeros(frames, count + 1, dtype=torch.bool, device=seen.device)
    again.scatter_(1, seen.flatten(1).long(), True)
    outlines = torch.cat([tables.radii, tables.radii[..., :1]], 2).flatten()
    for frame in range(frames - 1):
        flat = seen[frame].flatten()
        pixel = (flat * again[frame + 1].index_select(0, flat)).nonzero()[:, 0]
        nucleus = flat[pixel] - 1
        row, column = pixel // width, pixel % width

        def now(table: Tensor, moment: int, nucleus: Tensor = nucleus) -> Sequence[Tensor]:
            return table[:, moment].index_select(0, nucleus).unbind(1)

        (down, right), (cosine, sine) = now(tables.centres, frame), now(tables.axes, frame)
        dy, dx = row - down, column - right
        y, x = cosine * dy + sine * dx, cosine * dx - sine * dy
        corner, share = corners_towards(y, x, corners)
        corner += (nucleus * frames + frame) * (corners + 1)
        before = outlines.take(corner).lerp(outlines.take(corner + 1), share)
        corner += corners + 1
        stretch = outlines.take(corner).lerp(outlines.take(corner + 1), share) / before
        (down, right), (cosine, sine) = (
            now(tables.centres, frame + 1), now(tables.axes, frame + 1),
        )  # fmt: skip
        y, x = stretch * y, stretch * x
        moved[frame, 0, pixel] = cosine * y - sine * x + down - row
        moved[frame, 1, pixel] = sine * y + cosine * x + right - column
    return moved.view(-1, 2, height, width)


@dataclass(frozen=True)
class _Windows:
    """Squares of pixels around nuclei, ``[S, W, W]``.

    Attributes:
        pixel: Index of each pixel into the flattened film; one past its end if it lies outside.
        y: Its offset along the nucleus' major axis, px.
        x: Its offset across it, px.
    """

    pixel: Int[Tensor, "S W W"]
    y: Float[Tensor, "S W W"]
    x: Float[Tensor, "S W W"]


def _windows(
    tables: Tables,
    rows: Int[Tensor, " S"],
    moments: Int[Tensor, " S"],
    reach: int,
    size: tuple[int, int],
) -> _Windows:
    centres = tables.centres[rows, moments]
    line = torch.arange(-reach, reach + 2, device=centres.device)
    row, column = (centres.floor().long()[..., None] + line).unbind(1)
    dy = (row - centres[:, :1])[:, :, None]
    dx = (column - centres[:, 1:])[:, None, :]
    cosine, sine = (part[:, None, None] for part in tables.axes[rows, moments].unbind(1))
    row_within = (row >= 0) & (row < size[0])
    column_within = (column >= 0) & (column < size[1])
    # A row or a column outside leads past the end.
    end = tables.there.shape[1] * size[0] * size[1]
    pixel = torch.where(row_within, (moments[:, None] * size[0] + row) * size[1], end)[:, :, None]
    pixel = (pixel + torch.where(column_within, column, end)[:, None, :]).clamp(max=end)
    return _Windows(
        pixel,
        cosine * dy + sine * dx,
        cosine * dx - sine * dy,
    )


def _blocks(
    tables: Tables,
    rows: Int[Tensor, " S"],
    moments: Int[Tensor, " S"],
    reach: Float[Tensor, " S"],
    size: tuple[int, int],
) -> Iterator[tuple[Int[Tensor, " s"], int]]:
    """Yield which moments to work on together, and how far their windows must reach.

    Moments that reach equally far share a block, as many as the memory allows; those that do not
    reach into the picture are left out.
    """
    centres = tables.centres[rows, moments]
    outside = torch.maximum(-centres, centres - torch.tensor(size, device=centres.device))
    near = (outside < reach[:, None]).all(1)
    steps = (reach / STEP).ceil().long()
    for step in sorted(set(steps[near].tolist())):
        wide = step * STEP
        alike = (near & (steps == step)).nonzero()[:, 0]
        for part in alike.split(max(1, WINDOW_PIXELS // (2 * wide + 2) ** 2)):
            yield part, wide
