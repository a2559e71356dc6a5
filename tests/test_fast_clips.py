"""Data sets of the library's own method: whole clips, and models without the paper's networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from painters import LinearPainter, random_painter
from torch.utils.data import DataLoader

from bvdm_data import weights
from bvdm_data.clip import ANNOTATIONS
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import FastSettings

two_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")
QUICK = FastSettings(steps=2)


@pytest.fixture
def tiny(tiny_model):
    """Make a data set of small clips; the keywords replace arguments."""

    def tiny(**changes):
        arguments = {
            "frames": 4,
            "size": (64, 72),
            "model": tiny_model,
            "method": QUICK,
            "nuclei": 3,
            "max_cells": 32,
            "annotations": ANNOTATIONS,
        }
        return SyntheticHeLaVideos(**arguments | changes)

    return tiny


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9)) for key in one
    )


def test_clips_hold_together_with_all_annotations(tiny):
    dataset = tiny(frames=6)
    divisions = 0
    for index in range(6):
        clip = dataset.clip(index)
        check_clip(clip)
        parents = clip["tracks"][:, 3]
        divisions += int((parents[parents > 0].bincount() == 2).sum())
    assert divisions >= 2


@pytest.mark.parametrize(
    "changes", [{"frames": 1}, {"nuclei": 0}, {"nuclei": None, "max_cells": 64}, {"variation": 1}]
)
def test_unusual_clips_hold_together(tiny, changes):
    clip = tiny(**changes).clip(0)
    check_clip(clip)
    assert clip["video"].std() > 0


def test_fast_is_the_method_that_is_used_unless_another_is_asked_for(tiny_model):
    given = {"frames": 1, "size": 48, "nuclei": 1, "model": tiny_model}
    named, silent = (SyntheticHeLaVideos(**given, **more) for more in ({"method": "fast"}, {}))
    assert silent.method == named.method == FastSettings()
    assert same(silent.clip(0), named.clip(0))


@two_workers
def test_a_clip_does_not_depend_on_the_number_of_workers(tiny):
    dataset = tiny(length=3, frames=2, size=56, nuclei=2)
    found = []
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        found.append({int(clip["index"]): clip for clip in loader})
    assert sorted(found[0]) == sorted(found[1]) == [0, 1, 2]
    assert all(same(found[0][index], found[1][index]) for index in range(3))


def test_a_clip_does_not_depend_on_the_number_of_threads(tiny):
    dataset, before = tiny(), torch.get_num_threads()
    clips = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            clips.append(dataset.clip(1))
    finally:
        torch.set_num_threads(before)
    assert same(*clips)


def test_clips_leave_the_global_random_state_alone(tiny):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    tiny().clip(0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_the_seed_the_epoch_and_the_index_make_the_clip(tiny):
    one = tiny().clip(0)
    assert same(one, tiny().clip(0))
    others = [tiny().clip(1), tiny(seed=1).clip(0), tiny(method=FastSettings(steps=3)).clip(0)]
    moved = tiny()
    moved.set_epoch(1)
    assert not any(torch.equal(one["video"], o["video"]) for o in [*others, moved.clip(0)])


# Films


def film(generator, **changes):
    scene = {"frames": 4, "size": (80, 90), "nuclei": 3, "flow": True} | changes
    return synthesise(generator, SceneSettings(**scene), QUICK, seed=0, name=("clip", 0, 0))


@pytest.fixture
def clean(tiny_generator):
    """A generator of evenly lit nuclei without halo, before a camera without noise."""
    camera = replace(tiny_generator.camera, noise=0.0, field_spread=0.0, level_spread=0.0)
    return replace(tiny_generator, camera=camera, painter=LinearPainter(spread=0.0))


def test_light_and_labels_of_a_film_agree(clean):
    found = film(clean, nuclei=6, size=(100, 110))
    lit = found.video - clean.camera.level > 0.04
    labelled = found.masks > 0
    for frame in range(4):
        both = (lit & labelled)[frame].sum() / (lit | labelled)[frame].sum()
        assert both > 0.9


def test_the_flow_of_a_film_leads_from_label_to_label(clean):
    found = film(clean)
    for frame in range(3):
        y, x = np.nonzero(found.masks[frame])
        here = found.masks[frame, y, x]
        down, right = found.flow[frame][:, y, x]
        rows, columns = (np.rint(v).astype(int) for v in (y + down, x + right))
        inside = (rows >= 0) & (rows < 80) & (columns >= 0) & (columns < 90)
        goes_on = np.isin(here, np.unique(found.masks[frame + 1]))
        chosen = inside & goes_on
        there = found.masks[frame + 1, rows[chosen], columns[chosen]]
        assert (there == here[chosen]).mean() > 0.93
        assert not found.flow[frame][:, found.masks[frame] == 0].any()


def test_a_film_without_flow_has_the_same_pictures(tiny_generator):
    with_flow, without = film(tiny_generator), film(tiny_generator, flow=False)
    assert without.flow is None
    np.testing.assert_array_equal(with_flow.video, without.video)


@pytest.mark.parametrize("method", [QUICK, FastSettings(), FastSettings(families=False)], ids=repr)
@pytest.mark.parametrize("nuclei", [0, 2, 5])
def test_the_progress_of_a_film_is_told_once_a_frame(tiny_generator, method, nuclei):
    heard = []
    scene = SceneSettings(frames=5, size=(64, 64), nuclei=nuclei)
    synthesise(
        tiny_generator, scene, method, seed=0, name=("clip", 0, 0), on_frame=lambda: heard.append(1)
    )
    assert len(heard) == 5


def test_a_film_in_which_nothing_is_seen_shows_the_background_and_tells_of_every_frame(clean):
    far, heard = replace(clean.motion, density=np.zeros(10)), []
    scene = SceneSettings(frames=3, size=(40, 50), flow=True)
    found = synthesise(
        replace(clean, motion=far), scene, FastSettings(), seed=0, name=("clip", 0, 0),
        on_frame=lambda: heard.append(1),
    )  # fmt: skip
    assert len(heard) == 3
    assert np.ptp(found.video) == 0
    assert not found.masks.any()
    assert found.flow.shape == (2, 2, 40, 50)
    assert not found.flow.any()
    assert (found.tracks.shape, found.stages.shape) == ((0, 4), (0, 3))


# Models without the networks of the paper's method


@pytest.fixture(scope="module")
def lean(tiny_generator, tmp_path_factory):
    """Return the file of a model that was fitted for the fast method alone."""
    path = tmp_path_factory.mktemp("lean") / "lean.safetensors"
    generator = replace(tiny_generator, unet=None, flownet=None, painter=random_painter())
    weights.save(generator, path)
    return path


def test_a_lean_model_is_saved_and_loaded(lean, tiny_generator):
    found = weights.load(lean)
    assert found.unet is None
    assert found.flownet is None
    assert found.texture == tiny_generator.texture
    wanted = random_painter().state_dict()
    assert found.painter.settings == random_painter().settings
    for name, value in found.painter.state_dict().items():
        assert torch.equal(value, wanted[name])
    moved = found.to(torch.device("cpu"))
    assert moved.unet is None
    assert moved.painter is not found.painter


@pytest.mark.parametrize("method", ["fast", "procedural"])
def test_a_lean_model_makes_clips(lean, tiny, method):
    check_clip(tiny(model=lean, method=method, frames=2).clip(0))


@pytest.mark.parametrize("method", ["paper", PaperSettings(first_steps=2, later_steps=1)])
def test_a_lean_model_refuses_the_method_of_the_paper_and_says_how_to_get_it(lean, method):
    words = r"method must be .* got 'paper'; fit .* \"bvdm-data fit --paper\", or give method=\"f"
    with pytest.raises(ValueError, match=words):
        SyntheticHeLaVideos(model=lean, method=method)


def test_a_lean_generator_refuses_to_synthesise_by_the_method_of_the_paper(lean):
    scene = SceneSettings(frames=1, size=(48, 48), nuclei=1)
    with pytest.raises(ValueError, match="bvdm-data fit --paper"):
        synthesise(weights.load(lean), scene, PaperSettings(), seed=0, name=("clip", 0, 0))


def test_a_full_model_paints_in_all_ways(tiny):
    quick = PaperSettings(first_steps=2, later_steps=1)
    videos = [
        tiny(method=m, frames=2, size=48, nuclei=1).clip(0)["video"]
        for m in ("fast", quick, "procedural")
    ]
    assert not torch.equal(videos[0], videos[1])
    assert not torch.equal(videos[0], videos[2])
