"""The fitted outlines: what was planted is found again."""

import math

import numpy as np
import pytest
from fitted import ANGLES, crops_of, ellipse, filled

from bvdm_data.clip import STAGES
from bvdm_data.fitting.contours import (
    fit_shapes,
    measure_contour_iou,
    measure_orientation,
    trace_contour,
)
from bvdm_data.synth.contours import CONTOUR_POINTS, compute_polygon_area


@pytest.mark.parametrize("turn", [-1.4, -0.7, 0.0, 0.4, 1.1])
def test_contour_of_an_ellipse_is_its_closed_form_for_any_rotation(turn):
    found = trace_contour(filled(ellipse(16, 9), turn))
    np.testing.assert_allclose(found, ellipse(16, 9), atol=0.8)
    assert np.abs(found - ellipse(16, 9)).mean() < 0.3


@pytest.mark.parametrize("axes", [(14, 12), (12, 5.5), (11, 5)])
def test_contour_has_the_area_of_its_mask(axes):
    ratios = []
    for turn in (0.1, 0.7, 1.3):
        mask = filled(ellipse(*axes), turn)
        ratios.append(float(compute_polygon_area(trace_contour(mask))) / mask.sum())
    assert np.mean(ratios) == pytest.approx(1, abs=0.012)


@pytest.mark.parametrize("turn", [-1.4, -0.7, 0.0, 0.4, 1.1])
def test_orientation_is_the_angle_from_y_towards_x(turn):
    assert measure_orientation(filled(ellipse(16, 9), turn)) == pytest.approx(turn, abs=0.02)


def test_contour_goes_round_from_the_major_axis_towards_x():
    radii = ellipse(16, 9)
    radii[5:10] += 3  # a bump on the side of +x
    found = trace_contour(filled(radii))
    assert found[5:10].mean() > found[-10:-5].mean() + 1


def test_contour_refuses_an_empty_mask():
    with pytest.raises(ValueError, match="mask must show a nucleus, got an empty one"):
        trace_contour(np.zeros((96, 96), bool))


def test_overlap_with_contour_is_near_one_for_round_shapes_and_low_for_others():
    mask = filled(ellipse(16, 9), 0.6)
    assert measure_contour_iou(mask, trace_contour(mask)) > 0.97
    assert measure_contour_iou(mask, trace_contour(mask) / math.sqrt(2)) == pytest.approx(
        0.5, abs=0.05
    )
    ring = filled(ellipse(16, 16)) & ~filled(ellipse(8, 8))
    assert measure_contour_iou(ring, trace_contour(ring)) == pytest.approx(0.75, abs=0.05)


@pytest.fixture(scope="module")
def planted():
    """Return 150 contours of known mean and covariance, their masks, and the model fitted."""
    draws = np.random.default_rng(0)
    waves = np.stack([np.cos(2 * ANGLES), np.cos(4 * ANGLES)]) * np.array([[1.2], [0.5]])
    radii = ellipse(15, 10) + draws.standard_normal((150, 2)) @ waves
    masks = [filled(row, turn) for row, turn in zip(radii, draws.uniform(0, 3, 150), strict=True)]
    crops = crops_of(masks, np.arange(150), np.zeros(150))
    return radii, waves, *fit_shapes(crops, np.zeros(150, np.int8))


def test_fit_shapes_finds_the_planted_mean(planted):
    _, _, model, overlap = planted
    assert np.abs(model.mean[0] - ellipse(15, 10)).max() < 0.5
    assert overlap > 0.97
    assert model.counts[0] == 150


def test_fit_shapes_finds_the_planted_covariance(planted):
    radii, waves, model, _ = planted
    wanted, found = waves.T @ waves, model.modes[0].T @ model.modes[0]
    assert np.linalg.norm(found - wanted) < 0.25 * np.linalg.norm(wanted)
    assert np.trace(found) == pytest.approx(np.trace(np.cov(radii.T)), rel=0.2)


def test_fit_shapes_is_symmetric_under_half_turns_and_mirrors(planted):
    model = planted[2]
    index = np.arange(CONTOUR_POINTS)
    covariance = model.modes[0].T @ model.modes[0]
    for mirror in (-index % 60, (index + 30) % 60, (30 - index) % 60):
        np.testing.assert_allclose(model.mean[0][mirror], model.mean[0], atol=1e-9)
        np.testing.assert_allclose(covariance[np.ix_(mirror, mirror)], covariance, atol=0.02)


def test_fit_shapes_gives_a_stage_without_nuclei_the_outlines_of_interphase(planted):
    model = planted[2]
    assert model.mean.shape == (len(STAGES), CONTOUR_POINTS)
    np.testing.assert_array_equal(model.mean[3], model.mean[0])
    assert model.counts.tolist() == [150, 0, 0, 0, 0, 0]


def test_fit_shapes_leaves_out_masks_that_their_contour_does_not_reproduce():
    ring = filled(ellipse(16, 16)) & ~filled(ellipse(8, 8))
    masks = [filled(ellipse(12, 9)), filled(ellipse(12, 9), 1.0), ring]
    model, _ = fit_shapes(crops_of(masks, [1, 2, 3], [0] * 3), np.zeros(3, np.int8))
    assert model.counts[0] == 2
    with pytest.raises(ValueError, match=r"at least 2 whole nuclei in interphase.*got 1 whose"):
        fit_shapes(crops_of(masks[1:], [1, 2], [0, 0]), np.zeros(2, np.int8))


def test_the_area_of_a_planted_disc_is_known():
    assert compute_polygon_area(trace_contour(filled(np.full(60, 12.0)))) == pytest.approx(
        math.pi * 144, rel=0.04
    )


def test_drawn_outlines_are_as_long_as_the_planted_ones():
    draws = np.random.default_rng(4)
    # Most a little longer than round, few much longer: nothing that a normal law would draw.
    ratios = 1.1 + 0.25 * draws.gamma(1.5, size=300)
    sizes = 13 * np.exp(0.25 * draws.standard_normal(300)) * np.sqrt([ratios, 1 / ratios])
    masks = [filled(ellipse(*axes)) for axes in sizes.T]
    crops = crops_of(masks, range(1, 301), [0] * 300)
    model, _ = fit_shapes(crops, np.zeros(300, np.int8))
    scores = np.concatenate([model.sample_scores(1, draws) for _ in range(3000)])
    radii = model.mean[0] + scores @ model.modes[0]
    found = radii[:, [0, 30]].mean(1) / radii[:, [15, 45]].mean(1)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(found, share) == pytest.approx(np.quantile(ratios, share), rel=0.08)
