"""Cell cycle, motion and camera: what was planted is found again."""

import math

import numpy as np
import pytest
from scipy import ndimage, signal

from bvdm_data.clip import STAGES, CameraScale
from bvdm_data.fitting import cell_cycle
from bvdm_data.fitting.motion import fit_motion
from bvdm_data.fitting.nuclei import Lineage
from bvdm_data.fitting.video import Frame, Video, fit_camera, make_video
from tests.helpers.fitted import crops_of, ellipse, filled, nuclei_of

NO_ROWS = np.zeros((2, 0), int)
LABELS = np.ones((40, 40), np.int32)
ONE_FRAME = Video((Frame(0, LABELS, LABELS, LABELS),), np.zeros((0, 4), np.int32))

# Cell cycle


def test_cycle_law_survives_censoring():
    rng = np.random.default_rng(0)
    rows, waiting = [], [(-int(rng.integers(0, 25)), 0) for _ in range(60)]
    while waiting:  # families whose cycles are log-normal, cut by the ends of a video
        born, parent = waiting.pop()
        last = born + max(1, round(25 * math.exp(0.2 * rng.standard_normal()))) - 1
        if last < 0:
            waiting += [(last + 1, 0)]
            continue
        rows.append((len(rows) + 1, max(born, 0), min(last, 59), parent))
        if last < 59:
            waiting += [(last + 1, len(rows))] * 2
    tracks = Lineage(np.array(rows, np.int32), *NO_ROWS)
    mean, deviation = cell_cycle._fit_cycle_length(tracks)
    assert math.exp(mean) == pytest.approx(25, rel=0.08)
    assert deviation == pytest.approx(0.2, abs=0.05)
    # Cycles seen whole alone are too short: that is what censoring is for.
    assert np.mean(tracks.whole_cycles) < 25
    # Without whole cycles, the rate of divisions decides.
    tracks = np.array([[1, 0, 4, 0], [2, 5, 9, 1], [3, 5, 9, 1], [4, 0, 9, 0]], np.int32)
    assert np.exp(cell_cycle._fit_cycle_length(Lineage(tracks, *NO_ROWS))[0]) == pytest.approx(
        math.log(2) * 25
    )


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


def test_cell_cycle_finds_planted_growth():
    nuclei = nuclei_of(*family(growth=5.0, split=0.55))
    model = cell_cycle.fit_cell_cycle(nuclei, minutes=30.0)
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
    with pytest.raises(ValueError, match=r"at least 2 divisions .*got 1 of 1 divisions; give a"):
        cell_cycle.fit_cell_cycle(nuclei_of(*family(mothers=1)), minutes=30.0)


def drifting(memory, shared, pairs=150, frames=40):
    """Return crops, tracks and appearance of sisters whose log brightness drifts."""
    rng = np.random.default_rng(5)
    new = rng.standard_normal((pairs, 1, frames)) * math.sqrt(shared)
    new = new + math.sqrt(1 - shared) * rng.standard_normal((pairs, 2, frames))
    new[:, :, 0] = rng.standard_normal((pairs, 1)) / math.sqrt(1 - memory**2)
    scores = math.sqrt(1 - memory**2) * signal.lfilter([1], [1, -memory], new)
    mothers = 3 * np.arange(pairs) + 1
    tracks = [(m, 0, 0, 0) for m in mothers]
    tracks += [(m + d, 1, frames, m) for m in mothers for d in (1, 2)]
    track = np.repeat([m + d for m in mothers for d in (1, 2)], frames)
    frame = np.tile(1 + np.arange(frames), 2 * pairs)
    crops = crops_of(np.ones((len(track), 3, 3), bool), track, frame)
    light = 0.1 * np.exp(scores.ravel())
    calm, area = np.zeros(len(track), np.int8), np.full(len(track), 400.0)
    return nuclei_of(crops, tracks, area=area, brightness=light, stage=calm)


@pytest.mark.parametrize(("memory", "shared"), [(0.95, 0.7), (0.99, 0.2)])
def test_brightness_drift_is_the_planted_one(memory, shared):
    nuclei = drifting(memory, shared)
    model = cell_cycle._fit_intensities(nuclei)
    assert model["brightness_autocorrelation"] == pytest.approx(memory, abs=0.005)
    assert model["brightness_sister_correlation"] == pytest.approx(shared, abs=0.15)
    wanted = np.quantile(nuclei.brightness, [0, 0.5, 1])
    np.testing.assert_allclose(model["brightness"][[0, 64, 128]], wanted)
    nuclei.brightness[:] = 1
    for unknown in (drifting(memory, shared, pairs=2, frames=9), nuclei):
        model = cell_cycle._fit_intensities(unknown)
        assert model["brightness_autocorrelation"] == cell_cycle.DEFAULT_AUTOCORRELATION
        assert model["brightness_sister_correlation"] == cell_cycle.SHARED


