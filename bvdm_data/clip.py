"""Clip: one annotated video, its keys, shapes and dtypes, and how its annotations are made."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from bvdm_data.pixels import has_loops, run_loop

# Names of the phases of the cell cycle, in the order of their codes.
PHASES = ("interphase", "prophase", "prometaphase", "metaphase", "anaphase", "telophase")

STAGES = (*PHASES, "apoptosis")
"""Names of the stages of a life, the phases first; a stage's code is its place in this tuple."""

# What a data set can deliver beside ``video``.
ANNOTATIONS = ("masks", "tracks", "flow", "stages", "boxes", "centroids")
# What the rows of the padded tables hold that belong to no nucleus.
PADDING = {"tracks": 0, "stages": -1, "boxes": float("nan"), "centroids": float("nan")}
LEAST_PIXELS = 10  # fewest pixels that others leave of a nucleus that is labelled (our choice)


class Clip(TypedDict):
    """One annotated video, real or synthetic, or its annotations alone: what a data set yields.

    Fixed-size tensors, so that PyTorch's default collate makes a batch of it. Row ``r`` of
    ``tracks``, ``stages``, ``boxes`` and ``centroids`` belongs to the nucleus with id ``r + 1``.

    A row of ``tracks`` is one unbroken run of frames in which a nucleus is in view. A nucleus that
    leaves and returns goes on under a new id, with the former one as its parent: a parent of one
    child. A parent of two has divided. :func:`divisions` and :func:`association` read them off.
    One that dies has no child, and is in apoptosis in its last frames.

    Attributes:
        video: Grey values in [0, 1], ``[F, 1, H, W]`` float32; 0 is the camera's offset, 1 its
            full scale. A data set with ``video=False`` leaves it out.
        masks: Instance ids ``[F, H, W]`` int32; 0 is background. One id is one nucleus in all
            frames.
        tracks: One row ``(id, first frame, last frame, parent id)`` a nucleus, as in a Cell
            Tracking Challenge ``man_track.txt``; rows of zeros pad it to ``[max_cells, 4]`` int32.
        flow: Displacement ``(dy, dx)`` in pixels from frame f to f + 1 of every pixel inside a
            nucleus, ``[F - 1, 2, H, W]`` float32; 0 in the background and where a nucleus divides
            or is lost before frame f + 1.
        stages: Stage of its life (index into ``STAGES``), ``[max_cells, F]`` int8; -1 where
            the nucleus is not there.
        boxes: ``(x1, y1, x2, y2)`` in pixels, the far edges exclusive, ``[max_cells, F, 4]``
            float32; NaN where the nucleus is not there.
        centroids: ``(y, x)`` in pixels, ``[max_cells, F, 2]`` float32; NaN where the nucleus is
            not there.
        index: Number of the clip, int64 scalar.
        source: 1 for a synthetic clip, 0 for a real one; int8 scalar.
    """

    video: NotRequired[Tensor]
    masks: NotRequired[Tensor]
    tracks: NotRequired[Tensor]
    flow: NotRequired[Tensor]
    stages: NotRequired[Tensor]
    boxes: NotRequired[Tensor]
    centroids: NotRequired[Tensor]
    index: Tensor
    source: Tensor


def build_schema(
    frames: int,
    size: tuple[int, int],
    max_cells: int | None,
    annotations: Collection[str] = ANNOTATIONS,
) -> dict[str, tuple[torch.dtype, tuple[int | None, ...]]]:
    """Return dtype and shape of each key of a clip; ``max_cells`` None: any number of rows."""
    keys: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {
        "video": (torch.float32, (frames, 1, *size)),
        "masks": (torch.int32, (frames, *size)),
        "tracks": (torch.int32, (max_cells, 4)),
        "flow": (torch.float32, (frames - 1, 2, *size)),
        "stages": (torch.int8, (max_cells, frames)),
        "boxes": (torch.float32, (max_cells, frames, 4)),
        "centroids": (torch.float32, (max_cells, frames, 2)),
        "index": (torch.int64, ()),
        "source": (torch.int8, ()),
    }
    return {key: keys[key] for key in keys if key in annotations or key not in ANNOTATIONS}


