import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from bvdm_data import (
    FastSettings,
    PaperSettings,
    PoolSettings,
    ProceduralSettings,
    SyntheticHeLaVideos,
)
from bvdm_data.cli import cli
from bvdm_data.clip import ANNOTATIONS
from bvdm_data.datasets.export import export
from bvdm_data.files import MANIFEST
from bvdm_data.storage import as_clip, read_manifest, read_shard, write_shards
from bvdm_data.storage import shards as writing
from bvdm_data.storage.shards import get_schema
from bvdm_data.weights import save
from tests.helpers.streams import digest

needs_zarr = pytest.mark.skipif(sys.version_info < (3, 11), reason="zarr 3 needs Python 3.11")
left_open = pytest.mark.filterwarnings(
    "ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # by webdataset
FORMATS = ["webdataset", pytest.param("zarr", marks=needs_zarr)]
SMALL = {"frames": 2, "size": 40, "nuclei": 2, "max_cells": 16, "seed": 3}
NAMES = ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]


def small(model, **changes):
    return SyntheticHeLaVideos(model=model, **{**SMALL, **changes})


def written(folder, videos, **changes):
    given = {"clips": 10, "clips_per_shard": 4, "compress": False, "progress": False}
    return write_shards(videos, folder, **{**given, **changes})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """Return a folder of three shards with 4, 4 and 2 clips; do not change it."""
    folder = tmp_path_factory.mktemp("shards") / "data"
    assert written(folder, small(tiny_model)) == NAMES
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


# Contents


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_shards_hold_the_clips_of_the_data_set(tmp_path, tiny_model, format, compress):
    videos = small(tiny_model, annotations=ANNOTATIONS)
    names = written(tmp_path, videos, clips=5, format=format, compress=compress)
    assert len(names) == 2
    read = [clip for name in names for clip in read_shard(tmp_path / name)]
    assert [int(clip["index"]) for clip in read] == [0, 1, 2, 3, 4]
    for index, clip in enumerate(read):
        one = videos.clip(index)
        assert {key: (t.dtype, t.shape) for key, t in clip.items()} == {
            key: (t.dtype, t.shape) for key, t in one.items()
        }
        assert digest(clip) == digest(one)


@pytest.mark.parametrize("format", FORMATS)
def test_compressed_shards_are_smaller(tmp_path, tiny_model, format):
    sizes = []
    for compress in (False, True):
        folder = tmp_path / str(compress)
        (name,) = written(folder, small(tiny_model), clips=2, format=format, compress=compress)
        sizes.append((folder / name).stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]


@left_open
@pytest.mark.parametrize("compress", [False, True])
def test_the_package_webdataset_reads_equal_tensors(tmp_path, tiny_model, compress):
    webdataset = pytest.importorskip("webdataset", reason="needs the extra shards")
    videos = small(tiny_model, annotations=ANNOTATIONS)
    written(tmp_path, videos, compress=compress)
    shards = str(tmp_path / "shard-{000000..000002}.tar")
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode().map(as_clip))
    assert [clip.pop("__key__") for clip in found] == [f"{i:09d}" for i in range(10)]
    assert [digest(clip) for clip in found] == [digest(videos.clip(i)) for i in range(10)]
    assert all(isinstance(value, torch.Tensor) for value in found[0].values())


@left_open
def test_a_sample_that_was_not_decoded_is_refused(whole):
    webdataset = pytest.importorskip("webdataset", reason="needs the extra shards")
    raw = webdataset.WebDataset(str(whole / NAMES[0]), shardshuffle=False)
    with pytest.raises(TypeError, match=r"'video' is bytes; write WebDataset\(\.\.\.\)\.decode"):
        as_clip(next(iter(raw)))


