import numpy as np
import pytest
import torch

from bvdm_data.rng import numpy_rng, torch_rng


def draw(seed, *path):
    return torch.rand(4, generator=torch_rng(seed, *path)).tolist()


def numpy_draw(seed, *path):
    return numpy_rng(seed, *path).random(4).tolist()


@pytest.mark.parametrize("of", [draw, numpy_draw])
def test_stream_gives_the_same_numbers_for_the_same_path(of):
    assert of(3, "clip", 17, "motion") == of(3, "clip", 17, "motion")


@pytest.mark.parametrize("of", [draw, numpy_draw])
def test_stream_gives_other_numbers_for_every_other_seed_and_path(of):
    paths = [
        (0,),
        (1,),
        (0, "clip"),
        (0, "clip", 1),
        (0, "clip", 2),
        (1, "clip", 1),
        (0, 1, "clip"),
    ]
    assert len({tuple(of(*path)) for path in paths}) == len(paths)


def test_stream_tells_clip_1_cell_11_from_clip_11_cell_1():
    assert draw(0, "clip", 1, 11) != draw(0, "clip", 11, 1)
    assert draw(1, 1) != draw(11)


@pytest.mark.parametrize("of", [draw, numpy_draw])
def test_stream_of_neighbouring_clips_is_uncorrelated(of):
    numbers = np.array([of(0, "clip", clip) for clip in range(1000)])
    neighbours = np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]
    # Four standard errors of a correlation of 1000 independent pairs.
    assert abs(neighbours) < 4 / 1000**0.5
    assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / numbers.size) ** 0.5


def test_stream_is_the_same_in_every_version_of_the_library():
    assert torch_rng(0, "clip", 17).initial_seed() == 7626303691964734728


def test_stream_takes_seeds_of_any_size():
    assert draw(2**70) != draw(2**71)


def test_stream_leaves_the_global_random_states_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draw(0, "a")
    numpy_draw(0, "a")
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_two_streams_of_one_path_are_held_by_nobody_else():
    first, second = torch_rng(0, "a"), torch_rng(0, "a")
    torch.rand(5, generator=first)
    assert torch.rand(1, generator=second).item() == draw(0, "a")[0]
