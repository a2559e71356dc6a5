"""GEFF: the lineage of a clip as a graph exchange file, for motile, napari, tracksdata, ultrack."""

from pathlib import Path

import numpy as np

from bvdm_data.adapters.common import build_graph, check_units, list_tracks
from bvdm_data.clip import Clip
from bvdm_data.files import open_atomic_folder
from bvdm_data.system import require


def write_geff(
    clip: Clip,
    path: str | Path,
    *,
    pixel_size: float | None = None,
    minutes: float | None = None,
    labels: str | Path | None = None,
) -> None:
    """Write the nuclei of a clip and their lineage as a GEFF.

    A node is a nucleus in a frame. Its properties: ``t`` (frame), ``y`` and ``x`` (centroid,
    pixels), ``seg_id`` (its id in ``masks`` and ``tracks``), ``tracklet`` and ``lineage`` (in the
    sense of the GEFF specification: a parent with one daughter only goes on in it; the lineage is
    named after its first ancestor), and ``stage`` (index into ``STAGES``) if the clip has
    ``stages``. Edges lead from frame to frame within a track, and from the last frame of a parent
    to the first of its daughters. The axes say how frames become minutes and pixels micrometres,
    where that is given.

    Args:
        clip: One clip with ``masks`` and ``tracks``.
        path: Folder to write, in Zarr 2 as GEFF's own writer does.
        pixel_size: Side of a pixel, micrometres: ``pixel_size`` of the data set; None: not said.
        minutes: Time between two frames: ``minutes`` of the data set; None: not said.
        labels: Path of the masks from within the new folder, for example
            ``"../labels/nuclei/0"`` where it lies in a folder of :func:`write_ome_zarr`; None: the
            file names no masks.

    Raises:
        FileExistsError: If there is something at path.
        ImportError: If ``geff`` is not installed.
        OSError: If it cannot be written; nothing is left behind.
        ValueError: If a number is not above 0, or the clip has no masks or tracks, or they do not
            agree.
    """
    check_units(pixel_size, minutes)
    core = require("geff.core_io", "lineage")
    spec = require("geff_spec", "lineage")
    table = list_tracks(clip)
    nodes, edges = build_graph(clip, table)
    space: dict[str, object] = {"type": "space", "unit": "pixel"}
    time: dict[str, object] = {"type": "time", "unit": "frame"}
    if pixel_size is not None:
        space |= {"scale": pixel_size, "scaled_unit": "micrometer"}
    if minutes is not None:
        time |= {"scale": minutes, "scaled_unit": "minute"}
    place = labels.as_posix() if isinstance(labels, Path) else labels
    related = [spec.RelatedObject(type="labels", path=place, node_prop="seg_id")] if place else None
    metadata = spec.GeffMetadata(
        directed=True,
        axes=[
            spec.Axis(name="t", **time),
            spec.Axis(name="y", **space),
            spec.Axis(name="x", **space),
        ],
        node_props_metadata={},
        edge_props_metadata={},
        track_node_props={"tracklet": "tracklet", "lineage": "lineage"},
        display_hints=spec.DisplayHint(
            display_horizontal="x", display_vertical="y", display_time="t"
        ),
        related_objects=related,
    )
    properties = {name: {"values": values, "missing": None} for name, values in nodes.items()}
    with open_atomic_folder(path) as folder:
        core.write_arrays(
            folder,
            node_ids=np.arange(len(nodes["t"]), dtype=np.uint64),
            node_props=properties,
            edge_ids=edges,
            edge_props={},
            metadata=metadata,
        )
