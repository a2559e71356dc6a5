"""ClipStream: clips by number, as a stream that is split over ranks and workers and resumed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex, TypeVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from bvdm_data.clip import Clip
from bvdm_data.datasets.sharding import (
    PLACE,
    SAME,
    DistributedContext,
    SampleSplit,
    check_batch_size,
    get_loader_id,
)
from bvdm_data.validate import as_int, check_epoch, check_length, check_seed


class SharedInts:
    """A few whole numbers in shared memory.

    Workers see them change, however they were started (fork, forkserver or spawn); a pickle or a
    copy of them is a new memory with the same numbers.
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
        self._shared = SharedInts(1)
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
        """Choose the epoch."""
        if get_worker_info() is None:
            self._shared[0] = number
        else:
            self._own = number


_START, _LOADS, _CLAIM, _BEGAN, _BY_WORKERS = range(5)
"""Places in the shared memory: the clip that a loaded state starts with; how often a state was
loaded or an epoch begun; which pass has taken that start; the clip that the latest pass began
with; whether workers make it."""

Item = TypeVar("Item")

_PLAIN = {"seed", *PLACE}
_OF_WORKER = _PLAIN | {"made", *SAME}


class ClipStream(IterableDataset[Clip]):
    """Clips 0, 1, 2, ... of an epoch, in an order that no number of workers changes.

    A subclass has a method ``clip(index)``, a pure function of its arguments, ``seed``, ``epoch``
    and the index. This class decides which process makes which clips:

    - Rank ``r`` of ``R`` has the clips ``r``, ``r + R``, ``r + 2 R``, ... All ranks have equally
      many; where ``length`` does not divide, the last ones get clips from the start of the epoch,
      as with PyTorch's ``DistributedSampler``. An endless stream never repeats a clip.
    - Worker ``w`` of ``n`` makes every n-th run of ``batch_size`` clips of its rank. A loader with
      that batch size thus has the same batches in the same order for any number of workers.

    :meth:`set_epoch` also reaches workers that are kept (``persistent_workers=True``). Call it
    before a loop over the loader, not in it.

    Lightning takes a batch ahead from an endless stream, and its checkpoints count it as seen;
    give a ``length``, as long as you like, where it must resume exactly.

    Args:
        length: Clips an epoch, of all ranks together; None: an endless stream.
        seed: Seed of all clips.
        batch_size: The loader's (1 for a loader with ``batch_size=None``). None: not known; then
            each worker makes every n-th clip.
        shard: Number of this rank from 0, and of all ranks. None: those of ``torch.distributed``
            where a process group has been made, or else of the environment variables ``RANK`` and
            ``WORLD_SIZE``, or else ``(0, 1)``.

    Attributes:
        length: Clips an epoch, or None.
        seed: Seed of all clips.
        batch_size: The loader's, or None.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        *,
        length: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        shard: Sequence[int] | None = None,
    ) -> None:
        """Check the arguments."""
        super().__init__()
        self.length = check_length(length)
        self.seed = check_seed(seed)
        self.batch_size = check_batch_size(batch_size)
        self._shard = DistributedContext(shard)
        self._epoch = SharedEpoch()
        self._shared = SharedInts(5)
        self._pass: SampleSplit | None = None
        self._loaded: SampleSplit | None = None
        self._loads_used = 0

    def clip(self, index: SupportsIndex) -> Clip:
        """Return one clip of the epoch.

        Args:
            index: Its number, 0 or more; ``length`` is no limit, it only ends the iteration.
        """
        raise NotImplementedError

    def clips(self, indices: Sequence[int]) -> Iterable[Clip]:
        """Return several clips of the epoch in their order; what the iteration asks for.

        Args:
            indices: Numbers of at most ``batch_size`` clips.
        """
        return map(self.clip, indices)

    @property
    def epoch(self) -> int:
        """Number of the epoch, 0 at first."""
        return self._epoch.number

    @property
    def _restarts(self) -> int:
        """How often a state was loaded or an epoch begun."""
        return self._shared[_LOADS]

    @property
    def shard(self) -> tuple[int, int]:
        """Number of this rank, and of all ranks."""
        return self._shard.find()

    def set_epoch(self, epoch: SupportsIndex) -> None:
        """Choose the epoch: other clips for every index, from the first one on.

        To choose the epoch of a loaded state once more keeps the place in it.

        Args:
            epoch: 0 or more.

        Raises:
            TypeError: If epoch is not a whole number.
            ValueError: If epoch is negative.
        """
        number = check_epoch(epoch)
        is_new = number != self.epoch
        self._epoch.set(number)
        if is_new and get_worker_info() is None:
            self._start_with(0)

    def __iter__(self) -> Iterator[Clip]:
        """Yield this process's share of the clips of the epoch."""
        return self._iterate_over(self.clips)

    def _iterate_over(
        self, make: Callable[[Sequence[int]], Iterable[Item]], *, ahead: bool = False
    ) -> Iterator[Item]:
        """Yield what is made of this process's share; ``ahead``: before the loop asks for it."""
        self._pass = None
        if get_worker_info() is None:
            self._shared[_BY_WORKERS] = 0
        # Who asks for a pass after the end of an epoch was loaded, as torchdata's loader does to
        # see that it is over, and asks again, gets the next pass.
        finished = self._next_pass().is_over
        return self._make(make, self._begin(ahead) if finished else None, ahead)

    def __len__(self) -> int:
        """Return the clips of an epoch that this rank gets."""
        if self.length is None:
            raise TypeError(
                f"this {type(self).__name__} is endless and has no len(); give it a length"
            )
        return -(-self.length // self.shard[1])

    def state_dict(self, consumed: SupportsIndex | None = None) -> dict[str, int]:
        """Return where the stream is, to go on from there with :meth:`load_state_dict`.

        Args:
            consumed: Clips that the loop has got so far from this rank's loader (one that keeps
                the order, ``in_order=True``), counted from the start of the loop. Needed where
                workers make the clips: they are ahead of it. None: all that this process itself
                has yielded.

        Returns:
            Whole numbers. In a job of several ranks they are the same for all, and hold for any
            number of ranks, workers and clips a batch; those of a worker (for torchdata's
            ``StatefulDataLoader``) only for the same numbers.

        Raises:
            RuntimeError: If ``consumed`` is missing where workers make the clips.
            TypeError: If ``consumed`` is not a whole number.
            ValueError: If ``consumed`` is more than there is, not in whole batches, or
                ``batch_size`` is not known.

        Examples:
            Loop that can be cut off anywhere::

                for step, batch in enumerate(loader, start=1):
                    train(batch)
                    state = videos.state_dict(consumed=step * videos.batch_size)
        """
        now = self._pass or self._next_pass()
        if consumed is not None:
            return self._after(now, as_int("consumed", consumed, least=0))
        if get_worker_info() is not None:
            return {"seed": self.seed, **now.state()}
        if self._shared[_BY_WORKERS]:
            raise RuntimeError(
                "consumed must be given where workers make the clips: they are ahead of your "
                "loop, and only it knows how many clips it has got. Call "
                "state_dict(consumed=steps * batch_size), or use torchdata's StatefulDataLoader"
            )
        return {"epoch": now.epoch, "seed": self.seed, "start": now.next_of_all}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next pass go on where :meth:`state_dict` was; no clip is made for that.

        Passes after that one have the whole epoch again.

        Args:
            state_dict: What :meth:`state_dict` gave.

        Raises:
            TypeError: If it is no such dict.
            ValueError: If it is that of a data set with another seed, starts behind the end, or
                is a worker's and this is not the same worker of as many.
        """
        state = self._check_state(state_dict)
        if get_worker_info() is None:
            self.set_epoch(state["epoch"])
            self._start_with(state["start"])
        else:
            self._loaded = self._whole().resumed(state)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the pass that is under way: who unpickles has none."""
        return {**self.__dict__, "_pass": None}

    def _make(
        self,
        make: Callable[[Sequence[int]], Iterable[Item]],
        begun: SampleSplit | None,
        ahead: bool,
    ) -> Iterator[Item]:
        # Begun with the first clip: loaders ask for an iterator and then for none of its clips.
        now = begun or self._begin(ahead)
        self._pass = now
        for numbers in now.runs():
            for item in make(numbers):
                now = replace(now, made=now.made + 1)
                self._pass = now
                yield item
                if self.epoch != now.epoch:
                    raise RuntimeError(
                        f"set_epoch({self.epoch}) was called in the middle of a pass over epoch "
                        f"{now.epoch}; call it before the loop, or begin a new one"
                    )

    def _begin(self, ahead: bool) -> SampleSplit:
        """Begin a pass; the one after a state was loaded begins there, later ones do not."""
        now, worker = self._next_pass(), get_worker_info()
        if self._may_claim():
            self._shared[_CLAIM] = get_loader_id(worker)
        self._loads_used = self._shared[_LOADS]
        self._loaded = None
        self._shared[_BEGAN] = now.start
        self._shared[_BY_WORKERS] = int(ahead or worker is not None)
        if worker is not None:
            self.set_epoch(now.epoch)
        return now

    def _next_pass(self) -> SampleSplit:
        """Return the pass that would begin now."""
        if self._loaded is not None:
            return self._loaded
        return replace(self._whole(), start=self._shared[_START] if self._may_claim() else 0)

    def _may_claim(self) -> bool:
        """Say whether the next pass of this process begins where the main process has said."""
        fresh = self._loads_used != self._shared[_LOADS]
        return fresh and self._shared[_CLAIM] in (0, get_loader_id(get_worker_info()))

    def _whole(self) -> SampleSplit:
        """Return the share of this process in the whole epoch that was asked for."""
        worker = get_worker_info()
        rank, ranks = self.shard
        return SampleSplit(
            epoch=self._epoch.asked_for,
            length=self.length,
            batch_size=self.batch_size or 1,
            rank=rank,
            ranks=ranks,
            worker=worker.id if worker else 0,
            workers=worker.num_workers if worker else 1,
        )

    def _start_with(self, number: int) -> None:
        self._pass = None
        self._shared[_START] = self._shared[_BEGAN] = number
        self._shared[_LOADS] += 1
        self._shared[_CLAIM] = self._shared[_BY_WORKERS] = 0

    def _after(self, now: SampleSplit, consumed: int) -> dict[str, int]:
        """Return the state after so many clips of this rank."""
        if self.batch_size is None:
            raise ValueError(
                "consumed needs to know the batches: give the data set the batch_size of the "
                "loader (1 for a loader with batch_size=None). Without it, clips of several "
                "workers come in no order that a number could tell"
            )
        mine = replace(now, start=self._shared[_BEGAN], made=0, worker=0, workers=1)
        if mine.of_rank is not None and consumed > mine.of_rank:
            raise ValueError(
                f"consumed must be at most the {mine.of_rank} clips of the loop, got {consumed}"
            )
        if consumed % self.batch_size and consumed != mine.of_rank:
            raise ValueError(
                f"consumed must be in whole batches of batch_size={self.batch_size}, got "
                f"{consumed}; is that the batch_size of the loader?"
            )
        after = replace(mine, made=consumed)
        return {"epoch": self._epoch.asked_for, "seed": self.seed, "start": after.next_of_all}

    def _check_state(self, state: Mapping[str, Any]) -> dict[str, int]:
        if not isinstance(state, Mapping) or set(state) not in (_PLAIN, _OF_WORKER):
            raise TypeError(f"state_dict must be what state_dict() has given, got {state!r}")
        found = {name: as_int(name, number, 0) for name, number in state.items()}
        if found["seed"] != self.seed:
            raise ValueError(
                f"state_dict must be that of a data set with seed={self.seed}, got seed="
                f"{found['seed']}: the clips that are missing would be others"
            )
        if self.length is not None and found["start"] > self.length:
            raise ValueError(
                f"state_dict must start within length={self.length}, got start={found['start']}"
            )
        if get_worker_info() is None and set(found) == _OF_WORKER:
            raise ValueError(
                "state_dict must not be that of a worker, which only the same worker can resume; "
                "give that of the loader to the loader, or use videos.state_dict(consumed=...)"
            )
        return found
