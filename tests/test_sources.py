"""What the sources of a mix must have in common."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bvdm_data import CTCVideos, MixedVideos, SyntheticHeLaVideos
from tests.helpers.mixes import FakeVideos, make_list


def change(key, value):
    """Return a list of three clips with another value of a key; None: without the key."""
    clips = [{**clip, key: value} for clip in make_list(3)]
    return [{k: v for k, v in clip.items() if v is not None} for clip in clips]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (change("masks", None), r"same annotations: sources\['good'\] has \('masks',\), .*\(\)"),
        (
            change("name", "x"),
            r"the same keys: one of sources\['good'\] has \['masks', 'video'\], one of "
            r"sources\['other'\] has \['masks', 'name', 'video'\]; leave out what not all have",
        ),
        (
            change("masks", torch.zeros(2, 4, 6, dtype=torch.int64)),
            r"'masks' of the same type and shape: .* torch.int32 .* torch.int64 .* by a transform",
        ),
        (
            change("masks", torch.zeros(2, 1, 4, 6, dtype=torch.int32)),
            r"'masks' .* \(2, 4, 6\) on cpu, .* \(2, 1, 4, 6\) on cpu",
        ),
        (
            change("masks", torch.zeros(2, 4, 6, dtype=torch.int32, device="meta")),
            r"'masks' .* on cpu, .* on meta",
        ),
        (change("video", torch.zeros(2, 3, 4, 6)), r"'video' .* \(2, 1, 4, 6\) .* \(2, 3, 4, 6\)"),
        (
            change("video", torch.full((2, 1, 4, 6), 300.0)),
            r"sources\['other'\] must give 'video' as grey values from 0 to 1.*got 300 to 300",
        ),
        (change("video", torch.zeros(2, 1, 4, 6, dtype=torch.uint8)), r"'video' .* torch.uint8"),
        (change("video", torch.zeros(3, 1, 4, 6)), r"frames: sources\['good'\] has 2, .* has 3"),
        (change("video", torch.zeros(2, 1, 6, 4)), r"same size: .* \(4, 6\), .* \(6, 4\)"),
        (change("video", torch.zeros(4, 6)), r"'video' as \[F, C, H, W\], got the shape \(4, 6\)"),
        ([], r"sources\['other'\] must hold at least one clip, got none"),
    ],
)
def test_sources_that_differ_are_refused(other, words):
    with pytest.raises(ValueError, match=words):
        MixedVideos({"good": FakeVideos(), "other": other})


def test_tables_get_the_most_rows():
    tables = {"tracks": (4, torch.int32, 0), "boxes": (2, torch.float32, math.nan)}
    lists = {}
    for rows, name in enumerate(("one", "two"), start=1):
        (clip,) = make_list(1)
        for key, (columns, dtype, _) in tables.items():
            clip[key] = torch.full((rows, columns), rows, dtype=dtype)
        lists[name] = [clip]
    mix = MixedVideos(lists, weights={"one": 1, "two": 1})
    assert mix.max_cells == 2
    assert next(iter(DataLoader(mix, batch_size=16)))["tracks"].shape == (16, 2, 4)
    for number in range(8):
        clip = mix.clip(number)
        rows = 1 + int(clip["member"])
        for key, (columns, dtype, fill) in tables.items():
            wanted = torch.full((2, columns), fill, dtype=dtype)
            wanted[:rows] = rows
            torch.testing.assert_close(clip[key], wanted, equal_nan=True, rtol=0, atol=0)
    assert len(lists["one"][0]["tracks"]) == 1


class InOrder(IterableDataset):
    def __iter__(self):
        yield from make_list(3)


class Mapped(Dataset):
    """A map-style data set, as users write them: no more than two methods."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        clip = FakeVideos().clip(index)
        return {"video": clip["video"], "masks": clip["masks"]}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (InOrder(), r"InOrder is iterable and has no 'clip'.*Give it a method clip\(index\), or"),
        (iter([]), r"sources\['other'\] must be a data set of clips.*iterator has no 'clip'"),
        ({"video": 1}, r"must be a data set of clips.*dict has no 'clip'"),
        ("Fluo-N2DL-HeLa", r"must be a data set of clips.*str has no 'clip'"),
        ([torch.zeros(2, 1, 4, 6)], r"list has no 'clip' and gives .* in place of a dict with the"),
        ([{"masks": 1}], r"gives a dict of \['masks'\] in place of a dict with the tensor 'video'"),
        (FakeVideos, r"must be a data set of clips.*got the class FakeVideos; write FakeVideos\("),
        (torch.zeros(2, 2, 1, 4, 6), r"must be a data set of clips.*got Tensor of .*\(2, 2, 1, 4"),
        (np.zeros((2, 1, 4, 6)), r"must be a data set of clips.*got ndarray of .*\[\{'video'"),
        (DataLoader(make_list(3)), r"must be a data set of clips.*DataLoader has no 'clip'"),
    ],
)
def test_sources_without_clips_are_refused(other, words):
    with pytest.raises(TypeError, match=words):
        MixedVideos({"good": FakeVideos(), "other": other})


