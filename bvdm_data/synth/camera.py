"""Camera: background, blur, noise and rounding of a video, on any device of torch."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor

from bvdm_data.pixels import has_loops, run_loop
from bvdm_data.rng import draw_normal


@dataclass(frozen=True)
class CameraModel:
    """Background, blur and noise of the video, in grey values and pixels."""

    level: float  # mean background light of a frame
    level_spread: float  # standard deviation of that level over the video; it drifts slowly
    field_spread: float  # standard deviation of the slowly varying background over a frame
    field_width: float  # correlation length of that background, px
    noise: float  # standard deviation of the camera's noise
    # kernel that correlates the noise along rows, of unit energy, [k]
    streak: npt.NDArray[np.float64]
    halo: float  # standard deviation of the blur that surrounds nuclei with light, px
    offset: int  # camera count of grey value 0
    full: int  # camera count of grey value 1


CHUNK_PIXELS = 2**23
"""Pixels that a GPU exposes together; bounds the memory."""

Normal = Callable[[Sequence[int]], Tensor]
"""Draws standard normal numbers for a batch of videos, ``[B, *shape]``."""


def make_normal(seeds: Int[Tensor, " B"]) -> Normal:
    """Draw for each video from a stream with its own seed, on the device of the seeds."""
    used = 0  # blocks of numbers

    def draw(shape: Sequence[int]) -> Tensor:
        nonlocal used
        # Each entry of the first axis begins a block: frames may be drawn one by one or together.
        count = math.prod(shape[1:])
        blocks = used + -(-count // 4) * torch.arange(shape[0], device=seeds.device)
        used += -(-count // 4) * shape[0]
        streams = seeds.repeat_interleave(shape[0])
        return draw_normal(streams, blocks.repeat(len(seeds)), count).view(len(seeds), *shape)

    return draw


@torch.no_grad()
def expose(
    light: Float[Tensor, "B F H W"],
    camera: CameraModel,
    normal: Normal,
    *,
    noise: Float[Tensor, " B"],
    blur: Float[Tensor, "B T"] | None = None,
    glow: bool = False,
) -> None:
    """Blur light, add the background and the noise, and round to camera counts, in place.

    With ``glow`` nuclei are surrounded by light. Nothing here waits for the device.
    """
    frames, height, width = light.shape[1:]
    down = _make_field_matrix(camera.field_width, height, light.device)
    right = _make_field_matrix(camera.field_width, width, light.device)
    scale = camera.field_spread * 2 * math.sqrt(math.pi) * _get_grid(camera.field_width)[1]
    field = scale * (down @ normal((down.shape[1], right.shape[1])) @ right.T)[:, None]
    level = camera.level + camera.level_spread * normal((1, 1, 1))
    streak = _make_streak(tuple(camera.streak), light.device)
    halo = _make_halo(camera.halo, light.device)
    # A tensor: a GPU multiplies by the inverse of a number, which gives other last bits.
    steps = torch.full((), camera.full - camera.offset, dtype=light.dtype, device=light.device)
    # One frame after the other fits into a CPU's cache, and many into the memory of a GPU.
    chunk = 1 if light.device.type == "cpu" else max(1, CHUNK_PIXELS // light[:, 0].numel())
    for start in range(0, frames, chunk):
        lit = light[:, start : start + chunk]
        if blur is not None:
            lit = _convolve(_convolve(lit, blur, 2), blur, 3)
        if glow:
            # One-sided, as in the authors' scenes: light spreads, nuclei do not fade.
            lit = torch.maximum(lit, _convolve(_convolve(lit, halo, 2), halo, 3))
        white = normal((lit.shape[1], height, width))
        if has_loops() and light.device.type == "cpu":
            settings = torch.stack([noise, level.flatten(), steps.expand_as(noise)], 1)
            parts = (settings, white, lit.contiguous(), field, light[:, start])
            for one in zip(*parts, strict=True):
                run_loop("develop", height, width, streak.shape[1] // 2, streak, *one)
            continue
        seen = _convolve(white, streak, 3).mul_(noise[:, None, None, None])
        seen += lit + level
        seen += field
        counts = seen.mul_(steps).round_().clamp_(0, camera.full - camera.offset)
        light[:, start : start + chunk] = counts.div_(steps)


def make_gaussian_kernels(widths: Sequence[float]) -> Float[Tensor, "B T"] | None:
    """Return the kernels of Gaussian blurs, those of ``scipy.ndimage.gaussian_filter``."""
    if not any(widths):
        return None
    # scipy cuts a kernel off at 4 standard deviations.
    reach = max(int(4 * width + 0.5) for width in widths)
    kernels = np.zeros((len(widths), 2 * reach + 1))
    kernels[:, reach] = 1
    for row, width in zip(kernels, widths, strict=True):
        if width:
            row[:] = ndimage.gaussian_filter1d(row, width, mode="constant")
    return torch.from_numpy(kernels).float()


def _get_grid(field_width: float) -> tuple[int, float, int]:
    """Return step, correlation length and margin of the grid that the background is drawn on."""
    coarse = max(1, int(field_width // 4))
    return coarse, field_width / coarse, math.ceil(4 * field_width / coarse)


@functools.lru_cache(maxsize=16)
def _make_field_matrix(
    field_width: float, length: int, device: torch.device
) -> Float[Tensor, "L N"]:
    """Return the matrix that makes drawn numbers a smooth field along one axis."""
    coarse, width, pad = _get_grid(field_width)
    drawn = np.eye(math.ceil(length / coarse) + 2 + 2 * pad)
    smooth = ndimage.gaussian_filter1d(drawn, width, axis=0)[pad:-pad]
    fine = ndimage.zoom(smooth, (coarse, 1), order=1, grid_mode=True, mode="nearest")
    return torch.tensor(fine[:length], dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=16)
def _make_streak(kernel: tuple[float, ...], device: torch.device) -> Float[Tensor, "1 T"]:
    """Return how one bright pixel looks, whatever length the kernel has."""
    point = np.zeros(2 * len(kernel) + 1)
    point[len(kernel)] = 1
    response = ndimage.convolve1d(point, np.array(kernel))
    reach = int(np.abs(np.flatnonzero(response) - len(kernel)).max())
    kept = response[None, len(kernel) - reach : len(kernel) + reach + 1]
    return torch.tensor(kept, dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=16)
def _make_halo(width: float, device: torch.device) -> Float[Tensor, "1 T"]:
    kernel = make_gaussian_kernels([width])
    return (torch.ones(1, 1) if kernel is None else kernel).to(device)


def _convolve(
    videos: Float[Tensor, "B F H W"], kernels: Float[Tensor, "N T"], axis: int
) -> Float[Tensor, "B F H W"]:
    """Convolve along an axis; beyond its border a video continues as in a mirror.

    Written out, since a GPU may round what a convolution of its library multiplies to ten bits.
    """
    reach, length = kernels.shape[1] // 2, videos.shape[axis]
    wide = videos
    while (missing := reach - (wide.shape[axis] - length) // 2) > 0:
        # A video that is smaller than the kernel is mirrored several times.
        rim = min(missing, wide.shape[axis])
        before = wide.narrow(axis, 0, rim).flip(axis)
        after = wide.narrow(axis, wide.shape[axis] - rim, rim).flip(axis)
        wide = torch.cat([before, wide, after], axis)
    total = torch.zeros_like(videos)
    for number, weight in enumerate(kernels.unbind(1)):
        shifted = wide.narrow(axis, 2 * reach - number, length)
        total.addcmul_(shifted, weight[:, None, None, None])
    return total
