import json

import pytest
import torch

from bvdm_data import CTCVideos, MixedVideos, SyntheticHeLaVideos
from bvdm_data.evaluation.clip_cache import cache_clips, hash_clips


class Counted:
    """A data set that remembers which clips were asked for."""

    def __init__(self, source):
        self.source = source
        self.asked = []
        for name in ("frames", "size", "annotations", "max_cells", "scale"):
            setattr(self, name, getattr(source, name))

    def clip(self, index):
        self.asked.append(index)
        return self.source.clip(index)

    def set_epoch(self, epoch):
        self.source.set_epoch(epoch)


@pytest.fixture
def source(tiny_ctc):
    return Counted(CTCVideos(tiny_ctc, frames=2, size=(64, 64), border=0, max_cells=8))


def test_kept_clips_are_those_of_the_data_set(source, tmp_path):
    kept = cache_clips(source, 3, tmp_path, settings={"a": 1}, progress=False)
    assert len(kept) == 3
    for number in range(3):
        wanted = source.source.clip(number)
        assert list(kept[number]) == list(wanted)
        for key, value in wanted.items():
            assert kept[number][key].dtype == value.dtype
            assert torch.equal(kept[number][key], value)


def test_a_second_call_makes_the_first_clip_alone(source, tmp_path):
    cache_clips(source, 3, tmp_path, settings={}, progress=False)
    source.asked.clear()
    cache_clips(source, 3, tmp_path, settings={}, progress=False)
    assert source.asked == [0]


def test_a_larger_count_adds_what_is_missing_and_keeps_the_place(source, tmp_path):
    few = cache_clips(source, 2, tmp_path, settings={}, progress=False)
    source.asked.clear()
    more = cache_clips(source, 4, tmp_path, settings={}, progress=False)
    assert source.asked == [0, 2, 3]
    assert (few.key, few.folder) == (more.key, more.folder)


def test_a_killed_call_goes_on_where_it_was(source, tmp_path):
    whole = cache_clips(source, 3, tmp_path, settings={}, progress=False)
    (whole.folder / "clip_00001.safetensors").unlink()
    source.asked.clear()
    again = cache_clips(source, 3, tmp_path, settings={}, progress=False)
    assert source.asked == [0, 1]
    assert torch.equal(again[1]["video"], source.source.clip(1)["video"])


def test_other_settings_and_other_clips_are_kept_elsewhere(source, tiny_ctc, tmp_path):
    one = cache_clips(source, 1, tmp_path, settings={"a": 1}, progress=False)
    two = cache_clips(source, 1, tmp_path, settings={"a": 2}, progress=False)
    other = CTCVideos(tiny_ctc, frames=2, size=(64, 64), border=0, max_cells=8, seed=5)
    three = cache_clips(other, 1, tmp_path, settings={"a": 1}, progress=False)
    assert len({one.key, two.key, three.key}) == 3
    assert json.loads((one.folder / "settings.json").read_text()) == {"a": 1}


def test_a_probe_stands_in_for_a_costly_first_clip(source, tmp_path):
    probe = Counted(source.source)
    cache_clips(source, 1, tmp_path, settings={}, probe=probe, progress=False)
    source.asked.clear()
    probe.asked.clear()
    cache_clips(source, 1, tmp_path, settings={}, probe=probe, progress=False)
    assert (source.asked, probe.asked) == ([], [0])


def test_workers_keep_the_same_clips(tiny_model, tmp_path):
    videos = SyntheticHeLaVideos(frames=2, size=(96, 96), model=tiny_model, nuclei=2)
    alone = cache_clips(videos, 3, tmp_path / "a", settings={}, progress=False)
    shared = cache_clips(videos, 3, tmp_path / "b", settings={}, workers=2, progress=False)
    assert [hash_clips(alone[i]) for i in range(3)] == [hash_clips(shared[i]) for i in range(3)]


def test_kept_clips_are_endless_and_can_be_mixed(source, tmp_path):
    kept = cache_clips(source, 2, tmp_path, settings={}, progress=False)
    assert torch.equal(kept.clip(5)["video"], kept[1]["video"])
    mix = MixedVideos({"kept": kept, "real": source.source})
    assert {int(mix.clip(number)["source"]) for number in range(4)} == {0}


def test_keys_can_be_left_out(source, tmp_path):
    kept = cache_clips(source, 1, tmp_path, settings={}, progress=False)
    assert list(kept.only(("masks",))[0]) == ["video", "masks", "index", "source"]
    assert "tracks" in kept[0]


def test_a_damaged_file_is_named(source, tmp_path):
    kept = cache_clips(source, 1, tmp_path, settings={}, progress=False)
    path = kept.folder / "clip_00000.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"clip_00000\.safetensors is damaged"):
        kept[0]


def test_numbers_out_of_range_are_refused(source, tmp_path):
    kept = cache_clips(source, 1, tmp_path, settings={}, progress=False)
    with pytest.raises(IndexError, match="from 0 to 0, got 1"):
        kept[1]
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        cache_clips(source, 0, tmp_path, settings={}, progress=False)