# Axes of the parts of a clip, also of those that :class:`DetectionErrors` adds.
_FORMS = {
    "video": "F, C, H, W",
    **dict.fromkeys(("masks", "detections", "_detected"), "F, H, W"),
    "tracks": "max_cells, 4",
    "flow": "F - 1, 2, H, W",
    "stages": "max_cells, F",
    "boxes": "max_cells, F, 4",
    "centroids": "max_cells, F, 2",
    "detection_tracks": "F, rows, 2",
}


def take_part(clip: Mapping[str, Any], key: str, place: str = "") -> Tensor:
    """Return a part of one clip as a plain tensor; ``place`` says in errors which clip it is."""
    if not isinstance(clip, Mapping):
        raise TypeError(
            f"clip must be a dict of tensors, got {type(clip).__name__}{place}; give "
            "videos.clip(0), and where clips are asked for, give a list of them"
        )
    if key not in clip:
        way = f"; give the data set annotations=(..., {key!r})" * (key in ANNOTATIONS)
        way += "; give the data set video=True" * (key == "video")
        way += "; call DetectionErrors on it" * ("detection" in key)
        raise ValueError(f"clip must have the key {key!r}, got the keys {tuple(clip)}{place}{way}")
    part, sides = clip[key], _FORMS[key].split(", ")
    if not isinstance(part, Tensor):
        raise TypeError(
            f"clip must hold tensors, got {type(part).__name__} for {key!r}{place}; see "
            "torch.as_tensor"
        )
    pairs = zip(sides, map(str, part.shape), strict=False)
    if part.ndim != len(sides) or any(a.isdigit() and a != b for a, b in pairs):
        raise ValueError(
            f"clip must be one clip with {key} [{_FORMS[key]}], got {list(part.shape)}{place}; "
            "take the clips of a batch one by one"
        )
    return part.as_subclass(Tensor).detach()


class TooManyNucleiError(ValueError):
    """A clip holds more nuclei than the padded tables have rows."""


def check_annotations(annotations: Collection[str]) -> tuple[str, ...]:
    """Return the wanted annotations, of names or ``"all"``, in the order of ``ANNOTATIONS``."""
    if isinstance(annotations, str):
        if annotations == "all":
            return ANNOTATIONS
        raise TypeError(
            "annotations must be 'all' or a collection of names, got the string "
            f"{annotations!r}; write ({annotations!r},)"
        )
    if not isinstance(annotations, Collection):
        raise TypeError(
            f"annotations must be a collection of names, got {annotations!r}; write () for none"
        )
    unknown = [name for name in annotations if name not in ANNOTATIONS]
    if unknown:
        raise ValueError(
            f"annotations must be out of {ANNOTATIONS}, got {unknown[0]!r}; give 'all' for all"
        )
    return tuple(name for name in ANNOTATIONS if name in annotations)


