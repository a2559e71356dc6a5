"""Tables of tracks, and labels that agree with them."""

import reprlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bvdm_data.datasets.ctc_files import check_regular

LARGEST_ID = 2**24  # largest id of a track or label: what is listed by id stays small
_LARGEST_TABLE = 2**22  # bytes: some 200,000 tracks

_Ints = npt.NDArray[np.integer]
_Table = npt.NDArray[np.int32]
_Labels = npt.NDArray[np.int32]


def read_track_table(path: Path, first: int, last: int) -> _Table:
    """Read what a ``man_track.txt`` says of the frames from first to last.

    Returns ``[n, 4]`` in the order of the file; empty where there is no file.
    """
    if not path.is_symlink() and not path.exists():
        return np.zeros((0, 4), np.int32)
    check_regular(path)
    tracks = _parse_table(path)
    cut = cut_tracks(tracks, first, last + 1)
    if len(tracks) and (tracks[:, 1].min() < first or tracks[:, 2].max() > last):
        warnings.warn(
            f"{path} has tracks of frames {tracks[:, 1].min()} to {tracks[:, 2].max()}, and the "
            f"frames are {first} to {last}: {len(tracks) - len(cut)} of {len(tracks)} tracks are "
            "passed over, the others are cut; if they are of one video, number them alike",
            stacklevel=3,
        )
    return cut


