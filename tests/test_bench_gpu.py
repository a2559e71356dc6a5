"""The benchmark of a GPU, tried on the CPU."""

import json

import pytest
import torch

from benchmarks import bench_gpu
from bvdm_data.clip import ANNOTATIONS


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "gpu.json", tmp_path / "gpu.md"


@pytest.fixture
def run(monkeypatch, paths, tmp_path):
    """Run all but the processes, which end as is said here."""

    def run(tests, benchmark, results):
        def run_python(arguments, seconds):
            if "--only-benchmark" not in arguments:
                return 0
            if results is not None:
                paths[0].write_text(json.dumps(results))
            return benchmark

        monkeypatch.setattr(bench_gpu, "BESIDE", tmp_path / "beside")
        monkeypatch.setattr(bench_gpu, "find_obstacle", lambda: None)
        monkeypatch.setattr(bench_gpu, "run_tests", lambda: {"exit": tests, "failures": tests})
        monkeypatch.setattr(bench_gpu, "run_python", run_python)
        code = bench_gpu.main(["--json", str(paths[0]), "--page", str(paths[1])])
        return code, json.loads(paths[0].read_text()), paths[1].read_text()

    return run


def test_gpu_benchmark_goes_on(tiny_model, monkeypatch, run):
    monkeypatch.setattr(bench_gpu, "BATCH", 2)
    small = {"model": tiny_model, "frames": 2, "size": (64, 64), "nuclei": 2}
    found = bench_gpu.measure("cpu", 0, 0, **small)
    names = ["nothing", "training"]
    loaders = [f"{kind}, {n}" for n in names for kind in ("DeviceLoader", "DataLoader")]
    assert list(found["loops"]) == ["memory", *loaders, "memory again"]
    for name, loop in found["loops"].items():
        assert loop["steps"] == 4
        assert (loop["wait_share"] > 0.9) == ("nothing" in name)
        assert loop["wait_ms"] * loop["steps_per_second"] == pytest.approx(
            1000 * loop["wait_share"]
        )
    assert found["annotations"]["different"] == []
    assert set(found["annotations"]["compared"]) == {*ANNOTATIONS, "index", "source"}
    assert found["annotations"]["video_apart"] == 0
    assert found["rendering"]["plan_ms"] > 0

    code, results, page = run(0, 0, found)
    assert code == 0
    assert results == found | {"missing": [], "tests": {"exit": 0, "failures": 0}}
    assert page == bench_gpu.format_page(results)
    assert page.count("Loader, ") == 4
    assert "Annotations are the CPU's, bit by bit." in page
    code, results, page = run(1, 0, found)
    assert code == 1
    assert results["tests"]["failures"] == 1
    assert page.count("Loader, ") == 4
    different = found | {"annotations": {"different": ["flow"]}}
    code, _, page = run(0, 0, different)
    assert code == 1
    assert "Annotations differ from the CPU's: flow, bit by bit." in page


def test_failed_gpu_benchmark_keeps_tests(run):
    code, results, page = run(0, 1, None)
    assert code == 1
    assert results["tests"] == {"exit": 0, "failures": 0}
    assert "The benchmark failed." in page


def test_gpu_run_says_what_lacks(monkeypatch, capsys, paths):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, words in (
        (torch.__version__, "there is no CUDA device for torch"),
        ("2.5.1+cu121", "torch must be 2.6 or later, got 2.5.1"),
    ):
        monkeypatch.setattr(torch, "__version__", version)
        assert bench_gpu.main(["--json", str(paths[0]), "--page", str(paths[1])]) == 2
        assert words in capsys.readouterr().err
    assert not any(path.exists() for path in paths)


def test_missing_packages_come_from_wheels(monkeypatch, tmp_path):
    packages = {"torch": "torch", "no_such_module": "no-such-package", "torchvision": "torchvision"}
    monkeypatch.setattr(bench_gpu, "PACKAGES", packages)
    assert bench_gpu.list_missing() == ["no_such_module"]
    calls = []
    monkeypatch.setattr(bench_gpu, "run_python", lambda given, _: calls.append(given))
    monkeypatch.setattr(torch, "__version__", "2.6.0+cu124")
    for wheels in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr(bench_gpu, "WHEELS", wheels)
        bench_gpu.install_packages(["no_such_module", "torchvision"])
    assert all(call[-2:] == ["no-such-package", "torchvision==0.21.*"] for call in calls)
    assert all("--no-deps" in call for call in calls)
    assert ["--no-index" in call for call in calls] == [True, False]
