import numpy as np
import pytest

from bvdm_data.evaluation.seg_tra import read_reference, score
from bvdm_data.fitting.tracker import apply_links, track


def moving_blobs(frames=8):
    masks = np.zeros((frames, 120, 120), np.int32)
    y, x = np.mgrid[:120, :120]
    for frame in range(frames):
        masks[frame][np.hypot(y - 20, x - 20 - 4 * frame) < 7] = 1
        masks[frame][np.hypot(y - 100 + 3 * frame, x - 100) < 7] = 2
        if frame < 4:
            masks[frame][np.hypot(y - 60, x - 30 - 2 * frame) < 8] = 3
        else:
            masks[frame][np.hypot(y - 60 + 3 + 2 * (frame - 2), x - 38) < 5] = 4
            masks[frame][np.hypot(y - 60 - 3 - 2 * (frame - 2), x - 38) < 5] = 5
    last = frames - 1
    tracks = [[1, 0, last, 0], [2, 0, last, 0], [3, 0, 3, 0], [4, 4, last, 3], [5, 4, last, 3]]
    return masks, np.array(tracks, np.int32)


def shuffled(masks):
    draws = np.random.default_rng(3)
    names = [np.r_[0, 1 + draws.permutation(50)[: masks.max()]] for _ in masks]
    return np.stack([new[frame] for new, frame in zip(names, masks, strict=True)])


def test_track_follows_blobs_through_division():
    masks, tracks = moving_blobs()
    found = track(shuffled(masks))
    assert found[0].dtype == found[1].dtype == np.int32
    scores = score(*found, masks, tracks)
    assert (scores.valid, scores.lnk, scores.bc, scores.tra) == (1, 1, 1, 1)
    assert np.array_equal(found[0] > 0, masks > 0)
    assert np.bincount(found[1][:, 3]).tolist().count(2) == 1


def test_track_ignores_label_values():
    masks, _ = moving_blobs()
    first, second = track(masks), track(masks)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    again = track(np.where(masks, 77 + masks, 0))
    assert np.array_equal(again[0], first[0])
    assert track(masks[:1])[1].tolist() == [[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]]


def test_equal_costs_link_by_place():
    # Left and right go up and down: all four steps are as long.
    goes_up = set()
    for names in ((1, 2, 1, 2), (1, 2, 2, 1), (2, 1, 1, 2), (9, 4, 7, 5)):
        masks = np.zeros((2, 41, 41), np.int32)
        places = (0, 20, 10), (0, 20, 30), (1, 10, 20), (1, 30, 20)
        for name, (frame, y, x) in zip(names, places, strict=True):
            masks[frame, y - 2 : y + 3, x - 2 : x + 3] = name
        found, table = track(masks)
        assert table[:, 1:].tolist() == [[0, 1, 0]] * 2
        goes_up.add(found[0, 20, 10] == found[1, 10, 20])
    assert len(goes_up) == 1


def test_track_restarts_after_gaps():
    masks = np.zeros((4, 80, 80), np.int32)
    masks[0, 5:10, 5:10] = masks[1, 5:10, 5:10] = 1
    masks[2:, 65:70, 65:70] = 1
    assert track(masks)[1].tolist() == [[1, 0, 1, 0], [2, 2, 3, 0]]
    masks[1] = 0
    assert [row[:3] for row in track(masks)[1].tolist()] == [[1, 0, 0], [2, 2, 3]]


@pytest.mark.parametrize("empty", [(0, 3), (2,), (0, 1, 2, 3)])
def test_track_takes_frames_without_nuclei(empty):
    masks, _ = moving_blobs(4)
    masks[list(empty)] = 0
    found, table = track(masks)
    assert np.array_equal(found > 0, masks > 0)
    for identity, first, last, _ in table.tolist():
        there = np.flatnonzero((found == identity).any((1, 2)))
        assert there.tolist() == list(range(first, last + 1))
    for shape in ((4, 4), (0, 4, 4)):
        with pytest.raises(ValueError, match=r"labels must be \[F, H, W\] with F at least 1"):
            track(np.zeros(shape, int))


def test_apply_links_makes_daughters():
    labels = np.array([[[5, 0, 0]], [[2, 0, 0]], [[1, 0, 9]], [[1, 0, 3]]])
    edges = [((0, 5), (1, 2)), ((1, 2), (2, 1)), ((1, 2), (2, 9)), ((2, 9), (3, 3))]
    masks, table = apply_links(labels, edges)
    assert table.tolist() == [[1, 0, 1, 0], [2, 2, 2, 1], [3, 2, 3, 1], [4, 3, 3, 0]]
    assert masks[:, 0, [0, 2]].tolist() == [[1, 0], [1, 0], [2, 3], [4, 3]]


def test_apply_links_keeps_first_predecessor():
    labels = np.array([[[1, 2]], [[1, 0]]])
    _, table = apply_links(labels, [((0, 2), (1, 1)), ((0, 1), (1, 1))])
    assert table.tolist() == [[1, 0, 0, 0], [2, 0, 1, 0]]


def test_track_links_real_reference_masks(hela):
    reference = read_reference(hela, "02", stop=6)
    found = track(reference.masks)
    scores = score(*found, reference.masks, reference.tracks)
    assert scores.valid == scores.det == 1
    assert scores.lnk > 0.97
    assert scores.bc > 0.7
