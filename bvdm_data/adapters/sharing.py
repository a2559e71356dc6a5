"""Clips of lists and map-style data sets, shared out over ranks and workers."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from bvdm_data.clip import Clip
from bvdm_data.datasets.mixing_members import MapStyle
from bvdm_data.datasets.shards import FoundShard, Share

Clips = Iterable[Clip] | MapStyle
"""A stream of clips, or a map-style data set or a list of them."""


class SharedClips:
    """Clips of which each process makes its own.

    An iterable data set knows which of its clips are whose, and is left to it. Of a list and of a
    map-style data set every process has all; here each gets those that it would get of a
    :class:`ClipStream` as long: rank ``r`` of ``R`` every R-th one, from the r-th on, all ranks
    equally many; worker ``w`` of ``n`` every n-th one of its rank.

    Args:
        clips: The data set.

    Raises:
        TypeError: If it is none, or a single clip.
    """

    def __init__(self, clips: Clips) -> None:
        """Check the argument; see the class."""
        self._is_map_style = not isinstance(clips, IterableDataset) and all(
            hasattr(clips, name) for name in ("__len__", "__getitem__")
        )
        is_data_set = self._is_map_style or isinstance(clips, Iterable)
        if isinstance(clips, type | str | Mapping) or not is_data_set:
            raise TypeError(
                "clips must be a data set or a list of clips, got "
                f"{clips if isinstance(clips, type) else type(clips).__name__}; write [clip] for "
                "one clip"
            )
        self._clips: Any = clips
        self._shard = FoundShard(None)

    def __iter__(self) -> Iterator[Clip]:
        """Yield the clips of this process."""
        if not self._is_map_style:
            yield from self._clips
            return
        rank, ranks = self._shard.find()
        worker = get_worker_info()
        share = Share(
            epoch=0,
            length=len(self._clips),
            batch_size=1,
            rank=rank,
            ranks=ranks,
            worker=worker.id if worker else 0,
            workers=worker.num_workers if worker else 1,
        )
        for (number,) in share.runs():
            yield self._clips[number]
