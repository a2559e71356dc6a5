"""One benchmark for each speed target: ``python -m pytest benchmarks -m slow -s``.

No time is asserted: a slow result on a busy machine is not a failure of the code.
"""

import json

import pytest

from benchmarks import speed_measures
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
