"""Report: the figures of an evaluation as JSON, and as a page that is read without a network."""

import json
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from scipy import stats

from bvdm_data.clip import STAGES
from bvdm_data.evaluation import plots
from bvdm_data.evaluation.clip_cache import nan_to_none
from bvdm_data.evaluation.distances import DAMAGED, FLOOR
from bvdm_data.evaluation.experiment import FIGURES, LINK_FIGURES
from bvdm_data.evaluation.nucleus_features import RINGS
from bvdm_data.evaluation.plots import COLOURS, DARK, SOFT, Series
from bvdm_data.evaluation.realism import SCALAR
from bvdm_data.files import open_atomic

__all__ = ["find_largest_gaps", "write_report"]

SECTIONS = {
    "training": "Training value",
    "linking": "Tracking value",
    "pictures": "Pictures",
    "distance": "Picture distance",
    "realism": "Realism",
    "gaps": "The largest gaps",
}
"""Titles of the sections by their ids."""

HEADS = {"seg": "SEG", "det": "DET", "tra": "TRA", "lnk": "LNK", "bc": "BC(1)", "valid": "valid"}
HEADS |= {"found": "found", "found_dim": "dim found"}
"""Heads of the columns of scores."""

VIDEOS = ("synthetic", "reference", "other")  # the videos that realism compares, by their keys
# Titles of the two feature distances.
TILES = {"crops": "Crops around single nuclei", "tiles": "Tiles of the frame"}

PAPER_ARMS = {
    "real": (0.823, 0.976),
    "MitoGen": (0.822, 0.972),
    "CellCycleGAN": (0.781, 0.953),
    "BVDM": (0.829, 0.979),
}
"""SEG and TRA by training data (paper, table 1)."""

CONTROLS = (FLOOR, *DAMAGED)  # sets that a feature distance is compared to

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
    results = nan_to_none(results)
    figures = json.dumps(results, indent=2, allow_nan=False) + "\n"
    page = make_environment().get_template("report.html.j2").render(make_view(results, pictures))
    for name, text in {"report.json": figures, "index.html": page}.items():
        with open_atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / "index.html"


