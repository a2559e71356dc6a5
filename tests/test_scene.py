import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rasters import label
from scipy import ndimage

from bvdm_data.synth.camera import expose
from bvdm_data.synth.cells import Cell
from bvdm_data.synth.flow import FLOW_SIZE
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.render import composite_masked, compute_texture_flow, iterate_cell_pixels

SIZE = (48, 64)
OVAL = (9.0, 6.0)


def a_path(identity, centres, turns=None, depth=0.0, first=0, brightness=0.3, axes=OVAL):
    """An ellipse that goes through the centres."""
    angle = np.arange(60) * 2 * np.pi / 60
    radii = np.prod(axes) / np.hypot(axes[1] * np.cos(angle), axes[0] * np.sin(angle))
    count = len(centres)
    life = Cell(
        identity=identity,
        parent=0,
        first=first,
        radii=np.repeat(radii[None], count, 0),
        stages=np.zeros(count, np.int64),
        brightness=np.full(count, brightness),
        divides=False,
    )
    turns = np.zeros(count) if turns is None else np.array(turns, float)
    return Trajectory(life, np.array(centres, float), turns, depth)


def flat(count, frames, level=0.5):
    return torch.full((count, frames, FLOW_SIZE, FLOW_SIZE), level)


def still(count, frames):
    return torch.zeros(count, frames - 1, 2, FLOW_SIZE, FLOW_SIZE)


@pytest.fixture
def crowd():
    """Three nuclei in two frames that overlap each other and the border."""
    return [
        a_path(4, [(20, 20), (21, 22)], [0.3, 0.5], depth=1.0, brightness=0.2),
        a_path(2, [(24, 27), (25, 27)], [1.0, 1.2], depth=2.0, brightness=0.4),
        a_path(9, [(22, 31), (20, 30)], [2.0, 1.9], depth=0.0, brightness=0.6),
        a_path(7, [(-3, 60), (1, 63)], [0.0, 0.1], depth=3.0, brightness=0.8),
    ]


def test_label_of_an_ellipse_agrees_with_a_slow_loop():
    turn, centre = 0.7, (20.3, 30.8)
    labels = label([a_path(3, [centre], [turn])], 1, SIZE)
    for row, column in np.ndindex(*SIZE):
        dy, dx = row - centre[0], column - centre[1]
        y = math.cos(turn) * dy + math.sin(turn) * dx
        x = -math.sin(turn) * dy + math.cos(turn) * dx
        level = math.hypot(y / OVAL[0], x / OVAL[1])
        if abs(level - 1) > 0.02:
            assert labels[0, row, column] == (3 if level < 1 else 0)


def test_the_major_axis_lies_along_y_without_a_turn_and_along_x_after_a_quarter():
    for turn, extent in ((0, (19, 13)), (math.pi / 2, (13, 19))):
        labels = label([a_path(1, [(24, 32)], [turn])], 1, SIZE)[0]
        assert (labels.any(1).sum(), labels.any(0).sum()) == extent


def test_the_nucleus_of_the_larger_depth_is_seen_where_two_overlap(crowd):
    alone = {path.z_order: label([path], 2, SIZE) for path in crowd}
    expected = np.zeros((2, *SIZE), np.int32)
    for depth in sorted(alone):
        expected[alone[depth] > 0] = alone[depth][alone[depth] > 0]
    assert np.array_equal(label(crowd, 2, SIZE), expected)
    assert np.array_equal(label(crowd[::-1], 2, SIZE), expected)


def test_light_is_where_labels_are_and_of_the_nucleus_that_is_seen(crowd):
    labels = label(crowd, 2, SIZE)
    light = composite_masked(crowd, labels, flat(4, 2), 0.5)
    expected = np.zeros((2, *SIZE), np.float32)
    for path in crowd:
        expected[labels == path.cell.identity] = path.cell.brightness[0]
    assert len(np.unique(labels)) == 5
    np.testing.assert_allclose(light, expected, rtol=1e-4)
    assert not light[labels == 0].any()


def test_light_in_an_overlap_is_the_texture_of_its_owner(crowd):
    texture = torch.rand(4, 2, FLOW_SIZE, FLOW_SIZE, generator=torch.Generator().manual_seed(0))
    labels = label(crowd, 2, SIZE)
    together = composite_masked(crowd, labels, texture + 0.1, 0.5)
    for row, path in enumerate(crowd):
        own = labels == path.cell.identity
        alone = composite_masked([path], label([path], 2, SIZE), texture[row : row + 1] + 0.1, 0.5)
        assert np.array_equal(together[own], alone[own])


