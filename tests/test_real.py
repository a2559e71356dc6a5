import pickle
import shutil

import numpy as np
import pytest
import tifffile
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from bvdm_data.clip import CameraScale, TooManyNucleiError
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.ctc_videos import CTCVideos

EVERY = ("masks", "tracks", "boxes", "centroids")


def tiny(root, **changes):
    arguments = {"frames": 4, "size": (64, 80), "max_cells": 16, "border": 0} | changes
    return CTCVideos(root, **arguments)


def place(dataset, index):
    """Return the first frame, row and column of a window that stands still."""
    window = dataset.window(index)
    assert len(set(window.corners)) == 1
    return window.frames[0], *window.corners[0]


def same(one, other):
    return all(torch.equal(one[key].nan_to_num(), other[key].nan_to_num()) for key in one)


def test_ctc_videos_yields_clips_that_hold_together(tiny_ctc):
    dataset = tiny(tiny_ctc, annotations=EVERY)
    for index in range(30):
        clip = dataset.clip(index)
        check_clip(clip)
        assert clip["index"] == index
        assert clip["source"] == 0
    assert {key: (tuple(value.shape), value.dtype) for key, value in clip.items()} == {
        "video": ((4, 1, 64, 80), torch.float32),
        "masks": ((4, 64, 80), torch.int32),
        "tracks": ((16, 4), torch.int32),
        "boxes": ((16, 4, 4), torch.float32),
        "centroids": ((16, 4, 2), torch.float32),
        "index": ((), torch.int64),
        "source": ((), torch.int8),
    }


def test_a_window_of_the_whole_video_is_the_video(tiny_ctc, tiny_video):
    video, masks, tracks = tiny_video
    clip = tiny(tiny_ctc, frames=12, size=(128, 160)).clip(5)
    np.testing.assert_array_equal(
        clip["video"][:, 0], ((video.astype(np.float32) - 32768) / 4095).clip(0, 1)
    )
    present = clip["tracks"][:6].numpy()
    # Ids are given by first frame: nucleus 6 comes before the daughters 4 and 5 of 2.
    assert present[:, 1:].tolist() == tracks[[0, 1, 2, 5, 3, 4], 1:].tolist()
    renamed = np.array([0, 1, 2, 3, 5, 6, 4])[masks]
    np.testing.assert_array_equal(clip["masks"], renamed)


def test_a_window_is_cut_at_the_same_place_from_video_and_masks(tiny_ctc):
    dataset = tiny(tiny_ctc)
    for index in range(10):
        clip = dataset.clip(index)
        inside = clip["masks"] > 0
        assert (clip["video"][:, 0][inside] > 0.3).all()
        assert (clip["video"][:, 0][~inside] < 0.2).all()


def test_windows_reach_every_corner_of_the_field_and_every_frame(tiny_ctc):
    dataset = tiny(tiny_ctc, size=(120, 150), border=2)
    places = {place(dataset, index) for index in range(2000)}
    first, top, left = (sorted({place_[axis] for place_ in places}) for axis in range(3))
    assert first == list(range(9))
    assert top == list(range(2, 7))
    assert left == list(range(2, 9))


def test_a_clip_depends_on_index_epoch_and_seed_alone(tiny_ctc):
    dataset, other = tiny(tiny_ctc, seed=1), tiny(tiny_ctc, seed=1)
    third = dataset.clip(3)
    other.clip(9)
    assert same(third, other.clip(3))
    assert not torch.equal(third["video"], dataset.clip(4)["video"])
    assert not torch.equal(third["video"], tiny(tiny_ctc, seed=2).clip(3)["video"])
    other.set_epoch(1)
    assert not torch.equal(third["video"], other.clip(3)["video"])
    other.set_epoch(0)
    assert same(third, other.clip(3))


def test_a_clip_does_not_depend_on_the_worker(tiny_ctc):
    dataset = tiny(tiny_ctc, length=6)
    loader = DataLoader(dataset, batch_size=2, num_workers=2)
    batches = list(loader)
    assert batches[0]["video"].shape == (2, 4, 1, 64, 80)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(6))
    assert torch.equal(batches[2]["masks"][1], dataset[5]["masks"])


def test_ctc_videos_pickles_small_and_without_decoded_images(tiny_ctc):
    dataset = tiny(tiny_ctc)
    clip = dataset.clip(0)
    packed = pickle.dumps(dataset)
    assert len(packed) < 10_000
    assert same(clip, pickle.loads(packed).clip(0))


