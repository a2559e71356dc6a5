"""U-Nets, and diffusion with the one that predicts noise (DDPM)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def check_network_config(config: Any, *, multiple: int, embedding: str, even: bool) -> None:
    """Refuse sizes that make no network; ``multiple`` is the rule for the numbers of channels."""
    for name in ("patch", "small_patch"):
        side = getattr(config, name, 16)
        if side < 16 or side % 8:
            raise ValueError(f"{name} must be a multiple of 8 from 16 on, got {side}")
    if not getattr(config, "floor", 1) > 0:
        raise ValueError(f"floor must be above 0, got {config.floor}")
    if len(config.channels) != 3 or any(c < 1 or c % multiple for c in config.channels):
        rule = f"multiples of {multiple}" if multiple > 1 else "numbers above 0"
        raise ValueError(f"channels must be three {rule}, got {config.channels}")
    if getattr(config, "middle", 1) < 1:
        raise ValueError(f"middle must be at least 1, got {config.middle}")
    length = getattr(config, embedding)
    if even and (length < 8 or length % 2):
        raise ValueError(f"{embedding} must be even and at least 8, got {length}")
    if length < 1:
        raise ValueError(f"{embedding} must be at least 1, got {length}")


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


class Block(nn.Module):
    """Two convolutions with a shortcut; the embedding is added between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        """Make the block; at first its residual branch adds nothing."""
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(embedding, outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, D, H, W]``, given an embedding ``[N, T]``."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time(time)[:, :, None, None]
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))
        return out


class FilmBlock(nn.Module):
    """Two convolutions without norms; the embedding scales and shifts between them (FiLM)."""

    def __init__(self, channels: int, embedding: int) -> None:
        """Make the block; at first its residual branch adds nothing."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.known = nn.Linear(embedding, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for value in (*self.conv2.parameters(), *self.known.parameters()):
            nn.init.zeros_(value)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape, given an embedding ``[N, T]``."""
        scale, shift = self.known(time)[:, :, None, None].chunk(2, 1)
        hidden = F.silu(self.conv1(x) * (1 + scale) + shift)
        out: Tensor = x + self.conv2(hidden)
        return out


class UNetBackbone(nn.Module):
    """A lean U-Net behind a pixel-unshuffle by 2, with two skip connections and a condition.

    With ``norm`` it has group norms and concatenates skips; without, it has FiLM blocks and adds
    them, which is cheaper on a CPU.
    """

    def __init__(
        self,
        planes: int,
        channels: tuple[int, int, int],
        condition: int,
        embedding: int,
        *,
        middle: int = 1,
        norm: bool = True,
    ) -> None:
        """Make the network, its weights drawn at random."""
        super().__init__()
        a, b, c = channels
        t = embedding
        self.has_norm = norm

        def make_block(outputs: int, inputs: int | None = None) -> nn.Module:
            return Block(inputs or outputs, outputs, t) if norm else FilmBlock(outputs, t)

        self.embed = nn.Sequential(nn.Linear(condition, t), nn.SiLU(), nn.Linear(t, t), nn.SiLU())
        self.inlet = nn.Conv2d(4 * planes, a, 3, padding=1)
        self.down1 = make_block(a)
        self.shrink1 = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.down2 = make_block(b)
        self.shrink2 = nn.Conv2d(b, c, 3, stride=2, padding=1)
        # Model files name the single block of a network without norms by no number.
        self.middle = nn.ModuleList(make_block(c) for _ in range(middle)) if norm else make_block(c)
        self.grow2 = nn.Conv2d(c, b, 1)
        self.up2 = make_block(b, 2 * b)
        self.grow1 = nn.Conv2d(b, a, 1)
        self.up1 = make_block(a, 2 * a)
        self.norm = nn.GroupNorm(8, a) if norm else nn.Identity()
        self.outlet = nn.Conv2d(a, 4, 3, padding=1)

    def run(
        self, planes: Float[Tensor, "N P H W"], condition: Float[Tensor, "M K"]
    ) -> Float[Tensor, "N 1 H W"]:
        """Map planes to an image, given a condition; float32."""
        time = self.embed(condition)
        skip1 = self.down1(self._activate(self.inlet(F.pixel_unshuffle(planes, 2))), time)
        skip2 = self.down2(self._activate(self.shrink1(skip1)), time)
        low = self._activate(self.shrink2(skip2))
        for block in self.middle if isinstance(self.middle, nn.ModuleList) else [self.middle]:
            low = block(low, time)
        low = self.up2(self._join(self.grow2(low), skip2), time)
        low = self.up1(self._join(self.grow1(low), skip1), time)
        return F.pixel_shuffle(self.outlet(F.silu(self.norm(low))), 2).float()

    def _activate(self, x: Tensor) -> Tensor:
        # Blocks with norms have an activation of their own in front.
        return x if self.has_norm else F.silu(x)

    def _join(self, low: Tensor, skip: Tensor) -> Tensor:
        low = F.interpolate(low, scale_factor=2.0, mode="nearest")
        return torch.cat([low, skip], 1) if self.has_norm else F.silu(low + skip)


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


def embed_timesteps(step: Int[Tensor, " M"], channels: int) -> Float[Tensor, "M C"]:
    """Embed a step as sines and cosines of geometric frequencies (Vaswani et al. 2017, 3.5)."""
    half = channels // 2
    rate = torch.exp(-math.log(10_000) * torch.arange(half, device=step.device) / (half - 1))
    angle = step.float()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


NoisePredictor = Callable[[Tensor, Tensor], Tensor]
"""Predicts noise: ``(noisy [N, 1, H, W], step [N] or [1]) -> noise [N, 1, H, W]``."""


@dataclass(frozen=True)
class Schedule:
    """A table of noise levels (Ho et al. 2020)."""

    beta: Float[Tensor, " T"]  # variance added at each step, [T] float64
    # share of the image's variance left after each step, [T] float64
    alpha_bar: Float[Tensor, " T"]

    @property
    def steps(self) -> int:
        """Number of diffusion steps T."""
        return len(self.beta)


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
    network: NoisePredictor,
    noisy: Float[Tensor, "N 1 H W"],
    steps: int,
    schedule: Schedule,
    noise: Iterable[Float[Tensor, "N 1 H W"]],
) -> Float[Tensor, "N 1 H W"]:
    """Remove ``steps`` steps of noise, one by one (Ho et al. 2020, algorithm 2).

    The variance is taken from the forward process, as in the authors' code ("fixedlarge"); no
    noise is added after the last step.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"steps must be from 1 to {schedule.steps}, got {steps}")
    noise = iter(noise)
    x = noisy
    for index in range(steps - 1, -1, -1):
        beta, alpha_bar = float(schedule.beta[index]), float(schedule.alpha_bar[index])
        predicted = network(x, torch.tensor([index], device=x.device))
        x = (x - beta / math.sqrt(1 - alpha_bar) * predicted) / math.sqrt(1 - beta)
        if index:
            x = x + math.sqrt(beta) * next(noise)
    return x
