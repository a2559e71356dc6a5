"""Targets of networks that segment instances: U-Net maps, StarDist's rays, Cellpose's flows."""

import math
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bvdm_data.adapters.frames import stacked
from bvdm_data.clip import Clip
from bvdm_data.system import require
from bvdm_data.validate import as_int

RAYS = 32
"""Rays of a nucleus where the user names no other number: StarDist's default."""

TIE = 0.01
"""Pixels from half a pixel within which single precision may round either way."""


def collate_unet(clips: Sequence[Clip]) -> dict[str, Tensor]:
    """Return the frames of clips with foreground, distance and boundary, ready for a loss.

    Give it as ``collate_fn=`` to a loader; its workers then make the targets.

    Args:
        clips: With ``video`` and ``masks``, all of one height and width.

    Returns:
        ``image``, grey values ``[N, C, H, W]``, N frames of all clips, and the maps of
        :func:`unet_targets`; all float32.

    Raises:
        ValueError: If a clip is without masks, or the sizes differ.
    """
    video, masks = stacked(clips)
    return {"image": video} | unet_targets(masks)


def collate_stardist(clips: Sequence[Clip], rays: SupportsIndex = RAYS) -> dict[str, Tensor]:
    """Return the frames of clips with the targets of a StarDist network in PyTorch.

    Give ``functools.partial(collate_stardist, rays=64)`` as ``collate_fn=`` for other rays.
    StarDist weighs the error of the distances by the probability (Schmidt et al., Cell Detection
    with Star-convex Polygons, MICCAI 2018).

    Args:
        clips: With ``video`` and ``masks``, all of one height and width.
        rays: Directions, 3 or more.

    Returns:
        ``image``, grey values ``[N, C, H, W]``; ``probability`` ``[N, 1, H, W]``, of
        :func:`object_probability`; ``distances`` ``[N, rays, H, W]``, of :func:`star_distances`;
        all float32.

    Raises:
        TypeError: If rays is no whole number.
        ValueError: If rays is below 3, a clip is without masks, or the sizes differ.
    """
    video, masks = stacked(clips)
    return {
        "image": video,
        "probability": object_probability(masks)[:, None],
        "distances": star_distances(masks, rays),
    }


def unet_targets(masks: Tensor) -> dict[str, Tensor]:
    """Return what a U-Net learns in place of ids.

    Foreground and boundary are those of the three classes of Caicedo et al. (Cytometry A 95,
    952, 2019), the boundary as ``skimage.segmentation.find_boundaries`` has it with
    ``mode="thick"``. Seeds are found in the distance, as with StarDist's probability.

    Args:
        masks: Ids ``[N, H, W]``, 0 is background.

    Returns:
        Each ``[N, 1, H, W]`` float32: ``foreground``, 1 inside nuclei; ``distance``, of
        :func:`object_probability`; ``boundary``, 1 where one of the four neighbours has another
        id, on both sides.

    Raises:
        ValueError: If masks are not whole numbers of 0 or more, ``[N, H, W]``.

    Examples:
        >>> maps = unet_targets(torch.tensor([[[1, 1, 1, 0, 0]]]))
        >>> [maps[name].flatten().tolist() for name in ("foreground", "boundary")]
        [[1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 0.0]]
    """
    masks = _check_masks(masks)
    boundary = torch.zeros_like(masks, dtype=torch.bool)
    for axis in (1, 2):
        length = masks.shape[axis] - 1
        step = masks.narrow(axis, 1, length) != masks.narrow(axis, 0, length)
        boundary.narrow(axis, 0, length).logical_or_(step)
        boundary.narrow(axis, 1, length).logical_or_(step)
    return {
        "foreground": (masks > 0).float()[:, None],
        "distance": object_probability(masks)[:, None],
        "boundary": boundary.float()[:, None],
    }


def object_probability(masks: Tensor) -> Tensor:
    """Return how deep each pixel lies in its nucleus: StarDist's object probability.

    The Euclidean distance to the nearest pixel that is not of the nucleus, divided by its largest
    in the nucleus. What lies outside the frame counts as unknown, not as background, but for a
    nucleus that fills the frame.

    Args:
        masks: Ids ``[N, H, W]``, 0 is background.

    Returns:
        ``[N, H, W]`` float32 in [0, 1], 0 in the background, on the device of masks.

    Raises:
        ValueError: If masks are not whole numbers of 0 or more, ``[N, H, W]``.

    Examples:
        >>> object_probability(torch.tensor([[[0, 1, 1, 1, 2, 0]]]))[0, 0].tolist()
        [0.0, 0.5, 1.0, 0.5, 1.0, 0.0]
    """
    labels = _check_masks(masks).cpu().numpy()
    depth = np.zeros(labels.shape, np.float32)
    for image, out in zip(labels, depth, strict=True):
        for number, box in enumerate(ndimage.find_objects(image), start=1):
            if box is None:
                continue
            # The nearest pixel outside lies next to the bounding box at most.
            rows, columns = (slice(max(side.start - 1, 0), side.stop + 1) for side in box)
            inside = image[rows, columns] == number
            if inside.all():
                distance = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
            else:
                distance = ndimage.distance_transform_edt(inside)
            out[rows, columns][inside] = (distance / distance.max())[inside]
    return torch.from_numpy(depth).to(masks.device)


