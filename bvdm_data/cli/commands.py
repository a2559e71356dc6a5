"""Commands that make clips or fetch videos: preview, export, fetch."""

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bvdm_data.synth.scene import Method

MODEL = click.option(
    "--model", default="hela", show_default=True, help="Name of a model, or path of its file."
)
"""Which model."""

SEED = click.option("--seed", default=0, show_default=True, help="Seed of all random numbers.")
"""Which random numbers."""

QUIET = click.option("--quiet", is_flag=True, help="No progress bars.")
"""Whether long work shows how far it is."""

MAX_NUCLEI = 10_000
"""Rows of a table that nobody sees; enough for any picture."""


class Size(click.ParamType[Any]):
    """A picture size such as 700x1100."""

    name = "HEIGHTxWIDTH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return height and width in pixels."""
        if isinstance(value, tuple):
            return value
        height, cross, width = str(value).partition("x")
        if not (cross and height.isdigit() and width.isdigit()):
            self.fail(f"must look like 256x256 (height x width in pixels), got {value!r}")
        return int(height), int(width)


class Nuclei(click.ParamType[Any]):
    """A number of nuclei such as 20, or a range such as 10-30."""

    name = "N|LOW-HIGH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        """Return a number, or the lowest and the highest."""
        low, dash, high = str(value).partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            self.fail(f"must look like 20 or 10-30, got {value!r}")
        return (int(low), int(high)) if dash else int(low)


class Floats(click.ParamType[Any]):
    """Factors such as 0.5,1,2."""

    name = "FACTOR,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the factors, all above 0."""
        if isinstance(value, tuple):
            return value
        try:
            factors = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            factors = ()
        if not factors or not all(0 < factor < math.inf for factor in factors):
            self.fail(f"must look like 0.5,1,2 (numbers above 0), got {value!r}")
        return factors


VARIATION = click.option(
    "--variation", type=float,
    help="How far clips may leave the fitted video, from 0 to 1. [default: 1 with fast, else 0]",
)  # fmt: skip
"""How much wider than the fitted video."""


def add_method_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--method``, ``--first-steps`` and ``--later-steps`` to a command."""
    name = click.option(
        "--method",
        type=click.Choice(["fast", "paper", "procedural"]),
        default="fast",
        show_default=True,
        help="How nuclei are painted.",
    )
    first = click.option(
        "--first-steps",
        type=int,
        help="Of paper: steps at frame 0. [default: 200]",
    )
    later = click.option(
        "--later-steps", type=int, help="Of paper: steps at later frames. [default: 10]"
    )
    return name(first(later(command)))


def parse_method(method: str, first_steps: int | None, later_steps: int | None) -> "Method":
    """Return the settings that these options ask for; refuse the paper's steps elsewhere."""
    from bvdm_data.datasets.synthetic import METHODS
    from bvdm_data.synth.paper import PaperSettings

    given = {"first_steps": first_steps, "later_steps": later_steps}
    steps = {name: number for name, number in given.items() if number is not None}
    if method == "paper":
        return PaperSettings(**steps)
    for name in steps:
        option = f"--{name.replace('_', '-')}"
        raise click.UsageError(f"{option} is for --method paper, got --method {method}")
    return METHODS[method]


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
    type=Floats(),
    help="Nuclei in the first frame, as multiples of the fitted video's density.",
)
@click.option("--page-frames", default=24, show_default=True, help="Frames of its clips.")
@VARIATION
@add_method_options
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
    from bvdm_data.files import check_writable
    from bvdm_data.viz.pictures import require_ffmpeg, write_animation, write_contact_sheet

    least_one = {"--clips": clips, "--page-seeds": page_seeds, "--page-frames": page_frames}
    for option, number in least_one.items():
        if number < 1:
            raise click.UsageError(f"{option} must be at least 1, got {number}")
    if mp4:
        require_ffmpeg()
    videos = SyntheticHeLaVideos(
        frames=frames,
        size=size,
        length=clips,
        seed=seed,
        model=model,
        nuclei=nuclei,
        variation=variation,
        max_cells=MAX_NUCLEI,
        method=parse_method(method, first_steps, later_steps),
    )
    check_writable(output)
    begun = time.perf_counter()
    made = []
    for clip in DataLoader(videos, batch_size=None, num_workers=workers):
        made.append(clip)
        seconds = time.perf_counter() - begun
        cells = int((clip["tracks"][:, 0] > 0).sum())
        click.echo(f"clip {int(clip['index'])}: {cells} nuclei, after {seconds:.1f} s")
    click.echo(
        f"{clips / seconds:.3f} clips a second ({frames} frames of {size[0]} x {size[1]}, "
        f"{workers} workers, {videos.method.describe()})"
    )
    made.sort(key=lambda clip: int(clip["index"]))
    sheet, film = output / "contact_sheet.png", output / "clip.gif"
    write_contact_sheet({f"clip {int(clip['index'])}": clip for clip in made[:4]}, sheet)
    write_animation(made[0], film)
    click.echo(f"wrote {sheet} and {film}")
    if mp4:
        write_animation(made[0], output / "clip.mp4")
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
    from bvdm_data.viz.player import write_player
    from bvdm_data.weights import load

    height, width = videos.size
    fitted = float(load(videos.model).motion.density.mean()) * height * width
    made = {}
    choices = list(itertools.product(range(videos.seed, videos.seed + seeds), densities))
    for seed, density in tqdm(choices, desc="page", unit="clip", disable=None):
        nuclei = max(1, round(density * fitted))
        stream = SyntheticHeLaVideos(
            frames=frames, size=videos.size, seed=seed, model=videos.model, nuclei=nuclei,
            variation=videos.variation, max_cells=MAX_NUCLEI, method=videos.method,
        )  # fmt: skip
        made[str(seed), f"{density:g} x ({nuclei} nuclei)"] = stream.clip(0)
    note = (
        f"Synthetic clips of the model {videos.model.stem}, {videos.method.describe()}, "
        f"variation {videos.variation:g}. Density: nuclei in the first frame against the mean of "
        "the fitted video."
    )
    write_player(made, path, title="Synthetic clips of dividing nuclei", note=note)
    click.echo(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB, {len(made)} clips)")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@MODEL