def test_sources_must_be_named():
    with pytest.raises(TypeError, match=r"must have names \(strings\), got 3"):
        MixedVideos({3: FakeVideos()})
    with pytest.raises(TypeError, match=r"must map names to data sets.*got list"):
        MixedVideos([FakeVideos()])


def test_iterable_with_clip_is_taken():
    class ByNumber(InOrder):
        length = 3

        def clip(self, index):
            return FakeVideos().clip(index)

    assert len(MixedVideos({"a": ByNumber(), "b": Mapped()}, at_end="drop")) == 7


def test_map_style_clip_counts_as_real():
    mix = MixedVideos({"synthetic": FakeVideos(kind=1), "mapped": Mapped()}, length=40)
    batch = next(iter(DataLoader(mix, batch_size=40)))
    assert batch["source"].dtype == torch.int8
    assert batch["source"].tolist() == [1 - int(member) for member in batch["member"]]
    assert set(batch["source"].tolist()) == {0, 1}


def test_later_mismatch_names_clip_and_source():
    clips = make_list(3)
    clips[2]["masks"] = clips[2]["masks"].long()
    mix = MixedVideos({"only": clips})
    mix.set_epoch(2)
    with pytest.raises(ValueError, match=r"'masks' of the same type.*torch.int64") as error:
        mix.clip(5)
    assert (
        "It is clip 5 of epoch 2 of MixedVideos, which is clip 5 of sources['only']; to make it "
        "alone: videos.set_epoch(2); videos.clip(5)" in str(error.value)
    )


class Failing(FakeVideos):
    def clip(self, index):
        if index == 3:
            raise OSError("the disk is gone")
        return super().clip(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_source_error_names_clip_and_source(workers):
    mix = MixedVideos({"good": FakeVideos(), "bad": Failing()}, quotas={"good": 1, "bad": 1})
    loader = DataLoader(mix, batch_size=2, num_workers=workers)
    words = r"the disk is gone.*clip [67] of epoch 0.*clip 3 of sources\['bad'\]"
    with pytest.raises(OSError, match=words):
        list(loader)


def test_declared_form_is_the_given_one(tiny_ctc, tiny_model):
    def double(clip):
        return {**clip, "video": clip["video"].double()}

    every = ("masks", "tracks", "flow", "stages", "boxes", "centroids")
    shared = {"frames": 2, "size": (40, 48), "max_cells": 16}
    real = {"root": tiny_ctc, "border": 0, **shared}
    synthetic = {"model": tiny_model, "nuclei": 1, "method": "procedural", **shared}
    for source in (
        CTCVideos(**real, annotations=("masks", "tracks", "boxes")),
        SyntheticHeLaVideos(**synthetic, annotations=every),
    ):
        mix = MixedVideos({"declared": source})
        assert mix.form == MixedVideos({"seen": [mix.clip(0)]}).form
    # Where a transform may change the form, a clip shows it.
    plain = SyntheticHeLaVideos(**synthetic)
    both = {
        "real": CTCVideos(**real, transform=double),
        "synthetic": SyntheticHeLaVideos(**synthetic, transform=double),
    }
    mix = MixedVideos(both, length=8)
    assert next(iter(DataLoader(mix, batch_size=8)))["video"].dtype == torch.float64
    assert mix.form == MixedVideos({"mix": mix}).form
    with pytest.raises(ValueError, match=r"'video' .* torch.float64 .* torch.float32"):
        MixedVideos({**both, "synthetic": plain})
    with pytest.raises(ValueError, match=r"'video' .* torch.float32 .* torch.float64"):
        MixedVideos({"plain": CTCVideos(**real), "mix": mix})
