"""A real video mixed with its synthetic twin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.real import CTCVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos

TWIN_WEIGHTS = {"real": 1, "synthetic": 3}
"""How often each is shown where nothing else is said (our choice)."""


def twin(
    real: CTCVideos,
    *,
    model: str | Path = "hela",
    synthetic: Mapping[str, Any] | None = None,
    seed: int = 0,
    **mix: Any,
) -> MixedVideos:
    """Mix a real video with synthetic clips of the model that was fitted to it.

    Frames, size, annotations, max_cells and transform of the synthetic clips are those of the real
    ones. How far they may leave the look of the video is said by ``variation`` in ``synthetic``.

    Args:
        real: The real video.
        model: A name that ships with the package, or the path of a file made by
            ``bvdm-data fit`` from that video.
        synthetic: Other arguments of ``SyntheticHeLaVideos``.
        seed: Seed of the draws and of the synthetic clips.
        **mix: Other arguments of ``MixedVideos``. Without weights or quotas, one clip in four is
            real.

    Returns:
        The mix of ``"real"`` and ``"synthetic"``.

    Raises:
        FileNotFoundError: If there is no such model.
        TypeError: If real is no CTCVideos, or an argument is unknown or of the wrong type.
        ValueError: If the model is on another scale than the real video, the video's stride is not
            1, synthetic has an argument that is settled elsewhere, or another argument is refused.

    Examples:
        One line for a training on both::

            mix = twin(CTCVideos("Fluo-N2DL-HeLa", sequence="01"), batch_size=4)
    """
    if not isinstance(real, CTCVideos):
        raise TypeError(f"real must be a CTCVideos, got {type(real).__name__}")
    if real.stride != 1:
        raise ValueError(
            f"real must have stride=1, got stride={real.stride}: synthetic nuclei move as between "
            "neighbouring frames of the video. To mix such clips all the same, use MixedVideos"
        )
    settled: dict[str, Any] = {
        "frames": real.frames,
        "size": real.size,
        "annotations": real.annotations,
        "max_cells": real.max_cells,
    }
    own = {"transform": real.transform, "seed": seed, **(synthetic or {})}
    for name in sorted(own.keys() & {*settled, "model"}):
        where = "is an argument of twin" if name == "model" else "is that of the real video"
        raise ValueError(f"synthetic must be without {name!r}, which {where}")
    made = SyntheticHeLaVideos(model=model, **settled, **own)
    if made.scale != real.scale:
        raise ValueError(
            f"model must have the scale of the real video, {real.scale}, got {made.scale} of "
            f"{made.model}; fit a model to the video with 'bvdm-data fit', or, where counts mean "
            "the same, give CTCVideos(..., scale=...) that of the model"
        )
    if mix.get("weights") is None and mix.get("quotas") is None:
        mix["weights"] = TWIN_WEIGHTS
    return MixedVideos({"real": real, "synthetic": made}, seed=seed, **mix)
