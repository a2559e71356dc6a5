"""The table of tracks of a Cell Tracking Challenge video: the file ``man_track.txt``."""

from pathlib import Path

import numpy as np
import numpy.typing as npt


def read_track_table(path: Path) -> npt.NDArray[np.int32]:
    """Read a ``man_track.txt``.

    Args:
        path: The file; each line holds id, first frame, last frame and parent id (0: none).

    Returns:
        The rows in the order of the file, ``[n, 4]`` int32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is malformed or contradicts another; the message names the line.
    """
    rows: list[list[int]] = []
    places: list[str] = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if line.strip():
            places.append(f"{path}, line {number}")
            rows.append(_parsed(line, places[-1]))
    _check_rows(rows, places)
    return np.array(rows, np.int32).reshape(-1, 4)


def write_track_table(path: Path, tracks: npt.NDArray[np.integer]) -> None:
    """Write a ``man_track.txt``.

    Args:
        path: Where to; a file that is there is replaced.
        tracks: ``[n, 4]`` id, first frame, last frame and parent id.

    Raises:
        OSError: If the file cannot be written.
    """
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in tracks.tolist()))


def check_track_table(tracks: npt.NDArray[np.integer], frames: int) -> npt.NDArray[np.int32]:
    """Check a table of tracks and leave out the rows of zeros that pad it.

    Args:
        tracks: ``[n, 4]`` id, first frame, last frame and parent id.
        frames: Number of frames of the video.

    Returns:
        The rows that hold a track, ``[m, 4]`` int32.

    Raises:
        TypeError: If tracks does not hold integers.
        ValueError: If the shape is wrong or a row is impossible; the message names the row.
    """
    if not np.issubdtype(tracks.dtype, np.integer):
        raise TypeError(f"tracks must hold integers, got the dtype {tracks.dtype}")
    if tracks.ndim != 2 or tracks.shape[1] != 4:
        raise ValueError(
            f"tracks must be [n, 4] (id, first, last, parent), got the shape {tracks.shape}"
        )
    used = np.flatnonzero(tracks.any(axis=1))
    _check_rows(tracks[used].tolist(), [f"tracks, row {row}" for row in used])
    late = np.flatnonzero(tracks[:, 2] >= frames)
    if len(late):
        raise ValueError(
            f"tracks, row {late[0]}: the last frame must be at most {frames - 1} in a video of "
            f"{frames} frames, got {tracks[late[0], 2]}"
        )
    return tracks[used].astype(np.int32)


def check_same_ids(masks: npt.NDArray[np.integer], table: npt.NDArray[np.integer]) -> None:
    """Check that masks show the tracks of a table, in every frame.

    Args:
        masks: Ids ``[F, H, W]``.
        table: As :func:`check_track_table` returns it.

    Raises:
        ValueError: If an id is in a frame in only one of them.
    """
    for frame, mask in enumerate(masks):
        alive = table[(table[:, 1] <= frame) & (frame <= table[:, 2]), 0]
        odd = np.setxor1d(np.unique(mask[mask > 0]), alive)
        if len(odd):
            raise ValueError(
                "masks and tracks must hold the same ids in every frame, got id "
                f"{odd[0]} in frame {frame} only in {'tracks' if odd[0] in alive else 'masks'}"
            )


def _parsed(line: str, place: str) -> list[int]:
    words = line.split()
    try:
        row = [int(word) for word in words]
    except ValueError:
        row = []
    if len(row) != 4 or max(row) > np.iinfo(np.int32).max:
        raise ValueError(
            f"{place}: must be four whole numbers (id, first frame, last frame, parent), got "
            f"{line.strip()!r}"
        )
    return row


def _check_rows(rows: list[list[int]], places: list[str]) -> None:
    """Refuse rows that are impossible, alone or together."""
    known: dict[int, list[int]] = {}
    for (identity, first, last, parent), place in zip(rows, places, strict=True):
        if identity < 1 or first < 0 or last < first or parent < 0:
            raise ValueError(
                f"{place}: must have id >= 1, 0 <= first frame <= last frame and parent >= 0, got "
                f"{(identity, first, last, parent)}"
            )
        if identity in known:
            raise ValueError(f"{place}: id {identity} must be given once, got it a second time")
        known[identity] = [first, last]
    for (identity, first, _, parent), place in zip(rows, places, strict=True):
        if parent and parent not in known:
            raise ValueError(f"{place}: parent {parent} of track {identity} does not exist")
        if parent and known[parent][1] >= first:
            raise ValueError(
                f"{place}: parent {parent} must end before track {identity} begins in frame "
                f"{first}, got its last frame {known[parent][1]}"
            )
