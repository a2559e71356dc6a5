"""What linkers bear: longer intervals, crowds, errors of detection, on exact synthetic films.

Run ``python -m benchmarks.robustness --output robustness``; ``--linker FOLDER`` adds a linker of
``examples/train_trackastra.py``. It writes ``robustness.json`` and ``robustness.png``. Films have
pictures only where there is such a linker, which looks at light, too.
"""

import argparse
import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bvdm_data import Clip, DetectionErrors, SyntheticHeLaVideos
from bvdm_data.evaluation.clip_cache import replace_nan
from bvdm_data.evaluation.linker import link, load_linker
from bvdm_data.evaluation.seg_tra import LINK_MEASURES, score_links
from bvdm_data.files import open_atomic
from bvdm_data.fitting.tracker import Labels, Tracked, track
from bvdm_data.system import require

INTERVALS = (1, 2, 4)
"""Times between frames, as multiples of the fitted video's."""

NUCLEI = (10, 30, 60)
"""Nuclei in the first frame of a film of 512 x 512 px."""

RATES = (0.0, 0.05, 0.1, 0.2)
"""Shares of missed nuclei; two fifths as many are merged, and as many detections are false."""

FIGURES = ("lnk", "bc")

Rows = list[dict[str, Any]]


def measure(
    linkers: Mapping[str, Callable[[Clip, Labels], Tracked]],
    intervals: Sequence[int] = INTERVALS,
    densities: Sequence[int] = NUCLEI,
    rates: Sequence[float] = RATES,
    *,
    films: int = 2,
    **options: Any,
) -> Rows:
    """Return mean scores by linker, interval, nuclei and rate; ``options``: of the films."""
    usual, rows = SyntheticHeLaVideos(**options).minutes, []
    for interval, nuclei in itertools.product(intervals, densities):
        videos = SyntheticHeLaVideos(**options, nuclei=nuclei, minutes=interval * usual)
        clips = [videos.clip(index) for index in range(films)]
        for rate, (name, linker) in itertools.product(rates, linkers.items()):
            errors = DetectionErrors(missed=rate, merged=0.4 * rate, false=0.4 * rate)
            found = [score_film(linker, errors(clip)) for clip in clips]
            row = {"linker": name, "interval": interval, "nuclei": nuclei, "rate": rate}
            for figure in FIGURES:
                known = [one[figure] for one in found if not math.isnan(one[figure])]
                row[figure] = float(np.mean(known)) if known else math.nan
            rows.append(row)
    return rows


def score_film(linker: Callable[[Clip, Labels], Tracked], clip: Any) -> dict[str, float]:
    tracks = clip["tracks"][clip["tracks"][:, 0] > 0].numpy()
    return score_links(*linker(clip, clip["detections"].numpy()), clip["masks"].numpy(), tracks)


def plot(rows: Rows, path: Path) -> None:
    """Draw scores over the rate: a row for each figure, a column for each interval."""
    require("matplotlib")
    from matplotlib.figure import Figure

    intervals = sorted({row["interval"] for row in rows})
    figure = Figure(figsize=(4 * len(intervals), 6), layout="constrained")
    axes = figure.subplots(len(FIGURES), len(intervals), squeeze=False, sharex=True, sharey="row")
    for (i, name), (j, interval) in itertools.product(enumerate(FIGURES), enumerate(intervals)):
        shown = [row for row in rows if row["interval"] == interval]
        for kind in dict.fromkeys((row["linker"], row["nuclei"]) for row in shown):
            line = [row for row in shown if (row["linker"], row["nuclei"]) == kind]
            values = [[row["rate"] for row in line], [row[name] for row in line]]
            axes[i, j].plot(*values, marker="o", label=f"{kind[0]}, {kind[1]} nuclei")
        axes[i, j].set(ylabel=LINK_MEASURES[name], title=f"frame interval x {interval}")
        axes[i, j].set_xlabel("share of missed nuclei")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(intervals), fontsize="small")
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> Rows:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("robustness"))
    parser.add_argument("--linker", type=Path, help="folder of a trained linker")
    parser.add_argument("--model", default="hela")
    parser.add_argument("--films", type=int, default=2)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--size", type=int, default=512)
    for name, usual in (("intervals", INTERVALS), ("nuclei", NUCLEI), ("rates", RATES)):
        parser.add_argument(f"--{name}", type=type(usual[0]), nargs="+", default=usual)
    given = parser.parse_args(arguments)
    linkers: dict[str, Any] = {"LapTrack": lambda clip, masks: track(masks)}
    if given.linker:
        network = functools.partial(link, load_linker(given.linker))
        linkers["Trackastra"] = lambda clip, masks: network(clip["video"][:, 0].numpy(), masks)
    options = {"frames": given.frames, "size": given.size, "model": given.model}
    options |= {"films": given.films, "video": bool(given.linker)}
    rows = measure(linkers, given.intervals, given.nuclei, given.rates, **options)
    given.output.mkdir(parents=True, exist_ok=True)
    with open_atomic(given.output / "robustness.json") as temporary:
        temporary.write_text(json.dumps(replace_nan(rows), indent=2) + "\n")
    plot(rows, given.output / "robustness.png")
    return rows


if __name__ == "__main__":
    main()
