"""Words: what a bench found, as text for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

OUTSIDE = "network"
"""The part whose share is also told the other way round."""


def words(found: Mapping[str, Any]) -> str:
    """Return what :func:`bvdm_data.bench.bench.bench` found, in lines.

    Args:
        found: Its JSON values.
    """
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield from _head(found)
    yield ""
    yield from _pace(found)
    yield ""
    yield from _parts(found["parts"])
    yield ""
    yield from _loop(found["loop"])
    yield ""
    verdict, *advice = found["advice"]
    yield verdict
    if advice:
        yield "What would help:"
        yield from (f"  - {line}" for line in advice)


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    asked, here = found["clips"], found["machine"]
    height, width = asked["size"]
    pool = asked["pool"]
    shared = f", a pool of {pool['pairs']} pairs, {pool['renew']:g} renewed a clip" if pool else ""
    keys = ", ".join(("video", *asked["annotations"]))
    yield (
        f"{asked['frames']} frames of {height} x {width}, {asked['method']['kind']}, variation "
        f"{asked['variation']:g}{shared}: {keys}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    load = "" if here["load"] is None else f", load {here['load']}"
    yield f"{here['processor']}, cores: {here['cores']}, 1 thread a process{load}; {versions}"


def _pace(found: Mapping[str, Any]) -> Iterator[str]:
    pace, network, memory = found["pace"], found["network"], found["memory"]
    yield (
        f"one process  {pace['clips_per_second']:.3g} clips/s, {pace['frames_per_second']:.3g} "
        f"frames/s; {pace['nuclei']:.1f} nuclei a clip ({pace['clips']} clips)"
    )
    if network is not None:
        yield (
            f"network      {network['calls_per_second']:.3g} calls/s, "
            f"{network['calls_per_clip']:.3g} a clip; {network['gflop_per_clip']:.3g} GFLOP a clip "
            f"of new nuclei, at {network['gflops']:.3g} GFLOP/s ({network['share']:.0%} of the "
            f"{network['matrix_gflops']:.3g} of a matrix product)"
        )
    held = [
        f"{memory[name]:.0f} MB {who} at most"
        for name, who in (("process_mb", "this process"), ("worker_mb", "a worker"))
        if memory.get(name) is not None
    ]
    held.append(f"a clip has {memory['clip_mb']:.1f} MB")
    yield f"memory       {', '.join(held)}"


def _parts(parts: Mapping[str, Any]) -> Iterator[str]:
    yield f"part          ms a clip  share   (profiled, {parts['clips']} clips)"
    for name, milliseconds in parts["milliseconds"].items():
        yield f"{name:<13} {milliseconds:>9.2f}  {parts['shares'][name]:>5.1%}"
    if OUTSIDE in parts["shares"]:
        yield f"outside the network       {1 - parts['shares'][OUTSIDE]:.1%}"


def _loop(loop: Mapping[str, Any]) -> Iterator[str]:
    workers = loop["workers"]
    yield (
        f"loop         {loop['batch_size']} clips a step of {loop['step_seconds']:g} s, "
        f"{workers} worker{'s' * (workers != 1)}: waits {loop['wait_seconds']:.3f} s a step, "
        f"{loop['share']:.1%} of its time ({loop['steps']} steps)"
    )
    yield (
        f"             gets {loop['clips_per_second']:.3g} of the {loop['wanted']:.3g} clips/s it "
        f"asks for; first batch after {loop['first_seconds']:.1f} s"
    )
