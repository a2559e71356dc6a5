import base64
import copy
import json
import math
import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from PIL import Image

from benchmarks.studies import SECTIONS, render_page
from benchmarks.tables import TABLES, table
from bvdm_data.evaluation import experiment
from bvdm_data.evaluation.realism import CURVE, SCALAR
from bvdm_data.evaluation.report import find_largest_gaps, write_report

REPORT = Path(__file__).parents[1] / "docs" / "evaluation" / "report.json"
PARTS = ("about", "training", "linking", "distance", "realism")
TRIAL = json.loads(REPORT.read_text())["training"]["trials"][0]
FIGURES = [figure for figure in experiment.FIGURES if figure in TRIAL]
SHOWN = [figure for figure in FIGURES if figure != "valid"]
# Linkers by some of the measures, as two seeds have them.
SHARES = {"seeds": 2, "lnk": 0.98765, "lnk_spread": 0.00234, "bc": 0.87654, "bc_spread": 0.01357}
ROW = SHARES | {"aogm": 1234.4, "aogm_spread": 21.7, "ed": 25.6, "ed_spread": 3.2}
LINKING = {
    "rows": [
        {"arm": "LapTrack tuned on 01", "detections": "reference"} | ROW | {"lnk_spread": None},
        {"arm": "Trackastra on real", "detections": "planted"} | ROW,
    ],
    "settings": {"window": 4},
}
VOID = {"meta", "img", "br", "link", "input", "hr"}
WILD = '<b>"real" & more</b>'


class Page(HTMLParser):
    """The text, the tags and the attributes of a page; fails where tags are not balanced."""

    def __init__(self, path):
        super().__init__()
        self.open, self.text, self.attributes, self.rows, self.cells = [], [], [], [], 0
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.ids = self.values("id")
        self.words = re.sub(r"\s+", " ", " ".join(self.text)).replace("\N{MINUS SIGN}", "-")

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.open += [tag] if tag not in VOID else []
        self.rows += [[]] if tag == "table" else []
        if tag in ("tr", "td", "th"):
            self.cells = tag != "tr" and self.cells + int(dict(attrs).get("colspan", 1))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag
        if tag == "tr":
            self.rows[-1].append(self.cells)
        if tag == "table":
            assert len(set(self.rows[-1])) == 1, self.rows[-1]

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def values(self, *names):
        return [value for _, name, value in self.attributes if name in names]


def write(results, folder, **options):
    return Page(write_report(results, folder, **options))


@pytest.fixture
def results():
    """Return the results in the documentation, without the studies; may be changed."""
    known = json.loads(REPORT.read_text()) | {"linking": json.loads(json.dumps(LINKING))}
    return {part: known[part] for part in PARTS}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    Image.new("L", (400, 100), 128).save(folder / "scenes.png")
    nan = {"rows": [LINKING["rows"][0] | {"lnk_spread": math.nan}, LINKING["rows"][1]]}
    known = json.loads(REPORT.read_text()) | {"linking": LINKING | nan}
    shown, pictures = (
        {part: known[part] for part in PARTS},
        {f"Scenes {WILD}": folder / "scenes.png"},
    )
    return write(shown, folder / "new", pictures=pictures)


def numbers(value):
    if isinstance(value, (dict, list, tuple)):
        inner = value.values() if isinstance(value, dict) else value
        return [number for part in inner for number in numbers(part)]
    return [value] if isinstance(value, float) else []


def check_shown(page, values, form):
    shown = set(re.findall(r"-?[\d.]+(?:e[-+]\d+)?", page.words))
    texts = [form.format(value) for value in numbers(values)]
    assert [text for text in texts if text not in shown] == []


def test_page_is_balanced_and_self_contained(page):
    assert len(page.rows) >= 8
    assert page.ids == ["training", "linking", "pictures", "distance", "realism", "gaps"]
    assert [value for value in page.values("src") if not value.startswith("data:")] == []
    assert [value[1:] for value in page.values("href")] == page.ids
    assert page.values("srcset", "poster", "action", "onclick", "onload") == []
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, *_ in page.attributes)
    assert "@import" not in page.source
    assert "url(" not in page.source
    drawings = [value for value in page.values("src") if "svg" in value]
    assert len(drawings) == 8
    svgs = [base64.b64decode(drawing.partition(",")[2]).decode() for drawing in drawings]
    assert re.findall(r'(?:href|src)="(?!#)', " ".join(svgs)) == []


