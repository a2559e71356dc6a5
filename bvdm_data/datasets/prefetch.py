"""Prefetching: a thread that works ahead of a loop, and the device stream that it works on."""

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

Item = TypeVar("Item")
Made = TypeVar("Made")

_POLL_SECONDS = 0.1  # seconds after which the thread, waiting for room, looks whether it must stop


class _Queue(queue.Queue[Any]):
    """Results, each with None or the error that ended the work."""

    # A mere flag: the garbage collector may set it while this thread holds a lock.
    stopped = False


class Prefetcher(Generic[Made]):
    """Iterator over what a thread makes of the items of another iterator, some items ahead.

    The thread ends with :meth:`close`, with the last reference to the iterator, and when the
    interpreter exits. ``next`` raises an error of the thread after the items before it.
    """

    def __init__(self, source: Iterator[Item], work: Callable[[Item], Made], maxsize: int) -> None:
        """Start the thread."""
        self._over = False
        self._results = _Queue(maxsize)
        # No reference to self: otherwise the iterator would never be garbage-collected.
        self._thread = threading.Thread(
            target=_fill, args=(self._results, source, work), name="bvdm_data ahead", daemon=True
        )
        self.close = weakref.finalize(self, _stop, self._results, self._thread)
        # Later than the workers of the source, so it comes before they end.
        atexit.register(self.close)
        self._thread.start()

    def __iter__(self) -> "Prefetcher[Made]":
        """Return the iterator."""
        return self

    def __next__(self) -> Made:
        """Return the next result."""
        while not self._results.stopped:
            try:
                made, error = self._results.get(timeout=1)
            except queue.Empty:
                continue
            if error is None:
                return cast(Made, made)
            self._over = True
            self.close()
            raise error
        if self._over:
            raise StopIteration
        raise RuntimeError(
            "the loop was closed ahead of its end, by close() or because a new one was begun"
        )


def _fill(results: _Queue, source: Iterator[Item], work: Callable[[Item], Made]) -> None:
    def put(made: Made | None, error: BaseException | None) -> None:
        while not results.stopped:
            try:
                results.put((made, error), timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    try:
        # A generator turns a StopIteration of the work, which would end the loop, into an error.
        for made in ((work(item),) for item in source):
            put(made[0], None)
            del made
            if results.stopped:
                return
        put(None, StopIteration())
    except BaseException as error:
        put(None, error)
    finally:
        # Not left to whoever keeps the error, and with it this frame.
        getattr(source, "close", bool)()


def _stop(results: _Queue, thread: threading.Thread) -> None:
    results.stopped = True
    if threading.current_thread() is not thread:
        thread.join()


class DeviceStream:
    """A CUDA stream for rendering; neither the loop nor the thread waits for the other.

    On the CPU it does nothing. Never run on a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        """Make the stream, one for all loops: the next one uses the memory that one has freed."""
        self.device = device
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Let the stream start after the work of the loop so far, such as moving the networks."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    @contextmanager
    def enter_thread(self) -> Iterator[None]:
        """Do all of a loop in this block, which the thread enters, and finish it at the end."""
        if self.stream is None:
            yield
            return
        torch.cuda.set_device(self.device)
        try:
            yield
        finally:
            # Networks may be freed now; their memory belongs to another stream.
            self.stream.synchronize()

    def enter_stream(self) -> AbstractContextManager[object]:
        """Render in this block; the current stream belongs to the calling thread alone."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def record_event(self) -> Any:
        """Return an event for all that was asked for in that block."""
        return self.stream and self.stream.record_event()

    def wait(self, batch: Mapping[str, Any], event: Any) -> None:
        """Let the loop's stream wait for the event, and keep the memory until it has used it."""
        if self.stream is None:
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(current)
