"""CellCycleGAN: who learns from what, training that resumes, clips that are painted anew."""

import pytest
import torch

from bvdm_data.clip import CameraScale
from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation import cell_cycle_gan
from bvdm_data.fitting import denoiser
from bvdm_data.fitting.training import Run, TrainingSettings
from tests.conftest import TINY_DISTILLED

SCALE = CameraScale(32768, 36863)


@pytest.fixture
def train(monkeypatch, tiny_ctc, tmp_path):
    monkeypatch.setattr(denoiser, "_CHECKED", 4)

    def run(steps, name="gan"):
        settings = TrainingSettings(steps=steps, batch=2)
        source, run = read_sequence(tiny_ctc, "01"), Run(tmp_path / f"{name}.pt", progress=False)
        return cell_cycle_gan.train_cell_cycle_gan(source, SCALE, TINY_DISTILLED, run, settings)

    return run


def test_networks_learn_from_their_own_loss():
    network = cell_cycle_gan._GAN(TINY_DISTILLED)
    own = [*network.discriminator.parameters()]
    picture, condition = torch.zeros(1, 1, 16, 16, requires_grad=True), torch.zeros(1, 8, 16, 16)
    network.judge(picture, condition, learn=False).sum().backward()
    assert picture.grad.abs().sum() > 0
    assert all(value.grad is None for value in own)
    network.judge(picture.detach(), condition, learn=True).sum().backward()
    assert all(value.grad is not None for value in own)


def test_broken_training_equals_unbroken_one(train):
    short = train(1, "broken")
    broken, whole = train(2, "broken"), train(2, "whole")
    assert broken.digest == whole.digest
    # The digest stands for the weights where clips are kept.
    assert repr(short) != repr(whole)


def test_frames_are_painted_from_new_noise(train, tiny_model, monkeypatch):
    noise = []
    paint = cell_cycle_gan.Student.forward
    monkeypatch.setattr(
        cell_cycle_gan.Student, "forward", lambda *x: noise.append(x[1]) or paint(*x)
    )
    method = train(1)
    options = {"frames": 3, "size": (96, 96), "model": tiny_model, "nuclei": 1, "variation": 0}
    noise.clear()
    clip = SyntheticHeLaVideos(method=method, **options).clip(0)
    flat = torch.cat([drawn[..., :32, :32] for drawn in noise]).flatten(1)
    assert len(flat) > 2
    assert (torch.corrcoef(flat) - torch.eye(len(flat))).abs().max() < 0.15
    # Scenes are those of the paper's method.
    other = SyntheticHeLaVideos(method="procedural", **options).clip(0)
    assert torch.equal(clip["masks"], other["masks"])
    assert not torch.equal(clip["video"], other["video"])
