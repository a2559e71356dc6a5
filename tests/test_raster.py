"""Labels, light and displacement of all nuclei at once, against loops over nuclei and pixels."""

import math

import numpy as np
import pytest
import torch
from painters import still_life, wavy
from rasters import label
from torch.nn import functional as F

from bvdm_data.synth import render as raster
from bvdm_data.synth.denoiser import compute_signed_distance_map, fit_to_patch_scale
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.render import composite, compute_radial_flow, draw_labels, make_cell_table
from bvdm_data.synth.textures import RenderedPatches, fade_halo

SIZE = (70, 90)
CORNERS = 2 * np.pi * np.arange(61) / 60


def path(identity, centres, radii, *, turns=0.0, depth=None, first=0):
    """Return the way of a nucleus through the centres."""
    centres = np.array(centres, float).reshape(-1, 2)
    life = still_life(identity, first=first, frames=len(centres), radii=radii)
    turns = np.broadcast_to(np.asarray(turns, float), len(centres)).copy()
    return Trajectory(life, centres, turns, float(identity if depth is None else depth))


def drawn(count, frames=3, seed=0, sizes=(4, 14), margin=20):
    """Return nuclei of random outlines that lie anywhere in the picture, across it or outside."""
    draws = np.random.default_rng(seed)
    found = []
    for number, depth in enumerate(draws.permutation(count)):
        first = int(draws.integers(frames))
        length = int(draws.integers(1, frames + 1 - first))
        start = draws.uniform([-margin, -margin], np.add(SIZE, margin))
        centres = start + draws.normal(0, 3, (length, 2)).cumsum(0)
        radii = wavy(length, seed=100 * seed + number, size=draws.uniform(*sizes))
        turns = draws.uniform(-7, 7, length)
        found.append(path(number + 1, centres, radii, turns=turns, depth=depth, first=first))
    return found


def own_place(nucleus, frame, y, x):
    """Return the offsets of points along a nucleus' major axis and across it."""
    moment = frame - nucleus.cell.first
    turn, (down, right) = nucleus.angles[moment], nucleus.centres[moment]
    dy, dx = y - down, x - right
    return np.cos(turn) * dy + np.sin(turn) * dx, np.cos(turn) * dx - np.sin(turn) * dy


def outline_at(radii, y, x):
    """Return how far the outline is in the direction of points."""
    angle = np.arctan2(x, y) % (2 * np.pi)
    return np.interp(angle, CORNERS, np.append(radii, radii[0]))


def slow_labels(paths, frames, size=SIZE):
    """Return identities, and which pixels lie so near an outline that rounding decides."""
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    labels, close = np.zeros((frames, *size), int), np.zeros((frames, *size), bool)
    for nucleus in sorted(paths, key=lambda one: one.z_order):
        for frame in range(nucleus.cell.first, min(frames, nucleus.cell.last + 1)):
            own = own_place(nucleus, frame, y, x)
            radii = nucleus.cell.radii[frame - nucleus.cell.first]
            outside = np.hypot(*own) - outline_at(radii, *own)
            labels[frame][outside <= 0] = nucleus.cell.identity
            close[frame] |= np.abs(outside) < 1e-3
    return labels, close


def assert_labels_are_those_of_a_slow_loop(paths, frames, size=SIZE):
    labels, close = slow_labels(paths, frames, size)
    np.testing.assert_array_equal(label(paths, frames, size)[~close], labels[~close])
    assert close.mean() < 0.01
    return labels


# Tables


