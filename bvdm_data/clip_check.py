"""Check of a clip: what must hold in a sample, and between its parts."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bvdm_data.clip import LEAST_PIXELS, STAGES, Clip, measure_boxes

FEWEST_PIXELS, FEWEST_NUCLEI = 100, 10
"""How many pixels, and steps of nuclei, flow is judged by at least (our choice)."""

STEADY = 0.1
"""By what share the area of a nucleus may change in a step in which its flow is judged (our
choice): one that changes more may be cut, by the edge that a transform has turned into the
picture."""

LOSS = 0.25
"""What share of its area a nucleus may lose in a step in which its pixels must meet it again (our
choice): one that loses more may be leaving."""

MAX_FLOW = 1.0
"""How far the mean flow of a whole nucleus may be off the way of its centroid, px, in the median
over the clip (our choice); ``benchmarks/soak.py`` measures how far it is with all methods."""

Presence = npt.NDArray[np.bool_]


def _check_flow(masks: npt.NDArray[np.int32], flow: npt.NDArray[np.float32]) -> None:
    """Check that flow moves the nuclei of masks, and nothing else, to where they go."""
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
    _check_carried(masks, flow)


def measure_flow_errors(
    masks: npt.NDArray[np.int32], flow: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Measure how far the mean flow of nuclei is off the ways of their centroids."""
    count = int(masks.max())
    whole = _whole(masks, count)
    centroids = measure_boxes(masks, count)[1]
    areas = _areas(masks, count)
    steady = np.abs(np.diff(areas)) <= STEADY * areas[:, :-1]
    found = []
    for frame, step in enumerate(flow):
        flat = masks[frame].ravel()
        sums = [np.bincount(flat, one.ravel(), count + 1)[1:] for one in step]
        rows = np.flatnonzero(whole[:, frame] & whole[:, frame + 1] & steady[:, frame])
        mean = np.stack(sums, -1)[rows] / areas[rows, frame, None]
        way = centroids[rows, frame + 1] - centroids[rows, frame]
        found.append(np.abs(mean - way).max(-1, initial=0))
    return np.concatenate(found) if found else np.zeros(0)


def _find_visible(masks: npt.NDArray[np.int32], count: int) -> Presence:
    """Tell in which frames nuclei are visible.

    ``[count, F]``.
    """
    present = np.zeros((count + 1, len(masks)), bool)
    for frame, mask in enumerate(masks):
        present[np.unique(mask), frame] = True
    return present[1:]


def _areas(masks: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int64]:
    """Count the pixels of nuclei, ``[n, F]``."""
    return np.stack([np.bincount(mask.ravel(), minlength=count + 1)[1:] for mask in masks], -1)


def _check_carried(masks: npt.NDArray[np.int32], flow: npt.NDArray[np.float32]) -> None:
    """Check that flow carries nuclei to where they are in the next frame."""
    frame, y, x = np.nonzero(masks[:-1])
    ids = masks[frame, y, x]
    down = np.rint(y + flow[frame, 0, y, x]).astype(np.int64)
    right = np.rint(x + flow[frame, 1, y, x]).astype(np.int64)
    areas = _areas(masks, int(masks.max()))
    stays = areas[ids - 1, frame + 1] >= (1 - LOSS) * areas[ids - 1, frame]
    inside = (down >= 0) & (down < masks.shape[1]) & (right >= 0) & (right < masks.shape[2])
    judged = np.flatnonzero(stays & inside)
    met = masks[frame[judged] + 1, down[judged], right[judged]] == ids[judged]
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


def _whole(masks: npt.NDArray[np.int32], count: int) -> Presence:
    """Tell where nuclei are visible and touch neither the edge nor another one, ``[n, F]``."""
    whole = _find_visible(masks, count)
    for frame, mask in enumerate(masks):
        met = [mask[0], mask[-1], mask[:, 0], mask[:, -1]]
        for one, other in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            contact = (one != other) & (one > 0) & (other > 0)
            met += [one[contact], other[contact]]
        touched = np.concatenate(met)
        whole[touched[touched > 0] - 1, frame] = False
    return whole


MAX_OUTSIDE = 0.5
"""How far a centroid may lie from that of its mask, px (our choice)."""


MAX_OFF = 1.0
"""How much longer than a nucleus' step that of its mask's centroid may be, px (our choice)."""

STOLEN = 30
"""How many pixels of a dim nucleus may show the light of a brighter neighbour (our choice)."""


