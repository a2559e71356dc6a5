import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bvdm_data.clip import (
    TooManyNucleiError,
    annotated,
    check_annotations,
    check_clip,
    measure_boxes,
    padded,
    unbroken_tracks,
)

MASKS = np.array(
    [
        [[1, 1, 0], [1, 0, 0]],
        [[2, 0, 3], [0, 0, 3]],
        [[2, 0, 0], [2, 0, 0]],
    ],
    np.int32,
)
"""Nucleus 1 divides into 2 and 3 in frame 1; 3 is lost in frame 2."""

TABLE = np.array([[1, 0, 0, 0], [2, 1, 2, 1], [3, 1, 1, 1]], np.int32)

movies = hnp.arrays(
    np.int64,
    hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5),
    elements=st.integers(0, 7),
)


def a_clip(max_cells=4):
    """A good clip with all annotations, its own to spoil."""
    present = ~np.isnan(measure_boxes(MASKS, 3)[0][..., 0])
    stages = np.where(present, 0, -1).astype(np.int8)
    flow = torch.zeros(2, 2, 2, 3)
    flow[1, 0, 0, 0] = 0.5
    return {
        "video": torch.linspace(0, 1, 18).reshape(3, 1, 2, 3),
        **annotated(MASKS.copy(), TABLE, ("masks", "tracks", "boxes", "centroids"), max_cells),
        "flow": flow,
        "stages": padded(stages, max_cells, -1),
        "index": torch.tensor(0),
        "source": torch.tensor(1, dtype=torch.int8),
    }


def with_tracks(masks, table):
    clip = {"video": torch.zeros(len(masks), 1, *masks.shape[1:])}
    return clip | annotated(masks, table, ("masks", "tracks"), max(len(table), 1))


def first_last(masks, identity):
    seen = np.flatnonzero((masks == identity).any((1, 2)))
    return (seen[0], seen[-1]) if len(seen) else (-1, -1)


@st.composite
def lineages(draw):
    """Movies of random labels, and parents that are gone before their daughters come."""
    masks = draw(movies)
    spans = {one: first_last(masks, one) for one in range(1, 8) if (masks == one).any()}
    parents = {}
    for child, (first, _) in spans.items():
        able = [0, *(one for one, (_, last) in spans.items() if last < first), 99]
        parents[child] = draw(st.sampled_from(able))
    return masks, parents


@given(lineages())
@settings(max_examples=200, deadline=None)
def test_unbroken_tracks_of_any_movie_pass_the_check_of_tracks(lineage):
    masks, table, _ = unbroken_tracks(*lineage)
    check_clip(with_tracks(masks, table))


@given(lineages())
@settings(max_examples=200, deadline=None)
def test_unbroken_tracks_keep_every_pixel_with_its_nucleus(lineage):
    masks, parents = lineage
    renamed, table, old = unbroken_tracks(masks, parents)
    assert np.array_equal(np.r_[0, old][renamed], masks)
    for frame, again in zip(masks, renamed, strict=True):
        assert len(np.unique(frame)) == len(np.unique(again))
    assert renamed.dtype == table.dtype == np.int32


@given(lineages())
@settings(max_examples=100, deadline=None)
def test_unbroken_tracks_give_as_few_ids_as_the_gaps_allow(lineage):
    masks, table, old = unbroken_tracks(*lineage)
    for identity in range(1, len(table)):
        same = table[old == old[identity - 1]]
        # Two parts of one nucleus have at least one frame without it between them.
        assert (np.diff(np.sort(same[:, 1:3].ravel()))[1::2] > 1).all()
    assert len(np.unique(masks[masks > 0])) == len(table)


def test_unbroken_tracks_make_a_nucleus_that_comes_back_the_child_of_itself():
    masks = np.array([1, 0, 1, 1, 0, 1]).reshape(6, 1, 1) * 7
    _, table, old = unbroken_tracks(masks, {7: 3})
    assert table.tolist() == [[1, 0, 0, 0], [2, 2, 3, 1], [3, 5, 5, 2]]
    assert old.tolist() == [7, 7, 7]


def test_unbroken_tracks_follow_a_division():
    masks = np.array([[5, 0], [5, 0], [8, 6]])[:, None]
    _, table, old = unbroken_tracks(masks, {6: 5, 8: 5})
    assert table.tolist() == [[1, 0, 1, 0], [2, 2, 2, 1], [3, 2, 2, 1]]
    assert old.tolist() == [5, 6, 8]


