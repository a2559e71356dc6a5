import json

import pytest
from PIL import Image

from benchmarks.robustness import main, measure


def test_truth_is_linked_without_fault(tiny_model):
    linkers = {"truth": lambda clip, found: (clip["masks"].numpy(), rows_of(clip))}
    options = {"films": 1, "frames": 6, "size": 96, "model": tiny_model, "video": False}
    rows = measure(linkers, [1, 2], [5], [0.0, 0.4], **options)
    assert [(row["interval"], row["rate"]) for row in rows] == [(1, 0), (1, 0.4), (2, 0), (2, 0.4)]
    assert {row["lnk"] for row in rows} == {1}


def rows_of(clip):
    return clip["tracks"][clip["tracks"][:, 0] > 0].numpy()


def test_missed_nuclei_cost_links(tiny_model, tmp_path):
    small = ["--films", "1", "--frames", "6", "--size", "96", "--nuclei", "5", "--intervals", "1"]
    given = ["--model", str(tiny_model), "--output", str(tmp_path), "--rates", "0", "0.4"]
    right, wrong = main([*small, *given])
    assert right["lnk"] > wrong["lnk"] + 0.3
    kept = json.loads((tmp_path / "robustness.json").read_text())
    assert [row["lnk"] for row in kept] == pytest.approx([right["lnk"], wrong["lnk"]])
    with Image.open(tmp_path / "robustness.png") as image:
        assert image.size == (400, 600)
