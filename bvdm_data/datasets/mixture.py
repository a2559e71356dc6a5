"""Which clip of which source each clip of a mix is, and how batches are split over ranks."""

import bisect
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from bvdm_data.datasets.sharding import SampleSplit
from bvdm_data.rng import numpy_rng
from bvdm_data.validate import as_int

AT_END = ("restart", "stop", "drop")  # what may be done where a source has no more clips
ORDERS = ("shuffled", "fixed")  # how the sources may follow each other in a batch of quotas
BLOCK = 1024  # clips whose sources are drawn together, from one random generator
# Takes the epoch and the number of a clip, and returns the weights.
Schedule = Callable[[int, int], Mapping[str, float]]
_ENDLESS = 2**62
_PHASES = 2**53

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BatchedSplit(SampleSplit):
    """A split that keeps groups of consecutive clips on one rank, so that quotas hold on each."""

    group_size: int = 1  # clips of a group; batch_size and length are multiples of it

    @property
    def len_of_rank(self) -> int | None:
        """Clips of all workers of this rank in the pass, or None without end."""
        if self.length is None:
            return None
        groups = (self.length - self.start) // self.group_size
        return -(-groups // self.ranks) * self.group_size

    @property
    def global_position(self) -> int:
        """Clips of the epoch that are behind all ranks, where each has a single worker."""
        if self.made % self.group_size:
            raise ValueError(
                f"state_dict must be asked for between batches of {self.group_size} clips, in "
                f"which the quotas hold; {self.made} clips have been made. Is that the batch_size "
                "of the loader?"
            )
        return super().global_position

    def _get_number(self, place: int) -> int:
        group, within = divmod(place, self.group_size)
        number = self.start + (group * self.ranks + self.rank) * self.group_size + within
        return number if self.length is None else number % self.length


class Weights:
    """How often sources are picked: a mapping, or a function of epoch and clip.

    ``given``: Fractions of 1 by name, or the function
    """

    def __init__(self, given: Mapping[str, float] | Schedule | None, names: Iterable[str]) -> None:
        """Check the weights; of a function those of clip 0 of epoch 0."""
        self._names = tuple(names)
        self.given: Mapping[str, float] | Schedule
        if given is None:
            given = dict.fromkeys(self._names, 1.0)
        if callable(given):
            self.given = given
            self.get(0, 0)
        else:
            self.given = _normalize_weights("weights", given, self._names)

    @property
    def is_schedule(self) -> bool:
        """Whether the weights come from a function."""
        return callable(self.given)

    def get(self, epoch: int, number: int) -> list[float]:
        """Return the fractions of 1, in the order of the sources, for one clip."""
        weights = self.given
        if callable(weights):
            name = f"weights({epoch}, {number})"
            weights = _normalize_weights(name, weights(epoch, number), self._names)
        return list(weights.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Weights":
        """Return this object, which is never changed; a copy would be pickled."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Refuse a function that cannot reach another process."""
        try:
            pickle.dumps(self.given)
        except Exception as error:
            raise TypeError(
                "weights must be a function that can be pickled, or only forked workers can have "
                f"it ({error}); define it with def at the top of a module, not as a lambda or "
                "within another function"
            ) from error
        return self.__dict__


def check_quotas(quotas: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Return the clips of each source in a batch, in the order of the sources."""
    known = tuple(names)
    _check_names("quotas", quotas, known, "clips in a batch, such as {'real': 1, 'synthetic': 3}")
    checked = {name: as_int(f"quotas[{name!r}]", quotas[name], 0) for name in known}
    if not any(checked.values()):
        raise ValueError("quotas must not all be 0; give at least one source a clip in each batch")
    return checked


def _normalize_weights(
    what: str, weights: Mapping[str, float], names: tuple[str, ...]
) -> dict[str, float]:
    _check_names(
        what, weights, names,
        "numbers, such as {'real': 1, 'synthetic': 3}, or be a function of (epoch, index) that "
        "returns such a mapping",
    )  # fmt: skip
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise TypeError(f"{what}[{name!r}] must be a number, got {weight!r}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{what}[{name!r}] must be finite and at least 0, got {weight}")
    plain = {name: float(weights[name]) for name in names}
    if not math.isfinite(sum(plain.values())):
        raise ValueError(f"{what} must have a finite sum, got {plain}; give smaller ones")
    total = math.fsum(plain.values())
    if total <= 0:
        raise ValueError(f"{what} must not all be 0; give at least one source a weight above 0")
    return {name: weight / total for name, weight in plain.items()}


def _check_names(what: str, given: Any, names: tuple[str, ...], meaning: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} must map the names of the sources to {meaning}; got {given!r}")
    if set(given) != set(names):
        raise ValueError(
            f"{what} must have the names of the sources, {sorted(names)}, got "
            f"{sorted(given, key=str)}"
        )


@dataclass(kw_only=True, eq=False)
class SourceOrder(ABC):
    """Which clip of which source each clip of one epoch of a mix is."""

    lengths: Sequence[int | None]  # clips of each source in the epoch; None: without end
    at_end: str
    length: int | None  # most clips of the epoch
    seed: int
    epoch: int
    end: int | None = field(init=False)  # clips of the epoch; None: without end

    def __post_init__(self) -> None:
        """Find the end."""
        self._limits = np.array([_ENDLESS if one is None else one for one in self.lengths])
        self._latest: tuple[tuple[int, int], _Ints, _Ints] | None = None
        ends = [self.length, None if self.at_end == "restart" else self._find_end()]
        self.end = min((end for end in ends if end is not None), default=None)

    def locate(self, number: int) -> tuple[int, int]:
        """Return the position of a source among all, and the number of a clip of it."""
        counts, picks, place = self._find_block(number)
        source = int(picks[place]) if place < len(picks) else -1
        if source < 0:
            raise IndexError(
                "index must be below the end of the mix, where all its sources have ended, got "
                f"{number}; use at_end='restart' to continue"
            )
        return source, int(counts[source]) + int(np.count_nonzero(picks[:place] == source))

    @abstractmethod
    def _find_end(self) -> int | None:
        """Return the number of clips until the first source has ended, or all have."""

    @abstractmethod
    def _find_block(self, number: int) -> tuple[_Ints, _Ints, int]:
        """Return counts of the sources ahead of the clip's block, its sources, the place in it."""

    def _add_picks(self, counts: _Ints, picks: _Ints) -> _Ints:
        added: _Ints = counts + np.bincount(picks[picks >= 0], minlength=len(counts))
        return added


@dataclass(kw_only=True, eq=False)
class QuotaOrder(SourceOrder):
    """A fixed number of clips of each source in every batch."""

    quotas: Sequence[int]
    order: str

    def _find_end(self) -> int | None:
        pairs = zip(self.lengths, self.quotas, strict=True)
        batches = [length // quota for length, quota in pairs if length is not None and quota]
        return min(batches) * sum(self.quotas) if batches else None

    def _find_block(self, number: int) -> tuple[_Ints, _Ints, int]:
        batch, place = divmod(number, sum(self.quotas))
        picks = np.repeat(np.arange(len(self.quotas)), self.quotas)
        if self.order == "shuffled":
            picks = numpy_rng(self.seed, "quota", self.epoch, batch).permutation(picks)
        return batch * np.array(self.quotas), picks, place


@dataclass(kw_only=True, eq=False)
class WeightedOrder(SourceOrder):
    """Sources in random order, each as often as its weight says.

    Every block of ``BLOCK`` clips is shuffled by itself. Systematic sampling gives the number of
    clips of a source in it: of the first t clips that earlier sources have left over,
    ``floor(t p + u)`` are of a source, with p its share among itself and the later ones, and u a
    random number from 0 to 1, one for each source and epoch. The mean of that is t p. Any clip is
    thus found at once, without drawing those ahead of it.
    """

    weights: Sequence[float]

    def __post_init__(self) -> None:
        """Start with all sources, and find the end."""
        self._segments: list[_Segment] = []
        start = np.zeros(len(self.weights), np.int64)
        self._start_segment(0, start, [Fraction(weight) for weight in self.weights])
        super().__post_init__()

    def _find_end(self) -> int | None:
        while True:
            segment = self._segments[-1]
            blocks = [
                segment.find_block(source, limit)
                for source, limit in enumerate(self._limits.tolist())
                if limit < _ENDLESS and segment.weights[source]
            ]
            block = min(blocks, default=_ENDLESS // BLOCK)
            if block == _ENDLESS // BLOCK:
                return None
            first = segment.start + (block - 1) * BLOCK
            counts, picks, _ = self._find_block(first)
            place, ended = _find_shortage(picks, self._limits - counts)
            if self.at_end == "stop":
                return first + place
            weights = list(segment.weights)
            weights[ended] = Fraction()
            self._start_segment(first + place, self._add_picks(counts, picks[:place]), weights)
            if not any(weights):
                return first + place

    def _start_segment(self, start: int, before: _Ints, weights: list[Fraction]) -> None:
        rng = numpy_rng(self.seed, "phase", self.epoch, start)
        phases = [Fraction(int(one), _PHASES) for one in rng.integers(_PHASES, size=len(weights))]
        self._segments.append(_Segment(start, before, weights, phases))

    def _find_block(self, number: int) -> tuple[_Ints, _Ints, int]:
        which = bisect.bisect_right(self._segments, number, key=lambda one: one.start) - 1
        segment = self._segments[which]
        block, place = divmod(number - segment.start, BLOCK)
        if self._latest is None or self._latest[0] != (which, block):
            counts = segment.count(block)
            picks = np.repeat(np.arange(len(counts)), segment.count(block + 1) - counts)
            rng = numpy_rng(self.seed, "mix", self.epoch, segment.start, block)
            self._latest = (which, block), counts, rng.permutation(picks)
        return *self._latest[1:], place


@dataclass(frozen=True)
class _Segment:
    """Clips in a row that are drawn with the same weights."""

    start: int  # number of the first one
    before: _Ints  # clips of each source ahead of it
    weights: list[Fraction]  # of each source; 0 where it has ended
    phases: list[Fraction]  # of the rounding of each, from 0 to 1

    def count(self, blocks: int) -> _Ints:
        """Count the clips of each source ahead of a block of the segment."""
        counts, clips, rest = [], blocks * BLOCK, sum(self.weights, Fraction())
        for weight, phase in zip(self.weights, self.phases, strict=True):
            counts.append(math.floor(clips * weight / rest + phase) if weight else 0)
            clips -= counts[-1]
            rest -= weight
        return self.before + np.array(counts, np.int64)

    def find_block(self, source: int, limit: int) -> int:
        """Return the first block with more than ``limit`` clips of a source ahead of it."""
        blocks = range(_ENDLESS // BLOCK)
        return bisect.bisect_right(blocks, limit, key=lambda block: int(self.count(block)[source]))


@dataclass(kw_only=True, eq=False)
class ScheduledOrder(SourceOrder):
    """Sources drawn at random, one clip after the other, with the weights of a schedule.

    The number of a clip within its source depends on all draws ahead of it, each with a call of
    the schedule; the counts ahead of each block are kept.
    """

    weights: Weights

    def __post_init__(self) -> None:
        """Start the counts, and find the end."""
        self._before = [np.zeros(len(self.lengths), np.int64)]
        super().__post_init__()

    def _find_end(self) -> int | None:
        length = self.length or 0
        for first in range(0, length if self._limits.min() < length else 0, BLOCK):
            counts, picks, _ = self._find_block(first)
            if self.at_end == "stop":
                place, _ = _find_shortage(picks, self._limits - counts)
            else:
                place = min(np.flatnonzero(picks < 0).tolist(), default=BLOCK)
            if place < BLOCK:
                return first + place
        return None

    def _find_block(self, number: int) -> tuple[_Ints, _Ints, int]:
        block, place = divmod(number, BLOCK)
        if self._latest is None or self._latest[0] != (0, block):
            while len(self._before) <= block:
                picks = self._draw(len(self._before) - 1)
                self._before.append(self._add_picks(self._before[-1], picks))
            self._latest = (0, block), self._before[block], self._draw(block)
        return *self._latest[1:], place

    def _draw(self, block: int) -> _Ints:
        """Return the sources of a block of clips, ``[BLOCK]``; -1 where all have ended."""
        last = _ENDLESS if self.length is None else self.length - 1
        numbers = [min(number, last) for number in range(block * BLOCK, (block + 1) * BLOCK)]
        weights = np.array([self.weights.get(self.epoch, number) for number in numbers])
        draws = numpy_rng(self.seed, "mix", self.epoch, block).random(BLOCK)
        if self.at_end != "drop":
            return _choose_source(weights, draws)
        left = self._limits - self._before[block]
        weights[:, left <= 0] = 0
        picks = _choose_source(weights, draws)
        while True:
            place, source = _find_shortage(picks, left)
            if place == BLOCK:
                return picks
            weights[place:, source] = 0
            picks = _choose_source(weights, draws)


def _find_shortage(picks: _Ints, left: _Ints) -> tuple[int, int]:
    """Return where a source is picked first after its last clip (else BLOCK), and the source."""
    shortages = []
    for source, count in enumerate(left.tolist()):
        places = np.flatnonzero(picks == source)
        if len(places) > count:
            shortages.append((int(places[max(count, 0)]), source))
    return min(shortages, default=(BLOCK, -1))


def _choose_source(weights: npt.NDArray[np.float64], draws: npt.NDArray[np.float64]) -> _Ints:
    """Return the source that each number from 0 to 1 falls on, ``[n]``; -1 without weights."""
    ends = weights.cumsum(1)
    total = ends[:, -1]
    # Below the end of the last weight, also where the product is rounded up.
    at = np.minimum(draws * total, np.nextafter(total, 0))
    return np.where(total > 0, (ends <= at[:, None]).sum(1), -1)
