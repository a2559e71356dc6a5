#!/usr/bin/env bash
# What: py-ctcmetrics on a film with a frame without any cell, in the truth, in the result, or in
#       both.
# Guess: such a frame is counted as it is: nothing to find, nothing missed; same on both sides.
# Seen: an empty frame of the result is scored. An empty frame of the truth, first, middle or
#       last, ends in an IndexError when all measures are asked for (the default), also when the
#       result is the truth itself; the message names neither frame nor measure. It is HOTA,
#       CHOTA, IDF1 and MTML that fail; DET, SEG, TRA, CT, TF and MOTA, each by name, are right.
# For cell video: sparse films, crops, and films that all cells have left get no score from a
#       plain call. Name the measures that you want, or drop the frames that are empty in the
#       truth from both sides if HOTA or IDF1 are among them.
# Versions: py-ctcmetrics 1.3.3, numpy 2.2.6, tifffile 2026.3.3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  py-ctcmetrics==1.3.3 numpy==2.2.6 tifffile==2026.3.3
cd "$work"
"$work/venv/bin/python" - <<'PY'
import contextlib
import os
import warnings
from pathlib import Path

import numpy as np
import tifffile
from ctc_metrics.scripts.evaluate import evaluate_sequence

warnings.simplefilter("ignore")


def write(folder, stem, frames, name):
    """Write six frames, with a cell in those named (one run of frames, or two: a daughter)."""
    folder.mkdir(parents=True)
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    for t in range(6):
        mask = np.zeros((32, 32), np.uint16)
        for k, run in enumerate(runs):
            if t in run:
                mask[10:18, 10:18] = k + 1
        tifffile.imwrite(folder / f"{stem}{t:03d}.tif", mask)
    rows = [f"{k + 1} {run[0]} {run[-1]} {k}" for k, run in enumerate(runs)]
    (folder / name).write_text("\n".join(rows) + "\n")


def film(truth, result):
    root = Path("-".join("".join(map(str, frames)) for frames in (truth, result)))
    write(root / "01_GT/TRA", "man_track", truth, "man_track.txt")
    write(root / "01_GT/SEG", "man_seg", truth, "unused.txt")
    write(root / "01_RES", "mask", result, "res_track.txt")
    return root


def score(root, metrics=None):
    try:
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            return evaluate_sequence(f"{root}/01_RES", f"{root}/01_GT", metrics=metrics)
    except IndexError as error:
        return f"IndexError: {error}"


full, late, gap, early = [0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4]
for truth, result, fails in (
    (full, full, False),
    (full, late, False),
    (full, early, False),
    (late, late, True),
    (gap, gap, True),
    (early, early, True),
    (late, full, True),
):
    found = score(film(truth, result))
    shown = found if isinstance(found, str) else f"TRA {found['TRA']:.3f}"
    print("cell in frames", truth, "of the truth,", result, "of the result:", shown)
    assert isinstance(found, str) == fails, found

root = Path("01345-01345")
for name in ("DET", "SEG", "TRA", "CT", "TF", "MOTA", "HOTA", "CHOTA", "IDF1", "MTML"):
    found = score(root, [name])
    print(f"{name} alone, truth against itself:", found if isinstance(found, str) else found[name])
    assert isinstance(found, str) == (name in ("HOTA", "CHOTA", "IDF1", "MTML")), found
    assert isinstance(found, str) or found[name] == 1, found
PY