@needs_zarr
def test_the_package_zarr_opens_a_shard_as_a_group_with_a_chunk_a_clip(tmp_path, tiny_model):
    zarr = pytest.importorskip("zarr", reason="needs the extra shards")
    videos = small(tiny_model)
    written(tmp_path, videos, format="zarr")
    with zarr.storage.ZipStore(tmp_path / "shard-000001.zip", mode="r") as store:
        group = zarr.open_group(store, mode="r")
        assert sorted(group.array_keys()) == ["index", "masks", "source", "tracks", "video"]
        assert group["video"].shape == (4, 2, 1, 40, 40)
        assert group["video"].chunks == (1, 2, 1, 40, 40)
        assert group["index"][:].tolist() == [4, 5, 6, 7]
        assert (group["masks"][2] == videos.clip(6)["masks"].numpy()).all()


@pytest.mark.parametrize("frames", [1, 3])
def test_the_schema_is_that_of_the_clips(tiny_model, frames):
    videos = small(tiny_model, frames=frames, annotations=ANNOTATIONS)
    clip = videos.clip(0)
    assert get_schema(videos) == {
        key: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        for key, value in clip.items()
    }
    assert set(get_schema(small(tiny_model, annotations=()))) == {"video", "index", "source"}


@pytest.mark.parametrize("format", FORMATS)
def test_a_clip_of_one_frame_has_no_flow_and_is_stored_all_the_same(tmp_path, tiny_model, format):
    videos = small(tiny_model, frames=1, annotations=("flow",))
    (name,) = written(tmp_path, videos, clips=1, format=format)
    (clip,) = read_shard(tmp_path / name)
    assert clip["flow"].shape == (0, 2, 40, 40)


# Who makes them


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_shards_are_byte_for_byte_the_same_whoever_made_them_and_when(
    tmp_path, tiny_model, format, compress, monkeypatch
):
    videos = small(tiny_model, pool=PoolSettings(pairs=3))
    how = {"format": format, "compress": compress}
    one, other = tmp_path / "one", tmp_path / "other"
    assert len(written(one, videos, **how)) == 3
    monkeypatch.setattr(time, "time", lambda: 1e9)
    for rank in (1, 0):
        writing._load_videos.cache_clear()
        assert len(written(other, videos, shard=(rank, 2), **how)) == 2 - rank
    assert contents(one) == contents(other)


def test_ranks_of_torchrun_share_the_shards_out(whole, tmp_path, tiny_model):
    folder = tmp_path / "data"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "bvdm_data.cli", "shards", folder, "--clips", 10, "--clips-per-shard", 4]
    settings = ["--no-compress", "--frames", 2, "--size", "40x40", "--nuclei", 2, "--max-cells", 16]
    line = [*torchrun, *command, *settings, "--seed", 3, "--model", tiny_model]
    done = subprocess.run(
        [str(word) for word in line], check=True, timeout=300, capture_output=True, text=True
    )
    assert sorted(done.stdout.split("\n"))[1:] == [
        f"wrote 1 shard to {folder}",
        f"wrote 2 shards to {folder}",
    ]
    assert contents(folder) == contents(whole)


