"""The outlines of the masks, and the statistical shape model that is fitted to them."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial
from scipy.stats import median_abs_deviation

from bvdm_data.clip import PHASES
from bvdm_data.fitting.nuclei import (
    INTERPHASE,
    Nuclei,
    advise,
    fit_ar1_plus_noise,
    measure_ellipse,
)
from bvdm_data.fitting.video import Video
from bvdm_data.outlines import FEWEST, measure_edges
from bvdm_data.rng import numpy_rng
from bvdm_data.synth.contours import CONTOUR_POINTS, Array, ShapeModel, compute_polygon_area
from bvdm_data.synth.model import Model
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import (
    PROFILE_REACH,
    FastSettings,
    find_outline_distance,
    measure_edge_profile,
)

MODES = 30  # principal components that are kept (99 % of the variance of every stage of HeLa 01)
MOST_CONTOURS = 3000  # contours of a stage that are used; more change nothing
QUANTILES = 129  # points of the distribution of elongation that are kept
# Masks that their own contour reproduces worse (flaws of the truth) are left out.
LEAST_OVERLAP = 0.95
EDGE_FRAMES, EDGE_CLIPS = 20, 60  # in which edges are measured: of the video, and of clips
_EDGE_SCENE = SceneSettings(frames=1, size=(512, 512), variation=1.0)
_LATER = 4  # frames
_LEAST_PAIRS, _LEAST_POWER, _REDRAWN = 20, 1e-4, 1000
_FACTORS = np.linspace(0.4, 1.4, 6)  # of scores, tried for masks as solid as the video's
_STEP = 0.25
_RAY = np.arange(_STEP, 48, _STEP)


@dataclass(frozen=True, eq=False)
class Contours:
    """The outlines of masks."""

    radii: Array  # distance from the centroid to the outline at equally spaced angles, [n, K] px
    iou: Array  # intersection over union of each mask and its own contour, [n]


def trace_contours(masks: npt.NDArray[np.bool_]) -> Contours:
    """Trace the outline of every mask, ``[n, P, P]``."""
    radii = [_trace_contour(mask) for mask in masks]
    iou = [_measure_contour_iou(mask, own) for mask, own in zip(masks, radii, strict=True)]
    return Contours(np.array(radii).reshape(-1, CONTOUR_POINTS), np.array(iou))


def _trace_contour(mask: npt.NDArray[np.bool_]) -> Array:
    """Measure the outline of a mask around its centroid, from the major axis on, ``[K]`` px."""
    points = np.argwhere(mask)
    if len(points) == 0:
        raise ValueError("mask must show a nucleus, got an empty one")
    centre = points.mean(0)
    angle = measure_ellipse(mask)[0] + 2 * math.pi * np.arange(CONTOUR_POINTS) / CONTOUR_POINTS
    y = centre[0] + np.cos(angle)[:, None] * _RAY
    x = centre[1] + np.sin(angle)[:, None] * _RAY
    inside = ndimage.map_coordinates(mask.astype(np.float32), [y, x], order=1) >= 0.5
    last = len(_RAY) - 1 - inside[:, ::-1].argmax(1)
    # The outline lies between the last sample inside and the next one.
    return np.asarray(np.where(inside.any(1), _RAY[last], _RAY[0]) + _STEP / 2)


def _measure_contour_iou(mask: npt.NDArray[np.bool_], radii: Array) -> float:
    """Return the intersection over union of a mask and its own contour."""
    dy, dx = (np.indices(mask.shape).T - np.argwhere(mask).mean(0)).T
    filled = _fill_contour(radii, dy, dx, measure_ellipse(mask)[0])
    return float((filled & mask).sum() / (filled | mask).sum())


def _fill_contour(radii: Array, y: Array, x: Array, turn: float) -> npt.NDArray[np.bool_]:
    """Return which offsets from the centroid lie within a contour turned by an angle."""
    angle = (np.arctan2(x, y) - turn) % (2 * math.pi)
    grid = 2 * math.pi * np.arange(len(radii) + 1) / len(radii)
    outline = np.interp(angle, grid, np.append(radii, radii[0]))
    return np.asarray(np.hypot(y, x) <= outline)


def fit_shapes(nuclei: Nuclei, contours: Contours, *, seed: int = 0) -> tuple[ShapeModel, float]:
    """Fit mean and covariance of the contours of each stage; and return the median overlap.

    A nucleus has no head: every contour enters in all four mirrored versions. A stage of fewer
    than two nuclei takes the contours of interphase.
    """
    rng = numpy_rng(seed, "fit", "shapes")
    drawn = [
        rng.permutation(np.flatnonzero(nuclei.stage == stage))[:MOST_CONTOURS]
        for stage in range(len(PHASES))
    ]
    of_stage = [
        contours.radii[rows[contours.iou[rows] >= LEAST_OVERLAP]] for rows in map(np.sort, drawn)
    ]
    if len(of_stage[0]) < 2:
        raise ValueError(
            "at least 2 whole nuclei in interphase are needed to fit shapes, got "
            f"{len(of_stage[0])} whose mask is a filled, rounded shape; "
            f"{advise(nuclei.crops, 'smooth and fill the masks, or give a longer video')}"
        )
    components = [_fit_components(own if len(own) >= 2 else of_stage[0]) for own in of_stage]
    memory, fresh, wobble, length = _fit_dynamics(nuclei, contours.radii, *components[0])
    model = ShapeModel(
        mean=np.stack([mean for mean, _ in components]),
        modes=np.stack([modes for _, modes in components]),
        counts=np.array([len(own) for own in of_stage], float),
        autocorrelation=memory,
        innovation=fresh,
        area_jitter=wobble,
        roughness=np.array([1.0, 0.0]),
        elongation=length,
    )
    model = _fit_roughness(model, of_stage[0], nuclei.crops.masks[drawn[0]], seed)
    return model, float(np.median(contours.iou[np.concatenate(drawn)]))


def _fit_components(contours: Array) -> tuple[Array, Array]:
    """Return the mean ``[K]`` and the scaled components ``[M, K]`` of mirrored contours."""
    count = contours.shape[1]
    index = np.arange(count)
    mirrors = [index, -index % count, (count // 2 - index) % count, (count // 2 + index) % count]
    every = np.concatenate([contours[:, mirror] for mirror in mirrors])
    values, vectors = np.linalg.eigh(np.cov(every.T))
    order = np.argsort(values)[::-1][:MODES]
    return every.mean(0), (vectors[:, order] * np.sqrt(np.maximum(values[order], 0))).T


def _fit_roughness(
    model: ShapeModel, contours: Array, masks: npt.NDArray[np.bool_], seed: int
) -> ShapeModel:
    """Measure how irregular nuclei are: median and log deviation of the size of their scores."""
    mean, modes = model.mean[0], model.modes[0]
    power = (modes**2).sum(1)
    kept = power > _LEAST_POWER * power.sum()
    kept[:2] = False
    if kept.sum() < 2 or len(contours) < _LEAST_PAIRS:
        return model
    power = power[kept]
    size = np.log((((contours - mean) @ modes[kept].T) ** 2 / power).sum(1)) / 2
    # The size of a few independent scores varies by chance; only what is beyond it is real.
    chance = (power**2).sum() / (2 * power.sum() ** 2)
    own = math.sqrt(max(float(median_abs_deviation(size, scale="normal")) ** 2 - chance, 0.0))
    model = replace(model, roughness=np.array([1.0, own]))
    rng = numpy_rng(seed, "fit", "ragged")
    areas, medians = compute_polygon_area(rng.permutation(contours)[:_REDRAWN]), []
    drawn = model.sample_scores(1, rng, len(areas))[0]
    for factor in _FACTORS:
        radii = mean + drawn[:, :2] @ modes[:2] + factor * drawn[:, 2:] @ modes[2:]
        radii = np.maximum(radii, mean.mean() / 4)
        radii *= np.sqrt(areas / compute_polygon_area(radii))[:, None]
        medians.append(np.median([_measure_solidity(_draw_mask(row, rng)) for row in radii]))
    # Independent scores as large as the video's, and the pixels of a mask, would add dents.
    real = np.median([_measure_solidity(mask) for mask in masks])
    middle = np.interp(-real, -np.minimum.accumulate(medians), _FACTORS)
    return replace(model, roughness=np.array([middle, own]))


def _measure_solidity(mask: npt.NDArray[np.bool_]) -> float:
    """Return the pixels of a mask over those whose centre lies in its convex hull."""
    own = np.argwhere(mask)
    middles = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])  # of the sides of a pixel
    hull = spatial.ConvexHull((own[:, None] + middles).reshape(-1, 2)).equations
    box = np.indices(own.max(0) - own.min(0) + 1).reshape(2, -1).T + own.min(0)
    return len(own) / int((box @ hull[:, :2].T + hull[:, 2] <= 1e-9).all(1).sum())


def _draw_mask(radii: Array, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draw a contour as a mask, turned and shifted at random."""
    half = math.ceil(radii.max()) + 2
    shift, turn = rng.uniform(-0.5, 0.5, 2), rng.uniform(0, 2 * math.pi)
    y, x = np.meshgrid(*[np.arange(-half, half + 1)] * 2, indexing="ij")
    return _fill_contour(radii, y - shift[0], x - shift[1], turn)


