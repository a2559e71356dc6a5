"""CTCVideos: clips cut out of a real video of the Cell Tracking Challenge."""

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from bvdm_data.camera_scale import CameraScale
from bvdm_data.clip import DEFAULT_MAX_CELLS, Clip, annotated, check_annotations, unbroken_tracks
from bvdm_data.datasets.arguments import (
    check_epoch,
    check_frames,
    check_length,
    check_max_cells,
    check_place,
    check_scale,
    check_seed,
    check_size,
    check_transform,
    check_whole_number,
)
from bvdm_data.datasets.ctc import CTCSequence, guess_scale, read_sequence
from bvdm_data.datasets.transform import Transform, transformed
from bvdm_data.randomness import stream

DEFAULT_BORDER = 25
"""Width in pixels of the band without complete truth; the challenge's own for Fluo-N2DL-HeLa."""

CACHE_BYTES = 288 * 2**20
"""Decoded images that a process keeps; 97 frames of 700 x 1100 pixels with their masks."""

_POSSIBLE = ("masks", "tracks", "boxes", "centroids")

Frame = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer] | None]


class CTCVideos(Dataset[Clip]):
    """Random windows, in space and time, of one annotated real video.

    Clip ``i`` of epoch ``e`` is a pure function of the files, the arguments, the seed, ``e`` and
    ``i``. Nuclei cut by the edge of the window are part of it; ids count from 1 in each clip.

    Windows stay ``border`` pixels away from the edge of the frame. Nuclei that touch the edge are
    mostly without a mask (the challenge does not score them), so that a network would learn
    them as background.

    A loader with ``persistent_workers=True`` holds copies of the data set that do not hear of
    :meth:`set_epoch`.

    Args:
        root: Folder of the data set, for example ``Fluo-N2DL-HeLa``; see :func:`read_sequence`.
        sequence: Name of the video, for example ``"01"``.
        frames: Frames of a clip.
        size: Height and width of a clip in pixels; one number makes a square.
        length: Clips an epoch. None: as many as hold the pixels of the field of interest once.
        seed: Seed of the windows.
        annotations: Keys beside ``video``: ``"masks"``, ``"tracks"``, ``"boxes"``,
            ``"centroids"``.
        max_cells: Rows of the padded tables.
        border: Width in pixels of the band at the edge of the frame that is left out; None: 25.
        truth: Where the masks come from; see :func:`read_sequence`.
        scale: How counts become grey values. None: :func:`guess_scale`.
        start: Number of the first frame used.
        stop: Number after that of the last frame used; None: to the end.
        transform: Called on the finished clip, with ``video`` and ``masks`` as tv_tensors. One
            that moves pixels makes ``tracks``, ``flow``, ``boxes`` and ``centroids`` untrue; one
            that draws from the global random state makes clips differ from call to call.

    Attributes:
        source: The video's :class:`CTCSequence`.
        frames: Frames of a clip.
        size: Height and width of a clip in pixels.
        length: Clips an epoch.
        seed: Seed of the windows.
        annotations: Keys of a clip beside ``video``.
        max_cells: Rows of the padded tables.
        border: Width in pixels of the band that is left out.
        scale: How counts become grey values.
        transform: What is called on the finished clip.
        epoch: Number of the epoch, 0 at first.

    Raises:
        FileNotFoundError: If the folder, the video or its truth is missing.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range, a real video has no such annotation, or no
            window of that length has masks in all its frames.

    Examples:
        The first 20 frames of a video, two clips at a time::

            real = CTCVideos("Fluo-N2DL-HeLa", sequence="01", stop=20)
            for clip in DataLoader(real, batch_size=2, shuffle=True):
                loss = net(clip["video"], clip["masks"])
    """

    def __init__(
        self,
        root: str | Path,
        *,
        sequence: str = "01",
        frames: int = 8,
        size: int | Sequence[int] = (256, 256),
        length: int | None = None,
        seed: int = 0,
        annotations: Collection[str] = ("masks", "tracks"),
        max_cells: int = DEFAULT_MAX_CELLS,
        border: int | None = None,
        truth: str | None = "auto",
        scale: CameraScale | None = None,
        start: int = 0,
        stop: int | None = None,
        transform: Transform | None = None,
    ) -> None:
        """Check the arguments and find the files; see the class."""
        self.frames = check_frames(frames)
        self.size = check_size(size)
        self.seed = check_seed(seed)
        self.annotations = _check_possible(annotations, truth)
        self.max_cells = check_max_cells(max_cells)
        self.border = check_whole_number("border", DEFAULT_BORDER if border is None else border, 0)
        self.transform = check_transform(transform)
        self.epoch = 0
        self.source = read_sequence(Path(root).expanduser().absolute(), sequence, truth)
        self._room = _room(self.source.shape, self.border, self.size)
        used = _frames_used(self.source, start, stop)
        self._starts = _window_starts(self.source, used, self.frames, bool(self.annotations))
        self.length = check_length(length) or self._once(len(used))
        self.scale = check_scale(scale) or guess_scale(self.source)
        self._parents: dict[int, int] = {int(row[0]): int(row[3]) for row in self.source.tracks}
        self._cache: OrderedDict[int, Frame] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of clips an epoch."""
        return self.length

    def __getitem__(self, index: SupportsIndex) -> Clip:
        """Return a clip of the epoch.

        Args:
            index: From 0 to ``len - 1``, or from ``-len`` to -1 to count from the end.

        Returns:
            The clip, as :meth:`clip` gives it.

        Raises:
            IndexError: If index is past the end.
            TypeError: If index is not a whole number.
        """
        return self.clip(check_place(index, self.length))

    def clip(self, index: SupportsIndex) -> Clip:
        """Return clip ``index`` of an endless series of random windows.

        Args:
            index: 0 or more.

        Returns:
            The clip, a pure function of (files, arguments, seed, epoch, index).

        Raises:
            IndexError: If index is negative.
            TooManyNucleiError: If there are more than max_cells nuclei in it.
            TypeError: If index is not a whole number.
            ValueError: If a file of the window is damaged.
        """
        number = check_whole_number("index", index)
        if number < 0:
            raise IndexError(f"index must be 0 or more, got {number}")
        first, top, left = self._window(number)
        rows, columns = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        images = [self._frame(first + offset) for offset in range(self.frames)]
        video = self.scale.to_grey(np.stack([image[rows, columns] for image, _ in images]))
        found: dict[str, Any] = {"video": torch.from_numpy(video)[:, None]}
        if self.annotations:
            masks = np.stack([mask[rows, columns] for _, mask in images if mask is not None])
            renamed, table, _ = unbroken_tracks(masks, self._parents)
            found |= annotated(renamed, table, self.annotations, self.max_cells)
        found["index"] = torch.tensor(number)
        found["source"] = torch.tensor(0, dtype=torch.int8)
        return transformed(cast(Clip, found), self.transform)

    def set_epoch(self, epoch: int) -> None:
        """Let the clips be those of another epoch.

        Args:
            epoch: 0 or more.

        Raises:
            TypeError: If epoch is not a whole number.
            ValueError: If epoch is negative.
        """
        self.epoch = check_epoch(epoch)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded images out of a pickle."""
        return {**self.__dict__, "_cache": OrderedDict()}

    def _once(self, frames_used: int) -> int:
        """Return how many clips hold as many pixels as the field of interest."""
        height, width = (side - 2 * self.border for side in self.source.shape)
        return math.ceil(frames_used * height * width / (self.frames * math.prod(self.size)))

    def _window(self, index: int) -> tuple[int, int, int]:
        """Return the number of the first frame, the first row and the first column."""
        generator = stream(self.seed, "real", self.epoch, index)
        choices = (len(self._starts), *self._room)
        place, down, right = (
            int(torch.randint(choice, (), generator=generator)) for choice in choices
        )
        return self._starts[place], self.border + down, self.border + right

    def _frame(self, number: int) -> Frame:
        """Return a frame and its masks, decoded; the oldest ones of the cache give way."""
        if number not in self._cache:
            image = self.source.frame(number)
            masks = _compact(self.source.masks(number)) if self.annotations else None
            room = CACHE_BYTES // (image.nbytes + (0 if masks is None else masks.nbytes))
            while self._cache and len(self._cache) >= max(room, 1):
                self._cache.popitem(last=False)
            self._cache[number] = image, masks
        self._cache.move_to_end(number)
        return self._cache[number]


def _compact(masks: npt.NDArray[np.int32] | None) -> npt.NDArray[np.integer] | None:
    """Store masks in 16 bits where their ids allow it: half the memory."""
    if masks is None or masks.max() > np.iinfo(np.uint16).max:
        return masks
    return masks.astype(np.uint16)


def _check_possible(annotations: Collection[str], truth: str | None) -> tuple[str, ...]:
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


def _window_starts(
    source: CTCSequence, used: range, frames: int, with_masks: bool
) -> tuple[int, ...]:
    """Return the first frames of all windows that may be cut."""
    if frames > len(used):
        raise ValueError(f"frames must be at most the {len(used)} frames in use, got {frames}")
    have = set(source.mask_names) if with_masks else set(used)
    starts = range(used.start, used.stop - frames + 1)
    whole = tuple(one for one in starts if have.issuperset(range(one, one + frames)))
    if not whole:
        raise ValueError(
            f"frames={frames} is too long: nowhere in frames {used.start} to {used.stop - 1} has "
            f"truth={source.truth!r} masks in {frames} frames in a row. Give fewer frames, another "
            "truth, or annotations=()"
        )
    return whole
