"""Ultralytics: the frames of clips as a data set of YOLO, for boxes or for masks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, SupportsIndex

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import cdist
from tqdm import tqdm

from bvdm_data.adapters.common import (
    Videos,
    convert_to_grey,
    count_clips,
    get_tensor,
    list_tracks,
    trace_outlines,
)
from bvdm_data.clip import STAGES, Clip
from bvdm_data.files import open_atomic_folder
from bvdm_data.validate import as_fraction

TASKS = ("segment", "detect")  # what labels hold: polygons or boxes
# How far polygons lie within the mask, px: what rounds their corners down stays in its pixels.
INSET = 0.01
# Names of the classes, by what they tell apart.
CLASSES = {"nucleus": ("nucleus",), "stage": STAGES}


def write_yolo(
    videos: Videos,
    directory: str | Path,
    *,
    clips: SupportsIndex | None = None,
    task: Literal["segment", "detect"] = "segment",
    classes: Literal["nucleus", "stage"] = "nucleus",
    validation: float = 0.2,
    progress: bool = False,
) -> None:
    """Write the frames of clips as a data set that Ultralytics trains and validates on.

    Makes ``data.yaml``; ``images/train/CLIP_FRAME.png``, 8 bits, 255 at grey value 1;
    ``labels/train/CLIP_FRAME.txt``, a line for each nucleus; ``tracks/train/CLIP_FRAME.txt``, for
    the same lines id and parent (0: none) of the nucleus, which Ultralytics does not read; and
    the same under ``val``. Clips are not split: the last ones are for validation. The folder has
    no path of its own inside and may be moved.

    A polygon goes along the sides of the outermost pixels, so that filled as Ultralytics does, at
    the size of the image, it gives the mask back; holes and further pieces hang on it by a line.
    A box ends at the far edge of its last pixel.

    Args:
        videos: A data set with ``clip(i)``, whose clips have ``masks`` and ``tracks``.
        directory: Folder to make.
        clips: How many, from the first; at least 2. None: those of an epoch.
        task: ``"segment"``: labels are polygons, for models of both tasks. ``"detect"``: boxes.
        classes: ``"nucleus"``, or ``"stage"``, the index into ``STAGES``; that needs ``stages``.
        validation: Share of the clips that is for validation, rounded, at least one.
        progress: Whether to show a bar.

    Raises:
        FileExistsError: If there is something at directory.
        OSError: If it cannot be written; nothing is left behind.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument cannot be used, or a clip has no masks or tracks, or no stage of
            a nucleus where that is asked for.

    Examples:
        In a shell with Ultralytics, then
        ``yolo segment train data=cells/data.yaml model=yolo11n-seg.pt``::

            write_yolo(SyntheticHeLaVideos(frames=8, annotations=("masks", "tracks")), "cells",
                       clips=100)
    """
    for name, value, known in (("task", task, TASKS), ("classes", classes, tuple(CLASSES))):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    count = count_clips(videos, clips)
    if count < 2:
        raise ValueError(f"clips must be at least 2, one for validation, got {count}; give clips=2")
    first = count - min(max(1, round(as_fraction("validation", validation) * count)), count - 1)
    with open_atomic_folder(directory) as folder:
        for number in tqdm(range(count), desc="writing", unit="clip", disable=not progress):
            part = "train" if number < first else "val"
            for kind in ("images", "labels", "tracks"):
                (folder / kind / part).mkdir(parents=True, exist_ok=True)
            clip = videos.clip(number)
            for frame, (image, labels, tracks) in enumerate(_label_frames(clip, task, classes)):
                name = f"{part}/{number:06d}_{frame:04d}"
                Image.fromarray(image).save(folder / f"images/{name}.png")
                (folder / f"labels/{name}.txt").write_text(labels)
                (folder / f"tracks/{name}.txt").write_text(tracks)
        names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES[classes]))
        (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}")


def _label_frames(
    clip: Clip, task: str, classes: str
) -> Iterator[tuple[npt.NDArray[np.uint8], str, str]]:
    """Yield image, lines of labels and lines of tracks of each frame."""
    table = list_tracks(clip)
    parents = dict(table[:, [0, 3]].tolist())
    images = np.rint(convert_to_grey(clip).clip(0, 1) * 255).astype(np.uint8)
    kinds = _find_classes(clip, classes)
    for frame, (image, mask) in enumerate(zip(images, get_tensor(clip, "masks"), strict=True)):
        labels, tracks = "", ""
        for identity, place in enumerate(ndimage.find_objects(mask.numpy()), start=1):
            if place is None:
                continue
            own = mask.numpy()[place] == identity
            if task == "detect":
                y, x = place
                middle = (x.start + x.stop) / 2, (y.start + y.stop) / 2
                numbers = np.array([*middle, x.stop - x.start, y.stop - y.start])
            else:
                numbers = _describe_polygon(own, place)
            scaled = numbers.reshape(-1, 2) / image.shape[::-1]
            kind = 0 if kinds is None else kinds[identity][frame]
            labels += " ".join([str(kind), *(f"{value:.6f}" for value in scaled.ravel())]) + "\n"
            tracks += f"{identity} {parents[identity]}\n"
        yield image, labels, tracks


def _find_classes(clip: Clip, classes: str) -> dict[int, list[int]] | None:
    """Return the stages of each nucleus by its id, where they are the classes."""
    if classes == "nucleus":
        return None
    rows, stages = get_tensor(clip, "tracks"), get_tensor(clip, "stages")
    found: dict[int, list[int]] = {}
    for (identity, first, last, _), row in zip(rows.tolist(), stages.tolist(), strict=True):
        if identity and min(row[first : last + 1]) < 0:
            raise ValueError(
                f"stages must be known where a nucleus is, got {min(row[first : last + 1])} for "
                f"id {identity}; use classes='nucleus' for clips without that truth"
            )
        found[identity] = row
    return found


def _describe_polygon(
    own: npt.NDArray[np.bool_], place: tuple[slice, slice]
) -> npt.NDArray[np.float64]:
    """Return one polygon ``(x, y)`` in pixels, from the corner of the image, ``[n, 2]``."""
    polygon, *others = trace_outlines(own, INSET)
    for other in others:
        here, there = divmod(int(cdist(polygon, other).argmin()), len(other))
        detour = np.concatenate([other[there:], other[: there + 1]])
        polygon = np.concatenate([polygon[: here + 1], detour, polygon[here:]])
    corner = place[1].start, place[0].start
    moved: npt.NDArray[np.float64] = polygon + np.array(corner)
    return moved
