#!/usr/bin/env bash
# What: torchvision's transforms v2 on an int64 tv_tensors.Mask with ids above 2 ** 24, as ultrack
#       (a million numbers for each frame) or "frame * 10 ** 6 + cell" make them from frame 17 on.
# Guess: ids of an integer mask stay as they are: masks are moved with the nearest pixel, never mixed.
# Seen: the type stays int64, but the values go through float32 and back: neighbours in number become
#       one nucleus. So do rotation, affine and perspective transforms, elastic ones, resized crops, zooming
#       out, and even padding by reflection; flips, plain crops and constant padding keep them.
# For cell video: two nuclei are merged, without a warning and without a new id that would stand out.
#       Renumber the ids of a clip to 1..n before the transforms.
# Versions: torchvision 0.29.1, torch 2.14.1, numpy 2.2.6, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  torchvision==0.29.1 torch==2.14.1 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

torch.manual_seed(0)
IDS = 17_000_000, 17_000_001
mask = torch.zeros((2, 96, 96), dtype=torch.int64)
mask[:, 30:60, 30:48] = IDS[0]
mask[:, 30:60, 48:66] = IDS[1]
moved = {
    "rotation": v2.RandomRotation((20, 20)),
    "affine": v2.RandomAffine(20, translate=(0.1, 0.1)),
    "perspective": v2.RandomPerspective(0.2, p=1),
    "elastic": v2.ElasticTransform(20.0),
    "resized crop": v2.RandomResizedCrop(80, scale=(0.9, 1.0)),
    "padding by reflection": v2.Pad(4, padding_mode="reflect"),
}
kept = {
    "flip": v2.RandomHorizontalFlip(1),
    "crop": v2.RandomCrop(90),
    "constant padding": v2.Pad(4),
}
for names, right in ((moved, False), (kept, True)):
    for name, transform in names.items():
        found = transform(Mask(mask))
        ids = [value for value in found.unique().tolist() if value]
        print(f"{name}: {found.dtype}, ids {ids}")
        assert found.dtype == torch.int64 and (ids == list(IDS)) == right, (name, ids)
        assert right or ids == [IDS[0]], (name, ids)
PY
