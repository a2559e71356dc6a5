#!/usr/bin/env bash
# What: kornia's connected_components, which turns the foreground of a network into ids on the device, on
#       a nucleus of 150 pixels across and a bent thin cell, as called without options.
# Guess: one id for each piece of foreground.
# Seen: ids spread by one pixel an iteration, and there are 100 (num_iterations): the disc has 305 ids,
#       the bent cell 252, for one each with 1000 iterations. No warning. Compact nuclei up to about 100 pixels
#       across are right.
# For cell video: at high magnification, for filamentous bacteria, neurites or touching nuclei that form
#       chains, one object becomes hundreds, and only counts and scores tell. Give num_iterations above the
#       longest way within an object (at most H * W), or use scipy.ndimage.label.
# Versions: kornia 0.9.0, torch 2.14.1, scipy 1.17.1, numpy 2.2.6, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  kornia==0.9.0 torch==2.14.1 scipy==1.17.1 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from kornia.contrib import connected_components
from scipy import ndimage

rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
bent = torch.zeros(256, 256)
bent[10:240, 10:14] = bent[10:14, 10:240] = 1
shapes = {
    "nucleus of 60 pixels": ((rows - 128) ** 2 + (columns - 128) ** 2 <= 30**2).float(),
    "nucleus of 150 pixels": ((rows - 128) ** 2 + (columns - 128) ** 2 <= 75**2).float(),
    "bent cell": bent,
}


def count(shape, **options):
    """Return the number of ids of the foreground."""
    return int((connected_components(shape[None, None], **options).unique() > 0).sum())


found = {name: (count(shape), count(shape, num_iterations=1000)) for name, shape in shapes.items()}
for name, (default, long) in found.items():
    true = ndimage.label(shapes[name].numpy())[1]
    print(f"{name}: {default} ids, with 1000 iterations {long}, scipy {true}")
    assert true == long == 1
assert found["nucleus of 60 pixels"][0] == 1
assert found["nucleus of 150 pixels"][0] > 1 and found["bent cell"][0] > 100, found
PY
