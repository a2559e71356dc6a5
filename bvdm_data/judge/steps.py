"""Steps: what the numbers of diffusion steps do, in the manner of the paper's table 2."""

import math
import time
from dataclasses import replace
from typing import Any

from bvdm_data.evaluation.features import lite0_features
from bvdm_data.evaluation.frechet import PictureDistance, picture_distance
from bvdm_data.evaluation.quantities import Measurements, measure
from bvdm_data.evaluation.seg_tra import Reference
from bvdm_data.judge.arms import Data, make_arms, synthetic_videos
from bvdm_data.judge.films import real_film
from bvdm_data.judge.training import Budget, Say, summary, try_arms
from bvdm_data.synth.texture import PaperSettings

FIRST_STEPS = (100, 200, 400, 600)
"""Diffusion steps at the first frame that table 2a of the paper compares, with 10 at later ones."""

LATER_STEPS = (0, 10, 30, 50, 200)
"""Diffusion steps at later frames that table 2b of the paper compares, with 200 at the first."""

LAGS = (1, 2)
"""Frames over which the texture's correlation is told; the clips are short."""


def judge_steps(data: Data, reference: Reference, budget: Budget, say: Say) -> dict[str, Any]:
    """Compare numbers of diffusion steps (paper, table 2), with few and short clips of each.

    Every row costs its clips, one network of one seed, and the measuring of its looks.

    Args:
        data: What the experiment is made from; its method is not used.
        reference: The held-out video.
        budget: Clips, frames, training steps.
        say: Called with a line of text for every row.

    Returns:
        JSON values by ``"first/later"`` steps: ``trials`` and ``rows`` of the network, ``kid``
        (KID-Lite0 x 1000 to the training video, with ``kid_error`` and ``crops``), ``agreement``
        (median overlap of label and picture), ``correlation`` of the texture at ``LAGS``, and
        ``seconds_per_clip`` on one core.
    """
    film, features = real_film(data, data.train, stop=data.stop), lite0_features()
    short = replace(data, frames=budget.steps_frames)
    one = replace(
        budget,
        seeds=1,
        segmenter=replace(budget.segmenter, steps=budget.steps_training),
    )
    found: dict[str, Any] = {}
    for first, later in step_pairs():
        name = f"{first}/{later}"
        method = PaperSettings(first_steps=first, later_steps=later)
        changed = replace(short, method=method)
        (arm,) = make_arms(changed, ["synthetic"], budget.steps_clips)
        trials = try_arms([replace(arm, name=name)], [0], changed, reference, one, say)
        clips = [arm.clips.clip(number) for number in range(budget.steps_clips)]
        rows = picture_distance({name: clips}, film, count=budget.steps_crops, features=features)
        looks = _looks(
            next(row for row in rows if row.name == name),
            measure(clips),
        )
        seconds = _seconds_per_clip(changed)
        say(f"{name:>14}  {_line(looks)}  {seconds:.1f} s a clip")
        found[name] = summary(trials, one) | looks | {"seconds_per_clip": seconds}
    return found


def step_pairs() -> list[tuple[int, int]]:
    """Return the pairs of first and later steps of the paper's table 2, each once."""
    pairs = [(first, 10) for first in FIRST_STEPS] + [(200, later) for later in LATER_STEPS]
    return list(dict.fromkeys(pairs))


def _looks(distance: PictureDistance, measured: Measurements) -> dict[str, Any]:
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
    videos = synthetic_videos(data)
    begun = time.perf_counter()
    videos.clip(0)
    return round(time.perf_counter() - begun, 2)


def _line(looks: dict[str, Any]) -> str:
    lags = ", ".join(f"{value:.3f}" for value in looks["correlation"])
    return (
        f"KID-Lite0 x 1000 {looks['kid']:.0f} +- {looks['kid_error']:.0f}  label agreement "
        f"{looks['agreement']:.3f}  texture after {' and '.join(map(str, LAGS))} frames {lags}"
    )
