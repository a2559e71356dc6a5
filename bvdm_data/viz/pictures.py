"""Images of clips: contact sheets and animations."""

import colorsys
import io
import subprocess
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bvdm_data.clip import Clip, measure_boxes, take_part
from bvdm_data.files import open_atomic
from bvdm_data.system import require

Array = npt.NDArray[np.generic]
Range = tuple[float, float]

GAMMA = 0.6  # default exponent of the displayed grey: below 1, dim nuclei are visible
PERCENTILES = (0.5, 99.8)  # grey values of a clip that become black and white by default
# Constant rate factor of H.264, from 0 (lossless) to 51 (our choice: thin outlines stay thin).
QUALITY = 20
# Our choices: how many frames a sheet shows, and how large small clips become, in screen pixels.
SHEET_FRAMES, SHEET_SIDE, ANIMATION_SIDE, MAX_SCALE = 8, 256, 512, 4
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
TITLE_SIZE, CAPTION_SIZE, ID_SIZE = 16, 12, 12
GAP, MARGIN = 6, 10
FRAMES_PER_SECOND = 4  # of animations


def _make_colours(count: int) -> npt.NDArray[np.uint8]:
    # Steps of the golden ratio keep the hues of neighbouring ids far apart.
    hues = [(number * 0.618034) % 1 for number in range(count)]
    # Pure blue is hard to see on black, so it gets more white.
    strengths = [0.45 if 0.55 < hue < 0.8 else 0.8 for hue in hues]
    rgb = [colorsys.hsv_to_rgb(hue, s, 1) for hue, s in zip(hues, strengths, strict=True)]
    return np.round(np.array(rgb) * 255).astype(np.uint8)


# Colours of the ids, ``[60, 3]`` uint8: id i has colour ``i % 60`` in all frames.
COLOURS = _make_colours(60)


@dataclass(frozen=True)
class Row:
    """One row of a sheet."""

    title: str  # printed left of the row
    images: Sequence[Image.Image]  # left to right
    captions: Sequence[str] = ()  # printed above the images, in their order; may be fewer


def write_contact_sheet(
    clips: Mapping[str, Clip],
    path: str | Path,
    *,
    frames: Sequence[int] | None = None,
) -> None:
    """Write frames of several clips one below the other, all at the same grey scale.

    Every clip has a row of plain frames and, if it has masks, a row with outlines and ids. Clips
    of up to 128 pixels are magnified by nearest neighbour.
    """
    target = check_suffix(path, ".png")
    save_images([render_contact_sheet(clips, frames=frames)], target)


def render_contact_sheet(
    clips: Mapping[str, Clip],
    *,
    frames: Sequence[int] | None = None,
    grey_range: Range | None = None,
    gamma: float = GAMMA,
) -> Image.Image:
    """Draw what :func:`write_contact_sheet` writes."""
    if not clips:
        raise ValueError("clips must hold at least one clip, got none")
    for name, clip in clips.items():
        take_part(clip, "video", f" in clip {name!r}")
    if grey_range is None:
        grey_range = measure_display_range([clip["video"] for clip in clips.values()])
    rows = []
    for name, clip in clips.items():
        shown = choose_frames(name, len(clip["video"]), frames)
        captions = [f"frame {frame}" for frame in shown]
        plain, *outlined = _render_panels(clip, shown, grey_range, gamma, SHEET_SIDE)
        rows += [Row(name, plain, captions), *(Row("", images) for images in outlined)]
    low, high = grey_range
    note = f"black: grey {low:.4g}, white: grey {high:.4g}, gamma {gamma:g}"
    return tile_images(rows, note)


def write_animation(clip: Clip, path: str | Path) -> None:
    """Write a clip as an endless GIF or as MP4: the plain video, then the outlines and ids.

    In the frame in which a track with a parent begins, a thin line leads to it from the last
    position of the parent. Clips of up to 256 pixels are magnified by nearest neighbour.
    """
    target = check_suffix(path, ".gif", ".mp4")
    take_part(clip, "video")
    grey_range, shown = measure_display_range([clip["video"]]), range(len(clip["video"]))
    panels = _render_panels(clip, shown, grey_range, GAMMA, ANIMATION_SIDE)
    if "masks" in clip and "tracks" in clip:
        _draw_births(panels[1], clip)
    images = [
        tile_images(
            [Row("", pair, (f"frame {t} (0 to {shown[-1]})", "outlines and ids")[: len(pair)])]
        )
        for t, pair in enumerate(zip(*panels, strict=True))
    ]
    if target.suffix.lower() == ".mp4":
        _write_mp4(images, target)
    else:
        save_images(images, target)


