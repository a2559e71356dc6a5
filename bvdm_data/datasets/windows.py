"""Windows of a real video: which frames and pixels of it a clip shows."""

import itertools
import math
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from bvdm_data.clip import check_annotations
from bvdm_data.datasets.ctc import CTCSequence
from bvdm_data.datasets.tracks import group_families, list_alive
from bvdm_data.outlines import Outline, move_outlines
from bvdm_data.rng import torch_rng
from bvdm_data.validate import as_int, check_frames

WINDOWS = ("random", "grid", "tracks", "lineages")  # how windows may be chosen
# Top, left, bottom and right of a nucleus in pixels; the far edges are exclusive.
Box = tuple[int, int, int, int]
Image = npt.NDArray[np.integer]

_POSSIBLE = ("masks", "tracks", "boxes", "centroids")


@dataclass(frozen=True)
class Window:
    """What a clip shows of a video."""

    # numbers as in the file names; fewer than the frames of a clip where the video ends before it
    frames: tuple[int, ...]
    # row and column of the upper left pixel, in each of these frames
    corners: tuple[tuple[int, int], ...]
    # id in man_track.txt of the nucleus that the window follows, or of the first nucleus of the
    # family; 0 where it follows none
    track: int = 0


@dataclass(frozen=True)
class RandomWindows:
    """Windows at random places, a function of seed, epoch and index."""

    count: int  # how many hold as many pixels as the field of interest
    seed: int
    starts: Sequence[int]  # numbers of the frames that a window may begin with
    times: Sequence[int]  # where its frames are, counted from its first
    border: int  # width of the band of pixels that is left out
    room: tuple[int, int]  # how many places there are for a window, down and across

    def get_window(self, index: int, epoch: int) -> Window:
        """Return window ``index``, 0 or more, of an epoch."""
        rng = torch_rng(self.seed, "real", epoch, index)
        place, down, right = (
            int(torch.randint(choices, (), generator=rng))
            for choices in (len(self.starts), *self.room)
        )
        frames = tuple(self.starts[place] + time for time in self.times)
        return Window(frames, ((self.border + down, self.border + right),) * len(frames))


@dataclass(frozen=True)
class ListedWindows:
    """Windows of a grid, of tracks or of lineages, the same in every epoch."""

    windows: Sequence[Window]

    @property
    def count(self) -> int:
        """Number of the windows."""
        return len(self.windows)

    def get_window(self, index: int, epoch: int) -> Window:
        """Return window ``index``, 0 or more; after the last comes the first again."""
        return self.windows[index % self.count]


Windows = RandomWindows | ListedWindows


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

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.windows not in WINDOWS:
            raise ValueError(f"windows must be one of {WINDOWS}, got {self.windows!r}")
        self.stride = as_int("stride", self.stride, least=1)
        if self.frames is not None:
            self.frames = check_frames(self.frames)
        elif not self.follows:
            raise TypeError(
                f"frames must be a whole number, got None, with windows={self.windows!r}; None is "
                "for windows='tracks' or 'lineages'"
            )
        overlap, clip = self.overlap, (self.frames or 1, *self.size)
        if isinstance(overlap, str) or not isinstance(overlap, Sequence) or len(overlap) != 3:
            raise TypeError(f"overlap must be (frames, rows, columns), got {overlap!r}")
        self.overlap = tuple(as_int("overlap", one, least=0) for one in overlap)
        if any(one >= side for one, side in zip(self.overlap, clip, strict=True)):
            raise ValueError(
                f"overlap must be smaller than a window of (frames, rows, columns) {clip}, got "
                f"{self.overlap}"
            )
        used = {"random": 0, "grid": 3}.get(self.windows, 1)
        if any(self.overlap[used:]):
            raise ValueError(
                f"overlap must be 0 in {('frames', 'rows')[used > 0]} with "
                f"windows={self.windows!r}, got {self.overlap}; give windows='grid'"
            )

    @property
    def follows(self) -> bool:
        """Whether windows follow nuclei."""
        return self.windows in ("tracks", "lineages")


