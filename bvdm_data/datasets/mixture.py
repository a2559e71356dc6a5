"""What the clips of a mix are: exact quotas in every batch, and how batches are shared out."""

import bisect
import functools
import math
import pickle
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bvdm_data.datasets.sharding import SampleSplit
from bvdm_data.rng import numpy_rng
from bvdm_data.validate import as_int

AT_END = ("restart", "stop", "drop")
"""What may be done where a source has no more clips."""

ORDERS = ("shuffled", "fixed")
"""How the sources may follow each other in a batch of quotas."""


class SourceOrder(Protocol):
    """Which clips the clips of one epoch of a mix are."""

    end: int | None  # clips of the epoch; None: without end

    def pick(self, number: int) -> tuple[int, int]:
        """Return the place of a source among all, and the number of a clip of it."""


class QuotaOrder:
    """Exactly so many clips of each source in every batch.

    ``end``: Clips of the epoch, of whole batches; None: without end
    """

    def __init__(
        self,
        quotas: Sequence[int],
        lengths: Sequence[int | None],
        *,
        order: str,
        at_end: str,
        length: int | None,
        seed: int,
        epoch: int,
    ) -> None:
        """Find the end."""
        self._batch = np.repeat(np.arange(len(quotas)), quotas)
        self._quotas, self._order = quotas, order
        self._seed, self._epoch = seed, epoch
        ends = [] if length is None else [length]
        if at_end == "stop":
            ends += [
                one // quota * len(self._batch)
                for one, quota in zip(lengths, quotas, strict=True)
                if one is not None and quota
            ]
        self.end = min(ends, default=None)

    def pick(self, number: int) -> tuple[int, int]:
        """Return source and clip, see :class:`Mixing`."""
        batch, place = divmod(number, len(self._batch))
        sources = self._batch
        if self._order == "shuffled":
            draws = numpy_rng(self._seed, "quota", self._epoch, batch)
            sources = draws.permutation(sources)
        chosen = int(sources[place])
        ahead = int(np.count_nonzero(sources[:place] == chosen))
        return chosen, batch * self._quotas[chosen] + ahead


