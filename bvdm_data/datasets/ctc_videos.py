"""CTCVideos: clips cut out of a real video of the Cell Tracking Challenge."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from bvdm_data.clip import (
    DEFAULT_MAX_CELLS,
    CameraScale,
    Clip,
    TooManyNucleiError,
    annotate_masks,
    split_gaps,
)
from bvdm_data.datasets.ctc import guess_scale, read_sequence
from bvdm_data.datasets.stream import SharedEpoch
from bvdm_data.datasets.tracks import find_visible_parents
from bvdm_data.datasets.transforms import Transform, apply_transform, list_required_keys
from bvdm_data.datasets.windows import (
    FrameCache,
    Window,
    WindowSpec,
    check_annotations_available,
    make_windows,
)
from bvdm_data.validate import (
    as_index,
    as_int,
    check_epoch,
    check_length,
    check_max_cells,
    check_scale,
    check_seed,
    check_size,
    check_transform,
)

DEFAULT_BORDER = 25
"""Width in pixels of the band without complete truth; the challenge's own for Fluo-N2DL-HeLa."""

CACHE_BYTES = 288 * 2**20
"""Decoded images that a process keeps; 97 frames of 700 x 1100 pixels with their masks."""


class CTCVideos(Dataset[Clip]):
    """Windows, in space and time, of one annotated real video.

    Clip ``i`` of epoch ``e`` is a pure function of the files, the arguments, the seed, ``e`` and
    ``i``. Nuclei cut by the edge of the window are part of it; ids count from 1 in each clip.

    Windows stay ``border`` pixels away from the edge of the frame. Nuclei that touch the edge are
    mostly without a mask (the challenge does not score them), so that a network would learn
    them as background.

    Which windows there are is said by ``windows``:

    - ``"random"``: anywhere; other places in every epoch.
    - ``"grid"``: a cover of the video, for testing. Every pixel of the field of interest, in every
      frame in use that has what is asked for, is shown at least once, in the order of first frame,
      row, column.
    - ``"tracks"``: one nucleus after the other, from its first frame to its last. Its window moves
      with it, so that its place in the clip tells nothing of its motion. It has id 1. A clip
      begins in the nucleus's first frame; when the nucleus has divided or gone, the window stays
      where it is, and after the end of the video frames and masks are 0. A nucleus that lives
      longer than ``frames`` has several clips.
    - ``"lineages"``: the same for a founder with all its descendants. The window keeps the family
      in its middle; where it is too small for all, it goes with the branch of the first daughters.

    But for ``"random"`` the windows depend on neither seed nor epoch; after the last one,
    :meth:`clip` begins anew.

    Nothing but names of files, the header of the first frame, ``man_track.txt`` and, for a guess of
    the scale, three frames are read at first; ``"tracks"`` and ``"lineages"`` read all masks once,
    to know where nuclei are.

    :meth:`set_epoch` also reaches the workers of a loader with ``persistent_workers=True``.

    Args:
        root: Folder of the data set, for example ``Fluo-N2DL-HeLa``; see :func:`read_sequence`.
        sequence: Name of the video, for example ``"01"``.
        frames: Frames of a clip. None, with tracks or lineages: as many as the longest has.
        size: Height and width of a clip in pixels; one number makes a square.
        length: Clips an epoch. None: as many as hold the pixels of the field of interest once, or
            as there are windows.
        seed: Seed of random windows, and of what ``transform`` draws.
        annotations: Keys beside ``video``: ``"masks"``, ``"tracks"``, ``"boxes"``,
            ``"centroids"``. Without ``man_track.txt``, ids are the labels of the files, which are
            tracks in the tracking truth alone; ``"tracks"`` needs one or the other.
        max_cells: Rows of the padded tables.
        border: Width in pixels of the band at the edge of the frame that is left out; None: 25,
            which fits Fluo-N2DL-HeLa (the challenge has 0, 25 or 50, by data set).
        truth: Where the masks come from; see :func:`read_sequence`.
        scale: How counts become grey values. None: :func:`guess_scale`.
        start: Number of the first frame used.
        stop: Number after that of the last frame used; None: to the end.
        stride: From one frame of a clip to the next: 1 for all frames, 2 for every other one.
            Generations that live in between are jumped over in ``tracks``.
        windows: ``"random"``, ``"grid"``, ``"tracks"`` or ``"lineages"``.
        overlap: Frames, rows and columns that neighbouring windows of a grid share at least; of
            which the frames also hold for the clips of one long track or lineage.
        cache_bytes: Memory for decoded frames and masks, in each process; the ones used last are
            kept. 0: none.
        transform: Called on the finished clip, with ``video`` and ``masks`` as tv_tensors.
            Annotations follow where it moves pixels, or a :class:`TransformError` says that they
            cannot. The global random states that it draws from are set for each clip.

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
        stride: From one frame of a clip to the next.
        windows: How windows are chosen.
        overlap: Frames, rows and columns that neighbouring windows share.
        cache_bytes: Memory for decoded images.
        transform: What is called on the finished clip.

    Raises:
        FileNotFoundError: If the folder, the video or its truth is missing.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range, a real video has no such annotation, no
            window of that length has masks in all its frames, or a grid cannot show all.

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
        frames: int | None = 8,
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
        stride: int = 1,
        windows: str = "random",
        overlap: Sequence[int] = (0, 0, 0),
        cache_bytes: int = CACHE_BYTES,
        transform: Transform | None = None,
    ) -> None:
        """Check the arguments and find the files; see the class."""
        self.size = check_size(size)
        self.seed = check_seed(seed)
        self.max_cells = check_max_cells(max_cells)
        self.border = as_int("border", DEFAULT_BORDER if border is None else border, 0)
        self.transform = check_transform(transform)
        self.cache_bytes = as_int("cache_bytes", cache_bytes, 0)
        choice = WindowSpec(
            windows, frames, self.size, stride, overlap, self.border, start, stop, self.seed
        )
        self.stride, self.windows = choice.stride, choice.windows
        self.annotations = check_annotations_available(annotations, truth)
        if truth == "auto" and not (self.annotations or choice.follows):
            truth = None
        self.source = read_sequence(Path(root).expanduser().absolute(), sequence, truth)
        self._cache = FrameCache(self.source, self.cache_bytes)
        self._windows, self.frames = make_windows(choice, self._cache, self.annotations)
        self.overlap = choice.overlap
        self.length = check_length(length) or self._windows.count
        self.scale = check_scale(scale) or guess_scale(self.source)
        self._epoch = SharedEpoch()

    @property
    def epoch(self) -> int:
        """Number of the epoch, 0 at first."""
        return self._epoch.number

    def __len__(self) -> int:
        """Return the number of clips an epoch."""
        return self.length

    def __getitem__(self, index: SupportsIndex) -> Clip:
        """Return a clip of the epoch."""
        return self.clip(as_index(index, self.length))

    def clip(self, index: SupportsIndex) -> Clip:
        """Return clip ``index`` of an endless series of windows.

        Args:
            index: 0 or more.

        Returns:
            The clip, a pure function of (files, arguments, seed, epoch, index).

        Raises:
            IndexError: If index is negative.
            TooManyNucleiError: If there are more than max_cells nuclei in it.
            TransformError: If the transform fails.
            TypeError: If index is not a whole number.
            ValueError: If a file of the window is damaged.
        """
        window, number = self.window(index), _number(index)
        cuts = [self._cut(top, left) for top, left in window.corners]
        shown = list(zip(window.frames, cuts, strict=True))
        video = np.zeros((self.frames, *self.size), np.float32)
        images = [self._cache.frame(one, *cut) for one, cut in shown]
        video[: len(shown)] = self.scale.to_grey(np.stack(images))
        found: dict[str, Any] = {"video": torch.from_numpy(video)[:, None]}
        if self.annotations:
            found |= self._annotations(window, shown, number)
        found["index"] = torch.tensor(number)
        found["source"] = torch.tensor(0, dtype=torch.int8)
        return apply_transform(
            cast(Clip, found),
            self.transform,
            name=self._name,
            seed=self.seed,
            epoch=self.epoch,
            annotations=self.annotations,
        )

    def window(self, index: SupportsIndex) -> Window:
        """Return which frames and pixels of the video clip ``index`` shows.

        Args:
            index: 0 or more.

        Returns:
            The window, ahead of any transform.

        Raises:
            IndexError: If index is negative.
            TypeError: If index is not a whole number.

        Examples:
            Sew what a network has made of the clips of a grid together again::

                for index in range(len(videos)):
                    window = videos.window(index)
                    for frame, (top, left) in zip(window.frames, window.corners):
                        ...
        """
        return self._windows.window(_number(index), self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Let the clips be those of another epoch, in all workers.

        Args:
            epoch: 0 or more.

        Raises:
            TypeError: If epoch is not a whole number.
            ValueError: If epoch is negative.
        """
        self._epoch.set(check_epoch(epoch))

    @property
    def _name(self) -> str:
        return f"CTCVideos({str(self.source.folder)!r}, sequence={self.source.name!r})"

    def _cut(self, top: int, left: int) -> tuple[slice, slice]:
        return slice(top, top + self.size[0]), slice(left, left + self.size[1])

    def _annotations(
        self, window: Window, shown: Sequence[tuple[int, tuple[slice, slice]]], number: int
    ) -> dict[str, Any]:
        masks = np.zeros((self.frames, *self.size), np.int32)
        for place, (frame, cut) in enumerate(shown):
            masks[place] = self._cache.masks(frame)[cut]
        parents = find_visible_parents(self.source.tracks, window.frames)
        if window.track > 1:  # its id is the smallest, so that the clip counts from it
            masks, parents = _exchanged(masks, parents, window.track)
        renamed, table, _ = split_gaps(masks, parents)
        wanted = list_required_keys(self.annotations, self.transform)
        try:
            return annotate_masks(renamed, table, wanted, self.max_cells)
        except TooManyNucleiError as error:
            raise TooManyNucleiError(
                f"{error}. It is clip {number} of epoch {self.epoch} of {self._name}; to make it "
                f"alone: videos.set_epoch({self.epoch}); videos.clip({number})"
            ) from error


def _number(index: SupportsIndex) -> int:
    number = as_int("index", index)
    if number < 0:
        raise IndexError(f"index must be 0 or more, got {number}")
    return number


def _exchanged(
    masks: npt.NDArray[np.int32], parents: dict[int, int], track: int
) -> tuple[npt.NDArray[np.int32], dict[int, int]]:
    """Let a track and the one with id 1 change their ids."""
    other = {1: track, track: 1}
    changed = np.where(masks == track, 1, np.where(masks == 1, track, masks))
    return changed.astype(np.int32), {
        other.get(one, one): other.get(parent, parent) for one, parent in parents.items()
    }
