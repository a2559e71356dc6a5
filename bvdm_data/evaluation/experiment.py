"""Train the same networks on the clips of each arm and test them on the held-out video."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bvdm_data.evaluation import segmenter
from bvdm_data.evaluation.arms import Arm
from bvdm_data.evaluation.clip_cache import cache_json
from bvdm_data.evaluation.seg_tra import (
    Matches,
    Reference,
    Scores,
    clear_border,
    match_nuclei,
    score,
)
from bvdm_data.evaluation.segmenter import Samples, SegmenterSettings
from bvdm_data.fitting import tracker
from bvdm_data.fitting.training import compute_fingerprint

BASELINE = "real"  # name of the arm that all others are compared to
# Version of segmenter, loss and scoring; under another number nothing is read from the cache.
RECIPE = 3
# What is measured of each trained network, in the order of tables.
FIGURES = (
    "seg", "det", "tra", "lnk", "bc", "valid", "found", "found_dim", "false_positives", "area_ratio"
)  # fmt: skip
# Figures and other entries that are not shares, which lie between 0 and 1.
UNBOUNDED = ("false_positives", "area_ratio", "seconds")

_ROUNDED = 1e-9  # by which a figure may leave its range

Log = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Trial(Matches, Scores):
    """One network trained on an arm, tested on a video."""

    arm: str  # name of the arm
    seed: int  # seed of the weights, of the choice of samples and of the augmentation
    seconds: float  # time of training and testing, since the last interruption


def train_arm(
    arm: Arm, seed: int, settings: SegmenterSettings, folder: Path, *, progress: bool = True
) -> segmenter.Segmenter:
    """Train a segmenter on an arm, or read it; after a kill, the same call continues."""
    return segmenter.train_segmenter(
        arm.clips,
        settings,
        checkpoint=folder / f"{_hash_trial(arm, seed, settings)}.pt",
        identity=arm.identity,
        seed=seed,
        progress=progress,
    )


def train_and_test(
    arm: Arm,
    seed: int,
    tests: Mapping[str, Reference],
    settings: SegmenterSettings,
    folder: Path,
    *,
    progress: bool = True,
) -> dict[str, Trial]:
    """Train a segmenter on an arm and test it on videos; what ``folder`` has of that is read.

    After a kill during the training, the same call continues. A further test of a network that is
    there does not train it again.
    """
    trained = _hash_trial(arm, seed, settings)
    scoring = (
        segmenter.FOREGROUND, segmenter.SEED_DISTANCE, segmenter.NUCLEUS_AREA, tracker.LINK_REACH,
        tracker.SPLIT_REACH,
    )  # fmt: skip

    given = arm, seed, settings, folder
    train = functools.cache(functools.partial(train_arm, *given, progress=progress))

    def test(reference: Reference) -> dict[str, Any]:
        start = time.monotonic()
        labels = segment(train(), reference.video, reference.border)
        scores = score(*tracker.track(labels), reference.masks, reference.tracks)
        matches = match_nuclei(labels, reference.masks, reference.video)
        seconds = round(time.monotonic() - start, 1)
        return asdict(scores) | asdict(matches) | {"seconds": seconds}

    trials = {}
    for name, reference in tests.items():
        arrays = map(torch.from_numpy, (reference.video, reference.masks, reference.tracks))
        tested = compute_fingerprint(compute_fingerprint(*arrays), scoring)
        path = folder / f"{trained}-{tested}.json"
        kept = _cache_figures(path, functools.partial(test, reference), ("arm", "seed"), Trial)
        trials[name] = Trial(arm=arm.name, seed=seed, **kept)
    return trials


@dataclass(frozen=True)
class _Trials(Dataset[dict[str, Trial]]):
    """Trials by number, seed by seed, so that a killed evaluation has results of every arm."""

    arms: Sequence[Arm]
    given: tuple[Any, ...]  # further arguments of :func:`train_and_test`
    progress: bool

    def __getitem__(self, index: int) -> dict[str, Trial]:
        seed, number = divmod(index, len(self.arms))
        return train_and_test(self.arms[number], seed, *self.given, progress=self.progress)


def run_trials(
    arms: Sequence[Arm],
    seeds: int,
    tests: Mapping[str, Reference],
    settings: SegmenterSettings,
    folder: Path,
    *,
    workers: int = 0,
    progress: bool = True,
    log: Log = lambda line: None,
) -> dict[str, list[Trial]]:
    """Train and test a segmenter for every arm and seed; trials by the name of the test.

    Each of so many workers is a process of one thread that trains one network at a time.
    """
    jobs = _Trials(arms, (tests, settings, folder), progress and not workers)
    # Spawned, since forked processes could wait for a thread of this one without end.
    options: dict[str, Any] = {"num_workers": workers, "generator": torch.Generator()}
    options |= {"multiprocessing_context": "spawn"} if workers else {}
    trials: dict[str, list[Trial]] = {name: [] for name in tests}
    for made in DataLoader(jobs, batch_size=None, sampler=range(seeds * len(arms)), **options):
        for name, trial in made.items():
            trials[name].append(trial)
            figures = {figure: getattr(trial, figure) for figure in FIGURES}
            shown = trial.arm if len(tests) == 1 else f"{trial.arm}, {name}"
            log(format_figures(shown, {"seed": trial.seed} | figures))
    return trials


def segment(network: nn.Module, video: npt.NDArray[np.float32], border: int) -> segmenter.Labels:
    """Segment a video frame by frame, and clear the border band; labels ``[F, H, W]``."""
    labels = [segmenter.separate_instances(segmenter.predict(network, frame)) for frame in video]
    return clear_border(np.stack(labels), border)


def score_oracle(reference: Reference) -> Scores:
    """Score the tracker on the reference masks: what a perfect segmenter would reach."""
    return score(*tracker.track(reference.masks), reference.masks, reference.tracks)


def summarize_trials(trials: Sequence[Trial], settings: SegmenterSettings) -> dict[str, Any]:
    """Return trials, rows by arm and the settings as JSON values."""
    rows, plain = compare_arms(trials), [*map(asdict, trials)]
    return {"trials": plain, "rows": rows, "baseline": BASELINE, "settings": asdict(settings)}


def compare_arms(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Summarise trials by arm, with differences to the baseline, paired by seed.

    Two trials of the same seed start from the same weights and draw the same augmentation. A row
    has the name of the ``arm``, the number of ``seeds`` and by figure: ``mean``; ``spread``, the
    standard deviation over the seeds; ``gain``, the mean difference to the baseline; ``error``,
    the standard error of the gain, for these clips; ``seeds_needed``, the seeds for which a t-test
    at 5 % would call a difference of this size and spread one. What is not known is NaN.
    """
    base = {trial.seed: trial for trial in trials if trial.arm == BASELINE}
    rows = []
    for name in dict.fromkeys(trial.arm for trial in trials):
        own = [trial for trial in trials if trial.arm == name]
        row: dict[str, Any] = {"arm": name, "seeds": len(own)}
        row |= {key: {} for key in ("mean", "spread", "gain", "error", "seeds_needed")}
        for figure in FIGURES:
            values = {trial.seed: getattr(trial, figure) for trial in own}
            gains = [values[seed] - getattr(base[seed], figure) for seed in values if seed in base]
            gain, deviation = compute_mean_and_spread(gains)
            row["mean"][figure], row["spread"][figure] = compute_mean_and_spread([*values.values()])
            row["gain"][figure] = gain
            row["error"][figure] = deviation / math.sqrt(max(len(gains), 1))
            row["seeds_needed"][figure] = _count_seeds_needed(gain, deviation)
        rows.append(row)
    return rows


