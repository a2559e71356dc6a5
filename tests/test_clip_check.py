import numpy as np
import pytest
import torch

from bvdm_data.clip import annotate_masks, measure_boxes, pad_rows
from bvdm_data.clip_check import check_clip
from tests.helpers.clips import MASKS, TABLE, with_tracks


def a_clip(max_cells=4):
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


def test_check_clip_passes_good_clips():
    clip, before = a_clip(), a_clip()
    check_clip(clip)
    for key, value in before.items():
        assert torch.equal(clip[key].nan_to_num(-9), value.nan_to_num(-9))
    check_clip({key: clip[key] for key in ("video", "index", "source")})
    clip["centroids"] += 0.5
    check_clip(clip)
    check_clip(with_tracks(np.zeros((2, 3, 3), np.int32), np.zeros((0, 4), np.int32)))
    still = with_tracks(np.ones((1, 3, 3), np.int32), np.array([[1, 0, 0, 0]], np.int32))
    check_clip(still)
    check_clip(still | {"flow": torch.zeros(0, 2, 3, 3)})
    clip = a_clip()
    for key in ("masks", "tracks", "stages", "boxes", "centroids"):
        del clip[key]
        check_clip(clip)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_check_clip_takes_other_devices():
    check_clip({key: value.cuda() for key, value in a_clip().items()})


def refuse(clip, message):
    with pytest.raises(ValueError, match=message):
        check_clip(clip)


@pytest.mark.parametrize("key", list(a_clip()))
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_check_clip_refuses_every_wrong_form(key):
    clip = a_clip()
    value = clip.pop(key)
    if key in ("video", "index", "source"):
        refuse(clip, f"a clip must have the key '{key}', got the keys")
    for other in (None, 0, np.zeros(3), "masks"):
        refuse(clip | {key: other}, f"{key} must be a tensor, got")
    for spoilt in (
        value[None], value.reshape(-1)[:0], value.reshape(-1), value.bool(),
        value.to(torch.complex64), value.expand(2, *value.shape).movedim(0, -1),
        torch.zeros(0, 0, 0, 0, dtype=value.dtype),
    ):  # fmt: skip
        refuse(clip | {key: spoilt}, f"{key} must")


def put(key, place, value):
    def spoil(clip):
        clip[key][place] = value

    return spoil


def swap(key, change):
    def spoil(clip):
        clip[key] = change(clip[key])

    return spoil


