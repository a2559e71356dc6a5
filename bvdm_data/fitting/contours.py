"""Shapes: fits the statistical shape model to the masks of the video."""

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.clip import STAGES
from bvdm_data.fitting.nuclei import Crops
from bvdm_data.rng import numpy_rng
from bvdm_data.synth.contours import CONTOUR_POINTS, Array, ShapeModel

MODES = 30
"""Principal components that are kept (99 % of the variance of every stage of HeLa 01)."""

MOST_CONTOURS = 3000
"""Contours of a stage that are used; more change nothing."""

QUANTILES = 129
"""Points of the distribution of lengths that are kept."""

LEAST_OVERLAP = 0.95
"""Masks that their own contour reproduces worse (flaws of the truth) are left out."""

_LATER = 4
_LEAST_PAIRS = 20
_LEAST_POWER = 1e-4
_REDRAWN = 300
_STEP = 0.25
_RAY = np.arange(_STEP, 48, _STEP)


def trace_contour(mask: npt.NDArray[np.bool_]) -> Array:
    """Measure the outline of a mask in polar coordinates around its centroid.

    Angle 0 is the major axis of the ellipse with the same second moments.

    Distance of the outline at ``CONTOUR_POINTS`` equally spaced angles, ``[K]`` px.
    """
    points = np.argwhere(mask)
    if len(points) == 0:
        raise ValueError("mask must show a nucleus, got an empty one")
    centre = points.mean(0)
    turn = measure_orientation(mask)
    angle = turn + 2 * math.pi * np.arange(CONTOUR_POINTS) / CONTOUR_POINTS
    y = centre[0] + np.cos(angle)[:, None] * _RAY
    x = centre[1] + np.sin(angle)[:, None] * _RAY
    inside = ndimage.map_coordinates(mask.astype(np.float32), [y, x], order=1) >= 0.5
    last = len(_RAY) - 1 - inside[:, ::-1].argmax(1)
    # The outline lies between the last sample inside and the next one.
    radii: Array = np.where(inside.any(1), _RAY[last], _RAY[0]) + _STEP / 2
    return radii


def measure_orientation(mask: npt.NDArray[np.bool_]) -> float:
    """Return the angle from the y axis to the major axis of a mask, in radians."""
    points = np.argwhere(mask)
    y, x = (points - points.mean(0)).T
    return 0.5 * math.atan2(2 * float((x * y).mean()), float((y * y).mean() - (x * x).mean()))


def measure_contour_iou(mask: npt.NDArray[np.bool_], radii: Array) -> float:
    """Return the intersection over union of a mask and its own contour."""
    centre = np.argwhere(mask).mean(0)
    dy, dx = (np.indices(mask.shape).T - centre).T
    angle = (np.arctan2(dx, dy) - measure_orientation(mask)) % (2 * math.pi)
    grid = 2 * math.pi * np.arange(len(radii) + 1) / len(radii)
    filled = np.hypot(dy, dx) <= np.interp(angle, grid, np.append(radii, radii[0]))
    return float((filled & mask).sum() / (filled | mask).sum())


