import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from bvdm_data.synth.cell_cycle import (
    APOPTOSIS,
    GROWN,
    INTERPHASE,
    POST_MITOTIC,
    PRE_MITOTIC,
    Stages,
    compute_area_curve,
    compute_dividing_share,
    resample_durations,
    sample_cycles_and_ages,
    sample_dying,
)
from bvdm_data.synth.cells import (
    CONDENSED,
    LineageSimulator,
    TemplateLineageSimulator,
    number_cells,
    sample_sister_quantile,
)
from bvdm_data.synth.contours import compute_polygon_area, interpolate_quantile

ORDER = (*POST_MITOTIC, INTERPHASE, *PRE_MITOTIC)


def first_area(cell):
    return float(compute_polygon_area(cell.radii[0]))


def list_daughters(cells, mother):
    return [cell for cell in cells if cell.parent == mother.identity]


def list_whole(families):
    """List the cells that are shown from birth to division."""
    return [cell for cells in families for cell in cells if cell.parent and cell.divides]


def list_runs(stages):
    starts = np.flatnonzero(np.diff(stages, prepend=-1))
    lengths = np.diff(np.append(starts, len(stages)))
    return list(zip(stages[starts].tolist(), lengths.tolist(), strict=True))


@pytest.fixture(scope="module")
def template(tiny_shapes, tiny_lives):
    """Simulate a lineage with the paper's model; the keywords replace arguments."""

    def simulate(seed, frames=40, shapes=tiny_shapes, lives=tiny_lives, jitter=0.1):
        rng = np.random.default_rng(seed)
        simulator = TemplateLineageSimulator(shapes, lives, frames, rng, jitter)
        return number_cells(simulator.grow(rng.random(1))[0], 7)

    return simulate


@pytest.fixture(scope="module")
def lineage(tiny_shapes, tiny_lives):
    """Simulate a lineage with the fitted model; the keywords replace arguments."""

    def simulate(
        seed, frames=10, shapes=tiny_shapes, lives=tiny_lives, quantile=None, age=None, noise=None
    ):
        rng = np.random.default_rng(seed)
        simulator = LineageSimulator(shapes, lives, frames, rng)
        cycle, ages = sample_cycles_and_ages(lives.cycle, rng, 1)
        ages = ages if age is None else np.array([age])
        quantiles = rng.random(1) if quantile is None else np.array([quantile])
        return simulator.grow_founders(quantiles, cycle, ages, noise)[0]

    return simulate


@pytest.fixture(scope="module")
def families(template):
    return [template(seed) for seed in range(60)]


# Stages


