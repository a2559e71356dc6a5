"""Painter: a network that draws a nucleus, with its halo, from outline, brightness and stage."""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.clip import STAGES
from bvdm_data.synth.contours import interpolate_radius
from bvdm_data.synth.unet import UNetBackbone, embed_timesteps

T_MAX = 0.995
"""Noise level at which painting begins; at 1 there is no signal, and its logarithm is endless."""

RHO = 1.5
"""How much closer together noise levels lie where little noise is left (our choice, by the
contrast and the edge profile of nuclei painted in 4 steps)."""

PATCH_MARGIN = 3.0
"""Pixels of a patch that must be left around the farthest point of an outline."""

SDF_CLIP = 8.0
"""Distance from the outline, px, beyond which all points look the same to the network."""


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """How large the network is, and the scale on which it sees light."""

    patch: int = 64  # side of a picture in pixels; a multiple of 8
    # light that is added, in squares, to the brightness that pictures are divided by, in grey
    # values; without it the dimmest nuclei would be nothing but enlarged noise
    floor: float = 0.012
    # channels at 1/2, 1/4 and 1/8 of the picture's resolution; multiples of 16, since 8 groups of
    # one channel each would take the condition off again
    channels: tuple[int, int, int] = (32, 64, 96)
    middle: int = 1  # residual blocks at the lowest resolution
    condition_channels: int = 96  # length of the embedding of noise level, brightness and stage

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        if self.patch < 16 or self.patch % 8:
            raise ValueError(f"patch must be a multiple of 8 from 16 on, got {self.patch}")
        if not self.floor > 0:
            raise ValueError(f"floor must be above 0, got {self.floor}")
        if len(self.channels) != 3 or any(c < 16 or c % 16 for c in self.channels):
            raise ValueError(f"channels must be three multiples of 16, got {self.channels}")
        if self.middle < 1:
            raise ValueError(f"middle must be at least 1, got {self.middle}")
        if self.condition_channels < 8 or self.condition_channels % 2:
            raise ValueError(
                f"condition_channels must be even and at least 8, got {self.condition_channels}"
            )


class IntensityNorm:
    """How networks see light and what a nucleus is like."""

    floor: float  # as in PainterSettings

    def condition(
        self, brightness: Float[Tensor, " N"], stage: Int[Tensor, " N"]
    ) -> Float[Tensor, "N C"]:
        """Put brightness and stage side by side as a network sees them."""
        light = (brightness.clamp(min=0) / self.floor).log1p()[:, None] - 2
        stages = F.one_hot(stage.long() + 1, len(STAGES) + 1)[:, 1:].float()
        return torch.cat([light, stages], 1)

    def to_picture(
        self, light: Float[Tensor, "N P P"], brightness: Float[Tensor, " N"]
    ) -> Float[Tensor, "N 1 P P"]:
        """Bring light to the scale of the network: background -1, a bright nucleus about 1."""
        return (2 * light / self._scale(brightness) - 1)[:, None]

    def to_light(
        self, picture: Float[Tensor, "N 1 P P"], brightness: Float[Tensor, " N"]
    ) -> Float[Tensor, "N P P"]:
        """Undo :meth:`to_picture`."""
        return (picture[:, 0] + 1) / 2 * self._scale(brightness)

    def _scale(self, brightness: Float[Tensor, " N"]) -> Float[Tensor, "N 1 1"]:
        return (brightness.square() + self.floor**2).sqrt()[:, None, None]


class Denoiser(UNetBackbone, IntensityNorm):
    """Predicts the velocity of a noisy picture of one nucleus, given what the nucleus is like.

    It is told the outline (as the distance of every
    pixel from it), the brightness and the stage, so that picture and label agree as they do in
    the video, and plates look like plates.
    """

    def __init__(self, settings: DenoiserConfig | None = None) -> None:
        """Make the network, its weights drawn at random."""
        size = settings or DenoiserConfig()
        t = size.condition_channels
        super().__init__(2, size.channels, size.middle, t + 1 + len(STAGES), t)
        self.settings = size
        self.floor = size.floor

    def forward(
        self,
        noisy: Float[Tensor, "N 1 P P"],
        level: Float[Tensor, " M"],
        edge: Float[Tensor, "N 1 P P"],
        brightness: Float[Tensor, " N"],
        stage: Int[Tensor, " N"],
    ) -> Float[Tensor, "N 1 P P"]:
        """Predict ``cos(a) noise - sin(a) picture``, where ``a = level * pi / 2``.

        That is the v-parametrisation (Salimans & Ho 2022, section 4) on the angle of a schedule
        that keeps the variance.
        """
        known = self._condition(level.expand(len(noisy)), brightness, stage)
        planes = torch.cat([noisy, edge], 1).contiguous(memory_format=torch.channels_last)
        return self.run(planes, known)

    def _condition(
        self, level: Float[Tensor, " N"], brightness: Float[Tensor, " N"], stage: Int[Tensor, " N"]
    ) -> Float[Tensor, "N C"]:
        time = embed_timesteps(1000 * level, self.settings.condition_channels)
        return torch.cat([time, self.condition(brightness, stage)], 1)


