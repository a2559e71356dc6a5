"""Model: all that is fitted to a video, and how far a clip may differ from it."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bvdm_data.synth.camera import CameraModel
from bvdm_data.synth.cell_cycle import INTERPHASE, CellCycleModel
from bvdm_data.synth.contours import ShapeModel, compute_polygon_area
from bvdm_data.synth.denoiser import Denoiser, Student
from bvdm_data.synth.motion import MotionModel
from bvdm_data.synth.networks import FlowNet, UNet
from bvdm_data.system import choose_dtype


@dataclass(frozen=True, kw_only=True)
class TextureModel:
    """How long a texture lasts: its noise has a lasting part and a fresh one."""

    memory: float  # correlation of the lasting part with that of the frame before, from 0 to 1
    fresh: float  # share of the variance that is new in every frame, from 0 to 1


_PIXEL_SIZES = {"Fluo-N2DL-HeLa": 0.645}
"""Side of a pixel by name of data set, micrometres, for cards that do not have it."""


@dataclass(frozen=True)
class Model:
    """Everything that is fitted to one video."""

    shapes: ShapeModel  # outlines of nuclei
    lives: CellCycleModel  # stages, brightness, growth
    motion: MotionModel  # steps, turns, density
    camera: CameraModel  # background, blur, noise, scale
    texture: TextureModel  # how long a texture lasts
    painter: Denoiser  # renders a nucleus from outline, brightness and stage; the method "fast"
    distilled: Student  # draws the same in one call
    unet: UNet | None = None  # predicts the noise in a patch; None: not fitted
    flownet: FlowNet | None = None  # predicts the flow between two masks; None: not fitted
    # what it was fitted to, how, and how well; JSON values
    card: Mapping[str, object] = field(default_factory=dict)

    @property
    def pixel_size(self) -> float | None:
        """Side of a pixel of the fitted video, micrometres, from the card; None: not known."""
        settings, data = self.card.get("settings"), self.card.get("data")
        size = settings.get("pixel_size") if isinstance(settings, Mapping) else None
        name = data.get("data_set") if isinstance(data, Mapping) else None
        return _PIXEL_SIZES.get(str(name)) if size is None else float(size)

    @property
    def pooling(self) -> int:
        """Pixels along a side to one of the networks', which draw large nuclei smaller."""
        return self.painter.settings.pooling

    @property
    def nucleus_diameter(self) -> float:
        """Diameter of the mean interphase nucleus, px."""
        return float(2 * np.sqrt(self.nucleus_area / np.pi))

    @property
    def nucleus_area(self) -> float:
        """Area of the mean interphase nucleus, px^2."""
        return float(compute_polygon_area(self.shapes.mean[0]))

    @property
    def reference_brightness(self) -> Float[Tensor, " S"]:
        """Brightness of the median nucleus in each stage, grey values."""
        offsets = self.lives.stage_brightness[:, 0].copy()
        offsets[INTERPHASE] = 0
        return torch.from_numpy(np.median(self.lives.brightness) * np.exp(offsets)).float()

    def get_denoiser(self, steps: int) -> Denoiser | Student:
        """Return the network that renders a patch in a number of calls."""
        return self._student if steps == 1 else self.painter

    @cached_property
    def _student(self) -> Student:
        """The student as it draws: in float32 on a CPU, elsewhere in a type that needs no casts."""
        device = next(self.distilled.parameters()).device
        student = deepcopy(self.distilled)
        if device.type != "cpu":
            return student.to(choose_dtype(device))
        student.pack()
        return student

    def to(self, device: torch.device) -> "Model":
        """Return a copy whose networks are on a device; the statistics stay on the CPU."""
        copies: dict[str, Any] = {}
        for name in ("painter", "distilled", "unet", "flownet"):
            if (network := getattr(self, name)) is not None:
                # Copied, not made anew: that would draw from the global random state.
                copies[name] = deepcopy(network).to(device).eval()
                if name != "flownet":
                    copies[name].to(memory_format=torch.channels_last)
        return replace(self, **copies)


SIZE = 0.17
"""How far the logarithm of a clip's factor on lengths of nuclei may lie from 0 at a variation of 1,
drawn evenly (our choice: pixels of 0.54 to 0.76 um)."""

