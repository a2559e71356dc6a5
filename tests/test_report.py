import base64
import itertools
import json
import math
import re
import threading
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from bvdm_data.clip import STAGES
from bvdm_data.evaluation.distances import Estimate, FeatureDistance
from bvdm_data.evaluation.experiment import FIGURES, Trial, compare_arms, replace_nan
from bvdm_data.evaluation.realism import (
    CURVE,
    DISTRIBUTION,
    QUANTITIES,
    SCALAR,
    MetricComparison,
    Summary,
)
from bvdm_data.evaluation.report import largest_gaps, write_report

SHOWN = [figure for figure in FIGURES if figure != "valid"]
VOID = {"meta", "img", "br", "link", "input", "hr"}
ARMS = {"real": 0.915, "copy-paste": 0.938, "synthetic": 0.921, "real+synthetic": 0.9305}
WILD = '<b>"real" & more</b>'


def summary(trials):
    rows = [asdict(row) for row in compare_arms(trials)]
    settings = {"steps": 400, "batch": 4, "rate": 2e-3, "nested": {"average": 0.98}}
    return {
        "trials": [asdict(trial) for trial in trials],
        "rows": rows,
        "baseline": "real",
        "settings": settings,
    }


def trials_of(arms, seeds, draws, lost=0.0):
    found = []
    for arm, seg in arms.items():
        for seed in range(seeds):
            scores = seg - lost + np.array([0, 0.06, 0.055, 0.03, -0.3, 0, 0.05, -0.05])
            scores += 0.006 * draws.standard_normal(8)
            values = dict(zip(FIGURES, scores.tolist(), strict=True)) | {"valid": 1.0}
            found.append(Trial(arm=arm, seed=seed, seconds=301.5, **values))
    return found


def distances(scale):
    rows = {
        "floor": -0.31,
        "real 02": 57.2,
        "synthetic": 88.4,
        "copy-paste": 61.9,
        "blurred": 137.0,
        "noisy": 165.3,
        "flattened": 187.8,
    }
    return [
        asdict(FeatureDistance(name, "Lite0", 900, Estimate(scale * kid, 4.2), 9.1 + kid / 2))
        for name, kid in rows.items()
    ]


def lines():
    found = []
    for number, one in enumerate(QUANTITIES):
        distance, yardstick = 0.031 * (number % 7) + 0.0113, 0.05 + 0.0021 * number
        if one.distance == CURVE:
            level = 1 / (1 + np.exp(np.arange(-3.5, 4)))
            films = [Summary(3000, curve=tuple((level + 0.03 * k).tolist())) for k in range(3)]
        elif one.distance == DISTRIBUTION:
            middle = 0.9 - 0.01 * number
            films = [Summary(812 + k, middle + 0.02 * k, middle / 2, 1.4) for k in range(3)]
        else:
            films = [Summary(92, 0.4123 + 0.1 * k) for k in range(3)]
        ratio = distance / yardstick
        if one.name == "cycle length":
            films[0], distance, ratio = Summary(0), None, None
        line = MetricComparison(
            one.name, one.unit, one.group, *films, one.distance, distance, yardstick, ratio
        )
        found.append(asdict(line))
    return found


