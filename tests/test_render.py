"""Labels, light and flow of all nuclei at once, against loops over nuclei and pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from bvdm_data.synth import render
from bvdm_data.synth.denoiser import (
    compute_signed_distance_map,
    fit_to_patch_scale,
    make_pixel_grid,
)
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.networks import FLOW_SIZE
from bvdm_data.synth.render import RenderedPatches, draw_labels, make_cell_table
from bvdm_data.synth.textures import fade_halo
from tests.helpers.denoisers import make_still_cell, make_wavy_contours
from tests.helpers.rendering import add_up, label, light_masked, move, put

SIZE = (70, 90)
ANGLES = 2 * np.pi * np.arange(61) / 60


def path(identity, centres, radii=12.0, *, turns=0.0, first=0, brightness=0.3):
    """Return the trajectory of a nucleus through the centres."""
    centres = np.array(centres, float).reshape(-1, 2)
    life = make_still_cell(
        identity, first=first, frames=len(centres), radii=radii, brightness=brightness
    )
    turns = np.broadcast_to(np.asarray(turns, float), len(centres)).copy()
    return Trajectory(life, centres, turns)


def ellipses(axes):
    """Return the contours of ellipses with these half axes, along y and x."""
    angle = ANGLES[:60]
    return np.stack([a * b / np.hypot(b * np.cos(angle), a * np.sin(angle)) for a, b in axes])


def draw_cells(count, frames=3, seed=0, sizes=(4, 14), margin=20):
    """Return nuclei of random outlines that lie anywhere in the video, across it or outside."""
    rng = np.random.default_rng(seed)
    cells = []
    for number, light in enumerate(rng.permutation(count)):
        first = int(rng.integers(frames))
        length = int(rng.integers(1, frames + 1 - first))
        start = rng.uniform([-margin, -margin], np.add(SIZE, margin))
        centres = start + rng.normal(0, 3, (length, 2)).cumsum(0)
        radii = make_wavy_contours(length, seed=100 * seed + number, size=rng.uniform(*sizes))
        turns = rng.uniform(-7, 7, length)
        light = (0.1 + light + rng.random(length)) / count  # orders of frames differ
        place = {"turns": turns, "first": first, "brightness": light}
        cells.append(path(number + 1, centres, radii, **place))
    return cells


def own_place(cell, frame, y, x):
    """Return the offsets of points along a nucleus' major axis and across it."""
    at = frame - cell.cell.first
    turn, (down, right) = cell.angles[at], cell.centres[at]
    dy, dx = y - down, x - right
    return np.cos(turn) * dy + np.sin(turn) * dx, np.cos(turn) * dx - np.sin(turn) * dy


def outline_at(radii, y, x):
    """Return how far the outline is in the direction of points."""
    return np.interp(np.arctan2(x, y) % (2 * np.pi), ANGLES, np.append(radii, radii[0]))


def check_labels(cells, frames, size=SIZE):
    """Compare labels with those of a loop, except where rounding decides; return them."""
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    labels, close = np.zeros((frames, *size), int), np.zeros((frames, *size), bool)
    for frame in range(frames):
        here = [c for c in cells if c.cell.first <= frame <= c.cell.last]
        outlines = {}
        for cell in sorted(here, key=lambda c: c.cell.brightness[frame - c.cell.first]):
            own = own_place(cell, frame, y, x)
            outside = np.hypot(*own) - outline_at(cell.cell.radii[frame - cell.cell.first], *own)
            outlines[cell.cell.identity] = outside <= 0
            close[frame] |= np.abs(outside) < 1e-3
        labels[frame] = pile_up(outlines)
    np.testing.assert_array_equal(label(cells, frames, size)[~close], labels[~close])
    assert close.mean() < 0.01
    return labels


def pile_up(outlines):
    """Label a frame, the last outline on top; then without those that are nearly hidden."""
    frame = np.zeros(next(iter(outlines.values())).shape, int)
    for identity, inside in outlines.items():
        frame[inside] = identity
    seen = {i: ((frame == i).sum(), inside.sum()) for i, inside in outlines.items()}
    hidden = {i for i, (area, whole) in seen.items() if area < min(whole, max(10, whole / 20))}
    return pile_up({i: o for i, o in outlines.items() if i not in hidden}) if hidden else frame


# Labels


