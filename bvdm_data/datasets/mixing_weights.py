"""Weights and quotas of a mix, checked at the door."""

import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from bvdm_data.datasets.arguments import check_whole_number

Schedule = Callable[[int, int], Mapping[str, float]]
"""Takes the epoch and the number of a clip, and returns the weights."""


class Weights:
    """How often sources are picked: equally throughout, or as a function of epoch and clip.

    Args:
        given: Weights by name, a :data:`Schedule`, or None for equal ones.
        names: Those of the sources, in their order.

    Attributes:
        given: Fractions of 1 by name, or the function.

    Raises:
        TypeError: If it is neither, or a weight is not a number.
        ValueError: If a weight is missing, unknown, negative, not finite, or all are 0.
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
            self.given = _fractions("weights", given, self._names)

    @property
    def is_schedule(self) -> bool:
        """Whether a function says them."""
        return callable(self.given)

    def at(self, epoch: int, number: int) -> list[float]:
        """Return the fractions of 1, in the order of the sources, for one clip."""
        told = self.given
        if callable(told):
            told = _fractions(f"weights({epoch}, {number})", told(epoch, number), self._names)
        return list(told.values())

    def rows(self, epoch: int, numbers: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the weights of several clips, in the order of the sources.

        Args:
            epoch: Number of the epoch.
            numbers: Those of the clips.

        Returns:
            ``[n, sources]``, at least 0 and not all 0, with any sum.

        Raises:
            TypeError: If the function returns other than numbers for one of the clips.
            ValueError: If it returns numbers for one that are no weights.
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
    """Return the clips of each source in a batch, in the order of the sources.

    Args:
        quotas: Whole numbers by name, 0 or more.
        names: Those of the sources.

    Returns:
        The same.

    Raises:
        TypeError: If it is no mapping, or of other than whole numbers.
        ValueError: If a name is missing or unknown, a number is negative, or all are 0.
    """
    wanted = tuple(names)
    _check_names("quotas", quotas, wanted, "clips in a batch, such as {'real': 1, 'synthetic': 3}")
    found = {name: check_whole_number(f"quotas[{name!r}]", quotas[name], 0) for name in wanted}
    if not any(found.values()):
        raise ValueError("quotas must not all be 0; give at least one source a clip in each batch")
    return found


def _fractions(what: str, weights: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
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