@click.option("--frames", default=92, show_default=True)
@click.option("--size", default="700x1100", show_default=True, type=Size())
@click.option("--sequences", default=2, show_default=True, help="How many videos.")
@click.option("--nuclei", type=Nuclei(), help="In the first frame. [default: as in the video]")
@VARIATION
@add_method_options
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
        method=parse_method(method, first_steps, later_steps),
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
@add_method_options
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
        method=parse_method(method, first_steps, later_steps),
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


@click.command()
@MODEL
@click.option("--frames", default=8, show_default=True)
@click.option("--size", default="256x256", show_default=True, type=Size())
@click.option("--nuclei", type=Nuclei(), help="In the first frame. [default: as in the video]")
@click.option("--max-cells", type=int, help="Rows of the tables. [default: that of the data set]")
@VARIATION
@add_method_options
@click.option("--pool", is_flag=True, help="Show painted nuclei in many clips.")
@click.option("--pairs", type=int, help="Of --pool: pairs of nuclei that are kept. [default: 256]")
@click.option("--renew", type=float, help="Of --pool: pairs renewed with each clip. [default: 1]")
@click.option(
    "--annotations",
    default="masks,tracks",
    show_default=True,
    help="Beside video: masks, tracks, flow, stages, boxes, centroids; or all, or none.",
)
@click.option("--batch-size", default=4, show_default=True, help="Clips of a training step.")
@click.option("--workers", default=1, show_default=True, help="Processes of the DataLoader.")
@click.option(
    "--step-seconds", default=0.1, show_default=True, help="Time of a training step, data apart."
)
@click.option("--seconds", default=10.0, show_default=True, help="Time of each measurement.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="File for all figures.")
@SEED
@QUIET
def bench(
    model: str,
    frames: int,
    size: tuple[int, int],
    nuclei: int | tuple[int, int] | None,
    max_cells: int | None,
    variation: float | None,
    method: str,
    first_steps: int | None,
    later_steps: int | None,
    pool: bool,
    pairs: int | None,
    renew: float | None,
    annotations: str,
    batch_size: int,
    workers: int,
    step_seconds: float,
    seconds: float,
    report: Path | None,
    seed: int,
    quiet: bool,
) -> None:
    """Measure clips a second, what they cost, and whether your training loop waits for them.

    Tell it the batch size, the workers and the time of a step of your loop, measured on data that
    is in memory. If the loop waits for clips, it tries what would help, and says so.
    """
    from bvdm_data.bench import Loop, format_report
    from bvdm_data.bench import bench as measure
    from bvdm_data.clip import ANNOTATIONS, DEFAULT_MAX_CELLS
    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.synth.cell_bank import PoolSettings

    of_pool = {"pairs": pairs, "renew": renew}
    given: dict[str, Any] = {name: n for name, n in of_pool.items() if n is not None}
    for name in given:
        if not pool:
            raise click.UsageError(f"--{name} is for --pool; give --pool, too")
    every = {"all": list(ANNOTATIONS), "none": []}
    videos = SyntheticHeLaVideos(
        frames=frames,
        size=size,
        seed=seed,
        model=model,
        method=parse_method(method, first_steps, later_steps),
        nuclei=nuclei,
        variation=variation,
        pool=PoolSettings(**given) if pool else None,
        annotations=every.get(annotations, annotations.split(",")),
        max_cells=DEFAULT_MAX_CELLS if max_cells is None else max_cells,
    )
    loop = Loop(batch_size=batch_size, workers=workers, step_seconds=step_seconds)

    def say(text: str) -> None:
        if not quiet:
            click.echo(f"{text} ...", err=True)

    found = measure(videos, loop, seconds=seconds, report=report, say=say)
    click.echo(format_report(found))


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--sequence", default="01", show_default=True, help="Name of the video.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write: NAME.safetensors.",
)
@click.option("--truth", default="auto", show_default=True, help="Masks: auto, ST, GT or TRA.")
@click.option("--minutes", default=30.0, show_default=True, help="Time between two frames.")
@click.option("--stop", type=int, help="Use only frames with a lower number.")
@click.option("--border", default=25, show_default=True, help="Pixels without complete truth.")
@click.option("--offset", type=int, help="Camera count of no light. [default: guessed]")
@click.option("--full", type=int, help="Camera count of full scale. [default: guessed]")
@click.option("--painter-steps", default=10_000, show_default=True, help="Training of the painter.")
@click.option(
    "--distilled-steps",
    default=8_000,
    show_default=True,
    help="Training of the network that draws in one call what the painter draws in several.",
)
@click.option(
    "--pairs", default=16_384, show_default=True, help="Pictures of the painter it learns from."
)
@click.option("--paper", is_flag=True, help="Train the networks of the paper's method, too.")
@click.option("--start-from", help="Model to train on; for a few annotated frames.")
@click.option(
    "--texture-steps", default=10_000, show_default=True, help="Of --paper: training of the DDPM."
)
@click.option(
    "--flow-steps", default=2_000, show_default=True, help="Of --paper: training of FlowNet."
)
@click.option("--device", default="cpu", show_default=True, help="Where to train: cpu, cuda.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path), help="Checkpoints. [default: NAME.fit]"
)
@SEED
@QUIET
def fit(
    root: Path,
    sequence: str,
    output: Path,
    truth: str,
    minutes: float,
    stop: int | None,
    border: int,
    offset: int | None,
    full: int | None,
    painter_steps: int,
    distilled_steps: int,
    pairs: int,
    paper: bool,
    start_from: str | None,
    texture_steps: int,
    flow_steps: int,
    device: str,
    work_dir: Path | None,
    seed: int,
    quiet: bool,
) -> None:
    """Fit a model to one annotated video in the folder ROOT of the Cell Tracking Challenge.

    Takes an hour or so on a CPU, and hours more with --paper. Killed, the same command goes on
    where it was.
    """
    from bvdm_data.clip import CameraScale
    from bvdm_data.fitting.denoiser import DENOISER_TRAINING
    from bvdm_data.fitting.fit import FitSettings
    from bvdm_data.fitting.fit import fit as fit_video
    from bvdm_data.fitting.paper_networks import DDPM_TRAINING, FLOW_TRAINING
    from bvdm_data.fitting.student import STUDENT_TRAINING

    if (offset is None) != (full is None):
        raise click.UsageError("give both --offset and --full, or neither")
    scale = None if offset is None or full is None else CameraScale(offset, full)
    settings = FitSettings(
        painter=replace(DENOISER_TRAINING, steps=painter_steps),
        distilled=replace(STUDENT_TRAINING, steps=distilled_steps),
        pairs=pairs,
        paper=paper,
        texture=replace(DDPM_TRAINING, steps=texture_steps),
        flow=replace(FLOW_TRAINING, steps=flow_steps),
        minutes=minutes,
        border=border,
        seed=seed,
        stop=stop,
    )
    generator = fit_video(
        root,
        output,
        sequence=sequence,
        truth=truth,
        scale=scale,
        work_dir=work_dir,
        settings=settings,
        start_from=start_from,
        device=device,
        progress=not quiet,
    )
    click.echo(json.dumps(generator.card, indent=2))
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB)")


