import numpy as np
import pytest
import torch

from bvdm_data.evaluation.segmenter import DARK, augment


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def scene(height=96, width=128, seed=0):
    """Bright discs of different size on dark noise, and their labels."""
    draw = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    y, x = np.mgrid[:height, :width]
    for row in range(16, height - 8, 32):
        for column in range(16, width - 8, 32):
            inside = (y - row) ** 2 + (x - column) ** 2 < draw.uniform(7, 11) ** 2
            labels[inside] = labels.max() + 3  # ids with gaps
    image = DARK + draw.normal(0, 0.002, labels.shape) + 0.3 * (labels > 0)
    return torch.from_numpy(image[None].astype(np.float32)), torch.from_numpy(labels)


def gain_of(lit, image):
    return float((lit - DARK).abs().sum() / (image - DARK).abs().sum())


@pytest.mark.parametrize("size", [(40, 40), (24, 40), (31, 18)])
def test_augmentation_moves_image_and_labels_alike(size):
    labels = torch.arange(size[0] * size[1], dtype=torch.int32).reshape(size)
    image = labels[None] / labels.numel()
    for seed in range(20):
        lit, moved = augment(image, labels, seeded(seed))
        assert lit.shape[1:] == moved.shape
        assert sorted(moved.shape) == sorted(size)
        assert moved.dtype == torch.int32
        assert moved.is_contiguous()
        assert lit.is_contiguous()
        expected = (moved / labels.numel() - DARK) * gain_of(lit, image) + DARK
        torch.testing.assert_close(lit[0], expected, atol=1e-5, rtol=0)


def test_augmentation_draws_all_eight_symmetries():
    labels = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    image = labels[None].float()
    turned = [torch.rot90(labels, turns) for turns in range(4)]
    expected = {repr(one.tolist()) for turn in turned for one in (turn, turn.flip(1))}
    found = [repr(augment(image, labels, seeded(seed))[1].tolist()) for seed in range(240)]
    assert set(found) == expected
    assert len(expected) == 8
    assert min(map(found.count, expected)) >= 12  # of 30 expected


def test_plain_gain_stays_in_range():
    image = torch.full((1, 4, 4), DARK)
    image[0, 1, 2] = DARK + 0.5
    gains = []
    for seed in range(200):
        lit, _ = augment(image, torch.zeros(4, 4, dtype=torch.int32), seeded(seed))
        values = lit.flatten().sort().values
        torch.testing.assert_close(values[:-1], torch.full((15,), DARK))
        gains.append(float(values[-1] - DARK) / 0.5)
    assert 0.8 - 1e-5 <= min(gains) < 0.83
    assert 1.2 < max(gains) <= 1.25 + 1e-5
    assert np.mean(np.log(gains)) == pytest.approx(0, abs=0.03)


def test_augmentation_depends_on_generator_alone():
    image, labels = scene()
    before = image.clone(), labels.clone()
    first = augment(image, labels, seeded(5))
    torch.rand(3)
    state = torch.get_rng_state()
    again = augment(image, labels, seeded(5))
    other = augment(image, labels, seeded(6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(image, before[0])
    assert torch.equal(labels, before[1])
