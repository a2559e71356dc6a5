import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

from tests.helpers import house

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES, MAX_BODY_LINES, MAX_TEST_WORDS = 450, 60, 6
CONSTRUCTORS = {"torch_rng", "numpy_rng"}  # named after what they make


@pytest.fixture(scope="module")
def package():
    return house.parse_files(ROOT, "bvdm_data/**/*.py")


def test_floors_keep_their_contracts(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    broken = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert broken == 0, capsys.readouterr().out


def test_modules_import_without_a_cycle():
    graph = grimp.build_graph("bvdm_data", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_synth_knows_no_loader(package):
    # import-linter sees an outer package as one module, torch, which synth may import.
    trees, _ = package
    loaders = [
        module
        for module, tree in trees.items()
        if module.startswith("bvdm_data.synth")
        and any(path.startswith("torch.utils.data") for _, path in house.list_imports(tree))
    ]
    assert loaders == []


def test_no_module_imports_the_root(package):
    trees, _ = package
    imports = {module: dict(house.list_imports(tree)).values() for module, tree in trees.items()}
    assert [module for module, paths in imports.items() if "bvdm_data" in paths] == []


def test_files_hold_one_noun_each(package):
    _, lines = package
    assert {m: len(text) for m, text in lines.items() if len(text) > MAX_FILE_LINES} == {}


def test_functions_fit_on_a_screen(package):
    bodies = {x.name: house.count_body(x) for x in house.list_functions(package[0])}
    assert {name: lines for name, lines in bodies.items() if lines > MAX_BODY_LINES} == {}


def test_public_functions_begin_with_verbs(package):
    documented = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    modules = re.findall(r"automodule:: (\S+)", documented)
    nouns = [
        f"{module}.{node.name}"
        for module, tree in package[0].items()
        for node in house.list_public(tree.body)
        if isinstance(node, house.Function)
        and module not in modules
        and node.name not in CONSTRUCTORS
        and not house.is_command(node)
        and not house.has_verb_first(node.name)
        and not re.search(rf"\b{node.name}\b", documented)
    ]
    assert nouns == []


def test_public_functions_are_used_elsewhere(package):
    patterns = ("benchmarks/**/*.py", "examples/**/*.py", "tests/**/*.py")
    users = house.count_users(package[0], house.parse_files(ROOT, *patterns)[0])
    documented = "".join(path.read_text() for path in ROOT.glob("docs/reference*.md"))
    unused = [
        name
        for module, tree in package[0].items()
        for node in house.list_public(tree.body)
        if isinstance(node, house.Function) and not house.is_command(node)
        and not users[name := f"{module}.{node.name}"]
        and not any(part in documented for part in (name, module))
    ]  # fmt: skip
    assert unused == []


def test_test_names_are_short():
    trees, _ = house.parse_files(ROOT, "tests/**/*.py")
    names = [x.name for x in house.list_functions(trees) if x.name.startswith("test_")]
    assert [name for name in names if len(name.split("_")) - 1 > MAX_TEST_WORDS] == []
    assert names


def test_import_is_light():
    code = "import bvdm_data, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"scipy.stats", "scipy.signal", "kornia", "torchvision", "torch._dynamo", "matplotlib"}
    assert slow & set(done.stdout.split()) == set()
