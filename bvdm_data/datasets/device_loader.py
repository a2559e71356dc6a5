"""DeviceLoader: workers plan clips on the CPU, the main process paints them on a GPU."""

import atexit
import copy
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, SupportsIndex, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, default_convert

from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.datasets.transforms import apply_transform, list_required_keys
from bvdm_data.synth.cell_bank import CellBank
from bvdm_data.synth.device import RenderBatch, VideoRenderer, choose_batch_size, collate_scenes
from bvdm_data.synth.scene import (
    SceneRequest,
    make_request,
    pickle_requests,
    render_request,
    simulate_scene,
    unpickle_requests,
)
from bvdm_data.synth.synthesis import collect_annotations, run_single_threaded
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import profile_span
from bvdm_data.validate import as_int, check_device, name_clip_in_errors, name_source_in_errors
from bvdm_data.weights import load

SceneItem = tuple[dict[str, Tensor], SceneRequest]
"""A clip without its video, and what that is painted from."""


class SceneStream(SyntheticHeLaVideos):
    """The stream of a data set, with plans in the place of clips.

    Epoch, ranks and workers are those of the data set, and what is loaded into it is loaded here.
    """

    def __init__(self, videos: SyntheticHeLaVideos) -> None:
        """Share everything but the pool, which belongs to one thread."""
        self.__dict__.update(videos.__dict__)
        self._pass = self._loaded = None
        self._videos = videos
        self._wanted = list_required_keys(videos.annotations, videos.transform)
        # It stays in the main process, and may not be one that can be sent.
        self.transform = None
        self._pool = None if self.pool is None else CellBank(self.pool, self.seed)

    def clips(self, indices: Sequence[int]) -> Iterable[SceneItem]:  # type: ignore[override]
        """Return the plans of several clips of the epoch, in their order."""
        return map(self.planned, indices)

    def planned(self, number: int) -> SceneItem:
        """Return the plan of one clip."""
        with (
            name_clip_in_errors(f"SyntheticHeLaVideos(seed={self.seed})", self.epoch, number),
            run_single_threaded(),
        ):
            generator, place, method = load(self.model), self._place(number), self.method
            if not isinstance(method, FastSettings):
                raise TypeError(f"method must be FastSettings, got {method!r}")
            plan = simulate_scene(generator, self._scene(self._wanted), method, **place)
            sketch = make_request(generator, plan, method, self.size, place["seed"], place["name"])
            with profile_span("annotations"):
                clip = collect_annotations(plan, self._wanted, self.max_cells)
        clip["index"] = torch.tensor(number)
        clip["source"] = torch.tensor(1, dtype=torch.int8)
        return clip, sketch

    def __getstate__(self) -> dict[str, Any]:
        """Leave the transform behind."""
        videos = copy.copy(self._videos)
        videos.transform = None
        return {**super().__getstate__(), "_videos": videos}

    @property
    def starts(self) -> int:
        """How often a state was loaded or an epoch begun."""
        return self._shared.restarts

    @property
    def _restarts_seen(self) -> int:
        # Whether this stream or that of the data set has gone on where a state was is all one.
        return self._videos._restarts_seen

    @_restarts_seen.setter
    def _restarts_seen(self, number: int) -> None:
        self._videos._restarts_seen = number

    def _start_pass(self, ahead: bool) -> Any:
        # Ahead of the loop, as workers are.
        return super()._start_pass(ahead=True)


@dataclass(frozen=True)
class SceneBatch:
    """A batch of clips ahead of its light."""

    clips: dict[str, Tensor]  # what is known of them, collated
    epoch: int  # of the clips
    films: RenderBatch | Tensor  # for a device; or, packed, for the CPU

    def pin_memory(self) -> "SceneBatch":
        """Return the batch in pinned memory."""
        clips = {key: value.pin_memory() for key, value in self.clips.items()}
        return replace(self, clips=clips, films=self.films.pin_memory())


