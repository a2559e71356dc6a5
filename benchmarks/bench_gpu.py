"""Run all tests marked gpu and one benchmark on a CUDA device, from a plain checkout.

``make gpu`` runs ``python -m benchmarks.bench_gpu`` with the torch (2.6 or later) of this machine.
Small packages that are missing are installed beside it into ``build/gpu``: out of ``wheels/`` where
there is such a folder, else by pip. The benchmark runs even if tests fail. It takes less than ten
minutes in all and writes a JSON file and a page. The exit code is 0 if all went well, 1 if a test
or the benchmark failed, and 2 if the machine has no such torch or device.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
WHEELS, BESIDE = ROOT / "wheels", ROOT / "build" / "gpu"

PACKAGES = {
    name: name for name in (
        "numpy", "scipy", "tifffile", "imagecodecs", "safetensors", "platformdirs", "filelock",
        "tqdm", "click", "jaxtyping", "torchvision", "pytest", "iniconfig", "pluggy", "packaging",
        "pygments", "setuptools", "threadpoolctl", "typing_extensions", "wadler_lindig",
    )
} | {"PIL": "pillow"}  # fmt: skip
"""Modules that tests and benchmark import beside torch, and what pip calls them."""

TEST_SECONDS, BENCHMARK_SECONDS = 160, 360
"""The longest that tests and benchmark may take."""

BATCH = 8
"""Clips a batch."""


def find_obstacle() -> str | None:
    """Return what this machine lacks, or None."""
    if importlib.util.find_spec("torch") is None:
        return "torch is missing; install torch >= 2.6 that is built for CUDA"
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        return f"torch must be 2.6 or later, got {torch.__version__}; install a later one"
    if not torch.cuda.is_available():
        return (
            f"there is no CUDA device for torch {torch.__version__}, built for CUDA "
            f"{torch.version.cuda}; run this on a machine that has one, with a torch for it"
        )
    return None


def list_missing() -> list[str]:
    """Return the modules that are neither on this machine nor beside the checkout."""
    importlib.invalidate_caches()
    return [module for module in PACKAGES if importlib.util.find_spec(module) is None]


def install_packages(missing: Sequence[str]) -> None:
    """Install packages beside the checkout, without what they depend on."""
    import torch

    # Each torch has a torchvision of its own.
    versions = {"torchvision": f"==0.{int(torch.__version__.split('.')[1]) + 15}.*"}
    wanted = [PACKAGES[module] + versions.get(module, "") for module in missing]
    source = ["--no-index", "--find-links", str(WHEELS)] if WHEELS.is_dir() else ["--retries=1"]
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(BESIDE)]
    run_python([*pip, *source, *wanted], 60)


def run_python(arguments: Sequence[str], seconds: float) -> int:
    """Run python in the checkout for some time at most; return its exit code."""
    paths = os.pathsep.join([str(ROOT), str(BESIDE)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds:.0f} s: {' '.join(arguments)}", flush=True)
        return 124


def run_tests() -> dict[str, Any]:
    """Run the tests marked gpu; return how many of them had which outcome."""
    files = [path for path in ROOT.glob("tests/test_*.py") if "mark.gpu" in path.read_text()]
    report, begun = BESIDE / "tests.xml", time.perf_counter()
    report.unlink(missing_ok=True)
    # Warnings are errors with the torch that we know; not with any other.
    options = ["-m", "gpu", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
    options += ["--continue-on-collection-errors"]
    code = run_python(["-m", "pytest", *options, *map(str, sorted(files))], TEST_SECONDS)
    found: dict[str, Any] = {"exit": code, "seconds": time.perf_counter() - begun}
    if report.exists():
        suite = next(ElementTree.parse(report).iter("testsuite"))
        found |= {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    return found


def measure(
    device: str, seconds: float, workers: int | None = None, **changes: Any
) -> dict[str, Any]:
    """Measure training on a device with each way to load clips; ``changes`` are of the clips."""
    import torch
    from torch.utils.data import DataLoader

    from benchmarks.speed_measures import again_and_again, clips, make_trainer, time_loop
    from bvdm_data import DeviceLoader
    from bvdm_data.system import count_usable_cores, get_machine_info, list_versions

    workers = max(1, count_usable_cores() - 1) if workers is None else workers
    is_cuda, place = device == "cuda", torch.device(device)
    videos = clips(**{"batch_size": BATCH, "annotations": ("masks", "tracks"), **changes})
    usual = {"batch_size": BATCH, "num_workers": workers}

    def load_whole() -> Iterator[Any]:
        for batch in DataLoader(videos, pin_memory=is_cuda, **usual):
            yield {key: value.to(place, non_blocking=True) for key, value in batch.items()}

    train = make_trainer(place)
    with DeviceLoader(videos, device=device, **usual) as loader:
        kept = list(islice(loader, 4))
    loops: dict[str, Any] = {"memory": time_loop(again_and_again(kept), train, seconds)}
    for name, step in (("nothing", None), ("training", train)):
        with DeviceLoader(videos, device=device, **usual) as loader:
            found = time_loop(iter(loader), step, seconds)
        loops[f"DeviceLoader, {name}"] = found
        loops[f"DataLoader, {name}"] = time_loop(load_whole(), step, seconds)
    loops["memory again"] = time_loop(again_and_again(kept), train, seconds)
    return {
        "about": {
            "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "device": torch.cuda.get_device_name() if is_cuda else "none: the CPU in its place",
            "machine": get_machine_info(),
            "versions": list_versions() | {"CUDA": str(torch.version.cuda)},
        },
        "clips": {
            "batch": BATCH, "workers": workers, "frames": videos.frames, "size": list(videos.size),
            "nuclei": videos.nuclei,
        },
        "loops": loops,
        "rendering": measure_rendering(DeviceLoader(videos, device=device, batch_size=BATCH)),
        "annotations": compare_annotations(device, **changes),
    }  # fmt: skip


def measure_rendering(loader: Any, batches: int = 4) -> dict[str, Any]:
    """Measure planning on one core; and rendering alone, by time and by kernels."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from bvdm_data.system import SPAN_PREFIX

    scenes, renderer = loader._scenes, loader._renderer
    scenes.draw(0)  # the model is loaded
    begun = time.perf_counter()
    made = [
        scenes.collate([scenes.draw(BATCH * batch + n) for n in range(BATCH)])
        for batch in range(batches + 1)
    ]
    found = {"plan_ms": 1000 * (time.perf_counter() - begun) / len(made) / BATCH}
    if renderer is None:
        return found
    made = [batch.pin_memory().scenes for batch in made]

    def render() -> float:
        begun = time.perf_counter()
        for batch in made[1:]:
            renderer.render(batch)
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - begun) / batches

    renderer.render(made[0])  # kernels are chosen
    found |= {"render_ms": min(render() for _ in range(3))}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        render()
    events = [
        event for event in record.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(SPAN_PREFIX)
    ]  # fmt: skip
    kernels = [event for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    busy = sum(event.time_range.elapsed_us() for event in events) / 1000
    return found | {
        "kernels": len(kernels) / batches, "copies": (len(events) - len(kernels)) / batches,
        "busy_ms": busy / batches,
    }  # fmt: skip


def compare_annotations(device: str, batches: int = 2, **changes: Any) -> dict[str, Any]:
    """Compare clips of a device with those of the CPU: all annotations, bit by bit."""
    import torch
    from torch.utils.data import DataLoader

    from benchmarks.speed_measures import clips
    from bvdm_data import DeviceLoader

    videos = clips(**{**changes, "batch_size": BATCH, "length": batches * BATCH})
    different, apart = set(), []
    pairs = (DeviceLoader(videos, batch_size=BATCH, device=device), DataLoader(videos, BATCH))
    for one, other in zip(*pairs, strict=True):
        one = {key: value.cpu() for key, value in one.items()}
        apart.append(float((one.pop("video") - other.pop("video")).abs().mean()))
        for key in one.keys() | other.keys():
            if not torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9)):
                different.add(key)
    return {
        "compared": sorted(one),
        "different": sorted(different),
        "video_apart": sum(apart) / batches,
    }


