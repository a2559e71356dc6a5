"""The fitted lives, motion and camera: what was planted is found again."""

import math

import numpy as np
import pytest
from fitted import crops_of, ellipse, filled
from scipy import ndimage

from bvdm_data.clip import STAGES, CameraScale
from bvdm_data.fitting.cell_cycle import (
    DEFAULT_AUTOCORRELATION,
    SHARED,
    _size,
    fit_cell_cycle,
    fit_cycle_length,
    fit_intensities,
    list_whole_cycles,
)
from bvdm_data.fitting.motion import find_births, fit_motion, fit_speed_by_age
from bvdm_data.fitting.stages import NucleusFeatures
from bvdm_data.fitting.video import (
    STREAK,
    Frame,
    Video,
    estimate_background,
    fit_camera,
    fit_row_noise_kernel,
)

SCALE = CameraScale(32768, 36863)

# Lives


def lineage(frames, mean, deviation, seed=0, founders=60):
    """Return tracks of families whose cycles are log-normal, cut by the ends of a film."""
    draws = np.random.default_rng(seed)
    rows, waiting = [], [(-int(draws.integers(0, 25)), 0) for _ in range(founders)]
    while waiting:
        born, parent = waiting.pop()
        last = born + max(1, round(math.exp(mean + deviation * draws.standard_normal()))) - 1
        if last < 0:
            waiting += [(last + 1, 0)]
            continue
        rows.append((len(rows) + 1, max(born, 0), min(last, frames - 1), parent))
        if last < frames - 1:
            waiting += [(last + 1, len(rows))] * 2
    return np.array(rows, np.int32)


def test_fit_cycle_recovers_a_planted_log_normal_law_under_censoring():
    tracks = lineage(60, math.log(25), 0.2)
    mean, deviation = fit_cycle_length(tracks)
    assert math.exp(mean) == pytest.approx(25, rel=0.08)
    assert deviation == pytest.approx(0.2, abs=0.05)
    # Cycles seen whole alone are too short: that is what censoring is for.
    assert np.mean(list_whole_cycles(tracks)) < 25


def test_fit_cycle_of_a_short_film_follows_from_the_rate_of_divisions():
    tracks = np.array([[1, 0, 4, 0], [2, 5, 9, 1], [3, 5, 9, 1], [4, 0, 9, 0]], np.int32)
    mean, deviation = fit_cycle_length(tracks)
    assert math.exp(mean) == pytest.approx(math.log(2) * 25)
    assert deviation == 0.2


def test_whole_cycles_are_those_with_birth_and_division():
    tracks = np.array(
        [[1, 0, 4, 0], [2, 5, 9, 1], [3, 5, 12, 1], [4, 10, 12, 2], [5, 10, 12, 2]], np.int32
    )
    assert list_whole_cycles(tracks) == [5]


def family(growth=5.0, grown=22.0, split=0.5, mothers=3):
    """Return crops and tracks of mothers and daughters whose log area grows exponentially."""
    masks, track, frame, light, rows = [], [], [], [], []
    for number in range(mothers):
        mother = 3 * number + 1
        rows += [(mother, 0, 15, 0), (mother + 1, 16, 45, mother), (mother + 2, 16, 45, mother)]
        for time in range(16):
            last = time == 15
            masks.append(filled(np.full(60, grown / (math.sqrt(2) if last else 1))))
            track, frame, light = [*track, mother], [*frame, time], [*light, 0.2 * (1 + last)]
        for daughter, share in ((mother + 1, split), (mother + 2, 1 - split)):
            for age in range(30):
                start = math.log(0.72 * share)
                size = grown * math.exp(0.5 * start * math.exp(-age / growth))
                masks.append(filled(np.full(60, size)))
                track, frame = [*track, daughter], [*frame, 16 + age]
                light.append(0.2 * (1.5 if age == 0 else 1))
    return crops_of(masks, track, frame, light), np.array(rows, np.int32)


