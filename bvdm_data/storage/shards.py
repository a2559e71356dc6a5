"""Shards: clips written by the ranks of a job and the processes of a machine, and continued."""

import functools
import importlib.metadata
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from tqdm import tqdm

from bvdm_data.clip import build_schema
from bvdm_data.datasets.sharding import DistributedContext
from bvdm_data.datasets.synthetic import METHODS, SyntheticHeLaVideos
from bvdm_data.files import (
    MANIFEST,
    describe_damage,
    load_manifest,
    open_atomic,
    prepare_output_dir,
    write_manifest,
)
from bvdm_data.storage.formats import WRITERS, import_zarr
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.system import list_versions
from bvdm_data.validate import as_int, name_source_in_errors
from bvdm_data.weights import find_model, known_models, model_digest

LAYOUT = "bvdm-data shards 1"
"""Marks a manifest of shards, and their layout."""

CLIPS_PER_SHARD = 256
"""Default size of a shard: some hundred MB for clips of 8 x 256 x 256 px."""

_METHODS = {type(method).__name__: type(method) for method in METHODS.values()}
_UNCHANGED = ("frames", "size", "length", "seed", "variation", "annotations", "max_cells")


def to_config(videos: SyntheticHeLaVideos) -> dict[str, Any]:
    """Return everything that the clips of a data set follow from, as values for JSON."""
    if not isinstance(videos, SyntheticHeLaVideos):
        raise TypeError(
            f"videos must be a SyntheticHeLaVideos, got {type(videos).__name__}: only its clips "
            "follow from a few numbers"
        )
    if videos.transform is not None:
        raise ValueError(
            f"videos must have no transform, got {videos.transform!r}: the manifest cannot record "
            "it; apply it to the clips that are read"
        )
    names = {path.absolute(): name for name, path in known_models().items()}
    return {
        "model": names.get(videos.model, str(videos.model)),
        "digest": videos.digest,
        "epoch": videos.epoch,
        "nuclei": videos.nuclei,
        "method": {"kind": type(videos.method).__name__, **asdict(videos.method)},
        "pool": None if videos.pool is None else asdict(videos.pool),
        "device": str(videos.device),
        **{name: getattr(videos, name) for name in _UNCHANGED},
    }


def _from_config(config: Mapping[str, Any], model: str | Path | None = None) -> SyntheticHeLaVideos:
    """Return the data set of a config that was read from JSON."""
    name = config["model"] if model is None else model
    try:
        digest = model_digest(name)
    except (FileNotFoundError, ValueError) as error:
        message = f"{error}. Or give model=, the file that the clips were made with"
        raise type(error)(message) from error
    if digest != config["digest"]:
        raise ValueError(
            f"model must be the one that the clips were made with, whose SHA-256 is "
            f"{config['digest']}, but {str(name)!r} ({find_model(name)}) has {digest}; give the "
            "right file as model="
        )
    method: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config["method"].items()
    }
    nuclei = config["nuclei"]
    videos = SyntheticHeLaVideos(
        model=name,
        method=_METHODS[method.pop("kind")](**method),
        nuclei=tuple(nuclei) if isinstance(nuclei, list) else nuclei,
        pool=None if config["pool"] is None else PoolSettings(**config["pool"]),
        device=config["device"],
        **{key: config[key] for key in _UNCHANGED},
    )
    videos.set_epoch(config["epoch"])
    return videos