def test_light_of_an_unturned_nucleus_is_its_texture_pixel_by_pixel():
    path = a_path(1, [(24, 32)])
    texture = torch.rand(1, 1, FLOW_SIZE, FLOW_SIZE, generator=torch.Generator().manual_seed(0))
    labels = label([path], 1, SIZE)
    light = composite_masked([path], labels, texture, 0.5)[0]
    middle = (FLOW_SIZE - 1) / 2
    inside = next(iter(iterate_cell_pixels([path], 0, SIZE)))
    for row, column in np.argwhere(labels[0] > 0):
        local = row - inside.window[0].start, column - inside.window[1].start
        if float(inside.edge[local]) < -1:
            y, x = row - 24 + middle, column - 32 + middle  # between four pixels of the patch
            corner = texture[0, 0, int(y) : int(y) + 2, int(x) : int(x) + 2]
            expected = float(corner.mean()) * 0.3 / 0.5
            assert light[row, column] == pytest.approx(expected, rel=1e-3)


def test_light_is_blurred_along_the_outline_alone():
    path = a_path(1, [(24, 32)], axes=(12.0, 12.0))
    grid = torch.arange(FLOW_SIZE)
    board = ((grid[:, None] + grid[None]) // 2 % 2).float()[None, None]
    labels = label([path], 1, SIZE)
    light = composite_masked([path], labels, board, 1.0)[0]
    depth = ndimage.distance_transform_edt(labels[0])
    inner, outer = light[depth > 4], light[(depth > 0) & (depth <= 1)]
    assert inner.std() > 1.5 * outer.std()


def test_light_is_never_negative():
    path = a_path(1, [(24, 32)])
    labels = label([path], 1, SIZE)
    assert not composite_masked([path], labels, flat(1, 1, -0.3), 0.5).any()


def test_displace_without_motion_and_flow_is_still():
    path = a_path(1, [(20, 30)] * 3, [0.4] * 3)
    moved = compute_texture_flow([path], label([path], 3, SIZE), still(1, 3))
    assert moved.shape == (2, 2, *SIZE)
    assert np.abs(moved).max() < 1e-4


def test_displace_without_flow_is_the_rigid_motion_to_a_thousandth():
    path = a_path(5, [(20.2, 30.6), (22.9, 29.1), (23.0, 33.3)], [0.4, 0.9, 0.6])
    labels = label([path], 3, SIZE)
    moved = compute_texture_flow([path], labels, still(1, 3))
    for frame, row, column in np.argwhere(labels[:2] > 0):
        angle = path.angles[frame + 1] - path.angles[frame]
        dy, dx = (row, column) - path.centres[frame]
        # Turns count from y towards x.
        y = math.cos(angle) * dy - math.sin(angle) * dx + path.centres[frame + 1, 0]
        x = math.sin(angle) * dy + math.cos(angle) * dx + path.centres[frame + 1, 1]
        expected = (y - row, x - column)
        np.testing.assert_allclose(moved[frame, :, row, column], expected, atol=1e-3)


def test_displace_adds_the_forward_flow_in_the_orientation_of_the_nucleus():
    path = a_path(1, [(20, 30), (20, 30)], [math.pi / 2] * 2)
    flow = still(1, 2)
    flow[:, :, 0] = -2.0  # the next frame looks back along the major axis
    labels = label([path], 2, SIZE)
    inside = compute_texture_flow([path], labels, flow)[0][:, labels[0] > 0]
    np.testing.assert_allclose(inside[0], 0, atol=1e-3)
    np.testing.assert_allclose(inside[1], 2, atol=1e-3)


def test_displace_carries_masks_onto_the_masks_of_the_next_frame(crowd):
    labels = label(crowd[:1], 2, SIZE)
    moved = compute_texture_flow(crowd[:1], labels, still(1, 2))
    places = np.argwhere(labels[0] > 0)
    arrived = np.rint(places + moved[0][:, labels[0] > 0].T).astype(int)
    hits = labels[1][tuple(arrived.T)] > 0
    assert hits.mean() > 0.9


def test_displace_is_0_in_the_background_and_of_nuclei_that_are_gone(crowd):
    short = a_path(11, [(40, 12)], depth=5.0)
    labels = label([*crowd, short], 2, SIZE)
    moved = compute_texture_flow([*crowd, short], labels, still(5, 2))
    assert not moved[0][:, (labels[0] == 0) | (labels[0] == 11)].any()
    assert moved[0][:, labels[0] == 4].any()


def test_displace_is_0_of_a_nucleus_that_leaves_the_picture_or_is_covered():
    leaves = a_path(1, [(3, 20), (-30, 20)])
    hides = a_path(2, [(30, 15), (30, 40)], axes=(4.0, 4.0))
    covers = a_path(3, [(30, 40), (30, 40)], depth=1.0, axes=(9.0, 9.0))
    paths = [leaves, hides, covers]
    labels = label(paths, 2, SIZE)
    assert set(np.unique(labels[0])) == {0, 1, 2, 3}
    assert set(np.unique(labels[1])) == {0, 3}
    moved = compute_texture_flow(paths, labels, still(3, 2))
    assert not moved.any()


def test_displace_in_an_overlap_is_that_of_the_owner(crowd):
    labels = label(crowd, 2, SIZE)
    together = compute_texture_flow(crowd, labels, still(4, 2))[0]
    for path in crowd:
        own = labels[0] == path.cell.identity
        alone = compute_texture_flow([path], label([path], 2, SIZE), still(1, 2))[0]
        assert np.array_equal(together[:, own], alone[:, own])


def test_expose_gives_whole_counts_of_the_camera(tiny_camera):
    light = np.linspace(0, 1.5, 2 * 40 * 40, dtype=np.float32).reshape(2, 40, 40)
    video = expose(light, tiny_camera, np.random.default_rng(0))
    counts = video.astype(np.float64) * 4095
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    assert video.min() >= 0
    assert video.max() == 1
    assert video.dtype == np.float32


def test_expose_has_the_level_and_the_noise_of_the_camera(tiny_camera):
    camera = replace(tiny_camera, level_spread=0.0, field_spread=0.0)
    video = expose(np.zeros((2, 400, 400), np.float32), camera, np.random.default_rng(0))
    assert video.mean() == pytest.approx(camera.level, rel=1e-3)
    assert video.std() == pytest.approx(camera.noise, rel=0.01)


def correlation(one, other):
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_expose_correlates_the_noise_along_rows_as_the_streak_does(tiny_camera):
    camera = replace(tiny_camera, level_spread=0.0, field_spread=0.0, noise=0.01)
    video = expose(np.zeros((2, 400, 400), np.float32), camera, np.random.default_rng(0))
    kernel = camera.streak
    for lag in (1, 2):
        expected = float((kernel[lag:] * kernel[:-lag]).sum())
        found = correlation(video[:, :, lag:], video[:, :, :-lag])
        assert found == pytest.approx(expected, abs=0.01)
    assert correlation(video[:, 1:], video[:, :-1]) == pytest.approx(0, abs=0.01)
    assert correlation(video[0], video[1]) == pytest.approx(0, abs=0.01)


def test_expose_has_one_level_a_film_and_another_in_the_next(tiny_camera):
    camera = replace(tiny_camera, level_spread=0.005, field_spread=0.0, noise=0.0)
    dark = np.zeros((3, 4, 4), np.float32)
    films = [expose(dark, camera, np.random.default_rng(seed)) for seed in range(300)]
    assert all(len(np.unique(video)) == 1 for video in films)
    assert np.std([video.mean() for video in films]) == pytest.approx(0.005, rel=0.15)


def test_expose_has_a_smooth_background_of_the_spread_of_the_video(tiny_camera):
    camera = replace(tiny_camera, level_spread=0.0, noise=0.0, field_width=8.0, field_spread=0.01)
    video = expose(np.zeros((2, 400, 300), np.float32), camera, np.random.default_rng(0))
    assert np.array_equal(video[0], video[1])
    assert video[0].std() == pytest.approx(0.01, rel=0.2)
    assert correlation(video[0, 1:], video[0, :-1]) > 0.98
    assert abs(correlation(video[0, 60:], video[0, :-60])) < 0.2


def test_expose_spreads_light_around_a_nucleus_and_takes_none_from_it(tiny_camera):
    plain = replace(tiny_camera, level=0.0, level_spread=0.0, field_spread=0.0, noise=0.0)
    light = np.zeros((1, 40, 40), np.float32)
    light[0, 15:25, 15:25] = 0.5
    video = expose(light, plain, np.random.default_rng(0))[0]
    np.testing.assert_allclose(video[15:25, 15:25], 0.5, atol=1 / 4095)
    assert 0.05 < video[20, 13] < 0.5
    assert video[20, 2] == 0


def test_expose_of_no_light_with_a_camera_without_noise_is_dark(tiny_camera):
    dark = replace(tiny_camera, level=0.0, level_spread=0.0, field_spread=0.0, noise=0.0)
    assert not expose(np.zeros((1, 20, 20), np.float32), dark, np.random.default_rng(0)).any()


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (33, 5)])
def test_expose_takes_a_picture_of_any_size(tiny_camera, size):
    video = expose(np.zeros((3, *size), np.float32), tiny_camera, np.random.default_rng(0))
    assert video.shape == (3, *size)


def test_expose_gives_the_same_bytes_for_the_same_seed_and_others_for_another(tiny_camera):
    light = np.zeros((2, 16, 16), np.float32)
    one, again, other = (expose(light, tiny_camera, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not light.any()
