"""Fit a model to one annotated video and write it to one file; a killed fit can be continued."""

import math
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from bvdm_data.clip import CameraScale
from bvdm_data.datasets.ctc import CTCSequence, guess_scale, read_sequence
from bvdm_data.files import check_writable, read_json, write_manifest
from bvdm_data.fitting.card import Card, count_left_out, describe_data, describe_statistics
from bvdm_data.fitting.cell_cycle import fit_cell_cycle, tabulate_intensities
from bvdm_data.fitting.contours import fit_shapes, measure_label_shift, trace_contours
from bvdm_data.fitting.denoiser import (
    AlignedCrops,
    extract_aligned_crops,
    sample_teacher_pairs,
    train_denoiser,
    train_student,
)
from bvdm_data.fitting.motion import LEAST_STEPS, fit_density, fit_motion, scale_motion
from bvdm_data.fitting.nuclei import (
    INTERPHASE,
    LEFT_OUT,
    SHARE,
    Nuclei,
    advise,
    check_fittable,
    check_nuclei,
    extract_crops,
    measure_nuclei,
)
from bvdm_data.fitting.paper_networks import (
    make_mask_pairs,
    normalize_crops,
    train_ddpm,
    train_flownet,
)
from bvdm_data.fitting.pooling import LARGEST, choose_pooling, enlarge_model, pool_video
from bvdm_data.fitting.progress import Progress
from bvdm_data.fitting.settings import SECONDS, SHARES, FitSettings, guess_seconds
from bvdm_data.fitting.texture_noise import DEFAULT, fit_noise_autocorrelation
from bvdm_data.fitting.tracker import check_unlinked, link_sequence
from bvdm_data.fitting.training import Run, TrainingLog, TrainingSettings, split_tracks
from bvdm_data.fitting.video import Video, VideoTooShortError, fit_camera, read_video
from bvdm_data.synth.cell_cycle import CellCycleModel
from bvdm_data.synth.contours import ShapeModel
from bvdm_data.synth.denoiser import Denoiser, Student
from bvdm_data.synth.model import Model, TextureModel
from bvdm_data.synth.motion import MotionModel
from bvdm_data.synth.networks import FlowNet, UNet
from bvdm_data.system import list_versions, set_threads
from bvdm_data.validate import as_int, check_device, check_scale
from bvdm_data.weights import load, save

__all__ = ["FitSettings", "fit"]


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
    lives: str | Path | None = None,
    link: bool = False,
    device: str | torch.device = "cpu",
    threads: int = 1,
    progress: bool | Progress = True,
) -> Model:
    """Fit a model to one annotated video and write it to one file.

    The statistics take a minute, the networks about an hour on one core, the two networks of the
    paper's method hours. All that trains keeps a checkpoint in ``work_dir`` every minute: after a
    kill, the same call continues from there. What shows no bright, rounded nuclei is refused
    within seconds.

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
        lives: A model whose lives are taken, as for :func:`bvdm_data.weights.load`, and its motion
            where the video has no tracks, which it then does not need. Lengths of that motion are
            scaled as the nuclei are. None: lives are measured.
        link: Make tracks and divisions of masks that have none (LapTrack, extra ``evaluate``).
            They are written with the video to ``NAME.linked``, as a data set of its own, and read
            from there by the next call: correct them there.
        device: Where the networks are trained.
        threads: Threads of torch and of numpy's BLAS. More than one are slower where other
            programs are busy, and round in another way.
        progress: Show one bar for all parts, with the time that is left.

    Returns:
        The model that was written.

    Raises:
        FileNotFoundError: If the data set or the video is missing.
        ImportError: If link is given and LapTrack is not installed.
        TypeError: If scale is no CameraScale.
        ValueError: If the video cannot be fitted: no tracks, too few divisions, masks of what is
            no bright and rounded nucleus, or checkpoints of other data or settings.
        OSError: If a file cannot be written.
    """
    settings = settings or FitSettings()
    path = Path(output)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"output must end in .safetensors, got {str(path)!r}; give {path.stem}.safetensors"
        )
    place = check_device(device)
    start, living = (None if name is None else load(name) for name in (start_from, lives))
    folder = Path(work_dir) if work_dir is not None else path.with_suffix(".fit")
    source = read_sequence(root, sequence, truth)
    # Nothing is known of frames that are not in use.
    source = source.cut(source.numbers[0], settings.stop)
    _check_border(settings.border, source.shape)
    _check_minutes(living, settings.minutes)
    check_writable(path.parent)
    if link:
        check_unlinked(source)
    check_nuclei(source)
    own = Progress({}, shown=progress) if isinstance(progress, bool) else nullcontext(progress)
    count = as_int("threads", threads, least=1)
    with set_threads(count), threadpool_limits(count, "blas"), own as bar:
        pixels = math.prod((len(source), *source.shape))
        first, last = {"linking": 2e-7 * pixels} if link else {}, bar.seconds
        others = sum((first | last).values())
        bar.seconds = first | guess_seconds(settings, pixels, others) | last
        bar.until = time.monotonic() + 60 * (settings.budget or math.inf) - bar.measure_spent()
        bar.say(f"parts: {bar.describe()}")
        used = link_sequence(source, path.with_suffix(".linked"), bar) if link else source
        steps = _Steps(settings, start, living, folder, place, bar)
        if link:
            name = source.folder.resolve().name
            steps.origin = {"data_set": name, "truth": source.truth, "linked": True}
        model = _fit(used, check_scale(scale) or guess_scale(used), steps)
    save(model, path)
    return model


