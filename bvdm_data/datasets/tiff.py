"""Grey TIFF images on disk; the only file that knows the format."""

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

# What tifffile and imagecodecs raise on damaged files (TiffFileError is a ValueError, ImcdError a
# RuntimeError).
_DAMAGED = (ValueError, RuntimeError, TypeError, struct.error, LookupError, ArithmeticError)

_Image = npt.NDArray[np.integer]


class _WrongImageError(ValueError):
    """The file is sound, but its content is not one grey image of integers."""


@contextmanager
def _open_page(path: Path) -> Iterator[tifffile.TiffPage]:
    """Open the only page of a file; refuse all but a whole grey image of integers."""
    try:
        with tifffile.TiffFile(path) as file:
            yield _check_page(file, path)
    except _WrongImageError as error:
        raise ValueError(str(error)) from error
    except _DAMAGED as error:
        raise ValueError(
            f"{path} is not a TIFF file or a damaged one ({error}); fetch it again"
        ) from error


def _check_page(file: tifffile.TiffFile, path: Path) -> tifffile.TiffPage:
    if len(file.pages) == 0:
        raise ValueError("it holds no image")
    page = file.pages[0]
    if not isinstance(page, tifffile.TiffPage) or page.dtype is None:
        raise ValueError("its first image cannot be read")
    if len(file.pages) > 1 or len(page.shape) != 2:
        raise _WrongImageError(
            f"{path} must hold one grey image [H, W], got {len(file.pages)} page(s) of shape "
            f"{tuple(page.shape)}; RGB and 3D images are not supported"
        )
    if not np.issubdtype(page.dtype, np.integer):
        raise _WrongImageError(f"{path} must hold integers (uint8 or uint16), got {page.dtype}")
    ends = np.add(page.dataoffsets, page.databytecounts)
    if ends.size == 0 or int(ends.max()) > file.filehandle.size:
        raise ValueError("its end is missing")
    return page


def read_image_shape(path: Path) -> tuple[int, int]:
    """Read the size of an image from its header."""
    with _open_page(path) as page:
        height, width = page.shape
    return height, width


def read_image(path: Path) -> _Image:
    """Read an image, ``[H, W]`` in the integer dtype of the file."""
    with _open_page(path) as page:
        image: _Image = page.asarray()
    # ImageJ writes big-endian files.
    return image.astype(image.dtype.newbyteorder("="), copy=False)


class LazyTiff:
    """An image of which only the strips or tiles are decoded, and kept, that are asked for."""

    def __init__(self, path: Path) -> None:
        """Read the header."""
        self.path = path
        with _open_page(path) as page:
            height, width = page.shape
            self.dtype: np.dtype[Any] = np.dtype(page.dtype).newbyteorder("=")
            self._segments = _list_segments(page)
        self.shape: tuple[int, int] = (height, width)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._image: _Image = np.empty(self.shape, self.dtype)
        self._missing = set(range(len(self._segments)))

    def read_window(self, rows: slice, columns: slice) -> _Image:
        """Return a copy of a window of the image."""
        needed = [
            number
            for number in sorted(self._missing)
            for y, x in [self._segments[number]]
            if y.start < rows.stop and rows.start < y.stop
            and x.start < columns.stop and columns.start < x.stop
        ]  # fmt: skip
        if needed:
            with _open_page(self.path) as page:
                self._decode(page, needed)
            self._missing.difference_update(needed)
        return self._image[rows, columns].copy()

    def _decode(self, page: tifffile.TiffPage, needed: list[int]) -> None:
        if len(self._segments) == 1:
            self._image[:] = page.asarray()
            return
        for number in needed:
            file = page.parent.filehandle
            file.seek(page.dataoffsets[number])
            pixels = page.decode(file.read(page.databytecounts[number]), number)[0]
            if pixels is None:
                raise ValueError("a part of it is missing")
            segment = self._image[self._segments[number]]
            segment[:] = pixels[0, : segment.shape[0], : segment.shape[1], 0]


def _list_segments(page: tifffile.TiffPage) -> list[tuple[slice, slice]]:
    """Return which rows and columns each strip or tile holds."""
    height, width = page.shape
    if len(page.dataoffsets) == 1 or page.jpegtables is not None:
        return [(slice(0, height), slice(0, width))]
    tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    return [
        (slice(top, min(top + tall, height)), slice(left, min(left + wide, width)))
        for top in range(0, height, tall)
        for left in range(0, width, wide)
    ]


def write_image(path: Path, image: npt.NDArray[np.uint16]) -> None:
    """Write an image as LZW-compressed TIFF."""
    tifffile.imwrite(path, image, compression="lzw", photometric="minisblack", metadata=None)


def write_ome_image(
    path: Path,
    stack: npt.NDArray[np.uint16],
    *,
    channels: Sequence[str],
    pixel_size: float,
    minutes: float,
) -> None:
    """Write a video as OME-TIFF (OME model 2016-06), zlib-compressed."""
    metadata = {
        "axes": "TCYX",
        "Channel": {"Name": list(channels)},
        "PhysicalSizeX": pixel_size,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": pixel_size,
        "PhysicalSizeYUnit": "µm",
        "TimeIncrement": minutes,
        "TimeIncrementUnit": "min",
    }
    # zlib, not LZW: readers without imagecodecs know it, too.
    tifffile.imwrite(
        path, stack, ome=True, photometric="minisblack", compression="zlib", metadata=metadata
    )
