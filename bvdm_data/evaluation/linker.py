"""Linkers of given masks to tracks with divisions: by distance, or a Trackastra that learns.

The learned one is scored on reference masks, so that segmentation plays no part and only the
motion and the divisions of the clips that it learned from count.
"""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from bvdm_data.adapters.common import find_ancestors, match_relatives
from bvdm_data.clip import Clip, measure_boxes, split_gaps
from bvdm_data.datasets.sources import MapStyle
from bvdm_data.evaluation.clip_cache import hash_clips
from bvdm_data.evaluation.seg_tra import Labels, Tracked
from bvdm_data.fitting.training import Run, TrainingLog, TrainingSettings, train_network
from bvdm_data.rng import torch_rng
from bvdm_data.system import require

# Numbers that Trackastra measures: diameter, mean grey, inertia (4), nearness to an edge.
FEATURES = 7
# Pairs of nuclei that are further apart in time do not count in the loss, frames (Trackastra).
FARTHEST = 2

# Random change of a training window, all ours: zoom, grey factor, grey shift, and where in a large
# frame the window is assumed to lie, pixels. Trackastra's own (zoom and grey times 0.5 to 2) is
# made for many kinds of video and would hide how far the nuclei of this one move.
ZOOM, GREY_FACTOR, GREY_SHIFT, PLACE = (0.9, 1.1), (0.8, 1.25), (-0.05, 0.05), 1024.0

Window = dict[str, Tensor]

_NO_BAR = functools.partial(tqdm, disable=True)


def make_clip_windows(clip: Clip, frames: int) -> list[Window]:
    """Measure the nuclei of a clip and cut it into overlapping windows."""
    if "masks" not in clip or "tracks" not in clip:
        raise ValueError(f"the clip must have masks and tracks, got {sorted(clip)}")
    if len(clip["video"]) < frames:
        raise ValueError(
            f"window must be at most the {len(clip['video'])} frames of a clip, got {frames}"
        )
    masks = clip["masks"].numpy().astype(np.int32)
    features = _extract_features(clip["video"][:, 0].numpy(), masks)
    with _silence():
        windows: list[Window] = require("trackastra.data").build_windows(
            features, frames, progbar_class=_NO_BAR, as_torch=True
        )
    lines = find_ancestors(clip["tracks"][clip["tracks"][:, 0] > 0].numpy())
    for window in windows:
        window["assoc_matrix"] = match_relatives(lines, window["labels"].long())
        del window["t1"]
    return [w for w in windows if w["assoc_matrix"][keep_within_gap(w["timepoints"])].any()]


def augment_window(window: Window, rng: torch.Generator) -> Window:
    """Turn, mirror, zoom and shift a window, and change its light, at random."""
    turn, zoom, factor, shift, down, right, mirror = torch.rand(7, generator=rng).tolist()
    angle = torch.tensor(2 * np.pi * turn)
    size = ZOOM[0] * (ZOOM[1] / ZOOM[0]) ** zoom
    matrix = size * torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    if mirror < 0.5:
        matrix = matrix.flip(1)
    diameter, grey, inertia, edge = window["features"].float().split([1, 1, 4, 1], dim=1)  # type: ignore[no-untyped-call]
    turned = matrix @ inertia.view(-1, 2, 2) @ matrix.T
    grey = grey * (GREY_FACTOR[0] * (GREY_FACTOR[1] / GREY_FACTOR[0]) ** factor)
    grey = grey + GREY_SHIFT[0] + (GREY_SHIFT[1] - GREY_SHIFT[0]) * shift
    coords = window["coords"].float() @ matrix.T
    coords = coords - coords.amin(0) + PLACE * torch.tensor([down, right])
    features = torch.cat([diameter * size, grey, turned.reshape(-1, 4), edge], dim=1)
    return window | {"coords": coords, "features": features}


def _extract_features(video: npt.NDArray[np.float32], masks: Labels) -> Sequence[Any]:
    """Measure the nuclei of each frame with Trackastra."""
    with _silence():
        bright = require("trackastra.utils").normalize(video)
        features: Sequence[Any] = require("trackastra.data").get_features(
            masks.astype(np.int32), bright, features="wrfeat", ndim=2, progbar_class=_NO_BAR
        )
    return features


