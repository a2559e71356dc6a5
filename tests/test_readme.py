"""What the front door promises must run."""

import ast
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tables import between_marks, summarise, tables
from bvdm_data import SyntheticHeLaVideos
from bvdm_data.cli import cli
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.weights import known_models, model_digest, read_card

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = sorted(set(re.findall(r"`bvdm-data (\w+)", README)))


def write_stand_in(root):
    """Write a video of two resting discs on the real one's scale."""
    y, x = np.mgrid[:192, :200]
    mask = np.zeros((192, 200), np.int32)
    mask[np.hypot(y - 80, x - 90) < 12] = 1
    mask[np.hypot(y - 120, x - 60) < 10] = 2
    video = np.stack([32768 + 300 + 800 * (mask > 0)] * 6).astype(np.uint16)
    tracks = np.array([[1, 0, 5, 0], [2, 0, 5, 0]])
    write_sequence(root, "01", video, np.stack([mask] * 6), tracks)


SHORTER = {"length=4_000": "length=16", "step % 100": "step % 3"}
"""What the tests change in a training loop: it takes four steps and is saved after three."""


def run_snippet(snippet):
    for long, short in SHORTER.items():
        snippet = snippet.replace(long, short)
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("snippet", [one for one in SNIPPETS if "optimizer" not in one])
def test_readme_snippets_run(snippet, tmp_path, monkeypatch):
    write_stand_in(tmp_path / "Fluo-N2DL-HeLa")
    monkeypatch.chdir(tmp_path)
    run_snippet(snippet)


def test_readme_loop_trains_and_resumes(tmp_path, monkeypatch):
    (loop,) = [snippet for snippet in SNIPPETS if "optimizer" in snippet]
    assert len(loop.splitlines()) <= 30
    assert all(long in loop for long in SHORTER)
    write_stand_in(tmp_path / "Fluo-N2DL-HeLa")
    monkeypatch.chdir(tmp_path)
    first = run_snippet(loop)
    assert first["step"] == 4
    assert sorted(first["batch"]["source"].tolist()) == [0, 1, 1, 1]
    # The second run goes on behind the three steps that were saved, with the same last batch.
    second = run_snippet(loop)
    assert (second["step"], second["batch"]["index"].tolist()) == (1, [12, 13, 14, 15])
    assert second["batch"]["video"].equal(first["batch"]["video"])
    assert second["loss"].item() == pytest.approx(first["loss"].item(), rel=1e-4)


def test_readme_lists_arguments_with_defaults():
    part = README.split("## Arguments")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| (`.+?) \|", part, re.MULTILINE)
    told = {}
    for names, defaults in rows:
        told |= zip(re.findall(r"`(.+?)`", names), re.findall(r"`(.+?)`", defaults), strict=True)
    known = inspect.signature(SyntheticHeLaVideos).parameters
    assert {name: ast.literal_eval(text) for name, text in told.items()} == {
        name: one.default for name, one in known.items()
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_exists(command):
    assert command in cli.commands


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_page_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [
        link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()
    ]
    assert missing == []


def test_named_source_files_exist():
    text = (ROOT / "docs/method.md").read_text()
    names = re.findall(r"`((?:fitting|synth|benchmarks)/\w+\.py)`", text)
    missing = [
        name
        for name in names
        if not (ROOT / name).exists() and not (ROOT / "bvdm_data" / name).exists()
    ]
    assert names
    assert missing == []


def test_shipped_model_exists():
    assert "hela" in known_models()


def entry_of(card, path):
    for key in path.split("."):
        card = card[int(key)] if isinstance(card, list) else card[key]
    return card


def test_model_card_figures_match_the_model():
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\d.]+) \|", (ROOT / "docs/hela.md").read_text(), re.M)
    card = read_card("hela")
    assert len(rows) > 10
    assert {path: str(entry_of(card, path)) for path, _ in rows} == dict(rows)


def test_evaluation_tables_match_the_report():
    page = (ROOT / "docs/evaluation.md").read_text()
    results = json.loads((ROOT / "docs/evaluation/report.json").read_text())
    assert between_marks(README, {"summary": summarise(results)}) == README
    made = dict(tables(results))
    assert {"training", "transfer", "distance", "realism", "edges"} <= set(made)
    assert between_marks(page, made) == page


def test_linkers_have_table_and_column():
    rows = [
        {"arm": "LapTrack tuned on 01", "detections": "reference", "seeds": 1, "lnk": 0.99},
        {"arm": "Trackastra on synthetic", "detections": "planted", "seeds": 2, "lnk": 0.94},
        {"arm": "Trackastra on synthetic", "detections": "reference", "seeds": 2, "lnk": 0.992},
    ]
    rows = [row | {"lnk_spread": 0.001, "aogm": 41.5, "aogm_spread": None} for row in rows]
    results = json.loads((ROOT / "docs/evaluation/report.json").read_text())
    results["linking"] = {"rows": rows}
    text = dict(tables(results))["linking"]
    head, *_, last = text.splitlines()
    assert head == "| linker | detections | seeds | LNK | AOGM |"
    assert last == "| Trackastra on synthetic | reference | 2 | .9920 ± .0010 | 42 |"
    cells = [line.split("|") for line in summarise(results).splitlines()]
    ends = {row[1].strip(): row[-2].strip() for row in cells}
    assert ends.pop("trained on") == "tracker: LNK"
    assert ends.pop("synthetic clips") == ".992 ± .001"
    assert set(ends.values()) == {"---", "-"}


def test_table_marks_are_unique():
    page = "a\n<!-- table: one -->\nold\n<!-- end -->\nb\n"
    assert between_marks(page, {"one": "new"}) == page.replace("old\n", "\nnew\n\n")
    with pytest.raises(ValueError, match="marks of the table 'two' once"):
        between_marks(page, {"two": "new"})


def test_evaluation_is_of_shipped_model():
    about = json.loads((ROOT / "docs/evaluation/report.json").read_text())["about"]
    assert about["model_digest"] == model_digest("hela")
    assert (about["train"], about["test"]) == ("01", "02")
