"""Tracks and divisions of masks that have none, by the distances of their centroids."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import measure_boxes, split_gaps
from bvdm_data.datasets.ctc import CTCSequence, is_complete, read_sequence, write_sequence
from bvdm_data.fitting.progress import Progress
from bvdm_data.system import require

Labels = npt.NDArray[np.integer]
Tracked = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]

# Chosen by BC(1) and LNK on the reference masks of video 01 of Fluo-N2DL-HeLa.
LINK_REACH = 30.0  # longest step of a centroid from one frame to the next, pixels
# Longest distance from the last centroid of a mother to the first one of a daughter, pixels.
SPLIT_REACH = 35.0
AREA = 540.0  # median of the nuclei there, px^2; reaches grow with the side of nuclei

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


def link_sequence(source: CTCSequence, folder: Path, bar: Progress) -> CTCSequence:
    """Link the masks of a video; write both as a data set into a folder, and read it from there.

    What the folder has already is read as it is, so that tracks may be corrected there.
    """
    if len(source.tracks):
        raise ValueError(
            f"sequence {source.name!r} of {source.folder} must have masks without tracks to be "
            "linked, got a man_track.txt; fit it without link, or take the file away"
        )
    bar.start("linking")
    if not is_complete(folder, source.name):
        none = np.zeros(source.shape, np.int32)
        found = [source.masks(number) for number in source.numbers]
        labels = np.stack([none if masks is None else masks for masks in found])
        counts = [np.unique(masks[masks > 0], return_counts=True)[1] for masks in labels]
        areas = np.concatenate(counts)
        size = math.sqrt(np.median(areas) / AREA) if len(areas) else 1.0
        masks, tracks = track(labels, size * LINK_REACH, size * SPLIT_REACH)
        video: Labels = np.stack([source.frame(number) for number in source.numbers])
        write_sequence(folder, source.name, video, masks, tracks)
    linked = read_sequence(folder, source.name, "GT")
    if (len(linked), linked.shape) != (len(source), source.shape):
        raise ValueError(
            f"{folder} must hold the {len(source)} frames of {source.shape} pixels that are "
            f"linked, got {len(linked)} of {linked.shape}; delete it"
        )
    mothers = np.unique(linked.tracks[:, 3], return_counts=True)
    divisions = int((mothers[1][mothers[0] > 0] > 1).sum())
    bar.say(
        f"linked: {len(linked.tracks)} tracks, {divisions} divisions, in {folder}; look at them, "
        "by napari --plugin bvdm-data or in man_track.txt, correct them there, and fit again"
    )
    return linked


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