def make_pixel_grid(patch: int) -> Float[Tensor, "2 P P"]:
    """Return the offset (y, x) of every pixel from the middle of a patch, px."""
    line = torch.arange(patch) - (patch - 1) / 2
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))


def compute_signed_distance_map(
    radii: Float[Tensor, "N K"], patch: int
) -> Float[Tensor, "N 1 P P"]:
    """Draw how far every pixel is from an outline, along the ray from the centroid."""
    y, x = make_pixel_grid(patch).to(radii)[:, None].expand(2, len(radii), -1, -1)
    outside = torch.hypot(y, x) - interpolate_radius(radii, y, x)
    scaled: Tensor = (outside / SDF_CLIP).clamp(-1, 1)[:, None]
    return scaled


def fit_to_patch_scale(radii: Float[Tensor, "N K"], patch: int) -> Float[Tensor, " N"]:
    """Return by how much outlines must shrink to fit into a patch, with a rim for their halo."""
    return ((patch / 2 - PATCH_MARGIN) / radii.amax(1)).clamp(max=1)


def run_dpm_solver(
    painter: Denoiser,
    noise: Float[Tensor, "N 1 P P"],
    steps: int,
    edge: Float[Tensor, "N 1 P P"],
    brightness: Float[Tensor, " N"],
    stage: Int[Tensor, " N"],
) -> Float[Tensor, "N 1 P P"]:
    """Follow the probability flow from pure noise to pictures.

    DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one call of the network a step,
    deterministic, so that noise which changes a little gives a picture that changes a little. The
    angles of the noise levels fall as ``(1 - k / steps) ** SPACING``.
    """
    angles = [T_MAX * math.pi / 2 * (1 - k / steps) ** RHO for k in range(steps)]
    x, before, last = noise, None, 0.0
    for angle, following in itertools.zip_longest(angles, angles[1:]):
        level = torch.tensor([2 * angle / math.pi], device=x.device)
        velocity = painter(x, level, edge, brightness, stage)
        clean: Tensor = math.cos(angle) * x - math.sin(angle) * velocity
        if following is None:
            break
        # Step in the logarithm of signal over noise.
        step = math.log(math.tan(angle) / math.tan(following))
        ahead = clean if before is None else clean + (clean - before) * step / (2 * last)
        x = math.sin(following) / math.sin(angle) * x
        x = x + math.cos(following) * (1 - math.exp(-step)) * ahead
        before, last = clean, step
    return clean


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """How large the distilled network is, and the pictures that it draws."""

    patch: int = 64  # side of a picture in pixels, that of the painter; a multiple of 8
    narrow: int = 48  # side of the pictures of nuclei that fit into it; a multiple of 8
    floor: float = 0.012  # as in bvdm_data.synth.denoiser.DenoiserConfig
    # channels at 1/2, 1/4 and 1/8 of the picture's resolution
    channels: tuple[int, int, int] = (32, 64, 64)
    condition_channels: int = 64  # length of the embedding of brightness and stage

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


class Student(nn.Module, IntensityNorm):
    """Maps noise to the picture that the painter's probability flow ends in, in one call.

    That map is deterministic, so it can be learnt by regression on pairs (Luhman & Luhman 2021).
    The network has no normalisation: on a CPU that costs as much as the convolutions do.
    """

    def __init__(self, settings: StudentConfig | None = None) -> None:
        """Make the network, its weights drawn at random."""
        super().__init__()
        size = settings or StudentConfig()
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
        """Draw nuclei."""
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
        """Tell which outlines fit into a narrow picture, ``[N]`` bool."""
        return radii.amax(1) <= self.settings.narrow / 2 - PATCH_MARGIN


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
