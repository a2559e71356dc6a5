"""Which clip of which source each clip of a mix is, where sources are drawn by weight."""

import bisect
import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from bvdm_data.datasets.mixing_weights import Weights
from bvdm_data.randomness import numpy_stream

BLOCK = 1024
"""Clips whose sources are drawn together, from one random stream."""

_ENDLESS = 2**62
_PHASES = 2**53


class ByWeight:
    """Sources in random order, each as often as its weight says.

    Every block of ``BLOCK`` clips is shuffled by itself. How many clips of a source are in it
    follows from the weights but for rounding, by systematic sampling: of the first t clips that
    earlier sources have left over, ``floor(t p + u)`` are of a source, with p its share among
    itself and the later ones, and u a random number from 0 to 1, one for each source and epoch.
    The mean of that is t p. Any clip is thus found at once, without drawing those ahead of it.

    Args:
        weights: How often, as fractions of 1.
        lengths: Clips of each source; None: without end.
        at_end: One of ``AT_END``.
        length: Most clips of the epoch; None: as many as there are.
        seed: Seed of the draws.
        epoch: Number of the epoch.

    Attributes:
        end: Clips of the epoch; None: without end.
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
            raise _all_have_ended(number)
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
    def _behind(stretch: "_Stretch", source: int, block: int) -> int:
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
            draws = numpy_stream(self._seed, "mix", self._epoch, stretch.start, block)
            picks = draws.permutation(np.repeat(np.arange(len(inside)), inside))
            self._latest = (first, counts, picks)
        return self._latest[1], self._latest[2], place

    def _stretch(
        self, start: int, before: npt.NDArray[np.int64], ended: Collection[int]
    ) -> "_Stretch":
        weights = [
            Fraction() if one in ended else weight for one, weight in enumerate(self._weights)
        ]
        later = [sum(weights[one:], Fraction()) for one in range(len(weights))]
        shares = [
            weight / rest if rest else Fraction()
            for weight, rest in zip(weights, later, strict=True)
        ]
        draws = numpy_stream(self._seed, "phase", self._epoch, start)
        phases = [Fraction(int(one), _PHASES) for one in draws.integers(_PHASES, size=len(weights))]
        return _Stretch(start, before, tuple(shares), tuple(phases))


@dataclass(frozen=True)
class _Stretch:
    """Clips in a row that are drawn with the same weights.

    Attributes:
        start: Number of the first one.
        before: Clips of each source ahead of it.
        shares: Of each source, among itself and the later ones.
        phases: Of the rounding of each, from 0 to 1.
    """

    start: int
    before: npt.NDArray[np.int64]
    shares: tuple[Fraction, ...]
    phases: tuple[Fraction, ...]

    def counts(self, clips: int) -> npt.NDArray[np.int64]:
        """Count the clips of each source ahead of one that has this place in the stretch."""
        found = []
        for share, phase in zip(self.shares, self.phases, strict=True):
            found.append(math.floor(clips * share + phase))
            clips -= found[-1]
        return self.before + np.array(found, np.int64)


class BySchedule:
    """Sources drawn at random, each clip's with the weights that a function says for it.

    Every clip is drawn by itself. Which clip of its source it is can only be said after all draws
    ahead of it, with a call of the function for each; the counts are kept.

    Args:
        weights: How often.
        lengths: Clips of each source; None: without end.
        at_end: One of ``AT_END``.
        length: Most clips of the epoch; None only where at_end is ``"restart"``.
        seed: Seed of the draws.
        epoch: Number of the epoch.

    Attributes:
        end: Clips of the epoch; None: without end.
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
            raise _all_have_ended(number)
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
        draws = numpy_stream(self._seed, "mix", self._epoch, block).random(BLOCK)
        if self._at_end != "drop":
            return _chosen(weights, draws)
        left = self._limits - self._before[block]
        weights[:, left <= 0] = 0
        picks = _chosen(weights, draws)
        while (lacking := self._first_lacking(picks, left)) is not None:
            place, source = lacking
            weights[place:, source] = 0
            picks = _chosen(weights, draws)
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


def _all_have_ended(number: int) -> IndexError:
    """Return the error where no source has a clip left."""
    return IndexError(
        f"index must be below the end of the mix, where all its sources have ended, got {number}; "
        "use at_end='restart' to go on"
    )


def _chosen(
    weights: npt.NDArray[np.float64], draws: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Return the source that each number from 0 to 1 falls on, ``[n]``; -1 without weights."""
    ends = weights.cumsum(1)
    total = ends[:, -1]
    # Below the end of the last weight, also where the product is rounded up.
    at = np.minimum(draws * total, np.nextafter(total, 0))
    return np.where(total > 0, (ends <= at[:, None]).sum(1), -1)
