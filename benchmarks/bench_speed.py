"""One benchmark for each speed target, and for the paper: ``make bench``.

No time is asserted: a slow result on a busy machine is not a failure of the code.
"""

import json
import time

import pytest
import torch

from benchmarks import speed_measures
from bvdm_data import PaperSettings, SyntheticHeLaVideos
from bvdm_data.system import get_machine_info, list_versions

pytestmark = pytest.mark.slow

needs_video = pytest.mark.skipif(
    not speed_measures.REAL.is_dir(), reason=f"needs the real video in {speed_measures.REAL}"
)


@pytest.fixture
def measured(benchmark):
    """Run a measurement once under the harness; print it with the machine it ran on."""

    def run(measure, *arguments):
        found = benchmark.pedantic(measure, args=arguments, rounds=1, iterations=1)
        about = {"machine": get_machine_info(), "versions": list_versions()}
        benchmark.extra_info.update(found)
        print(f"\n{measure.__name__}: {json.dumps(found)}\n{json.dumps(about)}")
        return found

    return run


def test_bench_fast_against_the_paper(measured):
    found = measured(speed_measures.against_paper, 10)
    # Both make the same clips.
    assert abs(found["fast"]["nuclei"] - found["paper"]["nuclei"]) < 8
    assert found["ratio"] > 0


def test_bench_clips_without_pictures(measured):
    for one in measured(speed_measures.against_pictures, 20).values():
        assert one["ratio"] > 1


def test_bench_network_against_a_matrix_product(measured):
    found = measured(speed_measures.arithmetic, 10)
    assert 0 < found["share"] < 1.2


def test_bench_share_of_the_parts(measured):
    for one in measured(speed_measures.parts, 5).values():
        assert 0 < one["outside"] < 1
        assert one["milliseconds"]["network"] > 0


@needs_video
def test_bench_a_clip_against_reading_one(measured):
    found = measured(speed_measures.against_reading)
    assert found["reading_ms"] > 0


def test_bench_training_from_the_loader_against_memory(measured):
    found = measured(speed_measures.training, 10)
    assert 4e5 < found["parameters"] < 6e5
    assert all(one["pool"] > 0 < one["fresh"] for one in found["threads"].values())


def test_bench_import_and_first_clip(measured):
    found = measured(speed_measures.start)
    assert 0 < found["import"] < found["torch"] + 60


@pytest.mark.parametrize("method", ["fast", "paper"])
def test_bench_one_clip(benchmark, method):
    videos = SyntheticHeLaVideos(frames=8, size=(256, 256), method=method)
    videos.clip(0)
    benchmark.pedantic(videos.clip, args=(1,), rounds=3, iterations=1)
    cells = int((videos.clip(1)["tracks"][:, 0] > 0).sum())
    print(f"\n{method}: {cells} nuclei, {benchmark.stats['median']:.2f} s per clip")


def test_bench_few_later_steps(measured):
    """The paper: T_f=0 = 200 with T_f>0 = 10 takes 42.7 % less time than with 200 (section 3)."""
    few, many = (
        SyntheticHeLaVideos(frames=8, size=(96, 96), nuclei=2, method=PaperSettings(later_steps=n))
        for n in (10, 200)
    )
    few.clip(0)

    def compare_later_steps():
        ratios = [seconds_of(few.clip, i) / seconds_of(many.clip, i) for i in range(3)]
        return {"less": 1 - sorted(ratios)[1], "less in the paper": 0.427}

    assert measured(compare_later_steps)["less"] > 0


def test_bench_network_against_the_authors(measured):
    from benchmarks.reference_unet import ReferenceUNet
    from bvdm_data.synth.networks import UNet

    ours, theirs = (
        kind().eval().to(memory_format=torch.channels_last) for kind in (UNet, ReferenceUNet)
    )
    images = torch.randn(16, 1, 96, 96).to(memory_format=torch.channels_last)
    step = torch.tensor([100])

    @torch.no_grad()
    def compare_networks():
        with torch.autocast("cpu", torch.bfloat16):
            pairs = [[seconds_of(net, images, step) for net in (ours, theirs)] for _ in range(8)]
        best = min(own for own, _ in pairs) / len(images)
        return {"ratio": sorted(a / b for a, b in pairs[1:])[3], "ours_ms_an_image": 1000 * best}

    assert measured(compare_networks)["ratio"] > 0


def seconds_of(call, *arguments):
    begun = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begun
