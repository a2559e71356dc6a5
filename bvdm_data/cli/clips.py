"""Commands that make clips or fetch videos: preview, export, fetch."""

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bvdm_data.cli.options import (
    MODEL,
    MOST_NUCLEI,
    QUIET,
    SEED,
    VARIATION,
    Factors,
    Nuclei,
    Size,
    method_options,
    method_settings,
    method_words,
)

if TYPE_CHECKING:
    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos


@click.command()
@MODEL
@click.option(
    "--output",
    default="preview",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder.",
)
@click.option("--frames", default=8, show_default=True)
@click.option("--size", default="256x256", show_default=True, type=Size())
@click.option("--nuclei", type=Nuclei(), help="In the first frame. [default: as in the video]")
@click.option("--clips", default=2, show_default=True, help="How many clips to stream.")
@click.option("--workers", default=0, show_default=True, help="Processes of the DataLoader.")
@click.option("--mp4", is_flag=True, help="Write the animation as MP4, too (extra preview).")
@click.option("--page", is_flag=True, help="Write a page that plays clips of several seeds, too.")
@click.option("--page-seeds", default=3, show_default=True, help="Seeds, from --seed on.")
@click.option(
    "--page-densities",
    default="0.5,1,2",
    show_default=True,
    type=Factors(),
    help="Nuclei in the first frame, as multiples of the fitted video's density.",
)
@click.option("--page-frames", default=24, show_default=True, help="Frames of its clips.")
@VARIATION
@method_options
@SEED
def preview(
    model: str,
    output: Path,
    frames: int,
    size: tuple[int, int],
    nuclei: int | tuple[int, int] | None,
    clips: int,
    workers: int,
    mp4: bool,
    page: bool,
    page_seeds: int,
    page_densities: tuple[float, ...],
    page_frames: int,
    method: str,
    first_steps: int | None,
    later_steps: int | None,
    variation: float | None,
    seed: int,
) -> None:
    """Stream clips through a DataLoader; write a contact sheet (PNG) and an animation (GIF).

    With --page, a page (player.html) that any browser plays without a network: outlines, ids,
    lineage trees, sliders for seed and density.
    """
    from torch.utils.data import DataLoader

    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.evaluation.mp4 import need_ffmpeg
    from bvdm_data.evaluation.pictures import animation, contact_sheet
    from bvdm_data.files import check_folder

    least_one = {"--clips": clips, "--page-seeds": page_seeds, "--page-frames": page_frames}
    for option, number in least_one.items():
        if number < 1:
            raise click.UsageError(f"{option} must be at least 1, got {number}")
    if mp4:
        need_ffmpeg()
    videos = SyntheticHeLaVideos(
        frames=frames,
        size=size,
        length=clips,
        seed=seed,
        model=model,
        nuclei=nuclei,
        variation=variation,
        max_cells=MOST_NUCLEI,
        method=method_settings(method, first_steps, later_steps),
    )
    check_folder(output)
    begun = time.perf_counter()
    made = []
    for clip in DataLoader(videos, batch_size=None, num_workers=workers):
        made.append(clip)
        seconds = time.perf_counter() - begun
        cells = int((clip["tracks"][:, 0] > 0).sum())
        click.echo(f"clip {int(clip['index'])}: {cells} nuclei, after {seconds:.1f} s")
    click.echo(
        f"{clips / seconds:.3f} clips a second ({frames} frames of {size[0]} x {size[1]}, "
        f"{workers} workers, {method_words(videos.method)})"
    )
    made.sort(key=lambda clip: int(clip["index"]))
    sheet, film = output / "contact_sheet.png", output / "clip.gif"
    contact_sheet({f"clip {int(clip['index'])}": clip for clip in made[:4]}, sheet)
    animation(made[0], film)
    click.echo(f"wrote {sheet} and {film}")
    if mp4:
        animation(made[0], output / "clip.mp4")
        click.echo(f"wrote {output / 'clip.mp4'}")
    if page:
        _write_page(output / "player.html", videos, page_frames, page_seeds, page_densities)


def _write_page(
    path: Path,
    videos: "SyntheticHeLaVideos",
    frames: int,
    seeds: int,
    densities: tuple[float, ...],
) -> None:
    """Write a page with a clip of every seed and density, else as those of ``videos``."""
    from tqdm import tqdm

    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.evaluation.player import player
    from bvdm_data.weights import load

    height, width = videos.size
    fitted = float(load(videos.model).motion.density.mean()) * height * width
    made = {}
    choices = list(itertools.product(range(videos.seed, videos.seed + seeds), densities))
    for seed, density in tqdm(choices, desc="page", unit="clip", disable=None):
        nuclei = max(1, round(density * fitted))
        stream = SyntheticHeLaVideos(
            frames=frames, size=videos.size, seed=seed, model=videos.model, nuclei=nuclei,
            variation=videos.variation, max_cells=MOST_NUCLEI, method=videos.method,
        )  # fmt: skip
        made[str(seed), f"{density:g} x ({nuclei} nuclei)"] = stream.clip(0)
    note = (
        f"Synthetic clips of the model {videos.model.stem}, {method_words(videos.method)}, "
        f"variation {videos.variation:g}. Density: nuclei in the first frame against the mean of "
        "the fitted video."
    )
    player(made, path, title="Synthetic clips of dividing nuclei", note=note)
    click.echo(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB, {len(made)} clips)")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@MODEL
@click.option("--frames", default=92, show_default=True)
@click.option("--size", default="700x1100", show_default=True, type=Size())
@click.option("--sequences", default=2, show_default=True, help="How many videos.")
@click.option("--nuclei", type=Nuclei(), help="In the first frame. [default: as in the video]")
@VARIATION
@method_options
@SEED
@QUIET
def export(
    directory: Path,
    model: str,
    frames: int,
    size: tuple[int, int],
    sequences: int,
    nuclei: int | tuple[int, int] | None,
    method: str,
    first_steps: int | None,
    later_steps: int | None,
    variation: float | None,
    seed: int,
    quiet: bool,
) -> None:
    """Write synthetic videos with their truth to DIRECTORY, as the Cell Tracking Challenge does.

    Killed, the same command goes on with the videos that are missing.
    """
    from bvdm_data.datasets.export import export as write

    written = write(
        directory,
        frames=frames,
        size=size,
        sequences=sequences,
        seed=seed,
        model=model,
        method=method_settings(method, first_steps, later_steps),
        nuclei=nuclei,
        variation=variation,
        progress=not quiet,
    )
    click.echo(f"wrote {', '.join(written) if written else 'nothing: all is there'} to {directory}")


@click.command()
@click.argument("name")
@click.option("--directory", default=".", show_default=True, type=click.Path(path_type=Path))
@click.option("--split", default="training", show_default=True, help="training or test.")
@QUIET
def fetch(name: str, directory: Path, split: str, quiet: bool) -> None:
    """Download a data set, such as Fluo-N2DL-HeLa, from the Cell Tracking Challenge."""
    from bvdm_data.datasets.fetch import fetch as download

    click.echo(f"wrote {download(name, directory, split=split, progress=not quiet)}")
