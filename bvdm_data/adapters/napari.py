"""napari: clips and videos of the Cell Tracking Challenge as layers, with their lineage.

``napari.yaml`` tells napari of the reader, of the sample and of the widget.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from bvdm_data.adapters.common import convert_to_grey, get_tensor
from bvdm_data.clip import Clip
from bvdm_data.datasets.ctc import read_sequence
from bvdm_data.datasets.ctc_files import has_frames
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.system import require
from bvdm_data.weights import load

if TYPE_CHECKING:
    import napari

Layer = tuple[npt.NDArray[Any], dict[str, Any], str]
"""Data, its settings for napari, and the kind of the layer: napari's ``LayerData``."""

SAMPLE_FRAMES, SAMPLE_SIZE = 24, 256
"""Length and side of the sample, px (our choice: long enough for divisions)."""

_Share = Annotated[float, {"widget_type": "FloatSlider", "min": 0, "max": 1, "step": 0.05}]
_Density = Annotated[float, {"widget_type": "FloatSlider", "min": 0.1, "max": 2, "step": 0.1}]
_Frames = Annotated[int, {"widget_type": "Slider", "min": 2, "max": 96}]
_Size = Annotated[int, {"widget_type": "Slider", "min": 64, "max": 512, "step": 32}]
_Seed = Annotated[int, {"widget_type": "SpinBox", "min": 0, "max": 2**31 - 1}]
_Minutes = Annotated[int, {"widget_type": "Slider", "min": 30, "max": 240, "step": 30}]

PERCENTILES = (0.5, 99.8)
"""The grey values of a video that are shown black and white."""


def layers(clip: Clip, name: str = "") -> list[Layer]:
    """Return a clip as layers of napari; napari itself is not needed.

    Args:
        clip: One clip. Without ``masks`` there is the video alone, without ``tracks`` there are no
            tracks.
        name: Stands ahead of the names of the layers.

    Returns:
        ``(data, attributes, kind)`` of the image ``[F, H, W]`` float32, of the labels ``[F, H, W]``
        int32, and of the tracks ``[N, 4]`` float64, rows ``(id, frame, y, x)`` in pixels at the
        centres of the masks, ordered by id, then frame. The attribute ``graph`` of the tracks
        has the parent of each daughter, ``{child: [parent]}``.

    Raises:
        ValueError: If the clip is a batch.
    """
    video = convert_to_grey(clip)
    masks = get_tensor(clip, "masks").numpy() if "masks" in clip else None
    tracks = get_tensor(clip, "tracks").numpy() if "tracks" in clip else np.zeros((0, 4), np.int32)
    return _build_layers(video, masks, tracks, name)


def view(clip: Clip, viewer: "napari.Viewer | None" = None, name: str = "") -> "napari.Viewer":
    """Show a clip.

    Args:
        clip: One clip.
        viewer: Where; None: in a new window. Outside of a notebook, ``napari.run()`` then keeps it
            open.
        name: Stands ahead of the names of the layers.

    Returns:
        The viewer.

    Raises:
        ImportError: If napari is not installed.
        ValueError: If the clip is a batch.
    """
    package = require("napari", "napari")
    made = layers(clip, name)
    window = package.Viewer() if viewer is None else viewer
    for layer in made:
        window.add_layer(package.layers.Layer.create(*layer))
    return window


def sample() -> list[Layer]:
    """Make a synthetic clip; napari has it under File, Open Sample.

    Returns:
        The layers; see :func:`layers`.
    """
    return layers(SyntheticHeLaVideos(frames=SAMPLE_FRAMES, size=SAMPLE_SIZE).clip(0))


def make_layers(
    variation: _Share = 1.0,
    density: _Density = 1.0,
    frames: _Frames = SAMPLE_FRAMES,
    size: _Size = SAMPLE_SIZE,
    seed: _Seed = 0,
    minutes: _Minutes = 30,
) -> "list[napari.types.LayerDataTuple]":
    """Make a clip of the shipped model; napari has it, with a slider each, under Plugins.

    Args:
        variation: How far the clip may leave the fitted video, from 0 to 1.
        density: Nuclei in the first frame, in multiples of the fitted video's.
        frames: Frames of the clip.
        size: Height and width in pixels.
        seed: Another seed, another clip.
        minutes: Between two frames, a multiple of 30.

    Returns:
        The layers; see :func:`layers`. Their names say the seed: a clip of the same seed takes
        the place of the one that is there.

    Raises:
        ValueError: If an argument is out of its range.
    """
    nuclei = max(1, round(density * float(load().motion.density.mean()) * size**2))
    videos = SyntheticHeLaVideos(
        frames=frames, size=size, seed=seed, nuclei=nuclei, variation=variation, minutes=minutes
    )
    return layers(videos.clip(0), f"seed {seed}")


