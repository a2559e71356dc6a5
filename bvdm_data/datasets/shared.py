"""Whole numbers in shared memory, that the workers of a loader see change."""

from typing import Any

import torch
from torch.utils.data import get_worker_info


class SharedNumbers:
    """A few whole numbers in shared memory.

    Workers see them change, however they were started (fork, forkserver or spawn); a pickle or a
    copy of them is a new memory with the same numbers.

    Args:
        count: How many; all 0 at first.
    """

    def __init__(self, count: int) -> None:
        """Take the memory."""
        self._numbers = torch.zeros(count, dtype=torch.int64)
        self._share()

    def __getitem__(self, place: int) -> int:
        """Return a number."""
        return int(self._numbers[place])

    def __setitem__(self, place: int, number: int) -> None:
        """Change a number, here and in all workers."""
        self._numbers[place] = number

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come out of a pickle; one that was not made for a worker is no shared memory yet."""
        self.__dict__.update(state)
        if not self._numbers.is_shared():  # type: ignore[no-untyped-call]
            self._share()

    def _share(self) -> None:
        self._numbers.share_memory_()  # type: ignore[no-untyped-call]


class SharedEpoch:
    """Number of an epoch, 0 at first, that reaches workers which are already there.

    A worker that sets it sets its own alone, so that workers which are ahead or behind do not
    disturb each other.
    """

    def __init__(self) -> None:
        """Start with epoch 0."""
        self._shared = SharedNumbers(1)
        self._own: int | None = None

    @property
    def number(self) -> int:
        """Number of the epoch."""
        return self.asked_for if self._own is None else self._own

    @property
    def asked_for(self) -> int:
        """Number of the epoch that the main process has set last."""
        return self._shared[0]

    def set(self, number: int) -> None:
        """Choose the epoch.

        Args:
            number: 0 or more.
        """
        if get_worker_info() is None:
            self._shared[0] = number
        else:
            self._own = number
