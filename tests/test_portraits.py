"""Portraits: nuclei cut out upright, with what is their own light and what is not."""

import math

import numpy as np
import pytest
from fitted import ANGLES, ellipse

from bvdm_data.clip import CameraScale
from bvdm_data.fitting.denoiser import HALO, NEIGHBOUR_MARGIN, extract_aligned_crops
from bvdm_data.fitting.nuclei import extract_crops
from bvdm_data.fitting.video import Frame, Video
from bvdm_data.synth.contours import CONTOUR_POINTS

SIZE = (120, 140)
LEVEL, NOISE = 0.07, 0.0015


def own(centre, turn):
    """Return the offset of every pixel of the frame along and across a major axis."""
    y, x = np.indices(SIZE).astype(float)
    dy, dx = y - centre[0], x - centre[1]
    return math.cos(turn) * dy + math.sin(turn) * dx, math.cos(turn) * dx - math.sin(turn) * dy


def glow(along, across, long, short):
    """Return smooth, lopsided light of a nucleus with a halo."""
    distance = np.hypot(along / long, across / short)
    waves = 1 + 0.02 * along + 0.04 * across
    return 0.2 * waves / (1 + np.exp(10 * (distance - 1)))


def shot(nuclei, *, number=0, stray=None):
    """Return a frame of nuclei (centre, turn, long, short), numbered from 1; some may be stray."""
    grey, masks = np.full(SIZE, LEVEL), np.zeros(SIZE, np.int32)
    for identity, (centre, turn, long, short) in enumerate(nuclei, start=1):
        along, across = own(centre, turn)
        grey += glow(along, across, long, short)
        if identity - 1 != stray:
            masks[np.hypot(along / long, across / short) <= 1] = identity
    grey += NOISE * np.random.default_rng(0).standard_normal(SIZE)
    return Frame(number, grey.astype(np.float32), masks, np.full(SIZE, LEVEL, np.float32))


def portraits_of(*frames, stages=None):
    ids = np.unique(np.concatenate([np.unique(frame.masks) for frame in frames]))
    tracks = np.array([[n, 0, len(frames) - 1, 0] for n in ids if n], np.int32)
    video = Video(tuple(frames), tracks, CameraScale(32768, 36863))
    crops = extract_crops(video)
    stages = np.zeros(len(crops.track), np.int8) if stages is None else np.array(stages, np.int8)
    return extract_aligned_crops(video, crops, stages), crops


def grid(patch):
    line = np.arange(patch) - (patch - 1) / 2
    return np.meshgrid(line, line, indexing="ij")


TURNS = [-1.2, -0.4, 0.0, 0.3, 1.1]


@pytest.mark.parametrize("turn", TURNS)
def test_a_portrait_stands_upright_and_keeps_the_light_of_every_place(turn):
    found, _ = portraits_of(shot([((60.3, 70.8), turn, 14, 8)]))
    light = found.light[0].astype(float)
    wanted = glow(*grid(found.patch), 14, 8)
    # The mask's centroid and axis differ from the true ones by fractions of a pixel.
    miss = np.abs(light - wanted)[found.known[0]]
    assert miss.max() < 0.02
    assert miss.mean() < 2 * NOISE
    nucleus = wanted > 0.1
    for wrong in (wanted[::-1], wanted[:, ::-1], wanted[::-1, ::-1], wanted.T):
        assert np.abs(light - wrong)[nucleus].mean() > 10 * NOISE


@pytest.mark.parametrize("turn", TURNS)
def test_a_portrait_has_the_radii_and_the_brightness_of_its_nucleus(turn):
    frame = shot([((60.3, 70.8), turn, 14, 8)])
    found, _ = portraits_of(frame, stages=[3])
    assert found.radii.shape == (1, CONTOUR_POINTS)
    np.testing.assert_allclose(found.radii[0], ellipse(14, 8), atol=0.7)
    inside = frame.masks == 1
    assert found.brightness[0] == pytest.approx((frame.grey - LEVEL)[inside].mean(), rel=1e-4)
    assert (found.stage.tolist(), found.track.tolist(), found.frame.tolist()) == ([3], [1], [0])
    # What lies inside the radii is as bright as the nucleus.
    y, x = grid(found.patch)
    outline = np.interp(
        np.arctan2(x, y) % (2 * np.pi),
        np.append(ANGLES, 2 * np.pi),
        np.append(found.radii[0], found.radii[0][0]),
    )
    mean = found.light[0].astype(float)[np.hypot(y, x) <= outline].mean()
    assert mean == pytest.approx(float(found.brightness[0]), rel=0.03)


