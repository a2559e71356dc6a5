"""Files and folders that are whole or not there: written under a temporary name, then renamed."""

import errno
import glob
import json
import lzma
import os
import shutil
import socket
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

MANIFEST = "bvdm_data.json"  # file in an output folder that records how its contents were made
# Bytes of a JSON file that is read; the manifest of a million shards has 70 MB.
LARGEST_JSON = 2**27
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    AttributeError,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)
_DAMAGE_NUMBERS = (
    None,
    errno.EINVAL,  # a place before the beginning of the file
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),  # names within an archive
)


@contextmanager
def refuse_damage(describe: Callable[[str], str]) -> Iterator[None]:
    """Raise a ValueError, described, for a reader's error that says that its file is damaged.

    Other errors are raised as they are, such as that of a disk that fails.
    """
    try:
        yield
    except Exception as error:
        is_of_disk = isinstance(error, OSError) and error.errno not in _DAMAGE_NUMBERS
        if is_of_disk or not isinstance(error, (OSError, *_DAMAGE)):
            raise
        raise ValueError(describe(cut_words(str(error) or type(error).__name__))) from error


@contextmanager
def open_atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, which replaces ``path`` if all went well.

    What was written is on the disk before it gets its name, so that no power cut leaves an empty
    file. What killed processes of this machine have left of the same file is removed.
    """
    temporary = None
    try:
        temporary = _make_temporary(path)
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _name_path(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def open_atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder, which is moved to ``path`` if all went well.

    Each call has a folder to itself; what killed processes of this machine have left is removed.
    """
    target = Path(path).expanduser()
    if target.exists():
        raise FileExistsError(f"{target} is there already; remove it or give another path")
    prefix = _begin_temporary_name(target)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as staging:
        yield Path(staging) / target.name
        write_through(Path(staging))
        (Path(staging) / target.name).rename(target)
    _sync(target.parent)


def _begin_temporary_name(path: Path) -> str:
    """Return how temporary names of this process begin; make room for them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    return f"{_begin_name(path)}{os.getpid()}."


def remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders that killed processes of this machine have left."""
    prefix = _begin_name(path)
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*"):
        if not _is_running(leftover.name.removeprefix(prefix).partition(".")[0]):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with suppress(OSError):  # another user's
                    leftover.unlink()


def _begin_name(path: Path) -> str:
    return f".{path.name[:40]}.{socket.gethostname()}."


def write_through(folder: Path) -> None:
    """Have all files of a folder on the disk."""
    for path in (folder, *folder.rglob("*")):
        _sync(path)


def _sync(path: Path) -> None:
    """Have a file, or the names of a folder where the system can do that, on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not path.is_dir():
            raise


def _is_running(process: str) -> bool:
    """Return whether a process may be running; only POSIX can ask without a side effect."""
    if os.name != "posix" or not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before work is done that would be lost."""
    try:
        _make_temporary(folder / "any").unlink()
    except OSError as error:
        raise _name_path(error, folder) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text to a safetensors file, whole or not at all."""
    with open_atomic(path) as temporary:
        try:
            save_file(dict(tensors), temporary, dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{error}") from error


def prepare_output_dir(
    folder: Path,
    manifest: Mapping[str, Any],
    *,
    identity: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    kinds: Mapping[str, Any] | None = None,
    remains: tuple[str, ...] = (),
) -> dict[str, Any] | None:
    """Write the manifest into a new folder, or check the manifest of a folder that was begun.

    Several processes may do so at once with the same manifest. ``identity`` selects the settings
    that must be the same in both manifests, ``kinds`` types of entries, ``remains`` are prefixes of
    files that a killed run may leave, beside temporary ones. Returns the earlier manifest, or None
    where this one was written.
    """
    path = folder / MANIFEST
    if path.is_file():
        begun = read_json(path)
        if begun.get("layout") != manifest.get("layout"):
            raise ValueError(_describe_foreign(folder))
        check_entries(path, begun, kinds or {})
        before, now = identity(begun), identity(json.loads(json.dumps(manifest)))
        for key in [*now, *before]:
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"{folder} was begun with {key}={cut_words(repr(before.get(key)))}, got "
                    f"{cut_words(repr(now.get(key)))}; give the same arguments to continue, or "
                    "another folder"
                )
        return begun
    remains = (*remains, f".{MANIFEST}.", f".{path.stem}-")  # the latter of version 0.1.0
    if folder.exists() and not (
        folder.is_dir() and all(path.name.startswith(remains) for path in folder.iterdir())
    ):
        raise ValueError(_describe_foreign(folder))
    write_manifest(path, manifest)
    return None


def read_json(
    path: Path, find_fault: Callable[[dict[str, Any]], str | None] = lambda found: None
) -> dict[str, Any]:
    """Read a JSON object without NaN, of bounded size, in which ``find_fault`` finds no fault."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"no regular file of at most {LARGEST_JSON} bytes")
        found = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        fault = find_fault(found) if isinstance(found, dict) else "no object"
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(describe_damage(path, error)) from error
    if fault:
        raise ValueError(describe_damage(path, fault))
    return dict(found)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def check_entries(
    path: Path, values: Mapping[str, Any], kinds: Mapping[str, Any], place: str = ""
) -> None:
    """Refuse a manifest without an entry, or with one of another type than ``kinds`` has for it.

    A mapping in place of a type is for the entries of an entry.
    """
    for name, kind in kinds.items():
        if name not in values:
            raise ValueError(describe_damage(path, f"it lacks '{place}{name}'"))
        value, noun = values[name], "an object"
        is_right = isinstance(value, dict)
        if not isinstance(kind, Mapping):
            noun = " or ".join(one.__name__ for one in getattr(kind, "__args__", (kind,)))
            # bool is an int, but no number.
            is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not is_right:
            why = f"{place}{name} must be {noun}, got {cut_words(repr(value))}"
            raise ValueError(describe_damage(path, why))
        if isinstance(kind, Mapping):
            check_entries(path, value, kind, f"{place}{name}.")


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest as JSON, whole or not at all."""
    with open_atomic(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")


def describe_damage(path: Path, why: object) -> str:
    """Return the message for a damaged manifest or other JSON."""
    return f"{path} is damaged ({cut_words(str(why))}); remove this file, or give another folder"


def cut_words(words: str, most: int = 500) -> str:
    """Return words as one line, cut off after some characters."""
    line = " ".join(words[: 2 * most].split())
    return line if len(line) <= most else f"{line[:most]} ..."


def _describe_foreign(folder: Path) -> str:
    return (
        f"directory must be new, empty, or begun by the same call, but {folder} holds something "
        "else; give another one"
    )


def _make_temporary(path: Path) -> Path:
    prefix = _begin_temporary_name(path)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _name_path(error: OSError, path: Path) -> OSError:
    message = f"cannot write {path}: {error.strerror or error}"
    return OSError(message) if error.errno is None else OSError(error.errno, message)
