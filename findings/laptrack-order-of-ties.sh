#!/usr/bin/env bash
# What: LapTrack on two mothers and two daughters at the corners of a square, where both ways to link cost
#       the same, with the rows of the second frame in one order and in the other.
# Guess: links follow from the places: the same links, whatever the order of the rows.
# Seen: the order of the rows decides: a goes to d and b to c in one order, a to c and b to d in the other.
# For cell video: renumbering the ids of a mask, which most segmenters do from run to run, changes tracks
#       where nuclei are placed evenly (drawn test films, grids, round centroids). Sort nuclei by place before
#       tracking, so that equal films have equal tracks.
# Versions: laptrack 0.17.1, numpy 2.2.6, pandas 2.3.3, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  laptrack==0.17.1 numpy==2.2.6 pandas==2.3.3
cd "$work"
"$work/venv/bin/python" - <<'PY'
import pandas as pd
from laptrack import LapTrack

def link(second):
    cells = pd.DataFrame(
        [(0, 0.0, 0.0, "a"), (0, 0.0, 4.0, "b"), *second], columns=["frame", "y", "x", "name"]
    )
    tracker = LapTrack(cutoff=9.0**2, splitting_cutoff=False, gap_closing_cutoff=False)
    tracks, _, _ = tracker.predict_dataframe(cells, ["y", "x"], only_coordinate_cols=False)
    return sorted("".join(sorted(names)) for names in tracks.groupby("track_id")["name"].apply(list))

c, d = (1, 3.0, 2.0, "c"), (1, -3.0, 2.0, "d")
found = link([c, d]), link([d, c])
print("rows c, d:", found[0], "| rows d, c:", found[1])
assert found[0] != found[1]
PY