def get_schema(videos: SyntheticHeLaVideos) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of each key of a clip, as values for JSON."""
    schema = build_schema(videos.frames, videos.size, videos.max_cells, videos.annotations)
    return {
        key: {"dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}
        for key, (dtype, shape) in schema.items()
    }


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Shards of a folder: shard k holds the clips from ``k * clips_per_shard`` on."""

    folder: Path
    config: Mapping[str, Any]  # what the clips follow from; see to_config
    schema: Mapping[str, Any]  # dtype and shape of each key; see get_schema
    format: str  # "webdataset" or "zarr"
    compress: bool
    clips: int  # clips of all shards
    clips_per_shard: int  # clips of every shard, except perhaps the last

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.clips // self.clips_per_shard)

    def path(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"shard-{number:06d}{WRITERS[self.format][0]}"

    def indices(self, number: int) -> range:
        """Return the numbers of the clips of a shard."""
        first = number * self.clips_per_shard
        return range(first, min(first + self.clips_per_shard, self.clips))

    def to_manifest(self) -> dict[str, Any]:
        """Return the manifest of the folder, as values for JSON."""
        settings = dict(self.config)
        return {
            "layout": LAYOUT,
            "version": importlib.metadata.version("bvdm-data"),
            "versions": list_versions(("torch", "numpy", "scipy", "zarr")),
            "model": {key: settings.pop(key) for key in ("model", "digest")},
            **{key: settings.pop(key) for key in ("seed", "epoch")},
            "settings": settings,
            "format": self.format,
            "compress": self.compress,
            "schema": dict(self.schema),
            "clips": self.clips,
            "clips_per_shard": self.clips_per_shard,
            "shards": {
                self.path(number).name: [self.indices(number).start, self.indices(number).stop]
                for number in range(self.count)
            },
        }


def plan_shards(
    videos: SyntheticHeLaVideos,
    directory: str | Path,
    *,
    clips: SupportsIndex | None,
    clips_per_shard: SupportsIndex,
    format: str,
    compress: bool,
) -> ShardPlan:
    """Check the arguments of :func:`write_shards`."""
    config = to_config(videos)
    number = videos.length if clips is None else as_int("clips", clips, least=1)
    if number is None:
        raise ValueError(
            "clips must be given for an endless data set; give the number of clips, or give the "
            "data set a length"
        )
    if format not in WRITERS:
        names = " or ".join(repr(name) for name in WRITERS)
        raise ValueError(f"format must be {names}, got {format!r}")
    if not isinstance(compress, bool):
        raise TypeError(f"compress must be True or False, got {compress!r}")
    if format == "zarr":
        import_zarr()
    return ShardPlan(
        folder=Path(directory).expanduser().absolute(),
        config=config,
        schema=get_schema(videos),
        format=format,
        compress=compress,
        clips=number,
        clips_per_shard=as_int("clips_per_shard", clips_per_shard, least=1),
    )


def prepare_manifest(plan: ShardPlan) -> None:
    """Write the manifest into a new folder, or check and extend the one of a begun folder."""
    path, manifest = plan.folder / MANIFEST, plan.to_manifest()
    remains = ("shard-", ".shard-", f".{path.stem}-")
    begun = prepare_output_dir(plan.folder, manifest, identity=_get_identity, remains=remains)
    if begun is None:
        return
    if "clips" not in begun:
        raise ValueError(describe_damage(path, "it lacks 'clips'"))
    clips, size = begun["clips"], plan.clips_per_shard
    if plan.clips < clips:
        raise ValueError(
            f"clips must be at least the {clips} that {plan.folder} was begun with, got "
            f"{plan.clips}; give {clips} or more, or another folder"
        )
    if plan.clips > clips and clips % size:
        raise ValueError(
            f"clips must be the {clips} that {plan.folder} was begun with, got {plan.clips}: its "
            f"last shard is to hold {clips % size} clips, not {size}; give another folder. Only "
            "whole shards can be followed by more"
        )
    if plan.clips > clips:
        write_manifest(path, manifest)


def _get_identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same in a later call."""
    may_differ = ("versions", "clips", "shards", "settings", "model")
    kept = {key: value for key, value in manifest.items() if key not in may_differ}
    digest = manifest.get("model", {}).get("digest")
    return {**kept, **manifest.get("settings", {}), "digest": digest}


def read_manifest(directory: str | Path, *, model: str | Path | None = None) -> SyntheticHeLaVideos:
    """Return the data set that the shards of a folder were written from.

    Its ``clip(i)`` makes any of their clips again, even if the shard is missing. With the versions
    that the manifest names, on the same kind of processor, the clip is the same to the last bit.

    Args:
        directory: Folder with the manifest.
        model: Name or file of the model if it was moved; None: as in the manifest.

    Returns:
        The data set, in the epoch that was written.

    Raises:
        FileNotFoundError: If there is no manifest, or not the model's file.
        ValueError: If the manifest is damaged, or the model is another one.

    Examples:
        Clip 12 of a folder of shards::

            clip = read_manifest("shards").clip(12)
    """
    path = Path(directory).expanduser() / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"directory must hold shards of write_shards, but there is no {path}; give the folder "
            "that they were written to"
        )
    manifest = load_manifest(path)
    if manifest.get("layout") != LAYOUT:
        raise ValueError(
            f"{path} is no manifest of shards: its layout is {manifest.get('layout')!r} where "
            f"{LAYOUT!r} is expected"
        )
    try:
        position = {key: manifest[key] for key in ("seed", "epoch")}
        return _from_config({**manifest["settings"], **manifest["model"], **position}, model)
    except KeyError as error:
        raise ValueError(describe_damage(path, f"it lacks {error}")) from error


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
    plan = plan_shards(
        videos,
        directory,
        clips=clips,
        clips_per_shard=clips_per_shard,
        format=format,
        compress=compress,
    )
    processes = as_int("workers", workers, least=0)
    rank, world_size = DistributedContext(shard).find()
    prepare_manifest(plan)
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
    path, indices = plan.path(number), plan.indices(number)
    if path.exists():
        return False
    videos = _load_videos(json.dumps(plan.config))
    place = f"It is in {path.name} of {path.parent}; the same call continues there"
    try:
        with name_source_in_errors(place), open_atomic(path) as temporary:
            write = WRITERS[plan.format][1]
            write(temporary, map(videos.clip, indices), len(indices), plan.schema, plan.compress)
    except FileNotFoundError:
        # Another process has finished the shard first, and removed this temporary file as a
        # remainder.
        if path.exists():
            return False
        raise
    for remainder in path.parent.glob(f".{path.stem}-*{path.suffix}"):
        remainder.unlink(missing_ok=True)
    return True


@functools.lru_cache(maxsize=1)
def _load_videos(config: str) -> SyntheticHeLaVideos:
    """Return the data set of this process; it is kept, so that its cell bank is rendered once."""
    return _from_config(json.loads(config))


def _write_all(plan: ShardPlan, numbers: Sequence[int], workers: int) -> Iterator[tuple[int, bool]]:
    """Yield the numbers of finished shards in any order, and whether they were written now."""
    missing = [number for number in numbers if not plan.path(number).exists()]
    yield from ((number, False) for number in sorted({*numbers} - {*missing}))
    if not workers or not missing:
        yield from ((number, write_shard(plan, number)) for number in missing)
        return
    processes = ProcessPoolExecutor(
        min(workers, len(missing)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    with processes:
        tasks = {processes.submit(write_shard, plan, number): number for number in missing}
        try:
            for task in as_completed(tasks):
                yield tasks[task], task.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"one of the workers={workers} was killed, by the system if memory ran out; all "
                "whole shards are there, and the same call continues. Use fewer workers if it "
                "happens again"
            ) from error
        finally:
            processes.shutdown(cancel_futures=True)