def test_ctc_videos_counts_the_clips_that_hold_the_field_once(tiny_ctc):
    assert len(tiny(tiny_ctc, frames=6, size=64)) == 10  # 12 * 128 * 160 / (6 * 64 * 64)
    assert len(tiny(tiny_ctc, frames=5, size=64)) == 12
    assert len(tiny(tiny_ctc, size=(60, 70), border=None, stop=4)) == 3  # 78 * 110 / (60 * 70)
    assert len(tiny(tiny_ctc, length=7)) == 7


@pytest.mark.parametrize("index", [1, -2, np.int64(1), np.uint8(1), torch.tensor(1)])
def test_indexing_takes_every_whole_number(tiny_ctc, index):
    dataset = tiny(tiny_ctc, length=3)
    assert same(dataset[index], dataset.clip(1))


def test_iterating_ends_after_the_last_clip(tiny_ctc):
    assert [int(clip["index"]) for clip in tiny(tiny_ctc, length=3)] == [0, 1, 2]


def test_clip_goes_on_past_the_end(tiny_ctc):
    assert tiny(tiny_ctc, length=2).clip(100)["index"] == 100


def test_start_and_stop_restrict_the_frames(tiny_ctc):
    dataset = tiny(tiny_ctc, start=3, stop=8)
    assert {place(dataset, index)[0] for index in range(50)} == {3, 4}


def test_the_default_border_is_25_pixels(tiny_ctc):
    dataset = tiny(tiny_ctc, border=None, size=(77, 109))
    assert dataset.border == 25
    assert {place(dataset, index)[1:] for index in range(50)} == {
        (25, 25),
        (25, 26),
        (26, 25),
        (26, 26),
    }


