"""Frames of clips: as pairs of tensors, as lists of arrays, and as sequences made on demand."""

import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bvdm_data.adapters.common import Videos, check_ids, count_clips, number_ids
from bvdm_data.clip import LARGEST_COUNT, Clip, take_part
from bvdm_data.validate import as_int

DIM = 2e-3
"""Range from 1 to 99 % up to which images are stretched; up to half of it, Cellpose sees zeros."""


def video_and_masks(clip: Clip) -> tuple[Tensor, Tensor]:
    """Return grey values ``[F, C, H, W]`` float32 and ids ``[F, H, W]`` int32, plain tensors."""
    video, masks = take_part(clip, "video"), take_part(clip, "masks")
    check_ids(masks)
    return video.float(), masks.to(torch.int32)


def stacked(clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Return the frames of all clips behind each other, ``[N, C, H, W]`` and ``[N, H, W]``."""
    pairs = [video_and_masks(clip) for clip in clips]
    sizes = sorted({tuple(video.shape[1:]) for video, _ in pairs})
    if len(sizes) != 1:
        raise ValueError(
            f"clips of a batch must have one (C, H, W), got {sizes}; "
            "give all data sets of a mixture the same size="
        )
    return torch.cat([video for video, _ in pairs]), torch.cat([masks for _, masks in pairs])


def frame_lists(
    clips: Iterable[Clip], *, at_least: SupportsIndex = 0
) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.int32]]]:
    """Return images and labels as lists, for trainers that hold all data in memory.

    Cellpose's ``train_seg(net, train_data=images, train_labels=labels)`` and StarDist's
    ``model.train(images, labels, ...)`` take them as they are. Cellpose leaves out images with
    fewer than ``min_train_masks`` (5) nuclei, and divides by 0 where none is left: give it
    ``min_train_masks=1``, and 1 here, for small frames.

    Args:
        clips: Single clips with ``video`` and ``masks``; an endless data set does not end.
        at_least: Frames with fewer nuclei are left out.

    Returns:
        One image ``[H, W]`` float32 (``[H, W, C]`` where C is above 1) and one label image
        ``[H, W]`` int32 a frame. Each owns its memory, as cellpose renumbers labels in place. Ids
        above 65535, which StarDist cuts, are numbered anew 1, 2, ... in their clip. Channels of
        which 98 % of the pixels lie within 0.002, which Cellpose may take for empty, are divided
        by their whole range.

    Raises:
        TypeError: If at_least is no whole number.
        ValueError: If a clip is without masks, or is a batch; at_least is negative, or no frame
            shows so many nuclei.

    Examples:
        >>> clip = {"video": torch.rand(2, 1, 8, 8), "masks": torch.ones(2, 8, 8)}
        >>> images, labels = frame_lists([clip, clip])
        >>> len(images), images[0].shape, labels[3].dtype
        (4, (8, 8), dtype('int32'))
    """
    fewest, most = as_int("at_least", at_least, least=0), 0
    images: list[npt.NDArray[np.float32]] = []
    labels: list[npt.NDArray[np.int32]] = []
    for clip in clips:
        for image, label in zip(*_as_arrays(clip), strict=True):
            count = len(np.unique(label[label > 0])) if fewest else 0
            most = max(most, count)
            if count >= fewest:
                images.append(image)
                labels.append(label.copy())
    if fewest and not images:
        raise ValueError(
            f"at_least must be at most the nuclei of the fullest frame, {most}, got {fewest}; give "
            "more clips, or clips of a larger size or with more nuclei"
        )
    return images, labels


def frame_sequences(
    videos: Videos,
    clips: SupportsIndex | None = None,
    *,
    transform: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = None,
    kept: SupportsIndex | None = None,
) -> tuple["FrameSequence", "FrameSequence"]:
    """Return images and labels as two sequences whose clips are made when they are first asked for.

    StarDist's ``model.train(images, labels, ...)`` takes them, as it takes any objects with
    ``__len__`` and ``__getitem__``. It asks in a random order, epoch after epoch; a clip that was
    not kept is made again, the same.

    Args:
        videos: A data set with ``clip(i)``, whose clips have ``masks``.
        clips: How many clips, from the first; None: those of an epoch.
        transform: What is done to each image, such as StarDist's normalisation by percentiles.
        kept: Most clips in memory, the latest used ones; None: all.

    Returns:
        Images ``[H, W]`` float32 (``[H, W, C]`` where C is above 1) and labels ``[H, W]`` int32,
        as of :func:`frame_lists`; frame f of clip i is item ``i * F + f`` of both.

    Raises:
        TypeError: If videos has no ``clip``, or clips or kept is no whole number.
        ValueError: If clips or kept is smaller than 1, the data set is endless and clips is not
            given, or its clips are without masks.
    """
    count = count_clips(videos, clips)
    most = None if kept is None else as_int("kept", kept, least=1)
    memory = _Memory(videos, transform, most)
    frames = len(memory[0][1])
    return FrameSequence(memory, 0, count, frames), FrameSequence(memory, 1, count, frames)


class FrameSequence(Sequence[npt.NDArray[Any]]):
    """Images, or labels, of a data set by number; made by :func:`frame_sequences`."""

    def __init__(self, memory: "_Memory", part: int, clips: int, frames: int) -> None:
        """Take part 0 (images) or 1 (labels) of so many clips with so many frames each."""
        self._memory, self._part, self._clips, self._frames = memory, part, clips, frames

    def __len__(self) -> int:
        """Return the number of frames of all clips."""
        return self._clips * self._frames

    @overload
    def __getitem__(self, index: SupportsIndex) -> npt.NDArray[Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[npt.NDArray[Any]]: ...

    def __getitem__(
        self, index: SupportsIndex | slice
    ) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
        """Return one frame, or a list of them for a slice; each owns its memory."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index must be in [-{len(self)}, {len(self)}), got {number}")
        clip, frame = divmod(number % len(self), self._frames)
        found: npt.NDArray[Any] = self._memory[clip][self._part][frame]
        return found.copy()  # trainers renumber labels in place


