#!/usr/bin/env bash
# What: btrack's segmentation_to_objects on a film of ids in which a nucleus is in two pieces of one
#       id for a while (at anaphase, behind debris, or after nearest-neighbour shrinking).
# Guess: one object for each id and frame, as from regionprops: ids are given, and touching nuclei
#       with ids of their own stay apart too.
# Seen: two objects, each with half the area; class_id is the same id for both. A frame is labelled
#       anew whenever its ids are not 1, 2, 3 ... in the order of scanning, so ids are used only to
#       keep touching nuclei apart.
# For cell video: a nucleus in pieces becomes two tracks, or looks like a division. Where the ids are
#       right, make the objects with skimage.measure.regionprops_table and btrack.io.objects_from_dict,
#       or keep the largest piece of each id first.
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
from btrack.utils import segmentation_to_objects
from skimage.measure import regionprops

film = np.zeros((2, 48, 64), np.uint16)
film[:, 8:16, 8:24] = 5
film[1, 8:16, 15:17] = 0  # in frame 1 the nucleus is in two pieces
film[:, 30:38, 20:30] = 2
film[:, 30:38, 30:40] = 9  # touches its neighbour

found = segmentation_to_objects(film, properties=("area",), assign_class_ID=True)
for t, frame in enumerate(film):
    here = sorted(
        (int(one.properties["class_id"]), int(one.properties["area"]))
        for one in found
        if one.t == t
    )
    ids = [(region.label, int(region.area)) for region in regionprops(frame)]
    print(f"frame {t}: btrack (id, area)", here, "| regionprops", ids)
    assert [one[0] for one in here] == ([2, 5, 9] if t == 0 else [2, 5, 5, 9]), here
    assert [one[0] for one in ids] == [2, 5, 9], ids
PY
