"""A user's transform, applied to a finished clip."""

import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, cast

import numpy as np
import torch

from bvdm_data.clip import Clip
from bvdm_data.datasets.detections import update_detections
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.system import isolate

# Takes a clip and returns one; the transforms of torchvision.transforms.v2 are such.
Transform = Callable[[Any], Any]


class TransformError(RuntimeError):
    """A transform has failed on a clip; the cause is the exception it is raised from."""


def list_required_keys(
    annotations: tuple[str, ...], transform: Transform | None
) -> tuple[str, ...]:
    """Return the annotations that a clip must have ahead of its transform."""
    if transform is None or not annotations or annotations == ("masks",):
        return annotations
    return tuple(dict.fromkeys(("masks", *annotations)))


def name_transform(transform: Transform | None) -> str:
    """Return how a module or a dataclass describes itself, or the name of a function."""
    if isinstance(transform, torch.nn.Module) or is_dataclass(transform):
        return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(transform).split()))
    return getattr(transform, "__qualname__", type(transform).__qualname__)


@isolate()
def apply_transform(
    clip: Clip,
    transform: Transform | None,
    *,
    name: str = "the data set",
    seed: int | None = None,
    epoch: int = 0,
    annotations: Collection[str] | None = None,
) -> Clip:
    """Call the transform on a clip whose ``video`` and ``masks`` are tv_tensors.

    torchvision.transforms.v2 then moves both alike, masks without interpolation. The annotations
    follow; see :func:`update_annotations`. A result that is no mapping is returned as it is, and
    nothing follows or is checked in it.
    """
    if transform is None:
        return clip
    # Imported here: torchvision takes longer to import than the rest of the package.
    from bvdm_data.datasets.transformed_annotations import (
        PIXELS,
        add_probe_planes,
        update_annotations,
    )

    index = int(clip["index"])
    latest: dict[type, torch.Tensor] = {}
    try:
        with _fork_random_states(seed, epoch, index, clip["index"].device):
            sample = add_probe_planes(clip)
            latest = sample[PIXELS].latest if PIXELS in sample else latest
            result = transform(sample)
            if result is None:
                raise TypeError("it must return the clip, got None; end it with return clip")
            if isinstance(result, Mapping):
                result = update_detections(update_annotations(clip, result, latest))
    except Exception as error:
        has = f"; the clip has the keys {tuple(clip)}" * isinstance(error, KeyError)
        raise TransformError(
            f"transform failed on clip {index} of epoch {epoch} of {name}: "
            f"{type(error).__name__}: {error}{has}. To make the clip alone: "
            f"videos.set_epoch({epoch}); videos.clip({index}); set videos.transform = None first "
            "to see it untransformed"
        ) from error
    finally:
        latest.clear()  # the planes refer to it, and it to them
    if isinstance(result, Mapping) and annotations is not None and "masks" not in annotations:
        result = {key: value for key, value in result.items() if key != "masks"}
    return cast(Clip, result)


@contextmanager
def _fork_random_states(
    seed: int | None, epoch: int, index: int, device: torch.device
) -> Iterator[None]:
    """Seed the global random states for this clip, and restore them afterwards."""
    if seed is None:
        yield
        return
    path = ("transform", epoch, index)
    number = torch_rng(seed, *path).initial_seed()
    python_before = random.getstate()
    # The transforms of other people draw from numpy's legacy state.
    numpy_before = np.random.get_state()  # noqa: NPY002
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(number)
            if cuda:
                torch.cuda.manual_seed(number)
            random.seed(number)
            legacy: Any = np.random.MT19937(numpy_rng(seed, *path).integers(2**63)).state
            np.random.set_state(legacy)  # noqa: NPY002
            yield
    finally:
        random.setstate(python_before)
        np.random.set_state(numpy_before)  # noqa: NPY002
