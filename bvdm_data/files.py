"""Files and folders that are whole or not there: written under a temporary name, then renamed."""

import glob
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

MANIFEST = "bvdm_data.json"
"""File in an output folder that records how its contents were made."""


@contextmanager
def open_atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, which replaces ``path`` if all went well."""
    temporary = None
    try:
        temporary = _make_temporary(path)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
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
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.{socket.gethostname()}."
    for leftover in target.parent.glob(f"{glob.escape(prefix)}*"):
        if not _is_running(leftover.name.removeprefix(prefix).partition(".")[0]):
            shutil.rmtree(leftover, ignore_errors=True)
    prefix += f"{os.getpid()}."
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as staging:
        yield Path(staging) / target.name
        (Path(staging) / target.name).rename(target)


def _is_running(process: str) -> bool:
    """Return whether a process may be running; only POSIX can ask without a side effect."""
    if os.name != "posix" or not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
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
    remains: tuple[str, ...] = (),
    may_restart: bool = False,
) -> dict[str, Any] | None:
    """Write the manifest into a new folder, or check the manifest of a folder that was begun.

    Several processes may do so at once with the same manifest. ``identity`` selects the settings
    that must be the same in both manifests, ``remains`` are prefixes of files that a killed run may
    leave. With ``may_restart``, other settings are accepted while the manifest is the only file.
    Returns the earlier manifest, or None where this one was written.
    """
    path = folder / MANIFEST
    if path.is_file():
        begun = load_manifest(path)
        if begun.get("layout") != manifest.get("layout"):
            raise ValueError(_describe_foreign(folder))
        before, now = identity(begun), identity(json.loads(json.dumps(manifest)))
        differing = [key for key in [*now, *before] if before.get(key) != now.get(key)]
        if not differing:
            return begun
        if not (may_restart and list(folder.iterdir()) == [path]):
            key = differing[0]
            raise ValueError(
                f"{folder} was begun with {key}={before.get(key)!r}, got {now.get(key)!r}; give "
                "the same arguments to continue, or another folder"
            )
    elif folder.exists() and not (
        folder.is_dir() and all(path.name.startswith(remains) for path in folder.iterdir())
    ):
        raise ValueError(_describe_foreign(folder))
    write_manifest(path, manifest)
    return None


def load_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest; empty if the file holds another kind of JSON."""
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(describe_damage(path, error)) from error
    return manifest if isinstance(manifest, dict) else {}


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest as JSON, whole or not at all."""
    with open_atomic(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")


def describe_damage(manifest: Path, why: object) -> str:
    """Return the message for a damaged manifest."""
    return f"{manifest} is damaged ({why}); give another directory, or remove this file"


def _describe_foreign(folder: Path) -> str:
    return (
        f"directory must be new, empty, or begun by the same call, but {folder} holds something "
        "else; give another one"
    )


def _make_temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _name_path(error: OSError, path: Path) -> OSError:
    message = f"cannot write {path}: {error.strerror or error}"
    return OSError(message) if error.errno is None else OSError(error.errno, message)
