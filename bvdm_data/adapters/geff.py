"""GEFF: the lineage of a clip as a graph exchange file, for motile, napari, tracksdata, ultrack."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bvdm_data.adapters.common import (
    check_positive,
    find_ancestors,
    get_tensor,
    list_tracks,
    number_ids,
)
from bvdm_data.clip import Clip, association, measure_boxes
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
    check_positive("pixel_size", pixel_size)
    check_positive("minutes", minutes)
    core = require("geff.core_io", "lineage")
    spec = require("geff_spec", "lineage")
    table = list_tracks(clip)
    nodes, edges = _graph(clip, table)
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


def _graph(
    clip: Clip, table: npt.NDArray[np.int32]
) -> tuple[dict[str, npt.NDArray[np.generic]], npt.NDArray[np.uint64]]:
    """Return the properties of the nodes, ordered by track and frame, and the edges [e, 2]."""
    masks, names = get_tensor(clip, "masks").numpy(), np.sort(table[:, 0])
    _, centroids = measure_boxes(number_ids(masks, names), len(table))
    places = [
        (identity, time)
        for identity, first, last, _ in table.tolist()
        for time in range(first, last + 1)
    ]
    node = {place: number for number, place in enumerate(places)}
    edges = [(node[one, t], node[other, t + 1]) for t, one, other in association(clip).tolist()]
    last_frames = dict(table[:, [0, 2]].tolist())
    edges += [
        (node[parent, last_frames[parent]], node[identity, first])
        for identity, first, _, parent in table.tolist()
        if parent and last_frames[parent] < first - 1
    ]
    ids, times = np.array(places, np.int64).reshape(-1, 2).T
    rows = np.searchsorted(names, ids)
    lines, tracklets = find_ancestors(table), _tracklets(table)
    nodes: dict[str, npt.NDArray[np.generic]] = {
        "t": times,
        "y": centroids[rows, times, 0],
        "x": centroids[rows, times, 1],
        "seg_id": ids,
        "tracklet": np.array([tracklets[one] for one in ids.tolist()], np.int64),
        "lineage": np.array([lines[one][-1] for one in ids.tolist()], np.int64),
    }
    if "stages" in clip:
        row_of = {one: row for row, one in enumerate(get_tensor(clip, "tracks")[:, 0].tolist())}
        of_node = [row_of[one] for one in ids.tolist()]
        nodes["stage"] = get_tensor(clip, "stages").numpy()[of_node, times]
    return nodes, np.array(edges, np.uint64).reshape(-1, 2)


def _tracklets(table: npt.NDArray[np.int32]) -> dict[int, int]:
    """Name tracklets after their first track; an only daughter goes on in her parent's."""
    daughters = np.bincount(table[:, 3], minlength=int(table[:, 0].max(initial=0)) + 1)
    names: dict[int, int] = {}
    for identity, _, _, parent in sorted(table.tolist(), key=lambda row: row[1]):
        names[identity] = names[parent] if parent and daughters[parent] == 1 else identity
    return names
