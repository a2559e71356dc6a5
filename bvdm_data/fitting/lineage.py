"""Who descends from whom, and which nucleus of the crops is which cell in which frame."""

from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.stats import median_abs_deviation

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


class Lineage:
    """The tracks of a video with the rows of a table of its nuclei, indexed once."""

    def __init__(
        self,
        tracks: npt.NDArray[np.int32],
        track: npt.NDArray[np.int64] | None = None,
        frame: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Index tracks ``[n, 4]``, and the track and frame of each row of a table, ``[m]``."""
        self.spans = {i: (first, last) for i, first, last, _ in tracks.tolist()}
        self.parents = {i: parent for i, _, _, parent in tracks.tolist() if parent}
        none = np.zeros(0, np.int64)
        self.track = none if track is None else track
        self.frame = none if frame is None else frame

    @cached_property
    def daughters(self) -> dict[int, list[int]]:
        """The divisions: every track that two or more others name as their parent."""
        children: dict[int, list[int]] = {}
        for identity, parent in self.parents.items():
            children.setdefault(parent, []).append(identity)
        return {mother: born for mother, born in children.items() if len(born) >= 2}

    @cached_property
    def mothers(self) -> dict[int, int]:
        """The mother of each daughter of a division."""
        return {d: mother for mother, daughters in self.daughters.items() for d in daughters}

    @cached_property
    def births(self) -> dict[int, int]:
        """First frame of each track of the table that has a parent."""
        listed = set(self.track.tolist())
        return {i: self.spans[i][0] for i in self.parents if i in listed}

    @cached_property
    def whole_cycles(self) -> list[int]:
        """Length in frames of every cycle from a birth to a division."""
        both = [span for i, span in self.spans.items() if i in self.mothers and i in self.daughters]
        return [last - first + 1 for first, last in both]

    @cached_property
    def row_of(self) -> dict[tuple[int, int], int]:
        """Row of each track in each frame."""
        keys = zip(self.track.tolist(), self.frame.tolist(), strict=True)
        return {key: row for row, key in enumerate(keys)}

    def rows_at(self, tracks: list[int], age: int = 0) -> list[int] | None:
        """Return the rows of tracks some frames after their first; None where one is not seen."""
        rows = [self.row_of.get((track, self.spans[track][0] + age)) for track in tracks]
        return None if None in rows else [row for row in rows if row is not None]

    def find_pairs(self, lag: int, keep: npt.NDArray[np.bool_] | None = None) -> Rows:
        """Return the rows of nuclei now and ``lag`` frames later, both kept, ``[n, 2]``."""
        later = ((row, self.row_of.get((t, f + lag))) for (t, f), row in self.row_of.items())
        pairs = np.array([pair for pair in later if pair[1] is not None], np.int64).reshape(-1, 2)
        return pairs if keep is None else pairs[keep[pairs].all(1)]


def fit_ar1_plus_noise(near: Array, far: Array, lag: int) -> tuple[Array, Array]:
    """Split scores into a lasting part and one that is new in every frame.

    The correlation of the lasting part falls geometrically. The correlations of the scores at 1
    and at ``lag`` frames tell the two apart.

    Returns the correlation of the lasting part from frame to frame, from 0 to .98, and the share of
    the new part in the variance.
    """
    ratio = np.maximum(far, 0) / np.maximum(near, 1e-3)
    memory = np.clip(ratio ** (1 / (lag - 1)), 0.0, 0.98)
    return memory, np.clip(1 - near / np.maximum(memory, 1e-3), 0.0, 1.0)


def measure_spread(values: npt.ArrayLike) -> float:
    """Return the robust standard deviation of values around 0; 0 without values."""
    values = np.asarray(values)
    if not len(values):
        return 0.0
    return float(median_abs_deviation(values, center=lambda x, axis: 0.0, scale="normal"))
