"""Whole fits: what was planted in a video, what is continued, and what is refused."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from bvdm_data import weights
from bvdm_data.clip import ANNOTATIONS, PHASES, STAGES, CameraScale
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets import ctc
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.datasets.tiff import write_image
from bvdm_data.fitting import denoiser
from bvdm_data.fitting.fit import FitSettings, fit
from bvdm_data.fitting.nuclei import LEFT_OUT
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.fitting.video import fit_camera
from bvdm_data.synth.networks import UNetSettings
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import make_clip, synthesise
from bvdm_data.synth.textures import FastSettings
from tests.helpers.fitted import (
    FRAMES,
    LEVEL,
    OFFSET,
    STREAK,
    fitted_video,
    quick_memory,
    write_fitted,
)

QUICK = TrainingSettings(steps=2, batch=2)
SHORT = FitSettings(painter=QUICK, distilled=QUICK, pairs=8, border=10, stop=4)
FEW = replace(
    SHORT, stop=None, paper=True, texture=QUICK, flow=QUICK,
    network=UNetSettings(channels=(8, 8, 8), middle=1),
)  # fmt: skip
SCALE = CameraScale(OFFSET - 100, OFFSET + 8000)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        quick_memory(patch)
        patch.setattr(denoiser, "_CHECKED", 16)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_fitted(tmp_path_factory.mktemp("fitted"))
    return write_fitted(root, "02", stop=2)


@pytest.fixture(scope="module")
def fitted(root, tmp_path_factory):
    """Return the file of a model fitted to the planted video, and the model."""
    path = tmp_path_factory.mktemp("fit") / "model.safetensors"
    return path, fit(root, path, settings=FEW, progress=False)


@pytest.fixture(scope="module")
def start(root, tiny_model):
    """Fit the four frames before the first division, from the tiny model on."""

    def start(path, settings=SHORT, root=root, **changes):
        given = {"scale": SCALE, "start_from": tiny_model, "progress": False} | changes
        return fit(root, path, settings=settings, **given)

    return start


@pytest.fixture(scope="module")
def started(start, root, tmp_path_factory):
    """Return the file of such a model, the model, and the images that were read for it."""
    path, read_image, images = tmp_path_factory.mktemp("lean") / "m.safetensors", ctc.read_image, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ctc,
            "read_image",
            lambda path: images.append(path.relative_to(root)) or read_image(path),
        )
        return path, start(path), images


def are_same(first, second):
    networks = ((m.painter, m.distilled, m.unet, m.flownet) for m in (first, second))
    states = [[v for net in own for v in net.state_dict().values()] for own in networks]
    return all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def without_hours(card):
    trained = {name: dict(card[name]) for name in ("painter", "distilled")}
    for part in trained.values():
        del part["hours"]
    return {**card, **trained}


def list_checkpoints(path):
    return sorted(file.name for file in path.with_suffix(".fit").iterdir())


def test_fit_writes_what_load_gives(fitted):
    path, model = fitted
    loaded = weights.load(path)
    assert are_same(loaded, model)
    np.testing.assert_array_equal(loaded.shapes.mean, model.shapes.mean)
    names = "distilled-2.pairs distilled-2.pt flow.pt memory.pt painter.pt texture.pt"
    assert list_checkpoints(path) == names.split()


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
    wanted = [0, 0, 0, *STREAK / np.linalg.norm(STREAK), 0, 0, 0]
    np.testing.assert_allclose(model.camera.streak, wanted, atol=0.02)
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


def test_card_lists_data_and_trainings(fitted, root):
    path, model = fitted
    card = weights.read_card(path)
    assert json.loads(json.dumps(model.card)) == card
    parts = ["data", "left_out", "measured", "started_from", "taken_over"]
    parts += ["painter", "distilled", "texture", "flow"]
    assert list(card) == [*parts, "settings", "versions"]
    assert (card["started_from"], card["taken_over"]) == (None, [])
    measured = card["measured"]
    assert card["data"] == {
        "data_set": root.name, "sequence": "01", "truth": "GT", "frames": FRAMES,
        "size": [200, 240], "tracks": len(fitted_video()[2]), "divisions": 19, "whole_cycles": 13,
        "nuclei": sum(measured["stages"].values()),
    }  # fmt: skip
    assert list(measured["stages"]) == list(PHASES)
    assert measured["outline_overlap"] > 0.97
    assert measured["cycle_hours_median"] == pytest.approx(8, abs=0.7)
    assert len(set(measured["texture_correlation"]) & {"1", "2", "4", "7"}) >= 2
    assert measured["texture_memory"] == pytest.approx(model.texture.memory, abs=1e-4)
    assert card["left_out"] == dict.fromkeys(LEFT_OUT, 0)
    for name in parts[5:]:
        assert (card[name]["steps"], card[name]["checked_at"]) == (2, [2])
        assert len(card[name]["held_out_loss"]) == len(card[name]["loss"]) == 1
    assert card["flow"]["held_out_pairs"] > 10
    assert (card["settings"]["pairs"], card["settings"]["network"]["channels"]) == (8, [8, 8, 8])
    assert set(card["versions"]) == {"python", "bvdm-data", "torch", "numpy", "scipy", "kornia"}


def test_fit_keeps_to_stop_and_scale(started):
    path, model, images = started
    names = ["distilled-2.pairs", "distilled-2.pt", "memory.pt", "painter.pt"]
    assert list_checkpoints(path) == names
    assert model.card["data"]["frames"] == len(model.motion.density) == 4
    assert (model.camera.offset, model.camera.full) == (OFFSET - 100, OFFSET + 8000)
    assert model.camera.level * 8100 - 100 == pytest.approx(LEVEL, abs=6)
    assert {path.parts[0] for path in images} <= {"01", "01_ST", "01_GT"}
    assert {int(path.stem[-3:]) for path in images} == set(range(4))


def test_fit_again_takes_no_step(started, start, tmp_path, monkeypatch):
    path, model, _ = started
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
    assert are_same(start(tmp_path / "same.safetensors"), started[1])
    assert not are_same(start(tmp_path / "other.safetensors", replace(SHORT, seed=1)), started[1])


def test_short_lives_come_from_the_start(started, tiny_generator):
    lives, known = started[1].lives, tiny_generator.lives
    names = ("durations", "cycle", "stage_brightness", "area_of_age", "area_of_stage")
    for name in (*names, "pro_metaphase_frames", "ana_telophase_frames", "minutes"):
        np.testing.assert_array_equal(getattr(lives, name), getattr(known, name))
    # Six nuclei of 230 px and of 300 to 500 counts were planted.
    assert started[1].nucleus_area == pytest.approx(230, rel=0.1)
    np.testing.assert_allclose(lives.mother_area / known.mother_area, lives.mother_area[0] / 300)
    assert lives.brightness[[0, -1]] * 8100 == pytest.approx([300, 500], rel=0.1)
    assert (np.diff(lives.brightness) >= 0).all()


def test_networks_continue_from_the_start(started, tiny_generator):
    path, model, _ = started
    assert model.texture == tiny_generator.texture
    for name, most in (("painter", 0.02), ("distilled", 0.02), ("unet", 0), ("flownet", 0)):
        before, after = (getattr(m, name).state_dict() for m in (tiny_generator, model))
        apart = max(float((after[key] - before[key]).abs().max()) for key in before)
        assert apart <= most
        assert (apart > 0) == (most > 0)
    card = weights.read_card(path)
    assert card["started_from"] == "made up"
    assert card["taken_over"] == [
        "lives but for brightness and size", "distances of sisters", "memory of the texture",
        "networks of the paper's method",
    ]  # fmt: skip
    assert card["measured"]["texture_correlation"] == {}


def test_two_frames_inherit_the_motion(start, tmp_path, tiny_generator):
    lean, path = tmp_path / "lean.safetensors", tmp_path / "m.safetensors"
    weights.save(replace(tiny_generator, unet=None, flownet=None), lean)
    model = start(path, start_from=lean, sequence="02")
    assert "motion but for density" in model.card["taken_over"]
    for name in ("step", "separation", "speed", "stage_drift", "sister_distance"):
        inherited, known = getattr(model.motion, name), getattr(tiny_generator.motion, name)
        np.testing.assert_array_equal(inherited, known)
    # Six nuclei within the border of 10 px.
    np.testing.assert_allclose(model.motion.density, 6 / (180 * 220))
    # The start has no networks of the paper's method to give.
    assert (model.unet, model.flownet) == (None, None)
    assert not {"texture", "flow"} & set(model.card)
    assert "networks of the paper's method" not in model.card["taken_over"]
    with pytest.raises(ValueError, match="bvdm-data fit --paper"):
        SyntheticHeLaVideos(model=path, method="paper")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stop": 4}, r"at least 2 divisions .*got \d of .* divisions; give a longer video"),
        ({"border": 100}, r"border must leave .* frames of \(200, 240\) pixels, got 100; .* 99"),
    ],
)
def test_fit_refuses_before_any_training(root, tmp_path, changes, words):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=words):
        fit(root, path, settings=replace(FEW, **changes), progress=False)
    assert not path.exists()
    assert not path.with_suffix(".fit").exists()


def test_left_out_is_counted_and_warned(start, tmp_path, monkeypatch):
    counts, masks, tracks = (part.copy() for part in fitted_video())
    tracks = tracks[tracks[:, 1] < 4]
    tracks[:, 2] = 3
    masks[0, :6, :9], masks[1, 90:94, 90:120:3] = 901, 902  # at the border; in pieces
    tracks = np.append(tracks, [[901, 0, 0, 0], [902, 1, 1, 0]], axis=0)
    write_sequence(tmp_path, "01", counts[:4], masks[:4], tracks)
    for name in ("SEG/man_seg002.tif", "TRA/man_track002.tif"):
        (tmp_path / "01_GT" / name).unlink()
    words = r"left out of the fit: 1 of 20 nuclei touch .*; 1 of 4 frames have no masks$"
    monkeypatch.setattr("bvdm_data.fitting.fit.SHARE", 0.04)
    with pytest.warns(UserWarning, match=words):
        model = start(tmp_path / "m.safetensors", root=tmp_path)
    wanted = {"nuclei_at_border": 1, "nuclei_in_pieces": 1, "frames_without_masks": 1}
    assert model.card["left_out"] == dict.fromkeys(LEFT_OUT, 0) | wanted


def test_later_truth_never_leaks(start, root, started, tmp_path):
    # The first four frames beside the table of all forty.
    short = shutil.copytree(root, tmp_path / root.name)
    for path in short.glob("01*/**/*.tif"):
        if int(path.stem[-3:]) >= 4:
            path.unlink()
    with pytest.warns(UserWarning, match="has tracks of frames 0 to 39, and the frames are 0 to 3"):
        model = start(tmp_path / "m.safetensors", replace(SHORT, stop=None), root=short)
    assert are_same(model, started[1])
    known = {name: value for name, value in started[1].card.items() if name != "settings"}
    assert without_hours(model.card) == without_hours(known | {"settings": model.card["settings"]})


def test_later_light_has_no_part(start, root, tmp_path):
    later = shutil.copytree(root, tmp_path / root.name)
    write_image(later / "01/t020.tif", np.full((200, 240), 65535, np.uint16))
    camera = start(tmp_path / "m.safetensors", root=later, scale=None).camera
    assert (camera.offset, camera.full) == (OFFSET, OFFSET + 1023)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_are_finite_before_training(start, tmp_path, monkeypatch, value):
    measure = fit_camera
    monkeypatch.setattr(
        "bvdm_data.fitting.fit.fit_camera", lambda *v: replace(measure(*v), noise=value)
    )
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=r"camera\.noise must be finite .* show background"):
        start(path)
    assert not path.with_suffix(".fit").exists()


def test_settings_are_checked_plain_numbers():
    for changes, words in (
        ({"minutes": 0}, "minutes must be above 0, got 0"),
        ({"minutes": float("nan")}, "minutes must be above 0, got nan"),
        ({"border": -1}, "border must be 0 or more, got -1"),
        ({"pairs": 3}, "pairs must be 4 or more, got 3"),
    ):
        with pytest.raises(ValueError, match=words):
            FitSettings(**changes)
    given = {"seed": np.int64(3), "border": np.int32(4), "stop": np.int64(30), "pairs": np.int16(8)}
    settings = FitSettings(**given)
    assert json.dumps([getattr(settings, name) for name in given]) == "[3, 4, 30, 8]"
    trainings = (settings.painter, settings.distilled, settings.texture, settings.flow)
    assert [training.seed for training in trainings] == [3] * 4


@pytest.mark.slow
def test_real_video_has_known_statistics(hela, tmp_path):
    three = TrainingSettings(steps=3)
    settings = replace(FEW, texture=three, flow=three, painter=three)
    with pytest.warns(UserWarning, match=r"left out of the fit: 6 of 94 divisions .* before$"):
        model = fit(hela, tmp_path / "hela.safetensors", settings=settings, progress=False)
    assert model.card["left_out"]["nuclei_at_border"] == 85
    data, camera = model.card["data"], model.camera
    assert (data["frames"], data["tracks"], data["divisions"]) == (92, 268, 94)
    assert (camera.offset, camera.full) == (32768, 36863)
    assert camera.noise * 4095 == pytest.approx(9.4, abs=0.3)
    assert camera.level * 4095 == pytest.approx(302, abs=4)
    kernel = camera.streak / np.linalg.norm(camera.streak)
    assert float((kernel[1:] * kernel[:-1]).sum()) == pytest.approx(0.60, abs=0.03)
    assert model.card["measured"]["outline_overlap"] > 0.99
    assert 20 < model.card["measured"]["cycle_hours_median"] < 40
