#!/usr/bin/env bash
# What: `ctc_evaluate -r` of py-ctcmetrics on a folder of a data set with five sequences, 01 to 05, as
#       data sets written by a generator or cut from a long film have.
# Guess: it scores each sequence that has a result and a truth.
# Seen: it scores 01 and 02, the only ones that the challenge has; the others are left out without a
#       word, also if they alone are there (then the answer is an empty table).
# For cell video: the mean over five films is one over two. Count the rows, or call evaluate_sequence
#       for each folder.
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


def save(folder, stem, table):
    """Write a film of three frames with one cell."""
    Path(folder).mkdir(parents=True)
    for t in range(3):
        mask = np.zeros((32, 32), np.uint16)
        mask[8:16, 8:16] = 1
        tifffile.imwrite(f"{folder}/{stem}{t:03d}.tif", mask)
    Path(folder, table).write_text("1 0 2 0\n")


for number in range(1, 6):
    name = f"data/Cells/{number:02d}"
    save(f"{name}_GT/TRA", "man_track", "man_track.txt")
    save(f"{name}_RES", "mask", "res_track.txt")
PY
"$work/venv/bin/ctc_evaluate" --res data --gt data -r -n 1 --tra --det --csv-file scores.csv >log
"$work/venv/bin/python" - <<'PY'
from pathlib import Path

folders = sorted(path.name for path in Path("data/Cells").glob("*_RES"))
scored = [row for row in Path("scores.csv").read_text().splitlines() if "Cells" in row]
print("results:", folders)
print("rows of the table:", scored)
assert len(folders) == 5 and len(scored) == 2, scored
assert "Cells_01" in scored[0] and "Cells_02" in scored[1], scored
PY
