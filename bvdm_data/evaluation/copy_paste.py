"""CopyPaste: clips of one frame, real nuclei pasted on real background; the generator's rival."""

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from bvdm_data.camera_scale import CameraScale
from bvdm_data.clip import DEFAULT_MAX_CELLS, Clip, annotated, unbroken_tracks
from bvdm_data.datasets.arguments import (
    check_length,
    check_max_cells,
    check_place,
    check_scale,
    check_seed,
    check_size,
    check_whole_number,
)
from bvdm_data.datasets.ctc import CTCSequence, guess_scale, read_sequence
from bvdm_data.evaluation.pasting import (
    ISOLATION,
    MARGIN,
    TRIES,
    Background,
    Grey,
    Nucleus,
    changed,
    enlarged,
    fill_holes,
    has_room,
    isolated_nuclei,
    overlap,
    split_background,
)
from bvdm_data.randomness import numpy_stream

NUCLEI = (43.0, 250.0)
"""Nuclei per ``FRAME_AREA`` between which the density is drawn: the first frame
of video 01 has the fewest."""

FRAME_AREA = 700 * 1100
"""Pixels of a frame of Fluo-N2DL-HeLa, which ``nuclei`` are counted on."""

CACHE_BYTES = 288 * 2**20
"""Decoded backgrounds that a process keeps, as in ``CTCVideos``."""


class CopyPaste(Dataset[Clip]):
    """Isolated nuclei of a real video, pasted on its empty background: no network, no time.

    Each clip has one frame. Its background is a random window of a real frame, in which the
    surroundings of all nuclei are filled with the noise of empty places of the same frame.
    Nuclei, drawn evenly from all isolated ones, are turned by any angle (cubic spline), mirrored
    or not, made brighter or darker (see ``BRIGHTNESS``), and their light, with a rim of 3 px, is
    added. Where masks overlap, the later one is on top. Ids count from 1.

    Clip ``i`` is a pure function of the files, the arguments, the seed and ``i``. No other
    sequence, and no frame from ``stop`` on, is opened.

    Args:
        root: Folder of the data set, for example ``Fluo-N2DL-HeLa``.
        sequence: Name of the video, for example ``"01"``.
        frames: Frames of a clip; must be 1.
        size: Height and width of a clip in pixels; one number makes a square.
        seed: Seed of the clips.
        stop: Number after that of the last frame used; None: to the end.
        nuclei: Fewest and most nuclei per 700 x 1100 px; every clip draws its density evenly
            between them. None: ``NUCLEI``.
        scale: How counts become grey values. None: guessed from the frames in use.
        border: Width in pixels of the band at the edge of the frame that is left out.
        length: Clips an epoch. None: as many as hold the pixels of the field of interest once.
        max_cells: Rows of ``tracks``.

    Attributes:
        source: The video, without the frames from ``stop`` on.
        size: Height and width of a clip in pixels.
        seed: Seed of the clips.
        nuclei: Fewest and most nuclei per 700 x 1100 px.
        scale: How counts become grey values.
        border: Width in pixels of the band that is left out.
        length: Clips an epoch.
        max_cells: Rows of ``tracks``.
        library: The isolated nuclei, in the order of frames and ids.

    Raises:
        FileNotFoundError: If the folder, the video or its truth is missing.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range, or no nucleus is isolated.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        sequence: str = "01",
        frames: int = 1,
        size: int | Sequence[int] = (256, 256),
        seed: int = 0,
        stop: int | None = None,
        nuclei: tuple[float, float] | None = None,
        scale: CameraScale | None = None,
        border: int = 25,
        length: int | None = None,
        max_cells: int = DEFAULT_MAX_CELLS,
    ) -> None:
        """Check the arguments and cut out the nuclei; see the class."""
        if check_whole_number("frames", frames) != 1:
            raise ValueError(f"frames must be 1: copy-paste makes no video, got {frames}")
        self.size = check_size(size)
        self.seed = check_seed(seed)
        self.nuclei = _check_nuclei(nuclei)
        self.border = check_whole_number("border", border, 0)
        self.max_cells = check_max_cells(max_cells)
        whole = read_sequence(Path(root).expanduser().absolute(), sequence)
        self.source = _before(whole, stop)
        self._field = _field(self.source.shape, self.border, self.size)
        self.scale = check_scale(scale) or guess_scale(self.source)
        once = len(self.source) * math.prod(self._field) / math.prod(self.size)
        self.length = check_length(length) or math.ceil(once)
        self._cache: OrderedDict[int, Background] = OrderedDict()
        self.library: tuple[Nucleus, ...] = tuple(self._build())
        if not self.library:
            raise ValueError(
                f"sequence {sequence!r} of {root} must have a nucleus {ISOLATION} px off all "
                f"others and {self.border} px off the edge, got none in {len(self.source)} frames"
            )

    def __len__(self) -> int:
        """Return the number of clips an epoch."""
        return self.length

    def __getitem__(self, index: SupportsIndex) -> Clip:
        """Return a clip; from ``-len`` to -1 counts from the end.

        Raises:
            IndexError: If index is past the end.
        """
        return self.clip(check_place(index, self.length))

    def clip(self, index: SupportsIndex) -> Clip:
        """Return clip ``index`` of an endless series.

        Args:
            index: 0 or more.

        Returns:
            ``video`` ``[1, 1, H, W]``, ``masks`` ``[1, H, W]``, ``tracks`` ``[max_cells, 4]``,
            ``index`` and ``source`` (1); see :class:`bvdm_data.clip.Clip`.

        Raises:
            IndexError: If index is negative.
            TooManyNucleiError: If there are more than max_cells nuclei in it.
        """
        number = check_whole_number("index", index)
        if number < 0:
            raise IndexError(f"index must be 0 or more, got {number}")
        random = numpy_stream(self.seed, "copy-paste", number)
        light, labels = self._nuclei(random)
        grey = (self._empty_tile(random) + light)[None, None]
        camera = self.scale.to_grey(self.scale.to_counts(grey))
        masks, table, _ = unbroken_tracks(labels[None], {})
        found: dict[str, Any] = {"video": torch.from_numpy(camera)}
        found |= annotated(masks, table, ("masks", "tracks"), self.max_cells)
        found["index"] = torch.tensor(number)
        found["source"] = torch.tensor(1, dtype=torch.int8)
        return cast(Clip, found)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded backgrounds out of a pickle."""
        return {**self.__dict__, "_cache": OrderedDict()}

    def _build(self) -> Iterator[Nucleus]:
        """Cut out the isolated nuclei of all frames; the backgrounds are kept on the way."""
        for number in self.source.numbers:
            grey, masks = self._read(number)
            if masks.any():
                light = self._keep(number, split_background(grey, masks))
                yield from isolated_nuclei(grey - light, masks, self.border)

    def _read(self, number: int) -> tuple[Grey, npt.NDArray[np.int32]]:
        grey, masks = self.scale.to_grey(self.source.frame(number)), self.source.masks(number)
        return grey, np.zeros(grey.shape, np.int32) if masks is None else masks

    def _keep(self, number: int, found: tuple[Grey, Grey, Grey]) -> Grey:
        grid, light, rest = found
        band = slice(self.border, -self.border or None)
        kept = Background(grid, rest[band, band].astype(np.float16))
        room = CACHE_BYTES // (kept.light.nbytes + kept.rest.nbytes)
        while self._cache and len(self._cache) >= max(room, 1):
            self._cache.popitem(last=False)
        self._cache[number] = kept
        return light

    def _empty_tile(self, random: np.random.Generator) -> Grey:
        """Return a window of the video as if it had no nuclei, ``size``."""
        with_masks = [n for n in self.source.numbers if n in self.source.mask_names]
        number = with_masks[random.integers(len(with_masks))]
        if number not in self._cache:
            self._keep(number, split_background(*self._read(number)))
        self._cache.move_to_end(number)
        grid, rest = self._cache[number]
        top, left = (
            int(random.integers(f - s + 1)) for f, s in zip(self._field, self.size, strict=True)
        )
        down, right = self.border + top, self.border + left
        light = enlarged(grid)[down : down + self.size[0], right : right + self.size[1]]
        return light + fill_holes(rest, (top, left), self.size, random)

    def _nuclei(self, random: np.random.Generator) -> tuple[Grey, npt.NDArray[np.int32]]:
        """Return the light and the labels of the pasted nuclei, ``size``."""
        wide = tuple(side + 2 * MARGIN for side in self.size)
        light, labels = np.zeros(wide, np.float32), np.zeros(wide, np.int32)
        tile = (slice(MARGIN, -MARGIN),) * 2
        density = random.uniform(*self.nuclei) / FRAME_AREA
        wanted = density * math.prod(wide)
        areas = [0]
        for _ in range(math.floor(wanted + random.random())):
            one = self.library[random.integers(len(self.library))]
            shine, mask = changed(one, random)
            for _ in range(TRIES):
                place = tuple(int(random.integers(side)) for side in wide)
                here, part = overlap(place, mask.shape, wide)
                if has_room(labels, here, mask[part], areas):
                    light[here] += shine[part]
                    labels[here][mask[part]] = len(areas)
                    areas.append(int(mask[part].sum()))
                    break
        return light[tile], labels[tile]


