"""The camera: levels, noise, background, blur and rounding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from bvdm_data.synth import camera as cameras
from bvdm_data.synth.camera import make_gaussian_kernels, make_normal

CPU = torch.device("cpu")


def expose(light, camera, seed=0, **changes):
    """Expose one video [F, H, W]."""
    return expose_batch(light[None], camera, [seed], **changes)[0]


def expose_batch(light, camera, seeds, **changes):
    """Expose videos [B, F, H, W]."""
    noise, normal = torch.full((len(light),), camera.noise), make_normal(torch.tensor([*seeds]))
    videos = torch.from_numpy(light.copy())
    cameras.expose(videos, camera, normal, noise=noise, **changes)
    return videos.numpy()


def dark(*shape):
    return np.zeros(shape, np.float32)


def correlate(video, axis, lag):
    ahead, behind = np.moveaxis(video, axis, 0)[lag:], np.moveaxis(video, axis, 0)[:-lag]
    return float(np.corrcoef(ahead.ravel(), behind.ravel())[0, 1])


def test_video_has_whole_counts(tiny_camera):
    light = np.linspace(0, 1.5, 2 * 40 * 40, dtype=np.float32).reshape(2, 40, 40)
    video = expose(light, tiny_camera)
    counts = video.astype(np.float64) * 4095
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    assert (video.min() >= 0, video.max(), video.dtype) == (True, 1, np.float32)


def test_noise_has_spread_and_row_correlation(tiny_camera):
    camera = replace(tiny_camera, level_spread=0.0, field_spread=0.0, noise=0.01)
    shape = (2, 400, 400)
    video = expose(dark(*shape), camera)
    assert video.mean() == pytest.approx(camera.level, rel=1e-3)
    assert video.std() == pytest.approx(camera.noise, rel=0.01)
    kernel = camera.streak
    for lag in (1, 2):
        expected = float((kernel[lag:] * kernel[:-lag]).sum())
        assert correlate(video, 2, lag) == pytest.approx(expected, abs=0.01)
    for axis in (0, 1):
        assert correlate(video, axis, 1) == pytest.approx(0, abs=0.01)


def test_level_differs_between_videos(tiny_camera):
    camera = replace(tiny_camera, level_spread=0.005, field_spread=0.0, noise=0.0)
    found = expose_batch(dark(300, 2, 2, 2), camera, range(300))
    assert (found == found[:, :1, :1, :1]).all()
    assert found[:, 0, 0, 0].std() == pytest.approx(0.005, rel=0.15)


def test_background_is_smooth(tiny_camera):
    camera = replace(tiny_camera, level_spread=0.0, noise=0.0, field_width=8.0, field_spread=0.01)
    shape = (2, 400, 300)
    video = expose(dark(*shape), camera)
    assert np.array_equal(video[0], video[1])
    assert video[0].std() == pytest.approx(0.01, rel=0.2)
    assert correlate(video[0], 0, 1) > 0.98
    assert abs(correlate(video[0], 0, 60)) < 0.2


def test_glow_spreads_light_around_nuclei(tiny_camera):
    plain = replace(tiny_camera, level=0.0, level_spread=0.0, field_spread=0.0, noise=0.0)
    light = dark(1, 40, 40)
    light[0, 15:25, 15:25] = 0.5
    glowing, sharp = (expose(light, plain, glow=glow)[0] for glow in (True, False))
    for video in (glowing, sharp):
        np.testing.assert_allclose(video[15:25, 15:25], 0.5, atol=1 / 4095)
        assert video[20, 2] == 0
    assert 0.05 < glowing[20, 13] < 0.5
    assert not sharp[20, 13]
    assert not expose(dark(1, 20, 20), plain).any()


@pytest.mark.parametrize(
    ("size", "streak"), [((40, 56), 3), ((7, 61), 4), ((3, 2), 9), ((1, 1), 3)]
)
def test_video_equals_that_of_scipy(tiny_camera, size, streak):
    kernel = np.random.default_rng(3).random(streak)
    camera = replace(tiny_camera, streak=kernel / np.linalg.norm(kernel), field_spread=0.0)
    light = 0.2 * np.random.default_rng(0).random((3, *size)).astype(np.float32) ** 3
    found = expose(light, camera, blur=make_gaussian_kernels([0.6]), glow=True)

    normal = make_normal(torch.tensor([0]))
    normal([len(cameras._make_field_matrix(24.0, n, CPU)[0]) for n in size])
    level = camera.level + camera.level_spread * normal((1,)).item()
    lit = ndimage.gaussian_filter(light, (0, 0.6, 0.6))
    lit = np.maximum(lit, ndimage.gaussian_filter(lit, (0, camera.halo, camera.halo)))
    white = torch.cat([normal((1, *size))[0] for _ in light])
    wanted = lit + level + camera.noise * ndimage.convolve1d(white, camera.streak, axis=2)
    np.testing.assert_allclose(found, np.clip(wanted, 0, 1), atol=0.51 / 4095)


def test_frames_may_be_exposed_together(tiny_camera):
    # 35 pixels are not a whole number of blocks of random numbers.
    one, other = (make_normal(torch.tensor([3, 4])) for _ in range(2))
    frames = [one((1, 5, 7)) for _ in range(4)]
    assert torch.equal(torch.cat(frames, 1), other((4, 5, 7)))
    assert torch.equal(one((1, 1, 1)), other((1, 1, 1)))


def test_batch_equals_single_videos(tiny_camera):
    light = np.random.default_rng(0).random((3, 2, 30, 20)).astype(np.float32)
    together = expose_batch(light, tiny_camera, [5, 6, 7])
    alone = expose_batch(light[1:2], tiny_camera, [6])
    np.testing.assert_allclose(together[1:2], alone, atol=1.1 / 4095)
    assert (together[1:2] != alone).mean() < 0.01
    assert not np.array_equal(expose(light[0], tiny_camera, 1), expose(light[0], tiny_camera, 2))


def test_gaussian_kernels_equal_those_of_scipy():
    assert make_gaussian_kernels([0.0, 0.0]) is None
    kernels = make_gaussian_kernels([0.7, 0.0, 0.3])
    assert kernels.shape == (3, 7)
    assert kernels[1].tolist() == [0, 0, 0, 1, 0, 0, 0]
    point = np.zeros(41)
    point[20] = 1
    for row, width in ((0, 0.7), (2, 0.3)):
        wanted = ndimage.gaussian_filter1d(point, width)[17:24]
        np.testing.assert_allclose(kernels[row], wanted, atol=1e-7)
