import copy
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Numbers, batches, indices, logged
from torch.utils.data import DataLoader

from bvdm_data.datasets import stream as shared
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.sharding import SampleSplit
from bvdm_data.datasets.stream import SharedEpoch
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos

several_workers = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def shares(length, start, ranks, workers, batch_size):
    return [
        [
            SampleSplit(
                epoch=0, start=start, length=length, batch_size=batch_size,
                rank=rank, world_size=ranks, worker_id=worker, num_workers=workers,
            )
            for worker in range(workers)
        ]
        for rank in range(ranks)
    ]  # fmt: skip


def numbers(share):
    return [number for run in share.batches() for number in run]


sizes = st.integers(1, 5)


@given(st.integers(1, 60), st.integers(0, 60), sizes, sizes, sizes)
@settings(max_examples=200, deadline=None)
def test_ranks_and_workers_make_every_clip_once_and_ranks_equally_many(
    length, start, ranks, workers, batch_size
):
    start = min(start, length)
    of_ranks = [
        [number for share in of_rank for number in numbers(share)]
        for of_rank in shares(length, start, ranks, workers, batch_size)
    ]
    made = sorted(number for of_rank in of_ranks for number in of_rank)
    assert {len(of_rank) for of_rank in of_ranks} == {-(-(length - start) // ranks)}
    # The fewest that make the ranks equal are made once more.
    assert set(made) >= set(range(start, length))
    assert len(made) - (length - start) < ranks


@given(st.integers(0, 40), sizes, sizes, sizes, sizes)
@settings(max_examples=100, deadline=None)
def test_an_endless_stream_never_repeats_and_leaves_nothing_out(
    start, ranks, workers, batch_size, rounds
):
    made = []
    for of_rank in shares(None, start, ranks, workers, batch_size):
        for share in of_rank:
            runs = share.batches()
            made += [number for _ in range(rounds) for number in next(runs)]
    count = ranks * workers * batch_size * rounds
    assert sorted(made) == list(range(start, start + count))


@given(st.integers(1, 40), sizes, sizes, sizes, st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_a_share_goes_on_after_the_clips_that_were_made(length, ranks, workers, batch_size, made):
    for of_rank in shares(length, 0, ranks, workers, batch_size):
        for share in of_rank:
            rest = share.with_state({**share.to_state(), "made": min(made, len(numbers(share)))})
            assert numbers(rest) == numbers(share)[made:]
            assert rest.is_over == (not numbers(rest))


@several_workers
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_are_the_same_for_any_number_of_workers(workers):
    wanted = batches(DataLoader(Numbers(length=23), batch_size=4))
    loader = DataLoader(Numbers(length=23, batch_size=4), batch_size=4, num_workers=workers)
    assert batches(loader) == wanted
    assert len(loader) == len(wanted) == 6


@several_workers
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_without_a_known_batch_size_every_clip_comes_once(workers):
    loader = DataLoader(Numbers(length=24), batch_size=2, num_workers=workers)
    assert sorted(indices(loader)) == list(range(24))


@pytest.fixture
def tiny(tiny_model):
    """Make a data set of small clips; the keywords replace arguments."""

    def tiny(**changes):
        arguments = {"frames": 2, "size": (40, 40), "model": tiny_model, "nuclei": 1}
        return SyntheticHeLaVideos(**arguments | {"method": "procedural", **changes})

    return tiny


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_that_are_kept_hear_of_epochs_however_they_were_started(tiny, method):
    videos = tiny(length=5, batch_size=2)
    mix = MixedVideos({"a": videos, "b": tiny(seed=1)}, length=5, batch_size=2)
    # A spawned worker takes long to start.
    workers = 1 if method == "spawn" else 2
    how = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": method}
    loader = DataLoader(mix, batch_size=2, **how)
    passes = []
    for epoch in (0, 3, 3, 1):
        mix.set_epoch(epoch)
        found = [dict(zip(batch, clip, strict=True))
                 for batch in loader for clip in zip(*batch.values(), strict=True)]  # fmt: skip
        assert [int(clip["index"]) for clip in found] == list(range(5))
        for clip in found:
            wanted = mix.clip(int(clip["index"]))
            assert clip.keys() == wanted.keys()
            assert all(torch.equal(clip[key], wanted[key]) for key in clip)
        passes.append(torch.stack([clip["video"] for clip in found]))
    assert torch.equal(passes[1], passes[2])
    for one, other in [(0, 1), (0, 3), (1, 3)]:
        assert not torch.equal(passes[one], passes[other])


def test_a_loop_over_a_loader_leaves_the_global_random_states_alone(tiny):
    loader = DataLoader(tiny(length=3), num_workers=2, generator=torch.Generator())
    states = [torch.get_rng_state(), np.random.get_state()[1].copy()]  # noqa: NPY002
    state = random.getstate()
    list(loader)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == state


def held_by(thing, seen):
    """Return everything that a thing holds, directly or not, below its modules and classes."""
    if id(thing) in seen or isinstance(thing, (type, torch.Tensor, np.ndarray, str, bytes)):
        return []
    seen[id(thing)] = thing
    inner = list(getattr(thing, "__dict__", {}).values())
    if isinstance(thing, dict):
        inner += [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)):
        inner += list(thing)
    return [thing, *(deep for one in inner for deep in held_by(one, seen))]


def test_no_live_random_generator_is_stored(tiny):
    mix = MixedVideos({"a": tiny(), "b": tiny(method="fast", pool=True)})
    for index in range(4):
        mix.clip(index)
    held = held_by(mix, {})
    assert any(isinstance(thing, SyntheticHeLaVideos) for thing in held)
    live = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    assert not [thing for thing in held if isinstance(thing, live)]


def test_streams_pickle_small_also_after_clips_were_made(tiny):
    mix = MixedVideos({"a": tiny(), "b": tiny(method="fast", pool=True)})
    for index in range(4):
        mix.clip(index)
    assert len(pickle.dumps(mix)) < 8_000


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's list of pages")
def test_weights_are_mapped_from_their_file_whose_pages_processes_share(tiny, tiny_model):
    tiny()
    mapped, of_model, private = 0, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            of_model = line.endswith(str(tiny_model))
        elif of_model and name in ("Size:", "Private_Dirty:"):
            mapped += int(rest[0]) * (name == "Size:")
            private += int(rest[0]) * (name == "Private_Dirty:")
    assert mapped * 1024 >= tiny_model.stat().st_size
    assert private == 0


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_go_their_own_ways(twin):
    videos = Numbers(length=6)
    videos.set_epoch(2)
    next(iter(videos))
    other = twin(videos)
    assert other.epoch == 2
    assert videos.state_dict()["start"] == 1
    assert other.state_dict()["start"] == 0
    other.set_epoch(5)
    videos.set_epoch(4)
    assert (videos.epoch, other.epoch) == (4, 5)
    assert batches(other) == batches(videos) == [[n] for n in range(6)]
    loader = DataLoader(other, batch_size=None, num_workers=1, persistent_workers=True)
    assert {int(clip["epoch"]) for clip in loader} == {5}
    other.set_epoch(6)
    assert {int(clip["epoch"]) for clip in loader} == {6}


@several_workers
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3), (3, 2), (2, 2), (1, 0)])
def test_a_loop_resumes_with_any_number_of_workers_and_makes_no_clip_again(before, after, tmp_path):
    whole = batches(DataLoader(Numbers(length=22), batch_size=4))
    videos = Numbers(length=22, batch_size=4)
    videos.set_epoch(3)
    steps = iter(DataLoader(videos, batch_size=4, num_workers=before))
    seen = [next(steps)["index"].tolist() for _ in range(3)]
    state = videos.state_dict(consumed=12)
    assert state == {"epoch": 3, "seed": 0, "start": 12}
    resumed = Numbers(length=22, batch_size=4, log=tmp_path / "made.txt")
    resumed.load_state_dict(state)
    loader = DataLoader(resumed, batch_size=4, num_workers=after)
    assert resumed.epoch == 3
    assert seen + batches(loader) == whole
    assert logged(tmp_path / "made.txt") == list(range(12, 22))
    assert batches(loader) == whole


