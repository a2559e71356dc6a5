"""Train a U-Net on foreground, distance and boundary of nuclei.

The workers compute the three maps of each frame; the network learns foreground and boundary by
binary cross-entropy and the distance by squared error. To segment a new image, run a watershed from
the peaks of the distance, limited to the foreground.

    python examples/train_unet.py --steps 500
"""

import argparse
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.segmentation import collate_unet


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Return two convolutions with group normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(4, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(4, outputs),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """A U-Net of three resolutions, for heights and widths divisible by 4."""

    def __init__(self, channels: tuple[int, int, int] = (16, 32, 64)) -> None:
        """Initialise the weights."""
        super().__init__()
        top, middle, bottom = channels
        self.down = nn.ModuleList([convolutions(1, top), convolutions(top, middle)])
        self.bottom = convolutions(middle, bottom)
        self.up = nn.ModuleList(
            [convolutions(bottom + middle, middle), convolutions(middle + top, top)]
        )
        self.heads = nn.Conv2d(top, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of foreground, distance and boundary, ``[N, 3, H, W]``."""
        x, kept = image, []
        for level in self.down:
            kept.append(level(x))
            x = nn.functional.max_pool2d(kept[-1], 2)
        x = self.bottom(x)
        for level in self.up:
            x = nn.functional.interpolate(x, scale_factor=2)
            x = level(torch.cat([x, kept.pop()], dim=1))
        return self.heads(x)


def loss_of(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the sum of the losses of the three maps."""
    foreground, distance, boundary = logits.split(1, dim=1)
    cross_entropy = nn.functional.binary_cross_entropy_with_logits
    return (
        cross_entropy(foreground, batch["foreground"])
        + nn.functional.mse_loss(distance.sigmoid(), batch["distance"])
        + cross_entropy(boundary, batch["boundary"])
    )


def standardised(image: Tensor) -> Tensor:
    """Give every image of a batch the mean 0 and the standard deviation 1."""
    spread, mean = torch.std_mean(image, dim=(1, 2, 3), keepdim=True)
    return (image - mean) / spread


def train(batches: Iterable[dict[str, Tensor]], device: torch.device) -> list[float]:
    """Train a network.

    Args:
        batches: Output of :func:`collate_unet`.
        device: Device of the network.

    Returns:
        The loss at each step.
    """
    net = UNet().to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for batch in batches:
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        loss = loss_of(net(standardised(batch["image"])), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train for some steps; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4, help="clips, not frames")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = torch.device(given.device)
    videos = SyntheticHeLaVideos(
        frames=given.frames,
        size=given.size,
        length=given.steps * given.batch_size,
        annotations=("masks",),
    )
    loader = DataLoader(
        videos,
        batch_size=given.batch_size,
        num_workers=given.workers,
        collate_fn=collate_unet,
        pin_memory=device.type == "cuda",
    )
    losses = train(loader, device)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()
