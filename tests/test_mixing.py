"""Which clip of which source each clip of a mix is."""

import copy
import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from mixes import FakeVideos, FiniteVideos, by_quotas, later_real, listed, own_numbers, picked

from bvdm_data.datasets import mixture as mixing_draws
from bvdm_data.datasets.mixed import BLOCK, MixedVideos

THREE = {"a": 5, "b": 0.3, "c": 2}


def three(lengths=(None, None, None), **arguments):
    sources = {
        name: FakeVideos() if length is None else listed(length)
        for name, length in zip("abc", lengths, strict=True)
    }
    return MixedVideos(sources, **{"weights": THREE} | arguments)


def constant(epoch, index):
    return THREE


# By weight


def test_every_block_holds_the_shares_of_the_weights_but_for_rounding():
    mix = three()
    for block in (0, 1, 9, 10**9):
        numbers = range(block * BLOCK, (block + 1) * BLOCK)
        counts = Counter(name for name, _ in picked(mix, numbers))
        for name, weight in THREE.items():
            assert abs(counts[name] - BLOCK * weight / 7.3) < 3


def test_the_sources_of_a_block_are_in_random_order():
    names = "".join(name for name, _ in picked(three(weights=None), range(3 * BLOCK)))
    # Of two neighbours, 4 of 9 are a given pair of different ones or a pair of two given ones;
    # four standard errors.
    for pair in ("aa", "ab", "ca"):
        share = sum(names[place : place + 2] == pair for place in range(len(names) - 1))
        assert share / len(names) == pytest.approx(1 / 9, abs=4 * (8 / 81 / len(names)) ** 0.5)
    assert names[:BLOCK] != names[BLOCK : 2 * BLOCK]


def test_a_source_that_is_rarer_than_blocks_is_shown_as_often_as_its_weight_says():
    mix = three(weights={"a": 1, "b": 5000, "c": 0})
    shown = 0
    for epoch in range(30):
        mix.set_epoch(epoch)
        shown += len(own_numbers(picked(mix, range(BLOCK)), "a"))
    mean = 30 * BLOCK / 5001
    assert shown == pytest.approx(mean, abs=4 * mean**0.5)
    assert shown > 0


@pytest.mark.parametrize("number", [10**7, 10**15])
def test_a_clip_far_away_is_found_without_drawing_those_ahead(number, monkeypatch):
    draws = []
    made = mixing_draws.numpy_rng

    def noted(*path):
        draws.append(path)
        return made(*path)

    monkeypatch.setattr(mixing_draws, "numpy_rng", noted)
    mix = three(length=10**16)
    mix.load_state_dict({"epoch": 2, "seed": 0, "start": number})
    numbers = {"a": [], "b": [], "c": []}
    for place in range(number, number + 300):
        source, own = mix._find_order(mix.epoch).locate(place)
        numbers["abc"[source]].append(own)
    assert len(draws) < 8
    for name, own in numbers.items():
        assert own == list(range(own[0], own[0] + len(own)))
        assert own[0] == pytest.approx(number * THREE[name] / 7.3, abs=BLOCK)


# What happens where a source ends

WAYS = pytest.mark.parametrize("weights", [THREE, constant], ids=["fixed", "schedule"])


@WAYS
def test_restart_begins_a_list_anew_and_lets_a_source_with_clip_go_on(weights):
    sources = {"a": listed(5), "b": FiniteVideos(clips=5), "c": FakeVideos()}
    mix = MixedVideos(sources, weights=weights, length=2 * BLOCK + 5)
    assert len(mix) == 2 * BLOCK + 5
    found = picked(mix, range(len(mix)))
    assert own_numbers(found, "a") == [n % 5 for n in range(len(own_numbers(found, "a")))]
    for name in "bc":
        assert own_numbers(found, name) == list(range(len(own_numbers(found, name))))
        assert len(own_numbers(found, name)) > 5


@WAYS
@pytest.mark.parametrize("lengths", [(7, None, None), (None, None, 700), (1000, 3, 5000)])
def test_stop_ends_with_the_last_clip_ahead_of_one_that_is_not_there(weights, lengths):
    mix = three(lengths, weights=weights, at_end="stop", length=9000)
    endless = picked(three(weights=weights, length=9000), range(9000))
    ends = {name: length for name, length in zip("abc", lengths, strict=True) if length}
    wanted = next(
        place for place, (name, own) in enumerate(endless) if own == ends.get(name, 10**9)
    )
    assert len(mix) == mix.length_in(0) == wanted
    assert [picked(mix, [int(clip["index"])])[0] for clip in mix] == endless[:wanted]


@WAYS
@pytest.mark.parametrize("lengths", [(3, 50, 2000), (2000, 1, 700), (4, 4, 4), (2500, 300, 20)])
def test_drop_shows_every_clip_of_every_source_once_in_its_order(weights, lengths):
    mix = three(lengths, weights=weights, at_end="drop", length=10_000)
    assert len(mix) == sum(lengths)
    found = picked(mix, range(len(mix)))
    for name, length in zip("abc", lengths, strict=True):
        assert own_numbers(found, name) == list(range(length))
    with pytest.raises(IndexError, match=r"below the end of the mix.*got \d+; use at_end='restart"):
        mix.clip(len(mix))
    assert len(three(lengths, weights=weights, at_end="drop", length=10)) == 10


