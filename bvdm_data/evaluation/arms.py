"""The kinds of training data that are compared, called arms, and where their clips come from."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from bvdm_data.clip import LARGEST_COUNT, CameraScale, Clip
from bvdm_data.datasets.ctc import CTCSequence, guess_scale, read_sequence
from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER, CTCVideos
from bvdm_data.datasets.mixed import ClipSource, MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation.copy_paste import CopyPaste
from bvdm_data.evaluation.segmenter import Clips
from bvdm_data.files import open_atomic, read_json, write_tensors
from bvdm_data.fitting.training import compute_fingerprint
from bvdm_data.synth.scene import Method
from bvdm_data.weights import load, read_card


def cache_json(
    path: Path,
    compute: Callable[[], Mapping[str, Any]],
    find_fault: Callable[[Any], str | None] = lambda found: None,
) -> dict[str, Any]:
    """Read the JSON object in a file; where there is no file yet, compute and write it.

    A file that is damaged, or that ``find_fault`` finds a fault in, is refused.
    """
    if not path.exists():
        text = json.dumps(replace_nan(compute()), indent=2) + "\n"
        with open_atomic(path) as temporary:
            temporary.write_text(text)
    return read_json(path, find_fault)


def replace_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by None."""
    if isinstance(value, Mapping):
        return {key: replace_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def hash_clips(clip: Mapping[str, object]) -> str:
    """Return a digest of all tensors of a clip."""
    tensors = ((key, clip[key]) for key in sorted(clip) if isinstance(clip[key], Tensor))
    return compute_fingerprint(*(part for pair in tensors for part in pair))


class CachedClips(Dataset[Clip]):
    """The first clips of a data set, read from disk; ``clip(i)`` repeats them without end."""

    def __init__(self, folder: Path, count: int, key: str, source: ClipSource) -> None:
        """Remember where the clips are, and what they look like."""
        self.folder, self.count, self.key = folder, count, key
        self.frames, self.size, self.scale = source.frames, source.size, source.scale
        self.annotations, self.max_cells = source.annotations, source.max_cells

    def select(self, annotations: Collection[str]) -> "CachedClips":
        """Return the same clips with fewer keys."""
        selected = copy(self)
        selected.annotations = tuple(name for name in self.annotations if name in annotations)
        return selected

    def __len__(self) -> int:
        """Return the number of clips."""
        return self.count

    def __getitem__(self, index: int) -> Clip:
        """Read a clip."""
        if not 0 <= index < self.count:
            raise IndexError(f"index must be from 0 to {self.count - 1}, got {index}")
        return self.clip(index)

    def clip(self, index: int) -> Clip:
        """Read clip ``index % count``."""
        path = _get_path(self.folder, index % self.count)
        keys = ("video", *self.annotations, "index", "source")
        try:
            tensors = load_file(path)
            _check_kept(tensors, keys, (self.frames, *self.size))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"the kept clip {path} is damaged ({error}); delete it") from error
        tensors["masks"] = tensors["masks"].int()
        return cast(Clip, {key: tensors[key] for key in keys})

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: cached clips are the same in every epoch."""


def cache_clips(
    source: ClipSource,
    count: int,
    folder: Path,
    *,
    settings: Mapping[str, object],
    probe: ClipSource | None = None,
    workers: int = 0,
    progress: bool = True,
) -> CachedClips:
    """Make the first clips of a data set, by a DataLoader, and keep them; existing ones stay.

    The key of the cache is a digest of the settings and of a first clip that is always made anew:
    when the code that makes clips changes, all clips are made again. ``probe`` makes this clip
    where one of ``source`` takes long. A larger count adds to a smaller one.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    first = (source if probe is None else probe).clip(0)
    key = compute_fingerprint(json.dumps(dict(settings), sort_keys=True), hash_clips(first))
    place = folder / key
    wanted = json.loads(json.dumps(dict(settings)))

    def find_other(found: object) -> str | None:
        return None if found == wanted else f"it must hold {json.dumps(wanted)}"[:300]

    cache_json(place / "settings.json", lambda: settings, find_other)
    if probe is None and not _get_path(place, 0).exists():
        _write_clip(place, 0, first)
    missing = [index for index in range(count) if not _get_path(place, index).exists()]
    # Without a generator, the loader would draw from the global random state.
    options: dict[str, Any] = {"num_workers": workers, "generator": torch.Generator()}
    loader = DataLoader(_Numbered(source), batch_size=None, sampler=missing, **options)
    start, is_quiet = count - len(missing), not progress
    bar = tqdm(loader, total=count, initial=start, desc="clips", disable=is_quiet)
    for index, clip in zip(missing, cast(Iterator[Clip], bar), strict=True):
        _write_clip(place, index, clip)
    return CachedClips(place, count, key, source)


@dataclass
class _Numbered(Dataset[Clip]):
    """A source as a map-style data set, which workers share out."""

    source: ClipSource

    def __getitem__(self, index: int) -> Clip:
        return self.source.clip(index)


