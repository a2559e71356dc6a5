"""Lightning: a data module whose trainings go on in the middle of an epoch."""

from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bvdm_data.clip import Clip
from bvdm_data.datasets.sharding import check_batch_size
from bvdm_data.datasets.stream import ClipStream
from bvdm_data.rng import torch_rng as random_stream
from bvdm_data.validate import as_int, check_seed

_MISSING: ImportError | None = None
try:
    from lightning.pytorch import LightningDataModule as _DataModule
except ImportError as _error:
    _MISSING, _DataModule = _error, object  # type: ignore[assignment, misc]

Videos: TypeAlias = Dataset[Clip] | Sequence[Clip]
"""A stream of clips, or a data set of them by number."""

Given: TypeAlias = Videos | Callable[[], Videos]
"""Clips, or a function that makes them in the process that trains."""

OUR_OWN = ("dataset", "sampler", "batch_sampler", "shuffle", "in_order")
"""Arguments of a loader that would change which clips it has, or their order."""


class ClipDataModule(_DataModule):
    """Clips for a Lightning ``Trainer``.

    - Each epoch of the training has clips of its own: their epoch is ``trainer.current_epoch``.
    - Ranks share the clips out by themselves; ``use_distributed_sampler`` does not touch them.
    - A checkpoint from the middle of an epoch goes on with the next clip, and makes none again.
      What it holds is the number of the clip, counted by what the trainer has trained on: an
      endless stream, of which Lightning takes a batch ahead, resumes exactly, and so does any
      number of workers. Behind a ``fit`` that ``max_steps`` has cut, Lightning counts the epoch as
      over; a resume from there has the rest of its clips, and their epoch is then one behind.

    The state is the data module's own. Lightning gives those of stateful loaders back only when
    it makes its loaders by itself; where ``configure_optimizers`` asks for
    ``trainer.estimated_stepping_batches`` it has made them before, and drops the states
    (Lightning#20550: training with torchdata's ``StatefulDataLoader`` then begins the epoch
    again). This module goes on rightly there, too.

    Resume with the same ``batch_size`` and number of ranks: with others the next clip is still
    the right one, but Lightning's count of the batches of that epoch is not. Validation and
    testing have the same clips every time, those of the data set's epoch.

    Args:
        train: :class:`SyntheticHeLaVideos`, :class:`CTCVideos`, :class:`MixedVideos`, or any
            sequence of clips; or a function without arguments that makes one, called once when
            the training begins, in every rank.
        val: The same for validation; a list of data sets: one loader each. None: no validation.
        test: The same for testing.
        batch_size: Clips of a batch, in each rank. None: the ``batch_size`` of ``train`` where it
            has one, else 1. Streams without one take it; in validation and testing, a stream
            keeps its own.
        num_workers: Processes that make clips, for each loader.
        pin_memory: Whether batches lie in memory that is copied to a GPU faster.
        persistent_workers: Whether workers are kept from one epoch to the next.
        shuffle: Whether clips of ``train`` that have no order of their own, those of
            :class:`CTCVideos` or a sequence, come in another order in every epoch.
        seed: Seed of that order.
        **options: More arguments of all loaders, for example ``collate_fn=``.

    Attributes:
        batch_size: Clips of a batch; ``Tuner.scale_batch_size`` changes it.
        videos: The stream of the training, once it has begun; None before.

    Raises:
        ImportError: If Lightning is missing.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range, or cannot be together with another.

    Examples:
        A training that can be cut off and resumed anywhere::

            module = ClipDataModule(SyntheticHeLaVideos(length=10_000), batch_size=4)
            keep = ModelCheckpoint(every_n_train_steps=100, save_last=True)
            Trainer(max_epochs=10, callbacks=[keep]).fit(net, module, ckpt_path="last")
    """

    def __init__(
        self,
        train: Given,
        *,
        val: Given | list[Given] | None = None,
        test: Given | list[Given] | None = None,
        batch_size: SupportsIndex | None = None,
        num_workers: SupportsIndex = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Check the arguments; what functions make is checked when it is made."""
        if _MISSING is not None:
            raise ImportError(
                f"Lightning is missing ({_MISSING}); run pip install 'bvdm-data[lightning]'"
            ) from _MISSING
        super().__init__()
        workers = as_int("num_workers", num_workers, least=0)
        if persistent_workers and not workers:
            raise ValueError(
                "persistent_workers must be False with num_workers=0, got True: there are no "
                "workers to keep; give num_workers=1 or more"
            )
        for name in OUR_OWN:
            if name in options:
                raise TypeError(
                    f"{name} must not be given to the loaders: which clips they have, in which "
                    "order, follows from the data sets and shuffle="
                )
        self.batch_size = check_batch_size(batch_size)
        self._options = {
            "num_workers": workers,
            "pin_memory": pin_memory,
            "persistent_workers": persistent_workers,
            **options,
        }
        self._shuffle, self._seed = bool(shuffle), check_seed(seed)
        self._train = train
        self._others = {"val": _as_list(val), "test": _as_list(test)}
        self.videos: ClipStream | None = None
        self._resume: dict[str, Any] | None = None
        self._batches_before = self._behind = 0
        if _are_clips(train):
            self._open_train()
        for name, given in self._others.items():
            for one in given:
                self._check_other(name, one)

    def setup(self, stage: str | None = None) -> None:
        """Make what was given as functions; Lightning calls this in every rank.

        Args:
            stage: ``"fit"``, ``"validate"`` or ``"test"``; None: all of them.

        Raises:
            TypeError: If a function makes no data set of clips.
            ValueError: If it makes one that does not fit to the arguments.
        """
        if stage in ("fit", None):
            self._behind = 0
            self._open_train()
        for name, stages in (("val", ("fit", "validate", None)), ("test", ("test", None))):
            if stage in stages:
                self._others[name] = [
                    self._check_other(name, one if _are_clips(one) else _make_clips(name, one))
                    for one in self._others[name]
                ]

    def train_dataloader(self) -> DataLoader[Clip]:
        """Return the loader of the training; each pass over it has the trainer's epoch."""
        videos = self._open_train()
        videos.batch_size = check_batch_size(self.batch_size)
        loader = _TrainLoader(videos, batch_size=self.batch_size, **self._options)
        loader.begin = self._begin
        return loader

    def val_dataloader(self) -> list[DataLoader[Clip]]:
        """Return a loader for each data set of the validation."""
        return self._loaders("val")

    def test_dataloader(self) -> list[DataLoader[Clip]]:
        """Return a loader for each data set of the test."""
        return self._loaders("test")

    def state_dict(self) -> dict[str, Any]:
        """Return where the training is; Lightning writes it into its checkpoints.

        Returns:
            ``videos``, the state of the stream, ``batches``, how many of the epoch the trainer
            has done, ``behind``, by how many the epoch of the clips is behind the trainer's, and
            ``over``, whether the trainer counts the epoch as over. The same in all ranks.
        """
        if self.videos is None or self.trainer is None:
            return {}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        done, ended = progress.current.processed, progress.is_last_batch
        # Lightning counts the epoch as over, also where max_steps has cut it.
        over = self.trainer.current_epoch - self._behind > self.videos.epoch
        if ended:
            state = self.videos._sign({"epoch": self.videos.epoch + 1, "start": 0})
            return {"videos": state, "batches": 0, "behind": self._behind, "over": over}
        new = done - self._batches_before
        state = self.videos.state_dict(consumed=new * (self.batch_size or 1))
        return {"videos": state, "batches": done, "behind": self._behind + over, "over": over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the training go on from a state; Lightning calls this when it resumes.

        Args:
            state_dict: What :meth:`state_dict` gave.

        Raises:
            ValueError: If it is that of a data set with another seed, or starts behind the end.
        """
        if state_dict and (self.trainer is None or self.trainer.state.fn == "fit"):
            self._open_train().load_state_dict(state_dict["videos"])
            self._resume = state_dict

    def _begin(self) -> None:
        """Choose the clips of a pass that begins."""
        videos, state, self._resume = self._open_train(), self._resume, None
        trainer: Any = self.trainer
        if state is None:
            self._batches_before = 0
            videos.set_epoch(0 if trainer is None else trainer.current_epoch - self._behind)
            return
        videos.load_state_dict(state["videos"])
        self._batches_before, self._behind = state["batches"], state.get("behind", 0)
        epochs = trainer.fit_loop.epoch_progress.current
        if state.get("over") and not state["batches"] and epochs.completed == epochs.processed:
            # Lightning would count the batches of the epoch before as those of this one.
            trainer.fit_loop.epoch_loop.batch_progress.reset_on_run()

    def _open_train(self) -> ClipStream:
        if self.videos is None:
            made = self._train if _are_clips(self._train) else _make_clips("train", self._train)
            known = getattr(made, "batch_size", None)
            if self.batch_size is None:
                self.batch_size = known or 1
            if known not in (None, self.batch_size):
                raise ValueError(
                    f"batch_size must be that of train, which was made with batch_size={known}, "
                    f"got {self.batch_size}; give the same number, or leave out one of them"
                )
            if not isinstance(made, ClipStream):
                made = _ByNumber(made, self._shuffle, self._seed)
            self.videos = made
        return self.videos

    def _check_other(self, name: str, given: Any) -> Any:
        if given is self._train or given is self.videos:
            raise ValueError(
                f"{name} must be another data set than train, got the same object: its epoch and "
                "place would be those of the training; make a second one, with another seed"
            )
        if not _are_clips(given) and not callable(given):
            raise TypeError(_describe_wrong(name, given))
        return given

    def _loaders(self, name: str) -> list[DataLoader[Clip]]:
        self.setup({"val": "validate"}.get(name, name))
        loaders = []
        for videos in self._others[name]:
            size = getattr(videos, "batch_size", None) or self.batch_size or 1
            if isinstance(videos, ClipStream):
                videos.batch_size = size
            loaders.append(DataLoader(videos, batch_size=size, **self._options))
        return loaders


class _TrainLoader(DataLoader[Clip]):
    """A loader that says when a pass begins."""

    begin: Callable[[], None]

    def __iter__(self) -> Any:
        """Begin a pass."""
        self.begin()
        return super().__iter__()


class _ByNumber(ClipStream):
    """The clips of a data set by number, each once an epoch."""

    def __init__(self, videos: Any, shuffle: bool, seed: int) -> None:
        if not len(videos):
            raise ValueError("train must hold at least one clip, got an empty data set")
        super().__init__(length=len(videos), seed=seed)
        self._videos, self._shuffle = videos, shuffle
        self._order: tuple[int, Tensor] | None = None

    def clip(self, index: SupportsIndex) -> Clip:
        """Return the clip at this place of the epoch's order."""
        place = as_int("index", index)
        if self._shuffle:
            if self._order is None or self._order[0] != self.epoch:
                draws = random_stream(self.seed, "order", self.epoch)
                self._order = (
                    self.epoch,
                    torch.randperm(len(self._videos), generator=draws, device="cpu"),
                )
            place = int(self._order[1][place])
        found: Clip = self._videos[place]
        return found

    def _list_settings(self) -> dict[str, str]:
        settings: dict[str, str] = getattr(self._videos, "_list_settings", dict)()
        return {**settings, "shuffle": str(self._shuffle), "length": str(self.length)}

    def set_epoch(self, epoch: SupportsIndex) -> None:
        """Choose the epoch of the data set, too."""
        super().set_epoch(epoch)
        if hasattr(self._videos, "set_epoch"):
            self._videos.set_epoch(self.epoch)


def _as_list(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list) else [given]


def _are_clips(given: Any) -> bool:
    if isinstance(given, type):
        return False
    if isinstance(given, IterableDataset):
        return isinstance(given, ClipStream)
    return hasattr(given, "__len__") and hasattr(given, "__getitem__")


def _make_clips(name: str, given: Any) -> Any:
    made = given() if callable(given) else given
    if not _are_clips(made):
        raise TypeError(_describe_wrong(name, made))
    return made


def _describe_wrong(name: str, given: object) -> str:
    return (
        f"{name} must be a stream of clips such as SyntheticHeLaVideos, a data set of clips by "
        f"number such as CTCVideos, or a function that makes one, got {given!r}"
    )
