"""A user's transform, applied to a finished clip."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor

from bvdm_data.clip import Clip

Transform = Callable[[Any], Any]
"""Takes a clip and returns one; the transforms of torchvision.transforms.v2 are such."""


def transformed(clip: Clip, transform: Transform | None) -> Clip:
    """Call the transform on a clip whose ``video`` and ``masks`` are tv_tensors.

    So torchvision.transforms.v2 moves both alike, masks without interpolation, and leaves the
    tables alone: a transform that moves pixels makes ``flow``, ``boxes`` and ``centroids`` untrue.

    Args:
        clip: The clip; it is not changed.
        transform: What to call, or None for nothing.

    Returns:
        What the transform has returned; in a dict, tv_tensors have become plain tensors again.
    """
    if transform is None:
        return clip
    # Imported here: torchvision takes longer to import than the rest of the package.
    from torchvision import tv_tensors

    given: dict[str, Any] = dict(clip)
    given["video"] = tv_tensors.Video(clip["video"])
    if "masks" in clip:
        given["masks"] = tv_tensors.Mask(clip["masks"])
    result = transform(given)
    if isinstance(result, Mapping):
        result = {key: _plain(value) for key, value in result.items()}
    return cast(Clip, result)


def _plain(value: object) -> object:
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value
