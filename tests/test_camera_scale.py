import numpy as np
import pytest

from bvdm_data.clip import CameraScale


@pytest.mark.parametrize(("offset", "full"), [(0, 255), (32768, 36863), (0, 65535), (65534, 65535)])
def test_camera_scale_brings_every_count_back_as_it_was(offset, full):
    scale = CameraScale(offset, full)
    counts = np.arange(offset, full + 1).astype(np.uint16)
    grey = scale.to_grey(counts)
    assert grey.dtype == np.float32
    assert grey[0] == 0
    assert grey[-1] == 1
    np.testing.assert_array_equal(scale.to_counts(grey), counts)


def test_to_grey_clips_counts_outside_the_scale_and_leaves_its_input_alone():
    counts = np.array([0, 99, 100, 300, 500, 65535], np.uint16)
    grey = CameraScale(100, 500).to_grey(counts)
    np.testing.assert_array_equal(grey, np.array([0, 0, 0, 0.5, 1, 1], np.float32))
    assert counts.tolist() == [0, 99, 100, 300, 500, 65535]


def test_to_grey_takes_eight_bit_counts_under_an_offset_of_sixteen():
    assert CameraScale(32768, 36863).to_grey(np.array([7], np.uint8)).tolist() == [0]


def test_to_counts_rounds_and_clips():
    grey = np.array([-1, 0.249, 0.251, 0.5, 2, np.inf], np.float64)
    counts = CameraScale(10, 12).to_counts(grey)
    assert counts.dtype == np.uint16
    assert counts.tolist() == [10, 10, 11, 11, 12, 12]


@pytest.mark.parametrize(("offset", "full"), [(-1, 5), (5, 5), (6, 5), (0, 65536)])
def test_camera_scale_refuses_numbers_in_the_wrong_order(offset, full):
    with pytest.raises(ValueError, match=rf"0 <= offset < full.*offset={offset} and full={full}"):
        CameraScale(offset, full)


@pytest.mark.parametrize("value", [1.5, True, "0", None])
def test_camera_scale_refuses_an_offset_that_is_no_whole_number(value):
    with pytest.raises(TypeError, match=rf"offset must be an int.*got {value!r}"):
        CameraScale(value, 10)


def test_to_counts_refuses_nan():
    with pytest.raises(ValueError, match="got 1 NaN of 3"):
        CameraScale(0, 255).to_counts(np.array([0, np.nan, 1], np.float32))


def test_to_counts_refuses_integers():
    with pytest.raises(TypeError, match=r"floating dtype.*got int64"):
        CameraScale(0, 255).to_counts(np.array([1], np.int64))


def test_to_grey_refuses_floats():
    with pytest.raises(TypeError, match="counts must be integers, got the dtype float32"):
        CameraScale(0, 255).to_grey(np.array([1], np.float32))
