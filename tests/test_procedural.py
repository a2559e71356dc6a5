"""The procedural method: chromatin from filtered noise, and flow from formulas."""

from functools import partial

import numpy as np
import pytest
import torch

from bvdm_data.clip import PHASES
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.synthetic import METHODS, SyntheticHeLaVideos
from bvdm_data.rng import torch_rng
from bvdm_data.synth.cells import Cell
from bvdm_data.synth.denoiser import Denoiser, Student
from bvdm_data.synth.networks import FLOW_SIZE, FlowNet, UNet, warp
from bvdm_data.synth.procedural import ProceduralSettings, render_procedural_textures
from tests.helpers.rendering import is_same, make_videos

SIX = (0.1,) * 6
EVEN = {"contrast": (0.0,) * 6, "nucleoli": (0, 0)}
"""A nucleus without any texture."""


def made_life(first=0, frames=4, *, start=(11.0, 9.0), growth=0.0, stages=0, identity=1):
    """Live as an ellipse of two half axes (y, x), px, that grows by a share in each frame."""
    angle = np.arange(60) * 2 * np.pi / 60
    (y, x), factor = start, 1 + growth * np.arange(frames)[:, None]
    # The major axis turns rounder, so that the map between two outlines is no mere zoom.
    y, x = y * factor, x * factor**2
    radii = x * y / np.hypot(x * np.cos(angle), y * np.sin(angle))
    stages = np.broadcast_to(np.asarray(stages), (frames,)).copy()
    return Cell(identity, 0, first, radii, stages, np.ones(frames), divides=False)


def painted(lives, settings=None, *, seed=0, **how):
    frames = max(life.last for life in lives) + 1 if lives else 5
    streams = [torch_rng(seed, "nucleus", life.identity) for life in lives]
    return render_procedural_textures(
        lives, frames, settings or ProceduralSettings(), streams, **how
    )


def distance():
    """Distance of every pixel of a patch from its middle, px."""
    line = torch.arange(FLOW_SIZE) - (FLOW_SIZE - 1) / 2
    return line[:, None].hypot(line)


def inside(life, frame, inset=0.0):
    """Pixels of a patch at least a depth inside the smallest circle in an outline."""
    return distance() < float(life.radii[frame].min()) - inset


def chromatin(lives, settings, **how):
    """Light of a nucleus over that of the same without texture, about 1."""
    even = ProceduralSettings(**vars(settings) | EVEN)
    return painted(lives, settings, **how).texture / painted(lives, even).texture.clamp(min=1e-6)


def correlation(one, other, here):
    """Correlation of two films of nuclei, about each one's mean, over the pixels in here."""
    a, b = (each[..., here] for each in (one, other))
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


@pytest.fixture
def tiny(tiny_model):
    small = {"size": (48, 56), "method": "procedural", "nuclei": 2, "max_cells": 24}
    return partial(make_videos, tiny_model, **small)


# Settings


def test_wrong_settings_are_refused():
    for error, changes, words in [
        (ValueError, {"grain": 0}, "grain must be from 0.5 to 16, got 0"),
        (ValueError, {"contrast": (*SIX[1:], 0.6)}, r"contrast must be from 0 to 0\.5, got 0\.6"),
        (ValueError, {"contrast": ()}, r"contrast must be a tuple of 6 numbers, one a stage, got"),
        (ValueError, {"memory": float("nan")}, "memory must be from 0 to 1, got nan"),
        (
            ValueError,
            {"nucleoli": (3, 1)},
            r"nucleoli must be 0 <= least <= most <= 20, got",
        ),
        (ValueError, {"dome": 3}, "dome must be from 0 to 2, got 3"),
        (ValueError, {"inset": (*SIX[1:], -9)}, "inset must be from -8 to 8, got -9"),
        (ValueError, {"mask_level": 0}, "mask_level must be above 0 and at most 1, got 0"),
        (TypeError, {"blur": True}, "blur must be a number, got True"),
        (TypeError, {"inset": list(SIX)}, "inset must be a tuple of 6 numbers, one a stage"),
        (TypeError, {"contrast": (*SIX[1:], "1")}, "contrast must be a number, got '1'"),
        (
            TypeError,
            {"nucleoli": (False, True)},
            r"nucleoli must be a pair \(least, most\) of",
        ),
    ]:
        with pytest.raises(error, match=words):
            ProceduralSettings(**changes)


