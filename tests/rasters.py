"""Labels and light of nuclei that a test puts in their places itself."""

import numpy as np
import torch

from bvdm_data.synth.denoiser import fit_to_patch_scale
from bvdm_data.synth.render import composite, draw_labels, make_cell_table
from bvdm_data.synth.textures import RenderedPatches


def label(paths, frames, size):
    """Return the identity of the nucleus that is seen at each pixel [F, H, W], as an array."""
    identities = np.array([0, *(path.cell.identity for path in paths)], np.int32)
    return identities[draw_labels(make_cell_table(paths, frames), size).numpy()]


def put(paths, textures, frames=1, size=(90, 100)):
    """Return the light [F, H, W] of nuclei that have one texture [P, P] each, in all frames."""
    tables = make_cell_table(paths, frames)
    rows, moments = tables.there.nonzero(as_tuple=True)
    if not len(rows):
        return composite(tables, [], size).numpy()
    light = torch.stack(list(textures))[rows]
    zoom = fit_to_patch_scale(tables.radii[rows, moments], light.shape[-1])
    return composite(tables, [RenderedPatches(light, rows, moments, zoom)], size).numpy()
