"""Pictures: clips as a person looks at them, as sheets of frames and as animations."""

import colorsys
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bvdm_data.clip import Clip, measure_boxes
from bvdm_data.files import open_atomic

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
    """One row of a sheet."""

    title: str  # printed left of the row
    images: Sequence[Image.Image]  # the images, left to right
    captions: Sequence[str] = ()  # printed above the images, in their order; may be fewer


def render_frame(
    video_frame: Tensor | Array,
    mask: Tensor | Array | None = None,
    *,
    grey_range: tuple[float, float],
    gamma: float = 1.0,
    scale: int = 1,
    ids: bool = True,
) -> Image.Image:
    """Draw one frame, with the outlines and ids of its nuclei where a mask is given."""
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


def tile_frames(rows: Sequence[Row], note: str = "") -> Image.Image:
    """Arrange images in rows and columns on white paper."""
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


def convert_to_array(values: Tensor | Array) -> Array:
    """Return a tensor of any device, or an array, as an array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _plane(name: str, values: Tensor | Array) -> Array:
    plane = convert_to_array(values)
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


QUALITY = 20
"""Constant rate factor of H.264, from 0 (lossless) to 51 (our choice: thin outlines stay thin)."""


def require_ffmpeg() -> ModuleType:
    """Import what writes films, the package of the extra ``preview``."""
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"an MP4 needs the package {error.name!r}, which is not installed; "
            'pip install "bvdm-data[preview]"'
        ) from error
    return imageio_ffmpeg  # type: ignore[no-any-return]


def write_mp4(pictures: Sequence[Image.Image], path: Path, frames_per_second: float) -> None:
    """Write pictures as a film, H.264 with colours at half resolution, which any player takes."""
    _check(pictures)
    program = require_ffmpeg().get_ffmpeg_exe()
    width, height = (side + side % 2 for side in pictures[0].size)
    with open_atomic(path) as unfinished:
        command = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", f"{frames_per_second:g}", "-i", "-"]
        command += ["-c:v", "libx264", "-crf", str(QUALITY), "-pix_fmt", "yuv420p"]
        command += ["-movflags", "+faststart", str(unfinished)]
        content = b"".join(_even(picture, width, height) for picture in pictures)
        done = subprocess.run(command, input=content, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg failed"]
            raise OSError(f"{said[-1]} (ffmpeg ended with {done.returncode})")


def _check(pictures: Sequence[Image.Image]) -> None:
    if not pictures:
        raise ValueError("pictures must hold at least one picture, got none")
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        raise ValueError(
            f"pictures must all have the same width and height, got {sizes}; write a film of each "
            "clip, or bring the pictures to one size by Image.resize"
        )
    modes = {picture.mode for picture in pictures} - {"RGB"}
    if modes:
        raise ValueError(
            f"pictures must be RGB, got the mode {min(modes)!r}; see Image.convert('RGB')"
        )


def _even(picture: Image.Image, width: int, height: int) -> bytes:
    pixels = np.asarray(picture)
    missing = (0, height - picture.height), (0, width - picture.width), (0, 0)
    return np.pad(pixels, missing, mode="edge").tobytes()


__all__ = [
    "GAMMA",
    "Range",
    "measure_display_range",
    "render_frame",
    "write_animation",
    "write_contact_sheet",
    "write_image_grid",
]

GAMMA = 0.6
"""Exponent of the displayed grey where nothing else is said: below 1, dim nuclei are seen."""

PERCENTILES = (0.5, 99.8)
"""The grey values of a clip that become black and white where nothing else is said."""

# Our choices: how many frames a sheet shows, and how large, in screen pixels, small clips become.
SHEET_FRAMES, SHEET_SIDE, ANIMATION_SIDE, MOST_MAGNIFIED = 8, 256, 512, 4

Range = tuple[float, float]
Line = tuple[float, float, float, float]


def write_contact_sheet(
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
    """
    target = _target(path, ".png")
    if not clips:
        raise ValueError("clips must hold at least one clip, got none")
    if grey_range is None:
        grey_range = measure_display_range([clip["video"] for clip in clips.values()])
    rows = []
    for name, clip in clips.items():
        chosen = _chosen(name, len(clip["video"]), frames)
        captions = [f"frame {frame}" for frame in chosen]
        rows.append(Row(name, _plain(clip, chosen, grey_range, gamma, SHEET_SIDE), captions))
        if "masks" in clip:
            rows.append(Row("", _marked(clip, chosen, grey_range, gamma, SHEET_SIDE)))
    low, high = grey_range
    note = f"black: grey {low:.4g}, white: grey {high:.4g}, gamma {gamma:g}"
    _save([tile_frames(rows, note)], target)


def write_animation(
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
    """
    target = _target(path, ".gif", ".mp4")
    if not 0 < frames_per_second <= 50:
        raise ValueError(f"frames_per_second must be above 0, at most 50, got {frames_per_second}")
    if grey_range is None:
        grey_range = measure_display_range([clip["video"]])
    chosen = range(len(clip["video"]))
    panels = [_plain(clip, chosen, grey_range, gamma, ANIMATION_SIDE)]
    if "masks" in clip:
        panels.append(_marked(clip, chosen, grey_range, gamma, ANIMATION_SIDE))
        _draw_lines(panels[1], clip)
    captions = [f"frame {frame} (0 to {chosen[-1]})" for frame in chosen]
    pictures = [
        tile_frames([Row("", images, (caption, "outlines and ids")[: len(images)])])
        for caption, *images in zip(captions, *panels, strict=True)
    ]
    if target.suffix.lower() == ".mp4":
        write_mp4(pictures, target, frames_per_second)
    else:
        _save(pictures, target, round(1000 / frames_per_second))


def measure_display_range(videos: Sequence[Tensor]) -> Range:
    """Return the grey values that become black and white where nothing else is said."""
    values = np.concatenate([convert_to_array(video).ravel() for video in videos])
    low, high = np.percentile(values, PERCENTILES)
    return _widened(float(low), float(high))


def write_image_grid(
    images: Tensor | npt.NDArray[np.generic],
    path: str | Path,
    *,
    columns: int,
    titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    grey_range: Range | None = None,
    magnify: int = 1,
) -> None:
    """Write a sheet of grey images, row by row."""
    target = _target(path, ".png")
    stack = convert_to_array(images)
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
    _save([tile_frames(rows)], target)


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
    tracks = convert_to_array(clip["tracks"]).astype(np.int64)
    masks = convert_to_array(clip["masks"]).astype(np.int64)
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
    with open_atomic(target) as unfinished:
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
