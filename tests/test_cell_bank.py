import itertools
import math
import pickle
from collections import Counter
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bvdm_data.clip_check import check_clip
from bvdm_data.rng import numpy_rng
from bvdm_data.synth import cell_bank
from bvdm_data.synth.cell_bank import BankSample, CellBank, PoolSettings
from bvdm_data.synth.contours import compute_polygon_area
from bvdm_data.synth.model import ToneCurve, Variation
from bvdm_data.synth.occupancy import InitialCell
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import FastSettings
from tests.helpers.denoisers import LinearDenoiser
from tests.helpers.rendering import is_same, make_videos

SMALL = PoolSettings(pairs=6, renew=0.5)
QUICK = FastSettings(steps=2)
FRAMES = 5


@pytest.fixture
def tiny(tiny_model):
    return partial(make_videos, tiny_model, frames=FRAMES, pool=SMALL)


@pytest.fixture
def rendered(monkeypatch):
    """Count how many pairs are rendered."""
    calls, real = [], cell_bank.render_textures

    def count(cells, *given):
        calls.append(len(cells))
        return real(cells, *given)

    monkeypatch.setattr(cell_bank, "render_textures", count)
    return calls


# Settings


def test_settings_refuse_empty_pools():
    for error, changes, words in [
        (TypeError, {"pairs": True}, "pairs must be an int, got True"),
        (ValueError, {"pairs": 0}, "pairs must be at least 1, got 0"),
        (TypeError, {"renew": "often"}, "renew must be a number, got 'often'"),
        (ValueError, {"pairs": 3, "renew": 4}, r"renew must be from 0 .* to pairs=3 .*, got 4"),
        (ValueError, {"renew": math.nan}, "renew must be finite, got nan"),
    ]:
        with pytest.raises(error, match=words):
            PoolSettings(**changes)


@pytest.mark.filterwarnings("error")
def test_settings_take_numbers_of_numpy():
    for kind in (np.float16, np.float32, np.float64):
        assert type(PoolSettings(renew=kind(0.5)).renew) is float
    assert repr(FastSettings(fresh=np.float32(0.25))).count("np.") == 0


def test_pool_is_refused_or_defaulted(tiny):
    for method in (PaperSettings(), ProceduralSettings(), FastSettings(families=False)):
        words = f"pool must be None unless .* 'fast' with families, got {type(method).__name__}"
        with pytest.raises(ValueError, match=words):
            tiny(method=method)
    for pool in (256, "large", {}):
        with pytest.raises(TypeError, match="pool must be True, None or PoolSettings, got "):
            tiny(pool=pool)
    assert tiny(pool=True).pool == PoolSettings()
    assert tiny(pool=False).pool is None
    assert is_same(tiny(pool=False).clip(0), tiny(pool=None).clip(0))
    assert PoolSettings(pairs=1, renew=1).renew == 1


# Clips


def test_pooled_clips_are_consistent(tiny):
    last = {"variation": 0, "frames": 1, "method": QUICK}
    for changes in ({}, {"nuclei": None}, {"nuclei": 0}, last):
        videos = tiny(**changes)
        for index in range(2):
            check_clip(videos.clip(index))


def test_small_pool_repeats_and_divides(tiny):
    clip = tiny(pool=PoolSettings(pairs=1, renew=0), nuclei=9, size=200).clip(0)
    check_clip(clip)
    assert len(clip["masks"][0].unique()) == 10
    videos = tiny(frames=8)
    parents = torch.cat([videos.clip(index)["tracks"][:, 3] for index in range(6)])
    assert (parents > 0).sum() >= 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")
def test_pooled_clips_ignore_workers(tiny):
    alone = {int(clip["index"]): clip for clip in tiny(length=6)}
    loader = DataLoader(tiny(length=6), batch_size=None, num_workers=2)
    shared = {int(clip["index"]): clip for clip in loader}
    assert alone.keys() == shared.keys() == set(range(6))
    assert all(is_same(alone[index], shared[index]) for index in alone)
    assert not torch.equal(alone[0]["video"], tiny(seed=1, length=6).clip(0)["video"])


def test_bank_follows_the_model(tiny_generator):
    used, fresh = CellBank(SMALL, 0), CellBank(SMALL, 0)
    scene = SceneSettings(frames=FRAMES, size=(64, 72), nuclei=3)

    def render(bank, model, index):
        name, pool = ("clip", 0, index), (bank, index, 0)
        return synthesise(model, scene, QUICK, seed=0, name=name, pool=pool).video

    brighter = replace(tiny_generator, painter=LinearDenoiser(0.3))
    for index in range(2):
        render(used, brighter, index)
    for index in range(2):
        one, other = (render(bank, tiny_generator, index) for bank in (used, fresh))
        np.testing.assert_array_equal(one, other)


