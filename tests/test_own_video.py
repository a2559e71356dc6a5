"""Videos as people have them: masks without tracks, and what shows no nuclei."""

import shutil
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from bvdm_data import weights
from bvdm_data.datasets.ctc import read_sequence, write_sequence
from bvdm_data.evaluation import side_by_side
from bvdm_data.evaluation.arms import Data
from bvdm_data.evaluation.evaluate import check_unseen
from bvdm_data.evaluation.seg_tra import score
from bvdm_data.evaluation.side_by_side import write_fit_page
from bvdm_data.fitting import denoiser
from bvdm_data.fitting import fit as fitting
from bvdm_data.fitting.fit import FitSettings, _Steps, fit
from bvdm_data.fitting.motion import scale_motion
from bvdm_data.fitting.nuclei import check_nuclei
from bvdm_data.fitting.progress import Progress
from bvdm_data.fitting.settings import SECONDS
from bvdm_data.fitting.tracker import check_unlinked, link_sequence
from bvdm_data.fitting.training import TrainingLog, TrainingSettings
from tests.helpers.fitted import fitted_video, quick_memory, write_fitted

QUICK = TrainingSettings(steps=2, batch=2)
SHORT = FitSettings(painter=QUICK, distilled=QUICK, pairs=8, border=10)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        quick_memory(patch)
        patch.setattr(denoiser, "_CHECKED", 16)
        yield


@pytest.fixture
def bare(tmp_path):
    """Return the folder of the planted video without its table of tracks."""
    root = write_fitted(tmp_path / "bare")
    for path in (root / "01_GT" / "TRA").iterdir():
        path.unlink()
    for number, path in enumerate(sorted((root / "01_GT" / "SEG").iterdir())):
        labels = tifffile.imread(path)
        order = np.random.default_rng(number).permutation(labels.max()) + 1
        tifffile.imwrite(path, np.r_[0, order].astype(np.uint16)[labels])
    return root


def test_links_are_those_of_the_truth(bare, tmp_path):
    (_, masks, tracks), said, bar = fitted_video(), [], Progress({}, shown=False)
    bar.say = said.append
    source, folder = read_sequence(bare, "01"), tmp_path / "m.linked"
    linked = link_sequence(source, folder, bar)
    assert said[0].startswith(f"linked: {len(tracks)} tracks, 19 divisions, in {folder}; look")
    found = np.stack([linked.masks(number) for number in linked.numbers])
    scores = score(found, linked.tracks, masks, tracks)
    assert (scores.valid, scores.lnk, scores.bc) == (1, 1, 1)
    for other in (source.cut(0, 5), source.cut(1, 40)):
        with pytest.raises(ValueError, match="must hold the video that is linked, got another"):
            link_sequence(other, folder, bar)
    # What a person corrects there is what is read.
    table = folder / "01_GT/TRA/man_track.txt"
    np.savetxt(table, linked.tracks * [1, 1, 1, 0], fmt="%d")
    link_sequence(source, folder, bar)
    assert said[1].startswith(f"read: {len(tracks)} tracks, 0 divisions")
    with pytest.raises(ValueError, match="must have masks without tracks to be linked"):
        check_unlinked(linked)
    for path in sorted((bare / "01_GT" / "SEG").iterdir())[::2]:
        path.unlink()
    with pytest.raises(ValueError, match=r"in consecutive frames .* in 20 of 40; .*--lives"):
        link_sequence(read_sequence(bare, "01"), tmp_path / "again", bar)


