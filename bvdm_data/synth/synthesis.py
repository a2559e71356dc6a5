"""Synthesis: from the fitted model and a seed to an annotated video; in batches on a device."""

import math
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bvdm_data.clip import Clip, annotate_masks, number_tracks, pad_rows
from bvdm_data.rng import numpy_rng
from bvdm_data.synth.camera import (
    expose,
    make_gaussian_kernels,
    make_normal,
)
from bvdm_data.synth.cell_bank import BankSample, CellBank
from bvdm_data.synth.denoiser import SDF_CLIP
from bvdm_data.synth.model import Model, Variation, randomise_model
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.render import (
    CellTable,
    Labels,
    PatchPlacement,
    RenderedPatches,
    composite,
    compute_flow,
    draw_labels,
    follow_textures,
    join_by_size,
    make_cell_table,
    map_tensors,
    place_patches,
)
from bvdm_data.synth.scene import (
    Method,
    Progress,
    Scene,
    SceneSettings,
    Textures,
    draw_stage_path,
    skip_progress,
)
from bvdm_data.synth.stray_light import add_spots, draw_bodies, draw_spots
from bvdm_data.synth.textures import (
    BATCH,
    DenoiserInputs,
    FastSettings,
    TextureNoise,
    join_noise,
    run_denoiser_batched,
)
from bvdm_data.system import isolate, profile_span

MAX_BATCH, MIN_BATCH = 256, 16
"""Most and fewest patches that go through the network together on a GPU (our choice)."""

PATCH_BYTES = 8 * 2**20
"""Memory that is set aside for a patch in the network, in bytes (our choice, some times what one
takes on a CPU)."""

MEMORY_FRACTION = 4
"""The network gets the free memory divided by this (our choice)."""


@dataclass(frozen=True)
class AnnotatedVideo:
    """An annotated video of any number of nuclei."""

    # grey values that are whole camera counts, [F, H, W]; without frames if it was not wanted
    video: npt.NDArray[np.float32]
    masks: Labels  # ids 1 to n, [F, H, W]
    tracks: npt.NDArray[np.int32]  # id, first, last, parent, [n, 4]
    stages: npt.NDArray[np.int8]  # stage in each frame, -1 where a nucleus is not seen, [n, F]
    flow: npt.NDArray[np.float32] | None  # displacement of every pixel, [F - 1, 2, H, W]


@isolate()
def synthesise(
    model: Model,
    settings: SceneSettings,
    method: Method,
    *,
    seed: int,
    name: tuple[str | int, ...],
    pool: tuple[CellBank, int, int] | None = None,
    progress: Progress = skip_progress,
) -> AnnotatedVideo:
    """Synthesise a video from outlines, trajectories and textures (paper, figure 1 b).

    It takes one thread on the CPU, so that the number of cores changes nothing; use several workers
    to use them all.
    """
    scene = draw_scene(model, settings, method, seed, name, pool)
    textures, video = Textures([]), np.zeros((0, *settings.size), np.float32)
    # Where light ends at the labels, textures are moved by a flow of their own.
    if settings.video or (settings.flow and method.masked):
        textures = method.render_textures(scene, model, progress)
    if settings.video:
        light = _composite_scene(scene, textures.patches, masked=method.masked)
        video = _expose_scene(scene, light, glow=method.masked)
    flow = compute_scene_flow(scene, textures.flow) if settings.flow else None
    progress(1.0)
    return AnnotatedVideo(video, scene.masks, scene.tracks, scene.stages, flow)


