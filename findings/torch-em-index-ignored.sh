#!/usr/bin/env bash
# What: one item of torch-em's SegmentationDataset, without a transform, asked for several times; and two passes
#       of a loader that does not shuffle, as for validation.
# Guess: a map-style data set gives the same patch for the same index, and so the same validation set a pass.
# Seen: the index is not looked at: each call draws another patch from numpy's global generator. Two passes
#       have nothing in common, and two data sets seeded alike give the same patches for other indices.
# For cell video: validation losses of two epochs are of other patches, so a lower one may be an easier draw, and
#       the best checkpoint is chosen by luck; samplers and hard-example lists that use indices do nothing. Keep
#       validation patches in memory, or take windows by number: CTCVideos(windows="grid").
# Versions: torch-em 0.10.9, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check torch-em==0.10.9
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import tifffile
import torch_em
from torch_em.data import SegmentationDataset

side = 256
labels = np.zeros((side, side), np.uint16)
labels[::16] = 1
tifffile.imwrite("raw.tif", np.arange(side * side, dtype=np.float32).reshape(side, side))
tifffile.imwrite("labels.tif", labels)
data = SegmentationDataset(
    "raw.tif", None, "labels.tif", None, patch_shape=(64, 64), ndim=2, n_samples=10,
    raw_transform=lambda raw: raw, label_transform=None,
)
place = lambda patch: int(patch.min())  # the first pixel of each patch has a value of its own

asked = [place(data[3][0]) for _ in range(4)]
loader = torch_em.get_data_loader(data, batch_size=1, shuffle=False)
passes = [[place(patch) for patch, _ in loader] for _ in range(2)]
seeded = []
for order in ((0, 1, 2), (2, 1, 0)):
    np.random.seed(0)
    seeded.append([place(data[index][0]) for index in order])
print("item 3, four times:", asked)
print("two passes share", len(set(passes[0]) & set(passes[1])), "of 10 patches")
print("seeded, items 0 1 2 and 2 1 0:", *seeded)
assert len(set(asked)) == 4 and len(set(passes[0]) & set(passes[1])) < 3
assert seeded[0] == seeded[1]
PY
