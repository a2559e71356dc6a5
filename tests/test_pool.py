"""Pools: nuclei that are painted once and shown in many clips."""

import math
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from painters import LinearPainter
from torch.utils.data import DataLoader

from bvdm_data.clip import ANNOTATIONS
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.rng import numpy_rng
from bvdm_data.synth import cell_bank as pools
from bvdm_data.synth import synthesis as plan
from bvdm_data.synth.cell_bank import BankSample, CellBank, PoolSettings
from bvdm_data.synth.contours import compute_polygon_area
from bvdm_data.synth.motion import simulate_colony
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.placement import InitialCell
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import FastSettings

two_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")
SMALL = PoolSettings(pairs=6, renew=0.5)
QUICK = FastSettings(steps=2)
FRAMES = 5


@pytest.fixture
def tiny(tiny_model):
    """Make a data set of small clips out of a small pool; the keywords replace arguments."""

    def tiny(**changes):
        arguments = {
            "frames": FRAMES,
            "size": (64, 72),
            "model": tiny_model,
            "nuclei": 3,
            "max_cells": 64,
            "pool": SMALL,
            "annotations": ANNOTATIONS,
        }
        return SyntheticHeLaVideos(**arguments | changes)

    return tiny


@pytest.fixture
def painted(monkeypatch):
    """Count how many pairs are painted."""
    calls = []
    real = pools.paint_fast

    def counted(lives, *rest):
        calls.append(len(lives))
        return real(lives, *rest)

    monkeypatch.setattr(pools, "paint_fast", counted)
    return calls


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9)) for key in one
    )


# Settings


@pytest.mark.parametrize(
    ("error", "changes", "words"),
    [
        (TypeError, {"pairs": 2.0}, "pairs must be an int, got 2.0"),
        (TypeError, {"pairs": True}, "pairs must be an int, got True"),
        (ValueError, {"pairs": 0}, "pairs must be at least 1, got 0"),
        (TypeError, {"renew": "often"}, "renew must be a number, got 'often'"),
        (TypeError, {"renew": True}, "renew must be a number, got True"),
        (ValueError, {"renew": -0.1}, r"renew must be from 0 \(never replace\) to pairs=256"),
        (ValueError, {"pairs": 3, "renew": 4}, "to pairs=3 .*, got 4"),
        (ValueError, {"renew": math.nan}, "renew must be from 0 .* got nan"),
    ],
)
def test_pool_settings_refuse_pools_that_hold_nothing(error, changes, words):
    with pytest.raises(error, match=words):
        PoolSettings(**changes)


def test_pool_settings_take_the_ends_of_their_ranges():
    assert PoolSettings(pairs=1, renew=0).renew == 0
    assert PoolSettings(pairs=1, renew=1).pairs == 1


@pytest.mark.parametrize(
    "method",
    [PaperSettings(), ProceduralSettings(), FastSettings(families=False)],
    ids=["paper", "procedural", "no families"],
)
def test_other_methods_refuse_a_pool(tiny, method):
    words = (
        f"pool must be None unless the method is 'fast' with families, got {type(method).__name__}"
    )
    with pytest.raises(ValueError, match=words):
        tiny(method=method)


@pytest.mark.parametrize("pool", [256, "large", {}])
def test_a_pool_that_is_none_is_refused(tiny, pool):
    with pytest.raises(TypeError, match="pool must be True, None or PoolSettings, got "):
        tiny(pool=pool)


def test_true_is_the_usual_pool_and_false_is_none(tiny):
    assert tiny(pool=True).pool == PoolSettings()
    assert tiny(pool=False).pool is None
    assert same(tiny(pool=False).clip(0), tiny(pool=None).clip(0))


# Clips


@pytest.mark.parametrize(
    "changes",
    [{}, {"nuclei": None}, {"nuclei": 0}, {"variation": 0}, {"method": QUICK}, {"frames": 1}],
    ids=["some", "density", "none", "like the video", "two steps", "one frame"],
)
def test_clips_out_of_a_pool_hold_together(tiny, changes):
    videos = tiny(**changes)
    for number in range(4):
        check_clip(videos.clip(number))


def test_more_nuclei_than_the_pool_holds_are_shown_more_than_once(tiny):
    clip = tiny(pool=PoolSettings(pairs=1, renew=0), nuclei=9, size=200).clip(0)
    check_clip(clip)
    assert len(clip["masks"][0].unique()) == 10


