"""Train Trackastra from scratch on streamed clips.

Every clip yields the training windows that Trackastra would read from an annotated folder:
positions and features of the nuclei of a few frames, and their association matrix. Model and
collate function are Trackastra's; the loss is the binary cross-entropy of the links after its
parental softmax.

    pip install 'bvdm-data[tracking]'
    python examples/train_trackastra.py --steps 500
"""

import argparse
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trackastra.data import collate_sequence_padding
from trackastra.model import TrackingTransformer
from trackastra.utils import blockwise_causal_norm

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.tracking import TrackastraWindows

FARTHEST = 2
"""Links over more frames are ignored (Trackastra's ``delta_cutoff``)."""


def link_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy of the links.

    Args:
        network: A ``TrackingTransformer``.
        batch: What ``collate_sequence_padding`` returns.

    Returns:
        A scalar.
    """
    times, absent = batch["timepoints"], batch["padding_mask"]
    logits = network(batch["coords"], batch["features"], padding_mask=absent)
    void = absent[:, :, None] | absent[:, None]
    gap = times[:, None] - times[:, :, None]
    counts = (gap > 0) & (gap <= FARTHEST) & ~void
    probabilities = torch.stack(
        [
            blockwise_causal_norm(one, time, mode="quiet_softmax", mask_invalid=gone)
            for one, time, gone in zip(logits.masked_fill(void, 0), times, void, strict=True)
        ]
    )
    return nn.functional.binary_cross_entropy(probabilities[counts], batch["assoc_matrix"][counts])


def train(batches: Iterable[dict[str, Tensor]], steps: int, window: int) -> list[float]:
    """Train a small network.

    Args:
        batches: What ``collate_sequence_padding`` returns.
        steps: Number of training steps.
        window: Frames per window.

    Returns:
        The loss at each step.
    """
    network = TrackingTransformer(
        coord_dim=2, feat_dim=7, d_model=64, nhead=2, num_encoder_layers=2, num_decoder_layers=2,
        dropout=0.0, window=window, spatial_pos_cutoff=128,
    )  # fmt: skip
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _, batch in zip(range(steps), batches, strict=False):
        loss = link_loss(network, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train for some steps; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--method", default="fast")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    videos = SyntheticHeLaVideos(frames=given.frames, size=given.size, method=given.method)
    loader = DataLoader(
        TrackastraWindows(videos, given.window),
        batch_size=given.batch_size,
        num_workers=given.workers,
        collate_fn=collate_sequence_padding,
    )
    losses = train(loader, given.steps, given.window)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()
