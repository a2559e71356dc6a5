"""Video objects: clips in the form that the training of SAM 2 takes, without importing it.

Classes and fields have the names of its ``training/utils/data_utils.py`` and
``training/dataset/vos_raw_dataset.py`` (Ravi et al., SAM 2, 2024), which look at nothing else.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bvdm_data.adapters.common import Videos, convert_to_rgb, count_clips, get_index, get_tensor
from bvdm_data.clip import Clip
from bvdm_data.validate import as_int


@dataclass
class Object:
    """A nucleus in one frame.

    Attributes:
        object_id: Its id.
        frame_index: Number of the frame in the clip.
        segment: 1 inside it, ``[H, W]`` uint8; all 0 where it is not there.
    """

    object_id: int
    frame_index: int
    segment: Tensor


@dataclass
class Frame:
    """A frame and its objects.

    Attributes:
        data: Grey values in [0, 1], the same in three channels, ``[3, H, W]`` float32.
        objects: The same ones, in the same order, in every frame.
    """

    data: Tensor
    objects: list[Object]


@dataclass
class VideoDatapoint:
    """A clip and its objects, for SAM 2's ``collate_fn``.

    Attributes:
        frames: All frames of the clip.
        video_id: Number of the clip.
        size: Height and width in pixels.
    """

    frames: list[Frame]
    video_id: int
    size: tuple[int, int]


def video_datapoint(clip: Clip, most_objects: int | None = None) -> VideoDatapoint:
    """Make a datapoint of a clip, with the nuclei of its first frame as objects.

    SAM 2 is prompted in the first frame; a nucleus that divides is gone from then on. Its
    daughters, and nuclei that come in later, are no objects.

    Args:
        clip: One clip with ``masks`` and ``index``.
        most_objects: How many objects at most, those with the smallest ids; None: all.

    Returns:
        The datapoint.

    Raises:
        TypeError: If most_objects is not a whole number, or clip is no clip.
        ValueError: If most_objects is below 1, masks or index are missing, or the first frame shows
            no nucleus.
    """
    if most_objects is not None:
        most_objects = as_int("most_objects", most_objects, least=1)
    masks, number = get_tensor(clip, "masks"), get_index(clip)
    identities = _list_ids(masks[0])[:most_objects]
    if not identities:
        raise ValueError(
            "clip must show a nucleus in its first frame, got none; leave it out, or give a "
            "synthetic data set at_least=1"
        )
    images = convert_to_rgb(clip)
    frames = [
        Frame(image, [Object(one, frame, (mask == one).to(torch.uint8)) for one in identities])
        for frame, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    return VideoDatapoint(frames, number, (masks.shape[1], masks.shape[2]))


@dataclass
class VideoFrame:
    """A frame of a raw video of SAM 2: its ``VOSFrame``.

    Attributes:
        frame_idx: Number of the frame.
        image_path: Empty; the frame is in memory.
        data: Grey values in [0, 1], ``[3, H, W]`` float32.
        is_conditioning_only: False.
    """

    frame_idx: int
    image_path: str
    data: Tensor | None = None
    is_conditioning_only: bool | None = False


@dataclass
class Video:
    """A raw video of SAM 2: its ``VOSVideo``.

    Attributes:
        video_name: Number of the clip, as text.
        video_id: Number of the clip.
        frames: Its frames.
    """

    video_name: str
    video_id: int
    frames: list[VideoFrame]

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)


@dataclass(frozen=True, eq=False)
class Segments:
    """Masks of a clip one frame at a time: a segment loader of SAM 2.

    Attributes:
        masks: Ids ``[F, H, W]`` int32.
    """

    masks: Tensor

    def load(self, frame_idx: int) -> dict[int, Tensor]:
        """Return the mask of each nucleus that is there, ``[H, W]`` bool, by its id."""
        mask = self.masks[frame_idx]
        return {one: mask == one for one in _list_ids(mask)}


class RawVideos:
    """The ``VOSRawDataset`` of SAM 2's training, out of clips in memory.

    Its ``VOSDataset(transforms, training=True, video_dataset=RawVideos(...), sampler=...,
    multiplier=1)`` samples frames and objects and makes its own datapoints.

    Args:
        videos: A data set with a method ``clip``, whose clips have ``masks``.
        length: How many videos; None: the clips of an epoch, of all ranks together.

    Raises:
        TypeError: If videos has no ``clip``, or length is not a whole number.
        ValueError: If length is below 1, or missing for an endless stream.
    """

    def __init__(self, videos: Videos, length: int | None = None) -> None:
        """Check the arguments; see the class."""
        self._length = count_clips(videos, length, name="length")
        self.videos = videos

    def __len__(self) -> int:
        """Return the number of videos."""
        return self._length

    def get_video(self, idx: int) -> tuple[Video, Segments]:
        """Return a video and the loader of its masks.

        Args:
            idx: Number of the video.

        Returns:
            Both.

        Raises:
            IndexError: If there is no such video.
            ValueError: If the clip has no masks.
        """
        if not 0 <= idx < self._length:
            raise IndexError(f"idx must be from 0 to {self._length - 1}, got {idx}")
        clip = self.videos.clip(idx)
        images = convert_to_rgb(clip)
        frames = [VideoFrame(number, "", image) for number, image in enumerate(images)]
        return Video(str(idx), idx, frames), Segments(get_tensor(clip, "masks"))


def _list_ids(mask: Tensor) -> list[int]:
    return [one for one in np.unique(mask.numpy()).tolist() if one > 0]
