"""Drawing: one frame with the outlines and ids of its nuclei, and sheets of such images."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bvdm_data.clip import measure_boxes

Array = npt.NDArray[np.generic]

# The looks; sizes are in screen pixels.
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
TITLE_SIZE, CAPTION_SIZE, ID_SIZE = 16, 12, 12
GAP, MARGIN = 6, 10


def _bright_colours(count: int) -> npt.NDArray[np.uint8]:
    # Steps of the golden ratio keep the hues of neighbouring ids far apart.
    hues = [(number * 0.618034) % 1 for number in range(count)]
    # Pure blue is hard to see on black, so it gets more white.
    strengths = [0.45 if 0.55 < hue < 0.8 else 0.8 for hue in hues]
    rgb = [colorsys.hsv_to_rgb(hue, s, 1) for hue, s in zip(hues, strengths, strict=True)]
    return np.round(np.array(rgb) * 255).astype(np.uint8)


COLOURS = _bright_colours(60)
"""Colours of the ids, ``[60, 3]`` uint8: id i has colour ``i % 60`` in all frames."""


@dataclass(frozen=True)
class Row:
    """One row of a sheet.

    Attributes:
        title: Printed left of the row.
        images: The images, left to right.
        captions: Printed above the images, in their order; may be fewer.
    """

    title: str
    images: Sequence[Image.Image]
    captions: Sequence[str] = ()


def render_frame(
    video_frame: Tensor | Array,
    mask: Tensor | Array | None = None,
    *,
    grey_range: tuple[float, float],
    gamma: float = 1.0,
    scale: int = 1,
    ids: bool = True,
) -> Image.Image:
    """Draw one frame, with the outlines and ids of its nuclei where a mask is given.

    Args:
        video_frame: Grey values ``[H, W]`` or ``[1, H, W]``.
        mask: Instance ids ``[H, W]`` or ``[1, H, W]``; 0 is background.
        grey_range: The grey values that become black and white.
        gamma: Exponent of the displayed grey; below 1, dim nuclei are seen.
        scale: Screen pixels a pixel, by nearest neighbour; outlines stay one screen pixel thin.
        ids: Whether the ids are printed at the centres of the nuclei.

    Returns:
        An RGB image, ``scale * W`` wide and ``scale * H`` high.

    Raises:
        ValueError: If the frame is not one grey image, the mask has another shape, grey_range is
            not a finite low and high value, or gamma or scale is not above 0.
    """
    frame = _plane("video_frame", video_frame)
    grey = _magnified(_stretched(frame, grey_range, gamma), scale)
    image = Image.fromarray(grey).convert("RGB")
    if mask is None:
        return image
    labels = _plane("mask", mask).astype(np.int64)
    if labels.shape != frame.shape:
        raise ValueError(
            f"mask must have the shape of video_frame, {frame.shape}, got {labels.shape}"
        )
    large = _magnified(labels, scale)
    outlined = _outlined(grey, large)
    if ids:
        _print_ids(outlined, large)
    return outlined


def sheet(rows: Sequence[Row], note: str = "") -> Image.Image:
    """Arrange images in rows and columns on white paper.

    Args:
        rows: The rows, top down.
        note: Printed small below them.

    Returns:
        An RGB image.
    """
    cells = [image.width for row in rows for image in row.images]
    cells += [_width(text, CAPTION_SIZE) for row in rows for text in row.captions]
    cell = max(cells)
    left = max(_width(row.title, TITLE_SIZE) for row in rows)
    left += MARGIN + (GAP if left else 0)
    columns = max(len(row.images) for row in rows)
    width = max(left + columns * (cell + GAP) - GAP, _width(note, CAPTION_SIZE)) + MARGIN
    line = CAPTION_SIZE + GAP
    heights = [_height(row) for row in rows]
    height = 2 * MARGIN + sum(heights) + GAP * (len(rows) - 1) + (line if note else 0)
    paper = Image.new("RGB", (width, height), PAPER)
    top = MARGIN
    for row, tall in zip(rows, heights, strict=True):
        _place(paper, row, left, top, cell)
        top += tall + GAP
    _write(paper, (MARGIN, top + CAPTION_SIZE // 2), note, CAPTION_SIZE, "lm", FAINT)
    return paper


def as_array(values: Tensor | Array) -> Array:
    """Return a tensor of any device, or an array, as an array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _plane(name: str, values: Tensor | Array) -> Array:
    plane = as_array(values)
    if plane.ndim == 3 and plane.shape[0] == 1:
        plane = plane[0]
    if plane.ndim != 2 or plane.size == 0:
        raise ValueError(f"{name} must be one grey image, [H, W] or [1, H, W], got {plane.shape}")
    return plane


