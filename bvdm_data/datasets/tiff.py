"""Grey TIFF images on disk; the only file that knows the format."""

import itertools
import math
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

# What tifffile and imagecodecs raise on damaged files (TiffFileError is a ValueError, ImcdError a
# RuntimeError).
_DAMAGED = (ValueError, RuntimeError, TypeError, struct.error, LookupError, ArithmeticError)

_LARGEST_IMAGE = 2**29  # bytes, decoded: 16,384 x 16,384 pixels of 16 bits

_Image = npt.NDArray[np.integer]
_Counts = npt.NDArray[np.unsignedinteger]


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
            f"{path} is not a TIFF file or a damaged one ({str(error)[:200]!r}); fetch it again"
        ) from error


def _check_page(file: tifffile.TiffFile, path: Path) -> tifffile.TiffPage:
    if len(file.pages) == 0:
        raise ValueError("it holds no image")
    page = file.pages[0]
    if not isinstance(page, tifffile.TiffPage) or page.dtype is None:
        raise ValueError("its first image cannot be read")
    # Programs may write a stack as one page with the number of images in its description.
    is_stack = (file.is_shaped or file.is_imagej) and file.series[0].size != page.size
    if is_stack or len(file.pages) > 1 or len(page.shape) != 2:
        shape = file.series[0].shape if is_stack else tuple(page.shape)
        raise _WrongImageError(
            f"{path} must hold one grey image [H, W], got {len(file.pages)} page(s) of shape "
            f"{shape}; RGB and 3D images are not supported: save one channel, one "
            "plane and one file a frame"
        )
    if not np.issubdtype(page.dtype, np.integer):
        raise _WrongImageError(
            f"{path} must hold integers, got {page.dtype}; save frames as uint8 or uint16, and "
            "masks as integers of up to 32 bits"
        )
    largest = max(page.nbytes, math.prod(page.chunks) * page.dtype.itemsize)
    if largest > _LARGEST_IMAGE:
        raise _WrongImageError(
            f"{path} must hold at most {_LARGEST_IMAGE} bytes, got {largest} by its header (shape "
            f"{tuple(page.shape)}); crop or downscale the video, or mend the file"
        )
    ends = np.add(page.dataoffsets, page.databytecounts)
    pieces = math.prod(-(-side // part) for side, part in zip(page.shape, page.chunks, strict=True))
    if not 0 < pieces <= ends.size or int(ends.max()) > file.filehandle.size:
        raise ValueError("a part of it is missing")
    return page


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
            self._is_whole = len(page.dataoffsets) == 1 or page.jpegtables is not None
            self._chunk = (height, width) if self._is_whole else page.chunks
        self.shape: tuple[int, int] = (height, width)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self._image: _Image = np.empty(self.shape, self.dtype)
        self._decoded: set[tuple[int, int]] = set()

    def read_window(self, rows: slice, columns: slice) -> _Image:
        """Return a copy of a window of the image."""
        down, across = (
            range(side.start // size, -(-min(side.stop, total) // size))
            for side, size, total in zip((rows, columns), self._chunk, self.shape, strict=True)
        )
        needed = [one for one in itertools.product(down, across) if one not in self._decoded]
        if needed:
            with _open_page(self.path) as page:
                for row, column in needed:
                    self._decode(page, row, column)
            self._decoded.update(needed)
        return self._image[rows, columns].copy()

    def _decode(self, page: tifffile.TiffPage, row: int, column: int) -> None:
        if self._is_whole:
            self._image[:] = page.asarray()
            return
        tall, wide = self._chunk
        number = row * -(-self.shape[1] // wide) + column
        file = page.parent.filehandle
        file.seek(page.dataoffsets[number])
        pixels = page.decode(file.read(page.databytecounts[number]), number)[0]
        if pixels is None:
            raise ValueError("a part of it is missing")
        piece = self._image[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
        piece[:] = pixels[0, : piece.shape[0], : piece.shape[1], 0]


def write_image(path: Path, image: _Counts) -> None:
    """Write an image as LZW-compressed TIFF."""
    tifffile.imwrite(path, image, compression="lzw", photometric="minisblack", metadata=None)


def write_images(folder: Path, prefix: str, images: Iterable[_Counts]) -> None:
    """Write a video as ``<prefix>000.tif``, ..., with more digits for more than 1000 frames."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = list(images)
    digits = max(3, len(str(len(frames) - 1)))
    for number, image in enumerate(frames):
        write_image(folder / f"{prefix}{number:0{digits}d}.tif", image)


def keep_background(labels: _Counts) -> _Counts:
    """Return labels in which there is background: where none is, a pixel of the largest nucleus.

    py-ctcmetrics takes the smallest label of a frame for the background.
    """
    if labels.min():
        names, areas = np.unique(labels, return_counts=True)
        labels = labels.copy()
        labels.flat[int((labels == names[areas.argmax()]).argmax())] = 0
    return labels


def write_stack(path: Path, stack: npt.NDArray[np.uint16], **options: Any) -> None:
    """Write a video as one file; ``options`` are those of tifffile."""
    tifffile.imwrite(path, stack, photometric="minisblack", **options)
