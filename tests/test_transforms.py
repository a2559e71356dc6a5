import functools
import random

import numpy as np
import pytest
import torch
from kornia import augmentation
from scipy import ndimage
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from bvdm_data import SyntheticHeLaVideos
from bvdm_data.clip import ANNOTATIONS, TooManyNucleiError, annotate_masks, pad_rows
from bvdm_data.clip_check import check_clip
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.transforms import TransformError, apply_transform

# Of the nuclei of the tiny video: how far each goes in a frame, (dy, dx) in pixels.
SPEEDS = {1: (0.5, 1.0), 2: (0.0, 0.5), 3: (0.3, 4.0), 4: (-0.8, 0.5), 5: (0.8, 0.5), 6: (-3, 0.2)}

SMOOTH = v2.InterpolationMode.BILINEAR
CUBIC = v2.InterpolationMode.BICUBIC
TURN = v2.RandomRotation((30, 40), SMOOTH)

GEOMETRIC = {
    "horizontal flip": v2.RandomHorizontalFlip(p=1),
    "vertical flip": v2.RandomVerticalFlip(p=1),
    "quarter turn": v2.RandomRotation((90, 90), expand=True),
    "rotation": v2.RandomRotation(40, SMOOTH),
    "rotation by nearest pixels": v2.RandomRotation(40),
    "rotation of all": v2.RandomRotation((20, 60), SMOOTH, expand=True),
    "affine": v2.RandomAffine(30, (0.1, 0.1), (0.8, 1.3), shear=8, interpolation=SMOOTH),
    "resized crop": v2.RandomResizedCrop((96, 80), scale=(0.3, 0.8)),
    "bicubic resized crop": v2.RandomResizedCrop(90, interpolation=CUBIC),
    "centre crop": v2.CenterCrop(70),
    "crop": v2.RandomCrop((60, 90)),
    "crop with a rim": v2.RandomCrop((150, 150), pad_if_needed=True, fill=0.2),
    "smaller": v2.Resize((80, 100)),
    "larger": v2.Resize((200, 240)),
    "rim": v2.Pad((3, 9, 11, 4)),
    "zoom out": v2.RandomZoomOut(p=1, fill=3),
    "perspective": v2.RandomPerspective(distortion_scale=0.3, p=1),
    "elastic": v2.ElasticTransform(),
    "strongly elastic": v2.ElasticTransform(alpha=120.0, sigma=8.0),
    "sometimes": v2.RandomApply([TURN], p=0.99),
    "one of them": v2.RandomChoice([TURN, v2.RandomVerticalFlip(p=1)]),
    "one after the other": v2.Compose([
        v2.RandomRotation(25, SMOOTH, fill={tv_tensors.Video: 0.07, tv_tensors.Mask: 0}),
        v2.GaussianBlur(3), v2.ElasticTransform(30.0), v2.RandomCrop(100),
        v2.RandomHorizontalFlip(),
    ]),
}  # fmt: skip

# Those that torchvision resizes masks in by a rule of its own.
RESIZING = ("resized crop", "bicubic resized crop", "smaller", "larger")
NEAREST = v2.InterpolationMode.NEAREST

RESIZES = {
    "by 1.6": v2.Resize(80),
    "third": v2.Resize((43, 53)),
    "a quarter": v2.Resize((32, 40)),
    "odd": v2.Resize((50, 160)),
    "larger": v2.Resize((200, 250)),
    "as in masks": v2.Resize((50, 61), NEAREST),
    "rough": v2.Resize((64, 80), antialias=False),
    "crop": v2.RandomResizedCrop((60, 70), scale=(0.8, 0.9)),
    "jitter": v2.ScaleJitter((128, 160), (0.5, 0.9)),
    "turned": v2.Compose([v2.Resize((64, 80)), v2.RandomRotation((90, 90), expand=True)]),
    "twice": v2.Compose([v2.Resize((96, 120)), v2.Resize((64, 80))]),
}

