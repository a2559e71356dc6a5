"""Sources of a mix: what it asks of them, and whether their clips fit into one batch."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from bvdm_data.clip import ANNOTATIONS, PADDING, CameraScale, Clip, build_schema
from bvdm_data.rng import numpy_rng
from bvdm_data.validate import name_clip_in_errors

# Type, shape and device of each key of a clip.
ClipSpec = dict[str, tuple[str, tuple[int, ...], str]]
# What the clips of a mix have in common, so that they fit into one batch; padded tables get the
# rows of the source that has most.
SHARED = ("frames", "size", "annotations", "max_cells", "scale")
# Clips of a source that are shuffled at most: their order is kept in memory (our choice).
MAX_SHUFFLED = 1_000_000
EXPECTED = (
    "a data set of clips, such as SyntheticHeLaVideos or CTCVideos, or a map-style one of them"
)

_KEYS = ("video", *ANNOTATIONS)  # of which a clip has the first or, without pictures, another

_SET_BY_MIX = ("index", "source", "member")


class ClipSource(Protocol):
    """What a mix asks of its sources: endless clips by number, all with the dtypes of ``Clip``.

    ``SyntheticHeLaVideos``, ``CTCVideos`` and ``MixedVideos`` itself are such sources. ``clip``
    alone is enough; clip 0 then shows the rest. The clips an epoch are ``length_in(epoch)`` where
    the source has that, or else the ``length`` of an iterable data set, or the ``len()`` of
    another one; without any of them it has no end. An attribute ``video`` that is False says that
    clips have no pictures.
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
        """Set the number of the epoch."""


class MapStyle(Protocol):
    """Another source that a mix takes: a map-style data set, also a list, of clips."""

    def __len__(self) -> int:
        """Return the number of clips."""

    def __getitem__(self, index: int, /) -> Any:
        """Return a clip: a mapping with ``video`` ``[F, C, H, W]``; without ``source``, real."""


