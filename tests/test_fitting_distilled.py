"""Distillation: pairs of noise and pictures, and the network that learns from them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from painters import LinearPainter
from torch import nn

from bvdm_data.clip import STAGES
from bvdm_data.fitting import student as distilling
from bvdm_data.fitting import training as trainings
from bvdm_data.fitting.student import (
    LARGE_PATCH_EVERY,
    MITOSIS_FRACTION,
    DistillationPairs,
    choose_small_patch,
    make_student_losses,
    sample_teacher_pairs,
    train_student,
)
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.synth.denoiser import (
    PATCH_MARGIN,
    Student,
    StudentConfig,
    compute_signed_distance_map,
    run_dpm_solver,
)
from bvdm_data.synth.textures import STUDENT_STEPS

QUICK = TrainingSettings(steps=6, batch=4, rate=1e-3, save_every=2, check_every=3)


@pytest.fixture
def draw(tiny_shapes, tiny_lives):
    """Draw pairs; the keywords replace arguments."""

    def draw(count=40, painter=None, **changes):
        painter = painter or LinearPainter()
        return sample_teacher_pairs(
            painter, tiny_shapes, tiny_lives, count=count, progress=False, **changes
        )

    return draw


@pytest.fixture
def learn(tmp_path):
    """Train on pairs; the keywords replace arguments."""

    def learn(pairs, training=QUICK, painter=None, name="distilled", **changes):
        return train_student(
            pairs, painter or LinearPainter(), checkpoint=tmp_path / f"{name}.safetensors",
            training=training, progress=False, **changes,
        )  # fmt: skip

    return learn


def same(one, other):
    return all(torch.equal(vars(one)[name], vars(other)[name]) for name in vars(one))


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return one.settings == other.settings and all(torch.equal(a, b) for a, b in pairs)


# Pairs


def test_pairs_hold_what_the_painter_draws_from_their_noise(draw):
    painter = LinearPainter(spread=0.3)
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


def test_the_pairs_of_a_seed_are_the_same_and_those_of_another_are_others(draw):
    painter = LinearPainter()
    state = torch.get_rng_state()
    one, again, other = (draw(painter=painter, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(one, again)
    for name in vars(one):
        assert not torch.equal(vars(one)[name], vars(other)[name])


def test_how_many_pictures_share_the_network_changes_no_pair(draw, monkeypatch):
    whole = draw(10)
    monkeypatch.setattr(distilling, "BATCH", 3)
    parts = draw(10)
    assert torch.equal(parts.noise, whole.noise)
    torch.testing.assert_close(parts.picture, whole.picture, rtol=0.02, atol=0.02)


def test_the_stages_of_mitosis_have_their_share_of_the_pairs(draw):
    stage = draw(200).stage
    assert int((stage > 0).sum()) == MITOSIS_FRACTION * 200
    assert set(stage.tolist()) == set(range(len(STAGES)))
    # In any order.
    assert 0 < int((stage[:100] > 0).sum()) < MITOSIS_FRACTION * 200


def test_lives_without_mitosis_give_pairs_too(draw, monkeypatch):
    grow = distilling.grow_family

    def calm(*given, **changes):
        family = grow(*given, **changes)
        return [replace(life, stages=np.zeros_like(life.stages)) for life in family]

    monkeypatch.setattr(distilling, "grow_family", calm)
    pairs = draw(12)
    assert len(pairs.stage) == 12
    assert not pairs.stage.any()


def test_nuclei_fit_into_the_patch_and_differ_in_size_and_brightness(draw):
    pairs = draw(200)
    assert pairs.radii.amax(1).max() <= 48 / 2 - PATCH_MARGIN + 1e-4
    assert pairs.radii.min() > 0
    assert pairs.brightness.min() > 0
    # Wider than the lives alone: their brightness is from 0.1 to 0.3.
    bright = pairs.brightness[pairs.stage == 0]
    assert bright.max() > 0.35
    assert bright.min() < 0.1


def test_outlines_too_large_for_the_patch_are_drawn_smaller(draw):
    pairs = draw(20, LinearPainter(patch=16))
    assert pairs.radii.amax(1).max() == pytest.approx(16 / 2 - PATCH_MARGIN)
    assert pairs.picture.shape == (20, 1, 16, 16)


def test_no_pairs_are_refused(draw):
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        draw(0)


# Losses


class Spy(nn.Module):
    """Draws its one parameter, and writes down which pairs it is shown."""

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
    number = torch.arange(count).float()
    return DistillationPairs(
        picture, picture, outlines, number, torch.zeros(count, dtype=torch.int64)
    )


SIDES = StudentConfig(patch=48, small_patch=32)


@pytest.mark.parametrize(
    ("radii", "usual", "rare"),
    [([9.0] * 30 + [16.0] * 10, 32, 48), ([16.0] * 30 + [9.0] * 10, 48, 32)],
    ids=["mostly narrow", "mostly wide"],
)
def test_every_eighth_batch_is_of_the_other_size_and_half_as_large(radii, usual, rare):
    draws = np.random.default_rng(0)
    spy, training = Spy(), TrainingSettings(steps=1, batch=6)
    loss_at, _ = make_student_losses(numbered(draws.permutation(radii)), SIDES, training)
    for step in range(3 * LARGE_PATCH_EVERY):
        loss_at(spy, step)
    wanted = [(usual, 6)] * (LARGE_PATCH_EVERY - 1) + [(rare, 3)]
    assert [(side, len(rows)) for side, rows in spy.seen] == 3 * wanted


@pytest.mark.parametrize("radius", [9.0, 16.0])
def test_where_all_nuclei_need_one_size_all_batches_are_of_it(radius):
    spy, training = Spy(), TrainingSettings(steps=1, batch=6)
    loss_at, held_out = make_student_losses(numbered([radius] * 12), SIDES, training)
    for step in range(LARGE_PATCH_EVERY):
        loss_at(spy, step)
    with torch.no_grad():
        held_out(spy)
    assert {side for side, _ in spy.seen} == {32 if radius < 13 else 48}


def test_held_out_pairs_are_never_learnt_from():
    radii = np.random.default_rng(1).choice([9.0, 16.0], 40)
    spy = Spy()
    loss_at, held_out = make_student_losses(
        numbered(radii), SIDES, TrainingSettings(steps=1, batch=8)
    )
    for step in range(40):
        loss_at(spy, step)
    learnt = {row for _, rows in spy.seen for row in rows}
    spy.seen.clear()
    with torch.no_grad():
        held_out(spy)
    checked = {row for _, rows in spy.seen for row in rows}
    assert checked == set(range(10))
    assert learnt <= set(range(10, 40))
    assert len(learnt) > 20
    for side, rows in spy.seen:
        assert all((radii[row] < 13) == (side == 32) for row in rows)


def test_a_batch_depends_on_its_step_and_the_seed_alone():
    losses = []
    for seed in (0, 0, 1):
        loss_at, _ = make_student_losses(
            numbered([9.0] * 40), SIDES, TrainingSettings(steps=1, batch=4, seed=seed)
        )
        order = (5, 2) if len(losses) % 2 else (2, 5)
        losses.append({step: float(loss_at(Spy(), step).detach()) for step in order})
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert losses[0][2] != losses[0][5]


def test_the_held_out_loss_of_evenly_lit_nuclei_is_1_and_that_of_the_truth_is_0():
    pairs = numbered([9.0] * 20 + [16.0] * 20)
    _, held_out = make_student_losses(pairs, SIDES, TrainingSettings(steps=1))

    class Knows(Spy):
        def forward(self, noise, edge, brightness, stage):
            return noise + self.level - 0.5

    class Even(Spy):
        def forward(self, noise, edge, brightness, stage):
            inside = edge <= 0
            mean = (noise * inside).sum((1, 2, 3), True) / inside.sum((1, 2, 3), True)
            return mean.expand_as(noise) * self.level * 2

    with torch.no_grad():
        assert held_out(Knows()) == 0
        assert held_out(Even()) == pytest.approx(1, abs=1e-4)
        assert math.isnan(make_student_losses(numbered([9.0] * 3), SIDES, QUICK)[1](Knows()))


def test_light_beyond_the_reach_of_outlines_does_not_count():
    pairs = numbered([9.0] * 8)
    far = compute_signed_distance_map(pairs.radii, 48) == 1
    assert far[..., 8:40, 8:40].any()
    loss_at, _ = make_student_losses(pairs, SIDES, QUICK)
    before = float(loss_at(Spy(), 0).detach())
    pairs.picture[far] = 100
    assert float(loss_at(Spy(), 0).detach()) == before


# Training


def test_the_loss_falls_far_below_that_of_a_network_that_does_not_see_the_noise(draw, learn):
    painter = LinearPainter(spread=2.0, patch=32)
    training = TrainingSettings(steps=100, batch=8, rate=1e-2, average=0.9)
    network, log = learn(draw(80, painter), training, painter)
    assert log.held_out[-1][1] < 0.25
    assert not network.training
    assert network.settings == StudentConfig(patch=32, small_patch=24, floor=painter.floor)


@pytest.mark.parametrize(
    ("patch", "narrow"), [(16, 16), (24, 16), (32, 24), (48, 32), (56, 40), (64, 48), (128, 96)]
)
def test_narrow_pictures_are_three_quarters_of_the_patch(patch, narrow):
    assert choose_small_patch(patch) == narrow
    assert StudentConfig(patch=patch, small_patch=narrow).small_patch == narrow


@pytest.mark.parametrize("patch", [16, 24])
def test_small_patches_are_learnt_from(draw, learn, patch):
    painter = LinearPainter(patch=patch)
    network, log = learn(draw(8, painter), painter=painter)
    assert network.settings.patch == patch
    assert math.isfinite(log.held_out[-1][1])


def test_training_leaves_the_global_random_state_alone(draw, learn):
    painter = LinearPainter()
    pairs, state = draw(8, painter), torch.get_rng_state()
    learn(pairs, painter=painter)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_killed_training_goes_on_to_the_same_bytes(draw, learn, tmp_path, monkeypatch):
    pairs = draw(16)
    unbroken, log = learn(pairs)
    update = trainings._update_average

    def killed(average, network, decay, step):
        if step == 4:
            raise KeyboardInterrupt
        update(average, network, decay, step)

    monkeypatch.setattr(trainings, "_update_average", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(pairs, name="killed")
    assert (tmp_path / "killed.safetensors").is_file()
    monkeypatch.setattr(trainings, "_update_average", update)
    found, again = learn(draw(16), name="killed")
    assert same_weights(found, unbroken)
    assert (again.train, again.held_out) == (log.train, log.held_out)


@pytest.mark.parametrize("name", ["noise", "picture", "radii", "brightness", "stage"])
def test_a_checkpoint_of_other_pairs_is_refused(draw, learn, name):
    pairs = draw(8)
    learn(pairs)
    other = replace(pairs, **{name: vars(draw(8, seed=1))[name]})
    with pytest.raises(ValueError, match="belongs to a training with other data or settings"):
        learn(other)


def test_a_network_goes_on_from_another_of_any_size(draw, learn):
    start = learn(draw(8))[0]
    small = Student(replace(start.settings, channels=(8, 8, 8), condition_channels=8))
    for network in (start, small):
        found, _ = learn(draw(8), replace(QUICK, steps=1), name=str(id(network)), start=network)
        assert found.settings == network.settings
        apart = [
            float((one - other).abs().max())
            for one, other in zip(
                found.state_dict().values(), network.state_dict().values(), strict=True
            )
        ]
        assert 0 < max(apart) < 0.01


def test_a_network_for_another_patch_goes_on_in_pictures_of_the_painter(draw, learn):
    start = Student(StudentConfig(patch=64, small_patch=48, channels=(8, 8, 8)))
    painter = LinearPainter(patch=32)
    found, _ = learn(draw(8, painter), painter=painter, start=start)
    assert (found.settings.patch, found.settings.small_patch) == (32, 32)
    assert found.settings.floor == found.floor == painter.floor
    assert found.settings.channels == (8, 8, 8)
