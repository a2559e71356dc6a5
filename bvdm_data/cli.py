"""The command line: arguments in, one public call, text out."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

_MODEL = click.option(
    "--model", default="hela", show_default=True, help="Name of a model, or path of its file."
)
_SEED = click.option("--seed", default=0, show_default=True, help="Seed of all random numbers.")
_MOST_NUCLEI = 10_000  # rows of a table that nobody sees; enough for any picture
_QUIET = click.option("--quiet", is_flag=True, help="No progress bars.")


class _Size(click.ParamType[Any]):
    """A picture size such as 700x1100."""

    name = "HEIGHTxWIDTH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        height, cross, width = str(value).partition("x")
        if not (cross and height.isdigit() and width.isdigit()):
            self.fail(f"must look like 256x256 (height x width in pixels), got {value!r}")
        return int(height), int(width)


class _Nuclei(click.ParamType[Any]):
    """A number of nuclei such as 20, or a range such as 10-30."""

    name = "N|LOW-HIGH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        low, dash, high = str(value).partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            self.fail(f"must look like 20 or 10-30, got {value!r}")
        return (int(low), int(high)) if dash else int(low)


def _steps(command: Callable[..., None]) -> Callable[..., None]:
    first = click.option(
        "--first-steps", default=200, show_default=True, help="Diffusion steps at the first frame."
    )
    later = click.option(
        "--later-steps", default=10, show_default=True, help="Diffusion steps at later frames."
    )
    return first(later(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bvdm-data")
def cli() -> None:
    """Annotated live-cell video clips, synthesised while you train."""


@cli.command()
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
@click.option("--texture-steps", default=10_000, show_default=True, help="Training of the DDPM.")
@click.option("--flow-steps", default=2_000, show_default=True, help="Training of FlowNet.")
@click.option("--device", default="cpu", show_default=True, help="Where to train: cpu, cuda.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path), help="Checkpoints. [default: NAME.fit]"
)
@_SEED
@_QUIET
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
    texture_steps: int,
    flow_steps: int,
    device: str,
    work_dir: Path | None,
    seed: int,
    quiet: bool,
) -> None:
    """Fit a model to one annotated video in the folder ROOT of the Cell Tracking Challenge.

    Takes hours on a CPU. Killed, the same command goes on where it was.
    """
    from bvdm_data.camera_scale import CameraScale
    from bvdm_data.fitting.fit import FitSettings
    from bvdm_data.fitting.fit import fit as fit_video
    from bvdm_data.fitting.flow import FLOW_TRAINING
    from bvdm_data.fitting.texture import TEXTURE_TRAINING

    if (offset is None) != (full is None):
        raise click.UsageError("give both --offset and --full, or neither")
    scale = None if offset is None or full is None else CameraScale(offset, full)
    settings = FitSettings(
        texture=replace(TEXTURE_TRAINING, steps=texture_steps),
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
        device=device,
        progress=not quiet,
    )
    click.echo(json.dumps(generator.card, indent=2))
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB)")


@cli.command()
@_MODEL
def info(model: str) -> None:
    """Print what a model says of itself: data, settings, held-out figures."""
    from bvdm_data.weights import find_model, read_card

    click.echo(json.dumps(read_card(model), indent=2))
    click.echo(f"{find_model(model).stat().st_size / 1e6:.2f} MB")


@cli.command()
@_MODEL
@click.option(
    "--output",
    default="preview",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder.",
)
@click.option("--frames", default=8, show_default=True)
@click.option("--size", default="256x256", show_default=True, type=_Size())
@click.option("--nuclei", type=_Nuclei(), help="In the first frame. [default: as in the video]")
@click.option("--clips", default=2, show_default=True, help="How many clips to stream.")
@click.option("--workers", default=0, show_default=True, help="Processes of the DataLoader.")
@_steps
@_SEED
def preview(
    model: str,
    output: Path,
    frames: int,
    size: tuple[int, int],
    nuclei: int | tuple[int, int] | None,
    clips: int,
    workers: int,
    first_steps: int,
    later_steps: int,
    seed: int,
) -> None:
    """Stream clips through a DataLoader; write a contact sheet (PNG) and an animation (GIF)."""
    from torch.utils.data import DataLoader

    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.evaluation.pictures import animation, contact_sheet
    from bvdm_data.synth.texture import PaperSettings

    if clips < 1:
        raise click.UsageError(f"--clips must be at least 1, got {clips}")
    videos = SyntheticHeLaVideos(
        frames=frames,
        size=size,
        length=clips,
        seed=seed,
        model=model,
        nuclei=nuclei,
        max_cells=_MOST_NUCLEI,
        method=PaperSettings(first_steps=first_steps, later_steps=later_steps),
    )
    begun = time.perf_counter()
    made = []
    for clip in DataLoader(videos, batch_size=None, num_workers=workers):
        made.append(clip)
        seconds = time.perf_counter() - begun
        cells = int((clip["tracks"][:, 0] > 0).sum())
        click.echo(f"clip {int(clip['index'])}: {cells} nuclei, after {seconds:.1f} s")
    click.echo(
        f"{clips / seconds:.3f} clips a second ({frames} frames of {size[0]} x {size[1]}, "
        f"{workers} workers, T_f=0 = {first_steps}, T_f>0 = {later_steps})"
    )
    made.sort(key=lambda clip: int(clip["index"]))
    sheet, film = output / "contact_sheet.png", output / "clip.gif"
    contact_sheet({f"clip {int(clip['index'])}": clip for clip in made[:4]}, sheet)
    animation(made[0], film)
    click.echo(f"wrote {sheet} and {film}")


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
@_MODEL
@click.option("--frames", default=92, show_default=True)
@click.option("--size", default="700x1100", show_default=True, type=_Size())
@click.option("--sequences", default=2, show_default=True, help="How many videos.")
@click.option("--nuclei", type=_Nuclei(), help="In the first frame. [default: as in the video]")
@_steps
@_SEED
@_QUIET
def export(
    directory: Path,
    model: str,
    frames: int,
    size: tuple[int, int],
    sequences: int,
    nuclei: int | tuple[int, int] | None,
    first_steps: int,
    later_steps: int,
    seed: int,
    quiet: bool,
) -> None:
    """Write synthetic videos with their truth to DIRECTORY, as the Cell Tracking Challenge does.

    Killed, the same command goes on with the videos that are missing.
    """
    from bvdm_data.datasets.export import export as write
    from bvdm_data.synth.texture import PaperSettings

    written = write(
        directory,
        frames=frames,
        size=size,
        sequences=sequences,
        seed=seed,
        model=model,
        method=PaperSettings(first_steps=first_steps, later_steps=later_steps),
        nuclei=nuclei,
        progress=not quiet,
    )
    click.echo(f"wrote {', '.join(written) if written else 'nothing: all is there'} to {directory}")


@cli.command()
@click.argument("name")
@click.option("--directory", default=".", show_default=True, type=click.Path(path_type=Path))
@click.option("--split", default="training", show_default=True, help="training or test.")
@_QUIET
def fetch(name: str, directory: Path, split: str, quiet: bool) -> None:
    """Download a data set, such as Fluo-N2DL-HeLa, from the Cell Tracking Challenge."""
    from bvdm_data.datasets.fetch import fetch as download

    click.echo(f"wrote {download(name, directory, split=split, progress=not quiet)}")


def main() -> None:
    """Run the command line; errors of the user are one line, not a traceback."""
    try:
        cli()
    except (ValueError, TypeError, OSError, IndexError) as error:
        click.echo(f"bvdm-data: {_one_line(error)}", err=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    """Return the words of an error; of one that a loader's worker met, without its traceback."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if any(line.startswith("Original Traceback") for line in lines):
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(line.strip() for line in lines)


if __name__ == "__main__":
    main()
