"""Pixels: the compiled loops of ``pixels.c`` and ``student.c``, where they have been built."""

import ctypes
import functools
import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".c")


def find_library() -> Path:
    """Return where the compiled loops of this very source belong."""
    sources = SOURCE.read_bytes() + SOURCE.with_name("student.c").read_bytes()
    digest = hashlib.sha256(sources).hexdigest()[:8]
    return SOURCE.with_name(f"_pixels_{digest}.{'dll' if sys.platform == 'win32' else 'so'}")


def _load() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(find_library()))
    except OSError:
        return None


_LIBRARY, _SKIPPED = _load(), False
_DTYPES = {"float": "float32", "int32_t": "int32", "int64_t": "int64", "uint8_t": "bool"}


def has_loops(name: str = "draw_outlines") -> bool:
    """Return whether a loop has been compiled; where not, torch does its work."""
    return not _SKIPPED and hasattr(_LIBRARY, name)


@contextmanager
def skip_loops() -> Iterator[None]:
    """Let torch do the work of all loops in a block, in all threads."""
    global _SKIPPED
    before, _SKIPPED = _SKIPPED, True
    try:
        yield
    finally:
        _SKIPPED = before


def run_loop(name: str, *arguments: Any) -> None:
    """Call a loop with whole numbers and contiguous arrays or tensors, which it reads or writes."""
    wanted = _read_declarations()[name]
    given = [_convert(*pair) for pair in zip(wanted, arguments, strict=True)]
    if getattr(_LIBRARY, name)(*given):
        raise MemoryError(f"no memory is left for the loop {name}")


@functools.cache
def _read_declarations() -> dict[str, list[tuple[str, str]]]:
    """Return the type of each argument of the loops, and its star where it is an array."""
    found = re.findall(r"^EXPORT int (\w+)\((.*?)\) {", SOURCE.read_text(), re.M | re.S)
    return {name: re.findall(r"(\w+) (\*?)\w+(?:,|\s*$)", inside) for name, inside in found}


def _convert(kind: tuple[str, str], argument: Any) -> ctypes.c_int64 | ctypes.c_void_p:
    if not kind[1]:
        return ctypes.c_int64(argument)
    is_array, wanted = hasattr(argument, "ctypes"), _DTYPES[kind[0]]
    # A loop cannot read the memory of a GPU.
    whole = argument.flags.c_contiguous if is_array else argument.is_contiguous()
    place = "cpu" if is_array else argument.device.type
    if not whole or place != "cpu" or str(argument.dtype).removeprefix("torch.") != wanted:
        raise ValueError(
            f"a compiled loop takes contiguous {wanted}, got {argument.dtype} on {place}"
        )
    return ctypes.c_void_p(argument.ctypes.data if is_array else argument.data_ptr())
