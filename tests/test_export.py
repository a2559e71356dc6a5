import json
import re
import shutil
import socket
import subprocess
import sys

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
from bvdm_data.system import describe_cpu
from bvdm_data.weights import load
from tests.helpers.streams import read_files

STEPS = PaperSettings(first_steps=2, later_steps=1)
SCENE = {"frames": 5, "size": (64, 72), "nuclei": 5}


def write(folder, model, **changes):
    given = {**SCENE, "variation": 0.0, "sequences": 2, "seed": 3, "progress": False} | changes
    return export(folder, model=model, **given)


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """Return a folder of two exported sequences; do not change it."""
    folder = tmp_path_factory.mktemp("export") / "data"
    assert write(folder, tiny_model) == ["01", "02"]
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def as_result(folder, name, target):
    """Copy the tracking truth of a sequence as if it were a result of tracking."""
    target.mkdir()
    for path in (folder / f"{name}_GT/TRA").iterdir():
        shutil.copy(path, target / path.name.replace("man_track", "mask"))
    (target / "mask.txt").rename(target / "res_track.txt")
    return str(target)


def test_sequence_scores_one_against_itself(whole, tmp_path):
    result = as_result(whole, "02", tmp_path / "result")
    assert validate_sequence(result, threads=1) == {"Valid": 1}
    found = evaluate_sequence(result, str(whole / "02_GT"), ["SEG", "TRA"], threads=1)
    assert (found["SEG"], found["TRA"]) == (1.0, 1.0)


@pytest.mark.parametrize("method", [FastSettings(), STEPS], ids=["fast", "paper"])
def test_sequence_holds_the_synthesised_video(whole, tiny_model, tmp_path, method):
    folder = whole if method != STEPS else tmp_path / "data"
    assert write(folder, tiny_model, method=method) == ([] if folder == whole else ["01", "02"])
    generator = load(tiny_model)
    scale = CameraScale(generator.camera.offset, generator.camera.full)
    scene = SceneSettings(**SCENE)
    for index in range(2):
        film = synthesise(generator, scene, method, seed=3, name=("export", index))
        sequence = read_sequence(folder, f"{index + 1:02d}")
        np.testing.assert_array_equal(sequence.tracks, film.tracks)
        for number in range(5):
            counts = sequence.frame(number)
            np.testing.assert_array_equal(counts, scale.to_counts(film.video[number]))
            np.testing.assert_array_equal(scale.to_grey(counts), film.video[number])
            np.testing.assert_array_equal(sequence.masks(number), film.masks[number])


def test_manifest_records_the_arguments(whole):
    manifest = json.loads((whole / MANIFEST).read_text())
    asked = ["frames", "size", "seed", "method", "nuclei", "variation"]
    assert list(manifest) == ["version", "model", *asked, "processor", "sequences"]
    assert manifest["processor"] == describe_cpu()
    assert list(manifest["sequences"]) == ["01", "02"]
    assert [manifest[key] for key in asked] == [5, [64, 72], 3, repr(FastSettings()), 5, 0]
    assert len(manifest["model"]) == 64


def test_second_call_writes_what_is_missing(whole, copy, tmp_path, tiny_model, monkeypatch):
    assert write(tmp_path / "data", tiny_model, sequences=1) == ["01"]
    assert write(tmp_path / "data", tiny_model) == ["02"]
    assert read_files(tmp_path / "data") == read_files(whole)
    monkeypatch.setattr(exporting, "write_sequence", lambda *_: pytest.fail("written again"))
    assert write(copy, tiny_model) == []
    assert read_files(copy) == read_files(whole)


def test_begun_folder_refuses_other_arguments(copy, tiny_model):
    before = read_files(copy)
    for changes, words in [
        ({"frames": 6}, r"begun with frames=5, got 6; give the same arguments"),
        ({"size": (64, 80)}, r"begun with size=\[64, 72\], got \[64, 80\]"),
        ({"nuclei": (2, 5)}, r"begun with nuclei=5, got \[2, 5\]"),
        ({"method": FastSettings(steps=5)}, r"'FastSettings\(steps=1.*got 'Fast.*steps=5"),
        ({"variation": 1}, r"begun with variation=0\.0, got 1\.0"),
        ({"outline": "even"}, r"begun with outline=None, got 'even'"),
    ]:
        with pytest.raises(ValueError, match=words):
            write(copy, tiny_model, **changes)
    assert read_files(copy) == before


