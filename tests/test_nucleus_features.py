import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import norm

from bvdm_data.evaluation.nucleus_features import (
    RINGS,
    list_detections,
    measure_appearance,
    measure_noise,
)
from bvdm_data.evaluation.video_statistics import measure_divisions, measure_motion
from tests.helpers.films import LEVEL, as_clip, ellipse, grain, still_clip

SHAPE = (120, 160)


def painted(*ellipses):
    masks = np.zeros(SHAPE, np.int32)
    for number, (centre, radii) in enumerate(ellipses, start=1):
        masks[ellipse(SHAPE, centre, radii)] = number
    return masks


def looks_of(clip):
    seen = list_detections([clip])
    return seen, measure_appearance([clip], seen)


def test_shape_features_of_circle_and_ellipse():
    seen, looks = looks_of(still_clip(painted(((60, 40), (12, 12)), ((60, 110), (20, 10)))))
    assert seen.area == pytest.approx([np.pi * 144, np.pi * 200], rel=0.04)
    assert seen.centre.tolist() == [[60, 40], [60, 110]]
    assert looks.eccentricity == pytest.approx([0, np.sqrt(0.75)], abs=0.02)
    assert looks.solidity.min() > 0.93

    masks = painted(((60, 80), (14, 14)))
    masks[ellipse(SHAPE, (52, 80), (6, 6)) & (masks > 0)] = 0
    masks[46:52, 78:83] = 0
    _, looks = looks_of(still_clip(masks))
    assert looks.solidity[0] < 0.9


def test_edge_nuclei_and_specks_stay_unmeasured():
    seen, looks = looks_of(still_clip(painted(((8, 40), (12, 12)), ((60, 80), (2, 2)))))
    assert seen.whole.tolist() == [False, True]
    for values in (looks.brightness, looks.eccentricity, looks.agreement, looks.texture[:, 0]):
        assert np.isnan(values).all()
    assert looks.contact.tolist() == [-1, -1]


def test_brightness_is_light_above_the_background():
    clip = still_clip(painted(((60, 40), (12, 12)), ((60, 110), (12, 12))), light=0.1)
    clip["video"][:, 0][clip["masks"] == 2] += 0.2
    _, looks = looks_of(clip)
    assert looks.brightness == pytest.approx([0.1, 0.3], abs=1e-4)


def test_contact_and_neighbours_are_measured():
    for gap, contact in ((1, 1), (2, 1), (3, 0)):
        masks = np.zeros(SHAPE, np.int32)
        masks[40:60, 40:60] = 1
        masks[40:60, 59 + gap : 80] = 2
        assert looks_of(still_clip(masks))[1].contact.tolist() == [contact, contact]
    round_ones = [((60, 60), (8, 8)), ((60, 90), (8, 8)), ((20, 90), (8, 8))]
    _, looks = looks_of(still_clip(painted(*round_ones)))
    assert looks.neighbour[:2].tolist() == [30, 30]
    assert np.isnan(looks.neighbour[2])


def test_label_agreement_falls_with_shift():
    clip = still_clip(painted(((60, 80), (12, 10))), noise=0.002, blur=1)
    found = []
    for shift in range(7):
        moved = clip | {"masks": clip["masks"].roll(shift, 2)}
        found.append(looks_of(moved)[1].agreement[0])
    assert found[0] > 0.95
    assert (np.diff(found) < -0.03).all()
    assert found[-1] < 0.6


def test_label_agreement_falls_with_size():
    clip = still_clip(painted(((60, 80), (12, 12))), noise=0.002, blur=1)
    for radius in (10, 14):
        clip["masks"][0] = torch.from_numpy(painted(((60, 80), (radius, radius))))
        known = (min(12, radius) / max(12, radius)) ** 2
        assert looks_of(clip)[1].agreement[0] == pytest.approx(known, abs=0.04)


def test_label_agreement_leaves_neighbours_out():
    touching = painted(((60, 60), (12, 12)), ((60, 82), (12, 12)))
    _, looks = looks_of(still_clip(touching, noise=0.001, blur=0.7))
    assert looks.agreement.min() > 0.9
    clip = still_clip(touching, noise=0.001, blur=0.7)
    clip["masks"][clip["masks"] == 2] = 0  # now its light has no label
    assert looks_of(clip)[1].agreement[0] < looks.agreement[0] - 0.1
    clip = still_clip(painted(((60, 40), (12, 12))), light=-0.01)
    assert looks_of(clip)[1].agreement.tolist() == [0]


def test_edge_profile_of_disc_is_blur():
    _, sharp = looks_of(still_clip(painted(((60, 80), (16, 16)))))
    assert sharp.profile[0] == pytest.approx([1, 1, 1, 1, 0, 0, 0, 0], abs=1e-3)
    _, blurred = looks_of(still_clip(painted(((60, 80), (16, 16))), blur=1.5))
    assert blurred.profile[0] == pytest.approx(norm.cdf(-np.array(RINGS) / 1.5), abs=0.08)
    assert (np.diff(blurred.profile[0]) < 0).all()
    _, pair = looks_of(still_clip(painted(((60, 60), (14, 14)), ((60, 92), (14, 14)))))
    assert pair.profile[0, 4:] == pytest.approx(np.zeros(4), abs=1e-3)


