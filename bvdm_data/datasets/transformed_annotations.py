"""Annotations that follow a transform of torchvision v2, by probe planes that move with it."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, spatial
from torch import Tensor
from torch.nn.functional import interpolate, pixel_unshuffle
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from bvdm_data.clip import ANNOTATIONS, Clip, annotate_masks, pad_rows, split_gaps
from bvdm_data.datasets.moved_light import has_light_moved
from bvdm_data.datasets.resized_masks import ResizedMasks, take_pixels
from bvdm_data.datasets.tracks import LARGEST_ID

# How far a map may leave its best affine fit and still count as affine, px (our choice).
AFFINE = 1e-3
MOST_SAMPLES = 16  # pixels a side of which a resize makes one, at most (our choice)
FLAT = 0.02  # share of its mean area that a pixel must keep; less is a fold (our choice)
# Keys of the probe planes in the clip that the transform gets.
PIXELS, LIGHT_PIXELS, COORDINATES = "_pixels", "_light_pixels", "_coordinates"
_STAND_IN = "_picture"

_TABLES = ("tracks", "stages", "boxes", "centroids")
_ADVICE = "move it by its tv_tensor type, as torchvision.transforms.v2 does"
_TOO_LITTLE = "it leaves too little of the image to follow flow; leave 'flow' out of annotations"
_FOLDED = (
    "it folds, mirrors or smears parts of the image, where flow cannot follow; deform less, or "
    "leave 'flow' out of annotations"
)
# Functions of torchvision that move pixels.
GEOMETRIC = (
    "horizontal_flip", "vertical_flip", "resize", "affine", "rotate", "pad", "crop",
    "perspective", "elastic", "center_crop", "resized_crop",
)  # fmt: skip
_NEAREST = (InterpolationMode.NEAREST, "nearest", 0)  # the light, too, goes by masks' rule

_Planes = npt.NDArray[np.float64]


class CoordinatePlanes(tv_tensors.TVTensor):  # type: ignore[misc]  # torchvision has no types
    """Planes ``(y, x, 1)``, ``[3, H, W]`` float64, that geometric transforms move like an image.

    Photometric transforms leave them alone. Pixels from beyond the image are 0.
    """


class PixelPlanes(tv_tensors.TVTensor):  # type: ignore[misc]  # torchvision has no types
    """Planes ``(row + 1, column + 1)``, ``[2, H, W]`` float32, moved exactly as masks are.

    Photometric transforms and changes of dtype leave them alone. Pixels from beyond the image are
    0, whatever ``fill`` the user has chosen.
    """

    latest: dict[type, Tensor]  # planes of each type as they were moved last


class LightPixelPlanes(PixelPlanes):
    """The same, except that a resize takes all pixels that make one, ``[2 n, H, W]`` rows first.

    torchvision resizes masks by one pixel each, by a rule that puts them (s - 1) / 2 pixels of the
    larger image beside the light, where s is the ratio of the sizes.
    """


def _register_kernel(name: str, kind: type, stand_in: Callable[[Tensor], Any]) -> None:
    """Let a geometric transform treat probe planes as it treats an image or a mask."""
    functional = getattr(transforms, name)
    signature = inspect.signature(functional)

    @transforms.register_kernel(functional, kind)  # type: ignore[untyped-decorator]
    def kernel(planes: Tensor, *args: object, **kwargs: object) -> Tensor:
        arguments = signature.bind(planes, *args, **kwargs).arguments
        arguments.pop("fill", None)
        if kind is CoordinatePlanes:  # these settings return a linear plane unchanged
            exact = {"interpolation": InterpolationMode.BILINEAR, "antialias": False}
            arguments |= {key: exact[key] for key in exact if key in signature.parameters}
        arguments[next(iter(arguments))] = stand_in(planes.as_subclass(Tensor))
        result = functional(**arguments).as_subclass(Tensor)
        if kind is LightPixelPlanes and arguments.get("interpolation") not in _NEAREST:
            result = _split_pixels(planes.as_subclass(Tensor), result.shape[-2:], arguments)
        wrapped: Tensor = tv_tensors.wrap(result, like=planes)
        latest = getattr(planes, "latest", {})
        latest[type(planes)] = wrapped
        wrapped.latest = latest  # type: ignore[attr-defined]
        return wrapped


def _split_pixels(planes: Tensor, size: Sequence[int], arguments: Mapping[str, Any]) -> Tensor:
    """Return the planes resized, with as many pixels in each as lie in it."""
    if "top" in arguments:
        sides = (arguments[side] for side in ("top", "left", "height", "width"))
        planes = transforms.crop(planes, *sides)
    scale = max(old / new for old, new in zip(planes.shape[-2:], size, strict=True))
    count = math.ceil(scale if scale % 1 == 0 else 2 * scale)
    count = min(count, MOST_SAMPLES)
    larger = [count * side for side in size]
    return pixel_unshuffle(interpolate(planes[None], larger, mode="nearest-exact")[0], count)


for _name in GEOMETRIC:
    _register_kernel(_name, CoordinatePlanes, tv_tensors.Image)
    _register_kernel(_name, PixelPlanes, tv_tensors.Mask)
for _name in ("resize", "resized_crop"):
    _register_kernel(_name, LightPixelPlanes, tv_tensors.Mask)


class CoordinateMap:
    """How a transform has moved pixels: from the image it got to the one it returned."""

    _inverse: _Planes  # [2, 2], of the affine map from the returned image to the one it got

    def __init__(self, planes: Tensor) -> None:
        """Fit the map to the coordinate planes that the transform returned."""
        self._source = planes.as_subclass(Tensor).cpu().numpy()
        inside = self._source[2] > 1 - 1e-9
        affine = self._fit(inside)
        # A resize clamps at the edge of the image, half a pixel of the smaller scale deep.
        depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        sound = depth > 2 + np.linalg.norm(self._inverse, 2) / 2
        if sound.sum() > inside.sum() / 4:
            inside = sound
            affine = self._fit(inside)
        self._is_affine = np.abs(self._source[:2, inside] - affine).max() < AFFINE
        if self._is_affine:
            # Free the matrix of a flip or a quarter turn from the error of the fit.
            whole = np.round(self._inverse) + 0.0  # no -0.0
            if np.abs(self._inverse - whole).max() < 1e-9:
                self._inverse = whole
            return
        inside = ndimage.binary_erosion(inside)  # whose gradients see no pixel from beyond
        slopes = np.stack([np.stack(np.gradient(plane)) for plane in self._source[:2]])
        jacobians = slopes[:, :, inside].transpose(2, 0, 1)
        areas = np.linalg.det(jacobians) * np.linalg.det(self._inverse)
        if areas.min(initial=np.inf) < FLAT:
            raise ValueError(_FOLDED)
        self._inverses = np.linalg.inv(jacobians)
        self._pixels = np.argwhere(inside)
        self._tree = spatial.cKDTree(self._source[:2, inside].T)

    def map_flow(self, pixels: npt.NDArray[np.int64], flow: _Planes) -> _Planes:
        """Return flow ``(dy, dx)`` after the transform, ``[2, n]``.

        ``pixels``: Rows and columns after the transform, ``[2, n]``. ``flow``: That before it.
        """
        if self._is_affine:
            return self._inverse @ flow
        ends = self._source[:2, pixels[0], pixels[1]].T + flow.T
        nearest = self._tree.query(ends)[1]
        rest = np.einsum("nij,nj->ni", self._inverses[nearest], ends - self._tree.data[nearest])
        moved: _Planes = (self._pixels[nearest] + rest).T - pixels
        return moved

    def _fit(self, inside: npt.NDArray[np.bool_]) -> _Planes:
        """Fit an affine map, keep its inverse, and return the sources that it gives."""
        if not inside.any():
            raise ValueError(_TOO_LITTLE)
        pixels = np.argwhere(inside).T.astype(float)
        pixels -= pixels.mean(axis=1, keepdims=True)
        design = np.vstack([pixels, np.ones(pixels.shape[1])]).T
        fitted, _, rank, _ = np.linalg.lstsq(design, self._source[:2, inside].T, rcond=None)
        if rank < 3 or abs(np.linalg.det(fitted[:2])) < 1e-9:
            raise ValueError(_TOO_LITTLE)
        self._inverse = np.linalg.inv(fitted[:2].T)
        sources: _Planes = (design @ fitted).T
        return sources


def _make_coordinate_planes(clip: Clip) -> CoordinatePlanes:
    """Return the planes of an image that nothing has moved, ``[3, H, W]`` float64."""
    video = clip["video"] if "video" in clip else clip["masks"]
    y, x = (torch.arange(n, dtype=torch.float64, device=video.device) for n in video.shape[-2:])
    down, right = torch.meshgrid(y, x, indexing="ij")
    return CoordinatePlanes(torch.stack([down, right, torch.ones_like(down)]))


def add_probe_planes(clip: Clip) -> dict[str, Any]:
    """Return the clip as tv_tensors, with planes that show what a transform does to pixels.

    Video and masks are copies, which a transform may change in place.
    """
    if "masks" in clip and (top := int(clip["masks"].long().max())) > LARGEST_ID:
        raise ValueError(  # masks go through float32
            f"ids must be at most {LARGEST_ID}, above which torchvision merges nuclei, got {top}; "
            "number the nuclei of a clip from 1"
        )
    # Where there is no picture, torchvision takes the first plain tensor for one.
    if "video" in clip:
        sample: dict[str, Any] = {**clip, "video": tv_tensors.Video(clip["video"].clone())}
    else:
        picture = torch.zeros(1, *clip["masks"][:1].shape, device=clip["masks"].device)
        sample = {**clip, _STAND_IN: tv_tensors.Video(picture)}
    has_masks = "masks" in clip
    if "flow" in clip or (not has_masks and any(key in clip for key in _TABLES)):
        sample[COORDINATES] = _make_coordinate_planes(clip)
    if has_masks:
        sample["masks"] = tv_tensors.Mask(clip["masks"].clone())
        pixels = _to_plain(_make_coordinate_planes(clip))[:2].float() + 1
        sample |= {PIXELS: PixelPlanes(pixels), LIGHT_PIXELS: LightPixelPlanes(pixels.clone())}
        latest = {type(sample[key]): sample[key] for key in (PIXELS, LIGHT_PIXELS)}
        for planes in latest.values():
            planes.latest = latest
    return sample


def update_annotations(
    before: Clip, result: Mapping[str, Any], latest: Mapping[type, Tensor]
) -> dict[str, Any]:
    """Make the annotations true again after a transform.

    ``latest``: The planes as they were moved last, for a transform that does not hand them on.

    Where masks have been moved, ids count from 1 again in the order of their first frames, rows
    of ``tracks``, ``stages``, ``boxes`` and ``centroids`` follow, a nucleus that leaves the image
    for a while comes back under a new id, and ``flow`` is that between the moved pixels. What lies
    beyond the edge of the old image is background. Resized masks lie where the light does.
    """
    after = {key: _to_plain(value) for key, value in result.items() if key != _STAND_IN}
    are_handed_on = PIXELS in after and LIGHT_PIXELS in after
    pixels, light, planes = (after.pop(key, None) for key in (PIXELS, LIGHT_PIXELS, COORDINATES))
    keys = [key for key in (*_TABLES, "flow") if key in after and key in before]
    still = _to_plain(_make_coordinate_planes(before))
    has_moved = planes is not None and not _are_equal(planes, still)
    if "masks" not in before and has_moved:
        raise ValueError(
            f"it moves pixels, which {keys or 'tables'} cannot follow without masks; add 'masks' "
            "to annotations"
        )
    _check_values(before, after)
    if "masks" not in before or not (keys or "masks" in after):
        return after
    if "masks" not in after:
        raise ValueError(f"it must hand on 'masks', without which {keys[0]!r} cannot be checked")
    old, new = before["masks"], after["masks"]
    if all(_are_equal(one, still[:2].float() + 1) for one in (pixels, light)):
        pixels = light = None  # all pixels are where they were
    ids, has_own_values, has_own_places = _find_ids(old, new, pixels)
    if has_own_places and not are_handed_on:
        found = _find_ids(old, new, latest[PixelPlanes])
        if not found[2]:
            ids, has_own_values, has_own_places = found
            pixels, light = latest[PixelPlanes], latest[LightPixelPlanes]
    if ids is None:
        if keys:
            raise ValueError(
                f"it changes 'masks' so that the other annotations cannot follow; {_ADVICE}"
            )
        return after
    resized = None
    if light is not None and not (has_own_places or _are_equal(light, pixels)):
        resized = ResizedMasks(old, light)
        if has_own_values:
            ids, after["masks"] = resized.give_values(ids, new)
        else:
            ids = after["masks"] = resized.ids
    video = after.get("video")
    _check_alike(video, ids)
    if has_own_places and not _are_equal(ids, old) and _are_equal(video, before.get("video")):
        raise ValueError(f"it moves 'masks' and not 'video'; {_ADVICE}")
    if not has_own_places and "video" in before:
        _check_light(before["video"], video, ids, light)
    if _are_equal(ids, old) and not has_moved:
        return after
    rows = before["tracks"].tolist() if "tracks" in before else []
    masks, table, old_ids = split_gaps(ids.cpu().numpy(), {row[0]: row[3] for row in rows})
    if not has_own_values:
        after["masks"] = torch.from_numpy(masks).to(new.device, new.dtype)
    tables = _make_tables(before, keys, masks, table, old_ids)
    if "centroids" in tables and resized is not None:
        resized.place_centroids(tables["centroids"], old_ids)
    for key, value in tables.items():
        after[key] = value.to(new.device)
    if "flow" in keys and after["flow"] is before["flow"]:  # else the user has moved it
        taken = None if has_own_places else light
        after["flow"] = _move_flow(before["flow"], taken, resized, planes, masks).to(new.device)
    return after


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        wide = value.astype(np.int64) if value.dtype.kind == "u" and value.itemsize > 1 else value
        return torch.from_numpy(np.ascontiguousarray(wide))
    is_subclass = isinstance(value, Tensor) and type(value) is not Tensor
    return value.as_subclass(Tensor) if is_subclass else value


def _are_equal(one: Any, other: Any) -> bool:
    are_tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
    return are_tensors and one.shape == other.shape and torch.equal(one, other)


def _check_values(before: Clip, after: dict[str, Any]) -> None:
    """Refuse what is no tensor any more, and grey values that have been lost."""
    for key in ("video", *ANNOTATIONS):
        if key in before and key in after and not isinstance(after[key], Tensor):
            raise TypeError(
                f"it must hand on {key!r} as a tensor, got {type(after[key]).__name__}; give "
                "torch.as_tensor(...), or other values under another key"
            )
    video = after.get("video")
    if video is not None and not torch.isfinite(video).all():
        raise ValueError(
            "it must give finite grey values, got NaN or infinity in 'video'; add a small number "
            "to what it divides by, or clamp before a root or a logarithm"
        )


def _find_ids(old: Tensor, new: Tensor, pixels: Tensor | None) -> tuple[Tensor | None, bool, bool]:
    """Return the old ids in the new masks, and whether these hold other values, in other places.

    None: not known. Without planes, the transform has returned only the keys that it knows. Other
    places: those that a function of the user's own has given them.
    """
    moved = take_pixels(old, pixels)[0]
    if new.shape == moved.shape:
        ids = new.to(moved.dtype)
        if pixels is not None:  # whatever the fill, beyond the image is background
            ids = torch.where(pixels[0] > 0.5, ids, 0)
        if torch.equal(ids, moved):
            return moved, False, False
        # Every id has one value in all its pixels, as in masks > 0.
        _, codes = torch.unique(new, return_inverse=True)
        pairs = moved.long() * (int(codes.max()) + 1) + codes
        if len(torch.unique(pairs)) == len(torch.unique(moved)):
            return moved, True, False
    frames = zip(new, old, strict=False)
    if (
        (new.ndim == 3 and len(new) == len(old) and not new.is_floating_point())
        # Every frame shows only nuclei that it showed before.
        and all({*one.unique().tolist()} <= {0, *other.unique().tolist()} for one, other in frames)
    ):
        return new.to(old.dtype), False, True
    return None, True, True


def _check_alike(video: object, masks: Tensor) -> None:
    if not isinstance(video, Tensor) or video.ndim < 3:
        return
    if video.shape[-2:] != masks.shape[-2:] or len(masks) not in video.shape[:-2]:
        raise ValueError(
            "it must move 'video' and 'masks' alike and keep all frames, got "
            f"{list(video.shape)} and {list(masks.shape)}; {_ADVICE}"
        )


def _check_light(before: Tensor, after: object, masks: Tensor, light: Tensor | None) -> None:
    """Refuse a video whose light has been moved otherwise than the masks."""
    count = len(masks)
    if not isinstance(after, Tensor) or after.ndim != 4 or after.is_complex():
        return
    if _are_equal(before, after):
        return
    few = sorted({0, count // 2, count - 1})
    old = take_pixels(before[few, 0], light).mean(0).cpu()
    axes = [axis for axis in (0, 1) if after.shape[axis] == count]
    frames = [after.movedim(axis, 0)[few].float().mean(1).cpu() for axis in axes]
    if all(has_light_moved(old, new, masks[few].cpu()) for new in frames):
        raise ValueError(f"it moves the light of 'video' and not 'masks'; {_ADVICE}")


def _make_tables(
    before: Clip,
    keys: list[str],
    masks: npt.NDArray[np.int32],
    table: npt.NDArray[np.int32],
    old_ids: npt.NDArray[np.int64],
) -> dict[str, Tensor]:
    """Return the tables for the new ids."""
    lengths = [len(before[key]) for key in _TABLES if key in before]  # type: ignore[literal-required]
    if not lengths:
        return {}
    tables = annotate_masks(masks, table, keys, lengths[0])
    if "stages" in keys:
        stages = before["stages"].cpu().numpy()[old_ids - 1]
        frame = np.arange(stages.shape[1])
        visible = (table[:, 1:2] <= frame) & (frame <= table[:, 2:3])
        tables["stages"] = pad_rows(np.where(visible, stages, np.int8(-1)), lengths[0], -1)
    return tables


def _move_flow(
    flow: Tensor,
    light: Tensor | None,
    resized: ResizedMasks | None,
    planes: Tensor | None,
    masks: npt.NDArray[np.int32],
) -> Tensor:
    """Return the flow between the moved pixels."""
    if light is None or planes is None:
        raise ValueError(
            f"it moves 'masks' but not 'flow'; {_ADVICE}, or leave 'flow' out of annotations"
        )
    old_flow = take_pixels(flow, light)[0] if resized is None else resized.take_flow(flow)
    new_flow = np.zeros(tuple(old_flow.shape), np.float32)
    if masks.any():
        old = old_flow.cpu().numpy().astype(np.float64)
        coordinate_map = CoordinateMap(planes)
        for t in range(len(old)):
            stays = np.isin(masks[t], masks[t + 1]) & (masks[t] > 0)
            pixels = np.argwhere(stays).T
            new_flow[t][:, stays] = coordinate_map.map_flow(pixels, old[t][:, stays])
    return torch.from_numpy(new_flow)
