"""Realism: synthetic clips beside two real films, quantity by quantity."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from bvdm_data.clip import STAGES, Clip
from bvdm_data.evaluation.nucleus_features import (
    NOISE_KEYS,
    RINGS,
    AppearanceFeatures,
    Detections,
    list_detections,
    measure_appearance,
    measure_noise,
)
from bvdm_data.evaluation.video_statistics import (
    PAIRS,
    measure_divisions,
    measure_motion,
    measure_texture_autocorrelation,
)
from bvdm_data.fitting.texture_noise import LAGS

NOISE_FRAMES = 24
"""About how many frames background and noise are measured on, shared out evenly over the clips;
at least one of each clip."""

DISTRIBUTION, SCALAR, CURVE = "W1/sd", "abs. difference", "mean abs. difference"
"""How two films are compared in a quantity: the Wasserstein-1 distance of the distributions over
the standard deviation within the two real films; the absolute difference of two numbers; the mean
absolute difference of two curves."""

Array = npt.NDArray[np.float64]
Samples = Iterator[tuple[str, npt.ArrayLike, int | None]]


@dataclass(frozen=True)
class Metric:
    """Something that is measured on a film."""

    name: str  # what it is called
    unit: str  # its unit; empty for a pure number
    # what it is about: shape, light, texture, edge, camera, motion, lives, layout, labels or
    # persistence
    group: str
    distance: str = DISTRIBUTION  # how two films are compared in it: DISTRIBUTION, SCALAR or CURVE


@dataclass(frozen=True, eq=False)
class Measurements:
    """Everything measured on one film, or on many clips treated as one."""

    # by name of the quantity: the values of a distribution [n], one number [1], or a curve [k];
    # all finite, empty where the film does not show it
    values: Mapping[str, Array]
    # number of values, or of things behind the number or the curve, by name
    counts: Mapping[str, int]


QUANTITIES: tuple[Metric, ...] = (
    Metric("area", "px", "shape"),
    Metric("eccentricity", "", "shape"),
    Metric("solidity", "", "shape"),
    Metric("brightness", "grey", "light"),
    Metric("brightness, dim end (5 %)", "grey", "light", SCALAR),
    Metric("brightness, bright end (95 %)", "grey", "light", SCALAR),
    Metric("contrast inside", "", "texture"),
    Metric("power above 8 px", "", "texture"),
    Metric("power at 4-8 px", "", "texture"),
    Metric("power below 4 px", "", "texture"),
    Metric("edge profile", "", "edge", CURVE),
    Metric("fall of light across the edge", "", "edge"),
    Metric("background level", "grey", "camera"),
    Metric("noise", "grey", "camera", SCALAR),
    *(Metric(f"noise along {key} px", "", "camera", SCALAR) for key in NOISE_KEYS),
    *(Metric(f"texture after {lag} frames", "", "persistence") for lag in LAGS),
    Metric("texture of unrelated nuclei", "", "persistence"),
    *(Metric(f"texture kept after {lag} frames", "", "persistence", SCALAR) for lag in LAGS),
    Metric("step", "px/frame", "motion"),
    Metric("turning angle", "degrees", "motion"),
    Metric("area ratio from frame to frame", "", "motion"),
    Metric("cycle length", "frames", "lives"),
    Metric("division rate", "1/frame", "lives", SCALAR),
    Metric("daughter over mother before mitosis", "", "lives"),
    Metric("smaller over larger sister", "", "lives"),
    Metric("dip at mitosis", "", "lives"),
    *(Metric(f"share in {stage}", "", "lives", SCALAR) for stage in STAGES),
    Metric("density", "1/1e5 px", "layout", SCALAR),
    Metric("nearest neighbour", "px", "layout"),
    Metric("share in contact", "", "layout", SCALAR),
    Metric("label agreement", "", "labels"),
    *(Metric(f"label agreement, {stage}", "", "labels") for stage in STAGES),
)
"""Everything that is measured, in the order of the report. The edge profile is the median relative
light at the signed distances ``neighbourhoods.RINGS``; texture is correlation after alignment."""


def measure_clips(
    clips: Clip | Sequence[Clip], *, pairs: int = PAIRS, seed: int = 0
) -> Measurements:
    """Measure a film, or many clips as if they were one.

    Nuclei that touch the edge of the frame are left out of all measures of shape, light, texture,
    motion and stages. Small windows cut large nuclei more often than small ones and show no long
    cycles: compare films of about the same window and length.
    """
    some = [clips] if isinstance(clips, Mapping) else clips
    if len(some) == 0:
        raise ValueError("clips must hold at least one clip, got none")
    seen = list_detections(some)
    looks = measure_appearance(some, seen)
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


def _looks(looks: AppearanceFeatures, seen: Detections) -> Samples:
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


def _camera(clips: Sequence[Clip]) -> Samples:
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


def _persistence(clips: Sequence[Clip], seen: Detections, pairs: int, seed: int) -> Samples:
    found = measure_texture_autocorrelation(clips, seen, pairs=pairs, seed=seed)
    yield "texture of unrelated nuclei", found.unrelated, None
    for lag, values in found.lags.items():
        yield f"texture after {lag} frames", values, None
        kept = found.kept(lag)
        yield f"texture kept after {lag} frames", kept, len(values)


def _histories(clips: Sequence[Clip], seen: Detections) -> Samples:
    motion = measure_motion(seen)
    yield "step", motion.step, None
    yield "turning angle", motion.turning, None
    yield "area ratio from frame to frame", motion.growth, None
    lives = measure_divisions(clips, seen)
    yield "cycle length", lives.cycle, None
    rate = lives.divisions / lives.chances if lives.chances else math.nan
    yield "division rate", rate, lives.divisions
    yield "daughter over mother before mitosis", lives.daughter, None
    yield "smaller over larger sister", lives.sisters, None
    yield "dip at mitosis", lives.dip, None


def _layout(clips: Sequence[Clip], seen: Detections, looks: AppearanceFeatures) -> Samples:
    pixels = sum(clips[number]["masks"].numel() for number in range(len(clips)))
    # A nucleus that the edge of the frame cuts is half in.
    nuclei = float(np.where(seen.whole, 1, 0.5).sum())
    yield "density", 1e5 * nuclei / pixels, len(seen)
    yield "nearest neighbour", looks.neighbour, None
    known = looks.contact >= 0
    share = looks.contact[known].mean() if known.any() else math.nan
    yield "share in contact", share, int(known.sum())


__all__ = ["Measurements", "MetricComparison", "Summary", "compare_metrics", "measure_clips"]

LEAST_VALUES = 5
"""A film with fewer values of a quantity has no distribution of it to compare."""


@dataclass(frozen=True)
class Summary:
    """One film's values of one quantity."""

    count: int  # values of the distribution, or things behind the number or the curve
    median: float | None = None  # median; of a single number, the number. None where there is none
    low: float | None = None  # 10th percentile of a distribution, else None
    high: float | None = None  # 90th percentile of a distribution, else None
    curve: tuple[float, ...] = ()  # the curve, else empty


