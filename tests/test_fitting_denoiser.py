"""Aligned crops, and the training of the denoiser on them."""

import functools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bvdm_data.fitting import denoiser, training
from bvdm_data.fitting.contours import trace_contours
from bvdm_data.fitting.nuclei import extract_crops
from bvdm_data.fitting.training import Run, TrainingSettings
from bvdm_data.fitting.video import Frame, Video
from bvdm_data.synth.denoiser import compute_signed_distance_map
from tests.helpers.denoisers import LinearDenoiser, make_random_denoiser
from tests.helpers.fitted import ellipse, nuclei_of

SIZE = (120, 140)
LEVEL, NOISE = 0.07, 0.0015


# Aligned crops


def glow(along, across, long, short):
    """Return smooth, lopsided light of a nucleus with a halo."""
    distance = np.hypot(along / long, across / short)
    waves = 1 + 0.02 * along + 0.04 * across
    return 0.2 * waves / (1 + np.exp(10 * (distance - 1)))


def shot(nuclei, *, number=0, stray=None):
    """Return a frame of nuclei (centre, turn, long, short), numbered from 1; some may be stray."""
    grey, masks = np.full(SIZE, LEVEL), np.zeros(SIZE, np.int32)
    for identity, (centre, turn, long, short) in enumerate(nuclei, start=1):
        y, x = np.indices(SIZE).astype(float)
        dy, dx = y - centre[0], x - centre[1]
        along = math.cos(turn) * dy + math.sin(turn) * dx
        across = math.cos(turn) * dx - math.sin(turn) * dy
        grey += glow(along, across, long, short)
        if identity - 1 != stray:
            masks[np.hypot(along / long, across / short) <= 1] = identity
    grey += NOISE * np.random.default_rng(0).standard_normal(SIZE)
    return Frame(number, grey.astype(np.float32), masks, np.full(SIZE, LEVEL, np.float32))


@functools.cache
def grid(patch):
    line = np.arange(patch) - (patch - 1) / 2
    return np.meshgrid(line, line, indexing="ij")


def align(*frames, stages=None):
    """Return the aligned crops of frames, and the crops."""
    ids = np.unique(np.concatenate([np.unique(frame.masks) for frame in frames]))
    tracks = np.array([[n, 0, len(frames) - 1, 0] for n in ids if n], np.int32)
    video = Video(tuple(frames), tracks)
    crops = extract_crops(video)
    stages = np.zeros(len(crops.track), np.int8) if stages is None else np.array(stages, np.int8)
    nuclei = nuclei_of(crops, tracks, stage=stages)
    aligned = denoiser.extract_aligned_crops(nuclei, trace_contours(crops.masks), video)
    found = SimpleNamespace(**{name: values.numpy() for name, values in vars(aligned).items()})
    found.light, found.known = found.light[:, 0].astype(float), found.known[:, 0]
    found.patch = found.light.shape[-1]
    return found, crops


@pytest.mark.parametrize("turn", [-1.2, 0.0, 0.3])
def test_aligned_crop_is_upright(turn):
    frame = shot([((60.3, 70.8), turn, 14, 8)])
    aligned, _ = align(frame, stages=[3])
    light = aligned.light[0]
    wanted = glow(*grid(aligned.patch), 14, 8)
    # The mask's centroid and axis differ from the true ones by fractions of a pixel.
    miss = np.abs(light - wanted)
    assert miss.max() < 0.02
    assert miss.mean() < 2 * NOISE
    for wrong in (wanted[::-1], wanted[:, ::-1], wanted[::-1, ::-1], wanted.T):
        assert np.abs(light - wrong)[wanted > 0.1].mean() > 10 * NOISE
    np.testing.assert_allclose(aligned.radii[0], ellipse(14, 8), atol=0.7)
    inside = frame.masks == 1
    assert aligned.brightness[0] == pytest.approx((frame.grey - LEVEL)[inside].mean(), rel=1e-4)
    assert (aligned.stage.tolist(), aligned.track.tolist()) == ([3], [1])
    # Without neighbours everything is known.
    assert aligned.known.all()