def test_mitoses_are_as_bright_as_planted():
    rng, correlation, spread = np.random.default_rng(4), -0.6, 0.3
    tracks, track, frame, light, stage = [], [], [], [], []
    metaphase, telophase = STAGES.index("metaphase"), STAGES.index("telophase")
    for mother in range(1, 5 * 120, 5):  # of two daughters, one of which has two of her own
        parents = [0, mother, mother, mother + 1, mother + 1]
        bases, gains = rng.standard_normal(2), rng.standard_normal(2)
        gains = correlation * bases + math.sqrt(1 - correlation**2) * gains
        for number, parent in enumerate(parents):
            first = (0, 16, 16, 32, 32)[number]
            tracks.append((mother + number, first, first + 15, parent))
            own = bases[number % 2]  # a daughter is not as bright as her mother
            looks = np.zeros(16, int)
            line = np.full(16, own)
            if number < 2:
                looks[-1], line[-1] = metaphase, own + math.log(2.6) + spread * gains[number]
            if parent:
                before = 0 if parent == mother else 1
                looks[0], line[0] = telophase, bases[before] + 0.4 + spread * gains[before]
            track, frame = [*track, *[mother + number] * 16], [*frame, *range(first, first + 16)]
            light, stage = [*light, *np.exp(line) / 100], [*stage, *looks]
    crops = crops_of(np.ones((len(track), 3, 3), bool), track, frame, light)
    nuclei = nuclei_of(crops, np.array(tracks, np.int32), stage=np.array(stage, np.int8))
    table, found = cell_cycle._measure_stage_brightness(nuclei)
    for number, median in ((metaphase, math.log(2.6)), (telophase, 0.4)):
        np.testing.assert_allclose(table[number], [median, spread], atol=0.06)
    assert found == pytest.approx(correlation, abs=0.08)


def test_deaths_are_the_planted_ones():
    # Of six nuclei 1 dies, 2 is lost, 3 fades, 4 dies at the edge, 5 lives on, 6 has a child.
    frames, light = 10, np.full((6, 10), 0.2)
    area = np.full((6, frames), 400.0)
    area[[0, 2, 3, 5], -1], light[[0, 3, 5], -1], light[2, -1] = 200, 0.4, 0.1
    centres = np.full((6, frames, 2), 100.0)
    centres[3], centres[4] = 10, 190
    tracks = [(n, 0, frames - 1, 0) for n in range(1, 7)]
    tracks[4], tracks = (5, 0, frames, 0), [*tracks, (7, frames, frames, 6)]
    place = np.repeat(np.arange(1, 7), frames), np.tile(np.arange(frames), 6)
    masks = np.ones((6 * frames, 3, 3), bool)
    crops = crops_of(masks, *place, light.ravel(), centres.reshape(-1, 2))
    nuclei = nuclei_of(crops, tracks, area=area.ravel(), stage=np.zeros(6 * frames, np.int8))
    assert cell_cycle._measure_death_rate(nuclei) == pytest.approx(1 / (6 * frames))


def test_size_drift_is_the_planted_one():
    rng = np.random.default_rng(2)
    tracks = np.array([[999, 0, 0, 0], *([n, 0, 30, 999] for n in range(1, 61))], np.int32)
    sizes = 0.2 * rng.standard_normal((60, 31)) * np.sqrt([1, *[1 - 0.95**2] * 30])
    sizes = signal.lfilter([1], [1, -0.95], sizes)
    track, frame = np.repeat(np.arange(1, 61), 31), np.tile(np.arange(31), 60)
    crops = crops_of(np.ones((len(track), 3, 3), bool), track, frame)
    known = {"area": 400 * np.exp(sizes.ravel()), "stage": np.zeros(len(track), np.int8)}
    body = np.full(33, 600.0)
    deviation, memory = cell_cycle._fit_size_drift(nuclei_of(crops, tracks, **known), body)
    assert deviation == pytest.approx(0.2, rel=0.15)
    assert memory == pytest.approx(0.95, abs=0.02)
    # What bodies spread by is not counted twice, and too few births give the default.
    wide = np.exp(np.random.default_rng(0).normal(6, 0.5, 33))
    assert cell_cycle._fit_size_drift(nuclei_of(crops, tracks, **known), wide)[0] == 0
    unborn = nuclei_of(crops, tracks * np.array([1, 1, 1, 0]), **known)
    assert cell_cycle._fit_size_drift(unborn, body).tolist() == [0.0, 0.9]


