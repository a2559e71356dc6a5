"""The painter: what it is told, and how noise becomes a picture."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from painters import LinearPainter, random_painter, wavy

from bvdm_data.synth.contours import test_inside
from bvdm_data.synth.denoiser import (
    SDF_CLIP,
    T_MAX,
    Denoiser,
    DenoiserConfig,
    compute_signed_distance_map,
    make_pixel_grid,
    run_dpm_solver,
)

# Settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 8}, "patch must be a multiple of 8 from 16 on, got 8"),
        ({"patch": 60}, "patch must be a multiple of 8 from 16 on, got 60"),
        ({"floor": 0.0}, "floor must be above 0, got 0.0"),
        ({"floor": math.nan}, "floor must be above 0, got nan"),
        ({"channels": (16, 16)}, r"channels must be three multiples of 16, got \(16, 16\)"),
        ({"channels": (8, 12, 8)}, r"channels must be three multiples of 16, got \(8, 12, 8\)"),
        ({"channels": (0, 8, 8)}, "channels must be three multiples of 16"),
        ({"middle": 0}, "middle must be at least 1, got 0"),
        ({"condition_channels": 6}, "condition_channels must be even and at least 8, got 6"),
        ({"condition_channels": 9}, "condition_channels must be even and at least 8, got 9"),
    ],
)
def test_painter_settings_refuse_sizes_that_make_no_network(changes, words):
    with pytest.raises(ValueError, match=words):
        DenoiserConfig(**changes)


# The network


@pytest.fixture
def asked():
    """Ask a painter for the velocity of two pictures; the keywords replace inputs."""
    noise = torch.randn((2, 1, 48, 48), generator=torch.Generator().manual_seed(0))
    inputs = {
        "noisy": noise,
        "level": torch.tensor([0.4, 0.4]),
        "edge": compute_signed_distance_map(torch.tensor([[10.0] * 60, [14.0] * 60]), 48),
        "brightness": torch.tensor([0.1, 0.2]),
        "stage": torch.tensor([0, 3]),
    }
    painter = random_painter()
    return lambda **changes: painter(**inputs | changes)


def test_the_velocity_has_the_shape_of_the_pictures(asked):
    velocity = asked()
    assert velocity.shape == (2, 1, 48, 48)
    assert velocity.dtype == torch.float32


@pytest.mark.parametrize(
    "changes",
    [
        {"level": torch.tensor([0.5, 0.4])},
        {"edge": compute_signed_distance_map(torch.tensor([[11.0] * 60, [14.0] * 60]), 48)},
        {"brightness": torch.tensor([0.12, 0.2])},
        {"stage": torch.tensor([1, 3])},
        {"stage": torch.tensor([-1, 3])},
    ],
    ids=["level", "outline", "brightness", "stage", "unknown stage"],
)
def test_each_thing_the_painter_is_told_of_a_nucleus_changes_that_one_alone(asked, changes):
    before, after = asked(), asked(**changes)
    assert (before[0] - after[0]).abs().max() > 1e-4
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=1e-5)


def test_one_level_for_all_is_the_same_as_that_level_for_each(asked):
    torch.testing.assert_close(asked(level=torch.tensor([0.4])), asked(), rtol=0, atol=1e-5)


def test_darkness_below_zero_is_taken_as_zero(asked):
    dark, black = (asked(brightness=torch.tensor([value, 0.2])) for value in (-0.1, 0.0))
    assert torch.equal(dark, black)


# Scale


@given(
    brightness=st.floats(0.0, 0.9),
    floor=st.floats(1e-3, 0.1),
    value=st.floats(-1.0, 5.0),
)
def test_to_light_undoes_to_picture(brightness, floor, value):
    with torch.random.fork_rng(devices=[]):
        painter = Denoiser(DenoiserConfig(patch=16, floor=floor, channels=(16, 16, 16)))
    light = torch.full((1, 16, 16), value)
    light[0, 3, 4] = 0
    given_light = torch.tensor([brightness])
    picture = painter.normalize(light, given_light)
    assert picture.shape == (1, 1, 16, 16)
    assert picture[0, 0, 3, 4] == -1
    torch.testing.assert_close(
        painter.denormalize(picture, given_light), light, rtol=1e-4, atol=1e-6
    )


def test_a_bright_nucleus_is_about_one_and_a_dim_one_is_less(tiny_generator):
    painter = tiny_generator.painter
    brightness = torch.tensor([0.4, painter.settings.floor])
    light = brightness[:, None, None].expand(2, 16, 16)
    bright, dim = painter.normalize(light, brightness)[:, 0, 0, 0].tolist()
    assert bright == pytest.approx(1, abs=0.01)
    assert dim == pytest.approx(math.sqrt(2) - 1, abs=1e-5)


# Outlines


def test_the_middle_of_a_patch_lies_between_its_central_pixels():
    grid = make_pixel_grid(16)
    assert grid.shape == (2, 16, 16)
    assert (grid[:, 7, 8]).tolist() == [-0.5, 0.5]
    assert torch.equal(grid, -grid.flip(1, 2))
    assert torch.equal(grid[0], grid[1].T)


@settings(max_examples=25)
@given(radii=st.lists(st.floats(3.0, 22.0), min_size=8, max_size=8))
def test_the_edge_map_is_the_distance_along_the_ray(radii):
    found = compute_signed_distance_map(torch.tensor([radii, radii[::-1]]), 48)
    assert found.shape == (2, 1, 48, 48)
    line = np.arange(48) - 23.5
    y, x = line[:, None], line[None]
    angle = np.arctan2(x, y) % (2 * np.pi)
    corners = np.append(np.arange(8), 8) * np.pi / 4
    for one, plane in zip((radii, radii[::-1]), found[:, 0].numpy(), strict=True):
        outline = np.interp(angle, corners, [*one, one[0]])
        wanted = np.clip((np.hypot(y, x) - outline) / SDF_CLIP, -1, 1)
        np.testing.assert_allclose(plane, wanted, atol=1e-4)


def test_the_edge_map_is_negative_exactly_inside():
    radii = torch.from_numpy(wavy(4)).float()
    y, x = make_pixel_grid(48)[:, None].expand(2, 4, -1, -1)
    assert torch.equal(compute_signed_distance_map(radii, 48)[:, 0] <= 0, test_inside(radii, y, x))


# From noise to pictures


def given_to(count=1, seed=0):
    """Return noise, outlines as edge maps, brightness and stage of some nuclei."""
    noise = torch.randn((count, 1, 48, 48), generator=torch.Generator().manual_seed(seed))
    edge = compute_signed_distance_map(torch.from_numpy(wavy(count)).float(), 48)
    return noise, edge, torch.linspace(0.05, 0.3, count), torch.zeros(count, dtype=torch.long)


def flowed(painter, noise, edge, brightness):
    """Return where the exact probability flow of normal pictures ends."""
    mean = painter.mean(edge, brightness)
    start = T_MAX * math.pi / 2
    drawn = noise - math.cos(start) * mean
    drawn /= math.hypot(math.cos(start) * painter.spread, math.sin(start))
    return mean + painter.spread * drawn


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_each_step_calls_the_network_once_at_a_lower_level(steps):
    painter = LinearPainter()
    run_dpm_solver(painter, *insert_steps(given_to(), steps))
    assert len(painter.levels) == steps
    assert painter.levels[0] == pytest.approx(T_MAX)
    assert painter.levels == sorted(painter.levels, reverse=True)
    assert len(set(painter.levels)) == steps
    assert painter.levels[-1] > 0


def insert_steps(inputs, steps):
    return inputs[0], steps, *inputs[1:]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_pictures_that_are_all_alike_are_met_in_any_number_of_steps(steps):
    painter = LinearPainter(spread=0.0)
    noise, edge, brightness, stage = given_to(3)
    found = run_dpm_solver(painter, noise, steps, edge, brightness, stage)
    torch.testing.assert_close(found, painter.mean(edge, brightness), rtol=0, atol=1e-5)


def test_one_step_gives_the_expected_picture():
    painter = LinearPainter(spread=0.5)
    noise, edge, brightness, stage = given_to(2)
    found = run_dpm_solver(painter, noise, 1, edge, brightness, stage)
    cos, sin = math.cos(T_MAX * math.pi / 2), math.sin(T_MAX * math.pi / 2)
    mean = painter.mean(edge, brightness)
    wanted = mean + cos * 0.25 / (cos**2 * 0.25 + sin**2) * (noise - cos * mean)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_more_steps_come_nearer_to_the_flow_of_normal_pictures(spread):
    painter = LinearPainter(spread)
    noise, edge, brightness, stage = given_to(2)
    wanted = flowed(painter, noise, edge, brightness)
    roots = [
        float((run_dpm_solver(painter, noise, steps, edge, brightness, stage) - wanted).std())
        for steps in (2, 8, 32, 64, 128)
    ]
    for more, fewer in itertools.pairwise(roots[::-1]):
        assert more < fewer / 2
    # Of second order: twice the steps leave a quarter of the error.
    assert roots[-1] < roots[-2] / 3.5


def multistep(painter, noise, angles, edge, brightness, stage):
    """Take the steps of DPM-Solver++(2M) as its algorithm 2 has them."""
    alpha, sigma = np.cos(angles), np.sin(angles)
    log_snr = np.log(alpha / sigma)
    x, known = noise, []
    for n, angle in enumerate(angles):
        level = torch.tensor([2 * angle / math.pi], dtype=torch.float32)
        velocity = painter(x, level, edge, brightness, stage)
        known.append(float(alpha[n]) * x - float(sigma[n]) * velocity)
        if n + 1 == len(angles):
            return known[-1]
        h = log_snr[n + 1] - log_snr[n]
        ahead = known[-1]
        if n:
            r = (log_snr[n] - log_snr[n - 1]) / h
            ahead = (1 + 1 / (2 * r)) * known[-1] - 1 / (2 * r) * known[-2]
        x = float(sigma[n + 1] / sigma[n]) * x - float(alpha[n + 1] * np.expm1(-h)) * ahead
    return None


def test_the_steps_are_those_of_the_second_order_multistep_solver():
    noise, edge, brightness, stage = given_to(2)
    painter = random_painter(spread=0.2)
    counter = LinearPainter()
    run_dpm_solver(counter, noise, 7, edge, brightness, stage)
    angles = np.array(counter.levels, float) * math.pi / 2
    wanted = multistep(painter, noise, angles, edge, brightness, stage)
    found = run_dpm_solver(painter, noise, 7, edge, brightness, stage)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_noise_that_changes_a_little_gives_a_picture_that_changes_a_little():
    painter = LinearPainter(spread=0.5)
    noise, edge, brightness, stage = given_to(2)
    change = torch.randn(noise.shape, generator=torch.Generator().manual_seed(9))
    one, other = (
        run_dpm_solver(painter, some, 6, edge, brightness, stage)
        for some in (noise, noise + 0.01 * change)
    )
    assert 0 < (one - other).std() < 0.01
    again = run_dpm_solver(painter, noise, 6, edge, brightness, stage)
    assert torch.equal(one, again)
