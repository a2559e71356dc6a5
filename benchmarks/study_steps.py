"""Numbers of diffusion steps, as in the paper's table 2, with few and short clips of each.

Run ``python -m benchmarks.study_steps Fluo-N2DL-HeLa --report docs/evaluation/report.json``.
"""

from dataclasses import replace
from typing import Any

from benchmarks.studies import SHORT, make_parser, measure_variants, run_study
from benchmarks.tables import PAPER_STEPS
from bvdm_data.evaluation.evaluate import Run
from bvdm_data.synth.paper import PaperSettings

FRAMES = 4


def measure(run: Run) -> dict[str, Any]:
    data = replace(run.data, frames=FRAMES, variation=None)
    pairs = {name: map(int, name.split("/")) for name in PAPER_STEPS}
    variants = {
        name: replace(data, method=PaperSettings(first_steps=first, later_steps=later))
        for name, (first, later) in pairs.items()
    }
    return measure_variants(run, variants)


if __name__ == "__main__":
    run_study("steps", measure, make_parser(__doc__, clips=8, steps=SHORT).parse_args())
