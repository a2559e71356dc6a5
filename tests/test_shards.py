import gzip
import io
import json
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import scaling
from benchmarks.scaling_tables import TABLES, filled
from bvdm_data import FastSettings, PaperSettings, PoolSettings, SyntheticHeLaVideos
from bvdm_data.cli import cli
from bvdm_data.clip import ANNOTATIONS
from bvdm_data.datasets.export import export
from bvdm_data.files import MANIFEST
from bvdm_data.storage import as_clip, read_manifest, read_shard, write_shards
from bvdm_data.storage import plan as planning
from bvdm_data.storage import shards as writing
from bvdm_data.synth.model import TextureModel
from bvdm_data.weights import save
from tests.helpers.streams import digest, read_files

needs_zarr = pytest.mark.skipif(sys.version_info < (3, 11), reason="zarr 3 needs Python 3.11")
left_open = pytest.mark.filterwarnings(
    "ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # by webdataset
ROOT = Path(__file__).parents[1]
FORMATS = ["webdataset", pytest.param("zarr", marks=needs_zarr)]
SMALL = {"frames": 2, "size": 40, "nuclei": 2, "max_cells": 16, "seed": 3}
NAMES = ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]


def make_videos(model, **changes):
    return SyntheticHeLaVideos(model=model, **{**SMALL, **changes})


def write(folder, videos, **changes):
    given = {"clips": 10, "clips_per_shard": 4, "compress": False, "progress": False}
    return write_shards(videos, folder, **{**given, **changes})


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """Return a folder of three shards with 4, 4 and 2 clips; do not change it."""
    folder = tmp_path_factory.mktemp("shards") / "data"
    assert write(folder, make_videos(tiny_model)) == NAMES
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.mark.parametrize("format", FORMATS)
def test_shards_hold_the_clips(tmp_path, tiny_model, format):
    videos, sizes = make_videos(tiny_model, annotations=ANNOTATIONS), []
    for compress in (False, True):
        folder = tmp_path / str(compress)
        names = write(folder, videos, clips=5, format=format, compress=compress)
        assert len(names) == 2
        read = [clip for name in names for clip in read_shard(folder / name)]
        assert [int(clip["index"]) for clip in read] == [0, 1, 2, 3, 4]
        for index, clip in enumerate(read):
            one = videos.clip(index)
            assert {key: (t.dtype, t.shape) for key, t in clip.items()} == {
                key: (t.dtype, t.shape) for key, t in one.items()
            }
            assert digest(clip) == digest(one)
        sizes.append((folder / names[0]).stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]
    videos = make_videos(tiny_model, frames=1, annotations=("flow",), length=1)
    (name,) = write(tmp_path / "flow", videos, clips=None, format=format)
    (clip,) = read_shard(tmp_path / "flow" / name)
    assert clip["flow"].shape == (0, 2, 40, 40)


@left_open
@pytest.mark.parametrize("compress", [False, True])
def test_webdataset_reads_equal_tensors(tmp_path, tiny_model, compress):
    webdataset = pytest.importorskip("webdataset", reason="needs the extra shards")
    videos = make_videos(tiny_model, annotations=ANNOTATIONS)
    write(tmp_path, videos, compress=compress)
    shards = str(tmp_path / "shard-{000000..000002}.tar")
    raw = webdataset.WebDataset(shards, shardshuffle=False)
    with pytest.raises(TypeError, match=r"is bytes; write WebDataset\(\.\.\.\)\.decode"):
        as_clip(next(iter(raw)))
    raw = webdataset.WebDataset(shards, shardshuffle=False)
    found = list(raw.decode().map(as_clip))
    assert [clip.pop("__key__") for clip in found] == [f"{i:09d}" for i in range(10)]
    assert [digest(clip) for clip in found] == [digest(videos.clip(i)) for i in range(10)]
    assert all(isinstance(value, torch.Tensor) for value in found[0].values())


