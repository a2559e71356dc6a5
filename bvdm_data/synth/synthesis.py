"""Synthesis: from the fitted model and a seed to an annotated video; in batches on a device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from bvdm_data.clip import Clip, annotate_masks, number_tracks, pad_rows
from bvdm_data.rng import numpy_rng
from bvdm_data.synth.camera import expose, make_cpu_normal, make_gaussian_kernels
from bvdm_data.synth.cell_bank import BankSample, CellBank
from bvdm_data.synth.denoiser import SDF_CLIP
from bvdm_data.synth.model import Model, randomise_model
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.render import (
    Labels,
    RenderedPatches,
    composite,
    compute_flow,
    draw_labels,
    follow_textures,
    make_cell_table,
    place_patches,
)
from bvdm_data.synth.scene import Method, Progress, Scene, SceneSettings
from bvdm_data.system import profile_span


@dataclass(frozen=True)
class AnnotatedVideo:
    """An annotated video of any number of nuclei."""

    video: npt.NDArray[np.float32]  # grey values that are whole camera counts, [F, H, W]
    masks: Labels  # ids 1 to n, [F, H, W]
    tracks: npt.NDArray[np.int32]  # id, first, last, parent, [n, 4]
    stages: npt.NDArray[np.int8]  # stage in each frame, -1 where a nucleus is not seen, [n, F]
    flow: npt.NDArray[np.float32] | None  # displacement of every pixel, [F - 1, 2, H, W]


@contextmanager
def run_single_threaded() -> Iterator[None]:
    """Run torch in one thread.

    More threads round sums, and the ends of vectors, in another way. A loader's workers have one
    thread each; without this, clips made outside them would differ.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@run_single_threaded()
def synthesise(
    model: Model,
    settings: SceneSettings,
    method: Method,
    *,
    seed: int,
    name: tuple[str | int, ...],
    pool: tuple[CellBank, int, int] | None = None,
    progress: Progress | None = None,
) -> AnnotatedVideo:
    """Make one video: cells and trajectories, labels, textures, light, camera (paper, figure 1 b).

    On the CPU this takes one thread, so that the result is the same on any number of cores; use
    several workers to use them all.
    """
    scene = draw_scene(model, settings, method, seed, name, pool)
    textures = method.render_textures(scene, model, progress)
    light = composite_scene(scene, textures.patches, masked=method.masked)
    flow = compute_scene_flow(scene, textures.flow) if settings.flow else None
    with profile_span("camera"):
        video = expose(
            light[None], scene.camera, make_cpu_normal(numpy_rng(seed, *name, "camera")),
            noise=torch.tensor([scene.camera.noise], dtype=torch.float64),
            blur=make_gaussian_kernels([scene.blur]), glow=method.masked,
        )  # fmt: skip
    if progress is not None:
        progress(1.0)
    return AnnotatedVideo(video[0].numpy(), scene.masks, scene.tracks, scene.stages, flow)


def draw_scene(
    model: Model,
    settings: SceneSettings,
    method: Method,
    seed: int,
    name: tuple[str | int, ...],
    pool: tuple[CellBank, int, int] | None,
) -> Scene:
    """Draw cells and their trajectories, and derive labels and annotations."""
    rng = numpy_rng(seed, *name, "lives")
    frames, nuclei = settings.frames, settings.nuclei
    if isinstance(nuclei, tuple):
        nuclei = int(rng.integers(nuclei[0], nuclei[1] + 1))
    models = randomise_model(
        model.shapes, model.lives, model.motion, model.camera,
        settings.variation, numpy_rng(seed, *name, "variation"),
    )  # fmt: skip
    sample = None
    if pool is not None:
        bank, number, era = pool
        sample = BankSample(
            bank, model, frames, number, era, rng, size=models.size, brightness=models.brightness
        )
    with profile_span("lives"):
        everyone = method.simulate(models, settings, nuclei, rng, sample)
    with profile_span("labels"):
        table = make_cell_table(everyone, frames)
        seen = draw_labels(table, settings.size)
        visible = find_visible_frames(seen, len(everyone))
        row_of = {cell.cell.identity: row for row, cell in enumerate(everyone, start=1)}
        parents = {row_of[c.cell.identity]: row_of.get(c.cell.parent, 0) for c in everyone}
        new_of, tracks, old = number_tracks(visible, parents)
        masks = relabel(seen, new_of)
    rows = np.flatnonzero(visible[1:].any(1))
    return Scene(
        settings=settings,
        seed=seed,
        name=name,
        cells=[everyone[row] for row in rows],
        rows=torch.from_numpy(rows),
        spans=[(int(v.argmax()), frames - 1 - int(v[::-1].argmax())) for v in visible[rows + 1]],
        table=table,
        seen=seen,
        masks=masks,
        tracks=tracks,
        stages=_tabulate_stages([everyone[row - 1] for row in old], tracks, frames),
        camera=models.camera,
        blur=models.blur,
        sample=sample,
    )


