"""TrackMate: nuclei and lineage of a clip as a file that Fiji's TrackMate opens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.adapters.common import (
    build_graph,
    check_units,
    convert_to_counts,
    get_tensor,
    list_tracks,
    trace_outlines,
)
from bvdm_data.clip import CameraScale, Clip
from bvdm_data.datasets.tiff import write_stack
from bvdm_data.files import open_atomic

# The version of TrackMate whose layout the file has: the first with outlines of spots.
VERSION = "7.0.0"
# What spots, edges and tracks carry: key, name, dimension, and whether it is a whole number.
FEATURES = {
    "Spot": (
        ("QUALITY", "Quality", "QUALITY", False),
        ("POSITION_X", "X", "POSITION", False),
        ("POSITION_Y", "Y", "POSITION", False),
        ("POSITION_Z", "Z", "POSITION", False),
        ("POSITION_T", "T", "TIME", False),
        ("FRAME", "Frame", "NONE", True),
        ("RADIUS", "Radius", "LENGTH", False),
        ("VISIBILITY", "Visibility", "NONE", True),
        ("NUCLEUS_ID", "Nucleus ID", "NONE", True),
        ("STAGE", "Stage", "NONE", True),
    ),
    "Edge": (
        ("SPOT_SOURCE_ID", "Source spot ID", "NONE", True),
        ("SPOT_TARGET_ID", "Target spot ID", "NONE", True),
        ("LINK_COST", "Edge cost", "COST", False),
    ),
    "Track": (("TRACK_INDEX", "Track index", "NONE", True), ("TRACK_ID", "Track ID", "NONE", True)),
}
ANALYZERS = ("SpotAnalyzers", "EdgeAnalyzers", "TrackAnalyzers")

Nodes = dict[str, npt.NDArray[np.generic]]


def write_trackmate(
    clip: Clip,
    path: str | Path,
    *,
    scale: CameraScale | None = None,
    pixel_size: float | None = None,
    minutes: float | None = None,
) -> None:
    """Write the nuclei of a clip and their lineage as a file of TrackMate.

    In Fiji: *Plugins, Tracking, Load a TrackMate file*. A spot is a nucleus in a frame: place
    (centroid), radius (of a disc as large), outline (of the largest piece, without holes), and,
    as name and as ``NUCLEUS_ID``, its id in ``masks`` and ``tracks``; ``STAGE`` (index into
    ``STAGES``) if the clip has ``stages``. A track is a lineage with its divisions, named after
    its first ancestor; a nucleus that is there in one frame only, without relatives, is a spot of
    no track. Saved again by TrackMate, the file keeps all that.

    Args:
        clip: One clip with ``masks`` and ``tracks``.
        path: Where to, by custom ``*.xml``; a file that is there is replaced.
        scale: The ``scale`` of the data set: the video is written beside the file, as ``.tif``,
            and TrackMate shows it. None: it shows the nuclei on black.
        pixel_size: Side of a pixel, micrometres: ``pixel_size`` of the data set; None: places are
            in pixels.
        minutes: Time between two frames: ``minutes`` of the data set; None: times are in frames.

    Raises:
        OSError: If a file cannot be written; what stood at path before is still there.
        TypeError: If a number is none, or scale is no CameraScale.
        ValueError: If a number is not above 0, path ends in ``.tif``, or the clip has no masks or
            tracks, or they do not agree.
    """
    check_units(pixel_size, minutes)
    target = Path(path).expanduser()
    image = target.with_suffix(".tif")
    if image == target:
        raise ValueError(f"path must not end in .tif, as the video does, got {path}; give *.xml")
    masks, (nodes, edges) = get_tensor(clip, "masks").numpy(), build_graph(clip, list_tracks(clip))
    root = ElementTree.Element("TrackMate", version=VERSION)
    ElementTree.SubElement(root, "Log").text = "Written by bvdm_data."
    units = {"spatialunits": "micron" if pixel_size else "pixel"}
    units["timeunits"] = "min" if minutes else "frame"
    model = ElementTree.SubElement(root, "Model", units)
    declared = ElementTree.SubElement(model, "FeatureDeclarations")
    for kind, features in FEATURES.items():
        group = ElementTree.SubElement(declared, f"{kind}Features")
        for key, name, dimension, is_whole in features:
            if key != "STAGE" or "stage" in nodes:
                about = {"feature": key, "name": name, "shortname": name, "dimension": dimension}
                ElementTree.SubElement(group, "Feature", about, isint=str(is_whole).lower())
    _add_spots(model, masks, nodes, pixel_size or 1.0, minutes or 1.0)
    _add_tracks(model, nodes["lineage"], edges)
    shown = "" if scale is None else image.name
    _add_settings(root, masks.shape, shown, pixel_size or 1.0, minutes or 1.0)
    ElementTree.SubElement(root, "GUIState", state="ConfigureViews")
    ElementTree.SubElement(root, "DisplaySettings")
    ElementTree.indent(root)
    if scale is not None:
        metadata: dict[str, object] = {"axes": "TYX"}
        metadata |= {} if pixel_size is None else {"unit": "micron"}
        metadata |= {} if minutes is None else {"finterval": float(minutes) * 60, "tunit": "sec"}
        resolution = None if pixel_size is None else (1 / pixel_size, 1 / pixel_size)
        options: dict[str, Any] = {"resolution": resolution, "metadata": metadata}
        with open_atomic(image) as temporary:
            write_stack(temporary, convert_to_counts(clip, scale), imagej=True, **options)
    with open_atomic(target) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="UTF-8", xml_declaration=True)


def _add_spots(
    model: ElementTree.Element,
    masks: npt.NDArray[np.int32],
    nodes: Nodes,
    pixel_size: float,
    minutes: float,
) -> None:
    """Add the nuclei of each frame, numbered as the nodes are."""
    group = ElementTree.SubElement(model, "AllSpots", nspots=str(len(nodes["t"])))
    for frame, mask in enumerate(masks):
        here = np.flatnonzero(nodes["t"] == frame)
        if not len(here):
            continue
        places = ndimage.find_objects(mask)
        inside = ElementTree.SubElement(group, "SpotsInFrame", frame=str(frame))
        for number in here.tolist():
            identity = int(nodes["seg_id"][number])
            rows, columns = places[identity - 1]
            own = mask[rows, columns] == identity
            y, x = (float(nodes[axis][number]) * pixel_size for axis in "yx")
            # The centre of the first pixel is at 0, its corner half a pixel before that.
            corner = [columns.start - 0.5, rows.start - 0.5]
            outline = (trace_outlines(own)[0] + corner) * pixel_size - [x, y]
            about = {
                "ID": number, "name": identity, "QUALITY": 1.0, "POSITION_X": x, "POSITION_Y": y,
                "POSITION_Z": 0.0, "POSITION_T": frame * minutes, "FRAME": frame,
                "RADIUS": float(np.sqrt(own.sum() / np.pi)) * pixel_size, "VISIBILITY": 1,
                "NUCLEUS_ID": identity, "ROI_N_POINTS": len(outline),
            }  # fmt: skip
            if "stage" in nodes:
                about["STAGE"] = int(nodes["stage"][number])
            spot = ElementTree.SubElement(inside, "Spot", _as_text(about))
            spot.text = " ".join(f"{value:.6g}" for value in outline.ravel())  # no blank ahead


def _add_tracks(
    model: ElementTree.Element, lineages: npt.NDArray[np.generic], edges: npt.NDArray[np.uint64]
) -> None:
    """Add the lineages that have an edge, by the ids of their first ancestors."""
    group = ElementTree.SubElement(model, "AllTracks")
    shown = ElementTree.SubElement(model, "FilteredTracks")
    of_edge = lineages[edges[:, 0]]
    for index, lineage in enumerate(np.unique(of_edge).tolist()):
        about = {"name": f"Track_{lineage}", "TRACK_ID": lineage, "TRACK_INDEX": index}
        track = ElementTree.SubElement(group, "Track", _as_text(about))
        for source, target in edges[of_edge == lineage].tolist():
            link = {"SPOT_SOURCE_ID": source, "SPOT_TARGET_ID": target, "LINK_COST": 0.0}
            ElementTree.SubElement(track, "Edge", _as_text(link))
        ElementTree.SubElement(shown, "TrackID", TRACK_ID=str(lineage))


def _add_settings(
    root: ElementTree.Element, shape: tuple[int, ...], image: str, pixel_size: float, minutes: float
) -> None:
    """Add the image and, as nothing was detected, the settings of work by hand."""
    frames, height, width = shape
    group = ElementTree.SubElement(root, "Settings")
    about = {
        "filename": image, "folder": "", "width": width, "height": height, "nslices": 1,
        "nframes": frames, "pixelwidth": pixel_size, "pixelheight": pixel_size, "voxeldepth": 1.0,
        "timeinterval": minutes,
    }  # fmt: skip
    ElementTree.SubElement(group, "ImageData", _as_text(about))
    ends = {"x": width - 1, "y": height - 1, "z": 0, "t": frames - 1}
    region = {f"{axis}start": 0 for axis in ends} | {f"{axis}end": n for axis, n in ends.items()}
    ElementTree.SubElement(group, "BasicSettings", _as_text(region))
    detector = {"DETECTOR_NAME": "MANUAL_DETECTOR", "RADIUS": 10 * pixel_size}
    ElementTree.SubElement(group, "DetectorSettings", _as_text(detector))
    quality = {"feature": "QUALITY", "value": "0.0", "isabove": "true"}
    ElementTree.SubElement(group, "InitialSpotFilter", quality)
    ElementTree.SubElement(group, "SpotFilterCollection")
    ElementTree.SubElement(group, "TrackerSettings", TRACKER_NAME="MANUAL_TRACKER")
    ElementTree.SubElement(group, "TrackFilterCollection")
    analyzers = ElementTree.SubElement(group, "AnalyzerCollection")
    for name in ANALYZERS:
        ElementTree.SubElement(analyzers, name)


def _as_text(values: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}
