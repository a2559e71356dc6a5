"""Scarcity curve: training with only the first frames of a video, for fitting and training alike.

Run ``python -m benchmarks.study_scarcity Fluo-N2DL-HeLa --report docs/evaluation/report.json``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies import make_parser, run_study, summarize, train_seeds
from bvdm_data.evaluation.arms import Data, make_arm, make_real_clips
from bvdm_data.evaluation.clip_cache import hash_clips
from bvdm_data.evaluation.evaluate import Evaluation
from bvdm_data.fitting.denoiser import DENOISER_TRAINING, STUDENT_TRAINING
from bvdm_data.fitting.fit import FitSettings, fit
from bvdm_data.fitting.training import compute_fingerprint
from bvdm_data.fitting.video import VideoTooShortError
from bvdm_data.weights import load, read_card, save

ARMS = ("real", "copy-paste", "synthetic-stream", "real+synthetic")


def measure(run: Evaluation, frames: Sequence[int], fit_steps: int) -> dict[str, Any]:
    results = {}
    for stop in frames:
        data = replace(run.data, stop=stop)
        fitted = replace(data, model=fit_model(data, fit_steps))
        taken = read_card(fitted.model).get("taken_over", [])
        run.log(f"{stop} frames; of the model of the whole video are: {taken or 'none'}")
        made = [make_arm(name, fitted, run.questions.budget.clips) for name in ARMS]
        trials = [trial for arm in made for trial in train_seeds(run, arm)]
        results[str(stop)] = summarize(run, trials) | {"taken_over": taken}
    return results


def fit_model(data: Data, steps: int) -> Path:
    """Fit a model to the first frames of the video; after a kill, the same call continues.

    Frames that are too few for lives and motion get those of the model of the whole video.
    """
    settings = FitSettings(
        painter=replace(DENOISER_TRAINING, steps=steps),
        distilled=replace(STUDENT_TRAINING, steps=steps),
        border=data.border,
        stop=data.stop,
    )
    key = compute_fingerprint(data.train, settings, hash_clips(make_real_clips(data).clip(0)))
    path = data.folder / "models" / f"{key}.safetensors"
    if path.is_file():
        return path
    given: dict[str, Any] = {"sequence": data.train, "settings": settings}
    given |= {"progress": data.progress}
    try:
        fit(data.root, path, **given)
    except VideoTooShortError:
        fit(data.root, path, start_from=forget_looks(data.model, path.with_stem("lives")), **given)
    return path


def forget_looks(model: str | Path, path: Path) -> Path:
    """Write a model as it is, but with networks that have learnt nothing."""
    known = load(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        painter, distilled = (type(net)(net.settings) for net in (known.painter, known.distilled))
    save(replace(known, painter=painter, distilled=distilled, unet=None, flownet=None), path)
    return path


def main() -> None:
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--frames", type=int, nargs="+", default=(4, 10))
    parser.add_argument("--fit-steps", type=int, default=2500, help="of denoiser and student")
    given = parser.parse_args()
    run_study("scarcity", lambda run: measure(run, given.frames, given.fit_steps), given)


if __name__ == "__main__":
    main()
