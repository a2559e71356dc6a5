"""Machine and process: what measured times and bytes depend on, and must not."""

import ctypes
import importlib
import importlib.metadata
import logging
import os
import platform
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function

from bvdm_data.pixels import has_loops


def get_machine_info() -> dict[str, Any]:
    """Return what this machine is, and how busy."""
    return {
        "processor": _processor(),
        "cores": count_usable_cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "loops": describe_cpu()["loops"],
        "system": platform.system(),
    }


# Vector instructions for which oneDNN, the library of torch's convolutions, has other kernels.
_VECTORS = ("avx2", "avx512", "vnni", "avx512_bf16", "amx_tile", "amx_fp16")


def describe_cpu() -> dict[str, str]:
    """Return what grey values and flow depend on beside the versions: the instructions in use.

    Returns:
        ``machine``, the architecture; ``torch``, the vector instructions that torch uses (see
        ``ATEN_CPU_CAPABILITY``); ``onednn``, those that oneDNN may use, with the limit that
        ``ONEDNN_MAX_CPU_ISA`` sets; and ``loops``, what does the loops over pixels: "compiled" or
        "torch". Where all four are equal, and so was the compiler, the bytes are.
    """
    has, limit = _list_vectors()
    return {
        "machine": platform.machine(),
        "torch": torch.backends.cpu.get_cpu_capability(),
        "onednn": " ".join(has) + (f", at most {limit}" if limit else ""),
        "loops": "compiled" if has_loops() else "torch",
    }


def _list_vectors() -> tuple[list[str], str]:
    """Return the vector instructions that the CPU has, and the limit on those that oneDNN uses."""
    has = [name for name in _VECTORS if getattr(torch.cpu, f"_is_{name}_supported", bool)()]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return has, limit.lower()


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return the type that networks run in: bfloat16, but on a CPU that is slow with it float32.

    Fast are those with AMX or AVX512_BF16, unless oneDNN is told to do without. The student of the
    fast method draws in float32 on every CPU, so that its light hardly depends on it.
    """
    has, limit = _list_vectors()
    slow = re.fullmatch("sse41|avx|avx2(_vnni(_2)?)?|avx512_core(_vnni)?", limit)
    is_fast = not slow and not {"avx512_bf16", "amx_tile"}.isdisjoint(has)
    return torch.bfloat16 if is_fast or device.type != "cpu" else torch.float32


def run_mixed(device: torch.device) -> AbstractContextManager[object]:
    """Run networks of float32 weights in the type of :func:`choose_dtype`, where they can."""
    dtype = choose_dtype(device)
    mixed: AbstractContextManager[object] = torch.autocast(
        device.type, torch.bfloat16, enabled=dtype is torch.bfloat16
    )
    return mixed


def count_usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def list_versions(
    packages: Sequence[str] = ("bvdm-data", "torch", "numpy", "scipy"),
) -> dict[str, str]:
    """Return the versions of Python and of packages."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def measure_peak_megabytes(*, children: bool = False) -> float | None:
    """Return the most memory that this process has held so far, or one of its children."""
    # Linux counts in ru_maxrss what the parent held when it started the process.
    status = Path("/proc/self/status")
    text = "" if children or not status.is_file() else status.read_text()
    if peak := re.search(r"^VmHWM:\s*(\d+) kB$", text, re.M):
        return int(peak[1]) * 1024 / 1e6
    try:
        import resource
    except ModuleNotFoundError:
        return None
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    found = resource.getrusage(who).ru_maxrss
    return found / 1e6 if platform.system() == "Darwin" else found * 1024 / 1e6


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


_ALONE = threading.RLock()
if hasattr(os, "register_at_fork"):
    # A child begins outside the blocks of other threads, whose settings it would keep.
    os.register_at_fork(
        before=_ALONE.acquire, after_in_parent=_ALONE.release, after_in_child=_ALONE.release
    )


@contextmanager
def set_threads(count: int) -> Iterator[None]:
    """Run a block with so many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def isolate() -> Iterator[None]:
    """Run a block under settings of its own, so that nothing set outside changes its bytes.

    Torch has one thread, as in a loader's workers: more of them round sums, and the ends of
    vectors, in another way. Some settings belong to the whole process, so only one thread at a
    time is in such a block; the others see the settings until it ends.
    """
    with _ALONE, ExitStack() as stack:
        stack.enter_context(set_threads(1))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        onednn: Any = torch.backends.mkldnn
        if not onednn.enabled:
            stack.callback(setattr, onednn, "enabled", False)
            onednn.enabled = True
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors give back, where its C library is glibc.

    Otherwise each tensor of some megabytes is fetched from the system again, page by page.
    """
    if platform.libc_ver()[0] == "glibc":
        change = ctypes.CDLL(None).mallopt
        change(_M_MMAP_THRESHOLD, 2**25)
        change(_M_TRIM_THRESHOLD, 2**28)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def require(name: str, extra: str = "evaluate") -> ModuleType:
    """Import a package of an extra, without its changes to logging and its warnings."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this needs the package {error.name!r}, which is not installed; "
            f"pip install 'bvdm-data[{extra}]'"
        ) from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


# What making a clip by the fast method consists of, in order.
SPANS = (
    "lives", "labels", "flow", "noise", "outlines", "network", "scene", "camera", "annotations",
)  # fmt: skip
SPAN_PREFIX = "bvdm_data::"  # what the names of the parts begin with in a profile


def profile_span(name: str) -> AbstractContextManager[object]:
    """Mark a part of the work for ``torch.profiler``; costs some microseconds."""
    mark: AbstractContextManager[object] = record_function(SPAN_PREFIX + name)
    return mark
