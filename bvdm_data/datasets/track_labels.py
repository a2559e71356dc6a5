"""Labels of one mask image: do they agree with the table of tracks, and which track is whose."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int32]


def check_labels(labels: Labels, alive: npt.NDArray[np.int32], complete: bool, path: Path) -> None:
    """Refuse labels without a track and, on demand, tracks without a label.

    Args:
        labels: ``[H, W]``, 0 in the background.
        alive: Ids of the tracks that are there in this frame, ``[n]``.
        complete: Whether every one of them must have a label.
        path: The file of labels, for the message.

    Raises:
        ValueError: If a label has no track, or a track has no label though it must.
    """
    found = np.unique(labels[labels > 0])
    unlisted = np.setdiff1d(found, alive)
    if len(unlisted):
        raise ValueError(
            f"{path} must hold ids of tracks only, got label {unlisted[0]}, which has no track in "
            "man_track.txt in this frame"
        )
    missing = np.setdiff1d(alive, found)
    if complete and len(missing):
        raise ValueError(
            f"{path} must hold every track that man_track.txt has in this frame, got no label "
            f"{missing[0]}"
        )


def follow_markers(
    labels: Labels, markers: Labels, alive: npt.NDArray[np.int32], spare: int
) -> Labels:
    """Give each mask the id of its track, found by the markers of the tracking truth.

    Where every label lies on the marker of the same number, or on none, labels are ids already.
    Else each mask gets the id of the marker that it overlaps most. Where two masks want one
    marker, it goes to the larger overlap.

    Args:
        labels: Masks ``[H, W]`` under any positive labels, 0 in the background.
        markers: ``[H, W]``, the id of the track in each marker.
        alive: Ids of the tracks that are there in this frame, ``[n]``.
        spare: The first of the ids for masks that belong to no track.

    Returns:
        The masks under the ids of their tracks, ``[H, W]``.

    Examples:
        >>> labels = np.array([[1, 1, 0, 2, 2, 0, 3]], np.int32)
        >>> markers = np.array([[0, 7, 0, 5, 0, 0, 0]], np.int32)
        >>> follow_markers(labels, markers, np.array([5, 7], np.int32), spare=100).tolist()
        [[7, 7, 0, 5, 5, 0, 100]]
    """
    if np.array_equal(labels, markers):
        return labels
    where = labels > 0
    found, rows = np.unique(labels[where], return_inverse=True)
    ids, columns = np.unique(markers[where], return_inverse=True)
    pairs = np.bincount(rows * len(ids) + columns, minlength=len(found) * len(ids))
    overlap = pairs.reshape(len(found), len(ids)) * (ids > 0)
    own = (overlap * (found[:, None] == ids)).sum(axis=1) > 0
    if own.any() and (own | ~overlap.any(axis=1)).all():
        new = np.where(np.isin(found, alive), found, 0)
    else:
        new = _best(overlap, ids)
    lost = np.flatnonzero(new == 0)
    new[lost] = spare + np.arange(len(lost))
    tracked = np.zeros_like(labels)
    tracked[where] = new[rows]
    return tracked


def _best(overlap: npt.NDArray[np.int64], ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the marker of each mask, 0 for none; no marker is given twice."""
    new = np.zeros(len(overlap), ids.dtype)
    if not overlap.size:
        return new
    best = overlap.argmax(axis=1)
    most = overlap.max(axis=1)
    taken: set[int] = set()
    for row in np.argsort(-most, kind="stable").tolist():
        if most[row] > 0 and int(best[row]) not in taken:
            taken.add(int(best[row]))
            new[row] = ids[best[row]]
    return new
