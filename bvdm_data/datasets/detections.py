"""Detections: what a segmenter with known errors makes of a clip, and how they cover the truth."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from bvdm_data.clip import split_gaps, take_part
from bvdm_data.datasets.tracks import check_track_table, group_families
from bvdm_data.rng import numpy_rng
from bvdm_data.validate import Rule, check_fields

# Errors that are counted, in the order of the columns of ``planted``.
ERRORS = ("missed", "lineage", "border", "merged", "split", "false")
DETECTED = "_detected"  # key of the masks that detections were made of, within a transform
WAVES = 6  # how many waves, of none to five crests, make a shaken outline (our choice)
_SHARES = ("missed", "missed_lineages", "merged", "split", "false", "border_missed")

_Labels = npt.NDArray[np.int32]
_Bools = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]
_Draws = Mapping[str, np.random.Generator]


@dataclass(frozen=True, kw_only=True)
class DetectionErrors:
    """Detections with planted errors, for trackers: a transform that adds them to a clip.

    Call it on any clip with ``masks`` and ``tracks``, or give it to a data set as ``transform=``,
    alone or behind transforms that move pixels. Without any error, detections are the masks under
    other ids.

    ``missed``, ``merged``, ``split`` and ``false`` are shares of the nuclei of a frame, exact in
    expectation, each on top of the others; errors of a frame do not depend on those of another. No
    nucleus has two of them. Where there are too few nuclei or neighbours left, or no room for
    false ones, there are fewer; ``planted`` counts those that there are.

    Every detection covers more than half of each nucleus that it belongs to, except for the
    smaller part of a split one, and no pixel of others. So the measures of the Cell Tracking
    Challenge find the planted errors and no others: a missed nucleus is a false negative, a merged
    pair a needed split, a split nucleus and a false detection one false positive each.

    Args:
        missed: Share of the nuclei that have no detection.
        missed_lineages: Chance of each family, a founder with all its descendants, to have no
            detection in any frame.
        merged: Share of the nuclei that have one detection with a neighbour. The nearest pair up.
        reach: How far apart neighbours may be that merge, between their nearest pixels, px; 1: they
            touch. What lies between them is part of the detection.
        split: Share of the nuclei that have two detections: cut across the long axis, the smaller
            part with a fifth to half of the pixels. A nucleus of less than 3 px stays whole.
        false: Detections of no nucleus, as a share of the nuclei. They have the shapes of nuclei of
            the frame, and lie apart from all.
        outline: Standard deviation of outlines, px, smooth along them.
        shift: Standard deviation of the place of detections, in y and in x, px. One that would lie
            on another nucleus, or cover too little of its own, moves less or stays.
        border: Width in pixels of a band at the edge of the image in which nothing is detected.
            Nuclei are cut at it, and left out where half or less would remain.
        border_missed: Chance of a nucleus that touches this band, or the edge, to be left out.
        seed: Detections are a pure function of masks, tracks, rates and seed. None: new ones at
            each call, drawn from torch's global random state, which data sets set for each clip.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range.

    Examples:
        A clip as trackers meet it, and which nuclei are beneath the first detection of frame 2::

            errors = DetectionErrors(missed=0.05, merged=0.02, false=0.02)
            clip = SyntheticHeLaVideos(transform=errors).clip(0)
            clip["detection_tracks"][2, 0]  # [7, 0]: nucleus 7
    """

    missed: float = 0.0
    missed_lineages: float = 0.0
    merged: float = 0.0
    reach: int = 3
    split: float = 0.0
    false: float = 0.0
    outline: float = 0.0
    shift: float = 0.0
    border: int = 0
    border_missed: float = 0.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        """Check the arguments; see the class."""
        check_fields(
            self,
            **{name: Rule(float, least=0, most=1) for name in _SHARES},
            outline=Rule(float, least=0, most=10),
            shift=Rule(float, least=0, most=20),
            reach=Rule(int, least=1, most=20),
            border=Rule(int, least=0),
            seed=Rule(int, least=0, or_none=True),
        )

    def __call__(self, clip: Mapping[str, Any]) -> dict[str, Any]:
        """Add detections to a clip.

        Args:
            clip: One clip with ``masks`` and ``tracks``; no video is needed.

        Returns:
            The clip with three more keys. ``detections`` ``[F, H, W]`` int32: 0 is background, ids
            count from 1 in each frame, by the first pixel from above, and tell nothing of tracks.
            ``detection_tracks`` ``[F, rows, 2]`` int32: row ``d - 1`` of a frame has the ids of
            the nuclei that detection ``d`` covers: one and 0; two of a merged one, the smaller
            first; 0 and one of the smaller part of a split nucleus; two zeros of a false one; -1
            pads. No id is twice in the first column. ``planted`` ``[F, 6]`` int32: how many nuclei
            were missed, missed with their lineage, left out at the border; pairs merged; nuclei
            split; false ones.

        Raises:
            TypeError: If clip is no mapping of tensors.
            ValueError: If it has no masks or tracks, is a batch, or its masks show an id that has
                no track.
        """
        masks, tracks = _take(clip, "masks"), _take(clip, "tracks")
        table = check_track_table(tracks, len(masks))
        seed = int(torch.randint(2**62, ())) if self.seed is None else self.seed
        pixels = np.ascontiguousarray(masks, np.int32).data
        name = hashlib.blake2b(pixels, digest_size=8).hexdigest()
        draws = {kind: numpy_rng(seed, "detections", name, kind) for kind in (*ERRORS, "shaken")}
        rng, chance = draws["lineage"], self.missed_lineages
        lost = [one for family in group_families(table) if rng.random() < chance for one in family]
        found = np.zeros(masks.shape, np.int32)
        rows = len(tracks) * (1 + (self.split > 0) + (self.false > 0))
        covered = np.full((len(masks), rows, 2), -1, np.int32)
        planted = np.zeros((len(masks), len(ERRORS)), np.int32)
        for frame, mask in enumerate(masks):
            ids, labels = _number(mask)
            if len(odd := np.setdiff1d(ids, table[:, 0])):
                raise ValueError(
                    f"clip must have a row of tracks for every id in masks, got id {odd[0]} in "
                    f"frame {frame}; give the masks and tracks of one clip"
                )
            picture = _Picture(labels, self.border)
            planted[frame] = self._plant(picture, np.isin(ids, lost), draws)
            found[frame], pairs = picture.list_detections(ids)
            covered[frame, : len(pairs)] = pairs
        made = {"detections": found, "detection_tracks": covered, "planted": planted}
        device = clip["masks"].device
        added = {key: torch.from_numpy(value).to(device) for key, value in made.items()}
        if "_pixels" in clip:  # within a transform
            added[DETECTED] = torch.from_numpy(masks.copy()).to(device)
        return {**clip, **added}

    def _plant(self, picture: "_Picture", is_lost: _Bools, draws: _Draws) -> list[int]:
        """Plant the errors of one frame; return how many there are of each."""
        count, kept, areas = len(is_lost), picture.kept, picture.areas
        at_border = picture.touches & (draws["border"].random(count) < self.border_missed)
        at_border = ~is_lost & (at_border | (2 * kept <= areas))
        there = ~is_lost & ~at_border
        missed = _draw(draws["missed"], there, self.missed * count)
        there &= ~missed
        picture.remove(np.flatnonzero(~there) + 1)
        pairs = np.zeros((0, 2), np.int64)
        if self.merged > 0:
            pairs = _pair_neighbours(picture.found, self.reach, draws["merged"])
            pairs = pairs[_draw(draws["merged"], pairs[:, 0] > 0, self.merged * count / 2)]
            for one, other in pairs.tolist():
                picture.merge(one, other, self.reach)
            there[pairs.ravel() - 1] = False
        split = _draw(draws["split"], there & (kept >= areas // 2 + 2), self.split * count)
        for one in (np.flatnonzero(split) + 1).tolist():
            picture.split(one, draws["split"])
        number = draws["false"].binomial(count, self.false)
        false = sum(picture.add_false(draws["false"]) for _ in range(number))
        if self.outline > 0 or self.shift > 0:
            picture.shake(self.outline, self.shift, draws["shaken"])
        sums = (int(one.sum()) for one in (missed, is_lost, at_border))
        return [*sums, len(pairs), int(split.sum()), false]


class _Picture:
    """One frame: its nuclei, and what is detected of them."""

    def __init__(self, labels: _Labels, border: int) -> None:
        """Detect all nuclei, numbered 1, 2, ..., but nothing in the band at the border."""
        height, width = labels.shape
        inner = slice(border, max(height - border, 0)), slice(border, max(width - border, 0))
        self.labels, self.found = labels, np.zeros_like(labels)
        self.found[inner] = labels[inner]
        self.inside = np.zeros(labels.shape, bool)
        self.inside[inner] = True
        self.last = int(labels.max(initial=0))
        self.areas = np.bincount(labels.ravel(), minlength=self.last + 1)[1:]
        self.kept = np.bincount(self.found.ravel(), minlength=self.last + 1)[1:]
        met = self.found[inner]
        rim = np.concatenate([met[:1].ravel(), met[-1:].ravel(), met[:, :1], met[:, -1:]], None)
        self.touches = self.kept < self.areas
        self.touches[rim[rim > 0] - 1] = True
        self.covered = {one: [one, 0] for one in range(1, self.last + 1)}  # labels, by detection

    def remove(self, gone: _Ints) -> None:
        """Leave out detections."""
        kept = np.arange(self.last + 1, dtype=np.int32)
        kept[gone] = 0
        self.found = kept[self.found]
        for one in gone.tolist():
            del self.covered[one]

    def merge(self, one: int, other: int, reach: int) -> None:
        """Make one detection of two and of what lies between them."""
        self.found[self.found == other] = one
        self.covered[one] = [one, self.covered.pop(other)[0]]
        place = _grow(_find_box(self.found == one), reach + 1)
        own = self.found[place] == one
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        closed = ndimage.binary_closing(own, np.hypot(y, x) <= reach / 2 + 1)
        self.found[place][closed & self._is_free(place)] = one

    def split(self, one: int, rng: np.random.Generator) -> None:
        """Make two detections of one; the larger covers more than half of the nucleus."""
        pixels = np.argwhere(self.found == one)
        turn = rng.normal(0, 0.3)
        axes = np.linalg.eigh(np.cov(pixels.T))[1]  # the long one is the last
        along = (pixels - pixels.mean(0)) @ axes @ [math.sin(turn), math.cos(turn)]
        order = np.argsort(along * rng.choice([-1, 1]), kind="stable")
        most = len(pixels) - self.areas[one - 1] // 2 - 1
        smaller = order[: np.clip(round(rng.uniform(0.2, 0.5) * len(pixels)), 1, most)]
        self.found[tuple(pixels[smaller].T)] = self._name([0, one])

    def add_false(self, rng: np.random.Generator) -> bool:
        """Add a detection of the shape of a nucleus where there is room; return whether."""
        shape = self.labels == rng.integers(1, len(self.areas) + 1)
        shape = shape[_find_box(shape)]
        height, width = shape.shape
        # How many pixels are taken in each box that is one pixel wider than the shape.
        taken = np.pad((self.labels > 0) | (self.found > 0) | ~self.inside, ((2, 1), (2, 1)))
        sums = taken.cumsum(0, dtype=np.int64).cumsum(1)
        rows = sums[height + 2 :] - sums[: -height - 2]
        places = np.argwhere(rows[:, width + 2 :] == rows[:, : -width - 2])
        if not len(places):
            return False
        top, left = rng.choice(places)
        self.found[top : top + height, left : left + width][shape] = self._name([0, 0])
        return True

    def shake(self, outline: float, shift: float, rng: np.random.Generator) -> None:
        """Move and deform every detection, as far as it still belongs to the same nuclei."""
        boxes = ndimage.find_objects(self.found)
        for one, nuclei in self.covered.items():
            waves, step = rng.normal(0, outline, (2, WAVES)), rng.normal(0, shift, 2)
            place = _grow(boxes[one - 1], math.ceil(3 * (outline + shift)) + 2)
            own = self.found[place] == one
            beneath = [self.labels[place] == label for label in nuclei if label]
            areas = [int(self.areas[label - 1]) for label in nuclei if label]
            may = own | self._is_free(place, *beneath)
            for part in (1, 0.5, 0.25):
                new = may & _deform(own, part * waves, part * step)
                if new.any() and _judge(new, beneath, areas) == _judge(own, beneath, areas):
                    self.found[place][own] = 0
                    self.found[place][new] = one
                    break

    def list_detections(self, ids: _Labels) -> tuple[_Labels, _Labels]:
        """Return detections numbered by their first pixels, and the ids that each covers."""
        numbers, found = _number(self.found, by_place=True)
        ids = np.concatenate([[0], ids])
        pairs = [self.covered[one] for one in numbers.tolist()]
        return found, ids[np.array(pairs, np.int64).reshape(-1, 2)]

    def _is_free(self, place: tuple[slice, ...], *also: _Bools) -> _Bools:
        """Tell where a detection may grow: outside of others and of nuclei but these."""
        may: _Bools = np.logical_or.reduce([self.labels[place] == 0, *also])
        may &= self.inside[place] & (self.found[place] == 0)
        return may

    def _name(self, nuclei: list[int]) -> int:
        """Return the number of a new detection of these nuclei."""
        self.last += 1
        self.covered[self.last] = nuclei
        return self.last


def update_detections(clip: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the map of detections the ids that a transform has given to the masks beneath."""
    moved = {key: clip[key] for key in clip if key != DETECTED}
    if DETECTED not in clip or not {"masks", "detection_tracks"} <= {*moved}:
        return moved
    old, new = _take(clip, DETECTED), _take(clip, "masks")
    covered, base = _take(clip, "detection_tracks").copy(), int(new.max(initial=0)) + 1
    is_same = old.shape == new.shape
    for frame, ids in enumerate(covered if is_same else ()):
        was, now = np.divmod(np.unique(old[frame].astype(np.int64) * base + new[frame]), base)
        # One new id for each old one, and background beneath background.
        is_same &= len({*was.tolist()}) == len(was) == len({*now.tolist()})
        is_same &= bool(((was > 0) == (now > 0)).all())
        places = np.searchsorted(was, ids).clip(max=len(was) - 1)
        covered[frame] = np.where(ids > 0, now[places], ids)
    if not is_same:
        raise ValueError(
            "it must not move, resize or change masks that detections are made of; put "
            "DetectionErrors last, or behind a Resize call it on the finished clip"
        )
    return moved | {"detection_tracks": torch.from_numpy(covered).to(clip["masks"].device)}


