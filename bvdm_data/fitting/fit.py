"""Fit: from one annotated video to a generator's file, by one call that can be continued."""

import importlib.metadata
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bvdm_data.camera_scale import CameraScale
from bvdm_data.clip import STAGES
from bvdm_data.datasets.arguments import (
    check_device,
    check_scale,
    check_seed,
    check_whole_number,
)
from bvdm_data.datasets.ctc import CTCSequence, guess_scale, read_sequence
from bvdm_data.datasets.real import DEFAULT_BORDER
from bvdm_data.fitting.camera import fit_camera
from bvdm_data.fitting.crops import Crops, cut_nuclei
from bvdm_data.fitting.flow import FLOW_TRAINING, Overlap, fit_flow, pair_masks
from bvdm_data.fitting.lives import fit_lives, whole_cycles
from bvdm_data.fitting.motion import fit_motion
from bvdm_data.fitting.shapes import fit_shapes
from bvdm_data.fitting.stages import daughters_of
from bvdm_data.fitting.texture import TEXTURE_TRAINING, fit_texture, normalise
from bvdm_data.fitting.training import TrainingLog, TrainingSettings
from bvdm_data.fitting.video import Video, read_video
from bvdm_data.synth.generator import Generator
from bvdm_data.synth.unet import UNetSettings
from bvdm_data.weights import save


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a generator is fitted.

    Attributes:
        texture: Training of the DDPM; the paper's recipe. Its seed becomes ``seed``.
        flow: Training of FlowNet; the paper's recipe. Its seed becomes ``seed``.
        network: Size of the DDPM's U-Net.
        minutes: Time between two frames; 30 in Fluo-N2DL-HeLa.
        border: Width in pixels of the band at the frame's edge without complete truth.
        seed: Seed of everything.
        stop: Frame number after the last one that is used; None: all.
    """

    texture: TrainingSettings = TEXTURE_TRAINING
    flow: TrainingSettings = FLOW_TRAINING
    network: UNetSettings = UNetSettings()  # noqa: RUF009  # frozen
    minutes: float = 30.0
    border: int = DEFAULT_BORDER
    seed: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that fit nothing."""
        if not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")
        # Plain ints, since the card is written as JSON; one seed for all parts.
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "border", check_whole_number("border", self.border, least=0))
        if self.stop is not None:
            object.__setattr__(self, "stop", check_whole_number("stop", self.stop))
            if self.stop < 2:
                raise ValueError(f"stop must leave at least 2 frames, got {self.stop}")
        for part in ("texture", "flow"):
            object.__setattr__(self, part, replace(getattr(self, part), seed=self.seed))


def fit(
    root: str | Path,
    output: str | Path,
    *,
    sequence: str = "01",
    truth: str = "auto",
    scale: CameraScale | None = None,
    work_dir: str | Path | None = None,
    settings: FitSettings | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Generator:
    """Fit a generator to one annotated video and write it to one file.

    The statistics take seconds, the two networks hours on a CPU. Both trainings keep checkpoints
    in ``work_dir``; the same call goes on where a killed one was.

    Args:
        root: Folder of a data set in the layout of the Cell Tracking Challenge.
        output: File to write, ``NAME.safetensors``.
        sequence: Name of the video in it.
        truth: Where the masks come from; see ``read_sequence``.
        scale: How counts become grey values; None: guessed from the video.
        work_dir: Folder of the checkpoints; None: ``NAME.fit`` beside output.
        settings: Trainings, frame interval, seed.
        device: Where the networks are trained.
        progress: Show progress bars.

    Returns:
        The generator that was written.

    Raises:
        FileNotFoundError: If the data set or the video is missing.
        TypeError: If scale is no CameraScale.
        ValueError: If the video cannot be fitted: no tracks, too few divisions, masks that are
            not brighter than the background, or checkpoints of other data or settings.
        OSError: If a file cannot be written.
    """
    settings = settings or FitSettings()
    path = Path(output)
    if path.suffix != ".safetensors":
        raise ValueError(f"output must end in .safetensors, got {str(path)!r}")
    place = check_device(device)
    folder = Path(work_dir) if work_dir is not None else path.with_suffix(".fit")
    source = read_sequence(root, sequence, truth)
    _check_border(settings.border, source.shape)
    scale = check_scale(scale) or guess_scale(source)
    video = read_video(source, scale, stop=settings.stop, progress=progress)
    crops = cut_nuclei(video)
    textures = normalise(crops)
    lives, stages = fit_lives(crops, video.tracks, minutes=settings.minutes)
    shapes, outline_overlap = fit_shapes(crops, stages, seed=settings.seed)
    motion = fit_motion(video, crops, stages, border=settings.border)
    camera = fit_camera(video)
    flownet, flow_log, overlap = fit_flow(
        pair_masks(crops),
        checkpoint=folder / "flow.safetensors",
        training=settings.flow,
        device=place,
        progress=progress,
    )
    unet, texture_log = fit_texture(
        textures,
        checkpoint=folder / "texture.safetensors",
        network=settings.network,
        training=settings.texture,
        device=place,
        progress=progress,
    )
    card = {
        "data": _data(source, video, crops),
        "measured": {
            "stages": {name: int((stages == stage).sum()) for stage, name in enumerate(STAGES)},
            "cycle_hours_median": round(float(np.exp(lives.cycle[0])) * settings.minutes / 60, 2),
            "outline_overlap": round(outline_overlap, 4),
        },
        "texture": _trained(texture_log, settings.texture),
        "flow": _trained(flow_log, settings.flow) | _overlaps(overlap),
        "settings": asdict(settings),
        "versions": _versions(),
    }
    generator = Generator(shapes, lives, motion, camera, unet, flownet, card)
    save(generator, path)
    return generator


def _check_border(border: int, shape: tuple[int, int]) -> None:
    if 2 * border >= min(shape):
        raise ValueError(
            f"border must leave something of frames of {shape} pixels, got {border}; give at most "
            f"{(min(shape) - 1) // 2}"
        )


def _data(source: CTCSequence, video: Video, crops: Crops) -> dict[str, object]:
    return {
        "data_set": source.folder.resolve().name,
        "sequence": source.name,
        "truth": source.truth,
        "frames": len(video.frames),
        "size": list(source.shape),
        "tracks": len(video.tracks),
        "divisions": len(daughters_of(video.tracks)),
        "whole_cycles": len(whole_cycles(video.tracks)),
        "nuclei": len(crops.track),
    }


def _trained(log: TrainingLog, settings: TrainingSettings) -> dict[str, object]:
    return {
        "steps": settings.steps,
        "batch": settings.batch,
        "rate": settings.rate,
        "average": settings.average,
        "loss": [round(loss, 6) for _, loss in log.train],
        "held_out_loss": [round(loss, 6) for _, loss in log.held_out],
        "checked_at": [step for step, _ in log.held_out],
        "hours": round(log.seconds / 3600, 3),
    }


def _overlaps(overlap: Overlap) -> dict[str, object]:
    return {
        "held_out_pairs": overlap.pairs,
        "overlap_before": round(overlap.before, 4),
        "overlap_after": round(overlap.after, 4),
    }


def _versions() -> dict[str, str]:
    names = ("bvdm-data", "torch", "numpy", "scipy", "kornia")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}