def test_unbroken_tracks_take_the_last_part_of_a_mother_that_was_hidden():
    masks = np.array([1, 0, 1, 2]).reshape(4, 1, 1)
    _, table, _ = unbroken_tracks(masks, {2: 1})
    assert table[2].tolist() == [3, 3, 3, 2]


def test_unbroken_tracks_forget_a_parent_that_is_never_visible():
    masks = np.array([0, 2]).reshape(2, 1, 1)
    assert unbroken_tracks(masks, {2: 1})[1].tolist() == [[1, 1, 1, 0]]
    assert unbroken_tracks(masks, {2: 900})[1].tolist() == [[1, 1, 1, 0]]


def test_unbroken_tracks_of_an_empty_movie_are_an_empty_table():
    masks, table, old = unbroken_tracks(np.zeros((3, 2, 2), np.uint16), {})
    assert not masks.any()
    assert table.shape == (0, 4)
    assert old.shape == (0,)


def test_padded_fills_the_rows_that_are_missing():
    out = padded(np.array([[1, 2]], np.int32), 3, 0)
    assert out.tolist() == [[1, 2], [0, 0], [0, 0]]
    assert out.dtype == torch.int32


def test_padded_leaves_a_full_table_as_it_is():
    assert padded(np.eye(2, dtype=np.float32), 2, np.nan).tolist() == [[1, 0], [0, 1]]


def test_padded_refuses_a_table_with_too_many_rows_and_names_the_number():
    with pytest.raises(TooManyNucleiError, match=r"max_cells=2 is too small.*Give max_cells=5"):
        padded(np.zeros((5, 4), np.int32), 2, 0)


def test_measure_boxes_has_exclusive_far_edges_and_x_first():
    boxes, centroids = measure_boxes(MASKS, 3)
    assert boxes[0, 0].tolist() == [0, 0, 2, 2]
    assert boxes[2, 1].tolist() == [2, 0, 3, 2]
    assert centroids[0, 0].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert centroids[2, 1].tolist() == [0.5, 2]


def test_measure_boxes_is_nan_where_a_nucleus_is_not_there():
    boxes, centroids = measure_boxes(MASKS, 4)
    assert np.isnan(boxes[0, 1:]).all()
    assert np.isnan(centroids[3]).all()
    assert boxes.dtype == centroids.dtype == np.float32


@given(movies)
@settings(max_examples=100, deadline=None)
def test_measure_boxes_agrees_with_a_slow_loop(masks):
    boxes, centroids = measure_boxes(masks, 7)
    for identity, frame in np.ndindex(7, len(masks)):
        y, x = np.nonzero(masks[frame] == identity + 1)
        if len(y):
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert boxes[identity, frame].tolist() == box
            np.testing.assert_allclose(centroids[identity, frame], [y.mean(), x.mean()], rtol=1e-6)
        else:
            assert np.isnan(boxes[identity, frame]).all()


def test_annotated_makes_the_wanted_keys_only():
    found = annotated(MASKS, TABLE, ("tracks", "centroids"), 6)
    assert set(found) == {"tracks", "centroids"}
    assert found["tracks"].shape == (6, 4)
    assert found["centroids"].shape == (6, 3, 2)


def test_annotated_gives_the_shapes_and_dtypes_of_a_clip():
    found = annotated(MASKS, TABLE, ("masks", "tracks", "boxes", "centroids"), 6)
    forms = {key: (tuple(value.shape), value.dtype) for key, value in found.items()}
    assert forms == {
        "masks": ((3, 2, 3), torch.int32),
        "tracks": ((6, 4), torch.int32),
        "boxes": ((6, 3, 4), torch.float32),
        "centroids": ((6, 3, 2), torch.float32),
    }


def test_annotated_refuses_more_nuclei_than_there_are_rows():
    with pytest.raises(TooManyNucleiError, match="it holds 3 nuclei"):
        annotated(MASKS, TABLE, ("masks",), 2)


def test_check_annotations_orders_the_names_and_drops_doubles():
    assert check_annotations(["flow", "masks", "flow"]) == ("masks", "flow")


def test_check_annotations_refuses_a_single_string():
    with pytest.raises(TypeError, match=r"got the string 'masks'; write \('masks',\)"):
        check_annotations("masks")


def test_check_annotations_refuses_a_name_that_it_does_not_know():
    with pytest.raises(ValueError, match=r"must be out of .*'centroids'.*got 'mask'"):
        check_annotations(("masks", "mask"))


def test_check_clip_passes_a_good_clip():
    check_clip(a_clip())


def test_check_clip_passes_a_clip_of_video_alone():
    clip = a_clip()
    check_clip({key: clip[key] for key in ("video", "index", "source")})


