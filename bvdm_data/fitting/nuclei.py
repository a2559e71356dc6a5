"""The nuclei of an annotated video: their crops, lineage, shape, brightness and stage.

The lineage gives the time of each division. Area and brightness relative to the same nucleus in
interphase, and the elongation of its mask, give the rest of the stages. At 30 minutes a frame a
mitosis shows in two to six frames.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import median_abs_deviation

from bvdm_data.clip import PHASES
from bvdm_data.datasets.ctc import CTCSequence
from bvdm_data.fitting.video import Frame, Video
from bvdm_data.synth.contours import Array, Ints
from bvdm_data.synth.networks import FLOW_SIZE

# Side of a crop in pixels; nuclei are rendered in patches of the same size (authors' code: 96).
PATCH = FLOW_SIZE
# Share of the nuclei, the dimmest, that the networks of the paper's method do not learn: scaling
# them up would teach camera noise as texture (our choice: below it the noise of the HeLa video is
# more than a tenth of the light).
DIM_SHARE = 0.125
MASK_LEVEL = 150 / 255  # grey value of a flat mask where diffusion starts (authors' code)
INTERPHASE, PROPHASE, PROMETAPHASE, METAPHASE, ANAPHASE, TELOPHASE = range(len(PHASES))
UNKNOWN = -1


@dataclass(frozen=True)
class Crops:
    """Every whole nucleus of a video, centred in a patch."""

    light: npt.NDArray[np.float16]  # above the background, grey values, 0 outside, [n, 96, 96]
    masks: npt.NDArray[np.bool_]  # which pixels are the nucleus, [n, 96, 96] bool
    track: Ints  # track id, [n]
    frame: Ints  # frame number, [n]
    brightness: npt.NDArray[np.float32]  # mean of light inside the nucleus, [n] float32
    centre: npt.NDArray[np.float32]  # centroid (y, x) in the frame, [n, 2] float32
    left_out: Mapping[str, int] = field(default_factory=dict)  # other nuclei, by LEFT_OUT


SHARE = 0.05  # of the nuclei, frames or divisions: where more are left out, there is a warning
LEFT_OUT = {
    "nuclei_too_large": "nuclei are larger than the patch",
    "nuclei_at_border": "nuclei touch the border of the frame",
    "nuclei_untracked": "nuclei are in no track",
    "nuclei_in_pieces": "nuclei have masks that are ragged, hollow or in pieces",
    "divisions_not_whole": "divisions have a mother who is not seen whole for some frames before",
    "frames_without_masks": "frames have no masks",
    "frames_without_background": "frames are too crowded to measure background",
}
"""What a fit leaves out, by its name on the card."""


def extract_crops(video: Video) -> Crops:
    """Cut every nucleus that is whole, tracked and fits into a patch out of the frames."""
    tracks = {int(track) for track in video.tracks[:, 0]}
    rows, left_out = [], dict.fromkeys([*LEFT_OUT][:4], 0)
    for frame in video.frames:
        above = frame.grey - frame.background
        for label, box in enumerate(ndimage.find_objects(frame.masks), start=1):
            if box is None:
                continue
            reason = _find_reason(frame.masks, label, box)
            if reason is None and label not in tracks:
                reason = "nuclei_untracked"
            if reason is None:
                rows.append(_cut_nucleus(frame, above, label, box))
            else:
                left_out[reason] += 1
    light, masks, track, number, brightness, centre = zip(*rows, strict=True) if rows else [()] * 6
    return Crops(
        light=np.array(light, np.float16).reshape(-1, PATCH, PATCH),
        masks=np.array(masks, bool).reshape(-1, PATCH, PATCH),
        track=np.array(track, np.int64),
        frame=np.array(number, np.int64),
        brightness=np.array(brightness, np.float32),
        centre=np.array(centre, np.float32).reshape(-1, 2),
        left_out=left_out,
    )


def advise(crops: Crops, usual: str) -> str:
    """Return the way out of a refusal: by what most nuclei are left out for, else the usual one."""
    total = len(crops.track) + sum(crops.left_out.values())
    reason, most = max(crops.left_out.items(), key=lambda entry: entry[1], default=("", 0))
    if most <= SHARE * total:
        return usual
    return f"{most} of {total} {LEFT_OUT[reason]}; {usual}"


def check_fittable(crops: Crops) -> float:
    """Return the brightness below which nuclei are dim; refuse a video that shows none."""
    if len(crops.brightness) == 0:
        raise ValueError(
            "the video must show whole nuclei that belong to tracks, got none; "
            f"{advise(crops, 'give another video')}"
        )
    least = float(np.quantile(crops.brightness, DIM_SHARE))
    if least <= 0:
        raise ValueError(
            "the nuclei of the video must be brighter than its background, got a mean brightness "
            f"of {least:.4f} at quantile {DIM_SHARE}; are the masks those of the video, and is no "
            "frame blank?"
        )
    return least


_LOOKS = 4  # frames that are looked at before a video is read


def check_nuclei(sequence: CTCSequence) -> None:
    """Refuse a video that shows no bright, rounded nuclei, by the masks of a few frames.

    The bounds are far from HeLa nuclei, whether blurred, noisy, brightened or rescaled: half of
    them have a lead above 0.98, a rim below 0.55, a ratio of axes below 1.4 and fill 0.98 of an
    ellipse.
    """
    numbers = [number for number in sequence.numbers if number in sequence.mask_names]
    chosen = (
        {numbers[round(i)] for i in np.linspace(0, len(numbers) - 1, _LOOKS)} if numbers else ()
    )
    looks = [look for number in sorted(chosen) for look in _look(sequence, number)]
    if not looks:
        return
    size, lead, rim, aspect, fill = np.median(np.array(looks), axis=0)
    faults = {
        f"be of nuclei of 25 pixels or more, got half of them with {size:.0f} or less; scale the "
        "video up": size < 25,
        "be brighter than what is around them, got a pixel inside brighter than one around it in "
        f"{lead:.0%} of all pairs (75% are needed); is it phase contrast, brightfield or inverted, "
        "or are they masks of another video? Give bright nuclei on darker background, as "
        "fluorescence shows them": lead < 0.75,
        f"end where nuclei end, got {rim:.0%} of their light just off them (at most 75%); are they "
        "markers inside nuclei? Lives and motion could be learned from these, outlines and light "
        'cannot: give masks of whole nuclei, of some frames at least (truth="GT", --truth GT, with '
        "--lives hela)": rim > 0.75,
        f"be of rounded nuclei, got a median ratio of axes of {aspect:.1f} and {fill:.0%} of an "
        "ellipse filled (at most 2.5, and at least 85%); bacteria, whole cells and nuclei that "
        "share a label cannot be fitted: give masks of nuclei": aspect > 2.5 or fill < 0.85,
    }
    for words in (words for words, holds in faults.items() if holds):
        raise ValueError(
            f"the masks of sequence {sequence.name!r} of {sequence.folder} must {words}"
        )


def _look(sequence: CTCSequence, number: int) -> list[tuple[float, ...]]:
    """Return area, lead, rim, ratio of axes, and share of an ellipse, of each mask of a frame."""
    masks, frame = sequence.masks(number), sequence.frame(number).astype(np.float32)
    looks: list[tuple[float, ...]] = []
    if masks is None:
        return []
    for label, box in enumerate(ndimage.find_objects(masks), start=1):
        if box is None:
            continue
        reach = max(side.stop - side.start for side in box)
        near = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
        grey, own, free = frame[near], masks[near] == label, masks[near] == 0
        inside, radius = grey[own], math.sqrt(own.sum() / math.pi)
        far = ndimage.distance_transform_edt(~own)
        # Off the blurred rim of the nucleus, and off its neighbours.
        around = np.sort(grey[free & (far > 2 + radius / 4) & (far < 5 + radius)])
        lead, rim = 1.0, 0.0  # in a crowd there may be nothing around it
        if len(around):
            ranks = [np.searchsorted(around, inside, side) for side in ("left", "right")]
            lead = float(np.mean(ranks)) / len(around)
            light = inside.mean() - np.quantile(around, 0.25)
            off = grey[free & (far > 0) & (far <= 2)]
            rim = float((np.median(off) - np.quantile(around, 0.25)) / light) if len(off) else 0.0
        spread = np.cov(np.nonzero(own), bias=True) + np.eye(2) / 12  # of pixels that are squares
        fill = own.sum() / (4 * math.pi * math.sqrt(np.linalg.det(spread)))
        looks.append((float(own.sum()), lead, rim, measure_ellipse(own)[1], float(fill)))
    return looks


def measure_ellipse(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return angle from y (radians) and ratio of the axes of the ellipse with the same moments."""
    y, x = (part - part.mean() for part in np.nonzero(mask))
    if len(y) < 2:
        return 0.0, 1.0
    yy, xx, xy = float((y * y).mean()), float((x * x).mean()), float((x * y).mean())
    angle = 0.5 * math.atan2(2 * xy, yy - xx)
    if len(y) < 3:
        return angle, 1.0
    middle, reach = (yy + xx) / 2, math.hypot((yy - xx) / 2, xy)
    # The sample covariance, so that a line of pixels has a short axis above 0 by rule.
    unbiased = len(y) / (len(y) - 1)
    low, high = (middle - reach) * unbiased, (middle + reach) * unbiased
    return angle, math.sqrt(high / max(low, 1e-3))


