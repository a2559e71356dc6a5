import math

import numpy as np
import pytest
from scipy import ndimage

from bvdm_data.clip import split_gaps
from bvdm_data.datasets.ctc import guess_scale, read_sequence, write_sequence
from bvdm_data.evaluation import seg_tra
from bvdm_data.evaluation.seg_tra import (
    Matches,
    Scores,
    clear_border,
    clear_outside,
    match_nuclei,
    read_reference,
    score,
)


@pytest.fixture(scope="module")
def truth():
    """Return masks [8, 96, 96] and tracks of 16 discs; one divides in frame 4."""
    y, x = np.mgrid[:96, :96]
    masks = np.zeros((8, 96, 96), np.int32)
    for number in range(16):
        row, column = 12 + 24 * (number // 4), 12 + 24 * (number % 4)
        for frame in range(8):
            if number == 5 and frame >= 4:
                masks[frame][np.hypot(y - row - 5, x - column) < 4.5] = 17
                masks[frame][np.hypot(y - row + 5, x - column) < 4.5] = 18
            else:
                masks[frame][np.hypot(y - row, x - column - frame / 2) < 7.5] = number + 1
    renamed, tracks, _ = split_gaps(masks, {17: 6, 18: 6})
    return renamed, tracks


def damaged(truth, masks):
    """Score other masks, with the table that belongs to them."""
    parents = {int(row[0]): int(row[3]) for row in truth[1]}
    renamed, tracks, _ = split_gaps(masks, parents)
    return score(renamed, tracks, *truth)


def eroded(masks, pixels):
    if pixels == 0:
        return masks
    thin = [
        sum(ndimage.binary_erosion(frame == one, iterations=pixels) * one for one in range(1, 19))
        for frame in masks
    ]
    return np.stack(thin).astype(np.int32)


def with_some_left_out(masks, share):
    draws = np.random.default_rng(1)
    kept = masks.copy()
    for frame in kept:
        for one in np.unique(frame[frame > 0]):
            if draws.random() < share:
                frame[frame == one] = 0
    return kept


def with_ids_swapped(masks, pairs):
    """Swap the ids of pairs of neighbours in every second frame."""
    swapped = masks.copy()
    for first in range(1, 2 * pairs, 2):
        for frame in range(1, 4, 2):
            swapped[frame][masks[frame] == first] = first + 1
            swapped[frame][masks[frame] == first + 1] = first
    return swapped


def test_perfect_result_scores_one_everywhere(truth):
    assert score(*truth, *truth) == Scores(1, 1, 1, 1, 1, 1)
    masks, tracks = truth
    moved = tracks.copy()
    moved[:, 0] += 100
    moved[:, 3] += 100 * (moved[:, 3] > 0)
    padded = np.concatenate([moved, np.zeros((5, 4), np.int32)])
    assert score(np.where(masks, masks + 100, 0), padded, *truth) == Scores(1, 1, 1, 1, 1, 1)


def test_thinner_masks_lower_seg_only(truth):
    scores = [damaged(truth, eroded(truth[0], pixels)) for pixels in (0, 1, 2)]
    seg = [one.seg for one in scores]
    assert seg[0] == 1
    assert seg[0] - 0.15 > seg[1] > seg[2] + 0.15
    # Half a radius less is less than half of the area: not found any more.
    assert scores[1].tra == scores[1].det == 1
    assert scores[2].det < 1
    shares = [
        (frame_thin == one).sum() / (frame == one).sum()
        for frame, frame_thin in zip(truth[0], eroded(truth[0], 1), strict=True)
        for one in np.unique(frame[frame > 0])
    ]
    assert seg[1] == pytest.approx(np.mean(shares), abs=1e-9)


def test_missing_masks_lower_every_score(truth):
    scores = [damaged(truth, with_some_left_out(truth[0], share)) for share in (0, 0.1, 0.3)]
    for name in ("seg", "det", "tra", "lnk"):
        values = [getattr(one, name) for one in scores]
        assert values[0] == 1
        assert values[0] - 0.05 > values[1] > values[2] + 0.05
    assert [one.valid for one in scores] == [1, 1, 1]


def test_swapped_ids_lower_links_only(truth):
    scores = [damaged(truth, with_ids_swapped(truth[0], pairs)) for pairs in (0, 1, 2)]
    links = [one.lnk for one in scores]
    assert 1 == links[0] > links[1] > links[2]
    assert [one.seg for one in scores] == [one.det for one in scores] == [1, 1, 1]
    assert scores[2].tra < scores[0].tra


def test_missed_division_lowers_bc(truth):
    masks, tracks = truth
    alone = tracks.copy()
    alone[:, 3] = 0
    missed = score(masks, alone, masks, tracks)
    assert (missed.bc, missed.seg, missed.det) == (0, 1, 1)
    assert missed.lnk < 1
    masks, tracks = masks[:3], tracks[tracks[:, 1] < 3]
    tracks = np.column_stack([tracks[:, :2], np.minimum(tracks[:, 2], 2), tracks[:, 3]])
    found = score(masks, tracks, masks, tracks)
    assert math.isnan(found.bc)
    assert found.tra == 1


def test_score_of_invalid_or_empty_result(truth, capsys, tmp_path, monkeypatch):
    masks, tracks = truth
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = score(masks, tracks[tracks[:, 0] != 2], masks, tracks)
    assert found.valid == 0
    assert math.isnan(found.seg)
    assert math.isnan(found.tra)
    nothing = score(np.zeros_like(masks), np.zeros((0, 4), np.int32), *truth)
    assert nothing == Scores(0, 0, 0, 0, 0, 0)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def with_far_ids(masks, tracks, top):
    """Number the nuclei up to ``top``."""
    shift = top - int(tracks[:, 0].max())
    moved = tracks.copy()
    moved[:, 0] += shift
    moved[:, 3] += shift * (moved[:, 3] > 0)
    return np.where(masks, masks + shift, 0), moved


@pytest.mark.parametrize("tops", [(65535, 65535), (65535, 18), (40, 65535), (40000, 40000)])
def test_size_of_ids_changes_no_score(truth, tops):
    parents = {17: 6, 18: 6}
    found, table, _ = split_gaps(with_some_left_out(truth[0], 0.1), parents)
    result = with_far_ids(found, table, tops[0])
    assert score(*result, *with_far_ids(*truth, tops[1])) == score(found, table, *truth)


def test_single_frames_have_no_links(truth):
    masks, table, _ = split_gaps(np.arange(4).reshape(2, 1, 2) + 1, {})
    perfect = score(masks, table, masks, table)
    assert (perfect.seg, perfect.det, perfect.tra, perfect.valid) == (1, 1, 1, 1)
    assert math.isnan(perfect.lnk)
    nothing = score(0 * masks, table[:0], masks, table)
    assert nothing.tra == 0
    assert math.isnan(nothing.lnk)


def test_frames_without_background_count(truth):
    masks = np.zeros((3, 6, 6), np.int32)
    masks[:, :3], masks[:, 3:] = 1, 2
    tracks = np.array([[1, 0, 2, 0], [2, 0, 2, 0]])
    assert score(masks, tracks, masks, tracks).tra == 1
    # One of two nuclei missed in each frame, of 6 nuclei and 4 links.
    half, one = np.where(masks == 2, 2, 0), tracks[1:]
    missed = score(half, one, masks, tracks)
    assert (missed.seg, missed.det, missed.lnk) == (0.5, 0.5, 0.5)
    assert missed.tra == pytest.approx(1 - (3 * 10 + 2 * 1.5) / (6 * 10 + 4 * 1.5))
    # The other way round: three superfluous nuclei for three right ones.
    extra = score(masks, tracks, half, one)
    assert (extra.seg, extra.det, extra.lnk) == (1, pytest.approx(0.9), 1)


@pytest.mark.parametrize("empty", [[0], [3], [7], [0, 1, 7]])
def test_empty_frames_count_nothing(truth, empty):
    masks = truth[0].copy()
    masks[empty] = 0
    there, table, _ = split_gaps(masks, {17: 6, 18: 6})
    perfect = score(there, table, there, table)
    assert (perfect.seg, perfect.tra, perfect.lnk, perfect.valid) == (1, 1, 1, 1)
    missed = score(there, table, *truth)
    assert missed.det == pytest.approx((there > 0).any((1, 2)).mean(), abs=0.02)


def test_reference_may_begin_anywhere(truth, tmp_path):
    masks, tracks = truth
    counts = np.zeros(masks.shape, np.uint16)
    write_sequence(tmp_path, "01", counts, masks, tracks)
    for path in sorted(tmp_path.rglob("*.tif"), reverse=True):
        stem, number = path.stem[:-3], int(path.stem[-3:])
        path.rename(path.with_name(f"{stem}{number + 995:04d}.tif"))
    moved = tracks + np.array([0, 995, 995, 0])
    np.savetxt(tmp_path / "01_GT/TRA/man_track.txt", moved, fmt="%d")
    found = read_reference(tmp_path, "01", border=0)
    assert score(masks, tracks, found.masks, found.tracks) == Scores(1, 1, 1, 1, 1, 1)


def score_by_definition(masks, tracks, reference_masks, reference_tracks):
    """Return SEG, DET, TRA and LNK by counting what must be mended in the graph."""
    seen, owners, overlaps, missed = set(), {}, [], 0
    for frame, (found, true) in enumerate(zip(masks, reference_masks, strict=True)):
        seen |= {(one, frame) for one in np.unique(found[found > 0])}
        for one in np.unique(true[true > 0]):
            there = found[true == one]
            most = [x for x in np.unique(there) if x and 2 * (there == x).sum() > len(there)]
            for other in most:
                owners.setdefault((other, frame), []).append((one, frame))
                overlaps.append((there == other).sum() / ((true == one) | (found == other)).sum())
            missed += not most
    edges, wanted = list_edges(tracks), list_edges(reference_tracks)
    true_of = {node: own[0] for node, own in owners.items() if len(own) == 1}
    kinds = {
        (true_of[a], true_of[b]): kind for (a, b), kind in edges.items() if {a, b} <= {*true_of}
    }
    splits = sum(len(own) - 1 for own in owners.values())
    nodes = 5 * splits + 10 * missed + len(seen) - len(owners)
    lost = 1.5 * len(wanted.keys() - kinds) + len(kinds.keys() - wanted)
    links = lost + sum(kinds[pair] != wanted[pair] for pair in kinds.keys() & wanted.keys())
    count = len(overlaps) + missed
    costs = (nodes, 10 * count), (nodes + links, 10 * count + 1.5 * len(wanted))
    costs += ((links, 1.5 * len(wanted)),)
    return [
        sum(overlaps) / count,
        *(1 - min(one / all_, 1) if all_ else math.nan for one, all_ in costs),
    ]


def list_edges(tracks):
    """Return the edges of a table: True to a child, False within a track."""
    last = {one: end for one, _, end, _ in tracks.tolist()}
    edges = {}
    for one, first, end, parent in tracks.tolist():
        edges |= {((one, t), (one, t + 1)): False for t in range(first, end)}
        if parent:
            edges[(parent, last[parent]), (one, first)] = True
    return edges


@pytest.mark.parametrize("seed", range(12))
def test_score_agrees_with_definition(seed):
    rng = np.random.default_rng(seed)
    both = []
    for _ in range(2):
        masks = np.zeros((4, 8, 8), int)
        for frame, one in np.argwhere(rng.random((4, 4)) < 0.7).tolist():
            y, x = 2 * one, (3 * one + frame) % 7
            masks[frame, y : y + 2, x : x + 2] = one + 1
        masks[rng.integers(4)] *= rng.integers(2)  # an empty frame
        crowded = masks[rng.integers(4)]
        crowded[crowded == 0] = rng.integers(2)  # one without background
        masks[0, 0, 0] = 1
        both.append(split_gaps(masks, {3: 1, 4: 1} if rng.random() < 0.7 else {})[:2])
    swapped = np.where(rng.random(both[0][0].shape) < 0.9, both[0][0], 0)
    both.append(split_gaps(swapped, {})[:2])
    for result in both:
        found = score(*result, *both[0])
        expected = score_by_definition(*result, *both[0])
        assert [found.seg, found.det, found.tra, found.lnk] == pytest.approx(expected, nan_ok=True)


def score_by_traccuracy(folder, result, reference):
    """Return TRA, DET and LNK of traccuracy; both are cut to begin with their first nucleus."""
    loaders = pytest.importorskip("traccuracy.loaders", reason="traccuracy: extra interop")
    from traccuracy.matchers import CTCMatcher
    from traccuracy.metrics import CTCMetrics

    graphs = []
    for name, (masks, tracks) in (("01", reference), ("02", result)):
        write_sequence(folder, name, np.zeros(masks.shape, np.uint16), masks, tracks)
        truth = folder / f"{name}_GT/TRA"
        graphs.append(loaders.load_ctc_data(str(truth), str(truth / "man_track.txt")))
    begin = graphs[0].start_frame
    for graph in graphs:
        graph.segmentation = graph.segmentation[begin:]
    found = CTCMetrics().compute(CTCMatcher().compute_mapping(*graphs)).results
    return [pytest.approx(found[name]) for name in ("TRA", "DET", "LNK")]


def test_traccuracy_agrees(truth, tmp_path):
    masks = truth[0].copy()
    masks[0] = 0
    reference = split_gaps(masks, {17: 6, 18: 6})[:2]
    swapped = split_gaps(with_ids_swapped(masks, 2), {17: 6, 18: 6})[:2]
    for number, result in enumerate((reference, swapped)):
        found = score(*result, *reference)
        folder = tmp_path / str(number)
        folder.mkdir()
        assert [found.tra, found.det, found.lnk] == score_by_traccuracy(folder, result, reference)


def test_traccuracy_differs_as_documented(tmp_path):
    masks = np.zeros((2, 8, 8), np.int32)
    masks[:, :2], masks[:, 3:5], masks[:, 6:] = 1, 2, 3
    apart = masks, np.array([[1, 0, 1, 0], [2, 0, 1, 0], [3, 0, 1, 0]])
    merged = np.ones_like(masks), np.array([[1, 0, 1, 0]])
    ours = score(*merged, *apart)
    # Two cuts a frame are needed to take three nuclei apart; traccuracy counts one.
    (tmp_path / "a").mkdir()
    assert [
        pytest.approx(ours.det), score_by_traccuracy(tmp_path / "a", merged, apart)[1],
    ] == [1 - 5 * 4 / 60, 1 - 5 * 2 / 60]  # fmt: skip
    # A link to an only child where the reference has one track: EC of 1 beside a link's 1.5.
    one = (masks == 1).astype(np.int32)
    cut = one * np.array([1, 2])[:, None, None]
    whole, halves = np.array([[1, 0, 1, 0]]), np.array([[1, 0, 0, 0], [2, 1, 1, 1]])
    (tmp_path / "b").mkdir()
    ours = score(cut, halves, one, whole)
    assert [pytest.approx(ours.lnk), 1] == [
        1 - 1 / 1.5, score_by_traccuracy(tmp_path / "b", (cut, halves), (one, whole))[2],
    ]  # fmt: skip


def test_score_refuses_what_cannot_be_scored(truth):
    m, t = truth
    for given, words in (
        ((m[:, :50], t, m, t), "of one shape"),
        ((m[:1], t, m[:1], t), "F at least 2"),
        ((m, t, np.zeros_like(m), t), "reference_masks must hold at least one"),
        ((m * 4000, t, m, t), "^masks must hold ids from 0 to 65535, got 0 to 72000"),
        ((m, t, m * 4000, t), "^reference_masks must hold ids from 0 to 65535, got 0 to 72000"),
        ((m[1:], t, m, t), "; give masks of zeros for frames without any"),
        ((m, t, m, t[1:]), "masks and tracks must hold the same ids"),
    ):
        with pytest.raises(ValueError, match=words):
            score(*given)


def test_clear_border_takes_whole_nuclei_only():
    masks = np.zeros((2, 20, 20), np.int64)
    masks[0, 0:5, 0:5] = 1  # wholly in a band of 5
    masks[0, 15:20, 8:12] = 2
    masks[1, 0:6, 0:6] = 1  # one pixel is inside
    kept = clear_border(masks, 5)
    assert kept.dtype == np.int32
    assert [np.unique(frame).tolist() for frame in kept] == [[0], [0, 1]]
    assert np.array_equal(kept[1], masks[1])
    assert np.array_equal(clear_border(masks, 0), masks)
    for border in (-1, 10):
        with pytest.raises(ValueError, match="border must be from 0 to below half of the frame's"):
            clear_border(np.zeros((1, 20, 30), int), border)


def test_cleared_tracks_stay_valid():
    masks = np.zeros((5, 30, 30), np.int32)
    for frame, row in enumerate([12, 6, 0, 6, 12]):
        masks[frame, row : row + 4, 10:14] = 7
    masks[:, 20:24, 10:14] = 3
    tracks = np.array([[7, 0, 4, 0], [3, 0, 4, 0], [0, 0, 0, 0]], np.int32)
    found = clear_outside(masks, tracks, 6)
    assert found[1].tolist() == [[1, 0, 4, 0], [2, 0, 1, 0], [3, 3, 4, 2]]
    assert score(*found, *found) == Scores(1, 1, 1, 1, pytest.approx(math.nan, nan_ok=True), 1)


def test_border_counts_on_neither_side(truth):
    masks, tracks = truth
    # Only the result, then only the reference, has nuclei in the band.
    inner = clear_border(masks, 25)
    assert 0 < len(np.unique(inner)) < len(np.unique(masks))
    reduced = clear_outside(masks, tracks, 25)
    assert score(*reduced, *clear_outside(inner, tracks, 25)).tra == 1
    assert score(*clear_outside(inner, tracks, 25), *reduced).tra == 1
    assert score(masks, tracks, *reduced).det < 1


def test_read_reference_clears_the_border(tiny_ctc, tiny_video):
    video, masks, tracks = tiny_video
    found = read_reference(tiny_ctc, "01", stop=9, border=20)
    scale = guess_scale(read_sequence(tiny_ctc, "01"))
    assert np.array_equal(found.video, scale.to_grey(video[:9]))
    assert np.array_equal(found.masks > 0, clear_border(masks[:9], 20) > 0)
    assert score(found.masks, found.tracks, found.masks, found.tracks).valid == 1
    # Nucleus 2 divides; nucleus 6 comes in from the border.
    assert np.unique(found.tracks[found.tracks[:, 3] > 0, 3]).tolist() == [2]
    whole = read_reference(tiny_ctc, "01", border=0)
    assert np.array_equal(whole.tracks[:, 1:3], tracks[np.argsort(tracks[:, 1]), 1:3])
    with pytest.raises(ValueError, match=r"must have masks in at least its first 2 frames.*got 1"):
        read_reference(tiny_ctc, "01", stop=1)


def test_real_reference_is_valid(hela, tmp_path):
    found = read_reference(hela, "02", stop=3)
    assert found.video.shape == found.masks.shape == (3, 700, 1100)
    assert found.video.dtype == np.float32
    assert len(found.tracks) > 100
    counts = np.zeros(found.masks.shape, np.uint16)
    write_sequence(tmp_path, "02", counts, found.masks, found.tracks)  # checks every frame
    edge = found.masks.copy()
    edge[:, 25:-25, 25:-25] = 0
    inside = np.unique(found.masks[:, 25:-25, 25:-25])
    assert np.isin(edge, inside).all()


def test_matches_count_all_and_dim(truth, monkeypatch):
    masks, _ = truth
    names = np.unique(masks[0][masks[0] > 0])
    light = np.zeros(int(masks.max()) + 1, np.float32)
    light[names] = np.linspace(0.05, 0.5, len(names))
    light[light == 0] = 0.5
    light[0] = 0
    video = 0.1 + light[masks]
    assert match_nuclei(masks, masks, video) == Matches(1, 1, 0, 1)
    dim = names[:2]
    without = np.where(np.isin(masks, dim), 0, masks)
    everything = sum(len(np.unique(frame)) - 1 for frame in masks)
    missed = sum(np.isin(dim, frame).sum() for frame in masks)
    with monkeypatch.context() as patch:
        patch.setattr(seg_tra, "DIMMEST", missed / everything)
        found = match_nuclei(without, masks, video)
    assert found.found == pytest.approx(1 - missed / everything)
    assert (found.found_dim, found.false_positives, found.area_ratio) == (0, 0, 1)
    bright = np.where(np.isin(masks, names[-2:]), 0, masks)
    assert match_nuclei(bright, masks, video).found_dim == 1
    wrong = match_nuclei(masks, without, video)
    assert wrong.false_positives == pytest.approx(missed / len(masks))


def test_matches_need_more_than_half():
    reference = np.zeros((1, 20, 20), np.int32)
    reference[0, 5:9, 5:15] = 1
    video = reference.astype(np.float32)
    half, split = np.zeros_like(reference), np.zeros_like(reference)
    half[0, 5:9, 5:10] = 4
    split[0, 5:9, 5:10], split[0, 5:9, 10:15] = 1, 2
    for labels, wrong in ((half, 1), (split, 2)):
        found = match_nuclei(labels, reference, video)
        assert (found.found, found.found_dim, found.false_positives) == (0, 0, wrong)
        assert np.isnan(found.area_ratio)
    half[0, 5, 10] = 4
    assert match_nuclei(half, reference, video) == Matches(1, 1, 0, 21 / 40)
    half[0, 9:15, 5:15] = 4  # the area is that of the whole prediction
    assert match_nuclei(half, reference, video) == Matches(1, 1, 0, 81 / 40)
    # One prediction over two nuclei matches both.
    reference[0, 5:9, 10:15] = 2
    assert match_nuclei(half, reference, video).false_positives == 0
