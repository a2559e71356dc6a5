"""SyntheticHeLaVideos: an endless stream of annotated clips."""

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

import torch
from torch.utils.data import get_worker_info
from typing_extensions import TypedDict

from bvdm_data.clip import DEFAULT_MAX_CELLS, CameraScale, Clip, check_annotations
from bvdm_data.datasets.stream import ClipStream
from bvdm_data.datasets.transforms import Transform, apply_transform, list_required_keys
from bvdm_data.synth.cell_bank import CellBank, PoolSettings
from bvdm_data.synth.model import Model
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import Method, SceneSettings
from bvdm_data.synth.synthesis import synthesise, to_clip
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import profile_span
from bvdm_data.validate import (
    as_fraction,
    as_int,
    check_device,
    check_frames,
    check_max_cells,
    check_size,
    check_transform,
    name_clip_in_errors,
)
from bvdm_data.weights import find_model, load

METHODS: Mapping[str, Method] = {
    "fast": FastSettings(),
    "paper": PaperSettings(),
    "procedural": ProceduralSettings(),
}
"""Ways of painting nuclei that have a name."""


def as_method(method: str | Method) -> Method:
    """Return the settings of a method."""
    if isinstance(method, Method):
        return method
    settings = "FastSettings, PaperSettings or ProceduralSettings"
    if not isinstance(method, str):
        raise TypeError(f"method must be a name, {settings}, got {method!r}")
    if method not in METHODS:
        names = ", ".join(repr(name) for name in METHODS)
        raise ValueError(f"method must be one of {names}, or {settings}, got {method!r}")
    return METHODS[method]


def check_variation(variation: float | None, method: Method) -> float:
    """Return how far clips may leave the fitted video."""
    if variation is None:
        return method.default_variation
    return as_fraction("variation", variation)


def check_pool(pool: PoolSettings | bool | None, method: Method) -> PoolSettings | None:
    """Return how nuclei are shared by clips."""
    if pool is None or pool is False:
        return None
    if not isinstance(pool, PoolSettings) and pool is not True:
        raise TypeError(f"pool must be True, None or PoolSettings, got {pool!r}")
    if not method.families:
        raise ValueError(
            "pool must be None unless the method is 'fast' with families, got "
            f"{type(method).__name__}; leave pool out, or give method='fast'"
        )
    return PoolSettings() if pool is True else pool


class _Place(TypedDict):
    """Where a clip is in a data set, as :func:`synthesise` wants to know."""

    seed: int
    name: tuple[str | int, ...]
    pool: tuple[CellBank, int, int] | None


