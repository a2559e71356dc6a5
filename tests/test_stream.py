import copy
import inspect
import itertools
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.transforms import v2

from bvdm_data.datasets import sharding, stream
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.sharding import SampleSplit, SharedEpoch
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from tests.helpers import streams
from tests.helpers.streams import (
    SETTINGS,
    Numbers,
    batches,
    digest,
    indices,
    logged,
    read_random_states,
    small_clips,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # torchdata calls what this PyTorch has deprecated.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
    pytest.mark.usefixtures("short_wait"),
]
PROGRAM = Path(streams.__file__)


def take(loader, count):
    steps = iter(loader)
    return [next(steps)["index"].tolist() for _ in range(count)]


def split_all(length, start, ranks, workers, batch_size):
    return [
        [
            SampleSplit(
                epoch=0, start=start, length=length, batch_size=batch_size,
                rank=rank, ranks=ranks, worker=worker, workers=workers,
            )
            for worker in range(workers)
        ]
        for rank in range(ranks)
    ]  # fmt: skip


def numbers(split):
    return [number for batch in split.batches() for number in batch]


sizes = st.integers(1, 5)


@given(st.integers(1, 60), st.integers(0, 60), sizes, sizes, sizes, st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_splits_cover_every_clip_once(length, start, ranks, workers, batch_size, made):
    start, of_ranks = min(start, length), []
    for of_rank in split_all(length, start, ranks, workers, batch_size):
        of_ranks.append([number for split in of_rank for number in numbers(split)])
        for split in of_rank:
            rest = split.with_state({**split.to_state(), "made": min(made, len(numbers(split)))})
            assert numbers(rest) == numbers(split)[made:]
            assert rest.is_over == (not numbers(rest))
    clips = sorted(number for of_rank in of_ranks for number in of_rank)
    assert {len(of_rank) for of_rank in of_ranks} == {-(-(length - start) // ranks)}
    # The fewest that make the ranks equal are made once more.
    assert set(clips) >= set(range(start, length))
    assert len(clips) - (length - start) < ranks


@given(st.integers(0, 40), sizes, sizes, sizes, sizes)
@settings(max_examples=50, deadline=None)
def test_endless_splits_never_repeat(start, ranks, workers, batch_size, rounds):
    made = []
    for of_rank in split_all(None, start, ranks, workers, batch_size):
        for split in of_rank:
            runs = split.batches()
            made += [number for _ in range(rounds) for number in next(runs)]
    count = ranks * workers * batch_size * rounds
    assert sorted(made) == list(range(start, start + count))


def test_batches_do_not_depend_on_workers():
    wanted = batches(DataLoader(Numbers(length=23), batch_size=4))
    for workers in (1, 3):
        loader = DataLoader(Numbers(length=23, batch_size=4), batch_size=4, num_workers=workers)
        assert batches(loader) == wanted
        assert len(loader) == len(wanted) == 6
        unknown = DataLoader(Numbers(length=24), batch_size=2, num_workers=workers)
        assert sorted(indices(unknown)) == list(range(24))


@pytest.fixture
def tiny(tiny_model):
    """Make a data set of small clips; the keywords replace arguments."""

    def tiny(**changes):
        arguments = {"frames": 2, "size": (40, 40), "model": tiny_model, "nuclei": 1}
        return SyntheticHeLaVideos(**arguments | {"method": "procedural", **changes})

    return tiny


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.heavy) for m in ("forkserver", "spawn"))]
)
def test_epochs_reach_persistent_workers(tiny, method):
    videos = tiny(length=5, batch_size=2)
    mix = MixedVideos({"a": videos, "b": tiny(seed=1)}, length=5, batch_size=2)
    # A spawned worker takes long to start.
    workers = 1 if method == "spawn" else 2
    how = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": method}
    loader = DataLoader(mix, batch_size=2, **how)
    passes = []
    for epoch in (0, 3, 3, 1):
        mix.set_epoch(epoch)
        clips = [dict(zip(batch, clip, strict=True))
                 for batch in loader for clip in zip(*batch.values(), strict=True)]  # fmt: skip
        assert [int(clip["index"]) for clip in clips] == list(range(5))
        for clip in clips:
            wanted = mix.clip(int(clip["index"]))
            assert clip.keys() == wanted.keys()
            assert all(torch.equal(clip[key], wanted[key]) for key in clip)
        passes.append(torch.stack([clip["video"] for clip in clips]))
    assert torch.equal(passes[1], passes[2])
    for one, other in [(0, 1), (0, 3), (1, 3)]:
        assert not torch.equal(passes[one], passes[other])


