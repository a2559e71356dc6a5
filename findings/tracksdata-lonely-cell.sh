#!/usr/bin/env bash
# What: tracksdata's NearestNeighborsSolver on a film with a cell that no link reaches (seen in one frame
#       only), and the CTC folder of its solution.
# Guess: the cell stays, as a track of one frame: the solver chooses links, and cells were given.
# Seen: the solution has only cells with a chosen link: the lonely one is gone, from the graph and from
#       the written masks, and is a hole there. No warning. A film in which nothing can be linked is an
#       error ("No edges found").
# For cell video: each nucleus that is seen once (at the rim, or before a cut) is a false negative of the
#       solver, not of the segmenter: DET is .8 here for masks without a fault. Write from the whole
#       graph, with the links that were not chosen taken out.
# Versions: tracksdata 0.1.0rc12, py-ctcmetrics 1.3.3, polars 2.1.0, numpy 2.4.6, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  tracksdata==0.1.0rc12 polars==2.1.0 py-ctcmetrics==1.3.3 numpy==2.4.6 tifffile==2026.3.3
cd "$work"
export TQDM_DISABLE=1
"$work/venv/bin/python" 2>log - <<'PY'
from pathlib import Path

import numpy as np
import tifffile
import tracksdata as td
from ctc_metrics.scripts.evaluate import evaluate_sequence

film = np.zeros((4, 64, 128), np.uint16)
film[:, 10:18, 10:18] = 1
film[2, 40:48, 100:108] = 2  # seen in frame 2 only, far from the other
truth = Path("01_GT/TRA")
truth.mkdir(parents=True)
for t, mask in enumerate(film):
    tifffile.imwrite(truth / f"man_track{t:03d}.tif", mask)
(truth / "man_track.txt").write_text("1 0 3 0\n2 2 2 0\n")

graph = td.graph.RustWorkXGraph()
td.nodes.RegionPropsNodes().add_nodes(graph, labels=film)
td.edges.DistanceEdges(distance_threshold=20, n_neighbors=2).add_edges(graph)
solution = td.solvers.NearestNeighborsSolver().solve(graph)
solution.assign_tracklet_ids()
td.io.to_ctc(solution, "01_RES", dtype=np.uint16)
written = [np.unique(tifffile.imread(f"01_RES/mask{t:03d}.tif")).tolist() for t in range(4)]
score = evaluate_sequence("01_RES", "01_GT", metrics=["DET", "TRA"], threads=1)
print("cells of the film:", graph.num_nodes(), "| of the solution:", solution.num_nodes())
print("ids of the written masks:", written)
print("DET", round(score["DET"], 3), "TRA", round(score["TRA"], 3))
assert graph.num_nodes() == 5 and solution.num_nodes() == 4
assert written == [[0, 1]] * 4 and score["DET"] < 1
PY
