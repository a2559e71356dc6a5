import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks import study_ablation, study_pool, study_scarcity
from benchmarks.studies import make_parser, measure_variants, run_study
from bvdm_data.evaluation.arms import Data
from bvdm_data.evaluation.evaluate import Budget, Evaluation, Questions
from bvdm_data.evaluation.segmenter import SegmenterSettings
from bvdm_data.fitting.video import VideoTooShortError
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.weights import load


@pytest.fixture
def run(two_videos, tiny_model, tmp_path):
    options = {"frames": 4, "size": (96, 96), "border": 4, "progress": False}
    data = Data(root=two_videos, model=tiny_model, folder=tmp_path / "work", **options)
    budget = Budget(seeds=1, clips=12, segmenter=SegmenterSettings(steps=2, batch=1))
    return Evaluation(data, Questions(budget=budget), lambda line: None)


def test_scarcity_trains_all_arms(run, monkeypatch):
    stops = []
    monkeypatch.setattr(study_scarcity, "fit_model", lambda d, _: stops.append(d.stop) or d.model)
    (level,) = study_scarcity.measure(run, [3], 2).values()
    assert [row["arm"] for row in level["rows"]] == list(study_scarcity.ARMS)
    assert (stops, level["taken_over"]) == ([3], [])


def test_few_frames_take_lives_over(run, monkeypatch):
    fits, short = [], [VideoTooShortError("two divisions")]

    def fit(root, path, *, settings, start_from=None, **options):
        fits.append((settings.stop, settings.painter.steps, start_from))
        if short:
            raise short.pop()
        path.write_bytes(b"model")

    monkeypatch.setattr(study_scarcity, "fit", fit)
    data = replace(run.data, stop=4)
    path = study_scarcity.fit_model(data, 7)
    assert fits == [(4, 7, None), (4, 7, path.with_stem("lives"))]
    known, start = load(data.model), load(path.with_stem("lives"))
    assert repr(start.lives) == repr(known.lives)
    weight = next(iter(known.painter.state_dict()))
    assert not torch.equal(start.painter.state_dict()[weight], known.painter.state_dict()[weight])
    # A model that is there is not fitted again.
    assert study_scarcity.fit_model(data, 7) == path
    assert len(fits) == 2


def test_pool_compares_streams(run):
    pools = {"fresh": None, "pool": PoolSettings(pairs=2, renew=0)}
    results = study_pool.measure(run, pools, seconds=0)
    assert [row["arm"] for part in results.values() for row in part["rows"]] == ["fresh", "pool"]
    assert [part["pool"] for part in results.values()] == [None, {"pairs": 2, "renew": 0}]
    assert all(part["seconds_per_clip"] > 0 for part in results.values())


def test_variants_are_trained_and_measured(run, monkeypatch):
    monkeypatch.setattr("benchmarks.studies.CROPS", 2)
    large = replace(run.data, size=(120, 120))  # so that a crop of 96 x 96 fits in
    variants = study_ablation.list_variants(large)
    assert len({repr(data) for data in variants.values()}) == len(variants) == 8 + 9
    assert variants["variation 1 without haze"].variation == {"haze": 0}
    chosen = {"procedural": variants["procedural"]}
    (part,) = measure_variants(run, chosen).values()
    assert [row["arm"] for row in part["rows"]] == ["procedural"]
    assert (part["crops"], len(part["correlation"])) == (2, 2)
    assert math.isfinite(part["kid"])
    assert 0 < part["agreement"] <= 1


def test_study_adds_to_the_report(run, tiny_model, tmp_path, capsys):
    report = tmp_path / "report.json"
    report.write_text('{"training": {"rows": []}}')
    options = ["--model", str(tiny_model), "--report", str(report)]
    given = make_parser("", seeds=2).parse_args([str(run.data.root), *options])
    assert given.seeds == 2
    row = {"arm": "x", "mean": dict.fromkeys(("seg", "det", "tra"), 0.9)}
    row["spread"] = dict.fromkeys(row["mean"])
    part = {"fresh": {"rows": [row], "seconds_per_clip": 0.5}}
    run_study("reuse", lambda run: part, given)
    assert "| fresh | .900 | .900 | .900 | 0.500 |" in capsys.readouterr().out
    assert list(json.loads(report.read_text())) == ["training", "reuse"]