def test_page_and_json_hold_the_results(page, results):
    picture = (page.path.parents[1] / "scenes.png").read_bytes()
    assert f"data:image/png;base64,{base64.b64encode(picture).decode()}" in page.values("src")
    assert f"Scenes {WILD}" in page.values("alt")
    keys = "model", "model_digest", "method", "made"
    about = results["about"]
    fixed = "Train 01", "Test 02", f"seeds {about['budget']['seeds']}", "clips not set"
    told = f"torch {about['versions']['torch']}", f"load {about['machine']['load']}"
    for text in (*(about[key] for key in keys), *fixed, *told):
        assert text in page.words
    text = page.path.with_name("report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == results


def test_page_shows_every_figure(page, results):
    training = results["training"]
    for row in training["rows"]:
        keys = ("mean", "spread", "error")[: 2 if row["arm"] == "real" else 3]
        check_shown(page, [row[key][one] for key in keys for one in SHOWN], "{:.4f}")
        for one in SHOWN if row["arm"] != "real" else ():
            assert f"{row['gain'][one]:+.4f} ± " in page.words
            for needed in numbers([row["seeds_needed"][one]]):
                assert f"seeds needed: {needed:.0f} " in page.words
    shown = [trial[one] for trial in training["trials"] for one in FIGURES]
    shown += [training["ceiling"][one] for one in SHOWN if one in training["ceiling"]]
    check_shown(page, [shown, SHARES], "{:.4f}")
    assert "1234 ± 22 26 ± 3" in page.words
    for row in [*results["distance"]["crops"], *results["distance"]["tiles"]]:
        check_shown(page, [row["kernel"], row["frechet"]], "{:.1f}")
    for line in results["realism"]["lines"]:
        check_shown(page, [line[key] for key in ("distance", "yardstick", "ratio")], "{:.3g}")
        for video in (line[key] for key in ("synthetic", "reference", "other")):
            assert f"n {video['count']}" in page.words
            check_shown(page, video["curve"], "{:.3f}")
            check_shown(page, [video[name] for name in ("median", "low", "high")], "{:.4g}")
    assert re.findall(r"\b(?:FID|FVD)\b", page.words) == []
    assert "KID-Lite0 x 1000" in page.words
    settings = training["settings"]
    assert f"Settings: steps {settings['steps']}, batch {settings['batch']}" in page.words


def test_differences_within_noise_are_marked(results, tmp_path):
    training = {"training": results["training"]}
    rows = training["training"]["rows"] = results["training"]["rows"][:3]
    for row, gain in zip(rows, (0.0, 0.0431, 0.0430), strict=True):
        row |= {"seeds": 3, "error": dict.fromkeys(FIGURES, 0.01)}
        row["gain"] = dict.fromkeys(FIGURES, gain)
    page = write(training, tmp_path)
    differences = page.words.split("Difference to real")[1].split("Networks of the same seed")[0]
    clear, vague = differences.split("synthetic")
    assert "within the noise" not in clear
    assert vague.count("within the noise") == page.values("class").count("noise") == len(SHOWN)
    # Student's t with 2 degrees of freedom exceeds 4.303 in 5 % of cases.
    assert "with 3 seeds, that is smaller than 4.3 standard errors" in page.words
    for row in rows:
        row |= {"seeds": 1, "error": dict.fromkeys(FIGURES)}
    unknown = write(training, tmp_path)
    assert unknown.words.count("noise unknown") == 2 * len(SHOWN)
    assert "One seed shows nothing of the noise" in unknown.words


def test_invalid_results_get_a_column(results, tmp_path, page):
    results["training"]["rows"][0]["mean"]["valid"] = 0.5
    # One column is that of every network.
    assert (page.text.count("valid"), write(results, tmp_path).text.count("valid")) == (1, 2)


def test_transfer_and_edges_are_shown(results, tmp_path):
    rows = results["training"]["rows"][:2]
    for row in rows:
        for value, key in enumerate(("mean", "spread", "gain", "error", "seeds_needed")):
            row[key] |= {"false_positives": 3.25 + value, "area_ratio": 1.0625}
    keys = ("nuclei", "share", "slope", "slope_error", "spread", "low", "high")
    edges = dict(zip(keys, (54, 0.4125, -0.0625, 0.0015, 0.0875, 0.2975, 0.479), strict=True))
    results["realism"]["edges"] = {"synthetic": edges}
    shown = {"transfer": {WILD: {"rows": rows}}, "realism": results["realism"]}
    page = write(shown, tmp_path)
    assert page.ids == ["transfer", "realism", "gaps"]
    part = page.words.split("Transfer")[-1].split("Quantities")[0]
    for text in (WILD, "3.2500 ± 4.2500", "1.0625 ± 1.0625", f"{rows[1]['gain']['seg']:+.4f}"):
        assert text in part
    for text in ("54", "-0.062 ± 0.002", "0.087", "0.297 to 0.479"):
        assert text in page.words.split("Edge of the label by light")[-1]
    made = {name: table(*TABLES[name](shown)) for name in ("transfer", "edges")}
    assert "| 3.2 ± 4.2 | 1.062 ± 1.062 |" in made["transfer"]
    assert "| synthetic | .412 | -.062 ± .002 | .087 | .297 to .479 |" in made["edges"]


def test_missing_parts_are_left_out(results, tmp_path):
    for part in PARTS[1:]:
        page = write({part: results[part]}, tmp_path)
        assert page.ids == {"realism": ["realism", "gaps"]}.get(part, [part])
    assert write({}, tmp_path).ids == []


def test_page_shows_further_networks(results, tmp_path):
    part = {key: results["distance"][key] for key in ("crops", "tiles", "note")}
    row = {"name": "frozen", "features": "TransNet", "count": 150}
    part["TransNet"] = [row | {"kernel": [5.678, 0.432], "frechet": 1.234}]
    page = write({"distance": part}, tmp_path)
    check_shown(page, [5.678, 0.432, 1.234], "{:.2f}")
    for text in ("Crops followed over 8 frames", "KID-TransNet x 1000", "Frozen, shuffled:"):
        assert text in page.words
    assert len(page.values("src")) == 3


def test_text_is_escaped(results, tmp_path):
    results["about"] |= {WILD: WILD, "machine": {WILD: WILD}}
    results["distance"]["crops"][0]["name"] = results["realism"]["lines"][0]["name"] = WILD
    keys, wild = r'("(?:model|train|test|arm|group|unit|measure)": ")', json.dumps(WILD)[1:-1]
    text = re.sub(keys, lambda match: match[1] + wild, json.dumps(results))
    page = write(json.loads(text), tmp_path)
    assert "b" not in {tag for tag, *_ in page.attributes}
    assert "<b>" not in page.source
    assert page.words.count(WILD) > 100


def test_failure_keeps_the_former_page(results, tmp_path):
    page = tmp_path / "index.html"
    page.write_text("before")
    infinite, formless = copy.deepcopy(results), copy.deepcopy(results)
    infinite["realism"]["lines"][0]["ratio"] = math.inf
    del formless["realism"]["lines"][-1]["unit"]
    for figures, pictures, error in (
        (results, {"Missing": tmp_path / "missing.png"}, FileNotFoundError),
        (results, {"Text": page}, ValueError),
        (infinite, {}, ValueError),
        (formless, {}, jinja2.UndefinedError),
    ):
        with pytest.raises(error):
            write_report(figures, tmp_path, pictures=pictures)
        assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
        assert page.read_text() == "before"


def test_report_is_deterministic_in_a_thread(results, tmp_path):
    import matplotlib

    settings, part = dict(matplotlib.rcParams), {"distance": results["distance"]}
    thread = threading.Thread(target=write_report, args=(part, tmp_path / "a"))
    thread.start()
    thread.join()
    assert dict(matplotlib.rcParams) == settings
    assert write(part, tmp_path / "b").source == (tmp_path / "a" / "index.html").read_text("utf-8")


def test_largest_gaps_are_sorted_by_ratio(page, results):
    ratios = (0.5, None, 3.0, 2.0, 7.0)
    lines = [{"name": f"{r}", "ratio": r, "group": f"{r}", "measure": CURVE} for r in ratios]
    lines.append({"name": "same group", "ratio": 4.0, "group": "7.0", "measure": CURVE})
    lines.append({"name": "one number", "ratio": 9.0, "group": "9", "measure": SCALAR})
    assert [line["name"] for line in find_largest_gaps(lines)] == ["7.0", "3.0", "2.0"]
    assert find_largest_gaps([]) == []
    gaps = page.words.rsplit("The largest gaps", 1)[1]
    names = [line["name"] for line in find_largest_gaps(results["realism"]["lines"])]
    assert sorted(names, key=gaps.index) == names


def test_studies_page_shows_every_table(tmp_path, results):
    training, path = results["training"], tmp_path / "index.html"
    looks = {"kid": 3.5, "kid_error": 0.5, "agreement": 0.875, "correlation": [0.9, 0.8]}
    alone = training | {"rows": training["rows"][:1], "seconds_per_clip": 0.125} | looks
    studies = {
        "scarcity": {"4": training},
        "ablation": {"frozen texture": alone},
        "reuse": {"fresh nuclei": alone},
    }
    path.write_text(render_page(results | studies, {}), encoding="utf-8")
    page = Page(path)
    assert page.ids[-3:] == list(studies)
    for name, study in studies.items():
        for row, part in study.items():
            assert row in page.words.rsplit(SECTIONS[name][0], 1)[1]
            check_shown(page, [row["mean"]["seg"] for row in part["rows"]], "{:.4f}")
