"""Writing: shards by ranks of a job, by processes of a machine, again after any of them died."""

import functools
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import SupportsIndex

import torch
from tqdm import tqdm

from bvdm_data.datasets.arguments import check_whole_number
from bvdm_data.datasets.failures import naming
from bvdm_data.datasets.shards import FoundShard
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.files import whole_file
from bvdm_data.storage.containers import WRITERS
from bvdm_data.storage.manifest import CLIPS_PER_SHARD, Plan, claim, plan_shards
from bvdm_data.storage.recipe import videos_of


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

    Shard ``k`` holds the clips from ``k * clips_per_shard`` on, whoever makes it. It is written
    under a hidden name and moved into place when it is whole. So a second call with the same
    arguments makes what is missing, after a process was killed or on more machines, and nothing
    else. ``bvdm_data.json`` in the folder says all that a clip follows from; see
    :func:`read_manifest`.

    The shards are dealt out to the ranks of a job: started by torchrun, or wherever ``RANK`` and
    ``WORLD_SIZE`` are set, rank ``r`` of ``R`` makes the shards ``r``, ``r + R``, ... No process
    group is needed; the folder must be one that all of them see.

    Args:
        videos: The clips, of the epoch that it is in, without a transform.
        directory: Folder to write; it must be missing, empty, or begun by the same call.
        clips: How many, from clip 0 on; None: the ``length`` of the data set. A later call may
            ask for more, if what was asked for before is whole shards.
        clips_per_shard: Clips of a shard; the last one may have fewer.
        format: ``"webdataset"``: ``shard-000000.tar`` with a member ``000000000.video.npy`` for
            each key of a clip, which the package of that name decodes. ``"zarr"``:
            ``shard-000000.zip``, a zarr group with one array a key and one chunk a clip.
        compress: Whether members are gzipped (``.npy.gz``, which webdataset decodes, too) or
            chunks compressed (zstd).
        workers: Processes of this rank; 0: none beside this one. Each is started anew, so a
            script needs ``if __name__ == "__main__":``.
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
        OSError: If a file cannot be written. Whatever fails, all shards that were whole stay.

    Examples:
        A million clips by eight processes::

            videos = SyntheticHeLaVideos(frames=8, size=(256, 256), seed=0)
            write_shards(videos, "shards", clips=1_000_000, workers=8)
    """
    plan = plan_shards(
        videos,
        directory,
        clips=clips,
        clips_per_shard=clips_per_shard,
        format=format,
        compress=compress,
    )
    processes = check_whole_number("workers", workers, least=0)
    rank, ranks = FoundShard(shard).find()
    claim(plan)
    mine = range(rank, plan.count, ranks)
    written = []
    total = sum(len(plan.indices(number)) for number in mine)
    with tqdm(total=total, desc="writing", unit="clip", disable=not progress or rank > 0) as bar:
        for number, is_new in _made(plan, mine, processes):
            bar.update(len(plan.indices(number)))
            if is_new:
                written.append(plan.path(number).name)
    return sorted(written)


def make_shard(plan: Plan, number: int) -> bool:
    """Make one shard, if it is not there.

    Args:
        plan: What is written.
        number: Number of the shard, from 0.

    Returns:
        Whether this call has made it.

    Raises:
        Exception: What the data set raises where a clip fails, or an OSError where the disk does;
            no half shard is left.
    """
    path = plan.path(number)
    if path.exists():
        return False
    videos, indices = _videos(json.dumps(plan.recipe)), plan.indices(number)
    try:
        with (
            naming(f"It is in {path.name} of {path.parent}; the same call goes on there"),
            whole_file(path) as temporary,
        ):
            write = WRITERS[plan.format][1]
            write(temporary, map(videos.clip, indices), len(indices), plan.schema, plan.compress)
    except FileNotFoundError:
        # Somebody else was faster, and has cleared away what they took for remains.
        if path.exists():
            return False
        raise
    for rest in path.parent.glob(f".{path.stem}-*{path.suffix}"):
        rest.unlink(missing_ok=True)
    return True


@functools.lru_cache(maxsize=1)
def _videos(recipe: str) -> SyntheticHeLaVideos:
    """Return the data set of this process, so that a pool of nuclei is painted once."""
    return videos_of(json.loads(recipe))


def _made(plan: Plan, numbers: Sequence[int], workers: int) -> Iterator[tuple[int, bool]]:
    """Yield the numbers of shards that are there, and whether they are new, as they come."""
    missing = [number for number in numbers if not plan.path(number).exists()]
    yield from ((number, False) for number in sorted({*numbers} - {*missing}))
    if not workers or len(missing) < 1:
        yield from ((number, make_shard(plan, number)) for number in missing)
        return
    processes = ProcessPoolExecutor(
        min(workers, len(missing)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    with processes:
        tasks = {processes.submit(make_shard, plan, number): number for number in missing}
        try:
            for task in as_completed(tasks):
                yield tasks[task], task.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"one of the workers={workers} was killed, by the system if memory ran out; all "
                "whole shards are there, and the same call goes on. Use fewer workers if it "
                "happens again"
            ) from error
        finally:
            processes.shutdown(cancel_futures=True)
