"""Scene: a video before its pixels, and the base of the methods that fill it."""

import math
import reprlib
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bvdm_data.rng import torch_rng
from bvdm_data.synth.camera import CameraModel
from bvdm_data.synth.cell_cycle import CellCycleModel, compute_dividing_share
from bvdm_data.synth.cells import Cell
from bvdm_data.synth.contours import Array
from bvdm_data.synth.model import DENSITY, SIZE, Model, RandomisedModel, ToneCurve, Variation
from bvdm_data.synth.motion import FamilySampler, Trajectory, compute_margin, simulate_motion
from bvdm_data.synth.render import CellTable, Labels, RenderedPatches
from bvdm_data.validate import (
    Rule,
    as_fraction,
    as_int,
    check_frames,
    check_max_cells,
    check_size,
)

CROWDED = 0.5
"""Share of an image that wanted nuclei may cover; so many always find a place (our choice)."""

RARE = 6
"""Standard deviations by which no clip holds more nuclei than expected (our choice)."""

MOST_IDS = 2**16 - 1
"""Ids that a 16-bit mask holds."""

MOST_CYCLES = 8
"""Cell cycles that a clip may last; a nucleus has about 2^8 descendants then (our choice)."""

_LENGTH = Rule(float, least=0)

FARTHEST = 10_000
"""How far the stage may carry the field along an axis in a clip, px (our choice)."""

Progress = Callable[[float], object]
"""Is called with the share of a video that is done, from 0 to 1."""


def skip_progress(share: float) -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """What a video shows."""

    frames: int  # length
    size: tuple[int, int]  # height and width, px
    # nuclei in the first frame; a pair: a random number between; None: the fitted video's density
    nuclei: int | tuple[int, int] | None = None
    at_least: int = 0  # nuclei in view in the first frame, where their number is not given
    max_cells: int | None = None  # once so many have come into view, no other does; None: no limit
    flow: bool = False  # whether to compute the displacement of every pixel
    # from 0 to 1, of all parts or of each by its name; see bvdm_data.synth.model.Variation
    variation: float | Mapping[str, float] = 0.0
    # from 0, nuclei are painted at their own brightness, to 1, all of a stage at one and the same
    evenness: float = 0.0
    # how far outside of the painted outlines those of the labels are, px; None: as the model says
    moved: float | None = 0.0
    # chance that a nucleus in interphase dies, a frame; None: as in the fitted video
    death_rate: float | None = None
    video: bool = True  # whether there are pictures
    step: int = 1  # of so many frames of the lives one is shown
    drift: float = 0.0  # of the stage, in one direction a clip, px a frame
    jumps: tuple[float, float] = (0.0, 0.0)  # chance that the stage jumps, a frame; longest, px

    @property
    def lived(self) -> int:
        """Frames that nuclei live."""
        return (self.frames - 1) * self.step + 1


