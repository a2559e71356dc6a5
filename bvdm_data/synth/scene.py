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
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.camera import CameraModel, expose
from bvdm_data.synth.cell_bank import BankSample, CellBank
from bvdm_data.synth.model import Method, Model, randomise_model
from bvdm_data.synth.motion import Trajectory, simulate_colony, simulate_motion
from bvdm_data.synth.render import (
    CellTable,
    Labels,
    composite,
    compute_radial_flow,
    draw_labels,
    make_cell_table,
)
from bvdm_data.synth.textures import (
    DenoiserInputs,
    FastSettings,
    RenderedPatches,
    make_denoiser_inputs,
    run_denoiser_batched,
)
from bvdm_data.system import profile_span

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
    # (not at all) to 1; see bvdm_data.synth.model.randomise_model
    variation: float = 0.0


@dataclass(frozen=True)
class Scene:
    """All of a film but its light."""

    shown: list[Trajectory]  # the nuclei that are seen
    rows: Tensor  # their rows in the tables
    views: list[tuple[int, int]]  # first and last frame in which each is seen
    tables: CellTable  # where all nuclei are
    seen: Tensor  # row of the nucleus that is seen at each pixel, from 1
    masks: Labels  # ids 1 to n, [F, H, W]
    tracks: npt.NDArray[np.int32]  # id, first, last, parent, [n, 4]
    stages: npt.NDArray[np.int8]  # stage of each nucleus in each frame, [n, F]
    # displacement of every pixel, where the method knows it before the light
    flow: npt.NDArray[np.float32] | None
    camera: CameraModel  # of this film
    blur: float  # standard deviation of an extra blur of all light, px
    cast: BankSample | None  # knows their pictures, if they come out of a pool

    @property
    def labels(self) -> Labels:
        """Identity of the nucleus that is seen at each pixel."""
        identities = np.zeros(len(self.tables.rank) + 1, np.int32)
        identities[self.rows.numpy() + 1] = [path.cell.identity for path in self.shown]
        labels: Labels = identities[self.seen.numpy()]
        return labels


