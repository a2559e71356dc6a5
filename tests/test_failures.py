import contextlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.cli import cli
from bvdm_data.clip import TooManyNucleiError
from bvdm_data.datasets import export as exporting
from bvdm_data.datasets import synthetic
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.export import export
from bvdm_data.datasets.transforms import TransformError
from bvdm_data.evaluation import evaluate as judging
from bvdm_data.evaluation.arms import Data
from bvdm_data.fitting import fit as fitting
from bvdm_data.fitting.training import Run, TrainingSettings, train
from bvdm_data.validate import OOM_HINT, name_clip_in_errors
from bvdm_data.weights import load, save
from tests.helpers.streams import read_files, same

ALONE = r"clip 3 of epoch 2 of SyntheticHeLaVideos\(seed=5\); to make it alone: "
ALONE += r"videos\.set_epoch\(2\); videos\.clip\(3\)"


pytestmark = pytest.mark.usefixtures("short_wait")


@pytest.fixture(autouse=True)
def no_hang():
    """Fail, rather than hang, where no error comes."""

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


def make_loader(videos, count=2, **how):
    return DataLoader(videos, batch_size=None, num_workers=count, **how)


def follow(clips, seen):
    """Note the numbers of the clips that come."""
    for clip in clips:
        seen.append(int(clip["index"]))


