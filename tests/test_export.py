import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from ctc_metrics.scripts.evaluate import evaluate_sequence
from ctc_metrics.scripts.validate import validate_sequence

from bvdm_data.clip import CameraScale
from bvdm_data.datasets import export as exporting
from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.datasets.export import export
from bvdm_data.files import MANIFEST
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import FastSettings
from bvdm_data.weights import load, save

STEPS = PaperSettings(first_steps=2, later_steps=1)
SCENE = {"frames": 5, "size": (64, 72), "nuclei": 5}
VIDEO = {"variation": 0.0}


def exported(folder, model, **changes):
    given = {**SCENE, **VIDEO, "sequences": 2, "seed": 3, "progress": False} | changes
    return export(folder, model=model, **given)


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """Return a folder of two exported sequences; do not change it."""
    folder = tmp_path_factory.mktemp("export") / "data"
    assert exported(folder, tiny_model) == ["01", "02"]
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def as_result(folder, name, target):
    """Copy the tracking truth of a sequence as if it were somebody's result."""
    target.mkdir()
    for path in (folder / f"{name}_GT/TRA").iterdir():
        shutil.copy(path, target / path.name.replace("man_track", "mask"))
    (target / "mask.txt").rename(target / "res_track.txt")
    return str(target)


@pytest.mark.parametrize("name", ["01", "02"])
def test_an_exported_sequence_is_valid_and_scores_one_against_itself(whole, tmp_path, name):
    result = as_result(whole, name, tmp_path / "result")
    assert validate_sequence(result, threads=1) == {"Valid": 1}
    found = evaluate_sequence(result, str(whole / f"{name}_GT"), ["SEG", "TRA"], threads=1)
    assert (found["SEG"], found["TRA"]) == (1.0, 1.0)


@pytest.mark.parametrize("method", [FastSettings(), STEPS], ids=["fast", "paper"])
def test_an_exported_sequence_holds_counts_and_masks_of_the_synthesised_film(
    whole, tiny_model, tmp_path, method
):
    folder = whole
    if method == STEPS:
        folder = tmp_path / "data"
        assert exported(folder, tiny_model, method=method) == ["01", "02"]
    generator = load(tiny_model)
    scale = CameraScale(generator.camera.offset, generator.camera.full)
    for index in range(2):
        film = synthesise(generator, SceneSettings(**SCENE), method, seed=3, name=("export", index))
        sequence = read_sequence(folder, f"{index + 1:02d}")
        np.testing.assert_array_equal(sequence.tracks, film.tracks)
        for number in range(5):
            np.testing.assert_array_equal(
                sequence.frame(number), scale.to_counts(film.video[number])
            )
            np.testing.assert_array_equal(scale.to_grey(sequence.frame(number)), film.video[number])
            np.testing.assert_array_equal(sequence.masks(number), film.masks[number])


def test_two_sequences_of_an_export_differ(whole):
    one, other = (read_sequence(whole, name).frame(0) for name in ("01", "02"))
    assert not np.array_equal(one, other)


def test_the_manifest_tells_how_the_videos_were_made(whole):
    said = json.loads((whole / MANIFEST).read_text())
    asked = ["frames", "size", "seed", "method", "nuclei", "variation"]
    assert list(said) == ["version", "model", *asked]
    assert [said[key] for key in asked] == [5, [64, 72], 3, repr(FastSettings()), 5, 0]
    assert len(said["model"]) == 64


def test_export_called_again_writes_nothing(copy, tiny_model, monkeypatch):
    before = contents(copy)
    monkeypatch.setattr(exporting, "write_sequence", lambda *_: pytest.fail("written again"))
    assert exported(copy, tiny_model) == []
    assert contents(copy) == before


def test_export_called_for_more_sequences_writes_those_that_are_missing(
    whole, tmp_path, tiny_model
):
    assert exported(tmp_path / "data", tiny_model, sequences=1) == ["01"]
    assert exported(tmp_path / "data", tiny_model) == ["02"]
    assert contents(tmp_path / "data") == contents(whole)


RUN = """
import sys, time
from pathlib import Path
from bvdm_data.datasets import ctc
from bvdm_data.datasets.export import export
move = ctc._move_into_place
def slow(staging, folder, name):
    if name == "02":
        time.sleep(60)
    move(staging, folder, name)
ctc._move_into_place = slow
given = {"frames": 5, "size": (64, 72), "nuclei": 5, "seed": 3, "variation": 0}
export(sys.argv[1], model=sys.argv[2], progress=False, **given)
"""