def test_families_of_a_pool_divide_within_clips(tiny):
    videos = tiny(frames=8)
    parents = torch.cat([videos.clip(number)["tracks"][:, 3] for number in range(6)])
    assert (parents > 0).sum() >= 2


@two_workers
@pytest.mark.parametrize("workers", [1, 2])
def test_a_clip_out_of_a_pool_does_not_depend_on_the_workers(tiny, workers):
    alone = {int(clip["index"]): clip for clip in tiny(length=6)}
    loader = DataLoader(tiny(length=6), batch_size=None, num_workers=workers)
    shared = {int(clip["index"]): clip for clip in loader}
    assert alone.keys() == shared.keys() == set(range(6))
    assert all(same(alone[number], shared[number]) for number in alone)


def test_a_clip_does_not_depend_on_what_the_pool_has_held(tiny):
    videos, numbers = tiny(), (0, 40, 3, 11)
    wanted = [tiny().clip(number) for number in numbers]
    assert all(same(videos.clip(n), clip) for n, clip in zip(numbers, wanted, strict=True))
    for number in (1000, 2, 40, 7):
        videos.clip(number)
    assert all(same(videos.clip(n), clip) for n, clip in zip(numbers, wanted, strict=True))


def test_a_pool_that_others_had_before_makes_the_same_clips(tiny_generator):
    kept, other = CellBank(SMALL, 0), CellBank(SMALL, 0)
    scene = SceneSettings(frames=FRAMES, size=(64, 72), nuclei=3)

    def film(pool, generator, name):
        return synthesise(
            generator, scene, QUICK, seed=0, name=("clip", 0, name), pool=(pool, name, 0)
        ).video

    brighter = replace(tiny_generator, painter=LinearPainter(0.3))
    for number in range(3):
        film(kept, brighter, number)
    for number in range(3):
        np.testing.assert_array_equal(
            film(kept, tiny_generator, number), film(other, tiny_generator, number)
        )


def test_a_filled_pool_pickles_as_small_as_an_empty_one_and_makes_the_same_clips(tiny):
    videos = tiny()
    empty = len(pickle.dumps(videos))
    clips = [videos.clip(number) for number in range(5)]
    sent = pickle.dumps(videos)
    assert abs(len(sent) - empty) < 200
    again = pickle.loads(sent)
    assert all(same(again.clip(number), clip) for number, clip in enumerate(clips))


def test_another_seed_has_another_pool(tiny):
    assert not torch.equal(tiny().clip(0)["video"], tiny(seed=1).clip(0)["video"])


# Renewal


def renewed(settings, clips, generator):
    """Return for every clip but the first the slots that hold another pair than before it."""
    pool = CellBank(settings, 0)

    def held(number):
        return [pool.pair(slot, number, 0, generator, 2) for slot in range(settings.pairs)]

    before, found = held(0), []
    for number in range(1, clips):
        now = held(number)
        found.append([slot for slot in range(settings.pairs) if now[slot] is not before[slot]])
        before = now
    return found


@pytest.mark.parametrize(("pairs", "renew"), [(4, 1), (5, 0.5), (7, 2.5), (3, 3), (4, 0)])
def test_slots_are_renewed_one_after_the_other_at_the_stated_rate(tiny_generator, pairs, renew):
    clips = 4 * pairs + 1
    found = renewed(PoolSettings(pairs=pairs, renew=renew), clips, tiny_generator)
    counts = [len(slots) for slots in found]
    assert {math.floor(renew), math.ceil(renew)} >= set(counts)
    assert sum(counts) == pytest.approx(renew * (clips - 1), abs=1)
    each = Counter(slot for slots in found for slot in slots)
    if renew:
        # Nobody is replaced twice before all others have been.
        assert max(each.values()) - min(each[slot] for slot in range(pairs)) <= 1


def test_a_renewed_slot_has_other_nuclei(tiny_generator):
    pool = CellBank(PoolSettings(pairs=2, renew=2), 0)
    one, other = (pool.pair(0, number, 0, tiny_generator, 3).families[0][0] for number in (0, 1))
    assert not np.array_equal(one.radii[0], other.radii[0])


