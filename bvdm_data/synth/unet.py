"""U-Net of the paper: it predicts noise, and diffusion with it draws images (DDPM)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
