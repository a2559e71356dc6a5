"""SyntheticHeLaVideos: an endless stream of annotated clips."""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex, cast

import torch
from torch.utils.data import get_worker_info

from bvdm_data.clip import CameraScale, Clip, check_annotations
from bvdm_data.datasets.stream import ClipStream
from bvdm_data.datasets.transforms import (
    Transform,
    apply_transform,
    list_required_keys,
    name_transform,
)
from bvdm_data.outlines import Outline, as_outline
from bvdm_data.synth.cell_bank import CellBank, PoolSettings
from bvdm_data.synth.model import Model
from bvdm_data.synth.paper import PaperSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import Method, SceneSettings, check_scene
from bvdm_data.synth.synthesis import make_clip, synthesise
from bvdm_data.synth.textures import (
    EdgeProfile,
    FastSettings,
    find_outline_distance,
    measure_edge_profile,
)
from bvdm_data.system import isolate, profile_span
from bvdm_data.validate import Rule, as_number, check_device, check_transform, name_clip_in_errors
from bvdm_data.weights import find_model, load, model_digest

# Methods of synthesis, by name.
METHODS: Mapping[str, Method] = {
    "fast": FastSettings(),
    "paper": PaperSettings(),
    "procedural": ProceduralSettings(),
}
OUTLINES = ("even", "video")  # what an outline may mean, where it is no number


def as_method(method: str | Method) -> Method:
    """Return the settings of a method."""
    settings = "FastSettings, PaperSettings or ProceduralSettings"
    if not isinstance(method, (str, Method)):
        raise TypeError(f"method must be a name, {settings}, got {method!r}")
    if isinstance(method, str) and method not in METHODS:
        names = ", ".join(map(repr, METHODS))
        raise ValueError(f"method must be one of {names}, or {settings}, got {method!r}")
    return METHODS[method] if isinstance(method, str) else method


