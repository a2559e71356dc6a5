"""Stray light: spots without a label, how they are drawn and added to a video."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from bvdm_data.synth import stray_light
from bvdm_data.synth.cell_cycle import APOPTOSIS
from bvdm_data.synth.cells import Cell
from bvdm_data.synth.model import ToneCurve, Variation, randomise_model
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.stray_light import add_spots, draw_bodies, draw_spots

NONE = asdict(Variation.make(0.0))
SIZE = (300, 200)


def draw(model, *parts, amount=1.0, seed=0, frames=3, size=SIZE):
    amounts = Variation.make(NONE | dict.fromkeys(parts, amount))
    rng = np.random.default_rng(seed)
    spots = draw_spots(randomise_model(model, amounts, rng), amounts, frames, size, rng)
    assert spots.shape == (frames, spots.shape[1], 5)
    return spots.double().numpy()


def draw_many(model, *parts, **how):
    return [draw(model, *parts, seed=seed, **how) for seed in range(100)]


def test_light_of_spots_adds_up():
    light = torch.full((2, 5, 7), 0.25)
    spots = torch.tensor([[3.0, 2.0, 1.5, 0.5, 0.1], [0.0, 0.0, math.inf, math.inf, -0.05]])
    moved = spots + torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0])
    add_spots(light, torch.stack([spots, moved]))
    y, x = np.mgrid[:5, :7]
    for frame, (row, column) in zip(light.numpy(), [(3, 2), (4, 1)], strict=True):
        bump = np.exp(-((y - row) ** 2) / (2 * 1.5**2) - (x - column) ** 2 / (2 * 0.5**2))
        np.testing.assert_allclose(frame, 0.2 + 0.1 * bump, atol=1e-6)


def test_dead_nuclei_leave_fading_bodies():
    frames, centres = 9, np.tile([40.0, 50.0], (4, 1))
    stages, light = np.array([0, 0, APOPTOSIS, APOPTOSIS]), np.full(4, 0.2)
    dead = Cell(1, 0, 0, np.full((4, 60), 8.0), stages, light, divides=False)
    rest = [replace(dead, stages=stages[:1].repeat(4)), replace(dead, first=5)]
    rng = np.random.default_rng(0)
    paths = [Trajectory(cell, centres, np.zeros(4)) for cell in (dead, *rest)]
    same = ToneCurve(brightness=1.0, faint=0.0)
    spots = draw_bodies(paths, same, frames, 30.0, rng).double().numpy()
    # One lives on, and one dies in the last frame.
    assert 2 <= spots.shape[1] <= 5
    assert draw_bodies(paths[1:], same, frames, 30.0, rng).shape == (frames, 0, 5)
    total = (2 * np.pi * spots[..., 2] * spots[..., 3] * spots[..., 4]).sum(1)
    hours = 0.5 * np.arange(1, 6)
    wanted = 0.2 * math.pi * 8**2 * np.exp(-hours / stray_light.FADING_HOURS)
    np.testing.assert_allclose(total, [0, 0, 0, 0, *wanted], rtol=0.01)
    assert np.abs(spots[4, :, :2] - [40, 50]).max() < 20


def test_parts_draw_their_own_spots(tiny_generator):
    assert draw(tiny_generator).shape[1] == draw(tiny_generator, "blur", "noise").shape[1] == 0
    both = draw(tiny_generator, "debris", "haze")
    alone = [draw(tiny_generator, part) for part in ("haze", "debris")]
    np.testing.assert_array_equal(both, np.concatenate(alone, 1))
    light = torch.rand(3, *SIZE)
    before = light.clone()
    add_spots(light, torch.zeros(3, 0, 5))
    assert torch.equal(light, before)


@pytest.mark.parametrize(("part", "quantile"), [("haze", stray_light.DIM), ("debris", 0.5)])
def test_spots_are_as_high_as_said(tiny_generator, part, quantile):
    high = float(np.quantile(tiny_generator.lives.brightness, quantile))
    noise = tiny_generator.camera.noise
    spots = np.concatenate([found[0] for found in draw_many(tiny_generator, part)])
    assert 0 < spots[:, 4].min() < noise
    assert 0.4 * high < spots[:, 4].max() <= high
    kind = {"haze": stray_light.HAZE, "debris": stray_light.DEBRIS}[part]
    width = np.median(spots[:, 2:4]) / tiny_generator.nucleus_diameter
    assert width == pytest.approx(math.sqrt(math.prod(kind.width)), rel=0.15)
    # None of the wide ones is bright debris.
    wide = spots[:, 2:4].min(1) > 2 * kind.width[0] * tiny_generator.nucleus_diameter
    assert part == "haze" or 0 < spots[wide, 4].max() < 0.6 * high


@pytest.mark.parametrize("part", ["haze", "debris"])
def test_numbers_follow_amount_and_area(tiny_generator, part):
    def count(**how):
        return np.array([found.shape[1] for found in draw_many(tiny_generator, part, **how)])

    whole, half, small = count(), count(amount=0.5), count(size=(30, 20))
    assert whole.min() < 0.2 * whole.mean()
    assert half.mean() == pytest.approx(whole.mean() / 2, rel=0.25)
    assert small.mean() < 0.75 * whole.mean()


def test_spots_need_no_noise(tiny_generator):
    quiet = replace(tiny_generator, camera=replace(tiny_generator.camera, noise=0.0, level=0.0))
    for spots in draw_many(quiet, "haze", "debris"):
        assert np.isfinite(spots[..., [0, 1, 4]]).all()


def test_spots_drift_slowly(tiny_generator):
    scale = stray_light.DRIFT * tiny_generator.motion.speed.scale
    found = draw_many(tiny_generator, "debris", frames=5)
    steps = np.concatenate([np.diff(spots[..., :2], axis=0).reshape(-1, 2) for spots in found])
    np.testing.assert_allclose(steps.std(0), scale, rtol=0.15)
    for spots in found:
        assert (spots[..., 2:] == spots[:1, :, 2:]).all()