@dataclass(frozen=True)
class SceneCollate:
    """Makes a sheet of plans, in the process that has drawn them."""

    together: bool  # whether a device will paint all films at once

    def __call__(self, plans: Sequence[SceneItem] | SceneItem) -> SceneBatch:
        """Return a sheet; of a single plan where it is not in a list."""
        batch: Sequence[SceneItem] = [plans] if isinstance(plans, tuple) else plans
        sketches = [sketch for _, sketch in batch]
        films = collate_scenes(sketches) if self.together else pickle_requests(sketches)
        return SceneBatch(
            default_collate([clip for clip, _ in batch]), int(sketches[0].name[1]), films
        )


class BatchRenderer(Protocol):
    """Paints sheets."""

    def __call__(self, sheet: SceneBatch) -> dict[str, Tensor]:
        """Return the batch, with its videos, where it is painted."""


class CpuRenderer:
    """Paints on the CPU, clip by clip, to the same bytes as :meth:`SyntheticHeLaVideos.clip`."""

    def __init__(self, videos: SyntheticHeLaVideos, method: FastSettings) -> None:
        """Load the model."""
        self.videos = videos
        self.method = method
        self.generator = load(videos.model)
        self.pool = None if videos.pool is None else CellBank(videos.pool, videos.seed)

    def __call__(self, sheet: SceneBatch) -> dict[str, Tensor]:
        """Return the batch, with its videos."""
        if not isinstance(sheet.films, Tensor):
            raise TypeError("sheet must hold packed films")
        name = f"SyntheticHeLaVideos(seed={self.videos.seed})"
        painting = []
        for sketch, number in zip(
            unpickle_requests(sheet.films), sheet.clips["index"], strict=True
        ):
            with name_clip_in_errors(name, sheet.epoch, int(number)), run_single_threaded():
                whole = sketch.attached(self.pool, self.generator)
                painting.append(
                    torch.from_numpy(render_request(whole, self.generator, self.method))
                )
        return {"video": torch.stack(painting)[:, :, None], **sheet.clips}


class DeviceRenderer:
    """Paints on a device, all clips of a batch at once."""

    def __init__(
        self,
        videos: SyntheticHeLaVideos,
        method: FastSettings,
        device: torch.device,
        pictures: int | None,
    ) -> None:
        """Bring the networks to the device."""
        self.videos = videos
        self.device = device
        self.painter = VideoRenderer(
            load(videos.model), method, videos.frames, videos.size, device,
            pictures=pictures or choose_batch_size(device),
            pool=None if videos.pool is None else CellBank(videos.pool, videos.seed),
        )  # fmt: skip

    def __call__(self, sheet: SceneBatch) -> dict[str, Tensor]:
        """Return the batch, with its videos, on the device."""
        if not isinstance(sheet.films, RenderBatch):
            raise TypeError("sheet must hold gathered films")
        with name_source_in_errors(_place(self.videos, sheet)):
            video = self.painter.paint(sheet.films)
            rest = {
                key: value.to(self.device, non_blocking=True) for key, value in sheet.clips.items()
            }
        return {"video": video, **rest}


def _place(videos: SyntheticHeLaVideos, sheet: SceneBatch) -> str:
    # On the CPU still: nothing waits for a device.
    numbers = sheet.clips["index"].tolist()
    return (
        f"It is in the batch of the clips {', '.join(map(str, numbers))} of epoch {sheet.epoch} of "
        f"SyntheticHeLaVideos(seed={videos.seed}); to make them one by one: "
        f"videos.set_epoch({sheet.epoch}); videos.clip({numbers[0]}), ..."
    )


Item = TypeVar("Item")
Made = TypeVar("Made")

_POLL_SECONDS = 0.1
"""Seconds after which the thread, waiting for room, looks whether it is still wanted."""


