"""Fit a model to one annotated video and write it to one file; a killed fit can be continued."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bvdm_data.clip import PHASES, CameraScale
from bvdm_data.datasets.ctc import CTCSequence, guess_scale, read_sequence
from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER
from bvdm_data.files import check_writable
from bvdm_data.fitting.cell_cycle import fit_cell_cycle, tabulate_intensities
from bvdm_data.fitting.contours import LEAST_OVERLAP, Contours, fit_shapes, trace_contours
from bvdm_data.fitting.denoiser import (
    DENOISER_TRAINING,
    PAIRS,
    STUDENT_TRAINING,
    AlignedCrops,
    extract_aligned_crops,
    sample_teacher_pairs,
    train_denoiser,
    train_student,
)
from bvdm_data.fitting.motion import LEAST_STEPS, fit_density, fit_motion
from bvdm_data.fitting.nuclei import (
    INTERPHASE,
    LEFT_OUT,
    SHARE,
    Nuclei,
    advise,
    check_fittable,
    extract_crops,
    measure_nuclei,
)
from bvdm_data.fitting.paper_networks import (
    DDPM_TRAINING,
    FLOW_TRAINING,
    make_mask_pairs,
    normalize_crops,
    train_ddpm,
    train_flownet,
)
from bvdm_data.fitting.texture_noise import DEFAULT, fit_noise_autocorrelation
from bvdm_data.fitting.training import Run, TrainingLog, TrainingSettings, split_tracks
from bvdm_data.fitting.video import Video, VideoTooShortError, fit_camera, read_video
from bvdm_data.synth.cell_cycle import CellCycleModel
from bvdm_data.synth.contours import ShapeModel
from bvdm_data.synth.denoiser import Denoiser, Student
from bvdm_data.synth.model import Model, TextureModel
from bvdm_data.synth.motion import MotionModel
from bvdm_data.synth.networks import FlowNet, UNet, UNetSettings
from bvdm_data.system import list_versions
from bvdm_data.validate import Rule, as_int, check_device, check_fields, check_scale, check_seed
from bvdm_data.weights import load, save

Card = dict[str, object]  # entries of the card of a model: JSON values


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a model is fitted.

    Attributes:
        painter: Training of the denoiser, our recipe. Its seed becomes ``seed``.
        distilled: Training of the one-step student, our recipe. Its seed becomes ``seed``.
        pairs: Images that the denoiser renders for the student to learn from, at least 4. A
            quarter of them, at most 512, is held out.
        paper: Whether the networks of the paper's method are trained, too.
        texture: Training of the paper's DDPM, by the paper's recipe. Its seed becomes ``seed``.
        flow: Training of the paper's FlowNet, by the paper's recipe. Its seed becomes ``seed``.
        network: Size of the DDPM's U-Net.
        minutes: Time between two frames, in minutes; 30 in Fluo-N2DL-HeLa.
        pixel_size: Side of a pixel, micrometres, for the card; None: not known.
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
    pixel_size: float | None = None
    border: int = DEFAULT_BORDER
    seed: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        above = Rule(float, above=0)
        check_fields(self, minutes=above, pixel_size=replace(above, or_none=True))
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
    """Fit a model to one annotated video and write it to one file.

    The statistics take a minute, the networks about an hour on a CPU, the two networks of the
    paper's method hours. All trainings keep checkpoints in ``work_dir``: after a kill, the same
    call continues from them.

    Args:
        root: Folder of a data set in the layout of the Cell Tracking Challenge.
        output: File to write, ``NAME.safetensors``.
        sequence: Name of the video in it.
        truth: Where the masks come from; see ``read_sequence``.
        scale: How counts become grey values; None: guessed from the video.
        work_dir: Folder of the checkpoints; None: ``NAME.fit`` in the folder of output.
        settings: Trainings, frame interval, seed.
        start_from: A model to start from, as for :func:`bvdm_data.weights.load`. Denoiser and
            student are trained on from it. What a short video shows too little of is copied from
            it (lives with fewer than two divisions, motion, the autocorrelation of textures), as
            are the networks of the paper's method. The card lists what was copied. None: start
            from nothing.
        device: Where the networks are trained.
        progress: Show progress bars.

    Returns:
        The model that was written.

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
    # Nothing is known of frames that are not in use.
    source = source.cut(source.numbers[0], settings.stop)
    _check_border(settings.border, source.shape)
    check_writable(path.parent)
    scale = check_scale(scale) or guess_scale(source)
    steps = _Steps(settings, start, folder, place, progress)

    video = read_video(source, scale, progress=progress)
    nuclei = measure_nuclei(extract_crops(video), video.tracks)
    check_fittable(nuclei.crops)
    contours = trace_contours(nuclei.crops.masks)
    lives = steps.fit_lives(nuclei)
    shapes, overlap = fit_shapes(nuclei, contours, seed=settings.seed)
    motion = steps.fit_motion(nuclei, video)
    camera = fit_camera(video)
    _check_finite(shapes=shapes, lives=lives, motion=motion, camera=camera)
    left_out = _count_left_out(video, nuclei, contours)
    _warn_of_left_out(left_out)
    samples = extract_aligned_crops(nuclei, contours, video)
    steps.prepare_paper_networks(nuclei)
    painter, distilled = steps.train_networks(samples, shapes, lives, camera.noise)
    model = Model(shapes, lives, motion, camera, DEFAULT, painter, distilled)
    texture, correlations = steps.fit_texture(model, nuclei)
    unet, flownet = steps.train_paper_networks()
    model = replace(model, texture=texture, unet=unet, flownet=flownet)

    card = {
        "data": _describe_data(source, video, nuclei),
        "left_out": {name: count for name, (count, _) in left_out.items()},
        "measured": {
            **_describe_statistics(model, nuclei),
            "outline_overlap": round(overlap, 4),
            "texture_correlation": {str(lag): round(r, 4) for lag, r in correlations.items()},
            "texture_memory": round(texture.memory, 4),
            "texture_fresh": round(texture.fresh, 4),
        },
        "started_from": start and dict(start.card).get("data"),
        "taken_over": steps.inherited,
        **steps.trained,
        "settings": asdict(settings),
        "versions": list_versions(("bvdm-data", "torch", "numpy", "scipy", "kornia")),
    }
    model = replace(model, card=card)
    save(model, path)
    return model


