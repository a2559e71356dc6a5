from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.evaluation.nucleus_features import list_detections
from bvdm_data.evaluation.video_statistics import (
    TextureAutocorrelation,
    find_pairs_at_lag,
    measure_texture_autocorrelation,
)
from bvdm_data.fitting.texture_noise import LAGS, correlate_registered, cut_patch
from tests.helpers.films import as_clip, draw_film, grain


def persistence_of(*clips, pairs=90):
    return measure_texture_autocorrelation(clips, list_detections(clips), pairs=pairs)


def medians(found):
    return np.array([np.median(found.lags[lag]) for lag in LAGS])


@pytest.fixture(scope="module")
def drawn():
    return {
        kept: persistence_of(*(draw_film(kept, seed=seed) for seed in range(2)))
        for kept in (1.0, 0.5, 0.0)
    }


def test_correlation_falls_as_texture_changes(drawn):
    assert medians(drawn[1.0]).min() > 0.93
    assert min(drawn[1.0].kept(lag) for lag in LAGS) > 0.85
    assert np.abs(medians(drawn[0.0]) - np.median(drawn[0.0].unrelated)).max() < 0.1
    assert max(abs(drawn[0.0].kept(lag)) for lag in LAGS) < 0.2
    assert (medians(drawn[0.5]) < medians(drawn[1.0]) - 0.15).all()
    assert (medians(drawn[0.5]) > medians(drawn[0.0]) + 0.1).all()


@pytest.fixture(scope="module")
def real(hela):
    videos = CTCVideos(hela, sequence="01", frames=8, size=(320, 480), start=60, stop=70)
    return videos.clip(0)


def frozen(clip):
    masks, image = clip["masks"][0].numpy(), clip["video"][0, 0].numpy()
    turns, frames = 5 * np.arange(8), range(8)
    held = {"reshape": False, "mode": "constant"}
    new_masks = np.stack([ndimage.rotate(masks, turns[f], order=0, **held) for f in frames])
    video = np.stack([ndimage.rotate(image, turns[f], order=3, **held) for f in frames])
    whole = np.stack([ndimage.rotate(np.ones(masks.shape), t, order=0, **held) for t in turns])
    return as_clip(video, np.where(whole.all(0), new_masks, 0), clip["tracks"].numpy())


def made_anew(clip):
    masks, draws = clip["masks"].numpy().copy(), np.random.default_rng(0)
    for image in masks:
        ids, areas = np.unique(image[image > 0], return_counts=True)
        ordered = ids[np.argsort(areas)]
        # Neighbours in size change places, otherwise in every frame.
        new = ordered[np.argsort(np.arange(len(ids)) + draws.uniform(0, 8, len(ids)))]
        name = np.zeros(int(image.max()) + 1, np.int32)
        name[ordered] = new
        image[:] = name[image]
    return as_clip(clip["video"][:, 0].numpy(), masks, clip["tracks"].numpy())


def test_real_texture_lies_in_between(real):
    below, found, above = (
        medians(persistence_of(clip, pairs=60)) for clip in (made_anew(real), real, frozen(real))
    )
    assert above.min() > 0.93
    assert (found < above - 0.02).all()
    assert (below < found - 0.05).all()
    assert found[0] > found[-1]


def turned_picture(turn):
    draws = np.random.default_rng(0)
    image = 0.1 * grain(draws, 81) + 0.5
    y, x = np.mgrid[:81, :81] - 40.0
    mask = (y / 13) ** 2 + (x / 10) ** 2 < 1
    angle = np.deg2rad(turn)
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offset = 40 - back @ (40 + np.array([3.3, -2.6]))
    moved = ndimage.affine_transform(image, back, offset, order=3, mode="nearest")
    label = ndimage.affine_transform(mask.astype(float), back, offset, order=1) >= 0.5
    for grey, where in ((image, mask), (moved, label)):
        centre = np.array(ndimage.center_of_mass(where))
        yield cut_patch(grey.astype(np.float32), where, centre)


