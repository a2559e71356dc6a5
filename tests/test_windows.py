import itertools
import pickle
import shutil
import threading

import numpy as np
import pytest
import tifffile
import torch
from torch.utils.data import DataLoader

from bvdm_data.clip import CameraScale, TooManyNucleiError
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets import ctc
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.tiff import LazyTiff
from bvdm_data.datasets.windows import tile_starts

EVERY = ("masks", "tracks", "boxes", "centroids")


def tiny(root, **changes):
    arguments = {"frames": 4, "size": (64, 80), "max_cells": 16, "border": 0, "annotations": EVERY}
    return CTCVideos(root, **arguments | changes)


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9)) for key in one
    )


def as_grey(counts):
    return (counts.astype(np.float32) - 32768) / 4095


@pytest.fixture
def copy(tiny_ctc, tmp_path):
    """Return a copy of the tiny data set that a test may change."""
    return shutil.copytree(tiny_ctc, tmp_path / "copy")


# A grid


def shown_by(dataset):
    """Return how often each pixel of each frame of the tiny video is shown."""
    shown = np.zeros((12, 128, 160), int)
    for index in range(len(dataset)):
        window = dataset.window(index)
        assert len(window.frames) == dataset.frames
        for frame, (top, left) in zip(window.frames, window.corners, strict=True):
            shown[frame, top : top + dataset.size[0], left : left + dataset.size[1]] += 1
    return shown


