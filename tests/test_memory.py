"""The memory of textures: what is measured in the video is found again in the noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fitted import crops_of, ellipse, filled
from painters import LinearPainter

from bvdm_data.fitting import memory as memories
from bvdm_data.fitting.memory import LEAST_PAIRS, USUAL, fit_memory
from bvdm_data.synth.shapes import ShapeModel, autoregressive

LAGS = (1, 2, 4, 7)


def textured(memory, fresh, tracks=6, frames=8, seed=0):
    """Return crops of upright ellipses whose pixels keep their value as long as planted."""
    draws = np.random.default_rng(seed)
    mask = filled(ellipse(13, 10))
    masks = np.repeat(mask[None], tracks * frames, 0)
    track = np.repeat(np.arange(1, tracks + 1), frames)
    crops = crops_of(masks, track, np.tile(np.arange(frames), tracks))
    for number in range(1, tracks + 1):
        lasting = autoregressive(frames, np.full(mask.sum(), memory), draws)
        passing = draws.standard_normal(lasting.shape)
        grain = np.sqrt(1 - fresh) * lasting + np.sqrt(fresh) * passing
        light = np.zeros((frames, 96, 96))
        light[:, mask] = 0.2 + 0.03 * grain
        crops.light[track == number] = light
    return crops


@pytest.fixture
def models(tiny_camera):
    """Return ellipses that all are the same, a painter of white noise, a camera without noise."""
    shapes = ShapeModel(
        mean=np.repeat(ellipse(13, 10)[None], 6, 0),
        modes=np.zeros((6, 1, 60)),
        counts=np.ones(6),
        memory=np.ones(1),
        fresh=np.zeros(1),
        wobble=0.0,
        ragged=np.array([1.0, 0.0]),
    )
    return shapes, LinearPainter(spread=0.3), replace(tiny_camera, noise=0.0)


def measured(monkeypatch, real, painted):
    """Fit a made-up curve of the video to a made-up answer of the painter."""
    monkeypatch.setattr(memories, "_of_video", lambda *_: real)
    monkeypatch.setattr(memories, "_of_noise", lambda *given: painted(given[5], given[4]))
    crops = crops_of(np.ones((2, 3, 3), bool), [1, 2], [0, 0])
    return fit_memory(crops, np.zeros(2, np.int8), None, None, None)


@pytest.mark.parametrize(("memory", "fresh"), [(0.97, 0.2), (0.9, 0.0), (0.8, 0.5), (0.995, 0.7)])
@pytest.mark.parametrize("power", [1, 2])
def test_a_known_curve_gives_the_noise_it_was_made_from(monkeypatch, memory, fresh, power):
    noises = memories._NOISES

    def painted(noise, lag):
        return 0.1 + (0.8 - 0.02 * lag) * noise**power

    # Between the noises that are tried, the painter's answer is taken as a straight line.
    kept = {lag: (1 - fresh) * memory**lag for lag in LAGS}
    real = {
        lag: float(np.interp(value, noises, [painted(noise, lag) for noise in noises]))
        for lag, value in kept.items()
    }
    found, told = measured(monkeypatch, real, painted)
    assert told == real
    for lag in LAGS:
        assert (1 - found.fresh) * found.memory**lag == pytest.approx(kept[lag], abs=0.02)
    assert found.memory == pytest.approx(memory, abs=0.015)
    assert found.fresh == pytest.approx(fresh, abs=0.06)


def test_a_video_whose_textures_never_change_has_the_longest_memory(monkeypatch):
    found, _ = measured(monkeypatch, dict.fromkeys(LAGS, 1.0), lambda noise, lag: noise)
    assert found.fresh == 0
    assert found.memory == pytest.approx(0.999)


def test_an_answer_that_falls_by_chance_is_made_to_rise(monkeypatch):
    real = {lag: 0.9 * 0.95**lag for lag in LAGS}
    found, _ = measured(monkeypatch, real, lambda noise, _: noise - 0.2 * (noise == 0.7))
    assert (1 - found.fresh) * found.memory == pytest.approx(0.9 * 0.95, abs=0.02)


def test_with_one_lag_or_none_the_usual_memory_is_taken(monkeypatch):
    for real in ({}, {1: 0.9}):
        found = measured(monkeypatch, real, lambda *_: pytest.fail("painted"))
        assert found == (USUAL, real)


# The video


def of_video(crops, stages=None):
    stages = np.zeros(len(crops.track), np.int8) if stages is None else stages
    return memories._of_video(crops, stages, 0)


def test_a_video_of_few_pairs_tells_nothing(models):
    crops = textured(0.9, 0.1, tracks=LEAST_PAIRS // 7, frames=8)
    assert of_video(crops) == {}
    found = fit_memory(crops, np.zeros(len(crops.track), np.int8), *models)
    assert found == (USUAL, {})


def test_textures_that_stay_correlate_and_others_do_not(monkeypatch):
    monkeypatch.setattr(memories, "LAGS", (1, 2))
    monkeypatch.setattr(memories, "PAIRS", 21)
    stay = of_video(textured(1.0, 0.0))
    assert all(value > 0.97 for value in stay.values())
    change = of_video(textured(0.0, 0.0))
    assert all(value < 0.35 for value in change.values())
    assert set(stay) == set(change) == {1, 2}


def test_only_pairs_in_interphase_and_of_like_area_are_compared(monkeypatch):
    seen = []
    monkeypatch.setattr(memories, "LAGS", (1,))
    monkeypatch.setattr(memories, "_of_crop", lambda crops, row: row)
    monkeypatch.setattr(
        memories, "aligned_correlation", lambda one, other: seen.append((one, other)) or 0.5
    )
    crops = textured(0.9, 0.1, tracks=4, frames=10)
    stages = np.zeros(40, np.int8)
    stages[7] = 2
    crops.masks[13] = filled(ellipse(9, 6))
    assert of_video(crops, stages) == {1: 0.5}
    assert all(other == one + 1 for one, other in seen)
    assert not {7, 13} & {row for pair in seen for row in pair}
    assert len(seen) == 4 * 9 - 4


# Back and forth


def of_noise(models, noise, lag=1):
    return memories._of_noise(*models, np.array([0.2]), lag, noise, 0)


def test_noise_that_is_kept_gives_textures_that_are_kept(models, monkeypatch):
    monkeypatch.setattr(memories, "PAIRS", 10)
    assert of_noise(models, 1.0) > 0.999
    assert of_noise(models, 0.0) < 0.35
    assert of_noise(models, 0.75) == pytest.approx(0.75, abs=0.08)


def test_the_noise_of_the_camera_makes_textures_less_alike(models, monkeypatch):
    monkeypatch.setattr(memories, "PAIRS", 10)
    shapes, painter, camera = models
    # As strong as the texture: half of what is seen stays.
    texture = 0.3 * 0.2 / 2
    noisy = replace(camera, noise=texture)
    assert of_noise((shapes, painter, noisy), 1.0) == pytest.approx(0.5, abs=0.12)


def test_what_was_planted_in_a_video_is_found_through_the_painter(models, monkeypatch):
    monkeypatch.setattr(memories, "PAIRS", 20)
    monkeypatch.setattr(memories, "_NOISES", (0.0, 0.6, 0.85, 1.0))
    crops = textured(0.95, 0.15, tracks=20)
    state = torch.get_rng_state()
    found, real = fit_memory(crops, np.zeros(len(crops.track), np.int8), *models)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(real) == set(LAGS)
    for lag in LAGS:
        kept = (1 - found.fresh) * found.memory**lag
        assert kept == pytest.approx(0.85 * 0.95**lag, abs=0.1)