class SyntheticHeLaVideos(ClipStream):
    """Annotated clips of dividing nuclei, synthesised while you train.

    Clip ``i`` of epoch ``e`` is a pure function of the model, the arguments, the seed, ``e`` and
    ``i``: the same for any number of ranks and workers, in any order, and after a resume. No
    global random state is touched. Ranks and workers share the clips out, each is made once; see
    :class:`~bvdm_data.datasets.stream.ClipStream`.

    Every pass over the stream has the same clips unless :meth:`set_epoch` is called.
    :meth:`state_dict` and :meth:`load_state_dict` go on in the middle of an epoch.

    Args:
        frames: Frames of a clip.
        size: Height and width of a clip in pixels, any rectangle; one number makes a square.
        length: Clips an epoch, of all ranks together; None: an endless stream.
        seed: Seed of all clips.
        model: A name that ships with the package, or the path of a file made by
            ``bvdm-data fit``.
        method: How nuclei live and are painted: ``"fast"`` (the library's own: families that
            move as in the video, painted by a network that knows outline, brightness and stage),
            ``"paper"`` (Yilmaz et al. 2024, step by step), ``"procedural"`` (noise and flow from
            formulas, no network, the fastest), or a :class:`FastSettings`,
            :class:`PaperSettings` or :class:`ProceduralSettings` with other numbers.
        nuclei: Nuclei in the first frame; a pair: a random number from low to high; None: the
            density of the fitted video, as far as ``variation`` keeps it.
        variation: How far brightness, size, density, crowding, blur and noise of a clip may leave
            those of the fitted video, from 0 (not at all, for clips that look like it) to 1
            (widely, for networks that must work on other videos, too). None: 1 with ``"fast"``,
            0 with the other methods.
        pool: Paint nuclei once and show them in many clips, for loops that would otherwise wait
            for clips: True, or a :class:`PoolSettings` that says how many are kept and how soon
            they are replaced. None: every clip has nuclei of its own. Only for ``"fast"``.
        annotations: Keys beside ``video``: ``"masks"``, ``"tracks"``, ``"flow"``, ``"stages"``,
            ``"boxes"``, ``"centroids"``; see :class:`Clip`.
        max_cells: Rows of the padded tables; a clip with more nuclei is an error, never cut.
        device: Where the networks run, and where the clips are; other than ``"cpu"`` needs a
            loader with ``num_workers=0``. :class:`DeviceLoader` paints whole batches on a GPU.
        transform: Called on the finished clip, with ``video`` and ``masks`` as tv_tensors.
            Annotations follow where it moves pixels, or a :class:`TransformError` says that they
            cannot. The global random states that it draws from are set for each clip.
        batch_size: The loader's (1 for a loader with ``batch_size=None``), so that its batches
            are the same for any number of workers. None: not known; then each worker makes every
            n-th clip.
        shard: Number of this rank from 0, and of all ranks. None: those of the distributed job;
            see :class:`~bvdm_data.datasets.stream.ClipStream`.

    Attributes:
        frames: Frames of a clip.
        size: Height and width of a clip in pixels.
        length: Clips an epoch, or None.
        seed: Seed of all clips.
        batch_size: The loader's, or None.
        shard: Number of this rank, and of all ranks.
        model: Path of the model's file.
        method: How nuclei are painted.
        nuclei: Nuclei in the first frame.
        variation: How far clips may leave the fitted video.
        pool: How nuclei are shared by clips, or None.
        annotations: Keys of a clip beside ``video``.
        max_cells: Rows of the padded tables.
        device: Where the clips are.
        scale: How grey values and camera counts belong together.
        transform: What is called on the finished clip.
        epoch: Number of the epoch, 0 at first.

    Raises:
        FileNotFoundError: If model is a path and there is no such file.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range, or there is no such model or method.

    Examples:
        Batches of four clips for your own network::

            for batch in DataLoader(SyntheticHeLaVideos(frames=8), batch_size=4, num_workers=2):
                loss = net(batch["video"], batch["masks"])
    """

    def __init__(
        self,
        *,
        frames: int = 8,
        size: int | Sequence[int] = (256, 256),
        length: int | None = None,
        seed: int = 0,
        model: str | Path = "hela",
        method: str | Method = "fast",
        nuclei: int | tuple[int, int] | None = None,
        variation: float | None = None,
        pool: PoolSettings | bool | None = None,
        annotations: Collection[str] = ("masks", "tracks"),
        max_cells: int = DEFAULT_MAX_CELLS,
        device: str | torch.device = "cpu",
        transform: Transform | None = None,
        batch_size: int | None = None,
        shard: Sequence[int] | None = None,
    ) -> None:
        """Check the arguments and load the model."""
        super().__init__(length=length, seed=seed, batch_size=batch_size, shard=shard)
        self.frames = check_frames(frames)
        self.size = check_size(size)
        self.model = find_model(model)
        self.method = as_method(method)
        self.annotations = check_annotations(annotations)
        self.max_cells = check_max_cells(max_cells)
        self.nuclei = check_nuclei(nuclei, self.max_cells)
        self.variation = check_variation(variation, self.method)
        self.pool = check_pool(pool, self.method)
        self._pool = None if self.pool is None else CellBank(self.pool, self.seed)
        self.device = check_device(device)
        self.transform = check_transform(transform)
        generator = load(self.model)
        camera = generator.camera
        self.scale = CameraScale(camera.offset, camera.full)
        check_size_fits_nucleus(self.size, generator)
        self.method.check_fitted(generator)

    def clip(self, index: SupportsIndex) -> Clip:
        """Make one clip.

        Args:
            index: Its number, 0 or more; ``length`` is no limit, it only ends the iteration.

        Returns:
            The clip, as the loader would get it.

        Raises:
            FileNotFoundError: If the model's file has been removed.
            IndexError: If there is no such clip.
            MemoryError: If memory runs out; torch raises a RuntimeError.
            RuntimeError: If a loader's worker is asked for clips on another device than the CPU.
            TooManyNucleiError: If it shows more than ``max_cells`` nuclei.
            TransformError: If the transform fails.
            ValueError: If the nuclei asked for do not fit into the picture, or the model's file
                has been damaged. Whatever fails while the clip is made, the message names the
                clip and the way to make it again alone.
        """
        number = as_int("index", index)
        if number < 0:
            raise IndexError(f"index must be 0 or more, got {number}")
        if self.device.type != "cpu" and get_worker_info() is not None:
            raise RuntimeError(
                f"num_workers must be 0 when device is {str(self.device)!r}: a forked worker "
                "cannot use it. Use device='cpu', or a DeviceLoader, or make the clips ahead with "
                '"bvdm-data export".'
            )
        name = f"SyntheticHeLaVideos(seed={self.seed})"
        with name_clip_in_errors(name, self.epoch, number):
            clip = self._made(number)
        return apply_transform(
            clip,
            self.transform,
            name=name,
            seed=self.seed,
            epoch=self.epoch,
            annotations=self.annotations,
        )

    def _made(self, number: int) -> Clip:
        """Return a clip ahead of its transform."""
        wanted = list_required_keys(self.annotations, self.transform)
        generator = _on_device(self.model, self.device)
        film = synthesise(generator, self._scene(wanted), self.method, **self._place(number))
        with profile_span("annotations"):
            clip = to_clip(film, wanted, self.max_cells, number)
        return _moved(clip, self.device)

    def _scene(self, wanted: Collection[str]) -> SceneSettings:
        return SceneSettings(
            frames=self.frames,
            size=self.size,
            nuclei=self.nuclei,
            flow="flow" in wanted,
            variation=self.variation,
        )

    def _place(self, number: int) -> _Place:
        pool = None if self._pool is None else (self._pool, *self._place_in_pool(number))
        return {"seed": self.seed, "name": ("clip", self.epoch, number), "pool": pool}

    def _place_in_pool(self, number: int) -> tuple[int, int]:
        """Return the number of a clip among those that share a pool, and of their era."""
        if self.length is None or number >= self.length:
            return number, self.epoch
        # The clips of an epoch go on with the nuclei of the one before.
        return self.epoch * self.length + number, 0


