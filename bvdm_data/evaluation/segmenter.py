"""Segmenter: a plain U-Net with foreground and distance heads, then watershed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset

from bvdm_data.adapters.common import Videos
from bvdm_data.fitting.training import Run, TrainingSettings, train_network
from bvdm_data.rng import torch_rng
from bvdm_data.system import require, run_mixed

CHANNELS = (16, 32, 64, 128)  # channels of the four levels; 0.49 million parameters
# Fixed thresholds, the same for every network: a pixel is a nucleus above a probability of 0.5; a
# seed of the watershed is where the normalised distance is above 0.5; a nucleus has at least 40
# px. Our choice, tuned to nothing.
FOREGROUND, SEED_DISTANCE, NUCLEUS_AREA = 0.5, 0.5, 40
# Grey value below which a gain does not reach: about that of empty background in video 01.
DARK = 0.07
# Batches over which the statistics of the finished network's batch normalisation are measured.
STATISTICS_BATCHES = 32

Labels = npt.NDArray[np.int32]
# Image, grey values, and labels, instance ids with 0 in the background.
Sample = tuple[Float[Tensor, "1 H W"], Int[Tensor, "H W"]]


class Segmenter(nn.Module):
    """Plain U-Net with two heads: foreground, and normalised distance to the outline.

    The simplest form of Scherr et al. 2020 (the paper's reference 24): touching nuclei are
    separated by a watershed on the distance that the network predicts.
    """

    def __init__(self) -> None:
        """Make the network with random weights."""
        super().__init__()
        pairs = list(zip((1, *CHANNELS[:-1]), CHANNELS, strict=True))
        self.down = nn.ModuleList(_make_convolutions(i, o) for i, o in pairs)
        self.up = nn.ModuleList(_make_convolutions(o + i, i) for i, o in reversed(pairs[1:]))
        self.heads = nn.Conv2d(CHANNELS[0], 2, 1)

    def forward(self, grey: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N 2 H W"]:
        """Predict the logit of foreground, and the normalised distance."""
        x = normalize(grey)
        skips = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.down[-1](x)
        for block in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skips.pop()], 1))
        return cast(Tensor, self.heads(x))


def _make_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def normalize(grey: Tensor) -> Tensor:
    """Return the logarithm of the grey value, about centred, so that dim nuclei are not lost."""
    return (grey.clamp(min=0.02).log() + 2.2) / 0.6


def make_targets(labels: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.float32], ...]:
    """Return what a segmenter should predict for a label image.

    Foreground, 0 or 1, and distance to the nearest pixel that is another nucleus or background,
    divided by the largest in its nucleus; both ``[H, W]`` float32.
    """
    foreground = labels > 0
    edge = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        is_cut = labels[first] != labels[second]
        edge[first] |= is_cut & foreground[first] & foreground[second]
    distance = ndimage.distance_transform_edt(foreground & ~edge)
    if foreground.any():
        top = np.ones(int(labels.max()) + 1)
        np.maximum.at(top, labels, distance)
        distance /= top[labels]
    return foreground.astype(np.float32), distance.astype(np.float32)


def compute_segmentation_loss(
    predicted: Float[Tensor, "N 2 H W"],
    foreground: Float[Tensor, "N H W"],
    distance: Float[Tensor, "N H W"],
) -> Tensor:
    """Return binary cross-entropy of the foreground plus squared error of the distance."""
    entropy = F.binary_cross_entropy_with_logits(predicted[:, 0], foreground)
    return entropy + 4 * F.mse_loss(predicted[:, 1], distance)


@dataclass(frozen=True)
class SegmenterOutput:
    """The maps that a segmenter predicts for one frame, before the watershed."""

    foreground: npt.NDArray[np.float32]  # probability, [H, W] float32
    distance: npt.NDArray[np.float32]  # normalised distance, [H, W] float32


@torch.inference_mode()
def predict(network: nn.Module, grey: npt.NDArray[np.float32]) -> SegmenterOutput:
    """Run a segmenter on a whole frame."""
    height, width = grey.shape
    pad = (0, -width % 8, 0, -height % 8)
    padded = F.pad(torch.from_numpy(grey)[None, None], pad, mode="replicate")
    with run_mixed(torch.device("cpu")):
        output = network(padded.contiguous(memory_format=torch.channels_last))
    maps = output[0, :, :height, :width].float()
    return SegmenterOutput(maps[0].sigmoid().numpy(), maps[1].numpy())


def separate_instances(prediction: SegmenterOutput) -> Labels:
    """Split the foreground into nuclei by a watershed from the peaks of the distance map.

    Instance ids from 1, 0 background, ``[H, W]``.
    """
    watershed = require("skimage.segmentation").watershed
    foreground = prediction.foreground > FOREGROUND
    smooth = ndimage.gaussian_filter(prediction.distance, 1)
    seeds, _ = ndimage.label((smooth > SEED_DISTANCE) & foreground)
    parts, count = ndimage.label(foreground)
    # A nucleus too small or flat for a seed of its own is one by itself.
    seeded = np.zeros(count + 1, bool)
    seeded[np.unique(parts[seeds > 0])] = True
    lone = foreground & ~seeded[parts]
    seeds[lone] = parts[lone] + int(seeds.max())
    labels = watershed(-smooth, seeds, mask=foreground)
    is_large = np.bincount(labels.ravel()) >= NUCLEUS_AREA
    is_large[0] = False
    numbers = (np.cumsum(is_large) * is_large).astype(np.int32)
    return np.asarray(numbers[labels])


def augment(
    image: Float[Tensor, "1 H W"], labels: Int[Tensor, "H W"], generator: torch.Generator
) -> Sample:
    """Apply one of the eight symmetries of the square, and a gain of the light of 0.8 to 1.25."""
    turns, mirrored = (int(torch.randint(n, (), generator=generator)) for n in (4, 2))
    log_gain = torch.empty(()).uniform_(math.log(0.8), math.log(1.25), generator=generator)
    lit = (image - DARK) * math.exp(float(log_gain)) + DARK
    turned = (torch.rot90(values, turns, (-2, -1)) for values in (lit, labels))
    image, labels = ((x.flip(-1) if mirrored else x).contiguous() for x in turned)
    return image, labels


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """How a segmenter is trained; the same for all arms."""

    steps: int = 1000  # optimiser steps
    batch: int = 4  # samples a step, each one frame of one clip
    rate: float = 2e-3  # learning rate of RAdam
    # decay of the exponential moving average of the weights, which makes the result quieter
    average: float = 0.99

    def __post_init__(self) -> None:
        """Refuse numbers that train nothing."""
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Samples(Dataset[dict[str, Tensor]]):
    """Training samples of one arm: sample ``i`` is a pure function of (clips, seed, ``i``)."""

    clips: Videos
    seed: int
    count: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Take the next clip; draw a frame of it, and its augmentation."""
        if not 0 <= index < self.count:  # a loop over the samples ends here
            raise IndexError(f"index must be from 0 to {self.count - 1}, got {index}")
        generator = torch_rng(self.seed, "sample", index)
        clip = self.clips.clip(self.seed * self.count + index)
        frame = int(torch.randint(len(clip["video"]), (), generator=generator))
        image, labels = augment(clip["video"][frame], clip["masks"][frame], generator)
        foreground, distance = map(torch.from_numpy, make_targets(labels.numpy()))
        return {"grey": image, "foreground": foreground, "distance": distance}


def train_segmenter(
    clips: Videos,
    settings: SegmenterSettings,
    *,
    checkpoint: Path,
    identity: str,
    seed: int = 0,
    progress: bool = True,
) -> Segmenter:
    """Train a segmenter on clips; after a kill, the same call continues.

    The seed alone decides the first weights, the random numbers of the samples and the order, so
    that two arms differ in nothing but their clips.
    """
    size = settings.batch
    samples = Samples(clips, seed, settings.steps * size)
    batches: list[Iterator[dict[str, Tensor]]] = []

    def load(numbers: range) -> Iterator[dict[str, Tensor]]:
        # Without a generator, the loader would draw from the global random state.
        rng = torch.Generator()
        return iter(DataLoader(samples, batch_size=size, sampler=numbers, generator=rng))

    def train_loss(net: nn.Module, step: int) -> Tensor:
        if not batches:
            batches.append(load(range(step * size, len(samples))))
        batch = next(batches[0])
        with run_mixed(torch.device("cpu")):
            predicted = net(batch["grey"].contiguous(memory_format=torch.channels_last))
        return compute_segmentation_loss(predicted.float(), batch["foreground"], batch["distance"])

    # No validation: the test video alone measures a network; thresholds and steps are fixed.
    losses = train_loss, lambda _: 0.0
    training = TrainingSettings(**vars(settings), seed=seed, save_every=100, check_every=100)
    network, _ = train_network(
        "segmenter",
        lambda: Segmenter().to(memory_format=torch.channels_last),
        lambda _: losses,
        training,
        Run(checkpoint, progress=progress),
        data=(settings, identity),
    )
    measured = load(range(min(STATISTICS_BATCHES * size, len(samples))))
    with run_mixed(torch.device("cpu")):
        greys = (batch["grey"] for batch in measured)
        update_bn((grey.contiguous(memory_format=torch.channels_last) for grey in greys), network)
    return network
