"""Trackers that learn: training windows of Trackastra, and folders of the challenge."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from bvdm_data.adapters.common import (
    Clips,
    SharedClips,
    convert_to_counts,
    convert_to_grey,
    find_ancestors,
    get_tensor,
    list_tracks,
    match_relatives,
    number_ids,
)
from bvdm_data.clip import LARGEST_COUNT, CameraScale, Clip
from bvdm_data.datasets.ctc import write_sequence
from bvdm_data.datasets.detections import link_detections
from bvdm_data.datasets.tiff import keep_background, write_images
from bvdm_data.files import open_atomic_folder
from bvdm_data.system import require
from bvdm_data.validate import as_int

Window = Mapping[str, Tensor]


def trackastra_windows(clip: Clip, window: int = 6) -> list[Window]:
    """Cut a clip into the training windows of Trackastra.

    They are the items of its ``CTCData`` with ``features="wrfeat"`` and no augmentation, of the
    same clip written as a folder; ``trackastra.data.collate_sequence_padding`` makes batches.

    Args:
        clip: One clip with ``masks`` and ``tracks``.
        window: Frames of a window.

    Returns:
        A window for each run of frames in which there is a nucleus. For its N nuclei, ordered by
        frame and id: ``coords`` and ``coords0`` ``[N, 3]`` float32, frame and centroid
        ``(t, y, x)`` in pixels; ``features`` ``[N, 7]`` float32; ``timepoints`` and ``labels``
        ``[N]`` int64, frame and id; ``assoc_matrix`` ``[N, N]`` float32, 1 where one is the
        other, its ancestor or its descendant.

    Raises:
        ImportError: If Trackastra is not installed.
        TypeError: If window is not a whole number.
        ValueError: If window is below 2 or longer than the clip, or the clip has no masks or
            tracks, or they do not agree.
    """
    frames = as_int("window", window, least=2)
    table = list_tracks(clip)
    masks, video = get_tensor(clip, "masks").numpy(), convert_to_grey(clip)
    if len(video) < frames:
        raise ValueError(
            f"window must be at most the {len(video)} frames of the clip, got {window}; give "
            "frames= as many, or a shorter window"
        )
    measures = require("trackastra.data", "tracking").WRFeatures
    normalize = require("trackastra.utils", "tracking").normalize
    found = [
        measures.from_mask_img(mask[None], normalize(image)[None], t_start=time)
        for time, (mask, image) in enumerate(zip(masks, video, strict=True))
    ]
    lines = find_ancestors(table)
    cuts = [
        measures.concat(found[start : start + frames]) for start in range(len(video) - frames + 1)
    ]
    return [_make_window(cut, lines) for cut in cuts if len(cut)]


class TrackastraWindows(IterableDataset[Window]):
    """The training windows of a stream of clips.

    Workers and ranks share the clips out as those of the stream do, also of a list or a map-style
    data set. The windows of a clip follow each other; a loader's batch mixes clips where it holds
    more than a clip's windows.

    Args:
        clips: A data set, or a list, of clips with ``masks`` and ``tracks``.
        window: Frames of a window.

    Raises:
        TypeError: If clips is no data set, or window not a whole number.
        ValueError: If window is below 2.

    Examples:
        Batches for a ``TrackingTransformer``::

            from trackastra.data import collate_sequence_padding

            windows = TrackastraWindows(SyntheticHeLaVideos(frames=8), window=4)
            loader = DataLoader(windows, batch_size=16, collate_fn=collate_sequence_padding)
    """

    def __init__(self, clips: Clips, window: int = 6) -> None:
        """Check the arguments; see the class."""
        self.clips = clips
        self._shared = SharedClips(clips)
        self.window = as_int("window", window, least=2)

    def __iter__(self) -> Iterator[Window]:
        """Yield window after window; see :func:`trackastra_windows`."""
        for clip in self._shared:
            yield from trackastra_windows(clip, self.window)


def write_ctc(clip: Clip, root: str | Path, *, name: str, scale: CameraScale) -> None:
    """Write one clip as a sequence of the Cell Tracking Challenge.

    The folder is read by Trackastra's ``CTCData``, ``traccuracy``, ``py-ctcmetrics``, EmbedTrack
    and :class:`CTCVideos`. See :func:`bvdm_data.datasets.ctc.write_sequence` for its files;
    ``bvdm-data export`` writes many whole videos and goes on where it was killed.

    Ids above 32767, which py-ctcmetrics mixes up in files of 16 bits, are numbered anew 1, 2, ...;
    in a frame without background one pixel of the largest nucleus becomes some.

    Args:
        clip: One clip with ``masks`` and ``tracks``.
        root: Folder of the data set; made if it is not there.
        name: Name of the sequence, two or more digits, for example ``"01"``.
        scale: How grey values and counts belong together: the ``scale`` of the data set.

    Raises:
        FileExistsError: If the sequence is there already.
        OSError: If it cannot be written; nothing is left behind.
        TypeError: If scale is no CameraScale.
        ValueError: If the name is wrong, or the clip has no masks or tracks, or they do not agree.
    """
    counts, table = convert_to_counts(clip, scale), list_tracks(clip)
    masks, names = get_tensor(clip, "masks").numpy(), np.sort(table[:, 0])
    if names.max(initial=0) > LARGEST_COUNT // 2:  # py-ctcmetrics adds ids of both sides
        masks, table[:, [0, 3]] = number_ids(masks, names), number_ids(table[:, [0, 3]], names)
    write_sequence(Path(root).expanduser(), name, counts, masks, table)


def write_ctc_result(clip: Clip, root: str | Path, *, name: str) -> None:
    """Write the detections of one clip as a result of the Cell Tracking Challenge.

    Makes ``<name>_RES/mask000.tif``, ... and ``<name>_RES/res_track.txt``, linked as the truth is
    where both ends are detected: what a linker without fault makes of them. py-ctcmetrics scores
    it beside the folder ``<name>_GT`` that :func:`write_ctc` makes; SEG and DET do not depend on
    links. A merged detection is that of the nucleus with the smaller id; smaller parts of split
    nuclei and false detections are tracks of one frame. Files have 16 bits, or 32 where there are
    more than 32767 tracks: py-ctcmetrics adds ids of both sides.

    Args:
        clip: One clip with ``tracks`` to which :class:`DetectionErrors` has added detections; no
            video is needed.
        root: Folder of the data set; made if it is not there.
        name: Name of the sequence, for example ``"01"``.

    Raises:
        FileExistsError: If the result is there already.
        OSError: If it cannot be written; nothing is left behind.
        ValueError: If the clip has no detections or tracks, or is a batch.
    """
    masks, table = link_detections(clip)
    masks = masks.astype(np.uint16 if 2 * len(table) < LARGEST_COUNT else np.uint32)
    with open_atomic_folder(Path(root) / f"{name}_RES") as folder:
        write_images(folder, "mask", map(keep_background, masks))
        np.savetxt(folder / "res_track.txt", table, fmt="%d")


def _make_window(measured: "object", lines: Mapping[int, list[int]]) -> Window:
    coords, times, ids = (
        torch.from_numpy(np.asarray(getattr(measured, key)))
        for key in ("coords", "timepoints", "labels")
    )
    places = torch.cat([times[:, None].float(), coords.float()], dim=1)
    ids = ids.long()
    return {
        "features": torch.from_numpy(measured.features_stacked).float(),  # type: ignore[attr-defined]
        "coords0": places,
        "coords": places.clone(),
        "assoc_matrix": match_relatives(lines, ids),
        "timepoints": times.long(),
        "labels": ids,
    }
