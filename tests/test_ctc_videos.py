"""Clips of a real video: windows, annotations, cache, arguments."""

import itertools
import pickle
import shutil
import threading

import numpy as np
import pytest
import tifffile
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from bvdm_data.clip import CameraScale, TooManyNucleiError
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.windows import tile_starts

EVERY = ("masks", "tracks", "boxes", "centroids")
WHOLE = {"frames": 12, "size": (128, 160)}
HELA_SCALE = CameraScale(32768, 36863)


def tiny(root, **changes):
    arguments = {"frames": 4, "size": (64, 80), "max_cells": 16, "border": 0, "annotations": EVERY}
    return CTCVideos(root, **arguments | changes)


def list_windows(videos):
    return [videos.window(index) for index in range(len(videos))]


def list_places(videos, count):
    """Return first frame, row and column of windows that stand still."""
    windows = [videos.window(index) for index in range(count)]
    assert all(len(set(window.corners)) == 1 for window in windows)
    return [(window.frames[0], *window.corners[0]) for window in windows]


def are_same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9)) for key in one
    )


def as_grey(counts):
    return (counts.astype(np.float32) - 32768) / 4095


@pytest.fixture
def copy(tiny_ctc, tmp_path):
    """Return a copy of the tiny data set that a test may change."""
    return shutil.copytree(tiny_ctc, tmp_path / "copy")


# Clips


def test_clips_are_consistent(tiny_ctc):
    videos = tiny(tiny_ctc, annotations="all")
    for index in range(10):
        clip = videos.clip(index)
        check_clip(clip)
        assert (clip["index"], clip["source"]) == (index, 0)
        inside = clip["masks"] > 0
        assert (clip["video"][:, 0][inside] > 0.3).all()
        assert (clip["video"][:, 0][~inside] < 0.2).all()
    assert {key: (tuple(value.shape), value.dtype) for key, value in clip.items()} == {
        "video": ((4, 1, 64, 80), torch.float32),
        "masks": ((4, 64, 80), torch.int32),
        "tracks": ((16, 4), torch.int32),
        "boxes": ((16, 4, 4), torch.float32),
        "centroids": ((16, 4, 2), torch.float32),
        "index": ((), torch.int64),
        "source": ((), torch.int8),
    }


def test_whole_window_is_the_video(tiny_ctc, tiny_video):
    video, masks, tracks = tiny_video
    clip = tiny(tiny_ctc, **WHOLE).clip(5)
    np.testing.assert_array_equal(clip["video"][:, 0], as_grey(video).clip(0, 1))
    # Ids are given by first frame: nucleus 6 comes before the daughters 4 and 5 of 2.
    assert clip["tracks"][:6, 1:].tolist() == tracks[[0, 1, 2, 5, 3, 4], 1:].tolist()
    np.testing.assert_array_equal(clip["masks"], np.array([0, 1, 2, 3, 5, 6, 4])[masks])


def test_clip_depends_on_seed_epoch_index(tiny_ctc):
    videos, other = tiny(tiny_ctc, seed=1), tiny(tiny_ctc, seed=1)
    third = videos.clip(3)
    other.clip(9)
    assert are_same(third, other.clip(3))
    assert not torch.equal(third["video"], videos.clip(4)["video"])
    assert not torch.equal(third["video"], tiny(tiny_ctc, seed=2).clip(3)["video"])
    other.set_epoch(1)
    assert not torch.equal(third["video"], other.clip(3)["video"])
    other.set_epoch(0)
    assert are_same(third, other.clip(3))


def test_workers_follow_epochs(tiny_ctc):
    videos = tiny(tiny_ctc, length=4)
    loader = DataLoader(videos, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 2):
        videos.set_epoch(epoch)
        clips = list(loader)
        assert all(are_same(clip, videos[index]) for index, clip in enumerate(clips))


