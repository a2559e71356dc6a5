"""Real and synthetic clips side by side: on a sheet, and on the page that a fit ends with."""

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bvdm_data.clip import Clip
from bvdm_data.datasets.ctc_files import has_frames
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation.realism import MetricComparison, compare_metrics, measure_clips
from bvdm_data.files import open_atomic
from bvdm_data.fitting.progress import Progress
from bvdm_data.viz.pictures import encode_image, render_contact_sheet
from bvdm_data.weights import read_card

# Windows of a real video out of which those that are shown beside clips are chosen.
WINDOWS = 40
# More than a window shows: masks alone need no table, whose rows would be counted first.
MOST_NUCLEI = 2**15
Real = tuple[Path, str, str]  # a video: root, sequence and truth
FRAMES, SIDE, CLIPS, PAIRS = 8, 256, 12, 40  # of the page: what is shown, and what is measured
# What realism is told by on the page, and what helps where it is off.
_LINES = {
    "area": "sizes are off: are all nuclei masked, and is --minutes right?",
    "brightness": "brightness is off: give the camera's scale, --offset and --full",
    "contrast inside": "textures are off: more --painter-steps, then more --distilled-steps",
    "label agreement": "outlines and light disagree: do the masks end where nuclei end?",
    "step": "steps are off: do ids stay with their nuclei?",
}
_RENDERED = ("brightness", "contrast inside", "label agreement")  # lines that few steps explain
_NEAR, _OFF = 0.2, 0.5  # standard deviations: up to here all are alike, and from here on off


def open_real(root: Path, sequence: str, videos: SyntheticHeLaVideos, **given: Any) -> CTCVideos:
    """Return windows of a real video, as long and large as the clips."""
    usual: dict[str, Any] = {"annotations": ("masks",), "max_cells": MOST_NUCLEI}
    return CTCVideos(
        root, sequence=sequence, frames=videos.frames, size=videos.size, seed=videos.seed,
        **usual | given,
    )  # fmt: skip


def add_real(clips: Mapping[str, Clip], real: CTCVideos) -> dict[str, Clip]:
    """Put above each clip the window, out of some, whose number of nuclei is nearest."""
    windows = [real.clip(number) for number in range(WINDOWS)]
    shown: dict[str, Clip] = {}
    for name, clip in clips.items():
        count = _count_nuclei(clip)
        near = min(range(len(windows)), key=lambda n: abs(_count_nuclei(windows[n]) - count))
        shown |= {f"real, for {name}": windows.pop(near), name: clip}
    return shown


def _count_nuclei(clip: Clip) -> int:
    return int(np.count_nonzero(np.unique(clip["masks"])))


def write_fit_page(path: Path, model: Path, video: Real, bar: Progress | None = None) -> list[str]:
    """Write a page of real and synthetic clips, how like they are, and what to try next.

    Returns its lines; where the video has no windows to show, the reason in one.
    """
    card = read_card(model)
    try:
        lines, advice, clips = _compare(card, model, video, bar or Progress({}, shown=False))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        return [f"no page: {error}"]
    count = min(len(clip["video"]) for clip in clips.values())
    picture = encode_image(render_contact_sheet(clips, frames=range(0, count, 2)), "PNG")
    parts = [("How like they are", lines), ("What to try next", advice)]
    lists = "".join(
        f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(one)}</li>' for one in own)}</ul>"
        for title, own in parts
    )
    title = escape(f"{model.stem}: real and synthetic")
    with open_atomic(path) as unfinished:
        unfinished.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width"><style>body{font:16px/1.5 '
            "sans-serif;margin:1rem auto;padding:0 1rem;max-width:75rem;overflow-wrap:anywhere}"
            "div{overflow-x:auto}img{min-width:45rem;max-width:100%}"  # phones scroll the picture
            f'</style><h1>{title}</h1><div tabindex="0"><img alt="Frames of a real window above a '
            f'synthetic clip, at one grey scale" src="{picture}"></div>'
            f"{lists}</html>\n",
            encoding="utf-8",
        )
    return [*lines, *(f"next: {one}" for one in advice), f"wrote {path}"]


