#!/usr/bin/env bash
# What: a clip of uint8 or uint16 masks (frames, y, x) written with tifffile.imwrite without
#       further words, for clips of 2, 3, 4 and 5 frames.
# Guess (taken for granted, not written down): one page a frame, whatever the number of frames;
#       read back with the same axes.
# Seen: a page a frame for 2 and 5 frames; clips of 3 and 4 frames of uint8 become one page, an RGB
#       picture with the frames as its colours (axes SYX in place of QYX). uint16 does the same.
#       The array comes back whole, so a round trip in Python does not show it.
# For cell video: short training clips (3 frames is common) become colour pictures of one
#       frame in other readers. Say photometric="minisblack", and axes TYX in the metadata.
# Versions: tifffile 2026.3.3, numpy 2.2.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  tifffile==2026.3.3 numpy==2.2.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import warnings

import numpy as np
import tifffile

warnings.simplefilter("ignore")


def written(frames, kind, **words):
    masks = np.zeros((frames, 32, 48), kind)
    masks[:, 5:12, 5:12] = 7
    tifffile.imwrite("clip.tif", masks, **words)
    assert (tifffile.imread("clip.tif") == masks).all()
    with tifffile.TiffFile("clip.tif") as file:
        return len(file.pages), file.pages[0].photometric.name, file.series[0].axes


for kind in (np.uint8, np.uint16):
    for frames in (2, 3, 4, 5):
        found = written(frames, kind)
        said = written(frames, kind, photometric="minisblack", metadata={"axes": "TYX"})
        print(np.dtype(kind), frames, "frames: pages, kind, axes:", found, "| said:", said)
        assert said == (frames, "MINISBLACK", "TYX"), said
        colours = frames in (3, 4)
        assert found == ((1, "RGB", "SYX") if colours else (frames, "MINISBLACK", "QYX")), found
PY
