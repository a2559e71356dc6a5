"""Models on disk: one safetensors file with a JSON header, found by name or by path."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bvdm_data.files import write_tensors
from bvdm_data.synth.camera import CameraModel
from bvdm_data.synth.cell_cycle import CellCycleModel
from bvdm_data.synth.contours import ShapeModel
from bvdm_data.synth.denoiser import Denoiser, DenoiserConfig, Student, StudentConfig
from bvdm_data.synth.model import Model, TextureModel
from bvdm_data.synth.motion import MotionModel, SpeedModel
from bvdm_data.synth.networks import FlowNet, UNet, UNetSettings

FORMAT = "bvdm-data generator 5"
"""Layout of the file, in its header."""

_PARTS = {
    "shapes": ShapeModel,
    "lives": CellCycleModel,
    "motion": MotionModel,
    "camera": CameraModel,
    "texture": TextureModel,
}
_FILE_KEYS = {
    "autocorrelation": "memory",
    "innovation": "fresh",
    "area_jitter": "wobble",
    "roughness": "ragged",
    "elongation": "length",
    "brightness_autocorrelation": "brightness_memory",
    "brightness_sister_correlation": "brightness_shared",
    "mother_area": "body",
    "adult_area": "grown",
    "division_asymmetry": "birth_split",
    "division_asymmetry_robust": "split",
    "pro_metaphase_frames": "mitoses",
    "ana_telophase_frames": "births",
    "rotation": "turn",
    "speed": "pace",
    "speed_by_age": "pace_of_age",
    "division_offset": "shift",
    "stage_drift": "drift",
    "sister_distance": "sisters",
    "neighbour_spacing": "closest",
    "small_patch": "narrow",
}
"""Names of fields in a file, where they differ: files of all versions stay readable."""

_NETWORKS = ("unet", "flownet", "painter", "distilled")
_Part = TypeVar("_Part")


def bundled_folder() -> Path:
    """Return the folder of the models that ship with the package."""
    return Path(__file__).parent / "models"


def cache_folder() -> Path:
    """Return the user's folder for named models; a file ``NAME.safetensors`` in it has a name."""
    return Path(platformdirs.user_cache_dir("bvdm_data"))


def known_models() -> dict[str, Path]:
    """List the models that have a name; those of the package win over the user's own.

    Returns:
        Path of each model's file by its name.
    """
    folders = (cache_folder(), bundled_folder())
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.safetensors"))}


def find_model(model: str | Path) -> Path:
    """Return the file of a model.

    Args:
        model: A name (see :func:`known_models`), or the path of a file made by ``bvdm-data fit``.

    Returns:
        The file's absolute path.

    Raises:
        TypeError: If model is neither a string nor a path.
        ValueError: If there is no model of that name.
        FileNotFoundError: If it is a path and there is no such file.
    """
    if not isinstance(model, (str, Path)):
        raise TypeError(f"model must be a name or the path of a file, got {model!r}")
    path = Path(model).expanduser()
    if path.is_absolute() and path.is_file():
        return path
    known = known_models()
    if isinstance(model, str) and model in known:
        return known[model].absolute()
    if path.is_file():
        return path.absolute()
    if isinstance(model, Path) or path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(
            f"there is no model file {str(model)!r}; give the path of a file made by "
            f'"bvdm-data fit", or one of the names {_format_names(known)}'
        )
    raise ValueError(
        f"no weights called {model!r}; there are: {_format_names(known)}. Or give the path of a "
        'file made by "bvdm-data fit".'
    )


def _format_names(known: Mapping[str, Path]) -> str:
    return ", ".join(repr(name) for name in known) or "none"


def load(model: str | Path = "hela") -> Model:
    """Load a model; a process reads the same file once.

    Args:
        model: A name that ships with the package or lies in the user's cache folder, or the path
            of a file made by ``bvdm-data fit``.

    Returns:
        The model, its networks on the CPU.

    Raises:
        TypeError: If model is neither a string nor a path.
        ValueError: If there is no model of that name, or the file is damaged or holds no model.
        FileNotFoundError: If there is no such file.
    """
    path = find_model(model)
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


