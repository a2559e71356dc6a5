"""Commands that make clips or fetch videos."""

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bvdm_data.cli.options import (
    DEATH_RATE,
    FACTORS,
    FOLDER,
    QUIET,
    add_clip_options,
    add_key_options,
    add_size_options,
    add_time_options,
    option,
    take_method,
)

if TYPE_CHECKING:
    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos


@click.command()
@option("--output", default="preview", type=FOLDER, help="Folder.")
@add_size_options(8, "256x256")
@option("--clips", default=2, help="How many clips to stream.")
@option("--workers", default=0, help="Processes of the DataLoader.")
@option("--real", type=FOLDER, help="A real data set to show beside the clips.")
@option("--sequence", default="01", help="Of --real: the video.")
@option("--mp4", is_flag=True, help="Write the animation as MP4, too (extra preview).")
@option("--page", is_flag=True, help="Write a page that plays clips of several seeds, too.")
@option("--page-seeds", default=3, help="Seeds, from --seed on.")
@option(
    "--page-densities",
    default="0.5,1,2",
    type=FACTORS,
    help="Nuclei in the first frame, as multiples of the fitted video's density.",
)
@option("--page-frames", default=24, help="Frames of its clips.")
@add_clip_options
@DEATH_RATE
def preview(
    output: Path,
    clips: int,
    workers: int,
    real: Path | None,
    sequence: str,
    mp4: bool,
    page: bool,
    page_seeds: int,
    page_densities: tuple[float, ...],
    page_frames: int,
    **options: Any,
) -> None:
    """Look at clips: a contact sheet (PNG), an animation (GIF), a page.

    With --real, every clip stands below a window of that video with about as many nuclei, at the
    same grey scale; --variation 0 makes clips that should look like their video.

    With --page, a page (player.html) that any browser plays without a network: outlines, ids,
    lineage trees, sliders for seed and density. The clips come through a DataLoader.
    """
    from torch.utils.data import DataLoader

    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.evaluation.side_by_side import add_real, open_real
    from bvdm_data.files import check_writable
    from bvdm_data.viz.pictures import require_ffmpeg, write_animation, write_contact_sheet

    least_one = {"--clips": clips, "--page-seeds": page_seeds, "--page-frames": page_frames}
    for name, number in least_one.items():
        if number < 1:
            raise click.UsageError(f"{name} must be at least 1, got {number}")
    if mp4:
        require_ffmpeg()
    method = take_method(options)
    videos = SyntheticHeLaVideos(**options, method=method, length=clips)
    video = None if real is None else open_real(real, sequence, videos)
    if video is not None and video.scale != videos.scale:
        click.echo(f"the real video is shown on its own {video.scale}, clips on {videos.scale}")
    check_writable(output)
    start = time.perf_counter()
    made = []
    for clip in DataLoader(videos, batch_size=None, num_workers=workers):
        made.append(clip)
        seconds = time.perf_counter() - start
        cells = int((clip["tracks"][:, 0] > 0).sum())
        click.echo(f"clip {int(clip['index'])}: {cells} nuclei, after {seconds:.1f} s")
    if video is not None and videos.variation != 0:
        click.echo("clips vary beyond the video that was fitted; --variation 0 keeps to it")
    height, width = videos.size
    click.echo(
        f"{clips / seconds:.3f} clips a second ({videos.frames} frames of {height} x {width}, "
        f"{workers} workers, {method.describe()})"
    )
    made.sort(key=lambda clip: int(clip["index"]))
    sheet, animation = output / "contact_sheet.png", output / "clip.gif"
    shown = {f"clip {int(clip['index'])}": clip for clip in made[:4]}
    write_contact_sheet(shown if video is None else add_real(shown, video), sheet)
    write_animation(made[0], animation)
    click.echo(f"wrote {sheet} and {animation}")
    if mp4:
        write_animation(made[0], output / "clip.mp4")
        click.echo(f"wrote {output / 'clip.mp4'}")
    if page:
        _write_page(output / "player.html", videos, page_frames, page_seeds, page_densities)


def _write_page(
    path: Path, videos: "SyntheticHeLaVideos", frames: int, seeds: int, densities: tuple[float, ...]
) -> None:
    """Write a page with a clip of every seed and density, else as those of ``videos``."""
    from tqdm import tqdm

    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.viz.player import write_player
    from bvdm_data.weights import load

    height, width = videos.size
    fitted = float(load(videos.model).motion.density.mean()) * height * width
    clips = {}
    choices = list(itertools.product(range(videos.seed, videos.seed + seeds), densities))
    for seed, density in tqdm(choices, desc="page", unit="clip", disable=None):
        nuclei = max(1, round(density * fitted))
        stream = SyntheticHeLaVideos(
            frames=frames, size=videos.size, seed=seed, model=videos.model, nuclei=nuclei,
            variation=videos.variation, method=videos.method, outline=videos.outline,
            death_rate=videos.death_rate,
        )  # fmt: skip
        clips[str(seed), f"{density:g} x ({nuclei} nuclei)"] = stream.clip(0)
    amounts = videos.variation
    parts = amounts if isinstance(amounts, Mapping) else {"variation": amounts}
    note = (
        f"Synthetic clips of the model {videos.model.stem}, {videos.method.describe()}, "
        f"{', '.join(f'{part} {amount:g}' for part, amount in parts.items())} (0 keeps to the "
        "fitted video, 1 is what networks train on). Density: nuclei in the first frame against "
        "the mean of that video."
    )
    write_player(clips, path, title="Synthetic clips of dividing nuclei", note=note)
    click.echo(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB, {len(clips)} clips)")


