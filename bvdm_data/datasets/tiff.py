"""Grey TIFF images on disk; the only file that knows the format."""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

# What tifffile and imagecodecs raise on damaged files (TiffFileError is a ValueError, ImcdError a
# RuntimeError).
_DAMAGED = (ValueError, RuntimeError, TypeError, struct.error, LookupError, ArithmeticError)


def read_image_shape(path: Path) -> tuple[int, int]:
    """Read the size of an image from its header."""
    try:
        with tifffile.TiffFile(path) as file:
            height, width = _checked_page(file, path).shape
            return height, width
    except _DAMAGED as error:
        raise _explained(error, path) from error


def read_image(path: Path) -> npt.NDArray[np.integer]:
    """Read an image.

    ``[H, W]`` in the integer dtype of the file.
    """
    try:
        with tifffile.TiffFile(path) as file:
            image: npt.NDArray[np.integer] = _checked_page(file, path).asarray()
            # ImageJ writes big-endian files.
            return image.astype(image.dtype.newbyteorder("="), copy=False)
    except _DAMAGED as error:
        raise _explained(error, path) from error


class LazyTiff:
    """An image of which only the strips or tiles are decoded that are asked for.

    Decoded ones are kept. A file that holds its image in one piece is decoded as a whole.
    """

    def __init__(self, path: Path) -> None:
        """Read the header."""
        self.path = path
        try:
            with tifffile.TiffFile(path) as file:
                page = _checked_page(file, path)
                height, width = page.shape
                self.dtype: np.dtype[Any] = np.dtype(page.dtype).newbyteorder("=")
                self._pieces = _list_segments(page)
        except _DAMAGED as error:
            raise _explained(error, path) from error
        self.shape: tuple[int, int] = (height, width)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._image: npt.NDArray[np.integer] = np.empty(self.shape, self.dtype)
        self._missing = set(range(len(self._pieces)))

    def cut(self, rows: slice, columns: slice) -> npt.NDArray[np.integer]:
        """Return a window of the image.

        ``[rows, columns]``, in memory of its own.
        """
        wanted = {
            number for number in self._missing if _overlap(self._pieces[number], (rows, columns))
        }
        if wanted:
            try:
                self._decode(wanted)
            except _DAMAGED as error:
                raise _explained(error, self.path) from error
        return self._image[rows, columns].copy()

    def _decode(self, wanted: set[int]) -> None:
        with tifffile.TiffFile(self.path) as file:
            page = _checked_page(file, self.path)
            if len(self._pieces) == 1:
                self._image[:] = page.asarray()
            else:
                for number in sorted(wanted):
                    file.filehandle.seek(page.dataoffsets[number])
                    data = file.filehandle.read(page.databytecounts[number])
                    pixels = page.decode(data, number)[0]
                    if pixels is None:
                        raise ValueError("a part of it is missing")
                    rows, columns = self._pieces[number]
                    piece = self._image[rows, columns]
                    piece[:] = pixels[0, : piece.shape[0], : piece.shape[1], 0]
        self._missing -= wanted


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


def _overlap(one: tuple[slice, slice], other: tuple[slice, slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


class _WrongImageError(ValueError):
    """The file is sound, but its content is not one grey image of integers."""


def _checked_page(file: tifffile.TiffFile, path: Path) -> tifffile.TiffPage:
    """Return the only page, when it is a grey image of integers and whole."""
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


def _explained(error: Exception, path: Path) -> ValueError:
    if isinstance(error, _WrongImageError):
        return ValueError(str(error))
    return ValueError(f"{path} is not a TIFF file or a damaged one ({error}); fetch it again")
