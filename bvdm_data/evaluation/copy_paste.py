"""Clips of one frame: real nuclei pasted on real background, to compare the generator with."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.stats import median_abs_deviation

from bvdm_data.background import estimate_background, mask_background
from bvdm_data.clip import CameraScale, Clip, annotate_masks, split_gaps
from bvdm_data.datasets.ctc import guess_scale, read_sequence
from bvdm_data.datasets.windows import find_field
from bvdm_data.rng import numpy_rng
from bvdm_data.validate import as_number

ISOLATION = 6  # A nucleus is used where no other label is nearer than this, px (our choice)
HALO = 3  # width of the rim of light that is pasted with a nucleus, px (our choice)
# Factors between which the light of a nucleus is changed, evenly in the logarithm (our choice).
BRIGHTNESS = (0.7, 1.4)
MOST_COVERED = 0.2  # largest part of a nucleus that may lie over, or under, others (our choice)
# A nucleus that would show fewer pixels than this, and more than none, is put elsewhere.
LEAST_VISIBLE = 30
MARGIN = 32  # how far outside of the tile nuclei may have their centre, px
TRIES = 20  # how often a place for a nucleus, or a patch for a hole, is looked for
# Nuclei per FRAME_AREA between which the density is drawn; the first frame of video 01 has fewest.
NUCLEI = (43.0, 250.0)
FRAME_AREA = 700 * 1100  # pixels of a frame of Fluo-N2DL-HeLa, which nuclei are counted on
CACHE_BYTES = 288 * 2**20  # decoded backgrounds that a process keeps, as in CTCVideos

Grey = npt.NDArray[np.float32]  # grey values, or differences of them
Half = npt.NDArray[np.float16]  # the same, kept in half the memory
Bool = npt.NDArray[np.bool_]
Masks = npt.NDArray[np.int32]
Slices = tuple[slice, ...]


class Background(NamedTuple):
    """A frame without its nuclei, within the border."""

    light: Half  # smooth background light, [H, W]
    rest: Half  # the frame less that light; NaN where a nucleus is near, [H, W]


@dataclass(frozen=True, eq=False)
class Nucleus:
    """One isolated nucleus, cut out with 6 px around its box."""

    light: Half  # grey values less the background light, [h, w] float16
    mask: Bool  # its pixels, [h, w] bool


def split_background(grey: Grey, masks: Masks) -> tuple[Grey, Grey]:
    """Return the background light, and the frame less it where neither nucleus nor glow is.

    What is bright once noise is smoothed away (above 5 standard deviations of the frame after a
    Gaussian of 2 px; our choice) is a nucleus, labelled or not, and so is a rim of 4 px; NaN there.
    """
    free = mask_background(grey, masks)
    light = estimate_background(grey, masks)
    smooth = ndimage.gaussian_filter(grey - light, 2)
    spread = float(median_abs_deviation(smooth[free], scale="normal")) if free.any() else 0.0
    bright = ndimage.binary_dilation(smooth > 5 * max(spread, 1e-6), iterations=4)
    return light, np.where(free & ~bright, grey - light, np.float32(np.nan))


def fill_holes(
    rest: Half, place: tuple[int, int], size: tuple[int, int], rng: np.random.Generator
) -> Grey:
    """Fill the holes of a window of rest with whole patches from elsewhere in the frame.

    Windows at up to ``TRIES`` random places of the frame, which wraps around at its edges, fill the
    holes that are left one after the other. Remaining holes become 0.
    """
    rows, columns = (np.arange(p, p + s) for p, s in zip(place, size, strict=True))
    tile = rest[np.ix_(rows, columns)].astype(np.float32)
    for _ in range(TRIES):
        holes = np.isnan(tile)
        if not holes.any():
            return tile
        down, right = rng.integers(rest.shape[0]), rng.integers(rest.shape[1])
        y, x = (rows + down) % rest.shape[0], (columns + right) % rest.shape[1]
        tile[holes] = rest[np.ix_(y, x)][holes]
    return np.nan_to_num(tile, nan=0.0)


def find_isolated_nuclei(light: Grey, masks: Masks, border: int) -> Iterator[Nucleus]:
    """Cut out the nuclei in one piece that are off all others and off the border."""
    height, width = masks.shape
    around = max(border, ISOLATION)
    for number, box in enumerate(ndimage.find_objects(masks), start=1):
        if box is None or any(
            s.start < around or s.stop > side - around
            for s, side in zip(box, (height, width), strict=True)
        ):
            continue
        wide = tuple(slice(s.start - ISOLATION, s.stop + ISOLATION) for s in box)
        labels = masks[wide]
        mask = labels == number
        near = ndimage.distance_transform_edt(~mask) <= ISOLATION
        if not np.any(near & ~mask & (labels > 0)) and ndimage.label(mask)[1] == 1:
            yield Nucleus(light[wide].astype(np.float16), mask)


def augment_nucleus(nucleus: Nucleus, rng: np.random.Generator) -> tuple[Grey, Bool]:
    """Turn, perhaps mirror, and brighten a nucleus; its light ends 3 px off its mask.

    Light and mask, ``[d, d]``, where d is the diagonal of the crop, rounded up, in pixels.
    """
    angle, mirrored = rng.uniform(0, 2 * math.pi), rng.random() < 0.5
    gain = math.exp(rng.uniform(*np.log(BRIGHTNESS)))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if mirrored:
        turn[:, 1] *= -1
    side = math.ceil(math.hypot(*nucleus.mask.shape))
    offset = (np.array(nucleus.mask.shape) - 1) / 2 - turn @ np.full(2, (side - 1) / 2)
    shape = {"offset": offset, "output_shape": (side, side)}
    light = ndimage.affine_transform(nucleus.light.astype(np.float32), turn, order=3, **shape)
    mask = ndimage.affine_transform(nucleus.mask.astype(np.float32), turn, order=1, **shape) > 0.5
    near = ndimage.distance_transform_edt(~mask) <= HALO
    return np.where(near, gain * light, 0).astype(np.float32), mask


def measure_overlap(
    place: tuple[int, ...], shape: tuple[int, ...], wide: tuple[int, ...]
) -> tuple[Slices, Slices]:
    """Return what a patch centred at place covers of the canvas, and which part of it that is."""
    starts = [p - s // 2 for p, s in zip(place, shape, strict=True)]
    spans = [(max(a, 0), min(a + s, w)) for a, s, w in zip(starts, shape, wide, strict=True)]
    here = tuple(slice(*span) for span in spans)
    part = tuple(slice(b - a, e - a) for a, (b, e) in zip(starts, spans, strict=True))
    return here, part


def is_placeable(labels: Masks, here: Slices, mask: Bool, areas: list[int]) -> bool:
    """Return whether neither the new mask nor one below it is hidden too far."""
    covered = labels[here][mask]
    if np.count_nonzero(covered) > MOST_COVERED * mask.sum():
        return False
    after = labels.copy()
    after[here][mask] = len(areas)
    inner = after[MARGIN:-MARGIN, MARGIN:-MARGIN]
    for number in {len(areas), *np.unique(covered).tolist()} - {0}:
        if 0 < np.count_nonzero(inner == number) < LEAST_VISIBLE:
            return False
        is_below = number < len(areas)
        least = (1 - MOST_COVERED) * areas[number] if is_below else 0
        if np.count_nonzero(after == number) < least:
            return False
    return True


class CopyPaste:
    """Isolated nuclei of a real video, pasted on its empty background: no network, no time.

    Each clip has one frame. Its background is a random window of a real frame, in which noise from
    empty places of the same frame replaces all nuclei and their surroundings. Nuclei, drawn evenly
    from all isolated ones, are turned by any angle (cubic spline), mirrored or not, made brighter
    or darker (see ``BRIGHTNESS``), and their light, with a rim of 3 px, is added. Where masks
    overlap, the later one is on top. Ids count from 1.

    Clip ``i`` is a pure function of the files, the arguments and ``i``. No other sequence, and no
    frame from ``stop`` on, is opened.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        sequence: str = "01",
        size: tuple[int, int] = (256, 256),
        stop: int | None = None,
        nuclei: tuple[float, float] = NUCLEI,
        scale: CameraScale | None = None,
        border: int = 25,
    ) -> None:
        """Cut out the nuclei; see the class."""
        self.size, self.nuclei, self.border = size, nuclei, border
        self.max_cells = 1 + math.floor(self._expect(nuclei[1]))
        whole = read_sequence(Path(root).expanduser().absolute(), sequence)
        self.source = whole.cut(whole.numbers[0], stop)
        self._field = find_field(self.source.shape, self.border, self.size)
        self.scale = scale or guess_scale(self.source)
        self._cache: OrderedDict[int, Background] = OrderedDict()
        self.library: list[Nucleus] = []
        for number in self.source.numbers:
            grey, masks = self._read(number)
            if masks.any():  # the backgrounds are kept on the way
                light = self._keep(number, grey, masks)
                self.library += find_isolated_nuclei(grey - light, masks, self.border)
        if not self.library:
            raise ValueError(
                f"sequence {sequence!r} of {root} must have a nucleus {ISOLATION} px off all "
                f"others and {self.border} px off the edge, got none in {len(self.source)} frames"
            )

    def clip(self, index: int) -> Clip:
        """Return clip ``index`` of an endless series.

        ``video`` ``[1, 1, H, W]``, ``masks`` ``[1, H, W]``, ``tracks`` ``[max_cells, 4]``,
        ``index`` and ``source`` (1); see :class:`bvdm_data.clip.Clip`.
        """
        number = as_number(index)
        rng = numpy_rng(0, "copy-paste", number)
        light, labels = self._paste_nuclei(rng)
        grey = (self._draw_empty_tile(rng) + light)[None, None]
        camera = self.scale.to_grey(self.scale.to_counts(grey))
        masks, table, _ = split_gaps(labels[None], {})
        clip: dict[str, Any] = {"video": torch.from_numpy(camera)}
        clip |= annotate_masks(masks, table, ("masks", "tracks"), self.max_cells)
        clip |= {"index": torch.tensor(number), "source": torch.tensor(1, dtype=torch.int8)}
        return cast(Clip, clip)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoded backgrounds out of a pickle."""
        return {**self.__dict__, "_cache": OrderedDict()}

    def _read(self, number: int) -> tuple[Grey, Masks]:
        grey, masks = self.scale.to_grey(self.source.frame(number)), self.source.masks(number)
        return grey, np.zeros(grey.shape, np.int32) if masks is None else masks

    def _keep(self, number: int, grey: Grey, masks: Masks) -> Grey:
        light, rest = split_background(grey, masks)
        band = (slice(self.border, -self.border or None),) * 2
        background = Background(*(part[band].astype(np.float16) for part in (light, rest)))
        room = CACHE_BYTES // (background.light.nbytes + background.rest.nbytes)
        while self._cache and len(self._cache) >= max(room, 1):
            self._cache.popitem(last=False)
        self._cache[number] = background
        return light

    def _draw_empty_tile(self, rng: np.random.Generator) -> Grey:
        """Return a window of the video as if it had no nuclei, ``size``."""
        with_masks = [n for n in self.source.numbers if n in self.source.mask_names]
        number = with_masks[rng.integers(len(with_masks))]
        if number not in self._cache:
            self._keep(number, *self._read(number))
        self._cache.move_to_end(number)
        light, rest = self._cache[number]
        top, left = (
            int(rng.integers(f - s + 1)) for f, s in zip(self._field, self.size, strict=True)
        )
        window = light[top : top + self.size[0], left : left + self.size[1]]
        return window.astype(np.float32) + fill_holes(rest, (top, left), self.size, rng)

    def _expect(self, nuclei: float) -> float:
        """Return how many nuclei are pasted in and around a tile."""
        return nuclei / FRAME_AREA * math.prod(side + 2 * MARGIN for side in self.size)

    def _paste_nuclei(self, rng: np.random.Generator) -> tuple[Grey, Masks]:
        """Return the light and the labels of the pasted nuclei, ``size``."""
        wide = tuple(side + 2 * MARGIN for side in self.size)
        light, labels = np.zeros(wide, np.float32), np.zeros(wide, np.int32)
        expected = self._expect(rng.uniform(*self.nuclei))
        areas = [0]
        for _ in range(math.floor(expected + rng.random())):
            nucleus = self.library[rng.integers(len(self.library))]
            glow, mask = augment_nucleus(nucleus, rng)
            for _ in range(TRIES):
                place = tuple(int(rng.integers(side)) for side in wide)
                here, part = measure_overlap(place, mask.shape, wide)
                if is_placeable(labels, here, mask[part], areas):
                    light[here] += glow[part]
                    labels[here][mask[part]] = len(areas)
                    areas.append(int(mask[part].sum()))
                    break
        tile = (slice(MARGIN, -MARGIN),) * 2
        return light[tile], labels[tile]
