import json
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner

from benchmarks import curves, peers
from benchmarks.speed_tables import TABLES, filled
from bvdm_data import bench as benching
from bvdm_data import speed
from bvdm_data.bench import (
    Suggestion,
    bench,
    copy_with,
    count_workers_needed,
    format_report,
    recommend,
    try_changes,
)
from bvdm_data.cli import cli
from bvdm_data.clip import ANNOTATIONS
from bvdm_data.datasets import synthetic
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.pixels import has_loops, skip_loops
from bvdm_data.speed import (
    LoaderStall,
    Loop,
    Throughput,
    count_nuclei,
    measure_flops,
    measure_matrix_gflops,
    measure_stall,
    measure_throughput,
    profile_clips,
    warm_up,
)
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.synth.textures import FastSettings
from bvdm_data.system import (
    SPANS,
    choose_dtype,
    count_usable_cores,
    get_machine_info,
    list_versions,
    measure_peak_megabytes,
    profile_span,
    run_mixed,
)
from bvdm_data.weights import load

SOON = 1e-6


@pytest.fixture
def tiny(tiny_model):
    def tiny(**changes):
        arguments = {
            "frames": 2, "size": (64, 72), "model": tiny_model, "nuclei": 3
        }  # fmt: skip
        return SyntheticHeLaVideos(**arguments | changes)

    return tiny


@pytest.fixture
def slow_clips(monkeypatch):
    """Let every clip take a quarter of a second of a clock that only that and sleep move."""
    now, made = [0.0], []

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    real = SyntheticHeLaVideos.clip

    def clip(videos, index):
        sleep(0.25)
        made.append(int(index))
        return real(videos, index)

    monkeypatch.setattr(SyntheticHeLaVideos, "clip", clip)
    return made


def test_throughput_counts_clips_and_frames(tiny, slow_clips):
    videos = tiny()
    found = measure_throughput(videos, 5, 2.0)
    assert slow_clips == list(range(5, 13))
    assert (found.clips, found.clips_per_second, found.frames_per_second) == (8, 4.0, 8.0)
    counted = [count_nuclei(videos.clip(number)) for number in range(5, 13)]
    assert found.nuclei == pytest.approx(sum(counted) / 8)
    size = sum(value.nbytes for value in videos.clip(5).values())
    assert found.megabytes == pytest.approx(size / 1e6)
    assert measure_throughput(videos, 0, SOON).clips == 1


def test_count_nuclei_by_tracks_or_masks(tiny):
    whole = count_nuclei(tiny().clip(0))
    for annotations in (("tracks",), ("masks",)):
        assert count_nuclei(tiny(annotations=annotations).clip(0)) == whole >= 3
    assert count_nuclei(tiny(annotations=()).clip(0)) == 0


def test_warm_up_fills_the_cell_bank(tiny, slow_clips):
    videos = tiny(pool=PoolSettings(pairs=6, renew=0))
    assert warm_up(videos) >= 6
    kept = videos._pool._pairs
    assert len(kept) == 6
    assert sum(pair.patches is not None for pair in kept.values()) >= 5
    slow_clips.clear()
    assert warm_up(tiny()) == 1
    assert slow_clips == [0]


def test_profile_names_every_span(tiny):
    costs = profile_clips(tiny(annotations=ANNOTATIONS), 0, 2)
    assert set(costs.milliseconds) == {*SPANS, "other"}
    assert costs.milliseconds["other"] >= 0
    assert all(costs.milliseconds[name] > 0 for name in SPANS)
    assert sum(costs.shares.values()) == pytest.approx(1)


