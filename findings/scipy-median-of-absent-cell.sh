#!/usr/bin/env bash
# What: scipy.ndimage statistics of a label image, asked for ids of which one is not in the frame
#       (a cell that has not come in yet, or has left), as in measuring all tracks in all frames.
# Guess: nan for mean and median (or 0); never a value of something else.
# Seen: mean, variance and standard_deviation give nan. median, asked with a list of ids, gives
#       a plausible number without a warning: that of the darkest background pixel, or, in a crop
#       without background, of another cell's. Asked for that one id alone it gives nan.
# For cell video: a track's median intensity goes on before birth and after death, at background
#       level or another cell's; it looks like dimming. Ask only for the ids that are in the frame
#       (np.unique), or blank absent ones by their area.
# Versions: scipy 1.14.1, numpy 2.2.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  scipy==1.14.1 numpy==2.2.6
"$work/venv/bin/python" - <<'PY'
import warnings

import numpy as np
from scipy import ndimage

warnings.simplefilter("ignore", RuntimeWarning)
labels = np.zeros((12, 12), np.int32)
labels[1:4, 1:4] = 1
labels[6:10, 6:10] = 3
image = np.where(labels > 0, 500.0, 90.0) + np.arange(12)
ids = [1, 2, 3, 9]  # 2 and 9 are not in this frame
for name in ("mean", "variance", "standard_deviation", "median", "maximum", "sum_labels"):
    print(f"{name:20}", dict(zip(ids, map(float, getattr(ndimage, name)(image, labels, ids)))))
alone = ndimage.median(image, labels, 2)
print("median of 2 alone:  ", alone)
assert np.isnan(ndimage.mean(image, labels, ids)[[1, 3]]).all()
assert np.isnan(alone)
wrong = np.asarray(ndimage.median(image, labels, ids))[[1, 3]]
assert (wrong == image[labels == 0].min()).all(), wrong
crop = slice(6, 10), slice(6, 10)  # nothing but cell 3
wrong = ndimage.median(image[crop], labels[crop], [2])
print("median of 2 in a crop full of 3:", wrong, "| pixels of 3:", np.unique(image[crop]))
assert (wrong == image[crop].min()).all(), wrong
PY