@WAYS
def test_drop_carries_on_with_the_shares_of_the_other_weights(weights):
    mix = three((60, None, None), weights=weights, at_end="drop", length=8000)
    found = picked(mix, range(6 * BLOCK))
    assert own_numbers(found, "a") == list(range(60))
    names = Counter(name for name, _ in found[BLOCK:])
    share = names["b"] / (5 * BLOCK)
    assert share == pytest.approx(0.3 / 2.3, abs=4 * (0.3 * 2 / 2.3**2 / (5 * BLOCK)) ** 0.5)


def test_a_mix_without_length_ends_where_its_sources_do_or_never():
    assert len(three((4, 5, 6), at_end="drop")) == 15
    for arguments in ({"at_end": "drop"}, {"at_end": "stop", "weights": {"a": 0, "b": 1, "c": 1}}):
        with pytest.raises(TypeError, match=r"endless and has no len\(\)"):
            len(three((4, None, None), **arguments))


def test_a_dropping_mix_within_a_mix_begins_anew():
    inner = three((1, 2, 3), at_end="drop")
    outer = MixedVideos({"inner": inner})
    assert [own for _, own in picked(outer, range(12))] == 2 * [
        own for _, own in picked(inner, range(6))
    ]


# A schedule


def test_a_schedule_by_clip_and_by_epoch_changes_the_sources_at_that_clip():
    mix = MixedVideos({"real": FakeVideos(), "synthetic": FakeVideos()}, weights=later_real)
    found = picked(mix, range(2000))
    assert found == [("synthetic", n) for n in range(1500)] + [("real", n) for n in range(500)]
    mix.set_epoch(1)
    assert picked(mix, range(100)) == [("real", n) for n in range(100)]
    assert mix.weights is later_real


def test_a_schedule_draws_as_often_as_its_weights_say():
    def ramp(epoch, index):
        return {"a": index / 8000, "b": 1 - index / 8000, "c": 0}

    names = [name for name, _ in picked(three(weights=ramp, length=8001), range(8000))]
    assert "c" not in names
    for part in range(4):
        share = names[2000 * part : 2000 * (part + 1)].count("a") / 2000
        mean = (2 * part + 1) / 8
        assert share == pytest.approx(mean, abs=4 * (mean * (1 - mean) / 2000) ** 0.5)


def test_a_scheduled_clip_does_not_depend_on_what_was_asked_before():
    numbers = [3 * BLOCK + 5, 0, 2 * BLOCK, 3 * BLOCK + 5]
    one_by_one = [picked(three(weights=constant), [number])[0] for number in numbers]
    assert picked(three(weights=constant), numbers) == one_by_one


def test_a_schedule_is_asked_for_clips_of_the_epoch_alone():
    asked = set()

    def noted(epoch, index):
        asked.add((epoch, index))
        return THREE

    mix = three(weights=noted, length=1500)
    mix.set_epoch(3)
    list(mix)
    assert asked == {(0, 0), *((3, number) for number in range(1500))}


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int8, Fraction])
def test_weights_may_be_numbers_of_any_kind(kind):
    weights = {"a": kind(1), "b": kind(2), "c": kind(5)}
    mixes = three(weights=weights), three(weights=lambda epoch, index: weights)
    plain = {"a": 1, "b": 2, "c": 5}
    others = three(weights=plain), three(weights=lambda epoch, index: plain)
    for mix, other in zip(mixes, others, strict=True):
        assert picked(mix, range(20)) == picked(other, range(20))


def test_weights_whose_sum_is_no_number_are_refused():
    with pytest.raises(ValueError, match=r"weights must have a finite sum, got .*smaller ones"):
        three(weights={"a": 1e308, "b": 1e308, "c": 1})


def test_a_schedule_that_says_no_weights_is_refused_at_the_clip():
    def broken(epoch, index):
        return THREE if index < 1000 else {"a": 1}

    with pytest.raises(ValueError, match=r"weights\(0, 1000\) must have the names of the sources"):
        three(weights=broken).clip(0)
    with pytest.raises(TypeError, match=r"weights\(0, 0\) must map the names .*got None"):
        three(weights=lambda epoch, index: None)


@pytest.mark.parametrize(
    ("later", "error", "words"),
    [
        (None, TypeError, "must map the names of the sources"),
        ({**THREE, "d": 1}, ValueError, r"must have the names .*'d'\]"),
        ({**THREE, "a": "3"}, TypeError, r"must be a number, got '3'"),
        ({**THREE, "a": -1}, ValueError, "must be finite and at least 0, got -1"),
        ({**THREE, "a": float("nan")}, ValueError, "must be finite and at least 0, got nan"),
        (dict.fromkeys("abc", 0), ValueError, "must not all be 0"),
        (dict.fromkeys("abc", 1e308), ValueError, "must have a finite sum"),
    ],
)
def test_a_schedule_whose_later_weights_are_wrong_names_the_clip(later, error, words):
    mix = three(weights=lambda epoch, index: THREE if index < 1030 else later)
    assert mix.clip(BLOCK - 1)["member"] < 3
    with pytest.raises(error, match=rf"weights\(0, 1030\).* {words}"):
        mix.clip(1024)