@contextlib.contextmanager
def full_disk(most=2048):
    """Let no file grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


@pytest.mark.parametrize(("error", "kind", "words"), ERRORS)
def test_error_keeps_type_and_names_clip(error, kind, words):
    with pytest.raises(kind) as info, name_clip_in_errors("SyntheticHeLaVideos(seed=5)", 2, 3):
        raise error
    assert type(info.value) is kind
    assert info.value.__cause__ is error
    assert getattr(info.value, "errno", None) == getattr(error, "errno", None)
    assert all(part.strip() in str(info.value) for part in words.split(".*"))
    assert "\n" not in str(info.value)
    assert str(info.value).endswith("videos.set_epoch(2); videos.clip(3)")
    with pytest.raises(KeyboardInterrupt, match=r"^$"), name_clip_in_errors("videos", 0, 0):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("error", "kind"), [ERRORS[i][:2] for i in (2, 4, 7)])
def test_failed_clip_is_made_after_resume(tiny, error, kind, monkeypatch):
    videos, seen, real = tiny(length=6), [], synthetic.synthesise

    def fail(*arguments, name, **others):
        if name == ("clip", 2, 3):
            raise error
        return real(*arguments, name=name, **others)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "synthesise", fail)
        with pytest.raises(kind, match=ALONE) as info:
            follow(make_loader(videos), seen)
        assert type(info.value) is kind
        with pytest.raises(kind, match=ALONE):
            videos.clip(3)
    assert seen == [0, 1, 2]
    videos.load_state_dict(videos.state_dict(consumed=3))
    rest = list(make_loader(videos))
    assert [int(clip["index"]) for clip in rest] == [3, 4, 5]
    assert same(rest[0], tiny().clip(3))


def leave_little_memory(_):
    """Let a worker have 16 MiB for a clip, beyond what it has."""
    synthesise, before = synthetic.synthesise, resource.getrlimit(resource.RLIMIT_AS)

    def synthesise_with_little(*given, **named):
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**24, before[1]))
        try:
            return synthesise(*given, **named)
        finally:  # the error can be sent
            resource.setrlimit(resource.RLIMIT_AS, before)

    synthetic.synthesise = synthesise_with_little


def test_worker_without_memory_names_clip(tiny):
    videos = tiny(length=1, frames=8, size=1024, nuclei=0, method="procedural")
    # A forked worker could use what earlier tests have freed.
    fresh = {"multiprocessing_context": "spawn", "worker_init_fn": leave_little_memory}
    words = r"memory ran out: use fewer workers.*clip 0 of epoch 2 of .*videos\.clip\(0\)"
    with pytest.raises((MemoryError, RuntimeError), match=words):
        list(make_loader(videos, 1, **fresh))
    assert videos.clip(0)["video"].shape == (8, 1, 1024, 1024)


def test_clip_that_cannot_be_sent(tiny):
    def fail(tensor):
        raise RuntimeError(f"unable to mmap {tensor.nbytes} bytes: Cannot allocate memory (12)")

    def break_sending(_):
        torch.Tensor.share_memory_ = fail

    words = r"memory ran out: use fewer workers.*clip 0 of epoch 2 of .*videos\.clip\(0\)"
    with pytest.raises(RuntimeError, match=words):
        list(make_loader(tiny(length=2), 1, worker_init_fn=break_sending))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (flip, ValueError, r"model\.safetensors is damaged: .*SHA-256.*fetch it again"),
        (Path.unlink, FileNotFoundError, r"there is no model file .*model\.safetensors"),
    ],
)
def test_spoilt_weights_fail_in_worker(tiny, tiny_model, tmp_path, spoil, kind, words):
    path = shutil.copy(tiny_model, tmp_path / "model.safetensors")
    other = shutil.copy(tiny_model, tmp_path / "other.safetensors")
    videos = tiny(model=path)
    spoil(other)
    seen = []
    clips = iter(make_loader(videos, 1))
    follow([next(clips)], seen)
    # The old file stays for those who have mapped it, as with every careful way of replacing one.
    if other.exists():
        other.replace(path)
    else:
        path.unlink()
    with pytest.raises(kind, match=rf"{words}.*videos\.set_epoch\(2\); videos\.clip\(\d\)"):
        follow(clips, seen)
    assert seen == list(range(len(seen)))
    assert len(seen) < 8
    shutil.copy(tiny_model, path)
    videos.load_state_dict(videos.state_dict(consumed=len(seen)))
    after = next(iter(make_loader(videos, 1)))
    assert same(after, tiny().clip(len(seen)))


def lose_worker(videos, persistent, report):
    """Be a program; in a process of its own, since PyTorch reports the dead again and again."""
    seen = []
    try:
        clips = iter(make_loader(videos, persistent_workers=persistent))
        follow([next(clips)], seen)
        os.kill(clips._workers[1].pid, signal.SIGKILL)
        follow(clips, seen)
    except Exception as error:
        report.write_text(json.dumps([f"{type(error).__name__}: {error}", seen]))
    finally:
        os._exit(0)


@pytest.mark.parametrize("persistent", [False, True])
def test_killed_worker_is_an_error(tiny, tmp_path, persistent):
    videos, report = tiny(length=9), tmp_path / "report.json"
    program = multiprocessing.get_context("fork").Process(
        target=lose_worker, args=(videos, persistent, report)
    )
    program.start()
    program.join()
    error, seen = json.loads(report.read_text())
    # PyTorch's words, or, killed while it hands a clip over, those of the broken connection.
    killed = r"RuntimeError: DataLoader worker \(pid.*(killed by signal|exited unexpectedly)"
    assert re.match(rf"{killed}|ConnectionResetError|EOFError", error)
    assert seen == list(range(len(seen)))
    assert 0 < len(seen) < 9
    videos.load_state_dict({"epoch": 2, "seed": 5, "start": len(seen)})
    rest = list(make_loader(videos))
    assert [int(clip["index"]) for clip in rest] == list(range(len(seen), 9))
    assert same(rest[-1], tiny().clip(8))
    again = []
    follow(make_loader(videos), again)
    assert again == list(range(9))


def test_impossible_clip_is_never_skipped(tiny):
    def break_clip(clip):
        assert isinstance(clip["video"], tv_tensors.Video)
        return clip["stages"]

    seen = []
    with pytest.raises(TransformError, match="KeyError: 'stages'") as info:
        follow(make_loader(tiny(length=20, transform=break_clip)), seen)
    assert seen == list(range(len(seen)))
    assert f"clip {len(seen)} of epoch 2 of SyntheticHeLaVideos(seed=5)" in str(info.value)
    assert f"videos.set_epoch(2); videos.clip({len(seen)})" in str(info.value)


def test_export_continues_after_full_disk(tiny_model, tmp_path, monkeypatch):
    given = {"frames": 2, "size": 64, "nuclei": 1, "model": tiny_model, "progress": False}
    given["method"] = "procedural"
    with full_disk(1024), pytest.raises(OSError, match=r"could not write the sequence .*full/01: "):
        export(tmp_path / "full", **given)
    assert list(read_files(tmp_path / "full")) == ["bvdm_data.json"]
    assert export(tmp_path / "full", **given) == ["01", "02"]
    export(tmp_path / "whole", **given)
    assert read_files(tmp_path / "full") == read_files(tmp_path / "whole")

    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(exporting, "synthesise", fail)
    words = r"no room .*It is sequence 01 of .*data; the same call continues there"
    with pytest.raises(MemoryError, match=words):
        export(tmp_path / "data", **given)


def test_full_disk_keeps_old_files(tiny_model, tiny_generator, tmp_path):
    checkpoint = tmp_path / "work" / "line.safetensors"

    def train_line():
        losses = lambda model, step: model.weight.sum(), lambda model: 0.0
        run = Run(checkpoint, progress=False)
        train(torch.nn.Linear(40, 40), losses, TrainingSettings(steps=1), run, "line")

    with full_disk(), pytest.raises(OSError, match=r"cannot write .*line\.safetensors: .*arge"):
        train_line()
    assert list(checkpoint.parent.iterdir()) == []
    train_line()
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    path = shutil.copy(tiny_model, tmp_path / "mine.safetensors")
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r"cannot write .*mine\.safetensors: .*arge"):
        save(tiny_generator, path)
    assert path.read_bytes() == before
    load(path)
    with full_disk(512):
        error = preview(tiny_model, tmp_path / "seen")
    assert isinstance(error, OSError)
    assert f"cannot write {tmp_path / 'seen' / 'contact_sheet.png'}" in str(error)
    assert list((tmp_path / "seen").iterdir()) == []


def preview(tiny_model, folder):
    arguments = ["--model", tiny_model, "--output", folder, "--frames", 2, "--clips", 1]
    arguments += ["--size", "48x48", "--nuclei", 2]
    return CliRunner().invoke(cli, ["preview", *map(str, arguments)]).exception


def test_unwritable_folder_is_refused_first(
    tiny_model, tiny_ctc, tiny_video, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("no folder")
    place = tmp_path / "file" / "below"

    def work(*_, **__):
        pytest.fail("worked in vain")

    monkeypatch.setattr(synthetic, "synthesise", work)
    error = preview(tiny_model, place)
    assert isinstance(error, OSError)
    assert f"cannot write {place}: " in str(error)
    monkeypatch.setattr(fitting, "read_video", work)
    with pytest.raises(OSError, match=r"cannot write .*file/below: "):
        fitting.fit(tiny_ctc, place / "mine.safetensors", progress=False)
    monkeypatch.setattr(judging, "evaluate_realism", work)
    for name in ("01", "02"):
        write_sequence(tmp_path / "two", name, *tiny_video)
    data = Data(root=tmp_path / "two", model=tiny_model, border=4, folder=tmp_path / "work")
    with pytest.raises(OSError, match=r"cannot write .*file/below: "):
        judging.evaluate(data, judging.Questions(parts=("realism",)), report=place)
