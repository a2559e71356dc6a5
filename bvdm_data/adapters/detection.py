"""Detection: the frames of clips as torchvision's detectors take them."""

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor
from torchvision import tv_tensors

from bvdm_data.adapters.common import require_keys
from bvdm_data.adapters.frames import video_and_masks
from bvdm_data.clip import STAGES, Clip, measure_boxes
from bvdm_data.validate import as_int

CLASSES = ("nucleus", "stage")
"""What labels may tell apart: nuclei from background, or also the stages of the cell cycle."""

Target = dict[str, Any]


def collate_detection(
    clips: Sequence[Clip],
    *,
    classes: Literal["nucleus", "stage"] = "nucleus",
    channels: SupportsIndex = 1,
) -> tuple[list[Tensor], list[Target]]:
    """Return images and targets of all frames, for ``model(images, targets)``.

    Give it as ``collate_fn=`` to a loader, with ``functools.partial`` where an argument is not
    the default. The loader's ``batch_size`` counts clips: the detector sees F times as many
    images.

    Args:
        clips: As for :func:`detection_targets`; sizes may differ.
        classes: As for :func:`detection_targets`.
        channels: Channels of an image; a single grey one is repeated, 3 for a network that was
            trained on colour images.

    Returns:
        Images ``[channels, H, W]`` float32 in [0, 1], and a target for each.

    Raises:
        TypeError: If channels is no whole number.
        ValueError: If classes or channels cannot be given, or a clip is without masks.
    """
    count = as_int("channels", channels, least=1)
    images: list[Tensor] = []
    targets: list[Target] = []
    for clip in clips:
        video, _ = video_and_masks(clip)
        if video.shape[1] not in (1, count):
            raise ValueError(
                f"channels must be that of the video, {video.shape[1]}, got {count}; only a "
                "single channel can be repeated"
            )
        images += video.expand(-1, count, -1, -1).clone().unbind()
        targets += detection_targets(clip, classes=classes)
    return images, targets


def detection_targets(
    clip: Clip, *, classes: Literal["nucleus", "stage"] = "nucleus"
) -> list[Target]:
    """Return the targets of torchvision's detectors, one a frame.

    Boxes are measured in the masks, their far edges exclusive, so that each has a height and a
    width; nuclei that are not in the frame have none. Boxes and masks are ``tv_tensors``, so that
    transforms of torchvision v2 on ``(image, target)`` take them along.

    Args:
        clip: With ``video``, ``masks`` and ``index``, and with ``stages`` for ``classes="stage"``.
        classes: ``"nucleus"``: all labels are 1. ``"stage"``: the label is 1 + the index into
            ``STAGES``, 1 to 6. 0 is the background of the detector.

    Returns:
        For each frame, n nuclei: ``boxes`` ``[n, 4]`` float32 as ``(x1, y1, x2, y2)`` in pixels;
        ``labels`` ``[n]`` int64; ``masks`` ``[n, H, W]`` uint8, 0 or 1; ``image_id``, the number
        of the clip times F plus that of the frame, an int; ``area`` ``[n]`` float32 in pixels of
        the mask; ``iscrowd`` ``[n]`` int64, all 0; ``track_ids`` ``[n]`` int64, the ids in the
        clip. An empty frame has n = 0, a negative sample.

    Raises:
        TypeError: If it is no clip.
        ValueError: If classes is not known, the clip is without masks or index, or without the
            stage of a nucleus where ``classes="stage"``.
    """
    if classes not in CLASSES:
        raise ValueError(f"classes must be one of {CLASSES}, got {classes!r}")
    require_keys(clip, "masks", "index")
    if classes == "stage" and "stages" not in clip:
        raise ValueError(
            f"classes='stage' needs clips with 'stages', got the keys {sorted(clip)}; put "
            "'stages' into annotations= of the data set, or use classes='nucleus'"
        )
    _, masks = video_and_masks(clip)
    count = int(masks.max()) if masks.numel() else 0
    boxes = torch.from_numpy(measure_boxes(masks.cpu().numpy(), count)[0]).to(masks.device)
    first = int(clip["index"]) * len(masks)
    targets: list[Target] = []
    for frame, ids in enumerate(masks):
        there = (~boxes[:, frame, 0].isnan()).nonzero().squeeze(1)
        own = ids == (there + 1)[:, None, None]
        targets.append(
            {
                "boxes": tv_tensors.BoundingBoxes(
                    boxes[there, frame], format="XYXY", canvas_size=tuple(ids.shape)
                ),
                "labels": _labels(clip, classes, there, frame),
                "masks": tv_tensors.Mask(own.to(torch.uint8)),
                "image_id": first + frame,
                "area": own.sum((1, 2)).float(),
                "iscrowd": torch.zeros_like(there),
                "track_ids": there + 1,
            }
        )
    return targets


def _labels(clip: Clip, classes: str, there: Tensor, frame: int) -> Tensor:
    """Return the labels of the nuclei with ids ``there + 1``, [n] int64."""
    if classes == "nucleus":
        return torch.ones_like(there)
    stages = clip["stages"].as_subclass(Tensor).to(there.device)[there, frame].long()
    if len(stages) and (int(stages.min()) < 0 or int(stages.max()) >= len(STAGES)):
        raise ValueError(
            f"stages of frame {frame} must be from 0 to {len(STAGES) - 1} for the nuclei in it, "
            f"got {stages.tolist()}; use classes='nucleus' for clips without that truth"
        )
    return stages + 1
