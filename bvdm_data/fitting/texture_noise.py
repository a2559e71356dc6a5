"""How long textures last in the video, and which noise makes rendered ones last as long."""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from bvdm_data.fitting.nuclei import (
    INTERPHASE,
    Crops,
    extract_crops,
    number_rows,
    pair_rows,
)
from bvdm_data.fitting.training import Findings, Run
from bvdm_data.fitting.video import make_video
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.contours import Array, compute_polygon_area
from bvdm_data.synth.denoiser import compute_signed_distance_map
from bvdm_data.synth.model import Model, TextureModel
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import BATCH, FastSettings, denoise_patches

Stages = npt.NDArray[np.int8]

LAGS = (1, 2, 4, 7)  # frames between the two patches of a nucleus that are compared
# Areas of the two nuclei of a pair, second over first: no mitosis lies between them.
AREA_RATIO = (0.7, 1.4)
DEPTH = 2  # only pixels more than this inside the outline are compared, px
HALF = 24  # half side of the square in which a nucleus is compared, px
_LEAST_COMMON = 40  # px of the interior that both patches must show

# Turns (radians) and shifts (px) that are tried, each stage around the best of the one before.
_SEARCH = (
    ([math.radians(turn) for turn in range(-45, 46, 9)], [0.0]),
    ([math.radians(turn) for turn in range(-6, 7, 3)], [-1.0, 0.0, 1.0]),
    ([math.radians(turn) for turn in range(-2, 3)], [-0.5, 0.0, 0.5]),
)


@dataclass(frozen=True, eq=False)
class NucleusPatch:
    """One nucleus with its centroid near the middle of a square of 49 x 49 pixels."""

    light: Tensor  # grey values less their mean, [49, 49] float32
    inside: Tensor  # true more than 2 px inside the outline, [49, 49]
    rest: Tensor  # centroid (y, x) less the middle of the square, px, [2] float32


def correlate_registered(first: NucleusPatch, second: NucleusPatch, *, start: float = 0.0) -> float:
    """Register one patch with another and correlate what both show of the inside."""
    if int(first.inside.sum()) < _LEAST_COMMON:
        return math.nan
    best = torch.tensor([start, 0.0, 0.0], dtype=torch.float32)
    score = correlation = torch.zeros(1)
    for turns, shifts in _SEARCH:
        steps = torch.cartesian_prod(torch.tensor(turns), *[torch.tensor(shifts)] * 2)
        tries = best + steps.reshape(-1, 3)
        score, correlation = _score_motions(first, second, tries)
        best = tries[score.argmax()]
    return float(correlation[score.argmax()]) if torch.isfinite(score.max()) else math.nan


def measure_angle_between_axes(first: NucleusPatch, second: NucleusPatch) -> float:
    """Return the turn that lays the long axes of two insides onto each other, radians."""
    angles = []
    for patch in (first, second):
        y, x = (patch.inside.nonzero() - HALF - patch.rest).T
        angles.append(0.5 * math.atan2(2 * float((x * y).sum()), float((x * x - y * y).sum())))
    return angles[0] - angles[1]


