import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bvdm_data.synth.contours import (
    CONTOUR_POINTS,
    compute_mean_radius,
    compute_polygon_area,
    draw_ar1,
    interpolate_outline,
    interpolate_radius,
    is_inside,
)

STAGE = 3


@pytest.fixture(scope="module")
def contours(tiny_shapes):
    rng = np.random.default_rng(3)
    return tiny_shapes.sample(np.arange(6), rng)


def list_vertices(radii):
    angles = 2 * math.pi * np.arange(len(radii)) / len(radii)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def crosses_odd(y, x, vertices):
    """Tell whether a ray from the point crosses the polygon an odd number of times."""
    odd = False
    for (y0, x0), (y1, x1) in zip(vertices, np.roll(vertices, -1, 0), strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            odd = not odd
    return odd


def test_polygon_area_is_the_shoelace_sum(contours):
    corners = [list_vertices(radii) for radii in contours]
    following = [np.roll(c, -1, 0) for c in corners]
    wanted = [
        abs((c[:, 0] * n[:, 1] - n[:, 0] * c[:, 1]).sum()) / 2
        for c, n in zip(corners, following, strict=True)
    ]
    np.testing.assert_allclose(compute_polygon_area(contours), wanted, rtol=1e-12)
    np.testing.assert_allclose(math.pi * compute_mean_radius(contours) ** 2, wanted)


def test_sample_has_its_stages_covariance(tiny_shapes):
    rng = np.random.default_rng(0)
    many = tiny_shapes.sample(np.full(2000, STAGE), rng)
    np.testing.assert_allclose(many.mean(0), tiny_shapes.mean[STAGE], atol=0.04)
    modes = tiny_shapes.modes[STAGE]
    np.testing.assert_allclose(np.cov(many.T), modes.T @ modes, atol=0.025)


def test_sample_stays_above_a_quarter(tiny_shapes):
    wild, rng = replace(tiny_shapes, modes=50 * tiny_shapes.modes), np.random.default_rng(0)
    least = wild.sample(np.full(20, STAGE), rng).min()
    assert least == tiny_shapes.mean[STAGE].mean() / 4


def test_radius_is_linear_between_vertices(contours):
    radii = torch.from_numpy(contours).float()
    for position in (*range(CONTOUR_POINTS), 0.25, 17.5, 59.75):
        angle = position * 2 * math.pi / CONTOUR_POINTS
        y, x = (torch.full((6, 1, 1), 9 * f(angle)) for f in (math.cos, math.sin))
        low, share = int(position), position % 1
        wanted = (1 - share) * radii[:, low] + share * radii[:, (low + 1) % CONTOUR_POINTS]
        torch.testing.assert_close(
            interpolate_radius(radii, y, x)[:, 0, 0], wanted, rtol=1e-4, atol=1e-4
        )
        outline = float(interpolate_outline(contours[0], angle - 2 * math.pi))
        assert outline == pytest.approx(float(wanted[0]), rel=1e-4)


def test_angle_zero_looks_along_y():
    radii, y = torch.arange(4.0)[None] + 1, torch.tensor([[[1.0, 0, -1, 0]]])
    assert interpolate_radius(radii, y, y.roll(1, 2)).flatten().tolist() == pytest.approx(
        [1, 2, 3, 4]
    )


def test_inside_agrees_with_ray_casting(contours):
    line = torch.arange(25.0) - 12
    radii = torch.from_numpy(contours).float()
    y, x = line[:, None].expand(6, 25, 25), line[None].expand(6, 25, 25)
    together = is_inside(radii, y, x)
    for mask, outline in zip(together, contours, strict=True):
        vertices = list_vertices(outline)
        for row, column in np.ndindex(25, 25):
            point = float(y[0, row, column]), float(x[0, row, column])
            # A chord lies at most .2 px within the outline that is linear in the angle.
            if crosses_odd(*point, vertices):
                assert mask[row, column]
            elif mask[row, column]:
                scale = 1 - 0.2 / math.hypot(*point)
                assert crosses_odd(point[0] * scale, point[1] * scale, vertices)
    alone = [is_inside(one[None], y[:1], x[:1])[0] for one in radii]
    assert torch.equal(together, torch.stack(alone))
    disc = is_inside(torch.full((1, CONTOUR_POINTS), 5.0), y[:1], x[:1])
    assert torch.equal(disc, y[:1].hypot(x[:1]) <= 5)


@pytest.mark.parametrize("autocorrelation", [0.0, 0.6, 0.95, 1.0])
def test_ar1_is_stationary(autocorrelation):
    process = draw_ar1(5, np.full(8000, autocorrelation), np.random.default_rng(7))
    assert process.shape == (5, 8000)
    np.testing.assert_allclose(process.var(1), 1, atol=0.08)
    np.testing.assert_allclose(process.mean(1), 0, atol=0.06)
    for lag in (1, 4):
        pairs = process[:-lag].ravel(), process[lag:].ravel()
        assert np.corrcoef(*pairs)[0, 1] == pytest.approx(autocorrelation**lag, abs=0.05)


def test_elongation_follows_its_table(tiny_shapes):
    rng, table = np.random.default_rng(2), np.array([-0.5, -0.4, 0.0, 2.0])
    shapes = replace(tiny_shapes, elongation=table)
    scores = shapes.sample_scores(4, rng, 1000).swapaxes(0, 1)
    quantiles = np.quantile(scores[:, :, 1], [0.001, 1 / 3, 2 / 3, 0.999])
    np.testing.assert_allclose(quantiles, table, atol=0.09)
    assert scores[:, :, 0].min() < -2


def test_aligned_modes_point_as_in_interphase(tiny_shapes):
    signs = np.random.default_rng(0).choice([-1.0, 1.0], tiny_shapes.modes.shape[:2])
    mixed = replace(tiny_shapes, modes=tiny_shapes.modes * signs[:, :, None])
    for stage in range(6):
        aligned = mixed.aligned_modes[stage]
        assert ((aligned * mixed.modes[0]).sum(1) > 0).all()
        np.testing.assert_array_equal(np.abs(aligned), np.abs(mixed.modes[stage]))


def test_scores_drift_and_flicker(tiny_shapes):
    rng, shapes = np.random.default_rng(1), replace(tiny_shapes, roughness=np.array([1.0, 0.0]))
    scores = shapes.sample_scores(6, rng, 1500).swapaxes(0, 1)
    assert scores.shape == (1500, 6, 4)
    np.testing.assert_allclose(scores.var((0, 1)), 1, atol=0.08)
    for lag in (1, 3):
        covariance = (scores[:, lag:] * scores[:, :-lag]).mean((0, 1))
        wanted = (1 - shapes.innovation) * shapes.autocorrelation**lag
        np.testing.assert_allclose(covariance, wanted, atol=0.06)


def test_roughness_lasts_a_whole_life(tiny_shapes):
    shapes = replace(
        tiny_shapes, autocorrelation=np.zeros(4), innovation=np.zeros(4),
        roughness=np.array([0.7, 0.4]),
    )  # fmt: skip
    rng = np.random.default_rng(2)
    sizes = shapes.sample_scores(400, rng, 150).std(0)
    # Size and elongation are not affected.
    np.testing.assert_allclose(sizes[:, :2], 1, atol=0.16)
    logs = np.log(sizes[:, 2:])
    assert np.median(logs) == pytest.approx(math.log(0.7), abs=0.1)
    assert logs.mean(1).std() == pytest.approx(0.4, rel=0.2)
    assert np.abs(np.diff(logs, axis=1)).max() < 0.3
