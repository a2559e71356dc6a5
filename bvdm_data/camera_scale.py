"""CameraScale: how counts of a camera and grey values in [0, 1] belong together."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGEST_COUNT = 65535
"""Largest count of a 16-bit camera."""


@dataclass(frozen=True)
class CameraScale:
    """Linear scale between the counts of a camera and grey values.

    Grey 0 is ``offset``, grey 1 is ``full``. Clips, real and synthetic, are comparable only where
    they are on the same scale.

    Attributes:
        offset: Count of no light at all; 0 or more.
        full: Count of full scale; more than offset, at most 65535.

    Raises:
        TypeError: If one of them is not an integer.
        ValueError: If they are not in the order 0 <= offset < full <= 65535.

    Examples:
        >>> scale = CameraScale(offset=32768, full=36863)  # 12 bits on an offset
        >>> grey = scale.to_grey(np.array([32768, 36863, 40000], np.uint16))
        >>> grey.tolist(), scale.to_counts(grey).tolist()
        ([0.0, 1.0, 1.0], [32768, 36863, 36863])
    """

    offset: int
    full: int

    def __post_init__(self) -> None:
        """Refuse numbers that make no scale."""
        for name, value in (("offset", self.offset), ("full", self.full)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int (a count of the camera), got {value!r}")
        if not 0 <= self.offset < self.full <= LARGEST_COUNT:
            raise ValueError(
                f"offset and full must be counts with 0 <= offset < full <= {LARGEST_COUNT}, "
                f"got offset={self.offset} and full={self.full}"
            )

    def to_grey(self, counts: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Turn counts into grey values; what lies outside the scale is clipped.

        Args:
            counts: Any shape, any integer dtype.

        Returns:
            ``(counts - offset) / (full - offset)``, clipped to [0, 1], the same shape, float32.

        Raises:
            TypeError: If counts are not integers.
        """
        if not np.issubdtype(counts.dtype, np.integer):
            raise TypeError(f"counts must be integers, got the dtype {counts.dtype}")
        inside = np.clip(counts.astype(np.float32), self.offset, self.full)
        inside -= np.float32(self.offset)
        inside /= np.float32(self.full - self.offset)
        return inside

    def to_counts(self, grey: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
        """Turn grey values into counts, rounded; what lies outside [0, 1] is clipped.

        Every count within the scale comes back from :meth:`to_grey` as it was.

        Args:
            grey: Any shape, any floating dtype.

        Returns:
            ``offset + grey * (full - offset)``, the same shape, uint16.

        Raises:
            TypeError: If grey is not of a floating dtype.
            ValueError: If a value is NaN.
        """
        if not np.issubdtype(grey.dtype, np.floating):
            raise TypeError(f"grey must be of a floating dtype in [0, 1], got {grey.dtype}")
        missing = int(np.isnan(grey).sum())
        if missing:
            raise ValueError(
                f"grey must hold numbers from 0 to 1, got {missing} NaN of {grey.size}"
            )
        light = np.rint(np.clip(grey.astype(np.float64), 0, 1) * (self.full - self.offset))
        return (light + self.offset).astype(np.uint16)