def test_pooled_clips_ignore_history(tiny):
    videos = tiny()
    empty = len(pickle.dumps(videos))
    clips = {index: videos.clip(index) for index in (0, 40, 3, 1000)}
    data = pickle.dumps(videos)
    assert abs(len(data) - empty) < 200  # the pairs are not sent
    for again in (videos, pickle.loads(data), tiny()):
        assert all(is_same(again.clip(index), clips[index]) for index in (40, 3, 0))


# Renewal


@pytest.mark.parametrize(("pairs", "renew"), [(5, 0.5), (7, 2.5), (3, 3), (4, 0)])
def test_slots_are_renewed_in_turn(tiny_generator, pairs, renew):
    bank, clips = CellBank(PoolSettings(pairs=pairs, renew=renew), 0), 4 * pairs + 1
    held = [
        [bank.get_pair(slot, index, 0, tiny_generator, 2) for slot in range(pairs)]
        for index in range(clips)
    ]
    new = [
        [slot for slot in range(pairs) if now[slot] is not before[slot]]
        for before, now in itertools.pairwise(held)
    ]
    counts = [len(slots) for slots in new]
    assert {math.floor(renew), math.ceil(renew)} >= set(counts)
    assert sum(counts) == pytest.approx(renew * (clips - 1), abs=1)
    times = Counter(slot for slots in new for slot in slots)
    if renew:
        # No slot is renewed twice before all others have been.
        assert max(times.values()) - min(times[slot] for slot in range(pairs)) <= 1
        slot = new[0][0] if new[0] else new[1][0]
        first, last = (held[n][slot].families[0][0].radii[0] for n in (0, -1))
        assert not np.array_equal(first, last)


def test_streams_renew_across_epochs(tiny, rendered):
    kept = tiny(length=5, pool=PoolSettings(pairs=2, renew=0))
    first = [kept.clip(index)["video"] for index in range(5)]
    kept.set_epoch(1)
    assert not any(torch.equal(kept.clip(n)["video"], video) for n, video in enumerate(first))
    assert len(rendered) == 2
    rendered.clear()
    settings = {"pool": PoolSettings(pairs=2, renew=0.25), "nuclei": 6, "size": 96}
    finite = tiny(length=4, **settings)
    for epoch, index in itertools.product(range(4), range(4)):
        finite.set_epoch(epoch)
        finite.clip(index)
    # 16 clips replace 16 * .25 pairs, in addition to the first two.
    assert 2 + 2 <= len(rendered) <= 2 + 4
    rendered.clear()
    endless = tiny(**settings)
    for epoch in (0, 1):
        endless.set_epoch(epoch)
        endless.clip(0)
        assert len(rendered) == 2 * (epoch + 1)


# Samples


def make_sample(model, pairs, number=0, **factors):
    bank = CellBank(PoolSettings(pairs=pairs, renew=0), 0)
    return BankSample(bank, model, FRAMES, number, 0, numpy_rng(number, "test"), **factors)


def show_only_pair(model, count, **factors):
    samples = [make_sample(model, 1, number, **factors) for number in range(count)]
    return [(sample, sample(10 * n + 1, None)) for n, sample in enumerate(samples)]


def render_family(sample, family):
    shown = [(cell.identity, row, (cell.first, cell.last)) for row, cell in enumerate(family)]
    return sample.render(shown, QUICK)


def test_sisters_come_from_one_pair(tiny_generator):
    # All cycles are equally long: a nucleus is no older than its own lasts.
    lives = replace(tiny_generator.lives, cycle=np.array([np.log(40), 1e-6]))
    model, ages = replace(tiny_generator, lives=lives), set()
    sample = make_sample(model, 8)
    for n in range(8):
        family = sample(100 * n + 1, None)
        sister = sample(100 * n + 51, InitialCell(family, np.zeros(2), 0.0))
        slot = sample._origins[family[0].identity].slot
        pair = sample.bank.get_pair(slot, 0, 0, model, FRAMES)
        for ours, theirs in zip((family, sister), pair.families, strict=True):
            assert [c.stages.tolist() for c in ours] == [c.stages.tolist() for c in theirs]
        assert sister[0].identity == 100 * n + 51
        assert sister[0].age == family[0].age
        ages.add(family[0].age)
    assert len(ages) > 2


