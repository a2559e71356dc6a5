"""Scores of masks and tracks by the measures of the Cell Tracking Challenge."""

import collections
import contextlib
import io
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bvdm_data.background import estimate_background
from bvdm_data.clip import LARGEST_COUNT, CameraScale, split_gaps
from bvdm_data.datasets.ctc import guess_scale, read_sequence
from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER
from bvdm_data.datasets.tiff import write_images
from bvdm_data.datasets.tracks import check_ids_match, check_track_table
from bvdm_data.fitting.tracker import Labels, Tracked
from bvdm_data.system import require

# What is measured of links, by the names of py-ctcmetrics. BIO is the mean of CT, TF, BC and CCA.
LINK_MEASURES = {
    "lnk": "LNK", "bc": "BC(1)", "tra": "TRA", "bc0": "BC(0)", "bc2": "BC(2)", "bc3": "BC(3)",
    "ct": "CT", "tf": "TF", "cca": "CCA", "aogm": "AOGM", "ns": "AOGM_NS", "fn": "AOGM_FN",
    "fp": "AOGM_FP", "ed": "AOGM_ED", "ea": "AOGM_EA", "ec": "AOGM_EC",
}  # fmt: skip
DIMMEST = 0.1  # share of the nuclei that counts as dim
COUNTS = "aogm", "ns", "fn", "fp", "ed", "ea", "ec"  # those of them that are no shares
METRICS = ("Valid", "SEG", "TRA", "DET", "LNK", "BC")  # what py-ctcmetrics is asked for


@dataclass(frozen=True)
class Scores:
    """Scores of one result, each from 0 (worst) to 1; NaN where a measure is not defined."""

    # SEG, the mean Jaccard index over the reference nuclei, 0 for a missed one (Maška et al. 2014)
    seg: float
    det: float  # DET, the cost of the missed, superfluous and merged nuclei (Matula et al. 2015)
    tra: float  # TRA, DET with the links; nearly all of it is DET
    lnk: float  # LNK, the links alone
    # BC(1), the F1 score of the divisions found within one frame (Ulman et al. 2017); NaN where
    # the reference has none
    bc: float
    # 1 where every track is there in each frame from its first to its last, else 0 and the others
    # NaN. 0 for a result without any nucleus, whose other scores are 0
    valid: float


@dataclass(frozen=True, eq=False)
class Reference:
    """An annotated real video, made ready for scoring by :func:`read_reference`."""

    video: npt.NDArray[np.float32]  # grey values in [0, 1], [F, H, W] float32
    masks: npt.NDArray[np.int32]  # ids of the tracks, [F, H, W] int32
    tracks: npt.NDArray[np.int32]  # id, first frame, last frame, parent, [n, 4] int32
    # width in pixels of the band that was cleared, and is to be cleared in results
    border: int = DEFAULT_BORDER


def read_reference(
    root: str | Path,
    sequence: str = "02",
    *,
    start: int | None = None,
    stop: int | None = None,
    border: int = DEFAULT_BORDER,
    scale: CameraScale | None = None,
) -> Reference:
    """Read an annotated video from a frame up to its first without masks, and clear the border.

    Without a scale, the video gets one of its own.
    """
    source = read_sequence(root, sequence)
    source = source.cut(source.numbers[0] if start is None else start, stop)
    scale = scale or guess_scale(source)
    grey, labels = [], []
    for number in source.numbers:
        if (masks := source.masks(number)) is None:
            break
        grey.append(scale.to_grey(source.frame(number)))
        labels.append(masks)
    if len(grey) < 2:
        raise ValueError(
            f"sequence {sequence!r} of {root} must have masks in at least its first 2 frames to be "
            f"a reference, got {len(grey)} (start={start}, stop={stop})"
        )
    masks, tracks = clear_outside(np.stack(labels), source.tracks, border)
    return Reference(np.stack(grey), masks, tracks, border)


def clear_border(masks: Labels, border: int = DEFAULT_BORDER) -> npt.NDArray[np.int32]:
    """Remove, frame by frame, the nuclei that lie wholly in a band at the edge.

    What is left is the challenge's field of interest. Do it to a result and its reference alike.
    """
    height, width = masks.shape[1:]
    if not 0 <= 2 * border < min(height, width):
        raise ValueError(
            f"border must be from 0 to below half of the frame's {height} x {width} pixels, got "
            f"{border}"
        )
    cleared = masks.astype(np.int32)
    for frame in cleared:
        inside = np.unique(frame[border : height - border, border : width - border])
        frame[~np.isin(frame, inside)] = 0
    return cleared


def clear_outside(masks: Labels, tracks: Labels, border: int = DEFAULT_BORDER) -> Tracked:
    """Clear the border of tracked masks and make their table anew; ids count from 1.

    A track that leaves through the band and comes back gets a new id, whose parent is its former
    one.
    """
    parents = {int(row[0]): int(row[3]) for row in tracks}
    renamed, table, _ = split_gaps(clear_border(masks, border), parents)
    return renamed, table


def score(
    masks: Labels, tracks: Labels, reference_masks: Labels, reference_tracks: Labels
) -> Scores:
    """Score a result with py-ctcmetrics, the measures of the Cell Tracking Challenge.

    The reference's masks are its segmentation and its tracking truth at once. LNK is NaN where the
    reference has no links.
    """
    values = _measure(masks, tracks, reference_masks, reference_tracks, METRICS)
    return Scores(*[values[name] for name in ("SEG", "DET", "TRA", "LNK", "BC(1)", "Valid")])


