"""Arguments that the data sets have in common, checked at the door."""

import importlib
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import SupportsIndex, TypeVar

import numpy as np
import torch
from torch import Tensor

from bvdm_data.clip import CameraScale

Given = TypeVar("Given", bound=Callable[..., object] | None)


def as_int(name: str, value: SupportsIndex, least: int | None = None) -> int:
    """Return a whole number as an int; numpy's integers are welcome, bool is not.

    Examples:
        >>> check_whole_number("frames", 8, least=1)
        8
    """
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be {least} or more, got {number}")
    return number


def check_frames(frames: SupportsIndex) -> int:
    """Return the number of frames of a clip."""
    return as_int("frames", frames, least=1)


def check_size(size: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, int]:
    """Return height and width of a clip.

    Examples:
        >>> check_size(64), check_size([64, 96])
        ((64, 64), (64, 96))
    """
    if isinstance(size, np.ndarray | Tensor):
        size = size.tolist()
    if isinstance(size, str) or not isinstance(size, Sequence | SupportsIndex):
        raise TypeError(f"size must be (height, width) in pixels, got {size!r}")
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"size must be two numbers, (height, width), got {size!r}")
    height, width = (as_int("size", side, least=1) for side in pair)
    return height, width


def check_length(length: SupportsIndex | None) -> int | None:
    """Return the number of clips an epoch."""
    return None if length is None else as_int("length", length, least=1)


def check_seed(seed: SupportsIndex) -> int:
    """Return the seed."""
    return as_int("seed", seed, least=0)


def check_epoch(epoch: SupportsIndex) -> int:
    """Return the number of an epoch."""
    return as_int("epoch", epoch, least=0)


def check_max_cells(max_cells: SupportsIndex) -> int:
    """Return the number of rows of the padded tables."""
    return as_int("max_cells", max_cells, least=1)


def check_scale(scale: CameraScale | None) -> CameraScale | None:
    """Return the camera's scale."""
    if scale is not None and not isinstance(scale, CameraScale):
        raise TypeError(f"scale must be a CameraScale or None, got {scale!r}")
    return scale


def check_device(device: str | torch.device) -> torch.device:
    """Return the device that is meant."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one that torch knows, got {device!r}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} asks for CUDA, but torch finds none; use device='cpu'")
    return found


def check_transform(transform: Given) -> Given:
    """Return the transform."""
    if transform is not None and not callable(transform):
        raise TypeError(f"transform must be a callable that takes a clip, got {transform!r}")
    if transform is not None:
        # Here, so that forked workers do not each import torchvision, which takes seconds.
        importlib.import_module("bvdm_data.datasets.transformed_annotations")
    return transform


def as_index(index: SupportsIndex, length: int) -> int:
    """Return the number of a clip of an epoch."""
    number = as_int("index", index)
    if not -length <= number < length:
        raise IndexError(
            f"index must be from {-length} to {length - 1}, got {number}; use clip(index) for the "
            "endless series"
        )
    return number % length


def as_fraction(name: str, value: object) -> float:
    """Return a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number from 0 to 1, got {value!r}")
    share = float(value)
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
    return share


OOM_HINT = "memory ran out: use fewer workers, frames or nuclei, or a smaller size"
"""The way out where no memory is left."""

_NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc")
"""Words of torch's errors where no memory is left, which are RuntimeErrors."""


@contextmanager
def name_clip_in_errors(name: str, epoch: int, index: int) -> Iterator[None]:
    """Let errors name the clip that is being made, and the way to make it again alone."""
    place = f"It is clip {index} of epoch {epoch} of {name}; to make it alone: "
    with name_source_in_errors(f"{place}videos.set_epoch({epoch}); videos.clip({index})"):
        yield


@contextmanager
def name_source_in_errors(place: str) -> Iterator[None]:
    """Let errors say where they happened.

    The error is raised anew with a longer message, from the one that came. So the words are still
    there when a loader's worker hands it to the main process, which makes it again from its type
    and message. A type that cannot be made from a message alone is replaced by the nearest of its
    bases that can.
    """
    try:
        yield
    except Exception as error:
        raise _told(error, place) from error


def _told(error: Exception, place: str) -> Exception:
    words = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    if isinstance(error, MemoryError) or any(said in words for said in _NO_MEMORY):
        words = f"{words} ({OOM_HINT})"
    message = f"{words.removesuffix('.')}. {place}"
    for kind in type(error).__mro__[:-1]:
        try:
            again = kind(message)
        except Exception:
            continue
        if isinstance(again, Exception) and str(again) == message:
            if isinstance(again, OSError) and isinstance(error, OSError):
                again.errno = error.errno
            return again
    return RuntimeError(message)
