"""Steps: what the numbers of diffusion steps do, in the manner of the paper's table 2."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bvdm_data.evaluation.appearance import load_full_video
from bvdm_data.evaluation.arms import Data, make_arms, make_synthetic_dataset
from bvdm_data.evaluation.distances import (
    FeatureDistance,
    load_efficientnet_lite0,
    measure_feature_distance,
)
from bvdm_data.evaluation.realism import Measurements, measure_clips
from bvdm_data.evaluation.seg_tra import Reference
from bvdm_data.evaluation.training_value import Budget, Say, summarize_arms, train_arms
from bvdm_data.synth.paper import PaperSettings

FIRST_STEPS = (100, 200, 400, 600)
"""Diffusion steps at the first frame that table 2a of the paper compares, with 10 at later ones."""

LATER_STEPS = (0, 10, 30, 50, 200)
"""Diffusion steps at later frames that table 2b of the paper compares, with 200 at the first."""

LAGS = (1, 2)
"""Frames over which the texture's correlation is told; the clips are short."""


def evaluate_steps(data: Data, reference: Reference, budget: Budget, say: Say) -> dict[str, Any]:
    """Compare numbers of diffusion steps (paper, table 2), with few and short clips of each.

    Every row costs its clips, one network of one seed, and the measuring of its looks.
    """
    short = replace(data, frames=budget.steps_frames, variation=None)
    variants = {
        f"{first}/{later}": replace(
            short, method=PaperSettings(first_steps=first, later_steps=later)
        )
        for first, later in list_step_pairs()
    }
    return evaluate_variants(variants, reference, budget, say)


def evaluate_variants(
    variants: Mapping[str, Data],
    reference: Reference,
    budget: Budget,
    say: Say,
    *,
    clips: int | None = None,
    seeds: int = 1,
) -> dict[str, Any]:
    """Train networks on a few clips of each variant of a method, and measure their looks."""
    count = budget.steps_clips if clips is None else clips
    data = next(iter(variants.values()))
    film, features = load_full_video(data, data.train, stop=data.stop), load_efficientnet_lite0()
    segmenter = replace(budget.segmenter, steps=budget.steps_training)
    less = replace(budget, seeds=seeds, segmenter=segmenter)
    found: dict[str, Any] = {}
    for name, changed in variants.items():
        (arm,) = make_arms(changed, ["synthetic"], count)
        trials = train_arms([replace(arm, name=name)], range(seeds), changed, reference, less, say)
        made = [arm.clips.clip(number) for number in range(count)]
        rows = measure_feature_distance(
            {name: made}, film, count=budget.steps_crops, features=features
        )
        looks = _looks(next(row for row in rows if row.name == name), measure_clips(made))
        seconds = _seconds_per_clip(changed)
        say(f"{name:>14}  {_line(looks)}  {seconds:.1f} s a clip")
        found[name] = summarize_arms(trials, less) | looks | {"seconds_per_clip": seconds}
    return found


def list_step_pairs() -> list[tuple[int, int]]:
    """Return the pairs of first and later steps of the paper's table 2, each once."""
    pairs = [(first, 10) for first in FIRST_STEPS] + [(200, later) for later in LATER_STEPS]
    return list(dict.fromkeys(pairs))


def _looks(distance: FeatureDistance, measured: Measurements) -> dict[str, Any]:
    return {
        "kid": distance.kernel.value,
        "kid_error": distance.kernel.error,
        "crops": distance.count,
        "agreement": _median(measured, "label agreement"),
        "correlation": [_median(measured, _lag(lag)) for lag in LAGS],
    }


def _lag(frames: int) -> str:
    return f"texture after {frames} frames"


def _median(measured: Measurements, name: str) -> float:
    values = sorted(measured.values[name].tolist())
    return float(values[len(values) // 2]) if values else math.nan


def _seconds_per_clip(data: Data) -> float:
    """Time one clip; its nuclei are those of clip 0 for any number of steps."""
    videos = make_synthetic_dataset(data)
    begun = time.perf_counter()
    videos.clip(0)
    return round(time.perf_counter() - begun, 2)


def _line(looks: dict[str, Any]) -> str:
    lags = ", ".join(f"{value:.3f}" for value in looks["correlation"])
    return (
        f"KID-Lite0 x 1000 {looks['kid']:.0f} +- {looks['kid_error']:.0f}  label agreement "
        f"{looks['agreement']:.3f}  texture after {' and '.join(map(str, LAGS))} frames {lags}"
    )