def save(generator: Model, path: str | Path) -> None:
    """Write a model to a file, whole or not at all.

    Args:
        generator: From ``bvdm-data fit``.
        path: The file to make; its name ends in ``.safetensors``.

    Raises:
        ValueError: If the name ends in something else.
        OSError: If the file cannot be written, for example because the disk is full; what stood
            there before stays.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {str(path)!r}")
    tensors: dict[str, Tensor] = {}
    header: dict[str, Any] = {"format": FORMAT, "card": dict(generator.card)}
    header["painter"] = asdict(generator.painter.settings)
    header["distilled"] = _to_file_keys(generator.distilled.settings)
    header["unet"] = None if generator.unet is None else asdict(generator.unet.settings)
    for name in _PARTS:
        part = _to_file_keys(getattr(generator, name))
        arrays = {key: value for key, value in part.items() if isinstance(value, np.ndarray)}
        for key, value in arrays.items():
            tensors[f"{name}.{key}"] = torch.from_numpy(np.ascontiguousarray(value))
        header[name] = {key: value for key, value in part.items() if key not in arrays}
    for name in _NETWORKS:
        network: nn.Module | None = getattr(generator, name)
        for key, value in network.state_dict().items() if network is not None else ():
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous()
    _check_finite(tensors)
    header["digest"] = _digest(tensors, header)
    write_tensors(path, tensors, {"bvdm_data": json.dumps(header, allow_nan=False)})


def _to_file_keys(part: Any) -> dict[str, Any]:
    values = {_FILE_KEYS.get(key, key): value for key, value in asdict(part).items()}
    return {k: np.array(v) if isinstance(v, SpeedModel) else v for k, v in values.items()}


def _from_file_keys(kind: type[_Part], values: Mapping[str, Any]) -> _Part:
    return kind(**{f.name: values[_FILE_KEYS.get(f.name, f.name)] for f in fields(kind)})  # type: ignore[arg-type]


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"a model must hold finite numbers, got NaN or infinity in {name!r}; has a "
                "training diverged? Try a lower rate"
            )


def read_card(model: str | Path = "hela") -> dict[str, Any]:
    """Return the card of a model: data, settings, seeds, held-out figures.

    Args:
        model: As for :func:`load`.

    Returns:
        JSON values.
    """
    return dict(load(model).card)


def model_digest(model: str | Path = "hela") -> str:
    """Return the SHA-256 of a model's contents, as its header has it.

    Args:
        model: As for :func:`load`.

    Returns:
        64 hexadecimal digits.
    """
    load(model)  # checks it
    with safe_open(find_model(model), "pt") as file:
        return str(json.loads(file.metadata()["bvdm_data"])["digest"])


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the tensors and the header, but for the digest itself."""
    signed = {key: value for key, value in header.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(signed, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def _read(path: Path, modified: int, size: int) -> Model:
    """Read and check a file, once for each state of it."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("bvdm_data")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(text) if text else {}
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"the model file {path} is damaged or no safetensors file ({error}); fit it again with "
            '"bvdm-data fit", or fetch it again'
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds no model of this library: its header says "
            f"{header.get('format') if isinstance(header, dict) else None!r} where {FORMAT!r} is "
            'expected. Give a file made by "bvdm-data fit"'
        )
    if header.get("digest") != _digest(tensors, header):
        raise ValueError(
            f"the model file {path} is damaged: its contents do not have the SHA-256 that it was "
            'written with; fit it again with "bvdm-data fit", or fetch it again'
        )
    return _build_model(tensors, header)


def _build_model(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Model:
    parts: dict[str, Any] = {
        name: _build_part(kind, name, tensors, header[name]) for name, kind in _PARTS.items()
    }
    sizes = {
        name: {**config, "channels": tuple(config["channels"])}
        for name in ("painter", "distilled", "unet")
        if (config := header[name]) is not None
    }
    # On meta, so that no starting weights are drawn from the global random state.
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "painter": Denoiser(DenoiserConfig(**sizes["painter"])),
            "distilled": Student(_from_file_keys(StudentConfig, sizes["distilled"])),
        }
        if "unet" in sizes:
            networks |= {"unet": UNet(UNetSettings(**sizes["unet"])), "flownet": FlowNet()}
    for name, network in networks.items():
        network.load_state_dict(_select(tensors, name), assign=True)
        network.eval().requires_grad_(False)
        if name in sizes:
            network.to(memory_format=torch.channels_last)
    return Model(**parts, **networks, card=header["card"])  # type: ignore[arg-type]


def _select(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def _build_part(
    kind: type[_Part], name: str, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> _Part:
    arrays = {key: value.numpy() for key, value in _select(tensors, name).items()}
    values: dict[str, Any] = {**arrays, **numbers}
    if kind is MotionModel:
        speed = values["pace"] = SpeedModel(*arrays["pace"].tolist())
        # Files of older versions lack it; eight scales are the longest step of the HeLa video.
        values.setdefault("longest_step", 8 * speed.scale * speed.mitotic_ratio)
    return _from_file_keys(kind, values)
