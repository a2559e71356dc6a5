#!/usr/bin/env bash
# What: a SPDL pipeline over 8 clips whose middle stage raises for one of them, as for a damaged file.
# Guess: the exception reaches the loop that takes the clips, as from torch's DataLoader.
# Seen: a line in the log; the loop gets the 7 other clips and ends as if there had been no more.
# For cell video: a damaged frame, or masks that an augmentation refuses, shorten the epoch without an error,
#       and clips that are told by their place no longer meet their labels. Count what arrives, and tell a
#       clip by its own number (`index`).
# Versions: spdl 0.8.0, numpy 2.4.6, Python 3.11
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check spdl==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" 2>log - <<'PY'
from spdl.pipeline import PipelineBuilder

def read(number):
    if number == 3:
        raise ValueError("clip 3 is damaged")
    return number

pipeline = PipelineBuilder().add_source(range(8)).pipe(read).add_sink(4).build(num_threads=1)
with pipeline.auto_stop():
    clips = list(pipeline)
print("clips:", clips)
assert clips == [0, 1, 2, 4, 5, 6, 7]
PY
cat log | tail -3
grep -q "clip 3 is damaged" log
