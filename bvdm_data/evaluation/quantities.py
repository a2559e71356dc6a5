"""Quantities: the list of what is measured on a film, and the measurement of all of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.alignment import LAGS
from bvdm_data.clip import STAGES, Clip
from bvdm_data.evaluation.background import NOISE_KEYS, measure_noise
from bvdm_data.evaluation.histories import measure_lives, measure_motion
from bvdm_data.evaluation.measures import Looks, Sightings, look_at_all, sight
from bvdm_data.evaluation.neighbourhoods import RINGS
from bvdm_data.evaluation.persistence import PAIRS, measure_persistence

NOISE_FRAMES = 24
"""About how many frames background and noise are measured on, shared out evenly over the clips;
at least one of each clip."""

DISTRIBUTION, SCALAR, CURVE = "W1/sd", "abs. difference", "mean abs. difference"
"""How two films are compared in a quantity: the Wasserstein-1 distance of the distributions over
the standard deviation within the two real films; the absolute difference of two numbers; the mean
absolute difference of two curves."""

Array = npt.NDArray[np.float64]
Found = Iterator[tuple[str, npt.ArrayLike, int | None]]


@dataclass(frozen=True)
class Quantity:
    """Something that is measured on a film.

    Attributes:
        name: What it is called.
        unit: Its unit; empty for a pure number.
        group: What it is about: shape, light, texture, edge, camera, motion, lives, layout,
            labels or persistence.
        distance: How two films are compared in it: ``DISTRIBUTION``, ``SCALAR`` or ``CURVE``.
    """

    name: str
    unit: str
    group: str
    distance: str = DISTRIBUTION


@dataclass(frozen=True, eq=False)
class Measurements:
    """Everything measured on one film, or on many clips treated as one.

    Attributes:
        values: By name of the quantity: the values of a distribution ``[n]``, one number ``[1]``,
            or a curve ``[k]``; all finite, empty where the film does not show it.
        counts: Number of values, or of things behind the number or the curve, by name.
    """

    values: Mapping[str, Array]
    counts: Mapping[str, int]


QUANTITIES: tuple[Quantity, ...] = (
    Quantity("area", "px", "shape"),
    Quantity("eccentricity", "", "shape"),
    Quantity("solidity", "", "shape"),
    Quantity("brightness", "grey", "light"),
    Quantity("brightness, dim end (5 %)", "grey", "light", SCALAR),
    Quantity("brightness, bright end (95 %)", "grey", "light", SCALAR),
    Quantity("contrast inside", "", "texture"),
    Quantity("power above 8 px", "", "texture"),
    Quantity("power at 4-8 px", "", "texture"),
    Quantity("power below 4 px", "", "texture"),
    Quantity("edge profile", "", "edge", CURVE),
    Quantity("fall of light across the edge", "", "edge"),
    Quantity("background level", "grey", "camera"),
    Quantity("noise", "grey", "camera", SCALAR),
    *(Quantity(f"noise along {key} px", "", "camera", SCALAR) for key in NOISE_KEYS),
    *(Quantity(f"texture after {lag} frames", "", "persistence") for lag in LAGS),
    Quantity("texture of unrelated nuclei", "", "persistence"),
    *(Quantity(f"texture kept after {lag} frames", "", "persistence", SCALAR) for lag in LAGS),
    Quantity("step", "px/frame", "motion"),
    Quantity("turning angle", "degrees", "motion"),
    Quantity("area ratio from frame to frame", "", "motion"),
    Quantity("cycle length", "frames", "lives"),
    Quantity("division rate", "1/frame", "lives", SCALAR),
    Quantity("daughter over mother before mitosis", "", "lives"),
    Quantity("smaller over larger sister", "", "lives"),
    Quantity("dip at mitosis", "", "lives"),
    *(Quantity(f"share in {stage}", "", "lives", SCALAR) for stage in STAGES),
    Quantity("density", "1/1e5 px", "layout", SCALAR),
    Quantity("nearest neighbour", "px", "layout"),
    Quantity("share in contact", "", "layout", SCALAR),
    Quantity("label agreement", "", "labels"),
    *(Quantity(f"label agreement, {stage}", "", "labels") for stage in STAGES),
)
"""Everything that is measured, in the order of the report. The edge profile is the median relative
light at the signed distances ``neighbourhoods.RINGS``; texture is correlation after alignment."""


def measure(clips: Clip | Sequence[Clip], *, pairs: int = PAIRS, seed: int = 0) -> Measurements:
    """Measure a film, or many clips as if they were one.

    Nuclei that touch the edge of the frame are left out of all measures of shape, light, texture,
    motion and stages. Small windows cut large nuclei more often than small ones and show no long
    cycles: compare films of about the same window and length.

    Args:
        clips: A clip or a sequence of clips with ``masks`` and ``tracks``; ``stages`` where they
            are known. Grey values must be of one scale.
        pairs: Most pairs of pictures at each lag of the texture's correlation in time.
        seed: Which pairs are drawn.

    Returns:
        The values of all ``QUANTITIES``.

    Raises:
        ModuleNotFoundError: If scikit-image is missing.
        ValueError: If there is no clip, or one has no masks or tracks, or pairs is below 1.
    """
    some = [clips] if isinstance(clips, Mapping) else clips
    if len(some) == 0:
        raise ValueError("clips must hold at least one clip, got none")
    seen = sight(some)
    looks = look_at_all(some, seen)
    values: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for part in (
        _looks(looks, seen),
        _camera(some),
        _persistence(some, seen, pairs, seed),
        _histories(some, seen),
        _layout(some, seen, looks),
    ):
        for name, found, count in part:
            known = np.atleast_1d(np.asarray(found, float))
            values[name] = known[np.isfinite(known)]
            counts[name] = len(values[name]) if count is None else count
    return Measurements({one.name: values[one.name] for one in QUANTITIES}, counts)


def _looks(looks: Looks, seen: Sightings) -> Found:
    measured = np.isfinite(looks.brightness)
    yield "area", seen.area[measured], None
    yield "eccentricity", looks.eccentricity, None
    yield "solidity", looks.solidity, None
    light = looks.brightness[measured]
    yield "brightness", light, None
    for name, share in (("dim end (5 %)", 0.05), ("bright end (95 %)", 0.95)):
        yield f"brightness, {name}", np.quantile(light, share) if len(light) else [], len(light)
    names = ("contrast inside", "power above 8 px", "power at 4-8 px", "power below 4 px")
    for name, column in zip(names, looks.texture.T, strict=True):
        yield name, column, None
    profile = looks.profile[np.isfinite(looks.profile).all(1)]
    half = len(RINGS) // 2
    yield "edge profile", np.median(profile, axis=0) if len(profile) else [], len(profile)
    yield "fall of light across the edge", profile[:, half - 2] - profile[:, half + 1], None
    yield "label agreement", looks.agreement, None
    staged = measured & (looks.stage >= 0)
    for code, stage in enumerate(STAGES):
        here = staged & (looks.stage == code)
        yield f"label agreement, {stage}", looks.agreement[here], None
        share = here.sum() / staged.sum() if staged.any() else math.nan
        yield f"share in {stage}", share, int(here.sum())


def _camera(clips: Sequence[Clip]) -> Found:
    each = max(NOISE_FRAMES // len(clips), 1)
    found = []
    for number in range(len(clips)):
        clip = clips[number]
        video, masks = clip["video"][:, 0].float().numpy(), clip["masks"].numpy()
        for frame in sorted({round(f) for f in np.linspace(0, len(video) - 1, each)}):
            found.append(measure_noise(video[frame], masks[frame]))
    table = {name: np.array([one[name] for one in found]) for name in found[0]}
    yield "background level", table["level"], None
    for name, key in (("noise", "std"), *((f"noise along {key} px", key) for key in NOISE_KEYS)):
        known = table[key][np.isfinite(table[key])]
        yield name, np.median(known) if len(known) else [], len(known)


def _persistence(clips: Sequence[Clip], seen: Sightings, pairs: int, seed: int) -> Found:
    found = measure_persistence(clips, seen, pairs=pairs, seed=seed)
    yield "texture of unrelated nuclei", found.unrelated, None
    for lag, values in found.lags.items():
        yield f"texture after {lag} frames", values, None
        kept = found.kept(lag)
        yield f"texture kept after {lag} frames", kept, len(values)


def _histories(clips: Sequence[Clip], seen: Sightings) -> Found:
    motion = measure_motion(seen)
    yield "step", motion.step, None
    yield "turning angle", motion.turning, None
    yield "area ratio from frame to frame", motion.growth, None
    lives = measure_lives(clips, seen)
    yield "cycle length", lives.cycle, None
    rate = lives.divisions / lives.chances if lives.chances else math.nan
    yield "division rate", rate, lives.divisions
    yield "daughter over mother before mitosis", lives.daughter, None
    yield "smaller over larger sister", lives.sisters, None
    yield "dip at mitosis", lives.dip, None


def _layout(clips: Sequence[Clip], seen: Sightings, looks: Looks) -> Found:
    pixels = sum(clips[number]["masks"].numel() for number in range(len(clips)))
    # A nucleus that the edge of the frame cuts is half in.
    nuclei = float(np.where(seen.whole, 1, 0.5).sum())
    yield "density", 1e5 * nuclei / pixels, len(seen)
    yield "nearest neighbour", looks.neighbour, None
    known = looks.contact >= 0
    share = looks.contact[known].mean() if known.any() else math.nan
    yield "share in contact", share, int(known.sum())
