"""Check of a clip: what must hold in a sample, and between its parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bvdm_data.clip import LEAST_PIXELS, PADDING, STAGES, Clip, build_schema, measure_boxes

# All numbers are our choice.
FEWEST_PIXELS, FEWEST_NUCLEI = 100, 10  # pixels, and steps of nuclei, that flow is judged by
# Share by which the area of a nucleus may change in a step in which its flow is judged: one that
# changes more may be cut, by the edge that a transform has turned into the picture.
STEADY = 0.1
# Share of its area that a nucleus may lose in a step in which its pixels must meet it again: one
# that loses more may be leaving.
LOSS = 0.25
# How far the mean flow of a whole nucleus may be off the way of its centroid, px, in the median
# over the clip; benchmarks/soak.py measures how far it is with all methods.
MAX_FLOW = 1.0
MAX_OUTSIDE = 0.5  # px from a centroid to that of its mask, at most
MAX_OFF = 1.0  # px by which the step of a mask's centroid may exceed that of its nucleus
STOLEN = 30  # pixels of a dim nucleus that may show the light of a brighter neighbour

Bools = npt.NDArray[np.bool_]
Masks = npt.NDArray[np.int32]
Arrays = Mapping[str, npt.NDArray[Any]]


def check_clip(clip: Clip, *, longest_step: float | None = None) -> None:
    """Check that the parts of a clip agree; a clip with a video that this library makes passes.

    Values must be finite and in their ranges, all annotations there where, and only where, the
    masks show a nucleus, tracks unbroken and after their parents, boxes and centroids those of the
    masks. Flow must carry most pixels to the same nucleus and whole nuclei as their centroids
    move. Without masks, the other annotations are checked against each other.

    Args:
        clip: One clip (not a batch), on any device.
        longest_step: Check the masks as those of a synthetic scene, too: from frame to frame no
            nucleus in full view moves farther than this, in px (its centroid may by 1 px), others
            leave at least 10 px of one that is seen, and no label of a dim nucleus lies on a
            brighter neighbour's light. None: do not.

    Raises:
        ValueError: Naming the key and the rule that is broken.
    """
    parts: dict[str, Any] = dict(clip)
    for key in ("video", "index", "source"):
        if key not in parts:
            hint = "; give the data set video=True" * (key == "video")
            raise ValueError(f"a clip must have the key {key!r}, got the keys {tuple(parts)}{hint}")
    schema = build_schema(*_check_video(parts["video"]), None)
    found = {key: _check_form(key, parts[key], *schema[key]) for key in schema if key in parts}
    if int(found["source"]) not in (0, 1):
        raise ValueError(f"source must be 1 (synthetic) or 0 (real), got {found['source']}")
    if int(found["index"]) < 0:
        raise ValueError(f"index must be 0 or more, got {found['index']}")
    if "flow" in found and not np.isfinite(found["flow"]).all():
        raise ValueError("flow must be finite")
    tables = {key: found[key] for key in PADDING if key in found}
    if "masks" not in found:
        _check_tables(tables, found["video"].shape)
        return
    masks = found["masks"]
    _check_tables_by_masks(tables, masks)
    if "flow" in found:
        _check_flow(masks, found["flow"])
    if longest_step is not None:
        _check_scene(found["video"][:, 0], masks, longest_step)


def _check_video(video: object) -> tuple[int, tuple[int, int]]:
    """Return the frames, and height and width."""
    if not isinstance(video, Tensor):
        raise ValueError(f"video must be a tensor, got {type(video).__name__}")
    if video.dtype != torch.float32 or video.ndim != 4 or video.shape[1] != 1:
        raise ValueError(
            f"video must be [F, 1, H, W] float32, got {list(video.shape)} {_name(video.dtype)}"
        )
    if 0 in video.shape:
        raise ValueError(f"video must have at least one frame and pixel, got {list(video.shape)}")
    if not bool(((video >= 0) & (video <= 1)).all()):
        raise ValueError(
            "video must hold finite grey values from 0 to 1, got values from "
            f"{video.min().item()} to {video.max().item()}"
        )
    frames, _, height, width = video.shape
    return frames, (height, width)


def _check_form(
    key: str, value: object, dtype: torch.dtype, shape: tuple[int | None, ...]
) -> npt.NDArray[Any]:
    """Return the array of a tensor if it has the dtype and the shape, where None is any number."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{key} must be a tensor, got {type(value).__name__}")
    wanted = ", ".join("max_cells" if side is None else str(side) for side in shape)
    got = tuple(value.shape)
    fits = len(got) == len(shape) and all(b in (a, None) for a, b in zip(got, shape, strict=True))
    if not fits or value.dtype != dtype:
        raise ValueError(
            f"{key} must be [{wanted}] {_name(dtype)}, got {list(got)} {_name(value.dtype)}"
        )
    array: npt.NDArray[Any] = value.detach().cpu().numpy()
    return array


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_tables(tables: Arrays, shape: Sequence[int]) -> None:
    """Check tables against each other, which is all there is where masks are left out."""
    frames, _, height, width = shape
    _check_rows(tables, frames)
    places = {key: _find_places(key, table, frames) for key, table in tables.items()}
    if places:
        by = next(iter(places))
        _check_places(places, places[by][0], by)
    wrong = {}
    if "boxes" in tables:
        left, top, right, bottom = np.moveaxis(tables["boxes"], -1, 0)
        fits = (left >= 0) & (left < right) & (right <= width)
        fits &= (top >= 0) & (top < bottom) & (bottom <= height)
        wrong["boxes"] = ~fits & ~np.isnan(left)
    if "centroids" in tables:
        y, x = np.moveaxis(tables["centroids"], -1, 0)
        near = (np.abs(y - height / 2) <= height / 2) & (np.abs(x - width / 2) <= width / 2)
        wrong["centroids"] = ~near & ~np.isnan(y)
    for key, where in wrong.items():
        if where.any():
            row, frame = np.argwhere(where)[0].tolist()
            raise ValueError(
                f"{key} must lie in the picture, got {tables[key][row, frame].tolist()} for id "
                f"{row + 1} in frame {frame}"
            )