def made_up():
    """Results of the form that an evaluation gives; no figure was ever measured."""
    draws = np.random.default_rng(1)
    training = summary(trials_of(ARMS, 3, draws))
    first = summary(trials_of({"real": 0.88, "copy-paste": 0.93}, 1, draws))
    first["missing"] = {"synthetic": "a model needs at least 2 frames <of a video>"}
    scarcity = {"1": first} | {
        str(frames): summary(trials_of(ARMS, 3, draws, 0.06 / frames)) | {"missing": {}}
        for frames in (4, 10, 30)
    }
    steps = {}
    for pair in ("100/10", "200/10", "400/10", "600/10", "200/0", "200/30", "200/50", "200/200"):
        steps[pair] = summary(trials_of({pair: 0.9}, 1, draws)) | {
            "kid": 88.0 + draws.standard_normal(),
            "kid_error": 3.25,
            "agreement": 0.871,
            "correlation": [0.801, 0.733],
            "seconds_per_clip": 12.25,
        }
    ablation = {
        name: summary(trials_of({name: 0.8}, 2, np.random.default_rng(number)))
        | {"kid": 70.5 + number, "agreement": 0.9 + number / 100, "seconds_per_clip": 2.0 + number}
        for number, name in enumerate(("fast", "frozen <texture>"))
    }
    reuse = {
        name: summary(trials_of({name: 0.8}, 2, np.random.default_rng(10 + number)))
        | {"seconds_per_clip": 0.25 + number, "pool": None}
        for number, name in enumerate(("fresh nuclei", "16 pairs, <none> renewed"))
    }
    linking = [
        {"arm": arm, "seeds": 1, "lnk": 0.99 + gain, "bc": 0.61 + gain, "tra": 0.9941 + gain}
        | {f"{figure}_spread": math.nan for figure in ("lnk", "bc", "tra")}
        for arm, gain in (("real", 0.0013), ("synthetic", 0.0022))
    ]
    return {
        "about": {
            "made": "2020-01-02 03:04 UTC",
            "model": "made-up",
            "model_digest": "0123456789abcdef",
            "method": "PaperSettings(first_steps=200, later_steps=10, clip_range=None)",
            "data_set": "Fluo-N2DL-HeLa",
            "train": "01",
            "test": "02",
            "train_frames": 92,
            "clip": {"frames": 8, "size": [256, 256], "seed": 0},
            "arms": list(ARMS),
            "budget": {"seeds": 3, "clips": None, "segmenter": {"steps": 400, "batch": 4}},
            "machine": {"processor": "A processor", "cores": 2, "load": 1.93, "threads": 1},
            "versions": {"python": "3.11.7", "torch": "2.15.0"},
        },
        "training": training
        | {
            "ceiling": {"seg": 1.0, "det": 0.9997, "tra": 0.9981, "lnk": 0.9873}
            | {"bc": 0.7123, "valid": 1.0}
        },
        "scarcity": scarcity,
        "steps": steps,
        "ablation": ablation,
        "reuse": reuse,
        "linking": {
            "rows": linking,
            "laptrack": {"lnk": 0.9871, "bc": 0.7135, "tra": 0.9982},
            "settings": {"width": 128, "training": {"steps": 300}},
        },
        "distance": {
            "crops": distances(1.0),
            "tiles": distances(0.7),
            "note": "900 crops of 96 x 96 & 200 tiles",
        },
        "realism": {
            "lines": lines(),
            "curves": {"Power": {"x": [1, 2, 3], "lines": {"a": [1, None, 2]}, "x_label": "px"}},
        },
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
        if self.open and self.open[-1] == "table":
            self.rows.append([])

    def values(self, *names):
        return [value for _, name, value in self.attributes if name in names]

    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text)).replace("\N{MINUS SIGN}", "-")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    picture = folder / "scenes.png"
    Image.new("L", (400, 100), 128).save(picture)
    return write_report(made_up(), folder / "new", pictures={f"Scenes {WILD}": picture})


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text(encoding="utf-8"))


