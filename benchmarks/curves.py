"""Measure and plot cost against clip size, frames, nuclei and batch size.

Run ``python -m benchmarks.curves``: it writes the curves into docs/performance.json and plots them
in docs/pictures/speed.png. ``--draw`` plots the stored curves.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from scipy import stats
from torch.utils.data import DataLoader

from benchmarks.speed_measures import clips
from bvdm_data import PoolSettings
from bvdm_data.speed import measure_throughput, warm_up

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "performance.json"
PICTURE = DOCS / "pictures" / "speed.png"

SIDES = (64, 128, 192, 256, 384, 512, 768)
FRAMES = (1, 2, 4, 8, 16, 32)
NUCLEI = (1, 5, 10, 20, 40, 80)
BATCHES = (1, 2, 4, 8, 16)
POOLS = {"fresh": None, "pool": PoolSettings(pairs=64)}
"""A small cell bank fills quickly; the cost of rendering does not depend on its size."""


def measure(seconds: float) -> dict[str, Any]:
    """Return milliseconds per clip along each axis, fresh and pooled, and linear fits."""
    sweeps = {
        "size": [(side, {"size": side, "nuclei": None}) for side in SIDES],
        "frames": [(frames, {"frames": frames}) for frames in FRAMES],
        "nuclei": [(nuclei, {"nuclei": nuclei, "size": 512}) for nuclei in NUCLEI],
    }
    found: dict[str, Any] = {}
    for axis, steps in sweeps.items():
        found[axis] = {"x": [x for x, _ in steps]}
        for name, pool in POOLS.items():
            found[axis][name] = [_milliseconds(seconds, pool=pool, **one) for _, one in steps]
    found["batch"] = {"x": list(BATCHES)} | {
        name: [_loaded(seconds, batch, pool=pool) for batch in BATCHES]
        for name, pool in POOLS.items()
    }
    found["lines"] = {
        "size": line([side**2 / 1e6 for side in SIDES], found["size"]["fresh"]),
        "frames": line(FRAMES, found["frames"]["fresh"]),
        "nuclei": line([8 * n for n in NUCLEI], found["nuclei"]["fresh"]),
    }
    return found


def line(x: Any, y: Any) -> dict[str, float]:
    """Fit a straight line; ``straight`` is its fraction of explained variance."""
    fit = stats.linregress(x, y)
    return {"slope": fit.slope, "start": fit.intercept, "straight": fit.rvalue**2}


def _milliseconds(seconds: float, **changes: Any) -> float:
    videos = clips(**changes)
    return 1000 / measure_throughput(videos, warm_up(videos), seconds).clips_per_second


def _loaded(seconds: float, batch: int, pool: PoolSettings | None) -> float:
    videos = clips(pool=pool, batch_size=batch)
    start = -(-warm_up(videos) // batch) * batch
    videos.load_state_dict({"epoch": 0, "seed": videos.seed, "start": start})
    batches = iter(DataLoader(videos, batch_size=batch, num_workers=1))
    next(batches)
    made, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds or made < 3:
        next(batches)
        made += 1
    return 1000 * passed / made / batch


def draw(found: dict[str, Any], picture: Path = PICTURE) -> None:
    """Plot the curves, one panel per axis."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    labels = {
        "size": "side of a square clip, px (density of 01)",
        "frames": "frames of a clip (8 nuclei, 256 x 256)",
        "nuclei": "nuclei of a clip (8 frames of 512 x 512)",
        "batch": "clips a batch (8 frames of 256 x 256, one worker)",
    }
    figure, panels = plt.subplots(2, 2, figsize=(8.4, 6), layout="constrained")
    for (axis, label), panel in zip(labels.items(), panels.flat, strict=True):
        for name, mark in zip(POOLS, "os", strict=True):
            panel.plot(found[axis]["x"], found[axis][name], marker=mark, label=name)
        panel.set(xlabel=label, ylabel="ms a clip", ylim=(0, None), xlim=(0, None))
        panel.grid(alpha=0.3)
    panels.flat[0].legend(frameon=False)
    figure.savefig(picture, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="seconds for each point")
    parser.add_argument("--draw", action="store_true", help="plot the stored curves")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not given.draw:
        results["curves"] = measure(given.seconds)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    draw(results["curves"])
    print(f"wrote {RESULTS} and {PICTURE}")


if __name__ == "__main__":
    main()
