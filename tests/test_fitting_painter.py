"""The painter's training: what it is fed, what it makes small, and how it goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fitted import ellipse
from painters import LinearPainter, random_painter
from safetensors.torch import load_file

from bvdm_data.fitting import denoiser as fitting
from bvdm_data.fitting.denoiser import (
    AlignedCrops,
    make_denoiser_losses,
    make_training_set,
    train_denoiser,
)
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.synth.denoiser import compute_signed_distance_map


def portraits(count=24, patch=32, tracks=8, seed=0):
    """Return lopsided nuclei, each lit evenly but for some waves, with a dark rim around."""
    draws = np.random.default_rng(seed)
    radii = np.array([ellipse(*size) for size in draws.uniform((8, 5), (11, 8), (count, 2))])
    radii[:, 5:20] += 1.5
    brightness = draws.uniform(0.05, 0.3, count)
    edge = compute_signed_distance_map(torch.from_numpy(radii).float(), patch)[:, 0].numpy()
    waves = 1 + 0.1 * draws.standard_normal((count, patch, patch))
    light = np.where(edge <= 0, brightness[:, None, None] * waves, 0)
    return AlignedCrops(
        light=light.astype(np.float16),
        known=np.ones((count, patch, patch), bool),
        radii=radii.astype(np.float32),
        brightness=brightness.astype(np.float32),
        stage=(np.arange(count) % 4 - 1).clip(0).astype(np.int8),
        track=np.arange(count) % tracks + 1,
        frame=np.arange(count) // tracks,
    )


@pytest.fixture(autouse=True)
def few_checks(monkeypatch):
    """Look at fewer held-out portraits, for speed."""
    monkeypatch.setattr(fitting, "_CHECKED", 32)


def fitted(folder, steps, *, given=None, **changes):
    start = changes.pop("start", random_painter(1, 0.15, patch=32))
    settings = TrainingSettings(**{"steps": steps, "batch": 4, "check_every": 4} | changes)
    painter, log = train_denoiser(
        given or portraits(),
        noise=0.002,
        checkpoint=folder / "painter.safetensors",
        training=settings,
        start=start,
        progress=False,
    )
    return painter, log


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# Samples


def test_samples_are_pictures_on_the_scale_of_the_network():
    given, painter = portraits(), random_painter()
    samples = make_training_set(given, painter)
    assert samples.picture.shape == (24, 1, 32, 32)
    assert samples.picture.dtype == torch.float16
    back = painter.denormalize(samples.picture.float(), samples.brightness)
    np.testing.assert_allclose(back.numpy(), given.light.astype(float), atol=2e-3)
    assert (samples.picture[:, 0, 0, 0] == -1).all()
    rows = torch.tensor([3, 1])
    assert samples.at(rows).track.tolist() == [given.track[3], given.track[1]]


def test_a_video_without_portraits_is_refused():
    given = portraits()
    none = AlignedCrops(*(getattr(given, name)[:0] for name in given.__dataclass_fields__))
    with pytest.raises(ValueError, match="must show whole nuclei that belong to tracks, got none"):
        make_training_set(none, random_painter())


def test_mirrored_radii_agree_with_mirrored_pictures():
    samples = make_training_set(portraits(40), random_painter())
    edge = compute_signed_distance_map(samples.radii, 32)
    samples = replace(samples, picture=edge, known=edge > 0)
    mirrored = fitting._mirrored(samples, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        compute_signed_distance_map(mirrored.radii, 32), mirrored.picture, rtol=0, atol=1e-4
    )
    assert torch.equal(mirrored.known, mirrored.picture > 0)
    kinds = set()
    for before, after in zip(edge, mirrored.picture, strict=True):
        flips = [(), (1,), (2,), (1, 2)]
        kinds |= {flip for flip in flips if torch.equal(before.flip(flip), after)}
    assert len(kinds) == 4


# What is made small


def loss_of(given, painter, step=0, **changes):
    samples = make_training_set(given, painter)
    settings = TrainingSettings(**{"steps": 1, "batch": 8} | changes)
    loss_at, held_out = make_denoiser_losses(samples, settings)
    return float(loss_at(painter, step)), held_out(painter)


def test_the_exact_velocity_has_the_least_loss():
    given, right = portraits(), LinearPainter(spread=0.2, patch=32)
    assert max(loss_of(given, right)) < 0.3
    for wrong in (LinearPainter(1.5, patch=32), random_painter(patch=32)):
        assert loss_of(given, wrong)[1] > 1.5 * loss_of(given, right)[1]


def test_pixels_that_are_not_known_do_not_count():
    given, painter = portraits(), LinearPainter(patch=32)
    given.known[:, :, :9] = False
    before = loss_of(given, painter)
    given.light[:, :, :9] = 5
    assert loss_of(given, painter) == before
    given.known[:] = True
    assert loss_of(given, painter)[0] > 2 * before[0]


def test_the_loss_depends_on_the_step_and_the_seed_and_nothing_else():
    given, painter = portraits(), LinearPainter(patch=32)
    assert loss_of(given, painter, 3) == loss_of(given, painter, 3)
    assert loss_of(given, painter, 3)[0] != loss_of(given, painter, 4)[0]
    assert loss_of(given, painter, 3)[0] != loss_of(given, painter, 3, seed=1)[0]


def test_stages_of_mitosis_fill_their_share_of_each_batch(monkeypatch):
    given = portraits(200, tracks=40)
    given.stage[:] = 0
    given.stage[[5, 77]] = 2
    given.stage[[100, 130, 140]] = 4
    seen = []

    def look(model, samples, noise, level):
        seen.append((samples.stage, level))
        return torch.zeros(())

    monkeypatch.setattr(fitting, "_loss", look)
    samples = make_training_set(given, random_painter(patch=32))
    loss_at, _ = make_denoiser_losses(samples, TrainingSettings(steps=1, batch=20))
    for step in range(30):
        loss_at(torch.nn.Linear(1, 1), step)
    stages = torch.stack([stage for stage, _ in seen])
    assert ((stages > 0).sum(1) >= 6).all()
    assert ((stages > 0).sum(1) <= 9).all()
    assert (stages == 2).any()
    assert (stages == 4).any()
    # Levels are spread evenly over each batch: one in every twentieth.
    for _, level in seen:
        assert sorted((20 * level).floor().tolist()) == list(range(20))


# Training


def test_the_loss_falls_while_the_painter_learns(tmp_path):
    _, log = fitted(tmp_path, 45, rate=1e-2, check_every=15, average=0.8)
    assert [step for step, _ in log.held_out] == [15, 30, 45]
    assert log.train[-1][1] < 0.8 * log.train[0][1]
    assert log.held_out[-1][1] < log.held_out[0][1]


def test_a_painter_that_is_resumed_equals_an_unbroken_one_bit_for_bit(tmp_path):
    whole, whole_log = fitted(tmp_path / "whole", 4)
    fitted(tmp_path / "broken", 2, check_every=9)
    resumed, log = fitted(tmp_path / "broken", 4)
    assert same(whole, resumed)
    assert log.held_out[-1] == whole_log.held_out[-1]
    states = [load_file(tmp_path / name / "painter.safetensors") for name in ("whole", "broken")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_painter_starts_from_the_one_that_is_given(tmp_path):
    start = random_painter(5, 0.2, patch=32)
    near, _ = fitted(tmp_path, 1, start=start, rate=1e-9)
    pairs = zip(near.state_dict().values(), start.state_dict().values(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert all(not value.requires_grad for value in start.parameters())
    assert near is not start


def test_checkpoints_of_another_start_are_refused(tmp_path):
    fitted(tmp_path, 1)
    with pytest.raises(ValueError, match="belongs to a training with other data or settings"):
        fitted(tmp_path, 1, start=random_painter(2, 0.15, patch=32))


def test_training_a_painter_leaves_the_global_random_state_and_its_start_alone(tmp_path):
    start = random_painter(1, 0.15, patch=32)
    kept = [value.clone() for value in start.state_dict().values()]
    state = torch.get_rng_state()
    fitted(tmp_path, 1, start=start)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(kept, start.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_painter_of_its_own_has_the_size_of_the_portraits_and_the_floor_of_the_noise(tmp_path):
    painter, _ = fitted(tmp_path, 1, given=portraits(8, patch=24), start=None, batch=2)
    assert painter.settings.patch == 24
    assert painter.settings.floor == pytest.approx(fitting.NOISE_FLOOR_SIGMAS * 0.002)
    again, _ = fitted(tmp_path / "again", 1, given=portraits(8, patch=24), start=None, batch=2)
    assert same(painter, again)


def test_a_painter_that_starts_from_a_smaller_one_holds_the_larger_nuclei(tmp_path):
    given = portraits(8, patch=40)
    painter, _ = fitted(tmp_path, 1, given=given, start=random_painter(1, 0.15, patch=32))
    assert painter.settings.patch >= 40