BROKEN = {
    "video of another dtype": (swap("video", torch.Tensor.double), "video must be .* float32"),
    "video without channel": (swap("video", lambda v: v[:, 0]),
     r"video must be \[F, 1, H, W\]"),
    "video in colour": (swap("video", lambda v: v.expand(3, 3, 2, 3)),
     r"video must be \[F, 1, H, W\].*got \[3, 3, 2, 3\]"),
    "video of no frame": (swap("video", lambda v: v[:0]),
     r"video must have at least one frame and pixel, got \[0, 1, 2, 3\]"),
    "video of no pixel": (swap("video", lambda v: v[..., :0]), "at least one frame and pixel"),
    "video above 1": (put("video", (0, 0, 0, 0), 1.5), "grey values from 0 to 1.*to 1.5"),
    "video below 0": (put("video", (0, 0, 0, 0), -0.5), "grey values from 0 to 1.*from -0.5"),
    "video with NaN": (put("video", (0, 0, 0, 0), torch.nan), "video must hold finite"),
    "masks of another dtype": (swap("masks", torch.Tensor.long),
     "masks must be .* int32.*int64"),
    "masks of another size": (swap("masks", lambda m: m[:, :, :2]),
     r"masks must be \[3, 2, 3\]"),
    "masks of fewer frames": (swap("masks", lambda m: m[:2]), r"masks must be \[3, 2, 3\]"),
    "ids with a hole": (put("tracks", (1, 0), 5), "tracks must list the ids 1 to n"),
    "zeros before rows": (swap("tracks", lambda t: t.roll(1, 0)),
     "tracks must list the ids 1 to n"),
    "padding that is not 0": (put("tracks", (3, 1), 2), "ids 1 to n and then zeros"),
    "an id beyond the rows of tracks": (swap("tracks", lambda t: t[:2]),
     "tracks must have a row for every id of masks, got 2 rows: no row for id 3"),
    "a track too long": (put("tracks", (2, 2), 2), r"track 3 must be visible in frames 1 to 2"),
    "a track too short": (put("tracks", (1, 2), 1), r"track 2 .* frames 1 to 1, got \[1, 2\]"),
    "a track with a gap": (put("masks", (1, 0, 0), 0), r"track 2 .* frames 1 to 2, got \[2\]"),
    "a track of nobody": (put("tracks", 3, torch.tensor([4, 0, 1, 0])), r"track 4 .* got \[\]"),
    "a parent that still lives": (put("tracks", (2, 3), 2),
     "track 3 must begin after its parent 2"),
    "a parent of higher id": (put("tracks", (0, 3), 3),
     "track 1 must begin after its parent 3"),
    "a parent of itself": (put("tracks", (1, 3), 2), "track 2 must begin after its parent 2"),
    "flow of another dtype": (swap("flow", torch.Tensor.double), "flow must be .* float32"),
    "flow of all frames": (swap("flow", lambda f: torch.zeros(3, 2, 2, 3)),
     r"flow must be \[2, 2, 2, 3\] float32, got \[3, 2, 2, 3\]"),
    "flow with NaN": (put("flow", (1, 0, 0, 0), torch.nan), "flow must be finite"),
    "flow with infinity": (put("flow", (0, 1, 0, 0), torch.inf), "flow must be finite"),
    "flow in the background": (put("flow", (0, 1, 1, 2), 0.1),
     "flow must be 0 in the background, got a displacement in frame 0"),
    "flow of a nucleus that divides": (put("flow", (0, 1, 0, 1), 0.1),
     "flow must be 0 where a nucleus is not there in the next frame, .* id 1 in frame 0"),
    "flow of a nucleus that is lost": (put("flow", (1, 0, 1, 2), -0.1),
     "flow must be 0 where a nucleus is not there in the next frame, .* id 3 in frame 1"),
    "masks with a negative id": (put("masks", (0, 1, 2), -1),
     "masks must hold ids of 0 or more, got -1"),
    "an id beyond all tables": (put("masks", (0, 1, 2), 9),
     "tracks must have a row for every id of masks, got 4 rows: no row for id 9"),
    "an id beyond the rows of stages": (swap("stages", lambda s: s[:2]),
     "stages must have a row for every id of masks, got 2 rows: no row for id 3"),
    "an id beyond the rows of boxes": (swap("boxes", lambda b: b[:2]),
     "boxes must have a row for every id of masks, got 2 rows"),
    "an id beyond the rows of centroids": (swap("centroids", lambda c: c[:2]),
     "centroids must have a row for every id of masks, got 2 rows"),
    "an id whose row is padding": (put("masks", (0, 1, 2), 4),
     "tracks must list every id of masks, got no row for id 4"),
    "tracks of three columns": (swap("tracks", lambda t: t[:, :3]),
     r"tracks must be \[max_cells, 4\] int32, got \[4, 3\]"),
    "tracks of another dtype": (swap("tracks", torch.Tensor.long),
     "tracks must be .* int32, got .* int64"),
    "a negative id in tracks": (put("tracks", (3, 0), -1), "tracks must list the ids 1 to n"),
    "a negative parent": (put("tracks", (1, 3), -1), "track 2 must begin after its parent -1"),
    "a track before the first frame": (put("tracks", (0, 1), -1),
     r"track 1 must be visible in frames -1 to 0, got \[0\]"),
    "a track past the last frame": (put("tracks", (1, 2), 2**31 - 1),
     "track 2 must be visible in frames 1 to 2147483647"),
    "an unknown stage": (put("stages", (0, 0), 7), "stages must be codes from 0 to 6.*got 7"),
    "a stage below -1": (put("stages", (0, 1), -2), "stages must be codes .* or -1, got -2"),
    "stages of another dtype": (swap("stages", torch.Tensor.long), "stages must be .* int8"),
    "a box too large": (put("boxes", (0, 0, 3), 3.0),
     r"boxes must enclose exactly the mask, got \[0.0, 0.0, 2.0, 3.0\] for id 1 in frame 0"),
    "a box of infinite size": (put("boxes", (2, 1, 2), torch.inf),
     "boxes must enclose exactly the mask, got .* for id 3 in frame 1"),
    "half a box of nobody": (put("boxes", (3, 2, 0), 1.0), "boxes must .* id 4 in frame 2"),
    "boxes of another dtype": (swap("boxes", torch.Tensor.double), "boxes must be .* float32"),
    "centroids of three numbers": (swap("centroids", lambda c: torch.cat([c, c[..., :1]], -1)),
     r"centroids must be \[max_cells, 3, 2\] float32, got \[4, 3, 3\]"),
    "a centroid off by more than half a pixel": (put("centroids", (2, 1, 1), 2.6),
     r"centroids must lie within 0.5 px of that of the mask, got \[0.5, 2.59.*id 3 in frame 1"),
    "an index that is no integer": (swap("index", torch.Tensor.float),
     r"index must be \[\] int64, got \[\] float32"),
    "a source of another dtype": (swap("source", torch.Tensor.long), "source must be .* int8"),
    "an unknown source": (swap("source", lambda s: s + 1),
     r"source must be 1 \(synthetic\) or 0 \(real\), got 2"),
    "a stage of nobody": (put("stages", (0, 2), 1), "stages must be given where, and only"),
    "a missing stage": (put("stages", (0, 0), -1), "stages must be given where, and only"),
    "a box of nobody": (put("boxes", (0, 2), 1.0), "boxes must be given where, and only"),
    "a box with NaN": (put("boxes", (0, 0, 3), torch.nan), "boxes must be given where, and"),
    "a missing centroid": (put("centroids", (1, 2), torch.nan),
     "centroids must be given where"),
    "stages of fewer frames": (swap("stages", lambda s: s[:, :2]), "stages must be"),
    "a negative index": (swap("index", lambda i: i - 1), "index must be 0 or more, got -1"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_check_clip_refuses(spoil, message):
    clip = a_clip()
    spoil(clip)
    refuse(clip, message)


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


def test_check_clip_compares_flow_with_motion():
    clip = a_moving_clip()
    check_clip(clip)
    flow = clip["flow"]
    centres = "whole nuclei as their centroids move, within 1.0 px .*, got {}.00 px"
    for wrong, message in (
        (-flow, centres.format(4)),
        (0 * flow, centres.format(2)),
        (flow.flip(1), centres.format(2)),
        (8 * flow, r"carry most pixels of a nucleus to the same id .*, got \d+% of"),
    ):
        refuse(clip | {"flow": wrong}, f"flow must .*{message}")


def test_check_clip_passes_nuclei_leaving_inside():
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


def a_scene(step=3, gap=0, light=(0.1, 0.6), seen=8):
    """Two nuclei, the dim one before the bright one or beside it; both take a step."""
    masks = np.zeros((2, 40, 80), np.int32)
    video = np.zeros((2, 1, 40, 80), np.float32)
    for frame, left in enumerate((10, 10 + step)):
        video[frame, 0, 10:20, left : left + 10] = light[0]
        video[frame, 0, 10:20, left + 10 + gap : left + 20 + gap] = light[1]
        masks[frame, 10:20, left + 10 + gap : left + 20 + gap] = 2
        masks[frame, 10:20, left : left + seen] = 1
    table = np.array([[1, 0, 1, 0], [2, 0, 1, 0]], np.int32)
    return with_tracks(masks, table) | {"video": torch.from_numpy(video)}


def test_check_clip_knows_rules_of_scenes():
    for fair in (a_scene(), a_scene(seen=12), a_scene(step=30, gap=3), a_scene(light=(0.3, 0.5))):
        check_clip(fair, longest_step=30)
    for wrong, message in (
        (a_scene(step=32, gap=3), "show no step beyond 30 px, got 32.0 px of id 1 after frame 0"),
        (
            a_scene(seen=14),
            "not lie on brighter neighbours, got 40 px of id 1 with the light of id 2",
        ),
    ):
        check_clip(wrong)
        with pytest.raises(ValueError, match=f"masks must {message}"):
            check_clip(wrong, longest_step=30)
    sliver = a_scene()
    sliver["masks"][sliver["masks"] == 1] = 0
    sliver["masks"][0, 12:21, 19] = sliver["masks"][1, 12:21, 22] = 1
    check_clip(sliver)
    with pytest.raises(
        ValueError, match="masks must show at least 10 px of a nucleus between others, got 9 px"
    ):
        check_clip(sliver, longest_step=30)


UNMASKED = {
    "flow with NaN": (put("flow", (0, 0, 0, 0), torch.nan), "flow must be finite"),
    "a missing stage": (put("stages", (0, 0), -1),
     "stages must be given where, and only where, a nucleus is visible in tracks; .* id 1 in"),
    "a missing box": (put("boxes", (0, 0), torch.nan), "boxes must be .* visible in tracks"),
    "half a box of nobody": (put("boxes", (3, 2, 0), 1.0), "boxes must .* id 4 in frame 2"),
    "a centroid of nobody": (put("centroids", (3, 2), 1.0), "centroids must be given where"),
    "a track past the last frame": (put("tracks", (1, 2), 3),
     "track 2 must lie within the frames 0 to 2, got 1 to 3"),
    "a track that ends before it begins": (put("tracks", (1, 2), 0),
     "track 2 must lie within the frames 0 to 2, got 1 to 0"),
    "ids with a hole": (put("tracks", (1, 0), 5), "tracks must list the ids 1 to n"),
    "a parent that still lives": (put("tracks", (2, 3), 2),
     "track 3 must begin after its parent 2"),
    "a box beyond the edge": (put("boxes", (0, 0, 2), 4.0),
     r"boxes must lie in the picture, got \[0.0, 0.0, 4.0, 2.0\] for id 1 in frame 0"),
    "a box of no width": (put("boxes", (0, 0, 2), 0.0), "boxes must lie in the picture"),
    "an infinite centroid": (put("centroids", (1, 2, 0), torch.inf),
     r"centroids must lie in the picture, got \[inf, 0.0\] for id 2 in frame 2"),
    "tables of other lengths": (swap("boxes", lambda b: b[:3]),
     r"same number of rows, max_cells, got .*'boxes': 3"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), UNMASKED.values(), ids=UNMASKED.keys())
def test_check_clip_refuses_without_masks(spoil, message):
    clip = a_clip()
    del clip["masks"]
    spoil(clip)
    refuse(clip, message)
