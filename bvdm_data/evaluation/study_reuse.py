"""Reuse: what it costs in training value to show a painted nucleus more than once."""

import time
from dataclasses import asdict, replace
from typing import Any

from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation.arms import Data, describe_synthetic, make_streamed_dataset
from bvdm_data.evaluation.experiment import Arm
from bvdm_data.evaluation.seg_tra import Reference
from bvdm_data.evaluation.training_value import Budget, Say, summarize_arms, train_arms
from bvdm_data.fitting.training import compute_fingerprint
from bvdm_data.synth.cell_bank import PoolSettings

POOLS: dict[str, PoolSettings | None] = {
    "fresh nuclei": None,
    "pool, 1 pair renewed a clip": PoolSettings(),
    "pool, 0.1 pairs renewed a clip": PoolSettings(renew=0.1),
    "64 pairs, none renewed": PoolSettings(pairs=64, renew=0),
    "16 pairs, none renewed": PoolSettings(pairs=16, renew=0),
}
"""What is compared, by name."""

_TIMED = 20


def evaluate_reuse(data: Data, reference: Reference, budget: Budget, say: Say) -> dict[str, Any]:
    """Train networks on endless streams that show nuclei more and more often.

    Every sample is a clip that was never seen before, straight from the data set.
    """
    found: dict[str, Any] = {}
    data = replace(data, method="fast", variation=None)
    for name, pool in POOLS.items():
        videos = make_streamed_dataset(data, pool)
        identity = compute_fingerprint("stream", describe_synthetic(videos), pool)
        trials = train_arms(
            [Arm(name, videos, identity)], range(budget.seeds), data, reference, budget, say
        )
        seconds = measure_seconds_per_clip(videos)
        say(f"{name:>14}  {seconds:.3f} s a clip")
        found[name] = summarize_arms(trials, budget) | {
            "seconds_per_clip": seconds,
            "pool": None if pool is None else asdict(pool),
        }
    return found


def measure_seconds_per_clip(videos: SyntheticHeLaVideos) -> float:
    """Time clips, the pool filled by as many before them as it holds pairs."""
    filled = videos.pool.pairs if videos.pool is not None else 1
    for number in range(filled):
        videos.clip(number)
    begun = time.perf_counter()
    for number in range(filled, filled + _TIMED):
        videos.clip(number)
    return round((time.perf_counter() - begun) / _TIMED, 4)