def _check_tables_by_masks(tables: Arrays, masks: Masks) -> None:
    low, top = int(masks.min()), int(masks.max())
    if low < 0:
        raise ValueError(f"masks must hold ids of 0 or more, got {low}")
    for key, table in tables.items():
        if len(table) < top:
            raise ValueError(
                f"{key} must have a row for every id of masks, got {len(table)} rows: no row for "
                f"id {top}"
            )
    visible = _find_visible(masks, max([top, *map(len, tables.values())]))
    _check_rows(tables, len(masks), visible)
    places = {key: _find_places(key, table, len(masks)) for key, table in tables.items()}
    _check_places(places, visible, "masks")
    for key, measured, far, rule in zip(
        ("boxes", "centroids"), measure_boxes(masks, top), (0, MAX_OUTSIDE),
        ("enclose exactly the mask", f"lie within {MAX_OUTSIDE} px of that of the mask"),
        strict=True,
    ):  # fmt: skip
        given = tables.get(key, measured)
        wrong = np.argwhere((np.abs(given[:top] - measured) > far).any(-1))
        if len(wrong):
            row, frame = wrong[0].tolist()
            raise ValueError(
                f"{key} must {rule}, got {given[row, frame].tolist()} for id {row + 1} in frame "
                f"{frame} where the mask has {measured[row, frame].tolist()}"
            )


