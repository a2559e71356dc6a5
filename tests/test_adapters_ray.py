import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters import ray as adapter
from bvdm_data.adapters.ray import ray_dataset, ray_export
from bvdm_data.storage import write_shards
from tests.helpers.streams import digest

SMALL = {"frames": 2, "size": 40, "nuclei": 2, "max_cells": 16, "seed": 3}


def small(model, **changes):
    return SyntheticHeLaVideos(model=model, **{**SMALL, **changes})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_ray_names_its_missing_extra(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    said = r"needs the package 'ray.data', .*pip install 'bvdm-data\[ray\]'"
    with pytest.raises(ImportError, match=said):
        ray_export(small(tiny_model), tmp_path / "data", clips=2)
    with pytest.raises(ImportError, match=said):
        ray_dataset(small(tiny_model), clips=2)
    assert not (tmp_path / "data").exists()


def test_ray_task_retries_then_gives_up(monkeypatch, tmp_path):
    pauses, left = [], [2]

    class Plan:
        @staticmethod
        def path(number):
            return tmp_path / f"{number}.tar"

    def failing(plan, number):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("stale file handle")
        return True

    monkeypatch.setattr(adapter, "write_shard", failing)
    monkeypatch.setattr(adapter.time, "sleep", pauses.append)
    assert adapter._write_shard({"id": 7}, Plan, 2) == {"shard": "7.tar", "written": True}
    assert pauses == [1, 2]
    left[0] = 2
    with pytest.raises(OSError, match="stale file handle"):
        adapter._write_shard({"id": 7}, Plan, 1)


def heavy_ray(test):
    for mark in (pytest.mark.slow, pytest.mark.heavy, pytest.mark.filterwarnings("ignore")):
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def cluster():
    """Start Ray on this machine, with two workers."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    pytest.importorskip("ray.data", reason="needs the extra ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


@heavy_ray
def test_ray_shards_equal_one_process(cluster, tmp_path, tiny_model):
    how = {"clips": 10, "clips_per_shard": 4}
    names = write_shards(small(tiny_model), tmp_path / "one", progress=False, **how)
    assert ray_export(small(tiny_model), tmp_path / "ray", **how) == names
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    (tmp_path / "ray" / names[1]).unlink()
    assert ray_export(small(tiny_model), tmp_path / "ray", **how) == [names[1]]
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    with pytest.raises(ValueError, match="begun with seed=3, got 4"):
        ray_export(small(tiny_model, seed=4), tmp_path / "ray", **how)


@heavy_ray
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the worker in /proc")
def test_ray_remakes_shard_of_killed_worker(cluster, tmp_path, tiny_model):
    folder, killed = tmp_path / "ray", []
    videos = small(tiny_model, frames=20, max_cells=200)

    def kill():
        until = time.monotonic() + 200
        while not killed and time.monotonic() < until:
            time.sleep(0.01)
            for link in Path("/proc").glob("[0-9]*/fd/*"):
                process = int(link.parts[2])
                if ".shard-" in _target(link) and process != os.getpid():
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    return

    killer = threading.Thread(target=kill)
    killer.start()
    names = ray_export(videos, folder, clips=160, clips_per_shard=40, compress=False)
    killer.join()
    assert killed
    assert names == [f"shard-{number:06d}.tar" for number in range(4)]
    one = tmp_path / "one"
    write_shards(videos, one, clips=160, clips_per_shard=40, compress=False, progress=False)
    assert contents(folder) == contents(one)


def _target(link):
    try:
        return os.readlink(link)
    except OSError:
        return ""


@heavy_ray
def test_ray_rows_are_clips(cluster, tiny_model):
    videos = small(tiny_model)
    videos.set_epoch(2)
    rows = sorted(
        ray_dataset(videos, clips=5, clips_per_task=2).iter_rows(), key=lambda row: row["index"]
    )
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    for row in rows:
        clip = videos.clip(row["index"])
        assert set(row) == set(clip)
        for key in ("video", "masks", "tracks"):
            assert row[key].dtype == clip[key].numpy().dtype
            assert np.array_equal(row[key], clip[key].numpy())
    batch = next(iter(ray_dataset(videos, clips=4).iter_torch_batches(batch_size=4)))
    assert batch["video"].shape == (4, 2, 1, 40, 40)
    assert digest({"video": batch["video"][0]}) == digest(
        {"video": videos.clip(int(batch["index"][0]))["video"]}
    )


@heavy_ray
def test_ray_refuses_endless_and_transforms(cluster, tiny_model):
    with pytest.raises(ValueError, match="clips must be given for an endless data set"):
        ray_dataset(small(tiny_model))
    with pytest.raises(ValueError, match="videos must have no transform"):
        ray_dataset(small(tiny_model, transform=lambda clip: clip), clips=2)