def _fit_dynamics(
    nuclei: Nuclei, radii: Array, mean: Array, modes: Array
) -> tuple[Array, Array, float, Array]:
    """Measure how scores and areas of interphase nuclei change from frame to frame.

    Returns autocorrelation and innovation of each score, the deviation of log areas from a smooth
    course, and the quantiles of the second score.
    """
    calm = nuclei.stage == INTERPHASE
    # The score of a shape, less that of its size, which the curve of growth decides.
    scale = np.sqrt(mean.mean() ** 2 / (radii**2).mean(1))[:, None]
    turned = np.roll(radii, radii.shape[1] // 2, axis=1)
    power = np.maximum((modes**2).sum(1), 1e-12)
    scores, turned_scores = ((r * scale - mean) @ modes.T / power for r in (radii, turned))
    length = np.quantile(scores[calm, 1], np.linspace(0, 1, QUANTILES))
    pairs = [nuclei.lineage.find_pairs(lag, calm) for lag in (1, _LATER)]
    if min(map(len, pairs)) < _LEAST_PAIRS:
        return np.full(len(modes), 0.9), np.zeros(len(modes)), 0.02, length
    correlations = []
    for now, later in (rows.T for rows in pairs):
        # The major axis has no head: the later contour is turned around where that is nearer.
        miss = ((radii[now] - radii[later]) ** 2).sum(1)
        is_turned = ((radii[now] - turned[later]) ** 2).sum(1) < miss
        second = np.where(is_turned[:, None], turned_scores[later], scores[later])
        # Means are 0; a score that never varies correlates with nothing.
        spread = np.sqrt((scores[now] ** 2).mean(0) * (second**2).mean(0)).clip(1e-12)
        products = (scores[now] * second).mean(0) / spread
        correlations.append(np.clip(products, 0.0, 1.0))
    near, far = correlations
    memory, fresh = fit_ar1_plus_noise(near, far, _LATER)
    growth = np.log(nuclei.area[pairs[0][:, 1]] / nuclei.area[pairs[0][:, 0]])
    wobble = float(median_abs_deviation(growth, scale="normal")) / math.sqrt(2)
    return memory, fresh, wobble, length


def measure_label_shift(model: Model, video: Video) -> float:
    """Measure how far out of painted outlines clips have the share of light of the video's, px.

    Clips with all of the variation, as networks are trained on. 0 where the edges of the video or
    of the model cannot be measured.
    """
    frames = video.frames[:: math.ceil(len(video.frames) / EDGE_FRAMES)]
    there = np.concatenate([measure_edges(frame.grey, frame.masks)[1] for frame in frames])
    made, profile = [], measure_edge_profile(model, steps=1)
    for number in range(EDGE_CLIPS):
        clip = synthesise(model, _EDGE_SCENE, FastSettings(), seed=0, name=("label shift", number))
        made.append(measure_edges(clip.video[0], clip.masks[0])[1])
    here = np.concatenate(made)
    if min(len(here), len(there)) < FEWEST or not np.isfinite(profile.shares).all():
        return 0.0
    # Where the painter alone has a share that is as much larger as the video's is than the clips'.
    share = profile.shares[PROFILE_REACH] + np.median(there) - np.median(here)
    return find_outline_distance(
        profile, float(np.clip(share, min(profile.shares), profile.shares[0]))
    )
