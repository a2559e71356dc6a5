"""Whole videos and clips, their variation, and models without the paper's networks."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from painters import LinearPainter, random_painter

from bvdm_data import weights
from bvdm_data.clip import ANNOTATIONS
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth import synthesis
from bvdm_data.synth.model import (
    BLUR,
    BRIGHTNESS,
    CONTACT,
    DENSITY,
    NOISE,
    SIZE,
    SPEED,
    RandomisedModel,
    randomise_model,
)
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import FastSettings

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


def test_annotations_of_clips_agree(tiny):
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
def test_unusual_clips_are_valid(tiny, changes):
    clip = tiny(**changes).clip(0)
    check_clip(clip)
    assert clip["video"].std() > 0


def test_fast_is_the_default_method(tiny_model):
    given = {"frames": 1, "size": 48, "nuclei": 1, "model": tiny_model}
    named, silent = (SyntheticHeLaVideos(**given, **more) for more in ({"method": "fast"}, {}))
    assert silent.method == named.method == FastSettings()
    assert same(silent.clip(0), named.clip(0))


def test_clip_does_not_depend_on_threads(tiny):
    dataset, before = tiny(), torch.get_num_threads()
    clips = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            clips.append(dataset.clip(1))
    finally:
        torch.set_num_threads(before)
    assert same(*clips)


def test_global_random_state_stays(tiny):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    tiny().clip(0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_seed_epoch_and_index_decide(tiny):
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


def test_light_and_labels_agree(clean):
    found = film(clean, nuclei=6, size=(100, 110))
    lit = found.video - clean.camera.level > 0.04
    labelled = found.masks > 0
    for frame in range(4):
        both = (lit & labelled)[frame].sum() / (lit | labelled)[frame].sum()
        assert both > 0.9


def test_flow_leads_to_same_label(clean):
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


def test_video_is_same_without_flow(tiny_generator):
    with_flow, without = film(tiny_generator), film(tiny_generator, flow=False)
    assert without.flow is None
    np.testing.assert_array_equal(with_flow.video, without.video)


def test_progress_rises_to_one(tiny_generator):
    quick = PaperSettings(first_steps=2, later_steps=1)
    for method in (QUICK, FastSettings(families=False), ProceduralSettings(), quick):
        for nuclei in (0, 2):
            heard = []
            synthesise(
                tiny_generator, SceneSettings(frames=5, size=(64, 64), nuclei=nuclei), method,
                seed=0, name=("clip", 0, 0), progress=heard.append,
            )  # fmt: skip
            assert heard == sorted(heard)
            assert heard[-1] == 1


def test_empty_video_shows_background(clean):
    scene = SceneSettings(frames=3, size=(40, 50), flow=True)
    model = replace(clean, motion=replace(clean.motion, density=np.zeros(10)))
    for method in (FastSettings(), ProceduralSettings()):
        found = synthesise(model, scene, method, seed=0, name=("clip", 0, 0))
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


def test_lean_model_is_saved(lean, tiny_generator):
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
def test_lean_model_makes_clips(lean, tiny, method):
    check_clip(tiny(model=lean, method=method, frames=2).clip(0))


def test_lean_model_refuses_paper_method(lean):
    words = r"method must be .* got 'paper'; fit .* \"bvdm-data fit --paper\", or give method=\"f"
    with pytest.raises(ValueError, match=words):
        SyntheticHeLaVideos(model=lean, method="paper")
    scene = SceneSettings(frames=1, size=(48, 48), nuclei=1)
    with pytest.raises(ValueError, match="bvdm-data fit --paper"):
        synthesise(weights.load(lean), scene, PaperSettings(), seed=0, name=("clip", 0, 0))


def test_full_model_has_all_methods(tiny):
    quick = PaperSettings(first_steps=2, later_steps=1)
    videos = [
        tiny(method=m, frames=2, size=48, nuclei=1).clip(0)["video"]
        for m in ("fast", quick, "procedural")
    ]
    assert not torch.equal(videos[0], videos[1])
    assert not torch.equal(videos[0], videos[2])


# Variation


@pytest.fixture
def varied(tiny_shapes, tiny_lives, tiny_motion, tiny_camera):
    """Draw the models of a clip."""
    models = (tiny_shapes, tiny_lives, tiny_motion, tiny_camera)
    return lambda amount, seed=0: randomise_model(*models, amount, np.random.default_rng(seed))


def test_no_variation_keeps_the_models(varied, tiny_shapes, tiny_lives, tiny_motion, tiny_camera):
    found = varied(0.0, 3)
    assert (found.blur, found.contact, found.size, found.brightness) == (0, 0, 1, 1)
    for name, model in (
        ("shapes", tiny_shapes),
        ("lives", tiny_lives),
        ("motion", tiny_motion),
        ("camera", tiny_camera),
    ):
        for item in fields(model):
            one, other = getattr(getattr(found, name), item.name), getattr(model, item.name)
            np.testing.assert_array_equal(one, other)


def test_variation_of_speed(varied, tiny_motion):
    ratios = np.array([varied(1.0, seed).motion.pace / tiny_motion.pace for seed in range(300)])
    np.testing.assert_array_equal(ratios[:, 1:], 1)
    assert np.log(ratios[:, 0]).std() == pytest.approx(SPEED, rel=0.15)


def factors(varied, amount, seed, models):
    """Return the factors on length, light, noise and density, the extra blur, the contact."""
    found = varied(amount, seed)
    shapes, lives, motion, camera = models
    ratios = (
        found.shapes.mean / shapes.mean,
        found.lives.brightness / lives.brightness,
        found.camera.noise / camera.noise,
        found.motion.density / motion.density,
    )
    assert all(np.ptp(ratio) < 1e-9 for ratio in ratios)
    assert ratios[0].mean() == pytest.approx(found.size)
    assert ratios[1].mean() == pytest.approx(found.brightness)
    return [float(np.mean(ratio)) for ratio in ratios] + [found.blur, found.contact]


@pytest.fixture
def models(tiny_shapes, tiny_lives, tiny_motion, tiny_camera):
    return tiny_shapes, tiny_lives, tiny_motion, tiny_camera


def test_variation_has_the_set_spread(varied, models):
    drawn = np.array([factors(varied, 1.0, seed, models) for seed in range(500)])
    logs = np.log(drawn[:, :4])
    np.testing.assert_allclose(logs[:, :3].mean(0), 0, atol=0.05)
    np.testing.assert_allclose(logs[:, :3].std(0), [SIZE, BRIGHTNESS, NOISE], rtol=0.12)
    assert drawn[:, 3].min() >= DENSITY[0]
    assert drawn[:, 3].max() <= DENSITY[1]
    middle = math.sqrt(DENSITY[0] * DENSITY[1])
    assert np.median(drawn[:, 3]) == pytest.approx(middle, rel=0.1)
    for column, most in ((4, BLUR), (5, CONTACT)):
        assert 0 <= drawn[:, column].min() < 0.05 * most
        assert 0.95 * most < drawn[:, column].max() <= most
    # They do not hang together.
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 0.15


def test_half_variation_halves_the_factors(varied, models):
    for seed in range(5):
        whole, half = (factors(varied, amount, seed, models) for amount in (1.0, 0.5))
        np.testing.assert_allclose(np.log(half[:4]), np.log(whole[:4]) / 2, atol=1e-12)
        np.testing.assert_allclose(half[4:], np.array(whole[4:]) / 2)


def test_size_scales_all_lengths(varied, models):
    shapes, lives, _, _ = models
    found = varied(1.0, 4)
    ratio = found.shapes.mean[0, 0] / shapes.mean[0, 0]
    np.testing.assert_allclose(found.shapes.modes, ratio * shapes.modes)
    np.testing.assert_allclose(found.lives.body, ratio**2 * lives.body)


def vary(generator, variation, texture=None, name=("clip", 0, 0)):
    scene = SceneSettings(frames=3, size=(56, 64), nuclei=2, flow=True, variation=variation)
    texture = texture or FastSettings(steps=1)
    return synthesise(generator, scene, texture, seed=0, name=name)


@pytest.mark.parametrize("texture", [FastSettings(), ProceduralSettings()])
def test_no_variation_keeps_the_bytes(tiny_generator, monkeypatch, texture):
    found = vary(tiny_generator, 0.0, texture)
    rest = {"size": 1.0, "brightness": 1.0, "contact": 0.0, "blur": 0.0}
    monkeypatch.setattr(
        synthesis, "randomise_model", lambda *given: RandomisedModel(*given[:4], **rest)
    )
    plain = vary(tiny_generator, 0.7, texture)
    for name in ("video", "masks", "tracks", "stages", "flow"):
        assert getattr(found, name).tobytes() == getattr(plain, name).tobytes()


def test_variation_differs_between_clips(tiny_generator):
    plain, wide = [], []
    for number in range(12):
        for amount, into in ((0.0, plain), (1.0, wide)):
            found = vary(tiny_generator, amount, name=("clip", 0, number))
            inside = found.masks[0] > 0
            light = found.video[0][inside].mean() - np.median(found.video[0][~inside])
            into.append((inside.sum(), light, found.video[:, ~inside].std()))
    plain, wide = np.log(plain), np.log(wide)
    assert (wide != plain).all()
    # The same seeds: what differs is the variation, and which nuclei lie in so small a picture.
    assert 0.15 < (wide - plain)[:, 1].std() < 0.8
    assert (wide - plain)[:, 0].std() > 0.05


def test_blur_softens_only_the_light(tiny_generator, monkeypatch):
    def blurred(amount):
        models = (
            tiny_generator.shapes, tiny_generator.lives, tiny_generator.motion,
            replace(tiny_generator.camera, noise=0.0),
        )  # fmt: skip
        rest = {"size": 1.0, "brightness": 1.0, "contact": 0.0, "blur": amount}
        monkeypatch.setattr(
            synthesis, "randomise_model", lambda *_: RandomisedModel(*models, **rest)
        )
        return vary(tiny_generator, 0.5)

    sharp, soft = blurred(0.0), blurred(0.7)
    np.testing.assert_array_equal(sharp.masks, soft.masks)
    np.testing.assert_array_equal(sharp.flow, soft.flow)
    rough = [np.abs(np.diff(found.video, axis=2)).sum() for found in (sharp, soft)]
    assert rough[1] < 0.95 * rough[0]
    # No frame is smeared into the next.
    change = [np.abs(np.diff(found.video, axis=0)).sum() for found in (sharp, soft)]
    assert change[1] > 0.5 * change[0]


def test_variation_of_a_data_set(tiny_model):
    given = {"frames": 2, "size": 56, "model": tiny_model, "nuclei": 2, "max_cells": 16}
    given["method"] = FastSettings(steps=1)
    plain, usual, wide = (
        SyntheticHeLaVideos(**given, **more).clip(0)["video"]
        for more in ({"variation": 0}, {}, {"variation": 1})
    )
    assert torch.equal(usual, wide)
    assert not torch.equal(plain, wide)
