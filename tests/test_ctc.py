import errno
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from ctc_metrics.scripts.validate import validate_sequence

from bvdm_data.clip import CameraScale
from bvdm_data.datasets import ctc as ctc_writer
from bvdm_data.datasets.ctc import (
    UNTRACKED_PER_FRAME,
    guess_scale,
    is_complete,
    read_sequence,
    write_sequence,
)


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


# Reading


def test_read_sequence_gives_back_what_write_sequence_wrote(tiny_ctc, tiny_video):
    video, masks, tracks = tiny_video
    for truth in ("GT", "TRA", "auto"):
        sequence = read_sequence(tiny_ctc, "01", truth)
        assert len(sequence) == 12
        assert sequence.shape == (128, 160)
        assert sequence.numbers == tuple(range(12))
        np.testing.assert_array_equal(sequence.tracks, tracks)
        for number in sequence.numbers:
            np.testing.assert_array_equal(sequence.frame(number), video[number])
            np.testing.assert_array_equal(sequence.masks(number), masks[number])
    assert sequence.masks(0).dtype == np.int32
    assert sequence.frame(0).dtype == np.uint16


def test_read_sequence_prefers_silver_truth_then_whole_gold_truth_then_tracking_truth(copy):
    assert read_sequence(copy, "01").truth == "GT"
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


def test_read_sequence_matches_files_by_number_not_by_position(copy, tiny_video):
    for number in (0, 1, 2):
        (copy / f"01/t{number:03d}.tif").unlink()
    (copy / "01/t007.tif").rename(copy / "01/t0007.tif")
    (copy / "01_GT/SEG/man_seg000.tif").unlink()
    sequence = read_sequence(copy, "01", "GT")
    assert sequence.numbers == tuple(range(3, 12))
    np.testing.assert_array_equal(sequence.masks(7), tiny_video[1][7])
    np.testing.assert_array_equal(sequence.frame(7), tiny_video[0][7])


def test_read_sequence_without_truth_reads_the_frames_alone(copy):
    shutil.rmtree(copy / "01_GT")
    sequence = read_sequence(copy, "01", None)
    assert sequence.masks(3) is None
    assert sequence.frame(3).shape == (128, 160)


def test_read_sequence_opens_no_image_but_the_first(copy):
    for number in range(1, 12):
        (copy / f"01/t{number:03d}.tif").write_bytes(b"")
        (copy / f"01_GT/SEG/man_seg{number:03d}.tif").write_bytes(b"")
    assert read_sequence(copy, "01").masks(0) is not None


def test_frame_reads_the_big_endian_files_of_imagej(copy, tiny_video):
    tifffile.imwrite(copy / "01/t003.tif", tiny_video[0][3], byteorder=">")
    frame = read_sequence(copy, "01").frame(3)
    assert frame.dtype == np.uint16
    np.testing.assert_array_equal(frame, tiny_video[0][3])


def test_ctc_sequence_survives_a_pickle(tiny_ctc):
    sequence = read_sequence(tiny_ctc, "01")
    again = pickle.loads(pickle.dumps(sequence))
    np.testing.assert_array_equal(again.masks(3), sequence.masks(3))


def test_masks_with_other_labels_get_the_ids_of_their_markers(copy, tiny_video):
    masks = tiny_video[1]
    # Ids of other tracks as labels, so that only the markers can tell.
    for number, mask in enumerate(masks):
        other = np.array([0, 2, 3, 1, 5, 6, 4], np.uint16)[mask]
        save(copy / f"01_GT/SEG/man_seg{number:03d}.tif", other)
    sequence = read_sequence(copy, "01", "GT")
    for number in sequence.numbers:
        np.testing.assert_array_equal(sequence.masks(number), masks[number])


def test_a_marker_wanted_by_two_masks_goes_to_the_larger_overlap(copy, tiny_video):
    mask = tiny_video[1][0].astype(np.uint16) * 10
    y, x = np.nonzero(mask == 10)
    mask[y[:30], x[:30]] = 77
    save(copy / "01_GT/SEG/man_seg000.tif", mask)
    got = read_sequence(copy, "01", "GT").masks(0)
    assert (got[mask == 10] == 1).all()
    assert (got[mask == 77] == 7).all()
    assert (got[mask == 20] == 2).all()


