"""Alignment: lays one picture of a nucleus onto another, and tells how alike their insides are."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LAGS = (1, 2, 4, 7)
"""Frames between the two pictures of a nucleus that are compared."""

AREA_RATIO = (0.7, 1.4)
"""Areas of the two pictures of a pair, second over first: no mitosis lies between them."""

DEPTH = 2
"""Only pixels more than this off the outline are compared, px."""

HALF = 24
"""Half side of the square that a nucleus is compared in, px."""

_LEAST_COMMON = 40  # px of the interior that both pictures must show

# Turns (radians) and shifts (px) that are tried, each stage around the best of the one before.
_SEARCH = (
    ([math.radians(turn) for turn in range(-45, 46, 9)], [0.0]),
    ([math.radians(turn) for turn in range(-6, 7, 3)], [-1.0, 0.0, 1.0]),
    ([math.radians(turn) for turn in range(-2, 3)], [-0.5, 0.0, 0.5]),
)


@dataclass(frozen=True, eq=False)
class Picture:
    """One nucleus with its centroid near the middle of a square of 49 x 49 pixels.

    Attributes:
        light: Grey values less their mean, ``[49, 49]`` float32.
        inside: True more than 2 px inside the outline, ``[49, 49]``.
        rest: Centroid ``(y, x)`` less the middle of the square, px, ``[2]`` float32.
    """

    light: Tensor
    inside: Tensor
    rest: Tensor


def aligned_correlation(one: Picture, other: Picture, *, start: float = 0.0) -> float:
    """Move one picture onto another and correlate what both show of the inside.

    Args:
        one: The picture that stays.
        other: The picture that is turned and shifted.
        start: The turn around which turns are tried, radians; a point of one
            at the angle a (from x to y) is looked for at the angle a - turn in other.

    Returns:
        The correlation; NaN where fewer than 40 pixels are in both insides.
    """
    if int(one.inside.sum()) < _LEAST_COMMON:
        return math.nan
    best = torch.tensor([start, 0.0, 0.0], dtype=torch.float32)
    score = correlation = torch.zeros(1)
    for turns, shifts in _SEARCH:
        steps = torch.cartesian_prod(torch.tensor(turns), *[torch.tensor(shifts)] * 2)
        tried = best + steps.reshape(-1, 3)
        score, correlation = _scores(one, other, tried)
        best = tried[score.argmax()]
    found = score.argmax()
    return float(correlation[found]) if torch.isfinite(score[found]) else math.nan


def turn_of_axes(one: Picture, other: Picture) -> float:
    """Return the turn that lays the long axes of two insides onto each other, radians."""
    angles = []
    for picture in (one, other):
        y, x = (picture.inside.nonzero() - HALF - picture.rest).T
        angles.append(0.5 * math.atan2(2 * float((x * y).sum()), float((x * x - y * y).sum())))
    return angles[0] - angles[1]


def _scores(one: Picture, other: Picture, tried: Tensor) -> tuple[Tensor, Tensor]:
    """Score rigid motions of a picture onto the inside of another.

    Args:
        one: The picture that stays.
        other: The picture that is moved.
        tried: Turn (radians) and shift down and right (px), ``[N, 3]``.

    Returns:
        Overlap of the insides plus correlation, -inf with too few common pixels; and the
        correlation; ``[N]`` each.
    """
    places = one.inside.nonzero()
    light = one.light[places[:, 0], places[:, 1]]
    y, x = (places - HALF - one.rest).T
    turn, down, right = tried.T[..., None]
    rows = turn.cos() * y - turn.sin() * x + down + other.rest[0]
    columns = turn.sin() * y + turn.cos() * x + right + other.rest[1]
    grid = torch.stack([columns, rows], -1)[None] / HALF
    moved = _sampled(other.light, grid, "bicubic")
    common = (_sampled(other.inside.float(), grid, "bilinear") >= 0.5).float()
    count = common.sum(1, keepdim=True)

    def mean(values: Tensor) -> Tensor:
        return (values * common).sum(1, keepdim=True) / count.clamp(min=1)

    first, second = light - mean(light), moved - mean(moved)
    spread = (mean(first**2) * mean(second**2)).sqrt()
    correlation = (mean(first * second) / spread.clamp(min=1e-12))[:, 0]
    union = len(places) + float(other.inside.sum()) - count[:, 0]
    score = correlation + count[:, 0] / union.clamp(min=1)
    return score.where(count[:, 0] >= _LEAST_COMMON, torch.tensor(-torch.inf)), correlation


def _sampled(plane: Tensor, grid: Tensor, mode: str) -> Tensor:
    many = plane[None, None]
    return F.grid_sample(many, grid, mode, padding_mode="zeros", align_corners=True)[0, 0]
