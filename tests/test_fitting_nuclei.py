"""Frames and their background, crops, lineage and stages."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bvdm_data.background import estimate_background, mask_background
from bvdm_data.clip import STAGES, CameraScale
from bvdm_data.datasets.ctc import read_sequence, write_sequence
from bvdm_data.fitting import nuclei as parts
from bvdm_data.fitting.cell_cycle import _count_short_stages, fit_cell_cycle
from bvdm_data.fitting.video import Frame, Video, fit_camera, read_video
from tests.helpers.fitted import (
    LEVEL,
    OFFSET,
    ellipse,
    filled,
    fitted_video,
    write_fitted,
)

SCALE = CameraScale(OFFSET, OFFSET + 4095)
TRACKS = fitted_video()[2]
NO_ROWS = np.zeros((2, 0), int)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return read_sequence(write_fitted(tmp_path_factory.mktemp("fitted")), "01")


@pytest.fixture(scope="module")
def video(source):
    return read_video(source, SCALE, progress=False)


@pytest.fixture(scope="module")
def crops(video):
    return parts.extract_crops(video)


@pytest.fixture(scope="module")
def nuclei(crops):
    return parts.measure_nuclei(crops, TRACKS)


@pytest.fixture(scope="module")
def scene():
    """Return an image of 12 discs on a planted background, their masks, the background."""
    y, x = np.mgrid[:200, :240]
    field = 0.07 + 0.02 * np.sin(y / 80) * np.cos(x / 90)
    masks = np.zeros((200, 240), np.int32)
    for number in range(12):
        cy, cx = 30 + 60 * (number // 4), 30 + 60 * (number % 4)
        masks[(y - cy) ** 2 + (x - cx) ** 2 < 64] = number + 1
    noise = 0.002 * np.random.default_rng(0).standard_normal(masks.shape)
    return (field + noise + 0.3 * (masks > 0)).astype(np.float32), masks, field


# Video


def test_video_keeps_frames_masks_and_tracks(video, source):
    counts, masks, tracks = fitted_video()
    assert [frame.number for frame in video.frames] == list(range(40))
    np.testing.assert_array_equal(video.tracks, tracks)
    for number in (0, 17, 39):
        np.testing.assert_array_equal(SCALE.to_counts(video.frames[number].grey), counts[number])
        np.testing.assert_array_equal(video.frames[number].masks, masks[number])
    short = read_video(source.cut(0, 12), SCALE, progress=False)
    assert [frame.number for frame in short.frames] == list(range(12))
    assert short.tracks[:, 0].tolist() == TRACKS[TRACKS[:, 1] < 12, 0].tolist()
    assert (short.tracks[:, 2].max(), len(parts.Lineage(short.tracks, *NO_ROWS).daughters)) == (
        11,
        1,
    )
    np.testing.assert_array_equal(source.tracks, TRACKS)


def test_frames_are_numbered_from_anywhere(tmp_path):
    write_fitted(tmp_path, stop=3)
    before = read_video(read_sequence(tmp_path, "01"), SCALE, progress=False)
    for path in sorted(tmp_path.rglob("*.tif"), reverse=True):
        path.rename(path.with_name(f"{path.stem[:-3]}{500 + int(path.stem[-3:])}.tif"))
    table = tmp_path / "01_GT/TRA/man_track.txt"
    np.savetxt(table, before.tracks + np.array([0, 500, 500, 0]), fmt="%d")
    later = read_video(read_sequence(tmp_path, "01"), SCALE, progress=False)
    np.testing.assert_array_equal(later.tracks, before.tracks)
    assert [frame.number for frame in later.frames] == [0, 1, 2]


def test_background_is_the_planted_one(video, scene):
    levels = [float(np.median(frame.background)) * 4095 for frame in video.frames]
    assert np.abs(np.array(levels) - LEVEL).max() < 5
    grey, masks, field = scene
    background = estimate_background(grey, masks)
    # A mean over 32 px flattens the field of period 500 px by less than a tenth.
    assert np.abs(background - field)[40:-40, 40:-40].max() < 0.004
    assert np.abs(background - field).mean() < 0.004
    even = estimate_background(np.full((203, 240), 0.25, np.float32), np.zeros((203, 240), int))
    np.testing.assert_allclose(even, 0.25, atol=1e-5)
    # Light without a mask does not count.
    lit = grey.copy()
    lit[90:110, 50:70] += 0.5
    assert not mask_background(lit, masks)[90:110, 50:70].any()
    np.testing.assert_allclose(estimate_background(lit, masks), background, atol=5e-4)
    # Background is what lies off the nuclei, or between them, if there is anything.
    free = mask_background(grey, masks)
    steps = ndimage.distance_transform_cdt(masks == 0, "taxicab")
    assert not free[steps <= 7].any()
    assert free[steps > 7].mean() > 0.99
    covered, dark = np.ones((40, 40), np.int32), np.full((40, 40), 0.1, np.float32)
    assert not mask_background(dark, covered).any()
    np.testing.assert_allclose(estimate_background(dark, covered), 0.1)
    covered[::8] = 0
    np.testing.assert_array_equal(mask_background(dark, covered), covered == 0)


# parts.Crops


def test_crops_are_whole_tracked_nuclei(monkeypatch):
    monkeypatch.setattr(parts, "PATCH", 32)
    masks = np.zeros((60, 80), np.int32)
    masks[20:30, 20:34] = 1  # whole
    masks[0:9, 40:50] = 2  # at the upper edge
    masks[40:50, 71:80] = 3  # at the right edge
    masks[40:50, 20:30] = 4  # in no track
    masks[50:59, 35:70] = 5  # larger than the patch
    masks[5:8, 5:8] = masks[30:35, 60:64] = 6  # two pieces, far apart
    frame = Frame(7, np.full(masks.shape, 0.3, np.float32), masks, np.zeros_like(masks, np.float32))
    tracks = np.array([[i, 7, 7, 0] for i in (1, 2, 3, 5, 6)], np.int32)
    crops = parts.extract_crops(Video((frame,), tracks))
    assert (crops.track.tolist(), crops.frame.tolist()) == ([1], [7])
    assert crops.masks.shape == (1, 32, 32)
    np.testing.assert_allclose(crops.centre, [[24.5, 26.5]])
    wanted = {"nuclei_too_large": 1, "nuclei_at_border": 2, "nuclei_untracked": 1}
    assert crops.left_out == wanted | {"nuclei_in_pieces": 1}
    empty = parts.extract_crops(Video((frame,), tracks[1:3]))
    assert (empty.light.shape, empty.centre.shape) == ((0, 32, 32), (0, 2))


def test_refusals_say_what_is_left_out():
    masks = np.zeros((250, 250), np.int32)
    masks[20:140, 20:60], masks[20:60, 100:140], masks[150:200, 30:142] = 1, 2, 3
    frame = Frame(0, np.full(masks.shape, 0.3, np.float32), masks, np.zeros(masks.shape))
    tracks = np.array([[i, 0, 0, 0] for i in (1, 2, 3)], np.int32)
    crops = parts.extract_crops(Video((frame,), tracks))
    words = "2 of 3 nuclei are larger than the patch; give a longer video"
    assert parts.advise(crops, "give a longer video") == words
    with pytest.raises(ValueError, match=f"got 0 of 0 divisions; {words}"):
        fit_cell_cycle(parts.measure_nuclei(crops, tracks), minutes=30.0)
    few = replace(crops, left_out={"nuclei_too_large": 0})
    assert parts.advise(few, "give a longer video") == "give a longer video"


def test_crowded_frames_borrow_their_background(tmp_path):
    counts, masks, tracks = (part.copy() for part in fitted_video())
    counts, masks, tracks = counts[:3], masks[:3], tracks[tracks[:, 1] < 3]
    tracks[:, 2] = 2
    down, right = np.indices(masks.shape[1:])
    lattice = (down % 12 - 6) ** 2 + (right % 12 - 6) ** 2 < 36
    masks[1][lattice & (masks[1] == 0)] = 900
    counts[1][lattice] += 700
    write_sequence(tmp_path, "01", counts, masks, np.append(tracks, [[900, 1, 1, 0]], axis=0))
    source = read_sequence(tmp_path, "01")
    video = read_video(source, SCALE, progress=False)
    assert [frame.is_clear for frame in video.frames] == [True, False, True]
    np.testing.assert_array_equal(video.frames[1].background, video.frames[0].background)
    camera = fit_camera(video, SCALE)
    assert camera.level * 4095 == pytest.approx(LEVEL, abs=4)
    assert camera.noise * 4095 == pytest.approx(9.4, abs=0.6)
    assert np.isfinite(camera.streak).all()
    # Where all frames are crowded, background is what lies between nuclei, if there is any.
    crowded = replace(source, mask_names=dict.fromkeys(range(3), source.mask_names[1]))
    assert all(frame.is_clear for frame in read_video(crowded, SCALE, progress=False).frames)
    write_sequence(tmp_path, "02", counts, np.ones_like(masks), np.array([[1, 0, 2, 0]]))
    with pytest.raises(
        ValueError, match=r"must show background in .* got at most 0\.00 % of a frame"
    ):
        read_video(read_sequence(tmp_path, "02"), SCALE, progress=False)


def test_crops_hold_light_above_the_background(video, crops):
    assert crops.light.dtype == np.float16
    assert not crops.light[~crops.masks].any()
    for row in (0, 100, 400):
        frame = video.frames[crops.frame[row]]
        inside = frame.masks == crops.track[row]
        light = (frame.grey - frame.background)[inside]
        assert crops.masks[row].sum() == inside.sum()
        assert crops.brightness[row] == pytest.approx(light.mean(), rel=1e-5)
        own = crops.light[row][crops.masks[row]].astype(float)
        np.testing.assert_allclose(np.sort(own), np.sort(light), rtol=2e-3)
        np.testing.assert_allclose(crops.centre[row], np.argwhere(inside).mean(0), rtol=1e-5)
        middles = [side.min() + side.max() + 1 - 96 for side in np.nonzero(crops.masks[row])]
        assert max(map(abs, middles)) <= 1
    assert np.lexsort((crops.track, crops.frame)).tolist() == list(range(len(crops.track)))


def test_ellipse_has_angle_and_aspect():
    wanted = pytest.approx((-1.4, 16 / 9), abs=0.03)
    assert parts.measure_ellipse(filled(ellipse(16, 9), -1.4)) == wanted
    bar = np.zeros((96, 96), bool)
    bar[40:50, 30:60] = True
    assert parts.measure_ellipse(bar)[1] == pytest.approx(np.sqrt(899 / 99))
    assert parts.measure_ellipse(bar[:41, :31]) == (0.0, 1.0)


# parts.Lineage and stages


def test_lineage_indexes_tracks_and_rows():
    tracks = [[1, 0, 3, 0], [2, 4, 8, 1], [3, 4, 9, 1], [4, 0, 3, 0], [5, 5, 9, 4], [6, 9, 9, 2]]
    tracks = np.array([*tracks, [7, 9, 9, 2]], np.int32)
    lineage = parts.Lineage(tracks, np.array([1, 2, 3, 2, 2]), np.array([3, 4, 4, 5, 7]))
    # Track 4 goes on as 5, which is no division.
    assert lineage.daughters == {1: [2, 3], 2: [6, 7]}
    assert lineage.mothers == {2: 1, 3: 1, 6: 2, 7: 2}
    assert lineage.ages.tolist() == [-1, 0, 0, 1, 3]
    assert lineage.whole_cycles == [5]
    assert lineage.rows_at([2, 3]) == [1, 2]
    assert lineage.rows_at([2, 3], 1) is None
    assert lineage.find_pairs(1).tolist() == [[1, 3]]
    assert lineage.find_pairs(2).tolist() == [[3, 4]]
    assert lineage.find_pairs(2, np.arange(5) < 4).shape == (0, 2)


def test_stages_are_the_planted_mitoses(crops, nuclei):
    spans, mothers = nuclei.lineage.spans, nuclei.lineage.daughters
    parent = dict(zip(TRACKS[:, 0].tolist(), TRACKS[:, 3].tolist(), strict=True))
    for row, (track, frame) in enumerate(zip(crops.track, crops.frame, strict=True)):
        first, last = spans[int(track)]
        stage = parts.INTERPHASE
        if track in mothers and last - frame < 2:
            stage = parts.METAPHASE if frame == last else parts.PROMETAPHASE
        elif parent[int(track)] and frame == first:
            stage = parts.TELOPHASE
        assert nuclei.stage[row] == stage, (track, frame, STAGES[stage])
    table = _count_short_stages(nuclei)["durations"]
    for stage, frames in [
        (parts.METAPHASE, 1),
        (parts.PROMETAPHASE, 1),
        (parts.TELOPHASE, 1),
        (1, 0),
        (4, 0),
    ]:
        assert table[stage].argmax() == frames
        assert table[stage].max() > 0.9
    np.testing.assert_allclose(table.sum(1), [0, 1, 1, 1, 1, 1])
    # One child is no division.
    tracks = TRACKS.copy()
    mother, (_, lost) = next(iter(mothers.items()))
    tracks[tracks[:, 0] == lost, 3] = 0
    stages = parts.measure_nuclei(crops, tracks).stage
    assert (stages[crops.track == mother] == parts.INTERPHASE).all()


def test_mitoses_without_reference_are_unknown(crops, nuclei):
    mother, daughters = next(iter(nuclei.lineage.daughters.items()))
    late = (crops.track != mother) | (crops.frame > nuclei.lineage.spans[mother][1] - 6)
    arrays = {name: v[late] for name, v in vars(crops).items() if isinstance(v, np.ndarray)}
    short = replace(crops, **arrays)
    stages = parts.measure_nuclei(short, TRACKS).stage
    assert set(stages[short.track == mother]) == {parts.UNKNOWN}
    daughter = short.track == daughters[0]
    young = short.frame - short.frame[daughter].min() < 4
    assert set(stages[daughter & young]) == {parts.UNKNOWN}
    assert set(stages[daughter & ~young]) <= {parts.INTERPHASE, parts.METAPHASE, parts.PROMETAPHASE}
