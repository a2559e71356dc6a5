"""Plan: all of a film but its light, that is lives, ways, labels and what follows from them."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from bvdm_data.clip import number_tracks
from bvdm_data.rng import numpy_stream, stream
from bvdm_data.synth.camera import CameraModel, expose
from bvdm_data.synth.cell_bank import Cast, Pool
from bvdm_data.synth.model import Generator, Method, vary
from bvdm_data.synth.motion import Trajectory, colony, film
from bvdm_data.synth.render import Labels, Tables, add_up, displace_radially, label_rows, tabulate
from bvdm_data.synth.textures import FastSettings, Pictures, Unpainted, paint_prepared, prepare
from bvdm_data.system import part

JITTER = 0.1
"""Amount of fresh shape noise in each frame (authors' code)."""


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """What a film shows."""

    frames: int  # length
    size: tuple[int, int]  # height and width, px
    # nuclei in the first frame; a pair: a random number from low to high; None: the density of the
    # fitted video
    nuclei: int | tuple[int, int] | None = None
    flow: bool = False  # whether the displacement of every pixel is wanted
    # how far brightness, size, density, blur and noise may leave those of the fitted video, from 0
    # (not at all) to 1; see bvdm_data.synth.model.vary
    variation: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All of a film but its light."""

    shown: list[Trajectory]  # the nuclei that are seen
    rows: Tensor  # their rows in the tables
    views: list[tuple[int, int]]  # first and last frame in which each is seen
    tables: Tables  # where all nuclei are
    seen: Tensor  # row of the nucleus that is seen at each pixel, from 1
    masks: Labels  # ids 1 to n, [F, H, W]
    tracks: npt.NDArray[np.int32]  # id, first, last, parent, [n, 4]
    stages: npt.NDArray[np.int8]  # stage of each nucleus in each frame, [n, F]
    # displacement of every pixel, where the method knows it before the light
    flow: npt.NDArray[np.float32] | None
    camera: CameraModel  # of this film
    blur: float  # standard deviation of an extra blur of all light, px
    cast: Cast | None  # knows their pictures, if they come out of a pool

    @property
    def labels(self) -> Labels:
        """Identity of the nucleus that is seen at each pixel."""
        identities = np.zeros(len(self.tables.rank) + 1, np.int32)
        identities[self.rows.numpy() + 1] = [path.life.identity for path in self.shown]
        labels: Labels = identities[self.seen.numpy()]
        return labels


def make_plan(
    generator: Generator,
    scene: SceneSettings,
    method: Method,
    seed: int,
    name: tuple[str | int, ...],
    pool: tuple[Pool, int, int] | None,
) -> Plan:
    """Draw lives and ways, and the labels that follow from them."""
    draws = numpy_stream(seed, *name, "lives")
    nuclei = scene.nuclei
    if isinstance(nuclei, tuple):
        nuclei = int(draws.integers(nuclei[0], nuclei[1] + 1))
    varied = vary(
        generator.shapes, generator.lives, generator.motion, generator.camera,
        scene.variation, numpy_stream(seed, *name, "variation"),
    )  # fmt: skip
    models = (varied.shapes, varied.lives, varied.motion)
    cast = None
    if pool is not None:
        kept, number, era = pool
        cast = Cast(
            kept, generator, scene.frames, number, era, draws,
            size=varied.size, brightness=varied.brightness,
        )  # fmt: skip
    families = isinstance(method, FastSettings) and method.families
    own = partial(colony, grow=cast, contact=varied.contact)
    live = own if families else partial(film, jitter=JITTER)
    with part("lives"):
        everyone = live(
            *models, frames=scene.frames, size=scene.size, nuclei=nuclei, generator=draws
        )
    with part("labels"):
        tables = tabulate(everyone, scene.frames)
        seen = label_rows(tables, scene.size)
        visible = presence(seen, len(everyone))
    row_of = {path.life.identity: row for row, path in enumerate(everyone, start=1)}
    parents = {row: row_of.get(path.life.parent, 0) for row, path in enumerate(everyone, start=1)}
    with part("labels"):
        new_of, tracks, old = number_tracks(visible, parents)
        masks = renamed(seen, new_of)
    rows = np.flatnonzero(visible[1:].any(1))
    ends = [(int(v.argmax()), scene.frames - 1 - int(v[::-1].argmax())) for v in visible[rows + 1]]
    flow = None
    if scene.flow and isinstance(method, FastSettings):
        with part("flow"):
            flow = displace_radially(tables, seen).numpy()
    return Plan(
        shown=[everyone[row] for row in rows],
        rows=torch.from_numpy(rows),
        views=ends,
        tables=tables,
        seen=seen,
        masks=masks,
        tracks=tracks,
        stages=_stages(everyone, tracks, old, scene.frames),
        flow=flow,
        camera=varied.camera,
        blur=varied.blur,
        cast=cast,
    )


def presence(seen: Tensor, count: int) -> npt.NDArray[np.bool_]:
    """Tell which nucleus is seen in which frame.

    By row, from 0 for the background, and frame, ``[count + 1, F]``.
    """
    present = torch.zeros(len(seen), count + 1, dtype=torch.bool, device=seen.device)
    present.scatter_(1, seen.flatten(1).long(), True)
    return present.T.cpu().numpy()


def renamed(seen: Tensor, new_of: npt.NDArray[np.int32]) -> Labels:
    """Put ids in the place of rows.

    Ids, ``[F, H, W]``.
    """
    names = torch.from_numpy(new_of)
    ids = [names[:, frame].index_select(0, flat) for frame, flat in enumerate(seen.flatten(1))]
    masks: Labels = torch.stack(ids).view_as(seen).numpy()
    return masks


def _stages(
    everyone: Sequence[Trajectory],
    table: npt.NDArray[np.int32],
    old: npt.NDArray[np.int64],
    frames: int,
) -> npt.NDArray[np.int8]:
    stages = np.full((len(table), frames), -1, np.int8)
    for (identity, first, last, _), row in zip(table, old, strict=True):
        life = everyone[row - 1].life
        stages[identity - 1, first : last + 1] = life.stages[
            first - life.first : last + 1 - life.first
        ]
    return stages


@dataclass(frozen=True)
class Sketch:
    """A film of the fast method ahead of its light; can be pickled."""

    size: tuple[int, int]  # height and width of the picture
    tables: Tables  # where all nuclei are
    # nuclei to be painted, their rows those of the tables; none if there is a cast
    groups: list[Unpainted]
    cast: Cast | None  # knows their pictures, if they come out of a pool
    # identity, row in the tables, first and last frame in view of each nucleus
    shown: list[tuple[int, int, tuple[int, int]]]
    camera: CameraModel  # of this film
    blur: float  # standard deviation of an extra blur of all light, px
    seed: int  # seed of the data set
    name: tuple[str | int, ...]  # the film's place in the data set

    def detached(self) -> "Sketch":
        """Return a copy that can be sent: without the pool, and the networks of its cast."""
        if self.cast is None:
            return self
        cast = copy.copy(self.cast)
        del cast.pool, cast.generator, cast.draws
        return replace(self, cast=cast)

    def attached(self, pool: Pool | None, generator: Generator) -> "Sketch":
        """Undo :meth:`detached`."""
        if self.cast is None or pool is None:
            return self
        cast = copy.copy(self.cast)
        cast.pool, cast.generator = pool, generator
        return replace(self, cast=cast)


def sketched(
    generator: Generator,
    plan: Plan,
    method: FastSettings,
    size: tuple[int, int],
    seed: int,
    name: tuple[str | int, ...],
) -> Sketch:
    """Draw the noise of the nuclei of a plan, and keep of it what its light depends on."""
    groups = []
    if plan.cast is None:
        unpainted = prepare(
            [path.life for path in plan.shown], plan.views, generator.painter_for(method),
            *method.drift(generator.texture),
            [stream(seed, *name, "texture", path.life.identity) for path in plan.shown],
        )  # fmt: skip
        groups = [replace(group, rows=plan.rows[group.rows]) for group in unpainted]
    identities = [path.life.identity for path in plan.shown]
    shown = list(zip(identities, plan.rows.tolist(), plan.views, strict=True))
    return Sketch(
        size, plan.tables, groups, plan.cast, shown, plan.camera, plan.blur, seed, name
    )  # fmt: skip


def painted(
    sketch: Sketch,
    generator: Generator,
    method: FastSettings,
    *,
    on_part: Callable[[float], object] | None = None,
) -> npt.NDArray[np.float32]:
    """Paint a film, as it is made on the CPU.

    Grey values that are whole counts of the camera, ``[F, H, W]``.
    """
    pictures = _pictures(sketch, generator, method, on_part)
    with part("scene"):
        light = add_up(sketch.tables, pictures, sketch.size).cpu().numpy()
    with part("camera"):
        if sketch.blur:
            light = ndimage.gaussian_filter(light, (0, sketch.blur, sketch.blur))
        draws = numpy_stream(sketch.seed, *sketch.name, "camera")
        return expose(light, sketch.camera, draws, glow=False)


def packed(sketches: Sequence[Sketch]) -> Tensor:
    """Return sketches as bytes: a tensor that a worker hands over whole, uint8."""
    data = pickle.dumps([sketch.detached() for sketch in sketches], pickle.HIGHEST_PROTOCOL)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def unpacked(data: Tensor) -> list[Sketch]:
    """Undo :func:`packed`; a cast still lacks its pool."""
    sketches: list[Sketch] = pickle.loads(data.numpy().tobytes())
    return sketches


def _pictures(
    sketch: Sketch,
    generator: Generator,
    method: FastSettings,
    on_part: Callable[[float], object] | None,
) -> list[Pictures]:
    if sketch.cast is None:
        painter = generator.painter_for(method)
        return paint_prepared(sketch.groups, painter, method, on_part=on_part)
    groups = sketch.cast.pictures(sketch.shown, method)
    if on_part is not None:
        on_part(1.0)
    return groups
