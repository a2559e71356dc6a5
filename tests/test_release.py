"""What is released: the wheel is built, looked into, and used where nothing else is."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import bvdm_data

ROOT = Path(__file__).parents[1]
MOST_MEGABYTES = 20

STREAM = """
import json, pathlib
from torch.utils.data import DataLoader
import bvdm_data

videos = bvdm_data.SyntheticHeLaVideos(frames=3, size=(96, 96))
batch = next(iter(DataLoader(videos, batch_size=2, num_workers=1)))
for number in range(2):
    bvdm_data.check_clip(videos.clip(number))
print(json.dumps({
    "place": str(pathlib.Path(bvdm_data.__file__).parent),
    "version": bvdm_data.__version__,
    "video": list(batch["video"].shape),
}))
"""


def test_every_file_tells_the_same_version():
    version = bvdm_data.__version__
    assert importlib.metadata.version("bvdm-data") == version
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version}\n" in citation
    released = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert released[0] == version


def test_project_urls_are_known_ones():
    project = (ROOT / "pyproject.toml").read_text()
    urls = re.findall(r'"(https?://.+?)"', project)
    told = (ROOT / "NOTICE.md").read_text()
    assert len(urls) >= 2
    assert [url for url in urls if f"({url})" not in told] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both archives from the files of the project, the wheel out of the source archive."""
    place = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", place, ROOT)
    (wheel,), (source,) = place.glob("*.whl"), place.glob("*.tar.gz")
    return wheel, source


@pytest.mark.release
def test_wheel_holds_code_and_weights_only(built):
    wheel, _ = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "bvdm_data/models/hela.safetensors" in names
    assert "bvdm_data/py.typed" in names
    kinds = {
        ".py", ".typed", ".safetensors", ".html", ".j2", ".css", ".js", ".yaml",
        ".c", ".so", ".dll",
    }  # fmt: skip
    packaged = [name for name in names if ".dist-info/" not in name]
    assert [name for name in packaged if not name.startswith("bvdm_data/")] == []
    assert [name for name in packaged if Path(name).suffix not in kinds | {""}] == []
    compiled = [name for name in names if Path(name).suffix in {".so", ".dll"}]
    assert wheel.name.endswith("-py3-none-any.whl") == (not compiled)
    assert {"LICENSE", "NOTICE.md"} <= {Path(name).name for name in names}
    assert wheel.stat().st_size < MOST_MEGABYTES * 1e6


@pytest.mark.release
def test_wheel_needs_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    assert [path.name.partition("-py3-")[2] for path in tmp_path.iterdir()] == ["none-any.whl"]


@pytest.mark.release
def test_source_archive_holds_tests_without_data(built):
    _, source = built
    with tarfile.open(source) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    wanted = {
        "pyproject.toml", "CHANGELOG.md", "CITATION.cff", "docs/method.md", "benchmarks/speed.py",
        "hatch_build.py", "examples/augment_on_device.py", "tests/test_release.py",
    }  # fmt: skip
    assert wanted <= set(names)
    assert [name for name in names if name.endswith((".tif", ".tiff", ".zarr"))] == []


@pytest.mark.release
def test_archives_pass_the_index_check(built):
    _run(sys.executable, "-m", "twine", "check", "--strict", *built)


@pytest.fixture
def alone(built, tmp_path):
    """An environment with the wheel and what it asks for; of gigabytes, so it does not stay."""
    wheel, _ = built
    place = tmp_path / "env"
    try:
        _run(sys.executable, "-m", "venv", place)
        _run(place / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir", wheel)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.release
def test_wheel_streams_in_empty_environment(alone, tmp_path):
    python = alone / "bin" / "python"
    told = json.loads(_run(python, "-c", STREAM, cwd=tmp_path).splitlines()[-1])
    assert Path(told["place"]).is_relative_to(alone)
    assert told["version"] == bvdm_data.__version__
    assert told["video"] == [2, 3, 1, 96, 96]
    assert "Fluo-N2DL-HeLa" in _run(python.with_name("bvdm-data"), "info", cwd=tmp_path)


def _run(*command, cwd=ROOT):
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=alone, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
