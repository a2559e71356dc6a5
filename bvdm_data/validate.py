"""Checks of arguments and settings, and errors that name the clip they belong to."""

import functools
import importlib
import math
import operator
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, SupportsIndex, TypeVar

import numpy as np
import torch
from torch import Tensor

from bvdm_data.clip import CameraScale

Given = TypeVar("Given", bound=Callable[..., object] | None)


LARGEST = 2**63 - 1
"""Largest whole number of 64 bits."""


def as_int(
    name: str, value: SupportsIndex, least: int | None = None, most: int | None = None
) -> int:
    """Return a whole number as an int; numpy's integers are welcome, bool is not.

    Examples:
        >>> as_int("frames", 8, least=1)
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
    if most is not None and number > most:
        raise ValueError(f"{name} must be {most} or less, got {number}")
    return number


check_frames = functools.partial(as_int, "frames", least=1)
check_seed = functools.partial(as_int, "seed", least=0)
check_epoch = functools.partial(as_int, "epoch", least=0, most=LARGEST)
check_max_cells = functools.partial(as_int, "max_cells", least=1)


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
    return None if length is None else as_int("length", length, least=1, most=sys.maxsize)


def check_scale(scale: CameraScale | None) -> CameraScale | None:
    """Return the camera's scale."""
    if scale is not None and not isinstance(scale, CameraScale):
        raise TypeError(f"scale must be a CameraScale or None, got {scale!r}")
    return scale


def check_device(device: str | torch.device) -> torch.device:
    """Return the device."""
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one that torch knows, got {device!r}") from error
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} asks for CUDA, but torch finds none; use device='cpu'")
    return checked


def check_transform(transform: Given) -> Given:
    """Return the transform."""
    if transform is not None and not callable(transform):
        raise TypeError(f"transform must be a callable that takes a clip, got {transform!r}")
    if transform is not None:
        # Here, so that forked workers do not each import torchvision, which takes seconds.
        importlib.import_module("bvdm_data.datasets.transformed_annotations")
    return transform


def as_number(index: SupportsIndex) -> int:
    """Return the number of a clip of an endless series."""
    number = as_int("index", index)
    if number < 0:
        raise IndexError(f"index must be 0 or more, got {number}")
    if number > LARGEST:
        raise IndexError(f"index must be {LARGEST} or less, got {number}")
    return number


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
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Rule:
    """What the value of a setting must be; bounds that are None do not bind."""

    kind: type  # int, float (any finite number) or bool
    least: float | None = None  # bounds that belong to the range
    most: float | None = None
    above: float | None = None  # bounds that do not
    below: float | None = None
    or_none: bool = False  # whether None is allowed, too

    def check(self, name: str, value: Any) -> None:
        """Refuse a value of the wrong type or outside the range."""
        if value is None and self.or_none:
            return
        kind = Real if self.kind is float else self.kind
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            noun = {int: "an int", float: "a number", bool: "True or False"}[self.kind]
            raise TypeError(
                f"{name} must be {noun}{' or None' * self.or_none}, got {reprlib.repr(value)}"
            )
        bounds: Any = (
            (operator.ge, self.least),
            (operator.gt, self.above),
            (operator.le, self.most),
            (operator.lt, self.below),
        )
        for compare, bound in bounds:
            if bound is not None and not compare(value, bound):
                raise ValueError(f"{name} must be {self._describe_range()}, got {str(value)[:40]}")
        if self.kind is float and not _is_finite(value):
            raise ValueError(f"{name} must be finite, got {str(value)[:40]}")

    def _describe_range(self) -> str:
        lower = {"at least": self.least, "above": self.above}
        upper = {"at most": self.most, "below": self.below}
        words = [f"{word} {n:g}" for word, n in (lower | upper).items() if n is not None]
        if self.least is not None and len(words) == 2:
            return f"from {self.least:g} to {words[1].removeprefix('at most ')}"
        return " and ".join(words)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_fields(settings: object, **rules: Rule) -> None:
    """Check fields of a dataclass of settings by a rule each; numpy's numbers become Python's.

    Examples:
        >>> class Settings:
        ...     steps = 0
        >>> check_fields(Settings, steps=Rule(int, least=1, most=1000))
        Traceback (most recent call last):
        ValueError: steps must be from 1 to 1000, got 0
    """
    for name, rule in rules.items():
        rule.check(name, value := getattr(settings, name))
        if isinstance(value, np.floating):
            object.__setattr__(settings, name, float(value))


OOM_HINT = "memory ran out: use fewer workers, frames or nuclei, or a smaller size"

# Phrases of torch's RuntimeErrors when memory runs out.
_OUT_OF_MEMORY = ("allocate memory", "out of memory", "bad_alloc")


@contextmanager
def name_clip_in_errors(name: str, epoch: int, index: int) -> Iterator[None]:
    """Add to errors which clip was being made, and how to make it again alone."""
    place = f"It is clip {index} of epoch {epoch} of {name}; to make it alone: "
    with name_source_in_errors(f"{place}videos.set_epoch({epoch}); videos.clip({index})"):
        yield


@contextmanager
def name_source_in_errors(place: str) -> Iterator[None]:
    """Add to errors where they happened.

    The error is raised again with a longer message, so that the message survives when a loader's
    worker sends it to the main process, which rebuilds errors from type and message. A type that
    cannot be built from a message alone is replaced by its nearest base that can.
    """
    try:
        yield
    except Exception as error:
        words = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
        if isinstance(error, MemoryError) or any(phrase in words for phrase in _OUT_OF_MEMORY):
            words = f"{words} ({OOM_HINT})"
        message = f"{words.removesuffix('.')}. {place}"
        for kind in type(error).__mro__[:-1]:
            try:
                extended = kind(message)
            except Exception:
                continue
            if isinstance(extended, Exception) and str(extended) == message:
                if isinstance(extended, OSError) and isinstance(error, OSError):
                    extended.errno = error.errno
                raise extended from error
        raise RuntimeError(message) from error
