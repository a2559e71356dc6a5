"""Tracks and divisions of masks that have none, by the distances of their centroids."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import measure_boxes, split_gaps
from bvdm_data.system import require

Labels = npt.NDArray[np.integer]
Tracked = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]

# Chosen by BC(1) and LNK on the reference masks of video 01 of Fluo-N2DL-HeLa.
LINK_REACH = 30.0  # longest step of a centroid from one frame to the next, pixels
# Longest distance from the last centroid of a mother to the first one of a daughter, pixels.
SPLIT_REACH = 35.0

Node = tuple[int, int]
Edge = tuple[Node, Node]


def track(labels: Labels, reach: float = LINK_REACH, split: float = SPLIT_REACH) -> Tracked:
    """Link the nuclei of single frames by the distances of their centroids.

    LapTrack solves the linear assignments of Jaqaman et al. 2008. Its settings stay the same where
    two segmentations are compared.
    """
    if labels.ndim != 3 or len(labels) == 0:
        raise ValueError(f"labels must be [F, H, W] with F at least 1, got {labels.shape}")
    # Numbered 1, 2, ... in the order of the labels.
    dense = np.stack([np.unique(np.r_[0, x.ravel()], return_inverse=True)[1][1:] for x in labels])
    dense = dense.reshape(labels.shape).astype(np.int32)
    if not dense.any():
        return apply_links(dense, ())
    _, centroids = measure_boxes(dense, int(dense.max()))
    centres = [centroids[: int(x.max()), t].astype(np.float64) for t, x in enumerate(dense)]
    laptrack = require("laptrack").LapTrack(
        cutoff=reach**2, splitting_cutoff=split**2, gap_closing_cutoff=False
    )
    graph = laptrack.predict(centres)
    edges = [((int(f), int(i) + 1), (int(g), int(j) + 1)) for (f, i), (g, j) in graph.edges]
    return apply_links(dense, edges)


def apply_links(labels: Labels, edges: Iterable[Edge]) -> Tracked:
    """Turn links between nuclei into tracks: where one has several successors, it divides."""
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
    renamed, table, _ = split_gaps(masks, parents)
    return renamed, table
