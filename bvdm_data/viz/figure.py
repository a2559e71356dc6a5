"""A figure of one clip: its frames, its outlines, and the lineage tree below them."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from bvdm_data.clip import Clip, take_part
from bvdm_data.system import require
from bvdm_data.viz.pictures import (
    COLOURS,
    GAMMA,
    Array,
    Range,
    choose_frames,
    convert_to_array,
    render_contact_sheet,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_FRAMES = 4  # frames that are shown by default (our choice: ids can be read in a notebook)
# Our choices: pixels an inch, and, in inches, a line of the tree, its axis, its least and its most.
DPI, LINE, AXIS, LEAST_TREE, MOST_TREE = 100, 0.16, 0.4, 0.5, 6.0

MOST_IDS = 60  # tracks up to which the tree shows their ids


def show(
    clip: Clip,
    frames: Sequence[int] | None = None,
    *,
    grey_range: Range | None = None,
    gamma: float = GAMMA,
) -> "Figure":
    """Draw a clip: a row of frames, one with outlines and ids, and the lineage tree.

    A nucleus has one colour in all frames and in the tree. A notebook shows the figure where it is
    the last line of a cell; elsewhere, ``show(clip).savefig("clip.png")`` writes it. It belongs to
    no window, so that nothing needs to be closed. Needs matplotlib (``pip install
    'bvdm-data[preview]'``).

    Args:
        clip: One clip, real or synthetic; without masks there are no outlines, without tracks there
            is no tree.
        frames: Numbers of the frames to show. None: up to four, evenly spaced.
        grey_range: Grey values that become black and white. None: those of the clip.
        gamma: Exponent of the displayed grey; below 1, dim nuclei are visible.

    Returns:
        A matplotlib figure.

    Raises:
        IndexError: If the clip has no such frame.
        ModuleNotFoundError: If matplotlib is not installed.
        TypeError: If clip is no clip.
        ValueError: If clip is a batch or has no video, or an argument is out of its range.
    """
    figures = require("matplotlib.figure", "preview")
    take_part(clip, "video")
    shown = choose_frames("clip", len(clip["video"]), frames, most=MOST_FRAMES)
    sheet = render_contact_sheet({"": clip}, frames=shown, grey_range=grey_range, gamma=gamma)
    tree = 0.0  # inches
    if "tracks" in clip:
        tree = AXIS + min(max(LINE * int((clip["tracks"][:, 0] > 0).sum()), LEAST_TREE), MOST_TREE)
    # In pixels of the sheet, so that no pixel of the clip is resampled.
    width, height = sheet.width / DPI, sheet.height / DPI + tree
    figure: Any = figures.Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((0, tree / height, 1, 1 - tree / height))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    if tree:
        axes = figure.add_axes((0.02, AXIS / height, 0.96, (tree - AXIS) / height))
        draw_lineage(axes, clip["tracks"], len(clip["video"]))

    def encode() -> bytes:
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()

    figure._repr_png_ = encode
    drawn: Figure = figure
    return drawn


def draw_lineage(axes: "Axes", tracks: Tensor | Array, frames: int) -> None:
    """Draw the lineage tree of a table of tracks: time to the right, a line for each track."""
    rows = {row[0]: row for row in convert_to_array(tracks).astype(int).tolist() if row[0] > 0}
    places = _place_tracks(rows)
    for identity, place in places.items():
        _, first, last, parent = rows[identity]
        colour = COLOURS[identity % len(COLOURS)] / 255 * 0.85
        axes.plot([first, last], [place, place], color=colour, marker=".", markersize=3)
        if parent in places:
            ends = [rows[parent][2], first]
            style = ":" if ends[1] - ends[0] > 1 else "-"  # out of sight in between
            axes.plot(ends, [places[parent], place], style, color=colour, linewidth=1)
        if len(places) <= MOST_IDS:
            axes.annotate(
                str(identity), (first, place), (2, 1), textcoords="offset points", fontsize=6,
                va="bottom", color=colour,
            )  # fmt: skip
    axes.set_xlim(-0.5, frames - 0.3)
    axes.set_ylim(max(places.values(), default=0) + 0.8, -0.8)
    axes.set_yticks([])
    axes.set_xlabel("frame", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="x", integer=True)
    axes.spines[["left", "top", "right"]].set_visible(False)


def _place_tracks(rows: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """Return the height of each track: leaves one below the other, parents amid their children."""
    children: dict[int, list[int]] = {}
    for identity, _, _, parent in rows.values():
        children.setdefault(parent if parent in rows else 0, []).append(identity)
    places: dict[int, float] = {}
    waiting, leaves = sorted(children.get(0, []), reverse=True), 0
    while waiting:
        top = waiting[-1]
        below = sorted(children.get(top, []))
        if below and below[0] not in places:
            waiting += reversed(below)
            continue
        waiting.pop()
        places[top] = float(np.mean([places[one] for one in below])) if below else float(leaves)
        leaves += not below
    return places
