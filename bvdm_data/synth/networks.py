"""U-Net of the paper: it predicts noise, and diffusion with it draws images (DDPM)."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.synth.denoiser import UNetBackbone, check_network_config, embed_timesteps


@dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """How large the U-Net is.

    The authors' network (0.90 M parameters, 1.85 GFLOP a 96 x 96 image) spends half its arithmetic
    on 128 channels at half resolution; ours puts a pixel-unshuffle in front instead.
    """

    # channels at 1/2, 1/4 and 1/8 of the image's resolution; multiples of 8
    channels: tuple[int, int, int] = (32, 64, 128)
    middle: int = 2  # residual blocks at the lowest resolution
    time_channels: int = 128  # length of the embedding of the diffusion step

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        check_network_config(self, multiple=8, embedding="time_channels", even=True)


class UNet(UNetBackbone):
    """Predicts the noise in an image of one nucleus."""

    def __init__(self, settings: UNetSettings | None = None) -> None:
        """Make the network, its weights drawn at random."""
        size = settings or UNetSettings()
        t = size.time_channels
        super().__init__(1, size.channels, t, t, middle=size.middle)
        self.settings = size

    def forward(
        self, x: Float[Tensor, "N 1 H W"], step: Int[Tensor, " M"]
    ) -> Float[Tensor, "N 1 H W"]:
        """Predict the noise that was added."""
        return self.run(x, embed_timesteps(step, self.settings.time_channels))


@dataclass(frozen=True)
class Schedule:
    """A table of noise levels (Ho et al. 2020)."""

    beta: Float[Tensor, " T"]  # variance added at each step, float64
    alpha_bar: Float[Tensor, " T"]  # share of the image's variance left after each step


def make_cosine_schedule(steps: int = 1000) -> Schedule:
    """Return the authors' schedule: Nichol & Dhariwal 2021, equation 17 with s = .008.

    Each beta is kept within [1e-4, .9999] (the authors' code). After 10 and 200 of 1,000 steps the
    noise has a standard deviation of .032 and .319.

    Examples:
        >>> sigma = (1 - make_cosine_schedule().alpha_bar).sqrt()
        >>> round(float(sigma[9]), 3), round(float(sigma[199]), 3)
        (0.032, 0.319)
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    level = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - level[1:] / level[:-1]).clamp(1e-4, 0.9999)
    return Schedule(beta, (1 - beta).cumprod(0))


def add_noise(
    clean: Float[Tensor, "N 1 H W"],
    noise: Float[Tensor, "N 1 H W"],
    step: Int[Tensor, " M"],
    schedule: Schedule,
) -> Float[Tensor, "N 1 H W"]:
    """Add the noise of ``step + 1`` steps of the forward process (Ho et al. 2020, eq. 4)."""
    kept = schedule.alpha_bar[step.cpu()].to(clean.device)[:, None, None, None]
    return kept.sqrt().to(clean.dtype) * clean + (1 - kept).sqrt().to(clean.dtype) * noise


def sample_ddpm(
    network: Callable[[Tensor, Tensor], Tensor],
    noisy: Float[Tensor, "N 1 H W"],
    steps: int,
    schedule: Schedule,
    noise: Iterable[Float[Tensor, "N 1 H W"]],
) -> Float[Tensor, "N 1 H W"]:
    """Remove ``steps`` steps of noise, one by one (Ho et al. 2020, algorithm 2).

    The variance is taken from the forward process, as in the authors' code ("fixedlarge"); no
    noise is added after the last step.
    """
    if not 1 <= steps <= len(schedule.beta):
        raise ValueError(f"steps must be from 1 to {len(schedule.beta)}, got {steps}")
    noise, x = iter(noise), noisy
    for index in range(steps - 1, -1, -1):
        beta, alpha_bar = float(schedule.beta[index]), float(schedule.alpha_bar[index])
        predicted = network(x, torch.tensor([index], device=x.device))
        x = (x - beta / math.sqrt(1 - alpha_bar) * predicted) / math.sqrt(1 - beta)
        if index:
            x = x + math.sqrt(beta) * next(noise)
    return x


