"""Augment whole batches on the device of the network, with kornia.

Workers make clips without augmentation; flips, rotations and noise are then applied to a whole
batch, on the GPU if there is one. Video and masks get the same random parameters, one set for each
clip and the same for all its frames, so that a nucleus keeps its id.

This does not transform the tables of a clip (``tracks``, ``boxes``, ``centroids``, ``stages``) and
its ``flow``. If you need them, give transforms of torchvision to the data set as ``transform=``.

    python examples/augment_on_device.py --steps 200
"""

import argparse
from collections.abc import Iterable, Sequence

import kornia.augmentation as K
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bvdm_data import SyntheticHeLaVideos


def augmentation() -> K.AugmentationSequential:
    """Return the augmentation of a batch of video ``[B, F, 1, H, W]`` and of masks."""
    on_clips = K.VideoSequential(
        K.RandomHorizontalFlip(),
        K.RandomVerticalFlip(),
        K.RandomAffine(degrees=180.0, scale=(0.9, 1.1)),
        K.RandomGaussianNoise(std=0.005),
        data_format="BTCHW",
        same_on_frame=True,
    )
    return K.AugmentationSequential(on_clips, data_keys=["input", "mask"])


def augmented(
    augment: K.AugmentationSequential, video: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor]:
    """Augment a batch.

    Args:
        augment: What :func:`augmentation` returns.
        video: Grey values ``[B, F, 1, H, W]`` float32.
        masks: Ids ``[B, F, H, W]`` int32.

    Returns:
        Both, with the same transformation; masks by nearest-neighbour interpolation.
    """
    # float32 holds ids up to 2 ** 24 exactly.
    video, moved = augment(video, masks[:, :, None].float())
    return video.clamp(0, 1), moved[:, :, 0].to(masks.dtype)


def standardised(video: Tensor) -> Tensor:
    """Give every clip of a batch the mean 0 and the standard deviation 1."""
    spread, mean = torch.std_mean(video, dim=(1, 2, 3, 4), keepdim=True)
    return (video - mean) / spread


def network() -> nn.Module:
    """Return a small segmentation network with a receptive field of five frames."""
    return nn.Sequential(
        nn.Conv3d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(16, 1, 1),
    )


def train(batches: Iterable[dict[str, Tensor]], device: torch.device) -> list[float]:
    """Train a network.

    Args:
        batches: Batches with ``video`` and ``masks``.
        device: Device of the network.

    Returns:
        The loss at each step.
    """
    net, augment = network().to(device), augmentation().to(device)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for batch in batches:
        video = batch["video"].to(device, non_blocking=True)
        masks = batch["masks"].to(device, non_blocking=True)
        video, masks = augmented(augment, video, masks)
        logits = net(standardised(video).transpose(1, 2))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, (masks > 0).float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train for some steps; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = torch.device(given.device)
    videos = SyntheticHeLaVideos(
        frames=given.frames, size=given.size, length=given.steps * given.batch_size
    )
    loader = DataLoader(
        videos,
        batch_size=given.batch_size,
        num_workers=given.workers,
        pin_memory=device.type == "cuda",
    )
    losses = train(loader, device)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()
