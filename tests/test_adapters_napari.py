import importlib
import importlib.metadata
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from bvdm_data.adapters import napari as adapter
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.export import export
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.datasets.tiff import write_image
from bvdm_data.weights import load
from tests.helpers.clips import SPARSE, make_sparse_clip, run_snippet

MANIFEST = Path(adapter.__file__).with_name("napari.yaml")


@pytest.fixture(scope="module")
def clip(tiny_ctc):
    # Nucleus 2 divides into 5 and 6, 4 enters late, 3 leaves.
    return CTCVideos(tiny_ctc, frames=12, size=(128, 160), border=0, windows="grid").clip(0)


def kinds(made):
    return [(about["name"], kind) for _, about, kind in made]


def centres(masks):
    rows = []
    for identity in range(1, int(masks.max()) + 1):
        for frame, mask in enumerate(masks):
            places = np.argwhere(mask == identity)
            if len(places):
                rows.append((identity, frame, *places.mean(0)))
    return np.array(rows)


def test_napari_layers_are_image_labels_tracks(clip):
    made = adapter.layers(clip, "mine")
    assert kinds(made) == [
        ("mine video", "image"),
        ("mine masks", "labels"),
        ("mine tracks", "tracks"),
    ]
    video, masks, tracks = (data for data, _, _ in made)
    assert (video == clip["video"][:, 0].numpy()).all()
    assert (masks == clip["masks"].numpy()).all()
    assert (video.shape, masks.shape, masks.dtype) == ((12, 128, 160), (12, 128, 160), np.int32)
    np.testing.assert_allclose(tracks, centres(masks))
    low, high = made[0][1]["contrast_limits"]
    assert video.min() <= low < high <= video.max()

    table = clip["tracks"].numpy()
    divided = {int(row[0]): [int(row[3])] for row in table if row[3]}
    assert divided == {5: [2], 6: [2]}
    assert made[2][1]["graph"] == divided


@pytest.mark.parametrize("kind", SPARSE)
def test_napari_layers_of_sparse_clips(kind):
    given, frames = make_sparse_clip(kind, shift=70000), SPARSE[kind]
    made = adapter.layers(given)
    assert kinds(made)[2:] == ([("tracks", "tracks")] if frames else [])
    assert np.array_equal(made[1][0], given["masks"])
    for rows, about, _ in made[2:]:
        ids = [int(given["masks"][time].max()) for time in frames]
        assert rows.tolist() == [[one, t, 9.5, 12] for one, t in zip(ids, frames, strict=True)]
        assert about["graph"] == ({70002: [70001]} if kind == "with a gap" else {})


def test_napari_layers_follow_the_clip(clip):
    video = {"video": clip["video"]}
    assert kinds(adapter.layers(video)) == [("video", "image")]
    assert kinds(adapter.layers({**video, "masks": clip["masks"]})) == [
        ("video", "image"),
        ("masks", "labels"),
    ]
    empty = {**clip, "masks": torch.zeros_like(clip["masks"])}
    assert len(adapter.layers({**empty, "tracks": torch.zeros_like(clip["tracks"])})) == 2
    black = adapter.layers({"video": torch.zeros_like(clip["video"])})
    assert black[0][1]["contrast_limits"] == (0, 1)
    with pytest.raises(ValueError, match="clip must be one clip with video"):
        adapter.layers(default_collate([clip, clip]))


@pytest.mark.parametrize("inner", ["", "01", "01_GT/TRA/man_track.txt"])
def test_napari_reads_ctc_by_any_path(inner, tiny_ctc, tiny_video):
    path = str(tiny_ctc / inner)
    assert adapter.reader(path) is adapter.read
    made = adapter.read(path)
    assert kinds(made) == [("01 video", "image"), ("01 masks", "labels"), ("01 tracks", "tracks")]
    counts, masks, tracks = tiny_video
    assert made[0][0].dtype == np.uint16
    assert (made[0][0] == counts).all()
    assert (made[1][0] == masks).all()
    np.testing.assert_allclose(made[2][0], centres(masks))
    assert made[2][1]["graph"] == {int(row[0]): [int(row[3])] for row in tracks if row[3]}


