"""Frames of a real video with their masks, decoded as far as needed and kept in bounded memory."""

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from bvdm_data.datasets.ctc import CTCSequence
from bvdm_data.datasets.tiff import PartialImage

Image = npt.NDArray[np.integer]


class FrameCache:
    """Windows of frames and masks; the frames that were used last are kept.

    Of a frame, only the strips or tiles of its file are decoded that a window shows. Masks are
    decoded whole: their ids depend on the markers of the whole frame.

    Each process has a cache of its own; a pickle holds none of it.

    Args:
        source: The video.
        limit: Bytes to keep at most; a single frame may be more while it is cut.

    Attributes:
        source: The video.
        limit: Bytes to keep at most.
    """

    def __init__(self, source: CTCSequence, limit: int) -> None:
        """Start empty."""
        self.source = source
        self.limit = limit
        self._start()

    @property
    def nbytes(self) -> int:
        """Bytes of the frames that are kept, as if they were decoded whole."""
        return sum(one.nbytes for one in self._kept.values())

    def frame(self, number: int, rows: slice, columns: slice) -> Image:
        """Return a window of a frame, ``[rows, columns]`` in the dtype of the file.

        Args:
            number: Of the frame.
            rows: Of the window.
            columns: Of the window.

        Raises:
            ValueError: If its file is damaged.
        """
        with self._lock:
            key = ("frame", number)
            image = self._kept.get(key)
            if not isinstance(image, PartialImage):
                image = self.source.partial_frame(number)
            self._keep(key, image)
            return image.cut(rows, columns)

    def masks(self, number: int) -> Image:
        """Return the masks of a frame, ``[H, W]``; do not change them.

        Args:
            number: Of a frame that has masks.

        Raises:
            ValueError: If its file is damaged.
        """
        with self._lock:
            key = ("masks", number)
            masks = self._kept.get(key)
            if not isinstance(masks, np.ndarray):
                masks = _compact(self.source.masks(number))
            self._keep(key, masks)
            return masks

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded frames out of a pickle."""
        return {"source": self.source, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come out of a pickle, empty."""
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._kept: OrderedDict[tuple[str, int], PartialImage | Image] = OrderedDict()
        self._lock = threading.Lock()

    def _keep(self, key: tuple[str, int], image: PartialImage | Image) -> None:
        """Keep an image as the last used one; the oldest ones give way."""
        if image.nbytes > self.limit:
            return
        self._kept[key] = image
        self._kept.move_to_end(key)
        while self.nbytes > self.limit:
            self._kept.popitem(last=False)


def _compact(masks: npt.NDArray[np.int32] | None) -> Image:
    """Store masks in 16 bits where their ids allow it: half the memory."""
    if masks is None:
        raise ValueError("the frame has no masks")
    if masks.max(initial=0) > np.iinfo(np.uint16).max:
        return masks
    return masks.astype(np.uint16)
