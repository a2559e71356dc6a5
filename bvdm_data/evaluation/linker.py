"""A Trackastra that learns to link given masks to tracks with divisions."""

import contextlib
import functools
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from bvdm_data.adapters.common import find_ancestors, match_relatives
from bvdm_data.adapters.trackastra import (
    import_trackastra,
    make_transformer,
    mend_trackastra,
    save_transformer,
)
from bvdm_data.clip import Clip, take_part
from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER
from bvdm_data.datasets.detections import DetectionErrors, link_detections
from bvdm_data.datasets.sources import MapStyle
from bvdm_data.evaluation.clip_cache import hash_clips
from bvdm_data.evaluation.seg_tra import clear_outside
from bvdm_data.fitting.tracker import Labels, Node, Tracked, apply_links
from bvdm_data.fitting.training import Run, TrainingLog, TrainingSettings, train_network
from bvdm_data.rng import numpy_rng, torch_rng

PARTS = ("video", "masks", "tracks")  # of a clip, which linkers need
# Random change of a training window, all ours: zoom, grey factor, grey shift, and where in a large
# frame the window is assumed to lie, pixels. Trackastra's own (zoom and grey times 0.5 to 2) is
# made for many kinds of video and would hide how far the nuclei of this one move.
ZOOM, GREY_FACTOR, GREY_SHIFT, PLACE = (0.9, 1.1), (0.8, 1.25), (-0.05, 0.05), 1024.0
# Errors of what is measured, normal: px of a place, and of the logarithms of area, grey and shape.
SHAKE, NOISE = 1.0, 0.1

Window = dict[str, Tensor]

# A video is looked at turned by each quarter, and mirrored; probabilities are means over all.
_QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
_TURNS = [torch.linalg.matrix_power(_QUARTER, k) for k in range(4)]
VIEWS = [matrix for turn in _TURNS for matrix in (turn, turn.flip(1))]

_NO_BAR = functools.partial(tqdm, disable=True)


def make_clip_windows(clip: Clip, frames: int, gap: int = 1) -> list[Window]:
    """Measure the nuclei of a clip and cut it into overlapping windows."""
    for key in PARTS:
        take_part(clip, key)
    if len(clip["video"]) < frames:
        raise ValueError(
            f"window must be at most the {len(clip['video'])} frames of a clip, got {frames}"
        )
    _, windows = _cut_windows(clip["video"][:, 0].numpy(), clip["masks"].numpy(), frames)
    lines = find_ancestors(clip["tracks"][clip["tracks"][:, 0] > 0].numpy())
    for window in windows:
        window["assoc_matrix"] = match_relatives(lines, window["labels"].long())
        del window["t1"]
    return [w for w in windows if w["assoc_matrix"][keep_within_gap(w["timepoints"], gap)].any()]


def _make_views(clip: Clip, settings: "LinkerSettings", index: int) -> list[Clip]:
    """Return a clip as two segmenters find it, the better one with a tenth of the errors.

    In two of three clips, nuclei that lie wholly in the border band are unknown, as in annotated
    videos: they come into view whole, and are nobody's daughters.
    """
    if settings.errors is None:
        return [clip]
    _, masks, tracks = (take_part(clip, key) for key in PARTS)
    rng, errors = numpy_rng(index, "linker", "views"), settings.errors
    known: Tracked = masks.numpy(), tracks[tracks[:, 0] > 0].numpy()
    if rng.random() < CLEARED:
        known = clear_outside(*known, settings.border)
    views = []
    for factor in (LEAST_ERRORS, float(rng.uniform(*MORE_ERRORS))):
        shares = {name: min(factor * getattr(errors, name), 1.0) for name in SHARES}
        planted = replace(errors, **shares, seed=index)(_replace(clip, known))
        views.append(_replace(clip, link_detections(planted)))
    return views


def _replace(clip: Clip, known: Tracked) -> Clip:
    masks, tracks = map(torch.from_numpy, known)
    return cast(Clip, {**clip, "masks": masks, "tracks": tracks})


