"""Tables of docs/scaling.md: measured figures, and estimates from them and from assumptions."""

from collections.abc import Mapping
from typing import Any

from benchmarks.tables import between_marks, table

Results = Mapping[str, Any]

CORE_HOUR = 0.0408
"""US$ per core-hour; an m7g.large of AWS has two cores."""

GPU_HOUR = 3.90
"""US$ per hour of one H100."""

GB_MONTH = 0.023
"""US$ per GB and month of object storage."""

GPU_CORES = 20
"""Cores that a GPU is assumed to replace when it makes clips. Not measured on any GPU."""

GPUS = 1000
FRAMES = 8

HOURS = 10_000
MINUTES_A_FRAME = 30
FRAMES_A_SECOND = 25

AMOUNTS = {
    "10 000 h at the microscope": HOURS * 60 / MINUTES_A_FRAME / FRAMES,
    "a million clips": 1e6,
    "10 000 h on the screen": HOURS * 3600 * FRAMES_A_SECOND / FRAMES,
}
"""Number of clips of 8 frames in each amount."""

DEMANDS = (1, 10, 100)
"""Clips per second that training on one GPU needs."""

BEST = "zarr, compressed"
TAR = "webdataset, compressed"


def about(results: Results) -> str:
    here, load = results["about"]["machine"], results["about"]["load"]
    named = ", ".join(f"{name} {version}" for name, version in results["about"]["versions"].items())
    return (
        f"{here['processor']}, one thread of one process, {named}; load {load[0]} before and "
        f"{load[1]} after; made {results['about']['made']}."
    )


def prices(_: Results) -> str:
    core = "[factualminds.com](https://www.factualminds.com/blog/amazon-ec2-on-demand-pricing-instance-families-2026/)"
    gpu = "[costnimbus.com](https://costnimbus.com/article/gpu-cost-management-ml-teams)"
    rows = [
        [
            "a core-hour",
            f"{CORE_HOUR}",
            f"half of an m7g.large of AWS, on demand, June 2026; {core}",
        ],
        ["a GPU-hour", f"{GPU_HOUR:.2f}", f"an H100 of AWS P5, on demand, March 2026; {gpu}"],
        ["a GB and month", f"{GB_MONTH}", "assumed for object storage such as S3 Standard"],
        ["cores that a GPU replaces", str(GPU_CORES), "**assumed**, never run"],
        ["cores that cost as much as a GPU", f"{GPU_HOUR / CORE_HOUR:.0f}", "the quotient"],
    ]
    return table(["price or assumption", "US$", "source"], rows)


def making(results: Results) -> str:
    rows = [
        [
            kind,
            number(one["made"]),
            number(one["made_again"]),
            number(one["pooled"]) if "pooled" in one else "-",
        ]
        for kind, one in results["kinds"].items()
    ]
    head = ["clips a second", "fresh", "fresh, at the end of the run", "pool"]
    return table(head, rows)


def storing(results: Results) -> str:
    rows = []
    for kind, one in results["kinds"].items():
        rows.append([kind, "in memory", size(one["bytes"]), "-", "-", "-", "-"])
        for name, stored in one["stored"].items():
            share = one["made"] / stored["written"]
            package = stored.get("package")
            rows.append(
                [
                    kind,
                    name,
                    size(stored["bytes"]),
                    number(stored["written"]),
                    f"{share:.0%}",
                    number(stored["read"]),
                    "-" if package is None else number(package),
                ]
            )
    head = "clip, format, bytes a clip, written a second, of the time to make one, read a second"
    return table([*head.split(", "), "by webdataset"], rows)


def amounts(results: Results) -> str:
    rows = []
    for name, clips in AMOUNTS.items():
        for kind, one in results["kinds"].items():
            stored = one["stored"][BEST]
            hours = clips * (1 / one["made"] + 1 / stored["written"]) / 3600
            held = clips * stored["bytes"]
            rows.append(
                [
                    name,
                    number(clips),
                    kind,
                    number(hours),
                    dollars(hours * CORE_HOUR),
                    size(clips * one["bytes"]),
                    size(held),
                    dollars(held / 1e9 * GB_MONTH),
                ]
            )
    head = "amount, clips of 8 frames, clip, core-hours, US$, in memory, on disk, US$ a month"
    return table(head.split(", "), rows)


def machines(results: Results) -> str:
    rows = []
    for name, clips in AMOUNTS.items():
        for kind, one in results["kinds"].items():
            seconds = clips * (1 / one["made"] + 1 / one["stored"][BEST]["written"])
            gpu = seconds / GPU_CORES / 3600
            rows.append(
                [
                    name,
                    kind,
                    *(duration(seconds / cores) for cores in (1, 64, 10_000)),
                    number(gpu),
                    duration(gpu * 3600 / GPUS),
                    dollars(gpu * GPU_HOUR),
                ]
            )
    head = "amount, clip, 1 core, 64 cores, 10 000 cores, GPU-hours (assumed)"
    more = ["1000 GPUs (assumed)", "US$ of GPUs (assumed)"]
    return table([*head.split(", "), *more], rows)


def feeding(results: Results) -> str:
    one = results["kinds"]["256 x 256"]
    rows = []
    for demand in DEMANDS:
        streamed, pooled = demand / one["made"], demand / one["pooled"]
        read = demand / one["stored"][BEST]["read"]
        flow = demand * one["stored"][BEST]["bytes"]
        rows.append(
            [
                str(demand),
                *(number(cores) for cores in (streamed, pooled, read)),
                f"{size(flow)}/s",
                f"{size(flow * GPUS)}/s",
                dollars(streamed * GPUS * CORE_HOUR),
                dollars(pooled * GPUS * CORE_HOUR),
                dollars(read * GPUS * CORE_HOUR),
            ]
        )
    head = (
        "clips a second and GPU, cores: fresh, cores: pool, cores: reading, read a GPU, "
        "read by 1000 GPUs, US$ an hour of 1000 GPUs: fresh, pool, reading"
    )
    return table(head.split(", "), rows)


def often(results: Results) -> str:
    """Passes per month from which storing a clip is cheaper than making it again."""
    rows = []
    for kind, one in results["kinds"].items():
        make, keep = 1 / one["made"], one["stored"][BEST]
        month = keep["bytes"] / 1e9 * GB_MONTH
        again = make * CORE_HOUR / 3600
        saved = again - CORE_HOUR / 3600 / keep["read"]
        write = CORE_HOUR / 3600 / keep["written"]
        shown = (month + again + write) / saved if saved > 0 else None
        cells = [f"{value * 1e6:.2f}" for value in (again, write, again - saved, month)]
        rows.append([kind, *cells, "never" if shown is None else number(shown)])
    head = (
        "clip, made, written, read, kept a month, passes in a month from which storing is cheaper"
    )
    return table([*head.split(", ")], rows)


TABLES = {
    "about": about,
    "prices": prices,
    "making": making,
    "storing": storing,
    "amounts": amounts,
    "machines": machines,
    "feeding": feeding,
    "often": often,
}


def filled(page: str, results: Results) -> str:
    """Return the page with the tables of these results, each between its two marks."""
    return between_marks(page, {name: made(results) for name, made in TABLES.items()})


def number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g} million"
    return f"{float(f'{value:.3g}'):,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"


def dollars(value: float) -> str:
    return number(value) if value >= 1 else f"{value:.2g}"


def size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def duration(seconds: float) -> str:
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{number(seconds / length)} {unit}"
    return f"{number(seconds)} s"
