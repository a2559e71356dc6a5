"""The command that writes clips by the million: shards."""

from pathlib import Path

import click

from bvdm_data.cli.options import (
    MODEL,
    QUIET,
    SEED,
    VARIATION,
    Nuclei,
    Size,
    method_options,
    method_settings,
)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--clips", required=True, type=int, help="How many, of all ranks together.")
@click.option("--clips-per-shard", default=256, show_default=True, help="Clips of a file.")
@click.option(
    "--format",
    type=click.Choice(["webdataset", "zarr"]),
    default="webdataset",
    show_default=True,
    help="Tar files of .npy members, or zarr groups in zip files.",
)
@click.option("--compress/--no-compress", default=True, show_default=True, help="Smaller, slower.")
@click.option("--workers", default=0, show_default=True, help="Processes of this rank.")
@MODEL
@click.option("--frames", default=8, show_default=True)
@click.option("--size", default="256x256", show_default=True, type=Size())
@click.option(
    "--annotations",
    default="masks,tracks",
    show_default=True,
    help="Beside video: masks, tracks, flow, stages, boxes, centroids; or all, or none.",
)
@click.option("--nuclei", type=Nuclei(), help="In the first frame. [default: as in the video]")
@click.option("--max-cells", type=int, help="Rows of the tables. [default: that of the data set]")
@VARIATION
@method_options
@click.option("--pool", is_flag=True, help="Show painted nuclei in many clips.")
@SEED
@click.option("--epoch", default=0, show_default=True, help="Other clips of the same seed.")
@QUIET
def shards(
    directory: Path,
    clips: int,
    clips_per_shard: int,
    format: str,
    compress: bool,
    workers: int,
    model: str,
    frames: int,
    size: tuple[int, int],
    annotations: str,
    nuclei: int | tuple[int, int] | None,
    max_cells: int | None,
    variation: float | None,
    method: str,
    first_steps: int | None,
    later_steps: int | None,
    pool: bool,
    seed: int,
    epoch: int,
    quiet: bool,
) -> None:
    """Write clips to DIRECTORY as shards, for training from disk.

    Killed, the same command makes the shards that are missing. Under torchrun the ranks share
    them out, on any number of machines that see DIRECTORY.
    """
    from bvdm_data.clip import ANNOTATIONS, DEFAULT_MAX_CELLS
    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.storage import write_shards

    every = {"all": list(ANNOTATIONS), "none": []}
    videos = SyntheticHeLaVideos(
        frames=frames,
        size=size,
        seed=seed,
        model=model,
        method=method_settings(method, first_steps, later_steps),
        nuclei=nuclei,
        variation=variation,
        pool=pool,
        annotations=every.get(annotations, annotations.split(",")),
        max_cells=DEFAULT_MAX_CELLS if max_cells is None else max_cells,
    )
    videos.set_epoch(epoch)
    written = write_shards(
        videos,
        directory,
        clips=clips,
        clips_per_shard=clips_per_shard,
        format=format,
        compress=compress,
        workers=workers,
        progress=not quiet,
    )
    count = (
        f"{len(written)} shard{'s' * (len(written) != 1)}" if written else "nothing: all is there"
    )
    click.echo(f"wrote {count} to {directory}")
