"""Measure all figures of docs/performance.md and fill its tables.

Run ``python -m benchmarks.speed`` on an idle machine; it takes some minutes. ``--part`` measures
only the named parts again and keeps the other figures.
"""

import argparse
import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from benchmarks import curves, speed_measures
from benchmarks.speed_tables import filled
from bvdm_data.files import open_atomic
from bvdm_data.system import get_machine_info, list_versions

PAGE = curves.DOCS / "performance.md"

PARTS: dict[str, Callable[[float], Any]] = {
    "start": lambda _: speed_measures.start(),
    "arithmetic": speed_measures.arithmetic,
    "parts": speed_measures.parts,
    "planning": speed_measures.planning,
    "reading": lambda _: speed_measures.against_reading(),
    "training": lambda seconds: speed_measures.training(2 * seconds),
    "presets": speed_measures.presets,
    "curves": lambda seconds: curves.measure(seconds / 3),
    "memory": lambda _: speed_measures.memory(),
    "paper": speed_measures.against_paper,
}
"""Measurements by their ``--part`` names; the argument is the duration in seconds."""


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated")
    parser.add_argument("--seconds", type=float, default=6, help="seconds for each measurement")
    given = parser.parse_args()
    results = json.loads(curves.RESULTS.read_text()) if curves.RESULTS.exists() else {}
    before = _load()
    for name, measure in PARTS.items():
        if given.part and name not in given.part:
            continue
        if name == "reading" and not speed_measures.REAL.is_dir():
            print(f"reading: skipped, no folder {speed_measures.REAL}", flush=True)
            continue
        results[name] = measure(given.seconds)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
        results["about"] = {
            "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "machine": get_machine_info(),
            "versions": list_versions(),
            "load": [before, _load()],
        }
        with open_atomic(curves.RESULTS) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    if "curves" in results:
        curves.draw(results["curves"])
    PAGE.write_text(filled(PAGE.read_text(), results))
    print(f"wrote {curves.RESULTS} and filled {PAGE}")


if __name__ == "__main__":
    main()
