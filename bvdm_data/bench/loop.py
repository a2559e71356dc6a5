"""Loop: how long a training loop waits for its loader."""

import math
import time
from dataclasses import dataclass
from numbers import Real

from torch.utils.data import DataLoader

from bvdm_data.datasets.arguments import check_whole_number
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos

LEAST_STEPS = 3
"""Steps that are taken at least, however long they are."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A training loop.

    Attributes:
        batch_size: Clips a step.
        workers: Processes of the loader; 0: the loop's own process makes the clips.
        step_seconds: How long a step takes without the loader.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range.
    """

    batch_size: int = 4
    workers: int = 1
    step_seconds: float = 0.1

    def __post_init__(self) -> None:
        """Refuse loops that go nowhere."""
        check_whole_number("batch_size", self.batch_size, least=1)
        check_whole_number("workers", self.workers, least=0)
        check_seconds("step_seconds", self.step_seconds)

    @property
    def wanted(self) -> float:
        """Clips a second that the loop would use up if it never waited."""
        return self.batch_size / self.step_seconds


def check_seconds(name: str, value: float) -> float:
    """Return a time above 0.

    Args:
        name: What the caller calls it.
        value: What came, seconds.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not above 0, or endless.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of seconds, got {value!r}")
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")
    return seconds


@dataclass(frozen=True)
class Wait:
    """How long a loop waits for its loader.

    Attributes:
        steps: Steps that were timed.
        first_seconds: From the start of the loop to its first batch.
        wait_seconds: Time that each later step waits for its batch, on average.
        share: Share of the loop's time that it waits.
        clips_per_second: What it gets.
    """

    steps: int
    first_seconds: float
    wait_seconds: float
    share: float
    clips_per_second: float


def measure_wait(
    videos: SyntheticHeLaVideos, loop: Loop, seconds: float, *, first: int = 0
) -> Wait:
    """Run a loop that sleeps in place of its steps.

    A step that sleeps uses no core, as one on a GPU hardly does. The first batch, for which
    workers start and models are loaded, does not count.

    Args:
        videos: The data set, of the loop's batch size.
        loop: The loop.
        seconds: For how long, after the first batch.
        first: Number of the clip to begin with, in whole batches.
    """
    videos.load_state_dict({"epoch": videos.epoch, "seed": videos.seed, "start": first})
    loader = DataLoader(videos, batch_size=loop.batch_size, num_workers=loop.workers)
    begun = time.perf_counter()
    batches = iter(loader)
    next(batches)
    counted = ready = time.perf_counter()
    steps, waited = 0, 0.0
    while ready - counted < seconds or steps < LEAST_STEPS:
        time.sleep(loop.step_seconds)
        asked = time.perf_counter()
        next(batches)
        ready = time.perf_counter()
        waited += ready - asked
        steps += 1
    # Ends the workers now, so that what they held can be told.
    del batches, loader
    passed = ready - counted
    return Wait(
        steps=steps,
        first_seconds=counted - begun,
        wait_seconds=waited / steps,
        share=waited / passed,
        clips_per_second=steps * loop.batch_size / passed,
    )
