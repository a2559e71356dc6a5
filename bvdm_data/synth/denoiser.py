"""Denoiser and student: networks that draw a nucleus from outline, brightness and stage."""

import functools
import itertools
import math
import reprlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.clip import PHASES
from bvdm_data.pixels import has_loops, run_loop
from bvdm_data.synth.contours import find_vertices
from bvdm_data.validate import Rule

T_MAX = 0.995
"""Noise level at which sampling begins; at 1 there is no signal, and its logarithm is infinite."""

RHO = 1.5
"""Exponent of the spacing of noise levels: above 1, they are denser where little noise is left (our
choice, by the contrast and the edge profile of nuclei drawn in 4 steps)."""

PATCH_MARGIN = 3.0
"""Least distance in pixels between an outline and the border of its patch."""

SDF_CLIP = 8.0
"""Largest distance from the outline that the network sees, px; others are clipped to it."""


def check_network_config(config: Any, *, multiple: int, embedding: str, even: bool) -> None:
    """Refuse sizes that make no network; ``multiple`` is the rule for the numbers of channels."""
    for name, most in (("patch", 1024), (embedding, 4096), ("middle", 64)):
        Rule(int, most=most).check(name, getattr(config, name, 1))
    side = getattr(config, "patch", 16)
    if side < 16 or side % 8:
        raise ValueError(f"patch must be a multiple of 8 from 16 on, got {side}")
    Rule(float, above=0, most=1).check("floor", getattr(config, "floor", 1))
    for number in config.channels:
        Rule(int, most=4096).check("channels", number)
    if len(config.channels) != 3 or any(c < 1 or c % multiple for c in config.channels):
        rule = f"multiples of {multiple}" if multiple > 1 else "numbers above 0"
        raise ValueError(f"channels must be three {rule}, got {reprlib.repr(config.channels)}")
    Rule(int, least=1, most=16).check("pooling", getattr(config, "pooling", 1))
    length, least = getattr(config, embedding), Rule(int, least=1)
    if even and (length < 8 or length % 2):
        raise ValueError(f"{embedding} must be even and at least 8, got {length}")
    least.check(embedding, length)
    least.check("middle", getattr(config, "middle", 1))


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """How large the network is, and how it scales intensities."""

    patch: int = 64  # side of an image in pixels; a multiple of 8
    # images are divided by the root of brightness^2 + floor^2, in grey values; without the floor
    # the dimmest nuclei would be nothing but amplified noise
    floor: float = 0.012
    # channels at 1/2, 1/4 and 1/8 of the image's resolution; multiples of 16, since 8 groups of
    # one channel each would normalise the condition away
    channels: tuple[int, int, int] = (32, 64, 96)
    middle: int = 1  # residual blocks at the lowest resolution
    # pixels of the video along a side to one of the image; repr is what checkpoints are known by
    pooling: int = field(default=1, repr=False)
    condition_channels: int = 96  # length of the embedding of noise level, brightness and stage

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        check_network_config(self, multiple=16, embedding="condition_channels", even=True)


class _Block(nn.Module):
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


class _FilmBlock(nn.Module):
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
        hidden = F.silu(torch.addcmul(shift, self.conv1(x), 1 + scale), inplace=True)
        out: Tensor = self.conv2(hidden).add_(x)
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
            return _Block(inputs or outputs, outputs, t) if norm else _FilmBlock(outputs, t)

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
        return x if self.has_norm else F.silu(x, inplace=True)

    def _join(self, low: Tensor, skip: Tensor) -> Tensor:
        low = F.interpolate(low, scale_factor=2.0, mode="nearest")
        return torch.cat([low, skip], 1) if self.has_norm else F.silu(low.add_(skip), inplace=True)


def embed_timesteps(step: Int[Tensor, " M"], channels: int) -> Float[Tensor, "M C"]:
    """Embed a step as sines and cosines of geometric frequencies (Vaswani et al. 2017, 3.5)."""
    half = channels // 2
    rate = torch.exp(-math.log(10_000) * torch.arange(half, device=step.device) / (half - 1))
    angle = step.float()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


