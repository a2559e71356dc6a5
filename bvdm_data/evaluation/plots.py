"""Plots of the report, as ``data:`` URIs of SVG, so that the page needs no other file."""

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from bvdm_data.system import require

# Colours of series that most colour-blind readers can distinguish (after Okabe & Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#8A4FA3", "#B8860B", "#444444", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # so that series differ not by colour alone
DARK, SOFT, GRID = "#1d2429", "#8a949c", "#e3e7ea"  # a baseline, what is context only, the grid
_WIDTH = 4.8  # inches; with letters of 9 points, it can be read on a phone
_STYLE: dict[str, Any] = {"svg.hashsalt": "report"}  # or names in the SVG differ from run to run
_STYLE |= {"axes.axisbelow": True, "axes.edgecolor": SOFT, "axes.labelsize": 9, "grid.color": GRID}
_STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
_STYLE |= {f"{axis}tick.labelsize": 9 for axis in "xy"}

Number = float | None


@dataclass(frozen=True)
class Series:
    """A line of a plot."""

    x: Sequence[float]
    y: Sequence[Number]
    error: Sequence[Number] | None = None  # half lengths of the error bars
    level: Number = None  # a value drawn as a dotted line across, in the same colour
    colour: str | None = None  # None: the next of COLOURS


def plot_dots(values: Mapping[str, Sequence[Number]], label: str, baseline: str) -> str:
    """Draw each value as a dot, one row per name, and the mean as a bar."""
    figure, axes = _make_axes(0.75 + 0.36 * len(values), x_label=label)
    for row, (name, given) in enumerate(values.items()):
        known = [value for value in given if value is not None and math.isfinite(value)]
        if not known:
            continue
        colour = DARK if name == baseline else COLOURS[0]
        step = 0.36 / max(len(known) - 1, 1)
        rows = [row + (n - (len(known) - 1) / 2) * step for n in range(len(known))]
        axes.plot(known, rows, "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        mean = sum(known) / len(known)
        axes.plot([mean] * 2, [row - 0.32, row + 0.32], color=colour, linewidth=2)
        if name == baseline:
            axes.axvline(mean, color=DARK, linewidth=1, linestyle="--", zorder=0)
    _name_rows(axes, list(values))
    return _embed(figure)


def plot_lines(
    series: Mapping[str, Series], x_label: str, y_label: str, *, log: bool = False
) -> str:
    """Draw lines with marks; ``log``: a logarithmic x axis."""
    figure, axes = _make_axes(3.1, x_label=x_label, y_label=y_label)
    axes.grid(color=GRID)
    for number, (name, line) in enumerate(series.items()):
        colour = line.colour or COLOURS[number % len(COLOURS)]
        # Marks of one x are shifted a little, so that error bars do not overlap.
        shift = 1.02 ** (number - (len(series) - 1) / 2) if log else 1
        error = None if line.error is None else np.array(line.error, float)
        style = {"marker": MARKERS[number % len(MARKERS)], "markersize": 5, "linewidth": 1.5}
        style |= {"color": colour, "elinewidth": 1, "capsize": 2, "label": name}
        axes.errorbar(shift * np.array(line.x), np.array(line.y, float), error, **style)
        if line.level is not None:
            axes.axhline(line.level, color=colour, linewidth=1, linestyle=":")
    if log:
        ticks = sorted({x for line in series.values() for x in line.x})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    _draw_legend(axes, len(series))
    return _embed(figure)


def plot_bars(
    values: Mapping[str, tuple[Number, Number]], label: str, colours: Mapping[str, str]
) -> str:
    """Draw a horizontal bar for each name, with its error."""
    figure, axes = _make_axes(0.75 + 0.3 * len(values), x_label=label)
    for row, (name, (value, error)) in enumerate(values.items()):
        style = {"elinewidth": 1.2, "capsize": 3, "ecolor": DARK}
        length, error = math.nan if value is None else value, None if value is None else error
        axes.barh(row, length, 0.66, xerr=error, color=colours[name], error_kw=style)
    axes.axvline(0, color=DARK, linewidth=0.8)
    _name_rows(axes, list(values))
    return _embed(figure)


def plot_grouped_bars(
    groups: Sequence[str],
    values: Mapping[str, Sequence[Number]],
    label: str,
    colours: Sequence[str],
) -> str:
    """Draw vertical bars, those of one group side by side."""
    figure, axes = _make_axes(3.1, y_label=label)
    axes.grid(axis="y", color=GRID)
    width = 0.8 / len(values)
    for number, (name, heights) in enumerate(values.items()):
        shift = (number - (len(values) - 1) / 2) * width
        x = [group + shift for group in range(len(groups))]
        axes.bar(x, np.array(heights, float), 0.92 * width, color=colours[number], label=name)
    axes.set_xticks(range(len(groups)), groups, rotation=25, ha="right")
    _draw_legend(axes, len(values))
    return _embed(figure)


def embed(content: bytes, mime: str) -> str:
    """Return a file as a ``data:`` URI."""
    return f"data:{mime};base64,{b64encode(content).decode('ascii')}"


def _make_axes(height: float, x_label: str = "", y_label: str = "") -> tuple[Any, Any]:
    # A Figure without pyplot: no state is kept between two reports.
    with require("matplotlib").rc_context(_STYLE):
        figure = require("matplotlib.figure").Figure(figsize=(_WIDTH, height), layout="constrained")
        return figure, figure.add_subplot(xlabel=x_label, ylabel=y_label)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID)


def _draw_legend(axes: Any, count: int) -> None:
    # Above the plot, where it hides nothing.
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
    axes.legend(fontsize=9, frameon=False, ncols=min(count, 3), columnspacing=1.2, **place)


def _embed(figure: Any) -> str:
    buffer = BytesIO()
    with require("matplotlib").rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return embed(buffer.getvalue(), "image/svg+xml")
