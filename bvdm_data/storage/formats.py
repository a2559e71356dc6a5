"""Files of one shard: a WebDataset tar, or a zarr group in a zip."""

import gzip
import hashlib
import io
import math
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch

from bvdm_data.clip import Clip
from bvdm_data.files import cut_words, refuse_damage

LARGEST_ARRAY = 2**32  # bytes of one array of a clip
_LARGEST_METADATA = 2**20
_MARK_LENGTH = 31  # a name in the header of a tar's member
_MEMBER_NAME = re.compile(r"(\d{9,})\.([a-z]+)\.npy(\.gz)?")

Schema = Mapping[str, Mapping[str, Any]]  # dtype and shape of each key of a clip
Arrays = dict[str, npt.NDArray[Any]]  # a clip as arrays


class ShardContent(NamedTuple):
    """What a shard holds."""

    indices: range  # numbers of its clips
    schema: Schema
    compress: bool
    mark: str  # text that stands for all settings


def compute_mark(content: bytes) -> str:
    """Return a SHA-256 that is short enough for the name of a user in a tar."""
    return hashlib.sha256(content).hexdigest()[:_MARK_LENGTH]


def _write_tar(path: Path, clips: Iterable[Clip], content: ShardContent) -> None:
    """Write a WebDataset tar: members ``000000012.video.npy`` of sample ``000000012``.

    The headers hold no time and no user, so that equal clips make equal files; in place of the
    names of user and group stand the mark of the settings and that of the member's bytes.
    """
    names = iter(_list_tar_members(content))
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for clip in clips:
            for _, array in _list_arrays(clip, content.schema):
                data = _to_npy(array, content.compress)
                member = tarfile.TarInfo(next(names))
                member.size, member.uname = len(data), content.mark
                member.gname = compute_mark(data)
                archive.addfile(member, io.BytesIO(data))


def _list_tar_members(content: ShardContent) -> list[str]:
    suffix = "npy.gz" if content.compress else "npy"
    return [f"{i:09d}.{key}.{suffix}" for i in content.indices for key in content.schema]


