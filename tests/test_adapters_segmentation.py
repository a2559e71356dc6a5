import functools
import pickle
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.segmentation import find_boundaries
from stardist.geometry import star_dist
from stardist.utils import edt_prob
from torch.utils.data import DataLoader

from bvdm_data import MixedVideos, SyntheticHeLaVideos
from bvdm_data.adapters.frames import frame_lists, frame_sequences
from bvdm_data.adapters.segmentation import (
    cellpose_flows,
    collate_stardist,
    collate_unet,
    object_probability,
    star_distances,
    unet_targets,
)
from tests.helpers.clips import SPARSE, make_sparse_clip, run_snippet
from tests.helpers.films import ellipse

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def crowd(seed=0, shape=(72, 90), count=25):
    """Labels that touch, overlap, leave the frame, have holes and gaps in their numbers."""
    draws = np.random.default_rng(seed)
    masks = np.zeros(shape, np.int32)
    for number in range(1, count + 1):
        centre, radii = draws.uniform((0, 0), shape), draws.uniform(2, 12, 2)
        masks[ellipse(shape, centre, radii)] = 3 * number
    masks[30:50, 40:60] = 200
    masks[36:44, 46:54] = 0
    masks[0, 0], masks[-1, -1] = 250, 251
    return masks


@pytest.fixture(scope="module")
def crowds():
    blank = np.zeros((72, 90), np.int32)
    return torch.from_numpy(np.stack([crowd(0), crowd(1), blank, np.full_like(blank, 7)]))


def videos(model, **settings):
    settings = {"frames": 3, "size": (64, 80), "length": 4, "annotations": ("masks",), **settings}
    return SyntheticHeLaVideos(model=model, method="procedural", **settings)


@pytest.mark.parametrize("rays", [3, 32, 64])
def test_star_distances_are_those_of_stardist(crowds, rays):
    found = star_distances(crowds, rays)
    assert (found.shape, found.dtype) == ((4, rays, 72, 90), torch.float32)
    for masks, of_frame in zip(crowds.numpy(), found, strict=True):
        known = np.moveaxis(star_dist(masks, rays, mode="cpp"), -1, 0)
        np.testing.assert_allclose(of_frame.numpy(), known, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="rays must be 3 or more, got 2"):
        star_distances(crowds, 2)


def test_rays_start_right_and_turn_down():
    masks = torch.zeros(1, 21, 31, dtype=torch.int32)
    masks[0, 4:15, 6:27] = 1
    right, down, left, up = star_distances(masks, 4)[0, :, 6, 10].tolist()
    assert (right, down, left, up) == (16.5, 8.5, 4.5, 2.5)


@pytest.mark.filterwarnings("ignore:EDT of constant label image")
def test_object_probability_is_that_of_stardist(crowds):
    found = object_probability(crowds)
    known = [edt_prob(masks) for masks in crowds.numpy()]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), known, atol=1e-6)
    assert found[:2].amax((1, 2)).tolist() == [1, 1]


def test_boundary_lies_on_both_sides(crowds):
    maps = unet_targets(crowds)
    known = [find_boundaries(masks, mode="thick") for masks in crowds.numpy()]
    assert np.array_equal(maps["boundary"][:, 0].numpy(), np.stack(known))
    assert torch.equal(maps["foreground"][:, 0] > 0, crowds > 0)
    assert {(value.dtype, value.shape) for value in maps.values()} == {
        (torch.float32, (4, 1, 72, 90))
    }
    masks = torch.zeros(2, 8, 9, dtype=torch.int32)
    assert star_distances(masks).count_nonzero() == 0
    assert sum(value.count_nonzero() for value in unet_targets(masks).values()) == 0
    masks[0, 2:5, 2:5] = 3
    for dtype in (torch.uint8, torch.uint16, torch.int16):
        assert torch.equal(object_probability(masks.to(dtype)), object_probability(masks))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_frames_with_maps(tiny_model, workers):
    data = videos(tiny_model, batch_size=2)
    loader = DataLoader(data, batch_size=2, num_workers=workers, collate_fn=collate_unet)
    first, second = loader
    clips = [videos(tiny_model).clip(number) for number in range(4)]
    assert torch.equal(first["image"], torch.cat([clip["video"] for clip in clips[:2]]))
    masks = torch.cat([clip["masks"] for clip in clips[2:]])
    assert second["foreground"].any()
    for name, value in unet_targets(masks).items():
        assert torch.equal(second[name], value)