@needs_zarr
def test_zarr_opens_a_group(tmp_path, tiny_model):
    zarr = pytest.importorskip("zarr", reason="needs the extra shards")
    videos = make_videos(tiny_model)
    write(tmp_path, videos, format="zarr")
    with zarr.storage.ZipStore(tmp_path / "shard-000001.zip", mode="r") as store:
        group = zarr.open_group(store, mode="r")
        assert sorted(group.array_keys()) == ["index", "masks", "source", "tracks", "video"]
        assert group["video"].shape == (4, 2, 1, 40, 40)
        assert group["video"].chunks == (1, 2, 1, 40, 40)
        assert group["index"][:].tolist() == [4, 5, 6, 7]
        assert (group["masks"][2] == videos.clip(6)["masks"].numpy()).all()


@pytest.mark.parametrize("format", FORMATS)
def test_ranks_write_equal_files(tmp_path, tiny_model, format, monkeypatch):
    videos = make_videos(tiny_model, pool=PoolSettings(pairs=3))
    how = {"format": format, "compress": True}
    one, other = tmp_path / "one", tmp_path / "other"
    assert len(write(one, videos, **how)) == 3
    monkeypatch.setattr(time, "time", lambda: 1e9)
    for rank in (1, 0):
        writing._load_videos.cache_clear()
        assert len(write(other, videos, shard=(rank, 2), **how)) == 2 - rank
    assert read_files(one) == read_files(other)


@pytest.mark.heavy
def test_torchrun_ranks_split_the_shards(whole, tmp_path, tiny_model):
    folder = tmp_path / "data"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "bvdm_data", "shards", folder, "--clips", 10, "--clips-per-shard", 4]
    settings = ["--no-compress", "--frames", 2, "--size", "40x40", "--nuclei", 2, "--max-cells", 16]
    line = [*torchrun, *command, *settings, "--seed", 3, "--model", tiny_model]
    done = subprocess.run(
        [str(word) for word in line], check=True, timeout=300, capture_output=True, text=True
    )
    assert sorted(done.stdout.split("\n"))[1:] == [
        f"wrote 1 shard to {folder}",
        f"wrote 2 shards to {folder}",
    ]
    assert read_files(folder) == read_files(whole)


