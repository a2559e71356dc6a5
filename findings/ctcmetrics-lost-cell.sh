#!/usr/bin/env bash
# What: py-ctcmetrics' MT and ML (mostly tracked, mostly lost) where one of two cells is never found.
# Guess: MT .5 and ML .5: one cell is tracked throughout, the other is lost throughout.
# Seen: MT 1 and ML 0. Frames in which a cell is missed are put into the column of id 0 of the table
#       of matches, and MT takes the largest entry of a cell's row with that column: a cell that is
#       missed in at least 8 frames of 10 counts as mostly tracked. A result that misses nearly all
#       has MT 1 too. Only where no id holds 80 % of a cell does the number mean what its name says.
# For cell video: a linker that drops the dim nuclei looks perfect in MT. Judge by DET, TRA and the
#       recall beside MOTA, which are right on the same film; do not report MT and ML.
# Versions: py-ctcmetrics 1.3.3, numpy 2.2.6, tifffile 2026.3.3, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  py-ctcmetrics==1.3.3 numpy==2.2.6 tifffile==2026.3.3
cd "$work"
"$work/venv/bin/python" - <<'PY'
from pathlib import Path

import numpy as np
import tifffile
from ctc_metrics.scripts.evaluate import evaluate_sequence


def save(folder, stem, cells):
    """Write a film of 10 frames with cells that stand still: `{id: (its frames, its columns)}`."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    for t in range(10):
        mask = np.zeros((32, 64), np.uint16)
        for cell, (frames, columns) in cells.items():
            if t in frames:
                mask[8:16, columns] = cell
        tifffile.imwrite(folder / f"{stem}{t:03d}.tif", mask)
    rows = (f"{cell} {frames[0]} {frames[-1]} 0\n" for cell, (frames, _) in cells.items())
    table = "man_track.txt" if stem == "man_track" else "res_track.txt"
    (folder / table).write_text("".join(rows))


left, right = slice(4, 12), slice(40, 48)
whole = range(10)
truth = {1: (whole, left), 2: (whole, right)}
seen = {}
for name, result in {
    "both found": truth,
    "one never found": {1: (whole, left)},
    "one never, one in 1 frame of 10": {1: (range(1), left)},
    "each in 5 frames of 10": {1: (range(5), left), 2: (range(5), right)},
}.items():
    save(f"{name}/01_GT/TRA", "man_track", truth)
    save(f"{name}/01_RES", "mask", result)
    found = evaluate_sequence(
        f"{name}/01_RES", f"{name}/01_GT", metrics=["MTML", "MOTA", "DET"], threads=1
    )
    seen[name] = [round(float(found[key]), 3) for key in ("MT", "ML", "Recall", "DET")]
for name, values in seen.items():
    print(f"{name}: MT, ML, recall, DET =", values)
assert seen["both found"] == [1, 0, 1, 1], seen
assert seen["one never found"][:3] == [1, 0, 0.5], seen
assert seen["one never, one in 1 frame of 10"][:3] == [1, 0, 0.05], seen
assert seen["each in 5 frames of 10"][:3] == [0, 0, 0.5], seen
PY