def augment_window(window: Window, rng: torch.Generator) -> Window:
    """Turn, mirror, zoom and shift a window, change its light, and blur what is measured."""
    turn, zoom, factor, shift, down, right, mirror = torch.rand(7, generator=rng).tolist()
    angle = torch.tensor(2 * np.pi * turn)
    size = ZOOM[0] * (ZOOM[1] / ZOOM[0]) ** zoom
    matrix = size * torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    if mirror < 0.5:
        matrix = matrix.flip(1)
    window = _turn(window, matrix)
    coords, features = window["coords"], window["features"]
    features[:, 0] *= size
    features[:, 1] *= GREY_FACTOR[0] * (GREY_FACTOR[1] / GREY_FACTOR[0]) ** factor
    features[:, 1] += GREY_SHIFT[0] + (GREY_SHIFT[1] - GREY_SHIFT[0]) * shift
    coords = coords + PLACE * torch.tensor([down, right])
    coords += SHAKE * torch.randn(coords.shape, generator=rng)
    area, grey, shape = (NOISE * torch.randn((len(coords), 3), generator=rng)).T
    features[:, 0] *= (area / 2).exp()
    features[:, 1] *= grey.exp()
    features[:, 2:6] *= (area + shape).exp()[:, None]
    return window | {"coords": coords}


def _turn(window: Window, matrix: Tensor) -> Window:
    """Multiply the coordinates of a window with a matrix, and what follows from its angle."""
    diameter, grey, inertia, edge = window["features"].float().split([1, 1, 4, 1], dim=1)  # type: ignore[no-untyped-call]
    turned = (matrix @ inertia.view(-1, 2, 2) @ matrix.T).reshape(-1, 4)
    coords = window["coords"].float() @ matrix.T
    features = torch.cat([diameter, grey, turned, edge], dim=1)
    return window | {"coords": coords - coords.amin(0), "features": features}


def _cut_windows(
    video: npt.NDArray[np.float32], masks: Labels, frames: int
) -> tuple[Sequence[Any], list[Window]]:
    """Measure the nuclei of each frame with Trackastra, and cut overlapping windows."""
    data = import_trackastra("trackastra.data")
    with _silence():
        bright = import_trackastra("trackastra.utils").normalize(video)
        features = data.get_features(
            masks.astype(np.int32), bright, features="wrfeat", ndim=2, progbar_class=_NO_BAR
        )
        windows = data.build_windows(features, frames, progbar_class=_NO_BAR, as_torch=True)
    return features, windows


def keep_within_gap(times: Tensor, most: int = 1) -> Tensor:
    """Return the pairs in the loss: the second at most so many frames later, ``[..., N, N]``."""
    gap = times.unsqueeze(-2) - times.unsqueeze(-1)
    return (gap > 0) & (gap <= most)


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


# Ours, to fit two cores: many steps of few windows (Trackastra's example for this data set: 8).
LINKER_TRAINING = TrainingSettings(steps=1800, batch=2, rate=5e-4, average=0.998, save_every=100)
RAW_WEIGHT = 0.01  # weight of the loss before the parental softmax (Trackastra)
HELD_OUT = 0.1  # share of the clips that is not trained on; our choice
LINKER_ERRORS = DetectionErrors(missed=0.05, merged=0.02, false=0.02)
# Each clip is seen with this share of the errors, and with between so many times as many.
LEAST_ERRORS, MORE_ERRORS = 0.1, (0.4, 1.6)
SHARES = ("missed", "missed_lineages", "merged", "split", "false")
CLEARED = 2 / 3  # share of the clips without the nuclei of the border band; our choice
FARTHEST = 1.5  # our choice: links of one video are up to so much longer than those of another
TRIES = 1000  # draws of a window with a link in it before a training gives up; our choice


