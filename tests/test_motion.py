from dataclasses import replace

import numpy as np
import pytest
from rasters import label

from bvdm_data.synth.contours import compute_polygon_area
from bvdm_data.synth.motion import simulate_motion
from bvdm_data.synth.placement import CONTACT, MARGIN

SIZE = (96, 128)


@pytest.fixture
def play(tiny_shapes, tiny_lives, tiny_motion):
    """Make a film; the keywords replace parts of it."""

    def play(seed, **changes):
        scene = {"frames": 8, "size": SIZE, "nuclei": 4, "jitter": 0.1}
        models = {"shapes": tiny_shapes, "lives": tiny_lives, "motion": tiny_motion} | {
            key: changes.pop(key) for key in ("shapes", "lives", "motion") if key in changes
        }
        return simulate_motion(**models, **scene | changes, generator=np.random.default_rng(seed))

    return play


@pytest.fixture
def lonely(tiny_motion):
    """Nuclei that do not move at all."""
    return replace(tiny_motion, step=np.array([0.0, 3.0]), turn=0.0)


@pytest.mark.parametrize("nuclei", [0, 1, 3, 9])
def test_the_number_of_nuclei_asked_for_shows_in_the_first_frame(play, nuclei):
    for seed in range(40):
        labels = label(play(seed, nuclei=nuclei, frames=1), 1, SIZE)
        assert len(np.unique(labels[labels > 0])) == nuclei


@pytest.mark.parametrize("seed", [445, 523, 836, 953, 1051, 1152])
def test_a_nucleus_at_the_border_is_not_hidden_by_its_neighbour(play, seed):
    # These seeds draw first a sliver at the border and then a nucleus that lies right on it.
    labels = label(play(seed, nuclei=6, frames=1, size=(48, 48)), 1, (48, 48))
    assert len(np.unique(labels[labels > 0])) == 6


def test_a_film_has_a_place_and_a_turn_for_every_moment_of_every_life(play):
    for path in play(1):
        count = len(path.cell.stages)
        assert path.centres.shape == (count, 2)
        assert path.angles.shape == (count,)
        assert np.isfinite(path.centres).all()
        assert path.cell.last <= 7


def test_ids_and_depths_are_unique_in_a_film(play):
    paths = play(2)
    ids = [path.cell.identity for path in paths]
    assert len(set(ids)) == len({path.z_order for path in paths}) == len(paths)
    assert all(path.cell.parent in {0, *ids} for path in paths)


def test_without_a_number_the_density_is_that_of_the_video(play, tiny_motion):
    canvas = (SIZE[0] + 2 * MARGIN) * (SIZE[1] + 2 * MARGIN)
    counts = [sum(p.cell.first == 0 for p in play(s, nuclei=None, frames=2)) for s in range(60)]
    assert np.mean(counts) == pytest.approx(tiny_motion.density.mean() * canvas, rel=0.06)


def test_founders_keep_the_distance_of_contact(play):
    for seed in range(5):
        founders = [path for path in play(seed, nuclei=8) if path.cell.first == 0]
        radii = [
            float(np.sqrt(compute_polygon_area(path.cell.radii[0]) / np.pi)) for path in founders
        ]
        for one, path in enumerate(founders):
            for other in range(one):
                apart = np.linalg.norm(path.centres[0] - founders[other].centres[0])
                assert apart >= CONTACT * (radii[one] + radii[other])


def test_daughters_that_are_born_in_one_place_are_pushed_apart(play, lonely):
    close = replace(lonely, separation=np.array([0.0, 0.0]))
    pairs = []
    for seed in range(12):
        families = {}
        for path in play(seed, motion=close, nuclei=1, frames=20, size=(64, 64)):
            if path.cell.parent and len(path.centres) > 4:
                families.setdefault(path.cell.parent, []).append(path)
        pairs += [twins for twins in families.values() if len(twins) == 2]
    assert len(pairs) > 10
    for one, other in pairs:
        apart = np.linalg.norm(one.centres[4] - other.centres[4])
        radii = sum(
            np.sqrt(compute_polygon_area(twin.cell.radii[4]) / np.pi) for twin in (one, other)
        )
        assert apart > 0.9 * CONTACT * radii


def test_no_step_and_no_turn_leave_a_nucleus_where_it_is(play, lonely):
    for path in play(3, motion=lonely, nuclei=1, frames=6):
        if len(path.centres) > 1 and not path.cell.parent:
            assert np.ptp(path.angles) == 0
    still = [p for p in play(3, motion=lonely, nuclei=1, frames=2) if len(p.centres) == 2]
    assert any(np.array_equal(path.centres[0], path.centres[1]) for path in still)


def test_steps_and_turns_follow_their_laws(play, tiny_motion, tiny_lives):
    long = replace(tiny_lives, cycle=np.array([np.log(300), 0.01]))
    steps, turns = [], []
    for seed in range(25):
        for path in play(seed, lives=long, nuclei=1, frames=20):
            steps.append(np.diff(path.centres, axis=0).ravel())
            turns.append(np.diff(path.angles))
    steps, turns = np.concatenate(steps), np.concatenate(turns)
    # Quartiles of the Student t law with 3 degrees of freedom: .765 (tables).
    assert np.median(np.abs(steps)) == pytest.approx(0.765, rel=0.1)
    assert np.std(turns) == pytest.approx(tiny_motion.turn, rel=0.05)


def test_daughters_lie_on_both_sides_of_the_mothers_major_axis(play, lonely):
    # So far apart that nothing pushes them.
    wide = replace(lonely, separation=np.array([np.log(30.0), 0.0]))
    seen = 0
    for seed in range(12):
        paths = play(seed, motion=wide, nuclei=1, frames=14, size=(64, 64))
        known = {path.cell.identity: path for path in paths}
        if len([p for p in paths if p.cell.first == 0]) > 1:
            continue
        for path in paths:
            daughters = [p for p in paths if p.cell.parent == path.cell.identity]
            if not daughters or path.cell.parent:
                continue
            one, other = (known[d.cell.identity].centres[0] for d in daughters)
            turn = path.angles[-1]
            across = np.array([-np.sin(turn), np.cos(turn)])
            np.testing.assert_allclose(one - other, 30 * across, atol=1e-6)
            np.testing.assert_allclose((one + other) / 2, path.centres[-1], atol=1e-6)
            seen += 1
    assert seen


def test_a_film_is_the_same_for_the_same_seed_and_another_for_another(play):
    one, again, other = play(1), play(1), play(2)
    for path, same in zip(one, again, strict=True):
        assert np.array_equal(path.centres, same.centres)
        assert np.array_equal(path.angles, same.angles)
        assert path.z_order == same.z_order
    assert not np.array_equal(one[0].centres, other[0].centres)


def test_film_refuses_nuclei_that_do_not_fit(play):
    with pytest.raises(ValueError, match=r"nuclei=400 do not fit into size=\(96, 128\): only \d+"):
        play(0, nuclei=400)
