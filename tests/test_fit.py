"""Whole fits: what was planted in a video, what is continued, and what is refused."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from bvdm_data import weights
from bvdm_data.clip import ANNOTATIONS, STAGES, CameraScale
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets import ctc
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.fitting import denoiser
from bvdm_data.fitting.fit import FitSettings, fit
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import make_clip, synthesise
from bvdm_data.synth.textures import FastSettings
from bvdm_data.synth.unet import UNetSettings
from tests.helpers.fitted import FRAMES, LEVEL, OFFSET, fitted_video, quick_memory, write_fitted

FEW = FitSettings(
    painter=TrainingSettings(steps=2, batch=4),
    distilled=TrainingSettings(steps=2, batch=4),
    pairs=16,
    paper=True,
    texture=TrainingSettings(steps=4, batch=4),
    flow=TrainingSettings(steps=4, batch=4),
    network=UNetSettings(channels=(8, 8, 8), middle=1),
)
LEAN = replace(FEW, paper=False, stop=24)
QUICK = TrainingSettings(steps=2, batch=2)
SHORT = FitSettings(painter=QUICK, distilled=QUICK, pairs=8, border=10)
SCALE = CameraScale(OFFSET, OFFSET + 4095)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        quick_memory(patch)
        patch.setattr(denoiser, "_CHECKED", 16)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_fitted(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def fitted(root, tmp_path_factory):
    """Return the file of a model fitted to the planted video, and the model."""
    path = tmp_path_factory.mktemp("fit") / "model.safetensors"
    return path, fit(root, path, settings=FEW, progress=False)


@pytest.fixture(scope="module")
def lean(root, tmp_path_factory):
    """Return a fit without the paper's networks, in a scale of its own: file, model, images."""
    path, read_image, images = tmp_path_factory.mktemp("lean") / "m.safetensors", ctc.read_image, []
    both = shutil.copytree(root, tmp_path_factory.mktemp("both") / "data")
    write_fitted(both, "02", stop=4)
    scale = CameraScale(OFFSET - 100, OFFSET + 8000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ctc,
            "read_image",
            lambda path: images.append(path.relative_to(both)) or read_image(path),
        )
        return path, fit(both, path, settings=LEAN, scale=scale, progress=False), images


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Return a video of four frames, before the first division."""
    return write_fitted(tmp_path_factory.mktemp("short"), stop=4)


@pytest.fixture(scope="module")
def start(short, tiny_model):
    """Fit the short video, from the tiny model on; the keywords replace arguments."""

    def start(path, settings=SHORT, **changes):
        given = {"scale": SCALE, "start_from": tiny_model, "progress": False} | changes
        return fit(short, path, settings=settings, **given)

    return start


@pytest.fixture(scope="module")
def started(start, tmp_path_factory):
    """Return the file of a model fitted to four frames from the tiny model, and the model."""
    path = tmp_path_factory.mktemp("started") / "model.safetensors"
    return path, start(path)


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


def tensors_of(model):
    networks = (model.painter, model.distilled, model.unet, model.flownet)
    return [value for net in networks if net is not None for value in net.state_dict().values()]


def are_same(first, second):
    pairs = zip(tensors_of(first), tensors_of(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# Whole fits


def test_fit_writes_what_load_gives(fitted):
    path, model = fitted
    loaded = weights.load(path)
    assert are_same(loaded, model)
    np.testing.assert_array_equal(loaded.shapes.mean, model.shapes.mean)
    assert loaded.lives.minutes == 30
    files = sorted(file.name for file in path.with_suffix(".fit").iterdir())
    assert files == ["distilled-2.pt", "flow.pt", "painter.pt", "texture.pt"]


def test_fit_trains_paper_networks_on_request(lean):
    path, model, _ = lean
    assert not FitSettings().paper
    files = sorted(file.name for file in path.with_suffix(".fit").iterdir())
    assert files == ["distilled-2.pt", "painter.pt"]
    for found in (model, weights.load(path)):
        assert (found.unet, found.flownet) == (None, None)
        assert not {"texture", "flow"} & set(found.card)
    with pytest.raises(ValueError, match="bvdm-data fit --paper"):
        SyntheticHeLaVideos(model=path, method="paper")


@pytest.mark.parametrize(
    "method", [FastSettings(), PaperSettings(first_steps=3, later_steps=1)], ids=["fast", "paper"]
)
def test_fitted_model_makes_valid_clips(fitted, method):
    scene = SceneSettings(frames=4, size=(96, 112), nuclei=6, flow=True)
    made = synthesise(weights.load(fitted[0]), scene, method, seed=0, name=("clip", 0, 0))
    check_clip(make_clip(made, ANNOTATIONS, 32, 0))
    assert len(made.tracks) >= 6
    assert made.video[made.masks > 0].mean() > made.video[made.masks == 0].mean()


def test_fit_finds_what_was_planted(fitted):
    model = fitted[1]
    assert model.camera.level * 4095 == pytest.approx(LEVEL, abs=4)
    assert model.camera.noise * 4095 == pytest.approx(9.4, abs=0.4)
    assert (model.camera.offset, model.camera.full) == (OFFSET, OFFSET + 4095)
    assert math.exp(model.lives.cycle[0]) == pytest.approx(16, abs=1.5)
    assert 2 * model.lives.area_of_age[0] == pytest.approx(0.76, abs=0.1)
    assert math.exp(model.motion.separation[0]) == pytest.approx(15, abs=1.5)
    assert model.motion.rotation == pytest.approx(0.1, abs=0.02)
    metaphase, telophase = STAGES.index("metaphase"), STAGES.index("telophase")
    assert model.lives.area_of_stage[metaphase] == pytest.approx(0.5, abs=0.1)
    brightness = model.lives.stage_brightness[[metaphase, telophase], 0]
    assert brightness == pytest.approx(np.log([2, 1.5]), abs=0.1)
    assert len(model.motion.density) == FRAMES
    assert 12 < model.nucleus_diameter < 18


def test_card_lists_data_measurements_and_trainings(fitted, root):
    path, model = fitted
    card = weights.read_card(path)
    assert json.loads(json.dumps(model.card)) == card
    parts = ["data", "measured", "started_from", "taken_over"]
    parts += ["painter", "distilled", "texture", "flow"]
    assert list(card) == [*parts, "settings", "versions"]
    assert (card["started_from"], card["taken_over"]) == (None, [])
    measured = card["measured"]
    assert card["data"] == {
        "data_set": root.name,
        "sequence": "01",
        "truth": "GT",
        "frames": FRAMES,
        "size": [200, 240],
        "tracks": len(fitted_video()[2]),
        "divisions": 19,
        "whole_cycles": 13,
        "nuclei": sum(measured["stages"].values()),
    }
    assert list(measured["stages"]) == list(STAGES)
    assert measured["outline_overlap"] > 0.97
    assert measured["cycle_hours_median"] == pytest.approx(8, abs=0.7)
    assert set(measured["texture_correlation"]) <= {"1", "2", "4", "7"}
    assert len(measured["texture_correlation"]) >= 2
    assert measured["texture_memory"] == pytest.approx(model.texture.memory, abs=1e-4)
    assert measured["texture_fresh"] == pytest.approx(model.texture.fresh, abs=1e-4)
    for name, steps in (("painter", 2), ("distilled", 2), ("texture", 4), ("flow", 4)):
        assert (card[name]["steps"], card[name]["checked_at"]) == (steps, [steps])
        assert len(card[name]["held_out_loss"]) == len(card[name]["loss"]) == 1
    assert card["flow"]["held_out_pairs"] > 10
    settings = card["settings"]
    assert (settings["pairs"], settings["paper"]) == (16, True)
    assert settings["network"]["channels"] == [8, 8, 8]
    assert set(card["versions"]) == {"python", "bvdm-data", "torch", "numpy", "scipy", "kornia"}


def test_fit_keeps_to_stop_and_scale(lean):
    _, model, images = lean
    assert model.card["data"]["frames"] == len(model.motion.density) == 24
    assert (model.camera.offset, model.camera.full) == (OFFSET - 100, OFFSET + 8000)
    assert model.camera.level * 8100 - 100 == pytest.approx(LEVEL, abs=4)
    assert {path.parts[0] for path in images} <= {"01", "01_ST", "01_GT"}
    assert {int(path.stem[-3:]) for path in images} == set(range(24))


# Continued fits


def test_fit_again_takes_no_step(started, start, tmp_path, monkeypatch):
    path, model = started
    steps = []
    step = torch.optim.RAdam.step
    monkeypatch.setattr(torch.optim.RAdam, "step", lambda *a: (steps.append(1), step(*a))[1])
    work = shutil.copytree(path.with_suffix(".fit"), tmp_path / "work")
    assert are_same(start(tmp_path / "again.safetensors", work_dir=work), model)
    assert steps == []
    more = replace(SHORT, painter=replace(QUICK, steps=4))
    start(tmp_path / "more.safetensors", more, work_dir=work)
    # Two of the denoiser, two of the student that learns from it anew.
    assert steps == [1] * 4


def test_fit_depends_on_its_seed_alone(started, start, tmp_path):
    path, model = started
    assert are_same(start(tmp_path / "same.safetensors"), model)
    other = start(tmp_path / "other.safetensors", replace(SHORT, seed=1))
    assert not are_same(other, model)
    np.testing.assert_array_equal(weights.load(path).shapes.modes, model.shapes.modes)


# Fits that start from a model


def test_short_lives_come_from_the_start(started, tiny_generator):
    lives, known = started[1].lives, tiny_generator.lives
    names = ("durations", "cycle", "stage_brightness", "area_of_age", "area_of_stage")
    for name in (*names, "pro_metaphase_frames", "ana_telophase_frames", "minutes"):
        np.testing.assert_array_equal(getattr(lives, name), getattr(known, name))
    # Six nuclei of 230 px and of 300 to 500 counts were planted.
    assert started[1].nucleus_area == pytest.approx(230, rel=0.1)
    assert started[1].camera.level * 4095 == pytest.approx(300, abs=6)
    ratio = lives.mother_area / known.mother_area
    assert np.ptp(ratio) < 1e-9
    assert ratio[0] == pytest.approx(230 / tiny_generator.nucleus_area, rel=0.1)
    assert lives.brightness[[0, -1]] * 4095 == pytest.approx([300, 500], rel=0.1)
    assert (np.diff(lives.brightness) >= 0).all()


def test_networks_continue_from_the_start(started, tiny_generator):
    model = started[1]
    assert model.texture == tiny_generator.texture
    for name, most in (("painter", 0.02), ("distilled", 0.02), ("unet", 0), ("flownet", 0)):
        before, after = (getattr(m, name).state_dict() for m in (tiny_generator, model))
        apart = max(float((after[key] - before[key]).abs().max()) for key in before)
        assert apart <= most
        assert (apart > 0) == (most > 0)


def test_card_names_what_was_inherited(started):
    path, model = started
    card = weights.read_card(path)
    assert card == json.loads(json.dumps(model.card))
    assert card["started_from"] == "made up"
    assert card["taken_over"] == [
        "lives but for brightness and size",
        "distances of sisters",
        "memory of the texture",
        "networks of the paper's method",
    ]
    assert card["measured"]["texture_correlation"] == {}
    assert card["measured"]["texture_memory"] == model.texture.memory
    assert card["data"]["frames"] == 4


def test_two_frames_inherit_the_motion(tmp_path, tiny_generator, tiny_model):
    root = write_fitted(tmp_path / "data", stop=2)
    lean = tmp_path / "lean.safetensors"
    weights.save(replace(tiny_generator, unet=None, flownet=None), lean)
    model = fit(root, tmp_path / "m.safetensors", settings=SHORT, start_from=lean, progress=False)
    assert "motion but for density" in model.card["taken_over"]
    for name in ("step", "separation", "speed", "stage_drift", "sister_distance"):
        inherited, known = getattr(model.motion, name), getattr(tiny_generator.motion, name)
        np.testing.assert_array_equal(inherited, known)
    # Six nuclei within the border of 10 px.
    np.testing.assert_allclose(model.motion.density, 6 / (180 * 220))
    # The start has no networks of the paper's method to give.
    assert model.unet is None
    assert "networks of the paper's method" not in model.card["taken_over"]


# Errors


def refused(error, words, root, output, settings=FEW, **changes):
    with pytest.raises(error, match=words):
        fit(root, output, settings=settings, progress=False, **changes)
    assert not output.exists()
    assert not output.with_suffix(".fit").exists()


def test_fit_refuses_dark_masks(copy, tmp_path):
    for path in (copy / "01").iterdir():
        image = 2 * OFFSET + 4095 - tifffile.imread(path).astype(np.int32) - OFFSET
        tifffile.imwrite(path, image.astype(np.uint16))
    words = r"nuclei of the video must be brighter than its background, got .*; are the masks those"
    refused(ValueError, words, copy, tmp_path / "m.safetensors", LEAN)


def test_fit_refuses_too_few_divisions(short, tmp_path):
    words = r"at least 2 divisions .*got \d of .* divisions; give a longer video"
    refused(ValueError, words, short, tmp_path / "m.safetensors")


def test_fit_refuses_frames_without_successors(copy, tmp_path):
    for number in range(1, FRAMES, 2):
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    refused(ValueError, "consecutive frames", copy, tmp_path / "m.safetensors", truth="GT")


def test_fit_refuses_a_border_too_wide(root, tmp_path):
    words = r"border must leave something of frames of \(200, 240\) pixels, got 100; .* most 99"
    refused(ValueError, words, root, tmp_path / "m.safetensors", replace(FEW, border=100))


def test_fit_refuses_checkpoints_of_another_video(started, start, tmp_path):
    work = shutil.copytree(started[0].with_suffix(".fit"), tmp_path / "work")
    words = r"painter\.pt belongs to a training with other data or settings; give anot"
    with pytest.raises(ValueError, match=words):
        start(tmp_path / "m.safetensors", replace(SHORT, stop=3), work_dir=work)


def test_settings_refuse_what_fits_nothing():
    for changes, words in (
        ({"minutes": 0}, "minutes must be above 0, got 0"),
        ({"minutes": float("nan")}, "minutes must be above 0, got nan"),
        ({"border": -1}, "border must be 0 or more, got -1"),
        ({"pairs": 3}, "pairs must be 4 or more, got 3"),
    ):
        with pytest.raises(ValueError, match=words):
            FitSettings(**changes)


def test_settings_share_one_plain_seed():
    settings = FitSettings(
        seed=np.int64(3), border=np.int32(4), stop=np.int64(30), pairs=np.int16(8)
    )
    whole = [settings.seed, settings.border, settings.stop, settings.pairs]
    assert json.dumps(whole) == "[3, 4, 30, 8]"
    for training in (settings.painter, settings.distilled, settings.texture, settings.flow):
        assert training.seed == 3


@pytest.mark.slow
def test_real_video_has_known_statistics(hela, tmp_path):
    settings = replace(FEW, texture=TrainingSettings(steps=3), flow=TrainingSettings(steps=3))
    settings = replace(settings, painter=TrainingSettings(steps=3))
    model = fit(hela, tmp_path / "hela.safetensors", settings=settings, progress=False)
    data, camera = model.card["data"], model.camera
    assert (data["frames"], data["tracks"], data["divisions"]) == (92, 268, 94)
    assert (camera.offset, camera.full) == (32768, 36863)
    assert camera.noise * 4095 == pytest.approx(9.4, abs=0.3)
    assert camera.level * 4095 == pytest.approx(302, abs=4)
    kernel = camera.streak / np.linalg.norm(camera.streak)
    assert float((kernel[1:] * kernel[:-1]).sum()) == pytest.approx(0.60, abs=0.03)
    assert model.card["measured"]["outline_overlap"] > 0.99
    assert 20 < model.card["measured"]["cycle_hours_median"] < 40
