"""Streams of lives: without pictures, seen at other intervals, carried by the stage."""

import json
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from bvdm_data.adapters.detection import detection_targets
from bvdm_data.bench import copy_with
from bvdm_data.clip import ANNOTATIONS
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.device_loader import DeviceLoader
from bvdm_data.datasets.export import export
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.rng import numpy_rng
from bvdm_data.storage import read_shard, write_shards
from bvdm_data.synth import synthesis, textures
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.scene import SceneSettings, draw_stage_path
from bvdm_data.viz.pictures import write_animation, write_contact_sheet
from bvdm_data.viz.player import write_player
from tests.helpers.streams import same

QUICK = PaperSettings(first_steps=2, later_steps=1)


@pytest.fixture
def lives(tiny_model):
    """Make a data set of small clips without pictures; the keywords replace arguments."""

    def lives(**changes):
        usual = {"frames": 4, "size": (48, 56), "nuclei": 3, "max_cells": 48, "video": False}
        return SyntheticHeLaVideos(**usual | {"model": tiny_model, **changes})

    return lives


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"pool": PoolSettings(pairs=4)},
        {"method": "procedural"},
        {"method": QUICK},
        {"drift": 3.0, "jumps": (0.5, 9.0), "minutes": 60.0},
        {"transform": v2.RandomAffine(20, translate=(0.1, 0.1)), "annotations": ("masks", "boxes")},
        {"transform": v2.RandomHorizontalFlip(1.0), "annotations": ("tracks", "flow")},
    ],
    ids=str,
)
def test_annotations_are_those_of_pictures(lives, how):
    how = {"annotations": ANNOTATIONS, **how}
    plain, full = lives(**how).clip(1), lives(video=True, **how).clip(1)
    assert set(full) - set(plain) == {"video"}
    del full["video"]
    assert same(plain, full)


