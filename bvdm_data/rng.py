"""Randomness as a value: a named stream for every random act."""

import hashlib

import numpy as np
import torch


def _number(seed: int, path: tuple[str | int, ...], size: int) -> int:
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")


def torch_rng(seed: int, *path: str | int) -> torch.Generator:
    """Return the torch generator that belongs to one random act.

    The same arguments give the same numbers in any process, worker, order or
    batch; two different paths give unrelated numbers.

    Examples:
        >>> a = stream(0, "clip", 17, "motion")
        >>> b = stream(0, "clip", 17, "motion")
        >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
        True
    """
    return torch.Generator().manual_seed(_number(seed, path, 8) >> 1)


def numpy_rng(seed: int, *path: str | int) -> np.random.Generator:
    """Return the numpy generator that belongs to one random act; see :func:`stream`.

    Examples:
        >>> first = numpy_stream(0, "clip", 17).random()
        >>> first == numpy_stream(0, "clip", 17).random() != numpy_stream(0, "clip", 18).random()
        True
    """
    return np.random.default_rng(_number(seed, path, 16))