def test_loader_leaves_global_random_states(tiny):
    loader = DataLoader(tiny(length=3), num_workers=2, generator=torch.Generator())
    before = read_random_states()
    list(loader)
    assert read_random_states() == before


def test_used_streams_hold_little(tiny):
    mix = MixedVideos({"a": tiny(), "b": tiny(method="fast", pool=True)})
    for index in range(4):
        mix.clip(index)
    packed = pickle.dumps(mix)
    assert b"SyntheticHeLaVideos" in packed
    assert not any(kind in packed for kind in (b"Generator", b"RandomState", b"Random\n"))
    assert len(packed) < 8_000


def test_copies_are_independent(monkeypatch):
    videos = Numbers(length=6)
    videos.set_epoch(2)
    next(iter(videos))
    for duplicate in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        other = duplicate(videos)
        assert other.epoch == 2
        assert other.state_dict()["start"] == 0
        other.set_epoch(5)
        assert batches(other) == [[n] for n in range(6)]
    assert (videos.epoch, videos.state_dict()["start"]) == (2, 1)
    loader = DataLoader(other, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (5, 6):
        other.set_epoch(epoch)
        assert {int(clip["epoch"]) for clip in loader} == {epoch}
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    packed = pickle.dumps(Numbers(length=4))
    monkeypatch.delenv("RANK")
    other = pickle.loads(packed)
    assert other.shard == (0, 1)
    assert indices(DataLoader(other, batch_size=None, num_workers=1)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 3), (1, 0)])
def test_loop_resumes_with_other_workers(before, after, tmp_path):
    whole = batches(DataLoader(Numbers(length=22), batch_size=4))
    videos = Numbers(length=22, batch_size=4)
    videos.set_epoch(3)
    seen = take(DataLoader(videos, batch_size=4, num_workers=before), 3)
    state = videos.state_dict(consumed=12)
    assert state == {"epoch": 3, "seed": 0, "start": 12}
    resumed = Numbers(length=22, batch_size=4, log=tmp_path / "made.txt")
    resumed.load_state_dict(state)
    loader = DataLoader(resumed, batch_size=4, num_workers=after)
    assert resumed.epoch == 3
    assert seen + batches(loader) == whole
    assert logged(tmp_path / "made.txt") == list(range(12, 22))
    assert batches(loader) == whole


def test_claim_names_its_loader_first(monkeypatch):
    seen = []

    class Watched(sharding._SharedInt):
        def __set__(self, owner, number):
            seen.append(owner.claimed_by)  # what another worker would find now
            super().__set__(owner, number)

    monkeypatch.setattr(sharding.SharedInts, "claimed_restart", Watched(3), raising=False)
    monkeypatch.setattr(stream, "get_loader_id", lambda _: 7)
    videos = Numbers(length=10, batch_size=2)
    videos.load_state_dict({"epoch": 1, "seed": 0, "start": 4})
    assert len(list(videos)) == 6
    assert seen == [7]