def test_patch_holds_the_largest_nucleus():
    for long in (10, 17):
        aligned, _ = align(shot([((30, 40), 0.2, long, 8), ((85, 90), 0.5, 9, 7)]))
        assert aligned.patch % 8 == 0
        assert 2 * (long + denoiser.HALO) - 1 <= aligned.patch < 2 * (long + denoiser.HALO) + 9
        assert aligned.light.shape == aligned.known.shape == (2, aligned.patch, aligned.patch)


def test_neighbours_are_masked_out():
    place, turn, other = (60.0, 60.0), 0.4, (60.0, 82.0)
    frame = shot([(place, turn, 14, 8), (other, 1.2, 10, 8)])
    aligned, _ = align(frame)
    y, x = grid(aligned.patch)
    rows = place[0] + math.cos(turn) * y - math.sin(turn) * x
    columns = place[1] + math.sin(turn) * y + math.cos(turn) * x
    theirs = np.argwhere(frame.masks == 2)
    distance = np.hypot(rows[..., None] - theirs[:, 0], columns[..., None] - theirs[:, 1]).min(-1)
    nucleus = np.hypot(y / 14, x / 8) <= 0.9
    known, light = aligned.known[0], aligned.light[0]
    assert known[nucleus].all()
    assert not known[(distance < denoiser.NEIGHBOUR_MARGIN - 1.5) & ~nucleus].any()
    assert not light[~known].any()
    assert known[distance > denoiser.NEIGHBOUR_MARGIN + 1.5].all()
    assert (~known).sum() > 50
    # Neither is a nucleus without a label background.
    aligned, _ = align(shot([(place, 0.0, 14, 8), ((60, 86), 0.0, 9, 7)], stray=1))
    y, x = grid(aligned.patch)
    assert not aligned.known[0][np.hypot(y / 9, (x - 26) / 7) < 0.8].any()
    assert aligned.known[0][np.hypot(y / 14, x / 8) <= 1].all()


def test_flawed_masks_are_left_out():
    frame = shot([((30, 40), 0.2, 14, 8), ((80, 90), 0.0, 14, 12)])
    frame.masks[82:, 80:100][frame.masks[82:, 80:100] == 2] = 0
    frame.masks[70:90, 89:91] = 0
    aligned, crops = align(frame, stages=[0, 4])
    assert crops.track.tolist() == [1, 2]
    assert (aligned.track.tolist(), aligned.stage.tolist()) == ([1], [0])


# Training


def made_crops(count=24, patch=32, tracks=8, seed=0):
    """Return lopsided nuclei, each lit evenly but for some waves, with a dark rim around."""
    rng = np.random.default_rng(seed)
    radii = np.array([ellipse(*size) for size in rng.uniform((8, 5), (11, 8), (count, 2))])
    radii[:, 5:20] += 1.5
    brightness = rng.uniform(0.05, 0.3, count)
    edge = compute_signed_distance_map(torch.from_numpy(radii).float(), patch)[:, 0].numpy()
    waves = 1 + 0.1 * rng.standard_normal((count, patch, patch))
    light = np.where(edge <= 0, brightness[:, None, None] * waves, 0)
    return denoiser.AlignedCrops(
        light=torch.from_numpy(light)[:, None].half(),
        known=torch.ones((count, 1, patch, patch), dtype=torch.bool),
        radii=torch.from_numpy(radii).float(),
        brightness=torch.from_numpy(brightness).float(),
        stage=(torch.arange(count) % 4 - 1).clamp(min=0),
        track=torch.arange(count) % tracks + 1,
    )


@pytest.fixture(autouse=True)
def few_checks(monkeypatch):
    monkeypatch.setattr(denoiser, "_CHECKED", 32)


def learn(folder, steps, *, crops=None, start=None, **changes):
    settings = TrainingSettings(**{"steps": steps, "batch": 4, "check_every": 4} | changes)
    run = Run(folder / "painter.pt", progress=False)
    return denoiser.train_denoiser(crops or made_crops(), settings, run, noise=0.002, start=start)


def test_contours_are_mirrored_with_images():
    samples = made_crops(40)
    edge = compute_signed_distance_map(samples.radii, 32)
    samples = replace(samples, light=edge, known=edge > 0)
    mirrored = denoiser._mirror(samples, torch.Generator().manual_seed(0))
    wanted = compute_signed_distance_map(mirrored.radii, 32)
    torch.testing.assert_close(wanted, mirrored.light, rtol=0, atol=1e-4)
    assert torch.equal(mirrored.known, mirrored.light > 0)
    for flips in ((), (2,), (3,), (2, 3)):
        assert (edge.flip(flips) == mirrored.light).flatten(1).all(1).any()


