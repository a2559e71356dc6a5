"""The distilled painter: one call for each picture, narrow pictures for the nuclei that fit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from painters import LinearPainter, OneCallPainter, random_painter, still_life, wavy
from torch.nn import functional as F

from bvdm_data.rng import torch_rng
from bvdm_data.synth.cells import simulate_lineage
from bvdm_data.synth.denoiser import PATCH_MARGIN, StudentConfig, compute_signed_distance_map
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import (
    STUDENT_STEPS,
    FastSettings,
    TextureModel,
    denoise_patches,
    render_textures,
)
from bvdm_data.weights import load


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 60}, "patch must be a multiple of 8 from 16 on, got 60"),
        ({"patch": 8, "narrow": 8}, "patch must be a multiple of 8 from 16 on, got 8"),
        ({"narrow": 20}, "narrow must be a multiple of 8 from 16 on, got 20"),
        ({"narrow": 72}, "narrow must be at most patch=64, got 72"),
        ({"floor": 0.0}, "floor must be above 0, got 0.0"),
        ({"floor": math.nan}, "floor must be above 0, got nan"),
        ({"channels": (8, 8)}, r"channels must be three numbers above 0, got \(8, 8\)"),
        ({"channels": (8, 0, 8)}, r"channels must be three numbers above 0, got \(8, 0, 8\)"),
        ({"condition_channels": 0}, "condition_channels must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        StudentConfig(**changes)


@pytest.fixture
def network(tiny_generator):
    """A small network of random weights, for pictures of 32 and 48 px."""
    return tiny_generator.distilled


def given(count, side, seed=0):
    """Return noise, edge maps, brightness and stages of some nuclei."""
    noise = torch.randn((count, 1, side, side), generator=torch.Generator().manual_seed(seed))
    edge = compute_signed_distance_map(torch.from_numpy(wavy(count, seed, 10.0)).float(), side)
    return noise, edge, torch.linspace(0.05, 0.4, count), torch.arange(count) % 6


@pytest.mark.parametrize("side", [16, 32, 48, 56])
def test_a_picture_is_as_large_as_its_noise(network, side):
    drawn = network(*given(3, side))
    assert (drawn.shape, drawn.dtype) == ((3, 1, side, side), torch.float32)
    assert drawn.isfinite().all()


def test_all_that_is_known_of_a_nucleus_changes_its_picture(network):
    known = given(2, 32)
    plain = network(*known)
    others = (-known[0], known[1].roll(3, 2), known[2] * 2, torch.full((2,), -1))
    for place, other in enumerate(others):
        changed = list(known)
        changed[place] = other
        assert (network(*changed) - plain).abs().amax((1, 2, 3)).min() > 1e-5


def test_an_unknown_stage_is_none_of_the_stages(network):
    noise, edge, brightness, _ = (part[:1].expand(7, *part.shape[1:]) for part in given(2, 32))
    drawn = network(noise, edge, brightness, torch.arange(-1, 6))
    apart = (drawn[:, None] - drawn[None]).abs().amax((2, 3, 4)) + torch.eye(7)
    assert apart.min() > 1e-5


def test_a_batchs_size_does_not_matter_beyond_rounding(network):
    noise, _, brightness, stage = given(9, 32)
    radii = torch.from_numpy(wavy(9, 0, 10.0)).float()

    def painted(rows):
        parts = (noise[rows, 0], radii[rows], brightness[rows], stage[rows])
        return denoise_patches(network, *parts, steps=1)

    whole = painted(slice(None))
    alone = torch.cat([painted(slice(n, n + 1)) for n in range(9)])
    # bfloat16 has eight bits.
    bound = whole.abs().amax((1, 2), keepdim=True) * 0.03
    assert ((whole - alone).abs() <= bound).all()
    assert whole.std() > 0


def test_nuclei_fit_into_narrow_pictures_with_a_rim(network):
    most = 32 / 2 - PATCH_MARGIN
    radii = torch.full((3, 60), 5.0)
    radii[:, 7] = torch.tensor([most - 0.01, most, most + 0.01])
    assert network.fits_narrow(radii).tolist() == [True, True, False]


# Films


@pytest.fixture
def family():
    """A nucleus that grows out of a narrow picture, a small one, and one too large for all."""
    growing = np.repeat(np.array([[9.0], [12.0], [15.0], [20.0]]), 60, 1)
    return [
        still_life(1, radii=growing, brightness=0.1),
        still_life(2, first=1, frames=2, radii=8.0, brightness=0.3),
        still_life(3, first=3, frames=1, radii=42.0, brightness=0.2),
    ]


def groups_of(lives, painter, **changes):
    texture = TextureModel(memory=0.9, fresh=0.2)
    views = [(life.first, life.last) for life in lives]
    streams = [torch_rng(0, "texture", life.identity) for life in lives]
    return render_textures(lives, views, painter, texture, FastSettings(), streams, **changes)


def test_nuclei_are_painted_in_groups_by_the_side_of_their_pictures(family):
    heard = []
    narrow, wide = groups_of(family, OneCallPainter(LinearPainter()), progress=heard.append)
    assert narrow.light.shape == (4, 32, 32)
    assert wide.light.shape == (3, 48, 48)
    assert list(zip(narrow.rows.tolist(), narrow.frames.tolist(), strict=True)) == [
        (0, 0), (0, 1), (1, 1), (1, 2),
    ]  # fmt: skip
    assert list(zip(wide.rows.tolist(), wide.frames.tolist(), strict=True)) == [
        (0, 2), (0, 3), (2, 3),
    ]  # fmt: skip
    assert narrow.zoom.tolist() == [1] * 4
    assert wide.zoom.tolist() == pytest.approx([1, 1, 0.5])
    assert heard == [pytest.approx(4 / 7), 1]


def test_groups_that_nobody_is_in_are_left_out(family):
    painter = OneCallPainter(LinearPainter())
    assert [group.light.shape[-1] for group in groups_of(family[1:2], painter)] == [32]
    assert [group.light.shape[-1] for group in groups_of(family[2:], painter)] == [48]
    assert groups_of([], painter) == []


def test_a_network_of_one_size_of_picture_makes_one_group(family):
    (group,) = groups_of(family[:2], OneCallPainter(LinearPainter(), narrow=48))
    assert group.light.shape == (6, 48, 48)


def test_a_narrow_picture_is_the_middle_of_the_wide_one():
    wide, narrow = (OneCallPainter(LinearPainter(), narrow=side) for side in (48, 32))
    lives = [still_life(n, radii=wavy(4, n, 9.0), brightness=0.1 * n) for n in (1, 2)]
    (one,), (other,) = (groups_of(lives, painter) for painter in (wide, narrow))
    assert other.light.shape[-1] == 32
    # All but what is cut off is the same.
    torch.testing.assert_close(one.light[:, 8:40, 8:40], other.light, rtol=0, atol=1e-6)


def test_texture_lasts_when_a_nucleus_outgrows_its_narrow_picture():
    radii = np.repeat(np.array([[12.9], [13.1]]), 60, 1)
    texture = TextureModel(memory=1.0, fresh=0.0)
    life = still_life(1, frames=2, radii=radii)
    narrow, wide = render_textures(
        [life], [(0, 1)], OneCallPainter(LinearPainter()), texture, FastSettings(),
        [torch_rng(0, "texture", 1)],
    )  # fmt: skip
    before, after = narrow.light[0, 10:22, 10:22], wide.light[0, 18:30, 18:30]
    assert before.std() > 0
    torch.testing.assert_close(before, after, rtol=0.02, atol=1e-4)


# Generators


class _Refuses(LinearPainter):
    def forward(self, *_):
        pytest.fail("the painter was called")


def test_one_step_is_painted_by_the_distilled_network_and_more_by_the_painter(tiny_generator):
    assert tiny_generator.get_denoiser(1) is tiny_generator.distilled
    assert tiny_generator.get_denoiser(2) is tiny_generator.painter
    scene = SceneSettings(frames=2, size=(64, 64), nuclei=3)
    lame = replace(tiny_generator, painter=_Refuses())

    def film(generator, steps):
        settings = FastSettings(steps=steps)
        return synthesise(generator, scene, settings, seed=0, name=("clip", 0, 0)).video

    np.testing.assert_array_equal(film(lame, 1), film(tiny_generator, 1))
    with pytest.raises(pytest.fail.Exception, match="the painter was called"):
        film(lame, 2)
    other = replace(tiny_generator, painter=random_painter(7))
    np.testing.assert_array_equal(film(other, 1), film(tiny_generator, 1))
    assert not np.array_equal(film(other, 2), film(tiny_generator, 2))


def test_a_generator_on_a_device_has_a_copy_of_the_distilled_network(tiny_generator):
    state = torch.get_rng_state()
    moved = tiny_generator.to(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert moved.distilled is not tiny_generator.distilled
    assert moved.distilled.settings == tiny_generator.distilled.settings
    pairs = zip(
        moved.distilled.state_dict().values(),
        tiny_generator.distilled.state_dict().values(),
        strict=True,
    )
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_shipped_network_draws_what_the_shipped_painter_does():
    generator, draws = load("hela"), np.random.default_rng(7)
    families = [
        simulate_lineage(generator.shapes, generator.lives, 3, draws, 1 + 100 * n, jitter=None)
        for n in range(12)
    ]
    lives = [life for family in families for life in family]
    films = []
    for settings in (FastSettings(steps=STUDENT_STEPS), FastSettings()):
        film = torch.zeros(len(lives), 3, 64, 64)
        groups = render_textures(
            lives, [(life.first, life.last) for life in lives],
            generator.get_denoiser(settings.steps), generator.texture, settings,
            [torch_rng(0, "texture", life.identity) for life in lives],
        )  # fmt: skip
        for group in groups:
            rim = (64 - group.light.shape[-1]) // 2
            film[group.rows, group.frames] = F.pad(group.light, [rim] * 4)
        films.append(film)
    missed = spread = 0.0
    for row, life in enumerate(lives):
        edge = compute_signed_distance_map(torch.from_numpy(life.radii).float(), 64)[:, 0]
        for frame, inside in enumerate(edge <= 0, start=life.first):
            slow, quick = (
                film[row, frame][inside] / life.brightness[frame - life.first] for film in films
            )
            missed += float((quick - slow).square().sum())
            spread += float((slow - slow.mean()).square().sum())
    # Measured: 0.004. A network that lights all nuclei evenly misses all the variance.
    assert missed < 0.01 * spread
