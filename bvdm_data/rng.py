"""Random generators by name: a seed of its own for every random act."""

import functools
import hashlib

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor

from bvdm_data.pixels import has_loops, run_loop

# SplitMix64 (Steele, Lea & Flood 2014): step of its state, and shifts and factors of its bits.
_STEP, _MIX = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def _hash(seed: int, path: tuple[str | int, ...], size: int) -> int:
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")


def torch_rng(seed: int, *path: str | int) -> torch.Generator:
    """Return the torch generator that belongs to one random act.

    The same arguments give the same numbers in any process, worker, order or batch. Different
    paths give unrelated numbers.

    Examples:
        >>> a = torch_rng(0, "clip", 17, "motion")
        >>> b = torch_rng(0, "clip", 17, "motion")
        >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
        True
    """
    return torch.Generator().manual_seed(_hash(seed, path, 8) >> 1)


def numpy_rng(seed: int, *path: str | int) -> np.random.Generator:
    """Return the numpy generator that belongs to one random act; see :func:`torch_rng`.

    Examples:
        >>> first = numpy_rng(0, "clip", 17).random()
        >>> first == numpy_rng(0, "clip", 17).random() != numpy_rng(0, "clip", 18).random()
        True
    """
    return np.random.default_rng(_hash(seed, path, 16))


def draw_normal(
    seeds: Int[Tensor, " N"], first: Int[Tensor, " N"], count: int
) -> Float[Tensor, "N count"]:
    """Draw standard normal numbers of streams, each from its block ``first`` of four numbers on.

    They are the same on every device, in any order. Each is one of 2^16 equally likely quantiles.
    Nothing here waits for the device.
    """
    device = seeds.device
    quantiles = _tabulate_quantiles(device)
    if has_loops() and device.type == "cpu":
        found = torch.empty(len(seeds), count)
        run_loop("draw_numbers", len(seeds), count, seeds, first, quantiles, found)
        return found
    blocks = first[:, None] + torch.arange(1, -(-count // 4) + 1, device=device)
    bits = seeds[:, None] + blocks * _wrap(_STEP)
    for shift, factor in _MIX:
        # Of signed numbers a shift repeats the sign.
        bits = (bits ^ (bits >> shift & (1 << (64 - shift)) - 1)) * _wrap(factor)
    lanes = torch.stack([bits >> shift & 0xFFFF for shift in range(0, 64, 16)], -1)
    return quantiles[lanes.flatten(1)[:, :count]]


def _wrap(number: int) -> int:
    """Return the signed number of 64 bits that has the bits of an unsigned one."""
    return number - ((number >> 63) << 64)


@functools.lru_cache(maxsize=16)
def _tabulate_quantiles(device: torch.device) -> Float[Tensor, " Q"]:
    """Return quantiles of the normal distribution; their variance is 1."""
    numbers = special.ndtri((np.arange(2**16) + 0.5) / 2**16)
    return torch.from_numpy(numbers / numbers.std()).float().to(device)
