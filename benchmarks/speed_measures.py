"""Speed measurements: one function per figure; both numbers of a ratio come from the same run.

``python -m benchmarks.speed`` runs them all; ``python -m pytest benchmarks -m slow -s`` runs those
with a target. Everything except training runs in one thread.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate
from torch.utils.flop_counter import FlopCounterMode

from bvdm_data import (
    CTCVideos,
    FastSettings,
    PoolSettings,
    ProceduralSettings,
    SyntheticHeLaVideos,
)
from bvdm_data.clip import ANNOTATIONS
from bvdm_data.datasets.device_loader import SceneStream
from bvdm_data.evaluation.segmenter import Segmenter
from bvdm_data.pixels import skip_loops
from bvdm_data.speed import MATRIX, measure_throughput, profile_clips, warm_up
from bvdm_data.synth.denoiser import compute_signed_distance_map
from bvdm_data.synth.render import map_tensors
from bvdm_data.synth.textures import BATCH
from bvdm_data.system import set_threads
from bvdm_data.weights import load

FRAMES, SIZE = 8, (256, 256)

DENSITIES = {"01": 8, "02": 14}
"""Nuclei in 256 x 256 px of both videos of Fluo-N2DL-HeLa, the mean of all frames."""

PROFILED = 20

DATA = Path(os.environ.get("BVDM_DATA_ROOT", Path(__file__).parents[2] / "shared" / "data"))
REAL = DATA / "Fluo-N2DL-HeLa"


def clips(**changes: Any) -> SyntheticHeLaVideos:
    """Return a data set of whole clips at the density of video 01, with all annotations."""
    usual = {
        "frames": FRAMES, "size": SIZE, "nuclei": DENSITIES["01"], "variation": 0.0,
        "annotations": ANNOTATIONS,
    }  # fmt: skip
    return SyntheticHeLaVideos(**{**usual, **changes})


def planning(seconds: float) -> dict[str, dict[str, float]]:
    """Time what a worker of a DeviceLoader does for a clip, and count the bytes that it sends."""
    some = {"masks and tracks": ("masks", "tracks"), "all annotations": ANNOTATIONS}
    return {name: _plan(clips(annotations=kinds), seconds) for name, kinds in some.items()}


def _plan(videos: SyntheticHeLaVideos, seconds: float, batch: int = 8) -> dict[str, float]:
    scenes = SceneStream(videos, videos.method, render=False)
    scenes.collate([scenes.draw(number) for number in range(batch)])
    sizes: list[int] = []
    made, start = 0, time.process_time()
    while (passed := time.process_time() - start) < seconds or not made:
        sent = scenes.collate([scenes.draw(number) for number in range(made, made + batch)])
        made += batch
    map_tensors(sent, lambda tensor: sizes.append(tensor.nbytes))
    return {"milliseconds": 1000 * passed / made, "kilobytes": sum(sizes) / batch / 1000}


def pace_of(videos: SyntheticHeLaVideos, seconds: float) -> dict[str, float]:
    """Time clips, after loading the models and filling the cell bank."""
    found = measure_throughput(videos, warm_up(videos), seconds)
    return {
        "clips": found.clips,
        "clips_per_second": found.clips_per_second,
        "nuclei": found.nuclei,
    }


def against_paper(seconds: float) -> dict[str, Any]:
    """Compare the fast method, fresh and pooled, with the paper's, on clips of equal settings."""
    fast, pooled = pace_of(clips(), seconds), pace_of(clips(pool=True), seconds)
    # Ten times as long: some of its clips have twice as many nuclei as others.
    made = measure_throughput(clips(method="paper"), 0, 10 * seconds)
    paper = {
        "clips": made.clips,
        "clips_per_second": made.clips_per_second,
        "nuclei": made.nuclei,
    }
    again = pace_of(clips(), seconds)
    fresh = (fast["clips_per_second"] + again["clips_per_second"]) / 2
    return {
        "fast": {**fast, "clips_per_second": fresh},
        "pool": pooled,
        "paper": paper,
        "ratio": fresh / paper["clips_per_second"],
        "ratio_a_nucleus": fresh * fast["nuclei"] / paper["clips_per_second"] / paper["nuclei"],
        "ratio_pool": pooled["clips_per_second"] / paper["clips_per_second"],
    }


def against_pictures(clips_each: int) -> dict[str, Any]:
    """Compare clips without pictures with those that have them, in alternation, by CPU time."""
    found: dict[str, Any] = {}
    for name, size, count in (("clip", SIZE, clips_each), ("field", (700, 1100), 2)):
        usual = {"frames": FRAMES, "size": size}
        pair = [SyntheticHeLaVideos(**usual, video=video) for video in (True, False)]
        spent = [0.0, 0.0]
        for number in range(count + 1):
            for place, videos in enumerate(pair):
                begun = time.process_time()
                videos.clip(number)
                # The first loads the model.
                spent[place] += (time.process_time() - begun) * (number > 0)
        painted, plain = (1000 * seconds / count for seconds in spent)
        found[name] = {"painted_ms": painted, "plain_ms": plain, "ratio": painted / plain}
    return found


