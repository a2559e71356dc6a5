import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bvdm_data.clip import (
    TooManyNucleiError,
    annotate_masks,
    association,
    check_annotations,
    divisions,
    measure_boxes,
    pad_rows,
    split_gaps,
)
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.ctc import read_sequence
from tests.helpers.clips import MASKS, TABLE, with_tracks

movies = hnp.arrays(
    np.int64,
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5),
    elements=st.integers(0, 7),
)


@st.composite
def lineages(draw):
    parents = st.dictionaries(st.integers(1, 7), st.sampled_from([*range(8), 99]))
    return draw(movies), draw(parents)


@given(lineages())
@settings(max_examples=200, deadline=None)
def test_split_gaps_gives_valid_tracks(lineage):
    masks, parents = lineage
    renamed, table, old = split_gaps(masks, parents)
    assert np.array_equal(np.r_[0, old][renamed], masks)
    for frame, again in zip(masks, renamed, strict=True):
        assert len(np.unique(frame)) == len(np.unique(again))
    assert renamed.dtype == table.dtype == np.int32
    check_clip(with_tracks(renamed, table))


@given(lineages())
@settings(max_examples=100, deadline=None)
def test_split_gaps_gives_fewest_ids(lineage):
    masks, table, old = split_gaps(*lineage)
    for identity in range(1, len(table)):
        same = table[old == old[identity - 1]]
        # Two parts of one nucleus have at least one frame without it between them.
        assert (np.diff(np.sort(same[:, 1:3].ravel()))[1::2] > 1).all()
    assert len(np.unique(masks[masks > 0])) == len(table)


@pytest.mark.parametrize(
    ("frames", "parents", "table"),
    [
        ([7, 0, 7, 7, 0, 7], {7: 3}, [[1, 0, 0, 0], [2, 2, 3, 1], [3, 5, 5, 2]]),
        ([[5, 0], [5, 0], [8, 6]], {6: 5, 8: 5}, [[1, 0, 1, 0], [2, 2, 2, 1], [3, 2, 2, 1]]),
        ([1, 0, 1, 2], {2: 1}, [[1, 0, 0, 0], [2, 2, 2, 1], [3, 3, 3, 2]]),
        ([0, 2], {2: 1}, [[1, 1, 1, 0]]),
        ([0, 2], {2: 900}, [[1, 1, 1, 0]]),
        ([[5, 0], [5, 6], [5, 6]], {6: 5}, [[1, 0, 2, 0], [2, 1, 2, 0]]),
        ([[5, 0], [0, 0], [5, 6]], {6: 5}, [[1, 0, 0, 0], [2, 2, 2, 1], [3, 2, 2, 0]]),
        ([[6, 0], [0, 5]], {6: 5, 5: 5}, [[1, 0, 0, 0], [2, 1, 1, 0]]),
    ],
    ids=[
        "gaps", "division", "after a gap", "unseen parent", "unknown parent", "visible parent",
        "returned parent", "later parent",
    ],
)  # fmt: skip
def test_split_gaps_links_parts(frames, parents, table):
    assert split_gaps(np.array(frames).reshape(len(frames), 1, -1), parents)[1].tolist() == table


def test_split_gaps_of_nothing():
    with pytest.raises(ValueError, match=r"at least one frame, got the shape \(0, 2, 2\)"):
        split_gaps(np.zeros((0, 2, 2), np.int32), {})
    masks, table, old = split_gaps(np.zeros((3, 2, 2), np.uint16), {})
    assert not masks.any()
    assert (table.shape, old.shape) == ((0, 4), (0,))


@given(lineages())
@settings(max_examples=100, deadline=None)
def test_lineage_agrees_with_loop(lineage):
    masks, table, _ = split_gaps(*lineage)
    clip = with_tracks(masks, table)
    edges = set()
    for identity, first, last, parent in table.tolist():
        edges |= {(time, identity, identity) for time in range(first, last)}
        if parent and parent in masks[first - 1]:
            edges.add((first - 1, parent, identity))
    assert association(clip).tolist() == sorted(map(list, edges))
    children = {one: np.flatnonzero(table[:, 3] == one) + 1 for one in table[:, 0].tolist()}
    families = {one: both.tolist() for one, both in children.items() if len(both) > 1}
    if any(len(both) > 2 for both in families.values()):
        with pytest.raises(ValueError, match="tracks must have at most two daughters a mother"):
            divisions(clip)
        return
    found = {row[0]: row[1:] for row in divisions(clip).tolist()}
    births = dict(table[:, :2].tolist())
    assert found == {one: [*both, min(births[x] for x in both)] for one, both in families.items()}


