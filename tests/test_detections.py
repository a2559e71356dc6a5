import numpy as np
import pytest
import torch
from ctc_metrics.scripts.evaluate import evaluate_sequence
from helpers.clips import make_sparse_clip, run_snippet, with_tracks
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from bvdm_data import CTCVideos, DetectionErrors, MixedVideos, SyntheticHeLaVideos, association
from bvdm_data.adapters.tracking import write_ctc, write_ctc_result
from bvdm_data.clip import CameraScale, split_gaps
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.detections import ERRORS, link_detections
from bvdm_data.datasets.tiff import read_image
from bvdm_data.datasets.transforms import TransformError

FRAMES, SIDE, PITCH, SQUARE = 8, 100, 20, 10
ALL = {
    "missed": 0.1, "missed_lineages": 0.1, "merged": 0.2, "split": 0.2, "false": 0.2,
    "outline": 1.0, "shift": 3.0, "border": 4, "border_missed": 0.4,
}  # fmt: skip


def make_film(near=2, frames=FRAMES):
    """Return masks and tracks of 25 squares; those of an even column have one near at the right.

    The first one divides in frame 4.
    """
    masks = np.zeros((frames, SIDE, SIDE), np.int32)
    for number in range(25):
        row, column = divmod(number, 5)
        top = row * PITCH + 5
        left = column * PITCH + (PITCH - SQUARE - near + 1 if column % 2 == 0 else 0)
        masks[:, top : top + SQUARE, left : left + SQUARE] = number + 1
    first = masks[4:] == 1
    masks[4:][first & (np.arange(SIDE)[:, None] < 10)] = 26
    masks[4:][masks[4:] == 1] = 27
    return split_gaps(masks, {26: 1, 27: 1})[:2]


@pytest.fixture(scope="module")
def film():
    return with_tracks(*make_film())


def without_video(clip):
    return {key: value for key, value in clip.items() if key != "video"}


def list_overlaps(clip):
    """Yield frame, detection, its nuclei, and the share of each that the detection covers."""
    table = clip["detection_tracks"].numpy()
    for frame, (found, mask) in enumerate(zip(clip["detections"], clip["masks"], strict=True)):
        found, mask = found.numpy(), mask.numpy()
        for one in range(1, found.max() + 1):
            own = found == one
            ids = np.unique(mask[own & (mask > 0)]).tolist()
            shares = {i: (own & (mask == i)).sum() / (mask == i).sum() for i in ids}
            yield frame, one, table[frame, one - 1].tolist(), shares


def measure(clip, folder):
    """Write truth and result, and return DET, SEG and TRA of py-ctcmetrics."""
    write_ctc(clip, folder, name="01", scale=CameraScale(0, 65535))
    write_ctc_result(without_video(clip), folder, name="01")
    places = str(folder / "01_RES"), str(folder / "01_GT")
    scores = evaluate_sequence(*places, metrics=["Valid", "DET", "SEG", "TRA"], threads=1)
    assert scores["Valid"] == 1
    return scores["DET"], scores["SEG"], scores["TRA"]


def test_no_errors_change_only_ids(film):
    found = DetectionErrors()(film)
    assert not found["planted"].any()
    names = found["detection_tracks"]
    for frame in range(FRAMES):
        back = torch.cat([torch.zeros(1, dtype=torch.int32), names[frame, :, 0].clip(0)])
        assert torch.equal(back[found["detections"][frame].long()], film["masks"][frame])
    assert (names[:, :, 1] <= 0).all()
    # By first pixels, from above: the ids tell nothing of tracks.
    assert found["detections"][0, 5, ::20].tolist() == [0, 2, 0, 4, 0]
    masks, tracks = link_detections(found)
    assert np.array_equal(masks, film["masks"])
    assert np.array_equal(tracks, film["tracks"])