def test_length_holds_the_field_once(tiny_ctc):
    assert len(tiny(tiny_ctc, frames=6, size=64)) == 10  # 12 * 128 * 160 / (6 * 64 * 64)
    assert len(tiny(tiny_ctc, frames=5, size=64)) == 12
    assert len(tiny(tiny_ctc, size=(60, 70), border=None, stop=4)) == 3  # 78 * 110 / (60 * 70)
    videos = tiny(tiny_ctc, length=3)
    assert [int(clip["index"]) for clip in videos] == [0, 1, 2]
    assert videos.clip(100)["index"] == 100
    for index in (1, -2, np.int64(1), np.uint8(1), torch.tensor(1)):
        assert are_same(videos[index], videos.clip(1))


def test_scale_is_guessed_or_given(tiny_ctc):
    assert tiny(tiny_ctc).scale == HELA_SCALE
    half = tiny(tiny_ctc, scale=CameraScale(32768, 32768 + 8190))
    torch.testing.assert_close(half.clip(0)["video"] * 2, tiny(tiny_ctc).clip(0)["video"])


def test_transform_moves_video_and_masks(tiny_ctc):
    plain = tiny(tiny_ctc).clip(0)
    flipped = tiny(tiny_ctc, transform=v2.RandomHorizontalFlip(p=1)).clip(0)
    for key in ("video", "masks"):
        assert torch.equal(flipped[key], plain[key].flip(-1))
        assert type(flipped[key]) is torch.Tensor
    assert torch.equal(flipped["tracks"], plain["tracks"])


def test_too_many_nuclei_name_the_clip(tiny_ctc):
    videos = tiny(tiny_ctc, **WHOLE, max_cells=2)
    videos.set_epoch(4)
    words = r"max_cells=2 is too small .*6 nuclei.*clip 3 of epoch 4 of CTCVideos.*clip\(3\)"
    with pytest.raises(TooManyNucleiError, match=words):
        videos.clip(3)


def test_rows_hold_every_window(tiny_ctc, tmp_path):
    for windows in ({}, WHOLE, {"windows": "grid"}, {"frames": 1}, {"annotations": ("masks",)}):
        videos = tiny(tiny_ctc, max_cells=None, **windows)
        for number in range(30):
            clip = videos.clip(number)
            assert int(clip["masks"].max()) <= videos.max_cells < 40
    # A nucleus that comes back after every frame needs a row each time.
    masks = np.zeros((5, 20, 40), np.uint16)
    masks[::2, 5:12, 5:12] = masks[1::2, 5:12, 25:32] = 1
    write_sequence(tmp_path, "01", masks, masks, np.array([[1, 0, 4, 0]]))
    shutil.copytree(tmp_path / "01_GT" / "SEG", tmp_path / "01_ST" / "SEG")
    for truth in ("TRA", "ST"):
        how = {"frames": 5, "size": 20, "border": 0, "windows": "grid"}
        videos = CTCVideos(tmp_path, truth=truth, **how)
        assert int(videos.clip(0)["masks"].max()) == videos.max_cells == 3


# Random windows


def test_random_windows_reach_everything(tiny_ctc):
    places = list_places(tiny(tiny_ctc, size=(120, 150), border=2), 2000)
    first, top, left = (sorted({place[axis] for place in places}) for axis in range(3))
    assert (first, top, left) == (list(range(9)), list(range(2, 7)), list(range(2, 9)))
    videos = tiny(tiny_ctc, border=None, size=(77, 109), start=3, stop=8)
    assert videos.border == 25
    assert {*list_places(videos, 90)} == {*itertools.product((3, 4), (25, 26), (25, 26))}


def test_windows_avoid_frames_without_masks(copy):
    for number in (0, 4, 9):
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    videos = tiny(copy, frames=3, truth="GT")
    assert {place[0] for place in list_places(videos, 80)} == {1, 5, 6}
    check_clip(videos.clip(0))
    alone = tiny(copy, frames=3, truth="GT", annotations=())
    assert {place[0] for place in list_places(alone, 200)} == set(range(10))
    with pytest.raises(ValueError, match=r"frames=5 is too long: .* 0 to 11 .*truth='GT'"):
        tiny(copy, frames=5, truth="GT")


