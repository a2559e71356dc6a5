"""The public names, arguments, defaults, commands and clips stay as they are.

``OMP_NUM_THREADS=1 python tests/test_api.py --write`` writes ``api.json`` anew.

Annotations are left out: only names, kinds and defaults of arguments are compared.
"""

import dataclasses
import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import click
import pytest

import bvdm_data
from bvdm_data.cli import cli
from bvdm_data.fitting.fit import FitSettings
from bvdm_data.fitting.training import TrainingSettings

FILE = Path(__file__).with_name("api.json")
DOCS = Path(__file__).parents[1] / "docs"
SAID = json.loads(FILE.read_text()) if FILE.exists() else {"documented": {}}
DUNDERS = ("__call__", "__enter__", "__exit__", "__getitem__", "__iter__", "__len__", "__next__")
SETTINGS = (
    bvdm_data.FastSettings, bvdm_data.PoolSettings, bvdm_data.ProceduralSettings,
    bvdm_data.PaperSettings, FitSettings, TrainingSettings,
)  # fmt: skip
ALL = ("masks", "tracks", "flow", "stages", "boxes", "centroids")


def ours(kind):
    return getattr(kind, "__module__", "").split(".")[0] == "bvdm_data"


def plain(value):
    """Return a default as text that tells no name of an inner class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    name = getattr(value, "name", None) or getattr(value, "__qualname__", None)
    return str(name) if name else re.sub(r" at 0x\w+", "", repr(value))


def arguments(call):
    """Return kind and default of each argument, in their order."""
    empty = inspect.Parameter.empty
    return [
        [one.name, one.kind.name, *([] if one.default is empty else [plain(one.default)])]
        for one in inspect.signature(call).parameters.values()
    ]


def described(thing):
    """Return what users can see of a class, a function or a value."""
    if not callable(thing):
        return {"value": plain(thing)}
    if not isinstance(thing, type):
        return {"arguments": arguments(thing)}
    if hasattr(thing, "__required_keys__"):
        return {"keys": sorted(thing.__annotations__), "required": sorted(thing.__required_keys__)}
    said = {"bases": sorted(outer(thing))}
    if not issubclass(thing, Exception):
        said["arguments"] = arguments(thing)
    members = {}
    for kind in reversed([kind for kind in thing.__mro__ if ours(kind)]):
        for name, member in vars(kind).items():
            if not name.startswith("_") or name in DUNDERS:
                members[name] = member_of(member)
    return said | {"members": dict(sorted(members.items()))}


def outer(thing):
    """Return the names of its bases that come from elsewhere and can be caught or asked for."""
    return {
        kind.__name__ for kind in thing.__mro__[:-1]
        if not ours(kind) and kind.__module__.split(".")[0] in ("builtins", "torch")
    }  # fmt: skip


def member_of(member):
    if isinstance(member, (classmethod, staticmethod)):
        return [type(member).__name__, *arguments(member.__func__)]
    if inspect.isfunction(member):
        return ["method", *arguments(member)]
    return "property" if hasattr(member, "__get__") else f"value {plain(member)}"


def documented():
    """Return the names that the reference tells of, by module."""
    found = {}
    directive = r"^\.\. auto(\w+):: (\S+)\n((?:   :.*\n)*)"
    for page in sorted(DOCS.glob("reference*.md")):
        for kind, name, options in re.findall(directive, page.read_text(), re.MULTILINE):
            if kind != "module":
                module, _, one = name.rpartition(".")
                found.setdefault(module, set()).add(one)
                continue
            listed = re.search(r":members: (\S.*)", options)
            names = listed[1].split(", ") if listed else public(importlib.import_module(name))
            found.setdefault(name, set()).update(names)
    return {module: sorted(names) for module, names in sorted(found.items())}


def public(module):
    mine = vars(module).items()
    names = [k for k, v in mine if getattr(v, "__module__", None) == module.__name__]
    return [name for name in getattr(module, "__all__", names) if not name.startswith("_")]


def described_of(module, names):
    found = importlib.import_module(module)
    return {name: described(getattr(found, name)) for name in names}


def fields_of(kind):
    said = {}
    for one in dataclasses.fields(kind):
        missing = one.default is dataclasses.MISSING
        said[one.name] = "required" if missing else plain(one.default)
    return said | {"frozen": kind.__dataclass_params__.frozen}


def clip_keys():
    some = {"frames": 3, "size": (64, 80), "nuclei": 2, "annotations": ALL, "max_cells": 16}
    videos = bvdm_data.SyntheticHeLaVideos(**some, method="procedural")
    clip = {k: [str(v.dtype), list(v.shape)] for k, v in videos.clip(0).items()}
    usual = sorted(bvdm_data.SyntheticHeLaVideos(method="procedural").annotations)
    attributes = sorted(name for name in vars(videos) if not name.startswith("_"))
    return {"keys": clip, "default annotations": usual, "attributes of videos": attributes}


def commands():
    found = {"": options(cli)}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        found[name] = options(cli.get_command(context, name))
    return found


def options(command):
    said = {}
    for one in command.params:
        choices = getattr(one.type, "choices", None)
        said[one.name] = {
            "flags": [*one.opts, *one.secondary_opts],
            "argument": isinstance(one, click.Argument),
            "required": one.required,
            "default": default_of(one),
            "flag": getattr(one, "is_flag", False),
            "many": [one.nargs, getattr(one, "multiple", False)],
            "choices": None if choices is None else [plain(choice) for choice in choices],
        }
    return said


def default_of(option):
    """Return a default as text; old and new versions of click write none in different ways."""
    unset = option.default is None or "UNSET" in repr(option.default).upper()
    return None if unset or option.default is False else plain(option.default)


def surface():
    """Return all but what is told by module."""
    names = {name: described(getattr(bvdm_data, name)) for name in bvdm_data.__all__}
    settings = {kind.__name__: fields_of(kind) for kind in SETTINGS}
    return {"names": names, "settings": settings, "clip": clip_keys(), "commands": commands()}


def check(part):
    assert json.loads(json.dumps(surface()[part])) == SAID[part]


def test_public_names_stay():
    check("names")


def test_settings_keep_their_defaults():
    check("settings")


def test_clips_keep_their_keys():
    check("clip")


def test_commands_keep_their_options():
    check("commands")


@pytest.mark.parametrize("module", SAID["documented"])
def test_documented_names_can_be_imported(module):
    said = SAID["documented"][module]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("bvdm_data"):
            raise
        pytest.skip(f"needs {error.name}")
    assert json.loads(json.dumps(described_of(module, said))) == said


def test_documented_modules_are_all_told():
    assert SAID["documented"].keys() >= documented().keys()


@pytest.mark.parametrize("name", ["arms", "evaluate"])
def test_judge_keeps_its_old_address(name):
    old, new = (importlib.import_module(f"bvdm_data.{x}.{name}") for x in ("judge", "evaluation"))
    assert old is new


def write():
    told = {module: described_of(module, names) for module, names in documented().items()}
    text = json.dumps(surface() | {"documented": told}, indent=1)
    # One argument a line.
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    FILE.write_text(text + "\n")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write()