def test_newcomers_are_no_daughters(tmp_path):
    # One nucleus stays, beside it come a whole one and one that is cut by the rim; one divides.
    y, x = np.mgrid[:160, :160]
    masks = np.zeros((2, 160, 160), np.int32)

    def draw(frame, number, cy, cx, radius=12):
        masks[frame][(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = number

    for frame in range(2):
        draw(frame, 1, 40, 80)
        draw(frame, 2, 120, 15)
    draw(1, 3, 40, 107)
    draw(1, 4, 143, 0)
    draw(0, 5, 110, 110)
    for number, place in ((5, 98), (6, 122)):
        draw(1, number, 110, place, 9)
    root, bar = (
        write(tmp_path / "odd", (90 * (masks > 0)).astype(np.uint8), masks),
        Progress({}, shown=False),
    )
    for path in (root / "01_GT" / "TRA").iterdir():
        path.unlink()
    tracks = link_sequence(read_sequence(root, "01"), tmp_path / "m.linked", bar).tracks
    assert len(tracks) == 7
    assert sorted(tracks[:, 3].tolist()) == [0] * 5 + [3] * 2


def test_linking_refuses_tracks_at_once(bare, tmp_path, capsys):
    truth = bare / "01_GT" / "TRA" / "man_track.txt"
    truth.parent.mkdir(exist_ok=True)
    truth.write_text("1 0 39 0\n")
    with pytest.raises(ValueError, match="must have masks without tracks to be linked"):
        fit(bare, tmp_path / "m.safetensors", settings=SHORT, link=True)
    assert "parts:" not in capsys.readouterr().err


@pytest.mark.heavy
def test_masks_without_tracks_are_fitted(bare, tmp_path, capsys):
    path, tracks = tmp_path / "m.safetensors", fitted_video()[2]
    with pytest.raises(ValueError, match=r"no man_track\.txt: outlines, .* \(--lives hela\)"):
        fit(bare, path, settings=SHORT, progress=False)
    data = fit(bare, path, settings=SHORT, link=True).card["data"]
    assert "camera, density, lives, motion\n" in capsys.readouterr().err
    assert (data["data_set"], data["tracks"], data["divisions"]) == ("bare", len(tracks), 19)
    assert data["linked"]


def test_lives_come_from_a_model(bare, tmp_path, tiny_model, tiny_generator, capsys):
    for path in sorted((bare / "01_GT" / "SEG").iterdir())[:-3]:
        path.unlink()
    few = replace(SHORT, minutes=tiny_generator.lives.minutes)
    with pytest.warns(UserWarning, match="37 of 40 frames have no masks"):
        model = fit(bare, tmp_path / "m.safetensors", settings=few, lives=tiny_model)
    taken = ["lives but for brightness and size", "motion but for density", "memory of the texture"]
    assert (model.card["taken_over"], model.card["lives_from"]) == (taken, "made up")
    assert (
        "GT masks of 3 frames; learned from the video: outlines, light, camera, density; from "
        f"another model: {', '.join(taken[:2])}; from neither: how mitosis looks, it is drawn like "
        "interphase\n"
    ) in capsys.readouterr().err
    np.testing.assert_array_equal(model.lives.cycle, tiny_generator.lives.cycle)
    size = np.sqrt(np.median([m.sum() for m in _split(fitted_video()[1][37:])]) / 1)
    wanted = scale_motion(tiny_generator.motion, size / np.sqrt(tiny_generator.nucleus_area))
    assert model.motion.step == pytest.approx(wanted.step)
    assert model.motion.separation == pytest.approx(wanted.separation)
    with pytest.raises(ValueError, match=r"minutes must be those of the lives .*, got 7"):
        fit(bare, tmp_path / "n.safetensors", settings=replace(few, minutes=7), lives=tiny_model)


def test_seen_lives_are_refused(tmp_path, tiny_generator):
    card = {"lives_from": {"data_set": "films", "sequence": "02"}}
    weights.save(replace(tiny_generator, card=card), tmp_path / "m.safetensors")
    model, folder = str(tmp_path / "m.safetensors"), tmp_path / "work"
    data = Data(root=tmp_path / "films", model=model, folder=folder)
    check_unseen(data, data.root, "03")
    with pytest.raises(ValueError, match="has the lives of a model of sequence '02' of films"):
        check_unseen(data, data.root, "02")


def _split(masks):
    return [frame == label for frame in masks for label in np.unique(frame[frame > 0])]


def test_motion_is_scaled_with_nuclei(tiny_motion):
    double = scale_motion(tiny_motion, 2.0)
    assert double.step.tolist() == [2 * tiny_motion.step[0], tiny_motion.step[1]]
    np.testing.assert_allclose(np.exp(double.separation), np.exp(tiny_motion.separation) * [2, 1])
    assert double.speed.scale == 2 * tiny_motion.speed.scale
    assert double.longest_step == 2 * tiny_motion.longest_step


@pytest.fixture
def budgeted(tmp_path, monkeypatch):
    """Return the steps of a fit of 5 minutes, 20 s of which are over; ``rate[0]``: a step takes."""
    trained, rate = [], [0.5]

    def learn(name, run, settings):
        work = run.progress.start(name)
        work.measure_rate = lambda: rate[0]
        trained.append((name, run.until - time.monotonic(), settings.steps))
        return torch.nn.Identity(), TrainingLog(train=[(min(240, settings.steps), 0.1)])

    def sample(*_, count, seed):
        trained.append(("pairs", count))

    monkeypatch.setattr(Progress, "measure_spent", lambda self: 20.0)
    monkeypatch.setattr(fitting, "sample_teacher_pairs", sample)
    monkeypatch.setattr(
        fitting, "train_denoiser", lambda _, settings, run, **rest: learn("painter", run, settings)
    )
    monkeypatch.setattr(
        fitting, "train_student",
        lambda pairs, teacher, settings, run, start: learn("distilled", run, settings),
    )  # fmt: skip

    def plan():
        bar = Progress({"painter": 1e4, "memory": 60.0, "page": 20.0}, shown=False)
        steps = _Steps(FitSettings(budget=5), None, None, tmp_path, torch.device("cpu"), bar)
        steps.train_networks(None, None, None, 0.0)
        done, trained[:] = [*trained], []
        return done, steps.settings

    return plan, rate


def test_budget_cuts_steps_once(budgeted):
    plan, rate = budgeted
    (painter, pairs, distilled), settings = plan()
    # Of 300 s, 20 are over and 80 are kept: 0.6 of the rest is the denoiser's.
    assert painter == ("painter", pytest.approx(120, abs=1), 10_000)
    # Half as fast as the table, so that 160 s of 280 are wanted for the rest, but half is kept.
    assert pairs == ("pairs", int(0.3 * 140 / 0.032))
    assert distilled == ("distilled", pytest.approx(140, abs=1), 8000)
    assert (settings.painter.steps, settings.pairs, settings.distilled.steps) == (240, 1312, 240)
    # A run that goes on does no more, however fast.
    rate[0] = 0.1
    again, same = plan()
    assert ([one[-1] for one in again], same) == ([240, 1312, 240], settings)
    with pytest.raises(ValueError, match="budget has no time for the paper's method"):
        FitSettings(budget=15, paper=True)


@pytest.mark.heavy
def test_budgets_end_fits(tmp_path, monkeypatch):
    root, path = write_fitted(tmp_path / "told", stop=24), tmp_path / "m.safetensors"
    long = replace(QUICK, steps=5000, check_every=5000)
    settings = FitSettings(painter=long, distilled=long, pairs=4000, border=10, budget=0.05)
    monkeypatch.setitem(SECONDS, "memory", 0.0)
    monkeypatch.setattr(Progress, "measure_spent", lambda self: 0.0)
    card = fit(root, path, settings=settings, progress=False).card
    assert 1 <= card["painter"]["steps"] == card["settings"]["painter"]["steps"] < 5000
    assert 1 <= card["distilled"]["steps"] == card["distilled"]["checked_at"][-1] < 5000
    assert card["settings"]["pairs"] < 4000
    again = fit(root, path, settings=settings, progress=False)
    assert {**again.card, "data": 0} == {**card, "data": 0}


@pytest.mark.heavy
def test_progress_changes_no_byte(tmp_path):
    root, threads = write_fitted(tmp_path / "told", stop=24), torch.get_num_threads()
    models = [
        fit(root, tmp_path / f"{shown}.safetensors", settings=SHORT, progress=shown)
        for shown in (False, True)
    ]
    states = [
        [*m.painter.state_dict().values(), *m.distilled.state_dict().values()] for m in models
    ]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert torch.get_num_threads() == threads


@pytest.mark.heavy
def test_page_shows_real_and_realism(tmp_path, monkeypatch):
    for name, few in (("CLIPS", 3), ("PAIRS", 4), ("WINDOWS", 4)):
        monkeypatch.setattr(side_by_side, name, few)
    root, path = write_fitted(tmp_path / "told"), tmp_path / "m.safetensors"
    fit(root, path, settings=SHORT, progress=False)
    lines = write_fit_page(tmp_path / "m.html", path, (root, "01", "auto"))
    assert [line.partition(":")[0] for line in lines[:5]] == [
        "area", "brightness", "contrast inside", "step", "label agreement",
    ]  # fmt: skip
    page = (tmp_path / "m.html").read_text()
    assert page.count('src="data:image/png;base64,') == 1
    assert all(line.partition(";")[0] in page for line in lines[:5])
    assert lines[-1] == f"wrote {tmp_path / 'm.html'}"
    end = "next: what counts is training: "
    assert lines[-2] == f"{end}annotate a second video, and give it to bvdm-data evaluate"
    assert weights.read_card(path)["data"]["frames"] == 40
    card = weights.read_card(path)
    card["settings"]["budget"], card["measured"]["cycle_hours_median"] = 15.0, 81.0
    shutil.copytree(root / "01", root / "02")
    off = [SimpleNamespace(name=name, distance=1.0, yardstick=0.0) for name in side_by_side._LINES]
    first, *_, cycle, size, step, last = side_by_side._advise(card, off, path, root)
    # Few steps explain what networks render, not what outlines and tracks tell.
    assert first == "few steps by --quick: the same command without it goes on from there"
    assert cycle.startswith("cycles of 81 h cannot be told from 20 h of video: a longer one, or")
    assert (size, step) == (side_by_side._LINES["area"], side_by_side._LINES["step"])
    assert last.endswith(f"evaluate {root} --model {path} --quick --train 01 --test 02")
    # Where a page cannot be made, the model stays.
    assert write_fit_page(tmp_path / "n.html", path, (tmp_path / "none", "01", "ST"))[0].startswith(
        "no page: no"
    )
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    (line,) = write_fit_page(tmp_path / "n.html", path, (root, "01", "auto"))
    assert line.endswith("pip install 'bvdm-data[evaluate]'")


# What shows no nuclei


def ring(masks, inner, outer):
    far = np.stack([ndimage.distance_transform_edt(frame == 0) for frame in masks])
    return (far > inner) & (far <= outer)


def draw_shapes(cell, count=25, side=60):
    """Return four frames of masks of one shape, on a grid; ``cell`` says whether a pixel is in."""
    masks, across = np.zeros((4, 5 * side, 5 * side), np.int32), np.arange(side) - side // 2
    for number in range(count):
        place = np.s_[:, number // 5 * side :, number % 5 * side :]
        masks[place][:, :side, :side][:, cell(*np.meshgrid(across, across))] = number + 1
    return masks


def planted(kind):
    """Return counts and masks of what is no nucleus, or no longer a good one."""
    counts, masks, _ = (part[:4] for part in fitted_video())
    light = counts.astype(np.int32) - 32768
    shapes = {
        "rods": lambda x, y: np.hypot(np.maximum(abs(x - y) - 18, 0), x + y) < 9,
        "stars": lambda x, y: np.hypot(x, y) < 18 * (1 + 0.6 * np.cos(4 * np.arctan2(y, x))),
        "specks": lambda x, y: (abs(x) < 2) & (abs(y) < 2),
    }
    if kind in shapes:
        masks = draw_shapes(shapes[kind])
        light = 300 + 600 * (masks > 0)
    elif kind == "phase contrast":
        light = 1000 - 150 * (masks > 0) + 500 * ring(masks, 0, 3)
    elif kind == "inverted":
        light = 4095 - light
    elif kind == "one label":
        masks = (255 * (masks > 0)).astype(np.uint8)
    elif kind == "other video":
        masks = np.roll(masks, (60, 45), (1, 2))
    elif kind == "markers":
        inside = np.stack([ndimage.distance_transform_edt(frame > 0) for frame in masks])
        masks = np.where(inside > 4, masks, 0)
    noise = np.random.default_rng(0).normal(0, 9, light.shape)
    return (light + noise).clip(0, 4095).astype(np.uint16), masks


def write(root, counts, masks):
    spans = [(i, np.flatnonzero((masks == i).any((1, 2)))) for i in np.unique(masks[masks > 0])]
    write_sequence(root, "01", counts, masks, np.array([(i, t[0], t[-1], 0) for i, t in spans]))
    return root


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("rods", r"rounded nuclei, got a median ratio of axes of [3-9]\.\d and .* bacteria"),
        ("one label", r"\d% of an ellipse filled .* nuclei that share a label cannot be"),
        ("stars", r"rounded nuclei, got .* [5-7]\d% of an ellipse filled .* whole cells"),
        ("specks", r"nuclei of 25 pixels or more, got half of them with 9 or less; scale .* up"),
        (
            "phase contrast",
            r"brighter than what is around them, got .* in \d% of .* phase contrast",
        ),
        ("inverted", r"brighter than what is around them, got .* in 0% of all pairs .* inverted"),
        ("other video", r"brighter than what is around them, got .* masks of another video"),
        ("markers", r"end where nuclei end, got \d+% .* markers inside nuclei\? .* --lives hela"),
    ],
)
def test_what_is_no_nuclei_is_refused(tmp_path, kind, words):
    root = write(tmp_path / "odd", *planted(kind))
    with pytest.raises(ValueError, match=words):
        fit(root, tmp_path / "m.safetensors", settings=SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["odd"]


@pytest.mark.parametrize("shape", [(3, 60, 60), (60, 60, 3)])
def test_stacks_and_colours_are_refused(tmp_path, shape):
    root = write(tmp_path / "odd", *planted("as it is"))
    photometric = "rgb" if shape[-1] == 3 else "minisblack"
    tifffile.imwrite(root / "01/t000.tif", np.zeros(shape, np.uint8), photometric=photometric)
    with pytest.raises(ValueError, match=r"one grey image .* RGB and 3D images are not supported"):
        fit(root, tmp_path / "m.safetensors", settings=SHORT)


CHANGES = {
    "as it is": lambda light: light,
    "brightened": lambda light: np.clip(6 * light, 0, 4095),
    "blurred": lambda light: ndimage.gaussian_filter(light, (0, 4, 4)),
    "noisy": lambda light: light + np.random.default_rng(0).normal(0, 60, light.shape),
    "eight bits": lambda light: light // 16,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("scale", [1, 2])
def test_real_nuclei_are_never_refused(hela, tmp_path, change, scale):
    source = read_sequence(hela, "01").cut(60, 62)
    window = np.s_[200:456, 300:556]
    counts = np.stack([source.frame(number)[window] for number in source.numbers])
    masks = np.stack([source.masks(number)[window] for number in source.numbers])
    light = CHANGES[change](counts.astype(np.float32) - 32768).clip(0, 65535).astype(np.uint16)
    for image in (light, masks):
        assert image.any()
    both = [image.repeat(scale, 1).repeat(scale, 2) for image in (light, masks)]
    check_nuclei(read_sequence(write(tmp_path, *both), "01"))
