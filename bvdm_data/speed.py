"""The speed of a data set and of the loop that it feeds: throughput, profile, flops, waiting."""

import math
import os
import time
from dataclasses import dataclass
from numbers import Real

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from bvdm_data.clip import Clip
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.pixels import has_loops, run_loop, skip_loops
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import SPAN_PREFIX, SPANS, choose_dtype
from bvdm_data.validate import as_int

MATRIX = 2048
"""Side of the matrices whose product shows what the processor can do at best."""


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

    gflop_per_clip: float  # arithmetic of the networks' layers for a clip of nuclei of its own
    gflops: float  # what they achieve, GFLOP a second
    matrix_gflops: float  # what a product of two matrices of the same type does
    dtype: str  # type of the numbers
    # what computes: "torch", or a compiled loop, whose algorithm saves arithmetic, with the length
    # of its vectors: "compiled for vectors of 8"
    engine: str

    @property
    def share(self) -> float:
        """What is achieved over what a product of matrices does."""
        return self.gflops / self.matrix_gflops


def measure_flops(videos: SyntheticHeLaVideos, first: int, clips: int) -> FlopStats:
    """Count the arithmetic of the networks of the fast method, and time it."""
    # What a compiled loop does cannot be counted.
    with skip_loops(), FlopCounterMode(display=False) as counter:
        for number in range(first, first + clips):
            videos.clip(number)
    # Of the networks alone: the camera multiplies matrices, too.
    counts = [counter.get_flop_counts().get(name, {}) for name in ("Denoiser", "Student")]
    gflop = sum(sum(count.values()) for count in counts) / clips / 1e9
    milliseconds = profile_clips(videos, first, clips).milliseconds["network"]
    is_student = getattr(videos.method, "steps", 1) == 1
    dtype = torch.float32 if is_student else choose_dtype(torch.device("cpu"))
    return FlopStats(
        gflop, 1000 * gflop / milliseconds, measure_matrix_gflops(dtype),
        dtype=str(dtype).removeprefix("torch."),
        engine=_name_engine() if is_student else "torch",
    )  # fmt: skip


def _name_engine() -> str:
    if not has_loops("paint"):
        return "torch"
    lanes = torch.zeros((), dtype=torch.int64)
    run_loop("count_lanes", lanes)
    return f"compiled for vectors of {int(lanes)}"


def measure_matrix_gflops(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return what the best of several products of two matrices does in one thread, GFLOP/s."""
    one, other = torch.rand((2, MATRIX, MATRIX), generator=torch.Generator()).to(dtype)
    timer = Timer("torch.mm(one, other)", globals={"one": one, "other": other}, num_threads=1)
    timed = timer.blocked_autorange(min_run_time=seconds)
    return 2 * MATRIX**3 / min(timed.times) / 1e9


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
