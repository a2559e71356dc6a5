#!/usr/bin/env bash
# What: Trackastra's network (TrackingTransformer as it comes, weights drawn at random from a seed) on
#       the cells of a window that begins at frame 0; on the same window at frame 50; and on one whose
#       cells are all moved by 100 pixels.
# Guess: both change nothing but rounding. Attention turns by the difference of two places (rotary
#       positions), a window's first frame is taken away from its times, and cells that lie 100 pixels
#       further on the stage move and divide in the same way.
# Seen: both change the scores of links by more than they differ from pair to pair. Waves of up to 256
#       pixels of each cell's own y and x are an input of the network; and the first frame is taken away
#       from y and x, too: a window at frame 50 scores exactly as one at frame 0 whose cells lie 50
#       pixels further up and left.
# For cell video: cells that stand still are linked otherwise early and late in a film, and in a crop
#       otherwise than in the film; in a film of 1,000 frames they meet places that no training window
#       had. Track long films in parts whose frames count from 0, or add the window's first frame to
#       the places before the network sees them; lay training windows at random places.
# Versions: trackastra 0.5.6, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check trackastra==0.5.6
cd "$work"
"$work/venv/bin/python" 2>log - <<'PY'
import torch
from trackastra.model import TrackingTransformer

torch.manual_seed(0)
network = TrackingTransformer(coord_dim=2, feat_dim=0, window=4, dropout=0.0).eval()
times = torch.arange(4).repeat_interleave(10)[:, None].float()
window = torch.cat([times, torch.rand(40, 2) * 300], 1)[None]
pairs = (times.T - times) == 1


def score(*shift):
    """Return the scores of links between neighbouring frames, all cells moved by t, y, x."""
    with torch.no_grad():
        return network(window + torch.tensor(shift, dtype=torch.float32))[0][pairs]


as_it_is, late, moved = score(0, 0, 0), score(50, 0, 0), score(0, 100, 100)
spread = float(as_it_is.std())
for name, scores in (("begins at frame 50", late), ("moved by 100 pixels", moved)):
    change = float((scores - as_it_is).std()) / spread
    print(f"{name}: scores change by {change:.2f} of their spread")
    assert change > 0.5, change
off = float((late - score(0, -50, -50)).abs().max()) / spread
print(f"frame 50 against 50 pixels up and left: {off:.1e} of the spread")
assert off < 1e-4, off
PY
