#!/usr/bin/env bash
# What: LapTrack's gap_closing_max_frame_count on a cell that stands still and is missed for some frames;
#       and the table of divisions of a film in which nothing divides.
# Guess: "maximum frame gaps" n bridges n missed frames; a table without rows has its two columns.
# Seen: n bridges n - 1 missed frames, so 1 closes no gap at all (the links it allows are those of
#       neighbouring frames); the default, 2, bridges a single one. The table is without columns as well
#       as rows: split_df["parent_track_id"] is a KeyError for quiet films only.
# For cell video: TrackMate's "max frame gap" counts the same way, but "gap closing off" by 1, or films
#       tracked with the number of frames one wants bridged, break each track once more than meant. Give
#       missed frames + 1, and reindex the tables with their columns before use.
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

bridged = {}
for count in (1, 2, 3):
    for missed in (1, 2, 3):
        frames = [0, 1, 2 + missed, 3 + missed]
        cells = pd.DataFrame({"frame": frames, "y": 1.0, "x": 1.0})
        tracker = LapTrack(gap_closing_max_frame_count=count)
        tracks, splits, _ = tracker.predict_dataframe(cells, ["y", "x"])
        bridged[count, missed] = tracks["track_id"].nunique() == 1
    longest = max((missed for missed in (1, 2, 3) if bridged[count, missed]), default=0)
    print(f"gap_closing_max_frame_count={count}: bridges {longest} missed frames")
    assert longest == count - 1
print("default:", LapTrack().gap_closing_max_frame_count, "| columns of splits:", list(splits))
assert LapTrack().gap_closing_max_frame_count == 2 and list(splits) == []
PY
