import pytest
import torch

from bvdm_data.synth.networks import FLOW_SIZE, FlowNet, invert_flow, warp


def make_image(count=2, channels=1, side=12, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def make_flow(dy, dx, side=12):
    return torch.tensor([float(dy), float(dx)])[None, :, None, None].repeat(1, 1, side, side)


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (1, 0), (-3, 1), (2, -2)])
def test_warp_shifts_by_whole_pixels(dy, dx):
    image = make_image(1, 2)
    y, x = torch.arange(12), torch.arange(12)
    wanted = image[:, :, (y + dy).clamp(0, 11)][..., (x + dx).clamp(0, 11)]
    torch.testing.assert_close(warp(image, make_flow(dy, dx)), wanted, rtol=0, atol=1e-5)


def test_warp_is_bilinear_between_pixels():
    image = make_image(1)
    warped = warp(image, make_flow(0.25, 0.5))
    a, b = image[0, 0, 4:6, 7:9].tolist()
    wanted = 0.75 * (a[0] + a[1]) / 2 + 0.25 * (b[0] + b[1]) / 2
    assert float(warped[0, 0, 4, 7]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (1, 3, 8, 8), (2, 2, 8, 8), (2, 8, 8)])
def test_warp_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected shape \(1, 2, 8, 8\), got"):
        warp(torch.zeros(1, 1, 8, 8), torch.zeros(shape))


def test_inverse_of_constant_flow_is_opposite():
    torch.testing.assert_close(invert_flow(make_flow(0.5, -2)), make_flow(-0.5, 2))
    assert not invert_flow(torch.zeros(2, 2, 6, 6)).any()


def test_inverse_converges_at_stretched_rims():
    # Backward flow of a disc of 8 px that fills one of 11 px by its rim alone.
    line = torch.arange(48.0) - 23.5
    y, x = line[:, None].expand(48, 48), line[None].expand(48, 48)
    radius = y.hypot(x).clamp(min=1e-6)
    shrink = 3 * torch.sigmoid(2 * (radius - 8.5)) * torch.sigmoid(2 * (14 - radius))
    flow = torch.stack([-y / radius * shrink, -x / radius * shrink])[None]
    gradient = flow[..., 1:] - flow[..., :-1]
    forward = invert_flow(flow)
    error = (forward + warp(flow, forward)).norm(dim=1)[0]
    assert float(gradient.abs().max()) > 1  # a whole step of the iteration would not converge
    assert float(error[radius < 8].max()) < 0.25


def test_flownet_starts_without_flow():
    network = FlowNet()
    assert sum(weight.numel() for weight in network.parameters()) == 116_370
    with torch.no_grad():
        flow = network(make_image(1, side=32).round(), make_image(1, side=32, seed=1).round())
    assert flow.shape == (1, 2, 32, 32)
    assert float(flow.abs().max()) < 1e-3


def test_flownet_gives_float32_under_autocast(tiny_generator):
    masks = torch.ones(1, 1, FLOW_SIZE, FLOW_SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert tiny_generator.flownet(masks, masks).dtype == torch.float32