def _stretched(
    frame: Array, grey_range: tuple[float, float], gamma: float
) -> npt.NDArray[np.uint8]:
    low, high = grey_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"grey_range must be a finite low and a higher value, got {grey_range}")
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    share = np.clip((np.nan_to_num(frame.astype(np.float64)) - low) / (high - low), 0, 1)
    return np.round(share**gamma * 255).astype(np.uint8)


def _magnified(plane: npt.NDArray[np.integer], scale: int) -> npt.NDArray[np.integer]:
    if scale < 1:
        raise ValueError(f"scale must be at least 1 screen pixel a pixel, got {scale}")
    return plane.repeat(scale, axis=0).repeat(scale, axis=1)


def _outlined(grey: npt.NDArray[np.integer], labels: npt.NDArray[np.integer]) -> Image.Image:
    # The border of the image is repeated: a nucleus that it cuts has no outline there.
    around = np.pad(labels, 1, mode="edge")
    beside = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    edge = np.any([other != labels for other in beside], axis=0) & (labels > 0)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    rgb[edge] = COLOURS[labels[edge] % len(COLOURS)]
    return Image.fromarray(rgb)


def _print_ids(image: Image.Image, labels: npt.NDArray[np.integer]) -> None:
    names, dense = np.unique(labels, return_inverse=True)
    if names[0] != 0:
        names, dense = np.r_[0, names], dense + 1
    _, centres = measure_boxes(dense.reshape(1, *labels.shape), len(names) - 1)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(ID_SIZE)
    for name, (y, x) in zip(names[1:], centres[:, 0], strict=True):
        text = str(name)
        across, down = draw.textlength(text, font) / 2 + 3, ID_SIZE / 2
        place = (_inside(float(x), across, image.width), _inside(float(y), down, image.height))
        # Half-way to white: the outline shows the colour, the number is to be read.
        colour = tuple((int(part) + 255) // 2 for part in COLOURS[name % len(COLOURS)])
        draw.text(place, text, colour, font, "mm", stroke_width=1, stroke_fill=(0, 0, 0))


def _inside(centre: float, half: float, length: int) -> float:
    return min(max(centre, half), max(length - half, half))


def _width(text: str, size: int) -> int:
    return round(ImageFont.load_default(size).getlength(text))


def _height(row: Row) -> int:
    captions = CAPTION_SIZE + GAP if any(row.captions) else 0
    return captions + max(image.height for image in row.images)


def _place(paper: Image.Image, row: Row, left: int, top: int, cell: int) -> None:
    captions = _height(row) - max(image.height for image in row.images)
    middle = top + captions + (_height(row) - captions) // 2
    _write(paper, (MARGIN, middle), row.title, TITLE_SIZE, "lm", INK)
    for column, image in enumerate(row.images):
        centre = left + column * (cell + GAP) + cell // 2
        paper.paste(image, (centre - image.width // 2, top + captions))
        caption = row.captions[column] if column < len(row.captions) else ""
        _write(paper, (centre, top + CAPTION_SIZE // 2), caption, CAPTION_SIZE, "mm", INK)


def _write(
    paper: Image.Image,
    place: tuple[int, int],
    text: str,
    size: int,
    anchor: str,
    colour: tuple[int, int, int],
) -> None:
    ImageDraw.Draw(paper).text(place, text, colour, ImageFont.load_default(size), anchor)
