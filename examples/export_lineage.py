"""Write one synthetic clip in common microscopy formats: OME-Zarr with GEFF, OME-TIFF, CTC.

The folder ``clip.ome.zarr`` contains the image, the masks and, under ``tracks.geff``, the lineage,
which refers to the masks. napari, Fiji and QuPath open it; motile, ultrack and traccuracy read the
lineage.

    pip install 'bvdm-data[ome,lineage]'
    python examples/export_lineage.py exported
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.geff import write_geff
from bvdm_data.adapters.ome import write_ome_tiff, write_ome_zarr
from bvdm_data.adapters.tracking import write_ctc


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the files; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="output folder")
    parser.add_argument("--index", type=int, default=0, help="index of the clip")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--method", default="fast")
    given = parser.parse_args(arguments)

    videos = SyntheticHeLaVideos(
        frames=given.frames,
        size=given.size,
        method=given.method,
        annotations=("masks", "tracks", "stages"),
    )
    clip, place = videos.clip(given.index), given.directory
    units = {"pixel_size": videos.pixel_size, "minutes": videos.minutes}
    write_ome_zarr(clip, place / "clip.ome.zarr", scale=videos.scale, **units)
    write_geff(clip, place / "clip.ome.zarr" / "tracks.geff", labels="../labels/nuclei/0", **units)
    write_ome_tiff(clip, place / "clip.ome.tif", scale=videos.scale, **units)
    write_ctc(clip, place / "ctc", name="01", scale=videos.scale)
    for path in sorted(place.iterdir()):
        print(path)
    return place


if __name__ == "__main__":
    main()
