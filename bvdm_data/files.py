"""Files that are whole or not there: written under a temporary name, then renamed."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def open_atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when all went well."""
    try:
        temporary = _temporary_beside(path)
    except OSError as error:
        raise _explained(error, path) from error
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _explained(error: OSError, path: Path) -> OSError:
    message = f"cannot write {path}: {error.strerror or error}"
    return OSError(message) if error.errno is None else OSError(error.errno, message)


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing can be written into, ahead of work that would be lost."""
    try:
        _temporary_beside(folder / "any").unlink()
    except OSError as error:
        raise _explained(error, folder) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text to a safetensors file, whole or not at all."""
    with open_atomic(path) as temporary:
        try:
            save_file(dict(tensors), temporary, dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{error}") from error
