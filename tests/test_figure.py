import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_pictures import a_clip
from test_player import a_clip as a_family

from bvdm_data import show
from bvdm_data.viz.figure import draw_lineage
from bvdm_data.viz.pictures import COLOURS


def test_figure_draws_tree_of_tracks():
    clip = a_family()
    lines = [
        (tuple(line.get_xdata()), tuple(line.get_ydata()), tuple(np.round(line.get_color(), 3)))
        for line in show(clip).axes[-1].lines
    ]
    places = {}
    for identity, first, last, _ in clip["tracks"][:4].tolist():
        colour = tuple(np.round(COLOURS[identity] / 255 * 0.85, 3))
        own = [(x, y) for x, y, c in lines if c == colour and x == (first, last) and y[0] == y[1]]
        assert len(own) == 1
        places[identity] = own[0][1][0]
    assert sorted(places.values()) in ([0, 0.5, 1, 2], [0, 1, 1.5, 2])
    daughters = clip["tracks"][clip["tracks"][:, 3] > 0].tolist()
    assert len(daughters) == 2
    for identity, first, _, parent in daughters:
        assert abs(places[identity] - places[parent]) == 0.5
        branch = (clip["tracks"][parent - 1, 2].item(), first), (places[parent], places[identity])
        assert branch in [line[:2] for line in lines]


def test_notebook_shows_the_figure_once():
    figure = show(a_clip(), frames=[0, 2])
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # No pixel of the clip is resampled: the outlines have exactly the colours of their ids.
    for identity in (1, 2, 3):
        assert (pixels == COLOURS[identity]).all(-1).sum() > 100
    assert figure.canvas.manager is None  # it belongs to no window, which would show it again


def test_figure_leaves_out_what_lacks():
    clip = a_clip()
    assert len(show({"video": clip["video"]}).axes) == 1
    bare = {"video": clip["video"], "masks": clip["masks"]}
    assert len(show(bare).axes) == 1
    assert len(show(bare | {"tracks": torch.zeros(4, 4, dtype=torch.int32)}).axes) == 2


def test_tree_survives_impossible_parents():
    figure = show(a_clip())
    axes = figure.add_subplot()
    draw_lineage(axes, np.array([[1, 0, 2, 2], [2, 0, 2, 1], [3, 0, 2, 3], [4, 0, 2, 9]]), 3)
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0, 2]]


def test_show_refuses_what_is_no_clip():
    clip = a_clip()
    batch = {key: torch.stack([value, value]) for key, value in clip.items()}
    with pytest.raises(ValueError, match=r"must be one clip with video .* of a batch one by one"):
        show(batch)
    with pytest.raises(TypeError, match=r"clip must be a dict of tensors, got list"):
        show([clip])
    with pytest.raises(ValueError, match=r"must have the key 'video', .* video=True"):
        show({"masks": clip["masks"]})
    with pytest.raises(IndexError, match="frames must be from 0 to 2"):
        show(clip, frames=[3])