def _check_nuclei(nuclei: tuple[float, float] | None) -> tuple[float, float]:
    try:
        low, high = (float(one) for one in (NUCLEI if nuclei is None else nuclei))
    except (TypeError, ValueError):
        raise TypeError(
            f"nuclei must be a pair, the fewest and the most per 700 x 1100 px, got {nuclei!r}"
        ) from None
    if not 0 <= low <= high < math.inf:
        raise ValueError(
            f"nuclei must be the fewest and the most per 700 x 1100 px, 0 <= fewest <= most, got "
            f"{nuclei}"
        )
    return low, high


def _before(source: CTCSequence, stop: int | None) -> CTCSequence:
    """Cut the video, so that frames from stop on cannot be read."""
    if stop is None:
        return source
    check_whole_number("stop", stop, least=1)
    numbers = tuple(n for n in source.numbers if n < stop)
    if not numbers:
        raise ValueError(f"stop must be above the first frame, {source.numbers[0]}, got {stop}")
    frames, masks, markers = (
        {number: name for number, name in names.items() if number < stop}
        for names in (source.frame_names, source.mask_names, source.marker_names)
    )
    return dataclasses.replace(
        source, numbers=numbers, frame_names=frames, mask_names=masks, marker_names=markers
    )


def _field(shape: tuple[int, int], border: int, size: tuple[int, int]) -> tuple[int, int]:
    field = (shape[0] - 2 * border, shape[1] - 2 * border)
    if size[0] > field[0] or size[1] > field[1]:
        raise ValueError(
            f"size must fit into the field of interest of {field} pixels (frames of {shape} less a "
            f"border of {border} on each side), got {size}; give a smaller size or border"
        )
    return field
