"""The speed of a data set and of the training loop that it feeds, measured in one run."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from bvdm_data.clip import Clip
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.files import open_atomic
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import (
    SPAN_PREFIX,
    SPANS,
    count_usable_cores,
    get_machine_info,
    list_versions,
    measure_peak_megabytes,
)
from bvdm_data.validate import as_int

MAX_PROFILED = 20
"""Clips that are profiled at most; a profile stays in memory."""

MATRIX = 2048
"""Side of the matrices whose product shows what the processor can do at best."""

MAX_COUNTED = 5
"""Clips whose arithmetic is counted at most."""


@dataclass(frozen=True)
class Throughput:
    """How fast one process makes clips."""

    clips: int  # how many were timed
    clips_per_second: float  # clips over seconds
    frames_per_second: float  # frames of these clips over seconds
    nuclei: float  # nuclei of a clip, on average
    megabytes: float  # memory of the tensors of a clip, MB


def warm_up(videos: SyntheticHeLaVideos) -> int:
    """Make the first clips: models are loaded, and a cell bank is filled.

    A clip shows pairs at random, so ``n`` clips leave ``exp(-n pairs of a clip / pairs)`` of a bank
    unused: a twentieth after three times as many clips as would show all pairs once.
    """
    clip = videos.clip(0)
    if videos.pool is None:
        return 1
    shown = max(1, count_nuclei(clip) // 2)
    clips = math.ceil(3 * videos.pool.pairs / shown)
    for number in range(1, clips):
        videos.clip(number)
    return clips


def count_nuclei(clip: Clip) -> int:
    """Return how many nuclei a clip shows; by its tracks, or else its masks, or 0."""
    if "tracks" in clip:
        return int((clip["tracks"][:, 0] > 0).sum())
    return int(clip["masks"].max()) if "masks" in clip else 0


def measure_throughput(videos: SyntheticHeLaVideos, first: int, seconds: float) -> Throughput:
    """Make clips one after the other for a while."""
    made, nuclei, size, begun = 0, 0, 0, time.perf_counter()
    passed = 0.0
    while passed < seconds or not made:
        clip = videos.clip(first + made)
        passed = time.perf_counter() - begun
        made += 1
        nuclei += count_nuclei(clip)
        size += sum(value.nbytes for value in clip.values())  # type: ignore[attr-defined]
    return Throughput(
        clips=made,
        clips_per_second=made / passed,
        frames_per_second=made * videos.frames / passed,
        nuclei=nuclei / made,
        megabytes=size / made / 1e6,
    )


@dataclass(frozen=True)
class ProfileSummary:
    """What a clip costs under a profiler."""

    clips: int  # how many were profiled
    milliseconds: dict[str, float]  # time a clip, by part: those of PARTS that were met, and other
    calls: float  # calls of the network a clip

    @property
    def shares(self) -> dict[str, float]:
        """Share of the time, by part."""
        whole = sum(self.milliseconds.values())
        return {name: part / whole for name, part in self.milliseconds.items()}


def profile_clips(videos: SyntheticHeLaVideos, first: int, clips: int) -> ProfileSummary:
    """Profile clips with ``torch.profiler``, by the names that the parts of the work have."""
    # Of no use without a GPU: libkineto's own lines on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for number in range(first, first + clips):
            with record_function(SPAN_PREFIX + "clip"):
                videos.clip(number)
    found = {
        event.key.removeprefix(SPAN_PREFIX): (
            event.cpu_time_total / 1000 / clips,
            event.count / clips,
        )
        for event in record.key_averages()
        if event.key.startswith(SPAN_PREFIX)
    }
    milliseconds = {name: found[name][0] for name in SPANS if name in found}
    milliseconds["other"] = max(0.0, found["clip"][0] - sum(milliseconds.values()))
    method = videos.method
    steps = method.steps if isinstance(method, FastSettings) else 0
    return ProfileSummary(clips, milliseconds, steps * found.get("network", (0.0, 0.0))[1])


@dataclass(frozen=True)
class FlopStats:
    """How well the network uses the processor."""

    gflop_per_clip: float  # arithmetic of the networks for a clip of nuclei of its own
    gflops: float  # what they achieve, GFLOP a second
    matrix_gflops: float  # what a product of two matrices of the same type does

    @property
    def share(self) -> float:
        """What is achieved over what a product of matrices does."""
        return self.gflops / self.matrix_gflops


def measure_flops(videos: SyntheticHeLaVideos, first: int, clips: int) -> FlopStats:
    """Count the arithmetic of the networks of the fast method, and time it."""
    with FlopCounterMode(display=False) as counter:
        for number in range(first, first + clips):
            videos.clip(number)
    # Of the networks alone: the camera multiplies matrices, too.
    counts = [counter.get_flop_counts().get(name, {}) for name in ("Denoiser", "Student")]
    gflop = sum(sum(count.values()) for count in counts) / clips / 1e9
    milliseconds = profile_clips(videos, first, clips).milliseconds["network"]
    return FlopStats(gflop, 1000 * gflop / milliseconds, measure_matrix_gflops(torch.bfloat16))


def measure_matrix_gflops(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return what the best of several products of two matrices does in one thread, GFLOP/s."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, other = torch.rand((2, MATRIX, MATRIX), generator=torch.Generator()).to(dtype)
        best, end = math.inf, math.inf
        while time.perf_counter() < end or end == math.inf:
            begun = time.perf_counter()
            torch.mm(one, other)
            last = time.perf_counter()
            if end == math.inf:
                end = last + seconds
            best = min(best, last - begun)
    finally:
        torch.set_num_threads(threads)
    return 2 * MATRIX**3 / best / 1e9


LEAST_STEPS = 3
"""Steps that are taken at least, however long they are."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A training loop."""

    batch_size: int = 4  # clips a step
    workers: int = 1  # processes of the loader; 0: the loop's own process makes the clips
    step_seconds: float = 0.1  # how long a step takes without the loader

    def __post_init__(self) -> None:
        """Refuse loops that go nowhere."""
        as_int("batch_size", self.batch_size, least=1)
        as_int("workers", self.workers, least=0)
        check_seconds("step_seconds", self.step_seconds)

    @property
    def wanted(self) -> float:
        """Clips a second that the loop would use up if it never waited."""
        return self.batch_size / self.step_seconds