def _write_mp4(images: Sequence[Image.Image], path: Path) -> None:
    """Write images as H.264 with colours at half resolution, which any player takes."""
    # Both sides must be even at this chroma resolution.
    width, height = (side + side % 2 for side in images[0].size)
    padding = (0, height - images[0].height), (0, width - images[0].width), (0, 0)
    frames = b"".join(np.pad(np.asarray(x), padding, mode="edge").tobytes() for x in images)
    with open_atomic(path) as unfinished:
        command = [require_ffmpeg().get_ffmpeg_exe(), "-y", "-loglevel", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        command += ["-r", str(FRAMES_PER_SECOND), "-i", "-", "-c:v", "libx264"]
        command += ["-crf", str(QUALITY), "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
        done = subprocess.run([*command, str(unfinished)], input=frames, capture_output=True)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg failed"]
            raise OSError(f"{lines[-1]} (ffmpeg ended with {done.returncode})")


def require_ffmpeg() -> ModuleType:
    """Import the package that writes MP4."""
    return require("imageio_ffmpeg", "preview")


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
    frame = _check_plane("video_frame", video_frame)
    grey = _magnify(_stretch(frame, grey_range, gamma), scale)
    image = Image.fromarray(grey).convert("RGB")
    if mask is None:
        return image
    labels = _check_plane("mask", mask).astype(np.int64)
    if labels.shape != frame.shape:
        raise ValueError(
            f"mask must have the shape of video_frame, {frame.shape}, got {labels.shape}"
        )
    large = _magnify(labels, scale)
    # The border of the image is repeated: a nucleus that it cuts has no outline there.
    around = np.pad(large, 1, mode="edge")
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    edge = np.any([other != large for other in neighbours], axis=0) & (large > 0)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    rgb[edge] = COLOURS[large[edge] % len(COLOURS)]
    outlined = Image.fromarray(rgb)
    if ids:
        _print_ids(outlined, large)
    return outlined


def tile_images(rows: Sequence[Row], note: str = "") -> Image.Image:
    """Arrange images in rows and columns on white paper."""
    cells = [image.width for row in rows for image in row.images]
    cells += [_measure_width(text, CAPTION_SIZE) for row in rows for text in row.captions]
    cell = max(cells)
    left = max(_measure_width(row.title, TITLE_SIZE) for row in rows)
    left += MARGIN + (GAP if left else 0)
    columns = max(len(row.images) for row in rows)
    width = max(left + columns * (cell + GAP) - GAP, _measure_width(note, CAPTION_SIZE)) + MARGIN
    line = CAPTION_SIZE + GAP
    heights = [_measure_height(row) for row in rows]
    height = 2 * MARGIN + sum(heights) + GAP * (len(rows) - 1) + (line if note else 0)
    paper = Image.new("RGB", (width, height), PAPER)
    top = MARGIN
    for row, tall in zip(rows, heights, strict=True):
        _paste_row(paper, row, left, top, cell)
        top += tall + GAP
    _print(paper, (MARGIN, top + CAPTION_SIZE // 2), note, CAPTION_SIZE, "lm", FAINT)
    return paper


def measure_display_range(videos: Sequence[Tensor]) -> Range:
    """Return the grey values that become black and white by default."""
    values = np.concatenate([convert_to_array(video).ravel() for video in videos])
    low, high = np.percentile(values, PERCENTILES).tolist()
    return low, high if high > low else low + 1  # an even image has no range; it is shown black


def convert_to_array(values: Tensor | Array) -> Array:
    """Return a tensor of any device, or an array, as an array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _check_plane(name: str, values: Tensor | Array) -> Array:
    plane = convert_to_array(values)
    if plane.ndim == 3 and plane.shape[0] == 1:
        plane = plane[0]
    if plane.ndim != 2 or plane.size == 0:
        raise ValueError(f"{name} must be one grey image, [H, W] or [1, H, W], got {plane.shape}")
    return plane


def _stretch(frame: Array, grey_range: tuple[float, float], gamma: float) -> npt.NDArray[np.uint8]:
    low, high = grey_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"grey_range must be a finite low and a higher value, got {grey_range}")
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    share = np.clip((np.nan_to_num(frame.astype(np.float64)) - low) / (high - low), 0, 1)
    return np.round(share**gamma * 255).astype(np.uint8)


def _magnify(plane: npt.NDArray[np.integer], scale: int) -> npt.NDArray[np.integer]:
    if scale < 1:
        raise ValueError(f"scale must be at least 1 screen pixel a pixel, got {scale}")
    return plane.repeat(scale, axis=0).repeat(scale, axis=1)


def _print_ids(image: Image.Image, labels: npt.NDArray[np.integer]) -> None:
    names, dense = np.unique(labels, return_inverse=True)
    if names[0] != 0:
        names, dense = np.r_[0, names], dense + 1
    _, centres = measure_boxes(dense.reshape(1, *labels.shape), len(names) - 1)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(ID_SIZE)
    for name, (y, x) in zip(names[1:], centres[:, 0], strict=True):
        text = str(name)
        across, down = draw.textlength(text, font) / 2 + 3, ID_SIZE / 2
        place = (_clamp(float(x), across, image.width), _clamp(float(y), down, image.height))
        # Half-way to white, so that the number can be read on its outline's colour.
        colour = tuple((int(part) + 255) // 2 for part in COLOURS[name % len(COLOURS)])
        draw.text(place, text, colour, font, "mm", stroke_width=1, stroke_fill=(0, 0, 0))


def _clamp(centre: float, half: float, length: int) -> float:
    return min(max(centre, half), max(length - half, half))


def _measure_width(text: str, size: int) -> int:
    return round(ImageFont.load_default(size).getlength(text))


def _measure_height(row: Row) -> int:
    captions = CAPTION_SIZE + GAP if any(row.captions) else 0
    return captions + max(image.height for image in row.images)


def _paste_row(paper: Image.Image, row: Row, left: int, top: int, cell: int) -> None:
    captions = _measure_height(row) - max(image.height for image in row.images)
    middle = top + captions + (_measure_height(row) - captions) // 2
    _print(paper, (MARGIN, middle), row.title, TITLE_SIZE, "lm", INK)
    for column, image in enumerate(row.images):
        centre = left + column * (cell + GAP) + cell // 2
        paper.paste(image, (centre - image.width // 2, top + captions))
        caption = row.captions[column] if column < len(row.captions) else ""
        _print(paper, (centre, top + CAPTION_SIZE // 2), caption, CAPTION_SIZE, "mm", INK)


def _print(
    paper: Image.Image,
    place: tuple[int, int],
    text: str,
    size: int,
    anchor: str,
    colour: tuple[int, int, int],
) -> None:
    ImageDraw.Draw(paper).text(place, text, colour, ImageFont.load_default(size), anchor)


def _render_panels(
    clip: Clip, frames: Sequence[int], grey_range: Range, gamma: float, side: int
) -> list[list[Image.Image]]:
    """Return the plain frames and, if there are masks, those with outlines and ids."""
    video = clip["video"]
    scale = min(max(side // max(video.shape[-2:]), 1), MAX_SCALE)
    masks = [None, clip["masks"]] if "masks" in clip else [None]
    return [
        [
            render_frame(
                video[t], None if labels is None else labels[t],
                grey_range=grey_range, gamma=gamma, scale=scale,
            )
            for t in frames
        ]
        for labels in masks
    ]  # fmt: skip


def choose_frames(
    name: str, count: int, frames: Sequence[int] | None, *, most: int = SHEET_FRAMES
) -> list[int]:
    """Return the frames that are shown: by default as many as ``most``, evenly spaced."""
    if frames is None:
        return [round(t) for t in np.linspace(0, count - 1, min(count, most))]
    if len(frames) == 0:
        raise ValueError("frames must name at least one frame, got none")
    for frame in frames:
        if not 0 <= frame < count:
            raise IndexError(f"frames must be from 0 to {count - 1} for {name!r}, got {frame}")
    return list(frames)


def _draw_births(images: Sequence[Image.Image], clip: Clip) -> None:
    """Draw a line from the last position of each parent to the first of its child."""
    scale = images[0].height / clip["video"].shape[-2]
    tracks = convert_to_array(clip["tracks"]).astype(np.int64)
    masks = convert_to_array(clip["masks"]).astype(np.int64)
    _, centroids = measure_boxes(masks, int(masks.max(initial=0)))
    for child, first, _, parent in tracks[tracks[:, 3] > 0].tolist():
        ends = centroids[parent - 1, tracks[parent - 1, 2]], centroids[child - 1, first]
        red, green, blue = COLOURS[child % len(COLOURS)].tolist()
        line = [float(place + 0.5) * scale for y, x in ends for place in (x, y)]
        ImageDraw.Draw(images[first]).line(line, (red, green, blue))


def check_suffix(path: str | Path, *suffixes: str) -> Path:
    """Return a path that ends in one of these."""
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        expected = " or ".join(map(repr, suffixes))
        raise ValueError(f"path must end in {expected}, got {str(path)!r}")
    return target


def encode_image(image: Image.Image, kind: str, **options: Any) -> str:
    """Return a file of an image as a ``data:`` URI."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return encode_uri(file.getvalue(), f"image/{kind.lower()}")


def encode_uri(content: bytes, mime: str) -> str:
    """Return a file as a ``data:`` URI."""
    return f"data:{mime};base64,{b64encode(content).decode()}"


def save_images(images: Sequence[Image.Image], target: Path) -> None:
    """Write the first image as PNG, or all as an endless GIF."""
    with open_atomic(target) as unfinished:
        if target.suffix.lower() == ".png":
            images[0].save(unfinished, "PNG")
            return
        # One palette for all frames, greys first, so that nothing flickers.
        greys = np.linspace(0, 255, 136).round().repeat(3)
        colours = np.concatenate([greys, COLOURS.ravel(), COLOURS.ravel() // 2]).astype(int)
        palette = Image.new("P", (1, 1))
        palette.putpalette(colours.tolist())
        none = Image.Dither.NONE
        first, *rest = [image.quantize(palette=palette, dither=none) for image in images]
        duration = 1000 // FRAMES_PER_SECOND  # ms
        first.save(unfinished, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
