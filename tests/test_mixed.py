"""Mixes: clips, workers, ranks, resumes, and twins of a real video."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from bvdm_data import CameraScale, CTCVideos, twin
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.mixed import BLOCK, MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.weights import find_model
from tests.helpers import mixes
from tests.helpers.mixes import FakeVideos, by_quotas, later_real, list_batches, locate, make_list

# torchdata calls what this PyTorch has given up.
pytestmark = pytest.mark.filterwarnings(
    "ignore:'set_vital' is deprecated", "ignore:This DataLoader will create"
)
QUOTAS = [1, 3, 2]


def make_mix(**arguments):
    sources = {"real": FakeVideos(kind=0), "synthetic": FakeVideos(kind=1)}
    return MixedVideos(sources, **arguments)


# Clips


def test_no_clip_is_skipped_or_repeated():
    located = locate(make_mix(), [*range(50), *range(BLOCK - 300, BLOCK + 300)])
    assert {("real", 0), ("synthetic", 0)} <= {*located[:50]}
    for name in ("real", "synthetic"):
        own = [number for source, number in located[50:] if source == name]
        assert own == list(range(own[0], own[0] + len(own)))
    assert [int(make_mix().clip(number)["index"]) for number in (0, 7, 3000)] == [0, 7, 3000]


def test_clip_of_source_stays_unchanged():
    kept, source = FakeVideos().clip(0), FakeVideos()
    source.clip = lambda index: kept
    MixedVideos({"only": source}).clip(9)
    assert int(kept["index"]) == 0


def test_weights_are_normalised():
    assert make_mix().weights == {"real": 0.5, "synthetic": 0.5}
    mix = make_mix(weights={"synthetic": 3, "real": 1})
    assert mix.weights == {"real": 0.25, "synthetic": 0.75}
    alone = make_mix(weights={"real": 0, "synthetic": 2})
    assert {name for name, _ in locate(alone, range(300))} == {"synthetic"}


def test_seed_and_epoch_change_the_order():
    assert locate(make_mix(seed=1), range(40)) != locate(make_mix(seed=2), range(40))
    mix, numbers = make_mix(seed=1), range(2 * BLOCK, 2 * BLOCK + 40)
    first = locate(mix, numbers)
    mix.set_epoch(3)
    assert int(mix.clip(0)["masks"].max()) == 3  # it has reached the source
    assert locate(mix, numbers) != first
    mix.set_epoch(0)
    assert locate(mix, numbers) == first
    assert locate(pickle.loads(pickle.dumps(mix)), range(30)) == locate(mix, range(30))


def test_default_loader_makes_batches():
    batch = next(iter(DataLoader(make_mix(), batch_size=3)))
    assert batch["video"].shape == (3, 2, 1, 4, 6)
    assert batch["index"].tolist() == [0, 1, 2]


def test_length_ends_the_mix():
    stream = iter(make_mix())
    assert [int(next(stream)["index"]) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(TypeError, match=r"endless and has no len\(\); give it a length"):
        len(make_mix())
    assert len(make_mix(length=6)) == 6
    assert [int(clip["index"]) for clip in make_mix(length=6)] == list(range(6))


def test_mix_is_a_source():
    outer = MixedVideos({"mix": make_mix(), "more": FakeVideos(kind=2)})
    assert {int(outer.clip(number)["source"]) for number in range(60)} == {0, 1, 2}


def test_global_random_states_stay():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    make_mix().clip(2 * BLOCK)
    make_mix(weights=later_real).clip(20)
    by_quotas().clip(20)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"weights\['real'\] must be finite .*got inf"):
        make_mix(weights={"real": float("inf"), "synthetic": 1})
    for error, index in ((IndexError, -1), (TypeError, "1"), (TypeError, True)):
        with pytest.raises(error, match=f"index must be .*, got {index!r}"):
            make_mix().clip(index)


# Workers, ranks and resumes


def count_members(batch):
    counts = Counter(member for _, member, _ in batch)
    return [counts[member] for member in range(3)]


def list_numbers(batches):
    return [index for batch in batches for index, _, _ in batch]


def make_kind(kind, **changes):
    """Return a mix of each kind, of 30 clips."""
    if kind == "quotas":
        return by_quotas(**changes)
    sources = {"real": make_list(70), "synthetic": FakeVideos(kind=1)}
    how = {"weights": {}, "schedule": {"weights": later_real}, "drop": {"at_end": "drop"}}
    arguments = {"length": 30, "batch_size": 6, "shuffle": True} | how[kind] | changes
    return MixedVideos(sources, **arguments)


KINDS = pytest.mark.parametrize("kind", ["quotas", "weights", "schedule", "drop"])


def load(mix, workers=0, batch_size=6, **how):
    return list_batches(DataLoader(mix, batch_size=batch_size, num_workers=workers, **how))


@KINDS
def test_batches_do_not_depend_on_workers(kind):
    alone = load(make_kind(kind))
    assert list_numbers(alone) == list(range(30))
    for workers in (1, 2, 3):
        assert load(make_kind(kind), workers) == alone


@pytest.mark.parametrize(("workers", "times"), [(0, 2), (1, 1), (2, 2)])
def test_quotas_hold_in_every_worker(workers, times):
    batches = load(by_quotas(length=36, batch_size=6 * times), workers, 6 * times)
    assert [count_members(one) for one in batches] == [[n * times for n in QUOTAS]] * (6 // times)
    assert list_numbers(batches) == list(range(36))


@pytest.mark.parametrize(("ranks", "workers"), [(2, 2), (3, 0)])
def test_quotas_hold_on_every_rank(ranks, workers):
    alone, of_ranks = load(by_quotas()), []
    for rank in range(ranks):
        mix = by_quotas(shard=(rank, ranks))
        of_ranks.append(load(mix, workers))
        assert len(mix) == 6 * len(of_ranks[-1]) == 6 * -(-5 // ranks)
    # Batches are shared out in turn; the sixth of five is the first again.
    expected = [*alone, alone[0]]
    assert of_ranks == [expected[rank::ranks] for rank in range(ranks)]


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [("quotas", 0, 2), ("weights", 2, 3), ("schedule", 2, 0), ("drop", 0, 2)],
)
def test_mix_resumes_with_other_workers(kind, before, after):
    mix = make_kind(kind)
    mix.set_epoch(1)
    whole = load(mix)
    steps = iter(DataLoader(mix, batch_size=6, num_workers=before))
    seen = list_batches([next(steps), next(steps)])
    state = mix.state_dict(consumed=12)
    assert state.items() >= {"epoch": 1, "seed": 0, "start": 12}.items()
    resumed = make_kind(kind)
    resumed.load_state_dict(state)
    loader = DataLoader(resumed, batch_size=6, num_workers=after)
    assert seen + list_batches(loader) == whole
    assert list_batches(loader) == whole


def test_quotas_resume_on_other_ranks():
    whole, seen = load(by_quotas()), []
    for rank in range(2):
        mix = by_quotas(shard=(rank, 2))
        seen += list_batches([next(iter(DataLoader(mix, batch_size=6)))])
        state = mix.state_dict(consumed=6)
        assert state["start"] == 12
    for rank in range(3):
        mix = by_quotas(shard=(rank, 3))
        mix.load_state_dict(state)
        seen += load(mix, workers=rank % 2)
    assert sorted(seen) == sorted(whole)


def test_quotas_hold_where_ranks_die():
    whole, seen, state = load(by_quotas(length=60)), [], None
    for ranks, steps in ((3, 2), (1, 2), (2, 1)):
        for rank in range(ranks):
            mix = by_quotas(length=60, shard=(rank, ranks))
            if state is not None:
                mix.load_state_dict(state)
            seen += load(mix)[:steps]
        state = mix.state_dict(consumed=6 * steps)
    assert sorted(seen) == sorted(whole)
    assert len(whole) == 10


@pytest.mark.parametrize(
    ("kind", "workers"), [("quotas", 2), ("weights", 0), ("schedule", 2), ("drop", 2)]
)
def test_mix_resumes_with_stateful_loader(kind, workers):
    def loader():
        return StatefulDataLoader(make_kind(kind), batch_size=6, num_workers=workers)

    whole, begun, resumed = list_batches(loader()), loader(), loader()
    steps = iter(begun)
    seen = list_batches([next(steps), next(steps)])
    resumed.load_state_dict(begun.state_dict())
    assert seen + list_batches(resumed) == whole
    assert list_batches(resumed) == whole


@KINDS
def test_persistent_workers_follow_epochs(kind):
    mix = make_kind(kind)
    loader = DataLoader(mix, batch_size=6, num_workers=2, persistent_workers=True)
    passes = {}
    for epoch in (0, 2, 1, 2):
        mix.set_epoch(epoch)
        batches = list_batches(loader)
        assert passes.setdefault(epoch, batches) == batches == load(mix)
    assert passes[0] != passes[1] != passes[2]


def test_epoch_of_source_follows_mix():
    source = FakeVideos()
    source.set_epoch(4)
    mix = MixedVideos({"a": source}, length=2)
    for workers in (0, 1):
        batch = next(iter(DataLoader(mix, batch_size=2, num_workers=workers)))
        assert int(batch["masks"].max()) == 0


def test_ended_sources_end_all_workers():
    for at_end in ("stop", "drop"):
        mix = MixedVideos({"a": make_list(9), "b": make_list(14)}, at_end=at_end, batch_size=3)
        alone = load(mix, 0, 3)
        assert load(mix, 2, 3) == alone
        assert list_numbers(alone) == list(range(len(mix)))
        mix.load_state_dict({"epoch": 0, "seed": 0, "start": 6})
        assert load(mix, 2, 3) == alone[2:]
    assert len(mix) == 23


def test_state_must_fit_the_sources():
    def mix(seed=0, clips=3, **how):
        one = SyntheticHeLaVideos(frames=2, size=64, annotations=("masks",), seed=seed)
        return MixedVideos({"a": one, "b": make_list(clips, size=(64, 64))}, **how)

    state = mix(length=9).state_dict()
    mix(length=8, batch_size=2).load_state_dict(state)
    for other, words in [
        (mix(seed=1), "a.seed=1, got a.seed=0"),
        (mix(clips=4), "b.length=4, got b.length=3"),
        (
            mix(weights={"a": 1, "b": 3}),
            r"weights=\{'a': 0.25, .*, got weights=\{'a': 0.5",
        ),
        (mix(at_end="stop"), "at_end=stop, got at_end=restart"),
        (mix(shuffle=True), "shuffle=True, got shuffle=False"),
        (mix(weights=lambda epoch, index: {"a": 1, "b": 1}), "weights=a function, got weights="),
        (SyntheticHeLaVideos(frames=2, size=64), "quotas=None, got|order=None, got order=shuffled"),
    ]:
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(state)


def test_state_must_fit_the_quotas():
    mix = by_quotas(at_end="stop")
    for start, words in (
        (8, r"must start with a whole batch of quotas=.*got start=8"),
        (18, r"must start within the 12 clips of epoch 0, got start=18"),
    ):
        with pytest.raises(ValueError, match=words):
            mix.load_state_dict({"epoch": 0, "seed": 0, "start": start})
    assert mix.state_dict().items() >= {"epoch": 0, "seed": 0, "start": 0}.items()
    clips = iter(mix)
    for _ in range(4):
        next(clips)
    words = r"asked for between batches of 6 clips.*4 clips have been"
    with pytest.raises(ValueError, match=words):
        mix.state_dict()
    for _ in range(2):
        next(clips)
    assert mix.state_dict()["start"] == 6


@pytest.mark.heavy
def test_torchrun_ranks_share_a_mix(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, Path(mixes.__file__), tmp_path], check=True, timeout=500)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = load(by_quotas())
    assert [rank["quotas"] for rank in ranks] == [alone[::2], [*alone[1::2], alone[0]]]
    assert [rank["length"] for rank in ranks] == [18, 18]
    assert all(count_members(batch) == QUOTAS for rank in ranks for batch in rank["quotas"])
    assert [rank["state"]["start"] for rank in ranks] == [24, 24]
    assert [rank["rest"] for rank in ranks] == [[alone[4]], [alone[0]]]
    weighted = [clip for rank in ranks for batch in rank["weights"] for clip in batch]
    expected = [clip for [clip] in load(MixedVideos(by_quotas().sources, length=30), 0, 1)]
    assert sorted(weighted) == sorted(expected)


# Twins


@pytest.fixture
def make_twin(tiny_ctc, tiny_model):
    """Return a function that makes a twin of the tiny video with other arguments."""

    def make(real=None, **changes):
        settings = {"method": "procedural", "nuclei": 1, **changes.pop("synthetic", {})}
        how = {"frames": 2, "size": 48, "max_cells": 16, "border": 0, "length": 6} | (real or {})
        return twin(
            CTCVideos(tiny_ctc, **how), **{"model": tiny_model, "synthetic": settings} | changes
        )

    return make


def test_twin_mixes_clips_of_one_form(make_twin):
    mix = make_twin({"annotations": ("masks", "boxes")}, length=16)
    sources = set()
    for clip in mix:
        check_clip({key: value for key, value in clip.items() if key != "member"})
        sources.add(int(clip["source"]))
        assert clip["boxes"].shape == (mix.max_cells, 2, 4)
    assert sources == {0, 1}
    assert mix.max_cells == mix.sources["synthetic"].max_cells > mix.sources["real"].max_cells == 16
    assert mix.weights == {"real": 0.25, "synthetic": 0.75}
    assert list(mix.sources) == ["real", "synthetic"]


def test_twin_takes_arguments_of_mixes(make_twin):
    mix = make_twin(quotas={"real": 1, "synthetic": 2}, order="fixed", length=9, seed=5)
    batches = [batch["source"].tolist() for batch in DataLoader(mix, batch_size=3, num_workers=2)]
    assert batches == [[0, 1, 1]] * 3
    assert mix.seed == mix.sources["synthetic"].seed == 5
    assert make_twin(weights={"real": 1, "synthetic": 1}).weights["real"] == 0.5


def test_twin_transforms_both(make_twin):
    def darken(clip):
        return {**clip, "video": clip["video"] / 2}

    assert make_twin({"transform": darken}).sources["synthetic"].transform is darken
    other = make_twin({"transform": darken}, synthetic={"transform": None})
    assert other.sources["synthetic"].transform is None


@pytest.mark.parametrize(
    ("real", "changes", "error", "words"),
    [
        ({"stride": 2}, {}, ValueError, "real must have stride=1, got stride=2"),
        ({"scale": CameraScale(0, 255)}, {}, ValueError, r"scale of .*full=255.*bvdm-data fit"),
        ({}, {"synthetic": {"frames": 4}}, ValueError, "synthetic must be without 'frames', which"),
        ({}, {"synthetic": {"model": "hela"}}, ValueError, "without 'model', which is an argument"),
        ({}, {"synthetic": {"colour": 1}}, TypeError, "colour"),
        ({}, {"colour": 1}, TypeError, "colour"),
        ({}, {"model": "no.safetensors"}, FileNotFoundError, "no.safetensors"),
    ],
)
def test_impossible_twin_is_refused(make_twin, real, changes, error, words):
    with pytest.raises(error, match=words):
        make_twin(real, **changes)
    with pytest.raises(TypeError, match="real must be a CTCVideos, got str"):
        twin("Fluo-N2DL-HeLa")


def test_real_twin_in_one_line(hela):
    mix = twin(CTCVideos(hela, frames=2, size=96), quotas={"real": 1, "synthetic": 3})
    batch = next(iter(DataLoader(mix, batch_size=4)))
    assert sorted(batch["source"].tolist()) == [0, 1, 1, 1]
    assert batch["video"].shape == (4, 2, 1, 96, 96)
    assert mix.sources["synthetic"].model == find_model("hela")
    grey = [batch["video"][batch["source"] == kind].median() for kind in (0, 1)]
    assert torch.isclose(*grey, rtol=0.5)