PHOTOMETRIC = {
    "blur": v2.GaussianBlur(5, (0.5, 1.5)),
    "noise": v2.GaussianNoise(sigma=0.02),
    "jitter": v2.ColorJitter(brightness=0.3, contrast=0.3),
    "sharpness": v2.RandomAdjustSharpness(2, p=1),
    "inverted": v2.RandomInvert(p=1),
    "rectangles": v2.RandomErasing(p=1),
    "rarely": v2.RandomApply([TURN], p=0),
    "nothing": v2.RandomRotation((0, 0)),
}

U8, F32 = v2.ToDtype(torch.uint8, scale=True), v2.ToDtype(torch.float32, scale=True)
LIGHT = {
    "strong blur": v2.GaussianBlur(15, (4, 5)),
    "strong noise": v2.GaussianNoise(sigma=0.5),
    "drowned": v2.GaussianNoise(sigma=3.0, clip=False),
    "blurred noise": v2.Compose([v2.GaussianNoise(sigma=1.0), v2.GaussianBlur(9, 3.0)]),
    "dark": v2.ColorJitter(brightness=(0, 0.05)),
    "black": v2.ColorJitter(brightness=(0, 0)),
    "no contrast": v2.ColorJitter(contrast=(0, 0)),
    "inverted": v2.RandomInvert(p=1),
    "sharp": v2.RandomAdjustSharpness(10, p=1),
    "normalised": v2.Normalize([0.1], [0.2]),
    "equalised": v2.Compose([U8, v2.RandomEqualize(p=1), F32]),
    "two greys": v2.Compose([U8, v2.RandomPosterize(1, p=1), F32]),
    "eight greys": v2.Compose([U8, v2.RandomPosterize(3, p=1), F32]),
    "autocontrast": v2.RandomAutocontrast(p=1),
    "solarised": v2.RandomSolarize(0.1, p=1),
    "erased": v2.RandomErasing(p=1, value=1),
    "erased with noise": v2.RandomErasing(p=1, value="random"),
    "much erased": v2.RandomErasing(p=1, scale=(0.6, 0.9), value=1),
    "cut out": v2.Compose([v2.RandomErasing(p=1, value=1)] * 6),
    "erased in noise": v2.Compose(
        [v2.RandomInvert(1.0), v2.GaussianNoise(sigma=0.2), v2.RandomErasing(1.0)]
    ),
    "debris": v2.Lambda(
        lambda video: 0.3 * video + 3 * F.resize(torch.rand(1, 20, 25) ** 8, [256, 256]),
        tv_tensors.Video,
    ),
    "channels": v2.Lambda(
        lambda video: video.repeat(1, 3, 1, 1) * torch.rand(3, 1, 1), tv_tensors.Video
    ),
    "gamma": v2.Lambda(lambda video: video.clamp(min=0) ** 3, tv_tensors.Video),
    "root": v2.Lambda(lambda video: video.clamp(min=0) ** 0.3, tv_tensors.Video),
    "threshold": v2.Lambda(lambda video: (video > 0.15).float(), tv_tensors.Video),
    "ramp": v2.Lambda(lambda video: video + torch.linspace(0, 1, 256), tv_tensors.Video),
    "stripes": v2.Lambda(lambda video: video * (torch.arange(256) // 16 % 2), tv_tensors.Video),
    "flicker": v2.Lambda(lambda video: video * torch.rand(3, 1, 1, 1), tv_tensors.Video),
    "background": v2.Lambda(
        lambda video: video - torch.nn.functional.avg_pool2d(video, 31, 1, 15), tv_tensors.Video
    ),
    "counting": v2.Lambda(
        lambda video: torch.poisson(20 * video.clamp(min=0)) / 20, tv_tensors.Video
    ),
    "kornia": v2.Lambda(
        lambda video: kornia_video(
            augmentation.RandomGamma((0.5, 2.0), p=1), augmentation.RandomBoxBlur(p=1),
            augmentation.RandomMotionBlur(7, 35.0, 0.5, p=1), augmentation.RandomErasing(p=1),
            augmentation.RandomLinearIllumination(p=1), augmentation.RandomSaltAndPepperNoise(p=1),
        )(video), tv_tensors.Video),
}  # fmt: skip

LIGHT_MOVES = {
    "shift": lambda video: video.roll(2, -1),
    "larger shift": lambda video: video.roll((3, 4), (-2, -1)),
    "shift by a radius": lambda video: video.roll(9, -1),
    "far shift": lambda video: video.roll(60, -1),
    "flip": lambda video: video.flip(-1),
    "quarter turn": lambda video: video.rot90(1, (-2, -1)),
    "transposed": lambda video: video.transpose(-2, -1),
    "small turn": lambda video: F.rotate(video, 2, SMOOTH),
    "turn": lambda video: F.rotate(video, 40, SMOOTH),
    "zoom": lambda video: F.affine(video, 0, [0, 0], 1.3, [0, 0], SMOOTH),
    "small zoom": lambda video: F.affine(video, 0, [0, 0], 1.05, [0, 0], SMOOTH),
    "inverted shift": lambda video: 1 - video.roll(40, -2),
    "noisy turn": lambda video: v2.GaussianNoise(sigma=0.05)(F.rotate(video, 30, SMOOTH)),
    "crop": v2.RandomResizedCrop(256, scale=(0.3, 0.6)),
    "kornia": lambda video: kornia_video(augmentation.RandomHorizontalFlip(p=1))(video),
    "in place": lambda video: video.copy_(video.flip(-1)),
    "middle frame": lambda video: torch.stack([video[0], video[1].roll(15, -1), video[2]]),
}


def kornia_video(*augmentations):
    whole = augmentation.VideoSequential(*augmentations, data_format="BTCHW")
    return lambda video: whole(video.as_subclass(torch.Tensor)[None])[0]


erasing = pytest.mark.filterwarnings("ignore:RandomErasing:UserWarning")


@pytest.fixture(scope="module")
def full(tiny_video):
    """Return a clip with all annotations, of which everything is known."""
    counts, masks, tracks = tiny_video
    frames, count = len(masks), len(tracks)
    # Ids in the order of split_gaps: 6 comes before the daughters 4 and 5.
    order = [1, 2, 3, 6, 4, 5]
    renamed = np.zeros_like(masks)
    table = np.zeros((count, 4), np.int32)
    flow = np.zeros((frames - 1, 2, *masks.shape[1:]), np.float32)
    stages = np.full((count, frames), -1, np.int8)
    for new, old in enumerate(order, start=1):
        _, first, last, parent = tracks[old - 1]
        renamed[masks == old] = new
        table[new - 1] = new, first, last, order.index(parent) + 1 if parent else 0
        stages[new - 1, first : last + 1] = (new + np.arange(first, last + 1)) % 6
        for frame in range(first, last):
            flow[frame][:, masks[frame] == old] = np.array(SPEEDS[old])[:, None]
    clip = {"video": torch.from_numpy((counts - 32768.0).astype(np.float32) / 4095)[:, None]}
    clip |= annotate_masks(renamed, table, ANNOTATIONS, 12)
    clip["flow"] = torch.from_numpy(flow)
    clip["stages"] = pad_rows(stages, 12, -1)
    clip["index"] = torch.tensor(7)
    clip["source"] = torch.tensor(1, dtype=torch.int8)
    check_clip(clip)
    return clip


def are_same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9)) for key in one
    )