def test_divisions_after_gaps_and_returns():
    # 1 leaves, returns as 3, leaves again before it divides; 2 leaves and returns; 6 divides late.
    rows = [
        [1, 0, 1, 0], [2, 0, 2, 0], [3, 3, 4, 1], [4, 6, 7, 3], [5, 7, 7, 3], [6, 4, 6, 2],
        [7, 7, 7, 6], [8, 7, 7, 6], [0, 0, 0, 0],
    ]  # fmt: skip
    clip = {"video": torch.zeros(8, 1, 2, 2), "tracks": torch.tensor(rows, dtype=torch.int32)}
    assert divisions(clip).tolist() == [[3, 4, 5, 6], [6, 7, 8, 7]]
    edges = association(clip)
    between = [row for row in edges.tolist() if row[1] != row[2]]
    assert between == [[6, 6, 7], [6, 6, 8]]
    assert divisions(clip).dtype == edges.dtype == torch.int64
    turned = {**clip, "tracks": clip["tracks"].flip(0)}
    assert torch.equal(divisions(turned), divisions(clip))
    assert torch.equal(association(turned), edges)


def test_real_divisions_are_counted(hela):
    tracks = read_sequence(hela, "01").tracks
    clip = {"video": torch.zeros(92, 1, 1, 1), "tracks": torch.from_numpy(tracks)}
    found, edges = divisions(clip), association(clip)
    assert len(found) == 94
    ends = dict(tracks[:, [0, 2]].tolist())
    births = edges[edges[:, 1] != edges[:, 2]]
    at_once = sum(ends[row[3]] == row[1] - 1 for row in tracks.tolist() if row[3])
    assert len(births) == at_once
    assert len(edges) - at_once == int((tracks[:, 2] - tracks[:, 1]).sum())


def test_lineage_of_nothing_is_empty():
    clip = {"video": torch.zeros(2, 1, 4, 4), "tracks": torch.zeros(5, 4, dtype=torch.int32)}
    assert divisions(clip).shape == (0, 4)
    assert association(clip).shape == (0, 3)
    one = {**clip, "tracks": torch.tensor([[70000, 0, 1, 0]])}
    with torch.device("meta"):  # a default device of the caller's
        assert association(one).tolist() == [[0, 70000, 70000]]


@pytest.mark.parametrize("read", [divisions, association])
def test_lineage_refuses_wrong_clips(read):
    clip = with_tracks(MASKS, TABLE)
    for changes, words in (
        (
            {"tracks": clip["tracks"][None]},
            r"one clip with tracks \[max_cells, 4\], got \[1, 3, 4\]",
        ),
        ({"tracks": torch.tensor([[2, 1, 1, 7]])}, "a row for every parent, got none for 7"),
    ):
        with pytest.raises(ValueError, match=words):
            read({**clip, **changes})
    with pytest.raises(ValueError, match=r"key 'tracks', .*annotations=\(\.\.\., 'tracks'\)"):
        read({"video": clip["video"]})


def test_pad_rows_fills_missing_rows():
    out = pad_rows(np.array([[1, 2]], np.int32), 3, 0)
    assert out.tolist() == [[1, 2], [0, 0], [0, 0]]
    assert out.dtype == torch.int32
    assert pad_rows(np.eye(2, dtype=np.float32), 2, np.nan).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(TooManyNucleiError, match=r"max_cells=2 is too small.*Give max_cells=5"):
        pad_rows(np.zeros((5, 4), np.int32), 2, 0)


def test_measure_boxes_edges_are_exclusive():
    boxes, centroids = measure_boxes(MASKS, 3)
    assert boxes[0, 0].tolist() == [0, 0, 2, 2]
    assert boxes[2, 1].tolist() == [2, 0, 3, 2]
    assert centroids[0, 0].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert centroids[2, 1].tolist() == [0.5, 2]

    boxes, centroids = measure_boxes(MASKS, 4)
    assert np.isnan(boxes[0, 1:]).all()
    assert np.isnan(centroids[3]).all()
    assert boxes.dtype == centroids.dtype == np.float32


@given(movies)
@settings(max_examples=100, deadline=None)
def test_measure_boxes_agrees_with_loop(masks):
    boxes, centroids = measure_boxes(masks, 7)
    for identity, frame in np.ndindex(7, len(masks)):
        y, x = np.nonzero(masks[frame] == identity + 1)
        if len(y):
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert boxes[identity, frame].tolist() == box
            np.testing.assert_allclose(centroids[identity, frame], [y.mean(), x.mean()], rtol=1e-6)
        else:
            assert np.isnan(boxes[identity, frame]).all()


def test_annotate_masks_gives_clip_shapes():
    found = annotate_masks(MASKS, TABLE, ("masks", "tracks", "boxes", "centroids"), 6)
    forms = {key: (tuple(value.shape), value.dtype) for key, value in found.items()}
    assert forms == {
        "masks": ((3, 2, 3), torch.int32),
        "tracks": ((6, 4), torch.int32),
        "boxes": ((6, 3, 4), torch.float32),
        "centroids": ((6, 3, 2), torch.float32),
    }
    assert set(annotate_masks(MASKS, TABLE, ("tracks", "centroids"), 6)) == {"tracks", "centroids"}
    with pytest.raises(TooManyNucleiError, match="it holds 3 nuclei"):
        annotate_masks(MASKS, TABLE, ("masks",), 2)


def test_check_annotations_sorts_and_dedups():
    assert check_annotations(["flow", "masks", "flow"]) == ("masks", "flow")