@pytest.mark.parametrize("border", [0, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("overlap", [(0, 0, 0), (1, 20, 3), (2, 48, 60)])
def test_a_grid_shows_every_pixel_of_the_field_and_none_beyond(tiny_ctc, border, stride, overlap):
    dataset = tiny(
        tiny_ctc, windows="grid", border=border, stride=stride, overlap=overlap, frames=3
    )
    shown = shown_by(dataset)
    inside = np.zeros_like(shown)
    inside[:, border : 128 - border, border : 160 - border] = 1
    assert ((shown > 0) == inside).all()


def test_a_grid_that_fits_shows_every_pixel_once_and_in_order(tiny_ctc):
    dataset = tiny(tiny_ctc, windows="grid", size=(64, 40))
    assert len(dataset) == 3 * 2 * 4
    assert (shown_by(dataset) == 1).all()
    places = [(dataset.window(i).frames[0], *dataset.window(i).corners[0]) for i in range(24)]
    assert places == sorted(places)
    assert [int(clip["index"]) for clip in dataset] == list(range(24))


def test_the_clips_of_a_grid_are_sewn_together_to_the_video(tiny_ctc, tiny_video):
    dataset = tiny(tiny_ctc, windows="grid", size=(50, 70), overlap=(1, 5, 5))
    sewn = np.full((12, 128, 160), np.nan, np.float32)
    for index, clip in enumerate(dataset):
        check_clip(clip)
        window = dataset.window(index)
        for frame, (top, left), image in zip(
            window.frames, window.corners, clip["video"][:, 0].numpy(), strict=True
        ):
            sewn[frame, top : top + 50, left : left + 70] = image
    np.testing.assert_array_equal(sewn, as_grey(tiny_video[0]))


def test_a_grid_depends_on_neither_epoch_nor_seed_and_begins_anew_after_its_end(tiny_ctc):
    dataset = tiny(tiny_ctc, windows="grid", seed=1)
    clip = dataset.clip(5)
    dataset.set_epoch(3)
    assert same(clip, dataset.clip(5))
    assert same(clip, tiny(tiny_ctc, windows="grid", seed=2).clip(5))
    again = dataset.clip(5 + len(dataset))
    assert same(clip | {"index": again["index"]}, again)


def test_a_grid_covers_what_there_are_masks_for(copy):
    for number in (4, 5):
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    dataset = tiny(copy, windows="grid", truth="GT", frames=2, size=(128, 160))
    assert [dataset.window(i).frames for i in range(len(dataset))] == [
        (0, 1), (2, 3), (6, 7), (8, 9), (10, 11),
    ]  # fmt: skip
    every = tiny(copy, windows="grid", annotations=(), frames=4, size=(128, 160))
    assert len(every) == 3


def test_a_grid_that_would_leave_out_a_frame_is_refused(copy):
    (copy / "01_GT/SEG/man_seg001.tif").unlink()
    with pytest.raises(
        ValueError, match=r"must show every frame, but 1 .*first is frame 0\).*fewer"
    ):
        tiny(copy, windows="grid", truth="GT", frames=2)
    with pytest.raises(ValueError, match=r"but 8 of them \(the first is frame 1\)"):
        tiny(copy, windows="grid", frames=3, stride=5, stop=11, truth="TRA", size=8, start=0)
    assert len(tiny(copy, windows="grid", truth="GT", frames=1, size=(128, 160))) == 11


@pytest.mark.parametrize("size", range(1, 9))
def test_steps_cover_the_whole_with_the_overlap_asked_for(size):
    for total, overlap in itertools.product(range(size, 20), range(size)):
        found = tile_starts(total, size, overlap)
        assert {one for begin in found for one in range(begin, begin + size)} == set(range(total))
        assert all(0 < b - a <= size - overlap for a, b in itertools.pairwise(found))


# A stride


def test_a_stride_leaves_frames_out(tiny_ctc, tiny_video):
    dataset = tiny(tiny_ctc, stride=3, size=(128, 160))
    starts = {dataset.window(index).frames[0] for index in range(60)}
    assert starts == {0, 1, 2}
    clip, window = dataset.clip(0), dataset.window(0)
    assert window.frames == tuple(range(window.frames[0], 12, 3))
    np.testing.assert_array_equal(clip["video"][:, 0], as_grey(tiny_video[0][list(window.frames)]))
    check_clip(clip)


def test_a_generation_between_two_frames_is_jumped_over(tiny_video, tmp_path):
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
    whole = {"frames": 2, "stride": 3, "start": 3, "stop": 7, "size": (128, 160)}
    clip = tiny(tmp_path, **whole).clip(0)
    check_clip(clip)
    mother = int(clip["masks"][0, 42, 53])
    daughters = clip["tracks"][clip["tracks"][:, 3] == mother, 0].tolist()
    assert (
        daughters == clip["masks"][1][torch.from_numpy(np.isin(masks[6], (8, 9)))].unique().tolist()
    )
    assert len(daughters) == 2


# Tracks and lineages


def test_tracks_gives_every_nucleus_a_clip_from_its_first_frame_to_its_last(tiny_ctc, tiny_video):
    dataset = tiny(tiny_ctc, windows="tracks", frames=None, size=48)
    assert dataset.frames == 12
    assert len(dataset) == 6
    for index, (identity, first, last, _) in enumerate(tiny_video[2].tolist()):
        clip, window = dataset.clip(index), dataset.window(index)
        check_clip(clip)
        assert window.track == identity
        assert window.frames == tuple(range(first, 12))
        assert clip["tracks"][0].tolist() == [1, 0, last - first, 0]
        for place, (frame, (top, left)) in enumerate(
            zip(window.frames, window.corners, strict=True)
        ):
            expected = tiny_video[1][frame, top : top + 48, left : left + 48] == identity
            np.testing.assert_array_equal(clip["masks"][place] == 1, expected)
        assert not clip["video"][len(window.frames) :].any()
        assert not clip["masks"][len(window.frames) :].any()


def test_the_window_of_a_track_keeps_the_nucleus_in_its_middle(tiny_ctc):
    dataset = tiny(tiny_ctc, windows="tracks", frames=None, size=41)
    centroids = dataset.clip(0)["centroids"][0]  # nucleus 1 never comes near the edge
    assert (centroids - 20).abs().max() <= 1
    window = dataset.window(0)
    assert len(set(window.corners)) == 12
    # Nucleus 2 divides: its window stays where it was, and shows its daughters.
    window, clip = dataset.window(1), dataset.clip(1)
    assert len(set(window.corners[5:])) == 1
    assert (clip["tracks"][:, 3] == 1).sum() == 2


def test_a_track_longer_than_a_clip_has_several(tiny_ctc):
    dataset = tiny(tiny_ctc, windows="tracks", frames=5, size=48)
    frames = {}
    for index in range(len(dataset)):
        window, clip = dataset.window(index), dataset.clip(index)
        check_clip(clip)
        assert clip["masks"][0].eq(1).any()
        frames.setdefault(window.track, []).append(window.frames)
    assert frames[1] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (10, 11)]
    assert frames[3] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]  # which has gone after frame 7
    shared = tiny(tiny_ctc, windows="tracks", frames=5, size=48, overlap=(1, 0, 0))
    assert [shared.window(index).frames[0] for index in range(3)] == [0, 4, 8]