def test_stride_leaves_frames_out(tiny_ctc, tiny_video):
    videos = tiny(tiny_ctc, stride=3, size=(128, 160))
    assert {place[0] for place in list_places(videos, 60)} == {0, 1, 2}
    clip, window = videos.clip(0), videos.window(0)
    assert window.frames == tuple(range(window.frames[0], 12, 3))
    np.testing.assert_array_equal(clip["video"][:, 0], as_grey(tiny_video[0][list(window.frames)]))
    check_clip(clip)


def test_hidden_generation_is_jumped_over(tiny_video, tmp_path):
    video, masks, tracks = tiny_video
    # Nucleus 1 divides after frame 3; its daughter 7 after frame 4 again, into 8 and 9.
    masks, tracks = masks.copy(), tracks.copy()
    late = masks[5:] == 1
    masks[4][masks[4] == 1] = 7
    columns = np.arange(160) < 57
    masks[5:][late & columns] = 8
    masks[5:][late & ~columns] = 9
    tracks[0] = 1, 0, 3, 0
    tracks = np.vstack([tracks, [[7, 4, 4, 1], [8, 5, 11, 7], [9, 5, 11, 7]]])
    write_sequence(tmp_path, "01", video, masks, tracks)
    clip = tiny(tmp_path, frames=2, stride=3, start=3, stop=7, size=(128, 160)).clip(0)
    check_clip(clip)
    mother = int(clip["masks"][0, 42, 53])
    daughters = clip["tracks"][clip["tracks"][:, 3] == mother, 0].tolist()
    expected = clip["masks"][1][torch.from_numpy(np.isin(masks[6], (8, 9)))].unique().tolist()
    assert daughters == expected
    assert len(daughters) == 2


# A grid


def count_shown(videos):
    """Return how often each pixel of each frame of the tiny video is shown."""
    shown = np.zeros((12, 128, 160), int)
    for window in list_windows(videos):
        assert len(window.frames) == videos.frames
        for frame, (top, left) in zip(window.frames, window.corners, strict=True):
            shown[frame, top : top + videos.size[0], left : left + videos.size[1]] += 1
    return shown


@pytest.mark.parametrize(
    ("border", "stride", "overlap"),
    [(0, 1, (1, 20, 3)), (7, 2, (2, 48, 60)), (0, 3, (0, 0, 0)), (7, 3, (1, 20, 3))],
)
def test_grid_covers_exactly_the_field(tiny_ctc, border, stride, overlap):
    videos = tiny(tiny_ctc, windows="grid", border=border, stride=stride, overlap=overlap, frames=3)
    shown = count_shown(videos)
    inside = np.zeros_like(shown)
    inside[:, border : 128 - border, border : 160 - border] = 1
    assert ((shown > 0) == inside).all()


def test_fitting_grid_shows_pixels_once(tiny_ctc):
    videos = tiny(tiny_ctc, windows="grid", size=(64, 40), seed=1)
    assert len(videos) == 3 * 2 * 4
    assert (count_shown(videos) == 1).all()
    places = list_places(videos, 24)
    assert places == sorted(places)
    assert [int(clip["index"]) for clip in videos] == list(range(24))
    clip = videos.clip(5)
    videos.set_epoch(3)
    again = videos.clip(5 + 24)
    for other in (videos.clip(5), tiny(tiny_ctc, windows="grid", size=(64, 40), seed=2).clip(5)):
        assert are_same(clip, other)
    assert are_same(clip | {"index": again["index"]}, again)


def test_grid_clips_make_up_the_video(tiny_ctc, tiny_video):
    videos = tiny(tiny_ctc, windows="grid", size=(50, 70), overlap=(1, 5, 5))
    video = np.full((12, 128, 160), np.nan, np.float32)
    for clip, window in zip(videos, list_windows(videos), strict=True):
        check_clip(clip)
        images = clip["video"][:, 0].numpy()
        for frame, (top, left), image in zip(window.frames, window.corners, images, strict=True):
            video[frame, top : top + 50, left : left + 70] = image
    np.testing.assert_array_equal(video, as_grey(tiny_video[0]))


