"""What is kept on disk: figures as JSON, and the first clips of a data set."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bvdm_data.clip import Clip
from bvdm_data.datasets.mixed import ClipSource
from bvdm_data.files import open_atomic, read_json, write_tensors
from bvdm_data.fitting.training import compute_fingerprint


def cache_json(
    path: Path,
    compute: Callable[[], Mapping[str, Any]],
    find_fault: Callable[[Any], str | None] = lambda found: None,
) -> dict[str, Any]:
    """Read the JSON object in a file; where there is no file yet, compute and write it.

    A file that is damaged, or that ``find_fault`` finds a fault in, is refused.
    """
    if not path.exists():
        text = json.dumps(replace_nan(compute()), indent=2) + "\n"
        with open_atomic(path) as temporary:
            temporary.write_text(text)
    return read_json(path, find_fault)


def replace_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by None."""
    if isinstance(value, Mapping):
        return {key: replace_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def hash_clips(clip: Mapping[str, object]) -> str:
    """Return a digest of all tensors of a clip."""
    tensors = ((key, clip[key]) for key in sorted(clip) if isinstance(clip[key], Tensor))
    return compute_fingerprint(*(part for pair in tensors for part in pair))


@dataclass(frozen=True)
class FirstClips(Dataset[Clip]):
    """The first clips of an endless source; each is made when it is needed."""

    source: ClipSource
    count: int

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.count

    def __getitem__(self, index: int) -> Clip:
        """Return one clip."""
        return self.source.clip(index)


class CachedClips(Dataset[Clip]):
    """The first clips of a data set, read from disk; ``clip(i)`` repeats them without end."""

    def __init__(self, folder: Path, count: int, key: str, source: ClipSource) -> None:
        """Remember where the clips are, and what they look like."""
        self.folder, self.count, self.key = folder, count, key
        self.frames, self.size, self.scale = source.frames, source.size, source.scale
        self.annotations, self.max_cells = source.annotations, source.max_cells

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.count

    def __getitem__(self, index: int) -> Clip:
        """Read a clip."""
        if not 0 <= index < self.count:
            raise IndexError(f"index must be from 0 to {self.count - 1}, got {index}")
        return self.clip(index)

    def clip(self, index: int) -> Clip:
        """Read clip ``index % count``."""
        path = _get_path(self.folder, index % self.count)
        keys = ("video", *self.annotations, "index", "source")
        try:
            tensors = load_file(path)
            missing = [key for key in (*keys, "masks") if key not in tensors]
            if missing:
                raise ValueError(f"no {missing[0]!r}")
            sizes = {"video": (self.frames, 1, *self.size), "masks": (self.frames, *self.size)}
            for key, shape in sizes.items():
                if tuple(tensors[key].shape) != shape:
                    raise ValueError(f"{key!r} must be {shape}, got {tuple(tensors[key].shape)}")
            video = tensors["video"]
            if not (video.is_floating_point() and bool(((video >= 0) & (video <= 1)).all())):
                raise ValueError("'video' must hold grey values from 0 to 1")
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"the kept clip {path} is damaged ({error}); delete it") from error
        tensors["masks"] = tensors["masks"].int()
        return cast(Clip, {key: tensors[key] for key in keys})

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: cached clips are the same in every epoch."""


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
    """Make the first clips of a data set, by a DataLoader, and keep them; existing ones stay.

    The key of the cache is a digest of the settings and of a first clip that is always made anew:
    when the code that makes clips changes, all clips are made again. ``probe`` makes this clip
    where one of ``source`` takes long. A larger count adds to a smaller one.
    """
    first = (source if probe is None else probe).clip(0)
    key = compute_fingerprint(json.dumps(dict(settings), sort_keys=True), hash_clips(first))
    place = folder / key
    wanted = json.loads(json.dumps(dict(settings)))

    def find_other(found: object) -> str | None:
        return None if found == wanted else f"it must hold {json.dumps(wanted)}"[:300]

    cache_json(place / "settings.json", lambda: settings, find_other)
    if probe is None and not _get_path(place, 0).exists():
        _write_clip(place, 0, first)
    missing = [index for index in range(count) if not _get_path(place, index).exists()]
    # Without a generator, the loader would draw from the global random state.
    options: dict[str, Any] = {"num_workers": workers, "generator": torch.Generator()}
    loader = DataLoader(FirstClips(source, count), batch_size=None, sampler=missing, **options)
    start, is_quiet = count - len(missing), not progress
    bar = tqdm(loader, total=count, initial=start, desc="clips", disable=is_quiet)
    for index, clip in zip(missing, cast(Iterator[Clip], bar), strict=True):
        _write_clip(place, index, clip)
    return CachedClips(place, count, key, source)


def _get_path(folder: Path, index: int) -> Path:
    return folder / f"clip_{index:05d}.safetensors"


def _write_clip(folder: Path, index: int, clip: Clip) -> None:
    tensors = {key: cast(Tensor, value).contiguous() for key, value in clip.items()}
    tensors["masks"] = tensors["masks"].to(torch.uint16)  # half the disk; a clip has few ids
    write_tensors(_get_path(folder, index), tensors, {})
