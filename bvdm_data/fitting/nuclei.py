"""Crops: single nuclei cut out of an annotated video, as the networks learn them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.fitting.video import Frame, Video
from bvdm_data.synth.flow import FLOW_SIZE

PATCH = FLOW_SIZE
"""Side of a crop in pixels, 96 in the authors' code; nuclei are painted in patches as large."""

DIM_SHARE = 0.125
"""Share of the nuclei, the dimmest, that the networks of the paper's method do not learn, because
scaling them up would teach the camera's noise as texture (our choice: below it the noise of the
HeLa video is more than a tenth of the light)."""

MASK_LEVEL = 150 / 255
"""Grey value of a flat mask where diffusion starts (authors' code)."""


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
    """Cut every whole nucleus out of the frames, centred on the middle of its bounding box.

    As in the authors' extraction, a crop shows one nucleus and nothing else. Left out are nuclei
    that touch the border of the frame, because they are cut, masks that belong to no track, and
    nuclei larger than the patch.
    """
    tracked = {int(track) for track in video.tracks[:, 0]}
    rows = [row for frame in video.frames for row in _cut_frame(frame, patch) if row[2] in tracked]
    light = np.stack([row[0] for row in rows]) if rows else np.zeros((0, patch, patch), np.float16)
    masks = np.stack([row[1] for row in rows]) if rows else np.zeros((0, patch, patch), bool)
    return Crops(
        light=light,
        masks=masks,
        track=np.array([row[2] for row in rows], np.int64),
        frame=np.array([row[3] for row in rows], np.int64),
        brightness=np.array([row[4] for row in rows], np.float32),
        centre=np.array([row[5] for row in rows], np.float32).reshape(-1, 2),
    )


def check_fittable(crops: Crops, dim_share: float = DIM_SHARE) -> float:
    """Refuse a video that shows nothing to fit a generator to."""
    if len(crops.brightness) == 0:
        raise ValueError(
            "the video must show whole nuclei that belong to tracks, got none: all masks touch the "
            "border of the frame, are larger than the patch, or are in no track"
        )
    least = float(np.quantile(crops.brightness, dim_share))
    if least <= 0:
        raise ValueError(
            "the nuclei of the video must be brighter than its background, got a mean brightness "
            f"of {least:.4f} at quantile {dim_share}; are the masks those of the video?"
        )
    return least


_Row = tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_], int, int, float, tuple[float, float]]


def _cut_frame(frame: Frame, patch: int) -> Iterable[_Row]:
    height, width = frame.masks.shape
    above = frame.grey - frame.background
    for label, box in enumerate(ndimage.find_objects(frame.masks), start=1):
        if box is None:
            continue
        (y0, y1), (x0, x1) = ((side.start, side.stop) for side in box)
        if y0 == 0 or x0 == 0 or y1 == height or x1 == width or max(y1 - y0, x1 - x0) > patch:
            continue
        inside = frame.masks[box] == label
        top = patch // 2 - (y1 - y0) // 2
        left = patch // 2 - (x1 - x0) // 2
        place = (slice(top, top + y1 - y0), slice(left, left + x1 - x0))
        mask = np.zeros((patch, patch), bool)
        mask[place] = inside
        light = np.zeros((patch, patch), np.float16)
        light[place] = np.where(inside, above[box], 0)
        y, x = np.nonzero(inside)
        yield (
            light,
            mask,
            label,
            frame.number,
            float(above[box][inside].mean()),
            (y0 + float(y.mean()), x0 + float(x.mean())),
        )
