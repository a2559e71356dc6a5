"""Distillation: pairs of noise and images, and the network that learns from them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bvdm_data.clip import PHASES
from bvdm_data.fitting import denoiser as student
from bvdm_data.fitting.training import Run, TrainingSettings
from bvdm_data.synth.denoiser import (
    PATCH_MARGIN,
    Student,
    StudentConfig,
    compute_signed_distance_map,
    run_dpm_solver,
)
from bvdm_data.synth.textures import STUDENT_STEPS
from tests.helpers.denoisers import LinearDenoiser

QUICK = TrainingSettings(steps=2, batch=4, rate=1e-3)
SIZES = StudentConfig(patch=48)


@pytest.fixture
def draw(tiny_shapes, tiny_lives, tmp_path):
    run = Run(tmp_path / "none.pt", progress=False)

    def draw(count=40, painter=None, **changes):
        painter = painter or LinearDenoiser()
        return student.sample_teacher_pairs(
            painter, tiny_shapes, tiny_lives, run, count=count, **changes
        )

    return draw


@pytest.fixture
def learn(tmp_path):

    def learn(pairs, training=QUICK, painter=None, name="distilled", start=None):
        run = Run(tmp_path / f"{name}.pt", progress=False)
        return student.train_student(pairs, painter or LinearDenoiser(), training, run, start)

    return learn


# Pairs


def test_pairs_are_rendered_from_their_noise(draw):
    painter = LinearDenoiser(spread=0.3)
    pairs = draw(30, painter)
    assert pairs.noise.shape == pairs.picture.shape == (30, 1, 48, 48)
    assert pairs.noise.dtype == pairs.picture.dtype == torch.bfloat16
    assert (pairs.radii.shape, pairs.radii.dtype) == ((30, 60), torch.float32)
    assert (pairs.brightness.dtype, pairs.stage.dtype) == (torch.float32, torch.int64)
    noise, edge = pairs.noise.float(), compute_signed_distance_map(pairs.radii, 48)
    assert noise.std() == pytest.approx(1, abs=0.02)
    wanted = run_dpm_solver(painter, noise, STUDENT_STEPS, edge, pairs.brightness, pairs.stage)
    torch.testing.assert_close(pairs.picture.float(), wanted, rtol=0.02, atol=0.02)
    grain = pairs.picture.float() - painter.mean(edge, pairs.brightness)
    assert float((grain * noise).sum() / (noise.norm() * grain.norm())) > 0.999
    again, other = (vars(draw(30, painter, seed=seed)) for seed in (0, 1))
    for name, values in vars(pairs).items():
        assert torch.equal(values, again[name])
        assert not torch.equal(values, other[name])


def test_pairs_vary_stage_size_and_brightness(draw):
    pairs = draw(200)
    assert int((pairs.stage > 0).sum()) == student.STUDENT_MITOSIS_FRACTION * 200
    assert set(pairs.stage.tolist()) == set(range(len(PHASES)))
    # In any order.
    assert 0 < int((pairs.stage[:100] > 0).sum()) < student.STUDENT_MITOSIS_FRACTION * 200
    assert pairs.radii.amax(1).max() <= 48 / 2 - PATCH_MARGIN + 1e-4
    assert pairs.radii.min() > 0
    # Wider than the lives alone: their brightness is from 0.1 to 0.3.
    bright = pairs.brightness[pairs.stage == 0]
    assert bright.max() > 0.35
    assert 0 < bright.min() < 0.1
    assert draw(2, LinearDenoiser(patch=16)).radii.amax() <= 16 / 2 - PATCH_MARGIN + 1e-4
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        draw(0)


def test_pairs_are_kept_and_continued(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(student, "SAVE_SECONDS", -1.0)
    painter, seen = LinearDenoiser(), []
    render = student.run_dpm_solver

    def count(network, start, *rest):
        seen.append(len(start))
        if seen == [64, 64]:
            raise KeyboardInterrupt
        return render(network, start, *rest)

    whole = draw(150, painter)
    (tmp_path / "none.pairs").unlink()
    monkeypatch.setattr(student, "run_dpm_solver", count)
    with pytest.raises(KeyboardInterrupt):
        draw(150, painter)
    assert torch.equal(draw(150, painter).picture, whole.picture)
    assert torch.equal(draw(150, painter).noise, whole.noise)
    assert seen == [64, 64, 64, 22]
    # Neither those of another denoiser nor damaged ones are taken.
    draw(150, LinearDenoiser(spread=0.3))
    assert seen[4:] == [64, 64, 22]
    (tmp_path / "none.pairs").write_bytes(b"no checkpoint")
    assert torch.equal(draw(150, painter).picture, whole.picture)


# Losses


class Spy(nn.Module):
    """Renders its one parameter, or what is given, and records which pairs it gets."""

    def __init__(self, render=None):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.render = render or (lambda noise, edge: self.level.expand_as(noise))
        self.seen = []

    def forward(self, noise, edge, brightness, stage):
        assert noise.shape == edge.shape
        self.seen.append((tuple(noise.shape[2:]), brightness.long().tolist()))
        return self.render(noise, edge)


def numbered(radii):
    """Return pairs of round nuclei whose brightness is their number."""
    count = len(radii)
    outlines = torch.tensor(radii, dtype=torch.float32)[:, None].expand(count, 60)
    picture = torch.randn((count, 1, 48, 48), generator=torch.Generator().manual_seed(0)).bfloat16()
    stage = torch.zeros(count, dtype=torch.int64)
    bright = torch.arange(count).float()
    return student._DistillationPairs(picture, picture, outlines, bright, stage)


def test_batches_have_patches_of_one_size():
    sizes = {(40, 32): 7.0, (48, 40): 11.0, (48, 48): 16.0}
    counts = [48, 24, 8]
    order = np.random.default_rng(0).permutation(np.repeat([*sizes.values()], counts))
    pairs, spy = numbered(order), Spy()
    settings = TrainingSettings(steps=1, batch=6)
    train_loss, val_loss = student._make_student_losses(pairs, SIZES, settings)
    losses = [float(train_loss(spy, step).detach()) for step in range(200)]
    assert all(sizes[size] == order[row] for size, rows in spy.seen for row in rows)
    assert {len(rows) for _, rows in spy.seen} == {6}
    # As often as there are pairs of that size.
    seen = [[size for size, _ in spy.seen].count(size) / len(spy.seen) for size in sizes]
    assert seen == pytest.approx([0.6, 0.3, 0.1], abs=0.1)
    learnt = {row for _, rows in spy.seen for row in rows}
    assert learnt == set(range(20, 80))
    spy.seen.clear()
    with torch.no_grad():
        val_loss(spy)
    # A quarter is held out.
    assert {row for _, rows in spy.seen for row in rows} == set(range(20))
    # Batches depend on step and seed alone, and light far outside does not count.
    pairs.picture[compute_signed_distance_map(pairs.radii, 48) == 1] = 100
    assert float(train_loss(spy, 5).detach()) == losses[5] != losses[4]
    other, _ = student._make_student_losses(pairs, SIZES, replace(settings, seed=1))
    assert float(other(spy, 5).detach()) != losses[5]


def test_val_loss_is_missed_share():
    def even(noise, edge):
        inside = edge <= 0
        mean = (noise * inside).sum((1, 2, 3), True) / inside.sum((1, 2, 3), True)
        return mean.expand_as(noise)

    right = Spy(lambda noise, edge: noise)
    _, val_loss = student._make_student_losses(numbered([9.0] * 20 + [16.0] * 20), SIZES, QUICK)
    with torch.no_grad():
        assert val_loss(right) == 0
        assert val_loss(Spy(even)) == pytest.approx(1, abs=1e-4)
        assert math.isnan(student._make_student_losses(numbered([9.0] * 3), SIZES, QUICK)[1](right))


# Training


def test_training_refuses_other_pairs(draw, learn):
    pairs, other = draw(8), draw(8, seed=1)
    learn(pairs)
    for name in vars(pairs):
        with pytest.raises(ValueError, match="belongs to a training with other data or settings"):
            learn(replace(pairs, **{name: vars(other)[name]}))


def test_student_learns_what_the_noise_decides(draw, learn):
    painter = LinearDenoiser(spread=2.0, patch=32)
    training = TrainingSettings(steps=80, batch=8, rate=2e-2, average=0.8)
    network, log = learn(draw(80, painter), training, painter)
    assert log.held_out[-1][1] < 0.5
    assert network.settings == StudentConfig(patch=32, floor=painter.floor)


def test_student_continues_from_another(draw, learn):
    one = replace(QUICK, steps=1)
    wide = Student(StudentConfig(patch=64, channels=(8, 8, 8)))
    painter = LinearDenoiser(patch=32)
    trained, _ = learn(draw(8, painter), one, painter, start=wide)
    pairs = zip(trained.state_dict().values(), wide.state_dict().values(), strict=True)
    assert 0 < max(float((a - b).abs().max()) for a, b in pairs) < 0.01
    # In patches of the painter, whatever its own are.
    settings = trained.settings
    assert (settings.patch, settings.channels) == (32, (8, 8, 8))
    assert settings.floor == trained.floor == painter.floor
