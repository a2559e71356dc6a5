"""Generator: the models that are fitted to a video."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from bvdm_data.synth.distilled import DistilledPainter
from bvdm_data.synth.fast import FastSettings, TextureModel
from bvdm_data.synth.flow import FlowNet
from bvdm_data.synth.life_model import LifeModel
from bvdm_data.synth.motion import MotionModel
from bvdm_data.synth.painter import Painter
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.scene import CameraModel
from bvdm_data.synth.shapes import ShapeModel, area
from bvdm_data.synth.texture import PaperSettings
from bvdm_data.synth.unet import UNet

Method = FastSettings | PaperSettings | ProceduralSettings
"""Settings of a way of painting nuclei; their type says which."""

NOT_FITTED = (
    "method must be one that the model was fitted for, got 'paper'; fit the model with "
    '"bvdm-data fit --paper", or give method="fast" or method="procedural"'
)
"""Says that a model lacks the networks of the paper's method."""


@dataclass(frozen=True)
class Generator:
    """Everything that is fitted to one video.

    Attributes:
        shapes: Outlines of nuclei.
        lives: Stages, brightness, growth.
        motion: Steps, turns, density.
        camera: Background, blur, noise, scale.
        texture: How long a texture lasts.
        painter: Draws a nucleus from outline, brightness and stage; the method ``"fast"``.
        distilled: Draws the same in one call.
        unet: Predicts the noise in a picture of a nucleus, for the paper's method; None where
            that was not fitted.
        flownet: Predicts the flow between two masks, for the paper's method; or None.
        card: What it was fitted to, how, and how well; JSON values.
    """

    shapes: ShapeModel
    lives: LifeModel
    motion: MotionModel
    camera: CameraModel
    texture: TextureModel
    painter: Painter
    distilled: DistilledPainter
    unet: UNet | None = None
    flownet: FlowNet | None = None
    card: Mapping[str, object] = field(default_factory=dict)

    @property
    def nucleus_diameter(self) -> float:
        """Diameter of the mean interphase nucleus, px."""
        return float(2 * np.sqrt(self.nucleus_area / np.pi))

    @property
    def nucleus_area(self) -> float:
        """Area of the mean interphase nucleus, px^2."""
        return float(area(self.shapes.mean[0]))

    def painter_for(self, settings: FastSettings) -> Painter | DistilledPainter:
        """Return the network that paints with so many steps."""
        return self.distilled if settings.steps == 1 else self.painter

    def to(self, device: torch.device) -> "Generator":
        """Return a copy whose networks are on a device; the statistics stay on the CPU."""
        # Copied, not made anew: that would draw from the global random state.
        painter, distilled = _moved(self.painter, device), _moved(self.distilled, device)
        unet = None if self.unet is None else _moved(self.unet, device)
        flownet = None if self.flownet is None else deepcopy(self.flownet).to(device).eval()
        return replace(self, painter=painter, distilled=distilled, unet=unet, flownet=flownet)


_Network = TypeVar("_Network", bound=nn.Module)


def _moved(network: _Network, device: torch.device) -> _Network:
    copied = deepcopy(network).to(device).eval()
    copied.to(memory_format=torch.channels_last)
    return copied
