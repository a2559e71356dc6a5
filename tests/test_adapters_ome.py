"""Clips as OME-TIFF and OME-Zarr, read back by the packages that others read them with."""

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import torch

from bvdm_data.adapters.ome import write_ome_tiff, write_ome_zarr
from bvdm_data.clip import CameraScale
from tests.helpers.clips import SPARSE, make_planted_clip, make_sparse_clip

zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3: extra ome")

SCALE = CameraScale(offset=32768, full=36863)


@pytest.fixture(scope="module")
def clip(tiny_video):
    return make_planted_clip(tiny_video, SCALE)


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("ome") / "clip.ome.zarr"
    write_ome_zarr(clip, path, scale=SCALE, pixel_size=0.5, minutes=5)
    return path


def imported(name):
    """Import a package that warns of itself when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name}: extra interop", exc_type=ImportError)


# OME-TIFF


def test_ome_tiff_holds_video_and_masks(clip, tiny_video, tmp_path):
    path = tmp_path / "clip.ome.tif"
    write_ome_tiff(clip, path, scale=SCALE, pixel_size=0.5, minutes=5)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert file.series[0].axes == "TCYX"
        stack = file.asarray()
        root = ElementTree.fromstring(file.ome_metadata)
    np.testing.assert_array_equal(stack[:, 0], tiny_video[0])
    np.testing.assert_array_equal(stack[:, 1], tiny_video[1])
    space = {"o": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    pixels = root.find(".//o:Pixels", space)
    said = {key: pixels.get(key) for key in ("PhysicalSizeX", "PhysicalSizeY", "TimeIncrement")}
    assert {key: float(value) for key, value in said.items()} == {
        "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "TimeIncrement": 5.0,
    }  # fmt: skip
    assert (pixels.get("PhysicalSizeXUnit"), pixels.get("TimeIncrementUnit")) == ("µm", "min")
    assert [one.get("Name") for one in pixels.findall("o:Channel", space)] == ["video", "masks"]


def test_ome_tiff_fits_the_schema(clip, tmp_path):
    ome_types = imported("ome_types")
    path = tmp_path / "clip.ome.tif"
    write_ome_tiff(clip, path, scale=SCALE, pixel_size=0.5, minutes=5)
    pixels = ome_types.from_tiff(path).images[0].pixels
    assert (pixels.size_t, pixels.size_c, pixels.size_y, pixels.size_x) == (12, 2, 128, 160)
    assert (pixels.physical_size_x, pixels.physical_size_x_unit.value) == (0.5, "µm")
    assert (pixels.time_increment, pixels.time_increment_unit.value) == (5, "min")


def test_ome_tiff_without_masks_or_units(clip, tmp_path):
    path = tmp_path / "clip.ome.tif"
    plain = {key: value for key, value in clip.items() if key not in ("masks", "tracks")}
    write_ome_tiff(plain, path, scale=SCALE)
    with tifffile.TiffFile(path) as file:
        assert "PhysicalSize" not in file.ome_metadata
        assert "TimeIncrement" not in file.ome_metadata
        assert file.series[0].get_shape(squeeze=False)[-4:] != (12, 2, 128, 160)
        assert file.asarray().size == 12 * 128 * 160


def test_ome_tiff_refuses_large_ids(clip, tmp_path):
    with pytest.raises(ValueError, match="ids up to 65535, got 65536; write_ome_zarr takes"):
        write_ome_tiff(
            {**clip, "masks": clip["masks"] + 65530}, tmp_path / "a.ome.tif", scale=SCALE
        )
    assert list(tmp_path.iterdir()) == []


# OME-Zarr


def test_ome_zarr_reads_back(clip, tiny_video, folder):
    group = zarr.open_group(folder, mode="r")
    image, labels = group["0"], group["labels/nuclei/0"]
    assert (image.dtype, labels.dtype) == (np.uint16, np.int32)
    np.testing.assert_array_equal(image[:], tiny_video[0])
    np.testing.assert_array_equal(labels[:], clip["masks"].numpy())
    assert group["labels"].attrs["ome"]["labels"] == ["nuclei"]


def test_ome_zarr_fits_the_models(folder):
    models = imported("ome_zarr_models")
    image = models.open_ome_zarr(zarr.open_group(folder, mode="r"))
    (level,) = image.attributes.ome.multiscales[0].datasets
    assert level.coordinateTransformations[0].scale == [5.0, 0.5, 0.5]
    axes = [(axis.name, axis.unit) for axis in image.attributes.ome.multiscales[0].axes]
    assert axes == [("t", "minute"), ("y", "micrometer"), ("x", "micrometer")]
    label = models.open_ome_zarr(zarr.open_group(folder / "labels/nuclei", mode="r"))
    assert type(label).__name__ == "ImageLabel"


def test_ome_zarr_says_no_unknown_units(clip, tmp_path):
    for name, known, scale in (("a", {}, [1, 1, 1]), ("b", {"minutes": 5}, [5, 1, 1])):
        write_ome_zarr(clip, tmp_path / name, scale=SCALE, **known)
        (image,) = zarr.open_group(tmp_path / name, mode="r").attrs["ome"]["multiscales"]
        units = {axis["name"]: axis["unit"] for axis in image["axes"] if "unit" in axis}
        assert units == ({"t": "minute"} if known else {})
        (level,) = image["datasets"]
        assert level["coordinateTransformations"][0]["scale"] == scale


def test_ome_zarr_reader_finds_labels(clip, folder):
    reader, io = imported("ome_zarr.reader"), imported("ome_zarr.io")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = list(reader.Reader(io.parse_url(str(folder)))())
    image = nodes[0]
    assert image.data[0].shape == (12, 128, 160)
    labels = [node for node in nodes if any(type(s).__name__ == "Label" for s in node.specs)]
    np.testing.assert_array_equal(np.asarray(labels[0].data[0]), clip["masks"].numpy())


@pytest.mark.parametrize("kind", SPARSE)
def test_ome_files_hold_sparse_clips(kind, tmp_path):
    clip = make_sparse_clip(kind)
    write_ome_tiff(clip, tmp_path / "a.ome.tif", scale=SCALE)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.ome.tif")[:, 1], clip["masks"])
    far = make_sparse_clip(kind, shift=70000)
    write_ome_zarr(far, tmp_path / "a.ome.zarr", scale=SCALE)
    labels = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")["labels/nuclei/0"]
    np.testing.assert_array_equal(labels[:], far["masks"])


def test_an_ome_zarr_replaces_nothing(clip, folder):
    with pytest.raises(FileExistsError, match="is there already; remove it or give another path"):
        write_ome_zarr(clip, folder, scale=SCALE)


@pytest.mark.parametrize("write", [write_ome_tiff, write_ome_zarr])
def test_counts_need_a_scale(clip, tmp_path, write):
    with pytest.raises(TypeError, match="scale must be a CameraScale, got None; give that of"):
        write(clip, tmp_path / "a", scale=None)
    assert list(tmp_path.iterdir()) == []


def test_an_ome_zarr_refuses_a_batch(clip, tmp_path):
    batch = {key: torch.stack([value, value]) for key, value in clip.items()}
    with pytest.raises(ValueError, match="clip must be one clip with video"):
        write_ome_zarr(batch, tmp_path / "a.ome.zarr", scale=SCALE)
    assert list(tmp_path.iterdir()) == []
