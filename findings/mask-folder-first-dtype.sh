#!/usr/bin/env bash
# What: a folder of label masks in which the first file is uint8 (few or no cells yet) and later
#       ones are uint16, as writers leave it that store each frame in its smallest type. Read
#       with tifffile's pattern reader, with dask.array.image.imread, and with traccuracy.
# Guess: the stack takes the wider type, and ids stay as they are.
# Seen: the first file decides for all. tifffile refuses ("cannot cast uint16 to uint8");
#       dask says uint8, wraps ids modulo 256 when the stack is computed, yet gives the true ids
#       when one frame alone is computed; traccuracy wraps the ids, then says that ids of the
#       track table are missing in the masks.
# For cell video: ids above 255 become other cells' ids, silently so with dask. Write every frame
#       of a film in one integer type, and check the type of a folder before stacking it.
# Versions: tifffile 2026.3.3, dask 2026.8.0, traccuracy 0.4.3, scikit-image 0.26.0, numpy 2.2.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  tifffile==2026.3.3 'dask[array]==2026.8.0' traccuracy==0.4.3 scikit-image==0.26.0 numpy==2.2.6
cd "$work"
export TQDM_DISABLE=1
"$work/venv/bin/python" - <<'PY'
from pathlib import Path

import numpy as np
import tifffile
from dask.array.image import imread
from traccuracy.loaders import load_ctc_data

folder = Path("masks")
folder.mkdir()
for t in range(3):
    mask = np.zeros((32, 32), np.uint8 if t == 0 else np.uint16)
    if t:
        mask[4:10, 4:10] = 700
    tifffile.imwrite(folder / f"mask{t:03d}.tif", mask)
(folder / "res_track.txt").write_text("700 1 2 0\n")

try:
    tifffile.imread("masks/mask*.tif")
    message = None
except ValueError as error:
    message = str(error)
print("tifffile:", message)
assert message and "cast" in message, message

lazy = imread("masks/mask*.tif")
stack, alone = lazy.compute(), lazy[1].compute()
print("dask: type", lazy.dtype, "| ids of the stack", np.unique(stack), end=" ")
print("| of frame 1", np.unique(alone))
assert lazy.dtype == np.uint8 and alone.max() == 700 and stack.max() == 700 % 256

try:
    load_ctc_data("masks", "masks/res_track.txt")
    message = None
except ValueError as error:
    message = str(error)
print("traccuracy:", message)
assert message and "700" in message, message
PY
