"""How long textures last: what is measured in the video is found again in the noise."""

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from bvdm_data.fitting import texture_noise
from bvdm_data.fitting.texture_noise import DEFAULT, LEAST_PAIRS, fit_noise_autocorrelation
from bvdm_data.fitting.training import Run
from bvdm_data.synth.contours import draw_ar1
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.textures import TextureModel
from tests.helpers.denoisers import LinearDenoiser, OneStepStudent
from tests.helpers.fitted import crops_of, ellipse, filled, quick_memory

LAGS = (1, 2, 4, 7)


def textured(memory, fresh, tracks=6, frames=8, seed=0):
    """Return crops of upright ellipses whose pixels keep their value as long as planted."""
    rng = np.random.default_rng(seed)
    mask = filled(ellipse(13, 10))
    masks = np.repeat(mask[None], tracks * frames, 0)
    track = np.repeat(np.arange(1, tracks + 1), frames)
    crops = crops_of(masks, track, np.tile(np.arange(frames), tracks))
    for number in range(1, tracks + 1):
        lasting = draw_ar1(frames, np.full(mask.sum(), memory), rng)
        passing = rng.standard_normal(lasting.shape)
        grain = np.sqrt(1 - fresh) * lasting + np.sqrt(fresh) * passing
        light = np.zeros((frames, 96, 96))
        light[:, mask] = 0.2 + 0.03 * grain
        crops.light[track == number] = light
    return crops


@pytest.fixture
def generator(tiny_generator):
    """A generator of like ellipses, rendered in white noise before a camera without noise."""
    mean, modes = np.repeat(ellipse(13, 10)[None], 6, 0), 0 * tiny_generator.shapes.modes
    shapes = replace(tiny_generator.shapes, mean=mean, modes=modes, area_jitter=0.0)
    camera = replace(tiny_generator.camera, noise=0.0)
    painter = OneStepStudent(LinearDenoiser(0.3))
    return replace(tiny_generator, shapes=shapes, camera=camera, distilled=painter)


def fit_curve(monkeypatch, generator, real, render, simulate=None):
    """Fit a curve of the video, where ``render`` and ``simulate`` answer for what is rendered."""
    monkeypatch.setattr(texture_noise, "_measure_video", lambda *_: real)
    monkeypatch.setattr(
        texture_noise, "_measure_rendered", lambda _, __, lag, noise, *___: render(noise, lag)
    )

    def measure_synthetic(given, *_):
        return {lag: simulate(given.texture, lag) if simulate else real[lag] for lag in real}

    monkeypatch.setattr(texture_noise, "_measure_synthetic", measure_synthetic)
    crops = crops_of(np.ones((2, 3, 3), bool), [1, 2], [0, 0])
    with TemporaryDirectory() as folder:
        run = Run(Path(folder) / "memory.pt", progress=False)
        return fit_noise_autocorrelation(crops, np.zeros(2, np.int8), generator, run)


def kept(texture, lag):
    return (1 - texture.fresh) * texture.memory**lag


@pytest.mark.parametrize(("memory", "fresh", "power"), [(0.97, 0.2, 1), (0.9, 0.0, 2)])
def test_known_curve_gives_its_noise(monkeypatch, generator, memory, fresh, power):
    # Between the noises that are tried, the answer is taken as a straight line.
    planted, noises = {lag: (1 - fresh) * memory**lag for lag in LAGS}, texture_noise._NOISES

    def render(noise, lag):
        return 0.1 + (0.8 - 0.02 * lag) * noise**power

    real = {lag: np.interp(planted[lag], noises, [render(n, lag) for n in noises]) for lag in LAGS}
    texture, measured = fit_curve(monkeypatch, generator, real, render)
    assert measured == real
    for lag in LAGS:
        assert kept(texture, lag) == pytest.approx(planted[lag], abs=0.02)
    assert texture.memory == pytest.approx(memory, abs=0.015)
    assert texture.fresh == pytest.approx(fresh, abs=0.06)


