"""Prints the figures of an evaluation as Markdown tables, or fills the pages with them.

Run ``python -m benchmarks.tables docs/evaluation/report.json``; that file was written by
``bvdm-data evaluate ROOT --report docs/evaluation``. ``--fill`` writes them into that page, and a
summary into README.md.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bvdm_data.evaluation.report import PAPER_ARMS, TILES
from bvdm_data.evaluation.seg_tra import LINK_MEASURES

Results = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]

PAPER = {
    "real": PAPER_ARMS["real"],
    "paper": PAPER_ARMS["BVDM"],
    "cell-cycle-gan": PAPER_ARMS["CellCycleGAN"],
}
"""SEG and TRA of the paper's table 1."""

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
README = Path(__file__).parents[1] / "README.md"

SUMMARY = {
    "real": "the real video",
    "copy-paste": "its nuclei, pasted",
    "synthetic-stream": "synthetic clips",
    "real+synthetic": "real and synthetic, 1 : 3",
}
"""What the README calls the arms that it compares."""

FEWEST = 20
"""Values that a quantity must have in each film to be listed."""


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Return a number in few digits, without its leading zero."""
    if value is None:
        return "-"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [row(*head), row(*["---"] * len(head)), *(row(*cells) for cells in rows)]
    return "\n".join(lines)


def spread(figures: Mapping[str, Any], figure: str, digits: int = 3) -> str:
    return join(*(figures[key].get(figure) for key in ("mean", "spread")), digits=digits)


def join(*values: float | None, digits: int = 3) -> str:
    """Return a mean and its spread, if there is one."""
    return " ± ".join(number(v, digits) for v in values if v is not None) or "-"


def gain(figures: Mapping[str, Any], figure: str) -> str:
    found, error = figures["gain"][figure], figures["error"][figure]
    if found is None or figures["arm"] == "real":
        return "-"
    return f"{number(found, sign=True)}" + (f" ± {number(error)}" if error is not None else "")


def training(results: Results) -> str:
    kid = {one["name"]: one["kernel"][0] for one in results.get("distance", {}).get("crops", [])}
    # The paper was trained on video 01, too.
    paper = PAPER if results["about"]["train"] == "01" else {}
    rows = []
    for one in results["training"]["rows"]:
        arm = one["arm"]
        seg, tra = (number(value) for value in paper.get(arm, (None, None)))
        rows.append(
            [
                arm,
                str(one["seeds"]),
                *(spread(one, figure) for figure in ("seg", "det", "tra", "lnk", "bc")),
                spread(one, "found_dim"),
                spread(one, "false_positives", 1),
                spread(one, "area_ratio"),
                gain(one, "seg"),
                gain(one, "tra"),
                number(kid.get(arm), 0),
                f"{seg} / {tra}" if arm in paper else "-",
            ]
        )
    head = "trained on, seeds, SEG, DET, TRA, LNK, BC(1), dim found, false positives a frame"
    more = "area ratio, SEG - real, TRA - real"
    heads = [*head.split(", "), *more.split(", "), "KID-Lite0 x 1000", "paper: SEG / TRA"]
    # What was not measured has no column.
    shown = [n for n in range(len(heads)) if any(cells[n] != "-" for cells in rows)]
    return [heads[n] for n in shown], [[cells[n] for n in shown] for cells in rows]


def transfer(results: Results) -> Table:
    rows = []
    for test, part in results["transfer"].items():
        for one in part["rows"]:
            scores = [spread(one, figure) for figure in ("seg", "det", "tra")]
            wrong, area = spread(one, "false_positives", 1), spread(one, "area_ratio")
            rows.append([test, one["arm"], *scores, wrong, area, gain(one, "seg")])
    head = "tested on, trained on, SEG, DET, TRA, false positives a frame, area ratio, SEG - real"
    return head.split(", "), rows


def edges(results: Results) -> Table:
    rows = []
    for name, one in results["realism"]["edges"].items():
        slope, error, *others = (
            number(one[key]) for key in ("slope", "slope_error", "share", "spread", "low", "high")
        )
        median, between, low, high = others
        rows.append([name, median, f"{slope} ± {error}", between, f"{low} to {high}"])
    return ["clips of", "median share", "slope", "spread", "10 % to 90 % of clips"], rows


def scarcity(results: Results) -> Table:
    arms: dict[str, dict[str, str]] = {}
    for frames, part in results["scarcity"].items():
        for one in part["rows"]:
            arms.setdefault(one["arm"], {})[frames] = spread(one, "seg")
    for one in results.get("training", {}).get("rows", []):
        if one["arm"] in arms:
            arms[one["arm"]]["all"] = spread(one, "seg")
    columns = [*sorted(results["scarcity"], key=int), "all"]
    rows = [[arm, *(found.get(column, "-") for column in columns)] for arm, found in arms.items()]
    return ["SEG, trained on the first frames:", *columns], rows


def ablation(results: Results) -> Table:
    rows = []
    for name, one in results["ablation"].items():
        (figures,) = one["rows"]
        rows.append(
            [
                name,
                *(spread(figures, figure) for figure in ("seg", "det", "tra", "bc")),
                f"{one['kid']:.0f} ± {one['kid_error']:.0f}",
                number(one["agreement"]),
                *(number(value) for value in one["correlation"]),
                f"{one['seconds_per_clip']:.1f}",
            ]
        )
    head = "variant, SEG, DET, TRA, BC(1), KID-Lite0 x 1000, label agreement, texture after 1"
    return [*head.split(", "), "after 2 frames", "s a clip"], rows


def reuse(results: Results) -> Table:
    rows = []
    for name, one in results["reuse"].items():
        (figures,) = one["rows"]
        scores = [spread(figures, figure) for figure in ("seg", "det", "tra")]
        rows.append([name, *scores, f"{one['seconds_per_clip']:.3f}"])
    return ["stream", "SEG", "DET", "TRA", "s a clip of 2 frames"], rows


def linking(results: Results) -> Table:
    rows = results["linking"]["rows"]
    figures = [figure for figure in LINK_MEASURES if figure in rows[0]]
    digits = {f: 0 if LINK_MEASURES[f].startswith("AOGM") else 4 for f in figures}
    cells = [
        [one["arm"], one["detections"], str(one["seeds"])]
        + [join(one[f], one[f"{f}_spread"], digits=digits[f]) for f in figures]
        for one in rows
    ]
    return ["linker", "detections", "seeds", *(LINK_MEASURES[f] for f in figures)], cells


def distance(results: Results) -> Table:
    kinds = [kind for kind in TILES if kind in results["distance"]]
    found = {kind: {one["name"]: one for one in results["distance"][kind]} for kind in kinds}
    rows = []
    for name in dict.fromkeys(name for kind in kinds for name in found[kind]):
        crop, tile, *others = (found[kind].get(name) for kind in kinds)
        cells = ["-"] * 4
        if crop and tile:  # videos have more controls
            cells = [f"{crop['kernel'][0]:.1f} ± {crop['kernel'][1]:.1f}"]
            cells += [f"{x:.1f}" for x in (tile["kernel"][0], crop["frechet"], tile["frechet"])]
        pairs = [(one["kernel"][0], one["frechet"]) if one else (None, None) for one in others]
        rows.append([name, *cells, *(number(value, 2) for pair in pairs for value in pair)])
    train = results["about"]["train"]
    head = f"to video {train}, KID-Lite0 x 1000 of crops, of tiles, FD-Lite0 of crops, of tiles"
    heads = [text for kind in kinds[2:] for text in (f"KID-{kind} x 1000", f"FD-{kind}")]
    return [*head.split(", "), *heads], rows


def realism(results: Results) -> Table:
    rows = []
    for one in results["realism"]["lines"]:
        films = (one["synthetic"], one["reference"], one["other"])
        if one["distance"] is None or any(film["median"] is None for film in films):
            continue
        if any(film["count"] < FEWEST for film in films):
            continue
        name = f"{one['name']} ({one['unit']})" if one["unit"] else one["name"]
        rows.append(
            [
                name,
                *(number(film["median"]) for film in films),
                number(one["distance"]),
                number(one["yardstick"]),
                number(one["ratio"], 1),
            ]
        )
    videos = (results["about"][name] for name in ("train", "test"))
    return ["quantity", "synthetic", *videos, "distance", "yardstick", "ratio"], rows


def summarise(results: Results) -> str:
    """Return the README's table: a segmenter and a tracker, by what they were trained on."""
    given = results.get("linking", {}).get("rows", [])
    linkers = {one["arm"]: one for one in given if one["detections"] == "reference"}
    rows = []
    for one in results["training"]["rows"]:
        if one["arm"] in SUMMARY:
            cells = [spread(one, figure) for figure in ("seg", "tra", "bc", "found_dim")]
            # Linkers learn from clips of several frames, which pasted stills are not.
            linker = linkers.get(f"Trackastra on {one['arm'].removesuffix('-stream')}", {})
            cells += [join(linker.get("lnk"), linker.get("lnk_spread"))] * bool(linkers)
            rows.append([SUMMARY[one["arm"]], str(one["seeds"]), *cells])
    heads = ["trained on", "seeds", "SEG", "TRA", "divisions", "dim nuclei found"]
    return table(heads + ["tracker: LNK"] * bool(linkers), rows)


