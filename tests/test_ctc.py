"""Sequences of the Cell Tracking Challenge, read and written."""

import contextlib
import errno
import itertools
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import tifffile
from ctc_metrics.scripts.validate import validate_sequence

from bvdm_data.clip import CameraScale
from bvdm_data.datasets import ctc, tiff
from bvdm_data.datasets.ctc import guess_scale, is_complete, read_sequence, write_sequence
from bvdm_data.datasets.tiff import LazyTiff
from bvdm_data.datasets.tracks import cut_tracks, group_families


@pytest.fixture
def copy(tiny_ctc, tmp_path):
    """Return a copy of the tiny data set that a test may damage."""
    return shutil.copytree(tiny_ctc, tmp_path / "copy")


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, compression="lzw")


def edit_table(root, change):
    path = root / "01_GT/TRA/man_track.txt"
    path.write_text(change(path.read_text()))


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def read_warned(root, truth="auto"):
    """Return the sequence, and what was said while it was read."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sequence = read_sequence(root, "01", truth)
    return sequence, [str(one.message) for one in said]


# Reading


def test_sequence_survives_writing_and_pickle(tiny_ctc, tiny_video):
    video, masks, tracks = tiny_video
    for truth in ("GT", "TRA", "auto"):
        sequence = pickle.loads(pickle.dumps(read_sequence(tiny_ctc, "01", truth)))
        assert (len(sequence), sequence.shape) == (12, (128, 160))
        assert sequence.numbers == tuple(range(12))
        np.testing.assert_array_equal(sequence.tracks, tracks)
        for number in sequence.numbers:
            np.testing.assert_array_equal(sequence.frame(number), video[number])
            np.testing.assert_array_equal(sequence.masks(number), masks[number])
    assert (sequence.masks(0).dtype, sequence.frame(0).dtype) == (np.int32, np.uint16)


def test_auto_truth_prefers_silver_then_complete(copy):
    assert read_sequence(copy, "01").truth == "GT"
    (copy / "01_ST/SEG").mkdir(parents=True)
    shutil.copy(copy / "01_GT/SEG/man_seg004.tif", copy / "01_ST/SEG")
    assert read_sequence(copy, "01").truth == "GT"  # the silver truth is of one frame
    shutil.rmtree(copy / "01_ST")
    (copy / "01_GT/SEG/man_seg004.tif").unlink()
    assert read_sequence(copy, "01").truth == "TRA"
    shutil.copytree(copy / "01_GT/SEG", copy / "01_ST/SEG")
    sequence = read_sequence(copy, "01")
    assert sequence.truth == "ST"
    assert sequence.masks(4) is None
    assert sequence.masks(5) is not None
    shutil.rmtree(copy / "01_ST")
    shutil.rmtree(copy / "01_GT/TRA")
    assert read_sequence(copy, "01").truth == "GT"
    assert read_sequence(copy, "01").tracks.shape == (0, 4)
    shutil.rmtree(copy / "01_GT")
    sequence = read_sequence(copy, "01", None)
    assert sequence.masks(3) is None
    assert sequence.frame(3).shape == (128, 160)


def test_files_are_matched_by_number(copy, tiny_video):
    for number in (0, 1, 2):
        (copy / f"01/t{number:03d}.tif").unlink()
    (copy / "01/t007.tif").rename(copy / "01/t0007.tif")
    (copy / "01_GT/SEG/man_seg000.tif").unlink()
    sequence, _ = read_warned(copy, "GT")
    assert sequence.numbers == tuple(range(3, 12))
    np.testing.assert_array_equal(sequence.masks(7), tiny_video[1][7])
    np.testing.assert_array_equal(sequence.frame(7), tiny_video[0][7])


RENAMED = [("t{}.tif", "{}{}.tif"), ("t{:02d}.TIF", "{}{}.TIFF"), ("T{:05d}.tiff", "{}{:04d}.tif")]


@pytest.mark.parametrize(("frame_name", "mask_name"), RENAMED)
def test_any_usual_name_is_read(copy, tiny_video, frame_name, mask_name):
    for number in range(12):
        (copy / f"01/t{number:03d}.tif").rename(copy / "01" / frame_name.format(number))
        for folder, prefix in (("SEG", "man_seg"), ("TRA", "man_track")):
            place = copy / "01_GT" / folder
            old = place / f"{prefix}{number:03d}.tif"
            old.rename(place / mask_name.format(prefix, number))
    assert is_complete(copy, "01")
    for truth in ("GT", "TRA"):
        sequence = read_sequence(copy, "01", truth)
        assert sequence.numbers == tuple(sequence.mask_names) == tuple(range(12))
        for number in (0, 2, 10, 11):
            np.testing.assert_array_equal(sequence.frame(number), tiny_video[0][number])
            np.testing.assert_array_equal(sequence.masks(number), tiny_video[1][number])


def test_files_passed_over_are_named(copy):
    names = ["01/frame001.tif", "01/notes.txt", "01/t-1.tif", "01/t000 copy.tif", "01/t000.ome.tif"]
    masks = ["01_GT/SEG/man_seg099.tif", "01_GT/SEG/man_seg_000_001.tif", "01_GT/TRA/mask000.tif"]
    silver = [f"01_ST/SEG/mask{number:03d}.tif" for number in range(12)]
    silent = ["01/.DS_Store", "01/._t000.tif", "01/Thumbs.db", "01_GT/SEG/desktop.ini"]
    (copy / "01_ST/SEG").mkdir(parents=True)
    for name in (*names, *masks, *silver, *silent):
        (copy / name).write_bytes(b"")
    sequence, said = read_warned(copy)
    assert (len(sequence), sequence.truth) == (12, "GT")
    told = [re.fullmatch(rf"{copy}: (.*) passed over: .*", one)[1].split(", ") for one in said]
    expected = [*names, *masks, *silver[:5], f"{silver[5]} and 6 more"]
    assert sorted(itertools.chain(*told)) == sorted(expected)
    assert not any("SEG" in one for one in read_warned(copy, "TRA")[1])


def test_truth_beyond_the_frames_is_cut(copy, tiny_video):
    for number in range(7, 12):
        (copy / f"01/t{number:03d}.tif").unlink()
    sequence, said = read_warned(copy)
    assert len(said) == 3
    assert "man_seg011.tif passed over: no frame has their number" in said[0]
    assert "tracks of frames 0 to 11, and the frames are 0 to 6: 0 of 6 tracks are" in said[2]
    assert max(sequence.mask_names) == max(sequence.marker_names) == 6
    np.testing.assert_array_equal(sequence.tracks, cut_tracks(tiny_video[2], 0, 7))
    (copy / "01/t006.tif").unlink()
    sequence, said = read_warned(copy)
    assert "the frames are 0 to 5: 2 of 6 tracks are passed over" in said[2]
    assert not sequence.tracks[:, 3].any()


def test_reading_opens_only_the_first_image(copy):
    for number in range(1, 12):
        (copy / f"01/t{number:03d}.tif").write_bytes(b"")
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").write_bytes(b"")
    assert read_sequence(copy, "01").masks(0) is not None


@pytest.mark.parametrize(
    "how",
    [
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
        {"rowsperstrip": 7, "byteorder": ">"},
        {"tile": (32, 48), "compression": "zlib"},
        {"compression": "lzw"},
        {},
    ],
)
def test_windows_of_a_tiff_are_exact(copy, tiny_video, how):
    image = tiny_video[0][0]
    tifffile.imwrite(copy / "01/t003.tif", image, **how)
    sequence = read_sequence(copy, "01")
    assert sequence.frame(3).dtype == np.uint16
    np.testing.assert_array_equal(sequence.frame(3), image)
    lazy = LazyTiff(copy / "01/t003.tif")
    assert (lazy.shape, lazy.nbytes) == ((128, 160), image.nbytes)
    for rows, columns in [((3, 9), (0, 20)), ((40, 41), (149, 150)), ((0, 128), (0, 160))]:
        window = lazy.read_window(slice(*rows), slice(*columns))
        assert window.dtype == np.uint16
        np.testing.assert_array_equal(window, image[slice(*rows), slice(*columns)])


def test_other_labels_get_ids_of_markers(copy, tiny_video):
    masks = tiny_video[1]
    # Ids of other tracks as labels, so that only the markers can tell.
    for number, mask in enumerate(masks):
        other = np.array([0, 2, 3, 1, 5, 6, 4], np.uint16)[mask]
        save(copy / f"01_GT/SEG/man_seg{number:03d}.tif", other)
    sequence = read_sequence(copy, "01", "GT")
    for number in sequence.numbers:
        np.testing.assert_array_equal(sequence.masks(number), masks[number])


def test_larger_overlap_gets_the_marker(copy, tiny_video):
    mask = tiny_video[1][0].astype(np.uint16) * 10
    y, x = np.nonzero(mask == 10)
    mask[y[:30], x[:30]] = 77
    save(copy / "01_GT/SEG/man_seg000.tif", mask)
    got = read_sequence(copy, "01", "GT").masks(0)
    for label, identity in ((10, 1), (77, 7), (20, 2)):
        assert (got[mask == label] == identity).all()


def test_untracked_masks_get_new_ids(copy, tiny_video):
    masks = tiny_video[1].astype(np.uint16)
    for number in (3, 4):
        masks[number, 100:110, 100:110] = 900
        masks[number, 100:110, 120:130] = 901
        save(copy / f"01_GT/SEG/man_seg{number:03d}.tif", masks[number])
    sequence = read_sequence(copy, "01", "GT")
    for number in (3, 4):
        got = sequence.masks(number)
        first = 7 + number * ctc.UNTRACKED_PER_FRAME
        assert np.unique(got[masks[number] >= 900]).tolist() == [first, first + 1]
        known = masks[number] < 900
        np.testing.assert_array_equal(got[known], masks[number][known])


def test_segmentation_truth_may_lack_tracks(copy, tiny_video):
    some = np.where(tiny_video[1][0] == 2, 0, tiny_video[1][0])
    for mask in (some, np.zeros_like(some)):
        save(copy / "01_GT/SEG/man_seg000.tif", mask.astype(np.uint16))
        np.testing.assert_array_equal(read_sequence(copy, "01", "GT").masks(0), mask)


# Errors of reading; tests/test_bad_input.py has more


def test_files_of_one_number_are_refused(copy):
    shutil.copy(copy / "01/t005.tif", copy / "01/t0005.tif")
    with pytest.raises(
        ValueError, match=r"one file a frame, got t0005.tif and t005.tif; remove one"
    ):
        read_sequence(copy, "01")


def test_masks_count_as_frames_do(copy):
    for number in reversed(range(12)):
        (copy / f"01/t{number:03d}.tif").rename(copy / f"01/t{number + 1:03d}.tif")
    with pytest.raises(ValueError, match=r"SEG must have .* frames, 1 to 12, got 0 to 11; number"):
        read_sequence(copy, "01")


def test_missing_truth_or_sequence_is_refused(copy):
    shutil.rmtree(copy / "01_GT")
    for truth in ("ST", "GT", "TRA"):
        with pytest.raises(FileNotFoundError, match=f"no masks of truth='{truth}'.*truth=None"):
            read_sequence(copy, "01", truth)
    with pytest.raises(TypeError, match='name of a folder, like "01", got 1'):
        read_sequence(copy, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 0 5\n", "line 1: must be four whole numbers"),
        ("1 0 5 0\n\n1 6 7 0\n", "line 3: id 1 must be given once"),
        ("1 6 5 0\n", r"line 1: must have id >= 1.*got \(1, 6, 5, 0\)"),
        ("0 0 5 0\n", "line 1: must have id >= 1"),
        ("1 0 5 -1\n", "line 1: the parent must be an id, got -1; write 0 for none"),
        ("L B E P\n1 0 5 0\n", "line 1: must be four whole numbers .* spaces between and nothing"),
        ("1,0,5,0\n", "line 1: must be four whole numbers"),
        ("1 0 5 " + "9" * 10**5, r"line 1: must be four .* got '1 0 5 999.*\.\.\.9+'; write"),
        ("1 0 99999999999 0\n", "line 1: must be four whole numbers"),
    ],
)
def test_malformed_track_table_is_refused(copy, text, words):
    edit_table(copy, lambda _: text)
    with pytest.raises(ValueError, match=f"man_track.txt, {words}"):
        read_sequence(copy, "01")


def test_track_table_takes_any_text(copy, tiny_video):
    table = copy / "01_GT/TRA/man_track.txt"
    edit_table(copy, lambda text: text.replace(" ", "\t"))
    assert len(read_sequence(copy, "01").tracks) == 6
    for code in ("utf-8-sig", "ascii"):
        for end in ("\n", "\r\n", "\r", "  \n\n"):
            rows = [f"{' '.join(map(str, row))}" for row in tiny_video[2].tolist()]
            table.write_bytes(end.join(["", *rows, ""]).encode(code))
            np.testing.assert_array_equal(read_sequence(copy, "01").tracks, tiny_video[2])
    edit_table(copy, lambda _: "")
    assert read_sequence(copy, "01").tracks.shape == (0, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1 0 5 0\n".encode("utf-16"), "plain text, got UTF-16 .*; save it as UTF-8"),
        ("1 0 5 0\n".encode("utf-16-be"), "plain text, got UTF-16"),
        (b"1 0 5 0\n" * 2**19 + b"1", "at most 4194304 bytes, got 4194305; give"),
    ],
)
def test_other_files_are_no_table(copy, content, words):
    (copy / "01_GT/TRA/man_track.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"man_track.txt must be .*{words}"):
        read_sequence(copy, "01")


@pytest.mark.parametrize("name", ["t20261127.tif", "t20261127235959.tif", f"t{10**200}.tiff"])
@pytest.mark.parametrize("folder", ["01/t", "01_GT/SEG/man_seg", "01_GT/TRA/man_track"])
def test_dates_are_no_frame_numbers(copy, folder, name):
    (copy / f"{folder}{name[1:]}").write_bytes(b"")
    words = f"{name[1:]} must have a number from 0 to 999999 in its name; renumber"
    with little_memory(), pytest.raises(ValueError, match=words):
        read_sequence(copy, "01")


NAMES = ["01/t005.tif", "01_GT/SEG/man_seg005.tif", "01_GT/TRA/man_track.txt"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "must be a file, got a pipe or device; remove or rename it"),
        (os.mkdir, "must be a file, got a folder"),
        (lambda path: path.symlink_to("/dev/null"), "must be a file, got a pipe or device"),
        (lambda path: path.symlink_to("nowhere"), "must be a file, got a broken link"),
    ],
)
def test_only_files_are_opened(copy, name, make, words):
    (copy / name).unlink()
    make(copy / name)
    with pytest.raises(ValueError, match=f"{name} {words}"):
        read_sequence(copy, "01")


def test_number_without_frame_is_refused(tiny_ctc):
    sequence = read_sequence(tiny_ctc, "01")
    for read in (sequence.frame, sequence.masks, sequence.partial_frame):
        for number in (-1, 12):
            with pytest.raises(IndexError, match=f"from 0 to 11, got {number}"):
                read(number)


def test_volume_and_absurd_labels_are_refused(copy):
    tifffile.imwrite(copy / "01/t003.tif", np.zeros((5, 128, 160), "u2"), photometric="minisblack")
    sequence = read_sequence(copy, "01", "GT")
    for read in (sequence.frame, sequence.partial_frame):
        with pytest.raises(ValueError, match=r"t003.tif must hold one grey image .*3D"):
            read(3)
    for value, dtype in ((-4, np.int16), (2**24 + 1, np.uint32), (2**63, np.uint64)):
        save(copy / "01_GT/SEG/man_seg003.tif", np.full((128, 160), value, dtype))
        words = rf"man_seg003.tif must hold labels from 0 .*got {value} to {value}; renumber"
        with pytest.raises(ValueError, match=words):
            sequence.masks(3)


@pytest.mark.parametrize("how", [{"photometric": "minisblack"}, {"imagej": True}])
def test_stack_in_one_page_is_refused(copy, how):
    stack = np.zeros((5, 128, 160), np.uint16)
    tifffile.imwrite(copy / "01/t003.tif", stack, truncate=True, **how)
    with pytest.raises(ValueError, match=r"t003.tif must hold one grey .*shape \(5, 128, 160\)"):
        read_sequence(copy, "01").frame(3)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({256: 2**31 - 1}, "at most 536870912 bytes, got .* by its header .*; crop or downscale"),
        ({256: 2**20, 257: 2**20}, "at most 536870912 bytes"),
        ({257: 2**14}, "damaged one .'a part of it is missing'."),
        ({257: 0}, "damaged"),
    ],
)
@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}, {"rowsperstrip": 8}])
def test_header_must_fit_the_file(copy, tags, words, how):
    path = copy / "01/t003.tif"
    tifffile.imwrite(path, np.ones((128, 160), np.uint16), metadata=None, byteorder="<", **how)
    data = bytearray(path.read_bytes())
    for entry in range(10, 10 + 12 * data[8], 12):  # the directory follows the header
        tag = int.from_bytes(data[entry : entry + 2], "little")
        if tag in tags:
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, tags[tag])
    path.write_bytes(data)
    sequence = read_sequence(copy, "01")
    for read in (sequence.frame, sequence.partial_frame):
        with little_memory(), pytest.raises(ValueError, match=f"t003.tif .*{words}") as info:
            read(3)
        assert len(str(info.value)) < 1000


def test_untracked_masks_have_a_limit(copy):
    mask = np.zeros((128, 160), np.uint16)
    mask[::4, ::4] = np.arange(32 * 40).reshape(32, 40) + 10
    save(copy / "01_GT/SEG/man_seg000.tif", mask)
    words = r"man_seg000.tif must have at most 1000 masks without a marker, got 12\d\d; add"
    with pytest.raises(ValueError, match=words):
        read_sequence(copy, "01", "GT").masks(0)


def test_truncated_or_foreign_file_is_refused(copy, caplog):
    path = copy / "01/t003.tif"
    data = path.read_bytes()
    cut = [data[: int(kept * len(data))] for kept in (0, 0.0002, 0.3, 0.9, 0.999)]
    for content in (*cut, b"<html>404 Not Found</html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"t003.tif is not a TIFF file or a damaged one"):
            read_sequence(copy, "01").frame(3)


def test_label_without_track_is_refused(copy):
    edit_table(copy, lambda text: text.replace("3 0 7 0\n", ""))
    with pytest.raises(ValueError, match=r"man_track000.tif .*got label 3, which has no track"):
        read_sequence(copy, "01", "GT").masks(0)
    (copy / "01_GT/TRA/man_track000.tif").unlink()
    with pytest.raises(ValueError, match=r"man_seg000.tif .*got label 3, which has no track"):
        read_sequence(copy, "01", "GT").masks(0)


# The camera's scale


def write_counts(root, name, *frames, dtype=np.uint16):
    for number, counts in enumerate(frames):
        save(root / f"{name}/t{number:03d}.tif", np.full((4, 4), counts, dtype))
    return read_sequence(root, name, None)


def test_guess_scale_takes_smallest_range(tiny_ctc, tmp_path):
    assert guess_scale(read_sequence(tiny_ctc, "01")) == CameraScale(32768, 32768 + 4095)
    for name, (low, high, dtype, scale) in enumerate(
        [
            (3, 200, np.uint8, (0, 255)),
            (3, 256, np.uint16, (0, 1023)),
            (32767, 40000, np.uint16, (0, 65535)),
            (32768, 65535, np.uint16, (32768, 65535)),
            (0, 4096, np.uint16, (0, 16383)),
        ]
    ):
        sequence = write_counts(tmp_path, f"0{name}", low, low, high, dtype=dtype)
        assert guess_scale(sequence) == CameraScale(*scale)


@pytest.mark.parametrize("flash", range(5))
def test_scale_holds_the_frames_in_use(tmp_path, flash):
    counts = [300] * 5
    counts[flash] = 1500
    sequence = write_counts(tmp_path, "01", *counts)
    assert guess_scale(sequence) == CameraScale(0, 4095)
    for start, stop in ((0, flash), (flash + 1, 5)):
        if start < stop:
            assert guess_scale(sequence.cut(start, stop)) == CameraScale(0, 1023)
    save(tmp_path / f"01/t{flash:03d}.tif", np.full((4, 4), 300, np.uint16))
    assert guess_scale(sequence) == CameraScale(0, 1023)


def test_blank_frame_hides_no_offset(tmp_path):
    sequence = write_counts(tmp_path, "01", 33000, 33100, 0, 33200)
    words = "t002.tif must have no counts below 32768, .* got 0; mend it, leave it out, or give"
    with pytest.raises(ValueError, match=words):
        guess_scale(sequence)
    assert guess_scale(sequence.cut(stop=2)) == CameraScale(32768, 32768 + 1023)
    assert guess_scale(write_counts(tmp_path, "02", 0, 33000, 0)) == CameraScale(0, 65535)


def test_videos_share_one_scale(tmp_path):
    first = write_counts(tmp_path, "01", 300, 900)
    second = write_counts(tmp_path, "02", 300, 1200)
    assert guess_scale(first, second) == guess_scale(second, first) == CameraScale(0, 4095)
    for other in (
        write_counts(tmp_path, "03", 33000, 34000),
        write_counts(tmp_path, "04", 3, 200, dtype=np.uint8),
    ):
        for pair in ((first, other), (other, first)):
            with pytest.raises(ValueError, match=r"one grey scale .*or give scale") as info:
                guess_scale(*pair)
            assert all(f"{one.folder / one.name} (" in str(info.value) for one in pair)


@pytest.mark.parametrize("odd", [0, 1, 3])
def test_frame_of_another_dtype_is_refused(copy, odd):
    save(copy / f"01/t{odd:03d}.tif", np.full((128, 160), 90, np.uint8))
    wrong = f"t00{max(odd, 1)}.tif must be .* first frame, 01/t000.tif.*save all frames in one"
    with pytest.raises(ValueError, match=wrong):
        guess_scale(read_sequence(copy, "01"))
    for read in (read_sequence(copy, "01").frame, read_sequence(copy, "01").partial_frame):
        with pytest.raises(ValueError, match=wrong):
            read(max(odd, 1))


def test_cut_video_knows_nothing_else(tiny_ctc):
    whole = read_sequence(tiny_ctc, "01")
    cut = whole.cut(2, 6)
    assert (cut.numbers, len(cut)) == ((2, 3, 4, 5), 4)
    assert (
        cut.frame_names.keys() == cut.mask_names.keys() == cut.marker_names.keys() == {2, 3, 4, 5}
    )
    ends = {(one, *(min(max(number, 2), 5) for number in life)) for one, *life in
            whole.tracks[whole.tracks[:, 1] < 6, :3].tolist()}  # fmt: skip
    assert {tuple(row[:3]) for row in cut.tracks.tolist()} == ends
    assert not cut.tracks[:, 3].any()
    np.testing.assert_array_equal(cut.masks(3), whole.masks(3))
    with pytest.raises(IndexError, match="from 2 to 5, got 6"):
        cut.frame(6)
    with pytest.raises(ValueError, match=r"leave a frame of 0 to 11 .*got start=12 and stop=12"):
        whole.cut(12)


# Writing


def test_written_sequence_passes_challenge_validator(tiny_ctc, tmp_path):
    for source in (tiny_ctc / "01_GT/TRA").glob("*.tif"):
        shutil.copy(source, tmp_path / source.name.replace("man_track", "mask"))
    shutil.copy(tiny_ctc / "01_GT/TRA/man_track.txt", tmp_path / "res_track.txt")
    assert validate_sequence(str(tmp_path), threads=1) == {"Valid": 1}


def test_written_files_are_lzw_uint16(tiny_ctc):
    for name in ("01/t003.tif", "01_GT/SEG/man_seg003.tif", "01_GT/TRA/man_track003.tif"):
        with tifffile.TiffFile(tiny_ctc / name) as file:
            assert file.pages[0].compression == tifffile.COMPRESSION.LZW
            assert file.pages[0].dtype == np.uint16
    assert not list(tiny_ctc.glob(".*"))


def test_8_bit_video_is_written(tmp_path, tiny_video):
    video = (tiny_video[0] >> 8).astype(np.uint8)
    write_sequence(tmp_path, "01", video, *tiny_video[1:])
    sequence = read_sequence(tmp_path, "01")
    assert (sequence.dtype, guess_scale(sequence)) == (np.uint8, CameraScale(0, 255))
    np.testing.assert_array_equal([sequence.frame(number) for number in range(12)], video)


@pytest.mark.parametrize(("frames", "last"), [(1000, "t999.tif"), (1001, "t1000.tif")])
def test_frame_numbers_grow_to_four_digits(tmp_path, monkeypatch, frames, last):
    monkeypatch.setattr(tiff, "write_image", lambda path, image: path.touch())
    video, masks = np.zeros((frames, 1, 2), np.uint16), np.ones((frames, 1, 2), np.int64)
    write_sequence(tmp_path, "01", video, masks, np.array([[1, 0, frames - 1, 0], [0, 0, 0, 0]]))
    names = sorted(path.name for path in (tmp_path / "01").iterdir())
    assert (names[0], len(names), names[-1]) == ("t" + "0" * (len(last) - 5) + ".tif", frames, last)
    save(tmp_path / "01" / names[0], video[0])
    assert read_sequence(tmp_path, "01").numbers == tuple(range(frames))


def test_complete_sequence_is_not_replaced(copy, tiny_video):
    assert is_complete(copy, "01")
    assert not is_complete(copy, "02")
    (copy / "01_GT/SEG/man_seg011.tif").unlink()
    assert not is_complete(copy, "01")
    shutil.rmtree(copy / "01")
    with pytest.raises(FileExistsError, match="01_GT is there already"):
        write_sequence(copy, "01", *tiny_video)
    assert (copy / "01_GT/TRA/man_track.txt").is_file()


@pytest.mark.parametrize("failing", [0, 35])
def test_full_disk_leaves_nothing(tmp_path, tiny_video, monkeypatch, failing):
    written = []

    def write(path, image):
        if len(written) == failing:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)

    monkeypatch.setattr(tiff, "write_image", write)
    with pytest.raises(OSError, match=r"could not write the sequence .*01: .*No space") as info:
        write_sequence(tmp_path, "01", *tiny_video)
    assert info.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_failed_move_takes_truth_back(tmp_path, tiny_video, monkeypatch):
    rename = ctc.Path.rename

    def fail(path, target):
        if path.name == "01":
            raise OSError(errno.EIO, "broken")
        return rename(path, target)

    monkeypatch.setattr(ctc.Path, "rename", fail)
    with pytest.raises(OSError, match="broken"):
        write_sequence(tmp_path, "01", *tiny_video)
    assert not list(tmp_path.iterdir())


@pytest.mark.heavy
@pytest.mark.parametrize("moves", [0, 1])
def test_killed_writer_is_replaced(tmp_path, tiny_video, moves):
    code = f"""
