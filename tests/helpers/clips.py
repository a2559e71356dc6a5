"""A clip of three tiny frames, and the snippets of the page about consumers."""

import re
from pathlib import Path

import numpy as np
import torch

from bvdm_data.clip import annotate_masks

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


def run_snippet(title, word=""):
    """Run the one snippet with this word in a section of docs/consumers.md."""
    page = (Path(__file__).parents[2] / "docs" / "consumers.md").read_text()
    section = page.split(f"\n## {title}")[1].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (snippet,) = [one for one in code if word in one]
    exec(compile(snippet, "consumers.md", "exec"), {})
