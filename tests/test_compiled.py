import os
import shutil
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bvdm_data import CTCVideos, MixedVideos, SyntheticHeLaVideos


@pytest.fixture
def count():
    """Return a backend that counts the graphs it gets; nothing is compiled yet."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append([tuple(one.shape) for one in inputs])
        return graph

    backend.graphs = graphs
    yield backend
    torch._dynamo.reset()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 1))


def step(net, video, masks, boxes):
    """Return a loss of the images and a padded table, without branches on their values."""
    logits = net(video.transpose(1, 2))[:, 0]
    inside = nn.functional.binary_cross_entropy_with_logits(logits, (masks > 0).float())
    areas = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).nan_to_num(0)
    found = logits.sigmoid().sum((2, 3)) / masks[0, 0].numel()
    return inside + (found - areas.sum(1) / masks[0, 0].numel()).abs().mean()


def train(loader, backend, **how):
    """Train in one compiled step; return the losses."""
    net = network()
    compiled = torch.compile(step, backend=backend, fullgraph=True, **how)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for batch in loader:
        loss = compiled(net, batch["video"], batch["masks"], batch["boxes"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


HOW = {"frames": 3, "size": (40, 48), "annotations": ("masks", "boxes"), "max_cells": 32}


def videos(model, length=8):
    given = {**HOW, "model": model, "length": length}
    return SyntheticHeLaVideos(method="procedural", nuclei=(1, 6), **given)


@pytest.mark.filterwarnings("ignore")  # of torch, while it compiles
@pytest.mark.parametrize("workers", [0, 2])
def test_network_compiles_once(workers, count, tiny_model, tiny_ctc):
    given = videos(tiny_model)
    if workers:
        real = CTCVideos(tiny_ctc, border=0, length=4, **HOW)
        quotas = {"real": 1, "synthetic": 1}
        given = MixedVideos({"real": real, "synthetic": given}, quotas=quotas, length=8)
    loader = DataLoader(given, batch_size=2, num_workers=workers)
    seen = [batch["masks"].amax((1, 2, 3)).tolist() for batch in loader]
    assert len({tuple(some) for some in seen}) > 1  # batches of other numbers of nuclei
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert len(train(loader, count)) == 4
    assert len(count.graphs) == 1
    if not workers:  # so that the test could fail: a smaller last batch compiles again
        train(DataLoader(videos(tiny_model, length=7), batch_size=2), count)
        assert len(count.graphs) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None or sys.platform == "win32",
    reason="needs a C++ compiler",
)
def test_compiled_network_learns_as_plain(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    loader = DataLoader(videos(tiny_model), batch_size=2)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = train(loader, "inductor")
    torch._dynamo.reset()
    plain = train(loader, "eager")
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert list(tmp_path.rglob("*.so"))