def test_the_window_of_a_lineage_holds_the_whole_family(tiny_ctc, tiny_video):
    dataset = tiny(tiny_ctc, windows="lineages", frames=None, size=64)
    assert [dataset.window(index).track for index in range(len(dataset))] == [1, 2, 3, 6]
    clip, window = dataset.clip(1), dataset.window(1)
    check_clip(clip)
    assert clip["tracks"][0].tolist() == [1, 0, 5, 0]
    daughters = clip["tracks"][clip["tracks"][:, 3] == 1]
    assert daughters[:, 1:3].tolist() == [[6, 11], [6, 11]]
    for frame in range(12):
        shown = [tiny_video[1][frame] == one for one in (2, 4, 5)]
        assert (clip["masks"][frame] > 0).sum() >= sum(map(np.sum, shown))
    assert len(set(window.corners)) > 3


def test_the_window_of_a_lineage_that_is_too_wide_goes_with_the_first_daughter(tiny_ctc):
    dataset = tiny(tiny_ctc, windows="lineages", frames=6, size=24)
    index = next(
        index
        for index in range(len(dataset))
        if dataset.window(index).track == 4 and dataset.window(index).frames[0] == 6
    )
    centroids = dataset.clip(index)["centroids"][0]
    assert (centroids - 11.5).abs().max() <= 1


def test_tracks_and_lineages_follow_a_stride(tiny_ctc):
    dataset = tiny(tiny_ctc, windows="lineages", frames=None, size=64, stride=2)
    assert dataset.frames == 6
    assert dataset.window(1).frames == (0, 2, 4, 6, 8, 10)
    clip = dataset.clip(1)
    check_clip(clip)
    assert (clip["tracks"][:, 3] == 1).sum() == 2


def test_a_nucleus_is_followed_from_where_it_enters_the_field_of_interest(tiny_ctc):
    dataset = tiny(tiny_ctc, windows="tracks", frames=None, size=30, border=20)
    first = {
        dataset.window(index).track: dataset.window(index).frames[0]
        for index in range(len(dataset))
    }
    assert first[6] == 11  # comes from below, its upper edge in row 105 in frame 11
    assert all(clip["masks"][0].eq(1).any() for clip in dataset)


def test_tracks_are_cut_where_there_are_no_masks(copy):
    (copy / "01_GT/SEG/man_seg004.tif").unlink()
    dataset = tiny(copy, windows="tracks", truth="GT", frames=None, size=48)
    assert [dataset.window(index).frames for index in range(2)] == [
        (0, 1, 2, 3),
        (5, 6, 7, 8, 9, 10, 11),
    ]


def test_tracks_without_annotations_show_grey_values_alone(tiny_ctc):
    clip = tiny(tiny_ctc, windows="tracks", size=48, annotations=()).clip(0)
    assert clip.keys() == {"video", "index", "source"}