@pytest.mark.parametrize(("workers", "kept"), [(0, False), (2, False), (2, True)])
def test_only_first_resumed_pass_is_short(workers, kept):
    videos = Numbers(length=10, batch_size=2)
    loader = DataLoader(videos, batch_size=2, num_workers=workers, persistent_workers=kept)
    whole = batches(loader)
    for start in (4, 10):
        videos.load_state_dict({"epoch": 1, "seed": 0, "start": start})
        videos.set_epoch(1)
        assert batches(loader) == whole[start // 2 :]
        assert batches(loader) == whole
        videos.set_epoch(2)
    # Another epoch drops the loaded position.
    videos.load_state_dict({"epoch": 1, "seed": 0, "start": 4})
    videos.set_epoch(2)
    assert batches(loader) == whole


def test_resumed_loop_counts_from_its_start():
    videos = Numbers(length=20, batch_size=2)
    videos.load_state_dict({"epoch": 0, "seed": 0, "start": 6})
    assert videos.state_dict(consumed=4)["start"] == 10
    assert take(DataLoader(videos, batch_size=2, num_workers=1), 2) == [[6, 7], [8, 9]]
    assert videos.state_dict(consumed=4)["start"] == 10
    videos.set_epoch(1)
    assert videos.state_dict(consumed=4)["start"] == 4


def test_state_follows_every_clip():
    videos = Numbers(length=5, seed=3)
    assert videos.state_dict() == {"epoch": 0, "seed": 3, "start": 0}
    for number, _ in enumerate(videos, start=1):
        state = videos.state_dict()
        assert state["start"] == number
        resumed = Numbers(length=5, seed=3)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert indices(resumed) == list(range(number, 5))


def test_far_position_is_reached_at_once(tmp_path):
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


def test_state_needs_consumed_with_workers():
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


def test_state_refuses_impossible_counts():
    for batch_size, consumed, words in [
        (None, 4, "consumed needs to know the batches: give the data set the batch_size"),
        (4, 6, "in whole batches of batch_size=4, got 6; is that the batch_size of the loader"),
        (4, 12, "at most the 10 clips of the loop, got 12"),
        (4, -4, "consumed must be 0 or more, got -4"),
    ]:
        with pytest.raises(ValueError, match=words):
            Numbers(length=10, batch_size=batch_size).state_dict(consumed=consumed)
    # The last batch may be smaller.
    assert Numbers(length=10, batch_size=4).state_dict(consumed=10)["start"] == 10


def test_load_state_dict_refuses_other_states():
    videos, good = Numbers(length=10), {"epoch": 0, "seed": 0, "start": 0}
    (first, second), *_ = split_all(10, 0, 1, 2, 1)
    for state, error, words in [
        ({**good, "seed": 1}, ValueError, "seed=0, got seed=1"),
        ({**good, "start": 11}, ValueError, "length=10, got 11"),
        ({**good, "start": -1}, ValueError, "start must be 0 or more, got -1"),
        ({**good, "start": 1.5}, TypeError, "start must be a whole number"),
        ({"epoch": 0, "seed": 0}, TypeError, "must be what state_dict"),
        ([1, 2], TypeError, r"must be what state_dict\(\) has given, got \[1, 2\]"),
        ({"seed": 0, **second.to_state()}, ValueError, "must not be from a worker"),
    ]:
        with pytest.raises(error, match=words):
            videos.load_state_dict(state)
        assert videos.state_dict() == good
    with pytest.raises(ValueError, match=r"worker=0, this .* has worker=1.*consumed=\.\.\."):
        second.with_state(first.to_state())


def test_set_epoch_within_pass_fails():
    videos = Numbers(length=4)
    clips = iter(videos)
    next(clips)
    videos.set_epoch(1)
    with pytest.raises(RuntimeError, match=r"set_epoch\(1\) was called in the middle .* epoch 0"):
        next(clips)
    assert {int(clip["epoch"]) for clip in videos} == {1}


class Late(Numbers):
    """Its workers begin one after the other."""

    def __iter__(self):
        worker = get_worker_info()
        time.sleep(0.2 * worker.id if worker else 0)
        return super().__iter__()


@pytest.mark.parametrize(("workers", "kept"), [(0, False), (2, False), (2, True)])
def test_pass_is_of_one_epoch(workers, kept):
    videos = Late(length=8, batch_size=2)
    loader = DataLoader(videos, batch_size=2, num_workers=workers, persistent_workers=kept)
    for epoch in (0, 1, 2) if kept else (0,):
        steps = iter(loader)
        time.sleep(0.1)
        videos.set_epoch(epoch + 1)
        found = list(steps)
        assert [batch["index"].tolist() for batch in found] == [[n, n + 1] for n in range(0, 8, 2)]
        (seen,) = {int(n) for batch in found for n in batch["epoch"]}
        # A worker that is kept may begin late, with the new epoch; then all of them do.
        wanted = {epoch, epoch + 1} if epoch else {epoch if workers else epoch + 1}
        assert seen in wanted


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
def test_loader_of_other_batches_is_refused(kind, workers):
    for known, asked, size in ((2, 3, 3), (2, None, 1), (4, 1, 1)):
        videos = Numbers(length=12, batch_size=known)
        words = f"batch_size of Numbers must be that of its loader, {size}, got {known}: .*the same"
        with pytest.raises(ValueError, match=words):
            list(kind(videos, batch_size=asked, num_workers=workers))


def test_batches_of_other_code_are_kept():
    class Batches(IterableDataset):
        def __iter__(self):
            clips = iter(Numbers(length=6, batch_size=2))
            return iter(lambda: [int(one["index"]) for one in itertools.islice(clips, 2)], [])

    assert list(DataLoader(Batches(), batch_size=None)) == [[0, 1], [2, 3], [4, 5]]


FREE = {"seed", "length", "annotations", "video", "device", "batch_size", "shard"}


def test_state_holds_all_that_matters(tiny):
    settings = tiny().state_dict()["settings"]
    assert settings.keys() | FREE == inspect.signature(SyntheticHeLaVideos).parameters.keys()
    assert json.loads(json.dumps(tiny().state_dict())) == tiny().state_dict()
    whole = tiny(length=9, batch_size=3)
    state = whole.state_dict(consumed=3)
    resumed = tiny(length=7, batch_size=2, annotations=("boxes",))
    resumed.load_state_dict(state)
    found = list(resumed)
    assert [int(clip["index"]) for clip in found] == [3, 4, 5, 6]
    assert torch.equal(found[0]["video"], whole.clip(3)["video"])
    del state["settings"]
    tiny(frames=4).load_state_dict(state)


def test_state_of_other_settings_is_refused(tiny):
    fast = {"method": "fast", "variation": 0}
    for changes, here, words in [
        ({"frames": 3}, {}, r"frames=2, got frames=3: .*remove 'settings' from the state"),
        ({"size": 48}, {}, r"size=\(40, 40\), got size=\(48, 48\)"),
        ({"nuclei": (0, 1)}, {}, r"nuclei=1, got nuclei=\(0, 1\)"),
        ({"nuclei": None, "at_least": 1}, {"nuclei": None}, "at_least=0, got at_least=1"),
        ({"variation": 0.5}, {}, "variation=0.0, got variation=0.5"),
        ({"death_rate": 0.5}, {}, "death_rate=None, got death_rate=0.5"),
        ({"max_cells": 99}, {"max_cells": 98}, "max_cells=98, got max_cells=99"),
        ({"model": "hela"}, {}, "model=[0-9a-f]{64}, got model=[0-9a-f]{64}"),
        (fast, {}, r"method=ProceduralSettings\(.*got method=FastSettings"),
        ({"transform": dict}, {}, "transform=NoneType, got transform=dict"),
        (
            {"transform": v2.Compose([v2.RandomRotation(90)])},
            {"transform": v2.Compose([v2.RandomRotation(5)])},
            r"degrees=\[-5.0, 5.0\].*, got transform=Compose\( RandomRotation\(degrees=\[-90.0",
        ),
        ({**fast, "pool": True}, fast, "pool=None, got pool=PoolSettings"),
        ({**fast, "pool": True}, {**fast, "pool": True, "length": 5}, "length=5, got length=None"),
    ]:
        state = tiny(**changes).state_dict()
        with pytest.raises(ValueError, match=words):
            tiny(**here).load_state_dict(state)
    with pytest.raises(TypeError, match=r"must be what state_dict.* got settings=3"):
        tiny().load_state_dict({**state, "settings": 3})


def test_workers_refuse_other_settings(tiny):
    begun, other = (
        StatefulDataLoader(tiny(length=6, frames=frames), batch_size=2, num_workers=1)
        for frames in (1, 2)
    )
    next(iter(begun))
    other.load_state_dict(begun.state_dict())
    with pytest.raises(ValueError, match="frames=2, got frames=1"):
        next(iter(other))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_forked_ranks_have_own_epochs():
    videos = Numbers(length=3)
    clips = iter(videos)
    seen = [int(next(clips)["epoch"])]

    def work(results):
        videos.set_epoch(1)
        results.put([int(clip["epoch"]) for clip in videos])

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    rank = context.Process(target=work, args=(results,))
    rank.start()
    rank.join(20)
    assert results.get() == [1, 1, 1]
    assert seen + [int(clip["epoch"]) for clip in clips] == [0, 0, 0]
    assert videos.state_dict()["start"] == 3


def test_shard_comes_from_environment(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert Numbers(length=7).shard == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    videos = Numbers(length=7)
    assert videos.shard == (1, 3)
    assert indices(videos) == [1, 4, 0]
    assert len(videos) == 3
    assert Numbers(length=7, shard=(0, 1)).shard == (0, 1)
    for rank, world in [("3", "3"), ("one", "3"), ("0", "0")]:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(ValueError, match=f"got RANK={rank}, WORLD_SIZE={world}; .*give shard="):
            Numbers(length=7).shard  # noqa: B018


def test_worker_sets_only_its_epoch(monkeypatch):
    epoch = SharedEpoch()
    epoch.set(3)
    monkeypatch.setattr(sharding, "get_worker_info", lambda: "a worker")
    epoch.set(2)
    assert (epoch.number, epoch.requested) == (2, 3)


def test_stream_refuses_bad_arguments():
    for arguments, error, words in [
        ({"shard": (2, 2)}, ValueError, r"0 <= rank < number of ranks, got \(2, 2\)"),
        ({"shard": 3}, TypeError, r"shard must be a pair \(rank, number of ranks\), got 3"),
        ({"shard": (0, 1.5)}, TypeError, "shard must be a whole number, got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more, got 0"),
    ]:
        with pytest.raises(error, match=words):
            Numbers(**arguments)
    for index, call in ((3, 3), (-1, -1), (slice(2), 0), ("a", 0)):
        with pytest.raises(
            TypeError, match=rf"Numbers is a stream .* write videos\.clip\({call}\)"
        ):
            Numbers()[index]


@pytest.mark.parametrize(
    ("workers", "steps", "batch_size"), [(0, 5, None), (1, 8, 3), (3, 1, 3), (3, 8, None)]
)
def test_stateful_loader_resumes_exactly(workers, steps, batch_size, tmp_path):
    def loader(log=None):
        videos = Numbers(length=23, batch_size=batch_size, log=log)
        videos.set_epoch(4)
        return StatefulDataLoader(videos, batch_size=3, num_workers=workers)

    whole, begun, log = batches(loader()), loader(), tmp_path / "made.txt"
    seen = take(begun, steps)
    resumed = loader(log)
    resumed.load_state_dict(begun.state_dict())
    assert seen + batches(resumed) == whole
    assert logged(log) == sorted(number for batch in whole[steps:] for number in batch)
    assert batches(resumed) == whole


@pytest.mark.parametrize(("workers", "kept"), [(0, False), (2, True)])
def test_stateful_loader_resumes_at_end(workers, kept):
    def loader():
        videos = Numbers(length=7, batch_size=2)
        how = {"num_workers": workers, "persistent_workers": kept}
        return StatefulDataLoader(videos, batch_size=2, **how)

    ended, resumed = loader(), loader()
    whole = batches(ended)
    resumed.load_state_dict(ended.state_dict())
    assert batches(resumed) == batches(resumed) == whole
    # The epoch is resumed, too, and another one can be chosen later.
    ended = loader()
    ended.dataset.set_epoch(5)
    take(ended, 2)
    resumed = loader()
    resumed.load_state_dict(ended.state_dict())
    assert [batch["epoch"].tolist() for batch in resumed] == [[5, 5], [5]]
    resumed.dataset.set_epoch(6)
    assert [batch["epoch"].tolist() for batch in resumed] == [[6, 6]] * 3 + [[6]]
    # One that is chosen before the loop counts, too: nothing is left of the other.
    state, resumed = resumed.state_dict(), loader()
    resumed.load_state_dict(state)
    resumed.dataset.set_epoch(7)
    assert [batch["epoch"].tolist() for batch in resumed] == [[7, 7]] * 3 + [[7]]


def test_worker_refuses_state_of_another():
    def loader(rank):
        videos = Numbers(length=20, batch_size=2, shard=(rank, 2))
        return StatefulDataLoader(videos, batch_size=2, num_workers=1)

    first, second = loader(0), loader(1)
    take(first, 2)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="it has rank=0, this process has rank=1"):
        next(iter(second))


@pytest.mark.parametrize("workers", [0, 2])
def test_real_videos_resume(workers, tiny_ctc):
    def real(**changes):
        return CTCVideos(tiny_ctc, frames=2, size=32, border=0, **changes)

    def mixed():
        mix = MixedVideos({"a": real(), "b": real(seed=1)}, length=9, batch_size=2)
        return StatefulDataLoader(mix, batch_size=2, num_workers=workers)

    def shuffled():
        how = {"shuffle": True, "generator": torch.Generator().manual_seed(3)}
        return StatefulDataLoader(real(length=9), batch_size=2, num_workers=workers, **how)

    for loader in (mixed, shuffled):
        whole, begun, resumed = list(loader()), loader(), loader()
        take(begun, 2)
        resumed.load_state_dict(begun.state_dict())
        rest = list(resumed)
        assert len(rest) == 3
        for one, other in zip(rest, whole[2:], strict=True):
            assert torch.equal(one["video"], other["video"])
    assert batches(whole) != sorted(batches(whole))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, tiny_model):
    """Return what each of two ranks that torchrun has started has seen."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, PROGRAM, "rank", folder, tiny_model], check=True, timeout=500)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.heavy
def test_ranks_make_every_clip_once(ranks):
    # The twelfth clip of eleven is the first one again, so that no rank waits for the other.
    assert [rank["finite"] for rank in ranks] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 0]]
    assert [rank["length"] for rank in ranks] == [6, 6]
    unknown = [rank["unknown batch size"] for rank in ranks]
    assert sorted(unknown[0] + unknown[1]) == [0, *range(11)]
    assert [rank["spawned"] for rank in ranks] == [rank["finite"] for rank in ranks]
    assert [rank["given"] for rank in ranks] == [[0, 1, 2, 3]] * 2


@pytest.mark.heavy
def test_ranks_resume_in_step(ranks):
    first = [rank["endless"] for rank in ranks]
    assert sorted(first[0] + first[1]) == list(range(16))
    assert ranks[0]["state"] == ranks[1]["state"] == {"epoch": 0, "seed": 0, "start": 16}
    rest = [rank["endless, resumed"] for rank in ranks]
    assert sorted(rest[0] + rest[1]) == list(range(16, 28))
    assert [rank["finite, resumed"] for rank in ranks] == [[4, 6, 8, 10], [5, 7, 9, 0]]


@pytest.mark.heavy
def test_ranks_make_clips_of_one_process(ranks, tiny_model):
    alone = {}
    for how in SETTINGS:
        videos = small_clips(tiny_model, **how)
        videos.set_epoch(2)
        alone |= {f"{how} {index}": digest(videos.clip(index)) for index in (2, 0, 3, 1)}
    assert ranks[0]["clips"].keys().isdisjoint(ranks[1]["clips"])
    assert ranks[0]["clips"] | ranks[1]["clips"] == alone


@pytest.mark.heavy
def test_killed_loop_resumes_exactly(tmp_path):
    length, batch_size, epoch = 61, 4, 5
    command = [sys.executable, PROGRAM, "loop", tmp_path]
    before, after = ([*command, n, str(batch_size), str(length), str(epoch)] for n in "23")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(before, **pipes) as killed:
        for step in range(1, 5):
            assert killed.stdout.readline() == f"{step}\n"
            if step < 4:
                print(file=killed.stdin, flush=True)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    checkpoint = tmp_path / "checkpoint.json"
    assert json.loads(checkpoint.read_text())["seen"] == list(range(16))
    subprocess.run(after, stdin=subprocess.DEVNULL, check=True, timeout=500)
    state = json.loads(checkpoint.read_text())
    assert state["seen"] == list(range(length))
    assert state["videos"] == {"epoch": epoch, "seed": 0, "start": length}
    assert logged(tmp_path / "3.txt") == list(range(16, length))
