"""Optical-flow networks: pairs of frames with flow, as torchvision's data sets give them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from bvdm_data.adapters.common import Clips, SharedClips, convert_to_rgb, get_tensor
from bvdm_data.clip import Clip


class FlowPair(NamedTuple):
    """Two frames and the flow between them, in the order and form of torchvision's ``KittiFlow``.

    Attributes:
        image1: Grey values in [0, 1], the same in three channels, ``[3, H, W]`` float32.
        image2: The next frame, the same.
        flow: Displacement ``(dx, dy)`` in pixels, ``[2, H, W]`` float32. Mind the order: a clip
            has ``(dy, dx)``.
        valid: Where flow is known, ``[H, W]`` bool: in the nuclei of image1 that are also in
            image2.
    """

    image1: Tensor
    image2: Tensor
    flow: Tensor
    valid: Tensor


def flow_pairs(clip: Clip) -> list[FlowPair]:
    """Make a pair of every two frames in a row.

    Args:
        clip: One clip with ``flow`` and ``masks``.

    Returns:
        F - 1 pairs.

    Raises:
        ValueError: If flow or masks are missing, or the clip is a batch or a single frame.
    """
    flow, masks = get_tensor(clip, "flow").flip(1), get_tensor(clip, "masks")
    if len(masks) < 2:
        raise ValueError(f"clip must have at least 2 frames, got {len(masks)}; give frames=2")
    images = convert_to_rgb(clip)
    return [
        FlowPair(
            images[frame],
            images[frame + 1],
            flow[frame],
            # A nucleus keeps its id until it divides or is lost; then its flow is not known.
            (masks[frame] > 0) & torch.isin(masks[frame], masks[frame + 1]),
        )
        for frame in range(len(flow))
    ]


class FlowPairs(IterableDataset[FlowPair]):
    """The pairs of a stream of clips, for a training loop that is fed ``KittiFlow`` or ``HD1K``.

    Workers and ranks share the clips out as those of the stream do, also of a list or a map-style
    data set. The pairs of a clip follow each other.

    Args:
        clips: A data set, or a list, of clips with ``flow`` and ``masks``.
        transforms: As for torchvision's data sets: called with ``image1, image2, flow, valid``,
            returns the four. None: pairs as :func:`flow_pairs` makes them.

    Raises:
        TypeError: If clips is no data set, or transforms no function.

    Examples:
        Batches for ``torchvision.models.optical_flow.raft_small``::

            videos = SyntheticHeLaVideos(size=128, annotations=("masks", "flow"))
            for image1, image2, flow, valid in DataLoader(FlowPairs(videos), batch_size=8):
                predictions = network(2 * image1 - 1, 2 * image2 - 1)
    """

    def __init__(
        self,
        clips: Clips,
        transforms: Callable[
            [Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]
        ]
        | None = None,
    ) -> None:
        """Keep the arguments; see the class."""
        if transforms is not None and not callable(transforms):
            raise TypeError(f"transforms must be a function of four tensors, got {transforms!r}")
        self.clips = clips
        self._shared = SharedClips(clips)
        self.transforms = transforms

    def __iter__(self) -> Iterator[FlowPair]:
        """Yield pair after pair."""
        for clip in self._shared:
            for pair in flow_pairs(clip):
                yield pair if self.transforms is None else FlowPair(*self.transforms(*pair))
