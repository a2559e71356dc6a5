"""Writing: shards by ranks of a job, by processes of a machine, again after any of them died."""

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

from bvdm_data.datasets.export import MANIFEST
from bvdm_data.datasets.sharding import DistributedContext
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.files import open_atomic
from bvdm_data.storage.formats import WRITERS, import_zarr
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import Method
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import list_versions
from bvdm_data.validate import as_int, name_source_in_errors
from bvdm_data.weights import find_model, known_models, model_digest

_METHODS: Mapping[str, type[Method]] = {
    kind.__name__: kind for kind in (FastSettings, PaperSettings, ProceduralSettings)
}
_PLAIN = ("frames", "length", "seed", "variation", "max_cells")


def to_config(videos: SyntheticHeLaVideos) -> dict[str, Any]:
    """Return what the clips of a data set follow from."""
    if not isinstance(videos, SyntheticHeLaVideos):
        raise TypeError(
            f"videos must be a SyntheticHeLaVideos, got {type(videos).__name__}: only its clips "
            "follow from a few numbers"
        )
    if videos.transform is not None:
        raise ValueError(
            f"videos must have no transform, got {videos.transform!r}: it could not be told in the "
            "manifest; apply it to the clips that are read"
        )
    names = {path.absolute(): name for name, path in known_models().items()}
    plain = {name: getattr(videos, name) for name in _PLAIN}
    return {
        "model": names.get(videos.model, str(videos.model)),
        "digest": model_digest(videos.model),
        "epoch": videos.epoch,
        "size": list(videos.size),
        "nuclei": list(videos.nuclei) if isinstance(videos.nuclei, tuple) else videos.nuclei,
        "annotations": list(videos.annotations),
        "method": {"kind": type(videos.method).__name__, **_listed(asdict(videos.method))},
        "pool": None if videos.pool is None else asdict(videos.pool),
        "device": str(videos.device),
        **plain,
    }


def from_config(recipe: Mapping[str, Any], model: str | Path | None = None) -> SyntheticHeLaVideos:
    """Return the data set that a recipe tells of."""
    name = recipe["model"] if model is None else model
    try:
        digest = model_digest(name)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}. Or give model=, the file that the clips were made with") from (
            error
        )
    if digest != recipe["digest"]:
        raise ValueError(
            f"model must be the one that the clips were made with, whose SHA-256 is "
            f"{recipe['digest']}, but {str(name)!r} ({find_model(name)}) has {digest}; give the "
            "right file as model="
        )
    said = dict(recipe["method"])
    method = _METHODS[said.pop("kind")](**_tuples(said))
    nuclei = recipe["nuclei"]
    videos = SyntheticHeLaVideos(
        model=name,
        method=method,
        size=recipe["size"],
        nuclei=tuple(nuclei) if isinstance(nuclei, list) else nuclei,
        annotations=recipe["annotations"],
        pool=None if recipe["pool"] is None else PoolSettings(**recipe["pool"]),
        device=recipe["device"],
        **{key: recipe[key] for key in _PLAIN},
    )
    videos.set_epoch(recipe["epoch"])
    return videos


