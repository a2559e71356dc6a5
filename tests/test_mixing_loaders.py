"""Mixes under workers, ranks and resumes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mixes
import pytest
from mixes import FakeVideos, by_quotas, later_real, listed, told
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from bvdm_data.datasets.mixed import MixedVideos

# torchdata calls what this PyTorch has given up.
pytestmark = pytest.mark.filterwarnings(
    "ignore:'set_vital' is deprecated", "ignore:This DataLoader will create"
)
QUOTAS = [1, 3, 2]


def members(batch):
    counts = Counter(member for _, member, _ in batch)
    return [counts[member] for member in range(3)]


def numbers(batches):
    return [index for batch in batches for index, _, _ in batch]


def of_kind(kind, **changes):
    """Return a mix of each kind, of 30 clips."""
    if kind == "quotas":
        return by_quotas(**changes)
    sources = {"real": listed(70), "synthetic": FakeVideos(kind=1)}
    how = {"weights": {}, "schedule": {"weights": later_real}, "drop": {"at_end": "drop"}}
    arguments = {"length": 30, "batch_size": 6, "shuffle": True} | how[kind] | changes
    return MixedVideos(sources, **arguments)


KINDS = pytest.mark.parametrize("kind", ["quotas", "weights", "schedule", "drop"])


@KINDS
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_of_a_mix_are_the_same_for_any_number_of_workers(kind, workers):
    alone = told(DataLoader(of_kind(kind), batch_size=6))
    assert numbers(alone) == list(range(30))
    assert told(DataLoader(of_kind(kind), batch_size=6, num_workers=workers)) == alone


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("times", [1, 2])
def test_quotas_hold_in_every_batch_of_every_worker(workers, times):
    mix = by_quotas(length=36, batch_size=6 * times)
    batches = told(DataLoader(mix, batch_size=6 * times, num_workers=workers))
    assert [members(batch) for batch in batches] == [[n * times for n in QUOTAS]] * (6 // times)
    assert numbers(batches) == list(range(36))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [2, 3])
def test_quotas_hold_on_every_rank_and_ranks_have_equally_many_batches(ranks, workers):
    alone = told(DataLoader(by_quotas(), batch_size=6))
    of_ranks = []
    for rank in range(ranks):
        mix = by_quotas(shard=(rank, ranks))
        of_ranks.append(told(DataLoader(mix, batch_size=6, num_workers=workers)))
        assert len(mix) == 6 * len(of_ranks[-1]) == 6 * -(-5 // ranks)
    # Batches are shared out in turn; the sixth of five is the first again.
    wanted = [*alone, alone[0]]
    assert of_ranks == [wanted[rank::ranks] for rank in range(ranks)]


@KINDS
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 3), (2, 0)])
def test_a_mix_resumes_in_the_middle_of_an_epoch_with_other_workers(kind, before, after):
    mix = of_kind(kind)
    mix.set_epoch(1)
    whole = told(DataLoader(mix, batch_size=6))
    steps = iter(DataLoader(mix, batch_size=6, num_workers=before))
    seen = told([next(steps), next(steps)])
    state = mix.state_dict(consumed=12)
    assert state == {"epoch": 1, "seed": 0, "start": 12}
    resumed = of_kind(kind)
    resumed.load_state_dict(state)
    loader = DataLoader(resumed, batch_size=6, num_workers=after)
    assert seen + told(loader) == whole
    assert told(loader) == whole


def test_a_mix_of_quotas_resumes_on_another_number_of_ranks():
    whole, seen = told(DataLoader(by_quotas(), batch_size=6)), []
    for rank in range(2):
        mix = by_quotas(shard=(rank, 2))
        steps = iter(DataLoader(mix, batch_size=6))
        seen += told([next(steps)])
        state = mix.state_dict(consumed=6)
        assert state["start"] == 12
    for rank in range(3):
        mix = by_quotas(shard=(rank, 3))
        mix.load_state_dict(state)
        seen += told(DataLoader(mix, batch_size=6, num_workers=1))
    assert sorted(seen) == sorted(whole)


@KINDS
@pytest.mark.parametrize("workers", [0, 2])
def test_a_mix_resumes_with_stateful_data_loader(kind, workers):
    def loader():
        return StatefulDataLoader(of_kind(kind), batch_size=6, num_workers=workers)

    whole, begun, resumed = told(loader()), loader(), loader()
    steps = iter(begun)
    seen = told([next(steps), next(steps)])
    resumed.load_state_dict(begun.state_dict())
    assert seen + told(resumed) == whole
    assert told(resumed) == whole


@KINDS
def test_workers_that_are_kept_hear_of_epochs(kind):
    mix = of_kind(kind)
    loader = DataLoader(mix, batch_size=6, num_workers=2, persistent_workers=True)
    passes = {}
    for epoch in (0, 2, 1, 2):
        mix.set_epoch(epoch)
        found = told(loader)
        assert passes.setdefault(epoch, found) == found
        assert found == told(DataLoader(mix, batch_size=6))
    assert passes[0] != passes[1] != passes[2]


def test_an_epoch_of_a_source_is_that_of_the_mix_for_any_number_of_workers():
    source = FakeVideos()
    source.set_epoch(4)
    mix = MixedVideos({"a": source}, length=2)
    for workers in (0, 1):
        batch = next(iter(DataLoader(mix, batch_size=2, num_workers=workers)))
        assert int(batch["masks"].max()) == 0


def test_the_end_of_sources_ends_the_loops_of_all_workers():
    sources = {"a": listed(9), "b": listed(14)}
    for at_end in ("stop", "drop"):
        mix = MixedVideos(sources, at_end=at_end, batch_size=3)
        alone = told(DataLoader(mix, batch_size=3))
        assert told(DataLoader(mix, batch_size=3, num_workers=2)) == alone
        assert numbers(alone) == list(range(len(mix)))
        mix.load_state_dict({"epoch": 0, "seed": 0, "start": 6})
        assert told(DataLoader(mix, batch_size=3, num_workers=2)) == alone[2:]
    assert len(mix) == 23


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (8, r"must start with a whole batch of quotas=.*got start=8"),
        (18, r"must start within the 12 clips of epoch 0, got start=18"),
    ],
)
def test_a_mix_refuses_a_state_of_another_mix(start, words):
    mix = by_quotas(at_end="stop")
    with pytest.raises(ValueError, match=words):
        mix.load_state_dict({"epoch": 0, "seed": 0, "start": start})
    assert mix.state_dict() == {"epoch": 0, "seed": 0, "start": 0}


def test_a_mix_of_quotas_has_no_state_in_the_middle_of_a_batch():
    mix = by_quotas()
    clips = iter(mix)
    for _ in range(4):
        next(clips)
    with pytest.raises(
        ValueError, match=r"asked for between batches of 6 clips.*4 clips have been"
    ):
        mix.state_dict()
    for _ in range(2):
        next(clips)
    assert mix.state_dict()["start"] == 6


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what each of the two ranks of a job has seen, that torchrun has started."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, Path(mixes.__file__), folder], check=True, timeout=500)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_of_two_workers_keep_the_quotas(ranks):
    alone = told(DataLoader(by_quotas(), batch_size=6))
    assert [rank["quotas"] for rank in ranks] == [alone[::2], [*alone[1::2], alone[0]]]
    assert [rank["length"] for rank in ranks] == [18, 18]
    assert all(members(batch) == QUOTAS for rank in ranks for batch in rank["quotas"])


def test_two_ranks_of_two_workers_share_out_a_mix_by_weight(ranks):
    mix = MixedVideos(by_quotas().sources, length=30)
    wanted = {index: clip for [clip] in told(DataLoader(mix, batch_size=1)) for index in clip[:1]}
    found = [clip for rank in ranks for batch in rank["weights"] for clip in batch]
    assert sorted(found) == list(wanted.values())


def test_two_ranks_resume_a_mix_of_quotas_in_step(ranks):
    assert [rank["state"]["start"] for rank in ranks] == [24, 24]
    alone = told(DataLoader(by_quotas(), batch_size=6))
    assert [rank["rest"] for rank in ranks] == [[alone[4]], [alone[0]]]
