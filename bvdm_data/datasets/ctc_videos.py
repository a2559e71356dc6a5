"""CTCVideos: clips cut out of a real video of the Cell Tracking Challenge."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from bvdm_data.clip import CameraScale, Clip, TooManyNucleiError, annotate_masks, split_gaps
from bvdm_data.datasets.ctc import guess_scale, read_sequence
from bvdm_data.datasets.description import Described
from bvdm_data.datasets.sharding import SharedEpoch
from bvdm_data.datasets.tracks import find_visible_parents
from bvdm_data.datasets.transforms import (
    Transform,
    apply_transform,
    list_required_keys,
    name_transform,
)
from bvdm_data.datasets.windows import (
    FrameCache,
    Window,
    WindowSpec,
    check_annotations_available,
    count_rows,
    make_windows,
)
from bvdm_data.outlines import as_outline
from bvdm_data.system import isolate
from bvdm_data.validate import (
    as_index,
    as_int,
    as_number,
    check_epoch,
    check_length,
    check_max_cells,
    check_scale,
    check_seed,
    check_size,
    check_transform,
)

# Width in pixels of the band without complete truth; the challenge's own for Fluo-N2DL-HeLa.
DEFAULT_BORDER = 25
# Decoded images that a process keeps; 97 frames of 700 x 1100 pixels with their masks.
CACHE_BYTES = 288 * 2**20


class CTCVideos(Described, Dataset[Clip]):
    """Windows, in space and time, of one annotated real video.

    Clip ``i`` of epoch ``e`` is a pure function of the files, the arguments, the seed, ``e`` and
    ``i``. Nuclei cut by the edge of the window are part of it; ids count from 1 in each clip.

    Windows stay ``border`` pixels away from the edge of the frame. Most nuclei that touch the edge
    have no mask (the challenge does not score them): a network would learn them as background.

    ``windows`` chooses the windows:

    - ``"random"``: anywhere; other places in every epoch.
    - ``"grid"``: a cover of the video, for testing. Every pixel of the field of interest, in every
      frame in use that has what is asked for, is shown at least once, in the order of first frame,
      row, column.
    - ``"tracks"``: one nucleus after the other, from its first frame to its last. Its window moves
      with it, so that its place in the clip shows nothing of its motion. It has id 1. A clip
      begins in the nucleus's first frame; when the nucleus has divided or gone, the window stays
      where it is, and after the end of the video frames and masks are 0. A nucleus that lives
      longer than ``frames`` has several clips.
    - ``"lineages"``: the same for a founder with all its descendants. The window keeps the family
      in its middle; where it is too small for all, it follows the branch of the first daughters.

    All but ``"random"`` depend on neither seed nor epoch; after the last window, :meth:`clip`
    starts again with the first.

    At first, only names of files, the header of the first frame, ``man_track.txt`` and, to guess
    the scale, the frames in use are read; ``"tracks"`` and ``"lineages"`` read all masks once.

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
            ``"centroids"``, or ``"all"``. Without ``man_track.txt``, ids are the labels of the
            files, which are tracks in the tracking truth alone; ``"tracks"`` needs one or the
            other.
        max_cells: Rows of the padded tables; a clip with more nuclei is an error. None: as many as
            any window can need, for which the masks in use are read once.
        border: Width in pixels of the band at the edge of the frame that is left out; None: 25,
            which fits Fluo-N2DL-HeLa (the challenge has 0, 25 or 50, by data set).
        truth: Where the masks come from; see :func:`read_sequence`.
        outline: What an outline means: the share of the light of a nucleus' core that its light has
            there, to which all are moved as by :func:`~bvdm_data.outlines.move_outlines`, the same
            as of ``SyntheticHeLaVideos``. None: as annotated.
        scale: How counts become grey values. None: :func:`guess_scale` of the frames in use.
        start: Number of the first frame used.
        stop: Number after that of the last frame used; None: to the end.
        stride: From one frame of a clip to the next: 1 for all frames, 2 for every other one.
            ``tracks`` jumps over generations that live in between.
        windows: ``"random"``, ``"grid"``, ``"tracks"`` or ``"lineages"``.
        overlap: Frames, rows and columns that neighbouring windows of a grid share at least; the
            frames also hold for the clips of one long track or lineage.
        cache_bytes: Memory for decoded frames and masks, in each process; the ones used last are
            kept. 0: none.
        transform: Called on the finished clip, with ``video`` and ``masks`` as tv_tensors.
            Annotations follow where it moves pixels, or a :class:`TransformError` says that they
            cannot. The global random states that it draws from are set for each clip.

    Attributes:
        source: The video's :class:`CTCSequence`.
        frames, size, length, annotations, border, scale, overlap: As used, where an argument left
            it open.
        seed, max_cells, stride, windows, outline, cache_bytes, transform: As given.

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

    _ALWAYS = ("root", "sequence", "frames", "size", "length")

    @isolate()
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
        max_cells: int | None = None,
        border: int | None = None,
        truth: str | None = "auto",
        outline: float | Sequence[float] | None = None,
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
        self.border = as_int("border", DEFAULT_BORDER if border is None else border, 0)
        self.transform = check_transform(transform)
        self.cache_bytes = as_int("cache_bytes", cache_bytes, 0)
        self.outline = None if outline is None else as_outline(outline)
        spec = WindowSpec(
            windows, frames, self.size, stride, overlap, self.border, start, stop, self.seed
        )
        self._spec = spec
        self.stride, self.windows, self.overlap = spec.stride, spec.windows, spec.overlap
        self.annotations = check_annotations_available(annotations, truth)
        if truth == "auto" and not (self.annotations or spec.follows):
            truth = None
        self.source = read_sequence(Path(root).expanduser().absolute(), sequence, truth)
        # Windows and rows follow from ids and places alone, which need no moved outlines.
        cache = FrameCache(self.source, self.cache_bytes)
        self._windows, self.frames = make_windows(spec, cache, self.annotations)
        rows = max_cells
        if rows is None:
            rows = count_rows(self._windows, cache) if self.annotations else 1
        moved = FrameCache(self.source, self.cache_bytes, self.outline)
        self._cache = cache if self.outline is None else moved
        self.max_cells = check_max_cells(rows)
        self.length = check_length(length) or self._windows.count
        self.scale = check_scale(scale) or guess_scale(self.source.cut(start, stop))
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

    @isolate()
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
        window, number = self.window(index), as_number(index)
        height, width = self.size
        shown = [
            (frame, slice(top, top + height), slice(left, left + width))
            for frame, (top, left) in zip(window.frames, window.corners, strict=True)
        ]
        video = np.zeros((self.frames, *self.size), np.float32)
        images = [self._cache.read_frame(frame, rows, columns) for frame, rows, columns in shown]
        video[: len(shown)] = self.scale.to_grey(np.stack(images))
        clip: dict[str, Any] = {"video": torch.from_numpy(video)[:, None]}
        if self.annotations:
            clip |= self._annotate(window, shown, number)
        clip["index"] = torch.tensor(number)
        clip["source"] = torch.tensor(0, dtype=torch.int8)
        return apply_transform(
            cast(Clip, clip),
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
            Put together what a network has made of the clips of a grid::

                for index in range(len(videos)):
                    window = videos.window(index)
                    for frame, (top, left) in zip(window.frames, window.corners):
                        ...
        """
        return self._windows.get_window(as_number(index), self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, in all workers.

        Args:
            epoch: 0 or more.

        Raises:
            TypeError: If epoch is not a whole number.
            ValueError: If epoch is negative.
        """
        self._epoch.set(check_epoch(epoch))

    def _list_settings(self) -> dict[str, str]:
        """Return what clips follow from beside epoch and number, by name."""
        names = ("annotations", "scale", "outline")
        settings = {**asdict(self._spec), **{name: getattr(self, name) for name in names}}
        settings |= {"sequence": self.source.name, "transform": name_transform(self.transform)}
        return {name: str(setting) for name, setting in settings.items()}

    def _list_arguments(self) -> dict[str, Any]:
        given = super()._list_arguments() | {"root": self.source.folder, "start": self._spec.start}
        given |= {"sequence": self.source.name, "stop": self._spec.stop}
        filled_in = {"scale"} | ({"border"} if self.border == DEFAULT_BORDER else set())
        return {name: given[name] for name in given if name not in filled_in}

    @property
    def _name(self) -> str:
        return f"CTCVideos({str(self.source.folder)!r}, sequence={self.source.name!r})"

    def _annotate(
        self, window: Window, shown: Sequence[tuple[int, slice, slice]], number: int
    ) -> dict[str, Any]:
        masks = np.zeros((self.frames, *self.size), np.int32)
        for place, (frame, rows, columns) in enumerate(shown):
            masks[place] = self._cache.read_masks(frame)[rows, columns]
        parents = find_visible_parents(self.source.tracks, window.frames)
        if window.track > 1:  # it takes the smallest id, so that the clip counts from it
            swap = {1: window.track, window.track: 1}
            ones, track = masks == 1, masks == window.track
            masks[ones], masks[track] = window.track, 1
            parents = {swap.get(one, one): swap.get(parents[one], parents[one]) for one in parents}
        masks, table, _ = split_gaps(masks, parents)
        required = list_required_keys(self.annotations, self.transform)
        try:
            return annotate_masks(masks, table, required, self.max_cells)
        except TooManyNucleiError as error:
            raise TooManyNucleiError(
                f"{error}. It is clip {number} of epoch {self.epoch} of {self._name}; to make it "
                f"alone: videos.set_epoch({self.epoch}); videos.clip({number})"
            ) from error
