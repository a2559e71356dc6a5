import itertools
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from bvdm_data.synth import motion as motion_module
from bvdm_data.synth.cell_cycle import PRE_MITOTIC
from bvdm_data.synth.contours import compute_mean_radius
from bvdm_data.synth.motion import SpeedModel, compute_margin, simulate_motion
from bvdm_data.synth.occupancy import CONTACT
from tests.helpers.rendering import label

SIZE = (96, 128)
LAWS = ["paper", "colony"]


@pytest.fixture(scope="module")
def simulate(tiny_shapes, tiny_lives, tiny_motion):
    """Simulate a video by the paper's law or the fitted one; the keywords replace arguments."""

    def simulate(seed, law="colony", lives=tiny_lives, motion=tiny_motion, **changes):
        arguments = {"frames": 8, "size": SIZE, "nuclei": 4} | changes
        arguments |= {"families": law == "colony", "generator": np.random.default_rng(seed)}
        return simulate_motion(tiny_shapes, lives, motion, **arguments)

    return simulate


@pytest.fixture(scope="module")
def still(tiny_motion):
    """Nuclei that neither move nor turn nor push each other."""
    return replace(
        tiny_motion, step=np.array([0.0, 3.0]), speed=SpeedModel(0.0, 0.0, 0.0, 1.0, 30.0),
        speed_by_age=np.ones(1), division_offset=0.0, stage_drift=np.zeros((9, 2)), rotation=0.0,
        neighbour_spacing=np.zeros(2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def videos(simulate):
    """A few videos of each law in which nuclei divide."""
    return {law: [simulate(seed, law, frames=20) for seed in range(5)] for law in LAWS}


def list_founders(paths):
    return [path for path in paths if path.cell.first == 0]


def list_divisions(paths):
    """List mother and daughters of every division."""
    by_id = {path.cell.identity: path for path in paths}
    daughters = {}
    for path in paths:
        if path.cell.parent:
            daughters.setdefault(path.cell.parent, []).append(path)
    return [(by_id[mother], *pair) for mother, pair in daughters.items()]


def measure_spacing(one, other, frame=0):
    """Return the distance of two nuclei in a frame over the sum of their mean radii."""
    at = [frame - path.cell.first for path in (one, other)]
    radii = [compute_mean_radius(p.cell.radii[n]) for p, n in zip((one, other), at, strict=True)]
    return math.dist(one.centres[at[0]], other.centres[at[1]]) / float(sum(radii))


# Placement


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("nuclei", [0, 1, 8])
def test_asked_number_is_visible(simulate, law, nuclei):
    for seed in range(8):
        ids = label(simulate(seed, law, nuclei=nuclei, frames=1), 1, SIZE)
        assert len(np.unique(ids[ids > 0])) == nuclei


@pytest.mark.parametrize("seed", [445, 953, 1152])
def test_border_nucleus_is_not_hidden(simulate, seed):
    # These seeds draw first a sliver at the border and then a nucleus that lies right on it.
    paths = simulate(seed, "paper", nuclei=6, frames=1, size=(48, 48))
    assert len(np.unique(label(paths, 1, (48, 48)))) == 7


def measure_canvas(shapes, motion, size):
    """Return the area in which the founders of one frame are placed, px^2."""
    margin = compute_margin(2 * float(compute_mean_radius(shapes.mean[0])), motion, 1)
    return math.prod(side + 2 * margin for side in size)


def test_margin_grows_with_nuclei_and_frames(tiny_motion):
    motion = replace(tiny_motion, step=np.array([2.0, 3.0]))
    assert compute_margin(30, motion, 1) == 30  # 24 that it reaches, and 6 that it walks
    assert compute_margin(30, motion, 9) == 42
    assert compute_margin(300, motion, 9) == 258


@pytest.mark.parametrize("law", LAWS)
def test_default_density_is_the_videos(simulate, tiny_shapes, tiny_motion, law):
    canvas = measure_canvas(tiny_shapes, tiny_motion, SIZE)
    counts = [len(list_founders(simulate(s, law, nuclei=None, frames=1))) for s in range(14)]
    assert np.mean(counts) == pytest.approx(tiny_motion.density.mean() * canvas, rel=0.12)


@pytest.mark.parametrize(("law", "least"), [("paper", CONTACT), ("colony", 0.7), ("colony", 1.1)])
def test_founders_keep_their_distance(simulate, tiny_motion, law, least):
    motion = replace(tiny_motion, neighbour_spacing=np.full(3, least))
    for seed in range(4):
        paths = simulate(seed, law, nuclei=8, motion=motion, frames=1)
        spacings = [measure_spacing(*pair) for pair in itertools.combinations(paths, 2)]
        assert min(spacings) >= least - 1e-9


@pytest.mark.parametrize("law", LAWS)
def test_too_many_nuclei_are_refused(simulate, monkeypatch, law):
    monkeypatch.setattr(motion_module, "RESTARTS", 2)
    with pytest.raises(ValueError, match=r"nuclei=60 do not fit into size=\(30, 30\); give fewer"):
        simulate(0, law, nuclei=60, size=(30, 30), frames=1)
    with pytest.raises(ValueError, match=r"at_least=60 do not fit into size=\(30, 30\)"):
        simulate(0, law, nuclei=None, at_least=60, size=(30, 30), frames=1)


@pytest.mark.parametrize("law", LAWS)
def test_dense_video_fills_the_place(simulate, tiny_shapes, tiny_motion, law):
    usual = simulate(0, law, nuclei=None, size=(32, 32), frames=1)
    motion = replace(tiny_motion, density=np.full(10, 0.02))
    paths = simulate(0, law, nuclei=None, size=(32, 32), motion=motion, frames=1)
    canvas = measure_canvas(tiny_shapes, tiny_motion, (32, 32))
    assert 3 * len(usual) < len(paths) < 0.02 * canvas / 2
    spacings = [measure_spacing(*pair) for pair in itertools.combinations(paths, 2)]
    assert min(spacings) >= min(CONTACT, tiny_motion.neighbour_spacing.min()) - 1e-9


@pytest.mark.parametrize("law", LAWS)
def test_crowded_founders_lie_closer(simulate, tiny_motion, law):
    motion = replace(tiny_motion, neighbour_spacing=np.full(3, 1.1))
    paths = list_founders(simulate(0, law, nuclei=24, size=(64, 64), motion=motion, frames=2))
    assert len(np.unique(label(paths, 1, (64, 64)))) == 25
    spacings = [measure_spacing(*pair) for pair in itertools.combinations(paths, 2)]
    assert 0.4 < min(spacings) < 0.75
    # As close as they lie they may stay: none is pushed away.
    steps = [np.hypot(*np.diff(path.centres[:2], axis=0).T) for path in paths]
    assert np.quantile(np.concatenate(steps), 0.9) < 6


@pytest.mark.parametrize("law", LAWS)
def test_founders_show_at_least(simulate, law):
    shown = []
    for seed in range(5):
        for least in (0, 5):
            paths = simulate(seed, law, nuclei=None, size=(48, 48), frames=1, at_least=least)
            shown.append(len(np.unique(label(paths, 1, (48, 48))[0])) - 1)
    assert min(shown[::2]) < 5 <= min(shown[1::2])


@pytest.mark.parametrize("law", LAWS)
def test_video_depends_on_the_seed(simulate, law):
    one, again, other = (simulate(seed, law) for seed in (3, 3, 4))
    assert pickle.dumps(one) == pickle.dumps(again)
    assert not np.array_equal(one[0].centres, other[0].centres)


# Sisters


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_sisters_lie_at_their_distance(simulate, still, monkeypatch, share):
    monkeypatch.setattr(motion_module._ColonySimulation, "sister_fraction", share)
    table = np.stack([np.log(25 + 2.0 * np.arange(12)), np.zeros(12)], 1)
    motion = replace(still, sister_distance=table)
    near = []
    for seed in range(3):
        founders = simulate(seed, nuclei=None, size=(200, 200), motion=motion, frames=1)
        centres = np.array([path.centres[0] for path in founders])
        for path in founders:
            wanted = math.exp(table[min(path.cell.age, 11), 0])
            distance = np.hypot(*(centres - path.centres[0]).T)
            near.append((np.abs(distance - wanted) < 1e-6).any())
    # Of founders that are offered a sister with this probability, 2 p / (1 + p) end in a pair.
    assert np.mean(near) == pytest.approx(2 * share / (1 + share), abs=0.12)


def list_pairs(paths):
    """List founders that were placed one after the other and are equally old."""
    founders = sorted(list_founders(paths), key=lambda path: path.cell.identity)
    return [(a, b) for a, b in itertools.pairwise(founders) if a.cell.age == b.cell.age]


def test_founders_cover_the_brightness_range(simulate, tiny_lives, still, monkeypatch):
    plain = replace(
        tiny_lives, stage_brightness=np.zeros((6, 2)), sister_spread=0.0,
        brightness_sister_correlation=1.0,
    )  # fmt: skip
    motion = replace(still, sister_distance=np.array([[math.log(30), 0.0]]))
    pairs = 0
    for seed in range(20):
        for one, other in list_pairs(
            simulate(seed, nuclei=2, size=(260, 260), motion=motion, lives=plain)
        ):
            if math.dist(one.centres[0], other.centres[0]) == pytest.approx(30):
                assert one.cell.brightness[0] == pytest.approx(other.cell.brightness[0])
                pairs += 1
    assert pairs >= 4
    monkeypatch.setattr(motion_module._ColonySimulation, "sister_fraction", 0.0)
    for seed in range(3):
        founders = simulate(seed, nuclei=None, size=(220, 220), lives=plain, frames=1)
        values = np.sort([path.cell.brightness[0] for path in founders])
        levels = np.linspace(0, 1, len(values))
        even = np.interp(levels, np.linspace(0, 1, 9), plain.brightness)
        assert len(values) > 20
        assert np.abs(values - even).max() < 0.08 * np.ptp(plain.brightness)


# Divisions


@pytest.mark.parametrize("law", LAWS)
def test_daughters_follow_their_mother(videos, law):
    divisions = 0
    for paths in videos[law]:
        ids = [path.cell.identity for path in paths]
        assert len(set(ids)) == len(paths)
        assert all(len(path.centres) == len(path.angles) == len(path.cell.stages) for path in paths)
        assert all(np.isfinite(path.centres).all() and path.cell.last < 20 for path in paths)
        found = list_divisions(paths)
        dividing = {path.cell.identity for path in paths if path.cell.divides}
        assert {mother.cell.identity for mother, *_ in found} == dividing
        for mother, *daughters in found:
            assert len(daughters) == 2
            assert all(d.cell.first == mother.cell.last + 1 for d in daughters)
        divisions += len(found)
    assert divisions > 20


@pytest.mark.parametrize("law", LAWS)
def test_daughters_lie_across_the_axis(simulate, still, tiny_motion, law):
    # So far apart that nothing pushes them, in the paper's law, too.
    mean, spread = math.log(30), tiny_motion.separation[1]
    motion, logs = replace(still, separation=np.array([mean, spread])), []
    for seed in range(60 if law == "paper" else 10):
        paths = simulate(seed, law, frames=14, motion=motion, nuclei=1, size=(64, 64))
        if law == "paper" and len(list_founders(paths)) > 1:
            continue
        for mother, one, other in list_divisions(paths):
            if mother.cell.parent:
                continue
            middle = (one.centres[0] + other.centres[0]) / 2
            np.testing.assert_allclose(middle, mother.centres[-1], atol=1e-6)
            apart = one.centres[0] - other.centres[0]
            axis = np.array([math.cos(mother.angles[-1]), math.sin(mother.angles[-1])])
            assert apart @ axis == pytest.approx(0, abs=1e-6)
            logs.append(math.log(np.hypot(*apart)))
    assert len(logs) > 5
    assert np.mean(logs) == pytest.approx(mean, abs=4 * spread / math.sqrt(len(logs)))
    assert 0 < np.std(logs) < 2 * spread


def test_offset_and_drift_move_newborn(simulate, still):
    def measure_offsets(seeds, **changes):
        motion = replace(still, **changes)
        return [
            (one.centres[0] + other.centres[0]) / 2 - mother.centres[-1]
            for seed in range(seeds)
            for mother, one, other in list_divisions(simulate(seed, frames=20, motion=motion))
        ]

    offsets = measure_offsets(10, division_offset=3.0)
    assert len(offsets) > 50
    assert np.std(offsets) == pytest.approx(3.0, rel=0.2)
    drifts = np.abs(measure_offsets(3, stage_drift=np.tile([2.0, 5.0], (30, 1))))
    assert len(drifts) > 10
    np.testing.assert_allclose(drifts, np.broadcast_to([2.0, 5.0], drifts.shape))


# Steps


def test_paper_steps_are_student_t(simulate, tiny_motion, tiny_lives):
    long = replace(tiny_lives, cycle=np.array([math.log(300), 0.01]))
    steps, rotations = [], []
    for seed in range(40):
        for path in simulate(seed, "paper", lives=long, nuclei=1, frames=20):
            steps += np.diff(path.centres, axis=0).ravel().tolist()
            rotations += np.diff(path.angles).tolist()
    # Quartiles of the Student t law with 3 degrees of freedom: .765 (tables).
    assert np.median(np.abs(steps)) == pytest.approx(0.765, rel=0.1)
    assert np.std(rotations) == pytest.approx(tiny_motion.rotation, rel=0.05)


def test_stage_drift_moves_the_field(simulate, still):
    table = np.stack([np.arange(1.0, 10.0), 10 * np.arange(1.0, 10.0)], 1)
    starts, signs = set(), set()
    for seed in range(10):
        steps = {}
        for path in simulate(seed, frames=6, motion=replace(still, stage_drift=table)):
            for frame, step in enumerate(np.diff(path.centres, axis=0), start=path.cell.first):
                steps.setdefault(frame, []).append(step)
        # All nuclei move alike.
        for found in steps.values():
            np.testing.assert_allclose(found, np.broadcast_to(found[0], np.shape(found)))
        drift = np.array([steps[frame][0] for frame in range(5)])
        # Consecutive rows of the table, mirrored or not, from any row on.
        first = abs(drift[0, 0])
        np.testing.assert_allclose(np.abs(drift[:, 0]), first + np.arange(5))
        np.testing.assert_allclose(np.abs(drift[:, 1]), 10 * (first + np.arange(5)))
        assert np.ptp(np.sign(drift), axis=0).tolist() == [0, 0]
        starts.add(first)
        signs.add(tuple(np.sign(drift[0])))
    assert (len(starts) > 2, len(signs) > 1) == (True, True)


def test_speed_depends_on_stage_and_age(simulate, still):
    motion = replace(
        still, speed=SpeedModel(1.5, 0.0, 0.9, 3.0, 1e6), speed_by_age=np.array([9.0, 4.0, 2.0, 1])
    )
    mitotic, by_age = [], {}
    for seed in range(10):
        for path in simulate(seed, frames=20, motion=motion):
            for frame, step in enumerate(np.diff(path.centres, axis=0), start=1):
                age = min(path.cell.age + frame, 3)
                if path.cell.stages[frame] not in PRE_MITOTIC:
                    by_age.setdefault(age, []).append(step)
                elif age == 3:
                    mitotic.append(step)
    assert np.std(mitotic) == pytest.approx(4.5, rel=0.12)
    for age, factor in ((1, 4.0), (2, 2.0), (3, 1.0)):
        assert np.std(by_age[age]) == pytest.approx(1.5 * factor, rel=0.14)


@pytest.mark.parametrize("autocorrelation", [0.0, 0.9])
def test_fast_nuclei_stay_fast(simulate, still, autocorrelation):
    motion = replace(still, speed=SpeedModel(1.0, 1.0, autocorrelation, 1.0, 1e6))
    pairs = []
    for seed in range(8):
        for path in simulate(seed, frames=20, motion=motion):
            lengths = np.log(np.hypot(*np.diff(path.centres, axis=0).T))
            pairs += itertools.pairwise(lengths)
    # Of the log length's variance, 1 is the lasting speed's and pi^2 / 24 the Rayleigh law's.
    wanted = autocorrelation / (1 + math.pi**2 / 24)
    assert np.corrcoef(np.array(pairs).T)[0, 1] == pytest.approx(wanted, abs=0.1)


def test_moving_nuclei_are_kept_apart(simulate, tiny_motion):
    fast = replace(
        tiny_motion, speed=SpeedModel(4.0, 0.0, 0.0, 1.0, 30.0), neighbour_spacing=np.full(2, 0.9)
    )
    spacings = []
    for seed in range(3):
        paths = simulate(seed, nuclei=8, motion=fast)
        for frame in range(8):
            here = [p for p in paths if p.cell.first <= frame <= p.cell.last]
            spacings += [measure_spacing(*p, frame) for p in itertools.combinations(here, 2)]
    # Five rounds of pushing leave little; in a crowd not nothing.
    assert np.quantile(spacings, 0.002) > 0.8
    assert min(spacings) > 0.6


def measure_steps(paths):
    """Return how far nuclei move from frame to frame, and newborn from their mothers."""
    steps = [math.dist(*pair) for p in paths for pair in itertools.pairwise(p.centres)]
    pairs = [(mother, d) for mother, *daughters in list_divisions(paths) for d in daughters]
    return steps, [math.dist(mother.centres[-1], d.centres[0]) for mother, d in pairs]


@pytest.mark.parametrize("law", LAWS)
def test_nothing_leaps(simulate, tiny_motion, law):
    wild = replace(
        tiny_motion, step=np.array([2.0, 1.5]), speed=SpeedModel(2.0, 1.0, 0.9, 3.0, 2.5),
        division_offset=9.0, stage_drift=np.full((19, 2), 3.0), longest_step=12.0,
    )  # fmt: skip
    steps, births = [], []
    for seed in range(3):
        found = measure_steps(simulate(seed, law, frames=20, motion=wild, nuclei=8))
        steps, births = steps + found[0], births + found[1]
    assert (len(steps) > 400, len(births) > 10) == (True, True)
    assert 9 < max(steps) <= 12 + 1e-9
    assert max(births) <= 12 + 1e-9
    # The tail is spread, not heaped up at the end.
    assert np.mean(np.array(steps) > 11.9) < 0.5 * np.mean(np.array(steps) > 6)


def test_steps_have_the_truncated_law(simulate, still, tiny_lives):
    long = replace(tiny_lives, cycle=np.array([math.log(300), 0.01]))
    motion = replace(still, step=np.array([4.0, 3.0]), longest_step=12.0)
    steps = []
    for seed in range(40):
        paths = simulate(seed, "paper", lives=long, nuclei=1, frames=60, motion=motion)
        steps += measure_steps(paths)[0]
    drawn = np.hypot(*4 * np.random.default_rng(0).standard_t(3, (2, 40_000)))
    wanted = drawn[drawn <= 12]
    assert len(wanted) < 0.9 * len(drawn)
    quantiles = [0.1, 0.5, 0.9, 0.99]
    np.testing.assert_allclose(*(np.quantile(a, quantiles) for a in (steps, wanted)), rtol=0.05)


# Contact


@pytest.fixture(scope="module")
def touching(simulate, tiny_motion):
    """Six first frames for each share of founders that are put against another."""
    lonely = replace(
        tiny_motion, neighbour_spacing=np.full(4, 1.1),
        sister_distance=np.array([[math.log(60), 0.01]] * 3),
    )  # fmt: skip

    def place(seed, **contact):
        return simulate(seed, motion=lonely, frames=1, nuclei=8, size=(160, 160), **contact)

    for path, same in zip(place(0, contact=0.0), place(0), strict=True):
        assert np.array_equal(path.centres, same.centres)
    return {c: [place(seed, contact=c) for seed in range(6)] for c in (0.0, 0.5, 1.0)}


def measure_share_alone(paths):
    """Return the share of the nuclei without another within two pixels of their label."""
    (ids,) = label(paths, 1, (160, 160))
    masks = [ids == identity for identity in np.unique(ids)[1:]]
    near = [ndimage.binary_dilation(mask, iterations=2) & ~mask for mask in masks]
    return np.mean([not ids[around].any() for around in near])


def test_more_contact_touches_more(touching):
    none, half, full = (np.mean([measure_share_alone(p) for p in v]) for v in touching.values())
    assert none > half + 0.1 > full + 0.2