def link_detections(clip: Mapping[str, Any]) -> tuple[_Labels, _Labels]:
    """Link the detections of a clip as the truth links what they cover.

    A detection is that of the nucleus in the first column of the map. Where a nucleus has none,
    its track ends, and a new one begins without a parent. Smaller parts of split nuclei and false
    detections are tracks of one frame.

    Returns masks ``[F, H, W]`` and the table of tracks ``[n, 4]``, both int32.
    """
    found, covered = _take(clip, "detections"), _take(clip, "detection_tracks")
    tracks = _take(clip, "tracks")
    rows = {0: 0} | {one: row for row, one in enumerate(tracks[:, 0].tolist(), start=1) if one}
    last = len(tracks)
    masks = np.zeros(found.shape, np.int32)
    for frame, mask in enumerate(found):
        names = np.array([0, *(rows[max(one, 0)] for one in covered[frame, :, 0].tolist())])
        extra = np.flatnonzero(names[1 : mask.max(initial=0) + 1] == 0) + 1
        names[extra] = np.arange(last, last + len(extra)) + 1
        last += len(extra)
        masks[frame] = names[mask]
    parents = {rows[one]: rows[parent] for one, _, _, parent in tracks.tolist() if one}
    masks, table, old = split_gaps(masks, parents)
    for row in table[table[:, 3] > 0]:
        one, mother = old[row[[0, 3]] - 1] - 1
        # A link across frames without a detection is none of the truth's.
        is_true = one != mother and row[1] == tracks[one, 1]
        if not (is_true and table[row[3] - 1, 2] == tracks[mother, 2]):
            table[row[0] - 1, 3] = 0
    return masks, table


