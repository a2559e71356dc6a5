"""Segmentation training: one recipe for all arms, so that they differ in their data alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bvdm_data.clip import Clip
from bvdm_data.evaluation.augmentation import plain, strong
from bvdm_data.evaluation.segmenter import Segmenter, segmentation_loss, targets
from bvdm_data.fitting.training import TrainingSettings, purpose_of, train
from bvdm_data.randomness import stream

AUGMENTATIONS = {"plain": plain, "strong": strong}
"""What may be done to a training sample; ``"plain"`` for every arm but the one named after it."""

STATISTICS_BATCHES = 32
"""Batches over which the normalisation of the finished network is measured."""


class Clips(Protocol):
    """Where an arm takes its samples from."""

    def clip(self, index: int) -> Clip:
        """Return clip ``index`` of an endless series."""


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """How a segmenter is trained; the same for all arms.

    Attributes:
        steps: Optimiser steps.
        batch: Samples a step, each one frame of one clip.
        rate: Learning rate of RAdam.
        average: Decay of the exponential moving average of the weights, which makes the
            result quieter.
    """

    steps: int = 400
    batch: int = 4
    rate: float = 2e-3
    average: float = 0.98

    def __post_init__(self) -> None:
        """Refuse numbers that train nothing."""
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Samples(Dataset[dict[str, Tensor]]):
    """Training samples of one arm: sample ``i`` is a pure function of (clips, seed, ``i``).

    Args:
        clips: The arm's data.
        augmentation: Out of ``AUGMENTATIONS``.
        seed: Seed of the choice of frames and of the augmentation.
        count: How many samples there are.
    """

    def __init__(self, clips: Clips, augmentation: str, seed: int, count: int) -> None:
        """Remember where the samples come from; see the class."""
        self.clips = clips
        self.augmentation = augmentation
        self.seed = seed
        self.count = count

    def __len__(self) -> int:
        """Return how many samples there are."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Take the next clip; draw a frame of it, and its augmentation."""
        if not 0 <= index < self.count:
            raise IndexError(f"index must be from 0 to {self.count - 1}, got {index}")
        generator = stream(self.seed, "sample", index)
        clip = self.clips.clip(self.seed * self.count + index)
        frame = int(torch.randint(len(clip["video"]), (), generator=generator))
        image, labels = AUGMENTATIONS[self.augmentation](
            clip["video"][frame], clip["masks"][frame], generator
        )
        foreground, distance = targets(labels.numpy())
        return {
            "grey": image,
            "foreground": torch.from_numpy(foreground),
            "distance": torch.from_numpy(distance),
        }


def train_segmenter(
    clips: Clips,
    settings: SegmenterSettings,
    *,
    checkpoint: Path,
    identity: str,
    augmentation: str = "plain",
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
) -> Segmenter:
    """Train a segmenter on clips; killed, the same call goes on.

    The start of the weights, the numbers of the samples' draws and the order are decided by the
    seed alone, so that two arms differ in nothing but their clips.

    Args:
        clips: Where the samples come from.
        settings: Steps, rate.
        checkpoint: Where to keep the state.
        identity: Digest of what the clips are; a checkpoint of other clips is refused.
        augmentation: Out of ``AUGMENTATIONS``.
        seed: Seed of everything.
        workers: Processes of the DataLoader.
        progress: Show a progress bar.

    Returns:
        The trained network.

    Raises:
        ValueError: If the checkpoint belongs to another training.
    """
    network = _new(seed)
    samples = Samples(clips, augmentation, seed, settings.steps * settings.batch)
    batches: list[Iterator[dict[str, Tensor]]] = []

    def loss_at(net: nn.Module, step: int) -> Tensor:
        if not batches:
            rest = range(step * settings.batch, len(samples))
            batches.append(iter(_loader(samples, rest, settings.batch, workers)))
        return _loss(net, next(batches[0]))

    train(
        network,
        loss_at,
        _nothing_held_out,
        TrainingSettings(
            steps=settings.steps,
            batch=settings.batch,
            rate=settings.rate,
            average=settings.average,
            seed=seed,
            save_every=100,
            check_every=100,
        ),
        checkpoint=checkpoint,
        purpose=purpose_of("segmenter", settings, identity, augmentation, seed),
        progress=progress,
    )
    measured = range(min(STATISTICS_BATCHES * settings.batch, len(samples)))
    _measure_normalisation(network, _loader(samples, measured, settings.batch, workers))
    return network


def _new(seed: int) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, "segmenter", "weights").initial_seed())
        return Segmenter().to(memory_format=torch.channels_last)


def _loader(
    samples: Samples, numbers: range, batch: int, workers: int
) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(
        samples,
        batch_size=batch,
        sampler=numbers,
        num_workers=workers,
        generator=torch.Generator(),  # or the loader would draw from the global random state
    )


def _loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    grey = batch["grey"].contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = network(grey)
    return segmentation_loss(predicted.float(), batch["foreground"], batch["distance"])


def _nothing_held_out(network: nn.Module) -> float:
    """The test video is the only judge; thresholds and steps are fixed."""
    return 0.0


@torch.no_grad()
def _measure_normalisation(network: nn.Module, loader: DataLoader[dict[str, Tensor]]) -> None:
    """Give the averaged weights the means and variances that belong to them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average over all batches
    network.train()
    for batch in loader:
        _loss(network, batch)
    network.eval()
