"""Fit: from one annotated video to a generator's file, by one call that can be continued."""

import importlib.metadata
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bvdm_data.clip import STAGES, CameraScale
from bvdm_data.datasets.ctc import CTCSequence, guess_scale, read_sequence
from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER
from bvdm_data.files import check_writable
from bvdm_data.fitting.cell_cycle import fit_cell_cycle, list_whole_cycles, tabulate_intensities
from bvdm_data.fitting.contours import fit_shapes
from bvdm_data.fitting.denoiser import DENOISER_TRAINING, extract_aligned_crops, train_denoiser
from bvdm_data.fitting.motion import LEAST_STEPS, fit_density, fit_motion
from bvdm_data.fitting.nuclei import Crops, check_fittable, extract_crops
from bvdm_data.fitting.paper_networks import (
    DDPM_TRAINING,
    FLOW_TRAINING,
    FlowIoU,
    make_mask_pairs,
    normalize_crops,
    train_ddpm,
    train_flownet,
)
from bvdm_data.fitting.stages import assign_stages, find_daughters
from bvdm_data.fitting.student import PAIRS, STUDENT_TRAINING, sample_teacher_pairs, train_student
from bvdm_data.fitting.texture_noise import DEFAULT, fit_noise_autocorrelation
from bvdm_data.fitting.training import TrainingLog, TrainingSettings
from bvdm_data.fitting.video import Video, VideoTooShortError, fit_camera, read_video
from bvdm_data.synth.cell_cycle import CellCycleModel
from bvdm_data.synth.flow import FlowNet
from bvdm_data.synth.model import Model
from bvdm_data.synth.motion import MotionModel
from bvdm_data.synth.unet import UNet, UNetSettings
from bvdm_data.validate import as_int, check_device, check_scale, check_seed
from bvdm_data.weights import load, save


def describe_video(source: CTCSequence, video: Video, crops: Crops) -> dict[str, object]:
    """Return what the card says of the data, as JSON values."""
    return {
        "data_set": source.folder.resolve().name,
        "sequence": source.name,
        "truth": source.truth,
        "frames": len(video.frames),
        "size": list(source.shape),
        "tracks": len(video.tracks),
        "divisions": len(find_daughters(video.tracks)),
        "whole_cycles": len(list_whole_cycles(video.tracks)),
        "nuclei": len(crops.track),
    }


def describe_training(log: TrainingLog, settings: TrainingSettings) -> dict[str, object]:
    """Return what the card says of a training, as JSON values."""
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


def describe_overlap(overlap: FlowIoU) -> dict[str, object]:
    """Return what the card says of how well the flow carries masks, as JSON values."""
    return {
        "held_out_pairs": overlap.pairs,
        "overlap_before": round(overlap.before, 4),
        "overlap_after": round(overlap.after, 4),
    }


