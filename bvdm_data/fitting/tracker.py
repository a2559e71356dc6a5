"""Tracks and divisions of masks that have none, by the distances of their centroids."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import measure_boxes, split_gaps
from bvdm_data.datasets.ctc import CTCSequence, is_complete, read_sequence, write_sequence
from bvdm_data.fitting.progress import Progress
from bvdm_data.synth.contours import Array
from bvdm_data.system import require

Labels = npt.NDArray[np.integer]
Tracked = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]

# Chosen by BC(1) and LNK on the reference masks of video 01 of Fluo-N2DL-HeLa.
LINK_REACH = 30.0  # longest step of a centroid from one frame to the next, pixels
# Longest distance from the last centroid of a mother to the first one of a daughter, pixels.
SPLIT_REACH = 35.0
AREA = 540.0  # median of the nuclei there, px^2; reaches grow with the side of nuclei
# Largest area of a nucleus that has just divided, over the median: of the divisions that are made
# of the masks of videos 01 and 02 it keeps 145 of the 146 right ones, and 19 of 35 wrong ones.
NEWBORN = 0.8

Node = tuple[int, int]
Edge = tuple[Node, Node]


def track(labels: Labels, reach: float = LINK_REACH, split: float = SPLIT_REACH) -> Tracked:
    """Link the nuclei of single frames by the distances of their centroids.

    LapTrack solves the linear assignments of Jaqaman et al. 2008. Its settings stay the same where
    two segmentations are compared.
    """
    dense, _, edges = _link(labels, reach, split)
    return apply_links(dense, edges)


def _link(labels: Labels, reach: float, split: float) -> tuple[Labels, list[Array], list[Edge]]:
    """Return labels numbered anew, their centroids by frame, and links."""
    if labels.ndim != 3 or len(labels) == 0:
        raise ValueError(f"labels must be [F, H, W] with F at least 1, got {labels.shape}")
    # Numbered 1, 2, ... in the order of the labels.
    dense = np.stack([np.unique(np.r_[0, x.ravel()], return_inverse=True)[1][1:] for x in labels])
    dense = dense.reshape(labels.shape).astype(np.int32)
    if not dense.any():
        return dense, [], []
    _, centroids = measure_boxes(dense, int(dense.max()))
    centres = [centroids[: int(x.max()), t].astype(np.float64) for t, x in enumerate(dense)]
    laptrack = require("laptrack").LapTrack(
        cutoff=reach**2, splitting_cutoff=split**2, gap_closing_cutoff=False
    )
    # By place, as the order of the nuclei decides between links of equal cost.
    orders = [np.lexsort(centre.T[::-1]) for centre in centres]
    graph = laptrack.predict([c[order] for c, order in zip(centres, orders, strict=True)])
    nodes = {
        (f, i): (f, int(one) + 1) for f, order in enumerate(orders) for i, one in enumerate(order)
    }
    edges = [(nodes[source], nodes[target]) for source, target in graph.edges]
    return dense, centres, edges


def _link_nuclei(labels: Labels) -> Tracked:
    """Link nuclei of any size; where one comes into view beside another, none has divided."""
    counts = [np.bincount(frame.ravel())[1:] for frame in labels]
    usual = float(np.median(np.concatenate([own[own > 0] for own in counts])))
    size = math.sqrt(usual / AREA)
    dense, centres, edges = _link(labels, size * LINK_REACH, size * SPLIT_REACH)
    areas = [np.bincount(frame.ravel()) for frame in dense]
    rims = [{*np.r_[x[0], x[-1], x[:, 0], x[:, -1]].tolist()} for x in dense]
    after: dict[Node, list[Node]] = {}
    for source, target in edges:
        after.setdefault(source, []).append(target)
    kept: list[Edge] = []
    for (frame, number), targets in after.items():
        here = centres[frame][number - 1]
        far = {(t, i): float(np.linalg.norm(centres[t][i - 1] - here)) for t, i in targets}
        if any(areas[t][i] > NEWBORN * usual or i in rims[t] for t, i in targets):
            targets = [min(targets, key=far.__getitem__)]
        kept += [((frame, number), target) for target in targets]
    return apply_links(dense, kept)


def check_unlinked(source: CTCSequence) -> None:
    """Refuse a video whose masks have tracks."""
    if len(source.tracks):
        raise ValueError(
            f"sequence {source.name!r} of {source.folder} must have masks without tracks to be "
            "linked, got a man_track.txt; fit it without link, or take the file away"
        )


def link_sequence(source: CTCSequence, folder: Path, bar: Progress) -> CTCSequence:
    """Link the masks of a video; write both as a data set into a folder, and read it from there.

    What the folder has already is read as it is, so that tracks may be corrected there.
    """
    found = [source.masks(number) for number in source.numbers]
    masked = np.array([masks is not None and masks.any() for masks in found])
    if not (masked[1:] & masked[:-1]).any():
        raise ValueError(
            f"sequence {source.name!r} of {source.folder} must have masks in consecutive frames to "
            f"be linked, got them in {masked.sum()} of {len(masked)}; take lives of a model "
            "(--lives hela), or leave the other frames out of the video"
        )
    bar.start("linking")
    is_new = not is_complete(folder, source.name)
    if is_new:
        none = np.zeros(source.shape, np.int32)
        labels = np.stack([none if masks is None else masks for masks in found])
        masks, tracks = _link_nuclei(labels)
        video: Labels = np.stack([source.frame(number) for number in source.numbers])
        write_sequence(folder, source.name, video, masks, tracks)
    linked = read_sequence(folder, source.name, "GT")
    ours, theirs = ((len(one), one.shape, one.dtype) for one in (linked, source))
    if ours != theirs or any(
        not np.array_equal(linked.frame(linked.numbers[end]), source.frame(source.numbers[end]))
        for end in (0, -1)
    ):
        raise ValueError(f"{folder} must hold the video that is linked, got another; delete it")
    mothers = np.unique(linked.tracks[:, 3], return_counts=True)
    divisions = int((mothers[1][mothers[0] > 0] > 1).sum())
    bar.say(
        f"{'linked' if is_new else 'read'}: {len(linked.tracks)} tracks, {divisions} divisions, in "
        f"{folder}; look at them, by napari --plugin bvdm-data or in man_track.txt, correct them "
        "there, and fit again; delete it where the masks are others now"
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