def _take(clip: Mapping[str, Any], key: str) -> npt.NDArray[Any]:
    """Return a part of one clip as an array of integers."""
    part = take_part(clip, key)
    if part.is_floating_point():
        raise TypeError(f"{key} must hold integers, got {part.dtype}; give {key}.int()")
    found: npt.NDArray[Any] = part.cpu().numpy()
    return found


def _number(mask: _Labels, by_place: bool = False) -> tuple[_Labels, _Labels]:
    """Return the ids of a mask, ascending or by first pixel, and the mask numbered so."""
    where = mask > 0
    ids, first, rows = np.unique(mask[where], return_index=True, return_inverse=True)
    order = np.argsort(first) if by_place else np.arange(len(ids))
    labels = np.zeros(mask.shape, np.int32)
    labels[where] = np.argsort(order)[rows] + 1
    return ids[order], labels


def _draw(rng: np.random.Generator, can: _Bools, wanted: float) -> _Bools:
    """Draw as many of those that can as are wanted in the mean, or all where there are fewer."""
    chance = wanted / max(int(can.sum()), 1)
    drawn: _Bools = can & (rng.random(len(can)) < chance)
    return drawn


def _pair_neighbours(found: _Labels, reach: int, rng: np.random.Generator) -> _Ints:
    """Pair nuclei that are near each other, the nearest first, ``[n, 2]``; none is in two pairs."""
    wide = np.pad(found, reach)
    flat, where = wide.ravel(), np.flatnonzero(wide)
    own, base = flat[where], int(found.max(initial=0)) + 1
    met: dict[int, int] = {}  # the distance of each pair, squared
    steps = [(y, x) for y in range(reach + 1) for x in range(-reach, reach + 1) if y > 0 or x > 0]
    for square, y, x in sorted((y * y + x * x, y, x) for y, x in steps):
        if square <= reach * reach:
            other = flat[where + y * wide.shape[1] + x]
            pairs = np.minimum(own, other).astype(np.int64) * base + np.maximum(own, other)
            for pair in np.unique(pairs[(other > 0) & (other != own)]).tolist():
                met.setdefault(pair, square)
    order = np.lexsort([rng.random(len(met)), np.array([*met.values()])])
    taken: set[int] = set()
    free = []
    for pair in np.array([divmod(pair, base) for pair in met]).reshape(-1, 2)[order].tolist():
        if taken.isdisjoint(pair):
            free.append(pair)
            taken.update(pair)
    return np.array(free, np.int64).reshape(-1, 2)