def test_shown_cells_match_their_patches(tiny_generator):
    gains, sides = [], set()
    for sample, family in show_only_pair(tiny_generator, 12):
        pair = sample.bank.get_pair(0, 0, 0, tiny_generator, FRAMES)
        cell, original = family[0], pair.families[0][0]
        # Mirrored, the points of an outline have moved from x to -x.
        flipped = original.radii[:, (-np.arange(original.radii.shape[1])) % 60]
        mirrored = np.array_equal(cell.radii, flipped)
        assert mirrored != np.array_equal(cell.radii, original.radii)
        gain = cell.brightness / original.brightness
        np.testing.assert_allclose(gain, gain[0], rtol=1e-12)
        gains.append(float(gain[0]))
        sides.add(mirrored)
        ours = {}
        for group in render_family(sample, family):
            ours |= zip(
                zip(group.rows.tolist(), frames_of(group), strict=True), group.light, strict=True
            )
        assert len(ours) == sum(len(cell.stages) for cell in family)
        for group in sample.bank.render(pair, QUICK):
            keys = zip(group.rows.tolist(), frames_of(group), strict=True)
            for key, light in zip(keys, group.light, strict=True):
                if key in ours:
                    light = light.float().flip(1) if mirrored else light.float()
                    torch.testing.assert_close(ours.pop(key), gains[-1] * light)
        assert not ours
    assert sides == {True, False}
    assert 0.4 * cell_bank.GAIN < np.log(gains).std() < 2 * cell_bank.GAIN


def frames_of(group):
    return group.frames.tolist()


def test_factors_reach_outlines_and_patches(tiny_generator):
    size, brightness = 1.3, 2.0
    tone = ToneCurve(brightness, faint=0.0)
    plain = show_only_pair(tiny_generator, 2)
    varied = show_only_pair(tiny_generator, 2, size=size, tone=tone)
    for (sample, family), (other, changed) in zip(plain, varied, strict=True):
        for one, two in zip(family, changed, strict=True):
            np.testing.assert_allclose(two.radii, size * one.radii)
            np.testing.assert_allclose(two.brightness, one.brightness)
        groups = zip(render_family(sample, family), render_family(other, changed), strict=True)
        for one, two in groups:
            torch.testing.assert_close(two.zoom, one.zoom / size)
            torch.testing.assert_close(two.light, brightness * one.light)


# Videos


@pytest.mark.parametrize(("variation", "size"), [(1.0, 1.0), (0.0, 0.75), (0.0, 1.35)])
def test_light_and_labels_agree(tiny_generator, monkeypatch, variation, size):
    shapes, camera = tiny_generator.shapes, tiny_generator.camera
    angle = np.arange(shapes.mean.shape[1]) * 2 * np.pi / shapes.mean.shape[1]
    # Longer on one side of the major axis: mirrored it is another outline.
    tilted = shapes.mean * (1 + 0.35 * np.sin(angle) + 0.25 * np.sin(2 * angle))
    model = replace(
        tiny_generator, shapes=replace(shapes, mean=tilted, modes=0.1 * shapes.modes),
        camera=replace(camera, noise=0.0, field_spread=0.0, level_spread=0.0),
        painter=LinearDenoiser(spread=0.0),
    )  # fmt: skip
    init = BankSample.__init__

    def init_scaled(self, *given, **factors):
        init(self, *given, **factors | {"size": size * factors.get("size", 1.0)})

    monkeypatch.setattr(BankSample, "__init__", init_scaled)
    bank, shares = CellBank(PoolSettings(pairs=3, renew=0), 0), []
    labelled_only = {"haze": 0.0, "debris": 0.0}
    parts = asdict(Variation.make(variation)) | labelled_only
    scene = SceneSettings(frames=3, size=(96, 96), nuclei=4, variation=parts)
    for index in range(5):
        name, pool = ("clip", 0, index), (bank, index, 0)
        video = synthesise(model, scene, QUICK, seed=0, name=name, pool=pool)
        light = video.video - camera.level
        for frame in range(3):
            labelled = video.masks[frame] > 0
            lit = light[frame] > 0.3 * np.median(light[frame][labelled])
            shares.append((lit & labelled).sum() / (lit | labelled).sum())
    assert np.mean(shares) > 0.88
    assert min(shares) > 0.75


def test_bank_covers_areas_and_brightness(tiny_generator):
    lives = replace(tiny_generator.lives, stage_brightness=np.zeros((6, 2)), sister_spread=0.0)
    model, bank = replace(tiny_generator, lives=lives), CellBank(PoolSettings(pairs=20), 0)
    cells = [bank.get_pair(slot, 0, 0, model, 1).families[0][0] for slot in range(20)]
    light = [float(cell.brightness[0]) for cell in cells]
    assert light == sorted(light)
    assert np.histogram(light, np.linspace(0.1, 0.3, 6))[0].tolist() == [4] * 5
    areas = [float(compute_polygon_area(cell.radii[0])) for cell in cells]
    adult = lives.adult_area
    assert 0.3 * adult.min() < min(areas) < np.median(areas) < max(areas) < 1.6 * adult.max()
