from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from bvdm_data.adapters.trackmate import write_trackmate
from bvdm_data.clip import CameraScale
from tests.helpers.clips import SPARSE, make_planted_clip, make_sparse_clip

SCALE = CameraScale(0, 65535)


@pytest.fixture(scope="module")
def clip(tiny_video):
    # Nucleus 2 divides into 4 and 5, which are there from frame 6 on.
    return make_planted_clip(tiny_video)


@pytest.fixture(scope="module")
def path(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("trackmate") / "clip.xml"
    write_trackmate(clip, path, scale=SCALE, pixel_size=0.5, minutes=5)
    return path


def list_edges(tracks):
    edges = {(2, 5, 4, 6), (2, 5, 5, 6)}
    for one, first, last, _ in tracks.tolist():
        edges |= {(one, time, one, time + 1) for time in range(first, last)}
    return edges


def test_trackmate_spots_are_nuclei_in_micrometres(clip, path, tiny_video):
    spots = ElementTree.parse(path).findall("Model/AllSpots/SpotsInFrame/Spot")
    seen = set()
    for spot in spots:
        about = {key: float(value) for key, value in spot.attrib.items()}
        row, time = int(about["NUCLEUS_ID"]) - 1, int(about["FRAME"])
        y, x = (clip["centroids"][row, time] * 0.5).tolist()
        assert (about["POSITION_Y"], about["POSITION_X"]) == pytest.approx((y, x))
        assert about["POSITION_T"] == 5 * time
        assert about["STAGE"] == clip["stages"][row, time]
        own = tiny_video[1][time] == row + 1
        assert about["RADIUS"] == pytest.approx(0.5 * np.sqrt(own.sum() / np.pi))
        assert spot.get("name") == str(row + 1)
        seen.add((time, row + 1))
    there = {(t, one) for t in range(12) for one in np.unique(tiny_video[1][t]).tolist() if one}
    assert seen == there
    assert len({spot.get("ID") for spot in spots}) == len(spots) == len(there)


def test_trackmate_outlines_enclose_the_nuclei(path, tiny_video):
    for spot in ElementTree.parse(path).findall("Model/AllSpots/SpotsInFrame/Spot"):
        # The reader splits at blanks, and takes the first word for a number.
        words = spot.text.split(" ")
        assert len(words) == 2 * int(spot.get("ROI_N_POINTS")) >= 6
        outline = np.array(words, float).reshape(-1, 2)
        x, y = (outline + [float(spot.get(f"POSITION_{axis}")) for axis in "XY"]).T / 0.5
        own = tiny_video[1][int(spot.get("FRAME"))] == int(spot.get("name"))
        rows, columns = np.nonzero(own)
        found = [x.min(), x.max(), y.min(), y.max()]
        wanted = [columns.min() - 0.5, columns.max() + 0.5, rows.min() - 0.5, rows.max() + 0.5]
        np.testing.assert_allclose(found, wanted, atol=1e-3)
        area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
        assert area == pytest.approx(own.sum(), rel=1e-3)


def test_trackmate_tracks_are_lineages(path, tiny_video):
    root = ElementTree.parse(path).getroot()
    name = {
        spot.get("ID"): (int(spot.get("NUCLEUS_ID")), int(spot.get("FRAME")))
        for spot in root.findall("Model/AllSpots/SpotsInFrame/Spot")
    }
    edges, families = [], {}
    for track in root.findall("Model/AllTracks/Track"):
        for edge in track.findall("Edge"):
            ends = name[edge.get("SPOT_SOURCE_ID")], name[edge.get("SPOT_TARGET_ID")]
            edges.append((*ends[0], *ends[1]))
            families.setdefault(int(track.get("TRACK_ID")), set()).update(end[0] for end in ends)
    assert set(edges) == list_edges(tiny_video[2])
    assert len(edges) == len(set(edges))
    assert families == {1: {1}, 2: {2, 4, 5}, 3: {3}, 6: {6}}
    shown = root.findall("Model/FilteredTracks/TrackID")
    assert [int(one.get("TRACK_ID")) for one in shown] == sorted(families)


def test_trackmate_file_has_what_readers_need(path):
    root = ElementTree.parse(path).getroot()
    assert root.find("Model").attrib == {"spatialunits": "micron", "timeunits": "min"}
    for kind, used in (("Spot", "AllSpots/SpotsInFrame/Spot"), ("Edge", "AllTracks/Track/Edge")):
        features = root.findall(f"Model/FeatureDeclarations/{kind}Features/Feature")
        declared = {one.get("feature") for one in features}
        carried = set(root.find(f"Model/{used}").attrib)
        assert carried - {"ID", "name", "ROI_N_POINTS"} == declared
    image = root.find("Settings/ImageData").attrib
    assert [image[key] for key in ("filename", "width", "height", "nframes")] == [
        "clip.tif", "160", "128", "12",
    ]  # fmt: skip
    assert (image["pixelwidth"], image["timeinterval"]) == ("0.5", "5")
    region = root.find("Settings/BasicSettings").attrib
    assert [region[f"{axis}end"] for axis in "xyzt"] == ["159", "127", "0", "11"]
    assert root.find("Settings/DetectorSettings").get("DETECTOR_NAME") == "MANUAL_DETECTOR"
    assert root.find("Settings/TrackerSettings").get("TRACKER_NAME") == "MANUAL_TRACKER"
    settings = ("InitialSpotFilter", "SpotFilterCollection", "TrackFilterCollection")
    analyzers = [f"AnalyzerCollection/{kind}Analyzers" for kind in ("Spot", "Edge", "Track")]
    assert [name for name in (*settings, *analyzers) if root.find(f"Settings/{name}") is None] == []


def test_trackmate_image_is_a_hyperstack(path, tiny_video):
    with tifffile.TiffFile(path.with_suffix(".tif")) as file:
        assert file.imagej_metadata["frames"] == 12
        assert file.imagej_metadata["unit"] == "micron"
        assert file.imagej_metadata["finterval"] == 300
        assert file.pages[0].resolution == (2, 2)
        assert np.array_equal(file.asarray(), tiny_video[0])


@pytest.mark.parametrize("shift", [0, 70000])
@pytest.mark.parametrize("kind", SPARSE)
def test_trackmate_holds_sparse_clips(kind, shift, tmp_path):
    clip = make_sparse_clip(kind, shift)
    write_trackmate(clip, tmp_path / "a.xml")
    model = ElementTree.parse(tmp_path / "a.xml").getroot().find("Model")
    assert model.attrib == {"spatialunits": "pixel", "timeunits": "frame"}
    spots = model.findall("AllSpots/SpotsInFrame/Spot")
    assert [int(spot.get("FRAME")) for spot in spots] == SPARSE[kind]
    ids = [int(clip["masks"][time].max()) for time in SPARSE[kind]]
    assert [int(spot.get("NUCLEUS_ID")) for spot in spots] == ids
    assert [(spot.get("POSITION_X"), spot.get("POSITION_Y")) for spot in spots] == [
        ("12.0", "9.5")
    ] * len(spots)
    edges = [
        (edge.get("SPOT_SOURCE_ID"), edge.get("SPOT_TARGET_ID"))
        for edge in model.findall("AllTracks/Track/Edge")
    ]
    assert edges == [(str(n), str(n + 1)) for n in range(len(spots) - 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.xml"]


@pytest.mark.filterwarnings("ignore")
def test_geff_reads_trackmate_lineage(path, tiny_video, tmp_path):
    convert = pytest.importorskip("geff.convert", reason="the package geff: extra lineage")
    convert.from_trackmate_xml_to_geff(path, tmp_path / "a.geff")
    import geff

    graph, metadata = geff.read(tmp_path / "a.geff")
    name = {key: (int(node["NUCLEUS_ID"]), int(node["FRAME"])) for key, node in graph.nodes.items()}
    found = {(*name[one], *name[other]) for one, other in graph.edges}
    assert found == list_edges(tiny_video[2])
    family = {node["NUCLEUS_ID"]: node["TRACK_ID"] for node in graph.nodes.values()}
    assert family == {1: 1, 2: 2, 3: 3, 4: 2, 5: 2, 6: 6}
    units = {axis.name: axis.unit for axis in metadata.axes}
    assert (units["POSITION_X"], units["POSITION_T"]) == ("micron", "min")


@pytest.mark.filterwarnings("ignore")
def test_pycellin_reads_trackmate_lineage(path):
    pycellin = pytest.importorskip("pycellin", reason="the package pycellin: extra interop")
    model = pycellin.load_TrackMate_XML(str(path))
    lineages = {one.graph["lineage_ID"]: one for one in model.get_cell_lineages()}
    assert sorted(lineages) == [1, 2, 3, 6]
    (division,) = lineages[2].get_divisions()
    assert lineages[2].nodes[division]["NUCLEUS_ID"] == 2
    daughters = lineages[2].successors(division)
    assert {lineages[2].nodes[one]["NUCLEUS_ID"] for one in daughters} == {4, 5}


def test_write_trackmate_refuses_bad_arguments(clip, tmp_path):
    for changes, error, words in (
        ({"pixel_size": 0}, ValueError, "pixel_size must be above 0, got 0"),
        ({"minutes": "5"}, TypeError, "minutes must be a number or None, got '5'"),
        ({"scale": 3}, TypeError, "scale must be a CameraScale, got 3"),
        ({"path": tmp_path / "a.tif"}, ValueError, r"path must not end in \.tif, .*; give \*\.xml"),
    ):
        with pytest.raises(error, match=words):
            write_trackmate(clip, **{"path": tmp_path / "a.xml", **changes})
    assert list(tmp_path.iterdir()) == []