def _compare(
    card: Mapping[str, Any], model: Path, video: Real, bar: Progress
) -> tuple[list[str], list[str], dict[str, Clip]]:
    """Return lines about realism, advice, and clips to show."""
    data, border, (root, sequence, truth) = card["data"], card["settings"]["border"], video
    is_tracked = data["divisions"] > 0 or "motion but for density" not in card["taken_over"]
    in_a_row = is_tracked and not card["left_out"]["frames_without_masks"]
    frames = max(min(FRAMES, data["frames"] // 2), 1) if in_a_row else 1
    side = SIDE * card["measured"].get("pooling", 1)
    size = tuple(min(side, length - 2 * border) for length in data["size"])
    videos = SyntheticHeLaVideos(model=model, frames=frames, size=size, variation=0)
    given = {"border": border, "truth": truth, "scale": videos.scale}
    given |= {"annotations": ("masks", "tracks")} if is_tracked else {}
    real = open_real(root, sequence, videos, stop=card["settings"]["stop"], **given)
    numbers = real.source.numbers
    middle = numbers[len(numbers) // 2]
    halves = [
        open_real(root, sequence, videos, start=start, stop=stop, **given)
        for start, stop in ((numbers[0], middle), (middle, card["settings"]["stop"]))
    ]
    sources: list[Any] = [videos, *halves] if len(numbers) >= 2 * frames else [videos, real, real]
    part, rows = bar.start("page", CLIPS + 1, until=bar.until), list[list[Clip]]()
    for number in range(CLIPS):
        if number < 2 or time.monotonic() < bar.until:
            rows.append([_add_tracks(one.clip(number)) for one in sources])
        part.update()
    clips = [*zip(*rows, strict=True)]
    measured = compare_metrics(*(measure_clips(own, pairs=PAIRS) for own in clips))
    part.update()
    found = [line for line in measured if line.name in _LINES]
    shown = {f"clip {number}": clips[0][number] for number in range(2)}
    return [*map(_tell, found)], _advise(card, found, model, root), add_real(shown, real)


def _add_tracks(clip: Clip) -> Clip:
    """Add the tracks of a clip of one frame, where there are none."""
    if "tracks" in clip:
        return clip
    ids = torch.unique(clip["masks"])
    ids = ids[ids > 0].int()
    zeros = torch.zeros_like(ids)
    return clip | {"tracks": torch.stack([ids, zeros, zeros, zeros], 1)}


def _tell(line: MetricComparison) -> str:
    ours, real = line.synthetic.median, line.reference.median
    if line.distance is None or ours is None or real is None:
        return f"{line.name}: not measured, too few nuclei, or none in two frames in a row"
    known = line.yardstick or 0.0
    verdict = "alike" if line.distance <= max(_NEAR, known) else "near"
    return (
        f"{line.name}: {'off' if _is_off(line) else verdict}; median "
        f"{f'{ours:.3g} {line.unit}'.strip()}, real {real:.3g}; {line.distance:.2f} standard "
        f"deviations apart, and the halves of the video {known:.2f}"
    )


def _is_off(line: MetricComparison) -> bool:
    return (line.distance or 0.0) >= max(_OFF, 2 * (line.yardstick or 0.0))


def _advise(
    card: Mapping[str, Any], lines: Sequence[MetricComparison], model: Path, root: Path
) -> list[str]:
    """Return what to try next, by the card and what is off."""
    data, losses = card["data"], card["painter"]["held_out_loss"]
    known = [loss for loss in losses if loss is not None]
    is_learning = len(known) > 1 and known[-1] < 0.98 * known[-2]
    is_short = bool(card["settings"].get("budget"))
    off = [one.name for one in lines if _is_off(one) and not (is_short and one.name in _RENDERED)]
    taken = ", ".join(card["taken_over"])
    hours = data["frames"] * card["settings"]["minutes"] / 60
    cycle = 0 if "lives" in taken else card["measured"]["cycle_hours_median"]
    own = data["sequence"]
    judge = "annotate a second video, and give it to bvdm-data evaluate"
    for other in sorted({path.name for path in root.iterdir() if has_frames(path)} - {own}):
        judge = f"bvdm-data evaluate {root} --model {model} --quick --train {own} --test {other}"
    rules = {
        "few steps by --quick: the same command without it goes on from there": is_short,
        "the denoiser is still learning: more --painter-steps": is_learning,
        f"{data['divisions']} divisions are few: a longer video": 0 < data["divisions"] < 10,
        f"cycles of {cycle:.0f} h cannot be told from {hours:.0f} h of video: a longer one, or "
        "--lives hela": cycle > 4 * hours,
        f"not measured here, but taken over: {taken}": taken,
        **{words: name in off for name, words in _LINES.items()},
        f"what counts is training: {judge}": True,
    }
    return [words for words, holds in rules.items() if holds]
