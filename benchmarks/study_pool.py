"""Reuse: what it costs in training value to show a painted nucleus more than once.

Run ``python -m benchmarks.study_pool Fluo-N2DL-HeLa --report docs/evaluation/report.json``.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from benchmarks.studies import make_parser, run_study, summarize, train_seeds
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation.arms import STREAM, Arm, describe_synthetic, make_synthetic_dataset
from bvdm_data.evaluation.evaluate import Run
from bvdm_data.evaluation.experiment import format_figures
from bvdm_data.fitting.training import compute_fingerprint
from bvdm_data.synth.cell_bank import PoolSettings

POOLS: dict[str, PoolSettings | None] = {
    "fresh nuclei": None,
    "pool, 1 pair renewed a clip": PoolSettings(),
    "pool, 0.1 pairs renewed a clip": PoolSettings(renew=0.1),
    "64 pairs, none renewed": PoolSettings(pairs=64, renew=0),
    "16 pairs, none renewed": PoolSettings(pairs=16, renew=0),
}


def measure(
    run: Run, pools: Mapping[str, PoolSettings | None] = POOLS, timed: int = 20
) -> dict[str, Any]:
    """Train networks on endless streams whose nuclei are shown more and more often."""
    results = {}
    data = replace(run.data, method="fast", variation=None)
    for name, pool in pools.items():
        videos = make_synthetic_dataset(data, **STREAM, pool=pool)
        identity = compute_fingerprint("stream", describe_synthetic(videos), pool)
        trials = train_seeds(run, Arm(name, videos, identity))
        seconds = measure_seconds_per_clip(videos, timed)
        run.log(format_figures(name, {"seconds a clip": seconds}))
        results[name] = summarize(run, trials) | {
            "seconds_per_clip": seconds,
            "pool": None if pool is None else asdict(pool),
        }
    return results


def measure_seconds_per_clip(videos: SyntheticHeLaVideos, timed: int) -> float:
    """Time clips after the pool has been filled by as many as it holds pairs."""
    filled = videos.pool.pairs if videos.pool is not None else 1
    for index in range(filled):
        videos.clip(index)
    begun = time.perf_counter()
    for index in range(filled, filled + timed):
        videos.clip(index)
    return round((time.perf_counter() - begun) / timed, 4)


if __name__ == "__main__":
    run_study("reuse", measure, make_parser(__doc__, seeds=3).parse_args())
