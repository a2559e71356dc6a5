"""Train torchvision's Mask R-CNN directly on streamed clips.

The collate function turns each frame into an image and a target for the detector. The backbone is
small and starts from random weights, so that nothing is downloaded. For a real training use
``torchvision.models.detection.maskrcnn_resnet50_fpn_v2(num_classes=2)`` instead, with
``functools.partial(collate_detection, channels=3)`` for weights from colour images.

    python examples/train_mask_rcnn.py --steps 200
"""

import argparse
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.detection import collate_detection


class Backbone(nn.Sequential):
    """Features of a grey image at a quarter of its size."""

    def __init__(self, channels: int = 32) -> None:
        """Initialise the weights."""
        super().__init__(
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )
        self.out_channels = channels


def detector(size: int) -> MaskRCNN:
    """Return a Mask R-CNN of one class, nuclei, for square frames of this size."""
    backbone = Backbone()
    channels = backbone.out_channels
    return MaskRCNN(
        backbone,
        min_size=size,
        max_size=size,
        image_mean=[0.1],
        image_std=[0.1],
        rpn_anchor_generator=AnchorGenerator(((12, 20, 32),), ((0.6, 1.0, 1.7),)),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_head=TwoMLPHead(channels * 5**2, 64),
        box_predictor=FastRCNNPredictor(64, num_classes=2),
        box_batch_size_per_image=64,
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        mask_head=MaskRCNNHeads(channels, (channels,), 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_classes=2),
    )


def train(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[dict]]],
    device: torch.device,
) -> list[float]:
    """Train the detector.

    Args:
        model: A detector of torchvision.
        batches: Lists of images and of targets.
        device: Device of the network.

    Returns:
        The sum of the losses at each step.
    """
    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for images, targets in batches:
        images = [image.to(device) for image in images]
        targets = [
            {
                key: value.to(device) if isinstance(value, Tensor) else value
                for key, value in t.items()
            }
            for t in targets
        ]
        loss = sum(model(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train for some steps; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=2, help="clips, not frames")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
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
        collate_fn=collate_detection,
    )
    losses = train(detector(given.size), loader, torch.device(given.device))
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()
