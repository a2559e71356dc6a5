"""Measures: what can be said of every nucleus in every frame of annotated clips."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage, spatial

from bvdm_data.clip import Clip
from bvdm_data.fitting.video import mask_background
from bvdm_data.system import require

RINGS = (-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5)
"""Signed distances of the middles of the rings of the edge profile, pixels; below 0 is inside.
A pixel beside the outline is half a pixel off it."""

REACH = 6.0
"""How far outside its outline a nucleus is looked for, pixels."""

MARGIN = 8
"""Pixels around the box of a nucleus that belong to its neighbourhood."""

CONTACT = 2.0
"""Greatest distance of a neighbour's pixel that counts as contact, pixels."""

BANDS = (1 / 8, 1 / 4)
"""Spatial frequencies between coarse, middle and fine texture, cycles a pixel."""

_INTERIOR = 2.0  # texture is measured on pixels more than this off the outline, px
_LEAST_INTERIOR = 30  # px
_SIDE = 64  # side of the square that spectra are taken in, px

Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NucleusCrop:
    """A nucleus that does not touch the edge of the frame, cut out with 8 px around its box."""

    own: Bools  # its mask, [h, w]
    others: Bools  # masks of all other nuclei, [h, w]
    light: npt.NDArray[np.float32]  # grey values above the local background, [h, w] float32
    depth: Array  # distance of a pixel of the nucleus to the nearest pixel outside, px, [h, w]
    distance: Array  # distance of a pixel outside to the nearest one of the nucleus, px, [h, w]


def crop_nucleus(
    masks: npt.NDArray[np.integer],
    light: npt.NDArray[np.float32],
    identity: int,
    box: tuple[int, int, int, int],
) -> NucleusCrop:
    """Cut a nucleus out of its frame."""
    top, left, bottom, right = box
    place = (
        slice(max(top - MARGIN, 0), bottom + MARGIN),
        slice(max(left - MARGIN, 0), right + MARGIN),
    )
    near = masks[place]
    own = near == identity
    return NucleusCrop(
        own=own,
        others=(near > 0) & ~own,
        light=light[place],
        depth=ndimage.distance_transform_edt(own),
        distance=ndimage.distance_transform_edt(~own),
    )


def measure_threshold_iou(around: NucleusCrop) -> float:
    """Compare the label with what a fixed threshold finds in the picture.

    The rule: of all pixels up to 6 px outside the label or in it that belong to no other label,
    those are found whose light above the local background is at least half of the median light
    of the label's own pixels (half maximum); the largest connected part of them (4 neighbours)
    is the nucleus. The rule sees no label but that of the neighbours and knows no shape.
    """
    level = float(np.median(around.light[around.own])) / 2
    if not level > 0:
        return 0.0
    bright = (around.distance <= REACH) & ~around.others & (around.light >= level)
    parts, count = ndimage.label(bright)
    if count == 0:
        return 0.0
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    found = parts == sizes.argmax()
    return float((found & around.own).sum() / (found | around.own).sum())


def has_contact(around: NucleusCrop) -> bool:
    """Tell whether another nucleus has a pixel within 2 px."""
    return bool((around.others & (around.distance <= CONTACT)).any())


def measure_edge_profile(around: NucleusCrop) -> Array:
    """Return the mean light of rings along the outline, over the mean light of the interior.

    The interior is what lies more than 4 px off the outline. Pixels within 4 px of another
    nucleus are left out, since its glow adds to them.

    At the signed distances ``RINGS``, ``[8]``; NaN where a ring has no pixel, and all NaN where
    there is no interior or it is no brighter than the background.
    """
    half = len(RINGS) // 2
    middle = around.light[around.depth > half]
    if not middle.size or not middle.mean() > 0:
        return np.full(len(RINGS), np.nan)
    ring = np.where(around.own, -np.ceil(around.depth), np.ceil(around.distance) - 1).astype(int)
    used = np.abs(ring + 0.5) < half
    if around.others.any():
        used &= ndimage.distance_transform_edt(~around.others) > half
    place = ring[used] + half
    count = np.bincount(place, minlength=len(RINGS))
    total = np.bincount(place, weights=around.light[used], minlength=len(RINGS))
    mean: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan) / float(middle.mean())
    return mean


