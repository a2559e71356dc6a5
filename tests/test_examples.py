import ast
import itertools
import json
import runpy
import statistics
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from bvdm_data.adapters.optical_flow import FlowPairs
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.heavy
def test_notebook_runs_and_shows_clips():
    cells = json.loads((EXAMPLES / "first_clips.ipynb").read_text())["cells"]
    names, shown = {}, []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []
        *before, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(before, []), cell["id"], "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), cell["id"], "eval"), names))
    videos, figure, shapes, parents, plain, losses = shown
    assert "data:image/webp" in videos._repr_html_()
    assert all(one._repr_png_().startswith(b"\x89PNG") for one in (figure, plain))
    assert shapes["video"] == (12, 1, 160, 160)
    assert len(parents) > 0
    assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def on_device():
    return runpy.run_path(str(EXAMPLES / "augment_on_device.py"))


def test_every_example_has_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names = [path.name for path in EXAMPLES.glob("*.*")]
    assert names
    assert [name for name in names if f'"{name}"' not in tests] == []


def test_network_learns_from_device_augmentation(on_device, capsys):
    small = ["--steps", "16", "--frames", "2", "--size", "64", "--batch-size", "2"]
    losses = on_device["main"]([*small, "--workers", "0", "--device", "cpu"])
    assert len(losses) == 16
    assert statistics.median(losses[-6:]) < 0.7 * statistics.median(losses[:3])
    assert "after 16 steps" in capsys.readouterr().out


def test_device_augmentation_moves_masks_alike(on_device):
    torch.manual_seed(0)
    masks = torch.zeros(3, 4, 48, 48, dtype=torch.int32)
    masks[:, :, 10:24, 8:20] = 17
    masks[:, :, 30:40, 24:44] = 200
    masks[:, 2:, 30:40, 24:44] = 0
    video = masks[:, :, None].float() / 200
    moved_video, moved = on_device["augmented"](on_device["augmentation"](), video, masks)
    assert moved.dtype == torch.int32
    assert set(moved.unique().tolist()) == {0, 17, 200}
    # The same way in all frames, another one in every clip.
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert torch.equal(moved[:, 2] == 17, moved[:, 0] == 17)
    assert not (moved[0] == moved[1]).all()
    assert not (moved[0] == masks[0]).all()
    assert ((moved_video[:, :, 0] - moved / 200).abs() > 0.05).float().mean() < 0.05


@pytest.mark.slow
def test_raft_learns_a_batch_of_pairs(capsys):
    example = runpy.run_path(str(EXAMPLES / "train_raft.py"))
    example["main"](["--workers", "0", "--method", "procedural", "--steps", "2"])
    assert "after 2 steps" in capsys.readouterr().out
    settings = {"method": "procedural", "annotations": ("masks", "flow")}
    videos = SyntheticHeLaVideos(frames=3, size=128, nuclei=8, **settings)
    batch = next(iter(DataLoader(FlowPairs(videos), batch_size=2)))
    losses = example["train"](itertools.repeat(batch), 14, 2)
    assert statistics.median(losses[-3:]) < 0.8 * losses[0]
