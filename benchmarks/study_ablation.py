"""Ablation of the fast method: what each part of it brings, one left out at a time.

Run ``python -m benchmarks.study_ablation Fluo-N2DL-HeLa --report docs/evaluation/report.json``.
"""

from dataclasses import fields, replace
from typing import Any

from benchmarks.studies import SHORT, make_parser, measure_variants, run_study
from bvdm_data.evaluation.arms import Data
from bvdm_data.evaluation.evaluate import Evaluation
from bvdm_data.synth.model import Variation
from bvdm_data.synth.textures import FastSettings


def list_variants(data: Data) -> dict[str, Data]:
    full = replace(data, method=FastSettings(), variation=0.0)
    return {
        "fast": full,
        "6 steps": replace(full, method=FastSettings(steps=6)),
        "frozen texture": replace(full, method=FastSettings(memory=1.0, fresh=0.0)),
        "new texture in every frame": replace(full, method=FastSettings(fresh=1.0)),
        "lives of the paper": replace(full, method=FastSettings(families=False)),
        "variation 0.5": replace(full, variation=0.5),
        "variation 1": replace(full, variation=1.0),
        **{
            f"variation 1 without {part.name}": replace(full, variation={part.name: 0.0})
            for part in fields(Variation)
        },
        "procedural": replace(full, method="procedural"),
    }


def measure(run: Evaluation) -> dict[str, Any]:
    return measure_variants(run, list_variants(run.data))


if __name__ == "__main__":
    usual = {"clips": 24, "seeds": 2, "steps": SHORT}
    run_study("ablation", measure, make_parser(__doc__, **usual).parse_args())
