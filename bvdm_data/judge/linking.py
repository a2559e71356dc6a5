"""Tracking value: what a linker learns from each kind of clips, where stills cannot compete."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from bvdm_data.evaluation.experiment import Arm, ceiling, digest_of, without_nan
from bvdm_data.evaluation.linking import LinkerSettings, link, train_linker
from bvdm_data.evaluation.seg_tra import Reference, Scores, score
from bvdm_data.files import whole_file
from bvdm_data.fitting.training import purpose_of
from bvdm_data.judge.arms import Data, make_arms
from bvdm_data.judge.training import Budget, Say

FIGURES = ("lnk", "bc", "tra")
"""What says how good links are; SEG and DET are 1, since the masks are those of the reference."""


def judge_linking(
    data: Data, names: Sequence[str], reference: Reference, budget: Budget, say: Say
) -> dict[str, Any]:
    """Train a linker on each arm's clips and let it link the reference masks.

    Args:
        data: What the experiment is made from.
        names: Arms of clips with more than one frame.
        reference: The held-out video.
        budget: Seeds and the training of the linker.
        say: Called with a line of text for every linker.

    Returns:
        JSON values: rows by arm, LapTrack's scores beside them, the settings.

    Raises:
        ValueError: If the clips of an arm have fewer frames than a linker looks at.
    """
    laptrack = ceiling(reference)
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
    key = purpose_of("linker", arm.identity, settings, digest_of(reference))
    kept = data.folder / "linkers" / f"{key}.json"
    if kept.is_file():
        said = json.loads(kept.read_text())
        return Scores(**{name: math.nan if v is None else v for name, v in said.items()})
    linker = train_linker(
        clips, settings, checkpoint=kept.with_suffix(".safetensors"), progress=data.progress
    )
    masks, tracks = link(linker, reference.video, reference.masks)
    found = score(masks, tracks, reference.masks, reference.tracks)
    with whole_file(kept) as temporary:
        temporary.write_text(json.dumps(without_nan(asdict(found)), indent=2) + "\n")
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