def test_grid_covers_frames_with_masks(copy):
    for number in (4, 5):
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    grid = {"windows": "grid", "truth": "GT", "size": (128, 160)}
    assert [window.frames for window in list_windows(tiny(copy, **grid, frames=2))] == [
        (0, 1), (2, 3), (6, 7), (8, 9), (10, 11),
    ]  # fmt: skip
    assert len(tiny(copy, **grid, annotations=())) == 3
    (copy / "01_GT/SEG/man_seg001.tif").unlink()
    words = r"must show every frame, but 1 .*first is frame 0\).*fewer"
    with pytest.raises(ValueError, match=words):
        tiny(copy, **grid, frames=2)
    with pytest.raises(ValueError, match=r"but 8 of them \(the first is frame 1\)"):
        tiny(copy, windows="grid", frames=3, stride=5, stop=11, truth="TRA", size=8)
    for number in {0, 3, 6, 8, 10, 11}:
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    few = tiny(copy, **grid, frames=1)
    assert [window.frames for window in list_windows(few)] == [(2,), (7,), (9,)]


def test_tiles_cover_with_overlap():
    for size, total in itertools.product(range(1, 9), range(1, 20)):
        for overlap in range(size if size <= total else 0):
            starts = tile_starts(total, size, overlap)
            assert {y for start in starts for y in range(start, start + size)} == {*range(total)}
            assert all(0 < b - a <= size - overlap for a, b in itertools.pairwise(starts))


# Tracks and lineages


def test_tracks_follow_every_nucleus(tiny_ctc, tiny_video):
    videos = tiny(tiny_ctc, windows="tracks", frames=None, size=48)
    assert (videos.frames, len(videos)) == (12, 6)
    for index, (identity, first, last, _) in enumerate(tiny_video[2].tolist()):
        clip, window = videos.clip(index), videos.window(index)
        check_clip(clip)
        assert window.track == identity
        assert window.frames == tuple(range(first, 12))
        assert clip["tracks"][0].tolist() == [1, 0, last - first, 0]
        for mask, frame, (y, x) in zip(clip["masks"], window.frames, window.corners, strict=False):
            expected = tiny_video[1][frame, y : y + 48, x : x + 48] == identity
            np.testing.assert_array_equal(mask == 1, expected)
        assert not clip["video"][len(window.frames) :].any()
        assert not clip["masks"][len(window.frames) :].any()
    (batch,) = DataLoader(videos, batch_size=6, num_workers=2)
    assert (batch["tracks"][:, 0, 2] + 1).tolist() == [12, 6, 8, 6, 6, 8]


def test_track_window_centres_its_nucleus(tiny_ctc):
    videos = tiny(tiny_ctc, windows="tracks", frames=None, size=41)
    centroids = videos.clip(0)["centroids"][0]  # nucleus 1 never comes near the edge
    assert (centroids - 20).abs().max() <= 1
    assert len(set(videos.window(0).corners)) == 12
    # Nucleus 2 divides: its window stays where it was, and shows its daughters.
    assert len(set(videos.window(1).corners[5:])) == 1
    assert (videos.clip(1)["tracks"][:, 3] == 1).sum() == 2


def test_long_track_has_several_clips(tiny_ctc):
    videos = tiny(tiny_ctc, windows="tracks", frames=5, size=48)
    frames = {}
    for clip, window in zip(videos, list_windows(videos), strict=True):
        check_clip(clip)
        assert clip["masks"][0].eq(1).any()
        frames.setdefault(window.track, []).append(window.frames)
    assert frames[1] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (10, 11)]
    assert frames[3] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]  # which has gone after frame 7
    shared = tiny(tiny_ctc, windows="tracks", frames=5, size=48, overlap=(1, 0, 0))
    assert [shared.window(index).frames[0] for index in range(3)] == [0, 4, 8]


