"""Models on disk: one safetensors file with a JSON header, found by name or by path."""

import functools
import hashlib
import json
import reprlib
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from bvdm_data.files import write_tensors
from bvdm_data.model_schema import build_model, split_model
from bvdm_data.synth.model import Model
from bvdm_data.system import isolate

_FORMATS = ("bvdm-data generator 5", "bvdm-data generator 6")
"""Layouts of the file that are read, in its header; the last is written. In the first the digest
covers the card, too."""

_WAY_OUT = '; fit it again with "bvdm-data fit", or fetch it again'
_LARGEST_FILE, _LARGEST_HEADER = 2**30, 2**20  # bytes


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
    return {
        file.stem: file
        for folder in folders
        for file in sorted(folder.glob("*.safetensors"))
        if file.is_file()
    }


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


def load(model: str | Path = "hela", *, digest: str | None = None) -> Model:
    """Load a model; a process reads the same file once.

    Args:
        model: A name that ships with the package or lies in the user's cache folder, or the path
            of a file made by ``bvdm-data fit``.
        digest: The :func:`model_digest` that it must have; None: any.

    Returns:
        The model, its networks on the CPU.

    Raises:
        TypeError: If model is neither a string nor a path.
        ValueError: If there is no model of that name, the file is damaged or holds no model, or
            its digest is another one.
        FileNotFoundError: If there is no such file.
    """
    path = find_model(model)
    generator, found = _read(path, *_describe_state(path))
    if digest not in (None, found):
        raise ValueError(
            f"the model file {path} was replaced: its SHA-256 is {found}, but was {digest} at "
            "first; put the old file back, or begin again with the new one"
        )
    return generator


def _describe_state(path: Path) -> tuple[int, ...]:
    """Return numbers that differ after a file was replaced; refuse what cannot be a model."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode) or state.st_size > _LARGEST_FILE:
        raise ValueError(
            f"the model file {path} must be a file of at most {_LARGEST_FILE / 1e9:.1f} GB; give a "
            'file made by "bvdm-data fit"'
        )
    return state.st_mtime_ns, state.st_size, state.st_ino


@isolate()
def save(generator: Model, path: str | Path) -> None:
    """Write a model to a file, whole or not at all.

    Args:
        generator: From ``bvdm-data fit``.
        path: The file to make; its name ends in ``.safetensors``.

    Raises:
        ValueError: If the name ends in something else, or a number of the model is not finite or
            out of its range.
        OSError: If the file cannot be written, for example because the disk is full; what stood
            there before stays.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {str(path)!r}")
    tensors, header = split_model(generator)
    try:
        build_model(tensors, header)
        header |= {"format": _FORMATS[-1], **_compute_digests(tensors, header, _FORMATS[-1])}
    except ValueError as error:
        raise ValueError(
            f"a model that cannot be read is not saved: {error}; give numbers within their range, "
            "or train at a lower rate"
        ) from error
    write_tensors(path, tensors, {"bvdm_data": json.dumps(header)})


def read_card(model: str | Path = "hela") -> dict[str, Any]:
    """Return the card of a model: data, settings, seeds, held-out figures.

    Args:
        model: As for :func:`load`.

    Returns:
        JSON values.
    """
    return dict(load(model).card)


def model_digest(model: str | Path = "hela") -> str:
    """Return the SHA-256 of all that clips of a model follow from: equal fits have one.

    Args:
        model: As for :func:`load`.

    Returns:
        64 hexadecimal digits.
    """
    path = find_model(model)
    return _read(path, *_describe_state(path))[1]


def _compute_digests(
    tensors: Mapping[str, Tensor], content: Mapping[str, Any], layout: str
) -> dict[str, str]:
    """Return the SHA-256 of all that clips follow from, and in newer files that of the card."""
    signed, digests = {"format": layout, **content}, {}
    if layout != _FORMATS[0]:
        digests["card_digest"] = _hash_json(signed.pop("card")).hexdigest()
    digest = _hash_json(signed)
    for name in sorted(tensors):
        array = tensors[name].numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return {"digest": digest.hexdigest(), **digests}


def _hash_json(values: object) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode())


@functools.lru_cache(maxsize=4)
@isolate()
def _read(path: Path, *state: int) -> tuple[Model, str]:
    """Read and check a file, once for each state of it; return the model and its digest."""
    try:
        # Not mapped into memory: a file that is written over would change the model in use.
        data = path.read_bytes()
        tensors = load_tensors(data)
        text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = (text.get("__metadata__") or {}).get("bvdm_data", "null")
        if len(text) > _LARGEST_HEADER:
            raise ValueError(f"its header must be at most {_LARGEST_HEADER}, got {len(text)} long")
        header = json.loads(text)
    except (AssertionError, KeyError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"the model file {path} is damaged or no safetensors file ({error}){_WAY_OUT}"
        ) from error
    found = header.get("format") if isinstance(header, dict) else None
    if found not in _FORMATS:
        raise ValueError(
            f"{path} holds no model of this library: its header says {reprlib.repr(found)} where "
            f'{_FORMATS[-1]!r} is expected. Give a file made by "bvdm-data fit"'
        )
    signed = {name: header.pop(name) for name in ("digest", "card_digest") if name in header}
    layout = header.pop("format")
    try:
        content, motion = header, header.get("motion")
        if layout == _FORMATS[0] and isinstance(motion, dict):  # what it lacks
            content = {**header, "motion": {"longest_step": None, **motion}}
        generator = build_model(tensors, content)
        wanted = _compute_digests(tensors, header, layout)
        for name in {**wanted, **signed}:
            if signed.get(name) != wanted.get(name):
                raise ValueError(f"its contents do not have the SHA-256 of its entry {name!r}")
    except ValueError as error:
        raise ValueError(f"the model file {path} is damaged: {error}{_WAY_OUT}") from error
    return generator, wanted["digest"]
