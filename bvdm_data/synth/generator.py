"""Generator: the fitted models, and the way from them and a seed to an annotated film."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool
from scipy import ndimage
from torch import Tensor, nn

from bvdm_data.clip import Clip, annotated, padded, unbroken_tracks
from bvdm_data.randomness import numpy_stream, stream
from bvdm_data.synth.colony import colony
from bvdm_data.synth.fast import FastSettings, TextureModel, paint_fast
from bvdm_data.synth.flow import FLOW_SIZE, FlowNet
from bvdm_data.synth.lives import LifeModel
from bvdm_data.synth.motion import MotionModel, Trajectory, film
from bvdm_data.synth.painter import Painter
from bvdm_data.synth.procedural import ProceduralSettings, paint_procedurally
from bvdm_data.synth.scene import (
    CameraModel,
    Labels,
    add_up,
    displace,
    expose,
    label,
    lighten,
)
from bvdm_data.synth.shapes import ShapeModel, area, rasterise
from bvdm_data.synth.texture import Painted, PaperSettings, paint
from bvdm_data.synth.unet import UNet
from bvdm_data.synth.variation import vary

Method = FastSettings | PaperSettings | ProceduralSettings
"""Settings of a way of painting nuclei; their type says which."""

NOT_FITTED = (
    "method must be one that the model was fitted for, got 'paper'; fit the model with "
    '"bvdm-data fit --paper", or give method="fast" or method="procedural"'
)
"""Says that a model lacks the networks of the paper's method."""

JITTER = 0.1
"""Amount of fresh shape noise in each frame (authors' code)."""


@dataclass(frozen=True)
class Generator:
    """Everything that is fitted to one video.

    Attributes:
        shapes: Outlines of nuclei.
        lives: Stages, brightness, growth.
        motion: Steps, turns, density.
        camera: Background, blur, noise, scale.
        texture: How long a texture lasts.
        painter: Draws a nucleus from outline, brightness and stage; the method ``"fast"``.
        unet: Predicts the noise in a picture of a nucleus, for the paper's method; None where
            that was not fitted.
        flownet: Predicts the flow between two masks, for the paper's method; or None.
        card: What it was fitted to, how, and how well; JSON values.
    """

    shapes: ShapeModel
    lives: LifeModel
    motion: MotionModel
    camera: CameraModel
    texture: TextureModel
    painter: Painter
    unet: UNet | None = None
    flownet: FlowNet | None = None
    card: Mapping[str, object] = field(default_factory=dict)

    @property
    def nucleus_diameter(self) -> float:
        """Diameter of the mean interphase nucleus, px."""
        return float(2 * np.sqrt(self.nucleus_area / np.pi))

    @property
    def nucleus_area(self) -> float:
        """Area of the mean interphase nucleus, px^2."""
        return float(area(self.shapes.mean[0]))

    def to(self, device: torch.device) -> "Generator":
        """Return a copy whose networks are on a device; the statistics stay on the CPU."""
        # Copied, not made anew: that would draw from the global random state.
        painter = _moved(self.painter, device)
        unet = None if self.unet is None else _moved(self.unet, device)
        flownet = None if self.flownet is None else deepcopy(self.flownet).to(device).eval()
        return replace(self, painter=painter, unet=unet, flownet=flownet)


_Network = TypeVar("_Network", bound=nn.Module)


def _moved(network: _Network, device: torch.device) -> _Network:
    copied = deepcopy(network).to(device).eval()
    copied.to(memory_format=torch.channels_last)
    return copied


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """What a film shows.

    Attributes:
        frames: Length.
        size: Height and width, px.
        nuclei: Nuclei in the first frame; a pair: a random number from low to high; None: the
            density of the fitted video.
        flow: Whether the displacement of every pixel is wanted.
        variation: How far brightness, size, density, blur and noise may leave those of the fitted
            video, from 0 (not at all) to 1; see :func:`bvdm_data.synth.variation.vary`.
    """

    frames: int
    size: tuple[int, int]
    nuclei: int | tuple[int, int] | None = None
    flow: bool = False
    variation: float = 0.0