def fit_shapes(
    crops: Crops, stages: npt.NDArray[np.int8], *, seed: int = 0
) -> tuple[ShapeModel, float]:
    """Fit mean and covariance of the contours of each stage.

    A nucleus has no head: every contour enters in all four mirrored versions. A stage of fewer
    than two nuclei takes the contours of interphase.
    """
    draws = numpy_rng(seed, "fit", "shapes")
    contours, overlaps = [], []
    for stage in range(len(STAGES)):
        rows = np.flatnonzero(stages == stage)
        rows = np.sort(draws.permutation(rows)[:MOST_CONTOURS])
        found = [trace_contour(crops.masks[row]) for row in rows]
        good = [measure_contour_iou(crops.masks[r], c) for r, c in zip(rows, found, strict=True)]
        overlaps += good
        kept = [c for c, o in zip(found, good, strict=True) if o >= LEAST_OVERLAP]
        contours.append(np.array(kept).reshape(-1, CONTOUR_POINTS))
    if len(contours[0]) < 2:
        raise ValueError(
            "at least 2 whole nuclei in interphase are needed to fit shapes, got "
            f"{len(contours[0])} whose mask is a filled, rounded shape"
        )
    fitted = [_principal(found if len(found) >= 2 else contours[0]) for found in contours]
    memory, fresh, wobble, length = _fit_dynamics(crops, stages, *fitted[0])
    ragged = _fit_roughness(contours[0], *fitted[0], seed)
    model = ShapeModel(
        mean=np.stack([mean for mean, _ in fitted]),
        modes=np.stack([modes for _, modes in fitted]),
        counts=np.array([len(found) for found in contours], float),
        autocorrelation=memory,
        innovation=fresh,
        area_jitter=wobble,
        roughness=ragged,
        elongation=length,
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


def _fit_roughness(contours: Array, mean: Array, modes: Array, seed: int) -> Array:
    """Measure how irregular nuclei are: median and log deviation of the size of their scores.

    The raster of the mask adds to it, and will do so again; so much is taken off as it adds to
    drawn outlines.
    """
    kept = (modes**2).sum(1) > _LEAST_POWER * (modes**2).sum()
    kept[:2] = False
    count = int(kept.sum())
    if count < 2 or len(contours) < _LEAST_PAIRS:
        return np.array([1.0, 0.0])

    def sizes(radii: Array) -> Array:
        scores = (radii - mean) @ modes[kept].T / (modes[kept] ** 2).sum(1)
        return np.asarray(np.log(np.sqrt((scores**2).mean(1))))

    size = sizes(contours)
    middle = float(np.median(size))
    spread = 1.4826 * float(np.median(np.abs(size - middle)))
    # The size of so many independent scores varies, too; only what is beyond is the nucleus' own.
    own = math.sqrt(max(spread**2 - 1 / (2 * count), 0.0))
    draws = numpy_rng(seed, "fit", "ragged")
    scores = draws.standard_normal((_REDRAWN, len(modes)))
    scores[:, 2:] *= math.exp(middle)
    again = np.stack(
        [trace_contour(_fill_contour(radii, draws)) for radii in mean + scores @ modes]
    )
    return np.array([math.exp(2 * middle - float(np.median(sizes(again)))), own])


def _fill_contour(radii: Array, draws: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draw a contour as a mask, turned and shifted at random."""
    half = math.ceil(radii.max()) + 2
    shift, turn = draws.uniform(-0.5, 0.5, 2), draws.uniform(0, 2 * math.pi)
    y, x = np.meshgrid(*[np.arange(-half, half + 1)] * 2, indexing="ij")
    y, x = y - shift[0], x - shift[1]
    angle = (np.arctan2(x, y) - turn) % (2 * math.pi)
    grid = 2 * math.pi * np.arange(len(radii) + 1) / len(radii)
    filled: npt.NDArray[np.bool_] = np.hypot(y, x) <= np.interp(
        angle, grid, np.append(radii, radii[0])
    )
    return filled


def _fit_dynamics(
    crops: Crops, stages: npt.NDArray[np.int8], mean: Array, modes: Array
) -> tuple[Array, Array, float, Array]:
    """Measure the scores of interphase nuclei, and how they and areas change from frame to frame.

    A score is the sum of a lasting part, whose correlation falls geometrically with time, and of
    what is new in every frame; they are told apart by the correlations at lags of 1 and 4 frames.
    """
    rows = np.flatnonzero(stages == 0)
    place = {(int(crops.track[i]), int(crops.frame[i])): n for n, i in enumerate(rows)}
    radii = np.stack([trace_contour(crops.masks[i]) for i in rows])
    areas = crops.masks[rows].sum((1, 2)).astype(float)
    power = (modes**2).sum(1)
    # The score of a shape, less that of its size, which the curve of growth decides.
    scale = np.sqrt(mean.mean() ** 2 / (radii**2).mean(1))[:, None]
    turned = np.roll(radii, radii.shape[1] // 2, axis=1)
    scores, turned_scores = (
        (some * scale - mean) @ modes.T / np.maximum(power, 1e-12) for some in (radii, turned)
    )
    length = np.quantile(scores[:, 1], np.linspace(0, 1, QUANTILES))
    later = {
        lag: np.array(
            [(n, place[t, f + lag]) for (t, f), n in place.items() if (t, f + lag) in place]
        )
        .reshape(-1, 2)
        .astype(int)
        for lag in (1, _LATER)
    }
    if min(len(pairs) for pairs in later.values()) < _LEAST_PAIRS:
        return np.full(len(modes), 0.9), np.zeros(len(modes)), 0.02, length
    found = []
    for pairs in later.values():
        one, other = radii[pairs[:, 0]], radii[pairs[:, 1]]
        # The major axis has no head: the later contour is turned around where that is nearer.
        against = ((one - turned[pairs[:, 1]]) ** 2).sum(1) < ((one - other) ** 2).sum(1)
        second = np.where(against[:, None], turned_scores[pairs[:, 1]], scores[pairs[:, 1]])
        found.append(_correlations(scores[pairs[:, 0]], second))
    near, far = found
    memory = np.clip((far / np.maximum(near, 1e-3)) ** (1 / (_LATER - 1)), 0.0, 0.98)
    fresh = np.clip(1 - near / np.maximum(memory, 1e-3), 0.0, 1.0)
    growth = np.log(areas[later[1][:, 1]] / areas[later[1][:, 0]])
    wobble = 1.4826 * np.median(np.abs(growth - np.median(growth))) / math.sqrt(2)
    return memory, fresh, float(wobble), length


def _correlations(one: Array, other: Array) -> Array:
    """Correlate the columns of two tables of scores, whose means are 0, from 0 to 1, ``[M]``."""
    found = (one * other).mean(0) / np.sqrt((one**2).mean(0) * (other**2).mean(0))
    known: Array = np.clip(np.nan_to_num(found), 0.0, 1.0)
    return known
