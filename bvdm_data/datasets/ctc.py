"""Videos of the Cell Tracking Challenge: read lazily, and written in its layout."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import CameraScale
from bvdm_data.datasets.tiff import LazyTiff, read_image, read_image_shape, write_image
from bvdm_data.datasets.tracks import (
    LARGEST_ID,
    check_ids_match,
    check_labels_in_tracks,
    check_track_table,
    list_alive,
    match_masks_to_markers,
    read_track_table,
)
from bvdm_data.files import write_through

__all__ = ["TRUTHS", "CTCSequence", "guess_scale", "is_complete", "read_sequence", "write_sequence"]

TRUTHS = ("auto", "ST", "GT", "TRA", None)
"""What the masks of a sequence may be read from."""

UNTRACKED_PER_FRAME = 1000
"""Ids that are kept free in every frame for masks that belong to no track."""

_LAYOUT = (
    "01/t000.tif, 01/t001.tif, ... with 01_ST/SEG/man_seg000.tif, ... or 01_GT/SEG/man_seg000.tif, "
    "... or 01_GT/TRA/man_track000.tif, ... and 01_GT/TRA/man_track.txt"
)
_OFFSETS = (32768, 0)
_RANGES = (255, 1023, 4095, 16383, 65535)

_Table = npt.NDArray[np.int32]
_Labels = npt.NDArray[np.int32]


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
    """
    table = _check_sequence(name, video, masks, tracks)
    folder, truth_name = Path(root), f"{name}_GT"
    staging = folder / f".{name}.writing"
    # The truth has been moved by a writer that was killed before it could move the raw video.
    if (staging / name).is_dir() and not (staging / truth_name).exists():
        shutil.rmtree(folder / truth_name, ignore_errors=True)
    shutil.rmtree(staging, ignore_errors=True)
    for path in (folder / name, folder / truth_name):
        if path.exists():
            raise FileExistsError(
                f"{path} is there already; remove it or give another name than {name!r}"
            )
    try:
        _write_files(staging / name, staging / truth_name, video, masks.astype(np.uint16), table)
        write_through(staging)
        (staging / truth_name).rename(folder / truth_name)
        try:
            (staging / name).rename(folder / name)
        except BaseException:  # Ctrl-C, too: half a sequence must not stay
            shutil.rmtree(folder / truth_name, ignore_errors=True)
            raise
    except OSError as error:
        place = folder / name
        raise OSError(error.errno, f"could not write the sequence {place}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_complete(root: str | Path, name: str) -> bool:
    """Return whether a sequence is there with a mask and a marker for each frame and its tracks."""
    folder, truth = Path(root) / name, Path(root) / f"{name}_GT"
    frames = len(list(folder.glob("t*.tif")))
    masks = len(list(truth.glob("SEG/man_seg*.tif")))
    markers = len(list(truth.glob("TRA/man_track*.tif")))
    return 0 < frames == masks == markers and (truth / "TRA" / "man_track.txt").is_file()


def _check_sequence(
    name: str,
    video: npt.NDArray[np.uint16],
    masks: npt.NDArray[np.integer],
    tracks: npt.NDArray[np.integer],
) -> _Table:
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
    check_ids_match(masks, table)
    return table


def _write_files(
    raw: Path,
    truth: Path,
    video: npt.NDArray[np.uint16],
    masks: npt.NDArray[np.uint16],
    table: _Table,
) -> None:
    # The raw folder comes last: where it is there without the truth, the truth has been moved.
    for folder in (truth / "SEG", truth / "TRA", raw):
        folder.mkdir(parents=True)
    digits = max(3, len(str(len(video) - 1)))
    for number, (frame, mask) in enumerate(zip(video, masks, strict=True)):
        write_image(raw / f"t{number:0{digits}d}.tif", frame)
        write_image(truth / "SEG" / f"man_seg{number:0{digits}d}.tif", mask)
        write_image(truth / "TRA" / f"man_track{number:0{digits}d}.tif", mask)
    np.savetxt(truth / "TRA" / "man_track.txt", table, fmt="%d")


@dataclass(frozen=True, eq=False)
class CTCSequence:
    """One video with its truth; made by :func:`read_sequence`.

    Only names of files are kept. Images are read, and checked, when they are asked for.

    Attributes:
        folder: The data set's folder, for example ``Fluo-N2DL-HeLa``.
        name: Name of the sequence, for example ``"01"``.
        truth: Where the masks are from: ``"ST"``, ``"GT"``, ``"TRA"`` or None.
        numbers: Numbers of the frames, ascending and without a gap.
        shape: Height and width in pixels.
        tracks: Id, first frame, last frame and parent id (0: none), ``[n, 4]`` int32; empty where
            there is no ``man_track.txt``.
        frame_names: Path of each frame in folder, by number.
        mask_names: Path of each mask in folder, by number; some frames may have none.
        marker_names: Path of each tracking mask in folder, by number; some frames may have none.
    """

    folder: Path
    name: str
    truth: str | None
    numbers: tuple[int, ...]
    shape: tuple[int, int]
    tracks: _Table = field(repr=False)
    frame_names: Mapping[int, str] = field(repr=False)
    mask_names: Mapping[int, str] = field(repr=False)
    marker_names: Mapping[int, str] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.numbers)

    def frame(self, number: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """Read one frame.

        Args:
            number: The frame's number, as in its file name.

        Returns:
            Counts of the camera, ``[H, W]`` uint8 or uint16.

        Raises:
            IndexError: If there is no frame of that number.
            ValueError: If the file is damaged or of another size or kind than the others.
        """
        image = self._read(self.frame_names[self._check_number(number)])
        _check_grey(self.folder / self.frame_names[number], image.dtype)
        return image  # type: ignore[return-value]  # the dtype is checked above

    def partial_frame(self, number: int) -> LazyTiff:
        """Open one frame of which only what is asked for gets decoded.

        Argument and errors are those of :meth:`frame`.
        """
        image = LazyTiff(self.folder / self.frame_names[self._check_number(number)])
        self._check_shape(image.path, image.shape)
        _check_grey(image.path, image.dtype)
        return image

    def masks(self, number: int) -> _Labels | None:
        """Read the masks of one frame.

        Masks of the segmentation truths ``"ST"`` and ``"GT"`` may carry labels that are not ids
        of tracks. Where the tracking truth has markers for the frame, each mask gets the id of the
        marker that it overlaps most, unless all labels agree with the markers already. A mask
        that belongs to no track gets an id above all ids of ``tracks``, and never the same one in
        two frames.

        Args:
            number: The frame's number, as in its file name.

        Returns:
            Ids of ``tracks``, 0 in the background, ``[H, W]`` int32; None where the truth has no
            masks for the frame. Without ``man_track.txt``, the labels of the file.

        Raises:
            IndexError: If there is no frame of that number.
            ValueError: If the file is damaged, of another size than the frames, has negative
                labels, or labels and tracks do not agree.
        """
        name = self.mask_names.get(self._check_number(number))
        if name is None:
            return None
        labels = self._read_labels(name)
        if not len(self.tracks):
            return labels
        alive = list_alive(self.tracks, number)
        marker_name = self.marker_names.get(number)
        if self.truth == "TRA" or marker_name is None:
            check_labels_in_tracks(labels, alive, self.truth == "TRA", self.folder / name)
            return labels
        markers = self._read_labels(marker_name)
        check_labels_in_tracks(markers, alive, True, self.folder / marker_name)
        top = int(self.tracks[:, 0].max())
        spare = top + 1 + UNTRACKED_PER_FRAME * (number - self.numbers[0])
        return match_masks_to_markers(labels, markers, alive, spare)

    def _check_number(self, number: int) -> int:
        if number not in self.frame_names:
            raise IndexError(
                f"number must be a frame of sequence {self.name!r}, from {self.numbers[0]} to "
                f"{self.numbers[-1]}, got {number!r}"
            )
        return number

    def _read(self, name: str) -> npt.NDArray[np.integer]:
        image = read_image(self.folder / name)
        self._check_shape(self.folder / name, image.shape)
        return image

    def _check_shape(self, path: Path, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise ValueError(
                f"{path} must have the size of the first frame, {self.shape} pixels, got {shape}"
            )

    def _read_labels(self, name: str) -> _Labels:
        labels = self._read(name)
        if labels.min() < 0 or labels.max() > LARGEST_ID:
            raise ValueError(
                f"{self.folder / name} must hold labels from 0 to {LARGEST_ID}, got "
                f"{labels.min()} to {labels.max()}"
            )
        return labels.astype(np.int32)


def read_sequence(root: str | Path, sequence: str, truth: str | None = "auto") -> CTCSequence:
    """Find the files of one video and its truth.

    Args:
        root: Folder of the data set, with ``01``, ``01_ST``, ``01_GT`` in it. Frames, masks and
            markers belong together by the number in their names.
        sequence: Name of the video's folder, for example ``"01"``.
        truth: Where the masks come from. ``"ST"``: silver truth; ``"GT"``: gold truth, often of a
            few frames only; ``"TRA"``: masks of the tracking truth, which are whole nuclei in some
            data sets and mere markers in others; None: no masks. ``"auto"``: the silver truth where
            there is one, else the gold truth where it covers all frames, else the tracking
            truth, else the gold truth of some frames.

    Returns:
        The sequence; no image but the header of the first frame has been read.

    Raises:
        FileNotFoundError: If the folder, the sequence, its frames or the truth are missing.
        TypeError: If sequence is not a string.
        ValueError: If truth is none of these, frame numbers have gaps, or ``man_track.txt`` is
            malformed.
    """
    if truth not in TRUTHS:
        raise ValueError(f"truth must be one of {TRUTHS}, got {truth!r}")
    folder = Path(root)
    frames = _find_frames(folder, sequence)
    markers = _list_files(folder, f"{sequence}_GT/TRA", "man_track")
    masks = {
        "ST": _list_files(folder, f"{sequence}_ST/SEG", "man_seg"),
        "GT": _list_files(folder, f"{sequence}_GT/SEG", "man_seg"),
        "TRA": markers,
    }
    source = truth
    if truth == "auto":
        complete = ["GT"] if masks["GT"].keys() >= frames.keys() else []
        source = next((one for one in ("ST", *complete, "TRA", "GT") if masks[one]), None)
    names = masks[source] if source else {}
    if truth is not None and not frames.keys() & names.keys():
        raise FileNotFoundError(
            f"no masks of truth={truth!r} for sequence {sequence!r} in {folder}; expected "
            f"{_LAYOUT}. Give truth=None to read the frames alone"
        )
    table = folder / f"{sequence}_GT/TRA/man_track.txt"
    tracks = read_track_table(table) if table.is_file() else np.zeros((0, 4), np.int32)
    shape = read_image_shape(folder / frames[min(frames)])
    return CTCSequence(
        folder=folder,
        name=sequence,
        truth=source,
        numbers=tuple(frames),
        shape=shape,
        tracks=tracks,
        frame_names=frames,
        mask_names=names,
        marker_names=markers,
    )


def guess_scale(sequence: CTCSequence) -> CameraScale:
    """Guess the camera's scale from the first, the middle and the last frame.

    The offset is 32768 where no count is smaller (signed numbers stored as unsigned ones), else 0.
    Full scale is the smallest range of 8, 10, 12, 14 or 16 bits above it that holds all counts.

    Args:
        sequence: The video.

    Returns:
        The scale; ``offset=32768, full=36863`` for Fluo-N2DL-HeLa.

    Raises:
        ValueError: If one of the frames cannot be read.
    """
    some = {sequence.numbers[place] for place in (0, len(sequence) // 2, -1)}
    images = [sequence.frame(number) for number in sorted(some)]
    low = min(int(image.min()) for image in images)
    high = max(int(image.max()) for image in images)
    offset = next(offset for offset in _OFFSETS if low >= offset)
    span = next(span for span in _RANGES if high - offset <= span)
    return CameraScale(offset, min(offset + span, int(np.iinfo(images[0].dtype).max)))


def _check_grey(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path} must be uint8 or uint16, got {dtype}")


def _find_frames(folder: Path, sequence: str) -> dict[int, str]:
    """Return the frames by ascending number; refuse a folder that is none of the challenge."""
    if not isinstance(sequence, str):
        raise TypeError(f'sequence must be the name of a folder, like "01", got {sequence!r}')
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; it should hold {_LAYOUT}")
    frames = _list_files(folder, sequence, "t")
    if not frames:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        there = [name for name in names if _list_files(folder, name, "t")]
        problem = "no frames (t000.tif, ...) in" if (folder / sequence).is_dir() else "no folder"
        raise FileNotFoundError(
            f"{problem} {folder / sequence}; sequences there: {there or 'none'}. The folder should "
            f"hold {_LAYOUT}"
        )
    missing = sorted(set(range(min(frames), max(frames))) - set(frames))
    if missing:
        raise ValueError(
            f"frames of {folder / sequence} must be numbered without a gap, got no frame "
            f"{missing[0]} between {min(frames)} and {max(frames)} ({len(missing)} missing)"
        )
    return frames


def _list_files(folder: Path, inner: str, prefix: str) -> dict[int, str]:
    """Return the files ``<prefix><number>.tif`` of a folder, by ascending number."""
    names: dict[int, str] = {}
    for path in sorted((folder / inner).glob(f"{prefix}*.tif")):
        match = re.fullmatch(rf"{prefix}(\d{{3,}})\.tif", path.name)
        if match and int(match[1]) in names:
            raise ValueError(
                f"{folder / inner} must hold one file a frame, got {path.name} and "
                f"{names[int(match[1])]}"
            )
        if match:
            names[int(match[1])] = f"{inner}/{path.name}"
    return dict(sorted(names.items()))
