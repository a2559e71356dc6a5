"""Device: films of the fast method painted together, on a GPU or any other device of torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.synth.camera import TorchCamera, derive_camera_seed, make_gaussian_kernels
from bvdm_data.synth.cell_bank import CellBank
from bvdm_data.synth.model import Model
from bvdm_data.synth.render import (
    PatchBatch,
    PatchPlacement,
    batch_patches,
    composite_batch,
    count_padding_pixels,
    move_to_device,
    pin_memory,
    place_patches,
)
from bvdm_data.synth.scene import SceneRequest, pickle_requests, unpickle_requests
from bvdm_data.synth.textures import BATCH, FastSettings, RenderedPatches, denoise_patches

MAX_BATCH = 256
"""Most pictures that go through the network together on a GPU (our choice, never measured)."""

MIN_BATCH = 16
"""Fewest of them, however little memory is free."""

PATCH_BYTES = 8 * 2**20
"""Memory that is set aside for a picture in the network, in bytes (our choice, some times what
one takes on a CPU)."""

MEMORY_FRACTION = 4
"""One part in so many of the memory that is free is given to the network (our choice)."""


@dataclass(frozen=True)
class RenderBatch:
    """Films that are to be painted together, as a worker hands them over."""

    count: int  # how many
    seeds: list[int]  # what the camera draws from, for each
    noise: Tensor  # standard deviation of the noise of each, grey values, [B]
    blur: Tensor | None  # kernels of their extra blurs, [B, T], or None
    piles: list[PatchBatch]  # nuclei to be painted
    sketches: Tensor | None  # the films, packed, where a pool has their nuclei; or None

    def pin_memory(self) -> "RenderBatch":
        """Return them in pinned memory, from where a GPU reads without waiting."""
        return replace(
            self,
            noise=self.noise.pin_memory(),
            blur=None if self.blur is None else self.blur.pin_memory(),
            piles=[pin_memory(pile) for pile in self.piles],
        )


def collate_scenes(sketches: Sequence[SceneRequest]) -> RenderBatch:
    """Gather films that are to be painted together."""
    pooled = any(sketch.cast is not None for sketch in sketches)
    films = [(sketch.tables, sketch.groups) for sketch in sketches]
    return RenderBatch(
        count=len(sketches),
        seeds=[derive_camera_seed(sketch.seed, sketch.name) for sketch in sketches],
        noise=torch.tensor([sketch.camera.noise for sketch in sketches]),
        blur=make_gaussian_kernels([sketch.blur for sketch in sketches]),
        piles=[] if pooled else batch_patches(films, sketches[0].size),
        sketches=pickle_requests(sketches) if pooled else None,
    )


def choose_batch_size(device: torch.device) -> int:
    """Return how many pictures go through the network together."""
    if device.type != "cuda":
        return BATCH
    free, _ = torch.cuda.mem_get_info(device)
    room = max(1, free // (MEMORY_FRACTION * PATCH_BYTES))
    return max(MIN_BATCH, min(MAX_BATCH, 1 << (room.bit_length() - 1)))


class VideoRenderer:
    """Paints films on a device: network, light, camera.

    Every call of the network has equally many pictures, the last one filled up, so that what it
    makes of a nucleus does not depend on its neighbours.
    """

    def __init__(
        self,
        generator: Model,
        method: FastSettings,
        frames: int,
        size: tuple[int, int],
        device: torch.device,
        *,
        pictures: int,
        pool: CellBank | None = None,
    ) -> None:
        """Bring the networks to the device."""
        self.generator = generator.to(device)
        self.method = method
        self.film = (frames, *size)
        self.device = device
        self.pictures = pictures
        self.pool = pool
        self.camera = TorchCamera(generator.camera, frames, size, device)

    @torch.no_grad()
    def paint(self, films: RenderBatch) -> Float[Tensor, "B F 1 H W"]:
        """Paint films."""
        painted = self._fresh(films) if films.sketches is None else self._pooled(films.sketches)
        frames, height, width = self.film
        cells = films.count * frames * height * width
        spare = count_padding_pixels([layout for _, layout in painted])
        total = torch.zeros(cells + spare, device=self.device)
        for light, layout in painted:
            composite_batch(total, light, layout, (films.count * frames, height, width))
        light = total[:cells].view(films.count, *self.film)
        noise = films.noise.to(self.device, non_blocking=True)
        blur = None if films.blur is None else films.blur.to(self.device, non_blocking=True)
        drawn = self.camera.draw(films.seeds)
        return self.camera.expose(light, drawn, noise, blur)[:, :, None]

    def _fresh(self, films: RenderBatch) -> list[tuple[Tensor, PatchPlacement]]:
        here = [move_to_device(pile, self.device) for pile in films.piles]
        return [(self._light(pile), pile.layout) for pile in here]

    def _light(self, pile: PatchBatch) -> Float[Tensor, "M P P"]:
        network, light = self.generator.painter_for(self.method), []
        for start in range(0, len(pile.noise), self.pictures):
            some = slice(start, start + self.pictures)
            told = [pile.noise[some], pile.radii[some], pile.brightness[some], pile.stage[some]]
            count = len(told[0])
            full = [_filled(numbers, self.pictures) for numbers in told]
            # Grids are made where they are needed, not brought there.
            with self.device:
                painted = denoise_patches(network, *full, steps=self.method.steps)
            light.append(painted[:count])
        return torch.cat(light)

    def _pooled(self, data: Tensor) -> list[tuple[Tensor, PatchPlacement]]:
        parts: dict[int, list[tuple[int, SceneRequest, RenderedPatches]]] = {}
        for number, sent in enumerate(unpickle_requests(data)):
            sketch = sent.attached(self.pool, self.generator)
            if sketch.cast is not None:
                for group in sketch.cast.render(sketch.shown, self.method):
                    parts.setdefault(group.light.shape[-1], []).append((number, sketch, group))
        painted = []
        for side, some in sorted(parts.items()):
            told = [(number, sketch.tables, group) for number, sketch, group in some]
            layout = place_patches(told, side, (self.film[1], self.film[2]))
            if self.device.type == "cuda":
                layout = pin_memory(layout)
            light = torch.cat([group.light for _, _, group in some])
            painted.append((light, move_to_device(layout, self.device)))
        return painted


def _filled(numbers: Tensor, count: int) -> Tensor:
    """Return so many rows, those that are missing filled with ones."""
    return F.pad(numbers, (0, 0) * (numbers.dim() - 1) + (0, count - len(numbers)), value=1)
