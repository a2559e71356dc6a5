"""Scene: a video before its pixels, and the base of the methods that fill it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bvdm_data.rng import torch_rng
from bvdm_data.synth.camera import CameraModel
from bvdm_data.synth.cells import Cell
from bvdm_data.synth.model import DENSITY, SIZE, Model, RandomisedModel, Variation
from bvdm_data.synth.motion import MARGIN, FamilySampler, Trajectory, simulate_motion
from bvdm_data.synth.render import CellTable, Labels, RenderedPatches

JITTER = 0.1
"""Amount of fresh shape noise in each frame (authors' code)."""

CROWDED = 0.5
"""Share of an image that wanted nuclei may cover; so many always find a place (our choice)."""

RARE = 6
"""Standard deviations by which no clip holds more nuclei than expected (our choice)."""

MOST_IDS = 2**16 - 1
"""Ids that a 16-bit mask holds."""

MOST_CYCLES = 8
"""Cell cycles that a clip may last; a nucleus has about 2^8 descendants then (our choice)."""

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
    # chance that a nucleus in interphase dies, a frame; None: as in the fitted video
    death_rate: float | None = None
    # whether all nuclei of a stage are painted at one brightness, and lit up to theirs afterwards
    relit: bool = False
    moved: float = 0.0  # how far outside of the painted outlines those of the labels are, px


def count_fitting_nuclei(model: Model, size: tuple[int, int]) -> int:
    """Return how many nuclei the first frame of every clip can show."""
    area = math.prod(side + model.nucleus_diameter / 2 for side in size)
    return max(1, int(CROWDED * area / model.nucleus_area))


def count_cycles(model: Model, frames: int) -> float:
    """Return how many cell cycles some frames last."""
    mean, deviation = model.lives.cycle
    return frames / math.exp(mean + deviation**2 / 2)


def estimate_rows(model: Model, settings: SceneSettings) -> tuple[int, int]:
    """Return how many nuclei the densest clips show, and how many none exceeds.

    The first counts those in view at first and their offspring, the second all in and around the
    image.
    """
    frames, nuclei = settings.frames, settings.nuclei
    canvas = math.prod(side + 2 * MARGIN for side in settings.size)
    seen = min(math.prod(side + model.nucleus_diameter for side in settings.size), canvas)
    first = float(settings.at_least if nuclei is None else np.max(nuclei))
    # Founders are placed in and around the image until as many as wanted are in view.
    founders, spread = first * canvas / seen, math.sqrt(first) * canvas / seen
    if nuclei is None:
        density = model.motion.density[: max(1, len(model.motion.density) - frames + 1)]
        amounts = Variation.make(settings.variation)
        densest = float(density.max()) * DENSITY[1] ** amounts.density
        # No more than twice the area find a free place.
        smallest = math.exp(-2 * SIZE * amounts.size) * model.nucleus_area
        densest = min(densest, 2 / smallest)
        first, founders = max(first, densest * seen), max(founders, densest * canvas)
        spread = max(spread, math.sqrt(densest * canvas))
    # A division ends an id and begins two.
    grown = 2 * 2 ** count_cycles(model, frames) - 1
    few = (first + RARE / 2 * math.sqrt(first)) * grown
    many = (founders + RARE * (1 + spread)) * grown
    return min(math.ceil(few), MOST_IDS), min(math.ceil(many), MOST_IDS)


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
            gain[row, cell.first : cell.last + 1] = torch.from_numpy(cell.brightness) / mask_level
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
        """Refuse a model that lacks a network of this method."""

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
    ) -> list[Trajectory]:
        """Simulate cells and their trajectories as in the paper's scenes."""
        return simulate_motion(
            models.shapes, models.lives, models.motion, frames=settings.frames,
            size=settings.size, nuclei=nuclei, generator=rng, jitter=JITTER,
            at_least=settings.at_least,
        )  # fmt: skip

    def render_textures(
        self, scene: Scene, model: Model, progress: Progress = skip_progress
    ) -> Textures:
        """Render the cells of a scene."""
        raise NotImplementedError