def test_tracks_of_different_lengths_make_batches(tiny_ctc):
    dataset = tiny(tiny_ctc, windows="tracks", frames=None, size=48)
    (batch,) = DataLoader(dataset, batch_size=6, num_workers=2)
    lengths = batch["tracks"][:, 0, 2] + 1
    assert lengths.tolist() == [12, 6, 8, 6, 6, 8]


def test_tracks_need_masks_and_tracks(copy):
    with pytest.raises(ValueError, match=r"windows='tracks' needs .*no masks \(truth=None\)"):
        tiny(copy, windows="tracks", annotations=(), truth=None)
    (copy / "01_GT/TRA/man_track.txt").unlink()
    with pytest.raises(ValueError, match=r"windows='lineages' needs .*no man_track.txt; give"):
        tiny(copy, windows="lineages", annotations=("masks",))


def test_tracks_that_are_never_visible_are_refused(copy):
    for path in (copy / "01_GT/SEG").iterdir():
        tifffile.imwrite(path, np.zeros((128, 160), np.uint16))
    with pytest.raises(ValueError, match=r"no track of man_track.txt has a mask .*border"):
        tiny(copy, windows="tracks", truth="GT")


def test_a_mix_takes_the_windows_of_a_grid_in_turn(tiny_ctc):
    grid = tiny(tiny_ctc, windows="grid")
    mix = MixedVideos({"grid": grid, "random": tiny(tiny_ctc)}, length=8)
    assert all(clip["source"] == 0 for clip in mix)


# Memory, and what is decoded


def test_a_clip_does_not_depend_on_the_cache(tiny_ctc):
    before = [tiny(tiny_ctc).clip(index) for index in range(3)]
    for limit in (0, 1, 100_000, 10**9):
        dataset = tiny(tiny_ctc, cache_bytes=limit)
        assert all(same(one, dataset.clip(index)) for index, one in enumerate(before))
        assert dataset._cache.nbytes <= limit


def test_the_cache_keeps_the_frames_that_were_used_last(tiny_ctc):
    both = 128 * 160 * (2 + 2)
    dataset = tiny(tiny_ctc, cache_bytes=4 * both, windows="grid", size=(128, 160))
    for index in range(3):
        dataset.clip(index)
    assert {number for _, number in dataset._cache._kept} == {8, 9, 10, 11}
    assert dataset._cache.nbytes == 4 * both


def test_frames_that_are_kept_are_not_read_again(copy):
    dataset = tiny(copy, windows="grid", size=(128, 160))
    before = dataset.clip(0)
    for number in range(4):
        (copy / f"01/t{number:03d}.tif").unlink()
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    assert same(dataset.clip(0), before)
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(dataset)).clip(0)


def test_nothing_is_read_at_first_but_the_header_of_a_frame(copy):
    for number in range(1, 12):
        (copy / f"01/t{number:03d}.tif").write_bytes(b"")
    for number in range(12):
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").write_bytes(b"")
    tiny(copy, scale=CameraScale(32768, 36863), truth="GT")