def simulate_scene(
    generator: Model,
    scene: SceneSettings,
    method: Method,
    seed: int,
    name: tuple[str | int, ...],
    pool: tuple[CellBank, int, int] | None,
) -> Scene:
    """Draw lives and ways, and the labels that follow from them."""
    draws = numpy_rng(seed, *name, "lives")
    nuclei = scene.nuclei
    if isinstance(nuclei, tuple):
        nuclei = int(draws.integers(nuclei[0], nuclei[1] + 1))
    varied = randomise_model(
        generator.shapes, generator.lives, generator.motion, generator.camera,
        scene.variation, numpy_rng(seed, *name, "variation"),
    )  # fmt: skip
    models = (varied.shapes, varied.lives, varied.motion)
    cast = None
    if pool is not None:
        kept, number, era = pool
        cast = BankSample(
            kept, generator, scene.frames, number, era, draws,
            size=varied.size, brightness=varied.brightness,
        )  # fmt: skip
    families = isinstance(method, FastSettings) and method.families
    own = partial(simulate_colony, grow=cast, contact=varied.contact)
    live = own if families else partial(simulate_motion, jitter=JITTER)
    with profile_span("lives"):
        everyone = live(
            *models, frames=scene.frames, size=scene.size, nuclei=nuclei, generator=draws
        )
    with profile_span("labels"):
        tables = make_cell_table(everyone, scene.frames)
        seen = draw_labels(tables, scene.size)
        visible = find_visible_frames(seen, len(everyone))
    row_of = {path.cell.identity: row for row, path in enumerate(everyone, start=1)}
    parents = {row: row_of.get(path.cell.parent, 0) for row, path in enumerate(everyone, start=1)}
    with profile_span("labels"):
        new_of, tracks, old = number_tracks(visible, parents)
        masks = relabel(seen, new_of)
    rows = np.flatnonzero(visible[1:].any(1))
    ends = [(int(v.argmax()), scene.frames - 1 - int(v[::-1].argmax())) for v in visible[rows + 1]]
    flow = None
    if scene.flow and isinstance(method, FastSettings):
        with profile_span("flow"):
            flow = compute_radial_flow(tables, seen).numpy()
    return Scene(
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


def find_visible_frames(seen: Tensor, count: int) -> npt.NDArray[np.bool_]:
    """Tell which nucleus is seen in which frame.

    By row, from 0 for the background, and frame, ``[count + 1, F]``.
    """
    present = torch.zeros(len(seen), count + 1, dtype=torch.bool, device=seen.device)
    present.scatter_(1, seen.flatten(1).long(), True)
    return present.T.cpu().numpy()


def relabel(seen: Tensor, new_of: npt.NDArray[np.int32]) -> Labels:
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
        life = everyone[row - 1].cell
        stages[identity - 1, first : last + 1] = life.stages[
            first - life.first : last + 1 - life.first
        ]
    return stages


@dataclass(frozen=True)
class SceneRequest:
    """A film of the fast method ahead of its light; can be pickled."""

    size: tuple[int, int]  # height and width of the picture
    tables: CellTable  # where all nuclei are
    # nuclei to be painted, their rows those of the tables; none if there is a cast
    groups: list[DenoiserInputs]
    cast: BankSample | None  # knows their pictures, if they come out of a pool
    # identity, row in the tables, first and last frame in view of each nucleus
    shown: list[tuple[int, int, tuple[int, int]]]
    camera: CameraModel  # of this film
    blur: float  # standard deviation of an extra blur of all light, px
    seed: int  # seed of the data set
    name: tuple[str | int, ...]  # the film's place in the data set

    def detached(self) -> "SceneRequest":
        """Return a copy that can be sent: without the pool, and the networks of its cast."""
        return self  # pickling leaves both out

    def attached(self, pool: CellBank | None, generator: Model) -> "SceneRequest":
        """Undo :meth:`detached`."""
        if self.cast is None or pool is None:
            return self
        cast = copy.copy(self.cast)
        cast.bank, cast.model = pool, generator
        return replace(self, cast=cast)


def make_request(
    generator: Model,
    plan: Scene,
    method: FastSettings,
    size: tuple[int, int],
    seed: int,
    name: tuple[str | int, ...],
) -> SceneRequest:
    """Draw the noise of the nuclei of a plan, and keep of it what its light depends on."""
    groups = []
    if plan.cast is None:
        unpainted = make_denoiser_inputs(
            [path.cell for path in plan.shown], plan.views, generator.painter_for(method),
            *method.drift(generator.texture),
            [torch_rng(seed, *name, "texture", path.cell.identity) for path in plan.shown],
        )  # fmt: skip
        groups = [replace(group, rows=plan.rows[group.rows]) for group in unpainted]
    identities = [path.cell.identity for path in plan.shown]
    shown = list(zip(identities, plan.rows.tolist(), plan.views, strict=True))
    return SceneRequest(
        size, plan.tables, groups, plan.cast, shown, plan.camera, plan.blur, seed, name
    )  # fmt: skip


def render_request(
    sketch: SceneRequest,
    generator: Model,
    method: FastSettings,
    *,
    on_part: Callable[[float], object] | None = None,
) -> npt.NDArray[np.float32]:
    """Paint a film, as it is made on the CPU.

    Grey values that are whole counts of the camera, ``[F, H, W]``.
    """
    pictures = _pictures(sketch, generator, method, on_part)
    with profile_span("scene"):
        light = composite(sketch.tables, pictures, sketch.size).cpu().numpy()
    with profile_span("camera"):
        if sketch.blur:
            light = ndimage.gaussian_filter(light, (0, sketch.blur, sketch.blur))
        draws = numpy_rng(sketch.seed, *sketch.name, "camera")
        return expose(light, sketch.camera, draws, glow=False)


def pickle_requests(sketches: Sequence[SceneRequest]) -> Tensor:
    """Return sketches as bytes: a tensor that a worker hands over whole, uint8."""
    data = pickle.dumps([sketch.detached() for sketch in sketches], pickle.HIGHEST_PROTOCOL)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def unpickle_requests(data: Tensor) -> list[SceneRequest]:
    """Undo :func:`packed`; a cast still lacks its pool."""
    sketches: list[SceneRequest] = pickle.loads(data.numpy().tobytes())
    return sketches


def _pictures(
    sketch: SceneRequest,
    generator: Model,
    method: FastSettings,
    on_part: Callable[[float], object] | None,
) -> list[RenderedPatches]:
    if sketch.cast is None:
        painter = generator.painter_for(method)
        return run_denoiser_batched(sketch.groups, painter, method, on_part=on_part)
    groups = sketch.cast.render(sketch.shown, method)
    if on_part is not None:
        on_part(1.0)
    return groups