TABLES = {
    "training": training,
    "transfer": transfer,
    "scarcity": scarcity,
    "ablation": ablation,
    "reuse": reuse,
    "linking": linking,
    "distance": distance,
    "realism": realism,
    "edges": edges,
}


def tables(results: Results) -> Iterator[tuple[str, str]]:
    """Yield name and Markdown of each part that was judged."""
    for name, made in TABLES.items():
        if name in results or name in results.get("realism", {}):
            yield name, table(*made(results))


def between_marks(page: str, texts: Mapping[str, str]) -> str:
    """Return the page with each text between the marks ``table: NAME`` and ``end``."""
    for name, text in texts.items():
        page, count = re.subn(
            rf"(<!-- table: {name} -->\n).*?(<!-- end -->)",
            lambda marks, text=text: f"{marks[1]}\n{text}\n\n{marks[2]}",
            page,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"the page must have the marks of the table {name!r} once")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="report.json of bvdm-data evaluate")
    parser.add_argument("--fill", action="store_true", help=f"{PAGE.name} and {README.name}")
    given = parser.parse_args()
    results = json.loads(given.report.read_text())
    made = dict(tables(results))
    if not given.fill:
        for name, text in made.items():
            print(f"## {name}\n\n{text}\n")
        return
    if results["about"]["train"] == "01" and "training" in results:
        README.write_text(between_marks(README.read_text(), {"summary": summarise(results)}))
    if results["about"]["train"] != "01":
        made = {f"{name} of {results['about']['train']}": text for name, text in made.items()}
    text = PAGE.read_text()
    here = {name: one for name, one in made.items() if f"<!-- table: {name} -->" in text}
    PAGE.write_text(between_marks(text, here))
    print(f"filled {', '.join(here)} of {PAGE}")


if __name__ == "__main__":
    main()
