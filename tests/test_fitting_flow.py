"""FlowNet's training: pairs of masks, the loss, and what is learned."""

import numpy as np
import pytest
import torch
from fitted import crops_of, ellipse, filled
from torch import nn
from torch.nn import functional as F

from bvdm_data.fitting.paper_networks import (
    MaskPairs,
    compute_flow_loss,
    make_mask_pairs,
    measure_flow_iou,
    train_flownet,
)
from bvdm_data.fitting.training import TrainingSettings


def test_pair_masks_pairs_each_nucleus_with_itself_one_frame_later():
    masks = np.stack([filled(np.full(60, radius)) for radius in (8.0, 9.0, 10.0, 11.0, 12.0)])
    pairs = make_mask_pairs(crops_of(masks, [1, 2, 1, 2, 1], [0, 0, 1, 1, 3]))
    assert pairs.track.tolist() == [1, 2]
    assert pairs.masks.shape == (2, 2, 32, 32)
    areas = masks.sum((1, 2))
    assert pairs.masks.sum((2, 3)).tolist() == [[areas[0], areas[2]], [areas[1], areas[3]]]


def test_pair_masks_refuses_nuclei_that_are_never_seen_twice_in_a_row():
    masks = np.stack([filled(np.full(60, 8.0))] * 2)
    with pytest.raises(ValueError, match="a nucleus in two consecutive frames, got none"):
        make_mask_pairs(crops_of(masks, [1, 1], [0, 2]))


class Still(nn.Module):
    """A network whose flow is the same everywhere."""

    def __init__(self, dy=0.0, dx=0.0):
        super().__init__()
        self.step = torch.tensor([dy, dx])[None, :, None, None]

    def forward(self, source, target):
        return self.step.expand(len(source), 2, *source.shape[-2:])


def shifted_discs(count=24):
    """Return pairs of discs, the second 3 px down and 1 px left of the first."""
    draws = np.random.default_rng(0)
    discs = [filled(ellipse(r, r), side=32) for r in draws.uniform(6, 9, count)]
    pairs = np.stack([np.stack([disc, np.roll(disc, (3, -1), (0, 1))]) for disc in discs])
    return MaskPairs(torch.from_numpy(pairs), torch.arange(count))


def test_flow_loss_of_no_flow_is_the_mean_squared_difference_of_the_masks():
    masks = shifted_discs().masks
    plain = F.mse_loss(masks[:, :1].float(), masks[:, 1:].float())
    assert float(compute_flow_loss(Still(), masks)) == pytest.approx(float(plain), rel=1e-6)


def test_flow_loss_of_the_true_flow_is_nothing():
    assert float(compute_flow_loss(Still(-3.0, 1.0), shifted_discs().masks)) < 1e-6


def test_mask_overlap_of_the_true_flow_is_one():
    found = measure_flow_iou(Still(-3.0, 1.0), shifted_discs().masks)
    assert found.after == pytest.approx(1)
    assert found.before < 0.75
    assert found.pairs == 24


def test_fit_flow_learns_to_bring_a_mask_onto_the_next(tmp_path):
    training = TrainingSettings(steps=60, batch=8, rate=1e-2, average=0.8, check_every=10)
    _, log, overlap = train_flownet(
        shifted_discs(), checkpoint=tmp_path / "f.safetensors", training=training, progress=False
    )
    assert log.held_out[-1][1] < 0.85 * log.held_out[0][1]
    assert overlap.after > overlap.before + 0.01
    assert overlap.pairs == 4


def test_fit_flow_refuses_a_checkpoint_of_other_masks(tmp_path):
    path, training = tmp_path / "flow.safetensors", TrainingSettings(steps=1)
    train_flownet(shifted_discs(4), checkpoint=path, training=training, progress=False)
    with pytest.raises(ValueError, match="belongs to a training with other data or settings"):
        train_flownet(shifted_discs(5), checkpoint=path, training=training, progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fit_flow_trains_on_a_gpu_and_gives_the_network_back_on_the_cpu(tmp_path):
    few = TrainingSettings(steps=3, batch=4, rate=1e-4, average=0.9, check_every=2)
    pairs = shifted_discs()
    network, _, _ = train_flownet(
        pairs,
        checkpoint=tmp_path / "flow.safetensors",
        training=few,
        device=torch.device("cuda"),
        progress=False,
    )
    assert next(network.parameters()).device.type == "cpu"
