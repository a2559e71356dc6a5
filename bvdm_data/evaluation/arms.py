"""The kinds of training data that are compared, called arms, and where their clips come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bvdm_data.adapters.common import Videos
from bvdm_data.clip import LARGEST_COUNT, CameraScale
from bvdm_data.datasets.ctc import guess_scale, read_sequence
from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER, CTCVideos
from bvdm_data.datasets.export import export
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation.cell_cycle_gan import train_cell_cycle_gan
from bvdm_data.evaluation.clip_cache import CachedClips, cache_clips, hash_clips
from bvdm_data.evaluation.copy_paste import CopyPaste
from bvdm_data.fitting.training import Run, compute_fingerprint
from bvdm_data.outlines import Outline, calibrate_outline
from bvdm_data.synth.scene import Method
from bvdm_data.weights import load, read_card

# Every arm.
ARMS = (
    "real", "synthetic", "copy-paste", "real+synthetic", "procedural", "synthetic-stream", "paper",
    "synthetic-films", "synthetic-calibrated", "cell-cycle-gan",
)  # fmt: skip
# Arms that can teach links: a finite number of clips, each longer than one frame.
LINKABLE = ("real", "synthetic", "real+synthetic", "paper", "procedural", "cell-cycle-gan")
# Arms whose clips are made by a method of their own.
OTHER_METHODS = ("paper", "procedural", "cell-cycle-gan")
MIX = {"real": 1, "synthetic": 3}  # how often each is shown in the arm "real+synthetic"
CALIBRATED = 8  # clips whose outlines are compared with those of the annotated frames
ANNOTATIONS = ("masks", "tracks")  # what a clip that trains a network needs
FILMS = 2  # whole films of the arm "synthetic-films", each of one randomisation
# Clips of a stream; a segmenter sees one of their frames.
STREAM: dict[str, Any] = {"frames": 2, "annotations": ANNOTATIONS}


_LATER: Any = None  # default of what :func:`fill_in_data` fills in


@dataclass(frozen=True, kw_only=True)
class Data:
    """What an experiment is made from.

    Raises:
        ValueError: If train and test are the same video, or size is no square of whole levels.

    Attributes:
        root: Folder of the data set in the layout of the Cell Tracking Challenge.
        train: Sequence that everything is fitted to and trained on.
        test: Sequence that networks are tested on.
        stop: Frame number after the last one of ``train`` that is used; None: all.
        test_stop: The same of ``test``.
        model: The fitted model: a name, or the path of a file.
        method: How synthetic clips are made.
        variation: How far synthetic clips may leave the fitted video, as in
            :class:`SyntheticHeLaVideos`; None: what is usual for the method.
        outline: What the outline of a synthetic nucleus means, as for ``SyntheticHeLaVideos``;
            None: what is usual there.
        calibrated: Frames at the start of ``test`` that the arm ``"synthetic-calibrated"``
            calibrates its outlines on. No network is tested on them.
        also: Further annotated videos that networks are tested on, each a root and a sequence.
        seed: Seed of the synthetic clips.
        frames: Frames of the clips of all arms. Default: 8, or as many as the videos have.
        size: Height and width of the clips of all arms, pixels. Default: 256, or as large as fits
            into both videos.
        border: Width in pixels of the band at the edge of real frames without complete truth.
            Default: that of the model's fit.
        scale: How counts of both videos become grey values. Default: that of the model, if all
            counts lie on it.
        folder: Where clips and results are kept.
        workers: Processes that make clips and train segmenters, each with one thread; 0: this
            process with all its threads.
        progress: Show progress bars.
    """

    root: Path
    train: str = "01"
    test: str = "02"
    stop: int | None = None
    test_stop: int | None = None
    model: str | Path = "hela"
    method: str | Method = "fast"
    variation: float | Mapping[str, float] | None = None
    outline: str | float | Sequence[float] | None = None
    calibrated: int = 0
    also: Sequence[tuple[Path, str]] = ()
    seed: int = 0
    frames: int = _LATER
    size: tuple[int, int] = _LATER
    border: int = _LATER
    scale: CameraScale = _LATER
    folder: Path
    workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse clips that a segmenter cannot be trained on, and a test on training data."""
        if self.train == self.test:
            raise ValueError(
                f"test must be another video than train, got {self.test!r} for both; a network "
                "cannot be judged by the video that it was trained on"
            )
        if self.calibrated < 0:
            raise ValueError(f"calibrated must be 0 or more frames, got {self.calibrated}")
        if self.size and (self.size[0] != self.size[1] or self.size[0] % 8):
            raise ValueError(
                "size must be a square whose side is a multiple of 8 pixels, since samples "
                f"are turned by 90 degrees and halved three times, got {self.size}"
            )


