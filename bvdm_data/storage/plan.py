"""Plan of a folder of shards: what each holds, and the manifest that says so."""

import functools
import importlib.metadata
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from bvdm_data.clip import build_schema
from bvdm_data.datasets.synthetic import METHODS, SyntheticHeLaVideos
from bvdm_data.files import (
    MANIFEST,
    check_entries,
    cut_words,
    describe_damage,
    prepare_output_dir,
    read_json,
    write_manifest,
)
from bvdm_data.storage.formats import (
    FORMATS,
    LARGEST_ARRAY,
    ShardContent,
    compute_mark,
    import_zarr,
    read_mark,
)
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.system import describe_cpu, list_versions
from bvdm_data.validate import as_int
from bvdm_data.weights import find_model, known_models, model_digest

LAYOUT = "bvdm-data shards 1"  # marks a manifest of shards, and their layout
CLIPS_PER_SHARD = 256  # default size of a shard: some hundred MB for clips of 8 x 256 x 256 px
_MOST_SHARDS = 1_000_000  # names have six digits

# Types of what a manifest holds and a later call reads.
_KINDS = {
    **dict.fromkeys(("seed", "epoch", "clips", "clips_per_shard"), int),
    "compress": bool,
    "format": str,
    "model": {"model": str, "digest": str},
    "settings": {
        **dict.fromkeys(("frames", "max_cells"), int),
        **dict.fromkeys(("size", "annotations"), list),
        "variation": float | int | dict,
        "nuclei": int | list | None,
        "length": int | None,
        "method": {"kind": str},
        "pool": dict | None,
        "device": str,
    },
}
_METHODS = {type(method).__name__: type(method) for method in METHODS.values()}
_OTHERS = "model method nuclei pool device transform batch_size shard minutes".split()  # noqa: SIM905
# Arguments that only manifests of other values name.
_NEWER = {"death_rate": None, "video": True, "drift": 0.0, "jumps": [0.0, 0.0]}
_UNCHANGED = [name for name in signature(SyntheticHeLaVideos).parameters if name not in _OTHERS]


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
    config = {name: getattr(videos, name) for name in _UNCHANGED}
    config["jumps"] = list(videos.jumps)
    if videos._settings.step > 1:
        config["minutes"] = videos.minutes
    return {
        "model": names.get(videos.model, str(videos.model)),
        "digest": videos.digest,
        "epoch": videos.epoch,
        "nuclei": videos.nuclei,
        "method": {"kind": type(videos.method).__name__, **asdict(videos.method)},
        "pool": None if videos.pool is None else asdict(videos.pool),
        "device": str(videos.device),
        **{k: value for k, value in config.items() if k not in _NEWER or value != _NEWER[k]},
    }


