"""Train with Cellpose's own trainer, ``cellpose.train.train_seg``, on synthetic frames.

Needs ``pip install 'bvdm-data[cellpose]'``. Cellpose keeps its data in memory, so the clips become
lists of images and labels; Cellpose then adds augmentation and flows. By default a small network
with the same interface is trained from random weights, so that nothing is downloaded;
``--pretrained cpsam_v2`` fine-tunes Cellpose-SAM, for which a GPU is recommended.

    python examples/train_cellpose.py --clips 50 --epochs 20
"""

import argparse
from collections.abc import Sequence
from itertools import islice

import torch
from cellpose import models, train
from cellpose.vit import BaseModel
from torch import Tensor, nn

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.frames import frame_lists


class SmallNetwork(BaseModel):
    """A network with the interface of Cellpose's networks: flows y and x, and the cell logit."""

    backbone = "small"

    def __init__(self, channels: int = 16) -> None:
        """Initialise the weights."""
        super().__init__()
        layers: list[nn.Module] = []
        for dilation in (1, 2, 4, 8):
            inputs = channels if layers else 3
            layers += [
                nn.Conv2d(inputs, channels, 3, padding=dilation, dilation=dilation),
                nn.GroupNorm(4, channels),
                nn.SiLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 3, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, None]:
        """Return the output ``[N, 3, H, W]``, and None in place of a style vector."""
        return self.layers(image), None


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train for some epochs; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--pretrained", help="name or path of a model of Cellpose")
    parser.add_argument("--output", default=".", help="folder for the trained model")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    videos = SyntheticHeLaVideos(frames=given.frames, size=given.size, annotations=("masks",))
    images, labels = frame_lists(islice(videos, given.clips), at_least=1)
    if given.pretrained:
        model = models.CellposeModel(gpu=True, pretrained_model=given.pretrained)
        network, rate, side = model.net, 1e-5, 256
    else:
        network, rate, side = SmallNetwork(), 1e-2, 128
    path, losses, _ = train.train_seg(
        network,
        train_data=images,
        train_labels=labels,
        batch_size=4,
        learning_rate=rate,
        n_epochs=given.epochs,
        bsize=side,
        min_train_masks=1,  # by default 5, more than a small frame shows
        save_path=given.output,
    )
    # The rate is 0 in the first epoch.
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last; saved to {path}")
    return losses.tolist()


if __name__ == "__main__":
    main()
