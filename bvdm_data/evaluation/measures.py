"""Measures: what can be said of every nucleus in every frame of annotated clips."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from bvdm_data.clip import Clip
from bvdm_data.evaluation.background import local_background
from bvdm_data.evaluation.extras import need
from bvdm_data.evaluation.neighbourhoods import (
    RINGS,
    cut_out,
    edge_profile,
    label_agreement,
    texture,
    touches_neighbour,
)

LEAST_AREA = 30
"""Nuclei of fewer pixels are not measured."""

NEIGHBOUR_MARGIN = 40.0
"""Nuclei whose centroid is nearer to the frame's edge have no nearest-neighbour distance, pixels:
the neighbour may be outside."""

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sightings:
    """Every nucleus in every frame of some clips; one row of each array is one nucleus in a frame.

    Attributes:
        clip: Number of the clip in the sequence of clips, ``[n]``.
        frame: Number of the frame in the clip, ``[n]``.
        identity: Id in the clip's masks, ``[n]``.
        area: Pixels, ``[n]``.
        centre: Centroid ``(y, x)`` in pixels, ``[n, 2]``.
        whole: False where the nucleus touches the edge of the frame, ``[n]``.
    """

    clip: Ints
    frame: Ints
    identity: Ints
    area: Array
    centre: Array
    whole: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.clip)


@dataclass(frozen=True, eq=False)
class Looks:
    """How the nuclei of :class:`Sightings` look, row by row.

    NaN (-1 for ``contact``) where a nucleus touches the edge of the frame or has fewer than 30
    pixels.

    Attributes:
        eccentricity: Of the ellipse with the same second moments, 0 to 1, ``[n]``.
        solidity: Area over area of the convex hull, ``[n]``.
        brightness: Mean grey value above the local background, ``[n]``.
        texture: Contrast and shares of power, see :func:`neighbourhoods.texture`, ``[n, 4]``.
        profile: Relative light along the outline, see :func:`neighbourhoods.edge_profile`,
            ``[n, 8]``.
        agreement: Overlap of label and picture, see :func:`neighbourhoods.label_agreement`,
            ``[n]``.
        contact: 1 where another nucleus is within 2 px, 0 where none is, ``[n]``.
        neighbour: Distance to the nearest other centroid, px, ``[n]``; NaN within 40 px of the
            edge and where the frame has no other nucleus.
        stage: Index into ``bvdm_data.clip.STAGES``; -1 where it is not known, ``[n]``.
    """

    eccentricity: Array
    solidity: Array
    brightness: Array
    texture: Array
    profile: Array
    agreement: Array
    contact: Ints
    neighbour: Array
    stage: Ints


def sight(clips: Sequence[Clip]) -> Sightings:
    """Find every nucleus in every frame.

    Args:
        clips: Clips with ``masks``.

    Returns:
        One row a nucleus and frame, ordered by clip, frame and id.

    Raises:
        ValueError: If a clip has no masks.
    """
    return _joined([_sight(clips[number], number) for number in range(len(clips))])


def look_at_all(clips: Sequence[Clip], seen: Sightings) -> Looks:
    """Measure the look of all nuclei.

    Args:
        clips: Clips with ``masks``, and ``stages`` where they are known.
        seen: Their nuclei, from :func:`sight`.

    Returns:
        The same number of rows.

    Raises:
        ModuleNotFoundError: If scikit-image is missing.
    """
    found = _unknown(len(seen))
    for number in range(len(clips)):
        clip = clips[number]
        rows = np.flatnonzero(seen.clip == number)
        if "stages" in clip:
            found.stage[rows] = clip["stages"].numpy()[seen.identity[rows] - 1, seen.frame[rows]]
        for frame in np.unique(seen.frame[rows]).tolist():
            grey = clip["video"][frame, 0].float().numpy()
            masks = clip["masks"][frame].numpy().astype(np.int32)
            _measure_frame(grey, masks, rows[seen.frame[rows] == frame], seen, found)
    return found


def _sight(clip: Clip, number: int) -> Sightings:
    if "masks" not in clip:
        raise ValueError(
            f"clips must have masks to be measured, got {sorted(clip)} in clip {number}"
        )
    found = []
    rows, columns = (place.ravel() for place in np.indices(clip["masks"].shape[1:]))
    for frame, masks in enumerate(clip["masks"].numpy().astype(np.int64)):
        flat = masks.ravel()
        areas = np.bincount(flat, minlength=1)
        areas[0] = 0
        ids = np.flatnonzero(areas)
        centre = [np.bincount(flat, axis)[ids] / areas[ids] for axis in (rows, columns)]
        edge = np.unique(np.r_[masks[0], masks[-1], masks[:, 0], masks[:, -1]])
        found.append(
            Sightings(
                clip=np.full(len(ids), number),
                frame=np.full(len(ids), frame),
                identity=ids,
                area=areas[ids].astype(float),
                centre=np.stack(centre, 1),
                whole=~np.isin(ids, edge),
            )
        )
    return _joined(found)


def _unknown(count: int) -> Looks:
    def missing(*shape: int) -> Array:
        return np.full((count, *shape), np.nan)

    return Looks(
        eccentricity=missing(),
        solidity=missing(),
        brightness=missing(),
        texture=missing(4),
        profile=missing(len(RINGS)),
        agreement=missing(),
        contact=np.full(count, -1),
        neighbour=missing(),
        stage=np.full(count, -1),
    )


def _measure_frame(
    grey: npt.NDArray[np.float32],
    masks: npt.NDArray[np.int32],
    rows: Ints,
    seen: Sightings,
    found: Looks,
) -> None:
    """Fill the rows of one frame in."""
    light = grey - local_background(grey, masks)
    found.neighbour[rows] = _nearest(seen.centre[rows], grey.shape)
    boxes = ndimage.find_objects(masks)
    region = need("skimage.measure").regionprops
    for row in rows[seen.whole[rows] & (seen.area[rows] >= LEAST_AREA)].tolist():
        identity = int(seen.identity[row])
        down, right = boxes[identity - 1]
        around = cut_out(masks, light, identity, (down.start, right.start, down.stop, right.stop))
        shape = region(around.own.view(np.uint8))[0]
        found.eccentricity[row] = shape.eccentricity
        found.solidity[row] = shape.solidity
        found.brightness[row] = around.light[around.own].mean()
        found.texture[row] = texture(around)
        found.profile[row] = edge_profile(around)
        found.agreement[row] = label_agreement(around)
        found.contact[row] = touches_neighbour(around)


def _nearest(centres: Array, shape: tuple[int, ...]) -> Array:
    """Return the distance of each centroid to the nearest other one; NaN near the edge."""
    if len(centres) < 2:
        return np.full(len(centres), np.nan)
    distance = np.asarray(spatial.cKDTree(centres).query(centres, k=2)[0])[:, 1]
    far_end = np.array(shape) - 1 - centres
    to_edge = np.minimum(centres, far_end).min(1)
    return np.where(to_edge >= NEIGHBOUR_MARGIN, distance, np.nan)


def _joined(parts: Sequence[Sightings]) -> Sightings:
    names = [one.name for one in fields(Sightings)]
    return Sightings(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})