def make_witness(full):
    """Return planes that show where every pixel was before a transform."""
    height, width = full["masks"].shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return tv_tensors.Image(torch.stack([y, x, torch.ones_like(y)]).double())


def measure_flow_errors(full, clip, places):
    """Return by how many pixels of full, (dy, dx), flow of clip leads to another place."""
    errors_of_frames = []
    for frame, ways in enumerate(clip["flow"].numpy()):
        here, there = clip["masks"][frame].numpy(), clip["masks"][frame + 1].numpy()
        stays = (here > 0) & np.isin(here, there)
        starts = np.stack(np.nonzero(stays))
        was, is_now = (
            np.stack([ndimage.map_coordinates(plane, some, order=1, cval=-9) for plane in places])
            for some in (starts, starts + ways[:, stays])
        )
        y, x = np.rint(was[:2]).astype(int).clip(0, np.array(full["masks"].shape[1:])[:, None] - 1)
        errors = is_now[:2] - was[:2] - full["flow"][frame].numpy()[:, y, x]
        whole = (np.abs(was[2] - 1) < 1e-6) & (np.abs(is_now[2] - 1) < 1e-6)
        whole &= full["masks"][frame].numpy()[y, x] > 0  # a pixel at a rim was half background
        errors_of_frames.append(errors[:, whole])
    return np.concatenate(errors_of_frames, axis=1)


