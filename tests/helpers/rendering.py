"""Small data sets, and labels, light and flow of nuclei that a test puts in their places itself."""

import numpy as np
import torch

from bvdm_data.clip import ANNOTATIONS
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.synth.denoiser import fit_to_patch_scale
from bvdm_data.synth.render import (
    RenderedPatches,
    composite,
    compute_flow,
    draw_labels,
    follow_textures,
    make_cell_table,
    place_patches,
)


def make_videos(model, **changes):
    """Make a data set of small clips; the keywords replace arguments."""
    small = {"frames": 4, "size": (64, 72), "nuclei": 3, "max_cells": 64}
    return SyntheticHeLaVideos(**{"annotations": ANNOTATIONS, "model": model} | small | changes)


def is_same(one, other):
    """Return whether two clips are equal, NaN for NaN."""
    return one.keys() == other.keys() and all(
        torch.equal(one[key].nan_to_num(-9), other[key].nan_to_num(-9)) for key in one
    )


def label(cells, frames, size):
    """Return the identity of the nucleus that is seen at each pixel [F, H, W], as an array."""
    identities = np.array([0, *(cell.cell.identity for cell in cells)], np.int32)
    return identities[draw_labels(make_cell_table(cells, frames), size)[0].numpy()]


def add_up(table, groups, size):
    """Return the light [F, H, W] of groups of patches."""
    placed = [(group.light, place_patches([(0, table, group)], size)) for group in groups]
    return composite(placed, (table.there.shape[1], *size))


def put(cells, textures, frames=1, size=(90, 100)):
    """Return the light [F, H, W] of nuclei that have one texture [P, P] each, in all frames."""
    table = make_cell_table(cells, frames)
    rows, at = table.there.nonzero(as_tuple=True)
    if not len(rows):
        return add_up(table, [], size).numpy()
    light = torch.stack(list(textures))[rows]
    zoom = fit_to_patch_scale(table.radii[rows, at], light.shape[-1])
    return add_up(table, [RenderedPatches(light, rows, at, zoom)], size).numpy()


def light_masked(cells, texture, size):
    """Return the light [F, H, W] of textures [N, F, P, P], each only where its label is."""
    table = make_cell_table(cells, texture.shape[1])
    rows, at = table.there.nonzero(as_tuple=True)
    group = RenderedPatches(texture[rows, at], rows, at, torch.ones(len(rows)))
    placement = place_patches([(0, table, group)], size, -1.0)
    mask = (table, draw_labels(table, size)[0])
    return composite([(group.light, placement)], (texture.shape[1], *size), mask=mask).numpy()


def move(cells, frames, size, flow=None):
    """Return displacements [F - 1, 2, H, W], and rows of the nuclei that are seen."""
    table = make_cell_table(cells, frames)
    seen, _ = draw_labels(table, size)
    deform = None if flow is None else follow_textures(torch.arange(len(cells)), flow)
    return compute_flow(table, seen, deform).numpy(), seen.numpy()
