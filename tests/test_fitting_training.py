"""The two trainings: what they are fed, what they make small, and how they survive a kill."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fitted import crops_of, filled, train_line
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from bvdm_data.fitting.nuclei import MASK_LEVEL
from bvdm_data.fitting.paper_networks import (
    draw_symmetry,
    normalize_crops,
    split_tracks,
    train_ddpm,
)
from bvdm_data.fitting.training import TrainingSettings, compute_fingerprint, train
from bvdm_data.synth.unet import UNetSettings

SMALL = UNetSettings(channels=(8, 8, 8), middle=1)


# What is fed


def lit_crops(brightness):
    """Return crops of discs with a texture and these mean brightnesses, one track each."""
    draws = np.random.default_rng(0)
    masks = np.stack([filled(np.full(60, 10.0)) for _ in brightness])
    crops = crops_of(masks, range(1, len(brightness) + 1), [0] * len(brightness), brightness)
    spots = draws.uniform(0.5, 1.5, masks.shape)
    light = np.where(masks, spots, 0)
    light *= (np.array(brightness) / light.sum((1, 2)) * masks.sum((1, 2)))[:, None, None]
    crops.light[:] = light
    return crops


def test_normalise_brings_every_nucleus_to_the_level_of_the_flat_mask():
    crops = lit_crops([0.05, 0.1, 0.2, 0.4])
    pictures = normalize_crops(crops, dim_share=0.0).pictures
    assert (pictures.shape, pictures.dtype) == ((4, 1, 96, 96), torch.float16)
    for picture, mask in zip(pictures[:, 0].float().numpy(), crops.masks, strict=True):
        assert picture[mask].mean() == pytest.approx(MASK_LEVEL, rel=1e-3)
        assert not picture[~mask].any()


def test_normalise_leaves_out_the_dimmest_share():
    crops = lit_crops(np.linspace(0.05, 0.4, 8))
    assert normalize_crops(crops).track.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert normalize_crops(crops, dim_share=0.5).track.tolist() == [5, 6, 7, 8]


def test_normalise_clips_what_is_far_brighter_than_the_rest():
    crops = lit_crops([0.1, 0.1])
    crops.light[0, 48, 48] = 5
    assert normalize_crops(crops, most=1.25).pictures.max() == 1.25


def test_normalise_refuses_nuclei_that_are_not_brighter_than_the_background():
    with pytest.raises(ValueError, match=r"brighter than its background, got .* of -0\.0\d+ at"):
        normalize_crops(lit_crops([-0.1, 0.2, 0.3]))


def test_normalise_refuses_a_video_without_a_whole_nucleus():
    with pytest.raises(ValueError, match="must show whole nuclei that belong to tracks, got none"):
        normalize_crops(crops_of(np.zeros((0, 96, 96), bool), [], []))


@pytest.mark.parametrize("seed", [0, 1])
def test_split_tracks_puts_no_track_on_both_sides(seed):
    track = torch.arange(20).repeat_interleave(3)[torch.randperm(60)]
    learn, held = split_tracks(track, share=0.15, seed=seed)
    assert sorted([*learn.tolist(), *held.tolist()]) == list(range(60))
    assert not set(track[learn].tolist()) & set(track[held].tolist())
    assert len(track[held].unique()) == 3


def test_split_tracks_depends_on_the_seed_and_nothing_else():
    track = torch.arange(40)
    assert torch.equal(*(split_tracks(track, share=0.2, seed=3)[1] for _ in range(2)))
    other = split_tracks(track, share=0.2, seed=4)[1]
    assert not torch.equal(split_tracks(track, share=0.2, seed=3)[1], other)


def test_split_tracks_refuses_a_single_track():
    with pytest.raises(ValueError, match="at least 2 tracks are needed to hold some out, got 1"):
        split_tracks(torch.tensor([7, 7, 7]), share=0.15, seed=0)


def test_the_eight_symmetries_are_distinct_and_keep_every_value():
    picture = torch.arange(16.0).view(1, 4, 4)
    seen = {tuple(draw_symmetry(picture, which).flatten().tolist()) for which in range(8)}
    assert len(seen) == 8
    assert torch.equal(draw_symmetry(picture, 0), picture)
    for which in range(8):
        turned = draw_symmetry(picture, which)
        assert turned.mean() == picture.mean()
        assert turned.shape == picture.shape


# Training


def textures(count=8):
    return normalize_crops(lit_crops(np.linspace(0.2, 0.4, count)))


def fitted_texture(folder, steps, **changes):
    training = TrainingSettings(**{"steps": steps, "batch": 2, "check_every": 4} | changes)
    path = folder / "texture.safetensors"
    unet, log = train_ddpm(
        textures(), checkpoint=path, network=SMALL, training=training, progress=False
    )
    return unet.state_dict(), log


def test_a_training_that_is_resumed_equals_an_unbroken_one_bit_for_bit(tmp_path):
    whole, whole_log = fitted_texture(tmp_path / "whole", 4)
    fitted_texture(tmp_path / "broken", 2, check_every=9)
    resumed, log = fitted_texture(tmp_path / "broken", 4)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert log.held_out[-1] == whole_log.held_out[-1]
    states = [load_file(tmp_path / name / "texture.safetensors") for name in ("whole", "broken")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_training_of_another_seed_ends_elsewhere(tmp_path):
    one, _ = fitted_texture(tmp_path / "one", 1)
    other, _ = fitted_texture(tmp_path / "other", 1, seed=1)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_training_is_not_begun_again(tmp_path, monkeypatch):
    before, log = fitted_texture(tmp_path, 2)
    monkeypatch.setattr(torch.optim.RAdam, "step", lambda *_: pytest.fail("trained again"))
    after, again = fitted_texture(tmp_path, 2)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (again.train, again.held_out) == (log.train, log.held_out)


def test_training_leaves_the_global_random_state_alone(tmp_path):
    state = torch.get_rng_state()
    fitted_texture(tmp_path, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_refuses_a_checkpoint_of_another_purpose(tmp_path):
    fitted_texture(tmp_path, 1)
    with pytest.raises(ValueError, match=r"texture\.safetensors belongs to a training with other"):
        fitted_texture(tmp_path, 1, batch=3)


def test_training_refuses_a_checkpoint_with_more_steps_behind_it(tmp_path):
    fitted_texture(tmp_path, 3)
    with pytest.raises(
        ValueError, match=r"steps must be at least the 3 that .*got 2; give another"
    ):
        fitted_texture(tmp_path, 2)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_training_refuses_a_checkpoint_whose_end_is_missing(tmp_path, share):
    fitted_texture(tmp_path, 1)
    path = tmp_path / "texture.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"checkpoint .*texture\.safetensors is damaged.*delete"):
        fitted_texture(tmp_path, 1)


def test_training_refuses_a_file_that_is_no_checkpoint(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "texture.safetensors")
    with pytest.raises(ValueError, match="is damaged"):
        fitted_texture(tmp_path, 1)
    save_file({"weight": torch.zeros(3)}, tmp_path / "texture.safetensors", {"training": "[1]"})
    with pytest.raises(ValueError, match="belongs to a training with other data"):
        fitted_texture(tmp_path, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"save_every": 0}, "save_every must be at least 1, got 0"),
        ({"check_every": -1}, "check_every must be at least 1, got -1"),
        ({"rate": 0.0}, "rate must be above 0, got 0.0"),
        ({"rate": float("nan")}, "rate must be above 0, got nan"),
        ({"average": 1.0}, "average must be from 0 to below 1, got 1.0"),
    ],
)
def test_training_settings_refuse_numbers_that_train_nothing(changes, words):
    with pytest.raises(ValueError, match=words):
        TrainingSettings(**{"steps": 1} | changes)


def test_purpose_of_differs_when_a_part_differs():
    assert compute_fingerprint("a", 1, [2]) == compute_fingerprint("a", 1, [2])
    assert (
        len({compute_fingerprint(*parts) for parts in [("a", 1), ("a", 2), ("a1",), ("a", "1")]})
        == 4
    )


def test_purpose_of_tensors_tells_every_byte():
    data = torch.arange(12.0).view(3, 4)
    assert compute_fingerprint(data) == compute_fingerprint(data.clone())
    others = [data.flip(0), data.view(4, 3), data + 1e-6, data.double()]
    assert compute_fingerprint(data) not in [compute_fingerprint(other) for other in others]


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fitted import train_line
train_line(Path(sys.argv[2]), nap=0.1)
"""