def test_a_rank_writes_its_own_shards_alone(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert written(tmp_path, small(tiny_model)) == [NAMES[1]]
    assert sorted(contents(tmp_path)) == [MANIFEST, NAMES[1]]


def test_a_pooled_clip_of_a_shard_is_that_of_the_stream(tmp_path, tiny_model):
    videos = small(tiny_model, pool=PoolSettings(pairs=3), length=20)
    videos.set_epoch(2)
    written(tmp_path, videos, clips=12, shard=(2, 3))
    clips = list(read_shard(tmp_path / NAMES[2]))
    again = small(tiny_model, pool=PoolSettings(pairs=3), length=20)
    again.set_epoch(2)
    assert [digest(clip) for clip in clips] == [digest(again.clip(i)) for i in range(8, 12)]


# Going on


def test_a_second_start_writes_nothing(copy, tiny_model, monkeypatch):
    before = contents(copy)
    monkeypatch.setattr(SyntheticHeLaVideos, "clip", lambda *_: pytest.fail("made again"))
    assert written(copy, small(tiny_model)) == []
    assert contents(copy) == before


def test_a_shard_that_was_removed_is_made_again(copy, whole, tiny_model):
    (copy / NAMES[1]).unlink()
    assert written(copy, small(tiny_model)) == [NAMES[1]]
    assert contents(copy) == contents(whole)


SLOW = """
import sys, time
from bvdm_data import SyntheticHeLaVideos
from bvdm_data.storage import write_shards
clip = SyntheticHeLaVideos.clip
def slow(self, index):
    if index == 6:
        time.sleep(60)
    return clip(self, index)
SyntheticHeLaVideos.clip = slow
given = {"frames": 2, "size": 40, "nuclei": 2, "max_cells": 16, "seed": 3}
videos = SyntheticHeLaVideos(model=sys.argv[2], **given)
how = {"clips": 10, "clips_per_shard": 4, "compress": False, "progress": False}
write_shards(videos, sys.argv[1], **how)
"""


def test_a_start_that_was_killed_leaves_no_half_shard_and_the_next_one_goes_on(
    whole, tmp_path, tiny_model
):
    folder = tmp_path / "data"
    with subprocess.Popen([sys.executable, "-c", SLOW, str(folder), str(tiny_model)]) as process:
        until, half = time.monotonic() + 60, []
        while not (half and half[0].stat().st_size) and time.monotonic() < until:
            time.sleep(0.02)
            half = list(folder.glob(".shard-000001-*.tar"))
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert half[0].stat().st_size > 0
    assert sorted(contents(folder)) == sorted([half[0].name, MANIFEST, NAMES[0]])
    assert written(folder, small(tiny_model)) == NAMES[1:]
    assert contents(folder) == contents(whole)


DYING = """
import os, signal, sys
from bvdm_data import SyntheticHeLaVideos
from bvdm_data.storage import write_shards
clip = SyntheticHeLaVideos.clip
def dying(self, index):
    if index == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return clip(self, index)
SyntheticHeLaVideos.clip = dying
if __name__ == "__main__":
    given = {"frames": 2, "size": 40, "nuclei": 2, "max_cells": 16, "seed": 3}
    videos = SyntheticHeLaVideos(model=sys.argv[2], **given)
    how = {"clips": 10, "clips_per_shard": 4, "compress": False, "progress": False}
    try:
        write_shards(videos, sys.argv[1], workers=1, **how)
    except ChildProcessError as error:
        print(error)
"""


def test_a_worker_that_was_killed_is_told_and_the_next_start_makes_its_shard(
    whole, tmp_path, tiny_model
):
    (tmp_path / "dying.py").write_text(DYING)
    folder = tmp_path / "data"
    line = [sys.executable, tmp_path / "dying.py", folder, tiny_model]
    done = subprocess.run(line, check=True, timeout=200, capture_output=True, text=True)
    assert done.stdout.startswith("one of the workers=1 was killed, by the system if memory ran")
    assert sorted(name for name in contents(folder) if name[0] != ".") == [MANIFEST, NAMES[0]]
    assert written(folder, small(tiny_model)) == NAMES[1:]
    assert contents(folder) == contents(whole)


def test_a_clip_that_fails_leaves_no_half_shard_and_names_the_shard(
    tmp_path, tiny_model, monkeypatch
):
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
            written(tmp_path, small(tiny_model))
    assert sorted(contents(tmp_path)) == [MANIFEST, NAMES[0]]
    assert written(tmp_path, small(tiny_model)) == NAMES[1:]


def test_a_shard_that_somebody_else_finished_first_is_theirs(
    whole, tmp_path, tiny_model, monkeypatch
):
    made, folder = SyntheticHeLaVideos.clip, tmp_path / "data"

    def overtaken(self, index):
        if index == 6:
            shutil.copy(whole / NAMES[1], folder)
            for path in folder.glob(".shard-*"):
                path.unlink()
        return made(self, index)

    monkeypatch.setattr(SyntheticHeLaVideos, "clip", overtaken)
    assert written(folder, small(tiny_model)) == [NAMES[0], NAMES[2]]
    assert contents(folder) == contents(whole)


def test_more_clips_may_be_asked_for_after_whole_shards(whole, tmp_path, tiny_model):
    folder = tmp_path / "data"
    assert written(folder, small(tiny_model), clips=8) == NAMES[:2]
    assert written(folder, small(tiny_model), clips=10) == NAMES[2:]
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        (11, "clips must be the 10 .*got 11: its last shard is to hold 2 clips, not 4"),
        (8, "clips must be at least the 10 .* got 8; give 10 or more"),
    ],
)
def test_other_numbers_of_clips_are_refused(copy, tiny_model, clips, words):
    before = contents(copy)
    with pytest.raises(ValueError, match=words):
        written(copy, small(tiny_model), clips=clips)
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("settings", "how", "words"),
    [
        ({"frames": 3}, {}, r"schema=.*\[2, 1, 40, 40\].* got .*\[3, 1, 40, 40\]"),
        ({"seed": 4}, {}, r"begun with seed=3, got 4; give the same arguments"),
        ({"nuclei": (1, 2)}, {}, r"begun with nuclei=2, got \[1, 2\]"),
        (
            {"method": "procedural"},
            {},
            r"with method=.*'FastSettings'.*, got .*'ProceduralSettings'",
        ),
        ({"variation": 0}, {}, r"begun with variation=1\.0, got 0\.0"),
        ({"annotations": ("tracks", "masks", "boxes")}, {}, r"begun with schema="),
        ({"pool": True}, {}, r"begun with pool=None, got {'pairs': 256, 'renew': 1\.0}"),
        ({"length": 12}, {}, r"begun with length=None, got 12"),
        ({}, {"clips_per_shard": 5}, r"begun with clips_per_shard=4, got 5"),
        ({}, {"compress": True}, r"begun with compress=False, got True"),
        ({}, {"format": "zarr"}, r"begun with format='webdataset', got 'zarr'"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(copy, tiny_model, settings, how, words):
    before = contents(copy)
    if how.get("format") == "zarr":
        pytest.importorskip("zarr", minversion="3", reason="needs the extra shards")
    with pytest.raises(ValueError, match=words):
        written(copy, small(tiny_model, **settings), **how)
    assert contents(copy) == before


def test_another_epoch_or_model_in_the_same_folder_is_refused(
    copy, tiny_model, tiny_generator, tmp_path
):
    videos = small(tiny_model)
    videos.set_epoch(1)
    with pytest.raises(ValueError, match="begun with epoch=0, got 1"):
        written(copy, videos)
    other = tmp_path / "other.safetensors"
    save(replace(tiny_generator, card={}), other)
    with pytest.raises(ValueError, match=r"begun with digest='[0-9a-f]{64}', got '[0-9a-f]{64}'"):
        written(copy, small(other))
    moved = shutil.copy(tiny_model, tmp_path / "moved.safetensors")
    assert written(copy, small(moved)) == []


def test_a_folder_that_holds_something_else_is_refused(tmp_path, tiny_model):
    (tmp_path / "thesis.tex").write_text("42")
    with pytest.raises(ValueError, match=r"directory must be new, empty.*holds something else"):
        written(tmp_path, small(tiny_model))
    assert contents(tmp_path) == {"thesis.tex": b"42"}
    export(tmp_path / "videos", frames=1, size=40, sequences=1, model=tiny_model, progress=False)
    with pytest.raises(ValueError, match="holds something else"):
        written(tmp_path / "videos", small(tiny_model))


def test_export_refuses_a_folder_of_shards(copy, tiny_model):
    with pytest.raises(ValueError, match="holds something else"):
        export(copy, frames=1, size=40, sequences=1, model=tiny_model, progress=False)


@pytest.mark.parametrize("text", ["", "{"])
def test_a_damaged_manifest_is_refused(copy, tiny_model, text):
    (copy / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        written(copy, small(tiny_model))
    with pytest.raises(ValueError, match="is damaged"):
        read_manifest(copy)


@pytest.mark.parametrize("lacking", ["settings", "model", "seed", "size", "clips"])
def test_a_manifest_that_lacks_an_entry_is_refused(copy, tiny_model, lacking):
    said = json.loads((copy / MANIFEST).read_text())
    (said if lacking in said else said["settings"]).pop(lacking)
    (copy / MANIFEST).write_text(json.dumps(said))
    if lacking == "clips":
        with pytest.raises(ValueError, match=r"is damaged \(it lacks 'clips'\)"):
            written(copy, small(tiny_model))
    else:
        with pytest.raises(ValueError, match=rf"is damaged \(it lacks '{lacking}'\)"):
            read_manifest(copy)


# Manifest


def test_the_manifest_tells_all_that_clips_follow_from(whole, tiny_model):
    said = json.loads((whole / MANIFEST).read_text())
    assert said["layout"] == "bvdm-data shards 1"
    assert torch.__version__.startswith(said["versions"]["torch"])
    assert said["model"]["model"] == str(tiny_model)
    assert len(said["model"]["digest"]) == 64
    assert (said["seed"], said["epoch"]) == (3, 0)
    assert said["settings"]["size"] == [40, 40]
    assert said["schema"]["masks"] == {"dtype": "int32", "shape": [2, 40, 40]}
    assert (said["clips"], said["clips_per_shard"]) == (10, 4)
    assert said["shards"] == {NAMES[0]: [0, 4], NAMES[1]: [4, 8], NAMES[2]: [8, 10]}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": FastSettings(steps=2, memory=0.5), "nuclei": (1, 3), "variation": 0.5},
        {"pool": PoolSettings(pairs=4, renew=0.5), "length": 7},
        {"method": PaperSettings(first_steps=2, later_steps=1), "annotations": ANNOTATIONS},
        {"method": ProceduralSettings(grain=2, nucleoli=(0, 1)), "size": (40, 48)},
    ],
    ids=["plain", "fast", "pool", "paper", "procedural"],
)
def test_any_clip_is_made_again_from_the_manifest(tmp_path, tiny_model, settings):
    videos = small(tiny_model, **settings)
    videos.set_epoch(5)
    (name,) = written(tmp_path, videos, clips=2)
    again = read_manifest(tmp_path)
    clips = list(read_shard(tmp_path / name))
    assert [digest(again.clip(index)) for index in (0, 1)] == [digest(clip) for clip in clips]
    assert digest(clips[1]) == digest(videos.clip(1))


def test_a_model_with_a_name_is_found_by_it(tmp_path):
    videos = SyntheticHeLaVideos(frames=1, size=64, method="procedural")
    written(tmp_path, videos, clips=1)
    assert json.loads((tmp_path / MANIFEST).read_text())["model"]["model"] == "hela"
    assert read_manifest(tmp_path).model == videos.model


def test_a_manifest_whose_model_is_elsewhere_takes_its_file(tmp_path, tiny_model, tiny_generator):
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    shutil.copy(tiny_model, here)
    written(tmp_path / "data", small(here), clips=1)
    here.rename(there)
    with pytest.raises(FileNotFoundError, match=r"no model file .*here.*Or give model="):
        read_manifest(tmp_path / "data")
    again = read_manifest(tmp_path / "data", model=there)
    assert digest(again.clip(0)) == digest(small(there).clip(0))
    save(replace(tiny_generator, card={}), there)
    with pytest.raises(ValueError, match="model must be the one that the clips were made with"):
        read_manifest(tmp_path / "data", model=there)


def test_a_folder_without_a_manifest_of_shards_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="directory must hold shards of write_shards"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text('{"layout": "other"}')
    with pytest.raises(ValueError, match="its layout is 'other' where 'bvdm-data shards 1'"):
        read_manifest(tmp_path)


def test_what_is_no_shard_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.tar or \.zip, got 'clips\.npz'"):
        next(read_shard("clips.npz"))
    with pytest.raises(FileNotFoundError, match="there is no shard"):
        next(read_shard(tmp_path / NAMES[0]))


@pytest.mark.parametrize(
    ("place", "count"), [("within a member", 2), ("between samples", 1), ("between members", 2)]
)
def test_a_shard_that_was_cut_off_gives_no_clip_in_part_and_an_error(copy, place, count):
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


@pytest.mark.parametrize("content", [b"", b"x" * 2000, "tar", "zip"])
@pytest.mark.parametrize("suffix", [".tar", pytest.param(".zip", marks=needs_zarr)])
def test_a_file_that_holds_no_shard_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"foreign{suffix}"
    (tmp_path / "note").write_text("text")
    if content == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "note", "note")
    elif content == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "note", "note")
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"foreign{suffix} is damaged, or no shard \("):
        list(read_shard(path))


