"""The training loop that all networks share; it is seeded by step and resumes after a kill."""

import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bvdm_data.files import open_atomic
from bvdm_data.fitting.progress import Progress, open_bar
from bvdm_data.rng import torch_rng
from bvdm_data.validate import Rule, as_int, check_fields

CPU = torch.device("cpu")
SAVE_SECONDS = 60.0  # between two checkpoints, at most
HELD_OUT = 0.15  # share of the tracks that no network learns from

Network = TypeVar("Network", bound=nn.Module)
Value = TypeVar("Value")
# The training loss of a network at a step, and its validation loss.
Losses = tuple[Callable[[nn.Module, int], Tensor], Callable[[nn.Module], float]]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how fast a network learns.

    Attributes:
        steps: Optimiser steps.
        batch: Samples a step.
        rate: Learning rate.
        average: Decay of the exponential moving average of the weights; the average is the result.
        seed: Step ``i`` draws from a stream of (seed, i), so a resumed run equals an unbroken one.
        save_every: Steps between two checkpoints; there is one every minute, too.
        check_every: Steps between two held-out losses.
    """

    steps: int
    batch: int = 32
    rate: float = 5e-4
    average: float = 0.999
    seed: int = 0
    save_every: int = 250
    check_every: int = 500

    def __post_init__(self) -> None:
        """Refuse numbers that train nothing."""
        count = Rule(int, least=1)
        check_fields(self, steps=count, batch=count, save_every=count, check_every=count)
        check_fields(self, rate=Rule(float, above=0), average=Rule(float, least=0, below=1))


@dataclass
class TrainingLog:
    """The losses of a training."""

    # step, and mean training loss since the step before
    train: list[tuple[int, float]] = field(default_factory=list)
    # step, and loss of the averaged weights on held-out tracks
    held_out: list[tuple[int, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # training losses since that step
    seconds: float = 0.0  # time spent in all runs together


@dataclass(frozen=True)
class Run:
    """Where a training runs, and what it shows."""

    checkpoint: Path
    device: torch.device = CPU
    progress: bool | Progress = True
    until: float = math.inf  # of the monotonic clock; a training ends there, with fewer steps


def train_network(
    name: str,
    make: Callable[[], Network],
    make_losses: Callable[[Network], Losses],
    settings: TrainingSettings,
    run: Run,
    *,
    data: Sequence[object],
    start: Network | None = None,
) -> tuple[Network, TrainingLog]:
    """Make a network with seeded weights, or those of ``start``, and train it.

    A checkpoint is continued only if ``data``, which the losses stand on, is the same.
    """
    with torch.random.fork_rng(devices=[]):
        weights = torch_rng(settings.seed, name, "weights")
        torch.default_generator.manual_seed(weights.initial_seed())
        network = make()
    before: tuple[Tensor, ...] = ()
    if start is not None:
        network.load_state_dict(start.state_dict())
        before = tuple(value.cpu() for value in start.state_dict().values())
    losses = make_losses(network)
    network.to(run.device)
    purpose = compute_fingerprint(
        name, settings.batch, settings.rate, settings.average, settings.seed, *data, *before
    )
    log = train(network, losses, settings, run, purpose)
    return network.cpu(), log


def train(
    network: nn.Module, losses: Losses, settings: TrainingSettings, run: Run, purpose: str
) -> TrainingLog:
    """Train a network, keep the moving average of its weights, and survive a kill."""
    (train_loss, val_loss), checkpoint = losses, run.checkpoint

    def average_weights(average: Tensor, value: Tensor, step: Tensor | int) -> Tensor:
        # Early on the average is short, so that it does not carry the random start along.
        decay = min(settings.average, int(step) / (9 + int(step)))
        return average.lerp(value, 1 - decay)

    average = AveragedModel(network, avg_fn=average_weights)
    average.n_averaged += 1  # the first update is an average, too, not a copy
    optimizer = torch.optim.RAdam(network.parameters(), lr=settings.rate)
    parts = {"network": network, "average": average, "optimizer": optimizer}
    log = TrainingLog()
    start = _load(checkpoint, parts, log, purpose) if checkpoint.exists() else 0
    if start > settings.steps:
        raise ValueError(
            f"steps must be at least the {start} that the checkpoint {checkpoint} has behind it, "
            f"got {settings.steps}; give another --work-dir, or delete it"
        )
    network.train()
    bar = open_bar(run.progress, checkpoint.stem, settings.steps, start, run.until)
    saved = time.monotonic()
    begin = saved - log.seconds
    for step in range(start + 1, settings.steps + 1):
        loss = train_loss(network, step - 1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update_parameters(network)
        log.recent.append(float(loss.detach()))
        if not math.isfinite(log.recent[-1]):
            raise ValueError(
                f"the training of {checkpoint.stem!r} must have a finite loss, got "
                f"{log.recent[-1]} at step {step}: it has diverged; give settings of a lower rate"
            )
        bar.update()
        is_last = step == settings.steps or time.monotonic() >= run.until
        if step % settings.check_every == 0 or is_last:
            average.module.eval()
            with torch.no_grad():
                log.held_out.append((step, val_loss(average.module)))
            log.train.append((step, sum(log.recent) / len(log.recent)))
            log.recent = []
            bar.set_postfix(loss=f"{log.train[-1][1]:.5f}", held_out=f"{log.held_out[-1][1]:.5f}")
        is_late = time.monotonic() > saved + SAVE_SECONDS
        if is_late or step % settings.save_every == 0 or is_last:
            saved = time.monotonic()
            log.seconds = saved - begin
            _save(checkpoint, step, parts, log, purpose)
        if is_last:
            break
    bar.close()
    network.load_state_dict(average.module.state_dict())
    network.eval()
    return log


def compute_fingerprint(*parts: object) -> str:
    """Return a short text that differs when any of the parts differs."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy().tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def _save(path: Path, step: int, parts: dict[str, Any], log: TrainingLog, purpose: str) -> None:
    states = {name: part.state_dict() for name, part in parts.items()}
    write_state(path, {"purpose": purpose, "step": step, "log": vars(log), **states})


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    # Into memory first: torch hides that a disk is full.
    content = io.BytesIO()
    torch.save(state, content)
    with open_atomic(path) as temporary:
        temporary.write_bytes(content.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint; empty where there is none that can be read."""
    try:
        state = torch.load(io.BytesIO(path.read_bytes()), "cpu", weights_only=True)
    except Exception:  # torch raises errors of many types
        return {}
    return state if isinstance(state, dict) else {}


class Findings:
    """What a part finds step by step, kept in its checkpoint for the run that continues it."""

    def __init__(self, run: Run, total: int, *purpose: object) -> None:
        """Take what an earlier run of the same purpose has found; ``total``: steps in all."""
        self._path, self._purpose = run.checkpoint, compute_fingerprint(*purpose)
        state = read_state(self._path)
        self._found = state["found"] if state.get("purpose") == self._purpose else {}
        self._bar = open_bar(run.progress, self._path.stem, total, len(self._found), run.until)

    def find(self, step: str, compute: Callable[..., Value], *given: Any) -> Value:
        """Return what a step finds: numbers, or a dict of them."""
        if step not in self._found:
            self._found[step] = compute(*given)
            write_state(self._path, {"purpose": self._purpose, "found": self._found})
            self._bar.update()
        found: Value = self._found[step]
        return found


def _load(path: Path, parts: dict[str, Any], log: TrainingLog, purpose: str) -> int:
    """Read a checkpoint, whole or not at all; return its step."""
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        states = torch.load(io.BytesIO(path.read_bytes()), "cpu", weights_only=True)
        is_own = isinstance(states, dict) and states.get("purpose") == purpose
        for name, part in parts.items() if is_own else ():
            part.load_state_dict(states[name])
            values = states[name].values() if name != "optimizer" else ()
            if not all(bool(value.isfinite().all()) for value in values):
                raise ValueError(f"{name!r} must hold finite numbers, got NaN or infinity")
        if is_own:
            vars(log).update(vars(TrainingLog(**states["log"])))
            check_fields(log, seconds=Rule(float, least=0))
            return as_int("step", states["step"], least=1)
    except Exception as error:  # torch raises errors of many types
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"the checkpoint {path} is damaged ({words}); delete it") from error
    raise ValueError(
        f"the checkpoint {path} belongs to a training with other data or settings; give another "
        "--work-dir, or delete it"
    )


# What losses have in common


def split_tracks(track: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows to learn from and those held out: no track is on both sides."""
    tracks = track.unique()  # type: ignore[no-untyped-call]
    if len(tracks) < 2:
        raise ValueError(
            f"at least 2 tracks are needed to hold some out, got {len(tracks)}; give a video of "
            "more nuclei"
        )
    order = torch.randperm(len(tracks), generator=torch_rng(seed, "split"))
    held = tracks[order[: max(1, round(HELD_OUT * len(tracks)))]]
    is_held = torch.isin(track, held)
    return (~is_held).nonzero()[:, 0], is_held.nonzero()[:, 0]


def group_rows(rows: Tensor, key: Tensor) -> dict[int, Tensor]:
    """Group rows by their key."""
    own = key[rows]
    return {int(value): rows[own == value] for value in own.unique()}  # type: ignore[no-untyped-call]


def draw_rows(groups: Sequence[Tensor], count: int, generator: torch.Generator) -> list[int]:
    """Draw a group, then one of its rows, ``count`` times."""
    chosen = torch.randint(max(1, len(groups)), (count,), generator=generator).tolist()
    place = torch.rand(count, generator=generator).tolist()
    return [int(groups[g][int(p * len(groups[g]))]) for g, p in zip(chosen, place, strict=True)]


def average_parts(loss: Callable[..., Tensor], batch: Sequence[Tensor], size: int = 32) -> float:
    """Return the mean of a loss over parts of a batch, ``size`` rows at a time."""
    parts = zip(*(values.split(size) for values in batch), strict=True)  # type: ignore[no-untyped-call]
    return float(torch.stack([loss(*part) for part in parts]).mean())