def test_napari_reads_all_videos_of_folder(tiny_video, tmp_path):
    write_sequence(tmp_path, "01", *tiny_video)
    write_sequence(tmp_path, "02", *tiny_video)
    names = [about["name"] for _, about, _ in adapter.read(str(tmp_path))]
    assert names == [
        f"{video} {kind}" for video in ("01", "02") for kind in ("video", "masks", "tracks")
    ]
    assert len(adapter.read(str(tmp_path / "02"))) == 3
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "01").symlink_to(tmp_path / "01")
    assert kinds(adapter.read(str(tmp_path / "alone"))) == [("01 video", "image")]


def test_napari_reads_export_with_lineage(tiny_model, tmp_path):
    given = {"frames": 14, "size": (96, 96), "sequences": 1, "nuclei": 6, "progress": False}
    export(tmp_path, model=tiny_model, **given)
    video, masks, tracks = adapter.read(str(tmp_path))
    assert video[0].shape == masks[0].shape == (14, 96, 96)
    table = np.loadtxt(tmp_path / "01_GT" / "TRA" / "man_track.txt", int, ndmin=2)
    assert set(tracks[0][:, 0].astype(int)) == set(table[:, 0])
    assert tracks[1]["graph"] == {
        child: [parent] for child, _, _, parent in table.tolist() if parent
    }
    assert tracks[1]["graph"]


def test_napari_keeps_untracked_masks(tiny_video, tmp_path):
    counts, masks, tracks = tiny_video
    root = tmp_path / "data"
    write_sequence(root, "01", counts, masks, tracks)
    shutil.rmtree(root / "01_GT/SEG")
    silver = masks[0].copy()
    silver[2:8, 2:8] = 9
    (root / "01_ST" / "SEG").mkdir(parents=True)
    write_image(root / "01_ST" / "SEG" / "man_seg000.tif", silver.astype(np.uint16))
    _, labels, places = adapter.read(str(root))
    assert len(np.unique(labels[0][0])) == len(np.unique(masks[0])) + 1
    assert not labels[0][1:].any()
    assert places[0][:, 0].tolist() == [1, 2, 3]


def test_napari_ignores_other_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "t000.tif").touch()
    assert adapter.reader("/man_track.txt") is None
    for name in ("missing", "t000.tif", "empty"):
        path = str(tmp_path / name)
        assert adapter.reader(path) is None
        assert adapter.reader([path]) is None
        with pytest.raises(FileNotFoundError, match="path must be a folder in the layout of the"):
            adapter.read(path)


def test_napari_sample_is_shipped_clip(monkeypatch):
    monkeypatch.setattr(adapter, "SAMPLE_FRAMES", 3)
    video, masks, tracks = adapter.sample()
    clip = SyntheticHeLaVideos(frames=3, size=256).clip(0)
    assert (video[0] == clip["video"][:, 0].numpy()).all()
    assert (masks[0] == clip["masks"].numpy()).all()
    assert len(tracks[0]) > 3


def test_napari_sliders_are_arguments():
    asked = {"variation": 0, "density": 0.5, "frames": 3, "size": 96, "seed": 7, "minutes": 60}
    video, masks, _ = adapter.make_layers(**asked)
    density = float(load().motion.density.mean())
    nuclei = round(0.5 * density * 96**2)
    clip = SyntheticHeLaVideos(
        frames=3, size=96, seed=7, nuclei=nuclei, variation=0, minutes=60
    ).clip(0)
    assert (video[0] == clip["video"][:, 0].numpy()).all()
    assert (masks[0] == clip["masks"].numpy()).all()
    assert video[1]["name"] == "seed 7 video"


def test_consumers_snippet_runs(capsys):
    run_snippet("Looking:")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["image video (8, 128, 128)", "labels masks (8, 128, 128)"]
    assert lines[2].startswith("tracks tracks (")


