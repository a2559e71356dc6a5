"""Lanes: how a thread paints on a device beside the loop, and hands over what it has painted."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Lane:
    """A device that does one thing after the other: nothing is to be waited for."""

    def begin(self) -> None:
        """Begin a loop; called by the loop itself."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Do all of a loop in this block; called by the thread."""
        yield

    @contextmanager
    def painting(self) -> Iterator[None]:
        """Paint in this block, within :meth:`held`."""
        yield

    def done(self) -> Any:
        """Return what tells that all is painted that was asked for so far; in that block."""
        return None

    def hand_over(self, batch: Mapping[str, Any], done: Any) -> None:
        """Let the loop use what was painted.

        Args:
            batch: Tensors by name.
            done: From :meth:`done`.
        """


class CudaLane(Lane):
    """A stream of its own on a CUDA device; neither the loop nor the thread waits for the other.

    Never run on a CUDA device.

    Args:
        device: Which, with its index.
    """

    def __init__(self, device: torch.device) -> None:
        """Make the stream, one for all loops: memory that one has freed is used by the next."""
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Let the stream begin after what the loop has asked for: the networks come from there."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the device that of this thread, and leave nothing under way."""
        torch.cuda.set_device(self.device)
        try:
            yield
        finally:
            # Networks may be freed now; their memory belongs to another stream.
            self.stream.synchronize()

    @contextmanager
    def painting(self) -> Iterator[None]:
        """Paint on the stream: the current stream is that of the calling thread alone."""
        with torch.cuda.stream(self.stream):
            yield

    def done(self) -> Any:
        """Return an event of the stream."""
        return self.stream.record_event()

    def hand_over(self, batch: Mapping[str, Any], done: Any) -> None:
        """Let the loop's stream wait for the event, and keep the memory until it is through.

        Args:
            batch: Tensors by name.
            done: From :meth:`done`.
        """
        current = torch.cuda.current_stream(self.device)
        current.wait_event(done)
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(current)


def lane_of(device: torch.device) -> Lane:
    """Return the lane of a device.

    Args:
        device: A CUDA device with its index, or the CPU.
    """
    return CudaLane(device) if device.type == "cuda" else Lane()