def test_a_killed_training_that_is_started_again_ends_as_an_unbroken_one(tmp_path):
    killed = tmp_path / "killed.safetensors"
    arguments = [sys.executable, "-c", RUN, str(Path(__file__).parent), str(killed)]
    with subprocess.Popen(arguments) as process:
        until = time.monotonic() + 60
        while not killed.exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with safe_open(killed, "pt") as file:
        assert '"step": 7' in file.metadata()["training"]
    ended, log = train_line(killed)
    whole, whole_log = train_line(tmp_path / "whole.safetensors")
    assert torch.equal(ended.weight, whole.weight)
    assert (log.train, log.held_out) == (whole_log.train, whole_log.held_out)
    states = load_file(killed), load_file(tmp_path / "whole.safetensors")
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_averaged_weights_are_kept_and_not_the_last_ones(tmp_path):
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    settings = TrainingSettings(steps=200, rate=0.05, average=0.99, check_every=10)
    log = train(
        network,
        lambda model, step: (model.weight - 1).square().sum(),
        lambda model: float((model.weight - 1).square().sum()),
        settings,
        checkpoint=tmp_path / "line.safetensors",
        purpose="line",
        progress=False,
    )
    state = load_file(tmp_path / "line.safetensors")
    assert torch.equal(state["average.weight"], network.weight)
    assert not torch.equal(state["network.weight"], network.weight)
    assert log.train[-1][1] < log.train[0][1]
    assert [step for step, _ in log.held_out] == list(range(10, 201, 10))
