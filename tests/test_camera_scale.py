import numpy as np
import pytest

from bvdm_data.clip import CameraScale


@pytest.mark.parametrize(("offset", "full"), [(32768, 36863), (0, 65535), (65534, 65535)])
def test_counts_survive_grey(offset, full):
    scale = CameraScale(offset, full)
    counts = np.arange(offset, full + 1).astype(np.uint16)
    grey = scale.to_grey(counts)
    assert (grey.dtype, grey[0], grey[-1]) == (np.float32, 0, 1)
    np.testing.assert_array_equal(scale.to_counts(grey), counts)


def test_values_outside_are_clipped():
    counts = np.array([0, 99, 100, 300, 500, 65535], np.uint16)
    grey = CameraScale(100, 500).to_grey(counts)
    np.testing.assert_array_equal(grey, np.array([0, 0, 0, 0.5, 1, 1], np.float32))
    assert counts.tolist() == [0, 99, 100, 300, 500, 65535]
    assert CameraScale(32768, 36863).to_grey(np.array([7], np.uint8)).tolist() == [0]
    counts = CameraScale(10, 12).to_counts(np.array([-1, 0.249, 0.251, 0.5, 2, np.inf]))
    assert counts.dtype == np.uint16
    assert counts.tolist() == [10, 10, 11, 11, 12, 12]


def test_impossible_scales_are_refused():
    for offset, full in ((-1, 5), (5, 5), (0, 65536)):
        with pytest.raises(ValueError, match=rf"0 <= offset < full.*{offset} and full={full}"):
            CameraScale(offset, full)
    for value in (1.5, True, "0", None):
        with pytest.raises(TypeError, match=rf"offset must be an int.*got {value!r}"):
            CameraScale(value, 10)
    with pytest.raises(TypeError, match="counts must be integers, got the dtype float32"):
        CameraScale(0, 255).to_grey(np.array([1], np.float32))
