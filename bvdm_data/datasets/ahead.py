"""Work that a thread does ahead of a loop, and what it hands over: items, the end, an error."""

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

_PATIENCE = 0.1
"""Seconds after which the thread, waiting for room, looks whether it is still wanted."""


class Ahead(Generic[Made]):
    """Iterator over what a thread makes of the items of another iterator, some items ahead.

    The thread is ended and waited for by :meth:`close`, with the last reference to the iterator,
    and when the interpreter exits; it is in the middle of one item at most. An error in the other
    iterator or in the work is raised by ``next``, after the items ahead of it.

    Args:
        source: Where the items come from; used by the thread alone.
        work: Called with each.
        room: How many results may wait, 1 or more.
    """

    def __init__(self, source: Iterator[Item], work: Callable[[Item], Made], room: int) -> None:
        """Start the thread."""
        self._over = False
        self._shelf = _Shelf(queue.Queue(room))
        # It holds no reference to the iterator, which would else never be lost.
        self._thread = threading.Thread(
            target=_run, args=(self._shelf, source, work), name="bvdm_data ahead", daemon=True
        )
        self._finish = weakref.finalize(self, _end, self._shelf, self._thread)
        # Later than the loader of the items has asked for the same, so this comes first.
        self._shelf.leave = self._finish
        atexit.register(self._finish)
        self._thread.start()

    def __iter__(self) -> "Ahead[Made]":
        """Return the iterator."""
        return self

    def __next__(self) -> Made:
        """Return the next result.

        Raises:
            Exception: What was raised in the thread.
            RuntimeError: If the iterator was closed ahead of its end.
        """
        if self._over:
            raise StopIteration
        told = self._taken()
        if isinstance(told, _Result):
            made: Made = told.value
            return made
        self._over = True
        self.close()
        if told.error is None:
            raise StopIteration
        raise told.error

    def close(self) -> None:
        """End the thread, and wait until it is in the middle of nothing."""
        self._finish()

    def _taken(self) -> "_Result | _End":
        while not self._shelf.unwanted:
            try:
                return self._shelf.results.get(timeout=1)
            except queue.Empty:
                continue
        raise RuntimeError(
            "the loop was closed ahead of its end, by close() or because a new one was begun"
        )


@dataclass(frozen=True)
class _Result:
    value: Any


@dataclass(frozen=True)
class _End:
    error: BaseException | None


@dataclass
class _Shelf:
    """What thread and iterator share."""

    results: "queue.Queue[_Result | _End]"
    unwanted: bool = False
    leave: Callable[[], object] | None = None

    def put(self, told: "_Result | _End") -> bool:
        """Wait for room; return whether the result is wanted."""
        while not self.unwanted:
            try:
                self.results.put(told, timeout=_PATIENCE)
            except queue.Full:
                continue
            return True
        return False


def _run(shelf: _Shelf, source: Iterator[Item], work: Callable[[Item], Made]) -> None:
    try:
        for item in source:
            if shelf.unwanted or not shelf.put(_Result(work(item))):
                return
        shelf.put(_End(None))
    except StopIteration as error:
        # Raised by next, it would end the loop as if all had been made.
        again = RuntimeError("what is done in the thread raised StopIteration")
        again.__cause__ = error
        shelf.put(_End(again))
    except BaseException as error:
        shelf.put(_End(error))
    finally:
        # Not left to whoever keeps the error, and with it this frame.
        close = getattr(source, "close", None)
        if close is not None:
            close()


def _end(shelf: _Shelf, thread: threading.Thread) -> None:
    # A mere flag: locks could be held by whom the garbage collector has interrupted.
    shelf.unwanted = True
    if threading.current_thread() is not thread:
        thread.join()
    if shelf.leave is not None:
        atexit.unregister(shelf.leave)
        shelf.leave = None