@dataclass(frozen=True)
class MetricComparison:
    """One quantity in three films; :func:`dataclasses.asdict` makes it ready for JSON."""

    name: str  # what was measured
    unit: str  # its unit; empty for a pure number
    group: str  # what it is about
    synthetic: Summary  # the judged film
    reference: Summary  # the real film that it should be like
    other: Summary  # A second real film, the yardstick
    measure: str  # which distance: DISTRIBUTION, SCALAR or CURVE
    # from the judged film to the reference; None where one of them does not show it
    distance: float | None
    yardstick: float | None  # the same distance from the other real film to the reference
    ratio: float | None  # distance over yardstick; None where the yardstick is missing or 0


def compare_metrics(
    synthetic: Measurements, reference: Measurements, other: Measurements
) -> list[MetricComparison]:
    """Lay three films beside each other.

    Both distances of a distribution are divided by the same standard deviation, the root of the
    mean variance of the two real films; so the ratio says how many times farther the synthetic
    film is from the reference than another real film is. Two films of few values lie apart by
    chance alone, and two real films may agree by chance in a single number: mind the counts and
    the distances beside the ratio.

    Examples:
        >>> film = Measurements({q.name: np.arange(9.0) for q in QUANTITIES}, {})
        >>> longer = Measurements({q.name: np.arange(10.0) for q in QUANTITIES}, {})
        >>> line = compare(film, film, longer)[0]
        >>> line.name, line.distance, round(line.yardstick, 2), line.ratio
        ('area', 0.0, 0.18, 0.0)
    """
    return [_line(one, synthetic, reference, other) for one in QUANTITIES]


def _line(one: Metric, *films: Measurements) -> MetricComparison:
    synthetic, reference, other = (film.values[one.name] for film in films)
    distance = _distance(synthetic, (reference, other), one)
    yardstick = _distance(other, (reference, other), one)
    summaries = [_summary(film, one) for film in films]
    return MetricComparison(
        name=one.name,
        unit=one.unit,
        group=one.group,
        synthetic=summaries[0],
        reference=summaries[1],
        other=summaries[2],
        measure=one.distance,
        distance=distance,
        yardstick=yardstick,
        ratio=distance / yardstick if distance is not None and yardstick else None,
    )


def _distance(film: Array, real: Sequence[Array], quantity: Metric) -> float | None:
    """Return the distance of a film to the first of the real ones."""
    reference = real[0]
    if quantity.distance in (SCALAR, CURVE):
        if not len(film) or len(film) != len(reference):
            return None
        return float(np.abs(film - reference).mean())
    if min(len(film), len(reference)) < LEAST_VALUES:
        return None
    distance = float(stats.wasserstein_distance(film, reference))
    known = [np.var(values) for values in real if len(values) >= LEAST_VALUES]
    deviation = float(np.sqrt(np.mean(known)))
    if distance == 0:
        return 0.0
    return distance / deviation if deviation > 0 else None


def _summary(film: Measurements, quantity: Metric) -> Summary:
    values, count = film.values[quantity.name], film.counts.get(quantity.name, 0)
    if not len(values):
        return Summary(count)
    if quantity.distance == DISTRIBUTION:
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
        return Summary(len(values), median, low, high)
    if quantity.distance == CURVE:
        return Summary(count, curve=tuple(values.tolist()))
    return Summary(count, float(values[0]))