import os, numpy as np
from pathlib import Path
from bvdm_data.datasets.ctc import write_sequence
rename, done = Path.rename, []
def dying(path, target):
    if len(done) == {moves}:
        os._exit(9)
    done.append(target)
    return rename(path, target)
Path.rename = dying
write_sequence({str(tmp_path)!r}, "01", np.ones((2, 3, 4), np.uint16), np.ones((2, 3, 4), int),
               np.array([[1, 0, 1, 0]]))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not is_complete(tmp_path, "01")
    assert not (tmp_path / "01").exists()
    assert (tmp_path / "01_GT").exists() == (moves == 1)
    write_sequence(tmp_path, "01", *tiny_video)
    assert is_complete(tmp_path, "01")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01", "01_GT"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": "1"}, ValueError, "two or more digits, .*got '1'"),
        ({"name": "../01"}, ValueError, "two or more digits"),
        ({"video": np.zeros((2, 3), "u2")}, ValueError, r"\[F, H, W\].*got the shape \(2, 3\)"),
        ({"video": np.zeros((2, 3, 4), "f4")}, TypeError, "uint8 or uint16 counts, got float32"),
        ({"video": None}, TypeError, r"video must be a NumPy array \[F, H, W\], got None"),
        ({"masks": [[[1]]]}, TypeError, r"masks must be a NumPy array .*got \[\[\[1\]\]\]"),
        (
            {"tracks": None},
            TypeError,
            r"tracks must be .* got None; give np.zeros\(\(0, 4\), int\)",
        ),
        ({"masks": np.ones((2, 3, 5), int)}, ValueError, r"of video, \(2, 3, 4\), got \(2, 3, 5\)"),
        ({"masks": np.zeros((2, 3, 4))}, TypeError, "hold integers, got the dtype float64"),
        ({"masks": np.full((2, 3, 4), -1)}, ValueError, "from 0 to 65535, got -1 to -1"),
        ({"masks": np.full((2, 3, 4), 65536)}, ValueError, "from 0 to 65535, got 65536"),
        ({"masks": np.full((2, 3, 4), 2)}, ValueError, "got id 1 in frame 0 only in tracks"),
        ({"tracks": np.zeros((0, 4), int)}, ValueError, "got id 1 in frame 0 only in masks"),
        ({"tracks": np.array([[1, 0, 0, 0]])}, ValueError, "got id 1 in frame 1 only in masks"),
        ({"tracks": np.array([[1, 0, 2, 0]])}, ValueError, "row 0: .* frame must be at most 1"),
        ({"tracks": np.array([[1, 0, 1, 5]])}, ValueError, "row 0: parent 5 .* does not exist"),
        ({"tracks": np.array([1, 0, 1, 0])}, ValueError, r"tracks must be \[n, 4\]"),
        ({"tracks": np.zeros((1, 4))}, TypeError, "tracks must hold integers, got the dtype float"),
    ],
)
def test_writing_refuses_what_disagrees(tmp_path, changes, error, words):
    arguments = {
        "name": "01",
        "video": np.zeros((2, 3, 4), np.uint16),
        "masks": np.ones((2, 3, 4), np.int32),
        "tracks": np.array([[1, 0, 1, 0]]),
    }
    with pytest.raises(error, match=words):
        write_sequence(tmp_path, **arguments | changes)
    assert not list(tmp_path.iterdir())


def test_long_chain_is_one_family():
    chain = [[number, number, number, number - 1] for number in range(1, 5001)]
    assert group_families(np.array(chain)) == [list(range(1, 5001))]


# The real data


def test_real_video_is_as_described(hela):
    sequence = read_sequence(hela, "01")
    assert (sequence.truth, sequence.shape, len(sequence)) == ("ST", (700, 1100), 92)
    assert guess_scale(sequence) == CameraScale(32768, 36863)
    assert len(sequence.tracks) == 268
    mothers, children = np.unique(sequence.tracks[:, 3], return_counts=True)
    assert (children[mothers > 0] == 2).sum() == 94
    lazy = sequence.partial_frame(0)
    window = lazy.read_window(slice(100, 164), slice(0, 1100))
    np.testing.assert_array_equal(window, sequence.frame(0)[100:164])
    assert len(lazy._decoded) < 34  # of 234 strips


def test_real_gold_truth_gets_silver_ids(hela):
    gold = read_sequence(hela, "01", "GT").masks(12)
    silver = read_sequence(hela, "01", "ST").masks(12)
    for identity in np.unique(gold[gold > 0]):
        ids, counts = np.unique(silver[gold == identity], return_counts=True)
        assert ids[counts.argmax()] == identity
