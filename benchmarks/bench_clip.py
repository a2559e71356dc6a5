"""Cost of a clip by method, and time saved by the paper's smaller number of later steps.

Run ``python -m pytest benchmarks -m slow -s``. The paper reports that T_f=0 = 200 with T_f>0 = 10
takes 42.7 % less time than with T_f>0 = 200 (section 3).
"""

import os
import platform
import time

import pytest
import torch

from bvdm_data import PaperSettings, SyntheticHeLaVideos

pytestmark = pytest.mark.slow


def machine() -> str:
    """Describe the machine."""
    load = os.getloadavg()[0]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, load {load:.1f}"
    )


def seconds_of(videos: SyntheticHeLaVideos, clip: int) -> float:
    """Return the seconds that one clip takes."""
    begun = time.perf_counter()
    videos.clip(clip)
    return time.perf_counter() - begun


@pytest.mark.parametrize("method", ["fast", "paper"])
def test_bench_one_clip_at_the_density_of_the_video(benchmark, method):
    videos = SyntheticHeLaVideos(frames=8, size=(256, 256), method=method)
    videos.clip(0)
    benchmark.pedantic(videos.clip, args=(1,), rounds=3, iterations=1)
    cells = int((videos.clip(1)["tracks"][:, 0] > 0).sum())
    print(f"\n{method}: {cells} nuclei, {benchmark.stats['median']:.2f} s per clip; {machine()}")


def test_bench_few_later_steps_against_as_many_as_at_first():
    few = SyntheticHeLaVideos(frames=8, size=(96, 96), nuclei=2, method=PaperSettings())
    many = SyntheticHeLaVideos(
        frames=8, size=(96, 96), nuclei=2, method=PaperSettings(later_steps=200)
    )
    few.clip(0)
    pairs = [(seconds_of(few, i), seconds_of(many, i)) for i in range(3)]
    ratio = sorted(a / b for a, b in pairs)[1]
    print(
        f"\nT_f>0 = 10 takes {1 - ratio:.1%} less time than T_f>0 = 200 (the paper: 42.7 %); "
        f"{machine()}"
    )
    assert ratio < 1


def test_bench_network_against_the_authors(benchmark):
    from benchmarks.reference_unet import ReferenceUNet
    from bvdm_data.synth.networks import UNet

    ours, theirs = (
        kind().eval().to(memory_format=torch.channels_last) for kind in (UNet, ReferenceUNet)
    )
    images = torch.randn(16, 1, 96, 96).to(memory_format=torch.channels_last)
    step = torch.tensor([100])

    def forward(network: torch.nn.Module) -> float:
        begun = time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            network(images, step)
        return time.perf_counter() - begun

    for network in (ours, theirs):
        forward(network)
    pairs = [(forward(ours), forward(theirs)) for _ in range(7)]
    ratio = sorted(a / b for a, b in pairs)[3]
    benchmark.pedantic(forward, args=(ours,), rounds=5)
    best = min(a for a, _ in pairs) / 16
    print(
        f"\nours / authors' = {ratio:.3f} in time; ours {1000 * best:.2f} ms per image; {machine()}"
    )