def _walk_tar(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield the members of a tar, which must be plain files, whole, and end as they should."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while (block := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
            if not block:
                raise EOFError("the end of the archive is missing")
            member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            rest = size - file.tell()
            if not member.isreg() or not 0 <= member.size <= min(rest, LARGEST_ARRAY):
                raise ValueError(f"{member.name} is cut off, too large or no plain file")
            data = file.read(member.size)
            if len(member.gname) == _MARK_LENGTH and member.gname != compute_mark(data):
                raise ValueError(f"{member.name} is not as it was written")
            file.seek(-member.size % tarfile.BLOCKSIZE, 1)
            yield member, data
        if size - file.tell() > tarfile.RECORDSIZE + tarfile.BLOCKSIZE:
            raise EOFError("it ends in zeros")


def _read_tar(path: Path) -> Iterator[Arrays]:
    """Yield the arrays of each clip of a tar by their keys, in the order of the file."""
    number, arrays, keys = -1, Arrays(), None
    for member, data in _walk_tar(path):
        match = _MEMBER_NAME.fullmatch(member.name)
        if match is None:
            raise ValueError(f"{cut_words(member.name)} is no array of a clip")
        if arrays and int(match[1]) != number:
            keys = keys or arrays.keys()
            yield arrays
            arrays = {}
            if int(match[1]) != number + 1:
                raise ValueError(f"clip {number} is followed by clip {int(match[1])}")
        number = int(match[1])
        arrays[match[2]] = _parse_npy(data, compressed=match[3] is not None)
        if keys and match[2] not in keys:
            raise ValueError(f"clip {number} has {match[2]!r}, the first one has not")
    if not arrays or (keys and arrays.keys() != keys):
        raise EOFError("it holds no clip" if not arrays else f"clip {number} lacks arrays")
    yield arrays


def _check_tar(path: Path, content: ShardContent) -> None:
    expected = _list_tar_members(content)
    names = []
    for member, _ in _walk_tar(path):
        if member.uname != content.mark:
            raise ValueError("it holds clips of other settings")
        names.append(member.name)
    if names != expected:
        raise ValueError(f"it must hold {len(expected)} arrays, got {len(names)}, or others")


def _parse_npy(data: bytes, *, compressed: bool) -> npt.NDArray[Any]:
    """Return the array of a .npy file; memory is that of the array that its header promises."""
    file: Any = io.BytesIO(data)
    if compressed:
        file = gzip.GzipFile(fileobj=file)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it holds arrays of another version of .npy")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "biuf" or not 0 <= size <= LARGEST_ARRAY:
        raise ValueError(f"it holds an array of {cut_words(str(shape))} {dtype}")
    values = bytearray(file.read(size + 1))
    if len(values) != size:
        raise ValueError(f"an array must have {size} bytes, got {len(values)} or more")
    return np.frombuffer(values, dtype).reshape(shape)


def _write_zarr(path: Path, clips: Iterable[Clip], content: ShardContent) -> None:
    """Write a zarr group (format 3) into a zip: one array a key, one chunk a clip.

    Clips are written one by one, and members hold no time, so that equal clips make equal files.
    The comment of the zip is the mark of the settings and the number of the first clip.
    """
    zarr = import_zarr()
    codec = zarr.codecs.ZstdCodec(level=1)
    memory: dict[str, Any] = {}
    group = zarr.create_group(store=zarr.storage.MemoryStore(memory), zarr_format=3)
    # A chunk of zeros is written, too, so that one that is missing is seen.
    with (
        zarr.config.set({"array.write_empty_chunks": True}),
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
    ):
        arrays = {
            key: group.create_array(
                key,
                shape=(len(content.indices), *entry["shape"]),
                dtype=entry["dtype"],
                chunks=(1, *(max(1, side) for side in entry["shape"])),
                compressors=[codec] if content.compress else None,
            )
            for key, entry in content.schema.items()
        }
        archive.comment = f"{content.mark} {content.indices.start}".encode()
        _flush(memory, archive)
        for place, clip in enumerate(clips):
            for key, array in _list_arrays(clip, content.schema):
                arrays[key][place] = array
            _flush(memory, archive, "/c/")


def _name_chunk(key: str, place: int, dimensions: int) -> str:
    return "/".join([key, "c", str(place), *["0"] * (dimensions - 1)])


def _read_zarr(path: Path) -> Iterator[Arrays]:
    """Yield the arrays of each clip of a zarr group by their keys."""
    zarr = import_zarr()
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            is_metadata = member.filename.endswith("zarr.json")
            most = _LARGEST_METADATA if is_metadata else LARGEST_ARRAY
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > most:
                raise ValueError(f"{cut_words(member.filename)} is compressed or too large")
            if is_metadata:
                archive.read(member)  # zarr reports damage to stderr, too
        names = {*archive.namelist()}
        for key in {name.partition("/")[0] for name in names if "/c/" in name}:
            if f"{key}/zarr.json" not in names:
                raise ValueError(f"it lacks the shape of {key!r}")
        store = zarr.storage.ZipStore(path, mode="r")
        try:
            arrays = dict(zarr.open_group(store, mode="r").arrays())
            count = arrays["index"].shape[0]
            for key, array in arrays.items():
                _check_chunks(key, array, count, names, is_marked=bool(archive.comment))
            for place in range(count):
                for key, array in arrays.items():
                    name = _name_chunk(key, place, array.ndim)
                    if array.compressors and name in names:
                        with archive.open(name) as chunk:
                            _check_zstd(chunk.read(18), array.nbytes // count)
                yield {key: np.asarray(array[place]) for key, array in arrays.items()}
        finally:
            store.close()


def _check_chunks(key: str, array: Any, count: int, names: set[str], *, is_marked: bool) -> None:
    """Refuse an array that is not one chunk a clip; shards without a mark have none of zeros."""
    if array.shape[0] != count or not 0 < count <= len(names):
        raise ValueError(f"{key!r} must be of {count} clips, got the shape {array.shape}")
    if array.chunks != (1, *(max(1, side) for side in array.shape[1:])):
        raise ValueError(f"{key!r} must have one chunk a clip, got chunks of {array.chunks}")
    if array.nbytes // count > LARGEST_ARRAY:
        raise ValueError(f"{key!r} is of {array.nbytes // count} bytes a clip")
    for place in range(count if is_marked and array.nbytes else 0):
        if _name_chunk(key, place, array.ndim) not in names:
            raise ValueError(f"it lacks {key!r} of its clip number {place}")


def _check_zstd(head: bytes, size: int) -> None:
    """Refuse a chunk that would unpack to another size (RFC 8878, 3.1.1.1)."""
    flags = head[4]
    width = (int(bool(flags & 32)), 2, 4, 8)[flags >> 6]
    first = 5 + (not flags & 32) + (0, 1, 2, 4)[flags & 3]
    unpacked = int.from_bytes(head[first : first + width], "little") + 256 * (width == 2)
    if not width or unpacked != size:
        raise ValueError(f"a chunk must unpack to {size} bytes, got {unpacked}")


def _check_zarr(path: Path, content: ShardContent) -> None:
    with zipfile.ZipFile(path) as archive:
        if archive.comment.decode() != f"{content.mark} {content.indices.start}":
            raise ValueError("it holds clips of other settings, or other clips")
        expected = {
            _name_chunk(key, place, 1 + len(entry["shape"]))
            for place in range(len(content.indices))
            for key, entry in content.schema.items()
            if 0 not in entry["shape"]
        }
        if expected != {name for name in archive.namelist() if "/c/" in name}:
            raise ValueError(f"it must hold {len(expected)} chunks, and no others")
        if (name := archive.testzip()) is not None:
            raise ValueError(f"{name} is not as it was written")


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


class Format(NamedTuple):
    """How shards of a kind are written, read and checked."""

    suffix: str
    write: Callable[[Path, Iterable[Clip], ShardContent], None]
    read: Callable[[Path], Iterator[Arrays]]
    check: Callable[[Path, ShardContent], None]


FORMATS: Mapping[str, Format] = {
    "webdataset": Format(".tar", _write_tar, _read_tar, _check_tar),
    "zarr": Format(".zip", _write_zarr, _read_zarr, _check_zarr),
}
_BY_SUFFIX = {each.suffix: each for each in FORMATS.values()}


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


def read_mark(path: Path) -> str:
    """Return what a shard says about its settings; nothing if it is damaged, or an old one."""
    if not path.is_file():
        return ""
    with suppress(ValueError), refuse_damage(str):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                return archive.comment.decode().partition(" ")[0]
        with path.open("rb") as file:
            block = file.read(tarfile.BLOCKSIZE)
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict").uname
    return ""


def check_shard(path: Path, content: ShardContent) -> None:
    """Refuse a shard that does not hold what it should; its bytes are checked, too."""
    way_out = "remove it, and the same call makes it again, or give another folder"
    with refuse_damage(lambda why: f"{path} is damaged, or not of this call ({why}); {way_out}"):
        if not path.is_file():
            raise ValueError("it is no regular file")
        _BY_SUFFIX[path.suffix].check(path, content)


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
    if file.suffix not in _BY_SUFFIX:
        raise ValueError(
            f"path must end in {' or '.join(_BY_SUFFIX)}, got {str(path)!r}; give a shard that "
            "write_shards has written"
        )
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; give the path of a shard that is there")
    way_out = "remove it, and write_shards makes it again"
    with refuse_damage(lambda why: f"{file} is damaged, or no shard ({why}); {way_out}"):
        yield from map(_to_clip, _BY_SUFFIX[file.suffix].read(file))


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