def make_videos(
    config: Mapping[str, Any], model: str | Path | None = None, manifest: Path | None = None
) -> SyntheticHeLaVideos:
    """Return the data set of a config that was read from JSON; errors name its manifest."""
    name: str | Path = config["model"] if model is None else model
    try:
        digest = model_digest(name)
    except (OSError, ValueError) as error:
        message = f"{cut_words(str(error))}. Or give model=, the file that the clips were made with"
        raise type(error)(message) from error
    if digest != config["digest"]:
        raise ValueError(
            f"model must be the one that the clips were made with, whose SHA-256 is "
            f"{cut_words(config['digest'], 64)}, but {str(name)!r} ({find_model(name)}) has "
            f"{digest}; give the right file as model="
        )
    method: dict[str, Any] = {k: _to_tuple(value) for k, value in config["method"].items()}
    # Manifests without an outline are of clips whose outlines were as annotated.
    config = {"outline": "video", **config}
    try:
        videos = SyntheticHeLaVideos(
            model=name,
            method=_METHODS[method.pop("kind")](**method),
            nuclei=_to_tuple(config["nuclei"]),
            pool=None if config["pool"] is None else PoolSettings(**config["pool"]),
            device=config["device"],
            minutes=config.get("minutes"),
            **{key: config[key] for key in _UNCHANGED if key in config},
        )
        videos.set_epoch(config["epoch"])
    except (TypeError, ValueError, LookupError) as error:
        if manifest is None:
            raise
        raise ValueError(describe_damage(manifest, error)) from error
    return videos


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def get_schema(videos: SyntheticHeLaVideos) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of each key of a clip, as values for JSON."""
    schema = build_schema(videos.frames, videos.size, videos.max_cells, videos.annotations)
    if not videos.video:
        del schema["video"]
    return {
        key: {"dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}
        for key, (dtype, shape) in schema.items()
    }


@dataclass(frozen=True)
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
        return self.folder / f"shard-{number:06d}{FORMATS[self.format].suffix}"

    def indices(self, number: int) -> range:
        """Return the numbers of the clips of a shard."""
        first = number * self.clips_per_shard
        return range(first, min(first + self.clips_per_shard, self.clips))

    def content(self, number: int) -> ShardContent:
        """Return what a shard holds."""
        return ShardContent(self.indices(number), self.schema, self.compress, self.mark)

    @functools.cached_property
    def mark(self) -> str:
        """What stands for all settings in every shard."""
        identity = json.dumps(_get_identity(self._describe_settings()), sort_keys=True)
        return compute_mark(identity.encode())

    def to_manifest(self) -> dict[str, Any]:
        """Return the manifest of the folder, as values for JSON."""
        return {
            **self._describe_settings(),
            "clips": self.clips,
            "shards": {
                self.path(number).name: [self.indices(number).start, self.indices(number).stop]
                for number in range(self.count)
            },
        }

    def _describe_settings(self) -> dict[str, Any]:
        settings = dict(self.config)
        return {
            "layout": LAYOUT,
            "version": importlib.metadata.version("bvdm-data"),
            "versions": list_versions(("torch", "numpy", "scipy", "zarr")),
            "processor": describe_cpu(),
            "model": {key: settings.pop(key) for key in ("model", "digest")},
            **{key: settings.pop(key) for key in ("seed", "epoch")},
            "settings": settings,
            "format": self.format,
            "compress": self.compress,
            "schema": dict(self.schema),
            "clips_per_shard": self.clips_per_shard,
        }


def begin_shards(
    videos: SyntheticHeLaVideos,
    directory: str | Path,
    clips: SupportsIndex | None,
    clips_per_shard: SupportsIndex,
    format: str,
    compress: bool,
) -> ShardPlan:
    """Check the arguments of :func:`write_shards`; write the manifest, or check the begun one."""
    config = to_config(videos)
    number = videos.length if clips is None else as_int("clips", clips, least=1)
    if number is None:
        raise ValueError(
            "clips must be given for an endless data set; give the number of clips, or give the "
            "data set a length"
        )
    if format not in FORMATS:
        names = " or ".join(repr(name) for name in FORMATS)
        raise ValueError(f"format must be {names}, got {format!r}")
    if not isinstance(compress, bool):
        raise TypeError(f"compress must be True or False, got {compress!r}")
    if format == "zarr":
        import_zarr()
    schema, size = get_schema(videos), as_int("clips_per_shard", clips_per_shard, least=1)
    for key, entry in schema.items():
        nbytes = math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize
        if nbytes > LARGEST_ARRAY:
            raise ValueError(
                f"{key!r} of a clip must have at most {LARGEST_ARRAY} bytes, got {nbytes}; give "
                "videos of fewer frames or a smaller size"
            )
    if number > _MOST_SHARDS * size:
        raise ValueError(
            f"clips must be at most {_MOST_SHARDS} shards, got {number} of {size} a shard; give a "
            "larger clips_per_shard"
        )
    folder = Path(directory).expanduser().absolute()
    plan = ShardPlan(folder, config, schema, format, compress, number, size)
    _prepare_manifest(plan)
    return plan


def _prepare_manifest(plan: ShardPlan) -> None:
    """Write the manifest into a new folder, or check and extend the one of a begun folder."""
    path, manifest = plan.folder / MANIFEST, plan.to_manifest()
    for shard in () if path.is_file() else sorted(plan.folder.glob("shard-*")):
        if read_mark(shard) != plan.mark:
            raise ValueError(
                f"{plan.folder} holds shards but no {MANIFEST}, and {shard.name} is not of this "
                "call; give the arguments that it was made with, or another folder"
            )
    remains = ("shard-", ".shard-")
    begun = prepare_output_dir(
        plan.folder, manifest, identity=_get_identity, kinds=_KINDS, remains=remains
    )
    if begun is None:
        return
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
    return {**kept, **manifest["settings"], "digest": manifest["model"]["digest"]}


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
    manifest = read_json(path)
    if manifest.get("layout") != LAYOUT:
        raise ValueError(
            f"{path} is no manifest of shards: its layout is "
            f"{cut_words(repr(manifest.get('layout')))} where {LAYOUT!r} is expected"
        )
    check_entries(path, manifest, _KINDS)
    position = {key: manifest[key] for key in ("seed", "epoch")}
    return make_videos({**manifest["settings"], **manifest["model"], **position}, model, path)