FLOW_SIZE = 96
"""Side in pixels of the patches that FlowNet works on."""


class FlowNet(nn.Module):
    """Predicts the flow that carries one mask onto the next: a VoxelMorph U-Net in 2D.

    The paper's flow prediction model (section 2, FPMs; Balakrishnan et al. 2019), with the 116,370
    parameters of the authors' network. The displacement is not integrated.
    """

    def __init__(self) -> None:
        """Make the network; its flow is next to zero until it is trained."""
        super().__init__()
        conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1)
        self.encoder = nn.ModuleList(conv(c, 32) for c in (2, 32, 32, 32))
        self.decoder = nn.ModuleList(conv(c, 32) for c in (32, 64, 64, 64))
        self.last = nn.ModuleList([conv(64, 32), conv(32, 16)])
        self.flow = conv(16, 2)
        # On the meta device there is nothing to draw, and PyTorch would import its compiler.
        if not self.flow.weight.is_meta:
            nn.init.normal_(self.flow.weight, std=1e-5)  # so that training starts at no flow
        nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]

    def forward(
        self, source: Float[Tensor, "N 1 H W"], target: Float[Tensor, "N 1 H W"]
    ) -> Float[Tensor, "N 2 H W"]:
        """Predict the backward flow, from the target to the source, in pixels."""
        x = torch.cat([source, target], 1)
        skips = []
        for block in self.encoder:
            x = F.leaky_relu(block(x), 0.2)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        for block in self.decoder:
            x = F.leaky_relu(block(x), 0.2)
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = torch.cat([x, skips.pop()], 1)
        for block in self.last:
            x = F.leaky_relu(block(x), 0.2)
        # Displacements of several pixels need more digits than bfloat16 has.
        with torch.autocast(x.device.type, enabled=False):
            flow: Tensor = self.flow(x.float())
        return flow


def warp(
    image: Float[Tensor, "N C H W"], flow: Float[Tensor, "N 2 H W"]
) -> Float[Tensor, "N C H W"]:
    """Move an image along a backward flow, with bilinear interpolation.

    Output pixel ``p`` is read at ``p + flow[p]``; reads past the border repeat the border.

    Source: Yilmaz et al. 2024, section 2, "Inference".

    Examples:
        >>> square = torch.zeros(1, 1, 5, 5)
        >>> square[..., 1, 2] = 1
        >>> up = torch.zeros(1, 2, 5, 5)
        >>> up[:, 0] = -1  # look one row up, so the dot goes one row down
        >>> warp(square, up).nonzero().tolist()
        [[0, 0, 2, 2]]
    """
    # Imported here: kornia takes longer to import than the rest of the package.
    from kornia.geometry.transform import remap

    count, _, height, width = image.shape
    if flow.shape != (count, 2, height, width):
        raise ValueError(
            "flow must hold one (dy, dx) in pixels for every pixel of image: "
            f"expected shape {(count, 2, height, width)}, got {tuple(flow.shape)}"
        )
    y = torch.arange(height, device=image.device)[:, None] + flow[:, 0]
    x = torch.arange(width, device=image.device)[None, :] + flow[:, 1]
    warped: Tensor = remap(
        image, x.to(image.dtype), y.to(image.dtype), padding_mode="border", align_corners=True
    )
    return warped


def invert_flow(flow: Float[Tensor, "N 2 H W"]) -> Float[Tensor, "N 2 H W"]:
    """Turn a backward flow into the forward one: where does a pixel of frame f go?

    Solves ``v(p) = -u(p + v(p))`` by a fixed-point iteration (Chen et al. 2008) with half steps.
    Whole steps would not converge where the flow stretches the rim of a nucleus to more than twice
    its width, as FlowNet's often does.
    """
    forward = -flow
    for _ in range(24):
        forward = 0.5 * (forward - warp(flow, forward))
    return forward