def draw_scene(
    model: Model,
    settings: SceneSettings,
    method: Method,
    seed: int,
    name: tuple[str | int, ...],
    pool: tuple[CellBank, int, int] | None,
) -> Scene:
    """Draw cells and their trajectories, and derive labels and annotations."""
    rng, step, nuclei = numpy_rng(seed, *name, "lives"), settings.step, settings.nuclei
    frames, lived = settings.frames, settings.lived
    path = draw_stage_path(settings, numpy_rng(seed, *name, "stage"))
    if isinstance(nuclei, tuple):
        nuclei = int(rng.integers(nuclei[0], nuclei[1] + 1))
    amounts = Variation.make(settings.variation)
    models = randomise_model(model, amounts, numpy_rng(seed, *name, "variation"))
    models = replace(models, lives=models.lives.with_death_rate(settings.death_rate))
    sample = None
    if pool is not None:
        bank, number, era = pool
        sample = BankSample(
            bank, model, lived, number, era, rng, size=models.size, tone=models.tone,
            evenness=settings.evenness, step=step,
        )  # fmt: skip
    with profile_span("lives"):
        travel = np.stack([path.max(0), -path.min(0)])
        everyone = method.simulate(models, settings, nuclei, rng, sample, travel)
    with profile_span("labels"):
        while True:
            shown = [_show(cell, step, path) for cell in everyone]
            table = make_cell_table(shown, frames)
            seen, seen_in = draw_labels(table, settings.size)
            # Row 0 is the background, which has no track.
            visible = np.pad(seen_in.numpy(), ((1, 0), (0, 0)))
            row_of = {cell.cell.identity: row for row, cell in enumerate(everyone, start=1)}
            parents = {row_of[c.cell.identity]: row_of.get(c.cell.parent, 0) for c in everyone}
            new_of, tracks, old = number_tracks(visible, parents)
            if settings.max_cells is None or len(tracks) <= settings.max_cells:
                break
            late = step * tracks[settings.max_cells :, 1]
            everyone = _keep_out(everyone, zip(old[settings.max_cells :], late, strict=True))
        moved = model.shapes.label_shift if settings.moved is None else settings.moved
        if moved:
            seen = _move_outlines(table, seen, seen_in, moved, settings.size)
        masks = _relabel(seen, new_of)
    rows = np.flatnonzero(visible[1:].any(1))
    spots = torch.zeros(frames, 0, 5)
    if settings.video:
        stray, dead = (numpy_rng(seed, *name, part) for part in ("stray light", "bodies"))
        path = path.repeat(step, 0)[:lived]
        spots = draw_spots(models, amounts, lived, settings.size, stray, path)
        bodies = draw_bodies(everyone, models.tone, lived, model.lives.minutes, dead)
        bodies[..., :2] += torch.from_numpy(path)[:, None]
        spots = torch.cat([spots, bodies], 1)[::step]
    return Scene(
        settings=settings, seed=seed, name=name,
        cells=[shown[row] for row in rows],
        rows=torch.from_numpy(rows),
        spans=[(int(v.argmax()), frames - 1 - int(v[::-1].argmax())) for v in visible[rows + 1]],
        table=table, seen=seen, masks=masks, tracks=tracks,
        stages=_tabulate_stages([shown[row - 1] for row in old], tracks, frames),
        camera=models.camera, tone=models.tone, blur=models.blur, spots=spots, sample=sample,
    )  # fmt: skip


def _show(cell: Trajectory, step: int, path: npt.NDArray[np.float64]) -> Trajectory:
    """Return what every ``step``-th frame shows of a cell, where the stage has carried it."""
    if step == 1 and not path.any():
        return cell
    life, part = cell.cell.thin(step), slice(-cell.cell.first % step, None, step)
    centres = cell.centres[part] + path[life.first :][: len(life.stages)]
    return Trajectory(life, centres, cell.angles[part])


def _move_outlines(
    table: CellTable, seen: Tensor, seen_in: Tensor, distance: float, size: tuple[int, int]
) -> Tensor:
    """Draw labels whose outlines are moved; the same cells are seen in the same frames."""
    outlines = table.radii.values
    outlines = torch.maximum(outlines + distance, outlines / 2)
    radii = replace(table.radii, values=outlines)
    moved, still = draw_labels(replace(table, there=seen_in, radii=radii), size)
    for row, frame in (seen_in & ~still).nonzero().tolist():
        moved[frame][seen[frame] == row + 1] = row + 1
    return moved


def _keep_out(cells: Sequence[Trajectory], late: Iterable[tuple[int, int]]) -> list[Trajectory]:
    """Take away the cells of some rows, from 1, from some frames on."""
    ends = dict(reversed([*late]))  # the earliest of each row
    kept = []
    for row, cell in enumerate(cells, start=1):
        life, count = cell.cell, ends.get(row, math.inf) - cell.cell.first
        if count < len(life.stages):
            part = slice(int(count))
            life = replace(
                life, radii=life.radii[part], stages=life.stages[part],
                brightness=life.brightness[part], divides=False,
            )  # fmt: skip
            cell = replace(cell, cell=life, centres=cell.centres[part], angles=cell.angles[part])
        if count > 0:
            kept.append(cell)
    return kept