def arithmetic(seconds: float) -> dict[str, float]:
    """Compare the student, its layers' arithmetic, with a matrix product of the same dtype."""
    network = load("hela").get_denoiser(1)
    side, draws = 3 * network.settings.patch // 4, torch.Generator().manual_seed(0)
    noise = torch.randn((BATCH, 1, side, side), generator=draws)
    edge = compute_signed_distance_map(torch.full((BATCH, 60), 11.0), side)
    brightness, stage = torch.full((BATCH,), 0.1), torch.zeros(BATCH, dtype=torch.long)
    one, other = torch.rand((2, MATRIX, MATRIX), generator=draws)

    def forward() -> None:
        with torch.no_grad():
            network(noise, edge, brightness, stage)

    with set_threads(1):
        with skip_loops(), FlopCounterMode(display=False) as counter:
            forward()
        pairs, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end or len(pairs) < 5:
            pairs.append((_seconds(forward), _seconds(lambda: torch.mm(one, other))))
    flop = counter.get_total_flops()
    rates = [(flop / mine / 1e9, 2 * MATRIX**3 / theirs / 1e9) for mine, theirs in pairs]
    return {
        "pairs": len(pairs),
        "gflops": statistics.median(mine for mine, _ in rates),
        "matrix_gflops": statistics.median(theirs for _, theirs in rates),
        "share": statistics.median(mine / theirs for mine, theirs in rates),
        "milliseconds_a_picture": 1000 * statistics.median(mine for mine, _ in pairs) / BATCH,
    }


def parts(seconds: float) -> dict[str, Any]:
    """Profile a clip by part, at the density of both videos, fresh and pooled."""
    found = {}
    for video, nuclei in DENSITIES.items():
        for name, pool in (("fresh", None), ("pool", True)):
            videos = clips(nuclei=nuclei, pool=pool)
            number = warm_up(videos)
            throughput = measure_throughput(videos, number, seconds)
            costs = profile_clips(videos, number + throughput.clips, PROFILED)
            found[f"{name}, density of {video}"] = {
                "clips_per_second": throughput.clips_per_second,
                "nuclei": throughput.nuclei,
                "milliseconds": costs.milliseconds,
                "outside": 1 - costs.shares["network"],
            }
    return found


def against_reading(rounds: int = 12) -> dict[str, float]:
    """Compare a clip, fresh and pooled, with an uncached clip of equal shape read from TIFFs."""
    wanted = {"annotations": ("masks", "tracks")}
    fresh, pooled = clips(**wanted), clips(pool=True, **wanted)
    numbers = [warm_up(videos) for videos in (fresh, pooled)]
    times: dict[str, list[float]] = {"reading": [], "fresh": [], "pool": []}
    for n in range(rounds):
        real = CTCVideos(REAL, sequence="01", frames=FRAMES, size=SIZE, **wanted)
        _forget(real)
        times["reading"].append(_seconds(lambda real=real, n=n: real.clip(n)))
        times["fresh"].append(_seconds(lambda n=n: fresh.clip(numbers[0] + n)))
        times["pool"].append(_seconds(lambda n=n: pooled.clip(numbers[1] + n)))
    middle = {name: statistics.median(some) for name, some in times.items()}
    return {
        **{f"{name}_ms": 1000 * value for name, value in middle.items()},
        "fresh_ratio": middle["fresh"] / middle["reading"],
        "pool_ratio": middle["pool"] / middle["reading"],
    }


def training(seconds: float) -> dict[str, Any]:
    """Measure training steps per second of a U-Net, from memory and from a loader."""
    found: dict[str, Any] = {"batch_size": 1, "threads": {}}

    def time_steps(batches: Iterator[Any]) -> float:
        return time_loop(batches, make_trainer(), seconds)["steps_per_second"]

    for threads in (1, 2):
        rates: dict[str, float] = {}
        with set_threads(threads):
            kept = [default_collate([clips().clip(n)]) for n in range(8)]
            rates["memory"] = time_steps(again_and_again(kept))
            for name, pool in (("pool", True), ("fresh", None)):
                videos = clips(pool=pool, batch_size=1)
                start = warm_up(videos)
                videos.load_state_dict({"epoch": 0, "seed": videos.seed, "start": start})
                batches = iter(DataLoader(videos, batch_size=1, num_workers=1))
                rates[name] = time_steps(batches)
                del batches
            rates["memory again"] = time_steps(again_and_again(kept))
        memory = (rates["memory"] + rates["memory again"]) / 2
        found["threads"][str(threads)] = {
            **rates, "pool_share": rates["pool"] / memory, "fresh_share": rates["fresh"] / memory
        }  # fmt: skip
    found["parameters"] = sum(value.numel() for value in Segmenter().parameters())
    return found