def test_rank_writes_its_pooled_shards(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    how = {"pool": PoolSettings(pairs=3), "length": 20, "death_rate": 0.2}
    videos = make_videos(tiny_model, **how)
    videos.set_epoch(2)
    assert write(tmp_path, videos, clips=12) == [NAMES[2]]
    assert sorted(read_files(tmp_path)) == [MANIFEST, NAMES[2]]
    clips = list(read_shard(tmp_path / NAMES[2]))
    again = make_videos(tiny_model, **how)
    again.set_epoch(2)
    assert [digest(clip) for clip in clips] == [digest(again.clip(i)) for i in range(8, 12)]


def test_second_call_writes_missing_shards(copy, whole, tiny_model, monkeypatch):
    (copy / NAMES[1]).unlink()
    assert write(copy, make_videos(tiny_model)) == [NAMES[1]]
    assert read_files(copy) == read_files(whole)
    monkeypatch.setattr(SyntheticHeLaVideos, "clip", lambda *_: pytest.fail("made again"))
    assert write(copy, make_videos(tiny_model)) == []
    assert read_files(copy) == read_files(whole)


PROGRAM = """
import os, signal, sys
from bvdm_data import SyntheticHeLaVideos
from bvdm_data.storage import write_shards
clip = SyntheticHeLaVideos.clip
def die(self, index):
    if index == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return clip(self, index)
SyntheticHeLaVideos.clip = die
if __name__ == "__main__":
    given = {"frames": 2, "size": 40, "nuclei": 2, "max_cells": 16, "seed": 3}
    videos = SyntheticHeLaVideos(model=sys.argv[2], **given)
    how = {"clips": 10, "clips_per_shard": 4, "compress": False, "progress": False}
    try:
        write_shards(videos, sys.argv[1], workers=1, **how)
    except ChildProcessError as error:
        print(error)
"""


@pytest.mark.heavy
def test_killed_worker_is_an_error(whole, tmp_path, tiny_model):
    (tmp_path / "dying.py").write_text(PROGRAM)
    folder = tmp_path / "data"
    line = [sys.executable, tmp_path / "dying.py", folder, tiny_model]
    done = subprocess.run(line, check=True, timeout=200, capture_output=True, text=True)
    assert done.stdout.startswith("one of the workers=1 was killed, by the system if memory ran")
    # Half of a shard is left under a hidden name, which the next call removes.
    assert [*folder.glob(".shard-000001.tar.*")]
    assert sorted(name for name in read_files(folder) if name[0] != ".") == [MANIFEST, NAMES[0]]
    assert write(folder, make_videos(tiny_model)) == NAMES[1:]
    assert read_files(folder) == read_files(whole)


def test_failed_clip_names_the_shard(tmp_path, tiny_model, monkeypatch):
    made = SyntheticHeLaVideos.clip

    def failing(self, index):
        if index == 6:
            raise OSError(28, "No space left on device")
        return made(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(SyntheticHeLaVideos, "clip", failing)
        with pytest.raises(
            OSError, match=r"No space left.*It is in shard-000001\.tar of .*continues"
        ):
            write(tmp_path, make_videos(tiny_model))
    assert sorted(read_files(tmp_path)) == [MANIFEST, NAMES[0]]
    assert write(tmp_path, make_videos(tiny_model)) == NAMES[1:]


def test_shard_of_faster_process_is_kept(whole, tmp_path, tiny_model, monkeypatch):
    made, folder = SyntheticHeLaVideos.clip, tmp_path / "data"

    def overtaken(self, index):
        if index == 6:
            shutil.copy(whole / NAMES[1], folder)
            for path in folder.glob(".shard-*"):
                path.unlink()
        return made(self, index)

    monkeypatch.setattr(SyntheticHeLaVideos, "clip", overtaken)
    assert write(folder, make_videos(tiny_model)) == [NAMES[0], NAMES[2]]
    assert read_files(folder) == read_files(whole)


def test_more_clips_need_whole_shards(copy, whole, tmp_path, tiny_model):
    folder = tmp_path / "data"
    assert write(folder, make_videos(tiny_model), clips=8) == NAMES[:2]
    assert write(folder, make_videos(tiny_model), clips=10) == NAMES[2:]
    assert read_files(folder) == read_files(whole)
    for clips, words in [
        (11, "clips must be the 10 .*got 11: its last shard is to hold 2 clips, not 4"),
        (8, "clips must be at least the 10 .* got 8; give 10 or more"),
    ]:
        with pytest.raises(ValueError, match=words):
            write(copy, make_videos(tiny_model), clips=clips)
    assert read_files(copy) == read_files(whole)


def test_begun_folder_refuses_other_settings(copy, tiny_model):
    before = read_files(copy)
    for settings, how, words in [
        ({"frames": 3}, {}, r"schema=.*\[2, 1, 40, 40\].* got .*\[3, 1, 40, 40\]"),
        ({"seed": 4}, {}, r"begun with seed=3, got 4; give the same arguments"),
        ({"nuclei": (1, 2)}, {}, r"begun with nuclei=2, got \[1, 2\]"),
        ({"method": "procedural"}, {}, r"method=.*'FastSettings'.*, got .*'ProceduralSettings'"),
        ({"pool": True}, {}, r"begun with pool=None, got {'pairs': 256, 'renew': 1\.0}"),
        ({"length": 12}, {}, r"begun with length=None, got 12"),
        ({}, {"clips_per_shard": 5}, r"begun with clips_per_shard=4, got 5"),
        ({}, {"compress": True}, r"begun with compress=False, got True"),
    ]:
        with pytest.raises(ValueError, match=words):
            write(copy, make_videos(tiny_model, **settings), **how)
    assert read_files(copy) == before


def test_begun_folder_refuses_other_models(copy, tiny_model, tiny_generator, tmp_path):
    videos = make_videos(tiny_model)
    videos.set_epoch(1)
    with pytest.raises(ValueError, match="begun with epoch=0, got 1"):
        write(copy, videos)
    other = tmp_path / "other.safetensors"
    save(replace(tiny_generator, texture=TextureModel(memory=0.5, fresh=0.5)), other)
    with pytest.raises(ValueError, match=r"begun with digest='[0-9a-f]{64}', got '[0-9a-f]{64}'"):
        write(copy, make_videos(other))
    moved = shutil.copy(tiny_model, tmp_path / "moved.safetensors")
    assert write(copy, make_videos(moved)) == []


def test_replaced_model_ends_the_job(tmp_path, tiny_model, tiny_generator, monkeypatch):
    made, path = SyntheticHeLaVideos.clip, shutil.copy(tiny_model, tmp_path / "m.safetensors")

    def replacing(self, index):
        if index == 6:
            save(replace(tiny_generator, texture=replace(tiny_generator.texture, fresh=0.2)), path)
        return made(self, index)

    monkeypatch.setattr(SyntheticHeLaVideos, "clip", replacing)
    words = r"was replaced: .*clip 6 of .*It is in shard-000001\.tar"
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "data", make_videos(path))
    assert sorted(read_files(tmp_path / "data")) == [MANIFEST, NAMES[0]]
    with pytest.raises(ValueError, match=r"begun with digest='[0-9a-f]{64}', got '[0-9a-f]{64}'"):
        write(tmp_path / "data", make_videos(path))


def test_folders_of_other_kinds_are_refused(tmp_path, tiny_model, copy):
    given = {"frames": 1, "size": 40, "sequences": 1, "model": tiny_model, "progress": False}
    export(tmp_path / "videos", **given)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("42")
    for name in ("videos", "thesis"):
        with pytest.raises(ValueError, match=r"must be new, empty.*holds something else"):
            write(tmp_path / name, make_videos(tiny_model))
    with pytest.raises(ValueError, match="holds something else"):
        export(copy, **given)
    assert read_files(tmp_path / "thesis") == {"thesis.tex": b"42"}


def test_damaged_manifest_is_refused(copy, tiny_model):
    whole = (copy / MANIFEST).read_text()
    for old, new, words in [
        ('"seed"', '"sed"', "it lacks 'seed'"),
        ('"clips"', '"clip"', "it lacks 'clips'"),
        ('"settings"', '"setting"', "it lacks 'settings'"),
        ('"size"', '"sizes"', r"it lacks 'settings\.size'"),
        ('"seed": 3', '"seed": "3"', "seed must be int, got '3'"),
        ('"seed": 3', '"seed": true', "seed must be int, got True"),
        ('"seed": 3', '"seed": NaN', "NaN is no number in JSON"),
        ('"nuclei": 2', '"nuclei": {}', r"settings\.nuclei must be int or list or None.*, got {}"),
        ('"model": {', '"model": 3, "x": {', "model must be an object, got 3"),
        ('"model": {', '"model": ' + "[" * 10**5, "recursion depth exceeded"),
        ("{", "", "Extra data"),
        (whole, "7", "no object"),
        (whole, "\udcff", "can't decode byte 0xff"),
    ]:
        (copy / MANIFEST).write_text(whole.replace(old, new, 1), errors="surrogateescape")
        for call in (lambda: read_manifest(copy), lambda: write(copy, make_videos(tiny_model))):
            with pytest.raises(ValueError, match=rf"{MANIFEST} is damaged \(.*{words}") as error:
                call()
            assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"frames": 2', '"frames": 0', "frames must be 1 or more, got 0"),
        ('"variation": 1.0', '"variation": 3', "variation must be from 0 to 1, got 3"),
        ('"variation": 1.0', '"variation": {"haze": 3}', "variation of haze must be from 0 to 1"),
        ('"FastSettings"', '"SlowSettings"', "SlowSettings"),
        ('"kind"', '"speed": 3, "kind"', "unexpected keyword argument 'speed'"),
    ],
)
def test_wrong_settings_name_the_manifest(copy, old, new, words):
    text = (copy / MANIFEST).read_text()
    assert old in text
    (copy / MANIFEST).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"{MANIFEST} is damaged \(.*{words}"):
        read_manifest(copy)