@click.command()
@MODEL
def info(model: str) -> None:
    """Print what a model says of itself: data, settings, held-out figures."""
    from bvdm_data.weights import find_model, read_card

    click.echo(json.dumps(read_card(model), indent=2))
    click.echo(f"{find_model(model).stat().st_size / 1e6:.2f} MB")


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@MODEL
@VARIATION
@add_method_options
@click.option("--train", default="01", show_default=True, help="Video to train on.")
@click.option("--test", default="02", show_default=True, help="Held-out video to test on.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    help="distance, realism, training, linking, scarcity, steps, ablation or reuse; may be "
    "repeated. [default: the first four]",
)
@click.option(
    "--arm",
    "arms",
    multiple=True,
    help="Kind of training data: real, synthetic, copy-paste, real+synthetic, procedural, paper, "
    "synthetic-2x, synthetic-stream or real-strong; may be repeated. [default: the first five]",
)
@click.option("--seeds", default=3, show_default=True, help="Networks trained on each arm.")
@click.option("--steps", default=400, show_default=True, help="Training steps of a segmenter.")
@click.option("--clips", type=int, help="Clips of an arm. [default: as many pixels as the video]")
@click.option("--crops", default=900, show_default=True, help="Nuclei of the picture distance.")
@click.option(
    "--scarce-frames", default="1,4,10,30", show_default=True, help="Of the scarcity curve."
)
@click.option(
    "--work-dir",
    default="evaluation",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Clips, networks and scores are kept here.",
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Folder for index.html and report.json."
)
@click.option("--workers", default=0, show_default=True, help="Processes that make clips.")
@SEED
@QUIET
def evaluate(
    root: Path,
    model: str,
    method: str,
    first_steps: int | None,
    later_steps: int | None,
    variation: float | None,
    train: str,
    test: str,
    parts: tuple[str, ...],
    arms: tuple[str, ...],
    seeds: int,
    steps: int,
    clips: int | None,
    crops: int,
    scarce_frames: str,
    work_dir: Path,
    report: Path | None,
    workers: int,
    seed: int,
    quiet: bool,
) -> None:
    """Judge a model: train on real, on synthetic, on both; test on the held-out video in ROOT.

    Takes hours for all parts. Killed, the same command goes on; what is done is kept.
    """
    from bvdm_data.evaluation.arms import Data
    from bvdm_data.evaluation.evaluate import DEFAULT_ARMS, DEFAULT_PARTS, Questions
    from bvdm_data.evaluation.evaluate import evaluate as judge
    from bvdm_data.evaluation.segmenter import SegmenterSettings
    from bvdm_data.evaluation.training_value import Budget

    if not all(number.isdigit() for number in scarce_frames.split(",")):
        raise click.UsageError(f"--scarce-frames must look like 1,4,10, got {scarce_frames!r}")
    data = Data(
        root=root,
        train=train,
        test=test,
        model=model,
        method=parse_method(method, first_steps, later_steps),
        variation=variation,
        seed=seed,
        folder=work_dir,
        workers=workers,
        progress=not quiet,
    )
    budget = Budget(
        seeds=seeds,
        clips=clips,
        crops=crops,
        segmenter=SegmenterSettings(steps=steps),
        scarce_frames=tuple(int(number) for number in scarce_frames.split(",")),
    )
    questions = Questions(parts=parts or DEFAULT_PARTS, arms=arms or DEFAULT_ARMS, budget=budget)
    judge(data, questions, report=report, say=click.echo)
