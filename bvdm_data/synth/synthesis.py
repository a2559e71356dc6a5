"""Synthesis: the way from the fitted models and a seed to an annotated film."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool
from scipy import ndimage
from torch import Tensor

from bvdm_data.clip import Clip, annotate_masks, pad_rows
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.camera import expose
from bvdm_data.synth.cell_bank import CellBank
from bvdm_data.synth.contours import is_inside
from bvdm_data.synth.flow import FLOW_SIZE
from bvdm_data.synth.model import PAPER_NETS_MISSING, Method, Model
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.paper import PaperSettings, TexturePatches, render_paper_textures
from bvdm_data.synth.procedural import ProceduralSettings, render_procedural_textures
from bvdm_data.synth.render import Labels, composite_masked, compute_texture_flow
from bvdm_data.synth.scene import Scene, SceneSettings, make_request, render_request, simulate_scene
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import profile_span


@dataclass(frozen=True)
class AnnotatedVideo:
    """An annotated film of any number of nuclei."""

    video: npt.NDArray[np.float32]  # grey values that are whole camera counts, [F, H, W] float32
    masks: Labels  # ids 1 to n, [F, H, W] int32
    tracks: npt.NDArray[np.int32]  # id, first, last, parent, [n, 4] int32
    # stage of each nucleus in each frame, -1 where it is not seen, [n, F] int8
    stages: npt.NDArray[np.int8]
    # displacement of every pixel, [F - 1, 2, H, W] float32, if it was wanted
    flow: npt.NDArray[np.float32] | None


@contextmanager
def run_single_threaded() -> Iterator[None]:
    """Run torch in one thread: sums, and the ends of vectors, are rounded otherwise in another.

    A loader's workers have one thread each; without this, clips made outside them would differ.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@run_single_threaded()
def synthesise(
    generator: Model,
    scene: SceneSettings,
    method: Method,
    *,
    seed: int,
    name: tuple[str | int, ...],
    pool: tuple[CellBank, int, int] | None = None,
    on_frame: Callable[[], object] | None = None,
) -> AnnotatedVideo:
    """Make one film: lives and paths, labels, textures, light, camera (paper, figure 1 b).

    On the CPU the film is made in one thread, so that it is the same on any number of cores; use
    several workers to use them all.
    """
    plan = simulate_scene(generator, scene, method, seed, name, pool)
    if isinstance(method, FastSettings):
        drawn = make_request(generator, plan, method, scene.size, seed, name)
        on_part = _by_frame(on_frame, scene.frames)
        video = render_request(drawn, generator, method, on_part=on_part)
        return AnnotatedVideo(video, plan.masks, plan.tracks, plan.stages, plan.flow)
    streams = [torch_rng(seed, *name, "texture", path.cell.identity) for path in plan.shown]
    texture = _paint(generator, plan, scene, method, streams, on_frame)
    light = composite_masked(plan.shown, plan.labels, texture.texture.cpu(), method.mask_level)
    flow = compute_texture_flow(plan.shown, plan.labels, texture.flow.cpu()) if scene.flow else None
    with profile_span("camera"):
        if plan.blur:
            light = ndimage.gaussian_filter(light, (0, plan.blur, plan.blur))
        video = expose(light, plan.camera, numpy_rng(seed, *name, "camera"))
    return AnnotatedVideo(video, plan.masks, plan.tracks, plan.stages, flow)


def _by_frame(
    on_frame: Callable[[], object] | None, frames: int
) -> Callable[[float], object] | None:
    """Tell of frames as the shares that are done go up."""
    if on_frame is None:
        return None
    told = 0

    def on_part(share: float) -> None:
        nonlocal told
        while told < int(frames * share + 1e-6):
            on_frame()
            told += 1

    return on_part


def _paint(
    generator: Model,
    plan: Scene,
    scene: SceneSettings,
    method: PaperSettings | ProceduralSettings,
    streams: Sequence[torch.Generator],
    on_frame: Callable[[], object] | None,
) -> TexturePatches:
    if isinstance(method, ProceduralSettings):
        lives = [path.cell for path in plan.shown]
        return render_procedural_textures(
            lives, scene.frames, method, streams, keep_flow=scene.flow, on_frame=on_frame
        )
    masks = _patches(plan.shown, plan.views, scene.frames)
    unet, flownet = generator.unet, generator.flownet
    if unet is None or flownet is None:
        raise ValueError(PAPER_NETS_MISSING)
    return render_paper_textures(
        masks, unet, flownet, method, streams, keep_flow=scene.flow, on_frame=on_frame
    )


def _patches(
    paths: Sequence[Trajectory], views: Sequence[tuple[int, int]], frames: int
) -> Bool[Tensor, "N F P P"]:
    """Draw the mask films of nuclei, from their first to their last view."""
    masks = torch.zeros(len(paths), frames, FLOW_SIZE, FLOW_SIZE, dtype=torch.bool)
    grid = torch.arange(FLOW_SIZE) - (FLOW_SIZE - 1) / 2
    for row, (path, (first, last)) in enumerate(zip(paths, views, strict=True)):
        life = path.cell
        radii = torch.from_numpy(life.radii[first - life.first : last + 1 - life.first]).float()
        shape = (len(radii), FLOW_SIZE, FLOW_SIZE)
        y, x = grid[:, None].expand(shape), grid[None].expand(shape)
        masks[row, first : last + 1] = is_inside(radii, y, x)
    return masks


def to_clip(film: AnnotatedVideo, annotations: Sequence[str], max_cells: int, index: int) -> Clip:
    """Turn a film into the fixed-size tensors of a data set's sample."""
    found = collect_annotations(film, annotations, max_cells)
    clip: Clip = Clip(
        video=torch.from_numpy(film.video)[:, None],
        **found,  # type: ignore[typeddict-item]
        index=torch.tensor(index),
        source=torch.tensor(1, dtype=torch.int8),
    )
    return clip


def collect_annotations(
    film: AnnotatedVideo | Scene, annotations: Sequence[str], max_cells: int
) -> dict[str, Tensor]:
    """Return the annotations of a film, in the order in which they are named."""
    found = annotate_masks(film.masks, film.tracks, annotations, max_cells)
    if "flow" in annotations and film.flow is not None:
        found["flow"] = torch.from_numpy(film.flow)
    if "stages" in annotations:
        found["stages"] = pad_rows(film.stages, max_cells, -1)
    return {key: found[key] for key in annotations}