def score_links(
    masks: Labels, tracks: Labels, reference_masks: Labels, reference_tracks: Labels
) -> dict[str, float]:
    """Measure the links of a result by all of ``LINK_MEASURES``; NaN where one is not defined.

    AOGM and its parts are counts: needed splits, missed and false nuclei, false and missed links,
    and links of the wrong kind.
    """
    given = masks, tracks, reference_masks, reference_tracks
    values = _measure(*given, ("DET", "TRA", "CT", "TF", "BC", "CCA", "LNK"))
    return {figure: values[name] for figure, name in LINK_MEASURES.items()}


@dataclass(frozen=True)
class Matches:
    """How nuclei and predictions match; a nucleus counts once in each frame.

    They match where the prediction covers more than half of the nucleus, the challenge's rule.
    """

    found: float  # share of the nuclei that a prediction matches
    found_dim: float  # the same of the dimmest nuclei
    false_positives: float  # predictions a frame that match no nucleus
    # median area of a prediction over that of the nucleus that it matches; NaN without a match
    area_ratio: float


def match_nuclei(masks: Labels, reference_masks: Labels, video: npt.NDArray[np.float32]) -> Matches:
    """Match predictions and nuclei frame by frame, all ``[F, H, W]``."""
    frames = [_match(*frame) for frame in zip(masks, reference_masks, video, strict=True)]
    ratio, light = (np.concatenate([frame[i] for frame in frames]) for i in (0, 1))
    is_found = np.isfinite(ratio)
    dim = np.argsort(light, kind="stable")[: math.ceil(DIMMEST * len(light))]
    wrong = sum(frame[2] for frame in frames) / len(frames)
    median = float(np.median(ratio[is_found])) if is_found.any() else math.nan
    return Matches(float(is_found.mean()), float(is_found[dim].mean()), wrong, median)


def _measure(
    masks: Labels,
    tracks: Labels,
    reference_masks: Labels,
    reference_tracks: Labels,
    metrics: Sequence[str],
) -> Mapping[str, float]:
    """Return measures by the names of py-ctcmetrics; NaN where one is not defined."""
    if masks.shape != reference_masks.shape or masks.ndim != 3 or len(masks) < 2:
        raise ValueError(
            "masks and reference_masks must be [F, H, W] of one shape with F at least 2, got "
            f"{masks.shape} and {reference_masks.shape}; give masks of zeros for frames without any"
        )
    if not reference_masks.any():
        raise ValueError("reference_masks must hold at least one nucleus, got none")
    for name, ids in (("masks", masks), ("reference_masks", reference_masks)):
        if ids.min() < 0 or ids.max() > LARGEST_COUNT:
            raise ValueError(
                f"{name} must hold ids from 0 to {LARGEST_COUNT}, got {ids.min()} to {ids.max()}"
            )
    table = check_track_table(tracks, len(masks))
    truth = check_track_table(reference_tracks, len(masks))
    check_ids_match(reference_masks, truth)
    has_links = bool(((truth[:, 2] > truth[:, 1]) | (truth[:, 3] > 0)).any())
    if not len(table) and not masks.any():
        _, counts = np.unique(truth[truth[:, 3] > 0, 3], return_counts=True)
        lnk, bc = (0.0 if known else math.nan for known in (has_links, (counts > 1).any()))
        known = dict.fromkeys(("SEG", "DET", "TRA", "Valid"), 0.0) | {"LNK": lnk, "BC(1)": bc}
    elif not len(table):
        known = {"Valid": 0.0}
    else:
        # Without links to find, the library divides by 0.
        names = [name for name in metrics if has_links or name != "LNK"]
        known = _run_library(masks, table, reference_masks, truth, names)
    return collections.defaultdict(lambda: math.nan, known)


def _run_library(
    masks: Labels, table: Labels, reference_masks: Labels, truth: Labels, metrics: list[str]
) -> dict[str, float]:
    require("ctc_metrics")
    evaluate = require("ctc_metrics.scripts.evaluate").evaluate_sequence
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        # The library adds ids of both sides in the dtype of the files, and takes the smallest one
        # of a frame for the background.
        found, truths = (
            np.pad(ids, ((0, 0), (0, 1), (0, 0))).astype(np.uint32)
            for ids in (masks, reference_masks)
        )
        write_images(home / "01_RES", "mask", found)
        np.savetxt(home / "01_RES" / "res_track.txt", table, fmt="%d")
        write_images(home / "01_GT" / "SEG", "man_seg", truths)
        write_images(home / "01_GT" / "TRA", "man_track", truths)
        np.savetxt(home / "01_GT" / "TRA" / "man_track.txt", truth, fmt="%d")
        # One thread: the library's pool would fork a process in which torch has run.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = evaluate(str(home / "01_RES"), str(home / "01_GT"), metrics, threads=1)
    return {name: float(value) for name, value in scores.items() if value is not None}


def _match(
    masks: Labels, reference: Labels, grey: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]:
    """Return area ratio (NaN without a match) and light of each nucleus; and unmatched labels."""
    names, rows = np.unique(reference, return_inverse=True)
    labels, columns = np.unique(masks, return_inverse=True)
    pairs = rows.ravel() * len(labels) + columns.ravel()
    counts = np.bincount(pairs, minlength=len(names) * len(labels)).reshape(len(names), -1)
    # Areas are those of the whole frame, overlaps those of nuclei with predictions.
    area, predicted = counts.sum(1), counts.sum(0)
    above = (grey - estimate_background(grey, reference.astype(np.int32))).ravel()
    light = np.bincount(rows.ravel(), above) / area
    covered = counts * (labels > 0)
    matched = covered.argmax(1)
    is_found = (covered.max(1) * 2 > area) & (names > 0)
    ratio = np.where(is_found, predicted[matched] / area, math.nan)
    wrong = int(np.count_nonzero(labels)) - len(np.unique(matched[is_found]))
    return ratio[names > 0], light[names > 0], wrong
