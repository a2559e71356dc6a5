"""Sketch: what the light of a film of the fast method depends on, small enough to be sent."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from bvdm_data.randomness import numpy_stream, stream
from bvdm_data.synth.fast import FastSettings, Pictures, paint_prepared
from bvdm_data.synth.generator import Generator
from bvdm_data.synth.parts import part
from bvdm_data.synth.plan import Plan
from bvdm_data.synth.pool import Cast, Pool
from bvdm_data.synth.raster import Tables, add_up
from bvdm_data.synth.scene import CameraModel, expose
from bvdm_data.synth.unpainted import Unpainted, prepare


@dataclass(frozen=True)
class Sketch:
    """A film of the fast method ahead of its light; can be pickled.

    Attributes:
        size: Height and width of the picture.
        tables: Where all nuclei are.
        groups: Nuclei to be painted, their rows those of the tables; none if there is a cast.
        cast: Knows their pictures, if they come out of a pool.
        shown: Identity, row in the tables, first and last frame in view of each nucleus.
        camera: Of this film.
        blur: Standard deviation of an extra blur of all light, px.
        seed: Seed of the data set.
        name: The film's place in the data set.
    """

    size: tuple[int, int]
    tables: Tables
    groups: list[Unpainted]
    cast: Cast | None
    shown: list[tuple[int, int, tuple[int, int]]]
    camera: CameraModel
    blur: float
    seed: int
    name: tuple[str | int, ...]

    def detached(self) -> "Sketch":
        """Return a copy that can be sent: without the pool, and the networks of its cast."""
        if self.cast is None:
            return self
        cast = copy.copy(self.cast)
        del cast.pool, cast.generator, cast.draws
        return replace(self, cast=cast)

    def attached(self, pool: Pool | None, generator: Generator) -> "Sketch":
        """Undo :meth:`detached`.

        Args:
            pool: One of the same settings and seed.
            generator: The fitted models.
        """
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
    """Draw the noise of the nuclei of a plan, and keep of it what its light depends on.

    Args:
        generator: The fitted models.
        plan: Made by :func:`bvdm_data.synth.plan.make_plan` with the same arguments.
        method: How nuclei are painted.
        size: Height and width of the picture.
        seed: Seed of the data set.
        name: The film's place in the data set.
    """
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

    Args:
        sketch: What is to be painted.
        generator: The fitted models.
        method: How nuclei are painted.
        on_part: Called with the share of the painting that is done.

    Returns:
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
    """Return sketches as bytes: a tensor that a worker hands over whole, uint8.

    Args:
        sketches: To be sent to another process.
    """
    data = pickle.dumps([sketch.detached() for sketch in sketches], pickle.HIGHEST_PROTOCOL)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def unpacked(data: Tensor) -> list[Sketch]:
    """Undo :func:`packed`; a cast still lacks its pool.

    Args:
        data: What it has returned, in this process or in a worker of it.
    """
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
