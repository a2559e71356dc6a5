"""Colonies: families of nuclei that lie and move as those of the video do."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasters import label
from scipy import special

from bvdm_data.clip import STAGES
from bvdm_data.synth import motion as colonies
from bvdm_data.synth.cell_cycle import (
    GROWN,
    INTERPHASE,
    POST_MITOTIC,
    PRE_MITOTIC,
    compute_area_curve,
    resample_durations,
)
from bvdm_data.synth.cells import sample_sister_quantile, simulate_lineage
from bvdm_data.synth.contours import compute_polygon_area, draw_ar1
from bvdm_data.synth.motion import simulate_colony
from bvdm_data.synth.placement import MARGIN, compute_mean_radius

SIZE = (96, 128)


@pytest.fixture
def play(tiny_shapes, tiny_lives, tiny_motion):
    """Make a colony; the keywords replace parts of it."""

    def play(seed, **changes):
        scene = {"frames": 8, "size": SIZE, "nuclei": 4}
        models = {"shapes": tiny_shapes, "lives": tiny_lives, "motion": tiny_motion} | {
            key: changes.pop(key) for key in ("shapes", "lives", "motion") if key in changes
        }
        return simulate_colony(**models, **scene | changes, generator=np.random.default_rng(seed))

    return play


@pytest.fixture
def still(tiny_motion):
    """Nuclei that neither move nor turn nor push each other."""
    return replace(
        tiny_motion,
        pace=np.array([0.0, 0.0, 0.0, 1.0, 30.0]),
        speed_by_age=np.ones(1),
        shift=0.0,
        drift=np.zeros((9, 2)),
        turn=0.0,
        closest=np.zeros(2),
    )


@pytest.fixture
def bright(tiny_lives):
    """Lives whose brightness is that of their founder, in all stages."""
    return replace(tiny_lives, stage_brightness=np.zeros((len(STAGES), 2)), sister_spread=0.0)


def founders(paths):
    return [path for path in paths if path.cell.first == 0]


# Places


@pytest.mark.parametrize("nuclei", [0, 1, 3, 8])
def test_the_number_of_nuclei_asked_for_shows_in_the_first_frame(play, nuclei):
    for seed in range(6):
        labels = label(play(seed, nuclei=nuclei, frames=1), 1, SIZE)
        assert len(np.unique(labels[labels > 0])) == nuclei


def test_without_a_number_the_density_is_that_of_the_video(play, tiny_motion):
    canvas = (SIZE[0] + 2 * MARGIN) * (SIZE[1] + 2 * MARGIN)
    counts = [len(founders(play(seed, nuclei=None, frames=1))) for seed in range(10)]
    assert np.mean(counts) == pytest.approx(tiny_motion.density.mean() * canvas, rel=0.12)


@pytest.mark.parametrize("closest", [0.85, 1.1])
def test_no_two_founders_are_closer_than_the_closest_of_the_video(play, tiny_motion, closest):
    motion = replace(tiny_motion, closest=np.full(3, closest))
    for seed in range(4):
        first = founders(play(seed, nuclei=8, motion=motion, frames=1))
        radii = [float(compute_mean_radius(path.cell.radii[0])) for path in first]
        places = [path.centres[0] for path in first]
        for one, other in itertools.combinations(range(len(first)), 2):
            apart = math.dist(places[one], places[other])
            assert apart >= closest * (radii[one] + radii[other]) - 1e-9


def test_nuclei_that_do_not_fit_are_refused(play):
    with pytest.raises(ValueError, match=r"nuclei=60 do not fit into size=\(40, 40\): only \d+ "):
        play(0, nuclei=60, size=(40, 40))


def test_a_density_that_does_not_fit_is_refused(play, tiny_motion):
    motion = replace(tiny_motion, density=np.full(10, 0.02))
    words = r"density of the fitted video asks for \d+ nuclei .*only \d+ found a free place"
    with pytest.raises(ValueError, match=words):
        play(0, nuclei=None, size=(32, 32), motion=motion)


# Sisters


def paired(paths):
    """Return pairs of founders that were placed one after the other and are of one age."""
    first = sorted(founders(paths), key=lambda path: path.cell.identity)
    return [(a, b) for a, b in itertools.pairwise(first) if a.cell.age == b.cell.age]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_founders_have_a_sister_at_the_distance_of_their_age(play, still, monkeypatch, share):
    monkeypatch.setattr(colonies, "PAIRED", share)
    table = np.stack([np.log(25 + 2.0 * np.arange(12)), np.zeros(12)], 1)
    motion = replace(still, sisters=table)
    met = alone = 0
    for seed in range(4):
        first = founders(play(seed, nuclei=None, size=(200, 200), motion=motion, frames=1))
        for path in first:
            wanted = math.exp(table[min(path.cell.age, 11), 0])
            apart = [math.dist(path.centres[0], other.centres[0]) for other in first]
            near = any(abs(distance - wanted) < 1e-6 for distance in apart)
            met, alone = met + near, alone + (not near)
    # Of founders that are offered a sister with this probability, 2 p / (1 + p) end in a pair.
    assert met / (met + alone) == pytest.approx(2 * share / (1 + share), abs=0.1)


def test_the_distance_of_sisters_spreads_as_in_the_video(play, still):
    motion = replace(still, sisters=np.array([[math.log(40), 0.25]]))
    found = []
    for seed in range(120):
        for one, other in paired(play(seed, nuclei=2, size=(300, 300), motion=motion, frames=1)):
            log = math.log(math.dist(one.centres[0], other.centres[0]) / 40)
            found += [log] if abs(log) < 0.9 else []
    assert len(found) > 60
    assert np.mean(found) == pytest.approx(0, abs=0.08)
    assert np.std(found) == pytest.approx(0.25, rel=0.2)


def test_sisters_are_as_bright_as_each_other(play, bright, still):
    motion = replace(still, sisters=np.array([[math.log(30), 0.0]]))
    pairs = []
    for seed in range(10):
        alike = replace(bright, brightness_sister_correlation=1.0)
        paths = play(seed, nuclei=2, size=(260, 260), motion=motion, lives=alike)
        pairs += [
            (a, b)
            for a, b in paired(paths)
            if math.dist(a.centres[0], b.centres[0]) == pytest.approx(30)
        ]
    assert len(pairs) >= 4
    for one, other in pairs:
        np.testing.assert_allclose(one.cell.brightness[0], other.cell.brightness[0])


def test_the_brightness_of_founders_is_spread_evenly_over_that_of_the_video(
    play, bright, monkeypatch
):
    monkeypatch.setattr(colonies, "PAIRED", 0.0)
    worst = []
    for seed in range(4):
        first = founders(play(seed, nuclei=None, lives=bright, frames=1))
        values = np.sort([path.cell.brightness[0] for path in first])
        even = np.interp(np.linspace(0, 1, len(values)), np.linspace(0, 1, 9), bright.brightness)
        worst.append(np.abs(values - even).max() / (bright.brightness[-1] - bright.brightness[0]))
        assert len(values) > 20
    assert max(worst) < 0.08


# Divisions


def daughters_of(paths):
    """Return mother and daughters of every division."""
    known = {path.cell.identity: path for path in paths}
    children = {}
    for path in paths:
        if path.cell.parent:
            children.setdefault(path.cell.parent, []).append(path)
    return [(known[mother], found) for mother, found in children.items()]


def test_every_division_has_two_daughters_that_follow_their_mother(play):
    divisions = 0
    for seed in range(6):
        paths = play(seed, frames=20)
        ids = [path.cell.identity for path in paths]
        assert len(set(ids)) == len({path.z_order for path in paths}) == len(paths)
        found = daughters_of(paths)
        divisions += len(found)
        assert {m.cell.identity for m, _ in found} == {
            path.cell.identity for path in paths if path.cell.divides
        }
        for mother, daughters in found:
            assert len(daughters) == 2
            assert all(d.cell.first == mother.cell.last + 1 for d in daughters)
            assert all(d.cell.age == 0 for d in daughters)
    assert divisions > 20


def test_daughters_are_born_on_both_sides_of_the_major_axis(play, still, tiny_motion):
    logs = []
    for seed in range(12):
        for mother, (one, other) in daughters_of(play(seed, frames=20, motion=still)):
            middle = (one.centres[0] + other.centres[0]) / 2
            np.testing.assert_allclose(middle, mother.centres[-1], atol=1e-9)
            apart = one.centres[0] - other.centres[0]
            axis = np.array([math.cos(mother.angles[-1]), math.sin(mother.angles[-1])])
            assert apart @ axis == pytest.approx(0, abs=1e-9)
            logs.append(math.log(np.hypot(*apart)))
    mean, spread = tiny_motion.separation
    assert len(logs) > 60
    assert np.mean(logs) == pytest.approx(mean, abs=4 * spread / math.sqrt(len(logs)))
    assert np.std(logs) == pytest.approx(spread, rel=0.3)


# Motion


def test_the_drift_of_the_field_moves_all_nuclei_alike(play, still):
    table = np.stack([np.arange(1.0, 10.0), 10 * np.arange(1.0, 10.0)], 1)
    seen = set()
    for seed in range(12):
        paths = play(seed, frames=6, motion=replace(still, drift=table))
        for path in paths:
            steps = np.diff(path.centres, axis=0)
            for moment, step in enumerate(steps):
                seen.add((seed, path.cell.first + moment, *np.round(step, 6)))
    by_frame = {}
    for seed, frame, *step in seen:
        by_frame.setdefault((seed, frame), []).append(step)
    assert all(len(steps) == 1 for steps in by_frame.values())
    starts = set()
    for seed in range(12):
        film = np.array([by_frame[seed, frame][0] for frame in range(5)])
        # Consecutive rows of the table, mirrored or not, from any row on.
        first = abs(film[0, 0])
        starts.add(first)
        np.testing.assert_allclose(np.abs(film[:, 0]), first + np.arange(5))
        np.testing.assert_allclose(np.abs(film[:, 1]), 10 * (first + np.arange(5)))
        assert len(set(np.sign(film[:, 0]))) == len(set(np.sign(film[:, 1]))) == 1
    assert len(starts) > 2
    signs = {tuple(np.sign(by_frame[seed, 0][0])) for seed in range(12)}
    assert len(signs) > 1


def test_the_drift_of_the_field_moves_the_newborn_too(play, still):
    drift = replace(still, drift=np.tile([2.0, 5.0], (30, 1)))
    found = []
    for seed in range(4):
        for mother, (one, other) in daughters_of(play(seed, frames=20, motion=drift)):
            middle = (one.centres[0] + other.centres[0]) / 2
            found.append(np.abs(middle - mother.centres[-1]))
    assert len(found) > 10
    np.testing.assert_allclose(found, np.tile([2.0, 5.0], (len(found), 1)))


def test_a_film_longer_than_the_video_drifts_as_far_as_that_is_known(play, still):
    table = np.tile([1.0, 1.0], (3, 1))
    paths = play(1, frames=7, motion=replace(still, drift=table), nuclei=3)
    longest = max(paths, key=lambda path: len(path.centres))
    steps = np.abs(np.diff(longest.centres, axis=0))
    assert 1 <= (steps > 0).all(1).sum() <= 3


def steps_of(paths, dividing):
    """Return all steps into frames of nuclei that divide, or of others, [n, 2]."""
    found = [
        np.diff(p.centres, axis=0)[np.isin(p.cell.stages[1:], PRE_MITOTIC) == dividing]
        for p in paths
    ]
    return np.concatenate(found)


def test_steps_have_the_pace_of_the_video_and_another_one_in_mitosis(play, still):
    motion = replace(still, pace=np.array([1.5, 0.0, 0.9, 3.0, 1e6]))
    films = [play(seed, frames=20, motion=motion) for seed in range(8)]
    paths = [path for film in films for path in film]
    assert steps_of(paths, False).std() == pytest.approx(1.5, rel=0.06)
    assert steps_of(paths, True).std() == pytest.approx(4.5, rel=0.1)


def test_the_young_are_as_fast_as_the_video_says(play, still):
    curve = np.array([9.0, 4.0, 2.0, 1.0])
    motion = replace(still, pace=np.array([1.5, 0.0, 0.9, 1.0, 1e6]), speed_by_age=curve)
    steps = {}
    for seed in range(12):
        for path in play(seed, frames=20, motion=motion):
            for moment, step in enumerate(np.diff(path.centres, axis=0), start=1):
                steps.setdefault(min(path.cell.age + moment, 3), []).append(step)
    for age, factor in ((1, 4.0), (2, 2.0), (3, 1.0)):
        assert np.std(steps[age]) == pytest.approx(1.5 * factor, rel=0.12)


def test_the_newborn_lie_around_a_place_that_is_not_quite_the_mothers(play, still):
    motion, shifts = replace(still, shift=3.0), []
    for seed in range(12):
        for mother, (one, other) in daughters_of(play(seed, frames=20, motion=motion)):
            shifts.append((one.centres[0] + other.centres[0]) / 2 - mother.centres[-1])
    assert len(shifts) > 60
    assert np.std(shifts) == pytest.approx(3.0, rel=0.2)


def log_lengths(play, motion):
    """Return the log lengths of the steps of many nuclei, less their common mean, in pairs."""
    pairs = []
    for seed in range(10):
        for path in play(seed, frames=20, motion=motion):
            lengths = np.log(np.hypot(*np.diff(path.centres, axis=0).T))
            pairs += list(itertools.pairwise(lengths))
    return np.array(pairs)


def test_a_fast_nucleus_stays_fast_for_as_long_as_its_memory_says(play, still):
    # Of the log length's variance, 1 is the pace's and pi^2 / 24 the Rayleigh law's.
    share = 1 / (1 + math.pi**2 / 24)
    for memory in (0.0, 0.9):
        motion = replace(still, pace=np.array([1.0, 1.0, memory, 1.0, 1e6]))
        pairs = log_lengths(play, motion)
        assert np.corrcoef(pairs.T)[0, 1] == pytest.approx(memory * share, abs=0.1)


def test_nuclei_that_move_are_kept_apart(play, tiny_motion):
    fast = replace(tiny_motion, pace=np.array([4.0, 0.0, 0.0, 1.0, 30.0]), closest=np.full(2, 0.9))
    ratios = []
    for seed in range(4):
        paths = play(seed, nuclei=8, motion=fast)
        for frame in range(8):
            here = [p for p in paths if p.cell.first <= frame <= p.cell.last]
            for one, other in itertools.combinations(here, 2):
                moments = (frame - one.cell.first, frame - other.cell.first)
                apart = math.dist(one.centres[moments[0]], other.centres[moments[1]])
                radii = compute_mean_radius(one.cell.radii[moments[0]])
                radii += compute_mean_radius(other.cell.radii[moments[1]])
                ratios.append(apart / float(radii))
    # Five rounds of pushing leave little; in a crowd not nothing.
    assert np.quantile(ratios, 0.002) > 0.8
    assert min(ratios) > 0.6


def test_a_colony_is_reproducible_and_another_seed_makes_another(play):
    one, same, other = play(3), play(3), play(4)
    assert len(one) == len(same)
    for a, b in zip(one, same, strict=True):
        assert a.cell.identity == b.cell.identity
        for name in ("radii", "stages", "brightness"):
            np.testing.assert_array_equal(getattr(a.cell, name), getattr(b.cell, name))
        np.testing.assert_array_equal(a.centres, b.centres)
        np.testing.assert_array_equal(a.angles, b.angles)
        assert a.z_order == b.z_order
    assert not np.array_equal(one[0].centres[0], other[0].centres[0])


# Lives


@settings(max_examples=20, deadline=None)
@given(memory=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_an_autoregressive_process_is_stationary_with_its_memory(memory, seed):
    drawn = draw_ar1(5, np.full(4000, memory), np.random.default_rng(seed))
    assert drawn.shape == (5, 4000)
    np.testing.assert_allclose(drawn.var(1), 1, atol=0.12)
    np.testing.assert_allclose(drawn.mean(1), 0, atol=0.09)
    for lag in (1, 4):
        pairs = drawn[:-lag].ravel(), drawn[lag:].ravel()
        assert np.corrcoef(*pairs)[0, 1] == pytest.approx(memory**lag, abs=0.08)


def test_autoregressive_columns_have_memories_of_their_own():
    drawn = draw_ar1(4000, np.array([0.0, 0.5, 1.0]), np.random.default_rng(0))
    lagged = [(drawn[1:, n] * drawn[:-1, n]).mean() for n in (0, 1)]
    assert lagged == pytest.approx([0, 0.5], abs=0.06)
    assert np.ptp(drawn[:, 2]) == 0


def test_nuclei_are_as_long_as_those_of_the_video(tiny_shapes):
    draws, lengths = np.random.default_rng(2), np.array([-0.5, -0.4, 0.0, 2.0])
    shapes = replace(tiny_shapes, length=lengths)
    scores = np.stack([shapes.sample_scores(4, draws) for _ in range(2000)])
    found = np.quantile(scores[:, :, 1], [0.001, 1 / 3, 2 / 3, 0.999])
    np.testing.assert_allclose(found, lengths, atol=0.07)
    assert scores[:, :, 0].min() < -2


def test_a_long_nucleus_is_long_in_all_stages_whatever_the_sign_of_their_components(tiny_shapes):
    signs = np.random.default_rng(0).choice([-1.0, 1.0], tiny_shapes.modes.shape[:2])
    mixed = replace(tiny_shapes, modes=tiny_shapes.modes * signs[:, :, None])
    for stage in range(6):
        along = (mixed.align_modes(stage) * mixed.modes[0]).sum(1)
        assert (along > 0).all()
        np.testing.assert_array_equal(np.abs(mixed.align_modes(stage)), np.abs(mixed.modes[stage]))


def test_scores_last_and_flicker_as_the_model_says(tiny_shapes):
    draws, shapes = np.random.default_rng(1), replace(tiny_shapes, ragged=np.array([1.0, 0.0]))
    scores = np.stack([shapes.sample_scores(6, draws) for _ in range(1500)])
    assert scores.shape == (1500, 6, 4)
    np.testing.assert_allclose(scores.var((0, 1)), 1, atol=0.08)
    for lag in (1, 3):
        found = (scores[:, lag:] * scores[:, :-lag]).mean((0, 1))
        wanted = (1 - shapes.fresh) * shapes.memory**lag
        np.testing.assert_allclose(found, wanted, atol=0.06)


def test_some_nuclei_are_more_ragged_than_others_all_their_life(tiny_shapes):
    shapes = replace(
        tiny_shapes, memory=np.zeros(4), fresh=np.zeros(4), ragged=np.array([0.7, 0.4])
    )
    draws = np.random.default_rng(2)
    sizes = np.stack([shapes.sample_scores(400, draws).std(0) for _ in range(300)])
    # Size and length are not concerned.
    np.testing.assert_allclose(sizes[:, :2], 1, atol=0.15)
    logs = np.log(sizes[:, 2:])
    assert np.median(logs) == pytest.approx(math.log(0.7), abs=0.07)
    assert logs.mean(1).std() == pytest.approx(0.4, rel=0.15)
    assert np.abs(np.diff(logs, axis=1)).max() < 0.3


def test_take_lengths_gives_rows_of_the_tables_and_nothing_else():
    mitoses = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    births = np.array([[1.0, 0.0], [2.0, 3.0], [0.0, 4.0]])
    draws = np.random.default_rng(0)
    taken = [resample_durations(mitoses, births, draws) for _ in range(120)]
    assert all(lengths.dtype == np.int64 and lengths[INTERPHASE] == 0 for lengths in taken)
    after = {tuple(lengths[list(PRE_MITOTIC)]) for lengths in taken}
    before = {tuple(lengths[list(POST_MITOTIC)]) for lengths in taken}
    assert after == {(1, 2, 3), (4, 5, 6)}
    assert before == {(1, 0), (2, 3), (0, 4)}


@pytest.fixture
def family(tiny_shapes, tiny_lives):
    """Grow a family whose outlines drift; the keywords replace arguments."""

    def family(seed, frames=10, shapes=tiny_shapes, lives=tiny_lives, **changes):
        draws = np.random.default_rng(seed)
        return simulate_lineage(shapes, lives, frames, draws, 1, **{"jitter": None} | changes)

    return family


def test_stages_of_a_founder_are_of_one_mitosis_and_one_birth_of_the_video(family, tiny_lives):
    lives = replace(tiny_lives, cycle=np.array([math.log(15), 0.05]))
    seen = set()
    for seed in range(60):
        stages = family(seed, 40, lives=lives, age=0)[0].stages
        counts = tuple(int((stages == stage).sum()) for stage in PRE_MITOTIC)
        seen.add(counts)
    assert seen == {tuple(row) for row in tiny_lives.pro_metaphase_frames.astype(int)}


def test_a_founder_of_a_known_age_and_brightness_has_them(family, tiny_lives, bright):
    for quantile, wanted in ((0.0, 0.1), (0.25, 0.15), (1.0, 0.3)):
        lasting = replace(bright, brightness_autocorrelation=1.0)
        life = family(0, lives=lasting, quantile=quantile, age=3)[0]
        assert life.age == 3
        np.testing.assert_allclose(life.brightness, wanted, rtol=1e-4)
    assert len({family(seed)[0].age for seed in range(20)}) > 4


@pytest.fixture
def drifting(tiny_lives):
    """Lives whose brightness is e to the power of a normal score, and drifts."""
    scores = special.ndtri(np.linspace(0.0005, 0.9995, 1000))
    return replace(
        tiny_lives,
        brightness=np.exp(scores),
        brightness_autocorrelation=0.9,
        brightness_sister_correlation=0.6,
        stage_brightness=np.zeros((6, 2)),
        sister_spread=0.0,
        cycle=np.array([math.log(200), 0.01]),
    )


def test_nuclei_that_drift_stay_as_bright_as_those_of_the_video(family, drifting):
    founders = np.linspace(0.001, 0.999, 400)
    scores = np.log(
        [family(n, 12, lives=drifting, quantile=q, age=20)[0].brightness
         for n, q in enumerate(founders)]
    )  # fmt: skip
    np.testing.assert_allclose(scores[5:-5, 0], special.ndtri(founders[5:-5]), atol=0.02)
    for moment in (0, 5, 11):
        assert scores[:, moment].std() == pytest.approx(1, abs=0.1)
        assert scores[:, moment].mean() == pytest.approx(0, abs=0.12)
    for lag in (1, 5):
        found = np.corrcoef(scores[:, :-lag].ravel(), scores[:, lag:].ravel())[0, 1]
        assert found == pytest.approx(0.9**lag, abs=0.05)


def test_nuclei_whose_brightness_lasts_do_not_change(family, drifting):
    lives = replace(drifting, brightness_autocorrelation=1.0, cycle=np.array([math.log(14), 0.05]))
    for seed in range(5):
        light = np.concatenate([life.brightness for life in family(seed, 30, lives=lives)])
        np.testing.assert_allclose(light, light[0], rtol=1e-6)


def test_sisters_begin_where_their_mother_ended_and_drift_in_part_together(family, drifting):
    lives = replace(drifting, cycle=np.array([math.log(14), 0.05]))
    births, changes = [], []
    for seed in range(250):
        everyone = family(seed, 22, lives=lives, age=12)
        one, other = (life for life in everyone if life.parent == 1)
        begun = math.log(everyone[0].brightness[-1])
        births.append(math.log(one.brightness[0]) - begun)
        # What is new after seven steps of a process of memory .9.
        changes.append([math.log(x.brightness[6]) - 0.9**7 * begun for x in (one, other)])
    assert np.std(births) == pytest.approx(math.sqrt(1 - 0.9**2), rel=0.25)
    assert np.corrcoef(np.array(changes).T)[0, 1] == pytest.approx(0.6, abs=0.1)


def test_sisters_of_the_first_frame_have_drifted_apart_since_their_birth(drifting):
    draws = np.random.default_rng(3)
    for age in (0, 7, 500):
        pairs = [(q, sample_sister_quantile(drifting, q, age, draws)) for q in draws.random(3000)]
        found = np.corrcoef(special.ndtri(np.array(pairs)).T)[0, 1]
        assert found == pytest.approx(0.6 + 0.4 * 0.9 ** (2 * age + 2), abs=0.04)


def test_areas_wobble_around_the_curve_of_growth(family, tiny_shapes, tiny_lives):
    lives = replace(tiny_lives, cycle=np.array([math.log(60), 0.01]), adult_area=np.full(3, 400.0))
    lives = replace(lives, stage_spread=np.zeros(6), size=np.zeros(2))
    wild = replace(tiny_shapes, wobble=0.1)
    areas = np.array([compute_polygon_area(family(s, 8, shapes=wild, lives=lives, age=20)[0].radii)
                      for s in range(60)])  # fmt: skip
    assert np.log(areas / 400).mean() == pytest.approx(0, abs=0.02)
    assert np.log(areas / 400).std() == pytest.approx(0.1, rel=0.1)
    calm = replace(tiny_shapes, wobble=0.0)
    np.testing.assert_allclose(
        compute_polygon_area(family(0, 8, shapes=calm, lives=lives, age=20)[0].radii),
        400,
        rtol=1e-9,
    )


def test_a_nucleus_stays_as_large_as_its_memory_of_size_says(family, tiny_shapes, tiny_lives):
    lives = replace(tiny_lives, cycle=np.array([math.log(60), 0.01]), adult_area=np.full(3, 400.0))
    lives = replace(lives, stage_spread=np.zeros(6), size=np.array([0.2, 0.9]))
    calm = replace(tiny_shapes, wobble=0.0)
    areas = np.array([compute_polygon_area(family(s, 8, shapes=calm, lives=lives, age=20)[0].radii)
                      for s in range(150)])  # fmt: skip
    logs = np.log(areas / 400)
    assert logs.std() == pytest.approx(0.2, rel=0.12)
    for lag in (1, 5):
        found = np.corrcoef(logs[:, :-lag].ravel(), logs[:, lag:].ravel())[0, 1]
        assert found == pytest.approx(0.9**lag, abs=0.06)


def test_sisters_are_as_condensed_and_as_large_as_each_other(family, tiny_shapes, tiny_lives):
    lives = replace(tiny_lives, size=np.array([0.3, 0.9]), split=0.0)
    lives = replace(lives, stage_spread=np.array([0.0, 0.1, 0.1, 0.1, 0.3, 0.3]))
    calm = replace(tiny_shapes, wobble=0.0)
    births, ratios = [], []
    for seed in range(80):
        lives_of = family(seed, 20, shapes=calm, lives=lives)
        for mother in lives_of:
            pair = [life for life in lives_of if life.parent == mother.identity]
            if len(pair) == 2 and mother.parent == 0:
                one, other = (float(compute_polygon_area(life.radii[0])) for life in pair)
                assert one == pytest.approx(other)
                assert pair[0].stages[0] == pair[1].stages[0]
                births.append(int(pair[0].stages[0]))
                ratios.append(one / float(compute_polygon_area(mother.radii[-1])))
    assert len(set(births)) == 2
    assert np.std(np.log(ratios)) > 0.3


def test_the_newborn_have_the_area_of_their_first_frame_and_are_as_large_as_their_mother(
    family, tiny_shapes, tiny_lives
):
    calm = replace(tiny_shapes, wobble=0.0)
    lives = replace(tiny_lives, size=np.array([0.4, 0.9]), split=0.0, stage_spread=np.zeros(6))
    seen = set()
    for seed in range(60):
        everyone = family(seed, 20, shapes=calm, lives=lives)
        mother, pair = everyone[0], [life for life in everyone if life.parent == 1]
        for life in pair:
            first, last = (
                float(compute_polygon_area(life.radii[0])),
                float(compute_polygon_area(mother.radii[-1])),
            )
            wanted = lives.area_at_birth[life.stages[0]] / lives.area_of_stage[mother.stages[-1]]
            assert first / last == pytest.approx(wanted)
            seen.add(int(life.stages[0]))
    assert seen == {4, 5}


@pytest.mark.parametrize("cycle", [14, 20, 45])
def test_a_nucleus_is_grown_before_it_divides_however_short_its_cycle(tiny_lives, cycle):
    lives = replace(tiny_lives, area_in_interphase=np.linspace(0.5, 1, 31))
    stages = np.zeros(cycle, np.int64)
    stages[0], stages[-2:] = 4, 3
    found = compute_area_curve(lives, stages)
    assert found[cycle - GROWN] == pytest.approx(1)
    assert (np.diff(found[1:-2]) >= 0).all()
    assert (found[0], found[-1]) == (lives.area_at_birth[4], lives.area_of_stage[3])


def test_growth_of_a_cycle_too_short_to_grow_up_is_that_of_the_video(tiny_lives):
    stages = np.zeros(GROWN - 2, np.int64)
    curve = tiny_lives.area_in_interphase
    wanted = np.concatenate([curve, np.full(len(stages) - len(curve), curve[-1])])
    np.testing.assert_array_equal(compute_area_curve(tiny_lives, stages), wanted)


def test_outlines_keep_what_lasts_and_stay_positive(family, tiny_shapes, tiny_lives):
    lives = replace(tiny_lives, cycle=np.array([math.log(60), 0.01]))
    frozen = replace(tiny_shapes, memory=np.ones(4), fresh=np.zeros(4), wobble=0.0)
    radii = family(5, 8, shapes=frozen, lives=lives, age=20)[0].radii
    assert np.ptp(radii, axis=0).max() < 0.05 * radii.mean()
    rough = replace(tiny_shapes, modes=30 * tiny_shapes.modes)
    for seed in range(10):
        for life in family(seed, shapes=rough):
            assert (life.radii > 0).all()
