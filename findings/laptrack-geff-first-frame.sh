#!/usr/bin/env bash
# What: LapTrack's own way to GEFF, dataframes_to_geff_networkx, for a table of cells whose frames are
#       in the column "t" and begin at 5 (a window of a film, or a film that is empty at the start).
# Guess: each node carries t = 5, 6, 7, the column and the values that were handed over.
# Seen: the nodes carry "frame" = 0, 1, 2, and no "t": frames are counted from the first that has a
#       cell, and the attribute is called "frame" whatever frame_col says. Tracks and places are right.
# For cell video: the graph no longer belongs to the film: laid over the masks it is early by the empty
#       frames, so a GEFF of a later window is scored as if all were wrong. Add the first frame to
#       "frame" before writing, and name the time axis after "frame".
# Versions: laptrack 0.17.1, numpy 2.2.6, pandas 2.3.3, networkx 3.6.1, geff 1.3.1.1.3, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  laptrack==0.17.1 numpy==2.2.6 pandas==2.3.3 networkx==3.6.1 geff==1.3.1.1.3 geff-spec==1.3.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import geff
import pandas as pd
from laptrack import LapTrack
from laptrack.data_conversion import dataframes_to_geff_networkx

cells = pd.DataFrame({"t": [5, 6, 7], "y": [1.0, 2.0, 3.0], "x": [4.0, 4.0, 4.0]})
tracks, splits, merges = LapTrack().predict_dataframe(cells, ["y", "x"], frame_col="t")
graph = dataframes_to_geff_networkx(tracks, splits, merges, ["y", "x"], frame_col="t")
geff.write(
    graph, "film.geff", axis_names=["frame", "y", "x"], axis_types=["time", "space", "space"]
)
read, _ = geff.read("film.geff")
nodes = [dict(values) for _, values in sorted(read.nodes(data=True))]
frames = [int(values["frame"]) for values in nodes]
rows = [float(values["y"]) for values in nodes]
print("frames of the table:", tracks["t"].tolist(), "| of the graph:", frames, "| y:", rows)
print("attributes of a node:", sorted(nodes[0]))
assert tracks["t"].tolist() == [5, 6, 7] and rows == [1.0, 2.0, 3.0]
assert frames == [0, 1, 2] and "t" not in nodes[0], nodes
PY
