"""The authors' U-Net, reimplemented from a description of its layers, for comparison."""

import math

import torch
from torch import Tensor, nn


def _double(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, padding=1), nn.PReLU(hidden), nn.InstanceNorm2d(hidden),
        nn.Conv2d(hidden, outputs, 3, padding=1), nn.PReLU(outputs), nn.InstanceNorm2d(outputs),
    )  # fmt: skip


def _down(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 4, stride=2, padding=1),
        nn.PReLU(channels),
        nn.InstanceNorm2d(channels),
    )


def _up(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1),
        nn.PReLU(channels),
        nn.InstanceNorm2d(channels),
        nn.PixelShuffle(2),
    )


class ReferenceUNet(nn.Module):
    """0.90 M parameters, 1.85 GFLOP per 96 x 96 image; the time embedding enters each block."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.d1 = _double(1, 8, 16), _down(16)
        self.c2, self.d2 = _double(16, 16, 32), _down(32)
        self.c3, self.d3 = _double(32, 32, 64), _down(64)
        self.c4, self.u1 = _double(64, 64, 128), _up(128)
        self.c5, self.u2 = _double(96, 128, 128), _up(128)
        self.c6, self.u3 = _double(64, 128, 128), _up(128)
        self.c7 = _double(48, 16, 16)
        self.out = nn.Sequential(_double(16, 16, 16), nn.Conv2d(16, 1, 1))
        self.time = nn.ModuleList(
            nn.Sequential(nn.Linear(128, c), nn.PReLU(c), nn.Linear(c, c))
            for c in (16, 32, 64, 128, 128, 128, 16)
        )

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        rate = torch.exp(-math.log(10_000) * torch.arange(64) / 63)
        angle = step.float()[:, None] * rate
        embedded = torch.cat([angle.sin(), angle.cos()], 1)
        t = [layer(embedded)[:, :, None, None] for layer in self.time]
        c1 = self.c1(x) + t[0]
        c2 = self.c2(self.d1(c1)) + t[1]
        c3 = self.c3(self.d2(c2)) + t[2]
        x = self.c4(self.d3(c3)) + t[3]
        x = self.c5(torch.cat([self.u1(x), c3], 1)) + t[4]
        x = self.c6(torch.cat([self.u2(x), c2], 1)) + t[5]
        x = self.c7(torch.cat([self.u3(x), c1], 1)) + t[6]
        return self.out(x)