def test_table_has_zeros_where_absent():
    one = path(7, [(3, 4), (5, 6)], [[9.0] * 60, [8.0] * 60], turns=[0.0, math.pi / 2], first=1)
    table = make_cell_table([one, path(3, [(1, 2)], 5.0, brightness=0.4)], 4)
    assert table.there.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert table.centres[0].tolist() == [[0, 0], [3, 4], [5, 6], [0, 0]]
    torch.testing.assert_close(table.axes[0, 1:3], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert table.radii[0, 1:3][:, 0].tolist() == [9, 8]
    # An absent cell is the darkest.
    assert table.rank.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert make_cell_table([one], 2).there.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(SIZE, (4, 14)), (SIZE, (1.5, 30)), ((1, 90), (4, 14)), ((300, 20), (30, 110))],
)
def test_labels_equal_slow_loop(size, sizes):
    assert len(np.unique(check_labels(draw_cells(14, seed=3, sizes=sizes), 3, size))) > 3


def test_labels_far_away_are_empty():
    for centre in [(-10.5, 40), (35, 99.5), (-8, -8), (-5000, 40), (35, 1e6)]:
        assert not label([path(1, [centre], 10.0)], 1, SIZE).any()


def test_labels_show_the_brighter():
    lights = [0.3, 0.1, 0.9, 0.2, 0.4]
    pile = [path(n + 1, [(35, 25 + 8 * n)], brightness=b) for n, b in enumerate(lights)]
    for cells in (pile, pile[::-1]):
        assert label(cells, 1, SIZE)[0][35, [27, 35, 50, 56]].tolist() == [1, 3, 3, 5]
    rows, seen = draw_labels(make_cell_table(pile, 1), SIZE)
    assert (rows.dtype, seen[:, 0].tolist()) == (torch.int32, [True] * 5)
    assert (rows[0, 35, 27], rows[0, 35, 56], rows[0, 0, 0]) == (1, 5, 0)


def test_hidden_nucleus_is_not_seen():
    front = path(1, [(35, 45)] * 3, 12.0, brightness=0.4)
    back = path(2, [(35, 45.6), (35, 47), (35, 50)], 12.0)
    labels = label([front, back], 3, SIZE)
    # Of 441 px a sliver of 14 is not seen, one of 46 is.
    assert [(frame == 2).sum() for frame in labels][:2] == [0, 46]
    _, seen = draw_labels(make_cell_table([front, back], 3), SIZE)
    assert seen.tolist() == [[True] * 3, [False, True, True]]
    # What the border of the picture cuts off is no matter of others.
    assert 0 < (label([path(1, [(-11.5, 45)])], 1, SIZE) == 1).sum() < 10


def test_scraps_are_the_others():
    # A bar over a disc leaves a large part and a cap below it.
    bar = path(1, [(35, 45)], ellipses([(4.5, 20.0)]), brightness=0.4)
    for middle, cap in ((30.5, 0), (32, 23)):
        labels = label([bar, path(2, [(middle, 45)], 10.0)], 1, SIZE)[0]
        assert (labels[37:] == 2).sum() == cap
        assert (labels == 1).sum() > 100
    # Parts that are small alone, and enough together, stay.
    labels = label([bar, path(2, [(35.5, 45)], ellipses([(7.5, 2.0)]))], 1, SIZE)[0]
    assert [(part == 2).sum() for part in (labels[:35], labels[36:])] == [5, 8]


# Light that adds up


def draw_patches(cells, frames, patch, seed=0, zoom=None):
    """Return random light inside the outlines and their halos, for all frames."""
    table = make_cell_table(cells, frames)
    rows, at = table.there.nonzero(as_tuple=True)
    radii = table.radii[rows, at]
    zoom = fit_to_patch_scale(radii, patch) if zoom is None else torch.full((len(rows),), zoom)
    light = torch.rand((len(rows), patch, patch), generator=torch.Generator().manual_seed(seed))
    edge = compute_signed_distance_map(radii * zoom[:, None], patch)
    return RenderedPatches(light * fade_halo(edge), rows, at, zoom)


def add_slowly(cells, groups, frames, size=SIZE):
    """Read every patch at all pixels of its frame, and add."""
    total = torch.zeros(frames, *size)
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    for group in groups:
        for patch, row, frame, zoom in zip(*vars(group).values(), strict=True):
            along, across = own_place(cells[row], int(frame), y, x)
            grid = np.stack([across, along], -1) * float(zoom) * 2 / np.array(patch.shape[::-1])
            total[frame] += F.grid_sample(
                patch[None, None], torch.from_numpy(grid)[None].float(), "bicubic", "zeros",
                align_corners=False,
            )[0, 0]  # fmt: skip
    return total


def check_light(cells, groups, frames):
    light = add_up(make_cell_table(cells, frames), groups, SIZE)
    torch.testing.assert_close(light, add_slowly(cells, groups, frames), rtol=0, atol=1e-4)
    return light