def test_texture_tells_contrast_and_fineness():
    shares, contrasts = [], []
    for width, contrast in ((0.6, 0.2), (3.0, 0.2), (3.0, 0.05)):
        masks = painted(((60, 80), (16, 16)))
        video = np.full((1, *SHAPE), LEVEL)
        texture = 1 + contrast * grain(np.random.default_rng(0), 160, width)[:120]
        video[0] += np.where(masks > 0, 0.1 * texture, 0)
        _, looks = looks_of(as_clip(video, masks[None], [(1, 0, 0, 0)]))
        contrasts.append(looks.texture[0, 0])
        shares.append(looks.texture[0, 1:])
    assert np.sum(shares, axis=1) == pytest.approx([1, 1, 1])
    fine, coarse = shares[0], shares[1]
    assert fine[2] > 0.4 > 0.1 > coarse[2]
    assert coarse[0] > 0.8 > fine[0]
    assert contrasts[0] == pytest.approx(0.2, rel=0.3)
    assert contrasts[2] < contrasts[1] / 2


def test_stages_follow_the_ids():
    masks = painted(((60, 40), (12, 12)), ((60, 110), (12, 12)))
    clip = still_clip(masks, frames=2)
    stages = np.full((4, 2), -1)
    stages[:2] = [[0, 3], [1, 4]]
    seen, looks = looks_of(as_clip(clip["video"][:, 0], clip["masks"], clip["tracks"], stages))
    rows = list(zip(seen.identity, seen.frame, looks.stage, strict=True))
    assert rows == [(1, 0, 0), (2, 0, 1), (1, 1, 3), (2, 1, 4)]


def test_noise_and_its_correlations_are_found():
    draws = np.random.default_rng(0)
    masks = painted(((60, 40), (12, 12)))
    white = draws.standard_normal((240, 320))
    rows = ndimage.convolve1d(white, [0.25, 0.5, 0.25], axis=1)
    grey = (0.07 + 0.002 * rows).astype(np.float32)
    found = measure_noise(grey, np.pad(masks, ((0, 120), (0, 160))))
    # The kernel's correlation at 1 and 2 px: (2 * .125) / .375 and .0625 / .375.
    assert found["rows at 1"] == pytest.approx(2 / 3, abs=0.02)
    assert found["rows at 2"] == pytest.approx(1 / 6, abs=0.03)
    assert [found[f"columns at {lag}"] for lag in (1, 2, 4)] == pytest.approx([0, 0, 0], abs=0.03)
    assert found["std"] == pytest.approx(0.002 * np.sqrt(0.375), rel=0.03)
    assert found["level"] == pytest.approx(0.07, abs=1e-4)
    found = measure_noise(np.ones((9, 9), np.float32), np.ones((9, 9), np.int32))
    assert all(np.isnan(value) for value in found.values())


def moving(centres, radius=10):
    masks = np.stack([ellipse(SHAPE, centre, (radius, radius)) for centre in centres])
    return as_clip(np.zeros(masks.shape), masks, [(1, 0, len(centres) - 1, 0)])


def test_steps_and_rotations_are_recovered():
    clip = moving([(60, 60), (60, 64), (60, 68), (63, 68), (63, 68)])
    motion = measure_motion(list_detections([clip]))
    assert motion.step.tolist() == [4, 4, 3, 0]
    assert motion.turning.tolist() == [0, 90]  # the last step has no direction
    assert motion.growth.tolist() == [1, 1, 1, 1]


def test_steps_skip_clips_gaps_and_edges():
    clips = [moving([(60, 60), (60, 64)]), moving([(60, 90), (60, 155)])]
    assert measure_motion(list_detections(clips)).step.tolist() == [4]
    clip = moving([(60, 60), (60, 64), (60, 68)])
    clip["masks"][1] = 0
    assert len(measure_motion(list_detections([clip])).step) == 0


def family(frames=14, birth=10):
    masks = np.zeros((frames, *SHAPE), np.int32)
    for frame in range(birth):
        side = 20 if frame < birth - 1 else 14
        masks[frame, 50 : 50 + 20, 60 : 60 + side * side // 20] = 1
    masks[birth:, 50:60, 50:66] = 2
    masks[birth:, 50:60, 80:100] = 3
    tracks = [(1, 0, birth - 1, 0), (2, birth, frames - 1, 1), (3, birth, frames - 1, 1)]
    return as_clip(np.zeros(masks.shape), masks, [*tracks, (0, 0, 0, 0)])


def test_division_is_measured():
    clip = family()
    lives = measure_divisions([clip], list_detections([clip]))
    assert lives.divisions == 1
    assert lives.chances == 10 + 2 * 3
    assert lives.dip.tolist() == [180 / 400]
    assert sorted(lives.daughter.tolist()) == [0.4, 0.5]
    assert lives.sisters.tolist() == [0.8]
    assert len(lives.cycle) == 0
    clip["tracks"][2] = 0
    assert measure_divisions([clip], list_detections([clip])).divisions == 0
    clip = family(frames=6, birth=4)
    lives = measure_divisions([clip], list_detections([clip]))
    assert lives.sisters.tolist() == [0.8]
    assert len(lives.dip) == len(lives.daughter) == 0


def test_cycle_runs_from_birth_to_division():
    clip = family()
    clip["tracks"] = as_clip(
        [], [], [(1, 0, 2, 0), (2, 3, 9, 1), (3, 3, 13, 1), (4, 10, 13, 2), (5, 10, 13, 2)]
    )["tracks"]
    assert measure_divisions([clip], list_detections([clip])).cycle.tolist() == [7]