# Transforms that move pixels

FEW = ("quarter turn", "rotation", "affine", "crop with a rim", "smaller", "zoom out",
       "perspective", "strongly elastic")  # fmt: skip
NAMES = pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[] if one in FEW else pytest.mark.heavy) for one in GEOMETRIC],
)


@NAMES
def test_annotations_follow_moved_pixels(full, name):
    clip = apply_transform(full | {"places": make_witness(full)}, GEOMETRIC[name], seed=0)
    places = clip.pop("places")
    assert clip.keys() == full.keys()
    assert all(type(value) is torch.Tensor for value in clip.values())
    check_clip({**clip, "video": clip["video"].clamp(0, 1)})
    errors = measure_flow_errors(full, clip, places)
    assert errors.shape[1] > 400
    assert np.abs(errors).max() < (1.5 if "nearest" in name else 0.6)
    assert np.abs(errors).mean() < (0.3 if "nearest" in name else 0.04)


@pytest.mark.parametrize("name", [one for one in FEW if one not in RESIZING])
def test_pixels_move_as_torchvision_moves_them(full, name):
    sample = {
        "video": tv_tensors.Video(full["video"]),
        "masks": tv_tensors.Mask(full["masks"]),
    }
    torch.manual_seed(5)
    expected = GEOMETRIC[name](sample)
    torch.manual_seed(5)
    clip = apply_transform(full, GEOMETRIC[name])
    assert torch.equal(clip["video"], expected["video"].as_subclass(torch.Tensor))
    ids = expected["masks"].as_subclass(torch.Tensor)
    if name in ("crop with a rim", "zoom out"):  # of which the fill is no id
        ids = torch.where(clip["masks"] > 0, ids, 0)
    assert torch.equal(ids > 0, clip["masks"] > 0)
    # Every new id is a part of one old one, and has its stages.
    for row, first, last, parent in clip["tracks"][clip["tracks"][:, 0] > 0].tolist():
        (old,) = ids[clip["masks"] == row].unique().tolist()
        stages = clip["stages"][row - 1].tolist()
        assert stages[first : last + 1] == full["stages"][old - 1, first : last + 1].tolist()
        if parent:
            former = ids[clip["masks"] == parent].unique().tolist()
            assert former in ([old], [full["tracks"][old - 1, 3]])


@pytest.mark.parametrize("name", RESIZES)
def test_resized_masks_stay_under_light(full, name):
    ids = torch.arange(1, 7)[:, None, None]
    light = (full["masks"][:, None] == ids).float()  # a channel for each nucleus
    clip = apply_transform(full | {"video": light}, RESIZES[name], seed=1)
    check_clip({**clip, "video": clip["video"][:, :1].clamp(0, 1)})
    size = clip["masks"].shape[-2:]
    axes = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    scale = len(full["masks"][0]) / (size[1] if name == "turned" else size[0])
    beside = []  # pixels of the larger image
    for frame, places in enumerate(clip["centroids"].movedim(1, 0)):
        for spot in clip["video"][frame]:
            if spot.sum() > 8 and not (spot[[0, -1]].any() or spot[:, [0, -1]].any()):
                middle = torch.stack([(axis * spot).sum() / spot.sum() for axis in axes])
                distances = (places - middle).abs().amax(1).nan_to_num(99)
                beside.append(float(distances.min()) * max(1, scale))
                mask = torch.argwhere(clip["masks"][frame] == distances.argmin() + 1).float()
                assert (mask.mean(0) - middle).abs().max() < 0.3
    assert len(beside) > 12
    assert np.mean(beside) < 0.12
    assert max(beside) < 0.2


