"""Errors while a clip is made: they say which clip it was and how to make it again alone."""

from collections.abc import Iterator
from contextlib import contextmanager

ADVICE = "memory ran out: use fewer workers, frames or nuclei, or a smaller size"
"""The way out where no memory is left."""

_NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc")
"""Words of torch's errors where no memory is left, which are RuntimeErrors."""


@contextmanager
def naming_clip(name: str, epoch: int, index: int) -> Iterator[None]:
    """Let errors name the clip that is being made, and the way to make it again alone.

    Args:
        name: The data set, with its seed.
        epoch: Epoch of the clip.
        index: Number of the clip.

    Yields:
        Nothing; make the clip in this block.

    Raises:
        Exception: What is raised in the block, of the same type; see :func:`naming`.
    """
    place = f"It is clip {index} of epoch {epoch} of {name}; to make it alone: "
    with naming(f"{place}videos.set_epoch({epoch}); videos.clip({index})"):
        yield


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Let errors say where they happened.

    The error is raised anew with a longer message, from the one that came. So the words are still
    there when a loader's worker hands it to the main process, which makes it again from its type
    and message. A type that cannot be made from a message alone is replaced by the nearest of its
    bases that can.

    Args:
        place: A sentence without its full stop.

    Yields:
        Nothing; the work is done in the block.

    Raises:
        Exception: What is raised in the block, of the same type.
    """
    try:
        yield
    except Exception as error:
        raise _told(error, place) from error


def _told(error: Exception, place: str) -> Exception:
    words = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    if isinstance(error, MemoryError) or any(said in words for said in _NO_MEMORY):
        words = f"{words} ({ADVICE})"
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
