"""Manifest: what a folder of shards holds, and how each clip of it is made again."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

from bvdm_data.datasets.arguments import check_whole_number
from bvdm_data.datasets.export import MANIFEST
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.files import whole_file
from bvdm_data.machine import versions
from bvdm_data.storage.containers import WRITERS, zarr_package
from bvdm_data.storage.recipe import recipe_of, schema_of, videos_of

LAYOUT = "bvdm-data shards 1"
"""Says that a folder holds shards, and in which layout."""

CLIPS_PER_SHARD = 256
"""Clips in a shard where nothing else is said: some hundred MB for clips of 8 x 256 x 256 px."""

_MAY_DIFFER = ("versions", "clips", "shards")
"""What another start into the same folder may have otherwise; clips only more."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Shards of a folder: shard k holds the clips from ``k * clips_per_shard`` on.

    Attributes:
        folder: Where they are.
        recipe: What the clips follow from; see :func:`recipe_of`.
        schema: Dtype and shape of each key; see :func:`schema_of`.
        format: ``"webdataset"`` or ``"zarr"``.
        compress: Whether they are compressed.
        clips: Clips of all shards.
        clips_per_shard: Clips of every shard but perhaps the last.
    """

    folder: Path
    recipe: Mapping[str, Any]
    schema: Mapping[str, Any]
    format: str
    compress: bool
    clips: int
    clips_per_shard: int

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.clips // self.clips_per_shard)

    def path(self, number: int) -> Path:
        """Return the file of a shard.

        Args:
            number: From 0.
        """
        return self.folder / f"shard-{number:06d}{WRITERS[self.format][0]}"

    def indices(self, number: int) -> range:
        """Return the numbers of the clips of a shard.

        Args:
            number: From 0.
        """
        first = number * self.clips_per_shard
        return range(first, min(first + self.clips_per_shard, self.clips))

    def said(self) -> dict[str, Any]:
        """Return the manifest: JSON values."""
        recipe = dict(self.recipe)
        return {
            "layout": LAYOUT,
            "version": importlib.metadata.version("bvdm-data"),
            "versions": versions(("torch", "numpy", "scipy", "zarr")),
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
) -> Plan:
    """Check what is to be written; see :func:`write_shards` for arguments and errors."""
    recipe = recipe_of(videos)
    number = videos.length if clips is None else check_whole_number("clips", clips, least=1)
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
        zarr_package()
    return Plan(
        folder=Path(directory).expanduser().absolute(),
        recipe=recipe,
        schema=schema_of(videos),
        format=format,
        compress=compress,
        clips=number,
        clips_per_shard=check_whole_number("clips_per_shard", clips_per_shard, least=1),
    )


def claim(plan: Plan) -> None:
    """Write the manifest into a new folder, or check that of a folder that was begun.

    Any number of processes may do so at once: they all write the same.

    Args:
        plan: What is to be written.

    Raises:
        OSError: If it cannot be written.
        ValueError: If the folder was begun with other settings, or holds something else.
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
    with whole_file(path) as temporary:
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
        return videos_of(recipe, model)
    except KeyError as error:
        raise ValueError(_damaged(path, f"it lacks {error}")) from error


def _check_same(plan: Plan, begun: Mapping[str, Any], said: Mapping[str, Any]) -> None:
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
