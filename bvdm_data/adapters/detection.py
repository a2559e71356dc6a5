"""Detection: the frames of clips as torchvision's detectors take them."""

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms

from bvdm_data.adapters.common import get_index
from bvdm_data.adapters.frames import video_and_masks
from bvdm_data.clip import STAGES, Clip, measure_boxes
from bvdm_data.datasets.transformed_annotations import GEOMETRIC
from bvdm_data.validate import as_int

CLASSES = ("nucleus", "stage")
"""What labels may tell apart: nuclei from background, or also the stages of the cell cycle."""

Target = dict[str, Any]


class _RowValues(tv_tensors.Mask):  # type: ignore[misc]  # torchvision has no types
    """Values ``[n]``, one for each box, that transforms of torchvision v2 keep as they are.

    ``SanitizeBoundingBoxes`` and ``RandomIoUCrop`` take or drop rows of masks with their boxes,
    and so of these. ``canvas_size`` is that of the image, which transforms compare.
    """

    canvas_size: tuple[int, int]

    @classmethod
    def wrap(cls, values: Tensor, like: "_RowValues", **_: object) -> "_RowValues":
        """Return other values of the same image; torchvision calls this from 0.29 on."""
        wrapped: _RowValues = values.as_subclass(cls)
        wrapped.canvas_size = like.canvas_size
        return wrapped

    @classmethod
    def _wrap_output(cls, output: Any, args: Any = (), kwargs: Any = None) -> Any:
        wrapped = super()._wrap_output(output, args, kwargs)
        if isinstance(wrapped, cls) and args and isinstance(args[0], cls):
            wrapped.canvas_size = args[0].canvas_size
        return wrapped


@transforms.register_kernel(transforms.get_size, _RowValues)  # type: ignore[untyped-decorator]
def _get_size(values: _RowValues) -> list[int]:
    return list(values.canvas_size)


def _register_kernel(name: str) -> None:
    """Let a geometric transform change only the size of the image that values belong to."""
    functional = getattr(transforms, name)

    @transforms.register_kernel(functional, _RowValues)  # type: ignore[untyped-decorator]
    def kernel(values: _RowValues, *args: object, **kwargs: object) -> _RowValues:
        size = values.canvas_size
        box = tv_tensors.BoundingBoxes([[0, 0, 1, 1]], format="XYXY", canvas_size=size)
        moved = _RowValues.wrap(values.as_subclass(Tensor).clone(), values)
        moved.canvas_size = functional(box, *args, **kwargs).canvas_size
        return moved


for _name in GEOMETRIC:
    _register_kernel(_name)


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
    transforms of torchvision v2 on ``(image, target)`` take them along, and all rows of a nucleus
    go where ``SanitizeBoundingBoxes`` drops its box. ``area`` remains that before the transform;
    give transforms to the data set, ``transform=``, for one that is measured afterwards.

    Args:
        clip: With ``video``, ``masks`` and ``index``, and with ``stages`` for ``classes="stage"``.
        classes: ``"nucleus"``: all labels are 1. ``"stage"``: the label is 1 + the index into
            ``STAGES``, 1 to 7. 0 is the background of the detector.

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
    _, masks = video_and_masks(clip)
    first = get_index(clip) * len(masks)
    if classes == "stage" and "stages" not in clip:
        raise ValueError(
            f"classes='stage' needs clips with 'stages', got the keys {sorted(clip)}; put "
            "'stages' into annotations= of the data set, or use classes='nucleus'"
        )
    count = int(masks.max()) if masks.numel() else 0
    boxes = torch.from_numpy(measure_boxes(masks.cpu().numpy(), count)[0]).to(masks.device)
    targets: list[Target] = []
    for frame, ids in enumerate(masks):
        there = (~boxes[:, frame, 0].isnan()).nonzero().squeeze(1)
        own = ids == (there + 1)[:, None, None]
        size = (int(ids.shape[0]), int(ids.shape[1]))
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes[there, frame], format="XYXY", canvas_size=size),
            "labels": _make_labels(clip, classes, there, frame),
            "masks": tv_tensors.Mask(own.to(torch.uint8)),
            "image_id": first + frame,
            "area": own.sum((1, 2)).float(),
            "iscrowd": torch.zeros_like(there),
            "track_ids": there + 1,
        }
        for key in ("area", "iscrowd", "track_ids"):
            target[key] = _RowValues(target[key])
            target[key].canvas_size = size
        targets.append(target)
    return targets


def _make_labels(clip: Clip, classes: str, there: Tensor, frame: int) -> Tensor:
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
