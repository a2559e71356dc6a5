"""Stage of the cell cycle of every nucleus, and what it is assigned from.

The lineage gives the time of each division. Area and brightness relative to the same nucleus in
interphase, and the elongation of its mask, give the rest. At 30 minutes a frame a mitosis shows in
two to six frames.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import STAGES
from bvdm_data.fitting.lineage import Lineage
from bvdm_data.fitting.nuclei import Crops, measure_ellipse

Array = npt.NDArray[np.float64]

INTERPHASE, PROPHASE, PROMETAPHASE, METAPHASE, ANAPHASE, TELOPHASE = range(len(STAGES))
UNKNOWN = -1


@dataclass(frozen=True)
class StageRules:
    """Thresholds, chosen by looking at the nuclei of each stage of Fluo-N2DL-HeLa 01."""

    # first and last frame before the division, counted back from the mother's last frame, whose
    # median is what "in interphase" means
    reference: tuple[int, int] = (5, 14)
    # A mother's frame counts as condensed from this ratio of brightness over area, both relative
    # to interphase
    condensed: float = 2.0
    prophase: float = 1.3  # the same for prophase, directly before the condensed frames
    # A condensed nucleus is a metaphase or anaphase plate from this ratio of its axes
    plate: float = 1.6
    # A daughter is in ana- or telophase as long as this ratio of brightness over twice the area is
    # reached
    young: float = 1.3
    # most frames of prophase, of condensed stages, and of telophase
    longest: tuple[int, int, int] = (2, 4, 4)


RULES = StageRules()


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
    stage: npt.NDArray[np.int8]  # index into STAGES or -1 (unknown), [n]


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


def assign_stages(crops: Crops, tracks: npt.NDArray[np.int32]) -> npt.NDArray[np.int8]:
    """Assign a stage to every crop, ``[n]``: an index into ``STAGES``, or -1 for unknown.

    Mothers, backward from their last frame: condensed frames (bright and small against the same
    nucleus in interphase) are metaphase where the mask is a plate and prometaphase before that;
    frames of growing brightness in front of them are prophase. Daughters, forward from their
    first frame: bright and small plates are anaphase (first frame only), then telophase until
    the brightness is that of interphase. All else is interphase. Mitoses whose mother has no
    reference, because she has fewer than three whole frames before, are unknown.
    """
    return measure_nuclei(crops, tracks).stage


def _measure_interphase(
    lineage: Lineage, area: Array, brightness: Array
) -> dict[int, tuple[float, float]]:
    near, far = RULES.reference
    references = {}
    for mother in lineage.daughters:
        before = lineage.spans[mother][1] - lineage.frame
        rows = (lineage.track == mother) & (before >= near - 1) & (before <= far - 1)
        if rows.sum() >= 3:
            references[mother] = float(np.median(area[rows])), float(np.median(brightness[rows]))
    return references


def _stage_division(nuclei: Nuclei, mother: int, daughters: list[int]) -> None:
    """Write the stages of a mother's last frames and of her daughters' first ones."""
    row_of, spans = nuclei.lineage.row_of, nuclei.lineage.spans
    prophase, condensed, young = RULES.longest
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
            if row is None or ratio[row] / 2 < RULES.young:
                break
            is_plate = age == 0 and nuclei.aspect[row] >= RULES.plate
            nuclei.stage[row] = ANAPHASE if is_plate else TELOPHASE


def _stage_mother(nuclei: Nuclei, rows: list[int | None], ratio: Array) -> None:
    """Go back from a mother's last frame: condensed frames first, prophase before them."""
    condensed = prophase = 0
    plate = True
    for row in rows:
        if row is None:
            return
        if not prophase and condensed < RULES.longest[1] and ratio[row] >= RULES.condensed:
            condensed += 1
            plate = plate and bool(nuclei.aspect[row] >= RULES.plate)
            nuclei.stage[row] = METAPHASE if plate else PROMETAPHASE
        elif prophase < RULES.longest[0] and ratio[row] >= RULES.prophase:
            prophase += 1
            nuclei.stage[row] = PROPHASE
        else:
            return
