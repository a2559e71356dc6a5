import base64
import itertools
import json
import math
import re
import threading
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from benchmarks.studies import render_page
from bvdm_data.evaluation.clip_cache import nan_to_none
from bvdm_data.evaluation.distances import Estimate, FeatureDistance
from bvdm_data.evaluation.experiment import FIGURES, Trial, summarize_trials
from bvdm_data.evaluation.realism import (
    CURVE,
    DISTRIBUTION,
    QUANTITIES,
    SCALAR,
    MetricComparison,
    Summary,
)
from bvdm_data.evaluation.report import find_largest_gaps, write_report
from bvdm_data.evaluation.segmenter import SegmenterSettings

SHOWN = [figure for figure in FIGURES if figure != "valid"]
VOID = {"meta", "img", "br", "link", "input", "hr"}
ARMS = {"real": 0.915, "copy-paste": 0.938, "synthetic": 0.921, "real+synthetic": 0.9305}
WILD = '<b>"real" & more</b>'


def summarize(arms, seeds, rng):
    trials = []
    for arm, seg in arms.items():
        for seed in range(seeds):
            scores = seg + np.array([0, 0.06, 0.055, 0.03, -0.3, 0, 0.05, -0.05])
            scores += 0.006 * rng.standard_normal(8)
            values = dict(zip(FIGURES, scores.tolist(), strict=True)) | {"valid": 1.0}
            trials.append(Trial(arm=arm, seed=seed, seconds=301.5, **values))
    return summarize_trials(trials, SegmenterSettings(steps=350))


def make_distances(scale):
    rows = {"floor": -0.31, "real 02": 57.2, "synthetic": 88.4, "copy-paste": 61.9}
    rows |= {"blurred": 137.0, "noisy": 165.3, "flattened": 187.8}
    return [
        asdict(FeatureDistance(name, "Lite0", 900, Estimate(scale * kid, 4.2), 9.1 + kid / 2))
        for name, kid in rows.items()
    ]


def make_lines():
    lines = []
    for number, one in enumerate(QUANTITIES):
        distance, yardstick = 0.031 * (number % 7) + 0.0113, 0.05 + 0.0021 * number
        if one.distance == CURVE:
            level = 1 / (1 + np.exp(np.arange(-3.5, 4)))
            videos = [Summary(3000, curve=tuple((level + 0.03 * k).tolist())) for k in range(3)]
        elif one.distance == DISTRIBUTION:
            middle = 0.9 - 0.01 * number
            videos = [Summary(812 + k, middle + 0.02 * k, middle / 2, 1.4) for k in range(3)]
        else:
            videos = [Summary(92, 0.4123 + 0.1 * k) for k in range(3)]
        ratio = distance / yardstick
        if one.name == "cycle length":
            videos[0], distance, ratio = Summary(0), None, None
        line = MetricComparison(
            one.name, one.unit, one.group, *videos, one.distance, distance, yardstick, ratio
        )
        lines.append(asdict(line))
    return lines


def make_results():
    """Results of the form that an evaluation gives; no figure was ever measured."""
    linking = [
        {"arm": arm, "seeds": 1, "lnk": 0.99 + gain, "bc": 0.61 + gain, "tra": 0.9941 + gain}
        | {f"{figure}_spread": math.nan for figure in ("lnk", "bc", "tra")}
        for arm, gain in (("real", 0.0013), ("synthetic", 0.0022))
    ]
    ceiling = {"seg": 1.0, "det": 0.9997, "tra": 0.9981, "lnk": 0.9873, "bc": 0.7123, "valid": 1.0}
    return {
        "about": {
            "made": "2020-01-02 03:04 UTC",
            "model": "made-up",
            "model_digest": "0123456789abcdef",
            "method": "PaperSettings(first_steps=200, later_steps=10, clip_range=None)",
            "train": "01",
            "test": "02",
            "train_frames": 92,
            "clip": {"frames": 8, "size": [256, 256], "seed": 0},
            "arms": list(ARMS),
            "budget": {"seeds": 3, "clips": None, "segmenter": {"steps": 400, "batch": 4}},
            "machine": {"processor": "A processor", "cores": 2, "load": 1.93, "threads": 1},
            "versions": {"python": "3.11.7", "torch": "2.15.0"},
        },
        "training": summarize(ARMS, 3, np.random.default_rng(1)) | {"ceiling": ceiling},
        "linking": {
            "rows": linking,
            "laptrack": {"lnk": 0.9871, "bc": 0.7135, "tra": 0.9982},
            "settings": {"width": 128, "training": {"steps": 300}},
        },
        "distance": {
            "crops": make_distances(1.0),
            "tiles": make_distances(0.7),
            "note": "900 crops of 96 x 96 & 200 tiles",
        },
        "realism": {"lines": make_lines()},
    }


