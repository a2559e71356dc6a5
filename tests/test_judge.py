import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from bvdm_data.datasets import ctc
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation import study_reuse as reuse
from bvdm_data.evaluation.appearance import load_full_video, make_full_videos
from bvdm_data.evaluation.arms import (
    ARMS,
    STREAMED_FRAMES,
    Data,
    count_real_clips,
    make_arms,
    make_streamed_dataset,
    make_synthetic_dataset,
)
from bvdm_data.evaluation.evaluate import PARTS, Questions, evaluate
from bvdm_data.evaluation.linker import LINKER_TRAINING, LinkerSettings
from bvdm_data.evaluation.seg_tra import read_reference
from bvdm_data.evaluation.segmenter import Samples, SegmenterSettings, train_segmenter
from bvdm_data.evaluation.study_steps import list_step_pairs
from bvdm_data.evaluation.training_value import Budget, evaluate_scarcity
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.synth.textures import FastSettings

LINKER = LinkerSettings(
    width=16, heads=2, layers=1, window=4, training=replace(LINKER_TRAINING, steps=2, batch=2)
)
BUDGET = Budget(
    seeds=2,
    clips=12,
    segmenter=SegmenterSettings(steps=2, batch=1),
    scarce_frames=(3,),
    crops=2,
    tiles=6,
    linker=LINKER,
)


@pytest.fixture(scope="module")
def root(tiny_video, tmp_path_factory):
    """Return a data set of two videos; the second one is the first one upside down."""
    place = tmp_path_factory.mktemp("two")
    video, masks, tracks = tiny_video
    write_sequence(place, "01", video, masks, tracks)
    write_sequence(place, "02", video[:, ::-1], masks[:, ::-1], tracks)
    return place


@pytest.fixture
def data(root, tiny_model, tmp_path):
    return Data(
        root=root,
        model=tiny_model,
        method="procedural",
        frames=4,
        size=(96, 96),
        border=4,
        folder=tmp_path / "work",
        progress=False,
    )


@pytest.fixture
def read(monkeypatch):
    """Return a list that every image that is read adds its path to."""
    paths, read_image = [], ctc.read_image

    def remember(path):
        paths.append(str(path))
        return read_image(path)

    monkeypatch.setattr(ctc, "read_image", remember)
    return paths


def test_no_frame_of_the_test_video_is_read_by_any_arm(data, read, tmp_path):
    fast = replace(data, method="fast")
    names = [name for name in ARMS if name != "paper"]
    for arm in make_arms(fast, names, 2):
        train_segmenter(
            arm.clips,
            SegmenterSettings(steps=2, batch=1),
            checkpoint=tmp_path / f"{arm.name}.safetensors",
            identity=arm.identity,
            augmentation=arm.augmentation,
            progress=False,
        )
    assert any("/01/" in path for path in read)
    assert not [path for path in read if "/02" in path]


def test_only_the_frames_in_use_are_read(data, read):
    for arm in make_arms(replace(data, stop=5), ["real", "copy-paste"], 1):
        for number in range(8):
            arm.clips.clip(number)
    numbers = {int(path[-7:-4]) for path in read if "/01/" in path}
    # The first, the middle and the last frame also tell the grey scale.
    assert numbers - {6, 11} <= set(range(5))


def test_arms_have_identities_of_their_own(data):
    arms = {arm.name: arm for arm in make_arms(data, list(ARMS)[:6], 2)}
    # Here the judged method is the procedural one.
    assert arms["synthetic"].identity == arms["procedural"].identity
    assert len({arm.identity for arm in arms.values()}) == len(arms) - 1
    fewer = make_arms(replace(data, stop=6), ["real", "copy-paste"], 2)
    assert fewer[0].identity != arms["real"].identity
    assert fewer[1].identity != arms["copy-paste"].identity
    (varied,) = make_arms(replace(data, variation=0.5), ["synthetic"], 2)
    assert varied.identity != arms["synthetic"].identity
    (fast,) = make_arms(replace(data, method="fast"), ["synthetic"], 2)
    assert fast.identity != arms["synthetic"].identity


