"""Compares the clips a second of two checkouts, interleaved in one run.

Run ``python -m benchmarks.compare_builds OLD [NEW] --goes 3``: OLD and NEW (default: this one) are
the roots of two checkouts. Each go starts a process of the old build and one of the new, in turn,
for every setting; a process warms up and then makes clips in one thread. Where ``python
hatch_build.py`` has not been run in a checkout, torch does the work of its compiled loops. Printed
are clips a second of CPU time (median of the goes) and the ratio new / old of each go.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SETTINGS = {
    "fresh": "",
    "fresh, all annotations": "annotations=ANNOTATIONS",
    "fresh, all annotations, 14 nuclei": "annotations=ANNOTATIONS, nuclei=14",
    "fresh, all annotations, 512 x 512": "annotations=ANNOTATIONS, size=512, max_cells=256",
    "fresh, all annotations, 700 x 1100, 94 nuclei": (
        "annotations=ANNOTATIONS, size=(700, 1100), nuclei=94, max_cells=256"
    ),
    "pool, renewed": "pool=PoolSettings(pairs=32)",
    "pool, kept": "pool=PoolSettings(pairs=32, renew=0)",
    "procedural": "method='procedural'",
}
PROGRAM = """
import time, torch
torch.set_num_threads(1)
from bvdm_data import PoolSettings, SyntheticHeLaVideos
ANNOTATIONS = ("masks", "tracks", "flow", "stages", "boxes", "centroids")
videos = SyntheticHeLaVideos({arguments})
for index in range({warm_up}):
    videos.clip(index)
start = time.process_time()
for index in range({warm_up}, {warm_up} + {clips}):
    videos.clip(index)
print({clips} / (time.process_time() - start))
"""


def measure_speed(root: Path, arguments: str, clips: int) -> float:
    """Return clips a second of CPU time of a checkout, in a process of its own."""
    warm_up = 24 if "pool" in arguments else 2
    program = PROGRAM.format(arguments=arguments, warm_up=warm_up, clips=clips)
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=root, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{root}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=Path(__file__).parents[1])
    parser.add_argument("--goes", type=int, default=3)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    asked = parser.parse_args()
    roots = (asked.old.resolve(), asked.new.resolve())
    rows = {}
    for name, arguments in SETTINGS.items():
        speeds = [
            [measure_speed(root, arguments, asked.clips) for root in roots]
            for _ in range(asked.goes)
        ]
        old, new = (statistics.median(build) for build in zip(*speeds, strict=True))
        rows[name] = {"old": old, "new": new, "ratios": [b / a for a, b in speeds]}
        print(f"{name} ...", file=sys.stderr)
    if asked.json:
        print(json.dumps(rows, indent=2))
        return
    print("| clips | old, clips / CPU-s | new, clips / CPU-s | new / old, each go |")
    print("| --- | ---: | ---: | ---: |")
    for name, row in rows.items():
        ratios = " ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        print(f"| {name} | {row['old']:.2f} | {row['new']:.2f} | {ratios} |")


if __name__ == "__main__":
    main()
