"""Single nuclei cut out of an annotated video."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.fitting.video import Frame, Video
from bvdm_data.synth.flow import FLOW_SIZE

# Side of a crop in pixels; nuclei are rendered in patches of the same size (authors' code: 96).
PATCH = FLOW_SIZE
# Share of the nuclei, the dimmest, that the networks of the paper's method do not learn: scaling
# them up would teach camera noise as texture (our choice: below it the noise of the HeLa video is
# more than a tenth of the light).
DIM_SHARE = 0.125
MASK_LEVEL = 150 / 255  # grey value of a flat mask where diffusion starts (authors' code)


@dataclass(frozen=True)
class Crops:
    """Every whole nucleus of a video, centred in a patch."""

    # light above the background inside the nucleus and 0 outside, in grey values, [n, 96, 96]
    # float16
    light: npt.NDArray[np.float16]
    masks: npt.NDArray[np.bool_]  # which pixels are the nucleus, [n, 96, 96] bool
    track: npt.NDArray[np.int64]  # track id, [n]
    frame: npt.NDArray[np.int64]  # frame number, [n]
    brightness: npt.NDArray[np.float32]  # mean of light inside the nucleus, [n] float32
    centre: npt.NDArray[np.float32]  # centroid (y, x) in the frame, [n, 2] float32


def extract_crops(video: Video, *, patch: int = PATCH) -> Crops:
    """Cut every nucleus that is whole, tracked and fits into a patch out of the frames."""
    tracks = {int(track) for track in video.tracks[:, 0]}
    rows = [row for frame in video.frames for row in _cut_frame(frame, patch) if row[2] in tracks]
    light, masks, track, number, brightness, centre = zip(*rows, strict=True) if rows else [()] * 6
    return Crops(
        light=np.array(light, np.float16).reshape(-1, patch, patch),
        masks=np.array(masks, bool).reshape(-1, patch, patch),
        track=np.array(track, np.int64),
        frame=np.array(number, np.int64),
        brightness=np.array(brightness, np.float32),
        centre=np.array(centre, np.float32).reshape(-1, 2),
    )


def check_fittable(crops: Crops) -> float:
    """Return the brightness below which nuclei are dim; refuse a video that shows none."""
    if len(crops.brightness) == 0:
        raise ValueError(
            "the video must show whole nuclei that belong to tracks, got none: all masks touch the "
            "border of the frame, are larger than the patch, or are in no track"
        )
    least = float(np.quantile(crops.brightness, DIM_SHARE))
    if least <= 0:
        raise ValueError(
            "the nuclei of the video must be brighter than its background, got a mean brightness "
            f"of {least:.4f} at quantile {DIM_SHARE}; are the masks those of the video?"
        )
    return least


def measure_ellipse(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return angle from y (radians) and ratio of the axes of the ellipse with the same moments."""
    y, x = (part - part.mean() for part in np.nonzero(mask))
    if len(y) < 2:
        return 0.0, 1.0
    yy, xx, xy = float((y * y).mean()), float((x * x).mean()), float((x * y).mean())
    angle = 0.5 * math.atan2(2 * xy, yy - xx)
    if len(y) < 3:
        return angle, 1.0
    middle, reach = (yy + xx) / 2, math.hypot((yy - xx) / 2, xy)
    # The sample covariance, so that a line of pixels has a short axis above 0 by rule.
    unbiased = len(y) / (len(y) - 1)
    low, high = (middle - reach) * unbiased, (middle + reach) * unbiased
    return angle, math.sqrt(high / max(low, 1e-3))


def _cut_frame(frame: Frame, patch: int) -> Iterator[tuple[Any, ...]]:
    """Cut out one frame: light, mask, track, frame, brightness and centre of each nucleus."""
    height, width = frame.masks.shape
    above = frame.grey - frame.background
    for label, box in enumerate(ndimage.find_objects(frame.masks), start=1):
        if box is None:
            continue
        (y0, y1), (x0, x1) = ((side.start, side.stop) for side in box)
        if y0 == 0 or x0 == 0 or y1 == height or x1 == width or max(y1 - y0, x1 - x0) > patch:
            continue
        # As in the authors' extraction, a crop shows one nucleus and nothing else.
        inside = frame.masks[box] == label
        top = patch // 2 - (y1 - y0) // 2
        left = patch // 2 - (x1 - x0) // 2
        place = (slice(top, top + y1 - y0), slice(left, left + x1 - x0))
        mask = np.zeros((patch, patch), bool)
        mask[place] = inside
        light = np.zeros((patch, patch), np.float16)
        light[place] = np.where(inside, above[box], 0)
        y, x = np.nonzero(inside)
        centre = y0 + float(y.mean()), x0 + float(x.mean())
        yield light, mask, label, frame.number, float(above[box][inside].mean()), centre
