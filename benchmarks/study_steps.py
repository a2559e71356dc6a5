"""Numbers of diffusion steps, as in the paper's table 2, with few and short clips of each.

Run ``python -m benchmarks.study_steps Fluo-N2DL-HeLa --report docs/evaluation/report.json``.
"""

from dataclasses import replace
from typing import Any

from benchmarks.studies import make_parser, measure_variants, run_study
from benchmarks.tables import PAPER_STEPS
from bvdm_data.evaluation.evaluate import Budget, Run
from bvdm_data.synth.paper import PaperSettings

USUAL = Budget()


def measure(run: Run) -> dict[str, Any]:
    data = replace(run.data, frames=USUAL.steps_frames, variation=None)
    pairs = {name: map(int, name.split("/")) for name in PAPER_STEPS}
    variants = {
        name: replace(data, method=PaperSettings(first_steps=first, later_steps=later))
        for name, (first, later) in pairs.items()
    }
    return measure_variants(run, variants)


if __name__ == "__main__":
    usual = {"clips": USUAL.steps_clips, "steps": USUAL.steps_training}
    run_study("steps", measure, make_parser(__doc__, **usual).parse_args())
