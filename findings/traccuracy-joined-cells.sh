#!/usr/bin/env bash
# What: traccuracy's CompleteTracks on a result that links a cell that dies to another that appears in
#       the next frame, far off: one track in place of two.
# Guess: neither track is complete, or at least not both: the result has none of the two tracks.
# Seen: complete_tracklets and complete_lineages are 1. Only links of the truth are looked up in the
#       result; links that the result has beyond them don't count. So a result that goes on after a
#       cell's death is complete as well, and one that links all ends to all beginnings. CT of
#       py-ctcmetrics, of the same name, is 0 on the same film.
# For cell video: the score rewards trackers that never end a track (large gaps and radii). Report it with
#       the precision of edges, or CT, beside it.
# Versions: traccuracy 0.4.3, py-ctcmetrics 1.3.3, numpy 2.2.6, tifffile 2026.3.3, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  traccuracy==0.4.3 py-ctcmetrics==1.3.3 numpy==2.2.6 tifffile==2026.3.3
cd "$work"
export TQDM_DISABLE=1
"$work/venv/bin/python" -W ignore 2>log - <<'PY'
import logging
from pathlib import Path

import numpy as np
import tifffile
from ctc_metrics.scripts.evaluate import evaluate_sequence
from traccuracy import run_metrics
from traccuracy.loaders import load_ctc_data
from traccuracy.matchers import IOUMatcher
from traccuracy.metrics import BasicMetrics, CompleteTracks

logging.disable(logging.WARNING)
LEFT, RIGHT = slice(4, 12), slice(80, 88)


def save(folder, stem, table, second, rows):
    """Write 6 frames: a cell on the left for 3, then one on the right under the id `second`."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    for t in range(6):
        mask = np.zeros((32, 96), np.uint16)
        mask[10:18, LEFT if t < 3 else RIGHT] = 1 if t < 3 else second
        tifffile.imwrite(folder / f"{stem}{t:03d}.tif", mask)
    (folder / table).write_text(rows)


save("01_GT/TRA", "man_track", "man_track.txt", 2, "1 0 2 0\n2 3 5 0\n")
save("01_RES", "mask", "res_track.txt", 1, "1 0 5 0\n")
truth = load_ctc_data("01_GT/TRA", "01_GT/TRA/man_track.txt", name="truth")
result = load_ctc_data("01_RES", "01_RES/res_track.txt", name="result")
found, _ = run_metrics(
    gt_data=truth,
    pred_data=result,
    matcher=IOUMatcher(iou_threshold=0.5, one_to_one=True),
    metrics=[CompleteTracks(), BasicMetrics()],
)
complete, basic = (one["results"] for one in found)
other = evaluate_sequence("01_RES", "01_GT", metrics=["CT"], threads=1)
print("complete tracklets", complete["complete_tracklets"], end=" ")
print("lineages", complete["complete_lineages"], "of", complete["total_lineages"])
print("precision of edges", basic["Edge Precision"], "| CT of py-ctcmetrics", other["CT"])
assert complete["complete_tracklets"] == complete["complete_lineages"] == 1, complete
assert complete["total_lineages"] == 2 and basic["Edge Precision"] == 0.8
assert other["CT"] == 0, other
PY
