import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from bvdm_data.judge.arms import Data as FormerData
from bvdm_data.judge.evaluate import evaluate as former_evaluate

from bvdm_data import weights
from bvdm_data.clip import CameraScale
from bvdm_data.datasets import ctc
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.datasets.tracks import cut_tracks
from bvdm_data.evaluation import arms, cell_cycle_gan, linking, transfer
from bvdm_data.evaluation.arms import Data, make_arm, make_pasted_clips, make_real_clips
from bvdm_data.evaluation.evaluate import (
    STUDIES,
    Budget,
    Evaluation,
    Questions,
    evaluate,
    make_full_clip,
)
from bvdm_data.evaluation.linker import LINKER_TRAINING, LinkerSettings
from bvdm_data.evaluation.seg_tra import read_reference
from bvdm_data.evaluation.segmenter import Samples, SegmenterSettings, train_segmenter
from bvdm_data.fitting.training import TrainingSettings
from bvdm_data.synth.textures import FastSettings

SEGMENTER = SegmenterSettings(steps=2, batch=1)
LINKER = LinkerSettings(
    width=16, heads=2, layers=1, window=4, training=replace(LINKER_TRAINING, steps=2, batch=2)
)
BUDGET = Budget(
    seeds=2, clips=12, segmenter=SEGMENTER, crops=2, tiles=6, linker=LINKER, linker_seeds=1
)


@pytest.fixture
def data(two_videos, tiny_model, tmp_path):
    options = {"method": "procedural", "frames": 4, "size": (96, 96), "border": 4}
    options |= {"folder": tmp_path / "work", "progress": False}
    return Data(root=two_videos, model=tiny_model, **options)


@pytest.fixture
def read(monkeypatch):
    """Return a list that every image that is read adds its path to."""
    paths, read_image = [], ctc.read_image
    monkeypatch.setattr(ctc, "read_image", lambda p: paths.append(str(p)) or read_image(p))
    return paths


def test_no_arm_reads_the_test_video(data, read, tmp_path, monkeypatch):
    monkeypatch.setattr(cell_cycle_gan, "TRAINING", TrainingSettings(steps=1, batch=2))
    # One arm is meant to, and nothing is tested on the frames that it reads.
    for name in set(arms.ARMS) - {"paper", "synthetic-calibrated"}:
        arm, path = make_arm(name, replace(data, method="fast"), 2), tmp_path / f"{name}.pt"
        options = {"identity": arm.identity, "progress": False}
        train_segmenter(arm.clips, SEGMENTER, checkpoint=path, **options)
    names = {path.removeprefix(f"{data.root}/")[:2] for path in read if str(data.root) in path}
    assert names == {"01"}


def test_arms_read_frames_before_stop(data, read):
    for name in ("real", "copy-paste"):
        arm = make_arm(name, replace(data, stop=5))
        for index in range(8):
            arm.clips.clip(index)
    numbers = {int(path[-7:-4]) for path in read if "/01/" in path}
    assert numbers
    assert numbers <= set(range(5))


def test_arms_have_distinct_identities(data):
    made = {name: make_arm(name, data, 2) for name in arms.ARMS[:6]}
    # Here the evaluated method is the procedural one.
    assert made["synthetic"].identity == made["procedural"].identity
    changes = {"real": {"stop": 6}, "copy-paste": {"stop": 6}, "procedural": {"seed": 1}}
    streams = ("synthetic-stream", "synthetic-films", "real+synthetic")
    changes |= {key: {"variation": 0.5} for key in ("synthetic", *streams)}
    made["synthetic-films"] = make_arm("synthetic-films", data)
    for name, changed in changes.items():
        made[f"changed {name}"] = make_arm(name, replace(data, **changed), 2)
    assert len({arm.identity for arm in made.values()}) == len(made) - 1


def test_stream_gives_each_seed_new_clips(data):
    arm = make_arm("synthetic-stream", data)
    assert isinstance(arm.clips, SyntheticHeLaVideos)
    first, second = (Samples(arm.clips, seed, 4) for seed in (0, 1))
    greys = [sample["grey"] for samples in (first, second) for sample in samples]
    assert len({grey.numpy().tobytes() for grey in greys}) == 8
    assert len(arm.clips.clip(0)["video"]) == 2