class _IntensityNorm:
    """How networks see intensities and the properties of a nucleus."""

    floor: float  # as in DenoiserConfig

    def make_conditioning(
        self, brightness: Float[Tensor, " N"], stage: Int[Tensor, " N"]
    ) -> Float[Tensor, "N C"]:
        """Concatenate the log brightness and the stage, one-hot."""
        light = (brightness.clamp(min=0) / self.floor).log1p()[:, None] - 2
        stages = F.one_hot(stage.long() + 1, len(PHASES) + 1)[:, 1:].float()
        return torch.cat([light, stages], 1)

    def normalize(
        self, light: Float[Tensor, "N P P"], brightness: Float[Tensor, " N"]
    ) -> Float[Tensor, "N 1 P P"]:
        """Scale light to the network's range: background -1, a bright nucleus about 1."""
        return (2 * light / self.get_scale(brightness)[:, None, None] - 1)[:, None]

    def denormalize(
        self, image: Float[Tensor, "N 1 P P"], brightness: Float[Tensor, " N"]
    ) -> Float[Tensor, "N P P"]:
        """Undo :meth:`normalize`."""
        return (image[:, 0] + 1) / 2 * self.get_scale(brightness)[:, None, None]

    def get_scale(self, brightness: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return the light of nuclei that is 2 in the network's range."""
        return (brightness.square() + self.floor**2).sqrt()


class Denoiser(UNetBackbone, _IntensityNorm):
    """Predicts the velocity of a noisy image of one nucleus, given its properties.

    These are the outline (as the distance of every pixel from it), the brightness and the stage.
    So image and label agree as they do in the video, and plates look like plates.
    """

    def __init__(self, settings: DenoiserConfig | None = None) -> None:
        """Make the network, its weights drawn at random."""
        size = settings or DenoiserConfig()
        t = size.condition_channels
        super().__init__(2, size.channels, t + 1 + len(PHASES), t, middle=size.middle)
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
        """Predict ``cos(a) noise - sin(a) image``, where ``a = level * pi / 2``.

        This is the v-parametrisation (Salimans & Ho 2022, section 4) on the angle of a
        variance-preserving schedule.
        """
        time = embed_timesteps(1000 * level.expand(len(noisy)), self.settings.condition_channels)
        condition = torch.cat([time, self.make_conditioning(brightness, stage)], 1)
        planes = torch.cat([noisy, edge], 1).contiguous(memory_format=torch.channels_last)
        return self.run(planes, condition)


def make_pixel_grid(height: int, width: int | None = None) -> Float[Tensor, "2 H W"]:
    """Return the offset (y, x) of every pixel from the middle of a patch or a square one, px."""
    lines = (torch.arange(side) - (side - 1) / 2 for side in (height, width or height))
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))


def compute_signed_distance_map(
    radii: Float[Tensor, "N K"], height: int, width: int | None = None
) -> Float[Tensor, "N 1 H W"]:
    """Return the scaled distance of pixels from outlines, along the ray from the centroid."""
    distance, vertex, share = _tabulate_pixels(height, width, radii.shape[1], radii.device)
    closed = torch.cat([radii, radii[:, :1]], 1)
    here = closed.index_select(1, vertex).view(-1, *share.shape)
    there = closed.index_select(1, vertex + 1).view(-1, *share.shape)
    outside: Tensor = distance - (here + share * (there - here))
    return (outside / SDF_CLIP).clamp(-1, 1)[:, None]


@functools.lru_cache(maxsize=16)
def _tabulate_pixels(
    height: int, width: int | None, count: int, device: torch.device
) -> list[Tensor]:
    """Return distance from the middle, vertex before and share towards the next of each pixel."""
    y, x = make_pixel_grid(height, width)
    vertex, share = find_vertices(y, x, count)
    return [part.to(device) for part in (torch.hypot(y, x), vertex.flatten(), share)]


def fit_to_patch_scale(
    radii: Float[Tensor, "N K"], patch: int, pooling: int = 1
) -> Float[Tensor, " N"]:
    """Return the factor by which outlines must shrink to be drawn, with their halo, on a patch."""
    return ((patch / 2 - PATCH_MARGIN) / radii.amax(1)).clamp(max=1 / pooling)


PATCH_SHARES = ((0.75, 0.625), (0.875, 0.75), (1.0, 1.0))
"""Height and width of a student's patches over the side of its teacher's (our choice: no other
three have fewer pixels for the nuclei of the HeLa video)."""


def group_by_patch_size(
    radii: Float[Tensor, "N K"], patch: int
) -> list[tuple[tuple[int, int], Int[Tensor, " M"]]]:
    """Group outlines by the smallest patch that holds them with their halo, height and width.

    The largest, a square of side ``patch``, has all the others.
    """
    angle = torch.arange(radii.shape[1]) * (2 * math.pi / radii.shape[1])
    reach = (radii[:, None] + SDF_CLIP) * torch.stack([angle.cos(), angle.sin()]).abs()
    left = torch.ones(len(radii), dtype=torch.bool)
    groups = []
    for shares in PATCH_SHARES:
        height, width = (max(16, 8 * math.ceil(share * patch / 8)) for share in shares)
        fits = (2 * reach.amax(2) <= torch.tensor([height, width])).all(1) | (width == patch)
        groups.append(((height, width), (left & fits).nonzero()[:, 0]))
        left &= ~fits
    return [(size, rows) for size, rows in groups if len(rows)]


