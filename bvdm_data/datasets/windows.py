"""Windows of a real video: which frames and pixels of it a clip shows."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from bvdm_data.datasets.arguments import check_whole_number
from bvdm_data.randomness import stream

WINDOWS = ("random", "grid", "tracks", "lineages")
"""How windows may be chosen."""


@dataclass(frozen=True)
class Window:
    """What a clip shows of a video.

    Attributes:
        frames: Numbers of the frames, as in their file names. Where the video ends before the
            clip they are fewer than its frames.
        corners: Row and column of the upper left pixel, in each of these frames.
        track: Id in ``man_track.txt`` of the nucleus that the window follows, or of the first
            nucleus of the family; 0 where it follows none.
    """

    frames: tuple[int, ...]
    corners: tuple[tuple[int, int], ...]
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
    """Windows at random places, a pure function of seed, epoch and index.

    Attributes:
        count: How many hold as many pixels as the field of interest.
        seed: Seed of the places.
        starts: Numbers of the frames that a window may begin with.
        times: Where its frames are, counted from its first.
        border: Width of the band of pixels that is left out.
        room: How many places there are for a window, down and across.
    """

    count: int
    seed: int
    starts: Sequence[int]
    times: Sequence[int]
    border: int
    room: tuple[int, int]

    def window(self, index: int, epoch: int) -> Window:
        """Return window ``index``, 0 or more, of an epoch."""
        generator = stream(self.seed, "real", epoch, index)
        place, down, right = (
            int(torch.randint(choice, (), generator=generator))
            for choice in (len(self.starts), *self.room)
        )
        first, corner = self.starts[place], (self.border + down, self.border + right)
        return Window(tuple(first + time for time in self.times), tuple(corner for _ in self.times))


@dataclass(frozen=True)
class GridWindows:
    """Windows that cover the field of interest, ordered by first frame, then row, then column.

    Attributes:
        starts: Numbers of the first frames.
        times: Where the frames of a window are, counted from its first.
        tops: Their upper rows.
        lefts: Their left columns.
    """

    starts: Sequence[int]
    times: Sequence[int]
    tops: Sequence[int]
    lefts: Sequence[int]

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


def random_starts(used: range, have: Iterable[int], times: Sequence[int]) -> tuple[int, ...]:
    """Return the first frames of all windows that show only frames there are.

    Args:
        used: Numbers of the frames in use.
        have: Those that have what a clip must show.
        times: Where the frames of a window are, counted from its first.

    Returns:
        Their numbers, ascending.
    """
    there = set(have)
    last = used.stop - 1 - times[-1]
    return tuple(
        one for one in range(used.start, last + 1) if there.issuperset(one + t for t in times)
    )


def grid_starts(
    used: range, have: Iterable[int], frames: int, stride: int, overlap: int
) -> tuple[int, ...]:
    """Return first frames of windows that show every frame there is.

    Args:
        used: Numbers of the frames in use.
        have: Those that have what a clip must show.
        frames: Frames of a window.
        stride: From one of its frames to the next.
        overlap: Frames that a window shares at least with the one after it.

    Returns:
        Their numbers, ascending.

    Raises:
        ValueError: If a frame fits into no window.
    """
    there, starts, alone = set(have), [], []
    for phase in range(stride):
        for run in _runs(used[phase::stride], there):
            if len(run) < frames:
                alone += run
            else:
                starts += [run[place] for place in steps(len(run), frames, overlap)]
    if alone:
        raise ValueError(
            f"windows='grid' must show every frame, but {len(alone)} of them (the first is frame "
            f"{min(alone)}) are not part of {frames} frames in a row, stride={stride}, that have "
            "what is asked for; give fewer frames, a smaller stride, another start or stop, "
            "another truth, or annotations=()"
        )
    return tuple(sorted(starts))


def steps(total: int, size: int, overlap: int) -> list[int]:
    """Return where pieces of a length begin that cover a whole; the last one ends with it.

    Args:
        total: Length of the whole, at least size.
        size: Length of a piece.
        overlap: What a piece shares at least with the next one; less than size.

    Returns:
        The beginnings, ascending from 0.

    Examples:
        >>> steps(10, 4, 0), steps(10, 4, 1), steps(4, 4, 0)
        ([0, 4, 6], [0, 3, 6], [0])
    """
    return [*range(0, total - size, size - overlap), total - size]


def check_windows(windows: str) -> str:
    """Return how windows are chosen.

    Args:
        windows: One of ``WINDOWS``.

    Returns:
        The same.

    Raises:
        ValueError: If it is none of them.
    """
    if windows not in WINDOWS:
        raise ValueError(f"windows must be one of {WINDOWS}, got {windows!r}")
    return windows


def check_overlap(
    overlap: Sequence[int], windows: str, clip: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Return how many frames, rows and columns neighbouring windows share.

    Args:
        overlap: Three whole numbers.
        windows: How windows are chosen.
        clip: Frames, height and width of a window.

    Returns:
        The numbers.

    Raises:
        TypeError: If it is not three whole numbers.
        ValueError: If a number is negative, or not smaller than the window, or windows are random.
    """
    if isinstance(overlap, str) or not isinstance(overlap, Sequence) or len(overlap) != 3:
        raise TypeError(f"overlap must be (frames, rows, columns), got {overlap!r}")
    shared = tuple(check_whole_number("overlap", one, least=0) for one in overlap)
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


def clips_that_hold(field: tuple[int, int], frames_used: int, clip: tuple[int, int, int]) -> int:
    """Return how many clips hold as many pixels as the field of interest in all its frames."""
    return math.ceil(frames_used * math.prod(field) / math.prod(clip))


def nearest_ancestors(tracks: npt.NDArray[np.integer], shown: Sequence[int]) -> dict[int, int]:
    """Return the parent of each track, jumping over generations that live between two frames.

    Args:
        tracks: Rows of id, first frame, last frame and parent, ``[n, 4]``.
        shown: Numbers of the frames that a clip shows.

    Returns:
        By id of a track that lives in one of these frames: the nearest ancestor that does so, or
        else the first of all; 0 for none.

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
