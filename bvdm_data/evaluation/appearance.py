"""Looks: how synthetic clips look beside the real videos, by networks, by numbers, by eye."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bvdm_data.clip import Clip, pad_rows, split_gaps
from bvdm_data.datasets.ctc import guess_scale, read_sequence
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos, as_method
from bvdm_data.evaluation.arms import (
    ANNOTATIONS,
    Data,
    count_real_clips,
    describe_synthetic,
    make_pasted_clips,
    make_synthetic_clips,
    make_synthetic_dataset,
)
from bvdm_data.evaluation.clip_cache import CachedClips, cache_clips
from bvdm_data.evaluation.distances import (
    CROP,
    TILE,
    Clips,
    FeatureDistance,
    load_efficientnet_lite0,
    measure_feature_distance,
    measure_tile_distance,
)
from bvdm_data.evaluation.realism import MetricComparison, compare_metrics, measure_clips
from bvdm_data.evaluation.training_value import Budget, Say
from bvdm_data.fitting.nuclei import extract_crops
from bvdm_data.fitting.stages import assign_stages
from bvdm_data.fitting.video import Video, read_video
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.viz.pictures import write_contact_sheet

MOST_NUCLEI = 10_000
"""Rows of the tables of a whole film."""


def load_full_video(data: Data, sequence: str, *, stop: int | None = None) -> Clip:
    """Read a whole real video, less the border band, with the stages that a rule assigns.

    The rule is the one that a model is fitted with, :func:`assign_stages`; a nucleus whose stage
    it does not know has -1.
    """
    source = read_sequence(data.root, sequence)
    video = read_video(source, guess_scale(source), stop=stop, progress=data.progress)
    crops = extract_crops(video)
    assigned = assign_stages(crops, video.tracks)
    known = {
        (int(track), int(frame)): int(stage)
        for track, frame, stage in zip(crops.track, crops.frame, assigned, strict=True)
    }
    down, right = (slice(data.border, side - data.border) for side in source.shape)
    masks = np.stack([frame.masks[down, right] for frame in video.frames])
    grey = np.stack([frame.grey[down, right] for frame in video.frames])
    parents = {int(row[0]): int(row[3]) for row in video.tracks}
    renamed, tracks, old = split_gaps(masks, parents)
    return Clip(
        video=torch.from_numpy(grey)[:, None],
        masks=torch.from_numpy(renamed),
        tracks=torch.from_numpy(tracks),
        stages=pad_rows(_stages(video, tracks, old, known), len(tracks), -1),
        index=torch.tensor(0),
        source=torch.tensor(0, dtype=torch.int8),
    )


def _stages(
    video: Video,
    tracks: "np.typing.NDArray[np.int32]",
    old: "np.typing.NDArray[np.int64]",
    known: dict[tuple[int, int], int],
) -> "np.typing.NDArray[np.int8]":
    stages = np.full((len(tracks), len(video.frames)), -1, np.int8)
    numbers = [frame.number for frame in video.frames]
    for row, ((_, first, last, _), former) in enumerate(zip(tracks.tolist(), old, strict=True)):
        for moment in range(first, last + 1):
            stages[row, moment] = known.get((int(former), numbers[moment]), -1)
    return stages


def make_full_videos(data: Data, count: int, *, frames: int, size: tuple[int, int]) -> CachedClips:
    """Make synthetic films as long and as large as a real one, and keep them."""
    videos = SyntheticHeLaVideos(
        frames=frames,
        size=size,
        seed=data.seed,
        model=data.model,
        method=data.method,
        annotations=(*ANNOTATIONS, "stages"),
        variation=data.variation,
        max_cells=MOST_NUCLEI,
    )
    return cache_clips(
        videos,
        count,
        data.folder / "clips",
        settings=describe_synthetic(videos),
        probe=make_synthetic_dataset(data),
        progress=data.progress,
    )


FILM_SHARE = 2
"""A film of the paper's method is as long as the real one, but each side of it is one half: a
quarter of the cost."""

FILMS = 3
"""Films of the other methods, measured as one: nuclei live long, so one film shows few of them."""

PASTED = 200
"""Stills of the copy-paste arm that are looked at."""

_METHODS = ("paper", "procedural")


def evaluate_distance(data: Data, names: Sequence[str], budget: Budget, say: Say) -> dict[str, Any]:
    """Measure the picture distance of synthetic clips to the training video (paper, table 1).

    Clips are made without variation, since that is meant to leave the video.
    """
    data = replace(data, variation=0.0)
    reference = load_full_video(data, data.train, stop=data.stop)
    sets = _sets(data, names, budget.clips)
    features = load_efficientnet_lite0()
    crops = measure_feature_distance(sets, reference, count=budget.crops, features=features)
    side = min(TILE, *data.size)
    tiles = measure_tile_distance(sets, reference, count=budget.tiles, features=features, size=side)
    for kind, rows in (("crops", crops), ("tiles", tiles)):
        for row in rows:
            say(_said(kind, row))
    note = (
        f"{budget.crops} crops of {CROP} x {CROP} around nuclei and {budget.tiles} tiles of {side} "
        f"x {side} of each set, against as many of video {data.train}."
    )
    return {
        "crops": [asdict(row) for row in crops],
        "tiles": [asdict(row) for row in tiles],
        "note": note,
    }


def evaluate_realism(data: Data, say: Say) -> dict[str, Any]:
    """Lay synthetic films, the training video and the held-out video side by side.

    The films are made without variation, since that is meant to leave the video.
    """
    data = replace(data, variation=0.0)
    reference = load_full_video(data, data.train, stop=data.stop)
    other = load_full_video(data, data.test, stop=data.test_stop)
    slow = isinstance(as_method(data.method), PaperSettings)
    share, count = (FILM_SHARE, 1) if slow else (1, FILMS)
    height, width = (side // share for side in reference["masks"].shape[1:])
    films = make_full_videos(data, count, frames=len(reference["video"]), size=(height, width))
    made = [films[number] for number in range(count)]
    lines = compare_metrics(measure_clips(made), measure_clips(reference), measure_clips(other))
    for line in lines:
        say(_line(line))
    return {"lines": [asdict(line) for line in lines], "synthetic_films": count}


def write_pictures(data: Data, folder: Path) -> dict[str, Path]:
    """Write a sheet of real, held-out and synthetic frames at one grey scale."""
    data = replace(data, variation=0.0)
    clips: dict[str, Clip] = {}
    for number in (data.train, data.test):
        video = CTCVideos(
            data.root, sequence=number, frames=data.frames, size=data.size, border=data.border
        )
        clips[f"real {number}"] = video.clip(3)
    synthetic = make_synthetic_clips(data, 2)
    clips["synthetic a"], clips["synthetic b"] = synthetic[0], synthetic[1]
    sheet = folder / "scenes.png"
    write_contact_sheet(clips, sheet, frames=range(0, data.frames, 2))
    return {"Real and synthetic clips at the same grey scale, every second frame": sheet}


def _sets(data: Data, names: Sequence[str], clips: int | None) -> dict[str, Clip | Clips]:
    count = count_real_clips(data) if clips is None else clips
    sets: dict[str, Clip | Clips] = {
        f"real {data.test}": load_full_video(data, data.test, stop=data.test_stop),
        "synthetic": make_synthetic_clips(data, count),
    }
    for name in names:
        if name in _METHODS:
            sets[name] = make_synthetic_clips(replace(data, method=name), count)
        if name == "copy-paste":
            pasted = make_pasted_clips(data)
            sets[name] = [pasted.clip(number) for number in range(PASTED)]
    return sets


def _said(kind: str, row: FeatureDistance) -> str:
    error = "" if math.isnan(row.kernel.error) else f" +- {row.kernel.error:.1f}"
    return (
        f"{kind:>6}  {row.name:>12}  KID-{row.features} x 1000 {row.kernel.value:8.1f}{error}  "
        f"FD-{row.features} {row.frechet:7.1f}  n {row.count}"
    )


def _line(line: MetricComparison) -> str:
    def number(value: float | None) -> str:
        return f"{value:9.3f}" if value is not None else "        -"

    films = (line.synthetic, line.reference, line.other)
    return (
        f"{line.name:>40}  {'  '.join(number(film.median) for film in films)}  distance "
        f"{number(line.distance)}  yardstick {number(line.yardstick)}  ratio {number(line.ratio)}"
    )
