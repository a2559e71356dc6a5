"""What the clips of a mix are: exact quotas in every batch, and how batches are shared out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bvdm_data.datasets.shards import Share
from bvdm_data.randomness import numpy_stream

AT_END = ("restart", "stop", "drop")
"""What may be done where a source has no more clips."""

ORDERS = ("shuffled", "fixed")
"""How the sources may follow each other in a batch of quotas."""


class Mixing(Protocol):
    """Which clips the clips of one epoch of a mix are.

    Attributes:
        end: Clips of the epoch; None: without end.
    """

    end: int | None

    def pick(self, number: int) -> tuple[int, int]:
        """Return the place of a source among all, and the number of a clip of it.

        Args:
            number: Number of the clip in the mix, 0 or more.

        Raises:
            IndexError: If all sources have ended before.
        """


class ByQuota:
    """Exactly so many clips of each source in every batch.

    Args:
        quotas: Clips of each source in a batch.
        lengths: Clips of each source; None: without end.
        order: One of ``ORDERS``.
        at_end: ``"restart"`` or ``"stop"``.
        length: Most clips of the epoch; None: as many as there are.
        seed: Seed of the order.
        epoch: Number of the epoch.

    Attributes:
        end: Clips of the epoch, of whole batches; None: without end.
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
            draws = numpy_stream(self._seed, "quota", self._epoch, batch)
            sources = draws.permutation(sources)
        chosen = int(sources[place])
        ahead = int(np.count_nonzero(sources[:place] == chosen))
        return chosen, batch * self._quotas[chosen] + ahead


@dataclass(frozen=True, kw_only=True)
class GroupedShare(Share):
    """A share in which groups of clips in a row stay on one rank, for quotas that hold on each.

    Attributes:
        together: Clips of a group; ``batch_size`` and ``length`` are multiples of it.
    """

    together: int = 1

    @property
    def of_rank(self) -> int | None:
        """Clips of all workers of this rank in the pass, or None without end."""
        if self.length is None:
            return None
        groups = (self.length - self.start) // self.together
        return -(-groups // self.ranks) * self.together

    @property
    def next_of_all(self) -> int:
        """Clips of the epoch that are behind all ranks, where each has a single worker."""
        if self.made % self.together:
            raise ValueError(
                f"state_dict must be asked for between batches of {self.together} clips, in "
                f"which the quotas hold; {self.made} clips have been made. Is that the batch_size "
                "of the loader?"
            )
        return super().next_of_all

    def state(self) -> dict[str, int]:
        """Return how far the process is, with what that depends on, as whole numbers."""
        return {name: value for name, value in super().state().items() if name != "together"}

    def _number(self, place: int) -> int:
        group, within = divmod(place, self.together)
        number = self.start + (group * self.ranks + self.rank) * self.together + within
        return number if self.length is None else number % self.length
