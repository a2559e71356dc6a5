import numpy as np
import pytest
import torch
from scipy import ndimage

from bvdm_data.evaluation.segmenter import DARK, LEAST_AREA, augment_plain, augment_strong


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
def test_plain_moves_image_and_labels_alike(size):
    labels = torch.arange(size[0] * size[1], dtype=torch.int32).reshape(size)
    image = labels[None] / labels.numel()
    for seed in range(20):
        lit, moved = augment_plain(image, labels, seeded(seed))
        assert lit.shape[1:] == moved.shape
        assert sorted(moved.shape) == sorted(size)
        assert moved.dtype == torch.int32
        assert moved.is_contiguous()
        assert lit.is_contiguous()
        expected = (moved / labels.numel() - DARK) * gain_of(lit, image) + DARK
        torch.testing.assert_close(lit[0], expected, atol=1e-5, rtol=0)


def test_plain_draws_all_eight_symmetries():
    labels = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    image = labels[None].float()
    turned = [torch.rot90(labels, turns) for turns in range(4)]
    expected = {repr(one.tolist()) for turn in turned for one in (turn, turn.flip(1))}
    found = [repr(augment_plain(image, labels, seeded(seed))[1].tolist()) for seed in range(240)]
    assert set(found) == expected
    assert len(expected) == 8
    assert min(map(found.count, expected)) >= 12  # of 30 expected


def test_plain_gain_stays_in_range():
    image = torch.full((1, 4, 4), DARK)
    image[0, 1, 2] = DARK + 0.5
    gains = []
    for seed in range(200):
        lit, _ = augment_plain(image, torch.zeros(4, 4, dtype=torch.int32), seeded(seed))
        values = lit.flatten().sort().values
        torch.testing.assert_close(values[:-1], torch.full((15,), DARK))
        gains.append(float(values[-1] - DARK) / 0.5)
    assert 0.8 - 1e-5 <= min(gains) < 0.83
    assert 1.2 < max(gains) <= 1.25 + 1e-5
    assert np.mean(np.log(gains)) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("augment", [augment_plain, augment_strong])
def test_augmentation_depends_on_generator_alone(augment):
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


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (80, 80), (50, 33)])
def test_strong_keeps_shape_and_instances(size):
    image, labels = scene(*size)
    for seed in range(15):
        found, moved = augment_strong(image, labels, seeded(seed))
        assert found.shape == image.shape
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()
        assert moved.shape == labels.shape
        assert moved.dtype == torch.int32
        ids, areas = np.unique(moved, return_counts=True)
        assert ids.tolist() == list(range(moved.max() + 1))
        assert (areas[ids > 0] >= LEAST_AREA).all()
        for label in ids[ids > 0]:
            assert ndimage.label(moved.numpy() == label)[1] == 1


def test_strong_splits_and_drops_nuclei():
    labels = torch.zeros(200, 200, dtype=torch.int32)
    labels[75:90, 80:120] = 4  # two nuclei that touch
    labels[90:105, 80:120] = 9
    labels[115:130, 72:84] = labels[115:130, 116:128] = 7  # one nucleus in two pieces
    labels[114:116, 99:102] = 5  # 6 px, at a scale of 1.33 still below 20
    image = DARK + 0.3 * (labels > 0)[None].float()
    y, x = np.mgrid[:200, :200] - 99.5
    near = y**2 + x**2 < 85**2  # copies mirrored at the edge are further off
    for seed in range(40):
        moved = augment_strong(image, labels, seeded(seed))[1].numpy()
        areas = np.bincount(moved[near])[1:]
        areas = areas[areas > 0]
        assert len(areas) == 4
        assert areas.max() < 600 * 1.33**2 * 1.2  # those that touch are not one


