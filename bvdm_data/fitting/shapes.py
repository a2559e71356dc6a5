"""Shapes: fits the statistical shape model to the masks of the video."""

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.clip import STAGES
from bvdm_data.fitting.crops import Crops
from bvdm_data.randomness import numpy_stream
from bvdm_data.synth.shapes import CONTOUR_POINTS, Array, ShapeModel

MODES = 30
"""Principal components that are kept (99 % of the variance of every stage of HeLa 01)."""

MOST_CONTOURS = 3000
"""Contours of a stage that are used; more change nothing."""

LEAST_OVERLAP = 0.95
"""Masks that their own contour reproduces worse (flaws of the truth) are left out."""

_STEP = 0.25
_RAY = np.arange(_STEP, 48, _STEP)


def contour(mask: npt.NDArray[np.bool_]) -> Array:
    """Measure the outline of a mask in polar coordinates around its centroid.

    Angle 0 is the major axis of the ellipse with the same second moments.

    Args:
        mask: One nucleus, ``[P, P]``.

    Returns:
        Distance of the outline at ``CONTOUR_POINTS`` equally spaced angles, ``[K]`` px.

    Raises:
        ValueError: If the mask is empty.
    """
    points = np.argwhere(mask)
    if len(points) == 0:
        raise ValueError("mask must show a nucleus, got an empty one")
    centre = points.mean(0)
    turn = orientation(mask)
    angle = turn + 2 * math.pi * np.arange(CONTOUR_POINTS) / CONTOUR_POINTS
    y = centre[0] + np.cos(angle)[:, None] * _RAY
    x = centre[1] + np.sin(angle)[:, None] * _RAY
    inside = ndimage.map_coordinates(mask.astype(np.float32), [y, x], order=1) >= 0.5
    last = len(_RAY) - 1 - inside[:, ::-1].argmax(1)
    # The outline lies between the last sample inside and the next one.
    radii: Array = np.where(inside.any(1), _RAY[last], _RAY[0]) + _STEP / 2
    return radii


def orientation(mask: npt.NDArray[np.bool_]) -> float:
    """Return the angle from the y axis to the major axis of a mask, in radians.

    Args:
        mask: One nucleus.

    Returns:
        From -pi/2 to pi/2; positive turns from y towards x.
    """
    points = np.argwhere(mask)
    y, x = (points - points.mean(0)).T
    return 0.5 * math.atan2(2 * float((x * y).mean()), float((y * y).mean() - (x * x).mean()))


def overlap_with_contour(mask: npt.NDArray[np.bool_], radii: Array) -> float:
    """Return the intersection over union of a mask and its own contour.

    Args:
        mask: One nucleus.
        radii: Its contour, ``[K]`` px.

    Returns:
        From 0 to 1.
    """
    centre = np.argwhere(mask).mean(0)
    dy, dx = (np.indices(mask.shape).T - centre).T
    angle = (np.arctan2(dx, dy) - orientation(mask)) % (2 * math.pi)
    grid = 2 * math.pi * np.arange(len(radii) + 1) / len(radii)
    filled = np.hypot(dy, dx) <= np.interp(angle, grid, np.append(radii, radii[0]))
    return float((filled & mask).sum() / (filled | mask).sum())


def fit_shapes(
    crops: Crops, stages: npt.NDArray[np.int8], *, seed: int = 0
) -> tuple[ShapeModel, float]:
    """Fit mean and covariance of the contours of each stage.

    A nucleus has no head: every contour enters in all four mirrored versions. A stage of fewer
    than two nuclei takes the contours of interphase.

    Args:
        crops: Nuclei cut out of the video.
        stages: Their stages; -1 is left out.
        seed: Which contours are used where there are many.

    Returns:
        The model, and the median overlap of masks with their contours.

    Raises:
        ValueError: If fewer than two nuclei are in interphase.
    """
    draws = numpy_stream(seed, "fit", "shapes")
    contours, overlaps = [], []
    for stage in range(len(STAGES)):
        rows = np.flatnonzero(stages == stage)
        rows = np.sort(draws.permutation(rows)[:MOST_CONTOURS])
        found = [contour(crops.masks[row]) for row in rows]
        good = [overlap_with_contour(crops.masks[r], c) for r, c in zip(rows, found, strict=True)]
        overlaps += good
        kept = [c for c, o in zip(found, good, strict=True) if o >= LEAST_OVERLAP]
        contours.append(np.array(kept).reshape(-1, CONTOUR_POINTS))
    if len(contours[0]) < 2:
        raise ValueError(
            "at least 2 whole nuclei in interphase are needed to fit shapes, got "
            f"{len(contours[0])} whose mask is a filled, rounded shape"
        )
    fitted = [_principal(found if len(found) >= 2 else contours[0]) for found in contours]
    model = ShapeModel(
        mean=np.stack([mean for mean, _ in fitted]),
        modes=np.stack([modes for _, modes in fitted]),
        counts=np.array([len(found) for found in contours], float),
    )
    return model, float(np.median(overlaps))


def _principal(contours: Array) -> tuple[Array, Array]:
    """Return the mean ``[K]`` and the scaled components ``[M, K]`` of mirrored contours."""
    count = contours.shape[1]
    index = np.arange(count)
    mirrors = [index, -index % count, (count // 2 - index) % count, (count // 2 + index) % count]
    every = np.concatenate([contours[:, mirror] for mirror in mirrors])
    mean = every.mean(0)
    values, vectors = np.linalg.eigh(np.cov(every.T))
    order = np.argsort(values)[::-1][:MODES]
    return mean, (vectors[:, order] * np.sqrt(np.maximum(values[order], 0))).T