# Painting


def test_absent_nucleus_is_0():
    lives = [made_life(1, 3, growth=0.02), made_life(0, 5), made_life(4, 1)]
    both = painted(lives)
    assert both.texture.shape == (3, 5, FLOW_SIZE, FLOW_SIZE)
    assert both.flow.shape == (3, 4, 2, FLOW_SIZE, FLOW_SIZE)
    assert both.texture.dtype == both.flow.dtype == torch.float32
    assert both.texture.flatten(2).any(2).tolist() == [
        [False, True, True, True, False],
        [True, True, True, True, True],
        [False, False, False, False, True],
    ]
    # The second keeps its outline, so nothing in it moves.
    moved = both.flow.flatten(2).any(2)
    assert moved.tolist() == [[False, True, True, False], [False] * 4, [False] * 4]
    assert painted([]).texture.shape == (0, 5, FLOW_SIZE, FLOW_SIZE)
    one = painted([made_life(frames=1)])
    assert one.flow.shape == (1, 0, 2, FLOW_SIZE, FLOW_SIZE)
    assert one.texture.any()


def test_nucleus_does_not_depend_on_others():
    lives = [made_life(n % 2, 4 - n % 2, growth=0.03 * n, identity=n + 1) for n in range(4)]
    together = painted(lives)
    for n, life in enumerate(lives):
        alone = painted([life])
        assert torch.equal(together.texture[n, : life.last + 1], alone.texture[0])
        assert torch.equal(together.flow[n, : life.last], alone.flow[0])


def test_random_state_and_cells_stay():
    life, state = made_life(growth=0.05), torch.get_rng_state()
    radii = life.radii.copy()
    painted([life])
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(life.radii, radii)


@pytest.mark.parametrize("level", [150 / 255, 0.3])
def test_mean_inside_is_mask_level(level):
    # A circle, so that the test knows the inside without asking the painter.
    life = made_life(start=(10.2, 10.2), frames=6, stages=range(6))
    texture = painted([life], ProceduralSettings(mask_level=level)).texture[0]
    here = distance() <= 10.2 * np.cos(np.pi / 60)
    means = torch.stack([frame[here].mean() for frame in texture])
    torch.testing.assert_close(means, torch.full((6,), level), rtol=0.01, atol=0)
    assert texture.min() > -1e-3


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_memory_is_frame_correlation(memory):
    lives = [made_life(identity=n + 1, frames=4) for n in range(30)]
    settings = ProceduralSettings(memory=memory, fresh=0, nucleoli=(0, 0), clump_share=0)
    film = chromatin(lives, settings)
    here = inside(lives[0], 0, inset=1)
    for lag in (1, 2, 3):
        found = correlation(film[:, lag:], film[:, :-lag], here)
        assert found == pytest.approx(memory**lag, abs=0.05)


@pytest.mark.parametrize(("clump_share", "kept"), [(0.0, 0.6), (1.0, 1.0)])
def test_fresh_is_new_grain(clump_share, kept):
    lives = [made_life(identity=n + 1, frames=3) for n in range(30)]
    settings = ProceduralSettings(
        memory=1, fresh=0.4, nucleoli=(0, 0), clump_share=clump_share, clumps=3.0
    )
    film, here = chromatin(lives, settings), inside(lives[0], 0, inset=1)
    for lag in (1, 2):
        assert correlation(film[:, lag:], film[:, :-lag], here) == pytest.approx(kept, abs=0.05)


