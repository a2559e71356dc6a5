"""Schedule: how noise is added to a picture, and how a network takes it away again."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NoisePredictor = Callable[[Tensor, Tensor], Tensor]
"""What predicts the noise: ``(noisy [N, 1, H, W], step [N] or [1]) -> noise [N, 1, H, W]``."""


@dataclass(frozen=True)
class Schedule:
    """A table of noise levels (Ho et al. 2020).

    Attributes:
        beta: Variance added at each step, ``[T]`` float64.
        alpha_bar: Share of the picture's variance left after each step, ``[T]`` float64.
    """

    beta: Float[Tensor, " T"]
    alpha_bar: Float[Tensor, " T"]

    @property
    def steps(self) -> int:
        """Number of diffusion steps T."""
        return len(self.beta)


def cosine_schedule(steps: int = 1000) -> Schedule:
    """Return the cosine schedule that the authors use.

    Nichol & Dhariwal 2021, equation 17 with s = .008, each beta kept within [1e-4, .9999] (the
    authors' code). After 10 and 200 of 1,000 steps the noise has a standard deviation of .032
    and .319.

    Args:
        steps: T; the authors' code has 1,000.

    Returns:
        The table of T noise levels.

    Examples:
        >>> sigma = (1 - cosine_schedule().alpha_bar).sqrt()
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
    """Noise pictures as ``step + 1`` steps of the forward process would (Ho et al. 2020, eq. 4).

    Args:
        clean: Pictures without noise.
        noise: Standard normal numbers.
        step: Index of the step from 0, one for each picture or one for all.
        schedule: The noise levels.

    Returns:
        The noisy pictures.
    """
    kept = schedule.alpha_bar[step.cpu()].to(clean.device)[:, None, None, None]
    return kept.sqrt().to(clean.dtype) * clean + (1 - kept).sqrt().to(clean.dtype) * noise


def denoise_ancestral(
    network: NoisePredictor,
    noisy: Float[Tensor, "N 1 H W"],
    steps: int,
    schedule: Schedule,
    noise: Iterable[Float[Tensor, "N 1 H W"]],
) -> Float[Tensor, "N 1 H W"]:
    """Take ``steps`` steps of noise away again, one by one (Ho et al. 2020, algorithm 2).

    The variance is that of the forward process, as in the authors' code ("fixedlarge"); no noise
    is added after the last step.

    Args:
        network: Predicts the noise.
        noisy: Pictures noised by :func:`add_noise` with step ``steps - 1``.
        steps: How many steps to go back, from 1 to T.
        schedule: The noise levels.
        noise: At least ``steps - 1`` sets of standard normal numbers.

    Returns:
        The denoised pictures, not clipped.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"steps must be from 1 to {schedule.steps}, got {steps}")
    fresh = iter(noise)
    x = noisy
    for index in range(steps - 1, -1, -1):
        beta, alpha_bar = float(schedule.beta[index]), float(schedule.alpha_bar[index])
        predicted = network(x, torch.tensor([index], device=x.device))
        x = (x - beta / math.sqrt(1 - alpha_bar) * predicted) / math.sqrt(1 - beta)
        if index:
            x = x + math.sqrt(beta) * next(fresh)
    return x
