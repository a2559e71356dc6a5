import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from bvdm_data.evaluation import experiment
from bvdm_data.evaluation.experiment import (
    Arm,
    Trial,
    compare_arms,
    replace_nan,
    score_oracle,
    segment,
    train_and_test,
)
from bvdm_data.evaluation.seg_tra import read_reference
from bvdm_data.evaluation.segmenter import Segmenter, SegmenterSettings

SETTINGS = SegmenterSettings(steps=3, batch=1)


class Windows:
    """Clips of one frame cut from the reference, by number."""

    frames = 1

    def __init__(self, reference, gain=1.0):
        self.reference = reference
        self.gain = gain
        self.asked = 0

    def clip(self, index):
        self.asked += 1
        frame = index % len(self.reference.video)
        return {
            "video": torch.from_numpy(self.reference.video[frame, :64, :64] * self.gain)[
                None, None
            ],
            "masks": torch.from_numpy(self.reference.masks[frame, :64, :64])[None],
        }


@pytest.fixture(scope="module")
def reference(tiny_ctc):
    return read_reference(tiny_ctc, "01", stop=4, border=5)


def trial(arm, seed, **figures):
    every = dict.fromkeys(experiment.FIGURES, 0.5) | figures
    return Trial(arm=arm, seed=seed, seconds=1.0, **every)


def test_every_arm_and_seed_is_tried_once(reference, tmp_path):
    arms = [Arm("real", Windows(reference), "r"), Arm("other", Windows(reference, 0.5), "o")]
    said = []
    trials = train_and_test(
        arms,
        reference,
        folder=tmp_path,
        seeds=(0, 1),
        settings=SETTINGS,
        progress=False,
        done=said.append,
    )
    assert said == trials
    assert [(one.seed, one.arm) for one in trials] == [
        (0, "real"),
        (0, "other"),
        (1, "real"),
        (1, "other"),
    ]


def test_what_was_tried_is_not_tried_again(reference, tmp_path, monkeypatch):
    def tried(arm, settings=SETTINGS, seed=0, seen=reference):
        return train_and_test(
            [arm], seen, folder=tmp_path, seeds=(seed,), settings=settings, progress=False
        )[0]

    first = tried(Arm("real", Windows(reference), "r"))
    trained = []
    train = experiment.train_segmenter
    monkeypatch.setattr(
        experiment, "train_segmenter", lambda *a, **k: trained.append(1) or train(*a, **k)
    )
    again = tried(Arm("renamed", Windows(reference), "r"))
    assert not trained
    assert replace_nan(asdict(again)) == replace_nan(asdict(replace(first, arm="renamed")))
    # Each of these is another experiment.
    tried(Arm("real", Windows(reference), "other clips"))
    tried(Arm("real", Windows(reference, 0.9), "r"))
    tried(Arm("real", Windows(reference), "r", augmentation="strong"))
    tried(Arm("real", Windows(reference), "r"), seed=1)
    tried(Arm("real", Windows(reference), "r"), settings=replace(SETTINGS, rate=1e-4))
    tried(
        Arm("real", Windows(reference), "r"), seen=replace(reference, video=reference.video * 0.9)
    )
    assert len(trained) == 6


def test_kept_trials_are_plain_json(reference, tmp_path):
    train_and_test(
        [Arm("real", Windows(reference), "r")],
        reference,
        folder=tmp_path,
        seeds=(0,),
        settings=SETTINGS,
        progress=False,
    )
    (kept,) = tmp_path.glob("*.json")
    said = json.loads(kept.read_text(), parse_constant=pytest.fail)
    assert set(experiment.FIGURES) <= set(said)


def test_the_reference_masks_reach_the_ceiling(reference):
    best = score_oracle(reference)
    assert best.seg == best.det == best.valid == 1
    assert best.tra > 0.95


def test_predictions_in_the_border_band_are_cleared(reference, monkeypatch):
    everywhere = np.zeros(reference.video.shape[1:], np.int32)
    everywhere[:5, :20] = 1  # wholly in the band
    everywhere[40:60, 40:60] = 2
    monkeypatch.setattr(experiment, "instances", lambda prediction: everywhere)
    found = segment(Segmenter().eval(), reference.video[:2], border=5)
    assert found.shape == (2, *everywhere.shape)
    assert [len(np.unique(frame)) for frame in found] == [2, 2]
    assert not found[:, :5, :20].any()


def test_gains_are_paired_by_seed():
    trials = [
        *(trial("real", seed, seg=0.9 + 0.02 * seed) for seed in range(3)),
        *(trial("better", seed, seg=0.91 + 0.02 * seed + 0.001 * seed) for seed in range(3)),
    ]
    real, better = compare_arms(trials)
    assert (real.arm, real.seeds, better.arm, better.seeds) == ("real", 3, "better", 3)
    assert real.gain["seg"] == real.error["seg"] == 0
    assert better.mean["seg"] == pytest.approx(0.931)
    assert better.spread["seg"] == pytest.approx(0.021)
    assert better.gain["seg"] == pytest.approx(0.011)
    assert better.error["seg"] == pytest.approx(0.001 / math.sqrt(3))
    # t(.975, 1) = 12.7 and .001 of spread: two seeds are enough for a gain of .011.
    assert better.seeds_needed["seg"] == 2


def test_a_small_difference_needs_many_seeds():
    steps = [0.01, -0.01, 0.003]
    trials = [trial("real", seed) for seed in range(3)]
    trials += [trial("same", seed, seg=0.5 + step) for seed, step in enumerate(steps)]
    row = compare_arms(trials)[1]
    deviation, gain = np.std(steps, ddof=1), np.mean(steps)
    assert row.seeds_needed["seg"] == pytest.approx((1.97 * deviation / gain) ** 2, rel=0.02)


def test_without_a_baseline_or_with_one_seed_nothing_is_claimed():
    (row,) = compare_arms([trial("alone", 0)])
    assert row.mean["seg"] == 0.5
    assert math.isnan(row.gain["seg"])
    assert math.isnan(row.spread["seg"])
    assert math.isnan(row.error["seg"])
    assert math.isnan(row.seeds_needed["seg"])


def test_nan_becomes_null():
    assert replace_nan({"a": [1.0, math.nan], "b": (math.nan,)}) == {"a": [1.0, None], "b": [None]}