def _score_motions(
    first: NucleusPatch, second: NucleusPatch, motions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return IoU plus correlation (or -inf), and correlation, after rigid motions, ``[N]``."""
    places = first.inside.nonzero()
    light = first.light[places[:, 0], places[:, 1]]
    y, x = (places - HALF - first.rest).T
    turn, down, right = motions.T[..., None]
    rows = turn.cos() * y - turn.sin() * x + down + second.rest[0]
    columns = turn.sin() * y + turn.cos() * x + right + second.rest[1]
    grid = torch.stack([columns, rows], -1)[None] / HALF

    def sample(plane: Tensor, mode: str) -> Tensor:
        return F.grid_sample(plane[None, None], grid, mode, "zeros", align_corners=True)[0, 0]

    common = (sample(second.inside.float(), "bilinear") >= 0.5).float()
    count = common.sum(1, keepdim=True)

    def average(values: Tensor) -> Tensor:
        return (values * common).sum(1, keepdim=True) / count.clamp(min=1)

    registered = sample(second.light, "bicubic")
    a, b = light - average(light), registered - average(registered)
    spread = (average(a**2) * average(b**2)).sqrt()
    correlation = (average(a * b) / spread.clamp(min=1e-12))[:, 0]
    union = len(places) + float(second.inside.sum()) - count[:, 0]
    score = correlation + count[:, 0] / union.clamp(min=1)
    return score.where(count[:, 0] >= _LEAST_COMMON, torch.tensor(-torch.inf)), correlation


PAIRS = 600  # pairs of patches that are compared at each lag
CALIBRATION_NUCLEI = 200  # nuclei that are rendered for each correlation of the noise
ITERATIONS = 4  # videos that are made to correct what pairs alone do not show
CALIBRATION_SCENE = SceneSettings(frames=16, size=(640, 640), nuclei=72)  # what these videos show
LEAST_PAIRS = 20  # with fewer pairs at a lag nothing is measured at it
# Used where a video shows too few pairs (close to that of the HeLa video).
DEFAULT = TextureModel(memory=0.97, fresh=0.2)
_NOISES = (0.0, 0.5, 0.7, 0.85, 0.95, 1.0)


def fit_noise_autocorrelation(
    crops: Crops, stages: Stages, model: Model, run: Run, *, share: float = 1.0, seed: int = 0
) -> tuple[TextureModel, dict[int, float]]:
    """Find the noise whose textures last as long as the video's.

    1. The insides of one nucleus ``LAGS`` frames apart are registered and correlated.
    2. Nuclei whose outlines drift as in the video are rendered from noises of known correlation
       and measured in the same way. That gives the correlation that the noise must have at each
       lag; ``(1 - fresh) * memory ** lag`` is fitted to them.
    3. Turns, growth and neighbours change textures, too. A video is made and measured, and the
       targets are moved by what it misses, ``ITERATIONS`` times; the best round wins.

    ``share``: of pairs, nuclei and rounds, for a first look. ``run.until``: no round begins later.

    Returns the noise, and the correlations of the video by lag.
    """
    pairs, nuclei, most = (math.ceil(share * n) for n in (PAIRS, CALIBRATION_NUCLEI, ITERATIONS))
    arrays = (crops.light, crops.masks, crops.track, crops.frame, stages)
    data = [*map(torch.from_numpy, arrays), *model.distilled.state_dict().values()]
    given = (seed, pairs, nuclei, model.motion, model.camera, *data)
    kept = Findings(run, 1 + len(LAGS) * len(_NOISES) + most, *given)
    real = kept.find("video", _measure_video, crops, stages, seed, pairs)
    if len(real) < 2:
        return DEFAULT, real

    def render(lag: int, noise: float) -> float:
        given = (model, brightness, lag, noise, seed, nuclei)
        return kept.find(f"{lag} {noise}", _measure_rendered, *given)

    brightness = np.maximum(crops.brightness[stages == INTERPHASE].astype(float), 1e-4)
    tables = {
        lag: np.maximum.accumulate(np.nan_to_num([render(lag, n) for n in _NOISES])) for lag in real
    }
    if not all(table.any() for table in tables.values()):
        return DEFAULT, real
    targets, rounds = dict(real), []
    for number in range(most):
        texture = _search_grid(tables, targets)
        if time.monotonic() >= run.until:
            break
        made = replace(model, texture=texture)
        synthetic = kept.find(f"{number}", _measure_synthetic, made, seed, pairs)
        if not real.keys() <= synthetic.keys():
            return texture, real
        missed = {lag: real[lag] - synthetic[lag] for lag in real}
        rounds.append((sum(miss**2 for miss in missed.values()), texture.memory, texture.fresh))
        targets = {lag: targets[lag] + missed[lag] for lag in real}
    _, memory, fresh = min(rounds, default=(0.0, texture.memory, texture.fresh))
    return TextureModel(memory=memory, fresh=fresh), real


def _search_grid(tables: dict[int, Array], targets: dict[int, float]) -> TextureModel:
    """Return the noise whose textures come nearest to the targets."""
    memory, fresh = np.meshgrid(1 - np.geomspace(0.001, 0.3, 60), np.linspace(0, 0.8, 81))
    miss = np.zeros_like(memory)
    for lag, table in tables.items():
        rendered = np.interp((1 - fresh) * memory**lag, _NOISES, table)
        miss += (rendered - min(targets[lag], table[-1])) ** 2
    best = np.unravel_index(miss.argmin(), miss.shape)
    return TextureModel(memory=float(memory[best]), fresh=float(fresh[best]))


def _measure_video(crops: Crops, stages: Stages, seed: int, most: int = PAIRS) -> dict[int, float]:
    """Return the median correlation of nuclei with themselves at each lag that is seen."""
    row_of, area = number_rows(crops.track, crops.frame), crops.masks.sum((1, 2))
    correlations = {}
    for lag in LAGS:
        pairs = pair_rows(row_of, lag)
        pairs = pairs[(stages[pairs] == INTERPHASE).all(1)]
        ratio = area[pairs[:, 1]] / area[pairs[:, 0]]
        pairs = pairs[(ratio >= AREA_RATIO[0]) & (ratio <= AREA_RATIO[1])]
        if len(pairs) < LEAST_PAIRS:
            continue
        order = numpy_rng(seed, "fit", "memory", lag).permutation(len(pairs))[:most]
        values = np.array([_correlate_crops(crops, *pair) for pair in pairs[order].tolist()])
        values = values[np.isfinite(values)]
        if len(values) >= LEAST_PAIRS:
            correlations[lag] = float(np.median(values))
    return correlations


def _correlate_crops(crops: Crops, *rows: int) -> float:
    nuclei = ((crops.light[row].astype(np.float32), crops.masks[row]) for row in rows)
    return correlate_registered(*(cut_patch(*one, np.argwhere(one[1]).mean(0)) for one in nuclei))


def cut_patch(
    light: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], centre: Array
) -> NucleusPatch:
    """Cut the square that is compared out of an image, given the mask and centroid of a nucleus."""
    pad = HALF + 1
    middle = np.rint(centre).astype(int) + pad
    place = tuple(slice(m - HALF, m + HALF + 1) for m in middle)
    own = np.pad(mask, pad)[place]
    inside = ndimage.distance_transform_edt(own) > DEPTH
    rest = (centre + pad - middle).astype(np.float32)
    light = np.pad(light, pad)[place]
    light = light - light[own].mean()
    return NucleusPatch(*(torch.from_numpy(part) for part in (light, inside, rest)))


def _measure_synthetic(model: Model, seed: int, most: int = PAIRS) -> dict[int, float]:
    """Return what :func:`_measure_video` finds in a video of the model."""
    name = ("fit", "memory")
    try:
        made = synthesise(model, CALIBRATION_SCENE, FastSettings(), seed=seed, name=name)
    except ValueError:  # nuclei so large that they do not fit
        return {}
    crops = extract_crops(make_video(made.video, made.masks, made.tracks))
    return _measure_video(crops, made.stages[crops.track - 1, crops.frame], seed, most)


def _measure_rendered(
    model: Model, brightness: Array, lag: int, noise: float, seed: int, count: int
) -> float:
    """Return the median correlation of rendered nuclei whose noise has this correlation."""
    settings = FastSettings()
    network = model.get_denoiser(settings.steps)
    patch = network.settings.patch
    rng = numpy_rng(seed, "fit", "memory", "lives")
    outlines = torch.from_numpy(_draw_outlines(model, lag, patch, count, rng)).float()
    level = torch.from_numpy(rng.choice(brightness, count)).float()
    start = torch.randn((2, count, patch, patch), generator=torch_rng(seed, "fit", "memory"))
    start[1] = noise * start[0] + math.sqrt(1 - noise**2) * start[1]
    stage = torch.zeros(count, dtype=torch.long)
    patches = []
    for drawn, radii in zip(start, outlines, strict=True):
        parts = zip(*(x.split(BATCH) for x in (drawn, radii, level, stage)), strict=True)
        rendered = [denoise_patches(network, *part, steps=settings.steps) for part in parts]
        light = torch.cat(rendered).numpy()
        grain = ndimage.convolve1d(rng.standard_normal(light.shape), model.camera.streak, axis=2)
        light = light + (model.camera.noise * grain).astype(np.float32)
        masks = (compute_signed_distance_map(radii, patch)[:, 0] <= 0).numpy()
        nuclei = zip(light, masks, strict=True)
        patches.append([cut_patch(one, own, np.argwhere(own).mean(0)) for one, own in nuclei])
    pairs = zip(*patches, strict=True)
    return float(np.nanmedian([correlate_registered(*pair) for pair in pairs]))


def _draw_outlines(model: Model, lag: int, patch: int, n: int, rng: np.random.Generator) -> Array:
    """Draw outlines of one area now and ``lag`` frames later, within the patch, ``[2, n, K]``."""
    shapes = model.shapes
    scores = shapes.sample_scores(lag + 1, rng, n)[[0, -1]]
    mean = shapes.mean[0]
    outlines = np.maximum(mean + scores @ shapes.modes[0], mean.mean() / 4)
    now, later = (compute_polygon_area(radii) for radii in outlines)
    outlines[1] *= np.sqrt(now / later)[:, None]
    outlines *= np.minimum(1, (patch / 2 - 1) / outlines.max(2, keepdims=True))
    return np.asarray(outlines)
