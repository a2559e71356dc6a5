import json

import pytest
from click.testing import CliRunner

from bvdm_data.datasets import synthetic

soak = pytest.importorskip("benchmarks.soak", reason="needs the folder of the repository")


@pytest.fixture
def run(tiny_model, tmp_path):
    """Return a function that runs a soak; it gives the exit code, the text and the figures."""

    def run(clips, workers):
        path = tmp_path / "soak.json"
        arguments = ["--clips", clips, "--workers", workers, "--model", tiny_model]
        result = CliRunner().invoke(soak.main, [*map(str, arguments), "--output", str(path)])
        return result.exit_code, result.output, json.loads(path.read_text())

    return run


@pytest.mark.heavy
def test_soak_checks_all_settings(run):
    clips = 2 * len(soak.CASES)
    code, text, found = run(clips, 1)
    assert (code, found["failures"], found["clips"]) == (0, [], clips)
    assert [*found["rows"]] == [*soak.CASES]
    assert {row["clips"] for row in found["rows"].values()} == {2}
    assert sum(row["nuclei"] for row in found["rows"].values()) > clips
    assert sum(row.get("whole nuclei", 0) for row in found["rows"].values()) > 5
    assert [sample["clip"] for sample in found["memory"]] == list(range(1, clips + 1))
    assert all(sample["loop"] > 1 and sample["workers"] > 1 for sample in found["memory"])
    assert f"{clips} clips, 0 failures" in text
    assert all(name in text for name in soak.CASES)


def test_soak_lists_failures(run, monkeypatch):
    real, names = synthetic.synthesise, list(soak.CASES)

    def synthesise(generator, scene, method, *, name, **others):
        film = real(generator, scene, method, name=name, **others)
        if scene.frames == 8:
            raise RuntimeError("no luck")
        if scene.nuclei == 4:
            film.flow[:, 0] += 5
        return film

    monkeypatch.setattr(synthetic, "synthesise", synthesise)
    code, text, found = run(8, 0)
    assert code == 1
    assert [failure["settings"] for failure in found["failures"]] == [names[3], names[6]]
    flow, luck = found["failures"]
    assert flow["error"].startswith("ValueError: flow ")
    assert "no luck. It is clip 0 of epoch 0" in luck["error"]
    assert luck["error"] in text
    failures = [found["rows"][name].get("failures", 0) for name in names[:8]]
    assert failures == [0, 0, 0, 1, 0, 0, 1, 0]
    with pytest.raises(RuntimeError, match="no luck"):
        exec(luck["again"], {})
    monkeypatch.undo()
    exec(luck["again"], {})


def test_growth_is_slope_of_second_half():
    memory = [{"clip": 10.0 * n, "loop": 50.0 + max(n - 10, 0)} for n in range(1, 21)]
    assert soak._growth(memory, "loop") == {
        "at half": 51.0, "at the end": 60.0, "growth": 9.0, "growth per 1000 clips": 100.0,
    }  # fmt: skip