def test_unfinished_export_refuses_other_seed(tmp_path, tiny_model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "synthesise", lambda *_, **__: 1 / 0)
        with pytest.raises(ArithmeticError):
            write(tmp_path / "data", tiny_model)
    before = read_files(tmp_path / "data")
    with pytest.raises(ValueError, match=r"begun with seed=3, got 4; give the same arguments"):
        write(tmp_path / "data", tiny_model, seed=4)
    assert read_files(tmp_path / "data") == before
    machine = json.loads(before[MANIFEST])["processor"]
    monkeypatch.setattr(exporting, "describe_cpu", lambda: {**machine, "torch": "OTHER"})
    with pytest.raises(ValueError, match=r"begun with processor=.*, got .*'OTHER'.*another folder"):
        write(tmp_path / "data", tiny_model)


def test_exports_at_once_do_not_mix(tmp_path, tiny_model, monkeypatch):
    made = exporting.synthesise

    def overtaken(*arguments, **given):
        monkeypatch.setattr(exporting, "synthesise", made)
        shutil.rmtree(tmp_path / "data")
        write(tmp_path / "data", tiny_model, seed=4, sequences=1, frames=1)
        return made(*arguments, **given)

    monkeypatch.setattr(exporting, "synthesise", overtaken)
    with pytest.raises(ValueError, match=r"begun with frames=1, got 5"):
        write(tmp_path / "data", tiny_model)
    assert json.loads((tmp_path / "data" / MANIFEST).read_text())["seed"] == 4


def test_spoilt_sequence_is_refused(copy, whole, tiny_model):
    for name in ("01/t003.tif", "01_GT/SEG/man_seg003.tif", "01_GT/TRA/man_track003.tif"):
        (copy / name).unlink()
    with pytest.raises(
        ValueError, match=r"01 of .*it lacks 3 files: 01/t003\.tif, .*remove 01 and"
    ):
        write(copy, tiny_model)
    for name in ("01", "01_GT"):
        shutil.rmtree(copy / name)
    (copy / "02/t001.tif").write_bytes(bytes((copy / "02/t001.tif").stat().st_size))
    with pytest.raises(ValueError, match=r"sequence 02 of .*a file is another one"):
        write(copy, tiny_model)
    shutil.rmtree(copy / "02")
    with pytest.raises(ValueError, match=r"02 of .*\(02 is missing\); remove 02 and 02_GT"):
        write(copy, tiny_model)
    shutil.rmtree(copy / "02_GT")
    assert write(copy, tiny_model) == ["01", "02"]
    assert read_files(copy) == read_files(whole)


def test_remains_of_killed_calls_go(copy, whole, tiny_model):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    shutil.rmtree(copy / "02")
    shutil.rmtree(copy / "02_GT")
    (copy / f".{MANIFEST}.{socket.gethostname()}.{done.pid}.abc.json").touch()
    assert write(copy, tiny_model) == ["02"]
    assert read_files(copy) == read_files(whole)


def test_other_folders_are_refused(tmp_path, tiny_model, copy):
    (tmp_path / "thesis.tex").write_text("42")
    with pytest.raises(ValueError, match=r"thesis\.tex holds something else; give another"):
        write(tmp_path / "thesis.tex", tiny_model)
    whole = (copy / MANIFEST).read_text()
    for text in ("", "{", "[1]", re.sub(r"(?s){\s+\"01.*?}", "3", whole)):
        (copy / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=r"bvdm_data\.json is damaged \("):
            write(copy, tiny_model)


def test_bad_argument_makes_no_folder(tmp_path, tiny_model):
    for changes, words in [
        ({"size": (4, 64)}, r"size must not be smaller than a nucleus.*got \(4, 64\)"),
        ({"variation": 2}, "variation must be from 0 to 1, got 2"),
        ({"nuclei": 200}, r"nuclei=200 do not fit into size=\(64, 72\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            write(tmp_path / "data", tiny_model, **changes)
    assert not (tmp_path / "data").exists()


def test_variation_and_index_change_videos(whole, tiny_model, tmp_path):
    assert write(tmp_path / "data", tiny_model, sequences=1, variation=1) == ["01"]
    frames = [
        read_sequence(folder, name).frame(0)
        for folder, name in ((tmp_path / "data", "01"), (whole, "01"), (whole, "02"))
    ]
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
