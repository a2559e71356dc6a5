"""Outlines: their share of the core's light, measured, calibrated, moved, and asked for."""

import functools

import numpy as np
import pytest
import torch
from scipy import ndimage

from bvdm_data import CTCVideos, PoolSettings, SyntheticHeLaVideos, twin
from bvdm_data.outlines import calibrate_outline, measure_edges, move_outlines

ROWS, COLUMNS = np.indices((240, 240))
LIGHTS = np.geomspace(0.02, 0.5, 16)


def disc(y, x, radius):
    return np.hypot(ROWS - y, COLUMNS - x) <= radius


def draw_discs(radius=12, share=0.4):
    """Discs of different light whose rims have one share of it, with their masks."""
    image, masks = np.full(ROWS.shape, 0.05), np.zeros(ROWS.shape, int)
    for number, light in enumerate(LIGHTS):
        inside = disc(30 + 60 * (number // 4), 30 + 60 * (number % 4), radius)
        rim = inside & ~ndimage.binary_erosion(inside, np.ones((3, 3)))
        image += light * (inside - (1 - share) * rim)
        masks[inside] = 3 * number + 1
    return image, masks


def draw_thresholded(level=0.01):
    """Blurred discs whose outlines lie at one level of light, as a threshold draws them."""
    image, masks = draw_discs(share=1)
    light = ndimage.gaussian_filter(image - 0.05, 1.5)
    wide = ndimage.grey_dilation(masks, 13)
    return light, np.where(light > level, wide, 0)


def draw_pair():
    """Two blurred discs that touch; each has its half of them."""
    light = ndimage.gaussian_filter(0.2 * disc(120, 108, 12) + 0.2 * disc(120, 132, 12), 2.0)
    return light, np.where(light > 0.03, 1 + (COLUMNS >= 120), 0)


def test_share_of_rims_is_measured():
    image, masks = draw_discs()
    for change in (1, 4095):
        light, share = measure_edges(change * image + 7, masks)
        np.testing.assert_allclose(light, change * LIGHTS, rtol=0.01)
        np.testing.assert_allclose(share, 0.4, rtol=0.01)


def test_only_nuclei_alone_are_measured():
    image, masks = draw_discs()
    masks[disc(30, 60, 16) & (masks == 0)] = 99  # between the first two
    masks[disc(2, 120, 12)] = 98  # cut off by the edge
    masks[disc(120, 60, 3)] = 97  # small
    light, _ = measure_edges(image, masks)
    np.testing.assert_allclose(light, LIGHTS[2:], rtol=0.01)
    light, share = measure_edges(image, np.zeros_like(masks))
    assert light.shape == share.shape == (0,)


def test_calibration_gives_the_share():
    image, masks = draw_discs(share=0.6)
    np.testing.assert_allclose(calibrate_outline([image], [masks]), (0.6, 0.0), atol=0.006)
    assert calibrate_outline(np.stack([image, image]), np.stack([masks, masks])).share > 0.59
    # A threshold: brighter nuclei have their outline farther down their edge.
    thresholded = draw_thresholded()
    outline = calibrate_outline([thresholded[0]], [thresholded[1]])
    light, share = measure_edges(*thresholded)
    assert outline.slope == pytest.approx(np.polyfit(np.log(light), share, 1)[0])
    assert outline.slope < -0.1


def test_calibration_goes_halfway_from_clips():
    frames, clip = draw_discs(share=0.6), draw_discs(share=0.4)
    clips = [
        {"video": torch.from_numpy(clip[0])[None, None], "masks": torch.from_numpy(clip[1])[None]}
    ]
    outline = calibrate_outline([frames[0]], [frames[1]], clips=clips)
    np.testing.assert_allclose(outline, (0.5, 0.0), atol=0.006)


def test_unusable_frames_are_refused():
    image, masks = draw_discs()
    with pytest.raises(ValueError, match=r"at least 10 nuclei .*got 2; give more frames"):
        calibrate_outline([image], [masks * (masks < 5)])
    with pytest.raises(ValueError, match="masks must be as many as frames, 2, got 1"):
        calibrate_outline([image, image], [masks])
    with pytest.raises(TypeError, match="masks must hold integers, got float64"):
        measure_edges(image, masks.astype(float))
    with pytest.raises(TypeError, match="image must hold real numbers, got complex"):
        measure_edges(image.astype(complex), masks)
    with pytest.raises(ValueError, match=r"one frame each, \[H, W\], got \(1, 240, 240\)"):
        measure_edges(image[None], masks[None])
    for share in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="outline must be above 0 and below 1"):
            move_outlines(image, masks, share)


@pytest.mark.parametrize("share", [0.35, 0.5])
def test_outlines_move_to_the_share(share):
    image, masks = draw_thresholded()
    before = measure_edges(image, masks)[1]
    assert np.ptp(before) > 0.4
    after = move_outlines(image, masks, share)
    assert after.dtype == masks.dtype
    assert set(np.unique(after)) == set(np.unique(masks))
    np.testing.assert_allclose(measure_edges(image, after)[1], share, atol=0.02)


def test_boundaries_in_contact_stay():
    light, masks = draw_pair()
    moved = move_outlines(light, masks, 0.6)
    assert (moved != masks).sum() > 40
    assert not np.any((moved != masks) & (moved > 0))
    between = slice(119, 121)
    np.testing.assert_array_equal(moved[112:129, between], masks[112:129, between])


def test_gaps_stay_open():
    light = ndimage.gaussian_filter(0.2 * disc(120, 106, 12) + 0.2 * disc(120, 134, 12), 2.0)
    masks = np.where(disc(120, 106, 12), 1, np.where(disc(120, 134, 12), 2, 0))
    moved = move_outlines(light, masks, 0.1)
    assert (moved > 0).sum() > 1.2 * (masks > 0).sum()
    assert not ((moved[:, 1:] == 2) & (moved[:, :-1] == 1)).any()


def test_no_nucleus_is_harmed():
    image, masks = draw_thresholded()
    masks[30, 30] = 0  # a hole
    masks[5:8, 200:230] = 77  # too thin to have a core
    masks[117:123, 100:103] = 78  # in the dark
    image[117:123, 100:103] -= 0.1
    for share in (0.05, 0.95):
        moved = move_outlines(image, masks, share)
        parts = [ndimage.label(moved == one, np.ones((3, 3)))[1] for one in np.unique(masks)[1:]]
        assert set(parts) == {1}
        np.testing.assert_array_equal(moved == 78, masks == 78)
        assert moved[30, 30] == masks[31, 31]
    far = ndimage.distance_transform_edt(masks == 0) > 3
    assert not move_outlines(image, masks, 0.05)[far].any()


def test_real_masks_are_moved(two_videos):
    real = CTCVideos(two_videos, frames=1, size=64, border=0)
    moved = CTCVideos(two_videos, frames=1, size=64, border=0, outline=0.6)
    clip, other = real.clip(0), moved.clip(0)
    assert torch.equal(clip["video"], other["video"])
    assert torch.equal(clip["masks"].unique(), other["masks"].unique())
    assert (clip["masks"] != other["masks"]).any()
    assert moved._list_settings() != real._list_settings()
    with pytest.raises(ValueError, match="outline must be above 0 and below 1, got 2"):
        CTCVideos(two_videos, outline=2)


@functools.cache
def measure_clips(**arguments):
    """Return the log light and the share of the nuclei of a large frame of the shipped model."""
    videos = SyntheticHeLaVideos(
        frames=1, size=384, nuclei=50, variation=0, annotations=("masks",), **arguments
    )
    clip = videos.clip(0)
    light, share = measure_edges(clip["video"][0, 0].numpy(), clip["masks"][0].numpy())
    return clip, np.log(light), share


def test_share_is_even_at_every_brightness():
    slopes = {}
    for outline in ("video", "even"):
        found = [measure_clips(outline=outline, seed=seed)[1:] for seed in range(10)]
        slopes[outline] = np.polyfit(*map(np.concatenate, zip(*found, strict=True)), 1)[0]
    assert slopes["video"] < -0.1
    assert abs(slopes["even"]) < 0.03


def test_number_moves_labels_alone():
    even, _, share = measure_clips(outline="even")
    assert np.median(share) == pytest.approx(0.43, abs=0.03)  # the fitted video's
    for wanted in (0.3, 0.55):
        moved, _, share = measure_clips(outline=wanted)
        assert np.median(share) == pytest.approx(wanted, abs=0.03)
        assert torch.equal(moved["video"], even["video"])
        assert torch.equal(moved["masks"].unique(), even["masks"].unique())
        area = (moved["masks"] > 0).sum() / (even["masks"] > 0).sum()
        assert area > 1.03 if wanted < 0.4 else area < 0.97


def test_pool_has_the_same_outlines():
    _, light, share = measure_clips(pool=PoolSettings(pairs=64), outline="even")
    assert abs(np.polyfit(light, share, 1)[0]) < 0.03
    assert np.median(share) == pytest.approx(0.43, abs=0.03)


def test_outline_of_no_meaning_is_refused(tiny_model):
    for outline, error, words in (
        ("odd", ValueError, "must be 'even', 'video' or a share of the core's light, got 'odd'"),
        (True, TypeError, "outline must be a number, got True"),
        (1.0, ValueError, "outline must be above 0 and below 1, got 1.0"),
    ):
        with pytest.raises(error, match=words):
            SyntheticHeLaVideos(model=tiny_model, outline=outline)
    with pytest.raises(ValueError, match=r"'even' or 'video' unless the method is 'fast', got 0.3"):
        SyntheticHeLaVideos(model=tiny_model, method="procedural", outline=0.3)
    with pytest.raises(ValueError, match=r"outline must be from 0\.\d\d to 0\.\d\d with this"):
        SyntheticHeLaVideos(outline=0.01)


def test_outline_is_part_of_the_state(tiny_model):
    even, video = (
        SyntheticHeLaVideos(model=tiny_model, length=4, batch_size=1, outline=outline)
        for outline in ("even", "video")
    )
    with pytest.raises(ValueError, match="outline"):
        video.load_state_dict(even.state_dict())


def test_twin_takes_outlines_of_the_video(two_videos):
    scale = SyntheticHeLaVideos().scale
    real = CTCVideos(two_videos, frames=1, size=64, border=0, outline=0.5, scale=scale)
    assert twin(real).sources["synthetic"].outline == (0.5, 0.0)
    assert twin(real, synthetic={"outline": "video"}).sources["synthetic"].outline == "video"
