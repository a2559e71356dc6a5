"""Commands about models: fit one, and read what it says of itself."""

import json
from dataclasses import replace
from pathlib import Path

import click

from bvdm_data.cli.options import MODEL, QUIET, SEED


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
    from bvdm_data.camera_scale import CameraScale
    from bvdm_data.fitting.distilled import DISTILLED_TRAINING
    from bvdm_data.fitting.fit import FitSettings
    from bvdm_data.fitting.fit import fit as fit_video
    from bvdm_data.fitting.flow import FLOW_TRAINING
    from bvdm_data.fitting.painter import PAINTER_TRAINING
    from bvdm_data.fitting.texture import TEXTURE_TRAINING

    if (offset is None) != (full is None):
        raise click.UsageError("give both --offset and --full, or neither")
    scale = None if offset is None or full is None else CameraScale(offset, full)
    settings = FitSettings(
        painter=replace(PAINTER_TRAINING, steps=painter_steps),
        distilled=replace(DISTILLED_TRAINING, steps=distilled_steps),
        pairs=pairs,
        paper=paper,
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
