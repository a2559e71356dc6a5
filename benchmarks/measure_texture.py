"""Measures the light inside nuclei, in a real video and in one that the model makes.

Run ``python -m benchmarks.measure_texture ROOT``, ROOT being the folder of Fluo-N2DL-HeLa. Only
video 01 is read. The defaults of ``ProceduralSettings`` were chosen so that both tables agree.
"""

import argparse
import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage

from bvdm_data import STAGES, CameraScale, ProceduralSettings
from bvdm_data.datasets.ctc import guess_scale, read_sequence
from bvdm_data.fitting.crops import Crops, cut_nuclei
from bvdm_data.fitting.stages import assign_stages
from bvdm_data.fitting.video import Frame, Video, background_light, read_video
from bvdm_data.synth.generator import SceneSettings, synthesise
from bvdm_data.weights import load

DEPTHS = np.arange(0.5, 9.5)
"""Distances from the edge of the mask at which light is measured, px; pixels are .5 apart."""

SHIFTS = (1, 2, 3, 4, 5, 6, 8, 10)
LAGS = (1, 2, 4, 7)
SIDE = 24
"""Half side of the square that a turned nucleus is compared in, px."""


def relative_light(crops: Crops) -> np.ndarray:
    """Return the light of nuclei over their own mean, [n, 96, 96]."""
    return crops.light.astype(np.float32) / crops.brightness[:, None, None]


def depths(crops: Crops) -> np.ndarray:
    """Return the distance of every pixel of a nucleus to its edge, px, [n, 96, 96]."""
    return np.stack([ndimage.distance_transform_edt(mask) - 0.5 for mask in crops.masks])


def profile(light: np.ndarray, depth: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the mean relative light at each depth; NaN where no nucleus is so thick."""
    ring = np.where(masks, np.rint(depth - 0.5).astype(int), -1)
    found = [light[ring == n] for n in range(len(DEPTHS))]
    return np.array([values.mean() if values.size > 200 else np.nan for values in found])


def rows_of(crops: Crops, stages: np.ndarray, most: int = 400) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the bright enough nuclei of each stage."""
    bright = crops.brightness > np.quantile(crops.brightness, 0.25)
    draws = np.random.default_rng(0)
    for stage, name in enumerate(STAGES):
        rows = np.flatnonzero((stages == stage) & bright)
        yield name, np.sort(draws.permutation(rows)[:most])


def shift_correlation(
    light: np.ndarray, inside: np.ndarray, noise: np.ndarray
) -> tuple[float, list[float]]:
    """Return the variance without the camera's noise, and the correlation at SHIFTS down."""
    power = float((light**2)[inside].mean() - noise.mean())
    found = []
    for shift in SHIFTS:
        both = inside[:, shift:] & inside[:, :-shift]
        product = (light[:, shift:] * light[:, :-shift])[both]
        found.append(float(product.mean()) / power if product.size > 500 else math.nan)
    return power, found


def print_stages(crops: Crops, stages: np.ndarray, noise: float) -> None:
    """Print contrast, profile and grain of the nuclei of each stage."""
    print("stage: number, std/mean inside, the same 2 px off the edge | light by depth .5, 1.5 ...")
    print("  grain (light less its mean at that depth): std | correlation at", SHIFTS, "px")
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


def turned(picture: np.ndarray, mask: np.ndarray, angle: float) -> np.ndarray:
    """Cut a square around the centroid, turned by an angle; outside the mask NaN."""
    y, x = np.mgrid[-SIDE : SIDE + 1, -SIDE : SIDE + 1]
    centre = np.argwhere(mask).mean(0)
    places = [
        centre[0] + math.cos(angle) * y - math.sin(angle) * x,
        centre[1] + math.sin(angle) * y + math.cos(angle) * x,
    ]
    light = ndimage.map_coordinates(picture, places, order=1)
    inside = ndimage.map_coordinates(mask.astype(np.float32), places, order=1) > 0.5
    return np.where(inside, light, np.nan)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation where both are inside."""
    both = ~np.isnan(one) & ~np.isnan(other)
    return float(np.corrcoef(one[both], other[both])[0, 1]) if both.sum() > 50 else math.nan


def best_correlation(light: np.ndarray, masks: np.ndarray, one: int, other: int) -> float:
    """Return the correlation after the best turn, from -30 to 30 degrees."""
    resting = turned(light[one], masks[one], 0.0)
    angles = np.deg2rad(np.arange(-30, 31, 5))
    return max(correlation(resting, turned(light[other], masks[other], a)) for a in angles)


def print_times(crops: Crops, stages: np.ndarray, tracks: int = 60) -> None:
    """Print how alike a nucleus in interphase is to itself later, and to another one."""
    light = crops.light.astype(np.float32)
    place = {pair: i for i, pair in enumerate(zip(crops.track, crops.frame, strict=True))}
    draws = np.random.default_rng(0)
    starts = []
    for track in draws.permutation(np.unique(crops.track)):
        rows = np.flatnonzero((crops.track == track) & (stages == 0))
        if len(rows) > max(LAGS) + 1:
            starts.append(int(draws.choice(rows[: -max(LAGS)])))
    starts = starts[:tracks]
    for lag in LAGS:
        ends = [place.get((crops.track[row], crops.frame[row] + lag)) for row in starts]
        found = [
            best_correlation(light, crops.masks, row, end)
            for row, end in zip(starts, ends, strict=True)
            if end is not None and stages[end] == 0
        ]
        print(f"  lag {lag}: {np.nanmedian(found):.3f} of {len(found)}")
    found = [
        best_correlation(light, crops.masks, a, b)
        for a, b in zip(starts, [*starts[1:], starts[0]], strict=True)
    ]
    print(f"  another nucleus: {np.nanmedian(found):.3f}")


def made_video(frames: int, seed: int, settings: ProceduralSettings) -> Video:
    """Make a video by the procedural method, as it would be read."""
    generator = load("hela")
    scene = SceneSettings(frames=frames, size=(500, 700))
    film = synthesise(generator, scene, settings, seed=seed, name=("measure",))
    shown = tuple(
        Frame(number, grey, masks, background_light(grey, masks))
        for number, (grey, masks) in enumerate(zip(film.video, film.masks, strict=True))
    )
    scale = CameraScale(generator.camera.offset, generator.camera.full)
    return Video(shown, film.tracks, scale)


def report(video: Video, noise: float) -> None:
    """Print all tables of a video."""
    crops = cut_nuclei(video)
    stages = assign_stages(crops, video.tracks)
    print_stages(crops, stages, noise)
    print("correlation of the inside in interphase, after the best turn (median)")
    print_times(crops, stages)


def main() -> None:
    """Print the tables of video 01 and of a procedural one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="folder of Fluo-N2DL-HeLa")
    parser.add_argument("--frames", type=int, default=40, help="length of the procedural video")
    parser.add_argument("--only", choices=("real", "procedural"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    noise = load("hela").camera.noise
    if given.only != "procedural":
        sequence = read_sequence(given.root, "01")
        print("## video 01")
        report(read_video(sequence, guess_scale(sequence), progress=False), noise)
    if given.only != "real":
        print("## procedural")
        report(made_video(given.frames, 0, ProceduralSettings()), noise)


if __name__ == "__main__":
    main()
