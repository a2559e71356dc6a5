"""Variation: how far clips may leave the fitted video."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth import scene as plans
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
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import FastSettings


@pytest.fixture
def varied(tiny_shapes, tiny_lives, tiny_motion, tiny_camera):
    """Draw the models of a clip."""
    models = (tiny_shapes, tiny_lives, tiny_motion, tiny_camera)
    return lambda amount, seed=0: randomise_model(*models, amount, np.random.default_rng(seed))


def test_no_variation_gives_the_models_of_the_video(
    varied, tiny_shapes, tiny_lives, tiny_motion, tiny_camera
):
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


def test_nuclei_of_a_clip_are_all_faster_or_all_slower(varied, tiny_motion):
    ratios = np.array(
        [varied(1.0, seed).motion.speed / np.array(tiny_motion.speed) for seed in range(300)]
    )
    np.testing.assert_array_equal(ratios[:, 1:], 1)
    assert np.log(ratios[:, 0]).std() == pytest.approx(SPEED, rel=0.15)


def factors(varied, amount, seed, tiny):
    """Return the factors on length, light, noise and density, the extra blur, the contact."""
    found = varied(amount, seed)
    shapes, lives, motion, camera = tiny
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
def tiny(tiny_shapes, tiny_lives, tiny_motion, tiny_camera):
    return tiny_shapes, tiny_lives, tiny_motion, tiny_camera


def test_factors_spread_as_wide_as_the_constants_say(varied, tiny):
    drawn = np.array([factors(varied, 1.0, seed, tiny) for seed in range(500)])
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


def test_half_the_variation_goes_half_the_way(varied, tiny):
    for seed in range(5):
        whole, half = (factors(varied, amount, seed, tiny) for amount in (1.0, 0.5))
        np.testing.assert_allclose(np.log(half[:4]), np.log(whole[:4]) / 2, atol=1e-12)
        np.testing.assert_allclose(half[4:], np.array(whole[4:]) / 2)


def test_larger_nuclei_are_larger_in_all_that_has_a_length(varied, tiny):
    shapes, lives, _, _ = tiny
    found = varied(1.0, 4)
    ratio = found.shapes.mean[0, 0] / shapes.mean[0, 0]
    np.testing.assert_allclose(found.shapes.modes, ratio * shapes.modes)
    np.testing.assert_allclose(found.lives.mother_area, ratio**2 * lives.mother_area)


# Films


def film(generator, variation, texture=None, name=("clip", 0, 0)):
    scene = SceneSettings(frames=3, size=(56, 64), nuclei=2, flow=True, variation=variation)
    texture = texture or FastSettings(steps=1)
    return synthesise(generator, scene, texture, seed=0, name=name)


@pytest.mark.parametrize("texture", [FastSettings(steps=1), ProceduralSettings()])
def test_without_variation_a_film_is_that_of_the_fitted_models_byte_for_byte(
    tiny_generator, monkeypatch, texture
):
    found = film(tiny_generator, 0.0, texture)
    rest = {"size": 1.0, "brightness": 1.0, "contact": 0.0, "blur": 0.0}
    monkeypatch.setattr(plans, "vary", lambda *given: RandomisedModel(*given[:4], **rest))
    plain = film(tiny_generator, 0.7, texture)
    for name in ("video", "masks", "tracks", "stages", "flow"):
        assert getattr(found, name).tobytes() == getattr(plain, name).tobytes()


def test_with_variation_size_and_brightness_differ_from_film_to_film(tiny_generator):
    plain, wide = [], []
    for number in range(12):
        for amount, into in ((0.0, plain), (1.0, wide)):
            found = film(tiny_generator, amount, name=("clip", 0, number))
            inside = found.masks[0] > 0
            light = found.video[0][inside].mean() - np.median(found.video[0][~inside])
            into.append((inside.sum(), light, found.video[:, ~inside].std()))
    plain, wide = np.log(plain), np.log(wide)
    assert (wide != plain).all()
    # The same seeds: what differs is the variation, and which nuclei lie in so small a picture.
    assert 0.15 < (wide - plain)[:, 1].std() < 0.8
    assert (wide - plain)[:, 0].std() > 0.05


def test_the_extra_blur_softens_the_light_and_not_the_labels(tiny_generator, monkeypatch):
    def blurred(amount):
        models = (
            tiny_generator.shapes, tiny_generator.lives, tiny_generator.motion,
            replace(tiny_generator.camera, noise=0.0),
        )  # fmt: skip
        rest = {"size": 1.0, "brightness": 1.0, "contact": 0.0, "blur": amount}
        monkeypatch.setattr(plans, "vary", lambda *_: RandomisedModel(*models, **rest))
        return film(tiny_generator, 0.5)

    sharp, soft = blurred(0.0), blurred(0.7)
    np.testing.assert_array_equal(sharp.masks, soft.masks)
    np.testing.assert_array_equal(sharp.flow, soft.flow)
    rough = [np.abs(np.diff(found.video, axis=2)).sum() for found in (sharp, soft)]
    assert rough[1] < 0.95 * rough[0]
    # No frame is smeared into the next.
    change = [np.abs(np.diff(found.video, axis=0)).sum() for found in (sharp, soft)]
    assert change[1] > 0.5 * change[0]


# Data sets


@pytest.mark.parametrize(
    ("error", "variation", "words"),
    [
        (ValueError, 1.5, "variation must be from 0 to 1, got 1.5"),
        (ValueError, -0.1, "variation must be from 0 to 1, got -0.1"),
        (ValueError, math.nan, "variation must be from 0 to 1, got nan"),
        (TypeError, "wide", "variation must be a number from 0 to 1, got 'wide'"),
        (TypeError, True, "variation must be a number from 0 to 1, got True"),
    ],
)
def test_a_data_set_refuses_a_variation_out_of_range(tiny_model, error, variation, words):
    with pytest.raises(error, match=words):
        SyntheticHeLaVideos(model=tiny_model, variation=variation)


def test_a_data_set_hands_its_variation_on(tiny_model):
    given = {"frames": 2, "size": 56, "model": tiny_model, "nuclei": 2, "max_cells": 16}
    given["method"] = FastSettings(steps=1)
    plain, usual, wide = (
        SyntheticHeLaVideos(**given, **more).clip(0)["video"]
        for more in ({"variation": 0}, {}, {"variation": 1})
    )
    assert torch.equal(usual, wide)
    assert not torch.equal(plain, wide)
