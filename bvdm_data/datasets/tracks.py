"""Tables of tracks, and labels that agree with them."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

LARGEST_ID = int(np.iinfo(np.int32).max)
"""Largest id of a track or label."""

_Ints = npt.NDArray[np.integer]
_Table = npt.NDArray[np.int32]
_Labels = npt.NDArray[np.int32]


def read_track_table(path: Path) -> _Table:
    """Read a ``man_track.txt``, ``[n, 4]`` in the order of the file."""
    rows: dict[str, list[int]] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        place = f"{path}, line {number}"
        try:
            rows[place] = [int(word) for word in words]
        except ValueError:
            rows[place] = []
        if len(rows[place]) != 4 or max(rows[place]) > LARGEST_ID:
            raise ValueError(
                f"{place}: must be four whole numbers (id, first frame, last frame, parent), got "
                f"{line.strip()!r}"
            )
    _check_rows(rows)
    return np.array([*rows.values()], np.int32).reshape(-1, 4)


def check_track_table(tracks: _Ints, frames: int) -> _Table:
    """Check a table of tracks, and return it without the rows of zeros that pad it."""
    if not np.issubdtype(tracks.dtype, np.integer):
        raise TypeError(f"tracks must hold integers, got the dtype {tracks.dtype}")
    if tracks.ndim != 2 or tracks.shape[1] != 4:
        raise ValueError(
            f"tracks must be [n, 4] (id, first, last, parent), got the shape {tracks.shape}"
        )
    used = np.flatnonzero(tracks.any(axis=1))
    _check_rows({f"tracks, row {row}": tracks[row].tolist() for row in used})
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


def _check_rows(rows: Mapping[str, list[int]]) -> None:
    """Refuse rows, by their places, that are impossible, alone or together."""
    last_frames: dict[int, int] = {}
    for place, (identity, first, last, parent) in rows.items():
        if identity < 1 or first < 0 or last < first or parent < 0:
            raise ValueError(
                f"{place}: must have id >= 1, 0 <= first frame <= last frame and parent >= 0, got "
                f"{(identity, first, last, parent)}"
            )
        if identity in last_frames:
            raise ValueError(f"{place}: id {identity} must be given once, got it a second time")
        last_frames[identity] = last
    for place, (identity, first, _, parent) in rows.items():
        if parent and parent not in last_frames:
            raise ValueError(f"{place}: parent {parent} of track {identity} does not exist")
        if parent and last_frames[parent] >= first:
            raise ValueError(
                f"{place}: parent {parent} must end before track {identity} begins in frame "
                f"{first}, got its last frame {last_frames[parent]}"
            )


def check_labels_in_tracks(labels: _Labels, alive: _Ints, complete: bool, path: Path) -> None:
    """Refuse labels without a track and, on demand, tracks without a label."""
    present = np.unique(labels[labels > 0])
    unlisted = np.setdiff1d(present, alive)
    if len(unlisted):
        raise ValueError(
            f"{path} must hold ids of tracks only, got label {unlisted[0]}, which has no track in "
            "man_track.txt in this frame"
        )
    missing = np.setdiff1d(alive, present)
    if complete and len(missing):
        raise ValueError(
            f"{path} must hold every track that man_track.txt has in this frame, got no label "
            f"{missing[0]}"
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
    for identity, _, _, parent in sorted(tracks.tolist()):
        children.setdefault(parent, []).append(identity)

    def list_branch(identity: int) -> list[int]:
        return [identity, *chain(*map(list_branch, children.get(identity, [])))]

    return [list_branch(founder) for founder in children.get(0, [])]