@several_workers
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kept", [False, True])
def test_only_the_first_pass_after_a_resume_is_short(workers, kept):
    videos = Numbers(length=10, batch_size=2)
    loader = DataLoader(
        videos, batch_size=2, num_workers=workers, persistent_workers=kept and workers > 0
    )
    whole = batches(loader)
    for start in (4, 8):
        videos.load_state_dict({"epoch": 1, "seed": 0, "start": start})
        videos.set_epoch(1)
        assert batches(loader) == whole[start // 2 :]
        assert batches(loader) == whole
        videos.set_epoch(2)
        assert batches(loader) == whole


def test_another_epoch_forgets_the_place_that_was_loaded():
    videos = Numbers(length=6)
    videos.load_state_dict({"epoch": 1, "seed": 0, "start": 4})
    videos.set_epoch(2)
    assert len(batches(videos)) == 6


def test_a_second_loop_counts_from_where_the_first_was_resumed():
    videos = Numbers(length=20, batch_size=2)
    videos.load_state_dict({"epoch": 0, "seed": 0, "start": 6})
    assert videos.state_dict(consumed=4)["start"] == 10
    steps = iter(DataLoader(videos, batch_size=2, num_workers=1))
    assert [next(steps)["index"].tolist() for _ in range(2)] == [[6, 7], [8, 9]]
    assert videos.state_dict(consumed=4)["start"] == 10
    videos.set_epoch(1)
    assert videos.state_dict(consumed=4)["start"] == 4


def test_one_process_knows_its_place_after_every_clip():
    videos = Numbers(length=5, seed=3)
    assert videos.state_dict() == {"epoch": 0, "seed": 3, "start": 0}
    for number, _ in enumerate(videos, start=1):
        state = videos.state_dict()
        assert state["start"] == number
        resumed = Numbers(length=5, seed=3)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert indices(resumed) == list(range(number, 5))
    videos.set_epoch(1)
    assert videos.state_dict() == {"epoch": 1, "seed": 3, "start": 0}


def test_a_state_far_away_in_an_endless_stream_is_reached_at_once(tmp_path):
    videos = Numbers(log=tmp_path / "made.txt")
    videos.load_state_dict({"epoch": 0, "seed": 0, "start": 10**15})
    assert int(next(iter(videos))["index"]) == 10**15
    assert logged(tmp_path / "made.txt") == [10**15]


def test_ranks_resume_in_another_number():
    seen = []
    for rank in range(3):
        videos = Numbers(length=20, batch_size=2, shard=(rank, 3))
        seen += indices(DataLoader(videos, batch_size=2))[:4]
        state = videos.state_dict(consumed=4)
        assert state == {"epoch": 0, "seed": 0, "start": 12}
    for rank in range(2):
        videos = Numbers(length=20, shard=(rank, 2))
        videos.load_state_dict(state)
        seen += indices(videos)
    assert sorted(seen) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_end_of_an_epoch_leaves_nothing_and_the_next_one_is_whole(workers):
    videos = Numbers(length=6, batch_size=2)
    loader = DataLoader(videos, batch_size=2, num_workers=workers)
    list(loader)
    state = videos.state_dict(consumed=6)
    videos.load_state_dict(state)
    assert batches(loader) == []
    assert len(batches(loader)) == 3


def test_state_dict_refuses_to_guess_what_workers_have_handed_over():
    videos = Numbers(length=8, batch_size=2)
    list(DataLoader(videos, batch_size=2, num_workers=1))
    with pytest.raises(RuntimeError, match=r"consumed must be given.*state_dict\(consumed=steps"):
        videos.state_dict()
    videos.set_epoch(1)
    assert videos.state_dict()["start"] == 0
    list(DataLoader(videos, batch_size=2, num_workers=1))
    clips = iter(videos)
    assert videos.state_dict()["start"] == 0
    list(clips)
    assert videos.state_dict()["start"] == 8
    iter(videos)
    assert videos.state_dict()["start"] == 0


@pytest.mark.parametrize(
    ("batch_size", "consumed", "words"),
    [
        (None, 4, "consumed needs to know the batches: give the data set the batch_size"),
        (4, 6, "in whole batches of batch_size=4, got 6; is that the batch_size of the loader"),
        (4, 12, "at most the 10 clips of the loop, got 12"),
        (4, -4, "consumed must be 0 or more, got -4"),
    ],
)
def test_state_dict_refuses_counts_that_cannot_be(batch_size, consumed, words):
    with pytest.raises(ValueError, match=words):
        Numbers(length=10, batch_size=batch_size).state_dict(consumed=consumed)


def test_the_last_batch_may_be_smaller():
    assert Numbers(length=10, batch_size=4).state_dict(consumed=10)["start"] == 10


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({"epoch": 0, "seed": 1, "start": 0}, ValueError, "seed=0, got seed=1"),
        ({"epoch": 0, "seed": 0, "start": 11}, ValueError, "length=10, got start=11"),
        ({"epoch": 0, "seed": 0, "start": -1}, ValueError, "start must be 0 or more, got -1"),
        ({"epoch": 0, "seed": 0, "start": 1.5}, TypeError, "start must be a whole number"),
        ({"epoch": 0, "seed": 0}, TypeError, "must be what state_dict"),
        ([1, 2], TypeError, r"must be what state_dict\(\) has given, got \[1, 2\]"),
        (
            {"seed": 0, **shares(10, 0, 1, 2, 1)[0][1].to_state()},
            ValueError,
            "must not be from a worker",
        ),
    ],
)
def test_load_state_dict_refuses_what_is_no_state_of_this_stream(state, error, words):
    videos = Numbers(length=10)
    with pytest.raises(error, match=words):
        videos.load_state_dict(state)
    assert videos.state_dict() == {"epoch": 0, "seed": 0, "start": 0}