def numbers(value):
    if isinstance(value, dict):
        return itertools.chain.from_iterable(numbers(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return itertools.chain.from_iterable(numbers(inner) for inner in value)
    return [value] if isinstance(value, float) else []


def shown(page, value, form):
    if value is None or math.isnan(value):
        return "n/a" in page
    return re.search(rf"(?<![\d.]){re.escape(form(value))}(?!\d)", page) is not None


def test_page_is_balanced_and_its_tables_have_even_rows(page):
    assert len(page.rows) >= 10
    assert len(page.ids) == len(set(page.ids))


def test_page_loads_nothing_and_links_only_to_itself(written, page):
    assert [value for value in page.values("src") if not value.startswith("data:")] == []
    assert [value[1:] for value in page.values("href")] == page.ids
    assert page.values("srcset", "poster", "action", "onclick", "onload") == []
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, *_ in page.attributes)
    source = written.read_text(encoding="utf-8")
    assert "@import" not in source
    assert "url(" not in source


def test_plots_load_nothing_either(page):
    plots = [value for value in page.values("src") if "svg" in value]
    assert len(plots) == 9
    for plot in plots:
        drawing = base64.b64decode(plot.partition(",")[2]).decode("utf-8")
        assert re.findall(r'(?:href|src)="(?!#)', drawing) == []


def test_every_number_of_networks_is_on_the_page(page):
    results, words = replace_nan(made_up()), page.words()
    levels = [results["training"], *results["scarcity"].values()]
    for level in levels:
        for row in level["rows"]:
            parts = [row["mean"], row["spread"]]
            if row["arm"] != "real":
                parts += [row["gain"], row["error"]]
            for value in numbers([[part[one] for one in SHOWN] for part in parts]):
                assert shown(words, value, lambda number: f"{number:.4f}"), (row["arm"], value)
        for trial in level["trials"]:
            for value in numbers([trial[figure] for figure in FIGURES]):
                assert level is not results["training"] or shown(words, value, "{:.4f}".format)
    for row in results["training"]["rows"]:
        for needed in numbers(row["seeds_needed"]):
            assert row["arm"] == "real" or f"seeds needed: {needed:.0f} " in f"{words} "
    for one in (results["training"]["ceiling"], results["linking"]):
        for value in numbers(one):
            assert shown(words, value, "{:.4f}".format), value


def test_every_number_of_steps_is_on_the_page(page):
    results, words = replace_nan(made_up()), page.words()
    for pair, row in results["steps"].items():
        assert pair in words
        for figure in FIGURES:
            assert shown(words, row["rows"][0]["mean"][figure], "{:.4f}".format)
        assert shown(words, row["kid"], "{:.1f}".format)
    assert "0.801 / 0.733" in words
    assert "1 / 2 frames" in words
    assert "0.871" in words
    assert "12.25" in words


def test_every_number_of_the_ablation_is_on_the_page(page):
    words = page.words()
    part = words.split("Each row: networks trained on a few clips of a variant")[1]
    for name, row in replace_nan(made_up())["ablation"].items():
        assert name in part
        means = [row["rows"][0]["mean"][figure] for figure in ("seg", "det", "tra")]
        for value in [*means, *(trial[one] for trial in row["trials"] for one in FIGURES)]:
            assert shown(part, value, "{:.4f}".format), (name, value)
        assert shown(part, row["kid"], "{:.1f}".format)
        assert shown(part, row["agreement"], "{:.3f}".format)
    assert "paper: SEG" not in part.split("Networks of")[0]


def test_every_number_of_the_reuse_of_nuclei_is_on_the_page(page):
    part = page.words().split("every sample from another clip")[1]
    for name, row in replace_nan(made_up())["reuse"].items():
        assert name in part
        means = [row["rows"][0]["mean"][figure] for figure in ("seg", "det", "tra")]
        for value in [*means, *(trial[one] for trial in row["trials"] for one in FIGURES)]:
            assert shown(part, value, "{:.4f}".format), (name, value)
        assert shown(part, row["seconds_per_clip"], "{:.2f}".format)


def test_every_number_of_looks_is_on_the_page(page):
    results, words = replace_nan(made_up()), page.words()
    for row in [*results["distance"]["crops"], *results["distance"]["tiles"]]:
        for value in [*row["kernel"], row["frechet"]]:
            assert shown(words, value, "{:.1f}".format), (row["name"], value)
    for line in results["realism"]["lines"]:
        for film in ("synthetic", "reference", "other"):
            assert f"n {line[film]['count']}" in words
            for value in line[film]["curve"]:
                assert shown(words, value, "{:.3f}".format), (line["name"], value)
        for value in numbers([line[key] for key in ("distance", "yardstick", "ratio")]):
            assert shown(words, value, "{:.3g}".format), (line["name"], value)
        for film in ("synthetic", "reference", "other"):
            for value in numbers([line[film][key] for key in ("median", "low", "high")]):
                assert shown(words, value, "{:.4g}".format), (line["name"], value)


def test_what_was_judged_is_on_the_page(page):
    words = page.words()
    for said in ("made-up", "0123456789abcdef", "PaperSettings(first_steps=200", "A processor"):
        assert said in words
    for said in ("2020-01-02 03:04 UTC", "torch 2.15.0", "load 1.93", "trained on 01", "seeds 3"):
        assert said in words


def test_own_columns_are_never_called_by_the_names_of_other_networks(page):
    heads = re.findall(r"\b(?:FID|FVD)\b", page.words())
    assert heads == []
    assert "KID-Lite0 x 1000" in page.words()


def test_differences_within_two_standard_errors_are_said_to_be_noise(tmp_path):
    draws = np.random.default_rng(0)
    trials = trials_of({"real": 0.9, "clear": 0.9, "vague": 0.9}, 3, draws)
    results = {"training": summary(trials)}
    for row, gain in zip(results["training"]["rows"], (0.0, 0.0201, 0.0199), strict=True):
        row["gain"] = dict.fromkeys(FIGURES, gain)
        row["error"] = dict.fromkeys(FIGURES, 0.01)
    source = write_report(results, tmp_path).read_text(encoding="utf-8")
    words = Page(source).words()
    differences = words.split("Difference to real")[1]
    clear, vague = differences.split("clear")[1].split("vague")
    assert "within the noise" not in clear
    assert vague.split("Networks of the same seed")[0].count("within the noise") == len(SHOWN)
    assert source.count('<td class="noise">') == len(SHOWN)
    assert "18 % of cases" in words  # Student's t with 2 degrees of freedom, |t| > 2


def test_one_seed_says_nothing_of_the_noise(tmp_path):
    trials = trials_of({"real": 0.9, "synthetic": 0.8}, 1, np.random.default_rng(0))
    page = Page(write_report({"training": summary(trials)}, tmp_path).read_text(encoding="utf-8"))
    assert page.words().count("noise unknown") == len(SHOWN)
    assert "n/a" in page.words()


def test_results_that_are_not_valid_get_a_column(tmp_path):
    results = {"training": summary(trials_of({"real": 0.9}, 2, np.random.default_rng(0)))}
    rows = results["training"]["rows"]
    heads = '<th scope="col">valid</th>'
    before = write_report(results, tmp_path).read_text(encoding="utf-8")
    rows[0]["mean"]["valid"] = 0.5
    after = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert (before.count(heads), after.count(heads)) == (1, 2)  # one is that of every network


def test_nan_is_null_in_the_json(written):
    text = (written.parent / "report.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    figures = json.loads(text)
    assert figures["linking"]["rows"][0]["lnk_spread"] is None
    assert figures == json.loads(json.dumps(replace_nan(made_up())))


@pytest.mark.parametrize("part", [*list(made_up())[1:], "pictures", None])
def test_parts_that_are_missing_are_left_out(part, tmp_path):
    results = {part: made_up()[part]} if part in made_up() else {}
    pictures = {}
    if part == "pictures":
        pictures = {"One": tmp_path / "one.png"}
        Image.new("L", (4, 4)).save(pictures["One"])
    page = Page(write_report(results, tmp_path, pictures=pictures).read_text(encoding="utf-8"))
    expected = {None: [], "realism": ["realism", "gaps"]}.get(part, [part])
    assert page.ids == expected


def test_names_are_escaped_wherever_they_come_from(tmp_path):
    draws = np.random.default_rng(0)
    results = made_up()
    results["about"] |= {"model": WILD, WILD: WILD, "machine": {WILD: WILD}}
    results["training"] = summary(trials_of({"real": 0.9, WILD: 0.8}, 2, draws))
    results["scarcity"]["1"]["missing"] = {WILD: WILD}
    results["linking"]["rows"][0]["arm"] = WILD
    for row in results["distance"]["crops"]:
        row["name"] += WILD
    for line in results["realism"]["lines"]:
        line["name"] += WILD
        line["group"] = line["unit"] = line["measure"] = WILD
    results["realism"]["films"] = {"reference": WILD + "1", "other": WILD + "2"}
    source = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "<b>" not in source
    page = Page(source)
    assert "b" not in {tag for tag, *_ in page.attributes}
    assert WILD in page.words()


def test_pictures_are_in_the_page(page, written):
    picture = (written.parents[1] / "scenes.png").read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    assert uri in page.values("src")
    assert f"Scenes {WILD}" in page.values("alt")


def test_same_results_give_the_same_page(tmp_path):
    results = {"distance": made_up()["distance"]}
    first, again = (write_report(results, tmp_path / name) for name in ("a", "b"))
    assert again.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("fault", ["picture", "kind", "infinite", "form"])
def test_failure_leaves_what_was_there(fault, tmp_path):
    (tmp_path / "index.html").write_text("before")
    results, pictures = {"realism": made_up()["realism"]}, {}
    if fault == "picture":
        pictures = {"Missing": tmp_path / "missing.png"}
    if fault == "kind":
        pictures = {"Text": tmp_path / "index.html"}
    if fault == "infinite":
        results["realism"]["lines"][0]["ratio"] = math.inf
    if fault == "form":
        del results["realism"]["lines"][-1]["name"]
    with pytest.raises((FileNotFoundError, ValueError, KeyError)):
        write_report(results, tmp_path, pictures=pictures)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "before"


def test_report_keeps_no_figure_and_no_setting_of_matplotlib(tmp_path):
    import matplotlib

    settings = dict(matplotlib.rcParams)
    thread = threading.Thread(
        target=write_report, args=({"distance": made_up()["distance"]}, tmp_path)
    )
    thread.start()
    thread.join()
    assert dict(matplotlib.rcParams) == settings
    assert (tmp_path / "index.html").is_file()


def test_largest_gaps_come_in_order_and_without_those_that_have_no_ratio():
    ratios = (0.5, None, 3.0, 2.0, math.nan, 7.0)
    known = [{"name": f"{r}", "ratio": r, "group": f"{r}", "measure": CURVE} for r in ratios]
    known.append({"name": "of the same group", "ratio": 4.0, "group": "7.0", "measure": CURVE})
    known.append({"name": "a single number", "ratio": 9.0, "group": "9", "measure": SCALAR})
    assert [line["name"] for line in largest_gaps(known)] == ["7.0", "3.0", "2.0"]
    assert [line["name"] for line in largest_gaps(known, 1)] == ["7.0"]
    assert len(largest_gaps(known, 9)) == 4
    assert largest_gaps([]) == []
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        largest_gaps(known, 0)


def test_gaps_of_the_page_are_the_largest_ones(page):
    gaps = page.words().rsplit("The largest gaps", 1)[1]
    names = [line["name"] for line in largest_gaps(made_up()["realism"]["lines"])]
    places = [gaps.index(name) for name in names]
    assert places == sorted(places)
    assert f"stage: {STAGES[0]}" not in gaps
