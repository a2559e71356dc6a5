"""Motion: measures steps, turns, separations and density from the tracks of the video."""

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.shapes import orientation
from bvdm_data.fitting.stages import INTERPHASE, appearance, daughters_of
from bvdm_data.fitting.video import Video
from bvdm_data.synth.motion import MotionModel

ELONGATED = 1.4
"""Ratio of axes from which the direction of a nucleus' major axis can be told (our choice)."""

_LARGEST_TURN = math.pi / 4


def fit_motion(
    video: Video, crops: Crops, stages: npt.NDArray[np.int8], *, border: int
) -> MotionModel:
    """Measure how nuclei move.

    Args:
        video: The annotated video.
        crops: Nuclei cut out of it.
        stages: Their stages.
        border: Width in pixels of the band at the frame's edge without complete truth.

    Returns:
        The model.

    Raises:
        ValueError: If too few nuclei can be followed.
    """
    here = np.flatnonzero(stages == INTERPHASE)
    place = {(int(crops.track[i]), int(crops.frame[i])): i for i in here}
    pairs = [(i, place[t, f + 1]) for (t, f), i in place.items() if (t, f + 1) in place]
    if len(pairs) < 10:
        raise ValueError(
            "the video must show nuclei in consecutive frames to fit motion, got "
            f"{len(pairs)} such pairs"
        )
    first, second = np.array(pairs).T
    steps = (crops.centre[second] - crops.centre[first]).astype(float).ravel()
    freedom, _, scale = stats.t.fit(steps[np.isfinite(steps)], floc=0)
    return MotionModel(
        step=np.array([scale, max(freedom, 1.5)]),
        turn=_turn(crops, first, second),
        separation=_separation(crops, video.tracks),
        density=_density(video, border),
    )


def _turn(crops: Crops, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Robust deviation of the turn of elongated nuclei from frame to frame, radians."""
    long = appearance(crops).aspect >= ELONGATED
    chosen = [(a, b) for a, b in zip(first, second, strict=True) if long[a] and long[b]]
    if not chosen:
        return 0.0
    turns = np.array([orientation(crops.masks[b]) - orientation(crops.masks[a]) for a, b in chosen])
    turns = (turns + math.pi / 2) % math.pi - math.pi / 2
    turns = turns[np.abs(turns) < _LARGEST_TURN]
    return float(1.4826 * np.median(np.abs(turns)))


def _separation(crops: Crops, tracks: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Mean and deviation of the log distance of daughters in their first frame."""
    birth = dict(zip(tracks[:, 0].tolist(), tracks[:, 1].tolist(), strict=True))
    distances = []
    for daughters in daughters_of(tracks).values():
        rows = [
            np.flatnonzero((crops.track == d) & (crops.frame == birth[d])) for d in daughters[:2]
        ]
        if all(len(row) == 1 for row in rows):
            apart = crops.centre[rows[0][0]] - crops.centre[rows[1][0]]
            distances.append(math.log(max(float(np.hypot(*apart)), 1.0)))
    if not distances:
        return np.array([math.log(15.0), 0.2])
    return np.array([np.mean(distances), np.std(distances)])


def _density(video: Video, border: int) -> npt.NDArray[np.float64]:
    """Nuclei for each pixel of the field of interest, in every frame."""
    found = []
    for frame in video.frames:
        height, width = frame.masks.shape
        labels = np.unique(frame.masks)
        centres = ndimage.center_of_mass(frame.masks > 0, frame.masks, labels[labels > 0])
        y, x = np.array(centres).T
        inside = (y >= border) & (y < height - border) & (x >= border) & (x < width - border)
        found.append(inside.sum() / ((height - 2 * border) * (width - 2 * border)))
    return np.array(found)