@dataclass(frozen=True)
class Source:
    """A source of a mix under its name, with the spec of its clips (None: not known yet)."""

    name: str
    source: Any
    spec: ClipSpec | None = None

    def get_length(self, epoch: int) -> int | None:
        """Return the clips of an epoch of the source; None: without end."""
        length_in = getattr(self.source, "length_in", None)
        if callable(length_in):
            return cast(int | None, length_in(epoch))
        if isinstance(self.source, IterableDataset):  # its len() may count one rank alone
            return getattr(self.source, "length", None)
        return len(self.source) if hasattr(self.source, "__len__") else None

    def list_settings(self) -> dict[str, str]:
        """Return what its clips follow from, by name, as far as it is known."""
        settings: dict[str, str] = getattr(self.source, "_list_settings", dict)()
        if isinstance(getattr(self.source, "seed", None), int):
            settings = {"seed": str(self.source.seed), **settings}
        return {f"{self.name}.{name}": setting for name, setting in settings.items()}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the source, where it has one."""
        if callable(getattr(self.source, "set_epoch", None)):
            self.source.set_epoch(epoch)

    def make_clip(self, own: int, *, number: int, epoch: int) -> dict[str, Any]:
        """Return clip ``own`` of the source, as a new dict."""
        name = f"MixedVideos, which is clip {own} of sources[{self.name!r}]"
        with name_clip_in_errors(name, epoch, number):
            clip = self._get_item(own, epoch)
            form = self.spec or {}
            for key in PADDING.keys() & clip.keys() & form.keys():
                table, rows = clip[key], form[key][1][0]
                if isinstance(table, Tensor) and table.ndim and len(table) < rows:
                    padding = table.new_full((rows - len(table), *table.shape[1:]), PADDING[key])
                    clip[key] = torch.cat([table, padding])
            spec = _get_clip_spec(clip)
            if self.spec is not None and spec != self.spec:
                raise ValueError(_describe_mismatch(self.name, self.spec, self.name, spec))
        return clip

    def shuffle(self, own: int, *, seed: int, epoch: int) -> int:
        """Return the number of the clip that replaces clip ``own`` in a shuffled pass."""
        length = self.get_length(epoch)
        if length is None:
            return own
        if length > MAX_SHUFFLED:
            raise ValueError(
                f"shuffle must be False where a source has more than {MAX_SHUFFLED} clips, got "
                f"{length} of sources[{self.name!r}]; give it a smaller length"
            )
        times, place = divmod(own, length)
        return times * length + int(_permute(seed, self.name, epoch, times, length)[place])

    def _get_item(self, own: int, epoch: int) -> dict[str, Any]:
        is_map_style = not callable(getattr(self.source, "clip", None))
        length = self.get_length(epoch)
        if length and (is_map_style or getattr(self.source, "at_end", None) == "drop"):
            own %= length
        clip = self.source[own] if is_map_style else self.source.clip(own)
        keys = [key for key in _KEYS if key in clip] if isinstance(clip, Mapping) else []
        if not keys or not isinstance(clip[keys[0]], Tensor):
            lacks = f"{type(self.source).__name__} has no 'clip' and" if is_map_style else "it"
            got = f"a dict of {sorted(clip)}" if isinstance(clip, Mapping) else repr(clip)
            got = got if len(got) < 80 else f"a {type(clip).__name__}"
            raise TypeError(
                f"sources[{self.name!r}] must be {EXPECTED}: {lacks} gives {got} in place of a "
                "dict with the tensor 'video', or of annotations alone"
            )
        if keys[0] == "video" and clip["video"].ndim != 4:
            raise ValueError(
                f"sources[{self.name!r}] must give 'video' as [F, C, H, W], got the shape "
                f"{tuple(clip['video'].shape)}"
            )
        source = clip.get("source", 0)
        how: Any = {"device": source.device if isinstance(source, Tensor) else "cpu"}
        return {**clip, "source": torch.as_tensor(source, dtype=torch.int8, **how)}


@functools.lru_cache(maxsize=16)
def _permute(seed: int, name: str, epoch: int, times: int, length: int) -> npt.NDArray[np.int64]:
    return numpy_rng(seed, "shuffle", name, epoch, times).permutation(length)


def _get_clip_spec(clip: Mapping[str, Any]) -> ClipSpec:
    """Return type, shape and device of the keys of a clip, without those that the mix sets."""
    spec: ClipSpec = {}
    for key, value in clip.items():
        if key in _SET_BY_MIX:
            continue
        if isinstance(value, Tensor):
            spec[key] = str(value.dtype), tuple(value.shape), value.device.type
        elif isinstance(value, np.ndarray):
            spec[key] = f"numpy.{value.dtype}", value.shape, "cpu"
        else:
            spec[key] = type(value).__name__, (), "cpu"
    return spec


def _describe_mismatch(name: str, spec: ClipSpec, other_name: str, other: ClipSpec) -> str:
    """Return the error message for the first difference of two specs."""
    one, two = f"one of sources[{name!r}] has", f"one of sources[{other_name!r}] has"
    if spec.keys() != other.keys():
        return (
            f"sources must give clips of the same keys: {one} {sorted(spec)}, {two} "
            f"{sorted(other)}; leave out what not all have"
        )
    key = next(key for key in spec if spec[key] != other[key])
    first, second = ("{} {} on {}".format(*each[key]) for each in (spec, other))
    return (
        f"sources must give {key!r} of the same type and shape: {one} {first}, {two} {second}; "
        "change it by a transform"
    )


def check_compatible(sources: Mapping[str, Any]) -> tuple[list[Source], dict[str, Any]]:
    """Check that clips of all sources fit into one batch; return the sources and ``SHARED``.

    A source that has all attributes of :class:`ClipSource` and no transform is taken at its word.
    Of others, clip 0 is made.
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
    declared = {name: _read_declared(source) for name, source in sources.items()}
    _check_shared(declared)
    is_grey = any(
        "scale" in facts and getattr(sources[name], "transform", None) is None
        for name, facts in declared.items()
    )
    specs = {
        name: _find_spec(name, source, declared[name], is_grey) for name, source in sources.items()
    }
    facts = {name: {**_read_spec(spec), **declared[name]} for name, spec in specs.items()}
    _check_shared(facts)
    rows = max((each["max_cells"] or 0 for each in facts.values()), default=0)
    for each in facts.values():
        each["max_cells"] = each["max_cells"] and rows
    specs = {name: _pad_spec(spec, rows) for name, spec in specs.items()}
    first = next(iter(specs))
    for name, spec in specs.items():
        if spec != specs[first]:
            raise ValueError(_describe_mismatch(first, specs[first], name, spec))
    common: dict[str, Any] = dict.fromkeys(SHARED)
    for each in facts.values():
        common |= {part: value for part, value in each.items() if value is not None}
    return [Source(name, source, specs[name]) for name, source in sources.items()], common


