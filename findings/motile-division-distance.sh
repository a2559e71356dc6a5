#!/usr/bin/env bash
# What: motile's EdgeDistanceCost, the price of a link's length, on a cell with two candidates in the
#       next frame: one beside it, and one far away. A new track costs 30, a division 5.
# Guess: each chosen link pays for its length, those of a division too. At 80 pixels the second cell is
#       a new track (30) and no daughter (5 + 80).
# Seen: the links of a division pay nothing: the price is laid on "continuations", links whose source
#       does not split. At 2, 80 and 800 pixels the total is the same, and the far cell is a daughter.
#       A second EdgeSelectedCost over an attribute with the length, in place of EdgeDistanceCost, does
#       what was meant.
# For cell video: wherever a division costs less than a new track, each cell that comes in becomes the
#       daughter of one whose candidates reach that far, since that is free; true daughters lose their
#       nearness. Put the length on the edges and pay it with EdgeSelectedCost, or EdgeSplitCost.
# Versions: motile 1.0.1, networkx 3.6.1, numpy 2.2.6, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  motile==1.0.1 networkx==3.6.1 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" 2>log - <<'PY'
import motile
import networkx as nx
from motile.constraints import MaxChildren, MaxParents
from motile.costs import (
    EdgeDistanceCost,
    EdgeSelectedCost,
    NodeAppearCost,
    NodeSelectedCost,
    NodeSplitCost,
)


def solve(far, length):
    """Track a cell at 0, then cells at 1 and `far`; return the links and the total cost."""
    film = nx.DiGraph()
    for node, (frame, place) in enumerate(((0, 0.0), (1, 1.0), (1, far))):
        film.add_node(node, t=frame, x=place)
    film.add_edge(0, 1, length=1.0)
    film.add_edge(0, 2, length=far)
    solver = motile.Solver(motile.TrackGraph(film, frame_attribute="t"))
    solver.add_constraint(MaxParents(1))
    solver.add_constraint(MaxChildren(2))
    solver.add_cost(NodeSelectedCost(constant=-100.0))
    solver.add_cost(NodeAppearCost(constant=30.0))
    solver.add_cost(NodeSplitCost(constant=5.0))
    solver.add_cost(length)
    solver.solve(verbose=False)
    return sorted(solver.get_selected_subgraph().edges), round(solver.solution.get_value(), 3)


for far in (2.0, 80.0, 800.0):
    by_distance = solve(far, EdgeDistanceCost("x", weight=1.0))
    by_attribute = solve(far, EdgeSelectedCost(weight=1.0, attribute="length"))
    print(f"second cell at {far}: EdgeDistanceCost", by_distance, "| EdgeSelectedCost", by_attribute)
    assert by_distance == ([(0, 1), (0, 2)], -295.0), by_distance
    if far == 2.0:
        assert by_attribute == ([(0, 1), (0, 2)], -292.0), by_attribute
    else:
        assert by_attribute == ([(0, 1)], -269.0), by_attribute
PY
