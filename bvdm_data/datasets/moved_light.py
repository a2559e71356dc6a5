"""Whether a transform has moved the light of a video, and not its masks."""

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, max_pool2d
from torchvision.transforms.v2.functional import rotate

# Shift of the light in pixels that is found; blur in one direction moves it less (our choice).
LEAST_SHIFT = 1.5
FEW_NUCLEI = 8  # clips with fewer nuclei say too little (our choice)
# Factors on height and width by which light that is not found is looked for (our choice).
_ZOOMS = [*itertools.product((1.2, 1.35, 1.5, 1.7), repeat=2), *((z, z) for z in (0.6, 0.75, 0.9))]
_Sums = npt.NDArray[np.float64]


def has_light_moved(before: Tensor, after: Tensor, masks: Tensor) -> bool:
    """Return whether the light that was under the masks is elsewhere; frames ``[n, H, W]`` each.

    Around each nucleus the light after is fitted by the light before and its slopes, which tell a
    small shift. It has moved if shifts of one affine map explain what is seen, or if the nuclei of
    a frame are not where they were, and the frame is found again in another place.
    """
    if min(masks.shape[-2:]) < 32 or not masks.any():
        return False
    old, new = (avg_pool2d(light.float()[:, None], 2)[:, 0] for light in (before, after))
    if old.std() < 1e-6 or new.std() < 1e-6:
        return False
    old, new = ((light - light.mean()) / light.std() for light in (old, new))
    sums, ids, frames = _sum_around_nuclei(old, new, masks)
    fits = [np.linalg.solve(sums[:, :n, :n] + 1e-9 * np.eye(n), sums[:, :n, 6:]) for n in (3, 6)]
    plain, full = (sums[:, 6, 6] - (fit * sums[:, : fit.shape[1], 6:]).sum((1, 2)) for fit in fits)
    lit = plain > 1e-6 * sums[:, 0, 0]
    sums, ids, frames, shift = sums[lit], ids[lit], frames[lit], 2 * fits[1][lit, 4:, 0]
    if len({*ids}) < FEW_NUCLEI or lit.mean() < 0.5:
        return False
    known = full[lit] < 0.4 * plain[lit]
    gain = fits[1][lit, 3]
    shift = shift / np.where(gain == 0, 1e-9, gain)
    stays = known & (np.hypot(*shift.T) < 1)
    if (
        len({*ids[known]}) >= 6 and known.mean() > 0.4 and stays.mean() < 0.25
        and _follow_one_map(sums[known, 0, :3] / sums[known, 0, :1], shift[known])
    ):  # fmt: skip
        return True
    gone = [at for at in range(len(old)) if stays[frames == at].sum() < (frames == at).sum() / 2]
    return any(_is_found_elsewhere(old[at], new[at], at == gone[0]) for at in gone)


def _sum_around_nuclei(
    old: Tensor, new: Tensor, masks: Tensor
) -> tuple[_Sums, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return sums of products of what is fitted, ``[nuclei, 7, 7]``; id and frame of each."""
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
    return sums[large], large % top, large // top


def _follow_one_map(places: _Sums, shifts: _Sums) -> bool:
    """Return whether an affine map explains shifts that are large enough."""
    shifts = shifts * np.minimum(1, 5 / np.hypot(*shifts.T))[:, None]
    mapped = places @ np.linalg.lstsq(places, shifts, rcond=None)[0]
    size, rest = np.median(np.hypot(*mapped.T)), np.median(np.hypot(*(shifts - mapped).T))
    return bool(size >= LEAST_SHIFT and rest < 0.2 * size)


def _is_found_elsewhere(old: Tensor, new: Tensor, thorough: bool) -> bool:
    """Return whether the light of a frame is found again in another place, better than in its own.

    The frame may be shifted, flipped or turned as a whole, or its parts shifted by an affine map.
    """
    old, new = (light - _blur(light) for light in (old, new))
    here, shift = _match(old, new)
    if shift.any():
        return True
    turned = [old.flip(-1), old.flip(-2), old.flip(-1, -2)]
    if old.shape[0] == old.shape[1]:
        turned += [one.T for one in (old, *turned)]
    if here < 0.5 and thorough:
        turned += [rotate(old[None], angle)[0] for angle in range(-170, 180, 10) if angle % 90]
        turned += [_zoom(old, *factors) for factors in _ZOOMS]
    if max(float(_correlate(one, new).abs().max()) for one in turned) > max(0.5, here + 0.2):
        return True
    places, shifts = [], []
    tall, wide = (side // 2 for side in old.shape)
    for y, x in itertools.product(range(3), repeat=2):
        top, left = y * tall // 2, x * wide // 2
        part = slice(top, top + tall), slice(left, left + wide)
        best, shift = _match(old[part], new[part])
        if best > 0.5:
            places.append((1, y, x))
            shifts.append(shift)
    moved = [bool(shift.any()) for shift in shifts]
    return sum(moved) >= max(4, len(moved) / 2) and _follow_one_map(
        np.array(places, float), 2 * np.array(shifts, float)
    )


def _zoom(light: Tensor, tall: float, wide: float) -> Tensor:
    """Enlarge a frame around its middle."""
    matrix = torch.tensor([[1 / wide, 0, 0], [0, 1 / tall, 0]])[None]
    grid = affine_grid(matrix, [1, 1, *light.shape], align_corners=False)
    zoomed: Tensor = grid_sample(light[None, None], grid, align_corners=False)
    return zoomed[0, 0]


def _blur(light: Tensor) -> Tensor:
    blurred: Tensor = avg_pool2d(light[None, None], 17, 1, 8, count_include_pad=False)
    return blurred[0, 0]


def _correlate(old: Tensor, new: Tensor) -> Tensor:
    """Return the correlation of a frame with all shifts of another, ``[H, W]``."""
    product = torch.fft.rfft2(new) * torch.fft.rfft2(old).conj()
    size = (old.norm() * new.norm()).clamp(min=1e-9)
    found: Tensor = torch.fft.irfft2(product, s=old.shape) / size
    return found


def _match(old: Tensor, new: Tensor) -> tuple[float, npt.NDArray[np.int64]]:
    """Return the correlation of two frames, and their shift where one fits clearly better."""
    found = _correlate(old, new).abs()
    near = (slice(-1, None), slice(0, 2))
    here = max(float(found[rows, columns].max()) for rows, columns in itertools.product(near, near))
    best = float(found.max())
    if best < max(0.5, here + 0.12):
        return here, np.zeros(2, np.int64)
    height, width = old.shape
    y, x = divmod(int(found.argmax()), width)
    return best, np.array(
        [(y + height // 2) % height - height // 2, (x + width // 2) % width - width // 2]
    )
