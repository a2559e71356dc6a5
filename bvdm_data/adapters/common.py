"""What adapters share: foreign packages, the parts of a clip they need, and lines of descent."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, SupportsIndex

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from bvdm_data.clip import CameraScale, Clip, association, measure_boxes, take_part
from bvdm_data.datasets.sharding import DistributedContext, SampleSplit
from bvdm_data.datasets.sources import MapStyle
from bvdm_data.datasets.tracks import check_ids_match, check_track_table
from bvdm_data.validate import Rule, as_int


class Videos(Protocol):
    """A data set with random access: the synthetic, the real and the mixed one."""

    def clip(self, index: int) -> Any:
        """Return the clip with this number."""


def get_tensor(clip: Clip, key: str) -> Tensor:
    """Return a part of one clip on the CPU."""
    part = take_part(clip, key).cpu()
    if key == "masks":
        check_ids(part)
    return part


def get_index(clip: Clip) -> int:
    """Return the number of a clip."""
    if "index" not in clip:
        raise ValueError(f"clip must have the key 'index', got the keys {tuple(clip)}")
    return int(clip["index"])


def check_ids(masks: Tensor) -> None:
    """Refuse ids that are no whole numbers, or that their type or int32 cannot tell apart."""
    if masks.dtype == torch.int32:
        return
    if masks.is_complex():
        raise ValueError("masks must hold whole ids, got complex numbers; give int32")
    steps = 2 / torch.finfo(masks.dtype).eps if masks.is_floating_point() else 2**31
    ids, most = masks.double(), min(int(steps), 2**31) - 1  # not all types have a maximum
    largest = float(ids.max()) if ids.numel() else 0
    if not largest <= most or bool((ids != ids.round()).any()):
        raise ValueError(
            f"masks of {masks.dtype} must hold whole ids up to {most}, got up to {largest:.10g}; "
            "give masks as the data set made them, int32"
        )


def convert_to_rgb(clip: Clip) -> Tensor:
    """Return the video in three channels, ``[F, 3, H, W]`` float32, as photographs have them."""
    video = get_tensor(clip, "video").float()
    if video.shape[1] not in (1, 3):
        raise ValueError(f"clip must have a video of 1 or 3 channels, got {list(video.shape)}")
    return video.repeat(1, 3 // video.shape[1], 1, 1)


def convert_to_grey(clip: Clip) -> npt.NDArray[np.float32]:
    """Return the only channel of the video, grey values ``[F, H, W]`` float32."""
    video = get_tensor(clip, "video").float()
    if video.shape[1] != 1:
        raise ValueError(f"clip must have a video of 1 channel, got {list(video.shape)}")
    found: npt.NDArray[np.float32] = video[:, 0].numpy()
    return found


def convert_to_counts(clip: Clip, scale: CameraScale) -> npt.NDArray[np.uint16]:
    """Return the only channel of the video in counts of the camera, ``[F, H, W]`` uint16."""
    if not isinstance(scale, CameraScale):
        raise TypeError(
            f"scale must be a CameraScale, got {scale!r}; give that of the data set, or "
            "CameraScale(0, 65535) where none is known"
        )
    return scale.to_counts(convert_to_grey(clip))


def list_tracks(clip: Clip) -> npt.NDArray[np.int32]:
    """Return the table of tracks ``[n, 4]``, without padding, checked against the masks."""
    masks = get_tensor(clip, "masks").numpy()
    table = check_track_table(get_tensor(clip, "tracks").numpy(), len(masks))
    check_ids_match(masks, table)
    return table


def number_ids(ids: npt.NDArray[Any], names: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Number ids from 1 on as they follow each other in sorted names; 0 stays."""
    return np.where(ids > 0, np.searchsorted(names, ids) + 1, 0).astype(np.int32)


