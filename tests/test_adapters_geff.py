import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from bvdm_data.adapters.geff import write_geff
from bvdm_data.clip import annotate_masks
from tests.helpers.clips import SPARSE, make_planted_clip, make_sparse_clip

geff = pytest.importorskip("geff", reason="the package geff: extra lineage")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def clip(tiny_video):
    return make_planted_clip(tiny_video)


@pytest.fixture(scope="module")
def path(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("geff") / "tracks.geff"
    write_geff(clip, path, labels="../masks", pixel_size=0.5, minutes=5)
    return path


def in_memory(path):
    from geff.core_io import read_to_memory
    from geff.validate.data import ValidationConfig

    checks = ValidationConfig(graph=True, lineage=True, tracklet=True)
    return read_to_memory(path, data_validation=checks)


def test_geff_validates_the_file(clip, path):
    geff.validate_structure(path)
    found = in_memory(path)
    rows = clip["tracks"][:6].tolist()
    assert len(found["node_ids"]) == sum(last - first + 1 for _, first, last, _ in rows)


def test_geff_nodes_lie_at_centroids(clip, path):
    graph, _ = geff.read(path)
    seen = set()
    for _, node in graph.nodes(data=True):
        row, time = int(node["seg_id"]) - 1, int(node["t"])
        y, x = clip["centroids"][row, time].tolist()
        assert (node["y"], node["x"]) == pytest.approx((y, x))
        assert node["stage"] == clip["stages"][row, time]
        seen.add((time, row + 1))
    there = {(t, one) for t in range(12) for one in clip["masks"][t].unique().tolist() if one}
    assert seen == there


def test_geff_edges_follow_tracks_and_divisions(clip, path):
    graph, _ = geff.read(path)
    name = {key: (int(node["seg_id"]), int(node["t"])) for key, node in graph.nodes(data=True)}
    edges = {(name[source], name[target]) for source, target in graph.edges}
    wanted = {((2, 5), (4, 6)), ((2, 5), (5, 6))}
    for one, first, last, _ in clip["tracks"][:6].tolist():
        wanted |= {((one, time), (one, time + 1)) for time in range(first, last)}
    assert edges == wanted
    assert len(graph.edges) == len(wanted)


def test_geff_lineages_and_tracklets_match_tracks(path):
    graph, metadata = geff.read(path)
    assert metadata.track_node_props == {"tracklet": "tracklet", "lineage": "lineage"}
    family = {node["seg_id"]: node["lineage"] for _, node in graph.nodes(data=True)}
    assert family == {1: 1, 2: 2, 3: 3, 4: 2, 5: 2, 6: 6}
    assert all(node["tracklet"] == node["seg_id"] for _, node in graph.nodes(data=True))


def test_geff_only_daughter_continues_tracklet(tmp_path):
    masks = np.zeros((3, 8, 8), np.int32)
    masks[0, 2:5, 2:5], masks[2, 2:5, 3:6] = 1, 2  # hidden in frame 1
    table = np.array([[1, 0, 0, 0], [2, 2, 2, 1]])
    one = {"video": torch.zeros(3, 1, 8, 8), **annotate_masks(masks, table, ("masks", "tracks"), 4)}
    write_geff(one, tmp_path / "a.geff")
    found = in_memory(tmp_path / "a.geff")
    assert found["node_props"]["tracklet"]["values"].tolist() == [1, 1]
    assert found["node_props"]["seg_id"]["values"].tolist() == [1, 2]


@pytest.mark.parametrize("shift", [0, 70000])
@pytest.mark.parametrize("kind", SPARSE)
def test_geff_holds_sparse_clips(kind, shift, tmp_path):
    clip = make_sparse_clip(kind, shift)
    clip["stages"] = torch.arange(3, dtype=torch.int8).expand(len(clip["tracks"]), 3)
    write_geff(clip, tmp_path / "a.geff")
    found = in_memory(tmp_path / "a.geff")
    frames = SPARSE[kind]
    values = {key: one["values"].tolist() for key, one in found["node_props"].items()}
    assert values["t"] == values["stage"] == frames
    assert values["seg_id"] == [int(clip["masks"][time].max()) for time in frames]
    assert (values["y"], values["x"]) == ([9.5] * len(frames), [12.0] * len(frames))
    assert found["edge_ids"].tolist() == [[n, n + 1] for n in range(len(frames) - 1)]


def test_geff_axes_have_units(clip, path, tmp_path):
    metadata = geff.GeffMetadata.read(path)
    said = [(a.name, a.type, a.unit, a.scale, a.scaled_unit) for a in metadata.axes]
    assert said == [
        ("t", "time", "frame", 5.0, "minute"),
        ("y", "space", "pixel", 0.5, "micrometer"),
        ("x", "space", "pixel", 0.5, "micrometer"),
    ]
    write_geff(clip, tmp_path / "a.geff")
    axes = geff.GeffMetadata.read(tmp_path / "a.geff").axes
    assert [(a.unit, a.scale, a.scaled_unit) for a in axes] == [
        (unit, None, None) for unit in ("frame", "pixel", "pixel")
    ]
    (related,) = metadata.related_objects
    assert (related.type, related.path, related.node_prop) == ("labels", "../masks", "seg_id")


def test_geff_of_empty_clip_is_empty(clip, tmp_path):
    nothing = {key: 0 * clip[key] for key in ("video", "masks", "tracks")}
    for number, labels in enumerate([Path("..") / "masks", "https://disk.example/masks"]):
        path = tmp_path / f"{number}.geff"
        write_geff(nothing, path, labels=labels)
        assert len(in_memory(path)["node_ids"]) == 0
        related = geff.GeffMetadata.read(path).related_objects
        assert [one.path for one in related] == [str(labels)]


def test_write_geff_is_all_or_nothing(clip, tmp_path, monkeypatch):
    place = tmp_path / "a.geff"
    place.mkdir()
    with pytest.raises(FileExistsError, match=r"a\.geff is there already; remove it or give"):
        write_geff(clip, place)
    from geff import core_io

    def full(folder, **_):
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(core_io, "write_arrays", full)
    with pytest.raises(OSError, match="No space left"):
        write_geff(clip, tmp_path / "b.geff")
    for changes, error, words in (
        ({"pixel_size": 0}, ValueError, "pixel_size must be above 0, got 0"),
        ({"minutes": float("nan")}, ValueError, "minutes must be above 0, got nan"),
        ({"minutes": "30"}, TypeError, "minutes must be a number or None, got '30'"),
    ):
        with pytest.raises(error, match=words):
            write_geff(clip, tmp_path / "c.geff", **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["a.geff"]


def test_geff_example_writes_lineage_with_masks(tmp_path, capsys):
    pytest.importorskip("zarr", minversion="3", reason="zarr 3: extra ome")
    main = runpy.run_path(str(EXAMPLES / "export_lineage.py"))["main"]
    small = ["--frames", "3", "--size", "96", "--method", "procedural"]
    place = main([str(tmp_path / "out"), *small])
    names = {path.name for path in place.iterdir()}
    assert names == {"clip.ome.zarr", "clip.ome.tif", "ctc"}
    assert "clip.ome.zarr" in capsys.readouterr().out
    tracks = place / "clip.ome.zarr" / "tracks.geff"
    (related,) = geff.GeffMetadata.read(tracks).related_objects
    assert (tracks / related.path / "zarr.json").is_file()
    loaders = pytest.importorskip("traccuracy.loaders", reason="traccuracy: extra interop")
    masks = tracks / related.path
    graph = loaders.load_geff_data(str(tracks), seg_path=str(masks), seg_property="seg_id")
    assert graph.segmentation.shape == (3, 96, 96)
