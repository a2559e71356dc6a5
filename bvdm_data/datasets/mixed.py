"""MixedVideos: clips of several sources, for example real and synthetic, in one stream."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor

from bvdm_data.clip import CameraScale, Clip
from bvdm_data.datasets.ctc_videos import CTCVideos
from bvdm_data.datasets.description import Described
from bvdm_data.datasets.mixture import (
    AT_END,
    BLOCK,
    ORDERS,
    BatchedSplit,
    QuotaOrder,
    Schedule,
    ScheduledOrder,
    SourceOrder,
    WeightedOrder,
    Weights,
    check_quotas,
)
from bvdm_data.datasets.sharding import SampleSplit
from bvdm_data.datasets.sources import SHARED, ClipSource, ClipSpec, MapStyle, check_compatible
from bvdm_data.datasets.stream import ClipStream
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.system import isolate
from bvdm_data.validate import as_number

__all__ = ["BLOCK", "SHARED", "ClipSource", "MapStyle", "MixedClip", "MixedVideos", "Schedule"]


class MixedClip(Clip):
    """A clip of a mix."""

    member: Tensor  # which source it is from, int64 scalar; list(mix.sources)[member] is its name


class MixedVideos(ClipStream):
    """Clips of several sources in one stream: each as often as its weight or its quota says.

    The source of clip ``i`` is a function of (seed, epoch, i) and the arguments alone, and the k-th
    pick of a source is its clip k, so that no clip of a source is skipped or repeated. A clip thus
    depends on neither ranks, workers nor order; the mix is split over them and resumed (see
    :class:`ClipStream`), never its sources.

    With ``weights``, sources are drawn at random; with weights that do not change, every 1,024
    clips hold each source as often as its weight says, up to rounding. With ``quotas``, every batch
    has exactly that many clips of each, in every worker and on every rank: workers make whole
    batches, and ranks share out whole batches. The loader's ``batch_size`` must be the sum of the
    quotas, or a multiple of it that is also given to the mix.

    Sources may be ``SyntheticHeLaVideos``, ``CTCVideos``, other mixes, anything else with
    ``clip(index)``, and map-style data sets or lists of clips, whose items must be functions of
    their index. An iterable data set without ``clip(index)`` is refused: no clip of it could be
    made again, and no loop resumed. Give it that method, or keep its first clips in a list.

    Any clip, and the place of a resume, is found at once, except with a schedule: it is called for
    every clip ahead of the one asked for, once in each process and epoch.

    ``at_end`` says what happens where a source has given all clips of its epoch:

    - ``"restart"``: a data set with ``clip(index)`` continues its endless series, with new windows
      or new nuclei; a map-style one starts again.
    - ``"stop"``: the epoch of the mix ends with the last clip, or batch of quotas, ahead of that.
    - ``"drop"``: the others carry on without it, and the epoch ends with the last of them.

    Attributes:
        sources, quotas, order, at_end, shuffle, length, seed, batch_size: As given.
        weights: How often each source is picked, as fractions of 1, or the schedule.
        frames, size, annotations, max_cells, scale: Those of all sources; ``max_cells`` is that of
            the source with the most rows, whose number the tables of others are padded to, and None
            without tables, ``scale`` where no source has one.
        form: Type, shape and device of each key of a clip.
        shard: Number of this rank, and of all ranks.
        epoch: Number of the epoch, 0 at first.

    Examples:
        A training on batches of one real clip and three synthetic ones::

            mix = MixedVideos(
                {"real": real, "synthetic": synthetic}, quotas={"real": 1, "synthetic": 3}
            )
            loader = DataLoader(mix, batch_size=4, num_workers=2)

        From synthetic clips to real ones within the first 10,000 clips::

            def weights(epoch, index):
                real = min(index / 10_000, 1)
                return {"real": real, "synthetic": 1 - real}

            MixedVideos({"real": real, "synthetic": synthetic}, weights=weights)
    """

    _ALWAYS = ("sources",)

    def __init__(
        self,
        sources: Mapping[str, ClipSource | MapStyle],
        *,
        weights: Mapping[str, float] | Schedule | None = None,
        quotas: Mapping[str, int] | None = None,
        order: str = "shuffled",
        at_end: str = "restart",
        shuffle: bool = False,
        length: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        shard: Sequence[int] | None = None,
    ) -> None:
        """Mix the sources.

        Args:
            sources: Data sets of clips by name; all of the same keys, types, frames, size
                and scale, as far as these are known. A clip without ``source`` counts as
                real. The mix sets their epoch.
            weights: How often each source is picked, relative to the others, under the same
                names; None: all equally often. Or a schedule: a function of the epoch and of the
                clip's number in it (below ``length``; over all ranks) that returns such weights.
                It must return the same for the same numbers; for workers that are not forked it
                must be defined at the top of a module.
            quotas: Clips of each source in every batch, in place of weights.
            order: Of a batch of quotas: ``"shuffled"``, anew for every batch, or ``"fixed"``, that
                of the sources.
            at_end: ``"restart"``, ``"stop"`` or ``"drop"``; a schedule needs a length for the
                latter two, and quotas cannot hold with ``"drop"``.
            shuffle: Show the clips of sources that end in another order in every pass over them,
                a function of (seed, epoch, name, pass). For sources of at most 1,000,000 clips.
            length: Most clips an epoch, of all ranks together; None: an endless stream, unless
                ``at_end`` ends it. With quotas, in whole batches.
            seed: Seed of the draws; the sources keep their own seeds.
            batch_size: The loader's (1 for a loader with ``batch_size=None``), so that its
                batches are the same for any number of workers. None: with quotas, their sum;
                else not known, then each worker makes every n-th clip.
            shard: Number of this rank from 0, and of all ranks. None: those of the distributed
                job; see :class:`ClipStream`.

        Raises:
            TypeError: If a source is no data set of clips, or an argument is of the wrong type.
            ValueError: If there is no source, one is empty, two differ in what their clips hold,
                names are missing or unknown, or an argument is out of its range or cannot be
                together with another.
        """
        super().__init__(length=length, seed=seed, batch_size=batch_size, shard=shard)
        self._members, common = check_compatible(sources)
        self.sources = dict(sources)
        self.form = cast(ClipSpec, self._members[0].spec)
        self.frames: int = common["frames"]
        self.size: tuple[int, int] = common["size"]
        self.annotations: tuple[str, ...] = common["annotations"]
        self.max_cells: int | None = common["max_cells"]
        self.scale: CameraScale | None = common["scale"]
        self.at_end = _check_choice("at_end", at_end, AT_END)
        self.order = _check_choice("order", order, ORDERS)
        if not isinstance(shuffle, bool):
            raise TypeError(f"shuffle must be True or False, got {shuffle!r}")
        self.shuffle = shuffle
        self.quotas = None if quotas is None else check_quotas(quotas, sources)
        if self.quotas is not None and weights is not None:
            raise ValueError("weights must be None where quotas are given; leave out one of them")
        self._weights = Weights(self.quotas if weights is None else weights, sources)
        self._order: tuple[int, SourceOrder] | None = None
        self._check_combination()
        self.set_epoch(self.epoch)
        for member in self._members if self.shuffle else ():
            member.shuffle(0, seed=self.seed, epoch=self.epoch)

    @property
    def weights(self) -> Mapping[str, float] | Schedule:
        """How often each source is picked, as fractions of 1, or the schedule."""
        return self._weights.given

    def clip(self, index: SupportsIndex) -> MixedClip:
        """Return clip ``index`` of the mix.

        Args:
            index: From 0; ``length`` ends the iteration, it is no limit here.

        Returns:
            A clip of one of the sources; its ``index`` counts in the mix, its ``member`` is the
            position of the source among ``sources``.

        Raises:
            Exception: What the source raises; the message names the clip and the source.
            IndexError: If index is negative, or all sources have ended ahead of it.
            TypeError: If index is not a whole number.
            ValueError: If the clip does not fit into a batch with the others.
        """
        number = as_number(index)
        with isolate():
            place, own = self._find_order(self.epoch).locate(number)
            member = self._members[place]
            if self.shuffle:
                own = member.shuffle(own, seed=self.seed, epoch=self.epoch)
            numbers = {"index": torch.tensor(number), "member": torch.tensor(place)}
        clip = member.make_clip(own, number=number, epoch=self.epoch) | numbers
        return cast(MixedClip, clip)

    def set_epoch(self, epoch: SupportsIndex) -> None:
        """Set the number of the epoch, also of the sources.

        Args:
            epoch: 0 or more.

        Raises:
            TypeError: If epoch is not a whole number.
            ValueError: If epoch is negative.
        """
        super().set_epoch(epoch)
        for member in self._members:
            member.set_epoch(self.epoch)

    def length_in(self, epoch: int) -> int | None:
        """Return the clips of an epoch, of all ranks together.

        Args:
            epoch: Number of the epoch; where ``at_end`` ends it, this depends on the draws.

        Returns:
            Their number, or None without end.
        """
        return self._find_order(epoch).end

    def __len__(self) -> int:
        """Return the clips of the epoch that this rank gets."""
        clips = self._split_batches(self._full_pass()).len_of_rank
        return super().__len__() if clips is None else clips

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be computed again."""
        return {**super().__getstate__(), "_order": None}

    def _list_arguments(self) -> dict[str, Any]:
        given = super()._list_arguments()
        return given | ({"weights": None} if self.quotas else {})

    def _is_quick(self) -> bool:
        sources = [one for one in self.sources.values() if isinstance(one, Described)]
        return all(one._is_quick() for one in sources) and super()._is_quick()

    def _find_order(self, epoch: int) -> SourceOrder:
        """Return which clips those of an epoch are; the latest order is kept."""
        if self._order is None or self._order[0] != epoch:
            how: dict[str, Any] = {"lengths": [one.get_length(epoch) for one in self._members]}
            how |= {"at_end": self.at_end, "length": self.length, "seed": self.seed, "epoch": epoch}
            order: SourceOrder
            if self.quotas is not None:
                order = QuotaOrder(quotas=list(self.quotas.values()), order=self.order, **how)
            elif self._weights.is_schedule:
                order = ScheduledOrder(weights=self._weights, **how)
            else:
                order = WeightedOrder(weights=self._weights.get(epoch, 0), **how)
            self._order = (epoch, order)
        return self._order[1]

    @property
    def _group_size(self) -> int:
        return 1 if self.quotas is None else sum(self.quotas.values())

    def _next_pass(self) -> SampleSplit:
        return self._split_batches(super()._next_pass())

    def _split_batches(self, split: SampleSplit) -> BatchedSplit:
        changes = {"length": self.length_in(split.epoch), "group_size": self._group_size}
        return BatchedSplit(**{**asdict(split), **changes})

    def _list_settings(self) -> dict[str, str]:
        settings = {
            name: str(getattr(self, name)) for name in ("quotas", "order", "at_end", "shuffle")
        }
        settings["weights"] = "a function" if self._weights.is_schedule else str(self.weights)
        for member in self._members:
            settings |= member.list_settings()
            if self.shuffle or self.at_end != "restart" or not hasattr(member.source, "clip"):
                settings[f"{member.name}.length"] = str(member.get_length(0))
        return settings

    def _check_state(self, state: Mapping[str, Any]) -> dict[str, int]:
        checked = super()._check_state(state)
        end = self.length_in(checked["epoch"])
        if end is not None and checked["start"] > end:
            raise ValueError(
                f"state_dict must start within the {end} clips of epoch {checked['epoch']}, got "
                f"start={checked['start']}; is it from a mix of the same sources?"
            )
        if checked["start"] % self._group_size:
            raise ValueError(
                f"state_dict must start with a whole batch of quotas={self.quotas}, got start="
                f"{checked['start']}; is it from a mix with the same quotas?"
            )
        return checked

    def _check_combination(self) -> None:
        """Check what only holds or fails for several arguments together."""
        if self.quotas is None:
            if self.order != "shuffled":
                raise ValueError(f"order must be left out without quotas, got {self.order!r}")
            if self._weights.is_schedule and self.at_end != "restart" and self.length is None:
                raise ValueError(
                    f"length must be given with at_end={self.at_end!r} and weights that are a "
                    "function: when a source ends, if ever, can only be found by trying"
                )
            return
        total = self._group_size
        if self.at_end == "drop":
            raise ValueError(
                "at_end must be 'restart' or 'stop' with quotas, got 'drop': without one of the "
                "sources they cannot hold"
            )
        self.batch_size = self.batch_size or total
        for name, number in (("batch_size", self.batch_size), ("length", self.length)):
            if number is not None and number % total:
                raise ValueError(
                    f"{name} must be a multiple of {total}, the sum of the quotas, got {number}; "
                    f"give {max(number // total, 1) * total}"
                )
        if self.length_in(self.epoch) == 0:
            raise ValueError(
                f"quotas must not be above the clips of a source with at_end='stop', got "
                f"{self.quotas}; give smaller quotas, or at_end='restart'"
            )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