def test_napari_manifest_is_registered():
    (entry,) = importlib.metadata.entry_points(group="napari.manifest", name="bvdm-data")
    package, _, name = entry.value.partition(":")
    found = Path(importlib.import_module(package).__file__).with_name(name)
    assert found == MANIFEST
    lines = [line.split(":", 1) for line in found.read_text().splitlines() if "python_name" in line]
    for _, value in lines:
        module, _, function = value.strip().partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    assert len(lines) == 3


def test_napari_names_its_missing_extra(clip, monkeypatch):
    real = importlib.import_module

    def missing(name, *rest):
        if name == "napari":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"'napari', .* pip install 'bvdm-data\[napari\]'"):
        adapter.view(clip)


@pytest.mark.filterwarnings("ignore")
def test_napari_validates_the_manifest():
    npe2 = pytest.importorskip("npe2", reason="the extra napari is not installed")
    manifest = npe2.PluginManifest.from_distribution("bvdm-data")
    manifest.validate_imports()
    assert manifest.contributions.sample_data[0].key == "clip"
    assert manifest.contributions.readers[0].accepts_directories
    assert manifest.contributions.widgets[0].display_name == "Make clips"


@pytest.fixture
def viewer():
    """Return all of a viewer but its window, which would need a screen."""
    pytest.importorskip("napari", reason="the extra napari is not installed")
    from napari.components import ViewerModel
    from npe2 import PluginManager

    PluginManager.instance().discover()
    return ViewerModel()


@pytest.mark.filterwarnings("ignore")
def test_napari_shows_clip_with_lineage(clip, viewer):
    assert adapter.view(clip, viewer) is viewer
    _, masks, tracks = viewer.layers
    assert [type(layer).__name__ for layer in viewer.layers] == ["Image", "Labels", "Tracks"]
    assert tuple(viewer.dims.range[0])[:2] == (0, 11)
    np.testing.assert_array_equal(masks.data, clip["masks"].numpy())
    np.testing.assert_allclose(tracks.data, centres(clip["masks"].numpy()))
    assert tracks.graph == {5: [2], 6: [2]}


@pytest.mark.filterwarnings("ignore")
def test_napari_opens_folder_and_sample(tiny_ctc, viewer, monkeypatch):
    opened = viewer.open(str(tiny_ctc), plugin="bvdm-data")
    assert [layer.name for layer in opened] == ["01 video", "01 masks", "01 tracks"]
    monkeypatch.setattr(adapter, "SAMPLE_FRAMES", 2)
    made = viewer.open_sample("bvdm-data", "clip")
    assert [type(layer).__name__ for layer in made] == ["Image", "Labels", "Tracks"]


@pytest.mark.filterwarnings("ignore")
def test_napari_widget_makes_clips(monkeypatch):
    npe2 = pytest.importorskip("npe2", reason="the extra napari is not installed")
    pytest.importorskip("qtpy.QtWidgets", reason="Qt is not installed", exc_type=ImportError)
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    npe2.PluginManager.instance().discover()
    (about,) = npe2.PluginManager.instance().get_manifest("bvdm-data").contributions.widgets
    widget = about.get_callable()()
    kinds = {one.name: type(one).__name__ for one in widget}
    sliders = ["variation", "density", "frames", "size", "minutes"]
    assert [kinds[name] for name in sliders] == ["FloatSlider"] * 2 + ["Slider"] * 3
    assert kinds["seed"] == "SpinBox"
    asked = {"density": 1.5, "frames": 3, "size": 96, "seed": 2, "minutes": 60}
    for name, value in asked.items():
        widget[name].value = value
    made = []
    widget.called.connect(made.extend)
    widget.call_button.clicked.emit(True)
    for (data, about, kind), (found, *rest) in zip(adapter.make_layers(**asked), made, strict=True):
        np.testing.assert_array_equal(found, data)
        assert rest == [about, kind]