@dataclass(frozen=True, kw_only=True)
class LinkerSettings:
    """The network and its training."""

    width: int = 128  # channels of the transformer (128: 0.95 M weights)
    heads: int = 4  # attention heads
    layers: int = 3  # layers of the encoder, and of the decoder
    window: int = 4  # frames that are looked at together
    gap: int = 1  # frames from one end of a link to the other, at most, in the loss
    pre_norm: bool = True  # the sum runs through the layers, which Trackastra 0.5 must be told
    feature_frequencies: bool = True  # features meet the frequencies that they are meant to
    # added weight in the loss of the links of a mother to her daughters. With Trackastra's 20, the
    # neighbours of missed nuclei divide, too; chosen on video 01, its masks and planted errors
    division_weight: float = 4.0
    # nuclei that are further apart do not look at each other, pixels (Trackastra's default is 256)
    attention: int = 128
    # nuclei that are further apart are not linked, pixels; None: FARTHEST times the longest link of
    # the training clips
    reach: float | None = None
    # of the detections of training clips, in the mean; None: the truth, with all at the border
    errors: DetectionErrors | None = LINKER_ERRORS
    border: int = DEFAULT_BORDER  # width of the band whose nuclei videos leave unknown, pixels
    # steps, batch in windows, rate, seed
    training: TrainingSettings = field(default=LINKER_TRAINING)

    def __post_init__(self) -> None:
        """Refuse a network that cannot be built."""
        if self.window < 2:
            raise ValueError(f"window must be at least 2 frames, got {self.window}")
        if not 1 <= self.gap < self.window:
            raise ValueError(f"gap must be from 1 to below window={self.window}, got {self.gap}")
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

    @functools.cache
    def get_windows(index: int) -> list[Window]:
        views = _make_views(clips[index], settings, index)
        return [w for view in views for w in make_clip_windows(view, settings.window, settings.gap)]

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
                return _compute_loss(model, batch, settings)
        raise ValueError("clips must show nuclei in two frames in a row, got hardly any")

    def val_loss(model: nn.Module) -> float:
        held = [window for index in range(known, len(clips)) for window in get_windows(index)]
        parts = [held[start : start + 16] for start in range(0, len(held), 16)]
        losses = [float(_compute_loss(model, part, settings)) for part in parts]
        return float(np.mean(losses or [0.0]))

    make = functools.partial(
        make_transformer,
        pre_norm=settings.pre_norm,
        feature_frequencies=settings.feature_frequencies,
        d_model=settings.width,
        nhead=settings.heads,
        dropout=0.0,  # it would draw from the global random state
        window=settings.window,
        spatial_pos_cutoff=settings.attention,
        num_encoder_layers=settings.layers,
        num_decoder_layers=settings.layers,
    )
    kind = replace(settings, training=LINKER_TRAINING)
    ends = hash_clips(clips[0]), hash_clips(clips[len(clips) - 1])
    losses, run = (train_loss, val_loss), Run(checkpoint, progress=progress)
    network, log = train_network(
        "linker", make, lambda _: losses, training, run, data=(kind, len(clips), *ends)
    )
    if settings.reach is None:
        windows = (window for index in range(known) for window in get_windows(index))
        longest = max(_find_longest_link(window, settings.gap) for window in windows)
        settings = replace(settings, reach=FARTHEST * longest)
    return Linker(network, settings, log)


def _find_longest_link(window: Window, gap: int) -> float:
    """Return the longest way from a nucleus to itself or its daughters, px."""
    linked = window["assoc_matrix"].bool() & keep_within_gap(window["timepoints"], gap)
    places = window["coords"].float()
    return float((torch.cdist(places, places) * linked).max())


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How probabilities of links become links.

    ``"assignment"``: for each two frames, the links of one to one with the largest product of
    probabilities, then second daughters by falling probability; ``"greedy"`` and ``"ilp"``:
    Trackastra's own, which does not use the numbers below.
    """

    method: str = "assignment"
    link: float = 0.05  # least probability of a link; Trackastra lists none below it
    # Least probability of a second daughter, chosen as the weight of divisions is.
    split: float = 0.7

    def __post_init__(self) -> None:
        """Refuse methods that there are not."""
        if self.method not in ("assignment", "greedy", "ilp"):
            raise ValueError(f"method must be 'assignment', 'greedy' or 'ilp', got {self.method!r}")
        if not (0 < self.link < 1 and 0 < self.split <= 1):
            raise ValueError(
                f"link and split must be probabilities above 0, got {self.link} and {self.split}"
            )


def link(
    linker: Linker,
    video: npt.NDArray[np.float32],
    masks: Labels,
    decoding: Decoding = Decoding(),
) -> Tracked:
    """Link the nuclei of a video, with divisions.

    Masks with the ids of tracks and their table; a valid result of the Cell Tracking Challenge.
    """
    return decode_links(predict_links(linker, video, masks), masks, decoding)


def predict_links(linker: Linker, video: npt.NDArray[np.float32], masks: Labels) -> Any:
    """Return Trackastra's graph of all links that may be, with their probabilities."""
    if video.shape != masks.shape or masks.ndim != 3 or len(masks) < 2:
        raise ValueError(
            "video and masks must be [F, H, W] of one shape with F at least 2, got "
            f"{video.shape} and {masks.shape}"
        )
    tracking = import_trackastra("trackastra.tracking")
    if not masks.any():
        return tracking.build_graph([])
    features, windows = _cut_windows(video, masks, linker.settings.window)
    predict = import_trackastra("trackastra.model.predict").predict_windows
    mean: Counter[tuple[int, int]] = Counter()
    with _silence():
        for matrix in VIEWS:
            turned = [_turn(window, matrix) for window in windows]
            predicted = predict(
                turned, features, linker.network, spatial_dim=2, progbar_class=_NO_BAR
            )
            mean.update({edge: p / len(VIEWS) for edge, p in predicted["weights"]})
        reach = linker.settings.reach
        return tracking.build_graph(predicted["nodes"], tuple(mean.items()), max_distance=reach)


