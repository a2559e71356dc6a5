"""MP4: pictures as a film that players and slides take."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from bvdm_data.files import whole_file

QUALITY = 20
"""Constant rate factor of H.264, from 0 (lossless) to 51 (our choice: thin outlines stay thin)."""


def need_ffmpeg() -> ModuleType:
    """Import what writes films, the package of the extra ``preview``.

    Returns:
        The module ``imageio_ffmpeg``.

    Raises:
        ModuleNotFoundError: If it is not installed, with the way to install it.
    """
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"an MP4 needs the package {error.name!r}, which is not installed; "
            'pip install "bvdm-data[preview]"'
        ) from error
    return imageio_ffmpeg  # type: ignore[no-any-return]


def write_mp4(pictures: Sequence[Image.Image], path: Path, frames_per_second: float) -> None:
    """Write pictures as a film, H.264 with colours at half resolution, which any player takes.

    Args:
        pictures: RGB images of one size. Where a side is odd, its last row or column is shown
            twice, because the format needs even ones.
        path: The file to make.
        frames_per_second: Speed.

    Raises:
        ModuleNotFoundError: If the extra ``preview`` is not installed.
        OSError: If the film cannot be written.
        ValueError: If there is no picture, their sizes differ, or one is not RGB.
    """
    _check(pictures)
    program = need_ffmpeg().get_ffmpeg_exe()
    width, height = (side + side % 2 for side in pictures[0].size)
    with whole_file(path) as unfinished:
        command = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        command += ["-s", f"{width}x{height}", "-r", f"{frames_per_second:g}", "-i", "-"]
        command += ["-c:v", "libx264", "-crf", str(QUALITY), "-pix_fmt", "yuv420p"]
        command += ["-movflags", "+faststart", str(unfinished)]
        content = b"".join(_even(picture, width, height) for picture in pictures)
        done = subprocess.run(command, input=content, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg failed"]
            raise OSError(f"{said[-1]} (ffmpeg ended with {done.returncode})")


def _check(pictures: Sequence[Image.Image]) -> None:
    if not pictures:
        raise ValueError("pictures must hold at least one picture, got none")
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        raise ValueError(
            f"pictures must all have the same width and height, got {sizes}; write a film of each "
            "clip, or bring the pictures to one size by Image.resize"
        )
    modes = {picture.mode for picture in pictures} - {"RGB"}
    if modes:
        raise ValueError(
            f"pictures must be RGB, got the mode {min(modes)!r}; see Image.convert('RGB')"
        )


def _even(picture: Image.Image, width: int, height: int) -> bytes:
    pixels = np.asarray(picture)
    missing = (0, height - picture.height), (0, width - picture.width), (0, 0)
    return np.pad(pixels, missing, mode="edge").tobytes()