@needs_zarr
def test_a_zarr_shard_with_a_wrong_byte_is_refused(tmp_path, tiny_model):
    written(tmp_path / "data", small(tiny_model), clips=1, format="zarr")
    path = tmp_path / "data" / "shard-000000.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-000000\.zip is damaged, or no shard \(Bad CRC-32"):
        list(read_shard(path))


# Arguments


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"clips": None}, ValueError, "clips must be given for an endless data set"),
        ({"clips": 0}, ValueError, "clips must be 1 or more, got 0"),
        ({"clips_per_shard": 0}, ValueError, "clips_per_shard must be 1 or more, got 0"),
        ({"clips_per_shard": 1.5}, TypeError, r"clips_per_shard must be a whole number, got 1\.5"),
        ({"format": "hdf5"}, ValueError, "format must be 'webdataset' or 'zarr', got 'hdf5'"),
        ({"compress": "gzip"}, TypeError, "compress must be True or False, got 'gzip'"),
        ({"workers": -1}, ValueError, "workers must be 0 or more, got -1"),
        ({"shard": (2, 2)}, ValueError, "shard must be .* got \\(2, 2\\)"),
    ],
)
def test_a_bad_argument_is_refused_before_the_folder_is_made(
    tmp_path, tiny_model, changes, error, words
):
    with pytest.raises(error, match=words):
        written(tmp_path / "data", small(tiny_model), **changes)
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_told_in_a_manifest_is_refused(tmp_path, tiny_model):
    with pytest.raises(ValueError, match=r"videos must have no transform, got .*that are read"):
        written(tmp_path / "data", small(tiny_model, transform=lambda clip: clip))
    with pytest.raises(TypeError, match="videos must be a SyntheticHeLaVideos, got list"):
        written(tmp_path / "data", [])
    assert not (tmp_path / "data").exists()


