"""Fits that start from a model: what a short video cannot tell is taken over."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fitted import write_fitted

from bvdm_data import weights
from bvdm_data.clip import CameraScale
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.fitting import denoiser as fitting
from bvdm_data.fitting.fit import FitSettings, fit
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.synth.textures import FastSettings

QUICK = TrainingSettings(steps=2, batch=2)
FEW = FitSettings(painter=QUICK, distilled=QUICK, pairs=8, border=10)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a video of four frames, before the first division."""
    return write_fitted(tmp_path_factory.mktemp("short"), stop=4)


@pytest.fixture(scope="module")
def started(root, tiny_model, tmp_path_factory):
    """Return the file of a generator fitted to four frames from the tiny model, and itself."""
    path = tmp_path_factory.mktemp("started") / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_CHECKED", 16)
        scale = CameraScale(32768, 36863)
        given = {"settings": FEW, "scale": scale, "start_from": tiny_model, "progress": False}
        return path, fit(root, path, **given)


def test_without_a_start_a_short_video_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="at least 2 divisions"):
        fit(root, tmp_path / "m.safetensors", settings=FEW, progress=False)
    assert not (tmp_path / "m.safetensors").exists()


def test_lives_of_a_short_video_are_those_of_the_start_but_for_brightness_and_size(
    started, tiny_generator
):
    _, found = started
    lives, taken = found.lives, tiny_generator.lives
    for name in ("durations", "cycle", "stage_brightness", "area_of_age", "area_of_stage"):
        np.testing.assert_array_equal(getattr(lives, name), getattr(taken, name))
    for name in ("pro_metaphase_frames", "ana_telophase_frames"):
        np.testing.assert_array_equal(getattr(lives, name), getattr(taken, name))
    assert lives.minutes == taken.minutes
    # Six nuclei of 230 px and of 300 to 500 counts were planted.
    ratio = lives.mother_area / taken.mother_area
    assert np.ptp(ratio) < 1e-9
    assert ratio[0] == pytest.approx(230 / tiny_generator.nucleus_area, rel=0.1)
    assert lives.brightness[0] * 4095 == pytest.approx(300, rel=0.1)
    assert lives.brightness[-1] * 4095 == pytest.approx(500, rel=0.1)
    assert (np.diff(lives.brightness) >= 0).all()


def test_shapes_and_camera_are_always_those_of_the_video(started, tiny_generator):
    _, found = started
    assert found.nucleus_area == pytest.approx(230, rel=0.1)
    assert found.camera.level * 4095 == pytest.approx(300, abs=6)
    assert found.camera.noise != tiny_generator.camera.noise


def test_the_texture_and_the_networks_of_the_paper_are_taken_over(started, tiny_generator):
    _, found = started
    assert found.texture == tiny_generator.texture
    for name in ("unet", "flownet"):
        one, other = getattr(found, name), getattr(tiny_generator, name)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["painter", "distilled"])
def test_the_networks_go_on_from_those_of_the_start(started, tiny_generator, name):
    one, other = getattr(started[1], name), getattr(tiny_generator, name)
    assert one.settings.channels == other.settings.channels
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    moved = [float((a - b).abs().max()) for a, b in pairs]
    assert 0 < max(moved) < 0.02


def test_the_card_says_what_was_taken_over_and_from_where(started):
    path, found = started
    card = weights.read_card(path)
    assert card == json.loads(json.dumps(found.card))
    assert card["started_from"] == "made up"
    assert "lives but for brightness and size" in card["taken_over"]
    assert "memory of the texture" in card["taken_over"]
    assert "networks of the paper's method" in card["taken_over"]
    assert "motion but for density" not in card["taken_over"]
    assert card["measured"]["texture_correlation"] == {}
    assert card["measured"]["texture_memory"] == found.texture.memory
    assert card["data"]["frames"] == 4


def test_a_model_that_was_started_makes_clips(started):
    path, _ = started
    dataset = SyntheticHeLaVideos(
        frames=2, size=72, model=path, nuclei=3, method=FastSettings(steps=1)
    )
    check_clip(dataset.clip(0))


def test_two_frames_of_few_nuclei_take_the_motion_over_too(
    tmp_path, tiny_generator, tiny_model, monkeypatch
):
    monkeypatch.setattr(fitting, "_CHECKED", 16)
    root = write_fitted(tmp_path / "data", stop=2)
    path = tmp_path / "m.safetensors"
    found = fit(root, path, settings=FEW, start_from=tiny_model, progress=False)
    assert "motion but for density" in found.card["taken_over"]
    for name in ("step", "separation", "speed", "stage_drift", "sister_distance"):
        one, other = getattr(found.motion, name), getattr(tiny_generator.motion, name)
        np.testing.assert_array_equal(one, other)
    # Six nuclei within the border of 10 px.
    np.testing.assert_allclose(found.motion.density, 6 / (180 * 220))


def test_a_start_that_is_no_model_is_refused_before_anything_is_read(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model file"):
        fit(
            root,
            tmp_path / "m.safetensors",
            settings=FEW,
            start_from=tmp_path / "none.safetensors",
            progress=False,
        )


def test_a_start_without_the_networks_of_the_paper_gives_none(
    root, tiny_generator, tmp_path, monkeypatch
):
    monkeypatch.setattr(fitting, "_CHECKED", 16)
    lean = tmp_path / "lean.safetensors"
    weights.save(replace(tiny_generator, unet=None, flownet=None), lean)
    found = fit(root, tmp_path / "m.safetensors", settings=FEW, start_from=lean, progress=False)
    assert found.unet is None
    assert "networks of the paper's method" not in found.card["taken_over"]
