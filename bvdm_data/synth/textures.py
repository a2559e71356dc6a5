"""Fast method: every frame of every nucleus is rendered at once, from noise that drifts."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.outlines import FEWEST, measure_edges
from bvdm_data.rng import draw_normal, numpy_rng, torch_rng
from bvdm_data.synth.cell_cycle import INTERPHASE
from bvdm_data.synth.cells import Cell
from bvdm_data.synth.denoiser import (
    SDF_CLIP,
    Denoiser,
    Student,
    compute_signed_distance_map,
    fit_to_patch_scale,
    group_by_patch_size,
    run_dpm_solver,
)
from bvdm_data.synth.model import Model, TextureModel, ToneCurve
from bvdm_data.synth.render import RenderedPatches
from bvdm_data.synth.scene import Method, Progress, Scene, Textures, skip_progress
from bvdm_data.system import isolate, profile_span, run_mixed
from bvdm_data.validate import Rule, check_fields

BATCH = 64
"""Patches that go through the network together."""

STUDENT_STEPS = 6
"""Calls of the denoiser whose outcome the distilled network learns."""

BRIGHTEST = 4.0
"""Light over brightness at which a patch is clipped; none of the HeLa video's is beyond it."""

PROFILE_NUCLEI = 128
"""Nuclei that the mean edge profile of a model is measured on (our choice)."""

PROFILE_QUANTILES = (0.2, 0.8)
"""Quantiles of the brightness of nuclei between which the slope is measured (our choice)."""

PROFILE_REACH = 3
"""How far an outline may be moved, px: farther in there is no slope, farther out no light."""

_DISTANCES = range(-PROFILE_REACH, PROFILE_REACH + 1)

_FADE = 3.0
"""Width in pixels of the rim over which the halo fades to nothing at ``SDF_CLIP``."""


