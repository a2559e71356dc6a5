"""Device: clips of the fast method rendered in batches, on a GPU or any other device of torch."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bvdm_data.synth.camera import (
    derive_camera_seed,
    expose,
    make_device_normal,
    make_gaussian_kernels,
)
from bvdm_data.synth.cell_bank import CellBank
from bvdm_data.synth.model import Model
from bvdm_data.synth.render import PatchPlacement, composite, join_by_size, map_tensors
from bvdm_data.synth.scene import Scene
from bvdm_data.synth.textures import (
    BATCH,
    DenoiserInputs,
    FastSettings,
    run_denoiser_batched,
)

MAX_BATCH, MIN_BATCH = 256, 16
"""Most and fewest patches that go through the network together on a GPU (our choice)."""

PATCH_BYTES = 8 * 2**20
"""Memory that is set aside for a patch in the network, in bytes (our choice, some times what one
takes on a CPU)."""

MEMORY_FRACTION = 4
"""The network gets the free memory divided by this (our choice)."""


@dataclass(frozen=True)
class RenderBatch:
    """Scenes that are rendered together, without what rendering does not need."""

    seeds: list[int]  # of the camera, for each
    noise: Float[Tensor, " B"]  # standard deviation of the noise, grey values
    blur: Float[Tensor, "B T"] | None  # kernels of extra blurs
    groups: list[tuple[DenoiserInputs, PatchPlacement]]  # of all cells, by size of patches
    # pickled tables and cells, where a bank in the rendering process has the patches
    samples: Tensor | None

    def pin_memory(self) -> "RenderBatch":
        """Return the batch in pinned memory, from where a GPU reads without waiting."""
        return map_tensors(self, Tensor.pin_memory)


def collate_scenes(scenes: Sequence[Scene], method: FastSettings, model: Model) -> RenderBatch:
    """Draw the noise of the cells of scenes, and gather what rendering needs."""
    kernels = make_gaussian_kernels([scene.blur for scene in scenes])
    batch = RenderBatch(
        seeds=[derive_camera_seed(scene.seed, scene.name) for scene in scenes],
        noise=torch.tensor([scene.camera.noise for scene in scenes], dtype=torch.float32),
        blur=None if kernels is None else kernels.float(),
        groups=[],
        samples=None,
    )
    if any(scene.sample is not None for scene in scenes):
        sent = [(scene.table, scene.sample, scene.list_bank_cells()) for scene in scenes]
        data = pickle.dumps(sent, pickle.HIGHEST_PROTOCOL)
        return replace(batch, samples=torch.frombuffer(bytearray(data), dtype=torch.uint8))
    parts = [
        (number, scene.table, group)
        for number, scene in enumerate(scenes)
        for group in method.draw_inputs(scene, model)
    ]
    return replace(batch, groups=join_by_size(parts, scenes[0].settings.size))


def choose_batch_size(device: torch.device) -> int:
    """Return how many patches go through the network together."""
    if device.type != "cuda":
        return BATCH
    free, _ = torch.cuda.mem_get_info(device)
    room = max(1, free // (MEMORY_FRACTION * PATCH_BYTES))
    return max(MIN_BATCH, min(MAX_BATCH, 1 << (room.bit_length() - 1)))


class BatchRenderer:
    """Renders batches on a device.

    Every call of the network has equally many patches, the last one filled up, so that a patch
    does not depend on the others.
    """

    def __init__(
        self,
        model: Model,
        method: FastSettings,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        batch_size: int,
        bank: CellBank | None = None,
    ) -> None:
        """Bring the networks to the device; ``shape`` is that of a video."""
        self.model = model.to(device)
        self.method = method
        self.shape = shape
        self.device = device
        self.batch_size = batch_size
        self.bank = bank

    @torch.no_grad()
    def render(self, batch: RenderBatch) -> Float[Tensor, "B F 1 H W"]:
        """Render the videos of a batch."""
        frames, height, width = self.shape
        count = len(batch.seeds)
        groups = (
            self._run_network(batch) if batch.samples is None else self._ask_bank(batch.samples)
        )
        light = composite(groups, (count * frames, height, width), device=self.device)
        noise = self._move(batch.noise)
        blur = None if batch.blur is None else self._move(batch.blur)
        video = expose(
            light.view(count, *self.shape), self.model.camera,
            make_device_normal(batch.seeds, self.device), noise=noise, blur=blur,
        )  # fmt: skip
        return video[:, :, None]

    def _run_network(self, batch: RenderBatch) -> list[tuple[Tensor, PatchPlacement]]:
        groups = map_tensors(batch.groups, self._move)
        network, steps = self.model.get_denoiser(self.method.steps), self.method.steps
        # Grids are made where they are needed, not brought there.
        with self.device:
            rendered = run_denoiser_batched(
                [inputs for inputs, _ in groups], network, steps, fixed_batch=self.batch_size
            )
        return [(r.light, place) for r, (_, place) in zip(rendered, groups, strict=True)]

    def _ask_bank(self, samples: Tensor) -> list[tuple[Tensor, PatchPlacement]]:
        parts = []
        for number, (table, sample, cells) in enumerate(pickle.loads(samples.numpy().data)):
            sample.bank, sample.model = self.bank, self.model
            parts += [(number, table, group) for group in sample.render(cells, self.method)]
        placed = []
        for group, placement in join_by_size(parts, self.shape[1:]):
            if self.device.type == "cuda":
                placement = map_tensors(placement, Tensor.pin_memory)
            placed.append((group.light, map_tensors(placement, self._move)))
        return placed

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)
