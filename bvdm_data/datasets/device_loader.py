"""DeviceLoader: workers plan clips on the CPU, the main process paints them on a GPU."""

import weakref
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, default_convert

from bvdm_data.datasets.ahead import Ahead
from bvdm_data.datasets.arguments import check_device, check_whole_number
from bvdm_data.datasets.lanes import Lane, lane_of
from bvdm_data.datasets.sheets import Collate, OneByOne, Plans, Sheet, SheetPainter, Together
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.datasets.transform import transformed
from bvdm_data.synth.fast import FastSettings

_PASSED_ON = (
    "drop_last", "multiprocessing_context", "persistent_workers", "prefetch_factor", "timeout",
    "worker_init_fn",
)  # fmt: skip
"""Arguments of DataLoader that are passed on."""


class DeviceLoader:
    """Loads batches of clips that a GPU paints, while the loop uses those before.

    Workers draw lives, scenes, annotations and the noise of nuclei on the CPU, and send no
    networks and no CUDA. A thread of the main process paints the nuclei of a whole batch in a few
    calls of the network, adds their light, and exposes it, on a CUDA stream of its own. Which
    process makes which clips, epochs, lengths and places in an epoch are those of the data set:
    ``videos.set_epoch`` between two loops, and :meth:`state_dict`.

    With ``device="cpu"`` batches have the same bytes as those of
    ``DataLoader(videos, batch_size=...)``. On another device, annotations are the same, and
    videos are not: the camera's noise is drawn there. A clip is still a function of its number,
    on one kind of device, with one number of pictures a call, but for the last bits of sums.

    The part for CUDA has never been run on a CUDA device.

    Args:
        videos: Clips of a method that is :class:`FastSettings`. Their transform runs in the loop,
            on the finished clips, where they are.
        batch_size: Clips a batch; None: clips without a batch, one by one. As that of the data
            set, where it knows one.
        num_workers: Processes that plan clips. 0: the thread does it.
        device: Where clips are painted, and where they are: a CUDA device, or ``"cpu"``.
        prefetch: Batches that wait on the device for the loop, 1 or more.
        pictures: Nuclei that go through the network together; None: as many as the memory that is
            free now allows. Not for the CPU.
        **how: ``drop_last``, ``multiprocessing_context``, ``persistent_workers``,
            ``prefetch_factor``, ``timeout`` and ``worker_init_fn`` of :class:`DataLoader`.

    Attributes:
        videos: The data set.
        batch_size: Clips a batch, or None.
        device: Where clips are.

    Raises:
        TypeError: If an argument is of the wrong type, or not known.
        ValueError: If an argument is out of its range, the method is another, or there is no such
            device.

    Examples:
        A training whose clips never were on the CPU::

            videos = SyntheticHeLaVideos(length=1000, batch_size=8)
            with DeviceLoader(videos, batch_size=8, num_workers=4) as loader:
                for epoch in range(10):
                    videos.set_epoch(epoch)
                    for batch in loader:
                        loss = net(batch["video"], batch["masks"])
    """

    def __init__(
        self,
        videos: SyntheticHeLaVideos,
        *,
        batch_size: SupportsIndex | None = 1,
        num_workers: SupportsIndex = 0,
        device: str | torch.device = "cuda",
        prefetch: SupportsIndex = 2,
        pictures: SupportsIndex | None = None,
        **how: Any,
    ) -> None:
        """Check the arguments, and bring the networks to the device."""
        method = _check_videos(videos)
        self.videos = videos
        self.batch_size = _check_batch_size(batch_size, videos)
        self.device = _check_device(device, videos)
        workers = check_whole_number("num_workers", num_workers, least=0)
        self._prefetch = check_whole_number("prefetch", prefetch, least=1)
        at_once = _check_pictures(pictures, self.device)
        unknown = sorted(set(how) - set(_PASSED_ON))
        if unknown:
            raise TypeError(
                f"DeviceLoader takes of DataLoader's arguments only {', '.join(_PASSED_ON)}, got "
                f"{unknown[0]!r}"
            )
        self._plans = Plans(videos)
        self._how = {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "pin_memory": self.device.type == "cuda",
            **how,
        }
        self._painter, together = _painter_of(videos, method, self.device, at_once)
        self._collate = Collate(together)
        self._lane = lane_of(self.device)
        self._loader = self._new_loader()
        self._running: weakref.ref[_Loop] | None = None
        self._progress = _Progress(self._plans.starts)

    def __iter__(self) -> "_Loop":
        """Begin a loop; one that is under way is closed."""
        self._stop()
        self._progress = _Progress(self._plans.starts)
        self._lane.begin()
        # Workers are started here: this thread is the one that hears of their deaths.
        loop = _Loop(
            iter(self._loader), self._painter, self._lane, self._prefetch, self._progress,
            self.videos, self.batch_size,
        )  # fmt: skip
        self._running = weakref.ref(loop)
        return loop

    def __len__(self) -> int:
        """Return the batches of an epoch that this rank gets.

        Raises:
            TypeError: If the stream is endless.
        """
        len(self.videos)
        return len(self._loader)

    def __enter__(self) -> "DeviceLoader":
        """Return the loader."""
        return self

    def __exit__(self, *told: object) -> None:
        """Close the loader."""
        self.close()

    def close(self) -> None:
        """End the loop that is under way, its thread and all workers; a new loop may follow."""
        self._stop()
        self._loader = self._new_loader()

    def state_dict(self, consumed: SupportsIndex | None = None) -> dict[str, int]:
        """Return where the loop is, to go on from there with :meth:`load_state_dict`.

        Args:
            consumed: Clips that count as used; None: all that the loop has got.

        Returns:
            As ``videos.state_dict(consumed=...)``, which any loader can resume from.

        Raises:
            TypeError: If ``consumed`` is not a whole number.
            ValueError: If it is more than there is, not in whole batches, or the data set does
                not know its ``batch_size``.
        """
        if consumed is None:
            # Nothing was got of what was loaded, or of the epoch chosen, since.
            consumed = self._progress.clips if self._progress.starts == self._plans.starts else 0
        return self.videos.state_dict(consumed=consumed)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next loop go on where :meth:`state_dict` was; a loop under way is closed.

        Args:
            state_dict: That of a loader or of its data set.

        Raises:
            TypeError: If it is no such dict.
            ValueError: If it is that of another data set, or of a worker.
        """
        self._stop()
        self.videos.load_state_dict(state_dict)

    def _stop(self) -> None:
        loop = None if self._running is None else self._running()
        self._running = None
        if loop is not None:
            loop.close()

    def _new_loader(self) -> DataLoader[Any]:
        return DataLoader(self._plans, collate_fn=self._collate, **self._how)


class _Progress:
    """How far a loop is.

    Args:
        starts: How often the stream had begun anew before.
    """

    def __init__(self, starts: int) -> None:
        self.starts = starts
        self.clips = 0


class _Loop(Iterator[Any]):
    """One pass over the batches of a loader."""

    def __init__(
        self,
        sheets: Iterator[Sheet],
        painter: SheetPainter,
        lane: Lane,
        prefetch: int,
        progress: _Progress,
        videos: SyntheticHeLaVideos,
        batch_size: int | None,
    ) -> None:
        # What the thread works with does not lead to the loop, which would else never be lost.
        def work(sheet: Sheet) -> tuple[dict[str, Tensor], Any, int]:
            with lane.painting():
                batch = painter(sheet)
                return batch, lane.done(), sheet.epoch

        def held() -> Iterator[Sheet]:
            with lane.held():
                yield from sheets

        self._ahead = Ahead(held(), work, prefetch)
        self._lane = lane
        self._progress = progress
        self._videos = videos
        self._batch_size = batch_size

    def __next__(self) -> Any:
        batch, done, epoch = next(self._ahead)
        self._lane.hand_over(batch, done)
        finished = _finished(batch, self._videos, self._batch_size, epoch)
        self._progress.clips += len(batch["video"])
        return finished

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()


def _finished(
    batch: dict[str, Tensor], videos: SyntheticHeLaVideos, batch_size: int | None, epoch: int
) -> Any:
    """Return what the loop gets: the batch, its clips transformed, or its only clip."""
    if videos.transform is None:
        return batch if batch_size is not None else {key: value[0] for key, value in batch.items()}
    clips = [
        transformed(
            {key: value[place] for key, value in batch.items()},  # type: ignore[arg-type]
            videos.transform,
            name=f"SyntheticHeLaVideos(seed={videos.seed})",
            seed=videos.seed,
            epoch=epoch,
            annotations=videos.annotations,
        )
        for place in range(len(batch["video"]))
    ]
    return default_collate(clips) if batch_size is not None else default_convert(clips[0])  # type: ignore[no-untyped-call]


def _painter_of(
    videos: SyntheticHeLaVideos, method: FastSettings, device: torch.device, pictures: int | None
) -> tuple[SheetPainter, bool]:
    """Return who paints on a device, and whether all films of a batch at once."""
    if device.type == "cpu":
        return OneByOne(videos, method), False
    return Together(videos, method, device, pictures), True


def _check_videos(videos: SyntheticHeLaVideos) -> FastSettings:
    if not isinstance(videos, SyntheticHeLaVideos):
        raise TypeError(
            f"videos must be SyntheticHeLaVideos, got {videos!r}; load other data sets with "
            "torch.utils.data.DataLoader"
        )
    if not isinstance(videos.method, FastSettings):
        raise ValueError(
            f"videos must have the method 'fast', or FastSettings, got {videos.method!r}; load "
            "those of other methods with torch.utils.data.DataLoader"
        )
    return videos.method


def _check_batch_size(batch_size: SupportsIndex | None, videos: SyntheticHeLaVideos) -> int | None:
    found = None if batch_size is None else check_whole_number("batch_size", batch_size, least=1)
    if videos.batch_size not in (None, found or 1):
        raise ValueError(
            f"batch_size must be that of videos, {videos.batch_size}, got {found}; give both the "
            "same"
        )
    return found


def _check_device(device: str | torch.device, videos: SyntheticHeLaVideos) -> torch.device:
    found = check_device(device)
    if found.type not in ("cuda", "cpu"):
        raise ValueError(f"device must be a CUDA device or 'cpu', got {device!r}")
    if videos.device.type != "cpu":
        raise ValueError(
            f"videos must have device='cpu', since workers plan their clips there, got device="
            f"{str(videos.device)!r}; give the device to DeviceLoader alone"
        )
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def _check_pictures(pictures: SupportsIndex | None, device: torch.device) -> int | None:
    if pictures is None:
        return None
    if device.type == "cpu":
        raise ValueError(
            f"pictures must be None with device='cpu', where clips are painted one by one, got "
            f"{pictures!r}"
        )
    return check_whole_number("pictures", pictures, least=1)
