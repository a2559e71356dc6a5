"""Scene: many painted nuclei on one background, seen by one camera; picture and labels agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from bvdm_data.rng import torch_rng


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


def expose(
    light: npt.NDArray[np.float32],
    camera: CameraModel,
    generator: np.random.Generator,
    *,
    glow: bool = True,
) -> npt.NDArray[np.float32]:
    """Add the glow around the nuclei, the background and the noise; round to camera counts.

    Grey values in [0, 1] that are whole counts of the camera, ``[F, H, W]``.
    """
    frames, size = len(light), light.shape[1:]
    field = _smooth_field(size, camera, generator)
    level = camera.level + camera.level_spread * float(generator.standard_normal())
    seen = np.empty_like(light)
    white, noise = np.empty((2, *size))
    for frame in range(frames):
        lit = light[frame]
        if glow:
            # One-sided, as in the authors' scenes: light spreads, nuclei do not fade.
            lit = np.maximum(lit, ndimage.gaussian_filter(lit, camera.halo))
        generator.standard_normal(out=white)
        ndimage.convolve1d(white, camera.streak, axis=1, output=noise)
        noise *= camera.noise
        noise += lit + level + field
        seen[frame] = noise
    steps = camera.full - camera.offset
    seen *= steps
    np.rint(seen, out=seen)
    np.clip(seen, 0, steps, out=seen)
    seen /= steps
    return seen.astype(np.float32, copy=False)


def get_background_grid(camera: CameraModel) -> tuple[int, float, int]:
    """Return on what grid the background is drawn."""
    coarse = max(1, int(camera.field_width // 4))
    return coarse, camera.field_width / coarse, math.ceil(4 * camera.field_width / coarse)


def _smooth_field(
    size: Sequence[int], camera: CameraModel, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw a smooth random field of the video's spread and width, ``[H, W]``."""
    coarse, width, pad = get_background_grid(camera)
    drawn = generator.standard_normal([math.ceil(n / coarse) + 2 + 2 * pad for n in size])
    smooth = ndimage.gaussian_filter(drawn, width) * (2 * math.sqrt(math.pi) * width)
    smooth = smooth[pad:-pad, pad:-pad]
    fine = ndimage.zoom(smooth, coarse, order=1, grid_mode=True, mode="nearest")
    field: npt.NDArray[np.float64] = camera.field_spread * fine[: size[0], : size[1]]
    return field


class TorchCamera:
    """Does with torch what :func:`bvdm_data.synth.camera.expose` does with numpy, without glow.

    The numbers that are drawn are others, their distribution is the same. Nothing that is done
    with a film waits for the device.

    ``draws``: How many normal numbers a film needs
    """

    def __init__(
        self, camera: CameraModel, frames: int, size: tuple[int, int], device: torch.device
    ) -> None:
        """Bring what all films share to the device."""
        self.camera = camera
        self.device = device
        self._down, self._right = (
            torch.from_numpy(_field_matrix(camera, length)).float().to(device) for length in size
        )
        # How one bright pixel looks, whatever length the kernel has.
        middle = len(camera.streak)
        point = np.zeros(2 * middle + 1)
        point[middle] = 1
        self._streak = _taps(ndimage.convolve1d(point, camera.streak)).to(device)
        _, width, _ = get_background_grid(camera)
        self._spread = camera.field_spread * 2 * math.sqrt(math.pi) * width
        # A tensor: a GPU multiplies by the inverse of a number, which gives other last bits.
        self._steps = torch.tensor(float(camera.full - camera.offset), device=device)
        self._shares = (
            1, self._down.shape[1] * self._right.shape[1], frames * size[0] * size[1],
        )  # fmt: skip
        self.draws = sum(self._shares)

    def draw(self, seeds: Sequence[int]) -> Float[Tensor, "B D"]:
        """Draw the normal numbers of films, each a function of its seed on a kind of device."""
        drawn = torch.empty(len(seeds), self.draws, device=self.device)
        for row, seed in zip(drawn, seeds, strict=True):
            row.normal_(generator=torch.Generator(self.device).manual_seed(seed))
        return drawn

    @torch.no_grad()
    def expose(
        self,
        light: Float[Tensor, "B F H W"],
        drawn: Float[Tensor, "B D"],
        noise: Float[Tensor, " B"],
        blur: Float[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B F H W"]:
        """Blur light, add the background and the noise; round to camera counts."""
        if blur is not None:
            light = _convolved(_convolved(light, blur, 2), blur, 3)
        level, field, white = torch.split(drawn, list(self._shares), 1)
        field = field.view(len(light), self._down.shape[1], -1)
        ground = self._spread * (self._down @ field @ self._right.T)
        ground += self.camera.level + self.camera.level_spread * level[:, :, None]
        seen = _convolved(white.view_as(light), self._streak, 3)
        seen *= noise[:, None, None, None]
        seen += light
        seen += ground[:, None]
        steps = self.camera.full - self.camera.offset
        return seen.mul_(steps).round_().clamp_(0, steps).div_(self._steps)


def derive_camera_seed(seed: int, name: tuple[str | int, ...]) -> int:
    """Return the seed of what the camera draws for a film."""
    return torch_rng(seed, *name, "camera").initial_seed()


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


def _field_matrix(camera: CameraModel, length: int) -> np.ndarray:
    """Return what drawn numbers must be multiplied by along one axis to be a smooth field."""
    coarse, width, pad = get_background_grid(camera)
    drawn = np.eye(math.ceil(length / coarse) + 2 + 2 * pad)
    smooth = ndimage.gaussian_filter1d(drawn, width, axis=0)[pad:-pad]
    fine = ndimage.zoom(smooth, (coarse, 1), order=1, grid_mode=True, mode="nearest")
    return np.asarray(fine[:length])


def _taps(kernel: np.ndarray) -> Float[Tensor, "1 T"]:
    return torch.from_numpy(kernel).float()[None]


def _convolved(
    films: Float[Tensor, "B F H W"], taps: Float[Tensor, "N T"], axis: int
) -> Float[Tensor, "B F H W"]:
    """Convolve along an axis, films going on beyond their border as in a mirror.

    Written out, since a GPU may round what a convolution of its library multiplies to ten bits.
    """
    reach, length = taps.shape[1] // 2, films.shape[axis]
    place = torch.arange(-reach, length + reach, device=films.device) % (2 * length)
    wide = films.index_select(axis, torch.where(place < length, place, 2 * length - 1 - place))
    out = torch.zeros_like(films)
    for number, tap in enumerate(taps.unbind(1)):
        shifted = wide.narrow(axis, 2 * reach - number, length)
        out.addcmul_(shifted, tap[:, None, None, None])
    return out