def test_windows_avoid_frames_without_masks(tiny_ctc, tmp_path):
    root = shutil.copytree(tiny_ctc, tmp_path / "copy")
    for number in (0, 4, 9):
        (root / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    dataset = tiny(root, frames=3, truth="GT")
    assert {place(dataset, index)[0] for index in range(80)} == {1, 5, 6}
    check_clip(dataset.clip(0))
    alone = tiny(root, frames=3, truth="GT", annotations=())
    assert {place(alone, index)[0] for index in range(200)} == set(range(10))
    with pytest.raises(ValueError, match=r"frames=5 is too long: .* 0 to 11 .*truth='GT'"):
        tiny(root, frames=5, truth="GT")


def test_ctc_videos_without_annotations_needs_no_truth(tiny_ctc, tmp_path):
    root = shutil.copytree(tiny_ctc, tmp_path / "copy")
    shutil.rmtree(root / "01_GT")
    clip = tiny(root, annotations=(), truth=None).clip(0)
    assert set(clip) == {"video", "index", "source"}


def test_the_scale_is_guessed_or_taken_from_the_user(tiny_ctc):
    assert tiny(tiny_ctc).scale == CameraScale(32768, 36863)
    half = tiny(tiny_ctc, scale=CameraScale(32768, 32768 + 8190))
    torch.testing.assert_close(half.clip(0)["video"] * 2, tiny(tiny_ctc).clip(0)["video"])


def test_the_transform_moves_video_and_masks_alike(tiny_ctc):
    plain, flipped = tiny(tiny_ctc), tiny(tiny_ctc, transform=v2.RandomHorizontalFlip(p=1))
    before, after = plain.clip(0), flipped.clip(0)
    for key in ("video", "masks"):
        assert torch.equal(after[key], before[key].flip(-1))
        assert type(after[key]) is torch.Tensor
    assert torch.equal(after["tracks"], before["tracks"])


def test_ctc_videos_refuses_too_many_nuclei_for_its_tables(tiny_ctc):
    with pytest.raises(TooManyNucleiError, match=r"max_cells=2 is too small .*holds 6 nuclei"):
        tiny(tiny_ctc, frames=12, size=(128, 160), max_cells=2).clip(0)


@pytest.mark.parametrize("name", ["flow", "stages"])
def test_ctc_videos_refuses_annotations_that_a_real_video_has_not(tiny_ctc, name):
    with pytest.raises(ValueError, match=rf"out of \('masks', .*got '{name}': it has no truth"):
        tiny(tiny_ctc, annotations=("masks", name))


@pytest.mark.parametrize("index", [3, -4, 10**30])
def test_indexing_refuses_an_index_past_the_end(tiny_ctc, index):
    with pytest.raises(IndexError, match=f"index must be from -3 to 2, got {index}"):
        tiny(tiny_ctc, length=3)[index]


def test_clip_refuses_a_negative_index(tiny_ctc):
    with pytest.raises(IndexError, match="index must be 0 or more, got -1"):
        tiny(tiny_ctc).clip(-1)


@pytest.mark.parametrize("index", [1.0, "1", None, True, slice(2)])
def test_indexing_refuses_what_is_no_whole_number(tiny_ctc, index):
    with pytest.raises(TypeError, match="index must be a whole number, got"):
        tiny(tiny_ctc)[index]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 0}, "frames must be 1 or more, got 0"),
        ({"frames": 13}, "frames must be at most the 12 frames in use, got 13"),
        ({"size": (64, 0)}, "size must be 1 or more, got 0"),
        ({"size": (64, 64, 64)}, r"two numbers, .*got \(64, 64, 64\)"),
        ({"size": (129, 64)}, r"\(128, 160\) pixels .*border of 0 .*got \(129, 64\)"),
        ({"size": (79, 64), "border": 25}, r"\(78, 110\) pixels .*border of 25"),
        ({"border": 80}, r"field of interest of \(-32, 0\)"),
        ({"border": -1}, "border must be 0 or more, got -1"),
        ({"length": 0}, "length must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"max_cells": 0}, "max_cells must be 1 or more, got 0"),
        ({"annotations": ("mask",)}, "annotations must be out of .*got 'mask'"),
        ({"truth": None}, r"annotations must be \(\) when truth is None"),
        ({"start": 5, "stop": 5}, "got start=5 and stop=5"),
        ({"stop": 13}, "stop <= 12 .*got start=0 and stop=13"),
        ({"start": -1}, "start must be 0 or more, got -1"),
    ],
)
def test_ctc_videos_refuses_numbers_out_of_range(tiny_ctc, changes, words):
    with pytest.raises(ValueError, match=words):
        tiny(tiny_ctc, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": True}, "frames must be a whole number, got True"),
        ({"frames": 8.0}, r"frames must be a whole number, got 8\.0"),
        ({"size": 64.0}, r"size must be \(height, width\) in pixels, got 64\.0"),
        ({"size": "64"}, "size must be .*got '64'"),
        ({"size": (64, 6.5)}, r"size must be a whole number, got 6\.5"),
        ({"length": "3"}, "length must be a whole number, got '3'"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"max_cells": 1.5}, r"max_cells must be a whole number, got 1\.5"),
        ({"annotations": "masks"}, "got the string 'masks'"),
        ({"scale": (0, 255)}, r"scale must be a CameraScale or None, got \(0, 255\)"),
        ({"transform": 3}, "transform must be a callable .*got 3"),
    ],
)
def test_ctc_videos_refuses_the_wrong_type(tiny_ctc, changes, words):
    with pytest.raises(TypeError, match=words):
        tiny(tiny_ctc, **changes)


def test_set_epoch_refuses_a_negative_number(tiny_ctc):
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        tiny(tiny_ctc).set_epoch(-1)


def test_the_real_video_yields_clips_that_hold_together(hela):
    dataset = CTCVideos(hela, annotations=EVERY, size=(128, 192))
    assert len(dataset) == -(-92 * 650 * 1050 // (8 * 128 * 192))
    for index in range(2):
        check_clip(dataset.clip(index))


def test_masks_of_more_than_65535_ids_survive_the_cache(tiny_ctc, tmp_path):
    root = shutil.copytree(tiny_ctc, tmp_path / "copy")
    for path in (root / "01_GT/SEG").iterdir():
        mask = tifffile.imread(path).astype(np.uint32)
        tifffile.imwrite(path, np.where(mask == 6, np.uint32(70_000), mask))
    shutil.rmtree(root / "01_GT/TRA")
    whole = {"frames": 12, "size": (128, 160)}
    clip = tiny(root, truth="GT", annotations=("masks",), **whole).clip(0)
    check_clip(clip)
    assert torch.equal(clip["masks"] > 0, tiny(tiny_ctc, **whole).clip(0)["masks"] > 0)
