"""Rendering: label maps, light and optical flow of all cells of a video at once."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.clip import LEAST_PIXELS
from bvdm_data.pixels import has_loops, run_loop
from bvdm_data.synth.contours import find_vertices, interpolate_radius
from bvdm_data.synth.denoiser import SDF_CLIP
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.networks import invert_flow
from bvdm_data.synth.occupancy import HIDDEN

WINDOW_PIXELS = 2**21
"""Pixels of all windows that are worked on together; bounds the memory."""

WINDOW_STEP = 5
"""The half sides of windows are multiples of this, px."""

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Outlines:
    """Outlines of the cells of a video, indexed by cell and frame; 1 px where one is absent."""

    values: Float[Tensor, "M K"]  # of all cells that are there, px; the first is that of the absent
    entry: Int[Tensor, "N F"]  # which of these is that of a cell in a frame

    def __getitem__(self, place: Any) -> Tensor:
        """Return the outlines of cells in frames."""
        return self.values[self.entry[place]]


@dataclass(frozen=True)
class CellTable:
    """Poses and outlines of all cells of a video; zeros where a cell is absent."""

    there: Bool[Tensor, "N F"]  # which cell is present in which frame
    centres: Float[Tensor, "N F 2"]  # centroid (y, x), px
    axes: Float[Tensor, "N F 2"]  # cosine and sine of the angle of the major axis
    radii: Outlines
    rank: Int[Tensor, "N F"]  # among the cells of a frame by brightness, the darkest is 0


def make_cell_table(cells: Sequence[Trajectory], frames: int) -> CellTable:
    """Write trajectories and outlines into tables."""
    count = len(cells)
    corners = len(cells[0].cell.radii[0]) if cells else 1
    there = np.zeros((count, frames), bool)
    centres, axes = np.zeros((2, count, frames, 2), np.float32)
    entry, radii = np.zeros((count, frames), np.int64), [np.ones((1, corners), np.float32)]
    held = 1
    brightness = np.zeros((count, frames))
    for row, cell in enumerate(cells):
        life = cell.cell
        shown = slice(life.first, min(life.last + 1, frames))
        length = max(0, shown.stop - shown.start)
        there[row, shown] = True
        centres[row, shown] = cell.centres[:length]
        axes[row, shown] = np.stack([np.cos(cell.angles), np.sin(cell.angles)], 1)[:length]
        entry[row, shown] = np.arange(held, held + length)
        held += length
        radii.append(life.radii[:length].astype(np.float32))
        brightness[row, shown] = life.brightness[:length]
    rank = brightness.argsort(0, kind="stable").argsort(0, kind="stable")
    outlines = Outlines(torch.from_numpy(np.concatenate(radii)), torch.from_numpy(entry))
    present, middles, turns, order = map(torch.from_numpy, (there, centres, axes, rank))
    return CellTable(present, middles, turns, outlines, order)


@dataclass(frozen=True)
class RenderedPatches:
    """Rendered cells on patches of one size."""

    # light above the background in grey values, each in its cell's own orientation
    light: Float[Tensor, "M H W"]
    rows: Int[Tensor, " M"]  # which cell each shows; on the CPU
    frames: Int[Tensor, " M"]  # in which frame of the video
    # pixels of the patch to a pixel of the video; below 1 for cells too large for their patch
    zoom: Float[Tensor, " M"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the patches, px."""
        return self.light.shape[-2], self.light.shape[-1]


@dataclass(frozen=True)
class PatchPlacement:
    """Where patches of one size go."""

    order: Int[Tensor, " M"]  # which patches are drawn, one after the other
    rows: Int[Tensor, " M"]  # cell of each, in the table of its video
    frames: Int[Tensor, " M"]  # frame of each, among those of all videos in a row
    # centroid (y, x), cosine and sine of the angle, pixels of the patch to a pixel of the video
    poses: Float[Tensor, "M 5"]
    # first and last but one of the patches that are drawn together, and half side of their windows
    blocks: tuple[tuple[int, int, int], ...]


