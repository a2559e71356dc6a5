"""Variation: widens what a clip may look like beyond the fitted video (domain randomisation)."""

import math
from dataclasses import dataclass, replace

import numpy as np

from bvdm_data.synth.life_model import LifeModel
from bvdm_data.synth.motion import MotionModel
from bvdm_data.synth.scene import CameraModel
from bvdm_data.synth.shapes import ShapeModel

SIZE, BRIGHTNESS, NOISE = 0.1, 0.3, 0.3
"""Standard deviation of the logarithm of a clip's factor on lengths of nuclei, on their light and
on the camera's noise, at a variation of 1 (our choice)."""

DENSITY = (0.8, 2.5)
"""Least and largest factor on the density at a variation of 1, drawn evenly in its logarithm (our
choice; one frame of the HeLa video may hold three times the nuclei of another)."""

CROWDING = 0.3
"""How far the logarithm of the room that nuclei leave each other may fall at a variation of 1 (our
choice: in half of the clips nuclei touch and overlap more than in the HeLa video)."""

CONTACT = 0.4
"""Largest share of the founders that are put against another at a variation of 1 (our choice: a
segmenter learns to part nuclei from those that touch, which few of the HeLa video's do)."""

PACE = 0.3
"""Standard deviation of the logarithm of a clip's factor on the steps of its nuclei, at a variation
of 1 (our choice: as if frames were taken more or less often)."""

BLUR = 0.7
"""Largest extra blur at a variation of 1, px (our choice: half of the microscope's)."""


@dataclass(frozen=True)
class Varied:
    """The models of one clip.

    Attributes:
        shapes: Outlines.
        lives: Brightness, growth.
        motion: Density, crowding, steps.
        camera: Noise.
        size: Factor on lengths of nuclei, which shapes and lives have already.
        brightness: Factor on their light, which lives have already.
        contact: Share of the founders that are put against another.
        blur: Standard deviation of an extra Gaussian blur of all light, px.
    """

    shapes: ShapeModel
    lives: LifeModel
    motion: MotionModel
    camera: CameraModel
    size: float
    brightness: float
    contact: float
    blur: float


def vary(
    shapes: ShapeModel,
    lives: LifeModel,
    motion: MotionModel,
    camera: CameraModel,
    amount: float,
    generator: np.random.Generator,
) -> Varied:
    """Draw the models of one clip.

    Args:
        shapes: Outlines of the fitted video.
        lives: Brightness and growth of the fitted video.
        motion: Density, crowding and steps of the fitted video.
        camera: Camera of the fitted video.
        amount: 0: the fitted video; 1: as wide as the constants of this module say.
        generator: Where the random numbers come from; as many are drawn for any amount.

    Returns:
        The models.
    """
    size, brightness, noise = np.exp(
        amount * np.array([SIZE, BRIGHTNESS, NOISE]) * generator.standard_normal(3)
    )
    low, high = np.log(DENSITY)
    density = math.exp(amount * generator.uniform(low, high))
    blur = amount * BLUR * generator.random()
    room = np.exp(-amount * generator.uniform(0, CROWDING))
    contact = amount * generator.uniform(0, CONTACT)
    # The first is the pace itself, the others say how it varies.
    pace = motion.pace * np.append(math.exp(amount * PACE * generator.standard_normal()), [1.0] * 4)
    return Varied(
        shapes=replace(shapes, mean=size * shapes.mean, modes=size * shapes.modes),
        lives=replace(
            lives,
            body=size**2 * lives.body,
            grown=size**2 * lives.grown,
            brightness=brightness * lives.brightness,
        ),
        motion=replace(
            motion, density=density * motion.density, closest=room * motion.closest, pace=pace
        ),
        camera=replace(camera, noise=noise * camera.noise),
        size=float(size),
        brightness=float(brightness),
        contact=float(contact),
        blur=float(blur),
    )
