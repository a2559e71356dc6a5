"""Bench: everything about the speed of a data set and of the loop that it feeds, in one run."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bvdm_data.bench.advice import KEEPS_UP, Change, advise, alike, try_changes
from bvdm_data.bench.loop import Loop, check_seconds, measure_wait
from bvdm_data.bench.pace import (
    MOST_PROFILED,
    Arithmetic,
    fill,
    measure_arithmetic,
    measure_costs,
    measure_pace,
)
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.files import whole_file
from bvdm_data.machine import machine, peak_megabytes, usable_cores, versions

_COUNTED = 5


def bench(
    videos: SyntheticHeLaVideos,
    loop: Loop,
    *,
    seconds: float = 10.0,
    report: Path | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure how fast clips come, what they cost, and whether a loop waits for them.

    A pool is filled before anything is timed. Where workers are forked they begin with what it
    holds; elsewhere they fill one of their own, and the loop waits longer at first.

    Args:
        videos: The data set; it is measured as an endless stream.
        loop: The training loop.
        seconds: How long each measurement goes on. Clips that take longer are waited for.
        report: JSON file to write; its folder is made if need be.
        say: Told what is measured.

    Returns:
        JSON values: ``machine``, ``versions``, ``clips`` (what was asked for), ``pace`` (of one
        process), ``parts`` (milliseconds a clip and their shares), ``network`` (None where none is
        profiled), ``memory``, ``loop``, ``changes`` and ``advice``.

    Raises:
        OSError: If the report cannot be written; found out before anything is measured.
        TypeError: If seconds is no number.
        ValueError: If seconds is not above 0, or the clips cannot be made.
    """
    limit = check_seconds("seconds", seconds)
    if report is None:
        return _measured(videos, loop, limit, say)
    with whole_file(report) as temporary:
        found = _measured(videos, loop, limit, say)
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _measured(
    videos: SyntheticHeLaVideos, loop: Loop, limit: float, say: Callable[[str], object]
) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": machine(), "versions": versions()}
    videos = alike(videos, batch_size=loop.batch_size)
    say("filling the pool" if videos.pool else "making a first clip")
    number = fill(videos)
    say("making clips")
    pace = measure_pace(videos, number, limit)
    number += pace.clips
    memory = {"process_mb": peak_megabytes(), "clip_mb": pace.megabytes}
    say("profiling clips")
    profiled = max(1, min(MOST_PROFILED, int(limit / 2 * pace.clips_per_second)))
    costs = measure_costs(videos, number, profiled)
    number += profiled
    network = None
    if "network" in costs.milliseconds:
        say("counting arithmetic")
        network = measure_arithmetic(alike(videos, pool=None), 0, min(_COUNTED, profiled))
    say("running the loop")
    start = -(-number // loop.batch_size) * loop.batch_size
    wait = measure_wait(videos, loop, limit, first=start)
    memory["worker_mb"] = peak_megabytes(children=True) if loop.workers else None
    changes: list[Change] = []
    if wait.share > KEEPS_UP:
        changes = try_changes(videos, pace, loop, limit / 4, say)
    found["clips"] = _asked(videos)
    found["pace"] = asdict(pace)
    found["parts"] = {
        "clips": costs.clips, "milliseconds": costs.milliseconds, "shares": costs.shares
    }  # fmt: skip
    found["network"] = network and _network(network, costs.calls, pace.clips_per_second)
    found["memory"] = memory
    found["loop"] = asdict(loop) | {"wanted": loop.wanted} | asdict(wait)
    found["changes"] = [asdict(change) for change in changes]
    found["advice"] = advise(pace, loop, wait, changes, usable_cores())
    return found


def _network(network: Arithmetic, calls: float, clips_per_second: float) -> dict[str, float]:
    return {
        "calls_per_clip": calls,
        "calls_per_second": calls * clips_per_second,
        **asdict(network),
        "share": network.share,
    }


def _asked(videos: SyntheticHeLaVideos) -> dict[str, Any]:
    method = videos.method
    return {
        "frames": videos.frames,
        "size": list(videos.size),
        "nuclei": videos.nuclei,
        "variation": videos.variation,
        "method": {"kind": type(method).__name__, **asdict(method)},
        "pool": None if videos.pool is None else asdict(videos.pool),
        "annotations": list(videos.annotations),
        "seed": videos.seed,
        "model": videos.model.name,
    }