def test_a_share_refuses_the_state_of_another_one():
    (first, second), *_ = shares(10, 0, 1, 2, 1)
    with pytest.raises(ValueError, match=r"worker_id=0, this .* has worker_id=1.*consumed=\.\.\."):
        second.with_state(first.to_state())


def test_an_epoch_that_changes_in_the_middle_of_a_pass_is_an_error():
    videos = Numbers(length=4)
    clips = iter(videos)
    next(clips)
    videos.set_epoch(1)
    with pytest.raises(RuntimeError, match=r"set_epoch\(1\) was called in the middle .* epoch 0"):
        next(clips)
    assert {int(clip["epoch"]) for clip in videos} == {1}


def test_the_environment_says_the_shard_where_there_is_no_process_group(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert Numbers(length=7).shard == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    videos = Numbers(length=7)
    assert videos.shard == (1, 3)
    assert indices(videos) == [1, 4, 0]
    assert len(videos) == 3
    assert Numbers(length=7, shard=(0, 1)).shard == (0, 1)


def test_a_copy_does_not_keep_the_shard_of_the_original(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    packed = pickle.dumps(Numbers(length=4))
    monkeypatch.delenv("RANK")
    videos = pickle.loads(packed)
    assert videos.shard == (0, 1)
    assert indices(DataLoader(videos, batch_size=None, num_workers=1)) == [0, 1, 2, 3]


def test_a_worker_chooses_no_epoch_for_the_others(monkeypatch):
    epoch = SharedEpoch()
    epoch.set(3)
    monkeypatch.setattr(shared, "get_worker_info", lambda: "a worker")
    epoch.set(2)
    assert (epoch.number, epoch.requested) == (2, 3)


@pytest.mark.parametrize(("rank", "world"), [("3", "3"), ("one", "3"), ("0", "0")])
def test_an_environment_that_makes_no_sense_is_an_error(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ValueError, match=f"got RANK={rank}, WORLD_SIZE={world}; .*give shard="):
        Numbers(length=7).shard  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"shard": (2, 2)}, ValueError, r"0 <= rank < number of ranks, got \(2, 2\)"),
        ({"shard": (-1, 2)}, ValueError, r"got \(-1, 2\)"),
        ({"shard": 3}, TypeError, r"shard must be a pair \(rank, number of ranks\), got 3"),
        ({"shard": (0, 1.5)}, TypeError, "shard must be a whole number, got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be a whole number, got 2.0"),
    ],
)
def test_streams_refuse_shards_and_batch_sizes_that_cannot_be(arguments, error, words):
    with pytest.raises(error, match=words):
        Numbers(**arguments)