def format_page(results: Mapping[str, Any]) -> str:
    """Return the page of a benchmark."""
    tests = results["tests"]
    lines = ["---", "orphan: true", "---", "# On a GPU", "", "Printed by `make gpu`.", ""]
    lines += [f"Tests marked gpu: {json.dumps(tests)}.", ""]
    if "loops" not in results:
        return "\n".join([*lines, "The benchmark failed.", ""])
    about, shown, drawn = results["about"], results["clips"], results["rendering"]
    machine = about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines += [
        f"{about['device']}; {machine['processor']}, {machine['cores']} cores, loops over pixels: "
        f"{machine['loops']}; {versions}; made {about['made']}.", "",
        f"Clips of {shown['frames']} frames of {' x '.join(map(str, shown['size']))} with "
        f"{shown['nuclei']} nuclei at first, {shown['batch']} a batch, {shown['workers']} workers. "
        "*Training* is a step of the U-Net of the evaluation.", "",
        "| loop | clips a second | wait a step, ms | share of the time | most GPU memory, MB |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [
        f"| {name} | {shown['batch'] * loop['steps_per_second']:.3g} | {loop['wait_ms']:.3g} | "
        f"{loop['wait_share']:.0%} | {loop['peak_mb']:.0f} |"
        for name, loop in results["loops"].items()
    ]
    lines += ["", f"Planning: {drawn['plan_ms']:.3g} ms a clip on one core."]
    if "kernels" in drawn:
        lines.append(
            f"Rendering alone: {drawn['render_ms']:.3g} ms a batch; {drawn['kernels']:.0f} kernels "
            f"and {drawn['copies']:.0f} copies keep the GPU busy for {drawn['busy_ms']:.3g} ms."
        )
    different = results["annotations"]["different"]
    same = f"differ from the CPU's: {', '.join(different)}" if different else "are the CPU's"
    return "\n".join([*lines, "", f"Annotations {same}, bit by bit.", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "gpu.json", help="to write")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "gpu.md", help="to write")
    parser.add_argument("--only-benchmark", action="store_true", help="of what is there already")
    given = parser.parse_args(arguments)
    if given.only_benchmark:
        results = measure("cuda", BENCHMARK_SECONDS / 10)
        given.json.write_text(json.dumps(results, indent=1) + "\n")
        return 0
    sys.path.append(str(BESIDE))
    if (obstacle := find_obstacle()) is not None:
        print(obstacle, file=sys.stderr)
        return 2
    BESIDE.mkdir(parents=True, exist_ok=True)
    if missing := list_missing():
        install_packages(missing)
    if missing := list_missing():
        print(f"missing: {', '.join(missing)}; install them, or put wheels into {WHEELS}")
    if run_python(["hatch_build.py"], 60):
        print("The loops over pixels are not compiled; torch does their work.", flush=True)
    results: dict[str, Any] = {"missing": missing, "tests": run_tests()}
    given.json.unlink(missing_ok=True)
    module = ["-m", "benchmarks.bench_gpu", "--only-benchmark", "--json", str(given.json)]
    failed = bool(run_python(module, BENCHMARK_SECONDS)) or results["tests"]["exit"] != 0
    if given.json.exists():
        results = json.loads(given.json.read_text()) | results
        failed |= bool(results["annotations"]["different"])
    given.json.write_text(json.dumps(results, indent=1) + "\n")
    given.page.write_text(format_page(results))
    print(f"{given.page.read_text()}\nwrote {given.json} and {given.page}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