@click.command()
@click.argument("directory", type=FOLDER)
@add_size_options(92, "700x1100")
@option("--sequences", default=2, help="How many videos.")
@add_clip_options
@DEATH_RATE
@add_time_options
@option(
    "--format",
    type=click.Choice(["ctc", "yolo"]),
    default="ctc",
    help="Folders of the Cell Tracking Challenge, or images and labels for Ultralytics.",
)
@QUIET
def export(directory: Path, format: str, quiet: bool, **options: Any) -> None:
    """Write synthetic videos with their truth to DIRECTORY.

    Killed, the same command goes on with the videos that are missing. With --format yolo it writes
    all anew: polygons of the nuclei, and the last fifth of the videos, at least one, as val.
    """
    from bvdm_data.adapters.ultralytics import write_yolo
    from bvdm_data.datasets.export import export as write
    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos

    options["method"] = take_method(options)
    if format == "ctc":
        written = ", ".join(write(directory, progress=not quiet, **options))
        click.echo(f"wrote {written or 'nothing: all is there'} to {directory}")
        return
    clips = options.pop("sequences")
    if clips < 2:
        raise click.UsageError(f"--sequences must be at least 2 with --format yolo, got {clips}")
    videos = SyntheticHeLaVideos(annotations=("masks", "tracks"), **options)
    write_yolo(videos, directory, clips=clips, progress=not quiet)
    click.echo(f"wrote {directory / 'data.yaml'}")


@click.command()
@click.argument("name")
@option("--directory", default=".", type=FOLDER, help="Where its folder goes.")
@option("--split", default="training", help="training or test.")
@QUIET
def fetch(name: str, directory: Path, split: str, quiet: bool) -> None:
    """Download a data set of the Cell Tracking Challenge.

    NAME is that of one of its data sets, such as Fluo-N2DL-HeLa.
    """
    from bvdm_data.datasets.fetch import fetch as download

    click.echo(f"wrote {download(name, directory, split=split, progress=not quiet)}")


@click.command()
@click.argument("directory", type=FOLDER)
@option("--clips", required=True, type=int, help="How many, of all ranks together.")
@option("--clips-per-shard", default=256, help="Clips of a file.")
@option(
    "--format",
    type=click.Choice(["webdataset", "zarr"]),
    default="webdataset",
    help="Tar files of .npy members, or zarr groups in zip files.",
)
@click.option("--compress/--no-compress", default=True, show_default=True, help="Smaller, slower.")
@option("--workers", default=0, help="Processes of this rank.")
@add_size_options(8, "256x256")
@add_clip_options
@add_key_options
@DEATH_RATE
@add_time_options
@option("--epoch", default=0, help="Other clips of the same seed.")
@QUIET
def shards(
    directory: Path,
    clips: int,
    clips_per_shard: int,
    format: str,
    compress: bool,
    workers: int,
    epoch: int,
    quiet: bool,
    **options: Any,
) -> None:
    """Write clips to DIRECTORY as shards, for training from disk.

    Killed, the same command makes the shards that are missing. Under torchrun the ranks share
    them out, on any number of machines that see DIRECTORY.
    """
    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.storage import write_shards

    videos = SyntheticHeLaVideos(method=take_method(options), **options)
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
    count = f"{len(written)} shard{'s' * (len(written) != 1)}"
    click.echo(f"wrote {count if written else 'nothing: all is there'} to {directory}")


@click.command()
@add_size_options(8, "256x256")
@add_clip_options
@add_key_options
@option("--pairs", type=int, help="Of --pool: sister pairs in the cell bank. [default: 256]")
@option("--renew", type=float, help="Of --pool: pairs renewed with each clip. [default: 1]")
@option("--batch-size", default=4, help="Clips of a training step.")
@option("--workers", default=1, help="Processes of the DataLoader.")
@option("--step-seconds", default=0.1, help="Time of a training step, data apart.")
@option("--seconds", default=10.0, help="Time of each measurement.")
@option("--json", "report", type=FOLDER, help="File for all figures.")
@QUIET
def bench(
    pool: bool,
    pairs: int | None,
    renew: float | None,
    batch_size: int,
    workers: int,
    step_seconds: float,
    seconds: float,
    report: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure clips a second, and whether a training loop waits.

    Give the batch size, the workers and the time of a step of your loop, measured on data in
    memory. If the loop waits for clips, the command tries what would help, and prints it.
    """
    from bvdm_data.bench import bench as measure
    from bvdm_data.bench import format_report
    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.speed import Loop
    from bvdm_data.synth.cell_bank import PoolSettings

    given = {"pairs": pairs, "renew": renew}
    bank: dict[str, Any] = {name: n for name, n in given.items() if n is not None}
    for name in bank:
        if not pool:
            raise click.UsageError(f"--{name} is for --pool; give --pool, too")
    videos = SyntheticHeLaVideos(
        method=take_method(options), pool=PoolSettings(**bank) if pool else None, **options
    )
    loop = Loop(batch_size=batch_size, workers=workers, step_seconds=step_seconds)

    def log(text: str) -> None:
        if not quiet:
            click.echo(f"{text} ...", err=True)

    click.echo(format_report(measure(videos, loop, seconds=seconds, report=report, log=log)))