def place_patches(
    parts: Sequence[tuple[int, CellTable, Any]],
    size: tuple[int, int],
    halo: float = SDF_CLIP,
) -> PatchPlacement:
    """Place patches of one size, rendered or to be rendered, each part with its video's number.

    Outlines are lit up to a distance of ``halo`` px.
    """
    rows, frames, poses, reaches = [], [], [], []
    for video, table, group in parts:
        row, frame, zoom = group.rows, group.frames, group.zoom
        centres, axes = table.centres[row, frame], table.axes[row, frame]
        # A spline reaches two pixels farther than the light.
        reach = table.radii[row, frame].amax(1) + (halo + 2) / zoom
        reach = torch.minimum(reach, (max(group.size) / 2 + 2) / zoom)
        reaches.append(reach.where(table.there[row, frame], -torch.inf))
        poses.append(torch.cat([centres, axes, zoom[:, None]], 1))
        rows.append(row)
        frames.append(video * table.there.shape[1] + frame)
    return _place(torch.cat(rows), torch.cat(frames), torch.cat(poses), torch.cat(reaches), size)


def _place(
    rows: Tensor, frames: Tensor, poses: Tensor, reach: Tensor, size: tuple[int, int]
) -> PatchPlacement:
    """Put windows of equal size into blocks that fit into the memory; skip those out of view."""
    outside = torch.maximum(-poses[:, :2], poses[:, :2] - torch.tensor(size))
    near = (outside < reach[:, None]).all(1).nonzero()[:, 0]
    steps = (reach[near] / WINDOW_STEP).ceil().long()
    order = near[steps.argsort(stable=True)]
    blocks, start = [], 0
    for step, count in sorted(Counter(steps.tolist()).items()):
        half, end = step * WINDOW_STEP, start + count
        most = max(1, WINDOW_PIXELS // (2 * half + 2) ** 2)
        blocks += [(at, min(at + most, end), half) for at in range(start, end, most)]
        start = end
    return PatchPlacement(order, rows[order], frames[order], poses[order], tuple(blocks))


def _count_cells(placements: Sequence[PatchPlacement], shape: tuple[int, int, int]) -> int:
    """Return how many numbers a canvas needs: its pixels, and a window for what lies outside."""
    halves = (half for placement in placements for _, _, half in placement.blocks)
    return shape[0] * shape[1] * shape[2] + max(((2 * h + 2) ** 2 for h in halves), default=1)


def _iterate_windows(
    placement: PatchPlacement, shape: tuple[int, int, int]
) -> Iterator[tuple[slice, Int[Tensor, "S W W"], Tensor, Tensor]]:
    """Yield windows block by block: which, their pixels, and offsets along and across the axis.

    Pixels are indices into the flattened canvas. Those outside the video lead past its end, each
    to a place of its own: a GPU would add up one after the other what goes to the same place.
    """
    frames, height, width = shape
    end, device = frames * height * width, placement.poses.device
    for start, stop, half in placement.blocks:
        part = slice(start, stop)
        pose = placement.poses[part]
        line = torch.arange(-half, half + 2, device=device)
        row, column = (pose[:, :2].floor().long()[..., None] + line).unbind(1)
        dy, dx = (row - pose[:, :1])[:, :, None], (column - pose[:, 1:2])[:, None, :]
        cosine, sine = pose[:, 2, None, None], pose[:, 3, None, None]
        spare = end + torch.arange(len(line) ** 2, device=device).view(len(line), -1)
        first = (placement.frames[part, None] * height + row) * width
        first = first.where((row >= 0) & (row < height), 2 * end + 2 * len(line) ** 2)
        column = column.where((column >= 0) & (column < width), 2 * end + 2 * len(line) ** 2)
        pixel = torch.minimum(first[:, :, None] + column[:, None, :], spare)
        yield part, pixel, cosine * dy + sine * dx, cosine * dx - sine * dy


def draw_labels(
    table: CellTable, size: tuple[int, int]
) -> tuple[Int[Tensor, "F H W"], Bool[Tensor, "N F"]]:
    """Return the row, from 1, of the cell that is seen at each pixel; and which are seen.

    Where cells overlap the brightest is seen. One of which the others leave too little is not, nor
    are scraps off the rest of a cell.
    """
    seen, outlined, area = _draw_outlines(table, table.there, size)
    hidden = (area < outlined) & (area < torch.clamp(HIDDEN * outlined, min=LEAST_PIXELS))
    if hidden.any():
        del seen  # long videos are large
        seen, outlined, area = _draw_outlines(table, table.there & ~hidden, size)
    rows, frames = (area < outlined).nonzero(as_tuple=True)
    centre, reach = table.centres[rows, frames], table.radii[rows, frames].amax(1)[:, None] + 2
    low, high = (centre - reach).int().clamp(min=0).tolist(), (centre + reach).ceil().int().tolist()
    for row, frame, (top, left), (bottom, right) in zip(
        rows.tolist(), frames.tolist(), low, high, strict=True
    ):
        _remove_scraps(seen[frame, top:bottom, left:right].numpy(), row + 1)
    return seen, area > 0


def _remove_scraps(near: npt.NDArray[np.int32], cell: int) -> None:
    """Give small parts of a cell that others cut off to those; changes its surroundings."""
    parts, count = ndimage.label(near == cell, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    if count < 2 or sizes.max() < LEAST_PIXELS:  # the latter are enough together
        return
    for part in 1 + np.flatnonzero(sizes < LEAST_PIXELS):
        scrap = parts == part
        around = near[ndimage.binary_dilation(scrap, np.ones((3, 3))) & ~scrap]
        near[scrap] = np.bincount(around[around > 0], minlength=1).argmax()


def _draw_outlines(
    table: CellTable, there: Bool[Tensor, "N F"], size: tuple[int, int]
) -> tuple[Int[Tensor, "F H W"], Int[Tensor, "N F"], Int[Tensor, "N F"]]:
    """Draw these cells, the brightest on top; count the pixels under each, and those it shows."""
    count, frames = there.shape
    shape = (frames, *size)
    if has_loops():
        drawn = torch.zeros(shape, dtype=torch.int32)
        outlined, area = torch.zeros(2, count, frames, dtype=torch.long)
        found = (drawn, outlined, area)
        run_loop("draw_outlines", *size, *_list_parts(table), there, table.rank, *found)
        return drawn, outlined, area
    at, rows = there.T.nonzero(as_tuple=True)
    poses = torch.cat([table.centres[rows, at], table.axes[rows, at]], 1)
    placement = _place(rows, at, poses, table.radii[rows, at].amax(1) + 1, size)
    top = torch.zeros(_count_cells([placement], shape), dtype=torch.int32)
    in_view = torch.zeros(count, frames, dtype=torch.long)
    for part, pixel, y, x in _iterate_windows(placement, shape):
        rows, at = placement.rows[part], placement.frames[part]
        inside = x.hypot(y) <= interpolate_radius(table.radii[rows, at], y, x)
        rank = (table.rank[rows, at] + 1).int()[:, None, None] * inside
        top.scatter_reduce_(0, pixel.flatten(), rank.flatten(), "amax")
        in_view[rows, at] = (inside & (pixel < frames * size[0] * size[1])).sum((1, 2))
    row_of = torch.zeros(frames, count + 1, dtype=torch.int32)
    row_of.scatter_(1, table.rank.T + 1, torch.arange(1, count + 1).int().expand(frames, -1))
    seen = top[: shape[0] * shape[1] * shape[2]].view(frames, -1)
    for row, ranks in zip(row_of, seen, strict=True):
        ranks[:] = row.index_select(0, ranks)
    area = [frame.bincount(minlength=count + 1)[1:] for frame in seen]
    return seen.view(shape), in_view, torch.stack(area, 1)


def _list_parts(table: CellTable) -> tuple[Any, ...]:
    """Return sizes and parts of a table as compiled loops take them."""
    values, entry = table.radii.values, table.radii.entry
    return (*entry.shape, values.shape[1], table.centres, table.axes, values, entry)


def composite(
    groups: Sequence[tuple[Tensor, PatchPlacement]],
    shape: tuple[int, int, int],
    *,
    device: torch.device | str = "cpu",
    mask: tuple[CellTable, Int[Tensor, "F H W"]] | None = None,
) -> Float[Tensor, "F H W"]:
    """Put rendered patches in their places; where they meet, their light adds up.

    With ``mask``, the table and the labels of a video, a cell is lit only where it is seen.
    Nothing here waits for the device.
    """
    if has_loops() and mask is None and torch.device(device).type == "cpu":
        total = torch.zeros(shape)
        for light, placement in groups:
            light = light.cpu().contiguous()
            for start, stop, half in placement.blocks:
                part = slice(start, stop)
                places = (placement.order[part], placement.frames[part], placement.poses[part])
                sizes = (*shape[1:], stop - start, *light.shape[1:], half)
                run_loop("add_patches", *sizes, *places, light, total)
        return total
    pixels = shape[0] * shape[1] * shape[2]
    total = torch.zeros(_count_cells([place for _, place in groups], shape), device=device)
    for light, placement in groups:
        for part, pixel, y, x in _iterate_windows(placement, shape):
            zoom, (height, width) = placement.poses[part, 4, None, None], light.shape[1:]
            grid = torch.stack([x * zoom * (2 / width), y * zoom * (2 / height)], -1)
            chosen = placement.order[part].to(light.device)
            patch = light.index_select(0, chosen)[:, None].to(device)
            if mask is None:
                read = F.grid_sample(patch, grid, "bicubic", "zeros", align_corners=False)
            else:
                read = _read_masked(patch, grid, placement, part, pixel, y, x, mask)
            # Added in a fixed order, on a GPU, too.
            total.index_put_((pixel.flatten(),), read.flatten(), accumulate=True)
    return total[:pixels].view(shape)


def _read_masked(
    patch: Float[Tensor, "S 1 P P"],
    grid: Float[Tensor, "S W W 2"],
    placement: PatchPlacement,
    part: slice,
    pixel: Int[Tensor, "S W W"],
    y: Tensor,
    x: Tensor,
    mask: tuple[CellTable, Int[Tensor, "F H W"]],
) -> Float[Tensor, "S W W"]:
    """Read patches where their cells are seen, blurred in a band of 2 px along the outline.

    The band is that of the authors' code.
    """
    table, seen = mask
    rows, frames = placement.rows[part], placement.frames[part]
    soft = torch.from_numpy(ndimage.gaussian_filter(patch.numpy(), (0, 0, 1.0, 1.0)))
    layers = torch.cat([patch, soft], 1)
    read = F.grid_sample(layers, grid, "bilinear", "border", align_corners=False)
    edge = y.hypot(x) - interpolate_radius(table.radii[rows, frames], y, x)
    value = torch.where(edge.abs() <= 1, read[:, 1], read[:, 0])
    flat = seen.flatten()
    is_own = flat[pixel.clamp(max=len(flat) - 1)] == rows[:, None, None] + 1
    return value * (is_own & (pixel < len(flat)))


Deformation = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes frame, cells, and offsets (y, x) along and across their axes; returns the offsets in the
next frame."""


def compute_flow(
    table: CellTable, seen: Int[Tensor, "F H W"], deform: Deformation | None = None
) -> Float[Tensor, "E 2 H W"]:
    """Return the displacement (dy, dx) of every pixel of a cell into the next frame, px.

    It is 0 in the background, and where the cell is not seen in the next frame. Without ``deform``
    a point keeps its share of the way from the centroid to the outline.
    """
    frames, height, width = seen.shape
    flow = torch.zeros(frames - 1, 2, height * width)
    again = torch.zeros(frames, len(table.rank) + 1, dtype=torch.bool)
    if has_loops() and deform is None:
        run_loop("write_flow", height, width, *_list_parts(table), seen, again, flow)
        return flow.view(-1, 2, height, width)
    deform = deform or _stretch_radially(table)
    again.scatter_(1, seen.flatten(1).long(), True)
    for frame in range(frames - 1):
        flat = seen[frame].flatten()
        pixel = (flat * again[frame + 1].index_select(0, flat)).nonzero()[:, 0]
        cell = flat[pixel] - 1
        row, column = pixel // width, pixel % width
        (down, right), (cosine, sine) = _get_poses(table, frame, cell)
        dy, dx = row - down, column - right
        y, x = deform(frame, cell, cosine * dy + sine * dx, cosine * dx - sine * dy)
        (down, right), (cosine, sine) = _get_poses(table, frame + 1, cell)
        flow[frame, 0, pixel] = cosine * y - sine * x + (down - row)
        flow[frame, 1, pixel] = sine * y + cosine * x + (right - column)
    return flow.view(-1, 2, height, width)


def _get_poses(table: CellTable, frame: int, cell: Tensor) -> list[tuple[Tensor, ...]]:
    return [part[:, frame].index_select(0, cell).unbind(1) for part in (table.centres, table.axes)]


def _stretch_radially(table: CellTable) -> Deformation:
    values, entry = table.radii.values, table.radii.entry
    corners = values.shape[1]
    outlines = torch.cat([values, values[:, :1]], 1).flatten()

    def deform(frame: int, cell: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        corner, share = find_vertices(y, x, corners)
        now, then = (
            corner + (corners + 1) * entry[:, at].index_select(0, cell) for at in (frame, frame + 1)
        )
        before = outlines.take(now).lerp(outlines.take(now + 1), share)
        stretch = outlines.take(then).lerp(outlines.take(then + 1), share) / before
        return stretch * y, stretch * x

    return deform


def follow_textures(rows: Int[Tensor, " n"], flow: Float[Tensor, "n E 2 P P"]) -> Deformation:
    """Return the deformation of the flow that moved the textures of the cells ``rows``."""
    side = flow.shape[-1]
    index_of = torch.zeros(int(rows.max()) + 1 if len(rows) else 1, dtype=torch.long)
    index_of[rows] = torch.arange(len(rows))

    def deform(frame: int, cell: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        stack = invert_flow(flow[:, frame]).movedim(1, 0).flatten(1)
        place = (torch.stack([y, x]) + (side - 1) / 2).clamp(0, side - 1)
        low = place.floor().clamp(max=side - 2)
        down, right = place - low
        corner = (index_of[cell] * side + low[0].long()) * side + low[1].long()
        top = stack[:, corner].lerp(stack[:, corner + 1], right)
        bottom = stack[:, corner + side].lerp(stack[:, corner + side + 1], right)
        along, across = top.lerp(bottom, down)
        return y + along, x + across

    return deform


Record = TypeVar("Record")


def map_tensors(record: Record, change: Callable[[Tensor], Tensor]) -> Record:
    """Return a copy of a dataclass, dict, list or tuple with all its tensors changed."""
    if isinstance(record, Tensor):
        return change(record)  # type: ignore[return-value]
    if isinstance(record, list | tuple):
        return type(record)(map_tensors(one, change) for one in record)
    if isinstance(record, dict):
        return {key: map_tensors(one, change) for key, one in record.items()}  # type: ignore[return-value]
    if is_dataclass(record) and not isinstance(record, type):
        changed = {f.name: map_tensors(getattr(record, f.name), change) for f in fields(record)}
        return replace(record, **changed)
    return record


def join_patches(groups: Sequence[Record]) -> Record:
    """Join patches of one size, rendered or to be rendered."""
    joined = {
        field.name: torch.cat([getattr(group, field.name) for group in groups])
        for field in fields(groups[0])  # type: ignore[arg-type]
        if isinstance(getattr(groups[0], field.name), Tensor)
    }
    return replace(groups[0], **joined)  # type: ignore[type-var]


def join_by_size(
    parts: Sequence[tuple[int, CellTable, Any]], size: tuple[int, int]
) -> list[tuple[Any, PatchPlacement]]:
    """Join the patches of several videos size by size, and place them."""
    joined = []
    for one in sorted({group.size for _, _, group in parts}):
        alike = [part for part in parts if part[2].size == one]
        patches = join_patches([group for _, _, group in alike])
        joined.append((patches, place_patches(alike, size)))
    return joined
