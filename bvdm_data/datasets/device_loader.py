"""DeviceLoader: workers draw scenes on the CPU, a thread of the main process renders them."""

import copy
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate, default_convert

from bvdm_data.datasets.description import Described
from bvdm_data.datasets.prefetch import DeviceStream, Prefetcher
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.datasets.transforms import list_required_keys
from bvdm_data.synth.render import Labels, map_tensors
from bvdm_data.synth.scene import Scene
from bvdm_data.synth.synthesis import (
    BatchRenderer,
    RenderBatch,
    choose_batch_size,
    collate_scenes,
    collect_annotations,
    compute_scene_flow,
    draw_scene,
)
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import isolate, profile_span
from bvdm_data.validate import as_int, check_device, name_clip_in_errors, name_source_in_errors

# Epoch, clip, and the scene of its video; None if the clip needs no more.
SceneItem = tuple[int, dict[str, Tensor], Scene | None]


@dataclass(frozen=True)
class SceneBatch:
    """A batch of clips and their scenes, where their videos are yet to be rendered."""

    epoch: int
    clips: dict[str, Tensor]
    scenes: RenderBatch | None
    # Lengths of the runs of equal ids in masks of this shape, where clips have the runs' ids only.
    runs: Tensor | None = None
    shape: tuple[int, ...] = ()

    def pin_memory(self) -> "SceneBatch":
        """Return the batch in pinned memory, from where a GPU reads without waiting."""
        return map_tensors(self, Tensor.pin_memory)


class SceneStream(IterableDataset[SceneItem]):
    """Scenes of the clips of a data set; or, with ``render``, the clips themselves.

    Order, epoch, ranks and workers are those of the data set, whose transform is not called.
    """

    def __init__(self, videos: SyntheticHeLaVideos, method: FastSettings, *, render: bool) -> None:
        """Keep the data set, and a copy that makes its clips."""
        self.videos = videos
        self.method = method
        self.render = render
        self.maker = self._copy_videos()
        # A bank belongs to one thread.
        self.maker._pool = videos._make_bank()

    def _copy_videos(self) -> SyntheticHeLaVideos:
        """Return the data set as it is now, without its transform, which may not be sent."""
        copied = copy.copy(self.videos)
        copied.annotations = list_required_keys(copied.annotations, copied.transform)
        copied.transform = None
        return copied

    def __iter__(self) -> Iterator[SceneItem]:
        """Yield the items of this process."""
        return self.videos._iterate_over(partial(map, self.draw), ahead=True)

    def __len__(self) -> int:
        """Return the clips of an epoch that this rank gets."""
        return len(self.videos)

    def __getstate__(self) -> dict[str, Any]:
        """Send the data set at its place and in its epoch of now."""
        copied = self._copy_videos()
        return {**vars(self), "videos": copied, "maker": copied}

    def draw(self, number: int) -> SceneItem:
        """Draw a scene, or make the whole clip."""
        maker, epoch = self.maker, self.videos.epoch
        if self.render:
            return epoch, cast(dict[str, Tensor], maker.clip(number)), None
        with name_clip_in_errors(maker._name, epoch, number), isolate():
            settings = maker._scene(maker.annotations)
            scene = draw_scene(maker._load_model(), settings, self.method, **maker._place(number))
            flow = compute_scene_flow(scene) if settings.flow else None
            with profile_span("annotations"):
                clip = collect_annotations(scene, flow, maker.annotations, maker.max_cells)
        clip["index"] = torch.tensor(number)
        clip["source"] = torch.tensor(1, dtype=torch.int8)
        return epoch, clip, scene if settings.video else None

    @isolate()
    def collate(self, items: Sequence[SceneItem] | SceneItem) -> SceneBatch:
        """Return a batch; of a single item where it is not in a list."""
        epochs, clips, scenes = zip(*([items] if isinstance(items, tuple) else items), strict=True)
        drawn = [scene for scene in scenes if scene is not None]
        batch = collate_scenes(drawn, self.method, self.maker._load_model()) if drawn else None
        if self.render or "masks" not in clips[0]:
            return SceneBatch(epochs[0], default_collate(list(clips)), batch)
        ids, runs = zip(*(_find_runs(clip["masks"].numpy()) for clip in clips), strict=True)
        shape = (len(clips), *clips[0]["masks"].shape)
        # A key keeps its place in the clip.
        rest = default_collate([{**clip, "masks": torch.empty(0)} for clip in clips])
        together = {**rest, "masks": torch.from_numpy(np.concatenate(ids))}
        lengths = torch.from_numpy(np.concatenate(runs))
        return SceneBatch(epochs[0], together, batch, lengths, shape)


