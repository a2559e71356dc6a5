"""Which clip of which source each clip of a mix is."""

import copy
import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from bvdm_data.datasets import mixture
from bvdm_data.datasets.mixed import BLOCK, MixedVideos
from tests.helpers.mixes import (
    FakeVideos,
    FiniteVideos,
    by_quotas,
    later_real,
    locate,
    make_list,
    own_numbers,
)  # fmt: skip

WEIGHTS = {"a": 5, "b": 0.3, "c": 2}


def make_mix(lengths=(None, None, None), **arguments):
    sources = {
        name: FakeVideos() if length is None else make_list(length)
        for name, length in zip("abc", lengths, strict=True)
    }
    return MixedVideos(sources, **{"weights": WEIGHTS} | arguments)


def constant(epoch, index):
    return WEIGHTS


# By weight


def test_blocks_hold_shares_of_weights():
    mix = make_mix()
    assert mix.weights == pytest.approx({name: one / 7.3 for name, one in WEIGHTS.items()})
    for block in (0, 1, 9, 10**9):
        numbers = range(block * BLOCK, (block + 1) * BLOCK)
        counts = Counter(name for name, _ in locate(mix, numbers))
        for name, weight in WEIGHTS.items():
            assert abs(counts[name] - BLOCK * weight / 7.3) < 3


def test_sources_of_blocks_are_shuffled():
    names = "".join(name for name, _ in locate(make_mix(weights=None), range(3 * BLOCK)))
    # Of two neighbours, 1 of 9 is a given pair; four standard errors.
    for pair in ("aa", "ab", "ca"):
        share = sum(names[place : place + 2] == pair for place in range(len(names) - 1))
        assert share / len(names) == pytest.approx(1 / 9, abs=4 * (8 / 81 / len(names)) ** 0.5)
    assert names[:BLOCK] != names[BLOCK : 2 * BLOCK]


def test_rare_source_keeps_its_share():
    mix = make_mix(weights={"a": 1, "b": 5000, "c": 0})
    shown = 0
    for epoch in range(30):
        order = mix._find_order(epoch)
        shown += sum(order.locate(number)[0] == 0 for number in range(BLOCK))
    mean = 30 * BLOCK / 5001
    assert shown == pytest.approx(mean, abs=4 * mean**0.5)
    assert shown > 0


@pytest.mark.parametrize("number", [10**7, 10**15])
def test_far_clip_is_found_directly(number, monkeypatch):
    draws = []
    make_rng = mixture.numpy_rng

    def record(*path):
        draws.append(path)
        return make_rng(*path)

    monkeypatch.setattr(mixture, "numpy_rng", record)
    mix = make_mix(length=10**16)
    mix.load_state_dict({"epoch": 2, "seed": 0, "start": number})
    numbers = {"a": [], "b": [], "c": []}
    for place in range(number, number + 300):
        source, own = mix._find_order(mix.epoch).locate(place)
        numbers["abc"[source]].append(own)
    assert len(draws) < 8
    for name, own in numbers.items():
        assert own == list(range(own[0], own[0] + len(own)))
        assert own[0] == pytest.approx(number * WEIGHTS[name] / 7.3, abs=BLOCK)


# What happens where a source ends

WAYS = pytest.mark.parametrize("weights", [WEIGHTS, constant], ids=["fixed", "schedule"])


@WAYS
def test_restart_repeats_lists_only(weights):
    sources = {"a": make_list(5), "b": FiniteVideos(clips=5), "c": FakeVideos()}
    mix = MixedVideos(sources, weights=weights, length=2 * BLOCK + 5)
    assert len(mix) == 2 * BLOCK + 5
    located = locate(mix, range(len(mix)))
    assert own_numbers(located, "a") == [n % 5 for n in range(len(own_numbers(located, "a")))]
    for name in "bc":
        assert own_numbers(located, name) == list(range(len(own_numbers(located, name))))
        assert len(own_numbers(located, name)) > 5


@WAYS
@pytest.mark.parametrize("lengths", [(7, None, None), (None, None, 700), (1000, 3, 5000)])
def test_stop_ends_ahead_of_missing_clip(weights, lengths):
    mix = make_mix(lengths, weights=weights, at_end="stop", length=3000)
    endless = locate(make_mix(weights=weights, length=3000), range(3000))
    ends = {name: length for name, length in zip("abc", lengths, strict=True) if length}
    expected = next(
        place for place, (name, own) in enumerate(endless) if own == ends.get(name, 10**9)
    )
    assert len(mix) == mix.length_in(0) == expected
    order = mix._find_order(0)
    located = [order.locate(int(clip["index"])) for clip in mix]
    assert [("abc"[source], own) for source, own in located] == endless[:expected]


