"""Measure making, writing and reading of clips, and fill the tables of docs/scaling.md.

Run ``python -m benchmarks.scaling`` on an idle machine; it takes some minutes. Everything runs in
one process and measures CPU time, which other processes hardly affect.
``--fill`` fills the tables again from the stored figures.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.curves import POOLS
from benchmarks.scaling_tables import TABLES, filled
from bvdm_data import SyntheticHeLaVideos
from bvdm_data.files import open_atomic
from bvdm_data.speed import warm_up
from bvdm_data.storage import as_clip, read_shard
from bvdm_data.storage.formats import FORMATS, ShardContent
from bvdm_data.storage.plan import get_schema
from bvdm_data.system import get_machine_info, list_versions

DOCS = Path(__file__).parents[1] / "docs"
PAGE, RESULTS = DOCS / "scaling.md", DOCS / "scaling.json"

KINDS: dict[str, dict[str, Any]] = {
    "256 x 256": {"size": (256, 256), "nuclei": 8},
    "700 x 1100": {"size": (700, 1100), "nuclei": 94},
}
"""Clips of 8 frames at the density of video 01: a crop, and the whole field of a HeLa video."""

POOLED = "256 x 256"
"""The kind also measured with a cell bank, of the same small size as in ``curves.py``."""

STORED = 4
"""Clips in memory that are written and read repeatedly."""


def videos_of(kind: str, **changes: Any) -> SyntheticHeLaVideos:
    given = {"frames": 8, "variation": 0.0, "max_cells": 512, **KINDS[kind], **changes}
    return SyntheticHeLaVideos(**given)


def rate(work: Callable[[], Iterable[Any]], seconds: float) -> float:
    """Return the number of items per second of CPU time, over at least one call of ``work``."""
    made, begun = 0, time.process_time()
    while not made or time.process_time() - begun < seconds:
        for _ in work():
            made += 1
    return made / (time.process_time() - begun)


def measure(kind: str, seconds: float) -> dict[str, Any]:
    """Return clips per second made, fresh and pooled, and written and read in both formats."""
    videos = videos_of(kind)
    clips = [videos.clip(index) for index in range(STORED)]
    fresh, schema = itertools.count(STORED), get_schema(videos)
    found: dict[str, Any] = {
        "made": rate(lambda: [videos.clip(next(fresh))], seconds),
        "bytes": sum(value.numpy().nbytes for value in clips[0].values()),
        "stored": {},
    }
    if kind == POOLED:
        pooled = videos_of(kind, pool=POOLS["pool"])
        shown = itertools.count(warm_up(pooled))
        found["pooled"] = rate(lambda: [pooled.clip(next(shown))], seconds)
    with tempfile.TemporaryDirectory() as folder:
        for format, (suffix, write, _, _) in FORMATS.items():
            for compress in (False, True):
                path = Path(folder) / f"shard-{compress}{suffix}"

                def written(
                    path: Path = path, write: Any = write, compress: bool = compress
                ) -> list[Any]:
                    write(path, clips, ShardContent(range(STORED), schema, compress, ""))
                    return clips

                one = {"written": rate(written, seconds)}
                one["bytes"] = path.stat().st_size / STORED
                one["read"] = rate(lambda path=path: read_shard(path), seconds)
                if format == "webdataset":
                    one["package"] = rate(lambda path=path: through_package(path), seconds)
                found["stored"][f"{format}{', compressed' * compress}"] = one
    found["made_again"] = rate(lambda: [videos.clip(next(fresh))], seconds)
    return found


def through_package(path: Path) -> Iterable[Any]:
    """Read a tar with the package webdataset."""
    from webdataset import WebDataset

    return WebDataset(str(path), shardshuffle=False).decode().map(as_clip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="seconds for each measurement")
    parser.add_argument("--fill", action="store_true", help="measure nothing")
    given = parser.parse_args()
    if not given.fill:
        torch.set_num_threads(1)
        before = round(os.getloadavg()[0], 2)
        results: dict[str, Any] = {"kinds": {}}
        for kind in KINDS:
            results["kinds"][kind] = measure(kind, given.seconds)
            print(f"{kind}: {json.dumps(results['kinds'][kind])}", flush=True)
        results["about"] = {
            "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "machine": get_machine_info(),
            "versions": list_versions(("bvdm-data", "torch", "numpy", "webdataset", "zarr")),
            "load": [before, round(os.getloadavg()[0], 2)],
        }
        with open_atomic(RESULTS) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(filled(PAGE.read_text(), json.loads(RESULTS.read_text())))
    print(f"filled {len(TABLES)} tables of {PAGE}")


if __name__ == "__main__":
    main()