def test_huge_manifest_is_not_read(copy):
    os.truncate(copy / MANIFEST, 2**40)
    with pytest.raises(ValueError, match=r"is damaged \(no regular file of at most"):
        read_manifest(copy)


def test_manifest_records_the_settings(whole, tiny_model):
    manifest = json.loads((whole / MANIFEST).read_text())
    assert manifest["layout"] == "bvdm-data shards 1"
    assert torch.__version__.startswith(manifest["versions"]["torch"])
    assert manifest["model"]["model"] == str(tiny_model)
    assert len(manifest["model"]["digest"]) == 64
    assert (manifest["seed"], manifest["epoch"]) == (3, 0)
    assert manifest["settings"]["size"] == [40, 40]
    assert manifest["schema"]["masks"] == {"dtype": "int32", "shape": [2, 40, 40]}
    assert (manifest["clips"], manifest["clips_per_shard"]) == (10, 4)
    assert manifest["shards"] == {NAMES[0]: [0, 4], NAMES[1]: [4, 8], NAMES[2]: [8, 10]}


@pytest.mark.parametrize(
    "settings",
    [
        {
            "method": FastSettings(steps=2, memory=0.5),
            "nuclei": (1, 3),
            "variation": 0.5,
            "max_cells": 32,
        },
        {"pool": PoolSettings(pairs=4, renew=0.5), "length": 7},
        {"method": PaperSettings(first_steps=2, later_steps=1), "annotations": ANNOTATIONS},
        {"method": "procedural", "size": (40, 48)},
    ],
)
def test_manifest_makes_clips_again(tmp_path, tiny_model, settings):
    videos = make_videos(tiny_model, **settings)
    videos.set_epoch(5)
    (name,) = write(tmp_path, videos, clips=2)
    again = read_manifest(tmp_path)
    clips = list(read_shard(tmp_path / name))
    assert [digest(again.clip(index)) for index in (0, 1)] == [digest(clip) for clip in clips]
    assert digest(clips[1]) == digest(videos.clip(1))


