import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bvdm_data.adapters.common import trace_outlines
from bvdm_data.adapters.ultralytics import write_yolo
from bvdm_data.clip import STAGES, split_gaps
from tests.helpers.clips import SPARSE, make_sparse_clip, run_snippet, with_tracks


class Drawn:
    """Two clips of two frames [20, 30]: a ring, its touching neighbour, and one in two pieces."""

    length = 2

    def clip(self, index):
        masks = np.zeros((2, 20, 30), int)
        masks[0, 3:9, 10:14], masks[0, 5:7, 11:13] = 1, 0
        masks[0, 3:9, 14:17] = 2
        masks[0, 12:14, 27:30] = masks[0, 17:20, 24:30] = 3
        masks[1, 4:8, 11 + index] = 4
        masks, table, _ = split_gaps(masks, {4: 2})
        clip = with_tracks(masks, table)
        clip["video"][:, 0] = torch.from_numpy(masks / 5)
        clip["stages"] = torch.full((4, 2), 3, dtype=torch.int8)
        return clip


def read(path):
    return [line.split() for line in path.read_text().splitlines()]


def fill(polygon, shape):
    """Fill a polygon in corners of pixels: which centres are inside of it."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if y0 != y1:
            crossed = (y0 > y) != (y1 > y)
            inside ^= crossed & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("yolo") / "cells"
    write_yolo(Drawn(), root)
    return root


def test_yolo_folder_has_all_files(root):
    assert (root / "data.yaml").read_text() == (
        "train: images/train\nval: images/val\nnames:\n  0: nucleus\n"
    )
    names = ["train/000000_0000", "train/000000_0001", "val/000001_0000", "val/000001_0001"]
    for kind, suffix in (("images", "png"), ("labels", "txt"), ("tracks", "txt")):
        files = [file for file in (root / kind).rglob("*") if file.is_file()]
        assert sorted(files) == [root / kind / f"{name}.{suffix}" for name in names]
    assert read(root / "tracks/train/000000_0000.txt") == [["1", "0"], ["2", "0"], ["3", "0"]]
    assert read(root / "tracks/val/000001_0001.txt") == [["4", "2"]]
    image = np.asarray(Image.open(root / "images/train/000000_0000.png"))
    assert (image.dtype, image.shape, image[4, 10], image[4, 15]) == (np.uint8, (20, 30), 51, 102)


def test_yolo_boxes_end_behind_pixels(tmp_path):
    write_yolo(Drawn(), tmp_path / "a", task="detect", classes="stage")
    lines = np.array(read(tmp_path / "a/labels/train/000000_0000.txt"), float)
    assert lines[:, 0].tolist() == [3, 3, 3]
    x, y, width, height = (lines[:, 1:] * [30, 20, 30, 20]).T
    corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    wanted = [[10, 3, 14, 9], [14, 3, 17, 9], [24, 12, 30, 20]]
    np.testing.assert_allclose(corners, wanted, atol=1e-4)
    assert f"  6: {STAGES[6]}\n" in (tmp_path / "a/data.yaml").read_text()


def test_yolo_polygons_give_masks_back(root):
    for part, index in (("train", 0), ("val", 1)):
        masks = Drawn().clip(index)["masks"].numpy()
        for frame, mask in enumerate(masks):
            name = f"{part}/{index:06d}_{frame:04d}.txt"
            pairs = zip(read(root / "labels" / name), read(root / "tracks" / name), strict=True)
            for (kind, *numbers), (identity, _) in pairs:
                polygon = np.array(numbers, float).reshape(-1, 2) * [30, 20]
                assert kind == "0"
                assert np.array_equal(fill(polygon, mask.shape), mask == int(identity))
                # Ultralytics rounds down: no corner may leave the nucleus.
                x, y = polygon.astype(int).T
                assert (mask[y, x] == int(identity)).all()


@pytest.mark.parametrize("inset", [0, 0.01])
def test_outlines_give_any_mask_back(inset):
    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.9, 1):
        mask = rng.random((15, 17)) < density
        filled = np.zeros_like(mask)
        for outline in trace_outlines(mask, inset):
            filled ^= fill(outline, mask.shape)
        assert np.array_equal(filled, mask)
    (square,) = trace_outlines(np.ones((3, 2), bool))
    assert sorted(square.tolist()) == [[0, 0], [0, 3], [2, 0], [2, 3]]


@pytest.mark.parametrize("kind", SPARSE)
def test_yolo_of_sparse_clips(kind, tmp_path):
    clips = type("Clips", (), {"length": 2, "clip": lambda *_: make_sparse_clip(kind, 70000)})()
    write_yolo(clips, tmp_path / "a", task="detect")
    lines = [read(tmp_path / f"a/labels/val/000001_{frame:04d}.txt") for frame in range(3)]
    assert [len(one) for one in lines] == [int(frame in SPARSE[kind]) for frame in range(3)]


def test_write_yolo_is_all_or_nothing(tmp_path):
    for changes, words in (
        ({"task": "pose"}, r"task must be one of \('segment', 'detect'\), got 'pose'"),
        ({"classes": "cell"}, "classes must be one of"),
        ({"clips": 1}, "clips must be at least 2, one for validation, got 1; give clips=2"),
        ({"validation": 2}, "validation must be from 0 to 1, got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            write_yolo(Drawn(), tmp_path / "a", **changes)
    videos = Drawn()
    videos.clip = lambda index: {**Drawn().clip(index), "stages": -torch.ones(4, 2)}
    with pytest.raises(ValueError, match="stages must be known where a nucleus is, got -1"):
        write_yolo(videos, tmp_path / "a", classes="stage")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        write_yolo(Drawn(), tmp_path / "a")


LOAD = """
import sys
import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, polygon2mask
data = check_det_dataset(sys.argv[1])
found = {}
for part in ("train", "val"):
    labels = YOLODataset(img_path=data[part], data=data, task="segment", augment=False).labels
    for one in labels:
        height, width = one["shape"]
        boxes, segments = one["bboxes"], one["segments"]
        found["/".join(one["im_file"].split("/")[-2:])[:-4]] = np.array([
            np.r_[polygon2mask((height, width), [(piece * [width, height]).ravel()]).ravel(), place]
            for piece, place in zip(segments, boxes * [width, height, width, height])
        ])