def test_lineage_window_holds_the_family(tiny_ctc, tiny_video):
    videos = tiny(tiny_ctc, windows="lineages", frames=None, size=64)
    assert [window.track for window in list_windows(videos)] == [1, 2, 3, 6]
    clip = videos.clip(1)
    check_clip(clip)
    assert clip["tracks"][0].tolist() == [1, 0, 5, 0]
    daughters = clip["tracks"][clip["tracks"][:, 3] == 1]
    assert daughters[:, 1:3].tolist() == [[6, 11], [6, 11]]
    for frame in range(12):
        family = np.isin(tiny_video[1][frame], (2, 4, 5))
        assert (clip["masks"][frame] > 0).sum() >= family.sum()
    assert len(set(videos.window(1).corners)) > 3
    every_other = tiny(tiny_ctc, windows="lineages", frames=None, size=64, stride=2)
    assert (every_other.frames, every_other.window(1).frames) == (6, (0, 2, 4, 6, 8, 10))
    check_clip(every_other.clip(1))
    assert (every_other.clip(1)["tracks"][:, 3] == 1).sum() == 2


def test_wide_lineage_follows_first_daughter(tiny_ctc):
    videos = tiny(tiny_ctc, windows="lineages", frames=6, size=24)
    starts = [(window.track, window.frames[0]) for window in list_windows(videos)]
    centroids = videos.clip(starts.index((4, 6)))["centroids"][0]
    assert (centroids - 11.5).abs().max() <= 1


def test_tracks_begin_where_nuclei_show(tiny_ctc, copy):
    videos = tiny(tiny_ctc, windows="tracks", frames=None, size=30, border=20)
    first = {window.track: window.frames[0] for window in list_windows(videos)}
    assert first[6] == 11  # comes from below, its upper edge in row 105 in frame 11
    assert all(clip["masks"][0].eq(1).any() for clip in videos)
    (copy / "01_GT/SEG/man_seg004.tif").unlink()
    videos = tiny(copy, windows="tracks", truth="GT", frames=None, size=48)
    assert [videos.window(index).frames for index in (0, 1)] == [(0, 1, 2, 3), (*range(5, 12),)]
    clip = tiny(tiny_ctc, windows="tracks", size=48, annotations=()).clip(0)
    assert clip.keys() == {"video", "index", "source"}


def test_tracks_need_visible_tracked_masks(copy):
    with pytest.raises(ValueError, match=r"windows='tracks' needs .*no masks \(truth=None\)"):
        tiny(copy, windows="tracks", annotations=(), truth=None)
    for path in (copy / "01_GT/SEG").iterdir():
        tifffile.imwrite(path, np.zeros((128, 160), np.uint16))
    with pytest.raises(ValueError, match=r"no track of man_track.txt has a mask .*border"):
        tiny(copy, windows="tracks", truth="GT")
    (copy / "01_GT/TRA/man_track.txt").unlink()
    with pytest.raises(ValueError, match=r"windows='lineages' needs .*no man_track.txt; give"):
        tiny(copy, windows="lineages", annotations=("masks",))


# The cache, and what is decoded


def test_cache_changes_no_clip(tiny_ctc):
    before = [tiny(tiny_ctc).clip(index) for index in range(3)]
    for limit in (0, 1, 100_000, 10**9):
        videos = tiny(tiny_ctc, cache_bytes=limit)
        assert all(are_same(one, videos.clip(index)) for index, one in enumerate(before))
        assert videos._cache.nbytes <= limit


def test_cache_keeps_frames_used_last(tiny_ctc):
    both = 128 * 160 * (2 + 2)
    videos = tiny(tiny_ctc, cache_bytes=4 * both, windows="grid", size=(128, 160))
    for index in range(3):
        videos.clip(index)
    assert {number for _, number in videos._cache._kept} == {8, 9, 10, 11}
    assert videos._cache.nbytes == 4 * both