def fill_in_data(data: Data) -> Data:
    """Fill in border, frames, size and scale as they follow from the model and both videos.

    Raises:
        FileNotFoundError: If the model or a video is missing.
        ValueError: If clips do not fit into the frames, or videos and model differ in their scale.
    """
    videos = []
    for name, stop in ((data.train, data.stop), (data.test, data.test_stop)):
        source = read_sequence(data.root, name)
        videos.append(source.cut(source.numbers[0], stop))
    border, fitted = data.border, read_card(data.model).get("settings")
    if border is None:
        known = fitted.get("border") if isinstance(fitted, dict) else None
        border = known if isinstance(known, int) else DEFAULT_BORDER
    side = min(side for video in videos for side in video.shape) - 2 * border
    if side < (data.size or (8,))[0]:
        raise ValueError(
            f"frames must hold clips of at least {data.size or (8, 8)} pixels off the border of "
            f"{border} px, got {[video.shape for video in videos]}; give a smaller border, or "
            "larger frames"
        )
    frames = data.frames or min(8, *map(len, videos))
    size = data.size or (min(256, side // 8 * 8),) * 2
    # Both videos are read at the grey scale of the model, which their counts must lie on.
    camera = load(data.model).camera
    scale, span = data.scale or guess_scale(*videos), camera.full - camera.offset
    # 32768 is no light where signed counts are stored as unsigned ones.
    zero = camera.offset % 32768 + scale.offset // 32768 * 32768
    zero = zero if zero + span <= LARGEST_COUNT else camera.offset
    wanted = CameraScale(zero, zero + span)
    if data.scale or videos[0].dtype == np.uint8:
        is_one = scale == wanted
    else:
        is_one = wanted.offset <= scale.offset and scale.full <= wanted.full
    if not is_one:
        raise ValueError(
            f"videos and model must have one grey scale to be compared, got counts from "
            f"{scale.offset} to {scale.full} in videos {data.train!r} and {data.test!r} and from "
            f"{camera.offset} to {camera.full} in model {str(data.model)!r}; give --offset "
            f"{wanted.offset} --full {wanted.full}, which cuts off brighter light, or fit a model "
            "at the scale of the videos"
        )
    return replace(data, border=border, frames=frames, size=size, scale=wanted)


def find_side(data: Data) -> int:
    """Return the side of the largest square, a multiple of 8 px, off the border of both videos."""
    shapes = [read_sequence(data.root, name).shape for name in (data.train, data.test)]
    return (min(side for shape in shapes for side in shape) - 2 * data.border) // 8 * 8


@dataclass(frozen=True)
class Arm:
    """One kind of training data."""

    name: str  # its name in tables
    clips: Videos  # its clips, by number, without end
    identity: str  # digest of all that decides the clips: equal identities mean equal clips


def make_arm(name: str, data: Data, count: int | None = None) -> Arm:
    """Make an arm; the clips that are missing are made. None: as many as the video has pixels."""
    if name not in ARMS:
        raise ValueError(f"arms must be out of {', '.join(ARMS)}; got {name!r}")
    if name == "real":
        real = make_real_clips(data)
        return Arm(name, real, _hash_real("real", data, real))
    if name == "copy-paste":
        pasted = make_pasted_clips(data)
        return Arm(name, pasted, _hash_real(name, data, pasted))
    if name in ("synthetic-stream", "synthetic-calibrated"):
        if name == "synthetic-calibrated":
            data = replace(data, outline=measure_outline(data))
        stream = make_synthetic_dataset(data, **STREAM)
        return Arm(name, stream, _hash_stream(stream))
    if name == "synthetic-films":
        films = make_film_clips(data)
        return Arm(name, films, compute_fingerprint("films", _hash_mix(films)))
    if name == "real+synthetic":
        real = make_real_clips(replace(data, frames=STREAM["frames"]))
        stream = make_synthetic_dataset(data, **STREAM)
        stream.scale = real.scale  # one scale but for how counts are stored
        mix = MixedVideos({"real": real, "synthetic": stream}, weights=MIX)
        identity = _hash_real("real", data, real), _hash_stream(stream), MIX, _hash_mix(mix)
        return Arm(name, mix, compute_fingerprint(*identity))
    if name in OTHER_METHODS:
        data = replace(data, method=find_method(name, data), variation=None, outline=None)
    count = count_real_clips(data) if count is None else count
    synthetic = make_synthetic_clips(data, count)
    return Arm(name, synthetic, compute_fingerprint(synthetic.key, count))


def measure_outline(data: Data) -> Outline:
    """Return what the outlines of the first frames of the test video mean."""
    if data.calibrated < 1:
        raise ValueError(
            "calibrated must be at least 1 for the arm 'synthetic-calibrated', got "
            f"{data.calibrated}; give --calibrated 3, or leave out the arm"
        )
    source = read_sequence(data.root, data.test)
    scale, numbers = data.scale or guess_scale(source), source.numbers[: data.calibrated]
    masks = [source.masks(number) for number in numbers]
    frames = [scale.to_grey(source.frame(number)) for number in numbers]
    options = {"frames": 1, "size": tuple(2 * side for side in data.size)}
    plain = make_synthetic_dataset(replace(data, variation=0.0, outline="video"), **options)
    clips = [plain.clip(index) for index in range(CALIBRATED)]
    return calibrate_outline(
        frames, [labels for labels in masks if labels is not None], clips=clips
    )


def make_film_clips(data: Data) -> MixedVideos:
    """Return windows of whole exported films, each as long and as large as the training video."""
    videos, real = make_synthetic_dataset(data), make_real_clips(replace(data, stop=None))
    options: dict[str, Any] = {
        "frames": len(real.source),
        "size": real.source.shape,
        "sequences": FILMS,
    }
    options |= {name: getattr(videos, name) for name in ("seed", "method", "variation", "outline")}
    key = compute_fingerprint(describe_synthetic(videos), options, hash_clips(videos.clip(0)))
    folder = data.folder / "films" / key
    export(folder, model=data.model, progress=data.progress, **options)
    given = _list_set(data, "frames", "size") | {"annotations": ANNOTATIONS, "scale": real.scale}
    films = [f"{number:02d}" for number in range(1, FILMS + 1)]
    return MixedVideos(
        {name: CTCVideos(folder, sequence=name, border=0, **given) for name in films}
    )


def find_method(name: str, data: Data) -> str | Method:
    """Return the method of an arm that has one of its own; it is trained where it must be."""
    if name != "cell-cycle-gan":
        return name
    source = read_sequence(data.root, data.train)
    source = source.cut(source.numbers[0], data.stop)
    scale, size = data.scale or guess_scale(source), load(data.model).distilled.settings
    key = compute_fingerprint(data.train, data.stop, scale, size)
    run = Run(data.folder / "gan" / f"{key}.pt", progress=data.progress)
    return train_cell_cycle_gan(source, scale, size, run)


def make_real_clips(data: Data) -> CTCVideos:
    """Return random windows of the training video, without end."""
    options = _list_set(data, "frames", "size", "border", "scale", "stop")
    if data.frames and data.stop:
        options["frames"] = min(data.frames, data.stop)
    return CTCVideos(data.root, sequence=data.train, annotations=ANNOTATIONS, **options)


def count_real_clips(data: Data) -> int:
    """Return how many clips hold as many pixels as the training video."""
    return len(make_real_clips(replace(data, stop=None)))


def make_pasted_clips(data: Data) -> CopyPaste:
    """Return stills of real nuclei pasted on real background."""
    options = _list_set(data, "size", "border", "scale", "stop")
    return CopyPaste(data.root, sequence=data.train, **options)


def _list_set(data: Data, *names: str) -> dict[str, Any]:
    given = {name: getattr(data, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def make_synthetic_dataset(data: Data, **changes: Any) -> SyntheticHeLaVideos:
    """Return the endless data set of synthetic clips, with arguments changed."""
    names = ("frames", "size", "seed", "model", "method", "variation", "outline")
    arguments = _list_set(data, *names)
    arguments["annotations"] = (*ANNOTATIONS, "stages")
    return SyntheticHeLaVideos(**arguments | changes)


def make_synthetic_clips(data: Data, count: int, **changes: Any) -> CachedClips:
    """Return synthetic clips that are made once and kept."""
    dataset = make_synthetic_dataset(data, **changes)
    return cache_clips(
        dataset,
        count,
        data.folder / "clips",
        settings=describe_synthetic(dataset),
        probe=make_synthetic_dataset(data) if changes else None,
        workers=data.workers,
        progress=data.progress,
    )


def describe_synthetic(dataset: SyntheticHeLaVideos) -> Mapping[str, object]:
    """Return as JSON values what decides the clips of a synthetic data set."""
    settings = {name: getattr(dataset, name) for name in ("frames", "seed", "nuclei", "variation")}
    settings |= {"size": list(dataset.size), "method": repr(dataset.method)}
    settings |= {"outline": dataset.outline}
    return settings | {"model": dataset.digest}


def _hash_stream(videos: SyntheticHeLaVideos) -> str:
    """Hash settings and a first clip of an endless stream."""
    return compute_fingerprint("stream", describe_synthetic(videos), hash_clips(videos.clip(0)))


def _hash_mix(mix: MixedVideos) -> str:
    """Hash the first clips, which stand for the code that chooses and cuts them."""
    return compute_fingerprint(*(hash_clips(mix.clip(index)) for index in range(8)))


def _hash_real(kind: str, data: Data, clips: CTCVideos | CopyPaste) -> str:
    """Hash settings and a first clip, so that other files or other code make another arm."""
    return compute_fingerprint(kind, data.train, data.stop, hash_clips(clips.clip(0)))
