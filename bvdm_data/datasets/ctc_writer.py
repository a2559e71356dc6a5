"""Writing one annotated video as a folder of the Cell Tracking Challenge."""

import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bvdm_data.datasets.tiff import write_image
from bvdm_data.datasets.track_table import check_same_ids, check_track_table, write_track_table


def write_sequence(
    root: str | Path,
    name: str,
    video: npt.NDArray[np.uint16],
    masks: npt.NDArray[np.integer],
    tracks: npt.NDArray[np.integer],
) -> None:
    """Write a video with its truth in the layout of the Cell Tracking Challenge.

    Makes ``<name>/t000.tif``, ``<name>_GT/SEG/man_seg000.tif``, ``<name>_GT/TRA/man_track000.tif``
    for each frame and ``<name>_GT/TRA/man_track.txt``; numbers have four digits when there are more
    than 1000 frames. All is written under the hidden name ``.<name>.writing`` and then moved into
    place, the raw video last: where the folder ``<name>`` exists, the rest is whole. What a killed
    writer has left behind is replaced by the next one.

    Args:
        root: Folder of the data set; made if it is not there.
        name: Name of the sequence, two or more digits, for example ``"01"``.
        video: Counts of the camera, ``[F, H, W]`` uint16.
        masks: Ids of the tracks, 0 in the background, ``[F, H, W]``, at most 65535.
        tracks: Id, first frame, last frame and parent id (0: none), ``[n, 4]``; rows of zeros are
            left out. Each track must be visible in masks from its first to its last frame.

    Raises:
        FileExistsError: If the sequence or its truth is there already.
        OSError: If the disk is full or the folder cannot be written; nothing is left behind.
        TypeError: If video is not uint16, or masks or tracks are not integers.
        ValueError: If name or a shape is wrong, or masks and tracks do not agree.
    """
    table = _checked(name, video, masks, tracks)
    folder = Path(root)
    staging = folder / f".{name}.writing"
    _clear_place(folder, name, staging)
    try:
        _write_files(staging, name, video, masks.astype(np.uint16), table)
        _move_into_place(staging, folder, name)
    except OSError as error:
        place = folder / name
        raise OSError(error.errno, f"could not write the sequence {place}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_complete(root: str | Path, name: str) -> bool:
    """Tell whether a sequence is there with a mask and a marker for each frame and its tracks.

    Args:
        root: Folder of the data set.
        name: Name of the sequence, for example ``"01"``.

    Returns:
        True if so; the images are counted, not opened.
    """
    folder, truth = Path(root) / name, Path(root) / f"{name}_GT"
    frames = len(list(folder.glob("t*.tif")))
    masks = len(list(truth.glob("SEG/man_seg*.tif")))
    markers = len(list(truth.glob("TRA/man_track*.tif")))
    return 0 < frames == masks == markers and (truth / "TRA" / "man_track.txt").is_file()


def _checked(
    name: str,
    video: npt.NDArray[np.uint16],
    masks: npt.NDArray[np.integer],
    tracks: npt.NDArray[np.integer],
) -> npt.NDArray[np.int32]:
    """Check the arguments of :func:`write_sequence`; return the table without padding."""
    if not isinstance(name, str) or not re.fullmatch(r"\d{2,}", name):
        raise ValueError(f'name must be two or more digits, like "01", got {name!r}')
    if video.dtype != np.uint16:
        raise TypeError(f"video must hold uint16 counts, got {video.dtype}; see CameraScale")
    if video.ndim != 3 or 0 in video.shape:
        raise ValueError(f"video must be [F, H, W] and not empty, got the shape {video.shape}")
    if not np.issubdtype(masks.dtype, np.integer):
        raise TypeError(f"masks must hold integers, got the dtype {masks.dtype}")
    if masks.shape != video.shape:
        raise ValueError(f"masks must have the shape of video, {video.shape}, got {masks.shape}")
    if masks.min() < 0 or masks.max() > 65535:
        raise ValueError(f"masks must hold ids from 0 to 65535, got {masks.min()} to {masks.max()}")
    table = check_track_table(tracks, len(video))
    check_same_ids(masks, table)
    return table


def _clear_place(folder: Path, name: str, staging: Path) -> None:
    """Remove what a killed writer has left; refuse to replace anything else."""
    truth = folder / f"{name}_GT"
    # Moved by a writer that was killed before it could move the raw video.
    if (staging / name).is_dir() and not (staging / truth.name).exists():
        shutil.rmtree(truth, ignore_errors=True)
    shutil.rmtree(staging, ignore_errors=True)
    for path in (folder / name, truth):
        if path.exists():
            raise FileExistsError(
                f"{path} is there already; remove it or give another name than {name!r}"
            )


def _write_files(
    staging: Path,
    name: str,
    video: npt.NDArray[np.uint16],
    masks: npt.NDArray[np.uint16],
    table: npt.NDArray[np.int32],
) -> None:
    truth = staging / f"{name}_GT"
    # The raw folder comes last: where it is there without the truth, the truth has been moved.
    for folder in (truth / "SEG", truth / "TRA", staging / name):
        folder.mkdir(parents=True)
    digits = max(3, len(str(len(video) - 1)))
    for number, (frame, mask) in enumerate(zip(video, masks, strict=True)):
        write_image(staging / name / f"t{number:0{digits}d}.tif", frame)
        write_image(truth / "SEG" / f"man_seg{number:0{digits}d}.tif", mask)
        write_image(truth / "TRA" / f"man_track{number:0{digits}d}.tif", mask)
    write_track_table(truth / "TRA" / "man_track.txt", table)


def _move_into_place(staging: Path, folder: Path, name: str) -> None:
    truth = folder / f"{name}_GT"
    (staging / truth.name).rename(truth)
    try:
        (staging / name).rename(folder / name)
    except BaseException:  # Ctrl-C, too: half a sequence must not stay
        shutil.rmtree(truth, ignore_errors=True)
        raise
