import numpy as np
import pytest

from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.tracks import check_ids_match
from bvdm_data.evaluation.seg_tra import read_reference
from bvdm_data.evaluation.transfer import FRAMES, add_haze, read_other, transform_reference


@pytest.fixture(scope="module")
def reference(two_videos):
    return read_reference(two_videos, "02", border=4)


def test_changes_keep_or_scale_labels(reference):
    changed = transform_reference(reference)
    assert len(changed) == 6
    videos = [one.video for one in changed.values()]
    assert all(v.dtype == np.float32 and v.min() >= 0 and v.max() <= 1 for v in videos)
    for name, one in changed.items():
        check_ids_match(one.masks, one.tracks)
        zoom = float(name.split()[1]) if "rescaled" in name else 1
        assert one.video.shape == (FRAMES, round(128 * zoom), round(160 * zoom))
        assert one.border == round(4 * zoom)
        areas = [(masks > 0).sum() for masks in (one.masks, reference.masks[:FRAMES])]
        assert areas[0] == pytest.approx(areas[1] * zoom**2, rel=0.03)
        if zoom == 1:
            np.testing.assert_array_equal(one.masks > 0, reference.masks[:FRAMES] > 0)
            assert not np.allclose(one.video, reference.video[:FRAMES], atol=1e-3)
    again = transform_reference(reference)
    assert all(np.array_equal(one.video, again[name].video) for name, one in changed.items())


def test_haze_differs_by_frame():
    empty = np.full((350, 550), 0.07, np.float32)
    first, second = (add_haze(empty, frame) - empty for frame in (0, 1))
    assert np.array_equal(first, add_haze(empty, 0) - empty)
    for planted in (first, second):
        assert planted.min() >= 0
        # Haze covers more than debris, and neither is as bright as most nuclei.
        assert 0.02 < (planted > 0.004).mean() < 0.3
        assert 0.02 < planted.max() < 0.12
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.2


def test_other_video_is_brought_to_light(reference, tiny_video, tmp_path):
    video, masks, tracks = tiny_video
    # Another camera: eight bits, and light that is a third as strong.
    dim = ((video - 32768.0) / 48 + 20).astype(np.uint8)
    write_sequence(tmp_path, "07", dim, masks, tracks)
    other = read_other(tmp_path, "07", reference.video, border=4)
    np.testing.assert_allclose(other.video[:, ::-1], reference.video, atol=0.012)
    np.testing.assert_array_equal(other.masks[:, ::-1] > 0, reference.masks > 0)
    write_sequence(tmp_path, "08", 0 * dim, masks, tracks)
    with pytest.raises(ValueError, match=r"'08' of .* must show light, got 0 everywhere"):
        read_other(tmp_path, "08", reference.video, border=4)
