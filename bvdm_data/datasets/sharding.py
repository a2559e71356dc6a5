"""Which clips are whose: ranks of a distributed job, and the workers of their loaders."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import parent_process
from typing import Any, SupportsIndex

import torch.distributed
from torch.utils.data import get_worker_info

from bvdm_data.validate import as_int

Shard = tuple[int, int]
"""Number of a rank from 0, and how many ranks there are."""

PLACE = ("epoch", "start")
"""What says where a pass begins."""

SAME = ("batch_size", "rank", "ranks", "worker", "workers")
"""What must be the same for a worker to go on where another one was."""


class DistributedContext:
    """The shard of this process: given, or that of the distributed job it belongs to.

    Without a given one it is, in this order, that of ``torch.distributed`` where a process group
    has been made, that of the environment variables ``RANK`` and ``WORLD_SIZE`` (which torchrun
    sets), and else all. A worker of a loader belongs to the process that started it.
    """

    def __init__(self, given: Sequence[int] | None) -> None:
        """Check what was given."""
        self.given = None if given is None else _check_shard(given)
        self._carried: tuple[int, Shard] | None = None

    def find(self) -> Shard:
        """Return rank and number of ranks."""
        if self.given is not None:
            return self.given
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        parent = parent_process()
        if get_worker_info() is not None and self._carried is not None and parent is not None:
            process, shard = self._carried
            if process == parent.pid:
                return shard
        return _read_environment()

    def __getstate__(self) -> dict[str, object]:
        """Tell a worker of this process, which is no member of its process group, the shard."""
        carried = self._carried if get_worker_info() else (os.getpid(), self.find())
        return {"given": self.given, "_carried": carried}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Forget the shard where this is a copy in the same process."""
        self.__dict__.update(state)
        if self._carried is not None and self._carried[0] == os.getpid():
            self._carried = None


@dataclass(frozen=True, kw_only=True)
class SampleSplit:
    """What one process makes in one pass over an epoch, and how far it is."""

    epoch: int  # number of the epoch
    start: int = 0  # clips of the epoch that are behind all ranks before the pass
    length: int | None  # clips of the epoch; None: without end
    made: int = 0  # clips that this process has yielded in the pass
    batch_size: int  # clips in a row that one worker makes
    rank: int  # number of this rank
    ranks: int  # how many there are
    worker: int  # number of this worker of the rank
    workers: int  # how many there are

    def runs(self) -> Iterator[list[int]]:
        """Yield the numbers of the clips that are left to this process, a batch at a time."""
        skipped, clips = self.made % self.batch_size, self.of_rank
        for batch in itertools.count(self.made // self.batch_size):
            first = (batch * self.workers + self.worker) * self.batch_size
            stop = first + self.batch_size
            places = range(first + skipped, stop if clips is None else min(stop, clips))
            if not places:
                return
            yield [self._number(place) for place in places]
            skipped = 0

    @property
    def of_rank(self) -> int | None:
        """Clips of all workers of this rank in the pass, or None without end."""
        return None if self.length is None else -(-(self.length - self.start) // self.ranks)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to this process."""
        return next(self.runs(), None) is None

    @property
    def next_of_all(self) -> int:
        """Clips of the epoch that are behind all ranks, where each has a single worker."""
        number = self.start + self.made * self.ranks
        return number if self.length is None else min(number, self.length)

    def state(self) -> dict[str, int]:
        """Return how far the process is, with what that depends on, as whole numbers."""
        return {name: value for name, value in asdict(self).items() if name != "length"}

    def resumed(self, state: Mapping[str, int]) -> "SampleSplit":
        """Return the share with the place of a state."""
        for name in SAME:
            here = getattr(self, name)
            if state.get(name, here) != here:
                raise ValueError(
                    f"state_dict must be that of the same share of the clips: it has {name}="
                    f"{state[name]}, this process has {name}={here}. Resume with the same loader "
                    "and as many ranks, or from state_dict(consumed=...) of the data set, which "
                    "any number of workers and ranks can do"
                )
        place = {name: state[name] for name in PLACE}
        return replace(self, **place, made=state.get("made", 0))

    def _number(self, place: int) -> int:
        """Return the number of the clip that has this place in the rank's row of clips."""
        number = self.start + self.rank + place * self.ranks
        return number if self.length is None else number % self.length


def check_batch_size(batch_size: SupportsIndex | None) -> int | None:
    """Return the batch size of the loader."""
    return None if batch_size is None else as_int("batch_size", batch_size, least=1)


def get_loader_id(worker: Any) -> int:
    """Return what all workers of one loop over a loader have in common, and no other loop has."""
    return -1 if worker is None else max(worker.seed - worker.id, 1)


def _read_environment() -> Shard:
    names = ("RANK", "WORLD_SIZE")
    if not all(os.environ.get(name) for name in names):
        return 0, 1
    try:
        return _check_shard([int(os.environ[name]) for name in names])
    except ValueError as error:
        said = ", ".join(f"{name}={os.environ[name]}" for name in names)
        raise ValueError(
            f"the environment variables RANK and WORLD_SIZE must be whole numbers with "
            f"0 <= RANK < WORLD_SIZE, got {said}; correct them, or give shard=(rank, ranks)"
        ) from error


def _check_shard(shard: Sequence[int]) -> Shard:
    if isinstance(shard, str) or not isinstance(shard, Sequence) or len(shard) != 2:
        raise TypeError(f"shard must be a pair (rank, number of ranks), got {shard!r}")
    rank, ranks = (as_int("shard", number) for number in shard)
    if not 0 <= rank < ranks:
        raise ValueError(
            f"shard must be (rank, number of ranks) with 0 <= rank < number of ranks, got {shard}"
        )
    return rank, ranks