def get_schema(videos: SyntheticHeLaVideos) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of each key of a clip; see :class:`bvdm_data.Clip`."""
    frames, size, rows = videos.frames, list(videos.size), videos.max_cells
    every: dict[str, tuple[str, list[int]]] = {
        "video": ("float32", [frames, 1, *size]),
        "masks": ("int32", [frames, *size]),
        "tracks": ("int32", [rows, 4]),
        "flow": ("float32", [frames - 1, 2, *size]),
        "stages": ("int8", [rows, frames]),
        "boxes": ("float32", [rows, frames, 4]),
        "centroids": ("float32", [rows, frames, 2]),
        "index": ("int64", []),
        "source": ("int8", []),
    }
    wanted = {"video", *videos.annotations, "index", "source"}
    return {
        key: {"dtype": dtype, "shape": shape}
        for key, (dtype, shape) in every.items()
        if key in wanted
    }


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


LAYOUT = "bvdm-data shards 1"
"""Says that a folder holds shards, and in which layout."""

CLIPS_PER_SHARD = 256
"""Clips in a shard where nothing else is said: some hundred MB for clips of 8 x 256 x 256 px."""

_MAY_DIFFER = ("versions", "clips", "shards")
"""What another start into the same folder may have otherwise; clips only more."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Shards of a folder: shard k holds the clips from ``k * clips_per_shard`` on."""

    folder: Path  # where they are
    recipe: Mapping[str, Any]  # what the clips follow from; see recipe_of
    schema: Mapping[str, Any]  # dtype and shape of each key; see schema_of
    format: str  # "webdataset" or "zarr"
    compress: bool  # whether they are compressed
    clips: int  # clips of all shards
    clips_per_shard: int  # clips of every shard but perhaps the last

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

    def said(self) -> dict[str, Any]:
        """Return the manifest: JSON values."""
        recipe = dict(self.recipe)
        return {
            "layout": LAYOUT,
            "version": importlib.metadata.version("bvdm-data"),
            "versions": list_versions(("torch", "numpy", "scipy", "zarr")),
            "model": {key: recipe.pop(key) for key in ("model", "digest")},
            **{key: recipe.pop(key) for key in ("seed", "epoch")},
            "settings": recipe,
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
    """Check what is to be written; see :func:`write_shards` for arguments and errors."""
    recipe = to_config(videos)
    number = videos.length if clips is None else as_int("clips", clips, least=1)
    if number is None:
        raise ValueError(
            "clips must be given for an endless data set; say how many clips, or give the data set "
            "a length"
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
        recipe=recipe,
        schema=get_schema(videos),
        format=format,
        compress=compress,
        clips=number,
        clips_per_shard=as_int("clips_per_shard", clips_per_shard, least=1),
    )


def prepare_manifest(plan: ShardPlan) -> None:
    """Write the manifest into a new folder, or check that of a folder that was begun.

    Any number of processes may do so at once: they all write the same.
    """
    path, said = plan.folder / MANIFEST, plan.said()
    if path.is_file():
        begun = _read(path)
        if begun.get("layout") != LAYOUT:
            raise ValueError(_foreign(plan.folder))
        if "clips" not in begun:
            raise ValueError(_damaged(path, "it lacks 'clips'"))
        _check_same(plan, begun, said)
        if begun["clips"] == plan.clips:
            return
    elif plan.folder.exists() and (not plan.folder.is_dir() or any(_others(plan.folder))):
        raise ValueError(_foreign(plan.folder))
    with open_atomic(path) as temporary:
        temporary.write_text(_text(said))


def read_manifest(directory: str | Path, *, model: str | Path | None = None) -> SyntheticHeLaVideos:
    """Return the data set that the shards of a folder were written from.

    Its ``clip(i)`` makes any of their clips again, whether their shard is there or not. With the
    versions that the manifest names, on the same kind of processor, it is the same to the last
    bit.

    Args:
        directory: Folder with the manifest.
        model: Name or file of the model where it is elsewhere now; None: as the manifest says.

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
    said = _read(path)
    if said.get("layout") != LAYOUT:
        raise ValueError(
            f"{path} is no manifest of shards: its layout is {said.get('layout')!r} where "
            f"{LAYOUT!r} is expected"
        )
    try:
        recipe = {**said["settings"], **said["model"], "seed": said["seed"], "epoch": said["epoch"]}
        return from_config(recipe, model)
    except KeyError as error:
        raise ValueError(_damaged(path, f"it lacks {error}")) from error


def _check_same(plan: ShardPlan, begun: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    before, now = _flat(begun), _flat(said)
    for key in [*now, *before]:
        if key != "model" and before.get(key) != now.get(key):
            raise ValueError(
                f"{plan.folder} was begun with {key}={before.get(key)!r}, got {now.get(key)!r}; "
                "give the same arguments to go on, or another folder"
            )
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


def _flat(said: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in said.items() if key not in _MAY_DIFFER}
    nested = [kept.pop(key, {}) for key in ("settings", "model")]
    return {**kept, **nested[0], **nested[1]}


def _others(folder: Path) -> list[Path]:
    """Return what is neither a shard nor a file that a killed start has left."""
    ours = ("shard-", ".shard-", f".{Path(MANIFEST).stem}-")
    return [path for path in folder.iterdir() if not path.name.startswith(ours)]


def _foreign(folder: Path) -> str:
    return (
        f"directory must be new, empty, or begun by the same call, but {folder} holds something "
        "else; give another one"
    )


def _text(said: Mapping[str, Any]) -> str:
    """Return JSON with a line for each entry of the two outer levels."""
    lines = []
    for key, value in said.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(_damaged(path, error)) from error
    return said if isinstance(said, dict) else {}


def _damaged(path: Path, why: object) -> str:
    return f"{path} is damaged ({why}); give another directory, or remove this file"


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
    processes = as_int("workers", workers, least=0)
    rank, ranks = DistributedContext(shard).find()
    prepare_manifest(plan)
    mine = range(rank, plan.count, ranks)
    written = []
    total = sum(len(plan.indices(number)) for number in mine)
    with tqdm(total=total, desc="writing", unit="clip", disable=not progress or rank > 0) as bar:
        for number, is_new in _made(plan, mine, processes):
            bar.update(len(plan.indices(number)))
            if is_new:
                written.append(plan.path(number).name)
    return sorted(written)


def write_shard(plan: ShardPlan, number: int) -> bool:
    """Make one shard, if it is not there."""
    path = plan.path(number)
    if path.exists():
        return False
    videos, indices = _videos(json.dumps(plan.recipe)), plan.indices(number)
    try:
        with (
            name_source_in_errors(
                f"It is in {path.name} of {path.parent}; the same call goes on there"
            ),
            open_atomic(path) as temporary,
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
    return from_config(json.loads(recipe))


def _made(plan: ShardPlan, numbers: Sequence[int], workers: int) -> Iterator[tuple[int, bool]]:
    """Yield the numbers of shards that are there, and whether they are new, as they come."""
    missing = [number for number in numbers if not plan.path(number).exists()]
    yield from ((number, False) for number in sorted({*numbers} - {*missing}))
    if not workers or len(missing) < 1:
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
                "whole shards are there, and the same call goes on. Use fewer workers if it "
                "happens again"
            ) from error
        finally:
            processes.shutdown(cancel_futures=True)
