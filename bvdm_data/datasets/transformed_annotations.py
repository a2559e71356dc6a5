"""Annotations that follow a transform of torchvision v2, by probe planes that move with it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, spatial
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from bvdm_data.clip import Clip, annotate_masks, pad_rows, split_gaps

AFFINE = 1e-3
"""How far a map may leave its best affine fit and still count as affine, px (our choice)."""

FLAT = 0.02
"""Share of its mean area that a pixel must keep; less is a fold (our choice)."""

LABELS, COORDINATES = "_labels", "_coordinates"
"""Keys of the probe planes in the clip that the transform gets."""

_TABLES = ("tracks", "stages", "boxes", "centroids")
_ADVICE = "move it by its tv_tensor type, as torchvision.transforms.v2 does"
_TOO_LITTLE = "it leaves too little of the image to follow flow; leave 'flow' out of annotations"
_FOLDED = (
    "it folds, mirrors or smears parts of the image, where flow cannot follow; deform less, or "
    "leave 'flow' out of annotations"
)
_GEOMETRIC = (
    "horizontal_flip", "vertical_flip", "resize", "affine", "rotate", "pad", "crop",
    "perspective", "elastic", "center_crop", "resized_crop",
)  # fmt: skip

_Planes = npt.NDArray[np.float64]


class CoordinatePlanes(tv_tensors.TVTensor):  # type: ignore[misc]  # torchvision has no types
    """Planes ``(y, x, 1)``, ``[3, H, W]`` float64, that geometric transforms move like an image.

    Photometric transforms leave them alone. Pixels from beyond the image are 0.
    """


class LabelPlanes(tv_tensors.TVTensor):  # type: ignore[misc]  # torchvision has no types
    """Planes ``[n, H, W]`` that geometric transforms move exactly as they move masks.

    Photometric transforms and changes of dtype leave them alone. Pixels from beyond the image are
    0, whatever ``fill`` the user has chosen.
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
        result = functional(**arguments)
        wrapped: Tensor = tv_tensors.wrap(result.as_subclass(Tensor), like=planes)
        return wrapped


for _name in _GEOMETRIC:
    _register_kernel(_name, CoordinatePlanes, tv_tensors.Image)
    _register_kernel(_name, LabelPlanes, tv_tensors.Mask)


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


def _make_coordinate_planes(video: Tensor) -> CoordinatePlanes:
    """Return the planes of an image that nothing has moved, ``[3, H, W]`` float64."""
    y, x = (torch.arange(n, dtype=torch.float64, device=video.device) for n in video.shape[-2:])
    down, right = torch.meshgrid(y, x, indexing="ij")
    return CoordinatePlanes(torch.stack([down, right, torch.ones_like(down)]))


def add_probe_planes(clip: Clip) -> dict[str, Any]:
    """Return the clip as tv_tensors, with planes that show what a transform does to pixels."""
    sample: dict[str, Any] = {**clip, "video": tv_tensors.Video(clip["video"])}
    has_masks, has_flow = "masks" in clip, "flow" in clip
    if has_flow or (not has_masks and any(key in clip for key in _TABLES)):
        sample[COORDINATES] = _make_coordinate_planes(clip["video"])
    if has_masks:
        masks = clip["masks"]
        sample["masks"] = tv_tensors.Mask(masks)
        planes = [torch.ones_like(masks[:1]), masks]
        if has_flow:
            planes.append(clip["flow"].flatten(0, 1))
        # Ids are at most max_cells: float32 holds them exactly.
        sample[LABELS] = LabelPlanes(torch.cat([plane.float() for plane in planes]))
    return sample


