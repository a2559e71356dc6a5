"""Tile distance: the picture distance of whole-frame tiles, background and crowd included."""

import math
from collections.abc import Mapping

from bvdm_data.clip import Clip
from bvdm_data.evaluation.features import TILE, Clips, Features, frame_tiles
from bvdm_data.evaluation.frechet import (
    FLOOR,
    Estimate,
    PictureDistance,
    damaged,
    frechet_distance,
    kernel_distance,
)


def tile_distance(
    sets: Mapping[str, Clip | Clips],
    reference: Clip | Clips,
    *,
    count: int,
    features: Features,
    seed: int = 0,
    size: int = TILE,
) -> list[PictureDistance]:
    """Measure how far tiles of several sets of clips look from those of real clips.

    The counterpart of :func:`picture_distance` for whole pictures, with rows of the same names. The
    damaged controls are tiles of their own, which may overlap those compared to. Tiles of one film
    overlap and show the same nuclei again, so no error is given.

    Args:
        sets: Clips by name.
        reference: Real clips.
        count: Tiles of each set and of each half of the reference.
        features: Describes the tiles.
        seed: Seed of all choices and of the noise.
        size: Height and width of a tile, pixels.

    Returns:
        ``floor``, then the sets in their order, then the damaged controls.

    Raises:
        ValueError: If count is below 1 or a frame is smaller than a tile.
    """
    both = features(frame_tiles(reference, 2 * count, seed=seed, size=size))
    target, rest = both[:count], both[count:]
    found = {FLOOR: rest}
    for name, clips in {**sets, **damaged(reference, seed=seed)}.items():
        found[name] = features(frame_tiles(clips, count, seed=seed + 1, size=size))
    rows = []
    for name, described in found.items():
        kernel = kernel_distance(described, target)
        scaled = Estimate(1000 * kernel.value, math.nan)
        distance = frechet_distance(described, target)
        rows.append(PictureDistance(name, features.name, count, scaled, distance))
    return rows
