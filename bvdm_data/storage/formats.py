"""Files of one shard: a WebDataset tar, or a zarr group in a zip."""

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from bvdm_data.clip import Clip

Schema = Mapping[str, Mapping[str, Any]]
"""Dtype and shape of each key of a clip."""

Arrays = dict[str, npt.NDArray[Any]]
"""A clip as arrays."""


def _write_tar(
    path: Path, clips: Iterable[Clip], count: int, schema: Schema, compress: bool
) -> None:
    """Write a WebDataset tar: members ``000000012.video.npy`` of sample ``000000012``.

    The headers hold no time and no user, so that equal clips make equal files.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for clip in clips:
            for key, array in _list_arrays(clip, schema):
                data = _to_npy(array, compress)
                suffix = "npy.gz" if compress else "npy"
                member = tarfile.TarInfo(f"{int(clip['index']):09d}.{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _read_tar(path: Path) -> Iterator[Arrays]:
    """Yield the arrays of each clip of a tar by their keys, in the order of the file."""
    with tarfile.open(path, "r:") as archive:
        sample, arrays, end = "", Arrays(), 0
        for member in archive:
            name, key, _, *gz = member.name.split(".")
            if name != sample and arrays:
                yield arrays
                arrays = {}
            sample = name
            file = archive.extractfile(member)
            data = b"" if file is None else file.read()
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            arrays[key] = np.load(io.BytesIO(gzip.decompress(data) if gz else data))
    with path.open("rb") as file:
        # tarfile takes a file that was cut off between two members for a whole one.
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("the end of the archive is missing")
    if arrays:
        yield arrays


def _write_zarr(
    path: Path, clips: Iterable[Clip], count: int, schema: Schema, compress: bool
) -> None:
    """Write a zarr group (format 3) into a zip: one array a key, one chunk a clip.

    Clips are written one by one, and members hold no time, so that equal clips make equal files.
    """
    zarr = import_zarr()
    codec = zarr.codecs.ZstdCodec(level=1)
    memory: dict[str, Any] = {}
    group = zarr.create_group(store=zarr.storage.MemoryStore(memory), zarr_format=3)
    arrays = {
        key: group.create_array(
            key,
            shape=(count, *entry["shape"]),
            dtype=entry["dtype"],
            chunks=(1, *(max(1, side) for side in entry["shape"])),
            compressors=[codec] if compress else None,
        )
        for key, entry in schema.items()
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _flush(memory, archive)
        for place, clip in enumerate(clips):
            for key, array in _list_arrays(clip, schema):
                arrays[key][place] = array
            _flush(memory, archive, "/c/")


def _read_zarr(path: Path) -> Iterator[Arrays]:
    """Yield the arrays of each clip of a zarr group by their keys."""
    zarr = import_zarr()
    if not zipfile.is_zipfile(path):  # ZipStore would fail when it is deleted
        raise zipfile.BadZipFile("the end of the zip is missing")
    store = zarr.storage.ZipStore(path, mode="r")
    try:
        group = zarr.open_group(store, mode="r")
        arrays = dict(group.arrays())
        for place in range(arrays["index"].shape[0]):
            yield {key: np.asarray(array[place]) for key, array in arrays.items()}
    finally:
        store.close()


def import_zarr() -> Any:
    """Return the package zarr."""
    try:
        import zarr
        import zarr.codecs
        import zarr.storage

        zarr.create_group  # noqa: B018 - not in zarr 2
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"format='zarr' needs zarr 3 ({error}), for Python 3.11 and later; run "
            "pip install 'bvdm-data[shards]', or use format='webdataset'"
        ) from error
    return zarr


Writer = Callable[[Path, Iterable[Clip], int, Schema, bool], None]

WRITERS: Mapping[str, tuple[str, Writer]] = {
    "webdataset": (".tar", _write_tar),
    "zarr": (".zip", _write_zarr),
}
"""Suffix of a shard and the function that writes it, by the name of the format."""

_READERS: Mapping[str, Callable[[Path], Iterator[Arrays]]] = {".tar": _read_tar, ".zip": _read_zarr}


def _list_arrays(clip: Clip, schema: Schema) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield keys and tensors of a clip, as arrays, in the order of the schema."""
    tensors: Mapping[str, Any] = clip
    return ((key, tensors[key].cpu().contiguous().numpy()) for key in schema)


def _to_npy(array: npt.NDArray[Any], compress: bool) -> bytes:
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    if not compress:
        return data.getvalue()
    packed = io.BytesIO()
    # The fastest level: storing a clip must cost little compared with making it.
    with gzip.GzipFile("", "wb", 1, packed, mtime=0) as file:
        file.write(data.getvalue())
    return packed.getvalue()


def _flush(memory: dict[str, Any], archive: zipfile.ZipFile, part: str = "") -> None:
    """Move what zarr has written to memory into the zip."""
    for name in sorted(name for name in memory if part in name):
        member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # the first time that zip knows
        member.external_attr = 0o644 << 16
        archive.writestr(member, memory.pop(name).to_bytes())


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
"""What readers raise for a file that is damaged or holds something else."""


def read_shard(path: str | Path) -> Iterator[Clip]:
    """Yield the clips of one shard.

    Args:
        path: A shard of :func:`write_shards`, of either format.

    Yields:
        The clips in the order of their numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is a zarr group and zarr is missing.
        ValueError: If the suffix is not one of a shard, or the file is damaged, cut off or holds
            something else; clips before the damage have been yielded.
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
            yield _to_clip(arrays)
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
        The clip.

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
    return _to_clip(arrays)


def _to_clip(arrays: Mapping[str, Any]) -> Clip:
    return cast(Clip, {key: torch.from_numpy(array) for key, array in arrays.items()})
