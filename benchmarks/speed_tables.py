"""Tables of docs/performance.md from docs/performance.json; ``python -m benchmarks.speed``."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.tables import between_marks, table

Results = Mapping[str, Any]


def share(value: float) -> str:
    return f"{value:.0%}"


def rate(value: float) -> str:
    return f"{value:.3g}"


def bars(results: Results) -> str:
    """Aims and measured figures."""
    rows = list(_bars(results))
    return table(["figure", "aim", "measured", "command"], rows)


def _bars(results: Results) -> Iterator[list[str]]:
    if (found := results.get("paper")) is not None:
        yield [
            "fast / paper, clips a second, one thread", "at least 300 times",
            f"{found['ratio']:.0f} times, a nucleus {found['ratio_a_nucleus']:.0f}; with a pool "
            f"{found['ratio_pool']:.0f}",
            "paper",
        ]  # fmt: skip
    if (found := results.get("arithmetic")) is not None:
        yield [
            "network / matrix product of its type", "at least 50 %",
            f"{share(found['share'])} of {found['matrix_gflops']:.0f} GFLOP/s",
            "arithmetic",
        ]  # fmt: skip
    if (found := results.get("parts")) is not None:
        yield [
            "time outside the network, fresh", "at most 30 %",
            ", ".join(share(one["outside"]) for n, one in found.items() if n.startswith("fresh")),
            "parts",
        ]  # fmt: skip
    if (found := results.get("reading")) is not None:
        yield [
            "a clip / reading one from TIFFs, not cached", "at most 10 times; with a pool 1",
            f"{found['fresh_ratio']:.2f} times; with a pool {found['pool_ratio']:.2f}", "reading",
        ]  # fmt: skip
    if (found := results.get("training")) is not None:
        yield [
            "training from the loader / from memory", "with a pool at least 90 %",
            "; ".join(
                f"{share(one['pool_share'])}, fresh {share(one['fresh_share'])} "
                f"({threads} thread{'s' * (threads != '1')})"
                for threads, one in found["threads"].items()
            ),
            "training",
        ]  # fmt: skip
    if (found := results.get("start")) is not None:
        yield ["import beyond torch", "under 0.3 s", f"{found['import']:.2f} s", "start"]
        first = found["construction"] + found["first_clip"]
        yield ["construction and first clip", "under 2 s", f"{first:.2f} s", "start"]


def parts(results: Results) -> str:
    found = results["parts"]
    names = list(dict.fromkeys(name for one in found.values() for name in one["milliseconds"]))
    rows = [
        [name, *(f"{one['milliseconds'].get(name, 0):.1f}" for one in found.values())]
        for name in names
    ]
    sums = [sum(one["milliseconds"].values()) for one in found.values()]
    rows.append(["all, profiled", *(f"{value:.1f}" for value in sums)])
    rows.append(["outside the network", *(share(one["outside"]) for one in found.values())])
    rows.append(["clips a second", *(rate(one["clips_per_second"]) for one in found.values())])
    return table(["ms a clip", *found], rows)


def presets(results: Results) -> str:
    found = results["presets"]
    videos = list(next(iter(found.values())))
    rates = {name: [rate(one[video]["clips_per_second"]) for video in videos]
             for name, one in found.items()}  # fmt: skip
    if (paper := results.get("paper")) is not None:
        rates["paper"] = [rate(paper["paper"]["clips_per_second"]), *["-"] * (len(videos) - 1)]
    rows = [[name, *one] for name, one in rates.items()]
    heads = [f"density of {video}" for video in videos]
    return table(["clips a second", *heads], rows)


def planning(results: Results) -> str:
    rows = [
        [name, f"{one['milliseconds']:.1f}", f"{one['kilobytes']:.0f}"]
        for name, one in results["planning"].items()
    ]
    return table(["a clip", "ms of a worker", "kB sent"], rows)


def training(results: Results) -> str:
    found = results["training"]["threads"]
    names = ("memory", "memory again", "pool", "fresh")
    rows = [[name, *(rate(one[name]) for one in found.values())] for name in names]
    heads = [f"{threads} thread{'s' * (threads != '1')}" for threads in found]
    return table(["steps a second", *heads], rows)


def memory(results: Results) -> str:
    rows = [[name, f"{value:.0f}"] for name, value in results["memory"].items()]
    return table(["process", "most memory, MB"], rows)


def curves(results: Results) -> str:
    units = {
        "size": "a million pixels",
        "frames": "a frame",
        "nuclei": "a nucleus and frame",
    }
    rows = [
        [axis, f"{line['slope']:.2f} ms {units[axis]}", f"{line['start']:.1f} ms",
         f"{line['straight']:.3f}"]
        for axis, line in results["curves"]["lines"].items()
    ]  # fmt: skip
    return table(["fresh clips", "slope", "at 0", "variance explained"], rows)


def about(results: Results) -> str:
    here, versions = results["about"]["machine"], results["about"]["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    load = results["about"]["load"]
    return (
        f"{here['processor']} ({here['vectors']}), {here['cores']} cores, {named}; load {load[0]} "
        f"before and {load[1]} after; made {results['about']['made']}."
    )


TABLES = {
    "about": (about, "about"),
    "bars": (bars, "about"),
    "parts": (parts, "parts"),
    "presets": (presets, "presets"),
    "planning": (planning, "planning"),
    "training": (training, "training"),
    "memory": (memory, "memory"),
    "curves": (curves, "curves"),
}
"""The function that makes each table, and the measurement that it needs."""


def filled(page: str, results: Results) -> str:
    """Return the page with the tables of these results, each between its two marks."""
    texts = {
        name: made(results) if needed in results else "Not measured yet."
        for name, (made, needed) in TABLES.items()
    }
    return between_marks(page, texts)
