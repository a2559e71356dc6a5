"""Nuclei rendered all at once: their light, their outlines, and noise that drifts."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bvdm_data.rng import torch_rng
from bvdm_data.synth.denoiser import (
    SDF_CLIP,
    compute_signed_distance_map,
    fit_to_patch_scale,
    make_pixel_grid,
)
from bvdm_data.synth.model import TextureModel
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.render import make_cell_table
from bvdm_data.synth.textures import BRIGHTEST, FastSettings, denoise_patches, render_textures
from tests.helpers.denoisers import (
    LinearDenoiser,
    make_random_denoiser,
    make_still_cell,
    make_wavy_contours,
)
from tests.helpers.rendering import add_up, label

# Patches


def noise_of(count, seed=0):
    return torch.randn((count, 48, 48), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def render():
    """Render some nuclei of different outlines and brightness; return light and edge maps."""

    def render(painter, count=6, seed=0, steps=3):
        radii = torch.from_numpy(make_wavy_contours(count, seed)).float()
        brightness = torch.linspace(0.03, 0.4, count)
        stage = torch.arange(count) % 6
        light = denoise_patches(
            painter, noise_of(count, seed), radii, brightness, stage, steps=steps
        )
        return light, compute_signed_distance_map(radii, 48)[:, 0], brightness

    return render


def test_mean_light_is_the_brightness(render):
    light, edge, brightness = render(LinearDenoiser(spread=0.3))
    for picture, own, wanted in zip(light, edge, brightness, strict=True):
        assert picture[own <= 0].mean() == pytest.approx(float(wanted), rel=1e-4)


def test_light_ends_with_the_halo(render):
    light, edge, _ = render(LinearDenoiser(spread=1.0))
    assert (edge == 1).any()
    assert not light[edge == 1].any()
    near = (edge > 0) & (edge * SDF_CLIP < 4)
    assert (light[near] != 0).all()


def test_untrained_network_stays_in_bounds(render):
    painter = make_random_denoiser()
    light, edge, brightness = render(painter)
    share = light / brightness[:, None, None]
    assert light.isfinite().all()
    assert light.min() >= -2 * painter.floor
    assert light.min() < -painter.floor / 2
    assert share.max() <= 2 * BRIGHTEST
    assert not light[edge == 1].any()


def test_broken_network_gives_darkness(render):
    class Broken(LinearDenoiser):
        def forward(self, noisy, level, edge, brightness, stage):
            return torch.full_like(noisy, math.nan)

    assert not render(Broken())[0].any()
    radii, stage = torch.full((1, 60), 10.0), torch.zeros(1, dtype=int)
    dark = denoise_patches(LinearDenoiser(), noise_of(1), radii, torch.zeros(1), stage, steps=2)
    assert not dark.any()


# Videos


def groups_of(lives, painter=None, *, memory=0.9, fresh=0.2, seed=0, views=None, **changes):
    """Paint lives; each has a stream of random numbers of its own."""
    arguments = {
        "texture": TextureModel(memory=memory, fresh=fresh),
        "settings": FastSettings(steps=2),
        "rngs": [torch_rng(seed, "texture", life.identity) for life in lives],
    }
    views = views or [(life.first, life.last) for life in lives]
    return render_textures(lives, views, painter or LinearDenoiser(), **arguments | changes)


def painted(lives, frames=4, painter=None, **changes):
    """Return the light of lives as a film [N, F, P, P]; zeros where nothing was painted."""
    film = torch.zeros(len(lives), frames, 48, 48)
    for group in groups_of(lives, painter, **changes):
        film[group.rows, group.frames] = group.light
    return film


def insides(texture, radius=12.0):
    """Return the light well inside of round nuclei, as rows of numbers of mean 0."""
    inside = torch.hypot(*make_pixel_grid(48)) < radius - 1
    values = texture[..., inside]
    return values - values.mean(-1, keepdim=True)


def alike(one, other):
    """Return the correlation of all numbers of two tensors."""
    return float((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt())


def test_only_frames_in_view_are_rendered():
    lives = [make_still_cell(1, frames=6), make_still_cell(2, first=2, frames=3)]
    (group,) = groups_of(lives, views=[(1, 4), (3, 3)])
    assert group.light.shape == (5, 48, 48)
    assert group.light.flatten(1).any(1).all()
    assert group.rows.tolist() == [0, 0, 0, 0, 1]
    assert group.frames.tolist() == [1, 2, 3, 4, 3]
    assert group.zoom.tolist() == [1] * 5
    assert groups_of([]) == []


def test_nucleus_does_not_depend_on_others():
    own = make_still_cell(5, frames=3, radii=make_wavy_contours(3), brightness=0.2)
    others = [make_still_cell(n, frames=3, radii=make_wavy_contours(3, n)) for n in (1, 2, 3)]
    for painter in (LinearDenoiser(), make_random_denoiser()):
        alone = painted([own], 3, painter)[0]
        among = painted([*others, own], 3, painter)[3]
        torch.testing.assert_close(alone, among, rtol=0, atol=0.2 * 0.02)


@settings(max_examples=6, deadline=None)
@given(memory=st.floats(0, 1), fresh=st.floats(0, 1))
def test_noise_correlates_as_set(memory, fresh):
    lives = [make_still_cell(n, frames=6) for n in range(1, 9)]
    film = insides(painted(lives, 6, memory=memory, fresh=fresh))
    for lag in (1, 3):
        found = alike(film[:, :-lag], film[:, lag:])
        assert found == pytest.approx((1 - fresh) * memory**lag, abs=0.06)
    # However it drifts, the contrast stays that of the painter.
    assert film[:, -1].std() == pytest.approx(float(film[:, 0].std()), rel=0.1)


def test_settings_overrule_the_video():
    lives = [make_still_cell()]
    frozen = painted(
        lives, memory=0.1, fresh=0.9, settings=FastSettings(steps=2, memory=1, fresh=0)
    )
    assert torch.equal(frozen, painted(lives, memory=1.0, fresh=0.0))
    renewed = painted(lives, memory=1.0, fresh=0.9, settings=FastSettings(steps=2, fresh=0))
    assert torch.equal(renewed, frozen)


def test_daughters_drift_apart():
    family = []
    for n in range(0, 24, 3):
        family.append(make_still_cell(n + 1, frames=2))
        family += [make_still_cell(n + k, parent=n + 1, first=2, frames=2) for k in (2, 3)]
    film = insides(painted(family, memory=0.8, fresh=0.0))
    mother, one, other = film[::3, 1], film[1::3, 2], film[2::3, 2]
    assert alike(mother, one) == pytest.approx(0.8, abs=0.05)
    assert alike(mother, other) == pytest.approx(0.8, abs=0.05)
    assert alike(one, other) == pytest.approx(0.64, abs=0.06)


@pytest.mark.parametrize(
    "changes",
    [{"brightness": np.array([0.1, 0.3])}, {"stages": np.array([0, 3])}],
    ids=["brightness", "stage"],
)
def test_brightness_and_stage_of_each_frame(changes):
    painter, life = make_random_denoiser(), make_still_cell(frames=2)
    plain, film = (painted([one], 2, painter)[0] for one in (life, replace(life, **changes)))
    torch.testing.assert_close(film[0], plain[0], rtol=0, atol=1e-3)
    assert (film[1] - plain[1]).abs().max() > 0.01


def test_large_nucleus_is_rendered_smaller():
    painter = make_random_denoiser()
    small = make_still_cell(1, frames=1, radii=np.full((1, 60), 15.0))
    large = make_still_cell(1, frames=1, radii=np.full((1, 60), 35.0))
    assert float(fit_to_patch_scale(torch.full((1, 60), 15.0), 48)) == 1
    size = (128, 128)
    sums = {}
    for life in (small, large):
        path = Trajectory(life, np.full((1, 2), 63.5), np.zeros(1))
        inside = label([path], 1, size)[0] == 1
        groups = groups_of([life], painter)
        assert float(groups[0].zoom) == pytest.approx(min(1, 21 / life.radii.max()))
        lit = add_up(make_cell_table([path], 1), groups, size)[0].numpy()
        sums[life is large] = lit[inside].mean()
        assert np.abs(lit[inside & ~ndimage.binary_erosion(inside, iterations=3)]).mean() > 0
    assert sums[True] == pytest.approx(sums[False], rel=0.1)