def measure_spectrum(around: NucleusCrop) -> Array:
    """Measure how uneven the light of the interior is, and how fine its structure.

    The interior is what lies more than 2 px off the outline. Its light, less its mean and 0
    outside, is Fourier-transformed; the power of all waves is shared out by their wavelength.
    The camera's noise is part of what is measured.
    """
    inside = around.depth > _INTERIOR
    values = around.light[inside].astype(float)
    if values.size < _LEAST_INTERIOR or not values.mean() > 0:
        return np.full(len(BANDS) + 2, np.nan)
    rest = np.zeros(inside.shape)
    rest[inside] = values - values.mean()
    side = max(_SIDE, *inside.shape)
    power = np.abs(np.fft.fft2(rest, (side, side))) ** 2
    shares = np.bincount(_band_of(side), weights=power.ravel(), minlength=len(BANDS) + 1)
    total = float(shares.sum())
    contrast = float(values.std() / values.mean())
    # A flat interior has no structure at all.
    known = shares / total if total > 0 else np.full(len(shares), np.nan)
    return np.array([contrast, *known])


@lru_cache(maxsize=64)
def _band_of(side: int) -> npt.NDArray[np.int64]:
    """Return the band of every wave of a square picture, flattened."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    bands: npt.NDArray[np.int64] = np.digitize(frequency, BANDS).ravel().astype(np.int64)
    return bands


WIDTH = 32
"""Standard deviation of the Gaussian mean that is the local background, pixels; as
:func:`bvdm_data.fitting.video.estimate_background` has it."""

LAGS = (1, 2, 4)
"""Distances at which the noise is correlated, pixels."""

NOISE_KEYS = tuple(f"{axis} at {lag}" for axis in ("rows", "columns") for lag in LAGS)
"""Names of the noise's correlations along rows and columns, with the distance in pixels."""

_BLOCK = 4  # side of the blocks that the background is averaged over first, px
_COARSE = 8.0  # what varies over this many pixels and more is background, not noise


def estimate_local_background(
    grey: npt.NDArray[np.float32], masks: npt.NDArray[np.integer]
) -> npt.NDArray[np.float32]:
    """Estimate the background under the nuclei by a Gaussian mean of what lies between them.

    The same as :func:`bvdm_data.fitting.video.estimate_background` to some per mille, but averaged
    over blocks of 4 x 4 pixels first, which takes a tenth of the time.

    Grey values, ``[H, W]``.
    """
    free = _empty(grey, masks)
    middle = float(np.median(grey[free])) if free.any() else float(np.median(grey))
    planes = torch.from_numpy(np.stack([free, np.where(free, grey - middle, 0)]).astype(np.float32))
    blocks = F.avg_pool2d(planes[None], _BLOCK, ceil_mode=True)[0].numpy()
    weight, total = (ndimage.gaussian_filter(block, WIDTH / _BLOCK, truncate=3) for block in blocks)
    coarse = np.where(weight > 1e-3, total / np.maximum(weight, 1e-3), 0).astype(np.float32)
    whole = [side * _BLOCK for side in coarse.shape]
    fine = F.interpolate(
        torch.from_numpy(coarse)[None, None], size=whole, mode="bilinear", align_corners=False
    )
    background: npt.NDArray[np.float32] = fine[0, 0].numpy()[: grey.shape[0], : grey.shape[1]]
    return background + np.float32(middle)


def measure_noise(
    grey: npt.NDArray[np.float32], masks: npt.NDArray[np.integer]
) -> Mapping[str, float]:
    """Measure the noise of one frame where it shows neither nuclei nor their glow.

    The mean over 8 px around is taken off before, which lowers all correlations by some
    hundredths, in every film alike.
    """
    free = _empty(grey, masks)
    if free.sum() < 100:
        return dict.fromkeys(("level", "std", *NOISE_KEYS), math.nan)
    level = float(np.median(grey[free]))
    rest = np.where(free, grey - level, 0).astype(float)
    share = ndimage.gaussian_filter(free.astype(float), _COARSE)
    smooth = ndimage.gaussian_filter(rest, _COARSE) / np.maximum(share, 0.1)
    rest = np.where(free, rest - smooth, 0)
    power = float((rest[free] ** 2).mean())
    found = {"level": level, "std": 1.4826 * float(np.median(np.abs(rest[free])))}
    for axis, turned, open_places in (("rows", rest, free), ("columns", rest.T, free.T)):
        for lag in LAGS:
            both = open_places[:, lag:] & open_places[:, :-lag]
            product = (turned[:, lag:] * turned[:, :-lag])[both]
            known = power > 0 and product.size > 0
            found[f"{axis} at {lag}"] = float(product.mean()) / power if known else math.nan
    return found


