import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner
from PIL import Image

from bvdm_data import __version__
from bvdm_data.cli import cli, main
from bvdm_data.clip import CameraScale
from bvdm_data.datasets import fetch as fetching
from bvdm_data.datasets import synthetic
from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.evaluation import evaluate as judging
from bvdm_data.files import MANIFEST
from bvdm_data.fitting.fit import FitSettings
from bvdm_data.fitting.paper_networks import train_ddpm
from bvdm_data.synth.networks import UNetSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.textures import FastSettings
from bvdm_data.weights import load, read_card, save
from tests.helpers.fitted import quick_memory, write_fitted

COMMANDS = ("fit", "info", "models", "preview", "export", "shards", "evaluate", "bench", "fetch")
FEW = ["--method", "paper", "--first-steps", "2", "--later-steps", "1"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the command line and gives exit code, output and errors."""

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["bvdm-data", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return called


def run_well(run, *arguments):
    code, out, err = run(*arguments)
    assert code == 0, err
    return out


def test_every_command_has_a_help():
    result = CliRunner().invoke(cli, ["--help"])
    assert all(f"\n  {command} " in result.output for command in COMMANDS)
    assert "..." not in result.output.partition("Commands:")[2]  # whole sentences
    assert sorted(cli.commands) == sorted(COMMANDS)
    for command in COMMANDS:
        result = CliRunner().invoke(cli, [command, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: cli {command}")
        assert "\n  --" in result.output
        assert CliRunner().invoke(cli, [command, "-h"]).output == result.output


@pytest.mark.heavy
def test_module_runs_and_prints_version():
    arguments = [sys.executable, "-m", "bvdm_data", "--version"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith(f"version {__version__}")
    arguments = [sys.executable, "-m", "bvdm_data", "info", "--model", "hella"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("bvdm-data: no weights called 'hella'; there are: ")


def test_fit_defaults_match_the_library():
    usual, told = FitSettings(), {one.name: one.default for one in cli.commands["fit"].params}
    for part in ("painter", "distilled", "texture", "flow"):
        assert told[f"{part}_steps"] == getattr(usual, part).steps
    for name in ("pairs", "minutes", "border", "seed"):
        assert told[name] == getattr(usual, name), name


def test_fit_writes_model_and_prints_card(run, tmp_path, monkeypatch):
    small = UNetSettings(channels=(8, 8, 8), middle=1)
    monkeypatch.setattr(
        "bvdm_data.fitting.fit.train_ddpm",
        lambda crops, settings, run, network: train_ddpm(crops, settings, run, small),
    )
    quick_memory(monkeypatch)
    monkeypatch.setattr("bvdm_data.evaluation.side_by_side.CLIPS", 2)
    monkeypatch.setattr("bvdm_data.evaluation.side_by_side.WINDOWS", 4)
    root, model = write_fitted(tmp_path / "data", stop=24), tmp_path / "my.safetensors"
    few = ["--painter-steps", 1, "--paper", "--texture-steps", 1, "--flow-steps", 1]
    few += ["--distilled-steps", 1, "--pairs", 12, "--minutes", 10, "--seed", 2, "--quiet"]
    few += ["--pixel-size", 0.5, "--json"]
    scale = ["--offset", 32768, "--full", 36863, "--border", 20, "--stop", 23]
    code, out, err = run("fit", root, "--output", model, *few, *scale)
    assert (code, err.startswith(f"wrote {model} (")) == (0, True)
    assert err.endswith(f"wrote {tmp_path / 'my.html'}\n")
    card = json.loads(out)
    assert card == json.loads(json.dumps(load(model).card))
    assert card["data"]["frames"] == 23
    wanted = {"minutes": 10, "seed": 2, "border": 20, "paper": True, "pairs": 12}
    assert card["settings"].items() >= wanted.items()
    trained = ("painter", "distilled", "texture", "flow")
    assert [card[name]["steps"] for name in trained] == [1] * 4
    assert (load(model).lives.minutes, load(model).pixel_size) == (10, 0.5)
    names = sorted(path.name for path in (tmp_path / "my.fit").iterdir())
    stems = ("distilled-1", "flow", "memory", "painter", "texture")
    assert names == ["distilled-1.pairs", *(f"{stem}.pt" for stem in stems)]


@pytest.mark.filterwarnings("default")
def test_fit_warns_in_one_line(run, tmp_path, monkeypatch):
    def fit(*_, **__):
        warnings.warn("left out", stacklevel=2)
        raise ValueError("ended")

    monkeypatch.setattr("bvdm_data.fitting.fit.fit", fit)
    _, _, err = run("fit", tmp_path, "--output", tmp_path / "my.safetensors")
    assert err.splitlines() == ["bvdm-data: warning: left out", "bvdm-data: ended"]


def test_info_prints_the_card(run, tiny_model):
    assert json.loads(run_well(run, "info", "--json", "--model", tiny_model)) == read_card(
        tiny_model
    )
    lines = run_well(run, "info", "--model", tiny_model).splitlines()
    assert lines[:3] == [
        "data         made up",
        "held_out     loss 0.5",
        "seeds        1 2",
    ]
    assert "MB" in lines[3]


def test_models_are_listed_with_cards(run, tiny_generator, tmp_path, monkeypatch):
    monkeypatch.setattr("bvdm_data.weights.cache_folder", lambda: tmp_path)
    card = {"data": {"divisions": 7}, "settings": {"license": "CC0-1.0"}, "painter": 3}
    save(replace(tiny_generator, card=card), tmp_path / "mine.safetensors")
    found = json.loads(run_well(run, "models", "--json"))
    assert list(found) == ["mine", "hela"]
    assert found["mine"]["license"] == "CC0-1.0"
    assert found["mine"]["data"] == {"divisions": 7}
    assert found["hela"]["data"] == read_card("hela")["data"]
    loss = read_card("hela")["painter"]["held_out_loss"][-1]
    assert found["hela"]["held_out"]["painter"] == loss
    (tmp_path / "torn.safetensors").write_text("")
    code, out, err = run("models")
    assert (code, err.count("torn.safetensors is damaged")) == (0, 1)
    assert f"mine: {tmp_path / 'mine.safetensors'}\nlicense      CC0-1.0\n" in out
    assert "hela: " in out
    assert "NOTICE.md" in out


def test_cards_fit_on_a_screen(run, tiny_generator, tmp_path):
    shown = run_well(run, "info").splitlines()
    assert len(shown) < 40
    first, *_, last = read_card("hela")["painter"]["held_out_loss"]
    assert any(f"held_out_loss {first} ... {last}" in line for line in shown)
    assert max(map(len, shown[:-1])) <= 100
    many = {f"network {n}": {"\x1b[31m" + 90 * "x": list(range(n)), "loss": 0.5} for n in range(50)}
    left_out = {"touch the border": 812, "larger than the patch": 3}
    save(
        replace(tiny_generator, card={"data": {"left_out": left_out}, **many}),
        tmp_path / "m.safetensors",
    )
    *lines, _ = run_well(run, "info", "--model", tmp_path / "m.safetensors").splitlines()
    expected = "data         left_out.touch the border 812, left_out.larger than the patch 3"
    assert (lines[0], lines[-1], len(lines)) == (expected, "...", 39)
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ([], "fast, 1 step"),
        (["--variation", "0.5"], "fast, 1 step"),
        (["--variation", "haze=0.5,blur=0"], "fast, 1 step"),
        (FEW, "T_f=0 = 2, T_f>0 = 1"),
    ],
    ids=["default", "varied", "varied by parts", "paper"],
)
def test_preview_writes_sheet_and_animation(run, tiny_model, tmp_path, method, words):
    out = run_well(
        run, "preview", "--model", tiny_model, "--output", tmp_path / "look", "--frames", 3,
        "--size", "64x80", "--nuclei", "2-4", "--seed", 5, *method,
    )  # fmt: skip
    assert "clip 0: " in out
    assert "clip 1: " in out
    assert f"clips a second (3 frames of 64 x 80, 0 workers, {words})" in out
    with Image.open(tmp_path / "look" / "contact_sheet.png") as sheet:
        assert (sheet.format, sheet.size[0] > 200) == ("PNG", True)
        sheet.load()
    with Image.open(tmp_path / "look" / "clip.gif") as film:
        assert (film.format, film.n_frames) == ("GIF", 3)


def test_preview_shows_real_beside_synthetic(run, tiny_model, tiny_ctc, tmp_path):
    usual = ["preview", "--model", tiny_model, "--size", "56x64", "--frames", 2, "--clips", 2]
    run_well(run, *usual, "--output", tmp_path / "alone")
    beside = [*usual, "--output", tmp_path / "both", "--real", tiny_ctc]
    assert "; --variation 0 keeps to it" in run_well(run, *beside)
    assert "--variation 0" not in run_well(run, *beside, "--variation", 0)
    heights = []
    for name in ("alone", "both"):
        with Image.open(tmp_path / name / "contact_sheet.png") as sheet:
            heights.append(sheet.height)
    assert heights[1] > 1.9 * heights[0]
    code, _, err = run(*usual, "--real", tiny_ctc, "--sequence", "07", "--output", tmp_path / "no")
    assert (code, (tmp_path / "no").exists()) == (1, False)
    assert "07" in err


def test_commands_complete_in_a_shell():
    shell = BashComplete(cli, {}, "bvdm-data", "_BVDM_DATA_COMPLETE")
    assert [item.value for item in shell.get_completions([], "pre")] == ["preview"]
    assert [item.value for item in shell.get_completions(["preview"], "--re")] == ["--real"]
    methods = [item.value for item in shell.get_completions(["export", "--method"], "")]
    assert methods == ["fast", "paper", "procedural"]


def test_preview_shows_many_nuclei(run, tiny_model, tmp_path):
    out = run_well(
        run, "preview", "--model", tiny_model, "--output", tmp_path, "--frames", 1, "--clips", 1,
        "--size", "320x320", "--nuclei", 140, "--method", "procedural",
    )  # fmt: skip
    assert "clip 0: 140 nuclei" in out


def test_export_command_writes_and_resumes(run, tiny_model, tmp_path):
    command = ["export", tmp_path, "--model", tiny_model, "--frames", 2, "--size", "48x64"]
    command += ["--nuclei", 3, "--quiet"]
    assert "wrote 01 to" in run_well(run, *command, "--sequences", 1)
    assert "wrote 02 to" in run_well(run, *command, "--sequences", 2)
    assert "wrote nothing: all is there to" in run_well(run, *command, "--sequences", 2)
    assert read_sequence(tmp_path, "02").shape == (48, 64)
    assert json.loads((tmp_path / MANIFEST).read_text())["method"] == repr(FastSettings())


def test_export_command_writes_yolo(run, tiny_model, tmp_path):
    command = ["export", tmp_path / "a", "--model", tiny_model, "--frames", 2, "--size", "48x64"]
    command += ["--nuclei", 3, "--quiet", "--format", "yolo"]
    code, _, err = run(*command, "--sequences", 1)
    assert (code, "--sequences must be at least 2 with --format yolo, got 1" in err) == (2, True)
    assert f"wrote {tmp_path / 'a' / 'data.yaml'}" in run_well(run, *command, "--sequences", 3)
    assert len(list((tmp_path / "a/labels/val").iterdir())) == 2
    assert len(list((tmp_path / "a/labels/train").iterdir())) == 4


def test_fetch_hands_its_arguments_on(run, monkeypatch, tmp_path):
    seen = []

    def pretend(name, directory, **rest):
        seen.append((name, directory, rest))
        return directory / name

    monkeypatch.setattr(fetching, "fetch", pretend)
    out = run_well(run, "fetch", "Fluo-N2DL-HeLa", "--directory", tmp_path, "--quiet")
    assert out == f"wrote {tmp_path / 'Fluo-N2DL-HeLa'}\n"
    assert seen == [("Fluo-N2DL-HeLa", tmp_path, {"split": "training", "progress": False})]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "nowhere", "--output", "m.safetensors"], "no folder nowhere; it should hold"),
        (["fit", "x", "--output", "m.safetensors", "--painter-steps", "0"], "at least 1, got 0"),
        (["fit", "x", "--output", "m.safetensors", "--pairs", "3"], "pairs must be 4 or more"),
        (["info", "--model", "hella"], "no weights called 'hella'; there are: "),
        (["preview", "--model", "MODEL", "--frames", "0"], "frames must be 1 or more, got 0"),
        (["preview", "--model", "MODEL", *FEW, "--first-steps", "0"], "first_steps must be from 1"),
        (["preview", "--model", "MODEL", "--variation", "2"], "variation must be from 0 to 1, got"),
        (["preview", "--model", "MODEL", "--variation", "hase=1"], "haze, debris, got 'hase'"),
        (["preview", "--model", "MODEL", "--nuclei", "9-3"], "low <= high, got (9, 3)"),
        (["export", "FILE", "--model", "MODEL"], "holds something else; give another one"),
        (["export", "new", "--model", "FILE"], "is damaged or no safetensors file"),
        (["fetch", "Fluo-N2DL-Hella"], "no data set called 'Fluo-N2DL-Hella'; there are: "),
    ],
)
def test_user_errors_are_one_line(run, arguments, words, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.safetensors").write_text("no model")
    names = {"MODEL": tiny_model, "FILE": tmp_path / "file.safetensors"}
    code, out, err = run(*[names.get(word, word) for word in arguments])
    assert code == 1
    assert out == ""
    assert err.startswith("bvdm-data: ")
    assert err.count("\n") == 1
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["file.safetensors"]


def test_worker_errors_are_one_line(run, tiny_model, tmp_path, monkeypatch):
    def break_down(*_, **__):
        raise ValueError("no luck\nat all")

    usual = ["preview", "--model", tiny_model, "--output", tmp_path, "--frames", 1, "--clips", 1]
    code, _, err = run(*usual, "--size", "64x64", "--nuclei", 500)
    assert code == 1
    assert err.startswith("bvdm-data: nuclei=500 do not fit into size=(64, 64): only ")
    monkeypatch.setattr(synthetic, "synthesise", break_down)
    code, _, err = run(*usual, "--workers", 1)
    assert code == 1
    assert err.startswith("bvdm-data: no luck at all. It is clip 0 of epoch 0")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["preview", "export", "shards", "bench"])
def test_commands_take_at_least(run, tiny_model, tmp_path, command):
    folder = [] if command == "bench" else ["--output"] * (command == "preview") + [tmp_path]
    arguments = [command, *folder, "--model", tiny_model, "--size", "64x64", "--at-least", 500]
    code, _, err = run(*arguments, *(["--clips", 1] if command == "shards" else []))
    assert code == 1
    assert "bvdm-data: at_least=500 do not fit into size=(64, 64): only " in err


def test_long_errors_fit_a_screen(run, tmp_path):
    code, _, err = run("info", "--model", tmp_path / ("x/" * 1500 + "m.safetensors"))
    assert code == 1
    assert err.startswith("bvdm-data: ")
    assert len(err) < 2100


def test_a_full_disk_is_one_line(run, tiny_model, tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bvdm_data.datasets.tiff.write_image", fill)
    code, _, err = run(
        "export", tmp_path / "data", "--model", tiny_model, "--frames", 1, "--size", "48x48",
        "--nuclei", 2, "--quiet",
    )  # fmt: skip
    assert code == 1
    assert err.count("\n") == 1
    assert "could not write the sequence" in err
    assert "No space left on device" in err


STOPPED = {
    "shards": ["--workers", 2, "--clips", 9000, "--clips-per-shard", 3000],
    "preview": ["--workers", 1, "--clips", 9000],
    "export": ["--frames", 40, "--sequences", 90],
}


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", STOPPED)
def test_signals_end_all_processes(tiny_model, tmp_path, command, number):
    place = ["--output", tmp_path / "data"] if command == "preview" else [tmp_path / "data"]
    quiet = [] if command == "preview" else ["--quiet"]
    line = [sys.executable, "-m", "bvdm_data", command, *place, *STOPPED[command], *quiet]
    line += ["--model", tiny_model, "--size", "64x64", "--nuclei", 2, "--method", "procedural"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen([*map(str, line)], **pipes, start_new_session=True)
    if command == "preview":
        assert running.stdout.readline().startswith("clip 0: ")
    signs = {"shards": ".shard-00000*", "export": MANIFEST, "preview": "../data"}
    while len(list((tmp_path / "data").glob(signs[command]))) < 1 + (command == "shards"):
        assert running.poll() is None
        time.sleep(0.05)
    # As a terminal does; a scheduler, or the system without memory, may know one process only.
    (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)
    # Workers hold the pipes, too: they are closed when the last process has ended.
    err = running.communicate(timeout=30)[1]
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}.get(number)
    assert running.returncode == (128 + number if name else -number)
    assert err == f"bvdm-data: stopped by {name}\n" or not name


BUSY = """
import hashlib, sys
from bvdm_data import cli
def work(**_):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # no handler runs before this has ended
cli.info.callback = work
sys.argv[1:] = ["info"]
cli.main()
"""


@pytest.mark.heavy
def test_busy_command_ends_soon():
    line = [sys.executable, "-c", BUSY]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, **pipes) as running:
        assert running.stdout.readline() == "ready\n"
        running.terminate()
        assert running.communicate(timeout=20)[1] == "bvdm-data: stopped by SIGTERM\n"
    assert running.returncode == 143


def test_signals_are_as_before(run):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run("--version")[0] == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_wrong_usage_ends_with_code_2(run):
    method = "is for --method paper, got --method"
    for arguments, words in (
        ("", "Usage: "),
        ("paint", "No such command 'paint'"),
        ("fit", "Missing argument 'ROOT'"),
        ("fit x", "Missing option '--output'"),
        ("fit x --output m.safetensors --offset 3", "both --offset and --full"),
        ("fit x --output m.safetensors --minutes soon", "'soon' is not a valid"),
        ("preview --size 256", "must look like 256x256 (height x width in pixels), got"),
        ("preview --nuclei many", "must look like 20 or 10-30, got 'many'"),
        ("preview --nuclei -3", "must look like 20 or 10-30, got '-3'"),
        ("preview --variation haze", "must look like 0.5 or haze=0.5,debris=0, got 'haze'"),
        ("preview --variation haze=x", "must look like 0.5 or haze=0.5,debris=0, got 'haze=x'"),
        ("preview --clips 0", "--clips must be at least 1, got 0"),
        ("preview --seed one", "'one' is not a valid integer"),
        ("preview --method magic", "'magic' is not one of 'fast', 'paper', 'procedural'"),
        ("preview --method procedural --first-steps 4", f"--first-steps {method} procedural"),
        ("export x --later-steps 0", f"--later-steps {method} fast"),
        ("export", "Missing argument 'DIRECTORY'"),
        ("export x --size 7x", "must look like 256x256"),
        ("fetch", "Missing argument 'NAME'"),
    ):
        code, out, err = run(*arguments.split())
        assert code == 2, arguments
        assert words in err + out
        assert "Traceback" not in err


def test_fit_tells_what_its_page_needs(run, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["bvdm_data.cli.models"], "find_spec", lambda _: None)
    _, _, err = run("fit", tmp_path, "--output", tmp_path / "my.safetensors")
    assert err.startswith("the page at the end needs scikit-image: pip install 'bvdm-data[evalu")


def test_evaluate_command_passes_its_options(run, monkeypatch, tmp_path):
    asked = {}

    def judged(data, questions, *, report, say):
        asked.update(data=data, questions=questions, report=report)
        say("judged")

    monkeypatch.setattr(judging, "evaluate", judged)
    out = run_well(
        run, "evaluate", tmp_path, "--part", "realism", "--part", "training", "--arm", "real",
        "--seeds", 2, "--steps", 7, "--clips", 5, "--films", 6, "--seed", 3,
        "--method", "procedural", "--variation", 0.5,
        "--border", 4, "--offset", 9, "--full", 300, "--outline", 0.4,
        "--also", "C:/cells:03", "--calibrated", 3,
        "--work-dir", tmp_path / "work", "--report", tmp_path / "page",
    )  # fmt: skip
    assert out == "judged\n"
    data, questions = asked["data"], asked["questions"]
    assert (data.root, data.train, data.test, data.seed) == (tmp_path, "01", "02", 3)
    assert (data.method, data.variation) == (ProceduralSettings(), 0.5)
    assert data.folder == tmp_path / "work"
    assert (data.outline, data.also, data.calibrated) == (0.4, [(Path("C:/cells"), "03")], 3)
    assert (data.border, data.scale) == (4, CameraScale(9, 300))
    assert asked["report"] == tmp_path / "page"
    assert tuple(questions.parts) == ("realism", "training")
    assert tuple(questions.arms) == ("real",)
    budget = questions.budget
    assert (budget.seeds, budget.clips, budget.films, budget.segmenter.steps) == (2, 5, 6, 7)
    run_well(run, "evaluate", tmp_path, "--quick")
    assert asked["questions"] == judging.QUICK
    run_well(run, "evaluate", tmp_path, "--quick", "--seeds", 1, "--arm", "paper")
    one = replace(judging.QUICK.budget, seeds=1)
    assert asked["questions"] == replace(judging.QUICK, arms=("paper",), budget=one)
    run_well(run, "evaluate", tmp_path)
    assert asked["questions"] == judging.Questions()


def test_evaluate_command_refuses_impossible_options(run, tmp_path):
    work = tmp_path / "work"
    for wrong, words in (
        ("--part colour", "parts must be out of distance"),
        ("--arm gan", "arms must be out of real"),
        ("--seeds 0", "seeds must be at least 1, got 0"),
        ("--steps 0", "steps must be at least 1, got 0"),
        ("--part reuse", "python -m benchmarks.study_pool"),
        ("--also 03", "--also must be ROOT:SEQUENCE, like MyCells:01, got '03'"),
        ("--full 4", "give both --offset and --full"),
        ("--method procedural --first-steps 4", "is for --method paper, got --method"),
        ("", "no folder"),
    ):
        code, _, err = run("evaluate", tmp_path / "nowhere", "--work-dir", work, *wrong.split())
        assert code != 0
        assert words in err
        assert "Traceback" not in err
    assert not work.exists()
