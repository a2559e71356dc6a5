import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from fitted import FRAMES, LEVEL, OFFSET, fitted_video, quick_memory, write_fitted

from bvdm_data.clip import ANNOTATIONS, STAGES, CameraScale
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets import ctc
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.fitting import training as trainings
from bvdm_data.fitting.denoiser import DENOISER_TRAINING
from bvdm_data.fitting.fit import FitSettings, fit
from bvdm_data.fitting.student import STUDENT_TRAINING
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise, to_clip
from bvdm_data.synth.textures import FastSettings
from bvdm_data.synth.unet import UNetSettings
from bvdm_data.weights import load, read_card

FEW = FitSettings(
    painter=replace(DENOISER_TRAINING, steps=2, batch=4),
    distilled=replace(STUDENT_TRAINING, steps=2, batch=4),
    pairs=16,
    paper=True,
    texture=TrainingSettings(steps=4, batch=4),
    flow=TrainingSettings(steps=4, batch=4),
    network=UNetSettings(channels=(8, 8, 8), middle=1),
)


# The distilled network learnt from a painter of two steps.
NETWORKS = ("distilled-2", "flow", "painter", "texture")
LEAN = replace(FEW, paper=False, stop=24)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        quick_memory(patch)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_fitted(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def fitted(root, tmp_path_factory):
    """Return the file of a generator fitted to the planted video, and the generator."""
    path = tmp_path_factory.mktemp("fit") / "model.safetensors"
    return path, fit(root, path, settings=FEW, progress=False)


@pytest.fixture(scope="module")
def lean(root, tmp_path_factory):
    """Return the file of a generator without the paper's networks, and the generator."""
    path = tmp_path_factory.mktemp("lean") / "model.safetensors"
    return path, fit(root, path, settings=LEAN, progress=False)


@pytest.fixture
def copy(root, tmp_path):
    return shutil.copytree(root, tmp_path / "copy")


def tensors_of(generator):
    networks = (generator.painter, generator.distilled, generator.unet, generator.flownet)
    return [value for network in networks for value in network.state_dict().values()]


def test_fit_writes_a_generator_that_load_gives_back(fitted):
    path, generator = fitted
    found = load(path)
    pairs = zip(tensors_of(generator), tensors_of(found), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    np.testing.assert_array_equal(found.shapes.mean, generator.shapes.mean)
    assert found.lives.minutes == 30


def test_fit_keeps_its_checkpoints_beside_the_file(fitted):
    path, _ = fitted
    names = sorted(file.name for file in path.parent.rglob("*"))
    networks = [f"{name}.safetensors" for name in NETWORKS]
    assert names == sorted(["model.fit", "model.safetensors", *networks])


def test_fit_trains_the_papers_networks_only_where_they_are_wanted(lean):
    path, generator = lean
    assert not FitSettings().paper
    files = sorted(file.stem for file in path.with_suffix(".fit").iterdir())
    assert files == ["distilled-2", "painter"]
    for found in (generator, load(path)):
        assert (found.unet, found.flownet) == (None, None)
        assert not {"texture", "flow"} & set(found.card)
    with pytest.raises(ValueError, match="bvdm-data fit --paper"):
        SyntheticHeLaVideos(model=path, method="paper")


@pytest.mark.parametrize(
    "method", [FastSettings(), PaperSettings(first_steps=3, later_steps=1)], ids=["fast", "paper"]
)
def test_a_fitted_generator_synthesises_a_clip_that_passes_the_check(fitted, method):
    scene = SceneSettings(frames=4, size=(96, 112), nuclei=6, flow=True)
    film = synthesise(load(fitted[0]), scene, method, seed=0, name=("clip", 0, 0))
    clip = to_clip(film, ANNOTATIONS, 32, 0)
    check_clip(clip)
    assert len(film.tracks) >= 6
    assert film.video[film.masks > 0].mean() > film.video[film.masks == 0].mean()


def test_fit_finds_what_was_planted(fitted):
    generator = fitted[1]
    assert generator.camera.level * 4095 == pytest.approx(LEVEL, abs=4)
    assert generator.camera.noise * 4095 == pytest.approx(9.4, abs=0.4)
    assert (generator.camera.offset, generator.camera.full) == (OFFSET, OFFSET + 4095)
    assert math.exp(generator.lives.cycle[0]) == pytest.approx(16, abs=1.5)
    assert 2 * generator.lives.area_of_age[0] == pytest.approx(0.76, abs=0.1)
    assert math.exp(generator.motion.separation[0]) == pytest.approx(15, abs=1.5)
    assert len(generator.motion.density) == FRAMES
    assert 12 < generator.nucleus_diameter < 18


def test_the_card_tells_data_measurements_trainings_settings_and_versions(fitted, root):
    path, generator = fitted
    card = read_card(path)
    assert json.loads(json.dumps(generator.card)) == card
    parts = ["data", "measured", "started_from", "taken_over"]
    trainings = ["painter", "distilled", "texture", "flow"]
    assert list(card) == [*parts, *trainings, "settings", "versions"]
    assert (card["started_from"], card["taken_over"]) == (None, [])
    tracks = fitted_video()[2]
    assert card["data"] == {
        "data_set": root.name,
        "sequence": "01",
        "truth": "GT",
        "frames": FRAMES,
        "size": [200, 240],
        "tracks": len(tracks),
        "divisions": 19,
        "whole_cycles": 13,
        "nuclei": sum(card["measured"]["stages"].values()),
    }
    assert list(card["measured"]["stages"]) == list(STAGES)
    assert card["measured"]["outline_overlap"] > 0.97
    assert card["measured"]["cycle_hours_median"] == pytest.approx(8, abs=0.7)
    assert set(card["measured"]["texture_correlation"]) <= {"1", "2", "4", "7"}
    assert len(card["measured"]["texture_correlation"]) >= 2
    texture = generator.texture
    assert card["measured"]["texture_memory"] == pytest.approx(texture.memory, abs=1e-4)
    assert card["measured"]["texture_fresh"] == pytest.approx(texture.fresh, abs=1e-4)
    assert (card["painter"]["steps"], card["painter"]["checked_at"]) == (2, [2])
    assert (card["distilled"]["steps"], card["distilled"]["checked_at"]) == (2, [2])
    assert card["settings"]["pairs"] == 16
    assert (card["texture"]["steps"], card["texture"]["checked_at"]) == (4, [4])
    assert len(card["flow"]["held_out_loss"]) == len(card["flow"]["loss"]) == 1
    assert card["flow"]["held_out_pairs"] > 10
    assert card["settings"]["network"]["channels"] == [8, 8, 8]
    assert card["settings"]["paper"] is True
    assert set(card["versions"]) == {"python", "bvdm-data", "torch", "numpy", "scipy", "kornia"}


def test_fit_called_again_takes_no_training_step(fitted, root, tmp_path, monkeypatch):
    path, generator = fitted
    taken = []
    step = torch.optim.RAdam.step
    monkeypatch.setattr(torch.optim.RAdam, "step", lambda *a: (taken.append(1), step(*a))[1])
    work = shutil.copytree(path.with_suffix(".fit"), tmp_path / "work")
    again = fit(root, tmp_path / "again.safetensors", settings=FEW, work_dir=work, progress=False)
    assert taken == []
    pairs = zip(tensors_of(generator), tensors_of(again), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    more = replace(
        FEW, texture=replace(FEW.texture, steps=5), painter=replace(FEW.painter, steps=4)
    )
    fit(root, tmp_path / "more.safetensors", settings=more, work_dir=work, progress=False)
    # Two of the painter, two of the network that learns from it anew, one of the texture.
    assert taken == [1] * 5


def test_fit_of_the_same_seed_writes_the_same_file_and_of_another_seed_another(
    fitted, root, tmp_path
):
    path, generator = fitted
    fit(root, tmp_path / "same.safetensors", settings=FEW, progress=False)
    same, first = load(tmp_path / "same.safetensors"), load(path)
    pairs = zip(tensors_of(first), tensors_of(same), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    np.testing.assert_array_equal(same.shapes.modes, first.shapes.modes)
    other = fit(root, tmp_path / "other.safetensors", settings=replace(FEW, seed=1), progress=False)
    pairs = zip(tensors_of(generator), tensors_of(other), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


def test_fit_with_stop_sees_fewer_frames(lean):
    found = lean[1]
    assert found.card["data"]["frames"] == len(found.motion.density) == 24


def test_fit_that_starts_from_a_model_takes_over_what_a_short_video_cannot_tell(
    fitted, root, tmp_path
):
    path, known = fitted
    short = replace(LEAN, stop=6, painter=replace(LEAN.painter, steps=1))
    output = tmp_path / "short.safetensors"
    found = fit(root, output, settings=short, start_from=path, progress=False)
    assert found.card["started_from"] == known.card["data"]
    taken = found.card["taken_over"]
    assert "lives but for brightness and size" in taken
    assert "networks of the paper's method" in taken
    for name in ("durations", "cycle", "stage_brightness", "area_of_age"):
        np.testing.assert_array_equal(getattr(found.lives, name), getattr(known.lives, name))
    for name in ("unet", "flownet"):
        before, after = (getattr(one, name).state_dict() for one in (known, found))
        assert all(torch.equal(before[key], after[key]) for key in before)
    for name in ("painter", "distilled"):
        one, other = getattr(known, name), getattr(found, name)
        assert other.settings == one.settings
        before, after = one.state_dict(), other.state_dict()
        apart = max(float((after[key] - before[key]).abs().max()) for key in before)
        assert 0 < apart < 0.1  # trained on from there, not from weights drawn anew
    assert len(found.motion.density) == 6


def test_fit_takes_a_scale_that_is_given(root, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "_save", lambda *_: None)
    scale = CameraScale(OFFSET - 100, OFFSET + 8000)
    found = fit(root, tmp_path / "m.safetensors", settings=LEAN, scale=scale, progress=False)
    assert (found.camera.offset, found.camera.full) == (scale.offset, scale.full)
    assert found.camera.level * 8100 - 100 == pytest.approx(LEVEL, abs=4)


# Errors


def refused(error, words, root, output, settings=FEW, **changes):
    with pytest.raises(error, match=words):
        fit(root, output, settings=settings, progress=False, **changes)
    assert not output.exists()
    assert not output.with_suffix(".fit").exists()


def test_fit_refuses_an_output_of_another_suffix(root, tmp_path):
    refused(ValueError, r"output must end in \.safetensors, got .*m\.pt", root, tmp_path / "m.pt")


def test_fit_refuses_a_video_without_tracks(copy, tmp_path):
    (copy / "01_GT/TRA/man_track.txt").unlink()
    words = "'01' of .* has no man_track.txt: lives and divisions cannot be fitted without"
    refused(ValueError, words, copy, tmp_path / "m.safetensors")


def test_fit_refuses_a_video_of_one_frame(copy, tmp_path):
    words = r"must have masks in at least 2 frames to fit shapes and motion, got 1 before stop=2"
    for path in [*(copy / "01_GT").rglob("man_*000.tif")]:
        path.unlink()
    refused(ValueError, words, copy, tmp_path / "m.safetensors", replace(FEW, stop=2), truth="GT")


@pytest.mark.parametrize("settings", [FEW, LEAN], ids=["paper", "fast"])
def test_fit_refuses_masks_that_are_not_brighter_than_the_background(copy, tmp_path, settings):
    for path in (copy / "01").iterdir():
        tifffile.imwrite(path, 2 * OFFSET + 4095 - tifffile.imread(path).astype(np.int32) - OFFSET)
    for path in (copy / "01").iterdir():
        tifffile.imwrite(path, tifffile.imread(path).astype(np.uint16))
    words = r"nuclei of the video must be brighter than its background, got .*; are the masks those"
    refused(ValueError, words, copy, tmp_path / "m.safetensors", settings)


def test_fit_refuses_a_video_of_too_few_divisions(root, tmp_path):
    words = r"at least 2 divisions .*got \d of .* divisions; give a longer video"
    refused(ValueError, words, root, tmp_path / "m.safetensors", replace(FEW, stop=6))


def test_fit_refuses_a_video_in_which_nobody_is_seen_in_consecutive_frames(copy, tmp_path):
    for number in range(1, FRAMES, 2):
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    words = "consecutive frames"
    refused(ValueError, words, copy, tmp_path / "m.safetensors", truth="GT")


@pytest.mark.parametrize("paper", [True, False])
def test_fit_refuses_nuclei_that_all_touch_the_border(tmp_path, paper):
    masks = np.zeros((3, 20, 60), np.int32)
    masks[:, :, 10:30] = 1
    video = np.full((3, 20, 60), OFFSET + 500, np.uint16)
    write_sequence(tmp_path, "01", video, masks, np.array([[1, 0, 2, 0]]))
    settings = replace(FEW, border=0, paper=paper)
    words = "must show whole nuclei that belong to tracks, got none"
    refused(ValueError, words, tmp_path, tmp_path / "m.safetensors", settings)


def test_fit_refuses_a_border_that_leaves_nothing(root, tmp_path):
    words = r"border must leave something of frames of \(200, 240\) pixels, got 100; .* most 99"
    refused(ValueError, words, root, tmp_path / "m.safetensors", replace(FEW, border=100))


def test_fit_refuses_checkpoints_of_another_video(fitted, copy, tmp_path):
    work = shutil.copytree(fitted[0].with_suffix(".fit"), tmp_path / "work")
    settings = replace(FEW, stop=35)
    words = r"painter\.safetensors belongs to a training with other data or settings; give anot"
    refused(ValueError, words, copy, tmp_path / "m.safetensors", settings, work_dir=work)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minutes": 0}, "minutes must be above 0, got 0"),
        ({"minutes": float("nan")}, "minutes must be above 0, got nan"),
        ({"border": -1}, "border must be 0 or more, got -1"),
        ({"stop": 1}, "stop must leave at least 2 frames, got 1"),
        ({"pairs": 3}, "pairs must be 4 or more, got 3"),
    ],
)
def test_fit_settings_refuse_numbers_that_fit_nothing(changes, words):
    with pytest.raises(ValueError, match=words):
        FitSettings(**changes)


@pytest.mark.slow
def test_fit_of_the_real_video_measures_what_is_known_of_it(hela, tmp_path):
    settings = replace(FEW, texture=TrainingSettings(steps=3), flow=TrainingSettings(steps=3))
    settings = replace(settings, painter=TrainingSettings(steps=3))
    found = fit(hela, tmp_path / "hela.safetensors", settings=settings, progress=False)
    data, camera = found.card["data"], found.camera
    assert (data["frames"], data["tracks"], data["divisions"]) == (92, 268, 94)
    assert (camera.offset, camera.full) == (32768, 36863)
    assert camera.noise * 4095 == pytest.approx(9.4, abs=0.3)
    assert camera.level * 4095 == pytest.approx(302, abs=4)
    kernel = camera.streak / np.linalg.norm(camera.streak)
    assert float((kernel[1:] * kernel[:-1]).sum()) == pytest.approx(0.60, abs=0.03)
    assert found.card["measured"]["outline_overlap"] > 0.99
    assert 20 < found.card["measured"]["cycle_hours_median"] < 40


def test_fit_settings_take_numpy_integers_and_share_one_seed():
    settings = FitSettings(
        seed=np.int64(3), border=np.int32(4), stop=np.int64(30), pairs=np.int16(8)
    )
    whole = [settings.seed, settings.border, settings.stop, settings.pairs]
    assert json.dumps(whole) == "[3, 4, 30, 8]"
    for training in (settings.painter, settings.distilled, settings.texture, settings.flow):
        assert training.seed == 3


def test_fit_opens_no_image_of_another_video_and_none_after_the_last_frame(
    copy, tmp_path, monkeypatch
):
    write_fitted(copy, "02", stop=4)
    opened, read_image = [], ctc.read_image
    monkeypatch.setattr(ctc, "read_image", lambda path: opened.append(path) or read_image(path))
    scale = CameraScale(OFFSET, OFFSET + 4095)
    fit(copy, tmp_path / "model.safetensors", settings=LEAN, scale=scale, progress=False)
    folders = {path.relative_to(copy).parts[0] for path in opened}
    assert folders <= {"01", "01_ST", "01_GT"}
    assert {int(path.stem[-3:]) for path in opened} == set(range(24))
