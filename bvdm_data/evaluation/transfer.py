"""Transfer: tests on the test video, changed in known ways, and on other annotated videos."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.evaluation.copy_paste import FRAME_AREA
from bvdm_data.evaluation.seg_tra import Reference, clear_outside, read_reference
from bvdm_data.rng import numpy_rng

# Frames of the test video that are changed; they follow each other, so that links are scored, too.
FRAMES = 6
LIMITS = (1, 99.8)  # percentiles by which the light of another video is brought to the known one's
# What is planted per FRAME_AREA: number, least and greatest standard deviation of a Gaussian spot
# in px, and its least and greatest light in grey values. Debris is smaller than nuclei and as
# bright as the dim ones; haze is larger and dimmer. All numbers of the changes are our choice.
DEBRIS, HAZE = (60, (1, 3), (0.005, 0.06)), (25, (8, 25), (0.0025, 0.03))

Grey = npt.NDArray[np.float32]


def add_haze(grey: Grey, frame: int) -> Grey:
    """Add spots of haze and debris that have no label, other ones in each frame."""
    rng, planted = numpy_rng(0, "haze", frame), grey.astype(float)
    rows, columns = (np.arange(side) for side in grey.shape)
    for number, spreads, lights in (DEBRIS, HAZE):
        for _ in range(round(number * grey.size / FRAME_AREA)):
            y, x = rng.uniform(0, grey.shape)
            spread, light = (np.exp(rng.uniform(*np.log(pair))) for pair in (spreads, lights))
            bells = [np.exp(-(((at - c) / spread) ** 2) / 2) for at, c in ((rows, y), (columns, x))]
            planted += light * np.outer(*bells)
    return planted.clip(0, 1).astype(np.float32)


def _brighten(grey: Grey, _: int) -> Grey:
    level = np.median(grey)
    return (level + 1.6 * (grey - level)).clip(0, 1)


def _bend(grey: Grey, _: int) -> Grey:
    level = np.median(grey)
    return np.asarray(level * (grey / level) ** 0.8, np.float32)


# Changes of the light of a frame, by name; its labels stay.
CHANGES: Mapping[str, Callable[[Grey, int], Grey]] = {
    "haze and debris": add_haze,
    "brightened 1.6": _brighten,
    "gamma 0.8": _bend,
    "blurred 1.5 px": lambda grey, _: ndimage.gaussian_filter(grey, 1.5),
}
ZOOMS = (0.75, 1.33)  # factors by which frames and masks are rescaled


def transform_reference(reference: Reference) -> dict[str, Reference]:
    """Change the first frames of a test video in several ways, by name."""
    parts = reference.video[:FRAMES], reference.masks[:FRAMES]
    changed = {}
    for name, change in CHANGES.items():
        video = np.stack([change(grey, frame) for frame, grey in enumerate(parts[0])])
        masks, tracks = clear_outside(parts[1], reference.tracks, reference.border)
        changed[name] = Reference(video, masks, tracks, reference.border)
    for zoom in ZOOMS:
        video, masks = (
            ndimage.zoom(part, (1, zoom, zoom), order=order, grid_mode=True, mode="nearest")
            for part, order in zip(parts, (1, 0), strict=True)
        )
        border = round(zoom * reference.border)
        masks, tracks = clear_outside(masks, reference.tracks, border)
        changed[f"rescaled {zoom:g}"] = Reference(video, masks, tracks, border)
    return changed


def read_other(root: Path, sequence: str, known: Grey, border: int) -> Reference:
    """Read another annotated video, its light brought to that of a known one by two percentiles."""
    other = read_reference(root, sequence, border=border)
    low, high = np.percentile(other.video, LIMITS)
    dark, bright = np.percentile(known, LIMITS)
    if not high > low:
        raise ValueError(f"sequence {sequence!r} of {root} must show light, got {low:g} everywhere")
    video = dark + (other.video - low) * ((bright - dark) / (high - low))
    return replace(other, video=video.clip(0, 1).astype(np.float32))
