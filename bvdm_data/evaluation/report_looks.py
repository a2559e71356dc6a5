"""Report of looks: how far clips are from real ones, as pictures and quantity by quantity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bvdm_data.clip import STAGES
from bvdm_data.evaluation.frechet import DAMAGED, FLOOR
from bvdm_data.evaluation.neighbourhoods import RINGS
from bvdm_data.evaluation.quantities import SCALAR
from bvdm_data.evaluation.report_html import (
    MISSING,
    Row,
    details,
    figure,
    fixed,
    general,
    paragraph,
    side_by_side,
    table,
    text,
    with_error,
)
from bvdm_data.evaluation.report_plots import (
    COLOURS,
    DARK,
    SOFT,
    Series,
    bars,
    curves,
    grouped_bars,
)

FILMS = ("synthetic", "reference", "other")
"""The films of a line, by its keys."""

_FILM_COLOURS = (COLOURS[0], DARK, SOFT)
_TILES = {
    "crops": "Crops around single nuclei",
    "tiles": "Tiles of the frame",
}

Values = Mapping[str, Any]


def largest_gaps(lines: Sequence[Values], count: int = 3) -> list[Values]:
    """Find the quantities in which the judged film is furthest from the reference.

    One of each group, since its quantities say the same again and again. Single numbers are left
    out: two films can agree in one by chance, and then any ratio is large.

    Args:
        lines: :class:`bvdm_data.evaluation.realism.Line` as dicts.
        count: How many.

    Returns:
        The lines with the largest ratio of distance to yardstick in their group, the largest
        first; lines without a ratio are left out.

    Raises:
        ValueError: If count is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    known = [ln for ln in lines if _is_number(ln["ratio"]) and ln["measure"] != SCALAR]
    first: dict[str, Values] = {}
    for line in sorted(known, key=lambda line: float(line["ratio"]), reverse=True):
        first.setdefault(line["group"], line)
    return list(first.values())[:count]


def film_names(part: Values, about: Values) -> dict[str, str]:
    """Return what the films of the realism are called.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"realism"``.
        about: The same under ``"about"``.

    Returns:
        A name for each of ``FILMS``, all different.
    """
    given = part.get("films", {})
    usual = {"synthetic": "synthetic", "reference": about.get("train"), "other": about.get("test")}
    return {film: str(given.get(film) or usual[film] or film) for film in FILMS}


def distance(part: Values) -> str:
    """Return the HTML of the picture distance.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"distance"``.
    """
    kinds = [(title, part[key]) for key, title in _TILES.items() if part.get(key)]
    return "\n".join(
        [
            paragraph(
                "Pictures are described by the features of an image network, and two sets of "
                "pictures compared by them; lower is nearer to the reference. The kernel distance "
                "(KID, ± standard error) is unbiased and may be below 0; the Frechet distance (FD) "
                "falls as n grows. Both carry the name of the network: they are on another scale "
                "than published figures made with other networks. Floor: the other half of the "
                "reference itself, which no other film can reach. Blurred, noisy, flattened: the "
                "reference, damaged on purpose."
            ),
            paragraph(text(part["note"])) if part.get("note") else "",
            side_by_side(*(_distance_table(*kind) + _distance_plot(*kind) for kind in kinds)),
        ]
    )


def realism(part: Values, names: Mapping[str, str]) -> str:
    """Return the HTML of the realism.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"realism"``.
        names: What the films are called, by ``FILMS``.
    """
    lines = part["lines"]
    reference, other = text(names["reference"]), text(names["other"])
    judged = text(names["synthetic"])
    explained = (
        f"Each quantity is measured on the judged film ({judged}) and on two real ones, "
        f"{reference} and {other}. Distance: from {judged} to {reference}; yardstick: the same "
        f"from {other} to {reference}; "
        "ratio: distance over yardstick. \N{BLACK UP-POINTING TRIANGLE} marks a ratio above 1: "
        "further away than another real film. Medians with the range from the 10th to the 90th "
        "percentile; n: values, or what is behind a number. Mind n: few values lie apart by chance."
    )
    return "\n".join(
        [
            paragraph(explained),
            side_by_side(
                _persistence_plot(lines, names),
                _edge_plot(lines, names),
                _agreement_plot(lines, names),
                *(_further_plot(title, plot) for title, plot in part.get("curves", {}).items()),
            ),
            _lines_table(lines, names),
            _curve_numbers(lines, names),
        ]
    )


def gaps(part: Values, names: Mapping[str, str]) -> str:
    """Return the HTML of the largest gaps.

    Args:
        part: What :func:`bvdm_data.evaluation.report.write_report` takes under ``"realism"``.
        names: What the films are called, by ``FILMS``.
    """
    items = "".join(f"<li>{_gap(line, names)}</li>" for line in largest_gaps(part["lines"]))
    return f"<ol>{items}</ol>" if items else paragraph("No quantity has a ratio.")


def _gap(line: Values, names: Mapping[str, str]) -> str:
    reference, other = text(names["reference"]), text(names["other"])
    values = [
        f"{text(names[film])} {general(line[film]['median'])}"
        for film in FILMS
        if line[film]["median"] is not None
    ]
    medians = f"; {', '.join(values)} {text(line['unit'])}".rstrip() if values else ""
    return (
        f"<strong>{text(line['name'])}</strong> ({text(line['group'])}): "
        f"{general(line['ratio'], 3)} times as far from {reference} as {other} is "
        f"(distance {general(line['distance'], 3)}, yardstick {general(line['yardstick'], 3)}, "
        f"{text(line['measure'])}{medians})"
    )


