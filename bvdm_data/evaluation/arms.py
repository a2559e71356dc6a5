"""Arms: the kinds of training data that are compared, and where their clips come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bvdm_data.datasets.ctc_videos import DEFAULT_BORDER, CTCVideos
from bvdm_data.datasets.mixed import MixedVideos
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.evaluation.clip_cache import CachedClips, cache_clips, hash_clips
from bvdm_data.evaluation.copy_paste import CopyPaste
from bvdm_data.evaluation.experiment import Arm
from bvdm_data.fitting.training import compute_fingerprint
from bvdm_data.synth.cell_bank import PoolSettings
from bvdm_data.synth.scene import Method
from bvdm_data.validate import as_int
from bvdm_data.weights import model_digest

LEVELS = 8
"""Pixels of a side that the segmenter's deepest level sees as one."""

MIX = {"real": 1, "synthetic": 3}
"""How often each is shown in the arm ``"real+synthetic"``."""

_DRAWN = 32
"""Clips of a mix whose sources belong to what it is known by."""

ANNOTATIONS = ("masks", "tracks")
"""What a clip that trains a network needs."""

STREAMED_FRAMES = 2
"""Frames of a clip of a stream; a segmenter sees one of them."""


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
                "that is tested on what it was trained on says nothing"
            )
        height, width = self.size
        if height != width or height % LEVELS:
            raise ValueError(
                f"size must be a square whose side is a multiple of {LEVELS} pixels, since samples "
                f"are turned by 90 degrees and halved three times, got {self.size}"
            )


def make_real_clips(data: Data) -> CTCVideos:
    """Return the windows of the training video, always new ones."""
    frames = data.frames if data.stop is None else min(data.frames, data.stop)
    return CTCVideos(
        data.root,
        sequence=data.train,
        frames=frames,
        size=data.size,
        border=data.border,
        stop=data.stop,
        annotations=ANNOTATIONS,
    )


def make_synthetic_clips(data: Data, count: int) -> CachedClips:
    """Return synthetic clips, drawn from the data set by a DataLoader and kept."""
    videos = make_synthetic_dataset(data)
    return cache_clips(
        videos,
        count,
        data.folder / "clips",
        settings=describe_synthetic(videos),
        workers=data.workers,
        progress=data.progress,
    )


def make_synthetic_dataset(data: Data) -> SyntheticHeLaVideos:
    """Return the endless data set that synthetic clips are drawn from."""
    return SyntheticHeLaVideos(
        frames=data.frames,
        size=data.size,
        seed=data.seed,
        model=data.model,
        method=data.method,
        variation=data.variation,
        annotations=(*ANNOTATIONS, "stages"),
    )


def make_streamed_dataset(data: Data, pool: PoolSettings | None = None) -> SyntheticHeLaVideos:
    """Return the endless data set whose clips train networks as they are made, none twice."""
    return SyntheticHeLaVideos(
        frames=STREAMED_FRAMES,
        size=data.size,
        seed=data.seed,
        model=data.model,
        method=data.method,
        variation=data.variation,
        annotations=ANNOTATIONS,
        pool=pool,
    )


def describe_synthetic(videos: SyntheticHeLaVideos) -> dict[str, object]:
    """Say in JSON values what decides the clips of a synthetic data set."""
    return {
        "model": model_digest(videos.model),
        "frames": videos.frames,
        "size": list(videos.size),
        "seed": videos.seed,
        "method": repr(videos.method),
        "nuclei": videos.nuclei,
        **({"variation": videos.variation} if videos.variation else {}),
    }


def make_pasted_clips(data: Data) -> CopyPaste:
    """Return the stills of the rival: real nuclei pasted on real background."""
    return CopyPaste(
        data.root, sequence=data.train, size=data.size, stop=data.stop, border=data.border
    )


def count_real_clips(data: Data) -> int:
    """Return how many clips hold as many pixels as the training video."""
    return len(make_real_clips(replace(data, stop=None)))


def _real(data: Data, count: int) -> Arm:
    clips = make_real_clips(data)
    return Arm("real", clips, _identity("real", data, clips))


def _real_strong(data: Data, count: int) -> Arm:
    return replace(_real(data, count), name="real-strong", augmentation="strong")


def _copy_paste(data: Data, count: int) -> Arm:
    clips = make_pasted_clips(data)
    return Arm("copy-paste", clips, _identity("copy-paste", data, clips))


def _synthetic(data: Data, count: int) -> Arm:
    clips = make_synthetic_clips(data, count)
    return Arm("synthetic", clips, compute_fingerprint(clips.key, count))


def _synthetic_twice(data: Data, count: int) -> Arm:
    return replace(_synthetic(data, 2 * count), name="synthetic-2x")


def _streamed(data: Data, count: int) -> Arm:
    videos = make_streamed_dataset(data)
    return Arm(
        "synthetic-stream", videos, compute_fingerprint("stream", describe_synthetic(videos), None)
    )


def _both(data: Data, count: int) -> Arm:
    real, synthetic = make_real_clips(data), make_synthetic_clips(data, count).only(ANNOTATIONS)
    mix = MixedVideos({"real": real, "synthetic": synthetic}, weights=MIX)
    drawn = [int(mix.clip(number)["member"]) for number in range(_DRAWN)]
    identity = compute_fingerprint(_identity("real", data, real), synthetic.key, count, MIX, drawn)
    return Arm("real+synthetic", mix, identity)


def _paper(data: Data, count: int) -> Arm:
    return replace(_synthetic(replace(data, method="paper", variation=None), count), name="paper")


def _procedural(data: Data, count: int) -> Arm:
    return replace(
        _synthetic(replace(data, method="procedural", variation=None), count), name="procedural"
    )


ARMS: dict[str, Callable[[Data, int], Arm]] = {
    "real": _real,
    "synthetic": _synthetic,
    "copy-paste": _copy_paste,
    "real+synthetic": _both,
    "procedural": _procedural,
    "synthetic-stream": _streamed,
    "paper": _paper,
    "synthetic-2x": _synthetic_twice,
    "real-strong": _real_strong,
}
"""Every arm by its name, the most telling first; made from the data and the number of clips."""

LINKABLE = ("real", "synthetic", "synthetic-2x", "paper", "procedural")
"""Arms of clips that can teach links: a finite number of them, with time in them."""

SCARCE = ("real", "copy-paste", "synthetic", "real+synthetic")
"""The arms of the scarcity curve."""


def make_arms(data: Data, names: Sequence[str], count: int | None = None) -> list[Arm]:
    """Make arms ready for training; the clips that are missing are made."""
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise ValueError(f"arms must be out of {', '.join(ARMS)}; got {unknown[0]!r}")
    number = count_real_clips(data) if count is None else as_int("clips", count, least=1)
    return [ARMS[name](data, number) for name in names]


def _identity(kind: str, data: Data, clips: CTCVideos | CopyPaste) -> str:
    """Digest settings and a first clip, so that other files or other code count as another arm."""
    return compute_fingerprint(kind, data.train, data.stop, hash_clips(clips.clip(0)))
