"""What other packages do, as docs/surprises.md tells: each test fails once that has changed."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kornia import augmentation
from laptrack import LapTrack
from stardist.nms import non_maximum_suppression
from trackastra.data import CTCData
from trackastra.utils import normalize
from webdataset import WebDataset, split_by_node

from bvdm_data import CameraScale, SyntheticHeLaVideos
from bvdm_data.adapters.tracking import trackastra_windows, write_ctc
from bvdm_data.storage import as_clip, write_shards
from tests.helpers.clips import with_tracks

ROOT = Path(__file__).parents[1]


def test_stardist_drops_nuclei_at_the_rim():
    probability, distances = np.zeros((24, 24), np.float32), np.ones((24, 24, 8), np.float32)
    probability[[1, 12], 12] = 0.9
    for rim, found in ((None, [[12, 12]]), (0, [[1, 12], [12, 12]])):
        given = {} if rim is None else {"b": rim}
        points, *_ = non_maximum_suppression(distances, probability, **given)
        assert sorted(points.tolist()) == found


def test_trackastra_scales_light_by_film():
    film = np.random.default_rng(0).random((3, 40, 40), np.float32)
    film *= np.array([1, 2, 4])[:, None, None]
    together, alone = normalize(film), np.stack([normalize(frame) for frame in film])
    np.testing.assert_allclose(alone.max((1, 2)), 1, atol=0.01)
    assert together[0].max() < 0.3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackastra_passes_over_short_films(tmp_path):
    masks = np.zeros((3, 24, 24), np.int32)
    masks[:, 4:12, 4:12] = 1
    clip = with_tracks(masks, np.array([[1, 0, 2, 0]]))
    write_ctc(clip, tmp_path, name="01", scale=CameraScale(0, 65535))
    given = {"ndim": 2, "detection_folders": ["TRA"], "features": "wrfeat"}
    assert [len(CTCData(root=tmp_path / "01", window_size=n, **given)) for n in (3, 6)] == [1, 0]
    with pytest.raises(ValueError, match="window must be at most the 3 frames of the clip, got 6"):
        trackastra_windows(clip, 6)


def test_laptrack_closes_gaps_beyond_its_cutoff():
    points = pd.DataFrame({"frame": [1, 0, 3], "x": [1.0, 0.0, 12.0], "name": ["b", "a", "c"]})
    tables = {}
    for gap in (15**2, 4**2):
        given = {"gap_closing_cutoff": gap} if gap < 225 else {}
        tracker = LapTrack(cutoff=4**2, gap_closing_max_frame_count=2, **given)
        tables[gap] = tracker.predict_dataframe(points, ["x"], only_coordinate_cols=False)
    assert tables[225][0]["name"].tolist() == ["a", "b", "c"]  # other rows than those given
    assert [found[0]["track_id"].nunique() for found in tables.values()] == [1, 2]
    assert not list(tables[225][1])  # no columns, as nothing divides


def test_kornia_freezes_noise_over_frames():
    film = torch.full((1, 4, 1, 8, 8), 0.5)
    for kept, is_frozen in (({}, True), ({"same_on_frame": False}, False)):
        noise = augmentation.RandomGaussianNoise(std=0.1, p=1.0)
        noisy = augmentation.VideoSequential(noise, data_format="BTCHW", **kept)(film)
        assert torch.equal(noisy[:, 0], noisy[:, 1]) == is_frozen
        assert not torch.equal(noisy, film)


@pytest.mark.filterwarnings("ignore:Exception ignored", "ignore:unclosed")
def test_webdataset_gives_ranks_unequal_shares(tmp_path, monkeypatch):
    videos = SyntheticHeLaVideos(frames=1, size=48, method="procedural", annotations=("masks",))
    write_shards(videos, tmp_path / "data", clips=3, clips_per_shard=1, progress=False)
    shards, found = sorted(map(str, tmp_path.glob("data/*.tar"))), []

    def open_shards():
        data = WebDataset(shards, shardshuffle=False, nodesplitter=split_by_node)
        return data.decode().map(as_clip)

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        found.append([int(clip["index"]) for clip in open_shards()])
    assert found == [[0, 2], [1]]


def test_cellpose_gives_daughters_one_id():
    utils = pytest.importorskip("cellpose.utils", reason="needs the extra cellpose")
    masks = np.zeros((2, 20, 20), np.int32)
    masks[0, 2:8, 2:16] = masks[1, 2:8, 2:9] = 1
    masks[1, 2:8, 9:16] = 2
    assert np.unique(utils.stitch3D(masks)[1]).tolist() == [0, 1]


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_cellpose_reseeds_and_starts_at_rest(tmp_path):
    train = pytest.importorskip("cellpose.train", reason="needs the extra cellpose")
    network = runpy.run_path(str(ROOT / "examples/train_cellpose.py"))["SmallNetwork"]()
    before = [weights.clone() for weights in network.layers.parameters()]
    image, labels = np.random.default_rng(0).random((64, 64), np.float32), np.zeros((64, 64), int)
    labels[10:30, 10:30], labels[40:50, 40:60] = 1, 2
    given = {"n_epochs": 1, "bsize": 32, "min_train_masks": 1, "learning_rate": 0.1}
    draws = []
    for seed in (7, 8):
        np.random.seed(seed)  # noqa: NPY002
        train.train_seg(network, [image], [labels.copy()], save_path=tmp_path, **given)
        draws.append(np.random.rand())  # noqa: NPY002
    assert draws[0] == draws[1]
    assert all(map(torch.equal, network.layers.parameters(), before))