def test_fit_lives_finds_planted_body_split_and_growth():
    crops, tracks = family(growth=5.0, split=0.55)
    model, stages = fit_cell_cycle(crops, tracks, minutes=30.0)
    assert model.division_asymmetry == pytest.approx(0.05, abs=0.01)
    np.testing.assert_allclose(model.mother_area, math.pi * 22**2, rtol=0.02)
    age = np.arange(len(model.area_of_age))
    start = (math.log(0.72 * 0.55) + math.log(0.72 * 0.45)) / 2
    assert len(age) == 30
    np.testing.assert_allclose(model.area_of_age, np.exp(start * np.exp(-age / 5)), atol=0.02)
    assert model.area_of_stage[STAGES.index("prometaphase")] == pytest.approx(0.5, abs=0.02)
    # In telophase: .72 of the share of each daughter.
    born = STAGES.index("telophase")
    assert model.area_at_birth[born] == pytest.approx(0.36, abs=0.02)
    # In interphase, which ends a frame before and begins a frame after the division.
    wanted = np.exp(start * np.exp(-np.arange(1, 30) / 5))
    np.testing.assert_allclose(model.area_in_interphase[1:], wanted, atol=0.02)
    assert model.size[0] == 0
    assert model.sister_spread == 0
    assert model.minutes == 30
    assert (stages[crops.frame == 15] == STAGES.index("prometaphase")).all()


def test_fit_lives_measures_the_planted_brightness_of_each_stage():
    crops, tracks = family()
    model, _ = fit_cell_cycle(crops, tracks, minutes=30.0)
    medians = dict(zip(STAGES, model.stage_brightness[:, 0], strict=True))
    assert medians["interphase"] == 0
    assert medians["prometaphase"] == pytest.approx(math.log(2), abs=1e-3)
    assert medians["telophase"] == pytest.approx(math.log(1.5), abs=1e-3)
    np.testing.assert_allclose(model.brightness, 0.2, rtol=1e-3)
    np.testing.assert_array_equal(model.durations[STAGES.index("prometaphase")], [0, 1, 0, 0, 0])


def drifting(memory, shared, pairs=150, frames=40):
    """Return crops, tracks and appearance of sisters whose log brightness drifts."""
    draws = np.random.default_rng(5)
    new = draws.standard_normal((pairs, 1, frames)) * math.sqrt(shared)
    new = new + math.sqrt(1 - shared) * draws.standard_normal((pairs, 2, frames))
    scores = np.repeat(draws.standard_normal((pairs, 1, 1)), 2, 1) * np.ones(frames)
    for now in range(1, frames):
        step = math.sqrt(1 - memory**2) * new[:, :, now]
        scores[:, :, now] = memory * scores[:, :, now - 1] + step
    mothers = 3 * np.arange(pairs) + 1
    tracks = [(m, 0, 0, 0) for m in mothers]
    tracks += [(m + d, 1, frames, m) for m in mothers for d in (1, 2)]
    track = np.repeat([m + d for m in mothers for d in (1, 2)], frames)
    frame = np.tile(1 + np.arange(frames), 2 * pairs)
    crops = crops_of(np.ones((len(track), 3, 3), bool), track, frame)
    light = 0.1 * np.exp(scores.ravel())
    looks = NucleusFeatures(np.full(len(track), 400.0), light, np.ones(len(track)))
    return crops, looks, np.array(tracks, np.int32)


@pytest.mark.parametrize(("memory", "shared"), [(0.95, 0.7), (0.99, 0.2)])
def test_fit_brightness_finds_the_planted_drift(memory, shared):
    crops, looks, tracks = drifting(memory, shared)
    stages = np.zeros(len(crops.track), np.int8)
    found = fit_intensities(crops, looks, stages, tracks, {})
    assert found.memory == pytest.approx(memory, abs=0.005)
    assert found.shared == pytest.approx(shared, abs=0.15)
    wanted = np.quantile(looks.brightness, [0, 0.5, 1])
    np.testing.assert_allclose(found.table[[0, 64, 128]], wanted)


