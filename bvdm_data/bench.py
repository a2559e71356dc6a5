"""The bench: measures a data set and its loop, and says what would make the loop faster."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.files import open_atomic
from bvdm_data.fitting.progress import format_seconds
from bvdm_data.speed import (
    LoaderStall,
    Loop,
    Throughput,
    check_seconds,
    measure_flops,
    measure_stall,
    measure_throughput,
    profile_clips,
    warm_up,
)
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import (
    count_usable_cores,
    get_machine_info,
    list_versions,
    measure_peak_megabytes,
)

MAX_PROFILED = 20
"""Clips that are profiled at most; a profile stays in memory."""

MAX_COUNTED = 5
"""Clips whose arithmetic is counted at most."""

KEEPS_UP = 0.05
"""Share of its time that a loop may wait before something is worth changing (our choice)."""

CHEAP = ("masks", "tracks")
"""Annotations of data sets where nothing else is said."""

SELDOM = 0.1
"""Pairs renewed with every clip by a pool that is to cost next to nothing; what it does to a
network that is trained from it: docs/evaluation.md."""


@dataclass(frozen=True)
class Suggestion:
    """One change of the data set that was tried."""

    words: str  # what to write
    clips_per_second: float  # of one process, with the change
    gain: float  # that over the throughput without the change
    workers: int  # workers that the loop would then need


def count_workers_needed(loop: Loop, clips_per_second: float) -> int:
    """Return how many workers of this throughput a loop needs."""
    return math.ceil(loop.wanted / clips_per_second)


def copy_with(videos: SyntheticHeLaVideos, **changes: Any) -> SyntheticHeLaVideos:
    """Return an endless stream of the data set with other arguments, and as many rows as needed."""
    names = set(signature(SyntheticHeLaVideos).parameters) - {"length", "max_cells"}
    return SyntheticHeLaVideos(**{name: getattr(videos, name) for name in names} | changes)


def try_changes(
    videos: SyntheticHeLaVideos,
    base: Throughput,
    loop: Loop,
    seconds: float,
    log: Callable[[str], object],
) -> list[Suggestion]:
    """Measure what makes clips cheaper, the best first; changes that do not help are left out."""
    helpful = []
    for words, changes in _list_changes(videos):
        log(f"trying {words}")
        changed = copy_with(videos, **changes)
        try:
            speed = measure_throughput(changed, warm_up(changed), seconds).clips_per_second
        except ValueError:
            continue  # such a clip cannot be made; the other changes may help
        if speed > base.clips_per_second:
            gain, workers = speed / base.clips_per_second, count_workers_needed(loop, speed)
            helpful.append(Suggestion(words, speed, gain, workers))
    return sorted(helpful, key=lambda change: -change.gain)


def _list_changes(videos: SyntheticHeLaVideos) -> Iterator[tuple[str, Mapping[str, Any]]]:
    method, pool = videos.method, videos.pool
    if not isinstance(method, FastSettings):
        yield 'method="fast"', {"method": "fast", "variation": None}
    elif method.steps > 1:
        yield "FastSettings(steps=1)", {"method": FastSettings(families=method.families)}
    if isinstance(method, FastSettings) and method.families:
        if pool is None:
            yield "pool=True", {"pool": True}
        elif pool.renew > SELDOM:
            seldom = PoolSettings(pairs=pool.pairs, renew=SELDOM)
            yield f"PoolSettings(pairs={pool.pairs}, renew={SELDOM})", {"pool": seldom}
    fewer = tuple(name for name in videos.annotations if name in CHEAP)
    if fewer != videos.annotations and (fewer or videos.video):
        yield f"annotations={fewer}", {"annotations": fewer}
    if videos.nuclei is None and min(videos.size) >= 128:
        half = tuple(side // 2 for side in videos.size)
        yield f"size={half}", {"size": half}
    if videos.frames > 1:
        yield f"frames={videos.frames // 2}", {"frames": videos.frames // 2}


def recommend(
    throughput: Throughput, loop: Loop, stall: LoaderStall, changes: list[Suggestion], cores: int
) -> list[str]:
    """Return a verdict, whether the loop waits for synthesis, and what to do about it."""
    one = throughput.clips_per_second
    needed = count_workers_needed(loop, one)
    asks = f"the loop asks for {loop.wanted:.3g} clips/s and one process makes {one:.3g}"
    if stall.share <= KEEPS_UP:
        return [f"The loader keeps up: the loop waits {stall.share:.1%} of its time; {asks}."]
    lines = [f"Synthesis is the bottleneck: the loop waits {stall.share:.0%} of its time; {asks}."]
    lines.append(_advise_workers(loop.workers, needed, cores, one))
    lines += [
        f"{change.words}: {change.clips_per_second:.3g} clips/s, {change.gain:.1f} times as many; "
        f"{change.workers} worker{'s' * (change.workers > 1)} would do."
        for change in changes
    ]
    busy = min(cores, needed)
    lines.append(
        f'"bvdm-data export" ahead of the training, read by CTCVideos: 1,000 clips take about '
        f"{format_seconds(1000 / one / busy)} on {_count_cores(busy)}, once."
    )
    return lines


def _advise_workers(workers: int, needed: int, cores: int, one: float) -> str:
    if workers < needed <= cores:
        return f"num_workers={needed}: as many processes make what the loop asks for."
    if workers >= needed:
        return (
            f"{workers} workers would be enough on idle cores with full cell banks: see what else "
            "runs, and measure longer."
        )
    most = f"about {cores * one:.3g} clips/s"
    if workers < cores:
        return f"num_workers={cores}, one for each core: {most}. The loop would need {needed}."
    return f"More workers do not help: {_count_cores(cores)} can make {most}."


def _count_cores(count: int) -> str:
    return f"{count} core{'s' * (count != 1)}"


def bench(
    videos: SyntheticHeLaVideos,
    loop: Loop,
    *,
    seconds: float = 10.0,
    report: Path | None = None,
    log: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Measure how fast clips come, what they cost, and whether a loop waits for them.

    A cell bank is filled before anything is timed. Forked workers begin with what it holds; others
    fill one of their own, and the loop waits longer at first.
    """
    limit = check_seconds("seconds", seconds)
    if report is None:
        return _measure(videos, loop, limit, log)
    with open_atomic(report) as temporary:
        figures = _measure(videos, loop, limit, log)
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _measure(
    videos: SyntheticHeLaVideos, loop: Loop, limit: float, log: Callable[[str], object]
) -> dict[str, Any]:
    videos = copy_with(videos, batch_size=loop.batch_size)
    log("filling the cell bank" if videos.pool else "making a first clip")
    number = warm_up(videos)
    log("making clips")
    throughput = measure_throughput(videos, number, limit)
    number += throughput.clips
    memory = {"process_mb": measure_peak_megabytes(), "clip_mb": throughput.megabytes}
    log("profiling clips")
    profiled = max(1, min(MAX_PROFILED, int(limit / 2 * throughput.clips_per_second)))
    costs = profile_clips(videos, number, profiled)
    number += profiled
    network = None
    if "network" in costs.milliseconds:
        log("counting arithmetic")
        flops = measure_flops(copy_with(videos, pool=None), 0, min(MAX_COUNTED, profiled))
        network = {
            "calls_per_clip": costs.calls,
            "calls_per_second": costs.calls * throughput.clips_per_second,
            **asdict(flops),
            "share": flops.share,
        }
    log("running the loop")
    first = -(-number // loop.batch_size) * loop.batch_size
    stall = measure_stall(videos, loop, limit, first=first)
    memory["worker_mb"] = measure_peak_megabytes(children=True) if loop.workers else None
    slow = stall.share > KEEPS_UP
    changes = try_changes(videos, throughput, loop, limit / 4, log) if slow else []
    return {
        "machine": get_machine_info(),
        "versions": list_versions(),
        "clips": _describe_clips(videos),
        "pace": asdict(throughput),
        "parts": {
            "clips": costs.clips, "milliseconds": costs.milliseconds, "shares": costs.shares
        },
        "network": network,
        "memory": memory,
        "loop": asdict(loop) | {"wanted": loop.wanted} | asdict(stall),
        "changes": [asdict(change) for change in changes],
        "advice": recommend(throughput, loop, stall, changes, count_usable_cores()),
    }  # fmt: skip


def _describe_clips(videos: SyntheticHeLaVideos) -> dict[str, Any]:
    return {
        "frames": videos.frames,
        "size": list(videos.size),
        "nuclei": videos.nuclei,
        "variation": videos.variation,
        "method": {"kind": type(videos.method).__name__, **asdict(videos.method)},
        "pool": None if videos.pool is None else asdict(videos.pool),
        "annotations": list(videos.annotations),
        "video": videos.video,
        "seed": videos.seed,
        "model": videos.model.name,
    }


def format_report(figures: Mapping[str, Any]) -> str:
    """Return the figures of :func:`bench` as lines of text."""
    verdict, *advice = figures["advice"]
    help_ = ["What would help:", *(f"  - {line}" for line in advice)] if advice else []
    blocks = (_format_head, _format_throughput, _format_parts, _format_loop)
    text = "\n\n".join("\n".join(block(figures)) for block in blocks)
    return "\n".join([text, "", verdict, *help_])


def _format_head(figures: Mapping[str, Any]) -> Iterator[str]:
    clips, machine = figures["clips"], figures["machine"]
    height, width = clips["size"]
    pool = clips["pool"]
    bank = f", a pool of {pool['pairs']} pairs, {pool['renew']:g} renewed a clip" if pool else ""
    keys = ", ".join((*["video"] * clips["video"], *clips["annotations"]))
    yield (
        f"{clips['frames']} frames of {height} x {width}, {clips['method']['kind']}, variation "
        f"{clips['variation']}{bank}: {keys}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    load = "" if machine["load"] is None else f", load {machine['load']}"
    yield (
        f"{machine['processor']}, cores: {machine['cores']}, 1 thread a process{load}; loops over "
        f"pixels: {machine['loops']}; {versions}"
    )


def _format_throughput(figures: Mapping[str, Any]) -> Iterator[str]:
    speed, network, memory = figures["pace"], figures["network"], figures["memory"]
    yield (
        f"one process  {speed['clips_per_second']:.3g} clips/s, {speed['frames_per_second']:.3g} "
        f"frames/s; {speed['nuclei']:.1f} nuclei a clip ({speed['clips']} clips)"
    )
    if network is not None:
        yield (
            f"network      {network['calls_per_second']:.3g} calls/s, "
            f"{network['calls_per_clip']:.3g} a clip; {network['gflop_per_clip']:.3g} GFLOP a clip "
            f"of new nuclei in {network['dtype']}, {network['engine']}, at {network['gflops']:.3g} "
            f"GFLOP/s ({network['share']:.0%} of the "
            f"{network['matrix_gflops']:.3g} of a matrix product)"
        )
    clip = f"a clip has {memory['clip_mb']:.1f} MB"
    peaks = [
        f"{memory[name]:.0f} MB {process} at most"
        for name, process in (("process_mb", "this process"), ("worker_mb", "a worker"))
        if memory.get(name) is not None
    ]
    yield f"memory       {', '.join([*peaks, clip])}"


def _format_parts(figures: Mapping[str, Any]) -> Iterator[str]:
    parts = figures["parts"]
    yield f"part          ms a clip  share   (profiled, {parts['clips']} clips)"
    for name, milliseconds in parts["milliseconds"].items():
        yield f"{name:<13} {milliseconds:>9.2f}  {parts['shares'][name]:>5.1%}"
    if "network" in parts["shares"]:
        yield f"outside the network       {1 - parts['shares']['network']:.1%}"


def _format_loop(figures: Mapping[str, Any]) -> Iterator[str]:
    loop = figures["loop"]
    yield (
        f"loop         {loop['batch_size']} clips a step of {loop['step_seconds']:g} s, "
        f"{loop['workers']} worker{'s' * (loop['workers'] != 1)}: waits "
        f"{loop['wait_seconds']:.3f} s a step, {loop['share']:.1%} of its time "
        f"({loop['steps']} steps)"
    )
    yield (
        f"             gets {loop['clips_per_second']:.3g} of the {loop['wanted']:.3g} clips/s it "
        f"asks for; first batch after {loop['first_seconds']:.1f} s"
    )
