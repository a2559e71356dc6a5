"""Ablation: what each part of the fast method brings, one left out at a time."""

from dataclasses import replace
from typing import Any

from bvdm_data.evaluation.arms import Data
from bvdm_data.evaluation.seg_tra import Reference
from bvdm_data.evaluation.study_steps import evaluate_variants
from bvdm_data.evaluation.training_value import Budget, Say
from bvdm_data.synth.textures import FastSettings

CLIPS = 24
"""Clips of each variant."""

SEEDS = 2
"""Networks trained on each variant."""


def evaluate_ablation(data: Data, reference: Reference, budget: Budget, say: Say) -> dict[str, Any]:
    """Compare variants of the fast method, each with the same few clips, budget and seeds."""
    return evaluate_variants(list_variants(data), reference, budget, say, clips=CLIPS, seeds=SEEDS)


def list_variants(data: Data) -> dict[str, Data]:
    """Return what each variant is made from."""
    full = replace(data, method=FastSettings(), variation=0.0)

    def fast(**changes: Any) -> Data:
        return replace(full, method=FastSettings(**changes))

    return {
        "fast": full,
        "6 steps": fast(steps=6),
        "frozen texture": fast(memory=1.0, fresh=0.0),
        "new texture in every frame": fast(fresh=1.0),
        "lives of the paper": fast(families=False),
        "variation 0.5": replace(full, variation=0.5),
        "variation 1": replace(full, variation=1.0),
        "procedural": replace(full, method="procedural"),
    }
