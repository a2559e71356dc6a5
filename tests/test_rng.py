import numpy as np
import pytest
import torch

from bvdm_data.rng import numpy_rng, torch_rng
from tests.helpers.streams import read_random_states


def draw(seed, *path):
    return torch.rand(4, generator=torch_rng(seed, *path)).tolist()


def draw_numpy(seed, *path):
    return numpy_rng(seed, *path).random(4).tolist()


either = pytest.mark.parametrize("draw_path", [draw, draw_numpy])


@either
def test_numbers_depend_on_seed_and_path(draw_path):
    assert draw_path(3, "clip", 17, "motion") == draw_path(3, "clip", 17, "motion")
    paths = [(0,), (1,), (11,), (2**70,), (2**71,), (0, "clip"), (0, "clip", 1), (0, "clip", 2)]
    paths += [(1, "clip", 1), (0, 1, "clip"), (1, 1), (0, "clip", 1, 11), (0, "clip", 11, 1)]
    assert len({tuple(draw_path(*path)) for path in paths}) == len(paths)


@either
def test_neighbouring_clips_are_uncorrelated(draw_path):
    numbers = np.array([draw_path(0, "clip", clip) for clip in range(1000)])
    neighbours = np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]
    # Four standard errors of a correlation of 1000 independent pairs.
    assert abs(neighbours) < 4 / 1000**0.5
    assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / numbers.size) ** 0.5


def test_generators_are_independent():
    assert torch_rng(0, "clip", 17).initial_seed() == 7626303691964734728
    before = read_random_states()
    first, second = torch_rng(0, "a"), torch_rng(0, "a")
    torch.rand(5, generator=first)
    assert torch.rand(1, generator=second).item() == draw(0, "a")[0]
    draw_numpy(0, "a")
    assert read_random_states() == before
