"""Link windows: the nuclei of a few frames, measured by Trackastra, and which belong together."""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from bvdm_data.clip import Clip
from bvdm_data.evaluation.extras import need

FEATURES = 7
"""Numbers that Trackastra measures: diameter, mean grey, inertia (4), nearness to an edge."""

FARTHEST = 2
"""Pairs of nuclei that are further apart in time do not count in the loss, frames (Trackastra)."""

# Random change of a training window, all ours: zoom, grey factor, grey shift, and where in a large
# frame the window is thought to lie, pixels. Trackastra's own (zoom and grey times 0.5 to 2) is
# made for many kinds of film and would hide how far the nuclei of this one move.
ZOOM, GREY_FACTOR, GREY_SHIFT, PLACE = (0.9, 1.1), (0.8, 1.25), (-0.05, 0.05), 1024.0

Window = dict[str, Tensor]

NO_BAR = functools.partial(tqdm, disable=True)
"""A progress bar that is not shown."""


def clip_windows(clip: Clip, frames: int) -> list[Window]:
    """Measure the nuclei of a clip and cut it into overlapping windows.

    Args:
        clip: A clip with video, masks and tracks.
        frames: Frames of a window.

    Returns:
        For each window in which some nucleus is seen twice: ``coords`` ``[N, 2]``, ``features``
        ``[N, 7]``, ``labels`` and ``timepoints`` ``[N]`` as Trackastra has them, and
        ``assoc_matrix`` ``[N, N]``, 1 where one is the other or its ancestor or descendant.

    Raises:
        ValueError: If the clip is shorter than a window, or without tracks.
    """
    if "masks" not in clip or "tracks" not in clip:
        raise ValueError(f"the clip must have masks and tracks, got {sorted(clip)}")
    if len(clip["video"]) < frames:
        raise ValueError(
            f"window must be at most the {len(clip['video'])} frames of a clip, got {frames}"
        )
    masks = clip["masks"].numpy().astype(np.int32)
    features = measured(clip["video"][:, 0].numpy(), masks)
    with quiet():
        windows: list[Window] = need("trackastra.data").build_windows(
            features, frames, progbar_class=NO_BAR, as_torch=True
        )
    related = _related(clip["tracks"])
    for window in windows:
        ids = window["labels"].long()
        window["assoc_matrix"] = related[ids][:, ids].float()
        del window["t1"]
    return [one for one in windows if one["assoc_matrix"][soon_after(one["timepoints"])].any()]


def vary_window(window: Window, draws: torch.Generator) -> Window:
    """Turn, mirror, zoom, shift and light a window at random.

    Args:
        window: As :func:`clip_windows` makes it.
        draws: Where the random numbers come from.

    Returns:
        Another window of the same nuclei and links.
    """
    turn, zoom, factor, shift, down, right, mirror = torch.rand(7, generator=draws).tolist()
    angle = torch.tensor(2 * np.pi * turn)
    size = ZOOM[0] * (ZOOM[1] / ZOOM[0]) ** zoom
    matrix = size * torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    if mirror < 0.5:
        matrix = matrix.flip(1)
    measures = window["features"].float()
    diameter, grey, inertia, edge = torch.split(measures, [1, 1, 4, 1], dim=1)
    turned = matrix @ inertia.view(-1, 2, 2) @ matrix.T
    grey = grey * (GREY_FACTOR[0] * (GREY_FACTOR[1] / GREY_FACTOR[0]) ** factor)
    grey = grey + GREY_SHIFT[0] + (GREY_SHIFT[1] - GREY_SHIFT[0]) * shift
    coords = window["coords"].float() @ matrix.T
    coords = coords - coords.amin(0) + PLACE * torch.tensor([down, right])
    features = torch.cat([diameter * size, grey, turned.reshape(-1, 4), edge], dim=1)
    return window | {"coords": coords, "features": features}


def measured(video: npt.NDArray[np.float32], masks: npt.NDArray[np.integer]) -> Sequence[Any]:
    """Measure the nuclei of each frame with Trackastra.

    Args:
        video: Grey values ``[F, H, W]``; their 1 and 99.8 percentile become 0 and 1.
        masks: Numbers of the nuclei ``[F, H, W]``.

    Returns:
        Trackastra's ``WRFeatures`` of each frame.
    """
    load_trackastra()
    with quiet():
        bright = need("trackastra.utils").normalize(video)
        found: Sequence[Any] = need("trackastra.data").get_features(
            masks.astype(np.int32), bright, features="wrfeat", ndim=2, progbar_class=NO_BAR
        )
    return found


def soon_after(times: Tensor) -> Tensor:
    """Tell which pairs of nuclei the loss is about.

    Args:
        times: Frame of each nucleus, ``[..., N]``.

    Returns:
        True where the second one comes 1 or 2 frames after the first, ``[..., N, N]``.
    """
    gap = times.unsqueeze(-2) - times.unsqueeze(-1)
    return (gap > 0) & (gap <= FARTHEST)


def load_trackastra() -> ModuleType:
    """Import Trackastra without letting it set up the logging of the whole process.

    Returns:
        The module ``trackastra.model``.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with quiet():
        library = need("trackastra.model")
    root.handlers[:] = handlers
    root.setLevel(level)
    return library


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back the library's progress bars, log lines and warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _related(tracks: Tensor) -> Tensor:
    """Tell which tracks are of one line of descent, ``[n + 1, n + 1]`` bool; 0 is none's."""
    parents = {int(row[0]): int(row[3]) for row in tracks if row[0] > 0}
    size = max(parents, default=0) + 1
    related = torch.zeros((size, size), dtype=torch.bool)
    for identity in parents:
        ancestor = identity
        while ancestor:
            related[identity, ancestor] = related[ancestor, identity] = True
            ancestor = parents.get(ancestor, 0)
    return related
