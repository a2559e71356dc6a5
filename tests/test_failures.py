"""Real faults: what a loop sees of them, and how it goes on."""

import contextlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.cli import cli
from bvdm_data.clip import TooManyNucleiError
from bvdm_data.datasets import synthetic
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.export import export
from bvdm_data.datasets.transforms import TransformError
from bvdm_data.evaluation import evaluate as judging
from bvdm_data.evaluation.arms import Data
from bvdm_data.fitting import fit as fitting
from bvdm_data.fitting.training import TrainingSettings, train
from bvdm_data.validate import OOM_HINT, name_clip_in_errors
from bvdm_data.weights import load, save

ALONE = r"clip 3 of epoch 2 of SyntheticHeLaVideos\(seed=5\); to make it alone: "
ALONE += r"videos\.set_epoch\(2\); videos\.clip\(3\)"


@pytest.fixture(autouse=True)
def no_hang():
    """Fail, rather than hang, where an error does not come."""

    def late(*_):
        raise AssertionError("nothing came within a minute")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def tiny(tiny_model):
    def tiny(**changes):
        given = {"frames": 2, "size": 48, "model": tiny_model, "nuclei": 2, "seed": 5}
        videos = SyntheticHeLaVideos(**given | {"batch_size": 1} | changes)
        videos.set_epoch(2)
        return videos

    return tiny


def workers(videos, count=2, **how):
    return DataLoader(videos, batch_size=None, num_workers=count, **how)


def follow(clips, got):
    """Note the numbers of the clips that come."""
    for clip in clips:
        got.append(int(clip["index"]))


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9)) for key in one
    )