def _find_runs(masks: Labels) -> tuple[Labels, Labels]:
    """Return the ids of the runs of equal ids, row by row, and their lengths."""
    flat = masks.ravel()
    starts = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1]
    return flat[starts], np.diff(starts, append=len(flat)).astype(np.int32)


def _render(batch: SceneBatch, renderer: BatchRenderer | None, seed: int) -> dict[str, Tensor]:
    """Return the clips of a batch with their videos, on the device of the renderer."""
    if renderer is None:
        return batch.clips
    # On the CPU still: nothing waits for a device.
    numbers = batch.clips["index"].tolist()
    place = (
        f"It is in the batch of the clips {', '.join(map(str, numbers))} of epoch {batch.epoch} of "
        f"SyntheticHeLaVideos(seed={seed}); to make them one by one: "
        f"videos.set_epoch({batch.epoch}); videos.clip({numbers[0]}), ..."
    )
    with name_source_in_errors(place):
        video = {} if batch.scenes is None else {"video": renderer.render(batch.scenes)}
        rest = {k: v.to(renderer.device, non_blocking=True) for k, v in batch.clips.items()}
        if batch.runs is not None:
            runs = batch.runs.to(renderer.device, non_blocking=True)
            rest["masks"] = (
                rest["masks"]
                .repeat_interleave(runs, output_size=math.prod(batch.shape))
                .view(batch.shape)
            )
    return {**video, **rest}


# Arguments of DataLoader that are passed on.
_PASSED_ON = (
    "drop_last", "multiprocessing_context", "persistent_workers", "prefetch_factor", "timeout",
    "worker_init_fn",
)  # fmt: skip


