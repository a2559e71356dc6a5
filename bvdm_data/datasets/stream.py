"""ClipStream: clips by number, as a stream that is split over ranks and workers and resumed."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from bvdm_data.clip import Clip
from bvdm_data.datasets.description import Described
from bvdm_data.datasets.sharding import (
    POSITION_KEYS,
    SPLIT_KEYS,
    DistributedContext,
    Plan,
    SampleSplit,
    SharedEpoch,
    SharedInts,
    check_batch_size,
    check_loader,
    check_settings,
    get_loader_id,
    move_to_shared_memory,
)
from bvdm_data.system import keep_freed_memory
from bvdm_data.validate import as_int, check_epoch, check_length, check_seed, name_clip_in_errors

Item = TypeVar("Item")

_STATE_KEYS = {"seed", *POSITION_KEYS}
_WORKER_STATE_KEYS = _STATE_KEYS | {"made", *SPLIT_KEYS}


class ClipStream(Described, IterableDataset[Clip]):
    """Clips 0, 1, 2, ... of an epoch, in the same order for any number of workers.

    A subclass has a method ``clip(index)``, a pure function of its arguments, ``seed``, ``epoch``
    and the index. This class decides which process makes which clips:

    - Rank ``r`` of ``R`` has the clips ``r``, ``r + R``, ``r + 2 R``, ... All ranks have equally
      many; where ``length`` does not divide, the last ones get clips from the start of the epoch,
      as with PyTorch's ``DistributedSampler``. An endless stream never repeats a clip.
    - Worker ``w`` of ``n`` makes every n-th run of ``batch_size`` clips of its rank. A loader with
      that batch size thus has the same batches in the same order for any number of workers; one
      with another is refused.

    :meth:`set_epoch` also reaches workers that are kept (``persistent_workers=True``). Call it
    before a loop over the loader, not in it: workers go on with the epoch that they began with.

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

    All arguments are attributes, too.

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
        self._shared = SharedInts()
        self._epoch = SharedEpoch(self._shared)
        self._pass: SampleSplit | None = None
        self._loaded: SampleSplit | None = None
        self._plan = Plan()
        self._restarts_seen = 0
        self._passes = (0, 0)  # loader of this worker, and how many passes of it have begun
        self._later_epoch: int | None = None

    def clip(self, index: SupportsIndex) -> Clip:
        """Return one clip of the epoch.

        Args:
            index: Its number, 0 or more; ``length`` is no limit, it only ends the iteration.
        """
        raise NotImplementedError

    def __getitem__(self, index: object) -> Clip:
        """Refuse: a stream is iterated over, and :meth:`clip` makes single clips."""
        raise TypeError(
            f"{type(self).__name__} is a stream and has no [index], got [{index!r}]; write "
            f"videos.clip({index if isinstance(index, int) else 0}) for one clip"
        )

    def clips(self, indices: Sequence[int]) -> Iterable[Clip]:
        """Return clips of the epoch in their order; the iteration asks for ``batch_size``."""
        return map(self.clip, indices)

    @property
    def epoch(self) -> int:
        """Number of the epoch, 0 at first."""
        return self._epoch.number

    @property
    def shard(self) -> tuple[int, int]:
        """Number of this rank, and of all ranks."""
        return self._shard.find()

    def set_epoch(self, epoch: SupportsIndex) -> None:
        """Choose the epoch: other clips for every index, from the first one on.

        Choosing the epoch of a loaded state again keeps the loaded position.

        Args:
            epoch: 0 or more.

        Raises:
            TypeError: If epoch is not a whole number.
            ValueError: If epoch is negative.
        """
        number = check_epoch(epoch)
        is_new = number != self.epoch
        self._later_epoch = None
        self._epoch.set(number)
        if is_new and get_worker_info() is None:
            self._restart_at(0)

    def __iter__(self) -> Iterator[Clip]:
        """Yield this process's share of the clips of the epoch."""
        return self._iterate_over(self.clips)

    def _iterate_over(
        self, make: Callable[[Sequence[int]], Iterable[Item]], *, ahead: bool = False
    ) -> Iterator[Item]:
        """Yield items of this process's share; ``ahead``: made before the loop asks for them."""
        self._pass = None
        if get_worker_info() is None:
            self._shared.in_workers = 0
        else:
            keep_freed_memory()
            self._plan = self._find_plan()
        # After a resume at the end of an epoch the first pass is empty, as torchdata's
        # StatefulDataLoader expects; the one after it has the whole epoch. A pass that has clips
        # starts with its first clip: loaders ask for iterators that they then do not use.
        started = self._start_pass(ahead) if self._next_pass().is_over else None
        return self._iterate(make, started, ahead)

    def __len__(self) -> int:
        """Return the clips of an epoch that this rank gets."""
        if self.length is None:
            raise TypeError(
                f"this {type(self).__name__} is endless and has no len(); give it a length"
            )
        return -(-self.length // self.shard[1])

    def state_dict(self, consumed: SupportsIndex | None = None) -> dict[str, Any]:
        """Return the position in the stream, for :meth:`load_state_dict`.

        Args:
            consumed: Clips that the loop has received so far from this rank's loader (one that
                keeps the order, ``in_order=True``), counted from the start of the loop. Needed
                where workers make the clips, because they are ahead of the loop. None: all that
                this process itself has yielded.

        Returns:
            Whole numbers, and ``settings``: texts of what the clips follow from beside them, by
            name. They are the same for all ranks of a job, and valid for any number of ranks,
            workers and clips a batch. The state of a worker (for torchdata's
            ``StatefulDataLoader``) is valid only for the same numbers.

        Raises:
            RuntimeError: If ``consumed`` is missing where workers make the clips.
            TypeError: If ``consumed`` is not a whole number.
            ValueError: If ``consumed`` is more than there is, not in whole batches, or
                ``batch_size`` is not known.

        Examples:
            Loop that can be interrupted anywhere::

                for step, batch in enumerate(loader, start=1):
                    train(batch)
                    state = videos.state_dict(consumed=step * videos.batch_size)
        """
        split = self._pass or self._next_pass()
        if consumed is not None:
            return self._state_after(split, as_int("consumed", consumed, least=0))
        if get_worker_info() is not None:
            return self._sign(split.to_state())
        if self._shared.in_workers:
            raise RuntimeError(
                "consumed must be given where workers make the clips: they are ahead of your "
                "loop, and only the loop knows how many clips it has received. Call "
                "state_dict(consumed=steps * batch_size), or use torchdata's StatefulDataLoader"
            )
        return self._sign({"epoch": split.epoch, "start": split.global_position})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next pass continue from a state; no clip is made for that.

        Passes after that one have the whole epoch again.

        Args:
            state_dict: What :meth:`state_dict` returned; without ``settings``, these are not
                compared.

        Raises:
            TypeError: If it is no such dict.
            ValueError: If it belongs to a data set with another seed or other settings, starts
                behind the end, or belongs to a worker and this is not the same worker of as many.
        """
        state = self._check_state(state_dict)
        if get_worker_info() is None:
            before = self.epoch
            self.set_epoch(state["epoch"])
            self._restart_at(state["start"])
            # torchdata's StatefulDataLoader loads when its loop begins, behind a set_epoch.
            is_later = before > state["epoch"] and self._next_pass().is_over
            self._later_epoch = before if is_later else None
        else:
            self._loaded = self._full_pass().with_state(state)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the current pass: a copy starts without one."""
        return {**self.__dict__, "_pass": None}

    def _iterate(
        self,
        make: Callable[[Sequence[int]], Iterable[Item]],
        started: SampleSplit | None,
        ahead: bool,
    ) -> Iterator[Item]:
        split = started or self._start_pass(ahead)
        self._pass = split
        is_single = check_loader(sys._getframe(), self.batch_size, type(self).__name__)
        name = f"{type(self).__name__}(seed={self.seed})"
        for numbers in split.batches():
            for number, item in zip(numbers, make(numbers), strict=True):
                if is_single and get_worker_info() is not None:
                    with name_clip_in_errors(name, split.epoch, number):
                        move_to_shared_memory(item)
                split = replace(split, made=split.made + 1)
                self._pass = split
                yield item
                if self.epoch != split.epoch:
                    raise RuntimeError(
                        f"set_epoch({self.epoch}) was called in the middle of a pass over epoch "
                        f"{split.epoch}; call it before the loop, or begin a new one"
                    )

    def _start_pass(self, ahead: bool) -> SampleSplit:
        """Start a pass: at the loaded position the first time, later at the start of the epoch."""
        split, worker = self._next_pass(), get_worker_info()
        loader = get_loader_id(worker)
        if self._can_resume():
            # In this order: another worker may look in between.
            self._shared.claimed_by, self._shared.claimed_restart = loader, self._plan.restarts
        self._restarts_seen = self._plan.restarts
        self._loaded = None
        if self._shared.restarts == self._plan.restarts:
            self._shared.pass_start = split.start
            self._shared.in_workers = int(ahead or worker is not None)
        if worker is not None:
            self._passes = loader, self._passes[1] + 1
            self.set_epoch(split.epoch)
        elif self._later_epoch is not None:
            self.set_epoch(self._later_epoch)
        return split

    def _find_plan(self) -> Plan:
        """Return the plan of a pass of a worker: the same for all workers of the loader.

        The first pass has that of the time when the worker was started. Of kept workers, the first
        one that begins a pass decides.
        """
        shared, (loader, number) = self._shared, self._passes
        if loader != get_loader_id(get_worker_info()):
            return self._plan
        if (shared.pass_loader, shared.pass_number) != self._passes:
            shared.set_plan(shared.get_plan(), 9)
            shared.pass_loader, shared.pass_number = loader, number
        return shared.get_plan(9)

    def _next_pass(self) -> SampleSplit:
        """Return the pass that would start now."""
        if self._loaded is not None:
            return self._loaded
        return replace(self._full_pass(), start=self._plan.start * self._can_resume())

    def _can_resume(self) -> bool:
        """Return whether the next pass of this process starts at the loaded position."""
        is_claimed = self._shared.claimed_restart == self._plan.restarts
        is_other = is_claimed and self._shared.claimed_by != get_loader_id(get_worker_info())
        return self._restarts_seen != self._plan.restarts and not is_other

    def _full_pass(self) -> SampleSplit:
        """Return the share of this process in the whole epoch."""
        return SampleSplit.of_process(
            self.shard, epoch=self._plan.epoch, length=self.length, batch_size=self.batch_size or 1
        )

    def _restart_at(self, number: int) -> None:
        self._pass = None
        self._plan = Plan(self._epoch.requested, number, self._plan.restarts + 1)
        self._shared.set_plan(self._plan)
        self._shared.pass_start = number
        self._shared.in_workers = 0

    def _state_after(self, split: SampleSplit, consumed: int) -> dict[str, Any]:
        """Return the state after ``consumed`` clips of this rank."""
        if self.batch_size is None:
            raise ValueError(
                "consumed needs to know the batches: give the data set the batch_size of the "
                "loader (1 for a loader with batch_size=None). Without it, the order in which "
                "clips of several workers arrive is not known"
            )
        start = self._shared.pass_start
        rank = replace(split, start=start, made=0, worker=0, workers=1)
        if rank.len_of_rank is not None and consumed > rank.len_of_rank:
            raise ValueError(
                f"consumed must be at most the {rank.len_of_rank} clips of the loop, got {consumed}"
            )
        if consumed % self.batch_size and consumed != rank.len_of_rank:
            raise ValueError(
                f"consumed must be in whole batches of batch_size={self.batch_size}, got "
                f"{consumed}; is that the batch_size of the loader?"
            )
        position = replace(rank, made=consumed).global_position
        return self._sign({"epoch": self._epoch.requested, "start": position})

    def _list_settings(self) -> dict[str, str]:
        """Return what clips follow from beside seed, epoch and number, by name."""
        return {}

    def _sign(self, position: Mapping[str, int]) -> dict[str, Any]:
        """Return the state at a position."""
        settings = self._list_settings()
        return {"seed": self.seed, **position} | ({"settings": settings} if settings else {})

    def _check_state(self, state: Mapping[str, Any]) -> dict[str, int]:
        names = set(state) - {"settings"} if isinstance(state, Mapping) else {}
        if names not in (_STATE_KEYS, _WORKER_STATE_KEYS):
            raise TypeError(f"state_dict must be what state_dict() has given, got {state!r}")
        checked = {k: as_int(k, number, 0) for k, number in state.items() if k != "settings"}
        if checked["seed"] != self.seed:
            raise ValueError(
                f"state_dict must be from a data set with seed={self.seed}, got seed="
                f"{checked['seed']}: the clips that are missing would be others"
            )
        check_settings(self._list_settings(), state.get("settings", {}))
        if self.length is not None and checked["start"] > self.length:
            raise ValueError(f"start must be within length={self.length}, got {checked['start']}")
        if get_worker_info() is None and set(checked) == _WORKER_STATE_KEYS:
            raise ValueError(
                "state_dict must not be from a worker, since only the same worker can resume it; "
                "give the state of the loader to the loader, or use videos.state_dict(consumed=...)"
            )
        return checked
