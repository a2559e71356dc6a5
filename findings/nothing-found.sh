#!/usr/bin/env bash
# What: the score of a tracker that found nothing: a result folder with masks of zeros and an
#       empty res_track.txt, against a truth with a cell. py-ctcmetrics and traccuracy.
# Guess: both give DET 0 and TRA 0.
# Seen: no score. py-ctcmetrics ends in "zero-size array to reduction operation maximum",
#       traccuracy in "'float' object cannot be interpreted as an integer", both while the
#       result is still being checked (DET, TRA and HOTA alone as well). One wrong cell in one
#       frame is enough for a 0.
# For cell video: a sweep over thresholds or a model early in training loses the very run that
#       scored worst, and a mean over films leaves it out. Test for an empty table first and
#       write the 0 yourself.
# Versions: py-ctcmetrics 1.3.3, traccuracy 0.4.3, numpy 2.2.6, tifffile 2026.3.3
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
import os
import warnings
from pathlib import Path

import numpy as np
import tifffile
from ctc_metrics.scripts.evaluate import evaluate_sequence
from traccuracy import run_metrics
from traccuracy.loaders import load_ctc_data
from traccuracy.matchers import CTCMatcher
from traccuracy.metrics import CTCMetrics

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
truth = np.zeros((4, 32, 32), np.uint16)
truth[:, 10:18, 10:18] = 1
nothing = np.zeros_like(truth)
wrong = nothing.copy()
wrong[0, 24:28, 24:28] = 1


def write(folder, stem, masks, table, name):
    folder.mkdir(parents=True)
    for t, mask in enumerate(masks):
        tifffile.imwrite(folder / f"{stem}{t:03d}.tif", mask)
    (folder / name).write_text(table)


def ctcmetrics(root):
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        return evaluate_sequence(f"{root}/01_RES", f"{root}/01_GT")


def traccuracy(root):
    found, _ = run_metrics(
        gt_data=load_ctc_data(f"{root}/01_GT/TRA", f"{root}/01_GT/TRA/man_track.txt"),
        pred_data=load_ctc_data(f"{root}/01_RES", f"{root}/01_RES/res_track.txt"),
        matcher=CTCMatcher(),
        metrics=[CTCMetrics()],
    )
    return found[0]["results"]


for name, masks, table in (("nothing", nothing, ""), ("one wrong cell", wrong, "1 0 0 0\n")):
    root = Path(name.replace(" ", "_"))
    write(root / "01_GT/TRA", "man_track", truth, "1 0 3 0\n", "man_track.txt")
    write(root / "01_GT/SEG", "man_seg", truth, "", "unused.txt")
    write(root / "01_RES", "mask", masks, table, "res_track.txt")
    for scorer in (ctcmetrics, traccuracy):
        try:
            found = float(scorer(root)["TRA"])
        except (ValueError, TypeError) as error:
            found = f"{type(error).__name__}: {error}"
        print(f"result: {name} | {scorer.__name__}: {found}")
        assert isinstance(found, str) == (name == "nothing"), found
        assert name == "nothing" or found == 0, found
PY
