"""Outlines: at which share of its core's light an outline lies, measured, and masks moved there."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.background import estimate_background
from bvdm_data.clip import Clip
from bvdm_data.validate import Rule

# Depth at which the core of a nucleus begins, in radii of the median nucleus of its frame; 4 px in
# the HeLa video, whose light is even from there on.
CORE = 0.31
# Area of the smallest nuclei that are measured, in areas of the median nucleus; 150 px in the HeLa
# video.
LEAST_AREA = 0.29
# How far an outline may be moved, px: farther in there is no slope, farther out no light.
REACH = 3.0
FEWEST = 10  # nuclei that a share must be measured on, at least (our choice)


class Outline(NamedTuple):
    """What outlines mean, by the light just inside of them over that of their nucleus' core.

    Attributes:
        share: This share in nuclei of the median light.
        slope: What is added to it for a core e times as bright. Below 0 where outlines lie at one
            level of light, as a threshold draws them: far down the edge of bright nuclei.
    """

    share: float
    slope: float = 0.0


_EIGHT = np.ones((3, 3))  # neighbours of a pixel that belong together with it
_LEVELS = np.linspace(0.1, 1, 10)  # thresholds that are tried, in shares that are wanted

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class _Crop(NamedTuple):
    """A nucleus, cut out with its surroundings."""

    place: tuple[slice, ...]  # where it is in the frame with its margin
    own: Bools  # its mask, [h, w]
    light: npt.NDArray[np.float32]  # image less the background, [h, w]
    inside: Array  # distance of its pixels from the nearest pixel outside, px, [h, w]
    others: Array  # distance from the nearest pixel of another nucleus or off the frame, px, [h, w]

    def find_core(self, depth: float) -> Bools:
        """Return the pixels deeper than that, or than half of the depth of a small nucleus."""
        return np.asarray(self.inside > min(depth, self.inside.max() / 2))

    @property
    def rim(self) -> Bools:
        """The pixels that have one outside among their eight neighbours."""
        return np.asarray(self.own & (self.inside < 1.5))


def measure_edges(
    image: npt.NDArray[np.generic], masks: npt.NDArray[np.integer]
) -> tuple[Array, Array]:
    """Measure where outlines lie on the slope of light at the edge of each nucleus.

    The core is what lies deeper than 0.31 radii of the median nucleus of the frame (4 px in
    Fluo-N2DL-HeLa). Nuclei smaller than 0.29 areas of the median one, and those nearer than a
    core's depth to another or to the edge of the frame, are left out.

    Args:
        image: One frame in any unit, ``[H, W]`` real numbers.
        masks: Ids, 0 in the background, ``[H, W]`` integers.

    Returns:
        Median light of the core, background taken off, in the unit of image, ``[n]`` float64; and
        the share of it that the first pixels inside the outline have on average, ``[n]`` float64:
        1 where an outline lies on the plateau of its nucleus, 0 where it lies in the dark.

    Raises:
        TypeError: If masks hold no integers, or image no real numbers.
        ValueError: If they are not of one shape ``[H, W]``.
    """
    light, labels = _check_frame(image, masks)
    depth, area = _scale_to_nuclei(labels)
    found = []
    for crop in _cut_nuclei(light, labels, math.ceil(depth)):
        core, is_alone = crop.inside > depth, (crop.others[crop.own] > depth).all()
        if is_alone and crop.own.sum() >= LEAST_AREA * area and core.any():
            found.append((np.median(crop.light[core]), crop.light[crop.rim].mean()))
    core_light, rim = np.array(found, float).reshape(-1, 2).T
    lit = core_light > 0
    return core_light[lit], rim[lit] / core_light[lit]


def as_outline(outline: float | Sequence[float]) -> Outline:
    """Return what a share, or a pair of share and slope, means."""
    pair = tuple(outline) if isinstance(outline, (tuple, list)) else (outline, 0.0)
    if len(pair) != 2:
        raise ValueError(f"outline must be a share or a pair (share, slope), got {outline!r}")
    Rule(float, above=0, below=1).check("outline", pair[0])
    Rule(float, least=-1, most=1).check("slope of outline", pair[1])
    return Outline(*map(float, pair))


def fit_slope(light: Array, share: Array) -> float:
    """Return the change of shares for a light e times as bright, by least squares."""
    x = np.log(light)
    return float(np.cov(x, share)[0, 1] / max(np.var(x, ddof=1), 1e-12))


def calibrate_outline(
    frames: Iterable[npt.NDArray[np.generic]],
    masks: Iterable[npt.NDArray[np.integer]],
    *,
    clips: Sequence[Clip] = (),
) -> Outline:
    """Measure what outlines mean in annotated frames, for ``outline=`` of the data sets.

    With clips, the result lies halfway between what their outlines mean and what the frames' do.
    The share of light differs with the sharpness of a video, too, for which networks make up in
    part; halfway is our choice.

    Args:
        frames: Frames in any unit, ``[F, H, W]`` real numbers, or a list of ``[H, W]``.
        masks: Ids of each, 0 in the background, in the same shapes, integers.
        clips: Clips whose outlines are to be moved, as they are without ``outline=``.

    Returns:
        Share and slope, fitted to what :func:`measure_edges` measures.

    Raises:
        TypeError: If masks hold no integers, or frames no real numbers.
        ValueError: If frames and masks do not belong together, or show fewer than 10 nuclei that
            can be measured.

    Examples:
        Clips whose outlines mean the same as those of three frames of your own::

            plain = SyntheticHeLaVideos(variation=0, frames=1, size=512)
            clips = [plain.clip(number) for number in range(4)]
            outline = calibrate_outline(frames, masks, clips=clips)
            videos = SyntheticHeLaVideos(outline=outline)
    """
    images, labels = list(frames), list(masks)
    if len(images) != len(labels):
        raise ValueError(f"masks must be as many as frames, {len(images)}, got {len(labels)}")
    edges = [measure_edges(*pair) for pair in zip(images, labels, strict=True)]
    light, shares = map(np.concatenate, zip(*edges, strict=True)) if edges else np.zeros((2, 0))
    count = len(shares)
    if count < FEWEST:
        raise ValueError(
            f"masks must show at least {FEWEST} nuclei that touch neither another nor the edge of "
            f"the frame and are brighter than the background, got {count}; give more frames"
        )
    slope = fit_slope(light, shares)
    share = float(np.median(shares - slope * np.log(light / np.median(light))))
    if clips:
        pairs = [
            pair for clip in clips for pair in zip(clip["video"][:, 0], clip["masks"], strict=True)
        ]
        given = [[part.numpy() for part in parts] for parts in zip(*pairs, strict=True)]
        own = calibrate_outline(*given)
        share, slope = (share + own.share) / 2, (slope + own.slope) / 2
    # Noise in the dimmest and a share far from that of the others may lead beyond what can be.
    return Outline(min(max(share, 0.01), 0.99), min(max(slope, -1.0), 1.0))


def move_outlines(
    image: npt.NDArray[np.generic], masks: npt.NDArray[np.integer], outline: float | Sequence[float]
) -> npt.NDArray[np.integer]:
    """Move outlines to where the first pixels inside have a share of the light of their core.

    Each outline follows its nucleus' light, lightly smoothed, and stays within 3 px of where it
    was; near another nucleus it moves by at most half the distance of both, so that boundaries of
    nuclei in contact stay where they are. No nucleus is lost, cut in parts or joined with another;
    holes are filled. One whose light is no brighter than the background stays as it is.

    Args:
        image: One frame in any unit, ``[H, W]`` real numbers.
        masks: Ids, 0 in the background, ``[H, W]`` integers.
        outline: As :func:`calibrate_outline` returns it; or the share alone, above 0 and below 1,
            which bright and dim nuclei then have alike.

    Returns:
        Masks with the same ids, of the same shape and dtype.

    Raises:
        TypeError: If masks hold no integers, or image or outline no real numbers.
        ValueError: If shapes differ, or outline is out of its range.
    """
    share, slope = as_outline(outline)
    light, labels = _check_frame(image, masks)
    depth, _ = _scale_to_nuclei(labels)
    margin = math.ceil(2 * REACH) + 1
    moved, crops = np.pad(masks, margin), [*_cut_nuclei(light, labels, margin)]
    bright = np.array([np.median(crop.light[crop.find_core(depth)]) for crop in crops]).clip(1e-9)
    shares = np.full(len(crops), share)
    if slope and len(crops):
        shares = (share + slope * np.log(bright / np.median(bright))).clip(0.05, 0.95)
    for crop, own_share in zip(crops, shares.tolist(), strict=True):
        part, own = moved[crop.place], _move_outline(crop, depth, own_share)
        number = part[crop.own][0]
        part[crop.own] = 0
        part[own] = number
    return moved[margin:-margin, margin:-margin].copy()


def _move_outline(crop: _Crop, depth: float, share: float) -> Bools:
    """Return the mask whose outline lies at a share of the core's light, if one is near."""
    core = crop.find_core(depth)
    bright = float(np.median(crop.light[core]))
    outside = ndimage.distance_transform_edt(~crop.own)
    free = np.where(crop.own, crop.inside, outside) <= np.minimum(REACH, (crop.others - 1) / 2)
    alone = crop.others > REACH
    if not (bright > 0 and (free & alone).any()):
        return crop.own
    light = crop.light / bright
    smooth = ndimage.gaussian_filter(light, 1.0)
    kept = crop.own & ~free | core
    levels = share * _LEVELS
    stack = kept | free & (smooth >= levels[:, None, None])
    rims = stack & ~ndimage.minimum_filter(stack, (1, 3, 3)) & alone
    found = (rims * light).sum((1, 2)) / rims.sum((1, 2)).clip(1)
    level = np.interp(share, np.maximum.accumulate(found), levels)
    own = ndimage.binary_propagation(core, mask=kept | free & (smooth >= level))
    own = ndimage.binary_fill_holes(own) & (crop.others > 0)
    is_whole = ndimage.label(own, _EIGHT)[1] == ndimage.label(crop.own, _EIGHT)[1]
    return own if is_whole else crop.own


