"""Training value: what networks are worth that were trained on each kind of data."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bvdm_data.evaluation.arms import SCARCE, Data, make_arms, make_real_clips
from bvdm_data.evaluation.clip_cache import hash_clips
from bvdm_data.evaluation.experiment import (
    BASELINE,
    Arm,
    Trial,
    compare_arms,
    hash_reference,
    replace_nan,
    score_oracle,
    train_and_test,
)
from bvdm_data.evaluation.linker import LinkerSettings, link, train_linker
from bvdm_data.evaluation.seg_tra import Reference, Scores, score
from bvdm_data.evaluation.segmenter import SegmenterSettings
from bvdm_data.files import open_atomic
from bvdm_data.fitting.denoiser import DENOISER_TRAINING
from bvdm_data.fitting.fit import FitSettings, fit
from bvdm_data.fitting.student import STUDENT_TRAINING
from bvdm_data.fitting.training import compute_fingerprint
from bvdm_data.fitting.video import VideoTooShortError

SCARCE_FRAMES = (1, 4, 10, 30)
"""Numbers of annotated frames on the scarcity curve, beside the whole video."""

SCARCE_STEPS = 2500
"""Training steps of the painter of a model that is fitted to a few frames."""

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much an experiment may cost."""

    seeds: int = 3  # trials of each arm
    # synthetic clips of an arm; None: as many as hold the pixels of the training video
    clips: int | None = None
    segmenter: SegmenterSettings = SegmenterSettings()  # noqa: RUF009  # frozen
    # numbers of annotated frames on the scarcity curve
    scarce_frames: tuple[int, ...] = SCARCE_FRAMES
    # training steps of the painter of a model fitted to a few frames, and of the network distilled
    # from it
    scarce_steps: int = SCARCE_STEPS
    steps_clips: int = 8  # synthetic clips of each row of the comparison of diffusion steps
    steps_frames: int = 4  # frames of these clips
    steps_crops: int = 50  # nuclei of these clips whose picture distance is measured
    # training steps of a segmenter of that comparison, which has one seed
    steps_training: int = 200
    crops: int = 900  # nuclei of each set whose picture distance is measured
    tiles: int = 300  # tiles of each set whose picture distance is measured
    linker_seeds: int = 1  # linkers trained on each arm
    linker: LinkerSettings = LinkerSettings()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        """Refuse budgets for nothing."""
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{one.name} must be at least 1, got {value}")


def evaluate_training(
    data: Data, names: Sequence[str], reference: Reference, budget: Budget, say: Say
) -> dict[str, Any]:
    """Train and test one network for every arm and seed (paper, table 1)."""
    trials: list[Trial] = []
    made: dict[str, Arm] = {}
    for seed in range(budget.seeds):
        for name in names:
            # An arm's clips are made when it is its turn for the first time.
            if name not in made:
                (made[name],) = make_arms(data, [name], budget.clips)
            trials += train_arms([made[name]], [seed], data, reference, budget, say)
    return summarize_arms(trials, budget) | {"ceiling": asdict(score_oracle(reference))}


def evaluate_scarcity(data: Data, reference: Reference, budget: Budget, say: Say) -> dict[str, Any]:
    """Train and test with only the first frames of the video, for fitting and training alike."""
    found: dict[str, Any] = {}
    for frames in budget.scarce_frames:
        scarce = replace(data, stop=frames)
        trials: list[Trial] = []
        missing: dict[str, str] = {}
        for name in SCARCE:
            if "synthetic" in name and scarce.model == data.model:
                try:
                    scarce = replace(scarce, model=_fitted(scarce, budget))
                except VideoTooShortError as error:
                    missing = {one: str(error) for one in SCARCE if "synthetic" in one}
                    say(f"{frames} frames, synthetic: not possible ({error})")
            if name in missing:
                continue
            arms = make_arms(scarce, [name], budget.clips)
            trials += train_arms(
                arms, range(budget.seeds), scarce, reference, budget, _prefixed(say, frames)
            )
        found[str(frames)] = summarize_arms(trials, budget) | {"missing": missing}
    return found


