#!/usr/bin/env bash
# What: btrack's segmentation_to_objects with intensity_image=, on a film scaled to mean 0 and standard
#       deviation 1, as networks take it; a dim nucleus beside a bright one, and one of value 0.
# Guess: each object lies within its mask; the image is for measurements such as the mean.
# Seen: given an image, positions are means weighted by its values, also by those below 0. The dim nucleus,
#       in columns 8 to 23, is found at column 33, and the one of value 0 at nan. Nothing is said.
#       use_weighted_centroid=False, or the film as it was, puts all where they are.
# For cell video: dim nuclei jump over the field or leave it, so links and divisions are lost just there;
#       background-subtracted films do the same. Hand over counts, or switch the weights off.
# Versions: btrack 0.6.5, scikit-image 0.26.0, numpy 2.2.6, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  btrack==0.6.5 scikit-image==0.26.0 numpy==2.2.6
cd "$work"
export TQDM_DISABLE=1
"$work/venv/bin/python" -W ignore 2>log - <<'PY'
import numpy as np
from btrack.utils import segmentation_to_objects

masks = np.zeros((1, 64, 64), np.uint16)
masks[0, 4:20, 8:24], masks[0, 24:40, 8:24], masks[0, 44:60, 8:24] = 1, 2, 3
counts = np.full((1, 64, 64), 100.0)
counts[masks == 1] = 900
counts[0, 24:40, 8:24] = np.linspace(110, 215, 16)  # dim, brighter to the right
mean, spread = counts.mean(), counts.std()
film = (counts - mean) / spread
film[masks == 3] = 0  # as bright as the film on average


def columns(**options):
    """Return the column of each nucleus."""
    return [round(float(one.x), 1) for one in segmentation_to_objects(masks, **options)]


found = {
    "without an image": columns(),
    "counts": columns(intensity_image=counts),
    "standardised": columns(intensity_image=film),
    "standardised, not weighted": columns(intensity_image=film, use_weighted_centroid=False),
}
for name, places in found.items():
    print(f"{name}: columns of the bright, dim and average nucleus {places}")
plain = found["without an image"]
assert plain == [15.5] * 3 == found["standardised, not weighted"], found
assert all(8 <= place <= 23 for place in found["counts"]), found
bright, dim, average = found["standardised"]
assert bright == 15.5 and not 8 <= dim <= 23 and np.isnan(average), found
PY