def test_named_model_is_found(tmp_path):
    videos = SyntheticHeLaVideos(frames=1, size=64, method="procedural")
    write(tmp_path, videos, clips=1)
    assert json.loads((tmp_path / MANIFEST).read_text())["model"]["model"] == "hela"
    assert read_manifest(tmp_path).model == videos.model


def test_moved_model_can_be_given(tmp_path, tiny_model, tiny_generator):
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    shutil.copy(tiny_model, here)
    write(tmp_path / "data", make_videos(here), clips=1)
    here.rename(there)
    with pytest.raises(FileNotFoundError, match=r"no model file .*here.*Or give model="):
        read_manifest(tmp_path / "data")
    again = read_manifest(tmp_path / "data", model=there)
    assert digest(again.clip(0)) == digest(make_videos(there).clip(0))
    save(replace(tiny_generator, card={}), there)  # an equal fit
    assert digest(read_manifest(tmp_path / "data", model=there).clip(0)) == digest(again.clip(0))
    save(replace(tiny_generator, texture=TextureModel(memory=0.5, fresh=0.5)), there)
    with pytest.raises(ValueError, match="model must be the one that the clips were made with"):
        read_manifest(tmp_path / "data", model=there)


def test_readers_refuse_other_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="directory must hold shards of write_shards"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text('{"layout": "other"}')
    with pytest.raises(ValueError, match="its layout is 'other' where 'bvdm-data shards 1'"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"path must end in \.tar or \.zip, got 'clips\.npz'"):
        next(read_shard("clips.npz"))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        next(read_shard(tmp_path / NAMES[0]))