def check_clip(clip: Clip, *, longest_step: float | None = None) -> None:
    """Check that the parts of a clip agree; a clip that this library makes passes.

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
    sides = _check_video(parts["video"])
    _check_form("index", parts["index"], (), torch.int64)
    source = _check_form("source", parts["source"], (), torch.int8)
    if int(source) not in (0, 1):
        raise ValueError(f"source must be 1 (synthetic) or 0 (real), got {int(source)}")
    found = _check_forms(parts, sides)
    if "stages" in found:
        _check_codes(found["stages"].numpy())
    if int(parts["index"]) < 0:
        raise ValueError(f"index must be 0 or more, got {int(parts['index'])}")
    if "flow" in found and not bool(found["flow"].isfinite().all()):
        raise ValueError("flow must be finite")
    if "masks" in found:
        _check_against_masks(found, found["masks"].numpy())
        if longest_step is not None:
            _check_scene(parts["video"].cpu().numpy()[:, 0], found["masks"].numpy(), longest_step)
    _check_tables(found, sides)


def _check_scene(
    video: npt.NDArray[np.float32], masks: npt.NDArray[np.int32], longest_step: float
) -> None:
    count = int(masks.max(initial=0))
    centroids = measure_boxes(masks, count)[1]
    whole = _whole(masks, count)
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
            if area < LEAST_PIXELS and not _meets_border(mask, one):
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


def _list_contacts(mask: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """List the ids that touch, both ways, ``[n, 2]``."""
    pairs = [
        np.stack([one, other], -1)[(one != other) & (one > 0) & (other > 0)]
        for one, other in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]))
    ]
    found = np.concatenate(pairs)
    return np.unique(np.concatenate([found, found[:, ::-1]]), axis=0)


def _meets_border(mask: npt.NDArray[np.int32], identity: int) -> bool:
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return any((edge == identity).any() for edge in edges)


def _count_stolen(
    light: npt.NDArray[np.float32], mask: npt.NDArray[np.int32], one: int, other: int
) -> int:
    """Count the pixels of a nucleus that are as bright as a neighbour twice as bright."""
    level = np.median(light[mask == 0]) if (mask == 0).any() else 0.0
    own, theirs = (np.median(light[mask == i]) - level for i in (one, other))
    if theirs < 2 * max(own, 0.005):
        return 0
    return int((light[mask == one] - level > max(3 * own, theirs / 2)).sum())


def _check_form(
    key: str, value: object, shape: tuple[int | None, ...], dtype: torch.dtype
) -> Tensor:
    """Return the tensor on the CPU if it has the shape, where None is any number, and dtype."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{key} must be a tensor, got {type(value).__name__}")
    wanted = ", ".join("max_cells" if side is None else str(side) for side in shape)
    got = tuple(value.shape)
    fits = len(got) == len(shape) and all(b in (a, None) for a, b in zip(got, shape, strict=True))
    if not fits or value.dtype != dtype:
        raise ValueError(
            f"{key} must be [{wanted}] {_name(dtype)}, got {list(got)} {_name(value.dtype)}"
        )
    return value.detach().cpu()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_video(video: object) -> tuple[int, int, int]:
    """Return frames, height and width."""
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
    return frames, height, width