def test_maps_of_sparse_and_full_frames():
    empty, full = torch.zeros(1, 6, 8, dtype=torch.int32), torch.full((1, 6, 8), 70000)
    for masks, share in ((empty, 0), (full, 1)):
        maps = unet_targets(masks)
        assert (maps["foreground"] == share).all()
        assert not maps["boundary"].any()
        for found in (maps["distance"], star_distances(masks, 8)):
            assert found.isfinite().all()
            assert ((found > 0) == share).all()
    clips = [make_sparse_clip(kind, 70000) for kind in SPARSE]
    near = [make_sparse_clip(kind) for kind in SPARSE]
    for collate in (collate_unet, collate_stardist):
        for name, value in collate(near).items():
            assert torch.equal(value, collate(clips)[name])


def test_loader_gives_frames_with_rays(tiny_model):
    collate = functools.partial(collate_stardist, rays=8)
    batch = next(iter(DataLoader(videos(tiny_model), batch_size=2, collate_fn=collate)))
    shapes = {name: list(value.shape) for name, value in batch.items()}
    plain = [6, 1, 64, 80]
    assert shapes == {"image": plain, "probability": plain, "distances": [6, 8, 64, 80]}
    inside = batch["probability"] > 0
    assert inside.any()
    assert torch.equal((batch["distances"] > 0).all(1, keepdim=True), inside)


def test_segmentation_refuses_wrong_clips(tiny_model):
    data = videos(tiny_model)
    clip, batch = data.clip(0), next(iter(DataLoader(data, batch_size=2)))
    with pytest.raises(ValueError, match=r"must have one \(C, H, W\).*same size="):
        collate_unet([clip, videos(tiny_model, size=48).clip(0)])
    with pytest.raises(
        ValueError, match=r"one clip with video \[F, C, H, W\].*of a batch one by one"
    ):
        frame_lists([batch])
    for make in (collate_unet, collate_stardist, frame_lists):
        with pytest.raises(TypeError, match=r"clip must be a dict.*got str; .*give a list of them"):
            make(clip)
        with pytest.raises(ValueError, match=r"must have the key 'masks'.*annotations="):
            make([{key: value for key, value in clip.items() if key != "masks"}])
    with pytest.raises(TypeError, match=r"videos must be a data set with clip\(index\).*got list"):
        frame_sequences([clip], clips=1)
    with pytest.raises(ValueError, match=r"clips must be given.*clips=100"):
        frame_sequences(videos(tiny_model, length=None))


def test_segmentation_refuses_wrong_masks():
    for masks, words in (
        (torch.zeros(8, 8, dtype=torch.int32), r"whole numbers \[N, H, W\]"),
        (torch.zeros(1, 8, 8), "float32"),
        (torch.full((1, 8, 8), -1), "0 or more, got -1"),
    ):
        for make in (unet_targets, object_probability, star_distances, cellpose_flows):
            with pytest.raises(ValueError, match=words):
                make(masks)
    with pytest.raises(TypeError, match=r"masks must be a tensor, got ndarray; see torch\.as"):
        unet_targets(np.ones((1, 8, 8), int))


def test_frame_lists_own_their_memory(tiny_model):
    clips = [videos(tiny_model).clip(number) for number in range(2)]
    images, labels = frame_lists(clips)
    assert [image.shape for image in images] == [(64, 80)] * 6
    assert {label.dtype for label in labels} == {np.dtype("int32")}
    assert np.array_equal(images[4], clips[1]["video"][1, 0])
    assert np.array_equal(labels[4], clips[1]["masks"][1])
    labels[4][:] = 0
    assert clips[1]["masks"][1].any()
    colour = {"video": torch.rand(2, 3, 8, 9), "masks": torch.ones(2, 8, 9, dtype=torch.int32)}
    assert np.array_equal(frame_lists([colour])[0][1], colour["video"][1].permute(1, 2, 0))