@pytest.mark.parametrize(
    ("place", "count"), [("within a member", 2), ("between samples", 1), ("between members", 2)]
)
def test_cut_shard_yields_whole_clips(copy, place, count):
    path = copy / NAMES[0]
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    third = next(one for one in members if one.name == "000000002.video.npy")
    inside = next(one for one in members if one.name == "000000002.tracks.npy")
    ends = {"between samples": third.offset, "between members": inside.offset}
    end = ends.get(place, inside.offset_data + 100)
    path.write_bytes(path.read_bytes()[:end])
    clips = read_shard(path)
    found = [next(clips) for _ in range(count)]
    assert [clip["index"].item() for clip in found] == [*range(count)]
    assert len({frozenset(clip) for clip in found}) == 1
    with pytest.raises(ValueError, match=rf"{NAMES[0]} is damaged, or no shard \(.*makes it again"):
        next(clips)


@pytest.mark.parametrize("suffix", [".tar", pytest.param(".zip", marks=needs_zarr)])
def test_foreign_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"foreign{suffix}"
    (tmp_path / "in" / "note").mkdir(parents=True)
    for content in (b"", b"x" * 2000, "tar", "zip"):
        if isinstance(content, str):
            Path(shutil.make_archive(tmp_path / "made", content, tmp_path / "in")).rename(path)
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"foreign{suffix} is damaged, or no shard \("):
            list(read_shard(path))


@needs_zarr
def test_wrong_byte_in_zarr_is_refused(tmp_path, tiny_model):
    write(tmp_path / "data", make_videos(tiny_model), clips=1, format="zarr")
    path = tmp_path / "data" / "shard-000000.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-000000\.zip is damaged, or no shard \(Bad CRC-32"):
        list(read_shard(path))


