"""Paper's method: a texture is warped by a flow and refreshed by a few diffusion steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bvdm_data.synth.cells import Cell
from bvdm_data.synth.contours import is_inside
from bvdm_data.synth.denoiser import make_pixel_grid
from bvdm_data.synth.model import Model
from bvdm_data.synth.networks import (
    FLOW_SIZE,
    FlowNet,
    Schedule,
    UNet,
    add_noise,
    make_cosine_schedule,
    sample_ddpm,
    warp,
)
from bvdm_data.synth.scene import (
    Method,
    Progress,
    Scene,
    TexturePatches,
    Textures,
    skip_progress,
)
from bvdm_data.system import run_mixed
from bvdm_data.validate import Rule, check_fields

PAPER_NETS_MISSING = (
    "method must be one that the model was fitted for, got 'paper'; fit the model with "
    '"bvdm-data fit --paper", or give method="fast" or method="procedural"'
)


@dataclass(frozen=True, kw_only=True)
class PaperSettings(Method):
    """How a mask becomes a patch of a nucleus (Yilmaz et al. 2024, section 2 and table 2).

    Attributes:
        first_steps: Diffusion steps at a nucleus' first frame, T_f=0; table 2a.
        later_steps: Diffusion steps at each later frame, T_f>0; table 2b. 0: warp only.
        total_steps: Length of the noise schedule; the authors' code.
        mask_level: Grey value of the flat mask that is noised; 150 / 255 in the authors' code.
    """

    first_steps: int = 200
    later_steps: int = 10
    total_steps: int = 1000
    mask_level: float = 150 / 255

    def __post_init__(self) -> None:
        """Refuse numbers that make no texture."""
        whole = Rule(int)
        check_fields(self, first_steps=whole, later_steps=whole, total_steps=Rule(int, least=2))
        if not 0 < self.first_steps <= self.total_steps:
            raise ValueError(
                f"first_steps must be from 1 to total_steps={self.total_steps}, "
                f"got {self.first_steps}"
            )
        if not 0 <= self.later_steps <= self.first_steps:
            raise ValueError(
                f"later_steps must be from 0 to first_steps={self.first_steps}, "
                f"got {self.later_steps}"
            )
        check_fields(self, mask_level=Rule(float, above=0, most=1))

    def describe(self) -> str:
        """Return the numbers of steps."""
        return f"T_f=0 = {self.first_steps}, T_f>0 = {self.later_steps}"

    def check_fitted(self, model: Model) -> None:
        """Refuse a model without the networks of this method."""
        if model.unet is None or model.flownet is None:
            raise ValueError(PAPER_NETS_MISSING)

    def render_textures(
        self, scene: Scene, model: Model, progress: Progress = skip_progress
    ) -> Textures:
        """Render frame by frame, all cells in one batch."""
        if model.unet is None or model.flownet is None:
            raise ValueError(PAPER_NETS_MISSING)
        masks = _draw_masks(scene.lives, scene.spans, scene.settings.frames)
        return render_paper_textures(
            masks, model.unet, model.flownet, self, scene.make_texture_rngs(),
            keep_flow=scene.settings.flow, progress=progress,
        ).finish(scene, self.mask_level)  # fmt: skip


@torch.no_grad()
def render_paper_textures(
    masks: Bool[Tensor, "N F H W"],
    unet: UNet,
    flownet: FlowNet,
    settings: PaperSettings,
    rngs: Sequence[torch.Generator],
    *,
    keep_flow: bool = True,
    progress: Progress = skip_progress,
) -> TexturePatches:
    """Render all nuclei, frame by frame, in one batch (paper, figures 1 b.1 and b.2).

    In its first frame a nucleus' flat mask is noised by ``first_steps`` steps and denoised. In
    each later frame the flow between its masks carries its texture on, what lies outside the new
    mask is dropped, and ``later_steps`` steps of noise and denoising refresh it.
    """
    device = next(unet.parameters()).device
    schedule = make_cosine_schedule(settings.total_steps)
    masks = masks.to(device)
    present = masks.flatten(2).any(2)
    texture = torch.zeros(masks.shape, device=device)
    edges = masks.shape[1] - 1 if keep_flow else 0
    flow = torch.zeros((masks.shape[0], edges, 2, *masks.shape[2:]), device=device)
    for frame in range(masks.shape[1]):
        before = present[:, frame - 1] if frame else torch.zeros_like(present[:, 0])
        born = (present[:, frame] & ~before).nonzero()[:, 0].tolist()
        staying = (present[:, frame] & before).nonzero()[:, 0].tolist()
        if born:
            flat = settings.mask_level * masks[born, frame, None].float()
            noise = [rngs[n] for n in born]
            texture[born, frame] = _refresh(flat, unet, settings.first_steps, schedule, noise)[:, 0]
        if staying:
            source, target = (masks[staying, f, None].float() for f in (frame - 1, frame))
            step = flownet(source, target)
            moved = warp(texture[staying, frame - 1, None], step) * target
            noise = [rngs[n] for n in staying]
            if keep_flow:
                flow[staying, frame - 1] = step
            fresh = _refresh(moved, unet, settings.later_steps, schedule, noise)
            texture[staying, frame] = fresh[:, 0]
        progress((frame + 1) / masks.shape[1])
    return TexturePatches(texture, flow)


def _draw_masks(
    cells: Sequence[Cell], spans: Sequence[tuple[int, int]], frames: int
) -> Bool[Tensor, "N F P P"]:
    """Draw the masks of cells from their first to their last frame in view, upright."""
    masks = torch.zeros(len(cells), frames, FLOW_SIZE, FLOW_SIZE, dtype=torch.bool)
    pixels = make_pixel_grid(FLOW_SIZE)[:, None]
    for row, (cell, (first, last)) in enumerate(zip(cells, spans, strict=True)):
        radii = torch.from_numpy(cell.radii[first - cell.first : last + 1 - cell.first]).float()
        masks[row, first : last + 1] = is_inside(radii, *pixels.expand(2, len(radii), -1, -1))
    return masks


def _refresh(
    patch: Float[Tensor, "N 1 H W"],
    unet: UNet,
    steps: int,
    schedule: Schedule,
    rngs: Sequence[torch.Generator],
) -> Float[Tensor, "N 1 H W"]:
    if steps == 0:
        return patch
    noise = _draw_noise(patch, rngs)
    noisy = add_noise(patch, next(noise), torch.tensor([steps - 1]), schedule)

    def predict(noisy: Tensor, step: Tensor) -> Tensor:
        # As the network was trained.
        with run_mixed(noisy.device):
            return unet(noisy.contiguous(memory_format=torch.channels_last), step)  # type: ignore[no-any-return]

    return sample_ddpm(predict, noisy, steps, schedule, noise)


def _draw_noise(
    like: Float[Tensor, "N 1 H W"], rngs: Sequence[torch.Generator]
) -> Iterator[Float[Tensor, "N 1 H W"]]:
    """Draw on the CPU, whatever the device, so that all devices start from the same numbers."""
    while True:
        drawn = [torch.randn(like.shape[1:], generator=generator) for generator in rngs]
        yield torch.stack(drawn).to(like.device)