@contextlib.contextmanager
def limited(kind, most):
    """Let the process have so much of something, as on a full machine."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def full_disk(most=2048):
    return limited(resource.RLIMIT_FSIZE, most)


class OddError(ValueError):
    """Cannot be made from a message."""

    def __init__(self, one, other):
        super().__init__(f"odd {one}", other)


def array_memory_error():
    try:
        np.zeros(2**60, np.uint8)
    except MemoryError as error:
        return error


# What is raised, what arrives.
ERRORS = [
    (ValueError("bad\n  luck"), ValueError, "bad luck. It is"),
    (ValueError(), ValueError, "ValueError. It is"),
    (TooManyNucleiError("too many."), TooManyNucleiError, "too many. It is"),
    (OSError(28, "No space left"), OSError, "[Errno 28] No space left. It is"),
    (KeyError("radii"), LookupError, "'radii'. It is"),
    (OddError(1, 2), ValueError, "('odd 1', 2). It is"),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), UnicodeError, "'utf-8' codec can't decode"),
    (array_memory_error(), MemoryError, f"Unable to allocate 1.00 EiB .* ({OOM_HINT}). It is"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), torch.OutOfMemoryError,
     f"Tried ({OOM_HINT}). It is"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError,
     f"memory ({OOM_HINT}). It is"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "kind", "words"), ERRORS, ids=[type(error[0]).__name__ for error in ERRORS]
)
def test_an_error_keeps_its_type_and_words_and_names_the_clip(error, kind, words):
    with pytest.raises(kind) as info, name_clip_in_errors("SyntheticHeLaVideos(seed=5)", 2, 3):
        raise error
    assert type(info.value) is kind
    assert info.value.__cause__ is error
    assert getattr(info.value, "errno", None) == getattr(error, "errno", None)
    for part in words.split(".*"):
        assert part.strip() in str(info.value)
    assert str(info.value).count("\n") == 0
    assert str(info.value).endswith("videos.set_epoch(2); videos.clip(3)")


def test_a_key_that_is_pressed_is_no_error_of_a_clip():
    pressed = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as info, name_clip_in_errors("videos", 0, 0):
        raise pressed
    assert info.value is pressed


def failing(monkeypatch, error):
    """Let clip 3 of epoch 2 fail."""
    real = synthetic.synthesise

    def synthesise(*arguments, name, **others):
        if name == ("clip", 2, 3):
            raise error
        return real(*arguments, name=name, **others)

    monkeypatch.setattr(synthetic, "synthesise", synthesise)


@pytest.mark.parametrize("error", [ERRORS[i][0] for i in (0, 2, 4, 5, 7, 8)], ids=lambda e: str(e))
def test_an_error_in_a_worker_names_the_clip_and_a_resumed_loop_makes_it(tiny, error, monkeypatch):
    kind = next(kind for one, kind, _ in ERRORS if one is error)
    videos = tiny(length=6)
    got = []
    with monkeypatch.context() as patch:
        failing(patch, error)
        with pytest.raises(kind, match=ALONE) as info:
            follow(workers(videos), got)
        assert type(info.value) is kind
        with pytest.raises(kind, match=ALONE):
            videos.clip(3)
    assert got == [0, 1, 2]
    videos.load_state_dict(videos.state_dict(consumed=3))
    rest = list(workers(videos))
    assert [int(clip["index"]) for clip in rest] == [3, 4, 5]
    assert same(rest[0], tiny().clip(3))


def test_memory_that_runs_out_in_a_worker_names_the_clip(tiny):
    videos = tiny(length=1, frames=8, size=1024, nuclei=0, method="procedural")

    def leave_little(_):
        with open("/proc/self/statm") as said:
            pages = int(said.read().split()[0])
        most = pages * resource.getpagesize() + 2**23
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))

    words = r"memory ran out: use fewer workers.*clip 0 of epoch 2 of .*videos\.clip\(0\)"
    with pytest.raises((MemoryError, RuntimeError), match=words):
        list(workers(videos, 1, worker_init_fn=leave_little))
    assert videos.clip(0)["video"].shape == (8, 1, 1024, 1024)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 64
    path.write_bytes(content)


FAULTS = [
    (cut, ValueError, r"model\.safetensors is damaged or no safetensors file .*fetch it again"),
    (flip, ValueError, r"model\.safetensors is damaged: .*SHA-256.*fetch it again"),
    (lambda path: save_file({"w": torch.zeros(1)}, path), ValueError,
     r"model\.safetensors holds no generator of this library.*Give a file made by"),
    (lambda path: path.unlink(), FileNotFoundError, r"there is no model file .*model\.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "kind", "words"), FAULTS, ids=["cut", "flipped", "foreign", "removed"]
)
def test_weights_that_are_spoilt_under_a_worker_are_an_error(
    tiny, tiny_model, tmp_path, spoil, kind, words
):
    path = shutil.copy(tiny_model, tmp_path / "model.safetensors")
    other = shutil.copy(tiny_model, tmp_path / "other.safetensors")
    videos = tiny(model=path)
    spoil(other)
    got = []
    clips = iter(workers(videos, 1))
    follow([next(clips)], got)
    # The old file stays for those who have mapped it, as with every careful way of replacing one.
    if other.exists():
        other.replace(path)
    else:
        path.unlink()
    with pytest.raises(kind, match=rf"{words}.*videos\.set_epoch\(2\); videos\.clip\(\d\)"):
        follow(clips, got)
    assert got == list(range(len(got)))
    assert len(got) < 8
    shutil.copy(tiny_model, path)
    videos.load_state_dict(videos.state_dict(consumed=len(got)))
    after = next(iter(workers(videos, 1)))
    assert same(after, tiny().clip(len(got)))


def loop_that_loses_a_worker(videos, persistent, told):
    """Be a program; in a process of its own, since PyTorch tells of the dead again and again."""
    got = []
    try:
        clips = iter(workers(videos, persistent_workers=persistent))
        follow([next(clips)], got)
        os.kill(clips._workers[1].pid, signal.SIGKILL)
        follow(clips, got)
    except (RuntimeError, OSError, EOFError) as error:
        told.write_text(json.dumps([f"{type(error).__name__}: {error}", got]))
    finally:
        os._exit(0)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_killed_worker_is_an_error_and_a_resumed_loop_goes_on(tiny, tmp_path, persistent):
    videos, told = tiny(length=9), tmp_path / "told.json"
    program = multiprocessing.get_context("fork").Process(
        target=loop_that_loses_a_worker, args=(videos, persistent, told)
    )
    program.start()
    program.join()
    error, got = json.loads(told.read_text())
    # PyTorch's words, or, killed while it hands a clip over, those of the broken connection.
    killed = r"RuntimeError: DataLoader worker \(pid.*(killed by signal|exited unexpectedly)"
    assert re.match(rf"{killed}|ConnectionResetError|EOFError", error)
    assert got == list(range(len(got)))
    assert 0 < len(got) < 9
    videos.load_state_dict({"epoch": 2, "seed": 5, "start": len(got)})
    rest = list(workers(videos))
    assert [int(clip["index"]) for clip in rest] == list(range(len(got), 9))
    assert same(rest[-1], tiny().clip(8))
    again = []
    follow(workers(videos), again)
    assert again == list(range(9))


def broken(clip):
    assert isinstance(clip["video"], tv_tensors.Video)
    return clip["stages"]


CASES = [
    ({"nuclei": 3, "frames": 8, "max_cells": 3}, TooManyNucleiError,
     r"max_cells=3 is too small .*Give max_cells=\d+"),
    ({"nuclei": 90}, ValueError, r"nuclei=90 do not fit into size=\(48, 48\)"),
    ({"transform": broken}, TransformError, r"KeyError: 'stages'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kind", "words"), CASES, ids=["max_cells", "room", "transform"]
)
def test_a_clip_that_cannot_be_made_is_an_error_and_never_left_out(tiny, changes, kind, words):
    got = []
    with pytest.raises(kind, match=words) as info:
        follow(workers(tiny(length=20, **changes)), got)
    number = len(got)
    assert got == list(range(number))
    assert f"clip {number} of epoch 2 of SyntheticHeLaVideos(seed=5)" in str(info.value)
    assert f"videos.set_epoch(2); videos.clip({number})" in str(info.value)


def test_a_worker_that_is_asked_for_cuda_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    videos = tiny(device="cuda")
    with pytest.raises(RuntimeError, match=r"num_workers must be 0 when device is 'cuda'.*Use"):
        next(iter(workers(videos)))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_export_on_a_full_disk_leaves_no_half_sequence_and_goes_on(tiny_model, tmp_path):
    given = {"frames": 2, "size": 64, "nuclei": 1, "model": tiny_model, "progress": False}
    given["method"] = "procedural"
    with full_disk(1024), pytest.raises(OSError, match=r"could not write the sequence .*full/01: "):
        export(tmp_path / "full", **given)
    assert list(contents(tmp_path / "full")) == ["bvdm_data.json"]
    assert export(tmp_path / "full", **given) == ["01", "02"]
    export(tmp_path / "whole", **given)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_an_export_whose_film_fails_names_the_sequence(tiny_model, tmp_path):
    words = r"nuclei=90 do not fit .*It is sequence 01 of .*data; the same call goes on there"
    with pytest.raises(ValueError, match=words):
        export(tmp_path / "data", frames=1, size=48, nuclei=90, model=tiny_model, progress=False)


def test_a_checkpoint_on_a_full_disk_leaves_nothing_and_the_training_goes_on(tmp_path):
    path = tmp_path / "line.safetensors"

    def trained():
        train(
            torch.nn.Linear(40, 40), lambda model, step: model.weight.sum(), lambda model: 0.0,
            TrainingSettings(steps=1), checkpoint=path, purpose="line", progress=False,
        )  # fmt: skip

    with full_disk(), pytest.raises(OSError, match=r"cannot write .*line\.safetensors: .*arge"):
        trained()
    assert list(tmp_path.iterdir()) == []
    trained()
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_on_a_full_disk_leaves_the_old_one(tiny_model, tiny_generator, tmp_path):
    path = shutil.copy(tiny_model, tmp_path / "mine.safetensors")
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r"cannot write .*mine\.safetensors: .*arge"):
        save(tiny_generator, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
    load(path)


def preview(tiny_model, folder):
    arguments = ["--model", tiny_model, "--output", folder, "--frames", 2, "--clips", 1]
    arguments += ["--size", "48x48", "--nuclei", 2]
    return CliRunner().invoke(cli, ["preview", *map(str, arguments)]).exception


def test_a_preview_on_a_full_disk_leaves_no_picture(tiny_model, tmp_path):
    with full_disk(512):
        error = preview(tiny_model, tmp_path / "seen")
    assert isinstance(error, OSError)
    assert "cannot write" in str(error)
    assert str(tmp_path / "seen" / "contact_sheet.png") in str(error)
    assert list((tmp_path / "seen").iterdir()) == []


def test_a_folder_that_cannot_be_written_into_is_refused_before_the_work(
    tiny_model, tiny_ctc, tiny_video, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("no folder")
    place = tmp_path / "file" / "below"

    def worked(*_, **__):
        pytest.fail("worked in vain")

    monkeypatch.setattr(synthetic, "synthesise", worked)
    error = preview(tiny_model, place)
    assert isinstance(error, OSError)
    assert f"cannot write {place}: " in str(error)
    monkeypatch.setattr(fitting, "read_video", worked)
    with pytest.raises(OSError, match=r"cannot write .*file/below: "):
        fitting.fit(tiny_ctc, place / "mine.safetensors", progress=False)
    monkeypatch.setattr(judging, "judge_realism", worked)
    for name in ("01", "02"):
        write_sequence(tmp_path / "two", name, *tiny_video)
    data = Data(root=tmp_path / "two", model=tiny_model, border=4, folder=tmp_path / "work")
    with pytest.raises(OSError, match=r"cannot write .*file/below: "):
        judging.evaluate(data, judging.Questions(parts=("realism",)), report=place)
