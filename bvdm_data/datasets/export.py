"""Export: synthetic videos as folders of the Cell Tracking Challenge."""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bvdm_data.clip import CameraScale
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.synthetic import as_method, check_outline
from bvdm_data.files import MANIFEST, check_entries, cut_words, prepare_output_dir, write_manifest
from bvdm_data.synth.scene import Method, SceneSettings, check_scene
from bvdm_data.synth.synthesis import synthesise
from bvdm_data.system import describe_cpu
from bvdm_data.validate import as_int, check_seed, name_source_in_errors
from bvdm_data.weights import find_model, load, model_digest

MAX_SEQUENCES = 99  # sequences have two digits in the challenge's layout


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
    variation: float | Mapping[str, float] | None = None,
    outline: str | float | Sequence[float] = "video",
    death_rate: float | None = None,
    minutes: float | None = None,
    drift: float = 0.0,
    jumps: Sequence[float] = (0.0, 0.0),
    progress: bool = True,
) -> list[str]:
    """Write synthetic videos in the layout of the challenge: ``01/t000.tif`` and its truth.

    Each sequence is written whole or not at all. A second call with the same arguments continues
    where a killed one stopped, and the files are the same. It checks that the sequences that are
    there have all their files, as they were written.
    """
    number = as_int("sequences", sequences, least=1)
    if number > MAX_SEQUENCES:
        raise ValueError(f"sequences must be at most {MAX_SEQUENCES}, got {number}")
    seed, texture = check_seed(seed), as_method(method)
    path, digest = find_model(model), model_digest(model)
    generator = load(path, digest=digest)
    scene = check_scene(
        generator, texture, frames=frames, size=size, nuclei=nuclei, at_least=at_least,
        variation=variation, death_rate=death_rate, minutes=minutes, drift=drift, jumps=jumps,
    )  # fmt: skip
    outline, look = check_outline(outline, texture, path, digest)
    scene = replace(scene, **look)
    frames, nuclei = scene.frames, scene.nuclei
    texture.check_fitted(generator)
    folder = Path(directory).expanduser()
    manifest: dict[str, Any] = {
        "version": importlib.metadata.version("bvdm-data"),
        "model": digest,
        "frames": frames,
        "size": list(scene.size),
        "seed": seed,
        "method": repr(texture),
        "nuclei": list(nuclei) if isinstance(nuclei, tuple) else nuclei,
        "variation": scene.variation,
        **({} if outline == "video" else {"outline": outline}),
        **({"at_least": scene.at_least} if scene.at_least else {}),
        **({} if scene.death_rate is None else {"death_rate": scene.death_rate}),
        **_list_motion(scene, minutes),
        "processor": describe_cpu(),
        "sequences": {},
    }
    begun = prepare_output_dir(folder, manifest, identity=_get_identity) or manifest
    check_entries(folder / MANIFEST, begun, {"sequences": dict})
    there = _check_sequences(folder, number, frames, begun["sequences"])
    scale = CameraScale(generator.camera.offset, generator.camera.full)
    written = []
    with tqdm(total=number * frames, desc="exporting", unit="frame", disable=not progress) as bar:
        for index in range(number):
            name = f"{index + 1:02d}"
            if name in there:
                bar.update(frames)
                continue
            place = f"It is sequence {name} of {folder}; the same call continues there"
            with name_source_in_errors(place):
                advance = partial(_advance, bar, index * frames, frames)
                video = synthesise(
                    generator, scene, texture, seed=seed, name=("export", index), progress=advance
                )
            prepare_output_dir(folder, manifest, identity=_get_identity)  # still ours
            counts = np.empty(video.video.shape, np.uint16)
            for place, frame in zip(counts, video.video, strict=True):
                place[:] = scale.to_counts(frame)
            write_sequence(folder, name, counts, video.masks, video.tracks)
            there[name] = _sign_sequence(folder, name, frames)
            write_manifest(folder / MANIFEST, {**manifest, "sequences": there})
            written.append(name)
    return written


def _list_motion(scene: SceneSettings, minutes: float | None) -> dict[str, Any]:
    """Return the settings of time and stage that are not those of the fitted video."""
    found = {"minutes": minutes and float(minutes), "drift": scene.drift, "jumps": [*scene.jumps]}
    is_other = {"minutes": scene.step > 1, "drift": scene.drift > 0, "jumps": any(scene.jumps)}
    return {name: value for name, value in found.items() if is_other[name]}


def _get_identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key != "sequences"}


def _check_sequences(
    folder: Path, number: int, frames: int, signs: Mapping[str, Any]
) -> dict[str, str]:
    """Return the signs of the sequences that are there; refuse those that are not as written."""
    found = dict(signs)
    for name in (f"{index + 1:02d}" for index in range(number)):
        if not (folder / name).exists():
            if (folder / f"{name}_GT").exists():
                raise ValueError(_describe_spoilt(folder, name, f"{name} is missing"))
            found.pop(name, None)
            continue
        sign = _sign_sequence(folder, name, frames)
        if found.setdefault(name, sign) != sign:
            raise ValueError(_describe_spoilt(folder, name, "a file is another one"))
    return found


def _sign_sequence(folder: Path, name: str, frames: int) -> str:
    """Return a SHA-256 of the files of a sequence; refuse one without all of them."""
    digits = max(3, len(str(frames - 1)))
    starts = (f"{name}/t", f"{name}_GT/SEG/man_seg", f"{name}_GT/TRA/man_track")
    names = [f"{start}{i:0{digits}d}.tif" for start in starts for i in range(frames)]
    paths = [folder / path for path in (*names, f"{name}_GT/TRA/man_track.txt")]
    missing = [str(path.relative_to(folder)) for path in paths if not path.is_file()]
    if missing:
        why = f"it lacks {len(missing)} files: {cut_words(', '.join(missing[:5]))}"
        raise ValueError(_describe_spoilt(folder, name, why))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _describe_spoilt(folder: Path, name: str, why: str) -> str:
    return (
        f"sequence {name} of {folder} is not as it was written ({why}); remove {name} and "
        f"{name}_GT, and the same call makes them again"
    )


def _advance(bar: "tqdm[Any]", first: int, frames: int, share: float) -> None:
    """Show that a share of the frames of a sequence is done."""
    bar.update(first + int(share * frames + 1e-6) - bar.n)