def test_nothing_is_painted_without_pictures(lives, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("painted")

    for module, name in (
        (textures, "denoise_patches"), (synthesis, "composite"), (synthesis, "expose"),
        (synthesis, "draw_spots"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, refuse)
    assert "video" not in lives(annotations="all").clip(0)
    with pytest.raises(AssertionError, match="painted"):
        lives(video=True).clip(0)


def test_loaders_take_clips_without_pictures(lives, tmp_path):
    videos = lives(length=4, annotations="all")
    clips = [videos.clip(number) for number in range(4)]
    batch = next(iter(DataLoader(videos, batch_size=2)))
    with DeviceLoader(videos, batch_size=2, device="cpu") as loader:
        assert same(batch, next(iter(loader)))
    assert set(batch) == {*ANNOTATIONS, "index", "source"}
    names = write_shards(videos, tmp_path, clips_per_shard=4, progress=False)
    assert all(map(same, read_shard(tmp_path / names[0]), clips))
    assert "video" not in copy_with(videos).clip(0)


def test_mixes_have_pictures_or_none(lives):
    one, other = lives(), lives(seed=1, transform=lambda clip: {**clip, "more": torch.ones(1)})
    mixed = MixedVideos({"a": one, "b": lives(seed=2)})
    assert set(mixed.clip(0)) == {"masks", "tracks", "index", "source", "member"}
    assert set(MixedVideos({"a": mixed, "b": lives(seed=3)}).clip(0)) == set(mixed.clip(0))
    assert "more" in MixedVideos({"b": other}).clip(0)
    with pytest.raises(ValueError, match="sources must give clips of the same keys"):
        MixedVideos({"a": one, "b": lives(video=True)})


def test_pictures_are_asked_for_where_needed(lives, tmp_path):
    clip = lives().clip(0)
    for use in (
        lambda: write_contact_sheet({"clip": clip}, tmp_path / "a.png"),
        lambda: write_animation(clip, tmp_path / "a.gif"),
        lambda: write_player({("0", "1"): clip}, tmp_path / "a.html"),
        lambda: detection_targets(clip),
        lambda: check_clip(clip),
    ):
        with pytest.raises(ValueError, match=r"video.*video=True"):
            use()
    with pytest.raises(ValueError, match="annotations must name some with video=False"):
        lives(annotations=())
    with pytest.raises(TypeError, match="video must be True or False, got 1"):
        lives(video=1)


def test_longer_intervals_show_every_nth_frame(lives):
    lifelong = {"size": 96, "nuclei": 6, "max_cells": None, "annotations": "all", "variation": 1}
    fine = lives(frames=13, **lifelong).clip(2)
    coarse = lives(frames=5, minutes=90, **lifelong).clip(2)
    assert lives(minutes=90).minutes == 90
    named: dict[int, set[int]] = {}
    for frame in range(5):
        one, other = coarse["masks"][frame], fine["masks"][3 * frame]
        pairs = torch.unique(torch.stack([one, other]).flatten(1), dim=1).T.tolist()
        assert len(pairs) == len(one.unique()) == len(other.unique())
        for own, of_fine in pairs:
            named.setdefault(own, set()).add(of_fine)
            if own:
                stages = coarse["stages"][own - 1, frame], fine["stages"][of_fine - 1, 3 * frame]
                assert stages[0] == stages[1]
    assert len(named) > 6
    assert all(len(ids) == 1 for ids in named.values())


def test_pictures_of_longer_intervals_are_whole(lives):
    for how in ({}, {"pool": True}, {"method": "procedural"}, {"method": QUICK}):
        check_clip(lives(minutes=60, video=True, annotations="all", **how).clip(0))


@pytest.mark.parametrize("minutes", [20, 45, 1e-3])
def test_minutes_refuses_what_lives_lack(lives, minutes):
    with pytest.raises(ValueError, match="minutes must be 30, as in the fitted video, or a mult"):
        lives(minutes=minutes)


def test_stage_drifts_and_jumps_as_asked():
    settings = SceneSettings(frames=400, size=(64, 64), drift=2.5)
    steps = np.diff(draw_stage_path(settings, numpy_rng(0)), axis=0)
    np.testing.assert_allclose(np.hypot(*steps.T), 2.5)
    np.testing.assert_allclose(steps, steps[:1].repeat(399, 0))
    settings = SceneSettings(frames=4000, size=(64, 64), jumps=(0.25, 20.0))
    far = np.hypot(*np.diff(draw_stage_path(settings, numpy_rng(0)), axis=0).T)
    assert (far > 0).mean() == pytest.approx(0.25, abs=0.03)
    assert 19 < far.max() <= 20
    assert far[far > 0].mean() == pytest.approx(10, abs=0.7)


def test_stage_carries_nuclei_and_brings_others(lives):
    how = {"size": 128, "nuclei": 9, "frames": 8, "max_cells": None, "annotations": "all"}
    before, after, moved = [], [], []
    for number in range(3):
        clip = lives(drift=24.0, video=True, **how).clip(number)
        check_clip(clip)
        before.append(len(clip["masks"][0].unique()) - 1)
        after.append(len(clip["masks"][-1].unique()) - 1)
        steps = clip["centroids"].diff(dim=1)
        steps = steps[steps.isfinite().all(2)]
        moved.append(float(steps.median(0).values.norm()))
    assert sum(after) > 0.6 * sum(before)  # the field has moved by more than its width
    assert np.median(moved) == pytest.approx(24, abs=2)


def test_stage_refuses_what_is_no_motion(lives):
    for wrong, message in (
        ({"drift": -1}, "drift must be at least 0, got -1"),
        ({"drift": math.inf}, "drift must be finite"),
        ({"jumps": 0.5}, "jumps must be a pair"),
        ({"jumps": (2, 5)}, "the chance of jumps must be from 0 to 1, got 2"),
        ({"jumps": (0.5, -5)}, "the longest of jumps must be at least 0"),
        ({"drift": 1e5}, "drift and jumps must carry the field by at most 10000 px"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            lives(**wrong)


def test_long_films_need_deaths(lives):
    with pytest.raises(ValueError, match="give a death_rate of") as error:
        lives(frames=2000, max_cells=None)
    rate = float(str(error.value).split("death_rate of ")[1].split()[0])
    film = lives(frames=2000, max_cells=None, death_rate=rate)
    assert film.max_cells < 2**15  # grown without deaths, 16 bits would not hold the ids
    assert lives(frames=300, nuclei=1, max_cells=None, death_rate=rate).clip(0)["tracks"][0, 0] == 1


def test_outlines_are_kept_once(lives, monkeypatch):
    kept = []
    draw = synthesis.draw_labels
    monkeypatch.setattr(synthesis, "draw_labels", lambda t, size: kept.append(t) or draw(t, size))
    lives(frames=40, max_cells=None).clip(0)
    assert len(kept[0].radii.values) == 1 + int(kept[0].there.sum())


def test_export_notes_time_and_stage(tiny_model, tmp_path):
    how = {"frames": 3, "size": 48, "sequences": 1, "model": tiny_model, "progress": False}
    moved = {"minutes": 60.0, "drift": 2.0, "jumps": (0.5, 4.0)}
    assert export(tmp_path, **how, **moved) == ["01"]
    manifest = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert {key: manifest[key] for key in moved} == moved | {"jumps": [0.5, 4.0]}
    assert export(tmp_path, **how, **moved) == []
    with pytest.raises(ValueError, match="drift"):
        export(tmp_path, **how, **moved | {"drift": 3.0})


def test_states_of_other_intervals_are_refused(lives):
    state = lives(minutes=60).state_dict()
    lives(minutes=60).load_state_dict(state)
    with pytest.raises(ValueError, match=r"minutes=30\.0, got minutes=60"):
        lives().load_state_dict(state)
