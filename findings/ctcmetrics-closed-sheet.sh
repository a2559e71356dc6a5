#!/usr/bin/env bash
# What: py-ctcmetrics on masks that leave no background pixel, as closed sheets of cells (epithelia,
#       full confluence) or small crops do, scored against an equal copy.
# Guess: DET, TRA and SEG are 1; the ids of a frame are those that are in it.
# Seen: the lowest id of each frame without a 0 is taken for the background and dropped. A result
#       without a 0 is "Invalid" (its first cell "in res_track but not in mask") and gets no score.
#       If the truth alone has none, the film is scored, and the cell that found it is punished: DET
#       .95 here for a result that differs from the truth by one pixel. One background pixel a frame
#       in both makes all scores 1.
# For cell video: dense films and crops lose a cell in some frames, on the side of the truth without a
#       word. Set one pixel of each full frame to 0 (a corner), in truth and result, before scoring.
# Versions: py-ctcmetrics 1.3.3, numpy 2.2.6, tifffile 2026.3.3, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  py-ctcmetrics==1.3.3 numpy==2.2.6 tifffile==2026.3.3
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from pathlib import Path

import numpy as np
import tifffile
from ctc_metrics.scripts.evaluate import evaluate_sequence

sheet = np.repeat(np.array([[1, 2, 3]], np.uint16), 20, axis=1) * np.ones((32, 1), np.uint16)
opened = sheet.copy()
opened[0, 0] = 0


def score(name, truth, result):
    """Score a film of 5 equal frames."""
    for folder, stem, mask in (
        (f"{name}/01_GT/TRA", "man_track", truth),
        (f"{name}/01_GT/SEG", "man_seg", truth),
        (f"{name}/01_RES", "mask", result),
    ):
        Path(folder).mkdir(parents=True)
        for t in range(5):
            tifffile.imwrite(f"{folder}/{stem}{t:03d}.tif", mask)
    table = "".join(f"{cell} 0 4 0\n" for cell in (1, 2, 3))
    Path(f"{name}/01_GT/TRA/man_track.txt").write_text(table)
    Path(f"{name}/01_RES/res_track.txt").write_text(table)
    found = evaluate_sequence(
        f"{name}/01_RES", f"{name}/01_GT", metrics=["Valid", "DET", "TRA", "SEG"], threads=1
    )
    return {
        key: found[key] and round(float(found[key]), 3) for key in ("Valid", "DET", "TRA", "SEG")
    }


both = score("both", opened, opened)
neither = score("neither", sheet, sheet)
truth = score("truth", sheet, opened)
print("a background pixel in both:", both)
print("no background in either:", neither)
print("no background in the truth alone:", truth)
assert set(both.values()) == {1.0}, both
assert neither == {"Valid": 0, "DET": None, "TRA": None, "SEG": None}, neither
assert truth["Valid"] == 1 and truth["DET"] < 1, truth
PY