def run_dpm_solver(
    denoiser: Denoiser,
    noise: Float[Tensor, "N 1 P P"],
    steps: int,
    edge: Float[Tensor, "N 1 P P"],
    brightness: Float[Tensor, " N"],
    stage: Int[Tensor, " N"],
) -> Float[Tensor, "N 1 P P"]:
    """Follow the probability flow from pure noise to images with DPM-Solver++(2M).

    Lu et al. 2022, algorithm 2: second order, one call of the network a step. It is deterministic,
    so noise that changes a little gives an image that changes a little. The angles of the noise
    levels fall as ``(1 - k / steps) ** RHO``.
    """
    angles = [T_MAX * math.pi / 2 * (1 - k / steps) ** RHO for k in range(steps)]
    x, before, last = noise, None, 0.0
    for angle, following in itertools.zip_longest(angles, angles[1:]):
        level = torch.full((1,), 2 * angle / math.pi, device=x.device)
        velocity = denoiser(x, level, edge, brightness, stage)
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
    """How large the one-step network is, and the images that it draws."""

    patch: int = 64  # side of the largest image in pixels, as in DenoiserConfig
    floor: float = 0.012  # as in DenoiserConfig
    # channels at 1/2, 1/4 and 1/8 of the image's resolution
    channels: tuple[int, int, int] = (16, 32, 32)
    pooling: int = field(default=1, repr=False)  # as in DenoiserConfig
    condition_channels: int = 64  # length of the embedding of brightness and stage

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        check_network_config(self, multiple=1, embedding="condition_channels", even=False)


_LANES = 16  # channels that the compiled loop works on together

_WINOGRAD = np.array(
    [
        [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
    ],
)  # fmt: skip
"""What makes kernels of 3 x 3 those of F(4 x 4, 3 x 3) (Lavin & Gray 2016)."""


def _apply_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer without a product of matrices, which a program may let torch round."""
    return (x[:, None] * weight).sum(2) + bias


class Student(UNetBackbone, _IntensityNorm):
    """Maps noise to the image at the end of the denoiser's probability flow, in one call.

    That map is deterministic, so it can be learnt by regression on pairs (Luhman & Luhman 2021).
    The network has no normalisation: on a CPU that costs as much as the convolutions do.
    """

    def __init__(self, settings: StudentConfig | None = None) -> None:
        """Make the network, its weights drawn at random."""
        size = settings or StudentConfig()
        super().__init__(2, size.channels, 1 + len(PHASES), size.condition_channels, norm=False)
        self.settings = size
        self.floor = size.floor
        self.kernels: Tensor | None = None  # as pack makes them

    def forward(
        self,
        noise: Float[Tensor, "N 1 P P"],
        edge: Float[Tensor, "N 1 P P"],
        brightness: Float[Tensor, " N"],
        stage: Int[Tensor, " N"],
    ) -> Float[Tensor, "N 1 P P"]:
        """Map noise to images of nuclei."""
        dtype, condition = self.inlet.weight.dtype, self.make_conditioning(brightness, stage)
        if self.kernels is not None and has_loops("paint") and noise.device.type == "cpu":
            for layer in self.embed:
                if isinstance(layer, nn.Linear):
                    condition = _apply_linear(condition, layer.weight, layer.bias)
                else:
                    condition = layer(condition)
            noise, edge = noise.contiguous(), edge.contiguous()
            image = torch.empty_like(noise)
            run_loop(
                "paint", len(noise), *noise.shape[2:], *self.wide, condition.shape[1],
                condition, self.films, noise, edge, self.kernels, image,
            )  # fmt: skip
            return image
        planes = torch.cat([noise, edge], 1).to(dtype, memory_format=torch.channels_last)
        return self.run(planes, condition.to(dtype))

    @torch.no_grad()
    def pack(self) -> None:
        """Prepare the compiled loop, which draws with the weights as they are now."""
        self.wide = [_LANES * math.ceil(number / _LANES) for number in self.settings.channels]
        films, kernels = [], []
        names = (
            "inlet down1.conv1 down1.conv2 shrink1 down2.conv1 down2.conv2 shrink2 middle.conv1 "
            "middle.conv2 grow2 up2.conv1 up2.conv2 grow1 up1.conv1 up1.conv2 outlet"
        )
        for name in names.split():
            conv: Any = self.get_submodule(name)
            outputs, inputs = (-number % _LANES for number in conv.weight.shape[:2])
            # Gains and shifts of all layers follow from the embedding and a 1.
            film = torch.zeros(2 * len(conv.bias), self.settings.condition_channels + 1)
            if name.endswith("conv1"):
                known: Any = self.get_submodule(name.replace("conv1", "known"))
                film = torch.cat([known.weight, known.bias[:, None]], 1)
            gain, shift = film.chunk(2)
            gain[:, -1] += 1
            shift += conv.bias[:, None] * gain
            films += [F.pad(part, (0, 0, 0, outputs)) for part in (gain, shift)]
            kernel = F.pad(conv.weight.double(), (0, 0, 0, 0, 0, inputs, 0, outputs))
            if conv.kernel_size == (3, 3) and conv.stride == (1, 1):
                # No product of torch's: where one is under way, a process must not be forked.
                made = np.einsum("ai,ncij,bj->ncab", _WINOGRAD, kernel.numpy(), _WINOGRAD)
                kernel = torch.from_numpy(made)
            kernels.append(kernel.permute(2, 3, 1, 0).flatten())
        self.films, self.kernels = torch.cat(films).T.contiguous(), torch.cat(kernels).float()