def check_annotations_available(annotations: Collection[str], truth: str | None) -> tuple[str, ...]:
    """Return the annotations that a real video is asked for."""
    if isinstance(annotations, str) and annotations == "all":
        annotations = () if truth is None else _POSSIBLE
    checked = check_annotations(annotations)
    impossible = [name for name in checked if name not in _POSSIBLE]
    if impossible:
        raise ValueError(
            f"annotations of a real video must be out of {_POSSIBLE}, got {impossible[0]!r}: it "
            "has no truth for that; give 'all' for all that it has"
        )
    if checked and truth is None:
        raise ValueError(f"annotations must be () when truth is None, got {checked}")
    return checked


class FrameCache:
    """Windows of frames and masks; the frames that were used last are kept.

    Of a frame, only the strips or tiles of its file are decoded that a window shows. Masks are
    decoded whole: their ids depend on the markers of the whole frame. A pickle is empty.

    ``source``: The video; ``limit``: Bytes to keep at most; ``outline``: What outlines mean
    to which they are moved
    """

    def __init__(self, source: CTCSequence, limit: int, outline: Outline | None = None) -> None:
        """Start empty."""
        self.source, self.limit, self.outline = source, limit, outline
        self._kept: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the frames that are kept, as if they were decoded whole."""
        return sum(one.nbytes for one in self._kept.values())

    def read_frame(self, number: int, rows: slice, columns: slice) -> Image:
        """Return a window of a frame, ``[rows, columns]`` in the dtype of the file."""
        with self._lock:
            lazy = self._get("frame", number, self.source.partial_frame)
            window: Image = lazy.read_window(rows, columns)
            return window

    def read_masks(self, number: int) -> Image:
        """Return the masks of a frame, ``[H, W]``; do not change them."""
        with self._lock:
            masks: Image = self._get("masks", number, self._load_masks)
            return masks

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the decoded frames out of a pickle."""
        return FrameCache, (self.source, self.limit, self.outline)

    def _get(self, kind: str, number: int, load: Callable[[int], Any]) -> Any:
        image = self._kept.pop((kind, number), None)
        if image is None:
            image = load(number)
        if image.nbytes <= self.limit:
            self._kept[kind, number] = image
            while self.nbytes > self.limit:
                del self._kept[next(iter(self._kept))]
        return image

    def _load_masks(self, number: int) -> Image:
        annotated = self.source.masks(number)
        if annotated is None:
            raise ValueError("the frame has no masks")
        masks: Image = annotated
        if self.outline is not None:
            masks = move_outlines(self.source.frame(number), annotated, self.outline)
        # 16 bits, where ids allow it, are half the memory.
        return masks if masks.max(initial=0) > np.iinfo(np.uint16).max else masks.astype(np.uint16)


def make_windows(
    spec: WindowSpec, cache: FrameCache, annotations: Sequence[str]
) -> tuple[Windows, int]:
    """Return the windows of a video, and the frames of each."""
    source, border, (height, width) = cache.source, spec.border, spec.size
    rows, columns = field = find_field(source.shape, border, spec.size)
    used = _list_used_frames(source, spec)
    are_tracks = len(source.tracks) or source.truth == "TRA" or spec.frames == 1
    if "tracks" in annotations and not are_tracks:
        raise ValueError(
            f"annotations must be without 'tracks' for sequence {source.name!r} in "
            f"{source.folder}: it has no man_track.txt, and labels of truth={source.truth!r} need "
            "not be the same nucleus in two frames. Give annotations=('masks',), or frames=1"
        )
    have = set(source.mask_names).intersection(used) if annotations else set(used)
    if spec.frames is None or spec.follows:
        return _make_track_windows(spec, cache, used)
    times = range(0, spec.frames * spec.stride, spec.stride)
    starts = [first for first in used if have.issuperset(first + time for time in times)]
    _check_starts(starts, spec, source, used)
    if spec.windows == "random":
        count = math.ceil(len(used) * rows * columns / (spec.frames * height * width))
        room = rows - height + 1, columns - width + 1
        return RandomWindows(count, spec.seed, starts, times, border, room), spec.frames
    firsts = _tile_frames(spec, spec.frames, used, have)
    tops, lefts = (
        tile_starts(total, side, overlap)
        for total, side, overlap in zip(field, spec.size, spec.overlap[1:], strict=True)
    )
    windows = [
        Window(tuple(first + time for time in times), ((border + y, border + x),) * len(times))
        for first, y, x in itertools.product(firsts, tops, lefts)
    ]
    return ListedWindows(windows), spec.frames


