"""A clip of three tiny frames, and the snippets of the page about consumers."""

import re
from pathlib import Path

import numpy as np
import torch

from bvdm_data.clip import CameraScale, annotate_masks, split_gaps

# Nucleus 1 divides into 2 and 3 in frame 1; 3 is lost in frame 2.
MASKS = np.array([[[1, 1, 0], [1, 0, 0]], [[2, 0, 3], [0, 0, 3]], [[2, 0, 0], [2, 0, 0]]], np.int32)
TABLE = np.array([[1, 0, 0, 0], [2, 1, 2, 1], [3, 1, 1, 1]], np.int32)


def with_tracks(masks, table):
    clip = {
        "video": torch.zeros(len(masks), 1, *masks.shape[1:]),
        "index": torch.tensor(0),
        "source": torch.tensor(0, dtype=torch.int8),
    }
    return clip | annotate_masks(masks, table, ("masks", "tracks"), max(len(table), 1))


WHOLE_RANGE = CameraScale(0, 65535)


def make_planted_clip(planted, scale=WHOLE_RANGE, index=0):
    """Return a video with its masks and tracks as a clip of 9 rows, with centroids and stages."""
    video, masks, tracks = planted
    stages = torch.arange(9 * len(video), dtype=torch.int8).reshape(9, -1) % 6
    return {
        "video": torch.from_numpy(scale.to_grey(video))[:, None],
        **annotate_masks(masks, tracks, ("masks", "tracks", "centroids"), 9),
        "stages": stages,
        "index": torch.tensor(index),
        "source": torch.tensor(1, dtype=torch.int8),
    }


SPARSE = {
    "nothing": [], "from frame 1 on": [1, 2], "until frame 1": [0, 1], "with a gap": [0, 2],
    "one nucleus": [0, 1, 2],
}  # fmt: skip
"""The frames, of three, in which the only nucleus of :func:`make_sparse_clip` is in view."""


def make_sparse_clip(kind, shift=0):
    """Return a clip of three frames [20, 24]; ``shift`` is added to the ids, from 1 on."""
    masks = np.zeros((3, 20, 24), int)
    masks[SPARSE[kind], 6:14, 8:17] = 1
    masks, table, _ = split_gaps(masks, {})
    table[:, 0] += shift
    table[:, 3] += shift * (table[:, 3] > 0)
    clip = with_tracks(np.where(masks, masks + shift, 0), table)
    clip["video"][:, 0] = 0.1 + 0.5 * (clip["masks"] > 0)
    return clip | {"flow": torch.zeros(2, 2, 20, 24)}


def run_snippet(title, word=""):
    """Run the one snippet with this word in a section of docs/consumers.md."""
    page = (Path(__file__).parents[2] / "docs" / "consumers.md").read_text()
    section = page.split(f"\n## {title}")[1].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (snippet,) = [one for one in code if word in one]
    exec(compile(snippet, "consumers.md", "exec"), {})
