"""What the three long studies share: arguments, training, and the report that they add to.

Each study adds a part to a ``report.json`` of ``bvdm-data evaluate``. Run
``python -m benchmarks.studies docs/evaluation/report.json`` to render the page beside it anew, the
studies included; ``--picture scenes.png`` puts a picture on it.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import TABLES, table
from bvdm_data.evaluation.arms import (
    Arm,
    Data,
    make_arm,
    make_synthetic_dataset,
)
from bvdm_data.evaluation.clip_cache import replace_nan
from bvdm_data.evaluation.distances import load_efficientnet_lite0, measure_feature_distance
from bvdm_data.evaluation.evaluate import Budget, Evaluation, Questions, check_unseen, describe_run
from bvdm_data.evaluation.experiment import Trial, format_figures, summarize_trials
from bvdm_data.evaluation.realism import measure_clips
from bvdm_data.evaluation.report import Series, make_environment, make_view, plot_lines
from bvdm_data.evaluation.segmenter import SegmenterSettings
from bvdm_data.files import open_atomic, read_json
from bvdm_data.speed import measure_throughput

LAGS = (1, 2)
"""Frames between the images whose texture is correlated; the clips are short."""

CROPS = 50
"""Nuclei of a variant whose feature distance is measured."""

SHORT = SegmenterSettings().steps // 2
"""Training steps of a segmenter where many variants are compared."""

SECTIONS = {
    "scarcity": (
        "Scarcity curve",
        "Only the first frames of the training video are used, for fitting the model and for "
        "training alike; the test stays the same.",
    ),
    "ablation": (
        "Ablation",
        "Each row: networks trained on a few clips of a variant, all with the same number of clips "
        "and steps and the same seeds.",
    ),
    "reuse": (
        "Reuse",
        "Each row: networks trained on an endless stream, every sample from another clip. From row "
        "to row the same nuclei are shown more often.",
    ),
}
"""Title and explanation of each study."""


Measure = Callable[[Evaluation], dict[str, Any]]


def train_seeds(run: Evaluation, arm: Arm) -> list[Trial]:
    """Train and test one network for each seed."""
    return run.train([arm], {run.data.test: run.reference})[run.data.test]


def summarize(run: Evaluation, trials: Sequence[Trial]) -> dict[str, Any]:
    return summarize_trials(trials, run.questions.budget.segmenter)


def make_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("root", type=Path, help="data set of the Cell Tracking Challenge")
    parser.add_argument("--report", type=Path, help="report.json that the figures are added to")
    parser.add_argument("--model", default="hela")
    parser.add_argument("--train", default="01", help="video to train on")
    parser.add_argument("--test", default="02", help="held-out video to test on")
    parser.add_argument("--seeds", type=int, default=1, help="networks of each row")
    usual = SegmenterSettings().steps
    parser.add_argument("--steps", type=int, default=usual, help="training steps of a segmenter")
    parser.add_argument("--clips", type=int, help="clips of a row")
    parser.add_argument("--work-dir", type=Path, default=Path("evaluation"))
    parser.add_argument("--workers", type=int, default=0, help="processes that train")
    parser.add_argument("--quiet", action="store_true")
    parser.set_defaults(**defaults)
    return parser


def run_study(name: str, measure: Measure, given: argparse.Namespace) -> None:
    """Measure, print the table, and add the figures to the report."""
    data = Data(
        root=given.root,
        train=given.train,
        test=given.test,
        model=given.model,
        folder=given.work_dir,
        workers=given.workers,
        progress=not given.quiet,
    )
    check_unseen(data, data.root, data.test)
    settings = SegmenterSettings(steps=given.steps)
    budget = Budget(seeds=given.seeds, clips=given.clips, segmenter=settings)
    run = Evaluation(data, Questions(budget=budget), print)
    figures = replace_nan(measure(run))
    if given.report is not None and given.report.is_file():
        results = read_json(given.report)
    else:
        results = {"about": describe_run(run)}
    results[name] = figures
    print(table(*TABLES[name](results)))
    if given.report is not None:
        with open_atomic(given.report) as temporary:
            temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")


def measure_variants(run: Evaluation, variants: Mapping[str, Data]) -> dict[str, Any]:
    """Train networks on a few clips of each variant of a method, and measure their looks."""
    features, count = load_efficientnet_lite0(), run.questions.budget.clips
    results = {}
    for name, data in variants.items():
        arm = make_arm("synthetic", data, count)
        trials = train_seeds(run, replace(arm, name=name))
        clips = [arm.clips.clip(index) for index in range(count)]
        rows = measure_feature_distance(
            {name: clips}, [run.train_clip], count=CROPS, features=features
        )
        (row,) = (row for row in rows if row.name == name)
        values = measure_clips(clips).values
        looks = {
            "kid": row.kernel.value,
            "kid_error": row.kernel.error,
            "crops": row.count,
            "agreement": median(values["label agreement"]),
            "correlation": [median(values[f"texture after {lag} frames"]) for lag in LAGS],
            "seconds_per_clip": measure_seconds_per_clip(data),
        }
        run.log(format_figures(name, looks))
        results[name] = summarize(run, trials) | looks
    return results


def median(values: Any) -> float:
    return float(np.median(values)) if len(values) else math.nan


def measure_seconds_per_clip(data: Data) -> float:
    """Time one clip; its nuclei are those of clip 0 for any variant."""
    return round(1 / measure_throughput(make_synthetic_dataset(data), 0, 0).clips_per_second, 2)


def plot_scarcity(results: Mapping[str, Any]) -> str:
    levels = {int(frames): level["rows"] for frames, level in results["scarcity"].items()}
    if "training" in results:
        levels[results["about"]["train_frames"]] = results["training"]["rows"]
    arms = {row["arm"] for frames in results["scarcity"] for row in levels[int(frames)]}
    series = {}
    for arm in sorted(arms):
        rows = {n: row for n in sorted(levels) for row in levels[n] if row["arm"] == arm}
        series[arm] = Series(
            x=list(rows),
            y=[row["mean"]["seg"] for row in rows.values()],
            error=[row["spread"]["seg"] for row in rows.values()],
        )
    return plot_lines(series, "annotated frames", "SEG", log=True)


def render_page(results: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    """Render the page of a report with the studies in it."""
    view = make_view(results, pictures)
    view["studies"] = {name: SECTIONS[name][1] for name in SECTIONS if name in results}
    view["sections"] |= {name: SECTIONS[name][0] for name in view["studies"]}
    view["tables"] = {name: TABLES[name](results) for name in view["studies"]}
    if "scarcity" in results:
        caption = "SEG by annotated frames; bars: standard deviation over the seeds."
        view["plots"]["scarcity"] = plot_scarcity(results), caption
    environment = make_environment(Path(__file__).parent)
    return environment.get_template("studies.html.j2").render(view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="report.json of bvdm-data evaluate")
    parser.add_argument("--picture", type=Path, help="sheet of real and synthetic clips")
    given = parser.parse_args()
    caption = "Real and synthetic clips at the same grey scale, every second frame"
    pictures = {caption: given.picture} if given.picture else {}
    page = given.report.with_name("index.html")
    page.write_text(render_page(read_json(given.report), pictures), encoding="utf-8")
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