def test_films_are_windows_of_exports(data):
    films = make_arm("synthetic-films", data).clips
    assert list(films.sources) == ["01", "02"]
    assert {len(one.source) for one in films.sources.values()} == {12}
    assert {one.source.shape for one in films.sources.values()} == {(128, 160)}
    clips = [films.clip(index) for index in range(12)]
    assert {int(clip["member"]) for clip in clips} == {0, 1}
    assert clips[0]["video"].shape == (4, 1, 96, 96)
    assert make_arm("synthetic-films", data).identity == make_arm("synthetic-films", data).identity


def test_calibration_frames_are_not_tested(data, monkeypatch):
    given = []
    measured = lambda frames, masks, clips: given.extend(masks) or 0.975  # noqa: E731
    monkeypatch.setattr(arms, "calibrate_outline", measured)
    data = replace(data, calibrated=3, test_stop=8, method="fast")
    arm, run = make_arm("synthetic-calibrated", data), Evaluation(data, Questions(), print)
    assert arm.clips.outline == (0.975, 0.0)
    assert len(run.reference.video) == 5
    whole = Evaluation(replace(data, calibrated=0), Questions(), print).reference
    np.testing.assert_array_equal(run.reference.video, whole.video[3:])
    inner = np.s_[:, 4:-4, 4:-4]
    np.testing.assert_array_equal(np.stack(given)[inner] > 0, whole.masks[:3][inner] > 0)
    with pytest.raises(ValueError, match=r"calibrated must be at least 1 .* got 0; give"):
        make_arm("synthetic-calibrated", replace(data, calibrated=0))


def test_settings_refuse_unknown_names(data):
    wrong = {
        r"linking_arms must be out of .*; got 'copy-paste'": {"linking_arms": ["copy-paste"]},
        "arms must name each once, got real, real": {"arms": ["real", "real"]},
    }
    wrong |= {f"benchmarks.{module}": {"parts": [name]} for name, module in STUDIES.items()}
    for message, fields in wrong.items():
        with pytest.raises(ValueError, match=message):
            Questions(**fields)
    with pytest.raises(ValueError, match=r"size must be a square .* got \(96, 104\)"):
        replace(data, size=(96, 104))
    with pytest.raises(ValueError, match="calibrated must be 0 or more frames, got -1"):
        replace(data, calibrated=-1)
    with pytest.raises(ValueError, match="test must be another video than train, got '01'"):
        replace(data, test="01")


def test_evaluation_is_refused_early(data, monkeypatch, tmp_path):
    place = shutil.copytree(data.root, tmp_path / "Fluo-N2DL-HeLa")
    seen = replace(data, root=place, model="hela", train="02", test="01")
    with pytest.raises(ValueError, match="'hela' was fitted to sequence '01'"):
        evaluate(seen, Questions(parts=["realism"], budget=BUDGET))
    for also, words in (("01", "other --test or --also"), ("02", "also must be another video")):
        with pytest.raises(ValueError, match=words):
            evaluate(replace(seen, test="03", also=[(place, also)]), Questions(budget=BUDGET))
    for parts, also in ((["training"], ["03"]), (["transfer"], ["03", "03"])):
        twice = replace(data, also=[(place, name) for name in also])
        with pytest.raises(ValueError, match=r"also must name each .* give --part transfer"):
            evaluate(twice, Questions(parts=parts, budget=BUDGET))
    monkeypatch.setitem(sys.modules, "laptrack", None)
    with pytest.raises(ModuleNotFoundError, match=r"'laptrack'.*'bvdm-data\[evaluate\]'"):
        evaluate(data, Questions(parts=["training"], budget=BUDGET))
    assert not data.folder.exists()


