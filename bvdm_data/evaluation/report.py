"""Report: the figures of an evaluation as JSON, and as a page that is read without a network."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scipy import stats

from bvdm_data.clip import STAGES
from bvdm_data.evaluation.distances import DAMAGED, FLOOR
from bvdm_data.evaluation.experiment import BASELINE, FIGURES, replace_nan
from bvdm_data.evaluation.nucleus_features import RINGS
from bvdm_data.evaluation.plots import COLOURS, DARK, SOFT, Series, bars, curves, dots, grouped_bars
from bvdm_data.evaluation.realism import SCALAR
from bvdm_data.files import open_atomic
from bvdm_data.viz.html import (
    MISSING,
    Row,
    details,
    embedded_picture,
    figure,
    fixed,
    general,
    page,
    paragraph,
    settings_text,
    side_by_side,
    table,
    text,
    with_error,
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
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    known = [ln for ln in lines if _is_number(ln["ratio"]) and ln["measure"] != SCALAR]
    first: dict[str, Values] = {}
    for line in sorted(known, key=lambda line: float(line["ratio"]), reverse=True):
        first.setdefault(line["group"], line)
    return list(first.values())[:count]


def film_names(part: Values, about: Values) -> dict[str, str]:
    """Return what the films of the realism are called."""
    given = part.get("films", {})
    usual = {"synthetic": "synthetic", "reference": about.get("train"), "other": about.get("test")}
    return {film: str(given.get(film) or usual[film] or film) for film in FILMS}


def distance(part: Values) -> str:
    """Return the HTML of the picture distance."""
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
    """Return the HTML of the realism."""
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
    """Return the HTML of the largest gaps."""
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


__all__ = ["largest_gaps", "write_report"]

TITLE = "Evaluation of synthetic live-cell clips"
"""Title of the page."""


def write_report(
    results: Values, folder: Path, *, pictures: Mapping[str, Path] = MappingProxyType({})
) -> Path:
    """Write all figures to ``report.json`` and a page to ``index.html``.

    The page holds its plots and pictures itself and loads nothing. A part that is missing in the
    results is left out of it. NaN is null in the JSON and "n/a" on the page.
    """
    plain = replace_nan(results)
    figures = json.dumps(plain, indent=2, allow_nan=False) + "\n"
    html = page(TITLE, _sections(plain, pictures), _about(plain.get("about", {})))
    with open_atomic(folder / "report.json") as temporary:
        temporary.write_text(figures, encoding="utf-8")
    target = folder / "index.html"
    with open_atomic(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def _sections(results: Values, pictures: Mapping[str, Path]) -> list[tuple[str, str, str]]:
    about = results.get("about", {})
    shown = [figure(embedded_picture(p), c, kind="picture") for c, p in pictures.items()]
    found = []
    if "training" in results:
        found.append(("training", "Training value", training(results["training"])))
    if "scarcity" in results:
        curve = scarcity(
            results["scarcity"],
            whole=results.get("training"),
            whole_frames=about.get("train_frames"),
        )
        found.append(("scarcity", "Scarcity curve", curve))
    if "steps" in results:
        found.append(("steps", "Diffusion steps", steps(results["steps"])))
    if "ablation" in results:
        found.append(("ablation", "Ablation", ablation(results["ablation"])))
    if "reuse" in results:
        found.append(("reuse", "Reuse", reuse(results["reuse"])))
    if "linking" in results:
        found.append(("linking", "Tracking value", linking(results["linking"])))
    if pictures:
        found.append(("pictures", "Pictures", "".join(shown)))
    if "distance" in results:
        found.append(("distance", "Picture distance", distance(results["distance"])))
    if "realism" in results:
        part = results["realism"]
        names = film_names(part, about)
        found.append(("realism", "Realism", realism(part, names)))
        found.append(("gaps", "The largest gaps", gaps(part, names)))
    return found


def _about(about: Values) -> str:
    known = {name: read(about) for name, read in _ABOUT.items()}
    shown = {name: value for name, value in known.items() if value}
    for key, value in about.items():
        if key not in _READ:
            said = settings_text(value) if isinstance(value, Mapping) else _plain(value)
            name = key.replace("_", " ")
            shown[text(name[:1].upper() + name[1:])] = said
    terms = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in shown.items())
    return f"<dl>{terms}</dl>" if terms else ""


def _plain(value: Any) -> str:
    if value is None:
        return MISSING
    return text(", ".join(map(str, value)) if isinstance(value, list) else value)


def _model(about: Values) -> str:
    digest = about.get("model_digest")
    return text(about.get("model", "")) + (f" <small>{text(digest)}</small>" if digest else "")


def _data(about: Values) -> str:
    said = [text(about.get("data_set", ""))]
    frames = f" ({about['train_frames']} frames)" if about.get("train_frames") else ""
    said += [f"fitted to and trained on {text(about['train'])}{frames}"] if "train" in about else []
    said += [f"tested on {text(about['test'])}"] if "test" in about else []
    return ", ".join(part for part in said if part)


def _nested(key: str, about: Values) -> str:
    return settings_text(about.get(key) or {})


_READ = {"model", "model_digest", "method", "data_set", "train", "test", "clip", "budget"}
_READ |= {"machine", "versions", "made", "train_frames"}
_ABOUT: dict[str, Callable[[Values], str]] = {
    "Model": _model,
    "Method": lambda about: text(about.get("method", "")),
    "Data": _data,
    "Clips": lambda about: _nested("clip", about),
    "Seeds and budget": lambda about: _nested("budget", about),
    "Machine": lambda about: _nested("machine", about),
    "Versions": lambda about: _nested("versions", about),
    "Date": lambda about: text(about.get("made", "")),
}


TITLES = {"seg": "SEG", "det": "DET", "tra": "TRA", "lnk": "LNK", "bc": "BC(1)", "valid": "valid"}
TITLES |= {"found": "found", "found_dim": "dim found"}
"""Heads of the columns."""

EXPLAINED = """All scores run from 0 to 1, higher is better. SEG: mean overlap of segmented nuclei;
DET: detection; TRA: tracking; LNK: links between frames; BC(1): F1 of divisions, at most one frame
off; found: share of nuclei that a prediction covers by more than half; dim found: the same of the
dimmest tenth; valid: share of results that the challenge would accept, in the tables only where it
is not 1. ± is the standard deviation over the seeds."""
"""What the columns are."""


def heads(figures: Sequence[str] = FIGURES) -> list[str]:
    """Return the heads of the columns of scores."""
    return [TITLES[one] for one in figures]


def columns(rows: Sequence[Values]) -> list[str]:
    """Return the scores that tables show: ``valid`` only where some result is not."""
    all_valid = all(row["mean"].get("valid") == 1 for row in rows)
    return [one for one in FIGURES if one != "valid" or not all_valid]


def means(row: Values, figures: Sequence[str] = FIGURES) -> list[str]:
    """Return the cells of the mean scores of an arm."""
    scores = [with_error(row["mean"].get(one), row["spread"].get(one)) for one in figures]
    return [text(row["arm"]), str(row["seeds"]), *scores]


def differences(rows: Sequence[Values], baseline: str, prefix: str = "") -> str:
    """Return a table of the differences to the baseline, those within the noise in grey."""
    compared = [row for row in rows if row["arm"] != baseline and _any(row["gain"])]
    if not compared:
        return ""
    shown = columns(rows)
    cells = [
        Row([text(row["arm"]), str(row["seeds"]), *(_difference(row, one) for one in shown)])
        for row in compared
    ]
    title = f"{prefix}Difference to {baseline} ± standard error"
    return table(title[0].upper() + title[1:], ["arm", "seeds", *heads(shown)], cells) + _caution(
        min(row["seeds"] for row in compared)
    )


def settings_line(part: Values) -> str:
    """Return how networks were trained."""
    if not part.get("settings"):
        return ""
    return paragraph(f'<span class="soft">Settings: {settings_text(part["settings"])}.</span>')


def all_networks(trials: Sequence[Values]) -> str:
    """Return a table of every single network, to be opened by the reader."""
    rows = []
    for trial in trials:
        scores = [fixed(trial[one]) for one in FIGURES]
        seconds = general(trial.get("seconds"))
        rows.append(Row([text(trial["arm"]), str(trial["seed"]), *scores, seconds]))
    titles = ["arm", "seed", *heads(), "seconds"]
    return details("Every network", table("Every network", titles, rows)) if rows else ""


def _difference(row: Values, one: str) -> str:
    gain, error, needed = (row[key].get(one) for key in ("gain", "error", "seeds_needed"))
    if gain is None:
        return MISSING
    noise = error is None or gain == 0 or abs(gain) < 2 * error
    said = ["noise unknown" if error is None else "within the noise"] if noise else []
    said.append(f"seeds needed: {general(needed)}")
    value = f"{fixed(gain, signed=True)} ± {fixed(error)}"
    remarks = "".join(f"<small>{remark}</small>" for remark in said)
    return f'<td class="noise">{value}{remarks}</td>' if noise else f"<td>{value}{remarks}</td>"


def _caution(seeds: int) -> str:
    """Say how often noise alone gives more than two standard errors (Student's t)."""
    if seeds < 2:
        return paragraph("One seed says nothing of the noise; three are the least that do.")
    share = 2 * float(stats.t.sf(2, seeds - 1))
    return paragraph(
        "Networks of the same seed are paired. Grey: smaller than two standard errors, so within "
        f"the noise. With {seeds} seeds, noise alone exceeds two standard errors in "
        f"{100 * share:.0f} % of cases. Seeds needed: with so many, a t-test at 5 % would call "
        "this difference one."
    )


def _any(figures: Mapping[str, float | None]) -> bool:
    return any(value is not None for value in figures.values())


PAPER_ARMS = {
    "real": (0.823, 0.976),
    "MitoGen": (0.822, 0.972),
    "CellCycleGAN": (0.781, 0.953),
    "BVDM": (0.829, 0.979),
}
"""SEG and TRA by training data (paper, table 1)."""

PAPER_STEPS = {
    "100/10": (0.822, 0.967),
    "200/10": (0.829, 0.979),
    "400/10": (0.815, 0.960),
    "600/10": (0.786, 0.947),
    "200/0": (0.820, 0.972),
    "200/30": (0.827, 0.970),
    "200/50": (0.821, 0.965),
    "200/200": (0.813, 0.941),
}
"""SEG and TRA by first and later diffusion steps (paper, tables 2a and 2b)."""

LAGS = (1, 2, 4, 7)
"""Lags of the correlation of texture, frames; a list of it may be shorter."""

STEP_FIGURES = ("seg", "det", "tra")
"""Columns of the table of diffusion steps."""


def training(part: Values) -> str:
    """Return the HTML of the training value."""
    rows, baseline = part["rows"], part.get("baseline", BASELINE)
    shown = columns(rows)
    cells = [Row(means(row, shown)) for row in rows]
    if "ceiling" in part:
        known = part["ceiling"]
        perfect = [fixed(known[one]) if one in known else "" for one in shown]
        cells.append(Row(["tracker on the reference masks", "", *perfect], "context"))
    plots = [
        figure(
            dots(_by_arm(part["trials"], one), TITLES[one], baseline),
            f"{TITLES[one]} of every network; bars: means; dashed: mean of {baseline}.",
        )
        for one in ("seg", "tra")
        if part.get("trials")
    ]
    return "\n".join(
        [
            paragraph(
                "The same segmentation network is trained on each arm's data and tested, with the "
                "same tracker behind it, on a real video that no arm has seen."
            ),
            paragraph(EXPLAINED),
            table("Networks by training data", ["arm", "seeds", *heads(shown)], cells),
            differences(rows, baseline),
            side_by_side(*plots),
            _paper_arms(),
            settings_line(part),
            all_networks(part.get("trials", [])),
        ]
    )


def scarcity(part: Values, *, whole: Values | None, whole_frames: int | None) -> str:
    """Return the HTML of the scarcity curve."""
    levels = sorted(((int(frames), level) for frames, level in part.items()), key=lambda it: it[0])
    named = [(str(frames), level) for frames, level in levels]
    arms = list(dict.fromkeys(row["arm"] for _, level in levels for row in level["rows"]))
    if whole is not None:
        kept = [row for row in whole["rows"] if row["arm"] in arms]
        named.append((f"all {whole_frames or ''}".strip(), {**whole, "rows": kept}))
        if whole_frames:
            levels = [*levels, (whole_frames, named[-1][1])]
    shown = columns([row for _, level in named for row in level["rows"]])
    rows = []
    for frames, level in named:
        title = f"{frames} annotated frame{'' if frames == '1' else 's'}"
        rows.append(Row([text(title)], "group"))
        rows += [Row(means(row, shown)) for row in level["rows"]]
        for arm, reason in level.get("missing", {}).items():
            cell = f'<td class="reason" colspan="{len(shown) + 1}">not possible: {text(reason)}'
            rows.append(Row([text(arm), f"{cell}</td>"]))
    steps = [
        differences(level["rows"], level.get("baseline", BASELINE), f"{frames} frames: ")
        for frames, level in named
    ]
    lines = {arm: _curve(arm, levels) for arm in arms}
    plot = curves(lines, "annotated frames", "SEG", log=True) if lines else ""
    caption = "SEG against the number of annotated frames; bars: standard deviation over the seeds."
    return "\n".join(
        [
            paragraph(
                "Only the first frames of the training video are used, for fitting the model and "
                "for training alike; the test stays the same."
            ),
            side_by_side(figure(plot, caption)) if plot else "",
            table("Networks by number of annotated frames", ["arm", "seeds", *heads(shown)], rows),
            details("Differences for each number of frames", "".join(steps)) if any(steps) else "",
            settings_line(levels[0][1]) if levels else "",
        ]
    )


def steps(part: Values) -> str:
    """Return the HTML of the comparison of diffusion steps."""
    known = [pair for pair, one in part.items() if one["rows"]]
    pairs = sorted(known, key=lambda pair: [int(number) for number in pair.split("/")])
    first = [pair for pair in pairs if pair.endswith("/10")]
    later = [pair for pair in pairs if pair.startswith("200/")]
    rest = [pair for pair in pairs if pair not in (*first, *later)]
    tables = [
        _steps_table("a) Steps at the first frame, 10 at later ones", first, part),
        _steps_table("b) Steps at later frames, 200 at the first", later, part),
        _steps_table("Other steps", rest, part),
    ]
    return "\n".join(
        [
            paragraph(
                "Each row: networks trained on a few clips that were made with so many diffusion "
                "steps at the first frame of a nucleus and at the later ones. Compare rows with "
                "each other; the paper's figures beside them come from more clips, another "
                "segmenter and other test frames."
            ),
            *tables,
            settings_line(part[pairs[0]]) if pairs else "",
            all_networks([trial for pair in pairs for trial in part[pair].get("trials", [])]),
        ]
    )


def ablation(part: Values) -> str:
    """Return the HTML of the comparison of variants."""
    return _variants(
        "Variants",
        "Each row: networks trained on a few clips of a variant, all with the same number of clips "
        "and steps and the same seeds.",
        part,
    )


def reuse(part: Values) -> str:
    """Return the HTML of what it costs to show nuclei again."""
    return _variants(
        "Painted nuclei that are shown again",
        "Each row: networks trained on an endless stream, every sample from another clip. From row "
        "to row the same nuclei are shown more often.",
        part,
    )


def _variants(title: str, explained: str, part: Values) -> str:
    known = [name for name, one in part.items() if one["rows"]]
    return "\n".join(
        [
            paragraph(explained),
            _steps_table(title, known, part, paper=False),
            settings_line(part[known[0]]) if known else "",
            all_networks([trial for name in known for trial in part[name].get("trials", [])]),
        ]
    )


def linking(part: Values) -> str:
    """Return the HTML of the tracking value."""
    figures = ("lnk", "bc", "tra")
    rows = []
    for row in part["rows"]:
        scores = [with_error(row.get(one), row.get(f"{one}_spread")) for one in figures]
        rows.append(Row([text(row["arm"]), str(row["seeds"]), *scores]))
    if "laptrack" in part:
        scores = [fixed(part["laptrack"].get(one)) for one in figures]
        rows.append(Row(["LapTrack, not trained", "", *scores], "context"))
    return "\n".join(
        [
            paragraph(
                "A linking network is trained on each arm's clips and then links the reference "
                "masks of the test video, so SEG and DET are 1 for all and only the links differ. "
                "Single frames cannot teach this. ± is the standard deviation over the seeds."
            ),
            table(
                "Linkers by training data",
                ["arm", "seeds", *heads(figures)],
                rows,
            ),
            settings_line(part),
        ]
    )


def _by_arm(trials: Sequence[Values], one: str) -> dict[str, list[float | None]]:
    arms = dict.fromkeys(trial["arm"] for trial in trials)
    return {arm: [trial[one] for trial in trials if trial["arm"] == arm] for arm in arms}


def _curve(arm: str, levels: Sequence[tuple[int, Values]]) -> Series:
    found = [(n, row) for n, level in levels for row in level["rows"] if row["arm"] == arm]
    return Series(
        x=[frames for frames, _ in found],
        y=[row["mean"].get("seg") for _, row in found],
        error=[row["spread"].get("seg") for _, row in found],
    )


def _paper_arms() -> str:
    real = PAPER_ARMS["real"]
    rows = []
    for arm, scores in PAPER_ARMS.items():
        gains = [fixed(a - b, 3, signed=True) for a, b in zip(scores, real, strict=True)]
        shown = [*(fixed(score, 3) for score in scores), *(gains if arm != "real" else ["", ""])]
        rows.append(Row([arm, *shown], "context"))
    titles = ["arm", "SEG", "TRA", "SEG \N{MINUS SIGN} real", "TRA \N{MINUS SIGN} real"]
    return table("The paper, table 1, for context", titles, rows) + paragraph(
        "Absolute values are not comparable with the ones above: the paper used another segmenter "
        "and another tracker and tested on other frames. Only differences to real are, and the "
        "paper gives no spread for them."
    )


def _steps_table(title: str, pairs: Sequence[str], part: Values, *, paper: bool = True) -> str:
    if not pairs:
        return ""
    found = {pair: {**part[pair], **part[pair]["rows"][0], "arm": pair} for pair in pairs}
    lags = max(len(row.get("correlation") or []) for row in found.values())
    extra = {
        "kid": "KID-Lite0 x 1000",
        "agreement": "label agreement",
        "correlation": f"texture after<br>{' / '.join(map(str, LAGS[:lags]))} frames",
        "seconds_per_clip": "s/clip",
    }
    extra = {key: head for key, head in extra.items() if any(key in r for r in found.values())}
    rows = []
    for pair, row in found.items():
        scores = [fixed(score, 3) for score in PAPER_STEPS.get(pair, ())] or ["", ""]
        context = [f'<td class="soft">{score}</td>' for score in scores] if paper else []
        further = [_further(key, row) for key in extra]
        rows.append(Row([*means(row, STEP_FIGURES), *further, *context]))
    titles = [*heads(STEP_FIGURES), *extra.values()]
    titles += ["paper: SEG", "paper: TRA"] if paper else []
    return table(title, ["first/later" if paper else "variant", "seeds", *titles], rows)


def _further(key: str, row: Values) -> str:
    value = row.get(key)
    if key == "kid":
        pair = value if isinstance(value, (list, tuple)) else (value, row.get("kid_error"))
        return with_error(pair[0], pair[1], 1)
    if key == "correlation":
        return " / ".join(fixed(one, 3) for one in value) if value else MISSING
    return fixed(value, 3) if key == "agreement" else general(value)
