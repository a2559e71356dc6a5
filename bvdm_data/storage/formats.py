"""Containers: the clips of one shard in one file, as a WebDataset tar or a zarr group in a zip."""

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

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of all members of a zip, the first that the format knows, so that equal clips make equal
files."""

GZIP_LEVEL = 1
"""The fastest level: storing a clip must cost little beside making it."""


def write_tar(
    path: Path, clips: Iterable[Clip], count: int, schema: Schema, compress: bool
) -> None:
    """Write a WebDataset tar: members ``000000012.video.npy`` of sample ``000000012``.

    The headers hold no time and no user, so that equal clips make equal files.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for clip in clips:
            arrays = list_arrays(clip, schema)
            sample = f"{int(arrays['index']):09d}"
            for key, array in arrays.items():
                data, suffix = _npy(array), "npy"
                if compress:
                    data, suffix = _gzipped(data), "npy.gz"
                member = tarfile.TarInfo(f"{sample}.{key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def read_tar(path: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the arrays of each clip of a tar by their keys, in the order of the file."""
    with tarfile.open(path, "r:") as archive:
        sample, arrays, end = "", dict[str, npt.NDArray[Any]](), 0
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
        _check_end(path, end)
        if arrays:
            yield arrays


def write_zarr(
    path: Path, clips: Iterable[Clip], count: int, schema: Schema, compress: bool
) -> None:
    """Write a zarr group (format 3) into a zip: one array a key, one chunk a clip.

    Clips are written one by one, and members hold no time, so that equal clips make equal files.
    """
    zarr = import_zarr()
    codec = zarr.codecs.ZstdCodec(level=1)
    held: dict[str, Any] = {}
    group = zarr.create_group(store=zarr.storage.MemoryStore(held), zarr_format=3)
    arrays = {
        key: group.create_array(
            key,
            shape=(count, *said["shape"]),
            dtype=said["dtype"],
            chunks=(1, *(max(1, side) for side in said["shape"])),
            compressors=[codec] if compress else None,
        )
        for key, said in schema.items()
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _flush(held, archive)
        for place, clip in enumerate(clips):
            for key, value in list_arrays(clip, schema).items():
                arrays[key][place] = value
            _flush(held, archive, "/c/")


def read_zarr(path: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the arrays of each clip of a zarr group by their keys."""
    zarr = import_zarr()
    if not zipfile.is_zipfile(path):  # which ZipStore does not survive
        raise zipfile.BadZipFile("it has not the end of a zip")
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


def list_arrays(clip: Clip, schema: Schema) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a clip as arrays, in the order of the schema."""
    tensors: Mapping[str, Any] = clip
    return {key: tensors[key].cpu().contiguous().numpy() for key in schema}


Writer = Callable[[Path, Iterable[Clip], int, Schema, bool], None]

WRITERS: Mapping[str, tuple[str, Writer]] = {
    "webdataset": (".tar", write_tar),
    "zarr": (".zip", write_zarr),
}
"""End of a shard's name, and what writes it, by the name of the format."""


def _check_end(path: Path, end: int) -> None:
    """Refuse a tar that was cut off between two members, which tarfile takes for its end."""
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("the end of the archive is missing")


def _npy(array: npt.NDArray[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    return data.getvalue()


def _gzipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile("", "wb", GZIP_LEVEL, out, mtime=0) as file:
        file.write(data)
    return out.getvalue()


def _flush(held: dict[str, Any], archive: zipfile.ZipFile, part: str = "") -> None:
    """Move what zarr has written to memory into the zip."""
    for name in sorted(name for name in held if part in name):
        member = zipfile.ZipInfo(name, ZIP_EPOCH)
        member.external_attr = 0o644 << 16
        archive.writestr(member, held.pop(name).to_bytes())


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