np.savez(sys.argv[2], **found)
"""


@pytest.mark.heavy
def test_ultralytics_loads_the_folder(root, tmp_path):
    pytest.importorskip("ultralytics", reason="the package ultralytics")
    settings = {**os.environ, "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(tmp_path)}
    program = [sys.executable, "-W", "ignore", "-c", LOAD, root / "data.yaml", tmp_path / "a.npz"]
    subprocess.run(program, check=True, env=settings, capture_output=True)
    found = np.load(tmp_path / "a.npz")
    assert len(found.files) == 4
    for part, index in (("train", 0), ("val", 1)):
        for frame, mask in enumerate(Drawn().clip(index)["masks"].numpy()):
            rows = found[f"{part}/{index:06d}_{frame:04d}"]
            identities = [int(one) for one in np.unique(mask) if one]
            assert len(rows) == len(identities)
            for identity, row in zip(identities, rows, strict=True):
                own, loaded = mask == identity, row[:-4].reshape(mask.shape) > 0
                bridge = 3 if identity == 3 else 0  # the line between the pieces
                assert (own & ~loaded).sum() == 0
                assert (loaded & ~own).sum() <= bridge
                y, x = np.nonzero(own)
                sizes = np.ptp(x) + 1, np.ptp(y) + 1
                box = [x.min() + sizes[0] / 2, y.min() + sizes[1] / 2, *sizes]
                np.testing.assert_allclose(row[-4:], box, atol=0.03)


def test_yolo_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_snippet("Boxes and")
    assert len(list((tmp_path / "boxes/labels/train").iterdir())) == 6
    assert len((tmp_path / "boxes/data.yaml").read_text().splitlines()) == 3 + len(STAGES)