def losses_of(crops, network, step=0, **changes):
    settings = TrainingSettings(**{"steps": 1, "batch": 8} | changes)
    train_loss, val_loss = denoiser._make_denoiser_losses(crops, network, settings)
    return float(train_loss(network, step)), val_loss(network)


def test_exact_velocity_has_the_least_loss():
    crops, right = made_crops(), LinearDenoiser(spread=0.2, patch=32)
    assert max(losses_of(crops, right)) < 0.3
    for wrong in (LinearDenoiser(1.5, patch=32), make_random_denoiser(patch=32)):
        assert losses_of(crops, wrong)[1] > 1.5 * losses_of(crops, right)[1]
    # Pixels that are not known do not count; batches depend on step and seed.
    crops.known[..., :9] = False
    before = losses_of(crops, right, 3)
    crops.light[..., :9] = 5
    assert losses_of(crops, right, 3) == before
    assert losses_of(crops, right, 4)[0] != before[0] != losses_of(crops, right, 3, seed=1)[0]
    crops.known[:] = True
    assert losses_of(crops, right, 3)[0] > 2 * before[0]


def test_mitosis_has_its_share_of_batches(monkeypatch):
    crops = made_crops(200, tracks=40)
    crops.stage[:] = 0
    crops.stage[[5, 77, 100, 130, 140]] = torch.tensor([2, 2, 4, 4, 4])
    seen = []

    def record(model, samples, noise, level):
        seen.append((samples.stage, level))
        return torch.zeros(())

    monkeypatch.setattr(denoiser, "_compute_loss", record)
    network, settings = make_random_denoiser(patch=32), TrainingSettings(steps=1, batch=20)
    train_loss, _ = denoiser._make_denoiser_losses(crops, network, settings)
    for step in range(30):
        train_loss(torch.nn.Linear(1, 1), step)
    stages = torch.stack([stage for stage, _ in seen])
    assert ((stages > 0).sum(1) >= 6).all()
    assert ((stages > 0).sum(1) <= 9).all()
    assert {0, 2, 4} == set(stages.unique().tolist())
    # Levels are spread evenly over each batch: one in every twentieth.
    for _, level in seen:
        assert sorted((20 * level).floor().tolist()) == list(range(20))


def test_denoiser_loss_falls(tmp_path):
    start = make_random_denoiser(1, 0.15, patch=32)
    _, log = learn(tmp_path, 45, start=start, rate=1e-2, check_every=15, average=0.8)
    assert [step for step, _ in log.held_out] == [15, 30, 45]
    assert log.train[-1][1] < 0.8 * log.train[0][1]
    assert log.held_out[-1][1] < log.held_out[0][1]


def test_started_denoiser_holds_larger_nuclei(tmp_path):
    start = make_random_denoiser(1, 0.15, patch=32)
    new, _ = learn(tmp_path / "new", 1, crops=made_crops(8, patch=24), batch=2)
    assert new.settings.patch == 24
    assert new.settings.floor == pytest.approx(denoiser.NOISE_FLOOR_SIGMAS * 0.002)
    network, _ = learn(tmp_path, 1, crops=made_crops(8, patch=40), start=start, rate=1e-9)
    assert network.settings.patch >= 40
    for name, value in start.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="belongs to a training with other data or settings"):
        learn(tmp_path, 1, crops=made_crops(8, patch=40, seed=1), start=start, rate=1e-9)


def test_checkpoints_come_every_minute(tmp_path, monkeypatch):
    now, steps, save = [0.0], [], training._save
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        training, "_save", lambda path, step, *rest: (steps.append(step), save(path, step, *rest))
    )
    average = training.AveragedModel.update_parameters

    def update(*given):
        now[0] += 25
        average(*given)

    monkeypatch.setattr(training.AveragedModel, "update_parameters", update)
    learn(tmp_path, 8, save_every=7)
    assert steps == [3, 6, 7, 8]