def test_a_schedule_may_return_any_real_numbers_in_any_order():
    exact = three(weights=lambda epoch, index: {"c": Fraction(2), "b": 0.3, "a": np.float32(5)})
    assert picked(exact, range(50)) == picked(three(weights=constant), range(50))


def test_a_schedule_is_pickled_where_it_is_known_by_name_and_refused_else():
    sources = {"real": FakeVideos(), "synthetic": FakeVideos()}
    mix = MixedVideos(sources, weights=later_real, length=1600)
    again = pickle.loads(pickle.dumps(mix))
    assert picked(again, range(1490, 1510)) == picked(mix, range(1490, 1510))
    local = MixedVideos(sources, weights=lambda epoch, index: later_real(epoch, index))
    with pytest.raises(TypeError, match=r"weights must be a function that can be pickled.*def at"):
        pickle.dumps(local)
    assert picked(copy.deepcopy(local), range(9)) == picked(local, range(9))


def test_a_schedule_needs_a_length_where_sources_may_end():
    with pytest.raises(ValueError, match=r"length must be given with at_end='stop' and weights"):
        three(weights=constant, at_end="stop")


# Another order in every pass


def test_shuffle_shows_every_clip_of_a_pass_once_in_another_order():
    mix = MixedVideos(
        {"a": listed(40), "b": FiniteVideos(clips=40), "c": FakeVideos()}, shuffle=True
    )
    passes = []
    for epoch in (0, 1):
        mix.set_epoch(epoch)
        found = picked(mix, range(400))
        for name, later in (("a", 0), ("b", 40)):
            own = own_numbers(found, name)
            assert sorted(own[:40]) == list(range(40))
            assert sorted(own[40:80]) == list(range(later, later + 40))
            passes += [own[:40], [number - later for number in own[40:80]]]
        assert own_numbers(found, "c") == list(range(len(own_numbers(found, "c"))))
    assert len({tuple(one) for one in (*passes, range(40))}) == 9


def test_shuffle_refuses_a_source_of_too_many_clips_and_what_is_no_switch():
    with pytest.raises(ValueError, match=r"shuffle must be False .* 1000000 clips, got 1000001 of"):
        MixedVideos({"a": FiniteVideos(clips=1_000_001)}, shuffle=True)
    with pytest.raises(TypeError, match="shuffle must be True or False, got 1"):
        MixedVideos({"a": listed(3)}, shuffle=1)


# By quotas


def test_every_batch_holds_the_quotas_in_an_order_of_its_own():
    mix = by_quotas()
    batches = [picked(mix, range(first, first + 6)) for first in range(0, 30, 6)]
    names = [[name for name, _ in batch] for batch in batches]
    assert all(Counter(one) == {"real": 1, "synthetic": 3, "more": 2} for one in names)
    assert len({tuple(one) for one in names}) > 1
    found = [clip for batch in batches for clip in batch]
    assert own_numbers(found, "real") == list(range(5))
    assert own_numbers(found, "synthetic") == list(range(15))
    fixed = by_quotas(order="fixed")
    assert [name for name, _ in picked(fixed, range(6))] == [
        "real", "synthetic", "synthetic", "synthetic", "more", "more"
    ]  # fmt: skip


def test_quotas_stop_with_the_last_whole_batch_or_go_on():
    assert len(by_quotas(at_end="stop")) == 12  # five clips, two of them in each batch
    assert len(by_quotas(at_end="stop", length=None)) == 12
    assert own_numbers(picked(by_quotas(), range(54)), "real") == [*range(7), 0, 1]


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
        (
            {"quotas": {"real": -1, "synthetic": 1, "more": 1}},
            r"quotas\['real'\] must be 0 or more, got -1",
        ),
        ({"quotas": {"real": 0, "synthetic": 0, "more": 0}}, "quotas must not all be 0"),
        (
            {"quotas": {"real": 8, "synthetic": 1, "more": 1}, "at_end": "stop", "length": None},
            "quotas must not be above the clips of a source with at_end='stop'",
        ),
        ({"quotas": None, "order": "fixed"}, "order must be left out without quotas, got 'fixed'"),
    ],
)
def test_quotas_refuse_what_cannot_be_together(arguments, words):
    with pytest.raises(ValueError, match=words):
        by_quotas(**arguments)


def test_quotas_refuse_shares():
    with pytest.raises(TypeError, match=r"quotas\['more'\] must be a whole number, got 1.5"):
        by_quotas(quotas={"more": 1.5, "real": 1, "synthetic": 1})


def test_no_draw_touches_the_global_random_states():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    by_quotas().clip(20)
    three(weights=constant).clip(20)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