def _check_rows(tables: Arrays, frames: int, visible: Bools | None = None) -> None:
    """Check lengths of tables, codes of stages, and tracks by where their nuclei are visible."""
    rows = {key: len(table) for key, table in tables.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"tables must have the same number of rows, max_cells, got {rows}")
    stages = tables.get("stages", np.zeros(0))
    wrong = stages[(stages < -1) | (stages >= len(STAGES))]
    if len(wrong):
        raise ValueError(f"stages must be codes from 0 to {len(STAGES) - 1}, or -1, got {wrong[0]}")
    tracks = tables.get("tracks", np.zeros((0, 4), np.int32))
    ids = tracks[:, 0].tolist()
    count = int((tracks[:, 0] > 0).sum())
    if ids[:count] != list(range(1, count + 1)) or tracks[count:].any():
        raise ValueError(f"tracks must list the ids 1 to n and then zeros, got {ids}")
    if len(tracks) and visible is not None and visible[count:].any():
        lost = np.flatnonzero(visible.any(1))[-1] + 1
        raise ValueError(f"tracks must list every id of masks, got no row for id {lost}")
    for identity, first, last, parent in tracks[:count].tolist():
        if visible is not None:
            seen = np.flatnonzero(visible[identity - 1]).tolist()
            if (seen[:1], seen[-1:], len(seen)) != ([first], [last], last - first + 1):
                raise ValueError(
                    f"track {identity} must be visible in frames {first} to {last}, got {seen}"
                )
        elif not 0 <= first <= last < frames:
            raise ValueError(
                f"track {identity} must lie within the frames 0 to {frames - 1}, got {first} to "
                f"{last}"
            )
        if parent and not (0 < parent < identity and tracks[parent - 1, 2] < first):
            raise ValueError(f"track {identity} must begin after its parent {parent} ends")


def _find_places(key: str, table: npt.NDArray[Any], frames: int) -> tuple[Bools, Bools]:
    """Tell where a table says that nuclei are, and where that they are not, ``[max_cells, F]``."""
    if key == "tracks":
        time = np.arange(frames)
        there = (table[:, :1] > 0) & (table[:, 1:2] <= time) & (time <= table[:, 2:3])
        return there, ~there
    if key == "stages":
        return table >= 0, table < 0
    empty = np.isnan(table)
    return ~empty.any(-1), empty.all(-1)


def _check_places(places: Mapping[str, tuple[Bools, Bools]], present: Bools, by: str) -> None:
    for key, (given, left_out) in places.items():
        wrong = np.argwhere((given != present) | (left_out == present))
        if len(wrong):
            row, frame = wrong[0].tolist()
            raise ValueError(
                f"{key} must be given where, and only where, a nucleus is visible in {by}; this "
                f"does not hold for id {row + 1} in frame {frame}"
            )


def _check_flow(masks: Masks, flow: npt.NDArray[np.float32]) -> None:
    """Check that flow moves nuclei, and nothing else, to where they are in the next frame."""
    for frame, step in enumerate(flow):
        moved = step.any(0)
        if moved[masks[frame] == 0].any():
            raise ValueError(
                f"flow must be 0 in the background, got a displacement in frame {frame}"
            )
        lost = masks[frame][moved & ~np.isin(masks[frame], masks[frame + 1])]
        if len(lost):
            raise ValueError(
                "flow must be 0 where a nucleus is not there in the next frame, got a "
                f"displacement of id {lost[0]} in frame {frame}"
            )
    time, y, x = np.nonzero(masks[:-1])
    ids, areas = masks[time, y, x], _measure_areas(masks)
    down = np.rint(y + flow[time, 0, y, x]).astype(np.int64)
    right = np.rint(x + flow[time, 1, y, x]).astype(np.int64)
    stays = areas[ids - 1, time + 1] >= (1 - LOSS) * areas[ids - 1, time]
    inside = (down >= 0) & (down < masks.shape[1]) & (right >= 0) & (right < masks.shape[2])
    judged = np.flatnonzero(stays & inside)
    met = masks[time[judged] + 1, down[judged], right[judged]] == ids[judged]
    if len(judged) >= FEWEST_PIXELS and met.mean() < 0.5:
        raise ValueError(
            "flow must carry most pixels of a nucleus to the same id in the next frame, got "
            f"{met.mean():.0%} of {len(judged)}"
        )
    off = measure_flow_errors(masks, flow)
    if len(off) >= FEWEST_NUCLEI and np.median(off) > MAX_FLOW:
        raise ValueError(
            f"flow must move whole nuclei as their centroids move, within {MAX_FLOW} px in "
            f"the median, got {np.median(off):.2f} px"
        )