def test_a_killed_export_that_is_called_again_ends_in_the_same_files(whole, tmp_path, tiny_model):
    folder = tmp_path / "data"
    half = folder / ".02.writing/02_GT/TRA/man_track.txt"
    with subprocess.Popen([sys.executable, "-c", RUN, str(folder), str(tiny_model)]) as process:
        until = time.monotonic() + 60
        while not half.exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (folder / "01").is_dir()
    assert half.exists()
    assert not (folder / "02").exists()
    assert exported(folder, tiny_model) == ["02"]
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 6}, r"begun with frames=5, got 6; give the same arguments"),
        ({"size": (64, 80)}, r"begun with size=\[64, 72\], got \[64, 80\]"),
        ({"seed": 4}, r"begun with seed=3, got 4"),
        ({"nuclei": None}, r"begun with nuclei=5, got None"),
        ({"nuclei": (2, 5)}, r"begun with nuclei=5, got \[2, 5\]"),
        ({"method": "paper"}, r"begun with method='FastSettings\(steps=1.*got 'Paper.*steps=200"),
        ({"method": FastSettings(steps=5)}, r"method='FastSettings\(steps=1.*got 'Fast.*steps=5"),
        ({"variation": 1}, r"begun with variation=0\.0, got 1\.0"),
    ],
)
def test_export_refuses_other_arguments_in_the_same_folder(copy, tiny_model, changes, words):
    before = contents(copy)
    with pytest.raises(ValueError, match=words):
        exported(copy, tiny_model, **changes)
    assert contents(copy) == before


def test_export_takes_other_arguments_when_nothing_has_been_written(tmp_path, tiny_model):
    with pytest.raises(ValueError, match=r"nuclei=200 do not fit into size=\(64, 72\)"):
        exported(tmp_path / "data", tiny_model, nuclei=200)
    assert exported(tmp_path / "data", tiny_model, frames=2, sequences=1) == ["01"]
    assert json.loads((tmp_path / "data" / MANIFEST).read_text())["nuclei"] == 5


def test_export_refuses_a_folder_that_holds_something_else(tmp_path, tiny_model):
    (tmp_path / "thesis.tex").write_text("42")
    with pytest.raises(ValueError, match=r"directory must be new, empty.*holds something else"):
        exported(tmp_path, tiny_model)
    assert contents(tmp_path) == {"thesis.tex": b"42"}
    with pytest.raises(ValueError, match=r"thesis\.tex holds something else; give another"):
        exported(tmp_path / "thesis.tex", tiny_model)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_export_refuses_a_folder_whose_manifest_is_damaged(copy, tiny_model, text):
    (copy / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"is damaged|was begun with version=None"):
        exported(copy, tiny_model)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"sequences": 0}, ValueError, "sequences must be 1 or more, got 0"),
        ({"sequences": 100}, ValueError, "sequences must be at most 99, got 100"),
        ({"sequences": 1.5}, TypeError, r"sequences must be a whole number, got 1\.5"),
        ({"frames": 0}, ValueError, "frames must be 1 or more, got 0"),
        ({"size": (64,)}, ValueError, r"size must be two numbers, .*got \(64,\)"),
        ({"size": (4, 64)}, ValueError, r"size must not be smaller than a nucleus.*got \(4, 64\)"),
        ({"seed": -1}, ValueError, "seed must be 0 or more, got -1"),
        ({"nuclei": (5, 2)}, ValueError, r"low <= high, got \(5, 2\)"),
        ({"method": "magic"}, ValueError, "one of 'fast', 'paper', 'procedural'.*got 'magic'"),
        ({"variation": 2}, ValueError, "variation must be from 0 to 1, got 2"),
        ({"variation": "wide"}, TypeError, "variation must be a number from 0 to 1, got 'wide'"),
        ({"model": "hella.safetensors"}, FileNotFoundError, "there is no model file 'hella"),
    ],
)
def test_export_refuses_a_bad_argument_before_it_makes_the_folder(
    tmp_path, tiny_model, changes, error, words
):
    given = {"model": tiny_model} | changes
    with pytest.raises(error, match=words):
        exported(tmp_path / "data", **given)
    assert not (tmp_path / "data").exists()


def test_export_refuses_the_papers_method_of_a_model_without_its_networks(tiny_generator, tmp_path):
    path = tmp_path / "lean.safetensors"
    save(replace(tiny_generator, unet=None, flownet=None), path)
    with pytest.raises(ValueError, match=r"fitted for, got 'paper'; fit .*bvdm-data fit --paper"):
        exported(tmp_path / "data", path, method="paper")
    assert not (tmp_path / "data").exists()


def test_export_varies_its_videos_when_it_is_asked_to(whole, tiny_model, tmp_path):
    assert exported(tmp_path / "data", tiny_model, sequences=1, variation=1) == ["01"]
    varied, plain = (read_sequence(folder, "01").frame(0) for folder in (tmp_path / "data", whole))
    assert not np.array_equal(varied, plain)
    assert json.loads((tmp_path / "data" / MANIFEST).read_text())["variation"] == 1
