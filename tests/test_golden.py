"""What is made today stays as it is: digests of clips, exports, shards and a small fit.

``OMP_NUM_THREADS=1 python tests/test_golden.py --write`` writes ``golden.json`` anew.

Whole numbers (masks, tracks, tables, text) must be the same everywhere. Floats depend on the
instruction set of the CPU, on torch, and on whether the loops over pixels are compiled: where all
are as in ``golden.json`` their digests are compared, elsewhere their mean and standard deviation.
"""

import gzip
import hashlib
import io
import json
import math
import re
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from safetensors import safe_open
from threadpoolctl import threadpool_limits

import bvdm_data as bvdm
from bvdm_data.cli import cli
from bvdm_data.fitting.fit import FitSettings, fit
from bvdm_data.pixels import has_loops
from bvdm_data.storage import write_shards

try:
    import fitted as planted
except ModuleNotFoundError:
    from helpers import fitted as planted

FILE = Path(__file__).with_name("golden.json")
CPU = torch.backends.cpu.get_cpu_capability()
ENVIRONMENT = {"torch": torch.__version__, "cpu": CPU, "loops": has_loops()}
ALL = ("masks", "tracks", "flow", "stages", "boxes", "centroids")
REAL = ("masks", "tracks", "boxes", "centroids")
USUAL = {
    "frames": 4, "size": 96, "nuclei": 5, "seed": 3, "annotations": ALL, "max_cells": 32,
}  # fmt: skip
CLIPS = {
    "fast": {},
    "fast, as dense as the video": {"size": 192, "nuclei": None, "max_cells": 128},
    "fast like the video": {"variation": 0},
    "fast anywhere": {"variation": 1, "nuclei": (4, 7), "seed": 11},
    "fast, scenes of the paper": {"method": bvdm.FastSettings(families=False)},
    "fast in steps": {"method": bvdm.FastSettings(steps=2, memory=0.5, fresh=0.1), "frames": 2},
    "pool": {"pool": bvdm.PoolSettings(pairs=4, renew=0.5)},
    "procedural": {"method": "procedural"},
    "procedural, other numbers": {
        "method": bvdm.ProceduralSettings(grain=2, nucleoli=(0, 1)), "size": 64, "variation": 1,
    },
    "paper": {
        "method": bvdm.PaperSettings(first_steps=4, later_steps=2), "nuclei": 3, "frames": 2,
        "size": 64,
    },
    "paper, length given": {
        "method": bvdm.PaperSettings(first_steps=2, later_steps=0), "length": 5,
    },
    "rectangle": {"size": (64, 136), "nuclei": 6},
    "one frame": {"frames": 1, "nuclei": 4},
    "long": {"frames": 24, "nuclei": 4, "max_cells": 64},
}  # fmt: skip


def entry(arrays, floats=False):
    """Return digest of arrays; where they hold floats, their mean and deviation, too."""
    found, numbers = hashlib.sha256(), []
    for array in map(np.asarray, arrays):
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        if floats or array.dtype.kind == "f":
            numbers.append(array[np.isfinite(array)].ravel().astype(np.float64))
    said = {"sha256": found.hexdigest()}
    if numbers:
        values = np.concatenate(numbers)
        both = (values.mean(), values.std()) if len(values) else (0.0, 0.0)
        said["mean"], said["std"] = (float(f"{number:.6g}") for number in both)
    return said


def entry_of_json(value):
    """Return the digest of a JSON value; mean and deviation of its floats, if it has any."""
    text = json.dumps(value, sort_keys=True)
    numbers = [float(word) for word in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)]
    said = {k: v for k, v in entry([numbers]).items() if numbers}
    return said | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


PASSING = {"version", "versions", "digest", "card_digest", "hours", "processor", "sequences"}


def entries(start, items):
    """Return the entries of a JSON object, but for what tells times, machines and versions."""
    return {f"{start} {k}": entry_of_json(v) for k, v in items.items() if k not in PASSING}


def of_clip(name, clip):
    return {f"{name}: {key}": entry([value.numpy()]) for key, value in clip.items()}


def clips(_):
    made = {}
    for name, settings in CLIPS.items():
        videos = bvdm.SyntheticHeLaVideos(**USUAL | settings)
        made |= of_clip(name, videos.clip(1))
    videos.set_epoch(2)
    return made | of_clip("long, epoch 2", videos.clip(0))


