"""Videos of the Cell Tracking Challenge: read lazily, and written in its layout."""

import re
import reprlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import CameraScale
from bvdm_data.datasets.ctc_files import LAYOUT, TABLE, find_frames, find_masks, list_numbered
from bvdm_data.datasets.tiff import LazyTiff, keep_background, read_image, write_images
from bvdm_data.datasets.tracks import (
    LARGEST_ID,
    check_ids_match,
    check_labels_in_tracks,
    check_track_table,
    cut_tracks,
    list_alive,
    match_masks_to_markers,
    read_track_table,
)
from bvdm_data.files import write_through

__all__ = ["TRUTHS", "CTCSequence", "guess_scale", "is_complete", "read_sequence", "write_sequence"]

TRUTHS = ("auto", "ST", "GT", "TRA", None)  # what the masks of a sequence may be read from
# Ids that are kept free in every frame for masks that belong to no track.
UNTRACKED_PER_FRAME = 1000
_OFFSETS = (32768, 0)
_RANGES = (255, 1023, 4095, 16383, 65535)

_Dtype = np.dtype[Any]
_Ints = npt.NDArray[np.integer]
_Table = npt.NDArray[np.int32]
_Labels = npt.NDArray[np.int32]


def write_sequence(
    root: str | Path,
    name: str,
    video: npt.NDArray[np.integer],
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
        name: Name of the video, two or more digits.
        video: Counts of the camera, ``[F, H, W]`` uint8 or uint16.
        masks: Ids of ``tracks`` from 1 to 65535, 0 in the background, ``[F, H, W]``, any integers;
            one pixel of the largest nucleus becomes background where there is none.
        tracks: Id, first frame, last frame and parent id (0: none), ``[n, 4]``, any integers; rows
            of zeros are left out, ``np.zeros((0, 4), int)`` for a video without nuclei.

    Raises:
        FileExistsError: If there is a video of that name.
        OSError: If a file cannot be written.
        TypeError: If one is no array or of another dtype.
        ValueError: If name is another, shapes differ, or masks and tracks do not agree.
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
        # The raw folder comes last: where it is there without the truth, the truth was moved.
        labels = [keep_background(mask) for mask in masks.astype(np.uint16)]
        write_images(staging / truth_name / "SEG", "man_seg", labels)
        write_images(staging / truth_name / "TRA", "man_track", labels)
        np.savetxt(staging / truth_name / "TRA" / TABLE, table, fmt="%d")
        write_images(staging / name, "t", video)
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
    folder, truth = Path(root), f"{name}_GT"
    places = (name, "t"), (f"{truth}/SEG", "man_seg"), (f"{truth}/TRA", "man_track")
    frames, masks, markers = (list_numbered(folder, *place)[0].keys() for place in places)
    has_table = (folder / truth / "TRA" / TABLE).is_file()
    return has_table and frames == masks == markers and len(frames) > 0


def _check_sequence(name: str, video: _Ints, masks: _Ints, tracks: _Ints) -> _Table:
    """Check the arguments of :func:`write_sequence`; return the table without padding."""
    for kind, value in (("video", video), ("masks", masks)):
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{kind} must be a NumPy array [F, H, W], got {reprlib.repr(value)}")
    if not isinstance(name, str) or not re.fullmatch(r"\d{2,}", name):
        raise ValueError(f'name must be two or more digits, like "01", got {name!r}')
    if video.dtype not in (np.uint8, np.uint16):
        raise TypeError(
            f"video must hold uint8 or uint16 counts, got {video.dtype}; see CameraScale"
        )
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
        dtype: Of the frames, uint8 or uint16.
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
    dtype: _Dtype
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
        path = self.folder / self.frame_names[self._check_number(number)]
        image = read_image(path)
        self._check_frame(path, image.shape, image.dtype)
        return image  # type: ignore[return-value]  # the dtype is checked above

    def partial_frame(self, number: int) -> LazyTiff:
        """Open one frame of which only what is asked for gets decoded.

        Argument and errors are those of :meth:`frame`.
        """
        image = LazyTiff(self.folder / self.frame_names[self._check_number(number)])
        self._check_frame(image.path, image.shape, image.dtype)
        return image

    def cut(self, start: int = 0, stop: int | None = None) -> "CTCSequence":
        """Return the video as if it had no frames but those from start to before stop.

        Parents that are in none of these frames are 0.

        Args:
            start: Number of the first frame.
            stop: Number after that of the last frame; None: to the end.

        Raises:
            ValueError: If that leaves no frame.
        """
        stop = self.numbers[-1] + 1 if stop is None else stop
        numbers = tuple(number for number in self.numbers if start <= number < stop)
        if not numbers:
            raise ValueError(
                f"start and stop must leave a frame of {self.numbers[0]} to {self.numbers[-1]} of "
                f"sequence {self.name!r}, got start={start} and stop={stop}"
            )
        frames, masks, markers = (
            {number: name for number, name in names.items() if start <= number < stop}
            for names in (self.frame_names, self.mask_names, self.marker_names)
        )
        return replace(
            self,
            numbers=numbers,
            tracks=cut_tracks(self.tracks, start, stop),
            frame_names=frames,
            mask_names=masks,
            marker_names=markers,
        )

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
        tracked = match_masks_to_markers(labels, markers, alive, spare)
        if tracked.max() >= spare + UNTRACKED_PER_FRAME:
            raise ValueError(
                f"{self.folder / name} must have at most {UNTRACKED_PER_FRAME} masks without a "
                f"marker, got {tracked.max() - spare + 1}; add markers, or give truth='TRA'"
            )
        return tracked

    def _find_range(self) -> tuple[int, int]:
        """Return the lowest and the highest count of all frames; 0 and 255 where they are uint8."""
        lows, highs = {}, []
        for name in self.frame_names.values():
            path = self.folder / name
            state = path.stat()
            lows[path], high, shape, dtype = _measure_frame(
                path, (state.st_size, state.st_mtime_ns)
            )
            self._check_frame(path, shape, dtype)
            highs.append(high)
        darkest = min(lows, key=lows.__getitem__)
        if lows[darkest] < _OFFSETS[0] <= np.median([*lows.values()]):
            raise ValueError(
                f"{darkest} must have no counts below {_OFFSETS[0]}, as most frames of the video, "
                f"got {lows[darkest]}; mend it, leave it out, or give scale"
            )
        return lows[darkest], max(highs)

    def _check_number(self, number: int) -> int:
        if number not in self.frame_names:
            raise IndexError(
                f"number must be a frame of sequence {self.name!r}, from {self.numbers[0]} to "
                f"{self.numbers[-1]}, got {number!r}"
            )
        return number

    def _check_frame(self, path: Path, shape: tuple[int, ...], dtype: _Dtype) -> None:
        self._check_shape(path, shape)
        if dtype not in (np.uint8, np.uint16):
            change = "add 32768" if dtype == np.int16 else "scale the counts to 0 to 65535"
            raise ValueError(
                f"{path} must be uint8 or uint16, got {dtype}; {change} and save all as uint16"
            )
        if dtype != self.dtype:
            raise ValueError(
                f"{path} must be {self.dtype} as the first frame, "
                f"{self.frame_names[self.numbers[0]]}, got {dtype}; save all frames in one dtype"
            )

    def _check_shape(self, path: Path, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise ValueError(
                f"{path} must have the size of the first frame, {self.shape} pixels, got {shape}; "
                "crop all frames and masks to one size"
            )

    def _read_labels(self, name: str) -> _Labels:
        labels = read_image(self.folder / name)
        self._check_shape(self.folder / name, labels.shape)
        if labels.min() < 0 or labels.max() > LARGEST_ID:
            raise ValueError(
                f"{self.folder / name} must hold labels from 0 to {LARGEST_ID}, got "
                f"{labels.min()} to {labels.max()}; renumber them, with 0 for the background"
            )
        return labels.astype(np.int32)


def read_sequence(root: str | Path, sequence: str, truth: str | None = "auto") -> CTCSequence:
    """Find the files of one video and its truth.

    Args:
        root: Folder of the data set, with ``01``, ``01_ST``, ``01_GT`` in it. Frames, masks and
            markers belong together by the number in their names, with leading zeros or without;
            they end in ``.tif`` or ``.tiff``, in small letters or capitals.
        sequence: Name of the video's folder, for example ``"01"``.
        truth: Where the masks come from. ``"ST"``: silver truth; ``"GT"``: gold truth, often of a
            few frames only; ``"TRA"``: masks of the tracking truth, which are whole nuclei in some
            data sets and mere markers in others; None: no masks. ``"auto"``: the silver truth or
            else the gold truth, where it covers all frames; else the first that is there of
            silver truth, tracking truth and gold truth.

    Returns:
        The sequence; no image but the header of the first frame has been read.

    Raises:
        FileNotFoundError: If the folder, the sequence, its frames or the truth are missing.
        TypeError: If sequence is not a string.
        ValueError: If truth is none of these, two files have one number, frame numbers have gaps
            or are above 999,999, or ``man_track.txt`` is malformed.

    Warns:
        UserWarning: If files are passed over (all but hidden ones and those of file managers), or
            ``man_track.txt`` goes beyond the frames; what it says of other frames is left out.
    """
    if truth not in TRUTHS:
        raise ValueError(f"truth must be one of {TRUTHS}, got {truth!r}")
    folder = Path(root)
    frames = find_frames(folder, sequence)
    masks = find_masks(folder, sequence, frames, truth)
    source = truth
    if truth == "auto":
        complete = [one for one in ("ST", "GT") if masks[one].keys() == frames.keys()]
        source = next((one for one in (*complete, "ST", "TRA", "GT") if masks[one]), None)
    names = masks[source] if source else {}
    if truth is not None and not names:
        raise FileNotFoundError(
            f"no masks of truth={truth!r} for sequence {sequence!r} in {folder}; expected "
            f"{LAYOUT}. Segment some, or give truth=None to read the frames alone"
        )
    first = LazyTiff(folder / frames[min(frames)])
    return CTCSequence(
        folder=folder,
        name=sequence,
        truth=source,
        numbers=tuple(frames),
        shape=first.shape,
        dtype=first.dtype,
        tracks=read_track_table(folder / f"{sequence}_GT/TRA" / TABLE, min(frames), max(frames)),
        frame_names=frames,
        mask_names=names,
        marker_names=masks["TRA"],
    )


def guess_scale(sequence: CTCSequence, *others: CTCSequence) -> CameraScale:
    """Guess the camera's scale, one for all videos that are compared, from all of their frames.

    The offset is 32768 where no count is smaller (signed numbers stored as unsigned ones), else 0.
    Full scale is the smallest range of 8, 10, 12, 14 or 16 bits above it that holds all counts.

    Args:
        sequence: A video, of the frames in use alone; see :meth:`CTCSequence.cut`.
        *others: More videos, which are compared with it.

    Returns:
        The scale; ``offset=32768, full=36863`` for Fluo-N2DL-HeLa.

    Raises:
        ValueError: If a frame cannot be read, frames or videos differ in dtype or offset.
    """
    sequences = sequence, *others
    ranges = [one._find_range() for one in sequences]
    offsets = [next(offset for offset in _OFFSETS if low >= offset) for low, _ in ranges]
    kinds = [(one.dtype, offset) for one, offset in zip(sequences, offsets, strict=True)]
    odd = next((place for place, kind in enumerate(kinds) if kind != kinds[0]), 0)
    if odd:
        names = (
            f"{sequences[i].folder / sequences[i].name} ({sequences[i].dtype}, counts from "
            f"{ranges[i][0]} to {ranges[i][1]})"
            for i in (0, odd)
        )
        raise ValueError(
            f"videos must have one grey scale to be compared, got {' and '.join(names)}; save both "
            "in one dtype with the same count for no light, or give scale"
        )
    full = max(high for _, high in ranges) - offsets[0]
    span = next(span for span in _RANGES if full <= span)
    return CameraScale(offsets[0], min(offsets[0] + span, int(np.iinfo(sequences[0].dtype).max)))


@lru_cache(maxsize=2**16)
def _measure_frame(path: Path, _: tuple[int, ...]) -> tuple[int, int, tuple[int, ...], _Dtype]:
    """Return lowest and highest count, shape and dtype of a file, once for each state of it."""
    image = LazyTiff(path)
    if image.dtype == np.uint8:  # one scale fits all, so that nothing needs to be decoded
        return 0, 255, image.shape, image.dtype
    counts = read_image(path)
    return int(counts.min()), int(counts.max()), image.shape, image.dtype
