"""A user's transform, applied to a finished clip."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

from bvdm_data.clip import Clip
from bvdm_data.randomness import numpy_stream, stream

Transform = Callable[[Any], Any]
"""Takes a clip and returns one; the transforms of torchvision.transforms.v2 are such."""


class TransformError(RuntimeError):
    """A transform has failed on a clip; the cause is the exception it is raised from."""


def wanted_with(annotations: tuple[str, ...], transform: Transform | None) -> tuple[str, ...]:
    """Return the annotations that a clip must have ahead of its transform.

    Args:
        annotations: What the user has asked for.
        transform: The user's transform, or None.

    Returns:
        The same; with a transform also ``masks``, from which the others are made anew.
    """
    if transform is None or not annotations or annotations == ("masks",):
        return annotations
    return tuple(dict.fromkeys(("masks", *annotations)))


def transformed(
    clip: Clip,
    transform: Transform | None,
    *,
    name: str = "the data set",
    seed: int | None = None,
    epoch: int = 0,
    annotations: Collection[str] | None = None,
) -> Clip:
    """Call the transform on a clip whose ``video`` and ``masks`` are tv_tensors.

    So torchvision.transforms.v2 moves both alike, masks without interpolation. Where it has moved
    pixels, the annotations follow: masks and tables are numbered anew from the masks, and ``flow``
    is carried along; see :func:`bvdm_data.datasets.moved.settled`. A transform that returns
    something else than a mapping answers for its content itself.

    Args:
        clip: The clip; it is not changed.
        transform: What to call, or None for nothing.
        name: The data set, for messages.
        seed: Seed of the data set. The global random states of torch, numpy and Python are a
            function of seed, epoch and index while the transform runs, and afterwards what they
            were before. None: they are left alone.
        epoch: Epoch of the clip.
        annotations: Those to keep, out of what the clip has; None: all.

    Returns:
        What the transform has returned; in a dict, tv_tensors have become plain tensors again.

    Raises:
        TransformError: If the transform raises, or moves pixels in a way that the annotations
            cannot follow; the message names the clip and the way to make it again.
    """
    if transform is None:
        return clip
    index = int(clip["index"])
    try:
        with _random_states(seed, epoch, index, clip["video"].device):
            result = _applied(clip, transform)
    except Exception as error:
        raise TransformError(
            f"transform failed on clip {index} of epoch {epoch} of {name}: "
            f"{type(error).__name__}: {error}. To make the clip alone: videos.set_epoch({epoch}); "
            f"videos.clip({index}); set videos.transform = None first to see it untransformed"
        ) from error
    if isinstance(result, Mapping) and annotations is not None:
        hidden = "masks" not in annotations
        result = {key: value for key, value in result.items() if not (hidden and key == "masks")}
    return cast(Clip, result)


def _applied(clip: Clip, transform: Transform) -> Any:
    # Imported here: torchvision takes longer to import than the rest of the package.
    from torchvision import tv_tensors

    from bvdm_data.datasets.moved import settled, with_planes

    given = with_planes(clip)
    given["video"] = tv_tensors.Video(clip["video"])
    if "masks" in clip:
        given["masks"] = tv_tensors.Mask(clip["masks"])
    result = transform(given)
    return settled(clip, result) if isinstance(result, Mapping) else result


@contextmanager
def _random_states(
    seed: int | None, epoch: int, index: int, device: torch.device
) -> Iterator[None]:
    """Lend the transform global random states of the clip's own."""
    if seed is None:
        yield
        return
    path = ("transform", epoch, index)
    before = random.getstate()
    # The legacy state is what transforms of other people draw from.
    numpy_before = np.random.get_state()  # noqa: NPY002
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            number = stream(seed, *path).initial_seed()
            torch.default_generator.manual_seed(number)
            if cuda:
                torch.cuda.manual_seed(number)
            random.seed(number)
            np.random.set_state(_legacy_state(seed, path))  # noqa: NPY002
            yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002


def _legacy_state(seed: int, path: tuple[str | int, ...]) -> Any:
    return np.random.MT19937(numpy_stream(seed, *path).integers(2**63)).state
