"""Drawn films of ellipses whose texture stays, changes, or is made anew in every frame."""

import numpy as np
import torch
from scipy import ndimage

SIDE = 168
SPACING = 42
LEVEL, NOISE = 0.07, 0.002


def grain(draws, side=64, width=1.4):
    """Band-limited noise of mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(draws.standard_normal((side, side)), width)
    return (field - field.mean()) / field.std()


def draw_film(kept=1.0, *, frames=9, seed=0, blur=1.0, contrast=0.3, light=0.1, size=1.0):
    """Return a clip of nine nuclei that wander and turn.

    kept: share of the texture's variance that is the same in all frames.
    """
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    video = np.zeros((frames, SIDE, SIDE))
    masks = np.zeros((frames, SIDE, SIDE), np.int32)
    middles = [(r, c) for r in range(SPACING, SIDE, SPACING) for c in range(SPACING, SIDE, SPACING)]
    for identity, place in enumerate(middles, start=1):
        radii = size * draws.uniform((10, 8), (12, 9.5))
        turn, spin = draws.uniform(0, 2 * np.pi), draws.uniform(-0.15, 0.15)
        centre = np.array(place, float)
        own = grain(draws)
        bright = light * draws.uniform(0.7, 1.3)
        for frame in range(frames):
            new = grain(draws)
            texture = np.sqrt(kept) * own + np.sqrt(1 - kept) * new
            centre = centre + draws.uniform(-1.5, 1.5, 2)
            turn += spin
            down, right = y - centre[0], x - centre[1]
            v = np.cos(turn) * down - np.sin(turn) * right
            u = np.sin(turn) * down + np.cos(turn) * right
            inside = (v / radii[0]) ** 2 + (u / radii[1]) ** 2 < 1
            places = [v[inside] + 32, u[inside] + 32]
            relative = ndimage.map_coordinates(texture, places, order=3)
            video[frame][inside] = bright * (1 + contrast * relative)
            masks[frame][inside] = identity
    video = np.stack([ndimage.gaussian_filter(image, blur) for image in video])
    video += LEVEL + NOISE * draws.standard_normal(video.shape)
    tracks = np.zeros((16, 4), np.int32)
    tracks[: len(middles)] = [(n + 1, 0, frames - 1, 0) for n in range(len(middles))]
    return as_clip(video, masks, tracks)


def as_clip(video, masks, tracks, stages=None):
    clip = {
        "video": torch.from_numpy(np.asarray(video, np.float32))[:, None],
        "masks": torch.from_numpy(np.asarray(masks, np.int32)),
        "tracks": torch.from_numpy(np.asarray(tracks, np.int32)),
        "index": torch.tensor(0),
        "source": torch.tensor(1, dtype=torch.int8),
    }
    return clip if stages is None else clip | {"stages": torch.as_tensor(stages, dtype=torch.int8)}


def still_clip(masks, light=0.1, frames=1, noise=0.0, blur=0.0):
    """Return a clip that shows the masks evenly bright on an even background."""
    image = ndimage.gaussian_filter(np.where(masks > 0, light, 0.0), blur) + LEVEL
    video = np.repeat(image[None], frames, 0)
    video = video + noise * np.random.default_rng(0).standard_normal(video.shape)
    ids = np.unique(masks[masks > 0])
    tracks = np.array([(n, 0, frames - 1, 0) for n in ids], np.int32).reshape(-1, 4)
    return as_clip(video, np.repeat(masks[None], frames, 0), tracks)


def ellipse(shape, centre, radii):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
