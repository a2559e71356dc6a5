import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from bvdm_data import CTCVideos, MixedVideos, SyntheticHeLaVideos
from bvdm_data.evaluation.clip_cache import cache_clips, cache_json, hash_clips, replace_nan


class Counted:
    """A data set that remembers which clips were asked for."""

    def __init__(self, source):
        self.source, self.asked = source, []

    def __getattr__(self, name):
        return getattr(self.source, name)

    def clip(self, index):
        self.asked.append(index)
        return self.source.clip(index)


@pytest.fixture
def source(tiny_ctc):
    return Counted(CTCVideos(tiny_ctc, frames=2, size=(64, 64), border=0, max_cells=8))


def cache(source, count, folder, settings=None, **options):
    return cache_clips(source, count, folder, settings=settings or {}, progress=False, **options)


def test_cached_clips_equal_the_data_set(source, tmp_path):
    cached = cache(source, 3, tmp_path)
    assert len(cached) == 3
    for index in range(3):
        clip = source.source.clip(index)
        assert list(cached[index]) == list(clip)
        for key, value in clip.items():
            assert cached[index][key].dtype == value.dtype
            assert torch.equal(cached[index][key], value)
    assert torch.equal(cached.clip(5)["video"], cached[2]["video"])
    mix = MixedVideos({"cached": cached, "real": source.source})
    assert {int(mix.clip(index)["source"]) for index in range(4)} == {0}


def test_only_missing_clips_are_made(source, tmp_path):
    few = cache(source, 2, tmp_path)
    source.asked = []
    more = cache(source, 4, tmp_path)
    assert (few.key, few.folder, source.asked) == (more.key, more.folder, [0, 2, 3])
    (more.folder / "clip_00001.safetensors").unlink()
    source.asked = []
    again = cache(source, 3, tmp_path)
    assert source.asked == [0, 1]
    assert torch.equal(again[1]["video"], source.source.clip(1)["video"])
    source.asked, probe = [], Counted(source.source)
    cache(source, 3, tmp_path, probe=probe)  # takes the place of a costly first clip
    assert (source.asked, probe.asked) == ([], [0])


def test_key_depends_on_settings_and_clips(source, tiny_ctc, tmp_path):
    other = CTCVideos(tiny_ctc, frames=2, size=(64, 64), border=0, max_cells=8, seed=5)
    cases = (source, {"a": 1}), (source, {"a": 2}), (other, {"a": 1})
    first, *others = (cache(clips, 1, tmp_path, settings) for clips, settings in cases)
    assert len({first.key, *(one.key for one in others)}) == 3
    assert json.loads((first.folder / "settings.json").read_text()) == {"a": 1}


def test_workers_make_the_same_clips(tiny_model, tmp_path):
    videos = SyntheticHeLaVideos(frames=2, size=(96, 96), model=tiny_model, nuclei=2)
    alone = cache(videos, 3, tmp_path / "a")
    shared = cache(videos, 3, tmp_path / "b", workers=2)
    assert [hash_clips(alone[i]) for i in range(3)] == [hash_clips(shared[i]) for i in range(3)]


def test_bad_clips_are_refused(source, tmp_path):
    cached = cache(source, 1, tmp_path)
    with pytest.raises(IndexError, match="from 0 to 0, got 1"):
        cached[1]
    path = cached.folder / "clip_00000.safetensors"
    whole = load_file(path)
    for changes, why in (
        ({"video": whole["video"][:1]}, r"'video' must be \(2, 1, 64, 64\), got \(1, 1, 64, 64\)"),
        ({"video": whole["video"] * torch.nan}, "'video' must hold grey values from 0 to 1"),
        ({"masks": whole["masks"][0]}, "'masks' must be"),
        ({"tracks": None}, "no 'tracks'"),
    ):
        tensors = {key: value for key, value in (whole | changes).items() if value is not None}
        save_file(tensors, path)
        with pytest.raises(ValueError, match=rf"clip_00000\.safetensors is damaged \({why}"):
            cached[0]
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"clip_00000\.safetensors is damaged"):
        cached[0]
    (cached.folder / "settings.json").write_text('{"frames": 3}')
    with pytest.raises(
        ValueError,
        match=r"settings\.json is damaged \(it must hold \{\}\); remove",
    ):
        cache(source, 1, tmp_path)


def test_json_is_computed_once(tmp_path):
    path = tmp_path / "below" / "a.json"
    assert cache_json(path, lambda: {"a": math.nan, "b": (1.5,)}) == {"a": None, "b": [1.5]}
    assert cache_json(path, pytest.fail) == {"a": None, "b": [1.5]}
    assert replace_nan({"a": [1.0, math.nan], "b": (math.nan,)}) == {"a": [1.0, None], "b": [None]}