def test_the_length_of_the_data_set_is_the_number_of_clips_where_none_is_given(
    tmp_path, tiny_model
):
    assert written(tmp_path, small(tiny_model, length=3), clips=None) == NAMES[:1]
    assert len(list(read_shard(tmp_path / NAMES[0]))) == 3


def test_zarr_that_is_missing_is_asked_for_by_its_extra(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install 'bvdm-data\[shards\]'"):
        written(tmp_path / "data", small(tiny_model), format="zarr")
    assert not (tmp_path / "data").exists()


def test_the_command_writes_shards_and_goes_on(tmp_path, tiny_model):
    line = ["shards", tmp_path / "data", "--model", tiny_model, "--clips", 3, "--quiet"]
    line += ["--clips-per-shard", 2, "--frames", 1, "--size", "40x40", "--nuclei", "1-2"]
    line += ["--annotations", "all", "--max-cells", 9, "--epoch", 4, "--pool", "--seed", 2]
    line = [str(word) for word in line]
    result = CliRunner().invoke(cli, line, catch_exceptions=False)
    assert result.output == f"wrote 2 shards to {tmp_path / 'data'}\n"
    again = CliRunner().invoke(cli, line, catch_exceptions=False)
    assert again.output == f"wrote nothing: all is there to {tmp_path / 'data'}\n"
    videos = read_manifest(tmp_path / "data")
    assert (videos.epoch, videos.seed, videos.nuclei, videos.max_cells) == (4, 2, (1, 2), 9)
    assert videos.pool == PoolSettings()
    assert videos.annotations == ANNOTATIONS
    (clip,) = read_shard(tmp_path / "data" / NAMES[1])
    assert digest(clip) == digest(videos.clip(2))
