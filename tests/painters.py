"""A painter whose pictures follow a known law, and lives for it to paint."""

import math

import numpy as np
import torch

from bvdm_data.synth.cells import Cell
from bvdm_data.synth.denoiser import Denoiser, DenoiserConfig, Student, StudentConfig


class LinearPainter(Denoiser):
    """Gives the exact velocity of pictures that are white noise around an evenly lit nucleus."""

    def __init__(self, spread=0.2, patch=48):
        super().__init__(DenoiserConfig(patch=patch, channels=(16, 16, 16), condition_channels=16))
        self.spread = spread
        self.levels = []

    def mean(self, edge, brightness):
        """Return the picture of a nucleus that is evenly lit, without a halo."""
        return self.normalize(brightness[:, None, None] * (edge[:, 0] <= 0), brightness)

    def forward(self, noisy, level, edge, brightness, stage):
        self.levels.append(float(level[0]))
        angle = (level * math.pi / 2)[:, None, None, None]
        mean, variance = self.mean(edge, brightness), self.spread**2
        rest = noisy - angle.cos() * mean
        rest = rest / (angle.cos() ** 2 * variance + angle.sin() ** 2)
        clean = mean + angle.cos() * variance * rest
        return angle.cos() * angle.sin() * rest - angle.sin() * clean


class OneCallPainter(Student):
    """Draws in one call what the probability flow of a linear painter ends in."""

    def __init__(self, painter, narrow=32):
        patch = painter.settings.patch
        settings = StudentConfig(
            patch=patch, small_patch=narrow, channels=(8, 8, 8), condition_channels=8
        )
        super().__init__(settings)
        self.painter = painter

    def forward(self, noise, edge, brightness, stage):
        return self.painter.mean(edge, brightness) + self.painter.spread * noise


def still_life(identity=1, parent=0, first=0, frames=4, radii=12.0, brightness=0.1, stage=0):
    """Return a life that looks the same in all frames, or has these radii [frames, 60]."""
    return Cell(
        identity=identity,
        parent=parent,
        first=first,
        radii=np.broadcast_to(np.asarray(radii, float), (frames, 60)).copy(),
        stages=np.full(frames, stage, np.int64),
        brightness=np.full(frames, brightness),
        divides=False,
    )


def wavy(count=1, seed=0, size=12.0):
    """Return contours [count, 60] with smooth bulges."""
    draws = np.random.default_rng(seed)
    angle = np.arange(60) * 2 * np.pi / 60
    radii = np.full((count, 60), size)
    for n in (1, 2, 3):
        shift = draws.uniform(0, 2 * np.pi, (count, 1))
        radii += size * draws.uniform(0, 0.12, (count, 1)) * np.cos(n * angle + shift)
    return radii


def random_painter(seed=0, spread=0.4, patch=48):
    """Return a small painter whose weights are random and large, so that all inputs matter."""
    # With 8 channels the norms, of one channel each, would cancel what a nucleus is like.
    settings = DenoiserConfig(patch=patch, channels=(16, 16, 16), condition_channels=16)
    with torch.random.fork_rng(devices=[]):
        painter = Denoiser(settings)
    generator = torch.Generator().manual_seed(seed)
    for value in painter.parameters():
        value.data = spread * torch.randn(value.shape, generator=generator)
    return painter.eval().requires_grad_(False)