TWIN_WEIGHTS = {"real": 1, "synthetic": 3}  # how often each is shown by default (our choice)


def twin(
    real: CTCVideos,
    *,
    model: str | Path = "hela",
    synthetic: Mapping[str, Any] | None = None,
    seed: int = 0,
    **mix: Any,
) -> MixedVideos:
    """Mix a real video with synthetic clips of the model that was fitted to it.

    Frames, size, annotations, transform and, where it is a number, outline of the synthetic clips
    are those of the real ones. ``variation`` in ``synthetic`` says how far their look may differ
    from the video.

    Args:
        real: The real video.
        model: A name that ships with the package, or the path of a file made by
            ``bvdm-data fit`` from that video.
        synthetic: Other arguments of ``SyntheticHeLaVideos``.
        seed: Seed of the draws and of the synthetic clips.
        **mix: Other arguments of ``MixedVideos``. Without weights or quotas, one clip in four is
            real.

    Returns:
        The mix of ``"real"`` and ``"synthetic"``.

    Raises:
        FileNotFoundError: If there is no such model.
        TypeError: If real is no CTCVideos, or an argument is unknown or of the wrong type.
        ValueError: If the model is on another scale than the real video, the video's stride is not
            1, synthetic has an argument of twin or of the real video, or an argument is refused.

    Examples:
        One line for a training on both::

            mix = twin(CTCVideos("Fluo-N2DL-HeLa", sequence="01"), batch_size=4)
    """
    if not isinstance(real, CTCVideos):
        raise TypeError(f"real must be a CTCVideos, got {type(real).__name__}")
    if real.stride != 1:
        raise ValueError(
            f"real must have stride=1, got stride={real.stride}: synthetic nuclei move as between "
            "neighbouring frames of the video. To mix such clips all the same, use MixedVideos"
        )
    shared: dict[str, Any] = {
        name: getattr(real, name) for name in ("frames", "size", "annotations")
    }
    own: dict[str, Any] = {"transform": real.transform, "seed": seed}
    own |= {} if real.outline is None else {"outline": real.outline}
    own |= synthetic or {}
    for name in sorted(own.keys() & {*shared, "model"}):
        where = "is an argument of twin" if name == "model" else "is taken from the real video"
        raise ValueError(f"synthetic must be without {name!r}, which {where}")
    videos = SyntheticHeLaVideos(model=model, **shared, **own)
    if videos.scale != real.scale:
        raise ValueError(
            f"model must have the scale of the real video, {real.scale}, got {videos.scale} of "
            f"{videos.model}; fit a model to the video with 'bvdm-data fit', or, where counts mean "
            "the same, give CTCVideos(..., scale=...) the scale of the model"
        )
    if mix.get("weights") is None and mix.get("quotas") is None:
        mix["weights"] = TWIN_WEIGHTS
    return MixedVideos({"real": real, "synthetic": videos}, seed=seed, **mix)
