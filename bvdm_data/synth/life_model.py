"""LifeModel: how nuclei live, as the video shows it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bvdm_data.synth.shapes import Array
from bvdm_data.synth.timeline import BEFORE_INTERPHASE, INTERPHASE

GROWN = 10
"""Frames before the end of a cycle at which a mother's grown area is measured: the middle of
those that a model is fitted to."""


@dataclass(frozen=True)
class LifeModel:
    """How long nuclei stay in each stage, how bright they are, how they grow; from the video.

    Attributes:
        durations: Probability of a stage lasting 0, 1, ... frames, ``[S, D]``; the row of
            interphase is not used, since it fills the rest of the cycle.
        cycle: Mean and standard deviation of the logarithm of the time from birth to division in
            frames (a log-normal law), ``[2]``.
        brightness: Brightness of the video's nuclei in interphase at equally spaced quantiles
            from 0 to 1, in grey values above the background, ``[B]``.
        brightness_memory: A nucleus' rank among these drifts: correlation of its normal score with
            that of the frame before, of most nuclei.
        brightness_shared: Correlation between sisters of what is new in this score.
        stage_brightness: Median and (robust) standard deviation of the logarithm of the
            brightness in each stage over that of the same nucleus in interphase, ``[S, 2]``.
        sister_spread: Standard deviation of a newborn's log brightness around that of both
            daughters.
        body: Area of the video's grown nuclei, before they divide, at equally spaced quantiles
            from 0 to 1, px^2, ``[Q]``.
        area_of_age: Area 0, 1, ... frames after birth over the grown mother's, whatever the
            stage, ``[A]``; it stays at the last value.
        area_of_stage: Area in each stage over that of the same nucleus, grown, or of a newborn's
            mother, ``[S]``.
        area_at_birth: As ``area_of_stage``, of newborn in their first frame, ``[S]``: in telophase
            they grow fast.
        birth_split: Standard deviation of a daughter's share of the mother's body, around one
            half.
        split: The same without the outliers, which are flaws of the masks.
        stage_spread: Robust standard deviation of the logarithm of the area in each stage around
            ``area_of_stage``, ``[S]``; 0 in interphase.
        grown: As ``body``, but of all nuclei: mothers that the video shows dividing are larger
            than others, ``[Q]`` px^2.
        area_in_interphase: Area in interphase 0, 1, ... frames after birth over the grown
            mother's, ``[A]``; it stays at the last value.
        size: Standard deviation of the logarithm of a nucleus' area around what its body and its
            age say, and the correlation of this deviation with that of the frame before, ``[2]``;
            newborn begin with their mother's.
        mitoses: Frames of pro-, prometa- and metaphase in each mitosis of the video, ``[n, 3]``.
        births: Frames of ana- and telophase of each newborn of the video, ``[m, 2]``.
        minutes: Time between two frames.
    """

    durations: Array
    cycle: Array
    brightness: Array
    brightness_memory: float
    brightness_shared: float
    stage_brightness: Array
    sister_spread: float
    body: Array
    area_of_age: Array
    area_of_stage: Array
    area_at_birth: Array
    birth_split: float
    split: float
    stage_spread: Array
    grown: Array
    area_in_interphase: Array
    size: Array
    mitoses: Array
    births: Array
    minutes: float


def growth(model: LifeModel, stages: npt.NDArray[np.int64]) -> Array:
    """Return the area of every frame of a life over that of the grown nucleus.

    The curve of the video is that of all nuclei over their mothers; here it is 1 when the nucleus
    is grown, however short its cycle.

    Args:
        model: Measured areas.
        stages: Stage of every frame from birth to division, ``[n]``.

    Returns:
        ``[n]``.
    """
    curve = model.area_in_interphase
    usual = curve[np.minimum(np.arange(len(stages)), len(curve) - 1)]
    grown = len(stages) - GROWN
    if grown > 0:
        usual = usual / np.interp(np.arange(len(stages)), [0, grown], [1, usual[grown]])
    areas = np.where(stages == INTERPHASE, usual, model.area_of_stage[stages])
    if stages[0] in BEFORE_INTERPHASE:
        areas[0] = model.area_at_birth[stages[0]]
    return areas