def test_a_pair_is_painted_once_while_it_is_kept(tiny, painted):
    videos = tiny(pool=PoolSettings(pairs=4, renew=0))
    for number in range(12):
        videos.clip(number)
    assert len(painted) <= 4
    videos.clip(0)
    assert len(painted) <= 4


def test_a_pool_never_holds_more_than_its_pairs(tiny):
    videos = tiny(pool=PoolSettings(pairs=3, renew=1.5), nuclei=None)
    for number in range(15):
        videos.clip(number)
        kept = videos._pool._kept
        assert len(kept) <= 3
        assert set(kept) <= {0, 1, 2}


def test_epochs_of_a_finite_stream_go_on_with_the_nuclei_of_the_one_before(tiny, painted):
    videos = tiny(length=8, pool=PoolSettings(pairs=2, renew=0))
    first = [videos.clip(number) for number in range(8)]
    assert len(painted) == 2
    videos.set_epoch(1)
    second = [videos.clip(number) for number in range(8)]
    assert len(painted) == 2
    assert not any(same(*clips) for clips in zip(first, second, strict=True))


def test_a_finite_stream_renews_its_pool_across_epochs(tiny_model, tiny, painted):
    videos = tiny(length=4, pool=PoolSettings(pairs=2, renew=0.25), nuclei=6, size=96)
    for epoch in range(4):
        videos.set_epoch(epoch)
        for number in range(4):
            videos.clip(number)
    # 16 clips replace 16 * .25 pairs, beside the two of the beginning.
    assert 2 + 2 <= len(painted) <= 2 + 4


def test_an_endless_stream_has_new_nuclei_in_every_epoch(tiny, painted):
    videos = tiny(pool=PoolSettings(pairs=2, renew=0), nuclei=6, size=96)
    videos.clip(0)
    assert len(painted) == 2
    videos.set_epoch(1)
    videos.clip(0)
    assert len(painted) == 4


# Casts


def cast_of(generator, pool, number=0, **factors):
    draws = numpy_rng(number, "test")
    return BankSample(pool, generator, FRAMES, number, 0, draws, **factors)


def casts(generator, count, **factors):
    """Show the only pair of a pool in several clips: the pair, and roles with their families."""
    pool = CellBank(PoolSettings(pairs=1, renew=0), 0)
    pair = pool.pair(0, 0, 0, generator, FRAMES)
    found = []
    for number in range(count):
        cast = cast_of(generator, pool, number, **factors)
        found.append((cast, cast(10 * number + 1, None)))
    return pair, found


def mirrored(radii):
    """Return outlines whose points have moved from x to -x."""
    return radii[:, (-np.arange(radii.shape[1])) % radii.shape[1]]


def test_sisters_have_one_age(tiny_generator):
    pool = CellBank(PoolSettings(pairs=12), 0)
    # All cycles are equally long: a nucleus is no older than its own lasts.
    lives = replace(tiny_generator.lives, cycle=np.array([np.log(40), 1e-6]))
    generator, ages = replace(tiny_generator, lives=lives), []
    for slot in range(12):
        one, other = pool.pair(slot, 0, 0, generator, FRAMES).families
        assert one[0].age == other[0].age
        ages.append(one[0].age)
    assert len(set(ages)) > 2


def test_the_sister_of_a_founder_is_of_the_same_pair(tiny_generator):
    pool = CellBank(PoolSettings(pairs=5), 0)
    cast = cast_of(tiny_generator, pool)
    family = cast(1, None)
    sister = cast(40, InitialCell(family, np.zeros(2), 0.0))
    one, other = pool.pair(cast._roles[1].slot, 0, 0, tiny_generator, FRAMES).families
    assert [life.stages.tolist() for life in family] == [life.stages.tolist() for life in one]
    assert [life.stages.tolist() for life in sister] == [life.stages.tolist() for life in other]
    assert sister[0].identity == 40
    assert sister[0].age == family[0].age


def test_pairs_are_shown_in_a_new_order_before_any_comes_again(tiny_generator):
    pool = CellBank(PoolSettings(pairs=5, renew=0), 0)
    orders = []
    for number in range(3):
        cast = cast_of(tiny_generator, pool, number)
        identity, slots = 1, []
        for _ in range(10):
            family = cast(identity, None)
            slots.append(cast._roles[identity].slot)
            identity += len(family)
        assert sorted(slots[:5]) == sorted(slots[5:]) == [0, 1, 2, 3, 4]
        orders.append(tuple(slots[:5]))
    assert len(set(orders)) > 1