def test_frame_lists_leave_out_sparse_frames():
    masks = torch.zeros(4, 6, 6, dtype=torch.int32)
    masks[1, 0], masks[2, 0], masks[2, 3], masks[3] = 1, 1, 7000, 2
    clip = {"video": torch.rand(4, 1, 6, 6), "masks": masks}
    for fewest, kept in ((0, [0, 1, 2, 3]), (1, [1, 2, 3]), (2, [2])):
        images, labels = frame_lists([clip], at_least=fewest)
        assert np.array_equal(images, clip["video"][kept, 0])
        assert np.array_equal(labels, masks[kept])
    with pytest.raises(ValueError, match=r"the fullest frame, 2, got 3; give more clips, or clips"):
        frame_lists([clip], at_least=3)
    with pytest.raises(ValueError, match="at_least must be 0 or more, got -1"):
        frame_lists([clip], at_least=-1)


class Few:
    """A data set of one clip."""

    length = 1

    def __init__(self, video, masks):
        self.made = {"video": video, "masks": masks}

    def clip(self, index):
        return self.made


def touching_pair():
    """Return ids that are 0 and equal where they are cut to 16 bits."""
    masks = torch.zeros(2, 32, 32, dtype=torch.int32)
    masks[0, 4:12, 4:12], masks[0, 20:28, 4:12], masks[0, 20:28, 12:20] = 65536, 1, 65537
    masks[1, 4:12] = 65537
    return masks


def test_large_ids_stay_apart_in_stardist():
    masks = touching_pair()
    apart = masks.clone()
    apart[masks == 65536], apart[masks == 65537] = 2, 3
    videos = Few(torch.rand(2, 1, 32, 32), masks)
    for labels in (frame_lists([videos.clip(0)])[1], frame_sequences(videos)[1]):
        for found, known in zip(labels, apart.numpy(), strict=True):
            assert np.array_equal(found, known)
            np.testing.assert_array_equal(star_dist(found, 8), star_dist(known, 8))
    assert not np.array_equal(star_dist(masks[0].numpy(), 8), star_dist(apart[0].numpy(), 8))


def test_dim_frames_stay_apart_in_cellpose():
    draws = torch.Generator().manual_seed(0)
    dim = 0.07 + 9e-4 * torch.rand(2, 1, 32, 32, generator=draws)
    dim[1] = 0.07
    images, _ = frame_lists([{"video": dim, "masks": touching_pair()}])
    bright, _ = frame_lists([{"video": 10 * dim, "masks": touching_pair()}])
    assert np.ptp(images[0]) == pytest.approx(1)
    assert images[0].dtype == np.float32
    assert np.array_equal(images[1], dim[1, 0])  # shows nothing
    assert np.array_equal(bright[0], 10 * dim[0, 0])
    normalise = pytest.importorskip(
        "cellpose.transforms", reason="needs the extra cellpose"
    ).normalize99
    assert not normalise(dim[0, 0].numpy()).any()
    np.testing.assert_allclose(normalise(images[0]), normalise(bright[0]), atol=1e-3)


