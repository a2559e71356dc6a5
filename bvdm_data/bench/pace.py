"""Pace: how fast one process makes clips, and what each part of the work costs."""

import math
import os
import time
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from bvdm_data.clip import Clip
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth.fast import FastSettings
from bvdm_data.synth.parts import MARK, PARTS

MOST_PROFILED = 20
"""Clips that are profiled at most; a profile keeps all that it saw in memory."""

MATRIX = 2048
"""Side of the matrices whose product says what the processor can do at best."""

_WHOLE = "clip"


@dataclass(frozen=True)
class Pace:
    """How fast one process makes clips.

    Attributes:
        clips: How many were timed.
        clips_per_second: Clips over seconds.
        frames_per_second: Frames of these clips over seconds.
        nuclei: Nuclei of a clip, on average.
        megabytes: Memory of the tensors of a clip, MB.
    """

    clips: int
    clips_per_second: float
    frames_per_second: float
    nuclei: float
    megabytes: float


def fill(videos: SyntheticHeLaVideos) -> int:
    """Make the first clips: models are loaded, and a pool is filled as far as it ever is.

    A clip shows pairs at random, so ``n`` clips leave ``exp(-n pairs of a clip / pairs)`` of a pool
    unseen: a twentieth after three times as many clips as would hold all pairs once.

    Args:
        videos: The data set.

    Returns:
        How many clips that took.
    """
    clip = videos.clip(0)
    if videos.pool is None:
        return 1
    shown = max(1, nuclei_of(clip) // 2)
    clips = math.ceil(3 * videos.pool.pairs / shown)
    for number in range(1, clips):
        videos.clip(number)
    return clips


def nuclei_of(clip: Clip) -> int:
    """Return how many nuclei a clip shows; by its tracks, or else its masks, or 0."""
    if "tracks" in clip:
        return int((clip["tracks"][:, 0] > 0).sum())
    return int(clip["masks"].max()) if "masks" in clip else 0


def measure_pace(videos: SyntheticHeLaVideos, first: int, seconds: float) -> Pace:
    """Make clips one after the other for a while.

    Args:
        videos: The data set.
        first: Number of the first clip.
        seconds: For how long; at least one clip is made.
    """
    made, nuclei, size, begun = 0, 0, 0, time.perf_counter()
    passed = 0.0
    while passed < seconds or not made:
        clip = videos.clip(first + made)
        passed = time.perf_counter() - begun
        made += 1
        nuclei += nuclei_of(clip)
        size += sum(value.nbytes for value in clip.values())  # type: ignore[attr-defined]
    return Pace(
        clips=made,
        clips_per_second=made / passed,
        frames_per_second=made * videos.frames / passed,
        nuclei=nuclei / made,
        megabytes=size / made / 1e6,
    )


@dataclass(frozen=True)
class Costs:
    """What a clip costs under a profiler.

    Attributes:
        clips: How many were profiled.
        milliseconds: Time a clip, by part: those of ``PARTS`` that were met, and ``other``.
        calls: Calls of the network a clip.
    """

    clips: int
    milliseconds: dict[str, float]
    calls: float

    @property
    def shares(self) -> dict[str, float]:
        """Share of the time, by part."""
        whole = sum(self.milliseconds.values())
        return {name: part / whole for name, part in self.milliseconds.items()}


def measure_costs(videos: SyntheticHeLaVideos, first: int, clips: int) -> Costs:
    """Profile clips with ``torch.profiler``, by the names that the parts of the work have.

    Args:
        videos: The data set.
        first: Number of the first clip.
        clips: How many.
    """
    # Of no use without a GPU: libkineto's own lines on standard error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU]) as record:
        for number in range(first, first + clips):
            with record_function(MARK + _WHOLE):
                videos.clip(number)
    found = {
        event.key.removeprefix(MARK): (event.cpu_time_total / 1000 / clips, event.count / clips)
        for event in record.key_averages()
        if event.key.startswith(MARK)
    }
    milliseconds = {name: found[name][0] for name in PARTS if name in found}
    milliseconds["other"] = max(0.0, found[_WHOLE][0] - sum(milliseconds.values()))
    method = videos.method
    steps = method.steps if isinstance(method, FastSettings) else 0
    return Costs(clips, milliseconds, steps * found.get("network", (0.0, 0.0))[1])


@dataclass(frozen=True)
class Arithmetic:
    """How well the network uses the processor.

    Attributes:
        gflop_per_clip: Arithmetic of the networks for a clip of nuclei of its own.
        gflops: What they achieve, GFLOP a second.
        matrix_gflops: What a product of two matrices of the same type does.
    """

    gflop_per_clip: float
    gflops: float
    matrix_gflops: float

    @property
    def share(self) -> float:
        """What is achieved over what a product of matrices does."""
        return self.gflops / self.matrix_gflops


def measure_arithmetic(videos: SyntheticHeLaVideos, first: int, clips: int) -> Arithmetic:
    """Count the arithmetic of the networks of the fast method, and time it.

    Args:
        videos: A data set without a pool, so that every clip calls the network equally often.
        first: Number of the first clip.
        clips: How many.
    """
    with FlopCounterMode(display=False) as counter:
        for number in range(first, first + clips):
            videos.clip(number)
    gflop = counter.get_total_flops() / clips / 1e9
    milliseconds = measure_costs(videos, first, clips).milliseconds["network"]
    return Arithmetic(gflop, 1000 * gflop / milliseconds, matrix_gflops(torch.bfloat16))


def matrix_gflops(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return what the best of several products of two matrices does in one thread, GFLOP/s.

    Args:
        dtype: Type of the numbers.
        seconds: How long it is tried, after a first one.
    """
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