def test_defaults_and_former_names(data):
    videos = arms.make_synthetic_dataset(Data(root=data.root, model=data.model, folder=data.folder))
    assert (videos.method, videos.variation) == (FastSettings(), 1)
    assert (FormerData, former_evaluate) == (Data, evaluate)
    count = -(-12 * 120 * 152 // (4 * 96 * 96))
    assert arms.count_real_clips(data) == arms.count_real_clips(replace(data, stop=5)) == count


def settle(**options):
    return arms.fill_in_data(Data(**options))


def test_all_have_one_grey_scale(tiny_video, tiny_generator, data, tmp_path):
    counts, masks, tracks = tiny_video
    dim = 32768 + (counts - 32768) // 8
    write_sequence(tmp_path, "01", dim, masks, tracks)
    write_sequence(tmp_path, "02", counts, masks, tracks)
    write_sequence(tmp_path, "03", dim - 32768, masks, tracks)
    options = {"root": tmp_path, "model": data.model, "folder": tmp_path / "work", "border": 4}
    made = settle(**options)
    assert made.scale == CameraScale(32768, 36863)
    assert make_real_clips(made).scale == make_pasted_clips(made).scale == made.scale
    run = Evaluation(made, Questions(), print)
    grey = run.train_clip["video"][:, 0].numpy() * 4095
    np.testing.assert_allclose(grey, dim[:, 4:-4, 4:-4].astype(float) - 32768, atol=0.01)
    assert run.test_clip["video"].mean() == pytest.approx(8 * grey.mean() / 4095, rel=0.01)
    # Signed counts that are stored as they are have no offset.
    shown = {"train": "03", "test": "03b"}
    shutil.copytree(tmp_path / "03", tmp_path / "03b")
    for name in ("01_GT", "03_GT"):
        shutil.copytree(tmp_path / name, tmp_path / f"{name[:2]}b_GT")
    assert settle(**options | shown).scale == CameraScale(0, 4095)
    with pytest.raises(ValueError, match=r"one grey scale .*01 .*33.* and .*03 "):
        settle(**options | {"test": "03"})
    path, camera = tmp_path / "other.safetensors", replace(tiny_generator.camera, full=33791)
    weights.save(replace(tiny_generator, camera=camera), path)
    own = CameraScale(32768, 33791)
    both = r"from 32768 to 36863 in videos '01' and '02' and from 32768 to 33791 .*--full 33791, "
    for given in ({}, {"scale": made.scale}):
        with pytest.raises(ValueError, match=both):
            settle(**options | {"model": path} | given)
    assert settle(**options | {"model": path, "scale": own}).scale == own


def test_clips_fit_into_small_frames(tiny_generator, two_videos, data, tmp_path):
    options = {"root": two_videos, "folder": tmp_path / "work"}
    made = settle(model=data.model, **options)
    assert (made.border, made.size, made.frames) == (25, (72, 72), 8)
    assert settle(model=data.model, **options, stop=5, test_stop=3).frames == 3
    # The border is that of the fit.
    path, card = tmp_path / "own.safetensors", {"settings": {"border": 4}}
    weights.save(replace(tiny_generator, card=card), path)
    made = settle(model=path, **options)
    assert (made.border, made.size) == (4, (120, 120))
    assert make_real_clips(made).clip(0)["video"].shape == (8, 1, 120, 120)
    assert settle(model=path, border=0, **options).size == (128, 128)
    for changes in ({"border": 62}, {"size": (128, 128)}):
        with pytest.raises(
            ValueError, match=r"\[\(128, 160\), \(128, 160\)\]; give a smaller border"
        ):
            settle(model=path, **options | changes)


def test_replaced_model_ends_the_evaluation(data, tiny_generator, monkeypatch, tmp_path):
    path = shutil.copy(data.model, tmp_path / "model.safetensors")

    def replace_model(run):
        camera = replace(tiny_generator.camera, noise=0.01)
        weights.save(replace(tiny_generator, camera=camera), path)
        return {}

    monkeypatch.setattr("bvdm_data.evaluation.evaluate.evaluate_linking", replace_model)
    with pytest.raises(ValueError, match=r"model\.safetensors was replaced: its SHA-256 is"):
        evaluate(replace(data, model=path), Questions(parts=("linking",), budget=BUDGET))


def test_full_clip_has_stages_where_visible(data):
    clip = make_full_clip(read_reference(data.root, "01", border=data.border))
    assert clip["video"].shape == (12, 1, 120, 152)
    ids, masks = clip["tracks"][:, 0].numpy(), clip["masks"].numpy()
    assert ids.tolist() == list(range(1, len(ids) + 1))
    present = np.stack([(masks == name).any((1, 2)) for name in ids])
    assert (clip["stages"].numpy()[~present] == -1).all()
    assert (clip["stages"].numpy() >= 0).any()


def test_evaluation_continues_and_reports(data, tiny_video, monkeypatch, tmp_path):
    monkeypatch.setattr(transfer, "CHANGES", {"haze and debris": transfer.add_haze})
    monkeypatch.setattr(transfer, "ZOOMS", (1.33,))
    monkeypatch.setattr(linking, "REACHES", (30.0,))
    monkeypatch.setattr(linking, "SPLITS", (35.0,))
    parts, real = ("training", "transfer", "linking"), ("real",)
    budget, linked = replace(BUDGET, linked_arm="real"), ("real", "real+synthetic")
    questions = Questions(parts=parts, arms=real, linking_arms=linked, budget=budget)
    video, masks, tracks = tiny_video
    write_sequence(tmp_path, "03", video[:6], masks[:6], cut_tracks(tracks, 0, 6))
    data, lines = replace(data, test_stop=6, also=[(tmp_path, "03")]), []
    results = evaluate(data, questions, report=tmp_path / "report", say=lines.append)
    assert list(results) == ["about", *parts]
    assert [row["seeds"] for row in results["training"]["rows"]] == [2]
    assert results["training"]["ceiling"]["seg"] == 1
    tests = ["haze and debris", "rescaled 1.33", f"{tmp_path.name}:03"]
    assert list(results["transfer"]) == tests
    assert {part["rows"][0]["seeds"] for part in results["transfer"].values()} == {2}
    # Two networks are trained, and tested on all.
    assert len(list(data.folder.glob("trials/*.pt"))) == 2
    assert len(list(data.folder.glob("trials/*.json"))) == 2 * (1 + len(results["transfer"]))
    rows = results["linking"]["rows"]
    names = ["LapTrack tuned on 01", "LapTrack tuned on synthetic"]
    names += [f"Trackastra on {name}" for name in linked]
    assert [row["arm"] for row in rows[::3]] == names
    kinds = ["reference", "planted", "segmented"]
    assert [row["detections"] for row in rows] == kinds * 4
    assert (rows[0]["fn"], rows[0]["fp"], rows[0]["ns"]) == (0, 0, 0)
    assert sum("seed 1  seg " in line for line in lines) == 1 + len(results["transfer"])
    page = (tmp_path / "report" / "index.html").read_text()
    assert "LapTrack tuned on synthetic" in page
    assert "haze and debris" in page
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["training"]["rows"] == results["training"]["rows"]

    kept = {path: path.stat().st_mtime_ns for path in data.folder.glob("*/*.json")}
    assert evaluate(data, questions)["training"]["trials"] == results["training"]["trials"]
    assert {path: path.stat().st_mtime_ns for path in data.folder.glob("*/*.json")} == kept
    with pytest.raises(ValueError, match=r"looks at 4; stills cannot teach links"):
        evaluate(replace(data, frames=3, also=()), replace(questions, parts=["linking"]))


@pytest.mark.heavy
def test_looks_are_measured(data, read, monkeypatch, tmp_path):
    monkeypatch.setattr("bvdm_data.evaluation.evaluate.PASTED", 20)
    questions = Questions(parts=("distance", "realism"), budget=BUDGET)
    # A crop of 96 x 96 fits in.
    results = evaluate(replace(data, size=(120, 120)), questions, report=tmp_path / "report")
    names = [row["name"] for row in results["distance"]["crops"]]
    assert names[:5] == ["floor", "real 02", "synthetic", "copy-paste", "procedural"]
    assert names == [row["name"] for row in results["distance"]["tiles"]]
    assert results["realism"]["synthetic_films"] == 3
    assert list(results["realism"]["edges"]) == ["synthetic", "01", "02"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "index.html", "report.json", "scenes.png"
    }  # fmt: skip
    # Beyond the frames that decide the grey scale, the test video is read once.
    assert len([path for path in read if path.endswith("/02/t003.tif")]) == 1
