"""Recipe: all that the clips of a data set follow from, as JSON values and back."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth.fast import FastSettings
from bvdm_data.synth.generator import Method
from bvdm_data.synth.pool import PoolSettings
from bvdm_data.synth.procedural import ProceduralSettings
from bvdm_data.synth.texture import PaperSettings
from bvdm_data.weights import find_model, known_models, model_digest

_METHODS: Mapping[str, type[Method]] = {
    kind.__name__: kind for kind in (FastSettings, PaperSettings, ProceduralSettings)
}
_PLAIN = ("frames", "length", "seed", "variation", "max_cells")


def recipe_of(videos: SyntheticHeLaVideos) -> dict[str, Any]:
    """Return what the clips of a data set follow from.

    Args:
        videos: The data set, in the epoch whose clips are meant.

    Returns:
        JSON values: ``model`` (its name, or the path of its file), ``digest`` of the model,
        ``epoch``, and the arguments of the data set.

    Raises:
        TypeError: If it is no such data set.
        ValueError: If it has a transform, which no text can tell.
    """
    if not isinstance(videos, SyntheticHeLaVideos):
        raise TypeError(
            f"videos must be a SyntheticHeLaVideos, got {type(videos).__name__}: only its clips "
            "follow from a few numbers"
        )
    if videos.transform is not None:
        raise ValueError(
            f"videos must have no transform, got {videos.transform!r}: it could not be told in the "
            "manifest; apply it to the clips that are read"
        )
    names = {path.absolute(): name for name, path in known_models().items()}
    plain = {name: getattr(videos, name) for name in _PLAIN}
    return {
        "model": names.get(videos.model, str(videos.model)),
        "digest": model_digest(videos.model),
        "epoch": videos.epoch,
        "size": list(videos.size),
        "nuclei": list(videos.nuclei) if isinstance(videos.nuclei, tuple) else videos.nuclei,
        "annotations": list(videos.annotations),
        "method": {"kind": type(videos.method).__name__, **_listed(asdict(videos.method))},
        "pool": None if videos.pool is None else asdict(videos.pool),
        "device": str(videos.device),
        **plain,
    }


def videos_of(recipe: Mapping[str, Any], model: str | Path | None = None) -> SyntheticHeLaVideos:
    """Return the data set that a recipe tells of.

    Args:
        recipe: What :func:`recipe_of` gave.
        model: Name or file of the model where it is elsewhere now; None: as the recipe says.

    Returns:
        The data set, in the epoch of the recipe.

    Raises:
        FileNotFoundError: If the model's file is not where the recipe says.
        ValueError: If the model is another one, or the recipe tells of no data set.
    """
    name = recipe["model"] if model is None else model
    try:
        digest = model_digest(name)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error}. Or give model=, the file that the clips were made with") from (
            error
        )
    if digest != recipe["digest"]:
        raise ValueError(
            f"model must be the one that the clips were made with, whose SHA-256 is "
            f"{recipe['digest']}, but {str(name)!r} ({find_model(name)}) has {digest}; give the "
            "right file as model="
        )
    said = dict(recipe["method"])
    method = _METHODS[said.pop("kind")](**_tuples(said))
    nuclei = recipe["nuclei"]
    videos = SyntheticHeLaVideos(
        model=name,
        method=method,
        size=recipe["size"],
        nuclei=tuple(nuclei) if isinstance(nuclei, list) else nuclei,
        annotations=recipe["annotations"],
        pool=None if recipe["pool"] is None else PoolSettings(**recipe["pool"]),
        device=recipe["device"],
        **{key: recipe[key] for key in _PLAIN},
    )
    videos.set_epoch(recipe["epoch"])
    return videos


def schema_of(videos: SyntheticHeLaVideos) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of each key of a clip; see :class:`bvdm_data.Clip`.

    Args:
        videos: The data set.

    Returns:
        ``{"dtype": ..., "shape": [...]}`` by key, in the order in which shards hold them.
    """
    frames, size, rows = videos.frames, list(videos.size), videos.max_cells
    every: dict[str, tuple[str, list[int]]] = {
        "video": ("float32", [frames, 1, *size]),
        "masks": ("int32", [frames, *size]),
        "tracks": ("int32", [rows, 4]),
        "flow": ("float32", [frames - 1, 2, *size]),
        "stages": ("int8", [rows, frames]),
        "boxes": ("float32", [rows, frames, 4]),
        "centroids": ("float32", [rows, frames, 2]),
        "index": ("int64", []),
        "source": ("int8", []),
    }
    wanted = {"video", *videos.annotations, "index", "source"}
    return {
        key: {"dtype": dtype, "shape": shape}
        for key, (dtype, shape) in every.items()
        if key in wanted
    }


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
