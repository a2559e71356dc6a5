"""A denoiser whose images follow a known law, and cells for it to draw."""

import math

import numpy as np
import torch

from bvdm_data.synth.cells import Cell
from bvdm_data.synth.denoiser import Denoiser, DenoiserConfig, Student, StudentConfig


class LinearDenoiser(Denoiser):
    """Exact denoiser of images that are white noise around an evenly lit nucleus."""

    def __init__(self, spread=0.2, patch=48):
        super().__init__(DenoiserConfig(patch=patch, channels=(16, 16, 16), condition_channels=16))
        self.spread = spread
        self.levels = []

    def mean(self, edge, brightness):
        """Return the image of an evenly lit nucleus without a halo."""
        return self.normalize(brightness[:, None, None] * (edge[:, 0] <= 0), brightness)

    def forward(self, noisy, level, edge, brightness, stage):
        self.levels.append(float(level[0]))
        angle = (level * math.pi / 2)[:, None, None, None]
        mean, variance = self.mean(edge, brightness), self.spread**2
        rest = noisy - angle.cos() * mean
        rest = rest / (angle.cos() ** 2 * variance + angle.sin() ** 2)
        clean = mean + angle.cos() * variance * rest
        return angle.cos() * angle.sin() * rest - angle.sin() * clean


class OneStepStudent(Student):
    """Maps noise in one call to the end of a linear denoiser's probability flow."""

    def __init__(self, denoiser):
        patch = denoiser.settings.patch
        super().__init__(StudentConfig(patch=patch, channels=(8, 8, 8), condition_channels=8))
        self.denoiser = denoiser

    def forward(self, noise, edge, brightness, stage):
        return self.denoiser.mean(edge, brightness) + self.denoiser.spread * noise


def make_still_cell(identity=1, parent=0, first=0, frames=4, radii=12.0, brightness=0.1, stage=0):
    """Return a cell that looks the same in all frames, or has these radii [frames, 60]."""
    return Cell(
        identity=identity,
        parent=parent,
        first=first,
        radii=np.broadcast_to(np.asarray(radii, float), (frames, 60)).copy(),
        stages=np.full(frames, stage, np.int64),
        brightness=np.full(frames, brightness),
        divides=False,
    )


def make_wavy_contours(count=1, seed=0, size=12.0):
    """Return contours [count, 60] with smooth bulges."""
    rng = np.random.default_rng(seed)
    angle = np.arange(60) * 2 * np.pi / 60
    radii = np.full((count, 60), size)
    for n in (1, 2, 3):
        shift = rng.uniform(0, 2 * np.pi, (count, 1))
        radii += size * rng.uniform(0, 0.12, (count, 1)) * np.cos(n * angle + shift)
    return radii


def make_random_denoiser(seed=0, spread=0.4, patch=48):
    """Return a small denoiser whose weights are random and large, so that all inputs matter."""
    # With 8 channels the norms, of one channel each, would cancel the condition.
    settings = DenoiserConfig(patch=patch, channels=(16, 16, 16), condition_channels=16)
    with torch.random.fork_rng(devices=[]):
        denoiser = Denoiser(settings)
    generator = torch.Generator().manual_seed(seed)
    for value in denoiser.parameters():
        value.data = spread * torch.randn(value.shape, generator=generator)
    return denoiser.eval().requires_grad_(False)
