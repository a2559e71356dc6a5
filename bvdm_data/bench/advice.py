"""Advice: what to change in a loop that waits for its clips, with what it was measured to do."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bvdm_data.bench.loop import Loop, Wait
from bvdm_data.bench.pace import Pace, fill, measure_pace
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth.fast import FastSettings
from bvdm_data.synth.pool import PoolSettings

KEEPS_UP = 0.05
"""Share of its time that a loop may wait before something is worth changing (our choice)."""

CHEAP = ("masks", "tracks")
"""Annotations of data sets where nothing else is said."""

SELDOM = 0.1
"""Pairs renewed with every clip by a pool that is to cost next to nothing; what it does to a
network that is trained from it: docs/evaluation.md."""


@dataclass(frozen=True)
class Change:
    """One change of the data set that was tried.

    Attributes:
        words: What to write.
        clips_per_second: Of one process, with the change.
        gain: That over the pace without the change.
        workers: Workers that the loop would then need.
    """

    words: str
    clips_per_second: float
    gain: float
    workers: int


def workers_for(loop: Loop, clips_per_second: float) -> int:
    """Return how many workers of a pace a loop needs.

    Args:
        loop: The loop.
        clips_per_second: What one process makes.
    """
    return math.ceil(loop.wanted / clips_per_second)


def alike(videos: SyntheticHeLaVideos, **changes: Any) -> SyntheticHeLaVideos:
    """Return the same data set with other arguments, as an endless stream.

    Args:
        videos: The data set.
        **changes: Arguments of :class:`SyntheticHeLaVideos`.
    """
    kept = {
        name: getattr(videos, name)
        for name in (
            "frames", "size", "seed", "model", "method", "nuclei", "variation", "pool",
            "annotations", "max_cells", "device", "transform", "batch_size", "shard",
        )
    }  # fmt: skip
    return SyntheticHeLaVideos(**{**kept, **changes})


def try_changes(
    videos: SyntheticHeLaVideos,
    pace: Pace,
    loop: Loop,
    seconds: float,
    say: Callable[[str], object],
) -> list[Change]:
    """Measure what makes clips cheaper; those that do not are left out.

    Args:
        videos: The data set.
        pace: What one process makes of it.
        loop: The loop.
        seconds: How long each change is tried.
        say: Told what is tried.

    Returns:
        The changes, that which helps most first.
    """
    found = []
    for words, changes in _changes(videos):
        say(f"trying {words}")
        changed = alike(videos, **changes)
        try:
            made = measure_pace(changed, fill(changed), seconds).clips_per_second
        except ValueError:
            # Such a clip cannot be made; the others may help.
            continue
        if made > pace.clips_per_second:
            gain = made / pace.clips_per_second
            found.append(Change(words, made, gain, workers_for(loop, made)))
    return sorted(found, key=lambda change: -change.gain)


def _changes(videos: SyntheticHeLaVideos) -> Iterator[tuple[str, Mapping[str, Any]]]:
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


def advise(pace: Pace, loop: Loop, wait: Wait, changes: list[Change], cores: int) -> list[str]:
    """Say whether synthesis is what the loop waits for, and what to do.

    Args:
        pace: What one process makes.
        loop: The loop.
        wait: How long it waits.
        changes: From :func:`try_changes`.
        cores: That may be used.

    Returns:
        Sentences, the verdict first.
    """
    one, needed = pace.clips_per_second, workers_for(loop, pace.clips_per_second)
    asks = f"the loop asks for {loop.wanted:.3g} clips/s and one process makes {one:.3g}"
    if wait.share <= KEEPS_UP:
        return [f"The loader keeps up: the loop waits {wait.share:.1%} of its time; {asks}."]
    told = [f"Synthesis is the bottleneck: the loop waits {wait.share:.0%} of its time; {asks}."]
    told.append(_about_workers(loop.workers, needed, cores, one))
    told += [
        f"{change.words}: {change.clips_per_second:.3g} clips/s, {change.gain:.1f} times as many; "
        f"{change.workers} worker{'s' * (change.workers > 1)} would do."
        for change in changes
    ]
    minutes = 1000 / one / min(cores, needed) / 60
    told.append(
        f'"bvdm-data export" ahead of the training, read by CTCVideos: 1,000 clips take about '
        f"{minutes:.2g} minutes on {_cores(min(cores, needed))}, once."
    )
    return told


def _about_workers(workers: int, needed: int, cores: int, one: float) -> str:
    if workers < needed <= cores:
        return f"num_workers={needed}: as many processes make what the loop asks for."
    if workers >= needed:
        return (
            f"{workers} workers should be enough: something else uses the cores, or the workers "
            "still fill their pools."
        )
    if workers < cores:
        return (
            f"num_workers={cores}, one for each core: about {cores * one:.3g} clips/s. The loop "
            f"would need {needed}."
        )
    return f"More workers do not help: {_cores(cores)} can make about {cores * one:.3g} clips/s."


def _cores(count: int) -> str:
    return f"{count} core{'s' * (count != 1)}"
