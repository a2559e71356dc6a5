"""The training loop: how it averages, is continued, survives a kill, and refuses checkpoints."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from bvdm_data.fitting import training


def compute_loss(model, step, nap=0.0):
    time.sleep(nap)
    noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return (model(noise) - noise.roll(1, 1)).square().mean()


LOSSES = (compute_loss, lambda model: float(model.weight.square().sum()))


def learn(folder, steps, *, data=(), start=None, **changes):
    """Train a matrix; return its weights and the log."""
    settings = training.TrainingSettings(
        **{"steps": steps, "rate": 0.05, "check_every": 4} | changes
    )
    run = training.Run(folder / "line.pt", progress=False)
    network, log = training.train_network(
        "line", lambda: nn.Linear(4, 4), lambda _: LOSSES, settings, run, data=data, start=start
    )
    return network.state_dict(), log


def are_same(first, second):
    """Compare nested states of networks and optimisers."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(are_same(first[k], second[k]) for k in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def drop_count(state):
    return {name: value for name, value in state.items() if name != "n_averaged"}


def load_states(path):
    state = torch.load(path, weights_only=True)
    return {name: state[name] for name in ("step", "network", "average", "optimizer")}


# Rows


def test_split_puts_tracks_on_one_side():
    track = torch.arange(20).repeat_interleave(3)[torch.randperm(60)]
    learn, held = training.split_tracks(track, 0)
    assert sorted([*learn.tolist(), *held.tolist()]) == list(range(60))
    assert not set(track[learn].tolist()) & set(track[held].tolist())
    assert len(track[held].unique()) == round(training.HELD_OUT * 20)
    assert torch.equal(training.split_tracks(track, 0)[1], held)
    assert not torch.equal(training.split_tracks(track, 2)[1], held)
    with pytest.raises(ValueError, match="at least 2 tracks are needed to hold some out, got 1"):
        training.split_tracks(torch.tensor([7, 7, 7]), 0)


def test_rows_are_drawn_evenly_by_group():
    rows, key = torch.arange(1, 12), torch.tensor([9, *[5] * 10, 7])
    groups = training.group_rows(rows, key)
    assert {name: own.tolist() for name, own in groups.items()} == {5: [*range(1, 11)], 7: [11]}
    drawn = training.draw_rows([*groups.values()], 2000, torch.Generator().manual_seed(0))
    assert set(drawn) == set(range(1, 12))
    assert drawn.count(11) == pytest.approx(1000, abs=100)


# Training


def test_resumed_training_equals_unbroken_one(tmp_path):
    whole, whole_log = learn(tmp_path / "whole", 4)
    learn(tmp_path / "broken", 2, check_every=9)
    resumed, log = learn(tmp_path / "broken", 4)
    assert are_same(whole, resumed)
    assert log.held_out[-1] == whole_log.held_out[-1]
    states = [load_states(tmp_path / name / "line.pt") for name in ("whole", "broken")]
    assert are_same(*states)
    # What is kept is the moving average of the weights.
    assert are_same({f"module.{k}": v for k, v in whole.items()}, drop_count(states[0]["average"]))
    assert not are_same(whole, states[0]["network"])
    assert not are_same(whole, learn(tmp_path / "other", 4, seed=1)[0])


def test_training_continues_from_a_start(tmp_path):
    start = nn.Linear(4, 4)
    kept = {name: value.clone() for name, value in start.state_dict().items()}
    near, _ = learn(tmp_path, 1, start=start, rate=1e-9)
    assert are_same(start.state_dict(), kept)
    for name in near:
        torch.testing.assert_close(near[name], kept[name], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"line\.pt belongs to a training with other data"):
        learn(tmp_path, 1, start=nn.Linear(4, 4), rate=1e-9)


# Kill


RUN = """
import sys
from pathlib import Path
from tests import test_fitting_training as this
this.LOSSES = (lambda *given: this.compute_loss(*given, nap=0.3), this.LOSSES[1])
this.learn(Path(sys.argv[1]), 12, save_every=3)
"""


@pytest.mark.heavy
def test_killed_training_ends_as_unbroken_one(tmp_path):
    killed = tmp_path / "killed" / "line.pt"
    command = [sys.executable, "-c", RUN, str(killed.parent)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as process:
        until = time.monotonic() + 60
        while not killed.exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert torch.load(killed, weights_only=True)["step"] == 3
    ended, log = learn(killed.parent, 12, save_every=3)
    unbroken, whole_log = learn(tmp_path, 12)
    assert are_same(ended, unbroken)
    assert (log.train, log.held_out) == (whole_log.train, whole_log.held_out)
    assert are_same(load_states(killed), load_states(tmp_path / "line.pt"))


# Errors


def test_training_refuses_other_data_or_settings(tmp_path):
    learn(tmp_path, 3)
    with pytest.raises(ValueError, match=r"steps must be at least the 3 that .*got 2; give anoth"):
        learn(tmp_path, 2)
    words = r"line\.pt belongs to a training with other data or settings; give another --work-dir"
    one, other = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(3, 2)
    assert (
        training.compute_fingerprint(one)
        == training.compute_fingerprint(one.clone())
        != training.compute_fingerprint(other)
    )
    for changes in ({"batch": 3}, {"data": (torch.zeros(2),)}, {"seed": 1}):
        with pytest.raises(ValueError, match=words):
            learn(tmp_path, 3, **changes)


def test_training_refuses_damaged_checkpoints(tmp_path):
    path = tmp_path / "line.pt"
    learn(tmp_path, 1)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"checkpoint .*line\.pt is damaged.*delete it"):
            learn(tmp_path, 1)
    for content in ({"weight": torch.zeros(3)}, [1]):
        torch.save(content, path)
        with pytest.raises(ValueError, match="belongs to a training with other data"):
            learn(tmp_path, 1)
    path.write_bytes(whole)
    state = torch.load(path, weights_only=True)
    bad = {"weight": torch.full((4, 4), torch.nan), "bias": torch.zeros(4)}
    for changes, why in (
        ({"step": -1}, "step must be 1 or more"),
        ({"step": "1"}, "step must be a whole number"),
        ({"network": bad}, "'network' must hold finite numbers"),
        ({"network": {"weight": torch.zeros(3)}}, "Missing key"),
        ({"optimizer": {}}, "KeyError"),
        ({"log": {"train": [], "hours": 1}}, "unexpected keyword argument 'hours'"),
        ({"log": {"seconds": torch.nan}}, "seconds must be at least 0, got nan"),
        ({"average": 3}, "TypeError"),
    ):
        torch.save(state | changes, path)
        with pytest.raises(ValueError, match=rf"line\.pt is damaged \(.*{why}"):
            learn(tmp_path, 1)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="no regular file"):
        learn(tmp_path, 1)


def test_diverging_training_ends_at_once(tmp_path, monkeypatch):
    def compute_diverging(model, step):
        return compute_loss(model, step) * (1.0 if step < 2 else torch.nan)

    monkeypatch.setattr(f"{__name__}.LOSSES", (compute_diverging, LOSSES[1]))
    with pytest.raises(
        ValueError, match="'line' must have a finite loss, got nan at step 3: it has"
    ):
        learn(tmp_path, 9, save_every=1)
    assert load_states(tmp_path / "line.pt")["step"] == 2


def test_settings_refuse_what_trains_nothing():
    for changes, words in (
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"check_every": -1}, "check_every must be at least 1, got -1"),
        ({"rate": float("nan")}, "rate must be above 0, got nan"),
        ({"average": 1.0}, "average must be from 0 to below 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            training.TrainingSettings(**{"steps": 1} | changes)
