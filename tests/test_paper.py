"""The paper's method: textures that are warped and refreshed frame by frame."""

import pytest
import torch

from bvdm_data.rng import torch_rng
from bvdm_data.synth.networks import FlowNet, UNet, UNetSettings, warp
from bvdm_data.synth.paper import PaperSettings, render_paper_textures

SHORT = PaperSettings(first_steps=3, later_steps=2, total_steps=1000)
SIDE = 32


class CountingUNet(UNet):
    """Knows the batch and the step of each of its calls, and predicts no noise at all."""

    def __init__(self):
        super().__init__(UNetSettings(channels=(8, 8, 8), middle=1))
        self.calls = []

    def forward(self, x, step):
        self.calls.append((len(x), int(step)))
        return torch.zeros_like(x)


def discs(spans, frames=5, radius=9.0):
    """Masks of discs that walk down, each there from its first to its last frame."""
    y, x = torch.meshgrid(torch.arange(SIDE) - 12.0, torch.arange(SIDE) - 16.0, indexing="ij")
    masks = torch.zeros(len(spans), frames, SIDE, SIDE, dtype=torch.bool)
    for row, (first, last) in enumerate(spans):
        for frame in range(first, last + 1):
            masks[row, frame] = (y - frame).hypot(x) < radius - row
    return masks


def streams(count, seed=0):
    return [torch_rng(seed, "nucleus", n) for n in range(count)]


@pytest.fixture
def networks(tiny_generator):
    return tiny_generator.unet, tiny_generator.flownet


def test_absent_nucleus_is_0(networks):
    painted = render_paper_textures(discs([(1, 3), (0, 4), (4, 4)]), *networks, SHORT, streams(3))
    lit = painted.texture.flatten(2).any(2)
    assert lit.tolist() == [
        [False, True, True, True, False],
        [True, True, True, True, True],
        [False, False, False, False, True],
    ]
    moved = painted.flow.flatten(2).any(2)
    assert moved.tolist() == [[False, True, True, False], [True] * 4, [False] * 4]
    assert painted.texture.dtype == painted.flow.dtype == torch.float32
    assert render_paper_textures(discs([]), *networks, SHORT, []).texture.shape[0] == 0
    painted = render_paper_textures(discs([(0, 0)], frames=1), *networks, SHORT, streams(1))
    assert painted.flow.shape == (1, 0, 2, SIDE, SIDE)
    assert painted.texture.any()


def test_nucleus_does_not_depend_on_batch(networks):
    masks = discs([(0, 4), (1, 3), (0, 2)])
    together = render_paper_textures(masks, *networks, SHORT, streams(3))
    for n in range(3):
        alone = render_paper_textures(masks[n : n + 1], *networks, SHORT, streams(3)[n : n + 1])
        torch.testing.assert_close(together.texture[n], alone.texture[0], rtol=0, atol=2e-3)
        torch.testing.assert_close(together.flow[n], alone.flow[0], rtol=0, atol=1e-4)


def test_no_later_steps_only_warp(networks):
    masks = discs([(0, 4), (1, 3)])
    settings = PaperSettings(first_steps=3, later_steps=0)
    painted = render_paper_textures(masks, *networks, settings, streams(2))
    for n, (first, last) in enumerate([(0, 4), (1, 3)]):
        for frame in range(first + 1, last + 1):
            before = painted.texture[n, frame - 1][None, None]
            moved = warp(before, painted.flow[n, frame - 1][None])[0, 0]
            expected = moved * masks[n, frame]
            torch.testing.assert_close(painted.texture[n, frame], expected, rtol=0, atol=1e-6)


def test_network_is_called_once_a_step():
    unet, masks = CountingUNet(), discs([(0, 2), (0, 2), (1, 2)], frames=3)
    for steps, later in ((2, [1, 0]), (0, [])):
        unet.calls.clear()
        settings = PaperSettings(first_steps=5, later_steps=steps)
        render_paper_textures(masks, unet, FlowNet(), settings, streams(3))
        first = [(count, step) for count in (2, 1) for step in (4, 3, 2, 1, 0)]
        assert unet.calls == first + [(count, step) for count in (2, 3) for step in later]


def test_perfect_network_gives_flat_mask():
    masks = discs([(0, 0)], frames=1)
    noise = torch.randn((1, SIDE, SIDE), generator=streams(1)[0])

    class Perfect(UNet):
        def forward(self, x, step):
            return noise[None]

    settings = PaperSettings(first_steps=1, later_steps=0, mask_level=0.5)
    unet = Perfect(UNetSettings(channels=(8, 8, 8), middle=1))
    painted = render_paper_textures(masks, unet, FlowNet(), settings, streams(1))
    torch.testing.assert_close(painted.texture, 0.5 * masks.float(), rtol=0, atol=1e-5)


def test_random_state_and_masks_stay(networks):
    masks = discs([(0, 4)])
    state, before = torch.get_rng_state(), masks.clone()
    render_paper_textures(masks, *networks, SHORT, streams(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(masks, before)


def test_wrong_settings_are_refused():
    for changes, words in [
        ({"later_steps": -1}, "later_steps must be from 0 to first_steps=200, got -1"),
        ({"total_steps": 100}, "first_steps must be from 1 to total_steps=100, got 200"),
        ({"total_steps": 1}, "total_steps must be at least 2, got 1"),
        ({"mask_level": 0}, "mask_level must be above 0 and at most 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            PaperSettings(**changes)
    with pytest.raises(TypeError, match="total_steps must be an int, got True"):
        PaperSettings(total_steps=True)


def test_texture_is_same_without_flow(networks):
    masks = discs([(0, 4), (1, 3)])
    full = render_paper_textures(masks, *networks, SHORT, streams(2))
    lean = render_paper_textures(masks, *networks, SHORT, streams(2), keep_flow=False)
    assert torch.equal(full.texture, lean.texture)
    assert lean.flow.numel() == 0