def _relabel(seen: Tensor, new_of: npt.NDArray[np.int32]) -> Labels:
    """Replace rows by ids, ``[F, H, W]``."""
    ids_of = torch.from_numpy(new_of)
    masks = torch.empty_like(seen)
    for frame, flat in enumerate(seen.flatten(1)):
        masks[frame] = ids_of[:, frame].index_select(0, flat).view_as(masks[frame])
    return np.asarray(masks.numpy())


def _tabulate_stages(
    cells: Sequence[Trajectory], tracks: npt.NDArray[np.int32], frames: int
) -> npt.NDArray[np.int8]:
    stages = np.full((len(tracks), frames), -1, np.int8)
    for cell, (identity, first, last, _) in zip(cells, tracks, strict=True):
        start = cell.cell.first
        stages[identity - 1, first : last + 1] = cell.cell.stages[first - start : last + 1 - start]
    return stages


def _composite_scene(
    scene: Scene, patches: Sequence[RenderedPatches], *, masked: bool
) -> Float[Tensor, "F H W"]:
    """Put the cells in their places; ``masked``: light ends at the labels."""
    size, mask, halo = scene.settings.size, None, SDF_CLIP
    if masked:
        mask, halo = (scene.table, scene.seen), -1.0
    with profile_span("scene"):
        groups = [(g.light, place_patches([(0, scene.table, g)], size, halo)) for g in patches]
        return composite(groups, (scene.settings.frames, *size), mask=mask)


def _expose_scene(
    scene: Scene, light: Float[Tensor, "F H W"], *, glow: bool
) -> npt.NDArray[np.float32]:
    """Add the stray light to that of the cells and photograph both, in place."""
    normal = make_normal(torch.tensor([scene.make_camera_seed()]))
    noise = torch.tensor([scene.camera.noise])
    blur = make_gaussian_kernels([scene.blur])
    with profile_span("camera"):
        add_spots(light, scene.spots)
        expose(light[None], scene.camera, normal, noise=noise, blur=blur, glow=glow)
    return np.asarray(light.numpy())


def compute_scene_flow(
    scene: Scene, textures: Float[Tensor, "N E 2 P P"] | None = None
) -> npt.NDArray[np.float32]:
    """Compute the displacement of every pixel, from the flow of the textures if there is one."""
    with profile_span("flow"):
        deform = None if textures is None else follow_textures(scene.rows, textures.cpu())
        return np.asarray(compute_flow(scene.table, scene.seen, deform).numpy())


def make_clip(
    video: AnnotatedVideo, annotations: Sequence[str], max_cells: int, index: int
) -> Clip:
    """Turn a video into the fixed-size tensors of a data set's sample."""
    clip = {"video": torch.from_numpy(video.video)[:, None]} if len(video.video) else {}
    clip |= collect_annotations(video, video.flow, annotations, max_cells)
    clip |= {"index": torch.tensor(index), "source": torch.tensor(1, dtype=torch.int8)}
    return cast(Clip, clip)


def collect_annotations(
    source: AnnotatedVideo | Scene,
    flow: npt.NDArray[np.float32] | None,
    annotations: Sequence[str],
    max_cells: int,
) -> dict[str, Tensor]:
    """Return annotations, in the order in which they are named."""
    values = annotate_masks(source.masks, source.tracks, annotations, max_cells)
    if flow is not None:
        values["flow"] = torch.from_numpy(flow)
    if "stages" in annotations:
        values["stages"] = pad_rows(source.stages, max_cells, -1)
    return {key: values[key] for key in annotations}


@dataclass(frozen=True)
class RenderBatch:
    """Scenes that are rendered together, without what rendering does not need."""

    seeds: Int[Tensor, " B"]  # of the camera, for each
    noise: Float[Tensor, " B"]  # standard deviation of the camera's noise, grey values
    blur: Float[Tensor, "B T"] | None  # kernels of extra blurs
    spots: list[Float[Tensor, "F K 5"]]  # stray light of each
    textures: TextureNoise | None  # of all cells; None: a bank has their patches
    groups: list[tuple[DenoiserInputs, PatchPlacement]]  # of all cells, by size of patches
    samples: Tensor  # pickled tables and cells for the bank of the rendering process


