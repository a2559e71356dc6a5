"""Pictures: clips as a person looks at them, as sheets of frames and as animations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from bvdm_data.clip import Clip, measure_boxes
from bvdm_data.evaluation.drawing import COLOURS, Row, as_array, render_frame, sheet
from bvdm_data.evaluation.mp4 import write_mp4
from bvdm_data.files import whole_file

__all__ = ["GAMMA", "Range", "animation", "common_range", "contact_sheet", "grid", "render_frame"]

GAMMA = 0.6
"""Exponent of the displayed grey where nothing else is said: below 1, dim nuclei are seen."""

PERCENTILES = (0.5, 99.8)
"""The grey values of a clip that become black and white where nothing else is said."""

# Our choices: how many frames a sheet shows, and how large, in screen pixels, small clips become.
SHEET_FRAMES, SHEET_SIDE, ANIMATION_SIDE, MOST_MAGNIFIED = 8, 256, 512, 4

Range = tuple[float, float]
Line = tuple[float, float, float, float]


def contact_sheet(
    clips: Mapping[str, Clip],
    path: str | Path,
    *,
    frames: Sequence[int] | None = None,
    grey_range: Range | None = None,
    gamma: float = GAMMA,
) -> None:
    """Write frames of several clips one below the other, all at the same grey scale.

    Every clip has a row of plain frames and, if it has masks, a row with outlines and ids. Clips
    of up to 128 pixels are magnified by nearest neighbour.

    Args:
        clips: The clips by the names that are printed as row titles.
        path: Where to write; ends in ``.png``.
        frames: Which frames; None: up to 8, evenly spaced from the first to the last.
        grey_range: The grey values that become black and white; None: the 0.5 and 99.8
            percentile of all clips together.
        gamma: Exponent of the displayed grey; below 1, dim nuclei are seen.

    Raises:
        ValueError: If there is no clip or no frame, or path, grey_range or gamma is wrong.
        IndexError: If a clip has no such frame.
    """
    target = _target(path, ".png")
    if not clips:
        raise ValueError("clips must hold at least one clip, got none")
    if grey_range is None:
        grey_range = common_range([clip["video"] for clip in clips.values()])
    rows = []
    for name, clip in clips.items():
        chosen = _chosen(name, len(clip["video"]), frames)
        captions = [f"frame {frame}" for frame in chosen]
        rows.append(Row(name, _plain(clip, chosen, grey_range, gamma, SHEET_SIDE), captions))
        if "masks" in clip:
            rows.append(Row("", _marked(clip, chosen, grey_range, gamma, SHEET_SIDE)))
    low, high = grey_range
    note = f"black: grey {low:.4g}, white: grey {high:.4g}, gamma {gamma:g}"
    _save([sheet(rows, note)], target)


def animation(
    clip: Clip,
    path: str | Path,
    *,
    frames_per_second: float = 4,
    grey_range: Range | None = None,
    gamma: float = GAMMA,
) -> None:
    """Write a clip as an endless GIF or as MP4: the plain video, beside it the outlines and ids.

    In the frame in which a track with a parent begins, a thin line leads to it from the place
    where the parent was last seen. Clips of up to 256 pixels are magnified by nearest neighbour.

    Args:
        clip: The clip; without ``masks`` only the plain video is shown, without ``tracks`` there
            are no lines.
        path: Where to write; ends in ``.gif``, or in ``.mp4`` (needs the extra ``preview``).
        frames_per_second: Speed, up to 50.
        grey_range: The grey values that become black and white; None: the 0.5 and 99.8
            percentile of the clip.
        gamma: Exponent of the displayed grey; below 1, dim nuclei are seen.

    Raises:
        ModuleNotFoundError: If an MP4 is asked for and the extra ``preview`` is not installed.
        ValueError: If path, frames_per_second, grey_range or gamma is wrong.
    """
    target = _target(path, ".gif", ".mp4")
    if not 0 < frames_per_second <= 50:
        raise ValueError(f"frames_per_second must be above 0, at most 50, got {frames_per_second}")
    if grey_range is None:
        grey_range = common_range([clip["video"]])
    chosen = range(len(clip["video"]))
    panels = [_plain(clip, chosen, grey_range, gamma, ANIMATION_SIDE)]
    if "masks" in clip:
        panels.append(_marked(clip, chosen, grey_range, gamma, ANIMATION_SIDE))
        _draw_lines(panels[1], clip)
    captions = [f"frame {frame} (0 to {chosen[-1]})" for frame in chosen]
    pictures = [
        sheet([Row("", images, (caption, "outlines and ids")[: len(images)])])
        for caption, *images in zip(captions, *panels, strict=True)
    ]
    if target.suffix.lower() == ".mp4":
        write_mp4(pictures, target, frames_per_second)
    else:
        _save(pictures, target, round(1000 / frames_per_second))


def common_range(videos: Sequence[Tensor]) -> Range:
    """Return the grey values that become black and white where nothing else is said.

    Args:
        videos: Grey values of any shape.

    Returns:
        The percentiles ``PERCENTILES`` of all of them together.
    """
    values = np.concatenate([as_array(video).ravel() for video in videos])
    low, high = np.percentile(values, PERCENTILES)
    return _widened(float(low), float(high))


def grid(
    images: Tensor | npt.NDArray[np.generic],
    path: str | Path,
    *,
    columns: int,
    titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    grey_range: Range | None = None,
    magnify: int = 1,
) -> None:
    """Write a sheet of grey images, row by row.

    Args:
        images: ``[N, H, W]``, all shown at the same grey scale.
        path: Where to write; ends in ``.png``.
        columns: Images a row.
        titles: Printed above the images, in their order: one an image, or only one a column, for
            the first row.
        row_titles: Printed left of the rows, top down.
        grey_range: The values that become black and white; None: the smallest and the largest.
        magnify: Screen pixels a pixel, by nearest neighbour.

    Raises:
        ValueError: If images is not ``[N, H, W]`` with N at least 1, there are too many titles,
            or path, columns, grey_range or magnify is wrong.
    """
    target = _target(path, ".png")
    stack = as_array(images)
    if stack.ndim != 3 or len(stack) == 0:
        raise ValueError(f"images must be [N, H, W] with N at least 1, got {stack.shape}")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if magnify < 1:
        raise ValueError(f"magnify must be at least 1 screen pixel a pixel, got {magnify}")
    starts = range(0, len(stack), columns)
    _check_count("titles", titles, len(stack))
    _check_count("row_titles", row_titles, len(starts))
    if grey_range is None:
        grey_range = _widened(float(stack.min()), float(stack.max()))
    pictures = [render_frame(image, grey_range=grey_range, scale=magnify) for image in stack]
    lefts = [*row_titles, *[""] * (len(starts) - len(row_titles))]
    rows = [
        Row(left, pictures[start : start + columns], titles[start : start + columns])
        for left, start in zip(lefts, starts, strict=True)
    ]
    _save([sheet(rows)], target)


def _plain(
    clip: Clip, chosen: Sequence[int], grey_range: Range, gamma: float, side: int
) -> list[Image.Image]:
    video, scale = clip["video"], _magnification(clip, side)
    return [
        render_frame(video[frame], grey_range=grey_range, gamma=gamma, scale=scale)
        for frame in chosen
    ]


def _marked(
    clip: Clip, chosen: Sequence[int], grey_range: Range, gamma: float, side: int
) -> list[Image.Image]:
    video, masks, scale = clip["video"], clip["masks"], _magnification(clip, side)
    return [
        render_frame(video[frame], masks[frame], grey_range=grey_range, gamma=gamma, scale=scale)
        for frame in chosen
    ]


def _magnification(clip: Clip, side: int) -> int:
    return min(max(side // max(clip["video"].shape[-2:]), 1), MOST_MAGNIFIED)


def _chosen(name: str, count: int, frames: Sequence[int] | None) -> list[int]:
    if frames is None:
        return [round(place) for place in np.linspace(0, count - 1, min(count, SHEET_FRAMES))]
    if len(frames) == 0:
        raise ValueError("frames must name at least one frame, got none")
    for frame in frames:
        if not 0 <= frame < count:
            raise IndexError(f"frames must be from 0 to {count - 1} for {name!r}, got {frame}")
    return list(frames)


def _draw_lines(pictures: Sequence[Image.Image], clip: Clip) -> None:
    scale = pictures[0].height / clip["video"].shape[-2]
    for frame, identity, line in _births(clip):
        red, green, blue = (int(part) for part in COLOURS[identity % len(COLOURS)])
        places = [(place + 0.5) * scale for place in line]
        ImageDraw.Draw(pictures[frame]).line(places, (red, green, blue))


def _births(clip: Clip) -> list[tuple[int, int, Line]]:
    if "tracks" not in clip:
        return []
    tracks = as_array(clip["tracks"]).astype(np.int64)
    masks = as_array(clip["masks"]).astype(np.int64)
    _, centres = measure_boxes(masks, int(masks.max(initial=0)))
    births = []
    for identity, first, _, parent in tracks[tracks[:, 3] > 0].tolist():
        last = int(tracks[parent - 1, 2])
        (y0, x0), (y1, x1) = (
            centres[parent - 1, last].tolist(),
            centres[identity - 1, first].tolist(),
        )
        births.append((first, identity, (x0, y0, x1, y1)))
    return births


def _widened(low: float, high: float) -> Range:
    # An even image has no range of its own; it is shown black.
    return (low, high) if high > low else (low, low + 1)


def _check_count(name: str, titles: Sequence[str], most: int) -> None:
    if len(titles) > most:
        raise ValueError(f"{name} must be at most {most} for these images, got {len(titles)}")


def _target(path: str | Path, *suffixes: str) -> Path:
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        wanted = " or ".join(map(repr, suffixes))
        raise ValueError(f"path must end in {wanted}, got {str(path)!r}")
    return target


def _save(pictures: Sequence[Image.Image], target: Path, milliseconds: int = 0) -> None:
    with whole_file(target) as unfinished:
        if target.suffix.lower() == ".png":
            pictures[0].save(unfinished, "PNG")
            return
        first, *rest = [_reduced(picture) for picture in pictures]
        first.save(
            unfinished, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0
        )


def _reduced(picture: Image.Image) -> Image.Image:
    # One palette for all frames, greys first, so that nothing flickers.
    greys = np.linspace(0, 255, 136).round().repeat(3)
    colours = np.concatenate([greys, COLOURS.ravel(), COLOURS.ravel() // 2]).astype(int)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.tolist())
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)
