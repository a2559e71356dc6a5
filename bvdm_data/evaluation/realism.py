"""Realism: compare synthetic clips with two real videos, quantity by quantity."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from bvdm_data.clip import PHASES, Clip
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
from bvdm_data.outlines import fit_slope, measure_edges
from bvdm_data.synth.contours import Array

# About how many frames background and noise are measured on, spread evenly over the clips; at
# least one of each clip.
NOISE_FRAMES = 24
# How two videos are compared in a quantity: the Wasserstein-1 distance of the distributions over
# the standard deviation within the two real videos; the absolute difference of two numbers; the
# mean absolute difference of two curves.
DISTRIBUTION, SCALAR, CURVE = "W1/sd", "abs. difference", "mean abs. difference"
LEAST_VALUES = 5  # A video with fewer values of a quantity has no distribution of it to compare

Samples = Iterator[tuple[str, npt.ArrayLike, int | None]]


class Metric(NamedTuple):
    """Something that is measured on a video."""

    name: str
    unit: str  # empty for a pure number
    group: str  # what it is about, such as shape or motion
    distance: str = DISTRIBUTION  # how two videos are compared in it: DISTRIBUTION, SCALAR or CURVE


@dataclass(frozen=True, eq=False)
class Measurements:
    """Everything measured on one video, or on many clips treated as one."""

    # by name of the quantity: the values of a distribution [n], one number [1], or a curve [k];
    # all finite, empty where the video does not show it
    values: Mapping[str, Array]
    # number of values, or of things behind the number or the curve, by name
    counts: Mapping[str, int]


# Everything that is measured, in the order of the report. The edge profile is the median relative
# light at the signed distances ``RINGS``; texture is the correlation after alignment.
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
    *(Metric(f"share in {stage}", "", "lives", SCALAR) for stage in PHASES),
    Metric("density", "1/1e5 px", "layout", SCALAR),
    Metric("nearest neighbour", "px", "layout"),
    Metric("share in contact", "", "layout", SCALAR),
    Metric("label agreement", "", "labels"),
    *(Metric(f"label agreement, {stage}", "", "labels") for stage in PHASES),
)


def measure_clips(clips: Sequence[Clip], *, pairs: int = PAIRS) -> Measurements:
    """Measure many clips as if they were one video.

    Nuclei that touch the edge of the frame are left out of all measures of shape, light, texture,
    motion and stages. Small windows cut large nuclei more often than small ones and show no long
    cycles: compare videos of about the same window and length.
    """
    detections = list_detections(clips)
    features = measure_appearance(clips, detections)
    values: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for part in (
        _measure_appearance(features, detections),
        _measure_camera(clips),
        _measure_time(clips, detections, pairs),
        _measure_layout(clips, detections, features),
    ):
        for name, sample, count in part:
            array = np.atleast_1d(np.asarray(sample, float))
            values[name] = array[np.isfinite(array)]
            counts[name] = len(values[name]) if count is None else count
    return Measurements({metric.name: values[metric.name] for metric in QUANTITIES}, counts)


def _measure_appearance(features: AppearanceFeatures, detections: Detections) -> Samples:
    measured = np.isfinite(features.brightness)
    yield "area", detections.area[measured], None
    yield from ((name, getattr(features, name), None) for name in ("eccentricity", "solidity"))
    light = features.brightness[measured]
    yield "brightness", light, None
    for name, share in (("dim end (5 %)", 0.05), ("bright end (95 %)", 0.95)):
        yield f"brightness, {name}", np.quantile(light, share) if len(light) else [], len(light)
    names = ("contrast inside", "power above 8 px", "power at 4-8 px", "power below 4 px")
    for name, column in zip(names, features.texture.T, strict=True):
        yield name, column, None
    profile = features.profile[np.isfinite(features.profile).all(1)]
    half = len(RINGS) // 2
    yield "edge profile", np.median(profile, axis=0) if len(profile) else [], len(profile)
    yield "fall of light across the edge", profile[:, half - 2] - profile[:, half + 1], None
    yield "label agreement", features.agreement, None
    staged = measured & (features.stage >= 0)
    for code, stage in enumerate(PHASES):
        here = staged & (features.stage == code)
        yield f"label agreement, {stage}", features.agreement[here], None
        share = here.sum() / staged.sum() if staged.any() else math.nan
        yield f"share in {stage}", share, int(here.sum())


def _measure_camera(clips: Sequence[Clip]) -> Samples:
    each = max(NOISE_FRAMES // len(clips), 1)
    frames = []
    for number in range(len(clips)):
        video, masks = clips[number]["video"][:, 0].float().numpy(), clips[number]["masks"].numpy()
        for t in sorted({round(t) for t in np.linspace(0, len(video) - 1, each)}):
            frames.append(measure_noise(video[t], masks[t]))
    yield "background level", [frame["level"] for frame in frames], None
    for name, key in (("noise", "std"), *((f"noise along {key} px", key) for key in NOISE_KEYS)):
        known = [frame[key] for frame in frames if math.isfinite(frame[key])]
        yield name, np.median(known) if known else [], len(known)


def _measure_time(clips: Sequence[Clip], detections: Detections, pairs: int) -> Samples:
    correlation = measure_texture_autocorrelation(clips, detections, pairs=pairs)
    yield "texture of unrelated nuclei", correlation.unrelated, None
    for lag, values in correlation.lags.items():
        yield f"texture after {lag} frames", values, None
        yield f"texture kept after {lag} frames", correlation.kept(lag), len(values)
    motion, lives = measure_motion(detections), measure_divisions(clips, detections)
    rate = lives.divisions / lives.chances if lives.chances else math.nan
    yield "division rate", rate, lives.divisions
    for name, values in {
        "step": motion.step,
        "turning angle": motion.turning,
        "area ratio from frame to frame": motion.growth,
        "cycle length": lives.cycle,
        "daughter over mother before mitosis": lives.daughter,
        "smaller over larger sister": lives.sisters,
        "dip at mitosis": lives.dip,
    }.items():
        yield name, values, None


def _measure_layout(
    clips: Sequence[Clip], detections: Detections, features: AppearanceFeatures
) -> Samples:
    pixels = sum(clips[number]["masks"].numel() for number in range(len(clips)))
    # A nucleus that the edge of the frame cuts is half in.
    nuclei = float(np.where(detections.whole, 1, 0.5).sum())
    yield "density", 1e5 * nuclei / pixels, len(detections)
    yield "nearest neighbour", features.neighbour, None
    known = features.contact[features.contact >= 0]
    yield "share in contact", known.mean() if len(known) else math.nan, len(known)


@dataclass(frozen=True)
class Summary:
    """One video's values of one quantity."""

    count: int  # values of the distribution, or things behind the number or the curve
    median: float | None = None  # median; of a single number, the number. None where there is none
    low: float | None = None  # 10th percentile of a distribution, else None
    high: float | None = None  # 90th percentile of a distribution, else None
    curve: tuple[float, ...] = ()  # the curve, else empty


