"""Windows that follow a nucleus, or a family of nuclei, through a real video."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.datasets.windows import Window

Box = tuple[int, int, int, int]
"""Top, left, bottom and right of a nucleus in pixels; the far edges are exclusive."""

Places = Mapping[int, Mapping[int, Box]]
"""Where a nucleus is, by id and number of the frame."""


@dataclass(frozen=True)
class FollowingWindows:
    """One window for each nucleus or family, several where it lives longer than a clip.

    Each begins in a frame in which the nucleus is visible. The middle of the window is that of the
    nucleus, as far as the field of interest allows; when the nucleus is gone, the window stays.

    Attributes:
        windows: The windows, by nucleus or family and then by time.
    """

    windows: Sequence[Window]

    @property
    def count(self) -> int:
        """How many windows there are."""
        return len(self.windows)

    def window(self, index: int, epoch: int) -> Window:
        """Return window ``index``, 0 or more; after the last comes the first again."""
        return self.windows[index % self.count]


@dataclass(frozen=True)
class Follower:
    """What decides about the windows of one data set.

    Attributes:
        frames: Frames of a clip; None: as many as the longest needs.
        stride: From one of its frames to the next.
        overlap: Frames that the clips of one nucleus share.
        size: Height and width of a window.
        field: First row, first column, end of the rows and end of the columns of interest.
        have: Numbers of the frames in use that have masks.
    """

    frames: int | None
    stride: int
    overlap: int
    size: tuple[int, int]
    field: Box
    have: frozenset[int]

    def follow(
        self, groups: Sequence[Sequence[int]], places: Places
    ) -> tuple[FollowingWindows, int]:
        """Return the windows of groups of nuclei, and the frames of each.

        Args:
            groups: Ids of the nuclei that one window follows together, the most important first.
            places: Where they are.

        Returns:
            The windows, and the number of frames of a clip.

        Raises:
            ValueError: If none of the nuclei is ever visible.
        """
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
        return FollowingWindows(tuple(found)), frames

    def _lives(self, group: Sequence[int], places: Places) -> list[list[int]]:
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

    def _window(self, group: Sequence[int], first: int, frames: int, places: Places) -> Window:
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


def families(tracks: npt.NDArray[np.integer]) -> list[list[int]]:
    """Return the ids of every family, the founder first and then branch by branch.

    Args:
        tracks: Rows of id, first frame, last frame and parent, ``[n, 4]``.

    Returns:
        One list a family, ordered by the id of the founder.

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


def find_places(
    masks: Iterable[tuple[int, npt.NDArray[np.integer]]], ids: Iterable[int], field: Box
) -> Places:
    """Find nuclei in the field of interest.

    Args:
        masks: Numbers of frames and their masks ``[H, W]``, under the ids of tracks.
        ids: The nuclei.
        field: First row, first column, end of the rows and end of the columns of interest.

    Returns:
        The box of the visible part of each, by id and number of the frame.
    """
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