def test_strong_keeps_label_and_picture_together():
    image, labels = scene(128, 160)
    for seed in range(40):
        found, moved = augment_strong(image, labels, seeded(seed))
        picture, inside = found[0].numpy(), moved.numpy() > 0
        if not inside.any():
            continue
        core = ndimage.binary_erosion(inside, iterations=2)
        far = ~ndimage.binary_dilation(inside, iterations=3)
        half = (np.median(picture[core]) + np.median(picture[far])) / 2
        # Small cut pieces at the edge have lost their labels and stay bright.
        assert np.mean(picture[core] > half) > 0.99
        assert np.mean(picture[far] < half) > 0.98
        assert half > DARK


def test_strong_turns_scales_and_mirrors():
    labels = torch.zeros(200, 200, dtype=torch.int32)
    labels[70:130, 85:97] = 1  # an L, which is not its own mirror image
    labels[118:130, 85:117] = 1
    image = DARK + 0.3 * (labels > 0)[None].float()
    row, column = np.mgrid[:200, :200] - 99.5
    near = row**2 + column**2 < 85**2  # copies mirrored at the edge are further off
    angles, hands, areas = [], [], []
    for seed in range(60):
        inside = (augment_strong(image, labels, seeded(seed))[1].numpy() > 0) & near
        y, x = (part - part.mean() for part in np.nonzero(inside))
        areas.append(len(y) / int(labels.sum()))
        angles.append(0.5 * np.arctan2(2 * (x * y).mean(), (x * x - y * y).mean()))
        long = np.cos(angles[-1]) * x + np.sin(angles[-1]) * y
        wide = -np.sin(angles[-1]) * x + np.cos(angles[-1]) * y
        # Of the third moments along and across, mirroring changes the sign of one.
        hands.append(np.sign((long**3).mean() * (wide**3).mean()))
    assert np.histogram(angles, 6, (-np.pi / 2, np.pi / 2))[0].min() > 0
    assert 15 < hands.count(1) < 45
    assert 0.75**2 * 0.9 < min(areas) < 0.7
    assert 1.4 < max(areas) < 1.33**2 * 1.1


def test_strong_keeps_discs_round():
    row, column = np.mgrid[:120, :220]
    disc = (row - 59.5) ** 2 + (column - 109.5) ** 2 < 20**2
    labels = torch.from_numpy(disc.astype(np.int32))
    for seed in range(20):
        moved = augment_strong(0.3 * labels[None].float(), labels, seeded(seed))[1].numpy() > 0
        moved &= (row - 59.5) ** 2 + (column - 109.5) ** 2 < 50**2  # no mirrored copy
        small, large = np.linalg.eigvalsh(np.cov(np.nonzero(moved)))
        assert small > 0.6 * large  # the picture's sides are as 1 to 1.8, squared 3.4


def test_strong_mirrors_beyond_the_edge():
    labels = torch.ones(64, 96, dtype=torch.int32)
    image = torch.full((1, 64, 96), 0.3)
    for seed in range(20):
        found, moved = augment_strong(image, labels, seeded(seed))
        assert (moved == 1).all()
        assert float(found.std()) < 0.01  # noise alone: nothing dark has come in
    image = torch.full((1, 40, 50), DARK)
    found, moved = augment_strong(image, torch.zeros(40, 50, dtype=torch.int32), seeded(0))
    assert not moved.any()
    assert torch.isfinite(found).all()


def test_strong_changes_contrast_not_background():
    image, labels = scene(128, 128)
    levels, contrasts = [], []
    for seed in range(60):
        found, moved = augment_strong(image, labels, seeded(seed))
        far = ~ndimage.binary_dilation(moved.numpy() > 0, iterations=4)
        levels.append(float(found[0][torch.from_numpy(far)].median()))
        contrasts.append(float(found[0][moved > 0].median()) - levels[-1])
    # Brightness moves it by -0.01 to 0.02, which gamma 0.8 makes -0.026 to 0.044.
    assert DARK - 0.03 < min(levels) < max(levels) < DARK + 0.05
    assert max(contrasts) > 2 * min(contrasts) > 0
