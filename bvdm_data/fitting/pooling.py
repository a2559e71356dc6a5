"""Videos of large nuclei: pixels are pooled for the fit, and the model is enlarged again."""

import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from bvdm_data.fitting.motion import scale_motion
from bvdm_data.fitting.nuclei import SHARE
from bvdm_data.fitting.video import Video
from bvdm_data.synth.camera import CameraModel
from bvdm_data.synth.model import Model

LARGEST = 64  # side in pixels of nuclei that need no pooling
_MOST = 6  # pixels along a side that are made one; a model file holds no larger nuclei


def choose_pooling(video: Video) -> int:
    """Return how many pixels along a side are made one, so that 95 % of the nuclei are small."""
    boxes = [box for frame in video.frames for box in ndimage.find_objects(frame.masks) if box]
    sides = [max(side.stop - side.start for side in box) for box in boxes]
    side = float(np.quantile(sides, 1 - SHARE)) if sides else 1.0
    if side > _MOST * LARGEST:
        factor = math.floor(100 * _MOST * LARGEST / side) / 100
        raise ValueError(
            f"nuclei must be at most {_MOST * LARGEST} px across, got {side:.0f} in 5 % of them; "
            f"scale the video down to {factor:g} of its height and width"
        )
    return max(1, math.ceil(side / LARGEST))


def pool_video(video: Video, factor: int) -> Video:
    """Average squares of pixels; a mask has those of which it has most."""
    if factor == 1:
        return video

    def cut(image: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        rows, columns = (side // factor for side in image.shape)
        squares = image[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
        return squares.swapaxes(1, 2).reshape(rows, columns, -1)

    frames = [
        replace(
            frame,
            grey=cut(frame.grey).mean(-1, dtype=np.float32),
            masks=stats.mode(cut(frame.masks), axis=-1).mode,
            background=cut(frame.background).mean(-1, dtype=np.float32),
        )
        for frame in video.frames
    ]
    return replace(video, frames=tuple(frames))


def enlarge_model(model: Model, factor: int, camera: CameraModel) -> Model:
    """Return the model of the video itself, given that of the pooled one and its own camera."""
    if factor == 1:
        return model
    shapes, lives = model.shapes, model.lives
    motion = replace(scale_motion(model.motion, factor), density=model.motion.density / factor**2)
    painter, distilled = deepcopy((model.painter, model.distilled))
    painter.settings = replace(painter.settings, pooling=factor)
    distilled.settings = replace(distilled.settings, pooling=factor)
    return replace(
        model,
        shapes=replace(
            shapes,
            mean=factor * shapes.mean,
            modes=factor * shapes.modes,
            label_shift=factor * shapes.label_shift,
        ),
        lives=replace(
            lives,
            mother_area=factor**2 * lives.mother_area,
            adult_area=factor**2 * lives.adult_area,
        ),
        motion=motion,
        camera=camera,
        painter=painter,
        distilled=distilled,
    )