def _empty(grey: npt.NDArray[np.float32], masks: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Return the empty places; none where nuclei cover the whole frame."""
    if (masks > 0).all():
        return np.zeros(grey.shape, bool)
    return mask_background(grey, masks.astype(np.int32, copy=False))


LEAST_AREA = 30
"""Nuclei of fewer pixels are not measured."""

NEIGHBOUR_MARGIN = 40.0
"""Nuclei whose centroid is nearer to the frame's edge have no nearest-neighbour distance, pixels:
the neighbour may be outside."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Detections:
    """Every nucleus in every frame of some clips; one row of each array is one of them."""

    clip: Ints  # number of the clip in the sequence of clips, [n]
    frame: Ints  # number of the frame in the clip, [n]
    identity: Ints  # id in the clip's masks, [n]
    area: Array  # pixels, [n]
    centre: Array  # centroid (y, x) in pixels, [n, 2]
    whole: npt.NDArray[np.bool_]  # false where the nucleus touches the edge of the frame, [n]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.clip)


@dataclass(frozen=True, eq=False)
class AppearanceFeatures:
    """How the nuclei of :class:`Sightings` look, row by row.

    NaN (-1 for ``contact``) where a nucleus touches the edge of the frame or has fewer than 30
    pixels.
    """

    eccentricity: Array  # of the ellipse with the same second moments, 0 to 1, [n]
    solidity: Array  # area over area of the convex hull, [n]
    brightness: Array  # mean grey value above the local background, [n]
    texture: Array  # contrast and shares of power, see neighbourhoods.texture, [n, 4]
    profile: Array  # relative light along the outline, see neighbourhoods.edge_profile, [n, 8]
    agreement: Array  # overlap of label and picture, see neighbourhoods.label_agreement, [n]
    contact: Ints  # 1 where another nucleus is within 2 px, 0 where none is, [n]
    # distance to the nearest other centroid, px, [n]; NaN within 40 px of the edge and where the
    # frame has no other nucleus
    neighbour: Array
    stage: Ints  # index into bvdm_data.clip.STAGES; -1 where it is not known, [n]


def list_detections(clips: Sequence[Clip]) -> Detections:
    """Find every nucleus in every frame."""
    return _joined([_sight(clips[number], number) for number in range(len(clips))])


def measure_appearance(clips: Sequence[Clip], seen: Detections) -> AppearanceFeatures:
    """Measure the look of all nuclei."""
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


def _sight(clip: Clip, number: int) -> Detections:
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
            Detections(
                clip=np.full(len(ids), number),
                frame=np.full(len(ids), frame),
                identity=ids,
                area=areas[ids].astype(float),
                centre=np.stack(centre, 1),
                whole=~np.isin(ids, edge),
            )
        )
    return _joined(found)


def _unknown(count: int) -> AppearanceFeatures:
    def missing(*shape: int) -> Array:
        return np.full((count, *shape), np.nan)

    return AppearanceFeatures(
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
    seen: Detections,
    found: AppearanceFeatures,
) -> None:
    """Fill the rows of one frame in."""
    light = grey - estimate_local_background(grey, masks)
    found.neighbour[rows] = _nearest(seen.centre[rows], grey.shape)
    boxes = ndimage.find_objects(masks)
    region = require("skimage.measure").regionprops
    for row in rows[seen.whole[rows] & (seen.area[rows] >= LEAST_AREA)].tolist():
        identity = int(seen.identity[row])
        down, right = boxes[identity - 1]
        around = crop_nucleus(
            masks, light, identity, (down.start, right.start, down.stop, right.stop)
        )
        shape = region(around.own.view(np.uint8))[0]
        found.eccentricity[row] = shape.eccentricity
        found.solidity[row] = shape.solidity
        found.brightness[row] = around.light[around.own].mean()
        found.texture[row] = measure_spectrum(around)
        found.profile[row] = measure_edge_profile(around)
        found.agreement[row] = measure_threshold_iou(around)
        found.contact[row] = has_contact(around)


def _nearest(centres: Array, shape: tuple[int, ...]) -> Array:
    """Return the distance of each centroid to the nearest other one; NaN near the edge."""
    if len(centres) < 2:
        return np.full(len(centres), np.nan)
    distance = np.asarray(spatial.cKDTree(centres).query(centres, k=2)[0])[:, 1]
    far_end = np.array(shape) - 1 - centres
    to_edge = np.minimum(centres, far_end).min(1)
    return np.where(to_edge >= NEIGHBOUR_MARGIN, distance, np.nan)


def _joined(parts: Sequence[Detections]) -> Detections:
    names = [one.name for one in fields(Detections)]
    return Detections(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})
