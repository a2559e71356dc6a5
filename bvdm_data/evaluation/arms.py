"""The kinds of training data that are compared, called arms, and where their clips come from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER, CTCVideos
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation.clip_cache import CachedClips, cache_clips, hash_clips
from bvdm_data.evaluation.copy_paste import CopyPaste
from bvdm_data.evaluation.segmenter import Clips
from bvdm_data.fitting.training import compute_fingerprint
from bvdm_data.synth.scene import Method
from bvdm_data.weights import model_digest

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
        method: How synthetic nuclei are painted.
        variation: How far synthetic clips may leave the fitted video, from 0 to 1; None: what is
            usual for the method.
        seed: Seed of the synthetic clips.
        frames: Frames of the clips of all arms.
        size: Height and width of the clips of all arms, pixels.
        border: Width in pixels of the band at the edge of real frames without complete truth.
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
    variation: float | None = None
    seed: int = 0
    frames: int = 8
    size: tuple[int, int] = (256, 256)
    border: int = DEFAULT_BORDER
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
        height, width = self.size
        if height != width or height % 8:
            raise ValueError(
                "size must be a square whose side is a multiple of 8 pixels, since samples "
                f"are turned by 90 degrees and halved three times, got {self.size}"
            )


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
    mix = MixedVideos({"real": real, "synthetic": synthetic.select(ANNOTATIONS)}, weights=MIX)
    # The first choices stand for the code that chooses.
    members = [int(mix.clip(index)["member"]) for index in range(32)]
    identity = _hash_real("real", data, real), synthetic.key, count, MIX, members
    return Arm(name, mix, compute_fingerprint(*identity))


def make_real_clips(data: Data) -> CTCVideos:
    """Return random windows of the training video, without end."""
    frames = data.frames if data.stop is None else min(data.frames, data.stop)
    options: dict[str, Any] = {"sequence": data.train, "stop": data.stop, "frames": frames}
    options["annotations"] = ANNOTATIONS
    return CTCVideos(data.root, size=data.size, border=data.border, **options)


def count_real_clips(data: Data) -> int:
    """Return how many clips hold as many pixels as the training video."""
    return len(make_real_clips(replace(data, stop=None)))


def make_pasted_clips(data: Data) -> CopyPaste:
    """Return stills of real nuclei pasted on real background."""
    options: dict[str, Any] = {"sequence": data.train, "stop": data.stop}
    return CopyPaste(data.root, size=data.size, border=data.border, **options)


def make_synthetic_dataset(data: Data, **changes: Any) -> SyntheticHeLaVideos:
    """Return the endless data set of synthetic clips, with arguments changed."""
    names = "frames", "size", "seed", "model", "method", "variation"
    arguments: dict[str, Any] = {name: getattr(data, name) for name in names}
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
    return settings | {"model": model_digest(dataset.model)}


def _hash_real(kind: str, data: Data, clips: CTCVideos | CopyPaste) -> str:
    """Hash settings and a first clip, so that other files or other code make another arm."""
    return compute_fingerprint(kind, data.train, data.stop, hash_clips(clips.clip(0)))
