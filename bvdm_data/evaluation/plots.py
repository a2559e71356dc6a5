"""Report plots: the drawings of the report, as SVG that needs no file beside it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from bvdm_data.system import require
from bvdm_data.viz.html import embedded

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8A4FA3", "#B8860B", "#444444", "#56B4E9")
"""Colours of series, told apart by most colour-blind readers (after Okabe & Ito 2008)."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Marks of series, so that colour is not all that tells them apart."""

DARK, SOFT, GRID = "#1d2429", "#8a949c", "#e3e7ea"
"""Colours of a baseline, of what is context only, and of the grid."""

WIDTH = 4.8
"""Width of every plot, inches; with letters of 9 points it can be read on a phone."""

_SIZE = 9

Number = float | None


@dataclass(frozen=True)
class Series:
    """A line of a plot."""

    x: Sequence[float]  # places
    y: Sequence[Number]  # values; None where there is none
    # half lengths of the error bars; None: no bars, or none at this place
    error: Sequence[Number] | None = None
    level: Number = None  # A value drawn as a dashed line across, of the same colour
    colour: str | None = None  # its colour; None: the next of COLOURS


def dots(values: Mapping[str, Sequence[Number]], label: str, baseline: str) -> str:
    """Draw every value as a dot, a line of dots for every name, the mean as a bar."""
    shown = {name: _known(found) for name, found in values.items()}
    figure, axes = _axes(0.75 + 0.36 * len(shown))
    for place, (name, found) in enumerate(shown.items()):
        colour = DARK if name == baseline else COLOURS[0]
        step = 0.36 / max(len(found) - 1, 1)
        places = [place + (n - (len(found) - 1) / 2) * step for n in range(len(found))]
        axes.plot(found, places, "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        if found:
            mean = sum(found) / len(found)
            axes.plot([mean] * 2, [place - 0.32, place + 0.32], color=colour, linewidth=2)
            if name == baseline:
                axes.axvline(mean, color=DARK, linewidth=1, linestyle="--", zorder=0)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel(label, fontsize=_SIZE)
    return _uri(figure)


def curves(series: Mapping[str, Series], x_label: str, y_label: str, *, log: bool = False) -> str:
    """Draw lines with marks."""
    figure, axes = _axes(3.1)
    for number, (name, one) in enumerate(series.items()):
        colour = one.colour or COLOURS[number % len(COLOURS)]
        # Marks of one x lie a little beside each other, so that error bars stay apart.
        shift = 1.02 ** (number - (len(series) - 1) / 2) if log else 1
        errors = None if one.error is None else [_nan(error) for error in one.error]
        axes.errorbar(
            [x * shift for x in one.x],
            [_nan(y) for y in one.y],
            errors,
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=1.5,
            elinewidth=1,
            capsize=2,
            label=name,
        )
        if one.level is not None:
            axes.axhline(one.level, color=colour, linewidth=1, linestyle=":")
    if log:
        ticks = sorted({x for one in series.values() for x in one.x})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.grid(color=GRID)
    axes.set_xlabel(x_label, fontsize=_SIZE)
    axes.set_ylabel(y_label, fontsize=_SIZE)
    _legend(axes, len(series))
    return _uri(figure)


def bars(
    values: Mapping[str, tuple[Number, Number]], label: str, colours: Mapping[str, str]
) -> str:
    """Draw a lying bar for every name, with its error."""
    figure, axes = _axes(0.75 + 0.3 * len(values))
    for place, (name, (value, error)) in enumerate(values.items()):
        known = None if error is None or value is None else error
        axes.barh(
            place,
            _nan(value),
            0.66,
            xerr=known,
            color=colours[name],
            error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": DARK},
        )
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.axvline(0, color=DARK, linewidth=0.8)
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel(label, fontsize=_SIZE)
    return _uri(figure)


def grouped_bars(
    groups: Sequence[str],
    values: Mapping[str, Sequence[Number]],
    label: str,
    colours: Mapping[str, str],
) -> str:
    """Draw standing bars, those of one group side by side."""
    figure, axes = _axes(3.1)
    width = 0.8 / max(len(values), 1)
    for number, (name, found) in enumerate(values.items()):
        shift = (number - (len(values) - 1) / 2) * width
        places = [place + shift for place in range(len(groups))]
        heights = [_nan(value) for value in found]
        axes.bar(places, heights, 0.92 * width, color=colours[name], label=name)
    axes.set_xticks(range(len(groups)), list(groups), rotation=25, ha="right")
    axes.grid(axis="y", color=GRID)
    axes.set_ylabel(label, fontsize=_SIZE)
    _legend(axes, len(values))
    return _uri(figure)


def _axes(height: float) -> tuple[Any, Any]:
    # A figure of its own, without pyplot: nothing is kept between two reports.
    figure = require("matplotlib.figure").Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_SIZE, length=3, color=SOFT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(SOFT)
    return figure, axes


def _legend(axes: Any, count: int) -> None:
    # Above the plot, where it hides nothing.
    axes.legend(
        fontsize=_SIZE,
        frameon=False,
        ncols=min(count, 3),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.2,
    )


def _known(values: Sequence[Number]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _nan(value: Number) -> float:
    return math.nan if value is None else value


def _uri(figure: Any) -> str:
    buffer = BytesIO()
    # Without a salt, the names inside the SVG would be new at every run.
    with require("matplotlib").rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return embedded(buffer.getvalue(), "image/svg+xml")
