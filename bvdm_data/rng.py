"""Random generators by name: a seed of its own for every random act."""

import hashlib

import numpy as np
import torch


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
