"""Memory: measures how long textures last in the video, and which noise lasts as long."""

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from bvdm_data.alignment import AREA_RATIO, DEPTH, HALF, LAGS, Picture, aligned_correlation
from bvdm_data.fitting.crops import Crops
from bvdm_data.randomness import numpy_stream, stream
from bvdm_data.synth.fast import BATCH, FastSettings, TextureModel, paint_moments
from bvdm_data.synth.painter import Painter, edge_map
from bvdm_data.synth.shapes import ShapeModel, area

PAIRS = 120
"""Pairs of pictures that are compared at each lag, and at each correlation of the noise."""

LEAST_PAIRS = 20
"""With fewer pairs at a lag nothing can be told."""

USUAL = TextureModel(memory=0.97, fresh=0.2)
"""What is taken where a video shows too few pairs (close to that of the HeLa video)."""

_NOISES = (0.0, 0.5, 0.7, 0.85, 0.95, 1.0)

Array = npt.NDArray[np.float64]


def fit_memory(
    crops: Crops,
    stages: npt.NDArray[np.int8],
    shapes: ShapeModel,
    painter: Painter,
    *,
    seed: int = 0,
) -> tuple[TextureModel, dict[int, float]]:
    """Find the noise whose textures last as long as the video's.

    The insides of one nucleus ``LAGS`` frames apart are laid onto each other and correlated.
    Then nuclei whose outlines drift as those of the video are painted from noises of known
    correlation and measured in the same way. That gives the correlation that the noise must have
    at each lag; ``(1 - fresh) * memory ** lag`` is fitted to the four of them.

    Args:
        crops: Nuclei cut out of the video.
        stages: Their stages.
        shapes: The fitted outlines.
        painter: The fitted painter.
        seed: Which pairs and which noise.

    Returns:
        The model, and the median correlation in the video at each lag; ``USUAL`` where the video
        shows too few pairs at all lags but one.
    """
    real = _of_video(crops, stages, seed)
    if len(real) < 2:
        return USUAL, real
    brightness = np.maximum(crops.brightness[stages == 0].astype(float), 1e-4)
    memory, fresh = np.meshgrid(1 - np.geomspace(0.001, 0.3, 60), np.linspace(0, 0.8, 81))
    miss = np.zeros_like(memory)
    for lag, wanted in real.items():
        painted = [_of_noise(shapes, painter, brightness, lag, one, seed) for one in _NOISES]
        rising = np.maximum.accumulate(np.nan_to_num(painted))
        miss += (np.interp((1 - fresh) * memory**lag, _NOISES, rising) - wanted) ** 2
    best = np.unravel_index(miss.argmin(), miss.shape)
    return TextureModel(memory=float(memory[best]), fresh=float(fresh[best])), real


def _of_video(crops: Crops, stages: npt.NDArray[np.int8], seed: int) -> dict[int, float]:
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
        order = numpy_stream(seed, "fit", "memory", lag).permutation(len(pairs))[:PAIRS]
        values = [
            aligned_correlation(*(_of_crop(crops, row) for row in pairs[number]))
            for number in order.tolist()
        ]
        known = [value for value in values if math.isfinite(value)]
        if len(known) >= LEAST_PAIRS:
            found[lag] = float(np.median(known))
    return found


def _of_crop(crops: Crops, row: int) -> Picture:
    mask = crops.masks[row]
    return _picture(crops.light[row].astype(np.float32), mask, _centre(mask))


def _centre(mask: npt.NDArray[np.bool_]) -> Array:
    centre: Array = np.argwhere(mask).mean(0)
    return centre


def _picture(light: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], centre: Array) -> Picture:
    """Cut the square that is compared out of a patch."""
    pad = HALF + 1
    middle = np.rint(centre).astype(int) + pad
    place = tuple(slice(m - HALF, m + HALF + 1) for m in middle)
    own = np.pad(mask, pad)[place]
    inside = ndimage.distance_transform_edt(own) > DEPTH
    rest = (centre + pad - middle).astype(np.float32)
    light = np.pad(light, pad)[place]
    light = light - light[own].mean()
    return Picture(*(torch.from_numpy(part) for part in (light, inside, rest)))


def _of_noise(
    shapes: ShapeModel,
    painter: Painter,
    brightness: npt.NDArray[np.float64],
    lag: int,
    noise: float,
    seed: int,
) -> float:
    """Return the median correlation of painted nuclei with themselves some frames later.

    Their noise is correlated so far; their outlines change as they do in a film.
    """
    draws = numpy_stream(seed, "fit", "memory", "lives")
    patch = painter.settings.patch
    scores = np.stack([shapes.scores(lag + 1, draws)[[0, -1]] for _ in range(PAIRS)], 1)
    outlines = np.maximum(shapes.mean[0] + scores @ shapes.modes[0], shapes.mean[0].mean() / 4)
    outlines[1] *= np.sqrt(area(outlines[0]) / area(outlines[1]))[:, None]
    outlines *= np.minimum(1, (patch / 2 - 1) / outlines.max(2, keepdims=True))
    level = torch.from_numpy(draws.choice(brightness, PAIRS)).float()
    drawn = torch.randn((2, PAIRS, patch, patch), generator=stream(seed, "fit", "memory"))
    drawn[1] = noise * drawn[0] + math.sqrt(1 - noise**2) * drawn[1]
    pictures = []
    for some, radii in zip(drawn, torch.from_numpy(outlines).float(), strict=True):
        painted = [
            paint_moments(
                painter,
                some[part],
                radii[part],
                level[part],
                torch.zeros(len(part), dtype=torch.long),
                steps=FastSettings().steps,
            )
            for part in torch.arange(PAIRS).split(BATCH)  # type: ignore[no-untyped-call]
        ]
        masks = (edge_map(radii, patch)[:, 0] <= 0).numpy()
        found = zip(torch.cat(painted).numpy(), masks, strict=True)
        pictures.append([_picture(one, mask, _centre(mask)) for one, mask in found])
    return float(np.nanmedian([aligned_correlation(*pair) for pair in zip(*pictures, strict=True)]))