HALF, GONE = 1 / 2, 0
BY_HAND = {
    # Of four nuclei of 10 x 10 px in a frame, two touch: (errors, needed cost a frame, Jaccards)
    "merged": ({"merged": 1.0}, 5, [HALF, HALF, 1, 1]),
    "false": ({"false": 1.0}, 4, [1, 1, 1, 1]),
    "cut": ({"border": 4}, 0, [1, 1, 1, 0.6]),
    "left out": ({"border": 5}, 10, [1, 1, 1, GONE]),
    "left out at will": ({"border": 4, "border_missed": 1.0}, 10, [1, 1, 1, GONE]),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_scores_are_those_by_hand(case, tmp_path):
    rates, cost, jaccards = BY_HAND[case]
    masks = np.zeros((3, 60, 60), np.int32)
    masks[:, 6:16, 10:20], masks[:, 6:16, 20:30], masks[:, 40:50, 20:30] = 1, 2, 3
    masks[:, 30:40, :10] = 4
    clip = with_tracks(masks, split_gaps(masks, {})[1])
    det, seg, _ = measure(DetectionErrors(**rates)(clip), tmp_path)
    assert det == pytest.approx(1 - cost / (10 * 4))
    assert seg == pytest.approx(np.mean(jaccards))


@pytest.mark.parametrize("shaken", [{}, {"outline": 1.0, "shift": 2.0}], ids=["still", "shaken"])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_the_planted_errors(film, tmp_path, seed, shaken):
    found = DetectionErrors(**ALL | {"outline": 0.0, "shift": 0.0} | shaken, seed=seed)(film)
    planted = dict(zip(ERRORS, found["planted"].sum(0).tolist(), strict=True))
    assert min(planted.values()) > 0
    lost = planted["missed"] + planted["lineage"] + planted["border"]
    cost = 10 * lost + 5 * planted["merged"] + planted["split"] + planted["false"]
    count = sum(len(np.unique(mask)) - 1 for mask in film["masks"])
    jaccards = []
    for frame, one, _, shares in list_overlaps(found):
        for identity, share in shares.items():
            own, nucleus = found["detections"][frame] == one, film["masks"][frame] == identity
            if share > 0.5:
                jaccards.append(((own & nucleus).sum() / (own | nucleus).sum()).item())
    # A link costs 1.5 where one of its ends is missed or merged, and no link is wrong.
    names = found["detection_tracks"].tolist()
    alone = {(f, a) for f, rows in enumerate(names) for a, b in rows if a > 0 and b == 0}
    links = association(film).tolist()
    lost_links = sum({(f, a), (f + 1, b)} > alone & {(f, a), (f + 1, b)} for f, a, b in links)
    det, seg, tra = measure(found, tmp_path)
    worst = 10 * count + 1.5 * len(links)
    assert tra == pytest.approx(1 - (cost + 1.5 * lost_links) / worst)
    assert det == pytest.approx(1 - cost / (10 * count))
    assert seg == pytest.approx(sum(jaccards) / count)


@pytest.mark.parametrize("seed", [0, 1])
def test_map_names_what_is_beneath(film, seed):
    found = DetectionErrors(**ALL, seed=seed)(film)
    table, seen = found["detection_tracks"], {}
    for frame, _, nuclei, shares in list_overlaps(found):
        covered = [identity for identity in nuclei if identity]
        assert sorted(shares) == sorted(covered)  # no pixel of another nucleus
        assert len(covered) < 2 or min(shares.values()) > 0.5
        for identity in covered:
            seen.setdefault((frame, identity), []).append(shares[identity])
    parts = [shares for shares in seen.values() if len(shares) == 2]
    assert all(max(shares) > 0.5 > min(shares) for shares in parts)
    assert all(shares[0] > 0.5 for shares in seen.values() if len(shares) == 1)
    # The table and the counts are those of the pictures.
    planted = found["planted"].sum(0).tolist()
    count = sum(len(np.unique(mask)) - 1 for mask in film["masks"])
    assert len(seen) == count - sum(planted[:3])
    assert (table > 0).all(-1).sum() == planted[3]
    assert ((table[:, :, 0] == 0) & (table[:, :, 1] > 0)).sum() == planted[4]
    firsts = [one[one > 0].tolist() for one in table[:, :, 0]]
    assert all(len(set(ids)) == len(ids) for ids in firsts)
    assert len(parts) == planted[4]
    assert (table == 0).all(-1).sum() == planted[5]
    assert ((table[:, :, 0] >= 0).sum(1) == found["detections"].amax((1, 2))).all()
    band = found["detections"].clone()
    band[:, 4:-4, 4:-4] = 0
    assert not band.any()


def test_rates_are_shares_of_nuclei():
    # 25 nuclei, of which 20 can be paired.
    clip = with_tracks(*make_film(frames=2))
    rates = {"missed": 0.1, "merged": 0.2, "split": 0.15, "false": 0.1}
    planted = [DetectionErrors(**rates, seed=n)(clip)["planted"].float() for n in range(60)]
    mean = torch.stack(planted).mean((0, 1)) / 25
    assert mean[1:3].tolist() == [0, 0]
    # Five standard errors of 7,500 nuclei are .02.
    torch.testing.assert_close(
        mean[[0, 3, 4, 5]], torch.tensor([0.1, 0.1, 0.15, 0.1]), atol=0.02, rtol=0
    )


def test_shaken_places_have_their_deviation():
    masks = np.zeros((200, 48, 48), np.int32)
    masks[:, 16:32, 16:32] = 1
    clip = with_tracks(masks, split_gaps(masks, {})[1])
    found = DetectionErrors(shift=2.0)(clip)["detections"].numpy()
    places = np.array([np.argwhere(one).mean(0) for one in found]) - 23.5
    assert abs(places.mean()) < 0.4
    assert np.std(places, axis=0) == pytest.approx([2, 2], abs=0.3)
    found = DetectionErrors(outline=1.0)(clip)["detections"].numpy()
    # Of both sides of the square, at its middle: half a pixel is lost in rounding.
    edges = [one[24, :24].sum() - 8 for one in found] + [one[24, 24:].sum() - 8 for one in found]
    assert np.std(edges) == pytest.approx(1, abs=0.25)
    assert abs(np.mean(edges)) < 0.2


def test_whole_families_are_missed(film):
    planted = set()
    for seed in range(20):
        found = DetectionErrors(missed_lineages=0.3, seed=seed)(film)
        lost = set(film["tracks"][:, 0].tolist()) - set(found["detection_tracks"].unique().tolist())
        family = {1, 26, 27}
        assert family <= lost or not family & lost
        planted.add(len(lost & family))
        assert (found["planted"][:, 1] > 0).all() == bool(lost)
    assert planted == {0, 3}


def test_sisters_merge_in_one(film):
    found = DetectionErrors(merged=1.0, reach=1)(film)
    assert [26, 27] in found["detection_tracks"][4].tolist()
    masks, tracks = link_detections(found)
    # The detection of both is that of the first, and a daughter of the mother.
    assert len(np.unique(masks[4])) == 26
    assert tracks[tracks[:, 1] == 4].tolist() == [[26, 4, FRAMES - 1, 1]]


def test_seed_decides_alone(film):
    one = DetectionErrors(**ALL, seed=3)(film)
    torch.rand(3)
    again, other = DetectionErrors(**ALL, seed=3)(film), DetectionErrors(**ALL, seed=4)(film)
    for key in ("detections", "detection_tracks", "planted"):
        assert torch.equal(one[key], again[key])
        assert not torch.equal(one[key], other[key])
    # More errors leave those of before where they are.
    more = DetectionErrors(missed=0.3)(film)["detection_tracks"]
    less = DetectionErrors(missed=0.1)(film)["detection_tracks"]
    assert all(
        set(a[:, 0].tolist()) <= set(b[:, 0].tolist()) for a, b in zip(more, less, strict=True)
    )


def test_no_seed_follows_torch(film):
    errors, found = DetectionErrors(missed=0.5, seed=None), []
    for number in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            found.append(errors(film)["detections"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


EVERYTHING = {"merged": 1.0, "split": 1.0, "false": 1.0, "outline": 2.0, "shift": 2.0}


@pytest.mark.parametrize("kind", ["nothing", "from frame 1 on", "with a gap"])
def test_sparse_clips_are_detected(kind):
    clip = without_video(make_sparse_clip(kind, shift=70_000))
    found = DetectionErrors(**EVERYTHING)(clip)
    there = clip["masks"].flatten(1).any(1)
    assert found["planted"][:, 4].tolist() == there.long().tolist()  # split, with none to merge
    assert (found["detections"].amax((1, 2)) == there * (2 + found["planted"][:, 5])).all()
    assert set(found["detection_tracks"].unique().tolist()) <= {-1, 0, *range(70_001, 70_003)}
    gone = DetectionErrors(missed=1.0)(clip)
    assert not gone["detections"].any()
    assert (gone["detection_tracks"] == -1).all()
    assert not link_detections(gone)[0].any()


def test_links_across_true_gaps_stay():
    clip = make_sparse_clip("with a gap")
    masks, tracks = link_detections(DetectionErrors()(clip))
    assert np.array_equal(masks, clip["masks"])
    assert tracks.tolist() == [[1, 0, 0, 0], [2, 2, 2, 1]]
    clip = make_sparse_clip("one nucleus")
    found = DetectionErrors()(clip)
    found["detections"][1] = 0
    assert link_detections(found)[1].tolist() == [[1, 0, 0, 0], [2, 2, 2, 0]]


@pytest.mark.parametrize(("pixels", "parts"), [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_tiny_nuclei_split_from_three(pixels, parts):
    masks = np.zeros((1, 6, 6), np.int32)
    masks[0, 2, 1 : 1 + pixels] = 1
    found = DetectionErrors(split=1.0)(with_tracks(masks, split_gaps(masks, {})[1]))
    areas = found["detections"].flatten().bincount()[1:]
    assert len(areas) == parts
    assert 2 * areas.max() > pixels


def test_full_image_has_no_room():
    masks = np.ones((2, 16, 16), np.int32)
    clip = with_tracks(masks, split_gaps(masks, {})[1])
    found = DetectionErrors(false=1.0, outline=2.0, shift=2.0, merged=1.0)(clip)
    assert not found["planted"].any()
    assert (found["detections"] > 0).float().mean() > 0.5
    assert DetectionErrors(border=40)(clip)["planted"][:, 2].tolist() == [1, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ctc")
    masks, tracks = make_film()
    draws = np.random.default_rng(0).integers(0, 20, masks.shape)
    write_sequence(root, "01", (100 * (masks > 0) + draws).astype(np.uint8), masks, tracks)
    return root


MOVES = {
    "flip": v2.RandomHorizontalFlip(1), "crop": v2.RandomCrop((60, 50)),
    "rotation": v2.RandomRotation((30, 40)), "affine": v2.RandomAffine(20, (0.3, 0.3)),
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
def test_map_follows_moved_masks(folder, move):
    both = v2.Compose([MOVES[move], DetectionErrors(missed=0.1, merged=0.2, split=0.1)])
    real = CTCVideos(folder, frames=4, size=80, border=0, transform=both)
    clip = real.clip(1)
    assert clip["planted"].any()
    assert clip["tracks"][:, 0].max() > 0
    for _, _, nuclei, shares in list_overlaps(clip):
        assert set(nuclei) - {0} == set(shares)


@pytest.mark.parametrize("move", [v2.RandomCrop(50), v2.Resize(50)])
def test_errors_refuse_moves_behind_them(folder, move):
    errors = DetectionErrors(missed=0.1)
    real = CTCVideos(folder, frames=2, size=80, border=0, transform=v2.Compose([errors, move]))
    with pytest.raises(TransformError, match="put DetectionErrors last"):
        real.clip(0)


def test_streams_batch_with_detections(folder):
    errors = DetectionErrors(missed=0.1, false=0.1, seed=None)
    how = {"frames": 2, "size": 80, "max_cells": 40, "transform": errors}
    scale = SyntheticHeLaVideos(method="procedural").scale
    real = CTCVideos(folder, border=0, scale=scale, **how)
    videos = SyntheticHeLaVideos(method="procedural", nuclei=6, **how)
    mix = MixedVideos({"real": real, "synthetic": videos}, quotas={"real": 1, "synthetic": 1})
    batch = next(iter(DataLoader(mix, batch_size=2)))
    assert batch["detections"].shape == (2, 2, 80, 80)
    assert batch["detection_tracks"].shape == (2, 2, 80, 2)
    assert batch["planted"].shape == (2, 2, len(ERRORS))
    assert torch.equal(videos.clip(3)["detections"], videos.clip(3)["detections"])
    # A stream that was made with other errors is another one.
    assert "missed=0.1" in videos._list_settings()["transform"]


def test_results_are_written_once(film, tmp_path):
    found = DetectionErrors(missed=0.2)(film)
    write_ctc_result(found, tmp_path, name="01")
    with pytest.raises(FileExistsError, match="01_RES is there already"):
        write_ctc_result(found, tmp_path, name="01")
    names = sorted(path.name for path in tmp_path.rglob("*"))
    assert names == ["01_RES", *[f"mask{n:03d}.tif" for n in range(FRAMES)], "res_track.txt"]
    assert read_image(tmp_path / "01_RES" / "mask000.tif").dtype == np.uint16
    table = np.loadtxt(tmp_path / "01_RES" / "res_track.txt", dtype=int)
    assert np.array_equal(table, link_detections(found)[1])


def test_many_tracks_take_more_bits(tmp_path):
    names = torch.arange(33_000, dtype=torch.int32).view(1, 150, 220)
    clip = {"detections": names, "detection_tracks": torch.zeros(1, 33_000, 2, dtype=torch.int32)}
    write_ctc_result(clip | {"tracks": torch.zeros(3, 4, dtype=torch.int32)}, tmp_path, name="01")
    written = read_image(tmp_path / "01_RES" / "mask000.tif")
    assert written.dtype == np.uint32
    assert np.array_equal(written, names[0])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"masks": None}, TypeError, "clip must hold tensors, got NoneType for 'masks'"),
        ({"masks": torch.zeros(2, 2, 3, 3)}, ValueError, "take the clips of a batch one by one"),
        ({"masks": torch.zeros(2, 3, 3)}, TypeError, "masks must hold integers"),
        ({"masks": torch.full((FRAMES, 3, 3), 99)}, ValueError, "id 99 in frame 0"),
    ],
)
def test_errors_refuse_other_clips(film, change, error, words):
    with pytest.raises(error, match=words):
        DetectionErrors()(film | change)


def test_errors_need_masks_and_tracks(film):
    for key in ("masks", "tracks"):
        part = {one: film[one] for one in film if one != key}
        with pytest.raises(
            ValueError, match=f"must have the key '{key}'.*give the data set annotations"
        ):
            DetectionErrors()(part)
    with pytest.raises(ValueError, match="call DetectionErrors on it"):
        link_detections(film)
    with pytest.raises(TypeError, match="dict of tensors, got int"):
        DetectionErrors()(3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"missed": 1.1}, "missed must be from 0 to 1, got 1.1"),
        ({"false": -0.1}, "false must be from 0 to 1"),
        ({"outline": 11}, "outline must be from 0 to 10"),
        ({"reach": 0}, "reach must be from 1 to 20"),
        ({"border": -1}, "border must be at least 0"),
    ],
)
def test_errors_refuse_impossible_rates(arguments, words):
    with pytest.raises(ValueError, match=words):
        DetectionErrors(**arguments)


def test_consumers_snippet_links_detections(capsys):
    run_snippet("Tracking with")
    planted, links = (eval(line) for line in capsys.readouterr().out.splitlines())
    clip = SyntheticHeLaVideos(frames=4, size=256).clip(0)
    # Missed nuclei have no links, and split ones have two.
    edges = len(association(clip))
    assert len(planted) == len(ERRORS)
    assert abs(sum(links) - edges) <= 2 * sum(planted)
