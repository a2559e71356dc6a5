import math

import pytest
import torch

from bvdm_data.synth.flow import FLOW_SIZE, FlowNet, invert_flow, warp


def image(count=2, channels=1, side=12, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def constant(dy, dx, count=1, side=12):
    return torch.tensor([float(dy), float(dx)])[None, :, None, None].repeat(count, 1, side, side)


def swirl(side=48, size=2.0):
    """A smooth backward flow and the points it is given at."""
    y, x = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    rate = 2 * math.pi / side
    return torch.stack([size * (rate * x).sin(), size * (rate * y).cos()])[None], y, x


def test_warp_with_zero_flow_returns_the_image_unchanged():
    picture = image(2, 3)
    torch.testing.assert_close(warp(picture, torch.zeros(2, 2, 12, 12)), picture)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, 2), (-3, 1), (2, -2)])
def test_warp_by_whole_pixels_shifts_the_image(dy, dx):
    picture = image(1)
    moved = warp(picture, constant(dy, dx))
    for y, x in torch.cartesian_prod(torch.arange(12), torch.arange(12)).tolist():
        source_y, source_x = min(max(y + dy, 0), 11), min(max(x + dx, 0), 11)
        expected = float(picture[0, 0, source_y, source_x])
        assert float(moved[0, 0, y, x]) == pytest.approx(expected, abs=1e-5)


def test_warp_between_pixels_is_bilinear():
    picture = image(1)
    moved = warp(picture, constant(0.25, 0.5))
    a, b = picture[0, 0, 4:6, 7:9].tolist()
    expected = 0.75 * (a[0] + a[1]) / 2 + 0.25 * (b[0] + b[1]) / 2
    assert float(moved[0, 0, 4, 7]) == pytest.approx(expected, abs=1e-5)


def test_warp_of_a_batch_is_that_of_each_image_alone():
    picture, flow = image(3, 2), 4 * image(3, 2, seed=1) - 2
    together = warp(picture, flow)
    alone = [warp(picture[n : n + 1], flow[n : n + 1]) for n in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (1, 3, 8, 8), (2, 2, 8, 8), (2, 8, 8)])
def test_warp_refuses_a_flow_that_does_not_fit_the_image(shape):
    with pytest.raises(ValueError, match=r"expected shape \(1, 2, 8, 8\), got"):
        warp(torch.zeros(1, 1, 8, 8), torch.zeros(shape))


def test_invert_of_no_flow_is_no_flow():
    assert not invert_flow(torch.zeros(2, 2, 6, 6)).any()


def test_invert_of_a_constant_flow_is_its_opposite():
    torch.testing.assert_close(invert_flow(constant(0.5, -2)), constant(-0.5, 2))


def test_invert_of_an_analytic_field_is_right_to_a_fiftieth_of_a_pixel():
    flow, y, x = swirl()
    forward = invert_flow(flow)[0]
    # The exact flow at the point where a pixel arrives must lead back to the pixel.
    rate, there_y, there_x = 2 * math.pi / 48, y + forward[0], x + forward[1]
    back = torch.stack([2 * (rate * there_x).sin(), 2 * (rate * there_y).cos()])
    error = (forward + back).norm(dim=0)[5:-5, 5:-5]
    assert float(error.max()) < 0.02


def test_invert_settles_where_the_flow_stretches_the_rim():
    # Backward flow of a disc of 8 px that fills one of 11 px by its rim alone.
    line = torch.arange(48.0) - 23.5
    y, x = line[:, None].expand(48, 48), line[None].expand(48, 48)
    radius = y.hypot(x).clamp(min=1e-6)
    shrink = 3 * torch.sigmoid(2 * (radius - 8.5)) * torch.sigmoid(2 * (14 - radius))
    flow = torch.stack([-y / radius * shrink, -x / radius * shrink])[None]
    gradient = flow[..., 1:] - flow[..., :-1]
    forward = invert_flow(flow)
    error = (forward + warp(flow, forward)).norm(dim=1)[0]
    assert float(gradient.abs().max()) > 1  # a whole step of the iteration would not settle
    assert float(error[radius < 8].max()) < 0.25


def test_flownet_has_the_parameters_of_the_authors_network():
    assert sum(weight.numel() for weight in FlowNet().parameters()) == 116_370


def test_flownet_starts_at_next_to_no_flow():
    with torch.no_grad():
        flow = FlowNet()(image(1, side=32).round(), image(1, side=32, seed=1).round())
    assert flow.shape == (1, 2, 32, 32)
    assert float(flow.abs().max()) < 1e-3


def test_flownet_of_a_pair_in_a_batch_is_that_of_the_pair_alone(tiny_generator):
    network = tiny_generator.flownet
    source, target = image(3, side=32).round(), image(3, side=32, seed=1).round()
    together = network(source, target)
    for n in range(3):
        alone = network(source[n : n + 1], target[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=1e-4)


def test_flownet_gives_float32_under_autocast(tiny_generator):
    masks = torch.ones(1, 1, FLOW_SIZE, FLOW_SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert tiny_generator.flownet(masks, masks).dtype == torch.float32


def test_flownet_tells_the_source_from_the_target(tiny_generator):
    one, other = image(1, side=32).round(), image(1, side=32, seed=1).round()
    network = tiny_generator.flownet
    assert not torch.allclose(network(one, other), network(other, one), atol=1e-3)
