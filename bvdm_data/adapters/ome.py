"""OME: clips as OME-TIFF and OME-Zarr, for Fiji, napari, QuPath, OMERO and viewers of the web."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bvdm_data.adapters.common import check_units, convert_to_counts, get_tensor
from bvdm_data.clip import LARGEST_COUNT, CameraScale, Clip
from bvdm_data.datasets.tiff import write_stack
from bvdm_data.files import open_atomic, open_atomic_folder
from bvdm_data.system import require

AXES = (("t", "time", "minute"), ("y", "space", "micrometer"), ("x", "space", "micrometer"))
"""Axes of images in an OME-Zarr, with their types and units in the words of its specification."""

LABELS = "nuclei"
"""Name of the label image in an OME-Zarr."""


def write_ome_tiff(
    clip: Clip,
    path: str | Path,
    *,
    scale: CameraScale,
    pixel_size: float | None = None,
    minutes: float | None = None,
) -> None:
    """Write a clip as OME-TIFF ``TCYX`` uint16: channel ``video``, and ``masks`` if there are any.

    Args:
        clip: One clip.
        path: Where to, by custom ``*.ome.tif``; a file that is there is replaced.
        scale: How grey values and counts belong together: the ``scale`` of the data set.
        pixel_size: Side of a pixel, micrometres: ``pixel_size`` of the data set; None: not said.
        minutes: Time between two frames: ``minutes`` of the data set; None: not said.

    Raises:
        OSError: If the file cannot be written; what stood at path before is still there.
        TypeError: If a number is none, or scale is no CameraScale.
        ValueError: If a number is not above 0, the clip is a batch, or an id is above 65535.
    """
    check_units(pixel_size, minutes)
    channels = {"video": convert_to_counts(clip, scale)}
    if "masks" in clip:
        masks = get_tensor(clip, "masks").numpy()
        if masks.max(initial=0) > LARGEST_COUNT:
            raise ValueError(
                f"clip must have ids up to {LARGEST_COUNT}, got {masks.max()}; write_ome_zarr "
                "takes larger ones"
            )
        channels["masks"] = masks.astype(np.uint16)
    metadata: dict[str, object] = {"axes": "TCYX", "Channel": {"Name": list(channels)}}
    if pixel_size is not None:
        metadata |= dict.fromkeys(("PhysicalSizeX", "PhysicalSizeY"), float(pixel_size))
        metadata |= dict.fromkeys(("PhysicalSizeXUnit", "PhysicalSizeYUnit"), "µm")
    if minutes is not None:
        metadata |= {"TimeIncrement": float(minutes), "TimeIncrementUnit": "min"}
    stack = np.stack(list(channels.values()), axis=1)
    with open_atomic(Path(path).expanduser()) as temporary:
        # zlib, not LZW: readers without imagecodecs know it, too.
        write_stack(temporary, stack, ome=True, compression="zlib", metadata=metadata)


def write_ome_zarr(
    clip: Clip,
    path: str | Path,
    *,
    scale: CameraScale,
    pixel_size: float | None = None,
    minutes: float | None = None,
) -> None:
    """Write a clip as OME-Zarr 0.5: the image ``TYX`` uint16, the masks under ``labels``.

    The masks are the label image ``labels/nuclei`` ``TYX`` int32. Both have one resolution and
    the axes of :func:`write_geff`. The name of the channel and the range of its counts are in the
    ``omero`` part, so that viewers show the nuclei.

    Args:
        clip: One clip; without ``masks`` there are no labels.
        path: Folder to write, by custom ``*.ome.zarr``.
        scale: How grey values and counts belong together: the ``scale`` of the data set.
        pixel_size: Side of a pixel, micrometres: ``pixel_size`` of the data set; None: not said.
        minutes: Time between two frames: ``minutes`` of the data set; None: not said.

    Raises:
        FileExistsError: If there is something at path.
        ImportError: If ``zarr`` is not installed.
        OSError: If it cannot be written; nothing is left behind.
        TypeError: If a number is none, or scale is no CameraScale.
        ValueError: If a number is not above 0, or the clip is a batch.
    """
    check_units(pixel_size, minutes)
    zarr = require("zarr", "ome")
    counts = convert_to_counts(clip, scale)
    steps = [minutes, pixel_size, pixel_size]
    with open_atomic_folder(path) as folder:
        image = zarr.open_group(folder, mode="w", zarr_format=3)
        _write_level(
            image, counts, Path(path).name, steps, {"omero": _describe_channel(counts, scale)}
        )
        if "masks" in clip:
            labels = image.create_group("labels", attributes=_wrap({"labels": [LABELS]}))
            masks = get_tensor(clip, "masks").numpy()
            source = {"image-label": {"source": {"image": "../../"}}}
            _write_level(labels.create_group(LABELS), masks, LABELS, steps, source)


def _write_level(
    group: Any,
    frames: npt.NDArray[np.integer],
    name: str,
    steps: list[float | None],
    more: dict[str, Any],
) -> None:
    """Write ``[F, H, W]`` as the only resolution of an image, one chunk a frame."""
    group.create_array(
        "0",
        data=frames,
        chunks=(1, *frames.shape[1:]),
        dimension_names=[axis for axis, _, _ in AXES],
    )
    axes = [
        {"name": axis, "type": kind} | ({} if step is None else {"unit": unit})
        for (axis, kind, unit), step in zip(AXES, steps, strict=True)
    ]
    scale = [1.0 if step is None else float(step) for step in steps]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    multiscales = [{"name": name, "axes": axes, "datasets": [level]}]
    group.attrs.update(_wrap({"multiscales": multiscales, **more}))


def _wrap(metadata: dict[str, Any]) -> dict[str, Any]:
    return {"ome": {"version": "0.5", **metadata}}


def _describe_channel(counts: npt.NDArray[np.uint16], scale: CameraScale) -> dict[str, Any]:
    """Return the ``omero`` part: the channel, and from which to which count it is shown."""
    low, high = int(counts.min()), int(counts.max())
    window = {"min": scale.offset, "max": scale.full, "start": low, "end": max(high, low + 1)}
    channel = {"label": "video", "color": "FFFFFF", "active": True, "window": window}
    return {"channels": [channel], "rdefs": {"model": "greyscale"}}
