"""Videos of large nuclei: pooled for the fit, and clips as large as the video's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bvdm_data import weights
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.fitting import denoiser, pooling
from bvdm_data.fitting.fit import FitSettings, _Steps, fit
from bvdm_data.fitting.pooling import choose_pooling, enlarge_model, pool_video
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.fitting.video import Frame, Video
from tests.helpers.fitted import fitted_video, quick_memory, write_fitted

QUICK = TrainingSettings(steps=2, batch=2)
SHORT = FitSettings(painter=QUICK, distilled=QUICK, pairs=8, border=10, stop=24)


def make_video(masks):
    grey = np.arange(masks.size, dtype=np.float32).reshape(masks.shape)
    return Video((Frame(0, grey, masks, grey / 2),), np.array([[1, 0, 0, 0]]))


@pytest.mark.parametrize(("side", "factor"), [(64, 1), (65, 2), (128, 2), (384, 6)])
def test_large_nuclei_are_pooled(side, factor):
    masks = np.zeros((400, 90), np.int32)
    masks[5 : 5 + side, 5:65] = 1
    assert choose_pooling(make_video(masks)) == factor


def test_huge_nuclei_are_refused():
    masks = np.ones((400, 90), np.int32)
    with pytest.raises(ValueError, match=r"at most 384 px across, got 400 .* down to 0\.96 of its"):
        choose_pooling(make_video(masks))


def test_pixels_are_averaged_and_outvoted():
    masks = np.array([[0, 1, 2, 2, 5], [1, 1, 2, 0, 5], [7, 7, 7, 7, 7]], np.int32)
    (frame,) = pool_video(make_video(masks), 2).frames
    assert (frame.masks.tolist(), frame.masks.dtype) == ([[1, 2]], np.int32)
    np.testing.assert_array_equal(frame.grey, [[3, 5]])
    np.testing.assert_array_equal(frame.background, [[1.5, 2.5]])


@pytest.fixture
def large(tiny_generator):
    """Return a model whose nuclei are twice as long as the tiny one's."""
    return enlarge_model(tiny_generator, 2, tiny_generator.camera)


def test_clips_show_large_nuclei(large, tiny_generator, tmp_path):
    path = tmp_path / "large.safetensors"
    weights.save(replace(large, unet=None, flownet=None), path)
    model = weights.load(path)
    assert model.pooling == model.distilled.settings.pooling == 2
    assert tiny_generator.pooling == 1
    assert model.nucleus_diameter == pytest.approx(2 * tiny_generator.nucleus_diameter)
    videos = SyntheticHeLaVideos(
        model=path, frames=3, size=160, annotations=("masks", "tracks", "flow"), variation=0
    )
    clip = videos.clip(0)
    check_clip(clip)
    masks, light = clip["masks"], clip["video"][:, 0]
    area = torch.bincount(masks.flatten())[1:].max() / 3
    assert area > 2 * tiny_generator.nucleus_area
    assert light[masks > 0].mean() > light[masks == 0].mean()
    with pytest.raises(ValueError, match="method must be 'fast' with a model of nuclei that are"):
        SyntheticHeLaVideos(model=path, method="procedural")


@pytest.mark.heavy
def test_fits_are_of_the_pooled_video(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        quick_memory(patch)
        patch.setattr(denoiser, "_CHECKED", 16)
        patch.setattr(pooling, "LARGEST", 30)
        counts, masks, tracks = fitted_video()
        big = (image.repeat(2, 1).repeat(2, 2) for image in (counts, masks))
        write_sequence(tmp_path / "big", "01", *big, tracks)
        small = fit(
            write_fitted(tmp_path / "told"), tmp_path / "s.safetensors", settings=SHORT,
            progress=False,
        )  # fmt: skip
        twice = replace(SHORT, border=20)
        large = fit(tmp_path / "big", tmp_path / "m.safetensors", settings=twice, progress=False)
    assert (small.pooling, large.pooling, large.card["measured"]["pooling"]) == (1, 2, 2)
    assert large.card["data"]["size"] == [400, 480]
    np.testing.assert_allclose(large.shapes.mean, 2 * small.shapes.mean)
    np.testing.assert_allclose(large.lives.adult_area, 4 * small.lives.adult_area)
    np.testing.assert_allclose(large.motion.density, small.motion.density / 4)
    np.testing.assert_allclose(large.motion.step, small.motion.step * [2, 1])
    steps = _Steps(replace(SHORT, paper=True), None, None, tmp_path, torch.device("cpu"), None)
    steps.pooling = 2
    with pytest.raises(ValueError, match="at most 64 px across for the paper's method"):
        steps.prepare_paper_networks(None)