def collate_scenes(scenes: Sequence[Scene], method: FastSettings, model: Model) -> RenderBatch:
    """Gather what rendering needs."""
    batch = RenderBatch(
        seeds=torch.tensor([scene.make_camera_seed() for scene in scenes]),
        noise=torch.tensor([scene.camera.noise for scene in scenes], dtype=torch.float32),
        blur=make_gaussian_kernels([scene.blur for scene in scenes]),
        spots=[scene.spots for scene in scenes],
        textures=None,
        groups=[],
        samples=torch.empty(0),
    )
    if any(scene.sample is not None for scene in scenes):
        sent = [(scene.table, scene.sample, scene.list_bank_cells()) for scene in scenes]
        data = pickle.dumps(sent, pickle.HIGHEST_PROTOCOL)
        return replace(batch, samples=torch.frombuffer(bytearray(data), dtype=torch.uint8))
    drawn = [method.make_inputs(scene, model) for scene in scenes]
    textures, places = join_noise([noise for noise, _ in drawn])
    parts = [
        (number, scene.table, replace(group, places=place[group.places]))
        for number, (scene, place, (_, groups)) in enumerate(
            zip(scenes, places, drawn, strict=True)
        )
        for group in groups
    ]
    return replace(batch, textures=textures, groups=join_by_size(parts, scenes[0].settings.size))


def choose_batch_size(device: torch.device) -> int:
    """Return how many patches go through the network together."""
    if device.type != "cuda":
        return BATCH
    free, _ = torch.cuda.mem_get_info(device)
    room = max(1, free // (MEMORY_FRACTION * PATCH_BYTES))
    return max(MIN_BATCH, min(MAX_BATCH, 1 << (room.bit_length() - 1)))


class BatchRenderer:
    """Renders batches on a device.

    Every call of the network has equally many patches, the last one filled up, so that a patch
    does not depend on the others.
    """

    def __init__(
        self,
        model: Model,
        method: FastSettings,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        batch_size: int,
        bank: CellBank | None = None,
    ) -> None:
        """Bring the networks to the device; ``shape`` is that of a video."""
        self.model = model.to(device)
        self.method = method
        self.shape = shape
        self.device = device
        self.batch_size = batch_size
        self.bank = bank

    @isolate()
    @torch.no_grad()
    def render(self, batch: RenderBatch) -> Float[Tensor, "B F 1 H W"]:
        """Render the videos of a batch."""
        frames, height, width = self.shape
        count = len(batch.seeds)
        if batch.textures is None:
            groups = self._ask_bank(batch.samples)
        else:
            groups = self._run_network(batch, batch.textures)
        light = composite(groups, (count * frames, height, width), device=self.device)
        light = light.view(count, *self.shape)
        for one, spots in zip(light, batch.spots, strict=True):
            add_spots(one, self._move(spots))
        noise = self._move(batch.noise)
        blur = None if batch.blur is None else self._move(batch.blur)
        normal = make_normal(self._move(batch.seeds))
        expose(light, self.model.camera, normal, noise=noise, blur=blur)
        return light[:, :, None]

    def _run_network(
        self, batch: RenderBatch, textures: TextureNoise
    ) -> list[tuple[Tensor, PatchPlacement]]:
        groups, textures = map_tensors((batch.groups, textures), self._move)
        network, steps = self.model.get_denoiser(self.method.steps), self.method.steps
        # Grids are made where they are needed, not brought there.
        with self.device:
            rendered = run_denoiser_batched(
                textures, [inputs for inputs, _ in groups], network, steps,
                fixed_batch=self.batch_size,
            )  # fmt: skip
        return [(r.light, place) for r, (_, place) in zip(rendered, groups, strict=True)]

    def _ask_bank(self, samples: Tensor) -> list[tuple[Tensor, PatchPlacement]]:
        parts = []
        for number, (table, sample, cells) in enumerate(pickle.loads(samples.numpy().data)):
            sample.bank, sample.model = self.bank, self.model
            parts += [(number, table, group) for group in sample.render(cells, self.method)]
        placed = []
        for group, placement in join_by_size(parts, self.shape[1:]):
            if self.device.type == "cuda":
                placement = map_tensors(placement, Tensor.pin_memory)
            placed.append((group.light, map_tensors(placement, self._move)))
        return placed

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)
