"""Outlines and the shape model: what was planted is found again."""

from dataclasses import replace

import numpy as np
import pytest
from skimage.measure import regionprops

from bvdm_data.background import estimate_background
from bvdm_data.clip import PHASES, CameraScale
from bvdm_data.fitting import contours
from bvdm_data.fitting.contours import (
    _draw_mask,
    _measure_contour_iou,
    _measure_solidity,
    _trace_contour,
    trace_contours,
)
from bvdm_data.fitting.video import Frame, Video
from bvdm_data.synth.contours import CONTOUR_POINTS, compute_polygon_area
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import FastSettings
from bvdm_data.weights import load
from tests.helpers.fitted import ANGLES, crops_of, ellipse, filled, nuclei_of

RING = filled(ellipse(16, 16)) & ~filled(ellipse(8, 8))


def fit_shapes(masks):
    """Fit the shape model to masks, all in interphase and of different tracks."""
    crops = crops_of(masks, range(1, len(masks) + 1), [0] * len(masks))
    nuclei = nuclei_of(crops, stage=np.zeros(len(masks), np.int8))
    return contours.fit_shapes(nuclei, trace_contours(crops.masks))


@pytest.mark.parametrize("axes", [(16, 9), (14, 12), (12, 5.5), (11, 5)])
def test_contour_has_shape_and_area(axes):
    ratios = []
    for turn in (-1.4, -0.7, 0.0, 0.4, 1.1):
        mask = filled(ellipse(*axes), turn)
        radii = _trace_contour(mask)
        np.testing.assert_allclose(radii, ellipse(*axes), atol=0.8)
        ratios.append(float(compute_polygon_area(radii)) / mask.sum())
    assert np.mean(ratios) == pytest.approx(1, abs=0.012)


def test_contour_starts_at_major_axis():
    radii = ellipse(16, 9)
    radii[5:10] += 3  # a bump on the side of +x
    found = _trace_contour(filled(radii))
    assert found[5:10].mean() > found[-10:-5].mean() + 1
    with pytest.raises(ValueError, match="mask must show a nucleus, got an empty one"):
        _trace_contour(np.zeros((96, 96), bool))


def test_contour_iou_is_low_for_rings():
    mask = filled(ellipse(16, 9), 0.6)
    assert _measure_contour_iou(mask, _trace_contour(mask)) > 0.97
    assert _measure_contour_iou(RING, _trace_contour(RING)) == pytest.approx(0.75, abs=0.05)


def test_shapes_have_planted_mean_and_covariance():
    rng = np.random.default_rng(0)
    waves = np.stack([np.cos(2 * ANGLES), np.cos(4 * ANGLES)]) * np.array([[1.2], [0.5]])
    radii = ellipse(15, 10) + rng.standard_normal((150, 2)) @ waves
    masks = [filled(row, turn) for row, turn in zip(radii, rng.uniform(0, 3, 150), strict=True)]
    model, overlap = fit_shapes(masks)
    assert np.abs(model.mean[0] - ellipse(15, 10)).max() < 0.5
    assert overlap > 0.97
    wanted, found = waves.T @ waves, model.modes[0].T @ model.modes[0]
    assert np.linalg.norm(found - wanted) < 0.25 * np.linalg.norm(wanted)
    index = np.arange(CONTOUR_POINTS)
    for mirror in (-index % 60, (index + 30) % 60, (30 - index) % 60):
        np.testing.assert_allclose(model.mean[0][mirror], model.mean[0], atol=1e-9)
        np.testing.assert_allclose(found[np.ix_(mirror, mirror)], found, atol=0.02)
    # Stages that are not seen have the outlines of interphase.
    assert model.mean.shape == (len(PHASES), CONTOUR_POINTS)
    np.testing.assert_array_equal(model.mean[3], model.mean[0])
    assert model.counts.tolist() == [150, 0, 0, 0, 0, 0]


def test_shapes_leave_out_flawed_masks():
    masks = [filled(ellipse(12, 9)), filled(ellipse(12, 9), 1.0), RING]
    assert fit_shapes(masks)[0].counts[0] == 2
    with pytest.raises(ValueError, match=r"at least 2 whole nuclei in interphase.*got 1 whose"):
        fit_shapes(masks[1:])


def test_drawn_outlines_are_as_elongated():
    rng = np.random.default_rng(4)
    # Most a little longer than round, few much longer: nothing that a normal law would draw.
    ratios = 1.1 + 0.25 * rng.gamma(1.5, size=300)
    sizes = 13 * np.exp(0.25 * rng.standard_normal(300)) * np.sqrt([ratios, 1 / ratios])
    model, _ = fit_shapes([filled(ellipse(*axes)) for axes in sizes.T])
    scores = model.sample_scores(1, rng, 3000)[0]
    radii = model.mean[0] + scores @ model.modes[0]
    found = radii[:, [0, 30]].mean(1) / radii[:, [15, 45]].mean(1)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(found, share) == pytest.approx(np.quantile(ratios, share), rel=0.08)


def test_drawn_masks_are_as_solid():
    rng = np.random.default_rng(5)
    # One dent or bump each: independent scores of the same size would have dents all around.
    away = np.abs((ANGLES - rng.uniform(0, 2 * np.pi, (100, 1)) + np.pi) % (2 * np.pi) - np.pi)
    axes = np.exp(0.15 * rng.standard_normal((2, 100))) * np.array([[15], [11]])
    radii = np.stack([ellipse(*pair) for pair in axes.T])
    radii += 2.5 * rng.standard_normal((100, 1)) * np.exp(-((away / 0.35) ** 2))
    masks = [filled(row, turn) for row, turn in zip(radii, rng.uniform(0, 3, 100), strict=True)]
    model, _ = fit_shapes(masks)
    scores = model.sample_scores(1, rng, 300)[0]
    drawn = [_draw_mask(row, rng) for row in model.mean[0] + scores @ model.modes[0]]
    wanted, found = (np.median([*map(_measure_solidity, own)]) for own in (masks, drawn))
    assert found == pytest.approx(wanted, abs=0.002)
    for mask in masks[:9]:
        known = regionprops(mask.view(np.uint8))[0].solidity
        assert _measure_solidity(mask) == pytest.approx(known, abs=1e-9)


@pytest.mark.parametrize("planted", [-0.8, 0.6])
def test_planted_label_shift_is_found(planted, monkeypatch):
    monkeypatch.setattr(contours, "EDGE_CLIPS", 40)
    model = load("hela")
    model = replace(model, shapes=replace(model.shapes, label_shift=0.0))
    there = replace(model, shapes=replace(model.shapes, label_shift=planted))
    scene = replace(contours._EDGE_SCENE, moved=None)
    frames = []
    for number in range(12):
        clip = synthesise(there, scene, FastSettings(), seed=1, name=("planted", number))
        grey, masks = clip.video[0], clip.masks[0]
        frames.append(Frame(number, grey, masks, estimate_background(grey, masks)))
    scale = CameraScale(model.camera.offset, model.camera.full)
    video = Video(tuple(frames), clip.tracks, scale)
    assert contours.measure_label_shift(model, video) == pytest.approx(planted, abs=0.15)
