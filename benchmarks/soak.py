"""Soak test: many small clips of many settings from one loader; checks each, records memory.

Run ``python -m benchmarks.soak --clips 10000 --workers 1``. The settings alternate, so that the
same workers make clips of all of them throughout. Every clip goes through
:func:`bvdm_data.check_clip`; in addition, the flow of every complete nucleus must match the
displacement of its centroid. Memory is the private memory of a process (Linux).
"""

import json
import multiprocessing
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from bvdm_data import PaperSettings, PoolSettings, SyntheticHeLaVideos, check_clip, divisions
from bvdm_data.clip import ANNOTATIONS, Clip
from bvdm_data.clip_check import MAX_FLOW, measure_flow_errors
from bvdm_data.datasets.stream import ClipStream

TABLES = ("tracks", "stages", "boxes", "centroids")
MOVES = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop((80, 72)), v2.RandomRotation(90)])
SMALL = PoolSettings(pairs=64)  # full long before half of the clips are made
CASES: dict[str, dict[str, Any]] = {
    "fast": {},
    "fast, varied, 0 to 5 nuclei": {"nuclei": (0, 5)},
    "fast, not varied": {"variation": 0},
    "fast, not varied, 4 nuclei": {"variation": 0, "nuclei": 4},
    "fast, pool": {"pool": SMALL},
    "fast, pool, not varied, 0 to 5 nuclei": {"pool": SMALL, "variation": 0, "nuclei": (0, 5)},
    "fast, 8 frames of 64 x 120": {"frames": 8, "size": (64, 120)},
    "fast, 1 frame": {"frames": 1},
    "fast, one in fifty dies": {"death_rate": 0.02, "frames": 8},
    "fast, tables alone": {"annotations": TABLES},
    "fast, moved by a transform": {"transform": MOVES},
    "procedural": {"method": "procedural"},
    "procedural, varied, 0 to 5 nuclei": {
        "method": "procedural", "variation": 1, "nuclei": (0, 5),
    },
    "paper, 2 + 1 steps, 1 nucleus": {
        "method": PaperSettings(first_steps=2, later_steps=1), "nuclei": 1,
    },
}  # fmt: skip
"""Settings by name; the others are in ``COMMON``."""

COMMON = {"frames": 4, "size": (96, 96), "annotations": ANNOTATIONS}
SAMPLES = 100
"""Number of memory samples."""


