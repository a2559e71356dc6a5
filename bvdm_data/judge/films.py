"""Films: whole real videos, with stages, and synthetic ones of the same size beside them."""

import numpy as np
import torch

from bvdm_data.clip import Clip, padded, unbroken_tracks
from bvdm_data.datasets.ctc import guess_scale, read_sequence
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation.clip_store import StoredClips, keep_clips
from bvdm_data.fitting.crops import cut_nuclei
from bvdm_data.fitting.stages import assign_stages
from bvdm_data.fitting.video import Video, read_video
from bvdm_data.judge.arms import ANNOTATIONS, Data, synthetic_settings, synthetic_videos

MOST_NUCLEI = 10_000
"""Rows of the tables of a whole film."""


def real_film(data: Data, sequence: str, *, stop: int | None = None) -> Clip:
    """Read a whole real video, less the border band, with the stages that a rule assigns.

    The rule is the one that a model is fitted with, :func:`assign_stages`; a nucleus whose stage
    it does not know has -1.

    Args:
        data: What is judged.
        sequence: Name of the video.
        stop: Frame number after the last one; None: all.

    Returns:
        One clip of all frames: ``video``, ``masks``, ``tracks``, ``stages``.
    """
    source = read_sequence(data.root, sequence)
    video = read_video(source, guess_scale(source), stop=stop, progress=data.progress)
    crops = cut_nuclei(video)
    assigned = assign_stages(crops, video.tracks)
    known = {
        (int(track), int(frame)): int(stage)
        for track, frame, stage in zip(crops.track, crops.frame, assigned, strict=True)
    }
    down, right = (slice(data.border, side - data.border) for side in source.shape)
    masks = np.stack([frame.masks[down, right] for frame in video.frames])
    grey = np.stack([frame.grey[down, right] for frame in video.frames])
    parents = {int(row[0]): int(row[3]) for row in video.tracks}
    renamed, tracks, old = unbroken_tracks(masks, parents)
    return Clip(
        video=torch.from_numpy(grey)[:, None],
        masks=torch.from_numpy(renamed),
        tracks=torch.from_numpy(tracks),
        stages=padded(_stages(video, tracks, old, known), len(tracks), -1),
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


def synthetic_films(data: Data, count: int, *, frames: int, size: tuple[int, int]) -> StoredClips:
    """Make synthetic films as long and as large as a real one, and keep them.

    Args:
        data: What is judged.
        count: How many.
        frames: Length.
        size: Height and width, px.

    Returns:
        A store of so many clips.
    """
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
    return keep_clips(
        videos,
        count,
        data.folder / "clips",
        settings=synthetic_settings(videos),
        probe=synthetic_videos(data),
        progress=data.progress,
    )