def test_flip_is_exact_and_reversible(full):
    flipped = apply_transform(full, GEOMETRIC["horizontal flip"])
    signs = torch.tensor([1.0, -1.0])[:, None, None]
    assert torch.equal(flipped["flow"], full["flow"].flip(-1) * signs)
    for key in ("tracks", "stages"):
        assert torch.equal(flipped[key], full[key])
    width = full["masks"].shape[-1]
    boxes = full["boxes"][..., [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
    expected = boxes + torch.tensor([width, 0, width, 0])
    assert torch.equal(flipped["boxes"].nan_to_num(-9), expected.nan_to_num(-9))
    assert are_same(apply_transform(flipped, GEOMETRIC["horizontal flip"]), full)


def test_cropped_nuclei_lose_their_rows(full):
    # Nucleus 3 is beyond the left half, the others are in it all the time.
    clip = apply_transform(
        full, v2.Lambda(lambda x: F.crop(x, 0, 0, 128, 118), tv_tensors.TVTensor)
    )
    assert clip["tracks"][:6].tolist() == [
        [1, 0, 11, 0],
        [2, 0, 5, 0],
        [3, 4, 11, 0],
        [4, 6, 11, 2],
        [5, 6, 11, 2],
        [0, 0, 0, 0],
    ]
    assert torch.equal(clip["stages"][2], full["stages"][3])
    check_clip(clip)


def test_returning_nucleus_gets_new_id(full):
    masks = torch.zeros_like(full["masks"])
    masks[:3, 60:66, 60:66] = 1
    masks[3:6, 60:66, 4:10] = 1
    masks[6:, 60:66, 60:66] = 1
    tracks = torch.zeros_like(full["tracks"])
    tracks[0] = torch.tensor([1, 0, 11, 0])
    clip = {key: full[key] for key in ("video", "index", "source")}
    clip |= {"masks": masks, "tracks": tracks}
    cropped = apply_transform(clip, v2.CenterCrop(100))
    assert cropped["tracks"][:3].tolist() == [[1, 0, 2, 0], [2, 6, 11, 1], [0, 0, 0, 0]]
    check_clip(cropped)
    with pytest.raises(TransformError, match="max_cells=1 is too small") as caught:
        apply_transform(clip | {"tracks": tracks[:1]}, v2.CenterCrop(100))
    assert isinstance(caught.value.__cause__, TooManyNucleiError)


def test_empty_and_single_frames_are_moved(full):
    clip = apply_transform(full, v2.Lambda(lambda x: F.crop(x, 0, 0, 5, 5), tv_tensors.TVTensor))
    assert clip["flow"].shape == (11, 2, 5, 5)
    assert not clip["flow"].any()
    check_clip(clip)
    single = {key: full[key][:1] for key in ("video", "masks")}
    single |= {key: full[key] for key in ("index", "source")}
    table = full["tracks"][:3].numpy().copy()
    table[:, 2] = 0
    single |= annotate_masks(full["masks"][:1].numpy(), table, ANNOTATIONS, 12)
    single["flow"] = full["flow"][:0]
    moved = apply_transform(single, v2.RandomRotation((30, 40)), seed=0)
    assert moved["flow"].shape == (0, 2, 128, 160)
    check_clip(moved)


def test_one_annotation_is_as_among_all(full):
    whole = apply_transform(full, GEOMETRIC["affine"], seed=2)
    for key in ("tracks", "flow", "stages", "boxes", "centroids"):
        alone = {name: full[name] for name in ("video", "masks", key, "index", "source")}
        one, other = apply_transform(alone, GEOMETRIC["affine"], seed=2)[key], whole[key]
        if key == "tracks":
            one, other = one[:, :3], other[:, :3]
        assert torch.equal(one.nan_to_num(-9), other.nan_to_num(-9))


def test_masks_not_asked_for_are_removed(full):
    clip = apply_transform(full, GEOMETRIC["affine"], annotations=("boxes",), seed=0)
    assert "masks" not in clip
    assert "boxes" in clip


def test_moved_tables_need_masks(full):
    clip = {key: full[key] for key in ("video", "boxes", "index", "source")}
    assert are_same(apply_transform(clip, v2.GaussianBlur(3)) | {"video": clip["video"]}, clip)
    with pytest.raises(TransformError, match=r"'boxes'.* without masks; add 'masks' to"):
        apply_transform(clip, v2.CenterCrop(70))


# Transforms that do not move pixels


@erasing
@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometric_transforms_keep_annotations(full, name):
    clip = apply_transform(full, PHOTOMETRIC[name], seed=0)
    rest = full.keys() - {"video"}
    assert clip.keys() == full.keys()
    assert are_same({key: clip[key] for key in rest}, {key: full[key] for key in rest})
    assert clip["video"].shape == full["video"].shape


@pytest.fixture(scope="module")
def crowd():
    """Return clips of many nuclei."""
    videos = SyntheticHeLaVideos(frames=3, size=256, nuclei=20, annotations=("masks", "boxes"))
    return [videos.clip(index) for index in range(2)]


@erasing
@pytest.mark.parametrize("name", LIGHT)
def test_changed_light_is_not_moved(crowd, name):
    for clip in crowd:
        changed = apply_transform(clip, LIGHT[name], seed=0)
        assert torch.equal(changed["masks"], clip["masks"])
        assert not torch.equal(changed["video"], clip["video"])


@pytest.mark.parametrize("name", LIGHT_MOVES)
def test_light_moved_alone_is_found(crowd, name):
    def move(clip):
        return clip | {"video": LIGHT_MOVES[name](clip["video"])}

    with pytest.raises(TransformError, match="moves the light of 'video' and not 'masks'; move"):
        apply_transform(crowd[1], move, seed=0)
    turned = v2.Compose([v2.RandomRotation((90, 90)), v2.ColorJitter(0.5)])
    apply_transform(crowd[1], turned, seed=0)
    with pytest.raises(TransformError, match="moves the light of 'video'"):
        apply_transform(crowd[1], v2.Compose([turned, move]), seed=0)


def test_masks_moved_alone_are_found(crowd):
    for key in ("masks", "video"):
        with pytest.raises(TransformError, match=r"moves (the light of )?'.*' and not '"):
            apply_transform(crowd[0], lambda clip, key=key: clip | {key: clip[key].flip(-1)})


def test_dtype_change_reaches_masks_only(full):
    dtypes = {tv_tensors.Mask: torch.int64, tv_tensors.Video: torch.float16, "others": None}
    turn = v2.Compose([v2.ToDtype(dtypes), v2.RandomHorizontalFlip(p=1)])
    clip = apply_transform(full, turn)
    assert clip["masks"].dtype == torch.int64
    assert clip["video"].dtype == torch.float16
    flipped = apply_transform(full, v2.RandomHorizontalFlip(p=1))
    assert torch.equal(clip["flow"], flipped["flow"])


# Functions of the user's own


def test_own_mask_values_are_kept(full):
    def foreground(clip):
        return clip | {"masks": clip["masks"] > 0}

    turned = apply_transform(full, v2.Compose([GEOMETRIC["quarter turn"], foreground]))
    expected = apply_transform(full, GEOMETRIC["quarter turn"])
    assert torch.equal(turned["masks"], expected["masks"] > 0)
    assert are_same(
        turned | {"masks": 0 * turned["video"]}, expected | {"masks": 0 * turned["video"]}
    )


def test_tables_follow_masks_moved_by_name(full):
    def mirror(clip):
        return clip | {key: clip[key].flip(-1) for key in ("video", "masks")}

    clip = {key: full[key] for key in full if key != "flow"}
    mirrored = apply_transform(clip, mirror)
    check_clip(mirrored)
    assert are_same(mirrored, apply_transform(clip, GEOMETRIC["horizontal flip"]))
    with pytest.raises(TransformError, match=r"moves 'masks' but not 'flow'; .*leave 'flow' out"):
        apply_transform(full, mirror)
    # Flow that the user has moved is kept.
    signs = torch.tensor([1.0, -1.0])[:, None, None]
    mirrored = apply_transform(full, lambda c: mirror(c) | {"flow": c["flow"].flip(-1) * signs})
    assert are_same(mirrored, apply_transform(full, GEOMETRIC["horizontal flip"]))


def test_transform_may_return_few_keys(full):
    def few(clip):
        return {key: clip[key] for key in ("video", "masks", "tracks")}

    kept = apply_transform(full, few)
    assert are_same(kept, {key: full[key] for key in ("video", "masks", "tracks")})
    turned = apply_transform(full, v2.Compose([GEOMETRIC["rotation"], few]), seed=4)
    whole = apply_transform(full, GEOMETRIC["rotation"], seed=4)
    assert are_same(turned, {key: whole[key] for key in turned})
    for move in (v2.Resize(50), v2.RandomResizedCrop(60)):
        smaller = apply_transform(full, v2.Compose([move, few]), seed=2)
        whole = apply_transform(full, move, seed=2)
        assert are_same(smaller, {key: whole[key] for key in smaller})
    # What a transform has moved and not handed on has no effect.
    assert are_same(apply_transform(full, lambda clip: few((v2.Resize(50)(clip), clip)[1])), kept)
    arrays = apply_transform(full, lambda clip: {key: clip[key].numpy() for key in few(clip)})
    assert are_same(arrays, kept)
    wide = apply_transform(full, lambda clip: {"masks": clip["masks"].numpy().astype(np.uint16)})
    assert torch.equal(wide["masks"], full["masks"].long())
    assert apply_transform(full, lambda clip: clip | {"index": 3})["index"] == 3
    video, masks = apply_transform(full, lambda clip: (clip["video"], clip["masks"]))
    assert torch.equal(video, full["video"])
    assert torch.equal(masks, full["masks"])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda clip: clip | {"masks": clip["masks"].flip(0)}, "changes 'masks' so that"),
        (lambda clip: clip | {"masks": clip["masks"][..., ::2, ::2]}, "'video' and 'masks' alike"),
        (lambda clip: clip | {"masks": clip["masks"][:2]}, "changes 'masks' so that"),
        (lambda clip: clip | {"masks": torch.rand(12, 128, 160)}, "changes 'masks' so that"),
        (lambda clip: clip | {"masks": torch.full((12, 128, 140), 9)}, "changes 'masks' so that"),
        (lambda clip: clip | {"video": clip["video"][:, :, 1:]}, "alike and keep all frames"),
        (v2.UniformTemporalSubsample(5), r"got \[5, 1, 128, 160\] and \[12, 128, 160\]"),
        (
            lambda clip: {key: clip[key] for key in clip if key != "masks"},
            "must hand on 'masks', without which 'tracks'",
        ),
        (v2.RandomIoUCrop(), "requires input sample to contain"),
        (lambda clip: None, "must return the clip, got None; end it with return clip"),
        (lambda clip: clip | {"video": None}, "hand on 'video' as a tensor, got NoneType; give"),
        (lambda clip: clip | {"video": clip["video"] / 0}, "finite grey values, got NaN or inf"),
        (lambda clip: clip["image"], r"KeyError: 'image'; the clip has the keys \('video', 'mas"),
    ],
)
def test_impossible_results_are_refused(full, function, words):
    with pytest.raises(TransformError, match=words):
        apply_transform(full, function)