def list_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what is fitted."""
    names = ("bvdm-data", "torch", "numpy", "scipy", "kornia")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a generator is fitted.

    Attributes:
        painter: Training of the painter, our recipe. Its seed becomes ``seed``.
        distilled: Training of the network that draws in one call, our recipe. Its seed becomes
            ``seed``.
        pairs: Pictures that the painter draws for it to learn from, at least 4: a quarter of
            them, or 512, is held out.
        paper: Whether the networks of the paper's method are trained, too.
        texture: Training of its DDPM; the paper's recipe. Its seed becomes ``seed``.
        flow: Training of its FlowNet; the paper's recipe. Its seed becomes ``seed``.
        network: Size of the DDPM's U-Net.
        minutes: Time between two frames; 30 in Fluo-N2DL-HeLa.
        border: Width in pixels of the band at the frame's edge without complete truth.
        seed: Seed of everything.
        stop: Frame number after the last one that is used; None: all.
    """

    painter: TrainingSettings = DENOISER_TRAINING
    distilled: TrainingSettings = STUDENT_TRAINING
    pairs: int = PAIRS
    paper: bool = False
    texture: TrainingSettings = DDPM_TRAINING
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
        object.__setattr__(self, "pairs", as_int("pairs", self.pairs, least=4))
        object.__setattr__(self, "border", as_int("border", self.border, least=0))
        if self.stop is not None:
            object.__setattr__(self, "stop", as_int("stop", self.stop))
            if self.stop < 2:
                raise ValueError(f"stop must leave at least 2 frames, got {self.stop}")
        for part in ("painter", "distilled", "texture", "flow"):
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
    start_from: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Model:
    """Fit a generator to one annotated video and write it to one file.

    The statistics take a minute, the networks an hour or so on a CPU, the two networks of the
    paper's method hours. All trainings keep checkpoints in ``work_dir``; the same call goes on
    where a killed one was.

    Args:
        root: Folder of a data set in the layout of the Cell Tracking Challenge.
        output: File to write, ``NAME.safetensors``.
        sequence: Name of the video in it.
        truth: Where the masks come from; see ``read_sequence``.
        scale: How counts become grey values; None: guessed from the video.
        work_dir: Folder of the checkpoints; None: ``NAME.fit`` beside output.
        settings: Trainings, frame interval, seed.
        start_from: A model to start from, as for :func:`bvdm_data.weights.load`: its painter is
            trained on, as is the network distilled from it, and what a short video cannot tell
            (lives where it shows fewer than two divisions, motion, the texture's memory) is taken
            over, as are the networks of the paper's method. The card says what was. None: from
            nothing.
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
    start = None if start_from is None else load(start_from)
    folder = Path(work_dir) if work_dir is not None else path.with_suffix(".fit")
    source = read_sequence(root, sequence, truth)
    _check_border(settings.border, source.shape)
    check_writable(path.parent)
    scale = check_scale(scale) or guess_scale(source)
    video = read_video(source, scale, stop=settings.stop, progress=progress)
    crops = extract_crops(video)
    check_fittable(crops)
    taken: list[str] = []
    lives, stages = _lives(crops, video, settings, start, taken)
    shapes, outline_overlap = fit_shapes(crops, stages, seed=settings.seed)
    motion = _motion(video, crops, stages, settings, start, taken)
    camera = fit_camera(video)
    portraits = extract_aligned_crops(video, crops, stages)
    painter, painter_log = train_denoiser(
        portraits,
        noise=camera.noise,
        checkpoint=folder / "painter.safetensors",
        training=settings.painter,
        start=None if start is None else start.painter,
        device=place,
        progress=progress,
    )
    pairs = sample_teacher_pairs(
        painter, shapes, lives, count=settings.pairs, seed=settings.seed, device=place,
        progress=progress,
    )  # fmt: skip
    distilled, distilled_log = train_student(
        pairs,
        painter,
        # After more steps the painter's pictures are others, and so is this training.
        checkpoint=folder / f"distilled-{settings.painter.steps}.safetensors",
        training=settings.distilled,
        start=None if start is None else start.distilled,
        device=place,
        progress=progress,
    )
    painter = painter.cpu()
    base = Model(shapes, lives, motion, camera, DEFAULT, painter, distilled)
    memory, kept = fit_noise_autocorrelation(crops, stages, base, seed=settings.seed)
    if len(kept) < 2 and start is not None:
        memory = start.texture
        taken.append("memory of the texture")
    unet, flownet, said = _paper_networks(crops, settings, folder, place, progress)
    if start is not None and unet is None and start.unet is not None:
        unet, flownet = start.unet, start.flownet
        taken.append("networks of the paper's method")
    card = {
        "data": describe_video(source, video, crops),
        "measured": {
            "stages": {name: int((stages == stage).sum()) for stage, name in enumerate(STAGES)},
            "cycle_hours_median": round(float(np.exp(lives.cycle[0])) * settings.minutes / 60, 2),
            "brightness_memory": round(lives.brightness_autocorrelation, 4),
            "brightness_shared": round(lives.brightness_sister_correlation, 4),
            "outline_overlap": round(outline_overlap, 4),
            "texture_correlation": {str(lag): round(r, 4) for lag, r in kept.items()},
            "texture_memory": round(memory.memory, 4),
            "texture_fresh": round(memory.fresh, 4),
        },
        "started_from": None if start is None else dict(start.card).get("data"),
        "taken_over": taken,
        "painter": describe_training(painter_log, settings.painter),
        "distilled": describe_training(distilled_log, settings.distilled),
        **said,
        "settings": asdict(settings),
        "versions": list_versions(),
    }
    generator = replace(base, texture=memory, unet=unet, flownet=flownet, card=card)
    save(generator, path)
    return generator


def _lives(
    crops: Crops,
    video: Video,
    settings: FitSettings,
    start: Model | None,
    taken: list[str],
) -> tuple[CellCycleModel, npt.NDArray[np.int8]]:
    """Fit lives; where the video shows too few divisions, take those of the starting model."""
    try:
        return fit_cell_cycle(crops, video.tracks, minutes=settings.minutes)
    except VideoTooShortError:
        if start is None:
            raise
    taken.append("lives but for brightness and size")
    stages = assign_stages(crops, video.tracks)
    rows = stages == 0
    if not rows.any():
        raise VideoTooShortError("the video must show whole nuclei in interphase, got none")
    bright = tabulate_intensities(crops.brightness[rows])
    size = np.median(crops.masks[rows].sum((1, 2))) / start.nucleus_area
    known = start.lives
    lives = replace(
        known,
        brightness=bright,
        mother_area=known.mother_area * size,
        adult_area=known.adult_area * size,
    )
    return lives, stages


def _motion(
    video: Video,
    crops: Crops,
    stages: npt.NDArray[np.int8],
    settings: FitSettings,
    start: Model | None,
    taken: list[str],
) -> MotionModel:
    """Fit motion; what too few nuclei or divisions cannot tell comes from the starting model."""
    try:
        motion = fit_motion(video, crops, stages, border=settings.border)
    except ValueError:
        if start is None:
            raise
        taken.append("motion but for density")
        return replace(start.motion, density=fit_density(video, settings.border))
    if start is not None and len(find_daughters(video.tracks)) < LEAST_STEPS:
        taken.append("distances of sisters")
        known = start.motion
        return replace(motion, separation=known.separation, sister_distance=known.sister_distance)
    return motion


def _paper_networks(
    crops: Crops, settings: FitSettings, folder: Path, device: torch.device, progress: bool
) -> tuple[UNet | None, FlowNet | None, dict[str, object]]:
    """Train the networks of the paper's method where they are wanted; and what the card says."""
    if not settings.paper:
        return None, None, {}
    flownet, flow_log, overlap = train_flownet(
        make_mask_pairs(crops),
        checkpoint=folder / "flow.safetensors",
        training=settings.flow,
        device=device,
        progress=progress,
    )
    unet, texture_log = train_ddpm(
        normalize_crops(crops),
        checkpoint=folder / "texture.safetensors",
        network=settings.network,
        training=settings.texture,
        device=device,
        progress=progress,
    )
    said: dict[str, object] = {
        "texture": describe_training(texture_log, settings.texture),
        "flow": describe_training(flow_log, settings.flow) | describe_overlap(overlap),
    }
    return unet, flownet, said


def _check_border(border: int, shape: tuple[int, int]) -> None:
    if 2 * border >= min(shape):
        raise ValueError(
            f"border must leave something of frames of {shape} pixels, got {border}; give at most "
            f"{(min(shape) - 1) // 2}"
        )