def test_cellpose_changes_only_its_own_labels():
    dynamics = pytest.importorskip("cellpose.dynamics", reason="needs the extra cellpose")
    data = Few(torch.rand(2, 1, 32, 32), touching_pair() % 65000)
    before = data.made["masks"].clone()
    for labels in (frame_lists([data.clip(0)])[1], frame_sequences(data)[1]):
        dynamics.labels_to_flows([labels[0]])
        assert torch.equal(data.made["masks"], before)
    assert np.array_equal(labels[0], before[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_ids_of_float_masks_are_whole(dtype):
    most = min(int(2 / torch.finfo(dtype).eps), 2**31) - 1
    clip = {"video": torch.rand(1, 1, 8, 8), "masks": torch.full((1, 8, 8), most, dtype=dtype)}
    assert set(frame_lists([clip])[1][0].ravel()) == {1 if most > 65535 else most}
    for wrong in (clip["masks"] + 1, clip["masks"] * 0 + 0.5):
        with pytest.raises(ValueError, match=f"must hold whole ids up to {most}, got up to .*int3"):
            frame_lists([{**clip, "masks": wrong}])


def test_ids_beyond_int32_are_refused():
    clip = {"video": torch.rand(1, 1, 8, 8)}
    for dtype in (torch.uint16, torch.uint32, torch.int64):
        frame_lists([{**clip, "masks": torch.ones(1, 8, 8).to(dtype)}])
    for dtype in (torch.uint32, torch.int64):
        with pytest.raises(ValueError, match="up to 2147483647, got up to 2147483648; give"):
            frame_lists([{**clip, "masks": torch.full((1, 8, 8), 2**31, dtype=dtype)}])


class Counted(SyntheticHeLaVideos):
    made = ()

    def clip(self, index):
        self.made += (index,)
        return super().clip(index)


def counted(model):
    return Counted(model=model, method="procedural", frames=2, size=48, length=3, nuclei=2)


def test_frame_sequences_make_clips_once(tiny_model):
    data = counted(tiny_model)
    images, labels = frame_sequences(data)
    assert (len(images), len(labels), data.made) == (6, 6, (0,))
    assert np.array_equal(labels[5], data.clip(2)["masks"][1])
    assert np.array_equal(images[-1], data.clip(2)["video"][1, 0])
    data.made = ()
    assert [image.shape for image in images] == [(48, 48)] * 6
    assert data.made == (1,)
    assert np.array_equal(images[2:4], [images[2], images[3]])
    for index in (6, -7):
        with pytest.raises(IndexError, match=r"index must be in \[-6, 6\)"):
            images[index]


def test_frame_sequences_limit_kept_clips(tiny_model):
    data = counted(tiny_model)
    images, labels = frame_sequences(data, 3, kept=2)
    for number in (0, 2, 0, 4, 0, 2):
        assert np.array_equal(images[number] * 0, labels[number] * 0)
    assert data.made == (0, 1, 2, 1)


def test_frame_sequences_transform_pickle_and_follow(tiny_model):
    data = counted(tiny_model)
    images, labels = frame_sequences(data, transform=np.negative)
    before = data.clip(0)
    assert np.array_equal(images[1], -before["video"][1, 0].numpy())
    assert np.array_equal(labels[1], before["masks"][1])
    images, labels = frame_sequences(data)
    image, label = pickle.loads(pickle.dumps((images, labels)))
    assert np.array_equal(image[5], images[5])
    assert np.array_equal(label[5], labels[5])
    data.set_epoch(1)
    assert not np.array_equal(images[0], before["video"][0, 0])
    assert np.array_equal(images[0], data.clip(0)["video"][0, 0])
    sources = {"a": videos(tiny_model, length=2), "b": videos(tiny_model, length=3)}
    mix = MixedVideos(sources, quotas={"a": 1, "b": 1}, at_end="stop", shard=(1, 2))
    assert len(frame_sequences(mix)[0]) == 4 * mix.frames


def heat_flows(masks, label):
    """Diffuse heat from the centre of one nucleus, pixel by pixel, and follow its gradient."""
    places = {tuple(place) for place in np.argwhere(masks == label)}
    spots = np.array(sorted(places))
    middle = np.rint(spots.mean(0))
    centre = tuple(spots[((spots - middle) ** 2).sum(1).argmin()])
    heat = dict.fromkeys(places, 0.0)
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for _ in range(2 * int((np.ptp(spots, axis=0) + 2).sum())):
        heat[centre] += 1
        heat = {
            (y, x): sum(heat.get((y + dy, x + dx), 0.0) for dy, dx in around) / 9 for y, x in places
        }
    flows = np.zeros((2, *masks.shape))
    for y, x in places:
        down = heat.get((y + 1, x), 0) - heat.get((y - 1, x), 0)
        right = heat.get((y, x + 1), 0) - heat.get((y, x - 1), 0)
        if np.hypot(down, right) > 1e-9:  # not so in the centre of a symmetric nucleus
            flows[:, y, x] = np.array([down, right]) / np.hypot(down, right)
    return flows


def test_cellpose_flows_climb_the_heat():
    pytest.importorskip("cellpose", reason="needs the extra cellpose")
    masks = np.zeros((40, 44), np.int32)
    masks[ellipse(masks.shape, (14, 15), (9, 7))] = 5
    flows = cellpose_flows(torch.from_numpy(masks[None]))
    assert (flows.shape, flows.dtype) == ((1, 4, 40, 44), torch.float32)
    np.testing.assert_allclose(flows[0, 2:].numpy(), heat_flows(masks, 5), atol=1e-4)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_cellpose_recovers_nuclei_from_flows(tiny_model):
    pytest.importorskip("cellpose", reason="needs the extra cellpose")
    from cellpose.dynamics import compute_masks

    masks = videos(tiny_model, nuclei=6).clip(0)["masks"]
    kept = masks.clone()
    masks[1] = 0
    flows = cellpose_flows(masks)
    assert torch.equal(masks[2], kept[2])
    assert flows[1].count_nonzero() == 0
    assert torch.equal(flows[0, 1] > 0, masks[0] > 0)
    found = compute_masks(5 * flows[0, 2:].numpy(), 10 * flows[0, 1].numpy() - 5, niter=200)
    ids, areas = masks[0].unique(return_counts=True)
    # Cellpose leaves out what has fewer than 15 pixels.
    large = ids[(ids > 0) & (areas > 30)]
    assert len(large) > 1
    for number in large:
        own = (masks[0] == number).numpy()
        best = np.bincount(found[own].ravel()).argmax()
        assert (own & (found == best)).sum() / (own | (found == best)).sum() > 0.9


def test_flows_without_cellpose_name_the_extra(monkeypatch, crowds):
    monkeypatch.setitem(__import__("sys").modules, "cellpose.dynamics", None)
    with pytest.raises(ImportError, match=r"needs the package 'cellpose.*bvdm-data\[cellpose\]"):
        cellpose_flows(crowds)


def test_unet_learns_maps_from_loader(capsys):
    example = runpy.run_path(str(EXAMPLES / "train_unet.py"))
    small = ["--steps", "24", "--frames", "1", "--size", "64", "--batch-size", "4"]
    losses = example["main"]([*small, "--workers", "0", "--device", "cpu"])
    assert np.median(losses[-6:]) < 0.7 * np.median(losses[:3])
    assert "after 24 steps" in capsys.readouterr().out


def test_consumers_snippet_runs(capsys):
    run_snippet("Segmentation:")
    said = capsys.readouterr().out
    assert "'boundary': (4, 1, 128, 128)" in said
    assert re.search(r"\n8 \(128, 128\)\n[1-8] int32\n$", said)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_cellpose_trains_on_lists_of_frames(tmp_path, capsys):
    pytest.importorskip("cellpose", reason="needs the extra cellpose")
    example = runpy.run_path(str(EXAMPLES / "train_cellpose.py"))
    losses = example["main"](["--clips", "6", "--epochs", "12", "--output", str(tmp_path)])
    assert losses[-1] < 0.8 * losses[1]
    assert len(list((tmp_path / "models").iterdir())) == 1
    small = ["--clips", "3", "--size", "128", "--epochs", "1", "--output", str(tmp_path)]
    assert len(example["main"](small)) == 1
    assert "saved to" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_stardist_trains_on_frame_sequences(capsys):
    pytest.importorskip("tensorflow", reason="needs the extra stardist")
    example = runpy.run_path(str(EXAMPLES / "train_stardist.py"))
    losses = example["main"](["--clips", "6", "--epochs", "4", "--size", "64"])
    assert losses[-1] < losses[0]
    assert "after 4 epochs" in capsys.readouterr().out
