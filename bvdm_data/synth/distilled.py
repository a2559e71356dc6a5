"""Distilled painter: draws in one call what the painter draws in several."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.clip import STAGES
from bvdm_data.synth.painter import RIM, LightScale


@dataclass(frozen=True, kw_only=True)
class DistilledSettings:
    """How large the distilled network is, and the pictures that it draws.

    Attributes:
        patch: Side of a picture in pixels, that of the painter; a multiple of 8.
        narrow: Side of the pictures of nuclei that fit into it; a multiple of 8.
        floor: As in :class:`bvdm_data.synth.painter.PainterSettings`.
        channels: Channels at 1/2, 1/4 and 1/8 of the picture's resolution.
        condition_channels: Length of the embedding of brightness and stage.
    """

    patch: int = 64
    narrow: int = 48
    floor: float = 0.012
    channels: tuple[int, int, int] = (32, 64, 64)
    condition_channels: int = 64

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        for name in ("patch", "narrow"):
            if getattr(self, name) < 16 or getattr(self, name) % 8:
                raise ValueError(
                    f"{name} must be a multiple of 8 from 16 on, got {getattr(self, name)}"
                )
        if self.narrow > self.patch:
            raise ValueError(f"narrow must be at most patch={self.patch}, got {self.narrow}")
        if not self.floor > 0:
            raise ValueError(f"floor must be above 0, got {self.floor}")
        if len(self.channels) != 3 or any(c < 1 for c in self.channels):
            raise ValueError(f"channels must be three numbers above 0, got {self.channels}")
        if self.condition_channels < 1:
            raise ValueError(
                f"condition_channels must be at least 1, got {self.condition_channels}"
            )


class DistilledPainter(nn.Module, LightScale):
    """Maps noise to the picture that the painter's probability flow ends in, in one call.

    That map is deterministic, so it can be learnt by regression on pairs (Luhman & Luhman 2021).
    The network has no normalisation: on a CPU that costs as much as the convolutions do.

    Args:
        settings: How large it is.
    """

    def __init__(self, settings: DistilledSettings | None = None) -> None:
        """Make the network, its weights drawn at random."""
        super().__init__()
        size = settings or DistilledSettings()
        a, b, c = size.channels
        t = size.condition_channels
        self.settings = size
        self.floor = size.floor
        self.embed = nn.Sequential(
            nn.Linear(1 + len(STAGES), t), nn.SiLU(), nn.Linear(t, t), nn.SiLU()
        )
        self.inlet = nn.Conv2d(8, a, 3, padding=1)
        self.down1 = _Block(a, t)
        self.shrink1 = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.down2 = _Block(b, t)
        self.shrink2 = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.middle = _Block(c, t)
        self.grow2 = nn.Conv2d(c, b, 1)
        self.up2 = _Block(b, t)
        self.grow1 = nn.Conv2d(b, a, 1)
        self.up1 = _Block(a, t)
        self.outlet = nn.Conv2d(a, 4, 3, padding=1)

    def forward(
        self,
        noise: Float[Tensor, "N 1 P P"],
        edge: Float[Tensor, "N 1 P P"],
        brightness: Float[Tensor, " N"],
        stage: Int[Tensor, " N"],
    ) -> Float[Tensor, "N 1 P P"]:
        """Draw nuclei.

        Args:
            noise: Standard normal numbers.
            edge: From :func:`bvdm_data.synth.painter.edge_map`.
            brightness: Mean light inside the outlines, grey values.
            stage: Index into ``STAGES``, -1 where it is not known.

        Returns:
            Pictures on the scale of the network, float32.
        """
        known = self.embed(self.condition(brightness, stage))
        planes = F.pixel_unshuffle(torch.cat([noise, edge], 1), 2)
        planes = planes.contiguous(memory_format=torch.channels_last)
        skip1 = self.down1(F.silu(self.inlet(planes)), known)
        skip2 = self.down2(F.silu(self.shrink1(skip1)), known)
        low = self.middle(F.silu(self.shrink2(skip2)), known)
        low = F.interpolate(self.grow2(low), scale_factor=2.0, mode="nearest") + skip2
        low = self.up2(F.silu(low), known)
        low = F.interpolate(self.grow1(low), scale_factor=2.0, mode="nearest") + skip1
        low = self.up1(F.silu(low), known)
        return F.pixel_shuffle(self.outlet(F.silu(low)), 2).float()

    def fits_narrow(self, radii: Float[Tensor, "N K"]) -> Tensor:
        """Tell which outlines fit into a narrow picture, ``[N]`` bool.

        Args:
            radii: Contours, px.
        """
        return radii.amax(1) <= self.settings.narrow / 2 - RIM


class _Block(nn.Module):
    """Two convolutions with a shortcut; the condition scales and shifts between them."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.known = nn.Linear(condition, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for value in (*self.conv2.parameters(), *self.known.parameters()):
            nn.init.zeros_(value)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        scale, shift = self.known(known)[:, :, None, None].chunk(2, 1)
        hidden = F.silu(self.conv1(x) * (1 + scale) + shift)
        out: Tensor = x + self.conv2(hidden)
        return out