def test_masks_without_a_track_get_new_ids_that_no_two_frames_share(copy, tiny_video):
    masks = tiny_video[1].astype(np.uint16)
    for number in (3, 4):
        masks[number, 100:110, 100:110] = 900
        masks[number, 100:110, 120:130] = 901
        save(copy / f"01_GT/SEG/man_seg{number:03d}.tif", masks[number])
    sequence = read_sequence(copy, "01", "GT")
    for number in (3, 4):
        got = sequence.masks(number)
        first = 7 + number * UNTRACKED_PER_FRAME
        assert np.unique(got[masks[number] >= 900]).tolist() == [first, first + 1]
        known = masks[number] < 900
        np.testing.assert_array_equal(got[known], masks[number][known])


def test_masks_of_segmentation_truth_may_lack_a_track(copy, tiny_video):
    mask = np.where(tiny_video[1][0] == 2, 0, tiny_video[1][0])
    save(copy / "01_GT/SEG/man_seg000.tif", mask.astype(np.uint16))
    np.testing.assert_array_equal(read_sequence(copy, "01", "GT").masks(0), mask)


def test_an_empty_mask_is_read_as_background(copy):
    save(copy / "01_GT/SEG/man_seg000.tif", np.zeros((128, 160), np.uint16))
    assert not read_sequence(copy, "01", "GT").masks(0).any()


# Errors of reading


def test_read_sequence_refuses_a_missing_root_and_tells_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; it should hold 01/t000.tif"):
        read_sequence(tmp_path / "nowhere", "01")


def test_read_sequence_refuses_a_missing_sequence_and_lists_what_there_is(tiny_ctc):
    with pytest.raises(FileNotFoundError, match=r"no folder .*07; sequences there: \['01'\]"):
        read_sequence(tiny_ctc, "07")


def test_read_sequence_refuses_a_sequence_without_frames(tmp_path):
    (tmp_path / "01").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no frames \(t000.tif, ...\) in .*01; .*none"):
        read_sequence(tmp_path, "01")


def test_read_sequence_refuses_a_sequence_given_as_a_number(tiny_ctc):
    with pytest.raises(TypeError, match='name of a folder, like "01", got 1'):
        read_sequence(tiny_ctc, 1)


def test_read_sequence_refuses_gaps_in_the_frame_numbers(copy):
    (copy / "01/t005.tif").unlink()
    with pytest.raises(ValueError, match=r"without a gap, got no frame 5 between 0 and 11"):
        read_sequence(copy, "01")


def test_read_sequence_refuses_two_files_of_one_number(copy):
    shutil.copy(copy / "01/t005.tif", copy / "01/t0005.tif")
    with pytest.raises(ValueError, match=r"one file a frame, got t005.tif beside 01/t0005.tif"):
        read_sequence(copy, "01")


def test_read_sequence_refuses_an_unknown_truth(tiny_ctc):
    with pytest.raises(ValueError, match=r"truth must be one of .*got 'gold'"):
        read_sequence(tiny_ctc, "01", "gold")


@pytest.mark.parametrize("truth", ["auto", "ST", "GT", "TRA"])
def test_read_sequence_refuses_truth_that_is_not_there(copy, truth):
    shutil.rmtree(copy / "01_GT")
    with pytest.raises(FileNotFoundError, match=f"no masks of truth='{truth}'.*truth=None"):
        read_sequence(copy, "01", truth)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 0 5 0\n2 0 x 0\n", "line 2: must be four whole numbers .*got '2 0 x 0'"),
        ("1 0 5\n", "line 1: must be four whole numbers"),
        ("1 0 5 0\n\n1 6 7 0\n", "line 3: id 1 must be given once"),
        ("1 0 5 0\n2 6 7 9\n", "line 2: parent 9 of track 2 does not exist"),
        ("1 0 5 0\n2 5 7 1\n", "line 2: parent 1 must end before track 2 begins in frame 5"),
        ("1 6 5 0\n", r"line 1: must have id >= 1.*got \(1, 6, 5, 0\)"),
        ("0 0 5 0\n", "line 1: must have id >= 1"),
        ("1 0 5 -1\n", "line 1: must have id >= 1"),
        ("1 0 99999999999 0\n", "line 1: must be four whole numbers"),
    ],
)
def test_read_sequence_refuses_a_malformed_man_track(copy, text, words):
    edit_table(copy, lambda _: text)
    with pytest.raises(ValueError, match=f"man_track.txt, {words}"):
        read_sequence(copy, "01")