def test_texture_follows_its_flow():
    life = made_life(start=(13.0, 9.0), growth=0.06)
    # Coarse, so that reading it at the places of the flow changes nothing.
    settings = ProceduralSettings(
        memory=1, fresh=0, grain=3.0, nucleolus_size=4, contrast=(0.3,) * 6
    )
    film = chromatin([life], settings)
    flow = painted([life], settings).flow
    for frame in range(3):
        here = inside(life, frame, inset=1)
        now, before = film[:, frame + 1], film[:, frame]
        moved = warp(before[None], flow[:, frame])[0]
        assert correlation(now, moved, here) > 0.999
        assert correlation(now, before, here) < 0.99
        error, unmoved = ((each - now)[:, here].std() for each in (moved, before))
        assert error < 0.2 * unmoved


@pytest.mark.parametrize("stage", [0, len(PHASES) - 1])
def test_contrast_of_each_stage(stage):
    lives = [made_life(identity=n + 1, frames=2, stages=stage) for n in range(30)]
    contrast = tuple(0.25 if n == stage else 0.0 for n in range(6))
    settings = ProceduralSettings(contrast=contrast, grain=1.0, clump_share=0, nucleoli=(0, 0))
    values = chromatin(lives, settings)[..., inside(lives[0], 0, inset=1)]
    assert float(values.std()) == pytest.approx(0.25, rel=0.1)
    others = ProceduralSettings(**vars(settings) | {"contrast": tuple(0.25 - c for c in contrast)})
    assert float(chromatin(lives, others)[..., inside(lives[0], 0, inset=1)].std()) < 1e-3


def test_nucleoli_dissolve_in_prophase():
    life = made_life(frames=6, stages=range(6))
    settings = ProceduralSettings(contrast=(0.0,) * 6, nucleoli=(1, 1), nucleolus_depth=0.5)
    film = chromatin([life], settings)[0][:, inside(life, 0)]
    depth = 1 - film.amin(1) / film.amax(1)
    assert depth[0] > 0.35
    assert float(depth[1]) == pytest.approx(float(depth[0]) / 2, rel=0.05)
    assert depth[2:].max() < 1e-3


def test_inset_moves_the_edge_inside():
    life = made_life(stages=[0, 1, 2, 3])
    settings = {"inset": (0.0, 1.0, 2.0, 3.0, 0.0, 0.0), **EVEN}
    texture = painted([life], ProceduralSettings(**settings)).texture[0]
    middle = FLOW_SIZE // 2
    edge = texture[:, middle + 10, middle] / texture[:, middle, middle]
    assert (edge.diff() < -0.05).all()


# Clips


def test_method_has_a_name(tiny):
    assert METHODS["procedural"] == tiny().method == ProceduralSettings()
    assert is_same(tiny().clip(0), tiny(method=ProceduralSettings()).clip(0))
    assert not is_same(tiny().clip(0), tiny(method=ProceduralSettings(grain=2)).clip(0))


def test_annotations_of_clips_agree(tiny):
    divisions = 0
    for seed in range(3):
        for index in range(3):
            clip = tiny(seed=seed, nuclei=3).clip(index)
            check_clip(clip)
            assert clip["flow"].any()
            parents = clip["tracks"][:, 3]
            divisions += int((parents[parents > 0].bincount() == 2).sum())
    assert divisions > 0


def test_unusual_clips_are_valid(tiny):
    for changes in ({"frames": 1}, {"nuclei": 0}):
        check_clip(tiny(**changes).clip(0))


def test_no_network_is_run(tiny, monkeypatch):
    def refuse(*_, **__):
        pytest.fail("a network was run")

    for network in (Denoiser, Student, UNet, FlowNet):
        monkeypatch.setattr(network, "forward", refuse)
    check_clip(tiny().clip(0))
    for method in ("fast", "paper"):
        with pytest.raises(pytest.fail.Exception, match="a network was run"):
            tiny(method=method).clip(0)


# Doors


def test_black_nucleus_has_finite_light(tiny_model):
    black = ProceduralSettings(nucleoli=(20, 20), nucleolus_depth=1.0, nucleolus_size=16.0)
    videos = SyntheticHeLaVideos(frames=2, size=(96, 96), model=tiny_model, method=black)
    assert videos.clip(0)["video"].isfinite().all()