def test_kept_frames_are_not_reread(copy):
    videos = tiny(copy, windows="grid", size=(128, 160))
    before = videos.clip(0)
    for number in range(4):
        (copy / f"01/t{number:03d}.tif").unlink()
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    assert are_same(videos.clip(0), before)
    packed = pickle.dumps(videos)
    assert len(packed) < 10_000
    with pytest.raises(FileNotFoundError):
        pickle.loads(packed).clip(0)


def test_only_one_header_is_read(copy):
    for number in range(12):
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").write_bytes(b"")
        if number:
            (copy / f"01/t{number:03d}.tif").write_bytes(b"")
    tiny(copy, scale=HELA_SCALE, truth="GT")


@pytest.mark.parametrize("limit", [0, 10**9])
def test_only_shown_strips_are_decoded(copy, tiny_video, limit):
    for number in range(12):
        path = copy / f"01/t{number:03d}.tif"
        tifffile.imwrite(path, tiny_video[0][number], rowsperstrip=1, compression="lzw")
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            places = [(page.dataoffsets[row], page.databytecounts[row]) for row in range(64, 128)]
        data = bytearray(path.read_bytes())
        for offset, count in places:
            data[offset : offset + count] = b"\xff" * count
        path.write_bytes(bytes(data))
    videos = tiny(copy, windows="grid", scale=HELA_SCALE, cache_bytes=limit, size=(64, 160))
    clip = videos.clip(0)
    np.testing.assert_array_equal(clip["video"][:, 0], as_grey(tiny_video[0][:4, :64]))
    with pytest.raises(ValueError, match=r"t000.tif is not a TIFF file or a damaged one"):
        videos.clip(1)
    assert are_same(videos.clip(0), clip)