def test_one_lag_gives_the_default(monkeypatch, generator):
    assert of_video(textured(0.9, 0.1, tracks=LEAST_PAIRS // 7, frames=8)) == {}
    for real in ({}, {1: 0.9}):
        found = fit_curve(monkeypatch, generator, real, lambda *_: pytest.fail("rendered"))
        assert found == (DEFAULT, real)


def test_loss_in_videos_is_made_up(monkeypatch, generator):
    real, tried = {lag: 0.8 * 0.95**lag for lag in LAGS}, []
    found, _ = fit_curve(
        monkeypatch, generator, real, lambda noise, _: noise,
        simulate=lambda texture, lag: kept(texture, lag) - 0.08,
    )  # fmt: skip
    for lag in LAGS:
        assert kept(found, lag) == pytest.approx(real[lag] + 0.08, abs=0.03)

    def simulate(texture, lag):
        tried.extend([texture] if texture not in tried else [])
        # The first video is right, and all later ones are wrong.
        return real[lag] - (0.05 if len(tried) == 1 else 0.4)

    found, _ = fit_curve(monkeypatch, generator, real, lambda noise, _: noise, simulate)
    assert len(tried) > 1
    assert found == tried[0]


# The video


def of_video(crops, stages=None):
    stages = np.zeros(len(crops.track), np.int8) if stages is None else stages
    return texture_noise._measure_video(crops, stages, 0)


def test_only_calm_pairs_are_compared(monkeypatch):
    seen = []
    monkeypatch.setattr(texture_noise, "LAGS", (1,))
    monkeypatch.setattr(
        texture_noise, "_correlate_crops", lambda crops, *pair: seen.append(pair) or 0.5
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


def test_lasting_noise_gives_lasting_textures(generator, monkeypatch):
    def measure(noise, model=generator):
        return texture_noise._measure_rendered(model, np.array([0.2]), 1, noise, 0, 10)

    assert measure(1.0) > 0.999
    assert measure(0.0) < 0.35
    assert measure(0.75) == pytest.approx(0.75, abs=0.08)
    # Camera noise as strong as the texture: half of what is seen stays.
    camera = replace(generator.camera, noise=0.3 * 0.2 / 2)
    assert measure(1.0, replace(generator, camera=camera)) == pytest.approx(0.5, abs=0.12)


def test_planted_memory_is_found(generator, monkeypatch, tmp_path):
    quick_memory(monkeypatch)
    monkeypatch.setattr(texture_noise, "_NOISES", (0.0, 0.6, 0.85, 1.0))
    monkeypatch.setattr(texture_noise, "_measure_synthetic", lambda *_: {})
    crops = textured(0.95, 0.15, tracks=20)
    state = torch.get_rng_state()
    stages, run = np.zeros(len(crops.track), np.int8), Run(tmp_path / "memory.pt", progress=False)
    found, real = fit_noise_autocorrelation(crops, stages, generator, run)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(real) == set(LAGS)
    for lag in LAGS:
        assert kept(found, lag) == pytest.approx(0.85 * 0.95**lag, abs=0.1)


def test_stopped_memory_goes_on(generator, monkeypatch, tmp_path):
    asked, stop, real = [], [8], {lag: 0.8 * 0.95**lag for lag in LAGS}

    def render(_, __, lag, noise, ___, nuclei):
        asked.append(nuclei)
        if len(asked) in stop:
            raise KeyboardInterrupt
        return noise

    def simulate(given, _, pairs):
        asked.append(pairs)
        return {lag: kept(given.texture, lag) - 0.08 for lag in real}

    monkeypatch.setattr(texture_noise, "_measure_video", lambda *_: real)
    monkeypatch.setattr(texture_noise, "_measure_rendered", render)
    monkeypatch.setattr(texture_noise, "_measure_synthetic", simulate)
    crops, stages = crops_of(np.ones((2, 3, 3), bool), [1, 2], [0, 0]), np.zeros(2, np.int8)

    def fit(name, **options):
        run = Run(tmp_path / f"{name}.pt", progress=False, until=options.pop("until", math.inf))
        asked.clear()
        return fit_noise_autocorrelation(crops, stages, generator, run, **options)[0]

    with pytest.raises(KeyboardInterrupt):
        fit("stopped")
    stop.clear()
    found = fit("stopped")
    assert asked == [200] * (4 * 6 - 7) + [600] * 4
    assert fit("other") == found
    assert fit("other") == found
    assert asked == []  # all is kept
    # A first look is shorter, and without rounds where time is over.
    assert fit("short", share=0.25) != found
    assert asked == [50] * 24 + [150]
    late = fit("late", until=0.0)
    assert asked == [200] * 24
    assert kept(late, 1) == pytest.approx(real[1], abs=0.03)


def test_synthetic_video_is_measured(generator, monkeypatch):
    scene = SceneSettings(frames=6, size=(220, 220), nuclei=14)
    monkeypatch.setattr(texture_noise, "CALIBRATION_SCENE", scene)
    lives, found = replace(generator.lives, cycle=np.array([5.0, 0.1])), []
    for memory in (1.0, 0.0):
        model = replace(generator, lives=lives, texture=TextureModel(memory=memory, fresh=0.0))
        found.append(texture_noise._measure_synthetic(model, 0))
    assert {1, 2} <= set(found[0]) & set(found[1])
    assert found[0][1] > found[1][1] + 0.2
