import numpy as np
import pytest
import torch

from bvdm_data.clip import annotate_masks, measure_boxes, pad_rows
from bvdm_data.clip_check import check_clip

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


def a_clip(max_cells=4):
    """A good clip with all annotations, its own to spoil."""
    present = ~np.isnan(measure_boxes(MASKS, 3)[0][..., 0])
    stages = np.where(present, 0, -1).astype(np.int8)
    flow = torch.zeros(2, 2, 2, 3)
    flow[1, 0, 0, 0] = 0.5
    return {
        "video": torch.linspace(0, 1, 18).reshape(3, 1, 2, 3),
        **annotate_masks(MASKS.copy(), TABLE, ("masks", "tracks", "boxes", "centroids"), max_cells),
        "flow": flow,
        "stages": pad_rows(stages, max_cells, -1),
        "index": torch.tensor(0),
        "source": torch.tensor(1, dtype=torch.int8),
    }


def with_tracks(masks, table):
    clip = {
        "video": torch.zeros(len(masks), 1, *masks.shape[1:]),
        "index": torch.tensor(0),
        "source": torch.tensor(0, dtype=torch.int8),
    }
    return clip | annotate_masks(masks, table, ("masks", "tracks"), max(len(table), 1))


def test_check_clip_passes_a_good_clip():
    check_clip(a_clip())


def test_check_clip_passes_video_alone():
    clip = a_clip()
    check_clip({key: clip[key] for key in ("video", "index", "source")})


def test_check_clip_passes_tiny_clips():
    check_clip(with_tracks(np.zeros((2, 3, 3), np.int32), np.zeros((0, 4), np.int32)))
    check_clip(with_tracks(np.ones((1, 3, 3), np.int32), np.array([[1, 0, 0, 0]], np.int32)))


def test_check_clip_passes_flow_without_steps():
    clip = with_tracks(np.ones((1, 3, 3), np.int32), np.array([[1, 0, 0, 0]], np.int32))
    check_clip(clip | {"flow": torch.zeros(0, 2, 3, 3)})


def test_check_clip_passes_centroids_half_off():
    clip = a_clip()
    clip["centroids"] += 0.5
    check_clip(clip)


def test_check_clip_leaves_clip_alone():
    clip, before = a_clip(), a_clip()
    check_clip(clip)
    for key, value in before.items():
        assert torch.equal(clip[key].nan_to_num(-9), value.nan_to_num(-9))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_check_clip_takes_other_devices():
    check_clip({key: value.cuda() for key, value in a_clip().items()})


@pytest.mark.parametrize("key", ["video", "index", "source"])
def test_check_clip_refuses_a_clip_without(key):
    clip = a_clip()
    del clip[key]
    with pytest.raises(ValueError, match=f"a clip must have the key '{key}', got the keys"):
        check_clip(clip)


@pytest.mark.parametrize("key", list(a_clip()))
@pytest.mark.parametrize("value", [None, 0, np.zeros(3), "masks"])
def test_check_clip_refuses_non_tensors(key, value):
    with pytest.raises(ValueError, match=f"{key} must be a tensor, got"):
        check_clip(a_clip() | {key: value})


