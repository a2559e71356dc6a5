"""A small, lifelike annotated video to fit a generator to, with what was planted in it."""

import functools
import math
import time

import numpy as np
import torch
from torch import nn

from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.fitting import texture_noise as memory
from bvdm_data.fitting.nuclei import Crops
from bvdm_data.fitting.training import TrainingSettings, train
from bvdm_data.synth.contours import CONTOUR_POINTS
from bvdm_data.synth.scene import SceneSettings

FRAMES, HEIGHT, WIDTH = 40, 200, 240
OFFSET = 32768
LEVEL, NOISE, STREAK = 300.0, 9.4, (0.3, 0.9, 0.3)

# One founder a cell of 100 x 80 px: the frame of its division, its light in counts.
FOUNDERS = [(9, 300), (11, 420), (13, 360), (15, 500), (17, 390), (19, 340)]
_CYCLES = (15, 16, 17, 14, 18, 16)


def families():
    """Return rows (id, first frame, last frame, parent) and way, axis, light of each nucleus."""
    rows, nuclei = [], []

    def live(first, last, parent, start, drift, light, generation):
        identity = len(rows) + 1
        rows.append((identity, first, min(last, FRAMES - 1), parent))
        nuclei.append((start, drift, light, last))
        if last >= FRAMES - 1:
            return
        end = start + drift * (last - first)
        apart = np.array([[1.0, 0.0], [0.0, 1.0]][generation % 2])
        for side in (-1, 1):
            cycle = _CYCLES[(identity + side) % len(_CYCLES)]
            way = side * apart * (0.9 if generation == 0 else 0.6)
            live(
                last + 1,
                last + cycle,
                identity,
                end + 7.5 * side * apart,
                way,
                light,
                generation + 1,
            )

    for number, (last, light) in enumerate(FOUNDERS):
        place = np.array([50.0 + 100 * (number // 3), 40.0 + 80 * (number % 3)])
        live(0, last, 0, place, np.zeros(2), light, 0)
    return np.array(rows, np.int32), nuclei


def looks(age, left, born):
    """Return area, brightness (both against interphase) and ratio of axes of one nucleus."""
    if left == 0:
        return 0.5, 2.0, 2.2
    if left == 1:
        return 0.5, 2.0, 1.3
    if born and age == 0:
        return 0.36, 1.5, 1.3
    return (1 - 0.5 * np.exp(-(age - 1) / 4) if born else 1.0), 1.0, 1.4


def fitted_video():
    """Return counts [40, 200, 240] uint16, masks int32 and tracks [n, 4] of six families."""
    return tuple(array.copy() for array in _made())


@functools.cache
def _made():
    draws = np.random.default_rng(0)
    tracks, nuclei = families()
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), np.int32)
    light = np.zeros((FRAMES, HEIGHT, WIDTH))
    for (identity, first, last, parent), (start, drift, bright, end) in zip(
        tracks.tolist(), nuclei, strict=True
    ):
        steps = 0.5 * draws.standard_t(4, (last - first + 1, 2)).clip(-4, 4)
        turns = draws.uniform(0, np.pi) + 0.1 * draws.standard_normal(last - first + 1).cumsum()
        for frame in range(first, last + 1):
            area, gain, ratio = looks(frame - first, end - frame, parent > 0)
            centre = start + drift * (frame - first) + steps[frame - first]
            draw(
                masks[frame],
                light[frame],
                identity,
                centre,
                230 * area,
                ratio,
                turns[frame - first],
                bright * gain,
            )
    white = draws.standard_normal((FRAMES, HEIGHT, WIDTH))
    kernel = np.array(STREAK) / np.linalg.norm(STREAK)
    grain = sum(k * np.roll(white, s, axis=2) for k, s in zip(kernel, (-1, 0, 1), strict=True))
    field = 15 * np.sin(np.arange(HEIGHT) / 60)[:, None] * np.cos(np.arange(WIDTH) / 70)
    counts = np.rint(LEVEL + field + light + NOISE * grain).clip(0, 4095)
    return (OFFSET + counts).astype(np.uint16), masks, tracks


def draw(mask, light, identity, centre, area, ratio, turn, bright):
    """Put an ellipse with a texture into a frame, where no other nucleus is."""
    long = np.sqrt(area * ratio / np.pi)
    rows, columns = (np.arange(int(c) - 22, int(c) + 23) for c in centre)
    rows = rows[(rows >= 0) & (rows < HEIGHT)]
    columns = columns[(columns >= 0) & (columns < WIDTH)]
    dy, dx = rows[:, None] - centre[0], columns[None] - centre[1]
    along = np.cos(turn) * dy + np.sin(turn) * dx
    across = np.cos(turn) * dx - np.sin(turn) * dy
    window = np.ix_(rows, columns)
    inside = ((along / long) ** 2 + (across * ratio / long) ** 2 <= 1) & (mask[window] == 0)
    spots = 1 + 0.25 * np.sin(along / 2 + identity) * np.cos(across / 1.7)
    mask[window] = np.where(inside, identity, mask[window])
    light[window] = np.where(inside, bright * spots, light[window])


def write_fitted(root, name="01", stop=FRAMES):
    """Write the video, or its first frames, as a folder of the Cell Tracking Challenge."""
    video, masks, tracks = fitted_video()
    tracks = tracks[tracks[:, 1] < stop]
    tracks[:, 2] = np.minimum(tracks[:, 2], stop - 1)
    write_sequence(root, name, video[:stop], masks[:stop], tracks)
    return root


def quick_memory(patch):
    """Let the texture's memory be measured on as little as it can be."""
    patch.setattr(memory, "PAIRS", memory.LEAST_PAIRS)
    patch.setattr(memory, "CALIBRATION_NUCLEI", memory.LEAST_PAIRS)
    patch.setattr(memory, "ITERATIONS", 1)
    patch.setattr(memory, "CALIBRATION_SCENE", SceneSettings(frames=9, size=(160, 160), nuclei=8))


ANGLES = 2 * math.pi * np.arange(CONTOUR_POINTS) / CONTOUR_POINTS


def filled(radii, turn=0.0, side=96):
    """Return the mask [side, side] of a contour of 60 radii, turned from y towards x."""
    dy, dx = np.indices((side, side)) - (side - 1) / 2
    angle = (np.arctan2(dx, dy) - turn) % (2 * math.pi)
    outline = np.interp(angle, np.append(ANGLES, 2 * math.pi), np.append(radii, radii[0]))
    return np.hypot(dy, dx) <= outline


def ellipse(long, short):
    """Return the contour of an ellipse with these half axes."""
    return long * short / np.hypot(short * np.cos(ANGLES), long * np.sin(ANGLES))


def crops_of(masks, tracks, frames, brightness=None, centres=None):
    """Return crops with these masks, all of one grey, at these centres of the frame."""
    masks = np.asarray(masks)
    light = np.full(len(masks), 0.2) if brightness is None else np.asarray(brightness)
    centres = np.zeros((len(masks), 2)) if centres is None else np.asarray(centres)
    return Crops(
        light=(masks * light[:, None, None]).astype(np.float16),
        masks=masks,
        track=np.asarray(tracks, np.int64),
        frame=np.asarray(frames, np.int64),
        brightness=light.astype(np.float32),
        centre=centres.astype(np.float32),
    )


def train_line(checkpoint, nap=0.0):
    """Train a matrix to turn its input round by one place, with a nap at each step."""
    network = nn.Linear(4, 4)
    nn.init.zeros_(network.bias)
    nn.init.eye_(network.weight)

    def loss_at(model, step):
        time.sleep(nap)
        noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (model(noise) - noise.roll(1, 1)).square().mean()

    log = train(
        network,
        loss_at,
        lambda model: float(model.weight.square().sum()),
        TrainingSettings(steps=60, rate=0.05, save_every=7, check_every=20),
        checkpoint=checkpoint,
        purpose="line",
        progress=False,
    )
    return network, log