def spoil(path, rows):
    """Overwrite what a file of one strip a row holds of some rows."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = [(page.dataoffsets[row], page.databytecounts[row]) for row in rows]
    data = bytearray(path.read_bytes())
    for offset, count in places:
        data[offset : offset + count] = b"\xff" * count
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_window_decodes_the_strips_that_it_shows_and_no_others(copy, tiny_video, limit):
    for number in range(12):
        path = copy / f"01/t{number:03d}.tif"
        tifffile.imwrite(path, tiny_video[0][number], rowsperstrip=1, compression="lzw")
        spoil(path, range(64, 128))
    dataset = tiny(
        copy, windows="grid", scale=CameraScale(32768, 36863), cache_bytes=limit, size=(64, 160)
    )
    clip = dataset.clip(0)
    np.testing.assert_array_equal(clip["video"][:, 0], as_grey(tiny_video[0][:4, :64]))
    with pytest.raises(ValueError, match=r"t000.tif is not a TIFF file or a damaged one"):
        dataset.clip(1)
    assert same(dataset.clip(0), clip)


@pytest.mark.parametrize(
    "how",
    [
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
        {"rowsperstrip": 7, "byteorder": ">"},
        {"tile": (32, 48), "compression": "zlib"},
        {"tile": (16, 16)},
        {"compression": "lzw"},
        {},
    ],
)
def test_parts_of_an_image_are_those_of_the_whole(tmp_path, tiny_video, how):
    image = tiny_video[0][0][:, :150]
    tifffile.imwrite(tmp_path / "image.tif", image, **how)
    partial = LazyTiff(tmp_path / "image.tif")
    assert partial.shape == (128, 150)
    assert partial.nbytes == image.nbytes
    for rows, columns in [((3, 9), (0, 20)), ((40, 41), (149, 150)), ((0, 128), (0, 150))]:
        got = partial.read_window(slice(*rows), slice(*columns))
        assert got.dtype == np.uint16
        np.testing.assert_array_equal(got, image[slice(*rows), slice(*columns)])


def test_threads_may_share_a_data_set(tiny_ctc):
    dataset, alone = tiny(tiny_ctc, cache_bytes=200_000), tiny(tiny_ctc)
    expected = [alone.clip(index) for index in range(12)]
    found = {}

    def work(indices):
        for index in indices:
            found[index] = dataset.clip(index)

    threads = [threading.Thread(target=work, args=(range(n, 12, 3),)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[index], clip) for index, clip in enumerate(expected))


# Other data sets


def test_a_video_of_8_bits_without_a_truth_of_its_own_is_read(tmp_path, tiny_video):
    video, masks, tracks = tiny_video
    (tmp_path / "02").mkdir()
    (tmp_path / "02_GT/TRA").mkdir(parents=True)
    grey = ((video - 32768) // 16).astype(np.uint8)
    for number in range(12):
        tifffile.imwrite(tmp_path / f"02/t{number:04d}.tif", grey[number])
        marker = masks[number].astype(np.uint16)
        tifffile.imwrite(tmp_path / f"02_GT/TRA/man_track{number:04d}.tif", marker)
    table = tmp_path / "02_GT/TRA/man_track.txt"
    table.write_text("".join(" ".join(map(str, row)) + "\n" for row in tracks.tolist()))
    dataset = tiny(tmp_path, sequence="02", frames=12, size=(128, 160))
    assert dataset.scale == CameraScale(0, 255)
    clip = dataset.clip(0)
    check_clip(clip)
    np.testing.assert_array_equal(clip["video"][:, 0], grey.astype(np.float32) / 255)
    assert clip["tracks"][:, 0].max() == 6
    # Labels of the tracking truth are tracks, also without their table; parents are not known.
    table.unlink()
    clip = tiny(tmp_path, sequence="02", frames=12, size=(128, 160)).clip(0)
    check_clip(clip)
    assert clip["tracks"][:, 0].max() == 6
    assert not clip["tracks"][:, 3].any()


def test_silver_truth_alone_gives_masks_but_no_tracks(copy):
    (copy / "01_GT").rename(copy / "01_ST")
    shutil.rmtree(copy / "01_ST/TRA")
    words = r"must be without 'tracks' .*no man_track.txt, .*truth='ST'.*frames=1"
    with pytest.raises(ValueError, match=words):
        tiny(copy)
    for changes in ({"annotations": ("masks", "boxes", "centroids")}, {"frames": 1}):
        check_clip(tiny(copy, **changes).clip(0))


def test_a_video_without_any_truth_gives_grey_values(copy):
    shutil.rmtree(copy / "01_GT")
    with pytest.raises(FileNotFoundError, match="no masks of truth='auto'"):
        tiny(copy)
    for windows in ("random", "grid"):
        clip = tiny(copy, annotations=(), windows=windows).clip(1)
        assert clip.keys() == {"video", "index", "source"}


def test_gold_truth_of_a_few_frames_gives_those_frames(copy, tiny_video):
    for number in set(range(12)) - {2, 7, 9}:
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").unlink()
    dataset = tiny(copy, truth="GT", frames=1, windows="grid", size=(128, 160))
    assert [dataset.window(index).frames for index in range(len(dataset))] == [(2,), (7,), (9,)]
    for clip, number in zip(dataset, (2, 7, 9), strict=True):
        check_clip(clip)
        np.testing.assert_array_equal(clip["masks"][0] > 0, tiny_video[1][number] > 0)


# Arguments


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"windows": "all"}, ValueError, r"windows must be one of \('random', .*got 'all'"),
        ({"stride": 0}, ValueError, "stride must be 1 or more, got 0"),
        ({"stride": 1.0}, TypeError, r"stride must be a whole number, got 1\.0"),
        ({"stride": 4}, ValueError, "at most the 3 frames in use with stride=4, got 4"),
        ({"overlap": 3}, TypeError, r"overlap must be \(frames, rows, columns\), got 3"),
        ({"overlap": (1, 1)}, TypeError, r"got \(1, 1\)"),
        ({"overlap": (0, 4, 0)}, ValueError, "overlap must be 0 .*windows='random', got"),
        (
            {"overlap": (0, 4, 0), "windows": "tracks"},
            ValueError,
            "overlap must be 0 in rows.*windows='tracks', got",
        ),
        (
            {"overlap": (4, 0, 0), "windows": "grid"},
            ValueError,
            r"smaller than a window of \(frames, rows, columns\) \(4, 64, 80\), got \(4, 0, 0\)",
        ),
        ({"overlap": (0, -1, 0), "windows": "grid"}, ValueError, "0 or more, got -1"),
        ({"frames": None}, TypeError, "got None, with windows='random'; None is for"),
        ({"cache_bytes": -1}, ValueError, "cache_bytes must be 0 or more, got -1"),
        ({"cache_bytes": 1e6}, TypeError, "cache_bytes must be a whole number"),
    ],
)
def test_windows_that_cannot_be_are_refused(tiny_ctc, changes, error, words):
    with pytest.raises(error, match=words):
        tiny(tiny_ctc, **changes)


def test_too_many_nuclei_name_the_clip(tiny_ctc):
    dataset = tiny(tiny_ctc, size=(128, 160), frames=12, max_cells=2)
    dataset.set_epoch(4)
    words = r"max_cells=2 is too small .*clip 3 of epoch 4 of CTCVideos.*videos\.clip\(3\)"
    with pytest.raises(TooManyNucleiError, match=words):
        dataset.clip(3)


def test_an_epoch_reaches_workers_that_are_there_already(tiny_ctc):
    dataset = tiny(tiny_ctc, length=4)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 2):
        dataset.set_epoch(epoch)
        clips = list(loader)
        assert all(same(clip, dataset.clip(index)) for index, clip in enumerate(clips))


# The real video


def test_whole_lineages_of_the_real_video_hold_together(hela):
    dataset = CTCVideos(hela, windows="lineages", frames=None, size=256, annotations=EVERY, stop=30)
    assert dataset.frames == 30
    family = next(
        index
        for index in range(len(dataset))
        if (dataset.source.tracks[:, 3] == dataset.window(index).track).any()
    )
    for index in (family, len(dataset) - 1):
        clip = dataset.clip(index)
        check_clip(clip)
        assert clip["masks"][0].eq(1).any()


def test_a_window_of_the_real_video_decodes_a_part_of_its_frames(hela):
    sequence = ctc.read_sequence(hela, "01")
    image = sequence.partial_frame(0)
    window = image.read_window(slice(100, 164), slice(0, 1100))
    np.testing.assert_array_equal(window, sequence.frame(0)[100:164])
    assert len(image._missing) > 200  # of 234 strips