def _check_source(name: Any, source: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"sources must have names (strings), got {name!r}")
    rule = f"sources[{name!r}] must be {EXPECTED}"
    kind = type(source).__name__
    if isinstance(source, type):
        raise TypeError(f"{rule}, got the class {source.__name__}; write {source.__name__}(...)")
    # Their methods named clip limit values.
    if isinstance(source, Tensor | np.ndarray):
        raise TypeError(
            f"{rule}, got {kind} of the shape {tuple(source.shape)}; write "
            "[{'video': video} for video in ...] if these are videos [F, C, H, W]"
        )
    if callable(getattr(source, "clip", None)):
        return
    if isinstance(source, IterableDataset):
        raise TypeError(
            f"{rule}; {kind} is iterable and has no 'clip' that gives one by its number, without "
            "which no clip could be made again and no loop resumed. Give it a method clip(index), "
            "or keep its first clips in a list"
        )
    has_items = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if not has_items or isinstance(source, str | Mapping):
        raise TypeError(f"{rule}; {kind} has no 'clip'")
    if not len(source):
        raise ValueError(f"sources[{name!r}] must hold at least one clip, got none")


def _read_declared(source: Any) -> dict[str, Any]:
    """Return which of ``SHARED`` a source has as attributes, unless a transform may change it."""
    is_declared = hasattr(source, "clip") and getattr(source, "transform", None) is None
    facts = {part: getattr(source, part, None) for part in (SHARED if is_declared else ("scale",))}
    if not isinstance(facts["scale"], CameraScale):
        del facts["scale"]
    return {part: value for part, value in facts.items() if value is not None}


def _read_spec(spec: ClipSpec) -> dict[str, Any]:
    """Return what the spec of a clip shows of ``SHARED``."""
    shapes = [spec[key][1] for key in ("video", "masks") if key in spec]
    tables = [rows for key in PADDING if key in spec for rows in spec[key][1][:1]]
    return {
        "frames": shapes[0][0] if shapes else None,
        "size": shapes[0][-2:] if shapes else None,
        "annotations": tuple(name for name in ANNOTATIONS if name in spec),
        "max_cells": tables[0] if tables else None,
    }


def _pad_spec(spec: ClipSpec, rows: int) -> ClipSpec:
    """Return the spec of clips whose tables have been padded."""
    return {
        key: (kind, (rows, *shape[1:]) if key in PADDING and shape else shape, device)
        for key, (kind, shape, device) in spec.items()
    }


def _check_shared(facts: Mapping[str, Mapping[str, Any]]) -> None:
    for part in sorted({*SHARED} - {"max_cells"}, key=SHARED.index):
        known = [(name, each[part]) for name, each in facts.items() if each.get(part) is not None]
        for name, value in known[1:]:
            if value != known[0][1]:
                raise ValueError(
                    f"sources must have the same {part}: sources[{known[0][0]!r}] has "
                    f"{known[0][1]}, sources[{name!r}] has {value}; make both with the same {part}"
                )


def _find_spec(name: str, source: Any, facts: Mapping[str, Any], is_grey: bool) -> ClipSpec:
    """Return the spec of the clips of a source; where it is not declared, the spec of clip 0."""
    form = getattr(source, "form", None) if hasattr(source, "clip") else None
    if form is not None:
        return cast(ClipSpec, form)
    if facts.keys() >= set(SHARED):
        form = facts["frames"], tuple(facts["size"]), facts["max_cells"], facts["annotations"]
        has_video = getattr(source, "video", True) is not False
        left_out = {*_SET_BY_MIX} if has_video else {*_SET_BY_MIX, "video"}
        device = getattr(source, "device", None)
        place = device.type if isinstance(device, torch.device) else "cpu"
        return {
            key: (str(dtype), cast(tuple[int, ...], shape), place)
            for key, (dtype, shape) in build_schema(*form).items()
            if key not in left_out
        }
    clip = Source(name, source).make_clip(0, number=0, epoch=getattr(source, "epoch", 0))
    video = clip.get("video")
    if is_grey and "scale" not in facts and video is not None and video.is_floating_point():
        low, high = video.min().item(), video.max().item()
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"sources[{name!r}] must give 'video' as grey values from 0 to 1, as the others "
                f"do, got {low:g} to {high:g}; bring them onto the scale of the others, see "
                "CameraScale"
            )
    return _get_clip_spec(clip)
