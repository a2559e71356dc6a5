"""From the arguments of ``CTCVideos`` to its windows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from bvdm_data.clip import check_annotations
from bvdm_data.datasets.arguments import check_frames, check_whole_number
from bvdm_data.datasets.ctc import CTCSequence
from bvdm_data.datasets.following import Follower, families, find_places
from bvdm_data.datasets.frame_cache import FrameCache
from bvdm_data.datasets.windows import (
    GridWindows,
    RandomWindows,
    Windows,
    check_overlap,
    check_windows,
    clips_that_hold,
    grid_starts,
    random_starts,
    steps,
)

_POSSIBLE = ("masks", "tracks", "boxes", "centroids")


@dataclass
class Choice:
    """What the user wants to see of a video; checked, as far as that needs no video.

    Attributes:
        windows: How windows are chosen.
        frames: Frames of a clip, or None.
        size: Height and width of a clip in pixels.
        stride: From one frame of a clip to the next.
        overlap: Frames, rows and columns that neighbouring windows share.
        border: Width of the band of pixels that is left out.
        start: Number of the first frame used.
        stop: Number after that of the last frame used, or None.
        seed: Seed of random windows.

    Raises:
        TypeError: If one is of the wrong type.
        ValueError: If one is out of its range.
    """

    windows: str
    frames: int | None
    size: tuple[int, int]
    stride: int
    overlap: Sequence[int]
    border: int
    start: int
    stop: int | None
    seed: int

    @property
    def follows(self) -> bool:
        """Whether windows follow nuclei."""
        return self.windows in ("tracks", "lineages")

    def __post_init__(self) -> None:
        """Check the choice."""
        self.windows = check_windows(self.windows)
        self.stride = check_whole_number("stride", self.stride, least=1)
        if self.frames is not None:
            self.frames = check_frames(self.frames)
        elif not self.follows:
            raise TypeError(
                f"frames must be a whole number, got None, with windows={self.windows!r}; None is "
                "for windows='tracks' or 'lineages'"
            )
        self.overlap = check_overlap(self.overlap, self.windows, (self.frames or 1, *self.size))


def choose_windows(
    choice: Choice, cache: FrameCache, annotations: Sequence[str]
) -> tuple[Windows, int]:
    """Return the windows of a video, and the frames of each.

    Args:
        choice: What the user wants.
        cache: The video; its masks are read where windows follow nuclei.
        annotations: What must be there in all frames.

    Returns:
        The windows and the number of frames of a clip.

    Raises:
        ValueError: If the video has no such windows.
    """
    source, (height, width) = cache.source, choice.size
    room = _room(source.shape, choice.border, choice.size)
    used = _frames_used(source, choice.start, choice.stop)
    _check_tracks(choice, source, annotations)
    have = set(source.mask_names).intersection(used) if annotations else set(used)
    if choice.frames is None or choice.follows:
        return _following(choice, cache, used)
    times = range(0, choice.frames * choice.stride, choice.stride)
    starts = random_starts(used, have, times)
    _check_starts(starts, choice, source, used)
    if choice.windows == "grid":
        frames, rows, columns = choice.overlap
        starts = grid_starts(used, have, choice.frames, choice.stride, frames)
        tops = [choice.border + top for top in steps(room[0] + height - 1, height, rows)]
        lefts = [choice.border + left for left in steps(room[1] + width - 1, width, columns)]
        return GridWindows(starts, times, tops, lefts), choice.frames
    field = (room[0] + height - 1, room[1] + width - 1)
    count = clips_that_hold(field, len(used), (choice.frames, height, width))
    return RandomWindows(count, choice.seed, starts, times, choice.border, room), choice.frames


def check_possible(annotations: Collection[str], truth: str | None) -> tuple[str, ...]:
    """Return the annotations that a real video is asked for.

    Args:
        annotations: Keys of a clip.
        truth: Where masks come from; None: nowhere.

    Returns:
        The same, in their order.

    Raises:
        TypeError: If it is a single string.
        ValueError: If one is not known, or a real video has none such.
    """
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


def _check_tracks(choice: Choice, source: CTCSequence, annotations: Sequence[str]) -> None:
    """Refuse to call mere labels tracks."""
    told = len(source.tracks) or source.truth == "TRA" or choice.frames == 1
    if "tracks" in annotations and not told:
        raise ValueError(
            f"annotations must be without 'tracks' for sequence {source.name!r} in "
            f"{source.folder}: it has no man_track.txt, and labels of truth={source.truth!r} need "
            "not be the same nucleus in two frames. Give annotations=('masks',), or frames=1"
        )


def _following(choice: Choice, cache: FrameCache, used: range) -> tuple[Windows, int]:
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
    places = find_places(((number, cache.masks(number)) for number in have), ids, field)
    groups = [[one] for one in ids.tolist()]
    if choice.windows == "lineages":
        groups = families(source.tracks)
    follower = Follower(
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
    low = check_whole_number("start", start, least=0)
    high = end if stop is None else check_whole_number("stop", stop, least=1)
    if not low < high <= end or high <= first:
        raise ValueError(
            f"start and stop must be frame numbers with start < stop <= {end} in a video of frames "
            f"{first} to {end - 1}, got start={low} and stop={high}"
        )
    return range(max(low, first), high)


def _check_starts(starts: Sequence[int], choice: Choice, source: CTCSequence, used: range) -> None:
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
