"""Realism: synthetic clips beside two real films, quantity by quantity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from bvdm_data.evaluation.quantities import (
    CURVE,
    DISTRIBUTION,
    QUANTITIES,
    SCALAR,
    Measurements,
    Quantity,
    measure,
)

__all__ = ["Line", "Measurements", "Summary", "compare", "measure"]

LEAST_VALUES = 5
"""A film with fewer values of a quantity has no distribution of it to compare."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """One film's values of one quantity.

    Attributes:
        count: Values of the distribution, or things behind the number or the curve.
        median: Median; of a single number, the number. None where there is none.
        low: 10th percentile of a distribution, else None.
        high: 90th percentile of a distribution, else None.
        curve: The curve, else empty.
    """

    count: int
    median: float | None = None
    low: float | None = None
    high: float | None = None
    curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """One quantity in three films; :func:`dataclasses.asdict` makes it ready for JSON.

    Attributes:
        name: What was measured.
        unit: Its unit; empty for a pure number.
        group: What it is about.
        synthetic: The judged film.
        reference: The real film that it should be like.
        other: A second real film, the yardstick.
        measure: Which distance: ``DISTRIBUTION``, ``SCALAR`` or ``CURVE``.
        distance: From the judged film to the reference; None where one of them does not show it.
        yardstick: The same distance from the other real film to the reference.
        ratio: Distance over yardstick; None where the yardstick is missing or 0.
    """

    name: str
    unit: str
    group: str
    synthetic: Summary
    reference: Summary
    other: Summary
    measure: str
    distance: float | None
    yardstick: float | None
    ratio: float | None


def compare(synthetic: Measurements, reference: Measurements, other: Measurements) -> list[Line]:
    """Lay three films beside each other.

    Both distances of a distribution are divided by the same standard deviation, the root of the
    mean variance of the two real films; so the ratio says how many times farther the synthetic
    film is from the reference than another real film is. Two films of few values lie apart by
    chance alone, and two real films may agree by chance in a single number: mind the counts and
    the distances beside the ratio.

    Args:
        synthetic: The judged film.
        reference: The real film that it should be like.
        other: A second real film, the yardstick.

    Returns:
        One line for each of ``QUANTITIES``.

    Examples:
        >>> film = Measurements({q.name: np.arange(9.0) for q in QUANTITIES}, {})
        >>> longer = Measurements({q.name: np.arange(10.0) for q in QUANTITIES}, {})
        >>> line = compare(film, film, longer)[0]
        >>> line.name, line.distance, round(line.yardstick, 2), line.ratio
        ('area', 0.0, 0.18, 0.0)
    """
    return [_line(one, synthetic, reference, other) for one in QUANTITIES]


def _line(one: Quantity, *films: Measurements) -> Line:
    synthetic, reference, other = (film.values[one.name] for film in films)
    distance = _distance(synthetic, (reference, other), one)
    yardstick = _distance(other, (reference, other), one)
    summaries = [_summary(film, one) for film in films]
    return Line(
        name=one.name,
        unit=one.unit,
        group=one.group,
        synthetic=summaries[0],
        reference=summaries[1],
        other=summaries[2],
        measure=one.distance,
        distance=distance,
        yardstick=yardstick,
        ratio=distance / yardstick if distance is not None and yardstick else None,
    )


def _distance(film: Array, real: Sequence[Array], quantity: Quantity) -> float | None:
    """Return the distance of a film to the first of the real ones."""
    reference = real[0]
    if quantity.distance in (SCALAR, CURVE):
        if not len(film) or len(film) != len(reference):
            return None
        return float(np.abs(film - reference).mean())
    if min(len(film), len(reference)) < LEAST_VALUES:
        return None
    distance = float(stats.wasserstein_distance(film, reference))
    known = [np.var(values) for values in real if len(values) >= LEAST_VALUES]
    deviation = float(np.sqrt(np.mean(known)))
    if distance == 0:
        return 0.0
    return distance / deviation if deviation > 0 else None


def _summary(film: Measurements, quantity: Quantity) -> Summary:
    values, count = film.values[quantity.name], film.counts.get(quantity.name, 0)
    if not len(values):
        return Summary(count)
    if quantity.distance == DISTRIBUTION:
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
        return Summary(len(values), median, low, high)
    if quantity.distance == CURVE:
        return Summary(count, curve=tuple(values.tolist()))
    return Summary(count, float(values[0]))