def count_clips(videos: Videos, clips: SupportsIndex | None, *, name: str = "clips") -> int:
    """Return how many clips of a data set are meant."""
    # An array has a method clip that limits its values.
    if isinstance(videos, Tensor | np.ndarray) or not callable(getattr(videos, "clip", None)):
        raise TypeError(
            "videos must be a data set with clip(index), such as SyntheticHeLaVideos or CTCVideos, "
            f"got {type(videos).__name__}"
        )
    if clips is None:
        # Not len(), which counts the clips of one rank.
        in_epoch = getattr(videos, "length_in", None)
        if callable(in_epoch):
            clips = in_epoch(getattr(videos, "epoch", 0))
        else:
            clips = getattr(videos, "length", None)
    if clips is None:
        raise ValueError(f"{name} must be given for an endless data set; write {name}=100")
    return as_int(name, clips, least=1)


def list_arrays(videos: Videos, number: int) -> dict[str, npt.NDArray[np.generic]]:
    """Return the tensors of a clip as arrays."""
    clip = videos.clip(number)
    for key, value in clip.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"videos must have clips of tensors, got {key}={value!r} in clip {number}; leave "
                "it out, or make a tensor of it, in the transform"
            )
    return {key: value.detach().cpu().numpy() for key, value in clip.items()}


def find_ancestors(table: npt.NDArray[np.integer]) -> dict[int, list[int]]:
    """Follow each track back to its first ancestor.

    Examples:
        >>> find_ancestors(np.array([[1, 0, 1, 0], [2, 2, 3, 1], [3, 4, 5, 2]]))
        {1: [1], 2: [2, 1], 3: [3, 2, 1]}
    """
    lines: dict[int, list[int]] = {}
    for identity, _, _, parent in sorted(table.tolist(), key=lambda row: row[1]):
        # A parent ends before its daughter begins, so its line is known.
        lines[identity] = [identity, *lines.get(parent, [])]
    return lines


def match_relatives(lines: Mapping[int, list[int]], ids: Tensor) -> Tensor:
    """Match the pairs of which one is the other, its ancestor or its descendant.

    By the lines of :func:`find_ancestors`, for ids ``[N]``; ``[N, N]`` float32, 1 or 0.
    """
    kinds, where = np.unique(ids.numpy(), return_inverse=True)
    related = np.eye(len(kinds), dtype=np.float32)
    for row, one in enumerate(kinds.tolist()):
        above = np.isin(kinds, lines[one])
        related[row, above] = related[above, row] = 1
    return torch.from_numpy(related[where][:, where])


def build_graph(
    clip: Clip, table: npt.NDArray[np.int32]
) -> tuple[dict[str, npt.NDArray[np.generic]], npt.NDArray[np.uint64]]:
    """Return the lineage as a graph: nodes by track and frame, named as in :func:`write_geff`.

    Properties of the nodes, ``[n]`` each, and the edges ``[e, 2]``, numbers of nodes.
    """
    masks, names = get_tensor(clip, "masks").numpy(), np.sort(table[:, 0])
    _, centroids = measure_boxes(number_ids(masks, names), len(table))
    places = [
        (identity, time)
        for identity, first, last, _ in table.tolist()
        for time in range(first, last + 1)
    ]
    node = {place: number for number, place in enumerate(places)}
    edges = [(node[one, t], node[other, t + 1]) for t, one, other in association(clip).tolist()]
    last_frames = dict(table[:, [0, 2]].tolist())
    edges += [
        (node[parent, last_frames[parent]], node[identity, first])
        for identity, first, _, parent in table.tolist()
        if parent and last_frames[parent] < first - 1
    ]
    ids, times = np.array(places, np.int64).reshape(-1, 2).T
    rows = np.searchsorted(names, ids)
    lines, tracklets = find_ancestors(table), dict[int, int]()
    daughters = np.bincount(table[:, 3], minlength=int(table[:, 0].max(initial=0)) + 1)
    for identity, _, _, parent in sorted(table.tolist(), key=lambda row: row[1]):
        is_only = parent and daughters[parent] == 1  # it goes on in the tracklet of its parent
        tracklets[identity] = tracklets[parent] if is_only else identity
    nodes: dict[str, npt.NDArray[np.generic]] = {
        "t": times,
        "y": centroids[rows, times, 0],
        "x": centroids[rows, times, 1],
        "seg_id": ids,
        "tracklet": np.array([tracklets[one] for one in ids.tolist()], np.int64),
        "lineage": np.array([lines[one][-1] for one in ids.tolist()], np.int64),
    }
    if "stages" in clip:
        row_of = {one: row for row, one in enumerate(get_tensor(clip, "tracks")[:, 0].tolist())}
        of_node = [row_of[one] for one in ids.tolist()]
        nodes["stage"] = get_tensor(clip, "stages").numpy()[of_node, times]
    return nodes, np.array(edges, np.uint64).reshape(-1, 2)