@dataclass(frozen=True)
class MetricComparison:
    """One quantity in three videos; :func:`dataclasses.asdict` makes it ready for JSON."""

    name: str  # what was measured
    unit: str  # its unit; empty for a pure number
    group: str  # what it is about
    synthetic: Summary  # the evaluated video
    reference: Summary  # the real video that it should be like
    other: Summary  # a second real video, the yardstick
    measure: str  # which distance: DISTRIBUTION, SCALAR or CURVE
    # from the evaluated video to the reference; None where one of them does not show it
    distance: float | None
    yardstick: float | None  # the same distance from the other real video to the reference
    ratio: float | None  # distance over yardstick; None where the yardstick is missing or 0


def compare_metrics(
    synthetic: Measurements, reference: Measurements, other: Measurements
) -> list[MetricComparison]:
    """Compare three videos in every quantity.

    Both distances of a distribution are divided by the same standard deviation, the root of the
    mean variance of the two real videos. So the ratio tells how many times farther the synthetic
    video is from the reference than another real video is. Two videos of few values differ by
    chance alone, and two real videos may agree by chance in a single number: read the ratio
    together with the counts and the distances.

    Examples:
        >>> video = Measurements({q.name: np.arange(9.0) for q in QUANTITIES}, {})
        >>> longer = Measurements({q.name: np.arange(10.0) for q in QUANTITIES}, {})
        >>> line = compare_metrics(video, video, longer)[0]
        >>> line.name, line.distance, round(line.yardstick, 2), line.ratio
        ('area', 0.0, 0.18, 0.0)
    """
    lines = []
    for metric in QUANTITIES:
        videos = (synthetic, reference, other)
        values = [video.values[metric.name] for video in videos]
        distance, yardstick = (_measure_distance(values[i], values[1:], metric) for i in (0, 2))
        ratio = distance / yardstick if distance is not None and yardstick else None
        name, unit, group, measure = metric
        ours, real, other_real = (_summarize(video, metric) for video in videos)
        summaries, distances = (ours, real, other_real), (distance, yardstick, ratio)
        lines.append(MetricComparison(name, unit, group, *summaries, measure, *distances))
    return lines