@dataclass(frozen=True, kw_only=True)
class FastSettings(Method):
    """How nuclei are rendered by the library's own method.

    Attributes:
        steps: Calls of the network a patch. 1: by the distilled network, which learnt to draw
            at once what the denoiser draws in ``STUDENT_STEPS``; more: by the denoiser itself.
        families: Whether nuclei live and move as those of the video do, see
            :func:`bvdm_data.synth.motion.simulate_motion`; False: as in the paper's scenes.
        memory: As in :class:`TextureModel`; None: that of the fitted video.
        fresh: As in :class:`TextureModel`; None: that of the fitted video.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range.
    """

    masked: ClassVar[bool] = False
    # What served a held-out video best, see docs/evaluation.md.
    default_variation: ClassVar[float | Mapping[str, float]] = 1.0

    steps: int = 1
    families: bool = True
    memory: float | None = None
    fresh: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no texture."""
        share = Rule(float, least=0, most=1, or_none=True)
        steps = Rule(int, least=1, most=1000)
        check_fields(self, steps=steps, families=Rule(bool), memory=share, fresh=share)

    def drift(self, texture: TextureModel, step: int = 1) -> tuple[float, float]:
        """Return memory, over ``step`` frames, and fresh share of the noise.

        They are those of the video unless overruled.
        """
        return (
            (texture.memory if self.memory is None else self.memory) ** step,
            texture.fresh if self.fresh is None else self.fresh,
        )

    def describe(self) -> str:
        """Return the name and the number of steps."""
        return f"fast, {self.steps} step{'s' * (self.steps > 1)}"

    def make_inputs(
        self, scene: Scene, model: Model
    ) -> tuple["TextureNoise", list["DenoiserInputs"]]:
        """Return what the network draws the cells of a scene from."""
        noise, inputs = _make_denoiser_inputs(
            scene.lives, scene.spans, model.get_denoiser(self.steps),
            *self.drift(model.texture, scene.settings.step), scene.make_texture_rngs(),
            model.reference_brightness, scene.settings.evenness, scene.tone,
        )  # fmt: skip
        return noise, [replace(group, rows=scene.rows[group.rows]) for group in inputs]

    def render_textures(
        self, scene: Scene, model: Model, progress: Progress = skip_progress
    ) -> Textures:
        """Render the cells of a scene, all frames at once, or take them from their bank."""
        if scene.sample is not None:
            return Textures(scene.sample.render(scene.list_bank_cells(), self))
        inputs, network = self.make_inputs(scene, model), model.get_denoiser(self.steps)
        return Textures(run_denoiser_batched(*inputs, network, self.steps, progress=progress))


@dataclass(frozen=True)
class TextureNoise:
    """The noise of cells, yet to be drawn; places in it are sorted by frame."""

    side: int  # of patches, px
    fresh: float  # share that is new in every frame
    seeds: Int[Tensor, " E"]  # of the cell of each place
    ages: Int[Tensor, " E"]  # frames since it came into the video
    before: Int[Tensor, " E"]  # place of the frame before, or of the mother's last; -1: none
    memory: Float[Tensor, " E"]  # correlation of the lasting part with that; 0 without it
    counts: tuple[int, ...]  # places of each frame

    def draw(self) -> Float[Tensor, "E P P"]:
        """Draw it, on the device of the tables, frame by frame."""
        count = self.side**2
        blocks = 2 * self.ages * (count // 4)
        lasting = draw_normal(self.seeds, blocks, count)
        new = draw_normal(self.seeds, blocks + count // 4, count)
        kept, renewed = self.memory[:, None], (1 - self.memory.square()).sqrt()[:, None]
        start = 0
        for places in self.counts:
            part = slice(start, start := start + places)
            last = lasting.index_select(0, self.before[part].clamp(min=0))
            lasting[part].mul_(renewed[part]).addcmul_(last, kept[part])
        mixed = new.mul_(math.sqrt(self.fresh)).add_(lasting, alpha=math.sqrt(1 - self.fresh))
        return mixed.view(-1, self.side, self.side)


def join_noise(
    parts: Sequence[TextureNoise],
) -> tuple[TextureNoise, list[Int[Tensor, " E"]]]:
    """Join the noise of several videos; return where the places of each are, too."""
    order = torch.cat([_list_frames(part.counts) for part in parts]).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    places = list(torch.split(place, [len(part.seeds) for part in parts]))
    # -1 is the last of all: none.
    pairs = zip(places, parts, strict=True)
    before = [F.pad(new, (0, 1), value=-1)[part.before] for new, part in pairs]
    counts = zip_longest(*(part.counts for part in parts), fillvalue=0)
    noise = TextureNoise(
        side=parts[0].side,
        fresh=parts[0].fresh,
        seeds=torch.cat([part.seeds for part in parts])[order],
        ages=torch.cat([part.ages for part in parts])[order],
        before=torch.cat(before)[order],
        memory=torch.cat([part.memory for part in parts])[order],
        counts=tuple(map(sum, counts)),
    )
    return noise, places


def _list_frames(counts: tuple[int, ...]) -> Int[Tensor, " E"]:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))


@dataclass(frozen=True)
class DenoiserInputs:
    """Conditions of cells on patches of one size."""

    size: tuple[int, int]  # height and width of the patches, px
    places: Int[Tensor, " M"]  # in the noise
    radii: Float[Tensor, "M K"]  # outlines, px
    # mean light inside the outlines at which nuclei are painted, grey values
    brightness: Float[Tensor, " M"]
    stage: Int[Tensor, " M"]  # index into STAGES
    gain: Float[Tensor, " M"]  # factor on their light afterwards
    rows: Int[Tensor, " M"]  # as in bvdm_data.synth.render.RenderedPatches
    frames: Int[Tensor, " M"]  # as there
    zoom: Float[Tensor, " M"]  # as there


def _make_denoiser_inputs(
    cells: Sequence[Cell],
    spans: Sequence[tuple[int, int]],
    network: Denoiser | Student,
    memory: float,
    fresh: float,
    rngs: Sequence[torch.Generator],
    reference: Float[Tensor, " S"] | None,
    evenness: float,
    tone: ToneCurve | None = None,
) -> tuple[TextureNoise, list[DenoiserInputs]]:
    """Collect the noise of nuclei and the conditions of the network.

    The brightness at which they are painted lies between their own and the reference of their
    stage; afterwards they get their own back, and that which the clip makes of it.
    """
    patch = network.settings.patch
    noise, place_of = _plan_noise(cells, patch, memory, fresh, rngs)
    seen = [(n, f) for n, (first, last) in enumerate(spans) for f in range(first, last + 1)]
    if not seen:
        return noise, []
    places = torch.tensor([place_of[f, n] for n, f in seen])
    rows, frames = torch.tensor(seen).unbind(1)
    shown = [(cells[n], f - cells[n].first) for n, f in seen]
    radii = torch.from_numpy(np.stack([cell.radii[m] for cell, m in shown])).float()
    brightness = torch.tensor([float(cell.brightness[m]) for cell, m in shown])
    stage = torch.tensor([int(cell.looks[m]) for cell, m in shown])
    painted = brightness
    if evenness and reference is not None:
        painted = brightness * (reference[stage] / brightness) ** evenness
    gain = brightness / painted
    if tone is not None:
        gain *= torch.from_numpy(tone.compute_gain(brightness.numpy()))
    inputs = []
    zoom = fit_to_patch_scale(radii, patch, network.settings.pooling)
    groups = [((patch, patch), torch.arange(len(radii)))]
    if isinstance(network, Student):
        groups = group_by_patch_size(radii / network.settings.pooling, patch)
    for size, group in groups:
        inputs.append(
            DenoiserInputs(
                size, places[group], radii[group], painted[group], stage[group], gain[group],
                rows[group], frames[group], zoom[group],
            )
        )  # fmt: skip
    return noise, inputs


def cut_centre(side: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return rows and columns of the patch of a size in the middle of a square one."""
    top, left = ((side - length) // 2 for length in size)
    return slice(top, side - top), slice(left, side - left)


def _plan_noise(
    cells: Sequence[Cell],
    patch: int,
    memory: float,
    fresh: float,
    rngs: Sequence[torch.Generator],
) -> tuple[TextureNoise, dict[tuple[int, int], int]]:
    """Return the noise of all frames of cells, and the place of each frame and cell in it."""
    frames = range(max((cell.last + 1 for cell in cells), default=0))
    listed = [(f, n) for f in frames for n, c in enumerate(cells) if c.first <= f <= c.last]
    place_of = {key: place for place, key in enumerate(listed)}
    number_of = {cell.identity: n for n, cell in enumerate(cells)}
    before = []
    for frame, n in listed:
        last = (frame - 1, n)
        if frame == cells[n].first and (mother := number_of.get(cells[n].parent)) is not None:
            last = (cells[mother].last, mother)
        # A mother that lived between two frames has none.
        before.append(place_of.get(last, -1))
    seeds = torch.tensor([rng.initial_seed() for rng in rngs], dtype=torch.long)
    rows = torch.tensor([n for _, n in listed], dtype=torch.long)
    ages = torch.tensor([frame - cells[n].first for frame, n in listed], dtype=torch.long)
    places = torch.tensor(before, dtype=torch.long)
    counts = Counter(frame for frame, _ in listed)
    noise = TextureNoise(
        patch, fresh, seeds[rows], ages, places, memory * (places >= 0).float(),
        tuple(counts[frame] for frame in frames),
    )  # fmt: skip
    return noise, place_of


def render_textures(
    cells: Sequence[Cell],
    spans: Sequence[tuple[int, int]],
    network: Denoiser | Student,
    texture: TextureModel,
    settings: FastSettings,
    rngs: Sequence[torch.Generator],
    reference: Float[Tensor, " S"] | None = None,
    evenness: float = 0.0,
    step: int = 1,
) -> list[RenderedPatches]:
    """Render nuclei, all frames at once.

    The paper carries a texture from frame to frame by a flow and refreshes it by a few diffusion
    steps. Here the noise from which a texture grows is carried: it belongs to the nucleus, turns
    with it and drifts as slowly as the video's textures do. Every frame is rendered from it anew,
    for the outline, the brightness and the stage of that frame. Nothing is resampled, so nothing
    blurs or drifts apart from its outline, and no frame waits for the one before. Daughters begin
    with the noise of their mother.
    """
    drift = settings.drift(texture, step)
    inputs = _make_denoiser_inputs(cells, spans, network, *drift, rngs, reference, evenness)
    return run_denoiser_batched(*inputs, network, settings.steps)


def run_denoiser_batched(
    noise: TextureNoise,
    groups: Sequence[DenoiserInputs],
    network: Denoiser | Student,
    steps: int,
    *,
    fixed_batch: int | None = None,
    progress: Progress = skip_progress,
) -> list[RenderedPatches]:
    """Render nuclei in calls of about ``BATCH`` patches, or of ``fixed_batch``, filled up."""
    total, done, rendered = sum(len(group.rows) for group in groups), 0, []
    with profile_span("noise"):
        drawn = noise.draw()
    for group in groups:
        light = []
        count = len(group.rows)
        calls = math.ceil(count / (fixed_batch or BATCH))
        start = drawn[(slice(None), *cut_centre(noise.side, group.size))][group.places]
        inputs = [start, group.radii, group.brightness, group.stage, group.gain]
        if fixed_batch:
            # What is missing is filled with ones.
            missing = calls * fixed_batch - count
            inputs = [F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing), value=1) for x in inputs]
        for part in zip(*(numbers.tensor_split(calls) for numbers in inputs), strict=True):
            light.append(denoise_patches(network, *part, steps=steps))
            done += len(part[0])
            progress(min(1.0, done / total))
        rendered.append(
            RenderedPatches(torch.cat(light)[:count], group.rows, group.frames, group.zoom)
        )
    return rendered


