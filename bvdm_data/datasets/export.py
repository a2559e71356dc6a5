"""Export: synthetic videos as folders of the Cell Tracking Challenge."""

import importlib.metadata
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bvdm_data.clip import CameraScale
from bvdm_data.datasets.ctc import is_complete, write_sequence
from bvdm_data.datasets.synthetic import as_method, check_scene
from bvdm_data.files import prepare_output_dir
from bvdm_data.synth.scene import Method
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.validate import as_int, check_seed, name_source_in_errors
from bvdm_data.weights import find_model, load, model_digest

MAX_SEQUENCES = 99
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
    at_least: int = 0,
    variation: float | None = None,
    progress: bool = True,
) -> list[str]:
    """Write synthetic videos in the layout of the challenge: ``01/t000.tif`` and its truth.

    Each sequence is written whole or not at all. A second call with the same arguments continues
    where a killed one stopped, and the files are the same.
    """
    number = as_int("sequences", sequences, least=1)
    if number > MAX_SEQUENCES:
        raise ValueError(f"sequences must be at most {MAX_SEQUENCES}, got {number}")
    seed, texture = check_seed(seed), as_method(method)
    path = find_model(model)
    generator = load(path)
    scene = check_scene(
        generator, texture, frames=frames, size=size, nuclei=nuclei, at_least=at_least,
        variation=variation,
    )  # fmt: skip
    frames, nuclei = scene.frames, scene.nuclei
    texture.check_fitted(generator)
    folder = Path(directory).expanduser()
    manifest = {
        "version": importlib.metadata.version("bvdm-data"),
        "model": model_digest(path),
        "frames": frames,
        "size": list(scene.size),
        "seed": seed,
        "method": repr(texture),
        "nuclei": list(nuclei) if isinstance(nuclei, tuple) else nuclei,
        "variation": scene.variation,
        **({"at_least": scene.at_least} if scene.at_least else {}),
    }
    prepare_output_dir(folder, manifest, may_restart=True)
    scale = CameraScale(generator.camera.offset, generator.camera.full)
    written = []
    with tqdm(total=number * frames, desc="exporting", unit="frame", disable=not progress) as bar:
        for index in range(number):
            name = f"{index + 1:02d}"
            if is_complete(folder, name):
                bar.update(frames)
                continue
            place = f"It is sequence {name} of {folder}; the same call continues there"
            with name_source_in_errors(place):
                video = synthesise(
                    generator,
                    scene,
                    texture,
                    seed=seed,
                    name=("export", index),
                    progress=partial(_advance, bar, index * frames, frames),
                )
            counts = np.stack([scale.to_counts(frame) for frame in video.video])
            write_sequence(folder, name, counts, video.masks, video.tracks)
            written.append(name)
    return written


def _advance(bar: "tqdm[Any]", first: int, frames: int, share: float) -> None:
    """Show that a share of the frames of a sequence is done."""
    bar.update(first + int(share * frames + 1e-6) - bar.n)