class SyntheticHeLaVideos(ClipStream):
    """Annotated clips of dividing nuclei, synthesised while you train.

    Clip ``i`` of epoch ``e`` is a pure function of the model, the arguments, the seed, ``e`` and
    ``i``: the same for any number of ranks and workers, in any order, and after a resume. No
    global random state is touched. Clips are split over ranks and workers, and each is made once;
    see :class:`~bvdm_data.datasets.stream.ClipStream`.

    Every pass over the stream has the same clips unless :meth:`set_epoch` is called.
    :meth:`state_dict` and :meth:`load_state_dict` resume in the middle of an epoch.

    Args:
        frames: Frames of a clip.
        size: Height and width of a clip in pixels, any rectangle; one number makes a square.
        length: Clips an epoch, of all ranks together; None: an endless stream.
        seed: Seed of all clips.
        model: A name that ships with the package, or the path of a file made by
            ``bvdm-data fit``.
        method: How cells move and how their textures are rendered: ``"fast"`` (this library's:
            families that move as in the video, a network conditioned on outline, brightness and
            stage), ``"paper"`` (Yilmaz et al. 2024, step by step), ``"procedural"`` (noise and
            flow from formulas, no network), or a :class:`FastSettings`, :class:`PaperSettings` or
            :class:`ProceduralSettings` with other numbers.
        nuclei: Nuclei in view in the first frame, in every clip; a pair: a random number from low
            to high; None: the density of the fitted video, varied by ``variation``. At most as
            many as find a place at this size.
        at_least: Nuclei in view in the first frame of every clip, at least: where the density
            gives fewer ids in ``masks[0]``, others are put in and around the image until so many
            are there. 0: some clips may be empty. Not together with ``nuclei``.
        variation: How far a clip may leave the fitted video, from 0 (not at all, for clips that
            look like it) to 1 (widely, for networks that must work on other videos, too); or a
            mapping from names of parts to such numbers: ``"size"``, ``"brightness"``,
            ``"density"``, ``"contact"``, ``"speed"``, ``"blur"``, ``"noise"``, ``"haze"``,
            ``"debris"``. None, and for parts that are not named: 1 with ``"fast"``, 0 with the
            other methods.
        death_rate: Chance that a nucleus in interphase dies in a frame, from 0 (none dies) to 1. In
            its last 1 to 3 hours it shrinks, brightens, rounds off and falls into lumps, with the
            stage ``"apoptosis"``; then its track ends, and bodies without a label fade. None: as in
            the fitted video.
        pool: Cell bank: render nuclei once and show them in many clips, for loops that would
            otherwise wait for clips: True, or a :class:`PoolSettings` with the number of nuclei
            and how soon they are replaced. None: every clip has new nuclei. Only for ``"fast"``.
        outline: What an outline means, by the share of the light of a nucleus' core that its light
            has there. ``"video"``: as annotated in the fitted video, where outlines may lie at a
            larger share the dimmer a nucleus is. ``"even"``: the same for every nucleus, that of
            the video's median nucleus, since all are rendered at its brightness and lit up or down
            afterwards. A number: as ``"even"``, but with outlines moved to that share; labels
            change, pictures do not. A pair, share and slope: what
            :func:`~bvdm_data.outlines.calibrate_outline` measures on your own annotated frames.
            Numbers are for ``"fast"`` only: the other methods light a nucleus inside of its
            outline only, whatever is given.
        annotations: Keys in addition to ``video``: ``"masks"``, ``"tracks"``, ``"flow"``,
            ``"stages"``, ``"boxes"``, ``"centroids"``, or ``"all"``; see :class:`Clip`.
        video: Whether clips have the key ``video``. False: nothing is painted and nothing
            photographed, for networks that need no pictures, such as trackers; all else is the
            same, byte for byte, and several times as fast. Only the ``flow`` of ``"paper"`` and
            ``"procedural"`` needs their textures nevertheless.
        minutes: Time between two frames: that of the fitted video (None) or a multiple of it. The
            nuclei live and move at the interval of the fitted video, and every n-th frame of that
            is shown; a nucleus that lives between two shown frames is not seen.
        drift: How far the microscope's stage carries the field from frame to frame, px, in one
            random direction a clip, in addition to what it did in the fitted video. Nuclei, haze
            and debris come into view as they would there; the background stays.
        jumps: Chance that the stage jumps from one frame to the next, and the longest jump in px;
            directions and lengths are random, even up to the longest.
        max_cells: Rows of the padded tables. None: as many as the clips of these arguments and
            this model can need. Fewer are refused where the densest clips show more; they save
            memory. In the rare clip that would need more rows than there are, no further nucleus
            comes into view, so that tables and pixels agree.
        device: Where the networks run, and where the clips are; other than ``"cpu"`` needs a
            loader with ``num_workers=0``. :class:`DeviceLoader` renders whole batches on a GPU.
        transform: Called on the finished clip, with ``video`` and ``masks`` as tv_tensors. Where
            it moves pixels, annotations follow, or a :class:`TransformError` is raised. The global
            random states that it uses are set for each clip.
        batch_size: The loader's (1 for a loader with ``batch_size=None``), so that its batches
            are the same for any number of workers. None: not known; then each worker makes every
            n-th clip.
        shard: Number of this rank from 0, and of all ranks. None: those of the distributed job;
            see :class:`~bvdm_data.datasets.stream.ClipStream`.

    All arguments are attributes, too, checked and with defaults filled in.

    Attributes:
        model: Path of the model's file.
        digest: SHA-256 of what the clips follow from in it; no other model is taken later.
        scale: Linear scale between grey values and camera counts.
        pixel_size: Side of its pixels, micrometres; None: the model does not know.
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

    _ALWAYS = ("frames", "size", "seed", "model", "method", "variation", "outline")

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
        at_least: int = 0,
        variation: float | Mapping[str, float] | None = None,
        death_rate: float | None = None,
        pool: PoolSettings | bool | None = None,
        outline: str | float | Sequence[float] = "video",
        annotations: Collection[str] = ("masks", "tracks"),
        video: bool = True,
        minutes: float | None = None,
        drift: float = 0.0,
        jumps: Sequence[float] = (0.0, 0.0),
        max_cells: int | None = None,
        device: str | torch.device = "cpu",
        transform: Transform | None = None,
        batch_size: int | None = None,
        shard: Sequence[int] | None = None,
    ) -> None:
        """Check the arguments and load the model."""
        super().__init__(length=length, seed=seed, batch_size=batch_size, shard=shard)
        self.model = find_model(model)
        self.method = as_method(method)
        self.annotations = check_annotations(annotations)
        self.digest = model_digest(self.model)
        generator = self._load_model()
        scene = check_scene(
            generator, self.method, frames=frames, size=size, nuclei=nuclei, at_least=at_least,
            variation=variation, death_rate=death_rate, max_cells=max_cells, minutes=minutes,
            drift=drift, jumps=jumps,
        )  # fmt: skip
        Rule(bool).check("video", video)
        if not (video or self.annotations):
            raise ValueError(
                "annotations must name some with video=False, got (); give ('masks', 'tracks')"
            )
        self.video = video
        self.minutes, self.drift = generator.lives.minutes * scene.step, scene.drift
        self.jumps = scene.jumps
        self.frames, self.size, self.variation = scene.frames, scene.size, scene.variation
        self.nuclei, self.at_least, self.death_rate = scene.nuclei, scene.at_least, scene.death_rate
        self.max_cells = cast(int, scene.max_cells)
        if not (pool is None or isinstance(pool, bool | PoolSettings)):
            raise TypeError(f"pool must be True, None or PoolSettings, got {pool!r}")
        if pool and not self.method.families:
            raise ValueError(
                "pool must be None unless the method is 'fast' with families, got "
                f"{type(self.method).__name__}; leave pool out, or give method='fast'"
            )
        self.pool = PoolSettings() if pool is True else pool or None
        self.outline, look = check_outline(outline, self.method, self.model, self.digest)
        self._settings = replace(scene, **look, video=video)
        self._pool = self._make_bank()
        self.device = check_device(device)
        self.transform = check_transform(transform)
        camera = generator.camera
        self.scale = CameraScale(camera.offset, camera.full)
        self.pixel_size = generator.pixel_size
        self.method.check_fitted(generator)

    @isolate()
    def clip(self, index: SupportsIndex) -> Clip:
        """Make one clip.

        Args:
            index: Its number, 0 or more; ``length`` is no limit, it only ends the iteration.

        Returns:
            The clip, as the loader would get it.

        Raises:
            FileNotFoundError: If the model's file has been removed.
            IndexError: If index is negative.
            MemoryError: If memory runs out; torch raises a RuntimeError.
            RuntimeError: If a loader's worker is asked for clips on another device than the CPU.
            TransformError: If the transform fails.
            ValueError: If the model's file has been damaged or replaced. All messages name the
                clip, and how to make it again alone.
        """
        number = as_number(index)
        if self.device.type != "cpu" and get_worker_info() is not None:
            raise RuntimeError(
                f"num_workers must be 0 when device is {str(self.device)!r}: a forked worker "
                "cannot use it. Use device='cpu', or a DeviceLoader, or make the clips ahead with "
                '"bvdm-data export".'
            )
        with name_clip_in_errors(self._name, self.epoch, number):
            wanted = list_required_keys(self.annotations, self.transform)
            generator = self._load_model()
            if self.device.type != "cpu":
                generator = _load_on(self.device, self.model, self.digest)
            video = synthesise(generator, self._scene(wanted), self.method, **self._place(number))
            with profile_span("annotations"):
                clip: Any = make_clip(video, wanted, self.max_cells, number)
            clip = {key: value.to(self.device) for key, value in clip.items()}
        return self._apply_transform(clip, self.epoch)

    def _list_settings(self) -> dict[str, str]:
        names = "method frames size nuclei at_least variation death_rate pool max_cells".split()  # noqa: SIM905
        names += ["minutes", "drift", "jumps"]
        settings = {"model": self.digest, "transform": name_transform(self.transform)}
        settings |= {name: str(getattr(self, name)) for name in (*names, "outline")}
        # The clips of a pool follow from how many there are before.
        return settings | ({} if self.pool is None else {"length": str(self.length)})

    def _list_arguments(self) -> dict[str, Any]:
        known = (name for name, settings in METHODS.items() if settings == self.method)
        given = super()._list_arguments() | {"method": next(known, self.method)}
        if self._settings.step == 1:  # filled in
            del given["minutes"]
        return given

    def _is_quick(self) -> bool:
        is_slow = self.pool or isinstance(self.method, PaperSettings) or self.device.type != "cpu"
        return not is_slow and super()._is_quick()

    @property
    def _name(self) -> str:
        return f"SyntheticHeLaVideos(seed={self.seed})"

    def _apply_transform(self, clip: Clip, epoch: int) -> Clip:
        how: Any = {"seed": self.seed, "epoch": epoch, "annotations": self.annotations}
        return apply_transform(clip, self.transform, name=self._name, **how)

    def _make_bank(self) -> CellBank | None:
        """Return an empty bank; None without a pool."""
        if self.pool is None:
            return None
        return CellBank(self.pool, self.seed, death_rate=self.death_rate)

    def _load_model(self) -> Model:
        """Return the model that the data set was made with, or raise."""
        return load(self.model, digest=self.digest)

    def _scene(self, wanted: Collection[str]) -> SceneSettings:
        return replace(self._settings, max_cells=self.max_cells, flow="flow" in wanted)

    def _place(self, number: int) -> dict[str, Any]:
        """Return what the random numbers of a clip follow from, as arguments of synthesise."""
        pool = None
        if self._pool is not None and self.length is not None and number < self.length:
            # The clips of an epoch continue with the nuclei of the epoch before.
            pool = (self._pool, self.epoch * self.length + number, 0)
        elif self._pool is not None:
            pool = (self._pool, number, self.epoch)
        return {"seed": self.seed, "name": ("clip", self.epoch, number), "pool": pool}


@functools.lru_cache(maxsize=4)
def _load_on(device: torch.device, model: Path, digest: str) -> Model:
    return load(model, digest=digest).to(device)


def check_outline(
    outline: str | float | Sequence[float], method: Method, model: Path, digest: str
) -> tuple[str | Outline, dict[str, Any]]:
    """Return what outlines mean, and the settings of a scene that make it so."""
    if isinstance(outline, str):
        if outline not in OUTLINES:
            raise ValueError(
                f"outline must be 'even', 'video' or a share of the core's light, got {outline!r}"
            )
        return outline, {"evenness": float(outline == "even")}
    meaning = as_outline(outline)
    if not isinstance(method, FastSettings):
        raise ValueError(
            f"outline must be 'even' or 'video' unless the method is 'fast', got {outline!r}: "
            f"{type(method).__name__} lights a nucleus inside of its outline only"
        )
    profile = _measure_profile(model, digest, method.steps)
    moved, evenness = find_outline_distance(profile, meaning.share), 1.0
    if profile.slope < 0:
        evenness = round(min(max(1 - meaning.slope / profile.slope, 0.0), 1.0), 2)
    return meaning, {"evenness": evenness, "moved": moved}


@functools.lru_cache(maxsize=16)
def _measure_profile(model: Path, digest: str, steps: int) -> EdgeProfile:
    return measure_edge_profile(load(model, digest=digest), steps)
