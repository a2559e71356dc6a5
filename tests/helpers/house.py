"""What the code of the package is made of: its functions, names and imports.

Files are parsed, not imported. Functions include methods and inner functions; a body excludes its
docstring. A public function is at the top level of a file or in a public class. A user of a name is
another file with the name in its code; a mere re-export does not count.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

Trees = dict[str, ast.Module]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
VERBS = """
add advance advise agree annotate apply assign attach augment average begin build cache check choose
claim clear close collate collect compare composite compute convert copy correlate corrupt count
create crop cut decode denoise derive describe displace divide draw drop embed encode enlarge
estimate evaluate expand explain export expose extract fade fetch fill filter find fit follow format
gather get grow guess group hand has hash hold identify import interpolate invert is isolate iterate
join judge keep lay list load look make map mask match measure mend merge move name normalize number
open pack pad paint parse pick pin place plant play plot pool predict prepare print profile push put
read recommend refuse relabel remove render replace report require resample resolve return run
sample save scale segment select send separate set show shrink silence simulate solve skip sort
start stay stop store summarize synthesise tabulate take test tile trace train transform try turn
unpack update upsample validate vary wait warm warn warp weigh write
""".split()  # noqa: SIM905
VERBS_BEFORE_A_NOUN = ("label", "link", "pair", "plan", "sample", "score", "split", "track")
"""Nouns when on their own: ``label_rows`` does something, ``label`` is something."""


def parse_files(root: Path, *patterns: str) -> tuple[Trees, dict[str, list[str]]]:
    """Return the trees and the lines of files by the paths they are imported by."""
    trees, lines = {}, {}
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        trees[module], lines[module] = ast.parse(text), text.splitlines()
    return trees, lines


def list_functions(trees: Trees) -> list[Function]:
    return [x for tree in trees.values() for x in ast.walk(tree) if isinstance(x, Function)]


def list_public(body: Iterable[ast.stmt]) -> list[Definition]:
    return [x for x in body if isinstance(x, Definition) and not x.name.startswith("_")]


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def is_command(node: Definition, kinds: str = r"\.(command|group)\b") -> bool:
    return any(re.search(kinds, ast.unparse(each)) for each in node.decorator_list)


def has_verb_first(name: str) -> bool:
    first, _, others = name.partition("_")
    made = len(first) > 6 and first.endswith(("ise", "ize", "ify"))
    converts = "_to_" in f"_{name}" or first in ("as", "from")  # the idiom of conversions
    return made or converts or first in VERBS or (others != "" and first in VERBS_BEFORE_A_NOUN)


def count_body(function: Function) -> int:
    body = function.body[is_docstring(function.body[0]) :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def list_imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield what each import binds: the name in the file and the path it stands for."""
    for node in ast.walk(tree):
        before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            yield alias.asname or alias.name, before + alias.name


def count_users(trees: Trees, others: Trees) -> dict[str, int]:
    """Return for each public name of the package how many other files use it."""
    users = {f"{m}.{x.name}": {m} for m in trees for x in list_public(trees[m].body)}
    passed = {f"{m}.{name}": path for m in trees for name, path in list_imports(trees[m])}
    for module, tree in {**trees, **others}.items():
        bound = dict(list_imports(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Name | ast.Attribute):
                first, dot, rest = ast.unparse(node).partition(".")
                path = f"{bound.get(first, '')}{dot}{rest}"
                for _ in range(3):  # as often as files pass a name on to each other
                    path = passed.get(path, path)
                users.get(path, set()).add(module)
    return {path: len(files) - 1 for path, files in users.items()}