class _Memory:
    """The latest used clips of the epoch; threads may share it."""

    def __init__(
        self, videos: Videos, transform: Callable[..., Any] | None, most: int | None
    ) -> None:
        self._videos, self._transform, self._most = videos, transform, most
        self._held: dict[tuple[int, int], tuple[list[Any], list[Any]]] = {}
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> tuple[list[Any], list[Any]]:
        with self._lock:
            key = (getattr(self._videos, "epoch", 0), index)
            found = self._held.pop(key, None) or self._make(index)
            self._held[key] = found
            stale = [old for old in self._held if old[0] != key[0]]
            extra = [] if self._most is None else list(self._held)[: -self._most]
            for old in {*stale, *extra}:
                del self._held[old]
            return found

    def _make(self, index: int) -> tuple[list[Any], list[Any]]:
        images, labels = _as_arrays(self._videos.clip(index))
        if self._transform is not None:
            images = [self._transform(image) for image in images]
        return images, labels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_held": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _as_arrays(clip: Clip) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    video, masks = video_and_masks(clip)
    images = video[:, 0] if video.shape[1] == 1 else video.movedim(1, -1)
    frames, ids = images.contiguous().cpu().numpy(), masks.cpu().numpy()
    if ids.max(initial=0) > LARGEST_COUNT:
        ids = number_ids(ids, np.unique(ids[ids > 0]))
    return [_stretch_dim(frame) for frame in frames], list(ids)


def _stretch_dim(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale channels that Cellpose would take for empty to a range of 1."""
    step = max(min(image.shape[:2]) // 64, 1)  # some pixels are enough, and ten times as fast
    low, high = np.percentile(image[::step, ::step], (1, 99), axis=(0, 1))
    span = np.ptp(image, axis=(0, 1))
    is_dim = (high - low <= DIM) & (span > 0)
    return np.divide(image, np.where(is_dim, span, 1), dtype=np.float32)