@dataclass
class _Steps:
    """The steps that train, or that a model to start from may stand in for."""

    settings: FitSettings
    start: Model | None  # model to start from
    folder: Path  # of the checkpoints
    device: torch.device
    progress: bool
    inherited: list[str] = field(default_factory=list)  # what came from the model to start from
    trained: Card = field(default_factory=dict)  # entries of the card, by network
    # what FlowNet and DDPM of the paper's method learn from
    learned: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def fit_lives(self, nuclei: Nuclei) -> CellCycleModel:
        try:
            return fit_cell_cycle(nuclei, minutes=self.settings.minutes)
        except VideoTooShortError:
            if self.start is None:
                raise
        rows = nuclei.stage == INTERPHASE
        if not rows.any():
            raise VideoTooShortError(
                "the video must show whole nuclei in interphase, got none; "
                f"{advise(nuclei.crops, 'give a longer video')}"
            )
        self.inherited.append("lives but for brightness and size")
        size, lives = np.median(nuclei.area[rows]) / self.start.nucleus_area, self.start.lives
        return replace(
            lives,
            brightness=tabulate_intensities(nuclei.brightness[rows]),
            mother_area=lives.mother_area * size,
            adult_area=lives.adult_area * size,
        )

    def fit_motion(self, nuclei: Nuclei, video: Video) -> MotionModel:
        border, start = self.settings.border, self.start
        try:
            motion = fit_motion(nuclei, video, border=border)
        except ValueError:
            if start is None:
                raise
            self.inherited.append("motion but for density")
            return replace(start.motion, density=fit_density(video, border))
        if start is None or len(nuclei.lineage.daughters) >= LEAST_STEPS:
            return motion
        self.inherited.append("distances of sisters")
        known = start.motion
        return replace(motion, separation=known.separation, sister_distance=known.sister_distance)

    def train_networks(
        self, crops: AlignedCrops, shapes: ShapeModel, lives: CellCycleModel, noise: float
    ) -> tuple[Denoiser, Student]:
        """Train the denoiser, then the student on what it renders."""
        settings, start = self.settings, self.start
        first, second = (None, None) if start is None else (start.painter, start.distilled)
        painter, log = train_denoiser(
            crops, settings.painter, self._run("painter"), noise=noise, start=first
        )
        self._describe("painter", log)
        # After more steps the denoiser renders other images, so that this is another training.
        run = self._run(f"distilled-{settings.painter.steps}")
        pairs = sample_teacher_pairs(
            painter, shapes, lives, run, count=settings.pairs, seed=settings.seed
        )
        distilled, log = train_student(pairs, painter, settings.distilled, run, second)
        self._describe("distilled", log)
        return painter.cpu(), distilled

    def fit_texture(self, model: Model, nuclei: Nuclei) -> tuple[TextureModel, dict[int, float]]:
        """Fit how long textures last; return also their correlations by lag."""
        texture, correlations = fit_noise_autocorrelation(
            nuclei.crops, nuclei.stage, model, seed=self.settings.seed
        )
        if len(correlations) < 2 and self.start is not None:
            self.inherited.append("memory of the texture")
            texture = self.start.texture
        return texture, correlations

    def prepare_paper_networks(self, nuclei: Nuclei) -> None:
        """Prepare what they learn from, so that a video that shows too little is refused early."""
        if self.settings.paper:
            pairs = make_mask_pairs(nuclei.crops, nuclei.lineage)
            self.learned = pairs, normalize_crops(nuclei.crops)
            for _, track in self.learned:
                split_tracks(track, self.settings.seed)

    def train_paper_networks(self) -> tuple[UNet | None, FlowNet | None]:
        settings, start = self.settings, self.start
        if self.learned is None:
            if start is None or start.unet is None:
                return None, None
            self.inherited.append("networks of the paper's method")
            return start.unet, start.flownet
        pairs, crops = self.learned
        flownet, flow_log, iou = train_flownet(pairs, settings.flow, self._run("flow"))
        unet, log = train_ddpm(crops, settings.texture, self._run("texture"), settings.network)
        self._describe("texture", log)
        self._describe("flow", flow_log, **iou)
        return unet, flownet

    def _run(self, name: str) -> Run:
        return Run(self.folder / f"{name}.pt", self.device, self.progress)

    def _describe(self, name: str, log: TrainingLog, **more: float) -> None:
        """Note the card's entry of a trained network."""
        settings: TrainingSettings = getattr(self.settings, name)
        self.trained[name] = {
            "steps": settings.steps,
            "batch": settings.batch,
            "rate": settings.rate,
            "average": settings.average,
            "loss": [round(loss, 6) for _, loss in log.train],
            # JSON has no NaN: held-out nuclei without any texture
            "held_out_loss": [round(x, 6) if math.isfinite(x) else None for _, x in log.held_out],
            "checked_at": [step for step, _ in log.held_out],
            "hours": round(log.seconds / 3600, 3),
            **more,
        }


