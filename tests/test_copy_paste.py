import pickle
import random
import re

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils.data import DataLoader

from bvdm_data.background import estimate_background, mask_background
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets import ctc
from bvdm_data.evaluation import copy_paste as pasting
from bvdm_data.evaluation.clip_cache import FirstClips, hash_clips
from bvdm_data.evaluation.copy_paste import FRAME_AREA, CopyPaste, Nucleus

LEVEL, NOISE, FULL = 300, 9, 4095  # of the tiny video, counts


def tiny(root, **changes):
    arguments = {"size": (64, 80), "border": 8, "nuclei": (400, 900)} | changes
    return CopyPaste(root, **arguments)


@pytest.fixture(scope="module")
def pasted(tiny_ctc):
    return tiny(tiny_ctc)


def counts(clip):
    return clip["video"][0, 0].numpy() * FULL


def disc(shape, centre, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def test_copy_paste_clips_are_well_formed(pasted):
    clip = pasted.clip(0)
    assert {key: (tuple(value.shape), value.dtype) for key, value in clip.items()} == {
        "video": ((1, 1, 64, 80), torch.float32),
        "masks": ((1, 64, 80), torch.int32),
        "tracks": ((pasted.max_cells, 4), torch.int32),
        "index": ((), torch.int64),
        "source": ((), torch.int8),
    }
    for index in range(20):
        clip = pasted.clip(index)
        check_clip(clip)
        assert (clip["index"], clip["source"]) == (index, 1)
        ids = np.unique(clip["masks"])[1:]
        assert ids.tolist() == list(range(1, len(ids) + 1))
        rows = [[number, 0, 0, 0] for number in range(1, len(ids) + 1)]
        assert clip["tracks"].tolist() == rows + [[0, 0, 0, 0]] * (pasted.max_cells - len(ids))


def test_copy_paste_nuclei_are_bright(pasted):
    inside = []
    for index in range(20):
        image, masks = counts(pasted.clip(index)), pasted.clip(index)["masks"][0].numpy()
        off = ~ndimage.binary_dilation(masks > 0, iterations=4)
        assert image[off].mean() == pytest.approx(LEVEL, abs=2)
        inside.extend(ndimage.mean(image, masks, range(1, masks.max() + 1)))
    # The dimmest nucleus has 1600 counts above the background; turning blurs its edge.
    assert len(inside) > 40
    assert min(inside) > LEVEL + 0.85 * 0.7 * 1600


def test_copy_paste_depends_on_index_alone(tiny_ctc, pasted):
    expected = [hash_clips(pasted.clip(index)) for index in range(5)]
    backwards = tiny(tiny_ctc)
    assert [hash_clips(backwards.clip(index)) for index in (4, 3, 2, 1, 0)] == expected[::-1]
    copy = pickle.loads(pickle.dumps(backwards))
    assert backwards._cache
    assert not copy._cache  # workers get no decoded frames
    assert [hash_clips(copy.clip(index)) for index in range(5)] == expected
    assert len(set(expected)) == 5


def test_copy_paste_repeats_in_every_way(tiny_ctc, pasted, monkeypatch):
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    dataset = tiny(tiny_ctc)
    expected = [hash_clips(dataset.clip(index)) for index in range(6)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    loader = DataLoader(FirstClips(dataset, 6), batch_size=None, num_workers=2)
    assert [hash_clips(clip) for clip in loader] == expected
    monkeypatch.setattr(pasting, "CACHE_BYTES", 1)
    small = tiny(tiny_ctc)
    assert [hash_clips(small.clip(index)) for index in range(6)] == expected
    assert len(small._cache) == 1


def densities(dataset, number):
    # A cut nucleus counts by its part.
    one = np.mean([nucleus.mask.sum() for nucleus in dataset.library])
    covered = [float((dataset.clip(i)["masks"] > 0).float().mean()) for i in range(number)]
    return np.array(covered) * FRAME_AREA / one


def test_copy_paste_has_requested_density(tiny_ctc):
    # 30 x 11.8 nuclei: the mean is known to about 5 %, and up to 20 % of a nucleus may be hidden.
    found = densities(tiny(tiny_ctc, size=(108, 140), nuclei=(600, 600)), 30)
    assert found.mean() == pytest.approx(600, rel=0.12)
    found = densities(tiny(tiny_ctc, size=(108, 140), nuclei=(200, 1000)), 30)
    # A tile shows 4 to 20 nuclei of 100 to 250 px, and so its density to about 1 in 3.
    assert 0 < found.min() < 400
    assert 750 < found.max() < 1350
    assert found.mean() == pytest.approx(600, rel=0.2)


def test_copy_paste_limits_covered_area(tiny_ctc, monkeypatch):
    asked = []

    real = pasting.is_placeable

    def has_room(labels, here, mask, areas):
        answer = real(labels, here, mask, areas)
        asked.append((labels, areas, answer))
        return answer

    monkeypatch.setattr(pasting, "is_placeable", has_room)
    dataset = tiny(tiny_ctc, nuclei=(2500, 2500))
    hidden = 0.0
    for index in range(6):
        asked.clear()
        clip = dataset.clip(index)
        labels, areas, _ = asked[-1]
        seen = np.bincount(labels.ravel(), minlength=len(areas))
        edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        whole = np.setdiff1d(range(1, len(areas)), edge)
        parts = seen[whole] / np.array(areas)[whole]
        assert parts.min() >= 1 - pasting.MOST_COVERED
        hidden = max(hidden, 1 - parts.min())
        assert np.bincount(clip["masks"].ravel()).min() >= pasting.LEAST_VISIBLE
        assert not all(answer for *_, answer in asked)  # it is crowded
    assert hidden > 0.05


def placeable(labels, place, mask, *areas):
    here, part = pasting.measure_overlap(place, mask.shape, labels.shape)
    return pasting.is_placeable(labels, here, mask[part], [0, *areas])


def test_is_placeable_checks_both_nuclei():
    labels, mask = disc((100, 100), (50, 50), 10).astype(np.int32), disc((21, 21), (10, 10), 10)
    area = int(mask.sum())
    # MARGIN of 32 px on each side leaves a tile of 36 px.
    answers = [placeable(labels, place, mask, area) for place in ((50, 72), (50, 54), (42, 50))]
    assert answers == [True, False, False]
    # 49 of 1257 px is little of the large one, but all of the small one.
    large, small = disc((41, 41), (20, 20), 20), disc((9, 9), (4, 4), 4)
    labels = disc((128, 128), (64, 64), 4).astype(np.int32)
    assert not placeable(labels, (64, 64), large, int(small.sum()))
    labels = disc((128, 128), (64, 64), 20).astype(np.int32)
    assert not placeable(labels, (64, 64), small, int(large.sum()))
    # Within, half, a sliver, outside.
    empty, columns = np.zeros((128, 128), np.int32), (64, 32 - 2, 32 - 9, 32 - 12)
    answers = [placeable(empty, (64, column), mask) for column in columns]
    assert answers == [True, True, False, True]


def test_overlap_is_cut_at_canvas():
    canvas = np.zeros((10, 12), int)
    patch = np.arange(1, 26).reshape(5, 5)
    here, part = pasting.measure_overlap((0, 11), patch.shape, canvas.shape)
    canvas[here] = patch[part]
    assert canvas[0, 11] == patch[2, 2]
    assert np.count_nonzero(canvas) == 9


def test_copy_paste_opens_allowed_frames_only(tiny_video, tmp_path, monkeypatch):
    for name in ("01", "02"):
        ctc.write_sequence(tmp_path, name, *tiny_video)
    expected = [hash_clips(tiny(tmp_path, stop=5).clip(index)) for index in range(10)]
    for path in tmp_path.rglob("*.tif"):
        if path.relative_to(tmp_path).parts[0].startswith("02") or number(path) >= 5:
            path.write_bytes(b"damaged")
    opened = set()

    def read_image(path):
        opened.add(path.relative_to(tmp_path))
        return original(path)

    original = ctc.read_image
    monkeypatch.setattr(ctc, "read_image", read_image)
    dataset = tiny(tmp_path, stop=5)
    assert [hash_clips(dataset.clip(index)) for index in range(10)] == expected
    assert {path.parts[0][:2] for path in opened} == {"01"}
    assert {number(path) for path in opened} == {0, 1, 2, 3, 4}
    assert len(dataset.source) == 5
    with pytest.raises(IndexError):
        dataset.source.frame(5)


def number(path):
    return int(re.findall(r"\d+", path.stem)[-1])


@pytest.fixture(scope="module")
def emptied(tiny_ctc):
    dataset = tiny(tiny_ctc, stop=1, border=0, size=(128, 160), nuclei=(0, 0))
    clip = dataset.clip(0)
    assert not clip["masks"].any()
    return counts(clip)


def test_background_has_no_nuclei(emptied, tiny_video):
    assert np.isfinite(emptied).all()
    for label in (1, 2, 3):
        inside = emptied[tiny_video[1][0] == label]
        assert inside.mean() == pytest.approx(LEVEL, abs=4)
        assert inside.max() < LEVEL + 5 * NOISE
    near = ndimage.binary_dilation(tiny_video[1][0] > 0, iterations=6)
    assert near.sum() > 800
    assert emptied[near].std() == pytest.approx(emptied[~near].std(), rel=0.08)
    assert emptied[near].std() == pytest.approx(NOISE, rel=0.08)
    assert np.unique(emptied[near]).size > 30  # noise, and not one value
    video, masks, _ = tiny_video
    far = ~ndimage.binary_dilation(masks[0] > 0, iterations=20)
    same = np.isclose(emptied[far], video[0][far] - 32768.0, atol=0.51)
    assert same.mean() > 0.98  # less rare bright noise, which is taken for a nucleus


def test_tile_keeps_local_light(tiny_video, tmp_path):
    video, masks, tracks = tiny_video
    video = (video + np.arange(128)[:, None] + 2 * np.arange(160)).astype(np.uint16)
    ctc.write_sequence(tmp_path, "01", video, masks, tracks)
    dataset = tiny(tmp_path, stop=1, nuclei=(0, 0))
    frame = video[0][8:-8, 8:-8] - 32768.0
    windows = np.lib.stride_tricks.sliding_window_view(frame, (64, 80))
    places = set()
    for index in range(4):
        # Most of a tile is what the camera saw, so that its median difference is 0 there.
        away = np.median(
            np.abs(windows[:, :, ::5, ::5] - counts(dataset.clip(index))[::5, ::5]), (2, 3)
        )
        assert away.min() < 0.51
        places.add(np.unravel_index(away.argmin(), away.shape))
    assert len(places) == 4


def test_background_clips_have_video_noise(tiny_ctc):
    dataset = tiny(tiny_ctc, nuclei=(0, 0))
    images = np.stack([counts(dataset.clip(index)) for index in range(12)])
    assert np.isfinite(images).all()
    assert images.mean() == pytest.approx(LEVEL, abs=1)
    assert images.std(axis=(1, 2)) == pytest.approx(NOISE, rel=0.06)


def test_fill_holes_copies_whole_patches():
    frame = np.arange(30 * 40, dtype=np.float32).reshape(30, 40).astype(np.float16)
    frame[5:12, 6:20] = np.nan
    tile = pasting.fill_holes(frame, (2, 3), (20, 30), np.random.default_rng(0))
    window = frame[2:22, 3:33]
    assert np.isfinite(tile).all()
    np.testing.assert_array_equal(tile[np.isfinite(window)], window[np.isfinite(window)])
    assert np.isin(tile.astype(np.float16), frame).all()
    # Neighbours in a hole are neighbours elsewhere: most steps to the right are of 1 (or of the
    # rounding of half precision, 2 at most).
    steps = np.diff(tile[4:9, 4:16], axis=1)
    assert np.mean((steps >= 0) & (steps <= 2)) > 0.8
    empty = np.full((9, 9), np.nan, np.float16)
    tile = pasting.fill_holes(empty, (1, 1), (5, 6), np.random.default_rng(0))
    assert (tile == np.zeros((5, 6))).all()


def test_isolated_nuclei_are_whole_and_apart():
    masks = np.zeros((120, 200), np.int32)
    masks[30:40, 30:40] = 1  # 7 px off the next one
    masks[30:40, 46:56] = 2
    masks[70:80, 30:40] = 3  # 6 px off the next one
    masks[70:80, 45:55] = 4
    masks[60:70, 100:110] = 5  # touches
    masks[70:80, 100:110] = 6
    masks[19:29, 150:160] = 7  # touches the band of 20 px
    masks[20:30, 170:180] = 8  # ends where the band begins, top and right
    masks[90:100, 150:156] = masks[90:100, 158:164] = 9  # in two pieces
    masks[101:111, 100:110] = 11  # at the lower border; there is no 10
    light = np.random.default_rng(0).normal(size=masks.shape).astype(np.float32)
    found = list(pasting.find_isolated_nuclei(light, masks, 20))
    wide = [(slice(24, 46), slice(24, 46)), (slice(24, 46), slice(40, 62))]
    wide.append((slice(14, 36), slice(164, 186)))
    assert len(found) == 3
    for one, place, label in zip(found, wide, (1, 2, 8), strict=True):
        np.testing.assert_array_equal(one.mask, masks[place] == label)
        np.testing.assert_array_equal(one.light, light[place].astype(np.float16))


def test_library_holds_all_isolated_nuclei(pasted, tiny_video):
    expected = []
    for masks in tiny_video[1]:
        for label in np.unique(masks)[1:]:
            y, x = np.nonzero(masks == label)
            inside = y.min() >= 8 and x.min() >= 8 and y.max() < 120 and x.max() < 152
            distance = ndimage.distance_transform_edt(masks != label)
            if inside and distance[(masks > 0) & (masks != label)].min() > pasting.ISOLATION:
                expected.append(len(y))
    assert [int(one.mask.sum()) for one in pasted.library] == expected
    assert 0 < len(expected) < sum(len(np.unique(masks)) - 1 for masks in tiny_video[1])
    for one in pasted.library:
        assert np.median(one.light[one.mask]) * FULL == pytest.approx(1850, abs=280)
        rim = ndimage.distance_transform_edt(~one.mask) > 1
        assert np.abs(np.mean(one.light[rim], dtype=np.float64)) * FULL < 3


def spots():
    # Three spots, brightest first, that turn clockwise.
    mask = disc((61, 61), (30, 30), 22)
    light = np.full(mask.shape, 0.1, np.float16) * mask
    for centre, value in (((16, 26), 0.9), ((36, 46), 0.7), ((42, 20), 0.5)):
        light += disc(mask.shape, centre, 3) * np.float16(value)
    return Nucleus(light.astype(np.float16), mask)


def test_augment_nucleus_turns_mirrors_brightens():
    one = spots()
    angles, hands, gains = [], set(), []
    for seed in range(40):
        light, mask = pasting.augment_nucleus(one, np.random.default_rng(seed))
        assert light.shape == mask.shape == (87, 87)
        assert mask.sum() == pytest.approx(one.mask.sum(), rel=0.02)
        far = ndimage.distance_transform_edt(~mask) > pasting.HALO
        assert not light[far].any()
        gains.append(float(light.sum() / one.light.astype(np.float64).sum()))
        places, rest = [], light.copy()
        for _ in range(3):
            places.append(np.array(np.unravel_index(rest.argmax(), rest.shape)))
            rest[disc(rest.shape, places[-1], 8)] = 0
        (a, b), (c, d) = places[1] - places[0], places[2] - places[0]
        hands.add(bool(a * d > b * c))
        angles.append(np.arctan2(a, b))
    assert hands == {True, False}
    # By chance, 40 directions leave a gap above 1.2 rad once in some hundred times.
    assert np.diff(np.sort(angles)).max() < 1.2
    low, high = pasting.BRIGHTNESS
    assert low * 0.98 < min(gains) < low * 1.15
    assert high * 0.85 < max(gains) < high * 1.02
    assert np.mean(np.log(gains)) == pytest.approx(np.log([low, high]).mean(), abs=0.1)


def test_split_background_sees_unlabelled_nuclei():
    x = np.mgrid[:130, :161][1]
    ramp = 0.07 + 0.0001 * x
    noise = np.random.default_rng(0).normal(0, 0.002, x.shape)
    labelled, other = disc(x.shape, (40, 50), 9), disc(x.shape, (90, 110), 8)
    grey = (ramp + noise + 0.3 * labelled + 0.012 * other).astype(np.float32)
    light, rest = pasting.split_background(grey, labelled.astype(np.int32))
    assert light.shape == rest.shape == grey.shape
    middle = (slice(20, 110), slice(30, 130))
    assert np.abs(light - ramp)[middle].max() < 0.0015
    assert np.isnan(rest[labelled | other]).all()
    seen = np.isfinite(rest)
    assert seen.mean() > 0.8
    np.testing.assert_allclose(rest[seen], (grey - light)[seen])


def test_copy_paste_refuses_bad_arguments(tiny_ctc):
    for changes, message in (
        ({"size": (113, 80)}, "size must fit into the field of interest"),
        ({"size": (4, 4), "border": 60}, "must have a nucleus 6 px off all others and 60 px off"),
        ({"stop": 0}, "start and stop must leave a frame"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(tiny_ctc, **changes)
    with pytest.raises(FileNotFoundError, match="07"):
        tiny(tiny_ctc, sequence="07")


def test_rows_hold_all_pasted_nuclei(tiny_ctc):
    videos = tiny(tiny_ctc, nuclei=(2500, 2500))
    shown = [int(videos.clip(number)["masks"].max()) for number in range(3)]
    assert 2 < max(shown) <= videos.max_cells == len(videos.clip(0)["tracks"])


@pytest.mark.filterwarnings("ignore:.* has tracks of frames 0 to 11")
def test_copy_paste_refuses_early_stop(tmp_path, tiny_video):
    ctc.write_sequence(tmp_path, "01", *tiny_video)
    for folder in ("01", "01_ST/SEG", "01_GT/SEG", "01_GT/TRA"):
        for path in (tmp_path / folder).glob("*000.tif"):
            path.unlink()
    with pytest.raises(ValueError, match=r"must leave a frame of 1 to 11 .*got start=1 and stop=1"):
        tiny(tmp_path, stop=1)


def test_copy_paste_refuses_negative_numbers(pasted):
    with pytest.raises(IndexError, match="index must be 0 or more, got -1"):
        pasted.clip(-1)
    assert pasted.clip(10**6)["index"] == 10**6


def test_real_background_keeps_level_and_noise(hela):
    dataset = CopyPaste(hela, stop=1, size=(650, 1050), nuclei=(0, 0))
    image = counts(dataset.clip(0))
    band = (slice(25, -25),) * 2
    grey, masks = dataset.scale.to_grey(dataset.source.frame(0)), dataset.source.masks(0)
    light = estimate_background(grey, masks)[band] * FULL
    filled, free = masks[band] > 0, mask_background(grey, masks)[band]
    assert np.abs(image[filled] - light[filled]).mean() < 4 * (image - light)[free].std()
    assert (image - light)[filled].mean() == pytest.approx(0, abs=2)
    assert (image - light)[filled].std() == pytest.approx((image - light)[free].std(), rel=0.15)
    assert np.median(image) == pytest.approx(np.median(grey[band][free]) * FULL, abs=2)


def test_real_tile_looks_real(hela):
    dataset = CopyPaste(hela, stop=2)
    assert len(dataset.library) > 40
    clip = dataset.clip(0)
    check_clip(clip)
    image, masks = counts(clip), clip["masks"][0].numpy()
    real = dataset.scale.to_grey(dataset.source.frame(0))
    empty = mask_background(real, dataset.source.masks(0))
    off = ~ndimage.binary_dilation(masks > 0, iterations=5)
    assert np.median(image[off]) == pytest.approx(np.median(real[empty]) * FULL, abs=4)
    assert masks.max() > 0
    assert (ndimage.mean(image, masks, range(1, masks.max() + 1)) > np.median(image[off]) + 5).all()
