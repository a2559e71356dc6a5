import numpy as np
import pytest
import torch

from bvdm_data.pixels import has_loops, skip_loops
from bvdm_data.rng import draw_normal, numpy_rng, torch_rng
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


SEEDS = torch.tensor([0, 1, 2**63 - 1, -5])


def test_numbers_are_normal():
    drawn = draw_normal(torch.tensor([7]), torch.tensor([0]), 200_000).double()[0]
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01)
    assert float(drawn.std()) == pytest.approx(1, abs=0.01)
    assert float((drawn**4).mean()) == pytest.approx(3, abs=0.06)
    assert float((drawn.abs() > 3).double().mean()) == pytest.approx(0.0027, abs=0.0005)
    for lag in range(1, 9):
        assert abs(float((drawn[lag:] * drawn[:-lag]).mean())) < 0.01


def test_streams_of_near_seeds_are_unrelated():
    drawn = draw_normal(torch.arange(100), torch.zeros(100).long(), 4096)
    related = torch.corrcoef(drawn).fill_diagonal_(0)
    # Six standard errors, in nearly 5000 pairs.
    assert float(related.abs().max()) < 6 / 4096**0.5


def test_streams_are_known():
    # The first outputs of SplitMix64 for the seed 0: E220A8397B1DCDAF, 6E789E6AA1B965F4.
    quantiles = (torch.tensor([0xCDAF, 0x7B1D, 0xA839, 0xE220, 0x65F4]) + 0.5) / 2**16
    drawn = draw_normal(torch.tensor([0]), torch.tensor([0]), 5)[0].double()
    wanted = torch.special.ndtri(quantiles.double())
    torch.testing.assert_close(drawn, wanted, atol=1e-4, rtol=0)


def test_numbers_depend_on_place_alone():
    whole = draw_normal(SEEDS, torch.zeros(4).long(), 40)
    assert torch.equal(draw_normal(SEEDS, torch.full((4,), 3), 7), whole[:, 12:19])


@pytest.mark.skipif(not has_loops(), reason="needs the compiled loops")
@pytest.mark.parametrize("count", [1, 4, 1023])
def test_numbers_equal_those_of_torch(count):
    first = torch.tensor([0, 5, 2**40, 3])
    drawn = draw_normal(SEEDS, first, count)
    with skip_loops():
        assert torch.equal(draw_normal(SEEDS, first, count), drawn)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_numbers_are_the_same_on_cuda():
    first = torch.tensor([0, 5, 2**40, 3])
    there = draw_normal(SEEDS.cuda(), first.cuda(), 1023).cpu()
    assert torch.equal(there, draw_normal(SEEDS, first, 1023))
