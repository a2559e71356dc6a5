"""Data that several tests share: the real video, where it is there, and a tiny made-up one."""

import os
from pathlib import Path

import numpy as np
import pytest

from bvdm_data.datasets.ctc import write_sequence

NAME = "Fluo-N2DL-HeLa"

# id, first frame, last frame, parent, (y, x) in frame 0, (dy, dx) a frame, radii (y, x).
# Nucleus 2 divides into 4 and 5, nucleus 3 leaves on the right, nucleus 6 enters at the bottom.
LIVES = [
    (1, 0, 11, 0, (40, 50), (0.5, 1.0), (9, 7)),
    (2, 0, 5, 0, (70, 90), (0.0, 0.5), (8, 10)),
    (3, 0, 7, 0, (30, 136), (0.3, 4.0), (7, 7)),
    (4, 6, 11, 2, (62, 90), (-0.8, 0.5), (6, 6)),
    (5, 6, 11, 2, (78, 90), (0.8, 0.5), (6, 6)),
    (6, 4, 11, 0, (146, 40), (-3.0, 0.2), (8, 8)),
]
FRAMES, HEIGHT, WIDTH = 12, 128, 160


@pytest.fixture(scope="session")
def hela():
    """Return the folder of the real data; skip the test where it is not there."""
    places = [Path(__file__).resolve().parents[2] / "shared" / "data" / NAME]
    if "BVDM_DATA_ROOT" in os.environ:
        places.insert(0, Path(os.environ["BVDM_DATA_ROOT"]) / NAME)
    for place in places:
        if place.is_dir():
            return place
    pytest.skip(f"needs {NAME} in the folder $BVDM_DATA_ROOT or at {places[-1]}")


@pytest.fixture(scope="session")
def tiny_video():
    """Return counts [12, 128, 160] uint16, masks int32 and tracks [6, 4] of six nuclei."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).normal(300, 9, (FRAMES, HEIGHT, WIDTH))
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), np.int32)
    for number, first, last, _, centre, speed, radii in LIVES:
        for frame in range(first, last + 1):
            down = (y - centre[0] - speed[0] * frame) / radii[0]
            right = (x - centre[1] - speed[1] * frame) / radii[1]
            inside = down**2 + right**2 < 1
            masks[frame][inside] = number
            noise[frame][inside] += 1500 + 100 * number
    video = (32768 + noise.clip(0, 4095)).astype(np.uint16)
    tracks = np.array([life[:4] for life in LIVES], np.int32)
    return video, masks, tracks


@pytest.fixture(scope="session")
def tiny_ctc(tiny_video, tmp_path_factory):
    """Return a data set's folder with the tiny video as sequence 01; do not change it."""
    root = tmp_path_factory.mktemp("tiny")
    write_sequence(root, "01", *tiny_video)
    return root
