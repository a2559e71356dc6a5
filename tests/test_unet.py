import math

import pytest
import torch

from bvdm_data.synth.networks import (
    UNet,
    UNetSettings,
    add_noise,
    make_cosine_schedule,
    sample_ddpm,
)


def make_noise(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def predict_nothing(x, step):
    return torch.zeros_like(x)


# The network


@pytest.fixture
def unet():
    generator = torch.Generator().manual_seed(0)
    network = UNet(UNetSettings(channels=(8, 16, 24), middle=1, time_channels=16))
    for value in network.parameters():
        value.data = 0.2 * torch.randn(value.shape, generator=generator)
    return network.eval().requires_grad_(False)


def test_unet_keeps_shapes(unet):
    image = unet(make_noise(2, 1, 16, 40).float(), torch.tensor([5]))
    assert (image.shape, image.dtype) == ((2, 1, 16, 40), torch.float32)


def test_unet_treats_images_alone(unet):
    x, steps = make_noise(3, 1, 24, 24).float(), torch.tensor([1, 100, 900])
    together = unet(x, steps)
    for row in range(3):
        part = slice(row, row + 1)
        torch.testing.assert_close(together[part], unet(x[part], steps[part]), rtol=1e-5, atol=1e-5)
    one, each = unet(x, steps[2:]), unet(x, steps[2:].expand(3))
    torch.testing.assert_close(one, each, rtol=1e-5, atol=1e-5)
    assert torch.equal(one, unet(x, steps[2:]))
    assert not torch.allclose(one[0], together[0], atol=1e-3)
    assert not torch.allclose(one[0], one[1], atol=1e-3)


def test_settings_refuse_impossible_sizes():
    words = r"channels must be three multiples of 8, got \(8, 8, 12\)"
    with pytest.raises(ValueError, match=words):
        UNetSettings(channels=(8, 8, 12))
    with pytest.raises(ValueError, match="time_channels must be even and at least 8, got 9"):
        UNetSettings(time_channels=9)


# The schedule


def test_schedule_is_the_cosine():
    schedule, kept = make_cosine_schedule(20), 1.0
    for step in range(20):
        levels = [math.cos((t / 20 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (step, step + 1)]
        beta = min(max(1 - levels[1] / levels[0], 1e-4), 0.9999)
        kept *= 1 - beta
        assert float(schedule.beta[step]) == pytest.approx(beta, rel=1e-12)
        assert float(schedule.alpha_bar[step]) == pytest.approx(kept, rel=1e-12)


def test_impossible_steps_are_refused():
    for steps in (1, 0, -5):
        with pytest.raises(ValueError, match=f"steps must be at least 2, got {steps}"):
            make_cosine_schedule(steps)
    for steps in (0, -1, 11):
        with pytest.raises(ValueError, match=f"steps must be from 1 to 10, got {steps}"):
            sample_ddpm(
                predict_nothing, torch.zeros(1, 1, 2, 2), steps, make_cosine_schedule(10), []
            )


# Forwards


def test_noise_adds_up_step_by_step():
    schedule, variance, factor = make_cosine_schedule(50), 0.0, 1.0
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    for step in range(30):
        beta = float(schedule.beta[step])
        variance, factor = (1 - beta) * variance + beta, factor * math.sqrt(1 - beta)
        index = torch.tensor([step])
        assert float(add_noise(one, zero, index, schedule)) == pytest.approx(factor, rel=1e-6)
        sigma = float(add_noise(zero, one, index, schedule))
        assert sigma**2 == pytest.approx(variance, rel=1e-5)


# Backwards


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_perfect_predictor_recovers_the_image(steps):
    schedule = make_cosine_schedule(100)
    clean, first, *noise = make_noise(steps + 1, 2, 1, 3, 3)

    def predict(x, step):
        kept = float(schedule.alpha_bar[step])
        return (x - math.sqrt(kept) * clean) / math.sqrt(1 - kept)

    noisy = add_noise(clean, first, torch.tensor([steps - 1]), schedule)
    before = noisy.clone()
    image = sample_ddpm(predict, noisy, steps, schedule, noise)
    torch.testing.assert_close(image, clean, rtol=1e-6, atol=1e-6)
    assert torch.equal(noisy, before)


def test_sampler_agrees_with_a_loop():
    schedule, asked = make_cosine_schedule(60), []
    noisy, *noise = make_noise(13, 1, 1, 2, 2)

    def network(x, step):
        asked.append(step.tolist())
        return 0.3 * x.tanh() + 0.01 * step.double()

    image = sample_ddpm(network, noisy, 12, schedule, noise)
    assert asked == [[step] for step in reversed(range(12))]
    for row, column in ((0, 0), (1, 1), (0, 1)):
        x = float(noisy[0, 0, row, column])
        for count, step in enumerate(reversed(range(12))):
            alpha = 1 - float(schedule.beta[step])
            kept = math.prod(1 - float(beta) for beta in schedule.beta[: step + 1])
            predicted = 0.3 * math.tanh(x) + 0.01 * step
            x = (x - (1 - alpha) / math.sqrt(1 - kept) * predicted) / math.sqrt(alpha)
            if step > 0:
                x += math.sqrt(1 - alpha) * float(noise[count][0, 0, row, column])
        assert float(image[0, 0, row, column]) == pytest.approx(x, rel=1e-9)
