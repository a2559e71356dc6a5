"""Commands that fit, describe and judge models."""

import json
import textwrap
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bvdm_data.cli.options import (
    FOLDER,
    JSON,
    MODEL,
    OUTLINE,
    QUIET,
    SEED,
    VARIATION,
    add_method_options,
    option,
    take_method,
)

QUICK_MINUTES = 15.0
"""What ``fit --quick`` takes."""

if TYPE_CHECKING:
    from bvdm_data.clip import CameraScale


@click.command()
@click.argument("root", type=FOLDER)
@option("--sequence", default="01", help="Name of the video.")
@option("--output", required=True, type=FOLDER, help="File to write: NAME.safetensors.")
@option("--truth", default="auto", help="Masks: auto, ST, GT or TRA.")
@option("--minutes", default=30.0, help="Time between two frames.")
@option("--pixel-size", type=float, help="Side of a pixel in micrometres.")
@option("--license", help="Of the video, for the model's card.")
@option("--stop", type=int, help="Use only frames with a lower number.")
@option("--border", default=25, help="Pixels without complete truth.")
@option("--offset", type=int, help="Camera count of no light. [default: guessed]")
@option("--full", type=int, help="Camera count of full scale. [default: guessed]")
@option("--painter-steps", default=10_000, help="Training steps of the denoiser.")
@option(
    "--distilled-steps",
    default=8_000,
    help="Training steps of the student, which renders in one call what the denoiser renders in "
    "several.",
)
@option("--pairs", default=16_384, help="Patches of the denoiser that the student learns from.")
@option("--paper", is_flag=True, help="Train the networks of the paper's method, too.")
@option("--start-from", help="Model to fine-tune; for a few annotated frames.")
@option("--lives", help="Model whose lives are taken, and motion; the video needs no tracks.")
@option("--link", is_flag=True, help="Make tracks of masks without any (extra evaluate).")
@option("--quick", is_flag=True, help="Within 15 minutes on one core: fewer steps and pairs.")
@option("--texture-steps", default=10_000, help="Of --paper: training steps of the DDPM.")
@option("--flow-steps", default=2_000, help="Of --paper: training steps of FlowNet.")
@option("--device", default="cpu", help="Where to train: cpu, cuda.")
@option("--threads", default=1, help="Threads of torch and of numpy's BLAS.")
@option("--work-dir", type=FOLDER, help="Checkpoints. [default: NAME.fit]")
@SEED
@JSON
@QUIET
def fit(
    root: Path,
    output: Path,
    offset: int | None,
    full: int | None,
    painter_steps: int,
    distilled_steps: int,
    texture_steps: int,
    flow_steps: int,
    quick: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Fit a model to one annotated video in the folder ROOT.

    ROOT is laid out as in the Cell Tracking Challenge. Takes an hour or so on one core, and hours
    more with --paper. Killed, the same command goes on where it was. Beside the model, a page
    (NAME.html) shows real and synthetic clips, how like they are, and what to try next.
    """
    from bvdm_data.evaluation.side_by_side import write_fit_page
    from bvdm_data.fitting.denoiser import DENOISER_TRAINING, STUDENT_TRAINING
    from bvdm_data.fitting.fit import FitSettings
    from bvdm_data.fitting.fit import fit as fit_video
    from bvdm_data.fitting.paper_networks import DDPM_TRAINING, FLOW_TRAINING
    from bvdm_data.fitting.progress import Progress

    scale = _parse_scale(offset, full)
    names = ("pairs", "paper", "minutes", "pixel_size", "border", "seed", "license", "stop")
    settings = FitSettings(
        painter=replace(DENOISER_TRAINING, steps=painter_steps),
        distilled=replace(STUDENT_TRAINING, steps=distilled_steps),
        texture=replace(DDPM_TRAINING, steps=texture_steps),
        flow=replace(FLOW_TRAINING, steps=flow_steps),
        budget=QUICK_MINUTES if quick else None,
        **{name: options.pop(name) for name in names},
    )
    options |= {"scale": scale, "settings": settings}
    with warnings.catch_warnings(), Progress({"page": 15.0}, shown=not quiet) as bar:
        warnings.showwarning = _show_warning
        if find_spec("skimage") is None:
            bar.say("the page at the end needs scikit-image: pip install 'bvdm-data[evaluate]'")
        model = fit_video(root, output, **options, progress=bar)
        warnings.simplefilter("ignore")  # they were shown ahead of the training
        given = (root, options["sequence"], options["truth"])
        video = (output.with_suffix(".linked"), given[1], "auto") if options["link"] else given
        lines = write_fit_page(output.with_suffix(".html"), output, video, bar)
    _print_card(model.card, as_json)
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB)", err=as_json)
    click.echo("\n".join(lines), err=as_json)


@click.command()
@MODEL
@JSON
def info(model: str, as_json: bool) -> None:
    """Print the card of a model: data, settings, held-out figures."""
    from bvdm_data.weights import find_model, read_card

    _print_card(read_card(model), as_json)
    if not as_json:
        path = find_model(model)
        click.echo(f"{path} ({path.stat().st_size / 1e6:.2f} MB); --json prints all of the card")


@click.command()
@JSON
def models(as_json: bool) -> None:
    """List the models that have a name, shipped and your own."""
    from bvdm_data.weights import cache_folder, known_models

    found = {name: _summarise_model(path) for name, path in known_models().items()}
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, about in found.items():
        click.echo(f"{name}: {about.pop('file')}")
        _print_card(about, as_json)
    click.echo(f"a file NAME.safetensors in {cache_folder()} has a name, too")


def _summarise_model(path: Path) -> dict[str, Any]:
    """Return where a model is, and of its card the licence, the data and the last figures."""
    from bvdm_data.weights import bundled_folder, read_card

    is_shipped = path.parent == bundled_folder()
    try:
        card = read_card(path)
    except (OSError, ValueError) as error:
        click.echo(f"bvdm-data: {error}", err=True)
        return {"file": str(path), "license": "not read: damaged"}
    terms = "Apache-2.0, as the package; for its video see NOTICE.md" if is_shipped else "not said"
    losses = {part: _look_up(card, part, "held_out_loss") for part in ("painter", "distilled")}
    return {
        "file": str(path),
        "license": _look_up(card, "settings", "license") or terms,
        "data": card.get("data"),
        "measured": card.get("measured"),
        "held_out": {part: loss[-1] for part, loss in losses.items() if isinstance(loss, list)},
    }


def _look_up(card: Any, *path: str) -> Any:
    """Return an entry of a card, None where there is none: a card may hold anything."""
    for key in path:
        card = card.get(key) if isinstance(card, Mapping) else None
    return card


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Show a warning in one line, without its place in the code."""
    click.echo(f"bvdm-data: warning: {message}", err=True)


def _parse_scale(offset: int | None, full: int | None) -> "CameraScale | None":
    """Return the scale that ``--offset`` and ``--full`` name together."""
    from bvdm_data.clip import CameraScale

    if (offset is None) != (full is None):
        raise click.UsageError("give both --offset and --full, or neither")
    return None if offset is None or full is None else CameraScale(offset, full)


def _print_card(card: Mapping[str, Any], as_json: bool) -> None:
    """Print a card as JSON, or its entries as lines that fit on a screen."""
    if as_json:
        click.echo(json.dumps(card, indent=2))
        return
    lines: list[str] = []
    for name, value in card.items():
        text = f"{name[:20]:<12} {', '.join(_list_entries('', value))}"
        text = "".join(one if one.isprintable() else "?" for one in text)
        lines += textwrap.wrap(text, 100, subsequent_indent=" " * 13, max_lines=8)
    click.echo("\n".join(lines[:38] + ["..."] * (len(lines) > 38)))


def _list_entries(name: str, value: Any) -> list[str]:
    """Return the entries of a part of a card as words, of a long list the first and last."""
    if isinstance(value, dict):
        start = f"{name}." if name else ""
        return [one for key, inner in value.items() for one in _list_entries(start + key, inner)]
    if isinstance(value, list):
        few = value if len(value) < 4 else [value[0], "...", value[-1]]
        value = " ".join(str(one) for one in few) or "none"
    return [f"{name[:60]} {str(value)[:60]}".strip()]


@click.command()
@click.argument("root", type=FOLDER)
@MODEL
@VARIATION
@OUTLINE
@add_method_options
@option("--train", default="01", help="Video to train on.")
@option("--test", default="02", help="Held-out video to test on.")
@option("--border", type=int, help="Pixels without complete truth. [default: as the model's fit]")
@option("--offset", type=int, help="Camera count of no light. [default: as the model's]")
@option("--full", type=int, help="Camera count of full scale. [default: as the model's]")
@option(
    "--part",
    "parts",
    multiple=True,
    help="distance, realism, training, transfer or linking; may be repeated. [default: all]",
)
@option(
    "--arm",
    "arms",
    multiple=True,
    help="Kind of training data: real, synthetic, copy-paste, real+synthetic, procedural, "
    "synthetic-stream, synthetic-films, synthetic-calibrated, paper or cell-cycle-gan; may be "
    "repeated. [default: the first five]",
)
@option(
    "--quick",
    is_flag=True,
    help="Within an hour on two cores with --workers 2: parts realism and training; arms real, "
    "copy-paste and synthetic-stream; 600 steps; one small film. What is given goes before.",
)
@option("--also", multiple=True, help="Further test video, ROOT:SEQUENCE; may be repeated.")
@option("--calibrated", default=0, help="First test frames, for synthetic-calibrated; untested.")
@option("--seeds", type=int, help="Networks trained on each arm. [default: 3]")
@option("--steps", type=int, help="Training steps of a segmenter. [default: 1000]")
@option("--clips", type=int, help="Clips of an arm. [default: as many pixels as the video]")
@option("--films", type=int, help="Synthetic videos of the part realism. [default: 3]")
@option("--crops", type=int, help="Nuclei of the feature distance. [default: 900]")
@option("--linker-seeds", type=int, help="Linkers trained on each arm. [default: 3]")
@option("--linker-steps", type=int, help="Training steps of a linker. [default: 1800]")
@option("--ablation", is_flag=True, help="Part linking: take back the changes one at a time, too.")
@option("--work-dir", default="evaluation", type=FOLDER, help="For clips, networks and scores.")
@option("--report", type=FOLDER, help="Folder for index.html and report.json.")
@option("--workers", default=0, help="Processes that make clips and train segmenters.")
@SEED
@QUIET
def evaluate(
    parts: tuple[str, ...],
    arms: tuple[str, ...],
    quick: bool,
    also: tuple[str, ...],
    seeds: int | None,
    steps: int | None,
    clips: int | None,
    films: int | None,
    crops: int | None,
    linker_seeds: int | None,
    linker_steps: int | None,
    ablation: bool,
    work_dir: Path,
    report: Path | None,
    quiet: bool,
    offset: int | None,
    full: int | None,
    **options: Any,
) -> None:
    """Judge a model by what networks learn from its clips.

    They train on real and synthetic clips, and on both, and are tested on the held-out video in
    ROOT. Takes hours for all parts. Killed, the same command goes on; what is done is kept.
    """
    from bvdm_data.evaluation.arms import Data
    from bvdm_data.evaluation.evaluate import QUICK, Questions
    from bvdm_data.evaluation.evaluate import evaluate as judge
    from bvdm_data.evaluation.linker import LINKER_TRAINING, LinkerSettings
    from bvdm_data.evaluation.segmenter import SegmenterSettings

    options |= {"scale": _parse_scale(offset, full), "method": take_method(options)}
    others = [_parse_video(video) for video in also]
    data = Data(folder=work_dir, progress=not quiet, also=others, **options)
    usual = QUICK if quick else Questions()
    segmenter = None if steps is None else SegmenterSettings(steps=steps)
    given: dict[str, Any] = {"seeds": seeds, "clips": clips, "films": films, "crops": crops}
    given |= {"segmenter": segmenter, "linker_seeds": linker_seeds, "ablation": ablation or None}
    if linker_steps is not None:
        training = replace(LINKER_TRAINING, steps=linker_steps)
        given["linker"] = LinkerSettings(training=training)
    budget = replace(usual.budget, **{key: v for key, v in given.items() if v is not None})
    parts, arms = parts or tuple(usual.parts), arms or tuple(usual.arms)
    judge(
        data, replace(usual, parts=parts, arms=arms, budget=budget), report=report, say=click.echo
    )


def _parse_video(text: str) -> tuple[Path, str]:
    """Return folder and sequence of ROOT:SEQUENCE."""
    root, colon, sequence = text.rpartition(":")
    if not (root and colon and sequence):
        raise click.UsageError(f"--also must be ROOT:SEQUENCE, like MyCells:01, got {text!r}")
    return Path(root), sequence