class DeviceLoader(Described):
    """Loads batches of clips that a GPU renders, while the loop uses those before.

    Workers draw cells, scenes and annotations on the CPU; they send no networks and use no CUDA. A
    thread of the main process draws the noise of nuclei, renders those of a whole batch in a few
    calls of the network, adds up their light, and exposes it, on its own CUDA stream. Which process
    makes which clips, epochs, lengths and positions in an epoch are as in the data set:
    ``videos.set_epoch`` between two loops, and :meth:`state_dict`.

    With ``device="cpu"`` workers make whole clips, and batches have the same bytes as those of
    ``DataLoader(videos, batch_size=...)``. On another device annotations and noise are the same,
    and videos differ as the network rounds there. A clip depends only on its number, up to
    rounding, on one kind of device and with one value of ``pictures``.

    The part for CUDA has never been run on a CUDA device.

    Args:
        videos: Clips of a method that is :class:`FastSettings`. Their transform runs in the loop,
            on the finished clips, where they are.
        batch_size: Clips a batch; None: clips without a batch, one by one. As that of the data
            set, where it knows one.
        num_workers: Processes that plan clips. 0: the thread does it.
        device: Where clips are rendered, and where they are: a CUDA device, or ``"cpu"``.
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
        if pictures is not None and self.device.type == "cpu":
            raise ValueError(
                "pictures must be None with device='cpu', where clips are rendered one by one, got "
                f"{pictures!r}"
            )
        patches = None if pictures is None else as_int("pictures", pictures, least=1)
        unknown = sorted(set(how) - set(_PASSED_ON))
        if unknown:
            raise TypeError(
                f"DeviceLoader takes of DataLoader's arguments only {', '.join(_PASSED_ON)}, got "
                f"{unknown[0]!r}"
            )
        self._how = {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "pin_memory": self.device.type == "cuda",
            **how,
        }
        self._renderer = _make_renderer(videos, method, self.device, patches)
        self._scenes = SceneStream(videos, method, render=self._renderer is None)
        self._stream = DeviceStream(self.device)
        self._loader = self._new_loader()
        self._running: weakref.ref[Prefetcher[Any]] | None = None
        self._received, self._restarts = 0, videos._plan.restarts

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loop that is under way behind."""
        return {**vars(self), "_running": None, "_loader": self._new_loader()}

    def _list_arguments(self) -> dict[str, Any]:
        return {**self._how, **super()._list_arguments(), "prefetch": self._prefetch}

    def __iter__(self) -> Iterator[Any]:
        """Begin a loop; one that is under way is closed."""
        self._stop()
        is_busy = self._renderer is not None or not self._how["num_workers"]
        if is_busy and torch.get_default_dtype() != torch.float32:
            raise RuntimeError(
                "the default dtype must be torch.float32 with a DeviceLoader, since its thread "
                f"makes clips while your loop runs, got {torch.get_default_dtype()}; call "
                "torch.set_default_dtype(torch.float32), or use torch.utils.data.DataLoader"
            )
        self._received, self._restarts = 0, self.videos._plan.restarts
        self._stream.begin()
        # Workers are started here: this thread is the one that hears of their deaths.
        batches = iter(self._loader)
        # The thread must not refer to the loop, which would never be garbage-collected.
        renderer, stream, seed = self._renderer, self._stream, self.videos.seed

        def work(batch: SceneBatch) -> tuple[dict[str, Tensor], Any, int]:
            with stream.enter_stream():
                return _render(batch, renderer, seed), stream.record_event(), batch.epoch

        def iterate() -> Iterator[SceneBatch]:
            with stream.enter_thread():
                yield from batches

        ahead = Prefetcher(iterate(), work, self._prefetch)
        self._running = weakref.ref(ahead)
        # A map keeps no batch while it waits for the next.
        return map(self._receive, ahead)

    def _receive(self, rendered: tuple[dict[str, Tensor], Any, int]) -> Any:
        """Return what the loop gets: the batch, its clips transformed, or its only clip."""
        batch, event, epoch = rendered
        self._stream.wait(batch, event)
        count = len(batch["index"])
        if self.videos.transform is None:
            self._received += count
            return batch if self.batch_size is not None else {k: v[0] for k, v in batch.items()}
        single: Any = ({key: value[i] for key, value in batch.items()} for i in range(count))
        clips = [self.videos._apply_transform(clip, epoch) for clip in single]
        self._received += count
        if self.batch_size is None:
            return default_convert(clips[0])  # type: ignore[no-untyped-call]
        return default_collate(clips)

    def __len__(self) -> int:
        """Return the batches of an epoch that this rank gets."""
        return len(self._loader)

    def __enter__(self) -> "DeviceLoader":
        """Return the loader."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the loader."""
        self.close()

    def close(self) -> None:
        """End the loop that is under way, its thread and all workers; a new loop may follow."""
        self._stop()
        self._loader = self._new_loader()

    def state_dict(self, consumed: SupportsIndex | None = None) -> dict[str, Any]:
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
            consumed = self._received if self._restarts == self.videos._plan.restarts else 0
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
        return DataLoader(self._scenes, collate_fn=self._scenes.collate, **self._how)


def _make_renderer(
    videos: SyntheticHeLaVideos, method: FastSettings, device: torch.device, patches: int | None
) -> BatchRenderer | None:
    """Return the renderer of a device; None for the CPU, where workers make whole clips."""
    if device.type == "cpu":
        return None
    return BatchRenderer(
        videos._load_model(), method, (videos.frames, *videos.size), device,
        batch_size=patches or choose_batch_size(device),
        bank=videos._make_bank(),
    )  # fmt: skip


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
