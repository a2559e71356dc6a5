"""Ray Data: shards written, and clips made, by the tasks of a Ray cluster."""

import functools
import time
from pathlib import Path
from typing import Any, SupportsIndex

import torch

from bvdm_data.adapters.common import count_clips, list_arrays
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.storage.plan import CLIPS_PER_SHARD, ShardPlan, begin_shards, to_config
from bvdm_data.storage.shards import write_shard
from bvdm_data.system import require
from bvdm_data.validate import as_int

PAUSE = 1.0
"""Seconds before a task tries a shard again after an error of the disk; doubled each time."""


def ray_export(
    videos: SyntheticHeLaVideos,
    directory: str | Path,
    *,
    clips: SupportsIndex | None = None,
    clips_per_shard: SupportsIndex = CLIPS_PER_SHARD,
    format: str = "webdataset",
    compress: bool = True,
    retries: SupportsIndex = 3,
    concurrency: int | None = None,
) -> list[str]:
    """Write clips as shards, one task of a Ray cluster a shard.

    The files are those of :func:`bvdm_data.storage.write_shards`: either may go on where the
    other was stopped. A shard whose worker or machine is lost is made anew elsewhere.

    Args:
        videos: The clips; see :func:`write_shards`, also for the arguments that are not here.
        directory: Folder to write, on a disk that all machines of the cluster see.
        clips: How many; None: the ``length`` of the data set.
        clips_per_shard: Clips of a shard.
        format: ``"webdataset"`` or ``"zarr"``.
        compress: Whether shards are compressed.
        retries: How often a task tries its shard again when the disk fails, after 1, 2, 4, ...
            seconds. When its worker is lost, Ray starts the task again by itself.
        concurrency: Most tasks at a time; None: as many as the cluster has cores.

    Returns:
        The names of the shards that this call has written.

    Raises:
        ImportError: If Ray Data is missing.
        Exception: What :func:`write_shards` raises for wrong arguments, and what Ray raises when
            a task fails for good; whole shards stay.

    Examples:
        On the cluster that ``RAY_ADDRESS`` names, or on this machine::

            ray_export(SyntheticHeLaVideos(), "/shared/shards", clips=1_000_000)
    """
    data = require("ray.data", "ray")
    tries = as_int("retries", retries, least=0)
    plan = begin_shards(videos, directory, clips, clips_per_shard, format, compress)
    numbers = data.range(plan.count, override_num_blocks=plan.count)
    made = numbers.map(
        functools.partial(_write_shard, plan=plan, retries=tries), concurrency=concurrency
    )
    return sorted(row["shard"] for row in made.iter_rows() if row["written"])


def ray_dataset(
    videos: SyntheticHeLaVideos,
    *,
    clips: SupportsIndex | None = None,
    clips_per_task: SupportsIndex = 16,
    concurrency: int | None = None,
) -> Any:
    """Return clips as the rows of a Ray data set; they are made as they are asked for.

    Args:
        videos: The clips, of the epoch that it is in, without a transform.
        clips: How many; None: the ``length`` of the data set.
        clips_per_task: Clips that one task makes.
        concurrency: Most tasks at a time; None: as many as the cluster has cores.

    Returns:
        A ``ray.data.Dataset`` whose rows have the keys of a clip; arrays of the same shapes and
        dtypes, ``index`` and ``source`` as numbers. Tasks finish in any order; ``index`` says
        which clip a row is.

    Raises:
        ImportError: If Ray Data is missing.
        TypeError: If an argument is of the wrong type.
        ValueError: If the data set is endless and clips is missing, or it has a transform.

    Examples:
        Batches of arrays for a training worker::

            for batch in ray_dataset(videos, clips=1000).iter_batches(batch_size=4):
                step(torch.from_numpy(batch["video"]), torch.from_numpy(batch["masks"]))
    """
    data = require("ray.data", "ray")
    to_config(videos)
    number = count_clips(videos, clips)
    size = as_int("clips_per_task", clips_per_task, least=1)
    numbers = data.range(number, override_num_blocks=-(-number // size))
    return numbers.map(functools.partial(_make_row, videos=videos), concurrency=concurrency)


def _write_shard(row: dict[str, Any], plan: ShardPlan, retries: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    number, tried = int(row["id"]), 0
    while True:
        try:
            return {"shard": plan.path(number).name, "written": write_shard(plan, number)}
        except OSError:
            if tried == retries:
                raise
            time.sleep(PAUSE * 2**tried)
            tried += 1


def _make_row(row: dict[str, Any], videos: SyntheticHeLaVideos) -> dict[str, Any]:
    torch.set_num_threads(1)
    arrays = list_arrays(videos, int(row["id"]))
    return {key: array if array.ndim else array.item() for key, array in arrays.items()}
