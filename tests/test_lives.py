from dataclasses import replace

import numpy as np
import pytest

from bvdm_data.clip import STAGES
from bvdm_data.synth.cell_cycle import POST_MITOTIC, PRE_MITOTIC, weigh_templates
from bvdm_data.synth.cells import simulate_lineage
from bvdm_data.synth.contours import compute_polygon_area

ORDER = (*POST_MITOTIC, 0, *PRE_MITOTIC)


def family(shapes, lives, seed, frames=40, **changes):
    return simulate_lineage(shapes, lives, frames, np.random.default_rng(seed), 7, **changes)


def whole_lives(lives, frames=40):
    """Those that the film shows from birth to division."""
    return [life for life in lives if life.parent and life.divides]


def runs(stages):
    """Stage and length of each run."""
    starts = np.flatnonzero(np.diff(stages, prepend=-1))
    lengths = np.diff(np.append(starts, len(stages)))
    return list(zip(stages[starts].tolist(), lengths.tolist(), strict=True))


def test_stages_of_the_cycle_are_all_six_from_anaphase_to_metaphase():
    names = [STAGES[stage] for stage in ORDER]
    assert names == ["anaphase", "telophase", "interphase", "prophase", "prometaphase", "metaphase"]


@pytest.mark.parametrize("stages", [[0], [0, 0, 0], [4, 5, 0, 0, 0, 1, 2, 3], [0] * 500 + [1]])
def test_template_weights_add_up_to_1(stages):
    weights, anchors = weigh_templates(np.array(stages))
    assert weights.shape == (len(stages), len(anchors))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    assert (weights >= 0).all()


def test_template_weights_agree_with_a_slow_loop():
    stages = np.array([4, 5, 5, 0, 0, 0, 0, 1, 2, 3])
    weights, anchors = weigh_templates(stages)
    assert anchors.tolist() == [0, 1, 3, 7, 8, 9]
    widths = [1, 2, 4, 1, 1, 1]
    for frame in range(len(stages)):
        density = [
            np.exp(-((frame - a) ** 2) / (2 * w**2)) / (w * np.sqrt(2 * np.pi))
            for a, w in zip(anchors, widths, strict=True)
        ]
        np.testing.assert_allclose(weights[frame], np.array(density) / sum(density), rtol=1e-9)


def test_a_whole_life_runs_through_the_stages_in_order(tiny_shapes, tiny_lives):
    seen = 0
    for seed in range(10):
        for life in whole_lives(family(tiny_shapes, tiny_lives, seed)):
            places = [ORDER.index(stage) for stage, _ in runs(life.stages)]
            assert places == sorted(set(places))
            seen += 1
    assert seen > 20


def test_durations_of_stages_follow_the_table(tiny_shapes, tiny_lives):
    counts = np.zeros_like(tiny_lives.durations)
    for seed in range(60):
        for life in whole_lives(family(tiny_shapes, tiny_lives, seed)):
            lengths = dict(runs(life.stages))
            for stage in ORDER:
                counts[stage, min(lengths.get(stage, 0), 3)] += 1
    shares = counts[1:] / counts[1:].sum(1, keepdims=True)
    np.testing.assert_allclose(shares, tiny_lives.durations[1:], atol=0.06)


def test_cycles_follow_the_log_normal_law(tiny_shapes, tiny_lives):
    lengths = [
        len(life.stages)
        for seed in range(60)
        for life in family(tiny_shapes, tiny_lives, seed)
        # Of all that are born early enough to be seen to their end, whatever their length.
        if life.parent and life.first < 14
    ]
    assert np.log(lengths).mean() == pytest.approx(np.log(12), abs=0.03)
    assert np.log(lengths).std() == pytest.approx(0.2, abs=0.03)


def test_founders_have_the_ages_of_a_population_that_grows(tiny_shapes, tiny_lives):
    cycle = 12
    lives = replace(tiny_lives, cycle=np.array([np.log(cycle), 0.01]))
    left = []
    for seed in range(600):
        founder = family(tiny_shapes, lives, seed, frames=cycle + 1)[0]
        left.append(len(founder.stages))
    found = np.bincount(left, minlength=cycle + 1)[1:] / len(left)
    ages = cycle - np.arange(1, cycle + 1)
    # Euler-Lotka: the share of an age halves over a cycle.
    expected = 2.0 ** (-ages / cycle)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.04)
    mean = (expected * ages).sum() / expected.sum()
    assert cycle - np.mean(left) == pytest.approx(mean, abs=0.4)


def test_daughters_share_the_mothers_area_at_birth(tiny_shapes, tiny_lives):
    seen = 0
    for seed in range(10):
        lives = family(tiny_shapes, tiny_lives, seed, jitter=0.0)
        for mother in whole_lives(lives):
            grown = np.flatnonzero(mother.stages == 0)
            if len(mother.stages) > 4 and grown[-1] >= 3:  # as large as she will be
                born = [
                    float(compute_polygon_area(life.radii[0]))
                    for life in lives
                    if life.parent == mother.identity
                ]
                body = float(compute_polygon_area(mother.radii[grown[-1]]))
                small = next(life for life in lives if life.parent == mother.identity).stages[0]
                share = tiny_lives.area_of_age[0]
                assert small in POST_MITOTIC or small == 0
                assert sum(born) == pytest.approx(2 * share * body, rel=1e-9)
                assert 0.3 <= born[0] / sum(born) <= 0.7
                seen += 1
    assert seen > 20