def star_distances(masks: Tensor, rays: SupportsIndex = RAYS) -> Tensor:
    """Return the way from each pixel to the edge of its nucleus along each ray, as StarDist does.

    Ray k leaves at the angle ``2 pi k / rays`` from the axis x towards y, which points down. Steps
    of one pixel are taken until the nearest pixel is not of the nucleus or outside the frame; the
    way ends half a pixel before that one along the longer axis. This is what ``star_dist`` of the
    package stardist gives, with the rays first.

    Args:
        masks: Ids ``[N, H, W]``, 0 is background; on any device.
        rays: Directions, 3 or more.

    Returns:
        Pixels, ``[N, rays, H, W]`` float32, 0 in the background, on the device of masks.

    Raises:
        TypeError: If rays is no whole number.
        ValueError: If rays is below 3, or masks are not whole numbers of 0 or more, ``[N, H, W]``.

    Examples:
        >>> star_distances(torch.ones(1, 3, 7, dtype=torch.int64), rays=4)[0, :, 1, 2].tolist()
        [4.5, 1.5, 2.5, 1.5]
    """
    masks, count = _check_masks(masks), as_int("rays", rays, least=3)
    frames, height, width = masks.shape
    padded = torch.nn.functional.pad(masks.int(), (1, 1, 1, 1))
    flat, inside = padded.flatten(), padded.flatten().nonzero().squeeze(1)
    out = torch.zeros(count, len(flat), dtype=torch.float32, device=masks.device)
    # In single precision, as there, where ties of the rounding turn on it.
    step = np.float32(2 * np.pi / count)
    for ray in range(count):
        dy, dx = np.sin(step * np.float32(ray)), np.cos(step * np.float32(ray))
        overshoot = 0.5 / max(abs(float(dy)), abs(float(dx)))
        down = right = np.float32(0)
        walking, label, steps = inside, flat[inside], 0
        while len(walking):
            steps += 1
            down, right = down + dy, right + dx
            there = flat[walking + _find_way(walking, (float(down), float(right)), padded.shape)]
            stays = there == label
            out[ray, walking[~stays]] = steps - 1 + overshoot
            kept = stays.nonzero().squeeze(1)
            walking, label = walking[kept], label[kept]
    out = out.view(count, frames, height + 2, width + 2)[..., 1:-1, 1:-1]
    return out.movedim(0, 1).contiguous()


def _find_way(place: Tensor, step: tuple[float, float], shape: Sequence[int]) -> Tensor | int:
    """Return how far on the pixel nearest to each place plus the step lies in a padded stack."""
    _, height, width = shape
    if all(abs(abs(length) % 1 - 0.5) > TIE for length in step):
        return round(step[0]) * width + round(step[1])
    # Which way a tie is rounded depends on the place.
    y, x = place // width % height - 1, place % width - 1
    down, right = (
        (axis.float() + by).round().long() - axis for axis, by in ((y, step[0]), (x, step[1]))
    )
    return down * width + right


def cellpose_flows(masks: Tensor) -> Tensor:
    """Return the flows that Cellpose trains on, made by the package cellpose itself.

    They point along the gradient of heat that diffuses from the centre of each nucleus (Stringer
    et al., Nature Methods 18, 100, 2021). Lists of single frames of the result are taken by
    ``train_seg`` as labels, which then computes none itself.

    Args:
        masks: Ids ``[N, H, W]``, 0 is background.

    Returns:
        ``[N, 4, H, W]`` float32 on the device of masks: ids, numbered anew 1, 2, ... in each
        frame; 1 inside nuclei; and the unit vectors y and x, 0 in the background.

    Raises:
        ImportError: If cellpose is missing.
        ValueError: If masks are not whole numbers of 0 or more, ``[N, H, W]``.
    """
    masks = _check_masks(masks)
    labels_to_flows = require("cellpose.dynamics", "cellpose").labels_to_flows
    # It renumbers in place, and shows a bar for more than one image.
    images = [image.astype(np.int32) for image in masks.cpu().numpy()]
    with masks.device:  # it makes tensors on the default one
        flows = [labels_to_flows([image], device=masks.device)[0] for image in images]
    return torch.from_numpy(np.stack(flows)).to(masks.device)


def _check_masks(masks: Tensor) -> Tensor:
    """Return the masks as int64."""
    if not isinstance(masks, Tensor):
        raise TypeError(f"masks must be a tensor, got {type(masks).__name__}; see torch.as_tensor")
    masks = masks.as_subclass(Tensor)
    whole = not (masks.is_floating_point() or masks.is_complex() or masks.dtype == torch.bool)
    if masks.ndim != 3 or not whole or not math.prod(masks.shape):
        raise ValueError(
            f"masks must be whole numbers [N, H, W], got {masks.dtype} {list(masks.shape)}; "
            "give the masks of one clip"
        )
    masks = masks.long()
    if int(masks.min()) < 0:
        raise ValueError(f"masks must be 0 or more, got {int(masks.min())}")
    return masks
