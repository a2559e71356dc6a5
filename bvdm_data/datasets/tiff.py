"""One grey TIFF image on disk; the only file that knows the format."""

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

# What tifffile and imagecodecs raise on damaged files (TiffFileError is a ValueError, ImcdError a
# RuntimeError).
_DAMAGED = (ValueError, RuntimeError, TypeError, struct.error, LookupError, ArithmeticError)


def image_shape(path: Path) -> tuple[int, int]:
    """Read the size of an image from its header.

    Args:
        path: A TIFF file with one grey image of integers.

    Returns:
        Height and width in pixels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds something else than one grey image of integers.
    """
    try:
        with tifffile.TiffFile(path) as file:
            height, width = _checked_page(file, path).shape
            return height, width
    except _DAMAGED as error:
        raise _explained(error, path) from error


def read_image(path: Path) -> npt.NDArray[np.integer]:
    """Read an image.

    Args:
        path: A TIFF file with one grey image of integers.

    Returns:
        ``[H, W]`` in the integer dtype of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds something else than one grey image of integers.
    """
    try:
        with tifffile.TiffFile(path) as file:
            image: npt.NDArray[np.integer] = _checked_page(file, path).asarray()
            # ImageJ writes big-endian files.
            return image.astype(image.dtype.newbyteorder("="), copy=False)
    except _DAMAGED as error:
        raise _explained(error, path) from error


def write_image(path: Path, image: npt.NDArray[np.uint16]) -> None:
    """Write an image as LZW-compressed TIFF.

    Args:
        path: Where to; a file that is there is replaced.
        image: ``[H, W]`` uint16.

    Raises:
        OSError: If the file cannot be written.
    """
    tifffile.imwrite(path, image, compression="lzw", photometric="minisblack", metadata=None)


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