def test_read_sequence_takes_an_empty_man_track_and_tabs(copy):
    edit_table(copy, lambda text: text.replace(" ", "\t"))
    assert len(read_sequence(copy, "01").tracks) == 6
    edit_table(copy, lambda _: "")
    assert read_sequence(copy, "01").tracks.shape == (0, 4)


@pytest.mark.parametrize("number", [-1, 12])
def test_frame_and_masks_refuse_a_number_that_is_not_there(tiny_ctc, number):
    sequence = read_sequence(tiny_ctc, "01")
    for read in (sequence.frame, sequence.masks):
        with pytest.raises(IndexError, match=f"from 0 to 11, got {number}"):
            read(number)


def test_masks_refuse_another_size_than_the_frames(copy):
    save(copy / "01_GT/SEG/man_seg002.tif", np.zeros((128, 161), np.uint16))
    with pytest.raises(ValueError, match=r"man_seg002.tif .*\(128, 160\) pixels, got \(128, 161\)"):
        read_sequence(copy, "01", "GT").masks(2)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((128, 160), np.float32), "must hold integers .*got float32"),
        (np.zeros((128, 160, 3), np.uint8), "one grey image .*RGB"),
        (np.zeros((5, 128, 160), np.uint16), "one grey image .*3D"),
    ],
)
def test_frame_refuses_float_colour_and_volumes(copy, image, words):
    path = copy / "01/t003.tif"
    photometric = "rgb" if image.shape[-1] == 3 else "minisblack"
    tifffile.imwrite(path, image, photometric=photometric)
    with pytest.raises(ValueError, match=f"t003.tif must hold {words.removeprefix('must hold ')}"):
        read_sequence(copy, "01").frame(3)


def test_frame_refuses_integers_of_32_bits(copy):
    save(copy / "01/t003.tif", np.zeros((128, 160), np.int32))
    with pytest.raises(ValueError, match=r"t003.tif must be uint8 or uint16, got int32"):
        read_sequence(copy, "01").frame(3)


def test_masks_refuse_negative_labels(copy):
    save(copy / "01_GT/SEG/man_seg003.tif", np.full((128, 160), -4, np.int16))
    with pytest.raises(ValueError, match=r"man_seg003.tif must hold labels from 0 .*got -4 to -4"):
        read_sequence(copy, "01", "GT").masks(3)


@pytest.mark.parametrize("kept", [0.0, 0.0002, 0.3, 0.9, 0.999])
def test_frame_refuses_a_file_whose_end_is_missing(copy, kept, caplog):
    path = copy / "01/t003.tif"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"t003.tif is not a TIFF file or a damaged one"):
        read_sequence(copy, "01").frame(3)


def test_frame_refuses_a_file_that_is_no_tiff(copy):
    (copy / "01/t003.tif").write_text("<html>404 Not Found</html>")
    with pytest.raises(ValueError, match=r"t003.tif is not a TIFF file"):
        read_sequence(copy, "01").frame(3)


def test_masks_refuse_a_label_without_a_track(copy):
    edit_table(copy, lambda text: text.replace("3 0 7 0\n", ""))
    for truth in ("TRA", "GT"):
        with pytest.raises(ValueError, match=r"man_track000.tif .*got label 3, which has no track"):
            read_sequence(copy, "01", truth).masks(0)
    (copy / "01_GT/TRA/man_track000.tif").unlink()
    with pytest.raises(ValueError, match=r"man_seg000.tif .*got label 3, which has no track"):
        read_sequence(copy, "01", "GT").masks(0)