def test_light_equals_slow_loop():
    cells = draw_cells(10)
    groups = [draw_patches(cells, 3, 48, 0), draw_patches(cells, 3, 64, 1)]
    assert check_light(cells, groups, 3).max() > 1
    for size, zoom in ((33.0, None), (8.0, 1.25)):
        cell = path(1, [(35, 45)], make_wavy_contours(1, 1, size), turns=0.7)
        group = draw_patches([cell], 1, 48, zoom=zoom)
        assert float(group.zoom) == zoom or float(group.zoom) < 0.7
        assert check_light([cell], [group], 1).any()


def test_block_size_changes_nothing(monkeypatch):
    cells = draw_cells(16, seed=5)
    table, groups = make_cell_table(cells, 3), [draw_patches(cells, 3, 48)]
    (labels, _), light = draw_labels(table, SIZE), add_up(table, groups, SIZE)
    assert labels.any()
    for name, value in [("WINDOW_PIXELS", 1), ("WINDOW_STEP", 1), ("WINDOW_STEP", 64)]:
        with monkeypatch.context() as patch:
            patch.setattr(render, name, value)
            assert torch.equal(draw_labels(table, SIZE)[0], labels)
            torch.testing.assert_close(add_up(table, groups, SIZE), light, rtol=0, atol=1e-4)


def blob(long=6.0, short=4.0, light=0.2):
    """Return smooth light [48, 48] that fades to nothing well inside its patch."""
    y, x = make_pixel_grid(48)
    return light * torch.exp(-0.5 * ((y / long) ** 2 + (x / short) ** 2)) * (y.hypot(x) < 22)


def test_unturned_patch_is_put_down_unchanged():
    texture = torch.randn((48, 48), generator=torch.Generator().manual_seed(0))
    # So wide that its halo fills the patch.
    light = put([path(1, (40.5, 50.5), 16.0)], [texture])[0]
    np.testing.assert_allclose(light[17:65, 27:75], texture.numpy(), atol=1e-4)
    # The spline that reads it may not reach farther than two pixels.
    light[15:67, 25:77] = 0
    assert not light.any()


@settings(max_examples=20, deadline=None)
@given(turn=st.floats(-7, 7), down=st.floats(35, 55), right=st.floats(35, 65), long=st.floats(3, 6))
def test_total_light_and_centre_are_kept(turn, down, right, long):
    texture = blob(long)
    light = put([path(1, (down, right), turns=turn)], [texture])[0]
    assert light.sum() == pytest.approx(float(texture.sum()), rel=5e-3)
    assert ndimage.center_of_mass(light) == pytest.approx((down, right), abs=0.05)


# Light inside the labels


@pytest.fixture
def crowd():
    """Four nuclei in two frames that overlap each other and the border."""
    oval = ellipses([(9.0, 6.0)] * 2)
    return [
        path(4, [(20, 20), (21, 22)], oval, turns=[0.3, 0.5], brightness=0.4),
        path(2, [(24, 27), (25, 27)], oval, turns=[1.0, 1.2], brightness=0.6),
        path(9, [(22, 31), (20, 30)], oval, turns=[2.0, 1.9], brightness=0.2),
        path(7, [(-3, 60), (1, 63)], oval, turns=[0.0, 0.1], brightness=0.8),
    ]


def make_textures(count, frames, seed=0):
    shape = (count, frames, FLOW_SIZE, FLOW_SIZE)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def test_masked_light_is_where_labels_are(crowd):
    labels = label(crowd, 2, SIZE)
    levels = torch.tensor([float(cell.cell.brightness[0]) for cell in crowd])
    light = light_masked(crowd, levels[:, None, None, None].expand(4, 2, 96, 96), SIZE)
    expected = np.zeros((2, *SIZE), np.float32)
    for cell, level in zip(crowd, levels, strict=True):
        expected[labels == cell.cell.identity] = level
    assert len(np.unique(labels)) == 5
    np.testing.assert_allclose(light, expected, rtol=1e-4)


def test_masked_light_is_the_texture():
    cell = path(1, [(24, 32)], ellipses([(9.0, 6.0)]))
    texture = make_textures(1, 1)
    light, labels = light_masked([cell], texture, SIZE)[0], label([cell], 1, SIZE)[0]
    middle = (FLOW_SIZE - 1) / 2
    deep = ndimage.distance_transform_edt(labels) > 2
    assert deep.sum() > 50
    for row, column in np.argwhere(deep):
        y, x = row - 24 + middle, column - 32 + middle  # between four pixels of the patch
        corner = texture[0, 0, int(y) : int(y) + 2, int(x) : int(x) + 2]
        assert light[row, column] == pytest.approx(float(corner.mean()), rel=1e-3)