def _check_forms(parts: dict[str, Any], sides: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return the annotations of a clip, on the CPU, if they have their shapes and dtypes."""
    frames, height, width = sides
    forms: dict[str, tuple[tuple[int | None, ...], torch.dtype]] = {
        "masks": ((frames, height, width), torch.int32),
        "tracks": ((None, 4), torch.int32),
        "flow": ((frames - 1, 2, height, width), torch.float32),
        "stages": ((None, frames), torch.int8),
        "boxes": ((None, frames, 4), torch.float32),
        "centroids": ((None, frames, 2), torch.float32),
    }
    return {key: _check_form(key, parts[key], *form) for key, form in forms.items() if key in parts}


def _check_codes(stages: npt.NDArray[np.int8]) -> None:
    wrong = stages[(stages < -1) | (stages >= len(STAGES))]
    if len(wrong):
        raise ValueError(
            f"stages must be codes from 0 to {len(STAGES) - 1}, or -1, got {int(wrong[0])}"
        )


def _check_against_masks(found: dict[str, Tensor], masks: npt.NDArray[np.int32]) -> None:
    low, top = int(masks.min()), int(masks.max())
    if low < 0:
        raise ValueError(f"masks must hold ids of 0 or more, got {low}")
    for key in ("tracks", "stages", "boxes", "centroids"):
        if key in found and len(found[key]) < top:
            raise ValueError(
                f"{key} must have a row for every id of masks, got {len(found[key])} rows: "
                f"no row for id {top}"
            )
    if "tracks" in found:
        _check_tracks(masks, found["tracks"].numpy())
    if "flow" in found:
        _check_flow(masks, found["flow"].numpy())
    if "stages" in found:
        stages = found["stages"].numpy()
        _check_places("stages", stages >= 0, stages < 0, _find_visible(masks, len(stages)), "masks")
    if "boxes" in found or "centroids" in found:
        _check_measures(found, masks)


def _check_tracks(masks: npt.NDArray[np.int32], tracks: npt.NDArray[np.int32]) -> None:
    count = _check_ids(tracks)
    if masks.max() > count:
        raise ValueError(f"tracks must list every id of masks, got no row for id {masks.max()}")
    present = _find_visible(masks, count)
    for identity, first, last in tracks[:count, :3].tolist():
        seen = np.flatnonzero(present[identity - 1]).tolist()
        unbroken = seen and len(seen) == seen[-1] - seen[0] + 1
        if not unbroken or (seen[0], seen[-1]) != (first, last):
            raise ValueError(
                f"track {identity} must be visible in frames {first} to {last}, got {seen}"
            )
    _check_parents(tracks[:count])


def _check_ids(tracks: npt.NDArray[np.int32]) -> int:
    """Return the number of tracks."""
    ids = tracks[:, 0].tolist()
    count = int((tracks[:, 0] > 0).sum())
    if ids[:count] != list(range(1, count + 1)) or tracks[count:].any():
        raise ValueError(f"tracks must list the ids 1 to n and then zeros, got {ids}")
    return count


def _check_parents(tracks: npt.NDArray[np.int32]) -> None:
    for identity, first, _, parent in tracks.tolist():
        if parent and not (0 < parent < identity and tracks[parent - 1, 2] < first):
            raise ValueError(f"track {identity} must begin after its parent {parent} ends")


def _check_tables(found: dict[str, Tensor], sides: tuple[int, int, int]) -> None:
    """Check the tables against each other, which is all there is where masks are left out."""
    tables: dict[str, npt.NDArray[Any]] = {
        key: found[key].numpy()
        for key in ("tracks", "stages", "boxes", "centroids")
        if key in found
    }
    rows = {key: len(table) for key, table in tables.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"tables must have the same number of rows, max_cells, got {rows}")
    if "tracks" in tables:
        _check_spans(tables["tracks"], sides[0])
    places = {key: _places(key, table, sides[0]) for key, table in tables.items()}
    for key, (given, left_out) in places.items():
        by = next(iter(places))
        _check_places(key, given, left_out, places[by][0], by)
    _check_in_picture(tables, sides)


def _check_spans(tracks: npt.NDArray[np.int32], frames: int) -> None:
    count = _check_ids(tracks)
    for identity, first, last, _ in tracks[:count].tolist():
        if not 0 <= first <= last < frames:
            raise ValueError(
                f"track {identity} must lie within the frames 0 to {frames - 1}, got {first} to "
                f"{last}"
            )
    _check_parents(tracks[:count])


def _places(key: str, table: npt.NDArray[Any], frames: int) -> tuple[Presence, Presence]:
    """Tell where a table says that nuclei are, and where that they are not, ``[max_cells, F]``."""
    if key == "tracks":
        time = np.arange(frames)
        there = (table[:, :1] > 0) & (table[:, 1:2] <= time) & (time <= table[:, 2:3])
        return there, ~there
    if key == "stages":
        return table >= 0, table < 0
    empty = np.isnan(table)
    return ~empty.any(-1), empty.all(-1)


def _check_in_picture(tables: dict[str, npt.NDArray[Any]], sides: tuple[int, int, int]) -> None:
    _, height, width = sides
    boxes, centroids = tables.get("boxes"), tables.get("centroids")
    wrong = {}
    if boxes is not None:
        left, top, right, bottom = np.moveaxis(boxes, -1, 0)
        fits = (left >= 0) & (left < right) & (right <= width)
        fits &= (top >= 0) & (top < bottom) & (bottom <= height)
        wrong["boxes"] = ~fits & ~np.isnan(left)
    if centroids is not None:
        y, x = np.moveaxis(centroids, -1, 0)
        near = (np.abs(y - height / 2) <= height / 2) & (np.abs(x - width / 2) <= width / 2)
        wrong["centroids"] = ~near & ~np.isnan(y)
    for key, where in wrong.items():
        if where.any():
            row, frame = np.argwhere(where)[0].tolist()
            raise ValueError(
                f"{key} must lie in the picture, got {tables[key][row, frame].tolist()} for id "
                f"{row + 1} in frame {frame}"
            )


def _check_places(
    key: str, given: Presence, left_out: Presence, present: Presence, by: str
) -> None:
    wrong = np.argwhere((given != present) | (left_out == present))
    if len(wrong):
        row, frame = wrong[0].tolist()
        raise ValueError(
            f"{key} must be given where, and only where, a nucleus is visible in {by}; this does "
            f"not hold for id {row + 1} in frame {frame}"
        )


def _check_measures(found: dict[str, Tensor], masks: npt.NDArray[np.int32]) -> None:
    boxes, centroids = measure_boxes(masks, int(masks.max()))
    for key, measured, far, rule in (
        ("boxes", boxes, 0.0, "enclose exactly the mask"),
        ("centroids", centroids, MAX_OUTSIDE, f"lie within {MAX_OUTSIDE} px of that of the mask"),
    ):
        if key not in found:
            continue
        given = found[key].numpy()
        empty = np.isnan(given)
        present = _find_visible(masks, len(given))
        _check_places(key, ~empty.any(-1), empty.all(-1), present, "masks")
        wrong = np.argwhere((np.abs(given[: len(measured)] - measured) > far).any(-1))
        if len(wrong):
            row, frame = wrong[0].tolist()
            raise ValueError(
                f"{key} must {rule}, got {given[row, frame].tolist()} for id {row + 1} in frame "
                f"{frame} where the mask has {measured[row, frame].tolist()}"
            )