def test_twice_the_clips_hold_the_first_ones(data):
    one, two = make_arms(data, ["synthetic", "synthetic-2x"], 2)
    assert (one.clips.count, two.clips.count) == (2, 4)
    assert one.clips.folder == two.clips.folder


def test_a_stream_shows_new_clips_to_every_seed(data):
    (arm,) = make_arms(data, ["synthetic-stream"], 2)
    assert isinstance(arm.clips, SyntheticHeLaVideos)
    first, second = (Samples(arm.clips, "plain", seed, 4) for seed in (0, 1))
    greys = [sample["grey"] for samples in (first, second) for sample in samples]
    assert len({grey.numpy().tobytes() for grey in greys}) == 8
    assert len(arm.clips.clip(0)["video"]) == STREAMED_FRAMES
    (varied,) = make_arms(replace(data, variation=0.5), ["synthetic-stream"], 2)
    assert varied.clips.variation == 0.5
    assert varied.identity != arm.identity


def test_unknown_names_are_refused(data):
    with pytest.raises(ValueError, match=r"arms must be out of real, .*; got 'gan'"):
        make_arms(data, ["gan"])
    with pytest.raises(ValueError, match=r"parts must be out of distance, .*; got 'colour'"):
        Questions(parts=["colour"])
    with pytest.raises(ValueError, match=r"arms must be out of real, .*; got 'gan'"):
        Questions(arms=["real", "gan"])
    with pytest.raises(ValueError, match=r"linking_arms must be out of real, .*; got 'gan'"):
        Questions(linking_arms=["gan"])


def test_an_arm_named_twice_is_refused():
    with pytest.raises(ValueError, match="arms must name each once, got real, real"):
        Questions(arms=["real", "real"])


def test_a_test_on_what_was_trained_on_is_refused(data, root, tmp_path):
    with pytest.raises(ValueError, match="test must be another video than train, got '01'"):
        replace(data, test="01")
    place = shutil.copytree(root, tmp_path / "Fluo-N2DL-HeLa")
    seen = replace(data, root=place, model="hela", train="02", test="01")
    with pytest.raises(ValueError, match="'hela' was fitted to sequence '01'"):
        evaluate(seen, Questions(parts=["realism"], budget=BUDGET))
    assert not data.folder.exists()


@pytest.mark.parametrize("name", ["seeds", "clips", "steps_clips", "crops"])
def test_budgets_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Budget(**{name: 0})


def test_the_default_method_is_the_fast_one(root, tiny_model, tmp_path):
    data = Data(root=root, model=tiny_model, folder=tmp_path)
    assert (make_synthetic_dataset(data).method, make_synthetic_dataset(data).variation) == (
        FastSettings(),
        1,
    )


def test_a_missing_package_is_named_before_anything_is_done(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "laptrack", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"'laptrack'.*pip install \"bvdm-data\[evaluate\]\""
    ):
        evaluate(data, Questions(parts=["training"], budget=BUDGET))
    assert not data.folder.exists()


def test_clips_that_cannot_be_turned_are_refused(data):
    with pytest.raises(ValueError, match=r"size must be a square .* got \(96, 104\)"):
        replace(data, size=(96, 104))