def draw_stage_path(settings: SceneSettings, rng: np.random.Generator) -> Array:
    """Draw how far the stage has carried the field in each frame, ``[F, 2]`` px."""
    chance, longest = settings.jumps
    angles = rng.uniform(0, 2 * math.pi, settings.frames)
    jumps = longest * rng.random(settings.frames) * (rng.random(settings.frames) < chance)
    heading = rng.uniform(0, 2 * math.pi)
    steps = jumps[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    steps += settings.drift * np.array([math.cos(heading), math.sin(heading)])
    steps[0] = 0
    return np.asarray(steps.cumsum(0))


def _estimate_travel(settings: SceneSettings) -> float:
    """Return how far along an axis the stage carries the field in hardly any clip, px."""
    steps, (chance, longest) = settings.frames - 1, settings.jumps
    # One axis has a sixth of the mean square of a jump, whose length is even up to the longest.
    return settings.drift * steps + longest * math.sqrt(chance * steps / 6) * RARE


def _count_fitting_nuclei(model: Model, size: tuple[int, int]) -> int:
    """Return how many nuclei the first frame of every clip can show."""
    area = math.prod(side + model.nucleus_diameter / 2 for side in size)
    return max(1, int(CROWDED * area / model.nucleus_area))


def _count_cycles(model: Model, frames: int) -> float:
    """Return how many cell cycles some frames last."""
    mean, deviation = model.lives.cycle
    return frames / math.exp(mean + deviation**2 / 2)


def _count_doublings(model: Model, settings: SceneSettings) -> float:
    """Return how often nuclei double in number; in clips of many cycles, those that die count."""
    cycles = _count_cycles(model, settings.lived)
    lives = model.lives.with_death_rate(settings.death_rate)
    return cycles * (_measure_growth(lives) if cycles > MOST_CYCLES else 1)


def _measure_growth(lives: CellCycleModel) -> float:
    """Return how often nuclei double in number in a cycle; below 0: more die than divide."""
    return 1 + math.log2(max(compute_dividing_share(lives), 1e-9))


def _advise_deaths(lives: CellCycleModel) -> str:
    """Return the way out for long films: the death rate at which as many die as divide."""
    steps = range(1, 10_000)  # of a ten-thousandth
    place = bisect(steps, 0.0, key=lambda n: -_measure_growth(lives.with_death_rate(n / 10_000)))
    if place == len(steps):
        return "no death_rate makes as many die as divide"
    return f"give a death_rate of {steps[place] / 10_000} for longer films: as many die as divide"


def estimate_rows(model: Model, settings: SceneSettings) -> tuple[int, int]:
    """Return how many nuclei the densest clips show, and how many none exceeds.

    The first counts those in view at first and their offspring, the second all in and around the
    image.
    """
    frames, nuclei = settings.lived, settings.nuclei
    travel = _estimate_travel(settings)
    amounts = Variation.make(settings.variation)
    largest = math.exp(SIZE * amounts.size) * model.nucleus_diameter
    margin = compute_margin(largest, model.motion, frames)
    canvas = math.prod(side + 2 * margin + travel for side in settings.size)
    seen = min(math.prod(side + model.nucleus_diameter for side in settings.size), canvas)
    first = float(settings.at_least if nuclei is None else np.max(nuclei))
    # Founders are placed in and around the image until as many as wanted are in view.
    founders, spread = first * canvas / seen, math.sqrt(first) * canvas / seen
    if nuclei is None:
        density = model.motion.density[: max(1, len(model.motion.density) - frames + 1)]
        densest = float(density.max()) * DENSITY[1] ** amounts.density
        # No more than twice the area find a free place.
        smallest = math.exp(-2 * SIZE * amounts.size) * model.nucleus_area
        densest = min(densest, 2 / smallest)
        first, founders = max(first, densest * seen), max(founders, densest * canvas)
        spread = max(spread, math.sqrt(densest * canvas))
    # A division ends an id and begins two.
    cycles, doublings = _count_cycles(model, frames), _count_doublings(model, settings)
    grown = 2 * 2**doublings - 1
    if doublings != cycles:
        shrunk = math.log(2) * doublings
        grown = 1 + 2 * math.log(2) * cycles * (math.expm1(shrunk) / shrunk if shrunk else 1)
    few = (first + RARE / 2 * math.sqrt(first)) * grown
    many = (founders + RARE * (1 + spread)) * grown
    return min(math.ceil(few), MOST_IDS), min(math.ceil(many), MOST_IDS)


def check_scene(
    model: Model,
    method: "Method",
    *,
    frames: int,
    size: int | Sequence[int],
    nuclei: int | tuple[int, int] | None,
    variation: float | Mapping[str, float] | None,
    at_least: int = 0,
    death_rate: float | None = None,
    max_cells: int | None = None,
    minutes: float | None = None,
    drift: float = 0.0,
    jumps: Sequence[float] = (0.0, 0.0),
) -> SceneSettings:
    """Return what clips show, with defaults filled in; refuse what some of them could not."""
    _LENGTH.check("drift", drift)
    scene = SceneSettings(
        frames=check_frames(frames),
        size=check_size(size),
        nuclei=_check_nuclei(nuclei),
        at_least=as_int("at_least", at_least, least=0),
        variation=_check_variation(variation, method),
        death_rate=None if death_rate is None else as_fraction("death_rate", death_rate),
        step=_check_minutes(minutes, model.lives.minutes),
        drift=float(drift),
        jumps=_check_jumps(jumps),
    )
    if min(scene.size) < model.nucleus_diameter:
        raise ValueError(
            f"size must not be smaller than a nucleus of the model "
            f"({model.nucleus_diameter:.0f} px across), got {scene.size}"
        )
    if scene.at_least and nuclei is not None:
        raise ValueError(
            f"at_least must be left out with nuclei={nuclei}, got {at_least}; for a range of "
            "numbers give a pair of nuclei"
        )
    doublings, cycles = _count_doublings(model, scene), _count_cycles(model, scene.lived)
    if doublings > MOST_CYCLES:
        most = int(MOST_CYCLES * scene.frames / cycles)
        raise ValueError(
            f"frames must be at most {most}, {MOST_CYCLES} cell cycles of the model, got {frames}; "
            f"{_advise_deaths(model.lives)}"
            if most
            else f"minutes between frames must be less than {MOST_CYCLES} cell cycles of the "
            f"model, got {minutes}; give fewer"
        )
    if (travel := _estimate_travel(scene)) > FARTHEST:
        raise ValueError(
            f"drift and jumps must carry the field by at most {FARTHEST} px in a clip, got "
            f"drift={drift} and jumps={jumps}, which may carry it by {travel:.0f} px in {frames} "
            "frames; give less, or fewer frames"
        )
    wanted = {"nuclei": int(np.max(scene.nuclei or 0)), "at_least": scene.at_least}
    most = _count_fitting_nuclei(model, scene.size)
    for name, number in wanted.items():
        if number > most:
            given = nuclei if name == "nuclei" else number
            raise ValueError(
                f"{name}={given} do not fit into size={scene.size}: only {most} do in every clip. "
                f"Give fewer nuclei or a larger size"
            )
    needed, enough = estimate_rows(model, scene)
    rows = enough if max_cells is None else check_max_cells(max_cells)
    if rows < min(needed, enough):
        raise ValueError(
            f"max_cells={rows} is too small for these clips: they may show {needed} nuclei. Give "
            f"max_cells={needed} or more, or leave it out"
        )
    return replace(scene, max_cells=rows)


def _check_nuclei(nuclei: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
    """Return the number of nuclei in the first frame, or its range."""
    if nuclei is None:
        return None
    is_pair = isinstance(nuclei, (tuple, list))
    given: Any = nuclei if is_pair else (nuclei,)
    bounds = [as_int("nuclei", number, least=0) for number in given]
    if is_pair and len(bounds) != 2:
        raise ValueError(f"nuclei must be a number or a pair (low, high), got {nuclei!r}")
    if bounds[0] > bounds[-1]:
        raise ValueError(f"nuclei must be a pair (low, high) with low <= high, got {nuclei!r}")
    return (bounds[0], bounds[1]) if is_pair else bounds[0]


def _check_minutes(minutes: float | None, fitted: float) -> int:
    """Return of how many frames of the lives one is shown."""
    if minutes is None:
        return 1
    Rule(float, above=0).check("minutes", minutes)
    step = round(minutes / fitted)
    if step < 1 or abs(minutes / fitted - step) > 1e-6 * step:
        raise ValueError(
            f"minutes must be {fitted:g}, as in the fitted video, or a multiple of it, got "
            f"{minutes:g}; for others fit a model to a video with that interval (bvdm-data fit)"
        )
    return step


def _check_jumps(jumps: Sequence[float]) -> tuple[float, float]:
    """Return how often the stage jumps, and how far."""
    if not isinstance(jumps, Sequence) or isinstance(jumps, str) or len(jumps) != 2:
        raise TypeError(f"jumps must be a pair (chance a frame, longest in px), got {jumps!r}")
    _LENGTH.check("the longest of jumps", jumps[1])
    return as_fraction("the chance of jumps", jumps[0]), float(jumps[1])


def _check_variation(
    variation: float | Mapping[str, float] | None, method: "Method"
) -> float | Mapping[str, float]:
    """Return how far clips may leave the fitted video: all their parts alike, or each of them."""
    if variation is None:
        return method.default_variation
    if not isinstance(variation, Mapping):
        return as_fraction("variation", variation)
    parts = asdict(Variation.make(method.default_variation))
    for name in variation:
        if name not in parts:
            raise ValueError(
                f"variation must name some of {', '.join(parts)}, got {reprlib.repr(name)}"
            )
    return parts | {
        name: as_fraction(f"variation of {name}", variation[name])
        for name in parts
        if name in variation
    }


@dataclass(frozen=True)
class Scene:
    """A video before its pixels."""

    settings: SceneSettings
    seed: int  # of the data set
    name: tuple[str | int, ...]  # place in the data set
    cells: list[Trajectory]  # the cells that are seen
    rows: Tensor  # their rows in the table
    spans: list[tuple[int, int]]  # first and last frame in which each is seen
    table: CellTable  # all cells
    seen: Int[Tensor, "F H W"]  # row, from 1, of the cell that is seen at each pixel
    masks: Labels  # ids 1 to n, [F, H, W]
    tracks: npt.NDArray[np.int32]  # id, first, last, parent, [n, 4]
    stages: npt.NDArray[np.int8]  # stage of each nucleus in each frame, [n, F]
    camera: CameraModel  # of this video
    tone: ToneCurve  # what it makes of the light of cells
    blur: float  # standard deviation of an extra blur of all light, px
    spots: Float[Tensor, "F K 5"]  # light without a label, see bvdm_data.synth.stray_light
    sample: Any  # the BankSample that the cells come from, with their patches; or None

    @property
    def lives(self) -> list[Cell]:
        """The cells without their trajectories."""
        return [cell.cell for cell in self.cells]

    def make_texture_rngs(self) -> list[torch.Generator]:
        """Return a generator for each cell."""
        return [torch_rng(self.seed, *self.name, "texture", life.identity) for life in self.lives]

    def make_camera_seed(self) -> int:
        """Return the seed of the background and the noise of the camera."""
        return torch_rng(self.seed, *self.name, "camera").initial_seed()

    def list_bank_cells(self) -> list[tuple[int, int, tuple[int, int]]]:
        """Return what a bank must know of each cell: identity, row in the table, and span."""
        identities = [life.identity for life in self.lives]
        return list(zip(identities, self.rows.tolist(), self.spans, strict=True))


@dataclass(frozen=True)
class Textures:
    """Rendered cells of a scene."""

    patches: list[RenderedPatches]
    # backward displacement (dy, dx) from frame f + 1 to f by which the textures were moved, px;
    # None where a point of a cell keeps its share of the way to the outline
    flow: Float[Tensor, "N E 2 P P"] | None = None


@dataclass(frozen=True)
class TexturePatches:
    """Textured nuclei."""

    # relative light, about mask_level on average inside; 0 where a nucleus is not there
    texture: Float[Tensor, "N F H W"]
    # as in Textures; without frames if it was not wanted
    flow: Float[Tensor, "N E 2 H W"]

    def finish(self, scene: Scene, mask_level: float) -> Textures:
        """Give the cells of a scene their brightness; changes the textures in place."""
        count, frames, side, _ = self.texture.shape
        gain = torch.zeros(count, frames)
        for row, cell in enumerate(scene.lives):
            light = cell.brightness * scene.tone.compute_gain(cell.brightness)
            gain[row, cell.first : cell.last + 1] = torch.from_numpy(light) / mask_level
        light = self.texture.cpu().clamp_(min=0).mul_(gain[:, :, None, None])
        rows, frame = torch.cartesian_prod(scene.rows, torch.arange(frames)).unbind(1)
        patches = RenderedPatches(light.view(-1, side, side), rows, frame, torch.ones(len(rows)))
        return Textures([patches], self.flow)


@dataclass(frozen=True)
class Method:
    """How cells live and how their textures are rendered."""

    masked: ClassVar[bool] = True
    """Whether a cell is lit only where its label is, and surrounded by a glow."""

    default_variation: ClassVar[float | Mapping[str, float]] = 0.0
    """Variation of the clips of a data set, unless another is asked for."""

    @property
    def families(self) -> bool:
        """Whether cells live and move as in the fitted video, so that a pool may keep them."""
        return False

    def check_fitted(self, model: Model) -> None:
        """Refuse a model that lacks a network of this method, or whose nuclei are too large."""
        if self.masked and model.pooling > 1:
            raise ValueError(
                "method must be 'fast' with a model of nuclei that are "
                f"{model.nucleus_diameter:.0f} px across, got one that draws no such large ones"
            )

    def describe(self) -> str:
        """Return a few words for a line of output."""
        return "procedural"

    def simulate(
        self,
        models: RandomisedModel,
        settings: SceneSettings,
        nuclei: int | None,
        rng: np.random.Generator,
        sample: FamilySampler | None,
        travel: Array,
    ) -> list[Trajectory]:
        """Simulate cells and their trajectories.

        ``travel``: How far the field will be carried down and up, and right and left, [2, 2] px.
        """
        return simulate_motion(
            models.shapes, models.lives, models.motion, families=self.families,
            frames=settings.lived, size=settings.size, nuclei=nuclei, generator=rng, grow=sample,
            contact=models.contact, at_least=settings.at_least, travel=travel,
        )  # fmt: skip

    def render_textures(
        self, scene: Scene, model: Model, progress: Progress = skip_progress
    ) -> Textures:
        """Render the cells of a scene."""
        raise NotImplementedError