def split_gaps(
    masks: npt.NDArray[np.integer], parents: Mapping[int, int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Number the visible nuclei 1, 2, ... so that each is there from its first to its last frame.

    A nucleus that disappears and comes back goes on under a new id whose parent is its former
    one, as the Cell Tracking Challenge has it. A parent becomes 0 where it was never visible
    before, or is still visible when its daughter appears.

    masks with the new ids, ``[F, H, W]``; the table ``[n, 4]`` of id, first frame, last frame
    and parent, ordered by id; and for every new id the old one, ``[n]``.

    Examples:
        >>> masks = np.zeros((3, 1, 2), int)
        >>> masks[0, 0, 0] = masks[2, 0, 0] = 7  # hidden in frame 1
        >>> new, table, old = split_gaps(masks, {})
        >>> table.tolist(), old.tolist(), new[:, 0, 0].tolist()
        ([[1, 0, 0, 0], [2, 2, 2, 1]], [7, 7], [1, 0, 2])
    """
    frames = masks.shape[0]
    if frames == 0:
        raise ValueError(f"masks must have at least one frame, got the shape {masks.shape}")
    top = int(masks.max(initial=0)) + 1
    present = np.zeros((top, frames), bool)
    for frame in range(frames):
        present[np.unique(masks[frame]), frame] = True
    new_of, table, old = number_tracks(present, parents)
    renamed = np.stack([new_of[masks[frame], frame] for frame in range(frames)])
    return renamed, table, old


def number_tracks(
    present: npt.NDArray[np.bool_], parents: Mapping[int, int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Find the unbroken tracks of nuclei of which is known when they are visible.

    The new id of every old one in every frame, ``[ids, F]``, 0 where it is not visible; the
    table and the old ids, as for :func:`split_gaps`.
    """
    top, frames = present.shape
    present = present.copy()
    present[0] = False
    starts = present & ~np.roll(present, 1, axis=1)
    starts[:, 0] = present[:, 0]
    # Runs are numbered in the order of their first frame, then of their old id.
    first, old = np.nonzero(starts.T)
    new_of = np.zeros((top, frames), np.int32)
    table = np.zeros((len(old), 4), np.int32)
    for number, (frame, identity) in enumerate(zip(first.tolist(), old, strict=True), start=1):
        gaps = np.flatnonzero(~present[identity, frame:])
        last = frame + int(gaps[0]) - 1 if len(gaps) else frames - 1
        new_of[identity, frame : last + 1] = number
        parent = int(new_of[identity, :frame].max(initial=0))
        mother = parents.get(int(identity), 0)
        if parent == 0 and 0 < mother < top and not present[mother, frame]:
            parent = int(new_of[mother, :frame].max(initial=0))
        table[number - 1] = number, frame, last, parent
    return new_of, table, old.astype(np.int64)


def divisions(clip: Clip) -> Tensor:
    """Return the divisions of a clip.

    A mother may leave the view before her daughters are seen. One whose second daughter is never
    in view cannot be told from a nucleus that leaves and returns, and is left out.

    Args:
        clip: One clip with ``tracks``; ids need not be in order.

    Returns:
        A row ``(mother, daughter, daughter, frame)`` a division: the ids, the daughters' in
        ascending order, and the frame in which the first of them appears; ordered by frame and
        mother; ``[D, 4]`` int64.

    Raises:
        ValueError: If the clip has no tracks or is a batch of clips, a parent is not in the table,
            or a mother has more than two daughters.

    Examples:
        >>> rows = [[1, 0, 2, 0], [2, 3, 5, 1], [3, 4, 5, 1], [4, 0, 1, 0], [5, 4, 5, 4]]
        >>> divisions({"video": torch.zeros(6, 1, 8, 8), "tracks": torch.tensor(rows)}).tolist()
        [[1, 2, 3, 3]]
    """
    children: dict[int, list[tuple[int, int]]] = {}
    for identity, first, _, parent in _list_rows(clip):
        if parent:
            children.setdefault(parent, []).append((identity, first))
    rows = []
    for mother, both in children.items():
        if len(both) > 2:
            raise ValueError(
                f"tracks must have at most two daughters a mother, got {len(both)} of {mother}; "
                "set the parent of others to 0"
            )
        if len(both) == 2:
            ids, firsts = zip(*sorted(both), strict=True)
            rows.append([mother, *ids, min(firsts)])
    rows.sort(key=lambda row: (row[3], row[0]))
    return torch.from_numpy(np.array(rows, np.int64).reshape(-1, 4))


def association(clip: Clip) -> Tensor:
    """Return which nucleus of each frame is which one of the next: the edges of the lineage.

    They lead from a nucleus to itself, and from a mother in her last frame to her daughters.
    Where a frame or more lie between a track and its parent, as when a nucleus leaves and
    returns, there is no edge.

    Args:
        clip: One clip with ``tracks``; ids need not be in order.

    Returns:
        A row ``(frame, id, id in the next frame)`` an edge, in ascending order; ``[E, 3]`` int64.

    Raises:
        ValueError: If the clip has no tracks or is a batch of clips, or a parent is not in the
            table.

    Examples:
        >>> clip = {"video": torch.zeros(3, 1, 8, 8)}
        >>> clip["tracks"] = torch.tensor([[1, 0, 1, 0], [2, 2, 2, 1], [3, 2, 2, 1]])
        >>> edges = association(clip)
        >>> edges.tolist()
        [[0, 1, 1], [1, 1, 2], [1, 1, 3]]
        >>> matrix = torch.zeros(2, 4, 4)  # one frame after the other, by ids
        >>> matrix[tuple(edges.T)] = 1
        >>> matrix[1, 1].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    rows = _list_rows(clip)
    edges = [[time, one, one] for one, first, last, _ in rows for time in range(first, last)]
    ends = {identity: last for identity, _, last, _ in rows}
    edges += [
        [first - 1, parent, identity]
        for identity, first, _, parent in rows
        if parent and ends[parent] == first - 1
    ]
    return torch.from_numpy(np.array(sorted(edges), np.int64).reshape(-1, 3))


def _list_rows(clip: Clip) -> list[list[int]]:
    """Return the rows of the table of tracks, without padding."""
    rows: list[list[int]] = [row for row in take_part(clip, "tracks").tolist() if row[0] > 0]
    lost = sorted({row[3] for row in rows} - {0} - {row[0] for row in rows})
    if lost:
        raise ValueError(f"tracks must have a row for every parent, got none for {lost[0]}")
    return rows


def pad_rows(table: npt.NDArray[np.generic], rows: int, fill: int | float) -> Tensor:
    """Return the table as a tensor ``[rows, ...]`` of its dtype, the missing rows filled."""
    if len(table) > rows:
        raise TooManyNucleiError(
            f"max_cells={rows} is too small for this clip: it holds {len(table)} nuclei. "
            f"Give max_cells={len(table)} or more, fewer nuclei, or a smaller size"
        )
    out = np.full((rows, *table.shape[1:]), fill, table.dtype)
    out[: len(table)] = table
    return torch.from_numpy(out)


def measure_boxes(
    masks: npt.NDArray[np.integer], count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Measure the bounding box and the centroid of every nucleus in every frame.

    Boxes ``[count, F, 4]`` as ``(x1, y1, x2, y2)`` with exclusive far edges, and centroids
    ``[count, F, 2]`` as ``(y, x)``; NaN where a nucleus is not there.
    """
    frames, height, width = masks.shape
    # Area, sums of rows and columns, first and last row and column.
    extents = np.zeros((count, frames, 7), np.int64)
    extents[..., 3::2], extents[..., 4::2] = max(height, width), -1
    if has_loops():
        ids = np.ascontiguousarray(masks, np.int32)
        run_loop("measure_extents", count, frames, height, width, ids, extents)
    else:
        for frame, mask in enumerate(masks):
            places = mask.nonzero()
            found, row = extents[:, frame], mask[places] - 1
            found[:, 0] = np.bincount(row, minlength=count)
            for axis, values in enumerate(places):
                np.add.at(found[:, 1 + axis], row, values)
                np.minimum.at(found[:, 3 + 2 * axis], row, values)
                np.maximum.at(found[:, 4 + 2 * axis], row, values)
    area, y, x, top, bottom, left, right = np.moveaxis(extents, -1, 0)
    seen = area > 0
    boxes = np.full((*seen.shape, 4), np.nan, np.float32)
    centroids = np.full((*seen.shape, 2), np.nan, np.float32)
    boxes[seen] = np.stack([left, top, right + 1, bottom + 1], -1)[seen]
    centroids[seen] = np.stack([y, x], -1)[seen] / area[seen, None]
    return boxes, centroids


def annotate_masks(
    masks: npt.NDArray[np.int32],
    table: npt.NDArray[np.int32],
    annotations: Collection[str],
    max_cells: int,
) -> dict[str, Tensor]:
    """Make the annotations that follow from the masks alone: all but ``flow`` and ``stages``."""
    found = {"masks": torch.from_numpy(np.ascontiguousarray(masks, np.int32))}
    found["tracks"] = pad_rows(table.astype(np.int32), max_cells, 0)
    if "boxes" in annotations or "centroids" in annotations:
        boxes, centroids = measure_boxes(masks, len(table))
        found["boxes"] = pad_rows(boxes, max_cells, np.nan)
        found["centroids"] = pad_rows(centroids, max_cells, np.nan)
    return {name: value for name, value in found.items() if name in annotations}


LARGEST_COUNT = 65535
"""Largest count of a 16-bit camera."""


@dataclass(frozen=True)
class CameraScale:
    """Linear scale between the counts of a camera and grey values.

    Grey 0 is ``offset``, grey 1 is ``full``. Clips, real and synthetic, are comparable only where
    they are on the same scale.

    Attributes:
        offset: Count of no light at all; 0 or more.
        full: Count of full scale; more than offset, at most 65535.

    Raises:
        TypeError: If one of them is not an integer.
        ValueError: If they are not in the order 0 <= offset < full <= 65535.

    Examples:
        >>> scale = CameraScale(offset=32768, full=36863)  # 12 bits on an offset
        >>> grey = scale.to_grey(np.array([32768, 36863, 40000], np.uint16))
        >>> grey.tolist(), scale.to_counts(grey).tolist()
        ([0.0, 1.0, 1.0], [32768, 36863, 36863])
    """

    offset: int
    full: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no scale."""
        for name, value in (("offset", self.offset), ("full", self.full)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int (a count of the camera), got {value!r}")
        if not 0 <= self.offset < self.full <= LARGEST_COUNT:
            raise ValueError(
                f"offset and full must be counts with 0 <= offset < full <= {LARGEST_COUNT}, "
                f"got offset={self.offset} and full={self.full}"
            )

    def to_grey(self, counts: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Turn counts into grey values; what lies outside the scale is clipped.

        Args:
            counts: Any shape, any integer dtype.

        Returns:
            ``(counts - offset) / (full - offset)``, clipped to [0, 1], the same shape, float32.

        Raises:
            TypeError: If counts are not integers.
        """
        if not np.issubdtype(counts.dtype, np.integer):
            raise TypeError(f"counts must be integers, got the dtype {counts.dtype}")
        inside = np.clip(counts.astype(np.float32), self.offset, self.full)
        inside -= np.float32(self.offset)
        inside /= np.float32(self.full - self.offset)
        return inside

    def to_counts(self, grey: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
        """Turn grey values into counts, rounded; what lies outside [0, 1] is clipped.

        Every count within the scale comes back from :meth:`to_grey` as it was.

        Args:
            grey: Any shape, any floating dtype.

        Returns:
            ``offset + grey * (full - offset)``, the same shape, uint16.

        Raises:
            TypeError: If grey is not of a floating dtype.
            ValueError: If a value is NaN.
        """
        if not np.issubdtype(grey.dtype, np.floating):
            raise TypeError(f"grey must be of a floating dtype in [0, 1], got {grey.dtype}")
        missing = int(np.isnan(grey).sum())
        if missing:
            raise ValueError(
                f"grey must hold numbers from 0 to 1, got {missing} NaN of {grey.size}"
            )
        light = np.rint(np.clip(grey.astype(np.float64), 0, 1) * (self.full - self.offset))
        return (light + self.offset).astype(np.uint16)