def batches(_):
    videos = bvdm.SyntheticHeLaVideos(**USUAL | {"frames": 2, "length": 4})
    formula = bvdm.SyntheticHeLaVideos(**USUAL | {"frames": 2, "method": "procedural"})
    made = {}
    for number, batch in enumerate(bvdm.DeviceLoader(videos, batch_size=2, device="cpu")):
        made |= of_clip(f"device loader {number}", batch)
    weights = {"formula": 1, "network": 2}
    mixed = bvdm.MixedVideos(
        {"formula": formula, "network": videos}, weights=weights, length=4, seed=1
    )
    for number in range(3):
        made |= of_clip(f"mixed {number}", mixed.clip(number))
    return made


def exported(folder):
    line = "--frames 3 --size 64x112 --sequences 2 --seed 5 --nuclei 4 --method"
    made = {}
    for method in ("fast", "procedural"):
        root = folder / method
        result = CliRunner().invoke(cli, ["export", str(root), *line.split(), method])
        assert result.exit_code == 0, result.output
        for path in sorted(file for file in root.rglob("*") if file.is_file()):
            name = f"{method}/{path.relative_to(root).as_posix()}"
            if path.suffix == ".tif":
                made[name] = entry([tifffile.imread(path)], floats=path.name.startswith("t"))
            elif path.suffix == ".json":
                made |= entries(name, json.loads(path.read_text()))
            else:
                made[name] = entry([np.frombuffer(path.read_bytes(), np.uint8)])
    return made


def sharded(folder):
    videos = bvdm.SyntheticHeLaVideos(**USUAL | {"frames": 2, "size": 64, "nuclei": 3})
    made = {}
    for name in write_shards(videos, folder, clips=3, clips_per_shard=2, progress=False):
        with tarfile.open(folder / name) as archive:
            for member in archive:
                content = gzip.decompress(archive.extractfile(member).read())
                made[f"{name}/{member.name}"] = entry([np.load(io.BytesIO(content))])
    return made | entries("manifest", json.loads((folder / "bvdm_data.json").read_text()))


def fit_and_cut(folder):
    """Fit to the planted film, and cut clips out of it."""
    root, path = folder / "planted", folder / "model.safetensors"
    root.mkdir()
    planted.write_fitted(root)
    usual, parts = FitSettings(), ("painter", "distilled", "texture", "flow")
    few = {part: replace(getattr(usual, part), steps=2, batch=4) for part in parts}
    few["network"] = replace(usual.network, channels=(8, 8, 8), middle=1)
    with pytest.MonkeyPatch.context() as patch:
        planted.quick_memory(patch)
        fit(root, path, settings=FitSettings(**few, pairs=16, paper=True), progress=False)
    groups, made = {}, {}
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["bvdm_data"])
        for name in sorted(file.keys()):
            group = name if name.count(".") == 1 else name.partition(".")[0]
            groups.setdefault(group, {})[name] = file.get_tensor(name).numpy()
    for group, tensors in groups.items():
        made[f"tensors of {group}"] = entry(tensors.values())
        made[f"names in {group}"] = entry_of_json([*tensors])
    for name, value in header.pop("card").items():
        made |= entries(f"card {name}", value if isinstance(value, dict) else {"": value})
    real = bvdm.CTCVideos(root, frames=4, size=(96, 112), annotations=REAL, max_cells=32, seed=2)
    return made | entries("header", header) | of_clip("real", real.clip(1))


def same(one, other, exact):
    if exact or "mean" not in other:
        return one == other
    pairs = [(one[key], other[key]) for key in ("mean", "std")]
    return all(math.isclose(*pair, rel_tol=1e-3, abs_tol=1e-3) for pair in pairs)


PARTS = {
    "clips": clips,
    "batches": batches,
    "export": exported,
    "shards": sharded,
    "fit": fit_and_cut,
}


@pytest.fixture
def one_thread():
    """Hold torch to one thread, as the sums of a training depend on how many there are.

    BLAS has two, whatever the machine has: nothing that is made may depend on them.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(2, "blas"):
        yield
    torch.set_num_threads(usual)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.usefixtures("one_thread")
def test_outputs_stay_the_same(part, tmp_path):
    golden, made = json.loads(FILE.read_text()), PARTS[part](tmp_path)
    exact, wanted = golden["environment"] == ENVIRONMENT, golden[part]
    assert sorted(made) == sorted(wanted)
    assert [name for name in made if not same(made[name], wanted[name], exact)] == []


def write():
    torch.set_num_threads(1)
    said = {"environment": ENVIRONMENT}
    for part, make in PARTS.items():
        with tempfile.TemporaryDirectory() as folder:
            said[part] = make(Path(folder))
    # One entry a line.
    FILE.write_text(re.sub(r"\n {3,}|\n  (?=})", " ", json.dumps(said, indent=1)) + "\n")


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write()
