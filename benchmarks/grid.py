"""Sheets of grey images, for the figures of docs/."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

from bvdm_data.viz.pictures import (
    Array,
    Range,
    Row,
    check_suffix,
    convert_to_array,
    render_frame,
    save_images,
    tile_images,
)


def write_image_grid(
    images: Tensor | Array,
    path: str | Path,
    *,
    columns: int,
    titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    grey_range: Range | None = None,
    magnify: int = 1,
    masks: Array | None = None,
) -> None:
    """Write a sheet of grey images ``[N, H, W]``, row by row, with outlines where masks are given.

    ``masks``: Ids, in the shape of images.
    """
    target = check_suffix(path, ".png")
    stack = convert_to_array(images)
    starts = range(0, len(stack), columns)
    if grey_range is None:
        low, high = float(stack.min()), float(stack.max())
        grey_range = low, high if high > low else low + 1
    labels = [None] * len(stack) if masks is None else masks
    panels = [
        render_frame(image, mask, grey_range=grey_range, scale=magnify, ids=False)
        for image, mask in zip(stack, labels, strict=True)
    ]
    rows = [
        Row(left, panels[start : start + columns], titles[start : start + columns])
        for left, start in zip_longest(row_titles, starts, fillvalue="")
    ]
    save_images([tile_images(rows)], target)
