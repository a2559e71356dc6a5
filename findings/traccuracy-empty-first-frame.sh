#!/usr/bin/env bash
# What: traccuracy's CTCMatcher on a film whose first frames hold no cell (cells come in later),
#       scored against itself.
# Guess: TRA, DET and LNK are 1; frames without cells add nothing.
# Seen: TRA is 0. The matcher takes the cells of frame t, counted from the first frame that has a
#       cell, but the masks of the film counted from 0, so each frame's cells are looked for in
#       the masks of an earlier one. Cells that stand still match in part, without a warning.
#       IOUMatcher is right on the same two folders.
# For cell video: a film that starts empty (early embryos, sparse wells, crops cut from a larger
#       film) gets a bad or senseless score. Cut the empty frames at the start off both folders,
#       or match with IOUMatcher, before the numbers are believed.
# Versions: traccuracy 0.4.3, numpy 2.2.6, tifffile 2026.3.3, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  traccuracy==0.4.3 numpy==2.2.6 tifffile==2026.3.3
cd "$work"
export TQDM_DISABLE=1
"$work/venv/bin/python" - <<'PY'
import logging
from pathlib import Path

import numpy as np
import tifffile
from traccuracy import run_metrics
from traccuracy.loaders import load_ctc_data
from traccuracy.matchers import CTCMatcher, IOUMatcher
from traccuracy.metrics import CTCMetrics

logging.disable(logging.WARNING)


def score(name, first, matcher):
    """Score a film of a moving cell that comes in at frame `first` against itself."""
    folder = Path(name)
    folder.mkdir(exist_ok=True)
    for t in range(6):
        mask = np.zeros((32, 96), np.uint16)
        if t >= first:
            mask[10:18, 12 * t : 12 * t + 8] = 3
        tifffile.imwrite(folder / f"man_track{t:03d}.tif", mask)
    (folder / "man_track.txt").write_text(f"3 {first} 5 0\n")
    truth, result = (
        load_ctc_data(name, f"{name}/man_track.txt", name=role) for role in ("truth", "result")
    )
    found, _ = run_metrics(
        gt_data=truth, pred_data=result, matcher=matcher, metrics=[CTCMetrics()]
    )
    return {key: found[0]["results"][key] for key in ("TRA", "DET", "LNK")}


full = score("full", 0, CTCMatcher())
late = score("late", 2, CTCMatcher())
other = score("late", 2, IOUMatcher(iou_threshold=0.5, one_to_one=True))
print("cell from frame 0, CTCMatcher:", full)
print("cell from frame 2, CTCMatcher:", late)
print("cell from frame 2, IOUMatcher:", other)
assert set(full.values()) == {1.0}, full
assert set(late.values()) == {0.0}, late
assert set(other.values()) == {1.0}, other
PY
