#!/usr/bin/env bash
# What: the time between frames as bioio gives it (time_interval), for a film of label masks with a
#       frame every 10 minutes: an OME-TIFF with TimeIncrement="10.0" TimeIncrementUnit="min", and
#       an OME-Zarr 0.5 with a scale of 10 and the unit "minute" on its time axis.
# Guess: a timedelta of 10 minutes from both.
# Seen: None from the OME-TIFF (though its T coordinates are numbered 0, 10, 20 ...); the bare
#       number 10.0 from the OME-Zarr, and 600.0 if that file counts seconds: no timedelta. The unit
#       is in dimension_properties for OME-Zarr; for OME-TIFF there is none, nor for the size of a
#       pixel, so 645 nm come back as 645.
# For cell video: speeds, cell-cycle lengths and cut-offs of linking that are computed from this
#       value are off by 60, or wait for a number that is in the file. Read the increment of an
#       OME-TIFF from its XML (ome_metadata), and the unit of an OME-Zarr beside its scale.
# Versions: bioio 3.6.0, bioio-base 3.5.0, bioio-ome-tiff 1.4.0, bioio-ome-zarr 3.8.1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  bioio==3.6.0 bioio-base==3.5.0 bioio-ome-tiff==1.4.0 bioio-ome-zarr==3.8.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import warnings

import bioio_ome_tiff
import bioio_ome_zarr
import numpy as np
import tifffile
import zarr
from bioio import BioImage

warnings.simplefilter("ignore")
masks = np.zeros((4, 64, 48), np.uint16)
masks[:, 5:20, 5:20] = 7

size = {"PhysicalSizeX": 645.0, "PhysicalSizeXUnit": "nm"}
size |= {"PhysicalSizeY": 645.0, "PhysicalSizeYUnit": "nm"}
tifffile.imwrite(
    "film.ome.tif",
    masks,
    ome=True,
    photometric="minisblack",
    metadata={"axes": "TYX", "TimeIncrement": 10.0, "TimeIncrementUnit": "min", **size},
)
film = BioImage("film.ome.tif", reader=bioio_ome_tiff.Reader)
pixels = film.ome_metadata.images[0].pixels
coordinates = film.xarray_data.coords["T"].values.tolist()
print("OME-TIFF says:", pixels.time_increment, pixels.time_increment_unit.value)
print("  time_interval:", film.time_interval, "| T coordinates:", coordinates)
print("  pixel:", film.physical_pixel_sizes, "| unit:", film.dimension_properties.X.unit)
assert pixels.time_increment == 10 and pixels.time_increment_unit.value == "min"
assert film.time_interval is None and coordinates == [0, 10, 20, 30]
assert film.physical_pixel_sizes.X == 645 and film.dimension_properties.X.unit is None

for unit, step in (("minute", 10.0), ("second", 600.0)):
    path = f"{unit}.ome.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.create_array("0", data=masks, chunks=(1, 64, 48), dimension_names=["t", "y", "x"])
    space = {"type": "space", "unit": "micrometer"}
    axes = [{"name": "t", "type": "time", "unit": unit}]
    axes += [{"name": name} | space for name in "yx"]
    scale = {"type": "scale", "scale": [step, 0.645, 0.645]}
    level = {"path": "0", "coordinateTransformations": [scale]}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": "film", "axes": axes, "datasets": [level]}],
    }
    film = BioImage(path, reader=bioio_ome_zarr.Reader)
    found = film.time_interval
    print(f"OME-Zarr says {step} {unit}: time_interval {found!r},", film.dimension_properties.T)
    assert isinstance(found, float) and found == step, found
PY
