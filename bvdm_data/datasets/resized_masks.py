"""Masks, centroids and flow where a resize puts the light."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def take_pixels(images: Tensor, pixels: Tensor | None) -> Tensor:
    """Return images ``[..., H, W]`` moved as n pairs of planes say, ``[n, ..., H, W]``."""
    if pixels is None:
        return images[None]
    rows, columns = pixels.to(images.device).round().long().chunk(2)
    places = (rows - 1) * images.shape[-1] + columns - 1
    moved = images.flatten(-2)[..., places.clamp(min=0).flatten()]
    moved = moved.reshape(*images.shape[:-2], *places.shape)
    return torch.where(rows > 0, moved, 0).movedim(-3, 0)  # beyond the image: 0


class ResizedMasks:
    """Masks where a resize has put the light: each pixel has the id that most of its samples have.

    Of equally many, a nucleus comes before the background.
    """

    def __init__(self, old: Tensor, light: Tensor) -> None:
        """Resize old masks as planes of several pixels each say."""
        self._light, self._top = light, int(old.max()) + 1
        self.ids, self._first, self._centroids = (
            torch.stack(parts) for parts in zip(*map(self._resize, old), strict=True)
        )

    def _resize(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids and the first sample that shows each, ``[H, W]``, and where old ids lie."""
        samples = take_pixels(frame, self._light)
        ids = samples[0].clone()
        mixed = (samples != ids).any(0)
        ids[mixed] = -torch.mode(-samples[:, mixed], dim=0).values
        flat = samples.long().flatten()
        sides = (torch.arange(side, device=ids.device).double() for side in ids.shape)
        axes = torch.meshgrid(*sides, indexing="ij")
        sums = (
            torch.bincount(flat, axis.expand(samples.shape).flatten(), self._top) for axis in axes
        )
        places = torch.stack([*sums], 1) / torch.bincount(flat, minlength=self._top)[:, None]
        return ids, (samples == ids).int().argmax(0), places

    def give_values(self, ids: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids, and masks with the values that they have in new."""
        ids_with_values = torch.where(torch.isin(self.ids, ids), self.ids, 0)
        values = new.new_zeros(int(ids.max()) + 1)
        values[ids.long()] = new
        return ids_with_values, values[ids_with_values.long()]

    def place_centroids(self, centroids: Tensor, old_ids: npt.NDArray[np.int64]) -> None:
        """Move centroids to the means of the samples, at most half a pixel away."""
        coarse = centroids[: len(old_ids)]
        fine = self._centroids.cpu()[:, torch.from_numpy(old_ids)].movedim(0, 1)
        coarse += (fine.to(coarse.dtype) - coarse).clamp(-0.49, 0.49)

    def take_flow(self, flow: Tensor) -> Tensor:
        """Return flow at the samples that show the nuclei."""
        moved = [
            take_pixels(now, self._light).take_along_dim(first[None, None], 0)[0]
            for now, first in zip(flow, self._first, strict=False)
        ]
        return torch.stack(moved) if moved else flow.new_zeros(0, 2, *self.ids.shape[1:])