@WAYS
@pytest.mark.parametrize("lengths", [(3, 50, 2000), (4, 4, 4), (2500, 300, 20)])
def test_drop_shows_every_clip_once(weights, lengths):
    mix = make_mix(lengths, weights=weights, at_end="drop", length=10_000)
    assert len(mix) == sum(lengths)
    located = [mix._find_order(0).locate(number) for number in range(len(mix))]
    for source, length in enumerate(lengths):
        assert own_numbers(located, source) == list(range(length))
    with pytest.raises(IndexError, match=r"below the end of the mix.*got \d+; use at_end='restart"):
        mix.clip(len(mix))
    assert len(make_mix(lengths, weights=weights, at_end="drop", length=10)) == 10


@WAYS
def test_drop_keeps_shares_of_others(weights):
    mix = make_mix((60, None, None), weights=weights, at_end="drop", length=8000)
    located = locate(mix, range(6 * BLOCK))
    assert own_numbers(located, "a") == list(range(60))
    share = sum(name == "b" for name, _ in located[BLOCK:]) / (5 * BLOCK)
    assert share == pytest.approx(0.3 / 2.3, abs=4 * (0.3 * 2 / 2.3**2 / (5 * BLOCK)) ** 0.5)


def test_mix_ends_where_sources_do():
    inner = make_mix((4, 5, 6), at_end="drop")
    assert len(inner) == 15
    for arguments in ({"at_end": "drop"}, {"at_end": "stop", "weights": {"a": 0, "b": 1, "c": 1}}):
        with pytest.raises(TypeError, match=r"endless and has no len\(\)"):
            len(make_mix((4, None, None), **arguments))
    outer = MixedVideos({"inner": inner})
    own = [own for _, own in locate(inner, range(15))]
    assert [own for _, own in locate(outer, range(30))] == 2 * own


# A schedule


def test_schedule_switches_sources_at_clip():
    mix = MixedVideos({"real": FakeVideos(), "synthetic": FakeVideos()}, weights=later_real)
    located = locate(mix, range(2000))
    assert located == [("synthetic", n) for n in range(1500)] + [("real", n) for n in range(500)]
    mix.set_epoch(1)
    assert locate(mix, range(100)) == [("real", n) for n in range(100)]
    assert mix.weights is later_real


def test_schedule_draws_by_its_weights():
    def ramp(epoch, index):
        return {"a": index / 8000, "b": 1 - index / 8000, "c": 0}

    names = [name for name, _ in locate(make_mix(weights=ramp, length=8001), range(8000))]
    assert "c" not in names
    for part in range(4):
        share = names[2000 * part : 2000 * (part + 1)].count("a") / 2000
        mean = (2 * part + 1) / 8
        assert share == pytest.approx(mean, abs=4 * (mean * (1 - mean) / 2000) ** 0.5)


@WAYS
def test_clip_depends_on_number_alone(weights):
    numbers = [3 * BLOCK + 5, 0, 2 * BLOCK, 3 * BLOCK + 5]
    one_by_one = [locate(make_mix(weights=weights), [number])[0] for number in numbers]
    assert locate(make_mix(weights=weights), numbers) == one_by_one


def test_schedule_is_called_within_epoch():
    asked = set()

    def record(epoch, index):
        asked.add((epoch, index))
        return WEIGHTS

    mix = make_mix(weights=record, length=1500)
    mix.set_epoch(3)
    list(mix)
    assert asked == {(0, 0), *((3, number) for number in range(1500))}


def test_weights_take_any_real_number():
    plain = {"a": 1, "b": 2, "c": 5}
    for kind in (np.float16, np.int8, Fraction):
        weights = {name: kind(plain[name]) for name in "cab"}
        for given, other in (
            (weights, plain),
            (lambda epoch, index, one=weights: one, lambda epoch, index: plain),
        ):
            mixes = make_mix(weights=given), make_mix(weights=other)
            assert locate(mixes[0], range(20)) == locate(mixes[1], range(20))


@pytest.mark.parametrize(
    ("later", "error", "words"),
    [
        (None, TypeError, "must map the names of the sources"),
        ({**WEIGHTS, "d": 1}, ValueError, r"must have the names .*'d'\]"),
        ({**WEIGHTS, "a": "3"}, TypeError, r"must be a number, got '3'"),
        ({**WEIGHTS, "a": -1}, ValueError, "must be finite and at least 0, got -1"),
        ({**WEIGHTS, "a": float("nan")}, ValueError, "must be finite and at least 0, got nan"),
        (dict.fromkeys("abc", 0), ValueError, "must not all be 0"),
        (dict.fromkeys("abc", 1e308), ValueError, "must have a finite sum"),
    ],
)
def test_wrong_scheduled_weights_name_clip(later, error, words):
    mix = make_mix(weights=lambda epoch, index: WEIGHTS if index < 1030 else later)
    assert mix.clip(BLOCK - 1)["member"] < 3
    with pytest.raises(error, match=rf"weights\(0, 1030\).* {words}"):
        mix.clip(1024)
    with pytest.raises(error, match=rf"weights\(0, 0\).* {words}"):
        make_mix(weights=lambda epoch, index: later)


