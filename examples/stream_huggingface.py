"""Stream clips as a Hugging Face data set: shuffled, mapped and batched by the package datasets.

The loader's workers make clips while the network trains; nothing is downloaded and no clip is
written to disk. Needs ``pip install 'bvdm-data[huggingface]'``.

    python examples/stream_huggingface.py --steps 50
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.huggingface import to_huggingface


def standardised(row: dict[str, Any]) -> dict[str, Any]:
    """Give a clip the mean 0 and the standard deviation 1."""
    video = np.asarray(row["video"], np.float32)
    return {"video": (video - video.mean()) / video.std()}


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train for some steps; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    videos = SyntheticHeLaVideos(frames=given.frames, size=given.size, annotations=("masks",))
    rows = to_huggingface(videos, clips=given.steps * given.batch_size)
    rows = rows.shuffle(seed=0, buffer_size=2 * given.batch_size).map(
        standardised, features=rows.features
    )
    loader = DataLoader(
        rows.with_format("torch"), batch_size=given.batch_size, num_workers=given.workers
    )
    net = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 1, 1))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for batch in loader:
        logits = net(batch["video"].transpose(1, 2))[:, 0]
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