def _measure_distance(video: Array, real: Sequence[Array], metric: Metric) -> float | None:
    """Return the distance of a video to the first of the real ones."""
    reference = real[0]
    if metric.distance in (SCALAR, CURVE):
        if not len(video) or len(video) != len(reference):
            return None
        return float(np.abs(video - reference).mean())
    if min(len(video), len(reference)) < LEAST_VALUES:
        return None
    distance = float(stats.wasserstein_distance(video, reference))
    variances = [np.var(values) for values in real if len(values) >= LEAST_VALUES]
    deviation = float(np.sqrt(np.mean(variances)))
    if distance == 0:
        return 0.0
    return distance / deviation if deviation > 0 else None


def _summarize(video: Measurements, metric: Metric) -> Summary:
    values, count = video.values[metric.name], video.counts.get(metric.name, 0)
    if not len(values):
        return Summary(count)
    if metric.distance == DISTRIBUTION:
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
        return Summary(len(values), median, low, high)
    if metric.distance == CURVE:
        return Summary(count, curve=tuple(values.tolist()))
    return Summary(count, float(values[0]))


@dataclass(frozen=True)
class EdgesByLight:
    """Where outlines lie on the slope of light: the light just inside over that of the core."""

    nuclei: int  # nuclei that are measured
    share: float  # median share
    # change of the share for a core e times as bright, all nuclei together
    slope: float
    slope_error: float  # its standard error, by leaving out one clip after the other
    spread: float  # standard deviation over the clips of their median shares
    low: float  # 10th percentile of these medians
    high: float  # 90th percentile of them


def measure_edges_by_light(clips: Sequence[Clip]) -> EdgesByLight:
    """Measure whether an outline means the same in bright and dim nuclei, and in all clips.

    Clips with fewer than 5 nuclei that can be measured are left out. NaN where fewer than 3 stay.
    """
    clips_of_edges = []
    for clip in clips:
        frames = zip(clip["video"][:, 0].numpy(), clip["masks"].numpy(), strict=True)
        light, share = map(np.concatenate, zip(*(measure_edges(*f) for f in frames), strict=True))
        clips_of_edges += [(light, share)] if len(light) >= LEAST_VALUES else []
    count = len(clips_of_edges)
    if count < 3:
        return EdgesByLight(sum(len(x) for x, _ in clips_of_edges), *(math.nan,) * 6)

    def fit(chosen: Sequence[tuple[Array, Array]]) -> float:
        return fit_slope(*map(np.concatenate, zip(*chosen, strict=True)))

    rest = [fit(clips_of_edges[:i] + clips_of_edges[i + 1 :]) for i in range(count)]
    shares, medians = zip(*((share, np.median(share)) for _, share in clips_of_edges), strict=True)
    every = np.concatenate(shares)
    low, high = np.quantile(medians, (0.1, 0.9)).tolist()
    error = float(np.sqrt((count - 1) * np.var(rest)))
    spread = float(np.std(medians, ddof=1))
    median, slope = float(np.median(every)), fit(clips_of_edges)
    return EdgesByLight(len(every), median, slope, error, spread, low, high)
