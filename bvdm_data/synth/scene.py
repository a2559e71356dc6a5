"""Scene: many painted nuclei on one background, seen by one camera; picture and labels agree."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.synth.flow import invert
from bvdm_data.synth.motion import Trajectory
from bvdm_data.synth.shapes import radius_towards, rasterise

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Spot:
    """One nucleus in one frame: which pixels of the picture it may cover.

    Attributes:
        row: Index of the nucleus among the paths.
        window: The part of the picture, rows and columns.
        y: Offset of each pixel along the nucleus' major axis, ``[h, w]`` px.
        x: Offset across it.
        inside: Which pixels lie within the outline, ``[h, w]`` bool.
        edge: Distance of each pixel from the centroid less that of the outline, ``[h, w]`` px.
    """

    row: int
    window: tuple[slice, slice]
    y: Tensor
    x: Tensor
    inside: Tensor
    edge: Tensor


def spots(paths: Sequence[Trajectory], frame: int, size: tuple[int, int]) -> Iterator[Spot]:
    """Find the pixels of every nucleus that is there in a frame, from the deepest up.

    Args:
        paths: All nuclei.
        frame: Which frame.
        size: Height and width of the picture.

    Yields:
        One spot for each nucleus with a pixel in the picture.
    """
    here = [r for r, p in enumerate(paths) if p.life.first <= frame <= p.life.last]
    for row in sorted(here, key=lambda r: paths[r].depth):
        path = paths[row]
        moment = frame - path.life.first
        radii = torch.from_numpy(path.life.radii[moment]).float()[None]
        centre, turn = path.centres[moment], float(path.turns[moment])
        window = _window(centre, math.ceil(float(radii.max())) + 1, size)
        if window is None:
            continue
        y, x = _own_coordinates(window, centre, turn)
        inside = rasterise(radii, y[None], x[None])[0]
        if bool(inside.any()):
            edge = y.hypot(x) - radius_towards(radii, y[None], x[None])[0]
            yield Spot(row, window, y, x, inside, edge)


def lighten(
    paths: Sequence[Trajectory],
    labels: Labels,
    texture: Float[Tensor, "N F P P"],
    mask_level: float,
) -> npt.NDArray[np.float32]:
    """Put the painted nuclei in their places, each where its label is.

    Textures are scaled to the brightness of the nucleus, and blurred in a band of 2 px along the
    outline (authors' code).

    Args:
        paths: All nuclei.
        labels: Identities, ``[F, H, W]``.
        texture: Relative light of each nucleus, in its own orientation.
        mask_level: Relative light of a nucleus of mean brightness.

    Returns:
        Light above the background, grey values, ``[F, H, W]``.
    """
    light = np.zeros(labels.shape, np.float32)
    for frame in range(len(labels)):
        for spot in spots(paths, frame, labels.shape[1:]):
            life = paths[spot.row].life
            seen = labels[frame][spot.window] == life.identity
            if not seen.any():
                continue
            picture = texture[spot.row, frame].clamp(min=0)
            layers = torch.stack([picture, _blurred(picture)])
            sharp, soft = _sample(layers, spot)
            grey = torch.where(spot.edge.abs() <= 1, soft, sharp)
            grey *= float(life.brightness[frame - life.first]) / mask_level
            light[frame][spot.window][seen] = grey.numpy()[seen]
    return light


def _window(
    centre: npt.NDArray[np.float64], reach: int, size: Sequence[int]
) -> tuple[slice, slice] | None:
    """Return the rows and columns of a picture around a centre; None where there are none."""
    sides = [
        slice(max(0, math.floor(c) - reach), max(0, min(n, math.floor(c) + reach + 2)))
        for c, n in zip(centre, size, strict=True)
    ]
    return None if any(side.start >= side.stop for side in sides) else (sides[0], sides[1])


def _own_coordinates(
    window: tuple[slice, slice], centre: npt.NDArray[np.float64], turn: float
) -> tuple[Tensor, Tensor]:
    """Return the offset of every pixel of a window along a nucleus' major axis, and across it."""
    dy = torch.arange(window[0].start, window[0].stop)[:, None] - float(centre[0])
    dx = torch.arange(window[1].start, window[1].stop)[None] - float(centre[1])
    y = math.cos(turn) * dy + math.sin(turn) * dx
    x = -math.sin(turn) * dy + math.cos(turn) * dx
    return y, x


def _blurred(picture: Float[Tensor, "P P"], width: float = 1.0) -> Float[Tensor, "P P"]:
    blurred: Tensor = torch.from_numpy(ndimage.gaussian_filter(picture.numpy(), width))
    return blurred


def _sample(layers: Float[Tensor, "C P P"], spot: Spot) -> Tensor:
    """Read patches at the pixels of a spot; the centroid is the middle of the patch."""
    half = layers.shape[-1] / 2
    grid = torch.stack([spot.x, spot.y], -1)[None] / half
    read = F.grid_sample(layers[None], grid, padding_mode="border", align_corners=False)
    return read[0]


def displace(
    paths: Sequence[Trajectory], labels: Labels, flow: Float[Tensor, "N E 2 P P"]
) -> npt.NDArray[np.float32]:
    """Follow every pixel of a nucleus into the next frame.

    The flow that moved the texture is inverted, and the nucleus' turn and step are added.

    Args:
        paths: All nuclei.
        labels: Identities, ``[F, H, W]``.
        flow: Backward flow of each nucleus, in its own orientation.

    Returns:
        Displacement ``(dy, dx)`` in pixels, ``[F - 1, 2, H, W]``; 0 in the background and where
        the nucleus is not seen in the next frame.
    """
    frames, *size = labels.shape
    moved = np.zeros((frames - 1, 2, *size), np.float32)
    for frame in range(frames - 1):
        for spot in spots(paths, frame, labels.shape[1:]):
            path = paths[spot.row]
            seen = labels[frame][spot.window] == path.life.identity
            if not seen.any() or path.life.identity not in labels[frame + 1]:
                continue
            along, across = _sample(invert(flow[spot.row, frame, None])[0], spot)
            y, x = spot.y + along, spot.x + across
            moment = frame + 1 - path.life.first
            turn, centre = float(path.turns[moment]), path.centres[moment]
            rows = torch.arange(spot.window[0].start, spot.window[0].stop)[:, None]
            columns = torch.arange(spot.window[1].start, spot.window[1].stop)[None]
            dy = math.cos(turn) * y - math.sin(turn) * x + float(centre[0]) - rows
            dx = math.sin(turn) * y + math.cos(turn) * x + float(centre[1]) - columns
            place = moved[frame][(slice(None), *spot.window)]
            place[:, seen] = torch.stack([dy, dx]).numpy()[:, seen]
    return moved


@dataclass(frozen=True)
class CameraModel:
    """Background, blur and noise of the video, in grey values and pixels.

    Attributes:
        level: Mean background light of a frame.
        level_spread: Standard deviation of that level over the video; it drifts slowly.
        field_spread: Standard deviation of the slowly varying background over a frame.
        field_width: Correlation length of that background, px.
        noise: Standard deviation of the camera's noise.
        streak: Kernel that correlates the noise along rows, of unit energy, ``[k]``.
        halo: Standard deviation of the blur that surrounds nuclei with light, px.
        offset: Camera count of grey value 0.
        full: Camera count of grey value 1.
    """

    level: float
    level_spread: float
    field_spread: float
    field_width: float
    noise: float
    streak: npt.NDArray[np.float64]
    halo: float
    offset: int
    full: int


def expose(
    light: npt.NDArray[np.float32],
    camera: CameraModel,
    generator: np.random.Generator,
    *,
    glow: bool = True,
) -> npt.NDArray[np.float32]:
    """Add the glow around the nuclei, the background and the noise; round to camera counts.

    Args:
        light: Light of the nuclei above the background, grey values, ``[F, H, W]``.
        camera: Measured from the video.
        generator: Where the random numbers come from.
        glow: Whether the blur that surrounds nuclei is to be added; not where they were painted
            with it.

    Returns:
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


def field_grid(camera: CameraModel) -> tuple[int, float, int]:
    """Return on what grid the background is drawn.

    Args:
        camera: Measured from the video.

    Returns:
        Pixels between two points of it; correlation length of the background in such steps; how
        many points lie around the picture on each side.
    """
    coarse = max(1, int(camera.field_width // 4))
    return coarse, camera.field_width / coarse, math.ceil(4 * camera.field_width / coarse)


def _smooth_field(
    size: Sequence[int], camera: CameraModel, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw a smooth random field of the video's spread and width, ``[H, W]``."""
    coarse, width, pad = field_grid(camera)
    drawn = generator.standard_normal([math.ceil(n / coarse) + 2 + 2 * pad for n in size])
    smooth = ndimage.gaussian_filter(drawn, width) * (2 * math.sqrt(math.pi) * width)
    smooth = smooth[pad:-pad, pad:-pad]
    fine = ndimage.zoom(smooth, coarse, order=1, grid_mode=True, mode="nearest")
    field: npt.NDArray[np.float64] = camera.field_spread * fine[: size[0], : size[1]]
    return field