@dataclass(frozen=True, kw_only=True)
class BatchedSplit(SampleSplit):
    """A share in which groups of clips in a row stay on one rank, for quotas that hold on each."""

    together: int = 1  # clips of a group; batch_size and length are multiples of it

    @property
    def len_of_rank(self) -> int | None:
        """Clips of all workers of this rank in the pass, or None without end."""
        if self.length is None:
            return None
        groups = (self.length - self.start) // self.together
        return -(-groups // self.world_size) * self.together

    @property
    def global_position(self) -> int:
        """Clips of the epoch that are behind all ranks, where each has a single worker."""
        if self.made % self.together:
            raise ValueError(
                f"state_dict must be asked for between batches of {self.together} clips, in "
                f"which the quotas hold; {self.made} clips have been made. Is that the batch_size "
                "of the loader?"
            )
        return super().global_position

    def to_state(self) -> dict[str, int]:
        """Return how far the process is, with what that depends on, as whole numbers."""
        return {name: value for name, value in super().to_state().items() if name != "together"}

    def _get_number(self, place: int) -> int:
        group, within = divmod(place, self.together)
        number = self.start + (group * self.world_size + self.rank) * self.together + within
        return number if self.length is None else number % self.length


Schedule = Callable[[int, int], Mapping[str, float]]
"""Takes the epoch and the number of a clip, and returns the weights."""


class Weights:
    """How often sources are picked: equally throughout, or as a function of epoch and clip.

    ``given``: Fractions of 1 by name, or the function
    """

    def __init__(self, given: Mapping[str, float] | Schedule | None, names: Iterable[str]) -> None:
        """Check the weights, of a function those of clip 0 of epoch 0."""
        self._names = tuple(names)
        self.given: Mapping[str, float] | Schedule
        if given is None:
            given = dict.fromkeys(self._names, 1.0)
        if callable(given):
            self.given = given
            self.at(0, 0)
        else:
            self.given = _normalize_weights("weights", given, self._names)

    @property
    def is_schedule(self) -> bool:
        """Whether a function says them."""
        return callable(self.given)

    def at(self, epoch: int, number: int) -> list[float]:
        """Return the fractions of 1, in the order of the sources, for one clip."""
        told = self.given
        if callable(told):
            told = _normalize_weights(
                f"weights({epoch}, {number})", told(epoch, number), self._names
            )
        return list(told.values())

    def rows(self, epoch: int, numbers: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the weights of several clips, in the order of the sources.

        ``[n, sources]``, at least 0 and not all 0, with any sum.
        """
        told = self.given
        if not callable(told):
            return np.array([list(told.values())] * len(numbers))
        found = [told(epoch, number) for number in numbers]
        try:
            rows = np.array([[one[name] for name in self._names] for one in found])
        except (KeyError, TypeError, ValueError):
            rows = np.array(None)
        if rows.dtype.kind in "iuf" and {*map(len, found)} == {len(self._names)}:
            rows = rows.astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                total = rows.sum(1)
            if (rows >= 0).all() and (total > 0).all() and np.isfinite(total).all():
                return rows
        # Slower, with a message for the first one that is wrong.
        return np.array([self.at(epoch, number) for number in numbers])

    def __deepcopy__(self, memo: dict[int, Any]) -> "Weights":
        """Return this, which nothing changes."""
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
    wanted = tuple(names)
    _check_names("quotas", quotas, wanted, "clips in a batch, such as {'real': 1, 'synthetic': 3}")
    found = {name: as_int(f"quotas[{name!r}]", quotas[name], 0) for name in wanted}
    if not any(found.values()):
        raise ValueError("quotas must not all be 0; give at least one source a clip in each batch")
    return found


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


def _check_names(what: str, given: Any, names: tuple[str, ...], meant: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} must map the names of the sources to {meant}; got {given!r}")
    if set(given) != set(names):
        raise ValueError(
            f"{what} must have the names of the sources, {sorted(names)}, got "
            f"{sorted(given, key=str)}"
        )


BLOCK = 1024
"""Clips whose sources are drawn together, from one random stream."""

_ENDLESS = 2**62
_PHASES = 2**53


class WeightedOrder:
    """Sources in random order, each as often as its weight says.

    Every block of ``BLOCK`` clips is shuffled by itself. How many clips of a source are in it
    follows from the weights but for rounding, by systematic sampling: of the first t clips that
    earlier sources have left over, ``floor(t p + u)`` are of a source, with p its share among
    itself and the later ones, and u a random number from 0 to 1, one for each source and epoch.
    The mean of that is t p. Any clip is thus found at once, without drawing those ahead of it.

    ``end``: Clips of the epoch; None: without end
    """

    def __init__(
        self,
        weights: Sequence[float],
        lengths: Sequence[int | None],
        *,
        at_end: str,
        length: int | None,
        seed: int,
        epoch: int,
    ) -> None:
        """Find the end."""
        self._weights = [Fraction(weight) for weight in weights]
        self._lengths, self._seed, self._epoch = lengths, seed, epoch
        self._stretches = [self._stretch(0, np.zeros(len(weights), np.int64), ())]
        self._latest: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        found = None if at_end == "restart" else self._find_end(at_end)
        self._last = found if at_end == "drop" else None
        self.end = min((one for one in (found, length) if one is not None), default=None)

    def pick(self, number: int) -> tuple[int, int]:
        """Return source and clip, see :class:`Mixing`."""
        if self._last is not None and number >= self._last:
            raise _have_all_ended(number)
        counts, picks, place = self._around(number)
        chosen = int(picks[place])
        return chosen, int(counts[chosen]) + int(np.count_nonzero(picks[:place] == chosen))

    def _find_end(self, at_end: str) -> int | None:
        """Return the number of clips until a source is lacking, or all are."""
        ended: list[int] = []
        while (lacking := self._first_lacking()) is not None:
            number, source = lacking
            ended.append(source)
            left = [weight for one, weight in enumerate(self._weights) if one not in ended]
            if at_end == "stop" or not any(left):
                return number
            counts, picks, place = self._around(number)
            ahead = np.bincount(picks[:place], minlength=len(self._weights))
            self._stretches.append(self._stretch(number, counts + ahead, ended))
            self._latest = None
        return None

    def _first_lacking(self) -> tuple[int, int] | None:
        """Return where a source is picked first after its last clip, and which it is."""
        latest, found = self._stretches[-1], []
        for source, length in enumerate(self._lengths):
            if length is None or not latest.shares[source]:
                continue
            # The first block that begins with more clips behind it than the source has.
            behind = functools.partial(self._behind, latest, source)
            block = bisect.bisect_right(range(_ENDLESS // BLOCK), length, key=behind)
            if block < _ENDLESS // BLOCK:
                first = latest.start + (block - 1) * BLOCK
                counts, picks, _ = self._around(first)
                place = np.flatnonzero(picks == source)[length - int(counts[source])]
                found.append((first + int(place), source))
        return min(found, default=None)

    @staticmethod
    def _behind(stretch: "_Segment", source: int, block: int) -> int:
        return int(stretch.counts(block * BLOCK)[source])

    def _around(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
        """Return the block of a clip: counts of the sources ahead of it, its sources, the place."""
        which = bisect.bisect_right(self._stretches, number, key=lambda one: one.start) - 1
        stretch = self._stretches[which]
        block, place = divmod(number - stretch.start, BLOCK)
        first = stretch.start + block * BLOCK
        if self._latest is None or self._latest[0] != first:
            counts = stretch.counts(block * BLOCK)
            inside = stretch.counts((block + 1) * BLOCK) - counts
            draws = numpy_rng(self._seed, "mix", self._epoch, stretch.start, block)
            picks = draws.permutation(np.repeat(np.arange(len(inside)), inside))
            self._latest = (first, counts, picks)
        return self._latest[1], self._latest[2], place

    def _stretch(
        self, start: int, before: npt.NDArray[np.int64], ended: Collection[int]
    ) -> "_Segment":
        weights = [
            Fraction() if one in ended else weight for one, weight in enumerate(self._weights)
        ]
        later = [sum(weights[one:], Fraction()) for one in range(len(weights))]
        shares = [
            weight / rest if rest else Fraction()
            for weight, rest in zip(weights, later, strict=True)
        ]
        draws = numpy_rng(self._seed, "phase", self._epoch, start)
        phases = [Fraction(int(one), _PHASES) for one in draws.integers(_PHASES, size=len(weights))]
        return _Segment(start, before, tuple(shares), tuple(phases))


@dataclass(frozen=True)
class _Segment:
    """Clips in a row that are drawn with the same weights."""

    start: int  # number of the first one
    before: npt.NDArray[np.int64]  # clips of each source ahead of it
    shares: tuple[Fraction, ...]  # of each source, among itself and the later ones
    phases: tuple[Fraction, ...]  # of the rounding of each, from 0 to 1

    def counts(self, clips: int) -> npt.NDArray[np.int64]:
        """Count the clips of each source ahead of one that has this place in the stretch."""
        found = []
        for share, phase in zip(self.shares, self.phases, strict=True):
            found.append(math.floor(clips * share + phase))
            clips -= found[-1]
        return self.before + np.array(found, np.int64)


class ScheduledOrder:
    """Sources drawn at random, each clip's with the weights that a function says for it.

    Every clip is drawn by itself. Which clip of its source it is can only be said after all draws
    ahead of it, with a call of the function for each; the counts are kept.

    ``end``: Clips of the epoch; None: without end
    """

    def __init__(
        self,
        weights: Weights,
        lengths: Sequence[int | None],
        *,
        at_end: str,
        length: int | None,
        seed: int,
        epoch: int,
    ) -> None:
        """Find the end."""
        self._weights, self._at_end, self._length = weights, at_end, length
        self._seed, self._epoch = seed, epoch
        self._limits = np.array([_ENDLESS if one is None else one for one in lengths])
        self._before = [np.zeros(len(lengths), np.int64)]
        self._latest: tuple[int, npt.NDArray[np.int64]] | None = None
        self.end = length
        if length is not None and at_end != "restart" and self._limits.min() < length:
            self.end = self._find_end(length)

    def pick(self, number: int) -> tuple[int, int]:
        """Return source and clip, see :class:`Mixing`."""
        block, place = divmod(number, BLOCK)
        picks = self._picks(block)
        chosen = int(picks[place])
        if chosen < 0:
            raise _have_all_ended(number)
        ahead = int(np.count_nonzero(picks[:place] == chosen))
        return chosen, int(self._before[block][chosen]) + ahead

    def _find_end(self, length: int) -> int:
        for block in range(-(-length // BLOCK)):
            picks = self._picks(block)
            if self._at_end == "stop":
                lacking = self._first_lacking(picks, self._limits - self._before[block])
                place = None if lacking is None else lacking[0]
            else:
                place = next(iter(np.flatnonzero(picks < 0).tolist()), None)
            if place is not None:
                return min(block * BLOCK + place, length)
        return length

    def _picks(self, block: int) -> npt.NDArray[np.int64]:
        """Return the sources of a block of clips, ``[BLOCK]``; -1 where all have ended."""
        if self._latest is None or self._latest[0] != block:
            for earlier in range(len(self._before) - 1, block):
                picks = self._draw(earlier)
                counts = np.bincount(picks[picks >= 0], minlength=len(self._limits))
                self._before.append(self._before[-1] + counts)
            self._latest = (block, self._draw(block))
        return self._latest[1]

    def _draw(self, block: int) -> npt.NDArray[np.int64]:
        last = _ENDLESS if self._length is None else self._length - 1
        numbers = [min(number, last) for number in range(block * BLOCK, (block + 1) * BLOCK)]
        weights = self._weights.rows(self._epoch, numbers)
        draws = numpy_rng(self._seed, "mix", self._epoch, block).random(BLOCK)
        if self._at_end != "drop":
            return _choose_source(weights, draws)
        left = self._limits - self._before[block]
        weights[:, left <= 0] = 0
        picks = _choose_source(weights, draws)
        while (lacking := self._first_lacking(picks, left)) is not None:
            place, source = lacking
            weights[place:, source] = 0
            picks = _choose_source(weights, draws)
        return picks

    @staticmethod
    def _first_lacking(
        picks: npt.NDArray[np.int64], left: npt.NDArray[np.int64]
    ) -> tuple[int, int] | None:
        """Return where a source is picked first after its last clip, and which it is."""
        found = []
        for source, count in enumerate(left.tolist()):
            places = np.flatnonzero(picks == source)
            if len(places) > count:
                found.append((int(places[max(count, 0)]), source))
        return min(found, default=None)


def _have_all_ended(number: int) -> IndexError:
    """Return the error where no source has a clip left."""
    return IndexError(
        f"index must be below the end of the mix, where all its sources have ended, got {number}; "
        "use at_end='restart' to go on"
    )


def _choose_source(
    weights: npt.NDArray[np.float64], draws: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Return the source that each number from 0 to 1 falls on, ``[n]``; -1 without weights."""
    ends = weights.cumsum(1)
    total = ends[:, -1]
    # Below the end of the last weight, also where the product is rounded up.
    at = np.minimum(draws * total, np.nextafter(total, 0))
    return np.where(total > 0, (ends <= at[:, None]).sum(1), -1)
