#!/usr/bin/env bash
# What: a GEFF with its label masks whose time axis counts minutes (0, 10, 20, 30) and not frames,
#       read by traccuracy and scored against itself with each of its three usual matchers.
# Guess: frames are put in order by time, masks by index, and the score is 1.
# Seen: the time is taken for the index of the mask. IOUMatcher scores TRA .157, without an error:
#       only the cells at time 0 meet their masks. CTCMatcher ends in an IndexError. PointMatcher,
#       which needs no masks, is right, but not if the minutes are floats: a TypeError.
#       The same film in frames scores 1 with all three.
# For cell video: GEFFs with physical time are valid, and converters write them. Before scoring,
#       see that the time axis holds the whole numbers 0 ... frames - 1; a low score of a file
#       against itself is the quickest test.
# Versions: traccuracy 0.4.3, geff 1.3.1.1.3, networkx 3.6.1, zarr 3.1.6, numpy 2.2.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  traccuracy==0.4.3 geff==1.3.1.1.3 networkx==3.6.1 zarr==3.1.6 numpy==2.2.6
cd "$work"
export TQDM_DISABLE=1
"$work/venv/bin/python" - <<'PY'
import warnings

import geff
import networkx as nx
import numpy as np
import zarr
from traccuracy import run_metrics
from traccuracy.loaders import load_geff_data
from traccuracy.matchers import CTCMatcher, IOUMatcher, PointMatcher
from traccuracy.metrics import CTCMetrics

warnings.simplefilter("ignore")
masks = np.zeros((4, 32, 96), np.uint16)
graph = nx.DiGraph()
for t in range(4):
    masks[t, 10:18, 12 * t : 12 * t + 8] = 1
    graph.add_node(t, t=t, y=13.5, x=12 * t + 3.5, seg_id=1)
nx.add_path(graph, range(4))
zarr.save_array("masks.zarr", masks)

matchers = {
    "IOUMatcher": lambda: IOUMatcher(iou_threshold=0.5, one_to_one=True),
    "CTCMatcher": CTCMatcher,
    "PointMatcher": lambda: PointMatcher(threshold=5),
}


def scores(name, step):
    """Write the film with a frame every `step`; return the TRA, or the error, of each matcher."""
    film = graph.copy()
    for t in film:
        film.nodes[t]["t"] = t * step
    path = f"{name}.geff"
    geff.write(film, path, axis_names=["t", "y", "x"], axis_types=["time", "space", "space"])
    found = {}
    for matcher, make in matchers.items():
        truth, result = (
            load_geff_data(path, seg_path="masks.zarr", seg_property="seg_id") for _ in range(2)
        )
        try:
            scored, _ = run_metrics(
                gt_data=truth, pred_data=result, matcher=make(), metrics=[CTCMetrics()]
            )
            found[matcher] = round(float(scored[0]["results"]["TRA"]), 3)
        except (IndexError, TypeError) as error:
            found[matcher] = type(error).__name__
    print(f"time in {name}:", found)
    return found


assert set(scores("frames", 1).values()) == {1.0}
whole = {"IOUMatcher": 0.157, "CTCMatcher": "IndexError", "PointMatcher": 1.0}
assert scores("minutes", 10) == whole
assert scores("fractional_minutes", 10.0) == {
    "IOUMatcher": 0.157,
    "CTCMatcher": "TypeError",
    "PointMatcher": "TypeError",
}
PY
