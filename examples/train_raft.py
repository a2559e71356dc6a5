"""Train torchvision's RAFT from scratch on the flow of streamed clips.

Flow is known only inside nuclei, so the loss is restricted to valid pixels. It is the sequence loss
of Teed and Deng (RAFT, 2020): L1 distances of all updates, with the largest weight on the last.

    python examples/train_raft.py --steps 1000
"""

import argparse
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.optical_flow import raft_small

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.optical_flow import FlowPair, FlowPairs

GAMMA = 0.8
"""Weight of an update relative to the next one (RAFT)."""


def sequence_loss(updates: Sequence[Tensor], flow: Tensor, valid: Tensor) -> Tensor:
    """Return the weighted sum of the mean L1 distances of all updates.

    Args:
        updates: Flow after each update, ``[B, 2, H, W]`` each.
        flow: True flow ``[B, 2, H, W]``.
        valid: Pixels where the flow is known, ``[B, H, W]`` bool.

    Returns:
        A scalar, pixels.
    """
    weights = [GAMMA ** (len(updates) - 1 - number) for number in range(len(updates))]
    known = valid.sum().clamp(min=1)
    distances = [(update - flow).abs().mean(1)[valid].sum() / known for update in updates]
    return sum(
        (weight * one for weight, one in zip(weights, distances, strict=True)), torch.zeros(())
    )


def train(batches: Iterable[FlowPair], steps: int, updates: int) -> list[float]:
    """Train a network.

    Args:
        batches: Batches of pairs of frames.
        steps: Number of training steps.
        updates: Updates of the flow in each forward pass.

    Returns:
        The loss at each step.
    """
    network = raft_small(weights=None)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-4)
    losses = []
    for _, (image1, image2, flow, valid) in zip(range(steps), batches, strict=False):
        # RAFT expects values in [-1, 1].
        found = network(2 * image1 - 1, 2 * image2 - 1, num_flow_updates=updates)
        loss = sequence_loss(found, flow, valid)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train for some steps; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="a multiple of 8, at least 128")
    parser.add_argument("--batch-size", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--method", default="fast")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    videos = SyntheticHeLaVideos(
        frames=given.frames, size=given.size, method=given.method, annotations=("masks", "flow")
    )
    loader = DataLoader(FlowPairs(videos), batch_size=given.batch_size, num_workers=given.workers)
    losses = train(loader, given.steps, given.updates)
    print(f"loss {losses[0]:.3f} px at first, {losses[-1]:.3f} px after {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()
