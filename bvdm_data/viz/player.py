"""Player: one HTML page that plays annotated clips, with outlines, ids and the lineage tree."""

import itertools
import json
import math
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bvdm_data.clip import Clip, take_part
from bvdm_data.files import open_atomic
from bvdm_data.viz.pictures import (
    COLOURS,
    GAMMA,
    Range,
    check_suffix,
    convert_to_array,
    encode_image,
    measure_display_range,
    render_frame,
)

TEMPLATE = Path(__file__).with_name("player.html")
"""The page without its clips."""

QUALITY = 80
"""Quality of the embedded WebP images, from 0 to 100 (our choice: noise stays visible)."""

MOST_PIXELS = 16383
"""Longest side of a WebP image (the format stores it in 14 bits)."""


def write_player(
    clips: Mapping[tuple[str, str], Clip],
    path: str | Path,
    *,
    title: str = "Annotated clips",
    note: str = "",
) -> None:
    """Write a page that plays clips in any browser and needs no other file and no network.

    The page has a slider for each of two settings, and shows the clip that was made with them. All
    clips have the same grey scale. Pictures are embedded as WebP, which is not free of loss; ids
    and the table of tracks are embedded as they are.
    """
    target = check_suffix(path, ".html")
    values = _list_values(clips)
    for name, clip in clips.items():
        _check(name, clip)
    low, high = measure_display_range([clip["video"] for clip in clips.values()])
    data = {
        "axes": ("seed", "density"),
        "values": values,
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in COLOURS.tolist()],
        "clips": [_pack(clips[name], (low, high)) for name in itertools.product(*values)],
    }
    scale = f"Black: grey {low:.3g}, white: grey {high:.3g}, gamma {GAMMA:g}, in all clips."
    page = TEMPLATE.read_text(encoding="utf-8")
    page = page.replace("@TITLE@", escape(title)).replace(
        "@NOTE@", escape(f"{note} {scale}".strip())
    )
    # A "<" in a script could end it.
    page = page.replace("@DATA@", json.dumps(data).replace("<", "\\u003c"))
    with open_atomic(target) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _list_values(clips: Mapping[tuple[str, str], Clip]) -> tuple[list[str], list[str]]:
    """Return the values of each setting, in the order in which they first appear."""
    if not clips:
        raise ValueError("clips must hold at least one clip, got none")
    for name in clips:
        if not (isinstance(name, tuple) and [*map(type, name)] == [str, str]):
            raise TypeError(
                "clips must be by pairs of texts, the values of the two settings, such as "
                f"('0', '1 x'), got {name!r}"
            )
    first, second = (list(dict.fromkeys(name[axis] for name in clips)) for axis in (0, 1))
    missing = [name for name in itertools.product(first, second) if name not in clips]
    if missing:
        raise ValueError(
            f"clips must hold every value of one setting with every value of the other, got no "
            f"clip {missing[0]}"
        )
    return first, second


def _check(name: tuple[str, str], clip: Clip) -> None:
    lacking = [key for key in ("video", "masks", "tracks") if key not in clip]
    if lacking:
        raise ValueError(
            f"clips must have video, masks and tracks, got no {lacking[0]} in clip {name}; "
            'ask the data set for annotations=("masks", "tracks") and video=True'
        )
    take_part(clip, "video", f" in clip {name}")
    frames, _, height, width = clip["video"].shape
    columns = _count_columns(frames)
    longest = max(columns * width, -(-frames // columns) * height)
    if longest > MOST_PIXELS:
        raise ValueError(
            f"clips must fit on a sheet of at most {MOST_PIXELS} pixels a side, got {frames} "
            f"frames of {height} x {width} in clip {name}, {longest} pixels; show fewer frames or "
            "a smaller size"
        )
    top = int(clip["masks"].max())
    if top > np.iinfo(np.uint16).max:
        raise ValueError(f"clips must have ids up to 65535, got id {top} in clip {name}")


def _count_columns(frames: int) -> int:
    return math.ceil(math.sqrt(frames))


def _pack(clip: Clip, grey_range: Range) -> dict[str, Any]:
    masks = convert_to_array(clip["masks"]).astype(np.uint16)
    tracks = convert_to_array(clip["tracks"]).astype(int)
    frames, height, width = masks.shape
    return {
        "frames": frames,
        "height": height,
        "width": width,
        "columns": _count_columns(frames),
        "sheet": _encode_sheet(clip, grey_range),
        "masks": [b64encode(_find_runs(mask).astype("<u2").tobytes()).decode() for mask in masks],
        "tracks": tracks[tracks[:, 0] > 0].tolist(),
    }


def _encode_sheet(clip: Clip, grey_range: Range) -> str:
    """Return all frames as one WebP image, row by row."""
    video = clip["video"]
    frames, _, height, width = video.shape
    columns = _count_columns(frames)
    sheet = Image.new("L", (columns * width, -(-frames // columns) * height))
    for frame in range(frames):
        image = render_frame(video[frame], grey_range=grey_range, gamma=GAMMA).convert("L")
        sheet.paste(image, (frame % columns * width, frame // columns * height))
    return encode_image(sheet, "WEBP", quality=QUALITY)


def _find_runs(mask: npt.NDArray[np.uint16]) -> npt.NDArray[np.integer]:
    """Return rows (id, y, first x, number of pixels) of the runs of one id, ``[n, 4]``."""
    framed = np.pad(mask, ((0, 0), (1, 1)))
    y, x = np.nonzero(framed[:, 1:] != framed[:, :-1])
    identity = framed[y, x + 1]
    # A row ends in background, so the next change is always in the same row.
    length = np.diff(x, append=0)
    return np.stack([identity, y, x, length], axis=1)[identity > 0]
