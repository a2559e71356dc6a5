"""Raster: labels, light and displacement of all nuclei of a film, without a loop over nuclei."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.synth.contours import find_vertices, interpolate_radius, is_inside
from bvdm_data.synth.denoiser import SDF_CLIP
from bvdm_data.synth.flow import invert_flow
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.textures import DenoiserInputs, RenderedPatches

WINDOW_PIXELS = 2**21
"""Pixels of all windows that are worked on together; bounds the memory."""

STEP = 5
"""Windows are squares whose half side is a multiple of so many pixels."""


@dataclass(frozen=True)
class CellTable:
    """Where all nuclei of a film are, as tables; zeros where a nucleus is not there."""

    there: Bool[Tensor, "N F"]  # which nucleus is there in which frame, [N, F]
    centres: Float[Tensor, "N F 2"]  # centroid (y, x), px, [N, F, 2]
    axes: Float[Tensor, "N F 2"]  # cosine and sine of the turn of the major axis, [N, F, 2]
    radii: Float[Tensor, "N F K"]  # outlines, px, [N, F, K]
    rank: Int[Tensor, " N"]  # place of each nucleus in the pile, the lowest is 0, [N]


def make_cell_table(paths: Sequence[Trajectory], frames: int) -> CellTable:
    """Lay the ways and outlines of nuclei out as tables."""
    count = len(paths)
    corners = len(paths[0].cell.radii[0]) if paths else 1
    there = np.zeros((count, frames), bool)
    centres, axes = np.zeros((2, count, frames, 2), np.float32)
    radii = np.ones((count, frames, corners), np.float32)
    for row, path in enumerate(paths):
        life = path.cell
        shown = slice(life.first, min(life.last + 1, frames))
        length = max(0, shown.stop - shown.start)
        there[row, shown] = True
        centres[row, shown] = path.centres[:length]
        axes[row, shown] = np.stack([np.cos(path.angles), np.sin(path.angles)], 1)[:length]
        radii[row, shown] = life.radii[:length]
    rank = np.empty(count, np.int64)
    rank[np.argsort([path.z_order for path in paths], kind="stable")] = np.arange(count)
    return CellTable(*(torch.from_numpy(table) for table in (there, centres, axes, radii, rank)))


def draw_labels(tables: CellTable, size: tuple[int, int]) -> Int[Tensor, "F H W"]:
    """Draw which nucleus is seen where."""
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
        inside = windows.x.hypot(windows.y) <= interpolate_radius(radii, windows.y, windows.x)
        place = windows.pixel.where(inside, len(seen) - 1).flatten()
        value = (tables.rank[rows_here] + 1).int()[:, None, None].expand_as(inside).flatten()
        seen.scatter_reduce_(0, place, value, "amax")
    row_of = torch.zeros(count + 1, dtype=torch.int32, device=device)
    row_of[tables.rank + 1] = torch.arange(1, count + 1, dtype=torch.int32, device=device)
    return row_of.index_select(0, seen[:-1]).view(frames, *size)


def composite(
    tables: CellTable, groups: Sequence[RenderedPatches], size: tuple[int, int]
) -> Float[Tensor, "F H W"]:
    """Put painted nuclei, halo and all, in their places; where they meet, their light adds up."""
    frames, device = tables.there.shape[1], tables.rank.device
    total = torch.zeros(frames * size[0] * size[1] + 1, device=device)
    for group in groups:
        rows, moments, light = group.rows, group.moments, group.light.to(device)
        patch = light.shape[-1]
        radii, zoom = tables.radii[rows, moments], group.zoom.to(device)
        # Light ends at REACH; a spline reaches two pixels farther.
        reach = torch.minimum(radii.amax(1) + (SDF_CLIP + 2) / zoom, (patch / 2 + 2) / zoom)
        for part, wide in _blocks(tables, rows, moments, reach, size):
            windows = _windows(tables, rows[part], moments[part], wide, size)
            shrink = (zoom[part] * 2 / patch)[:, None, None]
            grid = torch.stack([windows.x * shrink, windows.y * shrink], -1)
            read = F.grid_sample(light[part, None], grid, "bicubic", "zeros", align_corners=False)
            # Added in a fixed order, on a GPU, too.
            total.index_put_((windows.pixel.flatten(),), read.flatten(), accumulate=True)
    return total[:-1].view(frames, *size)


def compute_radial_flow(tables: CellTable, seen: Int[Tensor, "F H W"]) -> Float[Tensor, "E 2 H W"]:
    """Follow every pixel of a nucleus into the next frame.

    A point keeps its share of the way from the centroid to the outline; the nucleus' turn and step
    are added.
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
        corner, share = find_vertices(y, x, corners)
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
    """Squares of pixels around nuclei, ``[S, W, W]``."""

    # index of each pixel into the flattened film; one past its end if it lies outside
    pixel: Int[Tensor, "S W W"]
    y: Float[Tensor, "S W W"]  # its offset along the nucleus' major axis, px
    x: Float[Tensor, "S W W"]  # its offset across it, px


