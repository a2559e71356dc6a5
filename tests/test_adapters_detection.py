import functools
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.adapters.detection import collate_detection, detection_targets
from tests.helpers.clips import run_snippet

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLES / "train_mask_rcnn.py"))


def videos(model, **settings):
    settings = {"frames": 3, "size": (64, 80), "length": 4, **settings}
    return SyntheticHeLaVideos(model=model, method="procedural", **settings)


def drawn():
    masks = torch.zeros(3, 20, 30, dtype=torch.int32)
    masks[:2, 3:9, 10:14] = 2
    masks[1, 12:19, 29] = 5
    return {"video": torch.rand(3, 1, 20, 30), "masks": masks, "index": torch.tensor(7)}


def test_detection_targets_hold_each_nucleus():
    first, second, third = detection_targets(drawn())
    assert first["boxes"].tolist() == [[10, 3, 14, 9]]
    assert second["boxes"].tolist() == [[10, 3, 14, 9], [29, 12, 30, 19]]
    assert second["area"].tolist() == [24, 7]
    assert second["track_ids"].tolist() == [2, 5]
    assert second["labels"].tolist() == [1, 1]
    assert second["iscrowd"].tolist() == [0, 0]
    assert torch.equal(second["masks"][1].bool(), drawn()["masks"][1] == 5)
    assert [target["image_id"] for target in (first, second, third)] == [21, 22, 23]
    shapes = [list(third[key].shape) for key in ("boxes", "labels", "masks", "area")]
    assert shapes == [[0, 4], [0], [0, 20, 30], [0]]
    dtypes = dict.fromkeys(("boxes", "area"), torch.float32) | {"masks": torch.uint8}
    dtypes |= dict.fromkeys(("labels", "iscrowd", "track_ids"), torch.int64)
    for target in (second, third):
        assert type(target["image_id"]) is int
        assert {key: value.dtype for key, value in target.items() if key != "image_id"} == dtypes
        assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
        assert target["boxes"].canvas_size == (20, 30)


def test_detection_boxes_match_clip_and_torchvision(tiny_model):
    clip = videos(tiny_model, annotations=("masks", "boxes"), nuclei=6).clip(0)
    assert len(detection_targets(clip)[0]["boxes"]) > 2
    for frame, target in enumerate(detection_targets(clip)):
        own = clip["boxes"][target["track_ids"] - 1, frame]
        assert torch.equal(target["boxes"].as_subclass(torch.Tensor), own)
        inclusive = masks_to_boxes(target["masks"])
        far = torch.tensor([0.0, 0.0, 1.0, 1.0])
        assert torch.equal(target["boxes"].as_subclass(torch.Tensor), inclusive + far)


def test_detection_labels_may_be_stages(tiny_model):
    clip = videos(tiny_model, annotations=("masks", "stages"), nuclei=6).clip(0)
    for frame, target in enumerate(detection_targets(clip, classes="stage")):
        stages = clip["stages"][target["track_ids"] - 1, frame]
        assert len(stages) > 0
        assert torch.equal(target["labels"], stages.long() + 1)


def test_transforms_of_torchvision_take_targets_along():
    image, target = drawn()["video"][1], detection_targets(drawn())[1]
    _, moved = v2.RandomHorizontalFlip(p=1)(image, target)
    assert moved["boxes"].tolist() == [[16, 3, 20, 9], [0, 12, 1, 19]]
    assert torch.equal(moved["masks"], target["masks"].flip(-1))


MOVES = {
    "crop": v2.RandomCrop(40),
    "crop with boxes": v2.RandomIoUCrop(max_aspect_ratio=3.0),
    "affine": v2.RandomAffine(30, (0.4, 0.4), (0.5, 2)),
    "resized crop": v2.RandomResizedCrop(50, scale=(0.1, 0.3)),
    "zoom out": v2.RandomZoomOut(p=1),
    "turned, resized": v2.Compose([v2.RandomRotation((90, 90), expand=True), v2.Resize(33)]),
    "twice": v2.Compose([v2.RandomCrop(50), v2.ElasticTransform(), v2.RandomCrop(30)]),
    "perspective": v2.Compose([v2.Pad(9), v2.RandomPerspective(p=1), v2.CenterCrop(40)]),
}


