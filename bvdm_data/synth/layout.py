"""Layout: where the pictures of several films go, told so that a device adds all at once."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.synth.fast import Pictures
from bvdm_data.synth.painter import REACH
from bvdm_data.synth.raster import STEP, WINDOW_PIXELS, Tables
from bvdm_data.synth.unpainted import Unpainted


@dataclass(frozen=True)
class Layout:
    """Where pictures of one side go.

    Attributes:
        order: Which pictures are drawn, one after the other, ``[M]``.
        frames: Frame of each among those of all films, one film after the other, ``[M]``.
        places: Centroid ``(y, x)``, px, cosine and sine of the turn, pixels of the picture to a
            pixel of the film, ``[M, 5]``.
        blocks: First and last but one of the pictures that are drawn together, and how many pixels
            their windows reach from the centroid.
    """

    order: Int[Tensor, " M"]
    frames: Int[Tensor, " M"]
    places: Float[Tensor, "M 5"]
    blocks: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Pile:
    """Unpainted nuclei of one side, of several films.

    Attributes:
        noise: Standard normal numbers, ``[M, P, P]``.
        radii: Outlines, px, ``[M, K]``.
        brightness: Mean light inside the outlines, grey values, ``[M]``.
        stage: Index into ``STAGES``, ``[M]``.
        layout: Where they go.
    """

    noise: Tensor
    radii: Tensor
    brightness: Tensor
    stage: Tensor
    layout: Layout


def pile_up(
    films: Sequence[tuple[Tables, Sequence[Unpainted]]], size: tuple[int, int]
) -> list[Pile]:
    """Gather the nuclei of films that are to be painted together.

    Args:
        films: Where the nuclei of each are, and what is to be painted.
        size: Height and width of a picture of the films.

    Returns:
        One pile for each side of the pictures, on the CPU.
    """
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
        found.append(Pile(**joined, layout=lay_out(parts, side, size)))
    return found


def lay_out(
    parts: Sequence[tuple[int, Tables, Pictures | Unpainted]], side: int, size: tuple[int, int]
) -> Layout:
    """Tell where pictures of one side go.

    Those that reach equally far are drawn together, as many as the memory allows; those that do
    not reach into the film are left out. See :func:`bvdm_data.synth.raster.add_up`.

    Args:
        parts: Number of the film, its nuclei, and pictures whose rows are theirs; the pictures
            are numbered through all parts.
        side: Side of the pictures, px.
        size: Height and width of a picture of the films.
    """
    frames, places, reaches = [], [], []
    for number, tables, group in parts:
        rows, moments, zoom = group.rows, group.moments, group.zoom
        centres, axes = tables.centres[rows, moments], tables.axes[rows, moments]
        places.append(torch.cat([centres, axes, zoom[:, None]], 1))
        frames.append(number * tables.there.shape[1] + moments)
        # Light ends at REACH; a spline reaches two pixels farther.
        reach = tables.radii[rows, moments].amax(1) + (REACH + 2) / zoom
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
    return Layout(order, frame[order], place[order], tuple(blocks))


def add_light(
    total: Float[Tensor, " C"], light: Tensor, layout: Layout, film: Sequence[int]
) -> None:
    """Add painted nuclei to films, where they are; nothing here waits for the device.

    Args:
        total: Light of all films, flattened, and at least :func:`spare_cells` cells more, for the
            pixels of windows that lie outside; it is changed.
        light: The pictures, ``[M, P, P]``.
        layout: Where they go, on the same device.
        film: Frames of all films, height and width of a picture.
    """
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


def spare_cells(layouts: Sequence[Layout]) -> int:
    """Return how many cells :func:`add_light` needs beside those of the films."""
    return max(((2 * wide + 2) ** 2 for one in layouts for _, _, wide in one.blocks), default=0)


_Told = TypeVar("_Told", Layout, Pile)


def moved(told: _Told, device: torch.device) -> _Told:
    """Return a layout or a pile on a device; nothing waits where it lies in pinned memory."""
    return _each(told, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(told: _Told) -> _Told:
    """Return a layout or a pile in pinned memory."""
    return _each(told, Tensor.pin_memory)


def _each(told: _Told, change: Callable[[Tensor], Tensor]) -> _Told:
    changed: dict[str, Any] = {}
    for field in fields(told):
        value = getattr(told, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = change(value)
        elif isinstance(value, Layout):
            changed[field.name] = _each(value, change)
    return replace(told, **changed)
