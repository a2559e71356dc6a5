"""The annotated frames that everything is fitted to, their background, and the camera's model."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import median_abs_deviation

from bvdm_data.background import (
    LEAST_BACKGROUND,
    correlate_along_rows,
    estimate_background,
    extract_noise,
    find_free,
    mask_background,
)
from bvdm_data.clip import CameraScale
from bvdm_data.datasets.ctc import CTCSequence
from bvdm_data.fitting.progress import Progress, open_bar
from bvdm_data.fitting.tracker import apply_links
from bvdm_data.synth.camera import CameraModel
from bvdm_data.synth.contours import Array


@dataclass(frozen=True)
class Frame:
    """One frame of the fitted video."""

    number: int  # frame number, 0 for the first in use
    grey: npt.NDArray[np.float32]  # image in [0, 1], [H, W] float32
    masks: npt.NDArray[np.int32]  # track ids, [H, W] int32
    background: npt.NDArray[np.float32]  # smooth background light, [H, W] float32
    is_clear: bool = True  # whether it shows enough background to measure; else it is a neighbour's


@dataclass(frozen=True)
class Video:
    """An annotated video."""

    frames: tuple[Frame, ...]  # its frames in order
    tracks: npt.NDArray[np.int32]  # id, first frame, last frame, parent, [n, 4]
    skipped: int = 0  # frames in use that have no masks


def make_video(
    grey: npt.NDArray[np.float32],
    masks: npt.NDArray[np.int32],
    tracks: npt.NDArray[np.int32],
) -> Video:
    """Make a video of images and masks, ``[F, H, W]``."""
    frames = enumerate(zip(grey, masks, strict=True))
    return Video(tuple(_make_frame(number, *frame) for number, frame in frames), tracks)


def _make_frame(number: int, grey: npt.NDArray[np.float32], masks: npt.NDArray[np.int32]) -> Frame:
    return Frame(number, grey, masks, estimate_background(grey, masks))


class VideoTooShortError(ValueError):
    """A video shows too little to fit a model to: too few frames or divisions."""


def read_video(
    sequence: CTCSequence,
    scale: CameraScale,
    *,
    alone: bool = False,
    progress: bool | Progress = True,
) -> Video:
    """Read the frames that have masks.

    ``alone``: Whether masks without tracks will do; each has a track of its own in every frame.
    """
    if not len(sequence.tracks) and not alone:
        raise ValueError(
            f"sequence {sequence.name!r} of {sequence.folder} has no man_track.txt: outlines, "
            "light and density can be learned from it, lives, divisions and motion cannot; track "
            'the nuclei, or give link=True (--link), or lives="hela" (--lives hela)'
        )
    frames, first = [], sequence.numbers[0]
    bar = open_bar(progress, "reading", len(sequence))
    for number in sequence.numbers:
        bar.update()
        masks = sequence.masks(number)
        if masks is not None and masks.any():
            grey = scale.to_grey(sequence.frame(number))
            frames.append(_make_frame(number - first, grey, masks))
    bar.close()
    if len(frames) < 2:
        raise VideoTooShortError(
            f"sequence {sequence.name!r} of {sequence.folder} must have masks in at least 2 frames "
            f"to fit shapes and motion, got {len(frames)} among frames {sequence.numbers[0]} to "
            f"{sequence.numbers[-1]}; give a longer video, a later stop or another truth"
        )
    clear = tuple(_borrow_backgrounds(frames, sequence))
    tracks = sequence.tracks - np.array([0, first, first, 0], np.int32)
    if not len(tracks):
        masks, tracks = apply_links(np.stack([frame.masks for frame in clear]), ())
        clear = tuple(replace(f, masks=own) for f, own in zip(clear, masks, strict=True))
        tracks[:, 1:3] = np.array([frame.number for frame in clear])[tracks[:, 1:3]]
    return Video(clear, tracks, len(sequence) - len(frames))


def _borrow_backgrounds(frames: list[Frame], sequence: CTCSequence) -> list[Frame]:
    """Give frames that are too crowded to show background that of the nearest other frame."""
    shares = np.array([[find_free(f.masks).mean(), (f.masks == 0).mean()] for f in frames])
    # Where no frame shows background off all nuclei, what lies between them must do.
    usable = [rows for rows in (shares >= LEAST_BACKGROUND).T if rows.any()]
    if not usable:
        raise ValueError(
            f"sequence {sequence.name!r} of {sequence.folder} must show background in at least one "
            f"frame to measure noise and light, got at most {100 * shares.max():.2f} % of a frame "
            f"outside the masks; at least {100 * LEAST_BACKGROUND:g} % are needed: give less "
            "crowded frames, or check the masks"
        )
    clear = np.flatnonzero(usable[0])
    near = [clear[np.abs(clear - row).argmin()] for row in range(len(frames))]
    return [
        frame if row == i else replace(frame, background=frames[i].background, is_clear=False)
        for row, (frame, i) in enumerate(zip(frames, near, strict=True))
    ]


# Length of the kernel that correlates noise along rows (HeLa: no correlation beyond 4 px).
STREAK = 9
FRAMES = 24  # frames that noise and blur are measured on, evenly spread over the video
_LAG = 50


def fit_camera(video: Video, scale: CameraScale) -> CameraModel:
    """Measure the background, the noise and the blur, in the frames that show background."""
    clear = [frame for frame in video.frames if frame.is_clear]
    levels = np.array([float(np.median(frame.background)) for frame in clear])
    fields = [f.background - level for f, level in zip(clear, levels, strict=True)]
    count = len(fields)
    chosen = sorted({round(i) for i in np.linspace(0, count - 1, min(count, FRAMES))})
    frames = [clear[i] for i in chosen]
    noise, correlation = _measure_noise(frames)
    return CameraModel(
        level=float(np.median(levels)),
        level_spread=float(median_abs_deviation(levels, scale="normal")),
        field_spread=float(np.mean([field.std() for field in fields])),
        field_width=_measure_field_width([fields[i] for i in chosen]),
        noise=noise,
        streak=_fit_row_noise_kernel(correlation),
        halo=_measure_halo(frames),
        offset=scale.offset,
        full=scale.full,
    )


def _fit_row_noise_kernel(correlation: Array) -> Array:
    """Return the symmetric kernel that gives white noise a correlation along rows.

    Its spectrum is the square root of the spectrum that belongs to the correlation
    (Wiener-Khinchin).

    Returns a kernel of unit energy, ``[STREAK]``.
    """
    angle = 2 * math.pi * np.arange(64) / 64
    power = 1 + 2 * sum(r * np.cos(k * angle) for k, r in enumerate(correlation, start=1))
    whole = np.fft.ifft(np.sqrt(np.maximum(power, 0))).real
    kernel = np.roll(whole, STREAK // 2)[:STREAK]
    return np.asarray(kernel / np.sqrt((kernel**2).sum()))


def _measure_noise(frames: list[Frame]) -> tuple[float, Array]:
    """Measure the robust deviation of the noise, and its correlation along rows, lags 1 to 4."""
    spreads, correlations = [], []
    for frame in frames:
        free = mask_background(frame.grey, frame.masks)
        rest = extract_noise(frame.grey - frame.background, free)
        spreads.append(float(median_abs_deviation(rest[free], scale="normal")))
        power = max(float((rest[free] ** 2).mean()), 1e-12)  # 0 without noise
        lags = range(1, STREAK // 2 + 1)
        correlations.append([correlate_along_rows(rest, free, lag) / power for lag in lags])
    return float(np.median(spreads)), np.median(np.nan_to_num(correlations), axis=0)


def correlate(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> float:
    """Return the correlation of two series; 0 where one of them does not vary."""
    varies = np.std(first) > 0 and np.std(second) > 0
    return float(np.corrcoef(first, second)[0, 1]) if varies else 0.0


def _measure_field_width(fields: list[npt.NDArray[np.float32]]) -> float:
    """Measure the width of the Gaussian that gives white noise the correlation of the field."""
    widths = []
    for field in (field for field in fields if field.std() > 0):
        lag = min(_LAG, field.shape[1] // 4)
        correlation = correlate(field[:, lag:].ravel(), field[:, :-lag].ravel())
        correlation = min(max(correlation, 0.05), 0.99)
        widths.append(lag / (2 * math.sqrt(-math.log(correlation))))
    return float(np.median(widths)) if widths else float(_LAG)


def _measure_halo(frames: list[Frame]) -> float:
    """Measure the width, px, of the Gaussian that best explains the light around the outlines."""
    widths = np.arange(0.6, 4.01, 0.2)
    errors = np.zeros(len(widths))
    for frame in frames[:: max(1, len(frames) // 8)]:
        inside = frame.masks > 0
        light = np.where(inside, frame.grey - frame.background, 0)
        distance = ndimage.distance_transform_edt(~inside)
        rim = (distance > 0) & (distance <= 5)
        outside = (frame.grey - frame.background)[rim]
        for i, width in enumerate(widths):
            errors[i] += ((ndimage.gaussian_filter(light, width)[rim] - outside) ** 2).mean()
    return float(widths[errors.argmin()])
