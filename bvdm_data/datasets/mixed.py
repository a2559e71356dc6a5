"""MixedVideos: clips of several sources, for example real and synthetic, in one stream."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Protocol, SupportsIndex, runtime_checkable

import torch
from torch import Tensor

from bvdm_data.camera_scale import CameraScale
from bvdm_data.clip import Clip
from bvdm_data.datasets.arguments import check_whole_number
from bvdm_data.datasets.stream import ClipStream
from bvdm_data.randomness import stream

BLOCK = 1024
"""Clips whose sources are drawn together, from one random stream."""

SHARED = ("frames", "size", "annotations", "max_cells", "scale")
"""What all sources of a mix must have in common, so that their clips fit into one batch."""


@runtime_checkable
class ClipSource(Protocol):
    """What a mix asks of its sources: endless clips by number, all of one form.

    ``SyntheticHeLaVideos``, ``CTCVideos`` and ``MixedVideos`` itself are such sources.
    """

    @property
    def frames(self) -> int:
        """Frames of a clip."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a clip in pixels."""

    @property
    def annotations(self) -> tuple[str, ...]:
        """Keys of a clip beside ``video``, out of ``ANNOTATIONS``."""

    @property
    def max_cells(self) -> int:
        """Rows of the padded tables."""

    @property
    def scale(self) -> CameraScale:
        """How counts of the camera and grey values belong together."""

    def clip(self, index: int) -> Clip:
        """Return clip ``index``, for any index >= 0."""

    def set_epoch(self, epoch: int) -> None:
        """Let the clips be those of another epoch."""


class MixedVideos(ClipStream):
    """Clips of several sources in one stream, each source as often as its weight says.

    Which source clip ``i`` is from is drawn from a random stream of (seed, epoch, i // 1024)
    alone, and it is that source's next own clip: the k-th pick of a source is its clip k, so that
    no clip of a source is skipped or repeated. A clip thus depends on neither ranks, workers nor
    order; the mix is what is split over them and resumed (see :class:`ClipStream`), never its
    sources.

    Attributes:
        sources: The sources by name.
        weights: How often each is picked, as fractions of 1.
        frames: Frames of a clip.
        size: Height and width of a clip in pixels.
        annotations: Keys of a clip beside ``video``.
        max_cells: Rows of the padded tables.
        scale: How counts of the camera and grey values belong together.
        length: Clips an epoch; None is without end.
        seed: Seed of the draws.
        batch_size: The loader's, or None.
        shard: Number of this rank, and of all ranks.
        epoch: Number of the epoch, 0 at first.

    Examples:
        A training on one real clip to three synthetic ones::

            MixedVideos(
                {"real": real, "synthetic": synthetic}, weights={"real": 1, "synthetic": 3}
            )
    """

    def __init__(
        self,
        sources: Mapping[str, ClipSource],
        *,
        weights: Mapping[str, float] | None = None,
        length: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        shard: Sequence[int] | None = None,
    ) -> None:
        """Mix the sources.

        Args:
            sources: Data sets of clips by name; all of the same frames, size, annotations,
                max_cells and scale.
            weights: How often each source is picked, relative to the others, under the same
                names; None: all equally often.
            length: Clips an epoch, of all ranks together; None: an endless stream.
            seed: Seed of the draws; the sources keep their own seeds.
            batch_size: The loader's (1 for a loader with ``batch_size=None``), so that its
                batches are the same for any number of workers. None: not known; then each worker
                makes every n-th clip.
            shard: Number of this rank from 0, and of all ranks. None: those of the distributed
                job; see :class:`ClipStream`.

        Raises:
            TypeError: If a source does not deliver clips by number, a weight is not a number, or
                length, seed or
                batch_size is not a whole number, or shard is no pair of them.
            ValueError: If there is no source, two sources differ in what their clips hold, a
                weight is missing, unknown, negative, not finite, or all are 0, length is below 1,
                or seed below 0.
        """
        super().__init__(length=length, seed=seed, batch_size=batch_size, shard=shard)
        self.sources = _check_sources(sources)
        self.weights = _check_weights(weights, self.sources)
        first = next(iter(self.sources.values()))
        self.frames = first.frames
        self.size = first.size
        self.annotations = first.annotations
        self.max_cells = first.max_cells
        self.scale = first.scale
        self._picks_before = [torch.zeros(len(self.sources), dtype=torch.int64)]

    def clip(self, index: SupportsIndex) -> Clip:
        """Return clip ``index`` of the mix.

        Args:
            index: From 0; ``length`` ends the iteration, it is no limit here.

        Returns:
            A clip of one of the sources; its ``index`` is the one of the mix.

        Raises:
            TypeError: If index is not a whole number.
            IndexError: If index is negative.
        """
        number = check_whole_number("index", index, least=-(2**63))
        if number < 0:
            raise IndexError(f"index must be 0 or more, got {number}")
        block, place = divmod(number, BLOCK)
        picks = self._picks(block)
        name = list(self.sources)[int(picks[place])]
        own = int(self._before(block)[picks[place]] + (picks[:place] == picks[place]).sum())
        clip = self.sources[name].clip(own).copy()
        clip["index"] = torch.tensor(number)
        return clip

    def set_epoch(self, epoch: SupportsIndex) -> None:
        """Let the stream, and those of the sources, be those of another epoch.

        Args:
            epoch: 0 or more.

        Raises:
            TypeError: If epoch is not a whole number.
            ValueError: If epoch is negative.
        """
        super().set_epoch(epoch)
        for source in self.sources.values():
            source.set_epoch(self.epoch)
        del self._picks_before[1:]

    def _picks(self, block: int) -> Tensor:
        """Draw the sources of one block of clips, ``[BLOCK]`` int64."""
        generator = stream(self.seed, "mix", self.epoch, block)
        weights = torch.tensor(list(self.weights.values()), dtype=torch.float64)
        return torch.multinomial(weights, BLOCK, replacement=True, generator=generator)

    def _before(self, block: int) -> Tensor:
        """Count the picks of every source ahead of a block; the counts are kept."""
        for earlier in range(len(self._picks_before) - 1, block):
            counts = torch.bincount(self._picks(earlier), minlength=len(self.sources))
            self._picks_before.append(self._picks_before[-1] + counts)
        return self._picks_before[block]


