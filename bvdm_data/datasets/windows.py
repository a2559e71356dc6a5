"""Windows of a real video: which frames and pixels of it a clip shows."""

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from bvdm_data.clip import check_annotations
from bvdm_data.datasets.ctc import CTCSequence
from bvdm_data.datasets.tiff import LazyTiff
from bvdm_data.rng import torch_rng
from bvdm_data.validate import as_int, check_frames

WINDOWS = ("random", "grid", "tracks", "lineages")
"""How windows may be chosen."""


@dataclass(frozen=True)
class Window:
    """What a clip shows of a video."""

    # numbers of the frames, as in their file names. Where the video ends before the clip they are
    # fewer than its frames
    frames: tuple[int, ...]
    # row and column of the upper left pixel, in each of these frames
    corners: tuple[tuple[int, int], ...]
    # id in man_track.txt of the nucleus that the window follows, or of the first nucleus of the
    # family; 0 where it follows none
    track: int = 0


class Windows(Protocol):
    """A series of windows, endless, that begins anew after ``count`` where it is not random."""

    @property
    def count(self) -> int:
        """How many clips show what is to be shown once."""

    def window(self, index: int, epoch: int) -> Window:
        """Return window ``index``, 0 or more."""


@dataclass(frozen=True)
class RandomWindows:
    """Windows at random places, a pure function of seed, epoch and index."""

    count: int  # how many hold as many pixels as the field of interest
    seed: int  # seed of the places
    starts: Sequence[int]  # numbers of the frames that a window may begin with
    times: Sequence[int]  # where its frames are, counted from its first
    border: int  # width of the band of pixels that is left out
    room: tuple[int, int]  # how many places there are for a window, down and across

    def window(self, index: int, epoch: int) -> Window:
        """Return window ``index``, 0 or more, of an epoch."""
        generator = torch_rng(self.seed, "real", epoch, index)
        place, down, right = (
            int(torch.randint(choice, (), generator=generator))
            for choice in (len(self.starts), *self.room)
        )
        first, corner = self.starts[place], (self.border + down, self.border + right)
        return Window(tuple(first + time for time in self.times), tuple(corner for _ in self.times))


@dataclass(frozen=True)
class GridWindows:
    """Windows that cover the field of interest, ordered by first frame, then row, then column."""

    starts: Sequence[int]  # numbers of the first frames
    times: Sequence[int]  # where the frames of a window are, counted from its first
    tops: Sequence[int]  # their upper rows
    lefts: Sequence[int]  # their left columns

    @property
    def count(self) -> int:
        """How many windows there are."""
        return len(self.starts) * len(self.tops) * len(self.lefts)

    def window(self, index: int, epoch: int) -> Window:
        """Return window ``index``, 0 or more; after the last comes the first again."""
        rest, column = divmod(index % self.count, len(self.lefts))
        place, row = divmod(rest, len(self.tops))
        frames = tuple(self.starts[place] + time for time in self.times)
        return Window(frames, tuple((self.tops[row], self.lefts[column]) for _ in frames))


def draw_starts(used: range, have: Iterable[int], times: Sequence[int]) -> tuple[int, ...]:
    """Return the first frames of all windows that show only frames there are."""
    there = set(have)
    last = used.stop - 1 - times[-1]
    return tuple(
        one for one in range(used.start, last + 1) if there.issuperset(one + t for t in times)
    )


def tile_grid(
    used: range, have: Iterable[int], frames: int, stride: int, overlap: int
) -> tuple[int, ...]:
    """Return first frames of windows that show every frame there is."""
    there, starts, alone = set(have), [], []
    for phase in range(stride):
        for run in _runs(used[phase::stride], there):
            if len(run) < frames:
                alone += run
            else:
                starts += [run[place] for place in tile_starts(len(run), frames, overlap)]
    if alone:
        raise ValueError(
            f"windows='grid' must show every frame, but {len(alone)} of them (the first is frame "
            f"{min(alone)}) are not part of {frames} frames in a row, stride={stride}, that have "
            "what is asked for; give fewer frames, a smaller stride, another start or stop, "
            "another truth, or annotations=()"
        )
    return tuple(sorted(starts))


