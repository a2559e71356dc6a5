"""Report: the figures of an evaluation as JSON, and as a page that is read without a network."""

import json
import math
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import numpy as np
from scipy import stats

from bvdm_data.evaluation.clip_cache import replace_nan
from bvdm_data.evaluation.distances import CONTROLS
from bvdm_data.evaluation.experiment import FIGURES
from bvdm_data.evaluation.nucleus_features import RINGS
from bvdm_data.evaluation.realism import SCALAR
from bvdm_data.evaluation.seg_tra import COUNTS, LINK_MEASURES
from bvdm_data.files import open_atomic
from bvdm_data.system import require
from bvdm_data.viz.pictures import encode_uri

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


def _plot_dots(values: Mapping[str, Sequence[Number]], label: str, baseline: str) -> str:
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
    # Above the plot, where it hides nothing.
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
    columns = min(len(series), 3)
    axes.legend(fontsize=9, frameon=False, ncols=columns, columnspacing=1.2, **place)
    return _embed(figure)


def _plot_bars(
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


def _make_axes(height: float, x_label: str = "", y_label: str = "") -> tuple[Any, Any]:
    # A Figure without pyplot: no state is kept between two reports.
    with require("matplotlib").rc_context(_STYLE):
        figure = require("matplotlib.figure").Figure(figsize=(_WIDTH, height), layout="constrained")
        return figure, figure.add_subplot(xlabel=x_label, ylabel=y_label)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID)


def _embed(figure: Any) -> str:
    buffer = BytesIO()
    with require("matplotlib").rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return encode_uri(buffer.getvalue(), "image/svg+xml")


# Titles of the sections by their ids.
SECTIONS = {"training": "Training value", "transfer": "Transfer", "linking": "Tracking value"}
SECTIONS |= {"pictures": "Pictures", "distance": "Picture distance", "realism": "Realism"}
SECTIONS |= {"gaps": "The largest gaps"}
# Heads of the columns of scores.
HEADS = {"seg": "SEG", "det": "DET", "tra": "TRA", "lnk": "LNK", "bc": "BC(1)", "valid": "valid"}
HEADS |= {"found": "found", "found_dim": "dim found", "false_positives": "false positives a frame"}
HEADS |= {"area_ratio": "area ratio"}
# What is shown of the tests of transfer.
TRANSFER_FIGURES = ("seg", "det", "tra", "false_positives", "area_ratio")
VIDEOS = ("synthetic", "reference", "other")  # the videos that realism compares, by their keys
# Titles of the feature distances; the last two are by networks that are not always there.
TILES = {"crops": "Crops around single nuclei", "tiles": "Tiles of the frame"}
TILES |= {"IncN": "Crops, by another network", "TransNet": "Crops followed over 8 frames"}
# SEG and TRA by training data (paper, table 1).
PAPER_ARMS = {"real": (0.823, 0.976), "MitoGen": (0.822, 0.972)}
PAPER_ARMS |= {"CellCycleGAN": (0.781, 0.953), "BVDM": (0.829, 0.979)}
_VIDEO_COLOURS = (COLOURS[0], DARK, SOFT)

Values = Mapping[str, Any]
Plot = tuple[str, str]  # data URI and caption


def write_report(
    results: Values, folder: Path, *, pictures: Mapping[str, Path] = MappingProxyType({})
) -> Path:
    """Write all figures to ``report.json`` and a page to ``index.html``.

    The page holds its plots and pictures itself and loads nothing. A part that is missing in the
    results is left out of it. NaN is null in the JSON and "n/a" on the page.
    """
    results = replace_nan(results)
    figures = json.dumps(results, indent=2, allow_nan=False) + "\n"
    page = make_environment().get_template("report.html.j2").render(make_view(results, pictures))
    for name, text in {"report.json": figures, "index.html": page}.items():
        with open_atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / "index.html"