BRIGHTNESS, NOISE, SPEED = 0.6, 0.3, 0.3
"""Standard deviation of the logarithm of a clip's factor on the light of nuclei, on the camera's
noise and on the steps of nuclei (as if frames were taken more or less often), at a variation of 1
(our choice)."""

FAINT = 2.0
"""Light of a nucleus over the camera's noise below which none is made dimmer (our choice)."""

DENSITY = (0.8, 2.5)
"""Least and largest factor on the density at a variation of 1, drawn evenly in its logarithm (our
choice; one frame of the HeLa video may hold three times the nuclei of another)."""

SPACING = 0.3
"""How far the logarithm of the room that nuclei leave each other may fall at a variation of 1 (our
choice: in half of the clips nuclei touch and overlap more than in the HeLa video)."""

CONTACT = 0.4
"""Largest share of the founders that touch another at a variation of 1 (our choice: a
segmenter learns to part nuclei from those that touch, which few of the HeLa video's do)."""

BLUR = 0.7
"""Largest extra blur at a variation of 1, px (our choice: half of the microscope's)."""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How far each part of a clip may leave the fitted video, from 0 to 1."""

    size: float  # lengths of nuclei
    brightness: float  # light of all nuclei
    density: float  # nuclei in an area
    contact: float  # how close they come, and how many touch
    speed: float  # their steps
    blur: float  # of all light; labels stay
    noise: float  # of the camera
    haze: float  # wide dim light without a label
    debris: float  # small spots without a label

    @classmethod
    def make(cls, amounts: "float | Mapping[str, float]") -> "Variation":
        """Return the amounts of all parts, given one for all or each by its name."""
        if not isinstance(amounts, Mapping):
            amounts = {part.name: amounts for part in fields(cls)}
        return cls(**amounts)


@dataclass(frozen=True)
class ToneCurve:
    """What a clip makes of the light of nuclei."""

    brightness: float  # factor on all
    faint: float  # light below which no nucleus is made dimmer, grey values

    def compute_gain(self, light: Any) -> Any:
        """Return the factor on the light of nuclei, grey values."""
        return np.maximum(self.brightness, np.minimum(1, self.faint / light))


@dataclass(frozen=True)
class RandomisedModel:
    """The models of one clip."""

    shapes: ShapeModel  # outlines
    lives: CellCycleModel  # growth
    motion: MotionModel  # density, crowding, steps
    camera: CameraModel  # noise
    size: float  # factor on lengths of nuclei, which shapes, lives and motion have already
    tone: ToneCurve  # on their light
    contact: float  # share of the founders that touch another
    blur: float  # standard deviation of an extra Gaussian blur of all light, px


def randomise_model(model: Model, amounts: Variation, rng: np.random.Generator) -> RandomisedModel:
    """Draw the models of one clip."""
    shapes, lives, motion, camera = model.shapes, model.lives, model.motion, model.camera
    grown = amounts.size * rng.uniform(-SIZE, SIZE)
    spread = np.array([BRIGHTNESS, NOISE, SPEED])
    spread *= [amounts.brightness, amounts.noise, amounts.speed]
    brightness, noise, faster = np.exp(spread * rng.standard_normal(3))
    size, density = math.exp(grown), math.exp(amounts.density * rng.uniform(*np.log(DENSITY)))
    blur = amounts.blur * BLUR * rng.random()
    room = np.exp(-amounts.contact * rng.uniform(0, SPACING))
    contact = amounts.contact * rng.uniform(0, CONTACT)
    tone = ToneCurve(float(brightness), FAINT * camera.noise)
    return RandomisedModel(
        shapes=replace(shapes, mean=size * shapes.mean, modes=size * shapes.modes),
        lives=replace(
            lives,
            mother_area=size**2 * lives.mother_area,
            adult_area=size**2 * lives.adult_area,
        ),
        motion=replace(
            motion,
            density=density * motion.density,
            # Logarithms of distances of nuclei that are born.
            separation=motion.separation + np.array([grown, 0]),
            sister_distance=motion.sister_distance + np.array([grown, 0]),
            neighbour_spacing=room * motion.neighbour_spacing,
            speed=motion.speed._replace(scale=float(faster) * motion.speed.scale),
        ),
        camera=replace(camera, noise=float(noise) * camera.noise),
        size=size,
        tone=tone,
        contact=float(contact),
        blur=float(blur),
    )
