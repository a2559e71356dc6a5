#!/usr/bin/env bash
# What: btrack's update_segmentation, which paints the tracks' numbers into the film of masks, on a
#       crescent-shaped cell (its centre of mass lies outside it) that bends around a round one.
# Guess: each cell gets the number of its own track; which object is which mask is known, or found by
#       overlap.
# Seen: the mask of a track is the one at the pixel of its centroid. A crescent whose centroid lies on
#       the background is erased, and one whose centroid lies in its neighbour gives the neighbour its
#       number. No warning.
# For cell video: kidney-shaped, ring-shaped and late-anaphase nuclei are lost from the tracked masks, or
#       two tracks end up with one; scores such as TRA then blame the tracker. Keep the id as a property
#       of the objects, and map ids to tracks by it.
# Versions: btrack 0.6.5, scikit-image 0.26.0, numpy 2.2.6, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  btrack==0.6.5 scikit-image==0.26.0 numpy==2.2.6
cd "$work"
export TQDM_DISABLE=1
"$work/venv/bin/python" 2>log - <<'PY'
import numpy as np
from btrack.btypes import Tracklet
from btrack.utils import segmentation_to_objects, update_segmentation

rows, columns = np.mgrid[:64, :64]
disc = (rows - 32) ** 2 + (columns - 32) ** 2
CRESCENT, ROUND = 2, 1


def paint(neighbour):
    """Return the numbers that a crescent and a round cell get: tracks 70 and 80 are theirs."""
    frame = np.zeros((64, 64), np.uint16)
    frame[(disc <= 24**2) & (disc >= 18**2) & (rows > 32)] = CRESCENT
    frame[neighbour] = ROUND
    tracks = []
    for one in segmentation_to_objects(frame[None]):
        number = 70 if one.y > 42 and one.x < 42 else 80
        track = Tracklet(number, [one])
        track.parent = track.root = number
        tracks.append(track)
    painted = update_segmentation(frame[None], tracks)[0]
    return {
        name: np.unique(painted[frame == cell]).tolist()
        for name, cell in (("crescent", CRESCENT), ("round", ROUND))
    }


apart = paint((slice(4, 12), slice(44, 52)))
inside = paint((slice(28, 48), slice(26, 38)))
print("tracks: 70 is the crescent, 80 the round one")
print("centroid of the crescent on the background:", apart)
print("centroid of the crescent in its neighbour:", inside)
assert apart == {"crescent": [0], "round": [80]}, apart
assert inside["crescent"] == [0] and inside["round"] == [70], inside
PY