def format_figures(name: str, figures: Mapping[str, object]) -> str:
    """Return a name and its figures in one line of text."""
    shown = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures.items()
        if value is not None
    ]
    return "  ".join([f"{name:>36}", *shown])


def _hash_trial(arm: Arm, seed: int, settings: SegmenterSettings) -> str:
    # The first samples stand for the code that cuts, augments and turns them into targets.
    samples = Samples(arm.clips, seed, settings.batch)
    first = [part for index in range(settings.batch) for part in samples[index].values()]
    constants = segmenter.CHANNELS, segmenter.STATISTICS_BATCHES, RECIPE
    return compute_fingerprint("trial", arm.identity, settings, seed, constants, *first)


def compute_mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; NaN where there are too few values."""
    mean = float(np.mean(values)) if values else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _count_seeds_needed(gain: float, deviation: float) -> float:
    if not (math.isfinite(gain) and math.isfinite(deviation)) or gain == 0:
        return math.nan
    thresholds = (
        (seeds, float(stats.t.ppf(0.975, seeds - 1)) * deviation / math.sqrt(seeds))
        for seeds in range(2, 10_000)
    )
    return next((float(seeds) for seeds, least in thresholds if abs(gain) >= least), math.nan)


def _cache_figures(
    path: Path, measure: Callable[[], dict[str, Any]], given: Sequence[str], kind: type[Any]
) -> dict[str, float]:
    """Read or measure the fields of a dataclass that are not given; null is NaN."""
    names = [field.name for field in fields(kind) if field.name not in given]

    def find_fault(found: Mapping[str, Any]) -> str | None:
        for name in [*names, *found]:
            value, most = found.get(name, ""), math.inf if name in UNBOUNDED else 1.0
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in names:
                return f"{name!r} is no entry of it"[:200]
            if value is not None and not (is_number and -_ROUNDED <= value <= most + _ROUNDED):
                return f"{name!r} must be a number from 0 to {most:g} or null, got {value!r}"[:200]
        return None

    found = cache_json(path, measure, find_fault)
    return {name: math.nan if found[name] is None else float(found[name]) for name in names}