def test_a_nucleus_without_neighbours_is_known_everywhere():
    found, _ = portraits_of(shot([((60, 70), 0.3, 14, 8)]))
    assert found.known.all()


def test_the_patch_is_a_multiple_of_eight_that_holds_the_largest_nucleus_and_a_halo():
    for long in (10, 13, 17):
        found, _ = portraits_of(shot([((30, 40), 0.2, long, 8), ((85, 90), 0.5, 9, 7)]))
        assert found.patch % 8 == 0
        assert found.patch >= 2 * (long + HALO) - 1
        assert found.patch < 2 * (long + HALO) + 9
        assert found.light.shape == found.known.shape == (2, found.patch, found.patch)


def test_the_light_of_a_neighbour_and_what_is_near_it_is_masked_out():
    place, turn, other = (60.0, 60.0), 0.4, (60.0, 82.0)
    frame = shot([(place, turn, 14, 8), (other, 1.2, 10, 8)])
    found, _ = portraits_of(frame)
    assert found.track.tolist() == [1, 2]
    y, x = grid(found.patch)
    rows = place[0] + math.cos(turn) * y - math.sin(turn) * x
    columns = place[1] + math.sin(turn) * y + math.cos(turn) * x
    theirs = np.argwhere(frame.masks == 2)
    distance = np.hypot(rows[..., None] - theirs[:, 0], columns[..., None] - theirs[:, 1]).min(-1)
    nucleus = np.hypot(y / 14, x / 8) <= 0.9
    known, light = found.known[0], found.light[0]
    assert known[nucleus].all()
    assert not known[(distance < NEIGHBOUR_MARGIN - 1.5) & ~nucleus].any()
    assert not light[~known].any()
    assert known[distance > NEIGHBOUR_MARGIN + 1.5].all()
    assert (~known).sum() > 50


def test_a_bright_nucleus_without_a_label_is_not_taken_for_background():
    nuclei = [((60, 50), 0.0, 14, 8), ((60, 76), 0.0, 9, 7)]
    found, _ = portraits_of(shot(nuclei, stray=1))
    y, x = grid(found.patch)
    stray = np.hypot(y / 9, (x - 26) / 7) < 0.8
    assert stray.sum() > 20
    assert not found.known[0][stray].any()
    assert found.known[0][np.hypot(y / 14, x / 8) <= 1].all()


def test_what_lies_outside_the_frame_is_not_known():
    found, _ = portraits_of(shot([((18, 70), 0.0, 14, 8)]))
    y, _ = grid(found.patch)
    outside = np.rint(y + 18) < 0
    assert outside.any()
    assert not found.known[0][outside].any()
    assert found.known[0][np.abs(y) < 10].all()


def test_masks_that_no_contour_reproduces_are_left_out():
    frame = shot([((30, 40), 0.2, 14, 8), ((80, 90), 0.0, 14, 12)])
    frame.masks[82:, 80:100][frame.masks[82:, 80:100] == 2] = 0
    frame.masks[70:90, 89:91] = 0
    found, crops = portraits_of(frame, stages=[0, 4])
    assert crops.track.tolist() == [1, 2]
    assert (found.track.tolist(), found.stage.tolist()) == ([1], [0])


def test_portraits_keep_the_order_of_the_crops_over_frames():
    nuclei = [((30, 40), 0.2, 12, 8), ((85, 90), 0.5, 12, 7)]
    frames = [shot(nuclei, number=n) for n in (3, 5)]
    frames[1].grey[60:] += 0.1 * (frames[1].masks[60:] > 0)
    found, crops = portraits_of(*frames)
    assert found.frame.tolist() == crops.frame.tolist() == [3, 3, 5, 5]
    assert found.track.tolist() == [1, 2, 1, 2]
    one, other = found.light[1].astype(float), found.light[3].astype(float)
    middle = slice(found.patch // 2 - 3, found.patch // 2 + 3)
    np.testing.assert_allclose((other - one)[middle, middle], 0.1, atol=0.01)
    np.testing.assert_array_equal(found.light[0], found.light[2])


def test_a_dark_nucleus_has_a_brightness_above_zero():
    frame = shot([((60, 70), 0.3, 14, 8)])
    frame.grey[frame.masks == 1] = LEVEL - 0.01
    found, _ = portraits_of(frame)
    assert found.brightness[0] == pytest.approx(1e-4)
