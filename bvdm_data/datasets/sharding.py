"""Which process makes which clips: ranks of a distributed job, the workers of their loaders."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from types import FrameType
from typing import Any, NamedTuple, SupportsIndex

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import get_worker_info
from typing_extensions import Self

from bvdm_data.system import isolate
from bvdm_data.validate import as_int

Shard = tuple[int, int]  # rank, from 0, and number of ranks
POSITION_KEYS = ("epoch", "start")  # entries of a state that say where a pass starts
# Entries of a state that must be the same where a worker resumes.
SPLIT_KEYS = ("batch_size", "rank", "ranks", "worker", "workers")


class DistributedContext:
    """The shard of this process: given, or found out from the distributed job.

    Without a given one it is, in this order, the one of ``torch.distributed`` where a process group
    was made, the one of the environment variables ``RANK`` and ``WORLD_SIZE`` (which torchrun
    sets), or ``(0, 1)``. A worker of a loader has the shard of the process that started it.
    """

    def __init__(self, given: Sequence[int] | None) -> None:
        """Check the given shard."""
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
        names = ("RANK", "WORLD_SIZE")
        if not all(os.environ.get(name) for name in names):
            return 0, 1
        try:
            return _check_shard([int(os.environ[name]) for name in names])
        except ValueError as error:
            values = ", ".join(f"{name}={os.environ[name]}" for name in names)
            raise ValueError(
                f"the environment variables RANK and WORLD_SIZE must be whole numbers with "
                f"0 <= RANK < WORLD_SIZE, got {values}; correct them, or give shard=(rank, ranks)"
            ) from error

    def __getstate__(self) -> dict[str, object]:
        """Carry the shard to a worker, which is no member of this process's process group."""
        carried = self._carried if get_worker_info() else (os.getpid(), self.find())
        return {"given": self.given, "_carried": carried}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Drop the carried shard where this is a copy in the same process."""
        self.__dict__.update(state)
        if self._carried is not None and self._carried[0] == os.getpid():
            self._carried = None


@dataclass(frozen=True, kw_only=True)
class SampleSplit:
    """The clips of one process in one pass over an epoch, and how many of them are made."""

    epoch: int
    start: int = 0  # clips of the epoch that all ranks have finished before the pass
    length: int | None  # clips of the epoch; None: endless
    made: int = 0  # clips that this process has yielded in the pass
    batch_size: int  # clips in a row that one worker makes
    rank: int
    ranks: int
    worker: int
    workers: int

    @classmethod
    def of_process(cls, shard: Shard, **fields: Any) -> Self:
        """Return the share of this process, which may be a loader's worker."""
        worker = get_worker_info()
        return cls(
            rank=shard[0],
            ranks=shard[1],
            worker=worker.id if worker else 0,
            workers=worker.num_workers if worker else 1,
            **fields,
        )

    def batches(self) -> Iterator[list[int]]:
        """Yield the numbers of the clips that are left to this process, a batch at a time."""
        skipped, clips = self.made % self.batch_size, self.len_of_rank
        for batch in itertools.count(self.made // self.batch_size):
            first = (batch * self.workers + self.worker) * self.batch_size
            stop = first + self.batch_size
            places = range(first + skipped, stop if clips is None else min(stop, clips))
            if not places:
                return
            yield [self._get_number(place) for place in places]
            skipped = 0

    @property
    def len_of_rank(self) -> int | None:
        """Clips of all workers of this rank in the pass, or None if endless."""
        return None if self.length is None else -(-(self.length - self.start) // self.ranks)

    @property
    def is_over(self) -> bool:
        """Whether no clip is left to this process."""
        return next(self.batches(), None) is None

    @property
    def global_position(self) -> int:
        """Clips of the epoch that all ranks have finished, where each has a single worker."""
        number = self.start + self.made * self.ranks
        return number if self.length is None else min(number, self.length)

    def to_state(self) -> dict[str, int]:
        """Return the entries of a worker's state."""
        return {key: getattr(self, key) for key in (*POSITION_KEYS, "made", *SPLIT_KEYS)}

    def with_state(self, state: Mapping[str, int]) -> Self:
        """Return the share at the position of a state."""
        for key in SPLIT_KEYS:
            here = getattr(self, key)
            if state.get(key, here) != here:
                raise ValueError(
                    f"state_dict must be from the same share of the clips: it has {key}="
                    f"{state[key]}, this process has {key}={here}. Resume with the same loader "
                    "and as many ranks, or from state_dict(consumed=...) of the data set, which "
                    "any number of workers and ranks can do"
                )
        position = {name: state[name] for name in POSITION_KEYS}
        return replace(self, **position, made=state.get("made", 0))

    def _get_number(self, place: int) -> int:
        """Return the number of the clip at this place in the rank's sequence of clips."""
        number = self.start + self.rank + place * self.ranks
        return number if self.length is None else number % self.length


class _SharedInt:
    def __init__(self, place: int) -> None:
        self.place = place

    def __get__(self, owner: "SharedInts", kind: type) -> int:
        return int(owner.memory[self.place])

    def __set__(self, owner: "SharedInts", number: int) -> None:
        owner.detach()
        owner.memory[self.place] = number


class Plan(NamedTuple):
    """What the main process has asked of the passes that begin now."""

    epoch: int = 0
    start: int = 0  # clip that the first of them starts with
    restarts: int = 0  # how often a state was loaded or another epoch was set before


class SharedInts:
    """Whole numbers in shared memory, 0 at first.

    Workers see them change, however they were started (fork, forkserver or spawn). A pickle, a
    copy, or another process that is no worker has memory of its own, with the same numbers.
    """

    requested_epoch = _SharedInt(0)  # epoch that the main process has set last
    restarts = _SharedInt(2)  # how often a state was loaded or another epoch was set
    claimed_restart = _SharedInt(3)  # the latest of these whose start was used by a loader
    claimed_by = _SharedInt(4)  # that loader
    pass_start = _SharedInt(5)  # clip that the latest pass started with
    in_workers = _SharedInt(6)  # whether workers make the latest pass
    pass_loader = _SharedInt(7)  # loader whose kept workers began a pass last
    pass_number = _SharedInt(8)  # number of that pass

    @isolate()
    def __init__(self) -> None:
        """Allocate the memory."""
        self.memory = torch.zeros(12, dtype=torch.int64)
        self.memory.share_memory_()  # type: ignore[no-untyped-call]
        self._process = os.getpid()

    def get_plan(self, place: int = 0) -> Plan:
        """Return the plan of the main process, or the one at another place."""
        return Plan(*self.memory[place : place + 3].tolist())

    def set_plan(self, plan: Plan, place: int = 0) -> None:
        """Write a plan."""
        self.detach()
        self.memory.numpy()[place : place + 3] = plan

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Share the memory of a copy, unless the copy was made for a worker."""
        self.__dict__.update(state)
        if not self.memory.is_shared():  # type: ignore[no-untyped-call]
            self._allocate()

    def detach(self) -> None:
        """Leave the memory to the process that made it; ranks that it starts have their own."""
        if self._process != os.getpid() and get_worker_info() is None:
            self._allocate()

    @isolate()
    def _allocate(self) -> None:
        self.memory = self.memory.clone().share_memory_()  # type: ignore[no-untyped-call]
        self._process = os.getpid()


class SharedEpoch:
    """Number of an epoch, 0 at first, that also reaches workers that already run.

    A worker that sets it changes only its own, so workers that are ahead do not disturb others.
    """

    def __init__(self, shared: SharedInts | None = None) -> None:
        """Start with epoch 0."""
        self._shared = shared or SharedInts()
        self._own: int | None = None

    @property
    def number(self) -> int:
        """Number of the epoch."""
        return self.requested if self._own is None else self._own

    @property
    def requested(self) -> int:
        """Number of the epoch that the main process has set last."""
        return self._shared.requested_epoch

    def set(self, number: int) -> None:
        """Choose the epoch."""
        if get_worker_info() is None:
            self._shared.requested_epoch = number
        else:
            self._own = number


def check_batch_size(batch_size: SupportsIndex | None) -> int | None:
    """Return the batch size of the loader."""
    return None if batch_size is None else as_int("batch_size", batch_size, least=1)


def get_loader_id(worker: Any) -> int:
    """Return a number that the workers of one loop over a loader share, and no other loop has."""
    return -1 if worker is None else max(worker.seed - worker.id, 1)


def check_loader(frame: FrameType, batch_size: int | None, name: str) -> bool:
    """Refuse a loader with batches of another size than the data set whose generator this is.

    A data set is not told that size: only torch's fetcher, which calls the generator, knows it.
    Returns whether the loader is known to send items one by one, not in batches.
    """
    caller = frame.f_back
    names = {} if caller is None else caller.f_locals
    fetcher: Any = names.get("self")
    is_ours = getattr(getattr(fetcher, "dataset_iter", None), "gi_frame", None) is frame
    if not is_ours or "possibly_batched_index" not in names:
        return False
    found = len(names["possibly_batched_index"]) if fetcher.auto_collation else 1
    if batch_size not in (None, found):
        raise ValueError(
            f"batch_size of {name} must be that of its loader, {found}, got {batch_size}: which "
            "worker makes which clips, and where a loop is resumed, follow from it; give both the "
            "same"
        )
    return not fetcher.auto_collation


def move_to_shared_memory(clip: object) -> None:
    """Move the tensors of a clip to shared memory, where a worker sends them from.

    The thread of torch that sends them would do it, and would drop the clip if it failed.
    """
    for tensor in clip.values() if isinstance(clip, dict) else ():
        if isinstance(tensor, Tensor):
            tensor.share_memory_()  # type: ignore[no-untyped-call]


def check_settings(here: Mapping[str, str], given: Mapping[str, str]) -> None:
    """Refuse the settings of a state that are not those of the data set."""
    if not isinstance(given, Mapping):
        raise TypeError(f"state_dict must be what state_dict() has given, got settings={given!r}")
    for name, setting in given.items():
        if setting != here.get(name):
            raise ValueError(
                f"state_dict must be from a data set with {name}={here.get(name)}, got {name}="
                f"{setting}: the clips that are missing would be others; make the data set as it "
                "was, or remove 'settings' from the state to go on with other clips"
            )


def _check_shard(shard: Sequence[int]) -> Shard:
    if isinstance(shard, str) or not isinstance(shard, Sequence) or len(shard) != 2:
        raise TypeError(f"shard must be a pair (rank, number of ranks), got {shard!r}")
    rank, world_size = (as_int("shard", number) for number in shard)
    if not 0 <= rank < world_size:
        raise ValueError(
            f"shard must be (rank, number of ranks) with 0 <= rank < number of ranks, got {shard}"
        )
    return rank, world_size