def _parse_table(path: Path) -> _Table:
    size = path.stat().st_size
    if size > _LARGEST_TABLE:
        raise ValueError(
            f"{path} must be a table of at most {_LARGEST_TABLE} bytes, got {size}; give the "
            "tracks of one video"
        )
    data = path.read_bytes()
    if b"\0" in data:
        raise ValueError(
            f"{path} must be plain text, got UTF-16 or no text at all; save it as UTF-8 or ASCII"
        )
    rows: dict[int, list[int]] = {}
    lines = data.decode("utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            rows[number] = [int(word) for word in words]
        except ValueError:
            rows[number] = []
        if len(rows[number]) != 4 or max(rows[number]) > LARGEST_ID:
            raise ValueError(
                f"{path}, line {number}: must be four whole numbers up to {LARGEST_ID} (id, first "
                f"frame, last frame, parent), got {reprlib.repr(line.strip())}; write them with "
                "spaces between and nothing else"
            )
    _check_rows(f"{path}, line", rows)
    return np.array([*rows.values()], np.int32).reshape(-1, 4)


def check_track_table(tracks: _Ints, frames: int) -> _Table:
    """Check a table of tracks, and return it without the rows of zeros that pad it."""
    if not isinstance(tracks, np.ndarray):
        raise TypeError(
            f"tracks must be a NumPy array [n, 4], got {reprlib.repr(tracks)}; give "
            "np.zeros((0, 4), int) where there are no nuclei"
        )
    if not np.issubdtype(tracks.dtype, np.integer):
        raise TypeError(f"tracks must hold integers, got the dtype {tracks.dtype}")
    if tracks.ndim != 2 or tracks.shape[1] != 4:
        raise ValueError(
            f"tracks must be [n, 4] (id, first, last, parent), got the shape {tracks.shape}"
        )
    used = np.flatnonzero(tracks.any(axis=1))
    _check_rows("tracks, row", dict(zip(used, tracks[used].tolist(), strict=True)))
    late = np.flatnonzero(tracks[:, 2] >= frames)
    if len(late):
        raise ValueError(
            f"tracks, row {late[0]}: the last frame must be at most {frames - 1} in a video of "
            f"{frames} frames, got {tracks[late[0], 2]}"
        )
    return tracks[used].astype(np.int32)


def check_ids_match(masks: _Ints, table: _Ints) -> None:
    """Check that masks show the tracks of a table, in every frame."""
    for frame, mask in enumerate(masks):
        alive = list_alive(table, frame)
        odd = np.setxor1d(np.unique(mask[mask > 0]), alive)
        if len(odd):
            raise ValueError(
                "masks and tracks must hold the same ids in every frame, got id "
                f"{odd[0]} in frame {frame} only in {'tracks' if odd[0] in alive else 'masks'}"
            )


def list_alive(table: _Ints, frame: int) -> _Ints:
    """Return the ids of the tracks in a frame."""
    ids: _Ints = table[(table[:, 1] <= frame) & (frame <= table[:, 2]), 0]
    return ids


def _check_rows(where: str, rows: Mapping[int, list[int]]) -> None:
    """Refuse rows, by their numbers, that are impossible, alone or together."""
    last_frames: dict[int, int] = {}
    for number, (identity, first, last, parent) in rows.items():
        place = f"{where} {number}"
        if parent < 0:
            raise ValueError(f"{place}: the parent must be an id, got {parent}; write 0 for none")
        if identity < 1 or first < 0 or last < first:
            raise ValueError(
                f"{place}: must have id >= 1 and 0 <= first frame <= last frame, got "
                f"{(identity, first, last, parent)}; count ids from 1 and frames from 0"
            )
        if identity in last_frames:
            raise ValueError(
                f"{place}: id {identity} must be given once, got it a second time; give each track "
                "an id of its own, the later part of one the earlier part's as its parent"
            )
        last_frames[identity] = last
    for number, (identity, first, _, parent) in rows.items():
        place = f"{where} {number}"
        if parent and parent not in last_frames:
            raise ValueError(
                f"{place}: parent {parent} of track {identity} does not exist; add its row, or "
                "write 0 for none"
            )
        if parent and last_frames[parent] >= first:
            raise ValueError(
                f"{place}: parent {parent} must end before track {identity} begins in frame "
                f"{first}, got its last frame {last_frames[parent]}; end it earlier, or write 0 "
                "for none"
            )


def check_labels_in_tracks(labels: _Labels, alive: _Ints, complete: bool, path: Path) -> None:
    """Refuse labels without a track and, on demand, tracks without a label."""
    present = np.unique(labels[labels > 0])
    unlisted = np.setdiff1d(present, alive)
    if len(unlisted):
        raise ValueError(
            f"{path} must hold ids of tracks only, got label {unlisted[0]}, which has no track in "
            "man_track.txt in this frame; add it there, or set the label to 0"
        )
    missing = np.setdiff1d(alive, present)
    if complete and len(missing):
        raise ValueError(
            f"{path} must hold every track that man_track.txt has in this frame, got no label "
            f"{missing[0]}; where it is hidden, give the track two ids, one before and one after, "
            "the second with the first as its parent"
        )


def match_masks_to_markers(labels: _Labels, markers: _Labels, alive: _Ints, spare: int) -> _Labels:
    """Give each mask the id of its track, by the markers of the tracking truth, ``[H, W]``.

    Where every label lies on the marker of the same number, or on none, labels are ids already.
    Else each mask gets the id of the marker that it overlaps most. Where two masks overlap one
    marker most, the larger overlap gets it. Masks without a track get ids from ``spare`` on.

    Examples:
        >>> labels = np.array([[1, 1, 0, 2, 2, 0, 3]], np.int32)
        >>> markers = np.array([[0, 7, 0, 5, 0, 0, 0]], np.int32)
        >>> match_masks_to_markers(labels, markers, np.array([5, 7]), spare=100).tolist()
        [[7, 7, 0, 5, 5, 0, 100]]
    """
    if np.array_equal(labels, markers):
        return labels
    where = labels > 0
    old, rows = np.unique(labels[where], return_inverse=True)
    ids, columns = np.unique(markers[where], return_inverse=True)
    pairs = np.bincount(rows * len(ids) + columns, minlength=len(old) * len(ids))
    overlap = pairs.reshape(len(old), len(ids)) * (ids > 0)
    is_same = (overlap * (old[:, None] == ids)).sum(axis=1) > 0
    if is_same.any() and (is_same | ~overlap.any(axis=1)).all():
        new = np.where(np.isin(old, alive), old, 0)
    else:
        new = np.zeros_like(old)
        most = overlap.max(axis=1, initial=0)
        for row in np.argsort(-most, kind="stable"):
            identity = ids[overlap[row].argmax()]
            if most[row] > 0 and identity not in new:
                new[row] = identity
    lost = np.flatnonzero(new == 0)
    new[lost] = spare + np.arange(len(lost))
    tracked = np.zeros_like(labels)
    tracked[where] = new[rows]
    return tracked


def cut_tracks(tracks: _Ints, start: int, stop: int) -> _Table:
    """Return what a table says of the frames from start to before stop, and of no other.

    Parents that are in none of these frames are 0.

    Examples:
        >>> cut_tracks(np.array([[1, 0, 3, 0], [2, 4, 9, 1], [3, 4, 5, 1]]), 4, 6).tolist()
        [[2, 4, 5, 0], [3, 4, 5, 0]]
    """
    kept = tracks[(tracks[:, 1] < stop) & (tracks[:, 2] >= start)].astype(np.int32)
    kept[:, 1:3] = kept[:, 1:3].clip(start, stop - 1)
    kept[~np.isin(kept[:, 3], kept[:, 0]), 3] = 0
    return kept


def find_visible_parents(tracks: _Ints, shown: Sequence[int]) -> dict[int, int]:
    """Return the parent of each track, jumping over generations that live between two frames.

    Examples:
        >>> tracks = np.array([[1, 0, 3, 0], [2, 4, 4, 1], [3, 5, 9, 2]])
        >>> find_visible_parents(tracks, [3, 5]), find_visible_parents(tracks, [3, 4, 5])
        ({1: 0, 3: 1}, {1: 0, 2: 1, 3: 2})
    """
    number = np.array(shown)[:, None]
    is_shown = ((tracks[:, 1] <= number) & (number <= tracks[:, 2])).any(axis=0)
    seen = set(tracks[is_shown, 0].tolist())
    parents: dict[int, int] = dict(tracks[:, [0, 3]].tolist())
    visible = {}
    for identity in sorted(seen):
        ancestor = parents[identity]
        while ancestor not in seen and parents.get(ancestor):
            ancestor = parents[ancestor]
        visible[identity] = ancestor
    return visible


def group_families(tracks: _Ints) -> list[list[int]]:
    """Return the ids of every family, the founder first and then branch by branch.

    Examples:
        >>> group_families(np.array([[1, 0, 4, 0], [2, 5, 9, 1], [3, 5, 9, 1], [4, 0, 9, 0]]))
        [[1, 2, 3], [4]]
    """
    children: dict[int, list[int]] = {}
    for identity, _, _, parent in sorted(tracks.tolist(), reverse=True):
        children.setdefault(parent, []).append(identity)
    families: list[list[int]] = []
    waiting = [(founder, True) for founder in children.get(0, [])]
    while waiting:
        identity, is_founder = waiting.pop()
        if is_founder:
            families.append([])
        families[-1].append(identity)
        waiting += [(child, False) for child in children.get(identity, [])]
    return families