@pytest.mark.parametrize("key", list(a_clip()))
@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t[None],
        lambda t: t.reshape(-1)[:0],
        lambda t: t.reshape(-1),
        lambda t: t.bool(),
        lambda t: t.to(torch.complex64),
        lambda t: t.expand(2, *t.shape).movedim(0, -1),
        lambda t: torch.zeros(0, 0, 0, 0, dtype=t.dtype),
    ],
    ids=["a batch", "nothing", "flat", "bool", "complex", "deeper", "no pixel"],
)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_check_clip_refuses_every_wrong_form(key, spoil):
    clip = a_clip()
    spoilt = spoil(clip[key])
    clip[key] = spoilt
    with pytest.raises(ValueError, match=f"{key} must"):
        check_clip(clip)


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
        r"video must be \[F, 1, H, W\].*got \[3, 3, 2, 3\]",
    ),
    "video of no frame": (
        replaced("video", lambda v: v[:0]),
        r"video must have at least one frame and pixel, got \[0, 1, 2, 3\]",
    ),
    "video of no pixel": (replaced("video", lambda v: v[..., :0]), "at least one frame and pixel"),
    "video above 1": (changed("video", (0, 0, 0, 0), 1.5), "grey values from 0 to 1.*to 1.5"),
    "video below 0": (changed("video", (0, 0, 0, 0), -0.5), "grey values from 0 to 1.*from -0.5"),
    "video with NaN": (changed("video", (0, 0, 0, 0), torch.nan), "video must hold finite"),
    "masks of another dtype": (
        replaced("masks", torch.Tensor.long),
        "masks must be .* int32.*int64",
    ),
    "masks of another size": (
        replaced("masks", lambda m: m[:, :, :2]),
        r"masks must be \[3, 2, 3\]",
    ),
    "masks of fewer frames": (replaced("masks", lambda m: m[:2]), r"masks must be \[3, 2, 3\]"),
    "ids with a hole": (changed("tracks", (1, 0), 5), "tracks must list the ids 1 to n"),
    "zeros before rows": (
        replaced("tracks", lambda t: t.roll(1, 0)),
        "tracks must list the ids 1 to n",
    ),
    "padding that is not 0": (changed("tracks", (3, 1), 2), "ids 1 to n and then zeros"),
    "an id beyond the rows of tracks": (
        replaced("tracks", lambda t: t[:2]),
        "tracks must have a row for every id of masks, got 2 rows: no row for id 3",
    ),
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
        r"flow must be \[2, 2, 2, 3\] float32, got \[3, 2, 2, 3\]",
    ),
    "flow with NaN": (changed("flow", (1, 0, 0, 0), torch.nan), "flow must be finite"),
    "flow with infinity": (changed("flow", (0, 1, 0, 0), torch.inf), "flow must be finite"),
    "flow in the background": (
        changed("flow", (0, 1, 1, 2), 0.1),
        "flow must be 0 in the background, got a displacement in frame 0",
    ),
    "flow of a nucleus that divides": (
        changed("flow", (0, 1, 0, 1), 0.1),
        "flow must be 0 where a nucleus is not there in the next frame, .* id 1 in frame 0",
    ),
    "flow of a nucleus that is lost": (
        changed("flow", (1, 0, 1, 2), -0.1),
        "flow must be 0 where a nucleus is not there in the next frame, .* id 3 in frame 1",
    ),
    "masks with a negative id": (
        changed("masks", (0, 1, 2), -1),
        "masks must hold ids of 0 or more, got -1",
    ),
    "an id beyond all tables": (
        changed("masks", (0, 1, 2), 9),
        "tracks must have a row for every id of masks, got 4 rows: no row for id 9",
    ),
    "an id beyond the rows of stages": (
        replaced("stages", lambda s: s[:2]),
        "stages must have a row for every id of masks, got 2 rows: no row for id 3",
    ),
    "an id beyond the rows of boxes": (
        replaced("boxes", lambda b: b[:2]),
        "boxes must have a row for every id of masks, got 2 rows",
    ),
    "an id beyond the rows of centroids": (
        replaced("centroids", lambda c: c[:2]),
        "centroids must have a row for every id of masks, got 2 rows",
    ),
    "an id whose row is padding": (
        changed("masks", (0, 1, 2), 4),
        "tracks must list every id of masks, got no row for id 4",
    ),
    "tracks of three columns": (
        replaced("tracks", lambda t: t[:, :3]),
        r"tracks must be \[max_cells, 4\] int32, got \[4, 3\]",
    ),
    "tracks of another dtype": (
        replaced("tracks", torch.Tensor.long),
        "tracks must be .* int32, got .* int64",
    ),
    "a negative id in tracks": (changed("tracks", (3, 0), -1), "tracks must list the ids 1 to n"),
    "a negative parent": (changed("tracks", (1, 3), -1), "track 2 must begin after its parent -1"),
    "a track before the first frame": (
        changed("tracks", (0, 1), -1),
        r"track 1 must be visible in frames -1 to 0, got \[0\]",
    ),
    "a track past the last frame": (
        changed("tracks", (1, 2), 2**31 - 1),
        "track 2 must be visible in frames 1 to 2147483647",
    ),
    "an unknown stage": (changed("stages", (0, 0), 6), "stages must be codes from 0 to 5.*got 6"),
    "a stage below -1": (changed("stages", (0, 1), -2), "stages must be codes .* or -1, got -2"),
    "stages of another dtype": (replaced("stages", torch.Tensor.long), "stages must be .* int8"),
    "a box too large": (
        changed("boxes", (0, 0, 3), 3.0),
        r"boxes must enclose exactly the mask, got \[0.0, 0.0, 2.0, 3.0\] for id 1 in frame 0",
    ),
    "a box of infinite size": (
        changed("boxes", (2, 1, 2), torch.inf),
        "boxes must enclose exactly the mask, got .* for id 3 in frame 1",
    ),
    "half a box of nobody": (changed("boxes", (3, 2, 0), 1.0), "boxes must .* id 4 in frame 2"),
    "boxes of another dtype": (replaced("boxes", torch.Tensor.double), "boxes must be .* float32"),
    "centroids of three numbers": (
        replaced("centroids", lambda c: torch.cat([c, c[..., :1]], -1)),
        r"centroids must be \[max_cells, 3, 2\] float32, got \[4, 3, 3\]",
    ),
    "a centroid off by more than half a pixel": (
        changed("centroids", (2, 1, 1), 2.6),
        r"centroids must lie within 0.5 px of that of the mask, got \[0.5, 2.59.*id 3 in frame 1",
    ),
    "an index that is no integer": (
        replaced("index", torch.Tensor.float),
        r"index must be \[\] int64, got \[\] float32",
    ),
    "a source of another dtype": (replaced("source", torch.Tensor.long), "source must be .* int8"),
    "an unknown source": (
        replaced("source", lambda s: s + 1),
        r"source must be 1 \(synthetic\) or 0 \(real\), got 2",
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


def a_moving_clip():
    """Six discs that go 2 px to the right a frame, with their flow."""
    y, x = np.mgrid[:60, :90]
    masks = np.zeros((3, 60, 90), np.int32)
    flow = np.zeros((2, 2, 60, 90), np.float32)
    for number in range(6):
        for frame in range(3):
            down, right = 15 + 30 * (number // 3), 12 + 28 * (number % 3) + 2 * frame
            masks[frame][(y - down) ** 2 + (x - right) ** 2 < 64] = number + 1
    flow[:, 1] = 2 * (masks[:2] > 0)
    table = np.array([[n, 0, 2, 0] for n in range(1, 7)], np.int32)
    return with_tracks(masks, table) | {"flow": torch.from_numpy(flow)}


def test_check_clip_passes_true_flow():
    check_clip(a_moving_clip())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.neg, r"whole nuclei as their centroids move, within 1.0 px .*, got 4.00 px"),
        (torch.zeros_like, r"whole nuclei as their centroids move, .*, got 2.00 px"),
        (lambda flow: flow.flip(1), r"whole nuclei as their centroids move, .*, got 2.00 px"),
        (lambda flow: 8 * flow, r"carry most pixels of a nucleus to the same id .*, got \d+% of"),
    ],
    ids=["the wrong way", "none", "of swapped axes", "eight times too fast"],
)
def test_check_clip_refuses_flow(change, message):
    clip = a_moving_clip()
    with pytest.raises(ValueError, match=f"flow must .*{message}"):
        check_clip(clip | {"flow": change(clip["flow"])})


