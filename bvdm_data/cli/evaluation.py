"""The command that judges a model."""

from pathlib import Path

import click

from bvdm_data.cli.options import MODEL, QUIET, SEED, VARIATION, method_options, method_settings


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@MODEL
@VARIATION
@method_options
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
    from bvdm_data.evaluation.segmentation_training import SegmenterSettings
    from bvdm_data.judge.arms import Data
    from bvdm_data.judge.evaluate import DEFAULT_ARMS, DEFAULT_PARTS, Questions
    from bvdm_data.judge.evaluate import evaluate as judge
    from bvdm_data.judge.training import Budget

    if not all(number.isdigit() for number in scarce_frames.split(",")):
        raise click.UsageError(f"--scarce-frames must look like 1,4,10, got {scarce_frames!r}")
    data = Data(
        root=root,
        train=train,
        test=test,
        model=model,
        method=method_settings(method, first_steps, later_steps),
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
