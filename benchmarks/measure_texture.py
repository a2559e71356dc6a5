"""Measure the texture of nuclei in a real video and in a procedural one.

Run ``python -m benchmarks.measure_texture ROOT``, where ROOT is the folder of Fluo-N2DL-HeLa. Only
video 01 is read. The defaults of ``ProceduralSettings`` were chosen so that both tables agree.
"""

import argparse
import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage

from bvdm_data import Clip, CTCVideos, SyntheticHeLaVideos
from bvdm_data.clip import PHASES
from bvdm_data.evaluation.nucleus_features import list_detections
from bvdm_data.evaluation.video_statistics import measure_texture_autocorrelation
from bvdm_data.fitting.nuclei import Crops, extract_crops, measure_nuclei
from bvdm_data.fitting.video import Video, make_video
from bvdm_data.weights import load

DEPTHS = np.arange(0.5, 9.5)
"""Depths below the edge of the mask at which brightness is measured, px."""

SHIFTS = (1, 2, 3, 4, 5, 6, 8, 10)
"""Shifts at which the texture is correlated with itself, px."""


def relative_light(crops: Crops) -> np.ndarray:
    """Return the brightness of nuclei relative to their mean, [n, 96, 96]."""
    return crops.light.astype(np.float32) / crops.brightness[:, None, None]


def depths(crops: Crops) -> np.ndarray:
    """Return the distance of every pixel of a nucleus to its edge, px, [n, 96, 96]."""
    return np.stack([ndimage.distance_transform_edt(mask) - 0.5 for mask in crops.masks])


def profile(light: np.ndarray, depth: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the mean relative brightness at each depth; NaN where too few pixels are this deep."""
    ring = np.where(masks, np.rint(depth - 0.5).astype(int), -1)
    found = [light[ring == n] for n in range(len(DEPTHS))]
    return np.array([values.mean() if values.size > 200 else np.nan for values in found])


def rows_of(crops: Crops, stages: np.ndarray, most: int = 400) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the nuclei of each stage, without the dimmest quarter."""
    bright = crops.brightness > np.quantile(crops.brightness, 0.25)
    draws = np.random.default_rng(0)
    for stage, name in enumerate(PHASES):
        rows = np.flatnonzero((stages == stage) & bright)
        yield name, np.sort(draws.permutation(rows)[:most])


def shift_correlation(
    light: np.ndarray, inside: np.ndarray, noise: np.ndarray
) -> tuple[float, list[float]]:
    """Return the variance without camera noise, and the correlation at vertical SHIFTS."""
    power = float((light**2)[inside].mean() - noise.mean())
    found = []
    for shift in SHIFTS:
        both = inside[:, shift:] & inside[:, :-shift]
        product = (light[:, shift:] * light[:, :-shift])[both]
        found.append(float(product.mean()) / power if product.size > 500 else math.nan)
    return power, found


def print_stages(crops: Crops, stages: np.ndarray, noise: float) -> None:
    """Print contrast, profile and grain of the nuclei of each stage."""
    print("stage: count, std/mean inside, the same below 2 px | brightness by depth .5, 1.5 ...")
    print("  grain (brightness minus its mean at that depth): std | correlation at", SHIFTS, "px")
    for name, rows in rows_of(crops, stages):
        if len(rows) < 5:
            continue
        part = Crops(**{key: value[rows] for key, value in vars(crops).items()})
        light, depth, masks = relative_light(part), depths(part), part.masks
        pairs = list(zip(light, masks, depth, strict=True))
        whole = np.median([one[mask].std() for one, mask, _ in pairs])
        core = [one[far > 2].std() / one[far > 2].mean() for one, _, far in pairs if far.max() > 3]
        mean = profile(light, depth, masks)
        at = np.interp(depth, DEPTHS[~np.isnan(mean)], mean[~np.isnan(mean)])
        inside = depth > 2
        rest = np.where(inside, light - at, 0)
        of_noise = (noise / part.brightness) ** 2
        power, correlation = shift_correlation(rest, inside, of_noise)
        print(f"{name}: {len(rows)}, {whole:.3f}, {np.median(core):.3f} |", mean.round(2))
        print(f"  {math.sqrt(max(power, 0)):.3f} |", np.round(correlation, 2))


def print_persistence(clip: Clip) -> None:
    """Print the correlation of a nucleus with itself in later frames, and with other nuclei."""
    found = measure_texture_autocorrelation([clip], list_detections([clip]))
    lags = ", ".join(f"{lag}: {np.median(values):.3f}" for lag, values in found.lags.items())
    print(f"correlation of the inside by lag: {lags}; unrelated: {np.median(found.unrelated):.3f}")


def as_video(clip: Clip) -> Video:
    """Convert a clip to the video type used for fitting."""
    tracks = clip["tracks"][clip["tracks"][:, 0] > 0]
    return make_video(clip["video"][:, 0].numpy(), clip["masks"].numpy(), tracks.numpy())


def main() -> None:
    """Print the tables of video 01 and of a procedural video."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="folder of Fluo-N2DL-HeLa")
    parser.add_argument("--only", choices=("real", "procedural"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    noise = load("hela").camera.noise
    shape = {"frames": 92, "size": (650, 1050)}
    if given.only != "procedural":
        print("## video 01")
        clip = CTCVideos(given.root, sequence="01", **shape).clip(0)
        video = as_video(clip)
        crops = extract_crops(video)
        print_stages(crops, measure_nuclei(crops, video.tracks).stage, noise)
        print_persistence(clip)
    if given.only != "real":
        print("## procedural")
        wanted = ("masks", "tracks", "stages")
        clip = SyntheticHeLaVideos(method="procedural", annotations=wanted, **shape).clip(0)
        crops = extract_crops(as_video(clip))
        print_stages(crops, clip["stages"].numpy()[crops.track - 1, crops.frame], noise)
        print_persistence(clip)


if __name__ == "__main__":
    main()