def test_a_drift_that_a_video_does_not_tell_is_that_of_the_hela_video():
    for crops, looks, tracks in (
        drifting(0.95, 0.5, pairs=2, frames=9),
        (lambda c, a, t: (c, NucleusFeatures(a.area, np.ones_like(a.area), a.aspect), t))(
            *drifting(0.95, 0.5)
        ),
    ):
        stages = np.zeros(len(crops.track), np.int8)
        found = fit_intensities(crops, looks, stages, tracks, {})
        assert found.memory == DEFAULT_AUTOCORRELATION
        assert found.shared == SHARED


def test_fit_lives_refuses_a_video_of_one_division():
    crops, tracks = family(mothers=1)
    with pytest.raises(ValueError, match=r"at least 2 divisions .*got 1 of 1 divisions; give a"):
        fit_cell_cycle(crops, tracks, minutes=30.0)


def test_fit_lives_finds_the_planted_spread_of_sizes():
    draws = np.random.default_rng(2)
    tracks = np.array([[number, 0, 30, 999] for number in range(1, 61)], np.int32)
    sizes = 0.2 * draws.standard_normal((60, 31))
    for now in range(1, 31):
        sizes[:, now] = 0.95 * sizes[:, now - 1] + math.sqrt(1 - 0.95**2) * sizes[:, now]
    track, frame = np.repeat(np.arange(1, 61), 31), np.tile(np.arange(31), 60)
    areas = 400 * np.exp(sizes.ravel())
    looks = NucleusFeatures(areas, np.ones(len(areas)), np.ones(len(areas)))
    crops = crops_of(np.ones((len(areas), 3, 3), bool), track, frame)
    body = np.full(33, 600.0)
    deviation, memory = _size(crops, looks, np.zeros(len(areas), np.int8), tracks, body)
    assert deviation == pytest.approx(0.2, rel=0.15)
    assert memory == pytest.approx(0.95, abs=0.02)
    # What bodies spread by is not counted twice, and too few births tell nothing.
    wide = np.exp(np.random.default_rng(0).normal(6, 0.5, 33))
    assert _size(crops, looks, np.zeros(len(areas), np.int8), tracks, wide)[0] == 0
    unborn = tracks * np.array([1, 1, 1, 0], np.int32)
    assert _size(crops, looks, np.zeros(len(areas), np.int8), unborn, body).tolist() == [0.0, 0.9]


# Motion


