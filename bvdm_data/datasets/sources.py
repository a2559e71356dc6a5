"""Sources of a mix: what it asks of them, and whether their clips fit into one batch."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from bvdm_data.clip import ANNOTATIONS, CameraScale, Clip
from bvdm_data.rng import numpy_rng
from bvdm_data.validate import name_clip_in_errors

ClipSpec = dict[str, tuple[str, tuple[int, ...], str]]
"""Type, shape and device of each key of a clip."""

_OF_THE_MIX = ("index", "source", "member")
"""Keys that the mix sets itself."""

MAX_SHUFFLED = 1_000_000
"""Clips of a source that are shuffled at most: their order is kept in memory (our choice)."""

EXPECTED = (
    "a data set of clips, such as SyntheticHeLaVideos or CTCVideos, or a map-style one of them"
)


@runtime_checkable
class ClipSource(Protocol):
    """What a mix asks of its sources: endless clips by number, all with the dtypes of ``Clip``.

    ``SyntheticHeLaVideos``, ``CTCVideos`` and ``MixedVideos`` itself are such sources. One that has
    less than this but ``clip`` is taken, too; its clip 0 then tells the rest. Its clips an epoch
    are ``length_in(epoch)`` where it has that, or else the ``length`` of an iterable data set, or
    the ``len()`` of another one; none of them: it has no end.
    """

    @property
    def frames(self) -> int:
        """Frames of a clip."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a clip in pixels."""

    @property
    def annotations(self) -> tuple[str, ...]:
        """Keys of a clip beside ``video``, out of ``ANNOTATIONS``."""

    @property
    def max_cells(self) -> int | None:
        """Rows of the padded tables; None where there are none."""

    @property
    def scale(self) -> CameraScale | None:
        """How counts of the camera and grey values belong together; None: not known."""

    def clip(self, index: int) -> Clip:
        """Return clip ``index``, for any index >= 0."""

    def set_epoch(self, epoch: int) -> None:
        """Let the clips be those of another epoch."""


class MapStyle(Protocol):
    """Another source that a mix takes: a map-style data set, also a list, of clips."""

    def __len__(self) -> int:
        """Return the number of clips."""

    def __getitem__(self, index: int, /) -> Any:
        """Return a clip: a mapping with ``video`` ``[F, C, H, W]``; without ``source``, real."""


@dataclass(frozen=True)
class Source:
    """A source of a mix, asked for clips by number."""

    name: str  # its name in the mix
    source: Any  # the data set
    form: ClipSpec | None = None  # of its clips; None: not known yet

    def length(self, epoch: int) -> int | None:
        """Return the clips of an epoch of the source; None: without end."""
        told = getattr(self.source, "length_in", None)
        if callable(told):
            return cast(int | None, told(epoch))
        if isinstance(self.source, IterableDataset):  # its len() may be that of a rank alone
            return getattr(self.source, "length", None)
        return len(self.source) if hasattr(self.source, "__len__") else None

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch on, where the source asks for it."""
        if callable(getattr(self.source, "set_epoch", None)):
            self.source.set_epoch(epoch)

    def clip(self, own: int, *, number: int, epoch: int) -> dict[str, Any]:
        """Return a clip of the source, in a dict of its own."""
        name = f"MixedVideos, which is clip {own} of sources[{self.name!r}]"
        with name_clip_in_errors(name, epoch, number):
            found = self._taken(own, epoch)
            form = get_clip_spec(found)
            if self.form is not None and form != self.form:
                raise ValueError(describe_mismatch(self.name, self.form, self.name, form))
        return found

    def shuffled(self, own: int, *, seed: int, epoch: int) -> int:
        """Return the number of the clip that is shown in place of the source's next one."""
        length = self.length(epoch)
        if length is None:
            return own
        if length > MAX_SHUFFLED:
            raise ValueError(
                f"shuffle must be False where a source has more than {MAX_SHUFFLED} clips, got "
                f"{length} of sources[{self.name!r}]; give it a smaller length"
            )
        times, place = divmod(own, length)
        return times * length + int(_order(seed, self.name, epoch, times, length)[place])

    def _taken(self, own: int, epoch: int) -> dict[str, Any]:
        length = self.length(epoch)
        if length and (self._is_map_style or getattr(self.source, "at_end", None) == "drop"):
            own %= length
        clip = self.source[own] if self._is_map_style else self.source.clip(own)
        if not isinstance(clip, Mapping) or not isinstance(clip.get("video"), Tensor):
            lacks = "it"
            if self._is_map_style:
                lacks = f"{type(self.source).__name__} has no 'clip' and"
            raise TypeError(
                f"sources[{self.name!r}] must be {EXPECTED}: {lacks} gives "
                f"{_shortly(clip)} in place of a dict with the tensor 'video'"
            )
        if clip["video"].ndim != 4:
            raise ValueError(
                f"sources[{self.name!r}] must give 'video' as [F, C, H, W], got the shape "
                f"{tuple(clip['video'].shape)}"
            )
        kind = torch.as_tensor(clip.get("source", 0), dtype=torch.int8)
        return {**clip, "source": kind}

    @property
    def _is_map_style(self) -> bool:
        return not callable(getattr(self.source, "clip", None))