def reader(path: str | list[str]) -> Callable[[str], list[Layer]] | None:
    """Say whether a path is a video in the layout of the Cell Tracking Challenge.

    Args:
        path: What the user opens: the folder of a data set such as ``Fluo-N2DL-HeLa``, the folder
            of one of its videos such as ``Fluo-N2DL-HeLa/01``, or its ``man_track.txt``. A list,
            which means files of one stack, is none of these.

    Returns:
        :func:`read`, or None.
    """
    return read if isinstance(path, str) and _find_sequences(Path(path)) else None


def read(path: str) -> list[Layer]:
    """Read all videos of a data set, or one of them.

    Frames are read into memory. The masks are those of ``truth="auto"``, see
    :func:`read_sequence`; frames without a mask are empty, and videos without truth have no labels.

    Args:
        path: As for :func:`reader`.

    Returns:
        The layers; see :func:`layers`. The image has the counts of the camera, ids are those of
        ``man_track.txt``. Layers have the name of their video ahead, such as ``01 masks``.

    Raises:
        FileNotFoundError: If there is no such video.
        ValueError: If a file of it is damaged, or files do not agree.
    """
    found = _find_sequences(Path(path))
    if not found:
        raise FileNotFoundError(
            "path must be a folder in the layout of the Cell Tracking Challenge (01/t000.tif, "
            "01_GT/TRA/man_track.txt, ...), a video in it or its man_track.txt, "
            f"got {path}"
        )
    return [layer for root, name in found for layer in _read_one(root, name)]


def _find_sequences(path: Path) -> list[tuple[Path, str]]:
    """Return folder and name of the videos that are meant by a path."""
    path = path.expanduser().absolute()
    truth = path.parent.parent
    if path.name == "man_track.txt" and truth.name.endswith("_GT"):
        path = truth.parent / truth.name.removesuffix("_GT")
    if has_frames(path):
        return [(path.parent, path.name)]
    if not path.is_dir():
        return []
    return [(path, folder.name) for folder in sorted(path.iterdir()) if has_frames(folder)]


def _read_one(root: Path, name: str) -> list[Layer]:
    has_truth = any((root / f"{name}_{kind}").is_dir() for kind in ("ST", "GT"))
    sequence = read_sequence(root, name, truth="auto" if has_truth else None)
    video = np.stack([sequence.frame(number) for number in sequence.numbers])
    if sequence.truth is None:
        return _build_layers(video, None, sequence.tracks, name)
    masks = np.zeros(video.shape, np.int32)
    for mask, number in zip(masks, sequence.numbers, strict=True):
        found = sequence.masks(number)
        if found is not None:
            mask[:] = found
    return _build_layers(video, masks, sequence.tracks, name)


def _build_layers(
    video: npt.NDArray[Any],
    masks: npt.NDArray[np.int32] | None,
    tracks: npt.NDArray[np.int32],
    name: str,
) -> list[Layer]:
    ahead = f"{name} " if name else ""
    low, high = np.percentile(video[:: max(len(video) // 8, 1)], PERCENTILES).tolist()
    limits = (low, high if high > low else low + 1)
    made: list[Layer] = [(video, {"name": f"{ahead}video", "contrast_limits": limits}, "image")]
    if masks is None:
        return made
    made.append((masks, {"name": f"{ahead}masks"}, "labels"))
    places = _list_places(masks, tracks[tracks[:, 0] > 0, 0])
    if len(places):
        shown, rows = set(places[:, 0].tolist()), tracks[:, [0, 3]].tolist()
        graph = {one: [parent] for one, parent in rows if one in shown and parent in shown}
        made.append((places, {"name": f"{ahead}tracks", "graph": graph}, "tracks"))
    return made


def _list_places(
    masks: npt.NDArray[np.int32], wanted: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Return rows (id, frame, y, x) of the wanted ids, by id, then frame."""
    rows = [np.zeros((0, 4))]
    for frame, mask in enumerate(masks):
        ids = np.intersect1d(mask, wanted)
        if len(ids):
            centres = np.array(ndimage.center_of_mass(np.ones_like(mask), mask, ids))
            rows.append(np.column_stack([ids, np.full(len(ids), frame), centres]))
    places = np.concatenate(rows)
    return places[np.lexsort((places[:, 1], places[:, 0]))]