def test_as_many_clips_as_the_video_has_pixels(data):
    assert count_real_clips(data) == -(-12 * 120 * 152 // (4 * 96 * 96))
    assert count_real_clips(replace(data, stop=5)) == count_real_clips(data)


def test_a_real_film_is_whole_and_has_stages(data):
    film = load_full_video(data, "01")
    assert film["video"].shape == (12, 1, 120, 152)
    present = np.stack(
        [
            [(film["masks"][f] == row + 1).any() for f in range(12)]
            for row in range(len(film["tracks"]))
        ]
    )
    assert (film["stages"].numpy()[~present] == -1).all()
    assert (film["stages"].numpy() >= 0).any()


def test_a_synthetic_film_is_made_once(data):
    film = make_full_videos(data, 1, frames=5, size=(110, 130))
    assert film[0]["video"].shape == (5, 1, 110, 130)
    made = (film.folder / "clip_00000.safetensors").stat().st_mtime_ns
    again = make_full_videos(data, 1, frames=5, size=(110, 130))
    assert (again.folder / "clip_00000.safetensors").stat().st_mtime_ns == made


def test_the_whole_judge_runs_and_goes_on_where_it_was(data, tmp_path):
    questions = Questions(
        parts=("distance", "realism", "training", "linking"),
        arms=("real", "copy-paste", "synthetic", "real+synthetic"),
        budget=BUDGET,
    )
    said = []
    data = replace(data, size=(120, 120))  # so that a crop of 96 x 96 fits in
    results = evaluate(data, questions, report=tmp_path / "report", say=said.append)
    assert [part for part in PARTS if part in results] == list(questions.parts)
    rows = {row["arm"]: row for row in results["training"]["rows"]}
    assert list(rows) == list(questions.arms)
    assert all(row["seeds"] == 2 for row in rows.values())
    assert rows["real"]["gain"]["seg"] == 0
    assert {row["arm"] for row in results["linking"]["rows"]} == {"real", "synthetic"}
    assert results["training"]["ceiling"]["seg"] == 1
    names = [row["name"] for row in results["distance"]["crops"]]
    assert names[:3] == ["floor", "real 02", "synthetic"]
    assert "copy-paste" in names
    page = (tmp_path / "report" / "index.html").read_text()
    assert "copy-paste" in page
    kept = json.loads((tmp_path / "report" / "report.json").read_text())
    assert kept["training"]["rows"] == results["training"]["rows"]

    trials = sorted((data.folder / "trials").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in trials]
    again = evaluate(data, questions)
    assert [path.stat().st_mtime_ns for path in trials] == before
    assert again["training"]["trials"] == results["training"]["trials"]


def test_an_arm_that_cannot_be_made_says_why(data):
    reference = read_reference(data.root, "02", border=4)
    found = evaluate_scarcity(data, reference, replace(BUDGET, seeds=1), lambda line: None)
    (few,) = found.values()
    assert {row["arm"] for row in few["rows"]} == {"real", "copy-paste"}
    assert set(few["missing"]) == {"synthetic", "real+synthetic"}
    assert "at least the 4 frames of a clip, got 3" in few["missing"]["synthetic"]


def test_the_cost_of_reuse_is_judged_stream_by_stream(data, monkeypatch):
    pools = {"fresh": None, "pool": PoolSettings(pairs=2, renew=0)}
    monkeypatch.setattr(reuse, "POOLS", pools)
    monkeypatch.setattr(reuse, "_TIMED", 1)
    reference = read_reference(data.root, "02", border=4)
    found = reuse.evaluate_reuse(data, reference, replace(BUDGET, seeds=1), lambda line: None)
    assert list(found) == ["fresh", "pool"]
    assert [row["arm"] for one in found.values() for row in one["rows"]] == ["fresh", "pool"]
    assert [one["pool"] for one in found.values()] == [None, {"pairs": 2, "renew": 0}]
    assert all(one["seconds_per_clip"] > 0 for one in found.values())
    fast = replace(data, method="fast")
    assert make_streamed_dataset(fast, pools["pool"]).pool == pools["pool"]


def test_stills_cannot_teach_links(data):
    with pytest.raises(ValueError, match=r"linking_arms must be out of .*; got 'copy-paste'"):
        Questions(linking_arms=["copy-paste"])
    questions = Questions(parts=["linking"], linking_arms=["real"], budget=BUDGET)
    with pytest.raises(ValueError, match=r"looks at 4; stills cannot teach links"):
        evaluate(replace(data, frames=3), questions)


def test_steps_are_those_of_the_paper():
    assert list_step_pairs() == [
        (100, 10),
        (200, 10),
        (400, 10),
        (600, 10),
        (200, 0),
        (200, 30),
        (200, 50),
        (200, 200),
    ]
