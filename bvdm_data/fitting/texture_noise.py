"""Memory: measures how long textures last in the video, and which noise lasts as long."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from bvdm_data.clip import CameraScale
from bvdm_data.fitting.nuclei import Crops, extract_crops
from bvdm_data.fitting.video import Frame, Video, estimate_background
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.contours import compute_polygon_area
from bvdm_data.synth.denoiser import compute_signed_distance_map
from bvdm_data.synth.model import Model, TextureModel
from bvdm_data.synth.scene import SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.synth.textures import BATCH, FastSettings, denoise_patches

LAGS = (1, 2, 4, 7)
"""Frames between the two pictures of a nucleus that are compared."""

AREA_RATIO = (0.7, 1.4)
"""Areas of the two pictures of a pair, second over first: no mitosis lies between them."""

DEPTH = 2
"""Only pixels more than this off the outline are compared, px."""

HALF = 24
"""Half side of the square that a nucleus is compared in, px."""

_LEAST_COMMON = 40  # px of the interior that both pictures must show

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


def correlate_registered(one: NucleusPatch, other: NucleusPatch, *, start: float = 0.0) -> float:
    """Move one picture onto another and correlate what both show of the inside."""
    if int(one.inside.sum()) < _LEAST_COMMON:
        return math.nan
    best = torch.tensor([start, 0.0, 0.0], dtype=torch.float32)
    score = correlation = torch.zeros(1)
    for turns, shifts in _SEARCH:
        steps = torch.cartesian_prod(torch.tensor(turns), *[torch.tensor(shifts)] * 2)
        tried = best + steps.reshape(-1, 3)
        score, correlation = _scores(one, other, tried)
        best = tried[score.argmax()]
    found = score.argmax()
    return float(correlation[found]) if torch.isfinite(score[found]) else math.nan


def measure_angle_between_axes(one: NucleusPatch, other: NucleusPatch) -> float:
    """Return the turn that lays the long axes of two insides onto each other, radians."""
    angles = []
    for picture in (one, other):
        y, x = (picture.inside.nonzero() - HALF - picture.rest).T
        angles.append(0.5 * math.atan2(2 * float((x * y).sum()), float((x * x - y * y).sum())))
    return angles[0] - angles[1]


def _scores(one: NucleusPatch, other: NucleusPatch, tried: Tensor) -> tuple[Tensor, Tensor]:
    """Score rigid motions of a picture onto the inside of another.

    Overlap of the insides plus correlation, -inf with too few common pixels; and the
    correlation; ``[N]`` each.
    """
    places = one.inside.nonzero()
    light = one.light[places[:, 0], places[:, 1]]
    y, x = (places - HALF - one.rest).T
    turn, down, right = tried.T[..., None]
    rows = turn.cos() * y - turn.sin() * x + down + other.rest[0]
    columns = turn.sin() * y + turn.cos() * x + right + other.rest[1]
    grid = torch.stack([columns, rows], -1)[None] / HALF
    moved = _sampled(other.light, grid, "bicubic")
    common = (_sampled(other.inside.float(), grid, "bilinear") >= 0.5).float()
    count = common.sum(1, keepdim=True)

    def mean(values: Tensor) -> Tensor:
        return (values * common).sum(1, keepdim=True) / count.clamp(min=1)

    first, second = light - mean(light), moved - mean(moved)
    spread = (mean(first**2) * mean(second**2)).sqrt()
    correlation = (mean(first * second) / spread.clamp(min=1e-12))[:, 0]
    union = len(places) + float(other.inside.sum()) - count[:, 0]
    score = correlation + count[:, 0] / union.clamp(min=1)
    return score.where(count[:, 0] >= _LEAST_COMMON, torch.tensor(-torch.inf)), correlation


def _sampled(plane: Tensor, grid: Tensor, mode: str) -> Tensor:
    many = plane[None, None]
    return F.grid_sample(many, grid, mode, padding_mode="zeros", align_corners=True)[0, 0]


PAIRS = 600
"""Pairs of pictures that are compared at each lag."""

CALIBRATION_NUCLEI = 200
"""Nuclei that are painted for each correlation of the noise."""

ITERATIONS = 4
"""Films that are made to correct what pairs alone do not show."""

CALIBRATION_SCENE = SceneSettings(frames=16, size=(640, 640), nuclei=72)
"""The films."""

LEAST_PAIRS = 20
"""With fewer pairs at a lag nothing can be told."""

DEFAULT = TextureModel(memory=0.97, fresh=0.2)
"""What is taken where a video shows too few pairs (close to that of the HeLa video)."""

_NOISES = (0.0, 0.5, 0.7, 0.85, 0.95, 1.0)

Array = npt.NDArray[np.float64]


def fit_noise_autocorrelation(
    crops: Crops, stages: npt.NDArray[np.int8], generator: Model, *, seed: int = 0
) -> tuple[TextureModel, dict[int, float]]:
    """Find the noise whose textures last as long as the video's.

    The insides of one nucleus ``LAGS`` frames apart are laid onto each other and correlated.
    Then nuclei whose outlines drift as those of the video are painted from noises of known
    correlation and measured in the same way. That gives the correlation that the noise must have
    at each lag; ``(1 - fresh) * memory ** lag`` is fitted to the four of them. What else changes
    textures in a film, such as turns, growth and neighbours, is found by making one and measuring
    it; the targets are moved by what it misses, ``ROUNDS`` times, and the best round wins.
    """
    real = _measure_video(crops, stages, seed)
    if len(real) < 2:
        return DEFAULT, real
    brightness = np.maximum(crops.brightness[stages == 0].astype(float), 1e-4)
    tables = {lag: _measure_noises(generator, brightness, lag, seed) for lag in real}
    if not all(table.any() for table in tables.values()):
        return DEFAULT, real
    wanted, rounds = dict(real), []
    for _ in range(ITERATIONS):
        model = _search_grid(tables, wanted)
        seen = _measure_synthetic(replace(generator, texture=model), seed)
        if not real.keys() <= seen.keys():
            return model, real
        missed = {lag: real[lag] - seen[lag] for lag in real}
        rounds.append((sum(miss**2 for miss in missed.values()), model.memory, model.fresh))
        wanted = {lag: wanted[lag] + missed[lag] for lag in real}
    _, memory, fresh = min(rounds)
    return TextureModel(memory=memory, fresh=fresh), real


def _search_grid(tables: dict[int, Array], wanted: dict[int, float]) -> TextureModel:
    """Return the model whose noise comes nearest to the correlations that are wanted."""
    memory, fresh = np.meshgrid(1 - np.geomspace(0.001, 0.3, 60), np.linspace(0, 0.8, 81))
    miss = np.zeros_like(memory)
    for lag, table in tables.items():
        painted = np.interp((1 - fresh) * memory**lag, _NOISES, table)
        miss += (painted - min(wanted[lag], table[-1])) ** 2
    best = np.unravel_index(miss.argmin(), miss.shape)
    return TextureModel(memory=float(memory[best]), fresh=float(fresh[best]))


def _measure_synthetic(generator: Model, seed: int) -> dict[int, float]:
    """Return what :func:`_of_video` finds in a film."""
    try:
        film = synthesise(
            generator, CALIBRATION_SCENE, FastSettings(), seed=seed, name=("fit", "memory")
        )
    except ValueError:  # nuclei so large that they do not fit
        return {}
    frames = tuple(
        Frame(number, grey, masks, estimate_background(grey, masks))
        for number, (grey, masks) in enumerate(zip(film.video, film.masks, strict=True))
    )
    camera = generator.camera
    video = Video(frames, film.tracks, CameraScale(camera.offset, camera.full))
    crops = extract_crops(video)
    return _measure_video(crops, film.stages[crops.track - 1, crops.frame], seed)


def _measure_noises(
    generator: Model, brightness: npt.NDArray[np.float64], lag: int, seed: int
) -> Array:
    """Return what :func:`_of_noise` finds for each of ``_NOISES``; never falling."""
    found = [_of_noise(generator, brightness, lag, noise, seed) for noise in _NOISES]
    rising: Array = np.maximum.accumulate(np.nan_to_num(found))
    return rising


def _measure_video(crops: Crops, stages: npt.NDArray[np.int8], seed: int) -> dict[int, float]:
    """Return the median correlation of nuclei with themselves at each lag that is seen."""
    rows = np.flatnonzero(stages == 0)
    place = {(int(crops.track[i]), int(crops.frame[i])): int(i) for i in rows}
    area = crops.masks.sum((1, 2))
    found = {}
    for lag in LAGS:
        pairs = [(i, place[t, f + lag]) for (t, f), i in place.items() if (t, f + lag) in place]
        pairs = [p for p in pairs if AREA_RATIO[0] <= area[p[1]] / area[p[0]] <= AREA_RATIO[1]]
        if len(pairs) < LEAST_PAIRS:
            continue
        order = numpy_rng(seed, "fit", "memory", lag).permutation(len(pairs))[:PAIRS]
        values = [
            correlate_registered(*(_of_crop(crops, row) for row in pairs[number]))
            for number in order.tolist()
        ]
        known = [value for value in values if math.isfinite(value)]
        if len(known) >= LEAST_PAIRS:
            found[lag] = float(np.median(known))
    return found


def _of_crop(crops: Crops, row: int) -> NucleusPatch:
    mask = crops.masks[row]
    return _picture(crops.light[row].astype(np.float32), mask, _centre(mask))


def _centre(mask: npt.NDArray[np.bool_]) -> Array:
    centre: Array = np.argwhere(mask).mean(0)
    return centre


def _picture(
    light: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], centre: Array
) -> NucleusPatch:
    """Cut the square that is compared out of a patch."""
    pad = HALF + 1
    middle = np.rint(centre).astype(int) + pad
    place = tuple(slice(m - HALF, m + HALF + 1) for m in middle)
    own = np.pad(mask, pad)[place]
    inside = ndimage.distance_transform_edt(own) > DEPTH
    rest = (centre + pad - middle).astype(np.float32)
    light = np.pad(light, pad)[place]
    light = light - light[own].mean()
    return NucleusPatch(*(torch.from_numpy(part) for part in (light, inside, rest)))


def _of_noise(
    generator: Model,
    brightness: npt.NDArray[np.float64],
    lag: int,
    noise: float,
    seed: int,
) -> float:
    """Return the median correlation of painted nuclei with themselves some frames later.

    Their noise is correlated so far; their outlines change as they do in a film.
    """
    settings = FastSettings()
    painter = generator.get_denoiser(settings.steps)
    shapes, camera = generator.shapes, generator.camera
    draws = numpy_rng(seed, "fit", "memory", "lives")
    patch = painter.settings.patch
    scores = np.stack(
        [shapes.scores(lag + 1, draws)[[0, -1]] for _ in range(CALIBRATION_NUCLEI)], 1
    )
    outlines = np.maximum(shapes.mean[0] + scores @ shapes.modes[0], shapes.mean[0].mean() / 4)
    outlines[1] *= np.sqrt(compute_polygon_area(outlines[0]) / compute_polygon_area(outlines[1]))[
        :, None
    ]
    outlines *= np.minimum(1, (patch / 2 - 1) / outlines.max(2, keepdims=True))
    level = torch.from_numpy(draws.choice(brightness, CALIBRATION_NUCLEI)).float()
    drawn = torch.randn(
        (2, CALIBRATION_NUCLEI, patch, patch), generator=torch_rng(seed, "fit", "memory")
    )
    drawn[1] = noise * drawn[0] + math.sqrt(1 - noise**2) * drawn[1]
    pictures = []
    for some, radii in zip(drawn, torch.from_numpy(outlines).float(), strict=True):
        painted = [
            denoise_patches(
                painter,
                some[part],
                radii[part],
                level[part],
                torch.zeros(len(part), dtype=torch.long),
                steps=settings.steps,
            )
            for part in torch.arange(CALIBRATION_NUCLEI).split(BATCH)  # type: ignore[no-untyped-call]
        ]
        masks = (compute_signed_distance_map(radii, patch)[:, 0] <= 0).numpy()
        grain = draws.standard_normal(masks.shape)
        grain = camera.noise * ndimage.convolve1d(grain, camera.streak, axis=2)
        seen = torch.cat(painted).numpy() + grain.astype(np.float32)
        found = zip(seen, masks, strict=True)
        pictures.append([_picture(one, mask, _centre(mask)) for one, mask in found])
    return float(
        np.nanmedian([correlate_registered(*pair) for pair in zip(*pictures, strict=True)])
    )
