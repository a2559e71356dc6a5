"""Experiment: train the same segmenter on each arm's data, test it on the held-out video."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER
from bvdm_data.evaluation import segmenter as recipe
from bvdm_data.evaluation.linker import LINK_REACH, SPLIT_REACH, track
from bvdm_data.evaluation.seg_tra import Reference, Scores, clear_border, measure_recall, score
from bvdm_data.evaluation.segmenter import (
    Clips,
    Labels,
    Samples,
    SegmenterSettings,
    predict,
    separate_instances,
    train_segmenter,
)
from bvdm_data.files import open_atomic
from bvdm_data.fitting.training import compute_fingerprint

MOST_SEEDS = 10_000
"""Numbers of seeds that are looked through."""

BASELINE = "real"
"""Name of the arm that all others are compared to."""

RECIPE = 1
"""Version of segmenter, loss and scoring; with another number nothing kept is used again."""

FIGURES = ("seg", "det", "tra", "lnk", "bc", "valid", "found", "found_dim")
"""What is measured of each trained network, in the order of tables."""


@dataclass(frozen=True)
class Arm:
    """One kind of training data."""

    name: str  # what tables call it
    clips: Clips  # its clips, by number, without end
    identity: str  # digest of all that decides the clips: equal identities mean equal clips
    augmentation: str = "plain"  # "plain", as for every arm, or "strong"


@dataclass(frozen=True)
class Trial:
    """One network trained on an arm, tested on the held-out video."""

    arm: str  # name of the arm
    seed: int  # seed of the weights, of the choice of samples and of the augmentation
    seg: float  # mean overlap (Jaccard) of matched nuclei, 0 to 1
    det: float  # detection, 0 to 1
    tra: float  # tracking, 0 to 1
    lnk: float  # linking, 0 to 1
    bc: float  # F1 of divisions in the right frame or one beside it, BC(1); NaN without divisions
    valid: float  # 1 if the challenge would accept the result
    found: float  # share of reference nuclei that a prediction covers by more than half
    found_dim: float  # the same of the dimmest tenth
    seconds: float  # time of training and testing, since the last interruption


@dataclass(frozen=True)
class ArmSummary:
    """All trials of one arm."""

    arm: str  # name of the arm
    seeds: int  # how many trials there are
    mean: dict[str, float]  # mean of each figure
    spread: dict[str, float]  # standard deviation over the seeds; NaN for one seed
    # mean over the seeds of the difference to the baseline with the same seed; NaN where there is
    # no baseline
    gain: dict[str, float]
    # standard error of that difference; NaN for one seed. It holds for these clips: the seeds of
    # *synthetic* share one set of clips, those of *real* have windows of their own
    error: dict[str, float]
    # seeds for which a t-test at 5 % would call a difference of this size and spread one; NaN
    # where it cannot be said
    seeds_needed: dict[str, float]


def train_and_test(
    arms: Iterable[Arm],
    reference: Reference,
    *,
    folder: Path,
    seeds: Sequence[int] = (0, 1, 2),
    settings: SegmenterSettings | None = None,
    workers: int = 0,
    progress: bool = True,
    done: Callable[[Trial], object] | None = None,
) -> list[Trial]:
    """Train and test one network for every arm and seed.

    Seeds are gone through one after the other, so that an interrupted experiment has something to
    say of every arm. A trial that was made before, with the same clips, settings, seed and
    reference, is read from ``folder``; one that was interrupted goes on.
    """
    chosen = settings or SegmenterSettings()
    tested = hash_reference(reference)
    trials = []
    listed = list(arms)
    for seed in seeds:
        for arm in listed:
            trial = _trial(arm, seed, reference, tested, chosen, folder, workers, progress)
            trials.append(trial)
            if done is not None:
                done(trial)
    return trials


def score_oracle(reference: Reference) -> Scores:
    """Score the tracker on the reference masks: what a perfect segmenter would reach."""
    masks, tracks = track(reference.masks)
    return score(masks, tracks, reference.masks, reference.tracks)


def segment(
    network: recipe.Segmenter, video: npt.NDArray[np.float32], border: int = DEFAULT_BORDER
) -> Labels:
    """Segment a video frame by frame, and clear the border band.

    Labels of each frame, without any link between frames, ``[F, H, W]``.
    """
    found = np.stack([separate_instances(predict(network, frame)) for frame in video])
    return clear_border(found, border)


def compare_arms(trials: Sequence[Trial], baseline: str = BASELINE) -> list[ArmSummary]:
    """Summarise trials by arm, with paired differences to the baseline.

    Two trials are a pair if they have the same seed: the same weights to start from and
    the same draws of the augmentation.
    """
    base = {trial.seed: trial for trial in trials if trial.arm == baseline}
    names = list(dict.fromkeys(trial.arm for trial in trials))
    return [_row(name, [trial for trial in trials if trial.arm == name], base) for name in names]


def _row(name: str, trials: Sequence[Trial], base: dict[int, Trial]) -> ArmSummary:
    mean, spread, gain, error, needed = {}, {}, {}, {}, {}
    for figure in FIGURES:
        values = np.array([getattr(trial, figure) for trial in trials], float)
        pairs = [t for t in trials if t.seed in base]
        steps = np.array([getattr(t, figure) - getattr(base[t.seed], figure) for t in pairs], float)
        mean[figure] = float(values.mean())
        spread[figure] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        gain[figure] = float(steps.mean()) if len(steps) else math.nan
        deviation = float(steps.std(ddof=1)) if len(steps) > 1 else math.nan
        error[figure] = deviation / math.sqrt(len(steps)) if len(steps) > 1 else math.nan
        needed[figure] = _seeds_needed(gain[figure], deviation)
    return ArmSummary(name, len(trials), mean, spread, gain, error, needed)


def _seeds_needed(gain: float, deviation: float) -> float:
    if not (math.isfinite(gain) and math.isfinite(deviation)) or gain == 0:
        return math.nan
    for seeds in range(2, MOST_SEEDS):
        bound = float(stats.t.ppf(0.975, seeds - 1)) * deviation / math.sqrt(seeds)
        if abs(gain) >= bound:
            return float(seeds)
    return math.nan


def _trial(
    arm: Arm,
    seed: int,
    reference: Reference,
    tested: str,
    settings: SegmenterSettings,
    folder: Path,
    workers: int,
    progress: bool,
) -> Trial:
    fixed = (
        recipe.CHANNELS,
        recipe.FOREGROUND,
        recipe.SEED_DISTANCE,
        recipe.LEAST_AREA,
        LINK_REACH,
        SPLIT_REACH,
        RECIPE,
    )
    # The first samples stand for the code that cuts, augments and turns them into targets.
    samples = Samples(arm.clips, arm.augmentation, seed, settings.batch)
    first = [part for number in range(settings.batch) for part in samples[number].values()]
    key = compute_fingerprint("trial", arm.identity, settings, seed, tested, fixed, *first)
    kept = folder / f"{key}.json"
    if kept.is_file():
        said = json.loads(kept.read_text())
        figures: dict[str, Any] = {k: math.nan if v is None else v for k, v in said.items()}
        figures["arm"] = arm.name
        return Trial(**figures)
    begun = time.monotonic()
    network = train_segmenter(
        arm.clips,
        settings,
        checkpoint=folder / f"{key}.pt",
        identity=arm.identity,
        augmentation=arm.augmentation,
        seed=seed,
        workers=workers,
        progress=progress,
    )
    labels = segment(network, reference.video, reference.border)
    masks, tracks = track(labels)
    scores = score(masks, tracks, reference.masks, reference.tracks)
    found, dim = measure_recall(labels, reference.masks, reference.video)
    seconds = round(time.monotonic() - begun, 1)
    trial = Trial(arm.name, seed, **asdict(scores), found=found, found_dim=dim, seconds=seconds)
    with open_atomic(kept) as temporary:
        temporary.write_text(json.dumps(replace_nan(asdict(trial)), indent=2) + "\n")
    return trial


def replace_nan(value: Any) -> Any:
    """Put None in the place of NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: replace_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def hash_reference(reference: Reference) -> str:
    """Return a digest of a reference: video, masks and tracks."""
    digest = hashlib.sha256()
    for array in (reference.video, reference.masks, reference.tracks):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