def _fit(source: CTCSequence, scale: CameraScale, steps: "_Steps") -> Model:
    """Measure the video, then train."""
    settings, bar = steps.settings, steps.bar
    whole = read_video(source, scale, alone=steps.living is not None, progress=bar)
    bar.start("measuring")
    pooling = steps.pooling = choose_pooling(whole)
    video = pool_video(whole, pooling)
    nuclei = measure_nuclei(extract_crops(video), video.tracks)
    check_fittable(nuclei.crops)
    contours = trace_contours(nuclei.crops.masks)
    lives = steps.fit_lives(nuclei)
    shapes, overlap = fit_shapes(nuclei, contours, seed=settings.seed)
    motion = steps.fit_motion(nuclei, video)
    camera = fit_camera(video, scale)
    own_camera = camera if video is whole else fit_camera(whole, scale)
    _check_finite(shapes=shapes, lives=lives, motion=motion, camera=camera)
    left_out = count_left_out(video, nuclei, contours)
    _warn_of_left_out(left_out)
    samples = extract_aligned_crops(nuclei, contours, video)
    steps.prepare_paper_networks(nuclei)
    bar.say(f"{source.truth} masks of {len(video.frames)} frames; {steps.describe_sources(nuclei)}")
    painter, distilled = steps.train_networks(samples, shapes, lives, camera.noise)
    model = Model(shapes, lives, motion, camera, DEFAULT, painter, distilled)
    texture, correlations = steps.fit_texture(model, nuclei)
    unet, flownet = steps.train_paper_networks()
    shapes = replace(shapes, label_shift=measure_label_shift(model, video))
    model = replace(model, shapes=shapes, texture=texture, unet=unet, flownet=flownet)
    model = enlarge_model(model, pooling, own_camera)

    card = {
        "data": describe_data(source, video, nuclei) | steps.origin,
        "left_out": {name: count for name, (count, _) in left_out.items()},
        "measured": {
            **describe_statistics(model, nuclei),
            "outline_overlap": round(overlap, 4),
            "label_shift": round(model.shapes.label_shift, 4),
            "texture_correlation": {str(lag): round(r, 4) for lag, r in correlations.items()},
            "texture_memory": round(texture.memory, 4),
            "texture_fresh": round(texture.fresh, 4),
            **({"pooling": pooling} if pooling > 1 else {}),
        },
        "started_from": steps.start and dict(steps.start.card).get("data"),
        **({"lives_from": dict(steps.living.card).get("data")} if steps.living else {}),
        "taken_over": steps.inherited,
        **steps.trained,
        "settings": {
            name: value
            for name, value in asdict(steps.settings).items()
            if value is not None or name not in ("budget", "license")
        },
        "versions": list_versions(("bvdm-data", "torch", "numpy", "scipy", "kornia")),
    }
    return replace(model, card=card)


