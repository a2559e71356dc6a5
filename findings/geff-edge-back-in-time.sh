#!/usr/bin/env bash
# What: a GEFF with a time axis whose edge leads from a later frame to an earlier one (trackers
#       that link child to parent make them), written and checked with geff's own library.
# Guess: geff.write or the checks of geff.validate refuse it, since the graph is directed and the
#       axis is of type "time".
# Seen: written without a word, passes the checks of structure and of the graph, and is read back as
#       it is: also an edge within one frame. The direction is left to whoever reads.
# For cell video: a reader that calls successors "daughters" sees each division as a merge and
#       each track backwards. Compare the times of both ends of all edges after reading; turn the
#       graph round if they all point back.
# Versions: geff 1.3.1.1.3, geff-spec 1.3.0, networkx 3.6.1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  geff==1.3.1.1.3 geff-spec==1.3.0 networkx==3.6.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import geff
import networkx as nx
from geff.core_io import read_to_memory
from geff.validate.data import ValidationConfig, validate_data
from geff.validate.structure import validate_structure

# A division: 0 in frame 0, its daughters 1 and 2 in frame 1; 3 stands beside 2.
graph = nx.DiGraph()
for node, time in ((0, 0), (1, 1), (2, 1), (3, 1)):
    graph.add_node(node, t=time, y=float(node), x=0.0)
graph.add_edges_from([(1, 0), (2, 0), (2, 3)])
geff.write(
    graph, "film.geff", axis_names=["t", "y", "x"], axis_types=["time", "space", "space"]
)
validate_structure("film.geff")
validate_data(read_to_memory("film.geff"), ValidationConfig(graph=True))
read, metadata = geff.read("film.geff")
steps = {edge: read.nodes[edge[1]]["t"] - read.nodes[edge[0]]["t"] for edge in read.edges}
print("directed:", metadata.directed, "| axes:", [(a.name, a.type) for a in metadata.axes])
print("passed the checks; frames from source to target of each edge:", steps)
print("successors of the mother:", list(read.successors(0)))
assert metadata.directed and steps == {(1, 0): -1, (2, 0): -1, (2, 3): 0}, steps
assert not list(read.successors(0))
PY
