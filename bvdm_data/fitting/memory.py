"""Memory: measures how long textures last in the video, and which noise lasts as long."""

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from bvdm_data.alignment import AREA_RATIO, DEPTH, HALF, LAGS, Picture, aligned_correlation
from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.portraits import Portraits
from bvdm_data.randomness import numpy_stream, stream
from bvdm_data.synth.fast import BATCH, FastSettings, TextureModel, paint_moments
from bvdm_data.synth.painter import Painter, edge_map

PAIRS = 120
"""Pairs of pictures that are compared at each lag, and at each correlation of the noise."""

LEAST_PAIRS = 20
"""With fewer pairs at a lag nothing can be told."""

USUAL = TextureModel(memory=0.97, fresh=0.2)
"""What is taken where a video shows too few pairs (close to that of the HeLa video)."""

_NOISES = (0.0, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97, 1.0)

Array = npt.NDArray[np.float64]


def fit_memory(
    crops: Crops,
    stages: npt.NDArray[np.int8],
    portraits: Portraits,
    painter: Painter,
    *,
    seed: int = 0,
) -> tuple[TextureModel, dict[int, float]]:
    """Find the noise whose textures last as long as the video's.

    The insides of one nucleus ``LAGS`` frames apart are laid onto each other and correlated.
    Then pairs of portraits are painted from noises of known correlation and measured in the same
    way. That gives the correlation that the noise must have at each lag; ``(1 - fresh) *
    memory ** lag`` is fitted to the four of them.

    Args:
        crops: Nuclei cut out of the video.
        stages: Their stages.
        portraits: The same nuclei as the painter learnt them.
        painter: The fitted painter.
        seed: Which pairs and which noise.

    Returns:
        The model, and the median correlation in the video at each lag; ``USUAL`` and nothing
        where the video shows too few pairs.
    """
    real = _of_video(crops, stages, seed)
    if len(real) < 2:
        return USUAL, {}
    painted = np.array([_of_noise(portraits, painter, noise, seed) for noise in _NOISES])
    if not np.isfinite(painted).all():
        return USUAL, real
    painted = np.maximum.accumulate(painted)
    memory, fresh = np.meshgrid(1 - np.geomspace(0.001, 0.3, 60), np.linspace(0, 0.8, 81))
    miss = np.zeros_like(memory)
    for lag, wanted in real.items():
        miss += (np.interp((1 - fresh) * memory**lag, _NOISES, painted) - wanted) ** 2
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
    return _picture(crops.light[row].astype(np.float32), mask, np.argwhere(mask).mean(0))


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


def _of_noise(portraits: Portraits, painter: Painter, noise: float, seed: int) -> float:
    """Return the median correlation of nuclei painted twice, from noises correlated so far."""
    rows = np.flatnonzero(portraits.stage == 0)
    rows = numpy_stream(seed, "fit", "memory", "noise").permutation(rows)[:PAIRS]
    patch = painter.settings.patch
    radii = torch.from_numpy(portraits.radii[rows])
    drawn = torch.randn((2, len(rows), patch, patch), generator=stream(seed, "fit", "memory"))
    both = (drawn[0], noise * drawn[0] + math.sqrt(1 - noise**2) * drawn[1])
    painted = [
        torch.cat(
            [
                paint_moments(
                    painter,
                    some[part],
                    radii[part],
                    torch.from_numpy(portraits.brightness[rows])[part],
                    torch.zeros(len(part), dtype=torch.long),
                    steps=FastSettings().steps,
                )
                for part in torch.arange(len(rows)).split(BATCH)  # type: ignore[no-untyped-call]
            ]
        ).numpy()
        for some in both
    ]
    masks = (edge_map(radii, patch)[:, 0] <= 0).numpy()
    middle = np.full(2, (patch - 1) / 2)
    values = [
        aligned_correlation(_picture(one, mask, middle), _picture(other, mask, middle))
        for one, other, mask in zip(*painted, masks, strict=True)
    ]
    return float(np.nanmedian(values))
