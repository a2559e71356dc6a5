"""Video: the annotated frames that everything is fitted to, with the background found."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from tqdm import tqdm

from bvdm_data.camera_scale import CameraScale
from bvdm_data.datasets.ctc import CTCSequence


@dataclass(frozen=True)
class Frame:
    """One frame of the fitted video.

    Attributes:
        number: Frame number.
        grey: Picture in [0, 1], ``[H, W]`` float32.
        masks: Track ids, ``[H, W]`` int32.
        background: Smooth background light, ``[H, W]`` float32.
    """

    number: int
    grey: npt.NDArray[np.float32]
    masks: npt.NDArray[np.int32]
    background: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Video:
    """An annotated video.

    Attributes:
        frames: Its frames in order.
        tracks: Id, first frame, last frame, parent, ``[n, 4]``.
        scale: How counts became grey values.
    """

    frames: tuple[Frame, ...]
    tracks: npt.NDArray[np.int32]
    scale: CameraScale


class TooLittleVideoError(ValueError):
    """A video shows too little to fit a model to: too few frames or divisions."""


def read_video(
    sequence: CTCSequence, scale: CameraScale, *, stop: int | None = None, progress: bool = True
) -> Video:
    """Read the frames that have masks.

    Args:
        sequence: An annotated sequence.
        scale: How counts become grey values.
        stop: Frame number after the last one that is used; None: to the end.
        progress: Show a progress bar.

    Returns:
        The video.

    Raises:
        TooLittleVideoError: If fewer than two frames have masks.
        ValueError: If there are no tracks.
    """
    if not len(sequence.tracks):
        raise ValueError(
            f"sequence {sequence.name!r} of {sequence.folder} has no man_track.txt: lives and "
            "divisions cannot be fitted without tracks"
        )
    frames = []
    numbers = [n for n in sequence.numbers if stop is None or n < stop]
    for number in tqdm(numbers, desc="reading", disable=not progress):
        masks = sequence.masks(number)
        if masks is not None and masks.any():
            grey = scale.to_grey(sequence.frame(number))
            frames.append(Frame(number, grey, masks, background_light(grey, masks)))
    if len(frames) < 2:
        before = "" if stop is None else f" before stop={stop}"
        raise TooLittleVideoError(
            f"sequence {sequence.name!r} of {sequence.folder} must have masks in at least 2 frames "
            f"to fit shapes and motion, got {len(frames)}{before}; give a longer video or another "
            "truth"
        )
    return Video(tuple(frames), _tracks_before(sequence.tracks, stop), scale)


def _tracks_before(tracks: npt.NDArray[np.int32], stop: int | None) -> npt.NDArray[np.int32]:
    """Cut the lineage where the video is cut, so that nothing is known of what comes later."""
    if stop is None:
        return tracks
    known = tracks[tracks[:, 1] < stop]
    known[:, 2] = np.minimum(known[:, 2], stop - 1)
    return known


def empty_places(
    grey: npt.NDArray[np.float32], masks: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """Find the pixels that show background and nothing else.

    Args:
        grey: A frame, ``[H, W]``.
        masks: Its nuclei.

    Returns:
        True at least 7 px off every outline, where the halo of the microscope's blur is gone, and
        where no unlabelled nucleus (the truth has them at the border) is bright; ``[H, W]``.
    """
    free: npt.NDArray[np.bool_] = ~ndimage.binary_dilation(masks > 0, iterations=7)
    if not free.any():
        free = masks == 0
    middle = np.median(grey[free])
    spread = 1.4826 * np.median(np.abs(grey[free] - middle))
    return free & (grey < middle + 4 * max(float(spread), 1e-6))


def background_light(
    grey: npt.NDArray[np.float32], masks: npt.NDArray[np.int32], *, width: float = 32.0
) -> npt.NDArray[np.float32]:
    """Estimate the background under the nuclei by a Gaussian mean of what lies between them.

    Args:
        grey: A frame, ``[H, W]``.
        masks: Its nuclei.
        width: Standard deviation of the Gaussian in pixels (our choice: wider than a nucleus).

    Returns:
        The background, ``[H, W]``, of the same unit as grey.
    """
    free = empty_places(grey, masks)
    middle = np.median(grey[free])
    weight = ndimage.gaussian_filter(free.astype(np.float32), width, truncate=3)
    total = ndimage.gaussian_filter(np.where(free, grey, 0), width, truncate=3)
    found: npt.NDArray[np.float32] = np.where(
        weight > 1e-3, total / np.maximum(weight, 1e-3), middle
    ).astype(np.float32)
    return found
