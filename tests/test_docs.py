"""The pages of the documentation: all are found, none leads astray, and the site is built."""

import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_readme import entry_of, write_stand_in

import bvdm_data
from benchmarks.gallery import ROWS, draw_row, write_page
from bvdm_data.cli import cli
from bvdm_data.fitting.contours import LEAST_OVERLAP
from bvdm_data.fitting.motion import LEAST_STEPS
from bvdm_data.fitting.nuclei import LONGEST_STAGES, PATCH, REFERENCE_FRAMES
from bvdm_data.synth.contours import CONTOUR_POINTS
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.weights import read_card

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
SNIPPETS = [
    (page, number, text)
    for page in ("index", "fitting", "faq", "move_over")
    for number, text in enumerate(
        re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    )
]
FITTING = (DOCS / "fitting.md").read_text()
REFERENCE = "".join(path.read_text() for path in DOCS.glob("reference*.md"))


def test_every_page_is_in_the_navigation():
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    named = [line for tree in trees for line in tree.splitlines() if re.fullmatch(r"\w+", line)]
    assert sorted([*named, "index"]) == PAGES


@pytest.mark.parametrize(
    ("page", "number", "snippet"), SNIPPETS, ids=[f"{p}-{n}" for p, n, _ in SNIPPETS]
)
def test_page_snippets_run(page, number, snippet, tmp_path, monkeypatch):
    write_stand_in(tmp_path / "Fluo-N2DL-HeLa")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, f"{page}.md", "exec"), {})


def test_epoch_snippet_prints_new_numbers(capsys):
    (snippet,) = [text for page, _, text in SNIPPETS if page == "faq" and "set_epoch" in text]
    exec(compile(snippet, "faq.md", "exec"), {})
    first, second = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert (first[0], second[0]) == ("0", "1")
    assert first[1] != second[1]


def test_array_snippet_writes_fittable_video(tmp_path, monkeypatch):
    (snippet,) = [text for page, _, text in SNIPPETS if page == "fitting" and "write_" in text]
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "fitting.md", "exec"), {})
    clip = bvdm_data.CTCVideos("MyCells", frames=3, size=(64, 64), border=0).clip(0)
    assert clip["tracks"][0].tolist() == [1, 0, 2, 0]
    assert torch.equal(clip["masks"][0] > 0, clip["video"][0, 0] > clip["video"][0, 0].min())


@pytest.mark.parametrize("page", PAGES)
def test_page_commands_exist_with_options(page):
    text = (DOCS / f"{page}.md").read_text()
    lines = re.findall(r"(?:^|`|m )bvdm-data ([a-z]+)((?: [^\n`#]+)?)", text, re.MULTILINE)
    for command, rest in lines:
        known = {flag for option in cli.commands[command].params for flag in option.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, (command, rest)


def test_gallery_page_is_of_its_rows(tmp_path):
    assert write_page() == (DOCS / "gallery.md").read_text()
    row = replace(next(row for row in ROWS if row.name == "haze"), values=(0, 1))
    draw_row(row, tmp_path / "row.png")
    with Image.open(tmp_path / "row.png") as image:
        pixels = np.asarray(image.convert("L"), float)
    left, right = pixels[-150:-20, 20:190], pixels[-150:-20, 218:388]
    assert right.mean() > left.mean() + 3
    assert (left > 150).any()


def test_every_public_name_has_its_reference():
    named = set(re.findall(r"auto(?!module)\w+:: bvdm_data\.(?:clip\.)?(\w+)$", REFERENCE, re.M))
    assert named == set(bvdm_data.__all__)


def test_every_adapter_has_its_reference():
    folder = ROOT / "bvdm_data" / "adapters"
    shared = {"__init__", "common"}
    names = {path.stem for path in folder.glob("*.py")} - shared
    named = set(re.findall(r"automodule:: bvdm_data\.adapters\.(\w+)$", REFERENCE, re.MULTILINE))
    assert named == names


def test_reference_names_exist_with_docstrings():
    blocks = re.findall(r"automodule:: ([\w.]+)\n   :members: (.+)", REFERENCE)
    wanted = [(module, name.strip()) for module, names in blocks for name in names.split(",")]
    wanted += [
        tuple(path.rsplit(".", 1))
        for path in re.findall(r"auto\w+:: (bvdm_data\.\w+\.\S+\.\w+)", REFERENCE)
    ]
    assert len(wanted) > 10
    found = [getattr(importlib.import_module(module), name) for module, name in wanted]
    assert all(inspect.getdoc(thing) for thing in found)


def test_fitting_figures_match_the_card():
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\d.]+) \|", FITTING, re.MULTILINE)
    card = read_card("hela")
    assert len(rows) > 10
    assert {path: str(entry_of(card, path)) for path, _ in rows} == dict(rows)


def test_fitting_messages_exist():
    table = FITTING.split("| message |")[1].split("\n\n")[0]
    told = re.findall(r"^\| \*(.+?)\* \|", table, re.MULTILINE)
    files = [
        path
        for part in ("fitting", "datasets")
        for path in (ROOT / "bvdm_data" / part).glob("*.py")
    ]
    source = "".join(path.read_text() for path in files)
    joined = re.sub(r'"\s+f?"', "", source)
    assert len(told) > 5
    assert [text for text in told if text not in joined] == []


def test_fitting_rules_match_the_code():
    near, far = REFERENCE_FRAMES
    page = " ".join(FITTING.split())
    assert f"frames {near} to {far}, counted back" in page
    prophase, condensed, telophase = LONGEST_STAGES
    assert (
        f"prophase lasts at most {prophase} frames, the condensed stages {condensed}, "
        f"telophase {telophase}"
    ) in page
    assert f"above {PATCH} px, pooled" in page
    assert f"below {LEAST_OVERLAP} are left out" in page
    assert f"sisters below {LEAST_STEPS} divisions" in page
    assert f"outline of {CONTOUR_POINTS} rays" in page


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path):
    pytest.importorskip("furo", reason="needs the extra docs: pip install '.[docs]'")
    player = tmp_path / "player.html"
    player.write_text("<p>clips</p>")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q"]
    command += ["-D", f"html_extra_path={player}"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    site = {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert set(PAGES) <= set(site)
    for name in bvdm_data.__all__:
        assert re.search(rf'id="bvdm_data\.(clip\.)?{name}"', site["reference"]), name
    for command in cli.commands:
        assert f'id="bvdm-data-{command}"' in site["reference_commands"], command
    assert "Names of the stages of a life" in site["reference"]
    assert "What labels may tell apart: nuclei" in site["reference_adapters"]
    for page, text in site.items():
        for link in re.findall(r'(?:href|src)="([^"#?:]+)["#?]', text):
            assert (tmp_path / "site" / link).exists(), (page, link)


def test_method_page_shows_synthesise():
    page = (DOCS / "method.md").read_text()
    (shown,) = re.findall(r"<!-- synthesise -->\n```python\n(.*?)```", page, flags=re.DOTALL)
    source = inspect.getsource(inspect.unwrap(synthesise))
    assert shown.strip() == textwrap.dedent(source.split('"""')[2].strip("\n")).strip()
