"""Train with Lightning, and resume an interrupted training in the middle of an epoch.

A second run with the same folder begins with the first clip that the first run has not seen.
Needs ``pip install 'bvdm-data[lightning]'``.

    python examples/train_lightning.py --folder run --steps 30
    python examples/train_lightning.py --folder run --steps 60
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.lightning import ClipDataModule


class Segmenter(lightning.LightningModule):
    """A small segmentation network with a receptive field of five frames."""

    def __init__(self) -> None:
        """Make the network."""
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 1, 3, padding=1)
        )
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch, and record the indices of its clips."""
        self.seen.append(batch["index"].tolist())
        spread, mean = torch.std_mean(batch["video"], dim=(1, 2, 3, 4), keepdim=True)
        logits = self.net(((batch["video"] - mean) / spread).transpose(1, 2))[:, 0]
        truth = (batch["masks"] > 0).float()
        return nn.functional.binary_cross_entropy_with_logits(logits, truth)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(arguments: Sequence[str] | None = None) -> list[list[int]]:
    """Train up to a step; see ``--help``. Returns the indices of the clips in each batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("run"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--clips", type=int, default=1000, help="clips an epoch")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)

    videos = SyntheticHeLaVideos(frames=given.frames, size=given.size, length=given.clips)
    module = ClipDataModule(videos, batch_size=given.batch_size, num_workers=given.workers)
    keep = ModelCheckpoint(given.folder, every_n_train_steps=1, filename="last")
    trainer = lightning.Trainer(
        max_steps=given.steps,
        callbacks=[keep],
        accelerator="auto",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net, last = Segmenter(), given.folder / "last.ckpt"
    trainer.fit(net, module, ckpt_path=last if last.exists() else None)
    for clips in net.seen:
        print(f"clips {clips}")
    return net.seen


if __name__ == "__main__":
    main()