def test_every_nucleus_has_the_area_of_its_age_and_stage(tiny_shapes, tiny_lives):
    same = replace(tiny_lives, body=np.array([400.0, 400.0]), division_asymmetry=0.0)
    for life in family(tiny_shapes, same, 0, jitter=0.0):
        if life.parent:
            age = np.minimum(np.arange(len(life.stages)), 3)
            dividing = np.isin(life.stages, PRE_MITOTIC)
            relative = np.where(dividing, same.area_of_stage[life.stages], same.area_of_age[age])
            np.testing.assert_allclose(compute_polygon_area(life.radii), 400 * relative)


def test_sisters_are_about_as_bright_as_each_other(tiny_shapes, tiny_lives):
    wild = replace(
        tiny_lives,
        stage_brightness=np.stack([np.zeros(6), np.array([0, 1, 1, 1, 1, 1.0])], 1),
        durations=np.eye(4)[[1, 0, 0, 0, 1, 0]],  # anaphase, then interphase until division
        sister_spread=0.01,
    )
    between, within = [], []
    for seed in range(10):
        lives = family(tiny_shapes, wild, seed)
        base = {life.identity: life for life in lives}
        for mother in whole_lives(lives):
            born = [np.log(x.brightness[0]) for x in lives if x.parent == mother.identity]
            within.append(born[0] - born[1])
            between.append(born[0] - np.log(base[mother.identity].brightness[-1]))
    assert np.std(within) < 0.05
    assert np.std(between) > 0.3


def test_ids_are_unique_and_mothers_come_before_daughters(tiny_shapes, tiny_lives):
    lives = family(tiny_shapes, tiny_lives, 5)
    assert [life.identity for life in lives] == list(range(7, 7 + len(lives)))
    known = {life.identity: life for life in lives}
    assert lives[0].parent == 0
    assert lives[0].first == 0
    for life in lives[1:]:
        assert life.parent < life.identity
        assert known[life.parent].last + 1 == life.first
        assert known[life.parent].divides


def test_a_life_divides_into_two_or_lasts_to_the_end_of_the_film(tiny_shapes, tiny_lives):
    for seed in range(10):
        lives = family(tiny_shapes, tiny_lives, seed, frames=25)
        for life in lives:
            daughters = [other for other in lives if other.parent == life.identity]
            assert len(daughters) == 2 * life.divides
            assert life.divides or life.last == 24
            assert len(life.radii) == len(life.stages) == len(life.brightness) > 0


def test_brightness_is_that_of_the_video_times_that_of_the_stage(tiny_shapes, tiny_lives):
    flat = replace(
        tiny_lives,
        brightness=np.array([0.2, 0.2]),
        sister_spread=0.0,
        stage_brightness=np.stack([np.log(np.full(6, 3.0)), np.zeros(6)], 1),
    )
    for life in family(tiny_shapes, flat, 0):
        np.testing.assert_allclose(life.brightness, 0.6)


def test_scenes_of_the_paper_see_33_quantiles_of_the_brightness(tiny_shapes, tiny_lives):
    fine = np.random.default_rng(0).random(129).cumsum()
    for seed in range(5):
        one, other = (
            family(tiny_shapes, replace(tiny_lives, brightness=table), seed)
            for table in (fine, fine[::4])
        )
        for some, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(some.brightness, same.brightness)


def test_brightness_of_a_family_is_that_of_one_quantile(tiny_shapes, tiny_lives):
    plain = replace(tiny_lives, stage_brightness=np.zeros((6, 2)), sister_spread=0.0)
    lives = family(tiny_shapes, plain, 3)
    assert len({round(float(b), 12) for life in lives for b in life.brightness}) == 1
    assert 0.1 <= lives[0].brightness[0] <= 0.3


def test_no_jitter_and_no_modes_leave_the_outline_at_the_template(tiny_shapes, tiny_lives):
    still = replace(
        tiny_shapes,
        mean=np.repeat(tiny_shapes.mean[:1], 6, 0),
        modes=np.zeros_like(tiny_shapes.modes),
    )
    body = float(compute_polygon_area(still.mean[0]))
    grown = replace(
        tiny_lives,
        body=np.array([body, body]),
        division_asymmetry=0.0,
        area_of_age=np.ones(1),
        area_of_stage=np.ones(6),
    )
    for life in family(still, grown, 1, jitter=0.0):
        np.testing.assert_allclose(life.radii, np.repeat(still.mean[:1], len(life.radii), 0))


def test_a_family_is_the_same_for_the_same_seed_and_another_for_another(tiny_shapes, tiny_lives):
    one, again, other = (family(tiny_shapes, tiny_lives, seed) for seed in (1, 1, 2))
    for life, same in zip(one, again, strict=True):
        assert np.array_equal(life.radii, same.radii)
        assert np.array_equal(life.stages, same.stages)
        assert np.array_equal(life.brightness, same.brightness)
    assert not np.array_equal(one[0].radii[0], other[0].radii[0])