def test_check_clip_passes_a_clip_without_nuclei_and_a_clip_of_one_frame():
    check_clip(with_tracks(np.zeros((2, 3, 3), np.int32), np.zeros((0, 4), np.int32)))
    check_clip(with_tracks(np.ones((1, 3, 3), np.int32), np.array([[1, 0, 0, 0]], np.int32)))


def changed(key, place, value):
    """What spoils one number of a clip."""

    def spoil(clip):
        clip[key][place] = value

    return spoil


def replaced(key, change):
    """What replaces one tensor of a clip."""

    def spoil(clip):
        clip[key] = change(clip[key])

    return spoil


BROKEN = {
    "video of another dtype": (replaced("video", torch.Tensor.double), "video must be .* float32"),
    "video without channel": (
        replaced("video", lambda v: v[:, 0]),
        r"video must be \[F, 1, H, W\]",
    ),
    "video in colour": (
        replaced("video", lambda v: v.expand(3, 3, 2, 3)),
        r"video must be \[F, 1, H, W\].*got \(3, 3, 2, 3\)",
    ),
    "video above 1": (changed("video", (0, 0, 0, 0), 1.5), "grey values from 0 to 1.*to 1.5"),
    "video below 0": (changed("video", (0, 0, 0, 0), -0.5), "grey values from 0 to 1.*from -0.5"),
    "video with NaN": (changed("video", (0, 0, 0, 0), torch.nan), "video must hold finite"),
    "masks of another dtype": (
        replaced("masks", torch.Tensor.long),
        "masks must be .* int32.*int64",
    ),
    "masks of another size": (
        replaced("masks", lambda m: m[:, :, :2]),
        r"masks must be \(3, 2, 3\)",
    ),
    "masks of fewer frames": (replaced("masks", lambda m: m[:2]), r"masks must be \(3, 2, 3\)"),
    "ids with a hole": (changed("tracks", (1, 0), 5), "tracks must list the ids 1 to n"),
    "zeros before rows": (
        replaced("tracks", lambda t: t.roll(1, 0)),
        "tracks must list the ids 1 to n",
    ),
    "padding that is not 0": (changed("tracks", (3, 1), 2), "ids 1 to n and then zeros"),
    "an id without a row": (replaced("tracks", lambda t: t[:2]), "no row for id 3"),
    "a track too long": (changed("tracks", (2, 2), 2), r"track 3 must be visible in frames 1 to 2"),
    "a track too short": (changed("tracks", (1, 2), 1), r"track 2 .* frames 1 to 1, got \[1, 2\]"),
    "a track with a gap": (changed("masks", (1, 0, 0), 0), r"track 2 .* frames 1 to 2, got \[2\]"),
    "a track of nobody": (changed("tracks", 3, torch.tensor([4, 0, 1, 0])), r"track 4 .* got \[\]"),
    "a parent that still lives": (
        changed("tracks", (2, 3), 2),
        "track 3 must begin after its parent 2",
    ),
    "a parent of higher id": (
        changed("tracks", (0, 3), 3),
        "track 1 must begin after its parent 3",
    ),
    "a parent of itself": (changed("tracks", (1, 3), 2), "track 2 must begin after its parent 2"),
    "flow of another dtype": (replaced("flow", torch.Tensor.double), "flow must be .* float32"),
    "flow of all frames": (
        replaced("flow", lambda f: torch.zeros(3, 2, 2, 3)),
        r"flow must be \(2, 2, 2, 3\) float32, got \(3, 2, 2, 3\)",
    ),
    "flow with NaN": (changed("flow", (1, 0, 0, 0), torch.nan), "flow must be finite"),
    "flow with infinity": (changed("flow", (0, 1, 0, 0), torch.inf), "flow must be finite"),
    "flow in the background": (
        changed("flow", (0, 1, 1, 2), 0.1),
        "flow must be 0 in the background",
    ),
    "a stage of nobody": (changed("stages", (0, 2), 1), "stages must be given where, and only"),
    "a missing stage": (changed("stages", (0, 0), -1), "stages must be given where, and only"),
    "a box of nobody": (changed("boxes", (0, 2), 1.0), "boxes must be given where, and only"),
    "a box with NaN": (changed("boxes", (0, 0, 3), torch.nan), "boxes must be given where, and"),
    "a missing centroid": (
        changed("centroids", (1, 2), torch.nan),
        "centroids must be given where",
    ),
    "stages of fewer frames": (replaced("stages", lambda s: s[:, :2]), "stages must be"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_check_clip_refuses(spoil, message):
    clip = a_clip()
    spoil(clip)
    with pytest.raises(ValueError, match=message):
        check_clip(clip)