def test_tables_hold_a_row_for_each_nucleus_and_zeros_where_it_is_not_there():
    one = path(7, [(3, 4), (5, 6)], [[9.0] * 60, [8.0] * 60], turns=[0.0, math.pi / 2], first=1)
    tables = make_cell_table([one, path(3, [(1, 2)], 5.0, depth=-1)], 4)
    assert tables.there.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert tables.centres[0].tolist() == [[0, 0], [3, 4], [5, 6], [0, 0]]
    torch.testing.assert_close(tables.axes[0, 1:3], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert tables.radii[0, 1:3, 0].tolist() == [9, 8]
    assert tables.rank.tolist() == [1, 0]


def test_tables_leave_out_what_is_after_the_last_frame():
    long = path(1, [(n, n) for n in range(5)], 4.0, first=1)
    late = path(2, [(9, 9)], 4.0, first=3)
    tables = make_cell_table([long, late], 2)
    assert tables.there.tolist() == [[False, True], [False, False]]
    assert np.unique(label([long, late], 2, SIZE)).tolist() == [0, 1]


# Labels


@pytest.mark.parametrize("seed", range(6))
def test_labels_are_those_of_a_slow_loop(seed):
    labels = assert_labels_are_those_of_a_slow_loop(drawn(14, seed=seed), 3)
    assert len(np.unique(labels)) > 6


def test_nuclei_of_all_sizes_share_a_film():
    sizes = [(1, 2), (4, 8), (15, 22), (30, 40), (90, 120)]
    # The largest lies below all others.
    paths = [
        path(n + 1, [(30 + 4 * n, 40)] * 2, wavy(2, n, np.mean(size)), turns=n, depth=-n)
        for n, size in enumerate(sizes)
    ]
    labels = assert_labels_are_those_of_a_slow_loop(paths, 2)
    assert np.unique(labels).tolist() == [1, 2, 3, 4, 5]


def test_rows_count_from_1_and_are_those_of_the_tables():
    paths = [path(70, [(20, 20)], 8.0, depth=5), path(30, [(20, 60)], 8.0, depth=-3)]
    seen = draw_labels(make_cell_table(paths, 1), SIZE)
    assert seen.dtype == torch.int32
    assert (seen[0, 20, 20], seen[0, 20, 60], seen[0, 0, 0]) == (1, 2, 0)


@pytest.mark.parametrize("turned_round", [False, True])
def test_the_nucleus_of_the_larger_depth_is_seen(turned_round):
    pile = [path(n + 1, [(35, 25 + 8 * n)], 12.0, depth=d) for n, d in enumerate([2, -1, 7, 0, 3])]
    labels = label(pile[::-1] if turned_round else pile, 1, SIZE)[0]
    assert labels[35, [27, 35, 50, 56]].tolist() == [1, 3, 3, 5]
    assert_labels_are_those_of_a_slow_loop(pile, 1)


@pytest.mark.parametrize(
    ("centre", "shown"),
    [
        ((-9.5, 40), True), ((-10.5, 40), False), ((78.5, 40), True), ((79.5, 40), False),
        ((35, -9.5), True), ((35, -10.5), False), ((35, 98.5), True), ((35, 99.5), False),
        ((-5000, 40), False), ((35, 1e6), False), ((-6, -6), True), ((-8, -8), False),
    ],
)  # fmt: skip
def test_a_nucleus_at_the_border_is_cut_and_one_outside_is_not_seen(centre, shown):
    nucleus = path(1, [centre], 10.0)
    assert label([nucleus], 1, SIZE).any() == shown
    assert_labels_are_those_of_a_slow_loop([nucleus], 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (70, 3), (300, 20)])
def test_pictures_of_any_size_are_labelled(size):
    assert_labels_are_those_of_a_slow_loop(drawn(12, seed=3), 3, size)


def test_a_nucleus_larger_than_the_picture_covers_it():
    assert (label([path(4, [(30, 40)], 200.0)], 1, SIZE) == 4).all()


# Light


def pictures(paths, frames, patch, seed=0, zoom=None):
    """Return random light inside the outlines and their halos, for all moments."""
    tables = make_cell_table(paths, frames)
    rows, moments = tables.there.nonzero(as_tuple=True)
    radii = tables.radii[rows, moments]
    zoom = fit_to_patch_scale(radii, patch) if zoom is None else torch.full((len(rows),), zoom)
    light = torch.rand((len(rows), patch, patch), generator=torch.Generator().manual_seed(seed))
    return RenderedPatches(
        light * fade_halo(compute_signed_distance_map(radii * zoom[:, None], patch)),
        rows,
        moments,
        zoom,
    )