def find_field(shape: tuple[int, int], border: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the field of interest; refuse windows that do not fit into it."""
    field = shape[0] - 2 * border, shape[1] - 2 * border
    if size[0] > field[0] or size[1] > field[1]:
        raise ValueError(
            f"size must fit into the field of interest of {field} pixels (frames of {shape} less a "
            f"border of {border} on each side), got {size}; give a smaller size or border"
        )
    return field


def count_rows(windows: Windows, cache: FrameCache) -> int:
    """Return how many nuclei no window exceeds; one may go and come back in every other frame."""
    source, ids = cache.source, dict[int, npt.NDArray[np.integer]]()
    spans = (
        {window.frames for window in windows.windows}
        if isinstance(windows, ListedWindows)
        else {tuple(start + time for time in windows.times) for start in windows.starts}
    )
    for number in {number for span in spans for number in span}:
        if source.truth == "TRA" and len(source.tracks):
            ids[number] = list_alive(source.tracks, number)
        else:
            ids[number] = np.flatnonzero(np.bincount(cache.read_masks(number).ravel())[1:])
    most = 1
    for span in spans:
        _, counts = np.unique(np.concatenate([ids[number] for number in span]), return_counts=True)
        most = max(most, int(((counts + 1) // 2).sum()))
    return most


def _list_used_frames(source: CTCSequence, spec: WindowSpec) -> range:
    first, end = source.numbers[0], source.numbers[-1] + 1
    low = as_int("start", spec.start, least=0)
    high = end if spec.stop is None else as_int("stop", spec.stop, least=1)
    if not low < high <= end or high <= first:
        raise ValueError(
            f"start and stop must be frame numbers with start < stop <= {end} in a video of frames "
            f"{first} to {end - 1}, got start={low} and stop={high}"
        )
    return range(max(low, first), high)


def _check_starts(
    starts: Sequence[int], spec: WindowSpec, source: CTCSequence, used: range
) -> None:
    """Refuse arguments that leave no window."""
    frames, stride = spec.frames or 1, spec.stride
    if (frames - 1) * stride >= len(used):
        apart = f" with stride={stride}" if stride > 1 else ""
        raise ValueError(
            f"frames must be at most the {-(-len(used) // stride)} frames in use{apart}, got "
            f"{frames}; give fewer frames, or another start, stop or stride"
        )
    if not starts:
        raise ValueError(
            f"frames={frames} is too long: nowhere in frames {used.start} to {used.stop - 1} has "
            f"truth={source.truth!r} masks in {frames} frames in a row. Give fewer frames, another "
            "truth, or annotations=()"
        )


def _tile_frames(spec: WindowSpec, frames: int, used: range, have: set[int]) -> list[int]:
    """Return first frames of windows that show every frame there is."""
    starts, alone = [], []
    for phase in range(spec.stride):
        for run in _find_runs(used[phase :: spec.stride], have):
            if len(run) < frames:
                alone += run
            else:
                starts += [run[place] for place in tile_starts(len(run), frames, spec.overlap[0])]
    if alone:
        raise ValueError(
            f"windows='grid' must show every frame, but {len(alone)} of them (the first is frame "
            f"{min(alone)}) are not part of {frames} frames in a row, stride={spec.stride}, that "
            "have what is asked for; give fewer frames, a smaller stride, another start or stop, "
            "another truth, or annotations=()"
        )
    return sorted(starts)


def tile_starts(total: int, size: int, overlap: int) -> list[int]:
    """Return where pieces of a length begin that cover a whole; the last one ends with it.

    Examples:
        >>> tile_starts(10, 4, 0), tile_starts(10, 4, 1), tile_starts(4, 4, 0)
        ([0, 4, 6], [0, 3, 6], [0])
    """
    return [*range(0, total - size, size - overlap), total - size]


def _find_runs(numbers: Iterable[int], have: set[int]) -> list[list[int]]:
    """Return the numbers that there are, in lists that no missing one interrupts."""
    groups = itertools.groupby(numbers, have.__contains__)
    return [list(group) for is_there, group in groups if is_there]


def _make_track_windows(
    spec: WindowSpec, cache: FrameCache, used: range
) -> tuple[ListedWindows, int]:
    """Return one window for each nucleus or family, several where it lives longer than a clip.

    Each begins in a frame in which the nucleus is visible. The nucleus is in its middle, as far as
    the field of interest allows; when the nucleus is gone, the window stays.
    """
    source, border = cache.source, spec.border
    if source.truth is None or not len(source.tracks):
        lacks = "no masks (truth=None)" if source.truth is None else "no man_track.txt"
        raise ValueError(
            f"windows={spec.windows!r} needs masks and tracks, and sequence {source.name!r} in "
            f"{source.folder} has {lacks}; give windows='random' or 'grid'"
        )
    field = border, border, source.shape[0] - border, source.shape[1] - border
    have = sorted(set(source.mask_names).intersection(used))
    ids = np.sort(source.tracks[:, 0]).tolist()
    boxes = _find_boxes(((number, cache.read_masks(number)) for number in have), ids, field)
    groups = [[one] for one in ids]
    if spec.windows == "lineages":
        groups = group_families(source.tracks)
    lives = []
    for group in groups:
        seen = {number for one in group for number in boxes[one]}
        numbers = range(min(seen), max(seen) + 1, spec.stride) if seen else ()
        lives += [(group, run) for run in _find_runs(numbers, seen)]
    if not lives:
        raise ValueError(
            "windows must follow nuclei, but no track of man_track.txt has a mask in the frames "
            "and the field of interest in use; give windows='random', another truth, start, stop "
            "or border"
        )
    frames, overlap = spec.frames or max(len(run) for _, run in lives), spec.overlap[0]
    windows = []
    for group, run in lives:
        for place in range(0, max(len(run) - overlap, 1), frames - overlap):
            numbers = range(run[place], run[place] + frames * spec.stride, spec.stride)
            shown = tuple(itertools.takewhile(set(have).__contains__, numbers))
            corners: list[tuple[int, int]] = []
            for number in shown:
                near = [boxes[one][number] for one in group if number in boxes[one]]
                corners.append(_place_window(near, spec.size, field) if near else corners[-1])
            track = next(one for one in group if shown[0] in boxes[one])
            windows.append(Window(shown, tuple(corners), track))
    return ListedWindows(windows), frames


def _place_window(boxes: Sequence[Box], size: tuple[int, int], field: Box) -> tuple[int, int]:
    """Return the corner of a window that holds the first box and others as far as they fit."""
    union = boxes[0]
    for box in boxes[1:]:
        top, left = (min(union[axis], box[axis]) for axis in (0, 1))
        bottom, right = (max(union[axis], box[axis]) for axis in (2, 3))
        if bottom - top <= size[0] and right - left <= size[1]:
            union = top, left, bottom, right
    y, x = (
        min(max((union[axis] + union[axis + 2] - size[axis]) // 2, field[axis]),
            field[axis + 2] - size[axis])
        for axis in (0, 1)
    )  # fmt: skip
    return y, x


def _find_boxes(
    masks: Iterable[tuple[int, Image]], ids: Sequence[int], field: Box
) -> dict[int, dict[int, Box]]:
    """Find nuclei in the field of interest."""
    top, left, bottom, right = field
    boxes: dict[int, dict[int, Box]] = {one: {} for one in ids}
    for number, mask in masks:
        labels, inverse = np.unique(mask[top:bottom, left:right], return_inverse=True)
        slices = ndimage.find_objects(inverse.reshape(bottom - top, right - left) + 1)
        for label, (rows, columns) in zip(labels.tolist(), slices, strict=True):
            if label in boxes:
                y, x, y_end, x_end = rows.start, columns.start, rows.stop, columns.stop
                boxes[label][number] = top + y, left + x, top + y_end, left + x_end
    return boxes