def find_visible_frames(seen: Tensor, count: int) -> npt.NDArray[np.bool_]:
    """Return which cell is seen in which frame; row 0 is the background, ``[count + 1, F]``."""
    present = torch.zeros(len(seen), count + 1, dtype=torch.bool)
    present.scatter_(1, seen.flatten(1).long(), True)
    return present.T.numpy()


def relabel(seen: Tensor, new_of: npt.NDArray[np.int32]) -> Labels:
    """Replace rows by ids, ``[F, H, W]``."""
    names = torch.from_numpy(new_of)
    ids = [names[:, frame].index_select(0, flat) for frame, flat in enumerate(seen.flatten(1))]
    masks: Labels = torch.stack(ids).view_as(seen).numpy()
    return masks


def _tabulate_stages(
    cells: Sequence[Trajectory], tracks: npt.NDArray[np.int32], frames: int
) -> npt.NDArray[np.int8]:
    stages = np.full((len(tracks), frames), -1, np.int8)
    for cell, (identity, first, last, _) in zip(cells, tracks, strict=True):
        start = cell.cell.first
        stages[identity - 1, first : last + 1] = cell.cell.stages[first - start : last + 1 - start]
    return stages


def composite_scene(
    scene: Scene, patches: Sequence[RenderedPatches], *, masked: bool
) -> Float[Tensor, "F H W"]:
    """Put the cells in their places; ``masked``: light ends at the labels."""
    size, mask, halo = scene.settings.size, None, SDF_CLIP
    if masked:
        mask, halo = (scene.table, scene.seen), -1.0
    with profile_span("scene"):
        groups = [(g.light, place_patches([(0, scene.table, g)], size, halo)) for g in patches]
        return composite(groups, (scene.settings.frames, *size), mask=mask)


def compute_scene_flow(
    scene: Scene, textures: Float[Tensor, "N E 2 P P"] | None = None
) -> npt.NDArray[np.float32]:
    """Compute the displacement of every pixel, from the flow of the textures if there is one."""
    with profile_span("flow"):
        deform = None if textures is None else follow_textures(scene.rows, textures.cpu())
        flow: npt.NDArray[np.float32] = compute_flow(scene.table, scene.seen, deform).numpy()
    return flow


def to_clip(video: AnnotatedVideo, annotations: Sequence[str], max_cells: int, index: int) -> Clip:
    """Turn a video into the fixed-size tensors of a data set's sample."""
    clip: Clip = Clip(
        video=torch.from_numpy(video.video)[:, None],
        **collect_annotations(video, video.flow, annotations, max_cells),  # type: ignore[typeddict-item]
        index=torch.tensor(index),
        source=torch.tensor(1, dtype=torch.int8),
    )
    return clip


def collect_annotations(
    source: AnnotatedVideo | Scene,
    flow: npt.NDArray[np.float32] | None,
    annotations: Sequence[str],
    max_cells: int,
) -> dict[str, Tensor]:
    """Return annotations, in the order in which they are named."""
    found = annotate_masks(source.masks, source.tracks, annotations, max_cells)
    if flow is not None:
        found["flow"] = torch.from_numpy(flow)
    if "stages" in annotations:
        found["stages"] = pad_rows(source.stages, max_cells, -1)
    return {key: found[key] for key in annotations}
