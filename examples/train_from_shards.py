"""Train from clips on disk: shards written once, read by the package webdataset.

The shards are the same as from ``bvdm-data shards``; missing ones are written first. A second run
writes nothing and reads the existing shards. Needs ``pip install 'bvdm-data[shards]'``.

    python examples/train_from_shards.py --folder shards --clips 256 --steps 100
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from webdataset import WebDataset

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.storage import as_clip, write_shards


def network() -> nn.Module:
    """Return a small segmentation network with a receptive field of three frames."""
    return nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 1, 1))


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Write shards and train for some steps; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("shards"))
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)

    videos = SyntheticHeLaVideos(frames=given.frames, size=given.size)
    written = write_shards(videos, given.folder, clips=given.clips, clips_per_shard=8)
    print(f"wrote {len(written)} shards")

    torch.manual_seed(0)
    shards = [str(path) for path in sorted(given.folder.glob("shard-*.tar"))]
    clips = WebDataset(shards, shardshuffle=len(shards), seed=0).decode().map(as_clip).repeat()
    loader = DataLoader(clips, batch_size=given.batch_size, num_workers=given.workers)
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for batch in itertools.islice(loader, given.steps):
        spread, mean = torch.std_mean(batch["video"], dim=(1, 2, 3, 4), keepdim=True)
        logits = net(((batch["video"] - mean) / spread).transpose(1, 2))[:, 0]
        truth = (batch["masks"] > 0).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()
