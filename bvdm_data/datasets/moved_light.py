"""Whether a transform has moved the light of a video, and not its masks."""

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

LEAST_SHIFT = 1.5
"""Shift of the light in pixels that is found; blur in one direction moves it less (our choice)."""

FEW_NUCLEI = 8
"""Clips with fewer nuclei say too little (our choice)."""

_Sums = npt.NDArray[np.float64]


def has_light_moved(before: Tensor, after: Tensor, masks: Tensor) -> bool:
    """Return whether the light that was under the masks is elsewhere; frames ``[n, H, W]`` each.

    Around each nucleus the light after is fitted by the light before and its slopes, which tell a
    shift. It has moved if shifts of one affine map explain what is seen, or if no nucleus is where
    it was while spots as uneven as before are in view.
    """
    if min(masks.shape[-2:]) < 32 or not masks.any():
        return False
    old, new = (avg_pool2d(light.float()[:, None], 2)[:, 0] for light in (before, after))
    if old.std() < 1e-6 or new.std() < 1e-6:
        return False
    old, new = ((light - light.mean()) / light.std() for light in (old, new))
    sums, ids = _sum_around_nuclei(old, new, masks)
    fits = [np.linalg.solve(sums[:, :n, :n] + 1e-9 * np.eye(n), sums[:, :n, 6:]) for n in (3, 6)]
    plain, full = (sums[:, 6, 6] - (fit * sums[:, : fit.shape[1], 6:]).sum((1, 2)) for fit in fits)
    lit = plain > 1e-6 * sums[:, 0, 0]
    sums, ids, shift = sums[lit], ids[lit], 2 * fits[1][lit, 4:, 0]
    if len({*ids}) < FEW_NUCLEI or lit.mean() < 0.5:
        return False
    known = full[lit] < 0.4 * plain[lit]
    gain = fits[1][lit, 3]
    shift = shift / np.where(gain == 0, 1e-9, gain)
    stays = known & (np.hypot(*shift.T) < 1)
    if len({*ids[known]}) >= 6 and known.mean() > 0.4 and stays.mean() < 0.25:
        return _follow_one_map(sums[known, 0, :3] / sums[known, 0, :1], shift[known])
    return bool(stays.mean() < 0.05) and _are_spots_elsewhere(old, new)


def _sum_around_nuclei(
    old: Tensor, new: Tensor, masks: Tensor
) -> tuple[_Sums, npt.NDArray[np.int64]]:
    """Return sums of products of what is fitted, ``[nuclei, 7, 7]``, and the id of each."""
    near = max_pool2d(masks.float()[:, None], 2)
    near = max_pool2d(near, 7, 1, 3)[:, 0].long()
    inside = torch.zeros_like(near, dtype=torch.bool)
    inside[:, 1:-1, 1:-1] = near[:, 1:-1, 1:-1] > 0
    frame, y, x = inside.nonzero(as_tuple=True)
    top = int(near.max()) + 1
    keys = (frame * top + near[inside]).numpy()
    down, right = torch.gradient(old, dim=(1, 2))
    places = (torch.ones_like(y), y / old.shape[1], x / old.shape[2])
    terms = [*places, *(plane[inside] for plane in (old, down, right, new))]
    columns = [term.double().numpy() for term in terms]
    sums = np.zeros((len(near) * top, 7, 7))
    for i, j in itertools.combinations_with_replacement(range(7), 2):
        sums[:, i, j] = sums[:, j, i] = np.bincount(keys, columns[i] * columns[j], len(sums))
    large = np.flatnonzero(sums[:, 0, 0] >= 30)
    return sums[large], large % top


def _follow_one_map(places: _Sums, shifts: _Sums) -> bool:
    """Return whether an affine map explains shifts that are large enough."""
    shifts = shifts * np.minimum(1, 5 / np.hypot(*shifts.T))[:, None]
    mapped = places @ np.linalg.lstsq(places, shifts, rcond=None)[0]
    size, rest = np.median(np.hypot(*mapped.T)), np.median(np.hypot(*(shifts - mapped).T))
    return bool(size >= LEAST_SHIFT and rest < 0.2 * size)


def _are_spots_elsewhere(old: Tensor, new: Tensor) -> bool:
    """Return whether light as uneven as before, at the scale of nuclei, lies in other places."""
    cells = max_pool2d(torch.stack([new, -new]), 4).sum(0) > 1e-6  # not of one value
    share = avg_pool2d(cells.float(), 5, 1, 2).clamp(min=1e-6)
    spots = []
    for light in (old, new):
        mean = avg_pool2d(light, 4)
        spots.append((mean - avg_pool2d(mean * cells, 5, 1, 2) / share)[cells].double().numpy())
    if len(spots[0]) < 20:
        return False
    spots = [spot - spot.mean() for spot in spots]
    widths = [max(spot.std(), 1e-9) for spot in spots]
    skews = [abs((spot**3).mean()) / width**3 for spot, width in zip(spots, widths, strict=True)]
    clipped = [np.clip(spot, *np.quantile(spot, (0.02, 0.98))) for spot in spots]
    if min(spot.std() for spot in clipped) < 1e-9:
        return False
    likeness = abs(np.corrcoef(*clipped)[0, 1])
    is_alike = widths[1] > 0.4 * widths[0] and skews[1] > 0.4 * skews[0] > 0.4
    return bool(likeness < 0.2 and is_alike)
