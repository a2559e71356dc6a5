"""CellCycleGAN: the baseline whose conditional GAN paints every frame of a nucleus anew.

Sources: Baehr et al. 2021, "CellCycleGAN: spatiotemporal microscopy image synthesis of cell
populations using statistical shape models and conditional GANs" (a U-Net generator from outline,
stage, grey level and noise; a discriminator that sees picture and condition); Isola et al. 2017,
"Image-to-image translation with conditional adversarial networks" (a discriminator of patches, and
the absolute error beside it). Ours are the small networks, that the generator sees outlines as
distances, and that the discriminator sees fine structure apart.
"""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bvdm_data.clip import PHASES, CameraScale
from bvdm_data.datasets.ctc import CTCSequence
from bvdm_data.fitting.contours import trace_contours
from bvdm_data.fitting.denoiser import AlignedCrops, extract_aligned_crops, split_crops
from bvdm_data.fitting.nuclei import check_fittable, extract_crops, measure_nuclei
from bvdm_data.fitting.training import (
    Losses,
    Run,
    TrainingSettings,
    average_parts,
    compute_fingerprint,
    train_network,
)
from bvdm_data.fitting.video import read_video
from bvdm_data.rng import torch_rng
from bvdm_data.synth.denoiser import Student, StudentConfig, compute_signed_distance_map
from bvdm_data.synth.model import Model
from bvdm_data.synth.scene import Progress, Scene, Textures, skip_progress
from bvdm_data.synth.textures import FastSettings, cut_centre
from bvdm_data.system import run_mixed

TRAINING = TrainingSettings(steps=10_000, batch=8, rate=1e-3)
ERROR_WEIGHT = 0.5  # of the absolute error, beside the discriminator's verdict of weight 1
CHANNELS = (32, 64, 128)  # of the discriminator, at 1/2, 1/4 and 1/8 of the image's resolution
# The discriminator sees fine structure apart, so many times as strong; it would overlook it.
DETAIL = 5.0


@dataclass(frozen=True, kw_only=True)
class CellCycleGAN(FastSettings):
    """The scenes of the paper's method, each frame of each nucleus painted from noise of its own.

    Attributes:
        generator: Paints a nucleus from outline, brightness, stage and noise.
        digest: Of its weights.
    """

    masked: ClassVar[bool] = True
    default_variation: ClassVar[float] = 0.0

    generator: Student = field(repr=False, compare=False)
    digest: str
    families: bool = False
    memory: float | None = 0.0
    fresh: float | None = 1.0

    def render_textures(
        self, scene: Scene, model: Model, progress: Progress = skip_progress
    ) -> Textures:
        """Render the cells of a scene with the generator."""
        return super().render_textures(scene, replace(model, distilled=self.generator), progress)


class _GAN(nn.Module):
    """Generator and discriminator, which learn side by side."""

    def __init__(self, settings: StudentConfig) -> None:
        """Make both, their weights drawn at random."""
        super().__init__()
        self.generator = Student(settings)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((4 + len(PHASES), *CHANNELS)):
            # Without norms it takes ten times as many steps to tell painted from real.
            norm = nn.InstanceNorm2d(outputs) if layers else nn.Identity()
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), norm, nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers, nn.Conv2d(CHANNELS[-1], 1, 3, padding=1))

    def forward(self, batch: AlignedCrops, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pictures painted and real, alike where nothing is known, and their condition."""
        edge = compute_signed_distance_map(batch.radii, noise.shape[-1])
        own = batch.brightness, batch.stage
        planes = self.generator.make_conditioning(*own)[:, :, None, None]
        condition = torch.cat([edge, planes.expand(-1, -1, *edge.shape[2:])], 1)
        real = batch.light.float()
        painted = torch.where(batch.known, self.generator(noise, edge, *own), real)
        return painted, real, condition

    def judge(self, picture: Tensor, condition: Tensor, *, learn: bool) -> Float[Tensor, "N 1 h w"]:
        """Return how real every patch looks, a logit; the discriminator may learn from it."""
        own = self.discriminator.named_parameters()
        weights: dict[str, Tensor] = {n: w if learn else w.detach() for n, w in own}
        fine = picture - F.avg_pool2d(picture, 5, 1, padding=2, count_include_pad=False)
        seen = torch.cat([picture, DETAIL * fine, condition], 1)
        verdict: Tensor = torch.func.functional_call(self.discriminator, weights, (seen,))
        return verdict.float()


def train_cell_cycle_gan(
    sequence: CTCSequence,
    scale: CameraScale,
    size: StudentConfig,
    run: Run,
    training: TrainingSettings | None = None,
) -> CellCycleGAN:
    """Train the GAN on the nuclei of a video; ``size`` is that of the generator, but for patches.

    After a kill, the same call continues.
    """
    training = training or TRAINING
    video = read_video(sequence, scale, progress=run.progress)
    nuclei = measure_nuclei(extract_crops(video), video.tracks)
    check_fittable(nuclei.crops)
    crops = extract_aligned_crops(nuclei, trace_contours(nuclei.crops.masks), video)
    patch = crops.light.shape[-1]
    size = replace(size, patch=patch)
    # The network learns from three quarters of a patch, where most nuclei are; they cost half.
    rows, columns = cut_centre(patch, (max(16, 3 * patch // 32 * 8),) * 2)
    light, known = (plane[..., rows, columns] for plane in (crops.light, crops.known))
    crops = replace(crops, light=light, known=known)
    network, _ = train_network(
        "cell-cycle-gan",
        lambda: _GAN(size).to(memory_format=torch.channels_last),
        lambda network: _make_losses(crops, network, training),
        training,
        run,
        data=(size, ERROR_WEIGHT, DETAIL, *vars(crops).values()),
    )
    generator = network.generator.requires_grad_(False)
    digest = compute_fingerprint(*generator.state_dict().values())
    return CellCycleGAN(generator=generator, digest=digest)


def _make_losses(crops: AlignedCrops, network: _GAN, training: TrainingSettings) -> Losses:
    """Return the loss of both networks, and the absolute error on held-out tracks."""
    given = crops, network.generator, training
    draw_batch, check, check_noise, _ = split_crops("cell-cycle-gan", *given)

    def train_loss(model: Any, step: int) -> Tensor:
        generator = torch_rng(training.seed, "cell-cycle-gan", step)
        batch = draw_batch(generator)
        noise = torch.randn(batch.light.shape, generator=generator)
        with run_mixed(noise.device):
            painted, real, condition = model(batch, noise)
            # The generator learns from a fixed discriminator, and the other way round.
            praise = model.judge(painted, condition, learn=False)
            verdicts = [model.judge(x.detach(), condition, learn=True) for x in (painted, real)]
        adversarial = F.softplus(-praise) + (F.softplus(verdicts[0]) + F.softplus(-verdicts[1])) / 2
        return adversarial.mean() + ERROR_WEIGHT * _measure_error(painted, real, batch.known)

    def measure(model: Any, *parts: Tensor) -> Tensor:
        batch = AlignedCrops(*parts[:-1])
        painted, real, _ = model(batch, parts[-1])
        return _measure_error(painted, real, batch.known)

    def val_loss(model: nn.Module) -> float:
        parts = (*vars(check).values(), check_noise)
        return average_parts(lambda *part: measure(model, *part), parts)

    return train_loss, val_loss


def _measure_error(painted: Tensor, real: Tensor, known: Tensor) -> Tensor:
    return (painted - real).abs().sum() / known.sum().clamp(min=1)