# Of a pixel, clockwise: a neighbour, and from which to which corner the side between them leads;
# all as steps ``(y, x)``.
_SIDES = (
    ((-1, 0), (0, 0), (0, 1)),
    ((0, 1), (0, 1), (1, 1)),
    ((1, 0), (1, 1), (1, 0)),
    ((0, -1), (1, 0), (0, 0)),
)


def trace_outlines(
    mask: npt.NDArray[np.bool_], inset: float = 0.0
) -> list[npt.NDArray[np.float64]]:
    """Trace the closed outlines of a mask along the sides of its pixels, the largest first.

    Corners ``[n, 2]`` as ``(x, y)`` from the corner of the image, so far within the mask. Holes
    and pieces that touch in a corner have outlines of their own.
    """
    framed = np.pad(mask, 1)
    sides: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, (y0, x0), (y1, x1) in _SIDES:
        outer = framed & ~np.roll(framed, [-step for step in neighbour], (0, 1))
        for y, x in (np.argwhere(outer) - 1).tolist():
            sides.setdefault((y + y0, x + x0), []).append((y + y1, x + x1))
    outlines = []
    while sides:
        corner, ring, step = next(iter(sides)), [], (0, 0)
        while corner in sides:
            ring.append(corner)
            (y, x), ends = corner, sides[corner]
            right = y + step[1], x - step[0]
            corner = ends.pop(ends.index(right) if right in ends else 0)
            step = corner[0] - y, corner[1] - x
            if not ends:
                del sides[y, x]
        corners = np.array(ring, float)
        after = np.roll(corners, -1, 0) - corners
        before = np.roll(after, 1, 0)
        inward = (before + after)[:, ::-1] * [1, -1]  # to the right of the way
        outlines.append((corners + inset * inward)[(before != after).any(1), ::-1])
    return sorted(outlines, key=_measure_area, reverse=True)


def _measure_area(outline: npt.NDArray[np.float64]) -> float:
    x, y = outline.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def check_units(pixel_size: float | None, minutes: float | None) -> None:
    """Refuse sides of pixels and times between frames that are neither None nor above 0."""
    for name, value in (("pixel_size", pixel_size), ("minutes", minutes)):
        Rule(float, above=0, or_none=True).check(name, value)


Clips = Iterable[Clip] | MapStyle  # a stream of clips, or a map-style data set or a list of them


class SharedClips:
    """Clips of which each process makes its own.

    An iterable data set knows which of its clips are whose, and is left to it. Of a list and of a
    map-style data set every process has all; here each gets those that it would get of a
    :class:`ClipStream` as long: rank ``r`` of ``R`` every R-th one, from the r-th on, all ranks
    equally many; worker ``w`` of ``n`` every n-th one of its rank.
    """

    def __init__(self, clips: Clips) -> None:
        """Check the argument; see the class."""
        self._is_map_style = not isinstance(clips, IterableDataset) and all(
            hasattr(clips, name) for name in ("__len__", "__getitem__")
        )
        is_data_set = self._is_map_style or isinstance(clips, Iterable)
        if isinstance(clips, type | str | Mapping) or not is_data_set:
            raise TypeError(
                "clips must be a data set or a list of clips, got "
                f"{clips if isinstance(clips, type) else type(clips).__name__}; write [clip] for "
                "one clip"
            )
        self._clips: Any = clips
        self._shard = DistributedContext(None)

    def __iter__(self) -> Iterator[Clip]:
        """Yield the clips of this process."""
        if not self._is_map_style:
            yield from self._clips
            return
        length, shard = len(self._clips), self._shard.find()
        split = SampleSplit.of_process(shard, epoch=0, length=length, batch_size=1)
        for (number,) in split.batches():
            yield self._clips[number]