def test_a_family_keeps_its_lineage_under_new_numbers(tiny_generator):
    pool = CellBank(PoolSettings(pairs=20, renew=0), 0)
    cast = cast_of(tiny_generator, pool)
    sizes, identity = [], 100
    for _ in range(20):
        family = cast(identity, None)
        numbers = [life.identity for life in family]
        assert numbers == list(range(identity, identity + len(family)))
        assert family[0].parent == 0
        assert all(life.parent in numbers for life in family[1:])
        sizes.append(len(family))
        identity += len(family)
    assert max(sizes) > 1


def test_a_nucleus_is_shown_again_mirrored_or_not_brighter_or_dimmer(tiny_generator):
    pair, shown = casts(tiny_generator, 12)
    original = pair.families[0][0]
    gains, sides = [], set()
    for _, family in shown:
        life = family[0]
        as_it_is = np.array_equal(life.radii, original.radii)
        turned_over = np.array_equal(life.radii, mirrored(original.radii))
        assert as_it_is != turned_over
        sides.add(turned_over)
        gain = life.brightness / original.brightness
        np.testing.assert_allclose(gain, gain[0], rtol=1e-12)
        gains.append(float(gain[0]))
    assert sides == {True, False}
    spread = np.log(gains).std()
    assert 0.4 * pools.GAIN < spread < 2 * pools.GAIN


def test_all_of_a_family_are_mirrored_and_lit_alike(tiny_generator):
    pool = CellBank(PoolSettings(pairs=20, renew=0), 0)
    cast = cast_of(tiny_generator, pool)
    identity, divided = 1, 0
    for _ in range(20):
        family = cast(identity, None)
        roles = {(cast._roles[x.identity].mirrored, cast._roles[x.identity].gain) for x in family}
        assert len(roles) == 1
        divided += len(family) > 1
        identity += len(family)
    assert divided


def test_a_nucleus_is_put_elsewhere_and_turned_in_every_clip(tiny_generator):
    pool = CellBank(PoolSettings(pairs=1, renew=0), 0)
    places = []
    for number in range(4):
        draws = numpy_rng(number, "test")
        cast = BankSample(pool, tiny_generator, FRAMES, number, 0, draws)
        paths = simulate_colony(
            tiny_generator.shapes, tiny_generator.lives, tiny_generator.motion, frames=FRAMES,
            size=(64, 64), nuclei=1, generator=draws, grow=cast,
        )  # fmt: skip
        places.append((*paths[0].centres[0], paths[0].turns[0] % (2 * math.pi)))
    assert np.ptp(np.array(places), axis=0).min() > 0.3


def pictures_of(cast, family, settings=QUICK):
    shown = [(life.identity, n, (life.first, life.last)) for n, life in enumerate(family)]
    return cast.pictures(shown, settings)


def test_pictures_are_mirrored_and_lit_as_the_outlines_are(tiny_generator):
    pair, shown = casts(tiny_generator, 8)
    for cast, family in shown:
        groups = pictures_of(cast, family)
        base = cast.pool.paint(0, pair, tiny_generator, QUICK)
        role = cast._roles[family[0].identity]
        ours = {
            (int(row), int(moment)): light
            for group in groups
            for row, moment, light in zip(group.rows, group.frames, group.light, strict=True)
        }
        seen = 0
        for group in base:
            for row, moment, light in zip(group.rows, group.frames, group.light, strict=True):
                if int(row) >= len(family):
                    continue
                wanted = role.gain * light.float()
                wanted = wanted.flip(1) if role.mirrored else wanted
                torch.testing.assert_close(ours[int(row), int(moment)], wanted)
                seen += 1
        assert seen == len(ours) == sum(len(life.stages) for life in family)


def test_only_the_frames_in_view_are_given(tiny_generator):
    _, ((cast, family),) = casts(tiny_generator, 1)
    life = family[0]
    groups = cast.pictures([(life.identity, 7, (life.first, life.first))], QUICK)
    assert [group.frames.tolist() for group in groups if len(group.frames)] == [[life.first]]
    assert groups[0].rows.tolist() == [7]


