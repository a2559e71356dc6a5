import math

import numpy as np
import pytest
import torch

from bvdm_data.synth.contours import (
    CONTOUR_POINTS,
    compute_polygon_area,
    interpolate_radius,
    test_inside,
)

STAGE = 3


def outline(radii):
    """Corners (y, x) of a contour."""
    angles = [2 * math.pi * k / len(radii) for k in range(len(radii))]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def shoelace(corners):
    total = 0.0
    for (y, x), (next_y, next_x) in zip(corners, corners[1:] + corners[:1], strict=True):
        total += y * next_x - next_y * x
    return abs(total) / 2


def is_inside(y, x, corners):
    """Whether a ray from the point crosses the polygon an odd number of times."""
    odd = False
    for (y0, x0), (y1, x1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            odd = not odd
    return odd


@pytest.fixture
def contours(tiny_shapes):
    draws = np.random.default_rng(3)
    return np.stack([tiny_shapes.sample(stage, draws) for stage in range(6)])


def test_area_is_that_of_the_polygon(contours):
    expected = [shoelace(outline(radii)) for radii in contours]
    np.testing.assert_allclose(compute_polygon_area(contours), expected, rtol=1e-12)
    assert float(compute_polygon_area(contours[2])) == pytest.approx(expected[2])


def test_area_grows_with_the_square_of_the_radii(contours):
    np.testing.assert_allclose(
        compute_polygon_area(3 * contours), 9 * compute_polygon_area(contours)
    )


def test_sample_of_no_amount_is_the_mean(tiny_shapes):
    for stage in range(6):
        drawn = tiny_shapes.sample(stage, np.random.default_rng(0), amount=0.0)
        assert np.array_equal(drawn, tiny_shapes.mean[stage])


def test_sample_has_the_mean_and_the_covariance_of_its_stage(tiny_shapes):
    draws = np.random.default_rng(0)
    many = np.stack([tiny_shapes.sample(STAGE, draws) for _ in range(4000)])
    np.testing.assert_allclose(many.mean(0), tiny_shapes.mean[STAGE], atol=0.03)
    modes = tiny_shapes.modes[STAGE]
    np.testing.assert_allclose(np.cov(many.T), modes.T @ modes, atol=0.02)


def test_sample_gives_the_same_contour_for_the_same_seed_and_another_for_another(tiny_shapes):
    one, again, other = (tiny_shapes.sample(0, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_sample_stays_above_a_quarter_of_the_mean_radius(tiny_shapes):
    draws = np.random.default_rng(0)
    least = min(tiny_shapes.sample(STAGE, draws, amount=50.0).min() for _ in range(20))
    assert least == tiny_shapes.mean[STAGE].mean() / 4


def test_radius_towards_a_landmark_is_its_radius(contours):
    angle = torch.arange(CONTOUR_POINTS) * 2 * math.pi / CONTOUR_POINTS
    y, x = (5 * part.expand(6, 1, -1) for part in (angle.cos(), angle.sin()))
    found = interpolate_radius(torch.from_numpy(contours).float(), y, x)[:, 0]
    np.testing.assert_allclose(found, contours, rtol=1e-5)


def test_radius_towards_a_point_between_two_landmarks_is_linear_in_the_angle(contours):
    radii = torch.from_numpy(contours[:1]).float()
    for place in (0.25, 17.5, 59.75):
        angle = place * 2 * math.pi / CONTOUR_POINTS
        y, x = (torch.full((1, 1, 1), 9 * f(angle)) for f in (math.cos, math.sin))
        low, share = int(place), place % 1
        expected = (1 - share) * radii[0, low] + share * radii[0, (low + 1) % CONTOUR_POINTS]
        assert float(interpolate_radius(radii, y, x)) == pytest.approx(float(expected), rel=1e-4)


def test_angle_0_looks_along_y_and_a_quarter_turn_along_x():
    radii = torch.arange(4.0)[None] + 1
    y = torch.tensor([1.0, 0, -1, 0]).reshape(1, 1, 4)
    x = torch.tensor([0.0, 1, 0, -1]).reshape(1, 1, 4)
    assert interpolate_radius(radii, y, x).flatten().tolist() == pytest.approx([1, 2, 3, 4])


def grid(side, count):
    line = torch.arange(side) - (side - 1) / 2
    return line[:, None].expand(count, side, side), line[None].expand(count, side, side)


def test_rasterise_agrees_with_a_slow_polygon_test(contours):
    y, x = grid(25, len(contours))
    found = test_inside(torch.from_numpy(contours).float(), y, x)
    for mask, radii in zip(found, contours, strict=True):
        corners = outline(radii)
        for row, column in np.ndindex(25, 25):
            point = float(y[0, row, column]), float(x[0, row, column])
            # A chord lies at most .2 px within the outline that is linear in the angle.
            if is_inside(*point, corners):
                assert mask[row, column]
            elif mask[row, column]:
                scale = 1 - 0.2 / math.hypot(*point)
                assert is_inside(point[0] * scale, point[1] * scale, corners)


def test_rasterise_of_a_disc_is_the_disc_with_its_edge():
    y, x = grid(21, 1)
    disc = test_inside(torch.full((1, CONTOUR_POINTS), 5.0), y, x)
    assert torch.equal(disc, y.hypot(x) <= 5)


def test_rasterise_of_a_batch_is_that_of_each_contour_alone(contours):
    radii = torch.from_numpy(contours).float()
    together = test_inside(radii, *grid(25, len(radii)))
    alone = [test_inside(one[None], *grid(25, 1))[0] for one in radii]
    assert torch.equal(together, torch.stack(alone))
