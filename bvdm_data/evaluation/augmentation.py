"""Augmentation: what is done to a training sample; the same for all arms, but for one."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from bvdm_data.evaluation.extras import need

DARK = 0.07
"""Grey value below which a gain does not reach: about that of empty background in video 01."""

LEAST_AREA = 20
"""Smallest part of a nucleus, in pixels, that stays a label after :func:`strong`."""

Sample = tuple[Float[Tensor, "1 H W"], Int[Tensor, "H W"]]
"""Image, grey values, and labels, instance ids with 0 in the background."""


def plain(
    image: Float[Tensor, "1 H W"], labels: Int[Tensor, "H W"], generator: torch.Generator
) -> Sample:
    """Apply one of the eight symmetries of the square, and a gain of the light of 0.8 to 1.25.

    Args:
        image: Grey values in [0, 1].
        labels: Instance ids.
        generator: Decides.

    Returns:
        Image and labels, changed alike; height and width may change places.
    """
    turns, mirrored = _whole(4, generator), _whole(2, generator)
    gain = _log_uniform(0.8, 1.25, generator)
    lit = (image - DARK) * gain + DARK
    return _symmetric(lit, turns, mirrored), _symmetric(labels, turns, mirrored)


def strong(
    image: Float[Tensor, "1 H W"], labels: Int[Tensor, "H W"], generator: torch.Generator
) -> Sample:
    """Do what a careful user of few real images would do.

    Any rotation, mirroring, a scale of 0.75 to 1.33, an elastic deformation of up to some pixels
    (smooth over 32 px), contrast 0.6 to 1.6 and brightness -0.01 to 0.02, gamma 0.8 to 1.25; with
    a chance of 1 in 2 a Gaussian blur of 0.3 to 1.2 px; Gaussian noise of up to 0.006. Beyond the
    edge the picture is mirrored; every connected part of a nucleus is an instance of its own.

    Args:
        image: Grey values in [0, 1].
        labels: Instance ids.
        generator: Decides.

    Returns:
        Image, which noise may take a little out of [0, 1], and labels, int32, numbered from 1;
        both changed alike and of the shape that came.

    Raises:
        ModuleNotFoundError: If scikit-image is missing.
    """
    grid = _deformed_grid(image.shape[1:], generator)
    moved = F.grid_sample(
        image[None], grid, "bilinear", padding_mode="reflection", align_corners=False
    )[0]
    names = F.grid_sample(
        labels[None, None].float(), grid, "nearest", padding_mode="reflection", align_corners=False
    )
    changed = _relit(moved, generator)
    parts = need("skimage.measure").label(names[0, 0].int().numpy(), connectivity=1)
    areas = np.bincount(parts.ravel())
    large = areas >= LEAST_AREA
    large[0] = False
    return changed, torch.from_numpy((np.cumsum(large) * large)[parts].astype(np.int32))


def _deformed_grid(size: torch.Size, generator: torch.Generator) -> Float[Tensor, "1 H W 2"]:
    """Return where every pixel looks, in units of half the picture, ``(x, y)``."""
    height, width = size
    angle = 2 * math.pi * float(torch.rand((), generator=generator))
    scale = _log_uniform(0.75, 1.33, generator)
    mirror = 1 - 2 * _whole(2, generator)
    y = torch.arange(height) - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    y, x = torch.meshgrid(y, x, indexing="ij")
    turned_y = (math.cos(angle) * y + math.sin(angle) * x) / scale
    turned_x = mirror * (-math.sin(angle) * y + math.cos(angle) * x) / scale
    coarse = torch.randn(1, 2, height // 32 + 2, width // 32 + 2, generator=generator)
    amount = 3 * float(torch.rand((), generator=generator))
    bend = amount * F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0]
    return torch.stack(
        [(turned_x + bend[0]) / (width / 2), (turned_y + bend[1]) / (height / 2)], -1
    )[None]


def _relit(image: Float[Tensor, "1 H W"], generator: torch.Generator) -> Float[Tensor, "1 H W"]:
    contrast = _log_uniform(0.6, 1.6, generator)
    brightness = -0.01 + 0.03 * float(torch.rand((), generator=generator))
    gamma = _log_uniform(0.8, 1.25, generator)
    lit = ((image - DARK) * contrast + DARK + brightness).clamp(0, 1)
    # Gamma bends the curve about the background, so that dim nuclei stay above it.
    lit = DARK + torch.sign(lit - DARK) * (lit - DARK).abs() ** gamma
    blur = 0.3 + 0.9 * float(torch.rand((), generator=generator))
    if _whole(2, generator):
        lit = transforms.gaussian_blur(lit, [7, 7], [blur, blur])
    noise = 0.006 * float(torch.rand((), generator=generator))
    return lit + noise * torch.randn(lit.shape, generator=generator)


def _symmetric(values: Tensor, turns: int, mirrored: int) -> Tensor:
    turned = torch.rot90(values, turns, (-2, -1))
    return (turned.flip(-1) if mirrored else turned).contiguous()


def _whole(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def _log_uniform(low: float, high: float, generator: torch.Generator) -> float:
    return math.exp(
        float(torch.empty(()).uniform_(math.log(low), math.log(high), generator=generator))
    )