def test_ids_that_torchvision_merges_are_refused(full):
    turn, masks = GEOMETRIC["rotation by nearest pixels"], full["masks"]
    clip = {key: full[key] for key in ("video", "index", "source")}
    large, larger = (torch.where(masks > 0, masks + above, 0) for above in (69000, 2**24))
    turned = apply_transform({**clip, "masks": large}, turn, seed=0)
    assert len(turned["masks"].unique()) == len(masks.unique())
    with pytest.raises(TransformError, match=r"ids must be at most 16777216, above which .*got 1"):
        apply_transform({**clip, "masks": larger}, turn, seed=0)
    ones = tv_tensors.Mask(torch.tensor([[[2**24 + 1, 2**24 + 3]]])).expand(1, 9, 2)
    assert not torch.isin(F.rotate(ones, 45), torch.tensor([2**24 + 1, 2**24 + 3])).any()


def test_kornia_freezes_noise_over_frames():
    film = torch.full((1, 4, 1, 8, 8), 0.5)
    for kept, is_frozen in (({}, True), ({"same_on_frame": False}, False)):
        noise = augmentation.RandomGaussianNoise(std=0.1, p=1.0)
        noisy = augmentation.VideoSequential(noise, data_format="BTCHW", **kept)(film)
        assert torch.equal(noisy[:, 0], noisy[:, 1]) == is_frozen
        assert not torch.equal(noisy, film)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (v2.Pad(20, padding_mode="reflect"), r"folds, mirrors or smears .*leave 'flow' out"),
        (v2.Pad(20, padding_mode="edge"), r"folds, mirrors or smears .*leave 'flow' out"),
        (v2.ElasticTransform(alpha=2000.0, sigma=5.0), r"folds, .*deform less"),
        (
            v2.Lambda(lambda x: F.crop(x, 40, 0, 1, 160), tv_tensors.TVTensor),
            r"too little of the image .*leave 'flow' out",
        ),
    ],
)
def test_maps_without_inverse_refuse_flow(full, transform, words):
    with pytest.raises(TransformError, match=words):
        apply_transform(full, transform, seed=0)
    rest = {key: full[key] for key in full if key != "flow"}
    check_clip(apply_transform(rest, transform, seed=0))


