"""Measure the size of a checkout: its files, lines, names and imports.

Run ``python -m benchmarks.house [ROOT ...]``; its Markdown table has one column for each checkout.
``--tests`` also counts test cases with pytest; ``--json`` prints JSON instead of a table. Files are
parsed, not imported. A line is a docstring (also of a variable, including its blank lines), a
comment, blank, or code. Functions include methods and inner functions. A body excludes its
docstring, arguments exclude ``self`` and ``cls``, and ``elif`` counts as one level with ``if``. A
public function is at the top level of a file or in a public class. A user of a name is another
file of the package, benchmarks or examples with the name in its code; a mere re-export does not
count. A closure is a file and everything it imports, lazily or transitively, except the
``__init__.py`` files of its parent packages.
"""

import argparse
import ast
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

Trees = dict[str, ast.Module]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
Value = int | float | list[float] | None
NESTING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
VERBS = """
add advance advise agree annotate apply assign attach augment average begin build cache check choose
claim clear close collate collect compare composite compute convert copy correlate corrupt count
create crop cut decode denoise derive describe displace divide draw drop embed enlarge estimate
evaluate expand explain export expose extract fade fetch fill filter find fit follow format gather
get grow guess group hand has hash hold identify import interpolate invert is isolate iterate join
judge keep lay list load look make map mask match measure mend merge move name normalize number open
pack pad paint parse pick pin place plant play plot pool predict prepare print profile push put read
recommend relabel remove render replace report require resample resolve return run sample save scale
segment select send separate set show shrink silence simulate solve skip sort start stay stop store
summarize synthesise tabulate take test tile trace train transform try turn unpack update upsample
validate vary wait warm warn warp weigh write
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


def list_kinds(tree: ast.Module, lines: list[str]) -> list[str]:
    """Return the kind of each line."""
    kinds = {i: "code" if line.strip() else "blank" for i, line in enumerate(lines, 1)}
    kinds |= {i: "comment" for i, line in enumerate(lines, 1) if line.strip().startswith("#")}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Constant)]
    for node in (*texts, *filter(is_docstring, ast.walk(tree))):
        kind = "docstring" if isinstance(node, ast.Expr) else "code"
        kinds |= dict.fromkeys(range(node.lineno, node.end_lineno + 1), kind)
    return list(kinds.values())


def count_body(function: Function) -> int:
    body = function.body[is_docstring(function.body[0]) :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def count_arguments(function: Function) -> int:
    a = function.args
    names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def count_nesting(node: ast.AST, depth: int = 0) -> int:
    """Return how many statements a function has within each other at its deepest place."""
    deepest, column = depth, getattr(node, "col_offset", -1)
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Definition):
            elif_ = isinstance(child, ast.If) and child.col_offset == column
            below = depth + (isinstance(child, NESTING) and not elif_)
            deepest = max(deepest, count_nesting(child, below))
    return deepest


def measure_verbs(trees: Trees) -> float:
    """Return the share of public functions named by a verb; ``forward`` is PyTorch's name."""
    found = [node for tree in trees.values() for node in list_public(tree.body)]
    found += [x for node in found if isinstance(node, ast.ClassDef) for x in list_public(node.body)]
    skip = r"property\b|\.(setter|command|group)\b"
    functions = [x for x in found if isinstance(x, Function) and not is_command(x, skip)]
    verbs = [has_verb_first(x.name) for x in functions if x.name != "forward"]
    return sum(verbs) / max(len(verbs), 1)


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


def count_closure(trees: Trees, name: str) -> int | None:
    """Count what the file that defines a name needs; a command of that name is another thing."""
    public = {module: list_public(tree.body) for module, tree in trees.items()}
    starts = [m for m in public if any(x.name == name and not is_command(x) for x in public[m])]
    needed = starts[:1]
    for module in needed:  # it grows on the way
        for _, path in list_imports(trees[module]):
            places = [p for p in (path, path.rpartition(".")[0]) if p in trees][:1]
            needed += [p for p in places if p not in needed]
    return len(needed) or None


def count_cases(root: Path) -> int | None:
    """Return how many cases pytest would run in a checkout."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    found = re.search(r"^(\d+)(?:/\d+)? tests? collected", done.stdout, re.MULTILINE)
    return int(found[1]) if found and done.returncode == 0 else None


def summarise(values: Iterable[int]) -> list[float]:
    """Return the median, the value that 90 % do not pass, and the largest one."""
    ranked = sorted(values) or [0]
    return [statistics.median(ranked), ranked[math.ceil(0.9 * len(ranked)) - 1], ranked[-1]]


def measure_house(root: Path, cases: bool = False) -> dict[str, Value]:
    """Return all measures of a checkout by their names."""
    trees, lines = parse_files(root, "bvdm_data/**/*.py")
    kinds = [kind for module in trees for kind in list_kinds(trees[module], lines[module])]
    functions = list_functions(trees)
    users = count_users(trees, parse_files(root, "benchmarks/**/*.py", "examples/**/*.py")[0])
    tests, test_lines = parse_files(root, "tests/**/*.py")
    names = [x.name[5:] for x in list_functions(tests) if x.name.startswith("test_")]
    found: dict[str, Value] = {"files": len(trees), "lines": len(kinds)}
    for kind in ("code", "docstring", "comment", "blank"):
        found[f"{kind} lines"] = kinds.count(kind)
    found["docstring lines, share"] = kinds.count("docstring") / max(len(kinds), 1)
    found["lines of a file, median / max"] = summarise(map(len, lines.values()))[::2]
    found["functions"] = len(functions)
    found["body lines, median / p90 / max"] = summarise(map(count_body, functions))
    found["nesting, p90 / max"] = summarise(map(count_nesting, functions))[1:]
    found["arguments, p90 / max"] = summarise(map(count_arguments, functions))[1:]
    found["public names"] = len(users)
    found["public names with one user outside their file"] = list(users.values()).count(1)
    found["public functions with the verb first, share"] = measure_verbs(trees)
    for name in ("SyntheticHeLaVideos", "fit", "evaluate"):
        found[f"closure of `{name}`, files"] = count_closure(trees, name)
    found |= {"test files": len(tests), "test lines": sum(map(len, test_lines.values()))}
    found["test functions"] = len(names)
    found["words of a test name, median / max"] = summarise(len(x.split("_")) for x in names)[::2]
    return {**found, "test cases": count_cases(root)} if cases else found


def format_value(value: Value) -> str:
    if isinstance(value, list):
        return " / ".join(f"{each:g}" for each in value)
    return "-" if value is None else f"{value:.0%}" if isinstance(value, float) else f"{value:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("roots", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    parser.add_argument("--tests", action="store_true", help="Count the cases of pytest, too.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    wanted = parser.parse_args()
    houses = {str(root): measure_house(root.resolve(), wanted.tests) for root in wanted.roots}
    rows = [["", *houses], ["---", *("---:" for _ in houses)]]
    for name in next(iter(houses.values())):
        rows.append([name, *(format_value(house[name]) for house in houses.values())])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    print(json.dumps(houses, indent=2) if wanted.json else table)


if __name__ == "__main__":
    main()