def decode_links(graph: Any, masks: Labels, decoding: Decoding) -> Tracked:
    """Choose among the links of a graph and make tracks of them."""
    node_of = {name: (int(at["time"]), int(at["label"])) for name, at in graph.nodes.items()}
    if decoding.method == "assignment":
        chosen = _assign(graph, node_of, decoding)
    else:
        module = "trackastra.tracking" + ".ilp" * (decoding.method == "ilp")
        with _silence(), contextlib.redirect_stdout(io.StringIO()):
            solve = getattr(import_trackastra(module), f"track_{decoding.method}")
            chosen = list(solve(graph).edges)
    return apply_links(masks, [(node_of[source], node_of[target]) for source, target in chosen])


def _assign(graph: Any, node_of: dict[Any, Node], decoding: Decoding) -> list[tuple[Any, Any]]:
    """Link frame by frame at the least sum of -log p, and add second daughters."""
    links: list[tuple[Any, Any]] = []
    for time in sorted({time for time, _ in node_of.values()}):
        likely = {
            (source, target): float(p)
            for source, target, p in graph.edges(data="weight")
            if node_of[source][0] == time and p >= decoding.link
        }
        rows, columns = (list(dict.fromkeys(edge[side] for edge in likely)) for side in (0, 1))
        # A nucleus may be left without a link, at the price of the least likely one.
        cost = np.full((len(rows), len(columns) + len(rows)), -np.log(decoding.link))
        cost[:, : len(columns)] = np.inf
        row_of, column_of = ({name: i for i, name in enumerate(x)} for x in (rows, columns))
        for (source, target), p in likely.items():
            cost[row_of[source], column_of[target]] = -np.log(p)
        pairs = zip(*linear_sum_assignment(cost), strict=True)
        first = [(rows[i], columns[j]) for i, j in pairs if j < len(columns)]
        mothers, taken = {source for source, _ in first}, {target for _, target in first}
        for (source, target), p in sorted(likely.items(), key=lambda item: -item[1]):
            if p >= decoding.split and target not in taken and source in mothers:
                mothers.remove(source)
                taken.add(target)
                first.append((source, target))
        links += first
    return links


def save_linker(linker: Linker, folder: str | Path) -> None:
    """Write a folder that :func:`load_linker` and ``Trackastra.from_folder`` read."""
    with _silence():
        save_transformer(linker.network, folder, linker=json.dumps(asdict(linker.settings)))


def load_linker(folder: str | Path) -> Linker:
    """Read what :func:`save_linker` wrote."""
    model = import_trackastra("trackastra.model").Trackastra
    with _silence():
        found = mend_trackastra(model.from_folder(Path(folder), device="cpu"))
    if "linker" not in found.train_args:
        raise ValueError(f"{folder} must be written by save_linker, got another Trackastra's")
    given = json.loads(found.train_args["linker"])
    given["training"] = TrainingSettings(**given["training"])
    given["errors"] = given["errors"] and DetectionErrors(**given["errors"])
    return Linker(found.transformer.eval(), LinkerSettings(**given), TrainingLog())


def _compute_loss(network: nn.Module, batch: list[Window], settings: LinkerSettings) -> Tensor:
    """Return the mean cross-entropy of the links, before and after the parental softmax."""
    packed = import_trackastra("trackastra.data").collate_sequence_padding(batch)
    times, absent = packed["timepoints"].long(), packed["padding_mask"]
    places = torch.cat([times.unsqueeze(2).float(), packed["coords"].float()], dim=2)
    logits = network(places, features=packed["features"].float(), padding_mask=absent)
    void = absent.unsqueeze(1) | absent.unsqueeze(2)
    logits = logits.masked_fill(void, 0)
    utils = import_trackastra("trackastra.utils")
    losses = []
    for raw, true, time, gone in zip(logits, packed["assoc_matrix"], times, void, strict=True):
        sure = utils.blockwise_causal_norm(raw, time, mode="quiet_softmax", mask_invalid=gone)
        loss = RAW_WEIGHT * F.binary_cross_entropy_with_logits(raw, true, reduction="none")
        loss = loss + F.binary_cross_entropy(sure, true, reduction="none")
        daughters = utils.blockwise_sum(true, time, dim=1)
        weight = 1 + true * torch.where(daughters > 1, settings.division_weight, 1.0)
        counts = keep_within_gap(time, settings.gap) & ~gone
        losses.append((loss * weight)[counts].mean())
    return torch.stack(losses).mean()
