"""Background: the light between the nuclei, and the camera's noise, measured on empty places."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from bvdm_data.fitting.video import empty_places

WIDTH = 32
"""Standard deviation of the Gaussian mean that is the local background, pixels; as
:func:`bvdm_data.fitting.video.background_light` has it."""

LAGS = (1, 2, 4)
"""Distances at which the noise is correlated, pixels."""

NOISE_KEYS = tuple(f"{axis} at {lag}" for axis in ("rows", "columns") for lag in LAGS)
"""Names of the noise's correlations along rows and columns, with the distance in pixels."""

_BLOCK = 4  # side of the blocks that the background is averaged over first, px
_COARSE = 8.0  # what varies over this many pixels and more is background, not noise

Array = npt.NDArray[np.float64]


def local_background(
    grey: npt.NDArray[np.float32], masks: npt.NDArray[np.integer]
) -> npt.NDArray[np.float32]:
    """Estimate the background under the nuclei by a Gaussian mean of what lies between them.

    The same as :func:`bvdm_data.fitting.video.background_light` to some per mille, but averaged
    over blocks of 4 x 4 pixels first, which takes a tenth of the time.

    Args:
        grey: A frame in [0, 1], ``[H, W]``.
        masks: Its nuclei, 0 in the background, ``[H, W]``.

    Returns:
        Grey values, ``[H, W]``.
    """
    free = _empty(grey, masks)
    middle = float(np.median(grey[free])) if free.any() else float(np.median(grey))
    planes = torch.from_numpy(np.stack([free, np.where(free, grey - middle, 0)]).astype(np.float32))
    blocks = F.avg_pool2d(planes[None], _BLOCK, ceil_mode=True)[0].numpy()
    weight, total = (ndimage.gaussian_filter(block, WIDTH / _BLOCK, truncate=3) for block in blocks)
    coarse = np.where(weight > 1e-3, total / np.maximum(weight, 1e-3), 0).astype(np.float32)
    whole = [side * _BLOCK for side in coarse.shape]
    fine = F.interpolate(
        torch.from_numpy(coarse)[None, None], size=whole, mode="bilinear", align_corners=False
    )
    background: npt.NDArray[np.float32] = fine[0, 0].numpy()[: grey.shape[0], : grey.shape[1]]
    return background + np.float32(middle)


def measure_noise(
    grey: npt.NDArray[np.float32], masks: npt.NDArray[np.integer]
) -> Mapping[str, float]:
    """Measure the noise of one frame where it shows neither nuclei nor their glow.

    The mean over 8 px around is taken off before, which lowers all correlations by some
    hundredths, in every film alike.

    Args:
        grey: A frame in [0, 1], ``[H, W]``.
        masks: Its nuclei, ``[H, W]``.

    Returns:
        ``"level"``: median grey value of the empty places; ``"std"``: standard deviation, grey
        values (1.4826 times the median absolute deviation); by the names ``NOISE_KEYS``: the
        correlation of two pixels of one row (column) that are 1, 2 or 4 px apart. All NaN where
        fewer than 100 pixels are empty.
    """
    free = _empty(grey, masks)
    if free.sum() < 100:
        return dict.fromkeys(("level", "std", *NOISE_KEYS), math.nan)
    level = float(np.median(grey[free]))
    rest = np.where(free, grey - level, 0).astype(float)
    share = ndimage.gaussian_filter(free.astype(float), _COARSE)
    smooth = ndimage.gaussian_filter(rest, _COARSE) / np.maximum(share, 0.1)
    rest = np.where(free, rest - smooth, 0)
    power = float((rest[free] ** 2).mean())
    found = {"level": level, "std": 1.4826 * float(np.median(np.abs(rest[free])))}
    for axis, turned, open_places in (("rows", rest, free), ("columns", rest.T, free.T)):
        for lag in LAGS:
            both = open_places[:, lag:] & open_places[:, :-lag]
            product = (turned[:, lag:] * turned[:, :-lag])[both]
            known = power > 0 and product.size > 0
            found[f"{axis} at {lag}"] = float(product.mean()) / power if known else math.nan
    return found


def _empty(grey: npt.NDArray[np.float32], masks: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Return the empty places; none where nuclei cover the whole frame."""
    if (masks > 0).all():
        return np.zeros(grey.shape, bool)
    return empty_places(grey, masks.astype(np.int32, copy=False))