@pytest.fixture(scope="module")
def moving():
    """Return the motion fitted to 30 ellipses that wander and turn for 40 frames."""
    draws = np.random.default_rng(1)
    track, frame, masks, centres = [], [], [], []
    for number in range(1, 31):
        steps = 1.3 * draws.standard_t(3, (40, 2))
        turns = (0.09 * draws.standard_normal(40)).cumsum()
        centres += list(100 + steps.cumsum(0))
        masks += [filled(ellipse(14, 8), turn, 48) for turn in turns]
        track, frame = [*track, *[number] * 40], [*frame, *range(40)]
    crops = crops_of(masks, track, frame, centres=centres)
    labels = np.zeros((100, 120), np.int32)
    for number in range(12):
        labels[10 + 20 * (number // 3), 20 + 30 * (number % 3)] = number + 1
    empty = np.zeros(labels.shape, np.float32)
    tracks = np.array([[number, 0, 39, 0] for number in range(1, 31)], np.int32)
    video = Video((Frame(0, empty, labels, empty),), tracks, SCALE)
    return fit_motion(video, crops, np.zeros(len(track), np.int8), border=15)


def test_fit_motion_finds_the_planted_student_t_law(moving):
    scale, freedom = moving.step
    assert scale == pytest.approx(1.3, rel=0.08)
    assert freedom == pytest.approx(3, rel=0.25)


def test_fit_motion_finds_the_planted_turn(moving):
    assert moving.rotation == pytest.approx(0.09, rel=0.15)


def test_fit_motion_counts_nuclei_within_the_border(moving):
    assert moving.density.tolist() == [9 / (70 * 90)]


def test_fit_motion_measures_the_distance_of_newborn_daughters():
    crops, tracks = family()
    apart = {2: (0, 0), 3: (12, 9), 5: (0, 0), 6: (15, 0), 8: (0, 0), 9: (0, 15)}
    centres = [apart.get(int(t), (0, 0)) for t in crops.track]
    crops = crops_of(crops.masks, crops.track, crops.frame, crops.brightness, centres)
    labels = np.ones((40, 40), np.int32)
    empty = np.zeros((40, 40), np.float32)
    video = Video((Frame(0, empty, labels, empty),), tracks, SCALE)
    draws = np.random.default_rng(0)
    crops.centre[:] += 0.001 * draws.standard_normal(crops.centre.shape)
    found = fit_motion(video, crops, np.zeros(len(crops.track), np.int8), border=0)
    np.testing.assert_allclose(found.separation, [math.log(15), 0], atol=1e-3)


def wandering(curve, shift, mothers=60, frames=12, old=3.0):
    """Return crops and tracks of newborn whose pace falls with age, and of their old mothers."""
    draws = np.random.default_rng(4)
    track, frame, centre, rows = [], [], [], []
    for number in range(mothers):
        mother, place = 3 * number + 1, draws.uniform(200, 400, 2)
        rows.append((mother, 0, 3, 0))
        for time in range(4):
            place = place + old * draws.standard_normal(2)
            track, frame, centre = [*track, mother], [*frame, time], [*centre, place]
        middle = place + shift * draws.standard_normal(2)
        for side, daughter in ((-1, mother + 1), (1, mother + 2)):
            rows.append((daughter, 4, 3 + frames, mother))
            steps = draws.standard_normal((frames, 2)) * np.array(curve)[:, None]
            steps[0] = 0
            way = middle + np.array([15.0 * side, 0]) + steps.cumsum(0)
            track += [daughter] * frames
            frame, centre = [*frame, *range(4, 4 + frames)], [*centre, *way]
    crops = crops_of(np.ones((len(track), 9, 9), bool), track, frame, centres=centre)
    return crops, np.array(rows, np.int32)


def test_fit_motion_finds_the_planted_pace_of_the_young_and_the_planted_shift():
    curve = np.array([4.0, 4.0, 3.0, 2.0, *[1.0] * 8])
    crops, tracks = wandering(curve, shift=5.0)
    labels = np.ones((40, 40), np.int32)
    video = Video((Frame(0, labels, labels, labels),), tracks, SCALE)
    found = fit_motion(video, crops, np.zeros(len(crops.track), np.int8), border=0)
    own = found.speed_by_age * found.speed.scale
    np.testing.assert_allclose(own[1:], curve[1:], rtol=0.2)
    assert (np.diff(found.speed_by_age) <= 0).all()
    assert found.division_offset == pytest.approx(5.0, rel=0.2)
    # What age explains is no lasting pace of single nuclei.
    assert found.speed.spread < 0.2


def test_nuclei_whose_birth_is_not_seen_say_how_fast_the_old_are():
    curves = []
    for old in (0.5, 5.0):
        crops, tracks = wandering(np.full(4, 4.0), shift=0.0, frames=4, old=old)
        births, drift = find_births(crops, tracks), np.zeros((8, 2))
        curves.append(fit_speed_by_age(crops, np.zeros(len(crops.track), np.int8), drift, births))
    # Slower ones come after the oldest that are known, faster ones say nothing.
    slow, fast = curves
    np.testing.assert_allclose(slow[:-1], 1, atol=0.15)
    assert slow[-1] == pytest.approx(0.5 / 4, rel=0.15)
    assert len(fast) == len(slow) - 1


def test_fit_motion_of_a_video_without_births_knows_no_pace_of_the_young(moving):
    assert moving.speed_by_age.tolist() == [1.0]
    assert moving.division_offset == 0


def test_fit_motion_refuses_a_video_in_which_nothing_can_be_followed():
    crops = crops_of(np.ones((3, 9, 9), bool), [1, 2, 3], [0, 2, 4])
    labels = np.ones((40, 40), np.int32)
    video = Video((Frame(0, labels, labels, labels),), np.zeros((0, 4), np.int32), SCALE)
    with pytest.raises(ValueError, match="nuclei in consecutive frames to fit motion, got 0 such"):
        fit_motion(video, crops, np.zeros(3, np.int8), border=0)


# Camera


def filmed(halo=0.0, noise=0.0023, kernel=(0.3, 0.9, 0.3), count=6):
    """Return a video of discs: planted level, noise along rows, and glow outside the outlines."""
    draws = np.random.default_rng(3)
    y, x = np.mgrid[:160, :200]
    masks = np.zeros((160, 200), np.int32)
    for number in range(6):
        cy, cx = 40 + 80 * (number // 3), 35 + 65 * (number % 3)
        masks[(y - cy) ** 2 + (x - cx) ** 2 < 81] = number + 1
    light = 0.2 * (masks > 0)
    if halo:
        light = np.where(masks > 0, light, ndimage.gaussian_filter(light, halo))
    frames = []
    for number in range(count):
        white = draws.standard_normal((160, 200))
        grain = ndimage.correlate1d(white, np.array(kernel) / np.linalg.norm(kernel), 1)
        grey = (0.07 + 0.001 * number + light + noise * grain).astype(np.float32)
        frames.append(Frame(number, grey, masks, estimate_background(grey, masks)))
    return Video(tuple(frames), np.zeros((0, 4), np.int32), SCALE)


def test_fit_camera_finds_planted_level_noise_and_correlation_along_rows():
    found = fit_camera(filmed())
    assert found.level == pytest.approx(0.0725, abs=2e-4)
    assert found.level_spread == pytest.approx(1.4826 * 0.0015, rel=0.05)
    assert found.noise == pytest.approx(0.0023, rel=0.03)
    kernel = found.streak / np.linalg.norm(found.streak)
    lag = [float((kernel[k:] * kernel[:-k]).sum()) for k in (1, 2)]
    assert lag[0] == pytest.approx(0.54 / 0.99, abs=0.03)
    assert lag[1] == pytest.approx(0.09 / 0.99, abs=0.03)
    assert (found.offset, found.full) == (32768, 36863)


@pytest.mark.parametrize("halo", [1.0, 1.8, 3.0])
def test_fit_camera_finds_a_planted_blur_to_one_step_of_its_grid(halo):
    assert fit_camera(filmed(halo, noise=0.0005)).halo == pytest.approx(halo, abs=0.2001)


def test_fit_camera_of_a_video_without_noise_has_white_noise_of_no_strength():
    found = fit_camera(filmed(noise=0.0))
    assert found.noise < 1e-4
    assert np.isfinite(found.streak).all()
    assert math.isfinite(found.field_width)


@pytest.mark.parametrize("correlation", [(0.6, 0.2), (0.3,), (0.6, 0.15, 0.02, 0.0)])
def test_streak_kernel_reproduces_a_correlation(correlation):
    kernel = fit_row_noise_kernel(np.array(correlation))
    assert len(kernel) == STREAK
    assert (kernel**2).sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-12)
    for lag, wanted in enumerate(correlation, start=1):
        assert (kernel[lag:] * kernel[:-lag]).sum() == pytest.approx(wanted, abs=0.02)