@pytest.mark.parametrize("name", MOVES)
def test_sanitized_targets_stay_whole(name):
    masks = torch.zeros(1, 64, 80, dtype=torch.int32)
    for number in range(12):
        row, column = divmod(number, 4)
        masks[0, 20 * row + 2 : 20 * row + 7 + number, 20 * column + 2 : 20 * column + 9] = (
            12 - number
        )
    clip = {"video": torch.rand(1, 1, 64, 80), "masks": masks, "index": torch.tensor(0)}
    images, targets = collate_detection([clip])
    before = {key: value.tolist() for key, value in targets[0].items() if key != "image_id"}
    sanitize = v2.SanitizeBoundingBoxes(min_area=20)
    lengths = set()
    for seed in range(4):
        torch.manual_seed(seed)
        image, target = v2.Compose([MOVES[name], sanitize])(tv_tensors.Image(images[0]), targets[0])
        rows = [before["track_ids"].index(one) for one in target["track_ids"].tolist()]
        assert target["area"].tolist() == [before["area"][row] for row in rows]
        assert target["iscrowd"].tolist() == [0] * len(rows)
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) == len(rows)
        torch.manual_seed(seed)
        _, whole = MOVES[name](tv_tensors.Image(images[0]), targets[0])
        assert torch.equal(target["masks"], whole["masks"][rows])
        lengths.add(len(rows))
        v2.RandomHorizontalFlip(p=1)(image, target)
    assert min(lengths) < 12 or name == "zoom out"
    assert {key: value.tolist() for key, value in targets[0].items() if key != "image_id"} == before


@pytest.mark.parametrize("workers", [0, 2])
def test_detection_loader_gives_images_and_targets(tiny_model, workers):
    collate = functools.partial(collate_detection, channels=3)
    data = videos(tiny_model, batch_size=2)
    loader = DataLoader(data, batch_size=2, num_workers=workers, collate_fn=collate)
    (images, targets), _ = loader
    assert [image.shape for image in images] == [(3, 64, 80)] * 6
    assert [target["image_id"] for target in targets] == list(range(6))
    crop = v2.Compose([v2.RandomCrop(30), v2.RandomPerspective(p=1), v2.SanitizeBoundingBoxes()])
    _, cropped = crop(images[4], targets[4])
    assert len(cropped["track_ids"]) == len(cropped["boxes"])
    clip = videos(tiny_model).clip(1)
    assert torch.equal(images[4][2], clip["video"][1, 0])
    union = targets[4]["masks"].as_subclass(torch.Tensor).amax(0)
    assert union.any()
    assert torch.equal(union > 0, clip["masks"][1] > 0)


def test_mask_rcnn_takes_frames_without_nuclei(example):
    torch.manual_seed(0)
    clip = drawn() | {"video": torch.rand(3, 1, 64, 64)}
    masks = torch.zeros(3, 64, 64, dtype=torch.int32)
    masks[0, 10:30, 20:36] = 1
    for clips in ([clip | {"masks": masks}], [clip | {"masks": 0 * masks}]):
        images, targets = collate_detection(clips)
        losses = example["detector"](64).train()(images, targets)
        parts = ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")
        assert set(losses) == {f"loss_{part}" for part in parts}
        assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_mask"] == 0


def test_mask_rcnn_learns_from_a_loader(example, capsys):
    small = ["--steps", "20", "--frames", "1", "--size", "64", "--batch-size", "2"]
    losses = example["main"]([*small, "--workers", "0", "--device", "cpu"])
    assert np.isfinite(losses).all()
    assert np.median(losses[-6:]) < 0.8 * np.median(losses[:3])
    assert "after 20 steps" in capsys.readouterr().out


def test_consumers_snippet_runs(capsys):
    torch.manual_seed(0)
    run_snippet("Detection:")
    assert "'loss_mask': " in capsys.readouterr().out


def test_detection_refuses_what_is_impossible():
    clip, index = drawn(), drawn()
    del index["index"]
    arrays = [clip | {key: clip[key].numpy()} for key in ("video", "masks")]
    colour = clip | {"video": torch.rand(3, 2, 20, 30)}
    blank = clip | {"stages": torch.full((5, 3), -1, dtype=torch.int8)}
    for broken, arguments, error, words in (
        (clip, {"classes": "cell"}, ValueError, "classes must be one of .*'cell'"),
        (clip, {"classes": "stage"}, ValueError, "'stages' into annotations="),
        ({"video": clip["video"]}, {}, ValueError, "must have the key 'masks'.*annotations="),
        (clip, {"channels": 0}, ValueError, "channels must be 1 or more, got 0"),
        (blank, {"classes": "stage"}, ValueError, r"stages of frame 0 must be.*got \[-1\]"),
        (index, {}, ValueError, "clip must have the key 'index', got the keys"),
        (arrays[0], {}, TypeError, "clip must hold tensors, got ndarray for 'video'"),
        (arrays[1], {}, TypeError, "clip must hold tensors, got ndarray for 'masks'"),
        (colour, {"channels": 3}, ValueError, "channels must be that of the video, 2, got 3"),
    ):
        with pytest.raises(error, match=words):
            collate_detection([broken], **arguments)
