"""Shards: clips written by the ranks of a job and the processes of a machine, and continued."""

import functools
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import SupportsIndex

import torch
from tqdm import tqdm

from bvdm_data.datasets.sharding import DistributedContext
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.files import open_atomic, remove_leftovers
from bvdm_data.storage.formats import FORMATS, check_shard
from bvdm_data.storage.plan import CLIPS_PER_SHARD, ShardPlan, begin_shards, make_videos
from bvdm_data.validate import as_int, name_source_in_errors


def write_shards(
    videos: SyntheticHeLaVideos,
    directory: str | Path,
    *,
    clips: SupportsIndex | None = None,
    clips_per_shard: SupportsIndex = CLIPS_PER_SHARD,
    format: str = "webdataset",
    compress: bool = True,
    workers: SupportsIndex = 0,
    shard: Sequence[int] | None = None,
    progress: bool = True,
) -> list[str]:
    """Write the clips of a data set to disk, as shards that many machines can make together.

    Shard ``k`` holds the clips from ``k * clips_per_shard`` on, whichever process makes it. It is
    written under a hidden name and moved into place when it is whole. So a second call with the
    same arguments makes only what is missing, after a process was killed or on more machines.
    ``bvdm_data.json`` in the folder records everything that the clips follow from; see
    :func:`read_manifest`.

    The shards are split over the ranks of a job: under torchrun, or wherever ``RANK`` and
    ``WORLD_SIZE`` are set, rank ``r`` of ``R`` makes the shards ``r``, ``r + R``, ... No process
    group is needed, but all ranks must see the same folder.

    Args:
        videos: The data set, in the epoch to be written, without a transform.
        directory: Folder to write; it must be missing, empty, or begun by the same call.
        clips: How many, from clip 0 on; None: the ``length`` of the data set. A later call may
            ask for more, if what was asked for before is whole shards.
        clips_per_shard: Clips of a shard; the last one may have fewer.
        format: ``"webdataset"``: ``shard-000000.tar`` with a member ``000000000.video.npy`` for
            each key of a clip, which the package of that name decodes. ``"zarr"``:
            ``shard-000000.zip``, a zarr group with one array a key and one chunk a clip.
        compress: Whether members are gzipped (``.npy.gz``, which webdataset decodes, too) or
            chunks compressed (zstd).
        workers: Processes of this rank; 0: only this one. They are spawned, so a script needs
            ``if __name__ == "__main__":``.
        shard: Number of this rank from 0, and of all ranks. None: those of the job; see
            :class:`SyntheticHeLaVideos`.
        progress: Show a progress bar.

    Returns:
        The names of the shards that this call has written.

    Raises:
        ChildProcessError: If one of the workers was killed.
        ImportError: If zarr is asked for and missing.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range, or the folder was begun with other
            settings or holds something else.
        OSError: If a file cannot be written. After any error, whole shards stay.

    Examples:
        A million clips by eight processes::

            videos = SyntheticHeLaVideos(frames=8, size=(256, 256), seed=0)
            write_shards(videos, "shards", clips=1_000_000, workers=8)
    """
    processes = as_int("workers", workers, least=0)
    rank, world_size = DistributedContext(shard).find()
    plan = begin_shards(videos, directory, clips, clips_per_shard, format, compress)
    numbers = range(rank, plan.count, world_size)
    written = []
    total = sum(len(plan.indices(number)) for number in numbers)
    with tqdm(total=total, desc="writing", unit="clip", disable=not progress or rank > 0) as bar:
        for number, is_new in _write_all(plan, numbers, processes):
            bar.update(len(plan.indices(number)))
            if is_new:
                written.append(plan.path(number).name)
    return sorted(written)


def write_shard(plan: ShardPlan, number: int) -> bool:
    """Write one shard, unless it is there; return whether it was written."""
    path, content = plan.path(number), plan.content(number)
    if path.exists():
        check_shard(path, content)
        remove_leftovers(path)
        return False
    videos = _load_videos(json.dumps(plan.config))
    place = f"It is in {path.name} of {path.parent}; the same call continues there"
    try:
        with name_source_in_errors(place), open_atomic(path) as temporary:
            FORMATS[plan.format].write(temporary, map(videos.clip, content.indices), content)
    except FileNotFoundError:
        # Another process has finished the shard first, and removed this temporary file as a
        # remainder.
        if path.exists():
            return False
        raise
    for remainder in path.parent.glob(f".{path.name}.*"):
        remainder.unlink(missing_ok=True)
    return True


@functools.lru_cache(maxsize=1)
def _load_videos(config: str) -> SyntheticHeLaVideos:
    """Return the data set of this process; it is kept, so that its cell bank is rendered once."""
    return make_videos(json.loads(config))


def _write_all(plan: ShardPlan, numbers: Sequence[int], workers: int) -> Iterator[tuple[int, bool]]:
    """Yield the numbers of finished shards in any order, and whether they were written now."""
    if not workers or not numbers:
        yield from ((number, write_shard(plan, number)) for number in numbers)
        return
    others = {*multiprocessing.active_children()}
    processes = ProcessPoolExecutor(
        min(workers, len(numbers)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
    )
    try:
        with _keep_interrupts_from_workers():
            tasks = {processes.submit(write_shard, plan, number): number for number in numbers}
        for task in as_completed(tasks):
            yield tasks[task], task.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of the workers={workers} was killed, by the system if memory ran out; all "
            "whole shards are there, and the same call continues. Use fewer workers if it "
            "happens again"
        ) from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        for process in {*multiprocessing.active_children()} - others:
            process.kill()
        raise
    finally:
        processes.shutdown(cancel_futures=True)


@contextmanager
def _keep_interrupts_from_workers() -> Iterator[None]:
    """Let processes that are started now not see Ctrl-C: this one ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this process soon after the one that started it."""
    parent = multiprocessing.parent_process()
    while parent and parent.is_alive() and (os.name != "posix" or os.getppid() == parent.pid):
        time.sleep(0.5)
    os._exit(1)
