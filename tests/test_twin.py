"""A real video mixed with synthetic clips of its model."""

import pytest
import torch
from torch.utils.data import DataLoader

from bvdm_data import CameraScale, CTCVideos, twin
from bvdm_data.clip_check import check_clip
from bvdm_data.weights import find_model


def tiny_real(root, **changes):
    arguments = {"frames": 2, "size": 48, "max_cells": 16, "border": 0, "length": 6} | changes
    return CTCVideos(root, **arguments)


@pytest.fixture
def made(tiny_ctc, tiny_model):
    """Make a twin of the tiny video; the keywords replace arguments."""

    def made(real=None, **changes):
        settings = {"method": "procedural", "nuclei": 1, **changes.pop("synthetic", {})}
        arguments = {"model": tiny_model, "synthetic": settings, **changes}
        return twin(tiny_real(tiny_ctc, **real or {}), **arguments)

    return made


def test_a_twin_mixes_real_and_synthetic_clips_of_one_form(made):
    mix = made({"annotations": ("masks", "boxes")}, length=16)
    sources = []
    for clip in mix:
        check_clip({key: value for key, value in clip.items() if key != "member"})
        sources.append(int(clip["source"]))
        assert clip["boxes"].shape == (16, 2, 4)
    assert set(sources) == {0, 1}
    assert mix.weights == {"real": 0.25, "synthetic": 0.75}
    assert list(mix.sources) == ["real", "synthetic"]


def test_a_twin_takes_quotas_and_all_else_that_a_mix_takes(made):
    mix = made(quotas={"real": 1, "synthetic": 2}, order="fixed", length=9, seed=5)
    batches = [batch["source"].tolist() for batch in DataLoader(mix, batch_size=3, num_workers=2)]
    assert batches == [[0, 1, 1]] * 3
    assert mix.seed == mix.sources["synthetic"].seed == 5
    assert made(weights={"real": 1, "synthetic": 1}).weights["real"] == 0.5


def test_a_twin_transforms_both_alike_but_for_another_one(made):
    def darker(clip):
        return {**clip, "video": clip["video"] / 2}

    mix = made({"transform": darker})
    assert mix.sources["synthetic"].transform is darker
    assert (
        made({"transform": darker}, synthetic={"transform": None}).sources["synthetic"].transform
        is None
    )


@pytest.mark.parametrize(
    ("real", "changes", "error", "words"),
    [
        ({"stride": 2}, {}, ValueError, "real must have stride=1, got stride=2"),
        (
            {"scale": CameraScale(0, 255)},
            {},
            ValueError,
            r"model must have the scale of the real video, .*full=255.*bvdm-data fit",
        ),
        ({}, {"synthetic": {"frames": 4}}, ValueError, "synthetic must be without 'frames', which"),
        ({}, {"synthetic": {"model": "hela"}}, ValueError, "without 'model', which is an argument"),
        ({}, {"synthetic": {"colour": 1}}, TypeError, "colour"),
        ({}, {"colour": 1}, TypeError, "colour"),
        ({}, {"model": "no.safetensors"}, FileNotFoundError, "no.safetensors"),
    ],
)
def test_a_twin_refuses_what_makes_no_mix(made, real, changes, error, words):
    with pytest.raises(error, match=words):
        made(real, **changes)


def test_a_twin_is_that_of_a_real_video(tiny_model):
    with pytest.raises(TypeError, match="real must be a CTCVideos, got str"):
        twin("Fluo-N2DL-HeLa", model=tiny_model)


def test_a_twin_of_the_real_video_in_one_line(hela):
    mix = twin(CTCVideos(hela, frames=2, size=96), quotas={"real": 1, "synthetic": 3})
    batch = next(iter(DataLoader(mix, batch_size=4)))
    assert sorted(batch["source"].tolist()) == [0, 1, 1, 1]
    assert batch["video"].shape == (4, 2, 1, 96, 96)
    assert mix.sources["synthetic"].model == find_model("hela")
    grey = [batch["video"][batch["source"] == kind].median() for kind in (0, 1)]
    assert torch.isclose(*grey, rtol=0.5)
