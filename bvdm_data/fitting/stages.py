"""Stages: which stage of the cell cycle every nucleus of the video is in.

The lineage says when a nucleus divides; area and brightness relative to the same nucleus in
interphase, and the elongation of its mask, say the rest. At 30 minutes a frame a mitosis shows in
two to six frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.clip import STAGES
from bvdm_data.fitting.nuclei import Crops

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


@dataclass(frozen=True)
class NucleusFeatures:
    """What the stages are told from."""

    area: Array  # pixels of each mask, [n]
    brightness: Array  # mean light, [n]
    aspect: Array  # ratio of the axes of the ellipse with the same second moments, [n]


def measure_features(crops: Crops) -> NucleusFeatures:
    """Measure every crop."""
    aspect = np.empty(len(crops.masks))
    for i, mask in enumerate(crops.masks):
        spread = np.cov(np.argwhere(mask).T) if mask.sum() > 2 else np.eye(2)
        low, high = np.linalg.eigvalsh(spread)
        aspect[i] = np.sqrt(high / max(low, 1e-3))
    area = crops.masks.sum((1, 2)).astype(float)
    return NucleusFeatures(area, crops.brightness.astype(float), aspect)


def find_daughters(tracks: npt.NDArray[np.int32]) -> dict[int, list[int]]:
    """List the divisions: a track that two or more others name as their parent."""
    children: dict[int, list[int]] = {}
    for identity, _, _, parent in tracks.tolist():
        if parent:
            children.setdefault(parent, []).append(identity)
    return {mother: found for mother, found in children.items() if len(found) >= 2}


def measure_interphase(
    crops: Crops, looks: NucleusFeatures, tracks: npt.NDArray[np.int32], rules: StageRules
) -> dict[int, tuple[float, float]]:
    """Return the median area and brightness of every mother before her division."""
    last = dict(zip(tracks[:, 0].tolist(), tracks[:, 2].tolist(), strict=True))
    near, far = rules.reference
    found = {}
    for mother in find_daughters(tracks):
        before = last[mother] - crops.frame
        rows = np.flatnonzero((crops.track == mother) & (before >= near - 1) & (before <= far - 1))
        if len(rows) >= 3:
            found[mother] = (
                float(np.median(looks.area[rows])),
                float(np.median(looks.brightness[rows])),
            )
    return found


def assign_stages(
    crops: Crops, tracks: npt.NDArray[np.int32], rules: StageRules | None = None
) -> npt.NDArray[np.int8]:
    """Assign a stage to every crop.

    Mothers, backward from their last frame: condensed frames (bright and small against the same
    nucleus in interphase) are metaphase where the mask is a plate and prometaphase before that;
    frames of growing brightness in front of them are prophase. Daughters, forward from their
    first frame: bright and small plates are anaphase (first frame only), then telophase until
    the brightness is that of interphase. All else is interphase. Mitoses whose mother has no
    reference, because she has fewer than three whole frames before, are unknown.

    Index into ``STAGES`` or -1 (unknown), ``[n]``.
    """
    rules = rules or StageRules()
    looks = measure_features(crops)
    stages = np.full(len(crops.track), INTERPHASE, np.int8)
    place = {
        (int(t), int(f)): i for i, (t, f) in enumerate(zip(crops.track, crops.frame, strict=True))
    }
    span = {identity: (first, last) for identity, first, last, _ in tracks.tolist()}
    references = measure_interphase(crops, looks, tracks, rules)
    for mother, daughters in find_daughters(tracks).items():
        around = sum(rules.longest[:2])
        rows = [place.get((mother, span[mother][1] - back)) for back in range(around)]
        young = [
            [place.get((d, span[d][0] + age)) for age in range(rules.longest[2])] for d in daughters
        ]
        if mother not in references:
            for row in (*rows, *(r for each in young for r in each)):
                if row is not None:
                    stages[row] = UNKNOWN
            continue
        _stage_mother(stages, rows, looks, references[mother], rules)
        for each in young:
            _stage_daughter(stages, each, looks, references[mother], rules)
    return stages


def _stage_mother(
    stages: npt.NDArray[np.int8],
    rows: list[int | None],
    looks: NucleusFeatures,
    reference: tuple[float, float],
    rules: StageRules,
) -> None:
    """Go back from a mother's last frame: condensed frames first, prophase before them."""
    condensed = prophase = 0
    plate = True
    for row in rows:
        if row is None:
            return
        ratio = looks.brightness[row] / reference[1] / (looks.area[row] / reference[0])
        if not prophase and condensed < rules.longest[1] and ratio >= rules.condensed:
            condensed += 1
            plate = plate and looks.aspect[row] >= rules.plate
            stages[row] = METAPHASE if plate else PROMETAPHASE
        elif prophase < rules.longest[0] and ratio >= rules.prophase:
            prophase += 1
            stages[row] = PROPHASE
        else:
            return


def _stage_daughter(
    stages: npt.NDArray[np.int8],
    rows: list[int | None],
    looks: NucleusFeatures,
    reference: tuple[float, float],
    rules: StageRules,
) -> None:
    for age, row in enumerate(rows[: rules.longest[2]]):
        if row is None:
            return
        ratio = looks.brightness[row] / reference[1] / (2 * looks.area[row] / reference[0])
        if ratio < rules.young:
            return
        is_plate = age == 0 and looks.aspect[row] >= rules.plate
        stages[row] = ANAPHASE if is_plate else TELOPHASE


def measure_stage_durations(
    crops: Crops,
    stages: npt.NDArray[np.int8],
    tracks: npt.NDArray[np.int32],
    mothers: Mapping[int, object],
    longest: int,
) -> Array:
    """Count how many frames the short stages last.

    Share of mitoses whose stage lasts 0, 1, ... frames, ``[S, longest + 1]``; the row of
    interphase is 0.
    """
    table = np.zeros((len(STAGES), longest + 1))
    children = find_daughters(tracks)
    for mother in mothers:
        whole = stages[crops.track == mother]
        for stage in (PROPHASE, PROMETAPHASE, METAPHASE):
            table[stage, min(longest, int((whole == stage).sum()))] += 1
        for daughter in children[mother]:
            young = stages[crops.track == daughter]
            for stage in (ANAPHASE, TELOPHASE):
                table[stage, min(longest, int((young == stage).sum()))] += 1
    shares: Array = table / np.maximum(table.sum(1, keepdims=True), 1)
    return shares
