"""Tracker: nuclei of single frames linked to tracks with divisions by LapTrack, not trained."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import measure_boxes, unbroken_tracks
from bvdm_data.evaluation.extras import need

# Chosen by BC(1) and LNK on the reference masks of video 01 of Fluo-N2DL-HeLa.
LINK_REACH = 30.0
"""Longest step of a centroid from one frame to the next, pixels."""

SPLIT_REACH = 35.0
"""Longest way from the last centroid of a mother to the first one of a daughter, pixels."""

Node = tuple[int, int]
Edge = tuple[Node, Node]


def track(
    labels: npt.NDArray[np.integer],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Link the nuclei of single frames by the distances of their centroids.

    LapTrack solves the linear assignments of Jaqaman et al. 2008. Its settings are fixed, so that
    two segmentations are compared with one and the same tracker.

    Args:
        labels: A number for each nucleus of a frame, 0 in the background, ``[F, H, W]``; the
            numbers of different frames have nothing to do with each other.

    Returns:
        Masks ``[F, H, W]`` with the ids of tracks and the table ``[n, 4]`` of id, first frame,
        last frame and parent (0: none), both int32; a valid result of the Cell Tracking
        Challenge.

    Raises:
        ModuleNotFoundError: If LapTrack is not installed.
        ValueError: If labels is not ``[F, H, W]`` with F at least 1.
    """
    if labels.ndim != 3 or len(labels) == 0:
        raise ValueError(f"labels must be [F, H, W] with F at least 1, got {labels.shape}")
    dense = np.stack([_dense(frame) for frame in labels])
    centres = _centres(dense)
    if not dense.any():
        return linked(dense, ())
    laptrack = need("laptrack").LapTrack(
        cutoff=LINK_REACH**2, splitting_cutoff=SPLIT_REACH**2, gap_closing_cutoff=False
    )
    graph = laptrack.predict(centres)
    edges = [((int(f), int(i) + 1), (int(g), int(j) + 1)) for (f, i), (g, j) in graph.edges]
    return linked(dense, edges)


def linked(
    labels: npt.NDArray[np.integer], edges: Iterable[Edge]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Turn links between nuclei into tracks: where one has several successors, it divides.

    Args:
        labels: Number of each nucleus of a frame, 0 in the background, ``[F, H, W]``.
        edges: Pairs of (frame, number): a nucleus and its successor in a later frame. A nucleus
            has one predecessor at most; of several the first given counts.

    Returns:
        Masks ``[F, H, W]`` with the ids of tracks and the table ``[n, 4]`` of id, first frame,
        last frame and parent, both int32.
    """
    before: dict[Node, Node] = {}
    after: dict[Node, list[Node]] = {}
    for source, target in edges:
        if target not in before:
            before[target] = source
            after.setdefault(source, []).append(target)
    masks = np.zeros(labels.shape, np.int32)
    track_of: dict[Node, int] = {}
    parents: dict[int, int] = {}
    for frame, image in enumerate(labels):
        ids = np.zeros(int(image.max(initial=0)) + 1, np.int32)
        for number in np.unique(image[image > 0]).tolist():
            node = (frame, number)
            mother = before.get(node)
            if mother is not None and len(after[mother]) == 1:
                track_of[node] = track_of[mother]
            else:
                track_of[node] = len(parents) + 1
                parents[track_of[node]] = 0 if mother is None else track_of[mother]
            ids[number] = track_of[node]
        masks[frame] = ids[image]
    renamed, table, _ = unbroken_tracks(masks, parents)
    return renamed, table


def _dense(frame: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Number the nuclei of a frame 1, 2, ... in the order of their labels."""
    _, numbers = np.unique(np.r_[0, frame.ravel()], return_inverse=True)
    return numbers[1:].reshape(frame.shape).astype(np.int32)


def _centres(dense: npt.NDArray[np.int32]) -> list[npt.NDArray[np.float64]]:
    _, centroids = measure_boxes(dense, int(dense.max(initial=0)))
    return [
        centroids[: int(frame.max(initial=0)), number].astype(np.float64)
        for number, frame in enumerate(dense)
    ]