def _windows(
    tables: CellTable,
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
    tables: CellTable,
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


Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class CellPixels:
    """One nucleus in one frame: which pixels of the picture it may cover."""

    row: int  # index of the nucleus among the paths
    window: tuple[slice, slice]  # the part of the picture, rows and columns
    y: Tensor  # offset of each pixel along the nucleus' major axis, [h, w] px
    x: Tensor  # offset across it
    inside: Tensor  # which pixels lie within the outline, [h, w] bool
    edge: Tensor  # distance of each pixel from the centroid less that of the outline, [h, w] px


def iterate_cell_pixels(
    paths: Sequence[Trajectory], frame: int, size: tuple[int, int]
) -> Iterator[CellPixels]:
    """Find the pixels of every nucleus that is there in a frame, from the deepest up."""
    here = [r for r, p in enumerate(paths) if p.cell.first <= frame <= p.cell.last]
    for row in sorted(here, key=lambda r: paths[r].z_order):
        path = paths[row]
        moment = frame - path.cell.first
        radii = torch.from_numpy(path.cell.radii[moment]).float()[None]
        centre, turn = path.centres[moment], float(path.angles[moment])
        window = _window(centre, math.ceil(float(radii.max())) + 1, size)
        if window is None:
            continue
        y, x = _own_coordinates(window, centre, turn)
        inside = is_inside(radii, y[None], x[None])[0]
        if bool(inside.any()):
            edge = y.hypot(x) - interpolate_radius(radii, y[None], x[None])[0]
            yield CellPixels(row, window, y, x, inside, edge)


def composite_masked(
    paths: Sequence[Trajectory],
    labels: Labels,
    texture: Float[Tensor, "N F P P"],
    mask_level: float,
) -> npt.NDArray[np.float32]:
    """Put the painted nuclei in their places, each where its label is.

    Textures are scaled to the brightness of the nucleus, and blurred in a band of 2 px along the
    outline (authors' code).

    Light above the background, grey values, ``[F, H, W]``.
    """
    light = np.zeros(labels.shape, np.float32)
    for frame in range(len(labels)):
        for spot in iterate_cell_pixels(paths, frame, labels.shape[1:]):
            life = paths[spot.row].cell
            seen = labels[frame][spot.window] == life.identity
            if not seen.any():
                continue
            picture = texture[spot.row, frame].clamp(min=0)
            layers = torch.stack([picture, _blurred(picture)])
            sharp, soft = _sample(layers, spot)
            grey = torch.where(spot.edge.abs() <= 1, soft, sharp)
            grey *= float(life.brightness[frame - life.first]) / mask_level
            light[frame][spot.window][seen] = grey.numpy()[seen]
    return light


def _window(
    centre: npt.NDArray[np.float64], reach: int, size: Sequence[int]
) -> tuple[slice, slice] | None:
    """Return the rows and columns of a picture around a centre; None where there are none."""
    sides = [
        slice(max(0, math.floor(c) - reach), max(0, min(n, math.floor(c) + reach + 2)))
        for c, n in zip(centre, size, strict=True)
    ]
    return None if any(side.start >= side.stop for side in sides) else (sides[0], sides[1])


def _own_coordinates(
    window: tuple[slice, slice], centre: npt.NDArray[np.float64], turn: float
) -> tuple[Tensor, Tensor]:
    """Return the offset of every pixel of a window along a nucleus' major axis, and across it."""
    dy = torch.arange(window[0].start, window[0].stop)[:, None] - float(centre[0])
    dx = torch.arange(window[1].start, window[1].stop)[None] - float(centre[1])
    y = math.cos(turn) * dy + math.sin(turn) * dx
    x = -math.sin(turn) * dy + math.cos(turn) * dx
    return y, x


def _blurred(picture: Float[Tensor, "P P"], width: float = 1.0) -> Float[Tensor, "P P"]:
    blurred: Tensor = torch.from_numpy(ndimage.gaussian_filter(picture.numpy(), width))
    return blurred


def _sample(layers: Float[Tensor, "C P P"], spot: CellPixels) -> Tensor:
    """Read patches at the pixels of a spot; the centroid is the middle of the patch."""
    half = layers.shape[-1] / 2
    grid = torch.stack([spot.x, spot.y], -1)[None] / half
    read = F.grid_sample(layers[None], grid, padding_mode="border", align_corners=False)
    return read[0]


def compute_texture_flow(
    paths: Sequence[Trajectory], labels: Labels, flow: Float[Tensor, "N E 2 P P"]
) -> npt.NDArray[np.float32]:
    """Follow every pixel of a nucleus into the next frame.

    The flow that moved the texture is inverted, and the nucleus' turn and step are added.

    Displacement ``(dy, dx)`` in pixels, ``[F - 1, 2, H, W]``; 0 in the background and where the
    nucleus is not seen in the next frame.
    """
    frames, *size = labels.shape
    moved = np.zeros((frames - 1, 2, *size), np.float32)
    for frame in range(frames - 1):
        for spot in iterate_cell_pixels(paths, frame, labels.shape[1:]):
            path = paths[spot.row]
            seen = labels[frame][spot.window] == path.cell.identity
            if not seen.any() or path.cell.identity not in labels[frame + 1]:
                continue
            along, across = _sample(invert_flow(flow[spot.row, frame, None])[0], spot)
            y, x = spot.y + along, spot.x + across
            moment = frame + 1 - path.cell.first
            turn, centre = float(path.angles[moment]), path.centres[moment]
            rows = torch.arange(spot.window[0].start, spot.window[0].stop)[:, None]
            columns = torch.arange(spot.window[1].start, spot.window[1].stop)[None]
            dy = math.cos(turn) * y - math.sin(turn) * x + float(centre[0]) - rows
            dx = math.sin(turn) * y + math.cos(turn) * x + float(centre[1]) - columns
            place = moved[frame][(slice(None), *spot.window)]
            place[:, seen] = torch.stack([dy, dx]).numpy()[:, seen]
    return moved


@dataclass(frozen=True)
class PatchPlacement:
    """Where pictures of one side go."""

    order: Int[Tensor, " M"]  # which pictures are drawn, one after the other, [M]
    # frame of each among those of all films, one film after the other, [M]
    frames: Int[Tensor, " M"]
    # centroid (y, x), px, cosine and sine of the turn, pixels of the picture to a pixel of the
    # film, [M, 5]
    places: Float[Tensor, "M 5"]
    # first and last but one of the pictures that are drawn together, and how many pixels their
    # windows reach from the centroid
    blocks: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class PatchBatch:
    """Unpainted nuclei of one side, of several films."""

    noise: Tensor  # standard normal numbers, [M, P, P]
    radii: Tensor  # outlines, px, [M, K]
    brightness: Tensor  # mean light inside the outlines, grey values, [M]
    stage: Tensor  # index into STAGES, [M]
    layout: PatchPlacement  # where they go


def batch_patches(
    films: Sequence[tuple[CellTable, Sequence[DenoiserInputs]]], size: tuple[int, int]
) -> list[PatchBatch]:
    """Gather the nuclei of films that are to be painted together."""
    found = []
    for side in sorted({group.noise.shape[-1] for _, groups in films for group in groups}):
        parts = [
            (number, tables, group)
            for number, (tables, groups) in enumerate(films)
            for group in groups
            if group.noise.shape[-1] == side
        ]
        joined = {
            name: torch.cat([getattr(group, name) for _, _, group in parts])
            for name in ("noise", "radii", "brightness", "stage")
        }
        found.append(PatchBatch(**joined, layout=place_patches(parts, side, size)))
    return found


def place_patches(
    parts: Sequence[tuple[int, CellTable, RenderedPatches | DenoiserInputs]],
    side: int,
    size: tuple[int, int],
) -> PatchPlacement:
    """Tell where pictures of one side go.

    Those that reach equally far are drawn together, as many as the memory allows; those that do
    not reach into the film are left out. See :func:`bvdm_data.synth.render.composite`.
    """
    frames, places, reaches = [], [], []
    for number, tables, group in parts:
        rows, moments, zoom = group.rows, group.moments, group.zoom
        centres, axes = tables.centres[rows, moments], tables.axes[rows, moments]
        places.append(torch.cat([centres, axes, zoom[:, None]], 1))
        frames.append(number * tables.there.shape[1] + moments)
        # Light ends at REACH; a spline reaches two pixels farther.
        reach = tables.radii[rows, moments].amax(1) + (SDF_CLIP + 2) / zoom
        reaches.append(torch.minimum(reach, (side / 2 + 2) / zoom))
    frame, place, reach = torch.cat(frames), torch.cat(places), torch.cat(reaches)
    outside = torch.maximum(-place[:, :2], place[:, :2] - torch.tensor(size))
    near = (outside < reach[:, None]).all(1).nonzero()[:, 0]
    steps = (reach[near] / STEP).ceil().long()
    order = near[steps.argsort(stable=True)]
    blocks, start = [], 0
    for step, count in sorted(Counter(steps.tolist()).items()):
        wide, end = step * STEP, start + count
        most = max(1, WINDOW_PIXELS // (2 * wide + 2) ** 2)
        blocks += [(at, min(at + most, end), wide) for at in range(start, end, most)]
        start = end
    return PatchPlacement(order, frame[order], place[order], tuple(blocks))


def composite_batch(
    total: Float[Tensor, " C"], light: Tensor, layout: PatchPlacement, film: Sequence[int]
) -> None:
    """Add painted nuclei to films, where they are; nothing here waits for the device."""
    frames, height, width = film
    end, side = frames * height * width, light.shape[-1]
    for start, stop, wide in layout.blocks:
        place = layout.places[start:stop]
        line = torch.arange(-wide, wide + 2, device=total.device)
        row, column = (place[:, :2].floor().long()[..., None] + line).unbind(1)
        dy, dx = (row - place[:, :1])[:, :, None], (column - place[:, 1:2])[:, None, :]
        cosine, sine, zoom = (value[:, None, None] for value in place[:, 2:].unbind(1))
        shrink = zoom * (2 / side)
        grid = torch.stack([(cosine * dx - sine * dy) * shrink, (cosine * dy + sine * dx) * shrink])
        pictures = light.index_select(0, layout.order[start:stop])[:, None]
        read = F.grid_sample(pictures, grid.movedim(0, -1), "bicubic", "zeros", align_corners=False)
        within = ((row >= 0) & (row < height))[:, :, None]
        within = within & ((column >= 0) & (column < width))[:, None, :]
        frame = layout.frames[start:stop, None, None]
        pixel = (frame * height + row[:, :, None]) * width + column[:, None, :]
        # A cell for each pixel of a window: a single one for all would be added up one by one.
        spare = end + torch.arange(len(line) ** 2, device=total.device).view(len(line), -1)
        cell = torch.where(within, pixel, spare).flatten()
        # Added in a fixed order, on a GPU, too.
        total.index_put_((cell,), read.flatten(), accumulate=True)


def count_padding_pixels(layouts: Sequence[PatchPlacement]) -> int:
    """Return how many cells :func:`add_light` needs beside those of the films."""
    return max(((2 * wide + 2) ** 2 for one in layouts for _, _, wide in one.blocks), default=0)


_Told = TypeVar("_Told", PatchPlacement, PatchBatch)


def move_to_device(told: _Told, device: torch.device) -> _Told:
    """Return a layout or a pile on a device; nothing waits where it lies in pinned memory."""
    return _each(told, lambda tensor: tensor.to(device, non_blocking=True))


def pin_memory(told: _Told) -> _Told:
    """Return a layout or a pile in pinned memory."""
    return _each(told, Tensor.pin_memory)


def _each(told: _Told, change: Callable[[Tensor], Tensor]) -> _Told:
    changed: dict[str, Any] = {}
    for field in fields(told):
        value = getattr(told, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif isinstance(value, PatchPlacement):
            changed[field.name] = _each(value, change)
    return replace(told, **changed)