def measure_flow_errors(masks: Masks, flow: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Measure how far the mean flow of nuclei is off the ways of their centroids."""
    count = int(masks.max())
    whole, centroids, areas = (
        _find_whole(masks),
        measure_boxes(masks, count)[1],
        _measure_areas(masks),
    )
    steady = np.abs(np.diff(areas)) <= STEADY * areas[:, :-1]
    errors = [np.zeros(0)]
    for frame, step in enumerate(flow):
        flat = masks[frame].ravel()
        sums = [np.bincount(flat, one.ravel(), count + 1)[1:] for one in step]
        rows = np.flatnonzero(whole[:, frame] & whole[:, frame + 1] & steady[:, frame])
        mean = np.stack(sums, -1)[rows] / areas[rows, frame, None]
        way = centroids[rows, frame + 1] - centroids[rows, frame]
        errors.append(np.abs(mean - way).max(-1, initial=0))
    return np.concatenate(errors)


def _find_visible(masks: Masks, count: int) -> Bools:
    """Tell in which frames nuclei are visible, ``[count, F]``."""
    visible = np.zeros((count + 1, len(masks)), bool)
    for frame, mask in enumerate(masks):
        visible[np.unique(mask), frame] = True
    return visible[1:]


def _find_whole(masks: Masks) -> Bools:
    """Tell where nuclei are visible and touch neither the edge nor another one, ``[n, F]``."""
    whole = _find_visible(masks, int(masks.max()))
    for frame, mask in enumerate(masks):
        touched = np.concatenate([_list_border(mask), _list_contacts(mask)[:, 0]])
        whole[touched[touched > 0] - 1, frame] = False
    return whole


def _measure_areas(masks: Masks) -> npt.NDArray[np.int64]:
    """Count the pixels of nuclei, ``[n, F]``."""
    count = int(masks.max()) + 1
    return np.stack([np.bincount(mask.ravel(), minlength=count)[1:] for mask in masks], -1)


def _list_border(mask: Masks) -> Masks:
    """List the ids along the edge of a frame, once a pixel."""
    return np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])


def _list_contacts(mask: Masks) -> Masks:
    """List the ids that touch, both ways, ``[n, 2]``."""
    pairs = [
        np.stack([one, other], -1)[(one != other) & (one > 0) & (other > 0)]
        for one, other in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]))
    ]
    found = np.concatenate(pairs)
    return np.unique(np.concatenate([found, found[:, ::-1]]), axis=0)


def _check_scene(video: npt.NDArray[np.float32], masks: Masks, longest_step: float) -> None:
    centroids, whole = measure_boxes(masks, int(masks.max()))[1], _find_whole(masks)
    steps = np.hypot(*np.moveaxis(np.diff(centroids, axis=1), -1, 0))
    far = np.argwhere((steps > longest_step + MAX_OFF) & whole[:, 1:] & whole[:, :-1])
    if len(far):
        row, frame = far[0].tolist()
        raise ValueError(
            f"masks must show no step beyond {longest_step:g} px, got {steps[row, frame]:.1f} px "
            f"of id {row + 1} after frame {frame}"
        )
    for frame, (light, mask) in enumerate(zip(video, masks, strict=True)):
        for one, other in _list_contacts(mask).tolist():
            area = (mask == one).sum()
            if area < LEAST_PIXELS and one not in _list_border(mask):
                raise ValueError(
                    f"masks must show at least {LEAST_PIXELS} px of a nucleus between others, got "
                    f"{area} px of id {one} in frame {frame}"
                )
            stolen = _count_stolen(light, mask, one, other)
            if stolen >= STOLEN:
                raise ValueError(
                    f"masks must not lie on brighter neighbours, got {stolen} px of id {one} with "
                    f"the light of id {other} in frame {frame}"
                )


def _count_stolen(light: npt.NDArray[np.float32], mask: Masks, one: int, other: int) -> int:
    """Count the pixels of a nucleus that are as bright as a neighbour twice as bright."""
    level = np.median(light[mask == 0]) if (mask == 0).any() else 0.0
    own, theirs = (np.median(light[mask == i]) - level for i in (one, other))
    if theirs < 2 * max(own, 0.005):
        return 0
    return int((light[mask == one] - level > max(3 * own, theirs / 2)).sum())