def make_environment(*folders: Path) -> jinja2.Environment:
    """Make the environment that renders templates of this folder and of more folders."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"general": _format_general, "fixed": _format_fixed}
    environment.filters |= {"settings": _format_settings, "head": HEADS.__getitem__}
    environment.filters |= {"choose_figures": _choose_figures, "compute_limit": _compute_limit}
    environment.filters["link_head"] = LINK_MEASURES.__getitem__
    known = {"FIGURES": FIGURES, "LINK_MEASURES": LINK_MEASURES, "PAPER_ARMS": PAPER_ARMS}
    known |= {"TRANSFER_FIGURES": TRANSFER_FIGURES, "COUNTS": COUNTS}
    known |= {"CONTROLS": CONTROLS, "TILES": TILES, "VIDEOS": VIDEOS}
    environment.globals |= known
    return environment


def make_view(results: Values, pictures: Mapping[str, Path]) -> dict[str, Any]:
    """Return the variables of the template."""
    about = results.get("about", {})
    drawn: dict[str, list[Plot] | dict[str, Plot]] = {}
    view: dict[str, Any] = {"results": results, "plots": drawn}
    view["about"] = {
        key.replace("_", " ").capitalize(): _format_settings(value) for key, value in about.items()
    }
    view["pictures"] = []
    for caption, path in pictures.items():
        mime = mimetypes.guess_type(path)[0] or ""
        if not mime.startswith("image/"):
            raise ValueError(f"pictures must be images, such as .png or .gif, got {path.name!r}")
        view["pictures"].append((encode_uri(path.read_bytes(), mime), caption))
    present = {*results} | ({"pictures"} if pictures else set())
    if "training" in results:
        drawn["training"] = _plot_training(results["training"])
    if "distance" in results:
        drawn["distance"] = _plot_distance(results["distance"])
    if "realism" in results:
        present.add("gaps")
        lines = results["realism"]["lines"]
        names = ("synthetic", about.get("train"), about.get("test"))
        view["names"] = {key: name or key for key, name in zip(VIDEOS, names, strict=True)}
        view["groups"] = {line["group"]: [] for line in lines}
        for line in lines:
            view["groups"][line["group"]].append(line)
        curves = {ln["name"]: {k: ln[k]["curve"] for k in VIDEOS if ln[k]["curve"]} for ln in lines}
        view["curves"] = {name: curve for name, curve in curves.items() if curve}
        view["gaps"] = find_largest_gaps(lines)
        view["rings"] = RINGS
        drawn["realism"] = _plot_realism(lines, view["names"])
    view["sections"] = {key: title for key, title in SECTIONS.items() if key in present}
    return view


def find_largest_gaps(lines: Sequence[Values]) -> list[Values]:
    """Find the three quantities in which the synthetic video is furthest from the reference.

    One of each group, since its quantities depend on each other. Single numbers are left out: two
    videos can agree in one by chance, and then any ratio is large.
    """
    known = [ln for ln in lines if ln["ratio"] is not None and ln["measure"] != SCALAR]
    first: dict[str, Values] = {}
    for line in sorted(known, key=lambda line: float(line["ratio"]), reverse=True):
        first.setdefault(line["group"], line)
    return list(first.values())[:3]


def _format_general(value: float | None, digits: int = 4) -> str:
    """Return a number of any size in a few digits."""
    if value is None:
        return "n/a"
    is_whole = (value == round(value) and abs(value) < 1e6) or abs(value) >= 1e4
    return f"{value:{'.0f' if is_whole else f'.{digits}g'}}".replace("-", "\N{MINUS SIGN}")


def _format_fixed(value: float | None, digits: int = 4, sign: str = "") -> str:
    """Return a number with a fixed number of decimals; ``sign="+"``: always with a sign."""
    return "n/a" if value is None else f"{value:{sign}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _format_settings(value: Any, *, is_inner: bool = False) -> str:
    """Return a value, or settings by name, in one line of text."""
    if isinstance(value, Mapping):
        shown = ", ".join(
            f"{key.replace('_', ' ')} {_format_settings(v, is_inner=True)}"
            for key, v in value.items()
        )
        return f"({shown})" if is_inner else shown
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(str, value))})" if value else "none"
    return "not set" if value is None else str(value)


def _choose_figures(rows: Sequence[Values]) -> list[str]:
    """Return the figures that a table shows: ``valid`` only where a result is not valid."""
    means = [row["mean"] for row in rows]
    hidden = "valid" if all(mean.get("valid") == 1 for mean in means) else ""
    return [figure for figure in FIGURES if figure != hidden and all(figure in m for m in means)]


def _compute_limit(seeds: int) -> float:
    """Return how many standard errors noise alone exceeds in 5 % of cases (Student's t)."""
    return float(stats.t.ppf(0.975, seeds - 1))


def _plot_training(part: Values) -> list[Plot]:
    """Draw the scores of every network."""
    drawn = []
    for figure in ("seg", "tra"):
        by_arm: dict[str, list[float | None]] = {t["arm"]: [] for t in part["trials"]}
        for trial in part["trials"]:
            by_arm[trial["arm"]].append(trial[figure])
        title, baseline = HEADS[figure], part["baseline"]
        caption = f"{title} of every network; bars: means; dashed: mean of {baseline}."
        drawn.append((_plot_dots(by_arm, title, baseline), caption))
    return drawn


def _plot_distance(part: Values) -> dict[str, Plot]:
    """Draw the kernel distances of crops, of tiles, and by further networks."""
    drawn = {}
    for kind, title in TILES.items():
        if kind not in part:
            continue
        values = {row["name"]: tuple(row["kernel"]) for row in part[kind]}
        colours = {name: DARK if name.startswith("real") else COLOURS[0] for name in values}
        colours |= dict.fromkeys(CONTROLS, SOFT)
        label = f"KID-{part[kind][0]['features']} x 1000"
        caption = f"{title}: {label}, with standard error. Grey: floor and damaged controls."
        drawn[kind] = _plot_bars(values, label, colours), caption
    return drawn


def _plot_realism(lines: Sequence[Values], names: Mapping[str, str]) -> list[Plot]:
    """Draw the texture's correlation and the edge profile."""
    by_name = {line["name"]: line for line in lines}
    lags = {int(n.split()[2]): n for n in by_name if n.startswith("texture after ")}
    unrelated, edge = by_name["texture of unrelated nuclei"], by_name["edge profile"]
    texture, edges = {}, {}
    for key, colour in zip(VIDEOS, _VIDEO_COLOURS, strict=True):
        median = {name: line[key]["median"] for name, line in by_name.items()}
        values, level = [median[name] for name in lags.values()], unrelated[key]["median"]
        texture[names[key]] = Series(x=list(lags), y=values, level=level, colour=colour)
        if edge[key]["curve"]:
            edges[names[key]] = Series(x=RINGS, y=edge[key]["curve"], colour=colour)
    edge_labels = "distance from the outline, px (below 0: inside)", "relative intensity"
    texture_labels = "frames between the images", "correlation of the texture"
    return [
        (
            plot_lines(texture, *texture_labels),
            "Correlation of the inside of a nucleus with itself some frames later, after rigid "
            "alignment; medians. Dotted: unrelated nuclei.",
        ),
        (
            plot_lines(edges, *edge_labels),
            "Edge profile: median intensity across the outline of a nucleus.",
        ),
    ]
