"""Sheets: batches of clips of the fast method ahead of their light, and who paints them."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from bvdm_data.datasets.failures import naming, naming_clip
from bvdm_data.datasets.stream import _BY_WORKERS, _LOADS
from bvdm_data.datasets.synthetic import SyntheticHeLaVideos
from bvdm_data.datasets.transform import wanted_with
from bvdm_data.synth.device import DevicePainter, Films, gather, pictures_at_once
from bvdm_data.synth.fast import FastSettings
from bvdm_data.synth.parts import part
from bvdm_data.synth.plan import make_plan
from bvdm_data.synth.pool import Pool
from bvdm_data.synth.sketch import Sketch, packed, painted, sketched, unpacked
from bvdm_data.synth.synthesis import annotations_of, one_thread
from bvdm_data.weights import load

Planned = tuple[dict[str, Tensor], Sketch]
"""A clip without its video, and what that is painted from."""


class Plans(SyntheticHeLaVideos):
    """The stream of a data set, with plans in the place of clips.

    Epoch, ranks and workers are those of the data set, and what is loaded into it is loaded here.

    Args:
        videos: Clips of the fast method.
    """

    def __init__(self, videos: SyntheticHeLaVideos) -> None:
        """Share everything but the pool, which belongs to one thread."""
        self.__dict__.update(videos.__dict__)
        self._pass = self._loaded = None
        self._videos = videos
        self._wanted = wanted_with(videos.annotations, videos.transform)
        # It stays in the main process, and may not be one that can be sent.
        self.transform = None
        self._pool = None if self.pool is None else Pool(self.pool, self.seed)

    def clips(self, indices: Sequence[int]) -> Iterable[Planned]:  # type: ignore[override]
        """Return the plans of several clips of the epoch, in their order.

        Args:
            indices: Their numbers.
        """
        return map(self.planned, indices)

    def planned(self, number: int) -> Planned:
        """Return the plan of one clip.

        Args:
            number: 0 or more.

        Raises:
            Exception: As :meth:`SyntheticHeLaVideos.clip`.
        """
        with (
            naming_clip(f"SyntheticHeLaVideos(seed={self.seed})", self.epoch, number),
            one_thread(),
        ):
            generator, place, method = load(self.model), self._place(number), self.method
            if not isinstance(method, FastSettings):
                raise TypeError(f"method must be FastSettings, got {method!r}")
            plan = make_plan(generator, self._scene(self._wanted), method, **place)
            sketch = sketched(generator, plan, method, self.size, place["seed"], place["name"])
            with part("annotations"):
                clip = annotations_of(plan, self._wanted, self.max_cells)
        clip["index"] = torch.tensor(number)
        clip["source"] = torch.tensor(1, dtype=torch.int8)
        return clip, sketch

    def __getstate__(self) -> dict[str, Any]:
        """Leave the transform behind."""
        videos = copy.copy(self._videos)
        videos.transform = None
        return {**super().__getstate__(), "_videos": videos}

    @property
    def starts(self) -> int:
        """How often a state was loaded or an epoch begun."""
        return self._shared[_LOADS]

    @property
    def _loads_used(self) -> int:
        # Whether this stream or that of the data set has gone on where a state was is all one.
        return self._videos._loads_used

    @_loads_used.setter
    def _loads_used(self, number: int) -> None:
        self._videos._loads_used = number

    def _begin(self) -> Any:
        begun = super()._begin()
        # Ahead of the loop, as workers are.
        self._shared[_BY_WORKERS] = 1
        return begun


@dataclass(frozen=True)
class Sheet:
    """A batch of clips ahead of its light.

    Attributes:
        clips: What is known of them, collated.
        epoch: Of the clips.
        films: For a device; or, packed, for the CPU.
    """

    clips: dict[str, Tensor]
    epoch: int
    films: Films | Tensor

    def pin_memory(self) -> "Sheet":
        """Return the batch in pinned memory."""
        clips = {key: value.pin_memory() for key, value in self.clips.items()}
        return replace(self, clips=clips, films=self.films.pin_memory())


@dataclass(frozen=True)
class Collate:
    """Makes a sheet of plans, in the process that has drawn them.

    Attributes:
        together: Whether a device will paint all films at once.
    """

    together: bool

    def __call__(self, plans: Sequence[Planned] | Planned) -> Sheet:
        """Return a sheet; of a single plan where it is not in a list."""
        batch: Sequence[Planned] = [plans] if isinstance(plans, tuple) else plans
        sketches = [sketch for _, sketch in batch]
        films = gather(sketches) if self.together else packed(sketches)
        return Sheet(default_collate([clip for clip, _ in batch]), int(sketches[0].name[1]), films)


class SheetPainter(Protocol):
    """Paints sheets."""

    def __call__(self, sheet: Sheet) -> dict[str, Tensor]:
        """Return the batch, with its videos, where it is painted."""


class OneByOne:
    """Paints on the CPU, clip by clip, to the same bytes as :meth:`SyntheticHeLaVideos.clip`.

    Args:
        videos: Whose clips they are.
        method: How nuclei are painted.
    """

    def __init__(self, videos: SyntheticHeLaVideos, method: FastSettings) -> None:
        """Load the model."""
        self.videos = videos
        self.method = method
        self.generator = load(videos.model)
        self.pool = None if videos.pool is None else Pool(videos.pool, videos.seed)

    def __call__(self, sheet: Sheet) -> dict[str, Tensor]:
        """Return the batch, with its videos.

        Args:
            sheet: Of packed films.
        """
        if not isinstance(sheet.films, Tensor):
            raise TypeError("sheet must hold packed films")
        name = f"SyntheticHeLaVideos(seed={self.videos.seed})"
        painting = []
        for sketch, number in zip(unpacked(sheet.films), sheet.clips["index"], strict=True):
            with naming_clip(name, sheet.epoch, int(number)), one_thread():
                whole = sketch.attached(self.pool, self.generator)
                painting.append(torch.from_numpy(painted(whole, self.generator, self.method)))
        return {"video": torch.stack(painting)[:, :, None], **sheet.clips}


class Together:
    """Paints on a device, all clips of a batch at once.

    Args:
        videos: Whose clips they are.
        method: How nuclei are painted.
        device: Where.
        pictures: How many go through the network together; None: as the free memory allows.
    """

    def __init__(
        self,
        videos: SyntheticHeLaVideos,
        method: FastSettings,
        device: torch.device,
        pictures: int | None,
    ) -> None:
        """Bring the networks to the device."""
        self.videos = videos
        self.device = device
        self.painter = DevicePainter(
            load(videos.model), method, videos.frames, videos.size, device,
            pictures=pictures or pictures_at_once(device),
            pool=None if videos.pool is None else Pool(videos.pool, videos.seed),
        )  # fmt: skip

    def __call__(self, sheet: Sheet) -> dict[str, Tensor]:
        """Return the batch, with its videos, on the device.

        Args:
            sheet: Of gathered films.
        """
        if not isinstance(sheet.films, Films):
            raise TypeError("sheet must hold gathered films")
        with naming(_place(self.videos, sheet)):
            video = self.painter.paint(sheet.films)
            rest = {
                key: value.to(self.device, non_blocking=True) for key, value in sheet.clips.items()
            }
        return {"video": video, **rest}


def _place(videos: SyntheticHeLaVideos, sheet: Sheet) -> str:
    # On the CPU still: nothing waits for a device.
    numbers = sheet.clips["index"].tolist()
    return (
        f"It is in the batch of the clips {', '.join(map(str, numbers))} of epoch {sheet.epoch} of "
        f"SyntheticHeLaVideos(seed={videos.seed}); to make them one by one: "
        f"videos.set_epoch({sheet.epoch}); videos.clip({numbers[0]}), ..."
    )