def slow_light(paths, groups, frames, size=SIZE):
    """Read every picture at all pixels of its frame, and add."""
    total = torch.zeros(frames, *size)
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    for group in groups:
        for picture, row, frame, zoom in zip(*vars(group).values(), strict=True):
            along, across = own_place(paths[row], int(frame), y, x)
            grid = np.stack([across, along], -1) * float(zoom) * 2 / picture.shape[-1]
            total[frame] += F.grid_sample(
                picture[None, None], torch.from_numpy(grid)[None].float(), "bicubic", "zeros",
                align_corners=False,
            )[0, 0]  # fmt: skip
    return total


@pytest.mark.parametrize("seed", range(3))
def test_light_is_that_of_a_slow_loop(seed):
    paths = drawn(10, seed=seed)
    groups = [pictures(paths, 3, 48, seed), pictures(paths, 3, 64, seed + 1)]
    found = composite(make_cell_table(paths, 3), groups, SIZE)
    torch.testing.assert_close(found, slow_light(paths, groups, 3), rtol=0, atol=1e-4)
    assert found.max() > 1


def test_nuclei_larger_than_their_pictures_are_put_down_in_their_own_size():
    paths = [path(1, [(35, 45)], wavy(1, 1, 33.0), turns=0.7)]
    group = pictures(paths, 1, 48)
    assert float(group.zoom) < 0.7
    found = composite(make_cell_table(paths, 1), [group], SIZE)
    torch.testing.assert_close(found, slow_light(paths, [group], 1), rtol=0, atol=1e-4)
    assert (found[0][torch.from_numpy(label(paths, 1, SIZE)[0] > 0)] > 0).float().mean() > 0.95


def test_nuclei_smaller_than_their_pictures_are_put_down_in_their_own_size():
    paths = [path(1, [(35, 45)], wavy(1, 1, 8.0), turns=0.7)]
    group = pictures(paths, 1, 48, zoom=1.25)
    found = composite(make_cell_table(paths, 1), [group], SIZE)
    torch.testing.assert_close(found, slow_light(paths, [group], 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("WINDOW_PIXELS", 1), ("STEP", 1), ("STEP", 64)])
def test_how_the_work_is_shared_out_changes_nothing(monkeypatch, name, value):
    paths = drawn(16, seed=5)
    tables, groups = make_cell_table(paths, 3), [pictures(paths, 3, 48)]
    labels, light = draw_labels(tables, SIZE), composite(tables, groups, SIZE)
    assert labels.any()
    monkeypatch.setattr(raster, name, value)
    assert torch.equal(draw_labels(tables, SIZE), labels)
    torch.testing.assert_close(composite(tables, groups, SIZE), light, rtol=0, atol=1e-4)


# Displacement


def moved(paths, frames, size=SIZE):
    tables = make_cell_table(paths, frames)
    seen = draw_labels(tables, size)
    return compute_radial_flow(tables, seen).numpy(), seen.numpy()


def ellipses(axes):
    """Return the contours of ellipses with these half axes, along y and x."""
    angle = CORNERS[:60]
    return np.stack([a * b / np.hypot(b * np.cos(angle), a * np.sin(angle)) for a, b in axes])


def test_an_ellipse_that_grows_turns_and_moves_carries_its_points_along():
    turns, growth = np.array([0.4, 1.1, -0.3]), np.array([1.0, 1.3, 0.8])
    centres = np.array([(33.3, 41.6), (30.1, 47.2), (36.0, 45.0)])
    nucleus = path(1, centres, ellipses(np.outer(growth, (14, 9))), turns=turns)
    found, seen = moved([nucleus], 3)
    assert found.shape == (2, 2, *SIZE)
    for frame in range(2):
        y, x = np.nonzero(seen[frame])
        assert len(y) > 300
        angle = turns[frame + 1] - turns[frame]
        dy, dx = growth[frame + 1] / growth[frame] * (np.stack([y, x]) - centres[frame][:, None])
        # Turns count from y towards x.
        down = np.cos(angle) * dy - np.sin(angle) * dx + centres[frame + 1, 0]
        right = np.sin(angle) * dy + np.cos(angle) * dx + centres[frame + 1, 1]
        np.testing.assert_allclose(
            found[frame, :, y, x], np.stack([down - y, right - x], 1), atol=1e-3
        )
        assert not found[frame][:, seen[frame] == 0].any()


