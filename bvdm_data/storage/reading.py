"""Reading: clips out of shards."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from bvdm_data.clip import Clip
from bvdm_data.storage.containers import read_tar, read_zarr

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    FileNotFoundError,  # of zarr, where there is no group
    LookupError,
    RuntimeError,
    ValueError,
)
"""What the readers raise for a file that is damaged, or holds something else."""

_READERS: Mapping[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".tar": read_tar,
    ".zip": read_zarr,
}


def read_shard(path: str | Path) -> Iterator[Clip]:
    """Yield the clips of one shard, as the data set made them.

    Args:
        path: A shard of :func:`write_shards`, of either format.

    Yields:
        The clips in the order of their numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is a zarr group and zarr is missing.
        ValueError: If the name is not that of a shard, or the file is damaged, cut off or holds
            something else; clips ahead of that have been yielded.
    """
    file = Path(path).expanduser()
    if file.suffix not in _READERS:
        raise ValueError(
            f"path must end in {' or '.join(_READERS)}, got {str(path)!r}; give a shard that "
            "write_shards has written"
        )
    if not file.is_file():
        raise FileNotFoundError(f"there is no shard {file}; give the path of one that is there")
    try:
        for arrays in _READERS[file.suffix](file):
            yield _clip(arrays)
    except _DAMAGED as error:
        raise ValueError(
            f"{file} is damaged, or no shard ({error or type(error).__name__}); remove it, and "
            "write_shards makes it again"
        ) from error


def as_clip(sample: Mapping[str, Any]) -> Clip:
    """Return the clip of a decoded sample of the package ``webdataset``.

    Args:
        sample: What ``WebDataset(...).decode()`` yields: arrays by names such as ``video.npy``
            and ``masks.npy.gz``, and keys that begin with ``__``.

    Returns:
        The clip, as the data set made it.

    Raises:
        TypeError: If the sample was not decoded.

    Examples:
        Clips of all shards of a folder, for a loader; webdataset adds ``__key__`` to each::

            from webdataset import WebDataset

            clips = WebDataset("shards/shard-{000000..000099}.tar").decode().map(as_clip)
    """
    arrays = {name.split(".")[0]: value for name, value in sample.items() if name[:2] != "__"}
    for key, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise TypeError(
                f"sample must be decoded, but {key!r} is {type(value).__name__}; write "
                "WebDataset(...).decode().map(as_clip)"
            )
    return _clip(arrays)


def _clip(arrays: Mapping[str, Any]) -> Clip:
    return cast(Clip, {key: torch.from_numpy(array) for key, array in arrays.items()})