def _check_sources(sources: Mapping[str, ClipSource]) -> dict[str, ClipSource]:
    if not isinstance(sources, Mapping):
        raise TypeError(
            "sources must map names to data sets, such as {'real': real, 'synthetic': synthetic}, "
            f"got {type(sources).__name__}"
        )
    if not sources:
        raise ValueError("sources must name at least one data set, got none")
    for name, source in sources.items():
        missing = [part for part in ("clip", "set_epoch", *SHARED) if not hasattr(source, part)]
        if missing:
            raise TypeError(
                f"sources[{name!r}] must be a data set of clips, such as SyntheticHeLaVideos or "
                f"CTCVideos; {type(source).__name__} has no {missing[0]!r}"
            )
    first, *others = sources
    for part in SHARED:
        wanted = getattr(sources[first], part)
        for other in others:
            got = getattr(sources[other], part)
            if got != wanted:
                raise ValueError(
                    f"sources must have the same {part}: sources[{first!r}] has {wanted}, "
                    f"sources[{other!r}] has {got}; make both with the same {part}"
                )
    return dict(sources)


def _check_weights(
    weights: Mapping[str, float] | None, sources: Mapping[str, ClipSource]
) -> dict[str, float]:
    if weights is None:
        weights = dict.fromkeys(sources, 1.0)
    if set(weights) != set(sources):
        raise ValueError(
            f"weights must have the names of the sources, {sorted(sources)}, got {sorted(weights)}"
        )
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise TypeError(f"weights[{name!r}] must be a number, got {weight!r}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weights[{name!r}] must be finite and at least 0, got {weight}")
    total = math.fsum(weights.values())
    if total <= 0:
        raise ValueError("weights must not all be 0; give at least one source a weight above 0")
    return {name: weights[name] / total for name in sources}