def test_masks_of_tracking_truth_refuse_a_track_without_a_label(copy):
    edit_table(copy, lambda text: text.replace("3 0 7 0", "3 0 11 0"))
    assert read_sequence(copy, "01", "TRA").masks(7) is not None
    with pytest.raises(ValueError, match=r"man_track008.tif must hold every track.*no label 3"):
        read_sequence(copy, "01", "TRA").masks(8)


# The camera's scale


def test_guess_scale_of_twelve_bits_on_an_offset(tiny_ctc):
    scale = guess_scale(read_sequence(tiny_ctc, "01"))
    assert scale == CameraScale(offset=32768, full=32768 + 4095)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "scale"),
    [
        (3, 200, np.uint8, (0, 255)),
        (3, 256, np.uint16, (0, 1023)),
        (32767, 40000, np.uint16, (0, 65535)),
        (32768, 65535, np.uint16, (32768, 65535)),
        (0, 4096, np.uint16, (0, 16383)),
    ],
)
def test_guess_scale_takes_the_smallest_range_that_holds_all(tmp_path, low, high, dtype, scale):
    (tmp_path / "01").mkdir()
    for number, count in enumerate((low, low, high)):
        save(tmp_path / f"01/t{number:03d}.tif", np.full((4, 4), count, dtype))
    assert guess_scale(read_sequence(tmp_path, "01", None)) == CameraScale(*scale)


# Writing


def test_write_sequence_is_accepted_by_the_validator_of_the_challenge(tiny_ctc, tmp_path):
    for source in (tiny_ctc / "01_GT/TRA").glob("*.tif"):
        shutil.copy(source, tmp_path / source.name.replace("man_track", "mask"))
    shutil.copy(tiny_ctc / "01_GT/TRA/man_track.txt", tmp_path / "res_track.txt")
    assert validate_sequence(str(tmp_path), threads=1) == {"Valid": 1}


def test_write_sequence_writes_lzw_compressed_uint16(tiny_ctc):
    for name in ("01/t003.tif", "01_GT/SEG/man_seg003.tif", "01_GT/TRA/man_track003.tif"):
        with tifffile.TiffFile(tiny_ctc / name) as file:
            assert file.pages[0].compression == tifffile.COMPRESSION.LZW
            assert file.pages[0].dtype == np.uint16
    assert not list(tiny_ctc.glob(".*"))


@pytest.mark.parametrize(("frames", "last"), [(1000, "t999.tif"), (1001, "t1000.tif")])
def test_write_sequence_counts_in_four_digits_beyond_a_thousand_frames(tmp_path, frames, last):
    video = np.zeros((frames, 1, 2), np.uint16)
    masks = np.ones((frames, 1, 2), np.int64)
    write_sequence(tmp_path, "01", video, masks, np.array([[1, 0, frames - 1, 0], [0, 0, 0, 0]]))
    names = sorted(path.name for path in (tmp_path / "01").iterdir())
    assert (names[0], len(names), names[-1]) == ("t" + "0" * (len(last) - 5) + ".tif", frames, last)
    assert read_sequence(tmp_path, "01").numbers == tuple(range(frames))


def test_write_sequence_refuses_to_replace_a_sequence(copy, tiny_video):
    with pytest.raises(FileExistsError, match=r"01 is there already.*another name than '01'"):
        write_sequence(copy, "01", *tiny_video)
    shutil.rmtree(copy / "01")
    with pytest.raises(FileExistsError, match="01_GT is there already"):
        write_sequence(copy, "01", *tiny_video)
    assert (copy / "01_GT/TRA/man_track.txt").is_file()


def test_is_complete_tells_whether_everything_is_there(copy):
    assert is_complete(copy, "01")
    assert not is_complete(copy, "02")
    (copy / "01_GT/SEG/man_seg011.tif").unlink()
    assert not is_complete(copy, "01")