def make_environment(*folders: Path) -> jinja2.Environment:
    """Return what renders the template of the report, and templates in more folders."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "general": format_general,
        "fixed": format_fixed,
        "settings": format_settings,
        "choose_figures": choose_figures,
        "head": HEADS.__getitem__,
    }
    environment.globals |= {
        "CONTROLS": CONTROLS,
        "FIGURES": FIGURES,
        "LINK_FIGURES": LINK_FIGURES,
        "PAPER_ARMS": PAPER_ARMS,
        "TILES": TILES,
        "VIDEOS": VIDEOS,
        "compute_noise_share": compute_noise_share,
    }
    return environment


def make_view(results: Values, pictures: Mapping[str, Path]) -> dict[str, Any]:
    """Return the variables of the template."""
    about = results.get("about", {})
    view: dict[str, Any] = {"results": results, "about": describe_about(about), "plots": {}}
    view["pictures"] = [(_embed_picture(path), caption) for caption, path in pictures.items()]
    present = {*results} | ({"pictures"} if pictures else set())
    if "training" in results:
        view["plots"]["training"] = plot_training(results["training"])
    if "distance" in results:
        view["plots"]["distance"] = plot_distance(results["distance"])
    if "realism" in results:
        present.add("gaps")
        lines = results["realism"]["lines"]
        names = ("synthetic", about.get("train"), about.get("test"))
        view["names"] = {key: name or key for key, name in zip(VIDEOS, names, strict=True)}
        view["groups"] = {line["group"]: [] for line in lines}
        for line in lines:
            view["groups"][line["group"]].append(line)
        view["curves"] = {
            line["name"]: {key: line[key]["curve"] for key in VIDEOS if line[key]["curve"]}
            for line in lines
            if any(line[key]["curve"] for key in VIDEOS)
        }
        view["gaps"] = find_largest_gaps(lines)
        view["rings"] = RINGS
        view["plots"]["realism"] = plot_realism(lines, view["names"])
    view["sections"] = {key: title for key, title in SECTIONS.items() if key in present}
    return view


def find_largest_gaps(lines: Sequence[Values], count: int = 3) -> list[Values]:
    """Find the quantities in which the synthetic video is furthest from the reference.

    One of each group, since its quantities depend on each other. Single numbers are left out: two
    videos can agree in one by chance, and then any ratio is large.
    """
    known = [ln for ln in lines if ln["ratio"] is not None and ln["measure"] != SCALAR]
    first: dict[str, Values] = {}
    for line in sorted(known, key=lambda line: float(line["ratio"]), reverse=True):
        first.setdefault(line["group"], line)
    return list(first.values())[:count]


def describe_about(about: Values) -> dict[str, str]:
    """Return what was evaluated, by the term that the page shows for it."""
    return {
        key.replace("_", " ").capitalize(): format_settings(value)
        if isinstance(value, Mapping)
        else _format_setting(value)
        for key, value in about.items()
    }


def format_general(value: float | None, digits: int = 4) -> str:
    """Return a number of any size in a few digits."""
    if value is None:
        return "n/a"
    if (value == round(value) and abs(value) < 1e6) or abs(value) >= 1e4:
        return f"{value:.0f}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def format_fixed(value: float | None, digits: int = 4, sign: str = "") -> str:
    """Return a number with a fixed number of decimals; ``sign="+"``: always with a sign."""
    return "n/a" if value is None else f"{value:{sign}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_settings(settings: Values) -> str:
    """Return settings in one line of text."""
    shown = (f"{key.replace('_', ' ')} {_format_setting(v)}" for key, v in settings.items())
    return ", ".join(shown)


def _format_setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({format_settings(value)})"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(str, value))})"
    return "not set" if value is None else str(value)


def choose_figures(rows: Sequence[Values]) -> list[str]:
    """Return the figures that a table shows: ``valid`` only where a result is not valid."""
    is_valid = all(row["mean"].get("valid") == 1 for row in rows)
    return [figure for figure in FIGURES if figure != "valid" or not is_valid]


def compute_noise_share(seeds: int) -> float:
    """Return how often noise alone exceeds two standard errors (Student's t)."""
    return 2 * float(stats.t.sf(2, seeds - 1))


def plot_training(part: Values) -> list[Plot]:
    """Draw the scores of every network."""
    drawn = []
    for figure in ("seg", "tra"):
        by_arm: dict[str, list[float | None]] = {t["arm"]: [] for t in part["trials"]}
        for trial in part["trials"]:
            by_arm[trial["arm"]].append(trial[figure])
        title, baseline = HEADS[figure], part["baseline"]
        caption = f"{title} of every network; bars: means; dashed: mean of {baseline}."
        drawn.append((plots.plot_dots(by_arm, title, baseline), caption))
    return drawn


def plot_distance(part: Values) -> dict[str, Plot]:
    """Draw the kernel distances of crops and of tiles."""
    drawn = {}
    for kind, title in TILES.items():
        values = {row["name"]: tuple(row["kernel"]) for row in part[kind]}
        colours = {name: DARK if name.startswith("real") else COLOURS[0] for name in values}
        colours |= dict.fromkeys(CONTROLS, SOFT)
        label = f"KID-{part[kind][0]['features']} x 1000"
        caption = f"{title}: {label}, with standard error. Grey: floor and damaged controls."
        drawn[kind] = plots.plot_bars(values, label, colours), caption
    return drawn


def plot_realism(lines: Sequence[Values], names: Mapping[str, str]) -> list[Plot]:
    """Draw the texture's correlation, the edge profile and the agreement of labels."""
    by_name = {line["name"]: line for line in lines}
    lags = {int(n.split()[2]): n for n in by_name if n.startswith("texture after ")}
    unrelated, edge = by_name["texture of unrelated nuclei"], by_name["edge profile"]
    texture_series, edge_series = {}, {}
    for key, colour in zip(VIDEOS, _VIDEO_COLOURS, strict=True):
        texture_series[names[key]] = Series(
            x=list(lags),
            y=[by_name[name][key]["median"] for name in lags.values()],
            level=unrelated[key]["median"],
            colour=colour,
        )
        if edge[key]["curve"]:
            edge_series[names[key]] = Series(x=RINGS, y=edge[key]["curve"], colour=colour)
    agreement = {
        names[key]: [by_name[f"label agreement, {stage}"][key]["median"] for stage in STAGES]
        for key in VIDEOS
    }
    return [
        (
            plots.plot_lines(
                texture_series, "frames between the images", "correlation of the texture"
            ),
            "Correlation of the inside of a nucleus with itself some frames later, after rigid "
            "alignment; medians. Dotted: unrelated nuclei.",
        ),
        (
            plots.plot_lines(
                edge_series, "distance from the outline, px (below 0: inside)", "relative intensity"
            ),
            "Edge profile: median intensity across the outline of a nucleus.",
        ),
        (
            plots.plot_grouped_bars(STAGES, agreement, "label agreement", _VIDEO_COLOURS),
            "Label agreement: how well the outline fits the image, by stage; medians.",
        ),
    ]


def _embed_picture(path: Path) -> str:
    mime = mimetypes.guess_type(path)[0] or ""
    if not mime.startswith("image/"):
        raise ValueError(f"pictures must be images, such as .png or .gif, got {path.name!r}")
    return plots.embed(path.read_bytes(), mime)