def test_threads_may_share_videos(tiny_ctc):
    videos, alone = tiny(tiny_ctc, cache_bytes=200_000), tiny(tiny_ctc)
    made = {}

    def work(indices):
        made.update((index, videos.clip(index)) for index in indices)

    threads = [threading.Thread(target=work, args=(range(n, 12, 3),)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(are_same(made[index], alone.clip(index)) for index in range(12))


# Other truths


def test_8_bit_tracking_truth_is_read(tmp_path, tiny_video):
    video, masks, tracks = tiny_video
    (tmp_path / "02").mkdir()
    (tmp_path / "02_GT/TRA").mkdir(parents=True)
    grey = ((video - 32768) // 16).astype(np.uint8)
    for number in range(12):
        tifffile.imwrite(tmp_path / f"02/t{number:04d}.tif", grey[number])
        marker = masks[number].astype(np.uint16)
        tifffile.imwrite(tmp_path / f"02_GT/TRA/man_track{number:04d}.tif", marker)
    table = tmp_path / "02_GT/TRA/man_track.txt"
    np.savetxt(table, tracks, fmt="%d")
    videos = tiny(tmp_path, sequence="02", **WHOLE)
    assert videos.scale == CameraScale(0, 255)
    clip = videos.clip(0)
    np.testing.assert_array_equal(clip["video"][:, 0], grey.astype(np.float32) / 255)
    # Labels of the tracking truth are tracks, also without their table; parents are not known.
    table.unlink()
    other = tiny(tmp_path, sequence="02", **WHOLE).clip(0)
    assert not other["tracks"][:, 3].any()
    for each in (clip, other):
        check_clip(each)
        assert each["tracks"][:, 0].max() == 6


def test_silver_truth_alone_has_no_tracks(copy):
    (copy / "01_GT").rename(copy / "01_ST")
    shutil.rmtree(copy / "01_ST/TRA")
    words = r"must be without 'tracks' .*no man_track.txt, .*truth='ST'.*frames=1"
    with pytest.raises(ValueError, match=words):
        tiny(copy)
    for changes in ({"annotations": ("masks", "boxes", "centroids")}, {"frames": 1}):
        check_clip(tiny(copy, **changes).clip(0))


def test_video_without_truth_is_grey(copy):
    shutil.rmtree(copy / "01_GT")
    for changes in ({}, {"windows": "grid"}, {"truth": None}):
        clip = tiny(copy, annotations=(), **changes).clip(1)
        assert clip.keys() == {"video", "index", "source"}


def test_large_labels_survive_the_cache(copy, tiny_ctc):
    for path in (copy / "01_GT/SEG").iterdir():
        mask = tifffile.imread(path).astype(np.uint32)
        tifffile.imwrite(path, np.where(mask == 6, np.uint32(70_000), mask))
    shutil.rmtree(copy / "01_GT/TRA")
    clip = tiny(copy, truth="GT", annotations=("masks",), **WHOLE).clip(0)
    check_clip(clip)
    assert torch.equal(clip["masks"] > 0, tiny(tiny_ctc, **WHOLE).clip(0)["masks"] > 0)


# Arguments; tests/test_bad_input.py has more


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"windows": "all"}, ValueError, r"windows must be one of \('random', .*got 'all'"),
        ({"stride": 0}, ValueError, "stride must be 1 or more, got 0"),
        ({"stride": 4}, ValueError, "at most the 3 frames in use with stride=4, got 4"),
        ({"overlap": 3}, TypeError, r"overlap must be \(frames, rows, columns\), got 3"),
        ({"overlap": (1, 1)}, TypeError, r"got \(1, 1\)"),
        ({"overlap": (0, 4, 0)}, ValueError, "overlap must be 0 .*windows='random', got"),
        ({"overlap": (0, 4, 0), "windows": "tracks"}, ValueError, "0 in rows.*'tracks', got"),
        ({"overlap": (4, 0, 0), "windows": "grid"}, ValueError, r"\(4, 64, 80\), got \(4, 0, 0\)"),
        ({"overlap": (0, -1, 0), "windows": "grid"}, ValueError, "0 or more, got -1"),
        ({"frames": None}, TypeError, "got None, with windows='random'; None is for"),
        ({"cache_bytes": -1}, ValueError, "cache_bytes must be 0 or more, got -1"),
        ({"border": 80}, ValueError, r"field of interest of \(-32, 0\)"),
        ({"border": -1}, ValueError, "border must be 0 or more, got -1"),
        ({"start": 5, "stop": 5}, ValueError, "got start=5 and stop=5"),
        ({"stop": 13}, ValueError, "stop <= 12 .*got start=0 and stop=13"),
        ({"start": -1}, ValueError, "start must be 0 or more, got -1"),
    ],
)
def test_impossible_windows_are_refused(tiny_ctc, changes, error, words):
    with pytest.raises(error, match=words):
        tiny(tiny_ctc, **changes)


def test_wrong_index_or_epoch_is_refused(tiny_ctc):
    videos = tiny(tiny_ctc, length=3)
    with pytest.raises(IndexError, match="index must be from -3 to 2, got -4"):
        videos[-4]
    with pytest.raises(IndexError, match="index must be 0 or more, got -1"):
        videos.clip(-1)
    with pytest.raises(TypeError, match="index must be a whole number, got"):
        videos[slice(2)]
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        videos.set_epoch(-1)


# The real video


def test_real_clips_are_consistent(hela):
    videos = CTCVideos(hela, annotations=EVERY, size=(128, 192))
    assert len(videos) == -(-92 * 650 * 1050 // (8 * 128 * 192))
    check_clip(videos.clip(0))
    videos = CTCVideos(hela, windows="lineages", frames=None, size=256, annotations=EVERY, stop=30)
    assert videos.frames == 30
    mothers = set(videos.source.tracks[:, 3].tolist())
    family = [window.track in mothers for window in list_windows(videos)].index(True)
    for index in (family, len(videos) - 1):
        clip = videos.clip(index)
        check_clip(clip)
        assert clip["masks"][0].eq(1).any()