def keep_within_gap(times: Tensor) -> Tensor:
    """Return the pairs of nuclei in the loss: the second 1 or 2 frames later, ``[..., N, N]``."""
    gap = times.unsqueeze(-2) - times.unsqueeze(-1)
    return (gap > 0) & (gap <= FARTHEST)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold back the library's progress bars, log lines and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# Chosen by BC(1) and LNK on the reference masks of video 01 of Fluo-N2DL-HeLa.
LINK_REACH = 30.0  # longest step of a centroid from one frame to the next, pixels
# Longest distance from the last centroid of a mother to the first one of a daughter, pixels.
SPLIT_REACH = 35.0

Node = tuple[int, int]
Edge = tuple[Node, Node]


def track(labels: Labels) -> Tracked:
    """Link the nuclei of single frames by the distances of their centroids.

    LapTrack solves the linear assignments of Jaqaman et al. 2008. Its settings are fixed, so that
    two segmentations are compared with one and the same tracker.
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
        cutoff=LINK_REACH**2, splitting_cutoff=SPLIT_REACH**2, gap_closing_cutoff=False
    )
    # By place, as the order of the nuclei decides between links of equal cost.
    orders = [np.lexsort(centre.T[::-1]) for centre in centres]
    graph = laptrack.predict([c[order] for c, order in zip(centres, orders, strict=True)])
    nodes = {
        (f, i): (f, int(one) + 1) for f, order in enumerate(orders) for i, one in enumerate(order)
    }
    return apply_links(dense, [(nodes[source], nodes[target]) for source, target in graph.edges])


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


# Batch 8 as in Trackastra's example for this data set; the rest is ours, to fit two cores.
LINKER_TRAINING = TrainingSettings(steps=2400, batch=8, rate=5e-4, average=0.99)
# Added weight in the loss of the links of a mother to her daughters (Trackastra).
DIVISION_WEIGHT = 20.0
RAW_WEIGHT = 0.01  # weight of the loss before the parental softmax (Trackastra)
HELD_OUT = 0.1  # share of the clips that is not trained on; our choice
TRIES = 1000  # draws of a window with a link in it before a training gives up; our choice


@dataclass(frozen=True, kw_only=True)
class LinkerSettings:
    """The network and its training."""

    width: int = 128  # channels of the transformer (128: 0.95 M weights)
    heads: int = 4  # attention heads
    layers: int = 3  # layers of the encoder, and of the decoder
    window: int = 6  # frames that are looked at together, 6 as in Trackastra's example
    # nuclei that are further apart are not linked, pixels (Trackastra's default is 256; half of it
    # holds all steps of this data set)
    reach: int = 128
    # steps, batch in windows, rate, seed
    training: TrainingSettings = field(default=LINKER_TRAINING)

    def __post_init__(self) -> None:
        """Refuse a network that cannot be built."""
        if self.window < 2:
            raise ValueError(f"window must be at least 2 frames, got {self.window}")
        if self.layers < 1 or self.heads < 1 or self.width % (2 * self.heads):
            raise ValueError(
                "layers and heads must be at least 1 and width a multiple of 2 * heads, got "
                f"layers={self.layers}, heads={self.heads}, width={self.width}"
            )


@dataclass(frozen=True, eq=False)
class Linker:
    """A trained linker."""

    network: nn.Module  # trackastra's TrackingTransformer, in evaluation mode
    settings: LinkerSettings  # what it was made with
    log: TrainingLog  # its losses


def train_linker(
    clips: MapStyle, settings: LinkerSettings, *, checkpoint: Path, progress: bool = True
) -> Linker:
    """Train a Trackastra from scratch on the CPU; after a kill, the same call continues.

    Trackastra: Gallusser and Weigert, ECCV 2024. Windows of the clips are augmented at random; the
    last tenth of the clips is held out.
    """
    if len(clips) < 2:
        raise ValueError(f"clips must hold at least 2 (the last is held out), got {len(clips)}")
    training = settings.training
    get_windows = functools.cache(lambda index: make_clip_windows(clips[index], settings.window))
    known = len(clips) - max(1, int(len(clips) * HELD_OUT))

    def train_loss(model: nn.Module, step: int) -> Tensor:
        rng = torch_rng(training.seed, "linker", "step", step)
        batch: list[Window] = []
        for _ in range(TRIES):
            windows = get_windows(int(torch.randint(known, (), generator=rng)))
            place = torch.rand((), generator=rng)
            if windows:
                batch.append(augment_window(windows[int(place * len(windows))], rng))
            if len(batch) == training.batch:
                return _loss(model, batch)
        raise ValueError("clips must show nuclei in two frames in a row, got hardly any")

    def val_loss(model: nn.Module) -> float:
        held = [window for index in range(known, len(clips)) for window in get_windows(index)]
        parts = [held[start : start + 16] for start in range(0, len(held), 16)]
        return float(np.mean([float(_loss(model, part)) for part in parts])) if parts else 0.0

    sizes = settings.width, settings.heads, settings.layers, settings.window, settings.reach
    make = functools.partial(
        require("trackastra.model").TrackingTransformer,
        coord_dim=2,
        feat_dim=FEATURES,
        d_model=settings.width,
        nhead=settings.heads,
        dropout=0.0,  # it would draw from the global random state
        feat_embed_per_dim=8,
        window=settings.window,
        spatial_pos_cutoff=settings.reach,
        num_encoder_layers=settings.layers,
        num_decoder_layers=settings.layers,
    )
    ends = hash_clips(clips[0]), hash_clips(clips[len(clips) - 1])
    losses, run = (train_loss, val_loss), Run(checkpoint, progress=progress)
    network, log = train_network(
        "linker", make, lambda _: losses, training, run, data=(*sizes, len(clips), *ends)
    )
    return Linker(network, settings, log)


def link(linker: Linker, video: npt.NDArray[np.float32], masks: Labels) -> Tracked:
    """Link the nuclei of a video, greedily by falling probability, with divisions.

    Masks with the ids of tracks and their table; a valid result of the Cell Tracking Challenge.
    """
    if video.shape != masks.shape or masks.ndim != 3 or len(masks) < 2:
        raise ValueError(
            "video and masks must be [F, H, W] of one shape with F at least 2, got "
            f"{video.shape} and {masks.shape}"
        )
    edges = []
    if masks.any():
        features = _extract_features(video, masks)
        with _silence():
            windows = require("trackastra.data").build_windows(
                features, linker.settings.window, progbar_class=_NO_BAR, as_torch=True
            )
            predicted = require("trackastra.model.predict").predict_windows(
                windows, features, linker.network, spatial_dim=2, progbar_class=_NO_BAR
            )
            tracking, reach = require("trackastra.tracking"), linker.settings.reach
            nodes, weights = predicted["nodes"], predicted["weights"]
            graph = tracking.build_graph(nodes, weights, max_distance=reach)
            solution = tracking.track_greedy(graph)
        node_of = {name: (int(at["time"]), int(at["label"])) for name, at in graph.nodes.items()}
        edges = [(node_of[source], node_of[target]) for source, target in solution.edges]
    return apply_links(masks, edges)


def _loss(network: nn.Module, batch: list[Window]) -> Tensor:
    """Return the mean cross-entropy of the links, before and after the parental softmax."""
    packed = require("trackastra.data").collate_sequence_padding(batch)
    times, absent = packed["timepoints"].long(), packed["padding_mask"]
    places = torch.cat([times.unsqueeze(2).float(), packed["coords"].float()], dim=2)
    logits = network(places, features=packed["features"].float(), padding_mask=absent)
    void = absent.unsqueeze(1) | absent.unsqueeze(2)
    logits = logits.masked_fill(void, 0)
    utils = require("trackastra.utils")
    losses = []
    for raw, true, time, gone in zip(logits, packed["assoc_matrix"], times, void, strict=True):
        sure = utils.blockwise_causal_norm(raw, time, mode="quiet_softmax", mask_invalid=gone)
        loss = RAW_WEIGHT * F.binary_cross_entropy_with_logits(raw, true, reduction="none")
        loss = loss + F.binary_cross_entropy(sure, true, reduction="none")
        daughters = utils.blockwise_sum(true, time, dim=1)
        weight = 1 + true * torch.where(daughters > 1, DIVISION_WEIGHT, 1.0)
        counts = keep_within_gap(time) & ~gone
        losses.append((loss * weight)[counts].mean())
    return torch.stack(losses).mean()
