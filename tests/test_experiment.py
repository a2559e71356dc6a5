import json
import math
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from bvdm_data.evaluation import experiment, segmenter
from bvdm_data.evaluation.arms import Arm
from bvdm_data.evaluation.clip_cache import replace_nan
from bvdm_data.evaluation.experiment import (
    FIGURES,
    Trial,
    compare_arms,
    run_trials,
    segment,
    train_and_test,
)
from bvdm_data.evaluation.seg_tra import read_reference
from bvdm_data.evaluation.segmenter import Segmenter, SegmenterSettings

SETTINGS = SegmenterSettings(steps=3, batch=1)


class Windows:
    """Clips of one frame cut from the reference, by number."""

    def __init__(self, reference, gain=1.0):
        self.video, self.masks = reference.video * gain, reference.masks

    def clip(self, index):
        t = (slice(index % len(self.video), index % len(self.video) + 1), slice(64), slice(64))
        video, masks = torch.from_numpy(self.video[t]), torch.from_numpy(self.masks[t])
        return {"video": video[:, None], "masks": masks}


@pytest.fixture(scope="module")
def reference(tiny_ctc):
    return read_reference(tiny_ctc, "01", stop=4, border=5)


def trial(arm, seed, **figures):
    return Trial(arm=arm, seed=seed, seconds=1.0, **dict.fromkeys(FIGURES, 0.5) | figures)


def test_trial_is_made_once(reference, tmp_path, monkeypatch):
    trained = Mock(wraps=segmenter.train_segmenter)
    monkeypatch.setattr(segmenter, "train_segmenter", trained)

    def run(arm, settings=SETTINGS, seed=0, reference=reference):
        tests = {"02": reference}
        return train_and_test(arm, seed, tests, settings, tmp_path, progress=False)["02"]

    plain = Arm("real", Windows(reference), "r")
    first, again = run(plain), run(replace(plain, name="renamed"))
    assert (first.arm, first.seed, trained.call_count) == ("real", 0, 1)
    assert replace_nan(vars(again)) == replace_nan(vars(first)) | {"arm": "renamed"}
    (kept,) = tmp_path.glob("*.json")
    assert set(FIGURES) <= set(json.loads(kept.read_text(), parse_constant=pytest.fail))
    # Each of these is another experiment.
    for changes in ({"identity": "other clips"}, {"clips": Windows(reference, 0.9)}):
        run(replace(plain, **changes))
    run(plain, seed=1)
    run(plain, settings=replace(SETTINGS, rate=1e-4))
    assert trained.call_count == 5
    # A further test takes up the network that is there.
    run(plain, reference=replace(reference, video=reference.video * 0.9))
    assert trained.call_count == 6
    assert len(list(tmp_path.glob("*.pt"))) == 5


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.heavy)])
def test_trials_run_seed_by_seed(reference, tmp_path, workers):
    arms = [Arm(name, Windows(reference), name) for name in ("real", "other")]
    tests, lines = {"02": reference, "dark": replace(reference, video=reference.video / 2)}, []
    options = {"workers": workers, "progress": False, "log": lines.append}
    trials = run_trials(arms, 2, tests, SETTINGS, tmp_path, **options)
    order = [("real", 0), ("other", 0), ("real", 1), ("other", 1)]
    for made in trials.values():
        assert [(trial.arm, trial.seed) for trial in made] == order
    assert list(trials) == ["02", "dark"]
    assert "other, dark  seed 1  seg " in lines[-1]
    (again,) = train_and_test(arms[1], 1, {"02": reference}, SETTINGS, tmp_path).values()
    assert replace_nan(vars(again)) == replace_nan(vars(trials["02"][-1]))


def test_damaged_figures_name_the_entry(reference, tmp_path):
    def run():
        arm, tests = Arm("real", Windows(reference), "r"), {"02": reference}
        return train_and_test(arm, 0, tests, SETTINGS, tmp_path, progress=False)["02"]

    whole = replace_nan(vars(run()))
    (kept,) = tmp_path.glob("*.json")
    text = kept.read_text()
    for damaged, why in (
        (text[:30], "line 2"),
        ("[1]", "no object"),
        ("[" * 100_000, "recursion"),
        (text.replace("0.", "x."), "line"),
        (json.dumps({name: whole[name] for name in FIGURES}), "'seconds' must be .* got ''"),
        (text.replace('"seg"', '"more"'), "'seg' must be a number from 0 to 1 or null"),
        (text.replace("{", '{"more": 1,'), "'more' is no entry"),
        (text.replace("{", '{"det": 7,').replace(',\n  "det"', ',\n  "seg"'), "'det'.*got 7"),
        (text.replace("{", '{"seg": true,').replace('"seg": 0', '"det": 0'), "got True"),
        (text.replace("{", '{"seg": NaN,'), "NaN is no number in JSON"),
    ):
        kept.write_text(damaged)
        words = rf"{kept.name} is damaged \(.*{why}.*\); remove this file"
        with pytest.raises(ValueError, match=words) as caught:
            run()
        assert len(str(caught.value)) < 500 + len(str(tmp_path))
    kept.unlink()
    kept.mkdir()
    with pytest.raises(ValueError, match=r"damaged \(no regular file"):
        run()
    kept.rmdir()
    assert replace_nan(vars(run())) | {"seconds": 0} == whole | {"seconds": 0}


def test_segments_in_the_border_are_cleared(reference, monkeypatch):
    everywhere = np.zeros(reference.video.shape[1:], np.int32)
    everywhere[:5, :20] = 1  # wholly in the band
    everywhere[40:60, 40:60] = 2
    monkeypatch.setattr(experiment.segmenter, "separate_instances", lambda output: everywhere)
    labels = segment(Segmenter().eval(), reference.video[:2], border=5)
    assert labels.shape == (2, *everywhere.shape)
    assert [len(np.unique(frame)) for frame in labels] == [2, 2]
    assert not labels[:, :5, :20].any()


def test_gains_are_paired_by_seed():
    steps = (0.01, -0.01, 0.003)
    trials = [
        *(trial("real", seed, seg=0.9 + 0.02 * seed) for seed in range(3)),
        *(trial("better", seed, seg=0.91 + 0.02 * seed + 0.001 * seed) for seed in range(3)),
        *(trial("same", seed, seg=0.9 + 0.02 * seed + step) for seed, step in enumerate(steps)),
    ]
    real, better, same = compare_arms(trials)
    assert (real["arm"], real["seeds"], better["arm"], better["seeds"]) == ("real", 3, "better", 3)
    assert real["gain"]["seg"] == real["error"]["seg"] == 0
    # t(.975, 1) = 12.7 and .001 of spread: two seeds are enough for a gain of .011.
    keys = ("mean", "spread", "gain", "error", "seeds_needed")
    expected = (0.931, 0.021, 0.011, 0.001 / math.sqrt(3), 2)
    assert [better[key]["seg"] for key in keys] == pytest.approx(expected)
    needed = (1.97 * np.std(steps, ddof=1) / np.mean(steps)) ** 2
    assert same["seeds_needed"]["seg"] == pytest.approx(needed, rel=0.02)
    (row,) = compare_arms([trial("alone", 0)])
    assert row["mean"]["seg"] == 0.5
    assert all(math.isnan(row[key]["seg"]) for key in keys[1:])