def _distance_table(title: str, rows: Sequence[Values]) -> str:
    features = text(rows[0]["features"])
    cells = []
    for row in rows:
        (kernel, error), kind = row["kernel"], "context" if _is_control(row["name"]) else ""
        values = [with_error(kernel, error, 1), fixed(row["frechet"], 1)]
        cells.append(Row([text(row["name"]), str(row["count"]), *values], kind))
    return table(title, ["set", "n", f"KID-{features} x 1000", f"FD-{features}"], cells)


def _distance_plot(title: str, rows: Sequence[Values]) -> str:
    colours = {row["name"]: _distance_colour(row["name"]) for row in rows}
    label = f"KID-{rows[0]['features']} x 1000"
    plot = bars({row["name"]: tuple(row["kernel"]) for row in rows}, label, colours)
    return figure(plot, f"{title}: {label}, with standard error. Grey: floor and damaged controls.")


def _distance_colour(name: str) -> str:
    if _is_control(name):
        return SOFT
    return DARK if name.startswith("real") else COLOURS[0]


def _is_control(name: str) -> bool:
    return name in (FLOOR, *DAMAGED)


def _lines_table(lines: Sequence[Values], names: Mapping[str, str]) -> str:
    rows = []
    for group in dict.fromkeys(line["group"] for line in lines):
        rows.append(Row([text(group)], "group"))
        rows += [_line(line) for line in lines if line["group"] == group]
    heads = ["quantity", *(text(names[film]) for film in FILMS), "distance", "yardstick", "ratio"]
    return table("Quantities", heads, rows)


def _line(line: Values) -> Row:
    unit = f" <small>{text(line['unit'])}</small>" if line["unit"] else ""
    kind = f"<small>{text(line['measure'])}</small>"
    return Row(
        [
            f"{text(line['name'])}{unit}",
            *(_film(line[film]) for film in FILMS),
            f"{general(line['distance'], 3)}{kind}" if _is_number(line["distance"]) else MISSING,
            general(line["yardstick"], 3),
            _ratio(line["ratio"]),
        ]
    )


def _film(summary: Values) -> str:
    value = "curve" if summary["curve"] else general(summary["median"])
    low, high = summary["low"], summary["high"]
    span = f"{general(low)} to {general(high)}, " if _is_number(low) and _is_number(high) else ""
    return f"{value}<small>{span}n {summary['count']}</small>"


def _ratio(ratio: float | None) -> str:
    if not _is_number(ratio) or ratio is None or ratio <= 1:
        return general(ratio, 3)
    return f'<td class="marked">{general(ratio, 3)} \N{BLACK UP-POINTING TRIANGLE}</td>'


def _curve_numbers(lines: Sequence[Values], names: Mapping[str, str]) -> str:
    tables = []
    for line in lines:
        found = {film: line[film]["curve"] for film in FILMS}
        count = max(len(curve) for curve in found.values())
        if not count:
            continue
        places = RINGS if count == len(RINGS) else range(count)
        rows = [
            Row([text(names[film]), *(fixed(value, 3) for value in curve)])
            for film, curve in found.items()
            if curve
        ]
        tables.append(table(line["name"], ["film", *(general(place) for place in places)], rows))
    return details("Curves in numbers", "".join(tables)) if tables else ""


def _persistence_plot(lines: Sequence[Values], names: Mapping[str, str]) -> str:
    by_lag = {}
    for line in lines:
        words = line["name"].split()
        if words[:2] == ["texture", "after"] and words[3:] == ["frames"]:
            by_lag[int(words[2])] = line
    if not by_lag:
        return ""
    unrelated = _named(lines, "texture of unrelated nuclei")
    series = {
        names[film]: Series(
            x=list(by_lag),
            y=[line[film]["median"] for line in by_lag.values()],
            level=unrelated[film]["median"] if unrelated else None,
            colour=colour,
        )
        for film, colour in zip(FILMS, _FILM_COLOURS, strict=True)
    }
    return figure(
        curves(series, "frames between the pictures", "correlation of the texture"),
        "Correlation of the inside of a nucleus with itself some frames later, after rigid "
        "alignment; medians. Dotted: unrelated nuclei.",
    )


def _edge_plot(lines: Sequence[Values], names: Mapping[str, str]) -> str:
    line = _named(lines, "edge profile")
    if line is None:
        return ""
    series = {
        names[film]: Series(x=RINGS, y=line[film]["curve"], colour=colour)
        for film, colour in zip(FILMS, _FILM_COLOURS, strict=True)
        if len(line[film]["curve"]) == len(RINGS)
    }
    if not series:
        return ""
    return figure(
        curves(series, "distance from the outline, px (below 0: inside)", "relative light"),
        "Edge profile: median light across the outline of a nucleus.",
    )


def _agreement_plot(lines: Sequence[Values], names: Mapping[str, str]) -> str:
    found = {stage: _named(lines, f"label agreement, {stage}") for stage in STAGES}
    known = {stage: line for stage, line in found.items() if line is not None}
    if not known:
        return ""
    values = {names[film]: [line[film]["median"] for line in known.values()] for film in FILMS}
    colours = dict(zip(values, _FILM_COLOURS, strict=True))
    return figure(
        grouped_bars(list(known), values, "label agreement", colours),
        "Label agreement: how well the outline fits the picture, by stage; medians.",
    )


def _further_plot(title: str, plot: Values) -> str:
    series = {name: Series(x=plot["x"], y=values) for name, values in plot["lines"].items()}
    drawn = curves(series, plot.get("x_label", ""), plot.get("y_label", ""))
    return figure(drawn, title)


def _named(lines: Sequence[Values], name: str) -> Values | None:
    return next((line for line in lines if line["name"] == name), None)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
