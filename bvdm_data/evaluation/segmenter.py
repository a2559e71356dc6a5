"""Segmenter: a plain U-Net with foreground and distance heads, then watershed."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.evaluation.extras import need

CHANNELS = (16, 32, 64, 128)
"""Channels of the four levels; 0.49 million parameters."""

FOREGROUND, SEED_DISTANCE, LEAST_AREA = 0.5, 0.5, 40
"""Fixed thresholds, the same for every network: a pixel is a nucleus above a probability of 0.5; a
seed of the watershed is where the normalised distance is above 0.5; a nucleus has at least 40 px.
Our choice, tuned to nothing."""

Labels = npt.NDArray[np.int32]


class Segmenter(nn.Module):
    """Plain U-Net with two heads: foreground, and normalised distance to the outline.

    The simplest form of Scherr et al. 2020 (the paper's reference 24): touching nuclei are
    told apart by a watershed on the distance that the network predicts.
    """

    def __init__(self) -> None:
        """Make the network with random weights."""
        super().__init__()
        pairs = list(zip((1, *CHANNELS[:-1]), CHANNELS, strict=True))
        self.down = nn.ModuleList(_convolutions(i, o) for i, o in pairs)
        self.up = nn.ModuleList(_convolutions(o + i, i) for i, o in reversed(pairs[1:]))
        self.heads = nn.Conv2d(CHANNELS[0], 2, 1)

    def forward(self, grey: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N 2 H W"]:
        """Predict the logit of foreground, and the normalised distance.

        Args:
            grey: Grey values in [0, 1]; height and width are multiples of 8.

        Returns:
            Logit and distance.
        """
        x = adapted(grey)
        skips = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.down[-1](x)
        for block in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skips.pop()], 1))
        predicted: Tensor = self.heads(x)
        return predicted


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def adapted(grey: Tensor) -> Tensor:
    """Return the logarithm of the grey value, about centred, so that dim nuclei are not lost.

    Args:
        grey: Grey values in [0, 1], any shape.

    Returns:
        The same shape; 0 at a grey value of .11.
    """
    return (grey.clamp(min=0.02).log() + 2.2) / 0.6


def targets(labels: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.float32], ...]:
    """Return what a segmenter should predict for a label image.

    Args:
        labels: Instance ids, 0 background, ``[H, W]``.

    Returns:
        Foreground, 0 or 1, and distance to the nearest pixel that is another nucleus or
        background, divided by the largest in its nucleus; both ``[H, W]`` float32.
    """
    foreground = labels > 0
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        before, after = np.delete(labels, -1, axis), np.delete(labels, 0, axis)
        cut = (before != after) & (before > 0) & (after > 0)
        pad = [(0, 1) if a == axis else (0, 0) for a in (0, 1)]
        edge |= np.pad(cut, pad)
    distance = ndimage.distance_transform_edt(foreground & ~edge)
    if foreground.any():
        top = np.ones(int(labels.max()) + 1)
        np.maximum.at(top, labels, distance)
        distance /= top[labels]
    return foreground.astype(np.float32), distance.astype(np.float32)


def segmentation_loss(
    predicted: Float[Tensor, "N 2 H W"],
    foreground: Float[Tensor, "N H W"],
    distance: Float[Tensor, "N H W"],
) -> Tensor:
    """Return binary cross-entropy of the foreground plus squared error of the distance.

    Args:
        predicted: What the segmenter gave.
        foreground: 0 or 1.
        distance: Normalised distance, 0 outside.

    Returns:
        Scalar.
    """
    entropy = F.binary_cross_entropy_with_logits(predicted[:, 0], foreground)
    return entropy + 4 * F.mse_loss(predicted[:, 1], distance)


@dataclass(frozen=True)
class Prediction:
    """What a segmenter says of one frame, before the watershed.

    Attributes:
        foreground: Probability, ``[H, W]`` float32.
        distance: Normalised distance, ``[H, W]`` float32.
    """

    foreground: npt.NDArray[np.float32]
    distance: npt.NDArray[np.float32]


@torch.inference_mode()
def predict(network: nn.Module, grey: npt.NDArray[np.float32]) -> Prediction:
    """Run a segmenter on a whole frame.

    Args:
        network: A trained :class:`Segmenter`.
        grey: Grey values ``[H, W]``.

    Returns:
        Its two maps.
    """
    height, width = grey.shape
    down, right = -height % 8, -width % 8
    padded = F.pad(torch.from_numpy(grey)[None, None], (0, right, 0, down), mode="replicate")
    with torch.autocast("cpu", torch.bfloat16):
        found = network(padded.contiguous(memory_format=torch.channels_last))
    maps = found[0, :, :height, :width].float()
    return Prediction(maps[0].sigmoid().numpy(), maps[1].numpy())


def instances(prediction: Prediction) -> Labels:
    """Split the foreground into nuclei by a watershed from the middles of the distance map.

    Args:
        prediction: What the network said.

    Returns:
        Instance ids from 1, 0 background, ``[H, W]``.

    Raises:
        ModuleNotFoundError: If scikit-image is missing.
    """
    segmentation = need("skimage.segmentation")
    foreground = prediction.foreground > FOREGROUND
    smooth = ndimage.gaussian_filter(prediction.distance, 1)
    seeds, _ = ndimage.label((smooth > SEED_DISTANCE) & foreground)
    parts, count = ndimage.label(foreground)
    # A nucleus too small or flat for a seed of its own is one by itself.
    seeded = np.zeros(count + 1, bool)
    seeded[np.unique(parts[seeds > 0])] = True
    lone = foreground & ~seeded[parts]
    seeds[lone] = parts[lone] + int(seeds.max())
    found = segmentation.watershed(-smooth, seeds, mask=foreground)
    areas = np.bincount(found.ravel())
    large = areas >= LEAST_AREA
    large[0] = False
    names = np.cumsum(large) * large
    nuclei: Labels = names[found].astype(np.int32)
    return nuclei
