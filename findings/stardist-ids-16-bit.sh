#!/usr/bin/env bash
# What: StarDist's targets of training, star_dist, for int32 masks whose ids go beyond 65535, as ids
#       counted over a whole film or joined from frame and number do.
# Guess: int32 ids are taken as they are, or refused.
# Seen: ids are cut to 16 bits without a word. The nucleus 65536 is background, distance 0 in all
#       directions; 1 and 65537 that touch are one nucleus, with rays of up to 42 in place of 28.
#       edt_prob, the other target, keeps them apart, so both targets contradict each other.
# For cell video: training goes on with wrong shapes; nothing in the loss tells. Renumber each frame to
#       1..n (skimage's relabel_sequential) before StarDist sees it.
# Versions: stardist 0.9.2, numpy 2.2.6, scikit-image 0.26.0, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  stardist==0.9.2 numpy==2.2.6 scikit-image==0.26.0
cd "$work"
"$work/venv/bin/python" -W ignore 2>log - <<'PY'
import numpy as np
from stardist.geometry import star_dist
from stardist.utils import edt_prob


def measure(*ids):
    """Return the longest ray and the probability within each of two nuclei that touch."""
    mask = np.zeros((64, 64), np.int32)
    places = (slice(20, 40), slice(10, 30)), (slice(20, 40), slice(30, 50))
    for cell, place in zip(ids, places):
        mask[place] = cell
    rays, probability = star_dist(mask, 32), edt_prob(mask)
    return [
        (cell, round(float(rays[place].max()), 1), round(float(probability[place].max()), 1))
        for cell, place in zip(ids, places)
    ]


small, wrapped, zero = measure(1, 2), measure(1, 65537), measure(1, 65536)
for found in (small, wrapped, zero):
    print("(id, longest ray, highest probability):", found)
assert small[0][1] == small[1][1] < 30, small
assert wrapped[0][1] > small[0][1] + 10 and wrapped[0][2] == 1, wrapped
assert zero[1][1] == 0 and zero[1][2] == 1, zero
PY