@dataclass(frozen=True)
class Film:
    """An annotated film of any number of nuclei.

    Attributes:
        video: Grey values that are whole camera counts, ``[F, H, W]`` float32.
        masks: Ids 1 to n, ``[F, H, W]`` int32.
        tracks: Id, first, last, parent, ``[n, 4]`` int32.
        stages: Stage of each nucleus in each frame, -1 where it is not seen, ``[n, F]`` int8.
        flow: Displacement of every pixel, ``[F - 1, 2, H, W]`` float32, if it was wanted.
    """

    video: npt.NDArray[np.float32]
    masks: Labels
    tracks: npt.NDArray[np.int32]
    stages: npt.NDArray[np.int8]
    flow: npt.NDArray[np.float32] | None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch in one thread: sums, and the ends of vectors, are rounded otherwise in another.

    A loader's workers have one thread each; without this, clips made outside them would differ.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def synthesise(
    generator: Generator,
    scene: SceneSettings,
    texture: Method,
    *,
    seed: int,
    name: tuple[str | int, ...],
    on_frame: Callable[[], object] | None = None,
) -> Film:
    """Make one film: lives and paths, labels, textures, light, camera (paper, figure 1 b).

    On the CPU the film is made in one thread, so that it is the same on any number of cores; use
    several workers to use them all.

    Args:
        generator: The fitted models.
        scene: What the film shows.
        texture: How nuclei are painted; its type says which painter does it.
        seed: Seed of the data set.
        name: The film's place in the data set, such as ``("clip", epoch, index)``; seed and name
            decide every random number.
        on_frame: Called after each painted frame, for a progress bar.

    Returns:
        The film.

    Raises:
        ValueError: If the nuclei asked for do not fit.
    """
    draws = numpy_stream(seed, *name, "lives")
    nuclei = scene.nuclei
    if isinstance(nuclei, tuple):
        nuclei = int(draws.integers(nuclei[0], nuclei[1] + 1))
    varied = vary(
        generator.shapes, generator.lives, generator.motion, generator.camera,
        scene.variation, numpy_stream(seed, *name, "variation"),
    )  # fmt: skip
    models = (varied.shapes, varied.lives, varied.motion)
    own = isinstance(texture, FastSettings)
    families = isinstance(texture, FastSettings) and texture.families
    live = colony if families else partial(film, jitter=JITTER)
    everyone = live(*models, frames=scene.frames, size=scene.size, nuclei=nuclei, generator=draws)
    labels = label(everyone, scene.frames, scene.size)
    paths, views = _visible(everyone, labels)
    streams = [stream(seed, *name, "texture", path.life.identity) for path in paths]
    painted = _paint(generator, paths, views, scene, texture, streams, on_frame)
    if isinstance(texture, FastSettings):
        light = add_up(paths, labels, painted.texture)
    else:
        light = lighten(paths, labels, painted.texture.cpu(), texture.mask_level)
    if varied.blur:
        light = ndimage.gaussian_filter(light, (0, varied.blur, varied.blur))
    video = expose(light, varied.camera, numpy_stream(seed, *name, "camera"), glow=not own)
    flow = displace(paths, labels, painted.flow.cpu()) if scene.flow else None
    parents = {path.life.identity: path.life.parent for path in paths}
    visible, table, old = unbroken_tracks(labels, parents)
    return Film(video, visible, table, _stages(paths, table, old, scene.frames), flow)


def _visible(
    everyone: Sequence[Trajectory], labels: Labels
) -> tuple[list[Trajectory], list[tuple[int, int]]]:
    """Choose the nuclei that are seen; tell the frames of their first and last view."""
    views: dict[int, list[int]] = {}
    for frame in range(len(labels)):
        for identity in np.unique(labels[frame]):
            views.setdefault(int(identity), []).append(frame)
    paths = [path for path in everyone if path.life.identity in views]
    return paths, [(views[p.life.identity][0], views[p.life.identity][-1]) for p in paths]


def _paint(
    generator: Generator,
    paths: Sequence[Trajectory],
    views: Sequence[tuple[int, int]],
    scene: SceneSettings,
    texture: Method,
    streams: Sequence[torch.Generator],
    on_frame: Callable[[], object] | None,
) -> Painted:
    lives = [path.life for path in paths]
    if isinstance(texture, FastSettings):
        return paint_fast(
            lives, views, scene.frames, generator.painter, generator.texture, texture, streams,
            keep_flow=scene.flow, on_frame=on_frame,
        )  # fmt: skip
    if isinstance(texture, ProceduralSettings):
        return paint_procedurally(
            lives, scene.frames, texture, streams, keep_flow=scene.flow, on_frame=on_frame
        )
    masks = _patches(paths, views, scene.frames)
    unet, flownet = generator.unet, generator.flownet
    if unet is None or flownet is None:
        raise ValueError(NOT_FITTED)
    return paint(masks, unet, flownet, texture, streams, keep_flow=scene.flow, on_frame=on_frame)


def _patches(
    paths: Sequence[Trajectory], views: Sequence[tuple[int, int]], frames: int
) -> Bool[Tensor, "N F P P"]:
    """Draw the mask films of nuclei, from their first to their last view."""
    masks = torch.zeros(len(paths), frames, FLOW_SIZE, FLOW_SIZE, dtype=torch.bool)
    grid = torch.arange(FLOW_SIZE) - (FLOW_SIZE - 1) / 2
    for row, (path, (first, last)) in enumerate(zip(paths, views, strict=True)):
        life = path.life
        radii = torch.from_numpy(life.radii[first - life.first : last + 1 - life.first]).float()
        shape = (len(radii), FLOW_SIZE, FLOW_SIZE)
        y, x = grid[:, None].expand(shape), grid[None].expand(shape)
        masks[row, first : last + 1] = rasterise(radii, y, x)
    return masks


def _stages(
    paths: Sequence[Trajectory],
    table: npt.NDArray[np.int32],
    old: npt.NDArray[np.int64],
    frames: int,
) -> npt.NDArray[np.int8]:
    lives = {path.life.identity: path.life for path in paths}
    stages = np.full((len(table), frames), -1, np.int8)
    for (identity, first, last, _), former in zip(table, old, strict=True):
        life = lives[int(former)]
        stages[identity - 1, first : last + 1] = life.stages[
            first - life.first : last + 1 - life.first
        ]
    return stages


def to_clip(film: Film, annotations: Sequence[str], max_cells: int, index: int) -> Clip:
    """Turn a film into the fixed-size tensors of a data set's sample.

    Args:
        film: What :func:`synthesise` made.
        annotations: Which keys are wanted beside ``video``.
        max_cells: Rows of the padded tables.
        index: Number of the clip.

    Returns:
        The clip.

    Raises:
        TooManyNucleiError: If the film shows more than max_cells nuclei.
    """
    found = annotated(film.masks, film.tracks, annotations, max_cells)
    if "flow" in annotations and film.flow is not None:
        found["flow"] = torch.from_numpy(film.flow)
    if "stages" in annotations:
        found["stages"] = padded(film.stages, max_cells, -1)
    ordered = {key: found[key] for key in annotations}
    clip: Clip = Clip(
        video=torch.from_numpy(film.video)[:, None],
        **ordered,  # type: ignore[typeddict-item]
        index=torch.tensor(index),
        source=torch.tensor(1, dtype=torch.int8),
    )
    return clip