def _find_reason(masks: npt.NDArray[np.int32], label: int, box: tuple[slice, ...]) -> str | None:
    """Return why a nucleus is left out, or None."""
    if max(side.stop - side.start for side in box) > PATCH:
        _, pieces = ndimage.label(masks[box] == label, np.ones((3, 3)))
        return "nuclei_too_large" if pieces == 1 else "nuclei_in_pieces"
    ends = zip(box, masks.shape, strict=True)
    is_cut = any(side.start == 0 or side.stop == length for side, length in ends)
    return "nuclei_at_border" if is_cut else None


def _cut_nucleus(
    frame: Frame, above: npt.NDArray[np.float32], label: int, box: tuple[slice, ...]
) -> tuple[Any, ...]:
    """Cut out a nucleus: its light, mask, track, frame, brightness and centre."""
    # As in the authors' extraction, a crop shows one nucleus and nothing else.
    inside = frame.masks[box] == label
    place = tuple(slice(start := PATCH // 2 - side // 2, start + side) for side in inside.shape)
    mask = np.zeros((PATCH, PATCH), bool)
    mask[place] = inside
    light = np.zeros((PATCH, PATCH), np.float16)
    light[place] = np.where(inside, above[box], 0)
    y, x = np.nonzero(inside)
    centre = box[0].start + float(y.mean()), box[1].start + float(x.mean())
    return light, mask, label, frame.number, float(above[box][inside].mean()), centre


def number_rows(*columns: Ints) -> dict[tuple[int, ...], int]:
    """Return the row of each key in a table, ``[n]`` each column."""
    return {key: row for row, key in enumerate(zip(*map(np.ndarray.tolist, columns), strict=True))}


def pair_rows(row_of: Mapping[tuple[int, ...], int], lag: int) -> Ints:
    """Return the rows of keys, whose last part is the frame, now and later, ``[n, 2]``."""
    later = ((row, row_of.get((*key[:-1], key[-1] + lag))) for key, row in row_of.items())
    return np.array([pair for pair in later if pair[1] is not None], np.int64).reshape(-1, 2)


class Lineage:
    """The tracks of a video with the rows of a table of its nuclei, indexed once."""

    def __init__(self, tracks: npt.NDArray[np.int32], track: Ints, frame: Ints) -> None:
        """Index tracks ``[n, 4]``, and the track and frame of each row of a table, ``[m]``."""
        self.spans = {i: (first, last) for i, first, last, _ in tracks.tolist()}
        self.parents = {i: parent for i, _, _, parent in tracks.tolist() if parent}
        self.track, self.frame = track, frame

    @cached_property
    def daughters(self) -> dict[int, list[int]]:
        """The divisions: every track that two or more others name as their parent."""
        children: dict[int, list[int]] = {}
        for identity, parent in self.parents.items():
            children.setdefault(parent, []).append(identity)
        return {mother: born for mother, born in children.items() if len(born) >= 2}

    @cached_property
    def mothers(self) -> dict[int, int]:
        """The mother of each daughter of a division."""
        return {d: mother for mother, daughters in self.daughters.items() for d in daughters}

    @cached_property
    def ages(self) -> Ints:
        """Frames since the birth of each row, ``[m]``; -1 where it has no parent."""
        births = {i: self.spans[i][0] for i in self.parents}
        return np.array([f - births[t] if t in births else -1 for t, f in self.row_of], np.int64)

    @cached_property
    def whole_cycles(self) -> list[int]:
        """Length in frames of every cycle from a birth to a division."""
        both = [span for i, span in self.spans.items() if i in self.mothers and i in self.daughters]
        return [last - first + 1 for first, last in both]

    @cached_property
    def row_of(self) -> dict[tuple[int, ...], int]:
        """Row of each track in each frame."""
        return number_rows(self.track, self.frame)

    def rows_at(self, tracks: list[int], age: int = 0) -> list[int] | None:
        """Return the rows of tracks some frames after their first; None where one is not seen."""
        rows = [self.row_of.get((track, self.spans[track][0] + age)) for track in tracks]
        return None if None in rows else [row for row in rows if row is not None]

    def find_pairs(self, lag: int, keep: npt.NDArray[np.bool_] | None = None) -> Ints:
        """Return the rows of nuclei now and ``lag`` frames later, both kept, ``[n, 2]``."""
        pairs = pair_rows(self.row_of, lag)
        return pairs if keep is None else pairs[keep[pairs].all(1)]


# Thresholds of stages, chosen by looking at the nuclei of each stage of Fluo-N2DL-HeLa 01.
# Frames, counted back from the mother's last one, whose median means "in interphase".
REFERENCE_FRAMES = (5, 14)
# Least brightness over area, both against interphase, of a mother in condensed stages, in prophase
# directly before them, and half as much of a daughter in ana- or telophase.
CONDENSED, PROPHASE_CONDENSED, YOUNG = 2.0, 1.3, 1.3
PLATE = 1.6  # least ratio of the axes of a metaphase or anaphase plate
LONGEST_STAGES = (2, 4, 4)  # most frames of prophase, of condensed stages, and of telophase


@dataclass(frozen=True, eq=False)
class Nuclei:
    """The whole nuclei of a video, with what every part of the fit needs to know of them."""

    crops: Crops
    lineage: Lineage
    area: Array  # pixels of each mask, [n]
    brightness: Array  # mean light, [n]
    aspect: Array  # ratio of the axes of the ellipse with the same second moments, [n]
    angle: Array  # from the y axis to the major axis, radians, [n]
    # median area and brightness in interphase of each mother before her division, by track
    references: dict[int, tuple[float, float]]
    stage: npt.NDArray[np.int8]  # index into PHASES or -1 (unknown), [n]


def measure_nuclei(crops: Crops, tracks: npt.NDArray[np.int32]) -> Nuclei:
    """Measure every crop and assign it a stage."""
    lineage = Lineage(tracks, crops.track, crops.frame)
    angle, aspect = np.array([measure_ellipse(mask) for mask in crops.masks]).reshape(-1, 2).T
    area = crops.masks.sum((1, 2)).astype(float)
    brightness = crops.brightness.astype(float)
    references = _measure_interphase(lineage, area, brightness)
    stage = np.full(len(area), INTERPHASE, np.int8)
    nuclei = Nuclei(crops, lineage, area, brightness, aspect, angle, references, stage)
    for mother, daughters in lineage.daughters.items():
        _stage_division(nuclei, mother, daughters)
    return nuclei


def _measure_interphase(
    lineage: Lineage, area: Array, brightness: Array
) -> dict[int, tuple[float, float]]:
    near, far = REFERENCE_FRAMES
    references = {}
    for mother in lineage.daughters:
        before = lineage.spans[mother][1] - lineage.frame
        rows = (lineage.track == mother) & (before >= near - 1) & (before <= far - 1)
        if rows.sum() >= 3:
            references[mother] = float(np.median(area[rows])), float(np.median(brightness[rows]))
    return references


def _stage_division(nuclei: Nuclei, mother: int, daughters: list[int]) -> None:
    """Write the stages of a mother's last frames and of her daughters' first ones.

    Daughters are in telophase until they are no longer bright and small, or in anaphase in a first
    frame that shows a plate. Where fewer than three frames show the mother before, all is unknown.
    """
    row_of, spans = nuclei.lineage.row_of, nuclei.lineage.spans
    prophase, condensed, young = LONGEST_STAGES
    ending = [row_of.get((mother, spans[mother][1] - back)) for back in range(prophase + condensed)]
    births = [[row_of.get((d, spans[d][0] + age)) for age in range(young)] for d in daughters]
    if mother not in nuclei.references:
        for row in (*ending, *(row for born in births for row in born)):
            if row is not None:
                nuclei.stage[row] = UNKNOWN
        return
    area, brightness = nuclei.references[mother]
    # How condensed every nucleus is against this mother in interphase.
    ratio = nuclei.brightness / brightness / (nuclei.area / area)
    _stage_mother(nuclei, ending, ratio)
    for born in births:
        for age, row in enumerate(born):
            if row is None or ratio[row] / 2 < YOUNG:
                break
            is_plate = age == 0 and nuclei.aspect[row] >= PLATE
            nuclei.stage[row] = ANAPHASE if is_plate else TELOPHASE


def _stage_mother(nuclei: Nuclei, rows: list[int | None], ratio: Array) -> None:
    """Go back from a mother's last frame: condensed frames first, prophase before them."""
    condensed = prophase = 0
    plate = True
    for row in rows:
        if row is None:
            return
        if not prophase and condensed < LONGEST_STAGES[1] and ratio[row] >= CONDENSED:
            condensed += 1
            plate = plate and bool(nuclei.aspect[row] >= PLATE)
            nuclei.stage[row] = METAPHASE if plate else PROMETAPHASE
        elif prophase < LONGEST_STAGES[0] and ratio[row] >= PROPHASE_CONDENSED:
            prophase += 1
            nuclei.stage[row] = PROPHASE
        else:
            return


# Statistics that several parts of the fit use


def fit_ar1_plus_noise(near: Array, far: Array, lag: int) -> tuple[Array, Array]:
    """Split scores into a lasting part and one that is new in every frame.

    The correlation of the lasting part falls geometrically. The correlations of the scores at 1
    and at ``lag`` frames tell the two apart.

    Returns the correlation of the lasting part from frame to frame, from 0 to .98, and the share of
    the new part in the variance.
    """
    ratio = np.maximum(far, 0) / np.maximum(near, 1e-3)
    memory = np.clip(ratio ** (1 / (lag - 1)), 0.0, 0.98)
    return memory, np.clip(1 - near / np.maximum(memory, 1e-3), 0.0, 1.0)


def measure_spread(values: npt.ArrayLike) -> float:
    """Return the robust standard deviation of values around 0; 0 without values."""
    values = np.asarray(values)
    if not len(values):
        return 0.0
    return float(median_abs_deviation(values, center=lambda x, axis: 0.0, scale="normal"))