def _fitted(data: Data, budget: Budget) -> Path:
    """Fit a model to the first frames of the video; killed, the same call goes on."""
    if data.stop is not None and data.stop < data.frames:
        raise VideoTooShortError(
            f"a model must be fitted to at least the {data.frames} frames of a clip, got "
            f"{data.stop}"
        )
    settings = FitSettings(
        painter=replace(DENOISER_TRAINING, steps=budget.scarce_steps),
        distilled=replace(STUDENT_TRAINING, steps=budget.scarce_steps),
        border=data.border,
        stop=data.stop,
    )
    seen = compute_fingerprint(data.train, settings, hash_clips(make_real_clips(data).clip(0)))
    path = data.folder / "models" / f"{seen}.safetensors"
    if not path.is_file():
        fit(data.root, path, sequence=data.train, settings=settings, progress=data.progress)
    return path


def train_arms(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    data: Data,
    reference: Reference,
    budget: Budget,
    say: Say,
) -> list[Trial]:
    """Train and test one network for every arm and seed, and say each in a line."""
    return train_and_test(
        arms,
        reference,
        folder=data.folder / "trials",
        seeds=seeds,
        settings=budget.segmenter,
        progress=data.progress,
        done=lambda trial: say(format_score(trial)),
    )


def format_score(trial: Trial) -> str:
    """Return a trial in one line of text."""
    return (
        f"{trial.arm:>14}  seed {trial.seed}  SEG {trial.seg:.4f}  DET {trial.det:.4f}  "
        f"TRA {trial.tra:.4f}  LNK {trial.lnk:.4f}  BC(1) {trial.bc:.3f}  "
        f"dim found {trial.found_dim:.3f}  {trial.seconds:.0f} s"
    )


def summarize_arms(trials: Sequence[Trial], budget: Budget) -> dict[str, Any]:
    """Return trials, rows by arm and the settings as JSON values."""
    return {
        "trials": [asdict(trial) for trial in trials],
        "rows": [asdict(row) for row in compare_arms(trials)],
        "baseline": BASELINE,
        "settings": asdict(budget.segmenter),
    }


def _prefixed(say: Say, frames: int) -> Say:
    return lambda line: say(f"{frames:>3} frames {line}")


FIGURES = ("lnk", "bc", "tra")
"""What says how good links are; SEG and DET are 1, since the masks are those of the reference."""


def evaluate_linking(
    data: Data, names: Sequence[str], reference: Reference, budget: Budget, say: Say
) -> dict[str, Any]:
    """Train a linker on each arm's clips and let it link the reference masks."""
    laptrack = score_oracle(reference)
    say(_line("LapTrack", 0, laptrack))
    rows = []
    for name in names:
        (arm,) = make_arms(data, [name], budget.clips)
        scores = [_trial(arm, seed, data, reference, budget) for seed in range(budget.linker_seeds)]
        for seed, one in enumerate(scores):
            say(_line(name, seed, one))
        rows.append(_row(name, scores))
    return {
        "rows": rows,
        "laptrack": {figure: getattr(laptrack, figure) for figure in FIGURES},
        "settings": asdict(budget.linker),
    }


def _trial(arm: Arm, seed: int, data: Data, reference: Reference, budget: Budget) -> Scores:
    training = replace(budget.linker.training, seed=seed)
    settings: LinkerSettings = replace(budget.linker, training=training)
    clips: Any = arm.clips
    frames = len(clips.clip(0)["video"])
    if frames < settings.window:
        raise ValueError(
            f"the arm {arm.name!r} has clips of {frames} frames, and a linker looks at "
            f"{settings.window}; stills cannot teach links"
        )
    key = compute_fingerprint("linker", arm.identity, settings, hash_reference(reference))
    kept = data.folder / "linkers" / f"{key}.json"
    if kept.is_file():
        said = json.loads(kept.read_text())
        return Scores(**{name: math.nan if v is None else v for name, v in said.items()})
    linker = train_linker(
        clips, settings, checkpoint=kept.with_suffix(".pt"), progress=data.progress
    )
    masks, tracks = link(linker, reference.video, reference.masks)
    found = score(masks, tracks, reference.masks, reference.tracks)
    with open_atomic(kept) as temporary:
        temporary.write_text(json.dumps(replace_nan(asdict(found)), indent=2) + "\n")
    return found


def _row(name: str, scores: Sequence[Scores]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": name, "seeds": len(scores)}
    for figure in FIGURES:
        values = np.array([getattr(one, figure) for one in scores])
        row[figure] = float(values.mean())
        row[f"{figure}_spread"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return row


def _line(name: str, seed: int, scores: Scores) -> str:
    figures = "  ".join(f"{figure.upper()} {getattr(scores, figure):.4f}" for figure in FIGURES)
    return f"{name:>14}  seed {seed}  {figures}"
