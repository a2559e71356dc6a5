"""Plan: all of a film but its light, that is lives, ways, labels and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bvdm_data.clip import number_tracks
from bvdm_data.randomness import numpy_stream
from bvdm_data.synth.colony import colony
from bvdm_data.synth.fast import FastSettings
from bvdm_data.synth.generator import Generator, Method
from bvdm_data.synth.motion import Trajectory, film
from bvdm_data.synth.parts import part
from bvdm_data.synth.pool import Cast, Pool
from bvdm_data.synth.raster import Tables, displace_radially, label_rows, tabulate
from bvdm_data.synth.scene import CameraModel, Labels
from bvdm_data.synth.variation import vary

JITTER = 0.1
"""Amount of fresh shape noise in each frame (authors' code)."""


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
class Plan:
    """All of a film but its light.

    Attributes:
        shown: The nuclei that are seen.
        rows: Their rows in the tables.
        views: First and last frame in which each is seen.
        tables: Where all nuclei are.
        masks: Ids 1 to n, ``[F, H, W]``.
        tracks: Id, first, last, parent, ``[n, 4]``.
        stages: Stage of each nucleus in each frame, ``[n, F]``.
        flow: Displacement of every pixel, where the method knows it before the light.
        seen: Row of the nucleus that is seen at each pixel, from 1.
        camera: Of this film.
        blur: Standard deviation of an extra blur of all light, px.
        cast: Knows their pictures, if they come out of a pool.
    """

    shown: list[Trajectory]
    rows: Tensor
    views: list[tuple[int, int]]
    tables: Tables
    seen: Tensor
    masks: Labels
    tracks: npt.NDArray[np.int32]
    stages: npt.NDArray[np.int8]
    flow: npt.NDArray[np.float32] | None
    camera: CameraModel
    blur: float
    cast: Cast | None

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
    """Draw lives and ways, and the labels that follow from them.

    Args:
        generator: The fitted models.
        scene: What the film shows.
        method: How nuclei are painted.
        seed: Seed of the data set.
        name: The film's place in the data set.
        pool: As for :func:`bvdm_data.synth.synthesis.synthesise`.

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

    Args:
        seen: Row of the nucleus that is seen at each pixel, from 1, ``[F, H, W]``.
        count: Number of nuclei.

    Returns:
        By row, from 0 for the background, and frame, ``[count + 1, F]``.
    """
    present = torch.zeros(len(seen), count + 1, dtype=torch.bool, device=seen.device)
    present.scatter_(1, seen.flatten(1).long(), True)
    return present.T.cpu().numpy()


def renamed(seen: Tensor, new_of: npt.NDArray[np.int32]) -> Labels:
    """Put ids in the place of rows.

    Args:
        seen: Row of the nucleus that is seen at each pixel, ``[F, H, W]``.
        new_of: Id of each row in each frame, ``[rows, F]``.

    Returns:
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