def test_check_clip_passes_nuclei_leaving_inside():
    """Where a transform has turned the edge into the picture, pixels are carried into nothing."""
    clip = a_moving_clip()
    flow, masks = clip["flow"].clone(), clip["masks"].clone()
    masks[masks > 1] = 0
    flow[:, 1] = 12.0 * (masks[:2] > 0)
    for frame in range(3):
        masks[frame] = masks[0].roll(12 * frame, 1)
    masks[:, :, 22:] = 0  # a third of it is left after the first step
    flow[1] = 0
    table = np.array([[1, 0, 1, 0]], np.int32)
    check_clip(with_tracks(masks.numpy(), table) | {"flow": flow})


def test_check_clip_passes_tables_without_masks():
    clip = a_clip()
    del clip["masks"]
    check_clip(clip)
    for key in ("tracks", "stages", "boxes", "centroids"):
        del clip[key]
        check_clip(clip)


UNMASKED = {
    "flow with NaN": (changed("flow", (0, 0, 0, 0), torch.nan), "flow must be finite"),
    "a missing stage": (
        changed("stages", (0, 0), -1),
        "stages must be given where, and only where, a nucleus is visible in tracks; .* id 1 in",
    ),
    "a missing box": (changed("boxes", (0, 0), torch.nan), "boxes must be .* visible in tracks"),
    "half a box of nobody": (changed("boxes", (3, 2, 0), 1.0), "boxes must .* id 4 in frame 2"),
    "a centroid of nobody": (changed("centroids", (3, 2), 1.0), "centroids must be given where"),
    "a track past the last frame": (
        changed("tracks", (1, 2), 3),
        "track 2 must lie within the frames 0 to 2, got 1 to 3",
    ),
    "a track that ends before it begins": (
        changed("tracks", (1, 2), 0),
        "track 2 must lie within the frames 0 to 2, got 1 to 0",
    ),
    "ids with a hole": (changed("tracks", (1, 0), 5), "tracks must list the ids 1 to n"),
    "a parent that still lives": (
        changed("tracks", (2, 3), 2),
        "track 3 must begin after its parent 2",
    ),
    "a box beyond the edge": (
        changed("boxes", (0, 0, 2), 4.0),
        r"boxes must lie in the picture, got \[0.0, 0.0, 4.0, 2.0\] for id 1 in frame 0",
    ),
    "a box of no width": (changed("boxes", (0, 0, 2), 0.0), "boxes must lie in the picture"),
    "an infinite centroid": (
        changed("centroids", (1, 2, 0), torch.inf),
        r"centroids must lie in the picture, got \[inf, 0.0\] for id 2 in frame 2",
    ),
    "tables of other lengths": (
        replaced("boxes", lambda b: b[:3]),
        r"same number of rows, max_cells, got .*'boxes': 3",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), UNMASKED.values(), ids=UNMASKED.keys())
def test_check_clip_refuses_without_masks(spoil, message):
    clip = a_clip()
    del clip["masks"]
    spoil(clip)
    with pytest.raises(ValueError, match=message):
        check_clip(clip)


def test_check_clip_refuses_a_negative_index():
    with pytest.raises(ValueError, match="index must be 0 or more, got -1"):
        check_clip(a_clip() | {"index": torch.tensor(-1)})