# Randomness


def get_states():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate()


def draw_all(clip):
    numbers = [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002
    return clip | {"draws": torch.tensor(numbers, dtype=torch.float64)}


def test_draws_depend_on_seed_epoch_index(full):
    before = get_states()
    first = apply_transform(full, draw_all, seed=1)["draws"]
    with pytest.raises(TransformError):
        apply_transform(full, lambda clip: draw_all(clip)["no such key"], seed=1)
    assert get_states() == before
    random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
    assert torch.equal(apply_transform(full, draw_all, seed=1)["draws"], first)
    for other in (
        apply_transform(full, draw_all, seed=2),
        apply_transform(full, draw_all, seed=1, epoch=1),
        apply_transform(full | {"index": torch.tensor(8)}, draw_all, seed=1),
    ):
        assert not (other["draws"] == first).any()


def test_transform_is_same_in_workers(tiny_ctc):
    turn = v2.Compose([v2.RandomRotation(90), v2.ElasticTransform(), v2.GaussianNoise()])
    videos = CTCVideos(
        tiny_ctc, frames=4, size=64, border=0, max_cells=16, length=4, transform=turn
    )
    alone = [videos[index] for index in range(4)]
    for workers in (0, 2):
        clips = list(DataLoader(videos, batch_size=None, num_workers=workers))
        assert all(are_same(one, other) for one, other in zip(clips, alone, strict=True))


# Failure


def fail_at(number, clip):
    if clip["index"] == number:
        raise ZeroDivisionError("no such angle")
    return clip


@pytest.mark.parametrize("workers", [0, 2])
def test_failing_transform_names_the_clip(tiny_ctc, workers):
    videos = CTCVideos(
        tiny_ctc, frames=4, size=64, border=0, length=6, transform=functools.partial(fail_at, 5)
    )
    videos.set_epoch(2)
    words = (
        r"clip 5 of epoch 2 of CTCVideos.*01.*ZeroDivisionError: no such angle.*"
        r"videos\.set_epoch\(2\); videos\.clip\(5\)"
    )
    with pytest.raises(TransformError, match=f"(?s){words}") as caught:
        list(DataLoader(videos, batch_size=2, num_workers=workers))
    if workers == 0:
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    else:
        assert "in fail_at" in str(caught.value)
    with pytest.raises(TransformError, match="clip 5 of epoch 2"):
        videos.clip(5)
    videos.transform = None
    check_clip(videos.clip(5))
