"""Training: the loop that both networks share; it is seeded by step and resumes after a kill."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from bvdm_data.files import write_tensors
from bvdm_data.validate import Rule, check_fields


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how fast a network learns.

    Attributes:
        steps: Optimiser steps.
        batch: Samples a step.
        rate: Learning rate.
        average: Decay of the exponential moving average of the weights, which is what is kept.
        seed: Step ``i`` draws from a stream of (seed, i), so a resumed run equals an unbroken one.
        save_every: Steps between two checkpoints.
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
    """What a training printed."""

    # pairs of step and mean training loss since the last pair
    train: list[tuple[int, float]] = field(default_factory=list)
    # pairs of step and loss on held-out tracks, by the averaged weights
    held_out: list[tuple[int, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # training losses since the last pair
    seconds: float = 0.0  # time spent in all runs together


def train(
    network: nn.Module,
    loss_at: Callable[[nn.Module, int], Tensor],
    held_out: Callable[[nn.Module], float],
    settings: TrainingSettings,
    *,
    checkpoint: Path,
    purpose: str,
    progress: bool = True,
) -> TrainingLog:
    """Train a network, keep the moving average of its weights, and survive a kill."""
    average = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.RAdam(network.parameters(), lr=settings.rate)
    log, start = TrainingLog(), 0
    if checkpoint.exists():
        start = _load(checkpoint, network, average, optimizer, log, purpose)
    if start > settings.steps:
        raise ValueError(
            f"steps must be at least the {start} that the checkpoint {checkpoint} has behind it, "
            f"got {settings.steps}; give another --work-dir, or delete it"
        )
    network.train()
    bar = tqdm(total=settings.steps, initial=start, desc=checkpoint.stem, disable=not progress)
    begun = time.monotonic() - log.seconds
    for step in range(start, settings.steps):
        loss = loss_at(network, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        _update_average(average, network, settings.average, step)
        log.recent.append(float(loss.detach()))
        bar.update()
        done = step + 1
        if done % settings.check_every == 0 or done == settings.steps:
            log.train.append((done, sum(log.recent) / len(log.recent)))
            log.held_out.append((done, _held_out_of_average(network, average, held_out)))
            log.recent = []
            bar.set_postfix(loss=f"{log.train[-1][1]:.5f}", held_out=f"{log.held_out[-1][1]:.5f}")
        if done % settings.save_every == 0 or done == settings.steps:
            log.seconds = time.monotonic() - begun
            _save(checkpoint, done, network, average, optimizer, log, purpose)
    bar.close()
    _put(network, average)
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


def _update_average(
    average: dict[str, Tensor], network: nn.Module, decay: float, step: int
) -> None:
    # Early on the average is short, so that it does not carry the random start along.
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in network.named_parameters():
            average[name].lerp_(value, 1 - decay)


def _put(network: nn.Module, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(values[name])


def _held_out_of_average(
    network: nn.Module, average: dict[str, Tensor], held_out: Callable[[nn.Module], float]
) -> float:
    current = {name: value.detach().clone() for name, value in network.named_parameters()}
    _put(network, average)
    network.eval()
    with torch.no_grad():
        loss = held_out(network)
    network.train()
    _put(network, current)
    return loss


def _save(
    path: Path,
    step: int,
    network: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    log: TrainingLog,
    purpose: str,
) -> None:
    tensors = {f"network.{n}": v.detach().cpu().contiguous() for n, v in network.named_parameters()}
    tensors |= {f"average.{name}": value.cpu().contiguous() for name, value in average.items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value.cpu().contiguous()
    header = {
        "purpose": purpose,
        "step": step,
        "seconds": log.seconds,
        "train": log.train,
        "held_out": log.held_out,
        "recent": log.recent,
    }
    write_tensors(path, tensors, {"training": json.dumps(header)})


def _load(
    path: Path,
    network: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    log: TrainingLog,
    purpose: str,
) -> int:
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"the checkpoint {path} is damaged ({error}); delete it") from error
    if not isinstance(header, dict) or header.get("purpose") != purpose:
        raise ValueError(
            f"the checkpoint {path} belongs to a training with other data or settings; give "
            "another --work-dir, or delete it"
        )
    _put(
        network, {n.removeprefix("network."): v for n, v in tensors.items() if n[:8] == "network."}
    )
    for name, parameter in network.named_parameters():
        average[name].copy_(tensors[f"average.{name}"])
        start = f"optimizer.{name}."
        state = {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
        # The optimiser counts its steps on the CPU.
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device)
            for key, value in state.items()
        }
    log.train = [(int(step), float(loss)) for step, loss in header["train"]]
    log.held_out = [(int(step), float(loss)) for step, loss in header["held_out"]]
    log.recent = [float(loss) for loss in header.get("recent", [])]
    log.seconds = float(header["seconds"])
    return int(header["step"])
