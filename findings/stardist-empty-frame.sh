#!/usr/bin/env bash
# What: StarDist's matching_dataset with by_image=True over four frames, two of them without a nucleus in
#       truth and result, else without a fault.
# Guess: 1, as a frame that is rightly empty is right (or not counted).
# Seen: .5 in f1, precision, recall, accuracy and panoptic quality: an empty frame that is right scores
#       0, as if all were wrong, and the mean is over frames. by_image=False gives 1.
# For cell video: sparse films, and crops drawn for validation, lose as much score as they have empty
#       frames, so numbers of two data sets or crop sizes can't be compared. Use by_image=False, or leave
#       frames out that are empty in both.
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
from stardist.matching import matching, matching_dataset

empty = np.zeros((32, 32), np.int32)
full = empty.copy()
full[4:12, 4:12] = 1
film = [full, empty, full, empty]
NAMES = ("f1", "precision", "recall", "accuracy", "panoptic_quality")
means = {}
for by_image in (False, True):
    found = matching_dataset(film, film, by_image=by_image, show_progress=False)
    means[by_image] = {name: float(getattr(found, name)) for name in NAMES}
    print(f"by_image={by_image}:", means[by_image])
alone = matching(empty, empty)
print("an empty frame alone:", {name: float(getattr(alone, name)) for name in NAMES})
assert set(means[False].values()) == {1.0}, means
assert set(means[True].values()) == {0.5}, means
assert alone.f1 == 0 and alone.fp == alone.fn == 0
PY
