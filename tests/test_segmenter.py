import io

import numpy as np
import pytest
import torch

from bvdm_data.evaluation.segmenter import (
    NUCLEUS_AREA,
    Samples,
    Segmenter,
    SegmenterOutput,
    SegmenterSettings,
    compute_segmentation_loss,
    make_targets,
    normalize,
    predict,
    separate_instances,
    train_segmenter,
)

SETTINGS = SegmenterSettings(steps=4, batch=2)


class Discs:
    frames = 1

    def __init__(self, seed=0):
        self.seed = seed

    def clip(self, index):
        draws = np.random.default_rng((self.seed, index))
        masks = np.zeros((64, 64), np.int32)
        y, x = np.mgrid[:64, :64]
        for number in range(1, 5):
            centre = draws.uniform(8, 56, 2)
            masks[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 64] = number
        grey = 0.07 + 0.1 * (masks > 0) + draws.normal(0, 0.002, masks.shape)
        return {
            "video": torch.from_numpy(grey).float()[None, None],
            "masks": torch.from_numpy(masks)[None],
        }


def touching():
    labels = np.zeros((40, 60), np.int32)
    y, x = np.mgrid[:40, :60]
    labels[(y - 20) ** 2 + (x - 20) ** 2 < 100] = 1
    labels[((y - 20) ** 2 + (x - 39) ** 2 < 100) & (labels == 0)] = 2
    return labels


def test_normalize_keeps_dim_nuclei():
    grey = torch.tensor([0.073, 0.098, 0.9])  # background, dimmest nuclei, brightest
    background, dim, bright = normalize(grey).tolist()
    noise = float(normalize(torch.tensor(0.073 + 0.0023)) - background)
    assert dim - background > 8 * noise
    assert bright < 4


def test_targets_fall_between_touching_nuclei():
    foreground, distance = make_targets(touching())
    assert foreground[20, 20] == foreground[20, 39] == 1
    assert distance.max() == pytest.approx(1)
    assert distance[20, 20] > 0.9
    assert distance[20, 29] < 0.3
    assert not distance[foreground == 0].any()
    foreground, distance = make_targets(np.zeros((8, 8), np.int32))
    assert not foreground.any()
    assert not distance.any()


def test_perfect_maps_give_the_nuclei_back():
    labels = touching()
    found = separate_instances(SegmenterOutput(*make_targets(labels)))
    assert found.max() == 2
    for number in (1, 2):
        mine = found == found[labels == number][len(found[labels == number]) // 2]
        both = (mine & (labels == number)).sum()
        assert both / (mine | (labels == number)).sum() > 0.9


def test_instances_drop_crumbs_only():
    foreground = np.zeros((40, 40), np.float32)
    foreground[:10, :10] = 1  # no seed of its own, since its distance is flat
    foreground[30:36, 30:36] = 1
    assert foreground[30:36, 30:36].sum() < NUCLEUS_AREA
    found = separate_instances(SegmenterOutput(foreground, np.zeros((40, 40), np.float32)))
    assert found.max() == 1
    assert (found[:10, :10] == 1).all()


def test_predict_takes_any_size():
    assert round(sum(p.numel() for p in Segmenter().parameters()) / 1e6, 2) == 0.49
    network = Segmenter().eval()
    found = predict(network, np.full((37, 50), 0.1, np.float32))
    assert found.foreground.shape == found.distance.shape == (37, 50)


def test_loss_is_least_for_truth():
    foreground, distance = (torch.from_numpy(one)[None] for one in make_targets(touching()))
    right = torch.stack([20 * (foreground - 0.5), distance], 1)
    wrong = torch.stack([20 * (0.5 - foreground), distance], 1)
    assert compute_segmentation_loss(right, foreground, distance) < 1e-3
    assert compute_segmentation_loss(wrong, foreground, distance) > 1


def test_samples_depend_on_seed_and_number():
    one, two = Samples(Discs(), 3, 10), Samples(Discs(), 3, 10)
    two[5]
    for key, value in one[7].items():
        assert torch.equal(value, two[7][key])
    assert not torch.equal(one[7]["grey"], one[8]["grey"])
    assert not torch.equal(one[7]["grey"], Samples(Discs(), 4, 10)[7]["grey"])
    with pytest.raises(IndexError, match="from 0 to 9, got 10"):
        one[10]


def trained(folder, name, clips, settings):
    place = folder / f"{name}.safetensors"
    return train_segmenter(clips, settings, checkpoint=place, identity="discs", progress=False)


def test_arms_differ_only_in_clips(tmp_path):
    state = torch.get_rng_state()
    one, two, other = (
        trained(tmp_path, name, Discs(seed), SETTINGS).state_dict()
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_statistics_are_those_of_averaged_weights(tmp_path):
    network, first = trained(tmp_path, "one", Discs(), SETTINGS), Samples(Discs(), 0, 8)
    batches = [torch.stack([first[i + j]["grey"] for j in range(2)]) for i in range(0, 8, 2)]
    convolution, norm = network.down[0][:2]
    with torch.no_grad():
        means = [convolution(normalize(batch)).mean((0, 2, 3)) for batch in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=0, atol=5e-3)
    # Weights have moved away from those that the statistics of the training are of.
    states = torch.load(io.BytesIO((tmp_path / "one.safetensors").read_bytes()))["network"]
    assert not torch.allclose(states["down.0.1.running_mean"], norm.running_mean, atol=5e-3)


class Broken(Discs):
    def clip(self, index):
        if index == 110:
            raise KeyboardInterrupt
        return super().clip(index)


@pytest.mark.heavy
def test_interrupted_training_ends_the_same(tmp_path):
    settings = SegmenterSettings(steps=120, batch=1)
    whole = trained(tmp_path, "whole", Discs(), settings)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "broken", Broken(), settings)
    resumed = trained(tmp_path, "broken", Discs(), settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.heavy
def test_training_learns_the_discs(tmp_path):
    settings = SegmenterSettings(steps=100, batch=2, average=0.9)
    network = trained(tmp_path, "discs", Discs(), settings)
    clip = Discs().clip(10**6)
    found = separate_instances(predict(network, clip["video"][0, 0].numpy()))
    truth = clip["masks"][0].numpy() > 0
    assert ((found > 0) & truth).sum() / ((found > 0) | truth).sum() > 0.7
