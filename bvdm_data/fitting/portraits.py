"""Portraits: single nuclei as the video shows them, halo included, each in its own orientation."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.fitting.crops import Crops
from bvdm_data.fitting.shapes import LEAST_OVERLAP, contour, orientation, overlap_with_contour
from bvdm_data.fitting.video import Frame, Video, empty_places

NEIGHBOUR = 4
"""Distance in pixels from another nucleus within which its light would be taken for a halo."""

HALO = 6
"""Width in pixels of the rim around the largest outline that a portrait must hold."""

_EDGE = 8  # px: unlabelled light farther off the outline than this is not the nucleus'


@dataclass(frozen=True)
class Portraits:
    """Nuclei as the video shows them; the major axis lies along y.

    Attributes:
        light: Light above the background, grey values, 0 where a neighbour is, ``[n, P, P]``
            float16.
        known: Which pixels show this nucleus, its halo or empty background, ``[n, P, P]`` bool.
        radii: Contours, ``[n, K]`` px.
        brightness: Mean light inside the outline, grey values, ``[n]`` float32.
        stage: Index into ``STAGES``, -1 where it is not known, ``[n]`` int8.
        track: Track id, ``[n]``.
        frame: Frame number, ``[n]``.
    """

    light: npt.NDArray[np.float16]
    known: npt.NDArray[np.bool_]
    radii: npt.NDArray[np.float32]
    brightness: npt.NDArray[np.float32]
    stage: npt.NDArray[np.int8]
    track: npt.NDArray[np.int64]
    frame: npt.NDArray[np.int64]

    @property
    def patch(self) -> int:
        """Side of a portrait in pixels."""
        return int(self.light.shape[-1])


def cut_portraits(video: Video, crops: Crops, stages: npt.NDArray[np.int8]) -> Portraits:
    """Cut the nuclei out again, each turned upright by a cubic spline.

    The side of the portraits holds all but the largest half percent of the nuclei, with a rim of
    ``HALO`` px, and is a multiple of 8. Nuclei that their own contour does not reproduce are left
    out.

    Args:
        video: The annotated video.
        crops: Its whole nuclei.
        stages: Stage of every crop.

    Returns:
        The portraits, ordered as the crops.
    """
    radii = np.stack([contour(mask) for mask in crops.masks])
    turns = np.array([orientation(mask) for mask in crops.masks])
    overlaps = np.array(
        [overlap_with_contour(m, r) for m, r in zip(crops.masks, radii, strict=True)]
    )
    largest = float(np.quantile(radii.max(1), 0.995))
    patch = 8 * math.ceil((largest + HALO) / 4)
    keep = np.flatnonzero((overlaps >= LEAST_OVERLAP) & (radii.max(1) <= patch / 2))
    light = np.zeros((len(keep), patch, patch), np.float16)
    known = np.zeros((len(keep), patch, patch), bool)
    frames = {frame.number: frame for frame in video.frames}
    for number in np.unique(crops.frame[keep]).tolist():
        rows = np.flatnonzero(crops.frame[keep] == number)
        sheet = _Sheet(frames[number])
        for row in rows.tolist():
            crop = keep[row]
            light[row], known[row] = sheet.cut(
                int(crops.track[crop]), crops.centre[crop], float(turns[crop]), patch
            )
    return Portraits(
        light=light,
        known=known,
        radii=radii[keep].astype(np.float32),
        brightness=np.maximum(crops.brightness[keep], 1e-4).astype(np.float32),
        stage=stages[keep],
        track=crops.track[keep],
        frame=crops.frame[keep],
    )


class _Sheet:
    """One frame, ready to be read at any place."""

    def __init__(self, frame: Frame) -> None:
        above = frame.grey - frame.background
        self.masks = frame.masks
        self.shape = above.shape
        self.spline = ndimage.spline_filter(above, order=3, mode="mirror")
        distance = ndimage.distance_transform_edt(frame.masks == 0)
        # What is bright and far from every outline is a nucleus that the truth leaves out.
        empty = empty_places(frame.grey, frame.masks)
        self.stray = ndimage.binary_dilation((distance > _EDGE) & ~empty, iterations=2)

    def cut(
        self, identity: int, centre: npt.NDArray[np.float32], turn: float, patch: int
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]]:
        along, across = np.meshgrid(*[np.arange(patch) - (patch - 1) / 2] * 2, indexing="ij")
        y = centre[0] + math.cos(turn) * along - math.sin(turn) * across
        x = centre[1] + math.sin(turn) * along + math.cos(turn) * across
        light = ndimage.map_coordinates(self.spline, [y, x], order=3, prefilter=False)
        rows, columns = np.rint(y).astype(int), np.rint(x).astype(int)
        height, width = self.shape
        known = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        place = (rows.clip(0, height - 1), columns.clip(0, width - 1))
        labels = self.masks[place]
        own = labels == identity
        others = ~own & (labels > 0)
        alone = np.ones_like(own)
        if others.any():  # or there would be nothing to measure a distance to
            alone = ndimage.distance_transform_edt(~others) > NEIGHBOUR
        known &= own | (alone & ~self.stray[place])
        return np.where(known, light, 0).astype(np.float16), known
