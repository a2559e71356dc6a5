"""Hugging Face datasets: clips as the rows of an ``IterableDataset``."""

import copy
from collections.abc import Iterator
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from bvdm_data.adapters.common import Videos, count_clips, list_arrays
from bvdm_data.system import require
from bvdm_data.validate import as_int

MOST_AXES = 5  # most axes of an array that the package datasets has a feature for, ``Array5D``


def to_huggingface(
    videos: Videos, *, clips: SupportsIndex | None = None, clips_per_shard: SupportsIndex = 1
) -> Any:
    """Return clips as a Hugging Face data set; they are made as they are asked for.

    Workers of a ``DataLoader`` and ``datasets.distributed.split_dataset_by_node`` share the shards
    out, so that each clip is made once; the latter needs a number of shards that the ranks divide,
    otherwise each rank makes all clips and drops those of others. ``state_dict`` and
    ``load_state_dict`` of the result resume; the clips that the latest shard had yielded are made
    again and dropped. ``shuffle`` exchanges shards, and what is in its buffer.

    Args:
        videos: :class:`SyntheticHeLaVideos`, :class:`CTCVideos`, :class:`MixedVideos`, or anything
            with a method ``clip(index)`` whose clips have one shape. The result keeps a copy, in
            the epoch of the call; call ``videos.set_epoch`` and then this for other clips.
        clips: How many; None: those of an epoch, of all ranks together.
        clips_per_shard: Clips of a shard. A shard is an entry of a list: for millions of clips,
            more than 1 takes less memory.

    Returns:
        A ``datasets.IterableDataset``. Rows have the keys of a clip, as arrays of the same shapes
        and dtypes, which are declared as features (``Array4D`` for ``video``); ``index`` is the
        clip's number. ``with_format("torch")`` makes tensors of them, whole numbers in int64.

    Raises:
        ImportError: If the package datasets is missing.
        TypeError: If an argument is of the wrong type, or a clip holds what is no tensor.
        ValueError: If clips is missing for an endless data set, a number is too small, or a tensor
            of a clip has more than five axes.

    Examples:
        Batches of tensors for a training loop::

            rows = to_huggingface(videos, clips=1000).with_format("torch")
            for batch in DataLoader(rows, batch_size=4, num_workers=2):
                step(batch["video"], batch["masks"])
    """
    datasets = require("datasets", "huggingface")
    number = count_clips(videos, clips)
    size = as_int("clips_per_shard", clips_per_shard, least=1)
    videos = copy.deepcopy(videos)
    shards = [(first, min(first + size, number)) for first in range(0, number, size)]
    return datasets.IterableDataset.from_generator(
        _iterate_rows,
        features=datasets.Features(
            {
                key: _make_feature(datasets, key, array)
                for key, array in list_arrays(videos, 0).items()
            }
        ),
        gen_kwargs={"videos": videos, "shards": shards},
    )


def _iterate_rows(videos: Videos, shards: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for first, stop in shards:
        for number in range(first, stop):
            row = list_arrays(videos, number)
            yield {key: array if array.ndim else array.item() for key, array in row.items()}


def _make_feature(datasets: Any, key: str, array: npt.NDArray[np.generic]) -> Any:
    dtype = str(array.dtype)
    if array.ndim > MOST_AXES:
        raise ValueError(
            f"videos must have tensors of at most {MOST_AXES} axes, got {key} of the shape "
            f"{list(array.shape)}"
        )
    if array.ndim == 0:
        return datasets.Value(dtype)
    if array.ndim == 1:
        return datasets.Sequence(datasets.Value(dtype), length=len(array))
    return getattr(datasets, f"Array{array.ndim}D")(shape=array.shape, dtype=dtype)
