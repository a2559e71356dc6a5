import math

import pytest
import torch

from bvdm_data.synth.unet import Schedule, add_noise, make_cosine_schedule, sample_ddpm


def noises(count, shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def no_noise(x, step):
    return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("steps", "deviation"),
    [
        (10, 0.0316),
        (30, 0.0611),
        (50, 0.0915),
        (100, 0.168),
        (200, 0.319),
        (400, 0.594),
        (600, 0.812),
    ],
)
def test_cosine_schedule_has_the_noise_of_the_authors_code(steps, deviation):
    sigma = (1 - make_cosine_schedule(1000).alpha_bar).sqrt()
    assert float(sigma[steps - 1]) == pytest.approx(deviation, rel=0.005)


def test_cosine_schedule_agrees_with_a_slow_loop():
    schedule = make_cosine_schedule(20)
    kept = 1.0
    for step in range(20):
        levels = [math.cos((t / 20 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (step, step + 1)]
        beta = min(max(1 - levels[1] / levels[0], 1e-4), 0.9999)
        kept *= 1 - beta
        assert float(schedule.beta[step]) == pytest.approx(beta, rel=1e-12)
        assert float(schedule.alpha_bar[step]) == pytest.approx(kept, rel=1e-12)


def test_cosine_schedule_ends_in_noise_alone():
    schedule = make_cosine_schedule()
    assert schedule.steps == 1000
    assert float(schedule.alpha_bar[-1]) < 1e-6
    assert (schedule.alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 0, -5])
def test_cosine_schedule_refuses_fewer_than_two_steps(steps):
    with pytest.raises(ValueError, match=f"steps must be at least 2, got {steps}"):
        make_cosine_schedule(steps)


def test_add_noise_keeps_the_mean_and_adds_the_variance_of_the_step():
    schedule = make_cosine_schedule(1000)
    clean, noise = torch.full((1, 1, 300, 300), 0.5), noises(1, (1, 1, 300, 300))[0].float()
    for step in (9, 199, 599):
        noisy = add_noise(clean, noise, torch.tensor([step]), schedule)
        kept = float(schedule.alpha_bar[step])
        assert float(noisy.mean()) == pytest.approx(0.5 * math.sqrt(kept), abs=0.01)
        assert float(noisy.var()) == pytest.approx(1 - kept, rel=0.02)


def test_add_noise_agrees_with_a_step_by_step_forward_process():
    schedule = make_cosine_schedule(50)
    variance, factor = 0.0, 1.0
    for step in range(30):
        beta = float(schedule.beta[step])
        variance, factor = (1 - beta) * variance + beta, factor * math.sqrt(1 - beta)
        zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        index = torch.tensor([step])
        assert float(add_noise(one, zero, index, schedule)) == pytest.approx(factor, rel=1e-6)
        sigma = float(add_noise(zero, one, index, schedule))
        assert sigma**2 == pytest.approx(variance, rel=1e-5)


def test_add_noise_of_a_batch_is_that_of_each_picture_alone():
    schedule, steps = make_cosine_schedule(), torch.tensor([3, 500, 999])
    clean, noise = (n.float() for n in noises(2, (3, 1, 4, 4)))
    together = add_noise(clean, noise, steps, schedule)
    for row in range(3):
        picture = slice(row, row + 1)
        alone = add_noise(clean[picture], noise[picture], steps[picture], schedule)
        assert torch.equal(together[picture], alone)


@pytest.mark.parametrize("steps", [1, 2, 40, 100])
def test_denoise_with_a_perfect_predictor_gives_the_clean_picture_back(steps):
    schedule = make_cosine_schedule(100)
    clean, first, *fresh = noises(steps + 2, (2, 1, 3, 3))

    def perfect(x, step):
        kept = float(schedule.alpha_bar[step])
        return (x - math.sqrt(kept) * clean) / math.sqrt(1 - kept)

    noisy = add_noise(clean, first, torch.tensor([steps - 1]), schedule)
    found = sample_ddpm(perfect, noisy, steps, schedule, fresh)
    torch.testing.assert_close(found, clean, rtol=1e-6, atol=1e-6)


def test_denoise_agrees_with_a_slow_scalar_loop():
    schedule = make_cosine_schedule(60)
    noisy, *fresh = noises(13, (1, 1, 2, 2))

    def network(x, step):
        return 0.3 * x.tanh() + 0.01 * step.double()

    found = sample_ddpm(network, noisy, 12, schedule, fresh)
    for row, column in ((0, 0), (1, 1), (0, 1)):
        x = float(noisy[0, 0, row, column])
        for count, step in enumerate(reversed(range(12))):
            alpha = 1 - float(schedule.beta[step])
            kept = math.prod(1 - float(beta) for beta in schedule.beta[: step + 1])
            predicted = 0.3 * math.tanh(x) + 0.01 * step
            x = (x - (1 - alpha) / math.sqrt(1 - kept) * predicted) / math.sqrt(alpha)
            if step > 0:
                x += math.sqrt(1 - alpha) * float(fresh[count][0, 0, row, column])
        assert float(found[0, 0, row, column]) == pytest.approx(x, rel=1e-9)


def test_denoise_asks_for_every_step_once_from_the_last_to_the_first():
    asked = []

    def network(x, step):
        asked.append(step.tolist())
        return torch.zeros_like(x)

    noisy, *fresh = noises(7, (2, 1, 2, 2))
    sample_ddpm(network, noisy, 7, make_cosine_schedule(10), fresh)
    assert asked == [[6], [5], [4], [3], [2], [1], [0]]


def test_denoise_of_nothing_is_still():
    zero = torch.zeros(1, 1, 2, 2)
    found = sample_ddpm(no_noise, zero, 5, make_cosine_schedule(10), [zero] * 4)
    assert torch.equal(found, zero)


def test_denoise_of_one_step_needs_no_noise_and_scales_by_its_alpha():
    schedule = Schedule(torch.tensor([0.19, 0.5]).double(), torch.tensor([0.81, 0.405]).double())
    found = sample_ddpm(no_noise, torch.ones(1, 1, 1, 1), 1, schedule, [])
    assert float(found) == pytest.approx(1 / 0.9)


def test_denoise_leaves_its_input_as_it_is():
    noisy, *fresh = noises(5, (1, 1, 2, 2))
    before = noisy.clone()
    sample_ddpm(no_noise, noisy, 5, make_cosine_schedule(10), fresh)
    assert torch.equal(noisy, before)


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_denoise_refuses_steps_that_the_schedule_has_not(steps):
    with pytest.raises(ValueError, match=f"steps must be from 1 to 10, got {steps}"):
        sample_ddpm(no_noise, torch.zeros(1, 1, 2, 2), steps, make_cosine_schedule(10), [])