@pytest.mark.parametrize(("size", "brightness"), [(1.3, 1.0), (0.8, 2.0)])
def test_factors_reach_outlines_and_pictures_alike(tiny_generator, size, brightness):
    _, plain = casts(tiny_generator, 4)
    _, varied = casts(tiny_generator, 4, size=size, brightness=brightness)
    for (cast, family), (other, grown) in zip(plain, varied, strict=True):
        for one, two in zip(family, grown, strict=True):
            np.testing.assert_allclose(two.radii, size * one.radii)
            np.testing.assert_allclose(two.brightness, brightness * one.brightness)
        for one, two in zip(pictures_of(cast, family), pictures_of(other, grown), strict=True):
            torch.testing.assert_close(two.zoom, one.zoom / size)
            torch.testing.assert_close(two.light, brightness * one.light)


# Films


@pytest.fixture
def lopsided(tiny_generator):
    """A generator of lopsided, evenly lit nuclei before a camera without noise."""
    shapes = tiny_generator.shapes
    angle = np.arange(shapes.mean.shape[1]) * 2 * np.pi / shapes.mean.shape[1]
    # Longer on one side of the major axis: mirrored it is another outline.
    tilted = shapes.mean * (1 + 0.35 * np.sin(angle) + 0.25 * np.sin(2 * angle))
    camera = replace(tiny_generator.camera, noise=0.0, field_spread=0.0, level_spread=0.0)
    return replace(
        tiny_generator,
        shapes=replace(shapes, mean=tilted, modes=0.1 * shapes.modes),
        camera=camera,
        painter=LinearPainter(spread=0.0),
    )


def film_of(generator, number, pool, variation=0.0):
    scene = SceneSettings(frames=3, size=(96, 96), nuclei=4, variation=variation)
    return synthesise(
        generator, scene, QUICK, seed=0, name=("clip", 0, number), pool=(pool, number, 0)
    )


def agreement(generator, variation=0.0):
    """Return how well the light of films agrees with their labels, as intersection over union."""
    pool = CellBank(PoolSettings(pairs=3, renew=0), 0)
    shares = []
    for number in range(6):
        found = film_of(generator, number, pool, variation)
        light = found.video - generator.camera.level
        for frame in range(3):
            labelled = found.masks[frame] > 0
            lit = light[frame] > 0.3 * np.median(light[frame][labelled])
            shares.append((lit & labelled).sum() / (lit | labelled).sum())
    return shares


@pytest.mark.parametrize("variation", [0.0, 1.0])
def test_light_and_labels_of_mirrored_nuclei_agree(lopsided, variation):
    shares = agreement(lopsided, variation)
    assert np.mean(shares) > 0.9
    assert min(shares) > 0.8


@pytest.mark.parametrize("size", [0.75, 1.35])
def test_light_and_labels_of_larger_and_smaller_nuclei_agree(lopsided, monkeypatch, size):
    real = plan.vary

    def varied(*arguments):
        made = real(*arguments)
        return replace(made, size=size)

    monkeypatch.setattr(plan, "randomise_model", varied)
    shares = agreement(lopsided)
    assert np.mean(shares) > 0.88
    assert min(shares) > 0.75


def test_areas_of_a_pool_are_those_of_fresh_nuclei(tiny_generator):
    pool = CellBank(PoolSettings(pairs=40), 0)
    some = [pool.pair(slot, 0, 0, tiny_generator, 1).families[0][0] for slot in range(40)]
    sizes = [float(compute_polygon_area(life.radii[0])) for life in some]
    body = tiny_generator.lives.body
    assert 0.3 * body.min() < min(sizes) < np.median(sizes) < max(sizes) < 1.6 * body.max()


def test_the_brightness_of_a_pool_is_spread_evenly(tiny_generator):
    lives = replace(tiny_generator.lives, stage_brightness=np.zeros((6, 2)), sister_spread=0.0)
    generator = replace(tiny_generator, lives=lives)
    pool = CellBank(PoolSettings(pairs=10), 0)
    light = [pool.pair(n, 0, 0, generator, 1).families[0][0].brightness[0] for n in range(10)]
    assert light == sorted(light)
    assert np.histogram(light, np.linspace(0.1, 0.3, 6))[0].tolist() == [2] * 5
