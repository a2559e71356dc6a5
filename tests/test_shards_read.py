import json
import re
import runpy
import statistics
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.scaling_tables import TABLES, filled

ROOT = Path(__file__).parents[1]
# By webdataset, which leaves its files to the garbage collector.
left_open = pytest.mark.filterwarnings(
    "ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@left_open
def test_a_network_learns_from_shards_and_a_second_start_writes_none(tmp_path, capsys):
    pytest.importorskip("webdataset", reason="needs the extra shards")
    main = runpy.run_path(str(ROOT / "examples" / "train_from_shards.py"))["main"]
    small = ["--frames", "2", "--size", "64", "--clips", "12", "--batch-size", "2"]
    losses = main([*small, "--steps", "16", "--workers", "0", "--folder", str(tmp_path / "data")])
    assert statistics.median(losses[-6:]) < 0.7 * statistics.median(losses[:3])
    assert capsys.readouterr().out.startswith("wrote 2 shards\n")
    main([*small, "--steps", "1", "--workers", "0", "--folder", str(tmp_path / "data")])
    assert capsys.readouterr().out.startswith("wrote 0 shards\n")


@left_open
def test_the_snippet_of_the_consumers_page_reads_shards(tmp_path, monkeypatch):
    pytest.importorskip("webdataset", reason="needs the extra shards")
    page = (ROOT / "docs" / "consumers.md").read_text()
    section = page.partition("## Shards on disk")[2].partition("\n## ")[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "docs/consumers.md", "exec"), {})
    assert len(list((tmp_path / "shards").glob("shard-*.tar"))) == 2


def test_every_table_of_the_page_of_scaling_is_that_of_its_json():
    page = scaling.PAGE.read_text()
    assert filled(page, json.loads(scaling.RESULTS.read_text())) == page


def test_a_page_of_scaling_is_filled_between_its_marks_alone():
    results = json.loads(scaling.RESULTS.read_text())
    page = "".join(f"before\n<!-- table: {name} -->\nold\n<!-- end -->\n" for name in TABLES)
    new = filled(page, results)
    assert "old" not in new
    assert new.count("before\n<!-- table: ") == len(TABLES)
    assert filled(new, results) == new
    with pytest.raises(ValueError, match="marks of the table 'about' once"):
        filled("", results)


@left_open
def test_the_storing_of_clips_is_measured_in_both_formats(tmp_path, monkeypatch):
    pytest.importorskip("webdataset", reason="needs the extra shards")
    pytest.importorskip("zarr", minversion="3", reason="needs the extra shards")
    monkeypatch.setitem(scaling.KINDS, "tiny", {"size": 64, "nuclei": 1, "frames": 1})
    monkeypatch.setattr(scaling, "STORED", 2)
    found = scaling.measure("tiny", 0.0)
    assert list(found["stored"]) == [
        "webdataset", "webdataset, compressed", "zarr", "zarr, compressed"
    ]  # fmt: skip
    for one in found["stored"].values():
        assert min(one.values()) > 0
    assert found["stored"]["zarr, compressed"]["bytes"] < found["stored"]["zarr"]["bytes"]
    assert found["stored"]["webdataset"]["bytes"] > found["bytes"] == 2 * 64 * 64 * 4 + 512 * 16 + 9
