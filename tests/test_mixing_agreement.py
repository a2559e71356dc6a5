"""What the sources of a mix must agree on, and what is said where they do not."""

import numpy as np
import pytest
import torch
from mixes import FakeVideos, listed
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bvdm_data import CameraScale, CTCVideos, SyntheticHeLaVideos
from bvdm_data.datasets.mixed import MixedVideos


def changed(key, value):
    """Return a list of three clips with another value of a key; None: without the key."""
    clips = [dict(clip) for clip in listed(3)]
    for clip in clips:
        clip[key] = value
        if value is None:
            del clip[key]
    return clips


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (changed("masks", None), r"same annotations: sources\['good'\] has \('masks',\), .*\(\)"),
        (
            changed("name", "x"),
            r"the same keys: one of sources\['good'\] has \['masks', 'video'\], one of "
            r"sources\['other'\] has \['masks', 'name', 'video'\]; leave out what not all have",
        ),
        (
            changed("masks", torch.zeros(2, 4, 6, dtype=torch.int64)),
            r"'masks' of the same type and shape: .* torch.int32 .* torch.int64 .* by a transform",
        ),
        (
            changed("masks", torch.zeros(2, 1, 4, 6, dtype=torch.int32)),
            r"'masks' .* \(2, 4, 6\) on cpu, .* \(2, 1, 4, 6\) on cpu",
        ),
        (
            changed("masks", torch.zeros(2, 4, 6, dtype=torch.int32, device="meta")),
            r"'masks' .* on cpu, .* on meta",
        ),
        (
            changed("video", torch.zeros(2, 3, 4, 6)),
            r"'video' of the same .* \(2, 1, 4, 6\) .* \(2, 3, 4, 6\)",
        ),
        (
            changed("video", torch.full((2, 1, 4, 6), 300.0)),
            r"sources\['other'\] must give 'video' as grey values from 0 to 1.*got 300 to 300",
        ),
        (changed("video", torch.zeros(2, 1, 4, 6, dtype=torch.uint8)), r"'video' .* torch.uint8"),
        (
            changed("video", torch.zeros(3, 1, 4, 6)),
            r"same frames: sources\['good'\] has 2, sources\['other'\] has 3",
        ),
        (changed("video", torch.zeros(2, 1, 6, 4)), r"same size: .* \(4, 6\), .* \(6, 4\)"),
        (FakeVideos(scale=CameraScale(0, 4095)), r"same scale: .*full=255.*full=4095"),
        (FakeVideos(max_cells=9), r"same max_cells: sources\['good'\] has 5, .*has 9"),
        (changed("video", torch.zeros(4, 6)), r"'video' as \[F, C, H, W\], got the shape \(4, 6\)"),
        ([], r"sources\['other'\] must hold at least one clip, got none"),
    ],
)
def test_sources_that_fit_into_no_batch_are_refused_at_once(other, words):
    with pytest.raises(ValueError, match=words):
        MixedVideos({"good": FakeVideos(), "other": other})


def test_tables_of_a_list_must_have_as_many_rows():
    tables = [torch.zeros(rows, 4, dtype=torch.int32) for rows in (5, 7)]
    with pytest.raises(ValueError, match=r"same max_cells: sources\['a'\] has 5, .*has 7"):
        MixedVideos(
            {name: changed("tracks", table) for name, table in zip("ab", tables, strict=True)}
        )


class InOrder(IterableDataset):
    def __iter__(self):
        yield from listed(3)


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
        (DataLoader(listed(3)), r"must be a data set of clips.*DataLoader has no 'clip'"),
    ],
)
def test_what_gives_no_clip_by_its_number_is_refused_with_the_way_out(other, words):
    with pytest.raises(TypeError, match=words):
        MixedVideos({"good": FakeVideos(), "other": other})


def test_sources_must_have_names():
    with pytest.raises(TypeError, match=r"must have names \(strings\), got 3"):
        MixedVideos({3: FakeVideos()})


def test_an_iterable_data_set_with_clips_by_number_is_taken():
    class ByNumber(InOrder):
        length = 3

        def clip(self, index):
            return FakeVideos().clip(index)

    assert len(MixedVideos({"a": ByNumber(), "b": Mapped()}, at_end="drop")) == 7


def test_a_clip_of_a_map_style_data_set_without_source_counts_as_real():
    mix = MixedVideos({"synthetic": FakeVideos(kind=1), "mapped": Mapped()}, length=40)
    batch = next(iter(DataLoader(mix, batch_size=40)))
    assert batch["source"].dtype == torch.int8
    assert batch["source"].tolist() == [1 - int(member) for member in batch["member"]]
    assert set(batch["source"].tolist()) == {0, 1}


def test_a_later_clip_of_another_form_is_an_error_that_names_clip_and_source():
    clips = listed(3)
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
def test_an_error_of_a_source_names_clip_and_source(workers):
    mix = MixedVideos({"good": FakeVideos(), "bad": Failing()}, quotas={"good": 1, "bad": 1})
    loader = DataLoader(mix, batch_size=2, num_workers=workers)
    with pytest.raises(OSError, match=r"the disk is gone.*clip 3 of sources\['bad'\]") as error:
        list(loader)
    assert "clip 6 of epoch 0" in str(error.value) or "clip 7 of epoch 0" in str(error.value)


def test_data_sets_whose_transforms_change_the_form_are_compared_by_a_clip(tiny_ctc, tiny_model):
    def double(clip):
        return {**clip, "video": clip["video"].double()}

    shared = {"frames": 2, "size": 48, "max_cells": 16}
    real = {"border": 0, **shared}
    synthetic = {"model": tiny_model, "nuclei": 1, "method": "procedural", **shared}
    both = {
        "real": CTCVideos(tiny_ctc, transform=double, **real),
        "synthetic": SyntheticHeLaVideos(transform=double, **synthetic),
    }
    mix = MixedVideos(both, length=8)
    found = next(iter(DataLoader(mix, batch_size=8)))
    assert found["video"].dtype == torch.float64
    assert mix.form == MixedVideos({"mix": mix}).form
    with pytest.raises(ValueError, match=r"'video' .* torch.float64 .* torch.float32"):
        MixedVideos({**both, "synthetic": SyntheticHeLaVideos(**synthetic)})
    with pytest.raises(ValueError, match=r"'video' .* torch.float32 .* torch.float64"):
        MixedVideos({"plain": CTCVideos(tiny_ctc, **real), "mix": mix})


def test_what_data_sets_say_of_their_clips_is_what_they_give(tiny_ctc, tiny_model):
    shared = {"frames": 2, "size": (40, 48), "max_cells": 16}
    every = ("masks", "tracks", "flow", "stages", "boxes", "centroids")
    for source in (
        CTCVideos(tiny_ctc, border=0, annotations=("masks", "tracks", "boxes"), **shared),
        SyntheticHeLaVideos(
            model=tiny_model, nuclei=1, method="procedural", annotations=every, **shared
        ),
    ):
        mix = MixedVideos({"said": source})
        seen = MixedVideos({"seen": [source.clip(0)]})
        assert mix.form == seen.form
        mix.clip(0)
