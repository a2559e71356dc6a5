"""Reuse: what it costs in training value to show a painted nucleus more than once.

Run ``python -m benchmarks.study_pool Fluo-N2DL-HeLa --report docs/evaluation/report.json``.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from benchmarks.studies import make_parser, run_study, summarize, train_seeds
from bvdm_data.evaluation.arms import STREAM, Arm, describe_synthetic, make_synthetic_dataset
from bvdm_data.evaluation.evaluate import Evaluation
from bvdm_data.evaluation.experiment import format_figures
from bvdm_data.fitting.training import compute_fingerprint
from bvdm_data.speed import measure_throughput, warm_up
from bvdm_data.synth.cell_bank import PoolSettings

POOLS: dict[str, PoolSettings | None] = {
    "fresh nuclei": None,
    "pool, 1 pair renewed a clip": PoolSettings(),
    "pool, 0.1 pairs renewed a clip": PoolSettings(renew=0.1),
    "64 pairs, none renewed": PoolSettings(pairs=64, renew=0),
    "16 pairs, none renewed": PoolSettings(pairs=16, renew=0),
}


def measure(
    run: Evaluation, pools: Mapping[str, PoolSettings | None] = POOLS, seconds: float = 10
) -> dict[str, Any]:
    """Train networks on endless streams whose nuclei are shown more and more often."""
    results = {}
    data = replace(run.data, method="fast", variation=None)
    for name, pool in pools.items():
        videos = make_synthetic_dataset(data, **STREAM, pool=pool)
        identity = compute_fingerprint("stream", describe_synthetic(videos), pool)
        trials = train_seeds(run, Arm(name, videos, identity))
        each = 1 / measure_throughput(videos, warm_up(videos), seconds).clips_per_second
        run.log(format_figures(name, {"seconds a clip": each}))
        results[name] = summarize(run, trials) | {
            "seconds_per_clip": round(each, 4),
            "pool": None if pool is None else asdict(pool),
        }
    return results


if __name__ == "__main__":
    run_study("reuse", measure, make_parser(__doc__, seeds=3).parse_args())
