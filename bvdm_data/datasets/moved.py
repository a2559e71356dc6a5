"""Annotations that stay true when a transform moves pixels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bvdm_data.clip import Clip, annotated, padded, unbroken_tracks
from bvdm_data.datasets.pixel_map import CarriedPlanes, PixelMap, coordinates

CARRIED, COORDINATES = "_carried", "_coordinates"
"""Keys of the planes that ride along."""

_TABLES = ("tracks", "stages", "boxes", "centroids")
_ADVICE = "move it by its tv_tensor type, as torchvision.transforms.v2 does"

_Masks = npt.NDArray[np.int32]


def with_planes(clip: Mapping[str, Any]) -> dict[str, Any]:
    """Give the clip planes that tell afterwards what a transform has done.

    Args:
        clip: A clip; without ``masks``, other annotations cannot follow what moves.

    Returns:
        The clip, with more keys where it has annotations.
    """
    if "masks" not in clip:
        if not any(key in clip for key in (*_TABLES, "flow")):
            return dict(clip)
        height, width = clip["video"].shape[-2:]
        return {**clip, COORDINATES: coordinates(height, width, clip["video"].device)}
    masks = clip["masks"].as_subclass(Tensor)
    frames, height, width = masks.shape
    planes = [masks.new_ones((1, height, width)), masks]
    given = dict(clip)
    if "flow" in clip:
        planes.append(clip["flow"].reshape(2 * (frames - 1), height, width))
        given[COORDINATES] = coordinates(height, width, masks.device)
    # Ids are at most max_cells: float32 holds them exactly.
    given[CARRIED] = CarriedPlanes(torch.cat([plane.float() for plane in planes]))
    return given


def settled(before: Clip, result: Mapping[str, Any]) -> dict[str, Any]:
    """Make the annotations true again after a transform.

    Where masks have been moved, ids count from 1 again in the order of their first frames, rows
    of ``tracks``, ``stages``, ``boxes`` and ``centroids`` follow, a nucleus that is out of the
    picture for a while goes on under a new id, and ``flow`` is that between the moved pixels.
    Beyond the edge of the old picture is background.

    Args:
        before: The clip ahead of the transform.
        result: What the transform has made of :func:`with_planes` of it.

    Returns:
        The clip without the planes that rode along.

    Raises:
        TooManyNucleiError: If nuclei in parts need more than max_cells ids.
        ValueError: If the transform has done what annotations cannot follow.
    """
    after = {key: _plain(value) for key, value in result.items()}
    carried, planes = after.pop(CARRIED, None), after.pop(COORDINATES, None)
    kept = [key for key in (*_TABLES, "flow") if key in after and key in before]
    if "masks" not in before and planes is not None and not _same(planes, before["video"]):
        raise ValueError(
            f"it moves pixels, which {kept or 'tables'} cannot follow without masks; add 'masks' "
            "to annotations"
        )
    if "masks" not in before or not (kept or "masks" in after):
        return after
    old = before["masks"]
    if "masks" not in after:
        raise ValueError(f"it must hand on 'masks', without which {kept[0]!r} cannot be checked")
    masks, own_values = _moved_masks(old, after["masks"], carried, bool(kept))
    if masks is None:
        return after
    _check_sides(after, masks)
    untouched = masks.shape == old.shape and torch.equal(masks, old)
    still = planes is None or _same(planes, old)
    if untouched and still:
        return after
    renamed, table, ids = _renamed(masks, old, before)
    device = after["masks"].device
    if not own_values:
        after["masks"] = torch.from_numpy(renamed).to(device, after["masks"].dtype)
    for key, value in _tables(before, kept, renamed, table, ids).items():
        after[key] = value.to(device)
    if "flow" in kept:
        after["flow"] = _flow(before, after, carried, planes, renamed).to(device)
    return after


def _plain(value: object) -> Any:
    if isinstance(value, Tensor) and type(value) is not Tensor:
        return value.as_subclass(Tensor)
    return value


def _same(planes: Tensor, old: Tensor) -> bool:
    height, width = old.shape[-2:]
    unmoved = coordinates(height, width, old.device).as_subclass(Tensor)
    return planes.shape == unmoved.shape and torch.equal(planes, unmoved)


def _moved_masks(
    old: Tensor, new: Tensor, carried: Tensor | None, needed: bool
) -> tuple[Tensor | None, bool]:
    """Return the masks as moved, ids as before, and whether the user has put in other values.

    None where nothing else needs to agree with what the user has made of the masks.
    """
    # Without the planes, the transform has handed on only the keys that it knows.
    twin = old if carried is None else carried[1 : 1 + len(old)].to(old.dtype)
    if new.shape == twin.shape:
        ids = new.to(twin.dtype)
        if carried is not None:  # whatever the fill, beyond the picture is background
            ids = torch.where(carried[0] > 0.5, ids, 0)
        if torch.equal(ids, twin):
            return twin, False
        if _is_function(twin, new):
            return twin, True
    if new.ndim == 3 and len(new) == len(old) and not new.is_floating_point() and _known(new, old):
        return new.to(old.dtype), False
    if not needed:
        return None, True
    raise ValueError(f"it changes 'masks' so that the other annotations cannot follow; {_ADVICE}")


def _is_function(ids: Tensor, values: Tensor) -> bool:
    """Tell whether every id has one value in all its pixels, as ``masks > 0`` has."""
    _, codes = torch.unique(values, return_inverse=True)
    pairs = ids.long() * (int(codes.max()) + 1) + codes
    return len(torch.unique(pairs)) == len(torch.unique(ids))


def _known(new: Tensor, old: Tensor) -> bool:
    """Tell whether every frame shows only nuclei that it showed before."""
    return all(
        bool(
            torch.isin(
                torch.unique(one), torch.cat([torch.unique(other), other.new_zeros(1)])
            ).all()
        )
        for one, other in zip(new, old, strict=True)
    )


def _check_sides(after: Mapping[str, Any], masks: Tensor) -> None:
    video = after.get("video")
    if not isinstance(video, Tensor) or video.ndim < 3:
        return
    if video.shape[-2:] != masks.shape[-2:] or len(masks) not in video.shape[:-2]:
        raise ValueError(
            "it must move 'video' and 'masks' alike and keep all frames, got "
            f"{list(video.shape)} and {list(masks.shape)}; {_ADVICE}"
        )


def _renamed(
    masks: Tensor, old: Tensor, before: Clip
) -> tuple[_Masks, npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    rows = before["tracks"].tolist() if "tracks" in before else []
    return unbroken_tracks(masks.cpu().numpy(), {row[0]: row[3] for row in rows if row[0]})


def _tables(
    before: Clip,
    kept: list[str],
    renamed: _Masks,
    table: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int64],
) -> dict[str, Tensor]:
    """Return the wanted tables for the new ids."""
    known = [before[key] for key in _TABLES if key in before]  # type: ignore[literal-required]
    if not known:
        return {}
    made = annotated(renamed, table, kept, len(known[0]))
    if "stages" in kept:
        stages = before["stages"].cpu().numpy()[ids - 1]
        frame = np.arange(stages.shape[1])
        there = (table[:, 1:2] <= frame) & (frame <= table[:, 2:3])
        made["stages"] = padded(np.where(there, stages, np.int8(-1)), len(known[0]), -1)
    return made


def _flow(
    before: Clip,
    after: Mapping[str, Any],
    carried: Tensor | None,
    planes: Tensor | None,
    renamed: _Masks,
) -> Tensor:
    """Return the flow between the moved pixels; what the user has moved is believed."""
    if after["flow"] is not before["flow"]:
        return torch.as_tensor(after["flow"])
    frames, height, width = renamed.shape
    as_masks = carried is not None and carried.shape[-2:] == (height, width)
    if as_masks and carried is not None:
        twin = carried[1 : 1 + frames].cpu().numpy()
        as_masks = np.array_equal(twin > 0, renamed > 0)
    if carried is None or planes is None or not as_masks:
        raise ValueError(
            f"it moves 'masks' but not 'flow'; {_ADVICE}, or leave 'flow' out of annotations"
        )
    flow = np.zeros((frames - 1, 2, height, width), np.float32)
    if renamed.any():
        ways = carried[1 + frames :].cpu().numpy().reshape(flow.shape).astype(np.float64)
        pixel_map = PixelMap(planes)
        for frame in range(frames - 1):
            here = renamed[frame]
            goes_on = np.isin(here, renamed[frame + 1]) & (here > 0)
            places = np.argwhere(goes_on).T.astype(np.float64)
            flow[frame][:, goes_on] = pixel_map.moved(places, ways[frame][:, goes_on])
    return torch.from_numpy(flow)
