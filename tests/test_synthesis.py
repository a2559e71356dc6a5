"""Whole videos and clips, their variation, and models without the paper's networks."""

import math
from dataclasses import asdict, fields, replace
from functools import partial

import numpy as np
import pytest
import torch

from bvdm_data import weights
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
    ToneCurve,
    Variation,
    randomise_model,
)
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import FastSettings
from tests.helpers.denoisers import LinearDenoiser
from tests.helpers.rendering import is_same, make_videos

QUICK = FastSettings(steps=2)


@pytest.fixture
def tiny(tiny_model):
    return partial(make_videos, tiny_model, method=QUICK)


def test_annotations_of_clips_agree(tiny):
    dataset, divisions = tiny(frames=6), 0
    for clip in map(dataset.clip, range(6)):
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


def test_clip_does_not_depend_on_threads(tiny):
    dataset, before = tiny(), torch.get_num_threads()
    clips = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            clips.append(dataset.clip(1))
    finally:
        torch.set_num_threads(before)
    assert is_same(*clips)


def test_global_random_state_stays(tiny):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    tiny().clip(0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_seed_epoch_and_index_decide(tiny):
    one = tiny().clip(0)
    assert is_same(one, tiny().clip(0))
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
    return replace(tiny_generator, camera=camera, painter=LinearDenoiser(spread=0.0))


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
    for method in (QUICK, ProceduralSettings(), quick):
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
    path = tmp_path_factory.mktemp("lean") / "lean.safetensors"
    weights.save(replace(tiny_generator, unet=None, flownet=None), path)
    return path


def test_lean_model_is_saved(lean, tiny_generator):
    saved, state = weights.load(lean), torch.get_rng_state()
    assert saved.unet is saved.flownet is None
    assert saved.texture == tiny_generator.texture
    moved = saved.to(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert moved.unet is None
    for name in ("painter", "distilled"):
        one, other, wanted = (getattr(model, name) for model in (saved, moved, tiny_generator))
        assert one is not other
        assert one.settings == other.settings == wanted.settings
        for key, value in wanted.state_dict().items():
            assert torch.equal(value, one.state_dict()[key])
            assert torch.equal(value, other.state_dict()[key])
    for method in ("fast", "procedural"):
        check_clip(make_videos(lean, method=method, frames=2).clip(0))


def test_lean_model_refuses_paper_method(lean):
    words = r"method must be .* got 'paper'; fit .* \"bvdm-data fit --paper\", or give method=\"f"
    with pytest.raises(ValueError, match=words):
        SyntheticHeLaVideos(model=lean, method="paper")
    scene = SceneSettings(frames=1, size=(48, 48), nuclei=1)
    with pytest.raises(ValueError, match="bvdm-data fit --paper"):
        synthesise(weights.load(lean), scene, PaperSettings(), seed=0, name=("clip", 0, 0))


# Variation


def vary_model(model, amount, seed=0):
    return randomise_model(model, Variation.make(amount), np.random.default_rng(seed))


def test_no_variation_keeps_the_models(tiny_generator):
    same = vary_model(tiny_generator, 0.0, 3)
    assert (same.blur, same.contact, same.size) == (0, 0, 1)
    for name in ("shapes", "lives", "motion", "camera"):
        model = getattr(tiny_generator, name)
        for item in fields(model):
            one, other = getattr(getattr(same, name), item.name), getattr(model, item.name)
            np.testing.assert_array_equal(one, other)


def list_factors(model, amount, seed):
    """Return factors on size, light, noise, density and speed, then blur and contact."""
    varied = vary_model(model, amount, seed)
    ratios = (
        varied.shapes.mean / model.shapes.mean,
        varied.camera.noise / model.camera.noise,
        varied.motion.density / model.motion.density,
        varied.motion.speed.scale / model.motion.speed.scale,
    )
    assert varied.motion.speed[1:] == model.motion.speed[1:]
    assert all(np.ptp(ratio) < 1e-9 for ratio in ratios)
    size, noise, density, speed = (float(np.mean(ratio)) for ratio in ratios)
    assert size == pytest.approx(varied.size)
    np.testing.assert_allclose(varied.shapes.modes, size * model.shapes.modes)
    np.testing.assert_allclose(varied.lives.adult_area, size**2 * model.lives.adult_area)
    apart = varied.motion.separation - model.motion.separation
    np.testing.assert_allclose(apart, [math.log(size), 0], atol=1e-12)
    factors = [size, varied.tone.brightness, noise, density, speed]
    return [*factors, varied.blur, varied.contact]


def test_variation_has_the_set_spread(tiny_generator):
    drawn = np.array([list_factors(tiny_generator, 1.0, seed) for seed in range(500)])
    logs = np.log(drawn[:, [1, 2, 4]])
    np.testing.assert_allclose(logs.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(logs.std(0), [BRIGHTNESS, NOISE, SPEED], rtol=0.12)
    for column, (low, high) in ((0, (-SIZE, SIZE)), (3, np.log(DENSITY))):
        values = np.log(drawn[:, column])
        assert low <= values.min() < values.max() <= high
        assert np.median(values) == pytest.approx((low + high) / 2, abs=0.1 * (high - low))
    for column, most in ((5, BLUR), (6, CONTACT)):
        assert 0 <= drawn[:, column].min() < 0.05 * most
        assert 0.95 * most < drawn[:, column].max() <= most
    # They do not hang together.
    assert np.abs(np.corrcoef(drawn.T) - np.eye(7)).max() < 0.15


def test_half_variation_halves_the_factors(tiny_generator):
    for seed in range(5):
        whole, half = (list_factors(tiny_generator, amount, seed) for amount in (1.0, 0.5))
        np.testing.assert_allclose(np.log(half[:5]), np.log(whole[:5]) / 2, atol=1e-12)
        np.testing.assert_allclose(half[5:], np.array(whole[5:]) / 2)


def test_parts_vary_alone(tiny_generator):
    still, parts = list_factors(tiny_generator, 0.0, 1), asdict(Variation.make(0.0))
    order = ("size", "brightness", "noise", "density", "speed", "blur", "contact")
    for number, name in enumerate(order):
        found = list_factors(tiny_generator, parts | {name: 1.0}, 1)
        assert [n for n in range(7) if found[n] != still[n]] == [number]
        assert found[number] == list_factors(tiny_generator, 1.0, 1)[number]


def test_faint_nuclei_stay_seen():
    light = np.array([0.002, 0.006, 0.1])
    # The faintest stays as it is, what would fall below it stops there.
    dimmed = ToneCurve(brightness=0.5, faint=0.004).compute_gain(light) * light
    np.testing.assert_allclose(dimmed, [0.002, 0.004, 0.05])
    np.testing.assert_allclose(ToneCurve(brightness=2.0, faint=0.004).compute_gain(light), 2.0)


def test_blur_softens_only_the_light(tiny_generator, monkeypatch):
    def blurred(amount):
        same = vary_model(tiny_generator, 0.0)
        varied = replace(same, camera=replace(same.camera, noise=0.0), blur=amount)
        monkeypatch.setattr(synthesis, "randomise_model", lambda *_: varied)
        return film(tiny_generator)

    sharp, soft = blurred(0.0), blurred(0.7)
    np.testing.assert_array_equal(sharp.masks, soft.masks)
    np.testing.assert_array_equal(sharp.flow, soft.flow)
    rough = [np.abs(np.diff(found.video, axis=2)).sum() for found in (sharp, soft)]
    assert rough[1] < 0.95 * rough[0]
    # No frame is smeared into the next.
    change = [np.abs(np.diff(found.video, axis=0)).sum() for found in (sharp, soft)]
    assert change[1] > 0.5 * change[0]