def tile_starts(total: int, size: int, overlap: int) -> list[int]:
    """Return where pieces of a length begin that cover a whole; the last one ends with it.

    Examples:
        >>> steps(10, 4, 0), steps(10, 4, 1), steps(4, 4, 0)
        ([0, 4, 6], [0, 3, 6], [0])
    """
    return [*range(0, total - size, size - overlap), total - size]


def check_windows(windows: str) -> str:
    """Return how windows are chosen."""
    if windows not in WINDOWS:
        raise ValueError(f"windows must be one of {WINDOWS}, got {windows!r}")
    return windows


def check_overlap(
    overlap: Sequence[int], windows: str, clip: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Return how many frames, rows and columns neighbouring windows share."""
    if isinstance(overlap, str) or not isinstance(overlap, Sequence) or len(overlap) != 3:
        raise TypeError(f"overlap must be (frames, rows, columns), got {overlap!r}")
    shared = tuple(as_int("overlap", one, least=0) for one in overlap)
    if any(one >= side for one, side in zip(shared, clip, strict=True)):
        raise ValueError(
            f"overlap must be smaller than a window of (frames, rows, columns) {clip}, got {shared}"
        )
    useful = {"random": 0, "grid": 3, "tracks": 1, "lineages": 1}[windows]
    if any(shared[useful:]):
        raise ValueError(
            f"overlap must be 0 in {('frames', 'rows')[useful > 0]} with windows={windows!r}, got "
            f"{shared}; give windows='grid'"
        )
    return shared[0], shared[1], shared[2]


def list_clips_with_annotations(
    field: tuple[int, int], frames_used: int, clip: tuple[int, int, int]
) -> int:
    """Return how many clips hold as many pixels as the field of interest in all its frames."""
    return math.ceil(frames_used * math.prod(field) / math.prod(clip))


def find_visible_parents(tracks: npt.NDArray[np.integer], shown: Sequence[int]) -> dict[int, int]:
    """Return the parent of each track, jumping over generations that live between two frames.

    Examples:
        >>> tracks = np.array([[1, 0, 3, 0], [2, 4, 4, 1], [3, 5, 9, 2]])
        >>> nearest_ancestors(tracks, [3, 5]), nearest_ancestors(tracks, [3, 4, 5])
        ({1: 0, 3: 1}, {1: 0, 2: 1, 3: 2})
    """
    number = np.array(shown)[:, None]
    there = ((tracks[:, 1] <= number) & (number <= tracks[:, 2])).any(axis=0)
    seen = set(tracks[there, 0].tolist())
    parents: dict[int, int] = dict(tracks[:, [0, 3]].tolist())
    found = {}
    for identity in sorted(seen):
        ancestor = parents[identity]
        while ancestor not in seen and parents.get(ancestor):
            ancestor = parents[ancestor]
        found[identity] = ancestor
    return found


def _runs(numbers: Iterable[int], there: set[int]) -> list[list[int]]:
    """Return the numbers that are there, in lists that no missing one interrupts."""
    groups = itertools.groupby(numbers, there.__contains__)
    return [list(group) for known, group in groups if known]


Box = tuple[int, int, int, int]
"""Top, left, bottom and right of a nucleus in pixels; the far edges are exclusive."""

Boxes = Mapping[int, Mapping[int, Box]]
"""Where a nucleus is, by id and number of the frame."""


@dataclass(frozen=True)
class TrackWindows:
    """One window for each nucleus or family, several where it lives longer than a clip.

    Each begins in a frame in which the nucleus is visible. The middle of the window is that of the
    nucleus, as far as the field of interest allows; when the nucleus is gone, the window stays.
    """

    windows: Sequence[Window]  # the windows, by nucleus or family and then by time

    @property
    def count(self) -> int:
        """How many windows there are."""
        return len(self.windows)

    def window(self, index: int, epoch: int) -> Window:
        """Return window ``index``, 0 or more; after the last comes the first again."""
        return self.windows[index % self.count]


@dataclass(frozen=True)
class TrackWindowPlanner:
    """What decides about the windows of one data set."""

    frames: int | None  # frames of a clip; None: as many as the longest needs
    stride: int  # from one of its frames to the next
    overlap: int  # frames that the clips of one nucleus share
    size: tuple[int, int]  # height and width of a window
    field: Box  # first row, first column, end of the rows and end of the columns of interest
    have: frozenset[int]  # numbers of the frames in use that have masks

    def follow(self, groups: Sequence[Sequence[int]], places: Boxes) -> tuple[TrackWindows, int]:
        """Return the windows of groups of nuclei, and the frames of each."""
        lives = [(group, run) for group in groups for run in self._lives(group, places)]
        if not lives:
            raise ValueError(
                "windows must follow nuclei, but no track of man_track.txt has a mask in the "
                "frames and the field of interest in use; give windows='random', another truth, "
                "start, stop or border"
            )
        frames = self.frames or max(len(run) for _, run in lives)
        found = []
        for group, run in lives:
            for place in range(0, max(len(run) - self.overlap, 1), frames - self.overlap):
                found.append(self._window(group, run[place], frames, places))
        return TrackWindows(tuple(found)), frames

    def _lives(self, group: Sequence[int], places: Boxes) -> list[list[int]]:
        """Return the frames in which one of them is visible, in runs ``stride`` apart."""
        seen = sorted({number for one in group for number in places.get(one, ())})
        if not seen:
            return []
        runs: list[list[int]] = [[]]
        there = set(seen)
        for number in range(seen[0], seen[-1] + 1, self.stride):
            if number in there:
                runs[-1].append(number)
            elif runs[-1]:
                runs.append([])
        return [run for run in runs if run]

    def _window(self, group: Sequence[int], first: int, frames: int, places: Boxes) -> Window:
        shown: list[int] = []
        corners: list[tuple[int, int]] = []
        track = next(one for one in group if first in places.get(one, ()))
        for number in range(first, first + frames * self.stride, self.stride):
            if number not in self.have:
                break
            boxes = [places[one][number] for one in group if number in places.get(one, ())]
            shown.append(number)
            corners.append(self._corner(boxes) if boxes else corners[-1])
        return Window(tuple(shown), tuple(corners), track)

    def _corner(self, boxes: Sequence[Box]) -> tuple[int, int]:
        """Return the corner of a window that holds the first box and others as far as they fit."""
        held = boxes[0]
        for box in boxes[1:]:
            both = (
                min(held[0], box[0]),
                min(held[1], box[1]),
                max(held[2], box[2]),
                max(held[3], box[3]),
            )
            if both[2] - both[0] <= self.size[0] and both[3] - both[1] <= self.size[1]:
                held = both
        top, left = (
            min(
                max((held[axis] + held[axis + 2] - self.size[axis]) // 2, self.field[axis]),
                self.field[axis + 2] - self.size[axis],
            )
            for axis in (0, 1)
        )
        return top, left


def group_families(tracks: npt.NDArray[np.integer]) -> list[list[int]]:
    """Return the ids of every family, the founder first and then branch by branch.

    Examples:
        >>> families(np.array([[1, 0, 4, 0], [2, 5, 9, 1], [3, 5, 9, 1], [4, 0, 9, 0]]))
        [[1, 2, 3], [4]]
    """
    children: dict[int, list[int]] = {}
    for identity, _, _, parent in sorted(tracks.tolist()):
        children.setdefault(parent, []).append(identity)
    found = []
    for founder in children.get(0, []):
        family, waiting = [], [founder]
        while waiting:
            family.append(waiting.pop())
            waiting += reversed(children.get(family[-1], []))
        found.append(family)
    return found


def find_bounding_boxes(
    masks: Iterable[tuple[int, npt.NDArray[np.integer]]], ids: Iterable[int], field: Box
) -> Boxes:
    """Find nuclei in the field of interest."""
    top, left, bottom, right = field
    places: dict[int, dict[int, Box]] = {int(one): {} for one in ids}
    for number, mask in masks:
        labels, inverse = np.unique(mask[top:bottom, left:right], return_inverse=True)
        found = ndimage.find_objects(inverse.reshape(bottom - top, right - left) + 1)
        for label, (rows, columns) in zip(labels.tolist(), found, strict=True):
            if label in places:
                places[label][number] = (
                    top + rows.start,
                    left + columns.start,
                    top + rows.stop,
                    left + columns.stop,
                )
    return places


Image = npt.NDArray[np.integer]


class FrameCache:
    """Windows of frames and masks; the frames that were used last are kept.

    Of a frame, only the strips or tiles of its file are decoded that a window shows. Masks are
    decoded whole: their ids depend on the markers of the whole frame.

    Each process has a cache of its own; a pickle holds none of it.

    ``source``: The video; ``limit``: Bytes to keep at most
    """

    def __init__(self, source: CTCSequence, limit: int) -> None:
        """Start empty."""
        self.source = source
        self.limit = limit
        self._start()

    @property
    def nbytes(self) -> int:
        """Bytes of the frames that are kept, as if they were decoded whole."""
        return sum(one.nbytes for one in self._kept.values())

    def frame(self, number: int, rows: slice, columns: slice) -> Image:
        """Return a window of a frame, ``[rows, columns]`` in the dtype of the file."""
        with self._lock:
            key = ("frame", number)
            image = self._kept.get(key)
            if not isinstance(image, LazyTiff):
                image = self.source.partial_frame(number)
            self._keep(key, image)
            return image.cut(rows, columns)

    def masks(self, number: int) -> Image:
        """Return the masks of a frame, ``[H, W]``; do not change them."""
        with self._lock:
            key = ("masks", number)
            masks = self._kept.get(key)
            if not isinstance(masks, np.ndarray):
                masks = _compact(self.source.masks(number))
            self._keep(key, masks)
            return masks

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded frames out of a pickle."""
        return {"source": self.source, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come out of a pickle, empty."""
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._kept: OrderedDict[tuple[str, int], LazyTiff | Image] = OrderedDict()
        self._lock = threading.Lock()

    def _keep(self, key: tuple[str, int], image: LazyTiff | Image) -> None:
        """Keep an image as the last used one; the oldest ones give way."""
        if image.nbytes > self.limit:
            return
        self._kept[key] = image
        self._kept.move_to_end(key)
        while self.nbytes > self.limit:
            self._kept.popitem(last=False)


def _compact(masks: npt.NDArray[np.int32] | None) -> Image:
    """Store masks in 16 bits where their ids allow it: half the memory."""
    if masks is None:
        raise ValueError("the frame has no masks")
    if masks.max(initial=0) > np.iinfo(np.uint16).max:
        return masks
    return masks.astype(np.uint16)


_POSSIBLE = ("masks", "tracks", "boxes", "centroids")


@dataclass
class WindowSpec:
    """What the user wants to see of a video; checked, as far as that needs no video."""

    windows: str  # how windows are chosen
    frames: int | None  # frames of a clip, or None
    size: tuple[int, int]  # height and width of a clip in pixels
    stride: int  # from one frame of a clip to the next
    overlap: Sequence[int]  # frames, rows and columns that neighbouring windows share
    border: int  # width of the band of pixels that is left out
    start: int  # number of the first frame used
    stop: int | None  # number after that of the last frame used, or None
    seed: int  # seed of random windows

    @property
    def follows(self) -> bool:
        """Whether windows follow nuclei."""
        return self.windows in ("tracks", "lineages")

    def __post_init__(self) -> None:
        """Check the choice."""
        self.windows = check_windows(self.windows)
        self.stride = as_int("stride", self.stride, least=1)
        if self.frames is not None:
            self.frames = check_frames(self.frames)
        elif not self.follows:
            raise TypeError(
                f"frames must be a whole number, got None, with windows={self.windows!r}; None is "
                "for windows='tracks' or 'lineages'"
            )
        self.overlap = check_overlap(self.overlap, self.windows, (self.frames or 1, *self.size))


def make_windows(
    choice: WindowSpec, cache: FrameCache, annotations: Sequence[str]
) -> tuple[Windows, int]:
    """Return the windows of a video, and the frames of each."""
    source, (height, width) = cache.source, choice.size
    room = _room(source.shape, choice.border, choice.size)
    used = _frames_used(source, choice.start, choice.stop)
    _check_tracks(choice, source, annotations)
    have = set(source.mask_names).intersection(used) if annotations else set(used)
    if choice.frames is None or choice.follows:
        return _following(choice, cache, used)
    times = range(0, choice.frames * choice.stride, choice.stride)
    starts = draw_starts(used, have, times)
    _check_starts(starts, choice, source, used)
    if choice.windows == "grid":
        frames, rows, columns = choice.overlap
        starts = tile_grid(used, have, choice.frames, choice.stride, frames)
        tops = [choice.border + top for top in tile_starts(room[0] + height - 1, height, rows)]
        lefts = [choice.border + left for left in tile_starts(room[1] + width - 1, width, columns)]
        return GridWindows(starts, times, tops, lefts), choice.frames
    field = (room[0] + height - 1, room[1] + width - 1)
    count = list_clips_with_annotations(field, len(used), (choice.frames, height, width))
    return RandomWindows(count, choice.seed, starts, times, choice.border, room), choice.frames


def check_annotations_available(annotations: Collection[str], truth: str | None) -> tuple[str, ...]:
    """Return the annotations that a real video is asked for."""
    wanted = check_annotations(annotations)
    impossible = [name for name in wanted if name not in _POSSIBLE]
    if impossible:
        raise ValueError(
            f"annotations of a real video must be out of {_POSSIBLE}, got {impossible[0]!r}: it "
            "has no truth for that"
        )
    if wanted and truth is None:
        raise ValueError(f"annotations must be () when truth is None, got {wanted}")
    return wanted


def _check_tracks(choice: WindowSpec, source: CTCSequence, annotations: Sequence[str]) -> None:
    """Refuse to call mere labels tracks."""
    told = len(source.tracks) or source.truth == "TRA" or choice.frames == 1
    if "tracks" in annotations and not told:
        raise ValueError(
            f"annotations must be without 'tracks' for sequence {source.name!r} in "
            f"{source.folder}: it has no man_track.txt, and labels of truth={source.truth!r} need "
            "not be the same nucleus in two frames. Give annotations=('masks',), or frames=1"
        )


def _following(choice: WindowSpec, cache: FrameCache, used: range) -> tuple[Windows, int]:
    source, border = cache.source, choice.border
    if source.truth is None or not len(source.tracks):
        lacks = "no masks (truth=None)" if source.truth is None else "no man_track.txt"
        raise ValueError(
            f"windows={choice.windows!r} needs masks and tracks, and sequence {source.name!r} in "
            f"{source.folder} has {lacks}; give windows='random' or 'grid'"
        )
    field = (border, border, source.shape[0] - border, source.shape[1] - border)
    have = sorted(set(source.mask_names).intersection(used))
    ids = np.sort(source.tracks[:, 0])
    places = find_bounding_boxes(((number, cache.masks(number)) for number in have), ids, field)
    groups = [[one] for one in ids.tolist()]
    if choice.windows == "lineages":
        groups = group_families(source.tracks)
    follower = TrackWindowPlanner(
        choice.frames, choice.stride, choice.overlap[0], choice.size, field, frozenset(have)
    )
    return follower.follow(groups, places)


def _room(shape: tuple[int, int], border: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return how many places there are for a window, down and across."""
    field = (shape[0] - 2 * border, shape[1] - 2 * border)
    if size[0] > field[0] or size[1] > field[1]:
        raise ValueError(
            f"size must fit into the field of interest of {field} pixels (frames of {shape} less a "
            f"border of {border} on each side), got {size}; give a smaller size or border"
        )
    return field[0] - size[0] + 1, field[1] - size[1] + 1


def _frames_used(source: CTCSequence, start: int, stop: int | None) -> range:
    first, end = source.numbers[0], source.numbers[-1] + 1
    low = as_int("start", start, least=0)
    high = end if stop is None else as_int("stop", stop, least=1)
    if not low < high <= end or high <= first:
        raise ValueError(
            f"start and stop must be frame numbers with start < stop <= {end} in a video of frames "
            f"{first} to {end - 1}, got start={low} and stop={high}"
        )
    return range(max(low, first), high)


def _check_starts(
    starts: Sequence[int], choice: WindowSpec, source: CTCSequence, used: range
) -> None:
    """Refuse a choice that leaves no window."""
    frames, stride = choice.frames or 1, choice.stride
    if (frames - 1) * stride >= len(used):
        apart = f" with stride={stride}" if stride > 1 else ""
        raise ValueError(
            f"frames must be at most the {-(-len(used) // stride)} frames in use{apart}, got "
            f"{frames}"
        )
    if not starts:
        raise ValueError(
            f"frames={frames} is too long: nowhere in frames {used.start} to {used.stop - 1} has "
            f"truth={source.truth!r} masks in {frames} frames in a row. Give fewer frames, another "
            "truth, or annotations=()"
        )