class Prefetcher(Generic[Made]):
    """Iterator over what a thread makes of the items of another iterator, some items ahead.

    The thread is ended and waited for by :meth:`close`, with the last reference to the iterator,
    and when the interpreter exits; it is in the middle of one item at most. An error in the other
    iterator or in the work is raised by ``next``, after the items ahead of it.
    """

    def __init__(self, source: Iterator[Item], work: Callable[[Item], Made], room: int) -> None:
        """Start the thread."""
        self._over = False
        self._shelf = _Queue(queue.Queue(room))
        # It holds no reference to the iterator, which would else never be lost.
        self._thread = threading.Thread(
            target=_run, args=(self._shelf, source, work), name="bvdm_data ahead", daemon=True
        )
        self._finish = weakref.finalize(self, _end, self._shelf, self._thread)
        # Later than the loader of the items has asked for the same, so this comes first.
        self._shelf.leave = self._finish
        atexit.register(self._finish)
        self._thread.start()

    def __iter__(self) -> "Prefetcher[Made]":
        """Return the iterator."""
        return self

    def __next__(self) -> Made:
        """Return the next result."""
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
class _Queue:
    """What thread and iterator share."""

    results: "queue.Queue[_Result | _End]"
    unwanted: bool = False
    leave: Callable[[], object] | None = None

    def put(self, told: "_Result | _End") -> bool:
        """Wait for room; return whether the result is wanted."""
        while not self.unwanted:
            try:
                self.results.put(told, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False


def _run(shelf: _Queue, source: Iterator[Item], work: Callable[[Item], Made]) -> None:
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


def _end(shelf: _Queue, thread: threading.Thread) -> None:
    # A mere flag: locks could be held by whom the garbage collector has interrupted.
    shelf.unwanted = True
    if threading.current_thread() is not thread:
        thread.join()
    if shelf.leave is not None:
        atexit.unregister(shelf.leave)
        shelf.leave = None


class DeviceStream:
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
        """Let the loop use what was painted."""


class CudaStream(DeviceStream):
    """A stream of its own on a CUDA device; neither the loop nor the thread waits for the other.

    Never run on a CUDA device.
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
        """Let the loop's stream wait for the event, and keep the memory until it is through."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(done)
        for value in batch.values():
            if isinstance(value, Tensor):
                value.record_stream(current)


def make_stream(device: torch.device) -> DeviceStream:
    """Return the lane of a device."""
    return CudaStream(device) if device.type == "cuda" else DeviceStream()


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
        workers = as_int("num_workers", num_workers, least=0)
        self._prefetch = as_int("prefetch", prefetch, least=1)
        at_once = _check_pictures(pictures, self.device)
        unknown = sorted(set(how) - set(_PASSED_ON))
        if unknown:
            raise TypeError(
                f"DeviceLoader takes of DataLoader's arguments only {', '.join(_PASSED_ON)}, got "
                f"{unknown[0]!r}"
            )
        self._plans = SceneStream(videos)
        self._how = {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "pin_memory": self.device.type == "cuda",
            **how,
        }
        self._painter, together = _make_renderer(videos, method, self.device, at_once)
        self._collate = SceneCollate(together)
        self._lane = make_stream(self.device)
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
        """Return the batches of an epoch that this rank gets."""
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
    """How far a loop is."""

    def __init__(self, starts: int) -> None:
        self.starts = starts
        self.clips = 0


class _Loop(Iterator[Any]):
    """One pass over the batches of a loader."""

    def __init__(
        self,
        sheets: Iterator[SceneBatch],
        painter: BatchRenderer,
        lane: DeviceStream,
        prefetch: int,
        progress: _Progress,
        videos: SyntheticHeLaVideos,
        batch_size: int | None,
    ) -> None:
        # What the thread works with does not lead to the loop, which would else never be lost.
        def work(sheet: SceneBatch) -> tuple[dict[str, Tensor], Any, int]:
            with lane.painting():
                batch = painter(sheet)
                return batch, lane.done(), sheet.epoch

        def held() -> Iterator[SceneBatch]:
            with lane.held():
                yield from sheets

        self._ahead = Prefetcher(held(), work, prefetch)
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
        apply_transform(
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


def _make_renderer(
    videos: SyntheticHeLaVideos, method: FastSettings, device: torch.device, pictures: int | None
) -> tuple[BatchRenderer, bool]:
    """Return who paints on a device, and whether all films of a batch at once."""
    if device.type == "cpu":
        return CpuRenderer(videos, method), False
    return DeviceRenderer(videos, method, device, pictures), True


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
    found = None if batch_size is None else as_int("batch_size", batch_size, least=1)
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
    return as_int("pictures", pictures, least=1)