# Motion


def test_motion_finds_planted_steps_and_turns():
    rng = np.random.default_rng(1)
    masks, centres = [], []
    for _ in range(30):
        centres += list(100 + (1.3 * rng.standard_t(3, (40, 2))).cumsum(0))
        turns = (0.09 * rng.standard_normal(40)).cumsum()
        masks += [filled(ellipse(14, 8), turn, 48) for turn in turns]
    track, frame = np.repeat(np.arange(1, 31), 40), np.tile(np.arange(40), 30)
    crops = crops_of(masks, track, frame, centres=centres)
    nuclei = nuclei_of(crops, stage=np.zeros(len(track), np.int8))
    model = fit_motion(nuclei, ONE_FRAME, border=0)
    assert model.step[0] == pytest.approx(1.3, rel=0.08)
    assert model.step[1] == pytest.approx(3, rel=0.25)
    assert model.rotation == pytest.approx(0.09, rel=0.15)
    # Without births there is no speed of the young.
    assert model.speed_by_age.tolist() == [1.0]
    assert model.division_offset == 0
    with pytest.raises(ValueError, match="nuclei in consecutive frames to fit motion, got 0 such"):
        fit_motion(nuclei_of(crops_of(masks[:3], [1, 2, 3], [0, 2, 4])), ONE_FRAME, border=0)


def wandering(curve, shift, mothers=60, frames=12, old=3.0):
    """Return newborn nuclei whose speed falls with age, and their old mothers."""
    rng = np.random.default_rng(4)
    track, frame, centre, rows = [], [], [], []
    for number in range(mothers):
        mother, place = 3 * number + 1, rng.uniform(200, 400, 2)
        rows.append((mother, 0, 3, 0))
        for time in range(4):
            place = place + old * rng.standard_normal(2)
            track, frame, centre = [*track, mother], [*frame, time], [*centre, place]
        middle = place + shift * rng.standard_normal(2)
        for side, daughter in ((-1, mother + 1), (1, mother + 2)):
            rows.append((daughter, 4, 3 + frames, mother))
            steps = rng.standard_normal((frames, 2)) * np.array(curve)[:, None]
            steps[0] = 0
            way = middle + np.array([15.0 * side, 0]) + steps.cumsum(0)
            track += [daughter] * frames
            frame, centre = [*frame, *range(4, 4 + frames)], [*centre, *way]
    crops = crops_of(np.ones((len(track), 9, 9), bool), track, frame, centres=centre)
    return nuclei_of(crops, rows, stage=np.zeros(len(track), np.int8))


def test_motion_finds_planted_speed_by_age():
    curve = np.array([4.0, 4.0, 3.0, 2.0, *[1.0] * 8])
    model = fit_motion(wandering(curve, shift=5.0), ONE_FRAME, border=0)
    own = model.speed_by_age * model.speed.scale
    np.testing.assert_allclose(own[1:], curve[1:], rtol=0.2)
    assert (np.diff(model.speed_by_age) <= 0).all()
    assert model.division_offset == pytest.approx(5.0, rel=0.2)
    # What age explains is no lasting speed of single nuclei.
    assert model.speed.spread < 0.2
    # Where old nuclei are slower than the oldest that are known, the curve ends with them.
    old = fit_motion(wandering(np.full(4, 4.0), 0.0, frames=4, old=0.5), ONE_FRAME, border=0)
    assert old.speed_by_age[-1] == pytest.approx(0.5 / 4, rel=0.15)


# Camera


@pytest.mark.parametrize(("halo", "noise"), [(1.0, 0.0005), (3.0, 0.0005), (1.0, 0.0)])
def test_camera_finds_planted_blur(halo, noise):
    y, x = np.mgrid[:160, :200]
    masks = (y // 80 * 3 + x // 67 + 1) * ((y % 80 - 40) ** 2 + (x % 67 - 33) ** 2 < 81)
    light = 0.2 * (masks > 0)
    light = np.where(masks > 0, light, ndimage.gaussian_filter(light, halo))
    grey = 0.07 + light + noise * np.random.default_rng(3).standard_normal(masks.shape)
    grey, masks = grey.astype(np.float32), masks.astype(np.int32)
    video = make_video(np.stack([grey] * 2), np.stack([masks] * 2), np.zeros((0, 4), np.int32))
    found = fit_camera(video, CameraScale(32768, 36863))
    assert found.halo == pytest.approx(halo, abs=0.2001)
    assert found.noise == pytest.approx(noise, abs=1e-4)
    assert np.isfinite([*found.streak, found.field_width]).all()