def test_schedule_pickles_by_name_only():
    sources = {"real": FakeVideos(), "synthetic": FakeVideos()}
    mix = MixedVideos(sources, weights=later_real, length=1600)
    again = pickle.loads(pickle.dumps(mix))
    assert locate(again, range(1490, 1510)) == locate(mix, range(1490, 1510))
    local = MixedVideos(sources, weights=lambda epoch, index: later_real(epoch, index))
    with pytest.raises(TypeError, match=r"weights must be a function that can be pickled.*def at"):
        pickle.dumps(local)
    assert locate(copy.deepcopy(local), range(9)) == locate(local, range(9))


def test_schedule_with_ends_needs_length():
    with pytest.raises(ValueError, match=r"length must be given with at_end='stop' and weights"):
        make_mix(weights=constant, at_end="stop")


# Another order in every pass


def test_shuffle_reorders_every_pass():
    sources = {"a": make_list(40), "b": FiniteVideos(clips=40), "c": FakeVideos()}
    mix = MixedVideos(sources, shuffle=True)
    passes = []
    for epoch in (0, 1):
        mix.set_epoch(epoch)
        located = locate(mix, range(400))
        for name, later in (("a", 0), ("b", 40)):
            own = own_numbers(located, name)
            assert sorted(own[:40]) == list(range(40))
            assert sorted(own[40:80]) == list(range(later, later + 40))
            passes += [own[:40], [number - later for number in own[40:80]]]
        assert own_numbers(located, "c") == list(range(len(own_numbers(located, "c"))))
    assert len({tuple(one) for one in (*passes, range(40))}) == 9
    with pytest.raises(ValueError, match=r"shuffle must be False .* 1000000 clips, got 1000001 of"):
        MixedVideos({"a": FiniteVideos(clips=1_000_001)}, shuffle=True)
    with pytest.raises(TypeError, match="shuffle must be True or False, got 1"):
        MixedVideos({"a": make_list(3)}, shuffle=1)


# By quotas


def test_batches_hold_quotas_in_any_order():
    mix = by_quotas()
    batches = [locate(mix, range(first, first + 6)) for first in range(0, 30, 6)]
    names = [[name for name, _ in batch] for batch in batches]
    assert all(Counter(one) == {"real": 1, "synthetic": 3, "more": 2} for one in names)
    assert len({tuple(one) for one in names}) > 1
    located = [clip for batch in batches for clip in batch]
    assert own_numbers(located, "real") == list(range(5))
    assert own_numbers(located, "synthetic") == list(range(15))
    fixed = [name for name, _ in locate(by_quotas(order="fixed"), range(6))]
    assert fixed == ["real", *3 * ["synthetic"], *2 * ["more"]]


def test_quotas_stop_or_restart():
    assert len(by_quotas(at_end="stop")) == 12  # five clips, two of them in each batch
    assert len(by_quotas(at_end="stop", length=None)) == 12
    assert own_numbers(locate(by_quotas(), range(54)), "real") == [*range(7), 0, 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": {"real": 1}}, "weights must be None where quotas are given"),
        ({"at_end": "drop"}, r"at_end must be 'restart' or 'stop' with quotas, got 'drop'"),
        ({"at_end": "end"}, r"at_end must be one of 'restart', 'stop', 'drop', got 'end'"),
        ({"order": "random"}, r"order must be one of 'shuffled', 'fixed', got 'random'"),
        ({"batch_size": 9}, "batch_size must be a multiple of 6, the sum .*, got 9; give 6"),
        ({"length": 20}, "length must be a multiple of 6, the sum of the quotas, got 20; give 18"),
        ({"quotas": {"real": 1}}, r"quotas must have the names of the sources.*got \['real'\]"),
        ({"quotas": {"real": -1, "synthetic": 1, "more": 1}}, r"\['real'\] must be 0 or more, got"),
        ({"quotas": {"real": 0, "synthetic": 0, "more": 0}}, "quotas must not all be 0"),
        (
            {"quotas": {"real": 8, "synthetic": 1, "more": 1}, "at_end": "stop", "length": None},
            "quotas must not be above the clips of a source with at_end='stop'",
        ),
        ({"quotas": None, "order": "fixed"}, "order must be left out without quotas, got 'fixed'"),
    ],
)
def test_impossible_quotas_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        by_quotas(**arguments)
    with pytest.raises(TypeError, match=r"quotas\['more'\] must be a whole number, got 1.5"):
        by_quotas(quotas={"more": 1.5, "real": 1, "synthetic": 1})