def _deform(own: _Bools, waves: npt.NDArray[np.float64], step: npt.NDArray[np.float64]) -> _Bools:
    """Return a shape moved by a step and widened by waves around its centre, px."""
    if own.all():
        return own
    inside, outside = (ndimage.distance_transform_edt(one) for one in (own, ~own))
    depth = np.where(own, inside - 0.5, 0.5 - outside)
    centre = np.argwhere(own).mean(0) + step
    y, x = np.indices(own.shape) - centre[:, None, None]
    wide = np.polyval(waves[0] + 1j * waves[1], np.exp(1j * np.arctan2(y, x))).real
    moved = ndimage.shift(depth, step, order=1, mode="nearest")
    shape: _Bools = moved + wide / math.sqrt(WAVES) > 0
    return shape


def _judge(shape: _Bools, nuclei: list[_Bools], areas: list[int]) -> list[int]:
    """Tell whether a shape covers nothing (0), some (1) or more than half (2) of nuclei."""
    covered = [int((shape & nucleus).sum()) for nucleus in nuclei]
    return [(n > 0) + (2 * n > area) for n, area in zip(covered, areas, strict=True)]


def _find_box(shape: _Bools) -> tuple[slice, ...]:
    box: tuple[slice, ...] = ndimage.find_objects(shape.astype(np.uint8))[0]
    return box


def _grow(box: tuple[slice, ...], margin: int) -> tuple[slice, ...]:
    return tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)
