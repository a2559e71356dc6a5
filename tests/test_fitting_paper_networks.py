"""Training of the paper's networks: normalised crops, mask pairs, losses, what is learnt."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bvdm_data.fitting import paper_networks as networks
from bvdm_data.fitting.nuclei import MASK_LEVEL, Lineage
from bvdm_data.fitting.training import Run, TrainingSettings
from bvdm_data.synth.networks import UNetSettings
from tests.helpers.fitted import crops_of, ellipse, filled


def lit_crops(brightness):
    """Return crops of discs with a texture and these mean brightnesses, one track each."""
    masks = np.stack([filled(np.full(60, 10.0)) for _ in brightness])
    crops = crops_of(masks, range(1, len(brightness) + 1), [0] * len(brightness), brightness)
    light = np.where(masks, np.random.default_rng(0).uniform(0.5, 1.5, masks.shape), 0)
    light *= (np.array(brightness) / light.sum((1, 2)) * masks.sum((1, 2)))[:, None, None]
    crops.light[:] = light
    return crops


def test_crops_are_normalised_to_flat_mask():
    crops = lit_crops(np.linspace(0.05, 0.4, 8))
    crops.light[7, 48, 48] = 5
    images, track = networks.normalize_crops(crops)
    # The dimmest eighth is left out, and what is far brighter than the rest is clipped.
    assert track.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert (images.shape, images.dtype) == ((7, 1, 96, 96), torch.float16)
    images = images[:, 0].float().numpy()
    assert images.max() == networks.BRIGHTEST
    for image, mask in zip(images[:-1], crops.masks[1:], strict=False):
        assert image[mask].mean() == pytest.approx(MASK_LEVEL, rel=1e-3)
        assert not image[~mask].any()
    with pytest.raises(ValueError, match=r"brighter than its background, got .* of -0\.0\d+ at"):
        networks.normalize_crops(lit_crops([-0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="must show whole nuclei that belong to tracks, got none"):
        networks.normalize_crops(crops_of(np.zeros((0, 96, 96), bool), [], []))


def test_ddpm_trains_on_normalised_crops(tmp_path):
    settings = TrainingSettings(steps=1, batch=2)
    small = UNetSettings(channels=(8, 8, 8), middle=1)
    run = Run(tmp_path / "texture.pt", progress=False)
    crops = networks.normalize_crops(lit_crops(np.linspace(0.2, 0.4, 8)))
    unet, log = networks.train_ddpm(crops, settings, run, small)
    assert unet.settings == small
    # Weights that are drawn anew predict noise about as badly as zeros do.
    assert log.held_out[0][1] == pytest.approx(1, abs=0.3)
    with pytest.raises(ValueError, match="belongs to a training with other data or settings"):
        networks.train_ddpm(
            networks.normalize_crops(lit_crops(np.linspace(0.2, 0.5, 8))), settings, run, small
        )


def test_mask_pairs_are_one_frame_apart():
    masks = np.stack([filled(np.full(60, radius)) for radius in (8.0, 9.0, 10.0, 11.0, 12.0)])
    crops = crops_of(masks, [1, 2, 1, 2, 1], [0, 0, 1, 1, 3])
    none = np.zeros((0, 4), np.int32)
    pairs, track = networks.make_mask_pairs(crops, Lineage(none, crops.track, crops.frame))
    assert track.tolist() == [1, 2]
    assert pairs.shape == (2, 2, 32, 32)
    areas = masks.sum((1, 2))
    assert pairs.sum((2, 3)).tolist() == [[areas[0], areas[2]], [areas[1], areas[3]]]
    with pytest.raises(ValueError, match="a nucleus in two consecutive frames, got none"):
        networks.make_mask_pairs(crops, Lineage(none, crops.track, 2 * crops.frame))


class Still(nn.Module):
    """A network whose flow is the same everywhere."""

    def __init__(self, dy=0.0, dx=0.0):
        super().__init__()
        self.step = torch.tensor([dy, dx])[None, :, None, None]

    def forward(self, source, target):
        return self.step.expand(len(source), 2, *source.shape[-2:])


def shifted_discs(count=24):
    """Return pairs of discs, the second 3 px down and 1 px left of the first."""
    rng = np.random.default_rng(0)
    discs = [filled(ellipse(r, r), side=32) for r in rng.uniform(6, 9, count)]
    pairs = np.stack([np.stack([disc, np.roll(disc, (3, -1), (0, 1))]) for disc in discs])
    return torch.from_numpy(pairs), torch.arange(count)


def test_flow_loss_and_iou_of_truth():
    masks = shifted_discs()[0]
    wanted = F.mse_loss(masks[:, :1].float(), masks[:, 1:].float())
    assert float(networks._compute_flow_loss(Still(), masks)) == pytest.approx(float(wanted))
    assert float(networks._compute_flow_loss(Still(-3.0, 1.0), masks)) < 1e-6
    iou = networks._measure_flow_iou(Still(-3.0, 1.0), masks)
    assert iou["overlap_after"] == pytest.approx(1)
    assert iou["overlap_before"] < 0.75


def test_flownet_learns_the_next_mask(tmp_path):
    training = TrainingSettings(steps=40, batch=8, rate=1e-2, average=0.8, check_every=10)
    run = Run(tmp_path / "flow.pt", progress=False)
    _, log, iou = networks.train_flownet(shifted_discs(), training, run)
    assert log.held_out[-1][1] < 0.85 * log.held_out[0][1]
    assert iou["overlap_after"] > iou["overlap_before"] + 0.01
    assert iou["held_out_pairs"] == 4
    with pytest.raises(ValueError, match="belongs to a training with other data or settings"):
        networks.train_flownet(shifted_discs(25), training, run)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flownet_returns_from_the_gpu(tmp_path):
    run = Run(tmp_path / "flow.pt", torch.device("cuda"), progress=False)
    network, _, _ = networks.train_flownet(shifted_discs(), TrainingSettings(steps=3, batch=4), run)
    assert next(network.parameters()).device.type == "cpu"
