#!/usr/bin/env bash
# What: geff's converter from TrackMate XML, on a film with a frame every 10 minutes and a link
#       across a frame without a spot: which number of a spot becomes the time axis of the graph?
# Guess: FRAME, the whole number that says which image a spot is in.
# Seen: POSITION_T, the time in the units of the file: 0, 10, 30 min as floats. display_time names
#       it too. The axis has neither scale nor step, so frames cannot be got back from it; they are
#       left as the plain property FRAME.
# For cell video: a GEFF of a CTC folder counts frames, one of TrackMate minutes. A reader that
#       indexes masks with the time axis, or calls edges of more than 1 a gap, takes each link of
#       the latter for a gap. Take FRAME for such work, where the file has it.
# Versions: geff 1.3.1.1.3, geff-spec 1.3.0, networkx 3.6.1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  geff==1.3.1.1.3 geff-spec==1.3.0 networkx==3.6.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import warnings
from pathlib import Path
from xml.etree import ElementTree

import geff
from geff.convert import from_trackmate_xml_to_geff

warnings.simplefilter("ignore")
MINUTES = 10.0
root = ElementTree.Element("TrackMate", version="7.11.1")
model = ElementTree.SubElement(root, "Model", spatialunits="micron", timeunits="min")
declared = ElementTree.SubElement(model, "FeatureDeclarations")
for group, features in (
    ("SpotFeatures", ("POSITION_X", "POSITION_Y", "POSITION_Z", "POSITION_T", "FRAME", "RADIUS")),
    ("EdgeFeatures", ("SPOT_SOURCE_ID", "SPOT_TARGET_ID")),
    ("TrackFeatures", ("TRACK_ID",)),
):
    node = ElementTree.SubElement(declared, group)
    for name in features:
        whole = name.endswith("ID") or name == "FRAME"
        kind = {"POSITION_T": "TIME", "RADIUS": "LENGTH"}.get(
            name, "POSITION" if name.startswith("POSITION") else "NONE"
        )
        ElementTree.SubElement(
            node,
            "Feature",
            feature=name,
            name=name,
            shortname=name,
            dimension=kind,
            isint=str(whole).lower(),
        )
spots = ElementTree.SubElement(model, "AllSpots", nspots="3")
for t in range(4):
    frame = ElementTree.SubElement(spots, "SpotsInFrame", frame=str(t))
    if t != 2:
        place = {"X": 5.0 + t, "Y": 6.0, "Z": 0.0, "T": MINUTES * t}
        ElementTree.SubElement(
            frame,
            "Spot",
            ID=str(100 + t),
            name=f"ID{100 + t}",
            FRAME=str(t),
            RADIUS="3.0",
            **{f"POSITION_{axis}": str(value) for axis, value in place.items()},
        )
tracks = ElementTree.SubElement(model, "AllTracks")
track = ElementTree.SubElement(tracks, "Track", name="Track_0", TRACK_ID="0")
for source, target in ((100, 101), (101, 103)):
    ElementTree.SubElement(
        track, "Edge", SPOT_SOURCE_ID=str(source), SPOT_TARGET_ID=str(target)
    )
kept = ElementTree.SubElement(model, "FilteredTracks")
ElementTree.SubElement(kept, "TrackID", TRACK_ID="0")
settings = ElementTree.SubElement(root, "Settings")
ElementTree.SubElement(
    settings,
    "ImageData",
    filename="film.tif",
    folder="",
    width="64",
    height="64",
    nslices="1",
    nframes="4",
    pixelwidth="0.5",
    pixelheight="0.5",
    voxeldepth="1.0",
    timeinterval=str(MINUTES),
)
ElementTree.ElementTree(root).write("film.xml", encoding="UTF-8", xml_declaration=True)

from_trackmate_xml_to_geff(Path("film.xml"), Path("film.geff"))
graph, metadata = geff.read("film.geff")
(axis,) = (one for one in metadata.axes if one.type == "time")
times = [values[axis.name] for _, values in sorted(graph.nodes(data=True))]
frames = [values["FRAME"] for _, values in sorted(graph.nodes(data=True))]
print("time axis:", axis.name, axis.unit, "scale", axis.scale, "| values:", times)
print("display_time:", metadata.display_hints.display_time, "| FRAME:", frames)
assert axis.name == metadata.display_hints.display_time == "POSITION_T"
assert axis.scale is None and times == [0.0, 10.0, 30.0] and frames == [0, 1, 3]
PY
