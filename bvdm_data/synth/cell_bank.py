"""Pool: nuclei that are painted once, whole lives with divisions, and shown in many clips."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.cells import Cell, sample_sister_quantile, simulate_lineage
from bvdm_data.synth.model import Model
from bvdm_data.synth.placement import InitialCell
from bvdm_data.synth.render import RenderedPatches, join_patches
from bvdm_data.synth.textures import FastSettings, render_textures

GAIN = 0.1
"""Standard deviation of the logarithm of the light of a nucleus from one showing to the next (our
choice: a third of that between nuclei of the HeLa video)."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """How many painted nuclei are kept, and how soon they are replaced.

    A pair of sisters is kept with all its offspring. While it is kept it is shown again and again,
    each time elsewhere, turned, mirrored or not, brighter or dimmer, under other noise, beside
    others. It stays for ``pairs / renew`` clips; a clip that shows ``n`` pairs thus shows each of
    them ``n / renew`` times in all, on average.

    Attributes:
        pairs: Pairs that are kept; about 0.1 MB each for clips of 8 frames.
        renew: Pairs that are replaced by new ones with every clip; what painting costs is in
            proportion to it, and to the number of workers, since each keeps a pool of its own
            (all equal).

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range.
    """

    pairs: int = 256
    renew: float = 1.0

    def __post_init__(self) -> None:
        """Refuse pools that hold nothing, or nothing for long."""
        if isinstance(self.pairs, bool) or not isinstance(self.pairs, int):
            raise TypeError(f"pairs must be an int, got {self.pairs!r}")
        if self.pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {self.pairs}")
        if isinstance(self.renew, bool) or not isinstance(self.renew, (int, float)):
            raise TypeError(f"renew must be a number, got {self.renew!r}")
        if not 0 <= self.renew <= self.pairs:
            raise ValueError(
                f"renew must be from 0 (never replace) to pairs={self.pairs} (a new pool for "
                f"every clip), got {self.renew}"
            )


@dataclass
class _SisterPair:
    """Two families of one age; painted when first seen."""

    version: tuple[object, ...]
    families: tuple[list[Cell], list[Cell]]
    painted: list[RenderedPatches] | None = None  # rows count the lives of both families


class CellBank:
    """Pairs that a process has grown and painted; what it holds never decides what a clip shows.

    Pair ``k`` of clip ``i`` is a pure function of the model, the method, the seed, ``k`` and how
    often it was replaced before clip ``i``.
    """

    def __init__(self, settings: PoolSettings, seed: int) -> None:
        """Start empty."""
        self.settings = settings
        self.seed = seed
        self._kept: dict[int, _SisterPair] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the painted pairs behind: they are cheaper to paint than to send."""
        return {**self.__dict__, "_kept": {}}

    def pair(self, slot: int, number: int, era: int, generator: Model, frames: int) -> _SisterPair:
        """Return the pair that a slot holds when a clip is made."""
        # One slot after the other is renewed, so that a pool never changes all at once.
        times = int((number * self.settings.renew + slot) // self.settings.pairs)
        version = (id(generator), era, frames, times)
        kept = self._kept.get(slot)
        if kept is None or kept.version != version:
            name = ("pool", era, frames, slot, times)
            kept = _SisterPair(version, self._grow(name, slot, generator, frames))
            self._kept[slot] = kept
        return kept

    def _grow(
        self, name: tuple[str | int, ...], slot: int, generator: Model, frames: int
    ) -> tuple[list[Cell], list[Cell]]:
        draws = numpy_rng(self.seed, *name, "lives")
        # Evenly spread over the slots, so that a small pool has dim and bright nuclei, too.
        quantile = (slot + draws.random()) / self.settings.pairs
        models = (generator.shapes, generator.lives, frames, draws)
        drift = draws.standard_normal(frames)
        one = simulate_lineage(*models, 1, jitter=None, quantile=quantile, drift=drift)
        age = one[0].age
        other = simulate_lineage(
            *models, 1 + len(one), jitter=None, age=age, drift=drift,
            quantile=sample_sister_quantile(generator.lives, quantile, age, draws),
        )  # fmt: skip
        return one, other

    def paint(
        self, slot: int, pair: _SisterPair, generator: Model, settings: FastSettings
    ) -> list[RenderedPatches]:
        """Return the pictures of all moments of a pair, painted in one call.

        Always the same call, whatever else a clip shows: how many pictures share a call may
        change their last bits.
        """
        if pair.painted is None:
            lives = [life for family in pair.families for life in family]
            _, era, frames, times = pair.version
            name = ("pool", era, frames, slot, times, "texture")
            groups = render_textures(
                lives, [(life.first, life.last) for life in lives],
                generator.get_denoiser(settings.steps), generator.texture, settings,
                [torch_rng(self.seed, *name, life.identity) for life in lives],  # type: ignore[arg-type]
            )  # fmt: skip
            pair.painted = [replace(group, light=group.light.half()) for group in groups]
        return pair.painted


@dataclass(frozen=True)
class _Origin:
    """What a nucleus of a clip was taken from."""

    slot: int
    row: int  # among the lives of the pair
    mirrored: bool
    gain: float


class BankSample:
    """The nuclei of one clip, taken out of a pool; gives families and their patches."""

    def __init__(
        self,
        pool: CellBank,
        generator: Model,
        frames: int,
        number: int,
        era: int,
        draws: np.random.Generator,
        *,
        size: float = 1.0,
        brightness: float = 1.0,
    ) -> None:
        """Shuffle the slots."""
        self.pool = pool
        self.generator = generator
        self.frames = frames
        self.number = number
        self.era = era
        self.draws = draws
        self.size = size
        self.brightness = brightness
        self._order = draws.permutation(pool.settings.pairs)
        self._next = 0
        self._roles: dict[int, _Origin] = {}

    def __call__(self, identity: int, sister: InitialCell | None) -> list[Cell]:
        """Return a family whose lives are numbered from ``identity`` on."""
        if sister is None:
            slot = int(self._order[self._next % len(self._order)])
            self._next += 1
        else:
            slot = self._roles[sister.family[0].identity].slot
        pair = self._pair(slot)
        which = int(sister is not None)
        family, before = pair.families[which], which * len(pair.families[0])
        mirrored, gain = bool(self.draws.random() < 0.5), self._gain()
        shift = identity - family[0].identity
        shown = []
        for row, life in enumerate(family, start=before):
            self._roles[life.identity + shift] = _Origin(slot, row, mirrored, gain)
            radii = np.roll(life.radii[:, ::-1], 1, axis=1) if mirrored else life.radii
            shown.append(
                replace(
                    life,
                    identity=life.identity + shift,
                    parent=life.parent + shift if life.parent else 0,
                    radii=self.size * radii,
                    brightness=gain * life.brightness,
                )
            )
        return shown

    def pictures(
        self,
        shown: Sequence[tuple[int, int, tuple[int, int]]],
        settings: FastSettings,
    ) -> list[RenderedPatches]:
        """Return the patches of the visible nuclei, making those that no clip has shown yet."""
        parts: dict[int, list[RenderedPatches]] = {}
        for identity, row, (first, last) in shown:
            role = self._roles[identity]
            for group in self.pool.paint(
                role.slot, self._pair(role.slot), self.generator, settings
            ):
                mine = (group.rows == role.row) & (group.frames >= first)
                chosen = (mine & (group.frames <= last)).nonzero()[:, 0]
                if not len(chosen):
                    continue
                light = group.light[chosen].float() * role.gain
                parts.setdefault(light.shape[-1], []).append(
                    RenderedPatches(
                        light.flip(2) if role.mirrored else light,
                        torch.full((len(chosen),), row),
                        group.frames[chosen],
                        group.zoom[chosen] / self.size,
                    )
                )
        return [join_patches(some) for _, some in sorted(parts.items())]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what the process that renders has itself: bank, model, and generator."""
        return {k: v for k, v in vars(self).items() if k not in ("pool", "generator", "draws")}

    def _pair(self, slot: int) -> _SisterPair:
        return self.pool.pair(slot, self.number, self.era, self.generator, self.frames)

    def _gain(self) -> float:
        return float(self.brightness * np.exp(GAIN * self.draws.standard_normal()))
