"""Painted nuclei put in their places: their light adds up and goes nowhere."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from painters import still_life
from rasters import label, put
from scipy import ndimage

from bvdm_data.synth.camera import expose
from bvdm_data.synth.denoiser import make_pixel_grid
from bvdm_data.synth.motion import Trajectory

SIZE = (90, 100)


def path(centre, turn=0.0, *, identity=1, frames=1, first=0, radii=12.0):
    """Return the way of a nucleus that stays in one place."""
    return Trajectory(
        still_life(identity, first=first, frames=frames, radii=radii),
        np.tile(np.asarray(centre, float), (frames, 1)),
        np.full(frames, turn),
        float(identity),
    )


def blob(long=6.0, short=4.0, light=0.2):
    """Return smooth light [48, 48] that fades to nothing well inside its patch."""
    y, x = make_pixel_grid(48)
    return light * torch.exp(-0.5 * ((y / long) ** 2 + (x / short) ** 2)) * (y.hypot(x) < 22)


def test_a_nucleus_between_pixels_of_its_patch_is_put_down_unchanged():
    texture = torch.randn((48, 48), generator=torch.Generator().manual_seed(0))
    # So wide that its halo fills the patch.
    found = put([path((40.5, 50.5), radii=16.0)], [texture])[0]
    np.testing.assert_allclose(found[17:65, 27:75], texture.numpy(), atol=1e-4)
    # The spline that reads it may not reach farther than two pixels.
    found[15:67, 25:77] = 0
    assert not found.any()


def test_a_quarter_turn_turns_the_major_axis_from_y_to_x():
    texture = torch.zeros(48, 48)
    texture[40, 23:25] = 1  # along +y
    found = put([path((40.5, 50.5), math.pi / 2)], [texture])[0]
    down, right = ndimage.center_of_mass(found.clip(min=0))
    assert (down, right) == pytest.approx((40.5, 50.5 + 16.5), abs=0.1)


@settings(max_examples=20, deadline=None)
@given(turn=st.floats(-7, 7), down=st.floats(35, 55), right=st.floats(35, 65), long=st.floats(3, 6))
def test_total_light_and_its_centre_do_not_depend_on_turn_and_place(turn, down, right, long):
    texture = blob(long)
    found = put([path((down, right), turn)], [texture])[0]
    assert found.sum() == pytest.approx(float(texture.sum()), rel=5e-3)
    assert ndimage.center_of_mass(found) == pytest.approx((down, right), abs=0.05)


@pytest.mark.parametrize("turn", [0.0, 0.4, 1.3, 2.5])
def test_light_is_turned_as_its_label_is(turn):
    angle = np.arange(60) * 2 * np.pi / 60
    radii = 15 * 8 / np.hypot(8 * np.cos(angle), 15 * np.sin(angle)) + 2 * np.sin(2 * angle)
    where = path((44.2, 51.7), turn, radii=radii)
    y, x = make_pixel_grid(48).numpy()
    corners = np.append(angle, 2 * np.pi)
    outline = np.interp(np.arctan2(x, y) % (2 * np.pi), corners, np.append(radii, radii[0]))
    flat = torch.from_numpy((np.hypot(y, x) <= outline).astype(np.float32))
    lit = put([where], [flat])[0] > 0.5
    labelled = label([where], 1, SIZE)[0] > 0
    assert (lit & labelled).sum() / (lit | labelled).sum() > 0.93


def test_the_light_of_nuclei_that_meet_adds_up():
    paths = [path((40.3, 45.1), 0.3, identity=1), path((46.8, 55.6), 1.1, identity=2)]
    textures = [blob(), blob(7.0, 5.0, 0.4)]
    both = put(paths, textures)
    apart = [put([one], [texture]) for one, texture in zip(paths, textures, strict=True)]
    np.testing.assert_allclose(both, apart[0] + apart[1], atol=1e-6)
    assert (np.minimum(*apart) > 0.01).any()
    np.testing.assert_allclose(put(paths[::-1], textures[::-1]), both, atol=1e-6)


def test_a_nucleus_lights_only_the_frames_of_its_life():
    found = put([path((40, 50), first=1, frames=2)], [blob()], frames=4)
    assert found.any((1, 2)).tolist() == [False, True, True, False]


@pytest.mark.parametrize("centre", [(-4.0, 50.0), (40.0, 98.5), (88.0, -7.0)])
def test_a_nucleus_at_the_border_is_cut_and_not_moved(centre):
    found = put([path(centre, 0.7)], [blob()])
    moved = np.add(centre, 60)
    whole = put([path(moved, 0.7)], [blob()], size=(220, 230))
    np.testing.assert_allclose(found[0], whole[0, 60:150, 60:160], atol=1e-6)
    assert found.any()


@pytest.mark.parametrize("centre", [(-200.0, 50.0), (40.0, 400.0), (-26.0, -26.0)])
def test_a_nucleus_far_outside_lights_nothing(centre):
    assert not put([path(centre)], [blob()]).any()


def test_no_nuclei_give_darkness():
    found = put([], [], frames=2)
    assert found.shape == (2, *SIZE)
    assert not found.any()


def test_exposing_without_glow_adds_no_light_around_nuclei(tiny_camera):
    light = np.zeros((1, *SIZE), np.float32)
    light[0, 40:50, 40:50] = 0.3
    dark = np.zeros_like(light)
    plain, lit, glowing = (
        expose(some, tiny_camera, np.random.default_rng(0), glow=glow)
        for some, glow in ((dark, False), (light, False), (light, True))
    )
    rim = np.zeros(SIZE, bool)
    rim[37:53, 37:53] = True
    rim[40:50, 40:50] = False
    np.testing.assert_allclose((lit - plain)[0][rim], 0, atol=1e-6)
    np.testing.assert_allclose((lit - plain)[0, 40:50, 40:50], 0.3, atol=1 / 4095)
    assert (glowing - plain)[0][rim].mean() > 0.02
