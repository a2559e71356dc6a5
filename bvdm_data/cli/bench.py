"""The command that measures speed: bench."""

from pathlib import Path
from typing import Any

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
@MODEL
@click.option("--frames", default=8, show_default=True)
@click.option("--size", default="256x256", show_default=True, type=Size())
@click.option("--nuclei", type=Nuclei(), help="In the first frame. [default: as in the video]")
@click.option("--max-cells", type=int, help="Rows of the tables. [default: that of the data set]")
@VARIATION
@method_options
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
    from bvdm_data.bench.bench import bench as measure
    from bvdm_data.bench.loop import Loop
    from bvdm_data.bench.words import words
    from bvdm_data.clip import ANNOTATIONS, DEFAULT_MAX_CELLS
    from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
    from bvdm_data.synth.pool import PoolSettings

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
        method=method_settings(method, first_steps, later_steps),
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
    click.echo(words(found))