def _check_frame(
    image: npt.NDArray[np.generic], masks: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the image less its background, and the masks with ids from 1 to n."""
    image, masks = np.asarray(image), np.asarray(masks)
    if not np.issubdtype(masks.dtype, np.integer):
        raise TypeError(f"masks must hold integers, got {masks.dtype}")
    if image.dtype.kind not in "iuf":
        raise TypeError(f"image must hold real numbers, got {image.dtype}")
    if image.ndim != 2 or image.shape != masks.shape:
        raise ValueError(
            f"image and masks must be one frame each, [H, W], got {image.shape} and {masks.shape}"
        )
    grey = image.astype(np.float32)
    labels, filled = np.zeros(masks.shape, np.int64), masks > 0
    labels[filled] = np.unique(masks[filled], return_inverse=True)[1] + 1
    return grey - estimate_background(grey, masks), labels


def _scale_to_nuclei(labels: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return the depth at which cores begin, px, and the area of the median nucleus, px^2."""
    areas = np.bincount(labels.ravel())[1:]
    area = float(np.median(areas)) if len(areas) else 0.0
    return max(CORE * math.sqrt(area / math.pi), 1.5), area


def _cut_nuclei(
    light: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], margin: int
) -> Iterator[_Crop]:
    """Cut out all nuclei with a margin, which may lie off the frame."""
    # Off the frame there may be another nucleus.
    wide = np.pad(labels, margin, constant_values=-1)
    lit = np.pad(light, margin)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        around = tuple(slice(s.start, s.stop + 2 * margin) for s in box)
        near = wide[around]
        own, others = near == number, (near != number) & (near != 0)
        far = ndimage.distance_transform_edt(~others) if others.any() else np.full(own.shape, 1e9)
        yield _Crop(around, own, lit[around], ndimage.distance_transform_edt(own), far)