class Page(HTMLParser):
    """The text, the tags and the attributes of a page; fails where tags are not balanced."""

    def __init__(self, source):
        super().__init__()
        self.open, self.text, self.attributes, self.ids = [], [], [], []
        self.rows, self.cells = [], 0
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows.append([])
        if tag == "tr":
            self.cells = 0
        if tag in ("td", "th"):
            self.cells += int(dict(attrs).get("colspan", 1))

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

    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text)).replace("\N{MINUS SIGN}", "-")


def write(results, folder, **options):
    return Page(write_report(results, folder, **options).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    picture = folder / "scenes.png"
    Image.new("L", (400, 100), 128).save(picture)
    return write_report(make_results(), folder / "new", pictures={f"Scenes {WILD}": picture})


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text(encoding="utf-8"))


def numbers(value):
    if isinstance(value, dict):
        return itertools.chain.from_iterable(numbers(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return itertools.chain.from_iterable(numbers(inner) for inner in value)
    return [value] if isinstance(value, float) else []


def check_shown(words, values, form):
    for value in numbers(values):
        shown = re.escape(form.format(value))
        assert re.search(rf"(?<![\d.]){shown}(?!\d)", words), value


def test_page_is_balanced_and_self_contained(written, page):
    assert len(page.rows) >= 8
    assert len(page.ids) == len(set(page.ids)) == 6
    assert [value for value in page.values("src") if not value.startswith("data:")] == []
    assert [value[1:] for value in page.values("href")] == page.ids
    assert page.values("srcset", "poster", "action", "onclick", "onload") == []
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, *_ in page.attributes)
    source = written.read_text(encoding="utf-8")
    assert "@import" not in source
    assert "url(" not in source
    drawings = [value for value in page.values("src") if "svg" in value]
    assert len(drawings) == 7
    for drawing in drawings:
        svg = base64.b64decode(drawing.partition(",")[2]).decode("utf-8")
        assert re.findall(r'(?:href|src)="(?!#)', svg) == []


def test_page_shows_every_network(page):
    results, words = nan_to_none(make_results()), page.words()
    training = results["training"]
    for row in training["rows"]:
        parts = [row["mean"], row["spread"]]
        if row["arm"] != "real":
            parts += [row["gain"], row["error"]]
            for needed in numbers(row["seeds_needed"]):
                assert f"seeds needed: {needed:.0f} " in words
        check_shown(words, [[part[one] for one in SHOWN] for part in parts], "{:.4f}")
    check_shown(words, [[trial[one] for one in FIGURES] for trial in training["trials"]], "{:.4f}")
    check_shown(words, [training["ceiling"], results["linking"]], "{:.4f}")
    assert "Settings: steps 350, batch 4" in words


def test_page_shows_every_measured_look(page):
    results, words = nan_to_none(make_results()), page.words()
    for row in [*results["distance"]["crops"], *results["distance"]["tiles"]]:
        check_shown(words, [*row["kernel"], row["frechet"]], "{:.1f}")
    for line in results["realism"]["lines"]:
        check_shown(words, [line[key] for key in ("distance", "yardstick", "ratio")], "{:.3g}")
        for key in ("synthetic", "reference", "other"):
            video = line[key]
            assert f"n {video['count']}" in words
            check_shown(words, video["curve"], "{:.3f}")
            check_shown(words, [video[name] for name in ("median", "low", "high")], "{:.4g}")
    assert re.findall(r"\b(?:FID|FVD)\b", words) == []
    assert "KID-Lite0 x 1000" in words


def test_page_says_what_was_evaluated(page):
    words = page.words()
    for text in ("made-up", "0123456789abcdef", "PaperSettings(first_steps=200", "A processor"):
        assert text in words
    for text in ("2020-01-02 03:04 UTC", "torch 2.15.0", "load 1.93", "Train 01", "seeds 3"):
        assert text in words


def test_differences_within_noise_are_marked(tmp_path):
    arms = {"real": 0.9, "clear": 0.9, "vague": 0.9}
    results = {"training": summarize(arms, 3, np.random.default_rng(0))}
    for row, gain in zip(results["training"]["rows"], (0.0, 0.0201, 0.0199), strict=True):
        row["gain"] = dict.fromkeys(FIGURES, gain)
        row["error"] = dict.fromkeys(FIGURES, 0.01)
    page = write(results, tmp_path)
    words = page.words()
    clear, vague = words.split("Difference to real")[1].split("clear")[1].split("vague")
    assert "within the noise" not in clear
    assert vague.split("Networks of the same seed")[0].count("within the noise") == len(SHOWN)
    assert page.values("class").count("noise") == len(SHOWN)
    assert "18 % of cases" in words  # Student's t with 2 degrees of freedom, |t| > 2


def test_noise_of_one_seed_is_unknown(tmp_path):
    arms = {"real": 0.9, "synthetic": 0.8}
    page = write({"training": summarize(arms, 1, np.random.default_rng(0))}, tmp_path)
    assert page.words().count("noise unknown") == len(SHOWN)
    assert "n/a" in page.words()


def test_invalid_results_get_a_column(tmp_path):
    results = {"training": summarize({"real": 0.9}, 2, np.random.default_rng(0))}
    before = write(results, tmp_path).text.count("valid")
    results["training"]["rows"][0]["mean"]["valid"] = 0.5
    assert (before, write(results, tmp_path).text.count("valid")) == (1, 2)


def test_json_has_null_for_nan(written):
    text = (written.parent / "report.json").read_text(encoding="utf-8")
    figures = json.loads(text, parse_constant=pytest.fail)
    assert figures["linking"]["rows"][0]["lnk_spread"] is None
    assert figures == json.loads(json.dumps(nan_to_none(make_results())))


@pytest.mark.parametrize("part", [*list(make_results())[1:], "pictures", None])
def test_missing_parts_are_left_out(part, tmp_path):
    results = {part: make_results()[part]} if part in make_results() else {}
    pictures = {}
    if part == "pictures":
        pictures = {"One": tmp_path / "one.png"}
        Image.new("L", (4, 4)).save(pictures["One"])
    page = write(results, tmp_path, pictures=pictures)
    assert page.ids == {None: [], "realism": ["realism", "gaps"]}.get(part, [part])


def test_text_is_escaped(tmp_path):
    results = make_results()
    results["about"] |= {"model": WILD, WILD: WILD, "machine": {WILD: WILD}}
    results["about"] |= {"train": WILD + "1", "test": WILD + "2"}
    results["training"] = summarize({"real": 0.9, WILD: 0.8}, 2, np.random.default_rng(0))
    results["linking"]["rows"][0]["arm"] = WILD
    for row in results["distance"]["crops"]:
        row["name"] += WILD
    for line in results["realism"]["lines"]:
        line["name"] += WILD
        line["group"] = line["unit"] = line["measure"] = WILD
    page = write(results, tmp_path)
    assert "b" not in {tag for tag, *_ in page.attributes}
    assert "<b>" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert WILD in page.words()


def test_pictures_are_embedded(page, written):
    picture = (written.parents[1] / "scenes.png").read_bytes()
    assert f"data:image/png;base64,{base64.b64encode(picture).decode()}" in page.values("src")
    assert f"Scenes {WILD}" in page.values("alt")


@pytest.mark.parametrize("fault", ["picture", "kind", "infinite", "form"])
def test_failure_keeps_the_former_page(fault, tmp_path):
    (tmp_path / "index.html").write_text("before")
    results, pictures = {"realism": make_results()["realism"]}, {}
    if fault == "picture":
        pictures = {"Missing": tmp_path / "missing.png"}
    if fault == "kind":
        pictures = {"Text": tmp_path / "index.html"}
    if fault == "infinite":
        results["realism"]["lines"][0]["ratio"] = math.inf
    if fault == "form":
        del results["realism"]["lines"][-1]["unit"]
    with pytest.raises((FileNotFoundError, ValueError, jinja2.UndefinedError)):
        write_report(results, tmp_path, pictures=pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "before"


def test_report_is_deterministic_in_a_thread(tmp_path):
    import matplotlib

    settings = dict(matplotlib.rcParams)
    results = {"distance": make_results()["distance"]}
    thread = threading.Thread(target=write_report, args=(results, tmp_path / "a"))
    thread.start()
    thread.join()
    assert dict(matplotlib.rcParams) == settings
    first = (tmp_path / "a" / "index.html").read_bytes()
    assert write_report(results, tmp_path / "b").read_bytes() == first


def test_largest_gaps_are_sorted_by_ratio(page):
    ratios = (0.5, None, 3.0, 2.0, 7.0)
    lines = [{"name": f"{r}", "ratio": r, "group": f"{r}", "measure": CURVE} for r in ratios]
    lines.append({"name": "of the same group", "ratio": 4.0, "group": "7.0", "measure": CURVE})
    lines.append({"name": "a single number", "ratio": 9.0, "group": "9", "measure": SCALAR})
    assert [line["name"] for line in find_largest_gaps(lines)] == ["7.0", "3.0", "2.0"]
    assert find_largest_gaps([]) == []
    gaps = page.words().rsplit("The largest gaps", 1)[1]
    places = [gaps.index(line["name"]) for line in find_largest_gaps(make_lines())]
    assert places == sorted(places)


def test_studies_page_shows_every_table():
    report = Path(__file__).parents[1] / "docs" / "evaluation" / "report.json"
    results = json.loads(report.read_text())
    page = Page(render_page(results, {}))
    assert page.ids[-4:] == ["scarcity", "steps", "ablation", "reuse"]
    words = page.words()
    for name in page.ids[-4:]:
        for row, part in results[name].items():
            assert row in words
            for trial in part["trials"]:
                check_shown(words, [trial[one] for one in FIGURES], "{:.4f}")