@pytest.mark.parametrize("failing", [0, 17, 35])
def test_write_sequence_leaves_nothing_when_the_disk_is_full(
    tmp_path, tiny_video, monkeypatch, failing
):
    written = []

    def write(path, image):
        if len(written) == failing:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)

    monkeypatch.setattr(ctc_writer, "write_image", write)
    with pytest.raises(
        OSError, match=r"could not write the sequence .*01: .*No space left"
    ) as info:
        write_sequence(tmp_path, "01", *tiny_video)
    assert info.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_write_sequence_takes_the_truth_back_when_the_video_cannot_be_moved(
    tmp_path, tiny_video, monkeypatch
):
    rename = ctc_writer.Path.rename

    def fail(path, target):
        if path.name == "01":
            raise OSError(errno.EIO, "broken")
        return rename(path, target)

    monkeypatch.setattr(ctc_writer.Path, "rename", fail)
    with pytest.raises(OSError, match="broken"):
        write_sequence(tmp_path, "01", *tiny_video)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moves", [0, 1])
def test_write_sequence_replaces_what_a_killed_writer_left(tmp_path, tiny_video, moves):
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


def written(tmp_path, **changes):
    arguments = {
        "name": "01",
        "video": np.zeros((2, 3, 4), np.uint16),
        "masks": np.ones((2, 3, 4), np.int32),
        "tracks": np.array([[1, 0, 1, 0]]),
    }
    write_sequence(tmp_path, **(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "1"}, "two or more digits, .*got '1'"),
        ({"name": "../01"}, "two or more digits"),
        ({"video": np.zeros((2, 3), np.uint16)}, r"\[F, H, W\].*got the shape \(2, 3\)"),
        ({"masks": np.ones((2, 3, 5), int)}, r"shape of video, \(2, 3, 4\), got \(2, 3, 5\)"),
        ({"masks": np.full((2, 3, 4), -1)}, "from 0 to 65535, got -1 to -1"),
        ({"masks": np.full((2, 3, 4), 65536)}, "from 0 to 65535, got 65536"),
        ({"masks": np.full((2, 3, 4), 2)}, "got id 1 in frame 0 only in tracks"),
        ({"tracks": np.zeros((0, 4), int)}, "got id 1 in frame 0 only in masks"),
        ({"tracks": np.array([[1, 0, 0, 0]])}, "got id 1 in frame 1 only in masks"),
        ({"tracks": np.array([[1, 0, 2, 0]])}, "row 0: the last frame must be at most 1"),
        ({"tracks": np.array([[1, 0, 1, 5]])}, "row 0: parent 5 of track 1 does not exist"),
        ({"tracks": np.array([1, 0, 1, 0])}, r"tracks must be \[n, 4\]"),
    ],
)
def test_write_sequence_refuses_what_does_not_agree(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        written(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video": np.zeros((2, 3, 4), np.float32)}, "uint16 counts, got float32"),
        ({"masks": np.zeros((2, 3, 4))}, "masks must hold integers, got the dtype float64"),
        ({"tracks": np.zeros((1, 4))}, "tracks must hold integers, got the dtype float64"),
    ],
)
def test_write_sequence_refuses_the_wrong_dtype(tmp_path, changes, words):
    with pytest.raises(TypeError, match=words):
        written(tmp_path, **changes)


# The real data


def test_the_real_video_holds_what_its_description_says(hela):
    sequence = read_sequence(hela, "01")
    assert (sequence.truth, sequence.shape, len(sequence)) == ("ST", (700, 1100), 92)
    assert guess_scale(sequence) == CameraScale(32768, 36863)
    assert len(sequence.tracks) == 268
    mothers, children = np.unique(sequence.tracks[:, 3], return_counts=True)
    assert (children[mothers > 0] == 2).sum() == 94


@pytest.mark.parametrize("number", [12, 23])
def test_the_gold_truth_of_the_real_video_gets_the_ids_of_the_silver_truth(hela, number):
    gold = read_sequence(hela, "01", "GT").masks(number)
    silver = read_sequence(hela, "01", "ST").masks(number)
    for identity in np.unique(gold[gold > 0]):
        ids, counts = np.unique(silver[gold == identity], return_counts=True)
        assert ids[counts.argmax()] == identity