@pytest.mark.parametrize("format", FORMATS)
def test_shards_say_what_they_are_of(tmp_path, tiny_model, format):
    videos, ours = make_videos(tiny_model), tmp_path / "ours"
    write(ours, videos, format=format, compress=True)
    write(tmp_path / "theirs", make_videos(tiny_model, seed=4), format=format, compress=True)
    first, second, _ = sorted(ours.glob("shard-*"))
    # A manifest may be lost; what is of another seed, or damaged, is not taken for its own.
    before = read_files(ours)
    (ours / MANIFEST).unlink()
    with pytest.raises(ValueError, match=rf"no {MANIFEST}, and {first.name} is not of this call"):
        write(ours, make_videos(tiny_model, seed=4), format=format, compress=True)
    assert not (ours / MANIFEST).exists()
    assert write(ours, videos, format=format, compress=True) == []
    assert read_files(ours) == before
    good = before[second.name]
    half = len(good) // 1024 * 512
    for content, words in [
        ((tmp_path / "theirs" / second.name).read_bytes(), "clips of other settings"),
        (before[first.name], "it must hold .* arrays|or other clips"),
    ]:
        second.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{second.name} is damaged, or not of .*{words}"):
            write(ours, videos, format=format, compress=True)
    zeros, hole = good[:half] + bytes(len(good) - half), good[:half] + good[half + 1024 :]
    for content in (bytes(len(good)), zeros, hole, good[:half], b""):
        second.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{second.name} is damaged, or not of this call \("):
            write(ours, videos, format=format, compress=True)
        with pytest.raises(ValueError, match=rf"{second.name} is damaged, or no shard \("):
            list(read_shard(second))
    second.unlink()
    os.mkfifo(second)
    with pytest.raises(ValueError, match="no regular file"):
        write(ours, videos, format=format, compress=True)
    (ours / MANIFEST).rename(ours / "kept")
    with pytest.raises(ValueError, match=rf"no {MANIFEST}, and {second.name} is not of this call"):
        write(ours, videos, format=format, compress=True)
    (ours / "kept").rename(ours / MANIFEST)
    second.unlink()
    assert write(ours, videos, format=format, compress=True) == [second.name]
    assert read_files(ours) == before


def test_other_processor_is_refused(copy, tiny_model, monkeypatch):
    machine = planning.describe_cpu()
    monkeypatch.setattr(planning, "describe_cpu", lambda: {**machine, "torch": "OTHER"})
    with pytest.raises(ValueError, match=r"begun with processor=.*, got .*'OTHER'.*other folder"):
        write(copy, make_videos(tiny_model))


def pack(path, **arrays):
    """Write a tar of one clip from the bytes of its members."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in arrays.items():
            member = tarfile.TarInfo(f"000000000.{name}.npy.gz")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_absurd_members_are_refused(tmp_path):
    zeros = io.BytesIO()
    np.save(zeros, np.zeros(4, np.uint8))
    header = zeros.getvalue()[:-4]
    path = tmp_path / "shard-000000.tar"
    (clip,) = read_shard(pack(path, video=gzip.compress(zeros.getvalue())))
    assert clip["video"].tolist() == [0, 0, 0, 0]
    for data, words in [
        (header + bytes(2**26), "must have 4 bytes, got 5 or more"),
        (header.replace(b"(4,), }      ", b"(9" + b"9" * 9 + b",), }")[: len(header)], "(99"),
        (header.replace(b"|u1", b"|O8"), "object"),
        (header, "must have 4 bytes, got 0"),
        (b"\x93NUMPY\x09\x00" + header[8:], "another version"),
    ]:
        pack(path, video=gzip.compress(data))
        with pytest.raises(
            ValueError, match=rf"{path.name} is damaged, or no shard \(.*{re.escape(words)}"
        ):
            list(read_shard(path))
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match="is damaged, or no shard"):
        list(read_shard(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        list(read_shard(path))


@needs_zarr
def test_missing_chunk_is_refused(tmp_path, tiny_model):
    videos = make_videos(tiny_model, nuclei=0)
    write(tmp_path / "data", videos, format="zarr", clips=2, compress=True)
    path = tmp_path / "data" / "shard-000000.zip"
    read = list(read_shard(path))
    assert [digest(clip) for clip in read] == [digest(videos.clip(i)) for i in range(2)]
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        mark = archive.comment
    chunk = members["video/c/1/0/0/0/0"]
    for change, words in [
        ({"masks/c/1/0/0/0": None}, "it lacks 'masks' of its clip number 1"),
        ({"video/c/1/0/0/0/0": chunk[:5] + b"\xff" * 4 + chunk[9:]}, "a chunk must unpack to"),
        ({"video/zarr.json": None}, "it lacks the shape of 'video'"),
    ]:
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = mark
            for name, data in {**members, **change}.items():
                if data is not None:
                    archive.writestr(name, data)
        with pytest.raises(ValueError, match=rf"{path.name} is damaged, or no.*{words}"):
            list(read_shard(path))


def test_bad_argument_makes_no_folder(tmp_path, tiny_model, monkeypatch):
    videos = make_videos(tiny_model)
    monkeypatch.setitem(sys.modules, "zarr", None)
    for given, changes, error, words in [
        (videos, {"clips": None}, ValueError, "clips must be given for an endless data set"),
        (videos, {"clips_per_shard": 1.5}, TypeError, r"clips_per_shard must be a whole number"),
        (videos, {"format": "hdf5"}, ValueError, "format must be 'webdataset' or 'zarr', got 'hd"),
        (videos, {"compress": "gzip"}, TypeError, "compress must be True or False, got 'gzip'"),
        (videos, {"workers": -1}, ValueError, "workers must be 0 or more, got -1"),
        (videos, {"shard": (2, 2)}, ValueError, "shard must be .* got \\(2, 2\\)"),
        (make_videos(tiny_model, transform=print), {}, ValueError,
         r"videos must have no transform, got .*that are read"),
        (videos, {"clips": 10**7}, ValueError, "clips must be at most 1000000 shards, got 10"),
        (make_videos(tiny_model, size=2**16), {}, ValueError, "'video' of a clip must have at"),
        ([], {}, TypeError, "videos must be a SyntheticHeLaVideos, got list"),
        (videos, {"format": "zarr"}, ImportError, r"pip install 'bvdm-data\[shards\]'"),
    ]:  # fmt: skip
        with pytest.raises(error, match=words):
            write(tmp_path / "data", given, **changes)
    assert not (tmp_path / "data").exists()


def test_command_writes_and_continues(tmp_path, tiny_model):
    line = ["shards", tmp_path / "data", "--model", tiny_model, "--clips", 3, "--quiet"]
    line += ["--clips-per-shard", 2, "--frames", 1, "--size", "40x40", "--nuclei", "1-2"]
    line += ["--annotations", "all", "--max-cells", 29, "--epoch", 4, "--pool", "--seed", 2]
    line = [str(word) for word in line]
    result = CliRunner().invoke(cli, line, catch_exceptions=False)
    assert result.output == f"wrote 2 shards to {tmp_path / 'data'}\n"
    again = CliRunner().invoke(cli, line, catch_exceptions=False)
    assert again.output == f"wrote nothing: all is there to {tmp_path / 'data'}\n"
    videos = read_manifest(tmp_path / "data")
    assert (videos.epoch, videos.seed, videos.nuclei, videos.max_cells) == (4, 2, (1, 2), 29)
    assert videos.pool == PoolSettings()
    assert videos.annotations == ANNOTATIONS
    (clip,) = read_shard(tmp_path / "data" / NAMES[1])
    assert digest(clip) == digest(videos.clip(2))


@left_open
def test_example_learns_from_shards(tmp_path, capsys):
    pytest.importorskip("webdataset", reason="needs the extra shards")
    main = runpy.run_path(str(ROOT / "examples" / "train_from_shards.py"))["main"]
    small = ["--frames", "2", "--size", "64", "--clips", "12", "--batch-size", "2"]
    losses = main([*small, "--steps", "16", "--workers", "0", "--folder", str(tmp_path / "data")])
    assert statistics.median(losses[-6:]) < 0.7 * statistics.median(losses[:3])
    assert capsys.readouterr().out.startswith("wrote 2 shards\n")
    main([*small, "--steps", "1", "--workers", "0", "--folder", str(tmp_path / "data")])
    assert capsys.readouterr().out.startswith("wrote 0 shards\n")


@left_open
def test_documented_snippet_reads_shards(tmp_path, monkeypatch):
    pytest.importorskip("webdataset", reason="needs the extra shards")
    page = (ROOT / "docs" / "consumers.md").read_text()
    section = page.partition("## Shards on disk")[2].partition("\n## ")[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "docs/consumers.md", "exec"), {})
    assert len(list((tmp_path / "shards").glob("shard-*.tar"))) == 2


def test_scaling_page_shows_its_results():
    results = json.loads(scaling.RESULTS.read_text())
    page = scaling.PAGE.read_text()
    assert filled(page, results) == page
    page = "".join(f"before\n<!-- table: {name} -->\nold\n<!-- end -->\n" for name in TABLES)
    new = filled(page, results)
    assert "old" not in new
    assert new.count("before\n<!-- table: ") == len(TABLES)
    assert filled(new, results) == new
    with pytest.raises(ValueError, match="marks of the table 'about' once"):
        filled("", results)


@left_open
def test_scaling_measures_both_formats(tmp_path, monkeypatch):
    pytest.importorskip("webdataset", reason="needs the extra shards")
    pytest.importorskip("zarr", minversion="3", reason="needs the extra shards")
    monkeypatch.setitem(scaling.KINDS, "tiny", {"size": 64, "nuclei": 1, "frames": 1})
    monkeypatch.setattr(scaling, "STORED", 2)
    found = scaling.measure("tiny", 0.0)
    assert list(found["stored"]) == [
        "webdataset", "webdataset, compressed", "zarr", "zarr, compressed"
    ]  # fmt: skip
    for one in found["stored"].values():
        assert min(one.values()) > 0
    assert found["stored"]["zarr, compressed"]["bytes"] < found["stored"]["zarr"]["bytes"]
    table = scaling.videos_of("tiny").max_cells * 16
    assert found["stored"]["webdataset"]["bytes"] > found["bytes"] == 2 * 64 * 64 * 4 + table + 9
