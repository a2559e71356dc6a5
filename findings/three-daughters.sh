#!/usr/bin/env bash
# What: a film in which a cell divides into three, scored against itself with traccuracy's
#       DivisionMetrics and with py-ctcmetrics.
# Guess: both count one division, found: F1 and BC are 1.
# Seen: py-ctcmetrics gives BC 1. traccuracy counts one division in truth and in result, but
#       neither a true nor a false one: it is a "wrong children" division, recall and precision
#       are 0, F1 is nan. TRA is 1 all the same.
# For cell video: tripolar divisions happen (cancer lines such as HeLa), and merged or mis-edited
#       truths have them. Each one lowers the division score of a perfect result. Count mothers of
#       three in a truth before its division scores are compared between the two packages.
# Versions: traccuracy 0.4.3, py-ctcmetrics 1.3.3, numpy 2.2.6, tifffile 2026.3.3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  traccuracy==0.4.3 py-ctcmetrics==1.3.3 numpy==2.2.6 tifffile==2026.3.3
cd "$work"
export TQDM_DISABLE=1
"$work/venv/bin/python" - <<'PY'
import contextlib
import logging
import math
import os
from pathlib import Path

import numpy as np
import tifffile
from ctc_metrics.scripts.evaluate import evaluate_sequence
from traccuracy import run_metrics
from traccuracy.loaders import load_ctc_data
from traccuracy.matchers import CTCMatcher
from traccuracy.metrics import CTCMetrics, DivisionMetrics

logging.disable(logging.WARNING)


def film(daughters):
    """Return masks of a cell with so many daughters, and its track table."""
    masks = np.zeros((6, 64, 64), np.uint16)
    masks[:3, 28:36, 28:36] = 1
    for k in range(daughters):
        masks[3:, 8 + 18 * k : 16 + 18 * k, 28:36] = 2 + k
    return masks, "1 0 2 0\n" + "".join(f"{2 + k} 3 5 1\n" for k in range(daughters))


def scores(daughters):
    masks, table = film(daughters)
    root = Path(str(daughters))
    for folder, stem, name in (
        ("01_GT/TRA", "man_track", "man_track.txt"),
        ("01_GT/SEG", "man_seg", None),
        ("01_RES", "mask", "res_track.txt"),
    ):
        (root / folder).mkdir(parents=True)
        for t, mask in enumerate(masks):
            tifffile.imwrite(root / folder / f"{stem}{t:03d}.tif", mask)
        if name:
            (root / folder / name).write_text(table)
    truth = load_ctc_data(f"{root}/01_GT/TRA", f"{root}/01_GT/TRA/man_track.txt")
    result = load_ctc_data(f"{root}/01_RES", f"{root}/01_RES/res_track.txt")
    found, _ = run_metrics(
        gt_data=truth,
        pred_data=result,
        matcher=CTCMatcher(),
        metrics=[CTCMetrics(), DivisionMetrics()],
    )
    one = found[1]["results"]["Frame Buffer 0"]
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        other = evaluate_sequence(f"{root}/01_RES", f"{root}/01_GT")
    return found[0]["results"]["TRA"], one, other["BC(0)"]


for daughters in (2, 3):
    tra, division, bc = scores(daughters)
    print(
        f"{daughters} daughters: traccuracy TRA {tra}, division F1 {division['Division F1']}, "
        f"wrong children {division['Wrong Children Divisions']}; py-ctcmetrics BC(0) {bc}"
    )
    assert tra == 1 and bc == 1
    if daughters == 2:
        assert division["Division F1"] == 1
    else:
        assert math.isnan(division["Division F1"]) and division["Wrong Children Divisions"] == 1
PY
