"""Scarcity curve: training with only the first frames of a video, for fitting and training alike.

Run ``python -m benchmarks.study_scarcity Fluo-N2DL-HeLa --report docs/evaluation/report.json``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.studies import make_parser, run_study, summarize, train_seeds
from bvdm_data.evaluation.arms import Data, hash_clips, make_arm, make_real_clips
from bvdm_data.evaluation.evaluate import Budget, Run
from bvdm_data.fitting.denoiser import DENOISER_TRAINING, STUDENT_TRAINING
from bvdm_data.fitting.fit import FitSettings, fit
from bvdm_data.fitting.training import compute_fingerprint
from bvdm_data.fitting.video import VideoTooShortError

USUAL = Budget()
ARMS = ("real", "copy-paste", "synthetic", "real+synthetic")


def measure(run: Run, frames: Sequence[int], fit_steps: int) -> dict[str, Any]:
    results = {}
    for stop in frames:
        data = replace(run.data, stop=stop)
        missing: dict[str, str] = {}
        try:
            fitted = replace(data, model=fit_model(data, fit_steps))
        except VideoTooShortError as error:
            fitted, missing = data, {name: str(error) for name in ARMS if "synthetic" in name}
            run.log(f"{stop} frames, synthetic: not possible ({error})")
        trials = []
        for name in ARMS:
            if name not in missing:
                run.log(f"{stop} frames:")
                trials += train_seeds(run, make_arm(name, fitted, run.questions.budget.clips))
        results[str(stop)] = summarize(run, trials) | {"missing": missing}
    return results


def fit_model(data: Data, steps: int) -> Path:
    """Fit a model to the first frames of the video; after a kill, the same call continues."""
    if data.stop is not None and data.stop < data.frames:
        raise VideoTooShortError(
            f"a model must be fitted to at least the {data.frames} frames of a clip, got "
            f"{data.stop}"
        )
    settings = FitSettings(
        painter=replace(DENOISER_TRAINING, steps=steps),
        distilled=replace(STUDENT_TRAINING, steps=steps),
        border=data.border,
        stop=data.stop,
    )
    key = compute_fingerprint(data.train, settings, hash_clips(make_real_clips(data).clip(0)))
    path = data.folder / "models" / f"{key}.safetensors"
    if not path.is_file():
        fit(data.root, path, sequence=data.train, settings=settings, progress=data.progress)
    return path


def main() -> None:
    parser = make_parser(__doc__, seeds=3)
    parser.add_argument("--frames", type=int, nargs="+", default=USUAL.scarce_frames)
    parser.add_argument("--fit-steps", type=int, default=USUAL.scarce_steps)
    given = parser.parse_args()
    run_study("scarcity", lambda run: measure(run, given.frames, given.fit_steps), given)


if __name__ == "__main__":
    main()