@pytest.mark.parametrize("turn", [0, 33, -40])
def test_patch_is_registered_after_motion(turn):
    one, other = turned_picture(turn)
    assert correlate_registered(one, other) > 0.98
    assert correlate_registered(other, one) > 0.98


def test_large_rotations_need_a_start():
    one, other = turned_picture(100)
    assert correlate_registered(one, other) < 0.8
    found = [correlate_registered(one, other, start=np.deg2rad(turn)) for turn in (-80, 80)]
    assert max(found) > 0.98 > 0.8 > min(found)


def test_correlation_ignores_brightness_and_contrast():
    clip = draw_film(1.0, frames=2)
    seen = list_detections([clip])
    images, masks = clip["video"][:, 0].numpy(), clip["masks"].numpy()
    one = cut_patch(images[0], masks[0] == 1, seen.centre[0])
    brighter = replace(one, light=3 * one.light + 0.2)
    assert correlate_registered(one, brighter) == pytest.approx(1, abs=1e-3)
    assert correlate_registered(one, replace(one, light=-one.light)) < 0.9


def test_nuclei_near_edges_are_cut():
    image, mask = np.zeros((30, 40), np.float32), np.zeros((30, 40), bool)
    mask[2:12, 25:38] = True
    picture = cut_patch(image, mask, np.array([6.5, 31.0]))
    assert picture.light.shape == picture.inside.shape == (49, 49)
    assert int(picture.inside.sum()) == 6 * 9  # more than 2 px deep
    assert picture.rest.tolist() == [0.5, 0.0]
    mask[:] = False
    mask[14:18, 10:30] = True  # without an inside
    thin = cut_patch(image, mask, np.array([15.5, 19.5]))
    assert np.isnan(correlate_registered(thin, thin))


def test_pairs_avoid_edges_and_mitoses():
    masks = np.zeros((3, 60, 90), np.int32)
    masks[:, 10:30, 10:30] = 1
    masks[:, 40:60, 10:30] = 2  # touches the edge
    masks[:2, 10:30, 50:70] = 3
    masks[2, 10:20, 50:70] = 3  # half as large
    seen = list_detections([as_clip(np.zeros(masks.shape), masks, np.zeros((4, 4)))])

    def found(lag):
        rows = find_pairs_at_lag(seen, lag)
        return [(int(seen.identity[a]), int(seen.frame[a]), int(seen.frame[b])) for a, b in rows]

    assert found(1) == [(1, 0, 1), (3, 0, 1), (1, 1, 2)]
    assert found(2) == [(1, 0, 2)]
    assert found(3) == []


def test_short_clips_have_no_long_lags():
    found = persistence_of(draw_film(1.0, frames=3), pairs=5)
    assert [len(found.lags[lag]) for lag in LAGS] == [5, 5, 0, 0]
    assert np.isnan(found.kept(7))
    found = TextureAutocorrelation({1: np.array([0.4]), 2: np.array([1.0])}, np.array([0.4, 0.4]))
    assert (found.kept(1), found.kept(2)) == (0, 1)
    clip = draw_film(1.0, frames=2)
    clip["masks"] = torch.where(clip["masks"] == 5, 5, 0)
    found = persistence_of(clip, pairs=3)
    assert (len(found.lags[1]), len(found.unrelated)) == (1, 0)
    assert np.isnan(found.kept(1))


def test_pairs_depend_on_the_seed():
    clips = [draw_film(0.5, frames=3, seed=seed) for seed in (0, 1)]
    seen = list_detections(clips)
    first, again = (measure_texture_autocorrelation(clips, seen, pairs=6, seed=3) for _ in range(2))
    other = measure_texture_autocorrelation(clips, seen, pairs=6, seed=4)
    assert np.array_equal(first.lags[1], again.lags[1])
    assert np.array_equal(first.unrelated, again.unrelated)
    assert not np.array_equal(first.lags[1], other.lags[1])
    everything = measure_texture_autocorrelation(clips, seen, pairs=1000)
    assert len(everything.lags[2]) == 18
