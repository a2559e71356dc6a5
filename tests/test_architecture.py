import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "bvdm_data").rglob("*.py"))
MOST_LINES = 320


def imported_names(file):
    """Names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def name_of(file):
    return str(file.relative_to(ROOT))


def test_layers_of_the_package_keep_their_contracts(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    broken = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert broken == 0, capsys.readouterr().out


def test_modules_of_the_package_import_each_other_without_a_cycle():
    graph = grimp.build_graph("bvdm_data", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_synth_does_not_know_the_loader():
    # import-linter sees an outer package as one module, torch, which synth may import.
    knowing = [
        name_of(file)
        for file in (ROOT / "bvdm_data" / "synth").rglob("*.py")
        if any(name.startswith("torch.utils.data") for name in imported_names(file))
    ]
    assert knowing == []


def test_no_module_imports_the_root_of_the_package():
    importing = [
        name_of(file)
        for file in FILES
        if "bvdm_data" in set(imported_names(file)) and file.name != "__main__.py"
    ]
    assert importing == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_file_is_short_enough_to_be_read_at_one_sitting(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