@torch.no_grad()
def denoise_patches(
    network: Denoiser | Student,
    noise: Float[Tensor, "N H W"],
    radii: Float[Tensor, "N K"],
    brightness: Float[Tensor, " N"],
    stage: Int[Tensor, " N"],
    gain: Float[Tensor, " N"] | None = None,
    *,
    steps: int,
) -> Float[Tensor, "N H W"]:
    """Render nuclei from noise; ``gain`` is the factor on their light afterwards."""
    device = next(network.parameters()).device
    with profile_span("outlines"):
        size, pooling = network.settings.patch, network.settings.pooling
        radii = radii * fit_to_patch_scale(radii, size, pooling)[:, None]
        edge = compute_signed_distance_map(radii, *noise.shape[1:]).to(device)
    brightness, stage = brightness.to(device), stage.to(device)
    start = noise[:, None].to(device)
    with profile_span("network"):
        if isinstance(network, Student):
            image = network(start, edge, brightness, stage)
        else:
            with run_mixed(device):
                image = run_dpm_solver(network, start, steps, edge, brightness, stage)
    gain = torch.ones_like(brightness) if gain is None else gain.to(device)
    most = BRIGHTEST * brightness
    # No nucleus makes its surroundings darker than the noise of the background does.
    least = -torch.minimum(most, network.floor / gain)
    light = network.denormalize(image, brightness).nan_to_num(0)
    light = light.clamp(least[:, None, None], most[:, None, None]) * fade_halo(edge)
    inside = (edge[:, 0] <= 0).float()
    mean = (light * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    # The network meets the brightness that it is given within a few per cent.
    gain = gain * (brightness / mean.clamp(min=1e-6)).clamp(0.5, 2)
    return light * gain[:, None, None]


def fade_halo(edge: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N H W"]:
    """Return the share of the light that is kept: 1, but falling to 0 towards ``SDF_CLIP``."""
    return ((1 - edge[:, 0]) * (SDF_CLIP / _FADE)).clamp(0, 1)


@dataclass(frozen=True)
class EdgeProfile:
    """The light at the edge of a model's nuclei over that of their core, in interphase."""

    shares: list[float]  # at distances from the outline, mean
    slope: float  # change of the share on the outline for a nucleus e times as bright


def find_outline_distance(profile: EdgeProfile, share: float) -> float:
    """Return how far outside of the painted outlines a profile has a share, px."""
    if not all(map(math.isfinite, profile.shares)):
        raise ValueError(
            "outline must be 'even' or 'video' with this model, whose nuclei are too small or too "
            f"irregular for their edges to be measured, got {share:g}"
        )
    # An outline that lies farther out is never brighter.
    shares = np.minimum.accumulate(profile.shares)
    if not shares[-1] <= share <= shares[0]:
        raise ValueError(
            f"outline must be from {shares[-1] + 0.005:.2f} to {shares[0] - 0.005:.2f} with this "
            f"model, the light {PROFILE_REACH} px out of and into its outlines, got {share:g}"
        )
    # To a hundredth of a pixel, so that the last bits of a processor make no other labels.
    return round(float(np.interp(share, shares[::-1], _DISTANCES[::-1])), 2)


def measure_edge_profile(model: Model, steps: int) -> EdgeProfile:
    """Paint nuclei, and measure the share of their core's light at their edge."""
    network, rng = model.get_denoiser(steps), numpy_rng(0, "edge profile")
    shapes = model.shapes.sample(np.full(PROFILE_NUCLEI, INTERPHASE), rng)
    radii, side = torch.from_numpy(shapes).float(), network.settings.patch
    stage = torch.full((PROFILE_NUCLEI,), INTERPHASE)
    noise = torch.randn(PROFILE_NUCLEI, side, side, generator=torch_rng(0, "edge profile"))
    pooling = network.settings.pooling
    scaled = radii * fit_to_patch_scale(radii, side, pooling)[:, None]

    def measure(brightness: float, distance: int = 0) -> float:
        lit = torch.full((PROFILE_NUCLEI,), brightness)
        light = denoise_patches(network, noise, radii, lit, stage, steps=steps)
        inside = compute_signed_distance_map(scaled + distance / pooling, side)[:, 0] <= 0
        labels = inside * torch.arange(1, PROFILE_NUCLEI + 1)[:, None, None]
        # Side by side they are one frame.
        measured = measure_edges(*(x.reshape(-1, side).cpu().numpy() for x in (light, labels)))[1]
        return float(measured.mean()) if len(measured) >= FEWEST else math.nan

    reference = float(model.reference_brightness[INTERPHASE])
    dim, bright = np.quantile(model.lives.brightness, PROFILE_QUANTILES).tolist()
    with isolate():
        shares = [measure(reference, distance) for distance in _DISTANCES]
        slope = (measure(bright) - measure(dim)) / math.log(bright / dim)
    return EdgeProfile(shares, slope)
