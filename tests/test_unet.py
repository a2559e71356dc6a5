import pytest
import torch

from bvdm_data.synth.unet import UNet, UNetSettings

SMALL = UNetSettings(channels=(8, 16, 24), middle=1, time_channels=16)


@pytest.fixture
def unet():
    generator = torch.Generator().manual_seed(0)
    network = UNet(SMALL)
    for value in network.parameters():
        value.data = 0.2 * torch.randn(value.shape, generator=generator)
    return network.eval().requires_grad_(False)


def pictures(count, height=24, width=24, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, height, width, generator=generator)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (96, 96), (24, 8)])
def test_unet_keeps_the_shape_of_sizes_that_are_multiples_of_8(unet, height, width):
    found = unet(pictures(2, height, width), torch.tensor([5]))
    assert found.shape == (2, 1, height, width)
    assert found.dtype == torch.float32


def test_one_step_for_all_is_the_same_step_for_each(unet):
    x = pictures(3)
    for step in (0, 17, 999):
        each = unet(x, torch.full((3,), step))
        torch.testing.assert_close(unet(x, torch.tensor([step])), each, rtol=1e-5, atol=1e-5)


def test_a_picture_in_a_batch_is_the_picture_alone(unet):
    x, steps = pictures(3), torch.tensor([1, 100, 900])
    together = unet(x, steps)
    for row in range(3):
        alone = unet(x[row : row + 1], steps[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_the_step_and_the_picture_both_matter(unet):
    x = pictures(1)
    found = unet(x, torch.tensor([10]))
    assert not torch.allclose(found, unet(x, torch.tensor([500])), atol=1e-3)
    assert not torch.allclose(found, unet(pictures(1, seed=2), torch.tensor([10])), atol=1e-3)


def test_every_pixel_of_a_small_picture_is_seen_by_every_other(unet):
    x = pictures(1, 16, 16).requires_grad_()
    unet(x, torch.tensor([10]))[0, 0, 0, 0].backward()
    assert (x.grad != 0).all()


def test_every_weight_has_a_gradient(unet):
    unet.requires_grad_(True)
    unet(pictures(2), torch.tensor([3, 400])).square().mean().backward()
    for name, weight in unet.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_unet_repeats_itself_byte_by_byte(unet):
    x = pictures(2)
    assert torch.equal(unet(x, torch.tensor([7])), unet(x, torch.tensor([7])))


def test_the_default_settings_make_the_default_network():
    assert UNet().settings == UNetSettings() == UNetSettings(channels=(32, 64, 128), middle=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": (8, 8)}, r"channels must be three multiples of 8, got \(8, 8\)"),
        ({"channels": (8, 8, 12)}, r"three multiples of 8, got \(8, 8, 12\)"),
        ({"channels": (0, 8, 8)}, r"three multiples of 8, got \(0, 8, 8\)"),
        ({"channels": (-8, 8, 8)}, r"three multiples of 8, got \(-8, 8, 8\)"),
        ({"middle": 0}, "middle must be at least 1, got 0"),
        ({"time_channels": 7}, "time_channels must be even and at least 8, got 7"),
        ({"time_channels": 9}, "time_channels must be even and at least 8, got 9"),
    ],
)
def test_unet_settings_refuses_sizes_that_make_no_network(changes, words):
    with pytest.raises(ValueError, match=words):
        UNetSettings(**changes)
