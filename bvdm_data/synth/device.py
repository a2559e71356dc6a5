"""Device: films of the fast method painted together, on a GPU or any other device of torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bvdm_data.synth.camera import DeviceCamera, blur_taps, camera_seed
from bvdm_data.synth.cell_bank import Pool
from bvdm_data.synth.model import Generator
from bvdm_data.synth.render import (
    Layout,
    Pile,
    add_light,
    lay_out,
    moved,
    pile_up,
    pinned,
    spare_cells,
)
from bvdm_data.synth.scene import Sketch, packed, unpacked
from bvdm_data.synth.textures import BATCH, FastSettings, Pictures, paint_moments

MOST_PICTURES = 256
"""Most pictures that go through the network together on a GPU (our choice, never measured)."""

LEAST_PICTURES = 16
"""Fewest of them, however little memory is free."""

PICTURE_BYTES = 8 * 2**20
"""Memory that is set aside for a picture in the network, in bytes (our choice, some times what
one takes on a CPU)."""

MEMORY_SHARE = 4
"""One part in so many of the memory that is free is given to the network (our choice)."""


@dataclass(frozen=True)
class Films:
    """Films that are to be painted together, as a worker hands them over."""

    count: int  # how many
    seeds: list[int]  # what the camera draws from, for each
    noise: Tensor  # standard deviation of the noise of each, grey values, [B]
    blur: Tensor | None  # kernels of their extra blurs, [B, T], or None
    piles: list[Pile]  # nuclei to be painted
    sketches: Tensor | None  # the films, packed, where a pool has their nuclei; or None

    def pin_memory(self) -> "Films":
        """Return them in pinned memory, from where a GPU reads without waiting."""
        return replace(
            self,
            noise=self.noise.pin_memory(),
            blur=None if self.blur is None else self.blur.pin_memory(),
            piles=[pinned(pile) for pile in self.piles],
        )


def gather(sketches: Sequence[Sketch]) -> Films:
    """Gather films that are to be painted together."""
    pooled = any(sketch.cast is not None for sketch in sketches)
    films = [(sketch.tables, sketch.groups) for sketch in sketches]
    return Films(
        count=len(sketches),
        seeds=[camera_seed(sketch.seed, sketch.name) for sketch in sketches],
        noise=torch.tensor([sketch.camera.noise for sketch in sketches]),
        blur=blur_taps([sketch.blur for sketch in sketches]),
        piles=[] if pooled else pile_up(films, sketches[0].size),
        sketches=packed(sketches) if pooled else None,
    )


def pictures_at_once(device: torch.device) -> int:
    """Return how many pictures go through the network together."""
    if device.type != "cuda":
        return BATCH
    free, _ = torch.cuda.mem_get_info(device)
    room = max(1, free // (MEMORY_SHARE * PICTURE_BYTES))
    return max(LEAST_PICTURES, min(MOST_PICTURES, 1 << (room.bit_length() - 1)))


class DevicePainter:
    """Paints films on a device: network, light, camera.

    Every call of the network has equally many pictures, the last one filled up, so that what it
    makes of a nucleus does not depend on its neighbours.
    """

    def __init__(
        self,
        generator: Generator,
        method: FastSettings,
        frames: int,
        size: tuple[int, int],
        device: torch.device,
        *,
        pictures: int,
        pool: Pool | None = None,
    ) -> None:
        """Bring the networks to the device."""
        self.generator = generator.to(device)
        self.method = method
        self.film = (frames, *size)
        self.device = device
        self.pictures = pictures
        self.pool = pool
        self.camera = DeviceCamera(generator.camera, frames, size, device)

    @torch.no_grad()
    def paint(self, films: Films) -> Float[Tensor, "B F 1 H W"]:
        """Paint films."""
        painted = self._fresh(films) if films.sketches is None else self._pooled(films.sketches)
        frames, height, width = self.film
        cells = films.count * frames * height * width
        spare = spare_cells([layout for _, layout in painted])
        total = torch.zeros(cells + spare, device=self.device)
        for light, layout in painted:
            add_light(total, light, layout, (films.count * frames, height, width))
        light = total[:cells].view(films.count, *self.film)
        noise = films.noise.to(self.device, non_blocking=True)
        blur = None if films.blur is None else films.blur.to(self.device, non_blocking=True)
        drawn = self.camera.draw(films.seeds)
        return self.camera.expose(light, drawn, noise, blur)[:, :, None]

    def _fresh(self, films: Films) -> list[tuple[Tensor, Layout]]:
        here = [moved(pile, self.device) for pile in films.piles]
        return [(self._light(pile), pile.layout) for pile in here]

    def _light(self, pile: Pile) -> Float[Tensor, "M P P"]:
        network, light = self.generator.painter_for(self.method), []
        for start in range(0, len(pile.noise), self.pictures):
            some = slice(start, start + self.pictures)
            told = [pile.noise[some], pile.radii[some], pile.brightness[some], pile.stage[some]]
            count = len(told[0])
            full = [_filled(numbers, self.pictures) for numbers in told]
            # Grids are made where they are needed, not brought there.
            with self.device:
                painted = paint_moments(network, *full, steps=self.method.steps)
            light.append(painted[:count])
        return torch.cat(light)

    def _pooled(self, data: Tensor) -> list[tuple[Tensor, Layout]]:
        parts: dict[int, list[tuple[int, Sketch, Pictures]]] = {}
        for number, sent in enumerate(unpacked(data)):
            sketch = sent.attached(self.pool, self.generator)
            if sketch.cast is not None:
                for group in sketch.cast.pictures(sketch.shown, self.method):
                    parts.setdefault(group.light.shape[-1], []).append((number, sketch, group))
        painted = []
        for side, some in sorted(parts.items()):
            told = [(number, sketch.tables, group) for number, sketch, group in some]
            layout = lay_out(told, side, (self.film[1], self.film[2]))
            if self.device.type == "cuda":
                layout = pinned(layout)
            light = torch.cat([group.light for _, _, group in some])
            painted.append((light, moved(layout, self.device)))
        return painted


def _filled(numbers: Tensor, count: int) -> Tensor:
    """Return so many rows, those that are missing filled with ones."""
    return F.pad(numbers, (0, 0) * (numbers.dim() - 1) + (0, count - len(numbers)), value=1)