@dataclass
class _Steps:
    """The steps that train, or that another model may stand in for."""

    settings: FitSettings
    start: Model | None  # model to start from
    living: Model | None  # model whose lives are taken
    folder: Path  # of the checkpoints
    device: torch.device
    bar: Progress
    inherited: list[str] = field(default_factory=list)  # what came from one of these models
    trained: Card = field(default_factory=dict)  # entries of the card, by network
    pooling: int = 1  # pixels of the video along a side to one of what is fitted to
    origin: Card = field(default_factory=dict)  # what the card says of masks that were linked
    # what FlowNet and DDPM of the paper's method learn from
    learned: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def fit_lives(self, nuclei: Nuclei) -> CellCycleModel:
        if self.living is not None:
            return self._inherit_lives(nuclei, self.living)
        try:
            return fit_cell_cycle(nuclei, minutes=self.settings.minutes)
        except VideoTooShortError:
            if self.start is None:
                raise
            return self._inherit_lives(nuclei, self.start)

    def _inherit_lives(self, nuclei: Nuclei, known: Model) -> CellCycleModel:
        rows = nuclei.stage == INTERPHASE
        if not rows.any():
            raise VideoTooShortError(
                "the video must show whole nuclei in interphase, got none; "
                f"{advise(nuclei.crops, 'give a longer video')}"
            )
        self.inherited.append("lives but for brightness and size")
        size, lives = np.median(nuclei.area[rows]) / known.nucleus_area, known.lives
        return replace(
            lives,
            brightness=tabulate_intensities(nuclei.brightness[rows]),
            mother_area=lives.mother_area * size,
            adult_area=lives.adult_area * size,
        )

    def fit_motion(self, nuclei: Nuclei, video: Video) -> MotionModel:
        border, start = self.settings.border // self.pooling, self.living or self.start
        if start is None:
            return fit_motion(nuclei, video, border=border)
        size = 1 / self.pooling
        if self.living:
            # Where no pixel size is known, nuclei twice as long are taken to go twice as far.
            size = math.sqrt(np.median(nuclei.area) / start.nucleus_area)
        known = scale_motion(start.motion, size)
        try:
            motion = fit_motion(nuclei, video, border=border)
        except ValueError:
            self.inherited.append("motion but for density")
            return replace(known, density=fit_density(video, border))
        if len(nuclei.lineage.daughters) >= LEAST_STEPS:
            return motion
        self.inherited.append("distances of sisters")
        return replace(motion, separation=known.separation, sister_distance=known.sister_distance)

    def describe_sources(self, nuclei: Nuclei) -> str:
        """Say what is learned from the video, and what another model stands in for."""
        taken = ", ".join(self.inherited)
        learned = [part for part in ("lives", "motion") if f"{part} but" not in taken]
        words = ", ".join(["outlines", "light", "camera", "density", *learned])
        is_known = self.start is not None or bool((nuclei.stage > INTERPHASE).any())
        return (
            f"learned from the video: {words}"
            + f"; from another model: {taken}" * bool(taken)
            + "; from neither: how mitosis looks, it is drawn like interphase" * (not is_known)
        )

    def train_networks(
        self, crops: AlignedCrops, shapes: ShapeModel, lives: CellCycleModel, noise: float
    ) -> tuple[Denoiser, Student]:
        """Train the denoiser, then the student on what it renders."""
        start, share = self.start, SHARES["painter"]
        first, second = (None, None) if start is None else (start.painter, start.distilled)
        self._keep({})
        run = self._run("painter", share * self._measure_left("memory", "page"))
        painter, log = train_denoiser(crops, self.settings.painter, run, noise=noise, start=first)
        self._describe("painter", log)
        left, share = self._measure_left("memory", "page"), SHARES["pairs"] / (1 - share)
        if left < math.inf:
            each = self._measure_slowness() * SECONDS["pairs"]
            self._keep({"pairs": max(int(share * left / each), 4)})
        settings = self.settings
        # After more steps the denoiser renders other images, so that this is another training.
        run = self._run(f"distilled-{settings.painter.steps}", left)
        pairs = sample_teacher_pairs(
            painter, shapes, lives, run, count=settings.pairs, seed=settings.seed
        )
        distilled, log = train_student(pairs, painter, settings.distilled, run, second)
        self._describe("distilled", log)
        return painter.cpu(), distilled

    def _measure_slowness(self) -> float:
        """Return how much slower the machine is than the one of the table, 1 if not known."""
        part = self.bar.parts.get("painter")
        return ((part and part.measure_rate()) or SECONDS["painter"]) / SECONDS["painter"]

    def _measure_left(self, *later: str) -> float:
        """Return the seconds of the budget that are left until later parts begin."""
        if self.settings.budget is None:
            return math.inf
        ahead = self._measure_slowness() * sum(self.bar.seconds.get(name, 0) for name in later)
        left = max(60 * self.settings.budget - self.bar.measure_spent(), 0)
        # On a machine that is too busy for both, half is for training.
        return max(left - ahead, left / 2)

    def _keep(self, most: Mapping[str, int]) -> None:
        """Do at most so many steps, and pairs, in this run and in those that continue it."""
        if self.settings.budget is None:
            return
        path = self.folder / "budget.json"
        kept = {**most, **(read_json(path) if path.exists() else {})}
        write_manifest(path, kept)
        old, most = self.settings, {name: kept.get(name, math.inf) for name in SHARES}
        parts = {
            name: replace(own := getattr(old, name), steps=min(most[name], own.steps))
            for name in ("painter", "distilled")
        }
        self.settings = replace(old, **parts, pairs=min(most["pairs"], old.pairs))

    def fit_texture(self, model: Model, nuclei: Nuclei) -> tuple[TextureModel, dict[int, float]]:
        """Fit how long textures last; return also their correlations by lag."""
        known, settings = self.living or self.start, self.settings
        run = self._run("memory", self._measure_left("page"))
        texture, correlations = fit_noise_autocorrelation(
            nuclei.crops, nuclei.stage, model, run, share=settings.share, seed=settings.seed
        )
        if len(correlations) < 2 and known is not None:
            self.inherited.append("memory of the texture")
            texture = known.texture
        return texture, correlations

    def prepare_paper_networks(self, nuclei: Nuclei) -> None:
        """Prepare what they learn from, so that a video that shows too little is refused early."""
        if self.settings.paper:
            if self.pooling > 1:
                raise ValueError(
                    f"nuclei must be at most {LARGEST} px across for the paper's method, got "
                    "larger ones; scale the video down, or leave out paper (--paper)"
                )
            pairs = make_mask_pairs(nuclei.crops, nuclei.lineage)
            self.learned = pairs, normalize_crops(nuclei.crops)
            for _, track in self.learned:
                split_tracks(track, self.settings.seed)

    def train_paper_networks(self) -> tuple[UNet | None, FlowNet | None]:
        settings, start = self.settings, self.start
        if self.learned is None:
            if start is None or start.unet is None or self.pooling > 1:
                return None, None
            self.inherited.append("networks of the paper's method")
            return start.unet, start.flownet
        pairs, crops = self.learned
        flownet, flow_log, iou = train_flownet(pairs, settings.flow, self._run("flow"))
        unet, log = train_ddpm(crops, settings.texture, self._run("texture"), settings.network)
        self._describe("texture", log)
        self._describe("flow", flow_log, **iou)
        return unet, flownet

    def _run(self, name: str, seconds: float = math.inf) -> Run:
        path = self.folder / f"{name}.pt"
        return Run(path, self.device, self.bar, time.monotonic() + seconds)

    def _describe(self, name: str, log: TrainingLog, **more: float) -> None:
        """Note the card's entry of a trained network."""
        if log.train[-1][0] < getattr(self.settings, name).steps:
            self._keep({name: log.train[-1][0]})
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


def _warn_of_left_out(counts: Mapping[str, tuple[int, int]]) -> None:
    many = {name: pair for name, pair in counts.items() if pair[0] > SHARE * pair[1]}
    if many:
        words = (f"{count} of {total} {LEFT_OUT[name]}" for name, (count, total) in many.items())
        warnings.warn(f"left out of the fit: {'; '.join(words)}", stacklevel=4)


def _check_minutes(living: Model | None, minutes: float) -> None:
    if living is not None and living.lives.minutes != minutes:
        raise ValueError(
            f"minutes must be those of the lives that are taken, {living.lives.minutes:g}, got "
            f"{minutes:g}; leave out frames until the interval is that one"
        )


def _check_border(border: int, shape: tuple[int, int]) -> None:
    if 2 * border >= min(shape):
        raise ValueError(
            f"border must leave something of frames of {shape} pixels, got {border}; give at most "
            f"{(min(shape) - 1) // 2}"
        )