class Turns(ClipStream):
    """Clips of alternating settings: clip i is clip ``i // n`` of setting ``i % n``."""

    def __init__(self, model: str, length: int, seed: int) -> None:
        super().__init__(length=length, seed=seed, batch_size=1)
        self.members = [member(name, model, seed) for name in CASES]

    def clip(self, index: int) -> Clip:
        return self.members[index % len(CASES)].clip(index // len(CASES))


def member(name: str, model: str, seed: int) -> SyntheticHeLaVideos:
    """Return the data set of a setting."""
    return SyntheticHeLaVideos(model=model, seed=seed, **COMMON | CASES[name])


def soak(model: str, clips: int, workers: int, seed: int) -> dict[str, Any]:
    """Make the clips and check them; return all figures as JSON values."""
    videos = Turns(model, clips, seed)
    rows = {name: Counter() for name in CASES}  # type: ignore[var-annotated]
    failures: list[dict[str, str]] = []
    memory: list[dict[str, float]] = []
    begun, done, every = time.perf_counter(), 0, max(clips // SAMPLES, 1)
    while done < clips:
        loader = DataLoader(videos, batch_size=None, num_workers=workers)
        try:
            for clip in loader:
                name = list(CASES)[done % len(CASES)]
                try:
                    _check(clip, rows[name])
                except ValueError as error:
                    failures.append(_failure(done, videos, error))
                done += 1
                if done % every == 0:
                    memory.append({"clip": done, **_memory()})
                if done % (10 * every) == 0:
                    click.echo(f"{done} clips, {len(failures)} failures", err=True)
        except Exception as error:  # continue with the next clip
            failures.append(_failure(done, videos, error))
            done += 1
        if done < clips:
            videos.load_state_dict({"epoch": 0, "seed": seed, "start": done})
    for failure in failures:
        rows[failure["settings"]]["failures"] += 1
    return {
        "clips": clips,
        "workers": workers,
        "seconds": round(time.perf_counter() - begun, 1),
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "rows": {name: dict(row) for name, row in rows.items()},
        "failures": failures,
        "memory": memory,
        "growth": {kind: _growth(memory, kind) for kind in ("loop", "workers")},
    }


def _check(clip: Clip, row: "Counter[str]") -> None:
    row["clips"] += 1
    check_clip(clip)
    if "tracks" in clip:
        tracks = clip["tracks"].numpy()
        row["nuclei"] += int((tracks[:, 0] > 0).sum())
        row["divisions"] += len(divisions(clip))
    # Transforms that crop nuclei shift their centroids.
    if "flow" in clip and clip["video"].shape[-2:] != MOVES.transforms[1].size:
        off = measure_flow_errors(clip["masks"].numpy(), clip["flow"].numpy())
        row["whole nuclei"] += len(off)
        row["flow error, px"] = max(row["flow error, px"], round(float(off.max(initial=0)), 3))
        if off.max(initial=0) > MAX_FLOW:
            raise ValueError(f"flow of a complete nucleus is off by {off.max():.2f} px")


def _failure(number: int, videos: Turns, error: Exception) -> dict[str, str]:
    place, index = number % len(CASES), number // len(CASES)
    name, model = list(CASES)[place], str(videos.members[place].model)
    return {
        "settings": name,
        "error": f"{type(error).__name__}: {error}",
        "again": (
            f"from benchmarks.soak import member; "
            f"member({name!r}, {model!r}, {videos.seed}).clip({index})"
        ),
    }


def _memory() -> dict[str, float]:
    """Return the private memory of this process, and of its workers together, MiB."""
    pids = [worker.pid for worker in multiprocessing.active_children()]
    return {"loop": _private("self"), "workers": sum(_private(str(pid)) for pid in pids)}


def _private(process: str) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _growth(memory: list[dict[str, float]], kind: str) -> dict[str, float]:
    """Return the growth of memory over the second half, by a linear fit, MiB."""
    late = memory[len(memory) // 2 :]
    clips = np.array([sample["clip"] for sample in late])
    size = np.array([sample[kind] for sample in late])
    slope = np.polyfit(clips, size, 1)[0] if len(late) > 1 else 0.0
    return {
        "at half": round(float(size[0]), 1),
        "at the end": round(float(size[-1]), 1),
        "growth": round(float(slope * (clips[-1] - clips[0])), 2),
        "growth per 1000 clips": round(float(1000 * slope), 2),
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as text."""
    keys = ("clips", "nuclei", "divisions", "whole nuclei", "flow error, px", "failures")
    wide = max(map(len, CASES))
    lines = [" | ".join(["settings".ljust(wide), *keys])]
    for name, row in found["rows"].items():
        cells = (str(row.get(key, 0)).rjust(len(key)) for key in keys)
        lines.append(" | ".join([name.ljust(wide), *cells]))
    lines.append(
        f"{found['clips']} clips, {len(found['failures'])} failures, {found['seconds']} s, "
        f"{found['workers']} workers; {found['machine']}"
    )
    for kind, growth in found["growth"].items():
        lines.append(f"private memory of the {kind}, MiB: {growth}")
    for failure in found["failures"]:
        lines += [f"{failure['settings']}: {failure['error']}", f"    {failure['again']}"]
    return "\n".join(lines)


@click.command()
@click.option("--clips", default=10_000, show_default=True, type=click.IntRange(min=1))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--model", default="hela", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--output", default="soak.json", show_default=True, type=click.Path(path_type=Path))
def main(clips: int, workers: int, model: str, seed: int, output: Path) -> None:
    """Make and check clips; exit with 1 if one of them fails."""
    found = soak(model, clips, workers, seed)
    output.write_text(json.dumps(found, indent=1) + "\n")
    click.echo(table(found))
    raise SystemExit(1 if found["failures"] else 0)


if __name__ == "__main__":
    main()