def _describe_data(source: CTCSequence, video: Video, nuclei: Nuclei) -> Card:
    return {
        "data_set": source.folder.resolve().name,
        "sequence": source.name,
        "truth": source.truth,
        "frames": len(video.frames),
        "size": list(source.shape),
        "tracks": len(video.tracks),
        "divisions": len(nuclei.lineage.daughters),
        "whole_cycles": len(nuclei.lineage.whole_cycles),
        "nuclei": len(nuclei.stage),
    }


def _describe_statistics(model: Model, nuclei: Nuclei) -> Card:
    lives = model.lives
    return {
        "stages": {name: int((nuclei.stage == stage).sum()) for stage, name in enumerate(PHASES)},
        "cycle_hours_median": round(float(np.exp(lives.cycle[0])) * lives.minutes / 60, 2),
        "brightness_memory": round(lives.brightness_autocorrelation, 4),
        "brightness_shared": round(lives.brightness_sister_correlation, 4),
        **({"death_rate": round(lives.death_rate, 6)} if lives.death_rate else {}),
    }


# The likely cause of a number that could not be measured, by part of the model.
_CAUSES = {
    "shapes": "are the masks filled, rounded shapes?",
    "lives": "do the tracks show divisions, and nuclei that grow?",
    "motion": "do the tracks follow nuclei from frame to frame?",
    "camera": "do enough frames show background between the nuclei?",
}


def _check_finite(**parts: object) -> None:
    """Refuse what could not be measured, ahead of any training."""
    for part, measured in parts.items():
        for name, value in vars(measured).items():
            if not np.isfinite(np.asarray(value, float)).all():
                raise ValueError(
                    f"{part}.{name} must be finite to fit networks, got NaN or infinity from the "
                    f"video; {_CAUSES[part]}"
                )


def _count_left_out(video: Video, nuclei: Nuclei, contours: Contours) -> dict[str, tuple[int, int]]:
    """Count what is left out of the fit, and of how many, by ``LEFT_OUT``."""
    crops = nuclei.crops
    seen, divisions = len(crops.track) + sum(crops.left_out.values()), len(nuclei.lineage.daughters)
    ragged = int((contours.iou < LEAST_OVERLAP).sum())
    counts = {name: (count, seen) for name, count in crops.left_out.items()}
    counts["nuclei_in_pieces"] = (crops.left_out["nuclei_in_pieces"] + ragged, seen)
    counts["divisions_not_whole"] = (divisions - len(nuclei.references), divisions)
    counts["frames_without_masks"] = (video.skipped, len(video.frames) + video.skipped)
    crowded = sum(not frame.is_clear for frame in video.frames)
    counts["frames_without_background"] = (crowded, len(video.frames))
    return counts


def _warn_of_left_out(counts: Mapping[str, tuple[int, int]]) -> None:
    many = {name: pair for name, pair in counts.items() if pair[0] > SHARE * pair[1]}
    if many:
        words = (f"{count} of {total} {LEFT_OUT[name]}" for name, (count, total) in many.items())
        warnings.warn(f"left out of the fit: {'; '.join(words)}", stacklevel=3)


def _check_border(border: int, shape: tuple[int, int]) -> None:
    if 2 * border >= min(shape):
        raise ValueError(
            f"border must leave something of frames of {shape} pixels, got {border}; give at most "
            f"{(min(shape) - 1) // 2}"
        )
