"""Cell bank: nuclei that are rendered once, with all their offspring, and shown in many clips."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bvdm_data.rng import numpy_rng, torch_rng
from bvdm_data.synth.cells import Cell, LineageSimulator, number_cells
from bvdm_data.synth.model import Model, ToneCurve
from bvdm_data.synth.occupancy import InitialCell
from bvdm_data.synth.render import RenderedPatches, join_patches
from bvdm_data.synth.textures import FastSettings, render_textures
from bvdm_data.validate import Rule, check_fields

GAIN = 0.1
"""Standard deviation of a nucleus' log brightness from one showing to the next (our choice: a third
of the spread between nuclei of the HeLa video)."""

GROWN_TOGETHER = 16
"""Pairs that are simulated at once, to save time."""

Families = tuple[list[Cell], list[Cell]]


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """How many rendered nuclei are kept, and how soon they are replaced.

    A pair of sisters is kept with all its offspring. It is shown again and again, each time at
    another place and angle, mirrored or not, brighter or dimmer, under other noise, among other
    nuclei. It stays for ``pairs / renew`` clips; a clip that shows ``n`` pairs thus shows each of
    them ``n / renew`` times in all, on average.

    Attributes:
        pairs: Pairs that are kept; about 0.1 MB each for clips of 8 frames.
        renew: Pairs that are replaced by new ones with every clip. The cost of rendering is
            proportional to it, and to the number of workers, since each keeps its own copy of the
            same pool.

    Raises:
        TypeError: If a value is of the wrong type.
        ValueError: If a value is out of its range.
    """

    pairs: int = 256
    renew: float = 1.0

    def __post_init__(self) -> None:
        """Refuse pools that hold nothing, or nothing for long."""
        check_fields(self, pairs=Rule(int, least=1), renew=Rule(float))
        if not 0 <= self.renew <= self.pairs:
            raise ValueError(
                f"renew must be from 0 (never replace) to pairs={self.pairs} (a new pool for "
                f"every clip), got {self.renew}"
            )


@dataclass
class _SisterPair:
    """Two families of one age; rendered when first seen."""

    model: Model
    name: tuple[str | int, ...]  # of its random streams: generation, frames, slot and version
    families: Families
    patches: list[RenderedPatches] | None = None  # rows count the cells of both families


class CellBank:
    """Pairs that a process has simulated and rendered; a cache, which never changes any clip.

    Pair ``k`` of clip ``i`` is a pure function of the model, the method, the seed, ``k`` and how
    often it was replaced before clip ``i``.
    """

    def __init__(
        self, settings: PoolSettings, seed: int, *, death_rate: float | None = None
    ) -> None:
        """Start empty; ``death_rate`` None: the model's."""
        self.settings, self.seed, self.death_rate = settings, seed, death_rate
        self._pairs: dict[int, _SisterPair] = {}
        # The latest of each block of pairs, with their model and the name of their random stream.
        self._grown: dict[int, tuple[Model, tuple[str | int, ...], list[Families]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pairs behind: they are cheaper to render than to send."""
        return {**self.__dict__, "_pairs": {}, "_grown": {}}

    def get_pair(
        self, slot: int, number: int, generation: int, model: Model, frames: int
    ) -> _SisterPair:
        """Return the pair in a slot when clip ``number`` is made."""
        # One slot after the other is renewed, so that a bank never changes all at once.
        version = int((number * self.settings.renew + slot) // self.settings.pairs)
        name = ("pool", generation, frames, slot, version)
        pair = self._pairs.get(slot)
        if pair is None or pair.name != name or pair.model is not model:
            block, place = divmod(slot, GROWN_TOGETHER)
            families = self._grow(block, generation, frames, version, model)[place]
            pair = self._pairs[slot] = _SisterPair(model, name, families)
        return pair

    def _grow(
        self, block: int, generation: int, frames: int, version: int, model: Model
    ) -> list[Families]:
        """Return the pairs of a block of slots, simulated now or before."""
        name = ("pool", generation, frames, "block", block, version)
        known = self._grown.get(block)
        if known and known[0] is model and known[1] == name:
            return known[2]
        rng = numpy_rng(self.seed, *name, "lives")
        lives = model.lives.with_death_rate(self.death_rate)
        # Evenly spread over the slots, so that a small bank has dim and bright nuclei, too.
        slots = np.arange(self.settings.pairs)[block * GROWN_TOGETHER :][:GROWN_TOGETHER]
        quantiles = (slots + rng.random(len(slots))) / self.settings.pairs
        pairs = LineageSimulator(model.shapes, lives, frames, rng).grow_pairs(quantiles)
        grown = [(one, number_cells(other, 1 + len(one))) for one, other in pairs]
        self._grown[block] = model, name, grown
        return grown

    def render(
        self, pair: _SisterPair, settings: FastSettings, *, evenness: float = 0.0, step: int = 1
    ) -> list[RenderedPatches]:
        """Return the patches of a pair; ``evenness`` and ``step`` as in ``SceneSettings``.

        They come from one call, whatever else a clip shows: the number of patches in a call may
        change their last bits.
        """
        if pair.patches is None:
            cells = [cell.thin(step) for family in pair.families for cell in family]
            groups = render_textures(
                cells, [(cell.first, cell.last) for cell in cells],
                pair.model.get_denoiser(settings.steps), pair.model.texture, settings,
                [torch_rng(self.seed, *pair.name, "texture", cell.identity) for cell in cells],
                pair.model.reference_brightness, evenness, step,
            )  # fmt: skip
            pair.patches = [replace(group, light=group.light.half()) for group in groups]
        return pair.patches


@dataclass(frozen=True)
class _Origin:
    """Where a nucleus of a clip was taken from."""

    slot: int
    row: int  # among the cells of the pair
    mirrored: bool
    gain: float


class BankSample:
    """The nuclei of one clip, taken out of a bank: a sampler of families that has their patches."""

    def __init__(
        self,
        bank: CellBank,
        model: Model,
        frames: int,
        number: int,
        generation: int,
        rng: np.random.Generator,
        *,
        size: float = 1.0,
        tone: ToneCurve | None = None,
        evenness: float = 0.0,
        step: int = 1,
    ) -> None:
        """Shuffle the slots."""
        self.bank, self.model, self.rng = bank, model, rng
        self.frames, self.number, self.generation = frames, number, generation
        self.size, self.tone, self.evenness, self.step = size, tone, evenness, step
        self._slots = itertools.cycle(rng.permutation(bank.settings.pairs).tolist())
        self._origins: dict[int, _Origin] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what the process that renders has itself."""
        left = ("bank", "model", "rng", "_slots")
        return {key: value for key, value in self.__dict__.items() if key not in left}

    def __call__(self, identity: int, sister: InitialCell | None) -> list[Cell]:
        """Return a family whose cells are numbered from ``identity`` on."""
        slot = self._origins[sister.family[0].identity].slot if sister else next(self._slots)
        pair = self._get_pair(slot)
        which = int(sister is not None)
        family, before = pair.families[which], which * len(pair.families[0])
        mirrored = bool(self.rng.random() < 0.5)
        gain = float(np.exp(GAIN * self.rng.standard_normal()))
        lit = gain
        if self.tone is not None:
            usual = statistics.median(family[0].brightness.tolist())
            lit *= float(self.tone.compute_gain(gain * usual))
        shown = []
        for row, cell in enumerate(number_cells(family, identity), start=before):
            self._origins[cell.identity] = _Origin(slot, row, mirrored, lit)
            radii = np.roll(cell.radii[:, ::-1], 1, axis=1) if mirrored else cell.radii
            ours = replace(cell, radii=self.size * radii, brightness=gain * cell.brightness)
            shown.append(ours)
        return shown

    def render(
        self, shown: Sequence[tuple[int, int, tuple[int, int]]], settings: FastSettings
    ) -> list[RenderedPatches]:
        """Return the patches of nuclei, given identity, row, and first and last frame of each."""
        parts: dict[tuple[int, int], list[RenderedPatches]] = {}
        gains: dict[tuple[int, int], list[tuple[float, bool]]] = {}
        for identity, row, (first, last) in shown:
            origin = self._origins[identity]
            pair = self._get_pair(origin.slot)
            for group in self.bank.render(pair, settings, evenness=self.evenness, step=self.step):
                # Patches are sorted by row and frame.
                start, stop = np.searchsorted(group.rows.numpy(), [origin.row, origin.row + 1])
                wanted = np.searchsorted(group.frames[start:stop].numpy(), [first, last + 1])
                part = slice(*(start + wanted).tolist())
                count = part.stop - part.start
                if not count:
                    continue
                parts.setdefault(group.size, []).append(
                    RenderedPatches(
                        group.light[part], torch.full((count,), row), group.frames[part],
                        group.zoom[part],
                    )
                )  # fmt: skip
                gains.setdefault(group.size, []).extend([(origin.gain, origin.mirrored)] * count)
        joined = []
        for size, alike in sorted(parts.items()):
            group = join_patches(alike)
            gain, mirrored = torch.tensor(gains[size]).unbind(1)
            light = group.light.float().mul_(gain[:, None, None])
            light = torch.where(mirrored.bool()[:, None, None], light.flip(2), light)
            joined.append(replace(group, light=light, zoom=group.zoom / self.size))
        return joined

    def _get_pair(self, slot: int) -> _SisterPair:
        return self.bank.get_pair(slot, self.number, self.generation, self.model, self.frames)
