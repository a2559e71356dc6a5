"""Distillation: pairs of noise and images, and the network that learns from them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bvdm_data.clip import STAGES
from bvdm_data.fitting import student
from bvdm_data.fitting.student import (
    LARGE_PATCH_EVERY,
    MITOSIS_FRACTION,
    DistillationPairs,
    choose_small_patch,
    make_student_losses,
    sample_teacher_pairs,
    train_student,
)
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
SIDES = StudentConfig(patch=48, small_patch=32)


@pytest.fixture
def draw(tiny_shapes, tiny_lives, tmp_path):
    """Draw pairs; the keywords replace arguments."""
    run = Run(tmp_path / "none.pt", progress=False)

    def draw(count=40, painter=None, **changes):
        painter = painter or LinearDenoiser()
        return sample_teacher_pairs(painter, tiny_shapes, tiny_lives, run, count=count, **changes)

    return draw


@pytest.fixture
def learn(tmp_path):
    """Train on pairs; the keywords replace arguments."""

    def learn(pairs, training=QUICK, painter=None, name="distilled", start=None):
        run = Run(tmp_path / f"{name}.pt", progress=False)
        return train_student(pairs, painter or LinearDenoiser(), training, run, start)

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


def test_pairs_depend_on_their_seed_alone(draw):
    painter, state = LinearDenoiser(), torch.get_rng_state()
    first, again, other = (vars(draw(painter=painter, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_batch_size_changes_no_pair(draw, monkeypatch):
    whole = draw(10)
    monkeypatch.setattr(student, "BATCH", 3)
    parts = draw(10)
    assert torch.equal(parts.noise, whole.noise)
    torch.testing.assert_close(parts.picture, whole.picture, rtol=0.02, atol=0.02)


def test_pairs_vary_stage_size_and_brightness(draw):
    pairs = draw(200)
    assert int((pairs.stage > 0).sum()) == MITOSIS_FRACTION * 200
    assert set(pairs.stage.tolist()) == set(range(len(STAGES)))
    # In any order.
    assert 0 < int((pairs.stage[:100] > 0).sum()) < MITOSIS_FRACTION * 200
    assert pairs.radii.amax(1).max() <= 48 / 2 - PATCH_MARGIN + 1e-4
    assert pairs.radii.min() > 0
    # Wider than the lives alone: their brightness is from 0.1 to 0.3.
    bright = pairs.brightness[pairs.stage == 0]
    assert bright.max() > 0.35
    assert 0 < bright.min() < 0.1


def test_lives_without_mitosis_give_pairs(draw, monkeypatch):
    class Calm(student.LineageSimulator):
        def run(self, *given):
            return [replace(c, stages=np.zeros_like(c.stages)) for c in super().run(*given)]

    monkeypatch.setattr(student, "LineageSimulator", Calm)
    pairs = draw(12)
    assert len(pairs.stage) == 12
    assert not pairs.stage.any()


def test_pairs_fit_count_and_patch(draw):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        draw(0)
    pairs = draw(20, LinearDenoiser(patch=16))
    assert pairs.radii.amax(1).max() == pytest.approx(16 / 2 - PATCH_MARGIN)
    assert pairs.picture.shape == (20, 1, 16, 16)


# Losses


class Spy(nn.Module):
    """Renders its one parameter, and records which pairs it gets."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.seen = []

    def forward(self, noise, edge, brightness, stage):
        assert noise.shape == edge.shape
        self.seen.append((noise.shape[-1], brightness.long().tolist()))
        return self.level.expand_as(noise)


def numbered(radii):
    """Return pairs of round nuclei whose brightness is their number."""
    count = len(radii)
    outlines = torch.tensor(radii, dtype=torch.float32)[:, None].expand(count, 60)
    picture = torch.randn((count, 1, 48, 48), generator=torch.Generator().manual_seed(0)).bfloat16()
    stage = torch.zeros(count, dtype=torch.int64)
    return DistillationPairs(picture, picture, outlines, torch.arange(count).float(), stage)


def losses_of(radii, **changes):
    settings = TrainingSettings(**{"steps": 1, "batch": 6} | changes)
    return make_student_losses(numbered(radii), SIDES, settings)


@pytest.mark.parametrize(
    ("radii", "usual", "rare"),
    [([9.0] * 30 + [16.0] * 10, 32, 48), ([16.0] * 30 + [9.0] * 10, 48, 32)],
    ids=["mostly narrow", "mostly wide"],
)
def test_every_eighth_batch_is_rare(radii, usual, rare):
    spy = Spy()
    train_loss, _ = losses_of(np.random.default_rng(0).permutation(radii))
    for step in range(3 * LARGE_PATCH_EVERY):
        train_loss(spy, step)
    wanted = [(usual, 6)] * (LARGE_PATCH_EVERY - 1) + [(rare, 3)]
    assert [(side, len(rows)) for side, rows in spy.seen] == 3 * wanted