def start() -> dict[str, float]:
    """Time the import beyond torch, and the first clip, in new processes."""
    runs = [_in_a_process(_START) for _ in range(4)][1:]
    names = ("torch", "import", "construction", "first_clip")
    return {name: statistics.median(run[n] for run in runs) for n, name in enumerate(names)} | {
        "runs": len(runs)
    }


def presets(seconds: float) -> dict[str, Any]:
    """Measure clips per second of each preset at both densities, without variation or with."""
    some: dict[str, dict[str, Any]] = {
        "fresh": {},
        "fresh, default variation": {"variation": None},
        "pool": {"pool": True},
        "pool, renew=0.1": {"pool": PoolSettings(renew=0.1)},
        "pool, renew=0": {"pool": PoolSettings(renew=0)},
        "steps=4": {"method": FastSettings(steps=4)},
        "steps=6": {"method": FastSettings(steps=6)},
        "procedural": {"method": ProceduralSettings()},
    }
    return {
        name: {
            video: pace_of(clips(nuclei=nuclei, **changes), seconds)
            for video, nuclei in DENSITIES.items()
        }
        for name, changes in some.items()
    }


def memory() -> dict[str, float]:
    """Measure the peak memory of processes, MB."""
    return {name: _in_a_process(code)[0] for name, code in _MEMORY.items()}


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _forget(real: CTCVideos) -> None:
    """Drop the files of a video from the page cache, as far as the system permits."""
    for names in (real.source.frame_names, real.source.mask_names, real.source.marker_names):
        for name in names.values():
            handle = os.open(real.source.folder / name, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def again_and_again(kept: list[Any]) -> Iterator[Any]:
    while True:
        yield from kept


def make_trainer(device: torch.device | str = "cpu") -> Callable[[Any], None]:
    """Return a function that trains the U-Net of the evaluation with a batch of clips."""
    torch.manual_seed(0)
    network = Segmenter().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters())

    def train(batch: Any) -> None:
        grey = batch["video"].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        nuclei = (batch["masks"].flatten(0, 1) > 0).float()
        loss = F.binary_cross_entropy_with_logits(network(grey)[:, 0], nuclei)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return train


def time_loop(
    batches: Iterator[Any], train: Callable[[Any], None] | None, seconds: float
) -> dict[str, float]:
    """Take steps for a while, each after the one before is done, and time the wait for batches."""
    is_cuda = torch.cuda.is_initialized()

    def finish() -> None:
        # Of the loop alone: what is rendered ahead goes on.
        if is_cuda:
            torch.cuda.current_stream().synchronize()

    steps, waited, begun, counted = -2, 0.0, time.perf_counter(), 0.0
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    while steps < 4 or time.perf_counter() - counted < seconds:
        if steps == 0:  # after the first two, for which workers start and kernels are chosen
            waited, counted = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        finish()
        waited += time.perf_counter() - asked
        if train is not None:
            train(batch)
            finish()
        del batch
        steps += 1
    passed = time.perf_counter() - counted
    return {
        "steps": steps,
        "first_seconds": counted - begun,
        "steps_per_second": steps / passed,
        "wait_ms": 1000 * waited / steps,
        "wait_share": waited / passed,
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6 if is_cuda else 0.0,
    }


_START = """
import time
times = [time.perf_counter()]
import torch
times.append(time.perf_counter())
import bvdm_data
times.append(time.perf_counter())
videos = bvdm_data.SyntheticHeLaVideos(frames=8, size=(256, 256))
times.append(time.perf_counter())
videos.clip(0)
times.append(time.perf_counter())
print(*(b - a for a, b in zip(times, times[1:])))
"""

_CLIPS = """
from bvdm_data.system import measure_peak_megabytes
from benchmarks.speed_measures import clips
videos = clips({arguments})
for number in range({count}):
    videos.clip(number)
print(measure_peak_megabytes())
"""

_MEMORY = {
    "bvdm_data imported": _CLIPS.format(arguments="", count=0),
    "200 fresh clips": _CLIPS.format(arguments="", count=200),
    "200 clips with a pool": _CLIPS.format(arguments="pool=True", count=200),
    "1000 clips with a pool": _CLIPS.format(arguments="pool=True", count=1000),
    "a clip of 92 frames of 700 x 1100": _CLIPS.format(
        arguments="frames=92, size=(700, 1100), nuclei=None", count=1
    ),
}


def _in_a_process(code: str) -> list[float]:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return [float(value) for value in run.stdout.split()]
