"""What is measured first: frames and their background, crops, stages."""

import numpy as np
import pytest
from fitted import FOUNDERS, LEVEL, OFFSET, crops_of, fitted_video, write_fitted
from scipy import ndimage

from bvdm_data.clip import STAGES, CameraScale
from bvdm_data.datasets.ctc import read_sequence, write_sequence
from bvdm_data.fitting.nuclei import MASK_LEVEL, Crops, extract_crops
from bvdm_data.fitting.stages import (
    INTERPHASE,
    METAPHASE,
    PROMETAPHASE,
    TELOPHASE,
    UNKNOWN,
    StageRules,
    assign_stages,
    find_daughters,
    measure_features,
    measure_interphase,
    measure_stage_durations,
)
from bvdm_data.fitting.video import Frame, Video, estimate_background, mask_background, read_video

SCALE = CameraScale(OFFSET, OFFSET + 4095)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_fitted(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def video(root):
    return read_video(read_sequence(root, "01"), SCALE, progress=False)


@pytest.fixture(scope="module")
def crops(video):
    return extract_crops(video)


def scene(seed=0, size=(200, 240)):
    """Return a grey picture of 12 discs on a planted background, their masks, the background."""
    y, x = np.mgrid[: size[0], : size[1]]
    field = 0.07 + 0.02 * np.sin(y / 80) * np.cos(x / 90)
    masks = np.zeros(size, np.int32)
    for number in range(12):
        cy, cx = 30 + 60 * (number // 4), 30 + 60 * (number % 4)
        masks[(y - cy) ** 2 + (x - cx) ** 2 < 64] = number + 1
    noise = 0.002 * np.random.default_rng(seed).standard_normal(size)
    return (field + noise + 0.3 * (masks > 0)).astype(np.float32), masks, field


# Video


def test_read_video_keeps_frames_masks_and_tracks(video):
    counts, masks, tracks = fitted_video()
    assert [frame.number for frame in video.frames] == list(range(40))
    np.testing.assert_array_equal(video.tracks, tracks)
    for number in (0, 17, 39):
        np.testing.assert_array_equal(SCALE.to_counts(video.frames[number].grey), counts[number])
        np.testing.assert_array_equal(video.frames[number].masks, masks[number])


def test_read_video_leaves_out_frames_from_stop_on(root):
    short = read_video(read_sequence(root, "01"), SCALE, stop=5, progress=False)
    assert [frame.number for frame in short.frames] == [0, 1, 2, 3, 4]


def test_read_video_with_stop_knows_nothing_of_later_tracks(root):
    tracks = fitted_video()[2]
    source = read_sequence(root, "01")
    short = read_video(source, SCALE, stop=12, progress=False).tracks
    assert short[:, 0].tolist() == tracks[tracks[:, 1] < 12, 0].tolist()
    assert short[:, 2].max() == 11
    assert len(find_daughters(short)) == 1
    np.testing.assert_array_equal(source.tracks, tracks)


def test_read_video_leaves_out_frames_without_a_nucleus(tmp_path):
    masks = np.zeros((4, 60, 60), np.int32)
    masks[1:, 20:30, 20:30] = 1
    counts = np.full(masks.shape, OFFSET + 300, np.uint16)
    write_sequence(tmp_path, "01", counts, masks, np.array([[1, 1, 3, 0]]))
    (tmp_path / "01_GT/SEG/man_seg003.tif").unlink()
    found = read_video(read_sequence(tmp_path, "01", "GT"), SCALE, progress=False)
    assert [frame.number for frame in found.frames] == [1, 2]


def test_the_background_of_the_planted_video_is_the_planted_level(video):
    levels = [float(np.median(frame.background)) * 4095 for frame in video.frames]
    assert np.abs(np.array(levels) - LEVEL).max() < 5


def test_background_light_recovers_a_planted_field_under_the_nuclei():
    grey, masks, field = scene()
    found = estimate_background(grey, masks)
    # A mean over 32 px flattens the field of period 500 px by less than a tenth.
    inner = (slice(40, -40), slice(40, -40))
    assert np.abs(found - field)[inner].max() < 0.004
    assert np.abs(found - field).mean() < 0.004
    assert found.dtype == np.float32


def test_background_light_of_an_even_picture_is_that_picture():
    _, masks, _ = scene()
    found = estimate_background(np.full(masks.shape, 0.25, np.float32), masks)
    np.testing.assert_allclose(found, 0.25, atol=1e-5)


def test_background_light_does_not_see_bright_things_without_a_label():
    grey, masks, _ = scene()
    found = estimate_background(grey, masks)
    lit = grey.copy()
    lit[90:110, 50:70] += 0.5
    assert not mask_background(lit, masks)[90:110, 50:70].any()
    np.testing.assert_allclose(estimate_background(lit, masks), found, atol=5e-4)


def test_empty_places_keep_seven_pixels_off_the_outlines():
    grey, masks, _ = scene()
    free = mask_background(grey, masks)
    steps = ndimage.distance_transform_cdt(masks == 0, "taxicab")
    assert not free[steps <= 7].any()
    assert free[steps > 7].mean() > 0.99


def test_empty_places_fall_back_on_all_pixels_between_crowded_nuclei():
    masks = np.ones((40, 40), np.int32)
    masks[::8] = 0
    free = mask_background(np.full((40, 40), 0.1, np.float32), masks)
    np.testing.assert_array_equal(free, masks == 0)


# Crops


def test_cut_nuclei_cuts_whole_tracked_nuclei_only():
    masks = np.zeros((60, 80), np.int32)
    masks[20:30, 20:34] = 1  # whole
    masks[0:9, 40:50] = 2  # at the upper edge
    masks[40:50, 71:80] = 3  # at the right edge
    masks[40:50, 20:30] = 4  # in no track
    masks[50:59, 35:70] = 5  # larger than the patch
    frame = Frame(7, np.full(masks.shape, 0.3, np.float32), masks, np.zeros_like(masks, np.float32))
    tracks = np.array([[i, 7, 7, 0] for i in (1, 2, 3, 5)], np.int32)
    crops = extract_crops(Video((frame,), tracks, SCALE), patch=32)
    assert crops.track.tolist() == [1]
    assert crops.frame.tolist() == [7]
    assert crops.masks.shape == (1, 32, 32)
    np.testing.assert_allclose(crops.centre, [[24.5, 26.5]])


def test_cut_nuclei_centres_the_bounding_box(crops):
    for mask in crops.masks[::37]:
        y, x = np.nonzero(mask)
        assert abs(y.min() + y.max() + 1 - 96) <= 1
        assert abs(x.min() + x.max() + 1 - 96) <= 1


def test_cut_nuclei_measures_the_light_above_the_background_inside_the_mask(video, crops):
    assert not crops.light[~crops.masks].any()
    for row in (0, 100, 400):
        frame = video.frames[crops.frame[row]]
        inside = frame.masks == crops.track[row]
        light = (frame.grey - frame.background)[inside]
        assert crops.masks[row].sum() == inside.sum()
        assert crops.brightness[row] == pytest.approx(light.mean(), rel=1e-5)
        np.testing.assert_allclose(
            np.sort(crops.light[row][crops.masks[row]].astype(float)), np.sort(light), rtol=2e-3
        )
        np.testing.assert_allclose(crops.centre[row], np.argwhere(inside).mean(0), rtol=1e-5)


def test_cut_nuclei_finds_every_whole_nucleus_in_order_of_frame_and_track(video, crops):
    order = np.lexsort((crops.track, crops.frame))
    assert order.tolist() == list(range(len(crops.track)))
    assert len(crops.track) > 400
    assert crops.light.dtype == np.float16


def test_cut_nuclei_of_a_video_without_whole_nuclei_is_empty():
    masks = np.zeros((50, 50), np.int32)
    masks[0, :] = 1
    frame = Frame(0, np.zeros((50, 50), np.float32), masks, np.zeros((50, 50), np.float32))
    crops = extract_crops(Video((frame,), np.array([[1, 0, 0, 0]], np.int32), SCALE))
    assert crops.light.shape == (0, 96, 96)
    assert crops.centre.shape == (0, 2)


def test_the_flat_mask_has_the_grey_of_the_authors():
    assert round(MASK_LEVEL, 3) == 0.588


# Stages


def test_daughters_of_lists_divisions_and_no_interrupted_tracks():
    tracks = np.array(
        [[1, 0, 3, 0], [2, 4, 9, 1], [3, 4, 9, 1], [4, 0, 3, 0], [5, 5, 9, 4]], np.int32
    )
    assert find_daughters(tracks) == {1: [2, 3]}


def test_assign_stages_finds_the_planted_mitoses(crops):
    tracks = fitted_video()[2]
    stages = assign_stages(crops, tracks)
    span = {i: (first, last) for i, first, last, _ in tracks.tolist()}
    mothers = find_daughters(tracks)
    parent = dict(zip(tracks[:, 0].tolist(), tracks[:, 3].tolist(), strict=True))
    for row, (track, frame) in enumerate(zip(crops.track, crops.frame, strict=True)):
        first, last = span[int(track)]
        wanted = INTERPHASE
        if track in mothers and last - frame < 2:
            wanted = METAPHASE if frame == last else PROMETAPHASE
        elif parent[int(track)] and frame == first:
            wanted = TELOPHASE
        assert stages[row] == wanted, (track, frame, STAGES[wanted])


def test_assign_stages_takes_a_parent_of_one_child_for_no_division(crops):
    tracks = fitted_video()[2]
    mother, (_, lost) = next(iter(find_daughters(tracks).items()))
    tracks[tracks[:, 0] == lost, 3] = 0
    stages = assign_stages(crops, tracks)
    assert (stages[crops.track == mother] == INTERPHASE).all()


def test_assign_stages_does_not_know_mitoses_of_mothers_seen_too_shortly(crops):
    tracks = fitted_video()[2]
    mother = next(iter(find_daughters(tracks)))
    last = tracks[tracks[:, 0] == mother, 2][0]
    late = (crops.track != mother) | (crops.frame > last - 6)
    short = Crops(*(getattr(crops, name)[late] for name in Crops.__dataclass_fields__))
    stages = assign_stages(short, tracks)
    assert set(stages[short.track == mother]) == {UNKNOWN}
    daughter = short.track == find_daughters(tracks)[mother][0]
    first = short.frame[daughter].min()
    young = short.frame - first < 4
    assert set(stages[daughter & young]) == {UNKNOWN}
    assert set(stages[daughter & ~young]) <= {INTERPHASE, METAPHASE, PROMETAPHASE}


def test_interphase_references_are_the_looks_of_the_mother_before(crops):
    tracks = fitted_video()[2]
    found = measure_interphase(crops, measure_features(crops), tracks, StageRules())
    assert set(found) == set(find_daughters(tracks))
    for number, (last, light) in enumerate(FOUNDERS):
        mother = tracks[(tracks[:, 1] == 0), 0][number]
        area, brightness = found[int(mother)]
        assert area == pytest.approx(230, abs=6), last
        assert brightness * 4095 == pytest.approx(light, rel=0.05)


def test_appearance_tells_area_and_ratio_of_axes():
    masks = np.zeros((2, 96, 96), bool)
    masks[0, 40:50, 30:60] = True
    masks[1, 40:50, 40:50] = True
    looks_like = measure_features(crops_of(masks, [1, 2], [0, 0], [0.5, 0.5]))
    assert looks_like.area.tolist() == [300, 100]
    np.testing.assert_allclose(looks_like.aspect, [np.sqrt(899 / 99), 1], rtol=1e-6)
    assert looks_like.brightness.tolist() == [0.5, 0.5]


def test_durations_are_those_of_the_planted_mitoses(crops):
    tracks = fitted_video()[2]
    stages = assign_stages(crops, tracks)
    table = measure_stage_durations(crops, stages, tracks, find_daughters(tracks), longest=4)
    assert table.shape == (6, 5)
    assert table[INTERPHASE].tolist() == [0] * 5
    for stage, frames in [(METAPHASE, 1), (PROMETAPHASE, 1), (TELOPHASE, 1), (1, 0), (4, 0)]:
        assert table[stage].argmax() == frames
        assert table[stage].max() > 0.9
    np.testing.assert_allclose(table[1:].sum(1), 1)
