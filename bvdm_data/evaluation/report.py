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
from bvdm_data.evaluation.clip_cache import replace_nan
from bvdm_data.evaluation.distances import DAMAGED, FLOOR
from bvdm_data.evaluation.experiment import FIGURES, LINK_FIGURES
from bvdm_data.evaluation.nucleus_features import RINGS
from bvdm_data.evaluation.plots import COLOURS, DARK, SOFT, Series
from bvdm_data.evaluation.realism import SCALAR
from bvdm_data.files import open_atomic

# Titles of the sections by their ids.
SECTIONS = {"training": "Training value", "linking": "Tracking value", "pictures": "Pictures"}
SECTIONS |= {"distance": "Picture distance", "realism": "Realism", "gaps": "The largest gaps"}
# Heads of the columns of scores.
HEADS = {"seg": "SEG", "det": "DET", "tra": "TRA", "lnk": "LNK", "bc": "BC(1)", "valid": "valid"}
HEADS |= {"found": "found", "found_dim": "dim found"}
VIDEOS = ("synthetic", "reference", "other")  # the videos that realism compares, by their keys
# Titles of the two feature distances.
TILES = {"crops": "Crops around single nuclei", "tiles": "Tiles of the frame"}
# SEG and TRA by training data (paper, table 1).
PAPER_ARMS = {"real": (0.823, 0.976), "MitoGen": (0.822, 0.972)}
PAPER_ARMS |= {"CellCycleGAN": (0.781, 0.953), "BVDM": (0.829, 0.979)}
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
    environment.filters["choose_figures"] = _choose_figures
    known = {"FIGURES": FIGURES, "LINK_FIGURES": LINK_FIGURES, "PAPER_ARMS": PAPER_ARMS}
    known |= {"CONTROLS": CONTROLS, "TILES": TILES, "VIDEOS": VIDEOS}
    environment.globals |= known | {"compute_noise_share": _compute_noise_share}
    return environment


def make_view(results: Values, pictures: Mapping[str, Path]) -> dict[str, Any]:
    """Return the variables of the template."""
    about = results.get("about", {})
    drawn: dict[str, list[Plot] | dict[str, Plot]] = {}
    view: dict[str, Any] = {"results": results, "plots": drawn}
    view["about"] = {
        key.replace("_", " ").capitalize(): _format_settings(value) for key, value in about.items()
    }
    view["pictures"] = [(_embed_picture(path), caption) for caption, path in pictures.items()]
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
        return f"({', '.join(map(str, value))})"
    return "not set" if value is None else str(value)


def _choose_figures(rows: Sequence[Values]) -> list[str]:
    """Return the figures that a table shows: ``valid`` only where a result is not valid."""
    is_valid = all(row["mean"].get("valid") == 1 for row in rows)
    return [figure for figure in FIGURES if figure != "valid" or not is_valid]


def _compute_noise_share(seeds: int) -> float:
    """Return how often noise alone exceeds two standard errors (Student's t)."""
    return 2 * float(stats.t.sf(2, seeds - 1))


def _plot_training(part: Values) -> list[Plot]:
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


def _plot_distance(part: Values) -> dict[str, Plot]:
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


def _plot_realism(lines: Sequence[Values], names: Mapping[str, str]) -> list[Plot]:
    """Draw the texture's correlation, the edge profile and the agreement of labels."""
    by_name = {line["name"]: line for line in lines}
    lags = {int(n.split()[2]): n for n in by_name if n.startswith("texture after ")}
    unrelated, edge = by_name["texture of unrelated nuclei"], by_name["edge profile"]
    texture, edges, agreement = {}, {}, {}
    for key, colour in zip(VIDEOS, _VIDEO_COLOURS, strict=True):
        median = {name: line[key]["median"] for name, line in by_name.items()}
        values, level = [median[name] for name in lags.values()], unrelated[key]["median"]
        texture[names[key]] = Series(x=list(lags), y=values, level=level, colour=colour)
        if edge[key]["curve"]:
            edges[names[key]] = Series(x=RINGS, y=edge[key]["curve"], colour=colour)
        agreement[names[key]] = [median[f"label agreement, {stage}"] for stage in STAGES]
    edge_labels = "distance from the outline, px (below 0: inside)", "relative intensity"
    texture_labels = "frames between the images", "correlation of the texture"
    return [
        (
            plots.plot_lines(texture, *texture_labels),
            "Correlation of the inside of a nucleus with itself some frames later, after rigid "
            "alignment; medians. Dotted: unrelated nuclei.",
        ),
        (
            plots.plot_lines(edges, *edge_labels),
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
