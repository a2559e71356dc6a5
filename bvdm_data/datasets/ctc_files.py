"""Which files of a folder of the Cell Tracking Challenge are frames, masks and markers."""

import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

LAYOUT = (
    "01/t000.tif, 01/t001.tif, ... with 01_ST/SEG/man_seg000.tif, ... or 01_GT/SEG/man_seg000.tif, "
    "... or 01_GT/TRA/man_track000.tif, ... and 01_GT/TRA/man_track.txt"
)

TABLE = "man_track.txt"

_LARGEST_NUMBER = 999_999  # of a frame: a date or a time in a name is none
_JUNK = ("Thumbs.db", "desktop.ini")
_SHOWN = 6  # names in a message


def list_numbered(folder: Path, inner: str, prefix: str) -> tuple[dict[int, str], list[str]]:
    """Return the files ``<prefix><number>.tif`` by ascending number, and the names of all others.

    Numbers have leading zeros or none, ``.tif`` may be ``.tiff``, and letters may be capitals.
    Hidden files and those that file managers leave behind are among neither.
    """
    numbered: dict[int, str] = {}
    others: list[str] = []
    for path in sorted((folder / inner).glob("*")):
        name = f"{inner}/{path.name}"
        digits = _find_number(prefix, path.name)
        if digits is None:
            is_table = path.name == TABLE and prefix == "man_track"
            if not is_table and path.name not in _JUNK and path.name[0] != ".":
                others.append(name)
            continue
        check_regular(path)
        number = int(digits)
        if number > _LARGEST_NUMBER:
            raise ValueError(
                f"{path} must have a number from 0 to {_LARGEST_NUMBER} in its name; renumber the "
                "files from 0, or move it elsewhere if it is none of them"
            )
        if number in numbered:
            raise ValueError(
                f"{folder / inner} must hold one file a frame, got {Path(numbered[number]).name} "
                f"and {path.name}; remove one of them"
            )
        numbered[number] = name
    return dict(sorted(numbered.items())), others


def has_frames(folder: Path) -> bool:
    """Return whether a folder is a video, by the names of its files."""
    return any(_find_number("t", path.name) for path in folder.glob("*"))


def find_frames(folder: Path, sequence: str) -> dict[int, str]:
    """Return the frames by ascending number; refuse a folder that is none of the challenge."""
    if not isinstance(sequence, str):
        raise TypeError(f'sequence must be the name of a folder, like "01", got {sequence!r}')
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}; it should hold {LAYOUT}. bvdm-data fetch downloads those of the "
            "challenge"
        )
    frames, others = list_numbered(folder, sequence, "t")
    if not frames:
        there = [path.name for path in sorted(folder.iterdir()) if has_frames(path)]
        problem = "no frames (t000.tif, ...) in" if (folder / sequence).is_dir() else "no folder"
        got = f", but {_join(others)}" if others else ""
        raise FileNotFoundError(
            f"{problem} {folder / sequence}{got}; sequences there: {there or 'none'}. The folder "
            f"should hold {LAYOUT}"
        )
    _warn_of_files(folder, others, "they are not named like t000.tif")
    gap = next(((low, high) for low, high in pairwise(frames) if high != low + 1), None)
    if gap:
        before, after = (Path(frames[number]).name for number in gap)
        low, high = min(frames), max(frames)
        raise ValueError(
            f"frames of {folder / sequence} must be numbered without a gap, got no frame "
            f"{gap[0] + 1} between {before} and {after} ({high - low + 1 - len(frames)} of {low} "
            f"to {high} are missing); add what is missing, remove what does not belong to the "
            "video, or renumber all frames, masks and tracks"
        )
    return frames


def find_masks(
    folder: Path, sequence: str, frames: Mapping[int, str], truth: str | None
) -> dict[str, dict[int, str]]:
    """Return the masks of the frames by truth and number; ``"TRA"`` are the markers."""
    found = {}
    for kind, inner, prefix in (
        ("ST", f"{sequence}_ST/SEG", "man_seg"),
        ("GT", f"{sequence}_GT/SEG", "man_seg"),
        ("TRA", f"{sequence}_GT/TRA", "man_track"),
    ):
        masks, others = list_numbered(folder, inner, prefix)
        if truth in ("auto", kind) or kind == "TRA":
            _warn_of_files(folder, others, f"they are not named like {prefix}000.tif")
            lost = [name for number, name in masks.items() if number not in frames]
            if lost and len(masks) == len(frames):
                raise ValueError(
                    f"{folder / inner} must have the numbers of the frames, {min(frames)} to "
                    f"{max(frames)}, got {min(masks)} to {max(masks)}; number frames, masks and "
                    "tracks alike"
                )
            _warn_of_files(folder, lost, "no frame has their number")
        found[kind] = {number: name for number, name in masks.items() if number in frames}
    return found


def check_regular(path: Path) -> None:
    """Refuse what is no file: to open a pipe or a device may never end."""
    if not path.is_file():
        other = "a pipe or device" if path.exists() else "a broken link"
        kind = "a folder" if path.is_dir() else other
        raise ValueError(f"{path} must be a file, got {kind}; remove or rename it")


def _warn_of_files(folder: Path, names: Sequence[str], why: str) -> None:
    """Say which files are passed over."""
    if names:
        warnings.warn(f"{folder}: {_join(names)} passed over: {why}", stacklevel=4)


def _find_number(prefix: str, name: str) -> str | None:
    match = re.fullmatch(rf"{prefix}([0-9]+)\.tiff?", name, re.IGNORECASE)
    return match[1] if match else None


def _join(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