def check_seconds(name: str, value: float) -> float:
    """Return a time above 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")
    return seconds


@dataclass(frozen=True)
class LoaderStall:
    """How long a loop waits for its loader."""

    steps: int  # steps that were timed
    first_seconds: float  # from the start of the loop to its first batch
    wait_seconds: float  # time that each later step waits for its batch, on average
    share: float  # share of the loop's time that it waits
    clips_per_second: float  # what it gets


def measure_stall(
    videos: SyntheticHeLaVideos, loop: Loop, seconds: float, *, first: int = 0
) -> LoaderStall:
    """Run a loop that sleeps in place of its steps.

    A step that sleeps uses no core, as one on a GPU hardly does. The first batch, for which
    workers start and models are loaded, does not count.
    """
    videos.load_state_dict({"epoch": videos.epoch, "seed": videos.seed, "start": first})
    loader = DataLoader(videos, batch_size=loop.batch_size, num_workers=loop.workers)
    begun = time.perf_counter()
    batches = iter(loader)
    next(batches)
    counted = ready = time.perf_counter()
    steps, waited = 0, 0.0
    while ready - counted < seconds or steps < LEAST_STEPS:
        time.sleep(loop.step_seconds)
        asked = time.perf_counter()
        next(batches)
        ready = time.perf_counter()
        waited += ready - asked
        steps += 1
    # Ends the workers now, so that what they held can be told.
    del batches, loader
    passed = ready - counted
    return LoaderStall(
        steps=steps,
        first_seconds=counted - begun,
        wait_seconds=waited / steps,
        share=waited / passed,
        clips_per_second=steps * loop.batch_size / passed,
    )


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
    """Return the same data set with other arguments, as an endless stream."""
    names = set(signature(SyntheticHeLaVideos).parameters) - {"length"}
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
    if fewer != videos.annotations:
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
        f"{1000 / one / busy / 60:.2g} minutes on {_count_cores(busy)}, once."
    )
    return lines


def _advise_workers(workers: int, needed: int, cores: int, one: float) -> str:
    if workers < needed <= cores:
        return f"num_workers={needed}: as many processes make what the loop asks for."
    if workers >= needed:
        return (
            f"{workers} workers should be enough: something else uses the cores, or the workers "
            "still fill their cell banks."
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
    keys = ", ".join(("video", *clips["annotations"]))
    yield (
        f"{clips['frames']} frames of {height} x {width}, {clips['method']['kind']}, variation "
        f"{clips['variation']:g}{bank}: {keys}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    load = "" if machine["load"] is None else f", load {machine['load']}"
    yield (
        f"{machine['processor']}, cores: {machine['cores']}, 1 thread a process{load}; {versions}"
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
            f"of new nuclei, at {network['gflops']:.3g} GFLOP/s ({network['share']:.0%} of the "
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
