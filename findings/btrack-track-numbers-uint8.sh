#!/usr/bin/env bash
# What: btrack's update_segmentation on a film of uint8 masks (a few cells a frame) with more than 255
#       tracks in all.
# Guess: the painted film has a type that holds the tracks' numbers, or an error says that it can't.
# Seen: the painted film has the type of the masks, and numbers are cut to 8 bits: track 300 becomes 44,
#       another cell's number; track 256 becomes 0, the background. No warning.
# For cell video: cells a frame and tracks a film are different numbers: 40 cells over 300 frames easily
#       make 500 tracks. Widen the masks (astype(np.int32)) before painting.
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

CELLS = 10
film = np.zeros((31, 16, 16 * CELLS), np.uint8)
for cell in range(CELLS):
    film[:, 4:12, 16 * cell + 4 : 16 * cell + 12] = cell + 1
# Cells that are never linked: 310 tracks of one frame.
tracks = []
for number, one in enumerate(segmentation_to_objects(film), start=1):
    track = Tracklet(number, [one])
    track.parent = track.root = number
    tracks.append(track)

painted = {kind: update_segmentation(film.astype(kind), tracks) for kind in ("uint8", "int32")}
for kind, masks in painted.items():
    print(f"{kind} masks: {len(np.unique(masks)) - 1} numbers of {len(tracks)} tracks,", end=" ")
    print("frame 25:", np.unique(masks[25]).tolist(), masks.dtype)
assert len(np.unique(painted["int32"])) - 1 == len(tracks) == 310
assert painted["uint8"].dtype == np.uint8
assert np.array_equal(painted["uint8"], painted["int32"].astype(np.uint8))
assert (painted["uint8"] == 0)[painted["int32"] == 256].all()
PY