@functools.lru_cache(maxsize=4)
def _placed(model: Path, modified: int, device: torch.device) -> Model:
    return load(model).to(device)


def _on_device(model: Path, device: torch.device) -> Model:
    if device.type == "cpu":
        return load(model)
    return _placed(model, model.stat().st_mtime_ns, device)


def _moved(clip: Clip, device: torch.device) -> Clip:
    if device.type == "cpu":
        return clip
    return {key: value.to(device) for key, value in clip.items()}  # type: ignore[return-value, attr-defined]


def check_nuclei(
    nuclei: int | tuple[int, int] | None, max_cells: int | None = None
) -> int | tuple[int, int] | None:
    """Return the wanted number of nuclei in the first frame."""
    if nuclei is None:
        return None
    wanted: int | tuple[int, int]
    if isinstance(nuclei, (tuple, list)):
        if len(nuclei) != 2:
            raise ValueError(f"nuclei must be a number or a pair (low, high), got {nuclei!r}")
        low, high = (as_int("nuclei", n, least=0) for n in nuclei)
        if low > high:
            raise ValueError(f"nuclei must be a pair (low, high) with low <= high, got {nuclei!r}")
        wanted = (low, high)
    else:
        wanted = high = as_int("nuclei", nuclei, least=0)
    if max_cells is not None and high > max_cells:
        raise ValueError(
            f"nuclei must be at most max_cells={max_cells}, got {nuclei!r}; give a larger max_cells"
        )
    return wanted


def check_size_fits_nucleus(size: tuple[int, int], generator: Model) -> None:
    """Refuse a picture that no nucleus fits into."""
    if min(size) < generator.nucleus_diameter:
        raise ValueError(
            f"size must not be smaller than a nucleus of the model "
            f"({generator.nucleus_diameter:.0f} px across), got {size}"
        )
