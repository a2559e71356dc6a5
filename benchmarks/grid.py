"""Sheets of grey images, for the figures of docs/."""

from collections.abc import Sequence
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
    if stack.ndim != 3 or len(stack) == 0:
        raise ValueError(f"images must be [N, H, W] with N at least 1, got {stack.shape}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if magnify < 1:
        raise ValueError(f"magnify must be at least 1 screen pixel a pixel, got {magnify}")
    starts = range(0, len(stack), columns)
    for name, texts, most in (
        ("titles", titles, len(stack)),
        ("row_titles", row_titles, len(starts)),
    ):
        if len(texts) > most:
            raise ValueError(f"{name} must be at most {most} for these images, got {len(texts)}")
    if grey_range is None:
        low, high = float(stack.min()), float(stack.max())
        grey_range = low, high if high > low else low + 1
    labels = [None] * len(stack) if masks is None else masks
    panels = [
        render_frame(image, mask, grey_range=grey_range, scale=magnify, ids=False)
        for image, mask in zip(stack, labels, strict=True)
    ]
    lefts = [*row_titles, *[""] * (len(starts) - len(row_titles))]
    rows = [
        Row(left, panels[start : start + columns], titles[start : start + columns])
        for left, start in zip(lefts, starts, strict=True)
    ]
    save_images([tile_images(rows)], target)
