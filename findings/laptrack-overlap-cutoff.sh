#!/usr/bin/env bash
# What: LapTrack's tracking by overlap of label images, OverLapTrack, as it is made by default, on a
#       cell that ends and another that begins at the far side of the next frame.
# Guess: two tracks. Cells that do not share a pixel are never linked by overlap.
# Seen: one track. The distance is 1 minus the shared part, thus 0 to 1, but the cutoff is the one of
#       LapTrack, 15 ** 2 = 225, meant for squared pixels; so is that of closing gaps. Nothing is ever
#       too far: each cell that has no better partner gets one. cutoff=.9 and gap_closing_cutoff=.9
#       (or False) give two tracks.
# For cell video: nuclei that leave on the left go on as those that come in on the right, and cells
#       that die become new ones; there is no warning. Set both cutoffs, and those of splitting,
#       below 1.
# Versions: laptrack 0.17.1, numpy 2.2.6, pandas 2.3.3, scikit-learn 1.7.2, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  laptrack==0.17.1 numpy==2.2.6 pandas==2.3.3 scikit-learn==1.7.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
from laptrack import OverLapTrack

film = np.zeros((4, 64, 256), np.int64)
film[:, 28:36, 120:128] = 1  # stays
film[:2, 4:10, 4:10] = 2  # leaves
film[2:, 50:56, 240:246] = 3  # comes in, 240 pixels away


def track_of(tracker):
    """Return the number of the track of each cell."""
    table, _, _ = tracker.predict_overlap_dataframe(film)
    numbers = table.reset_index().groupby("label")["track_id"].unique()
    return {int(cell): [int(value) for value in found] for cell, found in numbers.items()}


plain = track_of(OverLapTrack())
link = track_of(OverLapTrack(cutoff=0.9))
both = track_of(OverLapTrack(cutoff=0.9, gap_closing_cutoff=0.9))
print("as made by default, cutoff", OverLapTrack().cutoff, "| track of each cell:", plain)
print("cutoff .9, closing of gaps as by default:", link)
print("both .9:", both)
assert OverLapTrack().cutoff == OverLapTrack().gap_closing_cutoff == 225
assert plain[2] == plain[3] != plain[1], plain
assert link[2] == link[3], link
assert both[2] != both[3], both
PY
