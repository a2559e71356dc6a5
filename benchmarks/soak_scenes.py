"""Soak test of scenes: cells, labels and tables of many thousand clips, without pixels.

Run ``python -m benchmarks.soak_scenes --seconds 20``. It prints a table by size, method, variation,
frames and what is asked for: the density of the video, as many nuclei as the constructor takes,
a few at least, or a pool. Of every clip it counts failures of any kind, leaps (a nucleus in full
view moves farther than the video's longest step) and slivers (labels that others cut to a few
pixels), as :func:`bvdm_data.check_clip` tells them; and how full the fullest table is.
"""

import itertools
import json
import multiprocessing
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bvdm_data import SyntheticHeLaVideos, check_clip
from bvdm_data.clip import ANNOTATIONS, Clip
from bvdm_data.synth.scene import count_fitting_nuclei
from bvdm_data.synth.synthesis import collect_annotations, draw_scene
from bvdm_data.weights import load

SIZES, FRAMES = (64, 128, 256, 512, 1024), (1, 8, 92)
TABLES = tuple(name for name in ANNOTATIONS if name != "flow")
LAWS = (("fast", 0), ("fast", 1), ("paper", 0), ("paper", 1), ("procedural", 1))
RULES = {"leaps": "no step beyond", "slivers": "of a nucleus between others"}
"""What the errors of ``check_clip`` say of each."""

KEYS = ("clips", "failures", *RULES, "empty", "most nuclei", "rows")


def asked(kind: str, most: int) -> dict[str, Any]:
    """Return the arguments that ask for some nuclei."""
    return {
        "density": {}, "most": {"nuclei": most}, "least": {"at_least": max(1, most // 4)},
        "pool": {"pool": True},
    }[kind]  # fmt: skip


def soak(job: tuple[str, float, int, tuple[str, float], int, str]) -> dict[str, Any]:
    """Draw and check scenes of some settings for some seconds; return a row of the table."""
    name, seconds, size, (method, variation), frames, kind = job
    torch.set_num_threads(1)
    model, worst = load(name), ""
    row: Counter[str] = Counter(dict.fromkeys(KEYS, 0))
    videos = SyntheticHeLaVideos(
        model=name, size=size, frames=frames, method=method, variation=variation,
        annotations=TABLES, **asked(kind, count_fitting_nuclei(model, (size, size))),
    )  # fmt: skip
    row["rows"], end = videos.max_cells, time.perf_counter() + seconds
    while not row["clips"] or time.perf_counter() < end:
        number = row["clips"]
        row["clips"] += 1
        try:
            clip = draw(videos, number)
            row["most nuclei"] = max(row["most nuclei"], int(clip["tracks"][:, 0].max()))
            first = len(np.unique(clip["masks"][0])) - 1
            row["empty"] += first == 0
            if first < np.min(videos.nuclei or videos.at_least):
                raise ValueError(f"only {first} nuclei are in view at first")
            check_clip(clip, longest_step=model.motion.longest_step)
        except ValueError as error:
            found = [rule for rule, words in RULES.items() if words in str(error)]
            row[found[0] if found else "failures"] += 1
            worst = f"clip {number}: {error}"
    of = {"size": size, "method": method, "variation": variation, "frames": frames, "asked": kind}
    return {**of, **row, "error": worst}


def draw(videos: SyntheticHeLaVideos, number: int) -> Clip:
    """Return a clip whose video is black."""
    scene = draw_scene(
        load(videos.model), videos._scene(TABLES), videos.method, **videos._place(number)
    )
    clip: dict[str, Any] = collect_annotations(scene, None, TABLES, videos.max_cells)
    clip["video"] = torch.zeros(videos.frames, 1, *videos.size)
    clip |= {"index": torch.tensor(number), "source": torch.tensor(1, dtype=torch.int8)}
    return clip  # type: ignore[return-value]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as text."""
    names = [name for name in rows[0] if name != "error"]
    lines = [" | ".join(names)]
    for row in rows:
        lines.append(" | ".join(str(row[name]).rjust(len(name)) for name in names))
    for size, same in itertools.groupby(rows, lambda row: row["size"]):
        some = list(same)
        sums = ", ".join(f"{sum(row[key] for row in some)} {key}" for key in KEYS[:4])
        lines.append(f"{size} px: {sums}")
    lines += [f"{row}" for row in rows if row["error"]]
    return "\n".join(lines)


@click.command()
@click.option("--seconds", default=20.0, show_default=True, help="Of each row.")
@click.option("--size", "sizes", default=SIZES, show_default=True, type=int, multiple=True)
@click.option("--frames", default=FRAMES, show_default=True, type=int, multiple=True)
@click.option("--asked", "kinds", default=("density", "most", "least", "pool"), multiple=True)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--model", default="hela", show_default=True)
@click.option("--output", default="soak_scenes.json", type=click.Path(path_type=Path))
def main(
    seconds: float, sizes: list[int], frames: list[int], kinds: list[str], processes: int,
    model: str, output: Path,
) -> None:  # fmt: skip
    """Draw and check scenes; exit with 1 if one of them fails."""
    jobs = [
        (model, seconds, *rest)
        for rest in itertools.product(sizes, LAWS, frames, kinds)
        if rest[-1] != "pool" or rest[1][0] == "fast"
    ]
    rows = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for row in pool.imap(soak, jobs):
            rows.append(row)
            output.write_text(json.dumps(rows, indent=1) + "\n")
            click.echo(f"{len(rows)} of {len(jobs)} rows", err=True)
    click.echo(table(rows))
    raise SystemExit(any(row["error"] for row in rows))


if __name__ == "__main__":
    main()
