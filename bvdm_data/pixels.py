"""Pixels: the compiled loops of ``pixels.c``, where they have been built."""

import ctypes
import hashlib
import sys
from pathlib import Path
from typing import Any

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
    """Call a loop with whole numbers and contiguous tensors, which it reads or writes."""
    if any(not isinstance(x, int) and not x.is_contiguous() for x in arguments):
        raise ValueError(f"{name} takes contiguous tensors only")
    given = (
        ctypes.c_int64(x) if isinstance(x, int) else ctypes.c_void_p(x.data_ptr())
        for x in arguments
    )  # fmt: skip
    getattr(_LIBRARY, name)(*given)
