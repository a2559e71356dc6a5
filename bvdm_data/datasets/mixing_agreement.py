"""What the sources of a mix must agree on, checked before the first batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from bvdm_data.camera_scale import CameraScale
from bvdm_data.clip import ANNOTATIONS
from bvdm_data.datasets.mixing_members import GOOD, Form, Member, difference, form_of

SHARED = ("frames", "size", "annotations", "max_cells", "scale")
"""What all sources of a mix must have in common, so that their clips fit into one batch."""


@dataclass(frozen=True)
class Agreement:
    """What the sources of a mix have in common.

    Attributes:
        members: The sources.
        frames: Frames of a clip.
        size: Height and width of a clip in pixels.
        annotations: Keys of a clip beside ``video``.
        max_cells: Rows of the padded tables; None: there are none.
        scale: How counts of the camera and grey values belong together; None: not known.
        form: Type, shape and device of each key of a clip.
    """

    members: tuple[Member, ...]
    frames: int
    size: tuple[int, int]
    annotations: tuple[str, ...]
    max_cells: int | None
    scale: CameraScale | None
    form: Form


def agree(sources: Mapping[str, Any]) -> Agreement:
    """Check that clips of all sources fit into one batch, and say what they have in common.

    A source that says all of :class:`ClipSource` and has no transform is believed. Of others,
    clip 0 is made.

    Args:
        sources: Data sets by name.

    Returns:
        The sources and what they agree on.

    Raises:
        TypeError: If sources is no mapping of names to data sets of clips.
        ValueError: If there is none, one is empty, or two differ in what their clips hold.
    """
    if not isinstance(sources, Mapping):
        raise TypeError(
            "sources must map names to data sets, such as {'real': real, 'synthetic': synthetic}, "
            f"got {type(sources).__name__}"
        )
    if not sources:
        raise ValueError("sources must name at least one data set, got none")
    for name, source in sources.items():
        _check_source(name, source)
    declared = [_declared(source) for source in sources.values()]
    _check_facts(list(sources), declared)
    is_grey = any(
        "scale" in told and getattr(source, "transform", None) is None
        for told, source in zip(declared, sources.values(), strict=True)
    )
    members = [
        _with_form(name, source, told, is_grey)
        for (name, source), told in zip(sources.items(), declared, strict=True)
    ]
    facts = [
        {**_seen(cast(Form, member.form)), **told}
        for member, told in zip(members, declared, strict=True)
    ]
    _check_facts(list(sources), facts)
    first = members[0]
    for other in members[1:]:
        if first.form != other.form:
            forms = cast(Form, first.form), cast(Form, other.form)
            raise ValueError(difference(first.name, forms[0], other.name, forms[1]))
    common: dict[str, Any] = {"max_cells": None, "scale": None}
    for fact in facts:
        common |= {part: value for part, value in fact.items() if value is not None}
    return Agreement(tuple(members), form=cast(Form, first.form), **common)


def _check_source(name: Any, source: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"sources must have names (strings), got {name!r}")
    said = f"sources[{name!r}] must be {GOOD}"
    if isinstance(source, type):
        raise TypeError(f"{said}, got the class {source.__name__}; write {source.__name__}(...)")
    # Their methods named clip limit values.
    if isinstance(source, Tensor | np.ndarray):
        raise TypeError(
            f"{said}, got {type(source).__name__} of the shape {tuple(source.shape)}; write "
            "[{'video': video} for video in ...] if these are videos [F, C, H, W]"
        )
    if callable(getattr(source, "clip", None)):
        return
    if isinstance(source, IterableDataset):
        raise TypeError(
            f"{said}; {type(source).__name__} is iterable and has no 'clip' that gives one by its "
            "number, without which no clip could be made again and no loop resumed. Give it a "
            "method clip(index), or keep its first clips in a list"
        )
    parts = [part for part in ("__len__", "__getitem__") if not hasattr(source, part)]
    if parts or isinstance(source, str | Mapping):
        raise TypeError(f"{said}; {type(source).__name__} has no 'clip'")
    if not len(source):
        raise ValueError(f"sources[{name!r}] must hold at least one clip, got none")


def _declared(source: Any) -> dict[str, Any]:
    """Return what a source says of its clips, as far as no transform has changed it."""
    says_all = hasattr(source, "clip") and getattr(source, "transform", None) is None
    told = {part: getattr(source, part, None) for part in (SHARED if says_all else ("scale",))}
    if not isinstance(told["scale"], CameraScale):
        del told["scale"]
    return {part: value for part, value in told.items() if value is not None}


def _seen(form: Form) -> dict[str, Any]:
    """Return what a clip shows of the same."""
    frames, _, *size = form["video"][1]
    tables = [form[key][1][0] for key in ("tracks", "stages", "boxes", "centroids") if key in form]
    return {
        "frames": frames,
        "size": tuple(size),
        "annotations": tuple(name for name in ANNOTATIONS if name in form),
        "max_cells": tables[0] if tables else None,
    }


def _check_facts(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> None:
    for part in SHARED:
        told = [(name, fact[part]) for name, fact in zip(names, facts, strict=True)
                if fact.get(part) is not None]  # fmt: skip
        for name, got in told[1:]:
            if got != told[0][1]:
                raise ValueError(
                    f"sources must have the same {part}: sources[{told[0][0]!r}] has "
                    f"{told[0][1]}, sources[{name!r}] has {got}; make both with the same {part}"
                )


def _with_form(name: str, source: Any, told: Mapping[str, Any], is_grey: bool) -> Member:
    """Return the source with the form of its clips; where it is not said, one is made for that."""
    said = getattr(source, "form", None) if hasattr(source, "clip") else None
    if said is not None:
        return Member(name, source, said)
    if told.keys() >= set(SHARED):
        return Member(name, source, _form_said(source, told))
    clip = Member(name, source).clip(0, number=0, epoch=getattr(source, "epoch", 0))
    if is_grey and "scale" not in told:
        _check_range(name, clip["video"])
    return Member(name, source, form_of(clip))


def _check_range(name: str, video: Tensor) -> None:
    low, high = video.min().item(), video.max().item()
    if video.is_floating_point() and not 0 <= low <= high <= 1:
        raise ValueError(
            f"sources[{name!r}] must give 'video' as grey values from 0 to 1, as the others do, "
            f"got {low:g} to {high:g}; bring them onto the scale of the others, see CameraScale"
        )


def _form_said(source: Any, told: Mapping[str, Any]) -> Form:
    """Return the form of a :class:`Clip` of which all is said."""
    frames, size, rows = told["frames"], tuple(told["size"]), told["max_cells"]
    device = getattr(source, "device", None)
    place = device.type if isinstance(device, torch.device) else "cpu"
    forms = {
        "video": ("torch.float32", (frames, 1, *size)),
        "masks": ("torch.int32", (frames, *size)),
        "tracks": ("torch.int32", (rows, 4)),
        "flow": ("torch.float32", (frames - 1, 2, *size)),
        "stages": ("torch.int8", (rows, frames)),
        "boxes": ("torch.float32", (rows, frames, 4)),
        "centroids": ("torch.float32", (rows, frames, 2)),
    }
    return {key: (*forms[key], place) for key in ("video", *told["annotations"])}