def test_a_point_keeps_its_share_of_the_way_to_an_outline_that_changes():
    radii = wavy(4, seed=4)
    nucleus = path(
        1, [(30, 40), (32, 41), (31, 44), (31, 44)], radii, turns=[0, 0.5, 1, 1], first=1
    )
    found, seen = moved([nucleus], 6)
    assert not found[[0, 4]].any()
    for frame in range(1, 4):
        y, x = np.nonzero(seen[frame])
        down, right = found[frame][:, y, x]
        before, after = (
            own_place(nucleus, frame, y, x),
            own_place(nucleus, frame + 1, y + down, x + right),
        )
        share = np.hypot(*before) / outline_at(radii[frame - 1], *before)
        np.testing.assert_allclose(
            np.hypot(*after), share * outline_at(radii[frame], *before), atol=2e-3
        )
        np.testing.assert_allclose(before[0] * after[1], before[1] * after[0], atol=0.05)


def test_what_rests_does_not_move_not_even_at_its_centroid():
    found, seen = moved([path(1, [(30, 40)] * 2, 9.0, turns=0.6)], 2)
    assert seen[0, 30, 40] == 1
    np.testing.assert_allclose(found, 0, atol=1e-5)


def test_nothing_moves_where_a_nucleus_is_gone_in_the_next_frame():
    ends = path(1, [(15, 15)], 8.0)
    leaves = path(2, [(60, 80), (60, 130)], 8.0)
    hides = path(3, [(20, 50), (40, 50)], 5.0)
    covers = path(4, [(40, 50), (41, 50)], 12.0)
    begins = path(5, [(15, 15)], 8.0, first=1)
    found, seen = moved([ends, leaves, hides, covers, begins], 2)
    assert np.unique(seen[0]).tolist() == [0, 1, 2, 3, 4]
    assert np.unique(seen[1]).tolist() == [0, 4, 5]
    # The one that covers another goes one row down; all others are gone.
    own = seen[0] == 4
    np.testing.assert_allclose(found[0, :, own], [[1, 0]] * own.sum(), atol=1e-4)
    assert not found[0][:, ~own].any()


def test_where_two_overlap_the_one_that_is_seen_moves():
    pair = [path(1, [(30, 40), (35, 40)], 12.0), path(2, [(30, 50), (30, 46)], 12.0)]
    found, seen = moved(pair, 2)
    for row, way in ((1, (5, 0)), (2, (0, -4))):
        own = seen[0] == row
        np.testing.assert_allclose(found[0, :, own], [way] * own.sum(), atol=1e-4)


# Empty films


def test_a_film_without_nuclei_is_empty():
    tables = make_cell_table([], 3)
    seen = draw_labels(tables, SIZE)
    assert (seen.shape, seen.dtype, int(seen.max())) == ((3, *SIZE), torch.int32, 0)
    assert composite(tables, [], SIZE).shape == (3, *SIZE)
    assert not composite(tables, [], SIZE).any()
    found = compute_radial_flow(tables, seen)
    assert found.shape == (2, 2, *SIZE)
    assert not found.any()


def test_a_film_whose_nuclei_all_lie_outside_is_empty():
    paths = [path(1, [(-300, 40)] * 2, 9.0), path(2, [(30, 900)] * 2, 9.0)]
    found, seen = moved(paths, 2)
    assert not seen.any()
    assert not found.any()
    assert not composite(make_cell_table(paths, 2), [pictures(paths, 2, 48)], SIZE).any()


def test_a_film_of_one_frame_has_no_displacement():
    found, seen = moved([path(1, [(30, 40)], 9.0)], 1)
    assert seen.any()
    assert found.shape == (0, 2, *SIZE)
