#!/usr/bin/env bash
# What: traccuracy's DivisionMetrics with max_frame_buffer=1 on a division that the result has one frame
#       early, all else being right.
# Guess: without buffer F1 and Mitotic Branching Correctness (MBC) are 0, within one frame both are 1.
# Seen: without buffer F1 is nan, as recall and precision are both 0; MBC is 0. Within one frame F1 is 1 but
#       MBC stays 0, although no false or missed division is left: MBC is that without buffer in each row.
# For cell video: nanmean over films leaves out the films in which all divisions are wrong, and MBC can't be
#       used for "within n frames". Take nan as 0, and compute MBC from the counts of the same row:
#       TP / (TP + FP + FN).
# Versions: traccuracy 0.4.3, numpy 2.2.6, tifffile 2026.3.3, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  traccuracy==0.4.3 numpy==2.2.6 tifffile==2026.3.3
cd "$work"
export TQDM_DISABLE=1
"$work/venv/bin/python" -W ignore 2>log - <<'PY'
import logging
import math
from pathlib import Path

import numpy as np
import tifffile
from traccuracy import run_metrics
from traccuracy.loaders import load_ctc_data
from traccuracy.matchers import IOUMatcher
from traccuracy.metrics import DivisionMetrics

logging.disable(logging.WARNING)


def film(name, division):
    """Write and load 8 frames in which cell 1 divides into 2 and 3, new from frame `division`."""
    folder = Path(name)
    folder.mkdir()
    for t in range(8):
        mask = np.zeros((32, 64), np.uint16)
        if t < division:
            mask[10:20, 20:40] = 1
        else:
            mask[10:20, 20:31], mask[10:20, 32:40] = 2, 3
        tifffile.imwrite(folder / f"man_track{t:03d}.tif", mask)
    rows = f"1 0 {division - 1} 0\n2 {division} 7 1\n3 {division} 7 1\n"
    (folder / "man_track.txt").write_text(rows)
    return load_ctc_data(name, f"{name}/man_track.txt", name=name)


found, _ = run_metrics(
    gt_data=film("truth", 4),
    pred_data=film("result", 3),
    matcher=IOUMatcher(iou_threshold=0.5, one_to_one=True),
    metrics=[DivisionMetrics(max_frame_buffer=1)],
)
KEYS = "Division F1", "Mitotic Branching Correctness"
COUNTS = tuple(f"{kind} Divisions" for kind in ("True Positive", "False Positive", "False Negative"))
strict, near = (found[0]["results"][f"Frame Buffer {buffer}"] for buffer in (0, 1))
for name, row in (("without buffer", strict), ("within one frame", near)):
    print(name, {key: row[key] for key in KEYS + COUNTS})
assert math.isnan(strict[KEYS[0]]) and strict[KEYS[1]] == 0, strict
assert [strict[key] for key in COUNTS] == [0, 1, 1], strict
assert near[KEYS[0]] == 1 and [near[key] for key in COUNTS] == [1, 0, 0], near
assert near[KEYS[1]] == 0, near
PY
