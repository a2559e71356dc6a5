"""Pixels: the compiled loops of ``pixels.c``, where they have been built."""

import ctypes
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).with_suffix(".c")


def find_library() -> Path:
    """Return where the compiled loops of this very source belong."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:8]
    return SOURCE.with_name(f"_pixels_{digest}.{'dll' if sys.platform == 'win32' else 'so'}")


def _load() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(find_library()))
    except OSError:
        return None


_LIBRARY = _load()


def has_loops() -> bool:
    """Return whether the loops have been compiled; where not, torch does their work."""
    return _LIBRARY is not None


def run_loop(name: str, *arguments: Any) -> None:
    """Call a loop with whole numbers and contiguous arrays or tensors, which it reads or writes."""
    getattr(_LIBRARY, name)(*map(_convert, arguments))


def _convert(argument: Any) -> ctypes.c_int64 | ctypes.c_void_p:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    array = isinstance(argument, np.ndarray)
    if not (argument.flags.c_contiguous if array else argument.is_contiguous()):
        raise ValueError("compiled loops take contiguous arrays only")
    return ctypes.c_void_p(argument.ctypes.data if array else argument.data_ptr())