def _check_kept(
    tensors: Mapping[str, Tensor], keys: Sequence[str], size: tuple[int, int, int]
) -> None:
    """Refuse a clip that lacks a key, is of another size, or has no grey values."""
    missing = [key for key in (*keys, "masks") if key not in tensors]
    if missing:
        raise ValueError(f"no {missing[0]!r}")
    for key, shape in (("video", (size[0], 1, *size[1:])), ("masks", size)):
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"{key!r} must be {shape}, got {tuple(tensors[key].shape)}")
    video = tensors["video"]
    if not (video.is_floating_point() and bool(((video >= 0) & (video <= 1)).all())):
        raise ValueError("'video' must hold grey values from 0 to 1")


def _get_path(folder: Path, index: int) -> Path:
    return folder / f"clip_{index:05d}.safetensors"


def _write_clip(folder: Path, index: int, clip: Clip) -> None:
    tensors = {key: cast(Tensor, value).contiguous() for key, value in clip.items()}
    tensors["masks"] = tensors["masks"].to(torch.uint16)  # half the disk; a clip has few ids
    write_tensors(_get_path(folder, index), tensors, {})


# Every arm.
ARMS = (
    "real", "synthetic", "copy-paste", "real+synthetic", "procedural", "synthetic-stream", "paper",
    "synthetic-2x", "real-strong",
)  # fmt: skip
# Arms that can teach links: a finite number of clips, each longer than one frame.
LINKABLE = ("real", "synthetic", "synthetic-2x", "paper", "procedural")
MIX = {"real": 1, "synthetic": 3}  # how often each is shown in the arm "real+synthetic"
ANNOTATIONS = ("masks", "tracks")  # what a clip that trains a network needs
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
        seed: Seed of the synthetic clips.
        frames: Frames of the clips of all arms. Default: 8, or as many as the videos have.
        size: Height and width of the clips of all arms, pixels. Default: 256, or as large as fits
            into both videos.
        border: Width in pixels of the band at the edge of real frames without complete truth.
            Default: that of the model's fit.
        scale: How counts of both videos become grey values. Default: that of the model, if all
            counts lie on it.
        folder: Where clips and results are kept.
        workers: Processes of the DataLoader that makes clips.
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
    size, scale = data.size or (min(256, side // 8 * 8),) * 2, _choose_scale(data, videos)
    return replace(data, border=border, frames=frames, size=size, scale=scale)


def _choose_scale(data: Data, videos: Sequence[CTCSequence]) -> CameraScale:
    """Return the model's grey scale, at which both videos are read; refuse videos off it."""
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
    return wanted


@dataclass(frozen=True)
class Arm:
    """One kind of training data."""

    name: str  # its name in tables
    clips: Clips  # its clips, by number, without end
    identity: str  # digest of all that decides the clips: equal identities mean equal clips
    augmentation: str = "plain"  # "plain", as for every arm, or "strong"


def make_arm(name: str, data: Data, count: int | None = None) -> Arm:
    """Make an arm; the clips that are missing are made. None: as many as the video has pixels."""
    if name not in ARMS:
        raise ValueError(f"arms must be out of {', '.join(ARMS)}; got {name!r}")
    if name in ("real", "real-strong"):
        real = make_real_clips(data)
        augmentation = "strong" if name == "real-strong" else "plain"
        return Arm(name, real, _hash_real("real", data, real), augmentation)
    if name == "copy-paste":
        pasted = make_pasted_clips(data)
        return Arm(name, pasted, _hash_real(name, data, pasted))
    if name == "synthetic-stream":
        stream = make_synthetic_dataset(data, **STREAM)
        return Arm(name, stream, compute_fingerprint("stream", describe_synthetic(stream), None))
    count = count_real_clips(data) if count is None else count
    if name in ("paper", "procedural"):
        data = replace(data, method=name, variation=None)
    if name == "synthetic-2x":
        count *= 2
    synthetic = make_synthetic_clips(data, count)
    if name != "real+synthetic":
        return Arm(name, synthetic, compute_fingerprint(synthetic.key, count))
    real = make_real_clips(data)
    made = synthetic.select(ANNOTATIONS)
    made.scale = data.scale or made.scale  # one scale but for how counts are stored
    mix = MixedVideos({"real": real, "synthetic": made}, weights=MIX)
    # The first choices stand for the code that chooses.
    members = [int(mix.clip(index)["member"]) for index in range(32)]
    identity = _hash_real("real", data, real), synthetic.key, count, MIX, members
    return Arm(name, mix, compute_fingerprint(*identity))


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
    arguments = _list_set(data, "frames", "size", "seed", "model", "method", "variation")
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


def _hash_real(kind: str, data: Data, clips: CTCVideos | CopyPaste) -> str:
    """Hash settings and a first clip, so that other files or other code make another arm."""
    return compute_fingerprint(kind, data.train, data.stop, hash_clips(clips.clip(0)))
