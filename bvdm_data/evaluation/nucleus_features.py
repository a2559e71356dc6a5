"""Measurements of every nucleus, and of the noise, in every frame of annotated clips."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial
from scipy.stats import median_abs_deviation

from bvdm_data.background import (
    correlate_along_rows,
    estimate_background,
    extract_noise,
    mask_background,
)
from bvdm_data.clip import Clip
from bvdm_data.synth.contours import Array, Ints
from bvdm_data.system import require

# Signed distances of the middles of the rings of the edge profile, pixels; below 0 is inside. A
# pixel next to the outline is half a pixel off it.
RINGS = (-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5)
LEAST_AREA = 30  # nuclei of fewer pixels are not measured
LAGS = (1, 2, 4)  # distances at which the noise is correlated, pixels
# Names of the noise's correlations along rows and columns, with the distance in pixels.
NOISE_KEYS = tuple(f"{axis} at {lag}" for axis in ("rows", "columns") for lag in LAGS)

_REACH = 6.0  # how far outside its outline a nucleus is looked for, px
_MARGIN = 8  # pixels around the box of a nucleus that belong to its crop
_CONTACT = 2.0  # greatest distance of a neighbour's pixel that counts as contact, px
_BANDS = (1 / 8, 1 / 4)  # frequencies between coarse, middle and fine texture, cycles a pixel
_INTERIOR = 2.0  # texture is measured on pixels more than this off the outline, px
_LEAST_INTERIOR = 30  # px
_SIDE = 64  # side of the square that spectra are taken in, px
# Nuclei whose centroid is nearer to the frame's edge than this have no nearest-neighbour distance,
# px: the neighbour may be outside.
_NEIGHBOUR_MARGIN = 40.0

Bools = npt.NDArray[np.bool_]
Grey = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Detections:
    """Every nucleus in every frame of some clips; one row of each array is one of them."""

    clip: Ints  # number of the clip in the sequence of clips, [n]
    frame: Ints  # number of the frame in the clip, [n]
    identity: Ints  # id in the clip's masks, [n]
    area: Array  # pixels, [n]
    centre: Array  # centroid (y, x) in pixels, [n, 2]
    whole: Bools  # false where the nucleus touches the edge of the frame, [n]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.clip)


@dataclass(frozen=True, eq=False)
class AppearanceFeatures:
    """How the nuclei of :class:`Detections` look, row by row.

    NaN (-1 for ``contact``) where a nucleus touches the edge of the frame or has fewer than 30
    pixels.
    """

    eccentricity: Array  # of the ellipse with the same second moments, 0 to 1, [n]
    solidity: Array  # area over area of the convex hull, [n]
    brightness: Array  # mean grey value above the local background, [n]
    texture: Array  # contrast and shares of power, see _measure_spectrum, [n, 4]
    profile: Array  # relative light along the outline, see _measure_edge_profile, [n, 8]
    agreement: Array  # overlap of label and image, see _measure_threshold_iou, [n]
    contact: Ints  # 1 where another nucleus is within 2 px, 0 where none is, [n]
    # distance to the nearest other centroid, px, [n]; NaN within 40 px of the edge and where the
    # frame has no other nucleus
    neighbour: Array
    stage: Ints  # index into bvdm_data.clip.STAGES; -1 where it is not known, [n]


def list_detections(clips: Sequence[Clip]) -> Detections:
    """List every nucleus in every frame."""
    parts = []
    for number in range(len(clips)):
        clip = clips[number]
        rows, columns = (axis.ravel() for axis in np.indices(clip["masks"].shape[1:]))
        for frame, masks in enumerate(clip["masks"].numpy().astype(np.int64)):
            flat = masks.ravel()
            areas = np.bincount(flat, minlength=1)
            ids = np.flatnonzero(areas[1:]) + 1
            centre = [np.bincount(flat, axis)[ids] / areas[ids] for axis in (rows, columns)]
            edge = np.r_[masks[0], masks[-1], masks[:, 0], masks[:, -1]]
            where = (np.full(len(ids), number), np.full(len(ids), frame), ids)
            area, whole = areas[ids].astype(float), ~np.isin(ids, edge)
            parts.append((*where, area, np.stack(centre, 1), whole))
    return Detections(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def measure_appearance(clips: Sequence[Clip], detections: Detections) -> AppearanceFeatures:
    """Measure the appearance of all nuclei."""
    unknown: dict[str, Any] = {field.name: math.nan for field in fields(AppearanceFeatures)} | {
        "texture": (math.nan,) * (len(_BANDS) + 2),
        "profile": (math.nan,) * len(RINGS),
        "contact": -1,
        "stage": -1,
    }
    rows: list[dict[str, Any]] = [dict(unknown) for _ in range(len(detections))]
    for number in range(len(clips)):
        clip = clips[number]
        for frame in range(len(clip["masks"])):
            here = np.flatnonzero((detections.clip == number) & (detections.frame == frame))
            grey = clip["video"][frame, 0].float().numpy()
            masks = clip["masks"][frame].numpy().astype(np.int32)
            light = grey - estimate_background(grey, masks)
            distances = _measure_neighbours(detections.centre[here], grey.shape)
            boxes = ndimage.find_objects(masks)
            for row, distance in zip(here.tolist(), distances, strict=True):
                identity = int(detections.identity[row])
                rows[row]["neighbour"] = distance
                if "stages" in clip:
                    rows[row]["stage"] = int(clip["stages"][identity - 1, frame])
                if detections.whole[row] and detections.area[row] >= LEAST_AREA:
                    rows[row] |= _measure_nucleus(masks, light, identity, boxes[identity - 1])
    return AppearanceFeatures(
        **{
            name: np.array([row[name] for row in rows]).reshape(len(rows), *np.shape(value))
            for name, value in unknown.items()
        }
    )


def _measure_neighbours(centres: Array, shape: tuple[int, ...]) -> Array:
    """Return the distance of each centroid to the nearest other one; NaN near the edge."""
    if len(centres) < 2:
        return np.full(len(centres), np.nan)
    distance = np.asarray(spatial.cKDTree(centres).query(centres, k=2)[0])[:, 1]
    to_edge = np.minimum(centres, np.array(shape) - 1 - centres).min(1)
    return np.where(to_edge >= _NEIGHBOUR_MARGIN, distance, np.nan)


class _Crop(NamedTuple):
    """A nucleus that does not touch the edge of the frame, cut out with 8 px around its box."""

    own: Bools  # its mask, [h, w]
    others: Bools  # masks of all other nuclei, [h, w]
    light: Grey  # grey values above the local background, [h, w]
    depth: Array  # distance of a pixel of the nucleus to the nearest pixel outside, px, [h, w]
    distance: Array  # distance of a pixel outside to the nearest one of the nucleus, px, [h, w]


def _measure_nucleus(
    masks: npt.NDArray[np.int32], light: Grey, identity: int, box: tuple[slice, ...]
) -> dict[str, Any]:
    wide = tuple(slice(max(s.start - _MARGIN, 0), s.stop + _MARGIN) for s in box)
    own = masks[wide] == identity
    depth, distance = (ndimage.distance_transform_edt(mask) for mask in (own, ~own))
    crop = _Crop(own, (masks[wide] > 0) & ~own, light[wide], depth, distance)
    shape = require("skimage.measure").regionprops(own.view(np.uint8))[0]
    return {
        "eccentricity": shape.eccentricity,
        "solidity": shape.solidity,
        "brightness": float(crop.light[own].mean()),
        "texture": _measure_spectrum(crop),
        "profile": _measure_edge_profile(crop),
        "agreement": _measure_threshold_iou(crop),
        "contact": int((crop.others & (distance <= _CONTACT)).any()),
    }


def _measure_threshold_iou(crop: _Crop) -> float:
    """Compare the label with the nucleus that a fixed threshold gives, by their overlap (IoU).

    Of all pixels in the label or up to 6 px outside it that belong to no other label, those count
    whose light above the local background is at least half of the median light of the label's own
    pixels (half maximum). The largest connected part of them (4 neighbours) is the nucleus.
    """
    level = float(np.median(crop.light[crop.own])) / 2
    if not level > 0:
        return 0.0
    bright = (crop.distance <= _REACH) & ~crop.others & (crop.light >= level)
    parts, _ = ndimage.label(bright)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    nucleus = bright & (parts == sizes.argmax())
    return float((nucleus & crop.own).sum() / (nucleus | crop.own).sum())


def _measure_edge_profile(crop: _Crop) -> Array:
    """Return the mean light of rings along the outline, over the mean light of the interior.

    The interior is what lies more than 4 px off the outline. Pixels within 4 px of another nucleus
    are left out, since its glow adds to them. At the signed distances ``RINGS``, ``[8]``; NaN where
    a ring has no pixel, and all NaN without an interior that is brighter than the background.
    """
    half = len(RINGS) // 2
    middle = crop.light[crop.depth > half]
    if not middle.size or not middle.mean() > 0:
        return np.full(len(RINGS), np.nan)
    ring = np.where(crop.own, -np.ceil(crop.depth), np.ceil(crop.distance) - 1).astype(int)
    used = np.abs(ring + 0.5) < half
    if crop.others.any():
        used &= ndimage.distance_transform_edt(~crop.others) > half
    index = ring[used] + half
    count = np.bincount(index, minlength=len(RINGS))
    total = np.bincount(index, weights=crop.light[used], minlength=len(RINGS))
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan) / middle.mean())


def _measure_spectrum(crop: _Crop) -> Array:
    """Measure the contrast of the interior, and its share of power in each band of wavelengths.

    The interior is what lies more than 2 px off the outline. Its light, less its mean and 0
    outside, is Fourier-transformed. The camera's noise is part of what is measured.
    """
    inside = crop.depth > _INTERIOR
    values = crop.light[inside].astype(float)
    if values.size < _LEAST_INTERIOR or not values.mean() > 0:
        return np.full(len(_BANDS) + 2, np.nan)
    rest = np.zeros(inside.shape)
    rest[inside] = values - values.mean()
    side = max(_SIDE, *inside.shape)
    power = np.abs(np.fft.fft2(rest, (side, side))) ** 2
    shares = np.bincount(_list_bands(side), weights=power.ravel(), minlength=len(_BANDS) + 1)
    total = float(shares.sum()) or math.nan  # a flat interior has no structure at all
    return np.array([values.std() / values.mean(), *(shares / total)])


@lru_cache(maxsize=64)
def _list_bands(side: int) -> Ints:
    """Return the band of every wave of a square image, flattened."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    return np.asarray(np.digitize(frequency, _BANDS).ravel(), np.int64)


def measure_noise(grey: Grey, masks: npt.NDArray[np.integer]) -> Mapping[str, float]:
    """Measure the noise of one frame where it shows neither nuclei nor their glow.

    The mean over 8 px around is subtracted first, which lowers all correlations by some hundredths.
    """
    free = mask_background(grey, masks)
    if free.sum() < 100:
        return dict.fromkeys(("level", "std", *NOISE_KEYS), math.nan)
    level = float(np.median(grey[free]))
    rest = extract_noise(grey - level, free)
    power = float((rest[free] ** 2).mean()) or math.nan
    noise = {"level": level, "std": float(median_abs_deviation(rest[free], scale="normal"))}
    for axis, values, used in (("rows", rest, free), ("columns", rest.T, free.T)):
        for lag in LAGS:
            noise[f"{axis} at {lag}"] = correlate_along_rows(values, used, lag) / power
    return noise