def test_held_out_pairs_are_never_learnt():
    radii, spy = np.random.default_rng(1).choice([9.0, 16.0], 40), Spy()
    train_loss, val_loss = losses_of(radii, batch=8)
    for step in range(40):
        train_loss(spy, step)
    learnt = {row for _, rows in spy.seen for row in rows}
    spy.seen.clear()
    with torch.no_grad():
        val_loss(spy)
    assert {row for _, rows in spy.seen for row in rows} == set(range(10))
    assert learnt <= set(range(10, 40))
    assert len(learnt) > 20
    for side, rows in spy.seen:
        assert all((radii[row] < 13) == (side == 32) for row in rows)


def test_batch_depends_on_step_and_seed():
    losses = []
    for seed, order in ((0, (2, 5)), (0, (5, 2)), (1, (2, 5))):
        train_loss, _ = losses_of([9.0] * 40, batch=4, seed=seed)
        losses.append({step: float(train_loss(Spy(), step).detach()) for step in order})
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][2] != losses[0][5]


def test_val_loss_is_missed_share():
    _, val_loss = losses_of([9.0] * 20 + [16.0] * 20)

    class Knows(Spy):
        def forward(self, noise, edge, brightness, stage):
            return noise + self.level - 0.5

    class Even(Spy):
        def forward(self, noise, edge, brightness, stage):
            inside = edge <= 0
            mean = (noise * inside).sum((1, 2, 3), True) / inside.sum((1, 2, 3), True)
            return mean.expand_as(noise) * self.level * 2

    with torch.no_grad():
        assert val_loss(Knows()) == 0
        assert val_loss(Even()) == pytest.approx(1, abs=1e-4)
        assert math.isnan(losses_of([9.0] * 3)[1](Knows()))


def test_loss_ignores_light_far_outside():
    pairs = numbered([9.0] * 8)
    far = compute_signed_distance_map(pairs.radii, 48) == 1
    assert far[..., 8:40, 8:40].any()
    train_loss, _ = make_student_losses(pairs, SIDES, QUICK)
    before = float(train_loss(Spy(), 0).detach())
    pairs.picture[far] = 100
    assert float(train_loss(Spy(), 0).detach()) == before


# Training


def test_student_learns_what_the_noise_decides(draw, learn):
    painter = LinearDenoiser(spread=2.0, patch=32)
    training = TrainingSettings(steps=100, batch=8, rate=1e-2, average=0.9)
    network, log = learn(draw(80, painter), training, painter)
    assert log.held_out[-1][1] < 0.25
    assert not network.training
    assert network.settings == StudentConfig(patch=32, small_patch=24, floor=painter.floor)


def test_small_patch_is_three_quarters(draw, learn):
    sides = {16: 16, 24: 16, 32: 24, 48: 32, 56: 40, 64: 48, 128: 96}
    for patch, narrow in sides.items():
        assert choose_small_patch(patch) == narrow
        assert StudentConfig(patch=patch, small_patch=narrow).small_patch == narrow
    for patch in (16, 24):
        painter = LinearDenoiser(patch=patch)
        network, log = learn(draw(8, painter), painter=painter, name=str(patch))
        assert network.settings.patch == patch
        assert math.isfinite(log.held_out[-1][1])


def test_training_refuses_other_pairs(draw, learn):
    pairs, other = draw(8), draw(8, seed=1)
    learn(pairs)
    for name in vars(pairs):
        with pytest.raises(ValueError, match="belongs to a training with other data or settings"):
            learn(replace(pairs, **{name: vars(other)[name]}))


def test_student_continues_from_another(draw, learn):
    one = replace(QUICK, steps=1)
    start = learn(draw(8))[0]
    small = Student(replace(start.settings, channels=(8, 8, 8), condition_channels=8))
    for name, network in (("own", start), ("small", small)):
        trained, _ = learn(draw(8), one, name=name, start=network)
        assert trained.settings == network.settings
        pairs = zip(trained.state_dict().values(), network.state_dict().values(), strict=True)
        assert 0 < max(float((a - b).abs().max()) for a, b in pairs) < 0.01
    # In patches of the painter, whatever its own are.
    wide = Student(StudentConfig(patch=64, small_patch=48, channels=(8, 8, 8)))
    painter = LinearDenoiser(patch=32)
    trained, _ = learn(draw(8, painter), one, painter, name="wide", start=wide)
    settings = trained.settings
    assert (settings.patch, settings.small_patch, settings.channels) == (32, 32, (8, 8, 8))
    assert settings.floor == trained.floor == painter.floor