@functools.lru_cache(maxsize=16)
def _order(seed: int, name: str, epoch: int, times: int, length: int) -> npt.NDArray[np.int64]:
    return numpy_rng(seed, "shuffle", name, epoch, times).permutation(length)


def get_clip_spec(clip: Mapping[str, Any]) -> ClipSpec:
    """Return the form of a clip, but for the keys that the mix sets."""
    return {key: _get_tensor_spec(value) for key, value in clip.items() if key not in _OF_THE_MIX}


def describe_mismatch(one: str, form: ClipSpec, other: str, another: ClipSpec) -> str:
    """Say in what two forms differ first."""
    if form.keys() != another.keys():
        return (
            f"sources must give clips of the same keys: one of sources[{one!r}] has "
            f"{sorted(form)}, one of sources[{other!r}] has {sorted(another)}; leave out what "
            "not all have"
        )
    key = next(key for key in form if form[key] != another[key])
    said = ["{} {} on {}".format(*each[key]) for each in (form, another)]
    return (
        f"sources must give {key!r} of the same type and shape: one of sources[{one!r}] has "
        f"{said[0]}, one of sources[{other!r}] has {said[1]}; change it by a transform"
    )


def _get_tensor_spec(value: Any) -> tuple[str, tuple[int, ...], str]:
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.device.type
    if isinstance(value, np.ndarray):
        return f"numpy.{value.dtype}", value.shape, "cpu"
    return type(value).__name__, (), "cpu"


def _shortly(value: Any) -> str:
    said = repr(value) if not isinstance(value, Mapping) else f"a dict of {sorted(value)}"
    return said if len(said) < 80 else f"a {type(value).__name__}"


SHARED = ("frames", "size", "annotations", "max_cells", "scale")
"""What all sources of a mix must have in common, so that their clips fit into one batch."""


@dataclass(frozen=True)
class CommonSpec:
    """What the sources of a mix have in common."""

    members: tuple[Source, ...]  # the sources
    frames: int  # frames of a clip
    size: tuple[int, int]  # height and width of a clip in pixels
    annotations: tuple[str, ...]  # keys of a clip beside video
    max_cells: int | None  # rows of the padded tables; None: there are none
    # how counts of the camera and grey values belong together; None: not known
    scale: CameraScale | None
    form: ClipSpec  # type, shape and device of each key of a clip


def check_compatible(sources: Mapping[str, Any]) -> CommonSpec:
    """Check that clips of all sources fit into one batch, and say what they have in common.

    A source that says all of :class:`ClipSource` and has no transform is believed. Of others,
    clip 0 is made.
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
        {**_seen(cast(ClipSpec, member.form)), **told}
        for member, told in zip(members, declared, strict=True)
    ]
    _check_facts(list(sources), facts)
    first = members[0]
    for other in members[1:]:
        if first.form != other.form:
            forms = cast(ClipSpec, first.form), cast(ClipSpec, other.form)
            raise ValueError(describe_mismatch(first.name, forms[0], other.name, forms[1]))
    common: dict[str, Any] = {"max_cells": None, "scale": None}
    for fact in facts:
        common |= {part: value for part, value in fact.items() if value is not None}
    return CommonSpec(tuple(members), form=cast(ClipSpec, first.form), **common)


def _check_source(name: Any, source: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"sources must have names (strings), got {name!r}")
    said = f"sources[{name!r}] must be {EXPECTED}"
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


def _seen(form: ClipSpec) -> dict[str, Any]:
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


def _with_form(name: str, source: Any, told: Mapping[str, Any], is_grey: bool) -> Source:
    """Return the source with the form of its clips; where it is not said, one is made for that."""
    said = getattr(source, "form", None) if hasattr(source, "clip") else None
    if said is not None:
        return Source(name, source, said)
    if told.keys() >= set(SHARED):
        return Source(name, source, _form_said(source, told))
    clip = Source(name, source).clip(0, number=0, epoch=getattr(source, "epoch", 0))
    if is_grey and "scale" not in told:
        _check_range(name, clip["video"])
    return Source(name, source, get_clip_spec(clip))


def _check_range(name: str, video: Tensor) -> None:
    low, high = video.min().item(), video.max().item()
    if video.is_floating_point() and not 0 <= low <= high <= 1:
        raise ValueError(
            f"sources[{name!r}] must give 'video' as grey values from 0 to 1, as the others do, "
            f"got {low:g} to {high:g}; bring them onto the scale of the others, see CameraScale"
        )


def _form_said(source: Any, told: Mapping[str, Any]) -> ClipSpec:
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