def update_annotations(before: Clip, result: Mapping[str, Any]) -> dict[str, Any]:
    """Make the annotations true again after a transform.

    Where masks have been moved, ids count from 1 again in the order of their first frames, rows
    of ``tracks``, ``stages``, ``boxes`` and ``centroids`` follow, a nucleus that leaves the image
    for a while comes back under a new id, and ``flow`` is that between the moved pixels. What lies
    beyond the edge of the old image is background.
    """
    after = {key: _to_plain(value) for key, value in result.items()}
    labels, planes = after.pop(LABELS, None), after.pop(COORDINATES, None)
    keys = [key for key in (*_TABLES, "flow") if key in after and key in before]
    still = _to_plain(_make_coordinate_planes(before["video"]))
    has_moved = planes is not None and not _are_equal(planes, still)
    if "masks" not in before and has_moved:
        raise ValueError(
            f"it moves pixels, which {keys or 'tables'} cannot follow without masks; add 'masks' "
            "to annotations"
        )
    if "masks" not in before or not (keys or "masks" in after):
        return after
    if "masks" not in after:
        raise ValueError(f"it must hand on 'masks', without which {keys[0]!r} cannot be checked")
    old, new = before["masks"], after["masks"]
    ids, has_own_values = _find_ids(old, new, labels)
    if ids is None:
        if keys:
            raise ValueError(
                f"it changes 'masks' so that the other annotations cannot follow; {_ADVICE}"
            )
        return after
    _check_alike(after.get("video"), ids)
    if _are_equal(ids, old) and not has_moved:
        return after
    rows = before["tracks"].tolist() if "tracks" in before else []
    masks, table, old_ids = split_gaps(ids.cpu().numpy(), {row[0]: row[3] for row in rows})
    if not has_own_values:
        after["masks"] = torch.from_numpy(masks).to(new.device, new.dtype)
    for key, value in _make_tables(before, keys, masks, table, old_ids).items():
        after[key] = value.to(new.device)
    if "flow" in keys and after["flow"] is before["flow"]:  # else the user has moved it
        after["flow"] = _make_flow(labels, planes, masks).to(new.device)
    return after


def _to_plain(value: Any) -> Any:
    is_subclass = isinstance(value, Tensor) and type(value) is not Tensor
    return value.as_subclass(Tensor) if is_subclass else value


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _find_ids(old: Tensor, new: Tensor, labels: Tensor | None) -> tuple[Tensor | None, bool]:
    """Return the old ids in the new masks (None: not known), and whether these hold other values.

    Without label planes, the transform has returned only the keys that it knows.
    """
    moved = old if labels is None else labels[1 : 1 + len(old)].to(old.dtype)
    if new.shape == moved.shape:
        ids = new.to(moved.dtype)
        if labels is not None:  # whatever the fill, beyond the image is background
            ids = torch.where(labels[0] > 0.5, ids, 0)
        if torch.equal(ids, moved):
            return moved, False
        # Every id has one value in all its pixels, as in masks > 0.
        _, codes = torch.unique(new, return_inverse=True)
        pairs = moved.long() * (int(codes.max()) + 1) + codes
        if len(torch.unique(pairs)) == len(torch.unique(moved)):
            return moved, True
    frames = zip(new, old, strict=False)
    if (
        (new.ndim == 3 and len(new) == len(old) and not new.is_floating_point())
        # Every frame shows only nuclei that it showed before.
        and all({*one.unique().tolist()} <= {0, *other.unique().tolist()} for one, other in frames)
    ):
        return new.to(old.dtype), False
    return None, True


def _check_alike(video: object, masks: Tensor) -> None:
    if not isinstance(video, Tensor) or video.ndim < 3:
        return
    if video.shape[-2:] != masks.shape[-2:] or len(masks) not in video.shape[:-2]:
        raise ValueError(
            "it must move 'video' and 'masks' alike and keep all frames, got "
            f"{list(video.shape)} and {list(masks.shape)}; {_ADVICE}"
        )


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


def _make_flow(
    labels: Tensor | None, planes: Tensor | None, masks: npt.NDArray[np.int32]
) -> Tensor:
    """Return the flow between the moved pixels."""
    frames = len(masks)
    moved = None if labels is None else labels.cpu().numpy()
    if moved is None or planes is None or not np.array_equal(moved[1 : 1 + frames] > 0, masks > 0):
        raise ValueError(
            f"it moves 'masks' but not 'flow'; {_ADVICE}, or leave 'flow' out of annotations"
        )
    flow = np.zeros((frames - 1, 2, *masks.shape[1:]), np.float32)
    if masks.any():
        old_flow = moved[1 + frames :].reshape(flow.shape).astype(np.float64)
        coordinate_map = CoordinateMap(planes)
        for t in range(frames - 1):
            stays = np.isin(masks[t], masks[t + 1]) & (masks[t] > 0)
            pixels = np.argwhere(stays).T
            flow[t][:, stays] = coordinate_map.map_flow(pixels, old_flow[t][:, stays])
    return torch.from_numpy(flow)
