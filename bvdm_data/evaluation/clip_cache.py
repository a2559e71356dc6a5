"""Clip store: clips drawn from a data set once, by a DataLoader, and kept on disk for training."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bvdm_data.clip import Clip
from bvdm_data.datasets.mixed import ClipSource
from bvdm_data.files import open_atomic, write_tensors


class CachedClips(Dataset[Clip]):
    """The first clips of a data set, read from disk again and again."""

    def __init__(self, folder: Path, count: int, key: str, source: ClipSource) -> None:
        """Remember where the clips are; see the class."""
        self.folder = folder
        self.count = count
        self.key = key
        self.frames = source.frames
        self.size = source.size
        self.annotations = source.annotations
        self.max_cells = source.max_cells
        self.scale = source.scale

    def only(self, annotations: Collection[str]) -> "CachedClips":
        """Return the same clips with fewer keys."""
        fewer = copy(self)
        fewer.annotations = tuple(name for name in self.annotations if name in annotations)
        return fewer

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.count

    def __getitem__(self, index: int) -> Clip:
        """Read a clip."""
        if not 0 <= index < self.count:
            raise IndexError(f"index must be from 0 to {self.count - 1}, got {index}")
        return self.clip(index)

    def clip(self, index: int) -> Clip:
        """Read clip ``index % count``, so that the store stands in for an endless data set."""
        path = _path(self.folder, index % self.count)
        try:
            found = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"the kept clip {path} is damaged ({error}); delete it") from error
        found["masks"] = found["masks"].int()
        keys = ("video", *self.annotations, "index", "source")
        return cast(Clip, {key: found[key] for key in keys})

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: what is kept is the same in every epoch."""


def hash_clips(clip: Mapping[str, object]) -> str:
    """Return a digest of all tensors of a clip."""
    digest = hashlib.sha256()
    for key in sorted(clip):
        value = clip[key]
        if isinstance(value, Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_clips(
    source: ClipSource,
    count: int,
    folder: Path,
    *,
    settings: Mapping[str, object],
    probe: ClipSource | None = None,
    workers: int = 0,
    progress: bool = True,
) -> CachedClips:
    """Draw the first clips of a data set and keep them; those that are there already stay.

    What is kept belongs to the settings *and* to the bytes of a first clip that is always made
    anew: when the code that makes clips changes, they are made again. A larger count adds to a
    smaller.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    first = (source if probe is None else probe).clip(0)
    said = json.dumps(dict(settings), sort_keys=True)
    key = hashlib.sha256(f"{said} {hash_clips(first)}".encode()).hexdigest()[:16]
    place = folder / key
    with open_atomic(place / "settings.json") as temporary:
        temporary.write_text(json.dumps(dict(settings), indent=2) + "\n")
    if probe is None and not _path(place, 0).exists():
        _write(place, 0, first)
    missing = [number for number in range(count) if not _path(place, number).exists()]
    loader = DataLoader(
        _Numbered(source, missing),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # or the loader would draw from the global random state
    )
    bar = tqdm(
        loader, total=count, initial=count - len(missing), desc="clips", disable=not progress
    )
    for number, clip in zip(missing, cast(Iterator[Clip], bar), strict=True):
        _write(place, number, clip)
    return CachedClips(place, count, key, source)


class _Numbered(Dataset[Clip]):
    """Some clips of a source, by their numbers, so that workers share them out."""

    def __init__(self, source: ClipSource, numbers: Sequence[int]) -> None:
        self.source = source
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Clip:
        return self.source.clip(self.numbers[index])


def _path(folder: Path, number: int) -> Path:
    return folder / f"clip_{number:05d}.safetensors"


def _write(folder: Path, number: int, clip: Clip) -> None:
    tensors = {key: cast(Tensor, value).contiguous() for key, value in clip.items()}
    tensors["masks"] = tensors["masks"].to(torch.uint16)  # half the disk; a clip has few ids
    write_tensors(_path(folder, number), tensors, {})