def test_template_weights_are_gaussian():
    life = Stages(np.array([[1, 2, 4, 1, 1, 1]]))
    frames = np.arange(10)[:, None]
    assert life.at(frames)[:, 0].tolist() == [4, 5, 5, 0, 0, 0, 0, 1, 2, 3]
    weights, stages = life.weigh_templates(frames)
    assert stages[0, :6].tolist() == list(ORDER)
    anchors = [0, 1, 3, 7, 8, 9]
    assert (weights[:, 0, 6] == 0).all()  # the last frame is that of metaphase
    for frame, row in enumerate(weights[:, 0, :6]):
        density = [
            math.exp(-((frame - anchor) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
            for anchor, width in zip(anchors, (1, 2, 4, 1, 1, 1), strict=True)
        ]
        np.testing.assert_allclose(row, np.array(density) / sum(density), rtol=1e-9)
    # Far from all anchors the densities underflow.
    weights, _ = Stages(np.array([[0, 0, 500, 1, 0, 0]])).weigh_templates(np.arange(501)[:, None])
    np.testing.assert_allclose(weights.sum(2), 1, rtol=1e-12)


def test_interphase_has_templates_at_both_ends():
    life = Stages(np.array([[0, 0, 5, 0, 0, 0], [2, 0, 1, 0, 3, 0]]))
    assert life.length.tolist() == [5, 6]
    assert life.at(np.array([[0, 0], [4, 2], [9, 9]])).tolist() == [[0, 4], [0, 0], [0, 2]]
    weights, stages = life.weigh_templates(np.array([[0, 0], [4, 5]]))
    assert stages[:, 6].tolist() == [INTERPHASE, 2]
    near = math.exp(-0.5 * (4 / 5) ** 2)
    wanted = np.array([[1, near], [near, 1]]) / (1 + near)
    np.testing.assert_allclose(weights[:, 0][:, [2, 6]], wanted)
    assert (weights[:, 0][:, [0, 1, 3, 4, 5]] == 0).all()


def test_stages_follow_the_durations(families, tiny_lives):
    counts = np.zeros_like(tiny_lives.durations)
    for cell in list_whole(families):
        runs = list_runs(cell.stages)
        positions = [ORDER.index(stage) for stage, _ in runs]
        assert positions == sorted(set(positions))
        lengths = dict(runs)
        for stage in ORDER:
            counts[stage, min(lengths.get(stage, 0), 3)] += 1
    shares = counts[1:] / counts[1:].sum(1, keepdims=True)
    np.testing.assert_allclose(shares, tiny_lives.durations[1:], atol=0.06)


def test_founders_have_euler_lotka_ages(tiny_shapes, tiny_lives):
    cycle = 12
    lives = replace(tiny_lives, cycle=np.array([math.log(cycle), 0.01]))
    simulator = TemplateLineageSimulator(tiny_shapes, lives, 1, np.random.default_rng(0))
    found = [family[0].age for family in simulator.grow(np.full(1500, 0.5))]
    shares = np.bincount(found, minlength=cycle)[:cycle] / len(found)
    # The share of an age halves over a cycle.
    wanted = 2.0 ** (-np.arange(cycle) / cycle)
    np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=0.03)


def test_durations_are_resampled_by_row(tiny_lives):
    mitoses = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    births = np.array([[1.0, 0.0], [2.0, 3.0], [0.0, 4.0]])
    model = replace(tiny_lives, pro_metaphase_frames=mitoses, ana_telophase_frames=births)
    rng = np.random.default_rng(0)
    rows = resample_durations(model, rng, np.linspace(0, 0.99, 120))
    assert rows.dtype == np.int64
    assert (rows[:, INTERPHASE] == 0).all()
    assert {tuple(row[list(PRE_MITOTIC)]) for row in rows} == {(1, 2, 3), (4, 5, 6)}
    assert {tuple(row[list(POST_MITOTIC)]) for row in rows} == {(1, 0), (2, 3), (0, 4)}
    assert rows[60, list(POST_MITOTIC)].tolist() == [2, 3]


# Lineages


@pytest.mark.parametrize("model", ["template", "lineage"])
def test_lineage_is_a_binary_tree(model, request):
    simulate = request.getfixturevalue(model)
    for seed in range(5):
        cells = simulate(seed, 25)
        start = cells[0].identity
        assert [cell.identity for cell in cells] == list(range(start, start + len(cells)))
        assert (cells[0].parent, cells[0].first) == (0, 0)
        for cell in cells:
            daughters = list_daughters(cells, cell)
            assert len(daughters) == 2 * cell.divides
            assert all(d.first == cell.last + 1 and d.age == 0 for d in daughters)
            assert cell.divides or cell.last == 24
            assert len(cell.radii) == len(cell.stages) == len(cell.brightness) > 0


@pytest.mark.parametrize("model", ["template", "lineage"])
def test_dying_nuclei_shrink_and_end(model, request, tiny_lives):
    simulate, lives = request.getfixturevalue(model), replace(tiny_lives, death_rate=0.05)
    deaths, calm, last_areas = 0, 0, []
    for seed in range(200):
        cells = simulate(seed, 30, lives=lives)
        for cell in cells:
            dying = cell.stages == APOPTOSIS
            calm += (cell.stages == INTERPHASE).sum()
            assert len(list_daughters(cells, cell)) == 2 * cell.divides
            assert cell.divides or dying.any() or cell.last == 29
            if not dying.any():
                continue
            first = int(dying.argmax())
            assert dying[first:].all()
            assert not cell.divides
            assert dying.sum() <= 6  # 3 hours of frames of 30 minutes
            assert set(cell.looks[first:]) == {CONDENSED}
            deaths += cell.last < 29
            if first and cell.last < 29:
                area = compute_polygon_area(cell.radii)
                last_areas.append(area[-1] / area[first - 1])
                assert cell.brightness[-1] > cell.brightness[first - 1]
    # None dies in the first hours of its life, or in mitosis.
    assert 0.02 < deaths / calm < 0.03
    assert 0.3 < np.median(last_areas) < 0.6


def test_death_comes_at_its_rate(tiny_lives):
    lives = replace(tiny_lives, death_rate=0.05)
    stages, rng = Stages(np.tile([3, 0, 1000, 0, 0, 0], (4000, 1))), np.random.default_rng(0)
    first, last = stages.find_interphase()
    for age in (0, 400):
        ends, lasting = sample_dying(lives, stages, np.full(4000, age), rng)
        assert set(lasting) <= {2, 3, 4, 5, 6}  # 1 to 3 hours of frames of 30 minutes
        waited = ends - np.maximum(first + lasting, age)
        assert waited.min() == 0
        assert waited.mean() == pytest.approx(19, rel=0.05)  # of the geometric law
    ends, _ = sample_dying(lives, stages, last - 9, rng)
    assert np.isinf(ends).mean() == pytest.approx(0.95**10, abs=0.03)


def test_nobody_dies_at_rate_zero(lineage, tiny_lives):
    lives = replace(tiny_lives, cycle=np.array([math.log(20), 0.01]))
    none, some = (lineage(1, 30, lives=replace(lives, death_rate=r), age=2) for r in (0.0, 1.0))
    assert all(cell.divides or cell.last == 29 for cell in none)
    # At a rate of 1 all die as soon as they can.
    assert [cell.divides for cell in some] == [False]


@pytest.mark.heavy
@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_dividing_share_is_that_of_lineages(lineage, tiny_lives, rate):
    lives = replace(tiny_lives, death_rate=rate)
    fates = [
        cell.divides
        for seed in range(200)
        for cell in lineage(seed, 60, lives=lives)
        if cell.parent and cell.first < 20  # so that all come to their end
    ]
    assert len(fates) > 500
    assert np.mean(fates) == pytest.approx(compute_dividing_share(lives), abs=0.05)


# The paper's model


def test_templates_split_the_mothers_area(template, tiny_lives):
    splits = 0
    for seed in range(6):
        cells = template(seed, jitter=0.0)
        for mother in list_whole([cells]):
            interphase = np.flatnonzero(mother.stages == INTERPHASE)
            if len(mother.stages) > 4 and interphase[-1] >= 3:  # as large as she will be
                one, other = (first_area(cell) for cell in list_daughters(cells, mother))
                adult = float(compute_polygon_area(mother.radii[interphase[-1]]))
                wanted = 2 * tiny_lives.area_of_age[0] * adult
                assert one + other == pytest.approx(wanted, rel=1e-9)
                assert 0.3 <= one / (one + other) <= 0.7
                splits += 1
    assert splits > 12


def test_template_sisters_share_their_mitosis(template, tiny_lives):
    wild = replace(
        tiny_lives,
        stage_brightness=np.stack([np.zeros(6), np.array([0, 1, 1, 1, 1, 1.0])], 1),
        durations=np.eye(4)[[1, 0, 0, 0, 1, 0]],  # anaphase, then interphase until division
        sister_spread=0.01,
    )
    between, within = [], []
    for seed in range(6):
        cells = template(seed, lives=wild)
        for mother in list_whole([cells]):
            one, other = (math.log(d.brightness[0]) for d in list_daughters(cells, mother))
            within.append(one - other)
            between.append(one - math.log(mother.brightness[-1]))
    assert np.std(within) < 0.05
    assert np.std(between) > 0.3


# Brightness of the fitted model


@pytest.fixture(scope="module")
def drifting(tiny_lives):
    """Lives whose brightness is e to the power of a normal score, and drifts."""
    scores = special.ndtri(np.linspace(0.0005, 0.9995, 1000))
    return replace(
        tiny_lives, brightness=np.exp(scores), brightness_autocorrelation=0.9,
        brightness_sister_correlation=0.6, stage_brightness=np.zeros((6, 2)), sister_spread=0.0,
        cycle=np.array([math.log(200), 0.01]),
    )  # fmt: skip


def test_founder_has_given_age_and_quantile(lineage, tiny_lives):
    lasting = replace(
        tiny_lives, stage_brightness=np.zeros((6, 2)), sister_spread=0.0,
        brightness_autocorrelation=1.0,
    )  # fmt: skip
    for quantile, wanted in ((0.0, 0.1), (0.25, 0.15), (1.0, 0.3)):
        cell = lineage(0, lives=lasting, quantile=quantile, age=3)[0]
        assert cell.age == 3
        np.testing.assert_allclose(cell.brightness, wanted, rtol=1e-4)
    assert len({lineage(seed)[0].age for seed in range(20)}) > 4


def test_brightness_follows_the_stage_at_once(lineage, tiny_lives):
    factors = np.array([1, 1.3, 1.7, 2, 2.2, 1.5])
    steady = replace(
        tiny_lives, stage_brightness=np.stack([np.log(factors), np.zeros(6)], 1),
        sister_spread=0.0, brightness_autocorrelation=1.0,
    )  # fmt: skip
    shown = set()
    for seed in range(6):
        base = float(interpolate_quantile(steady.brightness, 0.5))
        for cell in lineage(seed, 40, lives=steady, quantile=0.5):
            shown |= set(cell.stages.tolist())
            np.testing.assert_allclose(cell.brightness, base * factors[cell.stages], rtol=1e-6)
    assert shown == set(range(6))


def test_bright_nuclei_gain_less_in_mitosis(lineage, tiny_shapes, drifting):
    spread = np.array([0, 0, 0.2, 0.2, 0.2, 0.2])
    calm = replace(tiny_shapes, area_jitter=0.0)
    lives = replace(
        drifting, stage_brightness=np.stack([np.zeros(6), spread], 1), stage_spread=spread,
        brightness_autocorrelation=1.0, size=np.zeros(2), mitosis_correlation=-0.8,
        pro_metaphase_frames=np.array([[0, 0, 1.0]]),
    )  # fmt: skip
    scores, gains, areas = [], [], []
    for seed in range(300):
        cell = lineage(seed, 8, shapes=calm, lives=lives, quantile=(seed + 0.5) / 300, age=197)[0]
        if cell.divides and len(cell.stages) > 1:
            light = np.log(cell.brightness[-2:])
            scores, gains = [*scores, light[0]], [*gains, light[1] - light[0]]
            areas.append(math.log(compute_polygon_area(cell.radii[-1])))
    assert len(gains) > 200
    assert np.std(gains) == pytest.approx(0.2, rel=0.15)
    assert np.corrcoef(scores, gains)[0, 1] == pytest.approx(-0.8, abs=0.05)
    assert np.corrcoef(areas, gains)[0, 1] < -0.7  # what is brighter is more condensed


def test_brightness_drifts_within_its_distribution(lineage, drifting):
    quantiles = np.linspace(0.001, 0.999, 900)
    cells = [lineage(n, 12, lives=drifting, quantile=q, age=20) for n, q in enumerate(quantiles)]
    scores = np.log([cell.brightness for cell, *_ in cells])
    np.testing.assert_allclose(scores[15:-15, 0], special.ndtri(quantiles[15:-15]), atol=0.02)
    for frame in (0, 5, 11):
        assert scores[:, frame].std() == pytest.approx(1, abs=0.1)
        assert scores[:, frame].mean() == pytest.approx(0, abs=0.12)
    for lag in (1, 5):
        found = np.corrcoef(scores[:, :-lag].ravel(), scores[:, lag:].ravel())[0, 1]
        assert found == pytest.approx(0.9**lag, abs=0.05)


def test_sisters_drift_partly_together(lineage, drifting):
    lives = replace(drifting, cycle=np.array([math.log(14), 0.05]))
    births, changes = [], []
    for seed in range(150):
        mother, one, other, *_ = lineage(seed, 22, lives=lives, age=12)
        begun = math.log(mother.brightness[-1])
        births.append(math.log(one.brightness[0]) - begun)
        # The innovations of seven steps.
        changes.append([math.log(x.brightness[6]) - 0.9**7 * begun for x in (one, other)])
    assert np.std(births) == pytest.approx(math.sqrt(1 - 0.9**2), rel=0.25)
    assert np.corrcoef(np.array(changes).T)[0, 1] == pytest.approx(0.6, abs=0.12)


def test_sister_quantile_drifts_with_age(drifting):
    rng = np.random.default_rng(3)
    for age in (0, 7, 500):
        known = rng.random(2000)
        sisters = sample_sister_quantile(drifting, known, np.full(2000, age), rng)
        found = np.corrcoef(special.ndtri(np.stack([known, sisters])))[0, 1]
        assert found == pytest.approx(0.6 + 0.4 * 0.9 ** (2 * age + 2), abs=0.05)


# Areas of the fitted model


@pytest.fixture(scope="module")
def measure_areas(lineage, tiny_shapes, tiny_lives):
    """Return areas over the adult area of 400 px^2, of nuclei that stay in interphase."""
    lives = replace(
        tiny_lives, cycle=np.array([math.log(60), 0.01]), adult_area=np.full(3, 400.0),
        stage_spread=np.zeros(6),
    )  # fmt: skip

    def measure(count, jitter, size):
        shapes, model = replace(tiny_shapes, area_jitter=jitter), replace(lives, size=size)
        cells = [lineage(s, 8, shapes=shapes, lives=model, age=20)[0] for s in range(count)]
        return np.log([compute_polygon_area(cell.radii) / 400 for cell in cells])

    return measure


def test_area_jitter_is_white(measure_areas):
    logs = measure_areas(40, 0.1, np.zeros(2))
    assert logs.mean() == pytest.approx(0, abs=0.02)
    assert logs.std() == pytest.approx(0.1, rel=0.12)
    np.testing.assert_allclose(measure_areas(1, 0.0, np.zeros(2)), 0, atol=1e-9)


@pytest.mark.parametrize("condensed", [0.0, 0.3])
def test_newborn_are_large_as_their_mother(lineage, tiny_shapes, tiny_lives, condensed):
    spread = np.array([0, 0, 0, 0, condensed, condensed])
    calm = replace(tiny_shapes, area_jitter=0.0)
    lives = replace(
        tiny_lives, size=np.array([0.4, 0.9]), division_asymmetry_robust=0.0, stage_spread=spread
    )
    misses, stages = [], set()
    for seed in range(40):
        cells = lineage(seed, 20, shapes=calm, lives=lives)
        if not cells[0].divides:
            continue
        mother, (one, other) = cells[0], list_daughters(cells, cells[0])
        assert first_area(one) == pytest.approx(first_area(other))
        stage = int(one.stages[0])
        assert stage == other.stages[0]
        stages.add(stage)
        wanted = lives.area_at_birth[stage] / lives.area_of_stage[mother.stages[-1]]
        last = float(compute_polygon_area(mother.radii[-1]))
        misses.append(math.log(first_area(one) / last / wanted))
    assert stages == set(POST_MITOTIC)
    # Sisters are equally condensed, each pair in its own way.
    assert np.std(misses) == pytest.approx(condensed, rel=0.35, abs=1e-9)


@pytest.mark.parametrize("cycle", [14, 45])
def test_nucleus_is_adult_before_division(tiny_lives, cycle):
    lives = replace(tiny_lives, area_in_interphase=np.linspace(0.5, 1, 31))
    stages = Stages(np.array([[1, 0, cycle - 3, 0, 0, 2]]))
    curve = compute_area_curve(lives, stages, np.arange(cycle)[:, None])[:, 0]
    assert curve[cycle - GROWN] == pytest.approx(1)
    assert (np.diff(curve[1:-2]) >= 0).all()
    assert (curve[0], curve[-1]) == (lives.area_at_birth[4], lives.area_of_stage[3])


def test_outlines_last_and_stay_positive(lineage, tiny_shapes, tiny_lives):
    lives = replace(tiny_lives, cycle=np.array([math.log(60), 0.01]))
    frozen = replace(
        tiny_shapes, autocorrelation=np.ones(4), innovation=np.zeros(4), area_jitter=0.0
    )
    radii = lineage(5, 8, shapes=frozen, lives=lives, age=20)[0].radii
    assert np.ptp(radii, axis=0).max() < 0.05 * radii.mean()
    rough = replace(tiny_shapes, modes=30 * tiny_shapes.modes)
    assert all((cell.radii > 0).all() for seed in range(6) for cell in lineage(seed, shapes=rough))