def test_masked_light_is_blurred_along_outline():
    cell, grid = path(1, [(24, 32)]), torch.arange(FLOW_SIZE)
    board = ((grid[:, None] + grid[None]) // 2 % 2).float()[None, None]
    depth = ndimage.distance_transform_edt(label([cell], 1, SIZE)[0])
    light = light_masked([cell], board, SIZE)[0]
    assert light[depth > 4].std() > 1.5 * light[(depth > 0) & (depth <= 1)].std()


# Flow


def test_flow_keeps_share_of_the_radius():
    radii = make_wavy_contours(4, seed=4)
    centres = [(30, 40), (32, 41), (31, 44), (31, 44)]
    cell = path(1, centres, radii, turns=[0, 0.5, 1, 1], first=1)
    flow, seen = move([cell], 6, SIZE)
    assert not flow[[0, 4]].any()
    for frame in range(1, 4):
        y, x = np.nonzero(seen[frame])
        down, right = flow[frame][:, y, x]
        before = own_place(cell, frame, y, x)
        after = own_place(cell, frame + 1, y + down, x + right)
        share = np.hypot(*before) / outline_at(radii[frame - 1], *before)
        wanted = share * outline_at(radii[frame], *before)
        np.testing.assert_allclose(np.hypot(*after), wanted, atol=2e-3)
        np.testing.assert_allclose(before[0] * after[1], before[1] * after[0], atol=0.05)


def make_still(count, frames):
    return torch.zeros(count, frames - 1, 2, FLOW_SIZE, FLOW_SIZE)


@pytest.mark.parametrize("with_textures", [False, True])
def test_flow_is_0_where_cells_disappear(with_textures):
    cells = [
        path(1, [(15, 15)], 8.0),
        path(2, [(60, 80), (60, 130)], 8.0),
        path(3, [(20, 50), (40, 50)], 5.0),
        path(4, [(40, 50), (41, 50)], 12.0),
        path(5, [(15, 15)], 8.0, first=1),
    ]
    flow, seen = move(cells, 2, SIZE, make_still(5, 2) if with_textures else None)
    assert np.unique(seen[0]).tolist() == [0, 1, 2, 3, 4]
    assert np.unique(seen[1]).tolist() == [0, 4, 5]
    # The one that covers another goes one row down; all others are gone.
    own = seen[0] == 4
    np.testing.assert_allclose(flow[0, :, own], [[1, 0]] * own.sum(), atol=1e-4)
    assert not flow[0][:, ~own].any()


@pytest.mark.parametrize("with_textures", [False, True])
def test_flow_is_exact_under_occlusion(with_textures):
    dim = path(1, [(35, 30), (35, 42)], 10.0, brightness=0.2)
    bright = path(2, [(35, 55), (35, 53)], 10.0, brightness=0.5)
    flow, seen = move([dim, bright], 2, SIZE, make_still(2, 2) if with_textures else None)
    for row, way in ((1, 12), (2, -2)):
        y, x = np.nonzero(seen[0] == row)
        np.testing.assert_allclose(flow[0][:, y, x].T, [[0, way]] * len(y), atol=1e-3)
    # Pixels of the dim one end under the bright one; that is where they are.
    y, x = np.nonzero(seen[0] == 1)
    assert (seen[1][y, x + 12] == 2).sum() > 20
    assert not flow[0][:, seen[0] == 0].any()


def test_texture_flow_turns_with_the_cell():
    cells = [path(1, [(20, 30)] * 2, turns=math.pi / 2), path(2, [(50, 60)] * 2, turns=math.pi / 2)]
    flow = make_still(2, 2)
    flow[1, :, 0] = -2.0  # the next frame looks back along the major axis
    moved, seen = move(cells, 2, SIZE, flow)
    np.testing.assert_allclose(moved[0][:, seen[0] == 1], 0, atol=1e-3)
    inside = moved[0][:, seen[0] == 2]
    np.testing.assert_allclose(inside[0], 0, atol=1e-3)
    np.testing.assert_allclose(inside[1], 2, atol=1e-3)


# Empty videos


def test_empty_video_is_dark():
    table = make_cell_table([], 3)
    assert (draw_labels(table, SIZE)[0].dtype, add_up(table, [], SIZE).shape) == (
        torch.int32,
        (3, *SIZE),
    )
    outside = [path(1, [(-300, 40)] * 2, 9.0), path(2, [(30, 900)] * 2, 9.0)]
    for cells, frames in (([], 3), (outside, 2)):
        flow, seen = move(cells, frames, SIZE)
        assert flow.shape == (frames - 1, 2, *SIZE)
        assert not flow.any()
        assert not seen.any()
    assert not add_up(make_cell_table(outside, 2), [draw_patches(outside, 2, 48)], SIZE).any()
    flow, seen = move([path(1, [(30, 40)], 9.0)], 1, SIZE)
    assert seen.any()
    assert flow.shape == (0, 2, *SIZE)
