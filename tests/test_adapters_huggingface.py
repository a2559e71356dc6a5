import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bvdm_data import CTCVideos, MixedVideos, SyntheticHeLaVideos
from bvdm_data.adapters.huggingface import to_huggingface
from tests.helpers.clips import run_snippet
from tests.helpers.streams import Numbers, batches, logged

ROOT = Path(__file__).parents[1]
EVERY = ("masks", "tracks", "flow", "stages", "boxes", "centroids")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Return the package, which writes locks for its cache even where it caches nothing."""
    package = pytest.importorskip("datasets", reason="needs the extra huggingface")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield package


def videos(model, **changes):
    how = {"frames": 2, "size": (40, 48), "nuclei": 2, "max_cells": 16, "annotations": EVERY}
    return SyntheticHeLaVideos(model=model, method="procedural", **{**how, **changes})


def test_huggingface_names_its_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    said = r"needs the package 'datasets', .*pip install 'bvdm-data\[huggingface\]'"
    with pytest.raises(ImportError, match=said):
        to_huggingface(Numbers(length=2))


def test_huggingface_rows_keep_types_and_shapes(datasets, tiny_model):
    given = videos(tiny_model)
    given.set_epoch(3)
    rows = to_huggingface(given, clips=3)
    given.set_epoch(0)
    assert rows.features["video"] == datasets.Array4D((2, 1, 40, 48), "float32")
    assert rows.features["stages"] == datasets.Array2D((16, 2), "int8")
    assert rows.features["index"] == datasets.Value("int64")
    given.set_epoch(3)
    found = list(rows.with_format("torch"))
    assert [int(row["index"]) for row in found] == [0, 1, 2]
    for number, row in enumerate(found):
        clip = given.clip(number)
        assert set(row) == set(clip)
        for key in ("video", *EVERY):
            known = clip[key] if clip[key].is_floating_point() else clip[key].long()
            assert torch.equal(row[key].nan_to_num(-9), known.nan_to_num(-9)), key


def test_huggingface_rows_survive_arrays_and_tables(datasets, tiny_model, tmp_path):
    rows = to_huggingface(videos(tiny_model), clips=2)
    clip = videos(tiny_model).clip(1)
    _, row = rows
    assert all(row[key].dtype == clip[key].numpy().dtype for key in ("video", *EVERY))
    table = datasets.Dataset.from_generator(
        rows.__iter__, features=rows.features, cache_dir=str(tmp_path)
    )
    kept = table.with_format("numpy")[1]
    assert table.features == rows.features
    for key in ("video", *EVERY):
        assert np.array_equal(kept[key], clip[key].numpy(), equal_nan=key != "masks"), key


@pytest.mark.parametrize(("workers", "per_shard"), [(0, 3), (2, 1), (2, 3)])
def test_workers_make_each_clip_once(datasets, workers, per_shard, tmp_path):
    log = tmp_path / "made.txt"
    rows = to_huggingface(Numbers(length=8, log=log), clips_per_shard=per_shard)
    assert logged(log) == [0]  # for the features
    assert rows.num_shards == -(-8 // per_shard)
    found = batches(DataLoader(rows.with_format("torch"), batch_size=2, num_workers=workers))
    assert sorted(number for batch in found for number in batch) == list(range(8))
    assert logged(log) == [0, *range(8)]
    assert workers or found == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_ranks_make_each_clip_once(datasets, tmp_path):
    from datasets.distributed import split_dataset_by_node

    log = tmp_path / "made.txt"
    rows = to_huggingface(Numbers(length=6, log=log))
    shares = [[row["index"] for row in split_dataset_by_node(rows, rank, 2)] for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    assert sorted(shares[0] + shares[1]) == list(range(6))
    assert logged(log) == [0, *range(6)]


def test_huggingface_loop_resumes(datasets, tmp_path):
    log = tmp_path / "made.txt"
    begun = to_huggingface(Numbers(length=7))
    steps = iter(begun)
    seen = [next(steps)["index"] for _ in range(3)]
    rest = to_huggingface(Numbers(length=7, log=log))
    rest.load_state_dict(begun.state_dict())
    assert seen + [row["index"] for row in rest] == list(range(7))
    assert logged(log) == [0, 2, 3, 4, 5, 6]


def test_huggingface_takes_real_and_mixed(datasets, tiny_ctc):
    real = CTCVideos(tiny_ctc, frames=2, size=32, border=0, length=2)
    rows = list(to_huggingface(real).with_format("torch"))
    assert torch.equal(rows[1]["masks"], real.clip(1)["masks"])
    assert [row["index"].item() for row in rows] == [0, 1]
    mix = MixedVideos({"a": real, "b": real}, quotas={"a": 1, "b": 1}, at_end="stop")
    assert [row["index"] for row in to_huggingface(mix)] == [0, 1, 2, 3]
    mix = MixedVideos({"a": real, "b": real}, length=3)
    rows = list(to_huggingface(mix).with_format("torch"))
    assert [row["member"].item() for row in rows] == [
        mix.clip(n)["member"].item() for n in range(3)
    ]


class Made:
    def __init__(self, value):
        self.value = value

    def clip(self, index):
        return {"value": self.value}


def test_huggingface_refuses_odd_tensors(datasets, tiny_model):
    (row,) = to_huggingface(Made(torch.arange(3.0)), clips=1).with_format("torch")
    assert row["value"].tolist() == [0, 1, 2]
    with pytest.raises(TypeError, match="clips of tensors, got value='a' in clip 0"):
        to_huggingface(Made("a"), clips=1)
    with pytest.raises(ValueError, match="at most 5 axes, got value of the shape"):
        to_huggingface(Made(torch.zeros(1, 1, 1, 1, 1, 1)), clips=1)
    with pytest.raises(TypeError, match=r"videos must be a data set with clip\(index\).*got list"):
        to_huggingface([1, 2])
    with pytest.raises(ValueError, match="clips must be given for an endless data set"):
        to_huggingface(videos(tiny_model))
    with pytest.raises(ValueError, match="clips must be 1 or more"):
        to_huggingface(videos(tiny_model), clips=0)
    with pytest.raises(ValueError, match="clips_per_shard must be 1 or more"):
        to_huggingface(videos(tiny_model), clips=2, clips_per_shard=0)


def test_huggingface_example_trains(datasets, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "stream_huggingface.py"))["main"]
    small = "--steps 4 --frames 2 --size 64 --batch-size 2 --workers 0"
    losses = main(small.split())
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert "after 4 steps" in capsys.readouterr().out


def test_the_snippet_of_the_page_runs(datasets):
    run_snippet("Frameworks", "hugging")
