"""Export: synthetic videos as folders of the Cell Tracking Challenge."""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bvdm_data.clip import CameraScale
from bvdm_data.datasets.ctc import is_complete, write_sequence
from bvdm_data.datasets.synthetic import (
    as_method,
    check_nuclei,
    check_size_fits_nucleus,
    check_variation,
)
from bvdm_data.files import open_atomic
from bvdm_data.synth.scene import Method, SceneSettings
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.validate import as_int, check_frames, check_seed, check_size, name_source_in_errors
from bvdm_data.weights import find_model, load, model_digest

MANIFEST = "bvdm_data.json"
"""File in an exported folder that says how it was made."""

MOST_SEQUENCES = 99
"""Sequences have two digits in the challenge's layout."""


def export(
    directory: str | Path,
    *,
    frames: int = 92,
    size: int | Sequence[int] = (700, 1100),
    sequences: int = 2,
    seed: int = 0,
    model: str | Path = "hela",
    method: str | Method = "fast",
    nuclei: int | tuple[int, int] | None = None,
    variation: float | None = None,
    progress: bool = True,
) -> list[str]:
    """Write synthetic videos in the layout of the challenge: ``01/t000.tif`` and its truth.

    Each sequence is written whole or not at all; a second call with the same arguments goes on
    where a killed one was, and ends in the same files.
    """
    number = as_int("sequences", sequences, least=1)
    if number > MOST_SEQUENCES:
        raise ValueError(f"sequences must be at most {MOST_SEQUENCES}, got {number}")
    frames, seed = check_frames(frames), check_seed(seed)
    texture, nuclei = as_method(method), check_nuclei(nuclei)
    scene = SceneSettings(
        frames=frames,
        size=check_size(size),
        nuclei=nuclei,
        variation=check_variation(variation, texture),
    )
    path = find_model(model)
    check_size_fits_nucleus(scene.size, load(path))
    texture.check_fitted(load(path))
    folder = Path(directory).expanduser()
    _claim(
        folder,
        {
            "version": importlib.metadata.version("bvdm-data"),
            "model": model_digest(path),
            "frames": frames,
            "size": list(scene.size),
            "seed": seed,
            "method": repr(texture),
            "nuclei": nuclei if isinstance(nuclei, int) or nuclei is None else list(nuclei),
            "variation": scene.variation,
        },
    )
    written = []
    with tqdm(total=number * frames, desc="exporting", unit="frame", disable=not progress) as bar:
        for index in range(number):
            name = f"{index + 1:02d}"
            if is_complete(folder, name):
                bar.update(frames)
                continue
            _write_one(folder, name, path, scene, texture, seed, index, bar)
            written.append(name)
    return written


def _write_one(
    folder: Path,
    name: str,
    model: Path,
    scene: SceneSettings,
    texture: Method,
    seed: int,
    index: int,
    bar: "tqdm[Any]",
) -> None:
    generator = load(model)
    with name_source_in_errors(f"It is sequence {name} of {folder}; the same call goes on there"):
        film = synthesise(
            generator,
            scene,
            texture,
            seed=seed,
            name=("export", index),
            progress=lambda share: bar.update(int((index + share) * scene.frames) - bar.n),
        )
    scale = CameraScale(generator.camera.offset, generator.camera.full)
    counts = np.stack([scale.to_counts(frame) for frame in film.video])
    write_sequence(folder, name, counts, film.masks, film.tracks)


def _claim(folder: Path, settings: dict[str, object]) -> None:
    """Write the manifest into a new folder, or check that of a folder that was begun."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        begun = _read_manifest(manifest)
        differing = [key for key in settings if begun.get(key) != settings[key]]
        others = [path for path in folder.iterdir() if path != manifest]
        if differing and others:
            key = differing[0]
            raise ValueError(
                f"{folder} was begun with {key}={begun.get(key)!r}, got {settings[key]!r}; give "
                "the same arguments to go on, or another folder"
            )
        if not differing:
            return
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"directory must be new, empty, or begun by the same call, but {folder} holds "
            "something else; give another one"
        )
    with open_atomic(manifest) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n")


def _read_manifest(manifest: Path) -> dict[str, object]:
    try:
        begun = json.loads(manifest.read_text())
    except ValueError as error:
        raise ValueError(
            f"{manifest} is damaged ({error}); give another directory, or remove this one"
        ) from error
    return begun if isinstance(begun, dict) else {}