def burn(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_profile_finds_the_slowest_span(tiny, monkeypatch):
    def transform(clip):
        with profile_span("lives"):
            pass
        burn(0.2)
        return clip

    assert profile_clips(tiny(transform=transform), 0, 1).milliseconds["other"] >= 200
    real = synthetic.make_clip
    monkeypatch.setattr(synthetic, "make_clip", lambda *given: (burn(0.3), real(*given))[1])
    costs = profile_clips(tiny(), 0, 2)
    assert costs.milliseconds["annotations"] >= 300
    assert max(costs.shares, key=costs.shares.get) == "annotations"


def tiny_network(videos):
    return load(videos.model).get_denoiser(videos.method.steps)


def test_profile_counts_calls_of_network(tiny):
    for steps in (1, 3):
        # All nuclei of such a clip share a call: they are few and small enough for one patch.
        videos = tiny(method=FastSettings(steps=steps), nuclei=1, size=64, frames=1)
        seen = []
        hook = tiny_network(videos).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        counted = profile_clips(videos, 0, 2).calls
        hook.remove()
        assert counted == len(seen) / 2 >= steps
    costs = profile_clips(tiny(method="procedural"), 0, 1)
    assert costs.calls == 0
    assert "network" not in costs.milliseconds
    assert costs.milliseconds["lives"] > 0


def test_flops_match_the_convolutions(tiny):
    videos = tiny(nuclei=2)
    network, shapes = tiny_network(videos), []

    def count(module, given, made):
        shapes.append(2 * module.weight[0].numel() * made.numel())

    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with skip_loops():  # a compiled loop calls no layer
        videos.clip(0)
    for hook in hooks:
        hook.remove()
    found = measure_flops(videos, 0, 1)
    assert found.gflop_per_clip == pytest.approx(sum(shapes) / 1e9)
    assert found.share == pytest.approx(found.gflops / found.matrix_gflops)
    assert found.gflops > 0


def test_flops_name_type_and_engine(tiny, quick):
    def name(steps):
        found = measure_flops(tiny(method=FastSettings(steps=steps), nuclei=1, frames=1), 0, 1)
        return found.dtype, found.engine

    several = str(choose_dtype(torch.device("cpu"))).removeprefix("torch.")
    # As torch has found out on its own, whoever makes the processor.
    lanes = {"AVX2": 8, "AVX512": 16}.get(torch.backends.cpu.get_cpu_capability(), 4)
    loop = f"compiled for vectors of {lanes}" if has_loops("paint") else "torch"
    assert name(1) == ("float32", loop)
    assert name(2) == (several, "torch")
    with skip_loops():
        assert name(1) == ("float32", "torch")


def test_matrix_product_keeps_thread_count(monkeypatch):
    monkeypatch.setattr(speed, "MATRIX", 64)
    before = torch.get_num_threads()
    assert measure_matrix_gflops(torch.float32, SOON) > 0
    assert torch.get_num_threads() == before


def test_loop_refuses_impossible_numbers():
    seconds = "step_seconds must be a number of seconds"
    for error, changes, words in (
        (TypeError, {"batch_size": 2.0}, "batch_size must be a whole number, got 2.0"),
        (ValueError, {"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        (TypeError, {"workers": True}, "workers must be a whole number, got True"),
        (ValueError, {"workers": -1}, "workers must be 0 or more, got -1"),
        (TypeError, {"step_seconds": "1"}, f"{seconds}, got '1'"),
        (ValueError, {"step_seconds": 0}, f"{seconds} above 0, got"),
        (ValueError, {"step_seconds": float("nan")}, f"{seconds} above 0, got nan"),
        (ValueError, {"step_seconds": float("inf")}, f"{seconds} above 0, got inf"),
    ):
        with pytest.raises(error, match=words):
            Loop(**changes)
    assert Loop(batch_size=6, step_seconds=0.5).wanted == 12


@pytest.mark.parametrize(("step", "share"), [(0.5, 0.5), (4.5, 0.1)])
def test_stall_without_workers_is_all_synthesis(tiny, slow_clips, step, share):
    loop = Loop(batch_size=2, workers=0, step_seconds=step)
    wait = measure_stall(tiny(batch_size=2), loop, 20.0, first=4)
    assert wait.first_seconds == 0.5
    assert wait.wait_seconds == pytest.approx(0.5)
    assert wait.share == pytest.approx(share)
    assert wait.clips_per_second == pytest.approx(2 / (step + 0.5))
    # The first batch, whole steps up to the limit, in order.
    assert slow_clips == list(range(4, 4 + 2 * (wait.steps + 1)))
    assert wait.steps * (step + 0.5) >= 20 > (wait.steps - 1) * (step + 0.5)


def test_stall_takes_a_few_steps(tiny, slow_clips):
    loop = Loop(batch_size=1, workers=0, step_seconds=9)
    assert measure_stall(tiny(batch_size=1), loop, SOON).steps == speed.LEAST_STEPS


def test_stall_with_a_worker_is_short(tiny):
    loop = Loop(batch_size=1, workers=1, step_seconds=0.6)
    wait = measure_stall(tiny(batch_size=1), loop, SOON)
    assert 0 <= wait.share < 1
    assert wait.clips_per_second <= 1 / 0.6


def paced(clips_per_second):
    return Throughput(10, clips_per_second, 8 * clips_per_second, 9.0, 4.0)


def waiting(share):
    return LoaderStall(9, 1.0, 0.1, share, 5.0)


def test_workers_needed_match_the_demand():
    loop = Loop(batch_size=4, step_seconds=0.5)
    assert [count_workers_needed(loop, one) for one in (20, 8, 7.9, 1)] == [1, 1, 2, 8]


def test_recommend_says_when_loader_keeps_up():
    assert recommend(paced(20), Loop(), waiting(0.04), [], 4) == [
        "The loader keeps up: the loop waits 4.0% of its time; the loop asks for 40 clips/s and "
        "one process makes 20."
    ]


def test_recommend_workers_up_to_cores():
    for workers, cores, words in (
        (1, 8, "num_workers=4: as many processes make what the loop asks for."),
        (1, 2, "num_workers=2, one for each core: about 24 clips/s. The loop would need 4."),
        (2, 2, "More workers do not help: 2 cores can make about 24 clips/s."),
        (1, 1, "More workers do not help: 1 core can make about 12 clips/s."),
    ):
        lines = recommend(paced(12), Loop(workers=workers), waiting(0.6), [], cores)
        assert lines[0].startswith("Synthesis is the bottleneck: the loop waits 60% of its time; ")
        assert lines[1] == words
        assert "bvdm-data export" in lines[-1]
    lines = recommend(paced(30), Loop(workers=2), waiting(0.2), [], 4)
    assert lines[1].startswith("2 workers would be enough on idle cores with full cell banks")
    assert not any("num_workers" in line or "More workers" in line for line in lines)


def test_recommend_lists_what_helped():
    changes = [Suggestion("pool=True", 36.0, 3.0, 2), Suggestion("frames=4", 40.0, 3.3, 1)]
    lines = recommend(paced(12), Loop(), waiting(0.6), changes, 4)
    assert "pool=True: 36 clips/s, 3.0 times as many; 2 workers would do." in lines
    assert "frames=4: 40 clips/s, 3.3 times as many; 1 worker would do." in lines


def tried(videos, monkeypatch, speeds):
    """Try changes; a data set is as fast as speeds says of it."""
    monkeypatch.setattr(benching, "warm_up", lambda _: 1)
    monkeypatch.setattr(benching, "measure_throughput", lambda changed, *_: paced(speeds(changed)))
    heard = []
    found = try_changes(videos, paced(10), Loop(), SOON, heard.append)
    return found, heard


def test_try_changes_sorts_what_helps(tiny, monkeypatch):
    videos = tiny(annotations=ANNOTATIONS, nuclei=None, size=(128, 160), frames=6)

    def speeds(changed):
        if changed.pool:
            return 50
        if changed.size == (64, 80):
            return 30
        return 5 if changed.frames == 3 else 20

    found, heard = tried(videos, monkeypatch, speeds)
    assert heard == [
        "trying pool=True", "trying annotations=('masks', 'tracks')", "trying size=(64, 80)",
        "trying frames=3",
    ]  # fmt: skip
    assert [(c.words, c.gain, c.workers) for c in found] == [
        ("pool=True", 5, 1), ("size=(64, 80)", 3, 2), ("annotations=('masks', 'tracks')", 2, 2),
    ]  # fmt: skip


def test_try_changes_depends_on_the_method(tiny, monkeypatch):
    for changes, first in (
        ({"method": "procedural"}, 'trying method="fast"'),
        ({"method": FastSettings(steps=4)}, "trying FastSettings(steps=1)"),
        ({"pool": PoolSettings(pairs=9)}, "trying PoolSettings(pairs=9, renew=0.1)"),
    ):
        _, heard = tried(tiny(**changes), monkeypatch, lambda _: 20)
        assert heard[0] == first
    videos = tiny(frames=1, pool=PoolSettings(renew=0.1))
    assert tried(videos, monkeypatch, lambda _: 20) == ([], [])


def test_try_changes_skips_impossible_ones(tiny, monkeypatch):
    def refuse(_):
        raise ValueError("nuclei do not fit")

    monkeypatch.setattr(benching, "warm_up", refuse)
    assert try_changes(tiny(), paced(1), Loop(), SOON, lambda _: None) == []


def test_copy_with_makes_the_same_clips(tiny):
    videos = tiny(
        seed=3, length=5, variation=0.5, pool=PoolSettings(pairs=4), annotations=("stages",),
        method=FastSettings(steps=2),
    )  # fmt: skip
    other = copy_with(videos, batch_size=2)
    assert (other.length, other.batch_size, videos.batch_size) == (None, 2, None)
    one, two = videos.clip(1), other.clip(1)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def quick(monkeypatch):
    """Let the matrix be small, and pools that are tried stay empty."""
    monkeypatch.setattr(speed, "MATRIX", 64)
    monkeypatch.setattr(benching, "warm_up", lambda _: 1)


def test_bench_writes_all_figures(tiny, tmp_path, quick):
    path, heard = tmp_path / "new" / "bench.json", []
    loop = Loop(batch_size=2, workers=1, step_seconds=1e-4)
    videos = tiny(pool=PoolSettings(pairs=2, renew=2), annotations=("masks", "tracks", "flow"))
    found = bench(videos, loop, seconds=0.05, report=path, log=heard.append)
    assert json.loads(path.read_text()) == found
    assert found["clips"]["pool"] == {"pairs": 2, "renew": 2.0}
    assert found["clips"]["annotations"] == ["masks", "tracks", "flow"]
    assert found["clips"]["method"]["kind"] == "FastSettings"
    assert found["pace"]["clips_per_second"] > 0
    assert found["parts"]["milliseconds"]["flow"] > 0
    assert found["network"]["calls_per_second"] == pytest.approx(
        found["network"]["calls_per_clip"] * found["pace"]["clips_per_second"]
    )
    assert found["loop"]["wanted"] == pytest.approx(20_000)
    assert found["loop"]["share"] > 0.5
    assert found["memory"]["process_mb"] > found["memory"]["clip_mb"] > 0
    assert found["memory"]["worker_mb"] > 0
    assert found["advice"][0].startswith("Synthesis is the bottleneck")
    assert heard[0] == "filling the cell bank"
    assert any(line.startswith("trying ") for line in heard)


def test_bench_tries_nothing_when_fast(tiny, quick, monkeypatch):
    monkeypatch.setattr(benching, "measure_stall", lambda *_, **__: waiting(0.01))
    heard = []
    found = bench(tiny(), Loop(workers=0), seconds=SOON, log=heard.append)
    assert found["changes"] == []
    assert found["memory"]["worker_mb"] is None
    assert found["advice"][0].startswith("The loader keeps up")
    assert not any(line.startswith("trying") for line in heard)


def test_bench_checks_the_report_path_first(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(benching, "warm_up", lambda _: pytest.fail("measured"))
    with pytest.raises(OSError, match=r"cannot write .*bench\.json"):
        bench(tiny(), Loop(), report=tmp_path / "file" / "bench.json")


def test_bench_failure_leaves_no_file(tiny, tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        bench(tiny(nuclei=30), Loop(), report=tmp_path / "bench.json")
    assert list(tmp_path.iterdir()) == []
    for seconds in (0, float("nan"), "10"):
        with pytest.raises((TypeError, ValueError), match="seconds must be a number of seconds"):
            bench(tiny(), Loop(), seconds=seconds)


def test_report_shows_every_figure(tiny, quick):
    found = bench(tiny(pool=PoolSettings(pairs=4)), Loop(workers=0), seconds=SOON)
    said = format_report(found)
    for name in found["parts"]["milliseconds"]:
        assert f"\n{name} " in said
    assert "a pool of 4 pairs, 1 renewed a clip" in said
    assert f"{found['pace']['clips_per_second']:.3g} clips/s" in said
    assert f"{found['loop']['share']:.1%} of its time" in said
    assert "0 workers: " in said
    assert found["advice"][0] in said
    assert f" in float32, {found['network']['engine']}, at " in said
    assert f"; loops over pixels: {found['machine']['loops']}; python " in said
    assert said.isascii()
    found = bench(tiny(method="procedural"), Loop(workers=0), seconds=SOON)
    assert found["network"] is None
    assert "network" not in format_report(found).replace("outside", "")


def test_machine_info_is_json(monkeypatch):
    found = get_machine_info()
    assert found["processor"]
    assert 1 <= found["cores"] == count_usable_cores()
    assert found["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found
    found = list_versions(("torch", "no-such-package"))
    assert found["torch"]
    assert "no-such-package" not in found
    before = measure_peak_megabytes()
    assert 10 < before <= measure_peak_megabytes()
    monkeypatch.setitem(sys.modules, "resource", None)
    assert measure_peak_megabytes(children=True) is None


@pytest.mark.skipif(sys.platform != "linux", reason="others count it otherwise")
def test_peak_memory_is_its_own():
    child = "from bvdm_data.system import measure_peak_megabytes as f; print(f())"
    parent = (
        "import subprocess, sys; held = b'1' * 1_500_000_000; "
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, check=True)
    assert 10 < float(done.stdout) < 1400


def test_networks_run_in_fast_type(monkeypatch):
    cpu, names = torch.device("cpu"), ("avx512_bf16", "amx_tile")
    for limit, has, wanted in (
        ("", (), "float32"),
        ("", ("avx512_bf16",), "bfloat16"),
        ("DEFAULT", ("amx_tile",), "bfloat16"),
        ("AVX512_CORE_BF16", names, "bfloat16"),
        ("AVX10_1_512_AMX", names, "bfloat16"),
        ("AVX512_CORE", names, "float32"),
        ("avx512_core_vnni", names, "float32"),
        ("AVX2", names, "float32"),
        ("AVX2_VNNI_2", names, "float32"),
    ):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        for name in names:
            one = f"_is_{name}_supported"
            monkeypatch.setattr(torch.cpu, one, lambda one=name in has: one, raising=False)
        assert str(choose_dtype(cpu)) == f"torch.{wanted}"
        assert choose_dtype(torch.device("cuda")) == torch.bfloat16
        with run_mixed(cpu):
            assert torch.is_autocast_enabled("cpu") == (wanted == "bfloat16")


def run(*arguments):
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


@pytest.fixture
def small(tiny_model):
    return [
        "--model", tiny_model, "--frames", 2, "--size", "64x64", "--nuclei", 2, "--seconds", 1e-6,
        "--step-seconds", 1e-4,
    ]  # fmt: skip


def test_bench_command_prints_and_writes_json(small, tmp_path, quick):
    path = tmp_path / "bench.json"
    result = run(
        *small, "--workers", 0, "--pool", "--pairs", 2, "--renew", 0.5, "--annotations", "all",
        "--json", path, "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert result.stdout.strip() == format_report(found)
    assert result.stderr == ""
    assert found["clips"]["pool"] == {"pairs": 2, "renew": 0.5}
    assert found["clips"]["annotations"] == list(ANNOTATIONS)
    assert found["loop"]["workers"] == 0


def test_bench_command_logs_to_stderr(small, quick):
    result = run(*small, "--workers", 0, "--annotations", "none")
    assert result.exit_code == 0, result.output
    assert "making clips ..." in result.stderr.splitlines()
    assert "making clips ..." not in result.stdout.splitlines()
    assert ": video\n" in result.stdout


def test_bench_command_refuses_impossible_options(small):
    for arguments, words in (
        (["--renew", "1"], "--renew is for --pool; give --pool, too"),
        (["--pairs", "3"], "--pairs is for --pool; give --pool, too"),
        (["--workers", "two"], "'two' is not a valid integer"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert words in result.output
    for arguments, words in (
        (["--annotations", "masks,mask"], "annotations must be out of .* got 'mask'"),
        (["--batch-size", 0], "batch_size must be 1 or more, got 0"),
        (["--step-seconds", 0], "step_seconds must be a number of seconds above 0, got 0.0"),
        (["--seconds", -1], "seconds must be a number of seconds above 0, got -1.0"),
        (["--pool", "--renew", 500], "renew must be from 0 .* got 500.0"),
        (["--pool", "--method", "procedural"], "pool must be None unless the method is 'fast'"),
        (["--max-cells", 0], "max_cells must be 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            raise run(*small, *arguments).exception


def test_performance_page_matches_its_json():
    page = (curves.DOCS / "performance.md").read_text()
    results = json.loads(curves.RESULTS.read_text())
    assert filled(page, results) == page
    assert "Not measured yet." not in page


def test_performance_page_fills_between_marks():
    page = "".join(f"before\n<!-- table: {name} -->\nold\n<!-- end -->\n" for name in TABLES)
    results = json.loads(curves.RESULTS.read_text())
    new = filled(page, results)
    assert "old" not in new
    assert new.count("before\n<!-- table: ") == len(TABLES)
    assert filled(new, results) == new
    assert "Not measured yet." in filled(page, {})
    with pytest.raises(ValueError, match="marks of the table 'about' once"):
        filled("", {})


def test_curves_are_fitted_and_drawn(tmp_path):
    found = curves.line([1, 2, 4, 8], [5, 7, 11, 19])
    assert [found[key] for key in ("slope", "start", "straight")] == pytest.approx([2, 3, 1])
    axes = ("size", "frames", "nuclei", "batch")
    found = {axis: {"x": [1, 2], "fresh": [3, 4], "pool": [1, 2]} for axis in axes}
    curves.draw(found, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_peers_take_turns(monkeypatch):
    calls = []
    both = {name: lambda name=name: lambda number: calls.append((name, number)) for name in "ab"}
    monkeypatch.setattr(peers, "MAKERS", both)
    assert peers.measure(2).keys() == {"a", "b"}
    assert calls == [(name, number) for number in range(3) for name in "ab"]
    table = "\n".join(peers.list_rows(json.loads(peers.RESULTS.read_text())))
    assert f"\n{table}\n" in peers.PAGE.read_text()
